# kusto_ingest_table and what its processes have in common: the server's shared cache, the session's
# settings, the server's encoding; and where it is called from.
use strict;
use warnings;

use KustoCluster qw(literal);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	shared_preload_libraries = 'kusto_ingest'
	max_worker_processes = 16
	max_parallel_workers = 8
	CONF
my $db = KustoCluster::DATABASE;

sub call
{
	my ($relation, $table, %arguments) = @_;
	my $list = join '', map { ", $_ => $arguments{$_}" } sort keys %arguments;
	return 'kusto_ingest_table(' . literal($relation) . ", '$db', '$table'$list)";
}

$pg->sql(<<~'SQL');
	CREATE TABLE money AS SELECT i, (i / 4.0)::numeric::money AS m, repeat('x', 100) AS t FROM generate_series(1, 20000) i;
	CREATE TABLE dates AS SELECT i, timestamptz '2024-02-29 12:00:00+00' + i * interval '1 min' AS at, i::float8 / 3 AS x,
		point(i, i / 3.0) AS p, tstzrange('2024-02-29 00:00:00+00', NULL) AS r, interval '1 day' * i AS s, '\x00ff'::bytea AS b
	FROM generate_series(1, 20000) i;
	SQL

# ---- the shared cache ----

my $session = $pg->session;
$pg->succeeds($session->sql('SELECT ' . call('money', 'Warm', create_table => 'true', parallel => 3)), 'the first export');
my $asked = sub { return scalar grep { $_->{service} eq 'login' || $_->{path} =~ m{^/v1/rest/(?:mgmt|auth)} } $kusto->log };
my $before = $asked->();
$session->sql('BEGIN; SELECT ' . call('money', 'Warm', parallel => 3) . '; ROLLBACK') for 1 .. 3;
is($asked->(), $before, 'workers find tokens and resources in shared memory, when the library is preloaded');
$session->quit;

# ---- settings ----

my $tables = 0;

sub same
{
	my ($relation, $settings, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $table = ucfirst($relation) . ++$tables;
	my $one = $pg->sql("SET client_min_messages = error; $settings; SELECT " . call($relation, $table, create_table => 'true', parallel => 3));
	my $other = $pg->sql('SELECT ' . $pg->ingest_call("SELECT * FROM $relation", "${table}_", create_table => 'true'));
	$pg->succeeds($_, "$name: it lands") for $one, $other;
	is_deeply($kusto->hash($db, $table), $kusto->hash($db, "${table}_"), "$name: no difference");
	return $one;
}

for my $settings (
	q(SET DateStyle = 'German'; SET TimeZone = 'Asia/Kathmandu'),
	q(SET IntervalStyle = 'iso_8601'; SET extra_float_digits = -5; SET bytea_output = 'escape'))
{
	same('dates', $settings, $settings);
}
for my $threads (0, 1, 3)
{
	same('money', "SET kusto_ingest.compression_threads = $threads", "$threads threads that compress in each process");
}
my $id = same('money', q(SET kusto_ingest.max_blob_size = '1MB'; SET kusto_ingest.compression_level = 9), 'blobs of 1 MB');
is(scalar(grep { $_->{raw_bytes} > 1024**2 } @{ $pg->blobs($id) }), 0, 'a setting that each process obeys');

# ---- callers ----

$pg->sql(<<~'SQL');
	CREATE PROCEDURE export_twice(INOUT first uuid, INOUT second uuid) LANGUAGE plpgsql AS $$
	BEGIN
		first := kusto_ingest_table('money', 'db', 'Called', create_table => true, parallel => 3);
		COMMIT;
		second := kusto_ingest_table('money', 'db', 'Called', parallel => 3);
	END $$;
	SQL
my ($first, $second) = split /\|/, $pg->sql('CALL export_twice(NULL, NULL)');
$pg->succeeds($_, 'in a procedure that commits') for $first, $second;
is($kusto->count($db, 'Called'), 40_000, 'in a procedure that commits: both');
$pg->sql("CREATE TABLE several (name text); INSERT INTO several VALUES ('money'), ('dates')");
my @ids = split /\n/, $pg->sql("SELECT kusto_ingest_table(name::regclass, '$db', 'Several_' || name, create_table => true, parallel => 2) FROM several");
$pg->succeeds($_, 'for each row of a query') for @ids;
is($kusto->count($db, "Several_$_"), 20_000, "for each row of a query: $_") for qw(money dates);

# In a job: the process of another session leads.
my $job = $pg->async("SELECT kusto_ingest_table('money', '$db', 'Inner', create_table => true, parallel => 3) AS id", 'Outer', create_table => 'true');
$pg->succeeds($job, 'in a job');
my $inner = $pg->sql("SELECT id FROM kusto.operations WHERE table_name = 'Inner'");
is($pg->succeeds($inner, 'in a job: its export')->{rows}, 20_000, 'in a job: all rows');

# Inside of a query that is exported.
my $outer = $pg->ingest("SELECT i, (kusto_ingest_table('money', '$db', 'Nested', create_table => true, parallel => 2) IS NOT NULL) AS done FROM generate_series(1, 2) i",
	'Around', create_table => 'true');
$pg->succeeds($outer, 'inside of another export');
$pg->poll('SELECT count(*) = 0 FROM kusto.operation WHERE finished_at IS NULL');
is($kusto->count($db, 'Nested'), 40_000, 'inside of another export: both');

# Prepared.
$pg->sql("BEGIN; SELECT " . call('money', 'Prepared', create_table => 'true', parallel => 3) . "; PREPARE TRANSACTION 'export'");
$kusto->settle;
is($pg->sql("SELECT count(*) FROM kusto.operations WHERE table_name = 'Prepared'"), 0, 'a prepared transaction: not yet');
$pg->sql("COMMIT PREPARED 'export'");
my $prepared = $pg->sql("SELECT id FROM kusto.operations WHERE table_name = 'Prepared'");
is($pg->succeeds($prepared, 'a prepared transaction: it lands')->{rows}, 20_000, 'a prepared transaction: all rows');

# ---- another encoding ----

$pg->sql(q(CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0));
{
	local $pg->{dbname} = 'latin';
	$pg->sql('CREATE EXTENSION kusto_ingest');
	$pg->connect_to($kusto);
	$pg->sql(q(CREATE TABLE accents AS SELECT i, convert_from('\xe9e8fc'::bytea, 'LATIN1') AS t FROM generate_series(1, 20000) i));
	my $latin = $pg->sql('SELECT ' . call('accents', 'Latin', create_table => 'true', parallel => 3, tags => q(ARRAY[convert_from('\xe9'::bytea, 'LATIN1')])));
	is($pg->succeeds($latin, 'LATIN1')->{rows}, 20_000, 'LATIN1: all rows');
	like($pg->sql(q(SELECT r FROM kusto_query('Latin | summarize c = count() by t', 'db') r)), qr/"c": 20000/, 'LATIN1: of one text');
	is($kusto->rows($db, 'Latin')->[0][1], "\x{e9}\x{e8}\x{fc}", 'LATIN1: which is the right one');
}

$kusto->settle;
$kusto->assert_no_violations;
done_testing();
