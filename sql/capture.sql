--
-- kusto_capture(), kusto_uncapture(), kusto_capture_views() and kusto.captures, as
-- far as nothing is sent: no Kusto is needed.  t/420 and later show that it works.
--
\i sql/include/extension.sql
CREATE SERVER regress_kusto FOREIGN DATA WRAPPER kusto
  OPTIONS (query_uri 'http://127.0.0.1:1', ingest_uri 'http://127.0.0.1:1', authority 'http://127.0.0.1:1', database 'telemetry');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto
  OPTIONS (auth 'client_secret', tenant '00000000-0000-0000-0000-000000000001',
    client_id '00000000-0000-0000-0000-000000000002', client_secret 'nobody asks');
-- what kusto_capture() has made, without the origin, which is each cluster's own
CREATE VIEW regress_triggers AS
  SELECT tgrelid::regclass AS relation, tgname AS name, tgenabled AS enabled,
    regexp_replace(pg_get_triggerdef(oid), 'origin=[0-9]+/[0-9]+', 'origin=...') AS definition,
    obj_description(oid, 'pg_trigger') AS comment
  FROM pg_trigger WHERE tgfoid = 'kusto_capture_changes()'::regprocedure AND tgparentid = 0
  ORDER BY tgrelid::regclass::text, oid;
-- ids of captures are the next ones of a sequence
CREATE FUNCTION regress_without_id(name) RETURNS text LANGUAGE sql
  AS $$SELECT regexp_replace($1, '^Kusto_capture_[0-9]+_', 'Kusto_capture_N_')$$;
CREATE TABLE regress_events (id bigint PRIMARY KEY, at timestamptz, note text, amount numeric(10,2));

-- what monitoring queries may rely on
\d kusto.captures
SELECT attname AS column FROM pg_attribute
WHERE attrelid = 'kusto.captures'::regclass AND col_description(attrelid, attnum) IS NULL AND attnum > 0
  AND attname IN ('relation', 'triggers', 'state', 'lag_rows', 'lag', 'sent_rows', 'last_error');

-- arguments
SELECT kusto_capture(NULL, 'telemetry', 'Events');
SELECT kusto_capture('regress_missing', 'telemetry', 'Events');
SELECT kusto_capture(1::oid::regclass, 'telemetry', 'Events');
SELECT kusto_capture('regress_events', 'telemetry', NULL);
SELECT kusto_capture('regress_events', 'telemetry', '');
SELECT kusto_capture('regress_events', 'telemetry', 'Events''); .drop');
SELECT kusto_capture('regress_events', '', 'Events');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', server => 'regress_none');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', events => NULL);
SELECT kusto_capture('regress_events', 'telemetry', 'Events', events => '{}');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', events => '{insert,NULL}');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', events => '{insert,updates}');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', events => '{merge}');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', events => '{insert,insert}');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', events => '{{insert},{update}}');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', columns => '{}');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', columns => '{id,missing}');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', columns => '{id,xmin}');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', columns => '{id,at,id}');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', columns => '{at,note}');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', columns => ARRAY['id', NULL]);
SELECT kusto_capture('regress_events', 'telemetry', 'Events', old_values => NULL);
SELECT kusto_capture('regress_events', 'telemetry', 'Events', snapshot => NULL);
SELECT kusto_capture('regress_events', 'telemetry', 'Events', create_table => NULL);
SELECT kusto_capture('regress_events', 'telemetry', 'Events', replicated => NULL);
SELECT kusto_capture('regress_events', 'telemetry', 'Events', on_type_error => NULL);
SELECT kusto_capture('regress_events', 'telemetry', 'Events', on_type_error => 'nul');
BEGIN READ ONLY;
SELECT kusto_capture('regress_events', 'telemetry', 'Events');
ROLLBACK;
SELECT count(*) FROM regress_triggers;

-- names of columns
CREATE TABLE regress_names ("_op" int, b int);
SELECT kusto_capture('regress_names', 'telemetry', 'Names');
SELECT kusto_capture('regress_names', 'telemetry', 'Names', columns => '{b}', old_values => true, create_table => true);
SELECT kusto_uncapture('regress_names');
ALTER TABLE regress_names RENAME "_op" TO "_old";
SELECT kusto_capture('regress_names', 'telemetry', 'Names', old_values => true);
SELECT kusto_capture('regress_names', 'telemetry', 'Names2');
SELECT kusto_uncapture('regress_names');
ALTER TABLE regress_names RENAME "_old" TO "a'b";
SELECT kusto_capture('regress_names', 'telemetry', 'Names2');

