# A streaming standby: nothing runs there, and nothing can be exported; promoted, it goes on with what
# the old primary has committed.
use strict;
use warnings;

use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
$kusto->create_table($db, 'T', 'i:int');

# With preloading the launcher goes on, without it the next call.
my %conf = ('on demand' => '', preloaded => "shared_preload_libraries = 'kusto_ingest'\n");
my @landed;

# The worker's commits wait for the standby, and a wait forgets what has woken the process meanwhile.
sub wakes_during_commit
{
	my ($pg, $standby) = @_;
	$pg->sql(q(ALTER SYSTEM SET synchronous_standby_names = '*'));
	$pg->sql('SELECT pg_reload_conf()');
	$pg->poll(q(SELECT sync_state = 'sync' FROM pg_stat_replication));
	my $export = sub {
		push @landed, scalar @landed + 1;
		return $pg->sql('SET synchronous_commit = local; SELECT ' . $pg->ingest_call("SELECT $landed[-1] AS i", 'T'));
	};
	$pg->succeeds($export->(), 'the worker waits for a standby');
	my $receiver = $standby->safe_psql('postgres', 'SELECT pid FROM pg_stat_wal_receiver');
	kill 'STOP', $receiver or die;
	my $first = $export->();
	$pg->poll(q(SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker'));
	my $second = $export->();
	kill 'CONT', $receiver or die;
	$pg->succeeds($_, 'what was staged while it waited', '20 s') for $first, $second;
	$pg->sql('ALTER SYSTEM RESET synchronous_standby_names');
	$pg->sql('SELECT pg_reload_conf()');
	return;
}

for my $mode (sort keys %conf)
{
	my $name = $mode =~ s/ /_/r;
	my $pg = KustoCluster->start($kusto, name => $name, conf => $conf{$mode} . <<~'CONF');
		wal_level = replica
		max_wal_senders = 4
		kusto_ingest.naptime = 1h
		kusto_ingest.repost_after = 1s
		CONF
	my $primary = $pg->node;
	my $standby = PostgreSQL::Test::Cluster->new("${name}_standby");
	$primary->backup('backup');
	$standby->init_from_backup($primary, 'backup', has_streaming => 1);
	$standby->start;
	wakes_during_commit($pg, $standby) if $mode eq 'on demand';

	my @rows = map { @landed + $_ } 1, 2;
	push @landed, @rows;
	$kusto->fault({ service => 'queue', method => 'POST' }, { blackhole => JSON::PP::true }, times => -1);
	my @ids = map { $pg->ingest("SELECT $_ AS i", 'T') } @rows;
	$pg->poll("SELECT state = 'posting' FROM kusto.operations WHERE id = '$ids[0]'");
	$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

	my $replica = bless { %$pg, node => $standby }, ref $pg;
	is($replica->sql('SELECT count(*) FROM kusto.operations WHERE finished_at IS NULL'), 2, "$mode: the standby has the operations");
	is($replica->sql(q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'kusto%')), 0, "$mode: and neither launcher nor worker");
	for my $call ($pg->ingest_call('SELECT 3 AS i', 'T'), $pg->ingest_call('SELECT 3 AS i', 'T') =~ s/^kusto_ingest/kusto_ingest_async/r)
	{
		$replica->fails_like("SELECT $call", { sqlstate => '25006', message => qr/cannot execute kusto_ingest\w*\(\) during recovery/ },
			"$mode: $call is refused");
	}
	is($replica->sql(q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'kusto%')), 0, "$mode: and starts nothing");
	like($replica->sql(q(SELECT kusto_query('print answer = 42'))), qr/42/, "$mode: asking Kusto is allowed");

	$primary->stop('immediate');
	$kusto->clear_faults;
	$standby->promote;
	if ($mode eq 'preloaded')
	{
		$replica->poll("SELECT bool_and(state = 'succeeded') FROM kusto.operations", 't', "$mode: promoted, it goes on without any call");
	}
	else
	{
		is($replica->sql('SELECT count(*) FROM kusto.operations WHERE finished_at IS NULL'), 2, "$mode: promoted, it waits for a call");
		push @landed, scalar @landed + 1;
		$replica->succeeds($replica->ingest("SELECT $landed[-1] AS i", 'T'), "$mode: an export on the new primary");
		$replica->poll("SELECT bool_and(state = 'succeeded') FROM kusto.operations", 't', "$mode: and all that was open goes on");
	}
	unlike(slurp_file($standby->logfile), qr/TRAP|PANIC/, "$mode: no assertion has failed");
	$standby->stop;
}

$kusto->settle;
KustoCluster::same_rows($kusto->rows($db, 'T'), [ map { [$_] } @landed ], 'everything has arrived once');
$kusto->assert_no_violations;
done_testing();
