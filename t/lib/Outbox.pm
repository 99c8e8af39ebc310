# Outbox: row changes put into the outbox by hand, as the triggers write them, for tests of what is
# sent. So a test decides which rows are in which chunk, transaction and shape.
#
#   my $outbox = Outbox->new($pg);
#   my $id = $outbox->capture('orders');            # PostgreSQL's table, Kusto's Orders, and the capture
#   $outbox->change($id, rows => 3);                # one transaction; the rows' numbers go on
#   $outbox->arrives($id, 'three rows');            # Kusto has all that was written, in order
#
# Nobody wakes the worker: it looks every naptime, and kusto_flush() wakes it.
package Outbox;

use strict;
use warnings;

use Carp;
use JSON::PP;
use KustoCluster qw(literal wait_until);
use Test::More;

use constant COLUMNS => '_op:string, _txid:long, _seq:long, _changed_at:datetime';

sub new
{
	my ($class, $pg) = @_;
	$pg->sql(<<~'SQL');
		CREATE FUNCTION put_chunk(capture integer, first bigint, n bigint, text text, shape bigint, more text) RETURNS void LANGUAGE plpgsql AS $$
		DECLARE
			number bigint := nextval('kusto.change_number');
			csv text;
		BEGIN
			SELECT string_agg(format(E'"insert",%s,%s,%s,%s,"%s"%s\n', pg_current_xact_id(), (number << 20) + i - first,
				to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), i, text, more), '' ORDER BY i)
			INTO csv FROM generate_series(first, first + n - 1) i;
			EXECUTE format('INSERT INTO kusto.outbox_%s (txid, seq, shape, changed_at, capture, rows, data) VALUES (pg_current_xact_id(), $1, $2, clock_timestamp(), $3, $4, $5)', number / 8192 % 3)
			USING number << 20, shape, capture, n, convert_to(csv, 'UTF8');
		END
		$$
		SQL
	return bless { pg => $pg, captures => {} }, $class;
}

