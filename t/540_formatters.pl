# Every formatter against PostgreSQL's own text, or an expression that has nothing to do with it: a few
# million values that look random and are the same in each run, and the extreme ones.
use strict;
use warnings;

use KustoCluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The functions by which a test reaches the formatters are in that library alone.
my $pg = KustoCluster->start(undef, faults => 1, conf => "timezone = 'UTC'\nlc_monetary = 'C'\n");
my $session = $pg->session;
$session->sql(<<~'SQL');
	CREATE FUNCTION field(x anyelement, on_type_error text) RETURNS text IMMUTABLE LANGUAGE c AS '$libdir/kusto_ingest', 'kusto_test_field';
	CREATE FUNCTION csv(query text) RETURNS text LANGUAGE c AS '$libdir/kusto_ingest', 'kusto_test_csv';
	CREATE FUNCTION bits(bigint) RETURNS bigint IMMUTABLE STRICT LANGUAGE c AS '$libdir/kusto_ingest', 'kusto_test_bits';
	CREATE FUNCTION float4_of(int) RETURNS float4 IMMUTABLE STRICT LANGUAGE c AS '$libdir/kusto_ingest', 'kusto_test_float4';
	CREATE FUNCTION float8_of(bigint) RETURNS float8 IMMUTABLE STRICT LANGUAGE c AS '$libdir/kusto_ingest', 'kusto_test_float8';
	CREATE FUNCTION random_text(seed bigint, max int) RETURNS text IMMUTABLE STRICT LANGUAGE c AS '$libdir/kusto_ingest', 'kusto_test_text';
	SQL

my $tested = 0;

# Bits of the value of number i; several values have several kinds of them.
sub bits { return "bits(i + $_[0]000000000)" }

