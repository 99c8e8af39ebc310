/*
 * worker_poll.c
 *	  Asking the service's status table what became of a blob.
 *
 * A status table bears few requests, and what was posted together mostly ends
 * together.  So a blob is asked for less often the older it is; of the blobs
 * of one operation only the first, and the others when that has ended; of the
 * operations to one table mainly the oldest, and the others when that has.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/memutils.h"

#include "../core/text.h"
#include "fault.h"
#include "report.h"
#include "settings.h"
#include "worker_internal.h"

#define FIRST_MS		200
#define CAP_MS			30000
#define RETRY_AFTER_MAX_MS	(10 * 60 * 1000)	/* whatever the service asks for */
#define FOLLOWER_CAP_MS 300000
#define FOLLOWERS		16		/* with more of them, each is asked for less often */
#define FRESH_MS		2000	/* what was known so lately is not asked for again */
#define WINDOW_MAX		8

/* By up to a fifth, lest what was posted together be asked for together. */
static int64
jittered(int64 ms)
{
	uint64		random = kc_clock_system.random(kc_clock_system.arg);

	return ms - ms / 5 + (int64) (random % (uint64) (ms * 2 / 5 + 1));
}

int64
kpg_worker_poll_first(void)
{
	return kpg_worker_now_ms() + jittered(FIRST_MS);
}

static bool
to_be_polled(const WorkBlob *blob)
{
	return blob->in_doubt || blob->row->state == KPG_STATE_POSTED;
}

static bool
goes_with(const WorkOperation *op, const WorkOperation *other)
{
	return other->lane == op->lane &&
		strcmp(other->row->table_name, op->row->table_name) == 0 &&
		strcmp(other->row->database, op->row->database) == 0;
}

/* How many posted operations to its table were here before it? */
static int
operations_before(const WorkOperation *op)
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_worker_operations)
	{
		const WorkOperation *other = dlist_container(WorkOperation, node, iter.cur);

		if (other == op)
			break;
		if (other->row->state == KPG_STATE_POSTED && goes_with(op, other))
			n++;
	}
	return n;
}

/* Half of its age: that it has ended is known at most half as late again. */
static int64
own_interval(const WorkBlob *blob, int64 now_ms)
{
	return Min(Max((now_ms - blob->since_ms) / 2, FIRST_MS), CAP_MS);
}

static int64
next_poll(const WorkOperation *op, const WorkBlob *blob)
{
	int64		now_ms = kpg_worker_now_ms();
	int64		interval = own_interval(blob, now_ms);
	int			before = operations_before(op);

	if (before > 0)
		interval = Min(interval * (1 + before / FOLLOWERS), FOLLOWER_CAP_MS);
	return now_ms + jittered(interval);
}

/*
 * One operation to a table has ended: probably others have, too.  What was
 * asked for a moment ago is not asked again, except that the one which is now
 * the oldest is not left with the long interval of a follower: it hastens the
 * others in its turn.
 */
static void
hasten_others(const WorkOperation *op)
{
	int64		now_ms = kpg_worker_now_ms();
	bool		oldest = true;
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_worker_operations)
	{
		WorkOperation *other = dlist_container(WorkOperation, node, iter.cur);
		bool		leads = false;

		if (other == op || !goes_with(op, other))
			continue;
		for (int i = 0; i < other->row->nblobs; i++)
		{
			WorkBlob   *blob = &other->blobs[i];
			int64		fresh_ms = (now_ms - blob->since_ms) / 8;

			if (!to_be_polled(blob))
				continue;
			leads = true;
			fresh_ms = Max(fresh_ms, FRESH_MS);
			if (now_ms - blob->polled_ms >= fresh_ms)
				blob->due_ms = Min(blob->due_ms, now_ms);
			else if (oldest)
				blob->due_ms = Min(blob->due_ms, now_ms + jittered(own_interval(blob, now_ms)));
		}
		oldest = oldest && !leads;
	}
}

/*
 * The next blob from *i on that may be asked for now: those in doubt all, of
 * the posted ones only as many as the window lets; *window counts down.
 */
static WorkBlob *
next_candidate(const WorkOperation *op, int *i, int *window)
{
	while (*i < op->row->nblobs)
	{
		WorkBlob   *blob = &op->blobs[(*i)++];

		if (!to_be_polled(blob))
			continue;
		if (!blob->in_doubt && (*window)-- <= 0)
			continue;
		if (blob->task == NULL && !blob->change.pending)
			return blob;
	}
	return NULL;
}

