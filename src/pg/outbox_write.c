/*
 * outbox_write.c
 *	  Chunks into the ring, in the user's transaction.
 *
 * This is a part of every captured transaction, so nothing here runs SQL or
 * reads a catalog: a chunk is one heap_insert() and one index_insert() for each
 * index, of which there is one unless somebody has added another or REINDEX
 * CONCURRENTLY is at work.  The tables are the extension's own, so no privileges are
 * asked for.  Locks are kept until the transaction ends: nobody truncates a
 * table that has rows which are not committed.
 *
 * A chunk of KPG_OUTBOX_CHUNK_SIZE fills a page; longer ones go through TOAST.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/xid8.h"

#include "compat.h"
#include "outbox.h"
#include "outbox_internal.h"
#include "settings.h"

/* Asking how large the outbox is takes some system calls; a session does it so often. */
#define LIMIT_CHECK_BYTES	(1024 * 1024)
#define LIMIT_CHECK_MS		1000
#define LIMIT_WARN_MS		60000

/* A row of the table, see CREATE TABLE; no column is ever null. */
typedef struct OutboxRow
{
	uint64		txid;
	int64		seq;
	int64		shape;
	TimestampTz changed_at;
	int32		capture;
	int32		rows;
	char		data[FLEXIBLE_ARRAY_MEMBER];	/* bytea */
} OutboxRow;

#define ATTRIBUTES			7
#define ROW_OFFSET			MAXALIGN(SizeofHeapTupleHeader)

StaticAssertDecl(ROW_OFFSET + offsetof(OutboxRow, data) + VARHDRSZ + KPG_OUTBOX_CHUNK_SIZE <= MaxHeapTupleSize,
				 "a chunk does not fit into a page");

/* ---- the limit ---- */

static int64 bytes_since_check;
static TimestampTz checked_at;
static TimestampTz warned_at;
static bool above_limit;

static void
limit_reached(int64 size)
{
	TimestampTz now = GetCurrentTimestamp();

	if (kpg_outbox_limit_action == KPG_OUTBOX_LIMIT_ERROR)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("the outbox of row changes for Kusto has reached its limit"),
				 errdetail("It has " INT64_FORMAT " kB; \"kusto_ingest.outbox_limit\" is %d kB.",
						   size / 1024, kpg_outbox_limit_kb),
				 errhint("See kusto.captures for what keeps changes from being sent.")));
	if (!TimestampDifferenceExceeds(warned_at, now, LIMIT_WARN_MS))
		return;
	warned_at = now;
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("the outbox of row changes for Kusto has reached its limit"),
			 errdetail("It has " INT64_FORMAT " kB; \"kusto_ingest.outbox_limit\" is %d kB.",
					   size / 1024, kpg_outbox_limit_kb),
			 errhint("See kusto.captures for what keeps changes from being sent.")));
}

/* Once it is above the limit, each chunk asks whether it still is. */
static bool
check_is_due(Size len)
{
	bytes_since_check += (int64) len;
	return above_limit || bytes_since_check >= LIMIT_CHECK_BYTES ||
		TimestampDifferenceExceeds(checked_at, GetCurrentTransactionStartTimestamp(), LIMIT_CHECK_MS);
}

static void
check_limit(Size len)
{
	int64		size;

	if (kpg_outbox_limit_kb < 0 || !check_is_due(len))
		return;
	bytes_since_check = 0;
	checked_at = GetCurrentTimestamp();
	size = kpg_outbox_size();
	above_limit = size / 1024 >= kpg_outbox_limit_kb;
	if (above_limit)
		limit_reached(size);
}

/* ---- writing ---- */

static MemoryContext
write_context(void)
{
	static MemoryContext context;

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "kusto_ingest outbox",
										0, 4 * ALLOCSET_DEFAULT_INITSIZE, ALLOCSET_DEFAULT_MAXSIZE);
	return context;
}

/* None of ours; what it would take is not here. */
static void
refuse_index(Relation index)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("row changes cannot be written while there is index \"%s\"", RelationGetRelationName(index)),
			 errdetail("The outbox of row changes may have indexes of columns only, neither unique nor partial."),
			 errhint("Drop the index.")));
}

static void
other_key(Relation table, Relation index, HeapTuple tuple, Datum *key)
{
	Form_pg_index form = index->rd_index;
	Datum		values[ATTRIBUTES];
	bool		nulls[ATTRIBUTES];

	if (form->indisunique || form->indisexclusion || RelationGetIndexExpressions(index) != NIL ||
		RelationGetIndexPredicate(index) != NIL)
		refuse_index(index);
	heap_deform_tuple(tuple, RelationGetDescr(table), values, nulls);
	for (int i = 0; i < form->indnatts; i++)
		key[i] = values[form->indkey.values[i] - 1];
}

/* As CREATE INDEX has made it: on capture, txid, seq. */
static bool
is_batch_index(Relation index)
{
	static const int16 columns[] = {5, 1, 2};
	Form_pg_index form = index->rd_index;

	return form->indnatts == lengthof(columns) &&
		memcmp(form->indkey.values, columns, sizeof(columns)) == 0 &&
		!form->indisunique && !form->indisexclusion && RelationGetIndexPredicate(index) == NIL;
}

