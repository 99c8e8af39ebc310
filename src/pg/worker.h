/*
 * worker.h
 *	  The database's background worker: posts what has been staged and
 *	  committed, and follows it to its end.
 */
#ifndef KPG_WORKER_H
#define KPG_WORKER_H

#include "postgres.h"

/*
 * The current transaction has staged something: make sure that a worker runs
 * before the transaction commits, and wake it when it has.  Called once an
 * operation is staged; cheap when repeated in a transaction.  That no worker
 * can be started (all slots taken) is a WARNING, not an error: the next
 * worker finds the rows.
 */
extern void kpg_worker_staged(void);

/*
 * Start a worker for this database unless one runs; for whoever waits for an
 * outcome.  True when one runs afterwards.  Waits a moment for its start.
 */
extern bool kpg_worker_ensure(void);

/* Entry point of the process; its argument is the database's OID. */
extern PGDLLEXPORT void kpg_worker_main(Datum main_arg);

#endif							/* KPG_WORKER_H */
