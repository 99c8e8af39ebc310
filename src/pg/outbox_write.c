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

#define ATTRIBUTES			7

StaticAssertDecl(MAXALIGN(SizeofHeapTupleHeader) + 4 * sizeof(int64) + 2 * sizeof(int32) +
				 VARHDRSZ + KPG_OUTBOX_CHUNK_SIZE <= MaxHeapTupleSize,
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

/* Values of the tuple's columns, in the order of the table's. */
static void
insert_key(Relation table, Relation index, const Datum *values, ItemPointer tid)
{
	Form_pg_index form = index->rd_index;
	Datum		key[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS] = {0};

	if (form->indisunique || form->indisexclusion || RelationGetIndexExpressions(index) != NIL ||
		RelationGetIndexPredicate(index) != NIL)
		refuse_index(index);
	for (int i = 0; i < form->indnatts; i++)
		key[i] = values[form->indkey.values[i] - 1];
	kpg_compat_index_insert(index, key, nulls, tid, table);
}

/*
 * REINDEX CONCURRENTLY builds an index beside ours, and relies on whoever writes
 * to fill it from when it is ready until it has taken the place of ours.
 */
static void
insert_keys(Relation table, const Datum *values, ItemPointer tid)
{
	List	   *indexes = RelationGetIndexList(table);
	ListCell   *cell;

	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), RowExclusiveLock);

		if (index->rd_index->indisready)
			insert_key(table, index, values, tid);
		index_close(index, NoLock);
	}
	list_free(indexes);
}

/* Attributes of the table in their order, see CREATE TABLE. */
static void
insert(const KpgOutboxChunk *chunk, Relation table)
{
	bool		nulls[ATTRIBUTES] = {0};
	Datum		txid = FullTransactionIdGetDatum(GetTopFullTransactionId());
	struct varlena *data = palloc(VARHDRSZ + chunk->len);
	Datum		values[ATTRIBUTES] = {
		txid,
		Int64GetDatum(chunk->seq),
		Int64GetDatum(chunk->shape),
		TimestampTzGetDatum(chunk->changed_at),
		Int32GetDatum(chunk->capture),
		Int32GetDatum(chunk->rows),
		PointerGetDatum(data)
	};
	HeapTuple	tuple;
	bool		push = !ActiveSnapshotSet();

	Assert(RelationGetDescr(table)->natts == ATTRIBUTES);
	SET_VARSIZE(data, VARHDRSZ + chunk->len);
	memcpy(VARDATA(data), chunk->data, chunk->len);
	tuple = heap_form_tuple(RelationGetDescr(table), values, nulls);
	/* At the end of a transaction there is none; a table that has a TOAST table is not written without. */
	if (push)
		PushActiveSnapshot(GetTransactionSnapshot());
	/* Logical decoding has no use for it: what it tells of is in the WAL already. */
	heap_insert(table, tuple, GetCurrentCommandId(true), HEAP_INSERT_NO_LOGICAL, NULL);
	insert_keys(table, values, &tuple->t_self);
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
