# Who may do what, and who sees what.
use strict;
use warnings;

use KustoCluster qw(literal);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto);
my $db = KustoCluster::DATABASE;

# Everything in the extension's SQL that can be called.
my @functions = split /\n/, $pg->sql(<<~'SQL');
	SELECT p.oid::regprocedure
	FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass
		JOIN pg_extension e ON d.refobjid = e.oid AND d.refclassid = 'pg_extension'::regclass
	WHERE e.extname = 'kusto_ingest' AND d.deptype = 'e' AND p.proname <> 'kusto_fdw_validator'
	ORDER BY 1
	SQL
cmp_ok(scalar @functions, '>=', 7, 'there are functions');

$pg->sql("CREATE ROLE $_ LOGIN") for qw(alice bob carol monitor owner member);
$pg->sql('GRANT pg_monitor TO monitor; GRANT alice TO member');

# ---- PUBLIC may do nothing ----

for my $function (@functions)
{
	is($pg->sql("SELECT has_function_privilege('bob', '$function', 'EXECUTE')"), 'f', "PUBLIC may not execute $function");
}
for my $relation (qw(kusto.operation kusto.blob kusto.operations kusto.blobs))
{
	is($pg->sql("SELECT has_table_privilege('bob', '$relation', 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')"), 'f',
		"PUBLIC may not touch $relation");
}
is($pg->sql(q(SELECT has_schema_privilege('bob', 'kusto', 'USAGE') OR has_schema_privilege('bob', 'kusto', 'CREATE'))), 'f',
	'PUBLIC may not enter schema kusto');
is($pg->sql(q(SELECT has_foreign_data_wrapper_privilege('bob', 'kusto', 'USAGE') OR has_server_privilege('bob', 'adx', 'USAGE'))), 'f',
	'PUBLIC may use neither wrapper nor server');
$pg->fails_like('SELECT ' . $pg->ingest_call('SELECT 1', 'T'), { sqlstate => '42501', message => qr/permission denied for function kusto_ingest/ },
	'PUBLIC: kusto_ingest', user => 'bob');
$pg->fails_like('SELECT * FROM kusto.operations', { sqlstate => '42501' }, 'PUBLIC: kusto.operations', user => 'bob');

# ---- what README tells to grant ----

my @grants = map { "GRANT EXECUTE ON ROUTINE $_ TO alice, bob, carol" } @functions;
$pg->sql(join ";\n", @grants, 'GRANT USAGE ON SCHEMA kusto TO alice, bob, carol, monitor, member',
	'GRANT SELECT ON kusto.operations, kusto.blobs TO alice, bob, carol, monitor, member');
$pg->sql('CREATE TABLE t AS SELECT i, $$x$$ || i AS s FROM generate_series(1, 4) i');
$kusto->create_table($db, 'T', 'i:int, s:string');
my $call = 'SELECT ' . $pg->ingest_call('SELECT i, s FROM t', 'T', server => q('adx'));

$pg->fails_like($call, { sqlstate => '42501', message => qr/permission denied for foreign server adx/ },
	'a role without USAGE on the server', user => 'alice');
$pg->fails_like(q(SELECT kusto_query('T', 'db', 'adx')), { sqlstate => '42501', message => qr/permission denied for foreign server adx/ },
	'kusto_query without USAGE on the server', user => 'alice');
$pg->fails_like(q(SELECT * FROM kusto_test_connection('adx')), { sqlstate => '42501', message => qr/permission denied for foreign server adx/ },
	'kusto_test_connection without USAGE on the server', user => 'alice');
my $nothing = $pg->fails('SELECT ' . $pg->ingest_call('SELECT 1', 'T'), user => 'alice');
is($nothing->{detail}, undef, 'a server that a role may not use is not offered to it');

$pg->sql('GRANT USAGE ON FOREIGN SERVER adx TO alice, bob');
$pg->fails_like($call, { sqlstate => '42704', message => qr/user mapping/, hint => qr/CREATE USER MAPPING/ },
	'a role without a user mapping: the superuser\'s is not borrowed', user => 'alice');
