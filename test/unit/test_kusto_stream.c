/*
 * test_kusto_stream.c
 *	  Streaming ingestion: the request, every row of its decision table, what
 *	  is remembered, and its end at any moment.
 */
#define _GNU_SOURCE
#include <zlib.h>

#include "core/kusto_internal.h"
#include "fail_alloc.h"
#include "kusto_service.h"

#define INGEST "/v1/rest/ingest/"
#define CSV "1,\"x\"\n2,\"y\"\n"

static Server server;
static Harness h;

#define STREAM_ANSWER \
	SERVICE_TABLE(SERVICE_COLUMN("ConsumedRecordsCount", "long") "," SERVICE_COLUMN("UpdatePolicyStatus", "string") \
				  "," SERVICE_COLUMN("UpdatePolicyFailureCode", "string") "," \
				  SERVICE_COLUMN("UpdatePolicyFailureReason", "string"), "[0,\"Inactive\",\"Unknown\",null]")

#define ERROR(code, type, message, more) \
	"{\"error\":{\"code\":\"" code "\",\"message\":\"Request failed\",\"@type\":\"Kusto.DataNode.Exceptions." type "\"," \
	"\"@message\":\"" message "\",\"@context\":{\"activityId\":\"act-1\"}" more "}}"

#define PERMANENT ",\"@permanent\":true"
#define PASSING ",\"@permanent\":false"

static void
stream_rules(void)
{
	service_rules(&server);
	server_rule(&server, (ServerRule) {.method = "POST",.target = INGEST,.body = STREAM_ANSWER});
}

static KcStreamRequest
sample(bool managed)
{
	return (KcStreamRequest) {
		.database = kc_slice("db"),.table = kc_slice("T"),.csv = kc_slice(CSV),.managed = managed
	};
}

static KcStreamTask *
start(KcClient *client, const KcStreamRequest *request)
{
	KcStreamTask *task;
	KcError		err;

	must(kc_kusto_stream_start(client, request, &task, &err) == KC_OK);
	must(!task->task.done);
	return task;
}

static KcStreamTask *
run(KcClient *client, const KcStreamRequest *request)
{
	KcStreamTask *task = start(client, request);

	(void) harness_until(&h, &task->task.done);
	if (!service_keeps_secrets(&task->task.error))
		ok(false, "no secret is told");
	if ((task->verdict == KC_STREAM_INGESTED) != (task->task.error.status == KC_OK))
		ok(false, "there is an error exactly when nothing was ingested");
	return task;
}

static KcStreamVerdict
verdict_of(KcClient *client, const KcStreamRequest *request)
{
	KcStreamTask *task = run(client, request);
	KcStreamVerdict verdict = task->verdict;

	kc_task_free(&task->task);
	return verdict;
}

static int
asked(void)
{
	return server_count(&server, "POST", INGEST);
}

/* ---- the request ---- */

static void
is_gzip_of(const ServerRequest *seen, KcSlice csv, const char *name)
{
	z_stream	z = {0};
	char	   *plain = malloc(csv.len + 1);

	must(plain != NULL && inflateInit2(&z, MAX_WBITS + 16) == Z_OK);
	z.next_in = (Bytef *) seen->body;
	z.avail_in = (uInt) seen->body_len;
	z.next_out = (Bytef *) plain;
	z.avail_out = (uInt) csv.len + 1;
	is(inflate(&z, Z_FINISH), Z_STREAM_END, "one whole gzip stream");
	is_bytes(plain, (size_t) z.total_out, csv.data, csv.len, name);
	inflateEnd(&z);
	free(plain);
}

