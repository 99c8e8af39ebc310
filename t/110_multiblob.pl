# Blobs: where they are split, what they are called, what is said of their size, in which order the
# rows come, and what becomes of an export of which a part fails.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(literal);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => "kusto_ingest.max_blob_size = '1MB'\n");
my $db = KustoCluster::DATABASE;

sub service
{
	my (%config) = @_;
	$kusto->reset;
	$kusto->config(%config) if %config;
	return;
}

# Writes to storage: [ blobs put whole, blocks, block lists ].
sub puts
{
	my @puts = grep { $_->{method} eq 'PUT' && $_->{status} eq '201' } $kusto->log(service => 'blob');
	my @blocks = grep { $_->{path} =~ /[?&]comp=block(?:&|$)/ } @puts;
	my @lists = grep { $_->{path} =~ /[?&]comp=blocklist(?:&|$)/ } @puts;
	return [ @puts - @blocks - @lists, scalar @blocks, scalar @lists ];
}

sub sum
{
	my ($key, @list) = @_;
	my $sum = 0;
	$sum += $_->{$key} for @list;
	return $sum;
}

# ---- many small rows ----

service();
my $rows = 60_000;
my $query = "SELECT i, md5(i::text) AS a, repeat('é\"', i % 20) AS b FROM generate_series(1, $rows) i";
my $id = $pg->ingest($query, 'T', create_table => 'true');
my $operation = $pg->succeeds($id, 'an export in several blobs');
my $blobs = $pg->blobs($id);
cmp_ok(scalar @$blobs, '>=', 3, 'it is several') or diag explain $blobs;
is($operation->{blobs}, scalar @$blobs, 'the operation counts them');
is_deeply([ map { $_->{ordinal} } @$blobs ], [ 1 .. @$blobs ], 'they are numbered');
is(sum('rows', @$blobs), $rows, 'their rows are all');
is($operation->{$_}, sum($_, @$blobs), "the operation's $_ is their sum") for qw(rows raw_bytes compressed_bytes);
is(scalar(grep { $_->{raw_bytes} > 1024**2 } @$blobs), 0, 'none is larger than max_blob_size');
is(scalar(grep { $_->{raw_bytes} < 700_000 } @$blobs[0 .. $#$blobs - 1]), 0, 'none but the last is much smaller');
is($kusto->count($db, 'T'), $rows, 'every row is in Kusto, hence none was split');
is($pg->sql(q(SELECT r->>'n', r->>'s' FROM kusto_query('T | summarize n = dcount(i), s = sum(i)', 'db') r)) =~ /\|(\d+)/ ? $1 : '',
	$rows * ($rows + 1) / 2, 'and it is the right ones');
for my $blob (@$blobs)
{
	like($blob->{url}, qr{^http://127\.0\.0\.1:\d+/[^/?]+/[^/?]+/[A-Za-z0-9._-]+\.csv\.gz$}, "blob $blob->{ordinal} has a proper name");
	is($blob->{state}, 'succeeded', "blob $blob->{ordinal} succeeded");
}
my %seen = map { $_->{source_id} => 1 } @$blobs;
is(scalar keys %seen, scalar @$blobs, 'source ids are different');
my $space = $id =~ tr/-//dr;
for my $blob (@$blobs)
{
	# Version 5 of RFC 9562: SHA-1 of name space and name.
	my ($hex) = $blob->{source_id} =~ tr/-//dr;
	is(substr($hex, 12, 1), '5', "source id of blob $blob->{ordinal} is of version 5");
}

# The size that the service is told is exact: kusto-local checks it against every blob, which
# assert_no_violations sees. What it was told is also what is in our table.
my %told = map { lc $_->{Id} => $_ } @{ $kusto->messages };
for my $blob (@$blobs)
{
	my $message = $told{ $blob->{source_id} };
	ok($message, "blob $blob->{ordinal} was announced") or next;
	is($message->{RawDataSize}, $blob->{raw_bytes}, "blob $blob->{ordinal}: RawDataSize is the raw size");
	like($message->{BlobPath}, qr/^\Q$blob->{url}\E/, "blob $blob->{ordinal}: BlobPath is its URL");
}

# ---- one request, or blocks ----

service();
$pg->succeeds($pg->ingest('SELECT i FROM generate_series(1, 100) i', 'Small', create_table => 'true'), 'a small result');
is_deeply(puts(), [ 1, 0, 0 ], 'a small result is one Put Blob') or diag explain [ $kusto->log(service => 'blob') ];

service();
$pg->sql(<<~'SQL');
	CREATE TABLE wide AS
	SELECT i, encode(sha512(i::text::bytea), 'hex') || encode(sha512((-i)::text::bytea), 'hex') AS s
	FROM generate_series(1, 90000) i
	SQL
$id = $pg->sql(q(SET kusto_ingest.max_blob_size = '512MB'; SELECT ) . $pg->ingest_call('SELECT * FROM wide', 'Blocks', create_table => 'true'));
$pg->succeeds($id, 'a result of several blocks');
my ($whole, $blocks, $lists) = @{ puts() };
is($whole, 0, 'several blocks: no Put Blob');
cmp_ok($blocks, '>=', 3, 'several blocks: they are several');
is($lists, 1, 'several blocks: one Put Block List');
is(scalar @{ $pg->blobs($id) }, 1, 'several blocks: one blob');
is($kusto->count($db, 'Blocks'), 90_000, 'several blocks: every row');
my ($bytes) = $pg->blobs($id)->[0]{compressed_bytes};
cmp_ok($bytes / $blocks, '>', 3 * 1024**2, 'several blocks: of 4 to 8 MiB each');
cmp_ok($bytes / $blocks, '<=', 8 * 1024**2, 'several blocks: and no more');

# ---- wide rows ----

service();
$id = $pg->ingest(q(SELECT i, repeat(chr(96 + i), 900000) AS a, repeat('"', 300000) AS b FROM generate_series(1, 6) i), 'Wide', create_table => 'true');
$pg->succeeds($id, 'rows that are larger than a blob should be');
$blobs = $pg->blobs($id);
is(scalar @$blobs, 6, 'they get a blob each');
is(scalar(grep { $_->{rows} != 1 } @$blobs), 0, 'of one row');
is($kusto->count($db, 'Wide'), 6, 'they are all there');
like($pg->sql(q(SELECT kusto_query('Wide | summarize a = min(strlen(a)), b = max(strlen(b))', 'db'))),
	qr/"a": 900000, "b": 300000/, 'and whole');

service();
my $columns = join ', ', map { "i + $_ AS c$_" } 1 .. 1600;
$pg->succeeds($pg->ingest("SELECT $columns FROM generate_series(1, 3) i", 'Many', create_table => 'true'), 'sixteen hundred columns');
is($kusto->rows($db, 'Many')->[0][1599] % 1600 < 4, 1, 'sixteen hundred columns: the last is right');

# ---- order ----

service();
$pg->sql('CREATE TABLE gone AS SELECT i, md5(i::text) AS s FROM generate_series(1, 5000) i ORDER BY md5(i::text)');
my $expected = $pg->sql(q(SELECT string_agg(i::text, ',' ORDER BY ctid) FROM gone));
$pg->succeeds($pg->ingest('DELETE FROM gone RETURNING i, s', 'Gone', create_table => 'true'), 'DELETE ... RETURNING');
is(join(',', map { $_->[0] } @{ $kusto->rows($db, 'Gone') }), $expected, 'rows of RETURNING come in their order');
$pg->succeeds($pg->ingest('SELECT i FROM generate_series(1, 60000) i ORDER BY i DESC', 'Sorted', create_table => 'true'), 'ORDER BY');
my @sorted = map { $_->[0] } @{ $kusto->rows($db, 'Sorted') };
is_deeply(\@sorted, [ reverse 1 .. 60_000 ], 'rows of ORDER BY come in their order');

# ---- a part fails ----

sub with_outcomes
{
	my ($outcomes, $state, $name) = @_;
	service(outcomes => $outcomes);
	$kusto->create_table($db, 'Part', 'i:int, a:string, b:string');
	my $part = $pg->ingest($query, 'Part');
	my $result = $pg->ends_as($part, $state, $name);
	return ($result, $pg->blobs($part));
}

my $failure = { status => 'Failed', errorCode => 'Stream_InputStreamTooLarge', failureStatus => 'Permanent', details => 'the input is too large for this test' };
($operation, $blobs) = with_outcomes([ { times => 1 }, { %$failure, times => 1 } ], 'partially_succeeded', 'one blob of several fails');
my %states;
$states{ $_->{state} }++ for @$blobs;
is($states{failed}, 1, 'one blob has failed');
is($states{succeeded}, @$blobs - 1, 'the others succeeded');
my ($failed) = grep { $_->{state} eq 'failed' } @$blobs;
is($failed->{error_code}, 'Stream_InputStreamTooLarge', 'the blob has the code');
is($failed->{failure_status}, 'Permanent', 'the blob has the kind of failure');
like($failed->{details}, qr/too large for this test/, 'the blob has the details');
is($operation->{error_code}, 'Stream_InputStreamTooLarge', 'the operation has the code');
like($operation->{error_message}, qr/blob $failed->{ordinal} of \d/, 'the operation says which');
ok($operation->{hint}, 'the operation has a hint');
is($kusto->count($db, 'Part'), $rows - $failed->{rows}, 'the rows of the others are there');

($operation, $blobs) = with_outcomes([ { %$failure, times => -1 } ], 'failed', 'all blobs fail');
is(scalar(grep { $_->{state} eq 'failed' } @$blobs), scalar @$blobs, 'all blobs have failed');
is($kusto->count($db, 'Part'), 0, 'no row is there');

service(outcomes => [ { %$failure, times => 1 } ]);
$kusto->create_table($db, 'Part', 'i:int, a:string, b:string');
$pg->fails_like('CALL kusto_ingest_and_wait(' . literal($query) . ", 'db', 'Part')",
	{ sqlstate => 'KU002', message => qr/Stream_InputStreamTooLarge/, detail => qr/too large for this test.*partially_succeeded/s }, 'CALL kusto_ingest_and_wait: an error when a part failed');

$kusto->settle;
$kusto->assert_no_violations;
done_testing();
