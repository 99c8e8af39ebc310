/*
 * worker_write.c
 *	  Writing what has become of operations, and giving them up.
 *
 * What was decided is written in one short transaction, for all of an
 * operation's blobs, and with others' if there are some; only after its commit
 * it is applied to memory.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "fault.h"
#include "report.h"
#include "worker_internal.h"

#define BUSY_PAUSE_MS		500 /* somebody has the tables locked */

void
kpg_worker_pause(WorkOperation *op, KpgUnitResult result)
{
	op->due_ms = kpg_worker_now_ms() + (result == KPG_UNIT_BUSY ? BUSY_PAUSE_MS : KPG_ERROR_PAUSE_MS);
}

typedef struct WorkWrite
{
	WorkOperation *op;
	const KpgFailure *failure;	/* of giving up, or to be noted */
	KpgState	settled;
	bool		lost;			/* somebody else has changed or deleted it */
} WorkWrite;

static bool
changes_rows(const WorkBlob *blob)
{
	const WorkChange *change = &blob->change;
	const KpgBlobNews *news = &change->news;

	return change->pending &&
		(change->to != blob->row->state || change->failure != NULL ||
		 news->status_table != NULL || news->error_code != NULL || news->details != NULL);
}

/* Inside a transaction, for kusto.workers. */
static void
note(const pg_uuid_t *id, const KpgFailure *failure)
{
	const char *message = failure->message;

	kpg_operations_note(id, failure);
	if (message == NULL)
		return;
	if (failure->utf8)
		message = kpg_report_text(message);
	kpg_worker_trouble(psprintf("operation %s: %s",
								DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id))),
								message));
}

/* False when the row is not what we think. */
static bool
write_blob(const KpgOpenOperation *row, const WorkBlob *blob)
{
	const WorkChange *change = &blob->change;
	int			ordinal = blob->row->ordinal;

	if (change->failure != NULL)
		note(&row->id, change->failure);
	if (change->to == blob->row->state)
	{
		kpg_operations_tell_blob(&row->id, ordinal, &change->news);
		return true;
	}
	if (change->by_post && blob->row->state == KPG_STATE_POSTING && change->to != KPG_STATE_POSTED &&
		!kpg_operations_move_blob(&row->id, ordinal, KPG_STATE_POSTED, NULL))
		return false;
	return kpg_operations_move_blob(&row->id, ordinal, change->to, &change->news);
}

static void
write_body(void *arg)
{
	WorkWrite  *write = arg;
	WorkOperation *op = write->op;

	write->lost = false;
	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (changes_rows(&op->blobs[i]) && !write_blob(op->row, &op->blobs[i]))
			write->lost = true;
	}
	write->settled = kpg_operations_settle(&op->row->id, false);
	KPG_FAULT(kpg_operations_is_final(write->settled) ? "outcome-written" : "post-written");
}

static void
apply(WorkOperation *op, WorkBlob *blob)
{
	const WorkChange *change = &blob->change;
	KpgOpenBlob *row = blob->row;

	if (blob->task != NULL && blob->polling)
		op->lane->npolling--;
	kpg_worker_task_ends(blob->task);
	blob->task = NULL;
	if (change->news.status_table != NULL)
		row->status_table = MemoryContextStrdup(op->context, change->news.status_table);
	if (change->to != row->state || (change->in_doubt && !blob->in_doubt))
		blob->since_ms = kpg_worker_now_ms();
	row->state = change->to;
	blob->doubted = change->in_doubt || (blob->doubted && !change->row_missing);
	blob->in_doubt = change->in_doubt;
	blob->status_row = change->status_row;
	blob->due_ms = change->due_ms;
	if (row->state != KPG_STATE_POSTING || blob->in_doubt)
		kpg_worker_post_release(op, &blob->held);
	memset(&blob->change, 0, sizeof(blob->change));
}

static const KpgFailure *
first_failure(const WorkOperation *op)
{
	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (op->blobs[i].change.pending && op->blobs[i].change.failure != NULL)
			return op->blobs[i].change.failure;
	}
	return NULL;
}

static void
drop_stale_session(WorkOperation *op)
{
	if (!op->session_stale || kpg_worker_has_tasks(op))
		return;
	kpg_session_release(op->session);
	op->session = NULL;
	op->session_stale = false;
}

/* Also when nothing is left that could bring about a change. */
static bool
needs_transaction(const WorkOperation *op)
{
	bool		open = false;

	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (changes_rows(&op->blobs[i]))
			return true;
		if (!kpg_operations_is_final(op->blobs[i].row->state))
			open = true;
	}
	return !open;
}

