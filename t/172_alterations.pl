# What the worker depends on is dropped or altered while it works: the extension, its version, the
# server, the user mapping, settings. t/030_worker.pl and t/035_worker_faults.pl have roles and renames.
use strict;
use warnings;

use KustoCluster qw(literal wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $other_kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.repost_after = 1s
	CONF
$_->create_table($db, 'T', 'i:int') for $kusto, $other_kusto;

my $worker_pid = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker' AND datname = current_database());
my (%here, %there);
my $next = 0;

sub refuse_posts { return $kusto->fault({ service => 'queue', method => 'POST' }, { status => 503, body => 'busy' }, times => -1) }

# An operation whose posts fail for a passing reason.
sub begin_work
{
	my ($arrives) = @_;
	refuse_posts();
	$next++;
	$arrives->{$next} = 1;
	my $id = $pg->ingest("SELECT $next AS i", 'T');
	$pg->poll("SELECT error_message IS NOT NULL FROM kusto.operations WHERE id = '$id'");
	return $id;
}

sub says
{
	my ($id, $reason, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$pg->poll("SELECT concat(error_message, ' ', details) ~ '$reason' FROM kusto.operations WHERE id = '$id'", 't', "$name: the row says so");
	return is($pg->operation($id)->{state}, 'posting', "$name: the operation waits");
}

# Nobody calls: the worker that runs does it.
sub ends
{
	my ($id, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return $pg->poll("SELECT state = 'succeeded' AND error_message IS NULL FROM kusto.operations WHERE id = '$id'", 't', $name);
}

# ---- the secret ----

my $secret = 'ALTER USER MAPPING FOR CURRENT_USER SERVER adx OPTIONS (SET client_secret %s)';
my $id = begin_work(\%here);
$pg->sql(sprintf $secret, literal('outdated'));
says($id, 'AADSTS7000215', 'a secret that is not valid any more');
my $operation = $pg->operation($id);
unlike($operation->{error_message} . $operation->{details}, qr/outdated/, 'but not the secret');
$kusto->clear_faults;
$pg->sql(sprintf $secret, literal($kusto->client_secret));
ends($id, 'with the new one it goes on by itself');
$id = begin_work(\%here);
$pg->sql(sprintf $secret, literal('a new one'));
$pg->sql(sprintf $secret, literal($kusto->client_secret));
$kusto->clear_faults;
ends($id, 'a secret that is replaced while work is queued: it goes on');

# ---- the server ----

$id = begin_work(\%here);
$pg->sql(q(ALTER SERVER adx OPTIONS (SET ingest_uri 'http://127.0.0.1:1')));
$kusto->clear_faults;
$pg->sql('ALTER SERVER adx OPTIONS (SET ingest_uri ' . literal($kusto->ingest) . ')');
ends($id, 'a server that is altered, and altered back');

$id = begin_work(\%here);
$pg->sql('DROP SERVER adx CASCADE');
says($id, 'server .* does not exist', 'a server that is dropped');
$kusto->clear_faults;
$pg->connect_to($kusto);
ends($id, 'a server of this name lets it go on');

# What is posted goes to the storage where the blob is; only its account's owner can read it.
$id = begin_work(\%here);
$pg->sql('ALTER SERVER adx OPTIONS (SET query_uri ' . literal($other_kusto->engine) . ', SET ingest_uri ' . literal($other_kusto->ingest) . ')');
$pg->sql(sprintf 'ALTER USER MAPPING FOR CURRENT_USER SERVER adx OPTIONS (SET tenant %s, SET client_id %s, SET client_secret %s)',
	map { literal($_) } $other_kusto->tenant, $other_kusto->client_id, $other_kusto->client_secret);
$next++;
$there{$next} = 1;
$pg->succeeds($pg->ingest("SELECT $next AS i", 'T'), 'a server that is led to another cluster: new exports go there');
$operation = $pg->ends_as($id, 'failed', 'what was uploaded to the old one is not posted to the new one');
like("$operation->{error_message} $operation->{details}", qr/container is no longer one of the ingestion service's/, 'the row says why');
$kusto->clear_faults;
$pg->sql('ALTER SERVER adx OPTIONS (SET query_uri ' . literal($kusto->engine) . ', SET ingest_uri ' . literal($kusto->ingest) . ')');
$pg->sql(sprintf 'ALTER USER MAPPING FOR CURRENT_USER SERVER adx OPTIONS (SET tenant %s, SET client_id %s, SET client_secret %s)',
	map { literal($_) } $kusto->tenant, $kusto->client_id, $kusto->client_secret);
is($pg->sql("SELECT kusto_retry('$id')"), 't', 'led back, it can be retried');
ends($id, 'and lands');

# ---- settings ----

$pg->sql(q(LOAD 'kusto_ingest'; ALTER SYSTEM SET kusto_ingest.naptime = '1h'));
$pg->sql('SELECT pg_reload_conf()');
my $session = $pg->session;
$next++;
$here{$next} = 1;
$session->sql('BEGIN');
$id = $session->sql('SELECT ' . $pg->ingest_call("SELECT $next AS i", 'T'));
$session->sql(q(PREPARE TRANSACTION 'p'));
$session->sql(q(COMMIT PREPARED 'p'));
$session->quit;
$pg->sql(q(LOAD 'kusto_ingest'; ALTER SYSTEM SET kusto_ingest.naptime = '100ms'));
$pg->sql('SELECT pg_reload_conf()');
ends($id, 'a shorter naptime counts from the reload on');

# ---- DROP EXTENSION, undone ----

$id = begin_work(\%here);
my $pid = $pg->sql($worker_pid);
$session = $pg->session;
$session->sql('BEGIN');
$session->sql('DROP EXTENSION kusto_ingest CASCADE');
$kusto->clear_faults;
is($pg->sql("SELECT count(*) FROM pg_locks WHERE pid = $pid AND NOT granted"), 0, 'the worker does not wait for a DROP EXTENSION');
$session->sql('ROLLBACK');
$session->quit;
ends($id, 'a DROP EXTENSION that is rolled back: the work goes on');
is($pg->sql($worker_pid), $pid, 'in the same process');

# ---- the library is older than the extension ----

sub installed { return $pg->sql(q(UPDATE pg_extension SET extversion = ) . literal($_[0]) . q( WHERE extname = 'kusto_ingest')) }

$pid = $pg->sql($worker_pid);
my $offset = -s $pg->node->logfile;
installed('1.10');
wait_until(sub { slurp_file($pg->node->logfile, $offset) =~ /LOG:  kusto_ingest worker ends: its library is older/ }, 'the worker ends');
$pg->poll("SELECT NOT EXISTS ($worker_pid)", 't', 'a worker whose library is too old ends');
my @said = slurp_file($pg->node->logfile, $offset) =~ /worker ends: its library is older/g;
is(scalar @said, 2, 'after one more, in case that it could load a new library');
for my $statement (
	'SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'T'),
	'SELECT ' . ($pg->ingest_call('SELECT 1 AS i', 'T') =~ s/^kusto_ingest/kusto_ingest_async/r),
	'CALL ' . ($pg->ingest_call('SELECT 1 AS i', 'T') =~ s/^kusto_ingest/kusto_ingest_and_wait/r),
	q(SELECT kusto_query('print 1')),
	"SELECT kusto_wait('$id', '1 s')",
	"SELECT kusto_retry('$id')",
	q(SELECT * FROM kusto_test_connection()))
{
	$pg->fails_like($statement, { sqlstate => '55000', message => qr/library of kusto_ingest is older than the installed extension/,
			detail => qr/The library is of version 1\.0, the extension of version 1\.10\./, hint => qr/Connect again/ },
		"a library that is too old: $statement");
}
# Numbers count, not letters.
for my $version ([ '010.0', 0 ], [ '1.0.1', 0 ], [ '2', 0 ], [ '1.00', 1 ], [ '0.99', 1 ], [ '1', 1 ])
{
	installed($version->[0]);
	my $status = $pg->node->psql('postgres', "SELECT kusto_wait('$id', '1 s')");
	is($status == 0 ? 1 : 0, $version->[1], "a library of version 1.0, an extension of version $version->[0]");
}
installed('1.0');
$next++;
$here{$next} = 1;
$pg->succeeds($pg->ingest("SELECT $next AS i", 'T'), 'with the right version all goes on');

$pg->node->append_conf('postgresql.conf', "shared_preload_libraries = 'kusto_ingest'\n");
$pg->node->restart;
installed('1.1');
$pg->fails_like(q(SELECT kusto_query('print 1')), { sqlstate => '55000', hint => qr/Restart the server/ },
	'a preloaded library that is too old: the hint is another');
installed('1.0');

$kusto->settle;
KustoCluster::same_rows($kusto->rows($db, 'T'), [ map { [ $_ + 0 ] } keys %here ], 'everything has arrived once');
KustoCluster::same_rows($other_kusto->rows($db, 'T'), [ map { [ $_ + 0 ] } keys %there ], 'and nothing else in the other cluster');
unlike(slurp_file($pg->node->logfile), qr/TRAP|PANIC/, 'no assertion has failed');
done_testing();
