# BenchProcess: what /proc tells of the server's processes.
package BenchProcess;

use strict;
use warnings;

use Carp;
use Exporter qw(import);
use POSIX qw(sysconf _SC_CLK_TCK);

our @EXPORT_OK = qw(cpu_seconds postmaster_of memory reset_peak);

my $ticks = sysconf(_SC_CLK_TCK);

# proc(5): the fields after the command's name, the first of which is the third of the file.
sub _stat
{
	my ($pid) = @_;
	open my $file, '<', "/proc/$pid/stat" or return;
	my $line = readline $file // return;
	$line =~ s/^.*\) //s;
	return split ' ', $line;
}

sub postmaster_of
{
	my ($session) = @_;
	return (_stat($session->sql('SELECT pg_backend_pid()')))[1];
}

# Of the postmaster and its children, all their threads, and the programs that they ran (COPY TO PROGRAM).
# Who has ended is counted by its parent, which waited for it.
sub cpu_seconds
{
	my ($postmaster) = @_;
	my $sum = 0;
	for my $pid (map { m{(\d+)$} } glob '/proc/[0-9]*')
	{
		my @stat = _stat($pid) or next;
		next unless $pid == $postmaster || $stat[1] == $postmaster;
		$sum += $_ for @stat[11 .. 14];
	}
	return $sum / $ticks;
}

# Megabytes of a process: its peak as the kernel kept it, and what it has now. Pages of shared
# memory, which are everybody's, are told apart for the latter.
sub memory
{
	my ($pid) = @_;
	open my $file, '<', "/proc/$pid/status" or croak "/proc/$pid/status: $!";
	my %kilobytes = map { /^(\w+):\s+(\d+) kB/ ? ($1 => $2) : () } readline $file;
	return {
		peak => $kilobytes{VmHWM} / 1024,
		now => $kilobytes{VmRSS} / 1024,
		shared => $kilobytes{RssShmem} / 1024 };
}

# proc(5), clear_refs: the peak is what is there now.
sub reset_peak
{
	my ($pid) = @_;
	open my $file, '>', "/proc/$pid/clear_refs" or croak "/proc/$pid/clear_refs: $!";
	print $file '5';
	close $file or croak "/proc/$pid/clear_refs: $!";
	return;
}

1;
