/*
 * shared.c
 *	  The core's cache table in shared memory, behind one lock.
 *
 * The core does the thinking (../core/cache.h); here are memory, lock, and the
 * end of a process that was fetching for the others.  While the lock is held
 * nothing allocates and nothing raises.  What is in the table is secret, as is
 * what the scratch holds for a moment.  After a crash PostgreSQL makes the
 * memory anew, and the hook begins with an empty table.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "compat.h"
#include "shared.h"

#define SHMEM_NAME "kusto_ingest cache"
#define LOCK_NAME "kusto_ingest"
/* One client fetches one value of a kind; a process rarely has several under way. */
#define MAX_LEASES 16

typedef struct Lease
{
	uint64		number;			/* 0: unused */
	KcCacheKind kind;
	KcCacheKey	key;
} Lease;

static KcCacheTable *table;
static LWLock *lock;
static shmem_startup_hook_type previous_startup;
static kpg_compat_shmem_request_hook previous_request;

/* What to release when this process ends. */
static Lease leases[MAX_LEASES];
static bool exit_callback_set;

/* A value between the lock and its reader. */
static char scratch[KC_CACHE_MAX_VALUE];

/* Since the last kpg_shared_tell(). */
static struct
{
	int			taken[KC_CACHE_KINDS];
	int			given[KC_CACHE_KINDS];
	int			awaited[KC_CACHE_KINDS];	/* another process was fetching */
	int			alone[KC_CACHE_KINDS];	/* and we went our own way */
}			told;

/* ---- leases of this process ---- */

static int64
now_ms(void)
{
	return kc_clock_system.monotonic_ms(kc_clock_system.arg);
}

static void
remember_lease(const KcCacheKey *key, KcCacheKind kind, uint64 number)
{
	for (int i = 0; i < MAX_LEASES; i++)
	{
		if (leases[i].number != 0)
			continue;
		leases[i].number = number;
		leases[i].kind = kind;
		leases[i].key = *key;
		return;
	}

	/* One more than is remembered runs out by itself. */
}

static void
forget_lease(uint64 number)
{
	for (int i = 0; number != 0 && i < MAX_LEASES; i++)
	{
		if (leases[i].number == number)
			leases[i].number = 0;
	}
}

/* The others need not wait until they run out. */
static void
release_all(int code, Datum arg)
{
	for (int i = 0; i < MAX_LEASES; i++)
	{
		if (leases[i].number == 0)
			continue;
		LWLockAcquire(lock, LW_EXCLUSIVE);
		kc_cache_table_release(table, &leases[i].key, leases[i].kind, leases[i].number, false, now_ms());
		LWLockRelease(lock);
		leases[i].number = 0;
	}
}

/* ---- the calls ---- */

static KcCacheTurn
cache_ask(void *arg, const KcCacheKey *key, const KcCacheQuestion *question, KcCacheValue *value,
		  uint64_t *lease)
{
	KcCacheTurn turn;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	turn = kc_cache_table_ask(table, key, question, value, lease);
	if (turn == KC_CACHE_FOUND)
	{
		Assert(value->len <= sizeof(scratch));
		memcpy(scratch, value->data, value->len);
		value->data = scratch;
	}
	LWLockRelease(lock);
	if (turn == KC_CACHE_MINE)
		remember_lease(key, question->kind, *lease);
	told.taken[question->kind] += turn == KC_CACHE_FOUND;
	told.awaited[question->kind] += turn == KC_CACHE_OTHERS && question->since_ms == question->now_ms;
	told.alone[question->kind] += turn == KC_CACHE_ALONE;
	return turn;
}

static void
cache_done(void *arg, size_t len)
{
	kc_wipe(scratch, Min(len, sizeof(scratch)));
}

static uint64_t
cache_put(void *arg, const KcCacheKey *key, KcCacheKind kind, const KcCacheValue *value,
		  uint64_t lease, int64_t at_ms)
{
	uint64		version;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	version = kc_cache_table_put(table, key, kind, value, lease, at_ms);
	LWLockRelease(lock);
	forget_lease(lease);
	told.given[kind] += version != 0;
	return version;
}

static bool
cache_prolong(void *arg, const KcCacheKey *key, KcCacheKind kind, uint64_t lease, int64_t at_ms)
{
	bool		ours;

	LWLockAcquire(lock, LW_EXCLUSIVE);
	ours = kc_cache_table_prolong(table, key, kind, lease, at_ms);
	LWLockRelease(lock);
	return ours;
}

static void
cache_release(void *arg, const KcCacheKey *key, KcCacheKind kind, uint64_t lease, bool failed,
			  int64_t at_ms)
{
	LWLockAcquire(lock, LW_EXCLUSIVE);
	kc_cache_table_release(table, key, kind, lease, failed, at_ms);
	LWLockRelease(lock);
	forget_lease(lease);
}

static const KcCache cache = {
	.ask = cache_ask,
	.done = cache_done,
	.put = cache_put,
	.prolong = cache_prolong,
	.release = cache_release
};

const KcCache *
kpg_shared_cache(void)
{
	if (table == NULL)
		return NULL;
	if (!exit_callback_set)
	{
		before_shmem_exit(release_all, (Datum) 0);
		exit_callback_set = true;
	}
	return &cache;
}

void
kpg_shared_tell(void)
{
	static const char *const names[] = {
		[KC_CACHE_TOKEN] = "access tokens",
		[KC_CACHE_RESOURCES] = "ingestion resources"
	};

	for (int kind = 0; kind < KC_CACHE_KINDS; kind++)
	{
		if (told.taken[kind] + told.given[kind] + told.awaited[kind] + told.alone[kind] > 0)
			ereport(DEBUG1,
					(errmsg_internal("kusto_ingest: shared cache of %s: %d taken, %d given, %d awaited, %d alone",
									 names[kind], told.taken[kind], told.given[kind],
									 told.awaited[kind], told.alone[kind])));
	}
	memset(&told, 0, sizeof(told));
}

/* ---- memory ---- */

static void
request_memory(void)
{
	if (previous_request != NULL)
		previous_request();
	RequestAddinShmemSpace(MAXALIGN(kc_cache_table_size()));
	RequestNamedLWLockTranche(LOCK_NAME, 1);
}

static void
attach(void)
{
	void	   *memory;
	bool		found;

	if (previous_startup != NULL)
		previous_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	memory = ShmemInitStruct(SHMEM_NAME, kc_cache_table_size(), &found);
	lock = &GetNamedLWLockTranche(LOCK_NAME)->lock;
	table = found ? memory : kc_cache_table_init(memory);
	LWLockRelease(AddinShmemInitLock);
}

void
kpg_shared_init(void)
{
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	kpg_compat_hook_shmem_request(&previous_request, request_memory);
	previous_startup = shmem_startup_hook;
	shmem_startup_hook = attach;
}
