/*
 * test_kusto_post.c
 *	  Posting a blob, following its status, testing a connection.
 */
#define _GNU_SOURCE
#include "core/kusto_internal.h"
#include "fail_alloc.h"
#include "kusto_service.h"

static Server server;
static Harness h;
static KcUuid source_id;

static KcPostRequest
sample(void)
{
	static char url[128];

	snprintf(url, sizeof(url), "%s/acct1/c1/b.csv.gz", server.origin);
	return (KcPostRequest) {
		.properties = {.database = kc_slice("db"),.table = kc_slice("T"),.report = KC_REPORT_ALL},
			.source_id = source_id,.blob_url = kc_slice(url),.raw_size = 1234
	};
}

static KcPostTask *
post(KcClient *client, const KcPostRequest *request)
{
	KcPostTask *task;
	KcError		err;

	must(kc_kusto_post_start(client, request, &task, &err) == KC_OK);
	(void) harness_until(&h, &task->task.done);
	ok(service_keeps_secrets(&task->task.error), "no secret is told");
	return task;
}

/* The JSON of the n-th message that was posted; to be freed. */
static char *
message_text(int n)
{
	const ServerRequest *seen = server_nth(&server, "POST", "/messages?", n);
	const char *start;
	const char *end;
	KcBuf		text;

	must(seen != NULL);
	start = strstr(seen->body, "<MessageText>") + strlen("<MessageText>");
	end = strstr(start, "</MessageText>");
	kc_buf_init(&text, &kc_alloc_malloc, 1 << 20);
	must(end != NULL && kc_text_base64_decode(&text, kc_slice_n(start, (size_t) (end - start))));
	return text.data;
}

