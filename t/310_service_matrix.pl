# The service fails while a statement uploads: the statement goes on, or fails with the cause and
# leaves nothing behind. 311 has the same for what the worker does after the commit, 312 outages,
# 313 jobs. t/100_resources.pl has more of tokens and of the ways to get them.
use strict;
use warnings;

use File::Basename qw(dirname);
use JSON::PP;
use KustoCluster qw(elapsed literal);
use KustoLocal;
use List::Util qw(max sum0);
use PostgreSQL::Test::Utils;
use ServiceMatrix;
use Test::More;

my $shim = "$PostgreSQL::Test::Utils::tmp_check/slow_dns.so";
system_or_bail($ENV{CC} // 'cc', '-shared', '-fPIC', '-o', $shim, dirname(__FILE__) . '/slow_dns.c', '-ldl');

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto,
	conf => "kusto_ingest.trusted_hosts = '.slow.test'\n",
	environment => { LD_PRELOAD => $shim });
my $matrix = ServiceMatrix->new($kusto, $pg);
my $db = KustoCluster::DATABASE;
my $true = JSON::PP::true;
my ($one, $two) = @{ $kusto->accounts };

my %put_blob = (service => 'blob', method => 'PUT', query => '^(?!.*comp=)');
my %put_block = (service => 'blob', method => 'PUT', query => '(^|&)comp=block(&|$)');
my %put_block_list = (service => 'blob', method => 'PUT', query => '(^|&)comp=blocklist(&|$)');
my %management = (service => 'ingest', path => '/v1/rest/mgmt');

# An answer that says no, of storage and of everything else.
sub refusal { my ($status, $code, %headers) = @_; return { status => $status, body => '', headers => { 'x-ms-error-code' => $code, %headers } } }
my $busy = refusal(503, 'ServerBusy');
my $busy_1s = refusal(503, 'ServerBusy', 'Retry-After' => '1');
my $throttled_1s = refusal(429, 'TooManyRequests', 'Retry-After' => '1');

sub waits_at_least
{
	my ($kind, $seconds, $name) = @_;
	my @gaps = ServiceMatrix::gaps($matrix->requests($kind));
	my @hasty = grep { $_ < $seconds } @gaps;
	is(scalar @hasty, 0, $name) or diag explain \@gaps;
	return;
}

# ---- busy, for a while and for ever ----

$matrix->run('Put Blob: 503 with Retry-After, for a while',
	faults => [ [ \%put_blob, $busy_1s, times => 2 ] ],
	seconds => [ 2, 16 ],
	requests => { 'Put Blob' => [ 3, 3 ], 'Put Message' => [ 1, 1 ] },
	fired => 2,
	checks => sub { waits_at_least('Put Blob', 1, 'Put Blob: Retry-After is honoured') });

$matrix->run('Put Block: 429 with Retry-After, for a while',
	export => 'blocks',
	faults => [ [ \%put_block, $throttled_1s, times => 3 ] ],
	requests => { 'Put Block List' => [ 1, 1 ], 'Put Blob' => [ 0, 0 ], 'Put Message' => [ 1, 1 ] },
	fired => 3);

$matrix->run('Put Block List: 503 with Retry-After, for a while',
	export => 'blocks',
	faults => [ [ \%put_block_list, $busy_1s, times => 2 ] ],
	requests => { 'Put Block List' => [ 3, 3 ], 'Put Message' => [ 1, 1 ] },
	fired => 2,
	checks => sub { waits_at_least('Put Block List', 1, 'Put Block List: Retry-After is honoured') });

# Three places, each given up after kusto_ingest.retry_timeout.
$matrix->run('Put Blob: 503 for ever',
	settings => { retry_timeout => '2s' },
	faults => [ [ \%put_blob, $busy, times => -1 ] ],
	error => { sqlstate => '58000', message => qr/uploading a blob failed/, detail => qr/ServerBusy.*HTTP status 503/s },
	seconds => [ 2, 20 ],
	requests => { 'Put Blob' => [ 4, 30 ] });

