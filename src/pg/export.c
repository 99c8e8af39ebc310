/*
 * export.c
 *	  One export: a query's result into blobs that are staged for posting; and
 *	  the request that a job makes one.
 *
 * Session, ingest and everything between live in a memory context of the
 * export, under the caller's.  However the export ends, the context's reset
 * callbacks cancel what is under way and let go of the session: first the
 * ingest's, then the session's.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "../core/ingest.h"
#include "alloc.h"
#include "compat.h"
#include "dest.h"
#include "exec.h"
#include "export.h"
#include "fault.h"
#include "format.h"
#include "operations.h"
#include "progress.h"
#include "report.h"
#include "schema.h"
#include "session.h"
#include "settings.h"
#include "worker.h"

typedef struct Export
{
	const KpgExportRequest *request;
	MemoryContext context;
	TimestampTz started;
	pg_uuid_t	id;
	bool		job;			/* its row is there already */
	KpgQuery   *query;
	KpgOnTypeError policy;
	KpgExactlyOnce exactly_once;
	char	   *table_command;	/* NULL unless create_table */
	KpgSession *session;
	const char *database;
	KpgRowFormat *format;
	KcIngest   *ingest;
} Export;

/* ---- checks of the request ---- */

static void
check_mode(const char *mode)
{
	static const char *const modes[] = {"queued", "streaming", "managed", "direct"};
	const char *closest;

	if (strcmp(mode, modes[0]) == 0)
		return;
	for (size_t i = 1; i < lengthof(modes); i++)
	{
		if (strcmp(mode, modes[i]) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("mode \"%s\" is not supported in this version", mode),
					 errhint("Use mode \"queued\".")));
	}
	closest = kpg_report_closest(mode, modes, 1);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized mode \"%s\"", mode),
			 closest != NULL ? errhint("Perhaps you meant the mode \"%s\".", closest)
			 : errhint("The mode of this version is \"queued\".")));
}

static void
check_given(const char *value, const char *argument)
{
	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", argument)));
}

static void
check_not_empty(const char *value, const char *argument)
{
	if (value != NULL && value[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", argument)));
}

static void
check_request(const KpgExportRequest *request)
{
	check_given(request->query, "query");
	check_given(request->table_name, "table_name");
	check_given(request->mode, "mode");
	check_given(request->on_type_error, "on_type_error");
	check_given(request->exactly_once, "exactly_once");
	check_not_empty(request->table_name, "table_name");
	check_not_empty(request->mapping, "mapping");
	check_mode(request->mode);
	if (request->has_creation_time && TIMESTAMP_NOT_FINITE(request->creation_time))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("creation_time must be finite")));
}

/* The elements of a text[] in UTF-8; NULL array: none. */
static const KcSlice *
text_array(ArrayType *array, const char *argument, int *count)
{
	Datum	   *elements;
	bool	   *nulls;
	KcSlice    *slices;

	*count = 0;
	if (array == NULL)
		return NULL;
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("%s must be one-dimensional", argument)));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, count);
	slices = palloc(sizeof(KcSlice) * (Size) Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain null", argument)));
		slices[i] = kc_slice(kpg_session_utf8(TextDatumGetCString(elements[i])));
		if (slices[i].len == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s must not contain an empty string", argument)));
	}
	return slices;
}

static KcIngestProperties
build_properties(const Export *export)
{
	const KpgExportRequest *request = export->request;
	KcIngestProperties properties;

	memset(&properties, 0, sizeof(properties));
	properties.database = kc_slice(kpg_session_utf8(export->database));
	properties.table = kc_slice(kpg_session_utf8(request->table_name));
	properties.mapping = kc_slice(kpg_session_utf8(request->mapping));
	properties.tags = text_array(request->tags, "tags", &properties.ntags);
	properties.if_not_exists = text_array(request->ingest_if_not_exists, "ingest_if_not_exists",
										  &properties.nif_not_exists);
	properties.has_creation_time = request->has_creation_time;
	if (request->has_creation_time)
		properties.creation_time_us = request->creation_time +
			((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE)) * USECS_PER_DAY;
	properties.flush_immediately = request->flush_immediately;
	/* Perhaps: how large the blobs will be is not known yet, and the message must fit. */
	properties.exactly_once = export->exactly_once != KPG_EXACTLY_ONCE_OFF;
	properties.report = KC_REPORT_ALL;
	return properties;
}

/* ---- the run ---- */

static void
free_ingest(void *arg)
{
	kc_ingest_free((KcIngest *) arg);
}

static void
start_ingest(Export *export)
{
	MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));
	KcIngestOptions options;
	KcError		err;

	memset(&options, 0, sizeof(options));
	StaticAssertStmt(sizeof(export->id.data) == sizeof(options.operation_id.bytes), "both are UUIDs");
	memcpy(options.operation_id.bytes, export->id.data, sizeof(export->id.data));
	options.max_blob_size = (uint64_t) kpg_max_blob_size_kb * 1024;
	options.level = kpg_compression_level;
	options.properties = build_properties(export);
	kpg_check(kc_ingest_create(kpg_alloc_create(export->context), export->session->client, &options,
							   &export->ingest, &err), &err);
	callback->func = free_ingest;
	callback->arg = export->ingest;
	MemoryContextRegisterResetCallback(export->context, callback);
}

