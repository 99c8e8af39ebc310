# The cache of tokens and ingestion resources that all processes share when the library is preloaded:
# one of them asks the service, whoever holds the same credentials takes the answer, nobody else
# does, and nobody waits for a process that has gone.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(elapsed wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $true = JSON::PP::true;
my $query = "SELECT kusto_query('T | count', '$db')";

my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	shared_preload_libraries = 'kusto_ingest'
	kusto_ingest.default_server = 'adx'
	log_min_messages = debug1
	restart_after_crash = on
	CONF

# A server whose cache is empty, and a service whose log is.
sub fresh
{
	my ($cluster, %config) = @_;
	$cluster->node->restart;
	$kusto->reset;
	$kusto->config(%config) if %config;
	$kusto->create_table($db, 'T', 'i:int, s:string');
	return;
}

sub requests
{
	my ($service, $path) = @_;
	return scalar $kusto->log(service => $service, path => $path);
}

sub tokens { return requests('login', qr{/oauth2/v2\.0/token}) }
sub metadata { return requests('ingest', qr{/auth/metadata}) + requests('engine', qr{/auth/metadata}) }

# Management commands at the ingestion host: resources and identity token.
sub commands { return requests('ingest', qr{/v1/rest/mgmt}) }

sub call { return 'SELECT ' . $_[0]->ingest_call(q(SELECT 1 AS i, 'x' AS s), 'T') }

# ---- shared by whoever has the same credentials ----

fresh($pg);
my @sessions = map { $pg->session } 1 .. 4;
my @ids = map { $_->sql(call($pg)) } @sessions;
$pg->succeeds($_, 'an export of one of four sessions') for @ids;
is(tokens(), 1, 'four sessions and the worker: one token');
is(metadata(), 1, 'four sessions and the worker: the metadata once');
is(commands(), 2, 'four sessions and the worker: resources and identity token once');
$kusto->settle;
is($kusto->count($db, 'T'), 4, 'four rows');
$_->quit for @sessions;
$pg->sql($query);
is(tokens(), 1, 'a session that comes when the others have gone: no further token');
$pg->session->sql("$query; $query");
wait_until(sub { slurp_file($pg->node->logfile) =~ /DEBUG:  kusto_ingest: shared cache of access tokens: 1 taken, 0 given/ },
	'the log tells, at its lowest level');
pass('the log tells, at its lowest level');

# The same login with another secret must not find what the right one has got.
$pg->sql('CREATE ROLE mallory LOGIN; GRANT USAGE ON FOREIGN SERVER adx TO mallory; '
	. "GRANT EXECUTE ON FUNCTION kusto_query TO mallory");
$pg->sql("CREATE USER MAPPING FOR mallory SERVER adx OPTIONS (auth 'client_secret', tenant '" . $kusto->tenant
	. "', client_id '" . $kusto->client_id . "', client_secret 'guessed')");
$pg->fails_like($query, { sqlstate => '28000' }, 'the same login with another secret: refused', user => 'mallory');
is(tokens(), 2, 'the same login with another secret: has to ask for itself');

# So must another identity.
$pg->connect_to($kusto, name => 'machine', mapping => { auth => 'managed_identity', tenant => undef,
		client_id => undef, client_secret => undef, identity_endpoint => $kusto->imds });
my $machine = "SELECT kusto_query('T | count', '$db', 'machine')";
$pg->sql($machine) for 1 .. 3;
is(requests('imds', qr{^/metadata/identity/oauth2/token}), 1, 'another identity: a token of its own, once');
is(tokens(), 2, 'another identity: not that of the first');

# A change of the secret is another identity, too.
$pg->sql(q(ALTER USER MAPPING FOR CURRENT_USER SERVER adx OPTIONS (SET client_secret 'wrong now')));
$pg->fails_like($query, { sqlstate => '28000' }, 'a secret that was changed to a wrong one: refused');
$pg->sql("ALTER USER MAPPING FOR CURRENT_USER SERVER adx OPTIONS (SET client_secret '" . $kusto->client_secret . "')");
my $tokens = tokens();
like($pg->sql($query), qr/Count/, 'and back');
is(tokens(), $tokens, 'the old token is found again');

