# A backlog of row changes that waited while nothing could be sent: how fast it goes once it can.
use strict;
use warnings;

use BenchKusto;
use BenchServer qw(parameter wait_until);
use BenchStats qw(exit_status median met number);
use BenchSubjects qw(install table);
use Time::HiRes qw(time);

my $backlog = parameter('BENCH_BACKLOG', 1_000_000);
my $runs = parameter('BENCH_RUNS', 5);
$runs = 3 if $runs > 3;
my $clients = 4;
my $server = BenchServer->new;
my $kusto = BenchKusto->new;
my $table = table('capture');

install($server, rows => $backlog, only => ['capture']);
# How fast the backlog comes about is not what is measured here.
$server->set(fsync => 'off', synchronous_commit => 'off');

my @ways = (
	{
		name => 'transactions of one row, a chunk each',
		make => sub {
			$server->pgbench(<<~SQL, clients => $clients, transactions => int($backlog / $clients));
				\\set id random(1, 9000000000000000)
				INSERT INTO $table VALUES (:id, now(), '6f0c1a5e-3b77-4a58-9a52-0d7d2b6a4c11', 21.5, 'measurement number 42');
				SQL
		} },
	{
		name => 'one INSERT ... SELECT, full chunks',
		make => sub { $server->sql("INSERT INTO $table SELECT * FROM source") } });

# What is in the ring, sent or not: chunks, rows and bytes of CSV.
sub in_ring
{
	return split /\|/, $server->sql(<<~'SQL');
		SELECT count(*), coalesce(sum(rows), 0), coalesce(sum(length(data)), 0)
		FROM (SELECT * FROM kusto.outbox_0 UNION ALL SELECT * FROM kusto.outbox_1 UNION ALL SELECT * FROM kusto.outbox_2) o
		WHERE capture > 0
		SQL
}

# A table that is small is left alone. Reading the tables would keep them from being truncated.
sub await_truncation
{
	wait_until(sub { $server->sql(<<~'SQL') < 1024**2 }, 'the outbox is truncated', 300);
		SELECT sum(pg_relation_size(c)) FROM unnest('{kusto.outbox_0,kusto.outbox_1,kusto.outbox_2}'::regclass[]) c
		SQL
	return;
}

sub measure
{
	my ($way) = @_;
	$server->sql("TRUNCATE $table");
	$server->sql("SELECT kusto_flush('5 min')");
	await_truncation();
	my $before = $kusto->count('Changes');
	my @sent = in_ring();

	$server->hold_worker;
	$way->{make}->();
	my @all = in_ring();
	my ($chunks, $rows, $bytes) = map { $all[$_] - $sent[$_] } 0 .. 2;
	$server->sql('CHECKPOINT');
	my $began = time;
	$server->release_worker;
	die 'the backlog was not sent in time' unless $server->sql("SELECT kusto_flush('10 min')") eq 't';
	my $took = time - $began;
	push @{ $way->{seconds} }, $took;
	push @{ $way->{rates} }, $rows / $took;
	await_truncation();
	push @{ $way->{empty} }, time - $began;
	wait_until(sub { $kusto->count('Changes') >= $before + $rows }, "Kusto has $rows rows more", 600);
	push @{ $way->{visible} }, time - $began;
	my $more = $kusto->count('Changes') - $before;
	die "Kusto has $more rows more instead of $rows" unless $more == $rows;
	@$way{qw(chunks rows bytes)} = ($chunks, $rows, $bytes);
	$kusto->call('POST', '/command', { db => 'bench', csl => '.clear table Changes data' });
	return;
}

for my $round (1 .. $runs)
{
	measure($_) for @ways;
}
$kusto->assert_no_violations;

print "from the worker's release until kusto_flush() says that all is staged or streamed, $runs runs each\n";
for my $way (@ways)
{
	my @rates = sort { $a <=> $b } @{ $way->{rates} };
	my $rate = median(@rates);
	printf "  %s: %s changes in %s chunks, %.0f MB\n", $way->{name}, number($way->{rows}), number($way->{chunks}), $way->{bytes} / 1024**2;
	printf "    %s rows a second (%s .. %s)   >= 100,000 %s\n", number($rate), number($rates[0]), number($rates[-1]),
	  met($rate, [ '>=', 100_000 ]);
	printf "    sent after %.1f s, the outbox truncated after %.1f s, all rows in the local service after %.1f s\n",
	  map { median(@{ $way->{$_} }) } qw(seconds empty visible);
}
print "\n";
exit exit_status();
