# Commands that want a database without connections, while its worker and its jobs are at work: they
# succeed at once, with and without preloading, and the work goes on afterwards where there is one.
use strict;
use warnings;

use KustoCluster qw(elapsed wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
$kusto->create_table($db, 'T', 'i:int');

# What the machine does besides is not the command's fault.
use constant ATTEMPTS => 2;

my ($pg, $session, $mode);
my %landed;
my $next = 0;

sub extension_processes { return "SELECT count(*) FROM pg_stat_activity WHERE backend_type ~ '^kusto_ingest (worker|job)' AND datname = '$_[0]'" }

sub stall_queue { return $kusto->fault({ service => 'queue', method => 'POST' }, { blackhole => JSON::PP::true }, times => -1) }

# Posts that stall, a backlog behind them, and a job in the middle of its query. The ids that are to
# end as succeeded.
sub put_under_load
{
	my ($dbname) = @_;
	local $pg->{dbname} = $dbname;
	stall_queue();
	my ($from, $to) = ($next + 1, $next + 40);
	$next = $to;
	$landed{$_} = 1 for $from .. $to;
	my @ids = split /\n/, $pg->sql('SELECT ' . ($pg->ingest_call('QUERY', 'T') =~ s/'QUERY'/format('SELECT %s AS i', i)/r) . " FROM generate_series($from, $to) i");
	wait_until(sub { $kusto->fired > 0 }, 'the queue stalls');
	$pg->sql('INSERT INTO held VALUES (1)');
	my $job = $pg->sql('SELECT ' . ($pg->ingest_call('SELECT 0 AS i WHERE while_held()', 'T') =~ s/^kusto_ingest/kusto_ingest_async/r));
	$pg->poll("SELECT state = 'running' FROM kusto.operations WHERE id = '$job'");
	$pg->poll(q(SELECT count(*) > 0 FROM pg_stat_activity WHERE backend_type = 'kusto_ingest job' AND datname = current_database()));
	return (@ids, $job);
}

# The shortest of some attempts; prepare makes each, and the command is run in a session of another
# database, so that only the server's time counts.
sub takes_less
{
	my ($limit, $prepare, $command, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $best;
	for (1 .. ref $prepare ? ATTEMPTS : 1)
	{
		$prepare->() if ref $prepare;
		my ($seconds) = elapsed(sub { $session->sql($command) });
		note sprintf '%.2f s: %s', $seconds, $command;
		$best = $seconds if !defined $best || $seconds < $best;
		last if $best < $limit;
	}
	return cmp_ok($best, '<', $limit, "$mode: $name");
}

# Each command gets a job of its own to disturb.
sub let_job_end
{
	my ($dbname) = @_;
	return $pg->sql('DELETE FROM held', dbname => $dbname);
}

sub goes_on
{
	my ($dbname, $ids, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	local $pg->{dbname} = $dbname;
	$kusto->clear_faults;
	my $list = join ',', map { "'$_'" } @$ids;
	return $pg->poll("SELECT bool_and(state = 'succeeded') FROM kusto.operations WHERE id IN ($list)", 't', "$mode: $name")
	  || diag $pg->sql("SELECT state, count(*), min(error_message) FROM kusto.operations WHERE id IN ($list) GROUP BY state");
}

my $tablespace = PostgreSQL::Test::Utils::tempdir;
my %conf = ('on demand' => '', preloaded => "shared_preload_libraries = 'kusto_ingest'\n");
for (sort keys %conf)
{
	$mode = $_;
	$pg = KustoCluster->start($kusto, name => $mode =~ s/ /_/r, conf => $conf{$mode} . <<~'CONF');
		kusto_ingest.naptime = 1h
		kusto_ingest.repost_after = 1s
		# A worker may be back before the queue answers again.
		kusto_ingest.request_timeout = 20s
		max_worker_processes = 16
		CONF
	$pg->sql('CREATE DATABASE model');
	$pg->sql('CREATE EXTENSION kusto_ingest', dbname => 'model');
	{
		local $pg->{dbname} = 'model';
		$pg->connect_to($kusto);
		$pg->sql(<<~'SQL');
			CREATE TABLE held (i int);
			CREATE FUNCTION while_held() RETURNS boolean LANGUAGE plpgsql AS
			$$ BEGIN WHILE EXISTS (SELECT FROM held) LOOP PERFORM pg_sleep(0.02); END LOOP; RETURN false; END $$
			SQL
	}
	mkdir "$tablespace/$mode" or die;
	$pg->sql("CREATE TABLESPACE elsewhere LOCATION '$tablespace/$mode'");
	$session = $pg->session(dbname => 'postgres');
	my @ids;

	# ---- what is left of the database goes on ----

	$pg->sql('CREATE DATABASE place TEMPLATE model');
	push @ids, put_under_load('place');
	takes_less(4, undef, 'CREATE DATABASE copy TEMPLATE place', 'CREATE DATABASE ... TEMPLATE under load');
	let_job_end('place');
	$pg->sql('DROP DATABASE copy');
	push @ids, put_under_load('place');
	takes_less(4, undef, 'ALTER DATABASE place RENAME TO moved', 'ALTER DATABASE ... RENAME under load');
	let_job_end('moved');
	push @ids, put_under_load('moved');
	takes_less(4, undef, 'ALTER DATABASE moved SET TABLESPACE elsewhere', 'ALTER DATABASE ... SET TABLESPACE under load');
	let_job_end('moved');
	goes_on('moved', \@ids, 'all of that goes on without any call');
	is($pg->sql('SELECT max(runs) FROM kusto.operations', dbname => 'moved'), 1, "$mode: who wants the database uses up no run of a job");

	# ---- nothing is left ----

	my %before = %landed;
	my $offset = -s $pg->node->logfile;
	my $victim = sub { $pg->sql('CREATE DATABASE victim TEMPLATE model'); put_under_load('victim') };
	takes_less(2, $victim, 'DROP DATABASE victim', 'DROP DATABASE under load');
	is($pg->sql(extension_processes('victim')), 0, "$mode: no process is left of it");
	takes_less(2, $victim, 'DROP DATABASE victim WITH (FORCE)', 'DROP DATABASE ... WITH (FORCE) under load');
	$kusto->clear_faults;
	%landed = %before;

	# Successors found it gone.
	$pg->poll(q(SELECT count(*) = 0 FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker' AND datid IS NULL));
	unlike(slurp_file($pg->node->logfile, $offset), qr/FATAL:  database .* does not exist/, "$mode: a successor says nothing about it");

	# ---- a worker without work, and a command that does not succeed ----

	my $idle = sub {
		$pg->sql('CREATE DATABASE victim TEMPLATE model');
		local $pg->{dbname} = 'victim';
		$next++;
		$pg->succeeds($pg->ingest("SELECT $next AS i", 'T'), "$mode: a worker has nothing more to do");
		$landed{$next} = 1;
		return;
	};
	my $limit = $mode eq 'preloaded' ? 0.8 : 2;
	takes_less($limit, $idle, 'DROP DATABASE victim', 'DROP DATABASE with an idle worker');
	if ($mode eq 'preloaded')
	{
		$pg->sql('CREATE ROLE nobody LOGIN');
		$idle->();
		my $worker = $pg->sql(q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker' AND datname = 'victim'));
		$pg->fails_like('DROP DATABASE victim', { sqlstate => '42501' }, 'somebody else\'s DROP DATABASE is refused', user => 'nobody', dbname => 'postgres');
		$pg->fails_like('BEGIN; DROP DATABASE victim', { sqlstate => '25001' }, 'as is one in a transaction block', dbname => 'postgres');
		$pg->fails_like('SET default_transaction_read_only = on; DROP DATABASE victim', { sqlstate => '25006' }, 'and one in a read-only session', dbname => 'postgres');
		is($pg->sql("SELECT count(*) FROM pg_stat_activity WHERE pid = $worker"), 1, 'the worker was not disturbed');

		# Of others' processes, an owner may terminate those of his role only.
		stall_queue();
		{
			local $pg->{dbname} = 'victim';
			$pg->ingest('SELECT 0 AS i', 'T');
		}
		wait_until(sub { $kusto->fired > 0 }, 'the queue stalls');
		$pg->sql('CREATE ROLE proprietor LOGIN; ALTER DATABASE victim OWNER TO proprietor');
		$pg->sql('DROP DATABASE victim WITH (FORCE)', user => 'proprietor', dbname => 'postgres');
		$kusto->clear_faults;
		pass('an owner drops a database with its worker');
	}
	$session->quit;
	unlike(slurp_file($pg->node->logfile), qr/TRAP|PANIC/, "$mode: no assertion has failed");
	$pg->node->stop;
}

$kusto->settle;
my %count;
$count{ $_->[0] }++ for grep { defined $_->[0] } @{ $kusto->rows($db, 'T') };
is(scalar(grep { !$count{$_} } keys %landed), 0, 'everything of databases that stayed has arrived');
$kusto->assert_no_violations;
done_testing();
