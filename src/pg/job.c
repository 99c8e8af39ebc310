/*
 * job.c
 *	  The process of a job: runs the query of one operation, connected as the
 *	  role that asked for it, and ends.
 *
 *	lock the operation;  pending -> running, commit
 *	read what it is to do, commit
 *	run the query, upload;  running -> staged, commit: one transaction
 *	or, when that fails, roll back;  running -> failed or pending, commit
 *
 * The query has the role's privileges and row security of now, and the
 * settings of the call; the role's and the database's own settings apply
 * beneath them.  A process that dies leaves the row running and the lock free,
 * which the worker puts right (worker_jobs.c).  The claim is alone in its
 * transaction, and on disk before anything else is done: whatever kills the
 * process afterwards, again and again, has used up a run.
 *
 * In the modes other than "queued" Kusto may have the result before the commit.
 * A process that knows so, or does not know better, when its run fails or it is
 * told to end makes the operation unknown.  One that is killed tells nobody,
 * and is run again: at least once.
 *
 * The role's query is in its row.  It is not shown in pg_stat_activity nor in
 * the server log: errors are logged by the operation's id.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pidfile.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/uuid.h"

#include "capture.h"
#include "compat.h"
#include "export.h"
#include "fault.h"
#include "operations.h"
#include "settings.h"
#include "wait.h"
#include "worker.h"
#include "worker_internal.h"

#define TABLES_PAUSE_MS	500		/* somebody alters or drops them */

extern PGDLLEXPORT void kpg_job_main(Datum main_arg);

typedef struct Process
{
	pg_uuid_t	id;
	const char *id_text;
	MemoryContext context;		/* of everything that outlives a transaction */
	bool		claimed;		/* and not over yet */
	volatile bool perhaps_ingested;	/* by this run, which has not committed */
	int			runs;			/* this one included */
	KpgJob		job;
} Process;

/* ---- one transaction ---- */

/* Ours: the role's default_transaction_isolation is for its query. */
static void
begin_own(const char *activity)
{
	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, activity);
	StartTransactionCommand();
	XactIsoLevel = XACT_READ_COMMITTED;
	PushActiveSnapshot(GetTransactionSnapshot());
}

static void
end_own(Process *process)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(process->context);
	pgstat_report_stat(true);
}

/*
 * The lock is taken before: a row is never running without it, unless its
 * process is gone.
 */
static void
claim(Process *process)
{
	KpgTables	tables;

	do
	{
		begin_own("claiming an export");
		tables = kpg_operations_lock();
		if (tables == KPG_TABLES_READY)
			process->claimed = kpg_operations_claim_job(&process->id, &process->runs);
		/* Whatever the role's synchronous_commit. */
		if (process->claimed)
			ForceSyncCommit();
		end_own(process);
		/* No other job gets on either. */
		if (tables == KPG_TABLES_BUSY)
			(void) kpg_wait_once(TABLES_PAUSE_MS, KPG_WAIT_WORKER);
	} while (tables == KPG_TABLES_BUSY);
}

static void
load(Process *process)
{
	begin_own("reading an export");
	MemoryContextSwitchTo(process->context);
	kpg_operations_load_job(&process->id, &process->job);
	end_own(process);
}

/* ---- the query ---- */

static void
apply_settings(const KpgJob *job)
{
	for (int i = 0; i < job->nsettings; i++)
		(void) set_config_option(job->setting_names[i], job->setting_values[i], PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SET, true, 0, false);
}

static KpgExportRequest
request_of(const KpgJob *job)
{
	const KpgOperationRequest *row = &job->request;

	return (KpgExportRequest)
	{
		.query = row->query,
		.database = row->database,
		.table_name = row->table_name,
		.server = row->server,
		.mode = row->mode,
		.mapping = row->mapping,
		.tags = row->tags,
		.ingest_if_not_exists = row->ingest_if_not_exists,
		.has_creation_time = row->has_creation_time,
		.creation_time = row->creation_time,
		.flush_immediately = row->flush_immediately,
		.create_table = job->create_table,
		.on_type_error = row->on_type_error,
		.exactly_once = kpg_operations_exactly_once_name(row->exactly_once)
	};
}

/*
 * The rows of a captured table: the changes that are to be sent are told from
 * those that are not by the very snapshot that the rows are read with.  All of
 * them, or an error: what a policy hides would be missing in Kusto.
 */
static void
begin_snapshot(void)
{
	XactIsoLevel = XACT_REPEATABLE_READ;
	SetConfigOption("row_security", "off", PGC_USERSET, PGC_S_SESSION);
}

