# Values of every type arrive as what they are, whatever the session's settings and the database's
# encoding; values that Kusto's types cannot hold meet on_type_error, and are counted.
use strict;
use warnings;
use utf8;

use Encode qw(encode);
use JSON::PP;
use KustoCluster qw(literal);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;
use TypeMatrix;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto);
my $db = KustoCluster::DATABASE;
my $version = $pg->sql('SHOW server_version_num');
my $canonical = JSON::PP->new->canonical->allow_nonref;

# Extensions that are part of PostgreSQL, but may be packaged apart.
my %extensions = map { $_ => 1 }
  split /\n/, $pg->sql(q(SELECT name FROM pg_available_extensions WHERE name IN ('citext', 'cube', 'hstore')));
note 'extensions: ', join(' ', sort keys %extensions);

# Text of a value for comparisons: numbers by what they are worth, not by how they are printed.
sub text_of
{
	my ($type, $value) = @_;
	return 'null' unless defined $value;
	return unpack('H*', pack('d>', $value + 0)) if $type eq 'real';
	return $canonical->encode(normal($value)) if $type eq 'dynamic';
	return $canonical->encode($value) if ref $value;
	return "$value";
}

sub normal
{
	my ($value) = @_;
	return [ map { normal($_) } @$value ] if ref $value eq 'ARRAY';
	return { map { $_ => normal($value->{$_}) } keys %$value } if ref $value eq 'HASH';
	return $value if ref $value || !defined $value;
	# A number: one without quotes in JSON.
	return $canonical->encode($value) =~ /^"/ ? $value : 'number ' . unpack('H*', pack('d>', $value));
}

# Kusto's rows in the order of their first column.
sub rows_by_id
{
	my ($table) = @_;
	return [ sort { $a->[0] <=> $b->[0] } @{ $kusto->rows($db, $table) } ];
}

