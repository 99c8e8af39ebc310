/*
 * test_kusto_direct.c
 *	  ".ingest into": the command, what its result and its failures mean, and
 *	  that its signatures stay secret.
 */
#define _GNU_SOURCE
#include "core/kusto_internal.h"
#include "fail_alloc.h"
#include "kusto_service.h"

#define INGEST ".ingest into"
#define EXTENT "b1e2c3d4-0000-4000-8000-000000000001"
#define NO_EXTENT "00000000-0000-0000-0000-000000000000"
#define OPERATION "0f0f0f0f-0000-4000-8000-000000000002"

static Server server;
static Harness h;
static char url1[128];
static char url2[128];
static KcSlice urls[2];

#define DIRECT_ANSWER(rows) \
	SERVICE_TABLE(SERVICE_COLUMN("ExtentId", "guid") "," SERVICE_COLUMN("ItemLoaded", "string") "," \
				  SERVICE_COLUMN("Duration", "timespan") "," SERVICE_COLUMN("HasErrors", "bool") "," \
				  SERVICE_COLUMN("OperationId", "guid"), rows)

#define DIRECT_ROW(extent, errors) \
	"[\"" extent "\",\"$ORIGIN/acct1/c1/a.csv.gz\",\"00:00:01\"," errors ",\"" OPERATION "\"]"

#define ERROR(code, message, permanent) \
	"{\"error\":{\"code\":\"" code "\",\"message\":\"Request failed\",\"@message\":\"" message "\"," \
	"\"@permanent\":" permanent "}}"

static void
direct_rules(void)
{
	service_rules(&server);
	server_rule(&server, (ServerRule) {.target = "/v1/rest/mgmt",.body_part = INGEST,
				.body = DIRECT_ANSWER(DIRECT_ROW(EXTENT, "false"))});
}

static void
fault(ServerRule rule)
{
	rule.target = "/v1/rest/mgmt";
	rule.body_part = INGEST;
	server_rule_first(&server, rule);
}

static KcIngestProperties
sample(void)
{
	return (KcIngestProperties) {.database = kc_slice("db"),.table = kc_slice("T")};
}

static KcDirectTask *
start(KcClient *client, const KcIngestProperties *properties)
{
	KcDirectTask *task;
	KcError		err;

	must(kc_kusto_direct_start(client, properties, urls, 2, &task, &err) == KC_OK);
	must(!task->task.done);
	return task;
}

static KcDirectTask *
run(KcClient *client, const KcIngestProperties *properties)
{
	KcDirectTask *task = start(client, properties);

	(void) harness_until(&h, &task->task.done);
	ok(service_keeps_secrets(&task->task.error), "no secret is told");
	return task;
}

/* Commands that were given. */
static int
given(void)
{
	int			n = 0;
	const ServerRequest *seen;

	for (int i = 0; (seen = server_nth(&server, "POST", "/v1/rest/mgmt", i)) != NULL; i++)
		n += strstr(seen->body, INGEST) != NULL;
	return n;
}

static const ServerRequest *
last_command(void)
{
	const ServerRequest *found = NULL;
	const ServerRequest *seen;

	for (int i = 0; (seen = server_nth(&server, "POST", "/v1/rest/mgmt", i)) != NULL; i++)
	{
		if (strstr(seen->body, INGEST) != NULL)
			found = seen;
	}
	must(found != NULL);
	return found;
}

/* ---- the command ---- */

