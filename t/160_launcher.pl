# The launcher of a preloaded library: workers run after a start, a crash and an end of theirs without
# any call, in the databases that are to have one, as far as there is room.
use strict;
use warnings;

use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	shared_preload_libraries = 'kusto_ingest'
	log_min_messages = debug1
	max_worker_processes = 4
	max_logical_replication_workers = 0
	restart_after_crash = on
	kusto_ingest.worker_idle_timeout = 0
	CONF
$kusto->create_table($db, 'T', 'i:int');

# Where a worker is at work, not only about to begin or end.
my $workers = <<~'SQL';
	SELECT coalesce(string_agg(datname, ',' ORDER BY datname), '') FROM pg_locks JOIN pg_database d ON d.oid = database
	WHERE locktype = 'advisory' AND classid = 1263883092 AND objid = 2 AND objsubid = 19285
	SQL

my $next = 0;
my %landed;

# An operation in the database whose outcome is not known until the ingestion goes on.
sub begin_work
{
	my ($dbname) = @_;
	local $pg->{dbname} = $dbname;
	$next++;
	$landed{$next} = 1;
	my $id = $pg->ingest("SELECT $next AS i", 'T');
	$pg->poll("SELECT state = 'posted' FROM kusto.operations WHERE id = '$id'");
	return $id;
}

