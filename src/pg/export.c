/*
 * export.c
 *	  One export, in whatever mode; and the request that a job makes one.
 *
 * Session, ingest and everything between live in a memory context of the
 * export, under the caller's.  However the export ends, the context's reset
 * callbacks cancel what is under way and let go of the session: first the
 * tasks' and the ingest's, then the session's.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "export_internal.h"
#include "fault.h"
#include "report.h"
#include "schema.h"
#include "wait.h"
#include "worker.h"

/* What a command that creates a table answers is short. */
#define COMMAND_RESPONSE_MAX (1024 * 1024)

/* ---- before the query ---- */

static void
choose_id(KpgExport *export)
{
	KcUuid		id;
	KcError		err;

	kpg_check(kc_uuid_random(&id, &err), &err);
	memcpy(export->id.data, id.bytes, sizeof(id.bytes));
}

/* What the result will look like in Kusto. */
static void
describe(KpgExport *export, TupleDesc desc)
{
	const KpgExportRequest *request = export->request;

	if (desc->natts == 0)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("the query returns no columns"),
				 errhint("A Kusto table has at least one column.")));
	export->format = kpg_format_create(desc, export->policy);
	if (request->table_command != NULL)
		export->table_command = pstrdup(request->table_command);
	else if (request->create_table)
		export->table_command = kpg_schema_create_merge(desc, request->table_name, export->policy);
}

/*
 * Everything up to the first request.  With run the query is planned, else
 * nothing of it is evaluated.
 */
static void
prepare(KpgExport *export, bool run)
{
	const KpgExportRequest *request = export->request;
	Oid			serverid;

	kpg_export_check(request);
	export->mode = kpg_export_mode(request->mode);
	serverid = kpg_session_server(request->server, GetUserId());
	export->policy = kpg_format_policy(request->on_type_error);
	export->exactly_once = kpg_operations_exactly_once(request->exactly_once);
	/* A tag of its own is of use to what is posted and may be posted again. */
	if (export->mode == KPG_MODE_STREAMING || export->mode == KPG_MODE_DIRECT)
		export->exactly_once = KPG_EXACTLY_ONCE_OFF;
	if (run)
	{
		export->query = kpg_exec_prepare(request->query);
		if (export->job)
			kpg_exec_hide(export->query,
						  psprintf("exporting operation %s",
								   DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&export->id)))));
		describe(export, kpg_exec_tupdesc(export->query));
		if (OidIsValid(request->whole_table))
			kpg_export_plan_tables(export);
	}
	else
		describe(export, kpg_exec_check(request->query));
	export->session = kpg_session_acquire_in(export->context, serverid, GetUserId());
	export->database = kpg_session_database(export->session, request->database);
	/* Otherwise it is not known yet whether there will be any blob. */
	if (export->mode == KPG_MODE_QUEUED || export->mode == KPG_MODE_DIRECT)
		kpg_export_start_ingest(export);
}

/* ---- what the modes share ---- */

void
kpg_export_query(KpgExport *export, KpgSink *sink)
{
	DestReceiver *dest = kpg_dest_create(export->format, sink, export->progress);

	if (export->tables != NIL)
		kpg_export_tables(export, dest);
	else
	{
		(void) kpg_exec_run(export->query, dest);
		kpg_export_finish(export, dest);
	}
}

void
kpg_export_finish(KpgExport *export, DestReceiver *dest)
{
	kpg_progress_phase(export->progress, KPG_PHASE_UPLOAD);
	kpg_dest_finish(dest);
}

static void
free_task(void *arg)
{
	kc_task_free((KcTask *) arg);
}

void
kpg_export_own_task(const KpgExport *export, KcTask *task)
{
	MemoryContextCallback *callback = MemoryContextAllocZero(export->context, sizeof(MemoryContextCallback));

	callback->func = free_task;
	callback->arg = task;
	MemoryContextRegisterResetCallback(export->context, callback);
}

static void
tell_doubt(void *arg)
{
	const KpgExport *export = (const KpgExport *) arg;

	errcontext("ingestion into Kusto table \"%s\", whose outcome is not known", export->request->table_name);
}

