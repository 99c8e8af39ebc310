# Row changes and DDL: captured tables are altered, renamed, moved, dropped, attached, dumped and
# restored, and captures begin and end in transactions that roll back or meet each other.
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

# Rows of a table in Kusto by _seq: _op and what stands behind _changed_at, as text.
sub changes
{
	my ($table) = @_;
	my @rows = sort { $a->[2] <=> $b->[2] } @{ $kusto->rows($db, $table) };
	return map { join '|', map { $_ // '' } $_->[0], @{$_}[ 4 .. $#$_ ] } @rows;
}

# Tests what Kusto has been sent of all that was committed so far.
sub changes_are
{
	my ($table, $expected, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @got;
	is($pg->sql(q(SELECT kusto_flush('120 s')), %options), 't', "$name: all is sent");
	# What was queued is staged now, and arrives.
	eval { wait_until(sub { @got = eval { changes($table) }; @got >= @$expected }, 'rows in Kusto', 60) };
	return is_deeply(\@got, $expected, $name);
}

sub capture_is
{
	my ($relation, $column, $expected, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($pg->sql("SELECT $column FROM kusto.captures WHERE relation = '$relation'::regclass AND ended_at IS NULL", %options),
		$expected, $name);
}

# kusto_capture() to a table that the worker makes.
sub capture
{
	my ($relation, $table, $more, %options) = @_;
	return $pg->sql("SELECT kusto_capture('$relation', '$db', '$table', create_table => true" . ($more // '') . ')', %options);
}

# ---- columns ----

$pg->sql('CREATE TABLE a (id int PRIMARY KEY, n int, gone text)');
capture('a', 'A');
$pg->sql(q(INSERT INTO a VALUES (1, 10, 'x')));
$pg->sql('ALTER TABLE a ADD more float8 DEFAULT 0.5');
$pg->sql(q(INSERT INTO a VALUES (2, 20, 'y', 1.5)));
changes_are('A', [ 'insert|1|10|x|', 'insert|2|20|y|1.5' ], 'a column is added at the end');
$pg->sql('ALTER TABLE a DROP gone');
$pg->sql('INSERT INTO a VALUES (3, 30, 2.5)');
changes_are('A', [ 'insert|1|10|x|', 'insert|2|20|y|1.5', 'insert|3|30||2.5' ], 'a dropped column is empty');
$pg->sql('ALTER TABLE a RENAME more TO renamed');
$pg->sql('UPDATE a SET renamed = 3.5 WHERE id = 3');
$pg->sql(q(ALTER TABLE a ALTER n TYPE text USING 'n' || n));
$pg->sql(q(INSERT INTO a VALUES (4, 'forty', 4.5)));
my @columns = split /, /, $pg->sql(q{SELECT (regexp_match(command, '\((.*)\)$'))[1] FROM kusto_capture_views('a') LIMIT 1});
is_deeply([ @columns[ 4 .. $#columns ] ],
	[ q(['id']:int), q(['n']:int), q(['gone']:string), q(['more']:real), q(['n_string']:string) ],
	'a renamed column keeps its name in Kusto, and one of another type is a new one there');
changes_are('A',
	[ 'insert|1|10|x||', 'insert|2|20|y|1.5|', 'insert|3|30||2.5|', 'update|3|30||3.5|', 'insert|4|||4.5|forty' ],
	'and the rows are in these columns');
$pg->sql('ALTER TABLE a ALTER n TYPE int USING length(n)');
$pg->sql('ALTER TABLE a ADD gone text');
$pg->sql(q(INSERT INTO a VALUES (5, 50, 5.5, 'back')));
is($kusto->rows($db, 'A')->[0] && scalar @{ $kusto->rows($db, 'A')->[0] }, 9, 'a column that is back');
changes_are('A',
	[ 'insert|1|10|x||', 'insert|2|20|y|1.5|', 'insert|3|30||2.5|', 'update|3|30||3.5|', 'insert|4|||4.5|forty',
		'insert|5|50|back|5.5|' ], 'fills the old one when name and type are the same');
# In one transaction, in which nothing has been sent in between.
$pg->sql(<<~'SQL');
	BEGIN;
	INSERT INTO a VALUES (6, 60, 6.5, 'before');
	ALTER TABLE a ADD later int;
	INSERT INTO a VALUES (7, 70, 7.5, 'after', 7);
	ALTER TABLE a DROP later;
	INSERT INTO a VALUES (8, 80, 8.5, 'last');
	COMMIT;
	SQL
is_deeply([ do { $pg->sql(q(SELECT kusto_flush('120 s'))); wait_until(sub { changes('A') >= 9 }, 'rows'); (changes('A'))[ 6 .. 8 ] } ],
	[ 'insert|6|60|before|6.5||', 'insert|7|70|after|7.5||7', 'insert|8|80|last|8.5||' ],
	'changes before and after an ALTER TABLE in one transaction');
# And rolled back: the column never was.
$pg->sql('BEGIN; ALTER TABLE a ADD phantom int; INSERT INTO a VALUES (99); ROLLBACK');
$pg->sql('INSERT INTO a (id) VALUES (9)');
is($pg->sql(q(SELECT count(*) FROM kusto_capture_views('a') WHERE command LIKE '%phantom%')), 0, 'an ALTER TABLE that is rolled back leaves no column');
$pg->fails_like('ALTER TABLE a ADD _op int; INSERT INTO a (id, _op) VALUES (10, 1)',
	{ sqlstate => '42701', message => qr/"_op"/, hint => qr/Rename/ }, 'a new column whose name is taken in Kusto stops the change');
$pg->sql('ALTER TABLE a DROP _op');

# ---- a table that the user has made in Kusto ----

$pg->sql('CREATE TABLE u (id int PRIMARY KEY, n int)');
$pg->sql("SELECT kusto_capture('u', '$db', 'U')");
$kusto->command($db, $pg->sql(q(SELECT command FROM kusto_capture_views('u') LIMIT 1)));
$pg->sql('INSERT INTO u VALUES (1, 1)');
changes_are('U', ['insert|1|1'], 'a table that the user has made');
$pg->sql('ALTER TABLE u ADD s text');
$pg->sql(q(INSERT INTO u VALUES (2, 2, 'two')));
$pg->poll(q(SELECT state = 'waiting for columns' AND last_error IS NOT NULL FROM kusto.captures WHERE relation = 'u'::regclass),
	't', 'it lacks a column: the capture waits');
my ($command) = $pg->sql(q(SELECT concat_ws(' ', last_error, last_error_details, last_error_hint) FROM kusto.captures WHERE relation = 'u'::regclass)) =~ /(\.create-merge table .*?\)(?=$|\s))/m;
is($command, $pg->sql(q(SELECT command FROM kusto_capture_views('u') LIMIT 1)), 'and says what to run');
capture_is('u', 'lag_rows', 1, 'meanwhile the row lags');
is($pg->sql(q(SELECT kusto_flush('0 s'))), 'f', 'kusto_flush() says so, too');
is_deeply([ changes('U') ], ['insert|1|1'], 'and is not sent');
$kusto->command($db, $command // '');
$pg->sql("SELECT kusto_capture('u', '$db', 'U')");
changes_are('U', [ 'insert|1|1|', 'insert|2|2|two' ], 'kusto_capture() again: it goes on');
capture_is('u', q(concat(state, last_error)), 'active', 'and is well again');
$pg->sql('ALTER TABLE u DROP n');
$pg->sql(q(INSERT INTO u VALUES (3, 'three')));
changes_are('U', [ 'insert|1|1|', 'insert|2|2|two', 'insert|3||three' ], 'a column less takes nobody');

# ---- the table's name, schema and owner ----

$pg->sql(<<~'SQL');
	CREATE SCHEMA elsewhere;
	CREATE ROLE heir;
	CREATE TABLE m (id int PRIMARY KEY);
	SQL
capture('m', 'M');
$pg->sql('INSERT INTO m VALUES (1)');
$pg->sql('ALTER TABLE m RENAME TO moved');
$pg->sql('INSERT INTO moved VALUES (2)');
$pg->sql('ALTER TABLE moved SET SCHEMA elsewhere');
$pg->sql('INSERT INTO elsewhere.moved VALUES (3)');
$pg->sql('ALTER TABLE elsewhere.moved OWNER TO heir');
$pg->sql('INSERT INTO elsewhere.moved VALUES (4)');
changes_are('M', [ map { "insert|$_" } 1 .. 4 ], 'renamed, in another schema, of another owner: still captured');
capture_is('elsewhere.moved', q(concat_ws(' ', relation, relation_name, owner = 'heir')), 'elsewhere.moved public.m f',
	'the view has the new name and the name that it began with');
$pg->fails_like("SELECT kusto_capture('elsewhere.moved', '$db', 'M', create_table => true)",
	{ sqlstate => '42501', message => qr/server adx/, context => qr/"heir", the owner/ }, 'the new owner needs USAGE');
$pg->sql('GRANT USAGE ON FOREIGN SERVER adx TO heir');
$pg->fails_like("SELECT kusto_capture('elsewhere.moved', '$db', 'M', create_table => true)",
	{ sqlstate => '42704', message => qr/user mapping.*"heir"/ }, 'and a mapping of its own');
$pg->sql(sprintf q(CREATE USER MAPPING FOR heir SERVER adx OPTIONS (auth 'client_secret', tenant %s, client_id %s, client_secret %s)),
	map { literal($_) } $kusto->tenant, $kusto->client_id, $kusto->client_secret);
capture('elsewhere.moved', 'M');
capture_is('elsewhere.moved', 'owner', 'heir', 'kusto_capture() again: sent as the new owner');
$pg->sql('INSERT INTO elsewhere.moved VALUES (5)');
changes_are('M', [ map { "insert|$_" } 1 .. 5 ], 'and it goes on');

# ---- the end ----

$pg->sql('INSERT INTO elsewhere.moved VALUES (6)');
$pg->sql('DROP TABLE elsewhere.moved');
changes_are('M', [ map { "insert|$_" } 1 .. 6 ], 'dropped: what was captured is still sent');
$pg->poll(q(SELECT count(*) = 0 FROM kusto.captures WHERE table_name = 'M'), 't', 'and then the capture is gone');
$pg->sql('CREATE TABLE e (id int PRIMARY KEY)');
capture('e', 'E');
$pg->sql('BEGIN; INSERT INTO e VALUES (1); DROP TABLE e; COMMIT');
changes_are('E', ['insert|1'], 'a change and the drop in one transaction');
$pg->sql('CREATE TABLE e (id int PRIMARY KEY)');
capture('e', 'E2');
$pg->sql('INSERT INTO e VALUES (1)');
$pg->sql(q(SELECT kusto_uncapture('e')));
$pg->sql('INSERT INTO e VALUES (2)');
changes_are('E2', ['insert|1'], 'kusto_uncapture(): what was captured is sent, and no more');
$pg->poll(q(SELECT count(*) = 0 FROM kusto.captures WHERE table_name = 'E2'), 't', 'and then the capture is gone');

# Fields go by position, and the Kusto table is the old one.
$pg->sql('CREATE TABLE again (id int PRIMARY KEY, x int, y int)');
capture('again', 'Again');
$pg->sql('INSERT INTO again VALUES (1, 11, 12)');
changes_are('Again', ['insert|1|11|12'], 'a capture');
$pg->sql(q(SELECT kusto_uncapture('again')));
$pg->poll(q(SELECT count(*) = 0 FROM kusto.captures WHERE table_name = 'Again'), 't', 'that is given up');
$pg->sql('ALTER TABLE again DROP x, ADD z int');
capture('again', 'Again');
$pg->sql('INSERT INTO again VALUES (2, 22, 23)');
changes_are('Again', [ 'insert|1|11|12|', 'insert|2||22|23' ], 'a later one to the same Kusto table keeps the order of its columns');
$pg->sql('DROP TABLE again');
$pg->sql('CREATE TABLE again (y int, id int PRIMARY KEY)');
capture('again', 'Again');
$pg->sql('INSERT INTO again VALUES (32, 3)');
changes_are('Again', [ 'insert|1|11|12|', 'insert|2||22|23', 'insert|3||32|' ], 'and so does another table');
$pg->poll(q(SELECT count(*) = 1 FROM kusto.capture WHERE table_name = 'Again'), 't', 'of several that are over none is left');

# Several tables to one Kusto table, whose columns they add in turn, and both at once.
$pg->sql("CREATE TABLE $_ (id int PRIMARY KEY, note text)") for qw(one two);
capture($_, 'Both') for qw(one two);
$pg->sql(q(INSERT INTO one VALUES (1, 'a')));
$pg->sql(q(INSERT INTO two VALUES (2, 'b')));
$pg->sql('ALTER TABLE one ADD phone text; ALTER TABLE two ADD salary text');
my $adding = $pg->session;
$adding->sql(q(BEGIN; INSERT INTO one VALUES (3, 'a', 'phone-of-3')));
my $waiting = $pg->session;
$waiting->send(q(INSERT INTO two VALUES (4, 'b', 'salary-of-4')));
$pg->poll('SELECT count(*) FROM pg_stat_activity WHERE pid = ' . $waiting->pid . q( AND wait_event_type = 'Lock'), '1',
	'two tables to one Kusto table: only one adds columns at a time');
$adding->sql('COMMIT');
$waiting->receive;
$pg->sql('ALTER TABLE one ADD salary text, ADD age int');
$pg->sql(q(INSERT INTO one VALUES (5, 'a', 'phone-of-5', 'salary-of-5', 55)));
$pg->sql(q(INSERT INTO two VALUES (6, 'b', 'salary-of-6')));
changes_are('Both', [ 'insert|1|a|||', 'insert|2|b|||', 'insert|3|a|phone-of-3||', 'insert|4|b||salary-of-4|',
	'insert|5|a|phone-of-5|salary-of-5|55', 'insert|6|b||salary-of-6|' ], 'each value is in the column of its name');
# The one that knows most columns is over first; the other, and whoever comes later, knows them all.
$pg->sql(q(SELECT kusto_uncapture('one')));
$pg->poll(q(SELECT count(*) = 1 FROM kusto.captures WHERE table_name = 'Both'), 't', 'one of them is given up');
$pg->sql('ALTER TABLE two ADD late text');
$pg->sql(q(INSERT INTO two VALUES (7, 'b', 'salary-of-7', 'late-of-7')));
$pg->sql('DROP TABLE two');
$pg->sql('CREATE TABLE three (late text, id int PRIMARY KEY)');
capture('three', 'Both');
$pg->sql(q(INSERT INTO three VALUES ('late-of-8', 8)));
changes_are('Both', [ 'insert|1|a||||', 'insert|2|b||||', 'insert|3|a|phone-of-3|||', 'insert|4|b||salary-of-4||',
	'insert|5|a|phone-of-5|salary-of-5|55|', 'insert|6|b||salary-of-6||', 'insert|7|b||salary-of-7||late-of-7',
	'insert|8|||||late-of-8' ], 'and what is added later stands behind all of them');
$pg->poll(q(SELECT count(*) = 1 FROM kusto.capture WHERE table_name = 'Both'), 't', 'of those that are over none is left');

# A capture that is alone does not let its sessions wait for each other.
$pg->sql('CREATE TABLE alone (id int PRIMARY KEY)');
capture('alone', 'Alone');
$pg->sql('ALTER TABLE alone ADD more int');
$adding->sql('BEGIN; INSERT INTO alone VALUES (1, 11)');
$pg->sql('INSERT INTO alone VALUES (2, 12)');
$adding->sql('COMMIT');
changes_are('Alone', [ 'insert|1|11', 'insert|2|12' ], 'two sessions find a new column at the same time');

# ---- tables that get relatives ----

# Statement-level triggers would miss what comes by way of the parent, or report what is the children's.
sub triggers_by_row
{
	my ($relation) = @_;
	return $pg->sql("SELECT count(*) FROM pg_trigger WHERE tgrelid = '$relation'::regclass AND NOT tgisinternal AND tgtype & 33 = 1");
}

sub trigger_properties
{
	my ($relation) = @_;
	return $pg->sql("SELECT tgname, tgtype & ~1, tgenabled, tgargs, tgfoid, obj_description(oid, 'pg_trigger') FROM pg_trigger WHERE tgrelid = '$relation'::regclass AND NOT tgisinternal ORDER BY 1");
}

# The library is there as soon as it has something to do.
my $loaded = "LOAD 'kusto_ingest'; ";
$pg->sql('CREATE TABLE root (id int PRIMARY KEY, note text) PARTITION BY RANGE (id); CREATE TABLE part (LIKE root INCLUDING ALL)');
capture('part', 'Part');
$pg->sql(q(INSERT INTO part VALUES (1, 'alone')));
my $attach = 'ALTER TABLE root ATTACH PARTITION part FOR VALUES FROM (0) TO (100)';
$pg->sql("${loaded}BEGIN; $attach; ROLLBACK");
is(triggers_by_row('part'), 0, 'a captured table that does not become a partition after all has the triggers that it had');
my ($insert_trigger, $update_trigger) = map { $pg->sql("SELECT tgname FROM pg_trigger WHERE tgrelid = 'part'::regclass AND tgname LIKE '%$_'") } qw(insert update);
$pg->sql(qq(ALTER TABLE part ENABLE ALWAYS TRIGGER "$insert_trigger", DISABLE TRIGGER "$update_trigger"));
my $properties = trigger_properties('part');
$pg->sql("$loaded$attach");
is(triggers_by_row('part'), 3, 'a captured table that becomes a partition has row-level triggers');
is(trigger_properties('part'), $properties, 'which otherwise are as they were');
$pg->sql(qq(ALTER TABLE part ENABLE TRIGGER "$insert_trigger", ENABLE TRIGGER "$update_trigger"));
capture_is('part', 'triggers', 'enabled', 'of the right kind');
$pg->sql(q(INSERT INTO root VALUES (2, 'by the parent'); UPDATE root SET note = 'z' WHERE id = 1; INSERT INTO part VALUES (3, 'by itself'); DELETE FROM root WHERE id = 2));
changes_are('Part', [ 'insert|1|alone', 'insert|2|by the parent', 'update|1|z', 'insert|3|by itself', 'delete|2|by the parent' ],
	'and all of its changes are captured, by the same capture');

$pg->sql('CREATE TABLE mother (id int PRIMARY KEY, note text); CREATE TABLE child (LIKE mother INCLUDING ALL)');
capture($_, ucfirst) for qw(mother child);
$pg->sql("${loaded}ALTER TABLE child INHERIT mother");
is(triggers_by_row($_), 3, "ALTER TABLE INHERIT: the same of the $_") for qw(mother child);
$pg->sql(q(INSERT INTO mother VALUES (1, 'a'); INSERT INTO child VALUES (10, 'b'); UPDATE mother SET note = 'c'; DELETE FROM mother WHERE id = 10));
changes_are('Mother', [ 'insert|1|a', 'update|1|c' ], 'the child\'s rows are not the parent\'s');
changes_are('Child', [ 'insert|10|b', 'update|10|c', 'delete|10|c' ], 'and the child knows what became of them by way of it');

$pg->sql('CREATE TABLE aunt (id int PRIMARY KEY, note text)');
capture('aunt', 'Aunt');
$pg->sql("${loaded}CREATE TABLE cousin () INHERITS (aunt)");
is(triggers_by_row('aunt'), 3, 'CREATE TABLE INHERITS: the same of the parent');
$pg->sql("${loaded}ALTER TABLE IF EXISTS nobody INHERIT aunt; ALTER TABLE cousin NO INHERIT aunt; CREATE TABLE grandchild () INHERITS (cousin)");
pass('other commands go on');

$pg->sql(<<~"SQL");
	CREATE TABLE choosy (LIKE root INCLUDING ALL);
	CREATE TRIGGER choosy AFTER INSERT ON choosy REFERENCING NEW TABLE AS n FOR EACH STATEMENT WHEN (current_user <> 'nobody')
		EXECUTE FUNCTION kusto_capture_changes('$db', 'Choosy', 'adx');
	SQL
$pg->fails_like("${loaded}ALTER TABLE root ATTACH PARTITION choosy FOR VALUES FROM (100) TO (200)",
	{ sqlstate => '0A000', message => qr/"choosy".*row-level/, detail => qr/WHEN/, hint => qr/FOR EACH ROW/ }, 'a trigger with a condition stops the command');

# A session without the library leaves them as they are.
$pg->sql('CREATE TABLE uncle (id int PRIMARY KEY, note text); CREATE TABLE nephew (LIKE uncle INCLUDING ALL)');
capture('uncle', 'Uncle');
capture_is('uncle', 'triggers', 'enabled', 'a table without relatives');
$pg->sql('ALTER TABLE nephew INHERIT uncle');
capture_is('uncle', 'triggers', 'by statement', 'a session without the library makes it a parent: kusto.captures shows it');
my ($status, undef, $stderr) = $pg->node->psql('postgres', q(INSERT INTO uncle VALUES (1, 'a'), (2, 'b'); INSERT INTO uncle VALUES (3, 'c')));
is($status, 0, 'its own changes are captured');
my @warnings = $stderr =~ /(WARNING:  trigger "Kusto_capture_\d+_insert" does not capture row changes of table "uncle" rightly)/g;
is(@warnings, 1, 'with a warning, once in a session') or diag $stderr;
capture('uncle', 'Uncle');
capture_is('uncle', 'triggers', 'enabled', 'kusto_capture() again: all is well');
$pg->sql(q(INSERT INTO nephew VALUES (10, 'the child'); UPDATE uncle SET note = 'z' WHERE id IN (1, 10)));
changes_are('Uncle', [ 'insert|1|a', 'insert|2|b', 'insert|3|c', 'update|1|z' ], 'and the child\'s rows are not its own');

# ---- transactions that roll back ----

$pg->sql('CREATE TABLE r (id int PRIMARY KEY)');
$pg->sql("BEGIN; SELECT kusto_capture('r', '$db', 'R', create_table => true); INSERT INTO r VALUES (1); ROLLBACK");
$pg->sql('INSERT INTO r VALUES (1)');
is($pg->sql(q(SELECT count(*) FROM kusto.captures WHERE table_name = 'R')), 0, 'a capture that is rolled back never was');
is($pg->sql(q(SELECT count(*) FROM pg_trigger WHERE tgrelid = 'r'::regclass)), 0, 'nor its triggers');
$pg->sql(<<~"SQL");
	BEGIN;
	SAVEPOINT s;
	SELECT kusto_capture('r', '$db', 'R', create_table => true);
	INSERT INTO r VALUES (2);
	ROLLBACK TO s;
	SELECT kusto_capture('r', '$db', 'R', create_table => true);
	INSERT INTO r VALUES (3);
	COMMIT;
	SQL
changes_are('R', ['insert|3'], 'rolled back to a savepoint, and then done');
$pg->sql(q(BEGIN; SELECT kusto_uncapture('r'); INSERT INTO r VALUES (4); ROLLBACK));
$pg->sql('INSERT INTO r VALUES (5)');
changes_are('R', [ 'insert|3', 'insert|5' ], 'kusto_uncapture() that is rolled back');
capture_is('r', q(concat_ws(' ', state, triggers)), 'active enabled', 'and all is as before');
$pg->sql(q(BEGIN; INSERT INTO r VALUES (6); SELECT kusto_uncapture('r'); COMMIT));
changes_are('R', [ 'insert|3', 'insert|5', 'insert|6' ], 'a change, and kusto_uncapture() in the same transaction');

# ---- partitions ----

$pg->sql(<<~'SQL');
	CREATE TABLE p (id int, n int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
	CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (1) TO (10);
	CREATE TABLE p_2 (junk int, n int, id int NOT NULL);
	ALTER TABLE p_2 DROP junk;
	INSERT INTO p_2 (id, n) VALUES (10, 0);
	SQL
capture('p', 'P');
$pg->sql('INSERT INTO p VALUES (1, 1)');
$pg->sql('ALTER TABLE p ATTACH PARTITION p_2 FOR VALUES FROM (10) TO (20)');
$pg->sql('INSERT INTO p VALUES (11, 2); INSERT INTO p_2 (id, n) VALUES (12, 3)');
my @partitioned = ('insert|1|1', 'insert|11|2', 'insert|12|3');
changes_are('P', \@partitioned, 'an attached partition, whose columns are elsewhere, is captured');
$pg->sql('CREATE TABLE p_3 PARTITION OF p FOR VALUES FROM (20) TO (30)');
$pg->sql('INSERT INTO p VALUES (21, 4)');
push @partitioned, 'insert|21|4';
changes_are('P', \@partitioned, 'and so is a new one');
capture_is('p', 'triggers', 'enabled', 'whose triggers are seen');
$pg->sql('ALTER TABLE p DETACH PARTITION p_2');
$pg->sql('INSERT INTO p_2 (id, n) VALUES (13, 5); INSERT INTO p VALUES (2, 6)');
push @partitioned, 'insert|2|6';
changes_are('P', \@partitioned, 'a detached one is not captured any more');
$pg->sql(q(ALTER TABLE p ADD s text));
$pg->sql(q(INSERT INTO p_3 VALUES (22, 7, 'x')));
changes_are('P', [ (map { "$_|" } @partitioned), 'insert|22|7|x' ], 'a column added to the partitioned table');

# ---- sessions that meet ----

my ($one, $two) = ($pg->session, $pg->session);
$pg->sql('CREATE TABLE c (id int PRIMARY KEY)');

sub waits
{
	my ($session, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $pg->poll('SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND pid = ' . $session->pid, 't', $name);
}

sub receives
{
	my ($session, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $outcome = $session->receive;
	return unlike($outcome->{err}, qr/ERROR|FATAL/, $name);
}

$one->sql("BEGIN; SELECT kusto_capture('c', '$db', 'C', create_table => true)");
$two->send("SELECT kusto_capture('c', '$db', 'C', create_table => true)");
waits($two, 'two capture a table to the same target: one waits');
$one->sql('COMMIT');
receives($two, 'and finds the other\'s');
is($pg->sql(q(SELECT count(*) FROM kusto.captures WHERE table_name = 'C')), 1, 'there is one capture');
is($pg->sql(q(SELECT count(*) FROM pg_trigger WHERE tgrelid = 'c'::regclass)), 4, 'with its triggers once');
$pg->sql('INSERT INTO c VALUES (1)');
changes_are('C', ['insert|1'], 'and a change is sent once');

# A trigger made by hand registers its capture when it fires first.
sub by_hand
{
	my ($table, $target) = @_;
	return $pg->sql(<<~"SQL");
		CREATE TABLE $table (id int PRIMARY KEY);
		CREATE TRIGGER by_hand AFTER INSERT ON $table REFERENCING NEW TABLE AS n FOR EACH STATEMENT
			EXECUTE FUNCTION kusto_capture_changes('$db', '$target', 'adx', 'create_table=true');
		SQL
}

by_hand('h', 'H');
$two->sql('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM c');
$one->sql('BEGIN; INSERT INTO h VALUES (1)');
$two->send('INSERT INTO h VALUES (2)');
waits($two, 'two register the same capture: one waits');
$one->sql('COMMIT');
receives($two, 'and uses the other\'s, which is newer than its snapshot');
$two->sql('COMMIT');
changes_are('H', [ 'insert|1', 'insert|2' ], 'both changes are sent');
is($pg->sql(q(SELECT count(*) FROM kusto.captures WHERE table_name = 'H')), 1, 'of one capture');

$pg->sql('CREATE TABLE n (id int PRIMARY KEY)');
$two->sql('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM c');
capture('n', 'N');
$pg->sql('ALTER TABLE n ADD m int');
$two->sql('INSERT INTO n VALUES (1, 2)');
pass('new columns of a capture that is newer than the snapshot');
$two->sql("SELECT kusto_capture('n', '$db', 'N', create_table => true, events => '{insert}')");
$two->sql('COMMIT');
is($pg->sql(q(SELECT count(*) FROM pg_trigger WHERE tgrelid = 'n'::regclass)), 1, 'which kusto_capture() finds, and its triggers');
changes_are('N', ['insert|1|2'], 'the change is sent');
is($pg->sql(q(SELECT count(*) FROM kusto.captures WHERE table_name = 'N')), 1, 'of one capture');

by_hand('h2', 'H2');
$one->sql('BEGIN; INSERT INTO h2 VALUES (1)');
$two->send('INSERT INTO h2 VALUES (2)');
waits($two, 'the same again');
$one->sql('ROLLBACK');
receives($two, 'but the first gives up: the other registers it');
changes_are('H2', ['insert|2'], 'and its change is sent');

$pg->sql('CREATE TABLE s (id int PRIMARY KEY)');
capture('s', 'S');
$pg->sql('ALTER TABLE s ADD n int');
$one->sql('BEGIN ISOLATION LEVEL REPEATABLE READ; INSERT INTO s VALUES (1, 1)');
$two->sql('BEGIN; INSERT INTO s VALUES (2, 2); COMMIT');
pass('two find a new column at the same time: neither waits');
$one->sql('COMMIT');
is_deeply([ sort { $a cmp $b } do { $pg->sql(q(SELECT kusto_flush('120 s'))); wait_until(sub { changes('S') >= 2 }, 'rows'); changes('S') } ],
	[ 'insert|1|1', 'insert|2|2' ], 'and both rows are sent');
is($pg->sql(q(SELECT count(DISTINCT s.shape) FROM kusto.capture_shape s JOIN kusto.capture c ON c.id = s.capture WHERE c.table_name = 'S')),
	2, 'with the same columns');

# ---- pg_dump and restore into another database ----

my $dump = $pg->node->basedir . '/dump.sql';
$pg->sql('CREATE TABLE d (id int PRIMARY KEY, s text)');
capture('d', 'D', q(, columns => '{id,s}'));
$pg->sql(q(INSERT INTO d VALUES (1, 'here')));
changes_are('D', ['insert|1|here'], 'a table that will be dumped');
$pg->sql('CREATE DATABASE copy');
my %copy = (dbname => 'copy');
$pg->node->command_ok([ 'pg_dump', '--no-sync', '-d', $pg->node->connstr('postgres'), '-f', $dump ], 'pg_dump');
$pg->node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', $pg->node->connstr('copy'), '-f', $dump ],
	'restored into another database');
is($pg->sql('SELECT count(*) FROM kusto.captures', %copy), 0, 'no capture comes along');
$pg->sql(q(INSERT INTO d VALUES (2, 'there')), %copy);
capture_is('d', q(concat_ws(' ', state, triggers, lag_rows, columns)), 'foreign enabled 1 {id,s}',
	'its triggers record changes, of the capture of another database', %copy);
is($pg->sql(q(SELECT kusto_flush('120 s')), %copy), 't', 'kusto_flush() waits for no such');
$pg->sql(q(INSERT INTO d VALUES (2, 'here')));
changes_are('D', [ 'insert|1|here', 'insert|2|here' ], 'nothing of them is sent');
is($pg->sql(q(BEGIN; SELECT kusto_uncapture('d'); SELECT count(*) FROM kusto.captures WHERE table_name = 'D'; ROLLBACK), %copy),
	"\n0", 'kusto_uncapture() gives them up at once');
capture('d', 'D', q(, columns => '{id,s}'), %copy);
is($pg->sql(q(SELECT kusto_flush('120 s')), %copy), 't', 'kusto_capture() makes it its own');
wait_until(sub { changes('D') == 3 }, 'the row of the copy');
is_deeply([ sort { $a cmp $b } changes('D') ], [ 'insert|1|here', 'insert|2|here', 'insert|2|there' ], 'and its changes are sent');
capture_is('d', 'state', 'active', 'as of any other', %copy);

$kusto->assert_no_violations;
done_testing();
