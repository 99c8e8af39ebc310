# OutboxRows: what triggers have written into the outbox, read from its tables, without Kusto.
#
#   my $outbox = OutboxRows->new($pg);                 # a server "adx" whose service nobody is
#   $pg->sql('CREATE TRIGGER ... ON t ... ' . OutboxRows::function('T'));
#   is_deeply([ $outbox->changes('T') ], [ 'insert|1|a' ]);   # what is new, by _seq
#
# The worker runs and has no service to send to, so that all rows stay in the outbox.
package OutboxRows;

use strict;
use warnings;

use Carp;
use KustoCluster qw(literal);

use constant TABLES => '(SELECT * FROM kusto.outbox_0 UNION ALL SELECT * FROM kusto.outbox_1 UNION ALL SELECT * FROM kusto.outbox_2)';

sub new
{
	my ($class, $pg) = @_;
	# Nobody listens on this port of the loopback interface.
	$pg->sql(<<~'SQL');
		CREATE SERVER adx FOREIGN DATA WRAPPER kusto OPTIONS (query_uri 'http://127.0.0.1:9', ingest_uri 'http://127.0.0.1:9');
		CREATE USER MAPPING FOR PUBLIC SERVER adx OPTIONS (auth 'none');
		SQL
	return bless { pg => $pg, seen => {} }, $class;
}

# The end of CREATE TRIGGER.
sub function
{
	my ($table, @options) = @_;
	my $arguments = join ', ', map { literal($_) } KustoCluster::DATABASE, $table, @options ? ('', @options) : ();
	return "EXECUTE FUNCTION kusto_capture_changes($arguments)";
}

# Statements that create triggers for each statement of all kinds, to Kusto's table. Options as of the trigger.
sub triggers
{
	my ($relation, $table, @options) = @_;
	my $function = function($table, @options);
	return <<~"SQL";
		CREATE TRIGGER "Kusto_insert" AFTER INSERT ON $relation REFERENCING NEW TABLE AS n FOR EACH STATEMENT $function;
		CREATE TRIGGER "Kusto_update" AFTER UPDATE ON $relation REFERENCING OLD TABLE AS o NEW TABLE AS n FOR EACH STATEMENT $function;
		CREATE TRIGGER "Kusto_delete" AFTER DELETE ON $relation REFERENCING OLD TABLE AS o FOR EACH STATEMENT $function;
		CREATE TRIGGER "Kusto_truncate" AFTER TRUNCATE ON $relation FOR EACH STATEMENT $function;
		SQL
}

# The same for each row, but for TRUNCATE.
sub row_triggers
{
	my ($relation, $table, @options) = @_;
	my $function = function($table, @options);
	return <<~"SQL";
		CREATE TRIGGER "Kusto_row" AFTER INSERT OR UPDATE OR DELETE ON $relation FOR EACH ROW $function;
		CREATE TRIGGER "Kusto_truncate" AFTER TRUNCATE ON $relation FOR EACH STATEMENT $function;
		SQL
}

# Chunks to a Kusto table as hashes: txid, seq, shape, changed_at, rows, data.
sub chunks
{
	my ($self, $table, %options) = @_;
	my $name = literal($table);
	my $text = $self->{pg}->sql(<<~"SQL", %options);
		SELECT txid, seq, shape, changed_at, rows, encode(data, 'hex')
		FROM @{[ TABLES ]} o WHERE capture IN (SELECT id FROM kusto.capture WHERE table_name = $name) ORDER BY txid, seq
		SQL
	my @chunks;
	for my $line (split /\n/, $text)
	{
		my %chunk;
		@chunk{qw(txid seq shape changed_at rows data)} = split /\|/, $line;
		$chunk{data} = pack 'H*', $chunk{data};
		push @chunks, \%chunk;
	}
	return @chunks;
}

# RFC 4180: rows of fields; null: nothing between the commas.
sub parse_csv
{
	my ($text) = @_;
	my (@rows, @fields);
	while ($text =~ /\G(?:"([^"]*(?:""[^"]*)*)"|([^",\n]*))(,|\n)/gc)
	{
		my ($quoted, $plain, $end) = ($1, $2, $3);
		$quoted =~ s/""/"/g if defined $quoted;
		push @fields, $quoted // ($plain eq '' ? undef : $plain);
		next if $end eq ',';
		push @rows, [@fields];
		@fields = ();
	}
	croak 'no CSV: ' . substr $text, pos($text) // 0, 200 unless (pos($text) // 0) == length $text && !@fields;
	return @rows;
}

# All rows to a Kusto table by _seq: arrays of fields, _op, _txid, _seq and _changed_at in front.
# What chunks say of themselves is checked.
sub rows
{
	my ($self, $table, %options) = @_;
	my @rows;
	for my $chunk ($self->chunks($table, %options))
	{
		my @of_chunk = parse_csv($chunk->{data});
		croak "a chunk of $table has not $chunk->{rows} rows" unless @of_chunk == $chunk->{rows};
		croak "a chunk of $table has another number than its first row" unless $of_chunk[0][2] == $chunk->{seq};
		for my $row (@of_chunk)
		{
			croak "a row of $table is of transaction $row->[1], its chunk of $chunk->{txid}" unless $row->[1] == $chunk->{txid};
			croak "_changed_at is $row->[3]" unless $row->[3] =~ /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z$/;
		}
		push @rows, @of_chunk;
	}
	@rows = sort { $a->[2] <=> $b->[2] } @rows;
	$rows[$_][2] == $rows[ $_ - 1 ][2] and croak "_seq $rows[$_][2] of $table stands twice" for 1 .. $#rows;
	return @rows;
}

# Rows that this has not given before, by _seq: 'op|field|...', without the columns in front.
sub changes
{
	my ($self, $table, %options) = @_;
	my $seen = $self->{seen}{$table} //= {};
	my @new = grep { !$seen->{ $_->[2] }++ } $self->rows($table, %options);
	return map { my @fields = @$_; join '|', map { $_ // '' } @fields[ 0, 4 .. $#fields ] } @new;
}

1;
