/*
 * kusto_status.c
 *	  What became of a blob: its row in the status table.
 *
 * Public sources: learn.microsoft.com/kusto/api/netfx/kusto-ingest-client-status,
 * error codes as in learn.microsoft.com/azure/data-explorer/error-codes
 */
#include <string.h>

#include "kusto_internal.h"

static const char doing_status[] = "reading the status of a blob";

typedef struct Status
{
	KcStatusTask pub;			/* first member */
	KcClient   *client;
	KcUuid		source_id;
	char	   *table_url;		/* that is asked */
	bool		any_table;		/* ask one after the other */
	int			next_table;
	KcTimer		begin;
	KcWaiter	waiter;
	KcHttp	   *http;
	uint64_t	generation;
	bool		refetched;
} Status;

static void step(Status *status);

static const struct
{
	const char *name;
	KcIngestOutcome outcome;
}			outcomes[] = {
	{"Pending", KC_OUTCOME_PENDING},
	{"Succeeded", KC_OUTCOME_SUCCEEDED},
	{"PartiallySucceeded", KC_OUTCOME_PARTIALLY_SUCCEEDED},
	{"Failed", KC_OUTCOME_FAILED},
	{"Skipped", KC_OUTCOME_SKIPPED},
	{"Queued", KC_OUTCOME_QUEUED},
};

static void
finish(Status *status, const KcError *err)
{
	kc_task_finish(&status->pub.task, err);
}

/* ---- the row ---- */

static void
copy_member(const KcAlloc *alloc, KcJsonValue row, const char *name, char *field, size_t size)
{
	KcJsonValue value;
	KcBuf		text;

	field[0] = '\0';
	if (!kc_json_member(row, name, &value))
		return;
	if (value.type == KC_JSON_NUMBER)
		kc_error_text(field, size, value.raw);
	if (value.type != KC_JSON_STRING)
		return;
	kc_buf_init(&text, alloc, 256 * 1024);
	kc_json_unescape(&text, value);
	kc_error_text(field, size, kc_buf_view(&text));
	kc_buf_free(&text);
}

/*
 * The service may tell our identity token back; no pattern recognises it.
 */
static void
scrub_texts(Status *status)
{
	KcStatusTask *pub = &status->pub;
	KcSlice		token = kc_resources_identity_token(status->client->resources);
	KcError		texts;

	kc_error_clear(&texts);
	memcpy(texts.code, pub->error_code, sizeof(texts.code));
	memcpy(texts.detail, pub->details, sizeof(texts.detail));
	kc_error_scrub(&texts, token);
	memcpy(pub->error_code, texts.code, sizeof(texts.code));
	memcpy(pub->details, texts.detail, sizeof(texts.detail));
}

/* FailureStatus by name, or by the number of the name. */
static bool
is_transient(const KcStatusTask *task)
{
	KcSlice		failure = kc_slice(task->failure_status);
	KcError		err;

	if (kc_slice_ieq(failure, kc_slice("Transient")) || kc_slice_ieq(failure, kc_slice("Exhausted"))
		|| kc_slice_eq(failure, kc_slice("2")) || kc_slice_eq(failure, kc_slice("3")))
		return true;
	if (failure.len > 0 && !kc_slice_ieq(failure, kc_slice("Unknown")))
		return false;
	/* Not told: the code decides. */
	kc_error_set(&err, KC_ERR_REFUSED, doing_status, "failed");
	err.permanent = false;
	kc_error_text(err.code, sizeof(err.code), kc_slice(task->error_code));
	return kc_retry_transient(&err);
}

/* Both spellings are told, with status Skipped or Failed. */
static bool
is_tag_code(KcSlice code)
{
	return kc_slice_ieq(code, kc_slice("Skipped_IngestByTagAlreadyExists"))
		|| kc_slice_ieq(code, kc_slice("IngestByTagAlreadyExists"));
}

/* The service tries again by itself, unless it says that it has tried enough. */
static bool
is_abandoned(const KcStatusTask *task)
{
	return kc_slice_ieq(kc_slice(task->error_code), kc_slice("General_AbandonedIngestion"))
		&& is_transient(task) && !kc_slice_ieq(kc_slice(task->failure_status), kc_slice("Exhausted"))
		&& !kc_slice_eq(kc_slice(task->failure_status), kc_slice("3"));
}

