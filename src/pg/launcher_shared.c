/*
 * launcher_shared.c
 *	  The words that processes leave for the launcher, in shared memory.
 *
 * Nothing depends on them: what is lost in a crash, the launcher finds again
 * when it starts and looks at all databases.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "storage/spin.h"

#include "compat.h"
#include "launcher_internal.h"

typedef struct LauncherShared
{
	slock_t		mutex;			/* guards all */
	Latch	   *latch;			/* the launcher's, in its PGPROC; NULL: none */
	Oid			expected;		/* whose worker is to settle; InvalidOid: it has */
	bool		overflown;		/* more were asked for than fit */
	int			nasked;
	Oid			asked[KPG_LAUNCHER_ASKED_MAX];
} LauncherShared;

static LauncherShared *shared;	/* NULL: the library was not preloaded */
static kpg_compat_shmem_request_hook previous_request;
static shmem_startup_hook_type previous_startup;

static void
request_shmem(void)
{
	if (previous_request != NULL)
		previous_request();
	RequestAddinShmemSpace(MAXALIGN(sizeof(LauncherShared)));
}

static void
startup_shmem(void)
{
	bool		found;

	if (previous_startup != NULL)
		previous_startup();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared = ShmemInitStruct("kusto_ingest launcher", sizeof(LauncherShared), &found);
	if (!found)
	{
		memset(shared, 0, sizeof(*shared));
		SpinLockInit(&shared->mutex);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
kpg_launcher_share(void)
{
	previous_startup = shmem_startup_hook;
	shmem_startup_hook = startup_shmem;
	kpg_compat_hook_shmem_request(&previous_request, request_shmem);
}

static void
set_latch(Latch *latch)
{
	SpinLockAcquire(&shared->mutex);
	shared->latch = latch;
	SpinLockRelease(&shared->mutex);
}

static void
absent(int code, Datum arg)
{
	set_latch(NULL);
}

void
kpg_launcher_present(void)
{
	before_shmem_exit(absent, (Datum) 0);
	set_latch(&MyProc->procLatch);
}

void
kpg_launcher_expect(Oid database)
{
	SpinLockAcquire(&shared->mutex);
	shared->expected = database;
	SpinLockRelease(&shared->mutex);
}

bool
kpg_launcher_has_settled(void)
{
	Oid			expected;

	SpinLockAcquire(&shared->mutex);
	expected = shared->expected;
	SpinLockRelease(&shared->mutex);
	return !OidIsValid(expected);
}

void
kpg_launcher_settled(void)
{
	Latch	   *latch = NULL;

	if (shared == NULL)
		return;
	SpinLockAcquire(&shared->mutex);
	if (shared->expected == MyDatabaseId)
	{
		shared->expected = InvalidOid;
		latch = shared->latch;
	}
	SpinLockRelease(&shared->mutex);
	if (latch != NULL)
		SetLatch(latch);
}

void
kpg_launcher_ask(Oid database)
{
	Latch	   *latch;
	int			i;

	if (shared == NULL)
		return;
	SpinLockAcquire(&shared->mutex);
	for (i = 0; i < shared->nasked && shared->asked[i] != database; i++)
		;
	if (i == KPG_LAUNCHER_ASKED_MAX)
		shared->overflown = true;
	else if (i == shared->nasked)
		shared->asked[shared->nasked++] = database;
	latch = shared->latch;
	SpinLockRelease(&shared->mutex);
	/* A PGPROC is never freed: at worst this wakes another process for nothing. */
	if (latch != NULL)
		SetLatch(latch);
}

int
kpg_launcher_take(Oid *databases)
{
	int			n;

	SpinLockAcquire(&shared->mutex);
	n = shared->overflown ? -1 : shared->nasked;
	memcpy(databases, shared->asked, sizeof(Oid) * (Size) shared->nasked);
	shared->nasked = 0;
	shared->overflown = false;
	SpinLockRelease(&shared->mutex);
	return n;
}
