/*
 * worker_internal.h
 *	  What the parts of the worker share: its locks, its transactions, and the
 *	  work in its memory.
 *
 *	worker.c		  the process and its main loop
 *	worker_start.c	  starting, finding and waking it from a backend
 *	worker_job.c	  the process of a job: its lock, starting and finding it
 *	worker_jobs.c	  which jobs run
 *	worker_unit.c	  one short transaction
 *	worker_look.c	  which operations are in memory
 *	worker_work.c	  driving them: what is begun, written, given up
 *	worker_write.c	  writing what was decided
 *	worker_group.c	  writing of several in one transaction
 *	worker_failure.c  what a failure means: its texts, whether to try again
 *	worker_command.c  the command that creates an operation's table
 *	worker_post.c	  telling Kusto of a blob
 *	worker_poll.c	  asking what became of it
 *	worker_purge.c	  retention
 *	worker_trouble.c  telling in kusto.worker what went wrong
 *	worker_log.c	  and in the server log
 *
 * All but worker_start.c and worker_job.c runs in the worker only.
 */
#ifndef KPG_WORKER_INTERNAL_H
#define KPG_WORKER_INTERNAL_H

#include "postgres.h"

#include "lib/ilist.h"
#include "storage/lock.h"

#include "../core/kusto.h"
#include "operations.h"
#include "session.h"
#include "worker.h"

#define KPG_WORKER_TYPE "kusto_ingest worker"
#define KPG_JOB_TYPE "kusto_ingest job"

/* ---- locks (worker_start.c) ---- */

/*
 * Advisory locks of this database that no SQL function can take.
 *
 * ALIVE and SELF are two because a backend tests ALIVE by trying to get it:
 * with one lock, a worker that starts right then would think that another one
 * runs, and end.
 */
typedef enum KpgWorkerLock
{
	KPG_WORKER_SELF = 1,		/* exclusive, session: I am the worker */
	KPG_WORKER_ALIVE,			/* exclusive, session: and I will look for work */
	KPG_WORKER_GUARD,			/* share: a transaction has staged something;
								 * exclusive: the worker is about to end */
	KPG_WORKER_STARTER,			/* exclusive: one backend at a time starts it */
	KPG_WORKER_FLUSHER			/* share: somebody waits in kusto_flush */
} KpgWorkerLock;

extern void kpg_worker_lock_tag(LOCKTAG *tag, KpgWorkerLock lock);

/* In bgw_extra: who has started a worker, if not somebody with work for it. */
#define KPG_WORKER_LAUNCHED 'L' /* the launcher */
#define KPG_WORKER_RENEWED	'R' /* one whose library was too old */

/* Session-level and exclusive; false when it cannot be had at once. */
extern bool kpg_worker_try_lock(KpgWorkerLock lock);
extern void kpg_worker_unlock(KpgWorkerLock lock);

/* Does some other process hold it exclusively? */
extern bool kpg_worker_is_held(KpgWorkerLock lock);

/* Ask the postmaster for a worker; NULL when there is no slot. */
struct BackgroundWorkerHandle;
extern struct BackgroundWorkerHandle *kpg_worker_register(pid_t notify_pid);
extern struct BackgroundWorkerHandle *kpg_worker_renew(void);

/*
 * End the process (worker.c), in a transaction: because the library is too
 * old; because the extension is gone, with the guard held until the end.
 */
extern void kpg_worker_retire(const char *installed);
extern void kpg_worker_end_without_tables(void);

/* ---- a job's process (worker_job.c); entry point kpg_job_main() in job.c ---- */

/* What it is told. */
typedef struct KpgWorkerJobStart
{
	Oid			database;
	Oid			role;
	pg_uuid_t	id;
} KpgWorkerJobStart;

/*
 * Why PostgreSQL would not let a process connect as the role, as far as that
 * does not pass by itself; NULL: it would.  In the current context.
 */
extern KpgFailure *kpg_worker_job_refusal(Oid role);

/* The texts for a job's row, kept as they are; in the current context. */
extern KpgFailure *kpg_worker_job_failure(int sqlstate, char *message, char *details, char *hint);

/* NULL when there is no slot. */
extern struct BackgroundWorkerHandle *kpg_worker_job_register(const KpgWorkerJobStart *start,
															  pid_t notify_pid);