/* What an outcome's code makes of it. */
static void
refine_outcome(KcStatusTask *task)
{
	KcSlice		code = kc_slice(task->error_code);

	if (task->outcome == KC_OUTCOME_FAILED && is_tag_code(code))
		task->outcome = KC_OUTCOME_SKIPPED;
	else if (task->outcome == KC_OUTCOME_FAILED && is_abandoned(task))
		task->outcome = KC_OUTCOME_PENDING;
	task->tag_exists = task->outcome == KC_OUTCOME_SKIPPED && (code.len == 0 || is_tag_code(code));
	task->transient = task->outcome == KC_OUTCOME_FAILED && is_transient(task);
}

static KcStatus
read_row(Status *status, KcSlice body, KcError *err)
{
	const KcAlloc *alloc = status->client->alloc;
	KcStatusTask *pub = &status->pub;
	char		name[64];
	KcJsonValue row;
	KcStatus	result;

	result = kc_json_check(body, 16, &row, doing_status, err);
	if (result != KC_OK)
		return result;
	copy_member(alloc, row, "Status", name, sizeof(name));
	copy_member(alloc, row, "ErrorCode", pub->error_code, sizeof(pub->error_code));
	copy_member(alloc, row, "FailureStatus", pub->failure_status, sizeof(pub->failure_status));
	copy_member(alloc, row, "Details", pub->details, sizeof(pub->details));
	copy_member(alloc, row, "OperationId", pub->operation_id, sizeof(pub->operation_id));
	copy_member(alloc, row, "ActivityId", pub->activity_id, sizeof(pub->activity_id));
	scrub_texts(status);
	if (name[0] == '\0')
		return kc_error_set(err, KC_ERR_PROTOCOL, doing_status,
							"the row of the status table has no status");

	/* A word that we do not know is at least no end that we know. */
	pub->outcome = KC_OUTCOME_PENDING;
	for (size_t i = 0; i < sizeof(outcomes) / sizeof(outcomes[0]); i++)
	{
		if (kc_slice_ieq(kc_slice(name), kc_slice(outcomes[i].name)))
			pub->outcome = outcomes[i].outcome;
	}
	refine_outcome(pub);
	pub->advice = kc_kusto_advice(kc_slice(pub->error_code), kc_slice(pub->details));
	return KC_OK;
}

static bool
row_is_missing(const KcError *err)
{
	return err->http_status == 404
		&& (kc_slice_ieq(kc_slice(err->code), kc_slice("ResourceNotFound"))
			|| kc_slice_ieq(kc_slice(err->code), kc_slice("EntityNotFound")));
}

static void
on_row(KcHttp *http)
{
	Status	   *status = http->arg;
	KcResources *resources = status->client->resources;
	KcError		err = http->error;

	if (err.status == KC_OK)
		(void) read_row(status, kc_buf_view(&http->response.body), &err);
	kc_azure_advise_network(&err);
	kc_http_free(http);
	status->http = NULL;
	kc_resources_report(resources, kc_slice(status->table_url),
						err.status == KC_OK || row_is_missing(&err));
	if (row_is_missing(&err) && status->any_table)
	{
		status->next_table++;
		step(status);
	}
	else if (row_is_missing(&err))
	{
		status->pub.outcome = KC_OUTCOME_MISSING;
		finish(status, NULL);
	}
	else if (kc_azure_wants_fresh_sas(&err) && !status->refetched
			 && kc_resources_reject(resources, status->generation))
	{
		status->refetched = true;
		status->next_table = 0;
		step(status);
	}
	else
	{
		if (err.status == KC_OK)
			status->pub.status_table = status->table_url;
		finish(status, err.status == KC_OK ? NULL : &err);
	}
}

/* ---- the flow ---- */

