# Transactions of a single row, from some sessions at once: what is left of their rate when the rows
# are recorded.
#
# Two clusters with the same content differ in that by some hundredths, whatever is measured in each and
# however often. So bench/capture calls this for one cluster after the other; what was measured is kept in a
# file, and shown together at the last.
use strict;
use warnings;

use BenchServer qw(parameter wait_until);
use BenchStats qw(exit_status number show_table);
use BenchSubjects qw(empty install subjects table title);
use JSON::PP;

# Many short rounds: whatever else the machine does lasts longer than one of them, and falls out; or hits
# a few, which the median leaves out. In less than two seconds the first statements of new sessions count.
my $pairs = parameter('BENCH_PAIRS', 5);
my $seconds = parameter('BENCH_SECONDS', 2);
# The targets are for four.
my $clients = parameter('BENCH_CLIENTS', 4);
my $rows = 100_000;
my $server = BenchServer->new;

# The others are there for comparison, and far off.
my ($cluster, $clusters) = (parameter('BENCH_CLUSTER', 1), parameter('BENCH_CLUSTERS', 5));
my $few = $cluster > 1 ? 0 : $pairs < 3 ? $pairs : 3;
my %rounds = (none => $pairs, disabled => $pairs, empty => $pairs, row => $pairs, capture => $pairs, plpgsql => $few, pgq => $few);
my %script = (
	insert => <<~'SQL',
		\set id random(1, 9000000000000000)
		INSERT INTO {table} VALUES (:id, now(), '6f0c1a5e-3b77-4a58-9a52-0d7d2b6a4c11', 21.5, 'measurement number 42');
		SQL
	update => <<~SQL);
		\\set id random(1, $rows)
		UPDATE {table} SET value = value + 1, at = now() WHERE id = :id;
		SQL
my %what = (insert => 'INSERT of a row', update => 'UPDATE of a row by its primary key');
my %target = (on => 0.95, off => 0.85);

install($server, rows => $rows, key => 1, usual => 'none disabled empty row capture plpgsql pgq');
my @subjects = subjects();

sub run
{
	my ($subject, $kind) = @_;
	empty($server, $subject, $kind eq 'update' ? $rows : 0);
	(my $script = $script{$kind}) =~ s/\{table\}/table($subject)/e;
	return $server->pgbench_placed($script, seconds => $seconds, clients => $clients);
}

# Of the clusters before: { kind and fsync => { subject => [ rates ] } }.
my $kept_in = "$ENV{BENCH_WORK}/oltp.json";

sub kept
{
	return {} if $cluster == 1;
	open my $file, '<', $kept_in or die "$kept_in: $!";
	local $/;
	return JSON::PP->new->decode(<$file>);
}

sub keep
{
	my ($rates) = @_;
	open my $file, '>', $kept_in or die "$kept_in: $!";
	print $file JSON::PP->new->canonical->encode($rates);
	close $file or die "$kept_in: $!";
	return;
}

sub measure
{
	my ($rates, $kind, $fsync) = @_;
	my $done = @{ $rates->{none} // [] };
	my $command;
	for my $round (0 .. $pairs - 1)
	{
		my @now = grep { $round < $rounds{$_} } @subjects;
		# a b, b a, a b: what changes with time falls out.
		@now = reverse @now if $round % 2;
		for my $subject (@now)
		{
			(my $rate, $command) = run($subject, $kind);
			$rates->{$subject}[$done + $round] = $rate;
		}
	}
	return if $cluster < $clusters;
	print "$what{$kind}, fsync = $fsync; $command; $clusters clusters, $pairs runs of each by turns\n";
	print "nothing is sent meanwhile: the worker is stopped\n";
	show_table('per second', [ map { {
		name => title($_),
		runs => $rates->{$_},
		target => $_ eq 'capture' && $clients == 4 ? [ '>=', $target{$fsync} ] : undef } } @subjects ]);
	return;
}

# All that was recorded has arrived: what the service still did would be in the way of the next run.
sub settle
{
	$server->sql("SELECT kusto_flush('10 min')");
	wait_until(sub { $server->sql('SELECT count(*) FROM kusto.operations WHERE finished_at IS NULL') eq '0' },
		'all exports have ended', 600);
	return;
}

# With the worker at work, and the service that takes what it sends: on a machine of few cores those
# two need what the sessions would have had, so there is no target.
sub measure_sending
{
	my ($kind, $fsync) = @_;
	my %rates;
	for my $round (1 .. 3)
	{
		for my $subject ($round % 2 ? qw(capture none) : qw(none capture))
		{
			push @{ $rates{$subject} }, scalar run($subject, $kind);
			settle();
		}
	}
	print "$what{$kind}, fsync = $fsync, sent to the local service meanwhile, which runs on the same cores\n";
	show_table('per second', [ map { { name => title($_), runs => $rates{$_} } } qw(none capture) ]);
	return;
}

my $has_capture = grep { $_ eq 'capture' } @subjects;
my $rates = kept();
$server->hold_worker if $has_capture;
for my $fsync (qw(on off))
{
	$server->set(fsync => $fsync);
	measure($rates->{"$_ $fsync"} //= {}, $_, $fsync) for qw(insert update);
}
keep($rates);
if ($has_capture)
{
	$server->sql('TRUNCATE kusto.outbox_0, kusto.outbox_1, kusto.outbox_2');
	$server->release_worker;
}
if ($has_capture && $cluster == $clusters)
{
	$server->set(fsync => 'on');
	measure_sending('insert', 'on');
}
exit exit_status();
