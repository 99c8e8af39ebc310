/*
 * worker_start.c
 *	  Starting, finding and waking the database's worker from a backend.
 *
 * A transaction that has staged something holds the guard in share mode until
 * its end, also while it is prepared.  The worker ends for want of work, or of
 * the extension, only while it holds the guard exclusively, has then looked
 * once more, and lets go of ALIVE before the guard.  So a transaction that has the guard and finds
 * ALIVE held before it commits can rely on the worker; one that finds it free
 * starts another.
 *
 * After commit only a latch is set: an error there would be a PANIC.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/latch.h"
#include "storage/proc.h"

#include "compat.h"
#include "fault.h"
#include "launcher.h"
#include "wait.h"
#include "worker.h"
#include "worker_internal.h"

/* How long a commit waits for the worker that it starts; its rows are safe anyway. */
#define START_TIMEOUT_MS	2000
#define START_PAUSE_MAX_MS	50

/* The worker, and others of its kind that begin or end. */
#define MAX_WORKERS			8

/* In pg_locks: classid, objid is the lock, objsubid; SQL's own have objsubid 1 and 2. */
#define LOCK_FIELD2	0x4b555354	/* "KUST" */
#define LOCK_FIELD4	0x4b55

/* How often a session tries to start a worker for row changes, and says that it cannot. */
#define CAPTURED_RETRY_MS	1000
#define CAPTURED_LOG_MS		60000

static bool callback_registered;
static bool staged;				/* by the current transaction */
static bool captured;			/* by the current transaction */
static PGPROC *workers[MAX_WORKERS];	/* to be woken at commit */
static int	nworkers;

/*
 * The worker as the last captured transaction found it, to be woken by the next
 * ones.  A process disowns its latch when it ends, so the latch tells that it is
 * still the same one.
 */
static PGPROC *known_worker;
static int	known_pid;
static int64 captured_retry_at;
static int64 captured_log_at;

static void
lock_tag_in(LOCKTAG *tag, Oid database, KpgWorkerLock lock)
{
	SET_LOCKTAG_ADVISORY(*tag, database, LOCK_FIELD2, (uint32) lock, LOCK_FIELD4);
}

void
kpg_worker_lock_tag(LOCKTAG *tag, KpgWorkerLock lock)
{
	lock_tag_in(tag, MyDatabaseId, lock);
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

/* Could it be had at once?  It is not kept. */
static bool
is_free(const LOCKTAG *tag, LOCKMODE mode)
{
	if (LockAcquire(tag, mode, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	(void) LockRelease(tag, mode, true);
	return true;
}

bool
kpg_worker_is_held(KpgWorkerLock lock)
{
	LOCKTAG		tag;

	kpg_worker_lock_tag(&tag, lock);
	return !is_free(&tag, ShareLock);
}

bool
kpg_worker_runs_in(Oid database)
{
	LOCKTAG		tag;

	lock_tag_in(&tag, database, KPG_WORKER_ALIVE);
	return !is_free(&tag, ShareLock);
}

bool
kpg_worker_database_is_free(Oid database)
{
	LOCKTAG		tag;

	/* As every connection does for a moment; DROP DATABASE and the like conflict. */
	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, database, 0);
	return is_free(&tag, RowExclusiveLock);
}

static BackgroundWorkerHandle *
register_worker(Oid database, char reason, pid_t notify_pid)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_name, BGW_MAXLEN, "kusto_ingest worker for database %u", database);
	snprintf(worker.bgw_type, BGW_MAXLEN, KPG_WORKER_TYPE);
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "kusto_ingest");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "kpg_worker_main");
	worker.bgw_main_arg = ObjectIdGetDatum(database);
	worker.bgw_extra[0] = reason;
	worker.bgw_notify_pid = notify_pid;
	return RegisterDynamicBackgroundWorker(&worker, &handle) ? handle : NULL;
}

BackgroundWorkerHandle *
kpg_worker_register(pid_t notify_pid)
{
	return register_worker(MyDatabaseId, '\0', notify_pid);
}

BackgroundWorkerHandle *
kpg_worker_renew(void)
{
	return register_worker(MyDatabaseId, KPG_WORKER_RENEWED, 0);
}

BackgroundWorkerHandle *
kpg_worker_start_in(Oid database, pid_t notify_pid)
{
	return register_worker(database, KPG_WORKER_LAUNCHED, notify_pid);
}

/*
 * Wait until the new worker is there, so that its latch can be found; only its
 * end before that is a failure.
 */
static bool
wait_for_start(BackgroundWorkerHandle *handle, int64 deadline)
{
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
		pause_ms = Min(pause_ms * 2, START_PAUSE_MAX_MS);
	}
	return true;
}

/*
 * Take the place of the one who starts it.  False when a worker is there, or
 * when time is over and another backend is still about it.
 */
