# A commit with row changes wakes the worker: here nothing else would, for an hour.
use strict;
use warnings;

use KustoCluster qw(wait_until);
use KustoLocal;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.naptime = 1h
	kusto_ingest.flush_interval = 0
	kusto_ingest.worker_idle_timeout = 100ms
	CONF
my $db = KustoCluster::DATABASE;
my $worker = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker' AND datname = current_database());
my $rows = 0;

# Runs a statement that inserts one row, and waits for it in Kusto.
sub arrives
{
	my ($session, $name, $more) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$session->sql('INSERT INTO t SELECT count(*) FROM t');
	$rows += 1 + ($more // 0);
	my $count;
	eval { wait_until(sub { ($count = eval { $kusto->count($db, 'T') } // 0) == $rows }, $name, 30) };
	return is($count, $rows, $name);
}

$pg->sql('CREATE TABLE t (i bigint)');
$pg->sql("SELECT kusto_capture('t', '$db', 'T', create_table => true)");
my ($session, $other) = ($pg->session, $pg->session);
arrives($session, q(a session's first change));
arrives($session, '... and its second') for 1 .. 5;
arrives($_, 'sessions in turn') for $other, $session, $other;

# After a change the worker looks again soon, for another one. So here it is left to fall asleep first.
sub falls_asleep
{
	$pg->poll("SELECT clock_timestamp() - state_change > interval '2 s' FROM pg_stat_activity WHERE pid = ($worker)");
	return;
}

for ($session, $other)
{
	falls_asleep();
	arrives($_, 'a worker that sleeps');
}

# The worker stays while something is captured, and its successor is another process.
my $pid = $pg->sql($worker);
isnt($pid, '', 'a worker without work stays');
$pg->sql("SELECT pg_terminate_backend($pid)");
$pg->poll("SELECT count(*) = 1 FROM ($worker) w WHERE pid <> $pid");
arrives($session, 'the successor of a worker that was terminated');
arrives($other, '... by another session');
isnt($pg->sql($worker), $pid, '... is another process');

# No worker at all, as after the start of a server that does not preload the library.
$pg->node->restart;
$session = $pg->session;
arrives($session, 'a server that was restarted');

# What no commit announces goes with the next one.
$session->sql($_) for 'BEGIN', 'INSERT INTO t VALUES (-1)', q(PREPARE TRANSACTION 'p'), q(COMMIT PREPARED 'p');
arrives($session, 'a prepared transaction, and the one behind it', 1);

# One that rolls back, and one whose changes do, leave the worker in peace and nothing behind.
$session->sql($_) for 'BEGIN', 'INSERT INTO t VALUES (-2)', 'ROLLBACK', 'BEGIN', 'SAVEPOINT s', 'INSERT INTO t VALUES (-3)', 'ROLLBACK TO s', 'COMMIT';
arrives($session, 'after a rollback');

# There is no place for a worker: commits go on, and the log says so once.
$pg->node->append_conf('postgresql.conf', 'max_worker_processes = 0');
$pg->node->restart;
$session = $pg->session;
$session->sql('INSERT INTO t VALUES (-4)') for 1 .. 3;
my $log = PostgreSQL::Test::Utils::slurp_file($pg->node->logfile);
my $said = () = $log =~ /LOG:.*could not start a background worker for kusto_ingest/g;
is($said, 1, 'that no worker can be started is logged once');
unlike($log, qr/WARNING:.*could not start a background worker/, '... and is no warning');
$pg->node->append_conf('postgresql.conf', 'max_worker_processes = 8');
$pg->node->restart;
$rows += 3;
$session = $pg->session;
arrives($session, 'all of it arrives later');

done_testing();