-- what cannot be captured
CREATE VIEW regress_view AS SELECT 1 AS a;
CREATE MATERIALIZED VIEW regress_matview AS SELECT 1 AS a;
CREATE TEMP TABLE regress_temp (a int);
CREATE SEQUENCE regress_sequence;
SELECT kusto_capture('regress_view', 'telemetry', 'T');
SELECT kusto_capture('regress_matview', 'telemetry', 'T');
SELECT kusto_capture('regress_temp', 'telemetry', 'T');
SELECT kusto_capture('regress_sequence', 'telemetry', 'T');
SELECT kusto_capture('regress_events_pkey', 'telemetry', 'T');
SELECT kusto_capture('pg_class', 'telemetry', 'T');
SELECT kusto_capture('kusto.operation', 'telemetry', 'T');
SELECT kusto_capture('kusto.outbox_0', 'telemetry', 'T');

-- a plain table: statement triggers with transition tables
SELECT kusto_capture('regress_events', 'telemetry', 'Events');
SELECT regress_without_id(name) AS name, enabled, comment,
  replace(definition, quote_ident(name), 'N') AS definition FROM regress_triggers;
SELECT relation, owner = CURRENT_USER AS mine, server, database, table_name, columns, old_values, events, triggers, state,
  lag_rows, lag_bytes, lag, last_batch_at, sent_rows, sent_bytes, last_error, snapshot_operation, ended_at
FROM kusto.captures WHERE relation = 'regress_events'::regclass;
SELECT * FROM kusto_capture_views('regress_events');

-- again: the triggers follow, and nothing is told twice
SELECT kusto_capture('regress_events', 'telemetry', 'Events', events => '{insert,delete}', columns => '{id,note}', replicated => true);
SELECT regress_without_id(name) AS name, enabled, replace(definition, quote_ident(name), 'N') AS definition FROM regress_triggers;
SELECT columns, events, triggers, state FROM kusto.captures WHERE relation = 'regress_events'::regclass;
SELECT kusto_capture('regress_events', 'telemetry', 'Events', old_values => true);
-- to another table, too; the database is the server's
SELECT kusto_capture('regress_events', NULL, 'Events2', old_values => true, create_table => true, on_type_error => 'string',
  columns => '{id,amount}');
SELECT regress_without_id(name) AS name, replace(definition, quote_ident(name), 'N') AS definition
FROM regress_triggers WHERE definition LIKE '%Events2%' AND name LIKE '%insert';
SELECT database, table_name, columns, old_values, triggers FROM kusto.captures WHERE relation = 'regress_events'::regclass ORDER BY 2;
SELECT name, command FROM kusto_capture_views('regress_events') WHERE purpose LIKE 'the table%';

-- disabled triggers are seen
ALTER TABLE regress_events DISABLE TRIGGER ALL;
SELECT table_name, triggers FROM kusto.captures WHERE relation = 'regress_events'::regclass ORDER BY 1;
DO $$DECLARE t name; BEGIN
  FOR t IN SELECT name FROM regress_triggers LOOP
    EXECUTE format('ALTER TABLE regress_events ENABLE REPLICA TRIGGER %I', t);
  END LOOP;
END$$;
SELECT table_name, triggers FROM kusto.captures WHERE relation = 'regress_events'::regclass ORDER BY 1;
ALTER TABLE regress_events ENABLE TRIGGER ALL;
SELECT name AS a_trigger FROM regress_triggers WHERE definition LIKE '%Events2%' LIMIT 1 \gset
ALTER TABLE regress_events DISABLE TRIGGER :"a_trigger";
SELECT table_name, triggers FROM kusto.captures WHERE relation = 'regress_events'::regclass ORDER BY 1;
BEGIN;
DROP TRIGGER :"a_trigger" ON regress_events;
SELECT table_name, triggers, cardinality(events) FROM kusto.captures WHERE relation = 'regress_events'::regclass ORDER BY 1;
ROLLBACK;