static void
is_command(const char *expected, const char *name)
{
	KcJsonValue top;
	KcJsonValue csl;
	KcBuf		text;
	KcError		err;
	const ServerRequest *seen = last_command();

	must(kc_json_check(kc_slice_n(seen->body, seen->body_len), 10, &top, "", &err) == KC_OK
		 && kc_json_member(top, "csl", &csl));
	kc_buf_init(&text, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_json_unescape(&text, csl);
	is_slice(kc_buf_view(&text), expected, name);
	kc_buf_free(&text);
}

static void
test_command(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestProperties properties = sample();
	const KcSlice tags[] = {kc_slice("drop-by:\"x\""), kc_slice("ingest-by:k")};
	const KcSlice keys[] = {kc_slice("k")};
	KcDirectTask *task;
	char		expected[2048];
	KcError		err;

	direct_rules();
	task = run(client, &properties);
	is(task->task.error.status, KC_OK, "blobs are ingested");
	ok(!task->skipped && !task->doubtful, "really");
	kc_task_free(&task->task);
	snprintf(expected, sizeof(expected), ".ingest into table ['T'] (h\"%s?%s\", h\"%s?%s\") with (format=\"csv\", "
			 "validationPolicy=\"{\\\"ValidationOptions\\\":1,\\\"ValidationImplications\\\":0}\")",
			 url1, SERVICE_SAS, url2, SERVICE_SAS);
	is_command(expected, "the command");
	ok(strstr(last_command()->body, "\"db\":\"db\"") != NULL, "its database");
	ok(server_header(last_command(), "x-ms-readonly") == NULL, "it is no reading");

	properties.table = kc_slice("it's \\ a table");
	properties.mapping = kc_slice("m\"1");
	properties.tags = tags;
	properties.ntags = 2;
	properties.if_not_exists = keys;
	properties.nif_not_exists = 1;
	properties.has_creation_time = true;
	properties.creation_time_us = INT64_C(1788257472000000);
	task = run(client, &properties);
	is(task->task.error.status, KC_OK, "with all properties");
	kc_task_free(&task->task);
	snprintf(expected, sizeof(expected), ".ingest into table ['it\\'s \\\\ a table'] (h\"%s?%s\", h\"%s?%s\") with (format=\"csv\", "
			 "validationPolicy=\"{\\\"ValidationOptions\\\":1,\\\"ValidationImplications\\\":0}\", "
			 "ingestionMappingReference=\"m\\\"1\", tags=\"[\\\"drop-by:\\\\\\\"x\\\\\\\"\\\",\\\"ingest-by:k\\\"]\", "
			 "ingestIfNotExists=\"[\\\"k\\\"]\", creationTime=\"2026-09-01T10:11:12.000000Z\")",
			 url1, SERVICE_SAS, url2, SERVICE_SAS);
	is_command(expected, "nothing in them can be code");

	is(kc_kusto_direct_start(client, &properties, urls, 0, &task, &err), KC_ERR_INVALID, "no blobs, no command");
	ok(task == NULL, "and no task");
	kc_client_free(client);
}

/* ---- the result ---- */

static void
test_results(void)
{
	static const struct
	{
		const char *name;
		const char *body;
		bool		keys;		/* with ingestIfNotExists */
		KcStatus	status;
		bool		skipped;
		bool		doubtful;
		const char *text;
	}			cases[] = {
		{"an extent a blob", DIRECT_ANSWER(DIRECT_ROW(EXTENT, "false") "," DIRECT_ROW(EXTENT, "false")), false, KC_OK, false, false, ""},
		{"truth as a number", DIRECT_ANSWER(DIRECT_ROW(EXTENT, "0")), false, KC_OK, false, false, ""},
		{"errors", DIRECT_ANSWER(DIRECT_ROW(EXTENT, "false") "," DIRECT_ROW(EXTENT, "true")), false, KC_ERR_REFUSED, false, true, OPERATION},
		{"errors, as a number", DIRECT_ANSWER(DIRECT_ROW(NO_EXTENT, "1")), true, KC_ERR_REFUSED, false, true, OPERATION},
		{"no extent", DIRECT_ANSWER(DIRECT_ROW(NO_EXTENT, "false")), false, KC_ERR_REFUSED, false, true, ""},
		{"no extent, since the key exists", DIRECT_ANSWER(DIRECT_ROW(NO_EXTENT, "false")), true, KC_OK, true, false, ""},
		{"null for no extent", DIRECT_ANSWER("[null,\"\",null,null,null]"), true, KC_OK, true, false, ""},
		{"no rows", DIRECT_ANSWER(""), true, KC_ERR_REFUSED, false, true, ""},
		{"other columns", SERVICE_TABLE(SERVICE_COLUMN("x", "long"), "[1]"), false, KC_ERR_PROTOCOL, false, true, ""},
		{"an error inside", ERROR("X", "inside", "true"), false, KC_ERR_REFUSED, false, true, "inside"},
		{"not Kusto", "<html>", false, KC_ERR_PROTOCOL, false, true, ""},
	};
	const KcSlice keys[] = {kc_slice("k")};
	KcClient   *client = service_client(&h, &server);

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		KcIngestProperties properties = sample();
		KcDirectTask *task;

		properties.if_not_exists = keys;
		properties.nif_not_exists = cases[i].keys ? 1 : 0;
		direct_rules();
		fault((ServerRule) {.body = cases[i].body});
		task = run(client, &properties);
		is(task->task.error.status, cases[i].status, cases[i].name);
		is(task->skipped, cases[i].skipped, "skipped or not");
		is(task->doubtful, cases[i].doubtful, "in doubt or not");
		ok(strstr(task->task.error.detail, cases[i].text) != NULL, "detail");
		is(given(), 1, "one command");
		kc_task_free(&task->task);
	}
	kc_client_free(client);
}

