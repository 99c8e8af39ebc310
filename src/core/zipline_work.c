/*
 * zipline_work.c
 *	  The work of a zipline: chunks into blocks.
 *
 * Work is done in bounded steps that never wait, allocate or print.  A helper
 * thread does steps in a loop; without threads the owner's calls do.
 *
 * One compressor writes straight into the blocks, and refers back over the
 * ends of chunks.  Several of them cannot know where in a block their chunk
 * will come to lie: each compresses its chunk, with the 32 kB before it as
 * dictionary, into a piece of its own, and pieces are moved to blocks in
 * order, by whoever finds that the first one waits.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "zipline_internal.h"

#include <string.h>

/*
 * Raw bytes between two looks at the stop flag: a few milliseconds, even for
 * the levels that look for long.  ISA-L copies 32 kB for each step.
 */
#define FAST_STEP_SIZE		(288 * 1024)	/* a usual chunk, whole */
#define SLOW_STEP_SIZE		(64 * 1024)
#define FAST_LEVEL			3

/* What the next step takes of the chunk. */
static size_t
step_size(const KcZipline *z, const ZipChunk *chunk)
{
	size_t		left = chunk->buf.len - chunk->done;
	size_t		most = z->options.level <= FAST_LEVEL ? FAST_STEP_SIZE : SLOW_STEP_SIZE;

	return left < most ? left : most;
}

/* ---- queues ---- */

void
kc_zipline_queue_put(ZipQueue *queue, void *item)
{
	queue->slots[(queue->head + queue->count++) % queue->cap] = item;
}

void *
kc_zipline_queue_take(ZipQueue *queue)
{
	void	   *item;

	if (queue->count == 0)
		return NULL;
	item = queue->slots[queue->head];
	queue->head = (queue->head + 1) % queue->cap;
	queue->count--;
	return item;
}

void *
kc_zipline_queue_first(const ZipQueue *queue)
{
	return queue->count == 0 ? NULL : queue->slots[queue->head];
}

void *
kc_zipline_queue_take_last(ZipQueue *queue)
{
	if (queue->count == 0)
		return NULL;
	return queue->slots[(queue->head + --queue->count) % queue->cap];
}

/* ---- telling the owner ---- */

/* Tell the owner that asking again may help.  Mutex held. */
static void
ring(KcZipline *z)
{
	if (z->nthreads > 0 && !z->rung)
	{
		z->rung = true;
		kc_doorbell_ring(&z->doorbell);
	}
}

void
kc_zipline_fail(KcZipline *z, KcStatus status)
{
	kc_zipline_lock(z);
	if (z->failed == KC_OK)
		z->failed = status;
	ring(z);
	kc_zipline_unlock(z);
}

static void
hand_over_block(KcZipline *z, bool ends_stream)
{
	z->block->ends_stream = ends_stream;
	z->begun = !ends_stream;
	kc_zipline_lock(z);
	kc_zipline_queue_put(&z->ready, z->block);
	ring(z);
	kc_zipline_unlock(z);
	z->block = NULL;
}

/*
 * Chunks left to do at which an owner that waits for one is told: time to get
 * going before there is none left, and half of the queue to fill at a stretch.
 */
static int
few_chunks(const KcZipline *z)
{
	int			half = z->options.nchunks / 2;

	return half > z->nthreads ? half : z->nthreads;
}

/* An owner that still has chunks fetches this one when it needs it, without a system call for each. */
static void
hand_back_chunk(KcZipline *z, ZipChunk *chunk)
{
	kc_zipline_lock(z);
	kc_zipline_queue_put(&z->used, chunk);
	if (z->wants_chunk && z->todo.count <= few_chunks(z))
	{
		z->wants_chunk = false;
		ring(z);
	}
	kc_zipline_unlock(z);
}

/* Is there a block to write into?  The owner makes those that do not exist yet.  Mutex held. */
static bool
have_block(KcZipline *z)
{
	if (z->block != NULL)
		return true;
	z->block = kc_zipline_queue_take(&z->empty);
	if (z->block == NULL)
	{
		if (z->blocks_made < z->options.nblocks)
			ring(z);
		return false;
	}
	z->block->len = 0;
	z->block->begins_stream = !z->begun;
	return true;
}