static bool
has_room(const WorkOperation *op)
{
	return kpg_worker_may_begin() && op->lane->npolling < KPG_LANE_POLLS_MAX;
}

int64
kpg_worker_poll_due(const WorkOperation *op)
{
	int64		due = KPG_WORK_NEVER;
	int			i = 0;
	int			window = op->poll_window;
	const WorkBlob *blob;

	if (!has_room(op))
		return due;
	while ((blob = next_candidate(op, &i, &window)) != NULL)
		due = Min(due, blob->due_ms);
	return due;
}

/* ---- what is said of a blob ---- */

static KpgFailure *
blob_failure(WorkOperation *op, const WorkBlob *blob, const char *what)
{
	KpgFailure *failure = palloc0(sizeof(KpgFailure));

	failure->message = op->row->total_blobs == 1 ? pstrdup(what)
		: psprintf("%s (blob %d of %d)", what, blob->row->ordinal, op->row->total_blobs);
	return failure;
}

static void
decide_unknown(WorkOperation *op, WorkBlob *blob, const char *what)
{
	WorkChange *change = &blob->change;
	KpgFailure *failure = blob_failure(op, blob, what);
	char		source_id[KC_UUID_TEXT_LEN + 1];

	kc_uuid_text(&blob->row->source_id, source_id);
	failure->error_code = pstrdup(unpack_sql_state(KPG_ERRCODE_INGESTION_UNKNOWN));
	failure->hint = psprintf("Ask Kusto: .show ingestion failures | where IngestionSourcePath has \"%s\", "
							 "or look whether the rows are in the table.",
							 strrchr(blob->row->url, '/') == NULL ? source_id
							 : strrchr(blob->row->url, '/') + 1);
	change->to = KPG_STATE_UNKNOWN;
	change->failure = failure;
	change->news.error_code = failure->error_code;
	change->news.details = failure->message;
}

/* A command that grants the missing role says more than any sentence. */
static char *
hint_for(const WorkOperation *op, const KcStatusTask *task)
{
	const char *principal = op->session != NULL ? op->session->principal : NULL;
	bool		grant = task->advice == KC_ADVICE_GRANT_INGESTOR ||
		task->advice == KC_ADVICE_GRANT_DATABASE_USER ||
		task->advice == KC_ADVICE_GRANT_DATABASE_ADMIN;
	const char *by_code = kpg_report_ingestion_hint(task->error_code);
	KcError		err;

	if (by_code != NULL && !grant)
		return pstrdup(by_code);
	if (task->advice != KC_ADVICE_NONE)
	{
		(void) kc_error_set(&err, KC_ERR_REFUSED, "ingesting a blob", "failed");
		err.advice = task->advice;
		return kpg_report_hint_for(&err, op->row->database, principal);
	}
	return task->transient ? pstrdup("Kusto calls this failure transient: kusto_retry() posts the same data again.")
		: NULL;
}

/*
 * One report of two on a blob, which may hide the other: it was posted more
 * than once, and is deleted when the data of one message are in; or there are
 * two messages in one batch, which uses one.
 */
static bool
is_echo(const WorkBlob *blob, const KcStatusTask *task)
{
	if (strcmp(task->error_code, "BlobAlreadyReceived_BlobAlreadyFoundInBatch") == 0)
		return true;
	return blob->row->post_attempts > 1 && !blob->row->exactly_once &&
		strcmp(task->error_code, "Download_SourceNotFound") == 0;
}

/*
 * The row has what became of an earlier attempt of the operation, as far as is
 * known: only a post of this process has written it anew.
 */
static bool
is_outdated(const WorkBlob *blob)
{
	return blob->in_doubt && blob->retried && !blob->status_row;
}

