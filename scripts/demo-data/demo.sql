\set engine_uri `echo "$KUSTO_ENGINE_URI"`
\set ingest_uri `echo "$KUSTO_INGEST_URI"`
\set tenant `echo "$KUSTO_TENANT"`
\set client_id `echo "$KUSTO_CLIENT_ID"`
\set client_secret `echo "$KUSTO_CLIENT_SECRET"`
\pset footer off
\pset pager off
\set ECHO all

-- 1. Say where Kusto is and who we are.

CREATE EXTENSION kusto_ingest;

CREATE SERVER adx FOREIGN DATA WRAPPER kusto
    OPTIONS (cluster :'engine_uri', ingest_uri :'ingest_uri', database 'demo');

CREATE USER MAPPING FOR CURRENT_USER SERVER adx
    OPTIONS (auth 'client_secret', tenant :'tenant', client_id :'client_id',
             client_secret :'client_secret');

SELECT step, ok, round(milliseconds) AS ms FROM kusto_test_connection();

-- 2. Export a table. Kusto gets a table of fitting types.

SELECT * FROM weather LIMIT 3;

SELECT kusto_ingest('SELECT * FROM weather', 'demo', 'Weather', create_table => true) AS operation \gset

SELECT :'operation' AS operation, kusto_wait(:'operation');

SELECT * FROM kusto_query('Weather | count', 'demo');

SELECT * FROM kusto_query('Weather | summarize days = count(), warmest = max(temp_max) by location', 'demo');

-- 3. Any query will do, and any type: here jsonb, an array, and timestamps with time zone.

SELECT kusto_ingest('SELECT id, happened_at, magnitude, place, longitude_latitude, properties FROM earthquakes',
                    'demo', 'Earthquakes', create_table => true) AS operation \gset

SELECT :'operation' AS operation, kusto_wait(:'operation');

SELECT * FROM kusto_query('Earthquakes | top 3 by magnitude | project happened_at, magnitude, place', 'demo');

-- 4. It is part of the transaction: flights go to Kusto if, and only if, they leave PostgreSQL.

BEGIN;
SELECT kusto_ingest('DELETE FROM flights WHERE delay > interval ''2 hours'' RETURNING *',
                    'demo', 'Flights', create_table => true) AS undone \gset
ROLLBACK;

BEGIN;
SELECT kusto_ingest('DELETE FROM flights WHERE delay <= interval ''2 hours'' RETURNING *',
                    'demo', 'Flights', create_table => true) AS operation \gset
COMMIT;

SELECT :'operation' AS operation, kusto_wait(:'operation');

SELECT count(*) AS left_in_postgresql FROM flights;

SELECT * FROM kusto_query('Flights | summarize flights = count(), longest_delay = max(delay)', 'demo');

-- 5. Row changes: from now on each transaction that changes the table tells Kusto, when it commits.

CREATE TABLE orders (id int PRIMARY KEY, state text, amount numeric(10, 2));

SELECT kusto_capture('orders', 'demo', 'OrdersChanges', create_table => true);

INSERT INTO orders SELECT i, 'new', i * 10 FROM generate_series(1, 3) i;
UPDATE orders SET state = 'paid' WHERE id = 1;
DELETE FROM orders WHERE id = 2;

BEGIN;
UPDATE orders SET state = 'lost';
ROLLBACK;

SELECT kusto_flush('1 min');

SELECT * FROM kusto_query('OrdersChanges | order by _seq asc, id asc | project _op, id, state, amount', 'demo');

SELECT relation, triggers, state, sent_rows, lag_rows, last_batch_mode FROM kusto.captures;

-- 6. What happened, in SQL.

SELECT id, table_name, state, rows, blobs, raw_bytes, compressed_bytes, finished_at - created_at AS took
FROM kusto.operations ORDER BY created_at;

\x on
SELECT * FROM kusto.operations WHERE id = :'operation';
