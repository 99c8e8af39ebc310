# Row changes from the outbox to Kusto: batches and their order, what delays them and what does not,
# the ways they go, and what becomes of those that Kusto will not take.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(wait_until elapsed);
use KustoLocal;
use Outbox;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $other = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.flush_interval = 0
	kusto_ingest.naptime = 200ms
	CONF
$pg->connect_to($other, name => 'other');
my $outbox = Outbox->new($pg);
my $db = KustoCluster::DATABASE;

my $refusal = {
	status => 400,
	headers => { 'Content-Type' => 'application/json' },
	body => JSON::PP->new->encode({
			error => {
				code => 'BadRequest',
				message => 'Request is invalid and cannot be executed.',
				'@type' => 'Kusto.DataNode.Exceptions.StreamingIngestionRequestException',
				'@message' => 'Bad streaming ingestion request: Stream_WrongNumberOfFields',
				'@permanent' => JSON::PP::true
			} }) };

sub set_interval
{
	my ($interval) = @_;
	$pg->set_config('kusto_ingest.flush_interval' => $interval);
	# The worker reads the file when it has been told, and then looks.
	$pg->poll("SELECT current_setting('kusto_ingest.flush_interval') = '$interval'");
	return;
}

sub operations
{
	my ($table) = @_;
	return $pg->sql(<<~"SQL");
		SELECT coalesce(string_agg(format('%s %s %s rows %s', source, mode, rows, state), E'\\n' ORDER BY created_at), '')
		FROM kusto.operations WHERE table_name = '$table'
		SQL
}

sub log_count
{
	my ($pattern) = @_;
	my @found = slurp_file($pg->node->logfile) =~ /$pattern/g;
	return scalar @found;
}

# ---- small batches are streamed ----

{
	my $id = $outbox->capture('small');
	$outbox->change($id, rows => 3);
	is($outbox->flush, 't', 'kusto_flush says that all is sent');
	$outbox->arrives($id, 'a transaction arrives');
	$outbox->change($id) for 1 .. 20;
	$outbox->arrives($id, 'twenty transactions arrive in order');
	my $mark = $outbox->mark_is($id, rows => qr/^23$/, 'the mark counts the rows');
	is($mark->{batch_mode}, 'streaming', 'they were streamed');
	is(operations('Small'), '', 'without an operation');
	$pg->sql('BEGIN; ' . $outbox->statement($id) . '; ROLLBACK');
	pop @{ $outbox->{captures}{$id}{rows} };
	$outbox->change($id);
	$outbox->arrives($id, 'what is rolled back does not arrive');
}

# Which transaction commits first decides, not which began first; none is lost.
{
	my $id = $outbox->capture('crossing');
	my $early = $pg->session;
	$early->sql('BEGIN; ' . $outbox->statement($id));
	$outbox->change($id);
	wait_until(sub { $outbox->count($id) == 1 }, 'the later transaction arrives first');
	pass('a transaction that goes on does not hold up another');
	is($outbox->flush('10 s'), 't', 'nor kusto_flush');
	$early->sql('COMMIT');
	$outbox->arrives($id, 'it arrives when it commits', unordered => 1);
	$early->quit;
}

# A reader with an old snapshot, and a prepared transaction, which nobody announces.
{
	my $id = $outbox->capture('prepared');
	$pg->sql('BEGIN; ' . $outbox->statement($id) . "; PREPARE TRANSACTION 'p'");
	$outbox->change($id);
	wait_until(sub { $outbox->count($id) == 1 }, 'the other arrives');
	$pg->sql("COMMIT PREPARED 'p'");
	$outbox->arrives($id, 'COMMIT PREPARED is found', unordered => 1);
}

