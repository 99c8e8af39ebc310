# What the worker costs others: no transaction, snapshot or lock of a table while the service keeps
# it waiting; and next to nothing while there is no work.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(wait_until);
use KustoLocal;
use List::Util qw(sum);
use ProcessUsage qw(scans difference usage);
use PostgreSQL::Test::Utils;
use Test::More;

use constant SAMPLES => 40;
use constant IDLE_SECONDS => 60;
use constant NAPTIME => 10;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.worker_idle_timeout = 1h
	kusto_ingest.repost_after = 1s
	autovacuum = off
	track_io_timing = off
	CONF
my $db = KustoCluster::DATABASE;
my $true = JSON::PP::true;

my $worker = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker' AND datname = current_database());

sub set_naptime
{
	my ($naptime) = @_;
	$pg->sql("LOAD 'kusto_ingest';\nALTER SYSTEM SET kusto_ingest.naptime = '$naptime';\nSELECT pg_reload_conf()");
	$pg->poll("SELECT current_setting('kusto_ingest.naptime') = '$naptime'");
	return;
}

# ---- a commit wakes the worker that there is ----

# Nothing but the commit tells it, whatever has become of the one that the session knew.
set_naptime('1h');
{
	$kusto->create_table($db, 'T', 'i:int');
	my $session = $pg->session;
	for my $turn (1 .. 24)
	{
		$pg->sql(q(SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker')) if $turn % 2;
		my $id = $session->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'T'));
		# Not kusto_wait, which wakes the worker itself.
		$pg->poll("SELECT state = 'succeeded' FROM kusto.operations WHERE id = '$id'");
	}
	pass('each commit wakes the worker, also the next after it was terminated');
	$session->quit;
	$kusto->reset;
}

# ---- the service stalls ----

# The worker looks for work only when it is told to, so that no look is in the samples.
my $observer = $pg->session;

# Of the worker, often: is a transaction open, does a snapshot hold back vacuum, is a lock held?
sub sample
{
	my ($pid) = @_;
	my @seen;
	for (1 .. SAMPLES)
	{
		my $line = $observer->sql(<<~"SQL");
			SELECT CASE WHEN a.pid IS NULL THEN 'gone' END, a.xact_start IS NOT NULL, a.backend_xmin IS NOT NULL, a.backend_xid IS NOT NULL, a.state,
				(SELECT count(*) FROM pg_locks l WHERE l.pid = $pid AND (l.locktype IN ('relation', 'tuple', 'transactionid') OR NOT l.granted))
			FROM (VALUES (1)) v LEFT JOIN pg_stat_get_activity($pid) a ON true
			SQL
		push @seen, $line;
		# So that the samples do not all see the same instant.
		select undef, undef, undef, 0.01;
	}
	return @seen;
}

my @phases = (
	[ 'the metadata', { path => '/auth/metadata' } ],
	[ 'the access token', { service => 'login' } ],
	[ 'the ingestion resources', { service => 'ingest', path => '/v1/rest/mgmt' } ],
	[ 'the command that creates the table', { service => 'engine', path => '/v1/rest/mgmt' } ],
	[ 'the row of the status table', { service => 'table', method => 'POST' } ],
	[ 'the message', { service => 'queue', method => 'POST' } ],
	[ 'the outcome', { service => 'table', method => 'GET' } ]);
for my $phase (@phases)
{
	my ($what, $match) = @$phase;
	$pg->forget_worker;
	# The statement has tokens and resources already: only the worker is to stall.
	my $session = $pg->session;
	$kusto->create_table($db, 'Warm', 'i:int');
	$pg->finished($session->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'Warm')));
	$pg->forget_worker;
	$kusto->fault($match, { blackhole => $true }, times => -1);
	my $id = $session->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'T', create_table => 'true'));
	wait_until(sub { $kusto->fired > 0 }, "$what stalls");
	my $pid = $pg->sql($worker);
	# What it does at the moment of the request must have ended: once is enough, it does no more.
	$pg->poll("SELECT xact_start IS NULL FROM pg_stat_activity WHERE pid = $pid");
	my @wrong = grep { $_ ne '|f|f|f|idle|0' } sample($pid);
	is(scalar @wrong, 0, "while $what stalls, no transaction, snapshot or lock") or diag explain \@wrong;
	is($pg->sql($worker), $pid, 'it is the worker that was looked at');
	like($pg->operation($id)->{state}, qr/^(?:staged|posting|posted)$/, 'and it has not got on');
	$kusto->clear_faults;
	$pg->forget_worker;
	$pg->succeeds($id, "when $what does no more, the operation succeeds");
	$session->quit;
	$kusto->reset;
}

# ---- nothing to do ----

set_naptime(NAPTIME . 's');
$kusto->create_table($db, 'T', 'i:int');
# History must not cost anything, so there is some.
my $ids = $pg->sql('SELECT count(' . $pg->ingest_call('SELECT 1 AS i', 'T') . ') FROM generate_series(1, 200)');
is($ids, 200, 'some history');
$pg->poll('SELECT count(*) = 0 FROM kusto.operations WHERE finished_at IS NULL', 't', 'of finished operations');
$pg->sql('VACUUM ANALYZE kusto.operation; VACUUM ANALYZE kusto.blob');

my $pid = $pg->sql($worker);
like($pid, qr/^\d+$/, 'a worker is there');
# The statistics of what it did last are reported, and it has come to rest.
my $rest = '';
wait_until(sub {
	my $now = JSON::PP->new->canonical->encode(scans($pg));
	my $same = $now eq $rest;
	$rest = $now;
	select undef, undef, undef, 1.5;
	return $same;
}, 'the worker comes to rest');

my $requests = () = $kusto->log;
my ($scans, $usage) = (scans($pg), usage($pid));
select undef, undef, undef, IDLE_SECONDS;
my ($later, $used) = (scans($pg), usage($pid));

is($pg->sql($worker), $pid, 'idle: it is still there');
my $more = () = $kusto->log;
is($more, $requests, 'idle: no request');
is_deeply(difference($scans, $later, 'seq'), {}, 'idle: no table is read as a whole');
is_deeply(difference($scans, $later, 'found'), {}, 'idle: and nothing of what is over');
my $idx = difference($scans, $later, 'idx');
like(join(',', sort keys %$idx), qr/^(?:operation_jobs,)?operation_open$/, 'idle: the indexes of what is open are asked') or diag explain $idx;
# One query, which asks for exports and for jobs.
my $naps = IDLE_SECONDS / NAPTIME;
my $asked = sum values %$idx;
cmp_ok($asked, '<=', 2 * ($naps + 1), "idle: by one query every ${\NAPTIME} s at most");
cmp_ok($asked, '>=', $naps - 1, 'idle: and it does look') or diag explain $scans, $later;
my $cpu = $used->{cpu} - $usage->{cpu};
my $switches = $used->{switches} - $usage->{switches};
note "idle: $cpu ms of CPU time, $switches context switches in ${\IDLE_SECONDS} s";
cmp_ok($cpu, '<=', 50, 'idle: no CPU time to speak of');
# It looks once a second whether somebody wants the database for himself.
cmp_ok($switches, '<=', 3 * IDLE_SECONDS, 'idle: it wakes rarely');

$kusto->assert_no_violations;
done_testing();