/* Kusto's last word. */
static void
decide_end(WorkOperation *op, WorkBlob *blob, const KcStatusTask *task, KpgState to)
{
	WorkChange *change = &blob->change;
	KpgFailure *failure;

	change->to = to;
	change->by_post = true;
	change->news.utf8 = true;
	if (task->operation_id[0] != '\0')
		change->news.kusto_operation_id = pstrdup(task->operation_id);
	if (task->activity_id[0] != '\0')
		change->news.activity_id = pstrdup(task->activity_id);
	if (to != KPG_STATE_FAILED && to != KPG_STATE_PARTIALLY_SUCCEEDED)
		return;

	failure = blob_failure(op, blob, to == KPG_STATE_FAILED ? "Kusto could not ingest the data"
						   : "Kusto ingested a part of the data only");
	failure->utf8 = true;
	if (task->error_code[0] != '\0')
		failure->error_code = pstrdup(task->error_code);
	if (task->details[0] != '\0')
		failure->details = pstrdup(task->details);
	failure->hint = hint_for(op, task);
	failure->activity_id = change->news.activity_id;
	change->failure = failure;
	change->news.error_code = failure->error_code;
	change->news.details = failure->details;
	if (task->failure_status[0] != '\0')
		change->news.failure_status = pstrdup(task->failure_status);
}

/*
 * Found in the table by the tag that only our own messages for this blob carry:
 * an earlier one has landed.  With keys of the user's it may have been these.
 */
static KpgState
end_of_skipped(const WorkOperation *op, const WorkBlob *blob, const KcStatusTask *task)
{
	return task->tag_exists && blob->row->exactly_once && op->row->nif_not_exists == 0
		? KPG_STATE_SUCCEEDED : KPG_STATE_SKIPPED;
}

static bool
is_time_to_repost(const WorkBlob *blob)
{
	return kpg_worker_now_ms() - blob->since_ms >= (int64) kpg_repost_after_s * 1000;
}

/*
 * In doubt, and the status table knows nothing that would end the doubt.  The
 * row is written before the message: where there is no row, nothing was posted,
 * except by an earlier attempt of the operation, whose row may be no more.
 */
static void
decide_doubt(WorkOperation *op, WorkBlob *blob, bool row_missing)
{
	WorkChange *change = &blob->change;

	if (!row_missing && !is_time_to_repost(blob))
		return;
	change->in_doubt = false;
	if (!row_missing && kpg_worker_retry_is_over(&blob->retry))
	{
		decide_unknown(op, blob, "Kusto may have got the message, and neither its queue nor its status table says so");
		return;
	}
	change->row_missing = row_missing && !kpg_worker_was_unknown(blob->row);
	change->status_row = !row_missing && (blob->status_row || !blob->retried);
	change->due_ms = 0;
}

static void
decide_pending(WorkOperation *op, WorkBlob *blob, bool row_missing)
{
	WorkChange *change = &blob->change;
	int64		age_ms = kpg_worker_now_ms() - blob->since_ms;

	change->to = blob->row->state;
	change->in_doubt = blob->in_doubt;
	change->due_ms = next_poll(op, blob);
	if (blob->in_doubt)
		decide_doubt(op, blob, row_missing);
	else if (age_ms >= (int64) kpg_status_timeout_s * 1000)
		decide_unknown(op, blob, "Kusto has not reported on the data in time");
}

/*
 * The report on the message that was used may yet come, also instead of this
 * one.  A blob that is gone has been ingested, and nothing more is said.
 */
static void
decide_echo(WorkOperation *op, WorkBlob *blob, const KcStatusTask *task)
{
	bool		gone = strcmp(task->error_code, "Download_SourceNotFound") == 0;

	if (!gone && !is_time_to_repost(blob))
		decide_pending(op, blob, false);
	else
		decide_unknown(op, blob, gone
					   ? "Kusto did not find the blob of a repeated message: an earlier one has probably been ingested"
					   : "Kusto got two messages for the blob, and reports on the one that it did not use");
}

static void
decide_failed(WorkOperation *op, WorkBlob *blob, const KcStatusTask *task)
{
	if (is_outdated(blob))
		decide_pending(op, blob, false);
	else if (is_echo(blob, task))
		decide_echo(op, blob, task);
	else
		decide_end(op, blob, task, KPG_STATE_FAILED);
}

/* That it is not known is because the table could not be asked. */
static void
add_cause(WorkOperation *op, WorkChange *change, const KcError *err)
{
	const KpgFailure *cause = kpg_worker_failure(op, err);
	KpgFailure *failure = change->failure;

	failure->utf8 = cause->utf8;
	failure->details = cause->details == NULL ? cause->message
		: psprintf("%s: %s", cause->message, cause->details);
	failure->activity_id = cause->activity_id;
}

/*
 * The table could not be asked: a matter of the table and not of the data, so
 * whatever the error, only time ends it.
 */
