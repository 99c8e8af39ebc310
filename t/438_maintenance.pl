# What is done to the server or the outbox meanwhile: REINDEX CONCURRENTLY of its tables, and a crash
# after asynchronous commits.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.flush_interval = 0
	kusto_ingest.naptime = 200ms
	synchronous_commit = off
	wal_writer_delay = 10s
	autovacuum = off
	CONF

sub make_table
{
	my ($table) = @_;
	return $pg->sql("CREATE TABLE $table (id int PRIMARY KEY); SELECT kusto_capture('$table', '$db', 'k_$table', create_table => true)");
}

sub flushed
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($pg->sql(q(SELECT kusto_flush('60 s'))), 't', "$name: all is sent");
}

sub ids { my ($table) = @_; return [ sort { $a <=> $b } map { $_->[4] } @{ $kusto->rows($db, "k_$table") } ] }

# ---- REINDEX CONCURRENTLY ----

make_table('reindexed');
my $ring = $pg->sql(q(SELECT (nextval('kusto.change_number') + 1) / 8192 % 3));
my ($reader, $blocker, $reindexer) = map { $pg->session } 1 .. 3;

# What was written before, while both indexes are there, and after.
$pg->sql('INSERT INTO reindexed VALUES (1)');
flushed('reindex');
# The worker reads nothing.
$blocker->sql('BEGIN; LOCK kusto.dead_letter');
$reader->sql('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM reindexed');
$reindexer->send("REINDEX TABLE CONCURRENTLY kusto.outbox_$ring");
$pg->poll("SELECT count(*) FROM pg_stat_progress_create_index WHERE phase = 'waiting for old snapshots'", '1',
	'reindex: the new index is built, and waits to take the place of the old one');
$pg->sql('INSERT INTO reindexed VALUES (2)');
$pg->sql('INSERT INTO reindexed SELECT 100 + i FROM generate_series(1, 5000) i');
$reader->sql('COMMIT');
$reindexer->receive;
$pg->sql('INSERT INTO reindexed VALUES (3)');
is($pg->sql("SELECT count(*) FROM kusto.outbox_$ring WHERE capture = (SELECT id FROM kusto.capture WHERE table_name = 'k_reindexed')") > 3,
	1, 'reindex: the changes are in this table of the outbox');
$blocker->sql('COMMIT');
flushed('reindex');
$pg->poll('SELECT count(*) = 0 FROM kusto.operations WHERE finished_at IS NULL');
$kusto->settle;
is_deeply(ids('reindexed'), [ 1, 2, 3, 101 .. 5100 ], 'reindex: nothing of what was written meanwhile is missing');
is($pg->sql(q(SELECT count(*) FROM pg_index WHERE indrelid::regclass::text ~ '^kusto.outbox' AND NOT indisvalid)), 0,
	'reindex: no other index is left');

# Others' indexes of the outbox are filled, too, or it is said that they cannot be.
$pg->sql("CREATE INDEX by_age ON kusto.outbox_$ring (changed_at, rows)");
$pg->sql('INSERT INTO reindexed VALUES (4)');
is($pg->sql("SET enable_seqscan = off; SELECT max(rows) FROM kusto.outbox_$ring WHERE changed_at > now() - interval '1 h' AND rows = 1"),
	1, 'another index: it is filled');
$pg->sql('DROP INDEX kusto.by_age');
my $session = $pg->session;
$session->sql('INSERT INTO reindexed VALUES (5)');
$pg->sql("CREATE INDEX partial_index ON kusto.outbox_$ring (seq) WHERE capture > 0");
for (1 .. 2)
{
	my (undef, $error) = $session->try('INSERT INTO reindexed VALUES (6)');
	$pg->error_is($error, {
		sqlstate => '0A000', message => qr/^row changes cannot be written while there is index "partial_index"$/, hint => qr/Drop the index/ },
		'another index: it may not be partial');
}
# The session is still there. What it had locked and opened at its commit is let go: DDL refuses a table that is in use.
$pg->sql("SET lock_timeout = '10 s'; DROP INDEX kusto.partial_index");
is($session->sql("ALTER TABLE kusto.outbox_$ring SET (autovacuum_enabled = false)"), '', 'another index: nothing is left open after the error');
$session->sql($_) for 'INSERT INTO reindexed VALUES (6)', 'DELETE FROM reindexed WHERE id = 5';
flushed('another index');

# ---- a crash after an asynchronous commit ----

make_table('async');
$pg->sql('INSERT INTO async VALUES (1)');
flushed('async');
$pg->sql('CHECKPOINT');
$kusto->fault({ service => 'engine', path => "/ingest/$db/k_async" }, { blackhole => JSON::PP::true }, times => -1);
my $writer = $pg->sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'));
kill 'STOP', $writer;
$pg->sql('INSERT INTO async VALUES (2)');
wait_until(sub { $kusto->fired > 0 }, 'the change is being sent');
# The stopped process is killed in the end.
$pg->node->stop('immediate');
$kusto->clear_faults;
$pg->node->start;
is($pg->sql('SELECT string_agg(id::text, \',\' ORDER BY id) FROM async'), '1,2',
	'async: what was sent, a crash does not take away');
flushed('async, after the crash');
is_deeply(ids('async'), [ 1, 2 ], 'async: and it arrives');

$kusto->assert_no_violations;
done_testing();
