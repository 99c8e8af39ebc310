/*
 * wait.c
 *	  Every wait of the extension.
 *
 * The process has one mux.  When driving it fails it is no good any more: the
 * next call makes another, while the old one stays until the last client on
 * it is gone.  In between interrupts are served, never while libcurl runs.
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "portability/instr_time.h"
#include "storage/fd.h"
#include "storage/latch.h"

#include "alloc.h"
#include "compat.h"
#include "report.h"
#include "wait.h"

/* A window of blocks to each of some storage accounts, and the endpoints. */
#define CONNECTIONS_KEPT	32

typedef struct MuxEntry
{
	dlist_node	node;
	MemoryContext context;		/* holds everything of the mux */
	KcMux	   *mux;
	int			holders;
	bool		broken;
} MuxEntry;

static dlist_head muxes = DLIST_STATIC_INIT(muxes);
static MuxEntry *current_mux;	/* not broken; NULL: none yet */

static bool
acquire_fd(void *arg)
{
	return AcquireExternalFD();
}

static void
release_fd(void *arg)
{
	ReleaseExternalFD();
}

KcMux *
kpg_wait_mux(void)
{
	static const KcMuxHooks hooks = {acquire_fd, release_fd, NULL};
	MemoryContext context;
	MuxEntry   *entry;
	KcError		err;
	KcStatus	status;

	if (current_mux != NULL)
		return current_mux->mux;

	context = AllocSetContextCreate(TopMemoryContext, "kusto_ingest network", ALLOCSET_DEFAULT_SIZES);
	entry = MemoryContextAllocZero(context, sizeof(MuxEntry));
	entry->context = context;
	status = kc_mux_create(kpg_alloc_create(context), &kc_clock_system, &hooks, &entry->mux, &err);
	if (status != KC_OK)
	{
		MemoryContextDelete(context);
		kpg_check(status, &err);
	}
	kpg_wait_keep(entry->mux, CONNECTIONS_KEPT);
	dlist_push_head(&muxes, &entry->node);
	current_mux = entry;
	return entry->mux;
}

void
kpg_wait_keep(KcMux *mux, int connections)
{
	/* AcquireExternalFD() grants a third of the process's files. */
	kc_mux_keep(mux, Max(Min(connections, max_safe_fds / 6), 1));
}

static MuxEntry *
find_entry(const KcMux *mux)
{
	dlist_iter	iter;

	dlist_foreach(iter, &muxes)
	{
		MuxEntry   *entry = dlist_container(MuxEntry, node, iter.cur);

		if (entry->mux == mux)
			return entry;
	}
	return NULL;
}

static void
free_if_unused(MuxEntry *entry)
{
	if (!entry->broken || entry->holders > 0)
		return;
	dlist_delete(&entry->node);
	kc_mux_free(entry->mux);
	MemoryContextDelete(entry->context);
}

void
kpg_wait_hold(KcMux *mux)
{
	MuxEntry   *entry = find_entry(mux);

	Assert(entry != NULL);
	entry->holders++;
}

void
kpg_wait_drop(KcMux *mux)
{
	MuxEntry   *entry = find_entry(mux);

	Assert(entry != NULL && entry->holders > 0);
	entry->holders--;
	free_if_unused(entry);
}

void
kpg_wait_check(const KcMux *mux)
{
	MuxEntry   *entry = find_entry(mux);

	Assert(entry != NULL);
	if (entry->broken)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("connections to Kusto were lost"),
				 errdetail("An earlier failure inside this statement broke all connections of the process."),
				 errhint("Run the statement again.")));
}

static void
drive(void)
{
	MuxEntry   *entry = current_mux;
	KcError		err;
	KcStatus	status;

	if (entry == NULL)
		return;
	status = kc_mux_drive(entry->mux, &err);
	if (status == KC_OK)
		return;
	entry->broken = true;
	current_mux = NULL;
	free_if_unused(entry);
	kpg_check(status, &err);
}

static uint32
wait_event_id(KpgWaitEvent event)
{
	static const char *const names[] = {
		[KPG_WAIT_REQUEST] = "KustoRequest",
		[KPG_WAIT_UPLOAD] = "KustoUpload",
		[KPG_WAIT_PARALLEL] = "KustoParallel",
		[KPG_WAIT_OUTCOME] = "KustoOutcome",
		[KPG_WAIT_WORKER] = "KustoWorkerMain",
		[KPG_WAIT_LAUNCHER] = "KustoLauncherMain"
	};
	static uint32 ids[lengthof(names)];

	if (ids[event] == 0)
		ids[event] = kpg_compat_wait_event(names[event]);
	return ids[event];
}

static int
wait_once(int wanted, int64 timeout_ms, KpgWaitEvent event)
{
	pgsocket	fd = PGINVALID_SOCKET;
	int			happened;

	/* Whatever came in before the latch was last reset. */
	CHECK_FOR_INTERRUPTS();

	if (timeout_ms >= 0)
		wanted |= WL_TIMEOUT;
	if (current_mux != NULL)
	{
		wanted |= WL_SOCKET_READABLE;
		fd = kc_mux_fd(current_mux->mux);
	}
	happened = WaitLatchOrSocket(MyLatch, wanted, fd, (long) Min(timeout_ms, INT_MAX),
								 wait_event_id(event));
	if (happened & WL_LATCH_SET)
	{
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	if (happened & WL_SOCKET_READABLE)
		drive();
	return happened;
}

int
kpg_wait_once(int64 timeout_ms, KpgWaitEvent event)
{
	return wait_once(WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, timeout_ms, event);
}

int
kpg_wait_deaf(int64 timeout_ms, KpgWaitEvent event)
{
	return wait_once(WL_EXIT_ON_PM_DEATH, timeout_ms, event);
}

void
kpg_wait_pump(void)
{
	CHECK_FOR_INTERRUPTS();
	drive();
}

bool
kpg_wait_done(const bool *done, int64 timeout_ms, KpgWaitEvent event)
{
	instr_time	started;

	INSTR_TIME_SET_CURRENT(started);
	kpg_wait_pump();
	while (!*done)
	{
		int64		left_ms = -1;

		if (timeout_ms >= 0)
		{
			instr_time	elapsed;

			INSTR_TIME_SET_CURRENT(elapsed);
			INSTR_TIME_SUBTRACT(elapsed, started);
			left_ms = timeout_ms - (int64) INSTR_TIME_GET_MILLISEC(elapsed);
			if (left_ms <= 0)
				return false;
		}
		(void) kpg_wait_once(left_ms, event);
	}
	return true;
}

#ifdef KUSTO_FAULTS
void
kpg_wait_forever(bool interruptible)
{
	for (;;)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, -1, wait_event_id(KPG_WAIT_WORKER));
		ResetLatch(MyLatch);
		if (interruptible)
			CHECK_FOR_INTERRUPTS();
	}
}

void
kpg_wait_blindly(int64 ms)
{
	pg_usleep((long) ms * 1000);
}
#endif
