# Accidents between Kusto's answer and the record of it, in the modes of kusto_ingest that have their
# effect at once: the data are in Kusto and no operation tells of them. A job that can still tell so ends
# as unknown; one that is killed is run again, which makes it at least once, or once with a key of one's own.
use strict;
use warnings;

use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'needs the library with faults, which scripts/test prepares (for tests that name FaultMatrix)'
  unless $ENV{KUSTO_FAULTS_POSTGRES};

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, faults => 1, conf => <<~'CONF');
	restart_after_crash = on
	autovacuum = off
	kusto_ingest.naptime = 200ms
	include_if_exists = 'fault.conf'
	CONF
my $point = 'ingested-at-once';

sub marker { my ($n) = @_; return $pg->node->data_dir . "/kusto_ingest_faults/$point.$n" }

# Whoever starts from now on has this accident; an empty action: nobody.
sub arm
{
	my ($action) = @_;
	unlink map { marker($_) } 1 .. 9;
	unlink $pg->node->data_dir . '/fault.conf';
	append_to_file($pg->node->data_dir . '/fault.conf', $action eq '' ? '' : "kusto_ingest.fault = '$point:$action'\n");
	$pg->node->reload;
	my $expected = $action eq '' ? '' : "$point:$action";
	$pg->poll("SELECT coalesce(current_setting('kusto_ingest.fault', true), '') = '$expected'");
	return;
}

sub fresh_table { my ($table) = @_; $kusto->create_table($db, $table, 'i:int'); return $table }
sub rows_of { my ($table) = @_; return join ',', sort map { $_->[0] } @{ $kusto->rows($db, $table) } }