static void
test_post(void)
{
	KcClient   *client = service_client(&h, &server);
	KcPostRequest request = sample();
	KcPostTask *task;
	const ServerRequest *row;
	char	   *message;
	char		expected[256];

	service_rules(&server);
	task = post(client, &request);
	is(task->task.error.status, KC_OK, "a blob is posted");
	ok(task->message_sent && task->status_row_written, "row and message");
	ok(task->status_table != NULL && strstr(task->status_table, "?") == NULL, "the table is told without SAS");
	row = server_nth(&server, "POST", "/status", 0);
	must(row != NULL);
	ok(strstr(row->body, "\"Status\":\"Pending\"") && strstr(row->body, "\"Database\":\"db\"")
	   && strstr(row->body, "\"PartitionKey\":\"2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11\""), "the row");
	ok(strstr(row->body, "SaSsEcReT") == NULL, "holds no SAS");
	message = message_text(0);
	snprintf(expected, sizeof(expected), "\"BlobPath\":\"%s/acct1/c1/b.csv.gz?%s\"", server.origin, SERVICE_SAS);
	ok(strstr(message, expected) != NULL, "the message names the blob with its container's SAS");
	snprintf(expected, sizeof(expected), "\"TableConnectionString\":\"%s?%s\"", task->status_table, SERVICE_SAS);
	ok(strstr(message, expected) != NULL, "and the row's table");
	ok(strstr(message, "\"authorizationContext\":\"identity-secret-1\"") != NULL, "and the identity token");
	free(message);
	kc_task_free(&task->task);

	/* again, as the worker does after a crash */
	snprintf(expected, sizeof(expected), "%s/acct2/status2", server.origin);
	request.status_table = kc_slice(expected);
	request.status_row_exists = true;
	service_rules(&server);
	task = post(client, &request);
	is(task->task.error.status, KC_OK, "a blob whose row exists");
	is(server_count(&server, "POST", "/status"), 0, "gets no second row");
	is_str(task->status_table, expected, "and keeps its table");
	kc_task_free(&task->task);
	request.status_row_exists = false;
	server_rule_first(&server, (ServerRule) {.target = "/acct2/status2",.status = 409,.body =
					  "{\"odata.error\":{\"code\":\"EntityAlreadyExists\"}}"});
	task = post(client, &request);
	is(task->task.error.status, KC_OK, "a row that turns out to exist is as good");
	is_str(task->status_table, expected, "in the table that was remembered");
	kc_task_free(&task->task);
	request.status_table = kc_slice("https://old.table.core.windows.net/gone");
	request.status_row_exists = true;
	service_rules(&server);
	task = post(client, &request);
	is(task->task.error.status, KC_OK, "a row in a table that is gone");
	is(server_count(&server, "POST", "/status"), 1, "is written anew");
	kc_task_free(&task->task);

	service_rules(&server);
	request = sample();
	request.properties.report = KC_REPORT_NONE;
	task = post(client, &request);
	is(server_count(&server, "POST", "/status"), 0, "no report, no row");
	ok(task->task.error.status == KC_OK && task->status_table == NULL && !task->status_row_written, "nor table");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/* A blob that was posted before is looked for first. */
static void
test_post_again(void)
{
	static const char forbidden[] = "x-ms-error-code: AuthorizationPermissionMismatch\r\n";
	static const char expired[] = "x-ms-error-code: AuthenticationFailed\r\n";
	static const char gone[] = "x-ms-error-code: BlobNotFound\r\n";
	static const char no_container[] = "x-ms-error-code: ContainerNotFound\r\n";
	static const char going[] = "x-ms-error-code: ContainerBeingDeleted\r\n";
	static const char no_account[] = "x-ms-error-code: AccountNotFound\r\n";
	static const struct
	{
		const char *name;
		ServerRule	rule;
		KcStatus	status;
		bool		gone;
		int			heads;		/* requests for the blob */
	}			rows[] = {
		{"a blob that is there", {.method = "HEAD",.body = "content"}, KC_OK, false, 1},
		{"a blob that is gone", {.method = "HEAD",.status = 404,.headers = gone}, KC_ERR_REFUSED, true, 1},
		{"a container that is gone", {.method = "HEAD",.status = 404,.headers = no_container}, KC_ERR_REFUSED, true, 1},
		{"a container that goes", {.method = "HEAD",.status = 409,.headers = going}, KC_ERR_REFUSED, true, 1},
		{"a 404 of somebody else", {.method = "HEAD",.status = 404}, KC_ERR_SERVICE, false, 2},
		{"a 404 with another code", {.method = "HEAD",.status = 404,.headers = no_account}, KC_ERR_SERVICE, false, 2},
		{"storage that is busy once", {.method = "HEAD",.times = 1,.status = 503}, KC_OK, false, 2},
		{"a SAS without the right to read", {.method = "HEAD",.status = 403,.headers = forbidden}, KC_OK, false, 1},
		{"a SAS that has expired", {.method = "HEAD",.times = 1,.status = 403,.headers = expired}, KC_OK, false, 2},
		{"a SAS that is never good", {.method = "HEAD",.status = 403,.headers = expired}, KC_OK, false, 2},
		{"storage that always refuses", {.method = "HEAD",.status = 400}, KC_ERR_REFUSED, false, 1},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
	{
		KcClient   *client = service_client(&h, &server);
		KcPostRequest request = sample();
		bool		sent = rows[i].status == KC_OK;
		KcPostTask *task;

		service_rules(&server);
		server_rule(&server, (ServerRule) {.method = "HEAD",.target = "/acct1/c1/b.csv.gz?sv="});
		server_rule_first(&server, rows[i].rule);
		request.check_blob = true;
		task = post(client, &request);
		is(task->task.error.status, rows[i].status, rows[i].name);
		is(task->blob_gone, rows[i].gone, "blob_gone");
		is(task->message_sent, sent, "message_sent");
		is(server_count(&server, "POST", "/messages?"), sent ? 1 : 0, "messages");
		is(server_count(&server, "HEAD", "/acct1/c1/b.csv.gz?"), rows[i].heads, "looks");
		ok(!task->task.error.after_send, "looking has no effect");
		if (rows[i].status == KC_ERR_SERVICE)
			ok(kc_retry_transient(&task->task.error), "may pass");
		if (rows[i].gone)
		{
			is_str(task->task.error.what, "the blob does not exist any more", "the error says so");
			ok(task->task.error.permanent, "for good");
			is(server_count(&server, NULL, "/status"), 0, "no row either");
		}
		kc_task_free(&task->task);
		kc_client_free(client);
	}
}

/* What stands in the status table may be the outcome of an earlier try. */
static void
test_post_renews_row(void)
{
	KcClient   *client = service_client(&h, &server);
	KcPostRequest request = sample();
	KcPostTask *task;
	char		table[128];

	snprintf(table, sizeof(table), "%s/acct2/status2", server.origin);
	request.check_blob = true;
	request.status_table = kc_slice(table);
	service_rules(&server);
	server_rule(&server, (ServerRule) {.method = "HEAD",.target = "/acct1/c1/b.csv.gz"});
	task = post(client, &request);
	is(task->task.error.status, KC_OK, "a blob whose row is not known");
	is(server_count(&server, "PUT", "/acct2/status2"), 0, "writes over nothing");
	is(server_count(&server, "POST", "/acct2/status2"), 1, "but inserts");
	kc_task_free(&task->task);

	request.renew_row = true;
	service_rules(&server);
	server_rule(&server, (ServerRule) {.method = "HEAD",.target = "/acct1/c1/b.csv.gz"});
	task = post(client, &request);
	is(task->task.error.status, KC_OK, "a blob that is posted once more");
	is(server_count(&server, "PUT", "/acct2/status2(PartitionKey='2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11',"
					"RowKey='2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11')?sv="), 1, "has its row replaced");
	is(server_count(&server, "POST", "/status"), 0, "not a second one");
	is_str(task->status_table, table, "in the table that was remembered");
	kc_task_free(&task->task);

	request.status_row_exists = true;
	service_rules(&server);
	server_rule(&server, (ServerRule) {.method = "HEAD",.target = "/acct1/c1/b.csv.gz"});
	task = post(client, &request);
	is(task->task.error.status, KC_OK, "a blob whose post is in doubt");
	is(server_count(&server, NULL, "/status"), 0, "keeps its row as it is");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/* An outcome that is to be replaced does not stay in one table, with a new row in another. */
static void
test_renewed_row_keeps_table(void)
{
	KcClient   *client = service_client(&h, &server);
	KcPostRequest request = sample();
	KcPostTask *task;
	char		table[128];

	snprintf(table, sizeof(table), "%s/acct2/status2", server.origin);
	request.check_blob = request.renew_row = true;
	request.status_table = kc_slice(table);
	service_rules(&server);
	server_rule(&server, (ServerRule) {.method = "HEAD",.target = "/acct1/c1/b.csv.gz"});
	server_rule_first(&server, (ServerRule) {.method = "PUT",.target = "/acct2/status2",.status = 503});
	task = post(client, &request);
	is(task->task.error.http_status, 503, "a table that is busy keeps its row");
	ok(kc_retry_transient(&task->task.error), "which may pass");
	ok(!task->status_row_written && !task->message_sent, "nothing is sent");
	is(server_count(&server, NULL, "/acct1/status1"), 0, "and no other table gets one");
	kc_task_free(&task->task);

	request.status_table = kc_slice("https://old.table.core.windows.net/gone");
	service_rules(&server);
	server_rule(&server, (ServerRule) {.method = "HEAD",.target = "/acct1/c1/b.csv.gz"});
	server_rule_first(&server, (ServerRule) {.method = "PUT",.target = "/status",.status = 503,.times = 1});
	task = post(client, &request);
	is(task->task.error.status, KC_OK, "of a table that is none of the service's any more nothing is read");
	kc_task_free(&task->task);
	kc_client_free(client);
}

static void
test_post_faults(void)
{
	static const struct
	{
		const char *name;
		ServerRule	rule;
		KcStatus	status;
		bool		sent;
		int			messages;	/* requests to queues */
	}			rows[] = {
		{"a busy queue", {.target = "/messages?",.times = 1,.status = 503}, KC_OK, true, 2},
		{"a queue that is always busy", {.target = "/q1/messages?",.status = 503}, KC_OK, true, 0},
		{"a queue that breaks after", {.target = "/messages?",.action = SERVER_RESET}, KC_ERR_NETWORK, true, 1},
		{"a queue that never answers", {.target = "/messages?",.action = SERVER_STALL}, KC_ERR_TIMEOUT, true, 1},
		{"a queue that failed somehow", {.target = "/messages?",.status = 500}, KC_ERR_SERVICE, true, 1},
		{"a refused SAS, once", {.target = "/messages?",.times = 1,.status = 403}, KC_OK, true, 2},
		{"a SAS that is always refused", {.target = "/messages?",.status = 403,.body =
		"<Error><Code>AuthenticationFailed</Code><Message>m</Message></Error>"}, KC_ERR_FORBIDDEN, false, 3},
		{"a queue that is gone", {.target = "/q1/messages?",.status = 404}, KC_OK, true, 0},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
	{
		KcClientConfig config = service_config(&server);
		KcPostRequest request = sample();
		KcClient   *client;
		KcPostTask *task;
		KcError		err;

		config.request_timeout_ms = 700;
		must(kc_client_create(&kc_alloc_malloc, h.mux, &config, &client, &err) == KC_OK);
		service_rules(&server);
		server_rule_first(&server, rows[i].rule);
		task = post(client, &request);
		is(task->task.error.status, rows[i].status, rows[i].name);
		is(task->message_sent, rows[i].sent, "sent, perhaps");
		if (rows[i].status == KC_ERR_NETWORK)
			is(task->task.error.advice, KC_ADVICE_PRIVATE_ENDPOINT, "advice");
		if (rows[i].messages > 0)
			is(server_count(&server, "POST", "/messages?"), rows[i].messages, "tries");
		if (rows[i].status != KC_OK)
			is(task->task.error.after_send, rows[i].sent, "an unclear outcome is told");
		ok(task->status_row_written, "the row is written");
		is(server_count(&server, "POST", "/status"), 1, "once");
		kc_task_free(&task->task);
		kc_client_free(client);
	}
}

static void
ignore(KcWaiter *waiter, const KcError *err)
{
	(void) waiter;
	(void) err;
}

static void
test_row_faults(void)
{
	KcClient   *client = service_client(&h, &server);
	KcPostRequest request = sample();
	KcPostTask *task;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/status",.times = 1,.status = 403});
	task = post(client, &request);
	is(task->task.error.status, KC_OK, "a refused SAS of a table");
	is(server_count(&server, NULL, "/v1/rest/mgmt"), 4, "fetches the resources again");
	kc_task_free(&task->task);

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/acct1/status1",.status = 400});
	server_rule_first(&server, (ServerRule) {.target = "/acct2/status2",.status = 400});
	task = post(client, &request);
	is(task->task.error.status, KC_ERR_REFUSED, "no table takes the row");
	is(server_count(&server, "POST", "/status"), 2, "both were tried");
	is(server_count(&server, "POST", "/messages?"), 0, "and no message was sent");
	ok(!task->message_sent && !task->status_row_written, "which is told");
	kc_task_free(&task->task);

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/status",.times = 1,.status = 409,.body =
					  "{\"odata.error\":{\"code\":\"TableBeingDeleted\"}}"});
	task = post(client, &request);
	is(task->task.error.status, KC_OK, "a table that is being deleted has no row");
	is(server_count(&server, "POST", "/status"), 2, "so another table gets it");
	ok(task->status_row_written && strstr(server_nth(&server, "POST", "/status", 1)->target,
										  strrchr(task->status_table, '/')), "and is told");
	kc_task_free(&task->task);
	kc_client_free(client);

	client = service_client(&h, &server);

	service_rules(&server);
	request.blob_url = kc_slice("https://gone.blob.core.windows.net/c/b.csv.gz");
	task = post(client, &request);
	is(task->task.error.status, KC_ERR_NOT_FOUND, "a container that is gone");
	is_str(task->task.error.host, "gone.blob.core.windows.net", "is named");
	is(server_count(&server, NULL, "/v1/rest/mgmt"), 4, "after the resources were fetched once more");
	is(server_count(&server, "POST", "/messages?"), 0, "and no message was sent");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/*
 * A reset in mid-request: whether the whole of it had left is a matter of
 * luck.  If so it is told and not repeated, else another try is made.
 */
static void
test_reset_queue(void)
{
	KcClient   *client = service_client(&h, &server);
	KcPostRequest request = sample();
	KcPostTask *task;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/messages?",.times = 1,.action = SERVER_RESET_EARLY});
	task = post(client, &request);
	if (task->task.error.status != KC_OK)
		ok(task->task.error.after_send && server_count(&server, "POST", "/messages?") == 1,
		   "a queue that resets: told, not repeated");
	else
		is(server_count(&server, "POST", "/messages?"), 2, "a queue that resets: tried again");
	ok(task->message_sent, "sent, perhaps");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/* A Retry-After of one account does not keep us from the other. */
static void
test_long_retry_after(void)
{
	KcClient   *client = service_client(&h, &server);
	KcPostRequest request = sample();
	KcPostTask *task;
	int64_t		start_ms = harness_now_ms(&h);

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/messages?",.times = 1,.status = 503,
					  .headers = "Retry-After: 3600\r\n"});
	server_rule_first(&server, (ServerRule) {.method = "POST",.target = "/status",.times = 1,.status = 503,
					  .headers = "Retry-After: 3600\r\n"});
	task = post(client, &request);
	is(task->task.error.status, KC_OK, "an account that asks for an hour is passed over");
	ok(harness_now_ms(&h) - start_ms < 5000, "at once");
	is(server_count(&server, "POST", "/messages?"), 2, "for another queue");
	is(server_count(&server, "POST", "/status"), 2, "and another table");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/* The token that a message was sent with, not the one that is current when it is refused. */
static void
test_renewed_identity_token(void)
{
	KcClient   *client = service_client(&h, &server);
	KcPostRequest request = sample();
	KcPostTask *task;
	KcWaiter	waiter = {.ready = NULL};
	KcError		err;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/messages?",.status = 400,.action = SERVER_DRIP,
					  .body = "<Error><Code>InvalidInput</Code><Message>identity-secret-1</Message></Error>"});
	must(kc_kusto_post_start(client, &request, &task, &err) == KC_OK);
	while (server_count(&server, "POST", "/messages?") == 0)
		harness_turn(&h, 20);
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.body_part = "identity token",
					  .body = SERVICE_TABLE(SERVICE_COLUMN("AuthorizationContext", "string"), "[\"identity-secret-2\"]")});
	waiter.ready = ignore;
	must(kc_resources_wait(client->resources, &waiter, &err) == KC_OK);
	(void) harness_until(&h, &task->task.done);
	is_slice(kc_resources_identity_token(client->resources), "identity-secret-2", "the token was renewed meanwhile");
	is(task->task.error.status, KC_ERR_REFUSED, "and the message refused");
	ok(service_keeps_secrets(&task->task.error), "without the token that it was sent with");
	kc_task_free(&task->task);
	kc_client_free(client);
}

