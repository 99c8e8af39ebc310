# Who may do what: nothing is granted to PUBLIC; a user sees and steers own operations only; who
# monitors sees all of them, but neither steers them nor reads the query text of others.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => "kusto_ingest.default_server = adx\n");

# ---- nothing is granted to PUBLIC ----

# A null acl means the default, which for functions and types includes PUBLIC.
my $members = q(SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
	WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'kusto_ingest');
my %acl = (
	'pg_proc' => [ 'proacl', 'f', 'proowner' ],
	'pg_class' => [ 'relacl', 'r', 'relowner' ],
	'pg_namespace' => [ 'nspacl', 'n', 'nspowner' ],
	'pg_foreign_data_wrapper' => [ 'fdwacl', 'F', 'fdwowner' ]);
for my $catalog (sort keys %acl)
{
	my ($column, $kind, $owner) = @{ $acl{$catalog} };
	my $of_extension = "FROM $catalog c JOIN ($members) m ON m.classid = '$catalog'::regclass AND m.objid = c.oid";
	cmp_ok($pg->sql("SELECT count(*) $of_extension"), '>', 0, "$catalog: the extension has some");
	is($pg->sql(<<~"SQL"), '', "$catalog: nothing is granted to PUBLIC");
		SELECT c.oid FROM (SELECT c.oid, c.$column AS acl, c.$owner AS owner $of_extension) c,
			LATERAL aclexplode(coalesce(c.acl, acldefault('$kind', c.owner))) a
		WHERE a.grantee = 0
		SQL
	is($pg->sql(<<~"SQL"), '', "$catalog: nothing to anybody but the owner");
		SELECT c.oid FROM (SELECT c.oid, c.$column AS acl, c.$owner AS owner $of_extension) c,
			LATERAL aclexplode(coalesce(c.acl, acldefault('$kind', c.owner))) a
		WHERE a.grantee <> c.owner
		SQL
}
# What default privileges would grant to PUBLIC is taken away again.
$pg->sql('CREATE DATABASE generous');
is($pg->sql(<<~'SQL', dbname => 'generous'), "t\nf", 'nor do default privileges');
	ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
	ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC;
	CREATE EXTENSION kusto_ingest;
	CREATE TABLE other (i int);
	SELECT bool_or(relacl::text ~ '[{,]=') FROM pg_class WHERE relnamespace = 'public'::regnamespace;
	SELECT bool_or(acl::text ~ '[{,]=') FROM (SELECT relacl FROM pg_class WHERE relnamespace = 'kusto'::regnamespace AND relkind IN ('r', 'v')
		UNION ALL SELECT nspacl FROM pg_namespace WHERE nspname = 'kusto') a (acl)
	SQL
is($pg->sql(<<~"SQL"), '', 'no column privileges either');
	SELECT attrelid::regclass, attname FROM pg_attribute WHERE attacl IS NOT NULL
		AND attrelid IN (SELECT objid FROM ($members) m WHERE classid = 'pg_class'::regclass)
	SQL

# Another kind of object would hide a grant. The row types of tables and views are members since version 17.
is($pg->sql(<<~"SQL"),
	SELECT string_agg(DISTINCT classid::regclass::text, ' ' ORDER BY classid::regclass::text) FROM ($members) m
	WHERE NOT EXISTS (SELECT FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem
		WHERE m.classid = 'pg_type'::regclass AND t.oid = m.objid AND coalesce(e.typrelid, t.typrelid) <> 0)
	SQL
	join(' ', sort keys %acl), 'there are no other objects');

# What any user may do without a grant.
$pg->sql('CREATE ROLE nobody LOGIN');
for my $view ($pg->sql(q(SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = 'kusto'::regnamespace AND relkind IN ('r', 'v'))) =~ /\S+/g)
{
	$pg->fails_like("SELECT * FROM kusto.$view", { sqlstate => '42501', message => qr/schema kusto/ }, "nobody reads kusto.$view", user => 'nobody');
}

# ---- as README says ----

