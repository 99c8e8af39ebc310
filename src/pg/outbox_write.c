/*
 * outbox_write.c
 *	  Chunks into the ring, in the user's transaction.
 *
 * This is a part of every captured transaction, so nothing here runs SQL or
 * reads a catalog: a chunk is one heap_insert(), and one index_insert() if it needs
 * an entry (outbox_leader.c).  There is one index, unless somebody has added
 * another or REINDEX CONCURRENTLY is at work.  The tables are the extension's own,
 * so no privileges are asked for.  Locks are kept until the transaction ends: nobody truncates a
 * table that has rows which are not committed.
 *
 * A chunk of KPG_OUTBOX_CHUNK_SIZE fills a page; longer ones go through TOAST.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "nodes/nodes.h"
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

#define ROW_OFFSET			MAXALIGN(SizeofHeapTupleHeader)
/* Where its data begin; those that are not short are aligned. */
#define SHORT_DATA_OFFSET	offsetof(KpgOutboxRow, data)
#define DATA_OFFSET			INTALIGN(SHORT_DATA_OFFSET)

StaticAssertDecl(ROW_OFFSET + DATA_OFFSET + VARHDRSZ + KPG_OUTBOX_CHUNK_SIZE <= MaxHeapTupleSize,
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
	Datum		values[KPG_OUTBOX_COLUMNS];
	bool		nulls[KPG_OUTBOX_COLUMNS];

	if (form->indisunique || form->indisexclusion || RelationGetIndexExpressions(index) != NIL ||
		RelationGetIndexPredicate(index) != NIL)
		refuse_index(index);
	heap_deform_tuple(tuple, RelationGetDescr(table), values, nulls);
	for (int i = 0; i < form->indnatts; i++)
		key[i] = values[form->indkey.values[i] - 1];
}

/* Ours, or the one that is to take its place. */
static bool
is_batch_index(Relation index, Oid ours)
{
	Form_pg_index form = index->rd_index;
	Relation	batch;
	bool		same;

	if (RelationGetRelid(index) == ours)
		return true;
	if (form->indisunique || form->indisexclusion)
		return false;
	batch = index_open(ours, RowExclusiveLock);
	same = form->indnatts == batch->rd_index->indnatts &&
		memcmp(form->indkey.values, batch->rd_index->indkey.values, sizeof(int16) * (Size) form->indnatts) == 0 &&
		equal(RelationGetIndexPredicate(index), RelationGetIndexPredicate(batch));
	index_close(batch, NoLock);
	return same;
}

static void
insert_into_index(Relation table, Relation index, Oid ours, HeapTuple tuple)
{
	const KpgOutboxRow *row = (const KpgOutboxRow *) GETSTRUCT(tuple);
	Datum		key[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	if (!index->rd_index->indisready)
		return;
	memset(nulls, 0, sizeof(nulls));
	if (is_batch_index(index, ours))
	{
		if (row->entry == KPG_OUTBOX_NONE)
			return;
		key[0] = Int32GetDatum(row->capture);
		key[1] = CharGetDatum(row->entry);
		key[2] = UInt64GetDatum(row->txid);
		key[3] = Int64GetDatum(row->seq);
	}
	else
		other_key(table, index, tuple, key);
	kpg_compat_index_insert(index, key, nulls, &tuple->t_self, table);
}

static bool
has_only_index(Relation table, Oid index)
{
	return table->rd_indexvalid && list_length(table->rd_indexlist) == 1 &&
		linitial_oid(table->rd_indexlist) == index;
}

/*
 * REINDEX CONCURRENTLY builds an index beside ours, and relies on whoever writes
 * to fill it from when it is ready until it has taken the place of ours.  The list
 * is the relation cache's, which may make it anew while an index is opened.
 */
static void
insert_keys(Relation table, Oid ours, HeapTuple tuple)
{
	const KpgOutboxRow *row = (const KpgOutboxRow *) GETSTRUCT(tuple);
	bool		only = has_only_index(table, ours);
	List	   *indexes;
	ListCell   *cell;

	if (only && row->entry == KPG_OUTBOX_NONE)
		return;
	indexes = only ? list_make1_oid(ours) : RelationGetIndexList(table);
	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), RowExclusiveLock);

		insert_into_index(table, index, ours, tuple);
		index_close(index, NoLock);
	}
	list_free(indexes);
}

