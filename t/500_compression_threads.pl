# Compression: whatever the number of threads and the level, the same rows land; threads are there
# while an export needs them, and gone with it, however it ends.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(process_status);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.max_blob_size = '3MB'
	restart_after_crash = on
	CONF
my $db = KustoCluster::DATABASE;

# ---- the parameters ----

like($pg->sql("LOAD 'kusto_ingest'; SHOW kusto_ingest.compression_library"), qr/^(ISA-L|libdeflate and zlib|zlib)$/, 'the library is named');
is($pg->sql("LOAD 'kusto_ingest'; SHOW kusto_ingest.compression_threads"), '1', 'one thread by default');
$pg->fails_like("LOAD 'kusto_ingest'; SET kusto_ingest.compression_library = 'zlib'", { sqlstate => '55P02' }, 'it is for the build to choose');
$pg->fails_like("LOAD 'kusto_ingest'; SET kusto_ingest.compression_threads = $_", { sqlstate => '22023' }, "$_ threads are refused") for -1, 17;

# ---- the rows ----

my $rows = 60_000;
my $query = "SELECT i, md5(i::text) AS a, repeat(chr(97 + i % 26), i % 90) AS b FROM generate_series(1, $rows) i";
my %bytes;
for my $threads (0, 1, 2, 5, 16)
{
	for my $level (1, 6)
	{
		my $table = "T${threads}_$level";
		my $id = $pg->sql("SET kusto_ingest.compression_threads = $threads; SET kusto_ingest.compression_level = $level; SELECT "
			  . $pg->ingest_call($query, $table, create_table => 'true'));
		my $operation = $pg->succeeds($id, "$threads threads, level $level");
		is($kusto->count($db, $table), $rows, 'all rows land');
		is($pg->sql("SELECT r->>'s' FROM kusto_query('$table | summarize s = sum(i)', 'db') r"), $rows * ($rows + 1) / 2,
			'and they are the right ones');
		cmp_ok($operation->{blobs}, '>=', 2, 'in several blobs');
		$bytes{$level}{$threads} = $operation->{compressed_bytes};
	}
}
for my $level (1, 6)
{
	my ($least, $most) = (sort { $a <=> $b } values %{ $bytes{$level} })[ 0, -1 ];
	cmp_ok($most, '<=', $least * 1.01, "level $level: threads do not cost one percent") or diag explain $bytes{$level};
}

# ---- threads come and go ----

# Many chunks, and then it waits until it is cancelled.
my $endless = "SELECT i, md5(i::text) AS a, CASE WHEN i = 50000 THEN pg_sleep(600)::text END AS b FROM generate_series(1, 60000) i";

sub threads_of { return process_status($_[0]->pid)->{Threads} }

for my $threads (0, 1, 4)
{
	my $session = $pg->session;
	$session->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'Small', create_table => 'true'));
	my $base = process_status($session->pid);
	$session->sql("SET kusto_ingest.compression_threads = $threads");
	$session->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'Small'));
	for my $try (1 .. 6)
	{
		$session->send('SELECT ' . $pg->ingest_call($endless, 'Endless', create_table => 'true'));
		$pg->poll("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = " . $session->pid);
		is(threads_of($session), $base->{Threads} + $threads, "$threads threads while it runs") if $try == 1;
		$pg->sql('SELECT pg_cancel_backend(' . $session->pid . ')');
		like($session->receive->{err}, qr/canceling statement due to user request/, 'cancelled');
	}
	my $after = process_status($session->pid);
	is($after->{Threads}, $base->{Threads}, 'its threads are gone');
	# Connections stay for the next export, as many as there are uploads at once; six leaks would be more.
	cmp_ok($after->{fds}, '<=', $base->{fds} + 4, 'nor does it keep descriptors') or diag "$base->{fds}, $after->{fds}";
	$session->quit;
}

# Killed: the server restarts, and nothing was posted.
my $session = $pg->session;
$session->sql('SET kusto_ingest.compression_threads = 4');
$session->send('SELECT ' . $pg->ingest_call($endless, 'Endless', create_table => 'true'));
$pg->poll("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = " . $session->pid);
$pg->crash($session->pid);
is($pg->sql("SELECT count(*) FROM kusto.operations WHERE table_name = 'Endless'"), '0', 'no trace of what was cancelled or killed');
is(scalar(grep { ($_->{body} // '') =~ /Endless/ } $kusto->log(service => 'queue')), 0, 'and nothing was posted');

done_testing();
