/*
 * outbox_page.c
 *	  Chunks of one table of the ring that are found by reading pages, in order.
 *
 * The leaders (outbox_leader.c) come from the index, in order.  Each gives its
 * run: the rows of its page from itself up to the next leader, in order of txid
 * and seq.  What is behind a row of a later leader waits until that one has come:
 * a leader is never behind those that it leads.  So no more waits than is left of
 * the pages that were being filled at the same time.
 *
 * A row that is visible has a leader that is, perhaps another one than when it
 * was inserted, but one that is nearer.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/tableam.h"
#include "lib/pairingheap.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "outbox_internal.h"
#include "outbox_scan.h"

/* A row that has been read, and waits to be given. */
typedef struct Row
{
	pairingheap_node node;
	HeapTuple	tuple;			/* a copy */
} Row;

struct KpgOutboxPages
{
	const KpgOutboxRing *ring;
	int			table;
	const KpgOutboxWanted *wanted;
	MemoryContext context;		/* of rows */
	int			range;			/* of the next group */
	SysScanDesc leaders;		/* of the group that is being read; NULL: none is */
	TableScanDesc page;			/* NULL: no page was read yet */
	KpgOutboxRow leader;		/* the last one */
	bool		has_leader;
	bool		done;			/* there are no more leaders */
	pairingheap *waiting;
	Row		   *given;
	int			nrun;
	Row		   *run[MaxHeapTuplesPerPage];
};

static const KpgOutboxRow *
content(HeapTuple tuple)
{
	return (const KpgOutboxRow *) GETSTRUCT(tuple);
}

/* The first is to be on top. */
static int
compare_nodes(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	return kpg_outbox_compare(content(pairingheap_const_container(Row, node, b)->tuple),
							  content(pairingheap_const_container(Row, node, a)->tuple));
}

KpgOutboxPages *
kpg_outbox_pages_begin(const KpgOutboxRing *ring, int table, const KpgOutboxWanted *wanted)
{
	KpgOutboxPages *pages = palloc0(sizeof(KpgOutboxPages));

	pages->ring = ring;
	pages->table = table;
	pages->wanted = wanted;
	pages->context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest outbox pages",
										   ALLOCSET_SMALL_SIZES);
	pages->waiting = pairingheap_allocate(compare_nodes, NULL);
	return pages;
}

void
kpg_outbox_pages_end(KpgOutboxPages *pages)
{
	if (pages->page != NULL)
		table_endscan(pages->page);
	if (pages->leaders != NULL)
		systable_endscan_ordered(pages->leaders);
	pairingheap_free(pages->waiting);
	MemoryContextDelete(pages->context);
	pfree(pages);
}

/* ---- leaders ---- */

static void
begin_leaders(KpgOutboxPages *pages, uint64 from, uint64 to)
{
	ScanKeyData keys[4];

	ScanKeyInit(&keys[0], KPG_OUTBOX_COLUMN_CAPTURE, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(pages->wanted->capture));
	ScanKeyInit(&keys[1], KPG_OUTBOX_COLUMN_ENTRY, BTEqualStrategyNumber, F_CHAREQ,
				CharGetDatum(KPG_OUTBOX_SHARED));
	ScanKeyInit(&keys[2], KPG_OUTBOX_COLUMN_TXID, BTGreaterEqualStrategyNumber, F_XID8GE,
				UInt64GetDatum(from > KPG_OUTBOX_LEAD ? from - KPG_OUTBOX_LEAD : 0));
	ScanKeyInit(&keys[3], KPG_OUTBOX_COLUMN_TXID, BTLessEqualStrategyNumber, F_XID8LE, UInt64GetDatum(to));
	pages->leaders = kpg_outbox_begin_index(pages->ring, pages->table, keys, lengthof(keys));
}

/* Ranges so near to each other that they may have leaders in common.  False: there are no more. */
static bool
next_group(KpgOutboxPages *pages)
{
	const KpgOutboxWanted *wanted = pages->wanted;
	const KpgTxidRange *ranges = wanted->ranges;
	uint64		from;
	uint64		to;

	while (pages->range < wanted->nranges && ranges[pages->range].to < wanted->after_txid)
		pages->range++;
	if (pages->range == wanted->nranges)
		return false;
	from = Max(ranges[pages->range].from, wanted->after_txid);
	do
		to = ranges[pages->range++].to;
	while (pages->range < wanted->nranges && ranges[pages->range].from - to <= KPG_OUTBOX_LEAD);
	begin_leaders(pages, from, to);
	return true;
}

