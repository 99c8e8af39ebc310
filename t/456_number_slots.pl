# Numbers of row changes when more databases draw than there are slots in shared memory: whose slot is given
# away in the middle of a transaction goes on behind its own numbers, not with those of another database.
use strict;
use warnings;

use KustoCluster;
use PostgreSQL::Test::Utils;
use Test::More;

# As in outbox_number.c.
use constant SLOTS => 64;

my $pg = KustoCluster->start(undef, conf => <<~'CONF');
	shared_preload_libraries = 'kusto_ingest'
	autovacuum = off
	CONF
$pg->sql('CREATE DATABASE pattern');
my $install = q(CREATE TABLE t (id bigint PRIMARY KEY);
	CREATE SERVER adx FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'http://127.0.0.1:1', database 'db');
	CREATE USER MAPPING FOR CURRENT_USER SERVER adx OPTIONS (auth 'none'));
$pg->sql("CREATE EXTENSION kusto_ingest; $install", dbname => 'pattern');
$pg->sql("$install; SELECT kusto_capture('t', 'db', 'T')");

# Rolled back, so that no worker comes; a slot and what is taken from the sequence stay.
sub draw_in
{
	my ($dbname) = @_;
	$pg->sql(q(BEGIN; SELECT kusto_capture('t', 'db', 'T'); INSERT INTO t VALUES (1), (2); ROLLBACK), dbname => $dbname);
	return;
}

# The first slot that is given away is the second one: one database comes before ours, and the others then
# need one more than there are.
my @databases = map { "d$_" } 1 .. SLOTS;
$pg->sql(join '', map { "CREATE DATABASE $_ TEMPLATE pattern;\n" } @databases);
draw_in(shift @databases);

my $session = $pg->session;
$session->sql("INSERT INTO t VALUES ($_)") for 1 .. 60;
$session->sql('BEGIN; INSERT INTO t VALUES (61)');
draw_in($_) for @databases;
$session->sql("INSERT INTO t VALUES ($_)") for 62 .. 64;
$session->sql('COMMIT');

my $changes = <<~'SQL';
	SELECT split_part(line, ',', 5)::bigint AS id, split_part(line, ',', 3)::bigint AS seq
	FROM (SELECT * FROM kusto.outbox_0 UNION ALL SELECT * FROM kusto.outbox_1 UNION ALL SELECT * FROM kusto.outbox_2) o,
		regexp_split_to_table(convert_from(data, 'UTF8'), E'\n') AS line
	WHERE capture > 0 AND line <> ''
	SQL
is($pg->sql("SELECT count(*), count(DISTINCT seq) FROM ($changes) c"), '64|64', 'no _seq comes twice');
is($pg->sql(<<~"SQL"), '', 'they ascend');
	SELECT string_agg(format('%s has %s behind %s', id, seq, before), '; ')
	FROM (SELECT id, seq, lag(seq) OVER (ORDER BY id) AS before FROM ($changes) c) c WHERE seq <= before
	SQL
cmp_ok($pg->sql("SELECT max(seq) - min(seq) FROM ($changes) c") >> 20, '>', 8000, 'the slot was given away');
unlike(slurp_file($pg->node->logfile), qr/TRAP|PANIC/, 'no assertion has failed');
done_testing();