static void
decide_error(WorkOperation *op, WorkBlob *blob, const KcError *err)
{
	WorkChange *change = &blob->change;
	int			trouble = (int) err->status * 1000 + err->http_status;

	op->session_stale = true;
	decide_pending(op, blob, false);
	change->status_row = blob->status_row;
	if (change->to == KPG_STATE_UNKNOWN)
		add_cause(op, change, err);
	change->due_ms = Max(change->due_ms, kpg_worker_now_ms() + Min(err->retry_after_ms, RETRY_AFTER_MAX_MS));
	if (change->failure == NULL && blob->trouble != trouble)
		change->failure = kpg_worker_failure(op, err);
	blob->trouble = trouble;
}

static void
decide(WorkOperation *op, WorkBlob *blob, const KcStatusTask *task)
{
	if (task->task.error.status != KC_OK)
	{
		decide_error(op, blob, &task->task.error);
		return;
	}
	switch (task->outcome)
	{
		case KC_OUTCOME_SUCCEEDED:
			decide_end(op, blob, task, KPG_STATE_SUCCEEDED);
			break;
		case KC_OUTCOME_PARTIALLY_SUCCEEDED:
			decide_end(op, blob, task, KPG_STATE_PARTIALLY_SUCCEEDED);
			break;
		case KC_OUTCOME_FAILED:
			decide_failed(op, blob, task);
			break;
		case KC_OUTCOME_SKIPPED:
			decide_end(op, blob, task, end_of_skipped(op, blob, task));
			break;
		case KC_OUTCOME_QUEUED:
			decide_unknown(op, blob, blob->in_doubt
						   ? "Kusto may have got the message, and does not report on the data"
						   : "Kusto does not report on the data");
			break;
		case KC_OUTCOME_PENDING:
		case KC_OUTCOME_MISSING:
			decide_pending(op, blob, task->outcome == KC_OUTCOME_MISSING);
			break;
	}
}

void
kpg_worker_poll_decide(WorkOperation *op, WorkBlob *blob)
{
	const KcStatusTask *task = (const KcStatusTask *) blob->task;
	MemoryContext old = MemoryContextSwitchTo(op->scratch);

	blob->change.status_row = blob->status_row;
	if (task->status_table != NULL && blob->row->status_table == NULL)
		blob->change.news.status_table = pstrdup(task->status_table);
	decide(op, blob, task);
	blob->polled_ms = kpg_worker_now_ms();
	if (kpg_operations_is_final(blob->change.to))
	{
		KPG_FAULT("outcome-known");
		op->poll_window = Min(op->poll_window * 2, WINDOW_MAX);
		hasten_others(op);
	}
	else
		op->poll_window = 1;
	MemoryContextSwitchTo(old);
}

/* ---- beginning ---- */

/* Its post told of no status table: the service has none. */
static void
decide_unreported(WorkOperation *op, WorkBlob *blob)
{
	WorkChange *change = &blob->change;

	change->status_row = false;
	decide_unknown(op, blob, "Kusto does not report on the data: the service has no status table");
}

static void
start_poll(WorkOperation *op, WorkBlob *blob)
{
	MemoryContext old;
	KcStatusTask *task;
	KcError		err;
	KcStatus	status = KC_OK;
	/* Of several posts an earlier one may have written a row that nobody remembers. */
	bool		reported = blob->in_doubt || blob->row->status_table != NULL
		|| blob->row->post_attempts > 1;

	if (reported)
		status = kc_kusto_status_start(op->session->client, kc_slice(blob->row->status_table),
									   &blob->row->source_id, &task, &err);
	if (reported && status == KC_OK)
	{
		blob->task = &task->task;
		blob->polling = true;
		op->lane->npolling++;
		kpg_worker_task_begins();
		return;
	}

	old = MemoryContextSwitchTo(op->scratch);
	blob->change.status_row = blob->status_row;
	if (reported)
		decide_error(op, blob, &err);
	else
		decide_unreported(op, blob);
	blob->change.pending = true;
	MemoryContextSwitchTo(old);
}

void
kpg_worker_poll_start(WorkOperation *op, int64 now_ms)
{
	int			i = 0;
	int			window = op->poll_window;
	WorkBlob   *blob;

	while (has_room(op) && (blob = next_candidate(op, &i, &window)) != NULL)
	{
		if (blob->due_ms <= now_ms)
			start_poll(op, blob);
	}
}