sub matrix_is
{
	my ($matrix, $table, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $rows = rows_by_id($table);
	is(scalar @$rows, $matrix->nrows, "$name: all rows are there");

	my $index = 0;
	for my $column ($matrix->columns)
	{
		my $type = $matrix->types->{$column};
		my @got = map { text_of($type, $_->[$index]) } @$rows;
		my @expected = map { text_of($type, $_) } @{ $matrix->expected($column) };
		is_deeply(\@got, \@expected, "$name: $column");
		$index++;
	}
	return;
}

# ---- the matrix ----

my $matrix = TypeMatrix->new(version => $version, encoding => 'UTF8', extensions => \%extensions);
$pg->sql($_) for $matrix->setup;
$pg->sql($matrix->view('matrix'));

my $command = $pg->sql(q(SELECT kusto_create_table_command('TABLE matrix', 'Matrix')));
my %types = $command =~ /\['(\w+)'\]:(\w+)/g;
is_deeply(\%types, $matrix->types, 'each type has its Kusto type');

my $plain = $pg->succeeds($pg->ingest('TABLE matrix', 'Matrix', create_table => 'true'));
is($plain->{type_errors}, undef, 'no value met on_type_error');
matrix_is($matrix, 'Matrix', 'in peace');

# ---- hostile settings ----

$pg->sql(<<~'SQL');
	CREATE SCHEMA evil;
	CREATE TYPE evil.int4 AS (x text);
	CREATE TABLE evil.person ();
	CREATE FUNCTION evil.boom(text, text) RETURNS bool LANGUAGE plpgsql AS $$BEGIN RAISE 'called'; END$$;
	CREATE OPERATOR evil.= (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.boom);
	CREATE FUNCTION evil.hstore_to_json(text) RETURNS json LANGUAGE sql AS 'SELECT NULL::json';
	SQL

my @hostile = (
	"datestyle = 'SQL, DMY'",
	"intervalstyle = 'sql_standard'",
	"timezone = 'Asia/Kathmandu'",
	'extra_float_digits = 0',
	"bytea_output = 'escape'",
	"client_encoding = 'SJIS'",
	'search_path = evil, public, pg_catalog',
	'quote_all_identifiers = on',
	'xmlbinary = hex');
my @settings = qw(datestyle intervalstyle timezone extra_float_digits bytea_output client_encoding search_path quote_all_identifiers);
for my $policy (qw(error null))
{
	my $session = $pg->session;
	$session->sql("SET $_") for @hostile;
	my $before = join '|', map { $session->sql("SHOW $_") } @settings;
	my $id = $session->sql("SELECT public.kusto_ingest('TABLE public.matrix', 'db', 'Hostile_$policy', create_table => true, on_type_error => '$policy')");
	is(join('|', map { $session->sql("SHOW $_") } @settings), $before, "hostile settings, '$policy': they are as they were");
	$session->quit;
	my $operation = $pg->succeeds($id);
	matrix_is($matrix, "Hostile_$policy", "hostile settings, '$policy'");
	is($operation->{raw_bytes}, $plain->{raw_bytes}, "hostile settings, '$policy': as many bytes");
	is_deeply($kusto->hash($db, "Hostile_$policy"), $kusto->hash($db, 'Matrix'), "hostile settings, '$policy': the same hash");
}

# The query itself runs under the user's settings, between rows whose formatting needs others.
{
	my $session = $pg->session;
	$session->sql("SET $_") for @hostile;
	my $id = $session->sql(q(SELECT public.kusto_ingest($$
		SELECT i AS id, date '2024-05-25'::text AS d, (date '2024-05-25' + i)::text::public.instant AS t, current_setting('search_path') AS p
		FROM generate_series(1, 3) i$$, 'db', 'Between', create_table => true)));
	$session->quit;
	$pg->succeeds($id);
	is_deeply(rows_by_id('Between'),
		[ map { [ $_, '25/05/2024', '2024-05-' . (24 + $_) . ' 18:15:00+00', 'evil, public, pg_catalog' ] } 1 .. 3 ],
		'the query sees the settings of the session in each row');
}

# An error in the middle of a row gives them back, too.
{
	my $session = $pg->session;
	$session->sql("SET $_") for @hostile;
	my $before = join '|', map { $session->sql("SHOW $_") } @settings;
	$session->sql(q(DO $do$ BEGIN
		PERFORM public.kusto_ingest($$SELECT '2024-05-25'::public.instant AS t, 'NaN'::float8 AS x$$, 'db', 'Between');
		EXCEPTION WHEN numeric_value_out_of_range THEN NULL; END $do$));
	is(join('|', map { $session->sql("SHOW $_") } @settings), $before, 'settings are as they were after an error');
	$session->quit;
}

# ---- many values, against PostgreSQL's own text ----

# Pseudo-random, and the same in each run.
$pg->sql(<<~'SQL');
	CREATE FUNCTION bits(seed text) RETURNS bigint IMMUTABLE LANGUAGE sql AS $$ SELECT ('x' || md5(seed))::bit(64)::bigint $$;
	CREATE VIEW scattered AS
	SELECT i, date '0001-01-01' + (abs(bits('d' || i) % 3652059))::int AS d,
		timestamp '0001-01-01' + make_interval(days => (abs(bits('e' || i) % 3652059))::int) + abs(bits('t' || i) % 86400000000) * interval '1 us' AS t,
		make_interval(days => (bits('v' || i) % 10000000)::int) + (bits('w' || i) % 100000000000) * interval '1 us' AS v,
		(bits('v' || i) % 10000000) * 86400000000 + bits('w' || i) % 100000000000 AS v_us,
		(bits('n' || i)::numeric * 10000::numeric ^ (abs(bits('p' || i) % 8) - 5)::numeric)::numeric AS n,
		round(bits('r' || i)::numeric / 1e9, (abs(bits('s' || i) % 12))::int) AS r,
		bits('f' || i)::float8 * 10::float8 ^ (bits('g' || i) % 250) AS f,
		(bits('f' || i)::float4 * 10::float4 ^ (bits('g' || i) % 18))::float4 AS f4,
		bits('i' || i) >> (i % 64) AS b
	FROM generate_series(1, 5000) i
	SQL

sub scattered_is
{
	my ($table, $policy, %columns) = @_;
	my @names = sort keys %columns;
	my $query = 'SELECT i, ' . join(', ', map { ($_, "$columns{$_} AS ${_}_text") } @names) . ' FROM scattered';
	$pg->succeeds($pg->ingest($query, $table, create_table => 'true', on_type_error => "'$policy'"), "scattered values, '$policy'");
	my $rows = rows_by_id($table);
	is(scalar @$rows, 5000, "scattered values, '$policy': all are there");
	for my $c (0 .. $#names)
	{
		my @wrong = grep { $_->[ 1 + 2 * $c ] ne $_->[ 2 + 2 * $c ] } @$rows;
		is(scalar @wrong, 0, "scattered values, '$policy': $names[$c]") or diag "first: @{$wrong[0]}";
	}
	return;
}

scattered_is('Scattered', 'error',
	d => q(to_char(d, 'YYYY-MM-DD"T00:00:00.0000000Z"')),
	t => q(to_char(t, 'YYYY-MM-DD"T"HH24:MI:SS.US"0Z"')),
	n => q(trim_scale(n)::text),
	r => q(trim_scale(r)::text),
	b => q(b::text));
# As strings, for the text itself.
scattered_is('ScatteredText', 'string', n => 'n::text', r => 'r::text', f => 'f::text', f4 => 'f4::text', d => 'd::text');
{
	$pg->succeeds($pg->ingest('SELECT i, v, v_us FROM scattered', 'Spans', create_table => 'true'), 'scattered timespans');
	my @wrong = grep { microseconds_of($_->[1]) ne $_->[2] } @{ rows_by_id('Spans') };
	is(scalar @wrong, 0, 'scattered timespans: as many microseconds') or diag "first: @{$wrong[0]}";
}

sub microseconds_of
{
	my ($text) = @_;
	my ($sign, $days, $h, $m, $s, $fraction) = $text =~ /^(-?)(?:(\d+)\.)?(\d\d):(\d\d):(\d\d)(?:\.(\d{6})0)?$/ or return "not a timespan: $text";
	my $microseconds = (($days // 0) * 86400 + $h * 3600 + $m * 60 + $s) * 1_000_000 + ($fraction // 0);
	return $sign ? -$microseconds : $microseconds;
}

# ---- other encodings ----

$pg->sql($_)
  for q(CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'),
  q(CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C');

# A second cluster object on another database of the same server.
sub in_database
{
	my ($dbname) = @_;
	my $other = bless { %$pg, dbname => $dbname }, ref $pg;
	$other->sql('CREATE EXTENSION kusto_ingest');
	$other->connect_to($kusto);
	return $other;
}

{
	my $latin = in_database('latin');
	my $latin_matrix = TypeMatrix->new(version => $version, encoding => 'LATIN1', extensions => \%extensions);
	$latin->sql($_) for $latin_matrix->setup;
	$latin->sql($latin_matrix->view('matrix'));
	$latin->succeeds($latin->ingest('TABLE matrix', 'Latin', create_table => 'true'), 'LATIN1: it succeeds');
	matrix_is($latin_matrix, 'Latin', 'LATIN1');

	# Names are converted as well.
	my $id = $latin->sql(encode('UTF-8', q(SET client_encoding = 'UTF8'; SELECT kusto_ingest('SELECT ''é'' AS "naïve", ROW(1) AS r', 'db', 'Näme', create_table => true))));
	$latin->succeeds($id, 'LATIN1: names');
	is_deeply($kusto->rows($db, 'Näme'), [ [ 'é', { f1 => 1 } ] ], 'LATIN1: the table has its name');
}

{
	my $ascii = in_database('ascii');
	my $valid = q(convert_from('\x6162c3a9', 'SQL_ASCII'));
	my $broken = q(convert_from('\x61ff62', 'SQL_ASCII'));
	my $query = "SELECT $broken AS s, ARRAY[$broken] AS a, to_json($broken) AS j, $valid AS v";
	$ascii->lands("SELECT $valid AS v", 'Ascii', [ ['abé'] ], 'SQL_ASCII: valid UTF-8', create_table => 'true');
	$ascii->fails_like('SELECT ' . $ascii->ingest_call($query, 'Broken'),
		{ sqlstate => '22021', message => qr/"s" in row 1 cannot be held by Kusto type string/, detail => qr/bytes/ },
		'SQL_ASCII: broken bytes raise');
	my %counts = map { $_ => { 'invalid UTF-8' => 1 } } qw(s a j);
	my %expected = (
		null => [ '', [undef], undef, 'abé' ],
		string => [ 'a\\xffb', ['a\\xffb'], 'a\\xffb', 'abé' ]);
	for my $policy (sort keys %expected)
	{
		my $operation = $ascii->lands($query, "Broken_$policy", [ $expected{$policy} ], "SQL_ASCII: broken bytes, '$policy'",
			create_table => 'true', on_type_error => "'$policy'");
		is_deeply($operation->{type_errors}, \%counts, "SQL_ASCII: broken bytes, '$policy': counted");
	}
}

# ---- values that do not fit ----

# [name, SQL, kind, Kusto type, SQLSTATE, value under 'string', only since this version]
my @misfits = (
	[ 'float4 NaN', q('NaN'::float4), 'NaN', 'real', '22003', 'NaN' ],
	[ 'float8 infinity', q('-Infinity'::float8), 'infinity', 'real', '22003', '-Infinity' ],
	[ 'numeric NaN', q('NaN'::numeric), 'NaN', 'decimal', '22003', 'NaN' ],
	[ 'numeric infinity', q('-Infinity'::numeric), 'infinity', 'decimal', '22003', '-Infinity', 140000 ],
	[ 'numeric of 35 digits', '12345678901234567890123456789012345', 'more than 34 digits', 'decimal', '22003', '12345678901234567890123456789012345' ],
	[ 'numeric of 35 digits behind the point', '0.10000000000000000000000000000000001', 'more than 34 digits', 'decimal', '22003', '0.10000000000000000000000000000000001' ],
	[ 'numeric beyond all exponents', '1e6145', 'out of range', 'decimal', '22003', '1' . '0' x 6145 ],
	[ 'xid8', q('9223372036854775808'::xid8), 'out of range', 'long', '22003', '9223372036854775808' ],
	[ 'date infinity', q('infinity'::date), 'infinity', 'datetime', '22003', 'infinity' ],
	[ 'date before Christ', q('0044-03-15 BC'::date), 'before year 1', 'datetime', '22008', '0044-03-15 BC' ],
	[ 'date after 9999', q('10000-01-01'::date), 'after year 9999', 'datetime', '22008', '10000-01-01' ],
	[ 'timestamp infinity', q('-infinity'::timestamp), 'infinity', 'datetime', '22003', '-infinity' ],
	[ 'timestamp before Christ', q('0001-12-31 23:59:59.999999 BC'::timestamp), 'before year 1', 'datetime', '22008', '0001-12-31 23:59:59.999999 BC' ],
	[ 'timestamp after 9999', q('294276-12-31 23:59:59.999999'::timestamp), 'after year 9999', 'datetime', '22008', '294276-12-31 23:59:59.999999' ],
	[ 'timestamptz infinity', q('infinity'::timestamptz), 'infinity', 'datetime', '22003', 'infinity' ],
	[ 'timestamptz before Christ', q('4713-01-01 00:00:00+00 BC'::timestamptz), 'before year 1', 'datetime', '22008', '4713-01-01 00:00:00+00 BC' ],
	[ 'timestamptz after 9999', q('10000-01-01 00:00+00'::timestamptz), 'after year 9999', 'datetime', '22008', '10000-01-01 00:00:00+00' ],
	[ 'interval of months', q('1 year 2 mons 3 days'::interval), 'month interval', 'timespan', '22015', '1 year 2 mons 3 days' ],
	[ 'interval beyond range', q('10675199 days 02:48:05.477581'::interval), 'out of range', 'timespan', '22003', '10675199 days 02:48:05.477581' ],
	[ 'interval of all days', q('-2147483648 days'::interval), 'out of range', 'timespan', '22003', '-2147483648 days' ],
	[ 'interval infinity', q('infinity'::interval), 'infinity', 'timespan', '22003', 'infinity', 170000 ],
	[ 'domain', q('infinity'::moment), 'infinity', 'datetime', '22003', 'infinity' ]);
@misfits = grep { $version >= ($_->[6] // 0) } @misfits;

# Each in a row of its own behind one that fits, as an error must name the row.
for my $case (@misfits)
{
	my ($name, $sql, $kind, $type, $sqlstate) = @$case;
	my $query = "SELECT CASE WHEN i = 2 THEN $sql END AS \"the value\" FROM generate_series(1, 3) i";
	$pg->fails_like('SELECT ' . $pg->ingest_call($query, 'Nowhere'),
		{ sqlstate => $sqlstate, message => qr/value of column "the value" in row 2 cannot be held by Kusto type $type$/,
			detail => qr/^The value .*\Q$kind\E/, hint => qr/on_type_error => 'null'.*'string'/ },
		"$name: an error");
}

for my $policy (qw(null string))
{
	my @columns = map { "CASE WHEN i = 2 THEN $misfits[$_][1] END AS c$_" } 0 .. $#misfits;
	my $query = 'SELECT i, ' . join(', ', @columns) . ' FROM generate_series(1, 3) i';
	my $id = $pg->ingest($query, "Misfits_$policy", create_table => 'true', on_type_error => "'$policy'");
	my $operation = $pg->succeeds($id);
	my $rows = rows_by_id("Misfits_$policy");
	my $empty = $policy eq 'null' ? undef : '';
	for my $i (0 .. $#misfits)
	{
		my @got = map { $_->[ $i + 1 ] } @$rows;
		is_deeply(\@got, [ $empty, $policy eq 'null' ? undef : $misfits[$i][5], $empty ], "$misfits[$i][0]: '$policy'");
	}
	my %counts = map { ("c$_" => { $misfits[$_][2] => 1 }) } 0 .. $#misfits;
	is_deeply($operation->{type_errors}, \%counts, "'$policy': each is counted");
}

# Values that fit look the same in a column that 'string' has made a string.
$pg->lands(q(SELECT 1.5::float8 AS a, 2.50 AS b, '2024-05-25 08:20:03+00'::timestamptz AS c, '1 day'::interval AS d, '2024-05-25'::date AS e, 7 AS f),
	'Fitting', [ [ '1.5', '2.50', '2024-05-25T08:20:03Z', '1.00:00:00', '2024-05-25', 7 ] ],
	q('string': values that fit), create_table => 'true', on_type_error => q('string'));

# ---- inside containers ----

{
	my $query = q(SELECT ARRAY['NaN'::float8, 1, 'Infinity'] AS a, ROW('infinity'::date, '1 mon'::interval) AS r,
		tstzrange('2024-01-01 00:00+00', 'infinity') AS t, ARRAY['NaN'::numeric] AS n);
	my %counts = (a => { NaN => 1, infinity => 1 }, r => { infinity => 1, 'month interval' => 1 }, t => { infinity => 1 }, n => { NaN => 1 });
	my %range = (lower => '2024-01-01T00:00:00Z', bounds => '[)');
	my %expected = (
		null => [ [ undef, 1, undef ], { f1 => undef, f2 => undef }, { %range, upper => undef }, [undef] ],
		string => [ [ 'NaN', 1, 'Infinity' ], { f1 => 'infinity', f2 => '1 mon' }, { %range, upper => 'infinity' }, ['NaN'] ]);
	$pg->fails_like('SELECT ' . $pg->ingest_call($query, 'Nowhere'),
		{ sqlstate => '22003', message => qr/"a" in row 1 cannot be held by Kusto type dynamic/, detail => qr/^A value inside it is NaN/ },
		'inside containers: an error');
	for my $policy (sort keys %expected)
	{
		my $operation = $pg->lands($query, "Inside_$policy", [ $expected{$policy} ], "inside containers: '$policy'",
			create_table => 'true', on_type_error => "'$policy'");
		is_deeply($operation->{type_errors}, \%counts, "inside containers: '$policy': counted");
	}
}

# ---- sizes ----

my $limit = 1024 * 1024;
$pg->succeeds($pg->ingest("SELECT repeat('é', $limit / 2) AS s, repeat('x', $limit) AS t, to_json(repeat('x', $limit - 2)) AS j",
	'Largest', create_table => 'true'));
is_deeply([ map { length } @{ $kusto->rows($db, 'Largest')->[0] } ], [ $limit / 2, $limit, $limit - 2 ], 'values of just 1 MiB of UTF-8 land whole');

# [name, SQL, kind, Kusto type, value under 'null']
my @too_big = (
	[ 'text', "repeat('x', $limit + 1)", 'string over 1 MB', 'string', '' ],
	[ 'text in two-byte letters', "repeat('é', $limit / 2 + 1)", 'string over 1 MB', 'string', '' ],
	[ 'text far beyond', "repeat('x', 100 * $limit)", 'string over 1 MB', 'string', '' ],
	[ 'bytea', "decode(repeat('00', 786433), 'hex')", 'string over 1 MB', 'string', '' ],
	[ 'xml', "xmlparse(content repeat('x', $limit + 1))", 'string over 1 MB', 'string', '' ],
	[ 'json', "to_json(repeat('x', $limit - 1))", 'dynamic over 1 MiB', 'dynamic', undef ],
	[ 'jsonb', "to_jsonb(repeat('x', $limit - 1))", 'dynamic over 1 MiB', 'dynamic', undef ],
	[ 'array', "array_fill(12345, ARRAY[200000])", 'dynamic over 1 MiB', 'dynamic', undef ],
	[ 'array of one text', "ARRAY[repeat('x', $limit)]", 'dynamic over 1 MiB', 'dynamic', undef ],
	[ 'record', "ROW(repeat('x', 600000), repeat('x', 600000))", 'dynamic over 1 MiB', 'dynamic', undef ]);
for my $case (@too_big)
{
	my ($name, $sql, $kind, $type) = @$case;
	for my $policy (qw(error string))
	{
		$pg->fails_like('SELECT ' . $pg->ingest_call(encode('UTF-8', "SELECT 1 AS i, $sql AS v"), 'Nowhere', on_type_error => "'$policy'"),
			{ sqlstate => '54000', message => qr/"v" in row 1 cannot be held by Kusto type $type/, detail => qr/\Q$kind\E/, hint => qr/'null'/ },
			"$name too big: '$policy' is an error");
	}
}
{
	my $query = encode('UTF-8', 'SELECT ' . join(', ', map { "$too_big[$_][1] AS c$_" } 0 .. $#too_big));
	my $operation = $pg->lands($query, 'TooBig', [ [ map { $_->[4] } @too_big ] ], q(too big: 'null'),
		create_table => 'true', on_type_error => q('null'));
	is_deeply($operation->{type_errors}, { map { ("c$_" => { $too_big[$_][2] => 1 }) } 0 .. $#too_big }, q(too big: 'null': counted));
}

# A record may have 64 MB; no policy can help a longer one.
my $megabyte = "repeat('x', $limit)";
for my $policy (qw(error null string))
{
	my $query = 'SELECT i, ' . join(', ', map { "CASE WHEN i = 2 THEN $megabyte END AS c$_" } 1 .. 64) . ' FROM generate_series(1, 2) i';
	$pg->fails_like('SELECT ' . $pg->ingest_call($query, 'Nowhere', on_type_error => "'$policy'"),
		{ sqlstate => '54000', message => qr/^row 2 is too large for Kusto$/, detail => qr/"c64".*64 MB/, hint => qr/./ },
		"a record over 64 MB: '$policy' is an error");
}

# ---- types of a user's ----

$pg->sql($_)
  for q(CREATE TYPE tagged), q(CREATE FUNCTION tagged_in(cstring) RETURNS tagged IMMUTABLE STRICT LANGUAGE internal AS 'int4in'),
  q(CREATE FUNCTION tagged_out(tagged) RETURNS cstring IMMUTABLE STRICT LANGUAGE internal AS 'int4out'),
  q(CREATE TYPE tagged (INPUT = tagged_in, OUTPUT = tagged_out, LIKE = int4)),
  q(CREATE FUNCTION tagged_json(tagged) RETURNS json LANGUAGE plpgsql AS $$
		BEGIN
			IF $1::text = '-1' THEN RAISE 'not that one'; END IF;
			RETURN json_build_object('tag', $1::text::int, 'path', current_setting('search_path'));
		END$$),
  q(CREATE CAST (tagged AS json) WITH FUNCTION tagged_json);
$pg->lands(q(SELECT '7'::tagged AS t, ARRAY['8'::tagged] AS a), 'Tagged',
	[ [ { tag => 7, path => 'pg_catalog' }, [ { tag => 8, path => 'pg_catalog' } ] ] ],
	'a type with a cast to json is dynamic', create_table => 'true');
$pg->fails_like('SELECT ' . $pg->ingest_call(q(SELECT i, (i - 4)::text::tagged AS "the tag" FROM generate_series(1, 3) i), 'Nowhere'),
	{ message => qr/^not that one$/, context => qr/column "the tag" in row 3 of the query's result/ },
	'an error of a type\'s own function names column and row');

# ---- columns ----

$pg->lands('SELECT NULL::int AS i UNION ALL SELECT 1', 'OneInt', [ [undef], [1] ], 'nulls in the only column are rows', create_table => 'true');
$pg->lands(q(SELECT '' AS s UNION ALL SELECT NULL), 'OneText', [ [''], [''] ], 'empty strings in the only column are rows', create_table => 'true');
$pg->lands('SELECT 1 AS "a", 2 AS "A", 3 AS "a b-c.d"', 'Names', [ [ 1, 2, 3 ] ], 'names keep their case and characters', create_table => 'true');
$pg->lands('SELECT p FROM (SELECT 1 AS x, NULL::text AS y) p', 'Anonymous', [ [ { x => 1, y => undef } ] ], 'rows of subqueries', create_table => 'true');
$pg->lands(q(SELECT CASE WHEN i % 2 = 0 THEN ROW(i, 'x') ELSE ROW('y'::text, 2.5, i) END AS r FROM generate_series(1, 4) i),
	'Changing', [ [ { f1 => 'y', f2 => 2.5, f3 => 1 } ], [ { f1 => 2, f2 => 'x' } ], [ { f1 => 'y', f2 => 2.5, f3 => 3 } ], [ { f1 => 4, f2 => 'x' } ] ],
	'records that change their shape', create_table => 'true');

my @names = (
	[ 'SELECT 1', 'T', '42602', qr/"\?column\?"/, qr/AS/ ],
	[ 'SELECT 1 AS "a;b"', 'T', '42602', qr/"a;b"/, qr/AS/ ],
	[ 'SELECT 1 AS "__a"', 'T', '42602', qr/"__a"/, qr/AS/ ],
	[ 'SELECT 1 AS a, 2 AS b, 3 AS a', 'T', '42701', qr/"a" appears more than once/, qr/AS/ ],
	[ 'SELECT 1 AS a', '', '42602|22023', qr/table/, undef ],
	[ 'SELECT 1 AS a', q(T'), '42602', qr/T'/, undef ],
	[ 'SELECT 1 AS a', 'x' x 1025, '42602', qr/table cannot be named/, undef ]);
for my $case (@names)
{
	my ($query, $table, $sqlstate, $message, $hint) = @$case;
	my %expected = (sqlstate => qr/^(?:$sqlstate)$/, message => $message);
	$expected{hint} = $hint if defined $hint;
	$pg->fails_like('SELECT kusto_create_table_command(' . literal($query) . ', ' . literal($table) . ')', \%expected,
		'a name that Kusto cannot have: ' . substr("$query $table", 0, 50));
}

$kusto->assert_no_violations;
done_testing();
