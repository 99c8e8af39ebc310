/*
 * outbox_mark.c
 *	  How far captures have got: rows of capture -id in the ring, only ever
 *	  inserted.
 *
 * The worker alone writes marks, and the job that exports a table's existing
 * rows, once, before anything else has been sent.  So the mark of the highest
 * transaction is the last, but for one case: the job's transaction may be older
 * than one in which the worker said what hinders.  Such a mark has no snapshot,
 * and one that has goes before it.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/stratnum.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/fmgroids.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "../core/json.h"
#include "alloc.h"
#include "outbox_internal.h"
#include "outbox_scan.h"
#include "report.h"
#include "session.h"

/* ---- JSON ---- */

static void
put_text(KcJsonWriter *w, const char *key, const char *value)
{
	if (value == NULL)
		return;
	kc_json_key(w, key);
	kc_json_value_string(w, kc_slice(kpg_session_utf8(value)));
}

static void
put_number(KcJsonWriter *w, const char *key, int64 value)
{
	kc_json_key(w, key);
	kc_json_value_i64(w, value);
}

static void
put_time(KcJsonWriter *w, const char *key, TimestampTz value)
{
	char		text[MAXDATELEN + 1];

	if (value == 0)
		return;
	/* ISO 8601 with a time zone, whatever DateStyle. */
	(void) JsonEncodeDateTime(text, TimestampTzGetDatum(value), TIMESTAMPTZOID, NULL);
	put_text(w, key, text);
}

static void
encode(const KpgMark *mark, KcBuf *out)
{
	KcJsonWriter w;

	kc_json_begin(&w, out);
	kc_json_object_open(&w);
	put_text(&w, "snapshot", mark->snapshot);
	if (mark->current != NULL)
	{
		put_text(&w, "current", mark->current);
		put_number(&w, "after_txid", (int64) mark->after_txid);
		put_number(&w, "after_seq", mark->after_seq);
	}
	put_number(&w, "rows", mark->rows);
	put_number(&w, "bytes", mark->bytes);
	put_number(&w, "batches", mark->batches);
	put_number(&w, "batch_rows", mark->batch_rows);
	put_number(&w, "batch_bytes", mark->batch_bytes);
	put_time(&w, "batch_at", mark->batch_at);
	put_text(&w, "batch_mode", mark->batch_mode);
	put_text(&w, "batch_operation", mark->batch_operation);
	put_text(&w, "error_code", mark->error_code);
	put_text(&w, "error_message", mark->error_message);
	put_text(&w, "details", mark->details);
	put_text(&w, "hint", mark->hint);
	put_time(&w, "error_at", mark->error_at);
	kc_json_object_close(&w);
}

static char *
text_of(const char *utf8)
{
	return utf8 == NULL ? NULL : kpg_report_text(utf8);
}

