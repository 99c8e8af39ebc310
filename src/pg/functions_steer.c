/*
 * functions_steer.c
 *	  SQL-callable functions that steer operations, and dead letters: cancel,
 *	  retry, purge.
 *
 * What they do is done in the caller's transaction, and undone with it.  What
 * has an effect outside, stopping a job's process and waking the worker,
 * happens when that has committed; until then, and without it, the row alone
 * decides.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "capture.h"
#include "compat.h"
#include "fault.h"
#include "operations.h"
#include "version.h"
#include "worker.h"

PG_FUNCTION_INFO_V1(kusto_cancel);
PG_FUNCTION_INFO_V1(kusto_retry);
PG_FUNCTION_INFO_V1(kusto_purge);

/* ---- stopping the process of a job ---- */

/* A job whose query was running when the current transaction cancelled it. */
typedef struct Stop
{
	pg_uuid_t	id;
	SubTransactionId subid;		/* that cancelled it; Invalid: has rolled back */
	PGPROC	   *proc;			/* found before the commit; NULL: there was none */
	int			pid;			/* of proc then */
} Stop;

static bool callbacks_registered;
static List *stops;				/* Stop *, in the transaction's context */

static void
find_processes(void)
{
	ListCell   *cell;

	foreach(cell, stops)
	{
		Stop	   *stop = lfirst(cell);

		if (stop->subid == InvalidSubTransactionId)
			continue;
		stop->proc = kpg_worker_job_proc(&stop->id);
		stop->pid = stop->proc == NULL ? 0 : stop->proc->pid;
	}
}

/*
 * After the commit: nothing here raises.  A process that has ended since, and
 * whose place another has taken, has another pid.
 */
static void
signal_processes(void)
{
	ListCell   *cell;

	foreach(cell, stops)
	{
		const Stop *stop = lfirst(cell);

		if (stop->subid != InvalidSubTransactionId && stop->pid != 0 &&
			stop->proc->pid == stop->pid && stop->proc->databaseId == MyDatabaseId)
			(void) kill(stop->pid, SIGINT);
	}
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (stops == NIL)
		return;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			find_processes();
			break;
		case XACT_EVENT_COMMIT:
			KPG_FAULT("cancel-committed");
			signal_processes();
			stops = NIL;
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:	/* the job finds that its row has moved */
			stops = NIL;
			break;
		default:
			break;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId subid, SubTransactionId parent, void *arg)
{
	ListCell   *cell;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach(cell, stops)
	{
		Stop	   *stop = lfirst(cell);

		if (stop->subid == subid)
			stop->subid = event == SUBXACT_EVENT_COMMIT_SUB ? parent : InvalidSubTransactionId;
	}
}

static void
stop_at_commit(const pg_uuid_t *id)
{
	MemoryContext old;
	Stop	   *stop;

	if (!callbacks_registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		RegisterSubXactCallback(subxact_callback, NULL);
		callbacks_registered = true;
	}
	old = MemoryContextSwitchTo(TopTransactionContext);
	stop = palloc0(sizeof(Stop));
	stop->id = *id;
	stop->subid = GetCurrentSubTransactionId();
	stops = lappend(stops, stop);
	MemoryContextSwitchTo(old);
}

/* ---- the functions ---- */

static void
require_argument(FunctionCallInfo fcinfo, const char *name)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
}

static void
require_writable(const char *function)
{
	/* Before the next one, which would be true and tell less. */
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
}

static char *
id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

Datum
kusto_cancel(PG_FUNCTION_ARGS)
{
	const pg_uuid_t *id;
	KpgState	before;

	kpg_version_check();
	require_argument(fcinfo, "operation");
	require_writable("kusto_cancel()");
	id = PG_GETARG_UUID_P(0);
	if (kpg_capture_discard_letter(id))
		PG_RETURN_BOOL(true);
	if (!kpg_operations_cancel(id, &before))
	{
		ereport(NOTICE,
				(errmsg("operation %s is in state \"%s\" and cannot be cancelled any more",
						id_text(id), kpg_operations_state_name(before))));
		PG_RETURN_BOOL(false);
	}
	KPG_FAULT("cancel-written");
	if (before == KPG_STATE_RUNNING)
		stop_at_commit(id);
	PG_RETURN_BOOL(true);
}

Datum
kusto_retry(PG_FUNCTION_ARGS)
{
	const pg_uuid_t *id;
	KpgRetried	retried;

	kpg_version_check();
	require_argument(fcinfo, "operation");
	require_writable("kusto_retry()");
	id = PG_GETARG_UUID_P(0);
	if (kpg_capture_retry_letter(id))
		PG_RETURN_BOOL(true);
	if (!kpg_operations_retry(id, &retried))
	{
		ereport(NOTICE,
				(errmsg("operation %s is in state \"%s\" and cannot be retried",
						id_text(id), kpg_operations_state_name(retried.before)),
				 errdetail("Only what is failed, unknown or partially_succeeded can be.")));
		PG_RETURN_BOOL(false);
	}
	if (retried.doubtful > 0)
		ereport(NOTICE,
				(errmsg("retrying operation %s may duplicate data", id_text(id)),
				 errdetail_plural("%lld of its blobs is in state \"unknown\" and has no ingest-by tag: if it is in Kusto already, it will be there twice.",
								  "%lld of its blobs are in state \"unknown\" and have no ingest-by tag: those that are in Kusto already will be there twice.",
								  (unsigned long) retried.doubtful, (long long) retried.doubtful),
				 errhint("With exactly_once => 'on' an export can be retried without that.")));
	KPG_FAULT("retry-written");
	kpg_worker_staged();
	PG_RETURN_BOOL(true);
}

Datum
kusto_purge(PG_FUNCTION_ARGS)
{
	static const Interval zero = {0};
	Interval   *older_than;
	TimestampTz before;
	KpgPurge	purge = {0};
	int64		deleted = 0;
	bool		more;

	kpg_version_check();
	require_argument(fcinfo, "older_than");
	require_writable("kusto_purge()");
	older_than = PG_GETARG_INTERVAL_P(0);
	if (DatumGetBool(DirectFunctionCall2(interval_lt, IntervalPGetDatum(older_than),
										 IntervalPGetDatum(&zero))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("older_than must not be negative")));
	before = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_mi_interval,
													 TimestampTzGetDatum(GetCurrentTimestamp()),
													 IntervalPGetDatum(older_than)));
	do
	{
		CHECK_FOR_INTERRUPTS();
		deleted += kpg_operations_purge(&purge, before, GetUserId(), &more);
	} while (more);
	PG_RETURN_INT64(deleted);
}
