# Exactly once: what a post that nobody answered may have done, a second one must not do again.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.repost_after = 1s
	CONF
my $true = JSON::PP::true;
my $tables = 0;

# A table of its own, and a service without a past.
sub fresh
{
	my (%config) = @_;
	$kusto->reset;
	$kusto->config(%config) if %config;
	my $table = 'T' . ++$tables;
	$kusto->create_table($db, $table, 'i:int');
	return $table;
}

# The tags of the table's extents.
sub tags
{
	my ($table) = @_;
	return [ map { @{ $_->{tags} } } @{ $kusto->extents($db, $table) } ];
}

sub looks { return scalar $kusto->log(service => 'blob', method => 'HEAD') }

# Ingested, but nobody hears of it: its status stays as it was.
sub silent { return (outcomes => [ { status => 'Succeeded', silent => $true } ]) }

sub lose_reply_of_queue
{
	return $kusto->fault({ service => 'queue', method => 'POST' }, { lose_reply => $true }, times => 1);
}

# ---- a reply that is lost ----

my $table = fresh(silent(), duplicate_delivery => $true);
lose_reply_of_queue();
my $id = $pg->ingest('SELECT 7 AS i', $table, exactly_once => q('on'));
$pg->succeeds($id, 'exactly once: a lost reply, a silent service, a second message: it succeeds');
my $blob = $pg->blobs($id)->[0];
is($blob->{post_attempts}, 2, 'exactly once: it was posted twice');
is(scalar @{ $kusto->messages }, 2, 'exactly once: and both arrived');
is(looks(), 1, 'exactly once: before the second one it looked for the blob');
is_deeply($kusto->rows($db, $table), [ [7] ], 'exactly once: the row is there once');
is_deeply(tags($table), ["ingest-by:$blob->{source_id}"], 'exactly once: by its tag');
is($pg->operation($id)->{error_message}, undef, 'exactly once: no error is left behind')
  or diag explain $pg->operation($id);

$table = fresh(duplicate_delivery => $true);
$pg->succeeds($pg->ingest('SELECT 7 AS i', $table, exactly_once => q('on')), 'exactly once: a message that is delivered twice');
$kusto->settle;
is($kusto->count($db, $table), 1, 'exactly once: the row is there once');

# Without the tag the blob itself tells: the service has deleted it.
$table = fresh(silent());
lose_reply_of_queue();
$id = $pg->ingest('SELECT 7 AS i', $table, exactly_once => q('off'));
wait_until(sub { looks() == 1 }, 'the blob is looked for');
$pg->poll("SELECT state = 'posted' FROM kusto.operations WHERE id = '$id'", 't', 'off: the blob is gone, so the message had arrived');
is(scalar @{ $kusto->messages }, 1, 'off: no second one is sent');
is($kusto->count($db, $table), 1, 'off: the row is there once');
is_deeply(tags($table), [], 'off: without a tag');

# However Kusto says that it found the tag.
for my $hit ('code', 'failed')
{
	$table = fresh(silent(), tag_hit => $hit);
	lose_reply_of_queue();
	$id = $pg->ingest('SELECT 7 AS i', $table, exactly_once => q('on'));
	$pg->succeeds($id, "a tag hit is success, reported as '$hit'");
	is(scalar @{ $kusto->messages }, 2, "'$hit': of the second message");
	is($kusto->count($db, $table), 1, "'$hit': the row is there once");
}
$table = fresh(silent(), outcomes => [ { status => 'Succeeded', silent => $true }, { status => 'Skipped', errorCode => 'BadRequest_EmptyBlob' } ]);
lose_reply_of_queue();
$pg->ends_as($pg->ingest('SELECT 7 AS i', $table, exactly_once => q('on')), 'skipped', 'what is skipped for another reason is not success');

# ---- one report of two ----

# Posted twice, and a worker that did not live to see it.
sub posted_twice
{
	my ($table, %arguments) = @_;
	$kusto->config(hold_ingestion => $true);
	lose_reply_of_queue();
	my $id = $pg->ingest('SELECT 7 AS i', $table, %arguments);
	$pg->poll("SELECT state = 'posted' FROM kusto.operations WHERE id = '$id'", 't', 'it is posted');
	is($pg->blobs($id)->[0]{post_attempts}, 2, 'twice');
	return $id;
}

$table = fresh(outcomes => [ { status => 'Failed', errorCode => 'Download_SourceNotFound', details => 'not found' } ]);
$id = posted_twice($table, exactly_once => q('off'));
$pg->forget_worker;
$kusto->config(hold_ingestion => JSON::PP::false);
my $operation = $pg->ends_as($id, 'unknown', 'a second message that does not find the blob is no failure');
like($operation->{error_message}, qr/has probably been ingested/, 'and the row says why');

$table = fresh(outcomes => [ { status => 'Failed', errorCode => 'BlobAlreadyReceived_BlobAlreadyFoundInBatch', details => 'again' } ]);
$id = posted_twice($table, exactly_once => q('on'));
$pg->forget_worker;
$kusto->config(hold_ingestion => JSON::PP::false);
$operation = $pg->ends_as($id, 'unknown', 'nor is one that is found twice in a batch');
like($operation->{error_message}, qr/two messages for the blob/, 'and the row says why');

# ---- a status table that cannot be asked ----

