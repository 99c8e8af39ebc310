/*
 * worker_purge.c
 *	  Retention: the worker deletes the records of finished operations, of all
 *	  owners, that are older than kusto_ingest.retention.
 *
 * A batch a transaction, between other work.  Once an hour, and before the
 * worker ends for want of work, so that one that never lives for an hour does
 * it, too; an idle worker is not kept busy by it.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "settings.h"
#include "worker_internal.h"

#define PERIOD_MS		(60 * 60 * 1000)
/* For a worker that tries to end again and again. */
#define AT_END_MS		(10 * 60 * 1000)
#define ERROR_PAUSE_MS	(60 * 1000)

static KpgPurge purge;
static int64 due_ms;			/* next one; 0: not yet determined */
static int64 done_ms;			/* when the last one ended; 0: there was none */

typedef struct Batch
{
	KpgPurge	purge;
	bool		more;
} Batch;

static void
purge_body(void *arg)
{
	Batch	   *batch = arg;
	TimestampTz before = GetCurrentTimestamp() - kpg_retention_s * USECS_PER_SEC;

	(void) kpg_operations_purge(&batch->purge, before, InvalidOid, &batch->more);
}

static void
purge_batch(int64 now_ms)
{
	Batch		batch = {.purge = purge};

	if (kpg_worker_unit("purging records of exports", purge_body, &batch, NULL) != KPG_UNIT_DONE)
	{
		due_ms = now_ms + ERROR_PAUSE_MS;
		return;
	}
	if (batch.more)
	{
		purge = batch.purge;
		due_ms = now_ms;
		return;
	}
	memset(&purge, 0, sizeof(purge));
	due_ms = now_ms + PERIOD_MS;
	done_ms = now_ms;
}

int64
kpg_worker_purge(int64 now_ms)
{
	if (kpg_retention_s < 0)
		return KPG_WORK_NEVER;
	if (due_ms == 0)
		due_ms = now_ms + PERIOD_MS;
	if (due_ms <= now_ms)
		purge_batch(now_ms);
	return due_ms;
}

bool
kpg_worker_purge_at_end(int64 now_ms)
{
	if (kpg_retention_s < 0 || (done_ms != 0 && now_ms < done_ms + AT_END_MS))
		return true;
	purge_batch(now_ms);
	/* Also when it failed: nobody waits for it. */
	return due_ms > now_ms;
}