/* The commit is in: deferred triggers are a part of the query. */
static void
export(Process *process)
{
	KpgExportRequest request = request_of(&process->job);
	bool		snapshot = strcmp(process->job.request.source, "capture") == 0;

	SetCurrentStatementStartTimestamp();
	pgstat_report_activity(STATE_RUNNING, psprintf("exporting operation %s", process->id_text));
	StartTransactionCommand();
	/* The query may call pg_advisory_unlock_all(). */
	kpg_worker_job_keep_lock(&process->id);
	apply_settings(&process->job);
	if (snapshot)
		begin_snapshot();
	/* The client's loop does that elsewhere, and there is none. */
	if (kpg_job_timeout_ms > 0)
		enable_timeout_after(STATEMENT_TIMEOUT, kpg_job_timeout_ms);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (snapshot)
		request.table_command = kpg_capture_snapshot_command(&process->id);
	kpg_export_run_job(&request, &process->id, &process->perhaps_ingested);
	if (snapshot)
		kpg_capture_snapshot_done(&process->id);
	PopActiveSnapshot();
	CommitTransactionCommand();
	process->perhaps_ingested = false;
	disable_timeout(STATEMENT_TIMEOUT, false);
	MemoryContextSwitchTo(process->context);
	KPG_FAULT("job-committed");
}

/* ---- when it fails ---- */

/* Another try may succeed: it was in the way of another transaction. */
static bool
is_passing(int sqlstate)
{
	return sqlstate == ERRCODE_T_R_SERIALIZATION_FAILURE || sqlstate == ERRCODE_T_R_DEADLOCK_DETECTED;
}

static KpgFailure
failure_of(const Process *process, const ErrorData *error, bool timed_out)
{
	KpgFailure	failure = {
		.error_code = pstrdup(unpack_sql_state(error->sqlerrcode)),
		.message = error->message,
		.details = error->detail,
		.hint = error->hint,
		.perhaps_ingested = process->perhaps_ingested
	};

	if (timed_out)
		failure.hint = "Raise kusto_ingest.job_timeout before the call of kusto_ingest_async().";
	return failure;
}

static void
record_failure(Process *process, const ErrorData *error, bool timed_out)
{
	KpgFailure	failure = failure_of(process, error, timed_out);
	bool		again = is_passing(error->sqlerrcode) && !process->perhaps_ingested &&
		process->runs < KPG_JOB_RUNS_MAX;
	KpgState	state = KPG_STATE_RUNNING;

	begin_own("recording a failure");
	if (kpg_operations_lock() != KPG_TABLES_GONE)
	{
		if (!again)
			state = kpg_operations_fail_job(&process->id, KPG_STATE_RUNNING, true, &failure);
		else if (kpg_operations_postpone_job(&process->id, KPG_STATE_RUNNING, true,
											 kpg_worker_job_pause(process->runs), &failure))
			state = KPG_STATE_PENDING;
	}
	/* Who started us may be gone; its successor does not hear of our end otherwise. */
	if (state != KPG_STATE_RUNNING)
	{
		kpg_worker_staged();
		ForceSyncCommit();
	}
	end_own(process);

	ereport(LOG,
			(errcode(error->sqlerrcode),
			 state == KPG_STATE_RUNNING ? errmsg("kusto_ingest operation %s is not running any more: %s",
								process->id_text, error->message)
			 : again ? errmsg("kusto_ingest operation %s is run again: %s", process->id_text, error->message)
			 : state == KPG_STATE_UNKNOWN
			 ? errmsg("kusto_ingest operation %s may be in Kusto or not: %s", process->id_text, error->message)
			 : errmsg("kusto_ingest operation %s failed: %s", process->id_text, error->message),
			 error->detail != NULL ? errdetail_internal("%s", error->detail) : 0));
}

static void
run(Process *process)
{
	ErrorData  *volatile error = NULL;
	volatile bool timed_out = false;

	PG_TRY();
	{
		load(process);
		export(process);
	}
	PG_CATCH();
	{
		/* Whoever cancels has been heard: what follows is short. */
		HOLD_CANCEL_INTERRUPTS();
		MemoryContextSwitchTo(process->context);
		error = CopyErrorData();
		FlushErrorState();
		timed_out = error->sqlerrcode == ERRCODE_QUERY_CANCELED && kpg_job_timeout_ms > 0 &&
			!get_timeout_active(STATEMENT_TIMEOUT);
		disable_timeout(STATEMENT_TIMEOUT, false);
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(process->context);
	}
	PG_END_TRY();
	if (error == NULL)
		return;

	KPG_FAULT("job-failed");
	record_failure(process, error, timed_out);
	QueryCancelPending = false;
	RESUME_CANCEL_INTERRUPTS();
}