# Looking at the view calls nobody.
sub ends
{
	my ($dbname, $id, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	local $pg->{dbname} = $dbname;
	return $pg->poll("SELECT state = 'succeeded' FROM kusto.operations WHERE id = '$id'", 't', $name);
}

sub hold { $kusto->config(hold_ingestion => $_[0] ? JSON::PP::true : JSON::PP::false); return }

sub restart
{
	my ($mode) = @_;
	my $offset = -s $pg->node->logfile;
	$pg->node->stop($mode);
	$pg->node->start;
	return $offset;
}

sub logged
{
	my ($offset, $pattern, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok(wait_until(sub { slurp_file($pg->node->logfile, $offset) =~ $pattern }, $name), $name);
}

sub reload
{
	my ($databases) = @_;
	$pg->sql('ALTER SYSTEM SET kusto_ingest.databases = ' . KustoCluster::literal($databases));
	$pg->sql('SELECT pg_reload_conf()');
	return;
}

# ---- the process ----

is($pg->sql(q(SELECT count(*), bool_and(datname IS NULL AND xact_start IS NULL) FROM pg_stat_activity WHERE backend_type = 'kusto_ingest launcher')),
	'1|t', 'there is one launcher, in no database and in no transaction');
$pg->poll("SELECT ($workers) = ''", 't', 'no worker stays where nothing is open');

for my $dbname (qw(own other))
{
	$pg->sql("CREATE DATABASE $dbname");
	$pg->sql('CREATE EXTENSION kusto_ingest', dbname => $dbname);
	local $pg->{dbname} = $dbname;
	$pg->connect_to($kusto);
}
$pg->sql('CREATE DATABASE bare');

# ---- after a start ----

hold(1);
my %work = map { $_ => begin_work($_) } qw(postgres own);
my $offset = restart('immediate');
$pg->poll("SELECT ($workers) = 'own,postgres'", 't', 'after an immediate shutdown workers run where something is open');
logged($offset, qr/worker ends: the extension is not there/, 'elsewhere one has looked');
hold(0);
ends($_, $work{$_}, "$_: its operation comes to its end without any call") for sort keys %work;
$pg->poll("SELECT ($workers) = ''", 't', 'then no worker stays');

# ---- after a crash, and with a prepared transaction ----

hold(1);
my $id = begin_work('own');
my $session = $pg->session(dbname => 'other');
$next++;
$landed{$next} = 1;
$session->sql('BEGIN');
my $prepared = $session->sql('SELECT ' . $pg->ingest_call("SELECT $next AS i", 'T'));
$session->sql(q(PREPARE TRANSACTION 'p'));
$session->quit;
my $postmaster_start = $pg->sql('SELECT pg_postmaster_start_time()');
$pg->crash($pg->sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker' AND datname = 'own'"));
wait_until(sub { eval { $pg->sql("SELECT ($workers) = 'other,own'") eq 't' } },
	'after a crash workers run where something is open, or prepared');
is($pg->sql('SELECT pg_postmaster_start_time()'), $postmaster_start, 'the server was not started anew');
hold(0);
ends('own', $id, 'what the crash left open comes to its end');
restart('fast');
$pg->poll("SELECT ($workers) = 'other'", 't', 'after a restart a worker waits for the prepared transaction');
$pg->sql(q(COMMIT PREPARED 'p'), dbname => 'other');
ends('other', $prepared, 'COMMIT PREPARED is posted without any call');

# ---- kusto_ingest.databases ----

hold(1);
%work = map { $_ => begin_work($_) } qw(postgres own);
reload('"own", other');
restart('fast');
$pg->poll("SELECT ($workers) = 'own'", 't', 'a worker runs only where it may');
is($pg->sql('SHOW kusto_ingest.databases'), '"own", other', 'of the databases in the list');
reload('*');
$pg->poll("SELECT ($workers) = 'own,postgres'", 't', 'a reload lets the launcher start another');
$pg->fails_like(q(ALTER SYSTEM SET kusto_ingest.databases = '"own'), { sqlstate => '22023', detail => qr/List syntax is invalid/ },
	'a list that cannot be read is refused');
hold(0);
ends($_, $work{$_}, "$_: it comes to its end") for sort keys %work;

# ---- no room ----

# One slot is the launcher's.
$pg->node->append_conf('postgresql.conf', "max_worker_processes = 3\n");
hold(1);
%work = map { $_ => begin_work($_) } qw(own other postgres);
$offset = restart('fast');
logged($offset, qr/LOG:  could not start a background worker for kusto_ingest\n.*\n.*HINT:  .*max_worker_processes/,
	'no slot for a worker is in the log, with a hint');
is($pg->sql("SELECT ($workers) ~ '^\\w+,\\w+\$'"), 't', 'two workers run meanwhile');
hold(0);
ends($_, $work{$_}, "$_: it comes to its end, when there is a slot") for sort keys %work;
my @said = slurp_file($pg->node->logfile, $offset) =~ /could not start a background worker/g;
is(scalar @said, 1, 'the log says it once in a row');

# A caller that finds no slot tells the launcher.
hold(1);
%work = map { $_ => begin_work($_) } qw(own other);
my ($out, $err);
$next++;
$landed{$next} = 1;
$pg->node->psql('postgres', 'SELECT ' . $pg->ingest_call("SELECT $next AS i", 'T'), stdout => \$out, stderr => \$err);
like($err, qr/WARNING:  could not start a background worker/, 'a call that finds no slot warns');
$work{postgres} = $out;
hold(0);
ends($_, $work{$_}, "$_: it comes to its end, without another call") for sort keys %work;

# ---- a worker that ends badly ----

$pg->node->append_conf('postgresql.conf', "max_worker_processes = 2\n");
hold(1);
$id = begin_work('own');
restart('fast');
$pg->poll("SELECT ($workers) = 'own'");
$offset = -s $pg->node->logfile;
$pg->sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker'");
logged($offset, qr/FATAL:  terminating background worker "kusto_ingest worker"/, 'a worker is terminated, while there is no slot for a successor');
hold(0);
ends('own', $id, 'the launcher starts another');

# ---- the end ----

$kusto->settle;
KustoCluster::same_rows($kusto->rows($db, 'T'), [ map { [ $_ + 0 ] } keys %landed ], 'everything has arrived once');
$pg->poll("SELECT ($workers) = ''");
$offset = -s $pg->node->logfile;
$pg->node->stop('fast');
my $log = slurp_file($pg->node->logfile, $offset);
unlike($log, qr/FATAL|ERROR/, 'the launcher ends quietly with the server');
unlike(slurp_file($pg->node->logfile), qr/TRAP|PANIC/, 'no assertion has failed');
$kusto->assert_no_violations;
done_testing();
