/*
 * outbox.h
 *	  Row changes between the transaction that made them and Kusto: the only
 *	  files with SQL on kusto.capture, kusto.capture_shape, kusto.outbox_N and
 *	  kusto.dead_letter.
 *
 *	outbox.c		  names and identity of the tables
 *	outbox_write.c	  chunks into the ring, in the user's transaction
 *	outbox_leader.c	  which of them the index needs
 *	outbox_moved.c	  where a table was rewritten, it needs more
 *	outbox_number.c	  numbers of row changes, from shared memory if there is any
 *	outbox_sequence.c the page of the sequence that they come from
 *	outbox_capture.c  kusto.capture and kusto.capture_shape
 *	outbox_snapshot.c which transactions are between two snapshots
 *	outbox_scan.c	  their chunks, in order
 *	outbox_page.c	  those that the index leads to, but does not have
 *	outbox_read.c	  batches: what is visible now and was not at the last one
 *	outbox_mark.c	  how far a capture has got
 *	outbox_ring.c	  truncation and size
 *	outbox_dead.c	  what Kusto has refused
 *
 * A batch is the difference of two snapshots, so it does not matter in which
 * order transactions commit.  The rows of a batch are those whose top-level
 * transaction (txid) is visible in the newer snapshot and not in the older,
 * which is in the capture's last mark.  A mark commits together with what it
 * says was staged; nothing that others see is ever updated or deleted in the
 * ring, unless a table was rewritten.
 *
 * The ring table that a chunk goes to follows from its number, so writers need
 * not be told.  Whatever table is empty of unsent rows, and nobody has open,
 * may be truncated at any time.
 *
 * SQL runs as in operations.h.  Every function may raise.
 */
#ifndef KPG_OUTBOX_H
#define KPG_OUTBOX_H

#include "postgres.h"

#include "access/attnum.h"
#include "access/transam.h"
#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/uuid.h"

#include "../core/buf.h"
#include "operations.h"

#define KPG_OUTBOX_TABLES	3
/* So many numbers in a row use the same table of the ring. */
#define KPG_OUTBOX_RUN		8192
/* A _seq is a number of kusto.change_number and a place within it. */
#define KPG_OUTBOX_SEQ_BITS 20
/* Bytes of CSV with which a chunk fills a page. */
#define KPG_OUTBOX_CHUNK_SIZE	8000

/* ---- writing (outbox_write.c) ---- */

typedef struct KpgOutboxChunk
{
	int32		capture;
	int64		shape;
	int64		seq;			/* _seq of its first row */
	TimestampTz changed_at;		/* of its first row */
	int32		rows;
	const char *data;			/* whole CSV rows, UTF-8 */
	Size		len;
} KpgOutboxChunk;

/* Draw the next number (outbox_number.c).  Fast; needs no privilege of the user's. */
extern int64 kpg_outbox_number(void);

/* Numbers in shared memory: from _PG_init() while the postmaster loads the library. */
extern void kpg_outbox_share(void);

/*
 * Insert a chunk, with the top-level transaction's id.  Straight into heap and
 * index, as the user, whose privileges do not matter.  Applies
 * kusto_ingest.outbox_limit.
 */
extern void kpg_outbox_write(const KpgOutboxChunk *chunk);

/* Another number whenever one of the relations may be gone, or be another one (outbox.c). */
extern uint64 kpg_outbox_catalog_changes(void);

/* ---- captures (outbox_capture.c) ---- */

/* OID of kusto.capture: the numbers of captures are unique in it (outbox.c). */
extern Oid	kpg_outbox_capture_table(void);

typedef struct KpgCaptureColumn
{
	char	   *name;			/* in Kusto; server encoding */
	char	   *type;			/* in Kusto */
	AttrNumber	attnum;			/* in PostgreSQL; dropped perhaps */
} KpgCaptureColumn;