# What kusto_flush speaks of is what had committed before the call.
{
	my $id = $outbox->capture('flushed');
	my $session = $pg->session;
	$session->sql('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	$outbox->change($id, rows => 2);
	is($session->sql('SELECT kusto_flush()'), 't', 'also under REPEATABLE READ');
	is($outbox->count($id), 2, 'what has committed since the snapshot was taken is sent');
	is($session->sql($outbox->statement($id) . '; SELECT kusto_flush()'), "\nt", 'its own rows are not waited for');
	$session->sql('COMMIT');
	$outbox->arrives($id, 'they go after the commit');
	$session->quit;
}

# ---- waiting for others ----

{
	my $id = $outbox->capture('patient');
	set_interval('1h');
	$outbox->change($id) for 1 .. 10;
	my $session = $pg->session;
	$session->sql("SET statement_timeout = '700ms'");
	# The worker has looked at least twice by then.
	my $looks = q(SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker' AND state = 'idle');
	$pg->poll($looks);
	is($outbox->streamed($id), 0, 'row changes wait for others');
	is($outbox->flush, 't', 'until somebody calls kusto_flush');
	is($outbox->streamed($id), 1, 'and go in one request');
	$outbox->arrives($id, 'all of them');
	$session->quit;

	$pg->sql('BEGIN; ' . join('; ', map { $outbox->statement($id, rows => 1000, text => 'x' x 2000) } 1 .. 3) . '; COMMIT');
	$outbox->arrives($id, 'nor do they wait when there are enough for a batch', unordered => 1);

	set_interval('2s');
	my $before = $outbox->streamed($id);
	$outbox->change($id) for 1 .. 10;
	$outbox->arrives($id, 'nor for longer than kusto_ingest.flush_interval', unordered => 1);
	is($outbox->streamed($id) - $before, 1, 'again in one request');
	set_interval('0');
}

# ---- large batches are queued ----

{
	my $id = $outbox->capture('large');
	$pg->sql('BEGIN; ' . join('; ', map { $outbox->statement($id, rows => 500, text => 'x' x 2000) } 1 .. 6) . '; COMMIT');
	$outbox->arrives($id, 'more than a request takes arrives in order');
	is($outbox->streamed($id), 0, 'without streaming');
	my $mark = $outbox->mark_is($id, rows => qr/^3000$/, 'the mark counts the rows');
	is($mark->{batch_mode}, 'queued', 'and says how they went');
	$pg->poll("SELECT state = 'succeeded' AND rows = 3000 FROM kusto.operations WHERE id = '$mark->{batch_operation}'",
		't', 'an operation has posted them');
}

# A backlog of more than an operation takes: several, each with its place in the mark.
{
	my $id = $outbox->capture('backlog');
	$pg->set_config('kusto_ingest.max_blob_size' => '1MB');
	$pg->poll("SELECT current_setting('kusto_ingest.max_blob_size') = '1MB'");
	$pg->sql('BEGIN; ' . join('; ', map { $outbox->statement($id, rows => 100, text => 'x' x 1000) } 1 .. 130) . '; COMMIT');
	$outbox->arrives($id, 'a backlog arrives once', unordered => 1);
	my $n = $pg->sql("SELECT count(*) FROM kusto.operations WHERE table_name = 'Backlog'");
	cmp_ok($n, '>=', 3, 'by several operations');
	my $mark = $outbox->mark_is($id, rows => qr/^13000$/, 'the mark counts all');
	ok(!exists $mark->{current}, 'and says that the batch is at its end');
	$pg->set_config('kusto_ingest.max_blob_size' => '512MB');
}

# ---- streaming is refused ----

{
	my $id = $outbox->capture('unstreamed');
	$kusto->command($db, '.alter table Unstreamed policy streamingingestion disable');
	$outbox->change($id, rows => 2);
	$outbox->arrives($id, 'where streaming is disabled they are queued');
	$outbox->change($id);
	$outbox->arrives($id, 'and again', unordered => 1);
	is($outbox->streamed($id), 1, 'the table is not asked again');
	is($outbox->mark($id)->{batch_mode}, 'queued', 'the mark tells');
}

{
	my $id = $outbox->capture('throttled');
	$kusto->fault({ service => 'engine', path => '/ingest/db/Throttled' }, { status => 429 }, times => 3);
	$outbox->change($id, rows => 2);
	$outbox->arrives($id, 'throttled streaming becomes queued ingestion');
	$kusto->clear_faults;
}

# ---- the service fails ----

{
	my $bad = $outbox->capture('bad', server => 'other', service => $other);
	my $good = $outbox->capture('good');
	$other->fault({ service => 'engine|ingest|login' }, { reset => JSON::PP::true }, times => -1);
	$outbox->change($bad) for 1 .. 3;
	my $mark = $outbox->mark_is($bad, error_message => qr/./, 'a capture whose service is down says so');
	ok(!exists $mark->{snapshot}, 'and has sent nothing');
	$outbox->change($good) for 1 .. 5;
	$outbox->arrives($good, 'another is not held up');
	is($outbox->flush('2 s'), 'f', 'kusto_flush does not claim that all is sent');
	$outbox->change($bad) for 1 .. 3;
	$other->clear_faults;
	$outbox->arrives($bad, 'what has waited arrives when the service is back, in order');
	$outbox->mark_is($bad, error_message => undef, 'and the mark is well again');
	is(log_count(qr/row changes of "bad" for table "Bad" of server "other" wait:/), 1, 'the log has told it once');
	is(log_count(qr/row changes of "bad" for table "Bad" of server "other" are sent again/), 1, 'and the end of it');
}

# Nor is one held up by many others whose service says nothing at all.
{
	my @silent = map { $outbox->capture("silent$_", server => 'other', service => $other) } 1 .. 20;
	my $good = $outbox->capture('prompt');
	$other->fault({ service => 'engine', path => '/ingest/' }, { blackhole => JSON::PP::true }, times => -1);
	$outbox->change($_) for @silent;
	wait_until(sub { $other->fired > 0 }, 'requests stall');
	my ($seconds) = elapsed(sub {
		$outbox->change($good);
		$outbox->arrives($good, 'a capture whose service answers');
	});
	cmp_ok($seconds, '<', 5, 'is not held up by twenty whose service does not');
	my ($post) = elapsed(sub { $pg->succeeds($pg->ingest('SELECT 1 AS a', 'Prompt2', create_table => 'true', server => q('adx'))) });
	cmp_ok($post, '<', 10, 'nor is an export');
	# Those that are under way stay without an answer; the next worker's will have one.
	$other->clear_faults;
	my ($end) = elapsed(sub { $pg->forget_worker });
	cmp_ok($end, '<', 5, 'and the worker can be terminated');
	$outbox->arrives($_, 'they arrive when it answers again', unordered => 1) for @silent;
}

# What the service forbids is not given up.
{
	my $id = $outbox->capture('forbidden');
	$kusto->fault({ service => 'engine', path => '/ingest/db/Forbidden' }, { status => 403 }, times => 1);
	$outbox->change($id);
	$outbox->mark_is($id, error_code => qr/./, 'a refused identity is in the mark');
	$outbox->change($id);
	$outbox->arrives($id, 'and tried again');
	$kusto->clear_faults;
}

# ---- batches that Kusto will never take ----

{
	my $id = $outbox->capture('poisoned');
	$kusto->fault({ service => 'engine', path => '/ingest/db/Poisoned' }, $refusal, times => 1);
	$outbox->change($id, rows => 2);
	wait_until(sub { $pg->sql("SELECT count(*) FROM kusto.dead_letter WHERE capture = $id") == 1 }, 'a dead letter');
	my ($first, $second) = $outbox->forget($id);
	$outbox->change($id);
	$outbox->arrives($id, 'the next batch goes on');
	is($pg->sql("SELECT rows, table_name, owner::regrole = current_user::regrole FROM kusto.dead_letter WHERE capture = $id"),
		'2|Poisoned|t', 'the refused one is kept');
	like($pg->sql("SELECT convert_from(data, 'UTF8') FROM kusto.dead_letter WHERE capture = $id"),
		qr/^"insert",\d+,\d+,[^,]+,$first,"x"\n"insert",\d+,\d+,[^,]+,$second,"x"\n$/, 'with its data');
	like($pg->sql("SELECT error_code || ': ' || error_message FROM kusto.dead_letter WHERE capture = $id"),
		qr/BadRequest/, 'and Kusto\'s words');
	is($outbox->mark($id)->{rows}, 1, 'and is not counted as sent');
	is(log_count(qr/Kusto refuses 2 captured row changes of "poisoned"/), 1, 'the log tells');
}

# ---- columns ----

{
	my $id = $outbox->capture('created', kusto => undef, create_table => 1, accepted => 0);
	$outbox->change($id);
	$outbox->arrives($id, 'the table is created');
	$outbox->change($id);
	$outbox->arrives($id, 'and filled');
	my @commands = grep { ($_->{csl} // '') =~ /create-merge table.*Created/ } $kusto->log(service => 'engine', path => qr/mgmt/);
	is(scalar @commands, 1, 'once');
	$outbox->shape($id, 2, '[{"name": "i", "type": "long", "attnum": 1}, {"name": "t", "type": "string", "attnum": 2}, {"name": "n", "type": "int", "attnum": 3}]');
	$pg->sql('BEGIN; ' . $outbox->statement($id) . '; ' . $outbox->statement($id, shape => 2, more => ',7') . '; COMMIT');
	$outbox->arrives($id, 'a column that is added in the middle of a transaction is added in Kusto');
	is_deeply([ $outbox->landed($id, 'n') ], [ undef, undef, undef, 7 ], 'and filled');
}

{
	my $id = $outbox->capture('unaccepted');
	$outbox->change($id);
	$outbox->shape($id, 2, '[{"name": "i", "type": "long", "attnum": 1}, {"name": "t", "type": "string", "attnum": 2}, {"name": "n", "type": "int", "attnum": 3}]');
	$pg->sql('BEGIN; ' . $outbox->statement($id) . '; ' . $outbox->statement($id, shape => 2, more => ',7') . '; COMMIT');
	my $mark = $outbox->mark_is($id, error_message => qr/^the columns of table "unaccepted" have changed$/, 'new columns wait');
	is($outbox->count($id), 2, 'what was before them has gone');
	like($mark->{hint}, qr/\.create-merge table .*Unaccepted.*n.*int/, 'with the command to run');
	# By then it would be tried again after 8 s at the earliest.
	is($outbox->flush('6 s'), 'f', 'kusto_flush has them tried again, in vain');
	$kusto->command($db, ".create-merge table ['Unaccepted'] (n:int)");
	my ($seconds) = elapsed(sub {
		$pg->sql("UPDATE kusto.capture_shape SET accepted = true WHERE capture = $id");
		$outbox->arrives($id, 'until somebody says that the table has them');
	});
	cmp_ok($seconds, '<', 5, 'then they go at once');
}

# ---- beginnings and ends ----

{
	my $operation = '6a0f0b5c-0000-4000-8000-000000000001';
	my $id = $outbox->capture('snapshot', snapshot => $operation);
	$outbox->change($id);
	my $mark = $outbox->mark_is($id, error_message => qr/^the export of the existing rows is gone$/, 'an export that is gone is told');
	is($outbox->count($id), 0, 'row changes wait for the export of what was there before');
	$pg->sql("INSERT INTO kusto.outbox_1 (txid, seq, shape, changed_at, capture, rows, data) SELECT pg_current_xact_id(), nextval('kusto.change_number') << 20, 0, now(), -$id, 0,"
		. " convert_to(format('{\"snapshot\": \"%s\"}', pg_current_snapshot()), 'UTF8')");
	$outbox->forget($id);
	$outbox->change($id);
	$outbox->arrives($id, 'what the export has seen is not sent, what came later is');
}

{
	my $id = $outbox->capture('ended');
	$pg->sql('BEGIN; ' . $outbox->statement($id, rows => 3) . "; UPDATE kusto.capture SET ended_at = now() WHERE id = $id; COMMIT");
	$outbox->arrives($id, 'what was captured before the end is sent');
	$pg->poll("SELECT count(*) = 0 FROM kusto.capture WHERE id = $id AND forgotten_at IS NULL", 't', 'then the capture is forgotten');

	my $dropped = $outbox->capture('dropped');
	$pg->sql('BEGIN; ' . $outbox->statement($dropped, rows => 3) . '; DROP TABLE dropped; COMMIT');
	$outbox->arrives($dropped, 'what a table held before it was dropped is sent, too');
}

{
	my $id = $outbox->capture('foreign_one', foreign => 1);
	$outbox->change($id);
	$pg->forget_worker;
	is($outbox->flush('30 s'), 't', 'kusto_flush does not wait for what is another\'s');
	is($outbox->count($id), 0, 'and it is not sent');
	is(log_count(qr/1 kusto_ingest capture was recorded by another cluster or database/), 1, 'the log tells once');
}

# ---- the worker comes and goes ----

{
	my $id = $outbox->capture('restarted');
	for (1 .. 5)
	{
		$outbox->change($id) for 1 .. 5;
		$pg->forget_worker;
	}
	$outbox->arrives($id, 'a worker that is terminated loses nothing, and repeats nothing');
	$pg->node->restart;
	$outbox->change($id);
	is($outbox->flush, 't', 'after a restart kusto_flush starts a worker');
	$outbox->arrives($id, 'which sends the rest');
}

# As nobody: the owner of a table has gone, or may not use the server any more.
{
	$pg->sql('CREATE ROLE gone');
	my $id = $outbox->capture('ownerless');
	$pg->sql("UPDATE kusto.capture SET owner = 'gone'::regrole WHERE id = $id");
	$outbox->change($id);
	$outbox->mark_is($id, error_message => qr/permission denied for foreign server/, 'an owner without USAGE');
	$pg->sql('GRANT USAGE ON FOREIGN SERVER adx TO gone');
	$outbox->mark_is($id, error_message => qr/user mapping not found/, 'without a user mapping');
	$pg->sql('DROP OWNED BY gone; DROP ROLE gone');
	$outbox->mark_is($id, error_message => qr/does not exist any more/, 'and one that is gone are told');
	$pg->sql("UPDATE kusto.capture SET owner = current_user::regrole WHERE id = $id");
	$outbox->arrives($id, 'and the rows wait for another');
}

unlike(slurp_file($pg->node->logfile), qr/TRAP|PANIC/, 'no assertion has failed');
$kusto->assert_no_violations;
$other->assert_no_violations;
done_testing();
