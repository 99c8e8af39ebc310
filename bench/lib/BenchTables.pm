# BenchTables: the tables that exports are measured with, made by SQL alone and always the same.
#
#   lineitem   16 columns after TPC-H's: integers, numeric, char, dates, a comment made of words
#   events     bigint, timestamptz, uuid, float8, float4, bool, text, jsonb
#   narrow     two integers
#   wide       24 columns of text, some of which must be quoted
#
# Rows: BENCH_ROWS of lineitem (3,000,000), the others in proportion. Frozen and with hint bits set, so
# that no run writes to them.
package BenchTables;

use strict;
use warnings;

use BenchServer qw(parameter);
use Exporter qw(import);

our @EXPORT_OK = qw(make_table rows_of describe);

my %share = (lineitem => 1, events => 2 / 3, narrow => 10 / 3, wide => 1 / 12);
my %described = (
	lineitem => '16 columns after TPC-H\'s',
	events => 'bigint, timestamptz, uuid, float8, float4, bool, text, jsonb',
	narrow => 'int, int',
	wide => '24 columns of text');

sub rows_of
{
	my ($table) = @_;
	my $rows = int(parameter('BENCH_ROWS', 3_000_000) * $share{$table} + 0.5);
	return $rows > 1 ? $rows : 1;
}

sub describe { my ($table) = @_; return $described{$table} }

# Values that look random and are the same in every run: pick(row, column, how many different ones).
sub _helpers
{
	my ($server) = @_;
	$server->sql(<<~'SQL');
		CREATE FUNCTION pick(bigint, int, int) RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE
		AS 'SELECT ((hashint8extended($1, $2) & 4611686018427387903) % $3)::int';

		CREATE TABLE word AS SELECT i AS id, w AS word
		FROM unnest(string_to_array('foxes ideas theodolites pinto beans instructions dependencies excuses platelets'
			' asymptotes courts dolphins multipliers sauternes warthogs frets dinos attainments somas packages'
			' accounts deposits requests sleep wake are cajole haggle nag use boost affix detect integrate maintain'
			' nod was lose sublate solve thrash promise engage hinder print doze run dazzle snooze furious sly'
			' careful blithe quick fluffy slow quiet ruthless thin close dogged daring brave stealthy permanent'
			' enticing idle busy regular final ironic even bold silent furiously slyly carefully blithely quickly'
			' fluffily slowly quietly ruthlessly about above according to across after against along beneath'
			' among around at before between beyond the special pending express unusual', ' ')) WITH ORDINALITY u (w, i);

		CREATE TABLE sentence AS
		SELECT s AS id, string_agg(CASE WHEN pick(s * 32 + n, 2, 9) = 0 THEN word || '.' ELSE word END, ' ' ORDER BY n) AS text
		FROM generate_series(0, 49999) s, generate_series(0, 13) n,
			LATERAL (SELECT word FROM word WHERE id = 1 + pick(s * 32 + n, 1, (SELECT count(*)::int FROM word))) w
		GROUP BY s;
		ANALYZE sentence
		SQL
	return;
}

