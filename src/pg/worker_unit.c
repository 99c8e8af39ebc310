/*
 * worker_unit.c
 *	  One short transaction of the worker.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/latch.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "version.h"
#include "worker_internal.h"

/*
 * A transaction that creates the extension may have staged something as well,
 * and count on us: it has the guard, or has committed before we got that.
 */
static bool
is_gone_for_good(void)
{
	LOCKTAG		guard;

	kpg_worker_lock_tag(&guard, KPG_WORKER_GUARD);
	if (LockAcquire(&guard, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	AcceptInvalidationMessages();
	return kpg_operations_lock() == KPG_TABLES_GONE;
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
	if (tables == KPG_TABLES_GONE && is_gone_for_good())
		kpg_worker_end_without_tables();
	return tables == KPG_TABLES_READY;
}

/*
 * A wait for a lock or for a synchronous standby resets the latch, perhaps
 * after somebody has staged something.  A transaction that writes nothing, as
 * a look, waits for nothing: it does not have us look again and again.
 */
static bool
may_have_waited(const ErrorData *error)
{
	if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return true;
	return error != NULL && (error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
							 error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED);
}

KpgUnitResult
kpg_worker_unit(const char *activity, void (*body) (void *arg), void *arg, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	volatile KpgUnitResult result = KPG_UNIT_BUSY;
	volatile bool waited = false;

	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, activity);
	PG_TRY();
	{
		StartTransactionCommand();
		if (run(body, arg))
			result = KPG_UNIT_DONE;
		waited = may_have_waited(NULL);
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *copy;

		result = KPG_UNIT_FAILED;
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		copy = CopyErrorData();
		waited = waited || may_have_waited(copy);
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
	if (waited)
		SetLatch(MyLatch);
	pgstat_report_stat(true);
	pgstat_report_activity(STATE_IDLE, NULL);
	return result;
}
