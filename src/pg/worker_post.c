/*
 * worker_post.c
 *	  Telling Kusto of a blob: a row in a status table, a message in a queue.
 *
 * The attempt is on record before the network is touched.  Whoever finds a
 * blob in state posting after a crash, or loses the answer of the queue, does
 * not know whether it was posted; such a blob is in doubt and worker_poll.c
 * looks for signs of it before it is posted again, with the same source id.
 * That is at-least-once: a message can lie in the queue for longer than
 * kusto_ingest.repost_after before the service says anything of it.  A blob
 * that is posted exactly once carries a tag by which Kusto skips the second
 * message; of the others the second is not sent when the blob is gone, since
 * the service deletes what it has ingested.
 */
#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/memutils.h"

#include "fault.h"
#include "report.h"
#include "worker_internal.h"

/* Microseconds from 1970, Kusto's and Unix's epoch, to 2000, PostgreSQL's. */
#define EPOCH_OFFSET_US \
	((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

bool
kpg_worker_post_room(const WorkOperation *op, bool held)
{
	return kpg_worker_may_begin() && (held || op->lane->nposting < KPG_LANE_POSTS_MAX);
}

void
kpg_worker_post_hold(WorkOperation *op, bool *held)
{
	if (!*held)
		op->lane->nposting++;
	*held = true;
}

void
kpg_worker_post_release(WorkOperation *op, bool *held)
{
	if (*held)
		op->lane->nposting--;
	*held = false;
}

static bool
to_be_posted(const WorkBlob *blob)
{
	if (blob->task != NULL || blob->change.pending || blob->in_doubt)
		return false;
	return blob->row->state == KPG_STATE_STAGED || blob->row->state == KPG_STATE_POSTING;
}

int64
kpg_worker_post_due(const WorkOperation *op)
{
	int64		due = KPG_WORK_NEVER;

	for (int i = 0; i < op->row->nblobs; i++)
	{
		const WorkBlob *blob = &op->blobs[i];

		if (to_be_posted(blob) && kpg_worker_post_room(op, blob->held))
			due = Min(due, blob->due_ms);
	}
	return due;
}

/* ---- beginning ---- */

typedef struct WorkAttempt
{
	WorkOperation *op;
	WorkBlob  **blobs;
	bool	   *newly_held;		/* parallel to blobs */
	int			nblobs;
	bool		lost;			/* somebody else has it */
} WorkAttempt;

static void
attempt_body(void *arg)
{
	WorkAttempt *attempt = arg;
	const KpgOpenOperation *row = attempt->op->row;

	attempt->lost = false;
	if (row->state == KPG_STATE_STAGED && !kpg_operations_claim(&row->id))
	{
		attempt->lost = true;
		return;
	}
	for (int i = 0; i < attempt->nblobs; i++)
	{
		if (!kpg_operations_move_blob(&row->id, attempt->blobs[i]->row->ordinal,
									  KPG_STATE_POSTING, NULL))
			attempt->lost = true;
	}
	KPG_FAULT("claim-written");
}

static const KcSlice *
slices_of(char *const *texts, int n)
{
	KcSlice    *slices = palloc(sizeof(KcSlice) * (Size) Max(n, 1));

	for (int i = 0; i < n; i++)
		slices[i] = kc_slice(texts[i]);
	return slices;
}

static void
fill_request(const KpgOpenOperation *row, const WorkBlob *blob, KcPostRequest *request)
{
	KcIngestProperties *properties = &request->properties;

	memset(request, 0, sizeof(*request));
	properties->database = kc_slice(row->database_utf8);
	properties->table = kc_slice(row->table_utf8);
	properties->mapping = kc_slice(row->mapping);
	properties->tags = slices_of(row->tags, row->ntags);
	properties->ntags = row->ntags;
	properties->if_not_exists = slices_of(row->if_not_exists, row->nif_not_exists);
	properties->nif_not_exists = row->nif_not_exists;
	properties->has_creation_time = row->has_creation_time;
	if (row->has_creation_time)
		properties->creation_time_us = row->creation_time + EPOCH_OFFSET_US;
	properties->flush_immediately = row->flush_immediately;
	properties->exactly_once = blob->row->exactly_once;
	properties->report = KC_REPORT_ALL;
	request->source_id = blob->row->source_id;
	request->blob_url = kc_slice(blob->row->url);
	request->raw_size = blob->row->raw_bytes;
	request->status_table = kc_slice(blob->row->status_table);
	request->status_row_exists = blob->status_row;
	request->check_blob = blob->doubted || blob->retried;
	request->renew_row = blob->retried;
}

/* A post that failed; perhaps_sent says that it may have had its effect. */
static void
decide_failure(WorkOperation *op, WorkBlob *blob, const KcError *err, bool perhaps_sent)
{
	WorkChange *change = &blob->change;

	change->failure = kpg_worker_failure(op, err);
	op->session_stale = true;
	if (perhaps_sent)
	{
		change->to = KPG_STATE_POSTING;
		change->in_doubt = true;
		change->due_ms = kpg_worker_poll_first();
		kpg_worker_retry_begin(&blob->retry);
		return;
	}
	if (kpg_worker_retry(&blob->retry, err, &change->due_ms))
	{
		change->to = KPG_STATE_POSTING;
		return;
	}
	/* An earlier post that nobody answered may yet have landed. */
	change->to = blob->doubted ? KPG_STATE_UNKNOWN : KPG_STATE_FAILED;
	change->news.utf8 = change->failure->utf8;
	change->news.error_code = change->failure->error_code;
	change->news.details = change->failure->message;
	change->news.activity_id = change->failure->activity_id;
}

/*
 * The blob is gone, and nothing was sent.  The service deletes what it has
 * ingested, unless it was told to retain it, so the post that was in doubt was
 * received, and its outcome can be asked for: the row is as it was.  Otherwise
 * the blob has expired.
 */
static void
decide_gone(WorkOperation *op, WorkBlob *blob, const KcError *err)
{
	WorkChange *change = &blob->change;

	if (blob->doubted && !blob->row->exactly_once)
	{
		change->to = KPG_STATE_POSTED;
		change->due_ms = kpg_worker_poll_first();
		return;
	}
	decide_failure(op, blob, err, false);
	change->failure->message = MemoryContextStrdup(op->scratch, "the blob of the export has expired");
	change->failure->details =
		MemoryContextStrdup(op->scratch, "Storage has it no more: Kusto deletes a blob that it has ingested, "
							"and any other after some days.");
	change->failure->hint =
		MemoryContextStrdup(op->scratch, "See whether the rows are in the Kusto table; "
							"if they are not, export them again.");
	change->news.details = change->failure->message;
}

static void
start_post(WorkOperation *op, WorkBlob *blob)
{
	MemoryContext old = MemoryContextSwitchTo(op->scratch);
	KcPostRequest request;
	KcPostTask *task;
	KcError		err;

	fill_request(op->row, blob, &request);
	if (kc_kusto_post_start(op->session->client, &request, &task, &err) == KC_OK)
	{
		blob->task = &task->task;
		blob->polling = false;
		kpg_worker_task_begins();
	}
	else
	{
		blob->change.status_row = blob->status_row;
		decide_failure(op, blob, &err, false);
		blob->change.pending = true;
	}
	MemoryContextSwitchTo(old);
}

void
kpg_worker_post_gather(WorkOperation *op, int64 now_ms)
{
	WorkAttempt *attempt = MemoryContextAllocZero(op->scratch, sizeof(WorkAttempt));

	attempt->op = op;
	attempt->blobs = MemoryContextAlloc(op->scratch, sizeof(WorkBlob *) * (Size) op->row->nblobs);
	attempt->newly_held = MemoryContextAlloc(op->scratch, sizeof(bool) * (Size) op->row->nblobs);
	for (int i = 0; i < op->row->nblobs; i++)
	{
		WorkBlob   *blob = &op->blobs[i];

		if (!to_be_posted(blob) || blob->due_ms > now_ms)
			continue;
		if (!kpg_worker_post_room(op, blob->held))
			break;
		/* Held before it is claimed, so that the lane's share bounds all attempts. */
		attempt->newly_held[attempt->nblobs] = !blob->held;
		kpg_worker_post_hold(op, &blob->held);
		attempt->blobs[attempt->nblobs++] = blob;
		kpg_worker_expect_tasks(1);
	}
	if (attempt->nblobs > 0)
		op->attempt = attempt;
}

WorkStep
kpg_worker_post_claim(WorkOperation *op)
{
	return (WorkStep) {.op = op, .body = attempt_body, .arg = op->attempt};
}

/* What could not be claimed takes no place from others. */
void
kpg_worker_post_drop(WorkOperation *op)
{
	const WorkAttempt *attempt = op->attempt;

	op->attempt = NULL;
	if (attempt != NULL)
		kpg_worker_expect_tasks(-attempt->nblobs);
	for (int i = 0; attempt != NULL && i < attempt->nblobs; i++)
	{
		if (attempt->newly_held[i])
			kpg_worker_post_release(op, &attempt->blobs[i]->held);
	}
}

void
kpg_worker_post_start(WorkOperation *op)
{
	const WorkAttempt *attempt = op->attempt;

	op->attempt = NULL;
	kpg_worker_expect_tasks(-attempt->nblobs);
	op->over = attempt->lost;
	if (op->over)
		return;
	KPG_FAULT("claimed");
	if (op->row->state == KPG_STATE_STAGED)
		op->lane->nwaiting--;
	op->row->state = KPG_STATE_POSTING;
	for (int i = 0; i < attempt->nblobs; i++)
	{
		attempt->blobs[i]->row->state = KPG_STATE_POSTING;
		attempt->blobs[i]->row->post_attempts++;
		start_post(op, attempt->blobs[i]);
	}
}

/* ---- the end ---- */

void
kpg_worker_post_decide(WorkOperation *op, WorkBlob *blob)
{
	const KcPostTask *task = (const KcPostTask *) blob->task;
	const KcError *err = &task->task.error;
	WorkChange *change = &blob->change;

	change->status_row = blob->status_row || task->status_row_written;
	if (task->status_table != NULL &&
		(blob->row->status_table == NULL || strcmp(blob->row->status_table, task->status_table) != 0))
		change->news.status_table = MemoryContextStrdup(op->scratch, task->status_table);
	if (task->blob_gone)
	{
		decide_gone(op, blob, err);
		return;
	}
	if (err->status != KC_OK)
	{
		decide_failure(op, blob, err, err->after_send && task->message_sent);
		return;
	}
	KPG_FAULT("post-known");
	change->to = KPG_STATE_POSTED;
	change->due_ms = kpg_worker_poll_first();
}
