/*
 * outcome_wait.h
 *	  Wait until an operation has ended.
 */
#ifndef KPG_OUTCOME_WAIT_H
#define KPG_OUTCOME_WAIT_H

#include "postgres.h"

#include "utils/uuid.h"

/*
 * Wait until the operation has ended, at most timeout_ms (-1: for ever), and
 * return its state, palloc'd: a final one, or when time ran out the one it is
 * in.  Raises for an operation that does not exist or that the current user
 * may not see, and for one of the current, uncommitted transaction.
 *
 * While it sleeps it holds no snapshot, and no lock that anybody could wait
 * for.  What the calling statement holds by itself stays held, though:
 * commit_between, for a procedure that was called non-atomically and has no SPI
 * connection of its own open, ends the transaction before each look.  The
 * result then lives in the context that was current at the call, which must
 * outlive transactions.
 */
extern char *kpg_outcome_wait(const pg_uuid_t *id, int64 timeout_ms, bool commit_between);

#endif							/* KPG_OUTCOME_WAIT_H */
