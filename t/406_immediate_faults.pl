# Accidents between Kusto's answer and the record of it, in the modes of kusto_ingest that have their
# effect at once: the data are in Kusto and no operation tells of them; a job is run again, which makes
# it at least once, or once with a key of one's own.
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
		wait_until(\&is_up, 'the server is up');
		$session->quit;
		arm('');
		is(rows_of($table), '1', "$mode, $action: the rows are in Kusto");
		is($pg->sql("SELECT count(*) FROM kusto.operations WHERE table_name = '$table'"), 0, "$mode, $action: no operation tells of them");
	}

	# A job.
	for my $action (qw(exit kill sleep))
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
	my $table = fresh_table("Job_${mode}_error");
	arm('error');
	my $id = $pg->async('SELECT 1 AS i', $table, mode => "'$mode'");
	is($pg->ends_as($id, 'failed', "$mode, job, error: it fails")->{error_code}, 'XX0FT', "$mode, job, error: with the error");
	arm('');
	is(rows_of($table), '1', "$mode, job, error: the rows are in Kusto all the same");
}

# With a key.
my $table = fresh_table('Keyed');
arm('exit');
my $id = $pg->async('SELECT 1 AS i', $table, mode => q('direct'), tags => q(ARRAY['ingest-by:k']), ingest_if_not_exists => q(ARRAY['k']));
wait_until(sub { -e marker(1) }, 'direct, with a key: the accident happens in a job');
arm('');
is($pg->ends_as($id, 'skipped', 'direct, with a key: the second run finds its rows')->{runs}, 2, 'it was the second');
is(rows_of($table), '1', 'and they are there once');

unlike(slurp_file($pg->node->logfile), qr/TRAP|PANIC/, 'no assertion has failed');
$kusto->assert_no_violations;
done_testing();
