# What must not harm the background worker: crashes after an asynchronous commit, a full memory,
# others who want its database, rows of another database, rows that cannot be read, configuration
# that goes and comes back.
use strict;
use warnings;

use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;

my $worker_lock = q(SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = 1263883092 AND objid = 1 AND objsubid = 19285
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database()));

sub fresh_table
{
	my ($table) = @_;
	$kusto->create_table($db, $table, 'i:int');
	return $table;
}

# ---- a crash after an asynchronous commit ----

my $async = KustoCluster->start($kusto, name => 'async', conf => <<~'CONF');
	synchronous_commit = off
	wal_writer_delay = 10s
	autovacuum = off
	CONF
my $table = fresh_table('Async');
$async->sql('CREATE TABLE source (i int)');
$async->sql('CHECKPOINT');
my $id = $async->sql('BEGIN; INSERT INTO source VALUES (42); SELECT ' . $async->ingest_call('TABLE source', $table) . '; COMMIT');
wait_until(sub { $kusto->count($db, $table) > 0 }, 'the row is in Kusto');
$async->node->stop('immediate');
$async->node->start;
is($async->sql('TABLE source'), '42', 'what Kusto has, a crash does not take away, whatever synchronous_commit');
my $left = $async->sql("SELECT count(*) FROM kusto.operations WHERE id = '$id'");
is($left, 1, 'nor the operation');
$async->succeeds($id, 'whose end becomes known') if $left;
$async->node->stop;

# ---- more operations than memory holds ----

my $pg = KustoCluster->start($kusto, conf => "log_min_messages = debug1\nkusto_ingest.repost_after = 1s\n");
$table = fresh_table('Many');
$kusto->config(hold_ingestion => JSON::PP::true);
my $count = 1060;
is($pg->sql("SELECT count(" . $pg->ingest_call('SELECT 1 AS i', $table) . ") FROM generate_series(1, $count)"), $count,
	"$count exports are staged");
$pg->poll("SELECT count(*) = $count FROM kusto.operations WHERE table_name = '$table' AND state = 'posted'", 't',
	'those whose end is not known do not keep others from being posted');
$kusto->config(hold_ingestion => JSON::PP::false);
$pg->poll("SELECT count(*) = $count FROM kusto.operations WHERE table_name = '$table' AND state = 'succeeded'", 't',
	'and the end of all becomes known');
is($kusto->count($db, $table), $count, 'each has arrived once');
$pg->poll(q(SELECT pg_stat_get_tuples_hot_updated('kusto.operation'::regclass) > 0), 't',
	'a move from one open state to the next is a HOT update');

# ---- nothing to do is nothing to start for ----

$pg->sql('CREATE DATABASE own');
$pg->sql('CREATE EXTENSION kusto_ingest', dbname => 'own');
$pg->{dbname} = 'own';
$pg->connect_to($kusto);
my $session = $pg->session;
$session->sql('BEGIN');
$session->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i WHERE false', 'NoSuchTable'));
is($session->sql('SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND classid = 1263883092'), 0,
	'an export without rows does not keep a worker');
$session->sql('COMMIT');
is($pg->sql($worker_lock), '', 'nor start one');

# ---- a row that cannot be read ----

$table = fresh_table('Readable');
my $bad = '00000000-0000-0000-0000-00000000bad0';
$pg->sql(<<~"SQL");
	INSERT INTO kusto.operation (id, owner, server, database, table_name, mode, source, options, state, blobs, created_at,
		system_identifier, database_oid)
	SELECT '$bad', 10, 'adx', '$db', '$table', 'queued', 'query', '{"creation_time": "no time"}', 'staged', 0, '2000-01-01',
		system_identifier, (SELECT oid FROM pg_database WHERE datname = current_database())
	FROM pg_control_system()
	SQL
$id = $pg->ingest('SELECT 1 AS i', $table);
$pg->succeeds($id, 'a row that cannot be read does not hide others');
is($pg->operation($bad)->{state}, 'staged', 'it waits');
wait_until(sub { slurp_file($pg->node->logfile) =~ /LOG:  kusto_ingest operation $bad cannot be read/ }, 'the log says so');
my @said = slurp_file($pg->node->logfile) =~ /operation $bad cannot be read/g;
is(scalar @said, 1, 'once, and not at each look');
$pg->sql("DELETE FROM kusto.operation WHERE id = '$bad'");

# ---- somebody wants the database, and does not get it ----

