# BenchPlot: figures as horizontal bars, in SVG that needs nothing else.
package BenchPlot;

use strict;
use warnings;
use utf8;

use Exporter qw(import);

our @EXPORT_OK = qw(plot);

my $width = 860;
my ($left, $right) = (270, 190);
my ($bar, $gap) = (18, 7);
my %colour = (ours => '#1f6fb2', variant => '#8fbbe0', other => '#9a9a9a', text => '#222222', faint => '#666666', whisker => '#333333');

sub _escape
{
	my ($text) = @_;
	my %entity = ('&' => '&amp;', '<' => '&lt;', '>' => '&gt;', '"' => '&quot;');
	$text =~ s/([&<>"])/$entity{$1}/g;
	return $text;
}

sub _text
{
	my ($x, $y, $text, %with) = @_;
	my $anchor = $with{anchor} // 'start';
	my $size = $with{size} // 13;
	my $weight = $with{bold} ? ' font-weight="bold"' : '';
	return sprintf qq(<text x="%.1f" y="%.1f" font-size="%d" text-anchor="%s" fill="%s"%s>%s</text>\n),
	  $x, $y, $size, $anchor, $with{colour} // $colour{text}, $weight, _escape($text);
}

# kusto_ingest as it is by default, kusto_ingest otherwise, anything else.
sub _colour
{
	my ($name) = @_;
	return $colour{ours} if $name eq 'kusto_ingest' || $name eq 'parallel => 2';
	return $name =~ /^(?:kusto_ingest|parallel)/ ? $colour{variant} : $colour{other};
}

# One bar: the median, a line from the smallest to the largest, and both figures in words.
sub _bar
{
	my ($row, $y, $scale, $unit) = @_;
	my ($middle, $from, $to) = ($y + $bar / 2, map { $left + $scale * $row->{$_} } qw(low high));
	my $said = sprintf '%s %s', _digits($row->{value}), $unit;
	$said .= sprintf '  (%.2f ×)', $row->{ratio} if defined $row->{ratio};
	return _text($left - 8, $middle + 4.5, $row->{name}, anchor => 'end')
	  . sprintf(qq(<rect x="%d" y="%.1f" width="%.1f" height="%d" fill="%s"/>\n), $left, $y, $scale * $row->{value}, $bar, _colour($row->{name}))
	  . sprintf(qq(<path d="M%.1f %.1fH%.1f" stroke="%s" stroke-width="1.5"/>\n), $from, $middle, $to, $colour{whisker})
	  . _text(($to > $left + $scale * $row->{value} ? $to : $left + $scale * $row->{value}) + 8, $middle + 4.5, $said);
}

sub _digits { my ($value) = @_; return sprintf $value >= 10 ? '%.1f' : '%.2f', $value }

# A panel: bars of several tables on one scale.
sub _panel
{
	my ($panel, $y) = @_;
	my ($largest) = sort { $b <=> $a } map { $_->{high} } map { @{ $_->{rows} } } @{ $panel->{tables} };
	my $scale = ($width - $left - $right) / $largest;
	my $svg = _text(20, $y + 16, $panel->{title}, size => 15, bold => 1);
	$svg .= _text(20, $y + 35, $panel->{note}, colour => $colour{faint}, size => 12);
	$y += 48;
	for my $table (@{ $panel->{tables} })
	{
		$svg .= _text(20, $y + 13, $table->{about}, bold => 1);
		$y += 21;
		for my $row (@{ $table->{rows} })
		{
			$svg .= _bar($row, $y, $scale, $table->{unit} eq 'seconds' ? 's' : $table->{unit});
			$y += $bar + $gap;
		}
		$y += 10;
	}
	return ($svg, $y + 14);
}

# plot('title', [ { title, note, tables => [ { about, unit, rows => [ { name, value, low, high, ratio } ] } ] } ])
sub plot
{
	my ($title, $panels) = @_;
	my ($body, $y) = ('', 20);
	for my $panel (@$panels)
	{
		(my $svg, $y) = _panel($panel, $y);
		$body .= $svg;
	}
	return <<~SVG;
		<svg xmlns="http://www.w3.org/2000/svg" width="$width" height="$y" viewBox="0 0 $width $y" role="img" font-family="Helvetica, Arial, sans-serif">
		<title>@{[ _escape($title) ]}</title>
		<rect width="$width" height="$y" fill="#ffffff"/>
		$body</svg>
		SVG
}

1;