void
kpg_export_wait_task(const KpgExport *export, const KcTask *task)
{
	ErrorContextCallback callback;

	callback.callback = tell_doubt;
	callback.arg = unconstify(KpgExport *, export);
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	if (export->perhaps_ingested != NULL)
		*export->perhaps_ingested = true;
	(void) kpg_wait_done(&task->done, -1, KPG_WAIT_REQUEST);
	error_context_stack = callback.previous;
}

void
kpg_export_not_ingested(const KpgExport *export)
{
	if (export->perhaps_ingested != NULL)
		*export->perhaps_ingested = false;
}

static bool
is_transient(KcStatus status)
{
	return status == KC_ERR_NETWORK || status == KC_ERR_TIMEOUT || status == KC_ERR_THROTTLED ||
		status == KC_ERR_SERVICE;
}

bool
kpg_export_create_table(KpgExport *export, KcError *err)
{
	KcRequestTask *task;

	if (export->table_command == NULL)
		return true;
	kpg_wait_check(kc_client_mux(export->session->client));
	kpg_check(kc_kusto_request_start(export->session->client, KC_ENDPOINT_ENGINE_MGMT,
									 kc_slice(kpg_session_utf8(export->database)),
									 kc_slice(kpg_session_utf8(export->table_command)),
									 false, COMMAND_RESPONSE_MAX, &task, err), err);
	kpg_export_own_task(export, &task->task);
	(void) kpg_wait_done(&task->task.done, -1, KPG_WAIT_REQUEST);
	*err = task->task.error;
	/* To add a table takes this role; the principal is admin of what it has created. */
	if (err->status == KC_ERR_FORBIDDEN)
		err->advice = KC_ADVICE_GRANT_DATABASE_USER;
	if (is_transient(err->status))
		return false;
	kpg_check(err->status, err);
	export->table_created = true;
	return true;
}

/* ---- the record ---- */

static KpgOperationRequest
row_of(const KpgExport *export)
{
	const KpgExportRequest *request = export->request;
	KpgOperationRequest operation;

	memset(&operation, 0, sizeof(operation));
	operation.id = export->id;
	operation.owner = export->session->userid;
	operation.server = export->session->server_name;
	operation.database = export->database;
	operation.table_name = request->table_name;
	operation.mode = request->mode;
	operation.source = "query";
	operation.query = request->query;
	operation.mapping = request->mapping;
	operation.tags = request->tags;
	operation.ingest_if_not_exists = request->ingest_if_not_exists;
	operation.has_creation_time = request->has_creation_time;
	operation.creation_time = request->creation_time;
	operation.flush_immediately = request->flush_immediately;
	operation.table_command = export->table_created ? NULL : export->table_command;
	operation.on_type_error = request->on_type_error;
	operation.exactly_once = export->exactly_once;
	operation.created_at = export->started;
	return operation;
}

void
kpg_export_stage(KpgExport *export)
{
	KpgOperationRequest operation = row_of(export);
	char	   *type_errors = kpg_format_type_errors(export->format);
	uint64_t	rows;
	uint64_t	raw_bytes;
	uint64_t	compressed_bytes;
	bool		to_do;

	kc_ingest_totals(export->ingest, &rows, &raw_bytes, &compressed_bytes);
	export->rows = rows;
	export->raw_bytes = raw_bytes;
	export->compressed_bytes = compressed_bytes;
	export->end = KPG_END_STAGED;
	kpg_progress_phase(export->progress, KPG_PHASE_STAGING);
	KPG_FAULT("blobs-uploaded");
	to_do = export->job ? kpg_operations_stage_job(&operation, export->ingest, type_errors)
		: kpg_operations_stage(&operation, export->ingest, type_errors);
	if (to_do)
		kpg_worker_staged();
	KPG_FAULT("rows-staged");
}

