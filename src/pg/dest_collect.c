/*
 * dest_collect.c
 *	  The sink that keeps a small result in memory, for a request that has to
 *	  be made at once.
 *
 * What was collected is in one piece, and it is remembered where its chunks
 * end: another sink that is to have it after all gets the same chunks.  Memory
 * is the limit, one chunk, and what one row of the query takes.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "alloc.h"
#include "dest.h"
#include "report.h"

typedef struct Piece
{
	size_t		len;
	uint64		rows;
} Piece;

typedef struct CollectSink
{
	KpgSink		pub;			/* first */
	MemoryContext context;		/* of this, next and the buffers */
	size_t		limit;
	KpgOverflow overflow;
	void	   *arg;
	KpgSink    *next;			/* has it all; NULL: it is here */
	KcBuf		chunk;			/* the one that is lent */
	KcBuf		all;
	Piece	   *pieces;			/* of all, in order */
	int			npieces;
	int			pieces_max;
	uint64		rows;
} CollectSink;

static void
check_buffer(const KcBuf *buf)
{
	KcError		err;

	kpg_check(kc_buf_status(buf, &err, "collecting rows"), &err);
}

static KcBuf *
collect_get(KpgSink *self)
{
	CollectSink *sink = (CollectSink *) self;

	if (sink->next != NULL)
		return sink->next->get(sink->next);
	kc_buf_reset(&sink->chunk);
	return &sink->chunk;
}

static void
send_piece(KpgSink *next, const char *data, const Piece *piece)
{
	KcBuf	   *chunk;

	while ((chunk = next->get(next)) == NULL)
		next->wait(next);
	kc_buf_append(chunk, data, piece->len);
	next->put(next, chunk, piece->rows);
}

/* The buffers are not needed any more; the size of one row is not bounded. */
static void
send_on(CollectSink *sink)
{
	MemoryContext old = MemoryContextSwitchTo(sink->context);
	const char *data = sink->all.data;

	sink->next = sink->overflow(sink->arg);
	MemoryContextSwitchTo(old);
	for (int i = 0; i < sink->npieces; i++)
	{
		send_piece(sink->next, data, &sink->pieces[i]);
		data += sink->pieces[i].len;
	}
	kc_buf_free(&sink->all);
}

static void
keep(CollectSink *sink, Piece piece)
{
	Assert(sink->npieces < sink->pieces_max);
	kc_buf_append(&sink->all, sink->chunk.data, piece.len);
	check_buffer(&sink->all);
	sink->pieces[sink->npieces++] = piece;
	sink->rows += piece.rows;
}

static void
collect_put(KpgSink *self, KcBuf *chunk, uint64 rows)
{
	CollectSink *sink = (CollectSink *) self;
	Piece		piece = {.len = chunk->len,.rows = rows};

	if (sink->next != NULL)
	{
		sink->next->put(sink->next, chunk, rows);
		return;
	}
	Assert(chunk == &sink->chunk);
	check_buffer(chunk);
	if (chunk->len <= sink->limit - sink->all.len)
	{
		keep(sink, piece);
		return;
	}
	send_on(sink);
	send_piece(sink->next, chunk->data, &piece);
	kc_buf_free(chunk);
}

static bool
collect_finish(KpgSink *self)
{
	CollectSink *sink = (CollectSink *) self;

	return sink->next == NULL || sink->next->finish(sink->next);
}

/* Memory is always there: only the next one makes anybody wait. */
static void
collect_wait(KpgSink *self)
{
	CollectSink *sink = (CollectSink *) self;

	Assert(sink->next != NULL);
	sink->next->wait(sink->next);
}

static void
collect_counts(const KpgSink *self, KpgProgressCounts *counts)
{
	const CollectSink *sink = (const CollectSink *) self;

	if (sink->next != NULL)
	{
		sink->next->counts(sink->next, counts);
		return;
	}
	memset(counts, 0, sizeof(*counts));
	counts->raw_bytes = sink->all.len;
}

KpgSink *
kpg_dest_collect(size_t limit, KpgOverflow overflow, void *arg)
{
	const KcAlloc *alloc = kpg_alloc_create(CurrentMemoryContext);
	CollectSink *sink = palloc0(sizeof(CollectSink));

	sink->pub.get = collect_get;
	sink->pub.put = collect_put;
	sink->pub.finish = collect_finish;
	sink->pub.wait = collect_wait;
	sink->pub.counts = collect_counts;
	sink->context = CurrentMemoryContext;
	sink->limit = limit;
	sink->overflow = overflow;
	sink->arg = arg;
	kc_buf_init(&sink->chunk, alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&sink->all, alloc, limit);
	/* All pieces but the last are full chunks. */
	sink->pieces_max = (int) (limit / KPG_DEST_CHUNK_SIZE) + 1;
	sink->pieces = palloc(sizeof(Piece) * (Size) sink->pieces_max);
	return &sink->pub;
}

bool
kpg_dest_collected(const KpgSink *self, KcSlice *csv, uint64 *rows)
{
	const CollectSink *sink = (const CollectSink *) self;

	if (sink->next != NULL)
		return false;
	*csv = kc_buf_view(&sink->all);
	*rows = sink->rows;
	return true;
}

void
kpg_dest_overflow(KpgSink *self)
{
	CollectSink *sink = (CollectSink *) self;

	send_on(sink);
	while (!sink->next->finish(sink->next))
		sink->next->wait(sink->next);
}