static void
test_large_message(void)
{
	KcClient   *client = service_client(&h, &server);
	KcPostRequest request = sample();
	char	   *tag = malloc(50000);
	KcSlice		tags[1];
	KcPostTask *task;

	must(tag != NULL);
	memset(tag, 'x', 50000);
	tags[0] = kc_slice_n(tag, 50000);
	request.properties.tags = tags;
	request.properties.ntags = 1;
	service_rules(&server);
	task = post(client, &request);
	is(task->task.error.status, KC_ERR_LIMIT, "a message above 48 KiB is refused here");
	is(server_count(&server, "POST", "/messages?"), 0, "and not sent");
	kc_task_free(&task->task);
	free(tag);
	kc_client_free(client);
}

static void
test_post_cancel(void)
{
	static const char *const stalls[] = {"/v1/rest/mgmt", "/status", "/messages?"};
	KcPostRequest request = sample();

	for (size_t i = 0; i < sizeof(stalls) / sizeof(stalls[0]); i++)
	{
		KcClient   *client = service_client(&h, &server);
		KcPostTask *task;
		KcError		err;

		service_rules(&server);
		server_rule_first(&server, (ServerRule) {.target = stalls[i],.action = SERVER_STALL});
		must(kc_kusto_post_start(client, &request, &task, &err) == KC_OK);
		while (server_count(&server, "POST", stalls[i]) == 0)
			harness_turn(&h, 20);
		kc_task_free(&task->task);
		kc_client_free(client);
		ok(true, "freed while %s is silent", stalls[i]);
	}
}

