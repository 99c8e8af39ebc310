# The window of an upload, with storage that answers when this test says so: four blocks are under way while
# the query goes on, a fifth begins when one of them has been answered, and rows are formatted until the buffers
# are full, and no further. Answers may come in any order, and a cancel needs none of them.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(elapsed process_status wait_until);
use KustoLocal;
use List::Util qw(min);
use MIME::Base64 qw(decode_base64);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = KustoCluster::DATABASE;
my $mib = 1024 * 1024;
# src/core/ingest.c: blocks of 4 MiB, four under way and one that is being filled; raw chunks of 256 KiB that
# wait, one for each thread more, and a row that is longer than what was left of its chunk.
my ($window, $block, $chunk, $spare) = (4, 4 * $mib, $mib / 4, 32);

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => 'jit = off');

# Rows that say how far the query is, to others as well: a sequence knows no transactions. The text is of 704 bytes,
# and gzip makes it a quarter smaller.
$pg->sql('CREATE SEQUENCE formatted');
my $text = join ' || ', map { "encode(sha512((i * 8 + $_)::text::bytea), 'base64')" } 1 .. 8;

sub call
{
	my ($rows) = @_;
	$pg->sql('ALTER SEQUENCE formatted RESTART');
	return 'SELECT ' . $pg->ingest_call("SELECT nextval('formatted') AS i, $text AS s FROM generate_series(1, $rows) i", 'Wide');
}

sub formatted { return $pg->sql('SELECT last_value FROM formatted') }

# What storage was asked to do so far, in order: { seq, status, index } for each block.
sub put_blocks
{
	my @blocks = grep { $_->{path} =~ /[?&]comp=block(?:&|$)/ } $kusto->log(method => 'PUT');
	for my $put (@blocks)
	{
		my ($id) = $put->{path} =~ /[?&]blockid=([^&]+)/;
		$put->{index} = 0 + (decode_base64($id =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ger) =~ /(\d+)$/)[0];
		($put->{blob}) = $put->{path} =~ /\.(\d{6})\.csv\.gz\?/;
	}
	return @blocks;
}