typedef struct KpgCaptureShape
{
	int64		shape;			/* hash of the columns */
	int			ncolumns;
	KpgCaptureColumn *columns;
	bool		accepted;
} KpgCaptureShape;

typedef struct KpgCapture
{
	int32		id;
	Oid			relation;
	char	   *relation_name;
	Oid			owner;
	char	   *server;
	char	   *database;
	char	   *table_name;
	List	   *columns;		/* of char *; NIL: all */
	bool		old_values;
	bool		create_table;
	char	   *on_type_error;
	bool		has_snapshot;
	pg_uuid_t	snapshot_operation;
	int64		snapshot_seq;
	bool		ended;
	bool		foreign;		/* recorded by another cluster or database */
	uint64		system_identifier;	/* which; 0 in a new one: this cluster and */
	Oid			database_oid;	/* database */
} KpgCapture;

/*
 * Read with the latest snapshot.  NULL: there is none that has not ended.
 * server NULL: whichever.  In the current context.
 */
extern KpgCapture *kpg_outbox_find_capture(Oid relation, const char *server, const char *database,
										   const char *table_name);
/* All of a relation that have not ended; of KpgCapture. */
extern List *kpg_outbox_captures_of(Oid relation);
/* All of this database, ended ones included, foreign ones not; of KpgCapture. */
extern List *kpg_outbox_captures(void);

/*
 * Insert it; sets id.  Waits for another transaction that is inserting the
 * same, and then finds that one: false, and *capture is what is there.
 */
extern bool kpg_outbox_add_capture(KpgCapture *capture);
/*
 * Write the members that kusto_capture may change: owner, columns, create_table,
 * on_type_error, snapshot_operation and snapshot_seq, and whose it is.
 */
extern void kpg_outbox_change_capture(const KpgCapture *capture);
extern void kpg_outbox_end_capture(int32 capture);
/*
 * Ended and all sent: forget it.  The order of its columns is remembered until
 * another capture to the same Kusto table knows of them all.
 */
extern void kpg_outbox_drop_capture(int32 capture);

/* The newest shape; NULL: none yet.  Sees the transaction's own changes. */
extern KpgCaptureShape *kpg_outbox_shape(int32 capture);
/*
 * The same, to add columns to: behind its own it has those that other captures
 * to the same Kusto table have added, with attnum 0.  Until the transaction ends
 * nobody else adds any, who would not see ours.
 */
extern KpgCaptureShape *kpg_outbox_shape_to_extend(const KpgCapture *capture);
/* One by its hash; NULL: not known. */
extern KpgCaptureShape *kpg_outbox_shape_of(int32 capture, int64 shape);
/* Computes the hash into shape->shape, and adds it unless it is visible. */
extern void kpg_outbox_add_shape(int32 capture, KpgCaptureShape *shape);
/* Somebody has said that the Kusto table has these columns. */
extern void kpg_outbox_accept_shapes(int32 capture);

/* ---- marks (outbox_mark.c) ---- */

/* How far a capture has got; as JSON in the data of a row of capture -id. */
typedef struct KpgMark
{
	char	   *snapshot;		/* text of pg_snapshot: all visible in it is sent; NULL:
								 * nothing yet */
	char	   *current;		/* snapshot of a batch that is sent up to after_txid and
								 * after_seq only; NULL: all of each is sent */
	uint64		after_txid;
	int64		after_seq;
	int64		rows;			/* sent in all */
	int64		bytes;
	int64		batches;
	int64		batch_rows;		/* of the last one */
	int64		batch_bytes;
	TimestampTz batch_at;		/* 0: none yet */
	char	   *batch_mode;		/* "streaming", "queued" */
	char	   *batch_operation;	/* of a queued one, or NULL */
	char	   *error_code;		/* what hinders it now; all NULL: nothing */
	char	   *error_message;
	char	   *details;
	char	   *hint;
	TimestampTz error_at;
} KpgMark;