/* Take the job's lock, until the process ends.  False: another process has it. */
extern bool kpg_worker_job_lock(const pg_uuid_t *id);

/* Who has it takes it for the transaction, too. */
extern void kpg_worker_job_keep_lock(const pg_uuid_t *id);

/* Does a process have the job's lock? */
extern bool kpg_worker_job_is_alive(const pg_uuid_t *id);

/* So often a query is begun whose process is lost, or that meets a serialization failure. */
#define KPG_JOB_RUNS_MAX	3

/* Seconds to wait after that many runs (worker_jobs.c). */
extern double kpg_worker_job_pause(int runs);

/* ---- one transaction (worker_unit.c) ---- */

typedef enum KpgUnitResult
{
	KPG_UNIT_DONE,				/* committed */
	KPG_UNIT_BUSY,				/* the tables are locked; nothing was done */
	KPG_UNIT_FAILED				/* raised and rolled back */
} KpgUnitResult;

/*
 * Run body in a transaction of its own, with a snapshot.  When the extension is
 * gone the process ends.  Errors do not get out: *error is a copy in the
 * current context when error is not NULL, else the server log has it.
 *
 * body must change nothing in memory that a rollback would not undo.
 */
extern KpgUnitResult kpg_worker_unit(const char *activity, void (*body) (void *arg), void *arg,
									 ErrorData **error);

/* ---- work in memory ---- */

/* One server as one role: what is counted, and held back, together. */
typedef struct WorkLane
{
	dlist_node	node;
	char	   *server;
	Oid			owner;
	int			noperations;
	int			nwaiting;		/* of them not yet claimed */
	bool		skipped;		/* by the last look at staged ones: enough waiting */
	int			nposting;		/* posts and commands begun, also between tries */
	int			npolling;		/* polls under way */
	KpgSession *session;		/* that one of them has acquired in this run */
} WorkLane;

/* What the end of a task means; worked out once, then written, then applied. */
typedef struct WorkChange
{
	bool		pending;		/* there is one */
	KpgState	to;				/* the blob's next state, or the one it has */
	bool		by_post;		/* on its way there it has been posted */
	bool		in_doubt;		/* whether it has been posted is not known */
	bool		status_row;		/* its row is in the status table */
	bool		row_missing;	/* it was asked, and has none: nothing was posted */
	int64		due_ms;			/* nothing more before */
	KpgBlobNews news;			/* in scratch */
	KpgFailure *failure;		/* for the operation, in scratch; NULL: none */
} WorkChange;

typedef struct WorkBlob
{
	KpgOpenBlob *row;
	KcTask	   *task;			/* post or poll under way */
	bool		polling;		/* which */
	bool		held;			/* counts in its lane's nposting */
	bool		in_doubt;		/* state posting: perhaps it has been posted */
	bool		doubted;		/* a message of which nothing is known may have been
								 * sent */
	bool		retried;		/* of kusto_retry(): posted before, to some end */
	bool		status_row;		/* an earlier try wrote it; if retried, one of this
								 * process */
	int			trouble;		/* what was noted last, lest it be noted again */
	int64		due_ms;
	int64		since_ms;		/* posted, or in doubt, since */
	int64		polled_ms;		/* last known not to have ended; 0: never asked */
	KcRetry		retry;			/* of posting; attempt 0: not begun */
	WorkChange	change;
} WorkBlob;

typedef struct WorkOperation
{
	dlist_node	node;
	MemoryContext context;		/* of everything here but session and tasks */
	MemoryContext scratch;		/* of the changes until they are applied */
	KpgOpenOperation *row;
	WorkLane   *lane;
	KpgSession *session;		/* NULL: to be acquired */
	bool		session_stale;	/* acquire another when no task needs this one */
	WorkBlob   *blobs;			/* parallel to row->blobs */
	struct WorkWrite *written;	/* its changes have been; NULL: not yet */
	struct WorkAttempt *attempt;	/* posts that are to begin now; NULL: none */
	bool		claimed;		/* the attempt has been written */
	KcRequestTask *command;		/* under way */
	bool		command_done;	/* or there is none to run */
	bool		command_held;	/* counts in its lane's nposting */
	int			poll_window;	/* blobs that are asked for at once */
	bool		over;			/* nothing to do any more: to be forgotten */
	int64		due_ms;			/* nothing new before */
	int64		next_ms;		/* when there was something to do, says the last run */
	bool		active;			/* there is something, in this run */
	bool		told_delay;		/* the log has it, with this code */
	char		delay_code[64];
	KcRetry		session_retry;	/* attempt 0: not begun */
	KcRetry		command_retry;
} WorkOperation;

