/*
 * drain_internal.h
 *	  What the parts of the drain share: the captures in the worker's memory,
 *	  and the batch that each sends.
 *
 *	drain.c			driving the captures: when each begins, and with what share
 *	drain_look.c	which captures there are, and which have something to send
 *	drain_batch.c	a batch: its first rows, as whom, with which columns
 *	drain_send.c	sending it: the table's command, a request, an ingest
 *	drain_mark.c	its end and its failures, in the tables and in the log
 *	drain_flush.c	kusto_flush: who waits for it
 *
 * All but drain_flush.c runs in the worker only.  Memory changes after a commit
 * only, so what fails is just done again.
 */
#ifndef KPG_DRAIN_INTERNAL_H
#define KPG_DRAIN_INTERNAL_H

#include "postgres.h"

#include "lib/ilist.h"

#include "../core/ingest.h"
#include "drain.h"
#include "outbox.h"
#include "session.h"
#include "worker_internal.h"

/* ---- captures in memory ---- */

typedef enum DrainState
{
	DRAIN_IDLE,					/* no batch; perhaps one waits to be begun */
	DRAIN_CREATING,				/* the command that creates the table is under way */
	DRAIN_REFRESHING,			/* nodes are made to forget the columns they know */
	DRAIN_STREAMING,			/* a request is under way */
	DRAIN_UPLOADING,			/* an ingest takes the rows */
	DRAIN_ENDING				/* the end is known, to be written */
} DrainState;

typedef enum DrainEnd
{
	DRAIN_STREAMED,
	DRAIN_STAGED,				/* uploaded; an operation is to post it */
	DRAIN_BURIED				/* refused for ever */
} DrainEnd;

/*
 * What is being sent.  Its rows are those of [mark, slice): they go together,
 * and only their mark says that they have gone.
 */
typedef struct DrainBatch
{
	MemoryContext context;		/* of everything here but session and tasks */
	KpgSession *session;
	KpgSlice	slice;			/* read so far */
	bool		cut;			/* what comes next has another shape */
	bool		refused;		/* the Kusto table is not known to have its shape */
	bool		large;			/* more than one request takes */
	KcBuf		data;			/* of a batch that is not large */
	int64		rows;
	int64		bytes;
	int64		first_seq;
	KcSlice		database;		/* UTF-8, as the next ones */
	KcSlice		table;
	char	   *command;		/* to create the table first; NULL: none */
	KcColumn   *columns;		/* that it is to have then, UTF-8 */
	int			ncolumns;
	KcRequestTask *request;		/* runs it */
	KcTask	   *refresh;
	KcStreamTask *stream;
	KcIngest   *ingest;
	KcBuf	   *chunk;			/* lent by ingest */
	bool		finishing;		/* ingest has all rows */
	pg_uuid_t	operation;		/* of ingest */
	TimestampTz begun_at;
	DrainEnd	end;
	bool		marked;			/* that is on record */
	KpgFailure *refusal;		/* DRAIN_BURIED: why */
} DrainBatch;

typedef struct DrainCapture
{
	dlist_node	node;
	MemoryContext context;		/* of all here but the next three */
	MemoryContext row_context;	/* of row */
	MemoryContext mark_context; /* of mark */
	DrainBatch *batch;			/* NULL when idle */
	int32		id;
	KpgCapture *row;
	KpgMark		mark;			/* the last that has committed */
	DrainState	state;
	bool		listed;			/* by the look under way */
	bool		over;			/* nothing will be added any more */
	bool		ask;			/* look for rows, whether woken or not */
	bool		hurry;			/* do not wait for others */
	bool		large;			/* its batch needs a place among the uploads */
	bool		has_ready_shape;
	int64		ready_shape;	/* the Kusto table has it, as far as we know */
	int64		stale_until_ms;	/* but nodes may not know it: no streaming */
	bool		has_refused_shape;
	int64		refused_shape;	/* nobody has said that the Kusto table has it */
	int64		waiting_ms;		/* something waits to be sent, since; 0: nothing */
	int64		sent_size;		/* of the outbox after the last batch; -1: to be asked */
	int64		due_ms;			/* nothing new before */
	int			failures;		/* since the last success */
	int64		failed_ms;		/* when the last was */
	int64		told_ms;		/* when the mark was given its error */
	bool		logged;			/* the log has that it fails */
} DrainCapture;

/* drain_look.c */
extern dlist_head kpg_drain_list;	/* those that waited longest first */

/*
 * Which captures have something to send?  list: and which are there?  False
 * when that was not possible.
 */
extern bool kpg_drain_look_at(bool woken, bool list);
extern bool kpg_drain_is_listed(void);	/* has that ever been possible? */

/* Does it wait for the export of the rows that were there before? */
extern bool kpg_drain_awaits_snapshot(const DrainCapture *capture);

/* Drop it from memory, with all that is under way. */
extern void kpg_drain_forget(DrainCapture *capture);

/* drain.c */

/* Room was made for what could not begin. */
extern void kpg_drain_run_again(void);

/* Does somebody wait in kusto_flush?  As of this turn. */
extern bool kpg_drain_is_flushing(void);

/* How many have a batch whose rows are uploaded. */
extern int	kpg_drain_uploads(void);
#define DRAIN_UPLOADS_MAX	3

/*
 * One short transaction, as kpg_worker_unit(), with all tables of row changes
 * locked; KPG_UNIT_BUSY when one of them is not to be had at once.
 */
extern KpgUnitResult kpg_drain_unit(const char *activity, void (*body) (void *arg), void *arg,
									ErrorData **error);

/* When the tables were locked, or a transaction failed: not before. */
extern void kpg_drain_pause(DrainCapture *capture, KpgUnitResult result);

/* drain_batch.c */

/* Read what is next and begin to send it; does nothing when there is nothing. */
extern void kpg_drain_begin(DrainCapture *capture);

/* Cancel what is under way and forget it; the capture is idle then. */
extern void kpg_drain_drop_batch(DrainCapture *capture);

/* drain_send.c */

/* A batch that is read, and has its table: choose the way. */
extern void kpg_drain_send(DrainCapture *capture);
extern void kpg_drain_create_table(DrainCapture *capture);

/* Take note of what has come to its end, and go on. */
extern void kpg_drain_advance(DrainCapture *capture);

/* drain_mark.c */

/* Write the end of the batch; then the capture is idle. */
extern void kpg_drain_end(DrainCapture *capture);

/* The mark in memory is this one now. */
extern void kpg_drain_keep_mark(DrainCapture *capture, const KpgMark *mark);

/*
 * kpg_drain_tell: show what hinders a capture, in its mark and in the log.
 *
 * kpg_drain_failed: besides, the batch is dropped and tried again, at the
 * earliest in so many ms.
 */
extern void kpg_drain_tell(DrainCapture *capture, const KpgFailure *failure);
extern void kpg_drain_failed(DrainCapture *capture, const KpgFailure *failure, int64 pause_ms);
extern void kpg_drain_failed_by(DrainCapture *capture, const KcError *err);
extern void kpg_drain_failed_from(DrainCapture *capture, const ErrorData *error);

/* drain_flush.c */

/* Is somebody announced? */
extern bool kpg_drain_flush_wanted(void);

/* A mark has committed: those who wait may look. */
extern void kpg_drain_flush_wake(void);

#endif							/* KPG_DRAIN_INTERNAL_H */