$pg->connect_to($kusto, name => 'shared', user => 'PUBLIC');
$pg->sql('GRANT USAGE ON FOREIGN SERVER shared TO alice, bob');
$pg->sql(sprintf 'CREATE USER MAPPING FOR %s SERVER adx OPTIONS (auth %s, tenant %s, client_id %s, client_secret %s)', 'alice',
	map { literal($_) } 'client_secret', $kusto->tenant, $kusto->client_id, $kusto->client_secret);

# The query has the caller's privileges, and row-level security is the caller's.
$pg->fails_like($call, { sqlstate => '42501', message => qr/permission denied for table t/ }, 'a table that the caller may not read', user => 'alice');
$pg->sql('GRANT SELECT ON t TO alice, bob; ALTER TABLE t ENABLE ROW LEVEL SECURITY;
	CREATE POLICY two ON t TO alice USING (i <= 2); CREATE POLICY one ON t TO bob USING (i = 4)');
my $alices = $pg->sql($call, user => 'alice');
is($pg->sql("SELECT kusto_wait('$alices', '60s')", user => 'alice'), 'succeeded', 'a role with grants and a mapping can export');
KustoCluster::same_rows($kusto->rows($db, 'T'), [ [ 1, 'x1' ], [ 2, 'x2' ] ], 'row-level security of the caller applies');
(my $shared = $call) =~ s/'adx'/'shared'/;
my $bobs = $pg->sql($shared, user => 'bob');
is($pg->sql("SELECT kusto_wait('$bobs', '60s')", user => 'bob'), 'succeeded', 'the user mapping of PUBLIC serves who has none');
KustoCluster::same_rows($kusto->rows($db, 'T'), [ [ 1, 'x1' ], [ 2, 'x2' ], [ 4, 'x4' ] ], 'row-level security: another caller, other rows');
like($pg->sql(q(SELECT kusto_query('T | count', 'db', 'adx')), user => 'alice'), qr/"Count": 3/, 'and read back');

# ---- own rows, and all rows ----

my $supers = $pg->ingest('SELECT 1 AS i, $$x$$ AS s', 'T', server => q('adx'));
$pg->succeeds($supers, 'the superuser exports, too');
my $ids = 'SELECT coalesce(string_agg(owner, $$,$$ ORDER BY owner), $$$$) FROM (SELECT DISTINCT owner::text FROM kusto.operations) o';
my $superuser = $pg->sql('SELECT current_user');
my %sees = (alice => 'alice', bob => 'bob', carol => '', member => 'alice', monitor => join(',', sort 'alice', 'bob', $superuser), $superuser => join(',', sort 'alice', 'bob', $superuser));
for my $role (sort keys %sees)
{
	is($pg->sql($ids, user => $role), $sees{$role}, "kusto.operations: $role sees " . ($sees{$role} || 'nothing'));
	my $blobs = () = split /,/, $sees{$role}, -1;
	is($pg->sql('SELECT count(DISTINCT operation_id) FROM kusto.blobs', user => $role), $sees{$role} eq '' ? 0 : $blobs,
		"kusto.blobs: $role sees the blobs of these");
}
$pg->fails_like('SELECT * FROM kusto.operation', { sqlstate => '42501' }, 'the table behind the view is not readable', user => 'monitor');
$pg->fails_like("UPDATE kusto.operations SET state = 'succeeded'", { sqlstate => qr/42501|55000/ }, 'nobody changes a state by hand', user => 'alice');
my $hidden = $pg->fails("SELECT kusto_wait('$supers', '1s')", user => 'bob');
my $missing = $pg->fails(q(SELECT kusto_wait('00000000-0000-0000-0000-000000000000', '1s')), user => 'bob');
is($hidden->{sqlstate}, $missing->{sqlstate}, 'kusto_wait: an operation of somebody else looks like one that does not exist');

# A function of one's own in the WHERE clause must not see what the view hides.
$pg->sql(<<~'SQL');
	GRANT CREATE ON SCHEMA public TO carol;
	ALTER ROLE carol SET client_min_messages = notice
	SQL
$pg->sql(<<~'SQL', user => 'carol');
	CREATE FUNCTION public.peek(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
	$$ BEGIN RAISE NOTICE 'peeked: %', $1; RETURN true; END $$
	SQL
for my $view ([ 'kusto.operations', 'query' ], [ 'kusto.blobs', 'url' ])
{
	my ($status, $out, $err) = $pg->node->psql('postgres', "SELECT count(*) FROM $view->[0] WHERE public.peek($view->[1])",
		connstr => $pg->node->connstr('postgres') . ' user=carol');
	is($out, '0', "$view->[0]: nothing for carol");
	unlike($err, qr/peeked/, "$view->[0] is a security barrier");
}

# ---- on behalf of somebody else ----

# As with any function, the definer's privileges count: its mapping, its grants, its operations.
$pg->sql('GRANT CREATE ON SCHEMA public TO owner');
$pg->sql(join ";\n", map { s/alice, bob, carol/owner/r } @grants);
$pg->sql('GRANT USAGE ON FOREIGN SERVER shared TO owner; GRANT SELECT ON t TO owner; CREATE POLICY all_rows ON t TO owner USING (true)');
$pg->sql(<<~'SQL', user => 'owner');
	CREATE FUNCTION public.export_t() RETURNS uuid LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp
	AS $$ SELECT kusto_ingest('SELECT i, s FROM t', 'db', 'T', server => 'shared') $$
	SQL
my $defined = $pg->sql('SELECT public.export_t()', user => 'carol');
my $operation = $pg->succeeds($defined, 'SECURITY DEFINER: it works for a role without any grant of its own');
is($operation->{owner}, 'owner', 'SECURITY DEFINER: the operation is the definer\'s');
is($operation->{rows}, 4, 'SECURITY DEFINER: and the rows are those that the definer sees');
is($pg->sql("SELECT count(*) FROM kusto.operations WHERE id = '$defined'", user => 'carol'), 0, 'SECURITY DEFINER: the caller does not see it');

# search_path of the caller decides the names in the query; ours are not to be caught.
$pg->sql('CREATE SCHEMA trap; GRANT USAGE, CREATE ON SCHEMA trap TO alice');
$pg->sql(<<~'SQL', user => 'alice');
	CREATE TABLE trap.pg_class (oid oid);
	CREATE FUNCTION trap.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
	CREATE FUNCTION trap.eq(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
	CREATE OPERATOR trap.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap.eq);
	CREATE FUNCTION trap.eq(uuid, uuid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
	CREATE OPERATOR trap.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = trap.eq)
	SQL
my $trapped = $pg->sql("SET search_path = trap, pg_catalog, public; $call", user => 'alice');
is($pg->sql("SET search_path = trap, pg_catalog, public; SELECT kusto_wait('$trapped', '60s')", user => 'alice'), 'succeeded',
	'a hostile search_path changes nothing');

# ---- who may trust a host, and name one ----

$pg->fails_like(q(SELECT kusto_query('T', 'db', 'adx'); SET kusto_ingest.trusted_hosts = '.evil.example'),
	{ sqlstate => '55P02', message => qr/cannot be changed now/ }, 'only the configuration file trusts further hosts', user => 'alice');
# Before the library is loaded anybody may set anything of that name; loading it takes that back.
unlike($pg->sql(q(SET kusto_ingest.trusted_hosts = '.evil.example'; SELECT kusto_query('T', 'db', 'adx'); SHOW kusto_ingest.trusted_hosts), user => 'alice'),
	qr/evil/, 'nor before the library is loaded');
$pg->sql('GRANT USAGE ON FOREIGN DATA WRAPPER kusto TO carol');
$pg->sql(sprintf(q(CREATE SERVER mine FOREIGN DATA WRAPPER kusto OPTIONS (query_uri %s, ingest_uri %s)),
	literal($kusto->engine), literal($kusto->ingest)), user => 'carol');
$pg->fails_like(q(CREATE USER MAPPING FOR carol SERVER mine OPTIONS (auth 'managed_identity', identity_endpoint 'http://127.0.0.1:1/x');
	SELECT kusto_query('T', 'db', 'mine')),
	{ sqlstate => '42501', message => qr/managed|identity/ }, 'the machine\'s identity is not for everybody', user => 'carol');

$kusto->settle;
$kusto->assert_no_violations;
done_testing();
