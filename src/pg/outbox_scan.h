/*
 * outbox_scan.h
 *	  Chunks of a capture between two snapshots, in order of txid and seq, from
 *	  all tables of the ring.
 *
 * Index scans and pages, and not SQL: no statistics are ever collected on these
 * tables, and no plan may read what has been sent already.  Everything may raise.
 */
#ifndef KPG_OUTBOX_SCAN_H
#define KPG_OUTBOX_SCAN_H

#include "postgres.h"

#include "access/genam.h"
#include "access/htup.h"
#include "access/skey.h"
#include "utils/relcache.h"

#include "outbox.h"
#include "outbox_internal.h"

/* Columns of kusto.outbox_N. */
#define KPG_OUTBOX_COLUMN_TXID			1
#define KPG_OUTBOX_COLUMN_SEQ			2
#define KPG_OUTBOX_COLUMN_SHAPE			3
#define KPG_OUTBOX_COLUMN_CHANGED_AT	4
#define KPG_OUTBOX_COLUMN_CAPTURE		5
#define KPG_OUTBOX_COLUMN_ROWS			6
#define KPG_OUTBOX_COLUMN_ENTRY			7
#define KPG_OUTBOX_COLUMN_DATA			8

/* ---- transactions that one snapshot sees and another does not (outbox_snapshot.c) ---- */

typedef struct KpgTxidRange
{
	uint64		from;			/* both are in it */
	uint64		to;
} KpgTxidRange;

/* Text of the active snapshot, as pg_snapshot writes it. */
extern char *kpg_outbox_snapshot_text(void);

/*
 * Those that may be visible in current and are not in last (NULL: none is), as
 * ascending ranges.  Transactions that have not ended are in none of them, so
 * what they have written so far is not read.
 */
extern KpgTxidRange *kpg_outbox_ranges(const char *last, const char *current, int *nranges);

extern bool kpg_outbox_in_ranges(const KpgTxidRange *ranges, int nranges, uint64 txid);

/* ---- the tables ---- */

/* Opened for reading; the active snapshot is one of now. */
typedef struct KpgOutboxRing
{
	Relation	tables[KPG_OUTBOX_TABLES];
	Relation	indexes[KPG_OUTBOX_TABLES];
} KpgOutboxRing;

extern void kpg_outbox_open(KpgOutboxRing *ring);
extern void kpg_outbox_close(KpgOutboxRing *ring);

/* ---- rows that have been moved (outbox_moved.c) ---- */

/* Does the index lead to all rows of these tables? */
extern bool kpg_outbox_is_right(const KpgOutboxRing *ring);
/* It has been truncated just now: all that will come to it is where it should be. */
extern void kpg_outbox_is_new(Relation relation, int table);

/* ---- what is wanted ---- */

typedef struct KpgOutboxWanted
{
	int32		capture;
	const KpgTxidRange *ranges;
	int			nranges;
	uint64		after_txid;		/* behind this place */
	int64		after_seq;
} KpgOutboxWanted;

/* < 0, 0, > 0: by txid and seq. */
static inline int
kpg_outbox_compare(const KpgOutboxRow *a, const KpgOutboxRow *b)
{
	if (a->txid != b->txid)
		return a->txid < b->txid ? -1 : 1;
	return a->seq < b->seq ? -1 : a->seq > b->seq;
}

/* ---- chunks of one table with those who lead them (outbox_page.c) ---- */

typedef struct KpgOutboxPages KpgOutboxPages;

/* In the current context; ring and wanted are the caller's. */
extern KpgOutboxPages *kpg_outbox_pages_begin(const KpgOutboxRing *ring, int table, const KpgOutboxWanted *wanted);
/* The next, valid until the next call; NULL: no more. */
extern HeapTuple kpg_outbox_pages_next(KpgOutboxPages *pages);
extern void kpg_outbox_pages_end(KpgOutboxPages *pages);

/* ---- chunks ---- */

/* Those of a table that have an entry of their own. */
typedef struct KpgOutboxOwn
{
	const KpgOutboxRing *ring;
	int			table;
	const KpgOutboxWanted *wanted;
	int			range;			/* that is being read */
	uint64		from;			/* where the part that is next begins, at the earliest */
	SysScanDesc scan;			/* NULL: not open */
} KpgOutboxOwn;

typedef struct KpgOutboxScan
{
	KpgOutboxWanted wanted;
	int			first_table;	/* tables that are read: from here on */
	int			last_table;
	KpgOutboxOwn own[KPG_OUTBOX_TABLES];
	KpgOutboxPages *pages[KPG_OUTBOX_TABLES];
	HeapTuple	tuples[2 * KPG_OUTBOX_TABLES];	/* next of each; NULL: no more */
	int			given;			/* which of them was given last, or -1 */
} KpgOutboxScan;

/* table: of the ring, -1: all.  Begins behind the place (after_txid, after_seq). */
extern void kpg_outbox_scan_begin(KpgOutboxScan *scan, const KpgOutboxRing *ring, int table, int32 capture,
								  const KpgTxidRange *ranges, int nranges,
								  uint64 after_txid, int64 after_seq);
/* The next chunk, valid until the next call; NULL: no more. */
extern HeapTuple kpg_outbox_scan_next(KpgOutboxScan *scan);
extern void kpg_outbox_scan_end(KpgOutboxScan *scan);

/* Value of a column that is NOT NULL. */
extern Datum kpg_outbox_column(const KpgOutboxRing *ring, HeapTuple tuple, AttrNumber column);

/*
 * Begin to read one table by its index, with these keys, at most KPG_OUTBOX_KEYS;
 * their numbers are those of the table's columns.
 */
#define KPG_OUTBOX_KEYS	5
extern SysScanDesc kpg_outbox_begin_index(const KpgOutboxRing *ring, int table, const ScanKeyData *keys, int nkeys);

/* ---- marks (outbox_mark.c) ---- */

typedef struct KpgLastMark
{
	int			table;			/* of the ring, where it is; -1: there is none */
	uint64		txid;
	int64		seq;
	KpgMark		mark;
} KpgLastMark;

extern void kpg_outbox_find_mark(const KpgOutboxRing *ring, int32 capture, KpgLastMark *last);

/* As kpg_outbox_write_mark(), but not into this table of the ring. */
extern void kpg_outbox_insert_mark(int32 capture, const KpgMark *mark, int avoid);

#endif							/* KPG_OUTBOX_SCAN_H */