/* The last one; zeroed when there is none.  Strings in the current context. */
extern void kpg_outbox_read_mark(int32 capture, KpgMark *mark);
/* Insert another; commits with the transaction. */
extern void kpg_outbox_write_mark(int32 capture, const KpgMark *mark);
/*
 * Insert the first, unless something has been sent already: what is visible in
 * the active snapshot need not be.
 */
extern void kpg_outbox_skip_visible(int32 capture);

/* ---- batches (outbox_read.c) ---- */

typedef struct KpgSlice
{
	/* in: what is asked for; zeroed after_* begins at the first row */
	int32		capture;
	const char *last;			/* snapshot that the capture has sent, or NULL */
	const char *current;		/* snapshot that the batch ends with; NULL: now */
	uint64		after_txid;		/* the place where the slice before ended */
	int64		after_seq;
	Size		limit;			/* bytes; one chunk at least is read */
	/* out: */
	char	   *snapshot;		/* current, or the one taken now */
	int64		shape;			/* of all its chunks: a slice ends before another one */
	int64		rows;
	int64		first_seq;
	TimestampTz oldest;			/* changed_at */
	bool		more;			/* the batch has more behind it */
	bool		whole;			/* the index led to all rows; see kpg_outbox_set_right() */
} KpgSlice;

/*
 * Append the next chunks, by txid and seq, to out; after_txid and after_seq
 * move on.  rows 0: there is nothing.  The cost follows from what is read, not
 * from what lies in the ring.  What is read is durable, however it was committed.
 * In the worker it is all that there is; elsewhere whole says so.
 */
extern void kpg_outbox_read(KpgSlice *slice, KcBuf *out);

/*
 * Which of these captures have something to send that is not visible in their
 * last snapshot; lasts[i] may be NULL.  Cheap: some index probes each.
 */
extern void kpg_outbox_waiting(const int32 *captures, const char *const *lasts, int n, bool *waiting);

/* ---- rows that have been moved (outbox_moved.c) ---- */

/*
 * For the worker, with the tables locked, before it reads: have the index lead to
 * all rows.  It does not when a table of the ring has been rewritten, by VACUUM
 * FULL for instance.  Looks once at each file that a table has.
 */
extern void kpg_outbox_set_right(void);

/* ---- the ring (outbox_ring.c) ---- */

/*
 * For the worker, after kpg_operations_lock(): the tables of row changes, for
 * reading, until the transaction ends.  Never waits, so that nobody who drops or
 * alters them is ever in a deadlock with us.
 */
extern KpgTables kpg_outbox_lock(void);

/* Bytes of the three tables with their indexes and TOAST tables. */
extern int64 kpg_outbox_size(void);

/*
 * Truncate what is large enough, all sent, and nobody has open, after inserting
 * anew the marks that are needed.  Never waits for a lock, but keeps those it
 * got: in a transaction of its own.  True when a table was truncated.
 * captures are all that are not foreign, lasts what each has sent.
 */
extern bool kpg_outbox_rotate(const int32 *captures, const char *const *lasts, int n);

/* ---- refused batches (outbox_dead.c) ---- */

/* Keep the data of a batch that Kusto will not take; *id names it. */
extern void kpg_outbox_bury(const KpgCapture *capture, const KpgSlice *slice, KcSlice data,
							const KpgFailure *failure, pg_uuid_t *id);

typedef struct KpgDeadLetter
{
	pg_uuid_t	id;
	Oid			owner;
	char	   *server;
	char	   *database;
	char	   *table_name;
	int64		rows;
	KcSlice		data;
} KpgDeadLetter;

/*
 * Lock one to be sent again or given up, in the current context.  False: there
 * is none that the current user may know of.  Raises when it may not be steered.
 */
extern bool kpg_outbox_find_dead(const pg_uuid_t *id, KpgDeadLetter *letter);
/* Delete it. */
extern void kpg_outbox_forget_dead(const pg_uuid_t *id);

#endif							/* KPG_OUTBOX_H */
