/*
 * drain_mark.c
 *	  The end of a batch, and what holds one up, in the tables and in the log.
 *
 * A batch's mark commits together with what it speaks of: the operation that
 * will post its blobs, or the dead letter that it has become.  That a batch was
 * streamed is known to nobody until its mark has committed: a crash in between
 * sends it again.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "drain_internal.h"
#include "fault.h"
#include "report.h"

#define RETRY_BASE_MS	1000
#define RETRY_CAP_MS	60000
/* A service or a proxy may ask for more patience, but not for a day. */
#define RETRY_AFTER_MAX_MS	(10 * 60 * 1000)
/* Each mark takes space: the same failure is shown anew so often at most. */
#define TELL_PAUSE_MS	60000

static char *
copy(const char *text)
{
	return text == NULL ? NULL : pstrdup(text);
}

void
kpg_drain_keep_mark(DrainCapture *capture, const KpgMark *mark)
{
	MemoryContext context = AllocSetContextCreate(capture->context, "kusto_ingest mark",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	KpgMark		kept = *mark;

	kept.snapshot = copy(mark->snapshot);
	kept.current = copy(mark->current);
	kept.batch_mode = copy(mark->batch_mode);
	kept.batch_operation = copy(mark->batch_operation);
	kept.error_code = copy(mark->error_code);
	kept.error_message = copy(mark->error_message);
	kept.details = copy(mark->details);
	kept.hint = copy(mark->hint);
	MemoryContextSwitchTo(old);
	capture->mark = kept;
	if (capture->mark_context != NULL)
		MemoryContextDelete(capture->mark_context);
	capture->mark_context = context;
}

/* ---- the end of a batch ---- */

/* What the next mark says; strings are the batch's or in the current context. */
static KpgMark
mark_of_end(const DrainCapture *capture)
{
	const DrainBatch *batch = capture->batch;
	KpgMark		mark = capture->mark;

	if (batch->slice.more)
	{
		mark.current = batch->slice.snapshot;
		mark.after_txid = batch->slice.after_txid;
		mark.after_seq = batch->slice.after_seq;
	}
	else
	{
		mark.snapshot = batch->slice.snapshot;
		mark.current = NULL;
		mark.after_txid = 0;
		mark.after_seq = 0;
	}
	mark.error_code = mark.error_message = mark.details = mark.hint = NULL;
	mark.error_at = 0;
	/* What was buried was not sent. */
	if (batch->end == DRAIN_BURIED)
		return mark;
	mark.rows += batch->rows;
	mark.bytes += batch->bytes;
	mark.batches++;
	mark.batch_rows = batch->rows;
	mark.batch_bytes = batch->bytes;
	mark.batch_at = GetCurrentTimestamp();
	mark.batch_mode = batch->end == DRAIN_STREAMED ? "streaming" : "queued";
	mark.batch_operation = batch->end == DRAIN_STREAMED ? NULL
		: DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&batch->operation)));
	return mark;
}

static void
stage(const DrainCapture *capture)
{
	const DrainBatch *batch = capture->batch;
	KpgOperationRequest request;

	memset(&request, 0, sizeof(request));
	request.id = batch->operation;
	request.owner = capture->row->owner;
	request.server = capture->row->server;
	request.database = capture->row->database;
	request.table_name = capture->row->table_name;
	request.mode = "queued";
	request.source = "capture";
	request.on_type_error = capture->row->on_type_error;
	request.exactly_once = KPG_EXACTLY_ONCE_AUTO;
	request.created_at = batch->begun_at;
	(void) kpg_operations_stage(&request, batch->ingest, NULL);
}

typedef struct End
{
	DrainCapture *capture;
	KpgMark		mark;
	pg_uuid_t	letter;			/* DRAIN_BURIED: the dead letter */
} End;

static void
end_body(void *arg)
{
	End		   *end = arg;
	DrainCapture *capture = end->capture;
	DrainBatch *batch = capture->batch;

	if (batch->end == DRAIN_STAGED)
		stage(capture);
	else if (batch->end == DRAIN_BURIED)
		kpg_outbox_bury(capture->row, &batch->slice, kc_buf_view(&batch->data), batch->refusal,
						&end->letter);
	kpg_outbox_write_mark(capture->id, &end->mark);
	KPG_FAULT("drain-marked");
}

static void
log_burial(const DrainCapture *capture, const End *end)
{
	const DrainBatch *batch = capture->batch;
	const KpgFailure *refusal = batch->refusal;

	ereport(LOG,
			(errmsg("Kusto refuses " INT64_FORMAT " captured row changes of \"%s\" for table \"%s\" of server \"%s\"",
					batch->rows, capture->row->relation_name, capture->row->table_name, capture->row->server),
			 errdetail_internal("%s: %s\n%s", kpg_report_text(refusal->message),
								refusal->error_code, refusal->details == NULL ? "" : kpg_report_text(refusal->details)),
			 errhint("They are kept as dead letter %s; kusto_retry() sends them again.",
					 DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&end->letter))))));
}

static void
log_recovery(DrainCapture *capture)
{
	if (capture->logged)
		ereport(LOG,
				(errmsg("captured row changes of \"%s\" for table \"%s\" of server \"%s\" are sent again",
						capture->row->relation_name, capture->row->table_name, capture->row->server)));
	capture->logged = false;
}

