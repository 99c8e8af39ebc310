/*
 * test_kusto.c
 *	  Cluster URIs, requests to Kusto, their results and errors.
 */
#define _GNU_SOURCE
#include "core/kusto_internal.h"
#include "fail_alloc.h"
#include "kusto_service.h"

static Server server;
static Harness h;

/* ---- URIs ---- */

static void
test_derive_uris(void)
{
	static const struct
	{
		const char *cluster;
		const char *engine;
		const char *ingest;
	}			rows[] = {
		{"https://c.westeurope.kusto.windows.net", "https://c.westeurope.kusto.windows.net", "https://ingest-c.westeurope.kusto.windows.net"},
		{"https://ingest-c.westeurope.kusto.windows.net/", "https://c.westeurope.kusto.windows.net", "https://ingest-c.westeurope.kusto.windows.net"},
		{"c.westeurope.kusto.windows.net", "https://c.westeurope.kusto.windows.net", "https://ingest-c.westeurope.kusto.windows.net"},
		{"https://c.kusto.windows.net:443/db", "https://c.kusto.windows.net:443", "https://ingest-c.kusto.windows.net:443"},
		{"https://my-ingest-c.kusto.windows.net", "https://my-ingest-c.kusto.windows.net", "https://ingest-my-ingest-c.kusto.windows.net"},
		{"https://INGEST-c.kusto.windows.net", "https://c.kusto.windows.net", "https://INGEST-c.kusto.windows.net"},
		{"https://abc.z9.kusto.fabric.microsoft.com", "https://abc.z9.kusto.fabric.microsoft.com", "https://ingest-abc.z9.kusto.fabric.microsoft.com"},
		{"http://localhost:8080", "http://localhost:8080", "http://localhost:8080"},
		{"http://127.0.0.1:8080/x", "http://127.0.0.1:8080", "http://127.0.0.1:8080"},
		{"http://[::1]:8080", "http://[::1]:8080", "http://[::1]:8080"},
		{"https://10.1.2.3", "https://10.1.2.3", "https://10.1.2.3"},
	};
	KcBuf		engine;
	KcBuf		ingest;
	KcError		err;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
	{
		kc_buf_init(&engine, &kc_alloc_malloc, 1000);
		kc_buf_init(&ingest, &kc_alloc_malloc, 1000);
		is(kc_kusto_derive_uris(kc_slice(rows[i].cluster), &engine, &ingest, &err), KC_OK, rows[i].cluster);
		is_slice(kc_buf_view(&engine), rows[i].engine, "its engine");
		is_slice(kc_buf_view(&ingest), rows[i].ingest, "its ingestion service");
		kc_buf_free(&engine);
		kc_buf_free(&ingest);
	}
	kc_buf_init(&engine, &kc_alloc_malloc, 1000);
	kc_buf_init(&ingest, &kc_alloc_malloc, 1000);
	ok(kc_kusto_derive_uris(kc_slice(""), &engine, &ingest, &err) != KC_OK, "an empty cluster");
	ok(kc_kusto_derive_uris(kc_slice("https://a b"), &engine, &ingest, &err) != KC_OK, "a blank");
	kc_buf_free(&engine);
	kc_buf_free(&ingest);
}

static void
test_trusted_hosts(void)
{
	static const char *const own[] = {"corp.example", ".suffix.example", NULL};
	static const char *const trusted[] = {
		"c.westeurope.kusto.windows.net", "ingest-c.KUSTO.windows.net", "x.z1.kusto.fabric.microsoft.com",
		"c.kusto.usgovcloudapi.net", "c.kusto.chinacloudapi.cn", "adx.monitor.azure.com", "localhost",
		"127.0.0.1", "::1", "corp.example", "kusto.corp.example", "a.suffix.example",
	};
	static const char *const untrusted[] = {
		"kusto.windows.net", "evilkusto.windows.net", "c.kusto.windows.net.evil.example", "evil.example",
		"evilcorp.example", "suffix.example", "10.0.0.1", "", "localhost.evil.example",
		"x.adx.monitor.azure.com",
	};

	for (size_t i = 0; i < sizeof(trusted) / sizeof(trusted[0]); i++)
		ok(kc_kusto_host_trusted(kc_slice(trusted[i]), own), "%s is trusted", trusted[i]);
	for (size_t i = 0; i < sizeof(untrusted) / sizeof(untrusted[0]); i++)
		ok(!kc_kusto_host_trusted(kc_slice(untrusted[i]), own), "%s is not", untrusted[i]);
	ok(!kc_kusto_host_trusted(kc_slice("corp.example"), NULL), "without a list, only the well-known");
}