static void
insert_into_index(Relation table, Relation index, HeapTuple tuple)
{
	const OutboxRow *row = (const OutboxRow *) GETSTRUCT(tuple);
	Datum		key[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	if (!index->rd_index->indisready)
		return;
	memset(nulls, 0, sizeof(nulls));
	if (is_batch_index(index))
	{
		key[0] = Int32GetDatum(row->capture);
		key[1] = UInt64GetDatum(row->txid);
		key[2] = Int64GetDatum(row->seq);
	}
	else
		other_key(table, index, tuple, key);
	kpg_compat_index_insert(index, key, nulls, &tuple->t_self, table);
}

/*
 * REINDEX CONCURRENTLY builds an index beside ours, and relies on whoever writes
 * to fill it from when it is ready until it has taken the place of ours.  The list
 * is the relation cache's, which may make it anew while an index is opened.
 */
static void
insert_keys(Relation table, HeapTuple tuple)
{
	List	   *indexes = NIL;
	Oid			only = InvalidOid;
	int			n;

	if (table->rd_indexvalid && list_length(table->rd_indexlist) == 1)
		only = linitial_oid(table->rd_indexlist);
	else
		indexes = RelationGetIndexList(table);
	n = OidIsValid(only) ? 1 : list_length(indexes);
	for (int i = 0; i < n; i++)
	{
		Relation	index = index_open(OidIsValid(only) ? only : list_nth_oid(indexes, i), RowExclusiveLock);

		insert_into_index(table, index, tuple);
		index_close(index, NoLock);
	}
	list_free(indexes);
}

/* As heap_form_tuple() does, but into place, and in a tenth of the time. */
static HeapTuple
form_tuple(const KpgOutboxChunk *chunk, Relation table)
{
	bool		is_short = chunk->len + VARHDRSZ_SHORT <= VARATT_SHORT_MAX;
	Size		size = chunk->len + (is_short ? VARHDRSZ_SHORT : VARHDRSZ);
	Size		len = ROW_OFFSET + offsetof(OutboxRow, data) + size;
	HeapTuple	tuple = palloc(HEAPTUPLESIZE + len);
	HeapTupleHeader header = (HeapTupleHeader) ((char *) tuple + HEAPTUPLESIZE);
	OutboxRow  *row = (OutboxRow *) ((char *) header + ROW_OFFSET);

	tuple->t_len = (uint32) len;
	ItemPointerSetInvalid(&tuple->t_self);
	tuple->t_tableOid = RelationGetRelid(table);
	tuple->t_data = header;
	memset(header, 0, ROW_OFFSET);
	ItemPointerSetInvalid(&header->t_ctid);
	HeapTupleHeaderSetNatts(header, ATTRIBUTES);
	header->t_infomask = HEAP_HASVARWIDTH;
	header->t_hoff = ROW_OFFSET;

	row->txid = U64FromFullTransactionId(GetTopFullTransactionId());
	row->seq = chunk->seq;
	row->shape = chunk->shape;
	row->changed_at = chunk->changed_at;
	row->capture = chunk->capture;
	row->rows = chunk->rows;
	if (is_short)
		SET_VARSIZE_SHORT(row->data, size);
	else
		SET_VARSIZE(row->data, size);
	memcpy(row->data + (size - chunk->len), chunk->data, chunk->len);
	return tuple;
}

static void
insert(const KpgOutboxChunk *chunk, Relation table)
{
	HeapTuple	tuple = form_tuple(chunk, table);
	bool		push = kpg_compat_insert_wants_snapshot(tuple) && !ActiveSnapshotSet();

	if (RelationGetDescr(table)->natts != ATTRIBUTES)
		elog(ERROR, "table \"%s\" has %d columns instead of %d", RelationGetRelationName(table),
			 RelationGetDescr(table)->natts, ATTRIBUTES);
	/* At the end of a transaction there is none; TOAST wants one. */
	if (push)
		PushActiveSnapshot(GetTransactionSnapshot());
	/* Logical decoding has no use for it: what it tells of is in the WAL already. */
	heap_insert(table, tuple, GetCurrentCommandId(true), HEAP_INSERT_NO_LOGICAL, NULL);
	insert_keys(table, tuple);
	if (push)
		PopActiveSnapshot();
}

void
kpg_outbox_write(const KpgOutboxChunk *chunk)
{
	int			ring = kpg_outbox_ring_of(chunk->seq);
	MemoryContext old;
	Relation	table;

	check_limit(chunk->len);

	old = MemoryContextSwitchTo(write_context());
	MemoryContextReset(CurrentMemoryContext);
	table = table_open(kpg_outbox_table(ring), RowExclusiveLock);
	insert(chunk, table);
	table_close(table, NoLock);
	MemoryContextSwitchTo(old);
	if (chunk->len > KPG_OUTBOX_CHUNK_SIZE)
		MemoryContextReset(write_context());
}
