# Tokens, ingestion resources and storage: what expires is fetched anew, what fails is tried again
# elsewhere, what is known is not asked for again; and no row is lost or doubled on the way.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(elapsed literal);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => "kusto_ingest.retry_timeout = '20s'\nkusto_ingest.default_server = 'adx'\n");
my $db = KustoCluster::DATABASE;
my $true = JSON::PP::true;

$pg->sql(<<~'SQL');
	CREATE TABLE wide AS
	SELECT i, encode(sha512(i::text::bytea), 'hex') || encode(sha512((-i)::text::bytea), 'hex') AS s
	FROM generate_series(1, 80000) i
	SQL

# A new start; the configuration of the service holds until the next.
sub service
{
	my (%config) = @_;
	$kusto->reset;
	$kusto->config(%config) if %config;
	$kusto->create_table($db, 'T', 'i:int, s:string');
	return;
}

sub call { return 'SELECT ' . $pg->ingest_call(q(SELECT 1 AS i, 'x' AS s), 'T', @_) }
sub call_wide { return 'SELECT ' . $pg->ingest_call('SELECT i, s FROM wide', 'T') }

# How often the service was asked for something.
sub requests
{
	my ($service, $path) = @_;
	return scalar $kusto->log(service => $service, path => $path);
}

sub tokens { return requests('login', qr{/oauth2/v2\.0/token}) }
sub metadata { return requests('ingest', qr{/auth/metadata}) + requests('engine', qr{/auth/metadata}) }

# Management commands at the ingestion host: resources and identity token.
sub commands { return requests('ingest', qr{/v1/rest/mgmt}) }

