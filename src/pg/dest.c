/*
 * dest.c
 *	  DestReceiver: slots -> CSV chunks -> the core's ingest.
 *
 * Uploads go on while the query runs: each chunk that is handed over gives
 * the network its turn.  Raises when an upload has failed for good, and
 * serves interrupts; the caller's reset callback frees the ingest then.
 */
#include "postgres.h"

#include "portability/instr_time.h"
#include "utils/memutils.h"

#include "dest.h"
#include "progress.h"
#include "report.h"
#include "wait.h"

/* When a chunk is full: the core's own default size of a chunk. */
#define CHUNK_SIZE (256 * 1024)

/* A query that is slow to fill chunks must not let transfers starve. */
#define PUMP_INTERVAL_MS 50.0

typedef struct IngestDest
{
	DestReceiver pub;			/* first */
	KpgRowFormat *format;
	KcIngest   *ingest;
	const KcMux *mux;			/* of ingest */
	KcBuf	   *chunk;			/* being filled; NULL: none yet */
	KcCsvWriter writer;			/* on chunk */
	uint64		chunk_rows;
	uint64		rows;
	instr_time	pumped;			/* when the network last had its turn */
	KpgProgress *progress;
	MemoryContext row_context;
} IngestDest;

static void
tell_progress(const IngestDest *dest)
{
	KpgProgressCounts counts;
	uint64		rows_put;

	kc_ingest_totals(dest->ingest, &rows_put, &counts.raw_bytes, &counts.compressed_bytes);
	counts.rows = dest->rows;
	if (dest->chunk != NULL)
		counts.raw_bytes += dest->chunk->len;
	counts.blobs = kc_ingest_ncommitted(dest->ingest);
	kpg_progress_counts(dest->progress, &counts);
}

static void
pump(IngestDest *dest)
{
	kpg_wait_pump();
	tell_progress(dest);
	INSTR_TIME_SET_CURRENT(dest->pumped);
}

/* The query may have called what broke the mux, and caught the error. */
static void
wait_for_upload(const IngestDest *dest)
{
	kpg_wait_check(dest->mux);
	tell_progress(dest);
	(void) kpg_wait_once(-1, KPG_WAIT_UPLOAD);
}

static bool
pump_is_due(const IngestDest *dest)
{
	instr_time	elapsed;

	INSTR_TIME_SET_CURRENT(elapsed);
	INSTR_TIME_SUBTRACT(elapsed, dest->pumped);
	return INSTR_TIME_GET_MILLISEC(elapsed) >= PUMP_INTERVAL_MS;
}

static void
get_chunk(IngestDest *dest)
{
	KcError		err;

	while (dest->chunk == NULL)
	{
		kpg_check(kc_ingest_get_chunk(dest->ingest, &dest->chunk, &err), &err);
		if (dest->chunk == NULL)
			wait_for_upload(dest);
	}
	kc_csv_begin(&dest->writer, dest->chunk);
	dest->chunk_rows = 0;
}

static void
put_chunk(IngestDest *dest)
{
	KcBuf	   *chunk = dest->chunk;
	KcError		err;

	dest->chunk = NULL;
	kpg_check(kc_ingest_put_chunk(dest->ingest, chunk, dest->chunk_rows, &err), &err);
	pump(dest);
}

static void
receiver_startup(DestReceiver *self, int operation, TupleDesc desc)
{
}

static bool
receiver_slot(TupleTableSlot *slot, DestReceiver *self)
{
	IngestDest *dest = (IngestDest *) self;
	MemoryContext old;

	if (dest->chunk == NULL)
		get_chunk(dest);

	old = MemoryContextSwitchTo(dest->row_context);
	kpg_format_row(dest->format, slot, dest->rows + 1, &dest->writer);
	MemoryContextSwitchTo(old);
	MemoryContextReset(dest->row_context);

	dest->rows++;
	dest->chunk_rows++;
	if (dest->chunk->len >= CHUNK_SIZE)
		put_chunk(dest);
	else if (pump_is_due(dest))
		pump(dest);
	return true;
}

/* The executor may shut a receiver down before we are ready to wait. */
static void
receiver_shutdown(DestReceiver *self)
{
}

static void
receiver_destroy(DestReceiver *self)
{
	IngestDest *dest = (IngestDest *) self;

	MemoryContextDelete(dest->row_context);
	pfree(dest);
}

DestReceiver *
kpg_dest_create(KpgRowFormat *format, KcIngest *ingest, const KcMux *mux, KpgProgress *progress)
{
	IngestDest *dest = palloc0(sizeof(IngestDest));

	dest->pub.receiveSlot = receiver_slot;
	dest->pub.rStartup = receiver_startup;
	dest->pub.rShutdown = receiver_shutdown;
	dest->pub.rDestroy = receiver_destroy;
	dest->pub.mydest = DestNone;
	dest->format = format;
	dest->ingest = ingest;
	dest->mux = mux;
	dest->progress = progress;
	dest->row_context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest row",
											  ALLOCSET_DEFAULT_SIZES);
	INSTR_TIME_SET_CURRENT(dest->pumped);
	return &dest->pub;
}

void
kpg_dest_finish(DestReceiver *self)
{
	IngestDest *dest = (IngestDest *) self;
	KcStatus	status;
	KcError		err;

	kpg_progress_phase(dest->progress, KPG_PHASE_UPLOAD);
	if (dest->chunk != NULL)
		put_chunk(dest);
	kpg_check(kc_ingest_finish(dest->ingest, &err), &err);
	kpg_wait_pump();
	while (!kc_ingest_done(dest->ingest, &status, &err))
		wait_for_upload(dest);
	kpg_check(status, &err);
	tell_progress(dest);
}
