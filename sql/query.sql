--
-- kusto_query(), kusto_command(), kusto_test_connection()
--
\i sql/include/extension.sql
\i sql/include/service.sql
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto
  OPTIONS (auth 'client_secret', tenant :'tenant', client_id :'client_id', client_secret :'client_secret');

-- what an error says, without what changes from run to run
CREATE FUNCTION pg_temp.mask(text) RETURNS text LANGUAGE sql AS $$
  SELECT regexp_replace(regexp_replace($1,
    '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}', 'UUID', 'g'),
    '\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ', 'TIME', 'g')
$$;
CREATE FUNCTION pg_temp.failure(sql text, OUT code text, OUT message text, OUT detail text, OUT hint text)
LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE sql;
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
    detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
  message := pg_temp.mask(message);
  detail := pg_temp.mask(detail);
  hint := pg_temp.mask(hint);
END
$$;

-- arguments
SELECT kusto_query(NULL);
SELECT kusto_query(' ');
SELECT kusto_query('.show tables');
SELECT kusto_command('T | count');
SELECT kusto_query('print 1', server => 'regress_kusto_none');

-- values of every type
SELECT kusto_query('print b=bool(true), i=int(-5), l=long(9007199254740993), r=1.5, nan=real(nan), s="a''b", t=datetime(2024-02-29), ts=timespan(1.02:03:04.5), g=guid(74be27de-1e4e-49d9-b579-fe0b331d3642), d=decimal(1.5), dyn=dynamic({"k":[1,"x",null]})');
SELECT kusto_query('print b=bool(null), i=int(null), l=long(null), r=real(null), s="", d=dynamic(null)');
SELECT kusto_query('print ["a b"]="ü€😀"') = '{"a b": "ü€😀"}' AS same;
SELECT v ->> 'x' AS x FROM kusto_query('print x=1', 'telemetry', 'regress_kusto') v;
SELECT kusto_query('print x=1 | where x == 2');

-- commands take effect at once
SELECT v ->> 'TableName' AS t FROM kusto_command('.create table RegressQuery (a:int, b:string)') v;
SELECT kusto_query('RegressQuery | count');
BEGIN;
SELECT v ->> 'TableName' AS t FROM kusto_command(E' \n.create-merge table RegressQuery (c:dynamic)') v;
ROLLBACK;
SELECT v ->> 'Schema' AS s FROM kusto_command('.show table RegressQuery cslschema') v;
SELECT count(*) >= 0 AS done FROM kusto_command('.drop table RegressQuery');

-- refusals
\x on
SELECT * FROM pg_temp.failure($$SELECT kusto_query('NoSuchTable | count')$$);
SELECT * FROM pg_temp.failure($$SELECT kusto_query('this is not kql at all')$$);
SELECT * FROM pg_temp.failure($$SELECT kusto_query('print 1', 'no_such_database')$$);
SELECT * FROM pg_temp.failure($$SELECT kusto_command('.no such command')$$);

-- a wrong secret, and a client that nobody knows; neither shows the secret
ALTER USER MAPPING FOR CURRENT_USER SERVER regress_kusto OPTIONS (SET client_secret 'wrong-secret-7e');
SELECT * FROM pg_temp.failure($$SELECT kusto_query('print 1')$$);
ALTER USER MAPPING FOR CURRENT_USER SERVER regress_kusto OPTIONS (SET auth 'access_token', DROP tenant, DROP client_id, DROP client_secret, ADD access_token 'no-token-7e');
SELECT * FROM pg_temp.failure($$SELECT kusto_query('print 1')$$);
ALTER USER MAPPING FOR CURRENT_USER SERVER regress_kusto OPTIONS (SET auth 'none', DROP access_token);
SELECT * FROM pg_temp.failure($$SELECT kusto_query('print 1')$$);
\x off
ALTER USER MAPPING FOR CURRENT_USER SERVER regress_kusto
  OPTIONS (SET auth 'client_secret', ADD tenant :'tenant', ADD client_id :'client_id', ADD client_secret :'client_secret');
SELECT kusto_query('print x=1');

-- a server that is described by a connection string
\set string 'Data Source=' :engine ';Initial Catalog=telemetry;AAD Federated Security=True;Authority Id=' :login
CREATE SERVER regress_kusto_string FOREIGN DATA WRAPPER kusto OPTIONS (connection_string :'string');
CREATE USER MAPPING FOR PUBLIC SERVER regress_kusto_string
  OPTIONS (auth 'client_secret', tenant :'tenant', client_id :'client_id', client_secret :'client_secret');
SELECT kusto_query('print x=2', server => 'regress_kusto_string');
ALTER SERVER regress_kusto_string OPTIONS (SET connection_string 'Data Source=http://127.0.0.1:1;Initial Catalog=telemetry');
\set VERBOSITY sqlstate
SET kusto_ingest.retry_timeout = 0;
SELECT kusto_query('print x=2', server => 'regress_kusto_string');
RESET kusto_ingest.retry_timeout;
\set VERBOSITY default
DROP SERVER regress_kusto_string CASCADE;

-- step by step
SELECT step, ok, milliseconds >= 0 AS timed, hint FROM kusto_test_connection();
SELECT step, ok, milliseconds >= 0 AS timed, hint FROM kusto_test_connection('regress_kusto');
ALTER USER MAPPING FOR CURRENT_USER SERVER regress_kusto OPTIONS (SET client_secret 'wrong-secret-7e');
SELECT step, ok, milliseconds >= 0 AS timed, hint FROM kusto_test_connection();
ALTER SERVER regress_kusto OPTIONS (SET query_uri 'http://127.0.0.1:1');
SELECT step, ok, detail LIKE '%wrong-secret%' AS shows_secret, hint FROM kusto_test_connection();
SELECT kusto_test_connection('regress_kusto_none');

DROP SERVER regress_kusto CASCADE;
