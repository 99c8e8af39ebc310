/*
 * outbox_moved.c
 *	  Rows of the ring that have been moved away from those who led them.
 *
 * VACUUM FULL and whatever else rewrites a table give it another file, in which
 * rows lie in other pages, while it is locked against everybody else.  So who
 * reads a file for the first time, unless it is empty then, looks whether each
 * row that has no index entry has a leader in its page (outbox_leader.c).  The
 * worker gives those an entry that have none; who else reads waits for that.  What
 * comes later into a file is put there by sessions that know that file.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "outbox_internal.h"
#include "outbox_scan.h"

/* Files in which every row is where it should be. */
static Oid	right_files[KPG_OUTBOX_TABLES];

/* A row that leads or is to be led. */
typedef struct Place
{
	KpgOutboxRow row;
	ItemPointerData tid;
} Place;

typedef struct Lost
{
	ItemPointerData *tids;
	int			n;
	int			max;
} Lost;

/* ---- finding ---- */

static void
add_lost(Lost *lost, const ItemPointerData *tid)
{
	if (lost->n == lost->max)
	{
		lost->max = Max(1024, lost->max * 2);
		lost->tids = lost->tids == NULL ? palloc(sizeof(ItemPointerData) * (Size) lost->max)
			: repalloc_huge(lost->tids, sizeof(ItemPointerData) * (Size) lost->max);
	}
	lost->tids[lost->n++] = *tid;
}

static int
compare_places(const void *a, const void *b)
{
	const KpgOutboxRow *row_a = &((const Place *) a)->row;
	const KpgOutboxRow *row_b = &((const Place *) b)->row;

	if (row_a->capture != row_b->capture)
		return row_a->capture < row_b->capture ? -1 : 1;
	return kpg_outbox_compare(row_a, row_b);
}

static bool
leads(const KpgOutboxRow *leader, const KpgOutboxRow *row)
{
	return leader != NULL && leader->capture == row->capture && row->txid - leader->txid <= KPG_OUTBOX_LEAD;
}

/* Of one page. */
static void
look_at_page(Place *places, int n, Lost *lost)
{
	const KpgOutboxRow *leader = NULL;

	qsort(places, (size_t) n, sizeof(Place), compare_places);
	for (int i = 0; i < n; i++)
	{
		if (places[i].row.entry == KPG_OUTBOX_SHARED)
			leader = &places[i].row;
		else if (!leads(leader, &places[i].row))
			add_lost(lost, &places[i].tid);
	}
}

static void
find_lost(Relation table, Lost *lost)
{
	Place	   *places = palloc(sizeof(Place) * MaxHeapTuplesPerPage);
	TableScanDesc scan = table_beginscan_strat(table, GetActiveSnapshot(), 0, NULL, true, false);
	BlockNumber block = InvalidBlockNumber;
	HeapTuple	tuple;
	int			n = 0;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		const KpgOutboxRow *row = (const KpgOutboxRow *) GETSTRUCT(tuple);

		CHECK_FOR_INTERRUPTS();
		if (ItemPointerGetBlockNumber(&tuple->t_self) != block)
		{
			look_at_page(places, n, lost);
			block = ItemPointerGetBlockNumber(&tuple->t_self);
			n = 0;
		}
		if (row->entry == KPG_OUTBOX_OWN)
			continue;
		memcpy(&places[n].row, row, offsetof(KpgOutboxRow, data));
		places[n++].tid = tuple->t_self;
	}
	look_at_page(places, n, lost);
	table_endscan(scan);
	pfree(places);
}

/* ---- setting right ---- */

#define UPDATE(table) \
	"UPDATE kusto." table " SET entry = 'o' WHERE ctid OPERATOR(pg_catalog.=) ANY ($1)"

static const char *const update[] = {
	UPDATE("outbox_0"), UPDATE("outbox_1"), UPDATE("outbox_2")
};

StaticAssertDecl(lengthof(update) == KPG_OUTBOX_TABLES, "a statement for each table");

#define UPDATE_MAX 10000

static void
give_entries(int table, ItemPointerData *tids, int n)
{
	Datum	   *values = palloc(sizeof(Datum) * (Size) n);
	KpgSqlScope scope;
	KpgSqlArg	arg;

	for (int i = 0; i < n; i++)
		values[i] = PointerGetDatum(&tids[i]);
	kpg_operations_enter(&scope);
	arg = kpg_operations_arg(get_array_type(TIDOID),
							 PointerGetDatum(construct_array(values, n, TIDOID, sizeof(ItemPointerData),
															 false, TYPALIGN_SHORT)));
	(void) kpg_outbox_execute(update[table], &arg, 1, SPI_OK_UPDATE);
	kpg_operations_leave(&scope);
	pfree(values);
}

static void
give_all_entries(Relation relation, int table, const Lost *lost)
{
	/* Whoever has it locked to alter it may wait for us. */
	if (!ConditionalLockRelation(relation, RowExclusiveLock))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("could not obtain lock on relation \"%s\"", RelationGetRelationName(relation)),
				 errdetail("It has been rewritten, and its index is to be completed.")));
	for (int i = 0; i < lost->n; i += UPDATE_MAX)
		give_entries(table, lost->tids + i, Min(UPDATE_MAX, lost->n - i));
	CommandCounterIncrement();
	ereport(LOG,
			(errmsg_plural("an index entry was added for %d row of table \"%s\", which has been rewritten",
						   "index entries were added for %d rows of table \"%s\", which has been rewritten",
						   (unsigned long) lost->n, lost->n, RelationGetRelationName(relation))));
}

/* Those that are not known to be right; lost->n is 0 for one that is. */
static void
look_at_file(const KpgOutboxRing *ring, int table, Lost *lost)
{
	Relation	relation = ring->tables[table];

	memset(lost, 0, sizeof(*lost));
	if (likely(right_files[table] == relation->rd_rel->relfilenode))
		return;
	if (RelationGetNumberOfBlocks(relation) > 0)
		find_lost(relation, lost);
	/* What is set right is looked at again the next time: that may be rolled back. */
	if (lost->n == 0)
		right_files[table] = relation->rd_rel->relfilenode;
}

bool
kpg_outbox_is_right(const KpgOutboxRing *ring)
{
	bool		right = true;

	for (int i = 0; i < KPG_OUTBOX_TABLES; i++)
	{
		Lost		lost;

		look_at_file(ring, i, &lost);
		right &= lost.n == 0;
	}
	return right;
}

void
kpg_outbox_set_right(void)
{
	KpgOutboxRing ring;

	kpg_outbox_open(&ring);
	for (int i = 0; i < KPG_OUTBOX_TABLES; i++)
	{
		Lost		lost;

		look_at_file(&ring, i, &lost);
		if (lost.n > 0)
			give_all_entries(ring.tables[i], i, &lost);
	}
	kpg_outbox_close(&ring);
}

void
kpg_outbox_is_new(Relation relation, int table)
{
	right_files[table] = relation->rd_rel->relfilenode;
}