/* ---- status ---- */

typedef struct StatusRow
{
	const char *body;
	KcIngestOutcome outcome;
	bool		transient;
	KcAdvice	advice;
} StatusRow;

static const StatusRow status_rows[] = {
	{"{\"Status\":\"Pending\"}", KC_OUTCOME_PENDING, false, KC_ADVICE_NONE},
	{"{\"Status\":\"Succeeded\",\"OperationId\":\"7a3c1f30-52b1-4f0d-9c2e-b6b1d6f0a001\"}", KC_OUTCOME_SUCCEEDED, false, KC_ADVICE_NONE},
	{"{\"Status\":\"PartiallySucceeded\"}", KC_OUTCOME_PARTIALLY_SUCCEEDED, false, KC_ADVICE_NONE},
	{"{\"Status\":\"Skipped\"}", KC_OUTCOME_SKIPPED, false, KC_ADVICE_NONE},
	{"{\"Status\":\"Queued\"}", KC_OUTCOME_QUEUED, false, KC_ADVICE_NONE},
	{"{\"Status\":\"Brewing\"}", KC_OUTCOME_PENDING, false, KC_ADVICE_NONE},
	{"{\"Status\":\"Failed\",\"ErrorCode\":\"BadRequest_TableNotExist\",\"FailureStatus\":\"Permanent\"}",
	KC_OUTCOME_FAILED, false, KC_ADVICE_TABLE_MISSING},
	{"{\"Status\":\"Failed\",\"ErrorCode\":\"General_ThrottledIngestion\",\"FailureStatus\":\"Transient\"}",
	KC_OUTCOME_FAILED, true, KC_ADVICE_THROTTLED},
	{"{\"Status\":\"Failed\",\"ErrorCode\":\"X\",\"FailureStatus\":3}", KC_OUTCOME_FAILED, true, KC_ADVICE_NONE},
	{"{\"Status\":\"Failed\",\"ErrorCode\":\"Download_UnknownError\"}", KC_OUTCOME_FAILED, true, KC_ADVICE_NONE},
	{"{\"Status\":\"Failed\",\"ErrorCode\":\"Stream_WrongNumberOfFields\"}", KC_OUTCOME_FAILED, false, KC_ADVICE_NONE},
	{"{\"Status\":\"Skipped\",\"ErrorCode\":\"IngestByTagAlreadyExists\"}", KC_OUTCOME_SKIPPED, false, KC_ADVICE_NONE},
	{"{\"Status\":\"Failed\",\"ErrorCode\":\"IngestByTagAlreadyExists\"}", KC_OUTCOME_SKIPPED, false, KC_ADVICE_NONE},
	{"{\"Status\":\"Failed\",\"ErrorCode\":\"Skipped_IngestByTagAlreadyExists\",\"FailureStatus\":\"Permanent\"}",
	KC_OUTCOME_SKIPPED, false, KC_ADVICE_NONE},
	{"{\"Status\":\"Skipped\",\"ErrorCode\":\"BadRequest_EmptyBlob\"}", KC_OUTCOME_SKIPPED, false, KC_ADVICE_NONE},
	{"{\"Status\":\"Failed\",\"ErrorCode\":\"General_AbandonedIngestion\",\"FailureStatus\":\"Transient\"}",
	KC_OUTCOME_PENDING, false, KC_ADVICE_NONE},
	{"{\"Status\":\"Failed\",\"ErrorCode\":\"General_AbandonedIngestion\",\"FailureStatus\":\"Exhausted\"}",
	KC_OUTCOME_FAILED, true, KC_ADVICE_NONE},
};

