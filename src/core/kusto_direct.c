/*
 * kusto_direct.c
 *	  ".ingest into table": the engine takes blobs at once, all or none.
 *
 *		resources -> command -> done
 *			 ^			|-> throttled: wait, again
 *			 |			|-> no answer, but a tag protects: wait, again
 *			 +----------+-> SAS refused: fetch resources once more
 *
 * The command holds the signatures of its blobs, and the service likes to quote
 * commands in its errors: whatever it says is scrubbed of them.
 *
 * Public sources: learn.microsoft.com/kusto/management/data-ingestion/ingest-from-storage,
 * learn.microsoft.com/kusto/management/capacity-policy
 */
#include <string.h>

#include "kusto_internal.h"

static const char doing_direct[] = "ingesting blobs directly";

#define MAX_ANSWER (16 * 1024 * 1024)
/* The service ends a command at its "servertimeout", give or take that much. */
#define SERVER_TIMEOUT_MARGIN_MS 10000

typedef struct Direct
{
	KcDirectTask pub;			/* first member */
	KcClient   *client;
	KcIngestProperties *properties;
	char	  **urls;
	int			nurls;
	KcTimer		timer;			/* the beginning, then the waits */
	KcWaiter	waiter;
	KcRequestTask *request;
	KcBuf		command;		/* secret */
	KcBuf		signatures;		/* secret; those in the command, one a line */
	uint64_t	generation;		/* of the resources in use */
	bool		refetched;
	bool		begun;
	bool		protected;		/* done twice, it has its effect once */
	KcRetry		retry;
	int64_t		sent_ms;
	bool		maybe_done;
} Direct;

static void step(Direct *direct);

static void
finish(Direct *direct, const KcError *err)
{
	direct->pub.doubtful = err != NULL && direct->maybe_done;
	kc_task_finish(&direct->pub.task, err);
}

/* ---- the command ---- */

/* Different ones only: there are many blobs, but few containers. */
static void
note_signature(Direct *direct, KcSlice sas)
{
	KcBuf	   *all = &direct->signatures;
	const char *at = all->data;
	const char *end = at + all->len;

	if (all->failed != KC_OK)
		return;					/* perhaps in mid-line */
	while (all->len > 0 && at < end)
	{
		const char *newline = memchr(at, '\n', (size_t) (end - at));

		if (kc_slice_eq(kc_slice_n(at, (size_t) (newline - at)), sas))
			return;
		at = newline + 1;
	}
	kc_buf_slice(all, sas);
	kc_buf_char(all, '\n');
}

static void
append_property(KcBuf *out, const char *name, KcSlice value)
{
	kc_buf_str(out, ", ");
	kc_buf_str(out, name);
	kc_buf_char(out, '=');
	kc_text_kql_string(out, value);
}

static void
append_list(Direct *direct, const char *name, const KcSlice *items, int nitems)
{
	KcBuf		text;

	if (nitems == 0)
		return;
	kc_buf_init(&text, direct->client->alloc, KC_BUF_UNLIMITED);
	kc_message_list(&text, items, nitems, NULL);
	if (text.failed != KC_OK)
		direct->command.failed = text.failed;
	append_property(&direct->command, name, kc_buf_view(&text));
	kc_buf_free(&text);
}

static void
append_properties(Direct *direct)
{
	const KcIngestProperties *properties = direct->properties;
	KcBuf	   *out = &direct->command;

	kc_buf_str(out, ") with (format=\"csv\"");
	append_property(out, "validationPolicy", kc_slice(KC_VALIDATION_POLICY));
	if (properties->mapping.len > 0)
		append_property(out, "ingestionMappingReference", properties->mapping);
	append_list(direct, "tags", properties->tags, properties->ntags);
	append_list(direct, "ingestIfNotExists", properties->if_not_exists, properties->nif_not_exists);
	if (properties->has_creation_time)
	{
		KcBuf		text;

		kc_buf_init(&text, direct->client->alloc, KC_BUF_UNLIMITED);
		kc_text_rfc3339(&text, properties->creation_time_us);
		if (text.failed != KC_OK)
			out->failed = text.failed;
		append_property(out, "creationTime", kc_buf_view(&text));
		kc_buf_free(&text);
	}
	kc_buf_char(out, ')');
}

/* h"..." asks the service not to trace what it holds. */
static void
append_blob(Direct *direct, KcSlice url, KcSlice sas, bool first)
{
	KcBuf	   *out = &direct->command;
	KcBuf		text;

	kc_buf_init(&text, direct->client->alloc, KC_BUF_UNLIMITED);
	kc_buf_slice(&text, url);
	kc_buf_char(&text, '?');
	kc_buf_slice(&text, sas);
	if (text.failed != KC_OK)
		out->failed = text.failed;
	kc_buf_str(out, first ? "h" : ", h");
	kc_text_kql_string(out, kc_buf_view(&text));
	kc_buf_free_secret(&text);
	note_signature(direct, sas);
}

