# From a table to a message in the service's queue, the blob in Azurite: kusto_ingest, and what one would put
# together without it. Beside them what only compresses and sends nothing.
use strict;
use warnings;

use BenchExport qw(export_of install literal outcome session sink);
use BenchKusto;
use BenchRival;
use BenchServer qw(parameter);
use BenchStats qw(exit_status interleave median number show_table);
use BenchTables qw(make_table rows_of);
use Time::HiRes qw(time);

my $runs = parameter('BENCH_RUNS', 5);
my $kusto = BenchKusto->new;
my $server = install($kusto);
sink('azurite');
my $session = session();
my $rival = BenchRival->new;

# What \copy writes for a timestamptz and a bool Kusto takes for null, so whoever goes that way writes a query.
my %their_query = (
	lineitem => 'SELECT * FROM lineitem',
	events => "SELECT id, at AT TIME ZONE 'UTC', trace, value, temperature, ok::text, message, payload FROM events");

# What the service does with a message is the same for all, so it is left out: it takes them, and skips them.
sub skip_messages
{
	my ($skip) = @_;
	my @outcomes = $skip ? ({ match => { db => 'bench' }, times => -1, status => 'Skipped' }) : ();
	$kusto->call('POST', '/config', { outcomes => \@outcomes });
	return;
}

# Without exactly_once, which the SDK has not, either. Both ends of the time are the server's clock: before the statement, and when the worker knows that the
# message is in the queue.
sub with_kusto_ingest
{
	my ($query, $table, $rows, $state) = @_;
	my ($began, $operation) = split /\n/, $session->sql(
		'SELECT extract(epoch FROM clock_timestamp()); ' . export_of($query, $table, exactly_once => "'off'"));
	return outcome($operation, $rows, $state)->{posted_at} - $began;
}

sub command
{
	my (@command) = @_;
	my $began = time;
	system(@command) == 0 or die "@command: status $?\n";
	return time - $began;
}

my @subjects = (
	{
		name => 'kusto_ingest',
		run => sub { my ($table) = @_; return with_kusto_ingest("SELECT * FROM $table", $table, rows_of($table), 'skipped') } },
	{
		name => 'psql | gzip -1 > file, SDK queues it',
		target => [ '>=', 4 ],
		run => sub { my ($table) = @_; return ($rival->export('file', $their_query{$table}, $table))[0] } },
	{
		name => 'psql | gzip -1 | SDK queues the stream',
		run => sub { my ($table) = @_; return ($rival->export('stream', $their_query{$table}, $table))[0] } },
	{
		name => 'COPY TO PROGRAM gzip -1, not sent',
		rounds => 2,
		run => sub {
			my ($table) = @_;
			my $began = time;
			$server->sql("COPY $table TO PROGRAM 'gzip -1 > /dev/null' (FORMAT csv)");
			return time - $began;
		} },
	{
		name => 'pg_dump -Z 1, not sent',
		rounds => 2,
		run => sub { my ($table) = @_; return command('pg_dump', '--data-only', '-t', $table, '-Z', 1, '-f', "$ENV{BENCH_WORK}/dump.gz") } });

# All that was sent is done with, and Azurite rid of it.
sub settle { $kusto->call('POST', '/settle'); return }

# That both do the same work: the same rows arrive.
sub compare_rows
{
	my ($table) = @_;
	my $rows = rows_of($table) < 5000 ? rows_of($table) : 5000;
	my $query = "SELECT * FROM $table LIMIT $rows";
	my $their_query = "$their_query{$table} LIMIT $rows";
	skip_messages(0);
	$session->sql('SELECT kusto_ingest(' . literal($query) . ", 'bench', '${table}_ours', create_table => true)");
	with_kusto_ingest($query, "${table}_ours", $rows, 'succeeded');
	my ($schema) = @{ $kusto->call('POST', '/command', { db => 'bench', csl => "${table}_ours | getschema" })->{Tables} };
	settle();
	my $columns = join ', ', map { "$_->[0]:$_->[3]" } @{ $schema->{Rows} };
	$kusto->call('POST', '/command', { db => 'bench', csl => ".create table ${table}_theirs ($columns)" });
	$rival->export('file', $their_query, "${table}_theirs") for 1 .. 2;
	settle();
	my ($ours, $theirs) = map { $kusto->call('GET', "/hash?db=bench&table=${table}_$_") } qw(ours theirs);
	die "$table: $ours->{rows} rows of kusto_ingest and $theirs->{rows} of the SDK differ\n"
	  unless $ours->{rows} == 2 * $rows && "@$ours{qw(rows hash)}" eq "@$theirs{qw(rows hash)}";
	skip_messages(1);
	return;
}

for my $table (qw(lineitem events))
{
	my %seconds;
	make_table($server, $table);
	compare_rows($table);
	interleave($runs, \@subjects, sub {
		my ($subject, $round) = @_;
		return if $round >= ($subject->{rounds} // $runs);
		$seconds{ $subject->{name} }[$round] = $subject->{run}->($table);
		settle();
	});
	printf "%s: %s rows, until the message is in the queue; the ratio is how many times as long as kusto_ingest\n", $table, number(rows_of($table));
	show_table('seconds', [ map { { name => $_->{name}, runs => $seconds{ $_->{name} }, target => $_->{target} } } @subjects ],
		about => "$table, from the table to the queue", plot => 'rivals');
}
unlink "$ENV{BENCH_WORK}/dump.gz";
$rival->close;
$kusto->assert_no_violations;
exit exit_status();