sub grant
{
	my ($role) = @_;
	$pg->sql(<<~"SQL");
		CREATE ROLE $role LOGIN;
		GRANT USAGE ON FOREIGN SERVER adx TO $role;
		GRANT USAGE ON SCHEMA kusto TO $role;
		GRANT SELECT ON ALL TABLES IN SCHEMA kusto TO $role;
		REVOKE SELECT ON kusto.operation, kusto.blob, kusto.worker FROM $role;
		GRANT EXECUTE ON FUNCTION kusto_ingest, kusto_ingest_async, kusto_wait, kusto_cancel, kusto_retry, kusto_purge TO $role
		SQL
	return;
}
grant($_) for 'alice', 'bob', 'watcher';
$pg->sql('GRANT pg_monitor TO watcher; CREATE ROLE carol LOGIN IN ROLE alice');
my $options = $pg->sql(q(SELECT 'OPTIONS (' || string_agg(format('%s %L', option_name, option_value), ', ') || ')'
	FROM pg_user_mappings m, pg_options_to_table(m.umoptions) WHERE srvname = 'adx'));
$pg->sql("CREATE USER MAPPING FOR $_ SERVER adx $options") for 'alice', 'bob';
$kusto->create_table($db, 'T', 'i:int');

my $secret = 'nobody_elses_business';
$kusto->config(outcomes => [ { match => { table => 'T' }, status => 'Failed', failureStatus => 'Permanent',
	errorCode => 'BadRequest_InvalidBlob', details => 'refused by the test', times => 1 } ]);
my $failed = $pg->sql('SELECT ' . $pg->ingest_call("SELECT 1 AS i /* $secret */", 'T'), user => 'alice');
$pg->ends_as($failed, 'failed');
my $broken = $pg->sql('SELECT ' . $pg->ingest_call("SELECT ('$secret' || i)::int AS i FROM generate_series(1, 1) i", 'T') =~ s/^kusto_ingest/kusto_ingest_async/r, user => 'alice');
$pg->ends_as($broken, 'failed', 'a job whose query fails');
my $running = $pg->sql('SELECT ' . $pg->ingest_call("SELECT 1 AS i FROM pg_sleep(300) /* $secret */", 'T') =~ s/^kusto_ingest/kusto_ingest_async/r, user => 'alice');
$pg->poll("SELECT count(*) = 1 FROM kusto.workers WHERE operation_id = '$running'", 't', 'a job that runs');

my @views = split /\n/, $pg->sql(q(SELECT relname FROM pg_class WHERE relnamespace = 'kusto'::regnamespace AND relkind = 'v' ORDER BY 1));
sub seen
{
	my ($view, $user) = @_;
	return $pg->sql("SELECT row_to_json(v) FROM kusto.$view v", user => $user);
}
sub operations { return $pg->sql('SELECT string_agg(id::text, $$ $$ ORDER BY created_at) FROM kusto.operations', user => $_[0]) }

is(operations('alice'), "$failed $broken $running", 'alice sees her operations');
is(operations('carol'), "$failed $broken $running", 'so does a member of her role');
is(operations('bob'), '', 'bob sees none of them');
is(operations('watcher'), "$failed $broken $running", 'who monitors sees all');
like(seen('operations', $_), qr/\Q$secret\E/, "$_ reads the query") for 'alice', 'carol';
like($pg->sql("SELECT error_message FROM kusto.operations WHERE id = '$broken'", user => 'alice'), qr/\Q$secret\E/,
	'and what the query that failed has said');
