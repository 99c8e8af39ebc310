/*
 * launcher.c
 *	  The cluster's launcher: the process.
 *
 * A worker lives from the first call that needs it, so after a start of the
 * server, a crash or a promotion something must make that call.  The launcher
 * starts the worker of each database in turn; one that finds no extension, or
 * nothing open, ends at once.  One after the other: a cluster of a thousand
 * databases takes a while, but neither all slots nor all processors.
 *
 * Then it sleeps, without a timeout, until a process asks for it (see
 * launcher_shared.c): when a worker ended badly, or could not be started.  It
 * is connected to the shared catalogs only, so it is in no database's way.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"

#include "fault.h"
#include "launcher.h"
#include "launcher_internal.h"
#include "settings.h"
#include "wait.h"
#include "worker.h"

#define RESTART_S			10
#define SETTLE_MS			5000	/* a worker that says nothing for so long is at work */
#define BUSY_PAUSE_MS		1000	/* somebody wants the database for himself */
#define RETRY_FIRST_MS		1000	/* doubles with each try */
#define RETRY_MAX_MS		60000
#define SLOT_RETRY_MAX_MS	10000
#define CALM_MS				(2 * RETRY_MAX_MS)	/* a worker that lived for so long was well */

/* A database whose worker is to be started. */
typedef struct Candidate
{
	Oid			database;
	int64		due_ms;			/* not before; NEVER: it has been started */
	int64		started_ms;
	int			tries;			/* starts, not long ago */
} Candidate;

#define NEVER PG_INT64_MAX

static List *candidates;		/* Candidate * */
static Candidate *starting;		/* its worker has not settled yet; NULL: none */
static BackgroundWorkerHandle *handle;	/* of that worker */
static int64 settle_until_ms;
static int	slot_tries;			/* without success, in a row */
static int64 slot_due_ms;		/* next try */

static volatile sig_atomic_t terminated;
static volatile sig_atomic_t may_block; /* in a transaction, perhaps waiting for a lock */

static void
handle_sigterm(SIGNAL_ARGS)
{
	int			save_errno = errno;

	terminated = true;
	if (may_block)
		die(postgres_signal_arg);
	else
		SetLatch(MyLatch);
	errno = save_errno;
}

/* ---- which ---- */

static List *
allowed_databases(const char *setting)
{
	List	   *databases;

	may_block = true;
	databases = kpg_launcher_databases(setting);
	may_block = false;
	return databases;
}

static int64
retry_pause(int tries, int64 limit_ms)
{
	return Min((int64) RETRY_FIRST_MS << Min(tries, 10), limit_ms);
}

/* A worker of this database is wanted; later when that was so a moment ago. */
static void
want(Oid database, int64 now)
{
	Candidate  *candidate = NULL;
	ListCell   *cell;

	foreach(cell, candidates)
	{
		candidate = lfirst(cell);
		if (candidate->database == database)
			break;
		candidate = NULL;
	}
	if (candidate == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

		candidate = palloc0(sizeof(Candidate));
		candidate->database = database;
		candidates = lappend(candidates, candidate);
		MemoryContextSwitchTo(old);
	}
	else if (candidate->due_ms != NEVER)
		return;
	candidate->due_ms = candidate->tries == 0 ? now : now + retry_pause(candidate->tries, RETRY_MAX_MS);
}

static void
forget(Candidate *candidate)
{
	candidates = list_delete_ptr(candidates, candidate);
	pfree(candidate);
}

/* They would begin anew. */
static void
forget_calm(int64 now)
{
	ListCell   *cell;

	foreach(cell, candidates)
	{
		Candidate  *candidate = lfirst(cell);

		if (candidate == starting || candidate->due_ms != NEVER || now - candidate->started_ms <= CALM_MS)
			continue;
		candidates = foreach_delete_current(candidates, cell);
		pfree(candidate);
	}
}

static void
want_all(List *databases, List *but_not)
{
	int64		now = kpg_worker_now_ms();
	ListCell   *cell;

	foreach(cell, databases)
	{
		if (!list_member_oid(but_not, lfirst_oid(cell)))
			want(lfirst_oid(cell), now);
	}
}

static void
take_asked(void)
{
	Oid			asked[KPG_LAUNCHER_ASKED_MAX];
	int			n = kpg_launcher_take(asked);
	int64		now = kpg_worker_now_ms();

	if (n < 0)
		want_all(allowed_databases(kpg_databases), NIL);
	for (int i = 0; i < n; i++)
		want(asked[i], now);
}

