/*
 * worker_unit.c
 *	  One short transaction of the worker.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "version.h"
#include "worker_internal.h"

static void
end_of_extension(void)
{
	CommitTransactionCommand();
	kpg_worker_jobs_stop();
	ereport(DEBUG1, (errmsg_internal("kusto_ingest worker ends: the extension is not there")));
	proc_exit(0);
}

static bool
run(void (*body) (void *arg), void *arg)
{
	KpgTables	tables;
	char	   *installed;

	PushActiveSnapshot(GetTransactionSnapshot());
	tables = kpg_operations_lock();
	if (tables == KPG_TABLES_READY && !kpg_version_is_served(&installed))
	{
		PopActiveSnapshot();
		kpg_worker_retire(installed);
	}
	if (tables == KPG_TABLES_READY)
	{
		/* Rows that became visible while the tables were locked by others. */
		PopActiveSnapshot();
		PushActiveSnapshot(GetTransactionSnapshot());
		body(arg);
	}
	PopActiveSnapshot();
	if (tables == KPG_TABLES_GONE)
		end_of_extension();
	return tables == KPG_TABLES_READY;
}

KpgUnitResult
kpg_worker_unit(const char *activity, void (*body) (void *arg), void *arg, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	volatile KpgUnitResult result = KPG_UNIT_BUSY;

	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, activity);
	PG_TRY();
	{
		StartTransactionCommand();
		if (run(body, arg))
			result = KPG_UNIT_DONE;
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *copy;

		result = KPG_UNIT_FAILED;
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		copy = CopyErrorData();
		kpg_worker_trouble(copy->message);
		if (error == NULL)
		{
			EmitErrorReport();
			FreeErrorData(copy);
		}
		else
			*error = copy;
		FlushErrorState();
		AbortOutOfAnyTransaction();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
	return result;
}