$matrix->run('Put Block List: 429 for ever',
	export => 'blocks',
	settings => { retry_timeout => '2s' },
	faults => [ [ \%put_block_list, refusal(429, 'TooManyRequests'), times => -1 ] ],
	error => { sqlstate => '53000', message => qr/committing the blocks of a blob failed/, detail => qr/HTTP status 429/ },
	requests => { 'Put Block List' => [ 2, 12 ] });

$matrix->run('ingestion host: 503 with Retry-After, for a while',
	faults => [ [ { %management, body => 'ingestion resources' }, refusal(503, '', 'Retry-After' => '2'), times => 2 ] ],
	seconds => [ 4, 20 ],
	requests => { 'management at the ingestion host' => [ 6, 6 ], 'Put Message' => [ 1, 1 ] },
	fired => 2,
	checks => sub {
		my @asked = $matrix->requests('management at the ingestion host');
		my ($first) = grep { $_->{status} eq '503' } @asked;
		my @again = grep { $_->{seq} >= $first->{seq} && ($_->{csl} // '') !~ /identity token/ } @asked;
		is(scalar(grep { $_ < 2 } ServiceMatrix::gaps(@again[ 0 .. 2 ])), 0, 'ingestion host: Retry-After is honoured');
	});

$matrix->run('ingestion host: 429 for ever',
	settings => { retry_timeout => '4s' },
	faults => [ [ \%management, refusal(429, ''), times => -1 ] ],
	error => { sqlstate => '53000', message => qr/asking the ingestion service failed/, detail => qr/HTTP status 429/ },
	seconds => [ 4, 18 ],
	requests => { 'management at the ingestion host' => [ 4, 24 ] });

# Asking earlier is in vain, and so is waiting.
$matrix->run('ingestion host: Retry-After beyond kusto_ingest.retry_timeout',
	settings => { retry_timeout => '20s' },
	faults => [ [ \%management, refusal(503, '', 'Retry-After' => '60'), times => -1 ] ],
	error => { sqlstate => '58000', detail => qr/HTTP status 503/ },
	seconds => [ 0, 10 ],
	requests => { 'management at the ingestion host' => [ 1, 2 ] });

$matrix->run('token endpoint: 503 with Retry-After, for a while',
	faults => [ [ { service => 'login' }, refusal(503, '', 'Retry-After' => '1'), times => 2 ] ],
	seconds => [ 2, 16 ],
	requests => { token => [ 4, 4 ] },
	fired => 2);

$matrix->run('token endpoint: 429 for ever',
	settings => { retry_timeout => '3s' },
	faults => [ [ { service => 'login' }, refusal(429, ''), times => -1 ] ],
	error => { sqlstate => '53000', message => qr/access token failed/, detail => qr/HTTP status 429/ },
	seconds => [ 3, 16 ],
	requests => { token => [ 3, 14 ], 'management at the ingestion host' => [ 0, 0 ] });

# ---- the back-off grows ----

# Full jitter: one wait says little, so several sessions fail side by side. The second container of
# the one account is the last resort, where a blob is tried until kusto_ingest.retry_timeout.
{
	my $sessions = 8;
	$kusto->reset;
	$kusto->config(accounts => [$one]);
	$kusto->create_table($db, 'T', 'i:int, s:string');
	$kusto->fault(\%put_blob, $busy, times => -1);
	my @sessions = map { $pg->session } 1 .. $sessions;
	$_->sql(q(SET kusto_ingest.retry_timeout = '8s')) for @sessions;
	my ($seconds) = elapsed(sub {
		$_->send('SELECT ' . $pg->ingest_call(q(SELECT 1 AS i, 'x' AS s), 'T')) for @sessions;
		like($_->receive->{err}, qr/ServerBusy/, 'back-off: a session fails with the cause') for @sessions;
	});
	cmp_ok($seconds, '<', 24, 'back-off: within the time of two places') or diag $seconds;
	cmp_ok($seconds, '>=', 8, 'back-off: and not before kusto_ingest.retry_timeout') or diag $seconds;
	my %tries;
	push @{ $tries{ $_->{path} =~ s/\?.*//r } }, $_ for $kusto->log(service => 'blob', method => 'PUT');
	my @patient = grep { @$_ > 3 } values %tries;
	cmp_ok(scalar @patient, '>=', $sessions / 2, 'back-off: the last place is tried more often than the first');
	my (@first, @later);
	for my $tries (@patient)
	{
		my @gaps = ServiceMatrix::gaps(@$tries);
		cmp_ok(scalar @gaps, '<', 14, 'back-off: few tries in eight seconds');
		cmp_ok($gaps[$_], '<', 0.5 * 2**$_ + 0.7, "back-off: wait $_ has a bound") for 0 .. 2;
		push @first, $gaps[0];
		push @later, max(@gaps[ 2 .. $#gaps ]);
	}
	cmp_ok(sum0(@later) / @later, '>', 4 * sum0(@first) / @first, 'back-off: later waits are longer')
	  or diag explain \@first, \@later;
	$_->quit for @sessions;
}

# ---- connections that break, and answers that are lost ----

$matrix->run('Put Block: reset within the block, twice',
	export => 'blocks',
	faults => [ [ \%put_block, { reset_after_bytes => 100_000 }, times => 2 ] ],
	requests => { 'Put Block List' => [ 1, 1 ], 'Put Message' => [ 1, 1 ] },
	fired => 2,
	checks => sub {
		my @blocks = $matrix->requests('Put Block');
		is(scalar(grep { $_->{status} eq '201' } @blocks), @blocks - 2, 'Put Block: no other was sent again');
	});

$matrix->run('Put Blob: the answer is lost after it was stored',
	faults => [ [ \%put_blob, { lose_reply => $true } ] ],
	requests => { 'Put Blob' => [ 2, 2 ], 'Put Message' => [ 1, 1 ] });

$matrix->run('Put Block List: the answer is lost after it was stored',
	export => 'blocks',
	faults => [ [ \%put_block_list, { lose_reply => $true } ] ],
	requests => { 'Put Block List' => [ 2, 2 ], 'Put Message' => [ 1, 1 ] });

# ---- what expires in the middle ----

$matrix->run('SAS expires within a blob',
	export => 'blocks',
	warm => 1,
	faults => [ [ \%put_block, { end_sas => $true }, skip => 1 ] ],
	requests => { 'Put Block List' => [ 1, 1 ], 'Put Message' => [ 1, 2 ], 'ingestion resources' => [ 1, 2 ], token => [ 0, 0 ] });

$matrix->run('SAS expires between blobs',
	export => 'blobs',
	warm => 1,
	faults => [ [ \%put_blob, { end_sas => $true }, skip => 1 ] ],
	requests => { 'ingestion resources' => [ 1, 2 ], token => [ 0, 0 ] });

$matrix->run('SAS and access token expire within a blob',
	export => 'blocks',
	warm => 1,
	faults => [ [ \%put_block, { end_sas => $true, revoke_tokens => $true }, skip => 1 ] ],
	requests => { 'Put Block List' => [ 1, 1 ], 'ingestion resources' => [ 2, 4 ] },
	checks => sub {
		# One of the session, and one of the worker if it needs another SAS, too.
		my @refused = grep { $_->{status} eq '401' } $matrix->requests('management at the ingestion host');
		my $tokens = () = $matrix->requests('token');
		cmp_ok(scalar @refused, '>=', 1, 'the old token was refused');
		ok($tokens >= 1 && $tokens <= 2, 'one token for each process that was refused') or diag $tokens;
	});

# ---- accounts that are gone ----

my @account_dies = (
	[ 'always answers 500', sub { [ { service => 'blob|queue', path => "^/$one/" }, refusal(500, 'InternalError'), times => -1 ] } ],
	[ 'is busy for ever', sub { [ { service => 'blob|queue', path => "^/$one/" }, $busy, times => -1 ] } ],
	[ 'resets connections', sub { [ { service => 'blob|queue', path => "^/$one/" }, { reset => $true }, times => -1 ] } ]);
for (@account_dies)
{
	my ($how, $fault) = @$_;
	for my $export ('row', 'blobs')
	{
		# What a queue has perhaps taken is sent again after kusto_ingest.repost_after.
		$matrix->run("an account $how, $export",
			export => $export,
			server => { repost_after => '1s' },
			faults => [ $fault->() ],
			fired => 0);
	}
}
$matrix->run('an account refuses connections',
	export => 'blobs',
	server => { repost_after => '1s' },
	before => sub { $kusto->down([ "$one.blob", "$one.queue", "$one.table" ]) },
	checks => sub { $kusto->up });

$matrix->run('all accounts refuse connections',
	settings => { retry_timeout => '2s' },
	before => sub { $kusto->down([ "$one.blob", "$two.blob" ]) },
	error => { sqlstate => '08001', message => qr/uploading a blob.*could not connect/ },
	seconds => [ 1, 20 ],
	checks => sub { $kusto->up });

$matrix->run('all accounts always answer 500',
	export => 'blobs',
	settings => { retry_timeout => '2s' },
	faults => [ [ { service => 'blob' }, refusal(500, 'InternalError'), times => -1 ] ],
	error => { sqlstate => '58000', detail => qr/InternalError.*HTTP status 500/s });

# ---- slowness ----

$matrix->run('Put Block: read at a trickle, and given up after kusto_ingest.stall_timeout',
	export => 'blocks',
	settings => { stall_timeout => '1s' },
	faults => [ [ \%put_block, { trickle_ms => 1000, trickle_bytes => 16 } ] ],
	requests => { 'Put Block List' => [ 1, 1 ], 'Put Message' => [ 1, 1 ] },
	seconds => [ 1, 24 ]);

$matrix->run('Put Blob: read at a trickle, for ever',
	settings => { stall_timeout => '1s', retry_timeout => '3s' },
	faults => [ [ \%put_blob, { trickle_ms => 1000, trickle_bytes => 1 }, times => -1 ] ],
	error => { sqlstate => '08006', message => qr/uploading a blob.*no answer in time/ },
	seconds => [ 3, 30 ]);

$matrix->run('ingestion host: one byte a second, and given up after kusto_ingest.request_timeout',
	settings => { request_timeout => '1s' },
	faults => [ [ \%management, { drip_ms => 1000 }, times => 2 ] ],
	seconds => [ 1, 16 ],
	fired => 2);

$matrix->run('ingestion host: one byte a second, for ever',
	settings => { request_timeout => '1s', retry_timeout => '2s' },
	faults => [ [ \%management, { drip_ms => 1000 }, times => -1 ] ],
	error => { sqlstate => '08006', message => qr/asking the ingestion service.*no answer in time/ },
	seconds => [ 2, 18 ]);

$matrix->run('token endpoint: one byte a second, for ever',
	settings => { request_timeout => '1s', retry_timeout => '2s' },
	faults => [ [ { service => 'login' }, { drip_ms => 1000 }, times => -1 ] ],
	error => { sqlstate => '08006', message => qr/token.*no answer in time/ },
	seconds => [ 2, 18 ]);

# ---- hosts that are not there ----

$kusto->reset;
$pg->connect_to($kusto, name => 'nameless',
	server => { query_uri => 'https://a.slow.test', ingest_uri => 'https://b.slow.test' });
$pg->connect_to($kusto, name => 'closed', server => { query_uri => 'http://127.0.0.1:9', ingest_uri => 'http://127.0.0.1:9' });
sub call_to { my ($server) = @_; return 'SELECT ' . $pg->ingest_call(q(SELECT 1 AS i, 'x' AS s), 'T', server => literal($server)) }
my ($seconds) = elapsed(sub {
	$pg->fails_like(q(SET kusto_ingest.retry_timeout = '1s'; ) . call_to('nameless'),
		{ sqlstate => '08001', message => qr/could not resolve the host name/ }, 'a host without an address: the cause is told');
});
cmp_ok($seconds, '<', 40, 'a host without an address: it does not take for ever');
($seconds) = elapsed(sub {
	$pg->fails_like(call_to('closed'),
		{ sqlstate => '08001', message => qr/could not connect/ }, 'a host that refuses: the cause is told');
});
# With the two minutes of kusto_ingest.retry_timeout: a host never met is perhaps misspelt.
cmp_ok($seconds, '<', 30, 'a host that refuses: it does not take for ever');
is($pg->sql('SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = \'Lock\''), 0, 'nobody waits for a lock');

$kusto->assert_no_violations;
done_testing();
