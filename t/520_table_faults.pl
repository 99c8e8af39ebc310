# kusto_ingest_table while its processes are at work: whatever ends one of them ends all, at once; the
# client hears why; nothing is posted, and nothing is left behind.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(elapsed literal process_status wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	max_worker_processes = 16
	max_parallel_workers = 8
	restart_after_crash = on
	log_min_messages = debug1
	kusto_ingest.max_blob_size = '1MB'
	CONF
my $db = KustoCluster::DATABASE;
my $version = $pg->sql('SHOW server_version_num');

# Generous for a busy machine, and far below any timeout of the extension's own.
my $prompt = 2;

# More than two processes can hold that get nothing stored, 14 MB each: so a third one always has some, however late
# it comes.
my $rows = 150_000;

$kusto->create_table($db, 'T', 'i:int, t:string, x:real');
$kusto->create_table($db, 'G', 'i:int, g:dynamic, x:real');
$pg->sql(<<~"SQL");
	CREATE TABLE rows AS
	SELECT i, encode(sha512(i::text::bytea), 'hex') || encode(sha512((-i)::text::bytea), 'hex') AS t, 0.5::float8 AS x
	FROM generate_series(1, $rows) i;
	SQL

sub call
{
	my ($relation, $table, %arguments) = @_;
	my $list = join '', map { ", $_ => $arguments{$_}" } sort keys %arguments;
	return 'SELECT kusto_ingest_table(' . literal($relation) . ", '$db', '$table', parallel => 3$list)";
}

my $workers = q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'parallel worker');

# The pid of one of a session's workers.
sub worker_of
{
	my ($session) = @_;
	return $pg->sql('SELECT min(pid) FROM pg_stat_activity WHERE leader_pid = ' . $session->pid);
}

sub segments { my ($session) = @_; return scalar grep { m{/PostgreSQL\.|SYSV} } split /\n/, slurp_file('/proc/' . $session->pid . '/maps') }

sub is_clean
{
	my ($name, $session) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$pg->poll($workers, '0', "$name: no worker is left");
	is($pg->sql('SELECT count(*) FROM kusto.operation'), 0, "$name: nothing is on record");
	$kusto->clear_faults;
	$kusto->settle;
	is_deeply($kusto->messages, [], "$name: nothing is posted");
	is($pg->sql(q(SELECT count(*) FROM pg_locks WHERE relation = 'rows'::regclass)), 0, "$name: no lock is left");
	return;
}

