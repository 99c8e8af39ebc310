/*
 * outbox_sequence.c
 *	  The page of the sequence kusto.change_number.
 *
 * This writes what nextval() does, and the same WAL record, but is not nextval()
 * for the sake of lastval(): a statement that draws a number from a sequence of
 * the user's, for an identity column for instance, would have left the user ours.
 * It also asks neither for privileges on the sequence nor for its options, which
 * are the extension's own: it counts up by one.
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

/* The one tuple of a sequence. */
static HeapTupleHeader
sequence_tuple(Relation relation, Page page, Size *len)
{
	ItemId		item = PageGetItemId(page, FirstOffsetNumber);

	/* The special space begins with the magic number. */
	if (*(uint32 *) PageGetSpecialPointer(page) != SEQUENCE_MAGIC)
		elog(ERROR, "bad magic number in sequence \"%s\"", RelationGetRelationName(relation));
	Assert(ItemIdIsNormal(item));
	*len = ItemIdGetLength(item);
	return (HeapTupleHeader) PageGetItem(page, item);
}

void
kpg_outbox_sequence_open(KpgSequence *sequence)
{
	/* The lock stays, so that the next time costs less. */
	sequence->relation = relation_open(kpg_outbox_sequence(), RowExclusiveLock);
	sequence->buffer = ReadBuffer(sequence->relation, 0);
	LockBuffer(sequence->buffer, BUFFER_LOCK_EXCLUSIVE);
	sequence->tuple = sequence_tuple(sequence->relation, BufferGetPage(sequence->buffer), &sequence->len);
	sequence->form = (Form_pg_sequence_data) ((char *) sequence->tuple + sequence->tuple->t_hoff);
}

void
kpg_outbox_sequence_close(KpgSequence *sequence)
{
	UnlockReleaseBuffer(sequence->buffer);
	relation_close(sequence->relation, NoLock);
}

int64
kpg_outbox_sequence_next(const KpgSequence *sequence)
{
	return sequence->form->is_called ? sequence->form->last_value + 1 : sequence->form->last_value;
}

static void
check_limit(int64 last)
{
	if (last >= KPG_OUTBOX_NUMBER_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("sequence \"kusto.change_number\" has reached the last number that can be used")));
}

/* In a critical section: how it stands when all numbers up to last are taken. */
static void
log_taken(KpgSequence *sequence, int64 last)
{
	xl_seq_rec	record;
	XLogRecPtr	end;

	sequence->form->last_value = last;
	sequence->form->is_called = true;
	sequence->form->log_cnt = 0;
	if (!RelationNeedsWAL(sequence->relation))
		return;

	kpg_compat_set_sequence(&record, sequence->relation);
	XLogBeginInsert();
	XLogRegisterBuffer(0, sequence->buffer, REGBUF_WILL_INIT);
	XLogRegisterData((char *) &record, sizeof(record));
	XLogRegisterData((char *) sequence->tuple, (uint32) sequence->len);
	end = XLogInsert(RM_SEQ_ID, XLOG_SEQ_LOG);
	PageSetLSN(BufferGetPage(sequence->buffer), end);
}

void
kpg_outbox_sequence_take(KpgSequence *sequence, int64 last)
{
	check_limit(last);
	START_CRIT_SECTION();
	MarkBufferDirty(sequence->buffer);
	log_taken(sequence, last);
	END_CRIT_SECTION();
}

/*
 * Logged is how the sequence stands when all that is logged ahead is used up,
 * and only afterwards is the page given what it is to have: nobody sees it in
 * between, because it is locked.
 */
int64
kpg_outbox_sequence_draw(KpgSequence *sequence)
{
	int64		number = kpg_outbox_sequence_next(sequence);
	int64		ahead = sequence->form->is_called ? sequence->form->log_cnt - 1 : -1;

	check_limit(number);
	/* After a checkpoint replay would not know what was logged before it. */
	if (ahead < 0 || PageGetLSN(BufferGetPage(sequence->buffer)) <= GetRedoRecPtr())
	{
		/* Then the commit waits for the record. */
		(void) GetTopTransactionId();
		ahead = LOGGED_AHEAD;
	}

	START_CRIT_SECTION();
	MarkBufferDirty(sequence->buffer);
	if (ahead == LOGGED_AHEAD)
		log_taken(sequence, number + LOGGED_AHEAD);
	sequence->form->last_value = number;
	sequence->form->is_called = true;
	sequence->form->log_cnt = ahead;
	END_CRIT_SECTION();
	return number;
}
