/*
 * outbox_leader.c
 *	  Which rows of the ring need an entry in its index.
 *
 * An entry costs more than a small row itself.  So of the small rows of one
 * capture that a session puts into the same page, one after the other, only the
 * first has an entry; it leads the others, which are found by reading its page.
 * A row that has no entry has a leader,
 *
 * - in the same page, of the same capture, and not behind it by txid and seq, nor
 *	 before it by more than KPG_OUTBOX_LEAD transactions, so that who looks for
 *	 a transaction knows where to begin;
 * - that is visible to everybody who sees the row, and stays as long: the same
 *	 session has inserted it before, and has not rolled anything back since, nor
 *	 prepared a transaction, which others may roll back.
 *
 * Large rows have entries of their own and lead none.  Their number in a
 * transaction has no limit, and who looks for leaders need not pass them.
 *
 * In which page heap_insert() will put a row is known beforehand if it is the one
 * that the last went to and there is room, unless another session fills it in
 * that very moment.  Then the row is taken back and inserted anew.
 *
 * A table that is rewritten has its rows in other pages: see outbox_moved.c.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"

#include "outbox_internal.h"

/* A page has room for some of them. */
#define SMALL_MAX		(BLCKSZ / 8)
/* Captures that a session writes by turns. */
#define LEADERS_MAX		8

typedef struct Leader
{
	int32		capture;
	uint64		txid;
	int64		seq;
} Leader;

/* Where the last leader has gone to. */
static struct
{
	Oid			table;
	Oid			file;			/* of the table; InvalidOid: there is none */
	BlockNumber block;
	Size		room;			/* for tuples, unless others have inserted some */
	int			nleaders;
	int			last;			/* the newest of them */
	Leader		leaders[LEADERS_MAX];
}			page;

/* ---- what makes leaders unsure ---- */

static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_ABORT || event == XACT_EVENT_PREPARE)
		page.file = InvalidOid;
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		page.file = InvalidOid;
}

static void
initialize(void)
{
	static bool initialized;

	if (initialized)
		return;
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	initialized = true;
}

/* ---- the page ---- */

static bool
is_the_page(Relation table, BlockNumber block)
{
	return page.block == block && page.file == table->rd_rel->relfilenode &&
		page.table == RelationGetRelid(table);
}

/* As heap_insert() will see it. */
static Size
room_of(Relation table, BlockNumber block)
{
	Size		reserved = RelationGetTargetPageFreeSpace(table, HEAP_DEFAULT_FILLFACTOR);
	Buffer		buffer = ReadBuffer(table, block);
	Size		room;

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	room = PageGetHeapFreeSpace(BufferGetPage(buffer));
	UnlockReleaseBuffer(buffer);
	return room > reserved ? room - reserved : 0;
}

static void
turn_to(Relation table, BlockNumber block)
{
	/* For the case of an error in between. */
	page.file = InvalidOid;
	page.room = room_of(table, block);
	page.block = block;
	page.nleaders = 0;
	page.last = -1;
	page.table = RelationGetRelid(table);
	page.file = table->rd_rel->relfilenode;
}

static Leader *
leader_of(int32 capture)
{
	for (int i = 0; i < page.nleaders; i++)
	{
		if (page.leaders[i].capture == capture)
			return &page.leaders[i];
	}
	return NULL;
}

static bool
may_lead(const Leader *leader, const KpgOutboxRow *row)
{
	if (leader == NULL || leader->txid > row->txid || row->txid - leader->txid > KPG_OUTBOX_LEAD)
		return false;
	return leader->txid < row->txid || leader->seq <= row->seq;
}

static void
keep_leader(const KpgOutboxRow *row)
{
	Leader	   *leader = leader_of(row->capture);

	if (leader == NULL)
	{
		page.last = (page.last + 1) % LEADERS_MAX;
		page.nleaders = Max(page.nleaders, page.last + 1);
		leader = &page.leaders[page.last];
	}
	*leader = (Leader) {.capture = row->capture,.txid = row->txid,.seq = row->seq};
}

/* ---- inserting ---- */

char
kpg_outbox_choose_entry(Relation table, const KpgOutboxRow *row, Size len)
{
	if (len > SMALL_MAX)
		return KPG_OUTBOX_OWN;
	if (is_the_page(table, RelationGetTargetBlock(table)) && MAXALIGN(len) <= page.room &&
		may_lead(leader_of(row->capture), row))
		return KPG_OUTBOX_NONE;
	return KPG_OUTBOX_SHARED;
}

bool
kpg_outbox_has_landed(Relation table, const KpgOutboxRow *row, BlockNumber block, Size len)
{
	Size		used = MAXALIGN(len) + sizeof(ItemIdData);

	if (row->entry == KPG_OUTBOX_OWN)
		return true;
	if (is_the_page(table, block))
		page.room = page.room > used ? page.room - used : 0;
	else if (row->entry == KPG_OUTBOX_NONE)
	{
		page.file = InvalidOid;
		return false;
	}
	else
	{
		initialize();
		turn_to(table, block);
	}
	if (row->entry == KPG_OUTBOX_SHARED)
		keep_leader(row);
	return true;
}
