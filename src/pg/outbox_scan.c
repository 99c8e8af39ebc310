/*
 * outbox_scan.c
 *	  Chunks of a capture between two snapshots, in order.
 *
 * What one snapshot sees and an older one does not is, in transactions: those
 * that were in progress in the older one and have ended since, each by itself,
 * and all from the older one's xmax on but for those that are in progress in the
 * newer one.  Each range is read by the index of each table, and merged.  Rows
 * of what has rolled back are in the ranges: they are invisible by MVCC, and so
 * are those of subtransactions that have.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/skey.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "outbox_internal.h"
#include "outbox_scan.h"

/* ---- snapshots ---- */

/* A pg_snapshot: "xmin:xmax:xip,xip"; top-level transactions, ascending. */
typedef struct SnapshotParts
{
	uint64		xmax;
	uint64	   *xip;
	int			nxip;
} SnapshotParts;

char *
kpg_outbox_snapshot_text(void)
{
	/* It has no arguments, and takes the active snapshot. */
	Datum		snapshot = DirectFunctionCall1(pg_current_snapshot, (Datum) 0);

	return DatumGetCString(DirectFunctionCall1(pg_snapshot_out, snapshot));
}

static void
parse_snapshot(const char *text, SnapshotParts *parts)
{
	Datum		snapshot = DirectFunctionCall1(pg_snapshot_in, CStringGetDatum(text));
	char	   *at = DatumGetCString(DirectFunctionCall1(pg_snapshot_out, snapshot));
	size_t		n = 0;

	/* What is no snapshot has raised: two colons are there, and numbers. */
	at = strchr(at, ':') + 1;
	parts->xmax = strtoull(at, &at, 10);
	at++;
	for (const char *c = at; *c != '\0'; c++)
		n += *c == ',';
	parts->xip = palloc(sizeof(uint64) * (n + 1));
	parts->nxip = 0;
	while (*at != '\0')
	{
		parts->xip[parts->nxip++] = strtoull(at, &at, 10);
		if (*at == ',')
			at++;
	}
}

static bool
is_in_progress(const SnapshotParts *parts, uint64 txid)
{
	int			low = 0;
	int			high = parts->nxip;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (parts->xip[middle] < txid)
			low = middle + 1;
		else
			high = middle;
	}
	return low < parts->nxip && parts->xip[low] == txid;
}

static void
add_range(KpgTxidRange *ranges, int *n, uint64 from, uint64 to)
{
	if (from > to)
		return;
	if (*n > 0 && ranges[*n - 1].to + 1 == from)
		ranges[*n - 1].to = to;
	else
		ranges[(*n)++] = (KpgTxidRange) {.from = from, .to = to};
}

KpgTxidRange *
kpg_outbox_ranges(const char *last, const char *current, int *nranges)
{
	SnapshotParts old = {0};
	SnapshotParts new;
	KpgTxidRange *ranges;
	uint64		from;

	if (last != NULL)
		parse_snapshot(last, &old);
	parse_snapshot(current, &new);
	ranges = palloc(sizeof(KpgTxidRange) * (Size) (old.nxip + new.nxip + 1));
	*nranges = 0;
	for (int i = 0; i < old.nxip; i++)
	{
		if (old.xip[i] < new.xmax && !is_in_progress(&new, old.xip[i]))
			add_range(ranges, nranges, old.xip[i], old.xip[i]);
	}
	from = old.xmax;
	for (int i = 0; i < new.nxip; i++)
	{
		if (new.xip[i] < from)
			continue;
		add_range(ranges, nranges, from, new.xip[i] - 1);
		from = new.xip[i] + 1;
	}
	if (new.xmax > 0)
		add_range(ranges, nranges, from, new.xmax - 1);
	return ranges;
}

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

/* ---- chunks ---- */

static void
end_scans(KpgOutboxScan *scan)
{
	for (int i = scan->first_table; i <= scan->last_table; i++)
	{
		if (scan->scans[i] != NULL)
			systable_endscan_ordered(scan->scans[i]);
		scan->scans[i] = NULL;
		scan->tuples[i] = NULL;
	}
	scan->given = -1;
}

