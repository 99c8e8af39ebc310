/*
 * worker_jobs.c
 *	  Which jobs run: the worker starts their processes, counts them, and puts
 *	  right what has lost its process.
 *
 * The tables say what is to be run, locks say what runs (worker_job.c), and
 * memory holds the processes that this worker has started, or found running.
 * A process claims its operation by itself, so one that is started twice, by
 * a worker and its successor, does no harm.  It waits for nobody who has the
 * row locked, an open kusto_cancel() for instance: it ends, and other jobs run
 * until this one is tried again.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "fault.h"
#include "settings.h"
#include "worker.h"
#include "worker_internal.h"

#define AGAIN_MS		500		/* the tables were locked, or a row */
#define AGAIN_MAX_MS	8000	/* the row, time after time */
#define ERROR_PAUSE_MS	5000
#define SLOT_PAUSE_MS	1000	/* no slot was free: other processes end unannounced */
/* A process that ends before it claims its operation is tried so often, for some minutes. */
#define STARTS_MAX		10
#define START_PAUSE_MAX_S	60

typedef enum JobPhase
{
	JOB_STARTED,				/* by us; perhaps it runs already */
	JOB_FOUND,					/* running when we came; no handle */
	JOB_ENDED					/* what has become of it is not known yet */
} JobPhase;

typedef struct Job
{
	dlist_node	node;
	pg_uuid_t	id;
	int			runs;			/* of its row when it was started */
	JobPhase	phase;
	BackgroundWorkerHandle *handle;
} Job;

/* A pending operation whose process did not get as far as claiming it. */
typedef struct Trouble
{
	dlist_node	node;
	pg_uuid_t	id;
	int			starts;			/* that failed */
	int64		pause_ms;		/* somebody has its row locked; 0: nobody */
	int64		resume_ms;		/* and it is stepped over until then */
} Trouble;

static dlist_head jobs = DLIST_STATIC_INIT(jobs);
static dlist_head troubles = DLIST_STATIC_INIT(troubles);
static bool wanted;				/* the tables may have something to do */
static int64 due_ms = KPG_WORK_NEVER;	/* when they will have */
static int64 resume_ms;			/* after a failure: nothing before */
static bool told_no_slot;		/* the log has it, for this streak */

static char *
id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

static bool
same_id(const pg_uuid_t *a, const pg_uuid_t *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}

/* ---- in memory ---- */

static Job *
find_job(const pg_uuid_t *id)
{
	dlist_iter	iter;

	dlist_foreach(iter, &jobs)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);

		if (same_id(&job->id, id))
			return job;
	}
	return NULL;
}

static void
add_job(const KpgJobRow *row, BackgroundWorkerHandle *handle)
{
	Job		   *job = MemoryContextAllocZero(TopMemoryContext, sizeof(Job));

	job->id = row->id;
	job->runs = row->runs;
	job->phase = handle != NULL ? JOB_STARTED : JOB_FOUND;
	job->handle = handle;
	dlist_push_tail(&jobs, &job->node);
}

static void
remove_job(Job *job)
{
	dlist_delete(&job->node);
	if (job->handle != NULL)
		pfree(job->handle);
	pfree(job);
}

/* Its process is another one, which we have not started. */
static void
find_again(Job *job)
{
	if (job->handle != NULL)
		pfree(job->handle);
	job->handle = NULL;
	job->phase = JOB_FOUND;
}

static int
count_all(void)
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &jobs)
		n++;
	return n;
}

static int
count_alive(void)
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &jobs)
		n += dlist_container(Job, node, iter.cur)->phase != JOB_ENDED;
	return n;
}

static Trouble *
find_trouble(const pg_uuid_t *id)
{
	dlist_iter	iter;

	dlist_foreach(iter, &troubles)
	{
		Trouble    *trouble = dlist_container(Trouble, node, iter.cur);

		if (same_id(&trouble->id, id))
			return trouble;
	}
	return NULL;
}

static Trouble *
note_trouble(const pg_uuid_t *id)
{
	Trouble    *trouble = find_trouble(id);

	if (trouble == NULL)
	{
		trouble = MemoryContextAllocZero(TopMemoryContext, sizeof(Trouble));
		trouble->id = *id;
		dlist_push_tail(&troubles, &trouble->node);
	}
	return trouble;
}