#define KPG_WORK_NEVER PG_INT64_MAX

/* worker_group.c */

/* Operations that a transaction writes of. */
#define KPG_GROUP_MAX	64

/* What a transaction writes of an operation; body may be called again after a rollback. */
typedef struct WorkStep
{
	WorkOperation *op;
	void		(*body) (void *arg);
	void	   *arg;
	bool		done;			/* committed; else it is to be done alone */
} WorkStep;

/* Do as many as possible of them in one transaction, if there are several. */
extern void kpg_worker_group(const char *activity, WorkStep *steps, int n);

/* worker_look.c */

extern dlist_head kpg_worker_operations;

/*
 * Look for operations to take up: staged ones only, or the next page of all.
 * False when that was not possible.
 */
extern bool kpg_worker_look(bool everything);

/* Did the last look leave staged operations for which there is room now? */
extern bool kpg_worker_more_staged(void);

/*
 * Tell the server log of open operations that another cluster or database has
 * recorded.  False when that was not possible.
 */
extern bool kpg_worker_tell_foreign(void);

/* Is nothing in memory, and did the last full look find nothing either? */
extern bool kpg_worker_is_idle(void);

/* Is it being retried although an earlier attempt has perhaps posted it? */
extern bool kpg_worker_was_unknown(const KpgOpenBlob *row);

/* Release the session that its operations share in a run. */
extern void kpg_worker_unshare(WorkLane *lane);

/* Drop it from memory, with all that is under way. */
extern void kpg_worker_forget(WorkOperation *op);
extern void kpg_worker_forget_all(void);

/* worker_jobs.c */

/* What a look has found: there are pending or running jobs, or there are none. */
extern void kpg_worker_jobs_told(bool jobs);

/*
 * Start those that may run, and put right those that have lost their process.
 * When there will be more, by kpg_worker_now_ms(); what announces itself by
 * the latch or a look is not counted.
 */
extern int64 kpg_worker_jobs_run(void);

/* Are there processes of jobs? */
extern bool kpg_worker_has_jobs(void);

/*
 * The database is to be left: end the processes of jobs.  What they did is
 * rolled back, and a successor runs them again.
 */
extern void kpg_worker_jobs_stop(void);

/* worker_work.c */

/* Begin nothing any more, or do again. */
extern void kpg_worker_hold_back(bool hold);

/* Are posts under way, or their results not yet written? */
extern bool kpg_worker_is_posting(void);

/* Has it tasks under way? */
extern bool kpg_worker_has_tasks(const WorkOperation *op);

/* Do all that can be done now; when there will be more, by kpg_worker_now_ms(). */
extern int64 kpg_worker_run(void);

/* worker_write.c */

#define KPG_ERROR_PAUSE_MS	2000	/* a transaction failed */

/* Leave it alone for a while. */
extern void kpg_worker_pause(WorkOperation *op, KpgUnitResult result);

/* Is something decided and not written, or nothing left to be decided? */
extern bool kpg_worker_must_write(const WorkOperation *op);

/* Write what was decided of several; it is applied by kpg_worker_write(). */
extern void kpg_worker_write_group(int64 now_ms);

/* Write what was decided, unless that has been done, and apply it. */
extern void kpg_worker_write(WorkOperation *op);

/*
 * Nothing will ever get better: end what is open of the operation.  What has
 * perhaps been posted becomes unknown, the rest failed.  No task of it is under
 * way.  When that cannot be written, the operation is tried once more later.
 */
extern void kpg_worker_give_up(WorkOperation *op, const KpgFailure *failure);

/* Show what hinders it; a failure to write is in the log and no more. */
extern void kpg_worker_note(WorkOperation *op, const KpgFailure *failure);

/*
 * The process's share of tasks.  One server that stalls must not keep the
 * others waiting, so each lane has a share of its own besides.
 */
extern bool kpg_worker_may_begin(void);
/* What a run claims counts before it begins; negative: it begins now, or not at all. */
extern void kpg_worker_expect_tasks(int n);
extern void kpg_worker_task_begins(void);
extern void kpg_worker_task_ends(KcTask *task); /* frees it; NULL is fine */