# Options: kusto (text of the Kusto table's columns behind the first four; undef: there is none),
# create_table, accepted, server, snapshot (an operation's id), foreign.
sub capture
{
	my ($self, $name, %options) = @_;
	my $pg = $self->{pg};
	my $db = KustoCluster::DATABASE;
	my $server = $options{server} // 'adx';
	my $kusto = $options{service} // $pg->kusto;
	my $table = ucfirst $name;
	my $columns = exists $options{kusto} ? $options{kusto} : 'i:long, t:string';
	$pg->sql("CREATE TABLE $name (i bigint, t text)");
	$kusto->create_table($db, $table, COLUMNS . ", $columns") if defined $columns;
	my $create = $options{create_table} ? 'true' : 'false';
	my $snapshot = $options{snapshot} ? literal($options{snapshot}) . ', 1' : 'NULL, NULL';
	my $oid = $options{foreign} ? 0 : '(SELECT oid FROM pg_database WHERE datname = current_database())';
	my $id = $pg->sql(<<~"SQL");
		INSERT INTO kusto.capture (relation, relation_name, owner, server, database, table_name, old_values,
			create_table, on_type_error, created_at, snapshot_operation, snapshot_seq, system_identifier, database_oid)
		SELECT '$name'::regclass, '$name', (SELECT oid FROM pg_roles WHERE rolname = current_user), '$server', '$db',
			'$table', false, $create, 'error', now(), $snapshot, system_identifier, $oid
		FROM pg_control_system() RETURNING id
		SQL
	$self->{captures}{$id} = { name => $name, table => $table, service => $kusto, next => 1, rows => [] };
	$self->shape($id, 1, '[{"name": "i", "type": "long", "attnum": 1}, {"name": "t", "type": "string", "attnum": 2}]',
		$options{accepted} // 1);
	return $id;
}

sub shape
{
	my ($self, $id, $shape, $columns, $accepted) = @_;
	my $yes = $accepted ? 'true' : 'false';
	$self->{pg}->sql("INSERT INTO kusto.capture_shape (capture, shape, columns, created_at, accepted)"
		. " VALUES ($id, $shape, '$columns', now(), $yes)");
	return;
}

# The statement that writes one chunk; it is to be run once. Options: rows (1), text, shape (1),
# more (further fields of each row).
sub statement
{
	my ($self, $id, %options) = @_;
	my $capture = $self->{captures}{$id};
	my $n = $options{rows} // 1;
	my $first = $capture->{next};
	$capture->{next} += $n;
	push @{ $capture->{rows} }, $first .. $first + $n - 1;
	return sprintf "SELECT put_chunk(%d, %d, %d, '%s', %d, '%s')", $id, $first, $n, $options{text} // 'x',
	  $options{shape} // 1, $options{more} // '';
}

# One transaction with one chunk.
sub change
{
	my ($self, $id, %options) = @_;
	$self->{pg}->sql($self->statement($id, %options));
	return;
}

# What was written is not to arrive, or in another way.
sub forget
{
	my ($self, $id) = @_;
	return splice @{ $self->{captures}{$id}{rows} };
}

# Kusto's rows of the capture, as they were ingested: the values of column i, or another.
sub landed
{
	my ($self, $id, $column) = @_;
	my $capture = $self->{captures}{$id};
	my $answer = $capture->{service}->command(KustoCluster::DATABASE, "$capture->{table} | project " . ($column // 'i'));
	return map { $_->[0] } @{ $answer->{Tables}[0]{Rows} };
}

# Waits until so many rows are there as were written, and tests that they are these, once, in order.
# unordered: batches have gone in different ways.
sub arrives
{
	my ($self, $id, $name, %options) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $capture = $self->{captures}{$id};
	my $expected = @{ $capture->{rows} };
	my $there = eval {
		wait_until(sub { $self->count($id) >= $expected }, $name, 60);
		1;
	};
	my @landed = $there ? $self->landed($id) : ();
	@landed = sort { $a <=> $b } @landed if $options{unordered};
	return is_deeply(\@landed, $capture->{rows}, $name)
	  || diag explain $@, $self->mark($id), $self->{pg}->recent_requests;
}

# The last mark, as a hash; empty when there is none.
sub mark
{
	my ($self, $id) = @_;
	my $json = $self->{pg}->sql(<<~"SQL");
		SELECT convert_from(data, 'UTF8') FROM (SELECT * FROM kusto.outbox_0 UNION ALL SELECT * FROM kusto.outbox_1
			UNION ALL SELECT * FROM kusto.outbox_2) o WHERE capture = -$id ORDER BY txid DESC, seq DESC LIMIT 1
		SQL
	return $json eq '' ? {} : JSON::PP->new->decode($json);
}

# Waits until a member of the mark is like that; undef: until it is not there.
sub mark_is
{
	my ($self, $id, $member, $expected, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $mark;
	my $found = eval {
		wait_until(sub {
			$mark = $self->mark($id);
			my $value = $mark->{$member};
			return defined $expected ? defined $value && $value =~ $expected : !defined $value;
		}, $name, 60);
		1;
	};
	ok($found, $name) or diag explain $mark;
	return $mark;
}

sub flush
{
	my ($self, $timeout) = @_;
	return $self->{pg}->sql('SELECT kusto_flush(' . literal($timeout // '60 s') . ')');
}

# How many rows Kusto has; 0 also when it does not have the table.
sub count
{
	my ($self, $id) = @_;
	my $capture = $self->{captures}{$id};
	return eval { $capture->{service}->count(KustoCluster::DATABASE, $capture->{table}) } // 0;
}

# How many requests of streaming ingestion the capture's table has had.
sub streamed
{
	my ($self, $id) = @_;
	my $capture = $self->{captures}{$id};
	my @requests = $capture->{service}->log(service => 'engine', method => 'POST', path => qr{/ingest/[^/]+/$capture->{table}\b});
	return scalar @requests;
}

1;