static void
test_create(void)
{
	static const struct
	{
		const char *engine;
		const char *ingest;
		KcAdvice	advice;
	}			refused[] = {
		{"https://evil.example", "https://ingest-c.kusto.windows.net", KC_ADVICE_UNTRUSTED_HOST},
		{"https://c.kusto.windows.net", "https://evil.example", KC_ADVICE_UNTRUSTED_HOST},
		{"http://c.kusto.windows.net", "https://ingest-c.kusto.windows.net", KC_ADVICE_NONE},
		{"https://u:p@c.kusto.windows.net", "https://ingest-c.kusto.windows.net", KC_ADVICE_NONE},
	};
	KcClientConfig config = service_config(&server);
	KcClient   *client;
	static const char *const trusted[] = {".login.example", NULL};
	static const struct
	{
		const char *authority;
		bool		loopback;	/* the cluster */
		const char *const *trusted;
		bool		fine;
	}			authorities[] = {
		{"https://login.microsoftonline.us", false, NULL, true},
		{"https://evil.example", false, NULL, false},
		{"https://evil.example", true, NULL, false},
		{"https://evil.kusto.windows.net", false, NULL, false},
		{"https://a.login.example", false, trusted, true},
		{"http://a.login.example", false, trusted, false},
		{"http://127.0.0.1:8080", true, NULL, true},
		{"http://127.0.0.1:8080", false, NULL, false},
	};
	KcError		err;
	FailAlloc	fa;

	service_rules(&server);
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
	{
		config.engine_uri = refused[i].engine;
		config.ingest_uri = refused[i].ingest;
		is(kc_client_create(&kc_alloc_malloc, h.mux, &config, &client, &err), KC_ERR_INVALID,
		   refused[i].engine);
		is(err.advice, refused[i].advice, "with advice");
	}
	config = service_config(&server);
	config.authority = "http://login.microsoftonline.com";
	is(kc_client_create(&kc_alloc_malloc, h.mux, &config, &client, &err), KC_ERR_INVALID,
	   "an authority without TLS");
	for (size_t i = 0; i < sizeof(authorities) / sizeof(authorities[0]); i++)
	{
		config = service_config(&server);
		if (!authorities[i].loopback)
		{
			config.engine_uri = "https://c.kusto.windows.net";
			config.ingest_uri = "https://ingest-c.kusto.windows.net";
		}
		config.authority = authorities[i].authority;
		config.trusted_hosts = authorities[i].trusted;
		is(kc_client_create(&kc_alloc_malloc, h.mux, &config, &client, &err),
		   authorities[i].fine ? KC_OK : KC_ERR_INVALID, authorities[i].authority);
		if (!authorities[i].fine)
			ok(err.permanent && err.advice == (strncmp(config.authority, "https", 5) == 0
											   ? KC_ADVICE_UNTRUSTED_HOST : KC_ADVICE_CHECK_AUTHORITY),
			   "with advice");
		kc_client_free(client);
	}
	is(server_count(&server, NULL, NULL), 0, "nothing was sent for any of these");

	config = service_config(&server);
	for (int n = 1;; n++)
	{
		KcStatus	status;

		fail_alloc_init(&fa, n);
		status = kc_client_create(&fa.alloc, h.mux, &config, &client, &err);
		kc_client_free(status == KC_OK ? client : NULL);
		if (!fa.has_failed)
			break;
		ok(status == KC_ERR_NOMEM && fa.live == 0, "out of memory at request %d", n);
	}
}

