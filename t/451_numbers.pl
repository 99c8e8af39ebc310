# Numbers of row changes: each higher than those before it, whoever draws it, with the library in
# shared_preload_libraries and without; across crashes, restarts, copies and a promotion, and
# whatever becomes of the sequence that they come from.
use strict;
use warnings;

use KustoCluster qw(literal wait_until);
use PostgreSQL::Test::Utils;
use Test::More;

my %conf = ('on demand' => '', preloaded => "shared_preload_libraries = 'kusto_ingest'\n");
my $run = 8192;

# Nobody is there: what is captured stays in the outbox.
my $nowhere = q(CREATE SERVER adx FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'http://127.0.0.1:1', database 'db');
	CREATE USER MAPPING FOR CURRENT_USER SERVER adx OPTIONS (auth 'none'));
my $capture = q(SELECT kusto_capture('t', 'db', 'T'));
my $next = 0;

sub install
{
	my ($pg, %options) = @_;
	$pg->sql("CREATE TABLE t (id bigint PRIMARY KEY); $nowhere; $capture", %options);
	return;
}

# One row; ids say in which order they were inserted.
sub insert
{
	my ($session) = @_;
	$session->sql('INSERT INTO t VALUES (' . ++$next . ')');
	return;
}

# [ id, number ] of all rows in the outbox, by id.
my $changes = <<~'SQL';
	SELECT split_part(line, ',', 5)::bigint AS id, split_part(line, ',', 3)::bigint >> 20 AS number
	FROM (SELECT * FROM kusto.outbox_0 UNION ALL SELECT * FROM kusto.outbox_1 UNION ALL SELECT * FROM kusto.outbox_2) o,
		regexp_split_to_table(convert_from(data, 'UTF8'), E'\n') AS line
	WHERE capture > 0 AND line <> ''
	SQL

sub last_number { my ($pg, %options) = @_; return $pg->sql("SELECT max(number) FROM ($changes) c", %options) }