/* What was decided is written: apply it. */
static void
apply_changes(WorkOperation *op, const WorkWrite *write)
{
	const KpgFailure *failure = first_failure(op);

	if (kpg_operations_is_final(write->settled) && !write->lost)
		kpg_worker_log_end(op, write->settled, failure);
	else if (failure != NULL)
		kpg_worker_log_delay(op, failure);
	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (op->blobs[i].change.pending)
			apply(op, &op->blobs[i]);
	}
	drop_stale_session(op);
	MemoryContextReset(op->scratch);
	op->row->state = write->settled;
	if (write->lost || kpg_operations_is_final(write->settled))
		op->over = true;
}

/* Unless that has been done, together with others. */
void
kpg_worker_write(WorkOperation *op)
{
	WorkWrite	write = {.op = op, .settled = op->row->state};
	bool		written = op->written != NULL;
	bool		by_itself = !written && needs_transaction(op);

	if (written)
		write = *op->written;
	op->written = NULL;
	if (by_itself)
	{
		KpgUnitResult result =
			kpg_worker_unit("recording results of exports", write_body, &write, NULL);

		if (result != KPG_UNIT_DONE)
		{
			kpg_worker_pause(op, result);
			return;
		}
	}
	if (written || by_itself)
		KPG_FAULT(kpg_operations_is_final(write.settled) ? "outcome-recorded" : "post-recorded");
	apply_changes(op, &write);
}

/* Also when nothing is left that could bring about a change. */
bool
kpg_worker_must_write(const WorkOperation *op)
{
	bool		open = !op->command_done;

	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (op->blobs[i].change.pending)
			return true;
		if (!kpg_operations_is_final(op->blobs[i].row->state))
			open = true;
	}
	return !open;
}

static bool
is_to_be_written(const WorkOperation *op, int64 now_ms)
{
	return !op->over && op->due_ms <= now_ms && kpg_worker_must_write(op) && needs_transaction(op);
}

void
kpg_worker_write_group(int64 now_ms)
{
	WorkStep	steps[KPG_GROUP_MAX];
	WorkWrite  *writes = palloc0(sizeof(WorkWrite) * KPG_GROUP_MAX);
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_worker_operations)
	{
		WorkOperation *op = dlist_container(WorkOperation, node, iter.cur);

		if (n == KPG_GROUP_MAX || !op->active || !is_to_be_written(op, now_ms))
			continue;
		writes[n] = (WorkWrite) {.op = op, .settled = op->row->state};
		steps[n] = (WorkStep) {.op = op, .body = write_body, .arg = &writes[n]};
		n++;
	}
	kpg_worker_group("recording results of exports", steps, n);
	for (int i = 0; i < n; i++)
	{
		if (steps[i].done)
			steps[i].op->written = &writes[i];
	}
}

/* ---- giving up ---- */

static void
give_up_body(void *arg)
{
	WorkWrite  *write = arg;
	const KpgOpenOperation *row = write->op->row;
	KpgBlobNews news = {
		.utf8 = write->failure->utf8,
		.error_code = write->failure->error_code,
		.details = write->failure->message
	};

	if (row->state == KPG_STATE_STAGED && !kpg_operations_claim(&row->id))
	{
		write->lost = true;
		return;
	}
	note(&row->id, write->failure);
	for (int i = 0; i < row->nblobs; i++)
	{
		const WorkBlob *blob = &write->op->blobs[i];
		bool		sent = blob->row->state == KPG_STATE_POSTED || blob->in_doubt || blob->doubted;

		if (kpg_operations_is_final(blob->row->state))
			continue;
		(void) kpg_operations_move_blob(&row->id, blob->row->ordinal,
										sent ? KPG_STATE_UNKNOWN : KPG_STATE_FAILED, &news);
	}
	write->settled = kpg_operations_settle(&row->id, true);
	KPG_FAULT("giving-up");
}

void
kpg_worker_give_up(WorkOperation *op, const KpgFailure *failure)
{
	WorkWrite	write = {.op = op, .failure = failure, .settled = op->row->state};
	KpgUnitResult result;

	Assert(!kpg_worker_has_tasks(op));
	result = kpg_worker_unit("recording a failed export", give_up_body, &write, NULL);
	if (result != KPG_UNIT_DONE)
	{
		kpg_worker_pause(op, result);
		return;
	}
	if (!write.lost)
		kpg_worker_log_end(op, write.settled, failure);
	op->over = true;
}

static void
note_body(void *arg)
{
	WorkWrite  *write = arg;

	note(&write->op->row->id, write->failure);
}

void
kpg_worker_note(WorkOperation *op, const KpgFailure *failure)
{
	WorkWrite	write = {.op = op, .failure = failure};

	(void) kpg_worker_unit("recording a delayed export", note_body, &write, NULL);
	kpg_worker_log_delay(op, failure);
}