static HeapTuple
next_leader(KpgOutboxPages *pages)
{
	HeapTuple	tuple;

	for (;;)
	{
		if (pages->leaders == NULL && !next_group(pages))
			return NULL;
		tuple = systable_getnext_ordered(pages->leaders, ForwardScanDirection);
		if (tuple != NULL)
			return tuple;
		systable_endscan_ordered(pages->leaders);
		pages->leaders = NULL;
	}
}

/* ---- pages ---- */

static void
turn_to(KpgOutboxPages *pages, BlockNumber block)
{
	if (pages->page == NULL)
		pages->page = table_beginscan_strat(pages->ring->tables[pages->table], GetActiveSnapshot(), 0, NULL,
											false, false);
	else
		table_rescan(pages->page, NULL);
	heap_setscanlimits(pages->page, block, 1);
}

static bool
is_wanted(const KpgOutboxWanted *wanted, const KpgOutboxRow *row)
{
	if (row->txid < wanted->after_txid || (row->txid == wanted->after_txid && row->seq <= wanted->after_seq))
		return false;
	return kpg_outbox_in_ranges(wanted->ranges, wanted->nranges, row->txid);
}

/* Keep what comes before the next leader; *next is that, so far. */
static void
look_at(KpgOutboxPages *pages, HeapTuple tuple, KpgOutboxRow *next)
{
	const KpgOutboxRow *row = content(tuple);
	MemoryContext old;
	Row		   *kept;

	if (row->capture != pages->wanted->capture || row->entry == KPG_OUTBOX_OWN ||
		kpg_outbox_compare(row, &pages->leader) < 0 || kpg_outbox_compare(row, next) >= 0)
		return;
	if (row->entry == KPG_OUTBOX_SHARED && kpg_outbox_compare(row, &pages->leader) > 0)
	{
		memcpy(next, row, offsetof(KpgOutboxRow, data));
		return;
	}
	if (!is_wanted(pages->wanted, row))
		return;
	old = MemoryContextSwitchTo(pages->context);
	kept = palloc(sizeof(Row));
	kept->tuple = heap_copytuple(tuple);
	MemoryContextSwitchTo(old);
	pages->run[pages->nrun++] = kept;
}

static void
forget(Row *row)
{
	heap_freetuple(row->tuple);
	pfree(row);
}

/* The run of the leader, which is in this page. */
static void
read_run(KpgOutboxPages *pages, BlockNumber block)
{
	KpgOutboxRow next = {.txid = PG_UINT64_MAX,.seq = PG_INT64_MAX};
	HeapTuple	tuple;

	pages->nrun = 0;
	turn_to(pages, block);
	while ((tuple = heap_getnext(pages->page, ForwardScanDirection)) != NULL)
		look_at(pages, tuple, &next);
	for (int i = 0; i < pages->nrun; i++)
	{
		if (kpg_outbox_compare(content(pages->run[i]->tuple), &next) < 0)
			pairingheap_add(pages->waiting, &pages->run[i]->node);
		else
			forget(pages->run[i]);
	}
}

static Row *
first_waiting(const KpgOutboxPages *pages)
{
	if (pairingheap_is_empty(pages->waiting))
		return NULL;
	return pairingheap_container(Row, node, pairingheap_first(pages->waiting));
}

/* No leader that is to come leads, or is, anything before this row. */
static bool
is_next(const KpgOutboxPages *pages, const Row *row)
{
	return pages->done ||
		(pages->has_leader && kpg_outbox_compare(content(row->tuple), &pages->leader) <= 0);
}

HeapTuple
kpg_outbox_pages_next(KpgOutboxPages *pages)
{
	Row		   *row;

	if (pages->given != NULL)
		forget(pages->given);
	pages->given = NULL;
	while ((row = first_waiting(pages)) == NULL || !is_next(pages, row))
	{
		HeapTuple	leader;

		if (pages->done)
			return NULL;
		CHECK_FOR_INTERRUPTS();
		leader = next_leader(pages);
		if (leader == NULL)
		{
			pages->done = true;
			continue;
		}
		memcpy(&pages->leader, content(leader), offsetof(KpgOutboxRow, data));
		pages->has_leader = true;
		read_run(pages, ItemPointerGetBlockNumber(&leader->t_self));
	}
	(void) pairingheap_remove_first(pages->waiting);
	pages->given = row;
	return row->tuple;
}