static KcStatus
ask(Status *status, const KcResource *table, KcError *err)
{
	char		source_id[KC_UUID_TEXT_LEN + 1];
	KcStorage	storage;
	KcStatus	result;

	kc_uuid_text(&status->source_id, source_id);
	kc_client_storage(status->client, &status->client->storage_retry, &storage);
	result = kc_azure_get_entity(&storage, kc_slice(table->url), kc_slice(table->sas),
								 kc_slice(source_id), kc_slice(source_id), &status->http, err);
	if (result == KC_OK)
	{
		status->http->on_done = on_row;
		status->http->arg = status;
	}
	return result;
}

/* The table was named, and is not there: perhaps the resources are old. */
static KcStatus
table_is_unknown(Status *status, KcError *err)
{
	KcResources *resources = status->client->resources;

	if (status->refetched || !kc_resources_reject(resources, status->generation))
		return kc_error_set(err, KC_ERR_NOT_FOUND, doing_status,
							"the status table is no longer one of the ingestion service's");
	status->refetched = true;
	return kc_resources_wait(resources, &status->waiter, err);
}

static KcStatus
ask_next(Status *status, KcError *err)
{
	KcResource *table = kc_resources_nth(status->client->resources, KC_RESOURCE_STATUS_TABLE,
										 status->next_table);

	kc_free(status->client->alloc, status->table_url);
	status->table_url = NULL;
	if (table == NULL)
	{
		/* That no table has the row is only known where there is one. */
		status->pub.outcome = status->next_table > 0 ? KC_OUTCOME_MISSING : KC_OUTCOME_QUEUED;
		finish(status, NULL);
		return KC_OK;
	}
	status->table_url = kc_strdup(status->client->alloc, kc_slice(table->url));
	if (status->table_url == NULL)
		return kc_error_nomem(err, doing_status);
	return ask(status, table, err);
}

static void
step(Status *status)
{
	KcResources *resources = status->client->resources;
	KcResource *table;
	KcStatus	result;
	KcError		err;

	if (!kc_resources_ready(resources))
		result = kc_resources_wait(resources, &status->waiter, &err);
	else
	{
		/* Another set has other tables in another order. */
		if (status->generation != kc_resources_generation(resources))
			status->next_table = 0;
		status->generation = kc_resources_generation(resources);
		if (status->any_table)
			result = ask_next(status, &err);
		else
		{
			table = kc_resources_find(resources, KC_RESOURCE_STATUS_TABLE,
									  kc_slice(status->table_url));
			result = table != NULL ? ask(status, table, &err) : table_is_unknown(status, &err);
		}
	}
	if (result != KC_OK)
		finish(status, &err);
}

static void
on_resources(KcWaiter *waiter, const KcError *err)
{
	Status	   *status = waiter->arg;

	if (err != NULL)
		finish(status, err);
	else
		step(status);
}

static void
on_begin(KcTimer *timer)
{
	step(timer->arg);
}

static void
destroy(KcTask *task)
{
	Status	   *status = (Status *) task;
	KcClient   *client = status->client;

	kc_mux_timer_cancel(client->mux, &status->begin);
	kc_resources_cancel(client->resources, &status->waiter);
	kc_http_free(status->http);
	kc_free(client->alloc, status->table_url);
	kc_free(client->alloc, status);
}

KcStatus
kc_kusto_status_start(KcClient *client, KcSlice status_table, const KcUuid *source_id,
					  KcStatusTask **task, KcError *err)
{
	Status	   *status;

	*task = NULL;
	status = kc_alloc0(client->alloc, sizeof(Status));
	if (status == NULL)
		return kc_error_nomem(err, doing_status);
	status->client = client;
	status->source_id = *source_id;
	status->pub.task.destroy = destroy;
	status->begin.fire = on_begin;
	status->begin.arg = status;
	status->waiter.ready = on_resources;
	status->waiter.arg = status;
	kc_error_clear(&status->pub.task.error);
	status->any_table = status_table.len == 0;
	if (!status->any_table)
		status->table_url = kc_strdup(client->alloc, status_table);
	if (!status->any_table && status->table_url == NULL)
	{
		destroy(&status->pub.task);
		return kc_error_nomem(err, doing_status);
	}
	kc_mux_timer_set(client->mux, &status->begin, kc_client_now_ms(client));
	*task = &status->pub;
	return KC_OK;
}
