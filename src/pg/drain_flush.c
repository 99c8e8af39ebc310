/*
 * drain_flush.c
 *	  kusto_flush: have row changes sent at once, and wait until they are.
 *
 * Who waits is announced by an advisory lock in share mode, as in waiters.c.
 * The look comes after the announcement, and the worker asks who is announced
 * after each mark's commit: a mark is seen by the look or wakes the sleeper.
 * The first half runs in a backend, the other in the worker.
 */
#include "postgres.h"

#include "storage/latch.h"
#include "storage/lock.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "alloc.h"
#include "compat.h"
#include "drain_internal.h"
#include "wait.h"

/* A look that nobody asked for: the worker may be gone. */
#define CHECK_MS	5000

/* ---- who waits ---- */

typedef struct Flush
{
	MemoryContext context;
	char	   *until;			/* snapshot: what is visible in it is to be sent */
	int64		deadline_ms;	/* PG_INT64_MAX: never */
	int64		check_ms;
} Flush;

/* Has a capture rows that are visible in flush->until, or now, and not sent? */
static bool
is_sent(Flush *flush, const KpgCapture *capture)
{
	KpgMark		mark;
	KpgSlice	slice = {.capture = capture->id,.limit = 1,.current = flush->until};
	KcBuf		rows;

	kpg_outbox_read_mark(capture->id, &mark);
	slice.last = mark.snapshot;
	kc_buf_init(&rows, kpg_alloc_create(CurrentMemoryContext), KC_BUF_UNLIMITED);
	kpg_outbox_read(&slice, &rows);
	/* The first look says until when. */
	if (flush->until == NULL)
		flush->until = MemoryContextStrdup(flush->context, slice.snapshot);
	if (capture->has_snapshot && mark.snapshot == NULL)
		return false;
	/* What the index does not lead to the worker will find. */
	return slice.rows == 0 && slice.whole;
}

static bool
all_is_sent(Flush *flush)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest look",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(scratch);
	ListCell   *cell;
	bool		all = true;

	foreach(cell, kpg_outbox_captures())
	{
		all = is_sent(flush, lfirst(cell));
		if (!all)
			break;
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	/* Else it would hold back VACUUM while we sleep. */
	InvalidateCatalogSnapshot();
	return all;
}

/* Nothing that resets the latch comes between look and sleep. */
static void
wait_for_mark(Flush *flush, int64 now)
{
	int			happened;

	if (now >= flush->check_ms)
	{
		flush->check_ms = now + CHECK_MS;
		(void) kpg_worker_ensure();
		kpg_worker_wake(MyDatabaseId);
		return;
	}
	do
	{
		happened = kpg_wait_once(Min(flush->check_ms, flush->deadline_ms) - now, KPG_WAIT_OUTCOME);
		now = kpg_worker_now_ms();
	} while (!(happened & WL_LATCH_SET) && now < flush->check_ms && now < flush->deadline_ms);
}

bool
kpg_drain_flush(int64 timeout_ms)
{
	int64		now = kpg_worker_now_ms();
	Flush		flush = {
		.context = CurrentMemoryContext,
		.deadline_ms = timeout_ms < 0 ? PG_INT64_MAX : now + timeout_ms,
		.check_ms = now
	};
	LOCKTAG		tag;
	bool		sent;

	/* Nobody takes it in a mode that conflicts; an error ends the transaction, and with it the lock. */
	kpg_worker_lock_tag(&tag, KPG_WORKER_FLUSHER);
	(void) LockAcquire(&tag, ShareLock, false, false);
	for (;;)
	{
		sent = all_is_sent(&flush);
		now = kpg_worker_now_ms();
		if (sent || now >= flush.deadline_ms)
			break;
		wait_for_mark(&flush, now);
	}
	(void) LockRelease(&tag, ShareLock, false);
	return sent;
}

/* ---- the worker ---- */

static VirtualTransactionId *
announced(int *n)
{
	LOCKTAG		tag;

	kpg_worker_lock_tag(&tag, KPG_WORKER_FLUSHER);
	return GetLockConflicts(&tag, ExclusiveLock, n);
}

bool
kpg_drain_flush_wanted(void)
{
	int			n;

	pfree(announced(&n));
	return n > 0;
}

void
kpg_drain_flush_wake(void)
{
	int			n;
	VirtualTransactionId *waiters = announced(&n);

	for (int i = 0; i < n; i++)
	{
		PGPROC	   *proc = kpg_compat_vxid_proc(waiters[i]);

		if (proc != NULL)
			SetLatch(&proc->procLatch);
	}
	pfree(waiters);
}