static void
serve_reload(void)
{
	char	   *before;

	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	before = pstrdup(kpg_databases);
	ProcessConfigFile(PGC_SIGHUP);
	if (strcmp(before, kpg_databases) != 0)
		want_all(allowed_databases(kpg_databases), allowed_databases(before));
}

/* ---- starting ---- */

/* Is the worker that was started last out of the way of the next one? */
static bool
has_settled(int64 now)
{
	pid_t		pid;

	if (starting == NULL)
		return true;
	if (!kpg_launcher_has_settled() && now < settle_until_ms &&
		GetBackgroundWorkerPid(handle, &pid) != BGWH_STOPPED)
		return false;
	pfree(handle);
	handle = NULL;
	starting = NULL;
	return true;
}

static void
wait_for_slot(const Candidate *candidate, int64 now)
{
	slot_due_ms = now + retry_pause(slot_tries, SLOT_RETRY_MAX_MS);
	if (slot_tries++ > 0)
		return;
	ereport(LOG,
			(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
			 errmsg("could not start a background worker for kusto_ingest"),
			 errdetail("What is to be posted in the database with OID %u, and perhaps in others, waits for a free slot.",
					   candidate->database),
			 errhint("You might need to increase \"max_worker_processes\".")));
}

static void
start(Candidate *candidate, int64 now)
{
	MemoryContext old;

	if (!list_member_oid(allowed_databases(kpg_databases), candidate->database) ||
		kpg_worker_runs_in(candidate->database))
	{
		forget(candidate);
		return;
	}
	if (!kpg_worker_database_is_free(candidate->database))
	{
		candidate->due_ms = now + BUSY_PAUSE_MS;
		return;
	}
	kpg_launcher_expect(candidate->database);
	old = MemoryContextSwitchTo(TopMemoryContext);
	handle = kpg_worker_start_in(candidate->database, MyProcPid);
	MemoryContextSwitchTo(old);
	if (handle == NULL)
	{
		wait_for_slot(candidate, now);
		return;
	}
	KPG_FAULT("worker-registered");
	slot_tries = 0;
	starting = candidate;
	settle_until_ms = now + SETTLE_MS;
	candidate->due_ms = NEVER;
	candidate->started_ms = now;
	candidate->tries++;
}

/* Start what is due, until one has to be waited for; when there will be more. */
static int64
start_due(void)
{
	for (;;)
	{
		int64		now = kpg_worker_now_ms();
		Candidate  *next = NULL;
		ListCell   *cell;

		if (!has_settled(now))
			return settle_until_ms;
		if (slot_tries > 0 && now < slot_due_ms)
			return slot_due_ms;
		foreach(cell, candidates)
		{
			Candidate  *candidate = lfirst(cell);

			if (next == NULL || candidate->due_ms < next->due_ms)
				next = candidate;
		}
		if (next == NULL || next->due_ms > now)
			return next == NULL ? NEVER : next->due_ms;
		start(next, now);
	}
}

/* ---- the process ---- */

static void
turn(void)
{
	int64		due;

	if (terminated)
	{
		ereport(DEBUG1, (errmsg_internal("kusto_ingest launcher ends")));
		/* Not 0, which would be for good. */
		proc_exit(1);
	}
	serve_reload();
	forget_calm(kpg_worker_now_ms());
	take_asked();
	due = start_due();
	(void) kpg_wait_once(due == NEVER ? -1 : Max(due - kpg_worker_now_ms(), 0), KPG_WAIT_LAUNCHER);
}

void
kpg_launcher_main(Datum main_arg)
{
	MemoryContext context;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, handle_sigterm);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	SetConfigOption("application_name", KPG_LAUNCHER_TYPE, PGC_SUSET, PGC_S_SESSION);
	pgstat_report_activity(STATE_IDLE, NULL);
	kpg_launcher_present();
	KPG_FAULT("launcher-start");

	context = AllocSetContextCreate(TopMemoryContext, "kusto_ingest launcher", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	want_all(allowed_databases(kpg_databases), NIL);
	for (;;)
	{
		turn();
		MemoryContextReset(context);
	}
}

void
kpg_launcher_init(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = RESTART_S;
	snprintf(worker.bgw_name, BGW_MAXLEN, KPG_LAUNCHER_TYPE);
	snprintf(worker.bgw_type, BGW_MAXLEN, KPG_LAUNCHER_TYPE);
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "kusto_ingest");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "kpg_launcher_main");
	RegisterBackgroundWorker(&worker);
	kpg_launcher_share();
	kpg_launcher_hook();
}
