# kusto_capture_views(): its commands run, and what they make shows the captured table as it is and
# its history without duplicates.
use strict;
use warnings;

use KustoCluster qw(literal wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.flush_interval = 0
	CONF

# Creates and captures a table, and runs what kusto_capture_views() says, before anything is sent.
sub capture_with_views
{
	my ($relation, $columns, $table) = @_;
	$pg->sql("CREATE TABLE $relation ($columns)");
	$pg->sql('SELECT kusto_capture(' . join(', ', map { literal($_) } $relation, $db, $table) . ')');
	my @commands = split /\n/, $pg->sql('SELECT command FROM kusto_capture_views(' . literal($relation) . ')');
	$pg->sql('SELECT kusto_command(' . literal($_) . ')') for @commands;
	return @commands;
}

# All that is committed is in Kusto; how many row changes that makes.
sub arrive
{
	my ($table, $count) = @_;
	is($pg->sql(q(SELECT kusto_flush('120 s'))), 't', 'all is sent');
	wait_until(sub { $kusto->count($db, $table) >= $count }, "$count rows in $table");
	return;
}

# The own columns of all rows of a function in Kusto, as the table has them.
sub shows
{
	my ($relation, $function, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $kql = literal(qq(["$function"]()));
	my $shown = "SELECT v - '{_op,_txid,_seq,_changed_at,_old}'::text[] FROM kusto_query($kql) v";
	my $there = "SELECT to_jsonb(t) FROM $relation t";
	return is($pg->sql("SELECT count(*) FROM (($shown EXCEPT ALL $there) UNION ALL ($there EXCEPT ALL $shown)) d"), 0, $name)
	  || diag $pg->sql($shown), "\n\n", $pg->sql($there);
}

my @commands = capture_with_views('v', 'id int, s text, n int, PRIMARY KEY (id, s)', 'V');
is(scalar @commands, 4, 'table, latest changes, current rows and history');
# A key may be an empty string, as that of a truncation is.
$pg->sql(q(INSERT INTO v VALUES (1, '', 1), (2, 'b', 2), (3, 'c', 3), (4, 'd', 4)));
arrive('V', 4);
shows('v', 'V_current', 'inserted rows');
$pg->sql(q(UPDATE v SET n = 10 WHERE id <= 2; DELETE FROM v WHERE id = 3; UPDATE v SET s = 'moved' WHERE id = 4));
arrive('V', 9);
shows('v', 'V_current', 'updated and deleted ones, and one of another key');
$pg->sql(q(INSERT INTO v VALUES (3, 'c', 30)));
arrive('V', 10);
shows('v', 'V_current', 'one that is back');
$pg->sql(q(TRUNCATE v));
arrive('V', 11);
shows('v', 'V_current', 'none after a TRUNCATE');
$pg->sql(q(INSERT INTO v VALUES (1, '', 5), (5, '', NULL)));
arrive('V', 13);
shows('v', 'V_current', 'those after it');

# What streaming sends twice, should the answer be lost.
$pg->sql('SELECT kusto_command(' . literal('.set-or-append V <| V | where _op != "snapshot"') . ')');
is($kusto->count($db, 'V'), 26, 'each change is there twice');
shows('v', 'V_current', 'the current rows are the same');
my $history = $pg->sql(q{SELECT string_agg(concat(v ->> '_op', v ->> 'id'), ' ' ORDER BY n) FROM kusto_query('V_history()') WITH ORDINALITY q (v, n)});
is($history, 'insert1 insert2 insert3 insert4 update1 update2 delete3 delete4 update4 insert3 truncate insert1 insert5',
	'and the history has each of them once, in order');

# Rows that were there before share a _seq.
$pg->sql('CREATE TABLE w (id int PRIMARY KEY, s text)');
$pg->sql(q(INSERT INTO w SELECT g, 's' || g FROM generate_series(1, 5) g));
my $operation = $pg->sql("SELECT kusto_capture('w', '$db', 'W', create_table => true, snapshot => true)");
$pg->succeeds($operation);
# Views that come later know them all the same.
$pg->sql('SELECT kusto_command(' . literal($_) . ')')
  for split /\n/, $pg->sql(q(SELECT command FROM kusto_capture_views('w')));
$pg->sql(q(UPDATE w SET s = 'new' WHERE id = 2; DELETE FROM w WHERE id = 3));
arrive('W', 7);
shows('w', 'W_current', 'existing rows, and what has become of them');
is($pg->sql(q{SELECT count(*) FROM kusto_query('W_history()')}), 7, 'all of which are in the history');

# Names that need quotes, and a key whose type Kusto does not group by.
capture_with_views('"odd name"', q("my key" jsonb PRIMARY KEY, "_truncated" int, "Ümlaut" text), 'Odd-Name 1');
$pg->sql(q(INSERT INTO "odd name" VALUES ('{"a": 1}', 1, 'ä'), ('{"a": 2}', 2, 'ö'); DELETE FROM "odd name" WHERE "my key" = '{"a": 1}'));
arrive('Odd-Name 1', 3);
shows('"odd name"', 'Odd-Name 1_current', 'odd names, and a key that is JSON');

$kusto->assert_no_violations;
done_testing();