static void
choose_id(Export *export)
{
	KcUuid		id;
	KcError		err;

	kpg_check(kc_uuid_random(&id, &err), &err);
	memcpy(export->id.data, id.bytes, sizeof(id.bytes));
}

/* What the result will look like in Kusto. */
static void
describe(Export *export, TupleDesc desc)
{
	const KpgExportRequest *request = export->request;

	if (desc->natts == 0)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("the query returns no columns"),
				 errhint("A Kusto table has at least one column.")));
	export->format = kpg_format_create(desc, export->policy);
	if (request->create_table)
		export->table_command = kpg_schema_create_merge(desc, request->table_name, export->policy);
}

/*
 * Everything up to the first request.  With run the query is planned, else
 * nothing of it is evaluated.
 */
static void
prepare(Export *export, bool run)
{
	const KpgExportRequest *request = export->request;
	Oid			serverid;

	check_request(request);
	serverid = kpg_session_server(request->server, GetUserId());
	export->policy = kpg_format_policy(request->on_type_error);
	export->exactly_once = kpg_operations_exactly_once(request->exactly_once);
	if (run)
	{
		export->query = kpg_exec_prepare(request->query);
		if (export->job)
			kpg_exec_hide(export->query,
						  psprintf("exporting operation %s",
								   DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&export->id)))));
		describe(export, kpg_exec_tupdesc(export->query));
	}
	else
		describe(export, kpg_exec_check(request->query));
	export->session = kpg_session_acquire_in(export->context, serverid, GetUserId());
	export->database = kpg_session_database(export->session, request->database);
	start_ingest(export);
}

/*
 * Kusto looks for the tag before each blob: once the first blob is in, it
 * would skip the others.
 */
static void
check_skippable(const Export *export)
{
	ArrayType  *keys = export->request->ingest_if_not_exists;

	if (keys == NULL || ArrayGetNItems(ARR_NDIM(keys), ARR_DIMS(keys)) == 0 ||
		kc_ingest_nblobs(export->ingest) <= 1)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("a result of %d blobs cannot be exported with ingest_if_not_exists",
					kc_ingest_nblobs(export->ingest)),
			 errdetail("After the first blob Kusto would skip the others."),
			 errhint("Raise kusto_ingest.max_blob_size, or export the result in parts with a key for each.")));
}

static KpgOperationRequest
row_of(const Export *export)
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
	operation.table_command = export->table_command;
	operation.on_type_error = request->on_type_error;
	operation.exactly_once = export->exactly_once;
	operation.created_at = export->started;
	return operation;
}

/* True when the worker has something to do. */
static bool
stage(const Export *export)
{
	KpgOperationRequest operation = row_of(export);
	char	   *type_errors = kpg_format_type_errors(export->format);

	if (export->job)
		return kpg_operations_stage_job(&operation, export->ingest, type_errors);
	return kpg_operations_stage(&operation, export->ingest, type_errors);
}

static void
run(Export *export)
{
	KpgProgress *progress = kpg_progress_begin(&export->id);
	DestReceiver *dest = kpg_dest_create(export->format, export->ingest,
										 kc_client_mux(export->session->client), progress);

	(void) kpg_exec_run(export->query, dest);
	kpg_dest_finish(dest);
	check_skippable(export);
	kpg_progress_phase(progress, KPG_PHASE_STAGING);
	KPG_FAULT("blobs-uploaded");
	if (stage(export))
		kpg_worker_staged();
	KPG_FAULT("rows-staged");
	kpg_progress_end(progress);
}

/* ---- the three ways in ---- */

/* Where everything of an export lives; returns what to go back to. */
static MemoryContext
enter_context(Export *export)
{
	export->context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest export",
											ALLOCSET_DEFAULT_SIZES);
	return MemoryContextSwitchTo(export->context);
}

void
kpg_export_run(const KpgExportRequest *request, pg_uuid_t *id)
{
	Export		export = {.request = request,.started = GetCurrentTimestamp()};
	MemoryContext old;

	/* Before the next one, which would be true and tell less. */
	PreventCommandDuringRecovery("kusto_ingest()");
	PreventCommandIfReadOnly("kusto_ingest()");
	PreventCommandIfParallelMode("kusto_ingest()");

	old = enter_context(&export);
	choose_id(&export);
	prepare(&export, true);
	run(&export);
	kpg_export_notice(export.ingest, export.format, export.table_command != NULL);
	*id = export.id;

	MemoryContextSwitchTo(old);
	MemoryContextDelete(export.context);
}

void
kpg_export_submit(const KpgExportRequest *request, pg_uuid_t *id)
{
	Export		export = {.request = request,.started = GetCurrentTimestamp()};
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
kpg_export_run_job(const KpgExportRequest *request, const pg_uuid_t *id)
{
	Export		export = {.request = request,.started = GetCurrentTimestamp(),.id = *id,.job = true};
	MemoryContext old = enter_context(&export);

	prepare(&export, true);
	run(&export);

	MemoryContextSwitchTo(old);
	MemoryContextDelete(export.context);
}
