# FaultScenarios: how the points of src/pg/fault.c are reached, each a list of [point, scenario]; what a
# scenario holds is told by FaultMatrix::cell.
package FaultScenarios;

use strict;
use warnings;

use FaultMatrix;
use JSON::PP;
use KustoCluster qw(wait_until);
use Test::More;

# Runs lists of scenarios with every action of their points. KUSTO_FAULTS_ONLY, a regular expression of
# point:action, limits them.
sub run
{
	my ($matrix, @lists) = @_;
	my $only = $ENV{KUSTO_FAULTS_ONLY} // '';

	for my $list (@lists)
	{
		for my $item ($list->($matrix))
		{
			my ($point, $scenario, @actions) = @$item;
			my $known = $matrix->points->{$point} // die "$point is no point";
			$matrix->cell($point, $_, $scenario) for grep { "$point:$_" =~ /$only/ } @actions ? @actions : @$known;
		}
	}
	return;
}

# The worker may be in the middle of a post, and then does not know whether Kusto has it.
my %racing = (conf => "kusto_ingest.repost_after = 1s\n", messages => '[12]');

# The way of an export whose client does nothing but wait.
sub exports
{
	my ($matrix) = @_;
	my @plain = qw(before-commit worker-ensured worker-start worker-at-work
	  claim-written claimed message-sent post-known post-written post-recorded
	  outcome-known outcome-written outcome-recorded);
	# An error of the query is the end of a job; of a statement, a matter of its client.
	my $job_error = $matrix->{function} eq 'kusto_ingest_async' ? { ends => 'succeeded|failed', messages => '[01]' } : {};

	return (
		[ 'blobs-uploaded', $job_error ],
		[ 'rows-staged', $job_error ],
		(map { [ $_, {} ] } @plain),
		[ 'committed', \%racing ],
		# It does not end while anybody may yet commit.
		[ 'worker-ending', { alone => 1 } ],
		# The row without a message looks like a message that has not been dealt with.
		[ 'status-row-written', { conf => "kusto_ingest.repost_after = 1s\n" } ],
		[ 'command-done', { arguments => { create_table => 'true' } } ],
		[ 'giving-up', {
			arguments => { create_table => 'true' },
			ends => 'failed',
			messages => '0',
			before => sub {
				my ($m) = @_;
				$m->kusto->fault({ service => 'engine', path => 'mgmt' }, { status => 400,
					headers => { 'Content-Type' => 'application/json' },
					body => '{"error":{"code":"BadRequest","message":"no","@permanent":true}}' }, times => -1);
			},
			finally => sub { my ($m) = @_; $m->kusto->clear_faults } } ]);
}

# ---- a blob of which it is not known whether it was posted ----

my $hold = sub { my ($m) = @_; $m->kusto->config(hold_ingestion => JSON::PP::true) };
my $release = sub { my ($m) = @_; $m->kusto->config(hold_ingestion => JSON::PP::false) };

# Whoever waits starts the worker.
sub _wake
{
	my ($m, $cell) = @_;
	$m->pg->sql("SELECT kusto_wait(operation, '10 ms') FROM export WHERE i = $cell->{i}");
	return;
}

sub doubts
{
	# It is not posted again while Kusto may have it.
	my %patient = (
		name => 'a service that takes its time',
		conf => "kusto_ingest.repost_after = 1h\n",
		before => $hold,
		after => sub {
			my ($m, $cell) = @_;
			my $asked = sub { scalar $m->kusto->log(service => 'table', method => 'GET') };
			my $before = $asked->();
			_wake($m, $cell);
			wait_until(sub { $asked->() >= $before + 2 }, 'the status table is asked');
			$release->($m);
		});
	# It is posted again after a while, and the tag keeps Kusto from ingesting it twice.
	my %impatient = (
		name => 'a status table that does not answer',
		conf => "kusto_ingest.repost_after = 1s\n",
		messages => '2',
		before => sub {
			my ($m) = @_;
			$m->kusto->fault({ service => 'table', method => 'GET' }, { status => 503 }, times => -1);
		},
		after => sub {
			my ($m, $cell) = @_;
			_wake($m, $cell);
			wait_until(sub { $m->messages_of($cell->{i}) == 2 }, 'the blob is posted again');
			$m->kusto->clear_faults;
		});
	return map { ([ 'message-sent', $_, qw(error kill sleep) ], [ 'post-known', $_, 'kill' ], [ 'post-written', $_, 'sleep' ]) } \%patient, \%impatient;
}