static KcStatusTask *
ask_status(KcClient *client, const char *table)
{
	KcStatusTask *task;
	KcError		err;

	must(kc_kusto_status_start(client, kc_slice(table), &source_id, &task, &err) == KC_OK);
	(void) harness_until(&h, &task->task.done);
	ok(service_keeps_secrets(&task->task.error), "no secret is told");
	return task;
}

static void
test_status(void)
{
	KcClient   *client = service_client(&h, &server);
	KcStatusTask *task;
	char		table[128];

	snprintf(table, sizeof(table), "%s/acct1/status1", server.origin);
	for (size_t i = 0; i < sizeof(status_rows) / sizeof(status_rows[0]); i++)
	{
		service_rules(&server);
		server_rule(&server, (ServerRule) {.method = "GET",.target = "/acct1/status1(PartitionKey='2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11',RowKey='2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11')?sv=",
					.body = status_rows[i].body});
		task = ask_status(client, table);
		is(task->task.error.status, KC_OK, status_rows[i].body);
		is(task->outcome, status_rows[i].outcome, "outcome");
		is(task->transient, status_rows[i].transient, "transient or not");
		is(task->advice, status_rows[i].advice, "advice");
		is(task->tag_exists, task->outcome == KC_OUTCOME_SKIPPED && strstr(status_rows[i].body, "BadRequest_") == NULL,
		   "because of a tag or not");
		is_str(task->status_table, table, "where it stands");
		kc_task_free(&task->task);
	}

	service_rules(&server);
	server_rule(&server, (ServerRule) {.method = "GET",.target = "/acct1/status1",.status = 404,.body =
				"{\"odata.error\":{\"code\":\"ResourceNotFound\",\"message\":{\"value\":\"m\"}}}"});
	task = ask_status(client, table);
	is(task->task.error.status, KC_OK, "a row that is not there");
	is(task->outcome, KC_OUTCOME_MISSING, "is missing");
	ok(task->status_table == NULL, "nowhere");
	kc_task_free(&task->task);

	service_rules(&server);
	server_rule(&server, (ServerRule) {.method = "GET",.target = "/acct1/status1",.times = 1,.status = 403});
	server_rule(&server, (ServerRule) {.method = "GET",.target = "/acct1/status1",.body = "{\"Status\":\"Succeeded\"}"});
	task = ask_status(client, table);
	is(task->outcome, KC_OUTCOME_SUCCEEDED, "a refused SAS is replaced");
	is(server_count(&server, NULL, "/v1/rest/mgmt"), 2, "by fetching the resources");
	kc_task_free(&task->task);

	service_rules(&server);
	server_rule(&server, (ServerRule) {.method = "GET",.target = "/acct1/status1",.body = "{}"});
	task = ask_status(client, table);
	is(task->task.error.status, KC_ERR_PROTOCOL, "a row without status");
	kc_task_free(&task->task);
	task = ask_status(client, "https://old.table.core.windows.net/gone");
	is(task->task.error.status, KC_ERR_NOT_FOUND, "a table that is gone");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/* What the service tells back may hold our identity token. */
static void
test_status_secrets(void)
{
	KcClient   *client = service_client(&h, &server);
	KcStatusTask *task;
	char		table[128];

	service_rules(&server);
	snprintf(table, sizeof(table), "%s/acct1/status1", server.origin);
	server_rule(&server, (ServerRule) {.method = "GET",.target = "/acct1/status1",.body =
				"{\"Status\":\"Failed\",\"ErrorCode\":\"BadRequest_InvalidKustoIdentityToken\","
				"\"Details\":\"not valid: identity-secret-1, alas\"}"});
	task = ask_status(client, table);
	is(task->outcome, KC_OUTCOME_FAILED, "a failure that tells the identity token");
	is_str(task->error_code, "BadRequest_InvalidKustoIdentityToken", "its code");
	ok(strstr(task->details, "not valid") && strstr(task->details, "alas")
	   && !strstr(task->details, "identity-secret-1"), "its details, without the token");
	kc_task_free(&task->task);
	kc_client_free(client);
}

#define ONE_OF_EACH \
	SERVICE_TABLE(SERVICE_COLUMN("ResourceTypeName", "string") "," SERVICE_COLUMN("StorageRoot", "string"), \
				  SERVICE_RESOURCE("TempStorage", "/acct1/c1", SERVICE_SAS) "," \
				  SERVICE_RESOURCE("SecuredReadyForAggregationQueue", "/acct1/q1", SERVICE_SAS))

static void
test_no_tables(void)
{
	KcClient   *client = service_client(&h, &server);
	KcStatusTask *task;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.body_part = "ingestion resources",
					  .body = ONE_OF_EACH});
	task = ask_status(client, "");
	is(task->task.error.status, KC_OK, "a service without status tables");
	is(task->outcome, KC_OUTCOME_QUEUED, "will not report, which is not that nothing was posted");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/* The service throttles who asks for resources again and again. */