/* ---- one compressor ---- */

/* Mutex held. */
static bool
find_step(KcZipline *z)
{
	if (z->chunk == NULL)
		z->chunk = kc_zipline_queue_take(&z->todo);
	return z->chunk != NULL && have_block(z);
}

/* Compress some of the chunk into the block. */
static void
do_step(KcZipline *z)
{
	ZipChunk   *chunk = z->chunk;
	KcZipBlock *block = z->block;
	size_t		in_len = step_size(z, chunk);
	size_t		in_before = in_len;
	const char *in = chunk->buf.data + chunk->done;
	char	   *out = block->data + block->len;
	size_t		room = z->options.block_size - block->len;
	size_t		room_before = room;
	bool		finish = chunk->end_stream && chunk->done + in_len == chunk->buf.len;
	KcStatus	status;

	status = kc_gzip_run(z->gzip, &in, &in_len, &out, &room, finish, &z->stream_done, NULL);
	if (status != KC_OK)
	{
		kc_zipline_fail(z, status);
		return;
	}
	chunk->done += in_before - in_len;
	z->taken += in_before - in_len;
	block->len += room_before - room;

	if (z->stream_done || room == 0)
		hand_over_block(z, z->stream_done);
	if (chunk->done == chunk->buf.len && (z->stream_done || !chunk->end_stream))
	{
		z->chunk = NULL;
		hand_back_chunk(z, chunk);
	}
	if (z->stream_done)
	{
		kc_gzip_reset(z->gzip);
		z->stream_done = false;
	}
}

/* ---- several compressors ---- */

/* Mutex held. */
static ZipPiece *
find_piece(KcZipline *z)
{
	ZipPiece   *piece = &z->pieces[z->first_piece];

	/* Nothing gets on without the first one. */
	if (z->busy_pieces > 0
		&& (piece->state == ZIP_PIECE_EMPTIED || (piece->state == ZIP_PIECE_FULL && have_block(z))))
		return piece;
	if (z->busy_pieces == z->npieces || z->todo.count == 0)
		return NULL;
	piece = &z->pieces[(z->first_piece + z->busy_pieces++) % z->npieces];
	piece->chunk = kc_zipline_queue_take(&z->todo);
	piece->state = ZIP_PIECE_EMPTIED;
	piece->begun = false;
	return piece;
}

static KcStatus
begin_piece(ZipPiece *piece)
{
	ZipChunk   *chunk = piece->chunk;

	piece->begun = true;
	piece->end_stream = chunk->end_stream;
	piece->closed = false;
	piece->out_len = 0;
	piece->out_done = 0;
	if (chunk->begins_stream)
	{
		kc_gzip_header(piece->out);
		piece->out_len = KC_GZIP_HEADER_SIZE;
	}
	return kc_gzip_begin_piece(piece->gzip, kc_slice_n(chunk->before, chunk->before_len), NULL);
}

/* Compress the chunk until it is done, or the piece is full, or all is to stop. */
static KcStatus
compress_piece(KcZipline *z, ZipPiece *piece)
{
	ZipChunk   *chunk = piece->chunk;
	const size_t size = z->piece_size - KC_GZIP_TRAILER_SIZE;
	KcStatus	status = KC_OK;
	bool		done = false;

	if (!piece->begun)
		status = begin_piece(piece);
	while (status == KC_OK && !done && size - piece->out_len >= KC_GZIP_PIECE_ROOM && !atomic_load(&z->stop))
	{
		size_t		in_len = step_size(z, chunk);
		size_t		in_before = in_len;
		const char *in = chunk->buf.data + chunk->done;
		char	   *out = piece->out + piece->out_len;
		size_t		room = size - piece->out_len;
		bool		finish = chunk->done + in_len == chunk->buf.len;

		status = kc_gzip_run_piece(piece->gzip, &in, &in_len, &out, &room, finish, chunk->end_stream, &done,
								   NULL);
		chunk->done += in_before - in_len;
		piece->out_len = size - room;
	}
	if (done)
	{
		piece->crc = kc_gzip_piece_crc(piece->gzip);
		piece->raw_len = chunk->buf.len;
		piece->chunk = NULL;
		hand_back_chunk(z, chunk);
	}
	return status;
}

