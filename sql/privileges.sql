--
-- Who may do what, and as whom a query runs.
--
\i sql/include/extension.sql
\i sql/include/service.sql
CREATE ROLE regress_kusto_nobody;
CREATE ROLE regress_kusto_writer;
CREATE ROLE regress_kusto_monitor IN ROLE pg_read_all_stats;
CREATE ROLE regress_kusto_member IN ROLE regress_kusto_writer;

-- nothing is granted to PUBLIC
SELECT p.oid::regprocedure::text AS callable_by_public
FROM pg_depend d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'kusto_ingest')
  AND has_function_privilege('regress_kusto_nobody', p.oid, 'EXECUTE')
ORDER BY 1;
SELECT has_schema_privilege('regress_kusto_nobody', 'kusto', 'USAGE') AS schema_usage,
  has_table_privilege('regress_kusto_nobody', 'kusto.operation', 'SELECT') AS operation,
  has_table_privilege('regress_kusto_nobody', 'kusto.blob', 'SELECT') AS blob;

SET ROLE regress_kusto_nobody;
SELECT kusto_ingest('SELECT 1 AS a', 'telemetry', 'T');
CALL kusto_ingest_and_wait('SELECT 1 AS a', 'telemetry', 'T');
SELECT kusto_query('print 1');
SELECT kusto_command('.show tables');
SELECT kusto_test_connection();
SELECT kusto_create_table_command('SELECT 1 AS a', 'T');
SELECT kusto_wait('00000000-0000-0000-0000-000000000000');
SELECT count(*) FROM kusto.operations;
RESET ROLE;

-- functions alone are not enough: the server, and a mapping
GRANT EXECUTE ON FUNCTION kusto_ingest, kusto_query, kusto_wait TO regress_kusto_writer;
GRANT USAGE ON SCHEMA kusto TO regress_kusto_writer, regress_kusto_nobody, regress_kusto_monitor;
GRANT SELECT ON kusto.operations, kusto.blobs TO regress_kusto_writer, regress_kusto_nobody, regress_kusto_monitor;
SET ROLE regress_kusto_writer;
SELECT kusto_ingest('SELECT 1 AS a', 'telemetry', 'T');
SELECT kusto_ingest('SELECT 1 AS a', 'telemetry', 'T', server => 'regress_kusto');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER regress_kusto TO regress_kusto_writer;
SET ROLE regress_kusto_writer;
SELECT kusto_ingest('SELECT 1 AS a', 'telemetry', 'T');
RESET ROLE;
-- the mapping of PUBLIC will do
CREATE USER MAPPING FOR PUBLIC SERVER regress_kusto
  OPTIONS (auth 'client_secret', tenant :'tenant', client_id :'client_id', client_secret :'client_secret');

-- the query has the caller's rights, row security included
CREATE TABLE regress_secret (a int);
CREATE TABLE regress_rows (owner name, a int);
INSERT INTO regress_rows VALUES ('regress_kusto_writer', 1), ('somebody', 2), ('regress_kusto_writer', 3);
ALTER TABLE regress_rows ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON regress_rows USING (owner = current_user);
GRANT SELECT ON regress_rows TO regress_kusto_writer;
SET ROLE regress_kusto_writer;
SELECT kusto_ingest('SELECT * FROM regress_secret', 'telemetry', 'RegressRows');
SELECT kusto_ingest('SELECT * FROM regress_rows', 'telemetry', 'RegressRows', create_table => true) AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT v FROM kusto_query('RegressRows | sort by a asc') v;
SELECT current_user AS still;
-- nobody but the monitoring roles sees what others do, nor the tables behind the views
SELECT owner, rows, state FROM kusto.operations WHERE id = :'id';
SELECT rows, state FROM kusto.blobs WHERE operation_id = :'id';
SELECT count(*) FROM kusto.operation;
SET ROLE regress_kusto_nobody;
SELECT owner, rows, state FROM kusto.operations WHERE id = :'id';
SELECT rows, state FROM kusto.blobs WHERE operation_id = :'id';
SET ROLE regress_kusto_monitor;
SELECT owner, rows, state FROM kusto.operations WHERE id = :'id';
SELECT rows, state FROM kusto.blobs WHERE operation_id = :'id';
RESET ROLE;
GRANT EXECUTE ON FUNCTION kusto_wait TO regress_kusto_nobody;
SET ROLE regress_kusto_member;
SELECT kusto_wait(:'id', '0 s');
SET ROLE regress_kusto_nobody;
\set VERBOSITY sqlstate
SELECT kusto_wait(:'id', '0 s');
\set VERBOSITY default
RESET ROLE;

-- a function with its owner's rights exports with its owner's mapping and rights
CREATE FUNCTION regress_export() RETURNS uuid LANGUAGE sql SECURITY DEFINER
AS $$SELECT kusto_ingest('SELECT current_user::text AS owner, 4 AS a', 'telemetry', 'RegressRows', server => 'regress_kusto')$$;
ALTER FUNCTION regress_export() OWNER TO regress_kusto_writer;
GRANT EXECUTE ON FUNCTION regress_export TO regress_kusto_nobody;
SET ROLE regress_kusto_nobody;
SELECT regress_export() AS id \gset
RESET ROLE;
SELECT kusto_wait(:'id', '60 s');
SELECT owner FROM kusto.operations WHERE id = :'id';
SELECT v FROM kusto_query('RegressRows | where a == 4') v;

-- but not to where its caller wants it
CREATE FUNCTION regress_anywhere() RETURNS uuid LANGUAGE sql SECURITY DEFINER
AS $$SELECT kusto_ingest('SELECT 5 AS a', 'telemetry', 'RegressRows')$$;
CREATE FUNCTION regress_query() RETURNS SETOF jsonb LANGUAGE sql SECURITY DEFINER
AS $$SELECT kusto_query('print 1')$$;
GRANT EXECUTE ON FUNCTION regress_anywhere, regress_query TO regress_kusto_nobody;
SET ROLE regress_kusto_nobody;
\set SHOW_CONTEXT never
SELECT regress_anywhere();
SET kusto_ingest.default_server = 'regress_kusto';
SELECT regress_anywhere();
SELECT regress_query();
RESET kusto_ingest.default_server;
\set SHOW_CONTEXT errors
RESET ROLE;

-- the text of options and of secrets is nobody's business
SET ROLE regress_kusto_nobody;
SELECT count(*) AS secrets_seen FROM pg_user_mappings WHERE umoptions IS NOT NULL AND srvname = 'regress_kusto';
RESET ROLE;

SELECT count(*) >= 0 AS done FROM kusto_command('.drop table RegressRows');
DROP FUNCTION regress_export, regress_anywhere, regress_query;
DROP TABLE regress_secret, regress_rows;
DROP SERVER regress_kusto CASCADE;
DROP OWNED BY regress_kusto_nobody, regress_kusto_writer, regress_kusto_monitor, regress_kusto_member;
DROP ROLE regress_kusto_nobody, regress_kusto_writer, regress_kusto_monitor, regress_kusto_member;