static TimestampTz
time_of(const char *text)
{
	if (text == NULL)
		return 0;
	return DatumGetTimestampTz(DirectFunctionCall3(timestamptz_in, CStringGetDatum(text),
												   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
}

/* Strings of the mark are in the current context, in the server's encoding. */
static void
decode(KcSlice json, KpgMark *mark)
{
	char	   *batch_at = NULL;
	char	   *error_at = NULL;
	const KcJsonField fields[] = {
		{.name = "snapshot",.want = KC_WANT_STRING,.target = &mark->snapshot},
		{.name = "current",.want = KC_WANT_STRING,.target = &mark->current},
		{.name = "after_txid",.want = KC_WANT_I64,.target = &mark->after_txid},
		{.name = "after_seq",.want = KC_WANT_I64,.target = &mark->after_seq},
		{.name = "rows",.want = KC_WANT_I64,.target = &mark->rows},
		{.name = "bytes",.want = KC_WANT_I64,.target = &mark->bytes},
		{.name = "batches",.want = KC_WANT_I64,.target = &mark->batches},
		{.name = "batch_rows",.want = KC_WANT_I64,.target = &mark->batch_rows},
		{.name = "batch_bytes",.want = KC_WANT_I64,.target = &mark->batch_bytes},
		{.name = "batch_at",.want = KC_WANT_STRING,.target = &batch_at},
		{.name = "batch_mode",.want = KC_WANT_STRING,.target = &mark->batch_mode},
		{.name = "batch_operation",.want = KC_WANT_STRING,.target = &mark->batch_operation},
		{.name = "error_code",.want = KC_WANT_STRING,.target = &mark->error_code},
		{.name = "error_message",.want = KC_WANT_STRING,.target = &mark->error_message},
		{.name = "details",.want = KC_WANT_STRING,.target = &mark->details},
		{.name = "hint",.want = KC_WANT_STRING,.target = &mark->hint},
		{.name = "error_at",.want = KC_WANT_STRING,.target = &error_at}
	};
	const char *doing = "reading how far a capture has got";
	KcJsonValue top;
	KcError		err;

	kpg_check(kc_json_check(json, 2, &top, doing, &err), &err);
	kpg_check(kc_json_read_object(top, fields, lengthof(fields), kpg_alloc_create(CurrentMemoryContext),
								  doing, &err), &err);
	mark->error_code = text_of(mark->error_code);
	mark->error_message = text_of(mark->error_message);
	mark->details = text_of(mark->details);
	mark->hint = text_of(mark->hint);
	mark->batch_at = time_of(batch_at);
	mark->error_at = time_of(error_at);
}

/* ---- reading ---- */

static void
decode_tuple(const KpgOutboxRing *ring, HeapTuple tuple, KpgMark *mark)
{
	bytea	   *data = DatumGetByteaPP(kpg_outbox_column(ring, tuple, KPG_OUTBOX_COLUMN_DATA));

	memset(mark, 0, sizeof(*mark));
	decode((KcSlice) {.data = VARDATA_ANY(data),.len = VARSIZE_ANY_EXHDR(data)}, mark);
}

/*
 * Look at one table's marks of a capture, the last first, until one has a
 * snapshot.  What is better than *best replaces it.
 */
static void
look_at_table(const KpgOutboxRing *ring, int table, int32 capture, KpgLastMark *best)
{
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		done = false;

	ScanKeyInit(&keys[0], KPG_OUTBOX_COLUMN_CAPTURE, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(-capture));
	ScanKeyInit(&keys[1], KPG_OUTBOX_COLUMN_ENTRY, BTEqualStrategyNumber, F_CHAREQ, CharGetDatum(KPG_OUTBOX_OWN));
	scan = kpg_outbox_begin_index(ring, table, keys, lengthof(keys));
	while (!done && (tuple = systable_getnext_ordered(scan, BackwardScanDirection)) != NULL)
	{
		KpgLastMark found = {.table = table};

		found.txid = DatumGetUInt64(kpg_outbox_column(ring, tuple, KPG_OUTBOX_COLUMN_TXID));
		found.seq = DatumGetInt64(kpg_outbox_column(ring, tuple, KPG_OUTBOX_COLUMN_SEQ));
		decode_tuple(ring, tuple, &found.mark);
		done = found.mark.snapshot != NULL;
		if (best->table < 0 || (done && best->mark.snapshot == NULL) ||
			(done == (best->mark.snapshot != NULL) &&
			 (found.txid > best->txid || (found.txid == best->txid && found.seq > best->seq))))
			*best = found;
	}
	systable_endscan_ordered(scan);
}

void
kpg_outbox_find_mark(const KpgOutboxRing *ring, int32 capture, KpgLastMark *last)
{
	memset(last, 0, sizeof(*last));
	last->table = -1;
	for (int i = 0; i < KPG_OUTBOX_TABLES; i++)
		look_at_table(ring, i, capture, last);
}

void
kpg_outbox_read_mark(int32 capture, KpgMark *mark)
{
	KpgOutboxRing ring;
	KpgLastMark last;

	kpg_outbox_open(&ring);
	kpg_outbox_find_mark(&ring, capture, &last);
	kpg_outbox_close(&ring);
	*mark = last.mark;
}

/* ---- writing ---- */

#define INSERT_MARK(table) \
	"INSERT INTO kusto." table " (txid, seq, shape, changed_at, capture, rows, data)" \
	" VALUES (pg_current_xact_id(), $1, 0, clock_timestamp(), $2, 0, $3)"

static const char *const insert_mark[] = {
	INSERT_MARK("outbox_0"), INSERT_MARK("outbox_1"), INSERT_MARK("outbox_2")
};

StaticAssertDecl(lengthof(insert_mark) == KPG_OUTBOX_TABLES, "a statement for each table");

static void
insert(int table, int64 seq, int32 capture, KcSlice data)
{
	static SPIPlanPtr plans[KPG_OUTBOX_TABLES];
	Oid			types[] = {INT8OID, INT4OID, BYTEAOID};
	bytea	   *value = palloc(data.len + VARHDRSZ);
	Datum		values[] = {Int64GetDatum(seq), Int32GetDatum(-capture), PointerGetDatum(value)};

	SET_VARSIZE(value, data.len + VARHDRSZ);
	memcpy(VARDATA(value), data.data, data.len);
	if (plans[table] == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(insert_mark[table], lengthof(types), types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare: %s", insert_mark[table]);
		plans[table] = plan;
	}
	if (SPI_execute_plan(plans[table], values, NULL, false, 0) != SPI_OK_INSERT)
		elog(ERROR, "could not execute: %s", insert_mark[table]);
	pfree(value);
}

void
kpg_outbox_insert_mark(int32 capture, const KpgMark *mark, int avoid)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest mark",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	int64		seq = kpg_outbox_number() << KPG_OUTBOX_SEQ_BITS;
	int			table = kpg_outbox_ring_of(seq);
	KpgSqlScope scope;
	KcBuf		json;
	KcError		err;

	kc_buf_init(&json, kpg_alloc_create(context), MaxAllocSize / 2);
	encode(mark, &json);
	kpg_check(kc_buf_status(&json, &err, "recording how far a capture has got"), &err);
	if (table == avoid)
		table = (table + 1) % KPG_OUTBOX_TABLES;
	kpg_operations_enter(&scope);
	insert(table, seq, capture, kc_buf_view(&json));
	kpg_operations_leave(&scope);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

void
kpg_outbox_write_mark(int32 capture, const KpgMark *mark)
{
	kpg_outbox_insert_mark(capture, mark, -1);
}

void
kpg_outbox_skip_visible(int32 capture)
{
	KpgMark		mark;

	kpg_outbox_read_mark(capture, &mark);
	if (mark.snapshot != NULL)
		return;
	memset(&mark, 0, sizeof(mark));
	mark.snapshot = kpg_outbox_snapshot_text();
	kpg_outbox_write_mark(capture, &mark);
}
