# A million rows of mixed types, over several blobs and two storage accounts: the count and a hash
# of the content are the same on both sides.
use strict;
use warnings;

use KustoCluster qw(elapsed);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.max_blob_size = '32MB'
	work_mem = '64MB'
	max_wal_size = '4GB'
	CONF

# Every Kusto type, nulls, text that CSV must quote, and text beyond ASCII.
$pg->sql(<<~'SQL');
	CREATE UNLOGGED TABLE mixed AS
	SELECT i::int AS id,
		(i * 9973::bigint) << 20 AS big,
		i % 3 = 0 AS flag,
		sqrt(i) * CASE WHEN i % 2 = 0 THEN 1e-30 ELSE 1e17 END AS ratio,
		(i * 1234567::numeric / 1000)::numeric(20, 3) AS amount,
		CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN 'say "hi", ' || i
			WHEN 3 THEN E'line one\r\nline two\\' || i ELSE 'żółć 😀 ' || i END AS note,
		'2001-02-03 04:05:06.789012+00'::timestamptz + i * interval '61 seconds 7 microseconds' AS at,
		CASE WHEN i % 4 > 0 THEN date '1900-01-01' + i % 70000 END AS day,
		md5(i::text)::uuid AS guid,
		jsonb_build_object('id', i, 'tags', ARRAY['a', 'b' || i % 7], 'half', i / 2.0) AS doc
	FROM generate_series(1, 1000000) i
	SQL

my ($seconds, $id) = elapsed(sub {
	return $pg->ingest('SELECT * FROM mixed', 'Mixed', create_table => 'true');
});
my ($landing, $operation) = elapsed(sub { $pg->succeeds($id, 'a million rows land', '300 s') });
note sprintf 'exported in %.1f s, landed %.1f s later', $seconds, $landing;

my $blobs = $pg->blobs($id);
my $total = 0;
$total += $_->{rows} for @$blobs;
is($operation->{rows}, 1_000_000, 'the operation counts a million rows');
is($total, 1_000_000, 'and so do its blobs');
cmp_ok(scalar @$blobs, '>=', 4, 'there are several blobs');
cmp_ok((sort { $b <=> $a } map { $_->{raw_bytes} } @$blobs)[0], '<=', 32 * 1024**2, 'none exceeds max_blob_size');
my %accounts = map { $_->{account} => 1 } grep { $_->{method} eq 'PUT' && ($_->{status} // 0) eq '201' } $kusto->log(service => 'blob');
is(scalar keys %accounts, 2, 'both storage accounts were used') or diag explain \%accounts;

# The hash that kusto-local's README documents: for each row the first 60 bits of the MD5 of its
# canonical fields, summed.
my $expected = $pg->sql(<<~'SQL');
	SELECT count(*) || ' ' || sum(('x' || left(md5(concat_ws(E'\x1f',
		coalesce(id::text, '\N'),
		coalesce(big::text, '\N'),
		coalesce(flag::text, '\N'),
		coalesce(encode(float8send(ratio), 'hex'), '\N'),
		coalesce(trim_scale(amount)::text, '\N'),
		coalesce(note, ''),
		coalesce(to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US') || '0Z', '\N'),
		coalesce(to_char(day, 'YYYY-MM-DD"T00:00:00.0000000Z"'), '\N'),
		coalesce(guid::text, '\N'),
		coalesce(doc::text, '\N'))), 15))::bit(60)::bigint)
	FROM mixed
	SQL
my $hash = $kusto->hash(KustoCluster::DATABASE, 'Mixed');
is("$hash->{rows} $hash->{hash}", $expected, 'the count and the hash of the content agree on both sides');

$kusto->assert_no_violations;
done_testing();