static void
test_request(void)
{
	KcClient   *client = service_client(&h, &server);
	KcStreamRequest request = sample(true);
	KcStreamTask *task;
	const ServerRequest *seen;
	const char *id;
	char	   *large = malloc(KC_STREAM_MAX_RAW + 1);
	KcError		err;

	must(large != NULL);
	stream_rules();
	request.database = kc_slice("my db");
	request.table = kc_slice("a/b?\xc3\xa9");
	request.mapping = kc_slice("m&1");
	task = run(client, &request);
	is(task->verdict, KC_STREAM_INGESTED, "rows are streamed");
	is(task->attempts, 1, "by one request");
	ok(!task->doubtful, "without doubt");
	seen = server_nth(&server, "POST", INGEST, 0);
	must(seen != NULL);
	is(task->compressed_bytes, seen->body_len, "the size of whose body is told");
	kc_task_free(&task->task);
	is_str(seen->target, INGEST "my%20db/a%2Fb%3F%C3%A9?streamFormat=Csv&mappingName=m%261", "names are encoded");
	is_str(server_header(seen, "Authorization"), "Bearer bearer-secret-1", "the token");
	is_str(server_header(seen, "Accept"), "application/json", "Accept");
	is_str(server_header(seen, "Content-Encoding"), "gzip", "Content-Encoding");
	is_str(server_header(seen, "Content-Type"), "application/octet-stream", "Content-Type");
	is_str(server_header(seen, "x-ms-version"), "2024-12-12", "x-ms-version");
	is_str(server_header(seen, "x-ms-app"), "kusto_ingest", "x-ms-app");
	is_str(server_header(seen, "x-ms-client-version"), "Kusto.kusto_ingest.Client:{1.0}", "x-ms-client-version");
	id = server_header(seen, "x-ms-client-request-id");
	ok(id != NULL && strncmp(id, "KPGX.execute_stream;", 20) == 0 && strlen(id) == 20 + KC_UUID_TEXT_LEN,
	   "x-ms-client-request-id");
	is_gzip_of(seen, kc_slice(CSV), "of the CSV");

	/* as much as there may be, in bytes that do not compress */
	for (size_t i = 0; i <= KC_STREAM_MAX_RAW; i++)
		large[i] = (char) (i * 2654435761u >> 13);
	request = sample(true);
	request.csv = kc_slice_n(large, KC_STREAM_MAX_RAW);
	stream_rules();
	is(verdict_of(client, &request), KC_STREAM_INGESTED, "4 MB");
	seen = server_nth(&server, "POST", INGEST, 0);
	is_str(seen->target, INGEST "db/T?streamFormat=Csv", "without a mapping");
	is_gzip_of(seen, request.csv, "all of it");

	stream_rules();
	request.csv.len++;
	task = run(client, &request);
	ok(task->verdict == KC_STREAM_QUEUE && task->task.error.status == KC_ERR_LIMIT, "a byte more is for the queue");
	ok(task->attempts == 0 && asked() == 0, "which needs no asking");
	kc_task_free(&task->task);
	request.managed = false;
	is(verdict_of(client, &request), KC_STREAM_QUEUE, "whoever asks");
	request.csv.len = 0;
	is(kc_kusto_stream_start(client, &request, &task, &err), KC_ERR_INVALID, "nothing cannot be streamed");
	ok(task == NULL, "and there is no task");
	free(large);
	kc_client_free(client);
}

/* ---- the decision table ---- */

typedef struct Row
{
	const char *name;
	ServerRule	rule;			/* of the ingestion endpoint */
	KcStreamVerdict managed;
	KcStreamVerdict unmanaged;
	KcStatus	status;
	int			tries;			/* of a managed request; an unmanaged one makes 1 or 5 */
	bool		doubtful;
	int64_t		remembered_ms;
	KcAdvice	advice;
	const char *text;			/* in the error's code or detail */
} Row;

#define Q KC_STREAM_QUEUE
#define R KC_STREAM_REFUSED
#define F KC_STREAM_FAILED

