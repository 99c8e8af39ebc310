/*
 * waiters.c
 *	  Whoever waits for the end of an operation, and waking them.
 *
 * An announcement is an advisory lock in share mode: it needs no shared memory
 * of our own, and PostgreSQL withdraws it when the process ends.  Operations
 * that share their first 64 bits share their waiters, who then wake for
 * nothing.
 *
 * An error after the commit would be a PANIC, so all that can raise there is
 * contained; a waiter that is not woken looks a few seconds later.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/memutils.h"

#include "compat.h"
#include "fault.h"
#include "lock.h"
#include "waiters.h"

static bool callback_registered;
static List *ended;				/* by the current transaction; pg_uuid_t * in its context */

void
kpg_waiters_announce(const pg_uuid_t *id)
{
	LOCKTAG		tag;

	/* Nobody takes it in a mode that conflicts. */
	kpg_lock_tag(&tag, id, KPG_LOCK_WAITER);
	(void) LockAcquire(&tag, ShareLock, false, false);
}

void
kpg_waiters_withdraw(const pg_uuid_t *id)
{
	LOCKTAG		tag;

	kpg_lock_tag(&tag, id, KPG_LOCK_WAITER);
	(void) LockRelease(&tag, ShareLock, false);
}

/* ---- waking ---- */

static void
wake(const pg_uuid_t *id)
{
	LOCKTAG		tag;
	VirtualTransactionId *waiters;
	int			n;

	kpg_lock_tag(&tag, id, KPG_LOCK_WAITER);
	waiters = GetLockConflicts(&tag, ExclusiveLock, &n);
	for (int i = 0; i < n; i++)
	{
		PGPROC	   *proc = kpg_compat_vxid_proc(waiters[i]);

		/* When it is another's by now, that one wakes for nothing. */
		if (proc != NULL)
			SetLatch(&proc->procLatch);
	}
	pfree(waiters);
}

/*
 * Memory may run out; nothing else in here raises.  An error forgets that the
 * commit holds off interrupts, and the commit would end that once more: from
 * then on the process could not be interrupted.
 */
static void
wake_all(void)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		interrupts_held = InterruptHoldoffCount;
	uint32		cancels_held = QueryCancelHoldoffCount;

	PG_TRY();
	{
		ListCell   *cell;

		KPG_FAULT("waiters-due");
		foreach(cell, ended)
			wake(lfirst(cell));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
		InterruptHoldoffCount = interrupts_held;
		QueryCancelHoldoffCount = cancels_held;
	}
	PG_END_TRY();
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (ended == NIL)
		return;

	switch (event)
	{
		case XACT_EVENT_COMMIT:
			wake_all();
			ended = NIL;
			break;
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			ended = NIL;
			break;
		default:
			break;
	}
}

void
kpg_waiters_ended(const pg_uuid_t *id)
{
	MemoryContext old;
	pg_uuid_t  *copy;

	if (!callback_registered)
	{
		RegisterXactCallback(xact_callback, NULL);
		callback_registered = true;
	}
	old = MemoryContextSwitchTo(TopTransactionContext);
	copy = palloc(sizeof(pg_uuid_t));
	*copy = *id;
	ended = lappend(ended, copy);
	MemoryContextSwitchTo(old);
}
