/*
 * test_kusto_schema.c
 *	  The columns of a table: that all nodes know them before rows are
 *	  streamed, and whether they are those that are expected.
 */
#define _GNU_SOURCE
#include "core/kusto_internal.h"
#include "fail_alloc.h"
#include "kusto_service.h"

#define CLEAR "cache streamingingestion schema"
#define INGEST "/v1/rest/ingest/"

static Server server;
static Harness h;

#define NODES(rows) \
	SERVICE_TABLE(SERVICE_COLUMN("NodeId", "string") "," SERVICE_COLUMN("Status", "string"), rows)
#define ALL_WELL NODES("[\"n1\",\"Succeeded\"],[\"n2\",\"Succeeded\"]")
#define ONE_FAILED NODES("[\"n1\",\"Succeeded\"],[\"n2\",\"Failed\"]")

/* ---- the nodes ---- */

static void
clear_rules(ServerRule rule)
{
	service_rules(&server);
	server_rule(&server, (ServerRule) {.target = "/v1/rest/mgmt",.body_part = CLEAR,.body = ALL_WELL});
	server_rule(&server, (ServerRule) {.target = INGEST,.body = ALL_WELL});
	rule.target = "/v1/rest/mgmt";
	rule.body_part = CLEAR;
	server_rule_first(&server, rule);
}

static KcStatus
clear(KcClient *client, KcError *err)
{
	KcTask	   *task;

	must(kc_kusto_stream_schema_start(client, kc_slice("db"), kc_slice("it's"), &task, err) == KC_OK);
	must(!task->done);
	(void) harness_until(&h, &task->done);
	*err = task->error;
	kc_task_free(task);
	return err->status;
}

static KcStreamVerdict
stream(KcClient *client, bool managed)
{
	KcStreamRequest request = {
		.database = kc_slice("db"),.table = kc_slice("it's"),.csv = kc_slice("1\n"),.managed = managed
	};
	KcStreamVerdict verdict;
	KcStreamTask *task;
	KcError		err;

	must(kc_kusto_stream_start(client, &request, &task, &err) == KC_OK);
	(void) harness_until(&h, &task->task.done);
	verdict = task->verdict;
	kc_task_free(&task->task);
	return verdict;
}

static int
asked(void)
{
	return server_count(&server, "POST", "/v1/rest/mgmt");
}