static const Row rows[] = {
	/* not this way */
	{"413", {.status = 413,.body = ERROR("RequestEntityTooLarge", "KustoRequestPayloadTooLargeException", "too much", PERMANENT)},
	Q, Q, KC_ERR_LIMIT, 1, false, 0, KC_ADVICE_NONE, "too much"},
	{"413 of a gateway", {.status = 413,.body = "<html>413</html>"}, Q, Q, KC_ERR_LIMIT, 1, false, 0, KC_ADVICE_NONE, "too large for streaming"},
	{"400 that is a 413", {.status = 400,.body = ERROR("BadRequest", "KustoRequestPayloadTooLargeException", "x", PERMANENT)},
	Q, Q, KC_ERR_LIMIT, 1, false, 0, KC_ADVICE_NONE, "BadRequest"},
	{"a 413 in words", {.status = 400,.body = ERROR("BadRequest", "Other", "The payload is too large.", PERMANENT)},
	Q, Q, KC_ERR_LIMIT, 1, false, 0, KC_ADVICE_NONE, "too large"},
	{"404, no policy", {.status = 404,.body = ERROR("NotFound_StreamingIngestionPolicy", "StreamingIngestionRequestException", "Streaming ingestion policy is not enabled for table db.T", PERMANENT)},
	Q, Q, KC_ERR_REFUSED, 1, false, KC_STREAM_REFUSAL_MS, KC_ADVICE_STREAMING_OFF, "not enabled"},
	{"404, nothing said", {.status = 404}, Q, Q, KC_ERR_NOT_FOUND, 1, false, KC_STREAM_REFUSAL_MS,
	KC_ADVICE_INGEST_ASKED_AS_ENGINE, "no streaming ingestion at that URL"},
	{"404 of a gateway", {.status = 404,.body = "<html>not here</html>"}, Q, Q, KC_ERR_NOT_FOUND, 1, false,
	KC_STREAM_REFUSAL_MS, KC_ADVICE_INGEST_ASKED_AS_ENGINE, "not here"},
	{"400, disabled", {.status = 400,.body = ERROR("BadRequest_StreamingIngestionFunctionalityDisabled", "X", "no", PERMANENT)},
	Q, Q, KC_ERR_REFUSED, 1, false, KC_STREAM_REFUSAL_MS, KC_ADVICE_STREAMING_OFF, "not enabled for the table"},
	{"400, disabled, by the type inside", {.status = 400,.body = "{\"error\":{\"code\":\"BadRequest\",\"@permanent\":true,"
			"\"innererror\":{\"code\":\"X\",\"@type\":\"StreamingIngestionFunctionalityDisabledException\"}}}"},
	Q, Q, KC_ERR_REFUSED, 1, false, KC_STREAM_REFUSAL_MS, KC_ADVICE_STREAMING_OFF, "X"},
	{"400, disabled, in words", {.status = 400,.body = ERROR("BadRequest", "StreamingIngestionRequestException", "Streaming ingestion is disabled on the cluster", PERMANENT)},
	Q, Q, KC_ERR_REFUSED, 1, false, KC_STREAM_REFUSAL_MS, KC_ADVICE_STREAMING_OFF, "disabled"},
	{"an update policy", {.status = 400,.body = ERROR("UpdatePolicy_Transactional_Not_Allowed_In_Streaming_Ingestion", "X", "no", PERMANENT)},
	Q, Q, KC_ERR_REFUSED, 1, false, KC_STREAM_REFUSAL_MS, KC_ADVICE_NONE, "update policy does not allow"},
	{"an update policy, in words", {.status = 400,.body = ERROR("BadRequest", "X", "The table's update policy is incompatible", PERMANENT)},
	Q, Q, KC_ERR_REFUSED, 1, false, KC_STREAM_REFUSAL_MS, KC_ADVICE_NONE, "incompatible"},

	/* it may pass */
	{"429", {.status = 429}, Q, F, KC_ERR_THROTTLED, 3, false, KC_STREAM_THROTTLE_MS, KC_ADVICE_THROTTLED, "too busy"},
	{"429 that calls itself permanent", {.status = 429,.body = ERROR("Throttled", "KustoRequestThrottledException", "busy", PERMANENT)},
	Q, F, KC_ERR_THROTTLED, 3, false, KC_STREAM_THROTTLE_MS, KC_ADVICE_THROTTLED, "busy"},
	{"400 that is a 429", {.status = 400,.body = ERROR("BadRequest", "KustoRequestThrottledException", "busy", PERMANENT)},
	Q, F, KC_ERR_THROTTLED, 3, false, KC_STREAM_THROTTLE_MS, KC_ADVICE_THROTTLED, "busy"},
	{"429, Retry-After soon", {.status = 429,.headers = "Retry-After: 0\r\n"}, Q, F, KC_ERR_THROTTLED, 3, false,
	KC_STREAM_THROTTLE_MS, KC_ADVICE_THROTTLED, ""},
	{"500", {.status = 500}, Q, F, KC_ERR_SERVICE, 3, true, 0, KC_ADVICE_NONE, ""},
	{"500, an internal error", {.status = 500,.body = ERROR("General_InternalServerError", "InternalServerError", "oops", PASSING)},
	Q, F, KC_ERR_SERVICE, 3, true, 0, KC_ADVICE_NONE, "oops"},
	{"503 of a gateway", {.status = 503,.body = "<html>busy</html>"}, Q, F, KC_ERR_SERVICE, 3, false, 0, KC_ADVICE_NONE, "busy"},
	{"504", {.status = 504}, Q, F, KC_ERR_SERVICE, 3, true, 0, KC_ADVICE_NONE, ""},
	{"408", {.status = 408}, Q, F, KC_ERR_TIMEOUT, 3, true, 0, KC_ADVICE_NONE, ""},
	{"400 that says it may pass", {.status = 400,.body = ERROR("General_X", "X", "later", PASSING)},
	Q, F, KC_ERR_SERVICE, 3, false, 0, KC_ADVICE_NONE, "later"},
	{"400 whose code says so", {.status = 400,.body = ERROR("General_InternalServerError", "X", "later", "")},
	Q, F, KC_ERR_SERVICE, 3, false, 0, KC_ADVICE_NONE, "later"},
	{"a list of errors that may pass", {.status = 400,.body = "{\"OneApiErrors\":[" ERROR("C1", "X", "first", PASSING) "," ERROR("C2", "X", "second", PASSING) "]}"},
	Q, F, KC_ERR_SERVICE, 3, false, 0, KC_ADVICE_NONE, "first"},
	{"a reset", {.action = SERVER_RESET}, Q, F, KC_ERR_NETWORK, 3, true, 0, KC_ADVICE_NONE, ""},
	{"a reset before the body", {.action = SERVER_RESET_EARLY}, Q, F, KC_ERR_NETWORK, 3, true, 0, KC_ADVICE_NONE, ""},
	{"an answer cut off", {.action = SERVER_TRUNCATE,.body = STREAM_ANSWER}, Q, F, KC_ERR_NETWORK, 3, true, 0, KC_ADVICE_NONE, ""},
	{"an error inside a 200 that may pass", {.body = ERROR("X", "X", "inside", PASSING)}, Q, F, KC_ERR_SERVICE, 3, true, 0,
	KC_ADVICE_NONE, "inside"},

	/* the data are wrong */
	{"a bad request about the stream", {.status = 400,.body = ERROR("BadRequest", "StreamingIngestionRequestException", "Bad streaming ingestion request to db.T : The input stream is empty after processing", PERMANENT)},
	R, R, KC_ERR_REFUSED, 1, false, 0, KC_ADVICE_NONE, "cannot take the data"},
	{"the same of a table with a name like that", {.status = 400,.body = ERROR("BadRequest", "StreamingIngestionRequestException", "Bad streaming ingestion request to db.Streaming_disabled_throttled : x", PERMANENT)},
	R, R, KC_ERR_REFUSED, 1, false, 0, KC_ADVICE_NONE, "disabled"},
	{"a number of fields", {.status = 400,.body = ERROR("Stream_WrongNumberOfFields", "X", "fields", PERMANENT)},
	R, R, KC_ERR_REFUSED, 1, false, 0, KC_ADVICE_NONE, "Stream_"},
	{"a quote, in a list", {.status = 400,.body = "{\"OneApiErrors\":[" ERROR("Stream_ClosingQuoteMissing", "X", "quote", PERMANENT) "]}"},
	R, R, KC_ERR_REFUSED, 1, false, 0, KC_ADVICE_NONE, "Stream_"},
	{"a quote, permanent absent", {.status = 400,.body = ERROR("Stream_ClosingQuoteMissing", "X", "quote", "")},
	R, R, KC_ERR_REFUSED, 1, false, 0, KC_ADVICE_NONE, "Stream_"},
	{"a bag that is too large", {.status = 400,.body = ERROR("Stream_DynamicPropertyBagTooLarge", "X", "the bag is too large", PERMANENT)},
	R, R, KC_ERR_REFUSED, 1, false, 0, KC_ADVICE_NONE, "Stream_"},

	/* neither way will do */
	{"403", {.status = 403,.body = ERROR("Forbidden", "X", "Principal 'aadapp=a;t' is not authorized", PERMANENT)},
	F, F, KC_ERR_FORBIDDEN, 1, false, 0, KC_ADVICE_GRANT_INGESTOR, "not authorized"},
	{"403, nothing said", {.status = 403}, F, F, KC_ERR_FORBIDDEN, 1, false, 0, KC_ADVICE_GRANT_INGESTOR, ""},
	{"no table", {.status = 400,.body = ERROR("BadRequest_EntityNotFound", "StreamingIngestionRequestException", "Entity ID 'T' of kind 'Table' was not found.", PERMANENT)},
	F, F, KC_ERR_REFUSED, 1, false, 0, KC_ADVICE_TABLE_MISSING, "was not found"},
	{"no table, as 404", {.status = 404,.body = ERROR("TableNotExist", "X", "no", PERMANENT)},
	F, F, KC_ERR_NOT_FOUND, 1, false, 0, KC_ADVICE_TABLE_MISSING, "TableNotExist"},
	{"no database", {.status = 400,.body = ERROR("BadRequest_EntityNotFound", "X", "Entity ID 'db' of kind 'Database' was not found.", PERMANENT)},
	F, F, KC_ERR_REFUSED, 1, false, 0, KC_ADVICE_DATABASE_MISSING, "was not found"},
	{"no mapping", {.status = 400,.body = ERROR("BadRequest_MappingReferenceWasNotFound", "StreamingIngestionRequestException", "no", PERMANENT)},
	F, F, KC_ERR_REFUSED, 1, false, 0, KC_ADVICE_MAPPING_MISSING, "Mapping"},
	{"a permanent 400 with the code of one that is not", {.status = 400,.body = ERROR("General_InternalServerError", "X", "never", PERMANENT)},
	F, F, KC_ERR_REFUSED, 1, false, 0, KC_ADVICE_NONE, "never"},
	{"an unknown 400", {.status = 400,.body = ERROR("Whatever", "X", "odd", PERMANENT)}, F, F, KC_ERR_REFUSED, 1, false, 0,
	KC_ADVICE_NONE, "odd"},
	{"a 400 without a word", {.status = 400}, F, F, KC_ERR_REFUSED, 1, false, 0, KC_ADVICE_NONE, ""},
	{"a 400 of a gateway", {.status = 400,.body = "<html>bad</html>"}, F, F, KC_ERR_REFUSED, 1, false, 0, KC_ADVICE_NONE, "bad"},
	{"a 500 that is permanent", {.status = 500,.body = ERROR("X", "X", "never", PERMANENT)}, F, F, KC_ERR_SERVICE, 1, true, 0,
	KC_ADVICE_NONE, "never"},
	{"520, permanent", {.status = 520,.body = ERROR("ServiceError", "X", "never", PERMANENT)}, F, F, KC_ERR_SERVICE, 1, true, 0,
	KC_ADVICE_NONE, "never"},
	{"a redirect", {.status = 307,.headers = "Location: http://127.0.0.1/\r\n"}, F, F, KC_ERR_PROTOCOL, 1, false, 0,
	KC_ADVICE_NOT_KUSTO, "redirects"},
	{"a 200 that is not Kusto's", {.body = "<html>hello</html>"}, F, F, KC_ERR_PROTOCOL, 1, true, 0, KC_ADVICE_NOT_KUSTO, ""},
	{"a 200 without a body", {.status = 200}, F, F, KC_ERR_PROTOCOL, 1, true, 0, KC_ADVICE_NOT_KUSTO, ""},
	{"an error inside a 200", {.body = ERROR("X", "X", "inside", PERMANENT)}, F, F, KC_ERR_REFUSED, 1, true, 0,
	KC_ADVICE_NONE, "inside"},
};

