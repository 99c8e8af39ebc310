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
#include "port/pg_bswap.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/memutils.h"

#include "compat.h"
#include "waiters.h"

/* In pg_locks: objsubid; classid and objid are the operation's first 64 bits. */
#define LOCK_FIELD4 0x4b57		/* "KW" */

static bool callback_registered;
static List *ended;				/* by the current transaction; pg_uuid_t * in its context */

static void
lock_tag(LOCKTAG *tag, const pg_uuid_t *id)
{
	uint32		fields[2];

	memcpy(fields, id->data, sizeof(fields));
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, pg_ntoh32(fields[0]), pg_ntoh32(fields[1]), LOCK_FIELD4);
}

void
kpg_waiters_announce(const pg_uuid_t *id)
{
	LOCKTAG		tag;

	/* Nobody takes it in a mode that conflicts. */
	lock_tag(&tag, id);
	(void) LockAcquire(&tag, ShareLock, false, false);
}

void
kpg_waiters_withdraw(const pg_uuid_t *id)
{
	LOCKTAG		tag;

	lock_tag(&tag, id);
	(void) LockRelease(&tag, ShareLock, false);
}

/* ---- waking ---- */

static void
wake(const pg_uuid_t *id)
{
	LOCKTAG		tag;
	VirtualTransactionId *waiters;
	int			n;

	lock_tag(&tag, id);
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

/* Memory may run out; nothing else in here raises. */
static void
wake_all(void)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		ListCell   *cell;

		foreach(cell, ended)
			wake(lfirst(cell));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
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