/* ---- requests ---- */

static KcStatus
run(KcClient *client, KcKustoEndpoint endpoint, bool readonly, KcRequestTask **task)
{
	KcError		err;

	must(kc_kusto_request_start(client, endpoint, kc_slice("my \"db\""), kc_slice("T | where a == '\n'"),
								readonly, 1 << 20, task, &err) == KC_OK);
	ok(!(*task)->task.done, "a task is not done before its first drive");
	(void) harness_until(&h, &(*task)->task.done);
	return (*task)->task.error.status;
}

#define V2_FRAMES(rows, completion) \
	"[{\"FrameType\":\"DataSetHeader\",\"IsProgressive\":false,\"Version\":\"v2.0\"}," \
	"{\"FrameType\":\"DataTable\",\"TableId\":0,\"TableKind\":\"QueryProperties\",\"TableName\":\"@x\"," \
	"\"Columns\":[" SERVICE_COLUMN("k", "string") "],\"Rows\":[[\"v\"]]}," \
	"{\"FrameType\":\"DataTable\",\"TableId\":1,\"TableKind\":\"PrimaryResult\",\"TableName\":\"PrimaryResult\"," \
	"\"Columns\":[" SERVICE_COLUMN("a", "long") "," SERVICE_COLUMN("b", "string") "],\"Rows\":[" rows "]}," \
	"{\"FrameType\":\"DataSetCompletion\"," completion "}]"

static void
test_request(void)
{
	KcClient   *client = service_client(&h, &server);
	KcRequestTask *task;
	const ServerRequest *seen;
	const char *id;

	service_rules(&server);
	server_rule(&server, (ServerRule) {.target = "/v2/rest/query",.body =
				V2_FRAMES("[1,\"x\"],[null,\"\\u00e9\"]", "\"HasErrors\":false,\"Cancelled\":false")});
	server_rule(&server, (ServerRule) {.target = "/v1/rest/mgmt",.body =
				"{\"Tables\":[{\"TableName\":\"t\",\"Columns\":[{\"ColumnName\":\"n\",\"DataType\":\"Int64\"}],\"Rows\":[]}]}"});
	is(run(client, KC_ENDPOINT_ENGINE_QUERY, true, &task), KC_OK, "a query succeeds");
	is(kc_result_ncolumns(task->result), 2, "columns of the primary result");
	is_slice(kc_result_column_name(task->result, 0), "a", "name");
	is_slice(kc_result_column_type(task->result, 0), "long", "type");
	ok(kc_result_next(task->result), "first row");
	is_slice(kc_result_value(task->result, 0).raw, "1", "number");
	is_slice(kc_result_value(task->result, 1).raw, "\"x\"", "string");
	ok(kc_result_next(task->result), "second row");
	is(kc_result_value(task->result, 0).type, KC_JSON_NULL, "null");
	ok(!kc_result_next(task->result) && !kc_result_next(task->result), "no third one");
	kc_task_free(&task->task);

	seen = server_nth(&server, "POST", "/v2/rest/query", 0);
	is_str(server_header(seen, "Authorization"), "Bearer bearer-secret-1", "the token");
	is_str(server_header(seen, "Accept"), "application/json", "Accept");
	is_str(server_header(seen, "Content-Type"), "application/json; charset=utf-8", "Content-Type");
	is_str(server_header(seen, "x-ms-version"), "2024-12-12", "x-ms-version");
	is_str(server_header(seen, "x-ms-app"), "kusto_ingest", "x-ms-app");
	is_str(server_header(seen, "x-ms-user"), "al??ce", "x-ms-user in ASCII");
	is_str(server_header(seen, "x-ms-client-version"), "Kusto.kusto_ingest.Client:{1.0}", "x-ms-client-version");
	is_str(server_header(seen, "x-ms-readonly"), "true", "x-ms-readonly");
	id = server_header(seen, "x-ms-client-request-id");
	ok(id != NULL && strncmp(id, "KPGX.execute_query;", 19) == 0 && strlen(id) == 19 + KC_UUID_TEXT_LEN,
	   "x-ms-client-request-id");
	is_str(seen->body, "{\"db\":\"my \\\"db\\\"\",\"csl\":\"T | where a == '\\n'\",\"properties\":"
		   "{\"Options\":{\"results_progressive_enabled\":false,\"servertimeout\":\"00:00:05\"}}}", "the body");

	is(run(client, KC_ENDPOINT_ENGINE_MGMT, false, &task), KC_OK, "a command succeeds");
	is_slice(kc_result_column_type(task->result, 0), "Int64", "an older column type");
	ok(!kc_result_next(task->result), "no rows");
	kc_task_free(&task->task);
	seen = server_nth(&server, "POST", "/v1/rest/mgmt", 0);
	ok(server_header(seen, "x-ms-readonly") == NULL, "a command that may change data says nothing of readonly");
	is(server_count(&server, "POST", "/oauth2"), 1, "one token served both");
	kc_client_free(client);
}