static void
check_row(const Row *row, bool managed)
{
	KcClient   *client = service_client(&h, &server);
	KcStreamRequest request = sample(managed);
	ServerRule	rule = row->rule;
	KcStreamTask *task;
	const KcError *err;
	int			tries;

	stream_rules();
	rule.method = "POST";
	rule.target = INGEST;
	server_rule_first(&server, rule);
	task = run(client, &request);
	err = &task->task.error;
	is(task->verdict, managed ? row->managed : row->unmanaged, managed ? row->name : "the same, unmanaged");
	is(err->status, row->status, "status");
	tries = managed || row->tries == 1 ? row->tries : 5;
	if (rule.action == SERVER_REPLY)
		ok(task->attempts == tries && asked() == tries, "attempts: %d", tries);
	else						/* that a reused connection is dead costs no try */
		ok(task->attempts >= tries && asked() >= task->attempts && asked() <= tries + 1, "attempts: %d", tries);
	/* bytes in a socket's buffer may or may not have been sent */
	if (rule.action != SERVER_RESET_EARLY)
		is(task->doubtful, row->doubtful, "in doubt or not");
	is(err->advice, row->advice, "advice");
	ok(strstr(err->detail, row->text) != NULL || strstr(err->code, row->text) != NULL
	   || strstr(err->what, row->text) != NULL, "what was said: \"%s\"", row->text);
	kc_task_free(&task->task);

	/* What is remembered is known to managed requests, until its time is up. */
	stream_rules();
	request.managed = true;
	is(verdict_of(client, &request), row->remembered_ms > 0 ? KC_STREAM_QUEUE : KC_STREAM_INGESTED, "the next request");
	is(asked(), row->remembered_ms > 0 ? 0 : 1, "asks or not");
	if (row->remembered_ms > 0)
	{
		h.moved_ms += row->remembered_ms - 5000;
		is(verdict_of(client, &request), KC_STREAM_QUEUE, "until shortly before the time is up");
		h.moved_ms += 5000;
		is(verdict_of(client, &request), KC_STREAM_INGESTED, "but no longer");
	}
	kc_client_free(client);
}