/* The first piece's chunk is done: count it, and end the stream with it. */
static void
close_piece(KcZipline *z, ZipPiece *piece)
{
	piece->closed = true;
	z->crc = kc_gzip_join_crc(z->crc, piece->crc, piece->raw_len);
	z->raw_len += piece->raw_len;
	if (!piece->end_stream)
		return;
	kc_gzip_trailer(piece->out + piece->out_len, z->crc, z->raw_len);
	piece->out_len += KC_GZIP_TRAILER_SIZE;
	z->crc = 0;
	z->raw_len = 0;
}

/* Move what fits of the first piece's output into the block. */
static void
empty_piece(KcZipline *z, ZipPiece *piece)
{
	KcZipBlock *block = z->block;
	size_t		room = z->options.block_size - block->len;
	size_t		len;
	bool		ends_stream;

	if (piece->chunk == NULL && !piece->closed)
		close_piece(z, piece);
	len = piece->out_len - piece->out_done;
	if (len > room)
		len = room;
	memcpy(block->data + block->len, piece->out + piece->out_done, len);
	block->len += len;
	piece->out_done += len;
	ends_stream = piece->closed && piece->end_stream && piece->out_done == piece->out_len;
	if (ends_stream || len == room)
		hand_over_block(z, ends_stream);
}

/* The piece's next state after a step.  Mutex held. */
static void
leave_piece(KcZipline *z, ZipPiece *piece)
{
	if (piece->out_done < piece->out_len || piece->chunk == NULL)
		piece->state = ZIP_PIECE_FULL;
	else
	{
		piece->state = ZIP_PIECE_EMPTIED;
		piece->out_len = piece->out_done = 0;
	}
	if (piece->closed && piece->out_done == piece->out_len)
	{
		z->first_piece = (z->first_piece + 1) % z->npieces;
		z->busy_pieces--;
	}
}

/* ---- both ---- */

typedef struct Work
{
	ZipPiece   *piece;			/* NULL: there is one compressor */
	bool		to_empty;		/* the piece; else compress its chunk */
} Work;

/* Takes what is to be done next; false: nothing can be done now.  Mutex held. */
static bool
find_work(KcZipline *z, Work *work)
{
	work->piece = NULL;
	if (z->failed != KC_OK)
		return false;
	if (z->npieces == 0)
		return find_step(z);
	work->piece = find_piece(z);
	if (work->piece == NULL)
		return false;
	work->to_empty = work->piece->state == ZIP_PIECE_FULL;
	work->piece->state = ZIP_PIECE_TAKEN;
	/* There is more than this thread was woken for. */
	if (z->todo.count > 0 && z->busy_pieces < z->npieces)
		(void) pthread_cond_signal(&z->wake);
	return true;
}

static void
do_work(KcZipline *z, const Work *work)
{
	KcStatus	status = KC_OK;

	if (work->piece == NULL)
	{
		do_step(z);
		return;
	}
	if (work->to_empty)
		empty_piece(z, work->piece);
	else
		status = compress_piece(z, work->piece);
	if (status != KC_OK)
		kc_zipline_fail(z, status);
	kc_zipline_lock(z);
	leave_piece(z, work->piece);
	kc_zipline_unlock(z);
}

bool
kc_zipline_work(KcZipline *z)
{
	Work		work;
	bool		found;

	kc_zipline_lock(z);
	found = find_work(z, &work);
	kc_zipline_unlock(z);
	if (found)
		do_work(z, &work);
	return found;
}

void *
kc_zipline_thread_main(void *zipline)
{
	KcZipline  *z = zipline;

	for (;;)
	{
		Work		work;
		bool		found;

		kc_zipline_lock(z);
		while (!(found = find_work(z, &work)) && !atomic_load(&z->stop))
			(void) pthread_cond_wait(&z->wake, &z->mutex);
		kc_zipline_unlock(z);
		if (atomic_load(&z->stop))
			return NULL;
		if (found)
			do_work(z, &work);
	}
}
