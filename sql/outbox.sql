--
-- The outbox of row changes: what anybody may see of it, and dead letters.
--
\i sql/include/extension.sql

\d kusto.dead_letters

CREATE ROLE regress_kusto_owner;
CREATE ROLE regress_kusto_other;
CREATE ROLE regress_kusto_monitor IN ROLE pg_read_all_stats;
GRANT USAGE ON SCHEMA kusto TO regress_kusto_owner, regress_kusto_other, regress_kusto_monitor;
GRANT SELECT ON kusto.dead_letters TO regress_kusto_owner, regress_kusto_other, regress_kusto_monitor;
GRANT EXECUTE ON FUNCTION kusto_retry, kusto_cancel TO regress_kusto_owner, regress_kusto_other, regress_kusto_monitor;

-- The tables of the ring are alike: large values are not compressed, as CSV is
-- when it is sent, and nothing in them needs vacuuming.
SELECT c.relname, c.relpersistence, c.reloptions, t.reloptions AS toast_options, a.attstorage,
       pg_get_indexdef(i.indexrelid) AS index
FROM pg_class c
     JOIN pg_class t ON t.oid = c.reltoastrelid
     JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'data'
     JOIN pg_index i ON i.indrelid = c.oid
WHERE c.relnamespace = 'kusto'::regnamespace AND c.relname ~ '^outbox_'
ORDER BY 1;

-- Nobody reads or writes them.
SET ROLE regress_kusto_owner;
SELECT FROM kusto.outbox_0;
INSERT INTO kusto.outbox_0 SELECT;
TRUNCATE kusto.outbox_1;
SELECT FROM kusto.dead_letter;
SELECT nextval('kusto.change_number');
RESET ROLE;

-- Dead letters, as the worker writes them.
INSERT INTO kusto.dead_letter (id, capture, relation_name, owner, server, database, table_name, first_seq,
	rows, data, created_at, error_code, error_message, system_identifier, database_oid)
SELECT '11111111-1111-4111-8111-111111111111', 1, 'public.t', 'regress_kusto_owner'::regrole, 'adx', 'db', 'T', 1048576,
	2, 'a,b', '2026-01-01', 'BadRequest', 'Kusto does not like it',
	(SELECT system_identifier FROM pg_control_system()),
	(SELECT oid FROM pg_database WHERE datname = current_database());

SET ROLE regress_kusto_owner;
SELECT id, relation_name, owner, rows, bytes, data, error_code, error_message FROM kusto.dead_letters;
SET ROLE regress_kusto_monitor;
SELECT id, relation_name, owner, rows, bytes, data, error_code, error_message FROM kusto.dead_letters;
SELECT kusto_retry('11111111-1111-4111-8111-111111111111');
SELECT kusto_cancel('11111111-1111-4111-8111-111111111111');
SET ROLE regress_kusto_other;
SELECT id FROM kusto.dead_letters;
SELECT kusto_retry('11111111-1111-4111-8111-111111111111');
SELECT kusto_cancel('11111111-1111-4111-8111-111111111111');

-- The owner's server, or none.
SET ROLE regress_kusto_owner;
SELECT kusto_retry('11111111-1111-4111-8111-111111111111');
SELECT count(*) FROM kusto.dead_letters;

-- Given up, in the transaction.
BEGIN;
SELECT kusto_cancel('11111111-1111-4111-8111-111111111111');
SELECT count(*) FROM kusto.dead_letters;
ROLLBACK;
SELECT count(*) FROM kusto.dead_letters;
SELECT kusto_cancel('11111111-1111-4111-8111-111111111111');
SELECT kusto_cancel('11111111-1111-4111-8111-111111111111');
RESET ROLE;
SELECT count(*) FROM kusto.dead_letter;

DROP OWNED BY regress_kusto_owner, regress_kusto_other, regress_kusto_monitor;
DROP ROLE regress_kusto_owner, regress_kusto_other, regress_kusto_monitor;
