# Every way in which the service says no: the error, or the row of the failed operation, has the
# service's own words, a SQLSTATE, and says what to do.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(elapsed);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => "kusto_ingest.retry_timeout = '20s'\nkusto_ingest.default_server = 'adx'\nkusto_ingest.repost_after = '2s'\n");
my @json = (headers => { 'Content-Type' => 'application/json' });
my $once = 'SET kusto_ingest.retry_timeout = 0; ';

# Fresh data, log and faults for a case; the faults go on until clear_faults.
sub service_says
{
	my (@faults) = @_;
	$kusto->reset;
	$kusto->create_table(KustoCluster::DATABASE, 'T', 'i:int');
	$kusto->fault(@$_, times => -1) for @faults;
	return;
}

sub export { return 'SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'T', @_) }

sub kusto_error
{
	my ($code, $message, %more) = @_;
	return encode_json({ error => {
		code => $code, message => $message, '@message' => $message,
		'@type' => 'Kusto.Common.Svc.Exceptions.SomeException', '@permanent' => JSON::PP::true, %more } });
}

# ---- 401 ----

$pg->connect_to($kusto, name => 'wrong_secret', mapping => { client_secret => 'not the secret' });
service_says();
$pg->fails_like(export(server => q('wrong_secret')),
	{ sqlstate => '28000', message => qr/token/, detail => qr/invalid_client.*AADSTS7000215/s, hint => qr/client_id.*secret/ },
	'a wrong client secret');
$pg->connect_to($kusto, name => 'wrong_tenant', mapping => { tenant => '00000000-0000-0000-0000-000000000000' });
$pg->fails_like(export(server => q('wrong_tenant')),
	{ sqlstate => '28000', detail => qr/AADSTS90002/, hint => qr/tenant/ },
	'a wrong tenant');
$pg->connect_to($kusto, name => 'wrong_client', mapping => { client_id => '00000000-0000-0000-0000-000000000000' });
$pg->fails_like(export(server => q('wrong_client')),
	{ sqlstate => '28000', detail => qr/AADSTS700016/, hint => qr/client_id/ },
	'a wrong client id');

service_says([ { service => 'ingest|engine', path => '/v[12]/rest/(mgmt|query)' }, { status => 401, body => '' } ]);
$pg->fails_like(export(), { sqlstate => '28000', detail => qr/401/, hint => qr/user mapping/ },
	'a token that ingestion does not accept');
is(scalar(grep { $_->{status} eq '200' } $kusto->log(service => 'login')), 2, 'the token was asked for once more');
$pg->fails_like(q(SELECT kusto_query('print 1', 'db')), { sqlstate => '28000', detail => qr/401/, hint => qr/user mapping/ },
	'a token that the engine does not accept');

# ---- 403 ----

my $principal = 'aadapp=11111111-2222-3333-4444-555555555555;66666666-7777-8888-9999-000000000000';
service_says([ { service => 'ingest', path => '/v1/rest/mgmt' },
	{ status => 403, @json, body => kusto_error('Forbidden', "Principal '$principal' is not authorized to perform operation 'Ingest' on 'any database'.") } ]);
$pg->fails_like(export(),
	{ sqlstate => '42501', detail => qr/Forbidden.*not authorized to perform operation 'Ingest'/s,
		hint => qr/Ingestor.*\.add database \['db'\] ingestors \("\Q$principal\E"\)/s },
	'no role to ingest: the hint has the command that grants it');

service_says([ { service => 'engine', path => '/v2/rest/query' },
	{ status => 403, @json, body => kusto_error('Forbidden', "Principal '$principal' is not authorized to read database 'db'.") } ]);
$pg->fails_like(q(SELECT kusto_query('T', 'db')),
	{ sqlstate => '42501', detail => qr/not authorized to read/, hint => qr/\.add database \['db'\] (?:users|viewers) \("\Q$principal\E"\)/ },
	'no role to query');

service_says([ { service => 'engine', path => '/v1/rest/mgmt' },
	{ status => 403, @json, body => kusto_error('Forbidden', "Principal '$principal' is not authorized to perform operation 'TableCreate'.") } ]);
$pg->fails_like(q(SELECT kusto_command('.create table X (i:int)', 'db')),
	{ sqlstate => '42501', detail => qr/TableCreate/, hint => qr/\.add database \['db'\] \w+ \("\Q$principal\E"\)/ },
	'no role for a command');

# The same from the service's own mouth, with our principal in it.
service_says();
$kusto->config(roles => ['viewer']);
my $own = 'aadapp=' . $kusto->client_id . ';' . $kusto->tenant;
$pg->fails_like(export(), { sqlstate => '42501', detail => qr/\Q$own\E/, hint => qr/ingestors \("\Q$own\E"\)/ },
	'a principal that may only read');
$pg->fails_like(q(SELECT kusto_command('.create table X (i:int)', 'db')), { sqlstate => '42501', hint => qr/\Q$own\E/ },
	'a principal that may only read gives a command');
like($pg->sql(q(SELECT kusto_query('T | count', 'db'))), qr/Count/, 'a principal that may only read can read');

service_says([ { service => 'ingest', path => '/v1/rest/mgmt' }, { status => 403, body => '' } ]);
$pg->fails_like(export(), { sqlstate => '42501', detail => qr/403/, hint => qr/ingestors/ },
	'a 403 without a word');

# ---- 404 ----

service_says([ { service => 'ingest', path => '/v1/rest/mgmt' }, { status => 404, headers => { 'Content-Type' => 'text/html' }, body => '<html><h1>Not Found</h1></html>' } ]);
$pg->fails_like(export(), { detail => qr/404/, hint => qr/ingest_uri/ }, 'a 404 from the ingestion host');
service_says([ { service => 'engine', path => '/v2/rest/query' }, { status => 404, headers => { 'Content-Type' => 'text/html' }, body => '<html><h1>Not Found</h1></html>' } ]);
$pg->fails_like(q(SELECT kusto_query('T', 'db')), { detail => qr/404/, hint => qr/query_uri/ }, 'a 404 from the engine');

# ---- names that Kusto does not know ----

service_says();
my $operation = $pg->ends_as($pg->ingest('SELECT 1 AS i', 'NoSuchTable'), 'failed', 'an unknown table fails');
like($operation->{error_code}, qr/^BadRequest_(?:TableNotExist|EntityNotFound)$/, 'an unknown table: the code');
like("$operation->{error_message} $operation->{details}", qr/NoSuchTable/, 'an unknown table: it is named');
like($operation->{hint}, qr/create_table => true/, 'an unknown table: the hint');
is($pg->blobs($operation->{id})->[0]{state}, 'failed', 'an unknown table: the blob has failed');
$pg->fails_like(q(CALL kusto_ingest_and_wait('SELECT 1 AS i', 'db', 'NoSuchTable')),
	{ message => qr/./, detail => qr/NoSuchTable/, hint => qr/create_table => true/ },
	'an unknown table: CALL kusto_ingest_and_wait raises the same');

$operation = $pg->ends_as($pg->ingest('SELECT 1 AS i', 'T', database => 'NoSuchDatabase'), 'failed', 'an unknown database fails');
like("$operation->{error_message} $operation->{details}", qr/NoSuchDatabase/, 'an unknown database: it is named');
like($operation->{hint}, qr/database.*case-sensitive/, 'an unknown database: the hint');

$operation = $pg->ends_as($pg->ingest('SELECT 1 AS i', 'T', mapping => q('no_such_mapping')), 'failed', 'an unknown mapping fails');
like($operation->{error_code}, qr/Mapping/, 'an unknown mapping: the code');
like($operation->{hint}, qr/mapping.*csv/, 'an unknown mapping: the hint');

# What the service says of the data themselves; kusto-local says it on request.
my %verdicts = (
	Stream_WrongNumberOfFields => qr/columns/,
	BadRequest_DatabaseAccessDenied => qr/Ingestor/,
	BadRequest_InvalidKustoIdentityToken => qr/again/,
	Download_SourceNotFound => qr/again/,
	General_ThrottledIngestion => qr/later/,
	Some_CodeOfTomorrow => undef);
for my $code (sort keys %verdicts)
{
	service_says();
	$kusto->config(outcomes => [ { status => 'Failed', errorCode => $code, failureStatus => 'Permanent', details => "because of $code" } ]);
	$operation = $pg->ends_as($pg->sql(export()), 'failed', "$code: the operation fails");
	is($operation->{error_code}, $code, "$code: the code");
	like($operation->{details}, qr/because of $code/, "$code: the details");
	like($operation->{hint}, $verdicts{$code}, "$code: the hint") if $verdicts{$code};
}
service_says();
$kusto->config(outcomes => [ { status => 'Skipped' } ]);
$pg->ends_as($pg->sql(export()), 'skipped', 'data that Kusto has already are skipped');

$pg->fails_like(q(SELECT kusto_query('NoSuchTable', 'db')),
	{ detail => qr/NoSuchTable/ }, 'a query of an unknown table');
$pg->fails_like(q(SELECT kusto_query('T |', 'db')),
	{ message => qr/./, detail => qr/yntax/ }, 'a query that is no query');
$pg->fails_like(q(SELECT kusto_query('T', 'NoSuchDatabase')),
	{ detail => qr/NoSuchDatabase/ }, 'a query of an unknown database');
$pg->fails_like(q(SELECT kusto_command('.no such command', 'db')),
	{ detail => qr/yntax|command/i }, 'a command that is none');

# ---- 429, 500, 503: passing, or not ----

my %passing = (
	'429 with Retry-After' => { status => 429, headers => { 'Retry-After' => '1', 'Content-Type' => 'application/json' },
		body => kusto_error('Throttled', 'Too many requests', '@permanent' => JSON::PP::false) },
	'429 without Retry-After' => { status => 429, @json,
		body => kusto_error('Throttled', 'Too many requests', '@permanent' => JSON::PP::false) },
	'429 with an empty body' => { status => 429, body => '' },
	'500' => { status => 500, @json, body => kusto_error('InternalServerError', 'Internal service error', '@permanent' => JSON::PP::false) },
	'503 with text' => { status => 503, headers => { 'Content-Type' => 'text/html' }, body => '<html>Service Unavailable</html>' });
my %sqlstates = ('429' => '53000', '500' => '58000', '503' => '58000');
for my $name (sort keys %passing)
{
	my $action = $passing{$name};

	for my $place ([ 'ingest', '/v1/rest/mgmt' ], [ 'blob', '.' ])
	{
		my ($service, $path) = @$place;
		service_says();
		$kusto->fault({ service => $service, path => $path }, $action, times => 1);
		my ($seconds, $id) = elapsed(sub { $pg->sql(export()) });
		$pg->succeeds($id, "$name once from $service: it succeeds");
		cmp_ok($seconds, '>=', 1, "$name once from $service: Retry-After is honoured") if $name =~ /with Retry/;
	}

	# The worker meets it.
	service_says();
	$kusto->fault({ service => 'queue', method => 'POST' }, $action, times => 1);
	$pg->succeeds($pg->sql(export()), "$name once from the queue: it succeeds");

	# For good.
	service_says([ { service => 'ingest', path => '/v1/rest/mgmt' }, $action ]);
	my $sqlstate = $sqlstates{ $action->{status} };
	$pg->fails_like($once . export(), { sqlstate => $sqlstate, detail => qr/$action->{status}/, hint => qr/[Tt]ry again/ },
		"$name for ever from ingestion");
	service_says([ { service => 'blob' }, $action ]);
	$pg->fails_like($once . export(), { sqlstate => $sqlstate, detail => qr/$action->{status}/, hint => qr/[Tt]ry again/ },
		"$name for ever from storage");
	service_says([ { service => 'engine', path => '/v2/rest/query' }, $action ]);
	$pg->fails_like($once . q(SELECT kusto_query('print 1', 'db')), { sqlstate => $sqlstate, detail => qr/$action->{status}/, hint => qr/[Tt]ry again/ },
		"$name for ever from the engine");
}

# How long is long: no request is repeated beyond retry_timeout.
service_says([ { service => 'ingest', path => '/v1/rest/mgmt' }, { status => 503, body => '' } ]);
my ($seconds, $error) = elapsed(sub { $pg->fails(q(SET kusto_ingest.retry_timeout = '2s'; ) . export()) });
is($error->{sqlstate}, '58000', '503 for ever, with repetition');
cmp_ok($seconds, '<', 4, '503 for ever: retry_timeout is kept');
cmp_ok(scalar($kusto->log(service => 'ingest', path => qr/mgmt/)), '>', 2, '503 for ever: it was repeated');

# A Retry-After beyond the time that there is fails at once instead of waiting in vain.
service_says([ { service => 'ingest', path => '/v1/rest/mgmt' }, { status => 429, headers => { 'Retry-After' => '3600' }, body => '' } ]);
($seconds, $error) = elapsed(sub { $pg->fails(export()) });
is($error->{sqlstate}, '53000', 'Retry-After of an hour');
cmp_ok($seconds, '<', 5, 'Retry-After of an hour: it does not wait in vain');

# A refusal that says that it is permanent is not repeated.
service_says([ { service => 'ingest', path => '/v1/rest/mgmt' }, { status => 400, @json, body => kusto_error('General_BadRequest', 'Nobody likes this request') } ]);
$pg->fails_like(export(), { detail => qr/General_BadRequest: Nobody likes this request/ }, 'a permanent refusal');
# Resources and identity token are asked for at once.
is(scalar(grep { $_->{path} =~ /mgmt/ } $kusto->log(service => 'ingest')), 2, 'a permanent refusal is not repeated')
  or diag explain [ $kusto->log(service => 'ingest') ];

# ---- answers that nobody expects ----

my %nonsense = (
	'a page of HTML' => { status => 200, headers => { 'Content-Type' => 'text/html' }, body => '<!DOCTYPE html><html><body>Welcome to our proxy</body></html>' },
	'nothing' => { status => 200, body => '' },
	'half a document' => { status => 200, @json, body => '{"Tables":[{"TableName":"Table_0","Columns":[' },
	'another document' => { status => 200, @json, body => '{"weather":"fine"}' },
	'bytes' => { status => 200, @json, body => "\x{1}\x{2}\"\\" },
	'a very deep document' => { status => 200, @json, body => '[' x 5000 . ']' x 5000 });
for my $name (sort keys %nonsense)
{
	service_says([ { service => 'ingest', path => '/v1/rest/mgmt' }, $nonsense{$name} ]);
	$pg->fails_like($once . export(), { sqlstate => '08P01', message => qr/./, detail => qr/./ }, "$name instead of resources");
	service_says([ { service => 'engine', path => '/v2/rest/query' }, $nonsense{$name} ]);
	$pg->fails_like($once . q(SELECT kusto_query('print 1', 'db')), { sqlstate => '08P01', message => qr/./ }, "$name instead of a result");
}
service_says([ { service => 'ingest', path => '/v1/rest/mgmt' }, { status => 502, headers => { 'Content-Type' => 'text/html' }, body => '<html><body>Bad Gateway of the proxy</body></html>' } ]);
$pg->fails_like($once . export(), { detail => qr/502/ }, 'a gateway in between');
service_says([ { service => 'engine', path => '/v2/rest/query' },
	{ status => 200, @json, body => '[{"FrameType":"DataSetHeader","IsProgressive":false,"Version":"v2.0"},'
		. '{"FrameType":"DataSetCompletion","HasErrors":true,"Cancelled":false,"OneApiErrors":[{"error":{"code":"LimitsExceeded","message":"Request is invalid","@message":"Query result set has exceeded the limits","@permanent":true}}]}]' } ]);
$pg->fails_like($once . q(SELECT kusto_query('print 1', 'db')), { detail => qr/LimitsExceeded.*(?:limits|invalid)/s }, 'an error inside a 200');

# ---- the wrong host ----

$pg->connect_to($kusto, name => 'both_engine', server => { ingest_uri => $kusto->engine });
$pg->connect_to($kusto, name => 'both_ingest', server => { query_uri => $kusto->ingest });
service_says();
$pg->fails_like(export(server => q('both_engine')),
	{ message => qr/./, hint => qr/ingest_uri.*"ingest-"/s }, 'the engine asked for ingestion resources');
$pg->fails_like(q(SELECT kusto_query('T', 'db', 'both_ingest')),
	{ message => qr/./, hint => qr/query_uri.*"ingest-"/s }, 'the ingestion host asked for a query');
$pg->fails_like(q(SELECT kusto_command('.show tables', 'db', 'both_ingest')),
	{ message => qr/./, hint => qr/query_uri.*"ingest-"/s }, 'the ingestion host asked for a command');

# ---- nobody there ----

$pg->sql(q(CREATE SERVER nobody FOREIGN DATA WRAPPER kusto OPTIONS (query_uri 'http://127.0.0.1:9', ingest_uri 'http://127.0.0.1:9');
	CREATE USER MAPPING FOR CURRENT_USER SERVER nobody OPTIONS (auth 'none')));
$pg->fails_like($once . export(server => q('nobody')),
	{ sqlstate => '08001', message => qr/./, detail => qr/127\.0\.0\.1/, hint => qr/reach/ }, 'a port where nobody listens');
$pg->fails_like(q(CREATE SERVER stranger FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://cluster.evil.example')),
	{ message => qr/cluster\.evil\.example/, hint => qr/trusted_hosts/ }, 'a host that is not trusted');
sub trust
{
	my ($hosts) = @_;
	$pg->sql("LOAD 'kusto_ingest'; ALTER SYSTEM SET kusto_ingest.trusted_hosts = '$hosts'");
	$pg->sql('SELECT pg_reload_conf()');
	$pg->poll("SELECT current_setting('kusto_ingest.trusted_hosts', true) = '$hosts'");
	return;
}
trust('.evil.example');
$pg->sql(q(CREATE SERVER stranger FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://cluster.evil.example');
	CREATE USER MAPPING FOR CURRENT_USER SERVER stranger OPTIONS (auth 'access_token', access_token 'x')));
trust('');
$pg->fails_like(export(server => q('stranger')),
	{ sqlstate => '42501', message => qr/cluster\.evil\.example/, hint => qr/trusted_hosts/ }, 'a host that is no longer trusted');

# ---- each step of a connection test ----

service_says();
is($pg->sql(q(SELECT count(*) > 4 AND bool_and(ok) AND bool_and(milliseconds >= 0) FROM kusto_test_connection('adx'))), 't',
	'kusto_test_connection: all is well');
like($pg->sql(q(SELECT step || ': ' || detail || ' ' || hint FROM kusto_test_connection('wrong_secret') WHERE NOT ok LIMIT 1)),
	qr/token.*AADSTS7000215.*secret/is, 'kusto_test_connection: a wrong secret');
service_says([ { service => 'ingest', path => '/v1/rest/mgmt' },
	{ status => 403, @json, body => kusto_error('Forbidden', "Principal '$principal' is not authorized to perform operation 'Ingest' on 'any database'.") } ]);
like($pg->sql(q(SELECT hint FROM kusto_test_connection('adx') WHERE NOT ok LIMIT 1)),
	qr/\.add database \['db'\] ingestors \("\Q$principal\E"\)/, 'kusto_test_connection: the command that grants the role');
service_says([ { service => 'blob' }, { status => 403, headers => { 'x-ms-error-code' => 'AuthorizationFailure' },
	body => '<?xml version="1.0"?><Error><Code>AuthorizationFailure</Code><Message>This request is not authorized by network rules.</Message></Error>' } ]);
like($pg->sql(q(SELECT step || ': ' || detail FROM kusto_test_connection('adx') WHERE NOT ok LIMIT 1)),
	qr/storage.*AuthorizationFailure/is, 'kusto_test_connection: storage that refuses');

$kusto->reset;
done_testing();
