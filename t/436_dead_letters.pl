# Row changes that Kusto has refused: kept with the error, seen by those who may, sent again by
# kusto_retry(), given up by kusto_cancel(), and touched by nothing else.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.flush_interval = 0
	CONF

# An answer of streaming ingestion that says the data are wrong.
my $refusal = {
	status => 400,
	headers => { 'Content-Type' => 'application/json' },
	body => JSON::PP->new->encode({
			error => {
				code => 'BadRequest',
				message => 'Request is invalid and cannot be executed.',
				'@type' => 'Kusto.DataNode.Exceptions.StreamingIngestionRequestException',
				'@message' => 'Bad streaming ingestion request: Stream_WrongNumberOfFields',
				'@permanent' => JSON::PP::true
			} }) };

sub make_role
{
	my ($role) = @_;
	my %mapping = (auth => 'client_secret', tenant => $kusto->tenant, client_id => $kusto->client_id, client_secret => $kusto->client_secret);
	my $mapping = join ', ', map { "$_ " . KustoCluster::literal($mapping{$_}) } sort keys %mapping;
	$pg->sql(<<~SQL);
		CREATE ROLE $role LOGIN;
		GRANT USAGE ON FOREIGN SERVER adx TO $role;
		GRANT USAGE ON SCHEMA kusto TO $role;
		GRANT CREATE ON SCHEMA public TO $role;
		GRANT SELECT ON kusto.dead_letters, kusto.operations TO $role;
		GRANT EXECUTE ON FUNCTION kusto_retry, kusto_cancel, kusto_purge, kusto_capture, kusto_capture_changes TO $role;
		CREATE USER MAPPING FOR $role SERVER adx OPTIONS ($mapping);
		SQL
	return;
}

make_role('app');
make_role('stranger');
make_role('monitor');
$pg->sql('GRANT pg_read_all_stats TO monitor; CREATE ROLE deputy LOGIN IN ROLE app');

# Rows that become a dead letter; its id.
sub refused
{
	my ($table, $values) = @_;
	my $known = $pg->sql('SELECT count(*) FROM kusto.dead_letter');
	$kusto->fault({ service => 'engine', method => 'POST', path => "/v1/rest/ingest/$db/k_$table" }, $refusal, times => 1);
	$pg->sql("INSERT INTO $table VALUES $values", user => 'app');
	$pg->poll("SELECT count(*) = $known + 1 FROM kusto.dead_letter");
	return $pg->sql('SELECT id FROM kusto.dead_letter ORDER BY created_at DESC LIMIT 1');
}

