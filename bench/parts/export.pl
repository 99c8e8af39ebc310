# One session exports a table to storage that keeps nothing, against COPY to /dev/null, which neither
# compresses nor sends.
use strict;
use warnings;

use BenchExport qw(export_of has_threads install measure session sink zlib_session);
use BenchKusto;
use BenchServer qw(parameter);
use BenchStats qw(exit_status interleave median number show_table);
use BenchTables qw(describe make_table rows_of);

my $runs = parameter('BENCH_RUNS', 5);
my @tables = split ' ', $ENV{BENCH_TABLES} // 'lineitem events narrow wide';
my %target = map { $_ => 1 } qw(lineitem events);
my $server = install(BenchKusto->new);
sink('discard');

# Each in a session of its own, as different users would have it.
my @subjects = ({
	name => 'COPY TO /dev/null CSV',
	session => session(),
	statement => sub { my ($table) = @_; return "COPY $table TO '/dev/null' (FORMAT csv)" } });
my $threads = has_threads($subjects[0]{session});
print "  this kusto_ingest has no compression_threads: measured as it is\n" unless $threads;
for my $n ($threads ? (1, 0) : (1))
{
	push @subjects, {
		name => 'kusto_ingest' . ($n ? '' : ', compression_threads = 0'),
		session => session($threads ? ('kusto_ingest.compression_threads' => $n) : ()),
		wall => $n ? [ '<=', 0.5 ] : undef,
		cpu => $n ? [ '<=', 0.9 ] : undef };
}
# zlib is slower than one backend writes CSV, so both processors are needed.
if (my $session = zlib_session('kusto_ingest.compression_threads' => 2))
{
	push @subjects, { name => 'kusto_ingest, zlib only, compression_threads = 2', session => $session, wall => [ '<=', 1.3 ] };
}

# Once without a look at the clock: files are read, libraries loaded, the token and the resources there.
sub prepare
{
	my ($table) = @_;
	make_table($server, $table);
	run($_, $table) for @subjects;
	return;
}

sub run
{
	my ($subject, $table) = @_;
	return measure($subject->{session}, $subject->{statement}->($table)) if $subject->{statement};
	return measure($subject->{session}, export_of("SELECT * FROM $table", 'Discarded'), rows => rows_of($table));
}

sub show
{
	my ($table, $measured) = @_;
	my %all = %$measured;
	my $said = $all{ $subjects[1]{name} }[0]{outcome};
	printf "%s (%s): %s rows; %.0f MB of CSV, %.0f MB compressed\n", $table, describe($table), number(rows_of($table)),
	  $said->{raw_bytes} / 1e6, $said->{compressed_bytes} / 1e6;
	my $rows = sub {
		my ($what, $target) = @_;
		return [ map { {
			name => $_->{name},
			runs => [ map { $_->{$what} } @{ $all{ $_->{name} } } ],
			target => $target{$table} ? $_->{$target} : undef,
			note => $what eq 'seconds' ? rate($all{ $_->{name} }) : undef } } @subjects ];
	};
	show_table('seconds', $rows->('seconds', 'wall'), about => "$table, one session", plot => 'export');
	show_table('CPU seconds', $rows->('cpu', 'cpu'), about => "$table, processor time of the server");
	return;
}

sub rate
{
	my ($measured) = @_;
	my $outcome = $measured->[0]{outcome} or return undef;
	return sprintf '%.0f MB of CSV a second', $outcome->{raw_bytes} / 1e6 / median(map { $_->{seconds} } @$measured);
}

for my $table (@tables)
{
	my %measured;
	prepare($table);
	interleave($runs, \@subjects, sub {
		my ($subject) = @_;
		push @{ $measured{ $subject->{name} } }, run($subject, $table);
	});
	show($table, \%measured);
}
exit exit_status();
