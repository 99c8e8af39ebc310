# The memory of a backend that exports: the same for a gigabyte as for twenty.
use strict;
use warnings;

use BenchExport qw(export_of install outcome session sink);
use BenchKusto;
use BenchProcess qw(memory reset_peak);
use BenchServer qw(parameter);
use BenchStats qw(exit_status number show_values);
use BenchTables qw(make_table);

my $large = parameter('BENCH_LARGE_GB', 20);
my $small = $large > 1 ? 1 : 0.1;
my $server = install(BenchKusto->new);
sink('discard');

# A few megabytes of lineitem, read again and again: as varied as the table for the compressor, but hardly
# any of PostgreSQL's shared memory, which would count as the backend's once it has touched it.
my $piece = 20_000;
make_table($server, 'lineitem');
$server->sql("CREATE UNLOGGED TABLE piece AS SELECT * FROM lineitem LIMIT $piece; VACUUM (FREEZE, ANALYZE) piece");
$piece = $server->sql('SELECT count(*) FROM piece');

sub query
{
	my ($times) = @_;
	return "SELECT piece.* FROM generate_series(1, $times), piece";
}

# A backend for each, since what malloc has got it may keep.
sub run
{
	my ($gigabytes, $piece_bytes) = @_;
	my $session = BenchServer->new;
	my $pid = $session->sql('SELECT pg_backend_pid()');
	my $times = int($gigabytes * 1e9 / $piece_bytes) || 1;

	# What any backend has that has read a table and looked into the catalog.
	$session->sql('SET client_min_messages = warning; SELECT count(*) FROM piece; SELECT count(*) FROM pg_class');
	my $idle = memory($pid);
	$session->sql("LOAD 'kusto_ingest'");
	my $loaded = memory($pid);
	reset_peak($pid);
	my $outcome = outcome($session->sql(export_of(query($times), 'Discarded')), $times * $piece);
	my $after = memory($pid);
	return {
		gigabytes => $outcome->{raw_bytes} / 1e9,
		compressed => $outcome->{compressed_bytes} / 1e9,
		blobs => $outcome->{blobs},
		idle => $idle->{now},
		loaded => $loaded->{now},
		peak => $after->{peak},
		shared => $after->{shared} };
}

my $probe = session();
my $piece_bytes = outcome($probe->sql(export_of(query(1), 'Discarded')), $piece)->{raw_bytes};
my @runs = map { run($_, $piece_bytes) } $small, $large;
for my $run (@runs)
{
	printf "  %.1f GB of CSV, %.1f GB compressed, %d blobs: %.1f MB idle, %.1f MB with the library, %.1f MB at the peak, of which %.1f MB PostgreSQL's shared memory\n",
	  @$run{qw(gigabytes compressed blobs idle loaded peak shared)};
}
print "\n";
my @above = map { $_->{peak} - $_->{idle} } @runs;
show_values('MB', [
	(map { {
		name => sprintf('peak above idle, %.3g GB exported', $runs[$_]{gigabytes}),
		runs => [ $above[$_] ],
		target => [ '<=', 64 ] } } 0, 1),
	{ name => 'difference of the two', runs => [ abs($above[1] - $above[0]) ], target => [ '<=', 5 ] } ],
	about => 'memory of the backend');
$server->sql('DROP TABLE piece');
exit exit_status();
