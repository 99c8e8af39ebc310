# A thousand transactions of one row a second: how long after its commit a row is there for a query.
#
# The commit's time is PostgreSQL's own (track_commit_timestamp), taken before the commit is flushed
# to disk; the service says when it has stored what came with a request. Both are of the same clock.
use strict;
use warnings;

use BenchKusto;
use BenchServer qw(parameter wait_until);
use BenchStats qw(exit_status met number percentile);
use BenchSubjects qw(install table);
use Time::Piece;

my $seconds = 2 * parameter('BENCH_SECONDS', 10);
my $server = BenchServer->new;
my $kusto = BenchKusto->new;
my $table = table('capture');

sub milliseconds
{
	my ($text) = @_;
	my ($second, $fraction) = $text =~ /^(.*)\.(\d{3})Z$/ or die "not a time: $text";
	return 1000 * Time::Piece->strptime($second, '%Y-%m-%dT%H:%M:%S')->epoch + $fraction;
}

# The place of a column among those of a row.
sub place
{
	my ($columns, $name) = @_;
	my ($place) = grep { $columns->[$_]{name} eq $name } 0 .. $#$columns;
	return $place // die "no column $name";
}

install($server, rows => 1, only => ['capture']);
$server->set('kusto_ingest.flush_interval' => 0);
# The first row waits for a token, and for its table to be made.
$server->sql("INSERT INTO $table SELECT * FROM source");
$server->sql("SELECT kusto_flush('1 min')");
$server->sql('CHECKPOINT');

my ($rate, $command) = $server->pgbench(<<~SQL, rate => 1000, seconds => $seconds);
	\\set id random(1, 9000000000000000)
	INSERT INTO $table VALUES (:id, now(), '6f0c1a5e-3b77-4a58-9a52-0d7d2b6a4c11', 21.5, 'measurement number 42');
	SQL
$server->sql("SELECT kusto_flush('1 min')");
my $committed = $server->sql("SELECT count(*) FROM $table");
wait_until(sub { $kusto->count('Changes') == $committed }, "Kusto has the $committed rows");

my %commit = map { split /\|/ } split /\n/, $server->sql(<<~SQL);
	SELECT xmin, 1000 * extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM $table WHERE id <> 1
	SQL
my $stored = $kusto->rows('Changes');
my $txid = place($stored->{columns}, '_txid');
my $extents = $kusto->extents('Changes');
my ($next, @latencies) = (0);
for my $extent (@$extents)
{
	my $visible = milliseconds($extent->{ingestedAt});
	for my $row (@{ $stored->{rows} }[$next .. $next + $extent->{rows} - 1])
	{
		my $at = $commit{ $row->[$txid] % 2**32 };
		push @latencies, $visible - $at if defined $at;
	}
	$next += $extent->{rows};
}
die 'rows without a commit' unless @latencies == keys %commit && @latencies == $committed - 1;
$kusto->assert_no_violations;

print "from a transaction's commit until its row is in the service, kusto_ingest.flush_interval = 0; $command\n";
printf "  %.0f transactions a second, %s rows in %s requests\n", $rate, number(scalar @latencies), number(@$extents - 1);
for my $of ([ 50, 50 ], [ 99, 500 ], [ 100 ])
{
	my ($percent, $target) = @$of;
	my $value = percentile($percent, @latencies);
	printf "  %-4s %8.1f ms", $percent == 100 ? 'max' : "p$percent", $value;
	printf '   < %d ms %s', $target, met($value, [ '<=', $target ]) if $target;
	print "\n";
}
print "\n";
exit exit_status();
