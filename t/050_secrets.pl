# No secret in an error, a message, the server log at any level, a table, or pg_stat_activity,
# whatever the service answers.
#
# Secrets are looked for in two ways: by value, those that we know and those that we plant in the
# service's answers; and by shape, for the tokens and signatures that only the service knows.
# CREATE USER MAPPING itself is logged by log_statement = ddl; that is PostgreSQL's, so is this
# setting, and README says so.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(literal wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => "kusto_ingest.default_server = 'adx'\n");
$kusto->create_table(KustoCluster::DATABASE, 'T', 'i:int, t:string');

my $secret = $kusto->client_secret;
my $token = 'opaqueAccessTokenOfNoParticularShape0123456789';
my $jwt = 'eyJhbGciOiJSUzI1NiJ9.eyJwbGFudGVkIjoidG9rZW4ifQ.c2lnbmF0dXJlT2ZBUGxhbnRlZFRva2Vu';
my $signature = 'PLANTEDsignature%2FofAnAccount%2B0123456789%3D';
(my $decoded_signature = $signature) =~ s/%(..)/chr hex $1/ge;
my $identity = 'plantedIdentityTokenOfNoShape0123456789';
my $sas = "sv=2023-11-03&se=2030-01-01T00%3A00%3A00Z&sr=c&sp=rwd&sig=$signature";
my $blob_url = "https://account.blob.core.windows.net/container/blob.csv.gz?$sas";

my %known = (
	'client_secret' => $secret,
	'percent-encoded client_secret' => percent_encoded($secret),
	'access_token' => $token,
	'bearer token' => $jwt,
	'signature' => $signature,
	'decoded signature' => $decoded_signature,
	'identity token' => $identity);
