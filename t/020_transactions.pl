# What a transaction does not commit never reaches Kusto, and what it commits does: savepoints,
# errors, lost connections, two-phase commit, and what a query sees of its own transaction.
use strict;
use warnings;

use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto);
my $db = KustoCluster::DATABASE;

sub call { return 'SELECT ' . $pg->ingest_call(@_) }

# One table a case: what has arrived there tells which of its exports were committed.
sub fresh_table
{
	my ($table) = @_;
	$kusto->create_table($db, $table, 'i:int');
	return $table;
}

# An export that was committed later has arrived: whatever was to come before it would be there.
sub arrived_are
{
	my ($table, $values, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$pg->succeeds($pg->ingest('SELECT 99 AS i', $table), "$name: a later export arrives");
	$kusto->settle;
	KustoCluster::same_rows($kusto->rows($db, $table), [ map { [$_] } @$values, 99 ], $name);
	return;
}

# Nothing tells of an export that did not happen, and no message was posted for it.
sub left_nothing
{
	my ($ids, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $list = join ', ', map { "'$_'" } @$ids;
	is($pg->sql("SELECT count(*) FROM kusto.operations WHERE id IN ($list)"), 0, "$name: no operation");
	is($pg->sql("SELECT count(*) FROM kusto.blobs WHERE operation_id IN ($list)"), 0, "$name: no blob");
	my @posted = grep { my $text = JSON::PP->new->encode($_); grep { $text =~ /\Q$_\E/ } @$ids } @{ $kusto->messages };
	is(scalar @posted, 0, "$name: no message");
	return;
}

# ---- the end of a transaction ----

my $session = $pg->session;
my $table = fresh_table('Ends');

$session->sql('BEGIN');
my $id = $session->sql(call('SELECT 1 AS i', $table));
is($session->sql("SELECT state FROM kusto.operations WHERE id = '$id'"), 'staged', 'the transaction sees its operation');
is($pg->operation($id), undef, 'nobody else does');
ok((grep { $_->{service} eq 'blob' && $_->{method} eq 'PUT' } $kusto->log), 'its blob is uploaded already');
$session->sql('ROLLBACK');

$session->sql('BEGIN');
my $failed = $session->sql(call('SELECT 2 AS i', $table));
$session->fails('SELECT 1/0');
$session->sql('COMMIT');

my $lost_session = $pg->session;
$lost_session->sql('BEGIN');
my $lost = $lost_session->sql(call('SELECT 3 AS i', $table));
my $pid = $lost_session->pid;
$pg->sql("SELECT pg_terminate_backend($pid)");
$pg->poll("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $pid)");

$session->sql('BEGIN');
my $committed = $session->sql(call('SELECT 4 AS i', $table));
$session->sql('COMMIT');
$pg->succeeds($committed, 'COMMIT sends');

arrived_are($table, [4], 'only what was committed arrives');
left_nothing([ $id, $failed, $lost ], 'ROLLBACK, an error and a lost connection');

# ---- savepoints ----

$table = fresh_table('Savepoints');
$session->sql('BEGIN');
$session->sql(call('SELECT 1 AS i', $table));
$session->sql('SAVEPOINT a');
my $undone = $session->sql(call('SELECT 2 AS i', $table));
$session->sql('SAVEPOINT b');
my $undone_too = $session->sql(call('SELECT 3 AS i', $table));
$session->sql('RELEASE b');
$session->sql('ROLLBACK TO a');
$session->sql(call('SELECT 4 AS i', $table));
$session->sql('SAVEPOINT c');
$session->sql(call('SELECT 5 AS i', $table));
$session->sql('RELEASE c');
$session->sql(<<~"SQL");
	DO \$\$
	BEGIN
		PERFORM kusto_ingest('SELECT 6 AS i', '$db', '$table');
		RAISE EXCEPTION 'after the call';
	EXCEPTION WHEN raise_exception THEN
		PERFORM kusto_ingest('SELECT 7 AS i', '$db', '$table');
	END
	\$\$
	SQL
$session->sql('COMMIT');
arrived_are($table, [ 1, 4, 5, 7 ], 'savepoints');
left_nothing([ $undone, $undone_too ], 'ROLLBACK TO');

# ---- two-phase commit ----

$table = fresh_table('Prepared');
$session->sql('BEGIN');
my $prepared = $session->sql(call('SELECT 1 AS i', $table));
$session->sql(q(PREPARE TRANSACTION 'yes'));
$session->sql('BEGIN');
my $forgotten = $session->sql(call('SELECT 2 AS i', $table));
$session->sql(q(PREPARE TRANSACTION 'no'));
is($pg->operation($prepared), undef, 'a prepared transaction has sent nothing');
my $worker = q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker');
is($pg->sql($worker), 1, 'a worker runs for the prepared transaction');
$pg->sql(q(ROLLBACK PREPARED 'no'));

# From another session, so that no callback of ours announces it.
$pg->sql(q(COMMIT PREPARED 'yes'));
$pg->succeeds($prepared, 'COMMIT PREPARED sends');
arrived_are($table, [1], 'two-phase commit');
left_nothing([$forgotten], 'ROLLBACK PREPARED');

# ---- asking in the same transaction ----

$table = fresh_table('Waiting');
$session->sql('BEGIN');
$id = $session->sql(call('SELECT 1 AS i', $table));
my $error = $session->fails("SELECT kusto_wait('$id')");
$pg->error_is($error, { sqlstate => '55000', message => qr/current transaction/, hint => qr/COMMIT first/ },
	'waiting for an uncommitted operation is an error');
$session->sql('ROLLBACK');
$pg->fails_like("SELECT kusto_wait('$id')", { sqlstate => '42704', message => qr/does not exist/ },
	'an operation that was rolled back does not exist');
$session->sql('BEGIN ISOLATION LEVEL REPEATABLE READ');
$session->sql('SELECT 1');
$id = $pg->ingest('SELECT 1 AS i', $table);
is($session->sql("SELECT kusto_wait('$id', '60 s')"), 'succeeded', 'waiting sees the end, also in REPEATABLE READ');
$session->sql('COMMIT');

# ---- what the query sees, and does ----

$pg->sql('CREATE TABLE source AS SELECT i FROM generate_series(1, 5) i');
$table = fresh_table('Own');
$session->sql('BEGIN');
$session->sql('INSERT INTO source VALUES (6); DELETE FROM source WHERE i = 1');
$session->sql(call('TABLE source', $table));
$session->sql('COMMIT');
arrived_are($table, [ 2 .. 6 ], 'the query sees its own transaction');

$table = fresh_table('Deleted');
$session->sql('BEGIN');
$session->sql(call('DELETE FROM source WHERE i < 4 RETURNING i', $table));
$session->sql('ROLLBACK');
is($pg->sql('SELECT count(*) FROM source'), 5, 'DELETE ... RETURNING is rolled back');
$session->sql(call('DELETE FROM source WHERE i < 4 RETURNING i', $table));
is($pg->sql(q(SELECT string_agg(i::text, ',' ORDER BY i) FROM source)), '4,5,6', 'DELETE ... RETURNING deletes');
arrived_are($table, [ 2, 3 ], 'DELETE ... RETURNING sends what it deletes');

# ---- no rows ----

sub uploads { return scalar(grep { $_->{service} =~ /^(?:blob|queue)$/ && $_->{method} =~ /^P/ } $kusto->log) }
my $uploads = uploads();
$id = $pg->ingest('SELECT 1 AS i WHERE false', 'NoSuchTable');
my $operation = $pg->operation($id);
is($operation->{state}, 'succeeded', 'no rows are a success');
is($operation->{blobs}, 0, 'no rows: no blob');
isnt($operation->{finished_at}, undef, 'no rows: finished at once');
is(uploads(), $uploads, 'no rows: nothing is uploaded');
$pg->succeeds($pg->ingest('SELECT 1 AS i WHERE false', 'Empty', create_table => 'true'),
	'no rows and a table to create');
is($kusto->count($db, 'Empty'), 0, 'the table is created all the same');

# A rollback leaves no table either.
$session->sql('BEGIN');
$session->sql(call('SELECT 1 AS i', 'NeverMade', create_table => 'true'));
$session->sql('ROLLBACK');
arrived_are('Ends', [ 4, 99 ], 'and later exports go on');
is(scalar(grep { ($_->{csl} // '') =~ /NeverMade/ } $kusto->log), 0, 'a rollback leaves no table');

# ---- CALL ----

$table = fresh_table('Called');
$pg->sql("CALL kusto_ingest_and_wait('SELECT 1 AS i', '$db', '$table')");
KustoCluster::same_rows($kusto->rows($db, $table), [ [1] ], 'CALL returns when the rows are there');
$error = $pg->fails("CALL kusto_ingest_and_wait('SELECT 1 AS i', '$db', 'NoSuchTable')");
like($error->{text}, qr/NoSuchTable/, 'CALL fails when Kusto fails');
$session->sql('BEGIN');
$pg->error_is($session->fails("CALL kusto_ingest_and_wait('SELECT 1 AS i', '$db', '$table')"),
	{ sqlstate => '2D000' }, 'CALL in a transaction block is an error');
$session->sql('ROLLBACK');

$session->quit;
$lost_session->quit;
$kusto->assert_no_violations;
done_testing();
