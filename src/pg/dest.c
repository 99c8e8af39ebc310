/*
 * dest.c
 *	  DestReceiver: slots -> CSV chunks -> a sink.
 *
 * Transfers go on while the query runs: each chunk that is handed over gives
 * the network its turn.  Raises when the sink does, for instance when an upload
 * has failed for good, and serves interrupts; reset callbacks of the caller's
 * clean up then.
 */
#include "postgres.h"

#include "portability/instr_time.h"
#include "utils/memutils.h"

#include "dest.h"
#include "progress.h"
#include "wait.h"

/* A query that is slow to fill chunks must not let transfers starve. */
#define PUMP_INTERVAL_MS 50.0

typedef struct SinkDest
{
	DestReceiver pub;			/* first */
	KpgRowFormat *format;
	KpgSink    *sink;
	KcBuf	   *chunk;			/* being filled; NULL: none yet */
	KcCsvWriter writer;			/* on chunk */
	uint64		chunk_rows;
	uint64		rows;
	instr_time	pumped;			/* when the network last had its turn */
	KpgProgress *progress;
	MemoryContext row_context;
} SinkDest;

static void
tell_progress(const SinkDest *dest)
{
	KpgProgressCounts counts;

	dest->sink->counts(dest->sink, &counts);
	counts.rows = dest->rows;
	if (dest->chunk != NULL)
		counts.raw_bytes += dest->chunk->len;
	kpg_progress_counts(dest->progress, &counts);
}

static void
pump(SinkDest *dest)
{
	kpg_wait_pump();
	tell_progress(dest);
	INSTR_TIME_SET_CURRENT(dest->pumped);
}

static void
wait_for_sink(const SinkDest *dest)
{
	tell_progress(dest);
	dest->sink->wait(dest->sink);
}

static bool
pump_is_due(const SinkDest *dest)
{
	instr_time	elapsed;

	INSTR_TIME_SET_CURRENT(elapsed);
	INSTR_TIME_SUBTRACT(elapsed, dest->pumped);
	return INSTR_TIME_GET_MILLISEC(elapsed) >= PUMP_INTERVAL_MS;
}

static void
get_chunk(SinkDest *dest)
{
	while ((dest->chunk = dest->sink->get(dest->sink)) == NULL)
		wait_for_sink(dest);
	kc_csv_begin(&dest->writer, dest->chunk);
	dest->chunk_rows = 0;
}

static void
put_chunk(SinkDest *dest)
{
	KcBuf	   *chunk = dest->chunk;

	dest->chunk = NULL;
	dest->sink->put(dest->sink, chunk, dest->chunk_rows);
	pump(dest);
}

static void
receiver_startup(DestReceiver *self, int operation, TupleDesc desc)
{
}

static bool
receiver_slot(TupleTableSlot *slot, DestReceiver *self)
{
	SinkDest   *dest = (SinkDest *) self;
	MemoryContext old;

	if (dest->chunk == NULL)
		get_chunk(dest);

	old = MemoryContextSwitchTo(dest->row_context);
	kpg_format_row(dest->format, slot, dest->rows + 1, &dest->writer);
	MemoryContextSwitchTo(old);
	MemoryContextReset(dest->row_context);

	dest->rows++;
	dest->chunk_rows++;
	if (dest->chunk->len >= KPG_DEST_CHUNK_SIZE)
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
	SinkDest   *dest = (SinkDest *) self;

	MemoryContextDelete(dest->row_context);
	pfree(dest);
}

DestReceiver *
kpg_dest_create(KpgRowFormat *format, KpgSink *sink, KpgProgress *progress)
{
	SinkDest   *dest = palloc0(sizeof(SinkDest));

	dest->pub.receiveSlot = receiver_slot;
	dest->pub.rStartup = receiver_startup;
	dest->pub.rShutdown = receiver_shutdown;
	dest->pub.rDestroy = receiver_destroy;
	dest->pub.mydest = DestNone;
	dest->format = format;
	dest->sink = sink;
	dest->progress = progress;
	dest->row_context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest row",
											  ALLOCSET_DEFAULT_SIZES);
	INSTR_TIME_SET_CURRENT(dest->pumped);
	return &dest->pub;
}

void
kpg_dest_finish(DestReceiver *self)
{
	SinkDest   *dest = (SinkDest *) self;

	if (dest->chunk != NULL)
		put_chunk(dest);
	while (!dest->sink->finish(dest->sink))
		wait_for_sink(dest);
	tell_progress(dest);
}
