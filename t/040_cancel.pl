# A service that is silent never holds a session: whatever the export waits for, a cancel takes
# effect at once, other databases are not disturbed, and the session works afterwards.
use strict;
use warnings;

use File::Basename qw(dirname);
use JSON::PP;
use KustoCluster qw(elapsed wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

# Where a request of each phase goes. warm: the session has a token and resources already. timeout:
# what it takes to get there.
my @phases = (
	{ name => 'cloud metadata', match => { path => '^/v1/rest/auth/metadata' } },
	{ name => 'token', match => { service => 'login' } },
	{ name => 'ingestion resources', match => { service => 'ingest', body => 'ingestion resources' } },
	{ name => 'identity token', match => { service => 'ingest', body => 'identity token' } },
	{ name => 'Put Blob', match => { service => 'blob', method => 'PUT' }, warm => 1 },
	{ name => 'Put Block', match => { service => 'blob', query => '(^|&)comp=block(&|$)' }, warm => 1, rows => 'wide', timeout => '2s' },
	{ name => 'Put Block List', match => { service => 'blob', query => '(^|&)comp=blocklist(&|$)' }, warm => 1, rows => 'wide', timeout => '2s' });

# Generous for a busy machine, and far below any timeout of the extension's own.
my $prompt = 0.9;

my $shim = "$PostgreSQL::Test::Utils::tmp_check/slow_dns.so";
system_or_bail($ENV{CC} // 'cc', '-shared', '-fPIC', '-o', $shim, dirname(__FILE__) . '/slow_dns.c', '-ldl');

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto,
	conf => "kusto_ingest.trusted_hosts = '.slow.test'",
	environment => { LD_PRELOAD => $shim });
$kusto->create_table(KustoCluster::DATABASE, 'T', 'i:int, t:string');

# Two blocks of text that does not compress well.
$pg->sql(<<~'SQL');
	CREATE TABLE wide AS
	SELECT i, encode(sha512(i::text::bytea), 'hex') || encode(sha512((-i)::text::bytea), 'hex') AS t
	FROM generate_series(1, 45000) i
	SQL

sub call
{
	my ($rows) = @_;
	return 'SELECT ' . $pg->ingest_call($rows ? "SELECT i, t FROM $rows" : "SELECT 1 AS i, 'x' AS t", 'T');
}

# A session whose next export gets stuck in a phase.
sub stuck_session
{
	my ($phase) = @_;
	my $session = $pg->session;
	$session->sql('BEGIN; ' . call() . '; ROLLBACK') if $phase->{warm};
	$kusto->fault($phase->{match}, { blackhole => JSON::PP::true }, times => -1);
	return $session;
}

sub is_stuck
{
	return scalar grep { ($_->{status} // '') eq 'black hole' } $kusto->log;
}

sub works_again
{
	my ($session, $name) = @_;
	$kusto->clear_faults;
	my ($id, $error) = $session->try('RESET statement_timeout; ' . call());
	like($id, qr/^[0-9a-f-]{36}$/, "$name: the same session works afterwards")
	  or diag $error->{text};
	return;
}

for my $phase (@phases)
{
	my $name = "silence in phase $phase->{name}";

	# By the clock.
	$kusto->reset;
	my $session = stuck_session($phase);
	my $timeout = $phase->{timeout} // '300ms';
	$session->sql("SET statement_timeout = '$timeout'");
	my ($seconds, $error) = elapsed(sub { $session->fails(call($phase->{rows})) });
	is($error->{sqlstate}, '57014', "$name: statement_timeout cancels") or diag $error->{text};
	my $limit = $timeout eq '300ms' ? 0.3 : 2;
	cmp_ok($seconds, '<', $limit + $prompt - 0.3, "$name: promptly");
	cmp_ok($seconds, '>', $limit - 0.02, "$name: but not earlier");
	ok(is_stuck(), "$name: the request had been made");
	works_again($session, $name);
	$session->quit;

	# By another session.
	$kusto->reset;
	$session = stuck_session($phase);
	$session->send(call($phase->{rows}));
	wait_until(\&is_stuck, "$name, until it is stuck");
	($seconds, my $outcome) = elapsed(sub {
		$pg->sql('SELECT pg_cancel_backend(' . $session->pid . ')');
		return $session->receive;
	});
	$error = KustoCluster::parse_error($outcome->{err});
	is($error->{sqlstate}, '57014', "$name: pg_cancel_backend cancels") or diag $outcome->{err};
	cmp_ok($seconds, '<', $prompt, "$name: pg_cancel_backend is prompt");
	works_again($session, $name);

	# For good.
	$kusto->reset;
	$session->quit;
	$session = stuck_session($phase);
	$session->send(call($phase->{rows}));
	wait_until(\&is_stuck, "$name, until it is stuck again");
	($seconds, $outcome) = elapsed(sub {
		$pg->sql('SELECT pg_terminate_backend(' . $session->pid . ')');
		return $session->receive;
	});
	ok($outcome->{lost}, "$name: pg_terminate_backend ends the session");
	like($outcome->{err}, qr/57P01/, "$name: as an administrator's command");
	cmp_ok($seconds, '<', $prompt, "$name: pg_terminate_backend is prompt");
}

# Whatever else waits.
my %waiting = (
	'kusto_query' => q(SELECT kusto_query('T', 'db')),
	'kusto_command' => q(SELECT kusto_command('.show tables', 'db')),
	'kusto_test_connection' => q(SELECT * FROM kusto_test_connection()));
for my $function (sort keys %waiting)
{
	$kusto->reset;
	$kusto->fault({ service => 'engine', path => '/v[12]/rest/(query|mgmt)' }, { blackhole => JSON::PP::true }, times => -1);
	my $session = $pg->session;
	$session->sql(q(SET statement_timeout = '300ms'));
	my ($seconds, $error) = elapsed(sub { $session->fails($waiting{$function}) });
	is($error->{sqlstate}, '57014', "$function: statement_timeout cancels") or diag $error->{text};
	cmp_ok($seconds, '<', $prompt, "$function: promptly");
	ok(is_stuck(), "$function: the request had been made");
	works_again($session, $function);
}
$kusto->reset;
$kusto->create_table(KustoCluster::DATABASE, 'T', 'i:int, t:string');
$kusto->config(hold_ingestion => JSON::PP::true);
my $held = $pg->sql(call());
%waiting = (
	'kusto_wait' => "SELECT kusto_wait('$held')",
	'CALL kusto_ingest_and_wait' => q(CALL kusto_ingest_and_wait('SELECT 1 AS i, $$x$$ AS t', 'db', 'T')));
for my $function (sort keys %waiting)
{
	my ($seconds, $error) = elapsed(sub { $pg->fails("SET statement_timeout = '1s'; $waiting{$function}") });
	is($error->{sqlstate}, '57014', "$function: statement_timeout cancels") or diag $error->{text};
	cmp_ok($seconds, '<', 1 + $prompt - 0.3, "$function: promptly");
}
is($pg->sql("SELECT kusto_wait('$held', '300ms')"), 'posted', 'kusto_wait: its own timeout gives the state');
$kusto->config(hold_ingestion => JSON::PP::false);
$pg->succeeds($held, 'what was waited for in vain lands all the same');

# Other databases: since PostgreSQL 15 DROP DATABASE waits for every backend to take notice. It also
# makes a checkpoint, which is not to be measured.
sub drop_database
{
	my ($name) = @_;
	$pg->sql('CHECKPOINT');
	my ($seconds) = elapsed(sub { $pg->sql("DROP DATABASE $name") });
	return $seconds;
}

$kusto->reset;
$pg->sql("CREATE DATABASE other$_") for 1 .. 2;
my $session = stuck_session($phases[5]);
$session->send(call('wide'));
wait_until(\&is_stuck, 'until an upload is stuck');
cmp_ok(drop_database('other1'), '<', 1, 'DROP DATABASE of another database while an upload is stuck');
my ($seconds) = elapsed(sub { $pg->sql('CREATE DATABASE another') });
cmp_ok($seconds, '<', 5, 'CREATE DATABASE while an upload is stuck');
$pg->sql('SELECT pg_cancel_backend(' . $session->pid . ')');
$session->receive;
$session->quit;

# The background worker is a process like any other.
$kusto->reset;
$kusto->create_table(KustoCluster::DATABASE, 'T', 'i:int, t:string');
$kusto->fault({ service => 'queue', method => 'POST' }, { blackhole => JSON::PP::true }, times => 1);
$pg->ingest("SELECT 1 AS i, 'x' AS t", 'T');
wait_until(\&is_stuck, 'until the worker is stuck');
cmp_ok(drop_database('other2'), '<', 1, 'DROP DATABASE of another database while the worker is stuck');
is($pg->sql(<<~'SQL'), 0, 'the stuck worker holds neither a transaction nor a snapshot');
	SELECT count(*) FROM pg_stat_activity
	WHERE backend_type LIKE 'kusto%' AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL)
	SQL
cmp_ok($pg->sql(q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'kusto%')), '>', 0,
	'and it is there');
$kusto->clear_faults;

# Names that resolve slowly.
$pg->sql(<<~'SQL');
	CREATE SERVER slow FOREIGN DATA WRAPPER kusto
	OPTIONS (query_uri 'https://engine.slow.test', ingest_uri 'https://ingest-engine.slow.test');
	CREATE USER MAPPING FOR CURRENT_USER SERVER slow OPTIONS (auth 'none')
	SQL
my $slow_call = q(SELECT kusto_ingest('SELECT 1 AS i', 'db', 'T', server => 'slow'));
$session = $pg->session;
$session->sql(q(SET statement_timeout = '300ms'));
for my $statement ($slow_call, q(SELECT kusto_query('print 1', 'db', 'slow')))
{
	($seconds, my $error) = elapsed(sub { $session->fails($statement) });
	is($error->{sqlstate}, '57014', 'slow DNS: statement_timeout cancels') or diag $error->{text};
	cmp_ok($seconds, '<', $prompt, 'slow DNS: promptly');
}
like($session->sql(q(RESET statement_timeout; SELECT kusto_ingest('SELECT 1 AS i, $$x$$ AS t', 'db', 'T', server => 'adx'))),
	qr/^[0-9a-f-]{36}$/, 'slow DNS: the same session works afterwards');
($seconds) = elapsed(sub { $session->quit });
cmp_ok($seconds, '<', $prompt, 'slow DNS: the session ends without waiting for the resolver');

$session = $pg->session;
$session->send($slow_call);
wait_until(sub { $pg->sql('SELECT wait_event IS NOT NULL AND state = $$active$$ FROM pg_stat_activity WHERE pid = ' . $session->pid) eq 't' },
	'until the session waits for the resolver');
($seconds, my $outcome) = elapsed(sub {
	$pg->sql('SELECT pg_terminate_backend(' . $session->pid . ')');
	return $session->receive;
});
ok($outcome->{lost}, 'slow DNS: pg_terminate_backend ends the session');
cmp_ok($seconds, '<', $prompt, 'slow DNS: promptly');
my $resolved = $pg->fails("SET kusto_ingest.retry_timeout = 0; $slow_call");
like($resolved->{text}, qr/engine\.slow\.test/, 'a name that does not exist: the error names it');

$kusto->assert_no_violations;
done_testing();