# ---- the worker leaves while a blob is posted ----

sub _wait_until_posted
{
	my ($m, $cell) = @_;
	$m->pg->poll("SELECT o.state = 'posted' FROM kusto.operation o JOIN export e ON e.operation = o.id WHERE e.i = $cell->{i}");
	return;
}

sub departures
{
	my %leaves = (
		alone => 1,
		before => $hold,
		act => sub {
			my ($m, $cell, $session) = @_;
			$session->sql($m->export_transaction($cell->{i}, {}));
			_wait_until_posted($m, $cell);
			$cell->{copying} = $m->pg->session(dbname => 'template1');
			$cell->{copying}->send('CREATE DATABASE copy TEMPLATE postgres');
		},
		after => sub {
			my ($m, $cell) = @_;
			$m->pg->sql('SELECT pg_terminate_backend(' . $cell->{copying}->pid . ')', dbname => 'template1');
			$cell->{copying}->quit;
			$m->pg->sql('DROP DATABASE IF EXISTS copy', dbname => 'template1');
			$release->($m);
		});
	return (
		[ 'worker-leaving', {%leaves} ],
		[ 'successor-due', {%leaves} ],
		[ 'terminated', {
			before => $hold,
			after => $release,
			act => sub {
				my ($m, $cell, $session) = @_;
				$session->sql($m->export_transaction($cell->{i}, {}));
				_wait_until_posted($m, $cell);
				$session->send(q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker'));
			} } ]);
}

# ---- jobs ----

# A query that waits until the gate is open.
use constant GATE => 4711;
use constant AT_GATE => ' AND (SELECT pg_advisory_xact_lock_shared(' . GATE . ")::text) = ''";

sub _shut_gate
{
	my ($m, $cell) = @_;
	$cell->{gate} = $m->pg->session;
	$cell->{gate}->sql('SELECT pg_advisory_lock(' . GATE . ')');
	return;
}

sub _wait_at_gate
{
	my ($m) = @_;
	$m->pg->poll('SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND objid = ' . GATE);
	return;
}

sub _run_to_gate
{
	my ($m, $cell) = @_;
	_shut_gate($m, $cell);
	$m->pg->sql($m->export_transaction($cell->{i}, { where => AT_GATE }));
	_wait_at_gate($m);
	return;
}

sub _open_gate
{
	my ($m, $cell) = @_;
	$cell->{gate}->quit;
	return;
}

# Those of its own, and those that the session has which submits it, before.
sub jobs
{
	my %at_gate = (where => AT_GATE, alone => 1, name => 'in the job', before => \&_run_to_gate, act => \&_open_gate);
	my %fails = (ends => 'failed', messages => '0');
	# The next worker has not started the process, finds it by its lock, and leaves it alone.
	my %orphan = (
		name => 'while the job runs',
		where => AT_GATE,
		alone => 1,
		before => sub { my ($m, $cell) = @_; _shut_gate($m, $cell) },
		after => sub {
			my ($m, $cell) = @_;
			my $worker = q(FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker');
			_wait_at_gate($m);
			_wake($m, $cell);
			$m->pg->poll("SELECT count(*) = 1 $worker");
			my $looked = $m->pg->sql("SELECT query_start $worker");
			$m->pg->poll("SELECT query_start > '$looked'::timestamptz + interval '500 ms' $worker");
			_open_gate($m, $cell);
		},
		finally => sub {
			my ($m, $cell) = @_;
			is($m->pg->sql("SELECT runs FROM kusto.operation o JOIN export e ON e.operation = o.id WHERE e.i = $cell->{i}"), 1,
				'a job that outlives its worker runs once');
		});

	return (
		[ 'job-registered', {}, qw(error kill sleep) ],
		[ 'job-registered', \%orphan, 'exit' ],
		[ 'job-start', {} ],
		[ 'job-claimed', {}, qw(kill exit sleep) ],
		[ 'job-claimed', {}, 'error' ],
		[ 'job-committed', \%racing ],
		[ 'job-failed', { where => ' AND 1 / (part - part) = 1', %fails } ],
		[ 'before-commit', {%at_gate}, qw(kill sleep) ],
		[ 'before-commit', { %at_gate, %fails }, 'error' ],
		[ 'committed', { %at_gate, %racing } ],
		[ 'job-given-back', {
			where => AT_GATE,
			alone => 1,
			before => \&_run_to_gate,
			act => sub {
				my ($m, $cell, $session) = @_;
				$session->send(q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'kusto_ingest job'));
			},
			after => \&_open_gate } ]);
}

# ---- the launcher ----

# It goes on with what the server had begun before it was stopped.
sub launches
{
	my %restarts = (
		alone => 1,
		starts => 2,
		before => sub {
			my ($m, $cell) = @_;
			$hold->($m);
			$m->pg->sql($m->export_transaction($cell->{i}, {}));
			_wait_until_posted($m, $cell);
		},
		act => sub {
			my ($m, $cell, $session) = @_;
			$session->quit;
			$m->pg->node->restart;
		},
		after => $release);
	return (
		[ 'launcher-start', {%restarts} ],
		[ 'worker-registered', {%restarts} ]);
}

# ---- steering ----

# A commit that cannot wake those who wait leaves its session as any other.
sub _cancel_and_be_cancelled
{
	my ($m, $cell, $session) = @_;
	my $pid = $session->pid;
	$session->sql("SELECT kusto_cancel(operation) FROM export WHERE i = $cell->{i}");
	$session->send('SELECT pg_sleep(30)');
	$m->pg->poll("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = $pid");
	$m->pg->sql("SELECT pg_cancel_backend($pid)");
	like($session->receive->{err}, qr/canceling statement due to user request/, 'it can be interrupted');
	return;
}

sub steering
{
	my $call = sub {
		my ($call) = @_;
		return sub {
			my ($m, $cell, $session) = @_;
			$session->send("SELECT $call FROM export WHERE i = $cell->{i}");
		};
	};
	my %cancel = (
		where => AT_GATE,
		alone => 1,
		before => \&_run_to_gate,
		act => $call->('kusto_cancel(operation)'),
		after => \&_open_gate);

	return (
		[ 'cancel-written', {%cancel} ],
		[ 'cancel-committed', { %cancel, ends => 'cancelled', messages => '0' } ],
		[ 'waiters-due', { %cancel, ends => 'cancelled', messages => '0', act => \&_cancel_and_be_cancelled } ],
		[ 'retry-written', {
			messages => '2',
			before => sub {
				my ($m, $cell) = @_;
				$m->kusto->config(outcomes => [ { match => { table => FaultMatrix::TABLE }, status => 'Failed',
					errorCode => 'BadRequest_Test', failureStatus => 'Permanent', details => 'no' } ]);
				$m->pg->sql($m->export_transaction($cell->{i}, {}));
				$m->pg->sql("SELECT kusto_wait(operation) FROM export WHERE i = $cell->{i}");
				is($m->state_of($cell->{i}), 'failed', 'an export fails');
			},
			act => $call->('kusto_retry(operation)'),
			after => sub {
				my ($m, $cell) = @_;
				is($m->state_of($cell->{i}), 'failed', 'a retry that has not committed has not happened');
				$m->pg->sql("SELECT kusto_retry(operation) FROM export WHERE i = $cell->{i}");
			} } ],
		[ 'purge-written', {
			act => sub {
				my ($m, $cell, $session) = @_;
				$session->send(q(SELECT kusto_purge('0 s')));
			},
			after => sub {
				my ($m) = @_;
				my $finished = 'SELECT count(*) FROM kusto.operation WHERE finished_at IS NOT NULL';
				isnt($m->pg->sql($finished), 0, 'a purge that has not committed has not happened');
				$m->pg->sql(q(SELECT kusto_purge('0 s')));
				is($m->pg->sql($finished), 0, 'and the next one does it');
			} } ]);
}

1;
