# TypeMatrix: every PostgreSQL type, values of it, and what Kusto must hold afterwards.
#
#   my $matrix = TypeMatrix->new(version => 150000, encoding => 'UTF8', extensions => { hstore => 1 });
#   $pg->sql($_) for $matrix->setup;
#   $pg->sql($matrix->view('matrix'));      # one column a type, one row a value; the last row is NULLs
#   $matrix->types;                         # { column => 'Kusto type' }
#   $matrix->columns;                       # names in order; the first is id
#   $matrix->expected('column');            # values by row
#
# A value's SQL is an expression without a cast; the expected value is what JSON decoding of Kusto's
# rows gives: undef for null, numbers, booleans, text, lists and hashes for dynamic.
package TypeMatrix;

use strict;
use warnings;
use utf8;

use Encode qw(encode);
use JSON::PP;

my ($true, $false) = (JSON::PP::true, JSON::PP::false);

sub new
{
	my ($class, %options) = @_;
	my $self = bless {%options}, $class;
	$self->{extensions} //= {};
	# LATIN1 has no such letters.
	$self->{exotic} = $options{encoding} eq 'UTF8' ? "żółć 日本 😀" : 'äöü ÿ';
	$self->{entries} = [ grep { $self->_available($_) } $self->_entries ];
	$self->{nrows} = 0;
	for my $entry (@{ $self->{entries} })
	{
		my $n = @{ $entry->{values} } + 1;
		$self->{nrows} = $n if $n > $self->{nrows};
	}
	return $self;
}