static void
test_401(void)
{
	KcClient   *client = service_client(&h, &server);
	KcRequestTask *task;

	service_rules(&server);
	server_rule(&server, (ServerRule) {.target = "/v2/rest/query",.times = 1,.status = 401});
	server_rule(&server, (ServerRule) {.target = "/v2/rest/query",.body = V2_FRAMES("", "\"HasErrors\":false")});
	is(run(client, KC_ENDPOINT_ENGINE_QUERY, true, &task), KC_OK, "after a 401 a new token helps");
	is(server_count(&server, "POST", "/oauth2"), 2, "it was fetched");
	kc_task_free(&task->task);

	server_rule_first(&server, (ServerRule) {.target = "/v2/rest/query",.status = 401,.body = "Unauthorized: bearer-secret-1"});
	is(run(client, KC_ENDPOINT_ENGINE_QUERY, true, &task), KC_ERR_AUTH, "but only once");
	is(server_count(&server, "POST", "/oauth2"), 3, "one more was fetched");
	is(task->task.error.advice, KC_ADVICE_CHECK_SECRET, "advice");
	ok(service_keeps_secrets(&task->task.error), "the token is not told");
	kc_task_free(&task->task);
	kc_client_free(client);
}

typedef struct ErrorRow
{
	const char *name;
	KcKustoEndpoint endpoint;
	int			http_status;
	const char *body;
	KcStatus	status;
	bool		permanent;
	KcAdvice	advice;
	const char *code;
	const char *detail;			/* part of it */
} ErrorRow;

#define ERROR_BODY(code, message, permanent) \
	"{\"error\":{\"code\":\"" code "\",\"message\":\"outer\",\"@type\":\"t\",\"@message\":\"" message "\"," \
	"\"@context\":{\"activityId\":\"act-1\"},\"@permanent\":" permanent "}}"

