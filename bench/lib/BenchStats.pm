# BenchStats: figures of repeated runs, and the table that shows them against their targets.
package BenchStats;

use strict;
use warnings;

use Exporter qw(import);

our @EXPORT_OK = qw(median percentile ratios show_table met exit_status number);

my $missed = 0;

sub median { my (@values) = @_; return percentile(50, @values) }

# The value that so many of a hundred do not exceed; between two values, on the line between them.
sub percentile
{
	my ($percent, @values) = @_;
	return undef unless @values;
	@values = sort { $a <=> $b } @values;
	my $place = $percent / 100 * $#values;
	my $below = int $place;
	return $values[-1] if $below == $#values;
	return $values[$below] + ($place - $below) * ($values[$below + 1] - $values[$below]);
}

# Of each run to the run of the baseline in the same round: what the machine did meanwhile falls out.
sub ratios
{
	my ($runs, $baseline) = @_;
	return map { $runs->[$_] / $baseline->[$_] } grep { defined $baseline->[$_] } 0 .. $#$runs;
}

sub _figure { my ($value) = @_; return sprintf $value >= 1000 ? '%.0f' : $value >= 10 ? '%.1f' : '%.3f', $value }

# 1234567 as 1,234,567.
sub number
{
	my ($value) = @_;
	my $text = reverse sprintf '%.0f', $value;
	$text =~ s/(\d{3})(?=\d)/$1,/g;
	return scalar reverse $text;
}

# A target is [ '<=' or '>=', value ].
sub met
{
	my ($value, $target) = @_;
	my $met = $target->[0] eq '<=' ? $value <= $target->[1] : $value >= $target->[1];
	$missed++ unless $met;
	return $met ? 'met' : 'MISSED';
}

# bench/capture tells a missed target from a part that died by this.
sub exit_status { return $missed ? 99 : 0 }

# show_table('seconds', [ { name, runs => [ ... ], target => [ '<=', 1.4 ], note } ... ]): the first
# row is the baseline of the others.
sub show_table
{
	my ($unit, $rows) = @_;
	my $baseline = $rows->[0]{runs};

	printf "  %-34s %10s %21s %7s %15s  %s\n", '', $unit, 'min .. max', 'ratio', 'min .. max', 'target';
	for my $row (@$rows)
	{
		my @runs = grep { defined } @{ $row->{runs} };
		next unless @runs;
		my @ratios = ratios($row->{runs}, $baseline);
		my $ratio = median(@ratios);
		my $verdict = $row->{target} ? "$row->{target}[0] $row->{target}[1] " . met($ratio, $row->{target}) : '';
		$verdict .= ($verdict ? '; ' : '') . $row->{note} if $row->{note};
		my ($low, $high) = (percentile(0, @runs), percentile(100, @runs));
		my $line = sprintf '  %-34s %10s %21s %7.3f %15s  %s', $row->{name}, _figure(median(@runs)),
		  _figure($low) . ' .. ' . _figure($high), $ratio,
		  sprintf('%.3f .. %.3f', percentile(0, @ratios), percentile(100, @ratios)), $verdict;
		$line =~ s/\s+$//;
		print "$line\n";
	}
	my @base = grep { defined } @$baseline;
	print "  the baseline itself varied by more than a fifth: something else used this machine, measure again\n"
	  if percentile(100, @base) > 1.2 * percentile(0, @base);
	print "\n";
	return;
}

1;
