# Waiting for an operation: the waiter sleeps until the end and is woken by whoever brings it about,
# looks at nothing in between, and is in nobody's way.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(elapsed wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

# A waiter that is not woken looks after five seconds: whatever is faster was woken.
my $safety_look = 5;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => "kusto_ingest.default_server = adx\n");
$kusto->create_table(KustoCluster::DATABASE, 'T', 'i:int');

sub hold { return $kusto->config(hold_ingestion => $_[0] ? JSON::PP::true : JSON::PP::false) }

# An operation that is posted and ends when the service is let go on.
sub held_operation
{
	hold(1);
	my $id = $pg->ingest('SELECT 1 AS i', 'T');
	$pg->poll("SELECT state = 'posted' FROM kusto.operations WHERE id = '$id'", 't');
	return $id;
}

# An operation that cannot be posted: its server has no user mapping any more.
$pg->connect_to($kusto, name => 'adrift');
sub staged_operation
{
	my $options = $pg->sql(q(SELECT 'OPTIONS (' || string_agg(format('%s %L', option_name, option_value), ', ') || ')'
		FROM pg_user_mappings m, pg_options_to_table(m.umoptions) WHERE srvname = 'adx'));
	my $call = $pg->ingest_call('SELECT 1 AS i', 'T', server => "'adrift'");
	my $id = $pg->sql(<<~"SQL");
		CREATE USER MAPPING IF NOT EXISTS FOR CURRENT_USER SERVER adrift $options;
		BEGIN;
		SELECT $call;
		DROP USER MAPPING FOR CURRENT_USER SERVER adrift;
		COMMIT
		SQL
	$pg->poll("SELECT state = 'staged' AND error_message IS NOT NULL FROM kusto.operations WHERE id = '$id'", 't');
	return $id;
}

# A session that sleeps until something ends; its statement has been sent.
sub is_asleep
{
	my ($session) = @_;
	my $pid = $session->pid;
	return $pg->poll(<<~"SQL", 't');
		SELECT state = 'active' AND wait_event_type = 'Extension'
			AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND locktype = 'advisory' AND objsubid = 19287)
		FROM pg_stat_activity a WHERE pid = $pid
		SQL
}

my $asleep = q(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 19287);

# ---- promptly ----

my $session = $pg->session;
my @late_ms;
for (1 .. 10)
{
	my $id = held_operation();
	$session->send(<<~"SQL");
		SELECT kusto_wait('$id');
		SELECT extract(epoch FROM clock_timestamp() - finished_at) * 1000 FROM kusto.operations WHERE id = '$id'
		SQL
	is_asleep($session);
	hold(0);
	my ($state, $late_ms) = split /\n/, $session->receive->{out};
	is($state, 'succeeded', 'kusto_wait gives the state');
	push @late_ms, $late_ms;
}
@late_ms = sort { $a <=> $b } @late_ms;
note "milliseconds from the end to its being known: @late_ms";
cmp_ok($late_ms[5], '<', 50, 'kusto_wait returns within 50 ms of the end');
cmp_ok($late_ms[-1], '<', $safety_look * 1000 / 2, 'and never only when it looks by itself');

# ---- without looking ----

my $id = held_operation();
# A new one: what a session has counted and not yet reported would be shown as this transaction's.
$session->quit;
$session = $pg->session;
$session->send(<<~"SQL");
	BEGIN;
	SELECT kusto_wait('$id');
	SELECT idx_scan FROM pg_stat_xact_user_tables WHERE relid = 'kusto.operation'::regclass;
	COMMIT
	SQL
is_asleep($session);
# Time goes by, in which a waiter that polls would look.
$pg->sql('SELECT pg_sleep(3)');
hold(0);
my (undef, $looks) = split /\n/, $session->receive->{out};
note "looks: $looks";
cmp_ok($looks, '>=', 2, 'a waiter looks');
cmp_ok($looks, '<=', 6, 'but not while nothing happens');

# ---- several, and one that has no time ----

$id = held_operation();
my $other = held_operation();
my @waiters = map { $pg->session } 1 .. 4;
$_->send("SELECT kusto_wait('$id')") for @waiters;
is_asleep($_) for @waiters;
my ($seconds, $state) = elapsed(sub { $session->sql("SELECT kusto_wait('$id', '300 ms')") });
is($state, 'posted', 'a waiter whose time is over gets the state');
cmp_ok($seconds, '>=', 0.3, 'not before its time');
cmp_ok($seconds, '<', 1, 'nor long after');
is($pg->sql($asleep), 4, 'and does not wait any more');
($seconds) = elapsed(sub {
	hold(0);
	is($_->receive->{out}, "succeeded", 'each waiter gets the end') for @waiters;
});
cmp_ok($seconds, '<', $safety_look / 2, 'all are woken');
is($pg->sql($asleep), 0, 'nobody waits any more');
$pg->succeeds($other);

# ---- cancelled, woken by the one who did it ----

$id = staged_operation();
$session->send("SELECT kusto_wait('$id')");
is_asleep($session);
($seconds) = elapsed(sub {
	is($pg->sql("SELECT kusto_cancel('$id')"), 't', 'kusto_cancel');
	is($session->receive->{out}, "cancelled", 'wakes the waiter');
});
cmp_ok($seconds, '<', $safety_look / 2, 'at once');

