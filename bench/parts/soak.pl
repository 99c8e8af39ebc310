# Minutes of load beside a transaction that keeps its snapshot all the time: what the tables of the
# extension grow to.
#
# The bound: a ring table is truncated when all in it is sent and nobody has it open, which in a
# steady stream is seldom so for the one that is written to; below a megabyte it is left alone. So
# each of the three may hold a megabyte and a turn of 8192 chunks, and what waits to be sent comes on
# top. A chunk's size, with its index entry, is measured before.
use strict;
use warnings;

use BenchKusto;
use BenchServer qw(parameter wait_until);
use BenchStats qw(exit_status met number percentile);
use BenchSubjects qw(install table);
use Time::HiRes qw(time);

use constant { TURN => 8192, TABLES => 3, LEFT_ALONE => 1024**2 };

my $seconds = parameter('BENCH_SOAK_S', 600);
my $rate = parameter('BENCH_SOAK_RATE', 1000);
my $server = BenchServer->new;
my $reader = BenchServer->new;
my $kusto = BenchKusto->new;
my $table = table('capture');

my $outbox_size = "(SELECT sum(pg_total_relation_size(c)) FROM unnest('{kusto.outbox_0,kusto.outbox_1,kusto.outbox_2}'::regclass[]) c)";
my $other_size = "(SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = 'kusto'::regnamespace"
  . " AND relkind = 'r' AND relname NOT LIKE 'outbox%')";
my $script = <<~SQL;
	\\set id random(1, 9000000000000000)
	INSERT INTO $table VALUES (:id, now(), '6f0c1a5e-3b77-4a58-9a52-0d7d2b6a4c11', 21.5, 'measurement number 42');
	SQL

sub row { my ($sql) = @_; return split /\|/, $server->sql("SELECT $sql") }

# Bytes of a chunk of one row in the ring, with all that comes with it.
sub chunk_size
{
	$server->hold_worker;
	my ($before) = row($outbox_size);
	$server->pgbench($script, clients => 4, transactions => TURN);
	my ($after) = row($outbox_size);
	$server->release_worker;
	return ($after - $before) / (4 * TURN);
}

# All is sent, and the ring is as small as it gets: below 1 MB a table is left alone.
sub settle
{
	$server->sql("SELECT kusto_flush('5 min')");
	wait_until(sub { (row($outbox_size))[0] < TABLES * LEFT_ALONE }, 'the outbox is truncated');
	return;
}

install($server, rows => 1, only => ['capture']);
# As in production; its statements are not what is measured here.
$server->set(autovacuum => 'on');
$server->sql("INSERT INTO $table SELECT * FROM source");
settle();
my $chunk = chunk_size();
settle();

$reader->sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM $table");
my $xmin = $reader->sql("SELECT backend_xmin FROM pg_stat_activity WHERE pid = pg_backend_pid()");

printf "pgbench with %s transactions of one row a second for %d s, xmin %s held by a REPEATABLE READ reader\n",
  number($rate), $seconds, $xmin;
printf "  a chunk takes %.0f bytes in the ring with its index entry\n", $chunk;
printf "  %6s %12s %12s %14s %14s\n", 'second', 'changes', 'waiting', 'outbox, kB', 'other, kB';

my $load = fork // die "fork: $!";
if ($load == 0)
{
	# Our psqls are the parent's.
	$server->forget;
	$reader->forget;
	my $done = eval { BenchServer->pgbench($script, rate => $rate, seconds => $seconds); 1 };
	print STDERR $@ unless $done;
	require POSIX;
	POSIX::_exit($done ? 0 : 1);
}

my ($began, $shown) = (time, 0);
my (@waiting, @outbox, @other);
until (waitpid($load, 1) == $load)
{
	my ($waits, $outbox, $other, $changes) = row(<<~SQL);
		(SELECT coalesce(sum(lag_rows), 0) FROM kusto.captures), $outbox_size, $other_size,
		(SELECT last_value FROM kusto.change_number)
		SQL
	push @waiting, $waits;
	push @outbox, $outbox;
	push @other, $other;
	my $now = time - $began;
	if ($now >= $shown)
	{
		printf "  %6.0f %12s %12s %14.0f %14.0f\n", $now, number($changes), number($waits), $outbox / 1024, $other / 1024;
		$shown += $seconds / 10;
	}
	select undef, undef, undef, 1;
}
die 'the load has failed' if $?;
die 'the reader has lost its snapshot' unless $reader->sql("SELECT backend_xmin FROM pg_stat_activity WHERE pid = pg_backend_pid()") eq $xmin;
settle();
my $changes = $server->sql("SELECT count(*) FROM $table");
wait_until(sub { $kusto->count('Changes') >= $changes }, "Kusto has the $changes rows", 300);
$kusto->assert_no_violations;

my $backlog = percentile(100, @waiting);
my $bound = TABLES * (LEFT_ALONE + TURN * $chunk) + $backlog * $chunk;
my $largest = percentile(100, @outbox);
printf "  largest outbox %.0f kB; bound: 3 x (1024 kB + 8192 chunks) + %s chunks of backlog = %.0f kB   %s\n",
  $largest / 1024, number($backlog), $bound / 1024, met($largest, [ '<=', $bound ]);
printf "  without truncation it would have been %.0f kB\n", $chunk * $changes / 1024;
printf "  all other tables of the extension: %.0f kB at the start, %.0f kB at most\n\n", $other[0] / 1024, percentile(100, @other) / 1024;
exit exit_status();