static void
test_nodes(void)
{
	static const struct
	{
		const char *name;
		ServerRule	rule;
		KcStatus	status;
		int			commands;
	}			rows[] = {
		{"all nodes well", {.body = ALL_WELL}, KC_OK, 1},
		{"one failed, once", {.body = ONE_FAILED,.times = 1}, KC_OK, 2},
		{"one failed, for ever", {.body = ONE_FAILED}, KC_ERR_SERVICE, 4},
		{"an answer is lost, once", {.action = SERVER_RESET,.times = 1}, KC_OK, 2},
		{"no right to it", {.status = 403}, KC_ERR_FORBIDDEN, 1},
		{"not known", {.status = 400,.body = "{\"error\":{\"code\":\"BadRequest\",\"message\":\"x\",\"@permanent\":true}}"}, KC_ERR_REFUSED, 1},
		{"no node says anything", {.body = NODES("")}, KC_ERR_PROTOCOL, 1},
		{"no status", {.body = SERVICE_TABLE(SERVICE_COLUMN("NodeId", "string"), "[\"n1\"]")}, KC_ERR_PROTOCOL, 1},
		{"a status that is none", {.body = NODES("[\"n1\",null]")}, KC_ERR_SERVICE, 4},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
	{
		KcClient   *client = service_client(&h, &server);
		KcError		err;

		clear_rules(rows[i].rule);
		is(clear(client, &err), rows[i].status, rows[i].name);
		is(asked(), rows[i].commands, "so many commands");
		ok(service_keeps_secrets(&err), "no secret is told");
		is(stream(client, true), rows[i].status == KC_OK ? KC_STREAM_INGESTED : KC_STREAM_QUEUE,
		   "what can be queued is streamed exactly if all nodes know the columns");
		is(stream(client, false), KC_STREAM_INGESTED, "what cannot is streamed");
		kc_client_free(client);
	}
}

static void
test_ends(void)
{
	KcClientConfig config = service_config(&server);
	int			failures = 0;
	bool		clean = true;

	for (int n = 1; n < 1000; n++)
	{
		KcClient   *client = NULL;
		KcTask	   *task = NULL;
		FailAlloc	fa;
		KcError		err;
		KcStatus	status;

		clear_rules((ServerRule) {.body = ONE_FAILED,.times = 1});
		fail_alloc_init(&fa, n);
		status = kc_client_create(&fa.alloc, h.mux, &config, &client, &err);
		if (status == KC_OK)
			status = kc_kusto_stream_schema_start(client, kc_slice("db"), kc_slice("T"), &task, &err);
		if (status == KC_OK)
		{
			/* some are cancelled under way */
			for (int i = 0; i < n % 8 * 3 && n % 2 == 1; i++)
				harness_turn(&h, 1);
			if (n % 2 == 0)
				(void) harness_until(&h, &task->done);
			status = task->error.status;
		}
		failures += status == KC_ERR_NOMEM;
		kc_task_free(task);
		kc_client_free(client);
		clean = clean && fa.live == 0;
		if (!fa.has_failed && n % 2 == 0)
			break;
	}
	ok(failures > 20, "%d allocations failed, each told as such", failures);
	ok(clean, "and nothing leaked");
}

/* ---- the columns ---- */

static const KcColumn columns[] = {{"_op", "string"}, {"a \"b\"", "long"}, {"c", "dynamic"}};

#define COLUMN(name, type) "{\\\"Name\\\":\\\"" name "\\\",\\\"Type\\\":\\\"x\\\",\\\"CslType\\\":\\\"" type "\\\"}"
#define SCHEMA(list) \
	SERVICE_TABLE(SERVICE_COLUMN("TableName", "string") "," SERVICE_COLUMN("Schema", "string"), \
				  "[\"T\",\"{\\\"Name\\\":\\\"T\\\",\\\"OrderedColumns\\\":[" list "]}\"]")
#define OP COLUMN("_op", "string")
#define AB COLUMN("a \\\\\\\"b\\\\\\\"", "long")

static void
test_columns(void)
{
	static const struct
	{
		const char *name;
		const char *answer;
		int			at;			/* -1: as expected */
		const char *found;
	}			rows[] = {
		{"the same", SCHEMA(OP "," AB "," COLUMN("c", "dynamic")), -1, ""},
		{"further ones", SCHEMA(OP "," AB "," COLUMN("c", "dynamic") "," COLUMN("d", "int")), -1, ""},
		{"another order", SCHEMA(OP "," COLUMN("c", "dynamic") "," AB), 1, "c:dynamic"},
		{"another type", SCHEMA(OP "," COLUMN("a \\\\\\\"b\\\\\\\"", "int")), 1, "a \"b\":int"},
		{"another case", SCHEMA(COLUMN("_Op", "string")), 0, "_Op:string"},
		{"one is missing", SCHEMA(OP "," AB), 2, ""},
		{"no types", SCHEMA("{\\\"Name\\\":\\\"_op\\\"},{\\\"Name\\\":\\\"x\\\"}"), 1, "x"},
		{"no columns told", SERVICE_TABLE(SERVICE_COLUMN("Schema", "string"), "[\"{}\"]"), -1, ""},
		{"no JSON", SERVICE_TABLE(SERVICE_COLUMN("Schema", "string"), "[\"a:long\"]"), -1, ""},
		{"no schema", SERVICE_TABLE(SERVICE_COLUMN("TableName", "string"), "[\"T\"]"), -1, ""},
		{"no row", SERVICE_TABLE(SERVICE_COLUMN("Schema", "string"), ""), -1, ""},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
	{
		KcResult   *result;
		KcBuf		body;
		KcBuf		found;
		KcError		err;
		bool		begins;
		int			at;

		kc_buf_init(&body, &kc_alloc_malloc, KC_BUF_UNLIMITED);
		kc_buf_init(&found, &kc_alloc_malloc, KC_BUF_UNLIMITED);
		kc_buf_str(&body, rows[i].answer);
		must(kc_result_create(&kc_alloc_malloc, &body, false, "testing", &result, &err) == KC_OK);
		begins = kc_result_begins_with_columns(result, columns, 3, &at, &found);
		is(begins ? -1 : at, rows[i].at, rows[i].name);
		is_str(found.len > 0 ? found.data : "", rows[i].found, "what is there instead");
		kc_buf_free(&found);
		kc_result_free(result);
	}
}

int
main(void)
{
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_nodes();
	test_columns();
	harness_stop(&h);
	server_stop(&server);

	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_ends();
	harness_stop(&h);
	server_stop(&server);
	return done_testing();
}
