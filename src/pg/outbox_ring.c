/*
 * outbox_ring.c
 *	  Keeping the ring small: truncating what is all sent, and how large it is.
 *
 * Which table is written to follows from the number of a chunk, not from what is
 * done here, so each table is looked at by itself, whichever it is.  Under an
 * ACCESS EXCLUSIVE lock nobody is writing to it, nor has written without having
 * ended; a snapshot taken then sees all that it will ever hold:
 *
 *	a row of a capture, sent or rolled back		goes
 *	a row of a capture, unsent or foreign		the table stays
 *	a capture's last mark						is inserted into another table
 *	any other mark								goes
 *	what no capture owns any more, or one that
 *	was forgotten when all of it had been sent	goes
 *
 * The lock is taken only when it is free, and is held until the caller's
 * transaction ends.  A transaction that is open somewhere, however old, is no
 * obstacle unless it has used the table itself.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/tablecmds.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "fault.h"
#include "outbox_internal.h"
#include "outbox_scan.h"

/*
 * A table is left alone until it has so many bytes, indexes and TOAST included:
 * truncating makes new files and deletes old ones, and a few chunks are in
 * nobody's way.
 */
#define ROTATE_MIN_BYTES	(1024 * 1024)

/* ---- locks ---- */

KpgTables
kpg_outbox_lock(void)
{
	static const char *const others[] = {"capture", "capture_shape", "dead_letter"};
	Oid			relids[KPG_OUTBOX_TABLES + lengthof(others)];

	for (int i = 0; i < KPG_OUTBOX_TABLES; i++)
		relids[i] = kpg_outbox_table(i);
	for (size_t i = 0; i < lengthof(others); i++)
		relids[KPG_OUTBOX_TABLES + i] = get_relname_relid(others[i], get_namespace_oid("kusto", false));
	for (size_t i = 0; i < lengthof(relids); i++)
	{
		if (!OidIsValid(relids[i]))
			return KPG_TABLES_GONE;
		if (!ConditionalLockRelationOid(relids[i], AccessShareLock) ||
			!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relids[i])))
			return KPG_TABLES_BUSY;
	}
	return KPG_TABLES_READY;
}

/* ---- size ---- */

/*
 * Of a relation with its indexes and its TOAST table; what somebody else has
 * locked, to truncate it or worse, counts nothing.
 */
static int64
relation_bytes(Oid relid)
{
	Relation	relation;
	List	   *indexes;
	ListCell   *cell;
	int64		bytes = 0;

	if (!ConditionalLockRelationOid(relid, AccessShareLock))
		return 0;
	relation = RelationIdGetRelation(relid);
	if (RelationIsValid(relation))
	{
		bytes = (int64) RelationGetNumberOfBlocks(relation) * BLCKSZ;
		indexes = relation->rd_rel->relhasindex ? RelationGetIndexList(relation) : NIL;
		foreach(cell, indexes)
			bytes += relation_bytes(lfirst_oid(cell));
		list_free(indexes);
		if (OidIsValid(relation->rd_rel->reltoastrelid))
			bytes += relation_bytes(relation->rd_rel->reltoastrelid);
		RelationClose(relation);
	}
	UnlockRelationOid(relid, AccessShareLock);
	return bytes;
}

int64
kpg_outbox_size(void)
{
	int64		bytes = 0;

	for (int i = 0; i < KPG_OUTBOX_TABLES; i++)
		bytes += relation_bytes(kpg_outbox_table(i));
	return bytes;
}

/* ---- what is in a table ---- */

typedef struct Rotation
{
	const int32 *captures;		/* what is known of how far they have got */
	const char *const *lasts;
	int			n;
} Rotation;

/* Those that may still have something to send, wherever they were recorded. */
static List *
existing_captures(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *ids = NIL;
	KpgSqlScope scope;
	MemoryContext old;
	uint64		n;
	bool		isnull;

	kpg_operations_enter(&scope);
	n = kpg_outbox_select("SELECT c.id FROM kusto.capture c WHERE c.forgotten_at IS NULL", NULL, 0);
	old = MemoryContextSwitchTo(context);
	for (uint64 i = 0; i < n; i++)
		ids = lappend_int(ids, DatumGetInt32(kpg_operations_value(i, 1, &isnull)));
	MemoryContextSwitchTo(old);
	kpg_operations_leave(&scope);
	return ids;
}

/* The least capture in the table that is greater; false: there is none. */
static bool
next_capture(const KpgOutboxRing *ring, int table, int32 *capture)
{
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&key, KPG_OUTBOX_COLUMN_CAPTURE, BTGreaterStrategyNumber, F_INT4GT, Int32GetDatum(*capture));
	scan = kpg_outbox_begin_index(ring, table, &key, 1);
	tuple = systable_getnext_ordered(scan, ForwardScanDirection);
	if (tuple != NULL)
		*capture = DatumGetInt32(kpg_outbox_column(ring, tuple, KPG_OUTBOX_COLUMN_CAPTURE));
	systable_endscan_ordered(scan);
	return tuple != NULL;
}

