# RowChanges: what Kusto has of the changes of a captured table, and whether it is what the table went
# through.
#
#   my $changes = RowChanges->new($pg, $kusto);
#   $changes->capture('orders', 'Orders', old_values => 'true');   # of kusto_capture(); makes the Kusto table
#   ...
#   $changes->ops_are('Orders', [ 'insert 1', 'update 1' ], 'name', 'id');    # kinds and keys, in order
#   $changes->replays('orders', 'Orders', [ 'id' ], 'name');       # replayed, they give the table's rows
#
# All tables are in KustoCluster::DATABASE.
package RowChanges;

use strict;
use warnings;

use Carp;
use JSON::PP;
use KustoCluster qw(literal wait_until);
use Test::More;

my $json = JSON::PP->new->canonical->allow_nonref->allow_blessed->convert_blessed;

sub new
{
	my ($class, $pg, $kusto) = @_;
	return bless { pg => $pg, kusto => $kusto }, $class;
}

# The arguments by name are SQL expressions; relation is as in a query. Options come first: dbname, user.
sub capture
{
	my ($self, @arguments) = @_;
	my %options = ref $arguments[0] ? %{ shift @arguments } : ();
	my ($relation, $table, %named) = @arguments;
	%named = (create_table => 'true', %named);
	my @list = (literal($relation) . '::regclass', literal(KustoCluster::DATABASE), literal($table));
	push @list, map { "$_ => $named{$_}" } sort keys %named;
	return $self->{pg}->sql('SELECT kusto_capture(' . join(', ', @list) . ')', %options);
}

# Until all that was committed before is in Kusto, whichever way it goes.
sub settle
{
	my ($self, %options) = @_;
	my $flushed = $self->{pg}->sql(q(SELECT kusto_flush('60 s')), %options);
	croak 'the changes are not sent within a minute' unless $flushed eq 't';
	wait_until(sub { $self->{pg}->sql('SELECT count(*) FROM kusto.operations WHERE finished_at IS NULL', %options) eq '0' },
		'exports of changes end');
	$self->{kusto}->settle;
	return;
}

# By _seq, each once: { op, txid, seq, changed_at, old, row }; row and old are without what is empty.
sub history
{
	my ($self, $table) = @_;
	my $result = eval { $self->{kusto}->_call('GET', '/rows', { db => KustoCluster::DATABASE, table => $table }) };
	# It is made with the first batch.
	return () if !$result && $@ =~ /EntityNotFound/;
	croak $@ unless $result;
	my @names = map { ref $_ ? $_->{name} : $_ } @{ $result->{columns} };
	my (%by_seq, @history);
	for my $values (@{ $result->{rows} })
	{
		my %row;
		@row{@names} = @$values;
		my $seq = "$row{_seq}";
		if (my $other = $by_seq{$seq})
		{
			croak "two changes of $table have the number $seq" if $json->encode($other) ne $json->encode(\%row);
			next;
		}
		$by_seq{$seq} = \%row;
	}
	for my $seq (sort { $a <=> $b } keys %by_seq)
	{
		my %row = %{ $by_seq{$seq} };
		my %change = (seq => $seq);
		$change{$_} = delete $row{"_$_"} for qw(op txid changed_at old);
		delete $row{_seq};
		$change{row} = _without_empty(\%row);
		push @history, \%change;
	}
	return @history;
}

# Kusto's strings are never null.
sub _without_empty
{
	my ($row) = @_;
	return { map { $_ => $row->{$_} } grep { defined $row->{$_} && !(!ref $row->{$_} && $row->{$_} eq '') } keys %$row };
}

# 'update 1/x' for each change, in order, with the columns that are named.
sub ops
{
	my ($self, $table, @columns) = @_;
	return [ map {
		my $change = $_;
		join ' ', $change->{op}, join('/', map { my $v = $change->{row}{$_} // 'null'; ref $v ? $json->encode($v) : $v } @columns) || ()
	} $self->history($table) ];
}

sub ops_are
{
	my ($self, $table, $expected, $name, @columns) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$self->settle;
	return is_deeply($self->ops($table, @columns), $expected, $name) || diag explain $self->ops($table, @columns);
}

# The rows that the changes leave, as JSON, in any order.
sub replayed
{
	my ($self, $table, @key) = @_;
	my %rows;
	for my $change ($self->history($table))
	{
		my $key = join "\0", map { $json->encode($change->{row}{$_}) } @key;
		if ($change->{op} eq 'truncate') { %rows = () }
		elsif ($change->{op} eq 'delete') { delete $rows{$key} // croak "$table: delete of a row that is not there: $key" }
		elsif ($change->{op} =~ /^(?:insert|snapshot)$/ && exists $rows{$key}) { croak "$table: insert of a row that is there: $key" }
		else { $rows{$key} = $json->encode($change->{row}) }
	}
	return [ sort values %rows ];
}

# A column's values as Kusto shows them.
sub _projection
{
	my ($name, $type) = @_;
	my $column = '"' . $name =~ s/"/""/gr . '"';
	my %form = (
		numeric => "trim_scale($column)::text",
		'timestamp with time zone' => qq{to_char($column AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"0Z"')},
		'timestamp without time zone' => qq{to_char($column, 'YYYY-MM-DD"T"HH24:MI:SS.US"0Z"')},
		date => qq{to_char($column, 'YYYY-MM-DD"T00:00:00.0000000Z"')},
		bytea => "translate(encode($column, 'base64'), E'\\n', '')");
	my $as_is = $type =~ /^(?:smallint|integer|bigint|double precision|boolean|jsonb?)$|\[\]$/;
	return ($form{$type} // ($as_is ? "to_jsonb($column)" : "$column\::text")) . " AS $column";
}

# The table's rows, in the same form.
sub present
{
	my ($self, $relation, %options) = @_;
	my $regclass = literal($relation);
	my $columns = $self->{pg}->sql(<<~"SQL", %options);
		SELECT json_agg(json_build_array(attname, format_type(atttypid, NULL)) ORDER BY attnum)
		FROM pg_attribute WHERE attrelid = $regclass\::regclass AND attnum > 0 AND NOT attisdropped
		SQL
	my @projections = map { _projection(@$_) } @{ JSON::PP->new->utf8->decode($columns) };
	my $rows = $self->{pg}->sql('SELECT coalesce(json_agg(r), $$[]$$) FROM (SELECT ' . join(', ', @projections) . " FROM $relation) r", %options);
	return [ sort map { $json->encode(_without_empty($_)) } @{ JSON::PP->new->utf8->decode($rows) } ];
}

sub replays
{
	my ($self, $relation, $table, $key, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$self->settle(%options);
	my $replayed = eval { $self->replayed($table, @$key) };
	return ok(0, $name) || diag $@ unless defined $replayed;
	my $present = $self->present($relation, %options);
	return is_deeply($replayed, $present, "$name: replayed, the changes give the " . @$present . ' rows of the table');
}

1;