static KcStatus
container_is_gone(const char *blob_url, KcError *err)
{
	KcUrl		url;
	KcError		ignored;

	kc_error_set(err, KC_ERR_NOT_FOUND, doing_direct,
				 "a blob's container is no longer one of the ingestion service's");
	if (kc_url_parse(kc_slice(blob_url), &url, &ignored) == KC_OK)
		kc_error_text(err->host, sizeof(err->host), url.host);
	return KC_ERR_NOT_FOUND;
}

static KcStatus
build_command(Direct *direct, KcError *err)
{
	KcBuf	   *out = &direct->command;
	KcStatus	status;

	kc_buf_free_secret(&direct->signatures);
	kc_buf_free_secret(out);
	kc_buf_str(out, ".ingest into table ");
	kc_text_kql_name(out, direct->properties->table);
	kc_buf_str(out, " (");
	for (int i = 0; i < direct->nurls; i++)
	{
		KcResource *container = kc_resources_find(direct->client->resources, KC_RESOURCE_CONTAINER,
												  kc_slice(direct->urls[i]));

		if (container == NULL)
			return container_is_gone(direct->urls[i], err);
		append_blob(direct, kc_slice(direct->urls[i]), kc_slice(container->sas), i == 0);
	}
	append_properties(direct);
	status = kc_buf_status(out, err, doing_direct);
	if (status == KC_OK)
		status = kc_buf_status(&direct->signatures, err, doing_direct);
	return status;
}

/* ---- the result ---- */

static bool
is_true(KcJsonValue value)
{
	int64_t		number;

	if (value.type == KC_JSON_BOOL)
		return kc_json_bool(value);
	return value.type == KC_JSON_NUMBER && kc_json_i64(value, &number) && number != 0;
}

/* Of a row that stands for no data. */
static bool
is_no_extent(KcJsonValue value)
{
	return value.type != KC_JSON_STRING
		|| kc_json_string_is(value, "00000000-0000-0000-0000-000000000000")
		|| kc_json_string_is(value, "");
}

static KcStatus
failed_extent(const KcResult *result, const KcAlloc *alloc, KcError *err)
{
	int			column = kc_result_find_column(result, "OperationId");
	KcBuf		text;

	kc_error_set(err, KC_ERR_REFUSED, doing_direct, "Kusto reports errors in the ingestion");
	if (column < 0 || kc_result_value(result, column).type != KC_JSON_STRING)
		return KC_ERR_REFUSED;
	kc_buf_init(&text, alloc, KC_BUF_UNLIMITED);
	kc_buf_str(&text, "Kusto's operation is ");
	kc_json_unescape(&text, kc_result_value(result, column));
	kc_buf_char(&text, '.');
	kc_error_text(err->detail, sizeof(err->detail), kc_buf_view(&text));
	kc_buf_free(&text);
	return KC_ERR_REFUSED;
}

/*
 * A row an extent.  When nothing was ingested, which ingestIfNotExists may
 * bring about, there is one row without an extent.  After a try of ours that
 * may have been done, the data with that key are most likely those.
 */
static KcStatus
check_result(Direct *direct, KcResult *result, KcError *err)
{
	int			extent = kc_result_find_column(result, "ExtentId");
	int			has_errors = kc_result_find_column(result, "HasErrors");
	int			nextents = 0;
	int			nrows = 0;

	if (extent < 0)
		return kc_error_set(err, KC_ERR_PROTOCOL, doing_direct,
							"the answer is not understood: no extents");
	for (; kc_result_next(result); nrows++)
	{
		if (has_errors >= 0 && is_true(kc_result_value(result, has_errors)))
			return failed_extent(result, direct->client->alloc, err);
		if (!is_no_extent(kc_result_value(result, extent)))
			nextents++;
	}
	if (nextents > 0)
		return KC_OK;
	if (nrows == 0 || direct->properties->nif_not_exists == 0)
		return kc_error_set(err, KC_ERR_REFUSED, doing_direct,
							"Kusto accepted the command, but ingested nothing");
	direct->pub.skipped = !direct->maybe_done;
	return KC_OK;
}

