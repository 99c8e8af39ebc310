\set ECHO none
-- The files of one run share a database.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS kusto_ingest;
RESET client_min_messages;
\set ECHO all
