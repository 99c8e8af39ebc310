/*
 * functions_test.c
 *	  kusto_test_connection(): try each step between here and Kusto.
 *
 * What is wrong with our own configuration raises; what goes wrong on the way
 * to the service is the result.  What other clients have been told, and would
 * find in a cache, proves nothing: the service is asked for all of it.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "../core/kusto.h"
#include "compat.h"
#include "report.h"
#include "session.h"
#include "version.h"
#include "wait.h"

PG_FUNCTION_INFO_V1(kusto_test_connection);

/* Columns of a result row. */
enum
{
	COL_STEP,
	COL_OK,
	COL_MILLISECONDS,
	COL_DETAIL,
	COL_HINT,
	NCOLUMNS
};

typedef struct Row
{
	Datum		values[NCOLUMNS];
	bool		nulls[NCOLUMNS];
} Row;

static void
set_text(Row *row, int column, const char *text)
{
	row->nulls[column] = text == NULL || text[0] == '\0';
	if (!row->nulls[column])
		row->values[column] = CStringGetTextDatum(text);
}

static void
set_failure(Row *row, const KcError *err, const char *database, const char *principal)
{
	char	   *message = kpg_report_message(err);
	char	   *detail = kpg_report_detail(err);

	row->values[COL_OK] = BoolGetDatum(false);
	set_text(row, COL_DETAIL,
			 kpg_report_text(detail != NULL ? psprintf("%s\n%s", message, detail) : message));
	set_text(row, COL_HINT, kpg_report_hint_for(err, database, principal));
}

static void
free_task(void *arg)
{
	kc_task_free((KcTask *) arg);
}

/*
 * Try one step; false when it failed.  *principal is what the token says,
 * once there is one.
 */
static bool
try_step(const KpgSession *session, KcProbe probe, char **principal, Row *row)
{
	MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));
	const char *database = session->database;
	KcProbeTask *task;
	KcStatus	status;
	KcError		err;
	instr_time	started;
	instr_time	elapsed;

	INSTR_TIME_SET_CURRENT(started);
	status = kc_kusto_probe_start(session->client, probe, kc_slice(kpg_session_utf8(database)), &task, &err);
	if (status == KC_OK)
	{
		callback->func = free_task;
		callback->arg = &task->task;
		MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
		(void) kpg_wait_done(&task->task.done, -1, KPG_WAIT_REQUEST);
		err = task->task.error;
		status = err.status;
		if (task->principal[0] != '\0')
			*principal = MemoryContextStrdup(MemoryContextGetParent(CurrentMemoryContext),
											 kpg_report_text(task->principal));
	}
	INSTR_TIME_SET_CURRENT(elapsed);
	INSTR_TIME_SUBTRACT(elapsed, started);
	row->values[COL_MILLISECONDS] = Float8GetDatum(INSTR_TIME_GET_MILLISEC(elapsed));
	if (status != KC_OK)
	{
		set_failure(row, &err, database, *principal);
		return false;
	}
	row->values[COL_OK] = BoolGetDatum(true);
	set_text(row, COL_DETAIL, kpg_report_text(task->detail));
	row->nulls[COL_HINT] = true;
	return true;
}

static void
skip_step(Row *row)
{
	row->nulls[COL_OK] = true;
	row->nulls[COL_MILLISECONDS] = true;
	set_text(row, COL_DETAIL, "not tried, because an earlier step failed");
	row->nulls[COL_HINT] = true;
}

Datum
kusto_test_connection(PG_FUNCTION_ARGS)
{
	const char *server;
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext context;
	MemoryContext step_context;
	MemoryContext old;
	KpgSession *session;
	char	   *principal = NULL;
	bool		ok = true;

	kpg_version_check();
	server = PG_ARGISNULL(0) ? NULL : NameStr(*PG_GETARG_NAME(0));
	kpg_compat_materialize(fcinfo);
	context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest test", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	session = kpg_session_acquire_fresh_in(context, kpg_session_server(server, GetUserId()), GetUserId());
	if (session->principal != NULL)
		principal = pstrdup(session->principal);
	step_context = AllocSetContextCreate(context, "kusto_ingest test step", ALLOCSET_DEFAULT_SIZES);

	MemoryContextSwitchTo(step_context);
	for (int probe = 0; probe < KC_PROBE_COUNT; probe++)
	{
		Row			row = {{0}, {false}};

		set_text(&row, COL_STEP, kc_probe_name((KcProbe) probe));
		if (!ok)
			skip_step(&row);
		else if (!try_step(session, (KcProbe) probe, &principal, &row))
			/* A principal that may only ingest may not query. */
			ok = probe == KC_PROBE_QUERY;
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row.values, row.nulls);
		MemoryContextReset(step_context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return (Datum) 0;
}