my %shapes = (
	'something like a JWT' => qr/eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}/,
	'a signature' => qr/sig(?:=|%3D)(?!\*\*\*)[A-Za-z0-9%+\/]{6,}/i,
	# PostgreSQL 18 describes a parameter with these words.
	'a bearer token' => qr/Bearer\s+(?!\*\*\*|tokens\.)[A-Za-z0-9._~+\/-]{6,}/i,
	'a secret in a form' => qr/client_secret(?:=|%3D)(?!\*\*\*)[^\s&"'*]{4,}/i);

sub percent_encoded
{
	my ($text) = @_;
	$text =~ s/([^A-Za-z0-9._~-])/sprintf '%%%02X', ord $1/ge;
	return $text;
}

# What is wrong with a text, or an empty list.
sub leaks
{
	my ($text) = @_;
	my @found;
	push @found, map { "$_ by value" } grep { index($text, $known{$_}) >= 0 } sort keys %known;
	push @found, grep { $text =~ $shapes{$_} } sort keys %shapes;
	return @found;
}

sub clean
{
	my ($text, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @leaks = leaks($text);
	return is("@leaks", '', $name) || diag context($text);
}

# The lines with a leak; this goes to a test's output only when the product is broken.
sub context
{
	my ($text) = @_;
	return join "\n", map { substr $_, 0, 2000 } grep { leaks($_) } split /\n/, $text;
}

# A detector that detects nothing proves nothing.
for my $name (sort keys %known)
{
	ok(scalar leaks("x $known{$name} y"), "the test would see the $name");
}
ok(scalar leaks("$blob_url"), 'the test would see a SAS');

$pg->connect_to($kusto, name => 'tok',
	mapping => { auth => 'access_token', access_token => $token, tenant => undef, client_id => undef, client_secret => undef });

# From here on everything is logged that can be.
$pg->sql(<<~'SQL');
	ALTER SYSTEM SET log_min_messages = debug5;
	ALTER SYSTEM SET log_error_verbosity = verbose;
	ALTER SYSTEM SET log_min_error_statement = debug5;
	ALTER SYSTEM SET log_min_duration_statement = 0;
	SELECT pg_reload_conf()
	SQL
$pg->node->restart;

my $error_object = encode_json({
	error => {
		code => 'BadRequest',
		message => "Request is invalid: POST with Authorization: Bearer $jwt and $blob_url",
		'@type' => 'Kusto.DataNode.Exceptions.RequestException',
		'@message' => "authorizationContext=$identity; source: $blob_url; token $jwt",
		'@context' => { activityId => '0b2f4a3e-0000-0000-0000-000000000000' },
		'@permanent' => JSON::PP::true } });
my $storage_error = <<"XML";
<?xml version="1.0" encoding="utf-8"?>
<Error><Code>AuthenticationFailed</Code><Message>Server failed to authenticate the request for $blob_url.
Signature did not match: sig=$signature</Message>
<AuthenticationErrorDetail>sig=$decoded_signature was computed with $blob_url</AuthenticationErrorDetail></Error>
XML

# name, match, action: what the service does wrong; and the server, if only one knows that secret.
my @faults = (
	[ 'a token endpoint that echoes the form', { service => 'login' },
		{ status => 401, headers => { 'Content-Type' => 'application/json' },
			body => encode_json({ error => 'invalid_client',
				error_description => "AADSTS7000215: bad form grant_type=client_credentials&client_secret=" . percent_encoded($secret) . "&scope=x; secret $secret" }) } ],
	[ 'a token endpoint that answers with text', { service => 'login' },
		{ status => 400, body => "cannot use $secret nor " . percent_encoded($secret) } ],
	[ 'a token response that is broken', { service => 'login' },
		{ status => 200, headers => { 'Content-Type' => 'application/json' }, body => qq({"token_type":"Bearer","access_token":"$jwt",) } ],
	[ 'a token endpoint that redirects', { service => 'login' },
		{ status => 302, headers => { Location => $kusto->engine . "/followed?client_secret=$secret&$sas" }, body => '' } ],
	[ 'cloud metadata that redirects', { path => '^/v1/rest/auth/metadata' },
		{ status => 302, headers => { Location => $kusto->engine . "/followed?$sas" }, body => $blob_url } ],
	[ 'a service that echoes the request', { service => 'ingest', path => '/v1/rest/mgmt' },
		{ status => 400, headers => { 'Content-Type' => 'application/json' }, body => $error_object } ],
	[ 'a service that says 401 with the token', { service => 'engine|ingest', path => '/v[12]/rest/(mgmt|query)' },
		{ status => 401, headers => { 'WWW-Authenticate' => qq(Bearer realm="$jwt") }, body => "not authorized: Authorization: Bearer $jwt" } ],
	[ 'a service that says 401 with a token of no shape', { service => 'engine|ingest', path => '/v[12]/rest/(mgmt|query)' },
		{ status => 401, body => "cannot use $token, nor \"$token\"" }, 'tok' ],
	[ 'a service that says 403 with a SAS', { service => 'engine|ingest', path => '/v[12]/rest/(mgmt|query)' },
		{ status => 403, body => "forbidden: $blob_url\nsv=1&sig=$signature\nBearer $jwt" } ],
	[ 'resources that are broken', { service => 'ingest', body => 'ingestion resources' },
		{ status => 200, headers => { 'Content-Type' => 'application/json' },
			body => encode_json({ Tables => [ { TableName => 'Table_0',
				Columns => [ { ColumnName => 'ResourceTypeName' }, { ColumnName => 'StorageRoot' } ],
				Rows => [ [ 'TempStorage', "ftp://account.blob.core.windows.net/c?$sas" ], [ 'SecuredReadyForAggregationQueue', "not a url ?$sas" ] ] } ] }) } ],
	[ 'resources cut off within a SAS', { service => 'ingest', body => 'ingestion resources' },
		{ status => 200, headers => { 'Content-Type' => 'application/json' },
			body => qq({"Tables":[{"TableName":"Table_0","Columns":[{"ColumnName":"ResourceTypeName"},{"ColumnName":"StorageRoot"}],"Rows":[["TempStorage","$blob_url) } ],
	[ 'an identity token in an error', { service => 'ingest', body => 'identity token' },
		{ status => 200, headers => { 'Content-Type' => 'application/json' },
			body => encode_json({ Exceptions => ["authorizationContext: $identity, \"AuthorizationContext\":\"$identity\""] }) } ],
	[ 'storage that echoes its URL', { service => 'blob' },
		{ status => 403, headers => { 'Content-Type' => 'application/xml', 'x-ms-error-code' => 'AuthenticationFailed' }, body => $storage_error } ],
	[ 'storage that redirects', { service => 'blob' },
		{ status => 307, headers => { Location => $kusto->engine . "/followed?$sas" }, body => "moved to $blob_url" } ],
	[ 'storage that drops the connection', { service => 'blob' }, { reset => JSON::PP::true } ]);

# Each statement in a session of its own, with nothing cached, at the most talkative level.
sub provoke
{
	my ($statement) = @_;
	my $session = $pg->session;
	$session->sql(q(SET client_min_messages = debug5; SET statement_timeout = '2s'));
	$session->send($statement);
	my $outcome = $session->receive;
	$session->quit;
	return "$outcome->{out}\n$outcome->{err}";
}

my %statements = (
	'kusto_ingest' => sub { 'SELECT ' . $pg->ingest_call(q(SELECT 1 AS i, 'x' AS t), 'T', server => literal($_[0])) },
	'kusto_query' => sub { "SELECT kusto_query('T | take 1', 'db', '$_[0]')" },
	'kusto_command' => sub { "SELECT kusto_command('.show tables', 'db', '$_[0]')" },
	'kusto_test_connection' => sub { "SELECT * FROM kusto_test_connection('$_[0]')" });

my $followed = 0;
for my $fault (@faults)
{
	my ($name, $match, $action, $only) = @$fault;
	my $errors = 0;
	for my $function (sort keys %statements)
	{
		for my $server (qw(adx tok))
		{
			next if $server ne ($only // 'adx') && (defined $only || ($match->{service} // '') !~ /engine/);
			$kusto->reset;
			$kusto->create_table(KustoCluster::DATABASE, 'T', 'i:int, t:string');
			$kusto->fault($match, $action, times => -1);
			my $text = provoke($statements{$function}->($server));
			$errors++ if $text =~ /ERROR|\|f\|/;
			clean($text, "$name: what $function on $server says");
			$followed += grep { $_->{path} =~ /followed/ } $kusto->log;
		}
	}
	cmp_ok($errors, '>', 0, "$name: something fails");
}
is($followed, 0, 'no redirect is followed');

# What the worker keeps of a failure.
$kusto->reset;
$kusto->create_table(KustoCluster::DATABASE, 'T', 'i:int, t:string');
$kusto->fault({ service => 'queue', method => 'POST' },
	{ status => 400, headers => { 'Content-Type' => 'application/xml', 'x-ms-error-code' => 'InvalidInput' }, body => $storage_error }, times => -1);
my $refused = $pg->ingest("SELECT 1 AS i, 'x' AS t", 'T');
$pg->ends_as($refused, 'failed', 'a queue that refuses the message, and echoes its URL');
$kusto->clear_faults;
my $lost = $pg->ingest("SELECT 1 AS i, 'x' AS t", 'NoSuchTable');
$pg->ends_as($lost, 'failed', 'a table that does not exist');
$pg->succeeds($pg->ingest("SELECT 1 AS i, 'x' AS t", 'T'), 'an export that succeeds');
my ($first) = @{ $pg->blobs($refused) };
unlike($first->{url}, qr/\?/, 'a blob is kept without its SAS');

# What others see while a session waits.
for my $match ({ service => 'login' }, { service => 'blob', method => 'PUT' }, { service => 'queue' })
{
	$kusto->reset;
	$kusto->create_table(KustoCluster::DATABASE, 'T', 'i:int, t:string');
	$kusto->fault($match, { blackhole => JSON::PP::true }, times => -1);
	my $session = $pg->session;
	$session->send('SELECT ' . $pg->ingest_call(q(SELECT 1 AS i, 'x' AS t), 'T'));
	wait_until(sub { grep { ($_->{status} // '') eq 'black hole' } $kusto->log }, 'until a request is stuck');
	clean($pg->sql('SELECT a::text FROM pg_stat_activity a'), "pg_stat_activity while the $match->{service} service is silent");
	$pg->sql('SELECT pg_terminate_backend(' . $session->pid . ')');
	$session->receive;
}
$kusto->clear_faults;

# Every table and view, but those whose business it is to show options of user mappings.
my @relations = split /\n/, $pg->sql(<<~'SQL');
	SELECT c.oid::regclass FROM pg_class c
	WHERE relkind IN ('r', 'v', 'm', 'p', 't') AND c.oid NOT IN (
		'pg_user_mapping'::regclass, 'pg_user_mappings'::regclass,
		'information_schema._pg_user_mappings'::regclass, 'information_schema.user_mapping_options'::regclass)
		AND NOT EXISTS (SELECT FROM pg_class o WHERE o.reltoastrelid = c.oid AND o.relname = 'pg_user_mapping')
	ORDER BY c.oid
	SQL
cmp_ok(scalar @relations, '>', 150, 'there are relations to look into');
my $leaking = 0;
for my $batch (batches(20, @relations))
{
	my $text = '';
	my ($status, $out, $err) = $pg->node->psql('postgres',
		join('', map { "SELECT r::text FROM $_ r;\n" } @$batch), on_error_stop => 0);
	$leaking += clean("$out\n$err", 'tables from ' . $batch->[0]) ? 0 : 1;
}
is($leaking, 0, 'no table holds a secret');

sub batches
{
	my ($size, @list) = @_;
	my @batches;
	push @batches, [ splice @list, 0, $size ] while @list;
	return @batches;
}

# The whole log.
$pg->node->stop;
my $log = slurp_file($pg->node->logfile);
like($log, qr/DEBUG:/, 'the log is at a debug level');
like($log, qr/kusto_ingest/, 'and it tells of the exports');
clean($log, 'the server log');

done_testing();
