# Row changes on a subscriber of logical replication: what is applied there is captured once where that
# was asked for, and not at all otherwise; and nobody sends the publisher's own changes but itself.
use strict;
use warnings;

use KustoCluster qw(literal wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use RowChanges;
use Test::More;

my $conf = <<~'CONF';
	wal_level = logical
	max_wal_senders = 10
	max_replication_slots = 10
	max_worker_processes = 16
	max_logical_replication_workers = 8
	wal_retrieve_retry_interval = 100ms
	kusto_ingest.flush_interval = 0
	CONF
my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $publisher = KustoCluster->start($kusto, name => 'publisher', conf => $conf);
my $subscriber = KustoCluster->start($kusto, name => 'subscriber', conf => $conf);
my $published = RowChanges->new($publisher, $kusto);
my $applied = RowChanges->new($subscriber, $kusto);
my $source = literal($publisher->node->connstr('postgres'));

# All that the publisher has committed is applied.
sub catch_up
{
	my ($name) = @_;
	$publisher->node->wait_for_catchup($name);
	return;
}

sub synced
{
	my ($name) = @_;
	return $subscriber->poll(<<~"SQL");
		SELECT count(*) > 0 AND bool_and(r.srsubstate IN ('r', 's')) FROM pg_subscription_rel r
		JOIN pg_subscription s ON s.oid = r.srsubid WHERE s.subname = '$name'
		SQL
}

sub on_both { my ($sql) = @_; $_->sql($sql) for $publisher, $subscriber; return }

# ---- triggers as they are made, and those that are for replicated changes, too ----

on_both(<<~'SQL');
	CREATE TABLE quiet (id int PRIMARY KEY, v text);
	CREATE TABLE loud (id int PRIMARY KEY, v text, big text);
	CREATE TABLE pair (id int PRIMARY KEY, v text);
	CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
	CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
	CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200);
	SQL
$publisher->sql(q(INSERT INTO quiet SELECT i, 'before' FROM generate_series(1, 3) i; INSERT INTO loud SELECT i, 'before', repeat('b', 20000) FROM generate_series(1, 3) i; INSERT INTO parts VALUES (1, 'before'), (101, 'before')));
$applied->capture('quiet', 'Quiet');
$applied->capture('loud', 'Loud', replicated => 'true');
$applied->capture('parts', 'Parts', replicated => 'true');
$applied->capture('pair', 'AppliedBoth', replicated => 'true');
$published->capture('pair', 'PublishedBoth');
is($subscriber->sql(q(SELECT count(*) FROM pg_trigger WHERE tgrelid = 'loud'::regclass AND tgenabled = 'A' AND tgname LIKE 'Kusto%')), 4, 'replicated => true makes triggers that always fire');
is($subscriber->sql(q(SELECT triggers FROM kusto.captures WHERE table_name = 'Loud')), 'enabled', 'which kusto.captures calls enabled');

$publisher->sql('CREATE PUBLICATION chosen FOR TABLE quiet, loud, pair, parts');
$subscriber->sql("CREATE SUBSCRIPTION chosen CONNECTION $source PUBLICATION chosen");
synced('chosen');
$applied->ops_are('Quiet', [], 'the rows of a tablesync do not fire the usual triggers', 'id');
$applied->ops_are('Loud', [ map { "insert $_/before" } 1 .. 3 ], 'but those that always fire', 'id', 'v');
is(length(($applied->history('Loud'))[0]{row}{big}), 20000, 'with all of their values');
# Each partition has a process of its own.
$applied->settle;
is_deeply([ sort @{ $applied->ops('Parts', 'id', 'v') } ], [ 'insert 1/before', 'insert 101/before' ], 'also into partitions');

my $work = <<~'SQL';
	INSERT INTO %1$s (id, v) VALUES (10, 'a'), (11, 'b');
	UPDATE %1$s SET v = 'changed' WHERE id IN (1, 10);
	UPDATE %1$s SET id = 12 WHERE id = 11;
	DELETE FROM %1$s WHERE id = 2;
	BEGIN; INSERT INTO %1$s (id) VALUES (13); SAVEPOINT s; INSERT INTO %1$s (id) VALUES (14); ROLLBACK TO s; COMMIT;
	SQL
$publisher->sql(sprintf $work, $_) for qw(quiet loud pair);
$publisher->sql(q(INSERT INTO parts VALUES (2, 'a'); UPDATE parts SET id = 102 WHERE id = 2; UPDATE parts SET v = 'b' WHERE id > 100; DELETE FROM parts WHERE id = 1));
catch_up('chosen');
$applied->ops_are('Quiet', [], 'what is applied does not fire the usual triggers', 'id');
$applied->ops_are('Loud', [ (map { "insert $_/before" } 1 .. 3), 'insert 10/a', 'insert 11/b', 'update 1/changed', 'update 10/changed',
		'delete 11/b', 'update 12/b', 'delete 2/before', 'insert 13/null' ], 'and is captured once by those that always fire', 'id', 'v');