static const ErrorRow error_rows[] = {
	{"ingestion commands at an engine", KC_ENDPOINT_INGEST_MGMT, 400,
		ERROR_BODY("BadRequest_SyntaxError", "Syntax error: x", "true"),
	KC_ERR_REFUSED, true, KC_ADVICE_ENGINE_ASKED_AS_INGEST, "BadRequest_SyntaxError", "Syntax error: x"},
	{"ingestion commands at nothing", KC_ENDPOINT_INGEST_MGMT, 404, "", KC_ERR_NOT_FOUND, true,
	KC_ADVICE_ENGINE_ASKED_AS_INGEST, "", ""},
	{"a query at the ingestion service", KC_ENDPOINT_ENGINE_QUERY, 404, "<html>not found</html>",
	KC_ERR_NOT_FOUND, true, KC_ADVICE_INGEST_ASKED_AS_ENGINE, "", "not found"},
	{"no ingestor", KC_ENDPOINT_INGEST_MGMT, 403,
		ERROR_BODY("Forbidden", "Principal 'aadapp=a;t' is not authorized to perform operation 'Ingest'", "true"),
	KC_ERR_FORBIDDEN, true, KC_ADVICE_GRANT_INGESTOR, "Forbidden", "aadapp=a;t"},
	{"no user", KC_ENDPOINT_ENGINE_QUERY, 403, "", KC_ERR_FORBIDDEN, true, KC_ADVICE_GRANT_DATABASE_USER, "", ""},
	{"no admin", KC_ENDPOINT_ENGINE_MGMT, 403, "", KC_ERR_FORBIDDEN, true, KC_ADVICE_GRANT_DATABASE_ADMIN, "", ""},
	{"no database", KC_ENDPOINT_ENGINE_QUERY, 400,
		ERROR_BODY("BadRequest_EntityNotFound", "Database 'x' could not be found", "true"),
	KC_ERR_REFUSED, true, KC_ADVICE_DATABASE_MISSING, "BadRequest_EntityNotFound", "Database 'x'"},
	{"no table", KC_ENDPOINT_ENGINE_QUERY, 400,
		ERROR_BODY("BadRequest", "Semantic error: 'T' has the following semantic error: SEM0100: 'where' operator: Failed to resolve table or column expression named 'T'", "true"),
	KC_ERR_REFUSED, true, KC_ADVICE_TABLE_MISSING, "BadRequest", "SEM0100"},
	{"a 400 that calls itself transient", KC_ENDPOINT_ENGINE_QUERY, 400,
		ERROR_BODY("General_InternalServerError", "later", "false"),
	KC_ERR_SERVICE, false, KC_ADVICE_NONE, "General_InternalServerError", "later"},
	{"a 500 that calls itself permanent", KC_ENDPOINT_ENGINE_QUERY, 500,
		ERROR_BODY("Internal", "never", "true"), KC_ERR_SERVICE, true, KC_ADVICE_NONE, "Internal", "never"},
	{"throttled", KC_ENDPOINT_INGEST_MGMT, 429, ERROR_BODY("Throttled", "busy", "true"), KC_ERR_THROTTLED,
	false, KC_ADVICE_THROTTLED, "Throttled", "busy"},
	{"an inner error", KC_ENDPOINT_ENGINE_QUERY, 400,
		"{\"error\":{\"code\":\"BadRequest\",\"message\":\"outer\",\"@permanent\":true,"
		"\"innererror\":{\"code\":\"SEM0001\",\"message\":\"inner\"}}}",
	KC_ERR_REFUSED, true, KC_ADVICE_NONE, "SEM0001", "inner"},
	{"a list of errors", KC_ENDPOINT_ENGINE_QUERY, 400,
		"{\"OneApiErrors\":[{\"error\":{\"code\":\"C1\",\"message\":\"first\",\"@permanent\":true}},{\"error\":{}}]}",
	KC_ERR_REFUSED, true, KC_ADVICE_NONE, "C1", "first"},
	{"not JSON", KC_ENDPOINT_ENGINE_QUERY, 400, "<html>nginx</html>", KC_ERR_REFUSED, true, KC_ADVICE_NONE,
	"", "<html>nginx</html>"},
	{"520", KC_ENDPOINT_ENGINE_QUERY, 520, ERROR_BODY("ServiceError", "x", "true"), KC_ERR_SERVICE, true,
	KC_ADVICE_NONE, "ServiceError", "x"},
	/* inside a 200 */
	{"an error in a 200", KC_ENDPOINT_ENGINE_MGMT, 200, ERROR_BODY("LimitsExceeded", "too much", "true"),
	KC_ERR_REFUSED, true, KC_ADVICE_NONE, "LimitsExceeded", "too much"},
	{"exceptions in a 200", KC_ENDPOINT_ENGINE_MGMT, 200,
		"{\"Tables\":[],\"Exceptions\":[\"Query execution has exceeded the limits\"]}",
	KC_ERR_REFUSED, true, KC_ADVICE_NONE, "", "exceeded the limits"},
	{"an error among the rows", KC_ENDPOINT_ENGINE_QUERY, 200,
		V2_FRAMES("[1,\"x\"],{\"OneApiErrors\":[{\"error\":{\"code\":\"E1\",\"message\":\"mid\",\"@permanent\":false}}]}", "\"HasErrors\":false"),
	KC_ERR_SERVICE, false, KC_ADVICE_NONE, "E1", "mid"},
	{"a completion with errors", KC_ENDPOINT_ENGINE_QUERY, 200,
		V2_FRAMES("", "\"HasErrors\":true,\"OneApiErrors\":[{\"error\":{\"code\":\"E2\",\"message\":\"end\",\"@permanent\":true}}]"),
	KC_ERR_REFUSED, true, KC_ADVICE_NONE, "E2", "end"},
	{"an empty 200", KC_ENDPOINT_ENGINE_MGMT, 200, "", KC_ERR_PROTOCOL, true, KC_ADVICE_NOT_KUSTO, "", ""},
	{"a web page", KC_ENDPOINT_ENGINE_QUERY, 200, "<html>hello</html>", KC_ERR_PROTOCOL, true, KC_ADVICE_NOT_KUSTO, "", ""},
	{"no tables", KC_ENDPOINT_ENGINE_MGMT, 200, "{\"Tables\":[]}", KC_ERR_PROTOCOL, true, KC_ADVICE_NOT_KUSTO, "", ""},
	{"a short row", KC_ENDPOINT_ENGINE_QUERY, 200, V2_FRAMES("[1]", "\"HasErrors\":false"), KC_ERR_PROTOCOL, true,
	KC_ADVICE_NOT_KUSTO, "", ""},
	{"no completion", KC_ENDPOINT_ENGINE_QUERY, 200, "[{\"FrameType\":\"DataSetHeader\"}]", KC_ERR_PROTOCOL, true,
	KC_ADVICE_NOT_KUSTO, "", ""},
	{"no columns", KC_ENDPOINT_ENGINE_MGMT, 200, "{\"Tables\":[{\"Rows\":[]}]}", KC_ERR_PROTOCOL, true,
	KC_ADVICE_NOT_KUSTO, "", ""},
};