/* ---- failures ---- */

#define THROTTLED_TEXT \
	"The control command was aborted due to throttling. Retrying after some backoff might help. " \
	"CommandType: 'DataIngestPull', Capacity: 18, Origin: 'CapacityPolicy/Ingestion'."

static void
test_failures(void)
{
	static const struct
	{
		const char *name;
		ServerRule	rule;
		KcStatus	status;
		int			given;
		bool		doubtful;
		KcAdvice	advice;
	}			cases[] = {
		{"429", {.status = 429}, KC_ERR_THROTTLED, 5, false, KC_ADVICE_THROTTLED},
		{"throttled, as a 400", {.status = 400,.body = ERROR("BadRequest", THROTTLED_TEXT, "true")}, KC_ERR_REFUSED, 5, false, KC_ADVICE_THROTTLED},
		{"throttled, as a 500", {.status = 500,.body = ERROR("General", THROTTLED_TEXT, "false")}, KC_ERR_SERVICE, 5, false, KC_ADVICE_THROTTLED},
		{"throttled, inside a 200", {.body = ERROR("ControlCommandThrottledException", "x", "true")}, KC_ERR_REFUSED, 5, false, KC_ADVICE_THROTTLED},
		{"503", {.status = 503}, KC_ERR_SERVICE, 5, false, KC_ADVICE_NONE},
		{"500", {.status = 500}, KC_ERR_SERVICE, 1, true, KC_ADVICE_NONE},
		{"no answer", {.action = SERVER_CLOSE}, KC_ERR_NETWORK, 1, true, KC_ADVICE_NONE},
		{"403", {.status = 403}, KC_ERR_FORBIDDEN, 1, false, KC_ADVICE_GRANT_INGESTOR},
		{"no table", {.status = 400,.body = ERROR("BadRequest_EntityNotFound", "Entity ID 'T' of kind 'Table' was not found.", "true")}, KC_ERR_REFUSED, 1, false, KC_ADVICE_TABLE_MISSING},
		{"the data", {.status = 400,.body = ERROR("Stream_WrongNumberOfFields", "x", "true")}, KC_ERR_REFUSED, 1, false, KC_ADVICE_NONE},
	};
	KcIngestProperties properties = sample();

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		KcClient   *client = service_client(&h, &server);
		KcDirectTask *task;

		direct_rules();
		fault(cases[i].rule);
		task = run(client, &properties);
		is(task->task.error.status, cases[i].status, cases[i].name);
		is(given(), cases[i].given, "so many commands");
		is(task->doubtful, cases[i].doubtful, "in doubt or not");
		is(task->task.error.advice, cases[i].advice, "advice");
		kc_task_free(&task->task);
		kc_client_free(client);
	}
}