static bool
become_starter(const LOCKTAG *tag, int64 deadline)
{
	int64		pause_ms = 1;

	while (LockAcquire(tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
	{
		if (kpg_worker_is_held(KPG_WORKER_ALIVE) || kpg_worker_now_ms() >= deadline)
			return false;
		(void) kpg_wait_once(pause_ms, KPG_WAIT_WORKER);
		pause_ms = Min(pause_ms * 2, START_PAUSE_MAX_MS);
	}
	return true;
}

static bool
start_worker(void)
{
	int64		deadline = kpg_worker_now_ms() + START_TIMEOUT_MS;
	LOCKTAG		tag;
	bool		running = true;

	kpg_worker_lock_tag(&tag, KPG_WORKER_STARTER);
	if (!become_starter(&tag, deadline))
		return true;
	if (!kpg_worker_is_held(KPG_WORKER_ALIVE))
	{
		BackgroundWorkerHandle *handle = kpg_worker_register(MyProcPid);

		running = handle != NULL && wait_for_start(handle, deadline);
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
 * one for nothing.  They also keep the fields of the process that has ended,
 * and one that finds another worker at work may be about to end, so all that
 * look like a worker count.
 */
static int
find_workers(Oid database, PGPROC **found)
{
	int			n = 0;

	for (uint32 i = 0; i < ProcGlobal->allProcCount && n < MAX_WORKERS; i++)
	{
		PGPROC	   *proc = &ProcGlobal->allProcs[i];
		int			pid = proc->pid;
		const char *type;

		/* The question for the type looks through all slots, under a lock. */
		if (pid == 0 || proc->databaseId != database || kpg_compat_is_regular_backend(proc))
			continue;
		type = GetBackgroundWorkerTypeByPid(pid);
		if (type != NULL && strcmp(type, KPG_WORKER_TYPE) == 0)
			found[n++] = proc;
	}
	return n;
}

static void
wake(PGPROC **procs, int n)
{
	for (int i = 0; i < n; i++)
		SetLatch(&procs[i]->procLatch);
}

void
kpg_worker_wake(Oid database)
{
	PGPROC	   *procs[MAX_WORKERS];

	wake(procs, find_workers(database, procs));
}

/* The postmaster forgets a process after that has left the list of backends. */
bool
kpg_worker_is_in(Oid database)
{
	PGPROC	   *procs[MAX_WORKERS];

	return find_workers(database, procs) > 0;
}

static void
before_commit(void)
{
	KPG_FAULT("before-commit");
	nworkers = 0;
	if (kpg_worker_ensure())
		nworkers = find_workers(MyDatabaseId, workers);
	else
	{
		kpg_launcher_ask(MyDatabaseId);
		ereport(WARNING,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not start a background worker for kusto_ingest"),
				 errdetail("The data is recorded and will be posted when a worker runs."),
				 errhint("You might need to increase \"max_worker_processes\".")));
	}
	KPG_FAULT("worker-ensured");
}

static bool
is_known(void)
{
	return known_worker != NULL && known_worker->procLatch.owner_pid == known_pid;
}

/* One of several is beginning or ending; whichever it is shows at the next look. */
static void
remember_worker(void)
{
	known_worker = NULL;
	if (nworkers != 1)
		return;
	known_pid = workers[0]->procLatch.owner_pid;
	if (known_pid != 0)
		known_worker = workers[0];
}

/*
 * A worker is there for as long as something is captured, and looks into the
 * outbox when it begins: so unlike what is staged, changes need no guard, and a
 * worker that is missing may as well be started by one of the next commits.
 */
static void
before_captured_commit(void)
{
	int64		now;

	nworkers = 0;
	if (is_known())
		return;
	known_worker = NULL;
	now = kpg_worker_now_ms();
	if (now < captured_retry_at)
		return;
	if (kpg_worker_ensure())
	{
		nworkers = find_workers(MyDatabaseId, workers);
		remember_worker();
		return;
	}
	captured_retry_at = now + CAPTURED_RETRY_MS;
	kpg_launcher_ask(MyDatabaseId);
	if (now < captured_log_at)
		return;
	captured_log_at = now + CAPTURED_LOG_MS;
	ereport(LOG,
			(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
			 errmsg("could not start a background worker for kusto_ingest"),
			 errdetail("Captured row changes are recorded and will be sent when a worker runs."),
			 errhint("You might need to increase \"max_worker_processes\".")));
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (!staged && !captured)
		return;

	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			if (staged)
				before_commit();
			else
				before_captured_commit();
			break;
		case XACT_EVENT_COMMIT:
			if (staged)
				KPG_FAULT("committed");
			if (!staged && is_known())
				SetLatch(&known_worker->procLatch);
			else
				wake(workers, nworkers);
			staged = captured = false;
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:	/* the worker's naptime finds COMMIT PREPARED */
			staged = captured = false;
			break;
		default:
			break;
	}
}

static void
register_callback(void)
{
	if (callback_registered)
		return;
	RegisterXactCallback(xact_callback, NULL);
	callback_registered = true;
}

void
kpg_worker_captured(void)
{
	register_callback();
	captured = true;
}

void
kpg_worker_staged(void)
{
	LOCKTAG		tag;

	register_callback();

	/* In a subtransaction that rolls back, the lock goes with the rows. */
	kpg_worker_lock_tag(&tag, KPG_WORKER_GUARD);
	(void) LockAcquire(&tag, ShareLock, false, false);
	staged = true;
}
