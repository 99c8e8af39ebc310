# What monitoring sees: log lines that name the operation and Kusto's activity id, and no secret;
# pg_stat_activity of the extension's processes, without the text of anybody's query; wait events;
# statistics that let autovacuum see what the worker does.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	log_min_messages = debug1
	kusto_ingest.repost_after = 1s
	autovacuum_naptime = 1s
	max_worker_processes = 16
	CONF
my $node = $pg->node;
my $version = $pg->sql('SHOW server_version_num');
$kusto->create_table($db, $_, 'i:int') for qw(Good Rejected Delayed Raising Watched Jobs);

# From version 17 on extensions' waits have names of their own.
sub event { return $version >= 170000 ? "Extension|$_[0]" : 'Extension|Extension' }

# The log since an offset, each message with what belongs to it in one element.
sub messages
{
	my ($offset) = @_;
	return split /^(?=\d{4}-\d\d-\d\d [^\n]*?(?:LOG|ERROR|WARNING|FATAL|DEBUG\d?|NOTICE):)/m,
	  substr(slurp_file($node->logfile), $offset);
}

# Waits for a message; the message with its DETAIL and so on.
sub logged
{
	my ($offset, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @found;
	my $come = eval { wait_until(sub { @found = grep { /$pattern/ } messages($offset); scalar @found }, $name) };
	ok($come, $name) or return '';
	my @lines = messages($offset);
	for my $n (0 .. $#lines)
	{
		next unless $lines[$n] =~ /$pattern/;
		my $text = $lines[$n];
		# DETAIL, HINT and CONTEXT are lines with a time, too.
		$text .= $lines[$n] while ++$n <= $#lines && $lines[$n] =~ /^\S+ \S+ \S+ [^\n]*?(?:DETAIL|HINT|CONTEXT|STATEMENT):/;
		return $text;
	}
	return '';
}

sub log_offset { return -s $node->logfile }

# ---- the log ----

my $offset = log_offset();
$kusto->config(outcomes => [ { match => { table => 'Rejected' }, status => 'Failed', failureStatus => 'Permanent',
	errorCode => 'BadRequest_InvalidBlob', details => 'The blob is no good, says the test.' } ]);
my $id = $pg->ingest('SELECT 1 AS i', 'Rejected');
my $operation = $pg->ends_as($id, 'failed');
ok($operation->{activity_id}, 'the row of a rejected export has an activity id');
my $text = logged($offset, qr/LOG:  kusto_ingest operation $id .*: failed$/m, 'the log has a rejected export by its id');
like($text, qr/to table "Rejected" of server "adx"/, 'with its target');
like($text, qr/DETAIL:  Kusto could not ingest the data: BadRequest_InvalidBlob\n\s+The blob is no good, says the test\./, "with Kusto's code and words");
like($text, qr/Kusto's activity id is \Q$operation->{activity_id}\E\./, "with Kusto's activity id");
unlike($text, qr/CONTEXT/, 'and no more');

$offset = log_offset();
$kusto->fault({ service => 'queue', method => 'POST' }, { status => 503, body => 'busy', headers => { 'x-ms-request-id' => 'request-of-the-test' } }, times => -1);
$id = $pg->ingest('SELECT 1 AS i', 'Delayed');
$text = logged($offset, qr/LOG:  kusto_ingest operation $id .*: delayed$/m, 'the log has an export that is held up');
like($text, qr/DETAIL:  .*\n.*busy.*\n.*HTTP status 503.*activity id request-of-the-test/, 'with the reason, and the activity id of the request');
wait_until(sub { $kusto->fired >= 4 }, 'it is tried again and again');
$kusto->clear_faults;
$pg->succeeds($id);
is(scalar(grep { /operation $id .*: delayed/ } messages($offset)), 1, 'which it says once');

# A failure that nobody foresaw: its line says which operation it was about.
$offset = log_offset();
$pg->sql(<<~'SQL');
	CREATE FUNCTION boom() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'boom'; END $$;
	CREATE TRIGGER boom BEFORE UPDATE ON kusto.blob FOR EACH ROW WHEN (NEW.state = 'posted') EXECUTE FUNCTION boom();
	SQL
$id = $pg->ingest('SELECT 1 AS i', 'Raising');
$text = logged($offset, qr/ERROR:  boom/, 'an error of the worker is in the log');
like($text, qr/kusto_ingest operation $id/, 'with the operation it was about');
$pg->sql('DROP TRIGGER boom ON kusto.blob');
$pg->succeeds($id, 'which goes on');

# ---- pg_stat_activity ----

$id = $pg->ingest('SELECT 1 AS i -- nobody_reads_this', 'Good');
$pg->succeeds($id);
my $worker = q(backend_type = 'kusto_ingest worker' AND datname = current_database());
$pg->poll("SELECT state = 'idle' FROM pg_stat_activity WHERE $worker");
is($pg->sql("SELECT application_name, wait_event_type, wait_event, xact_start IS NULL, backend_xmin IS NULL FROM pg_stat_activity WHERE $worker"),
	'kusto_ingest worker|' . event('KustoWorkerMain') . '|t|t', 'the idle worker: its name, its wait, no transaction');
my $activity = $pg->sql("SELECT query FROM pg_stat_activity WHERE $worker");
like($activity, qr/^[a-z ]*$/, "and what it did last in our words: $activity");

$kusto->config(hold_ingestion => JSON::PP::true);
$id = $pg->ingest('SELECT 1 AS i', 'Good');
my $waiter = $pg->session;
$waiter->send("SELECT kusto_wait('$id', '60 s')");
my $pid = $waiter->pid;
$pg->poll("SELECT wait_event_type || '|' || wait_event = '" . event('KustoOutcome') . "' FROM pg_stat_activity WHERE pid = $pid",
	't', 'a session in kusto_wait() shows what it waits for');
$kusto->config(hold_ingestion => JSON::PP::false);
is($waiter->receive->{out}, 'succeeded', 'and comes back');
$waiter->quit;

# A job, in the middle of its query.
my $gate = $pg->session;
$gate->sql('SELECT pg_advisory_lock(7)');
$offset = log_offset();
$id = $pg->sql(<<~"SQL");
	SELECT kusto_ingest_async(
		\$\$SELECT 1 AS i FROM pg_advisory_xact_lock_shared(7) WHERE 'nobody_reads_this' <> ''\$\$, '$db', 'Jobs')
	SQL
my $job = q(backend_type = 'kusto_ingest job' AND datname = current_database());
$pg->poll("SELECT wait_event = 'advisory' FROM pg_stat_activity WHERE $job", 't', 'a job runs its query');
is($pg->sql("SELECT usename, application_name FROM pg_stat_activity WHERE $job"), 'postgres|kusto_ingest job', 'as the user who asked for it, under its name');
unlike($pg->sql("SELECT query FROM pg_stat_activity WHERE $job"), qr/nobody_reads_this|advisory/, 'without the text of its query');
if ($version >= 140000)
{
	is($pg->sql('SELECT operation_id, usename, phase FROM kusto.progress'), "$id|postgres|running the query", 'kusto.progress has it');
}
else
{
	is($pg->sql('SELECT count(*) FROM kusto.progress'), 0, 'kusto.progress needs PostgreSQL 14');
}
$gate->sql('SELECT pg_advisory_unlock(7)');
$pg->succeeds($id, 'the job succeeds');
$gate->quit;
ok(!(grep { /exported 1 row/ } messages($offset)), 'a job has nobody to tell its totals to');

$offset = log_offset();
$id = $pg->sql("SELECT kusto_ingest_async('SELECT 1 / (random() * 0)::int AS i, 5 AS nobody_reads_this', '$db', 'Jobs')");
$pg->ends_as($id, 'failed');
$text = logged($offset, qr/kusto_ingest operation $id failed/, 'a job that fails is in the log by its id');
like($text, qr/division by zero/, 'with the reason');
unlike($text, qr/nobody_reads_this/, 'and without its query');

# ---- statistics ----

my ($before) = split /\|/, $pg->sql(q(SELECT n_tup_upd FROM pg_stat_user_tables WHERE schemaname = 'kusto' AND relname = 'operation'));
$pg->succeeds($pg->ingest('SELECT 1 AS i', 'Watched'));
# The session has inserted its rows; it was the worker that changed them.
$pg->poll(<<~"SQL", 't', "the worker's changes are counted");
	SELECT n_tup_upd > $before FROM pg_stat_user_tables WHERE schemaname = 'kusto' AND relname = 'operation'
	SQL
$pg->sql(<<~'SQL');
	ALTER TABLE kusto.operation SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0);
	ALTER TABLE kusto.blob SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0);
	SQL
# HOT chains are pruned by whoever reads them: only a steady flow leaves dead rows to count.
wait_until(sub {
	$pg->ingest('SELECT 1 AS i', 'Watched');
	$pg->sql(q(SELECT bool_and(autovacuum_count > 0) FROM pg_stat_user_tables WHERE schemaname = 'kusto' AND relname IN ('operation', 'blob'))) eq 't';
}, 'autovacuum comes');
pass('autovacuum comes to the tables that the worker changes');

# ---- secrets ----

my $log = slurp_file($node->logfile);
unlike($log, qr/\Q${\ $kusto->client_secret}\E/, 'no client secret in the log');
unlike($log, qr/sig=(?!\*|<|REDACTED|\.\.\.)|Bearer [A-Za-z0-9]|eyJ/, 'no token and no shared access signature');

$kusto->settle;
$kusto->assert_no_violations;
done_testing;