# What tries the way to Kusto shall not be answered from memory.
my $test = 'SELECT bool_and(ok) FROM kusto_test_connection()';
fresh($pg);
my $session = $pg->session;
like($session->sql($query), qr/Count/, 'a session has a token');
is(tokens(), 1, 'one');
for my $n (1, 2)
{
	is($session->sql($test), 't', 'the connection test passes');
	is(tokens(), 1 + $n, 'and has asked for a token itself');
	is(metadata(), 1 + $n, 'for the metadata');
	is(commands(), 2 * $n, 'and for the resources');
}
like($session->sql($query), qr/Count/, 'a query');
like($pg->sql($query), qr/Count/, 'of this session, or of another');
is(tokens(), 3, 'needs none');
$pg->succeeds($session->sql(call($pg)), 'an export');
is(commands(), 6, 'nor has the test given its resources to anybody');
$session->quit;

# ---- what the service rejects ----

fresh($pg);
@sessions = map { $pg->session } 1 .. 3;
$_->sql($query) for @sessions;
$kusto->revoke_tokens;
like($_->sql($query), qr/Count/, 'a token was revoked: a session goes on') for @sessions;
is(tokens(), 2, 'a token was revoked: one new one for three sessions');
$_->quit for @sessions;

fresh($pg);
@sessions = map { $pg->session } 1 .. 2;
$_->sql(call($pg)) for @sessions;
$kusto->fault({ service => 'blob', method => 'PUT' },
	{ status => 403, headers => { 'Content-Type' => 'application/xml', 'x-ms-error-code' => 'AuthenticationFailed' },
		body => '<?xml version="1.0"?><Error><Code>AuthenticationFailed</Code><Message>Signature not valid in the specified time frame</Message></Error>' },
	times => 1);
$pg->succeeds($_->sql(call($pg)), 'signatures that storage refuses: an export goes on') for @sessions;
is(commands(), 4, 'signatures that storage refuses: fetched anew once');
$_->quit for @sessions;

# ---- expiry ----

fresh($pg, token_lifetime => 2);
@sessions = map { $pg->session } 1 .. 3;
$_->sql($query) for @sessions;
cmp_ok(tokens(), '<=', 2, 'tokens that live for two seconds: not one a session');
$tokens = tokens();
$sessions[0]->sql('SELECT pg_sleep(2.2)');
$_->sql($query) for @sessions;
cmp_ok(tokens(), '>', $tokens, 'an expired token is not given to anybody');
cmp_ok(tokens(), '<=', $tokens + 2, 'one gets a new one for all');
is(scalar(grep { $_->{status} eq '401' } $kusto->log), 0, 'nor is it tried');
$_->quit for @sessions;

# ---- the process that fetches goes away ----

# Two sessions; the first hangs in its request for a token, the second waits for the first.
sub two_sessions
{
	fresh($pg);
	$kusto->fault({ service => 'login', path => '/token' }, { blackhole => $true }, times => 1);
	my @two = map { $pg->session } 1 .. 2;
	my @pids = map { $_->pid } @two;
	$two[0]->send($query);
	wait_until(sub { $kusto->fired == 1 }, 'the token endpoint stalls');
	$two[1]->send($query);
	$pg->poll("SELECT state = 'active' AND wait_event_type = 'Extension' FROM pg_stat_activity WHERE pid = $pids[1]");
	return (\@two, \@pids);
}

my ($two, $pids) = two_sessions();
is(tokens(), 1, 'while one asks for a token, another does not');
my ($seconds) = elapsed(sub {
	$pg->sql("SELECT pg_terminate_backend($pids->[0])");
	like($two->[1]->receive->{out}, qr/Count/, 'when the one is terminated, the other asks');
});
cmp_ok($seconds, '<', 10, 'at once, and not when the lease has run out');
is(tokens(), 2, 'once');
$two->[1]->quit;

($two, $pids) = two_sessions();
($seconds) = elapsed(sub {
	$pg->sql("SELECT pg_cancel_backend($pids->[0])");
	like($two->[1]->receive->{out}, qr/Count/, 'when its statement is cancelled, the other asks');
});
cmp_ok($seconds, '<', 10, 'at once, too');
$two->[1]->quit;

($two, $pids) = two_sessions();
$pg->crash($pids->[0]);
$tokens = tokens();
like($pg->sql($query), qr/Count/, 'after a crash the cache begins anew');
is(tokens(), $tokens + 1, 'empty');

# ---- not preloaded ----

$pg->node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
fresh($pg);
@sessions = map { $pg->session } 1 .. 2;
@ids = map { $_->sql(call($pg)) } @sessions;
$pg->succeeds($_, 'not preloaded: an export') for @ids;
is(tokens(), 3, 'not preloaded: two sessions and the worker have a token each');
is(commands(), 6, 'not preloaded: and resources each');
$_->quit for @sessions;

$kusto->settle;
$kusto->assert_no_violations;
done_testing();
