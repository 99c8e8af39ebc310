/*
 * worker_internal.h
 *	  What the parts of the worker share: its locks, its transactions, and the
 *	  work in its memory.
 *
 *	worker.c		 the process and its main loop
 *	worker_start.c	 starting, finding and waking it from a backend
 *	worker_unit.c	 one short transaction
 *	worker_work.c	 the operations in memory: found, driven, written, forgotten
 *	worker_command.c the command that creates an operation's table
 *	worker_post.c	 telling Kusto of a blob
 *	worker_poll.c	 asking what became of it
 *
 * All but worker_start.c runs in the worker only.
 */
#ifndef KPG_WORKER_INTERNAL_H
#define KPG_WORKER_INTERNAL_H

#include "postgres.h"

#include "lib/ilist.h"
#include "storage/lock.h"

#include "../core/kusto.h"
#include "operations.h"
#include "session.h"

#define KPG_WORKER_TYPE "kusto_ingest worker"

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
	KPG_WORKER_STARTER			/* exclusive: one backend at a time starts it */
} KpgWorkerLock;

extern void kpg_worker_lock_tag(LOCKTAG *tag, KpgWorkerLock lock);

/* Session-level and exclusive; false when it cannot be had at once. */
extern bool kpg_worker_try_lock(KpgWorkerLock lock);
extern void kpg_worker_unlock(KpgWorkerLock lock);

/* Does some other process hold it exclusively? */
extern bool kpg_worker_is_held(KpgWorkerLock lock);

/* Ask the postmaster for a worker; NULL when there is no slot. */
struct BackgroundWorkerHandle;
extern struct BackgroundWorkerHandle *kpg_worker_register(pid_t notify_pid);

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

/* ---- work in memory (worker_work.c) ---- */

/* One server as one role: what is counted, and held back, together. */
typedef struct WorkLane
{
	dlist_node	node;
	char	   *server;
	Oid			owner;
	int			noperations;
	int			nwaiting;		/* of them not yet claimed */
	int			nposting;		/* posts and commands begun, also between tries */
	int			npolling;		/* polls under way */
} WorkLane;

/* What the end of a task means; worked out once, then written, then applied. */
typedef struct WorkChange
{
	bool		pending;		/* there is one */
	KpgState	to;				/* the blob's next state, or the one it has */
	KpgBlobNews news;
	KpgFailure *failure;		/* for the operation; NULL: none */
	int64		due_ms;			/* not before */
	bool		in_doubt;
} WorkChange;

typedef struct WorkBlob
{
	KpgOpenBlob *row;
	KcTask	   *task;			/* post or poll under way */
	bool		polling;		/* which */
	bool		in_doubt;		/* posting: perhaps it has been posted */
	bool		held;			/* counts in its lane's nposting */
	int64		due_ms;
	int64		posted_ms;		/* or began to be in doubt */
	KcRetry		retry;			/* of posting; attempt 0: not begun */
	WorkChange	change;
} WorkBlob;

typedef struct WorkOperation
{
	dlist_node	node;
	MemoryContext context;		/* of everything here but the session and tasks */
	MemoryContext scratch;		/* of the changes until they are applied */
	KpgOpenOperation *row;
	WorkLane   *lane;
	KpgSession *session;		/* NULL: to be acquired */
	WorkBlob   *blobs;			/* parallel to row->blobs */
	KcRequestTask *command;		/* under way */
	bool		command_done;	/* or there is none */
	bool		command_held;	/* counts in its lane's nposting */
	int			poll_window;	/* polls at once */
	int64		due_ms;			/* nothing new before */
	KcRetry		retry;			/* of session and command; attempt 0: not begun */
} WorkOperation;

#define KPG_WORK_NEVER PG_INT64_MAX

extern int64 kpg_worker_now_ms(void);

/* Look for operations to take up: staged ones only, or the next page of all. */
extern void kpg_worker_work_look(bool everything);

/* Do all that can be done now; when there will be more, by kpg_worker_now_ms(). */
extern int64 kpg_worker_work_run(void);

/* Is nothing in memory, and did the last full look find nothing either? */
extern bool kpg_worker_work_is_idle(void);

/* How long to wait before the next try, with jitter; false: time is up. */
extern bool kpg_worker_retry(KcRetry *retry, const KcError *err, int64 *due_ms);

/*
 * Nothing will ever get better: end what is open of the operation.  What has
 * perhaps been posted becomes unknown, the rest failed.
 */
extern void kpg_worker_give_up(WorkOperation *op, const KpgFailure *failure);

/* An operation's texts for a failure of the core or of PostgreSQL; in scratch. */
extern KpgFailure *kpg_worker_failure(WorkOperation *op, const KcError *err);
extern KpgFailure *kpg_worker_failure_from(WorkOperation *op, const ErrorData *error);

/* May the lane begin another post? */
extern bool kpg_worker_may_post(const WorkLane *lane);

/* Text for the core, which wants UTF-8. */
extern KcSlice kpg_worker_utf8(const char *text);

/* ---- kinds of work ---- */

/* worker_command.c */
extern void kpg_worker_command_start(WorkOperation *op);
extern void kpg_worker_command_finish(WorkOperation *op);

/* worker_post.c */
extern bool kpg_worker_post_wanted(const WorkOperation *op, int64 now_ms);
extern void kpg_worker_post_start(WorkOperation *op, int64 now_ms);
extern void kpg_worker_post_decide(WorkOperation *op, WorkBlob *blob);

/* worker_poll.c */
extern void kpg_worker_poll_start(WorkOperation *op, int64 now_ms);
extern void kpg_worker_poll_decide(WorkOperation *op, WorkBlob *blob);

#endif							/* KPG_WORKER_INTERNAL_H */