sub held { return grep { ($_->{status} // '') eq 'held' } put_blocks() }
sub block_lists { return scalar $kusto->log(path => qr/[?&]comp=blocklist(?:&|$)/) }

# Answers these requests, in this order.
sub release { return $kusto->release(@_) }

sub hold_blocks
{
	my ($service) = @_;
	$kusto->fault({ service => $service, query => '(^|&)comp=block(&|$)' }, { hold => JSON::PP::true }, times => -1);
	return;
}

# Waits until so many blocks are held and the export has come to rest, which is when everything that we see has
# not changed for a while; the rows so far. On a busy machine it might only seem so: then less is
# tested, and nothing fails.
sub at_rest
{
	my ($count, $name) = @_;
	wait_until(sub { held() >= $count }, "$name: until $count blocks are held");
	my ($before, $same) = ('', 0);
	wait_until(sub {
		my $now = join ' ', map { $_ // '' } (map { @$_{qw(seq status)} } put_blocks()), formatted();
		($before, $same) = $now eq $before ? ($before, $same + 1) : ($now, 0);
		return $same == 10;
	}, "$name: until it has come to rest");
	return formatted();
}

# ---- full, and no fuller ----

# Rows enough for many blocks: the query cannot end while only a few of them are stored.
my $endless = 2_000_000;
my $idle = $pg->session;
my $base = process_status($idle->pid);

# As blocks see it: how much smaller rows become.
$kusto->config(discard => JSON::PP::true);
my $sample = $pg->operation($pg->sql(call(20_000)));
my $row = $sample->{raw_bytes} / $sample->{rows};
my $raw_of_block = $block * $sample->{raw_bytes} / $sample->{compressed_bytes};

sub stays_full
{
	my ($threads, $blob_mb) = @_;
	my $name = "$threads threads, blobs of $blob_mb MB";
	my $session = $pg->session;
	$session->sql("SET kusto_ingest.compression_threads = $threads; SET kusto_ingest.max_blob_size = '${blob_mb}MB'");
	$kusto->reset;
	$kusto->config(discard => JSON::PP::true);
	hold_blocks('discard');

	$session->send(call($endless));
	my $rest = at_rest($window, $name);
	is(scalar(put_blocks()), $window, "$name: $window blocks are under way, and no other");
	cmp_ok($rest, '<', $endless, "$name: while the query goes on");

	# All blocks are full, and every chunk waits. The sample is not quite as the rest; and a small blob has two blocks,
	# of which the second is not full.
	my $capacity = ($window + 1) * $raw_of_block + ($spare + 1 + $threads) * $chunk;
	my $certain = ($window + 1) * min($raw_of_block, $blob_mb / 2 * $mib) + ($spare - 4) * $chunk;
	cmp_ok($rest * $row, '>', 0.95 * $certain, "$name: rows were formatted until the buffers were full");
	cmp_ok($rest * $row, '<', 1.05 * $capacity, "$name: and not beyond");

	# One answer makes room for one block, whichever it was.
	my @order = (1, 3, 0, 2, 2, 0);
	for my $step (0 .. $#order)
	{
		my $seen = put_blocks();
		my $rows = formatted();
		release((held())[ $order[$step] ]);
		at_rest($window, "$name: after an answer");
		is(scalar(put_blocks()), $seen + 1, "$name: answer " . ($step + 1) . ' makes room for one block');
		cmp_ok(formatted(), '>', $rows, "$name: and rows go on") if $step == 0;
	}
	my $seen = put_blocks();
	release(held());
	at_rest($window, "$name: after four answers");
	is(scalar(put_blocks()), $seen + $window, "$name: four answers make room for four");
	my %blobs = map { $_->{blob} => 1 } held();
	cmp_ok(scalar(keys %blobs), '>', 1, "$name: a blob that has ended does not keep the next one waiting") if $blob_mb < 100;

	my $peak = process_status($session->pid);
	cmp_ok($peak->{VmHWM} - $base->{VmHWM}, '<', 64 * 1024, "$name: it peaks below 64 MB above an idle backend");
	note "$name: " . int($rest * $row) . ' raw bytes at rest, room for ' . int($capacity) . ', peak ' . ($peak->{VmHWM} - $base->{VmHWM}) . ' kB above idle';
	is_cancelled($session, $name);
	$session->quit;
	return;
}

# Whatever is still held: no answer is let go of before the statement has ended.
sub is_cancelled
{
	my ($session, $name) = @_;
	my @blocks = put_blocks();
	my $lists = block_lists();
	my ($seconds, $outcome) = elapsed(sub {
		$pg->sql('SELECT pg_cancel_backend(' . $session->pid . ')');
		return $session->receive;
	});
	like($outcome->{err}, qr/ERROR:  57014/, "$name: a cancel ends it");
	# Far below what the extension waits for an answer, or tries again for.
	cmp_ok($seconds, '<', 5, "$name: without an answer");
	wait_until(sub { held() == 0 }, "$name: until storage knows");
	is(scalar(grep { ($_->{status} // '') eq 'aborted by client' } put_blocks()), $window, "$name: what was under way is given up");
	is(scalar(put_blocks()), scalar @blocks, "$name: no other block is begun");
	is(block_lists(), $lists, "$name: no blob is committed");
	is($pg->sql("SELECT count(*) FROM kusto.operations WHERE table_name = 'Wide' AND id <> '$sample->{id}'"), '0', "$name: no operation is recorded");
	is(scalar($kusto->log(service => 'queue', method => 'POST')), 0, "$name: nothing is posted");

	$kusto->clear_faults;
	like($session->sql('BEGIN; ' . call(20_000) . '; ROLLBACK'), qr/^[0-9a-f-]{36}$/, "$name: the session exports again");
	return;
}

stays_full(0, 1024);
stays_full(1, 1024);
stays_full(4, 8);

# ---- answers out of order ----

# Of a blob of seven blocks the first one is answered last, when all others are stored and the query has ended.
$kusto->reset;
$kusto->create_table($db, 'Wide', 'i:long, s:string');
hold_blocks('blob');
my $rows = int(6.5 * $raw_of_block / $row);
my $session = $pg->session;
$session->sql("SET kusto_ingest.max_blob_size = '1GB'");
$session->send(call($rows));
for my $answered (0 .. 2)
{
	wait_until(sub { held() == $window }, "until the window is full after $answered answers");
	my ($last) = sort { $b->{index} <=> $a->{index} } held();
	is($last->{index}, $window - 1 + $answered, 'blocks begin in order');
	release($last);
}
wait_until(sub { formatted() == $rows && held() == $window }, 'until the query has ended');
release(sort { $b->{index} <=> $a->{index} } grep { $_->{index} > 0 } held());
wait_until(sub { (grep { ($_->{status} // '') eq '201' } put_blocks()) == 6 }, 'until all blocks but the first are answered');
is_deeply([ map { $_->{index} } held() ], [0], 'the first block is still under way');
is(block_lists(), 0, 'without it the blob is not committed');
release(held());
my $outcome = $session->receive;
is($outcome->{err}, '', 'with it the export ends');
my $operation = $pg->succeeds($outcome->{out}, 'answers out of order');
is($operation->{rows}, $rows, 'all rows are in it');
is(block_lists(), 1, 'the blob was committed once');
is(scalar(put_blocks()), 7, 'no block was sent twice');
is($kusto->count($db, 'Wide'), $rows, 'all rows have landed');
is($kusto->hash($db, 'Wide')->{hash},
	$pg->sql(<<~"SQL"), 'and they are the right ones: the blocks are in order');
		SELECT sum(('x' || lpad(substr(md5(array_to_string(ARRAY[i::text, $text], chr(31), '\\N')), 1, 15), 16, '0'))::bit(64)::bigint)
		FROM generate_series(1, $rows) i
		SQL
$session->quit;
$idle->quit;

$kusto->assert_no_violations;
done_testing();
