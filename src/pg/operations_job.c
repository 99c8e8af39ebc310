/*
 * operations_job.c
 *	  Operations whose query a job's process runs: submitting, finding,
 *	  claiming, staging, giving back and failing them.
 *
 * Their queries name staged_at, which none of them has: so they read an index
 * of their own, however many exports wait for their outcome.
 *
 * Until a job's transaction commits, with the query's effects and the staged
 * blobs at once, nothing of a run is there: what has lost its process can be
 * run again.  But in the modes that have their effect at once a run may have
 * brought its rows to Kusto, and nobody knows: posted_at tells so from then on.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "operations.h"
#include "operations_internal.h"
#include "report.h"

/* What of a session decides about the meaning of a query, the result, or its form. */
static const char *const recorded_settings[] = {
	"search_path", "standard_conforming_strings", "backslash_quote", "transform_null_equals", "array_nulls",
	"row_security", "gin_fuzzy_search_limit", "default_text_search_config", "xmloption", "xmlbinary",
	"TimeZone", "timezone_abbreviations", "DateStyle", "IntervalStyle", "extra_float_digits", "bytea_output",
	"lc_monetary", "lc_numeric", "lc_time",
	"kusto_ingest.max_blob_size", "kusto_ingest.compression_level", "kusto_ingest.compression_threads",
	"kusto_ingest.job_timeout"
};

static const char insert_pending[] =
"INSERT INTO kusto.operation (" KPG_REQUEST_COLUMNS ", options, state)"
" VALUES (" KPG_REQUEST_VALUES ","
" jsonb_strip_nulls(jsonb_build_object(" KPG_REQUEST_OPTIONS ","
" 'create_table', $19, 'settings', jsonb_object($20, $21))),"
" 'pending')";

/* The last row tells when the next of those that wait may be tried. */
static const char select_jobs[] =
"SELECT j.* FROM ("
"SELECT o.id, o.owner, o.state, o.runs, o.created_at, NULL::timestamptz AS next"
" FROM kusto.operation o WHERE o.finished_at IS NULL AND o.staged_at IS NULL AND o.state = 'running'"
" AND o.system_identifier = $1 AND o.database_oid = $2"
" UNION ALL (SELECT o.id, o.owner, o.state, o.runs, o.created_at, NULL"
" FROM kusto.operation o WHERE o.finished_at IS NULL AND o.staged_at IS NULL AND o.state = 'pending'"
" AND o.system_identifier = $1 AND o.database_oid = $2"
" AND coalesce(o.not_before <= clock_timestamp(), true)"
" ORDER BY o.created_at, o.id LIMIT $3)"
" UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, min(o.not_before)"
" FROM kusto.operation o WHERE o.finished_at IS NULL AND o.staged_at IS NULL AND o.state = 'pending'"
" AND o.system_identifier = $1 AND o.database_oid = $2 AND o.not_before > clock_timestamp()"
") j ORDER BY j.id IS NULL, j.created_at, j.id";

static const char select_pending[] =
"SELECT o.id FROM kusto.operation o WHERE o.id = ANY ($1) AND o.state = 'pending'";

static const char select_claimed[] =
"SELECT o.server, o.database, o.table_name, o.mode, o.source, o.query, o.options ->> 'mapping',"
" CASE WHEN o.options ? 'tags' THEN ARRAY(SELECT t.tag"
" FROM jsonb_array_elements_text(o.options -> 'tags') WITH ORDINALITY AS t (tag, n) ORDER BY t.n) END,"
" CASE WHEN o.options ? 'ingest_if_not_exists' THEN ARRAY(SELECT t.tag"
" FROM jsonb_array_elements_text(o.options -> 'ingest_if_not_exists')"
" WITH ORDINALITY AS t (tag, n) ORDER BY t.n) END,"
" (o.options ->> 'creation_time')::timestamptz,"
" coalesce((o.options ->> 'flush_immediately')::boolean, false),"
" coalesce((o.options ->> 'create_table')::boolean, false),"
" o.options ->> 'on_type_error', o.options ->> 'exactly_once', o.owner,"
" ARRAY(SELECT s.key FROM jsonb_each_text(o.options -> 'settings') AS s ORDER BY s.key),"
" ARRAY(SELECT s.value FROM jsonb_each_text(o.options -> 'settings') AS s ORDER BY s.key)"
" FROM kusto.operation o WHERE o.id = $1 AND o.state = 'running'";

/* Rows written while a job runs are its own: nobody else changes these columns. */
static const char update_result[] =
"UPDATE kusto.operation SET table_command = $2, rows = $3, raw_bytes = $4, compressed_bytes = $5,"
" blobs = $6, type_errors = $7::jsonb, staged_at = clock_timestamp(),"
" posted_at = CASE WHEN $8 AND $3 > 0 THEN clock_timestamp() END"
" WHERE id = $1 AND state = 'running'";