is(length((grep { $_->{op} eq 'update' && $_->{row}{id} == 1 } $applied->history('Loud'))[0]{row}{big}), 20000,
	'with values that the publisher did not send, since they had not changed');
$applied->replays('loud', 'Loud', ['id'], 'replicated changes');
$applied->replays('parts', 'Parts', ['id'], 'replicated changes of partitions');
is_deeply([ map { /(\w+)/ } sort @{ $published->ops('PublishedBoth', 'id') } ], [ map { /(\w+)/ } sort @{ $applied->ops('AppliedBoth', 'id') } ],
	'the publisher captures its own');
$published->replays('pair', 'PublishedBoth', ['id'], 'the publisher');
$applied->replays('pair', 'AppliedBoth', ['id'], 'the subscriber');

$subscriber->sql($_) for q(INSERT INTO quiet VALUES (100, 'local')), q(INSERT INTO loud VALUES (100, 'local'));
$applied->ops_are('Quiet', ['insert 100'], 'changes made on the subscriber are captured', 'id');
is(scalar(grep { $_ eq 'insert 100' } @{ $applied->ops('Loud', 'id') }), 1, 'once, whatever the triggers');
$publisher->sql('TRUNCATE loud');
catch_up('chosen');
$applied->settle;
is(@{ $applied->ops('Loud') }[-1], 'truncate', 'TRUNCATE is applied and captured');
$applied->replays('loud', 'Loud', ['id'], 'after it');

$subscriber->sql(q(SET session_replication_role = replica; INSERT INTO quiet VALUES (200, 'replica'); INSERT INTO loud VALUES (200, 'replica')));
$applied->ops_are('Quiet', ['insert 100'], 'session_replication_role = replica stops the usual triggers', 'id');
is(@{ $applied->ops('Loud', 'id') }[-1], 'insert 200', 'and not those that always fire');

# A capture that is changed to be for replicated changes, too.
$subscriber->sql("SELECT kusto_capture('quiet', '$db', 'Quiet', create_table => true, replicated => true)");
$publisher->sql(q(INSERT INTO quiet VALUES (20, 'later')));
catch_up('chosen');
$applied->ops_are('Quiet', [ 'insert 100', 'insert 20' ], 'kusto_capture() again with replicated => true', 'id');

# ---- what the process that applies has to record of its own accord ----

# Columns that nobody has seen before.
$_->sql('ALTER TABLE loud ADD COLUMN w int') for $subscriber, $publisher;
my $shapes = $subscriber->sql('SELECT count(*) FROM kusto.capture_shape');
$publisher->sql(q(INSERT INTO loud VALUES (500, 'wider', NULL, 5)));
catch_up('chosen');
is($subscriber->sql('SELECT count(*) FROM kusto.capture_shape'), $shapes + 1, 'the first change of a table with a new column is applied: the columns are recorded');
$applied->settle;
is((grep { $_->{row}{id} == 500 } $applied->history('Loud'))[0]{row}{w}, 5, 'and it is sent with it');
$applied->replays('loud', 'Loud', ['id'], 'a new column');

# A table that nobody has captured before.
on_both('CREATE TABLE hand (id int PRIMARY KEY, v text)');
$kusto->command($db, '.create table Hand (_op:string, _txid:long, _seq:long, _changed_at:datetime, id:int, v:string)');
$subscriber->sql("CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON hand FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('$db', 'Hand')");
$subscriber->sql('ALTER TABLE hand ENABLE ALWAYS TRIGGER t');
$publisher->sql('ALTER PUBLICATION chosen ADD TABLE hand');
$subscriber->sql('ALTER SUBSCRIPTION chosen REFRESH PUBLICATION');
synced('chosen');
is($subscriber->sql(q(SELECT count(*) FROM kusto.capture WHERE table_name = 'Hand')), 0, 'a trigger made by hand that has not fired');
$publisher->sql(q(INSERT INTO hand VALUES (1, 'first'); UPDATE hand SET v = 'second'));
catch_up('chosen');
is($subscriber->sql(q(SELECT count(*) FROM kusto.capture WHERE table_name = 'Hand')), 1, 'it first fires for what is applied: the capture is recorded');
$applied->ops_are('Hand', [ 'insert 1/first', 'update 1/second' ], 'and the changes are sent', 'id', 'v');
$subscriber->sql('DROP SUBSCRIPTION chosen');
on_both('DROP TABLE hand');

# ---- a publication of all tables, the extension's among them ----