static void
test_gone_table_asks_once(void)
{
	KcClient   *client = service_client(&h, &server);
	KcPostRequest request = sample();
	KcStatusTask *task;
	KcPostTask *posted;

	service_rules(&server);
	for (int i = 0; i < 5; i++)
	{
		task = ask_status(client, "https://old.table.core.windows.net/gone");
		is(task->task.error.status, KC_ERR_NOT_FOUND, "a table that is gone");
		kc_task_free(&task->task);
	}
	is(server_count(&server, NULL, "/v1/rest/mgmt"), 4, "is looked for in one further set only");
	h.moved_ms += 61 * 1000;
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.status = 429});
	task = ask_status(client, "https://old.table.core.windows.net/gone");
	is(task->task.error.status, KC_ERR_NOT_FOUND, "also after a minute, by a service that is too busy to tell");
	kc_task_free(&task->task);
	posted = post(client, &request);
	is(posted->task.error.status, KC_OK, "which takes from nobody the set that there is");
	kc_task_free(&posted->task);
	kc_client_free(client);
}

static void
test_status_anywhere(void)
{
	KcClient   *client = service_client(&h, &server);
	KcStatusTask *task;
	char		table[128];

	service_rules(&server);
	server_rule(&server, (ServerRule) {.method = "GET",.target = "/acct1/status1",.status = 404,.body =
				"{\"odata.error\":{\"code\":\"ResourceNotFound\"}}"});
	server_rule(&server, (ServerRule) {.method = "GET",.target = "/acct2/status2",.body = "{\"Status\":\"Succeeded\"}"});
	task = ask_status(client, "");
	is(task->outcome, KC_OUTCOME_SUCCEEDED, "a row is found in whatever table it stands");
	snprintf(table, sizeof(table), "%s/acct2/status2", server.origin);
	is_str(task->status_table, table, "and which one is told");
	kc_task_free(&task->task);
	server_rule_first(&server, (ServerRule) {.method = "GET",.target = "/acct2/status2",.status = 404,.body =
					  "{\"odata.error\":{\"code\":\"ResourceNotFound\"}}"});
	task = ask_status(client, "");
	ok(task->task.error.status == KC_OK && task->outcome == KC_OUTCOME_MISSING, "or in none");
	kc_task_free(&task->task);
	server_rule_first(&server, (ServerRule) {.method = "GET",.target = "/acct2/status2",.status = 400});
	task = ask_status(client, "");
	is(task->task.error.status, KC_ERR_REFUSED, "a table that does not answer is an error, not a missing row");
	kc_task_free(&task->task);
	kc_client_free(client);
}

