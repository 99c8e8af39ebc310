\set ECHO none
-- The local Kusto service, whose addresses and client scripts/suites/regress gives us.
\set engine `echo "$KUSTO_ENGINE_URI"`
\set ingest `echo "$KUSTO_INGEST_URI"`
\set login `echo "$KUSTO_LOGIN_URI"`
\set tenant `echo "$KUSTO_TENANT"`
\set client_id `echo "$KUSTO_CLIENT_ID"`
\set client_secret `echo "$KUSTO_CLIENT_SECRET"`
-- How small an export's data is compressed is for each zlib to decide, and in the notice at its end.
SET client_min_messages = warning;
CREATE SERVER regress_kusto FOREIGN DATA WRAPPER kusto
  OPTIONS (query_uri :'engine', ingest_uri :'ingest', authority :'login', database 'telemetry');
\set ECHO all