/* The token that was sent is kept out, whatever the cache holds when the answer comes. */
static void
test_expired_token_in_error(void)
{
	KcClient   *client = service_client(&h, &server);
	KcRequestTask *task;
	KcError		err;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/v2/rest/query",.status = 400,.action = SERVER_DRIP,
					  .body = "{\"error\":{\"code\":\"x\",\"message\":\"odd: bearer-secret-1\"}}"});
	must(kc_kusto_request_start(client, KC_ENDPOINT_ENGINE_QUERY, KC_SLICE_NULL, kc_slice("T"), true,
								10000, &task, &err) == KC_OK);
	while (server_count(&server, NULL, "/v2/rest/query") == 0)
		harness_turn(&h, 20);
	h.moved_ms += 2 * 3600 * 1000;
	(void) harness_until(&h, &task->task.done);
	ok(strstr(task->task.error.detail, "odd") != NULL, "an answer to a token that has expired meanwhile");
	ok(service_keeps_secrets(&task->task.error), "does not tell it");
	kc_task_free(&task->task);
	kc_client_free(client);
}

static void
test_errors(void)
{
	KcClient   *client = service_client(&h, &server);

	for (size_t i = 0; i < sizeof(error_rows) / sizeof(error_rows[0]); i++)
	{
		const ErrorRow *row = &error_rows[i];
		const KcError *err;
		KcRequestTask *task;

		service_rules(&server);
		server_rule_first(&server, (ServerRule) {.target = row->endpoint == KC_ENDPOINT_ENGINE_QUERY
						  ? "/v2/rest/query" : "/v1/rest/mgmt",.status = row->http_status,.body = row->body,
						  .headers = "x-ms-activity-id: header-act\r\n"});
		is(run(client, row->endpoint, true, &task), row->status, row->name);
		err = &task->task.error;
		is(err->permanent, row->permanent, "permanent or not");
		is(err->advice, row->advice, "advice");
		is_str(err->code, row->code, "code");
		ok(strstr(err->detail, row->detail) != NULL, "detail holds \"%s\"", row->detail);
		is_str(err->activity_id, "header-act", "activity id");
		is_str(err->host, "127.0.0.1", "host");
		ok(task->result == NULL, "no result");
		kc_task_free(&task->task);
	}
	kc_client_free(client);
}