static bool
is_all_sent(const Rotation *rotation, const KpgOutboxRing *ring, int table, int32 capture)
{
	KpgOutboxScan scan;
	KpgTxidRange *ranges;
	int			nranges;
	int			i = 0;
	bool		sent;

	while (i < rotation->n && rotation->captures[i] != capture)
		i++;
	if (i == rotation->n)
		return false;
	ranges = kpg_outbox_ranges(rotation->lasts[i], kpg_outbox_snapshot_text(), &nranges);
	kpg_outbox_scan_begin(&scan, ring, table, capture, ranges, nranges, 0, 0);
	sent = kpg_outbox_scan_next(&scan) == NULL;
	kpg_outbox_scan_end(&scan);
	return sent;
}

/* False: it must stay.  *marked: captures that have marks in it. */
static bool
may_go(const Rotation *rotation, const KpgOutboxRing *ring, int table, List **marked)
{
	List	   *existing = existing_captures();
	int32		capture = PG_INT32_MIN;

	*marked = NIL;
	while (next_capture(ring, table, &capture))
	{
		if (!list_member_int(existing, abs(capture)))
			continue;
		if (capture < 0)
			*marked = lappend_int(*marked, -capture);
		else if (!is_all_sent(rotation, ring, table, capture))
			return false;
	}
	return true;
}

/* ---- truncating ---- */

static Oid
toast_table(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			toast;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	toast = ((Form_pg_class) GETSTRUCT(tuple))->reltoastrelid;
	ReleaseSysCache(tuple);
	return toast;
}

#define LOCKS	3

/*
 * What TRUNCATE will lock and others may have locked by itself: an anti-wraparound
 * vacuum, for instance, has the TOAST table alone.
 */
static void
relations_to_lock(int table, Oid *relids)
{
	relids[0] = kpg_outbox_table(table);
	relids[1] = kpg_outbox_index(table);
	relids[2] = toast_table(relids[0]);
}

static void
unlock(const Oid *relids, int n)
{
	while (n-- > 0)
		UnlockRelationOid(relids[n], AccessExclusiveLock);
}

static bool
lock_now(const Oid *relids)
{
	for (int i = 0; i < LOCKS; i++)
	{
		if (!ConditionalLockRelationOid(relids[i], AccessExclusiveLock))
		{
			unlock(relids, i);
			return false;
		}
	}
	return true;
}

/* Those that are a capture's last, and so would be missed. */
static void
move_marks(const KpgOutboxRing *ring, int table, const List *marked)
{
	const ListCell *cell;

	foreach(cell, marked)
	{
		KpgLastMark last;

		kpg_outbox_find_mark(ring, lfirst_int(cell), &last);
		if (last.table == table)
			kpg_outbox_insert_mark(lfirst_int(cell), &last.mark, table);
	}
}

/*
 * The command TRUNCATE would be decoded, and so empty the outbox of a subscriber
 * to all tables.
 */
static void
truncate_now(int table)
{
	KpgSqlScope scope;
	Relation	relation;

	/* Whoever writes to the table waits for this commit: it must not wait for a standby. */
	(void) set_config_option("synchronous_commit", "local", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	kpg_operations_enter(&scope);
	PushActiveSnapshot(GetTransactionSnapshot());
	relation = table_open(kpg_outbox_table(table), AccessExclusiveLock);
	CheckTableNotInUse(relation, "TRUNCATE");
	kpg_compat_truncate_quietly(relation);
	kpg_outbox_is_new(relation, table);
	table_close(relation, NoLock);
	PopActiveSnapshot();
	kpg_operations_leave(&scope);
	KPG_FAULT("ring-truncated");
}

/* Looks before it locks: what it finds then is seldom found otherwise afterwards. */
static bool
rotate_table(const Rotation *rotation, int table)
{
	KpgOutboxRing ring;
	Oid			relids[LOCKS];
	List	   *marked;
	bool		spent;

	if (relation_bytes(kpg_outbox_table(table)) < ROTATE_MIN_BYTES)
		return false;
	kpg_outbox_open(&ring);
	spent = may_go(rotation, &ring, table, &marked);
	kpg_outbox_close(&ring);
	relations_to_lock(table, relids);
	if (!spent || !lock_now(relids))
		return false;

	kpg_outbox_open(&ring);
	spent = may_go(rotation, &ring, table, &marked);
	if (spent)
		move_marks(&ring, table, marked);
	kpg_outbox_close(&ring);
	if (spent)
		truncate_now(table);
	else
		unlock(relids, LOCKS);
	return spent;
}

bool
kpg_outbox_rotate(const int32 *captures, const char *const *lasts, int n)
{
	const Rotation rotation = {.captures = captures,.lasts = lasts,.n = n};
	MemoryContext context;
	MemoryContext old;
	bool		rotated = false;

	if (kpg_outbox_lock() != KPG_TABLES_READY)
		return false;
	context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest ring", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	for (int i = 0; i < KPG_OUTBOX_TABLES; i++)
		rotated |= rotate_table(&rotation, i);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return rotated;
}
