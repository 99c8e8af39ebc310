# Storage, or the whole service, is away for a while and comes back, with what it had or without:
# during the upload, between upload and post, between post and outcome. See 310 and 311.
use strict;
use warnings;

use File::Temp qw(tempdir);
use KustoCluster qw(wait_until);
use KustoLocal;
use JSON::PP;
use PostgreSQL::Test::Utils;
use ServiceMatrix;
use Test::More;

my $kusto = KustoLocal->start('--state-dir', tempdir(CLEANUP => 1));
my $pg = KustoCluster->start($kusto);
my $matrix = ServiceMatrix->new($kusto, $pg);
my $db = KustoCluster::DATABASE;
my $true = JSON::PP::true;
my $false = JSON::PP::false;
my ($one, $two) = @{ $kusto->accounts };

my %second_block = (service => 'blob', method => 'PUT', query => '(^|&)comp=block(&|$)');

sub outage
{
	my ($parts, %options) = @_;
	$kusto->down($parts, %options);
	$kusto->up;
	return;
}

# Its second block is under way for long enough.
sub while_uploading
{
	my ($code) = @_;
	return (
		export => 'blocks',
		faults => [ [ \%second_block, { delay_ms => 5000 }, skip => 1 ] ],
		during => sub {
			wait_until(sub { $kusto->fired == 1 }, 'the second block is under way');
			# The first is stored.
			wait_until(sub { grep { ($_->{status} // '') eq '201' } $matrix->requests('Put Block') }, 'the first block is stored');
			$code->();
		});
}

# The blob is stored, and nothing of it posted.
sub before_post
{
	my ($code) = @_;
	return (
		warm => 1,
		before => sub { $_[0]->sql('BEGIN') },
		meanwhile => sub {
			my ($id, $session) = @_;
			$code->($id, $session);
			$session->sql('COMMIT');
		});
}

# The service has the message, and has not begun to work on it.
sub before_outcome
{
	my ($code) = @_;
	return (
		config => { hold_ingestion => $true },
		meanwhile => sub {
			my ($id) = @_;
			$pg->poll("SELECT state = 'posted' FROM kusto.operations WHERE id = '$id'");
			wait_until(sub { @{ $kusto->messages } == 1 }, 'the service has the message');
			$code->($id);
			$kusto->config(hold_ingestion => $false);
		});
}

# Waits until the operation shows an error, which it does not die of.
sub is_hindered
{
	my ($id) = @_;
	$pg->poll("SELECT error_message IS NOT NULL AND finished_at IS NULL FROM kusto.operations WHERE id = '$id'");
	return;
}

for my $parts ([ 'storage', 'storage' ], [ 'service', 'the service' ])
{
	my ($part, $name) = @$parts;
	my $lost_blob = { error_code => 'Download_SourceNotFound', state => 'failed' };

	$matrix->run("$name restarts during the upload",
		while_uploading(sub { outage([$part]) }),
		requests => { 'Put Block List' => [ 1, 2 ], 'Put Message' => [ 1, 1 ] });
	$matrix->run("$name restarts between upload and post",
		before_post(sub { outage([$part]) }),
		requests => { 'Put Message' => [ 1, 1 ], 'Put Blob' => [ 1, 1 ] });
	$matrix->run("$name is away when the worker wants to post, and comes back",
		before_post(sub {
			my ($id, $session) = @_;
			$kusto->down([$part]);
			$session->sql('COMMIT; BEGIN');
			is_hindered($id);
			$kusto->up;
		}),
		requests => { 'Put Message' => [ 1, 1 ], 'Put Blob' => [ 1, 1 ] });
	$matrix->run("$name restarts between post and outcome",
		before_outcome(sub { outage([$part]) }),
		requests => { 'Put Message' => [ 1, 1 ] });
	$matrix->run("$name is away when the worker asks for the outcome, and comes back",
		before_outcome(sub {
			my ($id) = @_;
			$kusto->down([$part]);
			is_hindered($id);
			$kusto->up;
		}),
		requests => { 'Put Message' => [ 1, 1 ] });

	# What the service has lost nobody can bring back: it must not look like success.
	$matrix->run("$name loses the blocks during the upload",
		while_uploading(sub { outage([$part], lose => 1) }),
		error => { sqlstate => 'HV000', message => qr/committing the blocks of a blob failed/, detail => qr/InvalidBlockList/ });
	$matrix->run("$name loses the blob between upload and post",
		before_post(sub { outage([$part], lose => 1) }),
		state => 'failed',
		requests => { 'Put Message' => [ 1, 1 ] },
		checks => sub { is($_[0]{error_code}, 'Download_SourceNotFound', "$name loses the blob: the cause is told") });
}

$matrix->run('storage loses blob and status row between post and outcome',
	before_outcome(sub { outage(['storage'], lose => 1) }),
	state => 'failed',
	checks => sub { is($_[0]{error_code}, 'Download_SourceNotFound', 'storage loses the blob after the post: the cause is told') });
$matrix->run('the service loses the message',
	before_outcome(sub { outage(['service'], lose => 1) }),
	server => { status_timeout => '4s' },
	state => 'unknown',
	rows => 0,
	requests => { 'Put Message' => [ 1, 1 ] },
	checks => sub { like($_[0]{error_message}, qr/has not reported on the data in time/, 'a lost message: the row says so') });

# ---- parts of it ----

$matrix->run('an account refuses connections when the worker posts',
	before_post(sub { $kusto->down([ "$one.blob", "$one.queue", "$one.table" ]) }),
	server => { repost_after => '1s' },
	requests => { 'Put Message' => [ 1, 2 ] },
	checks => sub { $kusto->up });
$matrix->run('the ingestion host refuses connections during the first upload, for a while',
	before => sub { $kusto->down(['ingest']) },
	during => sub {
		wait_until(sub { () = $matrix->requests('token') }, 'the session has a token');
		$kusto->up;
	},
	requests => { 'Put Message' => [ 1, 1 ] });
$matrix->run('all storage is away: what is staged waits',
	warm => 1,
	before => sub { $_[0]->sql('BEGIN') },
	meanwhile => sub {
		my ($id, $session) = @_;
		my @more = map { $session->sql('SELECT ' . $pg->ingest_call("SELECT $_ AS i", 'Warm')) } 1 .. 8;
		$kusto->down(['storage']);
		$session->sql('COMMIT');
		is_hindered($id);
		is($pg->sql("SELECT count(*) FROM kusto.operations WHERE finished_at IS NULL"), 9, 'all storage is away: none is given up');
		$kusto->up;
		$pg->succeeds($_, 'all storage is away: each goes out when it is back') for @more;
		$kusto->settle;
		is($kusto->count($db, 'Warm'), 9, 'all storage is away: each once');
	},
	requests => { 'Put Message' => [ 9, 9 ] });
$matrix->run('the service forgets its tokens',
	before_post(sub {
		$kusto->end_sas;
		$kusto->revoke_tokens;
	}),
	requests => { token => [ 1, 1 ], 'ingestion resources' => [ 1, 1 ], 'Put Message' => [ 1, 1 ] });

$kusto->assert_no_violations;
done_testing();
