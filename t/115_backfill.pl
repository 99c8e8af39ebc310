# Back-filling history day by day, as docs/operations.md says: the extents of each day have its time,
# so that retention and caching take them as if they had come then.
use strict;
use warnings;

use KustoCluster;
use KustoLocal;
use Test::More;

my $db = KustoCluster::DATABASE;
my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto);
$kusto->create_table($db, 'Events', 'at:datetime, i:int');
$pg->sql(<<~'SQL');
	CREATE TABLE events (at timestamptz, i int);
	INSERT INTO events SELECT timestamptz '2024-03-30 00:00+00' + i * interval '1 hour', i
	FROM generate_series(0, 119) i WHERE i / 24 <> 3;
	SQL
# In this time zone one of these days has 23 hours: Kusto's days are UTC's.
my @ids = split /\n/, $pg->sql(<<~"SQL");
	SET TimeZone = 'Europe/Berlin';
	SELECT kusto_ingest(
		format('SELECT * FROM events WHERE at >= %L AND at < %L', day, day + interval '24 hours'),
		'$db', 'Events', creation_time => day)
	FROM generate_series(timestamptz '2024-03-30 00:00+00', '2024-04-03 00:00+00', interval '24 hours') AS day
	SQL
is(scalar @ids, 5, 'five days, an operation each');
$pg->succeeds($_) for @ids;
is_deeply([ map { $pg->operation($_)->{rows} } @ids ], [ 24, 24, 24, 0, 24 ], 'a day without rows is none');
$kusto->settle;
is_deeply([ sort map { "$_->{creationTime} $_->{rows}" } @{ $kusto->extents($db, 'Events') } ],
	[ map { "2024-$_" . 'T00:00:00.000000Z 24' } qw(03-30 03-31 04-01 04-03) ], q(the extents have the days' times));
is($kusto->count($db, 'Events'), 96, 'all rows are there');
$kusto->assert_no_violations;
done_testing();