static const char lock_in_state[] =
"SELECT o.runs FROM kusto.operation o WHERE o.id = $1 AND o.state = $2 FOR NO KEY UPDATE";

static const char lock_in_state_now[] =
"SELECT o.runs FROM kusto.operation o WHERE o.id = $1 AND o.state = $2 FOR NO KEY UPDATE SKIP LOCKED";

static const char uncount_run[] =
"UPDATE kusto.operation SET runs = runs - 1 WHERE id = $1 AND state = 'pending'";

static const char update_not_before[] =
"UPDATE kusto.operation SET not_before = clock_timestamp() + make_interval(secs => $2)"
" WHERE id = $1 AND state = 'pending'";

static const char update_perhaps_ingested[] =
"UPDATE kusto.operation SET posted_at = coalesce(posted_at, clock_timestamp())"
" WHERE id = $1 AND state = 'running' AND mode <> 'queued'";

static const char select_perhaps_ingested[] =
"SELECT o.posted_at IS NOT NULL FROM kusto.operation o WHERE o.id = $1";

/* ---- submitting ---- */

static KpgSqlArg
texts_arg(Datum *values, int n)
{
	return kpg_operations_arg(TEXTARRAYOID,
							  PointerGetDatum(construct_array(values, n, TEXTOID, -1, false, TYPALIGN_INT)));
}

void
kpg_operations_submit(const KpgOperationRequest *request, bool create_table)
{
	int			n = lengthof(recorded_settings);
	Datum		names[lengthof(recorded_settings)];
	Datum		values[lengthof(recorded_settings)];
	KpgSqlArg	args[KPG_REQUEST_ARGS + 3];
	KpgSqlScope scope;

	/* Before the scope, which has a search_path of its own. */
	for (int i = 0; i < n; i++)
	{
		names[i] = CStringGetTextDatum(recorded_settings[i]);
		values[i] = CStringGetTextDatum(GetConfigOptionByName(recorded_settings[i], NULL, false));
	}

	kpg_operations_enter(&scope);
	kpg_operations_request_args(request, args);
	args[KPG_REQUEST_ARGS] = kpg_operations_arg(BOOLOID, BoolGetDatum(create_table));
	args[KPG_REQUEST_ARGS + 1] = texts_arg(names, n);
	args[KPG_REQUEST_ARGS + 2] = texts_arg(values, n);
	(void) kpg_operations_execute(insert_pending, args, lengthof(args), SPI_OK_INSERT, 0);
	kpg_operations_leave(&scope);
}

/* ---- what the worker reads ---- */

static void
read_job_row(uint64 row, KpgJobRow *job)
{
	bool		isnull;

	job->id = *DatumGetUUIDP(kpg_operations_value(row, 1, &isnull));
	job->owner = DatumGetObjectId(kpg_operations_value(row, 2, &isnull));
	job->state = kpg_operations_state(kpg_operations_string(CurrentMemoryContext, row, 3));
	job->runs = DatumGetInt32(kpg_operations_value(row, 4, &isnull));
}

KpgJobRow *
kpg_operations_jobs(int limit, int *n, int64 *next_ms)
{
	MemoryContext context = CurrentMemoryContext;
	KpgSqlScope scope;
	KpgJobRow  *jobs;
	TimestampTz next;
	uint64		rows;
	bool		isnull;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_cluster_arg(),
			kpg_operations_database_arg(),
			kpg_operations_arg(INT4OID, Int32GetDatum(limit))
		};

		rows = kpg_operations_execute(select_jobs, args, lengthof(args), SPI_OK_SELECT, 0) - 1;
	}
	jobs = MemoryContextAllocZero(context, sizeof(KpgJobRow) * (Size) Max(rows, 1));
	for (uint64 i = 0; i < rows; i++)
		read_job_row(i, &jobs[i]);
	*n = (int) rows;
	next = DatumGetTimestampTz(kpg_operations_value(rows, 6, &isnull));
	*next_ms = isnull ? -1 : Max((next - GetCurrentTimestamp()) / 1000 + 1, 0);
	kpg_operations_leave(&scope);
	return jobs;
}

int
kpg_operations_pending(pg_uuid_t *ids, int n)
{
	Datum	   *values = palloc(sizeof(Datum) * (Size) Max(n, 1));
	KpgSqlScope scope;
	KpgSqlArg	arg;
	int			pending;
	bool		isnull;

	for (int i = 0; i < n; i++)
		values[i] = UUIDPGetDatum(&ids[i]);
	kpg_operations_enter(&scope);
	arg = kpg_operations_arg(UUIDARRAYOID, PointerGetDatum(construct_array(values, n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR)));
	pending = (int) kpg_operations_execute(select_pending, &arg, 1, SPI_OK_SELECT, 0);
	for (int i = 0; i < pending; i++)
		ids[i] = *DatumGetUUIDP(kpg_operations_value((uint64) i, 1, &isnull));
	kpg_operations_leave(&scope);
	return pending;
}

