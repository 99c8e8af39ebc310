/*
 * drain_send.c
 *	  Sending a batch: the commands that prepare its table, a request of
 *	  streaming ingestion, or an ingest whose blobs an operation will post.
 *
 * Nothing here waits.  What is under way is on the mux that the worker's loop
 * drives, and is looked at when the loop comes round.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "alloc.h"
#include "drain_internal.h"
#include "fault.h"
#include "report.h"
#include "settings.h"

#define RESPONSE_MAX	(1024 * 1024)
/* What is read at once into a chunk of an ingest, and in one transaction. */
#define CHUNK_SIZE		(256 * 1024)
#define UNIT_SIZE		(4 * 1024 * 1024)
/* Such a batch ends here; its mark says where, and the next goes on. */
#define UPLOAD_MAX		(INT64CONST(1024) * 1024 * 1024)
#define UPLOAD_BLOBS	4

/* ---- the table ---- */

void
kpg_drain_create_table(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	KcError		err;

	if (kc_kusto_request_start(batch->session->client, KC_ENDPOINT_ENGINE_MGMT, batch->database,
							   kc_slice(batch->command), false, RESPONSE_MAX,
							   &batch->request, &err) != KC_OK)
	{
		batch->request = NULL;
		kpg_drain_failed_by(capture, &err);
		return;
	}
	capture->state = DRAIN_CREATING;
}

/*
 * Fields go by position.  A table that was there before may have our columns in
 * another order, or further ones among them: values would go wrong silently.
 */
static KpgFailure *
compare_columns(const DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	const char *table = capture->row->table_name;
	KpgFailure *failure;
	KcBuf		found;
	int			at;

	kc_buf_init(&found, kpg_alloc_create(batch->context), KC_BUF_UNLIMITED);
	if (batch->request->result == NULL ||
		kc_result_begins_with_columns(batch->request->result, batch->columns, batch->ncolumns, &at, &found))
		return NULL;
	failure = palloc0(sizeof(KpgFailure));
	failure->error_code = pstrdup(unpack_sql_state(ERRCODE_DATATYPE_MISMATCH));
	failure->message = psprintf(_("the columns of Kusto table \"%s\" are not those of the row changes"), table);
	failure->details = psprintf(_("Column %d of the Kusto table is %s, not %s:%s. Nothing was sent."), at + 1,
								found.len == 0 ? _("missing") : kpg_report_text(found.data),
								kpg_report_text(batch->columns[at].name), batch->columns[at].type);
	failure->hint = pstrdup(_("Row changes need a Kusto table that begins with the columns that kusto_capture_views() "
							  "lists, in their order. Rename the Kusto table, or capture into another one."));
	return failure;
}

static void
finish_table(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	KcError		err = batch->request->task.error;
	KpgFailure *misfit;

	if (!batch->request->task.done)
		return;
	misfit = err.status == KC_OK ? compare_columns(capture) : NULL;
	kc_task_free(&batch->request->task);
	batch->request = NULL;
	if (err.status != KC_OK)
	{
		/* To add a table takes this role; the principal is admin of what it has created. */
		if (err.status == KC_ERR_FORBIDDEN)
			err.advice = KC_ADVICE_GRANT_DATABASE_USER;
		kpg_drain_failed_by(capture, &err);
		return;
	}
	KPG_FAULT("drain-table-created");
	if (misfit != NULL)
		kpg_drain_failed(capture, misfit, 0);
	else
		kpg_drain_send(capture);
}

/*
 * Once for each shape, also when somebody else has changed the table: nodes may
 * know it as it was.
 */
static void
start_refresh(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	KcError		err;

	if (kc_kusto_stream_schema_start(batch->session->client, batch->database, batch->table,
									 &batch->refresh, &err) != KC_OK)
	{
		batch->refresh = NULL;
		kpg_drain_failed_by(capture, &err);
		return;
	}
	capture->state = DRAIN_REFRESHING;
}

/* A failure hinders streaming only.  If it is one of rights, we will hear of it. */
static void
finish_refresh(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	KcError		err = batch->refresh->error;

	if (!batch->refresh->done)
		return;
	kc_task_free(batch->refresh);
	batch->refresh = NULL;
	capture->has_ready_shape = true;
	capture->ready_shape = batch->slice.shape;
	capture->stale_until_ms = 0;
	if (err.status != KC_OK)
	{
		capture->stale_until_ms = kpg_worker_now_ms() + KC_STREAM_SCHEMA_MS;
		ereport(DEBUG1,
				(errmsg_internal("captured row changes of \"%s\" are queued for a while: %s",
								 capture->row->relation_name,
								 kpg_report_text(kpg_report_message(&err)))));
	}
	kpg_drain_send(capture);
}

