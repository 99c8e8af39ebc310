/*
 * drain_batch.c
 *	  A batch of row changes: what is read first, as whom it is sent, and
 *	  whether its table has its columns.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "alloc.h"
#include "capture.h"
#include "drain_internal.h"
#include "fault.h"

void
kpg_drain_drop_batch(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;

	if (batch == NULL)
		return;
	/* First what is on the client, then the client. */
	if (batch->request != NULL)
		kc_task_free(&batch->request->task);
	kc_task_free(batch->refresh);
	if (batch->stream != NULL)
		kc_task_free(&batch->stream->task);
	kc_ingest_free(batch->ingest);
	if (batch->session != NULL)
		kpg_session_release(batch->session);
	MemoryContextDelete(batch->context);
	capture->batch = NULL;
	capture->state = DRAIN_IDLE;
	kpg_drain_run_again();
}

static DrainBatch *
make_batch(DrainCapture *capture)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "kusto_ingest batch",
												  ALLOCSET_DEFAULT_SIZES);
	DrainBatch *batch = MemoryContextAllocZero(context, sizeof(DrainBatch));
	const KpgMark *mark = &capture->mark;

	batch->context = context;
	kc_buf_init(&batch->data, kpg_alloc_create(context), KC_BUF_UNLIMITED);
	batch->slice.capture = capture->id;
	batch->slice.last = mark->snapshot;
	batch->slice.current = mark->current;
	batch->slice.after_txid = mark->after_txid;
	batch->slice.after_seq = mark->after_seq;
	batch->begun_at = GetCurrentTimestamp();
	capture->batch = batch;
	return batch;
}

/* ---- in the transaction ---- */

static void
acquire_session(DrainCapture *capture)
{
	const KpgCapture *row = capture->row;
	DrainBatch *batch = capture->batch;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(row->owner)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("the owner of the captured table, with OID %u, does not exist any more", row->owner)));
	batch->session = kpg_session_acquire(kpg_session_server(row->server, row->owner), row->owner);
	/* Copies: the next look may put another row in this one's place. */
	batch->database = kc_slice(kpg_session_utf8(pstrdup(row->database)));
	batch->table = kc_slice(kpg_session_utf8(pstrdup(row->table_name)));
}

/* Is it the shape, and not its size, that ends what was read? */
static bool
is_cut(const KpgSlice *slice)
{
	KpgSlice	next = *slice;
	KcBuf		chunk;

	if (!slice->more)
		return false;
	next.current = slice->snapshot;
	next.limit = 1;
	kc_buf_init(&chunk, kpg_alloc_create(CurrentMemoryContext), KC_BUF_UNLIMITED);
	kpg_outbox_read(&next, &chunk);
	kc_buf_free(&chunk);
	return next.rows > 0 && next.shape != slice->shape;
}

static void
set_command(DrainBatch *batch, const KpgCapture *row, const KpgCaptureShape *shape)
{
	const KpgCaptureShape *whole = kpg_capture_whole_shape(row, shape);

	batch->command = kpg_session_utf8(kpg_capture_create_merge(row, shape));
	batch->ncolumns = whole->ncolumns;
	batch->columns = palloc(sizeof(KcColumn) * (Size) whole->ncolumns);
	for (int i = 0; i < whole->ncolumns; i++)
		batch->columns[i] = (KcColumn)
	{
		.name = kpg_session_utf8(whole->columns[i].name),.type = whole->columns[i].type
	};
}

static void
check_shape(DrainCapture *capture)
{
	DrainBatch *batch = capture->batch;
	KpgCaptureShape *shape;

	if (capture->has_ready_shape && capture->ready_shape == batch->slice.shape)
		return;
	shape = kpg_outbox_shape_of(capture->id, batch->slice.shape);
	if (shape == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("columns of captured row changes are not known"),
				 errdetail("There is no shape " INT64_FORMAT " of capture %d.", batch->slice.shape, capture->id)));
	if (capture->row->create_table)
		set_command(batch, capture->row, shape);
	batch->refused = !capture->row->create_table && !shape->accepted;
	if (batch->refused)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the columns of table \"%s\" have changed", capture->row->relation_name),
				 errdetail("Row changes wait until the Kusto table has these columns, too."),
				 errhint("Run in Kusto: %s\nThen call kusto_capture() for the same table again.",
						 kpg_capture_create_merge(capture->row, shape))));
}

static void
begin_body(void *arg)
{
	DrainCapture *capture = arg;
	DrainBatch *batch = capture->batch;
	MemoryContext old = MemoryContextSwitchTo(batch->context);
	KcError		err;

	batch->slice.limit = KC_STREAM_MAX_RAW;
	kpg_outbox_read(&batch->slice, &batch->data);
	if (kc_buf_status(&batch->data, &err, "reading row changes") != KC_OK)
		ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
	if (batch->slice.rows > 0)
	{
		batch->cut = is_cut(&batch->slice);
		acquire_session(capture);
		check_shape(capture);
	}
	MemoryContextSwitchTo(old);
	KPG_FAULT("drain-read");
}

/* ---- after it ---- */

static void
nothing_there(DrainCapture *capture)
{
	KpgMark		whole = capture->mark;

	kpg_drain_drop_batch(capture);
	capture->waiting_ms = 0;
	capture->hurry = false;
	if (whole.current == NULL)
		return;
	/* The one that was sent in part is sent, then; the next mark says so. */
	whole.snapshot = whole.current;
	whole.current = NULL;
	whole.after_txid = 0;
	whole.after_seq = 0;
	kpg_drain_keep_mark(capture, &whole);
	capture->ask = true;
}

void
kpg_drain_begin(DrainCapture *capture)
{
	DrainBatch *batch = make_batch(capture);
	ErrorData  *error = NULL;
	KpgUnitResult result;

	result = kpg_drain_unit("reading row changes", begin_body, capture, &error);
	if (result == KPG_UNIT_BUSY)
	{
		kpg_drain_drop_batch(capture);
		kpg_drain_pause(capture, result);
		return;
	}
	capture->has_refused_shape = batch->refused;
	capture->refused_shape = batch->slice.shape;
	if (result == KPG_UNIT_FAILED)
	{
		kpg_drain_failed_from(capture, error);
		FreeErrorData(error);
		return;
	}
	if (batch->slice.rows == 0)
	{
		nothing_there(capture);
		return;
	}
	batch->rows = batch->slice.rows;
	batch->bytes = (int64) batch->data.len;
	batch->first_seq = batch->slice.first_seq;
	batch->large = batch->data.len > KC_STREAM_MAX_RAW || (batch->slice.more && !batch->cut);
	capture->large = batch->large;
	if (batch->command != NULL)
		kpg_drain_create_table(capture);
	else
		kpg_drain_send(capture);
}