# Data that Kusto may have are not sent again without being asked for.
sub is_in_doubt
{
	my ($id, $code, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $operation = $pg->ends_as($id, 'unknown', "$name: the outcome is unknown");
	is($operation->{error_code}, $code, "$name: the row has the reason");
	like($operation->{hint}, qr/^Look whether the data are in the Kusto table/, "$name: and tells what to do");
	return $operation;
}

# What a transaction runs into when it commits.
$pg->sql(<<~'SQL');
	CREATE TABLE conflicting (i int);
	CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN RAISE 'could not serialize access' USING ERRCODE = 'serialization_failure'; END$$;
	CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON conflicting DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION conflict();
	SQL

sub is_up { my ($status) = $pg->node->psql('postgres', 'SELECT 1'); return $status == 0 }

for my $mode (qw(streaming direct))
{
	# A session.
	for my $action (qw(error exit kill))
	{
		my $table = fresh_table("Session_${mode}_$action");
		arm($action);
		my $session = $pg->session;
		$session->send('SELECT ' . $pg->ingest_call('SELECT 1 AS i', $table, mode => "'$mode'"));
		my $outcome = $session->receive;
		ok($outcome->{lost} || $outcome->{err} =~ /XX0FT/, "$mode, $action: the accident happens") or diag $outcome->{err};
		ok(-e marker(1), "$mode, $action: at its point");
		like($outcome->{err}, qr/CONTEXT:  recording what is in Kusto table "$table" already/, "$mode: the error says where the rows are")
		  if $action eq 'error';
		wait_until(\&is_up, 'the server is up');
		$session->quit;
		arm('');
		is(rows_of($table), '1', "$mode, $action: the rows are in Kusto");
		is($pg->sql("SELECT count(*) FROM kusto.operations WHERE table_name = '$table'"), 0, "$mode, $action: no operation tells of them");
	}

	# A job.
	for my $action (qw(kill sleep))
	{
		my $table = fresh_table("Job_${mode}_$action");
		arm($action);
		my $id = $pg->async('SELECT 1 AS i', $table, mode => "'$mode'");
		wait_until(sub { -e marker(1) }, "$mode, $action: the accident happens in a job");
		if ($action eq 'sleep')
		{
			$pg->node->stop('immediate');
			$pg->node->start;
		}
		wait_until(\&is_up, 'the server is up');
		arm('');
		my $operation = $pg->succeeds($id, "$mode, job, $action: it is run again");
		is($operation->{runs}, 2, "$mode, job, $action: once");
		is(rows_of($table), '1,1', "$mode, job, $action: and sends its rows again");
	}
	for my $action (qw(error exit))
	{
		my $table = fresh_table("Job_${mode}_$action");
		arm($action);
		my $id = $pg->async('SELECT 1 AS i', $table, mode => "'$mode'");
		is(is_in_doubt($id, $action eq 'error' ? 'XX0FT' : '57P01', "$mode, job, $action")->{runs}, 1, "$mode, job, $action: it is not run again");
		arm('');
		is(rows_of($table), '1', "$mode, job, $action: the rows are in Kusto");
	}

	my $table = fresh_table("Conflict_$mode");
	my $id = $pg->async('INSERT INTO conflicting VALUES (1) RETURNING i', $table, mode => "'$mode'");
	is(is_in_doubt($id, '40001', "$mode, a serialization failure after Kusto's answer")->{runs}, 1, "$mode: it is not run again, either");
	is(rows_of($table), '1', "$mode: the rows are in Kusto once");

	# The run that fails has sent nothing, but the one before has.
	$table = fresh_table("Lost_$mode");
	arm('kill');
	$id = $pg->async('SELECT 1 AS i', $table, mode => "'$mode'");
	wait_until(sub { -e marker(1) }, "$mode: a job is killed after Kusto's answer");
	wait_until(\&is_up, 'the server is up');
	$kusto->fault({ service => 'engine' }, { status => 400, body => 'no more' }, times => -1);
	arm('');
	my $operation = $pg->finished($id);
	is($operation->{state}, 'unknown', "$mode: its second run fails, and the outcome is unknown") or diag explain $operation;
	is($operation->{runs}, 2, "$mode: it was the second");
	$kusto->clear_faults;
	is(rows_of($table), '1', "$mode: the rows of the first are in Kusto");
}

# Three times.
my $lost = fresh_table('Lost');
arm('kill:3');
my $thrice = $pg->async('SELECT 1 AS i', $lost, mode => q('streaming'));
wait_until(sub { $pg->node->psql('postgres', "SELECT kusto_wait('$thrice', '500 ms')"); return -e marker(3) }, 'a job is killed three times');
wait_until(\&is_up, 'the server is up');
arm('');
is(is_in_doubt($thrice, '57P01', 'a job that is killed three times')->{runs}, 3, 'it has run three times');
is(rows_of($lost), '1,1,1', 'and sent its rows each time');

# Cancelled by its owner.
my $cancelled = fresh_table('Cancelled');
arm('sleep');
my $sent = $pg->async('SELECT 1 AS i', $cancelled, mode => q('streaming'));
wait_until(sub { -e marker(1) }, 'a job has sent its rows and goes no further');
is($pg->sql("SELECT kusto_cancel('$sent')"), 't', 'kusto_cancel of it');
arm('');
my $record = $pg->ends_as($sent, 'cancelled', 'it is cancelled');
like($record->{details}, qr/Kusto may have it/, 'and the row tells of the rows that it may have sent');
is(rows_of($cancelled), '1', 'which are there');

# With a key.
my $table = fresh_table('Keyed');
arm('kill');
my $id = $pg->async('SELECT 1 AS i', $table, mode => q('direct'), tags => q(ARRAY['ingest-by:k']), ingest_if_not_exists => q(ARRAY['k']));
wait_until(sub { -e marker(1) }, 'direct, with a key: the accident happens in a job');
wait_until(\&is_up, 'the server is up');
arm('');
is($pg->ends_as($id, 'skipped', 'direct, with a key: the second run finds its rows')->{runs}, 2, 'it was the second');
is(rows_of($table), '1', 'and they are there once');

unlike(slurp_file($pg->node->logfile), qr/TRAP|PANIC/, 'no assertion has failed');
$kusto->assert_no_violations;
done_testing();
