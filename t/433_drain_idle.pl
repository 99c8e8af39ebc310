# What a worker with captures costs while nothing is captured: it stays, asks Kusto for nothing, and
# looks once every naptime. See 320_idle_worker.pl for one without.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(wait_until process_status);
use KustoLocal;
use List::Util qw(sum);
use Outbox;
use ProcessUsage qw(scans difference usage);
use PostgreSQL::Test::Utils;
use Test::More;

use constant IDLE_SECONDS => 20;
use constant NAPTIME => 4;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => <<~"CONF");
	kusto_ingest.naptime = ${\NAPTIME}s
	kusto_ingest.worker_idle_timeout = 0
	kusto_ingest.flush_interval = 100ms
	autovacuum = off
	CONF
my $outbox = Outbox->new($pg);
my $worker = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker' AND datname = current_database());

my @ids = map { $outbox->capture("t$_") } 1 .. 10;
for my $id (@ids)
{
	$outbox->change($id, rows => 10) for 1 .. 3;
}
is($outbox->flush, 't', 'some history');
$outbox->arrives($_, 'it arrives') for @ids;

my $pid = $pg->sql($worker);
like($pid, qr/^\d+$/, 'a worker is there');
# It tries a few more times to truncate the ring, at the end of a naptime each.
my $switches = 0;
wait_until(sub {
	my $now = usage($pid)->{switches};
	my $rest = $now - $switches <= 2 * (NAPTIME + 1);
	$switches = $now;
	select undef, undef, undef, NAPTIME + 1;
	return $rest;
}, 'the worker comes to rest');

my $requests = () = $kusto->log;
my ($scans, $usage) = (scans($pg), usage($pid));
select undef, undef, undef, IDLE_SECONDS;
my ($later, $used) = (scans($pg), usage($pid));

is($pg->sql($worker), $pid, 'idle: it is still there, for as long as there are captures');
my $more = () = $kusto->log;
is($more, $requests, 'idle: no request');
is_deeply(difference($scans, $later, 'seq'), {}, 'idle: no table is read as a whole');
my $idx = difference($scans, $later, 'idx');
my $naps = IDLE_SECONDS / NAPTIME;
my $list = delete $idx->{capture_pkey};
cmp_ok($list, '<=', $naps + 1, 'idle: the list of captures is read once every naptime');
cmp_ok($list, '>=', $naps - 1, 'idle: and is read');
my $probes = sum map { $idx->{"outbox_${_}_batch"} // 0 } 0 .. 2;
cmp_ok($probes, '<=', 2 * 3 * @ids * ($naps + 1), 'idle: with two probes of each table of the ring for each');
delete @$idx{ map { "outbox_${_}_batch" } 0 .. 2 };
like(join(',', sort keys %$idx), qr/^(?:operation_jobs,)?operation_open$/, 'idle: besides, the indexes of what is open are asked') or diag explain $idx;
my $cpu = $used->{cpu} - $usage->{cpu};
$switches = $used->{switches} - $usage->{switches};
note "idle: $cpu ms of CPU time, $switches context switches in ${\IDLE_SECONDS} s";
cmp_ok($cpu, '<=', 50, 'idle: no CPU time to speak of');
cmp_ok($switches, '<=', 3 * IDLE_SECONDS, 'idle: it wakes rarely');

# Without captures it goes.
$pg->sql('DROP TABLE ' . join ', ', map { "t$_" } 1 .. 10);
$pg->poll("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $pid", 't', 'when the tables are dropped, it ends for want of work');

# A database that has captures gets its worker from whoever writes to a captured table or calls kusto_flush.
my $id = $outbox->capture('late');
$outbox->change($id);
is($outbox->flush, 't', 'kusto_flush starts one');
$outbox->arrives($id, 'which sends');

# With the library preloaded nobody needs to do anything after a crash of the server.
{
	my $launched = KustoCluster->start($kusto, name => 'launched', conf => <<~'CONF');
		shared_preload_libraries = 'kusto_ingest'
		kusto_ingest.naptime = 1h
		kusto_ingest.worker_idle_timeout = 0
		CONF
	my $ring = Outbox->new($launched);
	$id = $ring->capture('launched');
	$ring->change($id, rows => 5);
	$launched->node->stop('immediate');
	$launched->node->start;
	$ring->arrives($id, 'after a crash the launcher starts a worker, which sends');
	$pid = $launched->sql($worker);
	$ring->change($id);
	is($ring->flush, 't', 'and it goes on');
	is($launched->sql($worker), $pid, 'being the same');
}

$kusto->assert_no_violations;
done_testing();
