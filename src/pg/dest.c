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

#include <time.h>

#include "executor/tuptable.h"
#include "storage/bufmgr.h"
#include "utils/memutils.h"

#include "dest.h"
#include "progress.h"
#include "wait.h"

/* A query that is slow to fill chunks must not let transfers starve. */
#define PUMP_INTERVAL_MS 50

/*
 * A look at the clock costs as much as a field.  While the clock has not moved
 * between two looks, so many rows pass without one; otherwise each row has its
 * own.  The first turn after a query has become slow is thus late by so many
 * of its rows at most.
 */
#define ROWS_BETWEEN_LOOKS 4

/* The kernel's last tick is as good, and costs less. */
#ifdef CLOCK_MONOTONIC_COARSE
#define PUMP_CLOCK CLOCK_MONOTONIC_COARSE
#else
#define PUMP_CLOCK CLOCK_MONOTONIC
#endif

/* Of longer rows there are so few on a page that the processor foresees them well enough. */
#define PREFETCH_ROW_SIZE (BLCKSZ / 4)
#define CACHE_LINE_SIZE 64

typedef struct SinkDest
{
	DestReceiver pub;			/* first */
	KpgRowFormat *format;
	KpgSink    *sink;
	KcBuf	   *chunk;			/* being filled; NULL: none yet */
	KcCsvWriter writer;			/* on chunk */
	uint64		chunk_rows;
	uint64		rows;
	int64		pumped;			/* when the network last had its turn, in ms */
	int64		looked;			/* at the clock, in ms */
	int			rows_to_look;	/* that pass before the next look */
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

static inline int64
now_ms(void)
{
	struct timespec now;

	(void) clock_gettime(PUMP_CLOCK, &now);
	return (int64) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void
pump(SinkDest *dest)
{
	kpg_wait_pump();
	tell_progress(dest);
	dest->pumped = dest->looked = now_ms();
}

static void
pump_in_time(SinkDest *dest)
{
	int64		now = now_ms();

	dest->rows_to_look = now == dest->looked ? ROWS_BETWEEN_LOOKS : 0;
	dest->looked = now;
	if (now - dest->pumped >= PUMP_INTERVAL_MS)
		pump(dest);
}

static void
wait_for_sink(const SinkDest *dest)
{
	tell_progress(dest);
	dest->sink->wait(dest->sink);
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

/*
 * Ask memory for the row after the next one while this one is formatted.  The
 * rows of a heap lie on their page from its end downwards, each read upwards,
 * which no processor foresees; a tenth of the time went into waiting for them.
 * Before the page's first row one guesses that the next page is in the next
 * buffer.  A guess that is wrong costs next to nothing, wherever it points.
 *
 * (Not inlined, GCC takes this for a function without effect, and leaves it out.)
 */
static pg_attribute_always_inline void
prefetch_row(TupleTableSlot *slot)
{
#if defined(__GNUC__)
	const BufferHeapTupleTableSlot *heap = (const BufferHeapTupleTableSlot *) slot;
	HeapTuple	tuple;
	uintptr_t	page;
	uintptr_t	row;

	/* A slot of another kind may end before what is read here. */
	if (!TTS_IS_BUFFERTUPLE(slot) || !BufferIsValid(heap->buffer))
		return;
	tuple = heap->base.tuple;
	if (tuple->t_len > PREFETCH_ROW_SIZE)
		return;
	page = (uintptr_t) BufferGetPage(heap->buffer);
	row = (uintptr_t) tuple->t_data - 2 * (uintptr_t) tuple->t_len;
	if (row < page + SizeOfPageHeaderData)
		row += 2 * BLCKSZ;
	for (uint32 at = 0; at <= tuple->t_len; at += CACHE_LINE_SIZE)
		__builtin_prefetch((const void *) (row + at));
#endif
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
	prefetch_row(slot);

	old = MemoryContextSwitchTo(dest->row_context);
	kpg_format_row(dest->format, slot, dest->rows + 1, &dest->writer);
	MemoryContextSwitchTo(old);
	MemoryContextReset(dest->row_context);

	dest->rows++;
	dest->chunk_rows++;
	if (dest->chunk->len >= KPG_DEST_CHUNK_SIZE)
		put_chunk(dest);
	else if (--dest->rows_to_look < 0)
		pump_in_time(dest);
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
	dest->pumped = dest->looked = now_ms();
	return &dest->pub;
}

void
kpg_dest_format(DestReceiver *self, KpgRowFormat *format)
{
	((SinkDest *) self)->format = format;
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