/* As heap_form_tuple() does, but into place, and in a tenth of the time. */
static HeapTuple
form_tuple(const KpgOutboxChunk *chunk, Relation table)
{
	bool		is_short = chunk->len + VARHDRSZ_SHORT <= VARATT_SHORT_MAX;
	Size		offset = is_short ? SHORT_DATA_OFFSET : DATA_OFFSET;
	Size		size = chunk->len + (is_short ? VARHDRSZ_SHORT : VARHDRSZ);
	Size		len = ROW_OFFSET + offset + size;
	HeapTuple	tuple = palloc(HEAPTUPLESIZE + len);
	HeapTupleHeader header = (HeapTupleHeader) ((char *) tuple + HEAPTUPLESIZE);
	KpgOutboxRow *row = (KpgOutboxRow *) ((char *) header + ROW_OFFSET);
	char	   *data = (char *) row + offset;

	tuple->t_len = (uint32) len;
	ItemPointerSetInvalid(&tuple->t_self);
	tuple->t_tableOid = RelationGetRelid(table);
	tuple->t_data = header;
	memset(header, 0, ROW_OFFSET);
	ItemPointerSetInvalid(&header->t_ctid);
	HeapTupleHeaderSetNatts(header, KPG_OUTBOX_COLUMNS);
	header->t_infomask = HEAP_HASVARWIDTH;
	header->t_hoff = ROW_OFFSET;

	row->txid = U64FromFullTransactionId(GetTopFullTransactionId());
	row->seq = chunk->seq;
	row->shape = chunk->shape;
	row->changed_at = chunk->changed_at;
	row->capture = chunk->capture;
	row->rows = chunk->rows;
	row->entry = kpg_outbox_choose_entry(table, row, len);
	/* What is between the two is to be zero. */
	memset(row->data, 0, DATA_OFFSET - SHORT_DATA_OFFSET);
	if (is_short)
		SET_VARSIZE_SHORT(data, size);
	else
		SET_VARSIZE(data, size);
	memcpy(data + (size - chunk->len), chunk->data, chunk->len);
	return tuple;
}

/* Another session has filled the page: who has no entry would not be found where it is. */
static void
insert_anew(Relation table, HeapTuple tuple)
{
	KpgOutboxRow *row = (KpgOutboxRow *) GETSTRUCT(tuple);
	ItemPointerData misplaced = tuple->t_self;

	CommandCounterIncrement();
	simple_heap_delete(table, &misplaced);
	row->entry = KPG_OUTBOX_SHARED;
	heap_insert(table, tuple, GetCurrentCommandId(true), HEAP_INSERT_NO_LOGICAL, NULL);
	(void) kpg_outbox_has_landed(table, row, ItemPointerGetBlockNumber(&tuple->t_self), tuple->t_len);
}

static void
insert(const KpgOutboxChunk *chunk, Relation table, Oid index)
{
	HeapTuple	tuple = form_tuple(chunk, table);
	const KpgOutboxRow *row = (const KpgOutboxRow *) GETSTRUCT(tuple);
	bool		push = kpg_compat_insert_wants_snapshot(tuple) && !ActiveSnapshotSet();

	if (RelationGetDescr(table)->natts != KPG_OUTBOX_COLUMNS)
		elog(ERROR, "table \"%s\" has %d columns instead of %d", RelationGetRelationName(table),
			 RelationGetDescr(table)->natts, KPG_OUTBOX_COLUMNS);
	/* At the end of a transaction there is none; TOAST wants one. */
	if (push)
		PushActiveSnapshot(GetTransactionSnapshot());
	/* Logical decoding has no use for it: what it tells of is in the WAL already. */
	heap_insert(table, tuple, GetCurrentCommandId(true), HEAP_INSERT_NO_LOGICAL, NULL);
	if (unlikely(!kpg_outbox_has_landed(table, row, ItemPointerGetBlockNumber(&tuple->t_self), tuple->t_len)))
		insert_anew(table, tuple);
	insert_keys(table, index, tuple);
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
	insert(chunk, table, kpg_outbox_index(ring));
	table_close(table, NoLock);
	MemoryContextSwitchTo(old);
	if (chunk->len > KPG_OUTBOX_CHUNK_SIZE)
		MemoryContextReset(write_context());
}
