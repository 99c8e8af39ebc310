/*
 * functions_query.c
 *	  kusto_query() and kusto_command(): ask Kusto, one jsonb object a row.
 *
 * The answer is read whole, at most MAX_RESPONSE bytes, and belongs to a task
 * that a memory context's reset callback frees.
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "../core/kusto.h"
#include "alloc.h"
#include "compat.h"
#include "report.h"
#include "session.h"
#include "version.h"
#include "wait.h"

/* Kusto itself cuts a query's result at 64 MB unless it is told not to. */
#define MAX_RESPONSE ((size_t) 128 * 1024 * 1024)

PG_FUNCTION_INFO_V1(kusto_query);
PG_FUNCTION_INFO_V1(kusto_command);

static void
free_task(void *arg)
{
	kc_task_free((KcTask *) arg);
}

/* A management command begins with a dot, a query with anything else. */
static void
check_text(const char *text, bool command)
{
	const char *first = text == NULL ? NULL : text + strspn(text, " \t\r\n");

	if (first == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("kql must not be null")));
	if (*first == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("kql must not be empty")));
	if (*first == '.' && !command)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("kusto_query() does not run management commands"),
				 errhint("Use kusto_command().")));
	if (command && *first != '.' && strncmp(first, "//", 2) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a management command begins with a dot"),
				 errhint("Use kusto_query() for queries.")));
}

/*
 * A dynamic value may come as a string that holds its JSON.  A string that
 * does not is a dynamic string.
 */
static KcSlice
dynamic_json(KcJsonValue value, KcBuf *scratch)
{
	KcJsonValue inner;

	if (value.type != KC_JSON_STRING)
		return value.raw;
	kc_buf_reset(scratch);
	kc_json_unescape(scratch, value);
	if (scratch->failed == KC_OK &&
		kc_json_check(kc_buf_view(scratch), KC_JSON_MAX_DEPTH, &inner, "reading a dynamic value", NULL) == KC_OK)
		return kc_buf_view(scratch);
	return value.raw;
}

/* The current row as jsonb, in the current context. */
static Datum
row_jsonb(const KcResult *result)
{
	const KcAlloc *alloc = kpg_alloc_create(CurrentMemoryContext);
	KcJsonWriter w;
	KcBuf		text;
	KcBuf		scratch;
	KcError		err;

	kc_buf_init(&text, alloc, MaxAllocSize - 1);
	kc_buf_init(&scratch, alloc, MaxAllocSize - 1);
	kc_json_begin(&w, &text);
	kc_json_object_open(&w);
	for (int i = 0; i < kc_result_ncolumns(result); i++)
	{
		KcJsonValue value = kc_result_value(result, i);
		bool		dynamic = kc_slice_ieq(kc_result_column_type(result, i), kc_slice("dynamic"));

		kc_json_key_slice(&w, kc_result_column_name(result, i));
		kc_json_value_raw(&w, dynamic ? dynamic_json(value, &scratch) : value.raw);
	}
	kc_json_object_close(&w);
	kpg_check(kc_buf_status(&text, &err, "reading a row from Kusto"), &err);
	return DirectFunctionCall1(jsonb_in,
							   CStringGetDatum(pg_any_to_server(text.data, (int) text.len, PG_UTF8)));
}

static void
return_rows(ReturnSetInfo *rsinfo, KcResult *result)
{
	MemoryContext row_context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest row",
													  ALLOCSET_DEFAULT_SIZES);

	while (kc_result_next(result))
	{
		MemoryContext old = MemoryContextSwitchTo(row_context);
		Datum		value = row_jsonb(result);
		bool		isnull = false;

		MemoryContextSwitchTo(old);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
		MemoryContextReset(row_context);
		CHECK_FOR_INTERRUPTS();
	}
	MemoryContextDelete(row_context);
}

static Datum
run(FunctionCallInfo fcinfo, bool command)
{
	char	   *kql = PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *database = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	const char *server = PG_ARGISNULL(2) ? NULL : NameStr(*PG_GETARG_NAME(2));
	MemoryContext context;
	MemoryContext old;
	MemoryContextCallback *callback;
	KpgSession *session;
	KcRequestTask *task;
	KcError		err;

	check_text(kql, command);
	kpg_compat_materialize(fcinfo);

	context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest query", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	session = kpg_session_acquire_in(context, kpg_session_server(server, GetUserId()), GetUserId());

	/* A cluster has commands that are about no database. */
	if (database != NULL || session->database != NULL)
		database = pstrdup(kpg_session_database(session, database));

	callback = palloc0(sizeof(MemoryContextCallback));
	kpg_check(kc_kusto_request_start(session->client,
									 command ? KC_ENDPOINT_ENGINE_MGMT : KC_ENDPOINT_ENGINE_QUERY,
									 kc_slice(kpg_session_utf8(database)), kc_slice(kpg_session_utf8(kql)),
									 !command, MAX_RESPONSE, &task, &err), &err);
	callback->func = free_task;
	callback->arg = &task->task;
	MemoryContextRegisterResetCallback(context, callback);

	(void) kpg_wait_done(&task->task.done, -1, KPG_WAIT_REQUEST);
	kpg_check(task->task.error.status, &task->task.error);
	return_rows((ReturnSetInfo *) fcinfo->resultinfo, task->result);

	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return (Datum) 0;
}

Datum
kusto_query(PG_FUNCTION_ARGS)
{
	kpg_version_check();
	return run(fcinfo, false);
}

Datum
kusto_command(PG_FUNCTION_ARGS)
{
	kpg_version_check();
	return run(fcinfo, true);
}
