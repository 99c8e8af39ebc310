# Small operations: the latency of a transaction that exports one row, and how many of them get through.
use strict;
use warnings;

use BenchExport qw(install sink);
use BenchKusto;
use BenchServer qw(parameter wait_until);
use BenchStats qw(exit_status median number percentile show_values);
use Time::HiRes qw(time);

my $runs = parameter('BENCH_RUNS', 5);
my $seconds = parameter('BENCH_SECONDS', 10);
# A notice of each export is not what is measured.
$ENV{PGOPTIONS} = '-c client_min_messages=warning';
my $kusto = BenchKusto->new;
my $server = install($kusto);
my $log = "$ENV{BENCH_WORK}/latency";
my $one_row = "SELECT kusto_ingest('SELECT 1 AS id, now() AS at', 'bench', 'Small');\n";

# Transactions of one session, by pgbench; what each took from the statement's begin to its COMMIT's answer, in
# milliseconds. The first ones, which load the library and fetch the token, are left out.
sub latencies
{
	my (%options) = @_;
	my $warm_up = 10;
	$server->pgbench($one_row, clients => 1, options => "--log --log-prefix=$log", %options);
	my @all;
	for my $name (glob "$log.*")
	{
		open my $file, '<', $name or die "$name: $!";
		push @all, map { (split)[2] / 1000 } readline $file;
		unlink $name;
	}
	my $operations = $server->sql('SELECT count(*) FROM kusto.operations');
	die "pgbench has logged @{[ scalar @all ]} transactions, and there are $operations operations\n"
	  unless @all == $options{transactions} && $operations == @all;
	# When the answer is there before it has looked, pgbench does not look at the clock again either, and logs 0.
	my @known = grep { $_ > 0 } @all[$warm_up .. $#all];
	die "pgbench has not logged how long most transactions took\n" if @known < 0.9 * (@all - $warm_up);
	return @known;
}

sub unfinished { return $server->sql('SELECT count(*) FROM kusto.operations WHERE finished_at IS NULL') }

# All have landed: what the worker still did would be in the way of the next run.
sub settle
{
	wait_until(sub { unfinished() eq '0' }, 'all operations have ended', 600);
	my $failed = $server->sql("SELECT count(*) FROM kusto.operations WHERE state <> 'succeeded'");
	die "$failed operations have not succeeded\n" unless $failed eq '0';
	$server->sql("SELECT kusto_purge('0 s'); VACUUM kusto.operation; VACUUM kusto.blob");
	return;
}

# What a session waits for; the worker posts meanwhile.
sub measure_latency
{
	my ($to, $what, $target) = @_;
	my (@p50, @p99);
	my $each = int($seconds * 20);
	sink($to);
	for (1 .. $runs)
	{
		my @latencies = latencies(transactions => $each);
		push @p50, percentile(50, @latencies);
		push @p99, percentile(99, @latencies);
		settle();
	}
	print "one row, one session, blob to $what: $each transactions a run\n";
	show_values('ms', [
		{ name => 'p50', runs => \@p50, target => $target },
		{ name => 'p99', runs => \@p99 } ], about => "one row, blob to $what");
	return;
}

# Four sessions, and the worker that sends the messages: until all are in the queue, and until Kusto's answer is known.
sub measure_throughput
{
	my (@staged, @posted, @succeeded);
	sink('azurite');
	for (1 .. $runs)
	{
		my $began = $server->sql('SELECT clock_timestamp()');
		$server->pgbench($one_row, clients => 4, seconds => $seconds / 2 < 1 ? 1 : int($seconds / 2));
		wait_until(sub { unfinished() eq '0' }, 'all operations have ended', 600);
		my ($operations, @took) = split /\|/, $server->sql(<<~SQL);
			SELECT count(*), extract(epoch FROM max(staged_at) - '$began'), extract(epoch FROM max(posted_at) - '$began'),
				extract(epoch FROM max(finished_at) - '$began') FROM kusto.operations
			SQL
		push @staged, 60 * $operations / $took[0];
		push @posted, 60 * $operations / $took[1];
		push @succeeded, 60 * $operations / $took[2];
		settle();
	}
	print "one row, four sessions, blobs and messages to Azurite\n";
	show_values('a minute', [
		{ name => 'committed', runs => \@staged },
		{ name => 'posted', runs => \@posted, target => [ '>=', 2000 ] },
		{ name => 'succeeded, and known to have', runs => \@succeeded } ], about => 'one row, four sessions');
	return;
}

$kusto->call('POST', '/command', { db => 'bench', csl => '.create table Small (id:long, at:datetime)' });
measure_latency('discard', 'storage that keeps nothing');
measure_latency('azurite', 'Azurite');
measure_throughput();
$kusto->assert_no_violations;
exit exit_status();