static void
test_throttled_for_a_while(void)
{
	KcClientConfig config = service_config(&server);
	KcIngestProperties properties = sample();
	KcClient   *client;
	KcDirectTask *task;
	KcError		err;
	int			n;

	config.retry_total_ms = 60000;
	must(kc_client_create(&kc_alloc_malloc, h.mux, &config, &client, &err) == KC_OK);
	direct_rules();
	fault((ServerRule) {.times = 8,.status = 400,.body = ERROR("BadRequest", THROTTLED_TEXT, "true")});
	task = run(client, &properties);
	is(task->task.error.status, KC_OK, "throttling passes");
	is(given(), 9, "after some tries");
	kc_task_free(&task->task);

	direct_rules();
	fault((ServerRule) {.status = 400,.body = ERROR("BadRequest", THROTTLED_TEXT, "true"),.headers = "Retry-After: 7\r\n"});
	task = start(client, &properties);
	while (!task->task.done)
	{
		h.moved_ms += 1000;
		harness_turn(&h, 10);
	}
	n = given();
	ok(n >= 6 && n <= 9, "or the time is up, after %d tries in a minute", n);
	ok(!task->doubtful, "without doubt");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/*
 * No answer came, but a tag makes a second command harmless; not while the
 * first may still run.
 */
static void
test_protected(void)
{
	const KcSlice tags[] = {kc_slice("ingest-by:k")};
	const KcSlice others[] = {kc_slice("ingest-by:l"), kc_slice("k")};
	const KcSlice keys[] = {kc_slice("k")};
	KcClientConfig config = service_config(&server);
	KcIngestProperties properties = sample();
	KcClient   *client;
	KcDirectTask *task;
	KcError		err;

	config.retry_total_ms = 60000;
	must(kc_client_create(&kc_alloc_malloc, h.mux, &config, &client, &err) == KC_OK);
	properties.if_not_exists = keys;
	properties.nif_not_exists = 1;
	properties.tags = tags;
	properties.ntags = 1;
	direct_rules();
	fault((ServerRule) {.body = DIRECT_ANSWER(DIRECT_ROW(NO_EXTENT, "false"))});
	fault((ServerRule) {.times = 1,.action = SERVER_CLOSE});
	task = start(client, &properties);
	while (given() < 1)
		harness_turn(&h, 20);
	h.moved_ms += 13000;
	for (int i = 0; i < 10; i++)
		harness_turn(&h, 10);
	is(given(), 1, "a protected command waits until the first must have ended");
	h.moved_ms += 2000;
	(void) harness_until(&h, &task->task.done);
	is(given(), 2, "and is given again");
	ok(task->task.error.status == KC_OK && !task->doubtful, "the first was done, as is found");
	ok(!task->skipped, "which is no data of somebody else");
	kc_task_free(&task->task);

	direct_rules();
	fault((ServerRule) {.status = 403});
	fault((ServerRule) {.times = 1,.action = SERVER_CLOSE});
	task = start(client, &properties);
	while (given() < 1)
		harness_turn(&h, 20);
	h.moved_ms += 15000;
	(void) harness_until(&h, &task->task.done);
	ok(task->task.error.status == KC_ERR_FORBIDDEN && task->doubtful, "the doubt of the first stays");
	kc_task_free(&task->task);

	properties.tags = others;
	properties.ntags = 2;
	direct_rules();
	fault((ServerRule) {.times = 1,.action = SERVER_CLOSE});
	task = run(client, &properties);
	ok(task->task.error.status == KC_ERR_NETWORK && task->doubtful && given() == 1, "other tags do not protect");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/* ---- resources ---- */

static void
test_resources(void)
{
	KcIngestProperties properties = sample();
	KcClient   *client = service_client(&h, &server);
	KcDirectTask *task;
	char		unknown[128];
	char		expected[256];
	KcSlice		unknown_url;
	KcError		err;

	direct_rules();
	task = run(client, &properties);
	kc_task_free(&task->task);
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.body_part = ".get ingestion resources",
					  .body = SERVICE_RESOURCES_WITH(SERVICE_SAS_2)});
	h.moved_ms += 120 * 1000;	/* the resources may be fetched out of turn again */
	fault((ServerRule) {.times = 1,.status = 400,.body = ERROR("Download_Forbidden", "no", "true")});
	task = run(client, &properties);
	is(task->task.error.status, KC_OK, "after a refusal of the signatures new ones help");
	kc_task_free(&task->task);
	snprintf(expected, sizeof(expected), "h\\\"%s?%s\\\"", url1, SERVICE_SAS_2);
	ok(strstr(last_command()->body, expected) != NULL, "they were used");

	h.moved_ms += 120 * 1000;
	fault((ServerRule) {.status = 400,.body = ERROR("Download_Forbidden", "no", "true")});
	task = run(client, &properties);
	is(task->task.error.status, KC_ERR_REFUSED, "but only once");
	kc_task_free(&task->task);

	snprintf(unknown, sizeof(unknown), "%s/acct1/gone/b.csv.gz", server.origin);
	unknown_url = kc_slice(unknown);
	direct_rules();
	must(kc_kusto_direct_start(client, &properties, &unknown_url, 1, &task, &err) == KC_OK);
	(void) harness_until(&h, &task->task.done);
	is(task->task.error.status, KC_ERR_NOT_FOUND, "a container that the service does not name");
	is(given(), 0, "gets no command");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/* ---- secrets ---- */

static void
test_secrets(void)
{
	static const char *const echoes[] = {
		ERROR("BadRequest", "Syntax error in '.ingest into table T (h'$ORIGIN/acct1/c1/a.csv.gz?" SERVICE_SAS "')'", "true"),
		ERROR("BadRequest", "in \\\".ingest into table T (h\\\\\\\"https://a/c/a.csv.gz?sv=2020-10-02&se=2099-01-01T00%3A00%3A00Z&sp=rwd&sig=SaSsEcReT%2B%3D\\\\\\\")\\\"", "true"),
		ERROR("BadRequest", "the signature is SaSsEcReT%2B%3D, or SaSsEcReT+=", "true"),
		"<html>" SERVICE_SAS "</html>",
		"{\"OneApiErrors\":[" ERROR("SaSsEcReT%2B%3D", "x", "true") "]}",
	};
	KcIngestProperties properties = sample();
	KcClient   *client = service_client(&h, &server);

	for (size_t i = 0; i < sizeof(echoes) / sizeof(echoes[0]); i++)
	{
		KcDirectTask *task;

		direct_rules();
		fault((ServerRule) {.status = 400,.body = echoes[i]});
		task = run(client, &properties);	/* looks for secrets */
		ok(task->task.error.status == KC_ERR_REFUSED && given() == 1, "an echoed command is refused, form %zu", i);
		kc_task_free(&task->task);
	}
	kc_client_free(client);
}

/* ---- its end at any moment ---- */

static void
test_cancel(void)
{
	static const struct
	{
		const char *name;
		const char *body_part;
		ServerAction action;
		int			status;
		const char *body;
		const char *headers;
		bool		goes_on;	/* without the task */
	}			phases[] = {
		{"while the resources are asked for", ".get ingestion resources", SERVER_STALL},
		{"just before they come", ".get ingestion resources", SERVER_DRIP, 0, "{   }",.goes_on = true},
		{"while the command runs", INGEST, SERVER_STALL},
		{"in mid-answer", INGEST, SERVER_DRIP, 0, DIRECT_ANSWER(DIRECT_ROW(EXTENT, "false"))},
		{"between two tries of the request", INGEST, SERVER_REPLY, 429, "", "Retry-After: 5\r\n"},
		{"between two commands", INGEST, SERVER_REPLY, 400, ERROR("BadRequest", THROTTLED_TEXT, "true"), "Retry-After: 5\r\n"},
	};
	KcIngestProperties properties = sample();

	for (size_t i = 0; i < sizeof(phases) / sizeof(phases[0]); i++)
	{
		KcClientConfig config = service_config(&server);
		FailAlloc	fa;
		KcClient   *client;
		KcDirectTask *task;
		KcError		err;
		bool		seen = false;

		direct_rules();
		server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.body_part = phases[i].body_part,
						  .action = phases[i].action,.status = phases[i].status,.body = phases[i].body,.headers = phases[i].headers});
		fail_alloc_init(&fa, 0);
		must(kc_client_create(&fa.alloc, h.mux, &config, &client, &err) == KC_OK);
		must(kc_kusto_direct_start(client, &properties, urls, 2, &task, &err) == KC_OK);
		while (!seen)
		{
			const ServerRequest *request;

			harness_turn(&h, 20);
			for (int n = 0; (request = server_nth(&server, NULL, "/v1/rest/mgmt", n)) != NULL; n++)
				seen = seen || strstr(request->body, phases[i].body_part) != NULL;
		}
		for (int j = 0; j < 5; j++)
			harness_turn(&h, 10);
		ok(!task->task.done, "ended %s", phases[i].name);
		kc_task_free(&task->task);
		for (int j = 0; phases[i].goes_on && j < 60; j++)
			harness_turn(&h, 10);
		kc_client_free(client);
		is(fa.live, 0, "nothing leaks");
	}
}