for my $view (@views)
{
	unlike(seen($view, 'watcher'), qr/\Q$secret\E/, "kusto.$view: who monitors reads nothing of a query of others");
	unlike(seen($view, 'bob'), qr/\Q$failed\E|\Q$broken\E|\Q$running\E|\Q$secret\E/, "kusto.$view: bob sees nothing of others");
}
# A row as a job leaves it whose query's error has a hint.
$pg->sql(qq(UPDATE kusto.operation SET hint = '$secret', type_errors = '{"$secret": 1}' WHERE id = '$broken'));
like($pg->sql("SELECT hint, type_errors FROM kusto.operations WHERE id = '$broken'", user => 'alice'), qr/\Q$secret\E.*\Q$secret\E/, 'and the hint');
unlike(seen('operations', 'watcher'), qr/\Q$secret\E/, 'which is not for who monitors');
is($pg->sql("SELECT error_code FROM kusto.operations WHERE id = '$broken'", user => 'watcher'), '22P02', 'who monitors sees the code of the failure');
like($pg->sql("SELECT details FROM kusto.operations WHERE id = '$failed'", user => 'watcher'), qr/refused by the test/, 'and what Kusto said');
isnt($pg->sql("SELECT pid FROM kusto.workers WHERE operation_id = '$running'", user => $_), '', "$_ sees the job's process") for 'alice', 'watcher';
unlike($pg->sql('SELECT row_to_json(a) FROM pg_stat_activity a WHERE pid <> pg_backend_pid()', user => $_), qr/\Q$secret\E/,
	"pg_stat_activity shows $_ no query") for 'watcher', 'alice', 'postgres';
for my $table ('operation', 'blob', 'worker')
{
	$pg->fails_like("SELECT * FROM kusto.$table", { sqlstate => '42501' }, "the table kusto.$table is for nobody", user => $_) for 'alice', 'watcher';
}

# A function that looks at rows before the view's own condition does sees none of others.
$pg->sql(<<~'SQL', user => 'bob');
	CREATE FUNCTION pg_temp.peek(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$
	BEGIN
		RAISE 'seen: %', $1;
	END $$;
	SELECT * FROM kusto.operations WHERE pg_temp.peek(id::text)
	SQL
pass('no condition of a reader is evaluated on rows of others');

# ---- steering ----

for my $id ($failed, $running)
{
	for my $function ('kusto_cancel', 'kusto_retry', 'kusto_wait')
	{
		$pg->fails_like("SELECT $function('$id')", { sqlstate => '42704', message => qr/operation $id does not exist/ },
			"$function: for bob it does not exist", user => 'bob');
	}
	for my $function ('kusto_cancel', 'kusto_retry')
	{
		$pg->fails_like("SELECT $function('$id')",
			{ sqlstate => '42501', message => qr/permission denied for operation $id/, detail => qr/Only the role/ },
			"$function: who monitors may not", user => 'watcher');
	}
}
is($pg->sql("SELECT kusto_wait('$running', '1 ms')", user => 'watcher'), 'running', 'but may wait');
is($pg->sql(q(SELECT kusto_purge('0')), user => $_), 0, "there is nothing that $_ may purge") for 'bob', 'watcher';
is($pg->sql('SELECT count(*) FROM kusto.operations'), 3, 'nothing has changed');
is($pg->sql("SELECT kusto_cancel('$running')", user => 'carol'), 't', 'a member of the role cancels');
is($pg->sql("SELECT kusto_retry('$failed')", user => 'alice'), 't', 'alice retries');
is($pg->succeeds($failed, 'and it lands')->{owner}, 'alice', 'as hers');
is($pg->sql(q(SELECT kusto_purge('0')), user => 'carol'), 3, 'a member of the role purges');

# A function with its owner's rights steers with its owner's rights.
my $mine = $pg->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i FROM pg_sleep(300)', 'T') =~ s/^kusto_ingest/kusto_ingest_async/r, user => 'alice');
$pg->sql(<<~'SQL');
	CREATE FUNCTION cancel_for_alice(uuid) RETURNS boolean LANGUAGE sql SECURITY DEFINER AS 'SELECT kusto_cancel($1)';
	ALTER FUNCTION cancel_for_alice OWNER TO alice
	SQL
is($pg->sql("SELECT cancel_for_alice('$mine')", user => 'bob'), 't', 'SECURITY DEFINER');
$pg->ends_as($mine, 'cancelled');

$kusto->assert_no_violations;
done_testing();