/* What makes a signature valid, in whatever form somebody may have put it. */
static void
scrub_sig(const Direct *direct, KcSlice sas, KcError *err)
{
	KcUrl		url = {.query = sas};
	KcSlice		sig;
	KcBuf		plain;

	if (!kc_url_query_get(&url, "sig", &sig))
		return;
	kc_error_scrub(err, sig);
	kc_buf_init(&plain, direct->client->alloc, KC_BUF_UNLIMITED);
	if (kc_text_percent_decode(&plain, sig) && plain.failed == KC_OK)
		kc_error_scrub(err, kc_buf_view(&plain));
	else						/* rather say too little */
		kc_error_text(err->detail, sizeof(err->detail), KC_SLICE_NULL);
	kc_buf_free_secret(&plain);
}

static void
scrub(const Direct *direct, KcError *err)
{
	const char *at = direct->signatures.data;
	const char *end = at + direct->signatures.len;

	while (direct->signatures.len > 0 && at < end)
	{
		const char *newline = memchr(at, '\n', (size_t) (end - at));
		KcSlice		sas = kc_slice_n(at, (size_t) (newline - at));

		kc_error_scrub(err, sas);
		scrub_sig(direct, sas, err);
		at = newline + 1;
	}
}

/* ---- what to do about a failure ---- */

static bool
wait_at_least(Direct *direct, const KcError *err, int64_t from_now_ms)
{
	KcClient   *client = direct->client;
	KcError		asked = *err;
	int64_t		wait_ms;

	if (asked.retry_after_ms < from_now_ms)
		asked.retry_after_ms = from_now_ms;
	if (!kc_retry_again(&direct->retry, &asked, &wait_ms))
		return false;
	kc_mux_timer_set(client->mux, &direct->timer, kc_client_now_ms(client) + wait_ms);
	return true;
}

/*
 * Throttled, though said in a way that the request below has not taken for it:
 * that one has repeated what it could.
 */
static bool
again_after_throttling(Direct *direct, const KcError *err)
{
	KcError		throttled = *err;

	if (!kc_kusto_was_throttled(err) || (kc_retry_transient(err) && !err->after_send))
		return false;
	throttled.status = KC_ERR_THROTTLED;
	throttled.permanent = false;
	throttled.after_send = false;
	return wait_at_least(direct, &throttled, 0);
}

/*
 * Two commands that run at the same time do not see each other's tags: wait
 * until the service must have ended the first.
 */
static bool
again_after_doubt(Direct *direct, const KcError *err)
{
	int64_t		timeout_ms = direct->client->config.request_timeout_ms;
	int64_t		ended_ms = direct->sent_ms + timeout_ms + SERVER_TIMEOUT_MARGIN_MS;

	if (!direct->protected || !err->after_send || timeout_ms <= 0 || !kc_retry_transient(err))
		return false;
	return wait_at_least(direct, err, ended_ms - kc_client_now_ms(direct->client));
}

/* The blobs could not be read with the signatures that we had. */
static bool
again_with_new_signatures(Direct *direct, const KcError *err)
{
	if (direct->refetched || !kc_slice_ieq(kc_slice(err->code), kc_slice("Download_Forbidden"))
		|| !kc_resources_reject(direct->client->resources, direct->generation))
		return false;
	direct->refetched = true;
	step(direct);
	return true;
}

static void
on_request(KcTask *task)
{
	Direct	   *direct = task->arg;
	KcError		err = task->error;

	if (err.status == KC_OK && check_result(direct, direct->request->result, &err) != KC_OK)
		err.after_send = true;
	kc_task_free(task);
	direct->request = NULL;
	if (err.status == KC_OK)
	{
		finish(direct, NULL);
		return;
	}
	scrub(direct, &err);
	if (err.http_status == 403)
		err.advice = KC_ADVICE_GRANT_INGESTOR;
	if (again_after_throttling(direct, &err) || again_with_new_signatures(direct, &err))
		return;
	if (err.after_send && !kc_kusto_was_throttled(&err))
		direct->maybe_done = true;
	if (!again_after_doubt(direct, &err))
		finish(direct, &err);
}

/* ---- the flow ---- */

static void
wait_for_resources(Direct *direct)
{
	KcError		err;

	if (kc_resources_wait(direct->client->resources, &direct->waiter, &err) != KC_OK)
		finish(direct, &err);
}

static bool
containers_known(const Direct *direct)
{
	for (int i = 0; i < direct->nurls; i++)
	{
		if (kc_resources_find(direct->client->resources, KC_RESOURCE_CONTAINER,
							  kc_slice(direct->urls[i])) == NULL)
			return false;
	}
	return true;
}