/* What one lane may have under way. */
#define KPG_LANE_POSTS_MAX	16
#define KPG_LANE_POLLS_MAX	8

/* worker_failure.c */

/*
 * When to try again; false: never, because of what it is or because
 * kusto_ingest.post_timeout is over.
 */
extern bool kpg_worker_retry(KcRetry *retry, const KcError *err, int64 *due_ms);

/* The tries begin, unless they have. */
extern void kpg_worker_retry_begin(KcRetry *retry);

/* Have they lasted for kusto_ingest.post_timeout? */
extern bool kpg_worker_retry_is_over(const KcRetry *retry);

/* The same as kpg_worker_retry() for an error of PostgreSQL. */
extern bool kpg_worker_retry_from(KcRetry *retry, const ErrorData *error, int64 *due_ms);

/* The texts for a row; in the current context.  principal may be NULL. */
extern KpgFailure *kpg_worker_failure_of(const KcError *err, const char *database,
										 const char *principal);
extern KpgFailure *kpg_worker_failure_of_error(const ErrorData *error);

/* The same for an operation; in its scratch context. */
extern KpgFailure *kpg_worker_failure(WorkOperation *op, const KcError *err);
extern KpgFailure *kpg_worker_failure_from(WorkOperation *op, const ErrorData *error);

/*
 * The kinds of work.  due: when something could begin, KPG_WORK_NEVER when
 * nothing can.  start: begin it, as far as it is due; it may find that the operation is
 * over.  decide: what the end of a blob's task means, into blob->change.
 */

/* worker_command.c */
extern int64 kpg_worker_command_due(const WorkOperation *op);
extern void kpg_worker_command_start(WorkOperation *op);
extern void kpg_worker_command_finish(WorkOperation *op);

/* worker_post.c */
extern int64 kpg_worker_post_due(const WorkOperation *op);
extern void kpg_worker_post_decide(WorkOperation *op, WorkBlob *blob);

/*
 * Posts begin in three steps: those that are due get their places and become
 * op->attempt; the attempt is written, by the step alone or in a group;
 * op->attempt is begun.  drop: it could not be written.
 */
extern void kpg_worker_post_gather(WorkOperation *op, int64 now_ms);
extern WorkStep kpg_worker_post_claim(WorkOperation *op);
extern void kpg_worker_post_start(WorkOperation *op);
extern void kpg_worker_post_drop(WorkOperation *op);

/*
 * A place among the posts of a lane, which a command or blob has from its
 * first try to the end of its last: a server that fails is not asked to take
 * ever more.  Releasing what is not held is fine.
 */
extern bool kpg_worker_post_room(const WorkOperation *op, bool held);
extern void kpg_worker_post_hold(WorkOperation *op, bool *held);
extern void kpg_worker_post_release(WorkOperation *op, bool *held);

/* worker_poll.c */
extern int64 kpg_worker_poll_due(const WorkOperation *op);
extern void kpg_worker_poll_start(WorkOperation *op, int64 now_ms);
extern void kpg_worker_poll_decide(WorkOperation *op, WorkBlob *blob);

/* When to ask first for a blob that has just been posted. */
extern int64 kpg_worker_poll_first(void);

/* worker_purge.c */

/* Delete a batch of what is too old, when it is time; when it will be. */
extern int64 kpg_worker_purge(int64 now_ms);

/* The same before the process ends; false: there is more, call again. */
extern bool kpg_worker_purge_at_end(int64 now_ms);

/* worker_log.c */

/* What the server log says of an operation's end, and of what holds it up. */
extern void kpg_worker_log_end(const WorkOperation *op, KpgState state, const KpgFailure *failure);
extern void kpg_worker_log_delay(WorkOperation *op, const KpgFailure *failure);

/* For an ErrorContextCallback: which operation; arg is its pg_uuid_t. */
extern void kpg_worker_log_context(void *arg);

/* worker_trouble.c */

/* Remember what went wrong.  Neither raises nor writes. */
extern void kpg_worker_trouble(const char *text);

/*
 * Write, at most so often, that the worker has begun and what went wrong.  A
 * failure to write is in the log and no more.
 */
extern void kpg_worker_trouble_write(int64 now_ms);

#endif							/* KPG_WORKER_INTERNAL_H */
