/*
 * outbox_scan.c
 *	  Chunks of a capture between two snapshots, in order.
 *
 * Each table of the ring has two streams in that order: the chunks that have an
 * index entry for themselves, which are read here, range by range, and those of
 * pages (outbox_page.c).  All six are merged.  Rows of what has rolled back are
 * in the ranges: they are invisible by MVCC, and so are those of subtransactions
 * that have.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "miscadmin.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "outbox_internal.h"
#include "outbox_scan.h"

/* ---- the tables ---- */

void
kpg_outbox_open(KpgOutboxRing *ring)
{
	for (int i = 0; i < KPG_OUTBOX_TABLES; i++)
	{
		ring->tables[i] = table_open(kpg_outbox_table(i), AccessShareLock);
		ring->indexes[i] = index_open(kpg_outbox_index(i), AccessShareLock);
	}
	PushActiveSnapshot(GetLatestSnapshot());
}

void
kpg_outbox_close(KpgOutboxRing *ring)
{
	PopActiveSnapshot();
	for (int i = 0; i < KPG_OUTBOX_TABLES; i++)
	{
		index_close(ring->indexes[i], AccessShareLock);
		table_close(ring->tables[i], AccessShareLock);
	}
}

SysScanDesc
kpg_outbox_begin_index(const KpgOutboxRing *ring, int table, const ScanKeyData *keys, int nkeys)
{
	ScanKeyData copies[KPG_OUTBOX_KEYS];

	/* It puts the numbers of the index's columns into them. */
	Assert(nkeys <= KPG_OUTBOX_KEYS);
	memcpy(copies, keys, sizeof(ScanKeyData) * (Size) nkeys);
	return systable_beginscan_ordered(ring->tables[table], ring->indexes[table], GetActiveSnapshot(),
									  nkeys, copies);
}

Datum
kpg_outbox_column(const KpgOutboxRing *ring, HeapTuple tuple, AttrNumber column)
{
	bool		isnull;
	Datum		value = heap_getattr(tuple, column, RelationGetDescr(ring->tables[0]), &isnull);

	if (isnull)
		elog(ERROR, "unexpected null in column %d of a table of the outbox", column);
	return value;
}

/* ---- chunks with an entry of their own ---- */

static void
end_part(KpgOutboxOwn *own)
{
	if (own->scan != NULL)
		systable_endscan_ordered(own->scan);
	own->scan = NULL;
}

/* after: of the one transaction that the part is, what comes behind this _seq; 0: all. */
static void
begin_part(KpgOutboxOwn *own, uint64 from, uint64 to, int64 after)
{
	ScanKeyData keys[KPG_OUTBOX_KEYS];
	int			nkeys = 4;

	ScanKeyInit(&keys[0], KPG_OUTBOX_COLUMN_CAPTURE, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(own->wanted->capture));
	ScanKeyInit(&keys[1], KPG_OUTBOX_COLUMN_ENTRY, BTEqualStrategyNumber, F_CHAREQ,
				CharGetDatum(KPG_OUTBOX_OWN));
	ScanKeyInit(&keys[2], KPG_OUTBOX_COLUMN_TXID, BTGreaterEqualStrategyNumber, F_XID8GE, UInt64GetDatum(from));
	ScanKeyInit(&keys[3], KPG_OUTBOX_COLUMN_TXID, BTLessEqualStrategyNumber, F_XID8LE, UInt64GetDatum(to));
	if (after > 0)
		ScanKeyInit(&keys[nkeys++], KPG_OUTBOX_COLUMN_SEQ, BTGreaterStrategyNumber, F_INT8GT,
					Int64GetDatum(after));
	own->scan = kpg_outbox_begin_index(own->ring, own->table, keys, nkeys);
}

/*
 * The next range, or part of one: what is left of the transaction with which the
 * slice before ended is a part of its own.  False: there is none.
 */
static bool
next_part(KpgOutboxOwn *own)
{
	const KpgOutboxWanted *wanted = own->wanted;

	while (own->range < wanted->nranges)
	{
		const KpgTxidRange *range = &wanted->ranges[own->range];
		uint64		from = Max(own->from, range->from);
		bool		begun = wanted->after_txid > 0 && from == wanted->after_txid;
		uint64		to = begun ? from : range->to;

		if (from > range->to)
		{
			own->range++;
			continue;
		}
		begin_part(own, from, to, begun ? wanted->after_seq : 0);
		own->from = to + 1;
		return true;
	}
	return false;
}

static void
begin_own(KpgOutboxOwn *own, const KpgOutboxRing *ring, int table, const KpgOutboxWanted *wanted)
{
	own->ring = ring;
	own->table = table;
	own->wanted = wanted;
	own->from = wanted->after_txid;
}

static HeapTuple
next_own(KpgOutboxOwn *own)
{
	HeapTuple	tuple;

	for (;;)
	{
		if (own->scan == NULL && !next_part(own))
			return NULL;
		tuple = systable_getnext_ordered(own->scan, ForwardScanDirection);
		if (tuple != NULL)
			return tuple;
		end_part(own);
	}
}

/* ---- all ---- */

/* Source 2 i is what table i has with entries of their own, 2 i + 1 what is in its pages. */
static HeapTuple
next_of(KpgOutboxScan *scan, int source)
{
	if (source % 2 == 0)
		return next_own(&scan->own[source / 2]);
	return kpg_outbox_pages_next(scan->pages[source / 2]);
}

void
kpg_outbox_scan_begin(KpgOutboxScan *scan, const KpgOutboxRing *ring, int table, int32 capture,
					  const KpgTxidRange *ranges, int nranges, uint64 after_txid, int64 after_seq)
{
	memset(scan, 0, sizeof(*scan));
	scan->first_table = table < 0 ? 0 : table;
	scan->last_table = table < 0 ? KPG_OUTBOX_TABLES - 1 : table;
	scan->wanted.capture = capture;
	scan->wanted.ranges = ranges;
	scan->wanted.nranges = nranges;
	scan->wanted.after_txid = after_txid;
	scan->wanted.after_seq = after_seq;
	scan->given = -1;
	for (int i = scan->first_table; i <= scan->last_table; i++)
	{
		begin_own(&scan->own[i], ring, i, &scan->wanted);
		scan->pages[i] = kpg_outbox_pages_begin(ring, i, &scan->wanted);
		scan->tuples[2 * i] = next_of(scan, 2 * i);
		scan->tuples[2 * i + 1] = next_of(scan, 2 * i + 1);
	}
}

static const KpgOutboxRow *
row_of(HeapTuple tuple)
{
	return (const KpgOutboxRow *) GETSTRUCT(tuple);
}

static int
first_of(const KpgOutboxScan *scan)
{
	int			first = -1;

	for (int i = 2 * scan->first_table; i <= 2 * scan->last_table + 1; i++)
	{
		if (scan->tuples[i] != NULL &&
			(first < 0 || kpg_outbox_compare(row_of(scan->tuples[i]), row_of(scan->tuples[first])) < 0))
			first = i;
	}
	return first;
}

HeapTuple
kpg_outbox_scan_next(KpgOutboxScan *scan)
{
	CHECK_FOR_INTERRUPTS();
	if (scan->given >= 0)
		scan->tuples[scan->given] = next_of(scan, scan->given);
	scan->given = first_of(scan);
	return scan->given < 0 ? NULL : scan->tuples[scan->given];
}

void
kpg_outbox_scan_end(KpgOutboxScan *scan)
{
	for (int i = scan->first_table; i <= scan->last_table; i++)
	{
		end_part(&scan->own[i]);
		kpg_outbox_pages_end(scan->pages[i]);
	}
}
