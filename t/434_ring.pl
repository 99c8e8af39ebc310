# The outbox as a ring: it stays small whatever transactions are open, loses nothing while tables are
# truncated under those who write, and survives the end of the worker or the server at any moment.
# (Accidents need the library with faults, which scripts/test prepares for tests that name FaultMatrix.)
use strict;
use warnings;

use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, faults => defined $ENV{KUSTO_FAULTS_POSTGRES}, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.flush_interval = 20ms
	kusto_ingest.naptime = 200ms
	kusto_ingest.repost_after = 1s
	restart_after_crash = on
	include_if_exists = 'fault.conf'
	CONF
my $MB = 1024 * 1024;

# ---- helpers ----

sub make_table
{
	my ($table) = @_;
	$pg->sql("CREATE TABLE $table (id bigint PRIMARY KEY, note text); SELECT kusto_capture('$table', '$db', 'k_$table', create_table => true)");
	return;
}

# Bytes of a table of the ring with its indexes and TOAST.
sub size { my ($n) = @_; return $pg->sql("SELECT pg_total_relation_size('kusto.outbox_$n')") }
sub sizes { return map { size($_) } 0 .. 2 }

# Numbers go on in the next table.
sub turn { return $pg->sql(q(SELECT setval('kusto.change_number', nextval('kusto.change_number') + 8192))) }

my $next_id = 1;

# So many rows of 200 bytes, as one transaction.
sub insert
{
	my ($table, $rows) = @_;
	my $last = $next_id + $rows - 1;
	$pg->sql("INSERT INTO $table SELECT i, repeat('x', 180) FROM generate_series($next_id, $last) i");
	$next_id += $rows;
	return;
}

sub flushed
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($pg->sql(q(SELECT kusto_flush('60 s'))), 't', "$name: all is sent");
}