$session->sql('BEGIN');
$id = $session->sql('SELECT ' . $pg->ingest_call('SELECT 2 AS i', $table));
$session->sql(q(PREPARE TRANSACTION 'p'));
$session->quit;
my $pid = $pg->sql($worker_lock);
like($pid, qr/^\d+$/, 'a worker runs for a prepared transaction');
my $looked = "SELECT query_start FROM pg_stat_activity WHERE pid = $pid";
my $before = $pg->sql($looked);
$pg->poll("SELECT ($looked) > '$before'::timestamptz + interval '2500 ms'", 't', 'it has looked, and found nothing');
$pg->fails_like('CREATE DATABASE copy TEMPLATE own', { sqlstate => '55006', message => qr/being accessed by other users/ },
	'the prepared transaction is in the way of a copy', dbname => 'postgres');
is($pg->sql("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid", dbname => 'postgres'), 0, 'the worker was not');
$pg->sql(q(COMMIT PREPARED 'p'));
$pg->poll("SELECT state = 'succeeded' FROM kusto.operations WHERE id = '$id'", 't',
	'its successor finds what COMMIT PREPARED brings, without a call');

# An error while it waits for its posts before it leaves: it stays, and goes on.
$kusto->fault({ service => 'queue', method => 'POST' }, { blackhole => JSON::PP::true }, times => -1);
$id = $pg->ingest('SELECT 3 AS i', $table);
wait_until(sub { $kusto->fired > 0 }, 'the queue stalls');
$pid = $pg->sql($worker_lock);
my $offset = -s $pg->node->logfile;
my $copying = $pg->session(dbname => 'postgres');
$copying->send('CREATE DATABASE copy TEMPLATE own');
wait_until(sub { slurp_file($pg->node->logfile, $offset) =~ /leaves the database to another session/ }, 'it is about to leave');
$pg->sql("SELECT pg_cancel_backend($pid); SELECT pg_cancel_backend(" . $copying->pid . ')', dbname => 'postgres');
$copying->receive;
$copying->quit;
wait_until(sub { slurp_file($pg->node->logfile, $offset) =~ /canceling statement due to user request/ }, 'it is cancelled');
$kusto->clear_faults;
is($pg->sql($worker_lock), $pid, 'a worker that was cancelled on its way out is there');
$id = $pg->ingest('SELECT 4 AS i', $table);
$pg->poll("SELECT state = 'succeeded' FROM kusto.operations WHERE id = '$id'", 't', 'and posts');

# ---- what cannot be claimed ----

# As many as one server may have under way as one role.
my $stuck = fresh_table('Stuck');
$pg->sql(<<~'SQL');
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'refused by the test'; END$$;
	CREATE TRIGGER refuse BEFORE UPDATE ON kusto.operation FOR EACH ROW
		WHEN (NEW.table_name = 'Stuck' AND NEW.state = 'posting') EXECUTE FUNCTION refuse()
	SQL
is($pg->sql("SELECT count(" . $pg->ingest_call('SELECT 1 AS i', $stuck) . ") FROM generate_series(1, 20)"), 20, 'twenty exports are staged');
wait_until(sub { my @refused = slurp_file($pg->node->logfile) =~ /refused by the test/g; @refused >= 20 }, 'none can be claimed');
$id = $pg->ingest('SELECT 1 AS i', $table);
$pg->poll("SELECT state = 'succeeded' FROM kusto.operations WHERE id = '$id'", 't', 'they do not keep another from being posted');
$pg->sql('DROP TRIGGER refuse ON kusto.operation');
$pg->poll("SELECT bool_and(state = 'succeeded') FROM kusto.operations WHERE table_name = 'Stuck'", 't', 'and go out when they can be');

# ---- a copy of the database ----