/* ---- probes ---- */

static void
test_probes(void)
{
	static const char *const details[] = {
		[KC_PROBE_RESOLVE] = "answers at 127.0.0.1",
		[KC_PROBE_METADATA] = "resource https://kusto.example",
		[KC_PROBE_TOKEN] = "the token does not tell its owner, valid for",
		[KC_PROBE_QUERY] = "database \"db\" answers",
		[KC_PROBE_RESOURCES] = "3 containers, 2 queues, 2 status tables",
		[KC_PROBE_IDENTITY_TOKEN] = "an identity token was given",
		[KC_PROBE_STORAGE] = "a blob was written and deleted",
	};
	KcClient   *client = service_client(&h, &server);
	KcProbeTask *task;
	KcError		err;

	service_rules(&server);
	server_rule(&server, (ServerRule) {.target = "/v2/rest/query",.body =
				"[{\"FrameType\":\"DataTable\",\"TableKind\":\"PrimaryResult\",\"Columns\":[],\"Rows\":[]},"
				"{\"FrameType\":\"DataSetCompletion\",\"HasErrors\":false}]"});
	for (int probe = 0; probe < KC_PROBE_COUNT; probe++)
	{
		must(kc_kusto_probe_start(client, (KcProbe) probe, kc_slice("db"), &task, &err) == KC_OK);
		(void) harness_until(&h, &task->task.done);
		is(task->task.error.status, KC_OK, kc_probe_name((KcProbe) probe));
		ok(strstr(task->detail, details[probe]) != NULL, "tells \"%s\"", details[probe]);
		ok(strstr(task->detail, "secret") == NULL && strstr(task->detail, "SaS") == NULL, "and no secret");
		kc_task_free(&task->task);
	}
	is(server_count(&server, "PUT", "/acct"), 1, "one blob was written");
	is(server_count(&server, "DELETE", "/acct"), 1, "and deleted");

	server_rule_first(&server, (ServerRule) {.method = "DELETE",.status = 403});
	must(kc_kusto_probe_start(client, KC_PROBE_STORAGE, KC_SLICE_NULL, &task, &err) == KC_OK);
	(void) harness_until(&h, &task->task.done);
	is(task->task.error.status, KC_OK, "who may not delete may still write");
	ok(strstr(task->detail, "could not be deleted") != NULL, "which is told");
	kc_task_free(&task->task);
	server_rule_first(&server, (ServerRule) {.method = "PUT",.status = 403});
	must(kc_kusto_probe_start(client, KC_PROBE_STORAGE, KC_SLICE_NULL, &task, &err) == KC_OK);
	(void) harness_until(&h, &task->task.done);
	is(task->task.error.status, KC_ERR_FORBIDDEN, "who may not write is told");
	kc_task_free(&task->task);
	for (int probe = 0; probe < KC_PROBE_COUNT; probe++)
	{
		must(kc_kusto_probe_start(client, (KcProbe) probe, KC_SLICE_NULL, &task, &err) == KC_OK);
		kc_task_free(&task->task);
	}
	ok(true, "probes may be freed before they begin");
	kc_client_free(client);
}

