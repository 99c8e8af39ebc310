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

/* Entry point of the process. */
extern PGDLLEXPORT void kusto_ingest_worker_main(Datum main_arg);

#endif							/* KPG_WORKER_H */
