/*
 * drain.h
 *	  Sending captured row changes, in the database's worker.
 *
 * drain_internal.h says which part is where.
 *
 * Each capture is driven by itself, so that one whose service fails does not
 * hold up the others; a capture's batches go one after another.  No
 * transaction is open while the network is waited for.
 */
#ifndef KPG_DRAIN_H
#define KPG_DRAIN_H

#include "postgres.h"

/*
 * For the worker's loop.  Something may have been committed, or time has
 * passed: do all that can be done now, and return when there will be more, by
 * kpg_worker_now_ms(); KPG_WORK_NEVER: when woken.
 */
extern int64 kpg_drain_run(bool woken);

/*
 * How long the worker may leave its latch set, so that commits need not signal
 * it: until kusto_ingest.flush_interval is over, but never long.  0: not at all.
 */
extern int64 kpg_drain_linger_ms(void);

/*
 * Are there captures in this database, or is that not known?  Then the worker
 * does not end.  By the last look at the list; false: one was not possible.
 */
extern bool kpg_drain_has_captures(void);
extern bool kpg_drain_look(void);

/* Is something under way whose end should be awaited before the process ends? */
extern bool kpg_drain_is_sending(void);

/* Begin nothing any more, or do again. */
extern void kpg_drain_hold_back(bool hold);

/* The mux broke: forget what is under way. */
extern void kpg_drain_forget_all(void);

/*
 * In a backend: have what was committed before sent at once, and wait until it
 * is or timeout_ms is over (-1: never).  False: it is not.
 */
extern bool kpg_drain_flush(int64 timeout_ms);

#endif							/* KPG_DRAIN_H */
