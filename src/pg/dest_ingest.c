/*
 * dest_ingest.c
 *	  The sink that uploads: chunks into the core's ingest.
 *
 * The ingest is the caller's, and frees itself with the caller's memory
 * context whenever something here raises.
 */
#include "postgres.h"

#include "dest.h"
#include "report.h"
#include "wait.h"

typedef struct IngestSink
{
	KpgSink		pub;			/* first */
	KcIngest   *ingest;
	const KcMux *mux;			/* of ingest */
} IngestSink;

static KcBuf *
ingest_get(KpgSink *self)
{
	KcBuf	   *chunk;
	KcError		err;

	kpg_check(kc_ingest_get_chunk(((IngestSink *) self)->ingest, &chunk, &err), &err);
	return chunk;
}

static void
ingest_put(KpgSink *self, KcBuf *chunk, uint64 rows)
{
	KcError		err;

	kpg_check(kc_ingest_put_chunk(((IngestSink *) self)->ingest, chunk, rows, &err), &err);
}

static bool
ingest_finish(KpgSink *self)
{
	IngestSink *sink = (IngestSink *) self;
	KcStatus	status;
	KcError		err;

	kpg_check(kc_ingest_finish(sink->ingest, &err), &err);
	kpg_wait_pump();
	if (!kc_ingest_done(sink->ingest, &status, &err))
		return false;
	kpg_check(status, &err);
	return true;
}

/* The query may have called what broke the mux, and caught the error. */
static void
ingest_wait(KpgSink *self)
{
	kpg_wait_check(((IngestSink *) self)->mux);
	(void) kpg_wait_once(-1, KPG_WAIT_UPLOAD);
}

static void
ingest_counts(const KpgSink *self, KpgProgressCounts *counts)
{
	const IngestSink *sink = (const IngestSink *) self;

	kc_ingest_totals(sink->ingest, &counts->rows, &counts->raw_bytes, &counts->compressed_bytes);
	counts->blobs = kc_ingest_ncommitted(sink->ingest);
}

KpgSink *
kpg_dest_ingest(KcIngest *ingest, const KcMux *mux)
{
	IngestSink *sink = palloc0(sizeof(IngestSink));

	sink->pub.get = ingest_get;
	sink->pub.put = ingest_put;
	sink->pub.finish = ingest_finish;
	sink->pub.wait = ingest_wait;
	sink->pub.counts = ingest_counts;
	sink->ingest = ingest;
	sink->mux = mux;
	return &sink->pub;
}