# As after a crash before the table's name was recorded: the row is there, and tells of a success.
$table = fresh();
lose_reply_of_queue();
$kusto->fault({ service => 'table', method => 'GET' }, { status => 503 }, times => -1);
$id = $pg->ingest('SELECT 7 AS i', $table, exactly_once => q('off'));
$pg->poll("SELECT state = 'posting' AND error_message IS NOT NULL FROM kusto.operations WHERE id = '$id'");
$kusto->settle;
$pg->forget_worker;
$pg->sql("UPDATE kusto.blob SET status_table = NULL WHERE operation_id = '$id'");
# A successor has perhaps read the row before.
$pg->forget_worker;
is($pg->operation($id)->{state}, 'posting', 'it is in doubt');
my $looked = looks();
$pg->sql("SELECT kusto_wait('$id', '10 ms')");
wait_until(sub { looks() > $looked }, 'a table that cannot be asked: the blob is looked for');
$pg->poll("SELECT state = 'posted' FROM kusto.operations WHERE id = '$id'", 't', 'it is gone, and was posted');
$kusto->clear_faults;
$pg->succeeds($id, 'the row is found, and still tells of the success');
is($kusto->count($db, $table), 1, 'once');

# ---- a crash after a retry was claimed ----

$table = fresh(outcomes => [ { status => 'Failed', errorCode => 'General_InternalServerError', failureStatus => 'Transient', details => 'try again' } ]);
$id = $pg->ingest('SELECT 3 AS i', $table);
like($pg->ends_as($id, 'failed', 'a blob that failed')->{hint}, qr/./, 'with a hint');
$pg->forget_worker;
$pg->sql(<<~"SQL");
	BEGIN;
	UPDATE kusto.blob SET state = 'posting', post_attempts = 2, finished_at = NULL, error_code = NULL, details = NULL WHERE operation_id = '$id';
	UPDATE kusto.operation SET state = 'posting', attempts = 2, finished_at = NULL, posted_at = NULL, error_code = NULL, error_message = NULL WHERE id = '$id';
	COMMIT
	SQL
$pg->succeeds($id, 'its retry is not taken for the post that failed');
is_deeply($kusto->rows($db, $table), [ [3] ], 'it goes out');

# ---- which blobs ----

$table = fresh();
$pg->succeeds($pg->ingest('SELECT 1 AS i', $table), 'auto: a small result');
is_deeply(tags($table), [], 'auto: a small result has no tag');
my ($message) = @{ $kusto->messages };
ok(!exists $message->{AdditionalProperties}{ingestIfNotExists}, 'auto: and is ingested whatever is there');
ok(!$message->{RetainBlobOnSuccess}, 'auto: and its blob goes');

$table = fresh(discard => $true);
my $raw = 1_000_000;
$pg->sql('SET kusto_ingest.max_blob_size = \'128MB\'; SELECT '
	. $pg->ingest_call("SELECT repeat('x', $raw) AS s FROM generate_series(1, 101)", $table));
$pg->poll("SELECT bool_and(state = 'succeeded') FROM kusto.operations WHERE table_name = '$table'", 't', 'auto: a large result');
($message) = @{ $kusto->messages };
like($message->{AdditionalProperties}{tags}, qr/^\["ingest-by:$message->{Id}"\]$/, 'auto: from 100 MB on with a tag');
is($message->{AdditionalProperties}{ingestIfNotExists}, qq(["$message->{Id}"]), 'auto: that is looked for');
ok($message->{RetainBlobOnSuccess}, 'auto: and the blob stays');
# It knows the container that swallows everything, and no other.
$pg->forget_worker;

# ---- a condition of the user's ----

$table = fresh();
my %mine = (exactly_once => q('on'), tags => q(ARRAY['ingest-by:mine']), ingest_if_not_exists => q(ARRAY['mine']));
$id = $pg->ingest('SELECT 1 AS i', $table, %mine);
$pg->succeeds($id, 'a condition of the user: the first');
my $own = 'ingest-by:' . $pg->blobs($id)->[0]{source_id};
is_deeply([ sort @{ tags($table) } ], [ sort 'ingest-by:mine', $own ], 'a condition of the user: both tags');
$pg->ends_as($pg->ingest('SELECT 2 AS i', $table, %mine), 'skipped', 'a condition of the user: the second is skipped, and that is said');

# ---- the same blobs once more ----

$table = fresh(outcomes => [ { status => 'Failed', errorCode => 'General_InternalServerError', failureStatus => 'Transient', details => 'try again' } ]);
$id = $pg->ingest('SELECT 3 AS i', $table);
$pg->ends_as($id, 'failed', 'a blob that failed');
is($pg->sql("SELECT kusto_retry('$id')"), 't', 'is retried');
$pg->succeeds($id, 'and what the status table says of the first try is not taken for the second');
is(looks(), 1, 'it was looked for first');
is_deeply($kusto->rows($db, $table), [ [3] ], 'the row is there once');

$table = fresh(outcomes => [ { status => 'Failed', errorCode => 'General_InternalServerError', failureStatus => 'Transient', details => 'try again' } ]);
$id = $pg->ingest('SELECT 3 AS i', $table);
$pg->ends_as($id, 'failed', 'a blob that failed');
$kusto->fault({ service => 'blob', method => 'HEAD' }, { status => 404, headers => { 'x-ms-error-code' => 'BlobNotFound' }, body => '' }, times => -1);
$pg->sql("SELECT kusto_retry('$id')");
$operation = $pg->ends_as($id, 'failed', 'a blob that has expired fails again');
is($operation->{error_message}, 'the blob of the export has expired', 'and says why');
like($operation->{hint}, qr/export them again/, 'and what to do');
is(scalar @{ $kusto->messages }, 1, 'no message is sent for it');
$kusto->clear_faults;

$kusto->settle;
$kusto->assert_no_violations;
done_testing();
