/*
 * waiters.h
 *	  Whoever waits for the end of an operation, and waking them.
 *
 * A waiter announces itself, then looks at the operation, then sleeps on its
 * latch.  Whoever ends the operation sets the latches of those who are
 * announced, after its commit.  So an end is seen by the look or wakes the
 * sleeper, whichever came first.
 *
 * Nobody wakes for a COMMIT PREPARED, nor when the one who ended the operation
 * dies between its commit and the waking: waiters look again every few
 * seconds besides.
 */
#ifndef KPG_WAITERS_H
#define KPG_WAITERS_H

#include "postgres.h"

#include "utils/uuid.h"

/*
 * Announce the current process, until the end of the transaction or until it
 * withdraws.  Does not wait.
 */
extern void kpg_waiters_announce(const pg_uuid_t *id);
extern void kpg_waiters_withdraw(const pg_uuid_t *id);

/*
 * The current transaction has ended the operation: wake its waiters when that
 * commits.  In a subtransaction that rolls back they are woken for nothing.
 */
extern void kpg_waiters_ended(const pg_uuid_t *id);

#endif							/* KPG_WAITERS_H */
