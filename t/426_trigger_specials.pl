# Row changes wherever they come from: every way in which PostgreSQL changes rows of a captured table,
# in tables of every kind. What Kusto has of them, replayed, is the table.
use strict;
use warnings;
use utf8;

use JSON::PP;
use KustoCluster qw(literal);
use KustoLocal;
use PostgreSQL::Test::Utils;
use RowChanges;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => "kusto_ingest.flush_interval = 0\n");
my $version = $pg->sql('SHOW server_version_num');
my $changes = RowChanges->new($pg, $kusto);

# psql wants bytes.
sub sql
{
	my ($text, @rest) = @_;
	utf8::encode($text);
	return $pg->sql($text, @rest);
}

sub state_of
{
	my ($relation, $column) = @_;
	return $pg->sql("SELECT $column FROM kusto.captures WHERE relation = '$relation'::regclass");
}

sub refused
{
	my ($relation, $detail, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $error = $pg->fails("SELECT kusto_capture('$relation', '$db', 'Refused')");
	is($error->{sqlstate}, '42809', "$name is refused") or diag $error->{text};
	return like($error->{detail}, $detail, "$name: with the reason");
}

# ---- statements ----

$pg->sql('CREATE TABLE item (id int PRIMARY KEY, name text, n bigint, at timestamptz, price numeric(10, 3), tags text[], doc jsonb)');
$changes->capture('item', 'Item');
$pg->sql(<<~'SQL');
	INSERT INTO item VALUES (1, 'one', 10, '2024-05-25 08:20:03.123456+02', 1.500, '{a,NULL,"b c"}', '{"k": [1, null, "x"]}');
	INSERT INTO item VALUES (2, E'quo"te,\nline', -1, NULL, NULL, '{}', 'null'), (3, '', NULL, '1999-12-31', 99999.999, NULL, NULL);
	UPDATE item SET n = n + 1 WHERE id < 3;
	UPDATE item SET name = 'nobody' WHERE false;
	DELETE FROM item WHERE id = 2;
	SQL
$changes->ops_are('Item', [ 'insert 1', 'insert 2', 'insert 3', 'update 1', 'update 2', 'delete 2' ], 'insert, update and delete', 'id');
my @history = $changes->history('Item');
is_deeply($history[0]{row}, { id => 1, name => 'one', n => 10, at => '2024-05-25T06:20:03.1234560Z', price => '1.5', tags => [ 'a', undef, 'b c' ], doc => { k => [ 1, undef, 'x' ] } },
	'values are typed');
is_deeply($history[5]{row}{name}, qq(quo"te,\nline), 'a deleted row has the values that it had');
is($history[1]{txid}, $history[2]{txid}, 'rows of one statement have one transaction');
isnt($history[0]{txid}, $history[1]{txid}, 'statements on their own have one each');
like($history[0]{changed_at}, qr/^20\d\d-\d\d-\d\dT/, 'and the time of the change');
$changes->replays('item', 'Item', ['id'], 'plain statements');

$pg->sql(<<~'SQL');
	INSERT INTO item (id, n) VALUES (1, 100), (4, 400) ON CONFLICT (id) DO UPDATE SET n = excluded.n;
	INSERT INTO item (id, n) VALUES (1, 7), (5, 500) ON CONFLICT DO NOTHING;
	SQL
my @after = @{ $changes->ops('Item', 'id', 'n') };
$changes->settle;
@after = @{ $changes->ops('Item', 'id', 'n') };
is_deeply([ sort @after[6 .. 8] ], [ 'insert 4/400', 'insert 5/500', 'update 1/100' ], 'ON CONFLICT DO UPDATE is an insert or an update, DO NOTHING an insert or nothing');
$changes->replays('item', 'Item', ['id'], 'ON CONFLICT');

$pg->sql(<<~'SQL');
	COPY item (id, name) FROM stdin;
	10	ten
	11	\N
	12	tab\there
	\.
	INSERT INTO item (id, name, n) SELECT i, 'row ' || i, i FROM generate_series(100, 3099) i;
	CREATE TABLE other (id int, n bigint);
	INSERT INTO other SELECT i, -i FROM generate_series(100, 599) i;
	UPDATE item SET n = other.n FROM other WHERE other.id = item.id;
	DELETE FROM item USING other WHERE other.id = item.id AND item.id < 200;
	UPDATE item SET id = id + 100000 WHERE id BETWEEN 300 AND 309;
	UPDATE item SET id = 100000 + 309 - (id - 100300) + 300 WHERE id BETWEEN 100300 AND 100304;
	SQL
$changes->replays('item', 'Item', ['id'], 'COPY, INSERT SELECT, UPDATE FROM, DELETE USING, new keys');
is(scalar(grep { $_->{op} eq 'insert' && ($_->{row}{id} // 0) >= 100 } $changes->history('Item')), 3000, 'all rows of an INSERT SELECT');
my %ops_of_key;
push @{ $ops_of_key{ $_->{row}{id} } }, $_->{op} for $changes->history('Item');
is_deeply($ops_of_key{305}, [qw(insert update delete)], 'a changed key is a delete of the old one');
is_deeply($ops_of_key{100305}, ['update'], 'and an update to the new one');

$pg->sql(<<~'SQL');
	WITH gone AS (DELETE FROM item WHERE id BETWEEN 1000 AND 1009 RETURNING *),
		new AS (INSERT INTO item SELECT id + 1000000, name, n FROM gone RETURNING id),
		changed AS (UPDATE item SET name = 'changed' WHERE id BETWEEN 1010 AND 1019 RETURNING id)
	SELECT count(*) FROM new, changed;
	SQL
$changes->replays('item', 'Item', ['id'], 'a query with three statements that change rows');

SKIP:
{
	skip 'MERGE came with PostgreSQL 15', 2 if $version < 150000;
	$pg->sql(<<~'SQL');
		MERGE INTO item USING (SELECT i AS id FROM generate_series(2000, 5010, 6) i) s ON s.id = item.id
		WHEN MATCHED AND s.id % 4 = 0 THEN DELETE
		WHEN MATCHED THEN UPDATE SET name = 'merged', n = s.id
		WHEN NOT MATCHED THEN INSERT (id, name) VALUES (s.id, 'merged in');
		SQL
	$changes->replays('item', 'Item', ['id'], 'MERGE');
	my %of_merge = map { $_->{op} => 1 } grep { ($_->{row}{name} // '') =~ /^merged/ } $changes->history('Item');
	is_deeply(\%of_merge, { insert => 1, update => 1 }, 'which was an insert and an update');
}

$pg->sql(q(TRUNCATE item; INSERT INTO item (id) VALUES (1)));
$changes->replays('item', 'Item', ['id'], 'TRUNCATE');
is_deeply([ grep { $_->{op} eq 'truncate' } $changes->history('Item') ]->[0]{row}, {}, 'a truncate has no values');
my $before = @{ $changes->ops('Item') };
$pg->sql(q(BEGIN; INSERT INTO item (id) VALUES (2); TRUNCATE item; ROLLBACK));
$pg->sql(q(BEGIN; SAVEPOINT a; DELETE FROM item; ROLLBACK TO a; INSERT INTO item (id) VALUES (3); COMMIT));
$changes->replays('item', 'Item', ['id'], 'ROLLBACK');
is(scalar @{ $changes->ops('Item') }, $before + 1, 'has nothing sent of what was undone');

# ---- triggers of others ----

$pg->sql(<<~'SQL');
	CREATE TABLE touched (id int PRIMARY KEY, name text, version int);
	CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS
	'BEGIN NEW.version = coalesce(OLD.version, 0) + 1; IF NEW.name = ''no'' THEN RETURN NULL; END IF; RETURN NEW; END';
	CREATE TRIGGER a BEFORE INSERT OR UPDATE ON touched FOR EACH ROW EXECUTE FUNCTION touch();
	CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS
	'BEGIN UPDATE touched SET name = name || ''!'' WHERE id = NEW.id AND name NOT LIKE ''%!!''; RETURN NULL; END';
	CREATE TRIGGER "A" AFTER INSERT OR UPDATE ON touched FOR EACH ROW EXECUTE FUNCTION again();
	SQL
$changes->capture('touched', 'Touched');
$pg->sql(q(INSERT INTO touched VALUES (1, 'a'), (2, 'no'), (3, 'c'); UPDATE touched SET name = 'd' WHERE id = 3; UPDATE touched SET name = 'no' WHERE id = 1));
$changes->replays('touched', 'Touched', ['id'], 'BEFORE triggers that change rows, AFTER triggers that change them again');
is($pg->sql(q(SELECT string_agg(name || version, ',' ORDER BY id) FROM touched)), 'a!!3,d!!6', 'which they did');

$pg->sql(<<~'SQL');
	CREATE TABLE parent (id int PRIMARY KEY, name text);
	CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE, note text);
	CREATE TABLE pet (id int PRIMARY KEY, owner int REFERENCES child ON DELETE SET NULL);
	CREATE TABLE node (id int PRIMARY KEY, up int REFERENCES node ON DELETE CASCADE);
	SQL
$changes->capture($_, ucfirst) for qw(parent child pet node);
$pg->sql(<<~'SQL');
	INSERT INTO parent SELECT i, 'p' || i FROM generate_series(1, 20) i;
	INSERT INTO child SELECT i, 1 + i % 20, 'c' FROM generate_series(1, 200) i;
	INSERT INTO pet SELECT i, 1 + i % 200 FROM generate_series(1, 300) i;
	UPDATE parent SET id = id + 1000 WHERE id <= 3;
	DELETE FROM parent WHERE id BETWEEN 4 AND 9;
	INSERT INTO node SELECT i, CASE WHEN i > 1 THEN i / 2 END FROM generate_series(1, 127) i;
	DELETE FROM node WHERE id = 3;
	BEGIN; DELETE FROM node WHERE id = 2; DELETE FROM parent; ROLLBACK;
	SQL
$changes->replays($_, ucfirst, ['id'], "foreign keys, table $_") for qw(parent child pet node);
is($pg->sql('SELECT count(*) FROM node'), 64, 'the tree has lost half of its nodes');
is(scalar(grep { /^delete/ } @{ $changes->ops('Node', 'id') }), 63, 'and each of them is a delete');

# ---- tables with something about them ----

sql(<<~'SQL');
	CREATE SCHEMA "Sch""e ma";
	CREATE TABLE "Sch""e ma"."Täble 'x'" ("Id" int, "ünï cödé" text, "select" int, "MiXed.1" boolean, PRIMARY KEY ("Id", "ünï cödé"));
	SQL
{
	my $relation = q("Sch""e ma"."Täble 'x'");
	my $arguments = join ', ', literal($relation), "'$db'", q('Ödd tàble-1'), 'create_table => true',
		q(columns => ARRAY['Id', 'ünï cödé', 'select', 'MiXed.1']);
	sql("SELECT kusto_capture($arguments)");
	sql("INSERT INTO $relation VALUES (1, 'ä', 1, true), (2, '漢字', NULL, false); UPDATE $relation SET \"select\" = 7; DELETE FROM $relation WHERE \"Id\" = 1");
	$changes->settle;
	my @rows = map { "$_->{op} " . JSON::PP->new->canonical->encode($_->{row}) } $changes->history('Ödd tàble-1');
	is_deeply(\@rows, [
		'insert {"Id":1,"MiXed.1":true,"select":1,"ünï cödé":"ä"}', 'insert {"Id":2,"MiXed.1":false,"ünï cödé":"漢字"}',
		'update {"Id":1,"MiXed.1":true,"select":7,"ünï cödé":"ä"}', 'update {"Id":2,"MiXed.1":false,"select":7,"ünï cödé":"漢字"}',
		'delete {"Id":1,"MiXed.1":true,"select":7,"ünï cödé":"ä"}' ], 'odd names of schema, table, columns and Kusto table');
	is(sql(q(SELECT triggers FROM kusto.captures WHERE table_name = 'Ödd tàble-1')), 'enabled', 'kusto.captures finds its triggers');
	sql("SELECT kusto_uncapture(" . literal($relation) . ")");
	is($pg->sql(q(SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'Kusto%' AND tgrelid IN (SELECT oid FROM pg_class WHERE relname LIKE 'T_ble%'))), 0, 'kusto_uncapture, too');
}

$pg->sql('CREATE TABLE generated (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, own bigint GENERATED ALWAYS AS IDENTITY, moment timestamptz DEFAULT now())');
$changes->capture('generated', 'Generated');
$pg->sql(q(INSERT INTO generated (id, a) VALUES (1, 1), (2, 2); UPDATE generated SET a = 50 WHERE id = 2; DELETE FROM generated WHERE id = 1));
$changes->ops_are('Generated', [ 'insert 1/2/1', 'insert 2/4/2', 'update 2/100/2', 'delete 1/2/1' ], 'generated and identity columns', 'id', 'twice', 'own');
$changes->replays('generated', 'Generated', ['id'], 'generated columns');

# A value that is not changed is not in the new version of a row, but in its TOAST table.
$pg->sql(<<~'SQL');
	CREATE TABLE toasted (id int PRIMARY KEY, n int, plain text, packed text, bytes bytea);
	ALTER TABLE toasted ALTER plain SET STORAGE EXTERNAL;
	SQL
$changes->capture('toasted', 'Toasted', old_values => 'true');
$pg->sql(<<~'SQL');
	INSERT INTO toasted SELECT i, 0, (SELECT string_agg(md5(i::text || j), '') FROM generate_series(1, 3000) j), repeat('compressible ', 20000), decode(repeat(md5(i::text), 1000), 'hex') FROM generate_series(1, 3) i;
	UPDATE toasted SET n = 1;
	UPDATE toasted SET packed = packed || 'x' WHERE id = 2;
	DELETE FROM toasted WHERE id = 3;
	SQL
$changes->replays('toasted', 'Toasted', ['id'], 'toasted values, changed and not');
@history = $changes->history('Toasted');
is(length $history[3]{row}{plain}, 96000, 'an update of another column has all of them');
is(length $history[3]{old}{plain}, 96000, 'and so have the old values');
is_deeply([ map { $_->{old} ? $_->{old}{n} : undef } @history ], [ undef, undef, undef, 0, 0, 0, 1, 1 ], 'which are those before the change');

# Row-level security does not hide changes from the capture, whoever makes them.
$pg->sql(<<~SQL);
	CREATE ROLE landlord LOGIN;
	CREATE ROLE tenant LOGIN;
	GRANT CREATE ON SCHEMA public TO landlord;
	GRANT USAGE ON SCHEMA kusto TO landlord;
	GRANT SELECT ON kusto.captures, kusto.operations TO landlord;
	GRANT USAGE ON FOREIGN SERVER adx TO landlord;
	GRANT EXECUTE ON FUNCTION kusto_capture(regclass, text, text, name, text[], text[], boolean, boolean, boolean, text, boolean), kusto_capture_changes(), kusto_flush(interval) TO landlord;
	SQL
$pg->sql('CREATE USER MAPPING FOR landlord SERVER adx OPTIONS (auth $$client_secret$$, tenant ' . literal($kusto->tenant) . ', client_id ' . literal($kusto->client_id) . ', client_secret ' . literal($kusto->client_secret) . ')');
$pg->sql(<<~'SQL', user => 'landlord');
	CREATE TABLE flat (id int PRIMARY KEY, tenant name DEFAULT current_user, rent int);
	ALTER TABLE flat ENABLE ROW LEVEL SECURITY;
	ALTER TABLE flat FORCE ROW LEVEL SECURITY;
	CREATE POLICY own ON flat USING (tenant = current_user);
	GRANT ALL ON flat TO tenant;
	SQL
$changes->capture({ user => 'landlord' }, 'flat', 'Flat');
$pg->sql(q(INSERT INTO flat (id, rent) VALUES (1, 100), (2, 200); UPDATE flat SET rent = rent + 1), user => 'tenant');
$pg->sql(q(INSERT INTO flat (id, rent) VALUES (3, 300); UPDATE flat SET rent = 0; DELETE FROM flat), user => 'landlord');
$pg->sql(q(DELETE FROM flat WHERE id = 1), user => 'tenant');
$changes->ops_are('Flat', [ 'insert 1/tenant/100', 'insert 2/tenant/200', 'update 1/tenant/101', 'update 2/tenant/201',
	'insert 3/landlord/300', 'update 3/landlord/0', 'delete 3/landlord/0', 'delete 1/tenant/101' ], 'row-level security, also forced', 'id', 'tenant', 'rent');
$changes->replays('flat', 'Flat', ['id'], 'row-level security');
is($pg->fails(q(SELECT * FROM kusto.outbox_0), user => 'tenant')->{sqlstate}, '42501', 'who changes rows has no right to the outbox');
is($pg->fails(q(SELECT kusto_capture('flat', 'db', 'Mine')), user => 'tenant')->{sqlstate}, '42501', 'nor may he capture');

# ---- partitions, children ----

$pg->sql(<<~'SQL');
	CREATE TABLE measured (id int, part int, v text, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
	CREATE TABLE measured_1 PARTITION OF measured FOR VALUES IN (1);
	CREATE TABLE measured_2 PARTITION OF measured FOR VALUES IN (2) PARTITION BY HASH (id);
	CREATE TABLE measured_2a PARTITION OF measured_2 FOR VALUES WITH (MODULUS 1, REMAINDER 0);
	SQL
$changes->capture('measured', 'Measured');
$pg->sql(<<~'SQL');
	INSERT INTO measured SELECT i, 1 + i % 2, 'x' FROM generate_series(1, 20) i;
	INSERT INTO measured_1 VALUES (100, 1, 'leaf');
	UPDATE measured SET part = 3 - part WHERE id <= 4;
	UPDATE measured_2a SET v = 'y' WHERE id = 7;
	DELETE FROM measured_2 WHERE id = 9;
	CREATE TABLE measured_3 PARTITION OF measured FOR VALUES IN (3);
	INSERT INTO measured VALUES (200, 3, 'later');
	ALTER TABLE measured DETACH PARTITION measured_3;
	INSERT INTO measured_3 VALUES (201, 3, 'not captured');
	DELETE FROM measured_1 WHERE id = 100;
	SQL
$changes->settle;
is(scalar(grep { /leaf/ } @{ $changes->ops('Measured', 'v') }), 2, 'what goes to a partition is captured once');
is(scalar(grep { /not captured/ } @{ $changes->ops('Measured', 'v') }), 0, 'and not when it is one no more');
is_deeply([ grep { /later/ } @{ $changes->replayed('Measured', 'id') } ], [ '{"id":200,"part":3,"v":"later"}' ], 'a partition that is made later is captured');
$pg->sql(q(INSERT INTO measured_3 VALUES (1, 3, 'again'); DELETE FROM measured_3 WHERE id <> 200; ALTER TABLE measured ATTACH PARTITION measured_3 FOR VALUES IN (3)));
$changes->replays('measured', 'Measured', [ 'id', 'part' ], 'partitions, and rows that move between them');

$pg->sql(<<~'SQL');
	CREATE TABLE base (id int PRIMARY KEY, name text);
	CREATE TABLE derived (extra int, PRIMARY KEY (id)) INHERITS (base);
	SQL
$changes->capture('base', 'Base');
$changes->capture('derived', 'Derived');
$pg->sql(q(INSERT INTO base VALUES (1, 'base'); INSERT INTO derived VALUES (2, 'derived', 7); UPDATE base SET name = name || '!'; DELETE FROM base WHERE id = 2));
$changes->ops_are('Base', [ 'insert 1/base', 'update 1/base!' ], 'a parent has its own rows', 'id', 'name');
$changes->ops_are('Derived', [ 'insert 2/7', 'update 2/7', 'delete 2/7' ], 'a child its own, also when a statement names the parent', 'id', 'extra');

# ---- foreign tables ----

SKIP:
{
	skip 'postgres_fdw is not installed', 3 if $pg->sql(q(SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw')) eq '0';
	my ($host, $port) = ($pg->node->host, $pg->node->port);
	$pg->sql(<<~"SQL");
		CREATE EXTENSION postgres_fdw;
		CREATE SERVER self FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '$host', port '$port', dbname 'postgres');
		CREATE USER MAPPING FOR CURRENT_USER SERVER self;
		CREATE TABLE remote (id int PRIMARY KEY, v text);
		CREATE FOREIGN TABLE here (id int, v text) SERVER self OPTIONS (table_name 'remote');
		SQL
	$changes->capture('here', 'Here');
	$pg->sql(q(INSERT INTO here VALUES (1, 'a'), (2, 'b'); UPDATE here SET v = v || '!' WHERE id = 2; DELETE FROM here WHERE id = 1));
	$changes->ops_are('Here', [ 'insert 1/a', 'insert 2/b', 'update 2/b!', 'delete 1/a' ], 'a foreign table', 'id', 'v');
	$pg->sql(q(INSERT INTO remote VALUES (3, 'behind its back')));
	$changes->settle;
	is(scalar @{ $changes->ops('Here') }, 4, 'what is changed elsewhere is not seen');
	is(state_of('here', 'triggers'), 'enabled', 'kusto.captures finds its triggers');
}

# ---- triggers that are not there, or do not fire ----

$pg->sql('CREATE TABLE watched (id int PRIMARY KEY, v text)');
$changes->capture('watched', 'Watched');
is(state_of('watched', 'triggers'), 'enabled', 'triggers that fire');
$pg->sql('ALTER TABLE watched DISABLE TRIGGER USER');
is(state_of('watched', 'triggers'), 'disabled', 'ALTER TABLE DISABLE TRIGGER shows');
$pg->sql(q(INSERT INTO watched VALUES (1, 'unseen')));
$pg->sql('ALTER TABLE watched ENABLE TRIGGER USER');
my $delete_trigger = $pg->sql(q(SELECT tgname FROM pg_trigger WHERE tgrelid = 'watched'::regclass AND tgname LIKE 'Kusto%delete'));
$pg->sql(qq(ALTER TABLE watched DISABLE TRIGGER "$delete_trigger"));
is(state_of('watched', 'triggers'), 'partly disabled', 'of one of them, too');
$pg->sql(q(INSERT INTO watched VALUES (2, 'seen'); DELETE FROM watched WHERE id = 2));
$pg->sql(qq(ALTER TABLE watched ENABLE REPLICA TRIGGER "$delete_trigger"));
is(state_of('watched', 'triggers'), 'partly disabled', 'ENABLE REPLICA of one does');
$pg->sql(q(DO $$ DECLARE t name; BEGIN FOR t IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'watched'::regclass LOOP EXECUTE format('ALTER TABLE watched ENABLE REPLICA TRIGGER %I', t); END LOOP; END $$));
is(state_of('watched', 'triggers'), 'replica only', 'of all of them does');
$pg->sql(q(INSERT INTO watched VALUES (3, 'unseen')));
$changes->ops_are('Watched', ['insert 2'], 'what does not fire captures nothing', 'id');
$pg->sql(q(SET session_replication_role = replica; INSERT INTO watched VALUES (4, 'replica')));
$changes->ops_are('Watched', [ 'insert 2', 'insert 4' ], 'unless the session is a replica', 'id');
$pg->sql(q(SELECT kusto_capture('watched', 'db', 'Watched', create_table => true)));
is(state_of('watched', 'triggers'), 'enabled', 'kusto_capture() again makes them anew');
$pg->sql(q(SET session_replication_role = replica; INSERT INTO watched VALUES (5, 'unseen')));
$changes->ops_are('Watched', [ 'insert 2', 'insert 4' ], 'which session_replication_role = replica silences', 'id');
$pg->sql(qq(DROP TRIGGER "$_" ON watched)) for split /\n/, $pg->sql(q(SELECT tgname FROM pg_trigger WHERE tgrelid = 'watched'::regclass));
is(state_of('watched', 'triggers'), 'missing', 'triggers that were dropped');
$pg->sql('DROP TABLE watched');
is($pg->sql(q(SELECT triggers FROM kusto.captures WHERE table_name = 'Watched')), 'dropped', 'and the table itself') unless $pg->sql(q(SELECT count(*) FROM kusto.captures WHERE table_name = 'Watched')) eq '0';

# ---- triggers made by hand ----

$pg->sql(<<~"SQL");
	CREATE TABLE manual (id int PRIMARY KEY, v text, n int);
	CREATE TRIGGER ins AFTER INSERT ON manual FOR EACH ROW WHEN (NEW.id % 2 = 0) EXECUTE FUNCTION kusto_capture_changes('$db', 'Manual', 'adx', 'create_table=true');
	CREATE TRIGGER upd AFTER UPDATE OF v ON manual FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('$db', 'Manual', 'adx', 'create_table=true');
	CREATE TRIGGER del AFTER DELETE ON manual REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION kusto_capture_changes('$db', 'Manual', 'adx', 'create_table=true');
	SQL
$pg->sql(q(INSERT INTO manual SELECT i, 'v', 0 FROM generate_series(1, 4) i; UPDATE manual SET n = 1; UPDATE manual SET v = 'w' WHERE id >= 3; DELETE FROM manual WHERE id >= 3));
$changes->ops_are('Manual', [ 'insert 2/0', 'insert 4/0', 'update 3/1', 'update 4/1', 'delete 3/1', 'delete 4/1' ], 'triggers with WHEN, and of a column', 'id', 'n');
is(state_of('manual', 'triggers || events::text'), 'enabled{insert,update,delete}', 'kusto.captures knows them');

# ---- what cannot be captured ----

$pg->sql(<<~'SQL');
	CREATE VIEW a_view AS SELECT * FROM item;
	CREATE MATERIALIZED VIEW a_matview AS SELECT * FROM item;
	CREATE SEQUENCE a_sequence;
	SQL
refused('a_view', qr/view/, 'a view');
refused('a_matview', qr/materialized view/, 'a materialized view');
refused('a_sequence', qr/not a table/, 'a sequence');
refused('pg_catalog.pg_class', qr/system catalog/, 'a system catalog');
refused($_, qr/kusto_ingest/, "$_") for qw(kusto.operation kusto.blob kusto.capture kusto.outbox_0 kusto.dead_letter kusto.worker);
my $temporary = $pg->fails("CREATE TEMP TABLE brief (id int); SELECT kusto_capture('brief', '$db', 'Refused')");
is($temporary->{sqlstate}, '42809', 'a temporary table is refused');
like($temporary->{detail}, qr/temporary/, 'a temporary table: with the reason');
is($pg->sql(q(SELECT count(*) FROM kusto.captures WHERE table_name = 'Refused')), 0, 'and nothing was recorded');

# Whoever may make triggers on the extension's tables could make it run in circles.
$pg->sql("CREATE TRIGGER loop AFTER INSERT ON kusto.operation FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('$db', 'Loop', 'adx')");
my $loop = $pg->fails('SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'Nothing'));
is($loop->{sqlstate}, '42809', 'a trigger by hand on a table of the extension is refused when it fires') or diag $loop->{text};
$pg->sql('DROP TRIGGER loop ON kusto.operation');

# What is known of a trigger is little: a session may meet the triggers of thousands of partitions.
$pg->sql(<<~"SQL");
	CREATE TABLE many (id int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
	DO \$\$ BEGIN FOR i IN 0 .. 49 LOOP EXECUTE format('CREATE TABLE many_%s PARTITION OF many FOR VALUES FROM (%s) TO (%s)', i, i, i + 1); END LOOP; END \$\$;
	SELECT kusto_capture('many', '$db', 'Many', create_table => true);
	SQL
SKIP:
{
	skip 'pg_backend_memory_contexts came with PostgreSQL 14', 1 if $pg->node->pg_version < 14;
	my $contexts = $pg->sql(<<~'SQL');
		INSERT INTO many SELECT generate_series(0, 49);
		SELECT string_agg(format('%s %s', name, n), ', ' ORDER BY name) FROM (SELECT name, count(*) AS n
			FROM pg_backend_memory_contexts WHERE name ~ '^kusto_ingest captured? (trigger|row)$' GROUP BY name) c
		SQL
	is($contexts, 'kusto_ingest capture trigger 50, kusto_ingest captured row 1', 'memory for a row is needed once, not for each trigger');
}

# And of so many it keeps some: those that others need are found out again.
SKIP:
{
	skip 'pg_backend_memory_contexts came with PostgreSQL 14', 3 if $pg->node->pg_version < 14;
	my ($tables, $kept) = (1100, q(SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'kusto_ingest capture trigger'));
	$pg->sql(<<~"SQL");
		CREATE TABLE crowd (id int, n int DEFAULT 0, PRIMARY KEY (id)) PARTITION BY LIST (id);
		DO \$\$ BEGIN FOR i IN 1 .. $tables LOOP EXECUTE format('CREATE TABLE crowd_%s PARTITION OF crowd FOR VALUES IN (%s)', i, i); END LOOP; END \$\$;
		SELECT kusto_capture('crowd', '$db', 'Crowd', create_table => true, events => '{insert,update}');
		SQL
	my @counts = split /\n/, $pg->sql(<<~"SQL");
		INSERT INTO crowd SELECT generate_series(1, $tables);
		$kept;
		UPDATE crowd SET n = 1;
		$kept;
		SQL
	is($counts[0], $tables, 'a transaction keeps what it knows of its triggers');
	cmp_ok($counts[1], '<=', $tables + 20, 'later ones give it back');
	$changes->replays('crowd', 'Crowd', ['id'], 'more triggers than are kept');
}

is($pg->sql(q(SELECT count(*) FROM kusto.dead_letter)), 0, 'nothing was refused by Kusto');
is($pg->sql(q(SELECT string_agg(relation_name || ': ' || last_error, ', ') FROM kusto.captures WHERE last_error IS NOT NULL)), '', 'and nothing has failed');
$kusto->assert_no_violations;
done_testing();