# v: an expression of i, from 1 to count, or a list of expressions; expected: one of v and i. The first value
# that differs is shown.
sub compare
{
	my ($name, $v, $expected, %options) = @_;
	my $count = ref $v ? scalar @$v : $options{count} // 100_000;
	my $policy = $options{policy} // 'error';
	my $source =
	  ref $v
	  ? 'SELECT * FROM (VALUES ' . join(', ', map { '(' . ($_ + 1) . ", $v->[$_])" } 0 .. $#$v) . ') AS x (i, v)'
	  : "SELECT i, $v AS v FROM generate_series(1, $count) i OFFSET 0";
	my ($n, $wrong) = split /\|/, $session->sql(<<~"SQL"), 2;
		SELECT count(*), min(format('%7s. %s is written %s and not %s', i, left(v::text, 300), left(got, 300), left(expected, 300))) FILTER (WHERE got IS DISTINCT FROM expected)
		FROM (SELECT i, v, field(v, '$policy') AS got, $expected AS expected FROM ($source) s OFFSET 0) t
		SQL
	is($n, $count, "$name: $count values");
	is($wrong, '', "$name: as expected");
	$tested += $n;
	return;
}

my $quoted = q('"' || replace(%s, '"', '""') || '"');
sub quoted { return sprintf $quoted, $_[0] }

# ---- numbers ----

my ($x, $y, $z) = map { bits($_) } 1 .. 3;
compare('boolean', "${x} > 0", q(CASE WHEN v THEN 'true' ELSE 'false' END), count => 1000);
compare('int2', "(${x} >> (48 + i % 16))::int2", 'v::text');
compare('int4', "(${x} >> (32 + i % 32))::int4", 'v::text', count => 300_000);
compare('int8', "${x} >> (i % 64)", 'v::text', count => 300_000);
compare('oid', "((${x} & 4294967295) >> (i % 32))::oid", 'v::text');
compare('xid8', "((${x} & 9223372036854775807) >> (i % 64))::text::xid8", 'v::text');
for my $type ([ int2 => 15 ], [ int4 => 31 ], [ int8 => 63 ])
{
	my ($name, $width) = @$type;
	my @powers = map { (10**$_, 10**$_ - 1, -10**$_, 1 - 10**$_) } 0 .. int($width * 0.30103) - ($width == 63);
	compare("$name: powers of ten", [ map { sprintf "'%d'::$name", $_ } @powers ], 'v::text');
	compare("$name: its ends", [ map { "($_)::$name" } "2::numeric ^ $width - 1", "-(2::numeric ^ $width)", 0, -1 ], 'v::text');
}
compare('float8 of any bits', "float8_of(CASE WHEN (${x} >> 52) & 2047 = 2047 THEN ${x} # (1::bigint << 60) ELSE ${x} END)", 'v::text', count => 300_000);
compare('float8 of four decimals', "(${x} >> (i % 64)) / 10000::float8", 'v::text', count => 300_000);
compare('float4 of four decimals', "((${x} >> (i % 64)) / 10000::float8)::float4", 'v::text', count => 300_000);
compare('float8 of few digits', "(${x} % (10 ^ (i % 17))::bigint) / 10::float8 ^ (i % 13)", 'v::text', count => 300_000);
compare('float4 of any bits', "float4_of((CASE WHEN (${x} >> 23) & 255 = 255 THEN ${x} # (1 << 29) ELSE ${x} END << 32 >> 32)::int)", 'v::text', count => 300_000);
compare('float4 of few digits', "((${x} % (10 ^ (i % 8))::bigint) / 10::float8 ^ (i % 6))::float4", 'v::text');
compare('floats: ends', [ map { "'$_'::float8" } qw(0 -0 5e-324 -5e-324 2.2250738585072014e-308 1.7976931348623157e308 9007199254740993 1e15 1e16 1e-4 1e-5 0.1
	0.0001 -0.0001 0.00005 0.00015 0.99999 99999999999.9999 -99999999999.9999 99999999999.99999 1e11 100000000000.0001) ], 'v::text');
compare('float4: ends', [ map { "'$_'::float4" } qw(0 -0 1e-45 3.4028235e38 99.9999 -99.9999 99.99999 100 100.0001 1e6 0.0001 0.00005 16777217 1e-4 1e-5) ], 'v::text');
compare('floats as strings', "float8_of(CASE WHEN (${x} >> 52) & 2047 = 2047 THEN ${x} # (1::bigint << 60) ELSE ${x} END)", quoted('v::text'), policy => 'string');
compare('money', "((${x} >> (i % 64))::numeric / 100)::money", 'v::numeric::text');

# What is too much for a decimal is empty here: digits are counted without the zeros at both ends.
my $decimal = q(CASE WHEN length(btrim(replace(abs(v)::text, '.', ''), '0')) <= 34 AND abs(v) < 1e6145 AND min_scale(v) <= 6176 THEN v::text ELSE '""' END);
my $mantissa = "(${x} >> (i % 64))::text";
compare('numeric(15,2)', "((${x} % 1000000000000000)::numeric / 100)::numeric(15,2)", 'v::text', count => 300_000);
compare('numeric of any scale', "round(${x}::numeric / 10::numeric ^ (i % 19), (abs(${y}) % 25)::int)", 'v::text', count => 200_000);
compare('numeric with exponents', "($mantissa || 'e' || (${y} % 60))::numeric", $decimal, policy => 'null', count => 200_000);
compare('numeric of many digits', "($mantissa || abs(${y}) || 'e' || (${z} % 60))::numeric", $decimal, policy => 'null', count => 200_000);
compare('numeric of far exponents', "($mantissa || 'e' || (${y} % 6300))::numeric", $decimal, policy => 'null', count => 3000);
compare('numeric: ends', [ map { "'$_'::numeric" } qw(0 -0.00 0.00000000 1e6144 1e6145 1e-6176 1e-6177 9999999999999999999999999999999999 10000000000000000000000000000000001
	-0.0001 0.00009999 99999999.9999 100000000 1e30), '1e-40', '1' . '0' x 60, '0.' . '0' x 60, '-1.' . '0' x 16000 ], $decimal, policy => 'null');
compare('numeric as strings', "round(${x}::numeric / 10::numeric ^ (i % 19), (abs(${y}) % 90)::int)",
	quoted('v::text'), policy => 'string');

# ---- dates and times ----

my $day = "(date '0001-01-01' + (abs(${x}) % 3652059)::int)";
my $usecs = "(abs(${y}) % 86400000000) / (10 ^ (i % 7))::bigint * (10 ^ (i % 7))::bigint";
# HH:MM:SS and a fraction, of a time of day
my $clock = q(to_char(%1$s, 'HH24:MI:SS') || CASE WHEN extract(microseconds FROM %1$s)::int %% 1000000 = 0 THEN '' ELSE to_char(%1$s, '.US') END);
my $datetime = q(to_char(v, 'YYYY-MM-DD"T"') || ) . sprintf($clock, 'v') . q( || 'Z');
compare('every day of 9999 years', q(date '0000-12-31 BC'::date + i) =~ s/0000-12-31 BC/0001-12-31 BC/r, 'v::text', count => 3652059);
compare('timestamp', "$day + $usecs * interval '1 us'", $datetime, count => 200_000);
compare('timestamptz', "($day + $usecs * interval '1 us') AT TIME ZONE 'UTC'", $datetime, count => 200_000);
compare('timestamp: ends', [ map { "timestamp '$_'" } '0001-01-01', '9999-12-31 23:59:59.999999', '1999-12-31 23:59:59.999999', '2000-01-01', '1970-01-01 00:00:00.000001' ], $datetime);
compare('date and timestamp: beyond the ends', [ map { "timestamp '$_'" } '0001-12-31 23:59:59.999999 BC', '10000-01-01', 'infinity', '-infinity', '294276-12-31 23:59:59.999999', '4713-01-01 BC' ], q('""'), policy => 'null');
compare('date: beyond the ends', [ map { "date '$_'" } '0001-12-31 BC', '10000-01-01', 'infinity', '-infinity', '5874897-12-31', '4713-01-01 BC' ], q('""'), policy => 'null');
compare('time', "time '00:00' + $usecs * interval '1 us'", sprintf($clock, 'v'));
compare('timetz', "((time '00:00' + $usecs * interval '1 us') || CASE WHEN ${z} > 0 THEN '+' ELSE '-' END || to_char(make_interval(secs => abs(${z} % 57540)), 'HH24:MI:SS'))::timetz",
	q('"' || ) . sprintf($clock, 'v::time') . q( || substring(v::text FROM '[-+][0-9:]*$') || '"'));
my ($span_days, $span_usecs) = ("(${x} % (10 ^ (i % 8))::bigint)", "(${y} % 100000000000)");
my $span = "abs($span_days * 86400000000 + $span_usecs)";
compare('interval', "make_interval(days => ${span_days}::int) + $span_usecs * interval '1 us'",
	    "CASE WHEN $span_days * 86400000000 + $span_usecs < 0 THEN '-' ELSE '' END"
	  . " || CASE WHEN $span >= 86400000000 THEN ($span / 86400000000) || '.' ELSE '' END"
	  . " || to_char(timestamp '2000-01-01' + $span % 86400000000 * interval '1 us', 'HH24:MI:SS')"
	  . " || CASE WHEN $span % 1000000 = 0 THEN '' ELSE '.' || lpad(($span % 1000000)::text, 6, '0') END", count => 200_000);

# ---- text ----

compare('uuid', 'md5(i::text)::uuid', 'v::text', count => 200_000);
compare('text', "random_text(${x}, 50)", quoted('v'), count => 300_000);
compare('longer text', "random_text(${x}, 1000)", quoted('v'), count => 20_000);
compare('long text', "random_text(${x}, 20000)", quoted('v'), count => 2_000);
compare('varchar', "random_text(${x}, 30)::varchar(20)", quoted('v'));
compare('char(n)', "random_text(${x}, 30)::char(20)", q('"' || replace(rpad(v::text, 20), '"', '""') || '"'));
compare('name', "random_text(${x}, 60)::name", quoted('v::text'));
compare('json', "json_build_array(random_text(${x}, 30), i)", quoted('v::text'));
compare('bytea', "convert_to(random_text(${x}, 60), 'UTF8')", q('"' || translate(encode(v, 'base64'), E'\n', '') || '"'));
compare('long bytea', "convert_to(random_text(${x}, 20000), 'UTF8')", q('"' || translate(encode(v, 'base64'), E'\n', '') || '"'), count => 2_000);
compare('text of every length', q(repeat('x', i)), quoted('v'), count => 9_000);
compare('text of quotes, of every length', q(repeat('"', i)), quoted('v'), count => 9_000);

# ---- dynamic ----

my $object = "jsonb_build_object(random_text(${x}, 20), random_text(${y}, 40), random_text(${z}, 5), ${x}, 'n', ${y}::numeric / 1000000, 'z', NULL, 't', true, 'f', false)";
my $array = "jsonb_build_array(${x}, random_text(${y}, 20), '{}'::jsonb, '[]'::jsonb, (${z} % 1000)::numeric / 1000, NULL)";
compare('jsonb objects', $object, quoted('v::text'));
compare('jsonb arrays', $array, quoted('v::text'));
compare('nested jsonb', "jsonb_build_object('a', $array, 'b', jsonb_build_array($object, $object), '', $object)", quoted('v::text'), count => 30_000);
compare('jsonb scalars', "CASE i % 5 WHEN 0 THEN to_jsonb(${x}) WHEN 1 THEN to_jsonb(random_text(${x}, 60)) WHEN 2 THEN 'null' WHEN 3 THEN to_jsonb(i % 2 = 0) ELSE to_jsonb(${x}::numeric / 1000) END",
	quoted('v::text'));
# More members than one entry's offset serves.
compare('large jsonb', "(SELECT jsonb_build_object('o', jsonb_object_agg(random_text(bits(i + j), 10), j), 'a', jsonb_agg(random_text(bits(j - i), 10))) FROM generate_series(1, i % 200) j)",
	quoted('v::text'), count => 3_000);
compare('jsonb: ends', [ map { "'$_'::jsonb" } '{}', '[]', '[[]]', '{"": {}}', '""', '0', '-0.0', '1e130', '"\u0001\u007f"', '[' x 1000 . ']' x 1000 ], quoted('v::text'));

my $to_json = quoted('array_to_json(v)::text');
compare('int2[]', "ARRAY[${x} >> 48, NULL, ${y} >> 50]::int2[]", $to_json);
compare('int4[]', "ARRAY[${x} >> 32, NULL, ${y} >> 40]::int4[]", $to_json);
compare('int8[]', "ARRAY[NULL, ${x}, ${y} >> 20]", $to_json);
compare('float8[]', "ARRAY[(${x} % 1000000) / 1e3::float8, 1e300, NULL]", $to_json);
compare('numeric[]', "ARRAY[${x}::numeric / 1000, 1e-30, 1e70, NULL, (${y} % 100)::numeric(60,50)]", $to_json);
compare('boolean[]', "ARRAY[${x} > 0, NULL, ${y} > 0]", $to_json);
compare('uuid[]', "ARRAY[md5(i::text), NULL, md5(${x}::text)]::uuid[]", $to_json);
compare('text[]', "ARRAY[random_text(${x}, 30), NULL, random_text(${y}, 10), random_text(${z}, 3)]", $to_json);
compare('long text[]', "ARRAY[random_text(${x}, 20000), random_text(${y}, 20000)]", $to_json, count => 500);
compare('jsonb[]', "ARRAY[$object, NULL, $array]", $to_json, count => 20_000);
compare('bytea[]', "ARRAY[convert_to(random_text(${x}, 60), 'UTF8'), NULL]", q('"[""' || translate(encode(v[1], 'base64'), E'\n', '') || '"",null]"'));
compare('arrays of arrays', "ARRAY[ARRAY[${x}, NULL], ARRAY[NULL, ${y}]]", $to_json, count => 20_000);
compare('records', "ROW(random_text(${x}, 30), ${y}, ARRAY[${z}], NULL, random_text(${z}, 9))", quoted(q(row_to_json(v)::text)), count => 50_000);

# ---- as it is stored ----

$session->sql(<<~"SQL");
	CREATE TABLE stored (i int, t text, j jsonb, b bytea, n numeric);
	ALTER TABLE stored ALTER t SET STORAGE EXTERNAL;
	INSERT INTO stored SELECT i, random_text(${x}, (i % 5 + 1) * 2000),
		(SELECT jsonb_agg(repeat(random_text(bits(j + i), 90), i % 40)) FROM generate_series(0, i % 90) j),
		convert_to(repeat(random_text(${y}, 100), i % 150), 'UTF8'), repeat('123', i % 11)::numeric
	FROM generate_series(11, 1500) i WHERE i % 11 > 0;
	SQL
for my $column ([ t => 'v' ], [ j => 'v::text' ], [ b => q(translate(encode(v, 'base64'), E'\n', '')) ])
{
	my ($name, $expected) = @$column;
	is($session->sql("SELECT count(*) FROM (SELECT i, $name AS v FROM stored) s WHERE field(v, 'error') IS DISTINCT FROM " . quoted($expected)), 0, "stored compressed or out of line: $name");
}
isnt($session->sql(q(SELECT count(*) FROM stored WHERE pg_column_size(j) < length(j::text) / 2 AND pg_column_size(b) < length(b) / 2)), 0, 'much of it is compressed');

# ---- rows, over the ends of chunks ----

{
	my $row = "SELECT i, random_text(${x}, 900) AS t, ${y} AS b, NULL::text AS n, $object AS j, $usecs AS u, random_text(${z}, 9000) AS l FROM generate_series(1, 3000) i";
	my $expected = join " || ',' || ", 'i', quoted('t'), 'b', q(''), quoted('j::text'), 'u', quoted('l');
	my $literal = KustoCluster::literal($row);
	my $sizes = $session->sql("SELECT length(csv($literal)), sum(length($expected) + 1) FROM ($row) r");
	my ($got, $want) = split /\|/, $sizes;
	is($got, $want, 'rows: as many characters');
	is($session->sql("SELECT csv($literal) = (SELECT string_agg($expected || E'\\n', '' ORDER BY i) FROM ($row) r)"), 't', 'rows: the same');
}
is($session->sql(q(SELECT csv('SELECT NULL::int AS a FROM generate_series(1, 2)'))), qq(""\n""\n), 'a null alone');
is($session->sql(q(SELECT csv('SELECT NULL::int AS a, NULL::text AS b'))), qq(,\n), 'two nulls');

# Numbers count as well, which are bare.
{
	my $query = "SELECT " . join(', ', (q(repeat('x', 1048576))) x 60, ('n') x 1500) . q( FROM (SELECT ('1' || repeat('0', 6000) || '.' || repeat('0', 16383))::numeric AS n) s);
	$session->sql(q(CREATE FUNCTION discard(query text) RETURNS bigint LANGUAGE c AS '$libdir/kusto_ingest', 'kusto_test_discard'));
	$pg->fails_like('SELECT discard(' . KustoCluster::literal($query) . ')',
		{ sqlstate => '54000', message => qr/^row 1 is too large for Kusto$/, detail => qr/64 MB/, hint => qr/./ }, 'a row of long numbers over 64 MB');
}

# Bytes that are no UTF-8, in a database where they should not be.
$session->sql('CREATE CAST (bytea AS text) WITHOUT FUNCTION');
is($session->sql(q(SELECT field(ARRAY['\x61ff62c3a922c3'::bytea::text, chr(233)], 'error') = '"[""a' || chr(65533) || 'b' || chr(233) || '\""' || chr(65533) || '"",""' || chr(233) || '""]"')),
	't', 'broken bytes in an array are replaced');
$session->sql('DROP CAST (bytea AS text)');

cmp_ok($tested, '>', 9_000_000, "$tested values");
$session->quit;
done_testing();
