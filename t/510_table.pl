# kusto_ingest_table: what SELECT * would give is in Kusto, whoever reads it, and however many do.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(literal);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	max_worker_processes = 16
	max_parallel_workers = 8
	max_parallel_maintenance_workers = 2
	kusto_ingest.max_blob_size = '1MB'
	autovacuum = off
	CONF
my $db = KustoCluster::DATABASE;
my $version = $pg->sql('SHOW server_version_num');

sub table_call
{
	my ($relation, $table, %arguments) = @_;
	my $list = join '', map { ", $_ => $arguments{$_}" } sort keys %arguments;
	return 'kusto_ingest_table(' . literal($relation) . ", '$db', '$table'$list)";
}

# How a call is carried out: { id, tables, workers, launched, query }; in a session.
sub export_in
{
	my ($session, $relation, $table, %arguments) = @_;
	$session->sql('SET LOCAL client_min_messages = debug1');
	$session->send('SELECT ' . table_call($relation, $table, %arguments));
	my $outcome = $session->receive;
	die "kusto_ingest_table failed: $outcome->{err}" if $outcome->{err} =~ /^(?:psql:.*?: )?(?:ERROR|FATAL):/m;
	$session->sql('SET LOCAL client_min_messages = warning');
	my %how = (id => $outcome->{out}, query => $outcome->{err} =~ /runs a query/ ? 1 : 0);
	($how{tables}, $how{workers}) = $outcome->{err} =~ /reads (\d+) tables with up to (\d+) parallel workers/;
	($how{launched}) = $outcome->{err} =~ /has launched (\d+) of/;
	return \%how;
}

