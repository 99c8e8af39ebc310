# Copies of a database that recorded operations: pg_dump brings none of them, pg_upgrade and copies by
# hand bring them as foreign ones, which nobody sends until they are adopted.
use strict;
use warnings;

use Cwd qw(getcwd);
use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
$kusto->create_table($db, 'T', 'i:int');
my $preload = "shared_preload_libraries = 'kusto_ingest'\nkusto_ingest.repost_after = 1s\n";
my $pg = KustoCluster->start($kusto, name => 'original', conf => $preload);
my $bindir = $pg->node->config_data('--bindir');
my $work = PostgreSQL::Test::Utils::tempdir;

# As docs/operations.md tells.
my $adopt = <<~'SQL';
	UPDATE kusto.operation SET
	    system_identifier = (SELECT system_identifier FROM pg_control_system()),
	    database_oid = (SELECT oid FROM pg_database WHERE datname = current_database())
	WHERE finished_at IS NULL
	SQL

sub stall_queue { return $kusto->fault({ service => 'queue', method => 'POST' }, { status => 503, body => 'busy' }, times => -1) }

sub same_cluster
{
	my ($node) = @_;
	return bless { %$pg, node => $node }, ref $pg;
}

sub foreign_ones_are_left
{
	my ($copy, $id, $value, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$copy->succeeds($copy->ingest("SELECT $value AS i", 'T'), "$what: an export of its own");
	is($copy->operation($id)->{state}, 'posting', "$what: what the original recorded is left alone");
	wait_until(sub { slurp_file($copy->node->logfile) =~ /LOG:  \d+ unfinished kusto_ingest operations? w\w+ recorded by another cluster/ }, 'the log says so');
	$copy->fails_like("SELECT kusto_wait('$id')", { sqlstate => '55000', message => qr/recorded by another cluster or database/ },
		"$what: waiting for it is an error");
	return;
}

# ---- pg_dump and restore ----

$pg->sql('CREATE TABLE kept AS SELECT 7 AS i');
my $done = $pg->ingest('SELECT 1 AS i', 'T');
$pg->succeeds($done, 'an operation that is finished');
stall_queue();
my $open = $pg->ingest('SELECT 2 AS i', 'T');
$pg->poll("SELECT error_message IS NOT NULL FROM kusto.operations WHERE id = '$open'");
command_ok([ "$bindir/pg_dump", '-Fc', '-f', "$work/dump", $pg->node->connstr('postgres') ], 'pg_dump');
$pg->sql("COPY kusto.operation TO '$work/operation'; COPY kusto.blob TO '$work/blob'");

my $restored = KustoCluster->start(undef, name => 'restored', conf => $preload);
$restored->{kusto} = $kusto;
$restored->sql('DROP EXTENSION kusto_ingest');
command_ok([ "$bindir/pg_restore", '-d', $restored->node->connstr('postgres'), "$work/dump" ], 'pg_restore');
is($restored->sql('TABLE kept'), '7', 'the dump brings tables');
is($restored->sql(q(SELECT extversion FROM pg_extension WHERE extname = 'kusto_ingest')), '1.0', 'and the extension');
is($restored->sql('SELECT count(*) FROM kusto.operations'), 0, 'and no operation');
$kusto->clear_faults;
$pg->succeeds($open, 'the original posts what is its own');
$restored->succeeds($restored->ingest('SELECT 3 AS i', 'T'), 'server and user mapping are there, too');
$restored->sql("COPY kusto.operation FROM '$work/operation'; COPY kusto.blob FROM '$work/blob'");
$restored->node->restart;
foreign_ones_are_left($restored, $open, 4, 'rows that were copied by hand');
my %sent = map { $_ => 1 } 1 .. 4;
$restored->sql($adopt);
$restored->succeeds($open, 'adopted, its end becomes known');
$restored->node->stop;

# ---- pg_upgrade ----

stall_queue();
$open = $pg->ingest('SELECT 5 AS i', 'T');
$sent{5} = 1;
$pg->poll("SELECT error_message IS NOT NULL FROM kusto.operations WHERE id = '$open'");
$pg->node->stop;
$kusto->clear_faults;
my $requests = $kusto->log;

my $new = PostgreSQL::Test::Cluster->new('upgraded');
$new->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$new->append_conf('postgresql.conf', $preload . "max_connections = 30\nmax_prepared_transactions = 10\nkusto_ingest.naptime = 1s\n");
# It writes into the current directory.
my $here = getcwd();
chdir $work or die;
command_ok(
	[
		"$bindir/pg_upgrade", '-d', $pg->node->data_dir, '-D', $new->data_dir, '-b', $bindir, '-B', $bindir,
		'-s', $new->host, '-p', $pg->node->port, '-P', $new->port
	],
	'pg_upgrade, with the library preloaded in both clusters');
chdir $here or die;
is($kusto->log, $requests, 'nothing is sent meanwhile');
unlike(slurp_file($new->logfile), qr/kusto_ingest launcher/, 'no launcher has run') if -e $new->logfile;
$new->start;
my $upgraded = same_cluster($new);
is($upgraded->sql(q(SELECT count(*) FROM kusto.operations)), 3, 'the operations are there');
foreign_ones_are_left($upgraded, $open, 6, 'after pg_upgrade');
$sent{6} = 1;
$upgraded->sql($adopt);
$upgraded->succeeds($open, 'adopted, it is posted');

$kusto->settle;
KustoCluster::same_rows($kusto->rows($db, 'T'), [ map { [ $_ + 0 ] } keys %sent ], 'everything has arrived once');
unlike(slurp_file($_->logfile), qr/TRAP|PANIC/, 'no assertion has failed') for $pg->node, $restored->node, $new;
$kusto->assert_no_violations;
done_testing();
