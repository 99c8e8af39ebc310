# How well exports are compressed, against zlib at level 1 on the very same CSV. Blobs go to a storage account
# that keeps them; they are put together, uncompressed, and compressed again with zlib.
use strict;
use warnings;

use BenchExport qw(export_of has_threads install measure session sink);
use BenchKusto;
use BenchServer qw(parameter wait_until);
use BenchStats qw(exit_status number show_values);
use BenchTables qw(make_table rows_of);
use Compress::Raw::Zlib qw(:DEFAULT crc32);
use MIME::Base64 qw(decode_base64);

my $server = install(BenchKusto->new);
sink('keep');
my $session = session();

# The bodies that storage has kept since the last call, blocks in order, blob by blob; their files are gone
# when the next is asked for.
my $read = 0;

sub kept
{
	my ($expected) = @_;
	my (%blobs, $lines);
	# The line is written after the answer.
	wait_until(sub {
		open my $log, '<', $ENV{SINK_KEPT} or die "$ENV{SINK_KEPT}: $!";
		$lines = [ readline $log ];
		return grep({ $_ !~ / block / } @$lines[$read .. $#$lines]) >= $expected;
	}, 'the storage has logged all blobs');
	for my $line (@$lines[$read .. $#$lines])
	{
		my ($file, $method, $path, $comp, $id) = split ' ', $line;
		# A list of blocks; that it names them all, in this order, is what other tests are for.
		if ($comp eq 'blocklist') { unlink $file; next }
		$id =~ s/%([0-9A-F]{2})/chr hex $1/ge;
		push @{ $blobs{$path} }, { file => $file, id => $comp eq 'block' ? decode_base64($id) : 0 };
	}
	$read = @$lines;
	return map { [ map { $_->{file} } sort { $a->{id} cmp $b->{id} } @{ $blobs{$_} } ] } sort keys %blobs;
}

# Compressed and raw bytes, and what zlib would have made of each blob.
sub compare
{
	my ($files) = @_;
	my ($inflate) = Compress::Raw::Zlib::Inflate->new(-WindowBits => WANT_GZIP, -Bufsize => 1024**2, -ConsumeInput => 1, -LimitOutput => 1);
	my ($deflate) = Compress::Raw::Zlib::Deflate->new(-WindowBits => WANT_GZIP, -Level => 1, -Bufsize => 1024**2, -AppendOutput => 0);
	my %bytes = (ours => 0, raw => 0, zlib => 0);
	my $status = Z_OK;
	for my $name (@$files)
	{
		open my $file, '<:raw', $name or die "$name: $!";
		while (read $file, my $input, 1024**2)
		{
			die "$name: data after the end of the gzip member\n" if $status == Z_STREAM_END;
			$bytes{ours} += length $input;
			do
			{
				$status = $inflate->inflate($input, my $csv);
				die "$name: $status\n" unless $status == Z_OK || $status == Z_STREAM_END || $status == Z_BUF_ERROR;
				$bytes{raw} += length $csv;
				$deflate->deflate($csv, my $output) == Z_OK or die 'zlib does not compress';
				$bytes{zlib} += length $output;
			} while (length $input && $status != Z_STREAM_END);
			die "$name: data after the end of the gzip member\n" if length $input;
		}
		unlink $name;
	}
	die "$files->[-1]: the gzip member has no end\n" unless $status == Z_STREAM_END;
	$deflate->flush(my $rest) == Z_OK or die 'zlib does not end';
	$bytes{zlib} += length $rest;
	return \%bytes;
}

sub measure_table
{
	my ($table) = @_;
	my $outcome = measure($session, export_of("SELECT * FROM $table", 'Discarded'), rows => rows_of($table))->{outcome};
	my %sum;
	for my $blob (kept($outcome->{blobs}))
	{
		my $bytes = compare($blob);
		$sum{$_} += $bytes->{$_} for keys %$bytes;
	}
	die "storage has $sum{ours} bytes of $sum{raw}, the operation says $outcome->{compressed_bytes} of $outcome->{raw_bytes}\n"
	  unless $sum{ours} == $outcome->{compressed_bytes} && $sum{raw} == $outcome->{raw_bytes};
	return \%sum;
}

my @rows;
for my $table (qw(lineitem events narrow wide))
{
	make_table($server, $table);
	my $bytes = measure_table($table);
	push @rows, {
		name => $table,
		runs => [ $bytes->{ours} / $bytes->{zlib} ],
		target => [ '<=', 1.03 ],
		note => sprintf('%.1f MB of %.1f MB of CSV, zlib %.1f MB', map { $_ / 1e6 } @$bytes{qw(ours raw zlib)}) };
}
print "compressed size, as a part of what zlib at level 1 makes of the same CSV\n";
show_values('of zlib', \@rows, about => 'compressed size against zlib, level 1');
exit exit_status();
