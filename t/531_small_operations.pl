# Thousands of small exports: all land, once; each costs a known number of requests; neither connections
# nor memory grow with them; and the worker writes of many in one transaction.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(process_status wait_until);
use KustoLocal;
use List::Util qw(sum0);
use PostgreSQL::Test::Utils;
use Test::More;

my $sessions = 4;
my $each = $ENV{KUSTO_INGEST_SMALL_OPERATIONS} // 150;
my $round = $sessions * $each;
my $db = KustoCluster::DATABASE;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto, conf => "max_prepared_transactions = 2\n");
$kusto->create_table($db, 'T', 'i:long');
$pg->sql('CREATE SEQUENCE ids');
my $worker = q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker' AND datname = current_database());

sub all_end
{
	my ($what) = @_;
	wait_until(sub { $pg->sql('SELECT count(*) = 0 FROM kusto.operations WHERE finished_at IS NULL') eq 't' },
		"$what have ended", 300);
	return;
}

# ---- many, each in a transaction of its own ----

my $call = $pg->ingest_call("SELECT nextval('ids') AS i", 'T');
my @sessions = map { $pg->session } 1 .. $sessions;

sub export_all
{
	$_->send("DO \$\$ BEGIN FOR n IN 1 .. $each LOOP PERFORM $call; COMMIT; END LOOP; END \$\$") for @sessions;
	is(join('', map { $_->receive->{err} } @sessions), '', 'no session sees an error');
	all_end("$round exports");
	return;
}

sub requests
{
	my %requests;
	$requests{"$_->{service} $_->{method}"}++ for $kusto->log;
	return \%requests;
}

sub accepted { return sum0(map { $_->{accepted} } values %{ $kusto->connections }) }

export_all();
my $asked = requests();
my %memory = map { $_ => process_status($_)->{RssAnon} } $pg->sql($worker), map { $_->pid } @sessions;
my $connections = accepted();
export_all();

is($pg->sql("SELECT string_agg(DISTINCT state, ',') FROM kusto.operations"), 'succeeded', 'all of them succeed');
$kusto->settle;
my %times;
$times{ $_->[0] }++ for @{ $kusto->rows($db, 'T') };
is_deeply(\%times, { map { $_ => 1 } 1 .. 2 * $round }, 'every row is in Kusto, once');

# The second time everything is known.
my $now = requests();
my %more = map { $_ => $now->{$_} - ($asked->{$_} // 0) } keys %$now;
delete $more{$_} for grep { $more{$_} == 0 } keys %more;
my $polls = delete $more{'table GET'};
is_deeply(\%more, { 'blob PUT' => $round, 'table POST' => $round, 'queue POST' => $round },
	'each takes a blob, a row of the status table, a message, and no other request');
# How often an outcome is asked for depends on how long the service takes.
cmp_ok($polls, '>=', $round, 'each outcome is asked for');
cmp_ok($polls, '<=', 4 * $round, "and not much oftener: $polls times for $round");

# A post or poll that finds all connections busy makes one more, up to what may be under way at once.
my $new = accepted() - $connections;
cmp_ok($connections, '<=', 140, "few connections: $connections");
cmp_ok($new, '<=', $round / 10, "and few more for as many exports: $new");

for my $pid (sort { $a <=> $b } keys %memory)
{
	my $more = process_status($pid)->{RssAnon} - $memory{$pid};
	cmp_ok($more, '<', 2048, "process $pid does not grow: $more kB");
}
$_->quit for @sessions;

# ---- an empty result asks nobody ----

my $session = $pg->session;
my $before = requests();
my $empty = $session->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i WHERE false', 'T'));
is($pg->operation($empty)->{state}, 'succeeded', 'an empty result is a success');
is_deeply(requests(), $before, 'for which nobody is asked for anything');

# ---- many in one transaction of the worker ----

# Those whose row somebody has locked are left alone meanwhile.
$pg->set_config('kusto_ingest.naptime' => '1h');
my $blackhole = { blackhole => JSON::PP::true };
$kusto->fault({ service => 'queue', method => 'POST' }, $blackhole, times => -1);
my @ids = split /\n/, $session->sql(
	'BEGIN; SELECT ' . $pg->ingest_call("SELECT nextval('ids') AS i", 'T') . " FROM generate_series(1, 8); PREPARE TRANSACTION 'eight'");
$pg->sql("COMMIT PREPARED 'eight'");
my $steering = $pg->session;
$steering->sql("BEGIN; SELECT kusto_cancel('$ids[3]')");
# It wakes the worker.
push @ids, $session->sql("SELECT $call");
my $posting = q(SELECT count(*) FROM kusto.operation WHERE state = 'posting');
$pg->poll("$posting", 8, 'all that nobody has locked are claimed');
is($pg->sql(q(SELECT count(DISTINCT xmin::text) FROM kusto.operation WHERE state = 'posting')), 1, 'in one transaction');
is($pg->operation($ids[3])->{state}, 'staged', 'the one that somebody steers is not');
$steering->sql('ROLLBACK');
$steering->quit;
$pg->poll($posting, 9, 'it is claimed when that has ended');
$kusto->clear_faults;
$pg->forget_worker;
$pg->set_config('kusto_ingest.repost_after' => '1s', 'kusto_ingest.naptime' => '1s');
$session->sql("SELECT $call");
all_end('the last exports');
is($pg->sql("SELECT string_agg(DISTINCT state, ',') FROM kusto.operations"), 'succeeded', 'in the end all have succeeded');
$session->quit;

$kusto->assert_no_violations;
done_testing();
