--
-- kusto_ingest_table(): all rows of a table, read by several processes
--
\i sql/include/extension.sql
\i sql/include/service.sql
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto
  OPTIONS (auth 'client_secret', tenant :'tenant', client_id :'client_id', client_secret :'client_secret');

CREATE TABLE regress_whole (gone int, a int, b text, c numeric GENERATED ALWAYS AS (a * 1.5) STORED);
ALTER TABLE regress_whole DROP COLUMN gone;
INSERT INTO regress_whole SELECT g, 'row ' || g FROM generate_series(1, 20000) g;

-- from the call to the rows
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'RegressWhole', create_table => true, parallel => 3) AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT owner = current_user AS own, server, database, table_name, mode, source, query, options, state, rows,
  type_errors
FROM kusto.operations WHERE id = :'id';
SELECT count(*) = blobs AS counted, min(ordinal) = 1 AND max(ordinal) = blobs AS numbered, sum(b.rows)
FROM kusto.operations o JOIN kusto.blobs b ON b.operation_id = o.id WHERE o.id = :'id' GROUP BY o.blobs;
SELECT v FROM kusto_query('RegressWhole | where a in (1, 20000) | sort by a asc') v;
SELECT count(*), sum((v ->> 'a')::int), count(DISTINCT v ->> 'b') FROM kusto_query('RegressWhole') v;

-- the arguments in their order; parallel as PostgreSQL sees fit
SELECT kusto_ingest_table('public.regress_whole'::regclass, NULL, 'RegressWhole', 'regress_kusto', NULL, ARRAY['drop-by:regress'],
  NULL, '2024-02-29 12:00:00.5+00', true, false, 'null', 'on', NULL) AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT options FROM kusto.operations WHERE id = :'id';
SELECT kusto_query('RegressWhole | count');

-- it is of the transaction
BEGIN;
INSERT INTO regress_whole VALUES (30000, 'own');
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'RegressWhole', parallel => 2) AS id \gset
SELECT state, rows FROM kusto.operations WHERE id = :'id';
ROLLBACK;
SELECT count(*) FROM kusto.operations WHERE id = :'id';

-- nothing to export
CREATE TABLE regress_nothing (a int);
SET client_min_messages = notice;
SELECT kusto_ingest_table('regress_nothing', 'telemetry', 'RegressNothing', create_table => true) AS id \gset
SET client_min_messages = warning;
SELECT kusto_wait(:'id', '60 s');
SELECT state, rows, blobs FROM kusto.operations WHERE id = :'id';

-- what has no rows
CREATE SEQUENCE regress_sequence;
CREATE TYPE regress_composite AS (a int);
CREATE INDEX regress_index ON regress_whole (a);
CREATE TABLE regress_columnless ();
SELECT kusto_ingest_table('regress_sequence', 'telemetry', 'X');
SELECT kusto_ingest_table('regress_composite', 'telemetry', 'X');
SELECT kusto_ingest_table('regress_index', 'telemetry', 'X');
SELECT kusto_ingest_table('regress_columnless', 'telemetry', 'X');
SELECT kusto_ingest_table(1, 'telemetry', 'X');

-- arguments
SELECT kusto_ingest_table(NULL, 'telemetry', 'X');
SELECT kusto_ingest_table('regress_whole', 'telemetry', NULL);
SELECT kusto_ingest_table('regress_whole', 'telemetry', '');
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'X', server => 'no_such_server');
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'X', parallel => 0);
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'X', parallel => -1);
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'X', parallel => 1026);
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'X', on_type_error => 'ignore');
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'X', exactly_once => NULL);
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'X', create_table => NULL);
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'X', tags => ARRAY[NULL]);
BEGIN READ ONLY;
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'X');
ROLLBACK;

-- values that Kusto does not have
ALTER TABLE regress_nothing ADD COLUMN d date;
INSERT INTO regress_nothing VALUES (1, '2024-02-29'), (2, 'infinity'), (3, '10000-01-01');
SELECT kusto_ingest_table('regress_nothing', 'telemetry', 'RegressDates');
SELECT kusto_ingest_table('regress_nothing', 'telemetry', 'RegressDates', create_table => true, on_type_error => 'string', parallel => 2) AS id \gset
SELECT kusto_wait(:'id', '60 s');
SELECT type_errors FROM kusto.operations WHERE id = :'id';
SELECT v FROM kusto_query('RegressDates | sort by a asc') v;

-- who may
CREATE ROLE regress_whole_user;
GRANT USAGE ON SCHEMA kusto TO regress_whole_user;
SET ROLE regress_whole_user;
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'X');
RESET ROLE;
GRANT EXECUTE ON FUNCTION kusto_ingest_table TO regress_whole_user;
SET ROLE regress_whole_user;
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'X', 'regress_kusto');
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER regress_kusto TO regress_whole_user;
SET ROLE regress_whole_user;
SELECT kusto_ingest_table('regress_whole', 'telemetry', 'X', 'regress_kusto');
RESET ROLE;

SELECT count(*) >= 0 AS done FROM kusto_command('.drop table RegressWhole');
SELECT count(*) >= 0 AS done FROM kusto_command('.drop table RegressNothing');
SELECT count(*) >= 0 AS done FROM kusto_command('.drop table RegressDates');
DROP SERVER regress_kusto CASCADE;
DROP TABLE regress_whole, regress_nothing, regress_columnless;
DROP SEQUENCE regress_sequence;
DROP TYPE regress_composite;
REVOKE ALL ON SCHEMA kusto FROM regress_whole_user;
REVOKE ALL ON FUNCTION kusto_ingest_table FROM regress_whole_user;
DROP ROLE regress_whole_user;