my %making = (
	# Orders of one to seven lines; keys, prices and dates follow the rules of the TPC-H specification, 4.2.3.
	lineitem => sub {
		my ($rows) = @_;
		return <<~SQL;
			CREATE UNLOGGED TABLE lineitem (
				l_orderkey bigint NOT NULL, l_partkey int NOT NULL, l_suppkey int NOT NULL, l_linenumber int NOT NULL,
				l_quantity numeric(15, 2) NOT NULL, l_extendedprice numeric(15, 2) NOT NULL,
				l_discount numeric(15, 2) NOT NULL, l_tax numeric(15, 2) NOT NULL,
				l_returnflag char(1) NOT NULL, l_linestatus char(1) NOT NULL,
				l_shipdate date NOT NULL, l_commitdate date NOT NULL, l_receiptdate date NOT NULL,
				l_shipinstruct char(25) NOT NULL, l_shipmode char(10) NOT NULL, l_comment varchar(44) NOT NULL);
			INSERT INTO lineitem
			SELECT o / 8 * 32 + o % 8, part, pick(k, 12, 10000) + 1, n, quantity,
				quantity * (90000 + part / 10 % 20001 + 100 * (part % 1000)) / 100.0,
				pick(k, 13, 11) / 100.0, pick(k, 14, 9) / 100.0,
				CASE WHEN shipped + received > date '1995-06-17' THEN 'N' WHEN pick(k, 15, 2) = 0 THEN 'R' ELSE 'A' END,
				CASE WHEN shipped > date '1995-06-17' THEN 'O' ELSE 'F' END,
				shipped, ordered + 30 + pick(k, 16, 61), shipped + received,
				('{DELIVER IN PERSON,COLLECT COD,NONE,TAKE BACK RETURN}'::text[])[1 + pick(k, 17, 4)],
				('{REG AIR,AIR,RAIL,SHIP,TRUCK,MAIL,FOB}'::text[])[1 + pick(k, 18, 7)],
				substr(text, 1 + pick(k, 19, 30), 10 + pick(k, 20, 34))
			FROM (
				SELECT o, n, k, pick(k, 10, 200000) + 1 AS part, pick(k, 11, 50) + 1 AS quantity,
					ordered, ordered + 1 + pick(k, 21, 121) AS shipped, 1 + pick(k, 22, 30) AS received
				FROM (
					SELECT o, n, o * 8 + n AS k, date '1992-01-01' + pick(o, 23, 2406) AS ordered
					FROM generate_series(bigint '1', $rows) o, LATERAL generate_series(1, 1 + pick(o, 24, 7)) n
					LIMIT $rows) l) l
			JOIN sentence ON sentence.id = pick(k, 25, 50000)
			SQL
	},
	events => sub {
		my ($rows) = @_;
		return <<~SQL;
			CREATE UNLOGGED TABLE events (
				id bigint NOT NULL, at timestamptz NOT NULL, trace uuid NOT NULL, value float8 NOT NULL,
				temperature float4, ok bool NOT NULL, message text NOT NULL, payload jsonb NOT NULL);
			INSERT INTO events
			SELECT i, timestamptz '2024-01-01 00:00:00+00' + i * interval '1.7 seconds' + pick(i, 30, 1700000) * interval '1 microsecond',
				md5(i::text)::uuid, sqrt(i) * pick(i, 31, 1000000) / 997,
				CASE WHEN pick(i, 32, 20) > 0 THEN pick(i, 33, 4000) / 100.0 END, pick(i, 34, 50) > 0,
				substr(text, 1 + pick(i, 35, 20), 20 + pick(i, 36, 40)),
				jsonb_build_object('device', 'device-' || pick(i, 37, 5000), 'seq', i % 65536, 'battery', pick(i, 38, 1000) / 10.0,
					'tags', jsonb_build_array(split_part(text, ' ', 2), split_part(text, ' ', 4)))
			FROM generate_series(bigint '1', $rows) i JOIN sentence ON sentence.id = pick(i, 41, 50000)
			SQL
	},
	narrow => sub {
		my ($rows) = @_;
		return <<~SQL;
			CREATE UNLOGGED TABLE narrow (a int NOT NULL, b int NOT NULL);
			INSERT INTO narrow SELECT i, pick(i, 50, 1000000) FROM generate_series(1, $rows) i
			SQL
	},
	# Three columns have commas, quotes or line ends in them.
	wide => sub {
		my ($rows) = @_;
		my @columns = map { sprintf 'c%02d', $_ } 1 .. 24;
		my $definitions = join ', ', map { "$_ text NOT NULL" } @columns;
		my $pieces = join ', ', map {
			my $text = "(SELECT substr(text, 1 + pick(p, 60 + $_, 20), 20 + pick(p, 90 + $_, 60)) FROM sentence WHERE id = pick(p, 120 + $_, 50000))";
			my %special = (4 => q(replace(%s, ' the ', ', the ')), 8 => q('said "' || %s || '"'), 16 => q(replace(%s, '. ', E'.\n')));
			"@{[ $special{$_} ? sprintf($special{$_}, $text) : $text ]} AS $columns[$_ - 1]" } 1 .. 24;
		my $columns = join ', ', @columns;
		return <<~SQL;
			CREATE UNLOGGED TABLE wide ($definitions);
			CREATE INDEX ON sentence (id);
			CREATE TABLE page AS SELECT p AS id, $pieces FROM generate_series(0, least(19999, $rows)) p;
			ANALYZE page;
			INSERT INTO wide SELECT $columns FROM generate_series(1, $rows) i JOIN page ON page.id = pick(i, 150, (SELECT count(*)::int FROM page));
			DROP TABLE page
			SQL
	});

# In the database once, for all parts that want it.
sub make_table
{
	my ($server, $table) = @_;
	return if $server->sql("SELECT to_regclass('$table')") ne '';
	_helpers($server) if $server->sql("SELECT to_regclass('sentence')") eq '';
	my $rows = rows_of($table);
	# Joins that keep the order of the rows.
	$server->sql('SET enable_mergejoin = off; SET max_parallel_workers_per_gather = 0');
	$server->sql($making{$table}->($rows));
	$server->sql('RESET enable_mergejoin; RESET max_parallel_workers_per_gather');
	$server->sql("VACUUM (FREEZE, ANALYZE) $table");
	my $count = $server->sql("SELECT count(*) FROM $table");
	die "$table has $count rows instead of $rows" unless $count == $rows;
	return;
}

1;