$kusto->fault({ service => 'queue', method => 'POST' }, { status => 503, body => 'busy' }, times => -1);
$id = $pg->ingest('SELECT 5 AS i', $table);
$pg->poll("SELECT error_message IS NOT NULL FROM kusto.operations WHERE id = '$id'");
$pg->sql('CREATE DATABASE copy TEMPLATE own', dbname => 'postgres');
$kusto->clear_faults;
$pg->succeeds($id, 'an operation that was open while its database was copied');
{
	local $pg->{dbname} = 'copy';
	$offset = -s $pg->node->logfile;
	$pg->succeeds($pg->ingest('SELECT 6 AS i', $table), 'the copy exports');
	is($pg->operation($id)->{state}, 'posting', 'and leaves alone what it did not record');
	like(slurp_file($pg->node->logfile, $offset), qr/LOG:  \d+ unfinished kusto_ingest operations? w\w+ recorded by another cluster or database/,
		'its worker says so');
	$pg->fails_like("SELECT kusto_wait('$id')",
		{ sqlstate => '55000', message => qr/recorded by another cluster or database/, hint => qr/docs\/operations\.md/ },
		'waiting for such an operation is an error');
	# As docs/operations.md tells.
	$pg->sql(<<~'SQL');
		UPDATE kusto.operation SET
			system_identifier = (SELECT system_identifier FROM pg_control_system()),
			database_oid = (SELECT oid FROM pg_database WHERE datname = current_database())
		WHERE finished_at IS NULL
		SQL
	$pg->succeeds($id, 'once adopted, its end becomes known here, too');
	$pg->poll("SELECT count(*) = 0 FROM kusto.operations WHERE finished_at IS NULL", 't', 'and that of all others');
}
$kusto->settle;
is(scalar(grep { $_->[0] == 5 } @{ $kusto->rows($db, $table) }), 1, 'its rows have arrived once');

# ---- configuration that goes and comes back ----

my $mapping = sprintf q(CREATE USER MAPPING FOR CURRENT_USER SERVER adx OPTIONS (auth 'client_secret', tenant '%s', client_id '%s', client_secret '%s')),
  $kusto->tenant, $kusto->client_id, $kusto->client_secret;

# The worker asks for another session after a failure, and finds what is missing.
sub hindered
{
	my ($i, $sql, $reason, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$kusto->fault({ service => 'queue', method => 'POST' }, { status => 503, body => 'busy' }, times => -1);
	my $hindered = $pg->ingest("SELECT $i AS i", $table);
	$pg->poll("SELECT error_message IS NOT NULL FROM kusto.operations WHERE id = '$hindered'");
	$pg->sql($sql);
	$pg->poll("SELECT error_message ~ '$reason' FROM kusto.operations WHERE id = '$hindered'", 't', "$name: the row says so");
	is($pg->operation($hindered)->{state}, 'posting', "$name: and the operation waits");
	$kusto->clear_faults;
	return $hindered;
}

$id = hindered(7, 'DROP USER MAPPING FOR CURRENT_USER SERVER adx', 'user mapping', 'a user mapping that is dropped');
$pg->sql($mapping);
my $operation = $pg->succeeds($id, 'made again, it goes on');
is($operation->{error_message}, undef, 'and the reason is gone');
$id = hindered(8, 'ALTER SERVER adx RENAME TO adx2', 'server .* does not exist', 'a server that is renamed');
$pg->sql('ALTER SERVER adx2 RENAME TO adx');
$pg->succeeds($id, 'named back, it goes on');

# ---- what the service says, in another encoding ----

$pg->sql(q(CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'));
$pg->sql('CREATE EXTENSION kusto_ingest', dbname => 'latin');
$pg->{dbname} = 'latin';
$pg->connect_to($kusto);
fresh_table('Latin');
$kusto->config(outcomes => [ { match => { table => 'Latin' }, status => 'Failed', errorCode => 'BadRequest_Test',
	failureStatus => 'Permanent', details => "caf\x{e9} \x{20ac}5 \x{1f600}." } ]);
$id = $pg->ingest('SELECT 1 AS i', 'Latin');
$operation = $pg->ends_as($id, 'failed', 'an operation in a LATIN1 database fails');
is($pg->sql("SELECT details = U&'caf\\00E9 ?5 ?.' FROM kusto.operations WHERE id = '$id'"), 't',
	'the reason keeps the characters that its encoding has')
  or diag explain $operation;
is($pg->sql("SELECT details = U&'caf\\00E9 ?5 ?.' FROM kusto.blobs WHERE operation_id = '$id'"), 't', 'in kusto.blobs, too');
$kusto->fault({ service => 'engine', path => 'query' }, { status => 400, headers => { 'Content-Type' => 'application/json' },
	body => JSON::PP->new->encode({ error => { code => 'BadRequest', message => "caf\x{e9} \x{20ac}5", '@permanent' => JSON::PP::true } }) });
my $error = $pg->fails(q(SET client_encoding = 'UTF8'; SELECT kusto_query('print 1')));
like($error->{text}, qr/caf\xc3\xa9 \?5/, 'and so does an error');

unlike(slurp_file($pg->node->logfile), qr/TRAP|PANIC/, 'no assertion has failed');
$kusto->assert_no_violations;
done_testing();