/* ---- streaming ---- */

static void
start_stream(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	KcStreamRequest request = {
		.database = batch->database,
		.table = batch->table,
		.csv = kc_buf_view(&batch->data),
		.managed = true
	};
	KcError		err;

	if (kc_kusto_stream_start(batch->session->client, &request, &batch->stream, &err) != KC_OK)
	{
		batch->stream = NULL;
		kpg_drain_failed_by(capture, &err);
		return;
	}
	capture->state = DRAIN_STREAMING;
}

static void start_upload(DrainCapture *capture);

static void
finish_stream(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	KcStreamVerdict verdict = batch->stream->verdict;
	KcError		err = batch->stream->task.error;
	MemoryContext old;

	if (!batch->stream->task.done)
		return;
	kc_task_free(&batch->stream->task);
	batch->stream = NULL;
	switch (verdict)
	{
		case KC_STREAM_INGESTED:
			/* From here on another try would be a duplicate. */
			batch->end = DRAIN_STREAMED;
			capture->state = DRAIN_ENDING;
			capture->due_ms = 0;
			KPG_FAULT("drain-streamed");
			break;
		case KC_STREAM_QUEUE:
			start_upload(capture);
			break;
		case KC_STREAM_REFUSED:
			old = MemoryContextSwitchTo(batch->context);
			batch->refusal = kpg_worker_failure_of(&err, capture->row->database,
												   batch->session->principal);
			MemoryContextSwitchTo(old);
			batch->end = DRAIN_BURIED;
			capture->state = DRAIN_ENDING;
			capture->due_ms = 0;
			break;
		case KC_STREAM_FAILED:
			kpg_drain_failed_by(capture, &err);
			break;
	}
}

/* ---- uploading ---- */

/* A large batch is read from its beginning again; what is small is in memory. */
static void
rewind_batch(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	const KpgMark *mark = &capture->mark;

	kc_buf_free(&batch->data);
	batch->slice.current = batch->slice.snapshot;
	batch->slice.after_txid = mark->after_txid;
	batch->slice.after_seq = mark->after_seq;
	batch->slice.more = true;
	batch->cut = false;
	batch->rows = 0;
	batch->bytes = 0;
}

static void
start_upload(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	KcIngestOptions options;
	KcUuid		id;
	KcError		err;

	memset(&options, 0, sizeof(options));
	if (kc_uuid_random(&id, &err) != KC_OK)
	{
		kpg_drain_failed_by(capture, &err);
		return;
	}
	memcpy(batch->operation.data, id.bytes, sizeof(id.bytes));
	options.operation_id = id;
	options.max_blob_size = (uint64_t) kpg_max_blob_size_kb * 1024;
	options.level = kpg_compression_level;
	options.threads = kpg_compression_threads;
	options.properties.database = batch->database;
	options.properties.table = batch->table;
	options.properties.exactly_once = true;	/* perhaps; the message must fit */
	options.properties.report = KC_REPORT_ALL;
	if (kc_ingest_create(kpg_alloc_create(batch->context), batch->session->client, &options,
						 &batch->ingest, &err) != KC_OK)
	{
		batch->ingest = NULL;
		kpg_drain_failed_by(capture, &err);
		return;
	}
	if (batch->large)
		rewind_batch(capture);
	capture->state = DRAIN_UPLOADING;
	kpg_drain_advance(capture);
}

static KcStatus
put_chunk(DrainBatch *batch, int64 rows, KcError *err)
{
	KcBuf	   *chunk = batch->chunk;

	batch->chunk = NULL;
	return kc_ingest_put_chunk(batch->ingest, chunk, (uint64_t) rows, err);
}

static bool
is_full(const DrainBatch *batch)
{
	return batch->bytes >= Min(UPLOAD_MAX, (int64) kpg_max_blob_size_kb * 1024 * UPLOAD_BLOBS);
}

typedef struct Feed
{
	DrainBatch *batch;
	KcError		err;			/* of the ingest */
	bool		again;			/* it can take more */
} Feed;

/* Read the next chunk; false when there is nothing more for this batch. */
static bool
read_chunk(Feed *feed)
{
	DrainBatch *batch = feed->batch;
	KpgSlice	next = batch->slice;

	next.limit = CHUNK_SIZE;
	kpg_outbox_read(&next, batch->chunk);
	if (next.rows == 0)
		batch->slice.more = false;
	batch->cut = batch->rows > 0 && next.rows > 0 && next.shape != batch->slice.shape;
	if (next.rows == 0 || batch->cut)
	{
		kc_buf_reset(batch->chunk);
		return false;
	}
	batch->slice = next;
	if (batch->rows == 0)
		batch->first_seq = next.first_seq;
	batch->rows += next.rows;
	batch->bytes += (int64) batch->chunk->len;
	(void) put_chunk(batch, next.rows, &feed->err);
	return true;
}

