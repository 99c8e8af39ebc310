# One big table over several processors: kusto_ingest_table() with 1, 2, ... participants, each of which
# compresses in line, so that what they share is the table, the snapshot and the storage.
use strict;
use warnings;

use BenchExport qw(has_threads install literal measure session sink);
use BenchKusto;
use BenchServer qw(parameter);
use BenchStats qw(exit_status interleave median number show_table);
use BenchTables qw(make_table rows_of);

my $runs = parameter('BENCH_RUNS', 5);
my $table = 'lineitem';
my $server = install(BenchKusto->new);
if ($server->sql("SELECT count(*) FROM pg_proc WHERE proname = 'kusto_ingest_table'") eq '0')
{
	print "  left out: this kusto_ingest has no kusto_ingest_table()\n\n";
	exit 0;
}
sink('discard');
make_table($server, $table);

chomp(my $processors = qx(nproc));
my @degrees = (1, 2);
push @degrees, 2 * $degrees[-1] while 2 * $degrees[-1] <= $processors && $degrees[-1] < 8;
my $session = session();
$session->sql('SET kusto_ingest.compression_threads = 0') if has_threads($session);

sub run
{
	my ($degree) = @_;
	return measure($session, 'SELECT kusto_ingest_table(' . literal($table) . ", 'bench', 'Discarded', parallel => $degree)",
		rows => rows_of($table));
}

my %measured;
run($_) for @degrees;
interleave($runs, \@degrees, sub {
	my ($degree) = @_;
	push @{ $measured{$degree} }, run($degree);
});

my $seconds = sub { my ($what, $degree) = @_; return [ map { $_->{$what} } @{ $measured{$degree} } ] };
printf "kusto_ingest_table('%s', ...), %s rows, compression_threads = 0, to storage that keeps nothing\n", $table, number(rows_of($table));
for my $what (qw(seconds cpu))
{
	show_table($what eq 'cpu' ? 'CPU seconds' : 'seconds', [ map { {
		name => "parallel => $_",
		runs => $seconds->($what, $_),
		target => $what eq 'seconds' && $_ == 2 ? [ '<=', 0.6 ] : undef } } @degrees ],
		about => "$table, parallel" . ($what eq 'cpu' ? ', processor time' : ''), $what eq 'seconds' ? (plot => 'parallel') : ());
}

# t(n) = alone + shared / n, from n = 1 and 2: what does not get shorter, however many take part.
my ($one, $two) = map { median(@{ $seconds->('seconds', $_) }) } 1, 2;
my $alone = 2 * $two - $one;
printf "  t(n) = a + b/n through the medians of 1 and 2: a = %.3f s (%.0f %%), b = %.3f s; at best %s times as fast\n\n",
  $alone, 100 * $alone / $one, $one - $alone, $alone > 0.01 * $one ? sprintf('%.1f', $one / $alone) : 'more than 100';
exit exit_status();
