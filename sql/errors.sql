--
-- What kusto_ingest() refuses, all before anything is sent.  The server's
-- port is closed: whatever asked it would fail in another way.
--
\i sql/include/extension.sql

CREATE SERVER regress_kusto_nowhere FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'http://127.0.0.1:1');
CREATE TABLE regress_t (a int, b text);
INSERT INTO regress_t VALUES (1, 'x');

-- arguments
SELECT kusto_ingest(NULL, 'db', 'T');
SELECT kusto_ingest('SELECT 1 AS a', 'db', NULL);
SELECT kusto_ingest('SELECT 1 AS a', 'db', '');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => NULL);
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'queud');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'by pigeon');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'streamed');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', on_type_error => 'nul');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', on_type_error => NULL);
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', flush_immediately => NULL);
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', create_table => NULL);
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mapping => '');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', creation_time => 'infinity');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', server => 'regress_kusto_none');

-- what a mode has not; an empty list asks for nothing
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'streaming', tags => ARRAY['drop-by:x']);
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'streaming', ingest_if_not_exists => ARRAY['x']);
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'streaming', creation_time => '2024-01-01');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'streaming', flush_immediately => true);
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'streaming', exactly_once => 'on');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'streaming', exactly_once => 'maybe');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'streaming', tags => '{}', ingest_if_not_exists => '{}',
	server => 'regress_kusto_none');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'managed', tags => ARRAY['drop-by:x']);
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'managed', ingest_if_not_exists => ARRAY['x']);
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'managed', creation_time => '2024-01-01');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'managed', flush_immediately => true);
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'managed', exactly_once => 'on');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', mode => 'direct', exactly_once => 'on');
CALL kusto_ingest_and_wait('SELECT 1 AS a', 'db', 'T', mode => 'streaming', tags => ARRAY['drop-by:x']);

-- no database, no good tags
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_nowhere OPTIONS (auth 'none');
SELECT kusto_ingest('SELECT 1 AS a', NULL, 'T', server => 'regress_kusto_nowhere');
SELECT kusto_ingest('SELECT 1 AS a', '', 'T', server => 'regress_kusto_nowhere');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', server => 'regress_kusto_nowhere', tags => ARRAY['a', NULL]);
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', server => 'regress_kusto_nowhere', tags => ARRAY['a', '']);
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', server => 'regress_kusto_nowhere', tags => ARRAY[['a'], ['b']]);

-- which server
SET kusto_ingest.default_server = 'regress_kusto_none';
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T');
SET kusto_ingest.default_server = 'regress_kusto_nowhere';
SELECT kusto_ingest('SELECT 1 AS', 'db', 'T');
RESET kusto_ingest.default_server;
CREATE FOREIGN DATA WRAPPER regress_kusto_other;
CREATE SERVER regress_kusto_other FOREIGN DATA WRAPPER regress_kusto_other;
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T', server => 'regress_kusto_other');
CREATE SERVER regress_kusto_nowhere2 FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'http://127.0.0.1:1');
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T');
DROP SERVER regress_kusto_nowhere2;

-- from here on the only server is the one without a listener
SET client_min_messages = warning;
DROP FOREIGN DATA WRAPPER regress_kusto_other CASCADE;
RESET client_min_messages;

-- what is no query
SELECT kusto_ingest('', 'db', 'T');
SELECT kusto_ingest(' -- nothing', 'db', 'T');
SELECT kusto_ingest('SELECT 1 AS a; SELECT 2 AS a', 'db', 'T');
SELECT kusto_ingest('SELEC 1', 'db', 'T');
SELECT kusto_ingest('SELECT $1', 'db', 'T');
SELECT kusto_ingest('SELECT * FROM regress_missing', 'db', 'T');
SELECT kusto_ingest('SELECT FROM regress_t', 'db', 'T');
SELECT kusto_ingest('SELECT 1 AS a INTO regress_u', 'db', 'T');
SELECT kusto_ingest('CREATE TABLE regress_u AS SELECT 1', 'db', 'T');
SELECT kusto_ingest('EXPLAIN SELECT 1', 'db', 'T');
SELECT kusto_ingest('COPY regress_t TO STDOUT', 'db', 'T');
SELECT kusto_ingest('CALL kusto_ingest_and_wait(NULL, NULL, NULL)', 'db', 'T');
SELECT kusto_ingest('BEGIN', 'db', 'T');
SELECT kusto_ingest('SHOW work_mem', 'db', 'T');
SELECT kusto_ingest('DELETE FROM regress_t', 'db', 'T');
SELECT kusto_ingest('INSERT INTO regress_t VALUES (2)', 'db', 'T');
PREPARE regress_q AS SELECT 1;
SELECT kusto_ingest('EXECUTE regress_q', 'db', 'T');
DEALLOCATE regress_q;

-- rules
CREATE TABLE regress_nothing (a int);
CREATE RULE r AS ON DELETE TO regress_nothing DO INSTEAD NOTHING;
SELECT kusto_ingest('DELETE FROM regress_nothing RETURNING a', 'db', 'T');
CREATE TABLE regress_also (a int);
CREATE RULE r AS ON INSERT TO regress_also DO ALSO SELECT 1;
SELECT kusto_ingest('INSERT INTO regress_also VALUES (1) RETURNING a', 'db', 'T');
CREATE TABLE regress_if (a int);
CREATE RULE r AS ON DELETE TO regress_if WHERE OLD.a > 1 DO INSTEAD SELECT 1;
SELECT kusto_ingest('DELETE FROM regress_if RETURNING a', 'db', 'T');

-- where nothing may be written
BEGIN READ ONLY;
SELECT kusto_ingest('SELECT 1 AS a', 'db', 'T');
ROLLBACK;

-- the procedure commits, so it needs to be on its own
CALL kusto_ingest_and_wait(NULL, 'db', 'T');
CALL kusto_ingest_and_wait('SELECT 1 AS a', 'db', 'T', timeout => '-1 s');
BEGIN;
CALL kusto_ingest_and_wait('SELECT 1 AS a', 'db', 'T');
ROLLBACK;

-- waiting
SELECT kusto_wait(NULL);
SELECT kusto_wait('00000000-0000-0000-0000-000000000000');
SELECT kusto_wait('00000000-0000-0000-0000-000000000000', '-1 s');

-- a query that fails half-way; and nothing of all this was recorded
SELECT kusto_ingest('SELECT 1 / (3 - g) AS a FROM generate_series(1, 5) g', 'db', 'T');
SELECT * FROM regress_t;
SELECT count(*) FROM kusto.operations WHERE server = 'regress_kusto_nowhere';

-- an address without a listener, at last
\set VERBOSITY sqlstate
SET kusto_ingest.retry_timeout = 0;
SELECT kusto_ingest('SELECT * FROM regress_t', 'db', 'T');

SET client_min_messages = warning;
DROP SERVER regress_kusto_nowhere CASCADE;
DROP TABLE regress_t, regress_nothing, regress_also, regress_if;
