# kusto_ingest(mode => 'direct'): the blobs of a result are ingested by one command, all or none of
# them, before the call returns, whatever becomes of the transaction.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(elapsed wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $ingest_into = { service => 'engine', path => '/mgmt', body => '\.ingest' };

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => "client_min_messages = notice\n");

sub direct { return $pg->ingest_call(@_, mode => q('direct')) }

sub fresh_table
{
	my ($table, $columns) = @_;
	$kusto->create_table($db, $table, $columns // 'i:int');
	return $table;
}

sub rows_of { my ($table) = @_; return [ sort map { join '|', map { $_ // 'null' } @$_ } @{ $kusto->rows($db, $table) } ] }
sub forget_log { $kusto->_call('POST', '/log/reset'); return }
sub commands { return grep { $_->{service} eq 'engine' && ($_->{csl} // '') =~ /\.ingest/ } $kusto->log }

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
fresh_table('Typed', 'i:int, t:string, d:datetime, n:decimal');
my ($id, $said) = notices($session, 'SELECT ' . direct(q(SELECT 1 AS i, E'a,"b"\nü' AS t, timestamptz '2024-05-25 08:20:03+02' AS d, 1.50 AS n), 'Typed'));
like($said, qr/\ANOTICE:  00000: exported 1 row, \d+ bytes \(\d+ bytes compressed\)\nDETAIL:  The data are in Kusto now\.\z/, 'the notice');
KustoCluster::same_rows($kusto->rows($db, 'Typed'), [ [ 1, qq(a,"b"\n\x{fc}), '2024-05-25T06:20:03.0000000Z', '1.5' ] ],
	'typed rows are in Kusto when the call returns');
my $operation = $pg->operation($id);
is_deeply([ @$operation{qw(state mode rows blobs attempts)} ], [ 'succeeded', 'direct', 1, 1, 0 ], 'the operation is recorded as succeeded');
ok(defined $operation->{posted_at} && defined $operation->{finished_at} && $operation->{compressed_bytes} > 0, 'with times and sizes');
my ($blob) = @{ $pg->blobs($id) };
is_deeply([ @$blob{qw(state rows exactly_once post_attempts)} ], [ 'succeeded', 1, JSON::PP::false, 0 ], 'and so is its blob');
like($blob->{url}, qr/^http[^?]+$/, 'without its signature');
is(scalar @{ $kusto->messages }, 0, 'no message was queued');
is($pg->sql("SELECT kusto_wait('$id')"), 'succeeded', 'kusto_wait has nothing to wait for');
is($pg->sql("SET client_min_messages = error; SELECT kusto_retry('$id')"), 'f', 'kusto_retry has nothing to do');

fresh_table('Many', 'i:int, t:string');
forget_log();
$id = $session->sql(q(SET kusto_ingest.max_blob_size = '1MB'; SELECT ) . direct(q(SELECT i, repeat('x', 1000) AS t FROM generate_series(1, 4000) i), 'Many'));
cmp_ok($pg->operation($id)->{blobs}, '>=', 4, 'a result of several blobs');
is(scalar(my @all = commands()), 1, 'is one command');
is_deeply([ sort { $a <=> $b } map { $_->[0] } @{ $kusto->rows($db, 'Many') } ], [ 1 .. 4000 ], 'and all there, once');
$session->sql('RESET kusto_ingest.max_blob_size');

# ---- properties ----

fresh_table('Tagged', 'a:int, b:int');
$kusto->command($db, q(.create table Tagged ingestion csv mapping "swap" '[{"Column":"b","Properties":{"Ordinal":"0"}},{"Column":"a","Properties":{"Ordinal":"1"}}]'));
$session->sql('SELECT ' . direct('SELECT 1 AS x, 2 AS y', 'Tagged', mapping => q('swap'), tags => q(ARRAY['drop-by:it''s', 'ingest-by:key']),
	creation_time => q('2020-02-02 02:02:02+00'), ingest_if_not_exists => q(ARRAY['key'])));
is_deeply(rows_of('Tagged'), ['2|1'], 'a mapping');
my ($extent) = @{ $kusto->extents($db, 'Tagged') };
is_deeply([ sort @{ $extent->{tags} } ], [ q(drop-by:it's), 'ingest-by:key' ], 'tags');
like($extent->{creationTime}, qr/^2020-02-02T02:02:02/, 'a creation time');
($id, $said) = notices($session, 'SELECT ' . direct('SELECT 3 AS x, 4 AS y', 'Tagged', ingest_if_not_exists => q(ARRAY['key'])));
is($said, "NOTICE:  00000: Kusto skipped 1 row\nDETAIL:  The table has data with a key that ingest_if_not_exists names.", 'ingest_if_not_exists: the notice');
is($pg->operation($id)->{state}, 'skipped', 'and the state');
is($pg->blobs($id)->[0]{state}, 'skipped', 'of the blob, too');
is_deeply(rows_of('Tagged'), ['2|1'], 'nothing was ingested');
# Of queued exports only one blob may have such a key; here the blobs are one transaction.
fresh_table('Keyed', 'i:int, t:string');
$session->sql(q(SET kusto_ingest.max_blob_size = '1MB'; SELECT ) . direct(q(SELECT i, repeat('x', 1000) AS t FROM generate_series(1, 3000) i), 'Keyed',
	tags => q(ARRAY['ingest-by:k']), ingest_if_not_exists => q(ARRAY['k'])));
is($kusto->count($db, 'Keyed'), 3000, 'several blobs with a key are all ingested');
$session->sql('RESET kusto_ingest.max_blob_size');

# ---- no rows, create_table, rollback ----

forget_log();
($id, $said) = notices($session, 'SELECT ' . direct('SELECT 1 AS i WHERE false', 'Nowhere'));
is($said, 'NOTICE:  00000: the query returned no rows to export', 'no rows: the notice');
is($pg->operation($id)->{state}, 'succeeded', 'no rows: a success');
is(scalar(@all = commands()), 0, 'no rows: no command');
$session->sql('SELECT ' . direct('SELECT 1 AS i, $$x$$ AS t', 'Created', create_table => 'true'));
is_deeply(rows_of('Created'), ['1|x'], 'create_table: the table is made first');

fresh_table('Rolled');
$session->sql('BEGIN');
($id, $said) = notices($session, 'SELECT ' . direct('SELECT 1 AS i', 'Rolled'));
like($said, qr/stay there when the transaction is rolled back\.\z/, 'in a transaction block the notice says what a rollback does not do');
$session->sql('ROLLBACK');
is_deeply(rows_of('Rolled'), ['1'], 'the rows stay');
nothing_recorded('Rolled', 'rolled back');

# ---- what Kusto says ----

my $error = $session->fails('SELECT ' . direct('SELECT 1 AS i', 'Missing'));
like($error->{sqlstate}, qr/^(?:42P01|HV000)$/, 'no such table') or diag $error->{text};
nothing_recorded('Missing', 'no such table');

fresh_table('Busy');
my $throttled = JSON::PP->new->encode({ error => { code => 'TooManyRequests',
	message => 'The control command was aborted due to throttling.', '@type' => 'Kusto.DataNode.Exceptions.ControlCommandThrottledException',
	'@message' => q(The control command was aborted due to throttling. Capacity: 1, Origin: 'CapacityPolicy/Ingestion'), '@permanent' => JSON::PP::false } });
$kusto->fault($ingest_into, { status => 429, headers => { 'Content-Type' => 'application/json', 'Retry-After' => '0' }, body => $throttled }, times => 2);
$session->sql('SELECT ' . direct('SELECT 1 AS i', 'Busy'));
is_deeply(rows_of('Busy'), ['1'], 'throttled twice, it lands once');
is($kusto->fired, 2, 'throttled twice indeed');
$kusto->clear_faults;
$kusto->fault($ingest_into, { status => 429, headers => { 'Content-Type' => 'application/json' }, body => $throttled }, times => -1);
$error = $session->fails('SET kusto_ingest.retry_timeout = 0; SELECT ' . direct('SELECT 2 AS i', 'Busy'));
is($error->{sqlstate}, '53000', 'throttled for as long as we try') or diag $error->{text};
is_deeply(rows_of('Busy'), ['1'], 'and not in Kusto');
$kusto->clear_faults;
$session->quit;

fresh_table('Doubtful');
$session = $pg->session;
$kusto->fault($ingest_into, { lose_reply => JSON::PP::true }, times => -1);
$error = $session->fails('SELECT ' . direct('SELECT 1 AS i', 'Doubtful'));
is($error->{sqlstate}, 'KU003', 'a lost answer: the outcome is unknown') or diag $error->{text};
like($error->{detail}, qr/Kusto may have ingested the data all the same\./, 'as the detail says');
like($error->{hint}, qr/before you export them again/, 'and the hint');
is_deeply(rows_of('Doubtful'), ['1'], 'which is right: it was not sent again');
nothing_recorded('Doubtful', 'unknown');
my $id_in_doubt = $pg->async('SELECT 2 AS i', 'Doubtful', mode => q('direct'));
my $in_doubt = $pg->ends_as($id_in_doubt, 'unknown', 'a lost answer: that of a job is unknown, too');
is_deeply([ @$in_doubt{qw(error_code runs)} ], [ 'KU003', 1 ], 'for the same reason, and it is not run again');
like($in_doubt->{hint}, qr/before you export them again/, 'with the same hint');
is_deeply(rows_of('Doubtful'), [ 1, 2 ], 'which is right there, too');
$kusto->clear_faults;

# ---- cancel ----

sub is_stuck { return scalar grep { ($_->{status} // '') eq 'black hole' } $kusto->log }

fresh_table('Stuck');
my $call = 'SELECT ' . direct('SELECT 1 AS i', 'Stuck');
forget_log();
$kusto->fault($ingest_into, { blackhole => JSON::PP::true }, times => -1);
$session->sql(q(SET statement_timeout = '1s'));
(my $seconds, $error) = elapsed(sub { $session->fails($call) });
is($error->{sqlstate}, '57014', 'statement_timeout cancels');
cmp_ok($seconds, '<', 1.6, 'promptly');
like($error->{context}, qr/ingestion into Kusto table "Stuck", whose outcome is not known/, 'and says what is not known');
ok(is_stuck(), 'the command had been sent');
forget_log();
$session->sql('RESET statement_timeout');
$session->send($call);
wait_until(\&is_stuck, 'until it is stuck');
if ($pg->sql('SHOW server_version_num') >= 140000)
{
	is($pg->sql("SELECT phase || ', ' || rows || ', ' || blobs FROM kusto.progress"), 'waiting for Kusto, 1, 1', 'kusto.progress shows it');
}
($seconds, my $outcome) = elapsed(sub {
	$pg->sql('SELECT pg_cancel_backend(' . $session->pid . ')');
	return $session->receive;
});
is(KustoCluster::parse_error($outcome->{err})->{sqlstate}, '57014', 'pg_cancel_backend cancels');
cmp_ok($seconds, '<', 0.9, 'promptly');
$kusto->clear_faults;
like($session->sql($call), qr/^[0-9a-f-]{36}$/, 'the session works afterwards');
is_deeply(rows_of('Stuck'), ['1'], 'and what was cancelled is not there');

# ---- a job, and the procedure ----

fresh_table('Gone');
$kusto->fault($ingest_into, { blackhole => JSON::PP::true }, times => -1);
for my $call ('pg_cancel_backend', 'pg_terminate_backend')
{
	forget_log();
	my $stuck = $pg->async('SELECT 1 AS i', 'Gone', mode => q('direct'));
	wait_until(\&is_stuck, 'until a job is stuck');
	$pg->sql("SELECT $call(pid) FROM pg_stat_activity WHERE backend_type = 'kusto_ingest job'");
	my $ended = $pg->ends_as($stuck, 'unknown', "$call() while Kusto has the command: the outcome is unknown");
	is_deeply([ @$ended{qw(error_code runs)} ], [ $call eq 'pg_cancel_backend' ? '57014' : '57P01', 1 ], 'as the row says');
}
$kusto->clear_faults;

fresh_table('Job');
$id = $pg->async('SELECT i FROM generate_series(1, 3) i', 'Job', mode => q('direct'));
$operation = $pg->succeeds($id, 'a job ingests directly');
is_deeply([ @$operation{qw(mode rows blobs runs)} ], [ 'direct', 3, 1, 1 ], 'and records it');
is($pg->blobs($id)->[0]{state}, 'succeeded', 'with its blob');
is_deeply(rows_of('Job'), [ 1, 2, 3 ], 'the rows are there once');
is($pg->ends_as($pg->async('SELECT 1 AS a, 2 AS b', 'Tagged', mode => q('direct'), ingest_if_not_exists => q(ARRAY['key'])), 'skipped',
	'a job that is skipped')->{blobs}, 1, 'is recorded so');
$operation = $pg->ends_as($pg->async('SELECT 1 AS i', 'NoSuchTable', mode => q('direct')), 'failed', 'a job that Kusto refuses fails');
isnt($operation->{error_message}, undef, 'and has the reason');
is($pg->fails("SELECT kusto_retry('$operation->{id}')")->{sqlstate}, '55000', 'kusto_retry has no blobs of it to post');
$pg->sql("CALL kusto_ingest_and_wait('SELECT 4 AS i', '$db', 'Job', mode => 'direct')");
is_deeply(rows_of('Job'), [ 1, 2, 3, 4 ], 'kusto_ingest_and_wait ingests directly');

# ---- secrets ----

# The service likes to quote commands in its errors, and this one holds signatures.
my $jwt = 'eyJhbGciOiJSUzI1NiJ9.eyJwbGFudGVkIjoidG9rZW4ifQ.c2lnbmF0dXJlT2ZBUGxhbnRlZFRva2Vu';
my $secrets = qr/\Q$jwt\E|c2lnbmF0|sig(?:=|%3D)(?!\*\*\*)[A-Za-z0-9%+\/]{6,}|Bearer [A-Za-z0-9]/;
$pg->sql('ALTER SYSTEM SET log_min_messages = debug2; SELECT pg_reload_conf()');
$kusto->fault($ingest_into, { status => 400, headers => { 'Content-Type' => 'application/json' },
	body => JSON::PP->new->encode({ error => { code => 'BadRequest', message => "token $jwt",
		'@type' => 'Kusto.DataNode.Exceptions.RequestException', '@permanent' => JSON::PP::true,
		'@message' => 'cannot read https://account.blob.core.windows.net/c/b.csv.gz?sv=2023&sig=PLANTEDsignature%2FofAnAccount%3D' } }) }, times => -1);
$error = $session->fails('SELECT ' . direct('SELECT 1 AS i', 'Job'));
like($error->{text}, qr/BadRequest/, 'an error that quotes the command');
unlike($error->{text}, $secrets, 'no secret in it');
unlike(slurp_file($pg->node->logfile), $secrets, 'nor in the log');
is($pg->sql(q(SELECT count(*) FROM kusto.blob b WHERE b::text ~ 'sig=')), 0, 'nor in a table');
$kusto->clear_faults;
$session->quit;

$kusto->settle;
$kusto->assert_no_violations;
done_testing();
