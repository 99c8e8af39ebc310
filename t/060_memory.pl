# Memory: an export needs the same small amount whatever its size, and a session that has seen ten
# thousand failures of every kind is no larger than after the first thousand.
#
# KUSTO_TEST_EXPORT_GB sets the size of the large export (default 5).
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(literal elapsed process_status);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $gigabytes = $ENV{KUSTO_TEST_EXPORT_GB} || 5;
my $mib = 1024;    # in kB

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	log_min_messages = fatal
	jit = off
	max_wal_size = 4GB
	CONF

# ---- one export, from a generator to a storage account that throws all away ----

$kusto->config(discard => JSON::PP::true);
my $idle = $pg->session;
my $session = $pg->session;
my $base = process_status($idle->pid);

# Repetitive, so that gzip does not take all day; of different sizes; and of types whose text has to
# be made for each row.
my $rows = int($gigabytes * 1024**3 / 2055);
my $query = <<~"SQL";
	SELECT i, '10.0.0.0'::inet + i AS ip, ARRAY[i, i + 1] AS a, repeat(chr(97 + i % 26), 2000 + i % 97) AS t
	FROM generate_series(1, $rows) i
	SQL
$session->sql('BEGIN');
my ($seconds, $id) = elapsed(sub { $session->sql('SELECT ' . $pg->ingest_call($query, 'Large')) });
my $peak = process_status($session->pid);
my ($got_rows, $raw, $compressed, $blobs) =
  split /\|/, $session->sql("SELECT rows, raw_bytes, compressed_bytes, blobs FROM kusto.operations WHERE id = '$id'");
$session->sql('ROLLBACK');
note sprintf '%.2f GB in %.1f s, %d MB/s; peak %d kB, idle %d kB, %d kB compressed',
  $raw / 1e9, $seconds, $raw / 1e6 / $seconds, $peak->{VmHWM}, $base->{VmHWM}, $compressed / 1024;

is($got_rows, $rows, 'the export has all rows');
cmp_ok($raw, '>=', $gigabytes * 1024**3, "the export is at least $gigabytes GB");
cmp_ok($blobs, '>=', int($gigabytes * 2), 'the export has several blobs');
cmp_ok($peak->{VmHWM} - $base->{VmHWM}, '<', 64 * $mib, 'it peaks below 64 MB above an idle backend');
my $after = process_status($session->pid);
cmp_ok($after->{Threads}, '<=', $base->{Threads} + 1, 'its threads are gone') or diag $after->{Threads};
$session->quit;
$idle->quit;

# ---- rows that are single and huge ----

$kusto->reset;
$kusto->config(discard => JSON::PP::true);
$session = $pg->session;
$base = process_status($session->pid);
$session->sql('BEGIN');
$session->sql('SELECT ' . $pg->ingest_call(q(SELECT i, repeat('y', 900000) AS t FROM generate_series(1, 500) i), 'Wide'));
$session->sql('ROLLBACK');
$peak = process_status($session->pid);
cmp_ok($peak->{VmHWM} - $base->{VmHWM}, '<', 64 * $mib, 'rows of almost a megabyte fit, too');
$session->quit;

# ---- ten thousand failures ----

$kusto->reset;
$kusto->create_table(KustoCluster::DATABASE, 'T', 'i:int, t:string');
$pg->sql(q(CREATE TABLE late AS SELECT i, CASE WHEN i = 3000 THEN 'infinity' ELSE '2020-01-01' END::date AS d, repeat('z', 50) AS t FROM generate_series(1, 3000) i));
$kusto->fault({ service => 'ingest|engine', body => 'forbidden-for-the-test' },
	{ status => 403, headers => { 'Content-Type' => 'application/json' },
		body => '{"error":{"code":"Forbidden","message":"Caller is not authorized","@permanent":true}}' }, times => -1);

# Blobs are named after the table: storage refuses those of one, and never answers for another.
$kusto->fault({ service => 'blob', path => 'Refused' },
	{ status => 403, headers => { 'Content-Type' => 'application/xml', 'x-ms-error-code' => 'AuthorizationFailure' },
		body => '<?xml version="1.0"?><Error><Code>AuthorizationFailure</Code><Message>This request is not authorized.</Message></Error>' }, times => -1);
$kusto->fault({ service => 'blob', path => 'Stuck' }, { blackhole => JSON::PP::true }, times => -1);