# Everything that the table should have, and nothing twice.
sub has_rows
{
	my ($rows, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$kusto->settle;
	is($kusto->count($db, 'T'), $rows, $name);
	return;
}

# ---- asked once ----

service();
my $session = $pg->session;
my @ids = map { $session->sql(call()) } 1 .. 20;
$pg->succeeds($_, 'one of twenty') for @ids;
has_rows(20, 'twenty exports: twenty rows');
# The session and the worker are two processes, each with its own cache.
cmp_ok(tokens(), '<=', 2, 'twenty exports: one token for each process');
cmp_ok(metadata(), '<=', 2, 'twenty exports: the metadata once for each process');
cmp_ok(commands(), '<=', 4, 'twenty exports: resources and identity token once for each process');
my ($tokens, $commands) = (tokens(), commands());
$session->sql('BEGIN; ' . call_wide() . '; ROLLBACK');
is(tokens(), $tokens, 'a large export in the same session: no further token');
is(commands(), $commands, 'a large export in the same session: the resources are known');
$session->quit;

# ---- tokens ----

service();
$session = $pg->session;
$pg->succeeds($session->sql(call()), 'before the tokens are revoked');
$kusto->revoke_tokens;
$tokens = tokens();
my $rows = $session->sql(q(SELECT kusto_query('T | count', 'db')));
like($rows, qr/Count/, 'a revoked token: the request succeeds all the same');
is(tokens(), $tokens + 1, 'a revoked token: one refresh') or diag explain [ $kusto->log ];
$session->quit;
# The worker's identity token, which is good for hours otherwise, has been revoked with the others.
$pg->forget_worker;

service(token_lifetime => 2);
$session = $pg->session;
$session->sql(q(SELECT kusto_query('T | count', 'db')));
$session->sql('SELECT pg_sleep(2.2)');
$session->sql(q(SELECT kusto_query('T | count', 'db')));
is(scalar(grep { $_->{status} eq '401' } $kusto->log), 0, 'an expired token is not even tried');
$session->quit;

service();
$kusto->fault({ service => 'login' }, { status => 503, body => '' }, times => 2);
like($pg->sql(call()), qr/^[0-9a-f-]{36}$/, 'a token endpoint that is down for a moment');
$kusto->fault({ service => 'login' }, { lose_reply => $true }, times => 1);
like($pg->sql(call()), qr/^[0-9a-f-]{36}$/, 'a token whose reply is lost');

# ---- ways to log in ----

service(metadata => 'missing');
$pg->connect_to($kusto, name => 'authority', server => { authority => $kusto->login });
$pg->succeeds($pg->sql(call(server => q('authority'))), 'no metadata: the option authority says where to log in');
service(metadata => 'null');
$pg->connect_to($kusto, name => 'none',
	mapping => { auth => 'none', tenant => undef, client_id => undef, client_secret => undef });
$kusto->config(auth => 'none');
like($pg->sql(q(SELECT kusto_query('T | count', 'db', 'none'))), qr/Count/, 'auth none: no token');
is(tokens(), 0, 'auth none: none was asked for');

# Whoever answers for the cluster must not get the secret by naming a login service of its own.
service();
my $foreign = encode_json({ AzureAD => { LoginEndpoint => 'https://login.evil.example', LoginMfaRequired => JSON::PP::false,
	KustoClientAppId => 'x', KustoClientRedirectUri => 'x', KustoServiceResourceId => 'https://kusto.kusto.windows.net' } });
$kusto->fault({ path => '/auth/metadata' }, { status => 200, headers => { 'Content-Type' => 'application/json' }, body => $foreign }, times => -1);
$pg->fails_like(call(), { message => qr/login\.evil\.example/, hint => qr/authority/ }, 'metadata that name a foreign login service');
is(tokens(), 0, 'metadata that name a foreign login service: no token is asked for');
service(metadata => 'empty');
$pg->fails_like(call(), { sqlstate => '08P01', message => qr/AzureAD/ }, 'metadata without content');

service();
my $token = $kusto->issue_token;
$pg->connect_to($kusto, name => 'given',
	mapping => { auth => 'access_token', access_token => $token, tenant => undef, client_id => undef, client_secret => undef });
$pg->succeeds($pg->sql(call(server => q('given'))), 'auth access_token: the given token is used');

my %identity = (auth => 'managed_identity', tenant => undef, client_id => undef, client_secret => undef);
$pg->connect_to($kusto, name => 'machine',
	mapping => { %identity, identity_endpoint => $kusto->imds });
service();
$pg->succeeds($pg->sql(call(server => q('machine'))), 'auth managed_identity: a virtual machine');
is(tokens(), 0, 'auth managed_identity: the login service is not asked');
cmp_ok(requests('imds', qr{^/metadata/identity/oauth2/token}), '>', 0, 'auth managed_identity: the metadata service is');
$pg->connect_to($kusto, name => 'assigned',
	mapping => { %identity, client_id => $kusto->client_id, identity_endpoint => $kusto->imds });
$pg->succeeds($pg->sql(call(server => q('assigned'))), 'auth managed_identity: a user-assigned identity');
$pg->connect_to($kusto, name => 'unassigned',
	mapping => { %identity, client_id => '00000000-0000-0000-0000-000000000000', identity_endpoint => $kusto->imds });
$pg->fails_like(call(server => q('unassigned')),
	{ sqlstate => '28000', hint => qr/identity/, text => qr/Identity not found/ }, 'auth managed_identity: an identity that this machine does not have');

# App Service puts endpoint and header into the environment of the server.
{
	my $app_service = KustoCluster->start($kusto,
		name => 'app_service',
		mapping => \%identity,
		environment => { IDENTITY_ENDPOINT => $kusto->app_service->{endpoint}, IDENTITY_HEADER => $kusto->app_service->{header} });
	service();
	$app_service->succeeds($app_service->sql(call()), 'auth managed_identity: App Service');
	cmp_ok(requests('imds', qr{^/msi/token}), '>', 0, 'auth managed_identity: App Service was asked');
	$app_service->node->stop;
}

# ---- storage ----

service(sas_lifetime => -60);
my $error = $pg->fails(q(SET kusto_ingest.retry_timeout = 0; ) . call());
like($error->{text}, qr/expired|clock/i, 'resources that are expired when they come: the error says so');

service();
$session = $pg->session;
$session->sql(call());
($commands) = commands();
$kusto->fault({ service => 'blob', method => 'PUT' },
	{ status => 403, headers => { 'Content-Type' => 'application/xml', 'x-ms-error-code' => 'AuthenticationFailed' },
		body => '<?xml version="1.0"?><Error><Code>AuthenticationFailed</Code><Message>Signature not valid in the specified time frame</Message></Error>' },
	times => 1);
$pg->succeeds($session->sql(call()), 'a SAS that storage no longer accepts: the export succeeds');
cmp_ok(commands() - $commands, '>=', 1, 'a SAS that storage no longer accepts: the resources are fetched anew');
cmp_ok(commands() - $commands, '<=', 2, 'a SAS that storage no longer accepts: once');
$kusto->fault({ service => 'blob', method => 'PUT' },
	{ status => 403, headers => { 'Content-Type' => 'application/xml', 'x-ms-error-code' => 'AuthenticationFailed' },
		body => '<?xml version="1.0"?><Error><Code>AuthenticationFailed</Code><Message>Signature not valid</Message></Error>' },
	times => -1);
($commands) = commands();
my ($seconds, $refused) = elapsed(sub { $session->fails(call()) });
like($refused->{detail}, qr/AuthenticationFailed/, 'storage that accepts no SAS: an error');
cmp_ok(commands() - $commands, '<=', 2, 'storage that accepts no SAS: the resources are fetched once, not for ever');
cmp_ok($seconds, '<', 10, 'storage that accepts no SAS: it does not go on trying');
$session->quit;

# One account is gone; there are two.
my ($dead) = @{ $kusto->accounts };
for my $how ({ status => 503, headers => { 'x-ms-error-code' => 'ServerBusy' }, body => '' }, { reset => $true })
{
	service();
	my $what = join ' ', 'a dead account', keys %$how;
	$kusto->fault({ service => 'blob', path => "^/$dead/" }, $how, times => -1);
	$kusto->fault({ service => 'queue', path => "^/$dead/" }, $how, times => -1);
	@ids = map { $pg->sql(call()) } 1 .. 4;
	$pg->succeeds($_, "$what: an export succeeds through the other") for @ids;
	has_rows(4, "$what: every row is there, once");
}

# What happens to one request happens to no row.
my %mishaps = (
	'a reply to Put Blob that is lost' => [ \&call, 1, { service => 'blob', method => 'PUT', query => '^(?!.*comp=)' }, { lose_reply => $true } ],
	'a reply to Put Block that is lost' => [ \&call_wide, 80000, { service => 'blob', query => '(^|&)comp=block(&|$)' }, { lose_reply => $true } ],
	'a reply to Put Block List that is lost' => [ \&call_wide, 80000, { service => 'blob', query => '(^|&)comp=blocklist(&|$)' }, { lose_reply => $true } ],
	'a connection that is reset within a block' => [ \&call_wide, 80000, { service => 'blob', query => '(^|&)comp=block(&|$)' }, { reset_after_bytes => 100_000 }, times => 2 ],
	'a connection that is reset within a blob' => [ \&call, 1, { service => 'blob', method => 'PUT' }, { reset_after_bytes => 10 } ],
	'storage that is busy within a blob' => [ \&call_wide, 80000, { service => 'blob', query => '(^|&)comp=block(&|$)' }, { status => 503, headers => { 'x-ms-error-code' => 'ServerBusy' }, body => '' }, skip => 1, times => 2 ],
	'storage that is slow' => [ \&call, 1, { service => 'blob', method => 'PUT' }, { delay_ms => 700 } ],
	'a queue that is busy' => [ \&call, 1, { service => 'queue', method => 'POST' }, { status => 503, headers => { 'x-ms-error-code' => 'ServerBusy' }, body => '' }, times => 2 ],
	'a status table that is busy' => [ \&call, 1, { service => 'table' }, { status => 503, headers => { 'x-ms-error-code' => 'ServerBusy' }, body => '' }, times => 2 ],
	'resources that are busy' => [ \&call, 1, { service => 'ingest', path => '/v1/rest/mgmt' }, { status => 503, body => '' }, times => 2 ],
	'a reply with resources that is lost' => [ \&call, 1, { service => 'ingest', path => '/v1/rest/mgmt' }, { lose_reply => $true } ],
	'a reply with resources that drips' => [ \&call, 1, { service => 'ingest', path => '/v1/rest/mgmt' }, { drip_ms => 2, drip_bytes => 40 } ],
	'cloud metadata that is busy' => [ \&call, 1, { path => '/auth/metadata' }, { status => 503, body => '' } ]);
for my $name (sort keys %mishaps)
{
	my ($export, $expected, $match, $action, %more) = @{ $mishaps{$name} };
	service();
	$kusto->fault($match, $action, %more);
	$pg->succeeds($pg->sql($export->()), "$name: the export succeeds");
	has_rows($expected, "$name: every row is there, once");
	is($kusto->fired, $more{times} // 1, "$name: it happened");
}

$kusto->settle;
$kusto->assert_no_violations;
done_testing();
