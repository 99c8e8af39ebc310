/*
 * outbox_read.c
 *	  Batches of a capture, slice by slice.
 *
 * The first slice of a batch takes a snapshot, which is the batch's; further ones
 * are given it.  They are read with snapshots of their own, which see more, but
 * the batch's decides: a transaction that has committed in between belongs to
 * the next batch.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "outbox_scan.h"
#include "report.h"

/* Bytes of a chunk, without fetching them from where TOAST keeps them. */
static Size
chunk_size(const KpgOutboxRing *ring, HeapTuple tuple)
{
	return toast_raw_datum_size(kpg_outbox_column(ring, tuple, KPG_OUTBOX_COLUMN_DATA)) - VARHDRSZ;
}

static int64
chunk_shape(const KpgOutboxRing *ring, HeapTuple tuple)
{
	return DatumGetInt64(kpg_outbox_column(ring, tuple, KPG_OUTBOX_COLUMN_SHAPE));
}

static void
append_chunk(KpgSlice *slice, const KpgOutboxRing *ring, HeapTuple tuple, KcBuf *out)
{
	Datum		stored = kpg_outbox_column(ring, tuple, KPG_OUTBOX_COLUMN_DATA);
	bytea	   *data = DatumGetByteaPP(stored);
	TimestampTz changed_at = DatumGetTimestampTz(kpg_outbox_column(ring, tuple, KPG_OUTBOX_COLUMN_CHANGED_AT));
	KcError		err;

	kc_buf_append(out, VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data));
	if (out->failed != KC_OK)
		kpg_check(kc_buf_status(out, &err, "reading row changes"), &err);
	if ((Pointer) data != DatumGetPointer(stored))
		pfree(data);

	slice->after_txid = DatumGetUInt64(kpg_outbox_column(ring, tuple, KPG_OUTBOX_COLUMN_TXID));
	slice->after_seq = DatumGetInt64(kpg_outbox_column(ring, tuple, KPG_OUTBOX_COLUMN_SEQ));
	if (slice->rows == 0)
	{
		slice->shape = chunk_shape(ring, tuple);
		slice->first_seq = slice->after_seq;
		slice->oldest = changed_at;
	}
	slice->oldest = Min(slice->oldest, changed_at);
	slice->rows += DatumGetInt32(kpg_outbox_column(ring, tuple, KPG_OUTBOX_COLUMN_ROWS));
}

/*
 * What has committed asynchronously is visible before its WAL is on disk, and a
 * crash may still undo it, numbers included, which others would get anew.  What
 * is sent to Kusto stays: so whatever is visible by now is made durable first.
 */
static void
make_durable(void)
{
	XLogRecPtr	end = GetXLogInsertRecPtr();

	/* Where the next page's header would end, nothing ends that could be flushed. */
	if (XLogSegmentOffset(end, wal_segment_size) == SizeOfXLogLongPHD ||
		end % XLOG_BLCKSZ == SizeOfXLogShortPHD)
		end -= end % XLOG_BLCKSZ;
	XLogFlush(end);
}

void
kpg_outbox_read(KpgSlice *slice, KcBuf *out)
{
	Size		begin = out->len;
	KpgOutboxRing ring;
	KpgOutboxScan scan;
	KpgTxidRange *ranges;
	HeapTuple	tuple;
	int			nranges;

	slice->rows = 0;
	slice->more = false;
	kpg_outbox_open(&ring);
	slice->whole = kpg_outbox_is_right(&ring);
	slice->snapshot = slice->current != NULL ? pstrdup(slice->current) : kpg_outbox_snapshot_text();
	ranges = kpg_outbox_ranges(slice->last, slice->snapshot, &nranges);
	kpg_outbox_scan_begin(&scan, &ring, -1, slice->capture, ranges, nranges,
						  slice->after_txid, slice->after_seq);
	while ((tuple = kpg_outbox_scan_next(&scan)) != NULL)
	{
		if (slice->rows > 0 &&
			(chunk_shape(&ring, tuple) != slice->shape ||
			 out->len - begin + chunk_size(&ring, tuple) > slice->limit))
		{
			slice->more = true;
			break;
		}
		append_chunk(slice, &ring, tuple, out);
	}
	kpg_outbox_scan_end(&scan);
	kpg_outbox_close(&ring);
	/* A snapshot that was given is of a slice before, with which this was done. */
	if (slice->rows > 0 && slice->current == NULL)
		make_durable();
	pfree(ranges);
}

void
kpg_outbox_waiting(const int32 *captures, const char *const *lasts, int n, bool *waiting)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest outbox",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	KpgOutboxRing ring;
	const char *current;

	kpg_outbox_open(&ring);
	current = kpg_outbox_snapshot_text();
	for (int i = 0; i < n; i++)
	{
		KpgOutboxScan scan;
		int			nranges;
		KpgTxidRange *ranges = kpg_outbox_ranges(lasts[i], current, &nranges);

		kpg_outbox_scan_begin(&scan, &ring, -1, captures[i], ranges, nranges, 0, 0);
		waiting[i] = kpg_outbox_scan_next(&scan) != NULL;
		kpg_outbox_scan_end(&scan);
	}
	kpg_outbox_close(&ring);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}
