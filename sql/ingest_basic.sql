--
-- kusto_ingest(): from a query to rows in Kusto
--
\i sql/include/extension.sql
\i sql/include/service.sql
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto
  OPTIONS (auth 'client_secret', tenant :'tenant', client_id :'client_id', client_secret :'client_secret');
SELECT count(*) FROM kusto_command('.create table RegressBasic (a:long, b:string)');

CREATE TABLE regress_t (a int PRIMARY KEY, b text);
INSERT INTO regress_t VALUES (1, 'one'), (2, NULL), (3, E'three, "quoted"\nand\\more'), (4, '');

-- from the first call to the rows
SELECT kusto_ingest('SELECT * FROM regress_t ORDER BY a;', 'telemetry', 'RegressBasic') AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT v FROM kusto_query('RegressBasic | sort by a asc') v;
SELECT owner = current_user AS own, server, database, table_name, mode, source, query, options, state, rows,
  raw_bytes, compressed_bytes > 0 AS compressed, blobs, type_errors,
  staged_at >= created_at AND posted_at >= staged_at AND finished_at >= posted_at AS in_order,
  error_code, error_message, details, hint
FROM kusto.operations WHERE id = :'id';
SELECT ordinal, url ~ '^http://[^?]*/[A-Za-z0-9._-]+\.csv\.gz$' AS url_fine, rows, raw_bytes, state, post_attempts,
  error_code, failure_status, details
FROM kusto.blobs WHERE operation_id = :'id';
SELECT count(*) >= 0 AS done FROM kusto_command('.clear table RegressBasic data');

-- the default database; named arguments; Kusto's properties
SELECT kusto_ingest(query => 'VALUES (1, ''x'')', database => NULL, table_name => 'RegressBasic', server => 'regress_kusto',
  tags => ARRAY['drop-by:regress', 'ingest-by:regress-1'], ingest_if_not_exists => ARRAY['regress-1'],
  creation_time => '2024-02-29 12:00:00.5+00', flush_immediately => true) AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT database, options FROM kusto.operations WHERE id = :'id';
-- the same key once more
SELECT kusto_ingest('VALUES (2, ''y'')', 'telemetry', 'RegressBasic',
  tags => ARRAY['ingest-by:regress-1'], ingest_if_not_exists => ARRAY['regress-1']) AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT v FROM kusto_query('RegressBasic') v;
SELECT count(*) >= 0 AS done FROM kusto_command('.clear table RegressBasic data');

-- no rows, no blob
SET client_min_messages = notice;
SELECT kusto_ingest('SELECT * FROM regress_t WHERE false', 'telemetry', 'RegressBasic') AS id \gset
SET client_min_messages = warning;
SELECT state, rows, raw_bytes, blobs, finished_at IS NOT NULL AS finished FROM kusto.operations WHERE id = :'id';
SELECT kusto_wait(:'id');

-- a transaction sees its own changes, and Kusto sees what commits
BEGIN;
INSERT INTO regress_t VALUES (5, 'five');
SELECT kusto_ingest('SELECT * FROM regress_t WHERE a = 5', 'telemetry', 'RegressBasic') AS id \gset
SELECT state FROM kusto.operations WHERE id = :'id';
\set VERBOSITY sqlstate
SELECT kusto_wait(:'id');
\set VERBOSITY default
ROLLBACK;
BEGIN;
SELECT kusto_ingest('SELECT 10 AS a, ''kept'' AS b', 'telemetry', 'RegressBasic') AS id \gset
SAVEPOINT s;
SELECT kusto_ingest('SELECT 11 AS a, ''undone'' AS b', 'telemetry', 'RegressBasic') IS NOT NULL AS staged;
ROLLBACK TO s;
SAVEPOINT s;
SELECT kusto_ingest('SELECT 12 AS a, ''released'' AS b', 'telemetry', 'RegressBasic') AS id2 \gset
RELEASE s;
COMMIT;
SELECT kusto_wait(:'id', '60 s'), kusto_wait(:'id2', '60 s');
SELECT v FROM kusto_query('RegressBasic | sort by a asc') v;
SELECT count(*) >= 0 AS done FROM kusto_command('.clear table RegressBasic data');

-- statements that change what they export
SELECT kusto_ingest('DELETE FROM regress_t WHERE a = 1 RETURNING a, b', 'telemetry', 'RegressBasic') AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT kusto_ingest('INSERT INTO regress_t VALUES (6, ''six'') RETURNING *', 'telemetry', 'RegressBasic') AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT kusto_ingest('WITH u AS (UPDATE regress_t SET b = upper(b) WHERE a = 6 RETURNING *) SELECT * FROM u', 'telemetry', 'RegressBasic') AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT v FROM kusto_query('RegressBasic') v ORDER BY v::text COLLATE "C";
SELECT * FROM regress_t ORDER BY a;
SELECT count(*) >= 0 AS done FROM kusto_command('.clear table RegressBasic data');

-- a failure after the statement has begun undoes both
SELECT kusto_ingest('DELETE FROM regress_t WHERE a > 0 RETURNING a / (a - 4) AS a, b', 'telemetry', 'RegressBasic');
SELECT count(*) FROM regress_t;

