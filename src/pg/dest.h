/*
 * dest.h
 *	  DestReceiver: slots -> CSV chunks -> a sink, which has them wherever they
 *	  are to go.
 */
#ifndef KPG_DEST_H
#define KPG_DEST_H

#include "postgres.h"

#include "tcop/dest.h"

#include "../core/ingest.h"
#include "../core/mux.h"
#include "format.h"
#include "progress.h"

/* When a chunk is full: the core's own default size of a chunk. */
#define KPG_DEST_CHUNK_SIZE (256 * 1024)

/*
 * Where chunks of whole rows go.  Any of these may raise, serve interrupts and
 * drive the network; only wait waits.
 */
typedef struct KpgSink KpgSink;
struct KpgSink
{
	/* An empty chunk to write rows into; NULL: not now, wait first. */
	KcBuf	   *(*get) (KpgSink *self);
	/* Take back what get gave, with so many whole rows in it. */
	void		(*put) (KpgSink *self, KcBuf *chunk, uint64 rows);
	/* No more rows.  Called until it is true: nothing is under way any more. */
	bool		(*finish) (KpgSink *self);
	/* Until something has happened. */
	void		(*wait) (KpgSink *self);
	/* What was put so far, and what has become of it: all but the rows. */
	void		(*counts) (const KpgSink *self, KpgProgressCounts *counts);
};

/* All of these live in the current memory context, and their arguments longer. */

extern DestReceiver *kpg_dest_create(KpgRowFormat *format, KpgSink *sink, KpgProgress *progress);

/* The rows that follow are of another table, and are written so. */
extern void kpg_dest_format(DestReceiver *dest, KpgRowFormat *format);

/* After the last row: hand over the rest, wait until the sink is finished. */
extern void kpg_dest_finish(DestReceiver *dest);

/* ---- sinks ---- */

/* Into blobs, uploaded while the query runs.  mux is the one that ingest is on. */
extern KpgSink *kpg_dest_ingest(KcIngest *ingest, const KcMux *mux);

/*
 * Into memory, while it is no more than limit bytes.  Of what would exceed it,
 * overflow decides: it raises, or gives the sink that gets all there is and all
 * that follows.
 */
typedef KpgSink *(*KpgOverflow) (void *arg);
extern KpgSink *kpg_dest_collect(size_t limit, KpgOverflow overflow, void *arg);

/* What was collected; false: it has gone on. */
extern bool kpg_dest_collected(const KpgSink *sink, KcSlice *csv, uint64 *rows);

/* Send what was collected on, as if it were too much, and finish. */
extern void kpg_dest_overflow(KpgSink *sink);

#endif							/* KPG_DEST_H */