/* after: of the one transaction that the part is, what comes behind this _seq; 0: all. */
static void
begin_scans(KpgOutboxScan *scan, int64 after)
{
	ScanKeyData keys[KPG_OUTBOX_KEYS];
	int			nkeys = 3;

	ScanKeyInit(&keys[0], KPG_OUTBOX_COLUMN_CAPTURE, BTEqualStrategyNumber, F_INT4EQ,
				Int32GetDatum(scan->capture));
	ScanKeyInit(&keys[1], KPG_OUTBOX_COLUMN_TXID, BTGreaterEqualStrategyNumber, F_XID8GE,
				UInt64GetDatum(scan->from));
	ScanKeyInit(&keys[2], KPG_OUTBOX_COLUMN_TXID, BTLessEqualStrategyNumber, F_XID8LE,
				UInt64GetDatum(scan->to));
	if (after > 0)
		ScanKeyInit(&keys[nkeys++], KPG_OUTBOX_COLUMN_SEQ, BTGreaterStrategyNumber, F_INT8GT,
					Int64GetDatum(after));
	for (int i = scan->first_table; i <= scan->last_table; i++)
	{
		scan->scans[i] = kpg_outbox_begin_index(scan->ring, i, keys, nkeys);
		scan->tuples[i] = systable_getnext_ordered(scan->scans[i], ForwardScanDirection);
	}
}

/*
 * The next range, or part of one: what is left of the transaction with which the
 * slice before ended is a part of its own.  False: there is none.
 */
static bool
next_part(KpgOutboxScan *scan)
{
	end_scans(scan);
	while (scan->range < scan->nranges)
	{
		const KpgTxidRange *range = &scan->ranges[scan->range];
		bool		begun;

		scan->from = Max(scan->from, range->from);
		if (scan->from > range->to)
		{
			scan->range++;
			continue;
		}
		begun = scan->after_txid > 0 && scan->from == scan->after_txid;
		scan->to = begun ? scan->from : range->to;
		begin_scans(scan, begun ? scan->after_seq : 0);
		scan->from = scan->to + 1;
		return true;
	}
	return false;
}

void
kpg_outbox_scan_begin(KpgOutboxScan *scan, const KpgOutboxRing *ring, int table, int32 capture,
					  const KpgTxidRange *ranges, int nranges, uint64 after_txid, int64 after_seq)
{
	memset(scan, 0, sizeof(*scan));
	scan->ring = ring;
	scan->first_table = table < 0 ? 0 : table;
	scan->last_table = table < 0 ? KPG_OUTBOX_TABLES - 1 : table;
	scan->capture = capture;
	scan->ranges = ranges;
	scan->nranges = nranges;
	scan->after_txid = after_txid;
	scan->after_seq = after_seq;
	scan->from = after_txid;
	scan->given = -1;
}

static bool
comes_before(const KpgOutboxScan *scan, HeapTuple a, HeapTuple b)
{
	uint64		txid_a = DatumGetUInt64(kpg_outbox_column(scan->ring, a, KPG_OUTBOX_COLUMN_TXID));
	uint64		txid_b = DatumGetUInt64(kpg_outbox_column(scan->ring, b, KPG_OUTBOX_COLUMN_TXID));

	if (txid_a != txid_b)
		return txid_a < txid_b;
	return DatumGetInt64(kpg_outbox_column(scan->ring, a, KPG_OUTBOX_COLUMN_SEQ)) <
		DatumGetInt64(kpg_outbox_column(scan->ring, b, KPG_OUTBOX_COLUMN_SEQ));
}

static int
first_of(const KpgOutboxScan *scan)
{
	int			first = -1;

	for (int i = scan->first_table; i <= scan->last_table; i++)
	{
		if (scan->tuples[i] != NULL &&
			(first < 0 || comes_before(scan, scan->tuples[i], scan->tuples[first])))
			first = i;
	}
	return first;
}

HeapTuple
kpg_outbox_scan_next(KpgOutboxScan *scan)
{
	CHECK_FOR_INTERRUPTS();
	if (scan->given >= 0)
		scan->tuples[scan->given] = systable_getnext_ordered(scan->scans[scan->given], ForwardScanDirection);
	while ((scan->given = first_of(scan)) < 0)
	{
		if (!next_part(scan))
			return NULL;
	}
	return scan->tuples[scan->given];
}

void
kpg_outbox_scan_end(KpgOutboxScan *scan)
{
	end_scans(scan);
}