# False, and a diagnosis, unless numbers ascend with the ids and the sequence knows of all.
sub in_order
{
	my ($pg, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $wrong = $pg->sql(<<~SQL, %options);
		SELECT string_agg(format('%s has %s behind %s', id, number, before), '; ')
		FROM (SELECT id, number, lag(number) OVER (ORDER BY id) AS before FROM ($changes) c) c WHERE number <= before
		SQL
	is($wrong, '', "$name: numbers ascend");
	return cmp_ok($pg->sql('SELECT last_value FROM kusto.change_number', %options), '>=', last_number($pg, %options),
		"$name: all are taken from the sequence");
}

sub test_order
{
	my ($pg, $mode) = @_;
	my @sessions = map { $pg->session } 1 .. 3;
	insert($sessions[$_ % 3]) for 1 .. 30;
	in_order($pg, "$mode: sessions in turn");

	# More than are taken from the sequence at once, at the same time.
	my $loop = 'DO $$ BEGIN FOR i IN %d .. %d LOOP INSERT INTO t VALUES (i); END LOOP; END $$';
	$sessions[$_]->send(sprintf $loop, ($_ + 1) * 1_000_000, ($_ + 1) * 1_000_000 + 5999) for 0 .. 2;
	$_->receive for @sessions;
	is($pg->sql("SELECT count(*), count(DISTINCT number) FROM ($changes) c"), '18030|18030', "$mode: three sessions at once: no number comes twice");
	is($pg->sql("SELECT count(*) FROM (SELECT number, lag(number) OVER (PARTITION BY id / 1000000 ORDER BY id) AS before FROM ($changes) c) c WHERE number <= before"),
		0, "$mode: ... and those of a session ascend");
	$pg->sql('ALTER TABLE t DISABLE TRIGGER USER; TRUNCATE t, kusto.outbox_0, kusto.outbox_1, kusto.outbox_2; ALTER TABLE t ENABLE TRIGGER USER');

	insert($sessions[0]);
	insert($sessions[1]);
	$sessions[0]->sql($_) for 'BEGIN', 'SAVEPOINT a', 'INSERT INTO t VALUES (-1)', 'ROLLBACK TO a';
	insert($_) for @sessions[0, 2];
	$sessions[0]->sql('ROLLBACK');
	insert($_) for @sessions;
	in_order($pg, "$mode: what is rolled back");
	return;
}

sub test_restart
{
	my ($pg, $mode) = @_;
	for my $how (qw(immediate fast))
	{
		my $session = $pg->session;
		insert($session) for 1 .. 3;
		$pg->node->stop($how);
		$pg->node->start;
		insert($pg->session);
		in_order($pg, "$mode: the server was stopped, $how");
	}

	# What a checkpoint has written is older than the numbers that were drawn since.
	my $session = $pg->session;
	insert($session);
	$pg->sql('CHECKPOINT');
	# The last of those that were taken with the first one are among them, and further ones.
	$session->sql("DO \$\$ BEGIN FOR i IN $next + 1 .. $next + $run LOOP INSERT INTO t VALUES (i); END LOOP; END \$\$");
	$next += $run;
	$pg->crash($session->pid);
	insert($pg->session);
	in_order($pg, "$mode: the server has crashed");
	return;
}

sub test_databases
{
	my ($pg, $mode) = @_;
	my %other = (dbname => 'other');
	my %copy = (dbname => 'copy');
	$pg->sql('CREATE DATABASE other');
	$pg->sql('CREATE EXTENSION kusto_ingest', %other);
	install($pg, %other);
	my @sessions = ($pg->session, $pg->session(%other));
	insert($sessions[$_ % 2]) for 1 .. 10;
	in_order($pg, "$mode: a database", );
	in_order($pg, "$mode: another database", %other);
	cmp_ok(last_number($pg, %other), '<', $run, "$mode: ... with numbers of its own");

	undef @sessions;
	$pg->node->poll_query_until('postgres', q(SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = 'other' AND backend_type = 'client backend'));
	$pg->sql('CREATE DATABASE copy TEMPLATE other');
	# It belongs to the other database: a new one begins.
	$pg->sql($capture, %copy);
	insert($_) for map { ($pg->session, $pg->session(%other), $pg->session(%copy)) } 1 .. 3;
	in_order($pg, "$mode: the copied database", %other);
	in_order($pg, "$mode: its copy", %copy);
	in_order($pg, "$mode: neither");
	my $before = last_number($pg, %other);
	$pg->sql('DROP DATABASE copy');
	$pg->sql('CREATE DATABASE copy');
	$pg->sql('CREATE EXTENSION kusto_ingest', %copy);
	install($pg, %copy);
	insert($_) for $pg->session(%copy), $pg->session(%other);
	in_order($pg, "$mode: a database of the same name", %copy);
	cmp_ok(last_number($pg, %copy), '<', $run, "$mode: ... begins at 1");
	cmp_ok(last_number($pg, %other), '>', $before, "$mode: ... which is no matter to the other");
	return;
}

# By hand, as pg_dump's script and docs/row-changes.md do.
sub test_sequence
{
	my ($pg, $mode) = @_;
	my $session = $pg->session;
	insert($session);
	my $to = $pg->sql(q(SELECT setval('kusto.change_number', nextval('kusto.change_number') + 1000000)));
	insert($pg->session);
	cmp_ok(last_number($pg), '>', $to, "$mode: setval: the next session's number");
	insert($session);
	cmp_ok(last_number($pg), '>', $to, "$mode: ... and that of one which has drawn before");
	in_order($pg, "$mode: setval");

	$to = $pg->sql(q(SELECT setval('kusto.change_number', nextval('kusto.change_number') + 1000000)));
	wait_until(sub { insert($session); return last_number($pg) > $to }, "$mode: setval is noticed by a session that was there");
	$pg->sql(q(SELECT nextval('kusto.change_number')));
	insert($_) for $session, $pg->session, $session;
	in_order($pg, "$mode: nextval");

	$pg->sql('ALTER SEQUENCE kusto.change_number RESTART 5000000');
	insert($session);
	cmp_ok(last_number($pg), '>=', 5000000, "$mode: RESTART counts at once");
	insert($_) for $pg->session, $session;
	in_order($pg, "$mode: RESTART");
	if ($mode eq 'preloaded')
	{
		$pg->sql(q(SELECT setval('kusto.change_number', 10)));
		insert($_) for $pg->session, $session;
		in_order($pg, "$mode: setval to what has been");
	}
	return;
}

sub test_extension
{
	my ($pg, $mode) = @_;
	my $session = $pg->session;
	my $other = $pg->session;
	my $again = "DROP EXTENSION kusto_ingest CASCADE; CREATE EXTENSION kusto_ingest; $nowhere; $capture";
	insert($_) for $session, $other;
	$session->sql("BEGIN; $again; INSERT INTO t VALUES (-1); ROLLBACK");
	insert($_) for $session, $other, $session;
	in_order($pg, "$mode: CREATE EXTENSION was rolled back");

	$session->sql("BEGIN; $again; COMMIT");
	insert($_) for $other, $session, $pg->session;
	in_order($pg, "$mode: the extension was created anew");
	cmp_ok(last_number($pg), '<', $run, "$mode: ... and so was the sequence");
	return;
}

sub test_promotion
{
	my ($pg, $mode) = @_;
	my $standby = PostgreSQL::Test::Cluster->new($mode =~ s/ /_/r . '_standby');
	$pg->node->backup('backup');
	$standby->init_from_backup($pg->node, 'backup', has_streaming => 1);
	$standby->start;
	my @sessions = ($pg->session, $pg->session);
	insert($sessions[$_ % 2]) for 1 .. 10;
	$pg->node->wait_for_catchup($standby, 'replay', $pg->node->lsn('insert'));
	my $before = last_number($pg);
	undef @sessions;
	$pg->node->stop('immediate');
	$standby->promote;
	my $promoted = bless { %$pg, node => $standby }, ref $pg;
	insert($_) for map { $promoted->session } 1 .. 2;
	in_order($promoted, "$mode: promoted");
	cmp_ok(last_number($promoted), '>', $before, "$mode: ... and above those of the old primary");
	unlike(slurp_file($_->logfile), qr/TRAP|PANIC/, "$mode: no assertion has failed") for $pg->node, $standby;
	$standby->stop;
	return;
}

for my $mode (sort keys %conf)
{
	my $pg = KustoCluster->start(undef, name => $mode =~ s/ /_/r, conf => $conf{$mode} . <<~'CONF');
		wal_level = replica
		max_wal_senders = 4
		restart_after_crash = on
		CONF
	install($pg);
	test_order($pg, $mode);
	test_restart($pg, $mode);
	test_databases($pg, $mode);
	test_sequence($pg, $mode);
	test_extension($pg, $mode);
	test_promotion($pg, $mode);
}
done_testing();