/* A probe waits in one of three lists; freeing it must leave all three sound. */
static void
test_probe_cancel(void)
{
	static const struct
	{
		KcProbe		probe;
		const char *stall;
	}			rows[] = {
		{KC_PROBE_METADATA, "/v1/rest/auth/metadata"},
		{KC_PROBE_TOKEN, "/oauth2/"},
		{KC_PROBE_RESOURCES, "/v1/rest/mgmt"},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
	{
		KcClient   *client = service_client(&h, &server);
		KcProbeTask *first;
		KcProbeTask *second;
		KcError		err;

		service_rules(&server);
		server_rule_first(&server, (ServerRule) {.target = rows[i].stall,.action = SERVER_STALL,.times = 1});
		must(kc_kusto_probe_start(client, rows[i].probe, KC_SLICE_NULL, &first, &err) == KC_OK);
		while (server_count(&server, NULL, rows[i].stall) == 0)
			harness_turn(&h, 20);
		kc_task_free(&first->task);
		must(kc_kusto_probe_start(client, rows[i].probe, KC_SLICE_NULL, &second, &err) == KC_OK);
		(void) harness_until(&h, &second->task.done);
		is(second->task.error.status, KC_OK, kc_probe_name(rows[i].probe));
		ok(server_count(&server, NULL, rows[i].stall) >= 2, "a request that nobody waits for is not inherited");
		kc_task_free(&second->task);
		kc_client_free(client);
	}
}

int
main(void)
{
	must(kc_uuid_parse(kc_slice("2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11"), &source_id));
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_post();
	test_post_again();
	test_post_renews_row();
	test_renewed_row_keeps_table();
	test_post_faults();
	test_row_faults();
	test_reset_queue();
	test_long_retry_after();
	test_renewed_identity_token();
	test_large_message();
	test_post_cancel();
	test_status();
	test_status_secrets();
	test_no_tables();
	test_gone_table_asks_once();
	test_status_anywhere();
	test_probes();
	test_probe_cancel();
	harness_stop(&h);
	server_stop(&server);
	return done_testing();
}