/* ---- when it is told to end ---- */

/* The postmaster says so in its lock file before it terminates anybody. */
static bool
server_is_stopping(void)
{
	char		line[MAXPGPATH];
	bool		stopping = false;
	FILE	   *file = AllocateFile("postmaster.pid", "r");

	if (file == NULL)
		return false;
	for (int i = 1; i <= LOCK_FILE_LINE_PM_STATUS && fgets(line, sizeof(line), file) != NULL; i++)
		stopping = i == LOCK_FILE_LINE_PM_STATUS &&
			strncmp(line, PM_STATUS_STOPPING, strlen(PM_STATUS_STOPPING)) == 0;
	FreeFile(file);
	return stopping;
}

/* Another run would send again what Kusto may have. */
static void
record_end(const Process *process)
{
	KpgFailure	failure = {
		.error_code = pstrdup(unpack_sql_state(ERRCODE_ADMIN_SHUTDOWN)),
		.message = "the process that ran the query was told to end",
		.details = "It had sent the result, or was about to.",
		.perhaps_ingested = true
	};

	if (kpg_operations_fail_job(&process->id, KPG_STATE_RUNNING, false, &failure) == KPG_STATE_RUNNING)
		return;
	kpg_worker_staged();
	ForceSyncCommit();
	ereport(LOG,
			(errcode(ERRCODE_ADMIN_SHUTDOWN),
			 errmsg("kusto_ingest operation %s may be in Kusto or not: %s", process->id_text, failure.message)));
}

/*
 * Neither who stops the server nor who wants the database has anything against
 * this query: that was no run.  Who terminates the process has, perhaps; the
 * worker counts that.
 */
static void
before_exit(int code, Datum arg)
{
	Process    *process = (Process *) DatumGetPointer(arg);

	if (code == 0 || !process->claimed)
		return;
	if (!process->perhaps_ingested && !server_is_stopping() && kpg_worker_database_is_free(MyDatabaseId))
		return;
	AbortOutOfAnyTransaction();
	/* A standby that does not answer must not hold up a shutdown. */
	SetConfigOption("synchronous_commit", "local", PGC_USERSET, PGC_S_SESSION);
	begin_own("giving back an export");
	if (kpg_operations_lock() == KPG_TABLES_READY)
	{
		if (process->perhaps_ingested)
			record_end(process);
		else
			(void) kpg_operations_return_job(&process->id);
	}
	end_own(process);
}

/* ---- the process ---- */

/* PL functions and we ourselves add the query's text to what is logged. */
static void
hide_query(void *arg)
{
	errhidestmt(true);
	errhidecontext(true);
	internalerrquery(NULL);
}

/*
 * What the role's or the database's settings must not change.  The call was
 * not in a read-only transaction either; job_timeout stands for the timeouts.
 */
static void
pin_settings(void)
{
	static const char *const pinned[][2] = {
		{"application_name", KPG_JOB_TYPE},
		{"default_transaction_read_only", "off"},
		/* The role that asked runs it, whatever role it becomes at its logins. */
		{"role", "none"},
		{"statement_timeout", "0"},
		{"transaction_timeout", "0"}
	};

	for (size_t i = 0; i < lengthof(pinned); i++)
	{
		if (GetConfigOption(pinned[i][0], true, false) != NULL)
			SetConfigOption(pinned[i][0], pinned[i][1], PGC_USERSET, PGC_S_SESSION);
	}
}

void
kpg_job_main(Datum main_arg)
{
	ErrorContextCallback callback = {.callback = hide_query};
	KpgWorkerJobStart start;
	Process		process = {0};

	memcpy(&start, MyBgworkerEntry->bgw_extra, sizeof(start));
	pqsignal(SIGTERM, die);
	pqsignal(SIGINT, StatementCancelHandler);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(start.database, start.role, KPG_COMPAT_BYPASS_LOGIN);
	if (IsBinaryUpgrade || RecoveryInProgress())
		proc_exit(0);
	pin_settings();

	callback.previous = error_context_stack;
	error_context_stack = &callback;
	process.context = AllocSetContextCreate(TopMemoryContext, "kusto_ingest job", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(process.context);
	process.id = start.id;
	process.id_text = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&start.id)));

	before_shmem_exit(before_exit, PointerGetDatum(&process));
	KPG_FAULT("job-start");
	if (kpg_worker_job_lock(&process.id))
		claim(&process);
	if (process.claimed)
	{
		KPG_FAULT("job-claimed");
		run(&process);
		process.claimed = false;
	}
	pgstat_report_activity(STATE_IDLE, NULL);
	proc_exit(0);
}