-- giving it up
SELECT kusto_uncapture(NULL);
SELECT kusto_uncapture('regress_events', table_name => 'Events3');
SELECT kusto_uncapture('regress_events', 'telemetry', 'Events2');
SELECT table_name, state, triggers FROM kusto.captures WHERE relation = 'regress_events'::regclass AND ended_at IS NULL;
BEGIN;
SELECT kusto_uncapture('regress_events');
SELECT count(*) FROM regress_triggers;
SELECT table_name, state, triggers FROM kusto.captures WHERE table_name = 'Events';
ROLLBACK;
SELECT table_name, state, triggers FROM kusto.captures WHERE table_name = 'Events';
SELECT kusto_uncapture('regress_events');
SELECT kusto_uncapture('regress_events');
SELECT kusto_capture_views('regress_events');
SELECT kusto_capture_views(NULL);

-- triggers made by hand belong to it
CREATE TRIGGER mine AFTER INSERT ON regress_events REFERENCING NEW TABLE AS n FOR EACH STATEMENT
  EXECUTE FUNCTION kusto_capture_changes('telemetry', 'Events');
SELECT kusto_capture('regress_events', 'telemetry', 'Events', create_table => true);
SELECT regress_without_id(name) AS name FROM regress_triggers;
CREATE TRIGGER mine AFTER INSERT ON regress_events REFERENCING NEW TABLE AS n FOR EACH STATEMENT
  EXECUTE FUNCTION kusto_capture_changes('telemetry', 'Events');
SELECT kusto_uncapture('regress_events');
SELECT count(*) FROM regress_triggers;

-- partitions: row triggers, once
CREATE TABLE regress_parts (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE regress_parts_1 PARTITION OF regress_parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE regress_parts_2 PARTITION OF regress_parts FOR VALUES FROM ('2021-01-01') TO ('2022-01-01') PARTITION BY LIST (id);
CREATE TABLE regress_parts_2_1 PARTITION OF regress_parts_2 FOR VALUES IN (1);
SELECT kusto_capture('regress_parts_2_1', 'telemetry', 'Parts', create_table => true);
SELECT kusto_capture('regress_parts', 'telemetry', 'Parts', create_table => true);
SELECT kusto_uncapture('regress_parts_2_1');
SELECT kusto_capture('regress_parts', 'telemetry', 'Parts', create_table => true);
SELECT relation, regress_without_id(name) AS name, replace(definition, quote_ident(name), 'N') AS definition FROM regress_triggers;
SELECT events, triggers FROM kusto.captures WHERE relation = 'regress_parts'::regclass;
SELECT kusto_capture('regress_parts_2_1', 'telemetry', 'Parts');
SELECT kusto_capture('regress_parts_1', 'telemetry', 'Parts');
SELECT kusto_uncapture('regress_parts_1');
SELECT name AS a_trigger FROM regress_triggers WHERE name LIKE '%update' \gset
ALTER TABLE regress_parts_1 DISABLE TRIGGER :"a_trigger";
SELECT relation, triggers FROM kusto.captures WHERE relation = 'regress_parts'::regclass;
SELECT kusto_uncapture('regress_parts');

-- inheritance, foreign and unlogged tables, and one without a key
CREATE TABLE regress_parent (id int PRIMARY KEY, a int);
CREATE TABLE regress_child (b int) INHERITS (regress_parent);
SELECT kusto_capture('regress_parent', 'telemetry', 'Parent', create_table => true);
SELECT kusto_capture('regress_child', 'telemetry', 'Child', create_table => true, events => '{insert,truncate}');
CREATE UNLOGGED TABLE regress_unlogged (id int PRIMARY KEY);
SELECT kusto_capture('regress_unlogged', 'telemetry', 'Unlogged', create_table => true, events => '{insert}');
CREATE FOREIGN DATA WRAPPER regress_nothing;
CREATE SERVER regress_nowhere FOREIGN DATA WRAPPER regress_nothing;
CREATE FOREIGN TABLE regress_foreign (id int) SERVER regress_nowhere;
SELECT kusto_capture('regress_foreign', 'telemetry', 'Foreign', create_table => true, events => '{update,delete}', replicated => true);
SELECT relation, regress_without_id(name) AS name, enabled, replace(definition, quote_ident(name), 'N') AS definition FROM regress_triggers;
SELECT name FROM kusto_capture_views('regress_foreign');

-- odd names
CREATE SCHEMA "Regress Odd";
CREATE TABLE "Regress Odd"."T ""x'" ("my key" int, "Ümlaut.1-2" jsonb, "_truncated" text, PRIMARY KEY ("my key", "Ümlaut.1-2"));
SELECT kusto_capture('"Regress Odd"."T ""x''"', 'my db', 'My Table', columns => ARRAY['my key', 'Ümlaut.1-2', '_truncated'], create_table => true, events => '{insert}');
SELECT relation, replace(definition, quote_ident(name), 'N') AS definition FROM regress_triggers WHERE relation::text LIKE '%Odd%';
SELECT triggers, columns FROM kusto.captures WHERE relation = '"Regress Odd"."T ""x''"'::regclass;
SELECT * FROM kusto_capture_views('"Regress Odd"."T ""x''"');
SELECT kusto_uncapture('"Regress Odd"."T ""x''"', 'my db');

-- arguments are written as one, unless that could not be taken apart
BEGIN;
CREATE SERVER "regress;kusto" FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'http://127.0.0.1:1');
CREATE USER MAPPING FOR CURRENT_USER SERVER "regress;kusto" OPTIONS (auth 'none');
SELECT kusto_capture('regress_events', 'telemetry', 'Semicolon', 'regress;kusto', events => '{insert}', create_table => true);
SELECT replace(definition, quote_ident(name), 'N') AS definition FROM regress_triggers WHERE definition LIKE '%Semicolon%';
INSERT INTO regress_events VALUES (1);
SELECT table_name, server, triggers, events FROM kusto.captures WHERE table_name = 'Semicolon';
SELECT kusto_uncapture('regress_events', 'telemetry', 'Semicolon');
SELECT count(*) FROM regress_triggers WHERE definition LIKE '%Semicolon%';
ROLLBACK;
-- they may be so by hand
BEGIN;
CREATE TRIGGER mine AFTER INSERT ON regress_events FOR EACH ROW
  EXECUTE FUNCTION kusto_capture_changes('telemetry;Joined;regress_kusto;old_values=true;columns=id,note');
