--
-- Options of servers and user mappings.  Nothing here talks to a network.
--
\i sql/include/extension.sql
CREATE ROLE regress_kusto_owner;
CREATE ROLE regress_kusto_reader IN ROLE pg_read_server_files;
GRANT USAGE ON FOREIGN DATA WRAPPER kusto TO regress_kusto_owner, regress_kusto_reader;

-- the wrapper itself and foreign tables have none
ALTER FOREIGN DATA WRAPPER kusto OPTIONS (ADD cluster 'x');

--
-- servers
--
CREATE SERVER s FOREIGN DATA WRAPPER kusto;
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (database 'db');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (clustre 'https://c.westeurope.kusto.windows.net');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (something_else 'x');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (client_secret 'x');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster '');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'c.westeurope.kusto.windows.net');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'ftp://c.westeurope.kusto.windows.net');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'http://c.westeurope.kusto.windows.net');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://user:password@c.westeurope.kusto.windows.net');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net/db');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net?sig=abc');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://evil.example.com');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://kusto.windows.net.example.com');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://evilkusto.windows.net');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net', ingest_uri 'https://evil.example.com');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net', authority 'http://login.example.com');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net', authority 'https://login.microsoftonline.com/contoso.com');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net', authority 'https://login.example.com');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net', authority 'https://evil.kusto.windows.net');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net', authority 'http://localhost:8080');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'http://localhost:8080', ingest_uri 'https://ingest-c.westeurope.kusto.windows.net', authority 'http://localhost:8080');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'Data Source=https://c.westeurope.kusto.windows.net;Authority Id=https://login.example.com/contoso.com');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net', ca_file 'ca.pem');

CREATE SERVER regress_kusto_a FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net/');
CREATE SERVER regress_kusto_b FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://ingest-c.westeurope.kusto.windows.net', database 'db');
CREATE SERVER regress_kusto_c FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'http://localhost:8080', proxy 'http://proxy.example.com:3128', ca_file '/etc/ssl/ca.pem');
CREATE SERVER regress_kusto_d FOREIGN DATA WRAPPER kusto OPTIONS (query_uri 'https://0123.z1.kusto.fabric.microsoft.com');
ALTER SERVER regress_kusto_d OPTIONS (DROP query_uri);
ALTER SERVER regress_kusto_d OPTIONS (ADD ingest_uri 'https://ingest-0123.z1.kusto.fabric.microsoft.com', DROP query_uri);

-- hosts that the configuration file trusts, for all sessions and the worker
ALTER SYSTEM SET kusto_ingest.trusted_hosts = 'example.com,';
ALTER SYSTEM SET kusto_ingest.trusted_hosts = 'com';
ALTER SYSTEM SET kusto_ingest.trusted_hosts = 'https://example.com';
SET kusto_ingest.trusted_hosts = '.example.org';

-- Kusto's connection strings
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'Initial Catalog=db');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'Data Source=https://evil.example.com');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'Data Source=https://c.westeurope.kusto.windows.net;Initail Catalog=db');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'Data Source=https://c.westeurope.kusto.windows.net;wrong quoting');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'Data Source=https://c.westeurope.kusto.windows.net;AppKey="a;b');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'Data Source=https://c.westeurope.kusto.windows.net;Application Client Id=1;Application Key=top-secret');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'Data Source=https://c.westeurope.kusto.windows.net;AppKey=top;secret=yes');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'Data Source=https://c.westeurope.kusto.windows.net;Authority Id=contoso.com');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'Data Source=https://c.westeurope.kusto.windows.net;User ID=me;Password=top-secret');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'Data Source=https://c.westeurope.kusto.windows.net;Server=https://d.westeurope.kusto.windows.net');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'Data Source=https://c.westeurope.kusto.windows.net/a/b');
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'https://c.westeurope.kusto.windows.net', database 'db');
CREATE SERVER regress_kusto_f FOREIGN DATA WRAPPER kusto OPTIONS (connection_string 'https://c.westeurope.kusto.windows.net/kusto');
CREATE SERVER regress_kusto_g FOREIGN DATA WRAPPER kusto OPTIONS (connection_string
  ' data source = "https://c.westeurope.kusto.windows.net" ; INITIAL CATALOG=db;Fed=true;AuthorityId=https://login.microsoftonline.com/contoso.com;');

