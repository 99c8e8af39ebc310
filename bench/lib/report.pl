# What bench/run has measured, as Markdown and as a plot.
#
#   report.pl WHERE FIGURES OUTPUT    writes OUTPUT.md and OUTPUT.svg; WHERE is the head of the report,
#                                     FIGURES the lines of lib/BenchStats.pm
use strict;
use warnings;
use utf8;

use BenchPlot qw(plot);
use JSON::PP;

my ($where, $figures, $output) = @ARGV;

my %panel = (
	export => {
		title => 'One session: a table to storage that keeps nothing',
		note => 'kusto_ingest: query, CSV, gzip, upload, commit. COPY: query and CSV, to /dev/null. Factor: to COPY' },
	rivals => {
		title => 'From the table to the message in the queue, blob in Azurite',
		note => 'the last two only compress. Factor: to kusto_ingest' },
	parallel => {
		title => 'kusto_ingest_table: several processors for one table',
		note => 'compression_threads = 0, storage that keeps nothing. Factor: to parallel => 1' });

sub lines
{
	my ($name) = @_;
	return unless -e $name;
	open my $file, '<:raw', $name or die "$name: $!";
	return readline $file;
}

sub spill
{
	my ($name, $text) = @_;
	open my $file, '>:encoding(UTF-8)', $name or die "$name: $!";
	print $file $text;
	close $file or die "$name: $!";
	return;
}

sub figure { my ($value) = @_; return sprintf $value >= 1000 ? '%.0f' : $value >= 10 ? '%.1f' : '%.2f', $value }

sub spread { my ($low, $high, $format) = @_; return sprintf '%s to %s', map { $format->($_) } $low, $high }

sub verdict { my ($row) = @_; (my $text = $row->{verdict}) =~ s/MISSED/**missed**/; return $text }

sub table
{
	my ($table) = @_;
	my $ratios = $table->{kind} eq 'ratios';
	my @head = ($table->{unit}, 'smallest to largest', $ratios ? ('ratio', 'smallest to largest') : (), 'target, remarks');
	my $text = "$table->{about}:\n\n" . row('', @head) . row(map { '---' } '', @head);
	for my $row (@{ $table->{rows} })
	{
		my $ratio = sub { my ($value) = @_; return sprintf '%.3f', $value };
		$text .= row($row->{name}, figure($row->{value}), spread(@$row{qw(low high)}, \&figure),
			$ratios ? ($ratio->($row->{ratio}), spread(@$row{qw(ratio_low ratio_high)}, $ratio)) : (), verdict($row));
	}
	return "$text\n";
}

# A cell's own | would begin another one.
sub row { my (@cells) = @_; return '| ' . join(' | ', map { s/\|/\\|/gr } @cells) . " |\n" }

my @tables = map { decode_json($_) } lines($figures);
my $text = join '', map { chomp; my ($name, $value) = split ' ', $_, 2; "- $name: $value\n" } lines($where);
utf8::decode($text);
spill("$output.md", "$text\n" . join '', map { table($_) } @tables);

my @panels;
for my $kind (qw(export rivals parallel))
{
	my @plotted = grep { ($_->{plot} // '') eq $kind } @tables or next;
	push @panels, { %{ $panel{$kind} }, tables => \@plotted };
}
spill("$output.svg", plot('Exports with kusto_ingest', \@panels)) if @panels;
