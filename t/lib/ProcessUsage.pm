# ProcessUsage: what a process costs while it has nothing to do.
#
#   my ($scans, $usage) = (scans($pg), usage($pid));
#   ...
#   is_deeply(difference($scans, scans($pg), 'idx'), {...});
package ProcessUsage;

use strict;
use warnings;

use Exporter 'import';
use POSIX ();
use PostgreSQL::Test::Utils;

our @EXPORT_OK = qw(scans difference usage);

# Of the extension's tables and indexes: how often read, and how many entries were found.
sub scans
{
	my ($pg) = @_;
	my %scans;
	for my $line (split /\n/, $pg->sql(<<~'SQL'))
		SELECT relname, 'seq', seq_scan FROM pg_stat_all_tables WHERE schemaname = 'kusto'
		UNION ALL SELECT indexrelname, 'idx', idx_scan FROM pg_stat_all_indexes WHERE schemaname = 'kusto'
		UNION ALL SELECT indexrelname, 'found', idx_tup_read FROM pg_stat_all_indexes WHERE schemaname = 'kusto'
		SQL
	{
		my ($relation, $what, $count) = split /\|/, $line;
		$scans{$what}{$relation} = $count || 0;
	}
	return \%scans;
}

sub difference
{
	my ($before, $after, $what) = @_;
	my %more = map { $_ => $after->{$what}{$_} - ($before->{$what}{$_} // 0) } keys %{ $after->{$what} };
	delete $more{$_} for grep { $more{$_} == 0 } keys %more;
	return \%more;
}

# CPU time in milliseconds and context switches of a process.
sub usage
{
	my ($pid) = @_;
	my ($after_name) = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/stat") =~ /\) (.*)/s;
	my @fields = split ' ', $after_name;
	my %status = PostgreSQL::Test::Utils::slurp_file("/proc/$pid/status") =~ /^(\w+):\s+(\d+)/mg;
	return {
		cpu => ($fields[11] + $fields[12]) * 1000 / POSIX::sysconf(POSIX::_SC_CLK_TCK()),
		switches => $status{voluntary_ctxt_switches} + $status{nonvoluntary_ctxt_switches},
	};
}

1;