CREATE TRIGGER gone AFTER DELETE ON regress_events FOR EACH ROW
  EXECUTE FUNCTION kusto_capture_changes('telemetry;Joined');
INSERT INTO regress_events VALUES (2);
SELECT kusto_capture('regress_events', 'telemetry', 'Join', events => '{truncate}', create_table => true);
SELECT table_name, server, columns, triggers, events FROM kusto.captures WHERE table_name LIKE 'Join%' ORDER BY 1;
SELECT kusto_uncapture('regress_events', 'telemetry', 'Joined');
SELECT events FROM kusto.captures WHERE table_name LIKE 'Join%' AND ended_at IS NULL;
ROLLBACK;
BEGIN;
CREATE TRIGGER mine AFTER INSERT ON regress_events FOR EACH ROW EXECUTE FUNCTION kusto_capture_changes('telemetry;');
INSERT INTO regress_events VALUES (3);
ROLLBACK;

-- who writes to a Kusto table after others keeps the order of its columns
SELECT kusto_capture('regress_names', 'telemetry', 'Order', create_table => true, columns => '{b}');
SELECT kusto_uncapture('regress_names');
ALTER TABLE regress_names RENAME "a'b" TO a;
ALTER TABLE regress_names RENAME b TO c;
SELECT kusto_capture('regress_names', 'telemetry', 'Order', create_table => true);
SELECT command FROM kusto_capture_views('regress_names') WHERE name = 'Order';
SELECT kusto_uncapture('regress_names');
ALTER TABLE regress_names RENAME c TO b;
SELECT kusto_capture('regress_names', 'telemetry', 'Order', create_table => true);
SELECT command FROM kusto_capture_views('regress_names') WHERE name = 'Order';
SELECT columns FROM kusto.capture_shape ORDER BY id DESC LIMIT 1;
SELECT kusto_uncapture('regress_names');
SELECT kusto_capture('regress_names', 'telemetry', 'Order', old_values => true);

