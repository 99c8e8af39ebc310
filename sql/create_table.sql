--
-- kusto_create_table_command() and create_table => true
--
\i sql/include/extension.sql
\i sql/include/service.sql
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto
  OPTIONS (auth 'client_secret', tenant :'tenant', client_id :'client_id', client_secret :'client_secret');

-- the command needs no server
CREATE DOMAIN regress_positive AS int CHECK (VALUE > 0);
CREATE TYPE regress_mood AS ENUM ('sad', 'happy');
CREATE TYPE regress_pair AS (a int, b text);
CREATE TABLE regress_wide (
  b boolean, i2 smallint, i4 int, i8 bigint, f4 real, f8 double precision, n numeric, n2 numeric(10,2),
  t text, vc varchar(10), c char(3), nm name, u uuid, d date, ts timestamp, tz timestamptz,
  tm time, iv interval, by bytea, j json, jb jsonb, arr int[], dom regress_positive,
  mood regress_mood, pair regress_pair, r int4range, ip inet, x xml, m money, o oid, pt point);
SELECT kusto_create_table_command('SELECT * FROM regress_wide', 'Wide');
SELECT kusto_create_table_command('SELECT * FROM regress_wide', 'Wide', 'string');
SELECT kusto_create_table_command('SELECT 1 AS "a b", 2 AS "Größe", 3 AS "C"', 'my table');
SELECT kusto_create_table_command('DELETE FROM regress_wide RETURNING i4 AS a', 'T');
SELECT kusto_create_table_command('TABLE regress_wide LIMIT 0;', 'T') = kusto_create_table_command('SELECT * FROM regress_wide', 'T') AS same;

-- names that Kusto cannot have
SELECT kusto_create_table_command('SELECT 1', 'T');
SELECT kusto_create_table_command('SELECT 1 AS a, 2 AS a', 'T');
SELECT kusto_create_table_command('SELECT 1 AS "a''b"', 'T');
SELECT kusto_create_table_command('SELECT 1 AS a', 'T]; .drop database x');
SELECT kusto_create_table_command('SELECT 1 AS a', '');
SELECT kusto_create_table_command('SELECT', 'T');
SELECT kusto_create_table_command(NULL, 'T');
SELECT kusto_create_table_command('SELECT 1 AS a', NULL);
SELECT kusto_create_table_command('SELECT 1 AS a', 'T', 'nonsense');

-- the worker makes the table just before it posts
SELECT kusto_ingest('SELECT 1 AS a, ''x'' AS b', 'telemetry', 'Regress Created', create_table => true) AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT v FROM kusto_query('["Regress Created"]') v;
SELECT v ->> 'Schema' AS s FROM kusto_command('.show table ["Regress Created"] cslschema') v;

-- further columns are added
SELECT kusto_ingest('SELECT 2 AS a, ''y'' AS b, 1.5::float8 AS c', 'telemetry', 'Regress Created', create_table => true) AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT v FROM kusto_query('["Regress Created"] | sort by a asc') v;

-- no rows: the table is made all the same
SELECT kusto_ingest('SELECT 1 AS a WHERE false', 'telemetry', 'RegressEmpty', create_table => true) AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT rows, blobs FROM kusto.operations WHERE id = :'id';
SELECT kusto_query('RegressEmpty | count');

-- a rollback leaves no table
BEGIN;
SELECT kusto_ingest('SELECT 1 AS a', 'telemetry', 'RegressRolledBack', create_table => true) IS NOT NULL AS staged;
ROLLBACK;
SELECT kusto_ingest('SELECT 1 AS a', 'telemetry', 'RegressAfter', create_table => true) AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT v ->> 'TableName' AS t FROM kusto_command('.show tables') v WHERE v ->> 'TableName' LIKE 'Regress%' ORDER BY 1;

SELECT count(*) >= 0 AS done FROM kusto_command('.drop table ["Regress Created"]');
SELECT count(*) >= 0 AS done FROM kusto_command('.drop table RegressEmpty');
SELECT count(*) >= 0 AS done FROM kusto_command('.drop table RegressAfter');
DROP SERVER regress_kusto CASCADE;
DROP TABLE regress_wide;
DROP TYPE regress_pair, regress_mood;
DROP DOMAIN regress_positive;
