/*
 * worker_start.c
 *	  Starting, finding and waking the database's worker from a backend.
 *
 * A transaction that has staged something holds the guard in share mode until
 * its end, also while it is prepared.  The worker ends for want of work only
 * while it holds the guard exclusively, has then looked once more, and lets go
 * of ALIVE before the guard.  So a transaction that has the guard and finds
 * ALIVE held before it commits can rely on the worker; one that finds it free
 * starts another.
 *
 * After commit only a latch is set: an error there would be a PANIC.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/latch.h"
#include "storage/proc.h"

#include "wait.h"
#include "worker.h"
#include "worker_internal.h"

/* How long a commit waits for the worker that it starts; its rows are safe anyway. */
#define START_TIMEOUT_MS	2000

/* In pg_locks: classid, objid is the lock, objsubid; SQL's own have objsubid 1 and 2. */
#define LOCK_FIELD2	0x4b555354	/* "KUST" */
#define LOCK_FIELD4	0x4b55

static bool callback_registered;
static bool staged;				/* by the current transaction */
static PGPROC *worker_proc;		/* to be woken; NULL: not known */
static int	worker_pid;			/* of worker_proc when it was found */

void
kpg_worker_lock_tag(LOCKTAG *tag, KpgWorkerLock lock)
{
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, LOCK_FIELD2, (uint32) lock, LOCK_FIELD4);
}

bool
kpg_worker_try_lock(KpgWorkerLock lock)
{
	LOCKTAG		tag;

	kpg_worker_lock_tag(&tag, lock);
	return LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
}

void
kpg_worker_unlock(KpgWorkerLock lock)
{
	LOCKTAG		tag;

	kpg_worker_lock_tag(&tag, lock);
	(void) LockRelease(&tag, ExclusiveLock, true);
}

bool
kpg_worker_is_held(KpgWorkerLock lock)
{
	LOCKTAG		tag;

	kpg_worker_lock_tag(&tag, lock);
	if (LockAcquire(&tag, ShareLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	(void) LockRelease(&tag, ShareLock, true);
	return false;
}

BackgroundWorkerHandle *
kpg_worker_register(pid_t notify_pid)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_name, BGW_MAXLEN, "kusto_ingest worker for database %u", MyDatabaseId);
	snprintf(worker.bgw_type, BGW_MAXLEN, KPG_WORKER_TYPE);
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "kusto_ingest");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "kpg_worker_main");
	worker.bgw_main_arg = ObjectIdGetDatum(MyDatabaseId);
	worker.bgw_notify_pid = notify_pid;
	return RegisterDynamicBackgroundWorker(&worker, &handle) ? handle : NULL;
}

/*
 * Wait until the new worker is there, so that its latch can be found; only its
 * end before that is a failure.
 */
static bool
wait_for_start(BackgroundWorkerHandle *handle)
{
	int64		deadline = kpg_worker_now_ms() + START_TIMEOUT_MS;
	int64		pause_ms = 1;

	while (!kpg_worker_is_held(KPG_WORKER_ALIVE))
	{
		pid_t		pid;
		BgwHandleStatus status = GetBackgroundWorkerPid(handle, &pid);

		if (status == BGWH_STOPPED || status == BGWH_POSTMASTER_DIED)
			return kpg_worker_is_held(KPG_WORKER_ALIVE);
		if (kpg_worker_now_ms() >= deadline)
			return true;
		(void) kpg_wait_once(pause_ms, KPG_WAIT_WORKER);
		pause_ms = Min(pause_ms * 2, 50);
	}
	return true;
}

static bool
start_worker(void)
{
	LOCKTAG		tag;
	bool		running = true;

	kpg_worker_lock_tag(&tag, KPG_WORKER_STARTER);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	if (!kpg_worker_is_held(KPG_WORKER_ALIVE))
	{
		BackgroundWorkerHandle *handle = kpg_worker_register(MyProcPid);

		running = handle != NULL && wait_for_start(handle);
	}
	(void) LockRelease(&tag, ExclusiveLock, false);
	return running;
}

bool
kpg_worker_ensure(void)
{
	if (IsBinaryUpgrade || RecoveryInProgress())
		return false;
	return kpg_worker_is_held(KPG_WORKER_ALIVE) || start_worker();
}

/*
 * Backends know each other's latches by PGPROC alone, and PGPROCs are never
 * freed: setting the latch of one that has got another owner since wakes that
 * one for nothing.
 */
static void
find_worker(void)
{
	if (worker_proc != NULL && worker_proc->pid == worker_pid &&
		worker_proc->databaseId == MyDatabaseId)
		return;

	worker_proc = NULL;
	for (uint32 i = 0; i < ProcGlobal->allProcCount; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];
		int			pid = proc->pid;
		const char *type;

		if (pid == 0 || proc->databaseId != MyDatabaseId)
			continue;
		type = GetBackgroundWorkerTypeByPid(pid);
		if (type == NULL || strcmp(type, KPG_WORKER_TYPE) != 0)
			continue;
		worker_proc = proc;
		worker_pid = pid;
	}
}

static void
before_commit(void)
{
	if (kpg_worker_ensure())
		find_worker();
	else
		ereport(WARNING,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not start a background worker for kusto_ingest"),
				 errdetail("The data is recorded and will be posted when a worker runs."),
				 errhint("You might need to increase \"max_worker_processes\".")));
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (!staged)
		return;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			before_commit();
			break;
		case XACT_EVENT_COMMIT:
			if (worker_proc != NULL)
				SetLatch(&worker_proc->procLatch);
			staged = false;
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:	/* the worker's naptime finds COMMIT PREPARED */
			staged = false;
			break;
		default:
			break;
	}
}

void
kpg_worker_staged(void)
{
	LOCKTAG		tag;

	if (!callback_registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		callback_registered = true;
	}

	/* In a subtransaction that rolls back, the lock goes with the rows. */
	kpg_worker_lock_tag(&tag, KPG_WORKER_GUARD);
	(void) LockAcquire(&tag, ShareLock, false, false);
	staged = true;
}
