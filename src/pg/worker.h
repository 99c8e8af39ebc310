/*
 * worker.h
 *	  The database's background worker: posts what has been staged and
 *	  committed, and follows it to its end.
 */
#ifndef KPG_WORKER_H
#define KPG_WORKER_H

#include "postgres.h"

#include "storage/proc.h"
#include "utils/uuid.h"

/*
 * The current transaction has staged something: make sure that a worker runs
 * before the transaction commits, and wake it when it has.  Called once an
 * operation is staged; cheap when repeated in a transaction.  That no worker
 * can be started (all slots taken) is a WARNING, not an error: the next
 * worker finds the rows.
 */
extern void kpg_worker_staged(void);

/*
 * The current transaction has row changes in the outbox: wake the worker when
 * it has committed, and start one if there is none.  Cheap enough for each
 * row: as a rule a look at two words of shared memory, at commit.  Before
 * PRE_COMMIT.
 */
extern void kpg_worker_captured(void);

/*
 * Start a worker for this database unless one runs; for whoever waits for an
 * outcome.  True when one runs afterwards.  Waits a moment for its start.
 */
extern bool kpg_worker_ensure(void);

/* Raise when PostgreSQL would not let a job's process connect as the role. */
extern void kpg_worker_job_check(Oid role);

/*
 * The process that runs the query of an operation of this database: its pid
 * member is to be signalled.  NULL when there is none.  For whoever has moved
 * the operation away from running and not yet committed that: the process
 * will not claim it any more.  Allocates, and may wait a moment, so not for
 * after the commit.
 */
extern PGPROC *kpg_worker_job_proc(const pg_uuid_t *id);

/*
 * For the launcher, which is in no database: does the database have a worker?
 * Does nobody want the database for himself, as DROP DATABASE does?  Start its
 * worker, which ends at once when nothing is open; NULL when there is no slot.
 */
extern bool kpg_worker_runs_in(Oid database);
extern bool kpg_worker_database_is_free(Oid database);
extern struct BackgroundWorkerHandle *kpg_worker_start_in(Oid database, pid_t notify_pid);

/*
 * Wake the database's worker, if it has one.  Is one connected to it, perhaps
 * on its way out?
 */
extern void kpg_worker_wake(Oid database);
extern bool kpg_worker_is_in(Oid database);

/* Monotonic. */
extern int64 kpg_worker_now_ms(void);

/* Entry point of the process; its argument is the database's OID. */
extern PGDLLEXPORT void kpg_worker_main(Datum main_arg);

#endif							/* KPG_WORKER_H */