static int
count_troubles(void)
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &troubles)
		n++;
	return n;
}

static void
forget_trouble(const pg_uuid_t *id)
{
	Trouble    *trouble = find_trouble(id);

	if (trouble == NULL)
		return;
	dlist_delete(&trouble->node);
	pfree(trouble);
}

static void
forget_troubles(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &troubles)
		forget_trouble(&dlist_container(Trouble, node, iter.cur)->id);
}

/* Those whose operation is not pending any more; reads the tables. */
static void
forget_settled_troubles(void)
{
	int			n = count_troubles();
	pg_uuid_t  *ids = palloc(sizeof(pg_uuid_t) * (Size) Max(n, 1));
	int			pending;
	dlist_mutable_iter iter;

	if (n == 0)
		return;
	n = 0;
	dlist_foreach_modify(iter, &troubles)
		ids[n++] = dlist_container(Trouble, node, iter.cur)->id;
	pending = kpg_operations_pending(ids, n);
	dlist_foreach_modify(iter, &troubles)
	{
		Trouble    *trouble = dlist_container(Trouble, node, iter.cur);
		bool		is_pending = false;

		for (int i = 0; i < pending && !is_pending; i++)
			is_pending = same_id(&ids[i], &trouble->id);
		if (!is_pending)
			forget_trouble(&trouble->id);
	}
}

/*
 * Has a process ended?  The postmaster sets our latch for those that we have
 * started; the others set it when they commit, or the next look finds them.
 */
static bool
notice_ends(void)
{
	bool		ended = false;
	dlist_iter	iter;

	dlist_foreach(iter, &jobs)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);
		pid_t		pid;

		if (job->phase == JOB_STARTED && GetBackgroundWorkerPid(job->handle, &pid) == BGWH_STOPPED)
			job->phase = JOB_ENDED;
		else if (job->phase == JOB_FOUND && !kpg_worker_job_is_alive(&job->id))
			job->phase = JOB_ENDED;
		ended = ended || job->phase == JOB_ENDED;
	}
	return ended;
}

/* ---- what the tables say ---- */

typedef struct PlannedJob
{
	KpgFailure *refusal;		/* why it cannot be run; NULL: it can */
	bool		settled;		/* its row is not what it was */
} PlannedJob;

typedef struct Round
{
	MemoryContext context;
	int			limit;
	KpgJobRow  *rows;
	PlannedJob *planned;		/* parallel to rows */
	int64		now;
	int			n;
	int64		next_ms;
} Round;

/* Perhaps it is at its end, but that is not known. */
static bool
has_process(const pg_uuid_t *id)
{
	Job		   *job = find_job(id);

	return job != NULL && job->phase != JOB_ENDED;
}

static void
round_body(void *arg)
{
	Round	   *round = arg;
	MemoryContext old = MemoryContextSwitchTo(round->context);

	round->rows = kpg_operations_jobs(round->limit, &round->n, &round->next_ms);
	round->planned = palloc0(sizeof(PlannedJob) * (Size) Max(round->n, 1));
	for (int i = 0; i < round->n; i++)
	{
		if (round->rows[i].state == KPG_STATE_PENDING && !has_process(&round->rows[i].id))
			round->planned[i].refusal = kpg_worker_job_refusal(round->rows[i].owner);
	}
	forget_settled_troubles();
	MemoryContextSwitchTo(old);
}

/* ---- what the tables are told ---- */

typedef struct Verdict
{
	const KpgJobRow *row;
	const KpgFailure *failure;
	double		pause_s;		/* negative: no other try */
	KpgState	state;			/* pending, failed, unknown; of the row: nothing was written */
	bool		written;
} Verdict;

static void
verdict_body(void *arg)
{
	Verdict    *verdict = arg;
	const KpgJobRow *row = verdict->row;

	verdict->state = KPG_STATE_PENDING;
	if (verdict->pause_s < 0)
	{
		verdict->state = kpg_operations_fail_job(&row->id, row->state, false, verdict->failure);
		verdict->written = verdict->state != row->state;
	}
	else
		verdict->written = kpg_operations_postpone_job(&row->id, row->state, false, verdict->pause_s,
													   verdict->failure);
	KPG_FAULT("job-given-back");
}