static void
free_it(KcTask *task)
{
	bool	   *freed = task->arg;

	kc_task_free(task);
	*freed = true;
}

static void
test_free_when_done(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestProperties properties = sample();
	static const int statuses[] = {200, 403};

	for (size_t i = 0; i < sizeof(statuses) / sizeof(statuses[0]); i++)
	{
		KcDirectTask *task;
		bool		freed = false;

		direct_rules();
		fault((ServerRule) {.status = statuses[i],.body = DIRECT_ANSWER(DIRECT_ROW(EXTENT, "false"))});
		task = start(client, &properties);
		task->task.on_done = free_it;
		task->task.arg = &freed;
		ok(harness_until(&h, &freed), "freed by its own end, status %d", statuses[i]);
	}
	direct_rules();
	kc_task_free(&start(client, &properties)->task);
	for (int i = 0; i < 5; i++)
		harness_turn(&h, 10);
	is(given(), 0, "ended before the first drive, it commands nothing");
	kc_client_free(client);
}

static void
test_out_of_memory(void)
{
	const KcSlice tags[] = {kc_slice("ingest-by:k")};
	const KcSlice keys[] = {kc_slice("k")};
	KcClientConfig config = service_config(&server);
	KcIngestProperties properties = sample();
	int			failures = 0;
	int			successes = 0;
	bool		clean = true;

	config.retry_total_ms = 1;
	properties.tags = tags;
	properties.ntags = 1;
	properties.if_not_exists = keys;
	properties.nif_not_exists = 1;
	properties.has_creation_time = true;
	for (int n = 1; n < 1000; n++)
	{
		KcClient   *client = NULL;
		KcDirectTask *task = NULL;
		FailAlloc	fa;
		KcError		err;
		KcStatus	status;

		direct_rules();
		fail_alloc_init(&fa, n);
		status = kc_client_create(&fa.alloc, h.mux, &config, &client, &err);
		if (status == KC_OK)
			status = kc_kusto_direct_start(client, &properties, urls, 2, &task, &err);
		if (status == KC_OK)
		{
			(void) harness_until(&h, &task->task.done);
			status = task->task.error.status;
		}
		if (status == KC_ERR_NOMEM)
			failures++;
		else if (status == KC_OK)
			successes++;
		if (task != NULL)
			kc_task_free(&task->task);
		kc_client_free(client);
		if (fa.live != 0)
			clean = false;
		if (!fa.has_failed)
			break;
	}
	ok(failures > 50, "%d allocations failed, each told as such", failures);
	ok(successes >= 1, "until none did");
	ok(clean, "and nothing leaked");
}

int
main(void)
{
	server_start(&server);
	snprintf(url1, sizeof(url1), "%s/acct1/c1/a.csv.gz", server.origin);
	snprintf(url2, sizeof(url2), "%s/acct2/c3/b.csv.gz", server.origin);
	urls[0] = kc_slice(url1);
	urls[1] = kc_slice(url2);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_command();
	test_results();
	test_failures();
	test_throttled_for_a_while();
	test_protected();
	test_resources();
	test_secrets();
	test_cancel();
	test_free_when_done();
	test_out_of_memory();
	harness_stop(&h);
	server_stop(&server);
	return done_testing();
}
