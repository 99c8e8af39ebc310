/*
 * outbox_internal.h
 *	  What the parts of outbox share: its tables, and how they are asked.
 */
#ifndef KPG_OUTBOX_INTERNAL_H
#define KPG_OUTBOX_INTERNAL_H

#include "postgres.h"

#include "access/htup.h"
#include "commands/sequence.h"
#include "storage/block.h"
#include "storage/buf.h"
#include "utils/relcache.h"

#include "operations_internal.h"
#include "outbox.h"

/*
 * Our relations by OID.  Remembered until the catalogs change; raises when one
 * is missing.  ring is 0 to KPG_OUTBOX_TABLES - 1.
 */
extern Oid	kpg_outbox_table(int ring);		/* kusto.outbox_N */
extern Oid	kpg_outbox_index(int ring);		/* its index on capture, entry, txid, seq */
extern Oid	kpg_outbox_sequence(void);		/* kusto.change_number */

/* The table of the ring that a _seq belongs to. */
extern int	kpg_outbox_ring_of(int64 seq);

/* ---- rows of the ring ---- */

/* By which entry of the index a row is found; see outbox_leader.c. */
#define KPG_OUTBOX_OWN		'o' /* its own */
#define KPG_OUTBOX_SHARED	's' /* its own, and so are rows of the same page */
#define KPG_OUTBOX_NONE		'n' /* that of a row of the same page */

/* A row as it lies in a table of the ring; no column is ever null. */
typedef struct KpgOutboxRow
{
	uint64		txid;
	int64		seq;
	int64		shape;
	TimestampTz changed_at;
	int32		capture;
	int32		rows;
	char		entry;
	char		data[FLEXIBLE_ARRAY_MEMBER];	/* bytea, aligned unless it is short */
} KpgOutboxRow;

#define KPG_OUTBOX_COLUMNS	8

/* ---- which of them need an entry (outbox_leader.c) ---- */

/* A leader's txid is less than that of what it leads by so much at most. */
#define KPG_OUTBOX_LEAD		1024

/* Decide for a row that is about to be inserted; len is that of its tuple. */
extern char kpg_outbox_choose_entry(Relation table, const KpgOutboxRow *row, Size len);

/*
 * The row is in this page.  False: not in the one that was expected, so nobody
 * would find it; it has to be inserted anew.
 */
extern bool kpg_outbox_has_landed(Relation table, const KpgOutboxRow *row, BlockNumber page, Size len);

/* ---- the sequence (outbox_sequence.c) ---- */

/* Numbers are less. */
#define KPG_OUTBOX_NUMBER_MAX	(PG_INT64_MAX >> KPG_OUTBOX_SEQ_BITS)

/* kusto.change_number, its page locked until it is closed. */
typedef struct KpgSequence
{
	Relation	relation;
	Buffer		buffer;
	HeapTupleHeader tuple;
	Size		len;
	Form_pg_sequence_data form;
} KpgSequence;

extern void kpg_outbox_sequence_open(KpgSequence *sequence);
extern void kpg_outbox_sequence_close(KpgSequence *sequence);
/* The first that is not taken. */
extern int64 kpg_outbox_sequence_next(const KpgSequence *sequence);
/* Take it. */
extern int64 kpg_outbox_sequence_draw(KpgSequence *sequence);
/* Take all up to last; when it returns, that is in the WAL. */
extern void kpg_outbox_sequence_take(KpgSequence *sequence, int64 last);

/*
 * Run one constant SELECT inside a scope, as of now: what others have committed
 * is seen whatever the isolation level, and so are the transaction's own rows.
 */
extern uint64 kpg_outbox_select(const char *sql, const KpgSqlArg *args, int nargs);

/* The same for a statement that writes: it finds rows that are newer than the transaction's snapshot. */
extern uint64 kpg_outbox_execute(const char *sql, const KpgSqlArg *args, int nargs, int expected);

/* A list of char * as text[], or null when it is NIL; and back. */
extern KpgSqlArg kpg_outbox_list_arg(List *strings);
extern List *kpg_outbox_list_value(MemoryContext context, uint64 row, int column);

/* A Datum that may be null. */
extern KpgSqlArg kpg_outbox_nullable_arg(Oid type, Datum value, bool isnull);

#endif							/* KPG_OUTBOX_INTERNAL_H */
