# Storage that answers late: up to which latency the four blocks of 4 MiB that an export has under way hide it.
use strict;
use warnings;

use BenchExport qw(export_of install measure session sink);
use BenchKusto;
use BenchServer qw(parameter);
use BenchStats qw(exit_status interleave median number show_table);
use BenchTables qw(make_table rows_of);
use File::Basename qw(dirname);
use IPC::Open2 qw(open2);
use IO::Handle;
use POSIX qw(ceil);

my $runs = parameter('BENCH_RUNS', 5);
my $table = 'lineitem';
my @latencies = (0, 20, 50, 100, 200, 400);
# src/core/ingest.c
my ($window, $block) = (4, 4 * 1024 * 1024);

# Ends with us, however we end: its standard input is ours alone.
my $node = open2(my $answers, my $late, $ENV{BENCH_NODE}, dirname(__FILE__) . '/../lib/late_answers.mjs', $ENV{SINK_LATE_SOCKET});
$late->autoflush(1);
(readline($answers) // '') eq "listening\n" or die "late_answers.mjs did not start\n";

my $server = install(BenchKusto->new);
sink('late');
make_table($server, $table);
my $session = session();
my %measured;

sub run
{
	my ($ms) = @_;
	print $late "$ms\n";
	(readline($answers) // '') eq "$ms\n" or die "late_answers.mjs has ended\n";
	return measure($session, export_of("SELECT * FROM $table", 'Discarded'), rows => rows_of($table));
}

run($_) for @latencies;
interleave($runs, \@latencies, sub {
	my ($ms) = @_;
	push @{ $measured{$ms} }, run($ms);
});

my $outcome = $measured{0}[0]{outcome};
my $compressed = $outcome->{compressed_bytes};
my $blocks = ceil($compressed / $block);
my $alone = median(map { $_->{seconds} } @{ $measured{0} });
my $rate = $compressed / $alone;

# Four blocks an answer's time, and then the list of blocks: below that nothing can be.
sub note_of
{
	my ($ms) = @_;
	return $ms ? sprintf('%.2f s for %d answers, one after the other', (ceil($blocks / $window) + 1) * $ms / 1000, ceil($blocks / $window) + 1) : undef;
}

printf "%s, one session, %s rows; %.0f MB of CSV, %.0f MB compressed: %d blocks; to storage that answers each request late\n",
  $table, number(rows_of($table)), $outcome->{raw_bytes} / 1e6, $compressed / 1e6, $blocks;
show_table('seconds', [ map { {
	name => $_ ? "$_ ms" : 'no latency',
	runs => [ map { $_->{seconds} } @{ $measured{$_} } ],
	note => note_of($_) } } @latencies ], about => "$table, storage that answers late");
printf "  four blocks of 4 MiB, sent at the %.0f MB a second of no latency, hide %.0f ms\n\n", $rate / 1e6, 1000 * $window * $block / $rate;

close $late;
waitpid $node, 0;
exit exit_status();
