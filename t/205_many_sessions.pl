# Two hundred sessions export small results for a minute, and some of their transactions roll back:
# every row that was committed arrives, once, no other does, and the service is asked for one token
# and one set of resources.
use strict;
use warnings;

use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $sessions = 200;
my $seconds = $ENV{KUSTO_INGEST_MANY_SESSIONS_SECONDS} // 60;
# Transactions a second, of all sessions together.
my $rate = $ENV{KUSTO_INGEST_MANY_SESSIONS_RATE} // 30;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	shared_preload_libraries = 'kusto_ingest'
	kusto_ingest.default_server = 'adx'
	max_connections = 250
	CONF

$kusto->create_table($db, 'T', 'i:long, s:string');
# What a transaction exports it inserts here, too: this is what Kusto must have in the end.
$pg->sql('CREATE TABLE expected (i bigint); CREATE SEQUENCE ids');
my $call = $pg->ingest_call('SELECT :id AS i, repeat(chr(97 + :id % 26), 40) AS s', 'T') =~ s/'SELECT(.*?)', /\$\$SELECT$1\$\$, /r;
my $script = "$PostgreSQL::Test::Utils::tmp_check/many_sessions.sql";
append_to_file($script, <<~"SCRIPT");
	\\set fate random(1, 10)
	SELECT nextval('ids') AS id \\gset
	BEGIN;
	INSERT INTO expected VALUES (:id);
	SELECT $call;
	\\if :fate <= 2
	ROLLBACK;
	\\elif :fate = 3
	SAVEPOINT before;
	SELECT $call;
	ROLLBACK TO before;
	COMMIT;
	\\else
	COMMIT;
	\\endif
	SCRIPT

{
	local $ENV{PGOPTIONS} = '-c client_min_messages=warning';
	my @pgbench = ('pgbench', '-n', '-c', $sessions, '-j', 2, '-f', $script);
	# All at once: nobody has a token yet, and everybody wants one.
	$pg->node->command_ok([ @pgbench, '-t', 4, $pg->{dbname} ],
		"$sessions sessions export as fast as they can, and none of them sees an error");
	# A service with two cores for all of it ingests some dozens of blobs a second.
	$pg->node->command_ok([ @pgbench, '-T', $seconds, '-R', $rate, $pg->{dbname} ],
		"$sessions sessions export for $seconds s, and none of them sees an error");
}

my $committed = $pg->sql('SELECT count(*) FROM expected');
my $begun = $pg->sql('SELECT last_value FROM ids');
note "$begun transactions, $committed of them committed";
cmp_ok($committed, '>=', $sessions, 'all had their turn');
cmp_ok($committed, '<', $begun, 'some rolled back');
is($pg->sql('SELECT count(*) FROM kusto.operations'), $committed, 'an operation for each transaction that committed');

# What two cores did not manage within the minute they do now.
my $open = q(SELECT count(*) FROM kusto.operations WHERE state IN ('staged', 'posting', 'posted'));
my ($left, $since) = (-1, time);
wait_until(sub {
	my $now = $pg->sql($open);
	($left, $since) = ($now, time) if $now != $left;
	die "stuck with $now open operations\n" if $now > 0 && time - $since > 120;
	return $now == 0;
}, 'all operations have ended', 600);
is($pg->sql("SELECT count(*), state FROM kusto.operations GROUP BY state"), "$committed|succeeded", 'all of them have succeeded');

$kusto->settle;
my %times;
$times{ $_->{i} }++ for map { ref $_ eq 'HASH' ? $_ : { i => $_->[0] } } @{ $kusto->rows($db, 'T') };
my %expected = map { $_ => 1 } split /\n/, $pg->sql('SELECT i FROM expected');
is(scalar(grep { !$times{$_} } keys %expected), 0, 'no committed row is missing in Kusto');
is(scalar(grep { !$expected{$_} } keys %times), 0, 'no row of an aborted transaction is there');
is(scalar(grep { $times{$_} > 1 } keys %times), 0, 'and no row is there twice');

is(scalar $kusto->log(service => 'login', path => qr{/oauth2/v2\.0/token}), 1, 'one token for all');
my @commands = map { $_->{csl} // '' } $kusto->log(service => 'ingest', path => qr{/v1/rest/mgmt});
is(scalar(grep { /^\.get ingestion resources/ } @commands), 1, 'one set of resources');
is(scalar(grep { /^\.get kusto identity token/ } @commands), 1, 'one identity token');

$kusto->assert_no_violations;
done_testing();
