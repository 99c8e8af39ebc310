# kusto_ingest(mode => 'streaming'), and what mode 'managed' has in common with it: a small result is
# in Kusto before the call returns, whatever becomes of the transaction; a larger one is refused, or
# queued. What makes managed mode queue is in 402_managed.pl.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(elapsed literal process_status wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $limit = 4 * 1024 * 1024;
my $streaming = { service => 'engine', path => '^/v1/rest/ingest/' };

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => "client_min_messages = notice\nkusto_ingest.worker_idle_timeout = 1h\n");

sub stream { return $pg->ingest_call(@_, mode => q('streaming')) }
sub managed { return $pg->ingest_call(@_, mode => q('managed')) }

sub fresh_table
{
	my ($table, $columns) = @_;
	$kusto->create_table($db, $table, $columns // 'i:int');
	return $table;
}

sub rows_of { my ($table) = @_; return [ sort map { join '|', map { $_ // 'null' } @$_ } @{ $kusto->rows($db, $table) } ] }
sub requests { my ($match) = @_; return scalar grep { $_->{service} eq 'engine' && $_->{path} =~ $match } $kusto->log }
sub nstreamed { return requests(qr{^/v1/rest/ingest/}) }
sub touched_storage { return scalar grep { $_->{service} =~ /^(?:blob|queue|table|ingest)$/ } $kusto->log }

# What psql says besides the result.
sub notices
{
	my ($session, $sql) = @_;
	$session->send($sql);
	my $outcome = $session->receive;
	return ($outcome->{out}, $outcome->{err} =~ s/^psql:\S+ |^LOCATION:.*(?:\n|\z)//mgr =~ s/\s+\z//r);
}

sub nothing_recorded
{
	my ($table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($pg->sql("SELECT count(*) FROM kusto.operations WHERE table_name = '$table'"), 0, "$name: no operation");
	return;
}

# ---- it lands ----

my $session = $pg->session;
fresh_table('Typed', 'i:int, l:long, t:string, r:real, d:datetime, g:guid, b:bool, j:dynamic');
my $typed = <<~'SQL';
	SELECT 1 AS i, 9007199254740993::int8 AS l, E'quo"te,\nline ünï' AS t, 0.1::float8 AS r,
		timestamptz '2024-05-25 08:20:03.123456+02' AS d, '0b2f4a3e-0000-4000-8000-00000000000a'::uuid AS g,
		true AS b, '{"a": [1, 2.5, null]}'::jsonb AS j
	UNION ALL SELECT NULL, NULL, '', NULL, NULL, NULL, NULL, NULL
	SQL
$kusto->_call('POST', '/log/reset');
my ($id, $said) = notices($session, 'SELECT ' . stream($typed, 'Typed'));
like($said, qr/\ANOTICE:  00000: exported 2 rows, \d+ bytes \(\d+ bytes compressed\)\nDETAIL:  The data are in Kusto now\.\z/,
	'the notice of a call of its own');
KustoCluster::same_rows($kusto->rows($db, 'Typed'),
	[ [ 1, 9007199254740993, qq(quo"te,\nline \x{fc}n\x{ef}), 0.1, '2024-05-25T06:20:03.1234560Z',
			'0b2f4a3e-0000-4000-8000-00000000000a', JSON::PP::true, { a => [ 1, 2.5, undef ] } ],
		[ undef, undef, '', undef, undef, undef, undef, undef ] ], 'typed rows are in Kusto when the call returns');
is(nstreamed(), 1, 'by one request');
is(touched_storage(), 0, 'and none to the ingestion service or its storage');
my $operation = $pg->operation($id);
my ($raw) = $pg->sql("SELECT raw_bytes FROM kusto.operations WHERE id = '$id'");
is_deeply([ @$operation{qw(state mode source rows blobs attempts error_code)} ],
	[ 'succeeded', 'streaming', 'query', 2, 0, 0, undef ], 'the operation is recorded as succeeded, without blobs');
cmp_ok($raw, '>', 100, 'with its raw size');
cmp_ok($operation->{compressed_bytes}, '>', 50, 'and its compressed size');
ok(defined $operation->{posted_at} && defined $operation->{finished_at}, 'and its times');
is($operation->{options}{exactly_once}, 'off', 'and that it is at least once');
is($pg->sql("SELECT kusto_wait('$id')"), 'succeeded', 'kusto_wait has nothing to wait for');
is($pg->sql(q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'kusto%')), 0, 'no worker was needed');
is($pg->sql("SET client_min_messages = error; SELECT kusto_cancel('$id')"), 'f', 'kusto_cancel is too late');
is($pg->sql("SET client_min_messages = error; SELECT kusto_retry('$id')"), 'f', 'kusto_retry has nothing to do');

fresh_table('Mapped', 'a:int, b:int');
$kusto->command($db, q(.create table Mapped ingestion csv mapping "swap" '[{"Column":"b","Properties":{"Ordinal":"0"}},{"Column":"a","Properties":{"Ordinal":"1"}}]'));
$session->sql('SELECT ' . stream('SELECT 1 AS x, 2 AS y', 'Mapped', mapping => q('swap')));
is_deeply(rows_of('Mapped'), ['2|1'], 'mapping names the mapping');
like($session->fails('SELECT ' . stream('SELECT 1 AS x, 2 AS y', 'Mapped', mapping => q('no such')))->{text}, qr/no such|MappingPersistent/,
	'one that does not exist is an error');

# ---- no rows ----

$kusto->_call('POST', '/log/reset');
($id, $said) = notices($session, 'SELECT ' . stream('SELECT 1 AS i WHERE false', 'Nowhere'));
is($said, 'NOTICE:  00000: the query returned no rows to export', 'no rows: the notice');
is($pg->operation($id)->{state}, 'succeeded', 'no rows: a success');
is(scalar(my @none = $kusto->log), 0, 'no rows: nothing is asked');

# ---- the limit ----

# Eight rows that fill a request exactly: each is its text, two quotes, and a line feed.
my $eighth = $limit / 8 - 3;
my $full = "SELECT repeat('x', $eighth) AS t FROM generate_series(1, 8)";
my $too_much = "SELECT repeat('x', CASE WHEN i = 8 THEN $eighth + 1 ELSE $eighth END) AS t FROM generate_series(1, 8) i";
fresh_table('Full', 't:string');
$id = $session->sql('SELECT ' . stream($full, 'Full'));
is($pg->operation($id)->{raw_bytes}, $limit, 'a result of exactly 4 MB is streamed');
is($kusto->count($db, 'Full'), 8, 'all of it');
$kusto->_call('POST', '/log/reset');
my $error = $session->fails('SELECT ' . stream($too_much, 'Over'));
is($error->{sqlstate}, '54000', 'one byte more is too large');
is($error->{message}, 'the result is too large for mode "streaming"', 'says the message');
like($error->{detail}, qr/4194304 bytes.*Nothing was sent\./, 'and the detail');
like($error->{hint}, qr/"managed".*"queued"/, 'and the hint has the other modes');
is(scalar(@none = $kusto->log), 0, 'nothing was sent');
nothing_recorded('Over', 'too large');

$pg->sql('CREATE SEQUENCE seen');
(my $seconds, $error) = elapsed(sub { $session->fails('SELECT ' . stream(q(SELECT nextval('seen') AS n, repeat('x', 1000) AS t FROM generate_series(1, 100000000)), 'Over')) });
is($error->{sqlstate}, '54000', 'a result of 100 GB is too large');
cmp_ok($pg->sql('SELECT last_value FROM seen'), '<', ($limit + 512 * 1024) / 1000, 'and its query is stopped at the limit');
$session->quit;

# ---- memory ----

my $idle = $pg->session;
$session = $pg->session;
my $base = process_status($idle->pid);
$session->sql('SELECT ' . stream($full, 'Full')) for 1 .. 20;
$session->fails('SELECT ' . stream($too_much, 'Over')) for 1 .. 20;
my $peak = process_status($session->pid);
cmp_ok($peak->{VmHWM} - $base->{VmHWM}, '<', 40 * 1024, 'full requests, and refused ones, stay below 40 MB');
note sprintf 'peak %d kB, idle %d kB', $peak->{VmHWM}, $base->{VmHWM};
$idle->quit;

# ---- a rollback undoes nothing ----

fresh_table('Rolled');
$session->sql('BEGIN');
($id, $said) = notices($session, 'SELECT ' . stream('SELECT 1 AS i', 'Rolled'));
like($said, qr/DETAIL:  The data are in Kusto now, and stay there when the transaction is rolled back\.\z/,
	'in a transaction block the notice says what a rollback does not do');
is($session->sql("SELECT state FROM kusto.operations WHERE id = '$id'"), 'succeeded', 'the transaction sees its operation');
$session->sql('ROLLBACK');
is_deeply(rows_of('Rolled'), ['1'], 'the rows stay');
nothing_recorded('Rolled', 'rolled back');
$session->sql('BEGIN; SAVEPOINT a; SELECT ' . stream('SELECT 2 AS i', 'Rolled') . '; ROLLBACK TO a; COMMIT');
is_deeply(rows_of('Rolled'), [ '1', '2' ], 'also after a rollback to a savepoint');
nothing_recorded('Rolled', 'rolled back to a savepoint');
is($session->fails('SELECT ' . stream('SELECT 1 / (3 - i) AS i FROM generate_series(1, 5) i', 'Rolled'))->{sqlstate}, '22012',
	'a query that fails');
is_deeply(rows_of('Rolled'), [ '1', '2' ], 'has sent nothing');
$id = $session->sql('SELECT ' . stream('SELECT 3 AS i', 'Rolled'));
is($pg->operation($id)->{state}, 'succeeded', 'a commit keeps the record');

# ---- create_table ----

my ($out, $created) = notices($session, 'SELECT ' . stream('SELECT 1 AS i, $$x$$ AS t', 'Created', create_table => 'true'));
is_deeply(rows_of('Created'), ['1|x'], 'create_table: the table is made first');
$session->sql('BEGIN; SELECT ' . stream('SELECT 1 AS i WHERE false', 'CreatedEmpty', create_table => 'true') . '; ROLLBACK');
is_deeply(rows_of('CreatedEmpty'), [], 'also without rows, whatever becomes of the transaction');
($out, $said) = notices($session, 'SELECT ' . stream('SELECT 1 AS i WHERE false', 'CreatedEmpty', create_table => 'true'));
like($said, qr/DETAIL:  The Kusto table has been created\.\z/, 'as the notice says');
$kusto->config(roles => ['ingestor']);
$error = $session->fails('SELECT ' . stream('SELECT 1 AS i', 'Forbidden', create_table => 'true'));
is($error->{sqlstate}, '42501', 'create_table needs a right');
like($error->{hint}, qr/Database User/, 'which the hint names');
$kusto->config(roles => [qw(admin user viewer ingestor)]);

# ---- what Kusto says ----

$error = $session->fails('SELECT ' . stream('SELECT 1 AS i', 'Missing'));
like($error->{sqlstate}, qr/^(?:42P01|HV000)$/, 'no such table') or diag $error->{text};
nothing_recorded('Missing', 'no such table');
fresh_table('Off');
$kusto->command($db, q(.alter table Off policy streamingingestion '{"IsEnabled": false}'));
$error = $session->fails('SELECT ' . stream('SELECT 1 AS i', 'Off'));
like($error->{text}, qr/streaming/i, 'streaming is disabled: the error says so');
like($error->{hint}, qr/"managed"|policy/, 'and the hint what to do');
nothing_recorded('Off', 'disabled');

fresh_table('Busy');
$kusto->fault($streaming, { status => 429, headers => { 'Retry-After' => '0' },
	body => '{"error":{"code":"TooManyRequests","message":"busy","@type":"Kusto.DataNode.Exceptions.KustoRequestThrottledException","@permanent":false}}' }, times => 2);
$session->sql('SELECT ' . stream('SELECT 1 AS i', 'Busy'));
is_deeply(rows_of('Busy'), ['1'], 'throttled twice, it lands once');
$kusto->clear_faults;
$kusto->fault($streaming, { status => 429 }, times => -1);
$error = $session->fails(q(SET kusto_ingest.retry_timeout = 0; SELECT ) . stream('SELECT 2 AS i', 'Busy'));
is($error->{sqlstate}, '53000', 'throttled for as long as we try') or diag $error->{text};
is_deeply(rows_of('Busy'), ['1'], 'and not in Kusto');
$kusto->clear_faults;

# At least once: what is not answered is sent again.
$session->sql('RESET kusto_ingest.retry_timeout');
fresh_table('Lost');
$kusto->fault($streaming, { lose_reply => JSON::PP::true }, times => 1);
$session->sql('SELECT ' . stream('SELECT 1 AS i', 'Lost'));
is_deeply(rows_of('Lost'), [ '1', '1' ], 'a lost answer: it is sent again, and may be there twice');
fresh_table('Doubtful');
$kusto->fault($streaming, { lose_reply => JSON::PP::true }, times => -1);
$error = $session->fails(q(SET kusto_ingest.retry_timeout = 0; SELECT ) . stream('SELECT 1 AS i', 'Doubtful'));
is($error->{sqlstate}, 'KU003', 'no answer at all: the outcome is unknown') or diag $error->{text};
like($error->{detail}, qr/Kusto may have ingested the data all the same\./, 'as the detail says');
like($error->{hint}, qr/before you export them again/, 'and the hint');
# A request on a kept connection that breaks is made again at once, whatever retry_timeout says.
like(join(',', @{ rows_of('Doubtful') }), qr/^1(?:,1)*$/, 'which is right');
nothing_recorded('Doubtful', 'unknown');
$kusto->clear_faults;
$session->quit;

# Refused by the network, before anything was sent: there is no doubt.
$session = $pg->session;
$session->sql('SELECT ' . stream('SELECT 2 AS i', 'Doubtful'));
$kusto->fault($streaming, { reset => JSON::PP::true }, times => -1);
$error = $session->fails(q(SET kusto_ingest.retry_timeout = 0; SELECT ) . stream('SELECT 3 AS i', 'Doubtful'));
like($error->{sqlstate}, qr/^(?:08|KU003)/, 'a reset connection') or diag $error->{text};
$kusto->clear_faults;
$session->quit;

# ---- cancel ----

sub is_stuck { return scalar grep { ($_->{status} // '') eq 'black hole' } $kusto->log }

fresh_table('Stuck');
for my $mode (\&stream, \&managed)
{
	my $name = $mode == \&stream ? 'streaming' : 'managed';
	my $call = 'SELECT ' . $mode->('SELECT 1 AS i', 'Stuck');
	$kusto->_call('POST', '/log/reset');
	$kusto->fault($streaming, { blackhole => JSON::PP::true }, times => -1);
	$session = $pg->session;
	$session->sql(q(SET statement_timeout = '1s'));
	($seconds, $error) = elapsed(sub { $session->fails($call) });
	is($error->{sqlstate}, '57014', "$name: statement_timeout cancels");
	cmp_ok($seconds, '<', 1.6, "$name: promptly");
	like($error->{context}, qr/ingestion into Kusto table "Stuck", whose outcome is not known/, "$name: and says what is not known");
	ok(is_stuck(), "$name: the request had been made");

	$kusto->_call('POST', '/log/reset');
	$session->sql('RESET statement_timeout');
	$session->send($call);
	wait_until(\&is_stuck, "$name: until it is stuck");
	is($pg->sql("SELECT phase || ', ' || rows || ', ' || raw_bytes || ', ' || wait_event FROM kusto.progress"),
		'waiting for Kusto, 1, 2, ' . ($pg->sql('SHOW server_version_num') >= 170000 ? 'KustoRequest' : 'Extension'),
		"$name: kusto.progress shows it") if $pg->sql('SHOW server_version_num') >= 140000;
	($seconds, my $outcome) = elapsed(sub {
		$pg->sql('SELECT pg_cancel_backend(' . $session->pid . ')');
		return $session->receive;
	});
	is(KustoCluster::parse_error($outcome->{err})->{sqlstate}, '57014', "$name: pg_cancel_backend cancels");
	cmp_ok($seconds, '<', 0.9, "$name: promptly");
	$kusto->clear_faults;
	like($session->sql($call), qr/^[0-9a-f-]{36}$/, "$name: the session works afterwards");
	$session->quit;
}
is_deeply(rows_of('Stuck'), [ '1', '1' ], 'and what was cancelled is not there');

# ---- a job, and the procedure ----

fresh_table('Job');
$id = $pg->async('SELECT i FROM generate_series(1, 3) i', 'Job', mode => q('streaming'));
$operation = $pg->succeeds($id, 'a job streams');
is_deeply([ @$operation{qw(mode rows blobs runs)} ], [ 'streaming', 3, 0, 1 ], 'and records it');
is_deeply(rows_of('Job'), [ 1, 2, 3 ], 'the rows are there once');
$id = $pg->async('SELECT 1 AS i', 'NoSuchTable', mode => q('streaming'));
$operation = $pg->ends_as($id, 'failed', 'a job whose rows Kusto does not take fails');
isnt($operation->{error_message}, undef, 'and has the reason');
my $retried = $pg->fails("SELECT kusto_retry('$id')");
is($retried->{sqlstate}, '55000', 'kusto_retry has no blobs of it to post');
fresh_table('JobInDoubt');
$pg->set_config('kusto_ingest.retry_timeout' => 0);
$kusto->fault($streaming, { lose_reply => JSON::PP::true }, times => -1);
$id = $pg->async('SELECT 1 AS i', 'JobInDoubt', mode => q('streaming'));
is_deeply([ @{ $pg->ends_as($id, 'unknown', 'a job whose answers are lost: the outcome is unknown') }{qw(error_code runs)} ], [ 'KU003', 1 ],
	'and it is not run again');
like(join(',', @{ rows_of('JobInDoubt') }), qr/^1(?:,1)*$/, 'its rows are there');
$kusto->clear_faults;
$pg->set_config('kusto_ingest.retry_timeout' => '2min');
$id = $pg->async($too_much, 'Job', mode => q('streaming'));
is($pg->ends_as($id, 'failed', 'a job whose result is too large fails')->{error_code}, '54000', 'and says so');
$id = $pg->async($full, 'Full', mode => q('managed'));
is_deeply([ @{ $pg->succeeds($id, 'a managed job') }{qw(mode blobs)} ], [ 'managed', 0 ], 'streams what is small');

($seconds) = elapsed(sub { $pg->sql("CALL kusto_ingest_and_wait('SELECT 4 AS i', '$db', 'Job', mode => 'streaming')") });
is_deeply(rows_of('Job'), [ 1, 2, 3, 4 ], 'kusto_ingest_and_wait streams');
is($pg->fails("CALL kusto_ingest_and_wait('SELECT 4 AS i', '$db', 'NoSuchTable', mode => 'streaming')")->{sqlstate},
	$pg->fails('SELECT ' . stream('SELECT 4 AS i', 'NoSuchTable'))->{sqlstate}, 'and raises what kusto_ingest raises');

# ---- managed ----

fresh_table('Managed', 't:string');
$session = $pg->session;
$kusto->_call('POST', '/log/reset');
($id, $said) = notices($session, 'SELECT ' . managed($full, 'Managed'));
is_deeply([ @{ $pg->operation($id) }{qw(state mode blobs raw_bytes)} ], [ 'succeeded', 'managed', 0, $limit ],
	'managed: 4 MB are streamed');
is(touched_storage(), 0, 'managed: without the ingestion service');
like($said, qr/The data are in Kusto now\./, 'managed: the notice says so');

$pg->sql('ALTER SEQUENCE seen RESTART');
my $large = "SELECT repeat('x', CASE WHEN i = 8 THEN $eighth - 11 ELSE $eighth END) || lpad(nextval('seen')::text, CASE WHEN i = 8 THEN 12 ELSE 0 END, '0') AS t FROM generate_series(1, 8) i";
$kusto->_call('POST', '/log/reset');
$session->sql('BEGIN');
($id, $said) = notices($session, 'SELECT ' . managed($large, 'Managed'));
like($said, qr/exported 8 rows.*\nDETAIL:  1 blob is sent to Kusto when the transaction commits\.\z/s, 'managed: one byte more is queued');
is($pg->sql('SELECT last_value FROM seen'), 8, 'managed: its query has run once');
is($session->sql("SELECT state || mode || rows || '/' || raw_bytes FROM kusto.operations WHERE id = '$id'"), 'stagedmanaged8/' . ($limit + 1),
	'managed: it is staged');
is(nstreamed(), 0, 'managed: no streaming was tried');
$session->sql('ROLLBACK');
$kusto->settle;
is($kusto->count($db, 'Managed'), 8, 'managed: what is queued, a rollback undoes');

# Of several chunks and blobs, with the collected ones first.
fresh_table('ManagedMany', 'i:int, t:string');
$id = $session->sql(q(SET kusto_ingest.max_blob_size = '1MB'; SELECT )
	  . managed(q(SELECT i, repeat('y', 1000) AS t FROM generate_series(1, 10000) i), 'ManagedMany'));
$operation = $pg->succeeds($id, 'managed: 10 MB in blobs of 1 MB');
cmp_ok($operation->{blobs}, '>=', 10, 'managed: none is larger than it may be');
is($pg->sql("SELECT max(raw_bytes) <= 1024 * 1024 FROM kusto.blobs WHERE operation_id = '$id'"), 't', 'managed: by the record, too');
is_deeply([ sort { $a <=> $b } map { $_->[0] } @{ $kusto->rows($db, 'ManagedMany') } ], [ 1 .. 10000 ], 'managed: each row is there once');
is($pg->sql("SELECT sum(rows) FROM kusto.blobs WHERE operation_id = '$id'"), 10000, 'managed: and counted once');
$session->sql('RESET kusto_ingest.max_blob_size');

# A single row that is too large is queued, too.
$id = $session->sql('SELECT ' . managed('SELECT ' . join(', ', map { "repeat('$_', 900000) AS $_" } 'a' .. 'e'), 'ManagedWide', create_table => 'true'));
$operation = $pg->succeeds($id, 'managed: one row that is too large');
is_deeply([ map { length } map { @$_ } @{ $kusto->rows($db, 'ManagedWide') } ], [ (900000) x 5 ], 'managed: all of it');

# Kusto would rather have it queued.
my $off = managed('SELECT 1 AS i', 'Off');
$session->sql('BEGIN');
($id, $said) = notices($session, "SELECT $off");
like($said, qr/DETAIL:  1 blob is sent to Kusto when the transaction commits\.\nIt was not streamed: streaming .*\.\z/, 'managed: a table that refuses streaming: the notice says so');
is_deeply(rows_of('Off'), [], 'managed: nothing is there before the commit');
$session->sql('COMMIT');
$operation = $pg->succeeds($id, 'managed: it is queued');
is_deeply([ @$operation{qw(mode blobs)} ], [ 'managed', 1 ], 'managed: as the record says');
is_deeply(rows_of('Off'), ['1'], 'managed: and arrives');
$kusto->_call('POST', '/log/reset');
$pg->succeeds($session->sql("SELECT $off"), 'managed: the next one');
is(nstreamed(), 0, 'managed: does not try in vain');
$id = $pg->async('SELECT 2 AS i', 'Off', mode => q('managed'));
is($pg->succeeds($id, 'managed: a job is queued, too')->{blobs}, 1, 'managed: with a blob');

# Kusto has them, and does not say so.
fresh_table('Twice');
$kusto->fault($streaming, { lose_reply => JSON::PP::true }, times => -1);
($id, $said) = notices($session, 'SELECT ' . managed('SELECT 1 AS i', 'Twice'));
like($said, qr/It was not streamed: .*\.\nKusto may have ingested the data all the same, and has them twice then\.\z/,
	'managed: no answer: the notice warns of duplicates') or diag $said;
is($pg->succeeds($id, 'managed: it is queued')->{blobs}, 1, 'managed: as a blob');
like(join(',', @{ rows_of('Twice') }), qr/^1(?:,1)+$/, 'managed: at least once');
$kusto->clear_faults;

# The table command cannot be run now: it goes with the rows.
$session->quit;
$session = $pg->session;
$session->sql(q(SET kusto_ingest.retry_timeout = 0));
$kusto->fault({ service => 'engine', body => 'create-merge' }, { status => 503 }, times => -1);
($id, $said) = notices($session, 'SELECT ' . managed('SELECT 1 AS i', 'Later', create_table => 'true'));
$kusto->clear_faults;
like($said, qr/It was not streamed: /, 'managed: a table that cannot be created now') or diag $said;
$pg->succeeds($id, 'managed: is created by the worker');
is_deeply(rows_of('Later'), ['1'], 'managed: and has the rows');
$session->quit;

# ---- secrets ----

my $secret = $kusto->client_secret;
my $jwt = 'eyJhbGciOiJSUzI1NiJ9.eyJwbGFudGVkIjoidG9rZW4ifQ.c2lnbmF0dXJlT2ZBUGxhbnRlZFRva2Vu';
$pg->sql('ALTER SYSTEM SET log_min_messages = debug2; ALTER SYSTEM SET log_min_error_statement = error; SELECT pg_reload_conf()');
$kusto->fault($streaming, { status => 400, headers => { 'Content-Type' => 'application/json' },
	body => encode_json({ error => { code => 'BadRequest', message => "Authorization: Bearer $jwt; secret $secret",
		'@type' => 'Kusto.DataNode.Exceptions.StreamingIngestionRequestException', '@message' => "token $jwt", '@permanent' => JSON::PP::true } }) }, times => -1);
$session = $pg->session;
for my $call (stream('SELECT 1 AS i', 'Job'), managed('SELECT 1 AS i', 'Job'))
{
	my ($output, $failure) = $session->try("SELECT $call");
	unlike($failure->{text} // '', qr/\Q$jwt\E|\Q$secret\E|c2lnbmF0/, 'no secret in an error');
}
unlike(slurp_file($pg->node->logfile), qr/\Q$jwt\E|\Q$secret\E|c2lnbmF0|Bearer [A-Za-z0-9]/, 'nor in the log');
is($pg->sql(qq(SELECT count(*) FROM kusto.operation o WHERE o::text LIKE '%$secret%' OR o::text LIKE '%$jwt%')), 0, 'nor in a table');
$kusto->clear_faults;
$session->quit;

$kusto->settle;
$kusto->assert_no_violations;
done_testing();
