/*
 * worker.c
 *	  The database's background worker: the process and its main loop.
 *
 * One a database, started by whoever stages something (worker_start.c), gone
 * when there has been nothing to do for a while.  It connects as the bootstrap
 * superuser and runs nothing but the constant SQL of operations_*.c; the
 * user's own query was run in the user's session.
 *
 * It sits in a database, so it must not be in the way of those who drop,
 * rename, move or copy it: they lock the database, wait five seconds for
 * others to leave and then give up.  It looks for such a lock, leaves, and
 * when there is work left has a successor started, which cannot connect before
 * the lock is gone.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "settings.h"
#include "wait.h"
#include "worker.h"
#include "worker_internal.h"

#define DATABASE_CHECK_MS	1000
#define LOOK_AGAIN_MS		500 /* the tables were locked */
#define RIVAL_PAUSE_MS		20	/* another worker ends or begins */
#define RIVAL_TIMEOUT_MS	5000
#define ERROR_PAUSE_MS		5000
#define DRAIN_MS			2000
#define NEEDED_PAUSE_MS		1000	/* whatever the idle timeout */

static volatile sig_atomic_t terminated;
static volatile sig_atomic_t at_work;	/* has SELF and ALIVE */
static bool guarding;			/* has GUARD: whoever stages waits */

/* ---- coming and going ---- */

/*
 * At work it is the loop that ends the process, see drain().  ProcDiePending
 * without InterruptPending is for waits that look at it by themselves, such as
 * that for a synchronous standby, which must not hold up a shutdown.
 */
static void
handle_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	terminated = true;
	if (at_work)
	{
		ProcDiePending = true;
		SetLatch(MyLatch);
	}
	else
		die(postgres_signal_arg);
	errno = save_errno;
}

static void
release_locks(void)
{
	at_work = false;
	/* Another worker takes SELF first: with ALIVE held it would think us alive. */
	kpg_worker_unlock(KPG_WORKER_ALIVE);
	kpg_worker_unlock(KPG_WORKER_SELF);
}

/*
 * Somebody terminated us, perhaps with work under way.  While the server shuts
 * down the postmaster starts nothing new, so the successor is not in the way.
 */
static void
before_exit(int code, Datum arg)
{
	if (!at_work || !terminated)
		return;
	release_locks();
	(void) kpg_worker_register(0);
}

/*
 * Become the worker of this database.  Whoever has SELF without ALIVE is about
 * to begin or to end, and a moment later it is clear which.
 */
static bool
get_locks(void)
{
	int64		deadline = kpg_worker_now_ms() + RIVAL_TIMEOUT_MS;
	LOCKTAG		alive;

	while (!kpg_worker_try_lock(KPG_WORKER_SELF))
	{
		if (kpg_worker_is_held(KPG_WORKER_ALIVE) || kpg_worker_now_ms() >= deadline)
			return false;
		(void) kpg_wait_once(RIVAL_PAUSE_MS, KPG_WAIT_WORKER);
	}
	/* Waits only for backends that test it just now. */
	kpg_worker_lock_tag(&alive, KPG_WORKER_ALIVE);
	(void) LockAcquire(&alive, ExclusiveLock, true, false);
	at_work = true;
	return true;
}