-- a table that is dropped ends its capture
SELECT kusto_capture('regress_names', 'telemetry', 'Names', columns => '{b}', old_values => true, create_table => true);
BEGIN;
DROP TABLE regress_names;
SELECT relation, relation_name, triggers, state FROM kusto.captures WHERE table_name = 'Names' AND ended_at IS NULL;
ROLLBACK;

-- kusto_flush(): there is nothing to wait for, and it does not wait for oneself
BEGIN;
INSERT INTO regress_unlogged VALUES (1);
SELECT kusto_flush();
ROLLBACK;
SELECT kusto_flush('-1 s');
SELECT kusto_flush('10 s');

-- who may
CREATE ROLE regress_owner;
CREATE ROLE regress_other;
CREATE ROLE regress_watcher IN ROLE pg_read_all_stats;
GRANT USAGE ON SCHEMA kusto TO regress_owner, regress_other, regress_watcher;
GRANT SELECT ON kusto.captures TO regress_owner, regress_other, regress_watcher;
GRANT CREATE ON SCHEMA public TO regress_owner;
SET ROLE regress_owner;
CREATE TABLE regress_owned (id int PRIMARY KEY);
SELECT kusto_capture('regress_owned', 'telemetry', 'Owned', create_table => true);
RESET ROLE;
GRANT EXECUTE ON FUNCTION kusto_capture(regclass, text, text, name, text[], text[], boolean, boolean, boolean, text, boolean),
  kusto_uncapture(regclass, text, text), kusto_capture_views(regclass) TO regress_owner, regress_other;
SET ROLE regress_owner;
SELECT kusto_capture('regress_owned', 'telemetry', 'Owned', create_table => true);
RESET ROLE;
GRANT EXECUTE ON FUNCTION kusto_capture_changes() TO regress_owner, regress_other;
SET ROLE regress_owner;
SELECT kusto_capture('regress_owned', 'telemetry', 'Owned', create_table => true);
SELECT kusto_capture('regress_owned', 'telemetry', 'Owned', server => 'regress_kusto', create_table => true);
RESET ROLE;
GRANT USAGE ON FOREIGN SERVER regress_kusto TO regress_owner;
SET ROLE regress_owner;
SELECT kusto_capture('regress_owned', 'telemetry', 'Owned', create_table => true);
RESET ROLE;
-- the owner's mapping counts, not the caller's
SELECT kusto_capture('regress_owned', 'telemetry', 'Owned', create_table => true);
CREATE USER MAPPING FOR regress_owner SERVER regress_kusto
  OPTIONS (auth 'client_secret', tenant '00000000-0000-0000-0000-000000000001',
    client_id '00000000-0000-0000-0000-000000000002', client_secret 'nobody asks');
SET ROLE regress_other;
SELECT kusto_capture('regress_owned', 'telemetry', 'Owned', create_table => true);
SELECT kusto_uncapture('regress_owned');
SELECT kusto_capture_views('regress_owned');
SET ROLE regress_owner;
SELECT kusto_capture('regress_owned', 'telemetry', 'Owned', create_table => true);
SELECT relation, owner, triggers, state FROM kusto.captures;
SELECT count(*) FROM kusto_capture_views('regress_owned');
SELECT count(*) FROM kusto.capture;
SET ROLE regress_other;
SELECT count(*) FROM kusto.captures;
SET ROLE regress_watcher;
SELECT count(*) > 1 AS all_of_them FROM kusto.captures;
RESET ROLE;
-- a member of the owner is one, too
GRANT regress_owner TO regress_other;
SET ROLE regress_other;
SELECT kusto_uncapture('regress_owned');
RESET ROLE;

SET client_min_messages = warning;
SELECT kusto_uncapture(relation) FROM kusto.captures WHERE ended_at IS NULL;
DROP VIEW regress_triggers;
DROP FUNCTION regress_without_id(name);
DROP TABLE regress_owned, regress_events, regress_names, regress_parts, regress_child, regress_parent, regress_unlogged;
DROP SCHEMA "Regress Odd" CASCADE;
DROP FOREIGN DATA WRAPPER regress_nothing CASCADE;
DROP VIEW regress_view;
DROP MATERIALIZED VIEW regress_matview;
DROP SEQUENCE regress_sequence;
DROP SERVER regress_kusto CASCADE;
DROP OWNED BY regress_owner, regress_other, regress_watcher;
DROP ROLE regress_owner, regress_other, regress_watcher;