/* ---- what the job's process does ---- */

/* NULL for null; in context. */
static ArrayType *
read_array(MemoryContext context, int column)
{
	bool		isnull;
	Datum		value = kpg_operations_value(0, column, &isnull);
	MemoryContext old;
	ArrayType  *copy;

	if (isnull)
		return NULL;
	old = MemoryContextSwitchTo(context);
	copy = DatumGetArrayTypePCopy(value);
	MemoryContextSwitchTo(old);
	return copy;
}

static char **
read_texts(MemoryContext context, int column, int *n)
{
	ArrayType  *array = read_array(CurrentMemoryContext, column);
	Datum	   *values;
	char	  **texts;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, NULL, n);
	texts = MemoryContextAlloc(context, sizeof(char *) * (Size) Max(*n, 1));
	for (int i = 0; i < *n; i++)
		texts[i] = MemoryContextStrdup(context, TextDatumGetCString(values[i]));
	return texts;
}

static void
read_claimed(MemoryContext context, const pg_uuid_t *id, KpgJob *job)
{
	KpgOperationRequest *request = &job->request;
	bool		isnull;

	memset(job, 0, sizeof(*job));
	request->id = *id;
	request->server = kpg_operations_string(context, 0, 1);
	request->database = kpg_operations_string(context, 0, 2);
	request->table_name = kpg_operations_string(context, 0, 3);
	request->mode = kpg_operations_string(context, 0, 4);
	request->source = kpg_operations_string(context, 0, 5);
	request->query = kpg_operations_string(context, 0, 6);
	request->mapping = kpg_operations_string(context, 0, 7);
	request->tags = read_array(context, 8);
	request->ingest_if_not_exists = read_array(context, 9);
	request->creation_time = DatumGetTimestampTz(kpg_operations_value(0, 10, &isnull));
	request->has_creation_time = !isnull;
	request->flush_immediately = DatumGetBool(kpg_operations_value(0, 11, &isnull));
	job->create_table = DatumGetBool(kpg_operations_value(0, 12, &isnull));
	request->on_type_error = kpg_operations_string(context, 0, 13);
	request->exactly_once = kpg_operations_exactly_once(kpg_operations_string(context, 0, 14));
	request->owner = DatumGetObjectId(kpg_operations_value(0, 15, &isnull));
	job->setting_names = read_texts(context, 16, &job->nsettings);
	job->setting_values = read_texts(context, 17, &job->nsettings);
}

/* Inside a scope. */
static bool
lock_job(const pg_uuid_t *id, KpgState state, bool wait)
{
	const KpgSqlArg args[] = {
		kpg_operations_uuid_arg(id),
		kpg_operations_text_arg(kpg_operations_state_name(state))
	};

	return kpg_operations_execute(wait ? lock_in_state : lock_in_state_now, args, lengthof(args),
								  SPI_OK_SELECT, 0) == 1;
}

bool
kpg_operations_claim_job(const pg_uuid_t *id, int *runs)
{
	KpgSqlScope scope;
	bool		claimed;
	bool		isnull;

	kpg_operations_enter(&scope);
	/* Whoever has it locked may be long: processes that wait for him are in the way of other jobs. */
	claimed = lock_job(id, KPG_STATE_PENDING, false);
	if (claimed)
	{
		*runs = DatumGetInt32(kpg_operations_value(0, 1, &isnull)) + 1;
		claimed = kpg_operations_move(id, KPG_STATE_RUNNING, false);
	}
	kpg_operations_leave(&scope);
	return claimed;
}

static void
raise_not_running(const pg_uuid_t *id)
{
	ereport(ERROR,
			(errcode(ERRCODE_QUERY_CANCELED),
			 errmsg("operation %s is not running any more",
					DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id))))));
}

void
kpg_operations_load_job(const pg_uuid_t *id, KpgJob *job)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			userid = GetUserId();
	KpgSqlScope scope;
	KpgSqlArg	arg;

	kpg_operations_enter(&scope);
	arg = kpg_operations_uuid_arg(id);
	if (kpg_operations_execute(select_claimed, &arg, 1, SPI_OK_SELECT, 0) != 1)
		raise_not_running(id);
	read_claimed(context, id, job);
	kpg_operations_leave(&scope);
	if (job->request.owner != userid)
		elog(ERROR, "operation that was claimed is not of role %u", userid);
}

