# Input that makes no sense gets its own clear error before anything leaves the server; input that
# is merely unusual works.
use strict;
use warnings;

use KustoCluster qw(literal);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $pg = KustoCluster->start($kusto);
my $db = KustoCluster::DATABASE;

$pg->sql(q(CREATE TABLE t AS SELECT 1 AS i, 'x' AS s));
$kusto->create_table($db, 'T', 'i:int, s:string');

# The error of a call; afterwards nothing has been uploaded, recorded, or changed.
sub refused
{
	my ($name, $call, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$kusto->reset;
	$pg->fails_like($call =~ /^(?:SELECT|CALL|SET|CREATE|ALTER)/ ? $call : "SELECT $call", $expected, $name);
	$kusto->assert_nothing_uploaded("$name: nothing was uploaded");
	return;
}

sub refused_query
{
	my ($name, $query, $expected) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	refused($name, $pg->ingest_call($query, 'T'), $expected);
	refused("$name, by CALL", "CALL kusto_ingest_and_wait(" . literal($query) . ", 'db', 'T')", $expected);
	return;
}

# ---- the query ----

refused_query('two statements', 'SELECT 1; SELECT 2', { sqlstate => '42601', message => qr/2 statements/ });
refused_query('nothing', '', { sqlstate => '22023', message => qr/query is empty/ });
refused_query('a comment', '-- nothing', { sqlstate => '22023', message => qr/query is empty/ });
refused_query('semicolons', ';;', { sqlstate => '22023', message => qr/query is empty/ });
refused_query('a utility command', 'VACUUM t', { message => qr/./, hint => qr/SELECT/ });
refused_query('another utility command', 'CREATE TABLE x (i int)', { message => qr/./, hint => qr/SELECT/ });
refused_query('EXPLAIN', 'EXPLAIN SELECT 1', { message => qr/./, hint => qr/SELECT/ });
refused_query('COPY', 'COPY t TO STDOUT', { message => qr/./, hint => qr/SELECT/ });
refused_query('SELECT INTO', 'SELECT * INTO x FROM t', { message => qr/SELECT INTO|INTO/ });
refused_query('CREATE TABLE AS', 'CREATE TABLE x AS SELECT 1', { message => qr/./, hint => qr/SELECT/ });
refused_query('INSERT without RETURNING', 'INSERT INTO t VALUES (2)', { message => qr/RETURNING/ });
refused_query('UPDATE without RETURNING', 'UPDATE t SET i = 2', { message => qr/RETURNING/ });
refused_query('DELETE without RETURNING', 'DELETE FROM t', { message => qr/RETURNING/ });
refused_query('a syntax error', 'SELEC 1', { sqlstate => '42601', message => qr/syntax error at or near "SELEC"/ });
refused_query('a missing table', 'SELECT * FROM no_such_table', { sqlstate => '42P01', message => qr/relation "no_such_table" does not exist/ });
refused_query('a missing column', 'SELECT nope FROM t', { sqlstate => '42703', message => qr/column "nope" does not exist/ });
refused_query('a parameter', 'SELECT $1', { sqlstate => '42P02', message => qr/there is no parameter \$1/ });
refused_query('no columns', 'SELECT FROM t', { message => qr/column/ });
is($pg->sql('SELECT count(*), min(i) FROM t'), '1|1', 'none of that has changed the table');
is($pg->sql(q(SELECT to_regclass('x') IS NULL)), 't', 'or made another');

# ---- NULL, and empty names ----

my %null = (
	'query' => q(kusto_ingest(NULL, 'db', 'T')),
	'table_name' => q(kusto_ingest('SELECT 1', 'db', NULL)),
	'mode' => q(kusto_ingest('SELECT 1', 'db', 'T', mode => NULL)),
	'on_type_error' => q(kusto_ingest('SELECT 1', 'db', 'T', on_type_error => NULL)),
	'tags' => q(kusto_ingest('SELECT 1', 'db', 'T', tags => ARRAY['a', NULL])));
for my $argument (sort keys %null)
{
	refused("NULL as $argument", $null{$argument}, { sqlstate => '22004', message => qr/\b$argument\b.*null|null.*\b$argument\b/i });
}
refused('NULL as a command query', q(kusto_query(NULL, 'db')), { sqlstate => '22004', message => qr/null/i });
refused('NULL as an operation', q(kusto_wait(NULL)), { sqlstate => '22004', message => qr/null/i });
$pg->connect_to($kusto, name => 'no_default', server => { database => undef });
refused('no database at all', q(kusto_ingest('SELECT 1', NULL, 'T', server => 'no_default')),
	{ sqlstate => '22004', message => qr/database.*"no_default"/, hint => qr/database/ });
$pg->sql('DROP SERVER no_default CASCADE');
$kusto->create_table($db, 'T', 'i:int, s:string');
$pg->succeeds($pg->sql(q(SELECT kusto_ingest('SELECT 1, $$x$$', NULL, 'T'))), 'NULL as database: the server\'s own');
refused('an empty database', q(kusto_ingest('SELECT 1', '', 'T')), { sqlstate => '22023', message => qr/database/ });
refused('an empty table', q(kusto_ingest('SELECT 1', 'db', '')), { sqlstate => '22023', message => qr/table/ });

# ---- words ----

refused('a mode that does not exist', $pg->ingest_call('SELECT 1', 'T', mode => q('queud')),
	{ sqlstate => '22023', message => qr/mode "queud"/, hint => qr/Perhaps you meant the mode "queued"/ });
refused('a mode that is nothing like one', $pg->ingest_call('SELECT 1', 'T', mode => q('sideways')),
	{ sqlstate => '22023', message => qr/mode "sideways"/, hint => qr/queued/ });
refused('a policy that does not exist', $pg->ingest_call('SELECT 1', 'T', on_type_error => q('nul')),
	{ sqlstate => '22023', message => qr/on_type_error.*"nul"|"nul".*on_type_error/, hint => qr/"?null"?/ });

# ---- servers ----

refused('a server that does not exist', $pg->ingest_call('SELECT 1', 'T', server => q('nope')),
	{ sqlstate => '42704', message => qr/server "nope" does not exist/ });
$pg->sql('CREATE FOREIGN DATA WRAPPER other; CREATE SERVER elsewhere FOREIGN DATA WRAPPER other');
refused('a server of another wrapper', $pg->ingest_call('SELECT 1', 'T', server => q('elsewhere')),
	{ message => qr/"elsewhere"/ });
$pg->sql(q(CREATE SERVER second FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net')));
refused('several servers, none named', $pg->ingest_call('SELECT 1', 'T'),
	{ message => qr/server/, hint => qr/default_server/, text => qr/adx.*second/s });
refused('a server without a user mapping', $pg->ingest_call('SELECT 1', 'T', server => q('second')),
	{ message => qr/user mapping/, hint => qr/CREATE USER MAPPING/ });
$kusto->create_table($db, 'T', 'i:int, s:string');
$pg->succeeds($pg->sql(q(SET kusto_ingest.default_server = 'adx'; ) . 'SELECT ' . $pg->ingest_call('SELECT 5, $$five$$', 'T')),
	'kusto_ingest.default_server chooses');
refused('a default server that does not exist', q(SET kusto_ingest.default_server = 'gone'; SELECT ) . $pg->ingest_call('SELECT 1', 'T'),
	{ sqlstate => '42704', message => qr/"gone"/ });
$pg->sql('DROP SERVER second');
$pg->sql('CREATE DATABASE bare');
$pg->sql('CREATE EXTENSION kusto_ingest', dbname => 'bare');
$pg->fails_like('SELECT ' . $pg->ingest_call('SELECT 1', 'T'),
	{ message => qr/server/, hint => qr/CREATE SERVER/ }, 'no server at all', dbname => 'bare');

# ---- options ----

my $create = 'CREATE SERVER bad FOREIGN DATA WRAPPER kusto OPTIONS';
refused('a server option that does not exist', "$create (clustr 'https://c.kusto.windows.net')",
	{ sqlstate => 'HV00D', message => qr/"clustr"/, hint => qr/Perhaps you meant the option "cluster"/ });
refused('a server option that is nothing like one', "$create (zzzzzzzz 'x')",
	{ sqlstate => 'HV00D', message => qr/"zzzzzzzz"/, hint => qr/cluster/ });
refused('plain http to a host that is not this one', "$create (cluster 'http://c.westeurope.kusto.windows.net')",
	{ message => qr/./, text => qr/https/ });
refused('a cluster that is no URI', "$create (cluster 'not a uri')", { message => qr/cluster/ });
refused('a secret in the URI', "$create (cluster 'https://me:hunter2\@c.kusto.windows.net')", { text => qr/^(?!.*hunter2)/s });
my $mapping = 'CREATE USER MAPPING FOR CURRENT_USER SERVER bad OPTIONS';
$pg->sql(q(CREATE SERVER bad FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net')));
refused('a mapping option that does not exist', "$mapping (auth 'client_secret', clientsecret 'hunter2')",
	{ sqlstate => 'HV00D', message => qr/"clientsecret"/, hint => qr/Perhaps you meant the option "client_secret"/ });
refused('a way to log in that does not exist', "$mapping (auth 'client_secrt')",
	{ message => qr/"auth"/, hint => qr/client_secret/, text => qr/^(?!.*client_secrt)/s });
refused('a client_secret without a tenant', "$mapping (auth 'client_secret', client_id 'a', client_secret 'hunter2')",
	{ message => qr/tenant/ });
refused('an access_token without a token', "$mapping (auth 'access_token')", { message => qr/access_token/ });
refused('an option twice', "$mapping (auth 'none', auth 'none')", { sqlstate => '42710' });
refused('a mapping option on a server', "ALTER SERVER bad OPTIONS (client_secret 'hunter2')",
	{ message => qr/client_secret/, hint => qr/user mapping|USER MAPPING|valid options/i });

$pg->sql('DROP SERVER bad CASCADE');

# ---- messages that are too large ----

for my $argument (qw(tags ingest_if_not_exists))
{
	refused("$argument beyond 48 KiB", $pg->ingest_call('SELECT * FROM t', 'T', $argument => q(ARRAY[repeat('x', 50000)])),
		{ sqlstate => '54000', message => qr/./, hint => qr/48 KiB.*tags/ });
}
refused('many small tags', $pg->ingest_call('SELECT * FROM t', 'T', tags => q((SELECT array_agg('drop-by:' || i) FROM generate_series(1, 5000) i))),
	{ sqlstate => '54000', hint => qr/48 KiB/ });

# ---- what is merely unusual ----

sub fresh
{
	$kusto->reset;
	$kusto->create_table($db, 'T', 'i:int, s:string');
	return;
}

for my $query ('SELECT * FROM t;', "SELECT * FROM t ;;\n", "-- first\nSELECT * FROM t -- last", '/* a */ SELECT * FROM t; /* b; */ -- c;',
	'TABLE t', q(VALUES (1, 'x')), 'WITH w AS (SELECT * FROM t) SELECT * FROM w', '(SELECT * FROM t)', 'SELECT * FROM t UNION ALL SELECT * FROM t WHERE false')
{
	fresh();
	$pg->lands($query, 'T', [ [ 1, 'x' ] ], "unusual, but fine: $query");
}
fresh();
$pg->sql('CREATE TABLE writable (i int, s text)');
$pg->lands(q(INSERT INTO writable VALUES (1, 'a'), (2, 'b') RETURNING *), 'T', [ [ 1, 'a' ], [ 2, 'b' ] ], 'INSERT ... RETURNING');
fresh();
$pg->lands(q(UPDATE writable SET s = upper(s) WHERE i = 2 RETURNING i, s), 'T', [ [ 2, 'B' ] ], 'UPDATE ... RETURNING');
fresh();
$pg->lands(q(WITH gone AS (DELETE FROM writable WHERE i = 1 RETURNING *) SELECT * FROM gone), 'T', [ [ 1, 'a' ] ], 'WITH DELETE ... RETURNING');
fresh();
$pg->lands(q(DELETE FROM writable RETURNING *), 'T', [ [ 2, 'B' ] ], 'DELETE ... RETURNING');
is($pg->sql('SELECT count(*) FROM writable'), 0, 'and the rows are gone');
fresh();
$pg->lands(q(SELECT 1, NULL::text UNION ALL SELECT NULL, '' UNION ALL SELECT 3, E'a,"b"\n'), 'T',
	[ [ 1, '' ], [ undef, '' ], [ 3, qq(a,"b"\n) ] ], 'columns without names, nulls and quotes');

# Nothing to send.
fresh();
my $operation = $pg->operation($pg->ingest('SELECT * FROM t WHERE false', 'T'));
is($operation->{state}, 'succeeded', 'zero rows: succeeded at once');
is($operation->{rows}, 0, 'zero rows: and it says so');
is($operation->{blobs}, 0, 'zero rows: no blob');
ok(defined $operation->{finished_at}, 'zero rows: it has ended');
$kusto->assert_nothing_uploaded('zero rows: nothing was uploaded');
is($pg->sql("SELECT kusto_wait('$operation->{id}')"), 'succeeded', 'zero rows: kusto_wait agrees');
$pg->sql(q(CALL kusto_ingest_and_wait('SELECT * FROM t WHERE false', 'db', 'T')));
$kusto->assert_nothing_uploaded('zero rows: CALL, too');
$operation = $pg->succeeds($pg->ingest('SELECT i, s FROM t WHERE false', 'Empty', create_table => 'true'), 'zero rows with create_table');
is($pg->sql(q(SELECT kusto_query('Empty | count', 'db'))), '{"Count": 0}', 'zero rows with create_table: the table is there');

# Names.
$kusto->reset;
for my $name ('with space', 'a-b.c_d', 'x' x 200)
{
	$pg->succeeds($pg->ingest('SELECT 1 AS "size in m", 2 AS "where", 3 AS "4-5.6"', $name, create_table => 'true'), "a table called $name");
	is($kusto->count($db, $name), 1, "a table called $name has the row");
}
refused('a column name that Kusto cannot have', $pg->ingest_call(q(SELECT 1 AS "a'b"), 'T', create_table => 'true'),
	{ sqlstate => '42602', message => qr/"a'b"/, hint => qr/AS/ });
refused('a table name that Kusto cannot have', $pg->ingest_call('SELECT 1 AS a', q(a'b), create_table => 'true'),
	{ sqlstate => '42602', message => qr/"a'b"/ });
refused('a table name beyond 1024 characters', $pg->ingest_call('SELECT 1 AS i', 'x' x 1100, create_table => 'true'), { message => qr/name|1024/ });
refused('two columns of one name', $pg->ingest_call('SELECT 1 AS a, 2 AS a', 'Twice', create_table => 'true'),
	{ sqlstate => '42701', message => qr/"a"/ });

# Waiting for what is not there.
refused('an operation that does not exist', q(kusto_wait('00000000-0000-0000-0000-000000000000')),
	{ sqlstate => '42704', message => qr/does not exist/ });
my $session = $pg->session;
$session->sql('BEGIN');
my $id = $session->sql('SELECT ' . $pg->ingest_call('SELECT 1, $$x$$', 'T'));
$pg->error_is($session->fails("SELECT kusto_wait('$id')"), { message => qr/./, hint => qr/COMMIT/ },
	'an operation of the current transaction');
$session->sql('ROLLBACK');
$session->send('BEGIN; ' . q(CALL kusto_ingest_and_wait('SELECT 1', 'db', 'T')));
my $outcome = $session->receive;
$pg->error_is(KustoCluster::parse_error($outcome->{err}) // {}, { message => qr/transaction/ }, 'CALL kusto_ingest_and_wait in a transaction block');
$session->sql('ROLLBACK');
$session->quit;

$kusto->settle;
$kusto->assert_no_violations;
done_testing();
