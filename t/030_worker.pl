# The background worker's life: it starts on first use, is the only one, is woken by commits, holds
# no transaction while it waits, survives what happens to it and the service, and goes when it is
# not needed or in the way.
use strict;
use warnings;

use KustoCluster qw(elapsed wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $kusto = KustoLocal->start;
my $other_kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;

# With such a nap nothing is found but what is announced.
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.naptime = 1h
	kusto_ingest.request_timeout = 3s
	kusto_ingest.repost_after = 1s
	log_min_messages = debug1
	restart_after_crash = on
	CONF
$pg->connect_to($other_kusto, name => 'other');

my $worker_pid = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker' AND datname = current_database());

# The worker that has taken its place, by its lock.
my $worker_lock = q(SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = 1263883092 AND objid = 1 AND objsubid = 19285
	AND database = (SELECT oid FROM pg_database WHERE datname = current_database()));

sub fresh_table
{
	my ($table, $service) = @_;
	($service // $kusto)->create_table($db, $table, 'i:int');
	return $table;
}

sub rows_are
{
	my ($table, $values, $name, $service) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	($service // $kusto)->settle;
	KustoCluster::same_rows(($service // $kusto)->rows($db, $table), [ map { [$_] } @$values ], $name);
	return;
}

sub reset_config
{
	$pg->sql("LOAD 'kusto_ingest'; ALTER SYSTEM RESET $_") for @_;
	$pg->sql('SELECT pg_reload_conf()');
	return;
}

# Answers that never come, for posts to the queue.
sub stall_queue { return $kusto->fault({ service => 'queue', method => 'POST' }, { blackhole => JSON::PP::true }, times => -1) }

sub state_is
{
	my ($id, $state, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $pg->poll("SELECT state = '$state' FROM kusto.operations WHERE id = '$id'", 't', $name);
}

# ---- it starts on first use, once ----

is($pg->sql($worker_pid), '', 'no worker before the first export');
my $table = fresh_table('First');
my @sessions = map { $pg->session } 1 .. 8;
$sessions[$_]->send('SELECT ' . $pg->ingest_call("SELECT $_ AS i", $table)) for 0 .. 7;
my @outcomes = map { $_->receive } @sessions;
is(join('', map { $_->{err} } @outcomes), '', 'eight first exports at once: no error, no warning');
$pg->succeeds($_->{out}) for @outcomes;
$_->quit for @sessions;
rows_are($table, [ 0 .. 7 ], 'eight first exports at once: each arrives once');
my $pid = $pg->sql($worker_pid);
like($pid, qr/^\d+$/, 'one worker runs');
is($pg->sql($worker_lock), $pid, 'it has the lock');

# ---- it is woken, and at once ----

my $id = $pg->ingest('SELECT 8 AS i', $table);
$pg->succeeds($id);
my $ms = $pg->sql("SELECT extract(epoch FROM posted_at - staged_at) * 1000 FROM kusto.operations WHERE id = '$id'");
cmp_ok($ms, '<', 1000, "posted $ms ms after staging");
is($pg->sql($worker_pid), $pid, 'by the same worker');
my $session = $pg->session;
$session->sql('BEGIN');
$id = $session->sql('SELECT ' . $pg->ingest_call('SELECT 9 AS i', $table));
$session->sql('SAVEPOINT s');
$session->sql('SELECT ' . $pg->ingest_call('SELECT -1 AS i', $table));
$session->sql('ROLLBACK TO s');
$session->sql('COMMIT');
$pg->succeeds($id, 'woken by a transaction that undid a part');
$session->quit;

# ---- while the service stalls ----

$table = fresh_table('Stalled');
fresh_table('Quick', $other_kusto);
$pg->sql('CREATE DATABASE bystander');
stall_queue();
my $stalled = $pg->ingest('SELECT 1 AS i', $table);
state_is($stalled, 'posting', 'a post that stalls: the attempt is on record');
wait_until(sub { $kusto->fired > 0 }, 'the queue stalls');
is($pg->sql("SELECT state, xact_start IS NULL, backend_xmin IS NULL, backend_xid IS NULL FROM pg_stat_activity WHERE pid = $pid"),
	'idle|t|t|t', 'the worker has no transaction and no snapshot meanwhile');
is($pg->sql("SELECT count(*) FROM pg_locks WHERE pid = $pid AND locktype <> 'advisory'"), 0, 'nor a lock');
my ($seconds) = elapsed(sub { $pg->sql('DROP DATABASE bystander') });
cmp_ok($seconds, '<', 1, 'DROP DATABASE of another database does not wait');
($seconds, $id) = elapsed(sub { $pg->ingest('SELECT 2 AS i', 'Quick', server => q('other')) });
$pg->succeeds($id, 'another server is not held up', '10 s');
is($pg->operation($stalled)->{state}, 'posting', 'the first one still stalls');
$kusto->clear_faults;
my $operation = $pg->succeeds($stalled, 'it is posted again when nothing was heard of it');
is($operation->{error_message}, undef, 'and the error is gone');
cmp_ok($pg->blobs($stalled)->[0]{post_attempts}, '>', 1, 'the attempts are counted');
rows_are($table, [1], 'it has arrived once');

# ---- an answer that is lost ----

$table = fresh_table('Doubt');
$kusto->fault({ service => 'queue', method => 'POST' }, { lose_reply => JSON::PP::true });
$id = $pg->ingest('SELECT 1 AS i', $table);
$pg->succeeds($id, 'a post whose answer is lost');
is($pg->blobs($id)->[0]{post_attempts}, 1, 'it is looked for and not posted again');
rows_are($table, [1], 'it has arrived once');

# ---- what passes is repeated, and shown meanwhile ----

$table = fresh_table('Passing');
$kusto->fault({ service => 'queue', method => 'POST' }, { status => 503, body => 'busy' }, times => -1);
$id = $pg->ingest('SELECT 1 AS i', $table);
$pg->poll("SELECT error_message IS NOT NULL FROM kusto.operations WHERE id = '$id'", 't', 'a passing failure is shown');
$operation = $pg->operation($id);
is($operation->{state}, 'posting', 'the operation goes on');
like("$operation->{error_message} $operation->{details}", qr/503/, 'with the reason');
$kusto->clear_faults;
$operation = $pg->succeeds($id, 'it succeeds when the service does');
is($operation->{error_message}, undef, 'the reason is gone');

$pg->set_config('kusto_ingest.post_timeout' => '1s');
$kusto->fault({ service => 'queue', method => 'POST' }, { status => 429, body => '' }, times => -1);
$operation = $pg->ends_as($pg->ingest('SELECT 2 AS i', $table), 'failed', 'it fails when that takes too long');
like("$operation->{error_message} $operation->{details}", qr/429/, 'with the last reason');
$kusto->clear_faults;
reset_config('kusto_ingest.post_timeout');

$pg->set_config('kusto_ingest.status_timeout' => '1s');
$kusto->config(hold_ingestion => JSON::PP::true);
$operation = $pg->ends_as($pg->ingest('SELECT 3 AS i', $table), 'unknown', 'without a report it ends as unknown');
like($operation->{hint}, qr/\.show ingestion failures/, 'the hint says how to find out');
reset_config('kusto_ingest.status_timeout');
$kusto->config(hold_ingestion => JSON::PP::false);
rows_are($table, [ 1, 3 ], 'unknown is not failed');

# ---- whom and where it is for ----

$pg->sql('CREATE ROLE alice LOGIN; GRANT USAGE ON FOREIGN SERVER adx TO alice; GRANT USAGE ON SCHEMA kusto TO alice');
$pg->sql('GRANT SELECT ON kusto.operations, kusto.blobs TO alice; GRANT EXECUTE ON ALL ROUTINES IN SCHEMA public TO alice');
my $mapping = sub {
	return sprintf q(CREATE USER MAPPING FOR %s SERVER adx OPTIONS (auth 'client_secret', tenant '%s', client_id '%s', client_secret '%s')),
	  $_[0], $kusto->tenant, $kusto->client_id, $kusto->client_secret;
};
$pg->sql($mapping->('alice'));
$table = fresh_table('Gone');
$kusto->fault({ service => 'queue', method => 'POST' }, { status => 503, body => '' }, times => -1);
$id = $pg->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i', $table), user => 'alice');
$pg->poll("SELECT error_message IS NOT NULL FROM kusto.operations WHERE id = '$id'");
$pg->sql('DROP USER MAPPING FOR alice SERVER adx');
$pg->poll("SELECT error_message ~ 'user mapping' FROM kusto.operations WHERE id = '$id'");
$pg->set_config('kusto_ingest.post_timeout' => '1s');
$operation = $pg->ends_as($id, 'failed', 'the user mapping is dropped meanwhile, for longer than post_timeout');
like($operation->{error_message}, qr/user mapping/, 'the row says so');
is($pg->blobs($id)->[0]{state}, 'failed', 'so does the blob');
reset_config('kusto_ingest.post_timeout');
$pg->sql($mapping->('alice'));
$id = $pg->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i', $table), user => 'alice');
$pg->poll("SELECT error_message IS NOT NULL FROM kusto.operations WHERE id = '$id'");
$pg->sql('DROP USER MAPPING FOR alice SERVER adx; DROP OWNED BY alice; DROP ROLE alice');
$operation = $pg->ends_as($id, 'failed', 'the role is dropped meanwhile');
like($operation->{error_message}, qr/role .* does not exist/, 'the row says so');
$kusto->clear_faults;

# An operation of another cluster: this one would have been upgraded by pg_upgrade.
$pg->sql(<<~"SQL");
	INSERT INTO kusto.operation (id, owner, server, database, table_name, mode, source, state, blobs, created_at,
		system_identifier, database_oid)
	SELECT '00000000-0000-0000-0000-000000000001', 10, 'adx', '$db', 'Foreign', 'queued', 'query', 'staged', 0, now(), 1, oid
	FROM pg_database WHERE datname = current_database()
	SQL
$pg->succeeds($pg->ingest('SELECT 4 AS i', $table));
is($pg->operation('00000000-0000-0000-0000-000000000001')->{state}, 'staged', 'operations of another cluster are left alone');
is($pg->sql('SELECT sum(staged), count(oldest_unposted_age) FROM kusto.workers'), '0|0', 'and do not count as waiting for the worker');
$pg->sql(q(DELETE FROM kusto.operation WHERE system_identifier = 1));

# ---- it is disturbed ----

$table = fresh_table('Disturbed');
$kusto->config(hold_ingestion => JSON::PP::true);
$id = $pg->ingest('SELECT 1 AS i', $table);
state_is($id, 'posted');
$pid = $pg->sql($worker_pid);
$pg->sql("SELECT pg_cancel_backend($pid)");
$session = $pg->session;
$session->sql('BEGIN; LOCK TABLE kusto.operation, kusto.blob IN ACCESS EXCLUSIVE MODE');
$kusto->config(hold_ingestion => JSON::PP::false);
$kusto->settle;
my $asked = grep { $_->{service} eq 'table' && $_->{method} eq 'GET' } $kusto->log;
wait_until(sub { $asked < grep { $_->{service} eq 'table' && $_->{method} eq 'GET' } $kusto->log }, 'the end is known');
is($pg->sql("SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted"), 0, 'it does not wait for a lock on the tables');
$session->sql('COMMIT');
$pg->succeeds($id, 'what it could not write is written when the lock is gone');
$session->quit;
is($pg->sql($worker_pid), $pid, 'by the same worker, though it was cancelled');

# ---- it ends, and another takes over ----

$table = fresh_table('Terminated');
stall_queue();
$id = $pg->ingest('SELECT 1 AS i', $table);
state_is($id, 'posting');
wait_until(sub { $kusto->fired > 0 }, 'the queue stalls');
$pid = $pg->sql($worker_pid);
$pg->sql("SELECT pg_terminate_backend($pid)");
$pg->poll("SELECT pid <> $pid FROM ($worker_lock) w", 't', 'a terminated worker has a successor');
$kusto->clear_faults;
$pg->succeeds($id, 'which goes on with the post');
rows_are($table, [1], 'it has arrived once');

$kusto->fault({ service => 'queue', method => 'POST' }, { delay_ms => 1000 });
$id = $pg->ingest('SELECT 5 AS i', $table);
wait_until(sub { $kusto->fired > 0 }, 'the queue takes its time');
$pg->sql("SELECT pg_terminate_backend(pid) FROM ($worker_lock) w");
$pg->succeeds($id, 'a post under way may end before the worker does');
is($pg->blobs($id)->[0]{post_attempts}, 1, 'so that it is not in doubt');
$kusto->clear_faults;

$kusto->config(hold_ingestion => JSON::PP::true);
$id = $pg->ingest('SELECT 2 AS i', $table);
state_is($id, 'posted');
$pid = $pg->sql($worker_pid);
$pg->crash($pid);
$kusto->config(hold_ingestion => JSON::PP::false);
is($pg->sql("SELECT kusto_wait('$id', '60 s')"), 'succeeded', 'after a crash whoever waits starts a worker');

$kusto->config(hold_ingestion => JSON::PP::true);
$id = $pg->ingest('SELECT 3 AS i', $table);
state_is($id, 'posted');
$pg->node->stop('fast');
$pg->node->start;
is($pg->sql($worker_pid), '', 'no worker after a restart');
$kusto->config(hold_ingestion => JSON::PP::false);
$pg->succeeds($pg->ingest('SELECT 4 AS i', $table), 'the next export starts one');
$pg->succeeds($id, 'which goes on with what was open');
rows_are($table, [ 1 .. 5 ], 'all have arrived once');

# ---- it is not needed ----

$pg->set_config('kusto_ingest.naptime' => '100ms', 'kusto_ingest.worker_idle_timeout' => '0');
$pg->poll("SELECT NOT EXISTS ($worker_pid)", 't', 'it ends when there is nothing to do');
$session = $pg->session;
$session->sql('BEGIN');
$id = $session->sql('SELECT ' . $pg->ingest_call('SELECT 15 AS i', $table));
$session->sql(q(PREPARE TRANSACTION 'p'));
$pid = $pg->sql($worker_lock);
like($pid, qr/^\d+$/, 'one runs for a prepared transaction');
my $looks = "SELECT query_start FROM pg_stat_activity WHERE pid = $pid";
my $before = $pg->sql($looks);
$pg->poll("SELECT ($looks) > '$before'::timestamptz + interval '1500 ms'");
is($pg->sql($worker_lock), $pid, 'it does not end before that has');
$session->sql(q(COMMIT PREPARED 'p'));
$pg->succeeds($id, 'COMMIT PREPARED is found');
$session->quit;
$pg->poll("SELECT NOT EXISTS ($worker_pid)", 't', 'it ends again');
for my $i (6 .. 9)
{
	$pg->succeeds($pg->ingest("SELECT $i AS i", $table), "an export meets a worker that ends ($i)");
}
reset_config('kusto_ingest.naptime', 'kusto_ingest.worker_idle_timeout');

# ---- it is in the way ----

$pg->sql('CREATE DATABASE own');
$pg->sql('CREATE EXTENSION kusto_ingest', dbname => 'own');
{
	local $pg->{dbname} = 'own';
	$pg->connect_to($kusto);
	$pg->succeeds($pg->ingest('SELECT 10 AS i', $table), 'an export from another database');
	is($pg->sql("SELECT count(*) FROM ($worker_pid) w"), 1, 'which has a worker of its own');
}
($seconds) = elapsed(sub { $pg->sql('CREATE DATABASE copy TEMPLATE own') });
cmp_ok($seconds, '<', 4, 'the database can be a template');
{
	local $pg->{dbname} = 'own';
	stall_queue();
	$id = $pg->ingest('SELECT 11 AS i', $table);
	state_is($id, 'posting');
	wait_until(sub { $kusto->fired > 0 }, 'the queue stalls');
}
($seconds) = elapsed(sub { $pg->sql('ALTER DATABASE own RENAME TO renamed') });
cmp_ok($seconds, '<', 4, 'it can be renamed, even while a post is under way');
$kusto->clear_faults;
{
	local $pg->{dbname} = 'renamed';
	$pg->poll("SELECT state = 'succeeded' FROM kusto.operations WHERE id = '$id'", 't',
		'a successor goes on when the database is free again');
}
($seconds) = elapsed(sub { $pg->sql('DROP DATABASE renamed') });
cmp_ok($seconds, '<', 4, 'it can be dropped');
$pg->sql('DROP DATABASE copy WITH (FORCE)');

stall_queue();
$id = $pg->ingest('SELECT 12 AS i', $table);
state_is($id, 'posting');
$pid = $pg->sql($worker_pid);
($seconds) = elapsed(sub { $pg->sql('DROP EXTENSION kusto_ingest CASCADE') });
cmp_ok($seconds, '<', 2, 'DROP EXTENSION does not wait for the worker');
$pg->poll("SELECT NOT EXISTS ($worker_pid)", 't', 'the worker ends without the extension');
$kusto->clear_faults;
$pg->sql('CREATE EXTENSION kusto_ingest');
$pg->connect_to($kusto);
$pg->succeeds($pg->ingest('SELECT 13 AS i', $table), 'it comes back with the extension');

# All in one transaction: the worker comes before it can see the extension.
my ($server_options, $mapping_options) = split /\n/, $pg->sql(<<~'SQL');
	SELECT string_agg(format('%s %L', option_name, option_value), ', ')
	FROM pg_foreign_server, pg_options_to_table(srvoptions) WHERE srvname = 'adx';
	SELECT string_agg(format('%s %L', option_name, option_value), ', ')
	FROM pg_user_mappings, pg_options_to_table(umoptions) WHERE srvname = 'adx'
	SQL
$pg->sql('CREATE DATABASE at_once');
{
	local $pg->{dbname} = 'at_once';
	my $call = $pg->ingest_call('SELECT 20 AS i', $table);
	$session = $pg->session;
	$session->send(<<~"SQL");
		BEGIN;
		CREATE EXTENSION kusto_ingest;
		CREATE SERVER adx FOREIGN DATA WRAPPER kusto OPTIONS ($server_options);
		CREATE USER MAPPING FOR CURRENT_USER SERVER adx OPTIONS ($mapping_options);
		SELECT $call;
		PREPARE TRANSACTION 'all'
		SQL
	my $outcome = $session->receive;
	is($outcome->{err}, '', 'the extension and an export in one transaction');
	$pid = $pg->sql($worker_lock);
	like($pid, qr/^\d+$/, 'its worker has come');
	$looks = "SELECT query_start FROM pg_stat_activity WHERE pid = $pid";
	$before = $pg->sql($looks);
	$pg->poll("SELECT ($looks) > '$before'::timestamptz + interval '1500 ms'", 't', 'and stays');
	$session->sql(q(COMMIT PREPARED 'all'));
	$pg->succeeds($outcome->{out}, 'and does its work', '20 s');
	$session->quit;
}

# A DROP EXTENSION that is rolled back.
$session = $pg->session;
$session->sql('BEGIN');
$session->sql('DROP EXTENSION kusto_ingest CASCADE');
$session->sql('ROLLBACK');
$pg->succeeds($pg->ingest('SELECT 14 AS i', $table), 'a DROP EXTENSION that is rolled back changes nothing');
$session->quit;

my $log = slurp_file($pg->node->logfile);
# Sessions have their application's name between the process and the severity.
is_deeply([ $log =~ /\d\] (?:ERROR|PANIC):  (.*)/g ], ['canceling statement due to user request'],
	'no error of a worker in the log, but the one that was provoked');
unlike($log, qr/TRAP/, 'no assertion has failed');
$pg->node->stop;

# ---- there is no room for it ----

my $full = KustoCluster->start($kusto, name => 'full', conf => "max_worker_processes = 0\n");
my ($out, $err);
$full->node->psql('postgres', 'SELECT ' . $full->ingest_call('SELECT 15 AS i', $table), stdout => \$out, stderr => \$err);
like($err, qr/WARNING:  could not start a background worker.*max_worker_processes/s, 'no slot for a worker is a warning');
is($full->operation($out)->{state}, 'staged', 'the export is committed all the same');
$full->node->append_conf('postgresql.conf', "max_worker_processes = 8\n");
$full->node->restart;
$full->succeeds($out, 'and sent when there is a slot');

$kusto->assert_no_violations;
$other_kusto->assert_no_violations;
done_testing();
