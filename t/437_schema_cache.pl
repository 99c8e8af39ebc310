# Columns that a Kusto table gets while its nodes still know it without them: the cache of streaming
# ingestion is cleared before the first row goes, or the rows are queued, so no value is lost. And a
# Kusto table whose columns are in another order gets nothing at all.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(literal wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.flush_interval = 0
	client_min_messages = notice
	CONF
my $front = '_op:string, _txid:long, _seq:long, _changed_at:datetime';
$kusto->config(streaming_schema_cache => JSON::PP::true);

sub capture
{
	my ($table, $create) = @_;
	return $pg->sql("SELECT kusto_capture('$table', '$db', 'k_$table', create_table => $create)");
}

sub flushed
{
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($pg->sql(q(SELECT kusto_flush('60 s'))), 't', "$_[0]: all is sent");
}

# The table's own columns, in the order of the changes.
sub landed
{
	my ($table) = @_;
	$kusto->settle;
	my $answer = $kusto->command($db, "k_$table | order by _seq asc | project-away _op, _txid, _seq, _changed_at");
	return $answer->{Tables}[0]{Rows};
}

sub cleared
{
	my ($table) = @_;
	return scalar grep { ($_->{csl} // '') =~ /^\.clear table \['\Q$table\E'\] cache streamingingestion schema$/ }
	  $kusto->log(service => 'engine', path => qr/mgmt/);
}

sub mode { return $pg->sql("SELECT last_batch_mode FROM kusto.captures WHERE table_name = 'k_$_[0]'") }

# An answer of two nodes, the second of which is not ready.
my $one_failed = {
	status => 200,
	headers => { 'Content-Type' => 'application/json' },
	body => JSON::PP->new->encode({ Tables => [ {
				TableName => 'Table_0',
				Columns => [ map { { ColumnName => $_, DataType => 'String', ColumnType => 'string' } } qw(NodeId Status) ],
				Rows => [ [ 'Node1', 'Succeeded' ], [ 'Node2', 'Failed' ] ] } ] }) };
my $clear = { service => 'engine', method => 'POST', body => 'cache streamingingestion schema' };

# ---- the worker adds the column ----

{
	$pg->sql('CREATE TABLE a (id int PRIMARY KEY, t text)');
	capture('a', 'true');
	$pg->sql(q(INSERT INTO a VALUES (1, 'x')));
	flushed('before');
	$pg->sql(q(ALTER TABLE a ADD COLUMN n int; INSERT INTO a VALUES (2, 'y', 7)));
	flushed('ADD COLUMN');
	is_deeply(landed('a'), [ [ 1, 'x', undef ], [ 2, 'y', 7 ] ], 'ADD COLUMN: the first values of the new column arrive');
	is(mode('a'), 'streaming', '... by streaming');
	is(cleared('k_a'), 2, '... after the cache was cleared, once for each shape');
	$pg->sql(q(INSERT INTO a VALUES (3, 'z', 8)));
	flushed('more');
	is(cleared('k_a'), 2, 'and not for each batch');
}

# ---- a node does not answer well ----

{
	$kusto->fault($clear, $one_failed, times => 1);
	$pg->sql(q(ALTER TABLE a ADD COLUMN m int; INSERT INTO a VALUES (4, 'a', 9, 10)));
	flushed('one node failed once');
	is_deeply(landed('a')->[3], [ 4, 'a', 9, 10 ], 'a node that failed is asked again');
	is(mode('a'), 'streaming', '... and then it is streaming still');

	$kusto->fault($clear, $one_failed, times => -1);
	$pg->sql(q(ALTER TABLE a ADD COLUMN o int; INSERT INTO a VALUES (5, 'b', 9, 10, 11)));
	flushed('a node keeps failing');
	$pg->sql(q(INSERT INTO a VALUES (6, 'c', 9, 10, 12)));
	flushed('... the next batch');
	$pg->poll(q(SELECT count(*) = 2 AND bool_and(state = 'succeeded') FROM kusto.operations WHERE table_name = 'k_a'));
	my $rows = landed('a');
	is_deeply([ @$rows[ 4, 5 ] ], [ [ 5, 'b', 9, 10, 11 ], [ 6, 'c', 9, 10, 12 ] ], 'a node that keeps failing: the values arrive');
	is(mode('a'), 'queued', '... by queued ingestion');
	$kusto->clear_faults;

	$kusto->fault($clear, { status => 403 }, times => -1);
	$pg->sql(q(CREATE TABLE b (id int PRIMARY KEY)));
	capture('b', 'true');
	$pg->sql('INSERT INTO b VALUES (1)');
	flushed('the command is refused');
	is(mode('b'), 'queued', 'a command that is refused makes it queued ingestion, too');
	$pg->poll(q(SELECT state = 'succeeded' FROM kusto.operations WHERE table_name = 'k_b'));
	is_deeply(landed('b'), [ [1] ], '... which arrives');
	$kusto->clear_faults;
}

# ---- the user adds the column ----

{
	$kusto->create_table($db, 'k_c', "$front, id:int");
	$pg->sql('CREATE TABLE c (id int PRIMARY KEY)');
	capture('c', 'false');
	$pg->sql('INSERT INTO c VALUES (1)');
	flushed('before');
	$pg->sql('ALTER TABLE c ADD COLUMN n int; INSERT INTO c VALUES (2, 7)');
	$pg->poll(q(SELECT last_error IS NOT NULL FROM kusto.captures WHERE table_name = 'k_c'));
	$kusto->command($db, '.create-merge table k_c (n:long)');
	capture('c', 'false');
	flushed('after');
	is_deeply(landed('c'), [ [ 1, undef ], [ 2, 7 ] ], 'an accepted column: its first values arrive');
	is(mode('c'), 'streaming', '... by streaming');
}

# ---- kusto_ingest ----

for my $mode (qw(streaming managed))
{
	my $call = sub { return "SELECT kusto_ingest('$_[0]', '$db', 'k_$mode', mode => '$mode', create_table => true)" };
	$pg->sql($call->('SELECT 1 AS i'));
	$pg->sql($call->('SELECT 2 AS i, 7 AS n'));
	is_deeply([ sort { $a->[0] <=> $b->[0] } @{ $kusto->rows($db, "k_$mode") } ], [ [ 1, undef ], [ 2, 7 ] ],
		"kusto_ingest, $mode, create_table: the values of a new column arrive");
	$kusto->fault($clear, $one_failed, times => -1);
	if ($mode eq 'streaming')
	{
		$pg->fails_like($call->('SELECT 3 AS i, 8 AS n, 9 AS o'), 
			{ message => qr/not all nodes of the cluster know the table's columns/, hint => qr/Try again/ }, '... or an error tells');
		is($kusto->count($db, "k_$mode"), 2, '... and nothing is sent');
	}
	else
	{
		my $id = $pg->sql($call->('SELECT 3 AS i, 8 AS n, 9 AS o'));
		$pg->ends_as($id, 'succeeded', '... or they are queued');
		is_deeply([ (grep { $_->[0] == 3 } @{ $kusto->rows($db, "k_$mode") })[0] ], [ [ 3, 8, 9 ] ], '... and arrive');
	}
	$kusto->clear_faults;
}

# ---- columns in another order ----

sub misfit_is
{
	my ($table, $columns, $details) = @_;
	$kusto->create_table($db, "k_$table", $columns);
	$pg->sql("CREATE TABLE $table (id int PRIMARY KEY, t text)");
	capture($table, 'true');
	$pg->sql("INSERT INTO $table VALUES (1, 'x')");
	$pg->poll("SELECT last_error_code IS NOT NULL FROM kusto.captures WHERE table_name = 'k_$table'");
	is($pg->sql("SELECT last_error_code, last_error, last_error_details FROM kusto.captures WHERE table_name = 'k_$table'"),
		qq(42804|the columns of Kusto table "k_$table" are not those of the row changes|$details Nothing was sent.), "$table: the error");
	like($pg->sql("SELECT last_error_hint FROM kusto.captures WHERE table_name = 'k_$table'"), qr/Rename the Kusto table/, "$table: the hint");
	is($kusto->count($db, "k_$table"), 0, "$table: nothing is sent");
	return;
}

misfit_is('swapped', "$front, t:string, id:int", 'Column 5 of the Kusto table is t:string, not id:int.');
misfit_is('between', "$front, id:int, other:long, t:string", 'Column 6 of the Kusto table is other:long, not t:string.');
misfit_is('bare', 'id:int, t:string', 'Column 1 of the Kusto table is id:int, not _op:string.');

# The user has renamed them.
$kusto->command($db, ".drop table k_$_") for qw(swapped between bare);
flushed('the tables are gone');
is_deeply(landed('swapped'), [ [ 1, 'x' ] ], 'what waited arrives in a new table');
$kusto->create_table($db, 'k_longer', "$front, id:int, t:string, theirs:long");
$pg->sql(q(CREATE TABLE longer (id int PRIMARY KEY, t text)));
capture('longer', 'true');
$pg->sql(q(INSERT INTO longer VALUES (1, 'x')));
flushed('further columns behind');
is_deeply(landed('longer'), [ [ 1, 'x', undef ] ], 'further columns behind ours do no harm');

is($pg->sql('SELECT count(*) FROM kusto.dead_letters'), 0, 'there is no dead letter');
$kusto->assert_no_violations('no value is lost');
$pg->node->stop;
done_testing();
