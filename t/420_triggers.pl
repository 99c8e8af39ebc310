# What capture triggers record of each kind of statement, transaction and table, read from the outbox.
use strict;
use warnings;

use KustoCluster;
use OutboxRows;
use PostgreSQL::Test::Utils;
use Test::More;

my $pg = KustoCluster->start(undef);
my $outbox = OutboxRows->new($pg);

sub changes_are
{
	my ($table, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @got = $outbox->changes($table);
	return is_deeply(\@got, $expected, $name) || diag explain \@got;
}

# ---- statements ----

$pg->sql('CREATE TABLE a (id int PRIMARY KEY, t text, n numeric);' . OutboxRows::triggers('a', 'A'));
$pg->sql(q(INSERT INTO a VALUES (1, 'x', 1.50), (2, E'"q", \\n', NULL), (3, '', 0)));
changes_are('A', [ 'insert|1|x|1.50', qq(insert|2|"q", \n|), 'insert|3||0' ], 'INSERT');
like(($outbox->chunks('A'))[0]{data}, qr/^"insert",.*,3,"",0$/m, 'an empty string is quoted');
$pg->sql(q(UPDATE a SET t = 'y' WHERE id < 3));
changes_are('A', [ 'update|1|y|1.50', 'update|2|y|' ], 'UPDATE');
$pg->sql('DELETE FROM a WHERE id = 3');
changes_are('A', ['delete|3||0'], 'DELETE has the row that was');
$pg->sql(q(INSERT INTO a VALUES (1, 'z', 1), (4, 'new', 1) ON CONFLICT (id) DO UPDATE SET t = excluded.t));
is_deeply([ sort $outbox->changes('A') ], [ 'insert|4|new|1', 'update|1|z|1.50' ], 'INSERT ... ON CONFLICT DO UPDATE');
$pg->sql(q(WITH gone AS (DELETE FROM a WHERE id = 4 RETURNING *) INSERT INTO a SELECT id + 1, t, n FROM gone));
is_deeply([ sort $outbox->changes('A') ], [ 'delete|4|new|1', 'insert|5|new|1' ], 'WITH');
$pg->sql("COPY a FROM stdin;\n7\tcopied\t\\N\n8\tcopied\t1\n\\.\n");
changes_are('A', [ 'insert|7|copied|', 'insert|8|copied|1' ], 'COPY');
$pg->sql('TRUNCATE a');
changes_are('A', ['truncate|||'], 'TRUNCATE');

my $drawn = $pg->sql('SELECT last_value FROM kusto.change_number');
$pg->sql(q(UPDATE a SET t = 'nobody'; DELETE FROM a; INSERT INTO a SELECT 1 WHERE false));
changes_are('A', [], 'statements that change no row record nothing');
is($pg->sql('SELECT last_value FROM kusto.change_number'), $drawn, '... and draw no number');

is($pg->sql(<<~'SQL'), 't', 'lastval() is left to the user');
	CREATE TABLE counted (id bigint GENERATED ALWAYS AS IDENTITY (START 1000000), t text);
	CREATE TRIGGER k AFTER INSERT ON counted REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION kusto_capture_changes('db', 'Counted');
	INSERT INTO counted (t) VALUES ('registers the capture');
	INSERT INTO counted (t) VALUES ('x');
	SELECT lastval() = (SELECT max(id) FROM counted);
	SQL

# ---- the primary key ----

$pg->sql(q(INSERT INTO a VALUES (1, 'one'), (2, 'two'), (3, 'three')));
$outbox->changes('A');
$pg->sql(q(UPDATE a SET id = CASE id WHEN 3 THEN 3 ELSE id + 10 END, t = t || '!'));
changes_are('A', [ 'delete|1|one|', 'update|11|one!|', 'delete|2|two|', 'update|12|two!|', 'update|3|three!|' ],
	'a row that gets another key is deleted under the old one');
# Each gets the key that another one had; the order of rows in the table makes that possible.
$pg->sql('TRUNCATE a; INSERT INTO a VALUES (2), (1)');
$outbox->changes('A');
$pg->sql('UPDATE a SET id = id + 1');
changes_are('A', [ 'delete|2||', 'update|3||', 'delete|1||', 'update|2||' ], 'one comes in the place of another when that has gone');
$pg->sql('CREATE TABLE swapped (id int PRIMARY KEY DEFERRABLE, t text);' . OutboxRows::triggers('swapped', 'Swapped'));
$pg->sql(q(INSERT INTO swapped VALUES (1, 'one'), (2, 'two'), (5, 'five')));
$outbox->changes('Swapped');
$pg->sql('UPDATE swapped SET id = CASE id WHEN 5 THEN 5 ELSE 3 - id END');
changes_are('Swapped', [ 'delete|1|one', 'delete|2|two', 'update|5|five', 'update|2|one', 'update|1|two' ],
	'all are deleted first where two may have the same key for a while');
$pg->sql('CREATE TABLE keyless (id int, t text);' . OutboxRows::triggers('keyless', 'Keyless'));
$pg->sql(q(INSERT INTO keyless VALUES (1, 'x'); UPDATE keyless SET id = 2));
changes_are('Keyless', [ 'insert|1|x', 'update|2|x' ], 'without a primary key an update is an update');
$pg->sql('CREATE TABLE pair (a int, b text, c int, PRIMARY KEY (c, b));' . OutboxRows::triggers('pair', 'Pair'));
$pg->sql(q(INSERT INTO pair VALUES (1, 'x', 1); UPDATE pair SET a = 2; UPDATE pair SET b = 'y'));
changes_are('Pair', [ 'insert|1|x|1', 'update|2|x|1', 'delete|2|x|1', 'update|2|y|1' ], 'a key of two columns');

# ---- a key that changes though SET leaves it out ----

# In a session that has the library before the statement begins, and so sees what that is.
sub update
{
	my ($sql) = @_;
	return $pg->sql("LOAD 'kusto_ingest'; $sql");
}

$pg->sql(<<~'SQL' . OutboxRows::triggers('pushed', 'Pushed'));
	CREATE TABLE pushed (id int PRIMARY KEY, t text);
	CREATE FUNCTION push() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.id := NEW.id + 10; RETURN NEW; END';
	CREATE TRIGGER push BEFORE UPDATE ON pushed FOR EACH ROW EXECUTE FUNCTION push();
	SQL
update(q(INSERT INTO pushed VALUES (1, 'x'); UPDATE pushed SET t = 'y'));
changes_are('Pushed', [ 'insert|1|x', 'delete|1|x', 'update|11|y' ], 'a key changed by a BEFORE trigger');
$pg->sql(q(TRUNCATE a; INSERT INTO a VALUES (1, 'one'), (2, 'two')));
$outbox->changes('A');
for my $with (
	q(WITH plain AS (UPDATE a SET t = t || '!' WHERE id = 1) UPDATE a SET id = id + 10 WHERE id = 2),
	q(WITH moves AS (UPDATE a SET id = id - 10 WHERE id = 12) UPDATE a SET t = t || '!' WHERE id = 1))
{
	update($with);
	is_deeply([ map { s/one!*/one/r } sort $outbox->changes('A') ],
		[ $with =~ /12/ ? qw(delete|12|two| update|1|one| update|2|two|) : qw(delete|2|two| update|12|two| update|1|one|) ],
		'a key changed by another part of the statement');
}
$pg->sql(<<~'SQL' . OutboxRows::triggers('tree', 'Tree'));
	CREATE TABLE tree (id int, code int UNIQUE,
		parent int REFERENCES tree (code) ON UPDATE CASCADE,
		other int REFERENCES tree (code) ON UPDATE CASCADE,
		PRIMARY KEY (id, parent));
	SQL
$pg->sql('INSERT INTO tree VALUES (1, 10, 10, NULL), (2, 20, 10, 10)');
$outbox->changes('Tree');
# Whose SET list the trigger is told is that of the last action, which changes column "other".
update('UPDATE tree SET code = 11 WHERE id = 1');
changes_are('Tree', [ 'update|1|11|10|', 'delete|2|20|10|10', 'update|2|20|11|10', 'delete|1|11|10|', 'update|1|11|11|', 'update|2|20|11|11' ],
	"a key changed by a foreign key's action");
$pg->sql(<<~'SQL' . OutboxRows::triggers('made', 'Made'));
	CREATE TABLE made (n int, id int GENERATED ALWAYS AS (n * 2) STORED PRIMARY KEY);
	SQL
update('INSERT INTO made VALUES (1); UPDATE made SET n = 2');
changes_are('Made', [ 'insert|1|2', 'delete|1|2', 'update|2|4' ], 'a key that is generated');
$pg->sql('CREATE RULE too AS ON UPDATE TO keyless DO ALSO UPDATE pair SET c = c + 1;');
update(q(UPDATE keyless SET t = 'r'));
changes_are('Pair', [ 'delete|2|y|1', 'update|2|y|2' ], 'a key changed by a rule');
$pg->sql('DROP RULE too ON keyless');
$outbox->changes('Keyless');

# ---- columns ----

$pg->sql('CREATE TABLE partial (id int PRIMARY KEY, seen text, hidden text, "Odd name" int);'
	. OutboxRows::triggers('partial', 'Some', 'columns=id, seen,"Odd name"'));
$pg->sql(q(INSERT INTO partial VALUES (1, 'a', 'b', 5)));
changes_are('Some', ['insert|1|a|5'], 'only the columns that are captured');
$pg->sql(q(UPDATE partial SET hidden = 'c'; UPDATE partial SET seen = seen; UPDATE partial SET seen = 'd', hidden = 'e'; UPDATE partial SET id = 2));
changes_are('Some', [ 'update|1|d|5', 'delete|1|d|5', 'update|2|d|5' ], 'updates of other columns do not count');
$pg->sql('CREATE TABLE lost_key (id int PRIMARY KEY, t text);' . OutboxRows::triggers('lost_key', 'LostKey', 'columns=t'));
$pg->fails_like('INSERT INTO lost_key VALUES (1)', { sqlstate => '22023', message => qr/columns must include "id"/, detail => qr/primary key/ },
	'the primary key must be among them');

# ---- old values ----

$pg->sql(q(CREATE TABLE old (id int PRIMARY KEY, t text, j jsonb, f float8[], d date);)
	. OutboxRows::triggers('old', 'Old', 'old_values=true'));
$pg->sql(q(INSERT INTO old VALUES (1, 'a "b"', '{"k": [1]}', '{1.5,NULL}', '2026-01-02'); UPDATE old SET t = 'n'; DELETE FROM old; TRUNCATE old));
my $row = '{"id":1,"t":%s,"j":{"k": [1]},"f":[1.5,null],"d":"2026-01-02"}';
changes_are('Old', [
		'insert||1|a "b"|{"k": [1]}|[1.5,null]|2026-01-02',
		'update|' . sprintf($row, '"a \"b\""') . '|1|n|{"k": [1]}|[1.5,null]|2026-01-02',
		'delete|' . sprintf($row, '"n"') . '|1|n|{"k": [1]}|[1.5,null]|2026-01-02',
		'truncate||||||' ], 'the old row as an object');
$pg->sql(q(INSERT INTO old VALUES (2, 'x'); UPDATE old SET id = 3));
is((map { (split /\|/)[1] } $outbox->changes('Old'))[1], '{"id":2,"t":"x","j":null,"f":null,"d":null}', '... also of a row whose key changes');

# ---- transactions ----

my $session = $pg->session;
$session->sql(q(CREATE TABLE b (i int); CREATE FUNCTION fail() RETURNS int LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'));
$session->sql($_) for split /;\n/, OutboxRows::triggers('b', 'B');
$session->sql('INSERT INTO b VALUES (0)');
$session->sql('BEGIN; INSERT INTO b VALUES (1); ROLLBACK');
$session->sql($_) for 'BEGIN', 'INSERT INTO b VALUES (2)', 'SAVEPOINT a', 'INSERT INTO b VALUES (3)', 'SAVEPOINT b', 'INSERT INTO b VALUES (4)',
	'ROLLBACK TO b', 'INSERT INTO b VALUES (5)', 'RELEASE a', 'INSERT INTO b VALUES (6)', 'SAVEPOINT c', 'INSERT INTO b VALUES (7)',
	'SAVEPOINT d', 'INSERT INTO b VALUES (8)', 'RELEASE d', 'ROLLBACK TO c', 'INSERT INTO b VALUES (9)', 'COMMIT';
changes_are('B', [ map { "insert|$_" } 0, 2, 3, 5, 6, 9 ], 'savepoints');
is(scalar(grep { $_->{rows} == 5 } $outbox->chunks('B')), 1, 'what was committed fits into one chunk');
$session->sql(<<~'SQL');
	DO $$
	BEGIN
		INSERT INTO b VALUES (10);
		BEGIN
			INSERT INTO b VALUES (11);
			INSERT INTO b VALUES (fail());
		EXCEPTION WHEN raise_exception THEN
			INSERT INTO b VALUES (12);
		END;
		INSERT INTO b VALUES (13);
	END
	$$
	SQL
changes_are('B', [ map { "insert|$_" } 10, 12, 13 ], 'an exception in PL/pgSQL');
$session->sql(q(BEGIN; INSERT INTO b VALUES (20); SAVEPOINT s; INSERT INTO b VALUES (21); RELEASE s; PREPARE TRANSACTION 'yes'));
$session->sql(q(BEGIN; INSERT INTO b VALUES (22); PREPARE TRANSACTION 'no'));
changes_are('B', [], 'a prepared transaction is not committed');
$session->sql('INSERT INTO b VALUES (23)');
$session->sql(q(ROLLBACK PREPARED 'no'));
$pg->sql(q(COMMIT PREPARED 'yes'));
changes_are('B', [ map { "insert|$_" } 20, 21, 23 ], 'two-phase commit');

# The first firing registers the capture, in the transaction of the statement.
$session->sql('CREATE TABLE first (i int)');
$session->sql($_) for split /;\n/, OutboxRows::triggers('first', 'First');
my $registered = q(SELECT count(*) FROM kusto.capture WHERE table_name = 'First');
$session->sql($_) for 'BEGIN', 'INSERT INTO first VALUES (1)', 'ROLLBACK';
is($pg->sql($registered), 0, 'a capture is not registered when the transaction is rolled back');
$session->sql($_) for 'BEGIN', 'SAVEPOINT a', 'INSERT INTO first VALUES (2)', 'ROLLBACK TO a', 'INSERT INTO first VALUES (3)', 'COMMIT';
is($pg->sql($registered), 1, '... nor with a subtransaction, but by the next statement');
changes_are('First', ['insert|3'], '... whose rows are recorded');
$session->sql("CREATE TABLE prepared_first (i int)");
$session->sql($_) for split /;\n/, OutboxRows::triggers('prepared_first', 'PreparedFirst');
$session->sql(q(BEGIN; INSERT INTO prepared_first VALUES (1); PREPARE TRANSACTION 'first'));
$session->sql(q(ROLLBACK PREPARED 'first'));
$session->sql('INSERT INTO prepared_first VALUES (2)');
changes_are('PreparedFirst', ['insert|2'], '... and registered anew after ROLLBACK PREPARED');

# ---- chunks ----

$pg->sql('CREATE TABLE big (i int, t text);' . OutboxRows::triggers('big', 'Big'));
$pg->sql(q(INSERT INTO big SELECT i, repeat('x', 100 + i % 300) FROM generate_series(1, 20000) i));
my @rows = $outbox->rows('Big');
is(scalar @rows, 20000, 'a large statement: no row is lost');
is(scalar(grep { $rows[$_][4] != $_ + 1 || $rows[$_][2] != $rows[0][2] + $_ } 0 .. $#rows), 0, '... and they are numbered one after the other');
my @chunks = $outbox->chunks('Big');
is(scalar(grep { length $_->{data} > 8000 } @chunks), 0, 'no chunk is longer than 8000 bytes');
cmp_ok(scalar(grep { length $_->{data} < 7500 } @chunks), '<=', 1, '... and all but the last are nearly so long');
is($pg->sql("SELECT count(DISTINCT split_part(ctid::text, ',', 1)) FROM (SELECT ctid FROM kusto.outbox_0 WHERE octet_length(data) > 7500) o"),
	scalar(grep { length $_->{data} > 7500 } @chunks), '... so that each fills a page');
is($pg->sql(q(SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'kusto.outbox_0'::regclass)), 0, '... and none is in TOAST');

# Two rows that fill a chunk to the last byte, and two that are one byte too long.
$pg->sql(q(DELETE FROM kusto.outbox_0; INSERT INTO big SELECT 1, repeat('y', 4000)));
my $around = length(($outbox->chunks('Big'))[0]{data}) - 4000;
for my $more (0, 1)
{
	my $first = 4000 - $around;
	$pg->sql("DELETE FROM kusto.outbox_0; INSERT INTO big SELECT 1, repeat('y', $first + CASE i WHEN 2 THEN $more ELSE 0 END) FROM generate_series(1, 2) i");
	is(join(' ', map { $_->{rows} . ' of ' . length $_->{data} } $outbox->chunks('Big')), $more ? '1 of 4000 1 of 4001' : '2 of 8000',
		$more ? '... and a byte too many for a chunk' : 'rows that fill a chunk exactly');
}
$pg->sql('DELETE FROM kusto.outbox_0');
$pg->sql(q(INSERT INTO big SELECT i, repeat(md5(i::text), CASE WHEN i % 3 = 0 THEN 10000 ELSE 1 END) FROM generate_series(1, 9) i));
@rows = $outbox->rows('Big');
is(join(' ', map { length $_->[5] } @rows), join(' ', map { $_ % 3 == 0 ? 320000 : 32 } 1 .. 9), 'long rows among short ones');
is(scalar $outbox->chunks('Big'), 6, '... are chunks of their own');
# A value that is stored out of line is whole in an update that does not touch it.
$pg->sql('DELETE FROM kusto.outbox_0; UPDATE big SET i = i + 100 WHERE length(t) > 100000');
is(join(' ', map { length $_->[5] } $outbox->rows('Big')), join(' ', (320000) x 3), 'toasted values that were not changed');

# Subtransactions: their rows share chunks with those of their parents.
$pg->sql('CREATE TABLE many (i int, t text);' . OutboxRows::triggers('many', 'Many'));
$pg->sql(<<~'SQL');
	DO $$
	BEGIN
		FOR i IN 1..1000 LOOP
			BEGIN
				INSERT INTO many VALUES (i, repeat('m', 40));
				IF i % 3 = 0 THEN
					RAISE EXCEPTION 'no';
				END IF;
			EXCEPTION WHEN raise_exception THEN
				NULL;
			END;
		END LOOP;
	END
	$$
	SQL
changes_are('Many', [ map { "insert|$_|" . 'm' x 40 } grep { $_ % 3 } 1 .. 1000 ], 'a thousand subtransactions, a third of which is rolled back');
cmp_ok(scalar $outbox->chunks('Many'), '<', 15, '... need few chunks');

# The parent's chunk is written by the subtransaction when both do not fit into one.
my $half = q(INSERT INTO many SELECT %d, repeat('h', 5000));
$session->sql($_) for 'BEGIN', sprintf($half, 1), 'SAVEPOINT a', sprintf($half, 2), 'SAVEPOINT b', sprintf($half, 3), 'RELEASE b', 'ROLLBACK TO a',
	sprintf($half, 4), 'RELEASE a', sprintf($half, 5), 'SAVEPOINT c', sprintf($half, 6), 'RELEASE c', 'COMMIT';
is(join(' ', map { (split /\|/)[1] } $outbox->changes('Many')), '1 4 5 6', 'full chunks in subtransactions that are released, and rolled back');

# ---- errors in the middle ----

$pg->sql('CREATE TABLE bad (i int, f float8, t text);' . OutboxRows::triggers('bad', 'Bad'));
$pg->fails_like(q(INSERT INTO bad VALUES (1, 1), (2, 'NaN')),
	{ sqlstate => '22003', message => qr/^value of column "f" cannot be held by Kusto type real$/, detail => qr/NaN/, hint => qr/on_type_error => 'null'/,
		context => qr/row change of table "bad"/ }, 'a value that Kusto cannot hold');
$session->sql(<<~'SQL');
	DO $$
	BEGIN
		INSERT INTO bad VALUES (1, 1, 'a');
		BEGIN
			INSERT INTO bad VALUES (2, 2, 'b'), (3, 'infinity', 'c');
		EXCEPTION WHEN numeric_value_out_of_range THEN
			INSERT INTO bad VALUES (4, 4, 'd');
		END;
		INSERT INTO bad VALUES (5, 5, 'e');
	END
	$$
	SQL
changes_are('Bad', [ 'insert|1|1|a', 'insert|4|4|d', 'insert|5|5|e' ], 'a row that is half written is forgotten');
for my $policy (qw(null string))
{
	$pg->sql("CREATE TABLE bad_$policy (i int, f float8, d date);" . OutboxRows::triggers("bad_$policy", "Bad_$policy", "on_type_error=$policy", 'old_values=true'));
	$pg->sql("INSERT INTO bad_$policy VALUES (1, 'NaN', 'infinity'), (2, 2, '2026-01-01'); DELETE FROM bad_$policy WHERE i = 1");
}
changes_are('Bad_null', [ 'insert||1||', 'insert||2|2|2026-01-01', 'delete|{"i":1,"f":null,"d":null}|1||' ], q(on_type_error 'null'));
changes_are('Bad_string', [ 'insert||1|NaN|infinity', 'insert||2|2|2026-01-01', 'delete|{"i":1,"f":"NaN","d":"infinity"}|1|NaN|infinity' ], q(on_type_error 'string'));

# An error that an output function raises names table and column; one that changes captured rows itself is served.
$pg->sql(<<~'SQL');
	CREATE TYPE talker;
	CREATE FUNCTION talker_in(cstring) RETURNS talker LANGUAGE internal IMMUTABLE STRICT AS 'textin';
	CREATE FUNCTION talker_out(talker) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
	CREATE TYPE talker (INPUT = talker_in, OUTPUT = talker_out, INTERNALLENGTH = VARIABLE, LIKE = text);
	CREATE CAST (talker AS text) WITHOUT FUNCTION;
	CREATE TABLE talk (i int, what talker, t text);
	CREATE FUNCTION talker_json(talker) RETURNS json LANGUAGE plpgsql VOLATILE AS $$
	BEGIN
		IF $1::text = 'error' THEN
			RAISE EXCEPTION 'it talks too much';
		ELSIF $1::text <> 'quiet' THEN
			INSERT INTO public.talk VALUES (100 + $1::text::int, 'quiet', 'inner');
			BEGIN
				INSERT INTO public.talk VALUES (200, 'error', 'inner');
			EXCEPTION WHEN raise_exception THEN
				NULL;
			END;
		END IF;
		RETURN to_json($1::text);
	END
	$$;
	CREATE CAST (talker AS json) WITH FUNCTION talker_json(talker);
	SQL
$pg->sql(OutboxRows::triggers('talk', 'Talk'));
$pg->sql(q(INSERT INTO talk VALUES (1, '1', 'a'), (2, 'quiet', 'b'), (3, '3', 'c')));
is_deeply([ sort $outbox->changes('Talk') ],
	[ 'insert|101|"quiet"|inner', 'insert|103|"quiet"|inner', 'insert|1|"1"|a', 'insert|2|"quiet"|b', 'insert|3|"3"|c' ],
	'an output function that changes the table whose row is being written');
$pg->fails_like(q(INSERT INTO talk VALUES (1, 'error')), { message => qr/talks too much/, context => qr/row change of table "talk", column "what"/ },
	'the context of an error names table and column');

# ---- triggers that are wrong ----

my $function = OutboxRows::function('W');
my $row_of = 'INSERT INTO w VALUES (1)';
for my $case (
	[ "BEFORE INSERT ON w FOR EACH ROW $function", '39P01', qr/cannot capture/, qr/AFTER/ ],
	[ "AFTER INSERT ON w FOR EACH STATEMENT $function", '39P01', qr/cannot capture/, qr/REFERENCING NEW TABLE/ ],
	[ 'AFTER INSERT ON w FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes()', '22023', qr/does not say where/, qr/kusto_capture_changes\('database', 'table'\)/ ],
	[ q(AFTER INSERT ON w FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('db', '')), '22023', qr/does not say where/, qr/database/ ],
	[ q(AFTER INSERT ON w FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('db', 'W', '', 'old_value=true')), '22023',
		qr/invalid option "old_value"/, qr/Perhaps you meant the option "old_values"/ ],
	[ q(AFTER INSERT ON w FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('db', 'W', '', 'old_values=maybe')), '22023', qr/"maybe"/, qr/true/ ],
	[ q(AFTER INSERT ON w FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('db', 'W', '', 'true')), '22023', qr/is not an option/, qr/options/ ],
	[ q(AFTER INSERT ON w FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('db', 'W', 'old_values=true')), '22023', qr/third argument/, qr/server/ ],
	[ q(AFTER INSERT ON w FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('db', 'W', '', 'columns=')), '22023', qr/"columns"/, qr/list/ ],
	[ q(AFTER INSERT ON w FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('db', 'W', '', 'origin=1')), '22023', qr/"origin"/, qr/kusto_capture/ ],
	[ q(AFTER INSERT ON w FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('db', 'W', '', 'on_type_error=no')), '22023', qr/on_type_error/, qr/Valid/ ],
	[ q(AFTER INSERT ON w FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('db', 'W', '', 'columns=nope')), '42703', qr/nope/, undef ],
	[ q(AFTER INSERT ON w FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('db', 'W', 'nowhere')), '42704', qr/server "nowhere"/, undef ])
{
	my ($sql, $sqlstate, $message, $hint) = @$case;
	my %expected = (sqlstate => $sqlstate, message => $message);
	$expected{hint} = $hint if defined $hint;
	$pg->sql("CREATE TABLE w (i int); CREATE TRIGGER k $sql");
	$pg->fails_like($row_of, \%expected, $sql);
	$pg->sql('DROP TABLE w');
}
$pg->sql("CREATE TABLE w (i int PRIMARY KEY); CREATE TRIGGER k AFTER UPDATE ON w REFERENCING NEW TABLE AS n FOR EACH STATEMENT $function");
$pg->sql($row_of);
$pg->fails_like('UPDATE w SET i = 2', { sqlstate => '39P01', detail => qr/primary key/, hint => qr/OLD TABLE/ }, 'an update trigger without old rows');
$pg->sql("DROP TABLE w; CREATE TABLE w (i int); CREATE CONSTRAINT TRIGGER k AFTER INSERT ON w DEFERRABLE FOR EACH ROW $function");
$pg->fails_like($row_of, { sqlstate => '39P01', detail => qr/deferrable/, hint => qr/NOT DEFERRABLE/ }, 'a deferrable trigger');
$pg->sql("DROP TABLE w; CREATE TABLE w (i int); CREATE VIEW wv AS SELECT * FROM w; CREATE TRIGGER k INSTEAD OF INSERT ON wv FOR EACH ROW $function");
$pg->fails_like('INSERT INTO wv VALUES (1)', { sqlstate => '39P01', detail => qr/AFTER/ }, 'INSTEAD OF');
$pg->fails_like('SELECT kusto_capture_changes()', { sqlstate => '39P01', message => qr/trigger manager/ }, 'a call that is none of a trigger');
$pg->sql('CREATE TABLE unlike (i int);' . OutboxRows::triggers('unlike', 'Unlike'));
$pg->sql('INSERT INTO unlike VALUES (1); DROP TRIGGER "Kusto_update" ON unlike; CREATE TRIGGER k AFTER UPDATE ON unlike FOR EACH ROW '
	. OutboxRows::function('Unlike', 'old_values=true'));
$pg->fails_like('UPDATE unlike SET i = 2', { sqlstate => '55000', message => qr/"old_values" of trigger "k" differs/ }, 'two triggers of a capture that differ');

# ---- partitions ----

$pg->sql(<<~'SQL');
	CREATE TABLE parted (id int, k int, t text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
	CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
	CREATE TABLE parted_2 (gone int, t text, k int NOT NULL, id int NOT NULL);
	ALTER TABLE parted_2 DROP gone;
	ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES IN (2);
	CREATE TABLE parted_3 PARTITION OF parted FOR VALUES IN (3, 4) PARTITION BY LIST (k);
	CREATE TABLE parted_4 (t text, id int NOT NULL, k int NOT NULL);
	ALTER TABLE parted_3 ATTACH PARTITION parted_4 FOR VALUES IN (3, 4);
	SQL
$pg->sql(OutboxRows::row_triggers('parted', 'Parted'));
$pg->sql(q(INSERT INTO parted VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 3, 'c')));
changes_are('Parted', [ 'insert|1|1|a', 'insert|2|2|b', 'insert|3|3|c' ], 'partitions with their columns in another order');
$pg->sql(q(INSERT INTO parted_2 (id, k, t) VALUES (4, 2, 'd'); UPDATE parted_4 SET t = 'e'; UPDATE parted SET t = 'f' WHERE id = 2));
changes_are('Parted', [ 'insert|4|2|d', 'update|3|3|e', 'update|2|2|f' ], '... also when they are named themselves');
$pg->sql(q(UPDATE parted SET k = 2 WHERE id = 3));
changes_are('Parted', [ 'delete|3|3|e', 'insert|3|2|e' ], 'a row that moves to another partition');
$pg->sql(q(UPDATE parted_4 SET k = 4; UPDATE parted SET id = id + 10 WHERE id = 4; DELETE FROM parted_3; TRUNCATE parted));
changes_are('Parted', [ 'delete|4|2|d', 'update|14|2|d', 'truncate|||' ], 'a key that changes, and TRUNCATE');
is($pg->sql(q(SELECT count(*), min(relation::regclass::text) FROM kusto.capture WHERE table_name = 'Parted')), '1|parted', 'all of them are one capture');
$pg->sql(q(INSERT INTO parted VALUES (1, 1, 'a'); ALTER TABLE parted ADD n int; INSERT INTO parted VALUES (2, 2, 'b', 7); ALTER TABLE parted DROP t; INSERT INTO parted VALUES (3, 1, 8)));
changes_are('Parted', [ 'insert|1|1|a', 'insert|2|2|b|7', 'insert|3|1||8' ], '... whose columns change');

# A statement-level trigger on the parent sees what is addressed to it.
$pg->sql(<<~'SQL' . OutboxRows::triggers('moving', 'Moving', 'old_values=true'));
	CREATE TABLE moving (id int, k int, t text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
	CREATE TABLE moving_1 PARTITION OF moving FOR VALUES IN (1);
	CREATE TABLE moving_2 (t text, k int NOT NULL, id int NOT NULL);
	ALTER TABLE moving ATTACH PARTITION moving_2 FOR VALUES IN (2);
	INSERT INTO moving SELECT i, 1, 't' FROM generate_series(1, 4) i;
	SQL
$pg->sql('UPDATE moving SET k = 2 WHERE id IN (2, 3)');
changes_are('Moving', [ map { (qq(delete|{"id":$_,"k":1,"t":"t"}|$_|1|t), qq(update|{"id":$_,"k":1,"t":"t"}|$_|2|t)) } 2, 3 ],
	'transition tables of a partitioned table: rows that move');
# A BEFORE trigger keeps a row out of its new partition: old and new rows are not in step any more.
$pg->sql(<<~'SQL');
	CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.id = 4 THEN RETURN NULL; END IF; RETURN NEW; END';
	CREATE TRIGGER keep_out BEFORE INSERT ON moving_2 FOR EACH ROW EXECUTE FUNCTION keep_out();
	INSERT INTO moving VALUES (5, 1, 't');
	SQL
$outbox->changes('Moving');
$pg->sql(q(UPDATE moving SET k = 2, t = 'moved' WHERE id IN (1, 4, 5)));
is_deeply([ map { s/\{.*?\}//r } $outbox->changes('Moving') ],
	[ map({ "delete||$_|1|t" } 1, 4, 5), map { "update||$_|2|moved" } 1, 5 ], 'a row that moves and never arrives is deleted');

# ---- DDL, in this session and in others ----

$pg->sql('CREATE TABLE d (id int PRIMARY KEY, n int);' . OutboxRows::triggers('d', 'D'));
my $other = $pg->session;
my $prepared = q(PREPARE put (int) AS INSERT INTO d (id) VALUES ($1));
$_->sql($prepared) for $session, $other;
$session->sql('EXECUTE put (1)');
$other->sql('EXECUTE put (2)');
$session->sql(q(ALTER TABLE d ADD t text DEFAULT 'new'));
$session->sql('EXECUTE put (3)');
$other->sql('EXECUTE put (4)');
$session->sql('ALTER TABLE d RENAME n TO m');
$session->sql('EXECUTE put (5)');
$other->sql('EXECUTE put (6)');
$session->sql('ALTER TABLE d DROP m');
$other->sql('EXECUTE put (7)');
$session->sql('EXECUTE put (8)');
$other->sql('ALTER TABLE d ADD j int DEFAULT 5; ALTER TABLE d ALTER j TYPE text');
$other->sql('EXECUTE put (9)');
$session->sql('EXECUTE put (10)');
changes_are('D', [
		'insert|1|', 'insert|2|', 'insert|3||new', 'insert|4||new', 'insert|5||new', 'insert|6||new', 'insert|7||new',
		'insert|8||new', 'insert|9||new|5', 'insert|10||new|5' ], 'ALTER TABLE');
$session->sql($_) for 'BEGIN', 'INSERT INTO d (id) VALUES (11)', 'ALTER TABLE d ADD u text', q(INSERT INTO d (id, u) VALUES (12, 'u')), 'COMMIT';
changes_are('D', [ 'insert|11||new|5', 'insert|12||new|5|u' ], '... between two statements of a transaction');
$session->sql($_) for 'BEGIN', 'ALTER TABLE d ADD v int DEFAULT 1', 'INSERT INTO d (id) VALUES (13)', 'ROLLBACK', 'INSERT INTO d (id) VALUES (14)';
changes_are('D', ['insert|14||new|5|'], '... and rolled back');
$session->sql(q(CREATE TABLE price (m money); SET lc_monetary = 'C'));
$session->sql($_) for split /;\n/, OutboxRows::triggers('price', 'Price');
$session->sql('INSERT INTO price VALUES (1.25::numeric::money)');
changes_are('Price', ['insert|1.25'], 'money');

# ---- who fires it ----

$pg->sql(<<~'SQL');
	CREATE ROLE writer LOGIN;
	CREATE TABLE guarded (i int, owner text);
	GRANT INSERT (i) ON guarded TO writer;
	ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
	CREATE POLICY p ON guarded FOR INSERT WITH CHECK (i > 0);
	SQL
$pg->sql(OutboxRows::triggers('guarded', 'Guarded'));
$pg->sql('INSERT INTO guarded VALUES (1)', user => 'writer');
changes_are('Guarded', ['insert|1|'], 'whoever may change the table needs no further privileges');
$pg->fails_like('INSERT INTO kusto.outbox_0 SELECT', { sqlstate => '42501' }, '... and has none', user => 'writer');
$pg->sql('CREATE TABLE undirected (i int); GRANT INSERT ON undirected TO writer;' . OutboxRows::triggers('undirected', 'Undirected'));
my $chosen = q(SET kusto_ingest.default_server = 'adx'; INSERT INTO undirected VALUES (1));
$pg->fails_like($chosen, { sqlstate => '42501', message => qr/to which server/, hint => qr/third argument/ },
	'nobody else chooses where the changes of a table go', user => 'writer');
$pg->sql($chosen);
$pg->sql('INSERT INTO undirected VALUES (2)', user => 'writer');
changes_are('Undirected', [ 'insert|1', 'insert|2' ], '... than its owner');
$pg->sql('CREATE TABLE deferred (i int); CREATE TABLE log (i int);' . OutboxRows::triggers('log', 'Log'));
$pg->sql(<<~'SQL');
	CREATE FUNCTION log_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO log VALUES (NEW.i); RETURN NULL; END';
	CREATE CONSTRAINT TRIGGER late AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION log_it();
	SQL
$pg->sql('INSERT INTO deferred VALUES (1), (2)');
changes_are('Log', [ 'insert|1', 'insert|2' ], 'changes by a trigger that was deferred to the commit');
$pg->sql('CREATE TABLE two (i int);' . OutboxRows::triggers('two', 'Two') . OutboxRows::triggers('two', 'Second') =~ s/Kusto_/Kusto_2_/gr);
$pg->sql('INSERT INTO two VALUES (1)');
changes_are($_, ['insert|1'], "a table that is captured twice: $_") for qw(Two Second);

# ---- the limit ----

$pg->set_config('kusto_ingest.outbox_limit' => '64kB', 'kusto_ingest.outbox_limit_action' => 'error');
my $full = $pg->session;
$pg->poll(q(SELECT current_setting('kusto_ingest.outbox_limit') = '64kB'));
my ($out, $error) = $full->try('INSERT INTO b VALUES (30)');
$pg->error_is($error, { sqlstate => '53400', message => qr/reached its limit/, detail => qr/64 kB/, hint => qr/kusto\.captures/ }, 'the outbox is full');
changes_are('B', [], '... and nothing was recorded');
$pg->set_config('kusto_ingest.outbox_limit_action' => 'warn');
$pg->poll(q(SELECT current_setting('kusto_ingest.outbox_limit_action') = 'warn'));
$full->sql($_) for 'SET client_min_messages = warning', 'INSERT INTO b VALUES (31)', 'INSERT INTO b VALUES (32)';
changes_are('B', [ 'insert|31', 'insert|32' ], 'where that is only a warning it is recorded');
my $warnings = () = slurp_file($pg->node->logfile) =~ /WARNING:.*the outbox of row changes/g;
is($warnings, 1, '... which a session says once a minute');
$pg->set_config('kusto_ingest.outbox_limit' => '-1');

# ---- the extension goes and comes back ----

sub create_anew
{
	$session->sql('CREATE EXTENSION kusto_ingest');
	$session->sql(q(CREATE SERVER adx FOREIGN DATA WRAPPER kusto OPTIONS (query_uri 'http://127.0.0.1:9', ingest_uri 'http://127.0.0.1:9')));
	$session->sql(q(CREATE USER MAPPING FOR PUBLIC SERVER adx OPTIONS (auth 'none')));
	$session->sql($_) for split /;\n/, OutboxRows::triggers('b', 'B');
	return;
}

$session->sql($_) for 'BEGIN', 'INSERT INTO b VALUES (39)', 'DROP EXTENSION kusto_ingest CASCADE', 'COMMIT';
$session->sql('INSERT INTO b VALUES (40)');
create_anew();
$session->sql('INSERT INTO b VALUES (41)');
is(join(' ', map { $_->[4] } $outbox->rows('B')), '41', 'DROP and CREATE EXTENSION in one session');
$session->sql($_) for 'BEGIN', 'INSERT INTO b VALUES (42)', 'DROP EXTENSION kusto_ingest CASCADE';
create_anew();
$session->sql($_) for 'INSERT INTO b VALUES (43)', 'COMMIT';
is(join(' ', map { $_->[4] } $outbox->rows('B')), '43', 'and in one transaction');
$_->quit for $session, $other, $full;

done_testing();
