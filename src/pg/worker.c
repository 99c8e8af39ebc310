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
#include "portability/instr_time.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"

#include "drain.h"
#include "fault.h"
#include "launcher.h"
#include "settings.h"
#include "version.h"
#include "wait.h"
#include "worker.h"
#include "worker_internal.h"

/*
 * Those who want the database wait five seconds; with what is under way the
 * worker is gone after little more than a second.
 */
#define DATABASE_CHECK_MS	1000
#define DATABASE_CHECK_BUSY_MS	250
#define LEAVE_DRAIN_MS		750
#define LOOK_AGAIN_MS		500 /* the tables were locked */
/* Twice as many as there are tasks: from one request to the next each may go to another host. */
#define CONNECTIONS_KEPT	128
#define LOOK_PAUSE			10	/* times as long as a look at what is staged took */
#define RIVAL_PAUSE_MS		20	/* another worker ends or begins */
#define RIVAL_TIMEOUT_MS	5000
#define ERROR_PAUSE_MS		5000
#define DRAIN_MS			2000
#define NEEDED_PAUSE_MS		1000	/* whatever the idle timeout */

static volatile sig_atomic_t terminated;
static volatile sig_atomic_t at_work;	/* has SELF and ALIVE */
static bool guarding;			/* has GUARD: whoever stages waits */
static bool succeeded;			/* another one is on its way */

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
	KPG_FAULT("terminated");
	succeeded = kpg_worker_register(0) != NULL;
}

/*
 * Whatever ends the process, from its connecting on: a launcher, if there is
 * one, starts another when nobody has.
 */
static void
after_exit(int code, Datum database)
{
	if (code != 0 && !succeeded)
		kpg_launcher_ask(DatumGetObjectId(database));
}

static emit_log_hook_type previous_log_hook;

/*
 * A successor waits for the lock of whoever dropped the database.  Then there
 * is nothing to say, and no failure that the postmaster should log.
 */
static void
end_without_database(ErrorData *error)
{
	if (error->elevel == FATAL && error->sqlerrcode == ERRCODE_UNDEFINED_DATABASE)
		proc_exit(0);
	if (previous_log_hook != NULL)
		previous_log_hook(error);
}

static void
connect_to(Oid database)
{
	before_shmem_exit(after_exit, ObjectIdGetDatum(database));
	previous_log_hook = emit_log_hook;
	emit_log_hook = end_without_database;
	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	emit_log_hook = previous_log_hook;
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

/*
 * Before the process ends, let posts end that are under way: one that is cut
 * off is in doubt, which takes long to find out.
 */
static void
drain(int64 limit_ms)
{
	int64		now = kpg_worker_now_ms();
	int64		deadline = now + limit_ms;

	kpg_worker_hold_back(true);
	kpg_drain_hold_back(true);
	while ((kpg_worker_is_posting() || kpg_drain_is_sending()) && now < deadline)
	{
		int64		due = kpg_worker_run();
		int64		drain_due = kpg_drain_run(false);

		due = Min(Min(due, drain_due), deadline);
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
	return guarding && kpg_worker_look(true) && kpg_worker_is_idle() &&
		kpg_drain_look() && !kpg_drain_has_captures();
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
	kpg_worker_jobs_stop();
	drain(LEAVE_DRAIN_MS);
	KPG_FAULT("worker-leaving");
	unneeded = is_unneeded();
	release_locks();
	release_guard();
	KPG_FAULT("successor-due");
	if (!unneeded && kpg_worker_register(0) == NULL)
		kpg_launcher_ask(MyDatabaseId);
	proc_exit(0);
}

/*
 * The extension has been updated while we go on with the library that we have.
 * Another process loads the new one, unless the postmaster has preloaded the
 * old one; only one tries, for the file may be as old as ours.  Jobs that run
 * go on with the library that they began with.
 */
void
kpg_worker_retire(const char *installed)
{
	bool		renewed = MyBgworkerEntry->bgw_extra[0] == KPG_WORKER_RENEWED;

	ereport(LOG,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("kusto_ingest worker ends: its library is older than the installed extension"),
			 errdetail("The library is of version %s, the extension of version %s.", KPG_VERSION, installed),
			 kpg_version_is_preloaded() || renewed ? errhint("%s", kpg_version_hint()) : 0));
	CommitTransactionCommand();
	release_locks();
	if (!kpg_version_is_preloaded() && !renewed)
		(void) kpg_worker_renew();
	proc_exit(0);
}

void
kpg_worker_end_without_tables(void)
{
	kpg_worker_jobs_stop();
	/* In this order: worker_start.c tells why. */
	release_locks();
	CommitTransactionCommand();
	ereport(DEBUG1, (errmsg_internal("kusto_ingest worker ends: the extension is not there")));
	proc_exit(0);
}

static void
obey_sigterm(void)
{
	/* DROP DATABASE WITH (FORCE) is in a hurry, too. */
	drain(kpg_worker_database_is_free(MyDatabaseId) ? DRAIN_MS : LEAVE_DRAIN_MS);
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
		KPG_FAULT("worker-ending");
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
	int64		staged_ms;		/* no look at what is staged before */
	int64		database_ms;	/* next look whether somebody wants the database */
	int64		end_ms;			/* next try to end; 0: there is work */
	bool		woken;			/* something may have been staged */
	bool		to_look;		/* it has not been looked for since */
	bool		told_foreign;	/* the log has what will never be looked at */
	bool		launched;		/* by the launcher, which waits for the first look */
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
		kpg_drain_forget_all();
		loop->look_ms = 0;
	}
	if (loop->mux != mux)
		kpg_wait_keep(mux, CONNECTIONS_KEPT);
	loop->mux = mux;
}