my @failing = (
	$pg->ingest_call('SELECT FROM WHERE', 'T'),
	$pg->ingest_call('SELECT * FROM no_such_relation', 'T'),
	$pg->ingest_call('SELECT i, d, t FROM late', 'T'),
	$pg->ingest_call('SELECT i, 1 / (i - 1500) AS d, t FROM late', 'T'),
	$pg->ingest_call('SELECT * FROM late WHERE i < 3000', 'Refused'),
	$pg->ingest_call('SELECT 1; SELECT 2', 'T'),
	$pg->ingest_call('SELECT 1 AS a', 'T', server => q('no_such_server')),
	$pg->ingest_call('SELECT 1 AS a', 'T', mode => q('sideways')),
	$pg->ingest_call('SELECT 1 AS a', 'T', tags => q(ARRAY[repeat('x', 60000)])),
	q(kusto_query('print "forbidden-for-the-test"', 'db')),
	q(kusto_query('NoSuchTable | take 1', 'db')),
	q(kusto_command('.no such command', 'db')),
	q(kusto_wait('00000000-0000-0000-0000-000000000000')));
my @cancelled = (
	$pg->ingest_call('SELECT i, pg_sleep(0.01)::text AS d FROM generate_series(1, 100) i', 'T'),
	$pg->ingest_call('SELECT * FROM late WHERE i < 3000', 'Stuck'));

# Half of the failures are caught in PL/pgSQL, half end a statement of the client.
$pg->sql('CREATE TABLE failing AS SELECT * FROM unnest(' . text_array(@failing) . ') WITH ORDINALITY AS f (call, n)');
$pg->sql(<<~'SQL');
	CREATE PROCEDURE fail(times int) LANGUAGE plpgsql AS $$
	DECLARE
		statement text;
		failures int := 0;
	BEGIN
		FOR k IN 1 .. times LOOP
			SELECT call INTO statement FROM failing WHERE n = 1 + k % (SELECT count(*) FROM failing);
			BEGIN
				EXECUTE 'SELECT ' || statement;
			EXCEPTION WHEN OTHERS THEN
				failures := failures + 1;
			END;
		END LOOP;
		IF failures <> times THEN
			RAISE EXCEPTION '% of % statements failed', failures, times;
		END IF;
	END $$
	SQL

sub text_array
{
	return 'ARRAY[' . join(', ', map { literal($_) } @_) . ']::text[]';
}

my $failures = 0;

# Makes the session fail that many times; every hundredth by a cancel.
sub fail_times
{
	my ($times) = @_;
	for my $round (1 .. $times / 100)
	{
		my $cancelled = $cancelled[$round % @cancelled];
		$session->sql('CALL fail(50)');
		my $script = join ";\n", map { "SELECT $failing[$_ % @failing]" } 1 .. 49;
		$session->send("$script;\nSET statement_timeout = '20ms';\nSELECT $cancelled;\nRESET statement_timeout");
		my $outcome = $session->receive;
		die 'connection lost' if $outcome->{lost};
		my $errors = () = $outcome->{err} =~ /ERROR:  /g;
		die "$errors of 50 statements failed:\n$outcome->{err}" if $errors != 50;
		die "no cancel:\n$outcome->{err}" unless $outcome->{err} =~ /ERROR:  57014/;
		$failures += 100;
	}
	return;
}

$session = $pg->session(timeout => 900);
($seconds) = elapsed(sub { fail_times(1000) });
note sprintf 'the first thousand took %.1f s', $seconds;
my $early = process_status($session->pid);
($seconds) = elapsed(sub { fail_times(9000) });
note sprintf 'the other nine thousand took %.1f s', $seconds;
my $late = process_status($session->pid);

is($failures, 10_000, 'ten thousand statements failed');
for my $what (qw(RssAnon VmHWM))
{
	cmp_ok($late->{$what} - $early->{$what}, '<', $mib, "$what has not grown")
	  or diag "$what: $early->{$what} kB after 1000, $late->{$what} kB after 10000";
}
cmp_ok($late->{fds}, '<=', $early->{fds}, 'nor has the number of open descriptors');
is($late->{Threads}, $early->{Threads}, 'nor the number of threads');
note "RssAnon $early->{RssAnon} -> $late->{RssAnon} kB, fds $early->{fds} -> $late->{fds}, threads $late->{Threads}";
like($session->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i, $$x$$ AS t', 'T')), qr/^[0-9a-f-]{36}$/,
	'and the session still works');
$session->quit;

$kusto->settle;
$kusto->assert_no_violations;
done_testing();