static void
test_decisions(void)
{
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
	{
		check_row(&rows[i], true);
		check_row(&rows[i], false);
	}
}

/* ---- several tries ---- */

static void
test_tries(void)
{
	KcClient   *client = service_client(&h, &server);
	KcStreamRequest request = sample(true);
	KcStreamTask *task;
	KcClientConfig config;
	KcError		err;

	stream_rules();
	server_rule_first(&server, (ServerRule) {.target = INGEST,.times = 1,.status = 500});
	server_rule_first(&server, (ServerRule) {.target = INGEST,.times = 1,.status = 503});
	task = run(client, &request);
	is(task->verdict, KC_STREAM_INGESTED, "the third try succeeds");
	is(task->attempts, 3, "as is told");
	ok(!task->doubtful, "what was ingested is not in doubt");
	ok(strcmp(server_header(server_nth(&server, "POST", INGEST, 0), "Content-Encoding"), "gzip") == 0
	   && server_nth(&server, "POST", INGEST, 0)->body_len == server_nth(&server, "POST", INGEST, 2)->body_len,
	   "each try has the whole body");
	kc_task_free(&task->task);

	/* the doubt of an early try stays */
	stream_rules();
	server_rule_first(&server, (ServerRule) {.target = INGEST,.status = 429});
	server_rule_first(&server, (ServerRule) {.target = INGEST,.times = 1,.action = SERVER_CLOSE});
	task = run(client, &request);
	ok(task->verdict == KC_STREAM_QUEUE && task->task.error.http_status == 429, "no answer, then throttled");
	ok(task->doubtful, "leaves a doubt");
	kc_task_free(&task->task);
	kc_client_free(client);

	/* Retry-After: a while is waited for, no longer */
	config = service_config(&server);
	config.request_timeout_ms = 240000;
	must(kc_client_create(&kc_alloc_malloc, h.mux, &config, &client, &err) == KC_OK);
	stream_rules();
	server_rule_first(&server, (ServerRule) {.target = INGEST,.times = 1,.status = 429,.headers = "Retry-After: 3\r\n"});
	task = start(client, &request);
	while (asked() < 1)
		harness_turn(&h, 20);
	for (int i = 0; i < 20; i++)
		harness_turn(&h, 10);
	is(asked(), 1, "the service asked for three seconds");
	h.moved_ms += 3000;
	(void) harness_until(&h, &task->task.done);
	is(task->verdict, KC_STREAM_INGESTED, "and got them");
	kc_task_free(&task->task);
	server_rule_first(&server, (ServerRule) {.target = INGEST,.times = 1,.status = 429,.headers = "Retry-After: 60\r\n"});
	task = run(client, &request);
	ok(task->verdict == KC_STREAM_QUEUE && task->attempts == 1, "a minute is too long for what can be queued");
	kc_task_free(&task->task);
	kc_client_free(client);

	/* all tries of a managed request share the request's time */
	config = service_config(&server);
	config.request_timeout_ms = 700;
	must(kc_client_create(&kc_alloc_malloc, h.mux, &config, &client, &err) == KC_OK);
	stream_rules();
	server_rule_first(&server, (ServerRule) {.target = INGEST,.action = SERVER_STALL});
	task = run(client, &request);
	ok(task->verdict == KC_STREAM_QUEUE && task->task.error.status == KC_ERR_TIMEOUT, "no answer in time is for the queue");
	is(task->attempts, 1, "once the time is used up");
	ok(task->doubtful, "in doubt");
	kc_task_free(&task->task);
	kc_client_free(client);
}