static void
test_once(void)
{
	KcClient   *client = service_client(&h, &server);
	KcRequestTask *task;
	KcError		err;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.status = 500});
	is(run(client, KC_ENDPOINT_ENGINE_MGMT, false, &task), KC_ERR_SERVICE, "a command that fails in an unclear way");
	is(server_count(&server, NULL, "/v1/rest/mgmt"), 1, "is not given twice");
	ok(task->task.error.after_send, "which is told");
	kc_task_free(&task->task);
	is(run(client, KC_ENDPOINT_ENGINE_MGMT, true, &task), KC_ERR_SERVICE, "one that only reads");
	is(server_count(&server, NULL, "/v1/rest/mgmt"), 6, "is");
	kc_task_free(&task->task);

	server_rule_first(&server, (ServerRule) {.target = "/v2/rest/query",.action = SERVER_STALL});
	must(kc_kusto_request_start(client, KC_ENDPOINT_ENGINE_QUERY, KC_SLICE_NULL, kc_slice("T"), true,
								1000, &task, &err) == KC_OK);
	kc_task_free(&task->task);
	must(kc_kusto_request_start(client, KC_ENDPOINT_ENGINE_QUERY, KC_SLICE_NULL, kc_slice("T"), true,
								1000, &task, &err) == KC_OK);
	while (server_count(&server, NULL, "/v2/rest/query") == 0)
		harness_turn(&h, 20);
	kc_task_free(&task->task);
	ok(true, "a task may be freed at any moment");
	server_rule_first(&server, (ServerRule) {.target = "/v2/rest/query",.body =
					  V2_FRAMES("[1,\"0123456789012345678901234567890123456789\"]", "\"HasErrors\":false")});
	must(kc_kusto_request_start(client, KC_ENDPOINT_ENGINE_QUERY, KC_SLICE_NULL, kc_slice("T"), true,
								300, &task, &err) == KC_OK);
	(void) harness_until(&h, &task->task.done);
	is(task->task.error.status, KC_ERR_LIMIT, "a result has its limit");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/* Every allocation on the way from the query to the result fails once. */
static void
test_out_of_memory(void)
{
	KcClientConfig config = service_config(&server);
	FailAlloc	fa;
	int			failures = 0;
	int			successes = 0;
	bool		clean = true;

	config.retry_total_ms = 1;
	for (int n = 1; n < 500; n++)
	{
		KcClient   *client = NULL;
		KcRequestTask *task = NULL;
		KcError		err;
		KcStatus	status;

		service_rules(&server);
		server_rule(&server, (ServerRule) {.target = "/v2/rest/query",.body =
					V2_FRAMES("[1,\"x\"]", "\"HasErrors\":false")});
		fail_alloc_init(&fa, n);
		status = kc_client_create(&fa.alloc, h.mux, &config, &client, &err);
		if (status == KC_OK)
			status = kc_kusto_request_start(client, KC_ENDPOINT_ENGINE_QUERY, KC_SLICE_NULL,
											kc_slice("T"), true, 1 << 20, &task, &err);
		if (status == KC_OK)
		{
			(void) harness_until(&h, &task->task.done);
			status = task->task.error.status;
		}
		if (status == KC_ERR_NOMEM)
			failures++;
		else if (status == KC_OK)
			successes++;
		else
			harness_show(&task->task.error);
		if (task != NULL)
			kc_task_free(&task->task);
		kc_client_free(client);
		if (fa.live != 0)
			clean = false;
		if (!fa.has_failed)
			break;
	}
	ok(failures > 20, "%d allocations failed, each told as such", failures);
	ok(successes >= 1, "until none did");
	ok(clean, "and nothing leaked");
}

int
main(void)
{
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_derive_uris();
	test_trusted_hosts();
	test_create();
	test_request();
	test_401();
	test_expired_token_in_error();
	test_errors();
	test_once();
	test_out_of_memory();
	harness_stop(&h);
	server_stop(&server);
	return done_testing();
}
