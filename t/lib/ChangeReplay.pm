# ChangeReplay: is what Kusto has of a table's changes what has happened to the table?
#
#   my $replay = ChangeReplay->new($pg, $kusto);
#   $replay->fetch('plain_history', $kql);          # replay.plain_history: the result, typed
#   my @problems = $replay->problems('plain', history => 'plain_history', key => ['id']);
#
# The work is done by SQL in the server under test. Besides the key the table has v, which each
# update has counted up, and tag; table audit has (relation, op, txid, row) of each change.
package ChangeReplay;

use strict;
use warnings;

use Carp;
use JSON::PP;
use KustoCluster qw(literal);
use PostgreSQL::Test::Utils;

my %postgres_type = (
	string => 'text',
	long => 'bigint',
	int => 'integer',
	real => 'float8',
	decimal => 'numeric',
	datetime => 'timestamptz',
	guid => 'uuid',
	bool => 'boolean',
	dynamic => 'jsonb');

sub new
{
	my ($class, $pg, $kusto) = @_;
	my $self = bless { pg => $pg, kusto => $kusto, files => 0 }, $class;
	# A row as jsonb without its nulls, and without the empty strings that Kusto has instead.
	$pg->sql(<<~'SQL');
		CREATE SCHEMA replay;
		CREATE FUNCTION replay.canonical(jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
			SELECT coalesce(jsonb_object_agg(key, value) FILTER (WHERE value NOT IN ('null', '""')), '{}') FROM jsonb_each($1)
		$$;
		SQL
	return $self;
}

# Runs the query and makes a table of its result, with the row itself as _row; gives the columns'
# types in Kusto, { name => type }.
sub fetch
{
	my ($self, $name, $kql) = @_;
	my $text = $self->{kusto}->command_text(KustoCluster::DATABASE, $kql);
	my ($head) = $text =~ /"Columns":(\[.*?\]),"Rows":/s or croak "not a result: " . substr $text, 0, 200;
	my $file = "$PostgreSQL::Test::Utils::tmp_check/result_" . ++$self->{files};
	append_to_file($file, $text);

	my ($i, @columns, %types) = (0);
	for my $column (@{ decode_json($head) })
	{
		my $type = $postgres_type{ $column->{ColumnType} } // croak "type $column->{ColumnType}";
		push @columns, sprintf '(r->>%d)::%s AS "%s"', $i++, $type, $column->{ColumnName};
		$types{ $column->{ColumnName} } = $column->{ColumnType};
	}
	my $columns = join ', ', @columns;
	$self->{pg}->sql(<<~"SQL");
		CREATE TABLE replay.$name AS
		SELECT h.*, replay.canonical(to_jsonb(h) - ARRAY['_op', '_txid', '_seq', '_changed_at', '_old']) AS _row
		FROM (SELECT $columns FROM jsonb_array_elements(pg_read_file(${\literal($file)})::jsonb #> '{Tables,0,Rows}') r) h;
		ANALYZE replay.$name;
		SQL
	return \%types;
}

# What is wrong with a history without duplicates, as text; nothing: it is right. mutation: SQL that
# changes it before, and is rolled back. old_values: it has the old rows, too. snapshot: it begins with
# the rows that were there, instead of with all changes.
sub problems
{
	my ($self, $relation, %options) = @_;
	my $found = $self->{pg}->sql(join ";\n", 'BEGIN', $options{mutation} // (), _problems_query($relation, %options), 'ROLLBACK');
	return split /\n/, $found;
}

sub _problems_query
{
	my ($relation, %options) = @_;
	my $key = join ', ', @{ $options{key} };
	my $old = $options{old_values} ? _old_values_query() : '';
	my $begun = $options{snapshot} ? 'AND false' : '';
	my $kinds = join ', ', map { "'$_'" } qw(insert update delete truncate), $options{snapshot} ? 'snapshot' : ();
	return <<~"SQL";
		WITH ordered AS (
			SELECT *, _seq >> 20 AS number, count(*) FILTER (WHERE _op = 'truncate') OVER (ORDER BY _seq) AS epoch
			FROM replay.$options{history}),
		step AS (
			SELECT *, lag(_op) OVER same AS last_op, lag(v) OVER same AS last_v, lag(_row) OVER same AS last_row,
				lag(_op) OVER same IS NOT NULL AND lag(_op) OVER same <> 'delete' AS is_there
			FROM ordered WHERE _op <> 'truncate'
			WINDOW same AS (PARTITION BY epoch, $key ORDER BY _seq)),
		replayed AS (
			SELECT _row FROM (SELECT DISTINCT ON ($key) * FROM step WHERE epoch = (SELECT max(epoch) FROM ordered) ORDER BY $key, _seq DESC) latest
			WHERE _op <> 'delete'),
		present AS (SELECT replay.canonical(to_jsonb(t)) AS _row FROM $relation t),
		happened AS (SELECT op AS _op, txid::text::bigint AS _txid, replay.canonical(row) AS _row FROM audit WHERE relation = '$relation'),
		told AS (SELECT _op, _txid, _row FROM ordered WHERE _op <> 'snapshot'),
		problem AS (
			SELECT 'unknown kind of change' AS what, _seq, _row FROM ordered WHERE _op NOT IN ($kinds)
			UNION ALL SELECT 'number that is there twice', _seq, NULL FROM ordered WHERE _op <> 'snapshot' GROUP BY _seq HAVING count(*) > 1
			UNION ALL SELECT 'insert of what is there', _seq, _row FROM step WHERE _op IN ('insert', 'snapshot') AND is_there
			UNION ALL SELECT 'update that is not the next one', _seq, _row FROM step WHERE _op = 'update' AND is_there AND v IS DISTINCT FROM last_v + 1
			UNION ALL SELECT 'update of what is not there', _seq, _row FROM step u WHERE _op = 'update' AND NOT is_there
				AND NOT EXISTS (SELECT FROM ordered d WHERE d._op = 'delete' AND d._txid = u._txid AND d.number = u.number AND d._seq < u._seq AND d.v = u.v - 1)
			UNION ALL SELECT 'delete of what is not there', _seq, _row FROM step WHERE _op = 'delete' AND NOT is_there
			UNION ALL SELECT 'delete of another row than is there', _seq, _row FROM step WHERE _op = 'delete' AND is_there AND _row <> last_row
			UNION ALL SELECT 'truncate with values', _seq, _row FROM ordered WHERE _op = 'truncate' AND _row <> '{}'
			UNION ALL SELECT 'row that was rolled back', _seq, _row FROM ordered WHERE tag ~ '^(ABORTED|UNDONE)'
			UNION ALL SELECT 'transaction that has not committed', min(_seq), to_jsonb(_txid) FROM ordered WHERE _op <> 'snapshot'
				GROUP BY _txid HAVING pg_xact_status(_txid::text::xid8) IS DISTINCT FROM 'committed'
			UNION ALL SELECT 'row replayed and not in the table', NULL, x._row FROM (TABLE replayed EXCEPT ALL TABLE present) x
			UNION ALL SELECT 'row in the table and not replayed', NULL, x._row FROM (TABLE present EXCEPT ALL TABLE replayed) x
			UNION ALL SELECT 'change that has not happened: ' || x._op, x._txid, x._row FROM (TABLE told EXCEPT ALL TABLE happened) x
			UNION ALL SELECT 'change that is missing: ' || x._op, x._txid, x._row FROM (TABLE happened EXCEPT ALL TABLE told) x WHERE true $begun
			$old)
		SELECT what || ' ' || coalesce(_seq::text, '') || ' ' || coalesce(left(_row::text, 300), '') FROM problem LIMIT 20
		SQL
}

# An update has the row that was there; of a changed key, the row that the delete has.
sub _old_values_query
{
	return <<~'SQL';
		UNION ALL SELECT 'old values that are not those of the row before', _seq, _old FROM step
			WHERE _op IN ('update', 'delete') AND is_there AND _old IS NOT NULL AND replay.canonical(_old) <> last_row
		UNION ALL SELECT 'update without old values', _seq, _row FROM step WHERE _op = 'update' AND is_there AND _old IS NULL
		UNION ALL SELECT 'insert with old values', _seq, _old FROM step WHERE _op IN ('insert') AND _old IS NOT NULL
		SQL
}

# Rows of a result against those of the table.
sub state_problems
{
	my ($self, $relation, $state) = @_;
	return split /\n/, $self->{pg}->sql(<<~"SQL");
		WITH present AS (SELECT replay.canonical(to_jsonb(t)) AS _row FROM $relation t),
		shown AS (SELECT _row FROM replay.$state)
		SELECT 'row in the view and not in the table: ' || left(x._row::text, 300) FROM (TABLE shown EXCEPT ALL TABLE present) x
		UNION ALL
		SELECT 'row in the table and not in the view: ' || left(x._row::text, 300) FROM (TABLE present EXCEPT ALL TABLE shown) x
		LIMIT 20
		SQL
}

# Rows as Kusto has them: how many are repeated, and how many of those are not repeated alike.
sub repetitions
{
	my ($self, $raw) = @_;
	return split /\|/, $self->{pg}->sql(<<~"SQL");
		SELECT coalesce(sum(n - 1), 0), coalesce(sum((forms > 1)::int), 0)
		FROM (SELECT count(*) AS n, count(DISTINCT to_jsonb(r)) AS forms FROM replay.$raw r WHERE _op <> 'snapshot' GROUP BY _seq) g
		SQL
}

1;