/* False: the row has not been told. */
static bool
tell(const KpgJobRow *row, const KpgFailure *failure, double pause_s)
{
	Verdict		verdict = {.row = row,.failure = failure,.pause_s = pause_s};
	int64		now = kpg_worker_now_ms();

	if (kpg_worker_unit("giving back a job", verdict_body, &verdict, NULL) != KPG_UNIT_DONE)
	{
		due_ms = Min(due_ms, now + ERROR_PAUSE_MS);
		return false;
	}
	if (!verdict.written)
	{
		/* Somebody has moved it, or is about to. */
		due_ms = Min(due_ms, now + AGAIN_MS);
		return false;
	}
	due_ms = Min(due_ms, now + (int64) (Max(pause_s, 0) * 1000));
	ereport(LOG,
			(verdict.state == KPG_STATE_UNKNOWN
			 ? errmsg("kusto_ingest operation %s may be in Kusto or not: %s", id_text(&row->id), failure->message)
			 : pause_s < 0
			 ? errmsg("kusto_ingest operation %s failed: %s", id_text(&row->id), failure->message)
			 : errmsg("kusto_ingest operation %s waits: %s", id_text(&row->id), failure->message),
			 failure->details != NULL ? errdetail_internal("%s", failure->details) : 0));
	return true;
}

double
kpg_worker_job_pause(int runs)
{
	return (double) runs * runs;
}

/* Its process is gone; whatever it did is rolled back, but for what it may have sent. */
static void
give_back(const KpgJobRow *row)
{
	bool		again = row->runs < KPG_JOB_RUNS_MAX;
	KpgFailure *failure =
		kpg_worker_job_failure(ERRCODE_ADMIN_SHUTDOWN,
							   "the process that ran the query ended unexpectedly",
							   psprintf("That was run %d of at most %d. The process was terminated, or it or the server crashed.",
										row->runs, KPG_JOB_RUNS_MAX),
							   again ? NULL : "The server log tells more. Ask for the export again with kusto_ingest_async().");

	failure->perhaps_ingested = true;
	(void) tell(row, failure, again ? kpg_worker_job_pause(row->runs) : -1);
}

/*
 * Its process ended without having begun.  Who has the row locked was in its
 * way, too, and is most likely still there.
 */
static void
start_failed(const KpgJobRow *row)
{
	Trouble    *trouble = note_trouble(&row->id);
	int			starts = trouble->starts + 1;
	bool		again = starts < STARTS_MAX;

	if (!tell(row,
			  kpg_worker_job_failure(ERRCODE_CONNECTION_FAILURE,
									 "the process that is to run the query could not begin",
									 psprintf("That was attempt %d of at most %d.", starts, STARTS_MAX),
									 "The server log has the reason; perhaps the database accepts no connections."),
			  again ? Min((double) (1 << (starts - 1)), START_PAUSE_MAX_S) : -1))
	{
		trouble->pause_ms = trouble->pause_ms == 0 ? AGAIN_MS : Min(trouble->pause_ms * 2, AGAIN_MAX_MS);
		trouble->resume_ms = kpg_worker_now_ms() + trouble->pause_ms;
		return;
	}
	trouble->starts = starts;
	trouble->pause_ms = 0;
}

/* ---- starting ---- */

/* False: no slot. */
static bool
start(const KpgJobRow *row)
{
	KpgWorkerJobStart what = {.database = MyDatabaseId,.role = row->owner,.id = row->id};
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	BackgroundWorkerHandle *handle = kpg_worker_job_register(&what, MyProcPid);

	if (handle != NULL)
		add_job(row, handle);
	MemoryContextSwitchTo(old);
	if (handle != NULL)
	{
		KPG_FAULT("job-registered");
		ereport(DEBUG1,
				(errmsg_internal("a process for kusto_ingest operation %s is to be started", id_text(&row->id))));
		told_no_slot = false;
		return true;
	}
	if (!told_no_slot)
		ereport(LOG,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not start a background process for kusto_ingest operation %s", id_text(&row->id)),
				 errdetail("It waits until a slot is free."),
				 errhint("You might need to increase \"max_worker_processes\".")));
	told_no_slot = true;
	due_ms = Min(due_ms, kpg_worker_now_ms() + SLOT_PAUSE_MS);
	return false;
}