sub _available
{
	my ($self, $entry) = @_;
	return 0 if $self->{version} < ($entry->{since} // 0);
	return !defined $entry->{extension} || $self->{extensions}{ $entry->{extension} };
}

# ---- what a test asks for ----

# Statements, encoded.
sub setup
{
	my ($self) = @_;
	my @sql = map { "CREATE EXTENSION $_" } sort grep { $self->{extensions}{$_} } keys %{ $self->{extensions} };
	push @sql,
	  q(CREATE TYPE mood AS ENUM ('sad', 'so so', 'say "hi"')),
	  q(CREATE DOMAIN positive AS numeric(10, 2) CHECK (VALUE > 0)),
	  q(CREATE DOMAIN pair AS int[] CHECK (cardinality(VALUE) = 2)),
	  q(CREATE DOMAIN moment AS timestamptz),
	  q(CREATE TYPE address AS (street text, "house no" int, since date, tags text[])),
	  q(CREATE DOMAIN checked_address AS address),
	  q(CREATE TABLE person (id int, gone text, home address, spent numeric)),
	  q(ALTER TABLE person DROP COLUMN gone),
	  q(CREATE TYPE float_range AS RANGE (subtype = float8)),
	  # A type of a user's, whose output function looks at DateStyle and TimeZone.
	  q(CREATE TYPE instant),
	  q(CREATE FUNCTION instant_in(cstring, oid, int4) RETURNS instant IMMUTABLE STRICT LANGUAGE internal AS 'timestamptz_in'),
	  q(CREATE FUNCTION instant_out(instant) RETURNS cstring IMMUTABLE STRICT LANGUAGE internal AS 'timestamptz_out'),
	  q(CREATE TYPE instant (INPUT = instant_in, OUTPUT = instant_out, LIKE = timestamptz));
	return map { encode('UTF-8', $_) } @sql;
}

sub view
{
	my ($self, $name) = @_;
	my @columns = ('r AS id');
	for my $entry (@{ $self->{entries} })
	{
		my $row = 0;
		my @whens = map { $row++; "WHEN $row THEN ($_->[0])::$entry->{type}" } @{ $entry->{values} };
		push @columns, "CASE r " . join(' ', @whens) . " END AS $entry->{column}";
	}
	return encode('UTF-8',
		    "SET client_encoding = 'UTF8'; CREATE VIEW $name AS SELECT "
		  . join(",\n\t", @columns)
		  . "\nFROM generate_series(1, $self->{nrows}) r");
}

sub nrows { return $_[0]->{nrows} }

sub columns
{
	my ($self) = @_;
	return ('id', map { $_->{column} } @{ $self->{entries} });
}

sub types
{
	my ($self) = @_;
	return { id => 'int', map { $_->{column} => $_->{kusto} } @{ $self->{entries} } };
}

sub expected
{
	my ($self, $column) = @_;
	return [ 1 .. $self->{nrows} ] if $column eq 'id';
	my ($entry) = grep { $_->{column} eq $column } @{ $self->{entries} };
	my @values = map { $_->[1] } @{ $entry->{values} };
	# A string cannot be null.
	push @values, $entry->{kusto} eq 'string' ? '' : undef while @values < $self->{nrows};
	return \@values;
}

# ---- the types ----

sub _entry
{
	my ($column, $type, $kusto, $values, %more) = @_;
	return { column => $column, type => $type, kusto => $kusto, values => $values, %more };
}

# For types whose values are the same text on both sides.
sub _as_text
{
	my ($column, $type, @texts) = @_;
	return _entry($column, $type, 'string', [ map { [ _quote($_), $_ ] } @texts ]);
}

sub _quote
{
	my ($text) = @_;
	$text =~ s/'/''/g;
	return $text =~ s/\\/\\\\/g ? " E'$text'" : "'$text'";
}

sub _entries
{
	my ($self) = @_;
	return (_numbers(), _times(), $self->_texts, _other_texts(), $self->_documents, _containers());
}

sub _numbers
{
	return (
		_entry('c_bool', 'bool', 'bool', [ [ 'true', $true ], [ 'false', $false ] ]),
		_entry('c_int2', 'int2', 'int', [ [ '-32768', -32768 ], [ '32767', 32767 ], [ '0', 0 ] ]),
		_entry('c_int4', 'int4', 'int', [ [ '-2147483648', -2147483648 ], [ '2147483647', 2147483647 ], [ '-1', -1 ] ]),
		_entry('c_int8', 'int8', 'long',
			[ [ '-9223372036854775808', -9223372036854775808 ], [ '9223372036854775807', 9223372036854775807 ], [ '10', 10 ] ]),
		_entry('c_oid', 'oid', 'long', [ [ '4294967295', 4294967295 ], [ '0', 0 ] ]),
		_entry('c_xid', 'xid', 'long', [ [ q('4294967295'), 4294967295 ], [ q('3'), 3 ] ]),
		_entry('c_cid', 'cid', 'long', [ [ q('4294967295'), 4294967295 ] ]),
		_entry('c_xid8', 'xid8', 'long', [ [ q('9223372036854775807'), 9223372036854775807 ], [ q('3'), 3 ] ]),
		# Shortest digits: a float4 gets those of a float4.
		_entry('c_float4', 'float4', 'real',
			[ [ '0.1', 0.1 ], [ '3.4028235e38', 3.4028235e38 ], [ '1e-45', 1e-45 ], [ '16777216', 16777216 ], [ '-0.0', 0 ] ]),
		_entry('c_float8', 'float8', 'real',
			[
				[ '0.1::float8 + 0.2::float8', 0.1 + 0.2 ],
				[ '1.7976931348623157e308', 1.7976931348623157e308 ],
				[ '2.2250738585072014e-308', 2.2250738585072014e-308 ],
				[ '1e22', 1e22 ],
				[ '-1e-7', -1e-7 ],
				[ '123456789.125', 123456789.125 ]
			]),
		# The service keeps no trailing zeros.
		_entry('c_numeric', 'numeric', 'decimal',
			[
				[ '1234567890123456789012345678901234', '1234567890123456789012345678901234' ],
				[ '-0.0000000001234567890123456789012345678901234', '-0.0000000001234567890123456789012345678901234' ],
				[ '12345678901234567.89012345678901234', '12345678901234567.89012345678901234' ],
				[ '1e30', '1' . '0' x 30 ],
				[ '1.500', '1.5' ],
				[ '-0.00', '0' ],
				[ '10000.0001', '10000.0001' ],
				[ '99999999', '99999999' ]
			]),
		_entry('c_numeric_p', 'numeric(12,4)', 'decimal', [ [ '12345678.9', '12345678.9' ], [ '-0.0001', '-0.0001' ] ]),
		_entry('c_money', 'money', 'decimal',
			[ [ '1234567.89', '1234567.89' ], [ '-0.05', '-0.05' ], [ '0', '0' ], [ '-92233720368547758.08', '-92233720368547758.08' ] ]),
		_entry('c_positive', 'positive', 'decimal', [ [ '2.5', '2.5' ] ]));
}

sub _times
{
	return (
		_entry('c_date', 'date', 'datetime',
			[
				[ q('2024-02-29'), '2024-02-29T00:00:00.0000000Z' ],
				[ q('0001-01-01'), '0001-01-01T00:00:00.0000000Z' ],
				[ q('9999-12-31'), '9999-12-31T00:00:00.0000000Z' ],
				[ q('1582-10-15'), '1582-10-15T00:00:00.0000000Z' ]
			]),
		_entry('c_timestamp', 'timestamp', 'datetime',
			[
				[ q('2024-05-25 08:20:03.123456'), '2024-05-25T08:20:03.1234560Z' ],
				[ q('0001-01-01 00:00:00'), '0001-01-01T00:00:00.0000000Z' ],
				[ q('9999-12-31 23:59:59.999999'), '9999-12-31T23:59:59.9999990Z' ],
				[ q('1969-12-31 23:59:59.999999'), '1969-12-31T23:59:59.9999990Z' ],
				[ q('1999-12-31 23:59:59.5'), '1999-12-31T23:59:59.5000000Z' ],
				[ q('2000-01-01 00:00:00.000001'), '2000-01-01T00:00:00.0000010Z' ]
			]),
		_entry('c_timestamptz', 'timestamptz', 'datetime',
			[
				[ q('2024-05-25 08:20:03.123456+05:45'), '2024-05-25T02:35:03.1234560Z' ],
				[ q('0001-01-01 00:00:00+00'), '0001-01-01T00:00:00.0000000Z' ],
				[ q('9999-12-31 23:59:59.999999+00'), '9999-12-31T23:59:59.9999990Z' ]
			]),
		_entry('c_moment', 'moment', 'datetime', [ [ q('2024-05-25 08:20:03-11'), '2024-05-25T19:20:03.0000000Z' ] ]),
		_entry('c_time', 'time', 'timespan',
			[ [ q('00:00:00'), '00:00:00' ], [ q('23:59:59.999999'), '23:59:59.9999990' ], [ q('24:00:00'), '1.00:00:00' ] ]),
		_entry('c_timetz', 'timetz', 'string',
			[
				[ q('23:59:59.999999+05:45'), '23:59:59.999999+05:45' ],
				[ q('24:00:00-12'), '24:00:00-12' ],
				[ q('01:02:03+00'), '01:02:03+00' ],
				[ q('01:02:03-01:02:03'), '01:02:03-01:02:03' ]
			]),
		_entry('c_interval', 'interval', 'timespan',
			[
				[ q('3 days 01:02:03.000004'), '3.01:02:03.0000040' ],
				[ q('-3 days -01:02:03'), '-3.01:02:03' ],
				[ q('1 day -1 second'), '23:59:59' ],
				[ q('-1 day 1 second'), '-23:59:59' ],
				[ q('0'), '00:00:00' ],
				[ q('10675199 days 02:48:05.477580'), '10675199.02:48:05.4775800' ],
				[ q('-10675199 days -02:48:05.477580'), '-10675199.02:48:05.4775800' ],
				[ q('100:00:00'), '4.04:00:00' ]
			]));
}

# Text that CSV or JSON could trip over.
sub _hard_texts
{
	my ($self) = @_;
	return ('', ' ', '"', '""', ',', 'a"b,c', "cr\rlf\ncrlf\r\nend", "\\", '\\N', 'null', "tab\t", '  blanks  ', $self->{exotic}, "'", '{}');
}

sub _texts
{
	my ($self) = @_;
	my @hard = $self->_hard_texts;
	return (
		_as_text('c_text', 'text', @hard, 'x' x 5000),
		_as_text('c_varchar', 'varchar(100)', @hard),
		_as_text('c_name', 'name', 'a"b,c', $self->{exotic}, 'x' x 63),
		_entry('c_char', 'char(4)', 'string', [ [ q('ab'), 'ab  ' ], [ q(''), '    ' ], [ q('"'), '"   ' ] ]),
		_as_text('c_chr', '"char"', 'a', '"', ''),
		{ %{ _as_text('c_citext', 'citext', 'MiXed', 'a"b', $self->{exotic}) }, extension => 'citext' },
		_as_text('c_mood', 'mood', 'sad', 'so so', 'say "hi"'),
		_as_text('c_xml', 'xml', '<a b="c">,</a>', "text $self->{exotic}"));
}

sub _other_texts
{
	return (
		_entry('c_bytea', 'bytea', 'string',
			[ [ q('\\xdeadbeef'), '3q2+7w==' ], [ q('\\x'), '' ], [ q('\\x00'), 'AA==' ], [ q('\\x5c27220a'), 'XCciCg==' ] ]),
		_entry('c_uuid', 'uuid', 'guid',
			[
				[ q('A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'), 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11' ],
				[ q('00000000-0000-0000-0000-000000000000'), '00000000-0000-0000-0000-000000000000' ]
			]),
		_as_text('c_inet', 'inet', '192.168.0.1/24', '2001:db8::1'),
		_as_text('c_cidr', 'cidr', '10.0.0.0/8'),
		_as_text('c_macaddr', 'macaddr', '08:00:2b:01:02:03'),
		_as_text('c_macaddr8', 'macaddr8', '08:00:2b:01:02:03:04:05'),
		_as_text('c_bit', 'bit(8)', '00001111'),
		_as_text('c_varbit', 'varbit', '0', ''),
		_as_text('c_tsvector', 'tsvector', q('a':1 'b,"c':2)),
		_as_text('c_tsquery', 'tsquery', q('a' & 'b')),
		_as_text('c_pg_lsn', 'pg_lsn', '16/B374D848'),
		_as_text('c_jsonpath', 'jsonpath', '$."a"[*]'),
		_as_text('c_tid', 'tid', '(1,2)'),
		_entry('c_regclass', 'regclass', 'string', [ [ q('public.person'), 'public.person' ], [ q('pg_catalog.pg_type'), 'pg_type' ] ]),
		_entry('c_regtype', 'regtype', 'string', [ [ q('pg_catalog.int4'), 'integer' ], [ q('public.mood'), 'public.mood' ] ]),
		_entry('c_regproc', 'regproc', 'string', [ [ q('pg_catalog.now'), 'now' ] ]),
		_entry('c_regoperator', 'regoperator', 'string', [ [ q('pg_catalog.=(int4,int4)'), '=(integer,integer)' ] ]),
		_entry('c_point', 'point', 'string', [ [ q('(0.1,1e300)'), '(0.1,1e+300)' ] ]),
		_entry('c_box', 'box', 'string', [ [ q('(1,1),(0.30000000000000004,0)'), '(1,1),(0.30000000000000004,0)' ] ]),
		_entry('c_circle', 'circle', 'string', [ [ q('<(0,0),0.1>'), '<(0,0),0.1>' ] ]),
		_entry('c_instant', 'instant', 'string', [ [ q('2024-05-25 08:20:03+00'), '2024-05-25 08:20:03+00' ] ]),
		{
			%{ _entry('c_cube', 'cube', 'string', [ [ q('(0.30000000000000004,2)'), '(0.30000000000000004, 2)' ] ]) },
			extension => 'cube'
		});
}

sub _documents
{
	my ($self) = @_;
	my $exotic = $self->{exotic};
	my $document = qq({"a": [1, 2.5, null, true], "b\\"": "x\\ny,\\"", "$exotic": "$exotic", "empty": {}});
	my %value = ('a' => [ 1, 2.5, undef, $true ], 'b"' => "x\ny,\"", $exotic => $exotic, 'empty' => {});
	# \u escapes beyond the server's encoding are only text in json.
	my @json = (
		[ _quote($document), \%value ],
		[ q('"text"'), 'text' ],
		[ q('12'), 12 ],
		[ q('[]'), [] ],
		[ q('null'), undef ],
		[ q('false'), $false ]);
	return (
		_entry('c_json', 'json', 'dynamic', [ @json, [ q('["\\u0041\\ud83d\\ude00"]'), [ "A\x{1F600}" ] ], [ qq('{\n"a" :\t1}'), { a => 1 } ] ]),
		_entry('c_jsonb', 'jsonb', 'dynamic', \@json),
		{
			%{
				_entry('c_hstore', 'hstore', 'dynamic',
					[ [ _quote(qq("a"=>"1", "b"=>NULL, "say \\"hi\\""=>"$exotic")), { a => '1', b => undef, 'say "hi"' => $exotic } ], [ q(''), {} ] ])
			},
			extension => 'hstore'
		},
		_entry('c_texts', 'text[]', 'dynamic',
			[
				[ 'ARRAY[' . join(', ', map { _quote($_) } $self->_hard_texts) . ', NULL]', [ $self->_hard_texts, undef ] ],
				[ q('{}'), [] ],
				[ q('[2:3][-1:0]={{a,b},{c,d}}'), [ [ 'a', 'b' ], [ 'c', 'd' ] ] ]
			]));
}

sub _containers
{
	my %address = (street => 'Main "St", 1', 'house no' => 7, since => '2020-01-31', tags => [ 'a', undef ]);
	my $address = q(ROW('Main "St", 1', 7, '2020-01-31', ARRAY['a', NULL]));
	return (
		_entry('c_ints', 'int[]', 'dynamic', [ [ q('{1,NULL,-2147483648}'), [ 1, undef, -2147483648 ] ], [ q('{{{1}},{{2}}}'), [ [ [1] ], [ [2] ] ] ] ]),
		_entry('c_floats', 'float8[]', 'dynamic', [ [ q('{0.1,-1e-7,1e22}'), [ 0.1, -1e-7, 1e22 ] ] ]),
		_entry('c_numerics', 'numeric[]', 'dynamic', [ [ q('{0.50,-3}'), [ 0.5, -3 ] ] ]),
		_entry('c_bools', 'bool[]', 'dynamic', [ [ q('{t,f,NULL}'), [ $true, $false, undef ] ] ]),
		_entry('c_timestamptzs', 'timestamptz[]', 'dynamic',
			[ [ q('{2024-05-25 08:20:03.5+05:45,NULL}'), [ '2024-05-25T02:35:03.500000Z', undef ] ] ]),
		_entry('c_intervals', 'interval[]', 'dynamic', [ [ q('{1 day 02:03:04}'), ['1.02:03:04'] ] ]),
		_entry('c_byteas', 'bytea[]', 'dynamic', [ [ q(ARRAY['\\xdeadbeef'::bytea]), ['3q2+7w=='] ] ]),
		_entry('c_uuids', 'uuid[]', 'dynamic',
			[ [ q('{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'), ['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'] ] ]),
		_entry('c_jsonbs', 'jsonb[]', 'dynamic', [ [ q(ARRAY['{"a": 1}', 'null']), [ { a => 1 }, undef ] ] ]),
		_entry('c_moods', 'mood[]', 'dynamic', [ [ q('{sad,"say \"hi\""}'), [ 'sad', 'say "hi"' ] ] ]),
		_entry('c_positives', 'positive[]', 'dynamic', [ [ q('{1.5}'), [1.5] ] ]),
		_entry('c_int2vector', 'int2vector', 'dynamic', [ [ q('1 2 3'), [ 1, 2, 3 ] ] ]),
		_entry('c_pair', 'pair', 'dynamic', [ [ q('{1,2}'), [ 1, 2 ] ] ]),
		_entry('c_address', 'address', 'dynamic',
			[ [ $address, \%address ], [ 'ROW(NULL, NULL, NULL, NULL)', { map { $_ => undef } keys %address } ] ]),
		_entry('c_checked', 'checked_address', 'dynamic', [ [ "$address\::address", \%address ] ]),
		_entry('c_addresses', 'address[]', 'dynamic', [ [ "ARRAY[$address\::address, NULL]", [ \%address, undef ] ] ]),
		_entry('c_person', 'person', 'dynamic',
			[ [ "ROW(1, $address\::address, 2.50)", { id => 1, home => \%address, spent => 2.5 } ] ]),
		_entry('c_int4range', 'int4range', 'dynamic',
			[
				[ q('[1,5]'), { lower => 1, upper => 6, bounds => '[)' } ],
				[ q('(,)'), { lower => undef, upper => undef, bounds => '()' } ],
				[ q('empty'), { empty => $true } ]
			]),
		_entry('c_numrange', 'numrange', 'dynamic', [ [ q|'(1.5,2.5]'|, { lower => 1.5, upper => 2.5, bounds => '(]' } ] ]),
		_entry('c_tstzrange', 'tstzrange', 'dynamic',
			[ [ q|'[2024-01-01 00:00+00,)'|, { lower => '2024-01-01T00:00:00Z', upper => undef, bounds => '[)' } ] ]),
		_entry('c_float_range', 'float_range', 'dynamic', [ [ q('[0.1,0.2]'), { lower => 0.1, upper => 0.2, bounds => '[]' } ] ]),
		_entry('c_multirange', 'int4multirange', 'dynamic',
			[ [ q|'{[1,3),[5,7)}'|, [ { lower => 1, upper => 3, bounds => '[)' }, { lower => 5, upper => 7, bounds => '[)' } ] ], [ q('{}'), [] ] ],
			since => 140000));
}

1;