sub works_again
{
	my ($session, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($id, $error) = $session->try('BEGIN; ' . call('rows', 'T'));
	$session->sql('ROLLBACK');
	like($id, qr/^[0-9a-f-]{36}$/, "$name: the session works afterwards") or diag $error->{text};
	return;
}

# ---- a service that is silent ----

my $storage = { service => 'blob', method => 'PUT' };

# Requests to this service, or to any.
sub stuck
{
	my ($service) = @_;
	return scalar grep { ($_->{status} // '') eq 'black hole' && (!$service || $_->{service} eq $service) } $kusto->log;
}

my @phases = (
	{ name => 'token', match => { service => 'login' }, at => 2 },
	{ name => 'ingestion resources', match => { service => 'ingest', body => 'ingestion resources' }, at => 2 },
	{ name => 'Put Blob', match => $storage, at => 3 });
my %ends = (
	'pg_cancel_backend' => { do => sub { my ($s) = @_; $pg->sql('SELECT pg_cancel_backend(' . $s->pid . ')') }, sqlstate => '57014' },
	'statement_timeout' => { before => "SET statement_timeout = '2s'", do => sub { }, sqlstate => '57014', prompt => 4 },
	'pg_terminate_backend' => { do => sub { my ($s) = @_; $pg->sql('SELECT pg_terminate_backend(' . $s->pid . ')') }, lost => 1 },
	'pg_cancel_backend of a worker' => { do => sub { my ($s) = @_; $pg->sql('SELECT pg_cancel_backend(' . worker_of($s) . ')') }, sqlstate => '57014' },
	'pg_terminate_backend of a worker' => { do => sub { my ($s) = @_; $pg->sql('SELECT pg_terminate_backend(' . worker_of($s) . ')') }, sqlstate => '57P01' },
	'kill -9 of a worker' => { do => sub { my ($s) = @_; kill KILL => worker_of($s) }, crash => 1 },
	'kill -9 of the leader' => { do => sub { my ($s) = @_; kill KILL => $s->pid }, crash => 1 },
	'the end of the client' => { do => sub { my ($s) = @_; $s->{run}->kill_kill }, client => 1 });

for my $phase (@phases)
{
	for my $way (sort keys %ends)
	{
		my $end = $ends{$way};
		my $name = "silence in phase $phase->{name}, $way";
		next if ($end->{crash} || $end->{client}) && $phase->{name} ne 'Put Blob';
		# Before PostgreSQL 14 nobody looks whether the client is there.
		next if $end->{client} && $version < 140000;
		$kusto->reset;
		$kusto->create_table($db, 'T', 'i:int, t:string, x:real');
		my $session = $pg->session;
		# The leader has what it needs by now, and the session a segment that PostgreSQL keeps.
		$session->sql('BEGIN; ' . call('rows', 'T') . '; ROLLBACK');
		$session->sql("SET client_connection_check_interval = '100ms'") if $end->{client};
		$session->sql($end->{before}) if $end->{before};
		my $segments = segments($session);
		# The leader, which has what is silent for the others, must not take all rows either.
		$kusto->fault($_, { blackhole => JSON::PP::true }, times => -1) for $phase->{match}, $phase->{match} == $storage ? () : $storage;
		my $offset = -s $pg->node->logfile;
		$session->send(call('rows', 'T'));
		wait_until(sub { stuck($phase->{match}{service}) >= $phase->{at} && worker_of($session) ne '' }, "$name, until it is stuck");
		cmp_ok($pg->sql($workers), '>=', 1, "$name: workers are at work");
		my ($seconds, $outcome) = elapsed(sub {
			$end->{do}->($session);
			return $end->{client} ? {} : $session->receive;
		});
		cmp_ok($seconds, '<', $end->{prompt} // $prompt, "$name: it is prompt") unless $end->{client};
		if ($end->{crash})
		{
			ok($outcome->{lost}, "$name: the session is lost");
			wait_until(sub { slurp_file($pg->node->logfile, $offset) =~ /database system is ready to accept connections/ }, 'the server restarts');
		}
		elsif ($end->{lost})
		{
			ok($outcome->{lost}, "$name: the session ends");
		}
		elsif (!$end->{client})
		{
			my $error = KustoCluster::parse_error($outcome->{err});
			is($error->{sqlstate}, $end->{sqlstate}, "$name: the client hears of it") or diag $outcome->{err};
		}
		is_clean($name);
		if ($end->{sqlstate})
		{
			$session->sql('SET statement_timeout = 0');
			is(segments($session), $segments, "$name: no shared memory is left");
			works_again($session, $name);
		}
		$session->quit unless $end->{client};
	}
}

# ---- DROP DATABASE ----

$kusto->reset;
$pg->sql('CREATE DATABASE busy');
{
	local $pg->{dbname} = 'busy';
	$pg->sql('CREATE EXTENSION kusto_ingest');
	$pg->connect_to($kusto);
	$pg->sql("CREATE TABLE rows AS SELECT i, encode(sha512(i::text::bytea), 'hex') AS t FROM generate_series(1, 30000) i");
	$kusto->fault({ service => 'blob', method => 'PUT' }, { blackhole => JSON::PP::true }, times => -1);
	my $session = $pg->session;
	$session->send(call('rows', 'T'));
	wait_until(sub { stuck() >= 3 }, 'an export in the database busy');
	$pg->sql('CREATE DATABASE idle', dbname => 'template1');
	my ($seconds) = elapsed(sub { $pg->sql('DROP DATABASE idle', dbname => 'template1') });
	cmp_ok($seconds, '<', $prompt, 'DROP DATABASE of another database is not held up');
	my $error = $pg->fails('DROP DATABASE busy', dbname => 'template1');
	is($error->{sqlstate}, '55006', 'DROP DATABASE: it is in use');
	($seconds) = elapsed(sub { $pg->sql('DROP DATABASE busy WITH (FORCE)', dbname => 'template1') });
	cmp_ok($seconds, '<', $prompt, 'DROP DATABASE ... WITH (FORCE) ends leader and workers');
	ok($session->receive->{lost}, 'and the session');
	$session->quit;
}
is_clean('DROP DATABASE');

# ---- an error in a worker ----

# A type that lets the test say who may go on: the leader waits for lock 1, workers for lock 2.
$pg->sql(<<~'SQL');
	CREATE TYPE gate;
	CREATE FUNCTION gate_in(cstring) RETURNS gate LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'textin';
	CREATE FUNCTION gate_out(gate) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT PARALLEL SAFE AS 'textout';
	CREATE TYPE gate (INPUT = gate_in, OUTPUT = gate_out, LIKE = text);
	CREATE FUNCTION gate_json(gate) RETURNS json LANGUAGE plpgsql PARALLEL SAFE AS $$
	BEGIN
		PERFORM pg_advisory_xact_lock_shared(CASE WHEN pg_backend_pid()::text = current_setting('test.leader') THEN 1 ELSE 2 END);
		RETURN '1';
	END $$;
	CREATE CAST (gate AS json) WITH FUNCTION gate_json(gate);
	CREATE TABLE gated (i int, g gate, x float8);
	INSERT INTO gated SELECT i, CASE WHEN i <= 2000 THEN 'x'::gate END, CASE WHEN i = 19999 THEN 'NaN'::float8 ELSE i END
	FROM generate_series(1, 20000) i;
	SQL
my $gate = $pg->session;
my $log_offset;

# Both workers of the session that gated() has begun.
sub workers_have_ended
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_until(sub { my @ends = slurp_file($pg->node->logfile, $log_offset) =~ /"parallel worker" \(PID \d+\) exited/g; @ends == 2 },
		$name), $name);
}

# A session whose export is under way, and whose leader has stopped; its workers, too, if they are to.
sub gated
{
	my ($workers_too, %arguments) = @_;
	my $session = $pg->session;
	$log_offset = -s $pg->node->logfile;
	$session->sql('SET test.leader = ' . literal($session->pid));
	$gate->sql("SELECT pg_advisory_lock($_)") for 1, $workers_too ? 2 : ();
	$session->send(call('gated', 'G', %arguments));
	# With nobody to stop them the workers may be through by now.
	return $session unless $workers_too;
	for my $lock (1, 2)
	{
		$pg->poll("SELECT count(*) >= 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = $lock AND NOT granted");
	}
	return $session;
}

$kusto->reset;
$kusto->create_table($db, 'G', 'i:int, g:dynamic, x:real');
my $tid = $pg->sql('SELECT ctid FROM gated WHERE i = 19999');
my $session = gated(0);
my $outcome = $session->receive;
my $error = KustoCluster::parse_error($outcome->{err});
$pg->error_is($error,
	{
		sqlstate => '22003',
		message => qr/^value of column "x" in row \Q$tid\E of table "gated" cannot be held by Kusto type real$/,
		detail => qr/^The value is NaN\.$/,
		hint => qr/on_type_error => 'null'/,
		context => qr/^parallel worker$/m
	}, 'an error in a worker reaches a leader that waits elsewhere, with all it has to say');
$gate->sql('SELECT pg_advisory_unlock(1)');
is_clean('an error in a worker');

# What a worker has replaced, its leader counts.
$session->quit;
$session = gated(0, on_type_error => q('null'), exactly_once => q('on'));
workers_have_ended('the workers have read all but what the leader has');
$gate->sql('SELECT pg_advisory_unlock(1)');
is_deeply($pg->succeeds($session->receive->{out}, 'a value that a worker has replaced')->{type_errors}, { x => { NaN => 1 } },
	'a value that a worker has replaced: is counted');
$pg->sql(q(SELECT kusto_purge('0')));
$kusto->reset;
$kusto->create_table($db, 'G', 'i:int, g:dynamic, x:real');
$pg->sql('UPDATE gated SET x = 1 WHERE i = 19999');

# The workers have read all when the leader comes: it counts what they have counted.
$session->quit;
$session = gated(0, exactly_once => q('on'));
workers_have_ended('the workers have ended');
$gate->sql('SELECT pg_advisory_unlock(1)');
my $id = $session->receive->{out};
my $operation = $pg->succeeds($id, 'workers that have ended before the leader looks');
is($operation->{rows}, 20000, 'workers that have ended before the leader looks: their rows count');
is($kusto->count($db, 'G'), 20000, 'workers that have ended before the leader looks: their rows land');
is_deeply([ map { $_->{ordinal} } @{ $pg->blobs($id) } ], [ 1 .. $operation->{blobs} ], 'and their blobs are numbered');
cmp_ok($operation->{blobs}, '>=', 2, 'of which there are several');
$pg->sql(q(SELECT kusto_purge('0')));

# The leader has read what they have left, and waits for workers: it can be cancelled.
$session->quit;
$session = gated(1);
$gate->sql('SELECT pg_advisory_unlock(1)');
if ($version >= 170000)
{
	$pg->poll('SELECT wait_event = \'KustoParallel\' FROM pg_stat_activity WHERE pid = ' . $session->pid, 't', 'the leader waits for it');
}
$pg->sql('SELECT pg_cancel_backend(' . $session->pid . ')');
$outcome = $session->receive;
is(KustoCluster::parse_error($outcome->{err})->{sqlstate}, '57014', 'the leader, waiting for its workers, is cancelled');
$gate->sql('SELECT pg_advisory_unlock(2)');
$pg->poll($workers, '0', 'and its workers with it');
$session->quit;

# ---- progress ----

SKIP:
{
	skip 'no progress before PostgreSQL 14', 2 if $version < 140000;
	$kusto->reset;
	$kusto->create_table($db, 'T', 'i:int, t:string, x:real');
	$kusto->fault({ service => 'blob', query => '(^|&)comp=blocklist(&|$)' }, { blackhole => JSON::PP::true }, times => -1);
	$kusto->fault({ service => 'blob', method => 'PUT' }, { blackhole => JSON::PP::true }, times => -1);
	$session = $pg->session;
	$session->sql("SET kusto_ingest.max_blob_size = '64MB'");
	$session->send(call('rows', 'T'));
	$pg->poll("SELECT rows = $rows AND raw_bytes > $rows * 256 AND phase = 'uploading the rest' FROM kusto.progress", 't',
		'kusto.progress counts what all processes have read');
	is($pg->sql('SELECT count(*), min(pid) FROM kusto.progress'), '1|' . $session->pid, 'in one row, of the leader');
	$pg->sql('SELECT pg_cancel_backend(' . $session->pid . ')');
	$session->receive;
	$session->quit;
	$kusto->clear_faults;
}

# ---- an error of the service ----

# Which process meets it is a matter of chance, and makes no difference.
$kusto->reset;
$kusto->create_table($db, 'T', 'i:int, t:string, x:real');
my $refusal = { status => 403, headers => { 'Content-Type' => 'application/xml' },
	body => '<?xml version="1.0"?><Error><Code>AuthorizationFailure</Code><Message>This request is not authorized.</Message></Error>' };
$kusto->fault({ service => 'blob', method => 'PUT' }, $refusal, times => -1);
my $alone = $pg->fails('SELECT ' . $pg->ingest_call('SELECT * FROM rows', 'T'));
my %met;
$session = $pg->session;
my @errors = map { $session->fails(call('rows', 'T')) } 1 .. 10;
for my $i (1 .. 10)
{
	$error = $errors[ $i - 1 ];
	$met{ ($error->{context} // '') =~ /parallel worker/ ? 'worker' : 'leader' }++;
	is_deeply([ @$error{qw(sqlstate message hint)} ], [ @$alone{qw(sqlstate message hint)} ], "refused by storage, $i: as without workers")
	  or diag $error->{text};
	is($error->{detail} =~ s/Host ".*//sr, $alone->{detail} =~ s/Host ".*//sr, "refused by storage, $i: with the same detail");
}
note explain \%met;
is_clean('refused by storage');

# ---- nothing grows ----

# Half of them fail.
$kusto->reset;
$kusto->create_table($db, 'T', 'i:int, t:string, x:real');
$pg->sql('CREATE TABLE small AS SELECT i, NULL::text AS t, i::float8 AS x FROM generate_series(1, 400) i');
$pg->sql('CREATE TABLE small_bad AS SELECT * FROM small; UPDATE small_bad SET x = \'NaN\' WHERE i = 300');
my $round = sub {
	for (1 .. $_[0])
	{
		$session->sql('BEGIN; ' . call('small', 'T') . '; ROLLBACK');
		$session->fails(call('small_bad', 'T'));
	}
	return process_status($session->pid);
};
my $before = $round->(30);
my $after = $round->(60);
cmp_ok($after->{RssAnon} - $before->{RssAnon}, '<', 1024, 'memory of the leader does not grow') or diag explain $before, $after;
is($after->{$_}, $before->{$_}, "nor the number of its $_") for qw(fds Threads);
$session->quit;

# ---- secrets ----

my $log = slurp_file($pg->node->logfile);
unlike($log, qr/[?&]sig=/, 'no signature is in the log');
unlike($log, qr/\Q${\$kusto->client_secret}\E/, 'nor a secret');
unlike($log, qr/TRAP:|PANIC:/, 'no assertion has failed');
unlike($log, qr/could not send blobs/, 'no worker has lost its leader before it was ended');

$kusto->forgive_violations;
done_testing();