# Each row of the table is in Kusto, and once; at least once after accidents.
sub has_arrived
{
	my ($table, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	# Staged is not yet posted.
	$pg->poll('SELECT count(*) = 0 FROM kusto.operations WHERE finished_at IS NULL');
	$kusto->settle;
	my $kql = "k_$table | summarize n = count() by id | summarize ids = count(), total = sum(id), most = max(n)";
	my ($ids, $total, $most) = split /\|/, $pg->sql("SELECT r->>'ids', r->>'total', r->>'most' FROM kusto_query('$kql', '$db') r");
	is("$ids rows, sum $total", $pg->sql("SELECT format('%s rows, sum %s', count(*), sum(id)) FROM $table"),
		"$name: nothing is missing, and nothing is there that was rolled back");
	is($most, 1, "$name: nothing is there twice") unless $options{at_least_once};
	return;
}

# ---- in whatever order transactions commit ----

make_table('ordered');
my ($early, $late) = map { $pg->session } 1 .. 2;
$early->sql(q(BEGIN; INSERT INTO ordered VALUES (1, 'begun first'); SAVEPOINT s; INSERT INTO ordered VALUES (101, 'never'); ROLLBACK TO s; SAVEPOINT s; INSERT INTO ordered VALUES (2, 'kept'); RELEASE s));
$late->sql(q(INSERT INTO ordered VALUES (3, 'committed first')));
$pg->sql(q(BEGIN; INSERT INTO ordered VALUES (4, 'prepared'); PREPARE TRANSACTION 'p'));
$pg->sql(q(BEGIN; INSERT INTO ordered VALUES (102, 'never'); ROLLBACK));
flushed('order');
is_deeply([ map { $_->[4] } @{ $kusto->rows($db, 'k_ordered') } ], [3], 'order: what has committed, and no more');
$late->sql(q(INSERT INTO ordered VALUES (5, 'later')));
flushed('order');
$early->sql('COMMIT');
flushed('order');
$pg->sql(q(COMMIT PREPARED 'p'));
flushed('order');
has_arrived('ordered', 'order');
is($pg->sql('SELECT sum(lag_rows) FROM kusto.captures'), 0, 'order: nothing is left');

# ---- small, whatever is open ----

make_table('bulk');
$pg->sql('CREATE TABLE other (i int)');
my $reader = $pg->session;
$reader->sql('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM other');
my $rounds = 12;
for my $round (1 .. $rounds)
{
	insert('bulk', 10000);
	$pg->sql(q(SELECT kusto_flush('60 s')));
	turn();
	# What lies in the table that is next must have been truncated a turn ago.
	wait_until(sub { my @sizes = sort { $a <=> $b } sizes(); $sizes[1] < 2 * $MB }, "round $round: two tables are small");
}
cmp_ok($pg->sql("SELECT max(age(backend_xmin)) FROM pg_stat_activity WHERE pid = " . $reader->pid), '>', $rounds,
	'pinned: a reader holds back what VACUUM may remove');
$pg->poll("SELECT sum(pg_total_relation_size('kusto.outbox_' || i)) < 4 * 1024 * 1024 FROM generate_series(0, 2) i", 't',
	'pinned: of ' . $rounds . ' rounds of 2 MB no more is left than of one');
is($pg->sql("SELECT max(pg_relation_size('kusto.outbox_' || i || '_batch')) < 1024 * 1024 FROM generate_series(0, 2) i"), 't',
	'pinned: nor in the indexes');
has_arrived('bulk', 'pinned');

# Marks that were alone in a table that was truncated are in another.
is($pg->sql(q(SELECT sum(sent_rows) FROM kusto.captures)), 5 + 10000 * $rounds, 'pinned: captures know what they have sent');
$pg->forget_worker;
insert('bulk', 1);
flushed('pinned, another worker');
has_arrived('bulk', 'pinned, another worker');

# ---- what is in use stays ----

sub ring_of_next { return $pg->sql(q(SELECT (last_value + 1) / 8192 % 3 FROM kusto.change_number)) }
my $used = ring_of_next();
my $dump = $pg->session;
$dump->sql("BEGIN; SELECT count(*) FROM kusto.outbox_$used");
insert('bulk', 20000);
flushed('in use');
turn();
insert('bulk', 20000);
my $free = ($used + 1) % 3;
turn();
flushed('in use');
wait_until(sub { size($free) < $MB }, 'the table that nobody uses is truncated');
cmp_ok(size($used), '>', $MB, 'in use: a table that somebody reads is not');
$dump->sql('COMMIT');
insert('bulk', 1);
flushed('in use');
wait_until(sub { size($used) < $MB }, 'the table is truncated once nobody reads it');
pass('in use: and is when nobody does');
$reader->sql('COMMIT');

# ---- what nobody sends is kept ----

make_table('foreign_one');
$used = ring_of_next();
insert('foreign_one', 1);
flushed('foreign');
$pg->sql("UPDATE kusto.capture SET system_identifier = 1 WHERE relation_name = 'public.foreign_one'");
$pg->forget_worker;
insert('foreign_one', 10);
for my $round (1 .. 3)
{
	turn();
	insert('bulk', 10000);
	flushed("foreign, round $round");
	my $full = ($used + $round) % 3;
	wait_until(sub { size($full) < 2 * $MB }, "foreign, round $round: truncated") if $full != $used;
}
is($pg->sql("SELECT count(*) > 0 FROM kusto.outbox_$used o JOIN kusto.capture c ON c.id = o.capture WHERE c.system_identifier = 1"), 't',
	'foreign: a table with its rows stays');
is($pg->sql("SELECT sent_rows FROM kusto.captures WHERE table_name = 'k_foreign_one'"), 1, 'foreign: and so does its mark');
$pg->sql("SELECT kusto_capture('foreign_one', '$db', 'k_foreign_one', create_table => true)");
flushed('foreign');
has_arrived('foreign_one', 'foreign, adopted');

# ---- what belongs to nobody is not ----

make_table('gone');
my $blocked = $pg->session;
$blocked->sql('BEGIN; LOCK kusto.dead_letter');
$used = ring_of_next();
insert('gone', 10000);
$pg->sql("SELECT kusto_uncapture('gone'); DELETE FROM kusto.capture WHERE relation_name = 'public.gone'");
turn();
insert('bulk', 1);
$blocked->sql('COMMIT');
flushed('gone');
wait_until(sub { size($used) < $MB }, 'rows of a capture that is gone');
pass('gone: rows of a capture that is gone are in nobody\'s way');

# Of one that has ended and is all sent, too: nothing tells any more how far it had got.
make_table('ended');
$used = ring_of_next();
insert('ended', 10000);
flushed('ended');
$pg->sql(q(SELECT kusto_uncapture('ended')));
$pg->poll(q(SELECT count(*) = 0 FROM kusto.captures WHERE table_name = 'k_ended'), 't', 'ended: it is forgotten');
turn();
insert('bulk', 1);
flushed('ended');
wait_until(sub { size($used) < $MB }, 'rows of a capture that has ended');
pass('ended: rows of a capture that has ended are in nobody\'s way');

# ---- under those who write ----

$pg->sql(<<~'SQL');
	CREATE TABLE stop (i int);
	CREATE SEQUENCE ids START 10000000;
	CREATE PROCEDURE write_on(seed int) LANGUAGE plpgsql AS $$
	DECLARE
		n int := 0;
	BEGIN
		LOOP
			EXIT WHEN EXISTS (SELECT FROM stop);
			n := n + 1;
			INSERT INTO busy SELECT nextval('ids'), repeat('y', 500) FROM generate_series(1, CASE n % 50 WHEN 0 THEN 300 ELSE 3 END);
			IF n % 7 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
			IF n % 500 = 0 THEN PERFORM setval('kusto.change_number', nextval('kusto.change_number') + 8192); END IF;
		END LOOP;
	END $$;
	SQL
make_table('busy');
my %filenodes;

sub note_filenodes
{
	$filenodes{$_}++ for split /\n/, $pg->sql(q(SELECT oid::regclass || ' ' || relfilenode FROM pg_class WHERE relname ~ '^outbox_[012]$'));
	return scalar keys %filenodes;
}

sub write_until
{
	my ($done) = @_;
	$pg->sql('TRUNCATE stop');
	my @writers = map { $pg->session } 1 .. 3;
	$writers[ $_ - 1 ]->send("CALL write_on($_)") for 1 .. @writers;
	my $alive = eval { $done->(); 1 };
	my $error = $@;
	$pg->sql('INSERT INTO stop VALUES (1)');
	$_->receive for @writers;
	die $error unless $alive;
	return;
}

note_filenodes();
write_until(sub { wait_until(sub { note_filenodes() >= 3 + 3 }, 'tables are truncated under those who write') });
flushed('writers');
has_arrived('busy', 'writers');

# ---- accidents ----

for my $round (1 .. 3)
{
	my $before = note_filenodes();
	$pg->sql('TRUNCATE stop');
	my @writers = map { $pg->session } 1 .. 2;
	$writers[ $_ - 1 ]->send("CALL write_on($_)") for 1 .. @writers;
	wait_until(sub { note_filenodes() > $before }, "accident $round: a table is truncated");
	if ($round == 1)
	{
		my $pid = $pg->sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker'));
		$pg->crash($pid);
		$_->receive for @writers;
	}
	else
	{
		$pg->node->stop('immediate');
		$_->receive for @writers;
		$pg->node->start;
	}
	insert('busy', 1);
	flushed("accident $round");
	has_arrived('busy', "accident $round", at_least_once => 1);
}

SKIP:
{
	skip 'without the library with faults', 1 unless defined $ENV{KUSTO_FAULTS_POSTGRES};
	my $marker = $pg->node->data_dir . '/kusto_ingest_faults/ring-truncated.1';

	# Whoever starts from now on has this accident; an empty action: nobody.
	my $arm = sub {
		my ($action) = @_;
		my $fault = $action eq '' ? '' : "ring-truncated:$action";
		unlink $marker, $pg->node->data_dir . '/fault.conf';
		append_to_file($pg->node->data_dir . '/fault.conf', "kusto_ingest.fault = '$fault'\n") if $fault ne '';
		$pg->node->reload;
		$pg->poll("SELECT coalesce(current_setting('kusto_ingest.fault', true), '') = '$fault'");
	};
	for my $action (qw(error kill))
	{
		$arm->($action);
		$pg->forget_worker;
		my $sent = $pg->sql(q(SELECT sent_rows FROM kusto.captures WHERE table_name = 'k_busy'));
		my $accident = sub {
			insert('busy', 20000);
			wait_until(sub { -e $marker }, "$action: it was about to commit");
		};
		$action eq 'kill' ? $pg->crash_by($accident) : $accident->();
		$arm->('');
		insert('busy', 1);
		flushed("truncated and not committed, $action");
		has_arrived('busy', "truncated and not committed, $action", at_least_once => 1);
		cmp_ok($pg->sql(q(SELECT sent_rows FROM kusto.captures WHERE table_name = 'k_busy')), '>=', $sent + 20001,
			"truncated and not committed, $action: the mark is there");
		$pg->poll("SELECT sum(pg_total_relation_size('kusto.outbox_' || i)) < 4 * 1024 * 1024 FROM generate_series(0, 2) i", 't',
			"truncated and not committed, $action: and it is done afterwards");
	}
}

is($pg->sql('SELECT count(*) FROM kusto.dead_letter'), 0, 'Kusto has refused nothing');
$kusto->assert_no_violations;
done_testing();