static void
test_identity(void)
{
	KcClient   *client = service_client(&h, &server);
	KcStreamRequest request = sample(true);
	KcStreamTask *task;

	stream_rules();
	server_rule_first(&server, (ServerRule) {.target = INGEST,.times = 1,.status = 401});
	task = run(client, &request);
	is(task->verdict, KC_STREAM_INGESTED, "after a 401 a new token helps");
	is(task->attempts, 2, "two requests");
	is(server_count(&server, "POST", "/oauth2"), 2, "two tokens");
	kc_task_free(&task->task);

	server_rule_first(&server, (ServerRule) {.target = INGEST,.status = 401,.body = "Unauthorized: bearer-secret-1"});
	task = run(client, &request);
	ok(task->verdict == KC_STREAM_FAILED && task->task.error.status == KC_ERR_AUTH, "but only once");
	is(task->attempts, 2, "one renewal");
	is(task->task.error.advice, KC_ADVICE_CHECK_SECRET, "advice");
	kc_task_free(&task->task);
	kc_client_free(client);

	client = service_client(&h, &server);
	stream_rules();
	server_rule_first(&server, (ServerRule) {.target = "/oauth2/v2.0/token",.status = 401,.body =
					  "{\"error\":\"invalid_client\",\"error_description\":\"wrong\"}"});
	task = run(client, &request);
	ok(task->verdict == KC_STREAM_FAILED && task->attempts == 0, "without a token nothing is sent");
	kc_task_free(&task->task);
	kc_client_free(client);

	client = service_client(&h, &server);
	stream_rules();
	server_rule_first(&server, (ServerRule) {.target = INGEST,.status = 400,.body =
					  ERROR("X", "X", "you sent bearer-secret-1 to me", PERMANENT)});
	task = run(client, &request);	/* looks for secrets */
	ok(strstr(task->task.error.detail, "you sent ***") != NULL, "a token that is echoed is not told");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/* ---- what is remembered ---- */

static void
refuse(const char *target)
{
	server_rule_first(&server, (ServerRule) {.target = target,.status = 404});
}

static void
test_memory(void)
{
	KcClient   *client = service_client(&h, &server);
	KcStreamRequest request = sample(true);
	KcStreamRequest other = sample(true);
	KcStreamTask *task;

	stream_rules();
	refuse(INGEST "db/T?");
	is(verdict_of(client, &request), KC_STREAM_QUEUE, "a table refuses");
	other.table = kc_slice("U");
	is(verdict_of(client, &other), KC_STREAM_INGESTED, "another does not");
	other.table = kc_slice("T");
	other.database = kc_slice("db2");
	is(verdict_of(client, &other), KC_STREAM_INGESTED, "nor one of that name in another database");
	is(asked(), 3, "three were asked");
	task = run(client, &request);
	ok(task->verdict == KC_STREAM_QUEUE && task->attempts == 0 && !task->doubtful, "the first is not asked again");
	is(task->task.error.http_status, 404, "and the error says why");
	kc_task_free(&task->task);
	is(asked(), 3, "really not");

	request.managed = false;
	is(verdict_of(client, &request), KC_STREAM_QUEUE, "unless there is no other way");
	is(asked(), 4, "then it is");
	stream_rules();
	is(verdict_of(client, &request), KC_STREAM_INGESTED, "and when that succeeds");
	request.managed = true;
	is(verdict_of(client, &request), KC_STREAM_INGESTED, "the refusal is forgotten");
	kc_client_free(client);
}

static void
test_memory_is_bounded(void)
{
	KcClientConfig config = service_config(&server);
	FailAlloc	fa;
	KcClient   *client;
	KcError		err;
	int			before;

	fail_alloc_init(&fa, 0);
	must(kc_client_create(&fa.alloc, h.mux, &config, &client, &err) == KC_OK);
	before = fa.live;
	kc_error_clear(&err);
	for (int i = 0; i < 1000; i++)
	{
		char		table[32];

		snprintf(table, sizeof(table), "T%d", i);
		kc_kusto_stream_remember(client, kc_slice("db"), kc_slice(table), &err, KC_STREAM_REFUSAL_MS);
		kc_kusto_stream_remember(client, kc_slice("db"), kc_slice(table), &err, KC_STREAM_REFUSAL_MS);
	}
	is(fa.live - before, 64, "no more than so many are remembered");
	ok(kc_kusto_stream_refusal(client, kc_slice("db"), kc_slice("T999")) != NULL, "the latest ones");
	ok(kc_kusto_stream_refusal(client, kc_slice("db"), kc_slice("T936")) != NULL, "to the last");
	ok(kc_kusto_stream_refusal(client, kc_slice("db"), kc_slice("T935")) == NULL, "and no more");
	h.moved_ms += KC_STREAM_REFUSAL_MS;
	ok(kc_kusto_stream_refusal(client, kc_slice("db"), kc_slice("T999")) == NULL, "their time is up");
	is(fa.live, before, "and their memory is free");
	fa.fail_at = fa.requests + 1;
	kc_kusto_stream_remember(client, kc_slice("db"), kc_slice("T"), &err, KC_STREAM_REFUSAL_MS);
	ok(fa.has_failed && kc_kusto_stream_refusal(client, kc_slice("db"), kc_slice("T")) == NULL,
	   "without memory there is none");
	kc_client_free(client);
	is(fa.live, 0, "nothing leaks");
}

/* ---- its end at any moment ---- */

typedef struct Phase
{
	const char *name;
	const char *target;			/* what does not answer */
	ServerAction action;
	int			status;
	const char *headers;
	const char *body;
	bool		goes_on;		/* without the task */
} Phase;

static void
test_cancel(void)
{
	static const Phase phases[] = {
		{"while the metadata are asked for", "/v1/rest/auth/metadata", SERVER_STALL},
		{"while the token is", "/oauth2/v2.0/token", SERVER_STALL},
		{"just before it comes", "/oauth2/v2.0/token", SERVER_DRIP,.body = "{   }",.goes_on = true},
		{"while the body is sent", INGEST, SERVER_STALL_EARLY},
		{"while the answer is waited for", INGEST, SERVER_STALL},
		{"in mid-answer", INGEST, SERVER_DRIP,.body = STREAM_ANSWER},
		{"between two tries", INGEST, SERVER_REPLY, 503, "Retry-After: 3\r\n"},
	};
	KcStreamRequest request = sample(true);

	for (size_t i = 0; i < sizeof(phases) / sizeof(phases[0]); i++)
	{
		const Phase *phase = &phases[i];
		KcClientConfig config = service_config(&server);
		FailAlloc	fa;
		KcClient   *client;
		KcStreamTask *task;
		KcError		err;

		stream_rules();
		server_rule_first(&server, (ServerRule) {.target = phase->target,.action = phase->action,.status = phase->status,
						  .headers = phase->headers,.body = phase->body});
		fail_alloc_init(&fa, 0);
		must(kc_client_create(&fa.alloc, h.mux, &config, &client, &err) == KC_OK);
		must(kc_kusto_stream_start(client, &request, &task, &err) == KC_OK);
		while (server_count(&server, NULL, phase->target) == 0)
			harness_turn(&h, 20);
		for (int j = 0; j < 5; j++)
			harness_turn(&h, 10);
		ok(!task->task.done, "ended %s", phase->name);
		kc_task_free(&task->task);
		for (int j = 0; phase->goes_on && j < 60; j++)
			harness_turn(&h, 10);
		kc_client_free(client);
		is(fa.live, 0, "nothing leaks");
	}
}

static void
test_cancel_early(void)
{
	KcClient   *client = service_client(&h, &server);
	KcStreamRequest request = sample(true);
	KcStreamTask *task;

	stream_rules();
	task = start(client, &request);
	kc_task_free(&task->task);
	for (int i = 0; i < 5; i++)
		harness_turn(&h, 10);
	is(server_count(&server, NULL, NULL), 0, "ended before the first drive, it asks nobody");
	kc_client_free(client);
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
	KcStreamRequest request = sample(true);
	static const int statuses[] = {200, 404, 404, 500};

	for (size_t i = 0; i < sizeof(statuses) / sizeof(statuses[0]); i++)
	{
		KcStreamTask *task;
		bool		freed = false;

		stream_rules();
		server_rule_first(&server, (ServerRule) {.target = INGEST,.status = statuses[i],.body = STREAM_ANSWER});
		task = start(client, &request);
		task->task.on_done = free_it;
		task->task.arg = &freed;
		ok(harness_until(&h, &freed), "freed by its own end, status %d", statuses[i]);
	}
	kc_client_free(client);
}

/* Every allocation fails once; with a failing try, so that its way is walked, too. */
static void
test_out_of_memory(void)
{
	KcClientConfig config = service_config(&server);
	KcStreamRequest request = sample(true);
	int			failures = 0;
	int			successes = 0;
	bool		clean = true;

	for (int n = 1; n < 1000; n++)
	{
		KcClient   *client = NULL;
		KcStreamTask *task = NULL;
		FailAlloc	fa;
		KcError		err;
		KcStatus	status;

		stream_rules();
		server_rule_first(&server, (ServerRule) {.target = INGEST,.times = 1,.status = 503,.body = ERROR("X", "X", "x", PASSING)});
		fail_alloc_init(&fa, n);
		status = kc_client_create(&fa.alloc, h.mux, &config, &client, &err);
		if (status == KC_OK)
			status = kc_kusto_stream_start(client, &request, &task, &err);
		if (status == KC_OK)
		{
			(void) harness_until(&h, &task->task.done);
			status = task->task.error.status;
			if (status == KC_ERR_NOMEM && task->verdict != KC_STREAM_FAILED)
				clean = false;
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
	ok(failures > 20, "%d allocations failed, each told as such", failures);
	ok(successes >= 1, "until none did");
	ok(clean, "and nothing leaked");
}

int
main(void)
{
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_request();
	test_decisions();
	harness_stop(&h);
	server_stop(&server);

	/* the server remembers only so many connections */
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_tries();
	test_identity();
	test_memory();
	test_memory_is_bounded();
	test_cancel();
	test_cancel_early();
	test_free_when_done();
	harness_stop(&h);
	server_stop(&server);

	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_out_of_memory();
	harness_stop(&h);
	server_stop(&server);
	return done_testing();
}
