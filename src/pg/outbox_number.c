/*
 * outbox_number.c
 *	  The next number of kusto.change_number.
 *
 * This does what nextval() does, and writes the same WAL record, but is not
 * nextval() for the sake of lastval(): a statement that draws a number from a
 * sequence of the user's, for an identity column for instance, would have left
 * the user ours.  It also asks neither for privileges on the sequence nor for
 * its options, which are the extension's own: it counts up by one, and nobody
 * keeps numbers in stock, which would come out of order.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/rmgr.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "utils/rel.h"

#include "compat.h"
#include "outbox.h"
#include "outbox_internal.h"

/* So many numbers are logged at once, and lost in a crash, as with nextval(). */
#define LOGGED_AHEAD	32

/* As in sequence.c. */
#define SEQUENCE_MAGIC	0x1717

#define NUMBER_MAX		(PG_INT64_MAX >> KPG_OUTBOX_SEQ_BITS)

/* The one tuple of a sequence, in its locked page. */
static HeapTupleHeader
sequence_tuple(Relation sequence, Page page, Size *len)
{
	ItemId		item = PageGetItemId(page, FirstOffsetNumber);

	/* The special space begins with the magic number. */
	if (*(uint32 *) PageGetSpecialPointer(page) != SEQUENCE_MAGIC)
		elog(ERROR, "bad magic number in sequence \"%s\"", RelationGetRelationName(sequence));
	Assert(ItemIdIsNormal(item));
	*len = ItemIdGetLength(item);
	return (HeapTupleHeader) PageGetItem(page, item);
}

/*
 * Logged is how the sequence stands when all that is logged ahead is used up,
 * and only afterwards is the page given what it is to have: nobody sees it in
 * between, because it is locked.
 */
static void
log_ahead(Relation sequence, Buffer buffer, HeapTupleHeader tuple, Size len, int64 number)
{
	Form_pg_sequence_data form = (Form_pg_sequence_data) ((char *) tuple + tuple->t_hoff);
	xl_seq_rec	record;
	XLogRecPtr	end;

	form->last_value = number + LOGGED_AHEAD;
	form->is_called = true;
	form->log_cnt = 0;

	kpg_compat_set_sequence(&record, sequence);
	XLogBeginInsert();
	XLogRegisterBuffer(0, buffer, REGBUF_WILL_INIT);
	XLogRegisterData((char *) &record, sizeof(record));
	XLogRegisterData((char *) tuple, (uint32) len);
	end = XLogInsert(RM_SEQ_ID, XLOG_SEQ_LOG);
	PageSetLSN(BufferGetPage(buffer), end);
}

static int64
draw(Relation sequence, Buffer buffer)
{
	Page		page = BufferGetPage(buffer);
	Size		len;
	HeapTupleHeader tuple = sequence_tuple(sequence, page, &len);
	Form_pg_sequence_data form = (Form_pg_sequence_data) ((char *) tuple + tuple->t_hoff);
	int64		number = form->is_called ? form->last_value + 1 : form->last_value;
	int64		ahead = form->is_called ? form->log_cnt - 1 : -1;
	bool		log = ahead < 0;

	if (number >= NUMBER_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("sequence \"kusto.change_number\" has reached the last number that can be used")));

	/* After a checkpoint replay would not know what was logged before it. */
	if (!log && PageGetLSN(page) <= GetRedoRecPtr())
		log = true;
	if (log)
		ahead = LOGGED_AHEAD;
	/* Then the commit waits for the record. */
	if (log && RelationNeedsWAL(sequence))
		(void) GetTopTransactionId();

	START_CRIT_SECTION();
	MarkBufferDirty(buffer);
	if (log && RelationNeedsWAL(sequence))
		log_ahead(sequence, buffer, tuple, len, number);
	form->last_value = number;
	form->is_called = true;
	form->log_cnt = ahead;
	END_CRIT_SECTION();
	return number;
}

int64
kpg_outbox_number(void)
{
	Relation	sequence;
	Buffer		buffer;
	int64		number;

	PreventCommandIfReadOnly("kusto_capture_changes()");
	PreventCommandIfParallelMode("kusto_capture_changes()");

	/* The lock stays, so that further numbers cost less. */
	sequence = relation_open(kpg_outbox_sequence(), RowExclusiveLock);
	buffer = ReadBuffer(sequence, 0);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	number = draw(sequence, buffer);
	UnlockReleaseBuffer(buffer);
	relation_close(sequence, NoLock);
	return number;
}
