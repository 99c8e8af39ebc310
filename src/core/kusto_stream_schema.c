/*
 * kusto_stream_schema.c
 *	  Making the nodes of a cluster see what columns a table has.
 *
 * Nodes that take streaming ingestion cache the schema, and for some minutes
 * after a change drop the fields of columns that they do not know, or call the
 * data wrong.  A command clears that cache; each node answers for itself, and
 * the command may be repeated.
 *
 *		begin -> command -> all nodes have: done
 *			^		|
 *			+- wait <-> not all, or it failed
 *
 * Public sources:
 * learn.microsoft.com/kusto/management/data-ingestion/clear-schema-cache-command,
 * learn.microsoft.com/kusto/management/data-ingestion/streaming-ingestion-schema-changes
 */
#include "kusto_internal.h"

static const char doing_clear[] = "clearing the schema cache of streaming ingestion";

#define MAX_ANSWER (1024 * 1024)

/* Whoever waits can queue instead. */
static const KcRetryPolicy clear_retry = {
	.max_attempts = 4,.base_ms = 500,.cap_ms = 2000,.max_total_ms = 10000
};

typedef struct Clear
{
	KcTask		task;			/* first member */
	KcClient   *client;
	char	   *database;
	char	   *table;
	KcBuf		command;
	KcTimer		timer;			/* the beginning, then the waits */
	KcRequestTask *request;
	bool		begun;
	KcRetry		retry;
} Clear;

static void
fail(Clear *clear, const KcError *err)
{
	kc_kusto_stream_remember(clear->client, kc_slice(clear->database), kc_slice(clear->table), err,
							 KC_STREAM_SCHEMA_MS);
	kc_task_finish(&clear->task, err);
}

/* A row a node. */
static KcStatus
check_nodes(KcResult *result, KcError *err)
{
	int			status = kc_result_find_column(result, "Status");
	int			nnodes = 0;

	if (status < 0)
		return kc_error_set(err, KC_ERR_PROTOCOL, doing_clear,
							"the answer is not understood: no status");
	for (; kc_result_next(result); nnodes++)
	{
		KcJsonValue value = kc_result_value(result, status);

		if (value.type != KC_JSON_STRING || !kc_json_string_ieq(value, "Succeeded"))
			return kc_error_set(err, KC_ERR_SERVICE, doing_clear,
								"not all nodes of the cluster know the table's columns yet");
	}
	if (nnodes == 0)
		return kc_error_set(err, KC_ERR_PROTOCOL, doing_clear,
							"the answer is not understood: no nodes");
	return KC_OK;
}

static void
on_request(KcTask *task)
{
	Clear	   *clear = task->arg;
	KcClient   *client = clear->client;
	KcError		err = task->error;
	int64_t		wait_ms;

	if (err.status == KC_OK)
		(void) check_nodes(clear->request->result, &err);
	kc_task_free(task);
	clear->request = NULL;
	if (err.status == KC_OK)
	{
		kc_task_finish(&clear->task, NULL);
		return;
	}
	/* It does no harm to have been run. */
	err.after_send = false;
	if (kc_retry_again(&clear->retry, &err, &wait_ms))
		kc_mux_timer_set(client->mux, &clear->timer, kc_client_now_ms(client) + wait_ms);
	else
		fail(clear, &err);
}

static void
on_timer(KcTimer *timer)
{
	Clear	   *clear = timer->arg;
	KcClient   *client = clear->client;
	KcError		err;

	if (!clear->begun)
	{
		clear->begun = true;
		kc_retry_begin(&clear->retry, &clear_retry, kc_mux_clock(client->mux));
	}
	if (kc_kusto_request_start(client, KC_ENDPOINT_ENGINE_MGMT, kc_slice(clear->database),
							   kc_buf_view(&clear->command), false, MAX_ANSWER, &clear->request,
							   &err) != KC_OK)
	{
		clear->request = NULL;
		fail(clear, &err);
		return;
	}
	clear->request->task.on_done = on_request;
	clear->request->task.arg = clear;
}

static void
destroy(KcTask *task)
{
	Clear	   *clear = (Clear *) task;
	KcClient   *client = clear->client;

	kc_mux_timer_cancel(client->mux, &clear->timer);
	if (clear->request != NULL)
		kc_task_free(&clear->request->task);
	kc_buf_free(&clear->command);
	kc_free(client->alloc, clear->database);
	kc_free(client->alloc, clear->table);
	kc_free(client->alloc, clear);
}

static KcStatus
take_names(Clear *clear, KcSlice database, KcSlice table, KcError *err)
{
	const KcAlloc *alloc = clear->client->alloc;

	clear->database = kc_strdup(alloc, database);
	clear->table = kc_strdup(alloc, table);
	if (clear->database == NULL || clear->table == NULL)
		return kc_error_nomem(err, doing_clear);
	kc_buf_str(&clear->command, ".clear table ");
	kc_text_kql_name(&clear->command, table);
	kc_buf_str(&clear->command, " cache streamingingestion schema");
	return kc_buf_status(&clear->command, err, doing_clear);
}

KcStatus
kc_kusto_stream_schema_start(KcClient *client, KcSlice database, KcSlice table, KcTask **task,
							 KcError *err)
{
	Clear	   *clear;
	KcStatus	status;

	*task = NULL;
	clear = kc_alloc0(client->alloc, sizeof(Clear));
	if (clear == NULL)
		return kc_error_nomem(err, doing_clear);
	clear->client = client;
	clear->task.destroy = destroy;
	clear->timer.fire = on_timer;
	clear->timer.arg = clear;
	kc_error_clear(&clear->task.error);
	kc_buf_init(&clear->command, client->alloc, KC_BUF_UNLIMITED);
	status = take_names(clear, database, table, err);
	if (status != KC_OK)
	{
		destroy(&clear->task);
		return status;
	}
	kc_mux_timer_set(client->mux, &clear->timer, kc_client_now_ms(client));
	*task = &clear->task;
	return KC_OK;
}
