# Row changes are recorded in the order in which they happened: replayed by _seq they give the table,
# also when triggers change rows, and when transactions wait for each other.
use strict;
use warnings;

use KustoCluster;
use OutboxRows;
use PostgreSQL::Test::Utils;
use Test::More;

my $pg = KustoCluster->start(undef, conf => "session_preload_libraries = 'kusto_ingest'\n");
my $outbox = OutboxRows->new($pg);

# Tests that a table, whose primary key is its first column, is what its changes make.
sub replays
{
	my ($relation, $table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my (%row, @log);
	for my $change ($outbox->rows($table))
	{
		my ($op, undef, $seq, undef, $key, @rest) = @$change;
		push @log, join '|', $op, $seq >> 20, $seq & 0xfffff, map { $_ // '' } $key, @rest;
		if ($op eq 'truncate') { %row = () }
		elsif ($op eq 'delete') { delete $row{$key} }
		else { $row{$key} = join '|', map { $_ // '' } $key, @rest }
	}
	my @got = sort values %row;
	my @expected = sort split /\n/, $pg->sql("SELECT * FROM $relation");
	cmp_ok(scalar @log, '>', 0, "$name: changes are recorded");
	return is_deeply(\@got, \@expected, $name) || diag join "\n", @log > 40 ? @log[ -40 .. -1 ] : @log;
}

sub function
{
	my ($name, $body) = @_;
	return "CREATE FUNCTION $name() RETURNS trigger LANGUAGE plpgsql AS \$\$ BEGIN $body END \$\$;";
}

# A table of (id, n, t), captured in either way.
my %triggers = (statement => \&OutboxRows::triggers, row => \&OutboxRows::row_triggers);

sub captured_table
{
	my ($relation, $table, $kind) = @_;
	$pg->sql("CREATE TABLE $relation (id int PRIMARY KEY, n int, t text);" . $triggers{$kind}->($relation, $table));
	return;
}

for my $kind (qw(statement row))
{
	# ---- AFTER triggers for each row that change the same rows ----

	my ($t, $k) = ("again_$kind", "Again_$kind");
	captured_table($t, $k, $kind);
	$pg->sql(function("again_$kind", "UPDATE $t SET n = n + 100 WHERE id = NEW.id; RETURN NULL;"));
	$pg->sql("CREATE TRIGGER again AFTER INSERT OR UPDATE OF t ON $t FOR EACH ROW EXECUTE FUNCTION again_$kind()");
	$pg->sql("INSERT INTO $t SELECT i, i FROM generate_series(1, 5) i");
	replays($t, $k, "$kind: AFTER INSERT updates the row again");
	$pg->sql("UPDATE $t SET t = 'u'");
	replays($t, $k, "$kind: AFTER UPDATE updates the row again");
	$pg->sql("INSERT INTO $t VALUES (5, 1), (6, 1) ON CONFLICT (id) DO UPDATE SET t = 'c'");
	replays($t, $k, "$kind: ON CONFLICT");
	$pg->sql("WITH w AS (UPDATE $t SET t = 'w' WHERE id < 3 RETURNING *) INSERT INTO $t SELECT id + 10, n FROM w");
	replays($t, $k, "$kind: WITH");
	$pg->sql("COPY $t FROM stdin;\n20\t1\ta\n21\t1\tb\n\\.\n");
	replays($t, $k, "$kind: COPY");
	$pg->sql("CREATE FUNCTION put_$kind(int) RETURNS void LANGUAGE sql AS 'INSERT INTO $t VALUES (\$1, 0); UPDATE $t SET t = ''s'' WHERE id = \$1'; SELECT put_$kind(i) FROM generate_series(30, 32) i");
	replays($t, $k, "$kind: a function of several statements");

	# Others that the statement has changed, and has not reported yet.
	($t, $k) = ("next_$kind", "Next_$kind");
	captured_table($t, $k, $kind);
	$pg->sql(function("next_$kind", "UPDATE $t SET n = n + 1 WHERE id = NEW.id % 5 + 1; DELETE FROM $t WHERE id = NEW.id + 100; RETURN NULL;"));
	$pg->sql("CREATE TRIGGER next AFTER INSERT OR UPDATE OF t ON $t FOR EACH ROW EXECUTE FUNCTION next_$kind()");
	$pg->sql("INSERT INTO $t SELECT i, 0 FROM generate_series(1, 5) i");
	replays($t, $k, "$kind: AFTER INSERT updates the next row");
	$pg->sql("INSERT INTO $t SELECT i, 0 FROM generate_series(101, 105) i; UPDATE $t SET t = 'x'");
	replays($t, $k, "$kind: AFTER UPDATE deletes another row");

	# ---- back and forth between two tables ----

	my ($u, $ku) = ("pong_$kind", "Pong_$kind");
	($t, $k) = ("ping_$kind", "Ping_$kind");
	captured_table($t, $k, $kind);
	captured_table($u, $ku, $kind);
	$pg->sql(function("to_$u", "INSERT INTO $u VALUES (NEW.id, NEW.n) ON CONFLICT (id) DO UPDATE SET n = excluded.n; RETURN NULL;")
		. function("to_$t", "UPDATE $t SET n = NEW.n + 1 WHERE id = NEW.id AND n < 6; RETURN NULL;"));
	$pg->sql("CREATE TRIGGER z AFTER INSERT OR UPDATE ON $t FOR EACH ROW EXECUTE FUNCTION to_$u();"
		. "CREATE TRIGGER z AFTER INSERT OR UPDATE ON $u FOR EACH ROW EXECUTE FUNCTION to_$t()");
	$pg->sql("INSERT INTO $t VALUES (1, 0), (2, 3); UPDATE $t SET n = 2; DELETE FROM $t WHERE id = 2");
	replays($t, $k, "$kind: a chain of triggers");
	replays($u, $ku, "$kind: ... and its other end");

	# ---- BEFORE triggers ----

	($t, $k) = ("before_$kind", "Before_$kind");
	captured_table($t, $k, $kind);
	$pg->sql(function("before_$kind", "DELETE FROM $t WHERE id = NEW.id; UPDATE $t SET n = n + 1 WHERE id = NEW.n; RETURN NEW;"));
	$pg->sql("CREATE TRIGGER b BEFORE INSERT ON $t FOR EACH ROW EXECUTE FUNCTION before_$kind()");
	$pg->sql("INSERT INTO $t VALUES (1, 0), (2, 0); INSERT INTO $t VALUES (1, 2), (3, 0)");
	replays($t, $k, "$kind: BEFORE INSERT deletes what is in the way");
	$pg->sql("COPY $t FROM stdin;\n1\t2\tcopied\n4\t0\tcopied\n\\.\n");
	replays($t, $k, "$kind: ... of COPY");
	$pg->sql("CREATE FUNCTION touch_$kind(int) RETURNS int LANGUAGE sql AS 'UPDATE $t SET t = ''touched'' WHERE id = \$1 RETURNING id';"
		. "UPDATE $t SET n = touch_$kind(4) WHERE id = 1");
	replays($t, $k, "$kind: a function in the statement changes another row");

	# ---- referential actions ----

	$pg->sql("CREATE TABLE parent_$kind (id int PRIMARY KEY, n int, t text);"
		. "CREATE TABLE child_$kind (id int PRIMARY KEY, n int REFERENCES parent_$kind ON UPDATE CASCADE ON DELETE CASCADE, t text);"
		. $triggers{$kind}->("parent_$kind", "Parent_$kind") . $triggers{$kind}->("child_$kind", "Child_$kind")
		. function("parent_$kind", "UPDATE child_$kind SET t = coalesce(t, '') || 'p' WHERE n = OLD.id; RETURN NULL;")
		# Before the foreign key's own triggers by its name, and after them.
		. join '', map { "CREATE TRIGGER \"$_\" AFTER UPDATE OR DELETE ON parent_$kind FOR EACH ROW EXECUTE FUNCTION parent_$kind();" } qw(A z));
	$pg->sql("INSERT INTO parent_$kind SELECT i FROM generate_series(1, 6) i; INSERT INTO child_$kind SELECT i, i % 6 + 1 FROM generate_series(1, 12) i");
	$pg->sql("UPDATE parent_$kind SET id = id + 10 WHERE id < 4; DELETE FROM parent_$kind WHERE id IN (4, 11)");
	replays("parent_$kind", "Parent_$kind", "$kind: referential actions");
	replays("child_$kind", "Child_$kind", "$kind: ... on the referencing table");

	# ---- errors inside of triggers ----

	($t, $k) = ("error_$kind", "Error_$kind");
	captured_table($t, $k, $kind);
	$pg->sql(function("error_$kind", <<~"SQL"));
		BEGIN
			UPDATE $t SET n = n + 1 WHERE id = NEW.id;
			PERFORM 1 / (NEW.n % 2);
		EXCEPTION WHEN division_by_zero THEN
			UPDATE $t SET n = -1 WHERE id = NEW.id;
		END;
		RETURN NULL;
		SQL
	$pg->sql("CREATE TRIGGER e AFTER INSERT ON $t FOR EACH ROW EXECUTE FUNCTION error_$kind()");
	my $session = $pg->session;
	$session->sql($_) for 'BEGIN', "INSERT INTO $t SELECT i, i FROM generate_series(1, 6) i", 'SAVEPOINT s';
	$session->fails("INSERT INTO $t SELECT i, i FROM generate_series(7, 1, -1) i");
	$session->sql($_) for 'ROLLBACK TO s', "INSERT INTO $t SELECT i, i FROM generate_series(11, 13) i", 'COMMIT', "UPDATE $t SET t = 'later'";
	replays($t, $k, "$kind: errors in triggers, caught and not");
	$session->quit;
}

# ---- partitions ----

$pg->sql(<<~'SQL' . OutboxRows::row_triggers('parted', 'Parted') . function('parted', <<~'BODY'));
	CREATE TABLE parted (id int PRIMARY KEY, n int, t text) PARTITION BY RANGE (id);
	CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
	CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20);
	CREATE TABLE parted_3 (t text, n int, id int NOT NULL);
	ALTER TABLE parted_1 ATTACH PARTITION parted_3 FOR VALUES FROM (0) TO (10);
	SQL
	UPDATE parted SET n = n + 1 WHERE id IN (NEW.id, NEW.id + 1);
	RETURN NULL;
	BODY
$pg->sql('CREATE TRIGGER z AFTER INSERT OR UPDATE OF t ON parted FOR EACH ROW EXECUTE FUNCTION parted()');
for my $named ([ 'parted', 8, 12 ], [ 'parted_1', 1, 4 ], [ 'parted_3', 5, 7 ])
{
	my ($relation, $from, $to) = @$named;
	$pg->sql("INSERT INTO $relation (id, n) SELECT i, 0 FROM generate_series($from, $to) i; UPDATE $relation SET t = 'x'");
	replays('parted', 'Parted', "a statement that names $relation");
}
$pg->sql('UPDATE parted SET id = id + 10, t = t WHERE id IN (5, 6, 7)');
replays('parted', 'Parted', 'rows that move between partitions');

# ---- more rows than a number has places ----

captured_table('huge', 'Huge', 'statement');
$pg->sql(function('huge', 'UPDATE huge SET n = n + 1 WHERE id IN (1, 1100000); RETURN NULL;'));
$pg->sql('CREATE TRIGGER z AFTER INSERT ON huge FOR EACH ROW WHEN (NEW.id = 1) EXECUTE FUNCTION huge()');
$pg->sql('INSERT INTO huge (id, n) SELECT i, 0 FROM generate_series(1, 1100000) i');
my $chunks = <<~"SQL";
	(SELECT seq, rows, convert_from(data, 'UTF8') AS csv FROM @{[ OutboxRows::TABLES ]} o
		WHERE capture = (SELECT id FROM kusto.capture WHERE table_name = 'Huge')) c
	SQL
is($pg->sql("SELECT sum(rows), count(DISTINCT seq >> 20) FROM $chunks"), '1100002|3', 'a statement of more than 2^20 rows has two numbers');
is($pg->sql("SELECT max(seq) = (SELECT max(seq) FROM $chunks) FROM $chunks WHERE csv LIKE '\"update\"%'"), 't',
	'... both lower than that of the one that runs in its trigger');
is($pg->sql(<<~"SQL"), 't', '... and each place is used once');
	SELECT count(*) = count(DISTINCT s) AND count(*) = 1100002
	FROM (SELECT split_part(line, ',', 3)::bigint AS s FROM $chunks, LATERAL regexp_split_to_table(rtrim(csv, E'\\n'), E'\\n') line) r
	SQL

# ---- transactions that wait for each other ----

captured_table('shared', 'Shared', 'statement');
$pg->sql('INSERT INTO shared SELECT i, 0 FROM generate_series(1, 3) i');
my ($first, $second) = ($pg->session, $pg->session);
$first->sql($_) for 'BEGIN', 'UPDATE shared SET n = 1 WHERE id = 1';
$second->sql($_) for 'BEGIN', 'UPDATE shared SET n = 10 WHERE id = 2';
$second->send('UPDATE shared SET n = n + 10 WHERE id = 1');
$pg->poll("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = " . $second->pid);
$first->sql($_) for 'UPDATE shared SET n = 3 WHERE id = 3', 'COMMIT';
$second->receive;
$second->sql('COMMIT');
replays('shared', 'Shared', 'the one that has waited has the higher number');
$_->quit for $first, $second;

my $script = "$PostgreSQL::Test::Utils::tmp_check/order.sql";
append_to_file($script, "\\set id random(1, 3)\nBEGIN;\nUPDATE shared SET n = n + :client_id WHERE id = :id;\n"
	. "INSERT INTO shared VALUES (:id + 10, 1) ON CONFLICT (id) DO UPDATE SET n = shared.n + 1;\nEND;\n");
$pg->node->command_ok([ 'pgbench', '-n', '-c', 4, '-t', 300, '-f', $script, 'postgres' ], 'four sessions change the same rows');
replays('shared', 'Shared', '... in an order that holds');

done_testing();
