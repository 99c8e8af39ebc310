# Jobs that are cut off: cancelled, terminated, killed, without a slot, in the way of other
# transactions, in a database that others want. Each ends, and what lands has landed once.
use strict;
use warnings;

use KustoCluster qw(elapsed wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.naptime = 1h
	max_worker_processes = 16
	restart_after_crash = on
	autovacuum = off
	wal_writer_delay = 10s
	log_min_messages = debug1
	CONF

my $worker_pid = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker' AND datname = current_database());
my $jobs = q(FROM pg_stat_activity WHERE backend_type = 'kusto_ingest job');
# Those that have their operation's lock.
my $job_lock = q(FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 19274 AND granted AND mode = 'ExclusiveLock');

sub fresh_table
{
	my ($table, $columns) = @_;
	$kusto->create_table($db, $table, $columns // 'i:int');
	return $table;
}

# A function that does not return while somebody has the gate's lock.
$pg->sql(<<~'SQL');
	CREATE FUNCTION gate(i int) RETURNS int LANGUAGE plpgsql AS
	'BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN i; END';
	CREATE TABLE done (i int);
	SQL
my $keeper = $pg->session;
sub close_gate { return $keeper->sql('SELECT pg_advisory_lock(42)') }
sub open_gate { return $keeper->sql('SELECT pg_advisory_unlock(42)') }

# A job that has inserted and waits at the gate.
sub wait_at_gate
{
	my ($table, $i) = @_;
	close_gate();
	my $id = $pg->async("INSERT INTO done SELECT gate($i) RETURNING i", $table);
	wait_there($id);
	return $id;
}

sub wait_there
{
	my ($id, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $pg->poll("SELECT count(*) = 1 $jobs AND wait_event_type = 'Lock' AND wait_event = 'advisory' AND query LIKE '%$id'",
		't', $name);
}

sub done_is
{
	my ($i, $times, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($pg->sql("SELECT count(*) FROM done WHERE i = $i"), $times, $name);
}

sub log_lines
{
	my ($pattern) = @_;
	my @lines = grep { /$pattern/ } split /\n/, slurp_file($pg->node->logfile);
	return scalar @lines;
}

# ---- cancelled ----

my $table = fresh_table('Cancelled');
my $id = wait_at_gate($table, 1);
$pg->sql("SELECT pg_cancel_backend(pid) $jobs");
my $operation = $pg->ends_as($id, 'failed', 'pg_cancel_backend: it fails');
is_deeply([ @$operation{qw(error_code error_message runs)} ], [ '57014', 'canceling statement due to user request', 1 ], 'with the reason');
open_gate();

$id = wait_at_gate($table, 1);
my ($seconds) = elapsed(sub {
		is($pg->sql("SELECT kusto_cancel('$id')"), 't', 'kusto_cancel of a running job');
		$pg->poll("SELECT count(*) = 0 $jobs", 't', 'stops its process');
	});
cmp_ok($seconds, '<', 2, 'at once');
is($pg->operation($id)->{state}, 'cancelled', 'and it is cancelled');
open_gate();
my $waiting = $pg->session;
$pg->set_config('kusto_ingest.max_jobs' => 0);
$id = $pg->async('INSERT INTO done VALUES (1) RETURNING i', $table);
is($pg->sql("SELECT kusto_cancel('$id')"), 't', 'kusto_cancel of a pending job');
$pg->set_config('kusto_ingest.max_jobs' => 4);
$pg->succeeds($pg->async('SELECT 2 AS i', $table), 'those that follow run');
is($pg->operation($id)->{state}, 'cancelled', 'and it does not');
$pg->rows_are($table, [ [2] ], 'nothing of what was cancelled lands');
done_is(1, 0, 'nor stays here');

# ---- terminated ----

$table = fresh_table('Terminated');
$id = wait_at_gate($table, 3);
$pg->sql("SELECT pg_terminate_backend(pid) $jobs");
$pg->state_is($id, 'pending', 'pg_terminate_backend: it is pending again');
$operation = $pg->operation($id);
is($operation->{error_message}, 'the process that ran the query ended unexpectedly', 'the row tells what happened');
wait_there($id, 'it runs again');
is($pg->operation($id)->{error_message}, undef, 'then the error is gone');
open_gate();
is($pg->succeeds($id, 'it succeeds')->{runs}, 2, 'by its second run');
$pg->rows_are($table, [ [3] ], 'it lands once');
done_is(3, 1, 'its effect is there once');

$id = wait_at_gate($table, 4);
for my $run (1 .. 3)
{
	wait_there($id, "run $run");
	$pg->sql("SELECT pg_terminate_backend(pid) $jobs");
	$pg->poll("SELECT count(*) = 0 $jobs");
}
$operation = $pg->ends_as($id, 'failed', 'terminated three times: it fails');
is_deeply([ @$operation{qw(error_code runs)} ], [ '57P01', 3 ], 'after three runs');
like($operation->{details}, qr/run 3 of at most 3/, 'it tells so');
open_gate();
done_is(4, 0, 'nothing of it is there');

# ---- the query lets go of the lock ----

$table = fresh_table('Unlocked');
$pg->set_config('kusto_ingest.naptime' => '100ms');
close_gate();
$id = $pg->async('SELECT i FROM (SELECT pg_advisory_unlock_all()::text AS u, 5 AS i OFFSET 0) s WHERE u IS NOT NULL AND gate(i) > 0', $table);
wait_there($id, 'pg_advisory_unlock_all() in the query');
my $pid = $pg->sql($worker_pid);
$pg->sql("SELECT pg_terminate_backend($pid)");
$pg->poll("SELECT pid <> $pid FROM ($worker_pid) w", 't', 'the successor of a worker knows the job by its lock only');
$pg->sql('SELECT pg_sleep(0.5)');
is($pg->sql("SELECT count(*) $jobs"), 1, 'makes nobody think that the process is gone');
open_gate();
is($pg->succeeds($id, 'it succeeds')->{runs}, 1, 'by its first run');
$pg->set_config('kusto_ingest.naptime' => '1h');

# ---- in the way of other transactions ----

$pg->sql('CREATE TABLE counter AS SELECT 0 AS n');
$pg->sql('ALTER DATABASE postgres SET default_transaction_isolation = $$repeatable read$$');
$table = fresh_table('Serialization', 'n:int');
close_gate();
$id = $pg->async('UPDATE counter SET n = n + gate(1) RETURNING n', $table);
wait_there($id);
$pg->sql('UPDATE counter SET n = 10');
open_gate();
$operation = $pg->succeeds($id, 'a serialization failure: it succeeds');
is($operation->{runs}, 2, 'by its second run');
$pg->rows_are($table, [ [11] ], 'what lands is that of the second');

# Each run meets another one.
close_gate();
$id = $pg->async('UPDATE counter SET n = n + gate(1) RETURNING n', $table);
for my $run (1 .. 3)
{
	wait_there($id, "run $run");
	$pg->sql('UPDATE counter SET n = 20');
	open_gate();
	$pg->poll("SELECT state <> 'running' FROM kusto.operations WHERE id = '$id'");
	close_gate() if $run < 3;
}
$operation = $pg->ends_as($id, 'failed', 'three serialization failures: it fails');
is_deeply([ @$operation{qw(error_code runs)} ], [ '40001', 3 ], 'with that');
$pg->sql('ALTER DATABASE postgres RESET default_transaction_isolation');

# ---- the worker goes ----

$pg->set_config('kusto_ingest.max_jobs' => 1);
$table = fresh_table('Orphan');
$id = wait_at_gate($table, 6);
my $next = $pg->async('INSERT INTO done VALUES (7) RETURNING i', $table);
$pid = $pg->sql($worker_pid);
$pg->sql("SELECT pg_terminate_backend($pid)");
$pg->poll("SELECT pid <> $pid FROM ($worker_pid) w", 't', 'the worker is terminated: a successor comes');
$pg->sql('SELECT pg_sleep(0.5)');
is($pg->sql("SELECT count(*) $jobs"), 1, 'the job goes on, and counts');
is($pg->operation($next)->{state}, 'pending', 'so the next one waits');
open_gate();
is($pg->succeeds($id, 'it ends')->{runs}, 1, 'by its first run');
$pg->succeeds($next, 'then the next one runs');
$pg->rows_are($table, [ [6], [7] ], 'both land once');

# ---- the tables are locked; two processes for one job ----

# A job is started, but not before its tables are locked: the postmaster is made to wait for that.
$pg->set_config('kusto_ingest.max_jobs' => 4);
$table = fresh_table('Twice');
my $postmaster = (split /\n/, slurp_file($pg->node->data_dir . '/postmaster.pid'))[0];
END { kill 'CONT', $postmaster if $postmaster }
kill 'STOP', $postmaster;
$id = $waiting->sql($pg->async_call('INSERT INTO done VALUES (8) RETURNING i', $table));
wait_until(sub { log_lines(qr/a process for kusto_ingest operation $id is to be started/) }, 'the worker has a job started');
$keeper->sql('BEGIN; LOCK TABLE kusto.operation IN ACCESS EXCLUSIVE MODE');
kill 'CONT', $postmaster;
undef $postmaster;
my $claiming = "$jobs AND query = 'claiming an export' AND wait_event_type = 'Extension'";
$pg->poll("SELECT count(*) = 1 $claiming", 't', 'tables are locked: the process waits for them');
my $first = $pg->sql("SELECT pid $claiming");
kill 'STOP', $first;
$keeper->sql('COMMIT');
# It has not claimed its operation, so a successor of the worker knows nothing of it.
$pg->sql("SELECT pg_terminate_backend(pid) FROM ($worker_pid) w");
$pg->poll("SELECT count(*) = 2 $jobs", 't', 'the successor starts another process');
$pg->poll("SELECT count(*) = 1 $jobs", 't', 'which does not wait for the first one');
is($pg->sql("SELECT pid $jobs"), $first, 'that is still there');
kill 'CONT', $first;
$operation = $pg->succeeds($id, 'the first one goes on: it succeeds');
is($operation->{runs}, 1, 'by its first run');
$pg->rows_are($table, [ [8] ], 'it lands once');
done_is(8, 1, 'its effect is there once');
is(log_lines(qr/operation $id waits/), 0, 'and the log has nothing of it');

# ---- somebody has the row locked ----

# An open kusto_cancel() for instance; more rows than there are places.
$pg->set_config('kusto_ingest.max_jobs' => 0);
$table = fresh_table('Locked');
my @locked = map { $pg->async("INSERT INTO done VALUES ($_) RETURNING i", $table) } 101 .. 103;
my $locked = join(', ', map { "'$_'" } @locked);
$waiting->sql("BEGIN; SELECT FROM kusto.operation WHERE id IN ($locked) FOR UPDATE");
$id = $pg->async('INSERT INTO done VALUES (104) RETURNING i', $table);
$pg->set_config('kusto_ingest.max_jobs' => 1);
is($pg->succeeds($id, 'rows are locked: the next one succeeds')->{runs}, 1, 'by its first run');
is($pg->sql("SELECT string_agg(DISTINCT concat_ws('|', state, runs, not_before, error_message), ',') FROM kusto.operation WHERE id IN ($locked)"),
	'pending|0', 'those that are locked wait, and nothing is said of them');
$waiting->sql('COMMIT');
is($pg->succeeds($_, 'then it succeeds')->{runs}, 1, 'by its first run') for @locked;
$pg->rows_are($table, [ map { [$_] } 101 .. 104 ], 'each lands once');
$pg->set_config('kusto_ingest.max_jobs' => 4);

# ---- rows that cannot be run ----

# Nobody but the owner of the tables can make such.
my @bad = (
	[ q(options = '{}'), '22004', qr/^exactly_once must not be null$/ ],
	[ q(options = jsonb_set(options, '{tags}', '7')), '22023', qr/cannot extract elements from a scalar/ ],
	[ q(options = jsonb_set(options, '{settings,work_mem}', '"much"')), '22023', qr/work_mem/ ],
	[ q(options = jsonb_set(options, '{creation_time}', '"late"')), '22007', qr/late/ ]);
$pg->set_config('kusto_ingest.max_jobs' => 0);
$table = fresh_table('Bad');
for my $bad (@bad)
{
	push @$bad, $pg->async('SELECT 1 AS i', $table);
	$pg->sql("UPDATE kusto.operation SET $bad->[0] WHERE id = '$bad->[3]'");
}
$pg->fails_like("UPDATE kusto.operation SET $_ WHERE id = '$bad[0][3]'", { sqlstate => '23514' }, "a row with $_")
  for 'query = NULL', q(options = '[]');
$pg->set_config('kusto_ingest.max_jobs' => 4);
for my $bad (@bad)
{
	$operation = $pg->ends_as($bad->[3], 'failed', "$bad->[0]: it fails");
	is_deeply([ @$operation{qw(error_code runs)} ], [ $bad->[1], 1 ], 'by its first run');
	like($operation->{error_message}, $bad->[2], 'with the reason');
}
$pg->rows_are($table, [], 'nothing lands');

# ---- no slot ----

$pg->sql('ALTER SYSTEM SET max_worker_processes = 2; ALTER SYSTEM SET max_logical_replication_workers = 0');
$waiting->quit;
$keeper->quit;
$pg->node->restart;
$keeper = $pg->session;
$table = fresh_table('NoSlot');
$id = wait_at_gate($table, 9);
my @more = map { $pg->async("SELECT gate($_) AS i", $table) } 10 .. 12;
wait_until(sub { log_lines(qr/could not start a background process for kusto_ingest operation/) }, 'no slot: the log tells');
$pg->sql('SELECT pg_sleep(2.5)');
is(log_lines(qr/could not start a background process for kusto_ingest operation/), 1, 'once');
is($pg->sql(q(SELECT count(*) FROM kusto.operations WHERE state = 'pending' AND error_code IS NULL)), 3, 'they wait');
open_gate();
$pg->succeeds($_) for $id, @more;
$pg->rows_are($table, [ map { [$_] } 9 .. 12 ], 'and all land');
$pg->sql('ALTER SYSTEM RESET max_worker_processes; ALTER SYSTEM RESET max_logical_replication_workers');
$keeper->quit;
$pg->node->restart;
$keeper = $pg->session;

# ---- killed ----

# What has been done so far is on disk, whatever the role thinks of that.
$pg->sql('ALTER ROLE CURRENT_USER SET synchronous_commit = off');
$table = fresh_table('Killed');
$id = wait_at_gate($table, 13);
$pid = $pg->sql("SELECT pid $jobs");
$pg->crash($pid);
$keeper = $pg->session;
is($pg->operation($id)->{state}, 'running', 'killed: the row is as it was');
$operation = $pg->succeeds($id, 'who waits for it has it run again');
is($operation->{runs}, 2, 'by its second run');
$pg->rows_are($table, [ [13] ], 'it lands once');
done_is(13, 1, 'its effect is there once');
$pg->sql('ALTER ROLE CURRENT_USER RESET synchronous_commit');

# The gate is closed until all is over.
$id = wait_at_gate($table, 14);
$pg->node->stop('immediate');
$keeper->quit;
$pg->node->start;
$keeper = $pg->session;
$pg->succeeds($id, 'immediate shutdown: it runs again');
$pg->rows_are($table, [ [13], [14] ], 'it lands once');
done_is(14, 1, 'its effect is there once');

# Who stops the server has nothing against the query.
$id = wait_at_gate($table, 16);
for my $stop (1 .. 4)
{
	$pg->node->stop('fast');
	$pg->node->start;
	$keeper = $pg->session;
	close_gate() if $stop < 4;
	$pg->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i', fresh_table("Wake$stop")));
	wait_there($id, 'fast shutdown: it runs again') if $stop < 4;
}
is($pg->succeeds($id, 'it succeeds')->{runs}, 1, 'and no stop counts as a run');
$pg->rows_are($table, [ [13], [14], [16] ], 'it lands once');
done_is(16, 1, 'its effect is there once');

# ---- the process cannot connect ----

$pg->sql('CREATE DATABASE another');
{
	local $pg->{dbname} = 'another';
	$pg->sql('CREATE EXTENSION kusto_ingest');
	$pg->connect_to($kusto);
	$table = fresh_table('NoConnections');
	$pg->succeeds($pg->async('SELECT 1 AS i', $table), 'a job in another database');
	$waiting = $pg->session;
}
$pg->sql('ALTER DATABASE another ALLOW_CONNECTIONS false');
$id = $waiting->sql($pg->async_call('SELECT 2 AS i', $table));
wait_until(sub { $waiting->sql("SELECT error_message FROM kusto.operations WHERE id = '$id'") eq 'the process that is to run the query could not begin' },
	'no connections: the row tells');
is($waiting->sql("SELECT state, runs FROM kusto.operations WHERE id = '$id'"), 'pending|0', 'it waits');
is($waiting->sql("SELECT details FROM kusto.operations WHERE id = '$id'") =~ /attempt \d+ of at most 10/, 1, 'and how long');
like(slurp_file($pg->node->logfile), qr/FATAL:  database "another" is not currently accepting connections/, 'the log has the reason');
$pg->sql('ALTER DATABASE another ALLOW_CONNECTIONS true');
{
	local $pg->{dbname} = 'another';
	$operation = $pg->succeeds($id, 'it runs as soon as it may');
}
is_deeply([ @$operation{qw(error_code error_message details hint)} ], [ (undef) x 4 ], 'and the error is gone');
$pg->rows_are($table, [ [1], [2] ], 'it lands');
$waiting->quit;

# ---- the database is wanted ----

{
	local $pg->{dbname} = 'another';
	my $busy = $pg->sql($pg->async_call('SELECT i FROM pg_sleep(600), generate_series(1, 1) i', $table));
	$pg->state_is($busy, 'running', 'a job in another database');
}
# A copy needs a moment without anybody in there: that is no run either.
for my $copy (1 .. 3)
{
	my $another = sub { local $pg->{dbname} = 'another'; return $pg->sql(@_) };
	$pg->poll(q(SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'another' AND wait_event = 'PgSleep'));
	$pg->sql('CREATE DATABASE copy TEMPLATE another');
	$pg->sql('DROP DATABASE copy');
	is($another->('SELECT max(runs) FROM kusto.operations WHERE finished_at IS NULL') <= 1, 1, 'a copy of its database does not count as a run');
}
$pg->poll(q(SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = 'another' AND wait_event = 'PgSleep'));
($seconds) = elapsed(sub { $pg->sql('DROP DATABASE another') });
cmp_ok($seconds, '<', 3, 'DROP DATABASE does not wait for it');
is($pg->sql("SELECT count(*) $jobs"), 0, 'its process is gone');

# ---- the extension is dropped ----

$id = wait_at_gate($table, 15);
$pg->sql('DROP EXTENSION kusto_ingest CASCADE');
$pg->set_config('kusto_ingest.naptime' => '200ms');
$pg->poll("SELECT count(*) = 0 $jobs", 't', 'DROP EXTENSION: the process ends');
open_gate();
done_is(15, 0, 'and what it did is rolled back');

done_testing();
