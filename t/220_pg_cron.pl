# Exports that pg_cron schedules, in both of its ways to run them: a background worker, and a
# connection. A run that Kusto rejects is a failed run, with Kusto's own code in its message.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($sharedir) = run_command([ 'pg_config', '--sharedir' ]);
plan skip_all => 'pg_cron is not installed for this PostgreSQL'
  unless -f "$sharedir/extension/pg_cron.control";

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	shared_preload_libraries = 'pg_cron'
	cron.database_name = 'postgres'
	cron.use_background_workers = on
	max_worker_processes = 20
	CONF
my $node = $pg->node;
$pg->sql('CREATE EXTENSION pg_cron');
note 'pg_cron ' . $pg->sql(q(SELECT extversion FROM pg_extension WHERE extname = 'pg_cron'));

$kusto->create_table($db, $_, 'i:int, who:string') for qw(Selected Called Rejected Owned);
$pg->sql(<<~SQL);
	CREATE ROLE reporter LOGIN;
	GRANT USAGE ON SCHEMA cron TO reporter;
	GRANT USAGE ON FOREIGN SERVER adx TO reporter;
	GRANT EXECUTE ON PROCEDURE kusto_ingest_and_wait TO reporter;
	SQL
$pg->sql('CREATE USER MAPPING FOR reporter SERVER adx OPTIONS (auth $$client_secret$$, '
	  . join(', ', map { "$_ " . KustoCluster::literal($kusto->$_) } qw(tenant client_id client_secret)) . ')');

# '\@reboot' is pg_cron's word for once after each start of the server: no minute has to pass.
sub schedule
{
	my ($name, $command, %options) = @_;
	$pg->sql("SELECT cron.schedule('$name', '\@reboot', " . KustoCluster::literal($command) . ')', %options);
	return;
}

sub call
{
	my ($query, $table, $more) = @_;
	return 'CALL kusto_ingest_and_wait('
	  . join(', ', map { KustoCluster::literal($_) } $query, $db, $table) . ($more // '') . ')';
}

my $rows = 'SELECT i, current_user::text AS who FROM generate_series(1, 3) i';
schedule('select', 'SELECT ' . $pg->ingest_call($rows, 'Selected'));
schedule('call', call($rows, 'Called'));
schedule('rejected', call($rows, 'Rejected'));
schedule('absent', call($rows, 'NoSuchTable'));
schedule('query error', call('SELECT 1 / 0 AS i', 'Called'));
schedule('timeout', call($rows, 'Slow', ", timeout => '0 s'"));
schedule('owned', call($rows, 'Owned'), user => 'reporter');

# The end of each job's run in this life of the server, by name.
sub runs
{
	my $runs = $pg->sql(<<~'SQL');
		SELECT coalesce(json_object_agg(j.jobname, json_build_object('status', d.status, 'message', d.return_message)), '{}')
		FROM cron.job_run_details d JOIN cron.job j USING (jobid)
		WHERE d.end_time IS NOT NULL AND d.start_time >= pg_postmaster_start_time()
		SQL
	return JSON::PP->new->decode($runs);
}

sub scripted_outcomes
{
	my %rejection = (status => 'Failed', failureStatus => 'Permanent', errorCode => 'BadRequest_InvalidBlob',
		details => 'The blob is no good, says the test.');
	$kusto->config(outcomes => [ { match => { table => 'Rejected' }, times => -1, %rejection } ]);
	return;
}

sub try_all
{
	my ($way) = @_;
	scripted_outcomes();
	$node->restart;
	wait_until(sub { keys %{ runs() } == 7 }, 'all jobs have run');
	my $runs = runs();

	my $run = $runs->{select};
	is($run->{status}, 'succeeded', "$way: SELECT kusto_ingest() is a run that succeeded") or diag explain $run;
	my $id = $pg->sql(q(SELECT id FROM kusto.operations WHERE table_name = 'Selected' ORDER BY created_at DESC LIMIT 1));
	$pg->succeeds($id, "$way: its export succeeds");

	$run = $runs->{call};
	is($run->{status}, 'succeeded', "$way: CALL kusto_ingest_and_wait() is a run that succeeded") or diag explain $run;
	is($pg->sql(q(SELECT state FROM kusto.operations WHERE table_name = 'Called' ORDER BY created_at DESC LIMIT 1)),
		'succeeded', "$way: and did not end before its export");

	$run = $runs->{rejected};
	is($run->{status}, 'failed', "$way: a blob that Kusto rejects is a run that failed");
	like($run->{message}, qr/Kusto could not ingest the data: BadRequest_InvalidBlob/, "$way: with Kusto's code");
	like($run->{message}, qr/The blob is no good, says the test/, "$way: and Kusto's own words");

	like($runs->{absent}{message}, qr/Kusto could not ingest the data: BadRequest_TableNotExist/, "$way: as is a table that is not there");
	is($runs->{absent}{status}, 'failed', "$way: which fails");
	is($runs->{'query error'}{status}, 'failed', "$way: a query that fails is a run that failed");
	like($runs->{'query error'}{message}, qr/division by zero/, "$way: with PostgreSQL's message");
	is($runs->{timeout}{status}, 'failed', "$way: an export that is too slow is a run that failed");
	like($runs->{timeout}{message}, qr/timed out waiting for operation/, "$way: which says so");

	is($runs->{owned}{status}, 'succeeded', "$way: a job of another user") or diag explain $runs->{owned};
	is($pg->sql(q(SELECT owner FROM kusto.operations WHERE table_name = 'Owned' ORDER BY created_at DESC LIMIT 1)),
		'reporter', "$way: runs as that user");
	$kusto->settle;
	return;
}

sub rows_are
{
	my ($table, $who, $times, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	KustoCluster::same_rows($kusto->rows($db, $table), [ map { my $i = $_; map { [ $i, $who ] } 1 .. $times } 1 .. 3 ], $name);
	return;
}

try_all('background workers');
rows_are('Selected', 'postgres', 1, 'rows of the SELECT have landed');
rows_are('Called', 'postgres', 1, 'rows of the CALL have landed');
rows_are('Owned', 'reporter', 1, 'rows of another user have landed, once');
rows_are('Rejected', 'postgres', 0, 'what was rejected has not');

$node->append_conf('postgresql.conf', <<~'CONF');
	shared_preload_libraries = 'kusto_ingest, pg_cron'
	cron.use_background_workers = off
	CONF
# A job keeps the host of the time when it was scheduled.
$pg->sql('UPDATE cron.job SET nodename = ' . KustoCluster::literal($node->host));
try_all('connections, kusto_ingest preloaded');
rows_are('Selected', 'postgres', 2, 'rows of both SELECTs have landed');
rows_are('Called', 'postgres', 2, 'rows of both CALLs have landed');
rows_are('Owned', 'reporter', 2, 'rows of another user have landed, once each');

unlike(slurp_file($node->logfile), qr/\Q${\ $kusto->client_secret}\E/, 'no secret in the log');
$kusto->assert_no_violations;
done_testing;
