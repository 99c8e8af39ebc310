# BenchStats: figures of repeated runs, and the table that shows them against their targets.
package BenchStats;

use strict;
use warnings;

use Exporter qw(import);
use JSON::PP;

our @EXPORT_OK = qw(median percentile ratios interleave show_table show_values met exit_status number);

my $missed = 0;

# Whoever waits for minutes wants to see each table when it is there.
STDOUT->autoflush(1);

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

# Calls measure(subject, round) for each subject in each round, in the one order and in the other by
# turns: a b c, c b a. What changes with time falls out.
sub interleave
{
	my ($rounds, $subjects, $measure) = @_;
	for my $round (0 .. $rounds - 1)
	{
		$measure->($_, $round) for $round % 2 ? reverse @$subjects : @$subjects;
	}
	return;
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
# row is the baseline of the others. about: the report and the plot are to have this table, under
# this name.
sub show_table
{
	my ($unit, $rows, %options) = @_;
	my @recorded;
	my $baseline = $rows->[0]{runs};

	printf "  %-40s %10s %21s %7s %15s  %s\n", '', $unit, 'min .. max', 'ratio', 'min .. max', 'target';
	for my $row (@$rows)
	{
		my @runs = grep { defined } @{ $row->{runs} };
		next unless @runs;
		my @ratios = ratios($row->{runs}, $baseline);
		my $ratio = median(@ratios);
		my $verdict = $row->{target} ? "$row->{target}[0] $row->{target}[1] " . met($ratio, $row->{target}) : '';
		$verdict .= ($verdict ? '; ' : '') . $row->{note} if $row->{note};
		my ($low, $high) = (percentile(0, @runs), percentile(100, @runs));
		my $line = sprintf '  %-40s %10s %21s %7.3f %15s  %s', $row->{name}, _figure(median(@runs)),
		  _figure($low) . ' .. ' . _figure($high), $ratio,
		  sprintf('%.3f .. %.3f', percentile(0, @ratios), percentile(100, @ratios)), $verdict;
		$line =~ s/\s+$//;
		print "$line\n";
		push @recorded, { name => $row->{name}, value => median(@runs), low => $low, high => $high, ratio => $ratio,
			ratio_low => percentile(0, @ratios), ratio_high => percentile(100, @ratios), verdict => $verdict };
	}
	_record(ratios => $unit, \@recorded, %options);
	my @base = grep { defined } @$baseline;
	print "  the baseline itself varied by more than a fifth: something else used this machine, measure again\n"
	  if percentile(100, @base) > 1.2 * percentile(0, @base);
	print "\n";
	return;
}

# show_values('MB', [ { name, runs => [ ... ], target, note } ... ]): figures that are compared with nothing
# but their targets.
sub show_values
{
	my ($unit, $rows, %options) = @_;
	my @recorded;
	printf "  %-46s %10s %21s  %s\n", '', $unit, 'min .. max', 'target';
	for my $row (@$rows)
	{
		my @runs = @{ $row->{runs} };
		my $value = median(@runs);
		my ($low, $high) = (percentile(0, @runs), percentile(100, @runs));
		my $verdict = $row->{target} ? "$row->{target}[0] $row->{target}[1] " . met($value, $row->{target}) : '';
		$verdict .= ($verdict ? '; ' : '') . $row->{note} if $row->{note};
		my $spread = @runs > 1 ? _figure($low) . ' .. ' . _figure($high) : '';
		(my $line = sprintf '  %-46s %10s %21s  %s', $row->{name}, _figure($value), $spread, $verdict) =~ s/\s+$//;
		print "$line\n";
		push @recorded, { name => $row->{name}, value => $value, low => $low, high => $high, verdict => $verdict };
	}
	_record(values => $unit, \@recorded, %options);
	print "\n";
	return;
}

# A line for BenchReport.
sub _record
{
	my ($kind, $unit, $rows, %options) = @_;
	return unless $options{about} && $ENV{BENCH_FIGURES};
	open my $file, '>>', $ENV{BENCH_FIGURES} or die "$ENV{BENCH_FIGURES}: $!";
	print $file JSON::PP->new->canonical->utf8->encode({ part => $ENV{BENCH_PART}, kind => $kind, unit => $unit, rows => $rows, %options }), "\n";
	close $file or die "$ENV{BENCH_FIGURES}: $!";
	return;
}

1;
