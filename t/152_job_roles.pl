# Jobs run as the role that asked: its privileges, its row security, its settings; and what happens
# when it cannot connect any more.
use strict;
use warnings;

use KustoCluster;
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => <<~'CONF');
	kusto_ingest.default_server = adx
	kusto_ingest.naptime = 1h
	max_worker_processes = 16
	CONF
my $version = $pg->sql('SHOW server_version_num') / 10000;

sub fresh_table
{
	my ($table, $columns) = @_;
	$kusto->create_table($db, $table, $columns // 'i:int');
	return $table;
}

# A role that may export, with its own mapping.
sub make_role
{
	my ($role, $options) = @_;
	$pg->sql(<<~SQL);
		CREATE ROLE $role @{[ $options // 'LOGIN' ]};
		GRANT USAGE ON FOREIGN SERVER adx TO $role;
		DO \$\$
		DECLARE f regprocedure;
		BEGIN
			FOR f IN SELECT oid FROM pg_proc WHERE proname IN ('kusto_ingest_async', 'kusto_wait', 'kusto_cancel') LOOP
				EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO $role', f);
			END LOOP;
		END\$\$;
		GRANT USAGE ON SCHEMA kusto TO $role;
		GRANT SELECT ON kusto.operations TO $role;
		SQL
	my %mapping = (auth => 'client_secret', tenant => $kusto->tenant, client_id => $kusto->client_id, client_secret => $kusto->client_secret);
	$pg->sql("CREATE USER MAPPING FOR $role SERVER adx OPTIONS ("
		  . join(', ', map { "$_ " . KustoCluster::literal($mapping{$_}) } sort keys %mapping) . ')');
	return $role;
}

# Submitted, but nothing is started yet.
sub hold { return $pg->set_config('kusto_ingest.max_jobs' => 0) }
sub release { return $pg->set_config('kusto_ingest.max_jobs' => 4) }

make_role('app');
$pg->sql(<<~'SQL');
	CREATE TABLE tenants (i int, owner text);
	INSERT INTO tenants VALUES (1, 'app'), (2, 'other'), (3, 'app');
	ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
	CREATE POLICY own ON tenants USING (owner = current_user);
	GRANT SELECT ON tenants TO app;
	CREATE TABLE hidden AS SELECT 1 AS i;
	SQL

# ---- as whom ----

my $table = fresh_table('Who', 'a:string, b:string, c:bool');
my $id = $pg->async({ user => 'app' }, q(SELECT current_user::text AS a, session_user::text AS b,
	current_setting('is_superuser')::bool AS c), $table);
my $operation = $pg->succeeds($id, 'a plain role: it succeeds');
is($operation->{owner}, 'app', 'it owns the operation');
$pg->rows_are($table, [ [ 'app', 'app', JSON::PP::false ] ], 'it is who runs the query');
is($pg->sql("SELECT count(*) FROM kusto.operations WHERE id = '$id'", user => 'app'), 1, 'and sees the operation');

# ---- row security and privileges are those of the run ----

$table = fresh_table('RowSecurity');
$id = $pg->async({ user => 'app' }, 'SELECT i FROM tenants', $table);
$pg->succeeds($id, 'row security: it succeeds');
$pg->rows_are($table, [ [1], [3] ], 'only the rows of the role land');

hold();
$table = fresh_table('Late');
$id = $pg->async({ user => 'app' }, 'SELECT i FROM tenants', $table);
my $late = $pg->async({ user => 'app' }, 'SELECT i FROM tenants WHERE i > 0', $table);
$pg->sql(q(ALTER POLICY own ON tenants USING (owner = 'other')));
release();
$pg->succeeds($_) for $id, $late;
$pg->rows_are($table, [ [2], [2] ], 'a policy that was changed in between counts');

hold();
$table = fresh_table('Revoked');
$id = $pg->async({ user => 'app' }, 'SELECT i FROM tenants', $table);
$pg->sql('REVOKE SELECT ON tenants FROM app');
release();
$operation = $pg->ends_as($id, 'failed', 'a privilege that was revoked in between');
is_deeply([ @$operation{qw(error_code error_message)} ], [ '42501', 'permission denied for table tenants' ], 'is missed');
$pg->rows_are($table, [], 'nothing lands');

hold();
$id = $pg->async({ user => 'app' }, 'SELECT 1 AS i', $table);
$pg->sql('REVOKE USAGE ON FOREIGN SERVER adx FROM app');
release();
$operation = $pg->ends_as($id, 'failed', 'USAGE on the server that was revoked in between');
is_deeply([ @$operation{qw(error_code error_message)} ], [ '42501', 'permission denied for foreign server adx' ], 'is missed');
$pg->sql('GRANT USAGE ON FOREIGN SERVER adx TO app');

$pg->fails_like($pg->async_call('SELECT i FROM hidden', $table, server => q('nowhere')), { sqlstate => '42704' }, 'no such server', user => 'app');
$operation = $pg->ends_as($pg->async({ user => 'app' }, 'SELECT i FROM hidden', $table), 'failed', 'a table that it may not read');
is($operation->{error_code}, '42501', 'is known when the query runs');

# ---- settings of the role ----

$pg->sql(<<~'SQL');
	CREATE TABLE inbox (i int);
	GRANT ALL ON inbox TO app;
	ALTER ROLE app SET default_transaction_read_only = on;
	ALTER ROLE app SET statement_timeout = '1ms';
	ALTER ROLE app SET search_path = 'nowhere';
	ALTER ROLE app SET application_name = 'mine';
	ALTER ROLE app SET work_mem = '123kB';
	ALTER ROLE app SET default_transaction_isolation = 'repeatable read';
	SQL
$table = fresh_table('RoleSettings', 'i:int, m:string, p:string, l:string');
my $session = $pg->session(user => 'app');
$session->sql('SET statement_timeout = 0; SET search_path = public; SET default_transaction_read_only = off');
$id = $session->sql($pg->async_call(q(WITH s AS MATERIALIZED (SELECT pg_sleep(0.1)) INSERT INTO inbox SELECT 5 FROM s
	RETURNING i, current_setting('work_mem') AS m, current_setting('search_path') AS p, current_setting('transaction_isolation') AS l), $table));
$pg->succeeds($id, 'settings of the role: it succeeds');
$pg->rows_are($table, [ [ 5, '123kB', 'public', 'repeatable read' ] ],
	'they apply beneath those of the call; read-only and statement_timeout do not');
is($pg->sql('TABLE inbox'), 5, 'its effect is there');
$session->quit;
$pg->sql('ALTER ROLE app RESET ALL');

# Each of its sessions becomes another role, and so would the job.
make_role('disguise');
$pg->sql('GRANT disguise TO app; ALTER ROLE app SET role = disguise');
$table = fresh_table('Disguised', 'a:string, b:string');
$id = $pg->sql('SET ROLE NONE; ' . $pg->async_call('SELECT current_user::text AS a, session_user::text AS b', $table), user => 'app');
$pg->succeeds($id, 'a role that another one is set for: it succeeds');
$pg->rows_are($table, [ [ 'app', 'app' ] ], 'as the role that asked');
$pg->sql('ALTER ROLE app RESET role; REVOKE disguise FROM app');

# ---- SET ROLE, SECURITY DEFINER ----

$pg->sql('CREATE ROLE boss LOGIN; GRANT app TO boss');
$table = fresh_table('Switched', 'a:string, b:string');
my $who = 'SELECT current_user::text AS a, session_user::text AS b';
$id = $pg->sql('SET ROLE app; ' . $pg->async_call($who, $table), user => 'boss');
$pg->succeeds($id, 'SET ROLE: it succeeds');
$pg->rows_are($table, [ [ 'app', 'app' ] ], 'as the role that was set');
$table = fresh_table('Defined', 'a:string, b:string');
$pg->sql('CREATE FUNCTION submit() RETURNS uuid LANGUAGE sql SECURITY DEFINER AS ' . KustoCluster::literal($pg->async_call($who, $table, server => q('adx')))
	  . '; ALTER FUNCTION submit() OWNER TO app');
$id = $pg->sql('SELECT submit()', user => 'boss');
$pg->succeeds($id, 'SECURITY DEFINER: it succeeds');
$pg->rows_are($table, [ [ 'app', 'app' ] ], 'as the owner of the function');

# ---- roles that cannot log in ----

make_role('group_role', 'NOLOGIN');
$pg->sql('GRANT group_role TO boss');
$table = fresh_table('NoLogin', 'a:string, b:string');
if ($version >= 17)
{
	$id = $pg->sql('SET ROLE group_role; ' . $pg->async_call($who, $table), user => 'boss');
	$pg->succeeds($id, 'a role without LOGIN: it succeeds');
	$pg->rows_are($table, [ [ 'group_role', 'group_role' ] ], 'as that role');
}
else
{
	$pg->fails_like('SET ROLE group_role; ' . $pg->async_call($who, $table),
		{
			sqlstate => '28000',
			message => qr/^role "group_role" is not permitted to log in$/,
			detail => qr/background process/,
			hint => qr/LOGIN, or kusto_ingest\(\)/
		},
		'a role without LOGIN is refused at once', user => 'boss');
	hold();
	$id = $pg->async({ user => 'app' }, 'SELECT 1 AS i', $table);
	$pg->sql('ALTER ROLE app NOLOGIN');
	release();
	$operation = $pg->ends_as($id, 'failed', 'LOGIN that was taken away in between');
	is_deeply([ @$operation{qw(error_code error_message runs)} ], [ '28000', 'role "app" is not permitted to log in', 0 ], 'is the reason');
	$pg->sql('ALTER ROLE app LOGIN');
}

hold();
my $after = $pg->async({ user => 'app' }, 'SELECT 1 AS i', $table);
$pg->sql('REVOKE CONNECT ON DATABASE postgres FROM PUBLIC');
release();
$operation = $pg->ends_as($after, 'failed', 'CONNECT that was revoked in between');
is_deeply([ @$operation{qw(error_code error_message)} ], [ '42501', 'role "app" may not connect to database "postgres"' ], 'is the reason');
$pg->sql('GRANT CONNECT ON DATABASE postgres TO PUBLIC');

make_role('leaver');
$table = fresh_table('Leaver');
hold();
$id = $pg->async({ user => 'leaver' }, 'SELECT 1 AS i', $table);
my $stays = $pg->async({ user => 'app' }, 'SELECT 2 AS i', $table);
my $oid = $pg->sql(q(SELECT 'leaver'::regrole::oid));
$pg->sql('DROP OWNED BY leaver; DROP ROLE leaver');
release();
$operation = $pg->ends_as($id, 'failed', 'a role that was dropped in between');
is_deeply([ @$operation{qw(error_code error_message)} ], [ '42704', "role with OID $oid does not exist" ], 'is the reason');
$pg->succeeds($stays, 'jobs of others are not in its way');
$pg->rows_are($table, [ [2] ], 'and land');

# ---- the mapping ----

hold();
$id = $pg->async({ user => 'app' }, 'SELECT 1 AS i', $table);
$pg->sql('DROP USER MAPPING FOR app SERVER adx');
release();
$operation = $pg->ends_as($id, 'failed', 'a user mapping that was dropped in between');
is($operation->{error_code}, '42704', 'is missed');
$pg->fails_like($pg->async_call('SELECT 1 AS i', $table), { sqlstate => '42704', message => qr/user mapping/ },
	'without one the call is refused', user => 'app');

done_testing();