/* True: it is not to be started now. */
static bool
settle_pending(const Round *round, const KpgJobRow *row, const KpgFailure *refusal)
{
	Job		   *job = find_job(&row->id);
	Trouble    *trouble = find_trouble(&row->id);

	if (job != NULL && job->phase != JOB_ENDED)
		return true;
	if (job != NULL && job->runs == row->runs)
	{
		/* A worker before us has started one, which has yet to claim it. */
		if (kpg_worker_job_is_alive(&row->id))
			find_again(job);
		else
			start_failed(row);
		return true;
	}
	if (refusal != NULL)
	{
		(void) tell(row, refusal, -1);
		return true;
	}
	if (trouble == NULL || round->now >= trouble->resume_ms)
		return false;
	due_ms = Min(due_ms, trouble->resume_ms);
	return true;
}

/* What has become of processes that ended, and of those we do not know. */
static void
settle(Round *round)
{
	dlist_mutable_iter iter;

	for (int i = 0; i < round->n; i++)
	{
		const KpgJobRow *row = &round->rows[i];
		Job		   *job = find_job(&row->id);

		if (row->state == KPG_STATE_PENDING)
			round->planned[i].settled = settle_pending(round, row, round->planned[i].refusal);
		else if (job == NULL && kpg_worker_job_is_alive(&row->id))
			add_job(row, NULL);
		else if (job == NULL || job->phase == JOB_ENDED)
			give_back(row);
	}
	dlist_foreach_modify(iter, &jobs)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);

		if (job->phase == JOB_ENDED)
			remove_job(job);
	}
}

static void
start_pending(const Round *round)
{
	int			room = kpg_max_jobs - count_alive();

	for (int i = 0; i < round->n && room > 0; i++)
	{
		const KpgJobRow *row = &round->rows[i];

		if (row->state != KPG_STATE_PENDING || round->planned[i].settled)
			continue;
		if (!start(row))
			return;
		room--;
	}
}

/* ---- the worker's turn ---- */

void
kpg_worker_jobs_told(bool found)
{
	wanted = found;
	if (found)
		return;
	due_ms = KPG_WORK_NEVER;
	forget_troubles();
}

static void
carry_out(Round *round)
{
	due_ms = round->next_ms < 0 ? KPG_WORK_NEVER : kpg_worker_now_ms() + round->next_ms;
	settle(round);
	start_pending(round);
}

int64
kpg_worker_jobs_run(void)
{
	Round		round = {.context = CurrentMemoryContext};
	bool		ended = notice_ends();
	int64		now = kpg_worker_now_ms();
	int			alive = count_alive();

	if (now < resume_ms)
		return resume_ms;
	wanted = wanted || ended || now >= due_ms;
	if (!wanted)
		return due_ms;
	/* All places are taken, and whoever ends will be noticed. */
	if (!ended && alive > 0 && alive >= kpg_max_jobs)
		return KPG_WORK_NEVER;

	/* Those that have not claimed theirs yet are pending, too, as are those that are stepped over. */
	round.limit = kpg_max_jobs + count_all() + count_troubles();
	round.now = now;
	switch (kpg_worker_unit("looking for jobs", round_body, &round, NULL))
	{
		case KPG_UNIT_DONE:
			wanted = false;
			carry_out(&round);
			break;
		case KPG_UNIT_BUSY:
			resume_ms = now + AGAIN_MS;
			return resume_ms;
		case KPG_UNIT_FAILED:
			resume_ms = now + ERROR_PAUSE_MS;
			return resume_ms;
	}
	return due_ms;
}

bool
kpg_worker_has_jobs(void)
{
	return !dlist_is_empty(&jobs);
}

void
kpg_worker_jobs_stop(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &jobs)
	{
		Job		   *job = dlist_container(Job, node, iter.cur);
		PGPROC	   *proc;

		if (job->phase == JOB_STARTED)
			TerminateBackgroundWorker(job->handle);
		else if (job->phase == JOB_FOUND && (proc = kpg_worker_job_proc(&job->id)) != NULL)
			(void) kill(proc->pid, SIGTERM);
	}
}