/* Does nobody want the database for himself? */
static bool
database_is_free(void)
{
	LOCKTAG		tag;

	/* As every connection does for a moment; DROP DATABASE and the like conflict. */
	SET_LOCKTAG_OBJECT(tag, InvalidOid, DatabaseRelationId, MyDatabaseId, 0);
	if (LockAcquire(&tag, RowExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	(void) LockRelease(&tag, RowExclusiveLock, true);
	return true;
}

/*
 * Before the process ends, let posts end that are under way: one that is cut
 * off is in doubt, which takes long to find out.  Whoever wants us to go waits
 * longer than this.
 */
static void
drain(void)
{
	int64		now = kpg_worker_now_ms();
	int64		deadline = now + DRAIN_MS;

	kpg_worker_hold_back(true);
	while (kpg_worker_is_posting() && now < deadline)
	{
		int64		due = kpg_worker_run();

		due = Min(due, deadline);
		now = kpg_worker_now_ms();
		(void) kpg_wait_once(Max(due - now, 0), KPG_WAIT_WORKER);
		now = kpg_worker_now_ms();
	}
}

/*
 * With the guard, nothing has been staged that a look does not find.  The
 * process keeps the guard until it ends, or until release_guard().
 */
static bool
is_unneeded(void)
{
	guarding = kpg_worker_try_lock(KPG_WORKER_GUARD);
	return guarding && kpg_worker_look(true) && kpg_worker_is_idle();
}

static void
release_guard(void)
{
	if (guarding)
		kpg_worker_unlock(KPG_WORKER_GUARD);
	guarding = false;
}

/* A turn that fails in here has not left: guarded_turn() takes all back. */
static void
leave_database(void)
{
	bool		unneeded;

	ereport(DEBUG1, (errmsg_internal("kusto_ingest worker leaves the database to another session")));
	drain();
	unneeded = is_unneeded();
	release_locks();
	release_guard();
	if (!unneeded)
		(void) kpg_worker_register(0);
	proc_exit(0);
}

static void
obey_sigterm(void)
{
	drain();
	ereport(FATAL,
			(errcode(ERRCODE_ADMIN_SHUTDOWN),
			 errmsg("terminating background worker \"%s\" due to administrator command",
					MyBgworkerEntry->bgw_type)));
}

/*
 * End for want of work, unless a transaction that has staged something is
 * under way: it counts on us.
 */
static void
end_if_unneeded(void)
{
	if (is_unneeded())
	{
		/* In this order: worker_start.c tells why. */
		release_locks();
		release_guard();
		ereport(DEBUG1, (errmsg_internal("kusto_ingest worker ends: nothing to do")));
		proc_exit(0);
	}
	release_guard();
}

/* ---- settings ---- */

/* What the database's or the cluster's settings must not change for our SQL. */
static void
pin_settings(void)
{
	static const char *const pinned[][2] = {
		{"application_name", KPG_WORKER_TYPE},
		{"search_path", "pg_catalog, pg_temp"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_deferrable", "off"},

		/*
		 * What is told to Kusto must survive a crash: the record of an attempt,
		 * and the transaction that staged it.  That may have committed
		 * asynchronously, but its record lies before that of our claim.
		 */
		{"synchronous_commit", "on"},
		{"session_replication_role", "origin"},
		{"statement_timeout", "0"},
		{"transaction_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		/* Rather later than late for everybody else. */
		{"lock_timeout", "2s"},
		{"jit", "off"},
		/* The worker tries again by itself, and shows in between what is wrong. */
		{"kusto_ingest.retry_timeout", "1s"}
	};

	for (size_t i = 0; i < lengthof(pinned); i++)
	{
		if (GetConfigOption(pinned[i][0], true, false) != NULL)
			SetConfigOption(pinned[i][0], pinned[i][1], PGC_SUSET, PGC_S_SESSION);
	}
}

/* ---- the loop ---- */

typedef struct Loop
{
	KcMux	   *mux;			/* that all tasks are on */
	int64		resume_ms;		/* after an error: nothing before */
	int64		look_ms;		/* next look at everything */
	int64		database_ms;	/* next look whether somebody wants the database */
	int64		end_ms;			/* next try to end; 0: there is work */
	bool		woken;			/* something may have been staged */
	bool		told_foreign;	/* the log has what will never be looked at */
} Loop;

static void
serve_reload(Loop *loop)
{
	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	/* Other intervals count from now. */
	loop->look_ms = 0;
	loop->end_ms = 0;
}

/* Tasks on a mux that broke never end; what they did is found out anew. */
static void
watch_mux(Loop *loop)
{
	KcMux	   *mux = kpg_wait_mux();

	if (loop->mux != NULL && loop->mux != mux)
	{
		kpg_worker_forget_all();
		loop->look_ms = 0;
	}
	loop->mux = mux;
}

static void
look(Loop *loop, int64 now)
{
	if (now >= loop->database_ms)
	{
		if (!database_is_free())
			leave_database();
		loop->database_ms = now + DATABASE_CHECK_MS;
	}
	if (!loop->told_foreign)
		loop->told_foreign = kpg_worker_tell_foreign();
	if (now >= loop->look_ms)
	{
		loop->look_ms = now + (kpg_worker_look(true) ? kpg_naptime_ms : LOOK_AGAIN_MS);
		/* One page of all that is open may be far from what is new. */
		loop->woken = loop->woken || !kpg_worker_is_idle();
	}
	if ((loop->woken || kpg_worker_more_staged()) && !kpg_worker_look(false))
		loop->look_ms = Min(loop->look_ms, now + LOOK_AGAIN_MS);
}

static void
watch_idleness(Loop *loop, int64 now)
{
	if (!kpg_worker_is_idle())
		loop->end_ms = 0;
	else if (loop->end_ms == 0)
		loop->end_ms = now + kpg_worker_idle_timeout_ms;
	else if (now >= loop->end_ms)
	{
		end_if_unneeded();
		loop->end_ms = now + Max(kpg_worker_idle_timeout_ms, NEEDED_PAUSE_MS);
	}
}

/* One turn; ends with a wait. */
static void
turn(Loop *loop)
{
	int64		now = kpg_worker_now_ms();
	int64		due = loop->resume_ms;

	if (terminated)
		obey_sigterm();
	if (now >= loop->resume_ms)
	{
		serve_reload(loop);
		watch_mux(loop);
		look(loop, now);
		due = kpg_worker_run();
		due = Min(due, Min(loop->look_ms, loop->database_ms));
		if (kpg_worker_more_staged())
			due = 0;
		watch_idleness(loop, now);
		if (loop->end_ms != 0)
			due = Min(due, loop->end_ms);
		loop->woken = false;
	}
	now = kpg_worker_now_ms();
	if (kpg_wait_once(Max(due - now, 0), KPG_WAIT_WORKER) & WL_LATCH_SET)
		loop->woken = true;
}

/* A turn that fails is in the log, and the next one comes a little later. */
static void
guarded_turn(Loop *loop, MemoryContext context)
{
	PG_TRY();
	{
		turn(loop);
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		/* On its way out: without its locks it must not go on. */
		if (terminated || !at_work)
			proc_exit(1);
		release_guard();
		kpg_worker_hold_back(false);
		pgstat_report_activity(STATE_IDLE, NULL);
		loop->resume_ms = kpg_worker_now_ms() + ERROR_PAUSE_MS;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	MemoryContextReset(context);
}

void
kpg_worker_main(Datum main_arg)
{
	Oid			database = DatumGetObjectId(main_arg);
	Loop		loop = {0};
	MemoryContext context;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, handle_sigterm);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	if (IsBinaryUpgrade || RecoveryInProgress())
		proc_exit(0);
	pin_settings();
	pgstat_report_activity(STATE_IDLE, NULL);

	if (!get_locks())
	{
		ereport(DEBUG1, (errmsg_internal("kusto_ingest worker ends: there is one already")));
		proc_exit(0);
	}
	before_shmem_exit(before_exit, (Datum) 0);

	context = AllocSetContextCreate(TopMemoryContext, "kusto_ingest worker", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	for (;;)
		guarded_turn(&loop, context);
}