static void
step(Direct *direct)
{
	KcClient   *client = direct->client;
	KcResources *resources = client->resources;
	KcError		err;

	if (!kc_resources_ready(resources))
	{
		wait_for_resources(direct);
		return;
	}
	direct->generation = kc_resources_generation(resources);
	if (!containers_known(direct) && !direct->refetched
		&& kc_resources_reject(resources, direct->generation))
	{
		direct->refetched = true;
		wait_for_resources(direct);
		return;
	}
	direct->sent_ms = kc_client_now_ms(client);
	if (build_command(direct, &err) != KC_OK
		|| kc_kusto_request_start(client, KC_ENDPOINT_ENGINE_MGMT, direct->properties->database,
								  kc_buf_view(&direct->command), false, MAX_ANSWER,
								  &direct->request, &err) != KC_OK)
	{
		finish(direct, &err);
		return;
	}
	direct->request->task.on_done = on_request;
	direct->request->task.arg = direct;
}

static void
on_resources(KcWaiter *waiter, const KcError *err)
{
	Direct	   *direct = waiter->arg;

	if (err != NULL)
		finish(direct, err);
	else
		step(direct);
}

static void
on_timer(KcTimer *timer)
{
	Direct	   *direct = timer->arg;
	KcClient   *client = direct->client;

	if (!direct->begun)
	{
		direct->begun = true;
		kc_retry_begin(&direct->retry, &client->request_retry, kc_mux_clock(client->mux));
	}
	step(direct);
}

/* ---- making and ending ---- */

static void
destroy(KcTask *task)
{
	Direct	   *direct = (Direct *) task;
	KcClient   *client = direct->client;

	kc_mux_timer_cancel(client->mux, &direct->timer);
	kc_resources_cancel(client->resources, &direct->waiter);
	if (direct->request != NULL)
		kc_task_free(&direct->request->task);
	kc_buf_free_secret(&direct->command);
	kc_buf_free_secret(&direct->signatures);
	for (int i = 0; i < direct->nurls; i++)
		kc_free(client->alloc, direct->urls[i]);
	kc_free(client->alloc, direct->urls);
	kc_free(client->alloc, direct->properties);
	kc_free(client->alloc, direct);
}

/* A second command finds the tag that the first one left. */
static bool
tags_protect(const KcIngestProperties *properties)
{
	KcSlice		prefix = kc_slice(KC_INGEST_BY);

	for (int i = 0; i < properties->ntags; i++)
	{
		KcSlice		tag = properties->tags[i];

		if (!kc_slice_starts(tag, prefix))
			continue;
		tag = kc_slice_n(tag.data + prefix.len, tag.len - prefix.len);
		for (int j = 0; j < properties->nif_not_exists; j++)
		{
			if (kc_slice_eq(tag, properties->if_not_exists[j]))
				return true;
		}
	}
	return false;
}

static KcStatus
take_request(Direct *direct, const KcIngestProperties *properties, const KcSlice *blob_urls,
			 int nblobs, KcError *err)
{
	const KcAlloc *alloc = direct->client->alloc;

	if (nblobs <= 0)
		return kc_error_set(err, KC_ERR_INVALID, doing_direct, "there are no blobs");
	direct->protected = tags_protect(properties);
	direct->properties = kc_properties_copy(alloc, properties);
	direct->urls = kc_alloc0(alloc, (size_t) nblobs * sizeof(char *));
	if (direct->properties == NULL || direct->urls == NULL)
		return kc_error_nomem(err, doing_direct);
	for (; direct->nurls < nblobs; direct->nurls++)
	{
		direct->urls[direct->nurls] = kc_strdup(alloc, blob_urls[direct->nurls]);
		if (direct->urls[direct->nurls] == NULL)
			return kc_error_nomem(err, doing_direct);
	}
	return KC_OK;
}

KcStatus
kc_kusto_direct_start(KcClient *client, const KcIngestProperties *properties,
					  const KcSlice *blob_urls, int nblobs, KcDirectTask **task, KcError *err)
{
	Direct	   *direct;
	KcStatus	status;

	*task = NULL;
	direct = kc_alloc0(client->alloc, sizeof(Direct));
	if (direct == NULL)
		return kc_error_nomem(err, doing_direct);
	direct->client = client;
	direct->pub.task.destroy = destroy;
	direct->timer.fire = on_timer;
	direct->timer.arg = direct;
	direct->waiter.ready = on_resources;
	direct->waiter.arg = direct;
	kc_error_clear(&direct->pub.task.error);
	kc_buf_init(&direct->command, client->alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&direct->signatures, client->alloc, KC_BUF_UNLIMITED);
	status = take_request(direct, properties, blob_urls, nblobs, err);
	if (status != KC_OK)
	{
		destroy(&direct->pub.task);
		return status;
	}
	kc_mux_timer_set(client->mux, &direct->timer, kc_client_now_ms(client));
	*task = &direct->pub;
	return KC_OK;
}