/*
 * Where much is staged that has to wait, a look takes long and finds little:
 * with as many commits as there may be, looks leave most of the time to posts.
 */
static void
look_at_staged(Loop *loop)
{
	instr_time	begun;
	instr_time	took;
	int64		now;

	loop->to_look = false;
	INSTR_TIME_SET_CURRENT(begun);
	if (!kpg_worker_look(false))
		loop->look_ms = Min(loop->look_ms, kpg_worker_now_ms() + LOOK_AGAIN_MS);
	INSTR_TIME_SET_CURRENT(took);
	INSTR_TIME_SUBTRACT(took, begun);
	now = kpg_worker_now_ms();
	loop->staged_ms = now + (int64) (INSTR_TIME_GET_MILLISEC(took) * LOOK_PAUSE);
}

static void
look(Loop *loop, int64 now)
{
	/* Woken: perhaps for this. */
	if (loop->woken || now >= loop->database_ms)
	{
		if (!kpg_worker_database_is_free(MyDatabaseId))
			leave_database();
		loop->database_ms = now + (kpg_worker_is_posting() ? DATABASE_CHECK_BUSY_MS : DATABASE_CHECK_MS);
	}
	if (!loop->told_foreign)
		loop->told_foreign = kpg_worker_tell_foreign();
	if (now >= loop->look_ms)
	{
		loop->look_ms = now + (kpg_worker_look(true) ? kpg_naptime_ms : LOOK_AGAIN_MS);
		/* One page of all that is open may be far from what is new. */
		loop->woken = loop->woken || !kpg_worker_is_idle();
	}
	loop->to_look = loop->to_look || loop->woken || kpg_worker_more_staged();
	if (loop->to_look && now >= loop->staged_ms)
		look_at_staged(loop);
}

static void
watch_idleness(Loop *loop, int64 now)
{
	if (!kpg_worker_is_idle() || kpg_drain_has_captures())
	{
		loop->end_ms = 0;
		return;
	}
	/* Nobody has called a worker that the launcher started. */
	if (loop->end_ms == 0)
		loop->end_ms = now + (loop->launched ? 0 : kpg_worker_idle_timeout_ms);
	if (now >= loop->end_ms && kpg_worker_purge_at_end(now))
	{
		end_if_unneeded();
		loop->end_ms = now + Max(kpg_worker_idle_timeout_ms, NEEDED_PAUSE_MS);
	}
}

/*
 * While row changes come in any case, the latch is left as it is: commits find
 * it set, and need not signal us.
 */
static int
wait_for_work(int64 due)
{
	int64		linger_ms = kpg_drain_linger_ms();
	int64		left_ms = Max(due - kpg_worker_now_ms(), 0);

	if (linger_ms > 0 && left_ms > 0)
		return kpg_wait_deaf(Min(left_ms, linger_ms), KPG_WAIT_WORKER);
	return kpg_wait_once(left_ms, KPG_WAIT_WORKER);
}

/* One turn; ends with a wait. */
static void
turn(Loop *loop)
{
	int64		now = kpg_worker_now_ms();
	int64		due = loop->resume_ms;
	int64		purge_due;
	int64		jobs_due;
	int64		drain_due;

	if (terminated)
		obey_sigterm();
	if (now >= loop->resume_ms)
	{
		serve_reload(loop);
		watch_mux(loop);
		look(loop, now);
		due = kpg_worker_run();
		jobs_due = kpg_worker_jobs_run();
		drain_due = kpg_drain_run(loop->woken);
		due = Min(due, Min(jobs_due, drain_due));
		due = Min(due, Min(loop->look_ms, loop->database_ms));
		if (loop->to_look || kpg_worker_more_staged())
			due = Min(due, loop->staged_ms);
		kpg_worker_trouble_write(now);
		purge_due = kpg_worker_purge(now);
		due = Min(due, purge_due);
		watch_idleness(loop, now);
		if (loop->launched)
			kpg_launcher_settled();
		loop->launched = false;
		if (loop->end_ms != 0)
			due = Min(due, loop->end_ms);
		loop->woken = false;
	}
	if (wait_for_work(due) & WL_LATCH_SET)
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
		kpg_worker_trouble(CopyErrorData()->message);
		FlushErrorState();
		AbortOutOfAnyTransaction();
		/* On its way out: without its locks it must not go on. */
		if (terminated || !at_work)
			proc_exit(1);
		release_guard();
		kpg_worker_hold_back(false);
		kpg_drain_hold_back(false);
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
	connect_to(database);
	if (IsBinaryUpgrade || RecoveryInProgress())
		proc_exit(0);
	pin_settings();
	pgstat_report_activity(STATE_IDLE, NULL);

	KPG_FAULT("worker-start");
	if (!get_locks())
	{
		ereport(DEBUG1, (errmsg_internal("kusto_ingest worker ends: there is one already")));
		proc_exit(0);
	}
	before_shmem_exit(before_exit, (Datum) 0);
	KPG_FAULT("worker-at-work");

	loop.launched = MyBgworkerEntry->bgw_extra[0] == KPG_WORKER_LAUNCHED;
	context = AllocSetContextCreate(TopMemoryContext, "kusto_ingest worker", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	for (;;)
		guarded_turn(&loop, context);
}
