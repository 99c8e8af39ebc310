# The service fails while a job of kusto_ingest_async() uploads: nobody waits at the other end, so
# the row has to tell. What the worker does afterwards is the same as for statements: see 311.
use strict;
use warnings;

use File::Temp qw(tempdir);
use JSON::PP;
use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use ServiceMatrix;
use Test::More;

my $kusto = KustoLocal->start('--state-dir', tempdir(CLEANUP => 1));
my $pg = KustoCluster->start($kusto);
my $matrix = ServiceMatrix->new($kusto, $pg);
my $db = KustoCluster::DATABASE;
my $true = JSON::PP::true;
my ($one, $two) = @{ $kusto->accounts };

my %put_blob = (service => 'blob', method => 'PUT', query => '^(?!.*comp=)');
my %put_block = (service => 'blob', method => 'PUT', query => '(^|&)comp=block(&|$)');
my %put_block_list = (service => 'blob', method => 'PUT', query => '(^|&)comp=blocklist(&|$)');
my %management = (service => 'ingest', path => '/v1/rest/mgmt');

sub refusal { my ($status, $code, %headers) = @_; return { status => $status, body => '', headers => { 'x-ms-error-code' => $code, %headers } } }

# Its query ran, its upload failed: the cause is in the row, and nothing else anywhere.
sub has_failed_for
{
	my ($name, $message, $details) = @_;
	return sub {
		my ($operation) = @_;
		like($operation->{error_message}, $message, "$name: the cause is in the row");
		like($operation->{details}, $details, "$name: with its details");
		ok($operation->{hint}, "$name: and what to do");
		is($operation->{runs}, 1, "$name: the query is not run again");
		is_deeply($kusto->messages, [], "$name: nothing is posted");
		is($pg->sql(q(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'kusto_ingest job')), 0, "$name: the process has ended");
	};
}

$matrix->run('job: storage is busy for a while',
	async => 1,
	faults => [ [ \%put_blob, refusal(503, 'ServerBusy', 'Retry-After' => '1'), times => 2 ] ],
	requests => { 'Put Blob' => [ 3, 3 ], 'Put Message' => [ 1, 1 ] },
	fired => 2,
	checks => sub { is($_[0]{runs}, 1, 'job: storage is busy for a while: the query runs once') });

$matrix->run('job: storage is busy for longer than kusto_ingest.retry_timeout',
	async => 1,
	server => { retry_timeout => '2s' },
	faults => [ [ \%put_blob, refusal(503, 'ServerBusy'), times => -1 ] ],
	state => 'failed',
	blobs => [],
	requests => { 'Put Blob' => [ 4, 30 ], 'Put Message' => [ 0, 0 ] },
	checks => has_failed_for('job: storage is busy for too long', qr/uploading a blob failed/, qr/ServerBusy.*HTTP status 503/s));

$matrix->run('job: all storage refuses connections for longer than kusto_ingest.retry_timeout',
	async => 1,
	export => 'blobs',
	server => { retry_timeout => '2s' },
	before => sub { $kusto->down([ "$one.blob", "$two.blob" ]) },
	state => 'failed',
	blobs => [],
	requests => { 'Put Message' => [ 0, 0 ] },
	checks => has_failed_for('job: storage refuses', qr/uploading a blob failed: could not connect/, qr/127\.0\.0\.1/));

$matrix->run('job: all storage is away for a while',
	async => 1,
	export => 'blobs',
	before => sub { $kusto->down(['storage']) },
	meanwhile => sub {
		my ($id) = @_;
		wait_until(sub { my $n = () = $matrix->requests('ingestion resources'); $n }, 'the job has its resources');
		is($pg->operation($id)->{state}, 'running', 'job: all storage is away: it goes on trying');
		$kusto->up;
	});

$matrix->run('job: the service restarts during the upload',
	async => 1,
	export => 'blocks',
	faults => [ [ \%put_block, { delay_ms => 5000 }, skip => 1 ] ],
	meanwhile => sub {
		wait_until(sub { $kusto->fired == 1 }, 'the second block is under way');
		wait_until(sub { grep { ($_->{status} // '') eq '201' } $matrix->requests('Put Block') }, 'the first block is stored');
		$kusto->down(['service']);
		$kusto->up;
	},
	requests => { 'Put Block List' => [ 1, 2 ], 'Put Message' => [ 1, 1 ] });

$matrix->run('job: SAS and access token expire within a blob',
	async => 1,
	export => 'blocks',
	faults => [ [ \%put_block, { end_sas => $true, revoke_tokens => $true }, skip => 1 ] ],
	requests => { 'Put Block List' => [ 1, 1 ], 'Put Message' => [ 1, 1 ] });

$matrix->run('job: reset within a block, and an answer to Put Block List that is lost',
	async => 1,
	export => 'blocks',
	faults => [ [ \%put_block, { reset_after_bytes => 100_000 } ], [ \%put_block_list, { lose_reply => $true } ] ],
	requests => { 'Put Block List' => [ 2, 2 ], 'Put Message' => [ 1, 1 ] },
	fired => 2);

$matrix->run('job: the ingestion host throttles for ever',
	async => 1,
	server => { retry_timeout => '2s' },
	faults => [ [ \%management, refusal(429, ''), times => -1 ] ],
	state => 'failed',
	blobs => [],
	requests => { 'Put Blob' => [ 0, 0 ] },
	checks => has_failed_for('job: the ingestion host throttles', qr/asking the ingestion service failed/, qr/HTTP status 429/));

$matrix->run('job: the ingestion host answers one byte a second, for ever',
	async => 1,
	server => { retry_timeout => '2s', request_timeout => '1s' },
	faults => [ [ \%management, { drip_ms => 1000 }, times => -1 ] ],
	state => 'failed',
	blobs => [],
	checks => has_failed_for('job: the ingestion host drips', qr/asking the ingestion service failed: no answer in time/, qr/127\.0\.0\.1/));

$matrix->run('job: the answer to Put Message is lost',
	async => 1,
	server => { repost_after => '1min' },
	faults => [ [ { service => 'queue', method => 'POST' }, { lose_reply => $true } ] ],
	requests => { 'Put Message' => [ 1, 1 ], 'Put Blob' => [ 1, 1 ] });

$kusto->assert_no_violations;
done_testing();