-- from a function, with an exception caught, and from a trigger
CREATE FUNCTION regress_try(q text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  PERFORM kusto_ingest(q, 'telemetry', 'RegressBasic');
  RETURN 'staged';
EXCEPTION WHEN division_by_zero THEN
  RETURN 'caught';
END
$$;
SELECT regress_try('SELECT 20 / x AS a, ''bad'' AS b FROM (VALUES (1), (0)) v (x)'), regress_try('SELECT 20 AS a, ''good'' AS b');
CREATE FUNCTION regress_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM kusto_ingest('SELECT a, b FROM regress_t WHERE a >= 30', 'telemetry', 'RegressBasic');
  RETURN NULL;
END
$$;
CREATE TRIGGER t AFTER INSERT ON regress_t FOR EACH STATEMENT EXECUTE FUNCTION regress_trigger();
INSERT INTO regress_t VALUES (30, 'thirty'), (31, 'thirty-one');
DROP TRIGGER t ON regress_t;
SELECT DISTINCT kusto_wait(id, '60 s') FROM kusto.operations WHERE table_name = 'RegressBasic';
SELECT v FROM kusto_query('RegressBasic | sort by a asc') v;
SELECT count(*) >= 0 AS done FROM kusto_command('.clear table RegressBasic data');

-- several exports in one statement; one inside the other
SELECT count(DISTINCT kusto_ingest(format('SELECT %s AS a, ''multi'' AS b', g), 'telemetry', 'RegressBasic')) FROM generate_series(40, 44) g;
SELECT kusto_ingest('SELECT 50 AS a, (kusto_ingest(''SELECT 51 AS a, ''''inner'''' AS b'', ''telemetry'', ''RegressBasic'') IS NOT NULL)::text AS b', 'telemetry', 'RegressBasic') IS NOT NULL AS staged;
SELECT DISTINCT kusto_wait(id, '60 s') FROM kusto.operations WHERE table_name = 'RegressBasic';
SELECT v FROM kusto_query('RegressBasic | sort by a asc') v;
SELECT count(*) >= 0 AS done FROM kusto_command('.clear table RegressBasic data');

-- parallel plans are allowed inside
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET max_parallel_workers_per_gather = 2;
CREATE TABLE regress_big AS SELECT g AS a, 'row ' || g AS b FROM generate_series(1, 50000) g;
ANALYZE regress_big;
SELECT kusto_ingest('SELECT * FROM regress_big', 'telemetry', 'RegressBasic') AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT rows, blobs FROM kusto.operations WHERE id = :'id';
SELECT count(*), sum((v ->> 'a')::int), count(DISTINCT v ->> 'b') FROM kusto_query('RegressBasic') v;
SELECT count(*) >= 0 AS done FROM kusto_command('.clear table RegressBasic data');

-- the procedure, for jobs: it fails when Kusto fails
CALL kusto_ingest_and_wait('SELECT 60 AS a, ''job'' AS b', 'telemetry', 'RegressBasic');
SELECT kusto_query('RegressBasic');
DO $$
BEGIN
  FOR i IN 61..62 LOOP
    CALL kusto_ingest_and_wait(format('SELECT %s AS a, ''loop'' AS b', i), 'telemetry', 'RegressBasic');
  END LOOP;
END
$$;
SELECT kusto_query('RegressBasic | count');
CALL kusto_ingest_and_wait('SELECT 70 AS a, ''first'' AS b', 'telemetry', 'RegressBasic',
  tags => ARRAY['ingest-by:regress-2'], ingest_if_not_exists => ARRAY['regress-2']);
-- one notice says what was exported, another that it was skipped
SET client_min_messages = notice;
\set VERBOSITY sqlstate
CALL kusto_ingest_and_wait('SELECT 70 AS a, ''again'' AS b', 'telemetry', 'RegressBasic',
  tags => ARRAY['ingest-by:regress-2'], ingest_if_not_exists => ARRAY['regress-2']);
SET client_min_messages = warning;
CALL kusto_ingest_and_wait('SELECT 1 AS a', 'telemetry', 'RegressNoSuchTable');
CALL kusto_ingest_and_wait('SELECT 1 AS a, ''x'' AS b', 'telemetry', 'RegressBasic', mapping => 'no_such_mapping');
\set VERBOSITY default
DO $$
BEGIN
  CALL kusto_ingest_and_wait('SELECT 1 AS a', 'telemetry', 'RegressNoSuchTable');
EXCEPTION WHEN SQLSTATE '2D000' THEN
  RAISE WARNING '%', SQLERRM;
END
$$;
SELECT table_name, state, error_code, error_message, hint FROM kusto.operations
WHERE table_name IN ('RegressBasic', 'RegressNoSuchTable') AND state NOT IN ('succeeded', 'skipped') ORDER BY created_at;

SELECT count(*) >= 0 AS done FROM kusto_command('.drop table RegressBasic');
DROP SERVER regress_kusto CASCADE;
DROP FUNCTION regress_try, regress_trigger;
DROP TABLE regress_t, regress_big;
