# kusto_ingest_async: a background process runs the query after the commit, as the role that asked.
use strict;
use warnings;

use KustoCluster;
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;

# With such a nap nothing is found but what is announced.
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.naptime = 1h
	max_worker_processes = 16
	log_min_messages = debug1
	CONF

my $worker_pid = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker' AND datname = current_database());
my $jobs = q(FROM pg_stat_activity WHERE backend_type = 'kusto_ingest job' AND datname = current_database());

sub fresh_table
{
	my ($table, $columns) = @_;
	$kusto->create_table($db, $table, $columns // 'i:int');
	return $table;
}

# A function that does not return while somebody has the gate's lock.
$pg->sql(<<~'SQL');
	CREATE FUNCTION gate(i int) RETURNS int LANGUAGE plpgsql AS
	'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN i; END';
	SQL
my $keeper = $pg->session;
sub close_gate { return $keeper->sql('SELECT pg_advisory_lock(42)') }
sub open_gate { return $keeper->sql('SELECT pg_advisory_unlock(42)') }

# ---- it works ----

my $table = fresh_table('First');
my $id = $pg->async('SELECT i FROM generate_series(1, 3) i', $table);
like($id, qr/^[0-9a-f-]{36}$/, 'the call returns an id');
my $operation = $pg->succeeds($id, 'a job: it succeeds');
$pg->rows_are($table, [ [1], [2], [3] ], 'its rows land');
is_deeply([ @$operation{qw(runs rows blobs owner)} ], [ 1, 3, 1, $pg->sql('SELECT current_user') ],
	'the row has what it was');
cmp_ok($operation->{created_at}, 'lt', $operation->{started_at}, 'submitted, then begun');
cmp_ok($operation->{started_at}, 'lt', $operation->{staged_at}, 'begun, then staged');

$table = fresh_table('WithOptions');
$id = $pg->async('SELECT 1 AS i', $table, tags => q(ARRAY['drop-by:a', 'x''y']), ingest_if_not_exists => q(ARRAY['k1']),
	creation_time => q('2020-02-03 04:05:06+00'), flush_immediately => 'true', exactly_once => q('off'));
$operation = $pg->succeeds($id, 'a job with options: it succeeds');
is_deeply([ @{ $operation->{options} }{qw(tags ingest_if_not_exists flush_immediately exactly_once on_type_error create_table)} ],
	[ [ 'drop-by:a', "x'y" ], ['k1'], JSON::PP::true, 'off', 'error', JSON::PP::false ], 'its options are in the row');
my $messages = JSON::PP->new->canonical->encode([ grep { JSON::PP->new->encode($_) =~ /\b$table\b/ } @{ $kusto->messages } ]);
like($messages, qr/\Q$_\E/, "the service was told: $_") for 'drop-by:a', "x'y", 'k1', '2020-02-03T04:05:06';

# ---- what the result depends on ----

$table = fresh_table('Settings', 'i:int, path:string, zone:string, at:string, day:string, span:string');
$pg->sql('CREATE SCHEMA s; CREATE TABLE s.here (i int); INSERT INTO s.here VALUES (7)');
$id = $pg->sql(<<~SQL . $pg->async_call(<<~'QUERY', $table));
	SET search_path = s, public;
	SET TimeZone = 'Asia/Kathmandu';
	SET DateStyle = 'SQL, DMY';
	SET IntervalStyle = 'sql_standard';
	SQL
	SELECT i, current_setting('search_path') AS path, current_setting('TimeZone') AS zone,
		timestamptz '2020-02-03 00:00:00+00'::text AS at, date '2020-02-03'::text AS day,
		interval '1 day 2 hours'::text AS span FROM here
	QUERY
$operation = $pg->succeeds($id, 'settings of the call: it succeeds');
$pg->rows_are($table, [ [ 7, 's, public', 'Asia/Kathmandu', '03/02/2020 05:45:00 +0545', '03/02/2020', '1 2:00:00' ] ],
	'the query has the settings of the call');
my %recorded = (
	'search_path' => 's, public', 'TimeZone' => 'Asia/Kathmandu', 'DateStyle' => 'SQL, DMY',
	'IntervalStyle' => 'sql_standard', 'standard_conforming_strings' => 'on', 'extra_float_digits' => '1',
	'kusto_ingest.max_blob_size' => '512MB', 'kusto_ingest.compression_level' => '1',
	'kusto_ingest.compression_threads' => '1',
	'kusto_ingest.job_timeout' => '0');
is_deeply({ map { $_ => $operation->{options}{settings}{$_} } keys %recorded }, \%recorded, 'they are recorded');

$table = fresh_table('Meaning', 's:string, f:string, b:string');
$id = $pg->sql(q(SET standard_conforming_strings = off; SET escape_string_warning = off; SET extra_float_digits = -10; SET bytea_output = escape;)
	  . $pg->async_call(q(SELECT 'a\\tb' AS s, (1.0::float8 / 3)::text AS f, 'x'::bytea::text AS b), $table));
$pg->succeeds($id, 'settings that change what a query means: it succeeds');
$pg->rows_are($table, [ [ "a\tb", '0.33333', 'x' ] ], 'it means what it meant at the call');

$table = fresh_table('SmallBlobs', 's:string');
$id = $pg->sql(q(SET kusto_ingest.max_blob_size = '1MB'; )
	  . $pg->async_call(q(SELECT repeat(md5(i::text), 1000) AS s FROM generate_series(1, 100) i), $table));
is($pg->succeeds($id, 'max_blob_size of the call: it succeeds')->{blobs}, 4, 'it is what counts');

%recorded = (row_security => 'off', xmlbinary => 'hex', timezone_abbreviations => 'India', backslash_quote => 'off',
	gin_fuzzy_search_limit => '7');
$table = fresh_table('Others', join(', ', map { "$_:string" } sort keys %recorded));
$id = $pg->sql(join('', map { "SET $_ = '$recorded{$_}'; " } sort keys %recorded)
	  . $pg->async_call('SELECT ' . join(', ', map { "current_setting('$_') AS $_" } sort keys %recorded), $table));
$pg->succeeds($id, 'other settings of the call: it succeeds');
$pg->rows_are($table, [ [ map { $recorded{$_} } sort keys %recorded ] ], 'the query has them, too');

$pg->sql('CREATE TABLE big AS SELECT i FROM generate_series(1, 20000) i; ANALYZE big');
my $parallel = <<~'SQL';
	ALTER DATABASE postgres SET parallel_setup_cost = 0;
	ALTER DATABASE postgres SET parallel_tuple_cost = 0;
	ALTER DATABASE postgres SET min_parallel_table_scan_size = 0;
	ALTER DATABASE postgres SET parallel_leader_participation = off;
	SQL
$pg->sql($parallel);
$table = fresh_table('Parallel');
$pg->succeeds($pg->async('SELECT count(*)::int AS i FROM big WHERE i % 2 = 0', $table), 'a parallel query: it succeeds');
$pg->rows_are($table, [ [10000] ], 'its result lands');
like(slurp_file($pg->node->logfile), qr/registering background worker "parallel worker for PID \d+"/, 'there were parallel workers');
$pg->sql('ALTER DATABASE postgres RESET ALL');

# ---- transactions ----

$table = fresh_table('Transactions');
my $session = $pg->session;
my $before = $pg->sql('SELECT count(*) FROM kusto.operations');
$session->sql('BEGIN; ' . $pg->async_call('SELECT 1 AS i', $table) . '; ROLLBACK');
is($pg->sql('SELECT count(*) FROM kusto.operations'), $before, 'a rollback leaves no request');

$session->sql('BEGIN');
$session->sql('CREATE TABLE born AS SELECT 2 AS i');
$id = $session->sql($pg->async_call('TABLE born', $table));
is($pg->sql("SELECT count(*) FROM kusto.operations WHERE id = '$id'"), 0, 'nobody sees it before the commit');
$session->sql('SAVEPOINT a');
my $undone = $session->sql($pg->async_call('SELECT -1 AS i', $table));
$session->sql('ROLLBACK TO a');
$session->sql('COMMIT');
$pg->succeeds($id, 'a table of the same transaction is there when the job runs');
is($pg->operation($undone), undef, 'a rollback to a savepoint leaves no request');

$pg->set_config('kusto_ingest.naptime' => '200ms');
$session->sql('BEGIN');
$id = $session->sql($pg->async_call('SELECT 3 AS i', $table));
$session->sql(q(PREPARE TRANSACTION 'jobs'));
is($pg->operation($id), undef, 'prepared: not yet');
$pg->sql(q(COMMIT PREPARED 'jobs'));
$pg->succeeds($id, 'COMMIT PREPARED: the job runs');
$pg->rows_are($table, [ [2], [3] ], 'and only what has committed lands');
$pg->set_config('kusto_ingest.naptime' => '1h');

$pg->sql('CREATE TABLE stock (i int); INSERT INTO stock SELECT generate_series(1, 4)');
$table = fresh_table('Deleted');
$id = $pg->async('DELETE FROM stock WHERE i > 2 RETURNING i', $table);
$pg->succeeds($id, 'DELETE RETURNING: it succeeds');
$pg->rows_are($table, [ [3], [4] ], 'what was deleted lands');
is($pg->sql('SELECT string_agg(i::text, $$,$$ ORDER BY i) FROM stock'), '1,2', 'and is deleted');

$table = fresh_table('NotDeleted');
$kusto->fault({ service => 'blob', method => 'PUT' }, { status => 403 }, times => -1);
$id = $pg->async('DELETE FROM stock RETURNING i', $table);
$operation = $pg->ends_as($id, 'failed', 'uploads are refused: it fails');
like($operation->{error_message}, qr/failed/, 'with a reason');
is($pg->sql('SELECT count(*) FROM stock'), 2, 'and nothing is deleted');
is_deeply($pg->blobs($id), [], 'nor staged');
$kusto->clear_faults;

# ---- results without rows, tables that are not there ----

$table = fresh_table('Empty');
$operation = $pg->succeeds($pg->async('SELECT 1 AS i WHERE false', $table), 'no rows: it succeeds');
is_deeply([ @$operation{qw(rows blobs)} ], [ 0, 0 ], 'with nothing');

$operation = $pg->succeeds($pg->async(q(SELECT 1 AS a, 'x'::text AS b), 'Created', create_table => 'true'),
	'create_table: it succeeds');
$pg->rows_are('Created', [ [ 1, 'x' ] ], 'the table is created');
$operation = $pg->succeeds($pg->async(q(SELECT 1 AS a WHERE false), 'CreatedEmpty', create_table => 'true'),
	'create_table without rows: it succeeds');
is_deeply($kusto->rows($db, 'CreatedEmpty'), [], 'the table is created');

$table = fresh_table('Misfits', 'd:datetime');
$operation = $pg->succeeds($pg->async(q(SELECT 'infinity'::timestamp AS d), $table, on_type_error => q('null')),
	'on_type_error: it succeeds');
is_deeply($operation->{type_errors}, { d => { infinity => 1 } }, 'misfits are counted');

# ---- errors of the query ----

$table = fresh_table('Errors');
$operation = $pg->ends_as($pg->async('SELECT 1 / (i - 2) AS i FROM generate_series(1, 3) i', $table), 'failed', 'an error of the query');
is_deeply([ @$operation{qw(error_code error_message runs)} ], [ '22012', 'division by zero', 1 ], 'its error is in the row');
is_deeply($pg->blobs($operation->{id}), [], 'nothing is staged');
$pg->sql(<<~'SQL');
	CREATE FUNCTION complain() RETURNS int LANGUAGE plpgsql AS
	$$BEGIN RAISE EXCEPTION 'no such luck' USING ERRCODE = 'ZZ123', DETAIL = 'The detail.', HINT = 'The hint.'; END$$;
	SQL
$operation = $pg->ends_as($pg->async('SELECT complain() AS i', $table), 'failed', 'an error of a function');
is_deeply([ @$operation{qw(error_code error_message details hint)} ], [ 'ZZ123', 'no such luck', 'The detail.', 'The hint.' ],
	'all of it is in the row');
$pg->rows_are($table, [], 'and nothing lands');

# Deferred triggers are fired by the commit.
$pg->sql(<<~'SQL');
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'refused late'; END$$;
	CREATE TABLE guarded (i int);
	CREATE CONSTRAINT TRIGGER late AFTER INSERT ON guarded DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION refuse();
	SQL
$operation = $pg->ends_as($pg->async('INSERT INTO guarded VALUES (1) RETURNING i', $table), 'failed', 'an error of the commit');
is($operation->{error_message}, 'refused late', 'is in the row');
is_deeply($pg->blobs($operation->{id}), [], 'and nothing is staged');

# ---- time limits ----

my $sleeper = 'SELECT i FROM pg_sleep(600), generate_series(1, 1) i';
$id = $pg->sql(q(SET kusto_ingest.job_timeout = '200ms'; ) . $pg->async_call($sleeper, $table));
$operation = $pg->ends_as($id, 'failed', 'job_timeout: it fails');
is_deeply([ @$operation{qw(error_code error_message)} ], [ '57014', 'canceling statement due to statement timeout' ], 'with the reason');
like($operation->{hint}, qr/kusto_ingest\.job_timeout/, 'and says what to raise');
$id = $pg->sql(q(SET statement_timeout = '5s'; ) . $pg->async_call('SELECT 1 AS i', $table));
$pg->succeeds($id, 'statement_timeout is for the call');

# ---- what is refused at once ----

sub refused
{
	my ($sql, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $pg->fails_like($sql, $expected, $name);
}
$before = $pg->sql('SELECT count(*) FROM kusto.operations');
refused($pg->async_call('SELECT 1 AS', $table), { sqlstate => '42601' }, 'a syntax error');
refused($pg->async_call('SELECT 1 AS i; SELECT 2', $table), { sqlstate => '42601', message => qr/2 statements/ }, 'two statements');
refused($pg->async_call('TABLE nowhere', $table), { sqlstate => '42P01' }, 'a table that is not there');
refused($pg->async_call('VACUUM', $table), { sqlstate => '0A000' }, 'a utility command');
refused($pg->async_call('DELETE FROM stock', $table), { sqlstate => '0A000', message => qr/RETURNING/ }, 'DML without RETURNING');
refused($pg->async_call('SELECT', $table), { message => qr/no columns/ }, 'no columns');
refused('CREATE TEMP TABLE t (i int); ' . $pg->async_call('TABLE t', $table),
	{ sqlstate => '0A000', message => qr/temporary tables/, hint => qr/kusto_ingest\(\)/ }, 'a temporary table');
refused($pg->async_call('SELECT 1 AS i', $table, server => q('nowhere')), { sqlstate => '42704' }, 'a server that is not there');
refused($pg->async_call('SELECT 1 AS i', $table, mode => q('fast')), { sqlstate => '22023' }, 'an unknown mode');
refused($pg->async_call('SELECT 1 AS i', $table, exactly_once => q('maybe')), { sqlstate => '22023' }, 'an unknown exactly_once');
refused($pg->async_call('SELECT 1 AS i', $table, on_type_error => q('maybe')), { sqlstate => '22023' }, 'an unknown on_type_error');
refused($pg->async_call('SELECT 1 AS i', $table, tags => q(ARRAY['a', NULL])), { sqlstate => '22004' }, 'a tag that is null');
refused('SELECT kusto_ingest_async(NULL, $$db$$, $$T$$)', { sqlstate => '22004', message => qr/query must not be null/ }, 'a query that is null');
refused('BEGIN READ ONLY; ' . $pg->async_call('SELECT 1 AS i', $table), { sqlstate => '25006', message => qr/kusto_ingest_async\(\)/ },
	'a read-only transaction');
is($pg->sql('SELECT count(*) FROM kusto.operations'), $before, 'none of them is recorded');

# Nothing of the query is run, nor even planned, by the call.
$pg->sql(<<~'SQL');
	CREATE SEQUENCE calls;
	CREATE FUNCTION counted() RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$BEGIN RETURN nextval('calls'); END$$;
	SQL
close_gate();
$id = $pg->async('SELECT gate(counted()) AS i', $table);
$pg->state_is($id, 'running', 'the job runs');
$pg->poll('SELECT is_called FROM calls', 't', 'it is the job that calls the function');
is($pg->sql('SELECT last_value FROM calls'), 1, 'and nobody else has');

# ---- seen from outside ----

my $activity = $pg->sql("SELECT usename, application_name, query $jobs");
like($activity, qr/^\w+\|kusto_ingest job\|exporting operation $id$/, 'pg_stat_activity tells what it does, without the query');
is($pg->sql("SELECT kusto_wait('$id', '0 s')"), 'running', 'kusto_wait tells its state');
if ($pg->sql('SHOW server_version_num') >= 140000)
{
	is($pg->sql('SELECT operation_id, phase FROM kusto.progress'), "$id|running the query", 'kusto.progress shows it');
}
open_gate();
$pg->succeeds($id, 'kusto_wait waits for a running job');
$pg->poll("SELECT count(*) = 0 $jobs", 't', 'its process ends');
is($pg->sql('SELECT n_tup_ins > 0 FROM pg_stat_all_tables WHERE relid = $$kusto.operation$$::regclass'), 't',
	'what it does is counted by the statistics');

# ---- how many at once ----

$pg->set_config('kusto_ingest.max_jobs' => 2);
$table = fresh_table('Crowd', 'i:int, others:int');
close_gate();
my @crowd = map { $pg->async("SELECT gate($_) AS i, (SELECT count(*) $jobs) AS others", $table) } 1 .. 10;
$pg->poll(q(SELECT count(*) = 2 FROM kusto.operations WHERE state = 'running'), 't', 'max_jobs = 2: two run');
is($pg->sql("SELECT count(*) $jobs"), 2, 'in two processes');
is($pg->sql(q(SELECT count(*) FROM kusto.operations WHERE state = 'pending')), 8, 'the others wait');
is($pg->sql(q(SELECT array_agg(id ORDER BY created_at) FROM kusto.operations WHERE state = 'running')),
	"{$crowd[0],$crowd[1]}", 'the oldest are first');
$pg->set_config('kusto_ingest.max_jobs' => 3);
$pg->poll(q(SELECT count(*) = 3 FROM kusto.operations WHERE state = 'running'), 't', 'max_jobs = 3: one more');
$pg->set_config('kusto_ingest.max_jobs' => 2);
open_gate();
$pg->finished($_) for @crowd;
is($pg->sql("SELECT string_agg(DISTINCT state, ',') FROM kusto.operations WHERE id IN (" . join(',', map { "'$_'" } @crowd) . ')'),
	'succeeded', 'all succeed');
$kusto->settle;
my @seen = @{ $kusto->rows($db, $table) };
is(join(',', sort { $a <=> $b } map { $_->[0] } @seen), join(',', 1 .. 10), 'each lands once');
cmp_ok((sort { $b <=> $a } map { $_->[1] } @seen)[0], '<=', 3, 'and there never were more than were allowed');

$pg->set_config('kusto_ingest.max_jobs' => 0);
$table = fresh_table('None');
$id = $pg->async('SELECT 1 AS i', $table);
$pg->sql("SELECT kusto_wait('$id', '1 s')");
is($pg->operation($id)->{state}, 'pending', 'max_jobs = 0: none is started');
$pg->set_config('kusto_ingest.max_jobs' => 4);
$pg->succeeds($id, 'until some may be');

# ---- what else is open ----

# Another cluster's, so that the worker leaves them alone.
$pg->sql(<<~'SQL');
	INSERT INTO kusto.operation (id, owner, server, database, table_name, mode, source, state, blobs, created_at,
		staged_at, posted_at, system_identifier, database_oid)
	SELECT gen_random_uuid(), 10, 'adx', 'db', 'T', 'queued', 'query', 'posted', 1, now() - interval '1 day', now(), now(), 1, 1
	FROM generate_series(1, 5000);
	VACUUM ANALYZE kusto.operation;
	SQL
sub scans { return $pg->sql(q(SELECT sum(idx_scan) FROM pg_stat_all_indexes WHERE indexrelname = 'operation_jobs')) }
my $scans = scans();
$table = fresh_table('AmongMany');
$pg->succeeds($pg->async('SELECT 1 AS i', $table), 'a job among many that wait for their outcome');
$pg->poll("SELECT sum(idx_scan) > $scans FROM pg_stat_all_indexes WHERE indexrelname = 'operation_jobs'", 't',
	'is found by the index of jobs');
$pg->sql('DELETE FROM kusto.operation WHERE system_identifier = 1');

# ---- the end ----

$pg->set_config('kusto_ingest.worker_idle_timeout' => '100ms');
close_gate();
$id = $pg->async('SELECT gate(2) AS i', $table);
$pg->state_is($id, 'running', 'a job runs');
my $pid = $pg->sql($worker_pid);
my $log = $pg->node->logfile;
$pg->set_config('kusto_ingest.naptime' => '100ms');
$pg->sql('SELECT pg_sleep(1)');
is($pg->sql($worker_pid), $pid, 'the worker stays while a job runs');
$pg->set_config('kusto_ingest.max_jobs' => 0);
open_gate();
$pg->succeeds($id, 'it ends');
$id = $pg->async('SELECT 3 AS i', $table);
$pid = $pg->sql($worker_pid);
$pg->sql('SELECT pg_sleep(1)');
is($pg->sql($worker_pid), $pid, 'the worker stays while a job waits');
$pg->set_config('kusto_ingest.max_jobs' => 4);
$pg->succeeds($id, 'it ends');
$pg->poll("SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type LIKE 'kusto_ingest %'", 't', 'then the worker ends');

# ---- what the server log has of all this ----

$pg->sql(<<~'SQL');
	CREATE FUNCTION chatter(t text) RETURNS text LANGUAGE plpgsql AS
	$$BEGIN RAISE WARNING 'a warning'; EXECUTE 'SELECT $1::int' USING t; RETURN t; END$$;
	SQL
$table = fresh_table('Secret', 't:string');
$operation = $pg->ends_as($pg->async(q(SELECT chatter('x') AS t, 'marked text' AS u), $table), 'failed', 'a query that warns and fails');
is($operation->{error_message}, 'invalid input syntax for type integer: "x"', 'its error is in the row');
close_gate();
$id = $pg->async(q(SELECT gate(1) AS i, 'marked text' AS u), $table);
$pg->state_is($id, 'running', 'a query that is terminated');
$pg->sql("SELECT pg_terminate_backend(pid) $jobs");
open_gate();
$pg->finished($id);
$pg->sql($parallel);
$operation = $pg->ends_as($pg->async(q(SELECT i, 'marked text' AS u FROM big WHERE 1 / (i - 12345) = 7), $table), 'failed',
	'a query that fails in a parallel worker');
is($operation->{error_code}, '22012', 'its error is in the row');
my $text = slurp_file($log);
like($text, qr/background worker "parallel worker" \(PID \d+\) exited with exit code 1/, 'it was in one');
like($text, qr/WARNING:  a warning/, 'the log has the warning');
like($text, qr/LOG:  kusto_ingest operation $operation->{id} failed: division by zero/, 'the error, by the id');
like($text, qr/STATEMENT:  exporting operation $operation->{id}$/m, 'and in the parallel worker');
like($text, qr/FATAL:  terminating background worker "kusto_ingest job" due to administrator command/, 'the termination');
unlike($text, qr/marked text/, 'and none of the queries');
unlike($text, qr/\Q${\ $kusto->client_secret}\E/, 'nor a secret');
unlike($pg->sql('SELECT json_agg(o) FROM kusto.operation o'), qr/\Q${\ $kusto->client_secret}\E|[?&]sig=/, 'which the rows have not either');

done_testing();
