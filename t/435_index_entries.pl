# Most small rows of the outbox have no index entry: each is led by one in its page that has, whatever is
# rolled back, whoever else writes to the page, and when a table was rewritten. All are found.
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
	kusto_ingest.flush_interval = 0
	kusto_ingest.naptime = 200ms
	autovacuum = off
	CONF
$pg->sql("CREATE TABLE $_ (id bigint PRIMARY KEY, note text); SELECT kusto_capture('$_', '$db', 'k_$_', create_table => true)") for qw(a b);

my $amcheck = $pg->sql(q(SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'));
$pg->sql('CREATE EXTENSION amcheck') if $amcheck;

# ---- helpers ----

# While it is there, the worker reads nothing and truncates nothing.
my $blocker = $pg->session;
sub hold { return $blocker->sql('BEGIN; LOCK kusto.dead_letter') }
sub release { return $blocker->sql('COMMIT') }

my $rows = <<~'SQL';
	(SELECT tableoid, (ctid::text::point)[0] AS page, txid::text::bigint AS txid, seq, capture, entry, data FROM kusto.outbox_0
		UNION ALL SELECT tableoid, (ctid::text::point)[0], txid::text::bigint, seq, capture, entry, data FROM kusto.outbox_1
		UNION ALL SELECT tableoid, (ctid::text::point)[0], txid::text::bigint, seq, capture, entry, data FROM kusto.outbox_2)
	SQL

# Rows that the index does not lead to.
sub lost
{
	return $pg->sql(<<~"SQL");
		SELECT count(*) FROM $rows n
		WHERE n.entry = 'n' AND NOT EXISTS (
			SELECT FROM $rows s
			WHERE s.entry = 's' AND s.tableoid = n.tableoid AND s.page = n.page AND s.capture = n.capture
				AND (s.txid, s.seq) <= (n.txid, n.seq) AND n.txid - s.txid <= 1024)
		SQL
}

# How the last changes of a table are found, the oldest first.
sub entries
{
	my ($table, $n) = @_;
	return $pg->sql(<<~"SQL");
		SELECT string_agg(entry::text, '' ORDER BY txid, seq)
		FROM (SELECT * FROM $rows r WHERE capture = (SELECT id FROM kusto.capture WHERE table_name = 'k_$table')
			ORDER BY txid DESC, seq DESC LIMIT $n) r
		SQL
}

my $next = 1;
sub insert
{
	my ($session, $table, $bytes) = @_;
	$session->sql("INSERT INTO $table VALUES (" . $next++ . ", repeat('x', " . ($bytes // 20) . '))');
	return;
}

sub arrives
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(lost(), 0, "$name: the index leads to each row");
	$pg->sql("SELECT bt_index_check('kusto.outbox_' || i || '_batch', true) FROM generate_series(0, 2) i") if $amcheck;
	release();
	is($pg->sql(q(SELECT kusto_flush('60 s'))), 't', "$name: all is sent");
	$pg->poll('SELECT count(*) = 0 FROM kusto.operations WHERE finished_at IS NULL');
	$kusto->settle;
	for my $table (qw(a b))
	{
		my @ids = sort { $a <=> $b } map { $_->[4] } @{ $kusto->rows($db, "k_$table") };
		is_deeply(\@ids, [ split /\n/, $pg->sql("SELECT id FROM $table ORDER BY id") ], "$name: of $table each row once");
	}
	is($pg->sql('SELECT sum(lag_rows) FROM kusto.captures'), 0, "$name: nothing is left");
	return;
}

# ---- one session ----

hold();
my $one = $pg->session;
for (1 .. 100) { insert($one, $_) for qw(a b) }
cmp_ok($pg->sql("SELECT count(*) FROM $rows r WHERE entry = 's'"), '<=', 12, 'by turns: one of a page and a table has one');
cmp_ok($pg->sql("SELECT count(*) FROM $rows r WHERE entry = 'n'"), '>=', 188, 'by turns: the others do without');
insert($one, 'a', 2000);
is(entries('a', 1), 'o', 'a large one: it has its own');
arrives('one session');

# ---- what is rolled back leads nobody ----

hold();
# Of four rows one may be the first of a page.
insert($one, 'a') for 1 .. 4;
like(entries('a', 4), qr/n/, 'at first there is a leader');
$one->sql("BEGIN; INSERT INTO a VALUES (-1, 'never'); ROLLBACK");
insert($one, 'a') for 1 .. 4;
like(entries('a', 4), qr/^s.*n/, 'after a rollback: there is a new one');
$one->sql("BEGIN; SAVEPOINT s; INSERT INTO a VALUES (-1, 'never'); ROLLBACK TO s; COMMIT");
insert($one, 'a') for 1 .. 4;
like(entries('a', 4), qr/^s.*n/, 'after a rollback to a savepoint, too');
$one->sql("BEGIN; SAVEPOINT s; INSERT INTO a VALUES (" . $next++ . ", 'kept'); RELEASE s; COMMIT") for 1 .. 3;
like(entries('a', 3), qr/n/, 'but not after one that was released');
$one->sql("BEGIN; INSERT INTO a VALUES (" . $next++ . ", 'prepared'); PREPARE TRANSACTION 'p'");
insert($one, 'a') for 1 .. 4;
like(entries('a', 4), qr/^s.*n/, 'nor does what is prepared');
$pg->sql("ROLLBACK PREPARED 'p'");
$one->sql("BEGIN; INSERT INTO a VALUES (-1, 'never'); INSERT INTO b VALUES (-1, 'never'); ROLLBACK");
$pg->sql('VACUUM kusto.outbox_0, kusto.outbox_1, kusto.outbox_2');
insert($one, $_) for qw(a b a b);
$pg->sql('DELETE FROM a WHERE id = -1');
arrives('rolled back');

# ---- far behind its leader ----

hold();
insert($one, 'a') for 1 .. 4;
like(entries('a', 4), qr/n/, 'at first there is a leader');
my $other = $pg->session;
$other->sql('DO $$ BEGIN FOR i IN 1 .. 1100 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$');
insert($one, 'a') for 1 .. 4;
like(entries('a', 4), qr/^s.*n/, 'many transactions later: there is a new one');
arrives('far behind');

# ---- in a page that others fill ----

hold();
my $table = $pg->sql(q(SELECT 'kusto.outbox_' || (last_value / 8192) % 3 FROM kusto.change_number));
my ($slow, $fast) = map { $pg->session } 1 .. 2;
sub last_page { return $pg->sql("SELECT pg_relation_size('$table') / 8192 - 1") }
insert($slow, 'a') for 1 .. 4;
like(entries('a', 4), qr/n/, 'a page that others fill: at first there is a leader');
my $page = last_page();
for (1 .. 200)
{
	insert($fast, 'b');
	last if last_page() > $page;
}
is(last_page(), $page + 1, 'others have filled it');
insert($slow, 'a') for 1 .. 4;
like(entries('a', 4), qr/^s.*n/, 'who had expected to find room leads anew, elsewhere');
$slow->quit;
$pg->poll("SELECT sum(n_tup_del) > 0 FROM pg_stat_user_tables WHERE relname ~ '^outbox_'", 't', 'what nobody would have found is gone');
arrives('a page that others fill');

# ---- a table that is rewritten ----

for my $how ('VACUUM (FULL)', 'CLUSTER')
{
	hold();
	my $writer = $pg->session;
	for (1 .. 4)
	{
		$writer->sql("BEGIN; INSERT INTO b VALUES (-1, repeat('never', 400)); ROLLBACK");
		insert($writer, 'a') for 1 .. 60;
	}
	is(lost(), 0, "$how: before it, the index leads to each row");
	for my $i (0 .. 2)
	{
		if ($how eq 'CLUSTER')
		{
			$pg->sql("CREATE INDEX odd_order ON kusto.outbox_$i (seq DESC); CLUSTER kusto.outbox_$i USING odd_order; DROP INDEX kusto.odd_order");
		}
		else
		{
			$pg->sql("$how kusto.outbox_$i");
		}
	}
	cmp_ok(lost(), '>', 0, "$how: then it does not");
	insert($writer, 'a') for 1 .. 3;
	insert($one, 'a') for 1 .. 3;
	my $ids = $pg->sql('SELECT count(*) FROM a');
	release();
	is($pg->sql(q(SELECT kusto_flush('60 s'))), 't', "$how: all is sent");
	$pg->poll('SELECT count(*) = 0 FROM kusto.operations WHERE finished_at IS NULL');
	$kusto->settle;
	is(scalar @{ $kusto->rows($db, 'k_a') }, $ids, "$how: and nothing is missing");
	like(slurp_file($pg->node->logfile), qr/index entries were added for \d+ rows of table "outbox_\d", which has been rewritten/,
		"$how: the log tells of it");
	truncate $pg->node->logfile, 0;
	is($pg->sql('SELECT sum(lag_rows) FROM kusto.captures'), 0, "$how: nothing is left");
	hold();
	arrives($how);
}

$kusto->assert_no_violations;
done_testing();