void
kpg_operations_record_job(const KpgOperationRequest *request, const KpgIngested *ingested,
						  const char *type_errors)
{
	int			nblobs = kpg_operations_nblobs(ingested->ingest);
	KpgSqlScope scope;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_uuid_arg(&request->id),
			kpg_operations_text_arg(request->table_command),
			kpg_operations_arg(INT8OID, Int64GetDatum((int64) ingested->rows)),
			kpg_operations_arg(INT8OID, Int64GetDatum((int64) ingested->raw_bytes)),
			kpg_operations_arg(INT8OID, Int64GetDatum((int64) ingested->compressed_bytes)),
			kpg_operations_arg(INT4OID, Int32GetDatum(nblobs)),
			kpg_operations_text_arg(type_errors),
			kpg_operations_arg(BOOLOID, BoolGetDatum(ingested->state != KPG_STATE_STAGED))
		};

		(void) kpg_operations_execute(update_result, args, lengthof(args), SPI_OK_UPDATE, 0);
	}
	if (!kpg_operations_move(&request->id, ingested->state, false))
		raise_not_running(&request->id);
	if (nblobs > 0)
		kpg_operations_insert_blobs(request, ingested->ingest, ingested->state, GetCurrentTimestamp());
	kpg_operations_leave(&scope);
}

bool
kpg_operations_stage_job(const KpgOperationRequest *request, const KcIngest *ingest, const char *type_errors)
{
	KpgIngested staged = kpg_operations_staged_ingest(request, ingest);

	kpg_operations_record_job(request, &staged, type_errors);
	return staged.state == KPG_STATE_STAGED;
}

/* ---- when it does not run to its end ---- */

static void
set_not_before(const pg_uuid_t *id, double seconds)
{
	const KpgSqlArg args[] = {
		kpg_operations_uuid_arg(id),
		kpg_operations_arg(FLOAT8OID, Float8GetDatum(seconds))
	};

	(void) kpg_operations_execute(update_not_before, args, lengthof(args), SPI_OK_UPDATE, 0);
}

/* Remember it of the run that ends so, and tell it of all of them. */
static bool
perhaps_ingested(const pg_uuid_t *id, const KpgFailure *failure)
{
	KpgSqlArg	arg = kpg_operations_uuid_arg(id);
	bool		isnull;

	if (failure->perhaps_ingested)
		(void) kpg_operations_execute(update_perhaps_ingested, &arg, 1, SPI_OK_UPDATE, 0);
	(void) kpg_operations_execute(select_perhaps_ingested, &arg, 1, SPI_OK_SELECT, 0);
	return DatumGetBool(kpg_operations_value(0, 1, &isnull));
}

bool
kpg_operations_postpone_job(const pg_uuid_t *id, KpgState from, bool wait, double seconds,
							const KpgFailure *failure)
{
	KpgSqlScope scope;
	bool		found;

	Assert(from == KPG_STATE_PENDING || from == KPG_STATE_RUNNING);
	kpg_operations_enter(&scope);
	found = lock_job(id, from, wait);
	if (found)
	{
		kpg_operations_note(id, failure);
		(void) perhaps_ingested(id, failure);
		if (from == KPG_STATE_RUNNING)
			(void) kpg_operations_move(id, KPG_STATE_PENDING, true);
		set_not_before(id, seconds);
	}
	kpg_operations_leave(&scope);
	return found;
}

bool
kpg_operations_return_job(const pg_uuid_t *id)
{
	KpgSqlScope scope;
	KpgSqlArg	arg;
	bool		found;

	kpg_operations_enter(&scope);
	found = lock_job(id, KPG_STATE_RUNNING, false);
	if (found)
	{
		(void) kpg_operations_move(id, KPG_STATE_PENDING, false);
		arg = kpg_operations_uuid_arg(id);
		(void) kpg_operations_execute(uncount_run, &arg, 1, SPI_OK_UPDATE, 0);
	}
	kpg_operations_leave(&scope);
	return found;
}

KpgState
kpg_operations_fail_job(const pg_uuid_t *id, KpgState from, bool wait, const KpgFailure *failure)
{
	KpgFailure	told = *failure;
	KpgState	end = from;
	KpgSqlScope scope;

	Assert(from == KPG_STATE_PENDING || from == KPG_STATE_RUNNING);
	kpg_operations_enter(&scope);
	if (lock_job(id, from, wait))
	{
		end = perhaps_ingested(id, failure) ? KPG_STATE_UNKNOWN : KPG_STATE_FAILED;
		if (end == KPG_STATE_UNKNOWN)
			told.hint = KPG_DOUBT_HINT;
		kpg_operations_note(id, &told);
		(void) kpg_operations_move(id, end, true);
	}
	kpg_operations_leave(&scope);
	return end;
}
