# Steering: kusto_cancel, kusto_retry, kusto_purge, retention, and the view kusto.workers.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(elapsed wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.naptime = 500ms
	kusto_ingest.repost_after = 1s
	log_min_messages = debug1
	CONF
my ($true, $false) = (JSON::PP::true, JSON::PP::false);

sub fresh_table
{
	my ($table, $columns) = @_;
	$kusto->create_table($db, $table, $columns // 'i:int');
	return $table;
}

sub rows_are
{
	my ($table, $values, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$kusto->settle;
	KustoCluster::same_rows($kusto->rows($db, $table), [ map { [$_] } @$values ], $name);
	return;
}

sub state_is
{
	my ($id, $state, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $pg->poll("SELECT state = '$state' FROM kusto.operations WHERE id = '$id'", 't', $name);
}

sub blob_states
{
	my ($id) = @_;
	return $pg->sql("SELECT string_agg(state, ' ' ORDER BY ordinal) FROM kusto.blobs WHERE operation_id = '$id'");
}

# What a statement says besides its result.
sub notice
{
	my ($sql, %options) = @_;
	my $session = $pg->session(%options);
	$session->sql('SET client_min_messages = notice');
	$session->send($sql);
	my $outcome = $session->receive;
	$session->quit;
	return ($outcome->{out}, $outcome->{err});
}

# ---- holding operations in the state staged: the server has no user mapping for the worker ----

my $mapping_options = $pg->sql(q(SELECT 'OPTIONS (' || string_agg(format('%s %L', option_name, option_value), ', ') || ')'
	FROM pg_user_mappings m, pg_options_to_table(m.umoptions) WHERE srvname = 'adx'));
$pg->connect_to($kusto, name => 'adrift');
$pg->sql('DROP USER MAPPING FOR CURRENT_USER SERVER adrift');

sub staged_operation
{
	my ($query, $table) = @_;
	my $call = $pg->ingest_call($query, $table, server => "'adrift'");
	my $id = $pg->sql(<<~"SQL");
		BEGIN;
		CREATE USER MAPPING FOR CURRENT_USER SERVER adrift $mapping_options;
		SELECT $call;
		DROP USER MAPPING FOR CURRENT_USER SERVER adrift;
		COMMIT
		SQL
	$pg->poll("SELECT state = 'staged' AND error_message IS NOT NULL FROM kusto.operations WHERE id = '$id'", 't');
	return $id;
}

sub let_go { return $pg->sql("CREATE USER MAPPING FOR CURRENT_USER SERVER adrift $mapping_options") }
sub hold { return $pg->sql('DROP USER MAPPING FOR CURRENT_USER SERVER adrift') }

# ---- kusto_cancel ----

my $table = fresh_table('Cancel');
my $id = staged_operation('SELECT 1 AS i', $table);
my $rolled_back = staged_operation('SELECT 2 AS i', $table);
is($pg->sql("SELECT kusto_cancel('$id')"), 't', 'a staged operation is cancelled');
my $operation = $pg->operation($id);
is($operation->{state}, 'cancelled', 'and says so');
ok(defined $operation->{finished_at}, 'it has ended');
is($operation->{error_message}, undef, 'what hindered it before is forgotten');
is(blob_states($id), 'cancelled', 'so are its blobs');
is($pg->sql("BEGIN; SELECT kusto_cancel('$rolled_back'); ROLLBACK; SELECT state FROM kusto.operations WHERE id = '$rolled_back'"),
	"t\nstaged", 'a cancel that is rolled back has not been');
let_go();
$pg->succeeds($rolled_back);
hold();
rows_are($table, [2], 'what was cancelled is not in Kusto');

my $call = $pg->ingest_call('SELECT 3 AS i', $table);
$id = $pg->sql(<<~"SQL");
	BEGIN;
	CREATE TEMP TABLE mine AS SELECT $call AS id;
	SAVEPOINT s;
	SELECT id FROM mine WHERE NOT kusto_cancel(id);
	COMMIT;
	SELECT id FROM mine
	SQL
is($pg->operation($id)->{state}, 'cancelled', 'an operation of the own transaction is cancelled');
is(blob_states($id), 'cancelled', 'with its blobs');

# Too late.
$kusto->fault({ service => 'queue', method => 'POST' }, { blackhole => $true }, times => -1);
$id = $pg->ingest('SELECT 4 AS i', $table);
state_is($id, 'posting');
my ($out, $err) = notice("SELECT kusto_cancel('$id')");
is($out, 'f', 'what is being posted is not cancelled');
like($err, qr/NOTICE:.*operation $id is in state "posting" and cannot be cancelled any more/, 'the NOTICE names the state');
$kusto->clear_faults;
$pg->forget_worker;
$kusto->config(hold_ingestion => $true);
my $posted = $pg->ingest('SELECT 5 AS i', $table);
state_is($posted, 'posted');
($out, $err) = notice("SELECT kusto_cancel('$posted')");
is($out, 'f', 'what is posted is not cancelled');
like($err, qr/NOTICE:.*is in state "posted"/, 'the NOTICE names the state');
$kusto->config(hold_ingestion => $false);
$pg->succeeds($posted);
($out, $err) = notice("SELECT kusto_cancel('$posted')");
is($out, 'f', 'what has ended is not cancelled');
like($err, qr/NOTICE:.*is in state "succeeded"/, 'the NOTICE names the state');

# Whoever is faster: what kusto_cancel says is what is in Kusto.
$table = fresh_table('Race');
my @racers = map { $pg->session } 1 .. 2;
$racers[0]->send(<<~"SQL");
	DO \$\$
	BEGIN
		FOR n IN 1 .. 150 LOOP
			PERFORM @{[ $pg->ingest_call('X', $table) =~ s/ ?'X'/format('SELECT %s AS i', n)/r ]};
			COMMIT;
		END LOOP;
	END \$\$
	SQL
$racers[1]->sql('CREATE TABLE cancelled (id uuid, done boolean)');
$racers[1]->send(<<~"SQL");
	SET client_min_messages = warning;
	DO \$\$
	BEGIN
		WHILE (SELECT count(*) FROM kusto.operations WHERE table_name = '$table') < 150 LOOP
			INSERT INTO cancelled
				SELECT id, kusto_cancel(id) FROM kusto.operations
				WHERE table_name = '$table' AND state IN ('staged', 'posting') ORDER BY created_at DESC LIMIT 1;
			COMMIT;
			PERFORM pg_sleep(0.001);
		END LOOP;
	END \$\$
	SQL
for my $racer (@racers)
{
	my $outcome = $racer->receive;
	unlike($outcome->{err}, qr/ERROR|deadlock/, 'posting and cancelling get along');
	$racer->quit;
}
$pg->poll("SELECT count(*) = 0 FROM kusto.operations WHERE table_name = '$table' AND finished_at IS NULL", 't', 'all of them end');
note 'cancelled, too late, not tried: ', $pg->sql(<<~"SQL");
	SELECT count(*) FILTER (WHERE c.done), count(*) FILTER (WHERE NOT c.done), count(*) FILTER (WHERE c IS NULL)
	FROM kusto.operations LEFT JOIN cancelled c USING (id) WHERE table_name = '$table'
	SQL
is($pg->sql("SELECT count(*) FROM cancelled JOIN kusto.operations o USING (id) WHERE done <> (o.state = 'cancelled')"), 0,
	'what kusto_cancel said is what became of it');
is($pg->sql("SELECT count(*) FROM kusto.operations WHERE table_name = '$table' AND state NOT IN ('cancelled', 'succeeded')"), 0,
	'nothing else became of any');
rows_are($table,
	[ map { $_ + 0 } split /\n/, $pg->sql("SELECT substring(query FROM '\\d+')::int FROM kusto.operations WHERE table_name = '$table' AND state = 'succeeded'") ],
	'and exactly the others are in Kusto');

# ---- jobs ----

sub submit
{
	my ($query, $table) = @_;
	return $pg->sql('SELECT ' . $pg->ingest_call($query, $table) =~ s/^kusto_ingest/kusto_ingest_async/r);
}

# The process of a job that has claimed its operation and runs the query.
sub job_pid { return "SELECT pid FROM kusto.workers WHERE operation_id = '$_[0]' AND backend_type = 'kusto_ingest job'" }
sub runs
{
	my ($id) = @_;
	state_is($id, 'running');
	return wait_until(sub { $pg->sql(job_pid($id)) }, "a process for $id");
}

$table = fresh_table('Jobs');
$pg->sql(q(LOAD 'kusto_ingest'; ALTER SYSTEM SET kusto_ingest.max_jobs = 1; SELECT pg_reload_conf()));
my $running = submit('SELECT 1 AS i FROM pg_sleep(300)', $table);
my $pid = runs($running);
is($pg->sql("SELECT backend_type FROM pg_stat_activity WHERE pid = $pid"), 'kusto_ingest job', 'kusto.workers shows the job');
my $pending = submit('SELECT 2 AS i', $table);
is($pg->operation($pending)->{state}, 'pending', 'there is no room for another');
is($pg->sql("SELECT kusto_cancel('$pending')"), 't', 'a pending operation is cancelled');
is($pg->operation($pending)->{state}, 'cancelled', 'and says so');

$pg->sql("BEGIN; SELECT kusto_cancel('$running'); ROLLBACK");
$pg->sql("BEGIN; SAVEPOINT s; SELECT kusto_cancel('$running'); ROLLBACK TO s; COMMIT");
$pg->sql("BEGIN; SAVEPOINT s; SELECT kusto_cancel('$running'); RELEASE s; ROLLBACK");
is($pg->sql(job_pid($running)), $pid, 'a cancel that does not commit stops nothing');
my $waiter = $pg->session;
$waiter->send("SELECT kusto_wait('$running')");
$pg->poll('SELECT EXISTS (SELECT FROM pg_locks WHERE objsubid = 19287)', 't');
my ($seconds) = elapsed(sub {
	is($pg->sql("BEGIN; SAVEPOINT s; SELECT kusto_cancel('$running'); RELEASE s; COMMIT"), 't', 'a running operation is cancelled');
	is($waiter->receive->{out}, 'cancelled', 'whoever waits for it is woken');
	wait_until(sub { !kill 0, $pid }, 'the process ends');
});
cmp_ok($seconds, '<', 1, 'its process stops within a second');
is($pg->operation($running)->{state}, 'cancelled', 'it stays cancelled');
is(blob_states($running), '', 'without a blob');

my $next = submit('SELECT 3 AS i', $table);
$pg->succeeds($next, 'the next one has its place');
rows_are($table, [3], 'of what was cancelled nothing is in Kusto');

# Nobody tells the process of a prepared cancel: it finds its row gone.
my $gate = $pg->session;
$gate->sql('SELECT pg_advisory_lock(1)');
$id = submit('SELECT 4 AS i FROM pg_advisory_lock_shared(1)', $table);
$pid = runs($id);
$pg->sql("BEGIN; SELECT kusto_cancel('$id'); PREPARE TRANSACTION 'job'");
$pg->sql("COMMIT PREPARED 'job'");
ok(kill(0, $pid), 'COMMIT PREPARED signals nobody');
$gate->sql('SELECT pg_advisory_unlock(1)');
wait_until(sub { !kill 0, $pid }, 'the process ends');
is($pg->operation($id)->{state}, 'cancelled', 'but what was cancelled stays so');
$gate->quit;

# A query that fails.
$gate = $pg->session;
$gate->sql('SELECT pg_advisory_lock(1)');
$id = submit('SELECT 1 / length(pg_advisory_lock_shared(1)::text) AS i', $table);
runs($id);
$waiter->send("SELECT kusto_wait('$id'); SELECT clock_timestamp() - finished_at < '2 s' FROM kusto.operations WHERE id = '$id'");
$pg->poll('SELECT EXISTS (SELECT FROM pg_locks WHERE objsubid = 19287)', 't');
$gate->sql('SELECT pg_advisory_unlock(1)');
is($waiter->receive->{out}, "failed\nt", 'whoever waits for a job is woken when it fails');
$pg->fails_like("SELECT kusto_retry('$id')",
	{ sqlstate => '55000', message => qr/operation $id has nothing to post again/, detail => qr/never runs a query/, hint => qr/Run the export again/ },
	'a query that failed is not run again');
$_->quit for $gate, $waiter;
rows_are($table, [3], 'nothing else has come to Kusto');
$pg->sql('ALTER SYSTEM RESET kusto_ingest.max_jobs; SELECT pg_reload_conf()');

# ---- kusto_retry ----

sub refuse
{
	my ($table, %more) = @_;
	return $kusto->config(outcomes => [ { match => { table => $table }, status => 'Failed', failureStatus => 'Permanent',
		errorCode => 'BadRequest_InvalidBlob', details => 'refused by the test', times => -1, %more } ]);
}
sub refuse_nothing { return $kusto->config(outcomes => []) }

$table = fresh_table('Retry');
$pg->sql('CREATE TABLE source AS SELECT 1 AS i; CREATE SEQUENCE runs');
refuse($table);
$id = $pg->ingest("SELECT i FROM source WHERE nextval('runs') > 0", $table);
$operation = $pg->ends_as($id, 'failed');
my ($blob) = @{ $pg->blobs($id) };
$pg->sql('UPDATE source SET i = 2');
($out, $err) = notice("BEGIN; SELECT kusto_retry('$id'); ROLLBACK");
is($pg->operation($id)->{state}, 'failed', 'a retry that is rolled back has not been');
is($pg->ends_as($id, 'failed')->{finished_at}, $operation->{finished_at}, 'and nothing has changed');
refuse_nothing();
($out, $err) = notice("SELECT kusto_retry('$id')");
is($out, 't', 'kusto_retry');
unlike($err, qr/NOTICE/, 'of what certainly did not land duplicates nothing');
$operation = $pg->succeeds($id, 'the second attempt succeeds');
is($operation->{attempts}, 2, 'attempts are counted');
is($operation->{error_message}, undef, 'no error is left');
rows_are($table, [1], 'the same blob has landed');
is($pg->sql('SELECT last_value FROM runs'), 1, 'the query was not run again');
my ($again) = @{ $pg->blobs($id) };
is($again->{source_id}, $blob->{source_id}, 'with the same source id');
is($again->{post_attempts}, 2, 'posted twice');
is($again->{error_code}, undef, 'its error is gone, too');
($out, $err) = notice("SELECT kusto_retry('$id')");
is($out, 'f', 'what has succeeded is not retried');
like($err, qr/NOTICE:.*is in state "succeeded" and cannot be retried/, 'the NOTICE names the state');

# It may fail again, and be retried again.
$table = fresh_table('RetryFails');
refuse($table, times => 2);
$id = $pg->ingest('SELECT 1 AS i', $table);
$pg->ends_as($id, 'failed', 'it fails');
$pg->sql("SELECT kusto_retry('$id')");
$operation = $pg->ends_as($id, 'failed', 'it fails again');
like($operation->{error_message} . $operation->{details}, qr/refused by the test/, 'with what the service says now');
$pg->sql("SELECT kusto_retry('$id')");
is($pg->succeeds($id, 'it succeeds')->{attempts}, 3, 'after three attempts');
rows_are($table, [1], 'once');

# Only what did not land is posted again.
$table = fresh_table('RetryPart', 'i:int, t:string');
refuse($table, times => 1);
$id = $pg->sql(<<~"SQL");
	SET kusto_ingest.max_blob_size = '1MB';
	SELECT @{[ $pg->ingest_call(q(SELECT i, repeat('x', 1000) AS t FROM generate_series(1, 3000) i), $table) ]}
	SQL
$pg->ends_as($id, 'partially_succeeded', 'a part fails');
my @before = map { $_->{state} } @{ $pg->blobs($id) };
is(scalar(grep { $_ eq 'failed' } @before), 1, 'one blob of several');
cmp_ok(scalar(@before), '>', 2, 'really several');
is($pg->sql("SELECT kusto_retry('$id')"), 't', 'it is retried');
$pg->succeeds($id, 'the whole succeeds');
my @attempts = map { $_->{post_attempts} } @{ $pg->blobs($id) };
is_deeply([ map { $_ eq 'failed' ? 2 : 1 } @before ], \@attempts, 'only the part that failed was posted again');
$kusto->settle;
is($kusto->count($db, $table), 3000, 'each row is in Kusto once');

# Cancelled in between: what has landed stays, and the row says so.
$table = fresh_table('RetryCancel', 'i:int, t:string');
refuse($table, times => 1);
$id = $pg->sql(<<~"SQL");
	SET kusto_ingest.max_blob_size = '1MB';
	SELECT @{[ $pg->ingest_call(q(SELECT i, repeat('x', 1000) AS t FROM generate_series(1, 3000) i), $table) ]}
	SQL
$pg->ends_as($id, 'partially_succeeded');
is($pg->sql("BEGIN; SELECT kusto_retry('$id'); SELECT kusto_cancel('$id'); COMMIT"), "t\nt", 'retried, and cancelled');
$operation = $pg->operation($id);
is($operation->{state}, 'cancelled', 'is cancelled');
like($operation->{details}, qr/An earlier attempt has brought \d of its blobs to Kusto; it has tried 1 more/, 'but tells what has landed');
like(blob_states($id), qr/^(?=.*cancelled).*succeeded/, 'as the blobs do');

# A command that failed, without blobs and with one.
for my $query ('SELECT 1 AS i WHERE false', 'SELECT 1 AS i')
{
	$table = 'Command' . length $query;
	$kusto->fault({ service => 'engine', path => '/v1/rest/mgmt', body => 'create-merge' },
		{ status => 403, body => '{"error":{"code":"Forbidden","message":"Caller is not authorized","@permanent":true}}' }, times => -1);
	$id = $pg->ingest($query, $table, create_table => 'true');
	$pg->ends_as($id, 'failed', 'the table cannot be created');
	$kusto->clear_faults;
	is($pg->sql("SELECT kusto_retry('$id')"), 't', 'it is retried');
	$pg->succeeds($id, 'now it can');
	rows_are($table, $query =~ /false/ ? [] : [1], 'the table is there');
}

# The blob is gone: the service's containers empty themselves.
$table = fresh_table('Expired');
refuse($table);
$id = $pg->ingest('SELECT 1 AS i', $table);
$pg->ends_as($id, 'failed');
$kusto->reset;
fresh_table($table);
$pg->sql("SELECT kusto_retry('$id')");
$operation = $pg->ends_as($id, 'failed', 'a blob that is gone cannot be posted');
like($operation->{error_message}, qr/the blob of the export has expired/, 'and the row says so');
is($pg->sql("SELECT count(*) FROM kusto.operations WHERE id = '$id' AND hint IS NOT NULL"), 1, 'with a hint');
is(scalar(grep { ($_->{BlobPath} // '') =~ /\Q$id\E/ } @{ $kusto->messages }), 0, 'nothing was posted for it');

# Not known: it may have landed.
$pg->sql(q(LOAD 'kusto_ingest'; ALTER SYSTEM SET kusto_ingest.status_timeout = '2s'; SELECT pg_reload_conf()));
for my $exactly_once ('off', 'on')
{
	$table = fresh_table("Unknown_$exactly_once");
	$kusto->config(outcomes => [ { match => { table => $table }, status => 'Succeeded', silent => $true, times => 1 } ]);
	$id = $pg->ingest('SELECT 1 AS i', $table, exactly_once => "'$exactly_once'");
	$pg->ends_as($id, 'unknown', "exactly_once $exactly_once: no outcome is known");
	rows_are($table, [1], 'though it has landed');
	($out, $err) = notice("SELECT kusto_retry('$id')");
	is($out, 't', 'it is retried');
	if ($exactly_once eq 'on')
	{
		unlike($err, qr/NOTICE/, 'without fear of duplicates');
		$pg->succeeds($id, 'Kusto has it already, which is success');
	}
	else
	{
		like($err, qr/NOTICE:.*retrying operation $id may duplicate data/, 'with a warning');
		$pg->ends_as($id, 'unknown', 'a blob that is gone has perhaps been ingested, and is not expired');
		is($pg->blobs($id)->[0]{state}, 'unknown', 'nor failed');
	}
	is($kusto->count($db, $table), 1, 'it is there once');
}

# What cannot be posted again may have landed the first time.
$pg->sql(q(LOAD 'kusto_ingest'; ALTER SYSTEM SET kusto_ingest.post_timeout = '1s'; SELECT pg_reload_conf()));
$table = fresh_table('UnknownStays');
$kusto->config(outcomes => [ { match => { table => $table }, status => 'Succeeded', silent => $true, times => 1 } ]);
let_go();
$id = $pg->ingest('SELECT 1 AS i', $table, server => q('adrift'), exactly_once => q('on'));
$pg->ends_as($id, 'unknown', 'it is silently ingested');
$kusto->fault({ service => 'queue', method => 'POST' }, { status => 503 }, times => -1);
$pg->sql("SELECT kusto_retry('$id')");
like($pg->ends_as($id, 'unknown', 'a retry that cannot be posted: still unknown')->{error_message}, qr/posting an ingestion message failed/,
	'with the reason');
hold();
$pg->sql("SELECT kusto_retry('$id')");
like($pg->ends_as($id, 'unknown', 'a retry that is given up: still unknown')->{error_message}, qr/user mapping/, 'with the reason');
$kusto->clear_faults;
let_go();
$pg->sql("SELECT kusto_retry('$id')");
$pg->succeeds($id, 'a retry that is posted succeeds');
is($kusto->count($db, $table), 1, 'it is there once');
hold();
$pg->sql(q(ALTER SYSTEM RESET kusto_ingest.post_timeout; SELECT pg_reload_conf()));
$pg->sql(q(ALTER SYSTEM RESET kusto_ingest.status_timeout; SELECT pg_reload_conf()));

# ---- arguments ----

for my $function ('kusto_cancel', 'kusto_retry')
{
	$pg->fails_like("SELECT $function(NULL)", { sqlstate => '22004', message => qr/operation must not be null/ }, "$function: null");
	$pg->fails_like("SELECT $function('00000000-0000-4000-8000-000000000000')",
		{ sqlstate => '42704', message => qr/does not exist/ }, "$function: what does not exist");
	$pg->fails_like("BEGIN READ ONLY; SELECT $function('$id')", { sqlstate => '25006' }, "$function: in a read-only transaction");
}
$pg->sql("UPDATE kusto.operation SET system_identifier = system_identifier + 1 WHERE id = '$id'");
$pg->fails_like("SELECT $_('$id')", { sqlstate => '55000', message => qr/another cluster or database/ }, "$_: another cluster's operation")
	for 'kusto_cancel', 'kusto_retry';

# ---- kusto_purge ----

sub add_finished
{
	my ($n, $age, $owner) = @_;
	$owner //= 'postgres';
	$pg->sql(<<~"SQL");
		WITH o AS (INSERT INTO kusto.operation (id, owner, server, database, table_name, mode, source, state, blobs, created_at, finished_at,
				system_identifier, database_oid)
			SELECT gen_random_uuid(), '$owner'::regrole, 'adx', 'db', 'Old', 'queued', 'query', 'succeeded', 2, now() - interval '$age', now() - interval '$age',
				system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database())
			FROM pg_control_system(), generate_series(1, $n) RETURNING id)
		INSERT INTO kusto.blob (operation_id, ordinal, source_id, url, rows, raw_bytes, compressed_bytes, state, exactly_once, staged_at, finished_at)
		SELECT id, n, gen_random_uuid(), 'https://x/y', 1, 1, 1, 'succeeded', false, now(), now() FROM o, generate_series(1, 2) n
		SQL
	return;
}
my $old = q(SELECT count(*) FROM kusto.operation WHERE table_name = 'Old');

$pg->sql('CREATE ROLE bob LOGIN; GRANT USAGE ON SCHEMA kusto TO bob; GRANT SELECT ON kusto.operations, kusto.blobs, kusto.workers TO bob;
	GRANT EXECUTE ON FUNCTION kusto_cancel, kusto_retry, kusto_purge, kusto_wait TO bob');
$pg->fails_like(q(SELECT kusto_purge('-1 second')), { sqlstate => '22023', message => qr/must not be negative/ }, 'kusto_purge: negative');
$pg->fails_like(q(SELECT kusto_purge('1 day -25 hours')), { sqlstate => '22023' }, 'kusto_purge: negative in sum');
$pg->fails_like('SELECT kusto_purge(NULL)', { sqlstate => '22004' }, 'kusto_purge: null');

my $unfinished = staged_operation('SELECT 1 AS i', fresh_table('Unfinished'));
$pg->sql("UPDATE kusto.operation SET created_at = now() - interval '30 days', staged_at = now() - interval '30 days' WHERE id = '$unfinished'");
add_finished(2500, '2 hours');
add_finished(10, '30 minutes');
add_finished(7, '3 hours', 'bob');
is($pg->sql(q(SELECT kusto_purge('1 hour')), user => 'bob'), 7, 'kusto_purge deletes own operations');
is($pg->sql($old), 2510, 'and no others');
is($pg->sql(q(BEGIN; SELECT kusto_purge('1 hour'); ROLLBACK)), 2500, 'more than a batch');
is($pg->sql($old), 2510, 'a purge that is rolled back has not been');
is($pg->sql(q(SELECT kusto_purge('1 hour'))), 2500, 'a superuser has the privileges of everybody');
is($pg->sql($old), 10, 'what is younger stays');
is($pg->sql(q(SELECT count(*) FROM kusto.blob b WHERE url = 'https://x/y')), 20, 'blobs go with their operations');
is($pg->operation($unfinished)->{state}, 'staged', 'what has not ended stays, however old');

# ---- retention ----

sub set_retention
{
	my ($value) = @_;
	$pg->sql("LOAD 'kusto_ingest'; ALTER SYSTEM SET kusto_ingest.retention = '$value'");
	$pg->sql("LOAD 'kusto_ingest'; ALTER SYSTEM SET kusto_ingest.worker_idle_timeout = '200ms'");
	$pg->sql('SELECT pg_reload_conf()');
	return;
}
sub worker_ends
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$pg->poll(q(SELECT state = 'stopped' FROM kusto.workers WHERE backend_type = 'kusto_ingest worker'), 't', $name);
	return;
}

is($pg->sql(q(LOAD 'kusto_ingest'; SHOW kusto_ingest.retention)), '7d', 'retention is seven days');
is($pg->sql("SELECT kusto_cancel('$unfinished')"), 't', 'nothing is left to do');
add_finished(2300, '2 hours', 'bob');
add_finished(5, '2 hours');
$pg->sql(<<~'SQL');
	INSERT INTO kusto.operation (id, owner, server, database, table_name, mode, source, state, created_at, finished_at, system_identifier, database_oid)
	SELECT gen_random_uuid(), 'bob'::regrole, 'adx', 'db', 'Changes', 'queued', 'capture', state, now() - interval '2 hours', now() - interval '2 hours',
		system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database())
	FROM pg_control_system(), unnest(ARRAY['succeeded', 'failed', 'unknown', 'partially_succeeded']) AS state
	SQL
my $changes = q(SELECT string_agg(state, ',' ORDER BY state) FROM kusto.operation WHERE table_name = 'Changes');
set_retention(-1);
$pg->forget_worker;
$id = staged_operation('SELECT 1 AS i', fresh_table('Retention'));
is($pg->sql("SELECT kusto_cancel('$id')"), 't', 'what is cancelled does not keep the worker');
$pg->succeeds($pg->ingest('SELECT 1 AS i', fresh_table('Retention')));
worker_ends('a worker without work ends');
is($pg->sql($old), 2315, 'retention -1: it deletes nothing');
set_retention('1h');
$id = $pg->ingest('SELECT 1 AS i', fresh_table('Retention'));
$pg->succeeds($id);
worker_ends('another one, too');
is($pg->sql($old), 10, 'before it ends it deletes the records of all owners that are older');
is($pg->sql($changes), 'failed,partially_succeeded,unknown', 'but not of row changes that have not landed');
is($pg->sql(q(SELECT kusto_purge('1 hour')), user => 'bob'), 3, 'these go when somebody says so');
is($pg->sql($changes), '', 'and are gone');
is($pg->operation($id)->{state}, 'succeeded', 'and no others');
$pg->sql('ALTER SYSTEM RESET ALL');
$pg->sql('SELECT pg_reload_conf()');

# ---- kusto.workers ----

my $worker = q(SELECT row_to_json(w) FROM kusto.workers w WHERE backend_type = 'kusto_ingest worker');
sub worker { return JSON::PP->new->decode($pg->sql($worker, @_)) }

my $row = worker();
is($row->{state}, 'stopped', 'kusto.workers has a row also when no worker runs');
is($row->{pid}, undef, 'without a process');
$id = staged_operation('SELECT 1 AS i', fresh_table('Workers'));
$row = worker();
is($row->{state}, 'running', 'the worker runs');
is($row->{pid}, $pg->sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker')), 'as this process');
ok(defined $row->{started_at}, 'since when') or diag explain $row;
is_deeply([ @$row{qw(pending running staged posting posted)} ], [ 0, 0, 1, 0, 0 ], 'what waits is counted');
like($row->{oldest_unposted_age}, qr/^00:0\d:\d\d/, 'and for how long');
$pg->poll("SELECT last_error LIKE '%$id%mapping%' FROM kusto.workers WHERE pid = $row->{pid}", 't', 'what went wrong last');
my $bobs = worker(user => 'bob');
is($bobs->{pid}, $row->{pid}, 'any reader sees the worker');
is($bobs->{last_error}, undef, 'but not what it has to do with others');
is_deeply([ @$bobs{qw(pending running staged posting posted oldest_unposted_age)} ], [ 0, 0, 0, 0, 0, undef ], 'nor that they have work');
$pg->sql('GRANT pg_monitor TO bob');
is_deeply(worker(user => 'bob')->{staged}, 1, 'who monitors sees it');
like(worker(user => 'bob')->{last_error}, qr/mapping/, 'and the error');
$pg->sql("SELECT kusto_cancel('$id')");

# A worker that cannot write of itself works all the same.
$pg->forget_worker;
$pg->sql('ALTER TABLE kusto.worker ADD CONSTRAINT broken CHECK (pid = 0) NOT VALID');
$table = fresh_table('Mute');
$pg->lands('SELECT 1 AS i', $table, [ [1] ], 'a worker that cannot tell of itself');
$pg->sql('ALTER TABLE kusto.worker DROP CONSTRAINT broken');

$kusto->assert_no_violations;
done_testing();