sub rows_of
{
	my ($table) = @_;
	$kusto->settle;
	return [ map { "$_->[0] $_->[4] " . ($_->[5] // '') } sort { $a->[2] <=> $b->[2] || $a->[4] <=> $b->[4] } @{ $kusto->rows($db, "k_$table") } ];
}

sub letters { return $pg->sql('SELECT count(*) FROM kusto.dead_letter') }

$pg->sql(<<~SQL, user => 'app');
	CREATE TABLE t (id int PRIMARY KEY, note text);
	SELECT kusto_capture('t', '$db', 'k_t', create_table => true);
	SQL

# ---- who sees what ----

my $id = refused('t', "(1, 'one'), (2, 'zw\N{U+F6}lf')");
my $seen = sub {
	my ($user, $columns) = @_;
	return $pg->sql("SELECT $columns FROM kusto.dead_letters WHERE id = '$id'", user => $user);
};
is($seen->('app', 'relation_name, owner, server, database, table_name, rows, error_code'), "public.t|app|adx|$db|k_t|2|BadRequest",
	'the owner sees his own');
like($seen->('app', 'error_message || details'), qr/WrongNumberOfFields/, 'with Kusto\'s words');
like($seen->('app', q(convert_from(data, 'UTF8'))), qr/^"insert",\d+,\d+,[^,]+,1,"one"\n"insert",\d+,\d+,[^,]+,2,"zw\S+lf"\n\z/, 'and his data');
is($seen->('app', 'bytes = octet_length(data) AND first_seq > 0 AND created_at <= clock_timestamp()'), 't', 'and how much that is');
is($seen->('stranger', 'id'), '', 'others see nothing');
is($seen->('monitor', 'rows, data IS NULL'), '2|t', 'who monitors sees it without the data');
$pg->fails_like("SELECT * FROM kusto.dead_letter", { sqlstate => '42501' }, 'the table itself is for nobody', user => 'app');

# ---- sending again ----

$pg->fails_like("SELECT kusto_retry('$id')", { sqlstate => '42704', message => qr/operation $id does not exist/ },
	'for others there is none', user => 'stranger');
$pg->fails_like("SELECT kusto_retry('$id')", { sqlstate => '42501', message => qr/permission denied for dead letter/ },
	'who monitors may not send it', user => 'monitor');
$pg->fails_like("BEGIN READ ONLY; SELECT kusto_retry('$id')", { sqlstate => '25006' }, 'nor may a read-only transaction', user => 'app');
is_deeply(rows_of('t'), [], 'Kusto has nothing so far');
$pg->sql("BEGIN; SELECT kusto_retry('$id'); ROLLBACK", user => 'app');
is(letters(), 1, 'a retry that is rolled back has not been');
is($pg->sql("SELECT count(*) FROM kusto.operation WHERE id = '$id'"), 0, 'and leaves no operation');
is($pg->sql("SELECT kusto_retry('$id')", user => 'deputy'), 't', 'a member of the owner may, too');
my $operation = $pg->succeeds($id, 'it lands, as an operation of the same id');
is_deeply([ @$operation{qw(owner source mode rows)} ], [ 'app', 'capture', 'queued', 2 ], 'which is the owner\'s');
is(letters(), 0, 'the dead letter is gone');
is(scalar @{ rows_of('t') }, 2, 'its rows are in Kusto once');
is($pg->sql("SELECT kusto_retry('$id')", user => 'app'), 'f', 'there is nothing to be retried any more');

# Two at a time: one of them does it.
$id = refused('t', "(3, 'three')");
my ($first, $second) = map { $pg->session(user => 'app') } 1 .. 2;
$first->sql('BEGIN');
is($first->sql("SELECT kusto_retry('$id')"), 't', 'two at a time: the first');
$second->send("SELECT kusto_retry('$id')");
$pg->poll('SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = \'Lock\' AND pid = ' . $second->pid);
$first->sql('COMMIT');
is($second->receive->{out}, 'f', 'two at a time: the second waits, and finds an operation that cannot be retried');
$pg->succeeds($id, 'two at a time: it lands');
is_deeply([ (@{ rows_of('t') })[2] ], ['insert 3 three'], 'two at a time: once');

# ---- what does not take it away ----

$id = refused('t', "(4, 'four')");
$pg->sql('SELECT kusto_purge(interval \'0\')', user => 'app');
$pg->sql('SELECT kusto_purge(interval \'0\')');
is(letters(), 1, 'kusto_purge() leaves dead letters alone');
$kusto->fault({ service => 'blob', method => 'PUT' }, { status => 403, body => 'no' }, times => -1);
$pg->fails_like("SELECT kusto_retry('$id')", { sqlstate => qr/./ }, 'a retry whose upload fails is an error', user => 'app');
$kusto->clear_faults;
is(letters(), 1, 'and leaves it');
$pg->sql('DROP TABLE t', user => 'app');
$pg->node->restart;
is(letters(), 1, 'so does the end of the table');
is($pg->sql("SELECT kusto_retry('$id')", user => 'app'), 't', 'of a table that is gone, it can be sent all the same');
$pg->succeeds($id, 'and lands');

# ---- giving up ----

$pg->sql(<<~SQL, user => 'app');
	CREATE TABLE u (id int PRIMARY KEY);
	SELECT kusto_capture('u', '$db', 'k_u', create_table => true);
	SQL
$id = refused('u', '(1)');
$pg->fails_like("SELECT kusto_cancel('$id')", { sqlstate => '42704' }, 'others cannot give it up', user => 'stranger');
$pg->fails_like("SELECT kusto_cancel('$id')", { sqlstate => '42501' }, 'nor who monitors', user => 'monitor');
$pg->sql("BEGIN; SELECT kusto_cancel('$id'); ROLLBACK", user => 'app');
is(letters(), 1, 'it is a matter of the transaction');
is($pg->sql("SELECT kusto_cancel('$id')", user => 'app'), 't', 'kusto_cancel() gives it up');
is(letters(), 0, 'it is gone');
is_deeply(rows_of('u'), [], 'and its rows never came to Kusto');

# ---- those of another cluster ----

$id = refused('u', '(2)');
$pg->sql('UPDATE kusto.dead_letter SET system_identifier = 1');
$pg->fails_like("SELECT kusto_retry('$id')", { sqlstate => '55000', message => qr/recorded by another cluster or database/ },
	'a copy does not send what the original keeps', user => 'app');
$pg->fails_like("SELECT kusto_cancel('$id')", { sqlstate => '55000' }, 'nor gives it up', user => 'app');

# ---- large ones ----

$pg->sql('UPDATE kusto.dead_letter SET system_identifier = (SELECT system_identifier FROM pg_control_system())');
$pg->sql("UPDATE kusto.dead_letter SET rows = 60000, data = (SELECT convert_to(string_agg(format(E'\"insert\",1,%s,2026-01-01T00:00:00Z,%s\\n', i, i), '' ORDER BY i), 'UTF8') FROM generate_series(1, 60000) i)");
is($pg->sql("SELECT kusto_retry('$id')", user => 'app'), 't', 'a large one');
$operation = $pg->succeeds($id, 'lands');
is($operation->{rows}, 60000, 'as a whole');
is($kusto->count($db, 'k_u'), 60000, 'in Kusto');

$kusto->assert_no_violations;
done_testing();