-- files are not for everybody
SET ROLE regress_kusto_owner;
CREATE SERVER s FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net', ca_file '/etc/ssl/ca.pem');
CREATE SERVER regress_kusto_h FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net');
SET ROLE regress_kusto_reader;
CREATE SERVER regress_kusto_i FOREIGN DATA WRAPPER kusto OPTIONS (cluster 'https://c.westeurope.kusto.windows.net', ca_file '/etc/ssl/ca.pem');
RESET ROLE;

--
-- user mappings
--
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a;
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'password');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'client_certificate');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'workload_identity');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'client_secret');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'client_secret', tenant 'contoso.com');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'client_secret', tenant 'contoso.com', client_id '1');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'client_secret', tenant '../x', client_id '1', client_secret 'top-secret');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'client_secret', tenant 'contoso.com', client_id '1', client_secret '');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'client_secret', tenant 'contoso.com', client_id '1', client_secret 'top-secret', access_token 'x');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'access_token');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'access_token', access_token E'top-secret\r\nX: y');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'none', client_id '1');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'none', clientid '1');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'none', cluster 'x');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'managed_identity', identity_endpoint 'nowhere');

CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (auth 'client_secret', tenant 'contoso.com', client_id '1', client_secret 'x~+=&%/');
ALTER USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (DROP client_secret);
ALTER USER MAPPING FOR CURRENT_USER SERVER regress_kusto_a OPTIONS (SET auth 'none', DROP tenant, DROP client_id, DROP client_secret);
CREATE USER MAPPING FOR PUBLIC SERVER regress_kusto_a OPTIONS (auth 'access_token', access_token 'x');
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_b OPTIONS (auth 'managed_identity', client_id '1', identity_endpoint 'http://169.254.169.254/metadata/identity/oauth2/token');

-- the identity of this machine is not for everybody
SET ROLE regress_kusto_owner;
CREATE USER MAPPING FOR CURRENT_USER SERVER regress_kusto_h OPTIONS (auth 'managed_identity');
RESET ROLE;
CREATE USER MAPPING FOR regress_kusto_owner SERVER regress_kusto_h OPTIONS (auth 'managed_identity');
GRANT EXECUTE ON FUNCTION kusto_query TO regress_kusto_owner;
SET ROLE regress_kusto_owner;
ALTER USER MAPPING FOR CURRENT_USER SERVER regress_kusto_h OPTIONS (ADD client_id '2');
-- neither for a server whose owner is not a superuser
SELECT kusto_query('print 1', server => 'regress_kusto_h');
RESET ROLE;
REVOKE EXECUTE ON FUNCTION kusto_query FROM regress_kusto_owner;

SELECT srvname, srvoptions FROM pg_foreign_server WHERE srvname LIKE 'regress_kusto%' ORDER BY 1;

SET client_min_messages = warning;
DROP SERVER regress_kusto_a, regress_kusto_b, regress_kusto_c, regress_kusto_d,
  regress_kusto_f, regress_kusto_g, regress_kusto_h, regress_kusto_i CASCADE;
REVOKE USAGE ON FOREIGN DATA WRAPPER kusto FROM regress_kusto_owner, regress_kusto_reader;
DROP ROLE regress_kusto_owner, regress_kusto_reader;
RESET client_min_messages;

--
-- configuration parameters (the words of errors differ between versions)
--
\set VERBOSITY sqlstate
SET kusto_ingest.max_blob_size = '100kB';
SET kusto_ingest.max_blob_size = '5GB';
SET kusto_ingest.max_blob_size = '1GB';
SHOW kusto_ingest.max_blob_size;
SET kusto_ingest.compression_level = 0;
SET kusto_ingest.naptime = '1s';
SELECT name, setting, unit, context FROM pg_settings WHERE name LIKE 'kusto\_ingest.%' AND name NOT LIKE '%naptime' AND context <> 'internal' ORDER BY name COLLATE "C";