$id = staged_operation();
$session->send("SELECT kusto_wait('$id')");
is_asleep($session);
$pg->sql("BEGIN; SAVEPOINT s; SELECT kusto_cancel('$id'); ROLLBACK TO s; COMMIT");
$pg->sql("BEGIN; SELECT kusto_cancel('$id'); ROLLBACK");
$pg->sql("BEGIN; SELECT kusto_cancel('$id'); PREPARE TRANSACTION 'cancel'");
is($pg->operation($id)->{state}, 'staged', 'a cancel that does not commit changes nothing');
is_asleep($session);
$pg->sql("COMMIT PREPARED 'cancel'");
is($session->receive->{out}, "cancelled", 'COMMIT PREPARED wakes nobody, but is seen');

# ---- failing and interrupted waiters leave nothing behind ----

$id = held_operation();
my $error = $session->fails("SET statement_timeout = '300ms'; SELECT kusto_wait('$id')");
is($error->{sqlstate}, '57014', 'statement_timeout ends a wait');
is($pg->sql($asleep), 0, 'and its announcement');
$error = $session->fails(q(CALL kusto_ingest_and_wait('SELECT 2 AS i', 'db', 'T')));
is($error->{sqlstate}, '57014', 'also of a CALL');
is($pg->sql($asleep), 0, 'and its announcement, too');
$error = $session->fails(q(SELECT kusto_wait('00000000-0000-4000-8000-000000000000')));
is($error->{sqlstate}, '42704', 'what does not exist is not waited for');
$session->sql('RESET statement_timeout');
is($session->sql(<<~"SQL"), "none\nt", 'an error that is caught takes the announcement away as well');
	BEGIN;
	CREATE FUNCTION pg_temp.try() RETURNS text LANGUAGE plpgsql AS \$\$
	BEGIN
		PERFORM kusto_wait('00000000-0000-4000-8000-000000000000');
		RETURN 'some';
	EXCEPTION WHEN undefined_object THEN RETURN 'none';
	END \$\$;
	SELECT pg_temp.try();
	SELECT NOT EXISTS (SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND objsubid = 19287);
	ROLLBACK
	SQL
hold(0);
$pg->succeeds($id);

# ---- in nobody's way ----

for my $isolation ('read committed', 'repeatable read', 'serializable')
{
	hold(1);
	$session->sql("SET default_transaction_isolation = '$isolation'");
	$session->send(q(CALL kusto_ingest_and_wait('SELECT 3 AS i', 'db', 'T')));
	is_asleep($session);
	my $pid = $session->pid;
	# It looks once more after it has seen to it that a worker runs.
	$pg->poll("SELECT backend_xmin IS NULL FROM pg_stat_activity WHERE pid = $pid", 't', "CALL, $isolation: holds no snapshot");
	is($pg->sql("SELECT count(*) FROM pg_locks WHERE pid = $pid AND locktype NOT IN ('virtualxid', 'advisory')"), 0,
		"CALL, $isolation: holds no lock that anybody could wait for");
	$id = $pg->sql('SELECT id FROM kusto.operations ORDER BY created_at DESC LIMIT 1');
	hold(0);
	unlike($session->receive->{err}, qr/ERROR/, "CALL, $isolation: ends well");
	cmp_ok($pg->sql("SELECT extract(epoch FROM clock_timestamp() - finished_at) FROM kusto.operations WHERE id = '$id'"),
		'<', $safety_look / 2, "CALL, $isolation: is woken");
	is($session->sql(<<~'SQL'), $isolation, "CALL, $isolation: what follows has its own isolation level");
		DO $$
		BEGIN
			CALL kusto_ingest_and_wait('SELECT 3 AS i', 'db', 'T');
			PERFORM set_config('test.isolation', current_setting('transaction_isolation'), false);
		END $$;
		SELECT current_setting('test.isolation')
		SQL
}
$session->sql('RESET default_transaction_isolation');

$id = held_operation();
$session->send("SELECT kusto_wait('$id')");
is_asleep($session);
is($pg->sql("SELECT count(*) FROM pg_locks WHERE pid = @{[ $session->pid ]} AND locktype NOT IN ('virtualxid', 'advisory')"),
	0, 'kusto_wait holds no lock that anybody could wait for');
$pg->sql(q(SET lock_timeout = '3s'; BEGIN; DROP EXTENSION kusto_ingest CASCADE; ROLLBACK));
pass('DROP EXTENSION does not wait for a waiter');
hold(0);
is($session->receive->{out}, "succeeded", 'and the waiter survives that it is rolled back');

$id = held_operation();
$session->send("SELECT kusto_wait('$id')");
is_asleep($session);
$pg->sql(q(SET lock_timeout = '3s'; DROP EXTENSION kusto_ingest CASCADE));
$error = KustoCluster::parse_error($session->receive->{err});
like($error->{sqlstate}, qr/^(3F000|42P01|42704)$/, 'a waiter notices that the extension is gone') or diag $error->{text};
hold(0);
$session->quit;
$_->quit for @waiters;

$kusto->assert_no_violations;
done_testing();
