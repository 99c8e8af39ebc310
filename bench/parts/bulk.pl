# One INSERT ... SELECT of many rows: how much longer it takes when the rows are recorded.
use strict;
use warnings;

use BenchServer qw(parameter);
use BenchStats qw(exit_status median number show_table);
use BenchSubjects qw(empty install subjects table title);

my $runs = parameter('BENCH_RUNS', 5);
my $rows = parameter('BENCH_ROWS', 500_000);
my $server = BenchServer->new;

my %query = (
	computed => "SELECT i, now() + i * interval '1 ms', gen_random_uuid(), random(), md5(i::text)"
		. " FROM generate_series(bigint '1', $rows) i",
	# The cheapest INSERT there is, so the ratio is the worst there is: for the cost of a row.
	copied => 'SELECT * FROM source');

install($server, rows => $rows, key => 1);
my @subjects = subjects();
$server->hold_worker if grep { $_ eq 'capture' } @subjects;

sub measure
{
	my ($query, $rounds, $target) = @_;
	my (%seconds, %wal);
	for my $round (0 .. $rounds - 1)
	{
		# Nobody is always the first.
		for my $subject (@subjects[map { ($_ + $round) % @subjects } 0 .. $#subjects])
		{
			empty($server, $subject);
			my ($took, $written) = $server->timed('INSERT INTO ' . table($subject) . " $query");
			push @{ $seconds{$subject} }, $took;
			push @{ $wal{$subject} }, $written;
		}
	}
	print "INSERT INTO table $query\n";
	my $base = median(@{ $seconds{none} });
	show_table('seconds', [ map { {
		name => title($_),
		runs => $seconds{$_},
		target => $_ eq 'capture' ? $target : undef,
		note => sprintf('%.2f us a row more, %.0f MB of WAL', (median(@{ $seconds{$_} }) - $base) * 1e6 / $rows,
			median(@{ $wal{$_} }) / 1024**2) } } @subjects ]);
	return;
}

printf "%s rows of (bigint, timestamptz, uuid, float8, text), with a primary key; the worker is stopped\n\n", number($rows);
measure($query{computed}, $runs, [ '<=', 1.4 ]);
measure($query{copied}, $runs < 2 ? $runs : 2);
exit exit_status();