# The same in a transaction of its own. before: what it does first; user: whose it is.
sub export_table
{
	my ($relation, $table, %arguments) = @_;
	my ($before, $user) = delete @arguments{qw(before user)};
	my $session = $pg->session(user => $user);
	$session->sql('BEGIN; ' . ($before // ''));
	my $how = export_in($session, $relation, $table, %arguments);
	$session->sql('COMMIT');
	$session->quit;
	return $how;
}

# Exports it, and tests that Kusto has what it has of a query in the same transaction: typed rows, in
# any order.
my $number = 0;
sub same_as_query
{
	my ($relation, $name, %arguments) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($before, $user) = delete @arguments{qw(before user)};
	my ($one, $other) = ("A$number", "B$number");
	my $session = $pg->session(user => $user);
	$number++;
	$session->sql('BEGIN; ' . ($before // ''));
	my $how = export_in($session, $relation, $one, create_table => 'true', %arguments);
	my $id = $session->sql('SELECT ' . $pg->ingest_call("SELECT * FROM $relation", $other, create_table => 'true'));
	$session->sql('COMMIT');
	$session->quit;
	my $operation = $pg->succeeds($how->{id}, "$name: it lands");
	my $expected = $pg->succeeds($id, "$name: so does the query");
	is($operation->{rows}, $expected->{rows}, "$name: the operation counts the rows");
	is($operation->{raw_bytes}, $expected->{raw_bytes}, "$name: and the bytes");
	is_deeply($kusto->hash($db, $one), $kusto->hash($db, $other), "$name: the rows are the query's");
	return ($how, $operation, $one);
}

sub blobs_fit
{
	my ($operation, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $blobs = $pg->blobs($operation->{id});
	is_deeply([ map { $_->{ordinal} } @$blobs ], [ 1 .. $operation->{blobs} ], "$name: blobs are numbered without gaps");
	my %ids = map { $_->{source_id} => 1 } @$blobs;
	is(scalar keys %ids, $operation->{blobs}, "$name: their source ids differ");
	my $sum = 0;
	$sum += $_->{rows} for @$blobs;
	is($sum, $operation->{rows}, "$name: their rows are all");
	return;
}

# ---- processes ----

$pg->sql(<<~'SQL');
	CREATE TABLE plain (gone int, i bigint, t text, d timestamptz, n numeric(12,3), j jsonb, a int[],
		twice bigint GENERATED ALWAYS AS (i * 2) STORED);
	ALTER TABLE plain DROP COLUMN gone;
	INSERT INTO plain SELECT i, CASE WHEN i % 7 > 0 THEN repeat(E'x"\n,é', (i % 9)::int) END,
		timestamptz '2024-02-29 12:00:00+00' + i * interval '1 s', i / 8.0, jsonb_build_object('i', i), ARRAY[i, NULL, -i]
	FROM generate_series(1, 60000) i;
	ALTER TABLE plain ADD COLUMN late int DEFAULT 17;
	INSERT INTO plain SELECT -i, 'after' FROM generate_series(1, 100) i;
	DELETE FROM plain WHERE i % 10 = 3;
	SQL
for my $processes (1, 2, 3, 5)
{
	my ($how, $operation) = same_as_query('plain', "parallel => $processes", parallel => $processes);
	is($how->{workers}, $processes - 1, "parallel => $processes: as many workers are planned");
	is($how->{launched}, $processes > 1 ? $processes - 1 : undef, "parallel => $processes: and launched");
	is($operation->{query}, 'SELECT * FROM public.plain', "parallel => $processes: the operation says what it was");
	blobs_fit($operation, "parallel => $processes");
}
is($kusto->count($db, 'A1'), $pg->sql('SELECT count(*) FROM plain'), 'all rows, each once');

is(export_table('plain', 'Chosen', create_table => 'true')->{workers}, 1, 'parallel is left to PostgreSQL: by size')
  or diag $pg->sql(q(SELECT pg_relation_size('plain') / 8192));
is(export_table('plain', 'Chosen', before => 'SET LOCAL min_parallel_table_scan_size = 0')->{workers}, 2,
	'no more than max_parallel_maintenance_workers');
is(export_table('plain', 'Chosen', before => 'SET LOCAL min_parallel_table_scan_size = 0; SET LOCAL max_parallel_maintenance_workers = 0')->{workers}, 0,
	'max_parallel_maintenance_workers = 0: no workers');
is(export_table('plain', 'Chosen', before => "SET LOCAL min_parallel_table_scan_size = '1GB'")->{workers}, 0, 'a table that is too small');
$pg->sql('ALTER TABLE plain SET (parallel_workers = 2)');
is(export_table('plain', 'Chosen', before => "SET LOCAL min_parallel_table_scan_size = '1GB'")->{workers}, 2, 'its storage parameter parallel_workers');
$pg->sql('ALTER TABLE plain SET (parallel_workers = 0)');
is(export_table('plain', 'Chosen')->{workers}, 0, 'which may be 0');
is(export_table('plain', 'Chosen', parallel => 4)->{workers}, 3, 'who asks for more gets more');
$pg->sql('ALTER TABLE plain RESET (parallel_workers)');

same_as_query('plain', 'max_parallel_workers = 0', parallel => 4, before => 'SET LOCAL max_parallel_workers = 0');
my ($how) = same_as_query('plain', 'fewer workers than asked for', parallel => 20, before => 'SET LOCAL max_parallel_workers = 20');
cmp_ok($how->{launched}, '<', 19, 'fewer workers than asked for: it is so') or diag explain $how;
cmp_ok($how->{launched}, '>', 0, 'fewer workers than asked for: but some');

# ---- other relations ----

$pg->sql(<<~'SQL');
	CREATE TABLE nothing (i int, t text);
	CREATE TABLE parted (i int, part int, t text, x float8) PARTITION BY LIST (part);
	CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
	CREATE TABLE parted_2 (x float8, gone text, t text, part int NOT NULL, i int);
	ALTER TABLE parted_2 DROP COLUMN gone;
	ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES IN (2);
	CREATE TABLE parted_3 (t text, i int, x float8, part int) PARTITION BY HASH (i);
	ALTER TABLE parted ATTACH PARTITION parted_3 FOR VALUES IN (3);
	CREATE TABLE parted_3a PARTITION OF parted_3 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE parted_3b (part int, x float8, i int, t text);
	ALTER TABLE parted_3 ATTACH PARTITION parted_3b FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	CREATE TABLE parted_4 PARTITION OF parted FOR VALUES IN (4);
	INSERT INTO parted SELECT i, i % 3 + 1, 'row ' || i, i / 3.0 FROM generate_series(1, 30000) i;
	CREATE TABLE parent (i int, t text);
	CREATE TABLE child (more bool, t text, i int);
	ALTER TABLE child INHERIT parent;
	CREATE TABLE grandchild (extra int) INHERITS (child);
	INSERT INTO parent SELECT i, 'parent' FROM generate_series(1, 5000) i;
	INSERT INTO child SELECT true, 'child', i FROM generate_series(1, 5000) i;
	INSERT INTO grandchild SELECT false, 'grandchild', i, 1 FROM generate_series(1, 5000) i;
	CREATE TABLE childless (i int) PARTITION BY RANGE (i);
	CREATE MATERIALIZED VIEW seen AS SELECT i, t FROM plain;
	CREATE VIEW view AS SELECT i, t FROM plain WHERE i % 2 = 0;
	CREATE UNLOGGED TABLE unlogged AS SELECT i, t FROM plain;
	CREATE TABLE narrow (i int PRIMARY KEY);
	INSERT INTO narrow SELECT i FROM generate_series(1, 20000) i;
	CREATE FOREIGN DATA WRAPPER dummy;
	CREATE TABLE "odd ""name'" ("a b" int, "select" text);
	INSERT INTO "odd ""name'" SELECT i, 'é' FROM generate_series(1, 3000) i;
	SQL
$pg->sql('VACUUM ANALYZE');

($how, my $operation) = same_as_query('nothing', 'a table without rows', parallel => 3);
is($operation->{blobs}, 0, 'a table without rows: no blob');
($how, $operation) = same_as_query('parted', 'partitions with columns in another order', parallel => 3);
is($how->{tables}, 5, 'partitions: each is read');
is($how->{launched}, 2, 'partitions: by all');
blobs_fit($operation, 'partitions');
($how) = same_as_query('parted', 'partitions, one process', parallel => 1);
is($how->{workers}, 0, 'partitions, one process: it is one');
($how) = same_as_query('parted', 'more processes than partitions have rows', parallel => 8);
($how) = same_as_query('parted_3', 'a partition that is partitioned', parallel => 3);
is($how->{tables}, 2, 'a partition that is partitioned: its own');
($how) = same_as_query('parent', 'tables that inherit', parallel => 3);
is($how->{tables}, 3, 'tables that inherit: with the parent');
($how) = same_as_query('child', 'some that inherit', parallel => 3);
is($how->{tables}, 2, 'some that inherit: not the parent');
($how) = same_as_query('childless', 'a partitioned table without partitions', parallel => 3);
($how) = same_as_query('seen', 'a materialized view', parallel => 3);
is($how->{launched}, 2, 'a materialized view: by all');
($how) = same_as_query('view', 'a view', parallel => 3);
is($how->{query}, 1, 'a view: as a query');

# What restricts or hides is not always a condition in the plan: of a partial index none is left, and
# what workers may not compute is computed above them.
$pg->sql(<<~'SQL');
	CREATE TABLE tenants (a int NOT NULL, b int NOT NULL);
	INSERT INTO tenants SELECT i, i % 100 FROM generate_series(1, 20000) i;
	CREATE INDEX ON tenants (a, b) WHERE b = 7;
	VACUUM ANALYZE tenants;
	CREATE VIEW one_tenant WITH (security_barrier) AS SELECT a, b FROM tenants WHERE b = 7;
	CREATE FUNCTION mask(text) RETURNS text LANGUAGE plpgsql STABLE PARALLEL RESTRICTED COST 1
		AS $$ BEGIN RETURN 'masked'; END $$;
	CREATE TABLE people (id bigint, ssn text, pad text);
	INSERT INTO people SELECT i, 'secret ' || i, repeat('p', 200) FROM generate_series(1, 30000) i;
	VACUUM ANALYZE people;
	CREATE VIEW masked AS SELECT id, mask(ssn) AS ssn FROM people;
	SQL
my $gather = 'SET LOCAL parallel_setup_cost = 0; SET LOCAL parallel_tuple_cost = 0; SET LOCAL min_parallel_table_scan_size = 0';
like($pg->sql('EXPLAIN SELECT * FROM one_tenant'), qr/^Index Only Scan[^\n]*$/, 'a plan of a view that has no condition');
($how, $operation) = same_as_query('one_tenant', 'a partial index');
is($operation->{rows}, 200, 'a partial index: the rows of the view');
same_as_query('masked', 'a Gather that computes', before => $gather);
($how) = same_as_query('people', 'a Gather that does not', before => $gather);
is($how->{query}, 0, 'a Gather that does not: no query is needed');
($how) = same_as_query('unlogged', 'an unlogged table', parallel => 3);
is($how->{launched}, 2, 'an unlogged table: by all');
($how) = same_as_query('narrow', 'a table whose index alone would do', parallel => 3, before => 'SET LOCAL enable_seqscan = off');
is($how->{launched}, 2, 'a table whose index alone would do: is read by all') or diag explain $how;
($how) = same_as_query(q("odd ""name'"), 'names that need quotes', parallel => 2);
is($how->{launched}, 1, 'names that need quotes: by all');
($how) = same_as_query('pg_catalog.pg_proc', 'a table of the catalogs', parallel => 2);
is($how->{launched}, 1, 'a table of the catalogs: by all');
($how) = same_as_query('pg_catalog.pg_statistic', 'a table whose values tell their type', parallel => 2);
is($how->{workers}, 0, 'a table whose values tell their type: by one');

$pg->sql('DROP MATERIALIZED VIEW seen; CREATE MATERIALIZED VIEW unfilled AS SELECT 1 AS i WITH NO DATA');
$pg->fails_like('SELECT ' . table_call('unfilled', 'X'), { sqlstate => '55000', message => qr/"unfilled" has not been populated/ },
	'a materialized view that is not populated');

if ($version >= 180000)
{
	$pg->sql('CREATE TABLE virtual (i int, v int GENERATED ALWAYS AS (i + 1) VIRTUAL); INSERT INTO virtual SELECT generate_series(1, 1000)');
	($how) = same_as_query('virtual', 'virtual generated columns', parallel => 3);
	is($how->{query}, 1, 'virtual generated columns: as a query');
}

# A temporary table: its session alone sees all of it.
($how) = same_as_query('brief', 'a temporary table', parallel => 3,
	before => 'CREATE TEMP TABLE brief ON COMMIT DROP AS SELECT i, t FROM plain');
is($how->{workers}, 0, 'a temporary table: by one');
is($how->{query}, 0, 'a temporary table: without a query');
($how) = same_as_query('parent', 'a temporary table that inherits', parallel => 3,
	before => "CREATE TEMP TABLE brief (i int, t text) INHERITS (parent) ON COMMIT DROP; INSERT INTO brief VALUES (-1, 'brief')");
is($how->{workers}, 0, 'a temporary table that inherits: by one');
is($how->{tables}, 4, 'a temporary table that inherits: it is read');
my $other = $pg->session;
$other->sql('CREATE TEMP TABLE theirs (i int, t text) INHERITS (parent); INSERT INTO theirs VALUES (1)');
($how) = same_as_query('parent', "another session's temporary table that inherits", parallel => 3);
is($how->{tables}, 3, "another session's temporary table that inherits: is none of ours");
$other->quit;

# A foreign table, alone and as a partition.
SKIP:
{
	skip 'needs file_fdw', 4 unless $pg->sql(q(SELECT count(*) FROM pg_available_extensions WHERE name = 'file_fdw'));
	my $file = $pg->node->data_dir . '/rows.csv';
	append_to_file($file, "1,4,foreign,0.5\n2,4,too,1.5\n");
	$pg->sql(<<~"SQL");
		CREATE EXTENSION file_fdw;
		CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
		CREATE FOREIGN TABLE far (i int, part int, t text, x float8) SERVER files OPTIONS (filename '$file', format 'csv');
		SQL
	($how) = same_as_query('far', 'a foreign table', parallel => 3);
	is($how->{query}, 1, 'a foreign table: as a query');
	$pg->sql('DROP TABLE parted_4; ALTER TABLE parted ATTACH PARTITION far FOR VALUES IN (4)');
	($how) = same_as_query('parted', 'a foreign partition', parallel => 3);
	is($how->{query}, 1, 'a foreign partition: as a query');
	$pg->sql('ALTER TABLE parted DETACH PARTITION far');
}

# ---- the caller's transaction ----

($how, $operation) = same_as_query('plain', 'what the transaction has done itself', parallel => 3, before => <<~'SQL');
	INSERT INTO plain SELECT i, 'own' FROM generate_series(100001, 105000) i;
	SAVEPOINT a; UPDATE plain SET t = 'changed' WHERE i BETWEEN 1 AND 2000; RELEASE a;
	UPDATE plain SET t = 'changed again' WHERE i BETWEEN 1000 AND 1500;
	SAVEPOINT b; DELETE FROM plain; ROLLBACK TO b;
	DELETE FROM plain WHERE i BETWEEN 1900 AND 3000; CREATE TEMP TABLE other (i int) ON COMMIT DROP
	SQL
is($how->{launched}, 2, 'what the transaction has done itself: is read by all');
($how) = same_as_query('made', 'a table that the transaction has made', parallel => 3,
	before => 'CREATE TABLE made AS SELECT * FROM plain; ALTER TABLE made ALTER i TYPE text');
is($how->{launched}, 2, 'a table that the transaction has made: is read by all');
for my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	my $session = $pg->session;
	my $count = $session->sql("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM plain");
	$pg->sql("INSERT INTO plain SELECT i, 'later' FROM generate_series(200001, 200500) i; UPDATE plain SET t = 'later' WHERE i < 0");
	my $id = $session->sql('SELECT ' . table_call('plain', "L$number", create_table => 'true', parallel => 3));
	$session->sql('COMMIT');
	$session->quit;
	is($pg->succeeds($id, "$level: it lands")->{rows}, $count, "$level: the rows of the transaction's snapshot");
	$pg->sql('DELETE FROM plain WHERE i > 200000');
}

# READ COMMITTED: what others have committed before the statement, and no half of what they do meanwhile.
my $writer = $pg->session;
my $reader = $pg->session;
$reader->sql('BEGIN');
$writer->sql('BEGIN; UPDATE narrow SET i = i + 1000000 WHERE i <= 100; INSERT INTO narrow SELECT generate_series(50001, 50010)');
my @counts;
for my $step ('', 'COMMIT')
{
	$writer->sql($step) if $step;
	push @counts, $reader->sql('SELECT ' . table_call('narrow', 'Committed', create_table => 'true', parallel => 3));
}
$reader->sql('COMMIT');
is_deeply([ map { $pg->succeeds($_, 'beside a writer')->{rows} } @counts ], [ 20000, 20010 ], 'READ COMMITTED: a snapshot for each statement');
$pg->sql('DELETE FROM narrow WHERE i > 50000; INSERT INTO narrow SELECT generate_series(1, 100)');

# Rows that are updated all the time are exported once each, in one version.
$pg->sql('CREATE TABLE moving (i int, version int) WITH (fillfactor = 30); INSERT INTO moving SELECT i, 0 FROM generate_series(1, 5000) i');
$writer->send(<<~'SQL');
	DO $$ BEGIN FOR round IN 1 .. 60 LOOP UPDATE moving SET version = version + 1; COMMIT; END LOOP; END $$
	SQL
my @moving = map { $pg->sql('SELECT ' . table_call('moving', "Moving$_", create_table => 'true', parallel => 3)) } 1 .. 3;
$writer->receive;
for my $i (0 .. $#moving)
{
	$pg->succeeds($moving[$i], 'a table under way');
	my $rows = $kusto->rows($db, 'Moving' . ($i + 1));
	my %versions = map { $_->[1] => 1 } @$rows;
	my %keys = map { $_->[0] => 1 } @$rows;
	is_deeply([ scalar @$rows, scalar keys %keys, scalar keys %versions ], [ 5000, 5000, 1 ], 'every row once, all of one snapshot');
}
$_->quit for $writer, $reader;

# Undone to a savepoint, and caught.
my $session = $pg->session;
my $kept = $session->sql('BEGIN; SELECT ' . table_call('narrow', 'Kept', create_table => 'true', parallel => 2));
my $undone = $session->sql('SAVEPOINT s; SELECT ' . table_call('narrow', 'Undone', create_table => 'true', parallel => 2));
$session->sql('ROLLBACK TO s; COMMIT');
$pg->succeeds($kept, 'the one before a savepoint lands');
is($pg->operation($undone), undef, 'the one that was undone is not on record');
$kusto->settle;
is($kusto->command($db, '.show tables') =~ /Undone/ ? 1 : 0, 0, 'and not in Kusto');
$pg->sql(<<~'SQL');
	CREATE FUNCTION try(relation regclass, OUT result text) LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM kusto_ingest_table(relation, 'db', 'Kept', parallel => 3);
		result := 'staged';
	EXCEPTION WHEN numeric_value_out_of_range THEN
		result := 'caught';
	END $$;
	CREATE TABLE bad AS SELECT i, 1::float8 AS x FROM generate_series(1, 20000) i;
	UPDATE bad SET x = 'NaN' WHERE i = 17000;
	SQL
is($session->sql("SELECT try('bad'), try('narrow'), try('bad')"), 'caught|staged|caught', 'an error of whichever process can be caught');
is($session->sql('SELECT count(*) FROM narrow'), 20000, 'and the session goes on');
is($pg->sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker'"), 0, 'no worker is left');

# ---- values that Kusto cannot hold ----

my $tid = $pg->sql('SELECT ctid FROM bad WHERE i = 17000');
for my $processes (1, 3)
{
	$pg->fails_like('SELECT ' . table_call('bad', 'Kept', parallel => $processes),
		{
			sqlstate => '22003',
			message => qr/^value of column "x" in row \Q$tid\E of table "bad" cannot be held by Kusto type real$/,
			detail => qr/^The value is NaN\.$/,
			hint => qr/on_type_error => 'null'/
		}, "parallel => $processes: the error names the row");
}
$pg->sql(q(UPDATE bad SET x = CASE i % 3 WHEN 0 THEN 'NaN' ELSE 'infinity' END::float8 WHERE i % 100 = 0));
for my $processes (1, 4)
{
	my $id = export_table('bad', "Null$processes", create_table => 'true', on_type_error => q('null'), parallel => $processes)->{id};
	is_deeply($pg->succeeds($id, "on_type_error => 'null', $processes processes")->{type_errors}, { x => { NaN => 66, infinity => 134 } }, "on_type_error => 'null', $processes processes: all are counted")
	  or diag explain $pg->operation($id)->{type_errors};
}

# ---- functions that may not run in workers ----

$pg->sql(<<~'SQL');
	CREATE TYPE shy;
	CREATE FUNCTION shy_in(cstring) RETURNS shy LANGUAGE internal IMMUTABLE STRICT AS 'textin';
	CREATE FUNCTION shy_out(shy) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
	CREATE TYPE shy (INPUT = shy_in, OUTPUT = shy_out, LIKE = text);
	CREATE DOMAIN shy_domain AS shy;
	CREATE TYPE holder AS (i int, s shy_domain);
	CREATE TABLE shy_1 AS SELECT i, 'x'::shy AS s FROM generate_series(1, 3000) i;
	CREATE TABLE shy_2 AS SELECT i, ARRAY['x'::shy_domain] AS s FROM generate_series(1, 3000) i;
	CREATE TABLE shy_3 AS SELECT i, ROW(1, 'x')::holder AS s FROM generate_series(1, 3000) i;
	SQL
for my $table (qw(shy_1 shy_2 shy_3))
{
	($how) = same_as_query($table, "an output function that is PARALLEL UNSAFE, $table", parallel => 3);
	is($how->{workers}, 0, "an output function that is PARALLEL UNSAFE, $table: by one");
}
$pg->sql('ALTER FUNCTION shy_out(shy) PARALLEL SAFE');
for my $table (qw(shy_1 shy_2 shy_3))
{
	($how) = same_as_query($table, "an output function that is PARALLEL SAFE, $table", parallel => 3);
	is($how->{launched}, 2, "an output function that is PARALLEL SAFE, $table: by all");
}

# ---- privileges ----

$pg->sql(<<~'SQL');
	CREATE ROLE reader LOGIN;
	GRANT USAGE ON SCHEMA kusto TO reader;
	GRANT USAGE ON FOREIGN SERVER adx TO reader;
	GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO reader;
	CREATE TABLE mine (i int, secret text);
	INSERT INTO mine SELECT i, 'row ' || i FROM generate_series(1, 4000) i;
	SQL
$pg->sql(sprintf 'CREATE USER MAPPING FOR reader SERVER adx OPTIONS (auth %s, tenant %s, client_id %s, client_secret %s)',
	map { literal($_) } 'client_secret', $kusto->tenant, $kusto->client_id, $kusto->client_secret);
my %denied = (sqlstate => '42501', message => qr/^permission denied for table mine$/);
$pg->fails_like('SELECT ' . table_call('mine', 'X', parallel => 3), \%denied, 'no privilege', user => 'reader');
$pg->sql('GRANT SELECT (i) ON mine TO reader');
$pg->fails_like('SELECT ' . table_call('mine', 'X', parallel => 3), \%denied, 'a privilege on some columns', user => 'reader');
$pg->sql('GRANT SELECT (secret) ON mine TO reader');
($how) = same_as_query('mine', 'a privilege on each column', parallel => 3, user => 'reader');
is($how->{launched}, 2, 'a privilege on each column: workers are the caller, too');
is($pg->operation($how->{id})->{owner}, 'reader', "the operation is the caller's");
$pg->sql('REVOKE ALL ON mine FROM reader; GRANT SELECT ON parted TO reader');
($how) = same_as_query('parted', 'a privilege on the partitioned table alone', parallel => 3, user => 'reader');
is($how->{launched}, 2, 'a privilege on the partitioned table alone: is enough');
$pg->fails_like('SELECT ' . table_call('parted_1', 'X'), { sqlstate => '42501' }, 'but not for a partition', user => 'reader');

# A function with its owner's rights.
$pg->sql(<<~'SQL');
	CREATE FUNCTION export_mine() RETURNS uuid LANGUAGE sql SECURITY DEFINER
	AS $$ SELECT kusto_ingest_table('mine', 'db', 'Definer', server => 'adx', create_table => true, parallel => 3) $$;
	REVOKE ALL ON mine FROM reader; GRANT EXECUTE ON FUNCTION export_mine() TO reader;
	SQL
my $definer = $pg->sql('SELECT export_mine()', user => 'reader');
is($pg->succeeds($definer, 'SECURITY DEFINER')->{rows}, 4000, 'SECURITY DEFINER: workers have those rights, too');

# Row security.
$pg->sql(<<~'SQL');
	GRANT SELECT ON mine TO reader;
	ALTER TABLE mine ENABLE ROW LEVEL SECURITY;
	CREATE POLICY even ON mine FOR SELECT TO reader USING (i % 2 = 0);
	SQL
($how, $operation) = same_as_query('mine', 'row security', parallel => 3, user => 'reader');
is($how->{query}, 1, 'row security: as a query');
is($operation->{rows}, 2000, 'row security: the rows that may be seen');
($how, $operation) = same_as_query('mine', 'row security, for its owner', parallel => 3);
is($how->{launched}, 2, 'row security, for its owner: by all');
is($operation->{rows}, 4000, 'row security, for its owner: all');
$pg->sql(<<~'SQL');
	GRANT SELECT ON tenants TO reader;
	ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
	CREATE POLICY one ON tenants FOR SELECT TO reader USING (b = 7);
	SQL
($how, $operation) = same_as_query('tenants', 'row security by a partial index', user => 'reader');
is($operation->{rows}, 200, 'row security by a partial index: the rows that may be seen');
$pg->fails_like('SET row_security = off; SELECT ' . table_call('mine', 'X'), { sqlstate => '42501', message => qr/row-level security/ },
	'row_security = off', user => 'reader');

# ---- Kusto's properties ----

$how = export_table('narrow', 'Tagged', create_table => 'true', parallel => 3, tags => q(ARRAY['drop-by:x']),
	creation_time => q('2024-02-29 12:00:00+00'), exactly_once => q('on'));
$pg->succeeds($how->{id}, 'tags and creation time');
is(scalar(grep { !grep { $_ eq 'drop-by:x' } @{ $_->{tags} } } @{ $kusto->extents($db, 'Tagged') }), 0, 'every blob has the tags');
for my $turn (1, 2)
{
	$how = export_table('narrow', 'Once', create_table => 'true', parallel => 3, ingest_if_not_exists => q(ARRAY['k']), tags => q(ARRAY['ingest-by:k']));
	is($how->{workers}, 0, 'ingest_if_not_exists: by one, because a second blob would be skipped');
	$pg->ends_as($how->{id}, $turn == 1 ? 'succeeded' : 'skipped', "ingest_if_not_exists, call $turn");
}
is($kusto->count($db, 'Once'), 20000, 'ingest_if_not_exists: once');

$kusto->settle;
$kusto->assert_no_violations;
done_testing();
