# What must not harm a session: changes of a server at the wrong moment, records of ever other
# types, broken connections inside a query, and settings that only the configuration file has.
use strict;
use warnings;

use File::Basename qw(dirname);
use KustoCluster qw(literal wait_until process_status);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $db = KustoCluster::DATABASE;
my $kusto = KustoLocal->start('--config', '{"auth":"none"}');
my $other_kusto = KustoLocal->start('--config', '{"auth":"none"}');

my $shim = "$PostgreSQL::Test::Utils::tmp_check/broken_epoll.so";
my $break = "$PostgreSQL::Test::Utils::tmp_check/break_epoll";
system_or_bail($ENV{CC} // 'cc', '-shared', '-fPIC', '-o', $shim, dirname(__FILE__) . '/broken_epoll.c', '-ldl');

my $pg = KustoCluster->start($kusto,
	conf => "kusto_ingest.trusted_hosts = '.example.org, .kusto.example.com'\n",
	environment => { LD_PRELOAD => $shim, KUSTO_TEST_BREAK_EPOLL => $break },
	mapping => { auth => 'none', tenant => undef, client_id => undef, client_secret => undef });
$kusto->create_table($db, 'T', 'i:int');

# ---- hosts that the configuration file trusts ----

$pg->sql(q(CREATE SERVER trusted FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.kusto.example.com', authority 'https://login.example.org');
	DROP SERVER trusted));
$pg->fails_like(q(CREATE SERVER stranger FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.evilkusto.example.com')),
	{ message => qr/not a known Kusto host/, hint => qr/trusted_hosts/ }, 'a suffix ends at a dot');
$pg->fails_like(q(LOAD 'kusto_ingest'; SET kusto_ingest.trusted_hosts = '.evilkusto.example.com'),
	{ sqlstate => '55P02', message => qr/cannot be changed now/ }, 'a session cannot trust others than the worker does');

# ---- a server that changes while a session reads it ----

sub queries { my ($service) = @_; return scalar grep { $_->{service} eq 'engine' && ($_->{csl} // '') =~ /print/ } $service->log }

my $changing = $pg->session;
my $reading = $pg->session;
$changing->sql('BEGIN; LOCK TABLE pg_user_mapping IN ACCESS EXCLUSIVE MODE');
$reading->send(q(SELECT kusto_query('print 1', server => 'adx')));
$pg->poll('SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pid = ' . $reading->pid);
$changing->sql(sprintf q(ALTER SERVER adx OPTIONS (SET query_uri %s, SET ingest_uri %s)),
	literal($other_kusto->engine), literal($other_kusto->ingest));
$changing->sql('COMMIT');
my $outcome = $reading->receive;
is($outcome->{err}, '', 'a query while its server is changed');
my $before = queries($other_kusto);
$reading->sql(q(SELECT kusto_query('print 1', server => 'adx')));
is(queries($other_kusto), $before + 1, 'the next one goes where the server is now');
$changing->sql(sprintf q(ALTER SERVER adx OPTIONS (SET query_uri %s, SET ingest_uri %s)),
	literal($kusto->engine), literal($kusto->ingest));
$_->quit for $changing, $reading;

# ---- records of ever other types ----

# Each second row holds another record than the one before, and in it an array.
sub high_water
{
	my ($rows) = @_;
	my $session = $pg->session;
	$session->sql('BEGIN');
	$session->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS r', 'T'));
	my $idle = process_status($session->pid)->{VmHWM};
	$session->sql('SELECT ' . $pg->ingest_call(
			"SELECT CASE WHEN i % 2 = 0 THEN row(array[i]) ELSE row(array[i], 1) END AS r FROM generate_series(1, $rows) i", 'T'));
	my $growth = process_status($session->pid)->{VmHWM} - $idle;
	$session->sql('ROLLBACK');
	$session->quit;
	return $growth;
}
my $few = high_water(2000);
my $many = high_water(80000);
cmp_ok($many - $few, '<', 16 * 1024, "memory does not grow with the rows ($few kB, $many kB)");

# ---- connections that break inside a query ----

$pg->sql(<<~"SQL");
	CREATE FUNCTION breaks(i int) RETURNS int LANGUAGE plpgsql AS \$\$
	BEGIN
		EXECUTE format('COPY (SELECT 1) TO %L', '$break.' || pg_backend_pid());
		PERFORM kusto_ingest('SELECT -1 AS i', '$db', 'T');
		RETURN -1;
	EXCEPTION WHEN internal_error THEN
		RETURN i;
	END
	\$\$
	SQL
my $session = $pg->session;
$session->sql(q(SET statement_timeout = '20s'));
$session->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'T'));
$pg->error_is($session->fails('SELECT ' . $pg->ingest_call('SELECT breaks(2) AS i', 'T')),
	{ sqlstate => '08006', message => qr/connections to Kusto were lost/ }, 'an export does not wait for connections that nobody drives');
is_deeply([ glob "$break.*" ], [], 'they were broken');
my $id = $session->sql('SELECT ' . $pg->ingest_call('SELECT 3 AS i', 'T'));
$pg->succeeds($id, 'the same session exports afterwards');
$session->quit;
$kusto->settle;
KustoCluster::same_rows($kusto->rows($db, 'T'), [ [1], [3] ], 'nothing of what failed has arrived');

$_->assert_no_violations for $kusto, $other_kusto;
done_testing();
