--
-- The rest of the SQL surface, as far as it needs no waiting: the views, what
-- kusto_ingest_async(), kusto_cancel(), kusto_retry() and kusto_purge() refuse,
-- and exactly_once.  t/150 and later show that they work.
--
\i sql/include/extension.sql
\i sql/include/service.sql
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto
  OPTIONS (auth 'client_secret', tenant :'tenant', client_id :'client_id', client_secret :'client_secret');

-- what monitoring queries may rely on
\d kusto.operations
\d kusto.blobs
\d kusto.progress
\d kusto.workers
SELECT p.oid::regprocedure::text AS function, p.provolatile AS volatile, p.proparallel AS parallel, p.proisstrict AS strict
FROM pg_depend d JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'kusto_ingest')
ORDER BY p.proname COLLATE "C";
-- every object says what it is
SELECT pg_describe_object(d.classid, d.objid, 0) AS without_comment
FROM pg_depend d
WHERE d.deptype = 'e' AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'kusto_ingest')
  AND d.classid IN ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_namespace'::regclass, 'pg_foreign_data_wrapper'::regclass)
  AND obj_description(d.objid, d.classid::regclass::name) IS NULL
ORDER BY 1;

-- nothing runs
SELECT count(*) FROM kusto.progress;

-- arguments of jobs: refused at once, as by kusto_ingest()
SELECT kusto_ingest_async(NULL, 'telemetry', 'T');
SELECT kusto_ingest_async('SELECT 1 AS a', 'telemetry', NULL);
SELECT kusto_ingest_async('SELECT 1 AS a', 'telemetry', 'T', mode => 'steaming');
SELECT kusto_ingest_async('SELECT 1 AS a', 'telemetry', 'T', mode => 'streaming', tags => ARRAY['drop-by:x']);
SELECT kusto_ingest_async('SELECT 1 AS a', 'telemetry', 'T', on_type_error => 'nul');
SELECT kusto_ingest_async('SELECT 1 AS a', 'telemetry', 'T', exactly_once => 'maybe');
SELECT kusto_ingest_async('SELECT 1 AS a', 'telemetry', 'T', server => 'regress_kusto_none');
SELECT kusto_ingest_async('SELECT * FROM regress_missing', 'telemetry', 'T');
SELECT kusto_ingest_async('SELECT 1 AS a; SELECT 2 AS a', 'telemetry', 'T');
SELECT kusto_ingest_async('DROP TABLE regress_missing', 'telemetry', 'T');
BEGIN READ ONLY;
SELECT kusto_ingest_async('SELECT 1 AS a', 'telemetry', 'T');
ROLLBACK;
-- a rollback leaves none
BEGIN;
SELECT kusto_ingest_async('SELECT 1 / 0 AS a', 'telemetry', 'RegressSteer') AS id \gset
SELECT state, runs, rows, blobs, options -> 'exactly_once' AS exactly_once FROM kusto.operations WHERE id = :'id';
-- and what has not committed can be cancelled
SELECT kusto_cancel(:'id');
SELECT state, finished_at IS NOT NULL AS finished FROM kusto.operations WHERE id = :'id';
SELECT kusto_cancel(:'id');
SELECT kusto_wait(:'id');
ROLLBACK;
SELECT count(*) FROM kusto.operations WHERE table_name = 'RegressSteer';

-- steering what is not there
SELECT kusto_cancel(NULL);
SELECT kusto_retry(NULL);
SELECT kusto_purge(NULL);
SELECT kusto_cancel('00000000-0000-0000-0000-000000000000');
SELECT kusto_retry('00000000-0000-0000-0000-000000000000');
SELECT kusto_purge('-1 s');

-- exactly_once
SELECT kusto_ingest('SELECT 1 AS a', 'telemetry', 'T', exactly_once => NULL);
SELECT kusto_ingest('SELECT 1 AS a', 'telemetry', 'T', exactly_once => 'maybe');
SELECT kusto_ingest('SELECT 1 AS a', 'telemetry', 'T', exactly_once => 'ON');
SELECT kusto_ingest('SELECT 1 AS a', 'telemetry', 'RegressSteer', create_table => true, exactly_once => 'on') AS on_id \gset
SELECT kusto_ingest('SELECT 2 AS a', 'telemetry', 'RegressSteer', create_table => true, exactly_once => 'off') AS off_id \gset
SELECT kusto_wait(:'on_id', '60 s'), kusto_wait(:'off_id', '60 s');
SELECT o.options ->> 'exactly_once' AS exactly_once, b.exactly_once AS of_blob, b.state
FROM kusto.operations o JOIN kusto.blobs b ON b.operation_id = o.id WHERE o.table_name = 'RegressSteer' ORDER BY o.created_at;
SELECT v FROM kusto_query('RegressSteer | sort by a asc') v;

-- what has ended is not steered any more; and its record goes when it is old enough
SELECT kusto_cancel(:'on_id'), kusto_retry(:'on_id');
SELECT kusto_purge('1 day');
SELECT kusto_purge('0') > 0 AS purged;
SELECT count(*) FROM kusto.operations WHERE table_name = 'RegressSteer';

SELECT count(*) >= 0 AS done FROM kusto_command('.drop table RegressSteer');
DROP SERVER regress_kusto CASCADE;