void
kpg_export_record(KpgExport *export, KpgExportEnd end)
{
	KpgOperationRequest operation = row_of(export);
	char	   *type_errors = kpg_format_type_errors(export->format);
	KpgIngested ingested = {
		.state = end == KPG_END_SKIPPED ? KPG_STATE_SKIPPED : KPG_STATE_SUCCEEDED,
		.ingest = export->ingest
	};

	if (export->ingest != NULL)
	{
		uint64_t	rows;
		uint64_t	raw_bytes;
		uint64_t	compressed_bytes;

		kc_ingest_totals(export->ingest, &rows, &raw_bytes, &compressed_bytes);
		export->rows = rows;
		export->raw_bytes = raw_bytes;
		export->compressed_bytes = compressed_bytes;
	}
	ingested.rows = export->rows;
	ingested.raw_bytes = export->raw_bytes;
	ingested.compressed_bytes = export->compressed_bytes;
	export->end = end;
	kpg_progress_phase(export->progress, KPG_PHASE_STAGING);
	if (export->job)
		kpg_operations_record_job(&operation, &ingested, type_errors);
	else
		kpg_operations_record(&operation, &ingested, type_errors);
}

static void
tell_ingested(void *arg)
{
	const KpgExport *export = (const KpgExport *) arg;

	errcontext("recording what is in Kusto table \"%s\" already", export->request->table_name);
}

void
kpg_export_record_ingested(KpgExport *export, KpgExportEnd end)
{
	ErrorContextCallback callback;

	callback.callback = tell_ingested;
	callback.arg = export;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	KPG_FAULT("ingested-at-once");
	kpg_export_record(export, end);
	error_context_stack = callback.previous;
}

/* ---- the three ways in ---- */

static void
run(KpgExport *export)
{
	export->progress = kpg_progress_begin(&export->id);
	switch (export->mode)
	{
		case KPG_MODE_QUEUED:
			kpg_export_queued(export);
			break;
		case KPG_MODE_STREAMING:
		case KPG_MODE_MANAGED:
			kpg_export_streamed(export);
			break;
		case KPG_MODE_DIRECT:
			kpg_export_direct(export);
			break;
	}
	kpg_progress_end(export->progress);
}

/* Where everything of an export lives; returns what to go back to. */
static MemoryContext
enter_context(KpgExport *export)
{
	export->context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest export",
											ALLOCSET_DEFAULT_SIZES);
	return MemoryContextSwitchTo(export->context);
}

void
kpg_export_run(const KpgExportRequest *request, pg_uuid_t *id)
{
	KpgExport	export = {.request = request,.started = GetCurrentTimestamp()};
	MemoryContext old;

	/* Before the next one, which would be true and tell less. */
	PreventCommandDuringRecovery("kusto_ingest()");
	PreventCommandIfReadOnly("kusto_ingest()");
	PreventCommandIfParallelMode("kusto_ingest()");

	old = enter_context(&export);
	choose_id(&export);
	prepare(&export, true);
	run(&export);
	kpg_export_notice(&export);
	*id = export.id;

	MemoryContextSwitchTo(old);
	MemoryContextDelete(export.context);
}

void
kpg_export_submit(const KpgExportRequest *request, pg_uuid_t *id)
{
	KpgExport	export = {.request = request,.started = GetCurrentTimestamp()};
	KpgOperationRequest operation;
	MemoryContext old;

	PreventCommandDuringRecovery("kusto_ingest_async()");
	PreventCommandIfReadOnly("kusto_ingest_async()");
	PreventCommandIfParallelMode("kusto_ingest_async()");

	old = enter_context(&export);
	choose_id(&export);
	prepare(&export, false);
	kpg_worker_job_check(export.session->userid);
	operation = row_of(&export);
	kpg_operations_submit(&operation, request->create_table);
	kpg_worker_staged();
	*id = export.id;

	MemoryContextSwitchTo(old);
	MemoryContextDelete(export.context);
}

void
kpg_export_run_job(const KpgExportRequest *request, const pg_uuid_t *id, volatile bool *perhaps_ingested)
{
	KpgExport	export = {.request = request,.started = GetCurrentTimestamp(),.id = *id,.job = true};
	MemoryContext old = enter_context(&export);

	export.perhaps_ingested = perhaps_ingested;

	prepare(&export, true);
	run(&export);

	MemoryContextSwitchTo(old);
	MemoryContextDelete(export.context);
}