/* Once; whatever raises after it must not have it done again. */
static bool
write_end(End *end)
{
	DrainCapture *capture = end->capture;
	KpgUnitResult result;

	if (capture->batch->marked)
		return true;
	result = kpg_drain_unit("recording a batch of row changes", end_body, end, NULL);
	if (result != KPG_UNIT_DONE)
	{
		kpg_drain_pause(capture, result);
		return false;
	}
	capture->batch->marked = true;
	return true;
}

void
kpg_drain_end(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	End			end = {.capture = capture,.mark = mark_of_end(capture)};

	if (!write_end(&end))
		return;
	KPG_FAULT("drain-recorded");
	kpg_drain_flush_wake();
	if (batch->end == DRAIN_BURIED)
		log_burial(capture, &end);
	if (batch->end == DRAIN_STAGED)
		SetLatch(MyLatch);		/* there is something to post */
	log_recovery(capture);
	/* From here on nothing raises. */
	kpg_drain_keep_mark(capture, &end.mark);
	capture->failures = 0;
	capture->due_ms = 0;
	capture->waiting_ms = 0;
	capture->hurry = false;
	capture->large = false;
	capture->sent_size = -1;
	kpg_drain_drop_batch(capture);
}

/* ---- failures ---- */

static const char *
server_text(const KpgFailure *failure, const char *text)
{
	return text != NULL && failure->utf8 ? kpg_report_text(text) : text;
}

typedef struct Tale
{
	DrainCapture *capture;
	const KpgFailure *failure;
	KpgMark		mark;
	MemoryContext context;		/* of the mark's texts */
} Tale;

static void
tell_body(void *arg)
{
	Tale	   *tale = arg;
	const KpgFailure *failure = tale->failure;
	MemoryContext old = MemoryContextSwitchTo(tale->context);
	KpgMark	   *mark = &tale->mark;

	mark->error_code = copy(server_text(failure, failure->error_code));
	mark->error_message = copy(server_text(failure, failure->message));
	mark->details = copy(server_text(failure, failure->details));
	mark->hint = copy(failure->hint);
	mark->error_at = GetCurrentTimestamp();
	MemoryContextSwitchTo(old);
	kpg_outbox_write_mark(tale->capture->id, mark);
	kpg_worker_trouble(psprintf("captured row changes of %s: %s",
								tale->capture->row->relation_name, mark->error_message));
}

static bool
is_told(const DrainCapture *capture, const KpgFailure *failure)
{
	const KpgMark *mark = &capture->mark;

	return mark->error_code != NULL && failure->error_code != NULL &&
		strcmp(mark->error_code, failure->error_code) == 0 &&
		capture->told_ms != 0 && kpg_worker_now_ms() < capture->told_ms + TELL_PAUSE_MS;
}

/* In the mark of a capture that has none yet, too: it says of no snapshot. */
static void
tell(DrainCapture *capture, const KpgFailure *failure)
{
	Tale		tale = {.capture = capture,.failure = failure,.mark = capture->mark};

	if (is_told(capture, failure))
		return;
	tale.context = CurrentMemoryContext;
	if (kpg_drain_unit("recording delayed row changes", tell_body, &tale, NULL) != KPG_UNIT_DONE)
		return;
	capture->told_ms = kpg_worker_now_ms();
	kpg_drain_keep_mark(capture, &tale.mark);
}

static void
log_failure(DrainCapture *capture, const KpgFailure *failure)
{
	if (capture->logged)
		return;
	capture->logged = true;
	ereport(LOG,
			(errmsg("captured row changes of \"%s\" for table \"%s\" of server \"%s\" wait: %s",
					capture->row->relation_name, capture->row->table_name, capture->row->server,
					server_text(failure, failure->message)),
			 failure->details != NULL ? errdetail_internal("%s", server_text(failure, failure->details)) : 0,
			 failure->hint != NULL ? errhint("%s", failure->hint) : 0));
}

/* Full jitter but for a quarter, so that it never is at once. */
static int64
back_off(int failures)
{
	int64		limit = Min(RETRY_CAP_MS, (int64) RETRY_BASE_MS << Min(failures, 10));
	uint64		random = kc_clock_system.random(kc_clock_system.arg);

	return limit / 4 + (int64) (random % (uint64) (limit * 3 / 4));
}

void
kpg_drain_tell(DrainCapture *capture, const KpgFailure *failure)
{
	tell(capture, failure);
	log_failure(capture, failure);
}

void
kpg_drain_failed(DrainCapture *capture, const KpgFailure *failure, int64 pause_ms)
{
	int64		pause = Max(back_off(capture->failures), pause_ms);

	capture->failures++;
	capture->failed_ms = kpg_worker_now_ms();
	capture->due_ms = capture->failed_ms + pause;
	kpg_drain_tell(capture, failure);
	kpg_drain_drop_batch(capture);
}

void
kpg_drain_failed_by(DrainCapture *capture, const KcError *err)
{
	const KpgSession *session = capture->batch->session;

	kpg_drain_failed(capture, kpg_worker_failure_of(err, capture->row->database, session->principal),
					 Min(err->retry_after_ms, RETRY_AFTER_MAX_MS));
}

void
kpg_drain_failed_from(DrainCapture *capture, const ErrorData *error)
{
	kpg_drain_failed(capture, kpg_worker_failure_of_error(error), 0);
}