/*
 * That the ingest takes what a transaction has read which then fails does not
 * matter: the batch is given up with it.
 */
static void
feed_body(void *arg)
{
	Feed	   *feed = arg;
	DrainBatch *batch = feed->batch;
	MemoryContext old = MemoryContextSwitchTo(batch->context);
	int64		enough = batch->bytes + UNIT_SIZE;

	while (batch->slice.more && !batch->cut && !is_full(batch) && feed->err.status == KC_OK)
	{
		feed->again = batch->bytes < enough;
		if (!feed->again)
			break;
		if (batch->chunk == NULL &&
			kc_ingest_get_chunk(batch->ingest, &batch->chunk, &feed->err) != KC_OK)
			break;
		if (batch->chunk == NULL || !read_chunk(feed))
			break;
	}
	feed->again = batch->chunk != NULL || batch->bytes >= enough;
	MemoryContextSwitchTo(old);
}

/* False when it is for another time, or has failed. */
static bool
feed_large(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;

	while (batch->slice.more && !batch->cut && !is_full(batch))
	{
		Feed		feed = {.batch = batch};
		ErrorData  *error = NULL;
		KpgUnitResult result;

		/* No transaction when there is no room. */
		if (batch->chunk == NULL &&
			kc_ingest_get_chunk(batch->ingest, &batch->chunk, &feed.err) != KC_OK)
		{
			kpg_drain_failed_by(capture, &feed.err);
			return false;
		}
		if (batch->chunk == NULL)
			return false;
		result = kpg_drain_unit("reading row changes", feed_body, &feed, &error);
		if (result == KPG_UNIT_FAILED)
		{
			kpg_drain_failed_from(capture, error);
			FreeErrorData(error);
			return false;
		}
		if (feed.err.status != KC_OK)
		{
			kpg_drain_failed_by(capture, &feed.err);
			return false;
		}
		if (result == KPG_UNIT_BUSY || !feed.again)
			return false;
	}
	return true;
}

static bool
feed_small(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	KcError		err;

	if (batch->data.len == 0)
		return true;
	if (kc_ingest_get_chunk(batch->ingest, &batch->chunk, &err) == KC_OK)
	{
		if (batch->chunk == NULL)
			return false;
		kc_buf_slice(batch->chunk, kc_buf_view(&batch->data));
		if (put_chunk(batch, batch->rows, &err) == KC_OK)
		{
			kc_buf_free(&batch->data);
			return true;
		}
	}
	kpg_drain_failed_by(capture, &err);
	return false;
}

static void
advance_upload(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	KcStatus	status;
	KcError		err;

	if (!batch->finishing)
	{
		if (!(batch->large ? feed_large(capture) : feed_small(capture)))
			return;
		batch->finishing = true;
		batch->chunk = NULL;
		(void) kc_ingest_finish(batch->ingest, &err);
	}
	if (!kc_ingest_done(batch->ingest, &status, &err))
		return;
	if (status != KC_OK)
	{
		kpg_drain_failed_by(capture, &err);
		return;
	}
	KPG_FAULT("drain-uploaded");
	batch->end = DRAIN_STAGED;
	capture->state = DRAIN_ENDING;
	capture->due_ms = 0;
}

/* ---- all of them ---- */

void
kpg_drain_send(DrainCapture *capture)
{
	if (!capture->has_ready_shape || capture->ready_shape != capture->batch->slice.shape)
		start_refresh(capture);
	else if (!capture->batch->large && kpg_worker_now_ms() < capture->stale_until_ms)
		start_upload(capture);
	else if (!capture->batch->large)
		start_stream(capture);
	else if (kpg_drain_uploads() < DRAIN_UPLOADS_MAX)
		start_upload(capture);
	else
		/* Begun again when there is room. */
		kpg_drain_drop_batch(capture);
}

void
kpg_drain_advance(DrainCapture *capture)
{
	switch (capture->state)
	{
		case DRAIN_CREATING:
			finish_table(capture);
			break;
		case DRAIN_REFRESHING:
			finish_refresh(capture);
			break;
		case DRAIN_STREAMING:
			finish_stream(capture);
			break;
		case DRAIN_UPLOADING:
			advance_upload(capture);
			break;
		case DRAIN_IDLE:
		case DRAIN_ENDING:
			break;
	}
}
