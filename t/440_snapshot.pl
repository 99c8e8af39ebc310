# The rows that a table has when it begins to be captured: they and the changes are, in Kusto, the table,
# without a gap and without an overlap, whoever writes meanwhile.
use strict;
use warnings;

use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.flush_interval = 50ms
	max_worker_processes = 16
	CONF

# Jobs are submitted, but none is started.
sub hold { return $pg->set_config('kusto_ingest.max_jobs' => 0) }
sub release { return $pg->set_config('kusto_ingest.max_jobs' => 4) }

sub capture
{
	my ($table, %arguments) = @_;
	my %all = (snapshot => 'true', create_table => 'true', %arguments);
	return "SELECT kusto_capture('$table', '$db', 'k_$table', " . join(', ', map { "$_ => $all{$_}" } sort keys %all) . ')';
}

sub flushed
{
	my ($name) = @_;
	return is($pg->sql(q(SELECT kusto_flush('60 s'))), 't', "$name: all is sent");
}

# ---- what Kusto has ----

# { op, seq, txid, key, row } by _seq and key, which is the first of the table's own columns.
sub changes
{
	my ($table, $front) = @_;
	$kusto->settle;
	my @rows = map { {
		op => $_->[0], txid => $_->[1], seq => $_->[2], key => $_->[ $front // 4 ],
		row => [ @$_[ ($front // 4) .. $#$_ ] ] } } @{ $kusto->rows($db, "k_$table") };
	return sort { $a->{seq} <=> $b->{seq} || $a->{key} <=> $b->{key} } @rows;
}

# A row is there before it is changed, and is not before it comes: anything else is a gap or an overlap.
sub replay
{
	my @changes = @_;
	my (%rows, @wrong);
	for my $change (@changes)
	{
		my $is_new = $change->{op} =~ /^(?:snapshot|insert)$/;
		push @wrong, "$change->{op} of $change->{key} at $change->{seq}" if $is_new == exists $rows{ $change->{key} };
		$rows{ $change->{key} } = $change->{row};
		delete $rows{ $change->{key} } if $change->{op} eq 'delete';
	}
	return (\%rows, \@wrong);
}

sub text_of { return join '|', map { $_ // '' } @{ $_[0] } }

# The table, as its changes in Kusto tell it; these are returned.
sub is_told
{
	my ($table, $name, $front) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @changes = changes($table, $front);
	my ($rows, $wrong) = replay(@changes);
	is_deeply($wrong, [], "$name: no gap and no overlap");
	my @got = sort map { text_of($_) } values %$rows;
	my @expected = sort split /\n/, $pg->sql("SELECT * FROM $table");
	is_deeply(\@got, \@expected, "$name: Kusto has the table");
	return @changes;
}

# ---- a busy table ----

$pg->sql(<<~'SQL');
	CREATE TABLE busy (id int PRIMARY KEY, v int NOT NULL, note text);
	INSERT INTO busy SELECT i, 0, 'there already' FROM generate_series(1, 5000) i;
	CREATE TABLE stop (i int);
	CREATE PROCEDURE write_on(seed int) LANGUAGE plpgsql AS $$
	DECLARE
		k int;
		n int := 0;
	BEGIN
		PERFORM setseed(seed / 10.0);
		LOOP
			EXIT WHEN EXISTS (SELECT FROM stop);
			n := n + 1;
			k := 1 + floor(random() * 400)::int;
			BEGIN
				CASE n % 5
				WHEN 0 THEN DELETE FROM busy WHERE id = k;
				WHEN 1 THEN INSERT INTO busy VALUES (k, n, 'by ' || seed) ON CONFLICT (id) DO UPDATE SET v = busy.v + 1;
				WHEN 2 THEN UPDATE busy SET v = v + 1 WHERE id IN (k, 4000 + k);
				WHEN 3 THEN INSERT INTO busy VALUES (100000 * seed + n, n, 'new');
				ELSE UPDATE busy SET note = 'aborted' WHERE id = k; RAISE division_by_zero;
				END CASE;
			EXCEPTION WHEN division_by_zero OR deadlock_detected THEN NULL;
			END;
			COMMIT;
		END LOOP;
	END $$;
	SQL
my @writers = map { $pg->session } 1 .. 4;
$writers[ $_ - 1 ]->send("CALL write_on($_)") for 1 .. @writers;
$pg->poll(q(SELECT count(*) > 50 FROM busy WHERE note = 'new'));
my $id = $pg->sql(capture('busy'));
my $operation = $pg->succeeds($id, 'busy: the export of its rows succeeds');
is($operation->{source}, 'capture', 'busy: it is the capture\'s');
my $so_far = $pg->sql(q(SELECT count(*) FROM busy WHERE note = 'new'));
$pg->poll("SELECT count(*) > $so_far + 50 FROM busy WHERE note = 'new'");
$pg->sql('INSERT INTO stop VALUES (1)');
for my $writer (@writers)
{
	my $outcome = $writer->receive;
	is($outcome->{err}, '', 'busy: a writer came to its end');
}
flushed('busy');
my @changes = is_told('busy', 'busy');
my %ops;
$ops{ $_->{op} }++ for @changes;
ok($ops{$_}, "busy: there are rows of kind $_") for qw(snapshot insert update delete);
cmp_ok((grep { $_->{op} eq 'snapshot' } @changes)[-1]{seq}, '<', (grep { $_->{op} ne 'snapshot' } @changes)[0]{seq},
	'busy: existing rows come before all changes');
is(scalar(grep { $_->{op} eq 'snapshot' && defined $_->{txid} } @changes), 0, 'busy: and are no transaction\'s');
is($pg->sql("SELECT state, lag_rows, last_error FROM kusto.captures WHERE relation = 'busy'::regclass"), 'active|0|',
	'busy: it is captured');

# ---- prepared transactions that are open when the rows are read ----

$pg->sql(<<~'SQL');
	CREATE TABLE held (id int PRIMARY KEY, v int);
	INSERT INTO held SELECT i, 0 FROM generate_series(1, 10) i;
	SQL
hold();
$id = $pg->sql(capture('held'));
is($pg->sql(capture('held')), $id, 'prepared: asked again meanwhile, it is the same export');
$pg->sql(q(BEGIN; UPDATE held SET v = 1 WHERE id <= 3; INSERT INTO held VALUES (11, 1); PREPARE TRANSACTION 'later'));
$pg->sql(q(BEGIN; DELETE FROM held WHERE id = 4; SAVEPOINT s; INSERT INTO held VALUES (12, 1); PREPARE TRANSACTION 'never'));
$pg->sql('DELETE FROM held WHERE id = 10; INSERT INTO held VALUES (13, 2)');
is($pg->sql("SELECT state FROM kusto.captures WHERE relation = 'held'::regclass"), 'waiting for snapshot',
	'prepared: changes wait for the rows');
release();
$pg->succeeds($id, 'prepared: the rows are exported beside open prepared transactions');
flushed('prepared');
is_deeply([ map { "$_->{op} $_->{key}" } changes('held') ], [ map { "snapshot $_" } 1 .. 9, 13 ],
	'prepared: what had committed by then is among the rows, and only there');
$pg->sql(q(COMMIT PREPARED 'later'));
$pg->sql(q(ROLLBACK PREPARED 'never'));
$pg->sql('UPDATE held SET v = v + 10 WHERE id = 1');
flushed('prepared');
is_told('held', 'prepared');
is(scalar(grep { $_->{op} eq 'update' } changes('held')), 4, 'prepared: changes that committed later are told as such');

# kusto_capture() in a transaction that is prepared itself.
$pg->sql('CREATE TABLE whole (id int PRIMARY KEY, v int); INSERT INTO whole VALUES (1, 1), (2, 2)');
$id = $pg->sql('BEGIN; DELETE FROM whole WHERE id = 2; ' . capture('whole') . q(; INSERT INTO whole VALUES (3, 3); PREPARE TRANSACTION 'whole'));
is($pg->sql("SELECT count(*) FROM kusto.operations WHERE id = '$id'"), '0', 'prepared: nothing happens yet');
$pg->sql(q(COMMIT PREPARED 'whole'));
$pg->succeeds($id, 'prepared: the capture itself was');
$pg->sql('UPDATE whole SET v = 4 WHERE id = 3');
flushed('prepared');
is_deeply([ map { "$_->{op} $_->{key}" } changes('whole') ], [ 'snapshot 1', 'snapshot 3', 'update 3' ],
	'prepared: the transaction\'s own changes are among the rows');

# ---- no rows ----

$pg->sql('CREATE TABLE nothing (id int PRIMARY KEY, v text)');
$id = $pg->sql(capture('nothing', old_values => 'true'));
$operation = $pg->succeeds($id, 'no rows: the export succeeds');
is($operation->{rows}, 0, 'no rows: of nothing');
$pg->sql(q(INSERT INTO nothing VALUES (1, 'a'); UPDATE nothing SET v = 'b'));
flushed('no rows');
is_told('nothing', 'no rows', 5);

# ---- what a table may be ----

$pg->sql(<<~'SQL');
	CREATE SCHEMA "odd ""schema";
	CREATE TABLE "odd ""schema"."Select" (id int PRIMARY KEY, gone int, "Na me" text, big numeric, made int GENERATED ALWAYS AS (id * 2) STORED);
	INSERT INTO "odd ""schema"."Select" VALUES (1, 1, 'eins', 12345678901234567890);
	ALTER TABLE "odd ""schema"."Select" DROP COLUMN gone;
	CREATE TABLE parted (id int, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
	CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
	CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2);
	INSERT INTO parted VALUES (1, 1), (2, 2);
	CREATE TABLE parent (id int PRIMARY KEY);
	CREATE TABLE child () INHERITS (parent);
	INSERT INTO parent VALUES (1);
	INSERT INTO child VALUES (2);
	SQL
my $odd = $pg->sql(qq(SELECT kusto_capture('"odd ""schema"."Select"', '$db', 'k_odd', snapshot => true, create_table => true, old_values => true)));
my $parted = $pg->sql(capture('parted'));
my $parent = $pg->sql(capture('parent'));
$pg->succeeds($_) for $odd, $parted, $parent;
$pg->sql(q(INSERT INTO "odd ""schema"."Select" (id, "Na me") VALUES (2, 'zwei')));
$pg->sql('INSERT INTO parted_1 VALUES (3, 1); UPDATE parted SET part = 2 WHERE id = 1');
$pg->sql('INSERT INTO parent VALUES (3)');
flushed('kinds of tables');
is_deeply([ sort map { join '|', $_->{op}, text_of($_->{row}) } changes('odd', 5) ],
	[ 'insert|2|zwei||4', 'snapshot|1|eins|12345678901234567890|2' ], 'a dropped column is none, a generated one is one');
is_deeply([ sort map { text_of($_->{row}) } grep { $_->{op} eq 'snapshot' } changes('parted') ], [ '1|1', '2|2' ],
	'of a partitioned table, the rows of its partitions');
is_deeply([ map { "$_->{op} $_->{key}" } changes('parent') ], [ 'snapshot 1', 'insert 3' ],
	'of a table that others inherit from, its own');

# ---- when the export fails ----

sub captured
{
	my ($table, $columns) = @_;
	return $pg->sql("SELECT $columns FROM kusto.captures WHERE relation = '$table'::regclass");
}

$pg->sql(<<~'SQL');
	CREATE TABLE broken (id int PRIMARY KEY, at timestamptz);
	INSERT INTO broken VALUES (1, 'infinity'), (2, '2026-01-01 00:00:00+00');
	SQL
$id = $pg->sql(capture('broken'));
$operation = $pg->ends_as($id, 'failed', 'failed: a value that Kusto does not have');
like($operation->{error_message}, qr/cannot be held by Kusto type datetime/, 'failed: the operation says why');
$pg->sql(q(UPDATE broken SET at = '2026-02-02 00:00:00+00' WHERE id = 1; INSERT INTO broken VALUES (3, NULL)));
$pg->poll("SELECT last_error IS NOT NULL FROM kusto.captures WHERE relation = 'broken'::regclass");
like(captured('broken', 'last_error'), qr/export of the existing rows is failed/, 'failed: the capture says that it waits');
like(captured('broken', 'last_error_details'), qr/cannot be held/, 'failed: and why');
is(captured('broken', 'state, lag_rows'), 'waiting for snapshot|2', 'failed: changes stay in the outbox');
is($pg->sql(q(SELECT kusto_flush('200 ms'))), 'f', 'failed: and a flush does not claim otherwise');
my $again = $pg->sql(capture('broken'));
isnt($again, $id, 'failed: asked again, it is another export');
$pg->succeeds($again, 'failed: which succeeds');
$pg->sql('DELETE FROM broken WHERE id = 2');
flushed('failed');
is_deeply([ map { "$_->{op} $_->{key}" } changes('broken') ], [ 'snapshot 1', 'snapshot 2', 'snapshot 3', 'delete 2' ],
	'failed: what was changed meanwhile is among the rows');
is(captured('broken', 'state, last_error'), 'active|', 'failed: nothing hinders any more');

hold();
$pg->sql('CREATE TABLE without (id int PRIMARY KEY); INSERT INTO without VALUES (1)');
$id = $pg->sql(capture('without'));
$pg->sql('INSERT INTO without VALUES (2)');
is($pg->sql(capture('without', snapshot => 'false')), '', 'cancelled: a call without snapshot in between');
is(captured('without', 'state'), 'waiting for snapshot', 'cancelled: does not give the export up');
is($pg->sql("SELECT kusto_cancel('$id')"), 't', 'cancelled: it is');
$pg->poll("SELECT last_error ~ 'cancelled' FROM kusto.captures WHERE relation = 'without'::regclass", 't',
	'cancelled: the capture says so');
my $result = $pg->session;
$result->send('SET client_min_messages = notice; ' . capture('without', snapshot => 'false'));
like($result->receive->{err}, qr/NOTICE: .*rows that table "without" had have not been exported/, 'cancelled: now it is given up');
flushed('cancelled');
is_deeply([ map { "$_->{op} $_->{key}" } changes('without') ], ['insert 2'], 'cancelled: changes go on');
release();

# Nobody can ask for another export of a table that is gone, or is captured no more.
hold();
$pg->sql('CREATE TABLE ended (id int PRIMARY KEY); INSERT INTO ended VALUES (1)');
$id = $pg->sql(capture('ended'));
$pg->sql(q(INSERT INTO ended VALUES (2); SELECT kusto_uncapture('ended')));
is($pg->sql(q(SELECT kusto_flush('200 ms'))), 'f', 'ended: changes wait for the export all the same');
$pg->sql("SELECT kusto_cancel('$id')");
flushed('ended');
is_deeply([ map { "$_->{op} $_->{key}" } changes('ended') ], ['insert 2'], 'ended: when that is cancelled, they are sent without it');
$pg->poll(q(SELECT count(*) = 0 FROM kusto.captures WHERE table_name = 'k_ended'), 't', 'ended: and the capture is forgotten');
release();

# ---- a capture that has begun before ----

$pg->sql('CREATE TABLE second (id int PRIMARY KEY, v int); INSERT INTO second VALUES (1, 1)');
$pg->sql(capture('second', snapshot => 'false'));
$pg->sql('INSERT INTO second VALUES (2, 2)');
flushed('later');
$id = $pg->sql(capture('second'));
$pg->succeeds($id, 'later: the rows of a table that is captured already');
$pg->sql('UPDATE second SET v = 3 WHERE id = 2');
flushed('later');
is_deeply([ map { "$_->{op} $_->{key}" } changes('second') ], [ 'insert 2', 'snapshot 1', 'snapshot 2', 'update 2' ],
	'later: between the changes before and those since');

# The worker reads nothing while somebody alters a table of the outbox.
my $altering = $pg->session;
$altering->sql('BEGIN; LOCK kusto.dead_letter');
$pg->sql('CREATE TABLE waits (id int PRIMARY KEY); ' . capture('waits', snapshot => 'false') . '; INSERT INTO waits VALUES (1)');
$pg->fails_like(capture('waits'), {
	sqlstate => '55000', message => qr/wait to be sent before its rows can be exported/, hint => qr/kusto_flush/ },
	'later: what is not sent yet would be missing in the history');
$altering->sql('COMMIT');
flushed('later');
$pg->succeeds($pg->sql(capture('waits')), 'later: after a flush it can be');

# ---- row security ----

$pg->sql(<<~SQL);
	CREATE ROLE app LOGIN;
	GRANT USAGE ON FOREIGN SERVER adx TO app;
	GRANT CREATE ON SCHEMA public TO app;
	SQL
my %mapping = (auth => 'client_secret', tenant => $kusto->tenant, client_id => $kusto->client_id, client_secret => $kusto->client_secret);
$pg->sql('CREATE USER MAPPING FOR app SERVER adx OPTIONS ('
	  . join(', ', map { "$_ " . KustoCluster::literal($mapping{$_}) } sort keys %mapping) . ')');
$pg->sql(<<~'SQL', user => 'app');
	CREATE TABLE secured (id int PRIMARY KEY, mine int);
	INSERT INTO secured VALUES (1, 1), (2, 0);
	ALTER TABLE secured ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
	CREATE POLICY mine ON secured USING (mine = 1) WITH CHECK (true);
	SQL
$id = $pg->sql(capture('secured'));
$operation = $pg->ends_as($id, 'failed', 'row security: never a part of the rows');
is($operation->{error_code}, '42501', 'row security: it is an error');
is($operation->{owner}, 'app', 'row security: as the table\'s owner');
$pg->sql('ALTER TABLE secured NO FORCE ROW LEVEL SECURITY');
$pg->succeeds($pg->sql(capture('secured')), 'row security: of the owner it need not be forced');
is_told('secured', 'row security');

# ---- refusals ----

$pg->sql('CREATE TABLE refused (id int PRIMARY KEY)');
$pg->fails_like('BEGIN READ ONLY; ' . capture('refused'), { sqlstate => '25006' }, 'not in a read-only transaction');

$kusto->assert_no_violations;
done_testing();
