# The service fails while the worker creates the table, posts, and asks for the outcome: it goes on,
# or says why not, and what has committed arrives once. See 310 for statements.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use ServiceMatrix;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto);
my $matrix = ServiceMatrix->new($kusto, $pg);
my $db = KustoCluster::DATABASE;
my $true = JSON::PP::true;
my $false = JSON::PP::false;
my ($one, $two) = @{ $kusto->accounts };

my %put_message = (service => 'queue', method => 'POST');
my %insert = (service => 'table', method => 'POST');
my %get = (service => 'table', method => 'GET');

sub refusal { my ($status, $code, %headers) = @_; return { status => $status, body => '', headers => { 'x-ms-error-code' => $code, %headers } } }
my $busy = refusal(503, 'ServerBusy');
my $busy_1s = refusal(503, 'ServerBusy', 'Retry-After' => '1');
my $throttled_1s = refusal(429, 'TooManyRequests', 'Retry-After' => '1');

sub row_says
{
	my ($id, $message, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $pg->poll("SELECT error_message ~ '$message' OR details ~ '$message' FROM kusto.operations WHERE id = '$id'", 't', $name);
}

# ---- busy, for a while ----

$matrix->run('queue: 503 with Retry-After, for a while',
	faults => [ [ \%put_message, $busy_1s, times => 4 ] ],
	requests => { 'Put Message' => [ 5, 5 ], 'Insert Entity' => [ 1, 1 ] },
	fired => 4);
$matrix->run('queue: 429 with Retry-After, for a while',
	faults => [ [ \%put_message, $throttled_1s, times => 4 ] ],
	requests => { 'Put Message' => [ 5, 5 ], 'Insert Entity' => [ 1, 1 ] },
	fired => 4);
$matrix->run('status table: 503 to Insert Entity, for a while',
	faults => [ [ \%insert, $busy, times => 6 ] ],
	requests => { 'Insert Entity' => [ 7, 7 ], 'Put Message' => [ 1, 1 ] },
	fired => 6);
$matrix->run('status table: 429 to Get Entity, for a while',
	faults => [ [ \%get, $throttled_1s, times => 3 ] ],
	requests => { 'Put Message' => [ 1, 1 ], 'Get Entity' => [ 4, 12 ] },
	fired => 3);
for my $host ([ 'token endpoint', { service => 'login' } ], [ 'ingestion host', { service => 'ingest' } ])
{
	my ($name, $match) = @$host;
	# The statement has what it needs; the worker has not.
	my $session;
	$matrix->run("$name: 503 while the worker needs it, for a while",
		warm => 1,
		before => sub {
			$pg->forget_worker;
			$kusto->fault($match, refusal(503, ''), times => 4);
		},
		meanwhile => sub {
			my ($id) = @_;
			wait_until(sub { $kusto->fired >= 4 }, "$name fails");
		},
		requests => { 'Put Message' => [ 1, 1 ], token => [ 1, 6 ] });
}
$matrix->run('.create-merge table: 503, for a while',
	arguments => { create_table => 'true' },
	faults => [ [ { service => 'engine', path => '/v1/rest/mgmt' }, refusal(503, ''), times => 2 ] ],
	requests => { 'create table' => [ 1, 1 ], 'Put Message' => [ 1, 1 ] },
	fired => 2);

# ---- busy for longer than kusto_ingest.post_timeout ----

my %short = (post_timeout => '4s');
for my $case (
	[ 'queue: 503 for ever', \%put_message, $busy, 'Put Message', 'posting an ingestion message failed', 503 ],
	[ 'queue: 429 for ever', \%put_message, refusal(429, 'TooManyRequests'), 'Put Message', 'posting an ingestion message failed', 429 ],
	[ 'status table: 503 to Insert Entity for ever', \%insert, $busy, 'Insert Entity', 'writing a row into the ingestion status table failed', 503 ])
{
	my ($name, $match, $action, $kind, $cause, $status) = @$case;
	$matrix->run($name,
		server => \%short,
		faults => [ [ $match, $action, times => -1 ] ],
		state => 'failed',
		# Each attempt of the worker asks three queues or tables, with a few tries.
		requests => { $kind => [ 4, 60 ], 'Get Entity' => [ 0, 0 ] },
		checks => sub {
			my ($operation) = @_;
			like($operation->{error_message}, qr/^$cause/, "$name: the last cause is in the row");
			like($operation->{details}, qr/HTTP status $status/, "$name: with its status");
			is_deeply($kusto->messages, [], "$name: nothing was posted");
			cmp_ok($operation->{attempts}, '>=', 1, "$name: attempts are counted");
			cmp_ok($pg->blobs($operation->{id})->[0]{post_attempts}, '>', 1, "$name: the worker has tried more than once");
		});
}

# Minutes of refusals must not become a storm: sixteen blobs at a time, ever longer waits.
{
	my $operations = 40;
	$kusto->reset;
	$pg->forget_worker;
	$matrix->{mark} = -1;
	$kusto->create_table($db, 'T', 'i:int, s:string');
	$kusto->fault(\%put_message, $busy, times => -1);
	my $ids = $pg->sql("SELECT string_agg(" . $pg->ingest_call(q(SELECT 1 AS i, 'x' AS s), 'T') . "::text, ' ') FROM generate_series(1, $operations)");
	my @ids = split ' ', $ids;
	$pg->poll("SELECT max(post_attempts) >= 3 FROM kusto.blobs WHERE operation_id = ANY ('{" . join(',', @ids) . "}')");
	my $count = () = $matrix->requests('Put Message');
	my $tried = $pg->sql("SELECT count(*) FROM kusto.blobs WHERE post_attempts > 0 AND operation_id = ANY ('{" . join(',', @ids) . "}')");
	is($tried, 16, 'a queue that refuses for long: sixteen blobs are tried, the others wait');
	my $attempts = $pg->sql("SELECT sum(post_attempts) FROM kusto.blobs WHERE operation_id = ANY ('{" . join(',', @ids) . "}')");
	cmp_ok($count, '<=', $attempts * 12, 'a queue that refuses for long: an attempt is a dozen requests at most') or diag "$count requests, $attempts attempts";
	row_says($ids[0], 'posting an ingestion message failed', 'a queue that refuses for long: the row says so meanwhile');
	$kusto->clear_faults;
	$pg->succeeds($_, 'a queue that refuses for long: when it does no more, all go out') for @ids;
	$kusto->settle;
	is($kusto->count($db, 'T'), $operations, 'a queue that refuses for long: each once');
}

# ---- answers that are lost ----

$matrix->run('the answer to Insert Entity is lost',
	faults => [ [ \%insert, { lose_reply => $true } ] ],
	requests => { 'Insert Entity' => [ 2, 2 ], 'Put Message' => [ 1, 1 ] },
	checks => sub {
		is(($matrix->requests('Insert Entity'))[1]{status}, 409, 'the second finds the row of the first');
	});

# In doubt: the status table is asked before anything is sent again.
$matrix->run('the answer to Put Message is lost, and the data arrive',
	server => { repost_after => '1min' },
	faults => [ [ \%put_message, { lose_reply => $true } ] ],
	requests => { 'Put Message' => [ 1, 1 ] });
$matrix->run('Put Message is lost, and its answer',
	server => { repost_after => '1s' },
	faults => [ [ \%put_message, { reset => $true } ] ],
	requests => { 'Put Message' => [ 2, 2 ], 'Insert Entity' => [ 1, 1 ], 'Get Entity' => [ 2, 20 ] },
	checks => sub {
		my ($first, $second) = $matrix->requests('Put Message');
		my @asked = grep { $_->{seq} > $first->{seq} && $_->{seq} < $second->{seq} } $matrix->requests('Get Entity');
		cmp_ok(scalar @asked, '>=', 1, 'the status table was asked in between');
		cmp_ok(ServiceMatrix::at($second) - ServiceMatrix::at($first), '>=', 1, 'for kusto_ingest.repost_after');
	});

# Each answer may mean that the message has arrived: at least once, but not for ever.
$matrix->run('queue: 500 for ever',
	server => { repost_after => '1s', post_timeout => '3s' },
	faults => [ [ \%put_message, refusal(500, 'InternalError'), times => -1 ] ],
	state => 'unknown',
	requests => { 'Put Message' => [ 2, 5 ], 'Insert Entity' => [ 1, 1 ] },
	checks => sub { like($_[0]{error_message}, qr/Kusto may have got the message/, '500 for ever: the row says so') });

# The message lies in the queue for longer than kusto_ingest.repost_after, and is not alone.
my %late = (
	server => { repost_after => '1s' },
	config => { hold_ingestion => $true },
	faults => [ [ \%put_message, { lose_reply => $true } ] ],
	meanwhile => sub {
		wait_until(sub { my $n = () = $matrix->requests('Put Message'); $n == 2 }, 'the blob is posted again');
		$kusto->config(hold_ingestion => $false);
	});
$matrix->run('the answer to Put Message is lost, and the message is late: found twice in one batch',
	%late, requests => { 'Put Message' => [ 2, 2 ] });
$matrix->run('the answer to Put Message is lost, and the message is late: exactly_once',
	%late,
	arguments => { exactly_once => q('on') },
	requests => { 'Put Message' => [ 2, 2 ] });

# The message is ingested without a word of it: a tag tells, or the blob, which is gone.
my %silent = (
	server => { repost_after => '1s', status_timeout => '4s' },
	config => { outcomes => [ { silent => $true, status => 'Succeeded' } ] },
	faults => [ [ \%put_message, { lose_reply => $true } ] ]);
$matrix->run('a post that landed unseen: with exactly_once it is repeated and found to have landed',
	%silent,
	arguments => { exactly_once => q('on') },
	requests => { 'Put Message' => [ 2, 2 ] });
$matrix->run('a post that landed unseen: without exactly_once it is not repeated',
	%silent,
	arguments => { exactly_once => q('off') },
	state => 'unknown',
	rows => 1,
	requests => { 'Put Message' => [ 1, 1 ] },
	checks => sub { like($_[0]{hint}, qr/rows are in the table/, 'landed unseen: the row says what to do') });

# ---- the queue delivers twice ----

$matrix->run('the queue delivers twice: at least once',
	config => { duplicate_delivery => $true }, arguments => { exactly_once => q('off') }, rows => 2);
$matrix->run('the queue delivers twice: exactly once',
	config => { duplicate_delivery => $true }, arguments => { exactly_once => q('on') }, rows => 1);

# ---- what expires between staging and posting ----

# Runs when the statement has staged its blob and before its transaction commits, with a worker
# that knows tokens and resources.
sub before_commit
{
	my ($code) = @_;
	return (
		warm => 1,
		before => sub { $_[0]->sql('BEGIN') },
		meanwhile => sub {
			my ($id, $session) = @_;
			$code->();
			$session->sql('COMMIT');
		});
}

$matrix->run('SAS expires between upload and post',
	before_commit(sub { $kusto->end_sas }),
	requests => { 'ingestion resources' => [ 1, 1 ], token => [ 0, 0 ], 'Put Message' => [ 1, 1 ], 'Insert Entity' => [ 2, 2 ] });
$matrix->run('SAS and access token expire between upload and post',
	before_commit(sub { $kusto->end_sas; $kusto->revoke_tokens('bearer') }),
	requests => { 'ingestion resources' => [ 1, 2 ], token => [ 1, 1 ], 'Put Message' => [ 1, 1 ] },
	checks => sub {
		my @refused = grep { $_->{status} eq '401' } $matrix->requests('management at the ingestion host');
		cmp_ok(scalar @refused, '>=', 1, 'the old token was refused');
	});
$matrix->run('access token expires between upload and post, by its time',
	config => { token_lifetime => 2 },
	before_commit(sub {
		$kusto->end_sas;
		$pg->sql('SELECT pg_sleep(2.1)');
	}),
	requests => { token => [ 1, 1 ], 'Put Message' => [ 1, 1 ] },
	checks => sub {
		my @refused = grep { $_->{status} eq '401' } $matrix->requests('management at the ingestion host');
		is(scalar @refused, 0, 'an old token is not even tried');
	});

# ---- the status table does not answer ----

$matrix->run('status table: Get Entity is never answered',
	server => { status_timeout => '3s', request_timeout => '1s' },
	faults => [ [ \%get, { blackhole => $true }, times => -1 ] ],
	state => 'unknown',
	rows => 1,
	requests => { 'Put Message' => [ 1, 1 ], 'Get Entity' => [ 1, 12 ] },
	checks => sub {
		my ($operation) = @_;
		like($operation->{error_message}, qr/not reported on the data in time/, 'never answered: the row says so');
		like($operation->{details}, qr/no answer in time/, 'never answered: with the last cause');
	});
$matrix->run('status table: 503 to Get Entity for ever',
	server => { status_timeout => '3s' },
	faults => [ [ \%get, $busy, times => -1 ] ],
	state => 'unknown',
	rows => 1,
	requests => { 'Put Message' => [ 1, 1 ], 'Get Entity' => [ 2, 40 ] },
	checks => sub { like($_[0]{details}, qr/HTTP status 503/, '503 for ever: the last cause is in the row') });
$matrix->run('status table: one byte a second',
	server => { request_timeout => '1s' },
	faults => [ [ \%get, { drip_ms => 1000 }, times => 2 ] ],
	requests => { 'Put Message' => [ 1, 1 ], 'Get Entity' => [ 3, 12 ] },
	fired => 2);
$matrix->run('status table: there is none',
	config => { omit_resources => ['IngestionsStatusTable'] },
	state => 'unknown',
	rows => 1,
	requests => { 'Put Message' => [ 1, 1 ], 'Get Entity' => [ 0, 0 ] },
	checks => sub { like($_[0]{error_message}, qr/the service has no status table/, 'none: the row says so') });
$matrix->run('the service never reports',
	server => { status_timeout => '2s' },
	config => { outcomes => [ { silent => $true, status => 'Succeeded', times => -1 } ] },
	state => 'unknown',
	rows => 1,
	requests => { 'Put Message' => [ 1, 1 ], 'Get Entity' => [ 1, 20 ] });

# ---- slowness ----

$matrix->run('queue: an answer of one byte a second',
	server => { request_timeout => '1s', repost_after => '1min' },
	faults => [ [ \%put_message, { drip_ms => 1000 } ] ],
	requests => { 'Put Message' => [ 1, 1 ] });

$kusto->assert_no_violations;
done_testing();
