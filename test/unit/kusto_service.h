/*
 * kusto_service.h
 *	  The rules that make http_server.h answer like a Kusto cluster with two
 *	  storage accounts, all on one port.  Tests put their faults in front.
 */
#ifndef KC_TEST_KUSTO_SERVICE_H
#define KC_TEST_KUSTO_SERVICE_H

#include "core/kusto.h"
#include "harness.h"
#include "http_server.h"

#define SERVICE_METADATA \
	"{\"AzureAD\":{\"LoginEndpoint\":\"$ORIGIN\",\"KustoServiceResourceId\":\"https://kusto.example\"}}"

#define SERVICE_TOKEN "{\"expires_in\":3600,\"access_token\":\"bearer-secret-1\"}"

#define SERVICE_TABLE(columns, rows) \
	"{\"Tables\":[{\"TableName\":\"Table_0\",\"Columns\":[" columns "],\"Rows\":[" rows "]}]}"

#define SERVICE_COLUMN(name, type) "{\"ColumnName\":\"" name "\",\"ColumnType\":\"" type "\"}"

/* SAS of the tests: a signature to look for in errors. */
#define SERVICE_SAS "sv=2020-10-02&se=2099-01-01T00%3A00%3A00Z&sp=rwd&sig=SaSsEcReT%2B%3D"

/* Another one, as a later answer may give. */
#define SERVICE_SAS_2 "sv=2021-12-02&se=2099-01-01T00%3A00%3A00Z&sp=rwd&sig=SaSsEcReT2"

#define SERVICE_RESOURCE(type, path, sas) "[\"" type "\",\"$ORIGIN" path "?" sas "\"]"

#define SERVICE_RESOURCES_WITH(sas) \
	SERVICE_TABLE( \
		SERVICE_COLUMN("ResourceTypeName", "string") "," SERVICE_COLUMN("StorageRoot", "string"), \
		SERVICE_RESOURCE("SomethingNew", "/acct1/new", sas) "," \
		SERVICE_RESOURCE("TempStorage", "/acct1/c1", sas) "," \
		SERVICE_RESOURCE("TempStorage", "/acct1/c2", sas) "," \
		SERVICE_RESOURCE("tempstorage", "/acct2/c3", sas) "," \
		SERVICE_RESOURCE("SecuredReadyForAggregationQueue", "/acct1/q1", sas) "," \
		SERVICE_RESOURCE("SecuredReadyForAggregationQueue", "/acct2/q2", sas) "," \
		SERVICE_RESOURCE("FailedIngestionsQueue", "/acct1/failed", sas) "," \
		SERVICE_RESOURCE("IngestionsStatusTable", "/acct1/status1", sas) "," \
		SERVICE_RESOURCE("IngestionsStatusTable", "/acct2/status2", sas))

#define SERVICE_RESOURCES SERVICE_RESOURCES_WITH(SERVICE_SAS)

#define SERVICE_IDENTITY \
	SERVICE_TABLE(SERVICE_COLUMN("AuthorizationContext", "string"), "[\"identity-secret-1\"]")

static void TAP_UNUSED
service_rules(Server *server)
{
	server_clear(server);
	server_rule(server, (ServerRule) {.method = "GET",.target = "/v1/rest/auth/metadata",.body = SERVICE_METADATA});
	server_rule(server, (ServerRule) {.method = "POST",.target = "/oauth2/v2.0/token",.body = SERVICE_TOKEN});
	server_rule(server, (ServerRule) {.target = "/v1/rest/mgmt",.body_part = ".get ingestion resources",
				.body = SERVICE_RESOURCES});
	server_rule(server, (ServerRule) {.target = "/v1/rest/mgmt",.body_part = ".get kusto identity token",
				.body = SERVICE_IDENTITY});
	server_rule(server, (ServerRule) {.method = "PUT",.target = "/acct",.status = 201});
	server_rule(server, (ServerRule) {.method = "DELETE",.target = "/acct",.status = 202});
	server_rule(server, (ServerRule) {.method = "POST",.target = "/messages?",.status = 201,
				.body = "<?xml version=\"1.0\"?><QueueMessagesList/>"});
	server_rule(server, (ServerRule) {.method = "POST",.target = "/status",.status = 204});
}

static KcClientConfig TAP_UNUSED
service_config(const Server *server)
{
	return (KcClientConfig) {
		.engine_uri = server->origin,.ingest_uri = server->origin,.auth = KC_AUTH_CLIENT_SECRET,
			.tenant = "tenant",.client_id = "app",.client_secret = "client-secret-1",
			.application = "kusto_ingest",.version = "1.0",.user = "al\xc3\xaf" "ce",
			.connect_timeout_ms = 5000,.request_timeout_ms = 5000,.stall_timeout_ms = 5000,
			.retry_total_ms = 0		/* back-off takes no time here: tries bound it */
	};
}

static TAP_UNUSED KcClient *
service_client(Harness *h, const Server *server)
{
	KcClientConfig config = service_config(server);
	KcClient   *client;
	KcError		err;

	must(kc_client_create(&kc_alloc_malloc, h->mux, &config, &client, &err) == KC_OK);
	return client;
}

/* No secret of these tests may stand in an error. */
static bool TAP_UNUSED
service_keeps_secrets(const KcError *err)
{
	static const char *const secrets[] = {
		"bearer-secret-1", "identity-secret-1", "client-secret-1", "SaSsEcReT",
	};

	for (size_t i = 0; i < sizeof(secrets) / sizeof(secrets[0]); i++)
	{
		if (strstr(err->what, secrets[i]) || strstr(err->lib, secrets[i])
			|| strstr(err->detail, secrets[i]) || strstr(err->code, secrets[i]))
			return false;
	}
	return true;
}

#endif							/* KC_TEST_KUSTO_SERVICE_H */