# Both have a capture with the number 1, operations, and rows in the outbox.
on_both('CREATE TABLE everything (id int PRIMARY KEY, v text)');
$published->capture('everything', 'PublishedAll');
my $own = $subscriber->sql(q(SELECT string_agg(id || ':' || table_name, ',' ORDER BY id) FROM kusto.capture));
$publisher->sql(q(INSERT INTO everything VALUES (1, 'before')));
$publisher->finished($publisher->ingest('SELECT 1 AS i', 'Exported', create_table => 'true'));
$subscriber->finished($subscriber->ingest('SELECT 2 AS i', 'Exported', create_table => 'true'));
my $operations = $subscriber->sql(q(SELECT string_agg(id::text, ',' ORDER BY id) FROM kusto.operation));
$published->settle;
my $before = { map { $_ => scalar @{ $applied->ops($_) } } qw(Quiet Loud Parts AppliedBoth PublishedBoth) };

$subscriber->sql('TRUNCATE quiet, loud, pair, parts');
$publisher->sql('CREATE PUBLICATION all_of_it FOR ALL TABLES');
$subscriber->sql("CREATE SUBSCRIPTION all_of_it CONNECTION $source PUBLICATION all_of_it");
synced('all_of_it');
$publisher->sql(q(INSERT INTO everything VALUES (2, 'after'); UPDATE everything SET v = 'changed'; INSERT INTO quiet VALUES (300, 'all')));
$publisher->finished($publisher->ingest('SELECT 3 AS i', 'Exported'));
catch_up('all_of_it');
is($subscriber->sql(q(SELECT string_agg(id || v, ',' ORDER BY id) FROM everything)), '1changed,2changed', 'FOR ALL TABLES replicates the tables');
is($subscriber->sql(q(SELECT string_agg(id || ':' || table_name, ',' ORDER BY id) FROM kusto.capture)), $own, 'but no capture');
is($subscriber->sql(q(SELECT string_agg(id::text, ',' ORDER BY id) FROM kusto.operation)), $operations, 'no operation');
is($subscriber->sql(q(SELECT count(*) FROM kusto.worker w WHERE w.pid NOT IN (SELECT pid FROM kusto.workers WHERE pid IS NOT NULL))), 0, 'and not what the worker tells of itself');
$published->ops_are('PublishedAll', [ 'insert 1', 'insert 2', 'update 1', 'update 2' ], 'the publisher sends its changes', 'id');
$applied->settle;
is($kusto->count($db, 'PublishedAll'), 4, 'and nobody else does');
is(scalar @{ $applied->ops('PublishedBoth') }, $before->{PublishedBoth}, 'those of before are not sent again');
is_deeply([ @{ $kusto->rows($db, 'Exported') } ], [ [1], [2], [3] ], 'nor is an export');

# Whoever loads data in a session that is a replica exports as anybody does.
$subscriber->succeeds($subscriber->sql('SET session_replication_role = replica; SELECT ' . $subscriber->ingest_call('SELECT 4 AS i', 'Exported')),
	'an export of a session that is a replica is recorded, and lands');

# Changes that the subscriber has not sent yet stay when the publisher empties a table of its outbox.
$subscriber->sql(q(ALTER SERVER adx OPTIONS (SET query_uri 'http://127.0.0.1:1', SET ingest_uri 'http://127.0.0.1:1')));
$subscriber->sql(q(INSERT INTO quiet VALUES (400, 'unsent')));
my $size = q(SELECT max(pg_relation_size('kusto.outbox_' || i)) FROM generate_series(0, 2) i);
$publisher->sql(q(INSERT INTO pair SELECT i, repeat('x', 2000) FROM generate_series(1000, 2999) i));
cmp_ok($publisher->sql($size), '>', 3 * 1024 * 1024, 'the publisher has much in its outbox');
$published->settle;
wait_until(sub { $publisher->sql($size) < 1024 * 1024 }, 'the publisher empties its outbox');
catch_up('all_of_it');
is($subscriber->sql(q(SELECT lag_rows >= 1 FROM kusto.captures WHERE table_name = 'Quiet')), 't', 'the subscriber still has its own');
$subscriber->sql('ALTER SERVER adx OPTIONS (SET query_uri ' . literal($kusto->engine) . ', SET ingest_uri ' . literal($kusto->ingest) . ')');
$applied->settle;
is(@{ $applied->ops('Quiet', 'id') }[-1], 'insert 400', 'and sends it');
$applied->replays('pair', 'AppliedBoth', ['id'], 'a large transaction is applied, and captured once');
is($kusto->count($db, 'PublishedBoth'), scalar(@{ $published->ops('PublishedBoth') }), 'no change was sent twice');

for my $cluster ($publisher, $subscriber)
{
	unlike(slurp_file($cluster->node->logfile), qr/TRAP|PANIC|ERROR:.*(?:kusto|replication|duplicate)/, $cluster->node->name . ': nothing has failed');
}
$subscriber->sql('DROP SUBSCRIPTION all_of_it');
$kusto->assert_no_violations;
done_testing();
