/*
 * zipline.c
 *	  Compression beside the query.
 *
 * One mutex guards the queues, and is held only to move a pointer.  A chunk
 * or block belongs to whoever has taken it off a queue.  Memory is allocated
 * and freed by the owner's thread alone, since its allocator knows no threads:
 * the helper works with what it finds, and rings when it needs another block.
 *
 * The work itself is a function that does one bounded step and never waits.
 * The helper thread calls it in a loop; without a thread the owner's calls do.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* eventfd(), pipe2() */
#endif

#include "zipline.h"

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#include "doorbell.h"
#include "gzip.h"

/* deflate() needs little; a sanitizer's frames need more. */
#define THREAD_STACK_SIZE	(256 * 1024)

/* Raw bytes between two looks at the stop flag: about a millisecond. */
#define STEP_SIZE			(128 * 1024)

static const char doing[] = "compressing rows";

/* Pointers in order of arrival; never fuller than what exists of their kind. */
typedef struct Queue
{
	void	  **slots;
	int			cap;
	int			head;
	int			count;
} Queue;

typedef struct Chunk
{
	KcBuf		buf;			/* first, so that the caller's KcBuf is the chunk */
	size_t		done;			/* bytes that the compressor has taken */
	bool		end_stream;
} Chunk;

struct KcZipline
{
	const KcAlloc *alloc;
	KcZiplineOptions options;
	Chunk	   *chunks;
	KcZipBlock *blocks;
	void	  **slots;			/* of all four queues */
	KcGzip	   *gzip;			/* belongs to whoever does the work */

	/* Of the owner alone. */
	int			blocks_made;
	Queue		free_chunks;
	bool		threaded;
	pthread_t	thread;
	KcDoorbell	doorbell;

	/* Of whoever does the work alone. */
	Chunk	   *chunk;
	KcZipBlock *block;
	bool		begun;			/* the stream has had a block */
	bool		stream_done;	/* the compressor has written the trailer */

	/* Guarded by the mutex. */
	pthread_mutex_t mutex;
	pthread_cond_t wake;		/* work, a block, or stop */
	Queue		todo;			/* chunks for the compressor */
	Queue		used;			/* chunks that it is through with */
	Queue		empty;			/* blocks for the compressor */
	Queue		ready;			/* blocks for the consumer */
	KcStatus	failed;			/* first failure; ends all work */
	bool		rung;
	bool		have_mutex;
	bool		have_wake;

	atomic_bool stop;
};

/* ---- queues ---- */

static void
queue_put(Queue *q, void *item)
{
	q->slots[(q->head + q->count++) % q->cap] = item;
}

static void *
queue_take(Queue *q)
{
	void	   *item;

	if (q->count == 0)
		return NULL;
	item = q->slots[q->head];
	q->head = (q->head + 1) % q->cap;
	q->count--;
	return item;
}

static void
lock(KcZipline *z)
{
	(void) pthread_mutex_lock(&z->mutex);
}

static void
unlock(KcZipline *z)
{
	(void) pthread_mutex_unlock(&z->mutex);
}

/* Tell the owner that asking again may help.  Mutex held. */
static void
ring(KcZipline *z)
{
	if (z->threaded && !z->rung)
	{
		z->rung = true;
		kc_doorbell_ring(&z->doorbell);
	}
}

/* ---- the work: no allocation, no stdio, no waiting ---- */

static void
fail(KcZipline *z, KcStatus status)
{
	lock(z);
	if (z->failed == KC_OK)
		z->failed = status;
	ring(z);
	unlock(z);
}

static void
hand_over_block(KcZipline *z)
{
	z->block->ends_stream = z->stream_done;
	z->begun = !z->stream_done;
	lock(z);
	queue_put(&z->ready, z->block);
	ring(z);
	unlock(z);
	z->block = NULL;
}

static void
hand_back_chunk(KcZipline *z)
{
	lock(z);
	queue_put(&z->used, z->chunk);
	ring(z);
	unlock(z);
	z->chunk = NULL;
}

/* Compress one step of the chunk into the block. */
static void
compress_step(KcZipline *z)
{
	Chunk	   *chunk = z->chunk;
	KcZipBlock *block = z->block;
	size_t		left = chunk->buf.len - chunk->done;
	size_t		in_len = left < STEP_SIZE ? left : STEP_SIZE;
	size_t		in_before = in_len;
	const char *in = chunk->buf.data + chunk->done;
	char	   *out = block->data + block->len;
	size_t		room = z->options.block_size - block->len;
	size_t		room_before = room;
	bool		finish = chunk->end_stream && in_len == left;
	KcStatus	status;

	status = kc_gzip_run(z->gzip, &in, &in_len, &out, &room, finish, &z->stream_done, NULL);
	if (status != KC_OK)
	{
		fail(z, status);
		return;
	}
	chunk->done += in_before - in_len;
	block->len += room_before - room;

	if (z->stream_done || room == 0)
		hand_over_block(z);
	if (chunk->done == chunk->buf.len && (z->stream_done || !chunk->end_stream))
		hand_back_chunk(z);
	if (z->stream_done)
	{
		kc_gzip_reset(z->gzip);
		z->stream_done = false;
	}
}

/*
 * Get hold of a chunk and a block.  False when one of them is missing; ringing
 * for a block makes the owner provide one.  Mutex held.
 */
static bool
find_work(KcZipline *z)
{
	if (z->failed != KC_OK)
		return false;
	if (z->chunk == NULL)
		z->chunk = queue_take(&z->todo);
	if (z->chunk == NULL)
		return false;
	if (z->block == NULL)
	{
		z->block = queue_take(&z->empty);
		if (z->block == NULL)
		{
			ring(z);
			return false;
		}
		z->block->len = 0;
		z->block->begins_stream = !z->begun;
	}
	return true;
}

static void *
thread_main(void *arg)
{
	KcZipline  *z = arg;

	for (;;)
	{
		bool		work;

		lock(z);
		while (!(work = find_work(z)) && !atomic_load(&z->stop))
			(void) pthread_cond_wait(&z->wake, &z->mutex);
		unlock(z);
		if (atomic_load(&z->stop))
			return NULL;
		if (work)
			compress_step(z);
	}
}

/* ---- the owner's side ---- */

/* Room in a chunk for what it usually holds and the row that overshoots. */
static size_t
chunk_room(const KcZipline *z)
{
	return z->options.chunk_size + z->options.chunk_size / 8;
}

static void
shrink_chunk(KcZipline *z, Chunk *chunk)
{
	chunk->done = 0;
	chunk->end_stream = false;
	if (chunk->buf.cap > chunk_room(z) + 1)
		kc_buf_free(&chunk->buf);
	else
		kc_buf_reset(&chunk->buf);
}

/* Take back the chunks that are done with. */
static void
collect_chunks(KcZipline *z)
{
	Chunk	   *chunk;

	for (;;)
	{
		lock(z);
		chunk = queue_take(&z->used);
		/* After a failure nobody else will take these. */
		if (chunk == NULL && z->failed != KC_OK)
			chunk = queue_take(&z->todo);
		unlock(z);
		if (chunk == NULL)
			return;
		shrink_chunk(z, chunk);
		queue_put(&z->free_chunks, chunk);
	}
}

/* Make the next block if the compressor has none left. */
static void
provide_block(KcZipline *z)
{
	KcZipBlock *block;
	bool		wanted;

	if (z->blocks_made == z->options.nblocks)
		return;
	lock(z);
	wanted = z->empty.count == 0 && z->failed == KC_OK;
	unlock(z);
	if (!wanted)
		return;

	block = &z->blocks[z->blocks_made];
	block->data = kc_alloc(z->alloc, z->options.block_size);
	if (block->data == NULL)
	{
		/* With one block the work goes on, only slower. */
		if (z->blocks_made == 0)
			fail(z, KC_ERR_NOMEM);
		return;
	}
	z->blocks_made++;
	lock(z);
	queue_put(&z->empty, block);
	(void) pthread_cond_signal(&z->wake);
	unlock(z);
}

/* What every call of the owner does: let the work go on. */
static void
attend(KcZipline *z)
{
	bool		work = true;

	while (work)
	{
		collect_chunks(z);
		provide_block(z);
		if (z->threaded)
			return;
		lock(z);
		work = find_work(z);
		unlock(z);
		if (work)
			compress_step(z);
	}
}

int
kc_zipline_fd(KcZipline *z)
{
	return z->threaded ? kc_doorbell_fd(&z->doorbell) : -1;
}

void
kc_zipline_ack(KcZipline *z)
{
	if (!z->threaded)
		return;
	lock(z);
	if (z->rung)
		kc_doorbell_answer(&z->doorbell);
	z->rung = false;
	unlock(z);
}

KcBuf *
kc_zipline_get_chunk(KcZipline *z)
{
	Chunk	   *chunk;

	attend(z);
	chunk = queue_take(&z->free_chunks);
	if (chunk == NULL)
		return NULL;
	/* Failing to is the chunk's sticky failure, which its filler will see. */
	(void) kc_buf_reserve(&chunk->buf, chunk_room(z));
	return &chunk->buf;
}

void
kc_zipline_unget(KcZipline *z, KcBuf *buf)
{
	Chunk	   *chunk = (Chunk *) buf;

	shrink_chunk(z, chunk);
	queue_put(&z->free_chunks, chunk);
}

void
kc_zipline_put(KcZipline *z, KcBuf *buf, bool end_stream)
{
	Chunk	   *chunk = (Chunk *) buf;
	bool		nothing = buf->len == 0 && !end_stream;

	if (buf->failed != KC_OK)
		fail(z, buf->failed);
	if (nothing || buf->failed != KC_OK)
	{
		kc_zipline_unget(z, buf);
		return;
	}
	chunk->done = 0;
	chunk->end_stream = end_stream;
	lock(z);
	queue_put(&z->todo, chunk);
	(void) pthread_cond_signal(&z->wake);
	unlock(z);
	attend(z);
}

KcStatus
kc_zipline_take(KcZipline *z, KcZipBlock **block, KcError *err)
{
	KcStatus	failed;

	*block = NULL;
	attend(z);
	lock(z);
	failed = z->failed;
	if (failed == KC_OK)
		*block = queue_take(&z->ready);
	unlock(z);
	if (failed == KC_OK)
		return KC_OK;
	if (failed == KC_ERR_NOMEM)
		return kc_error_nomem(err, doing);
	return kc_error_set(err, failed, doing, "the compressor failed");
}

void
kc_zipline_give_back(KcZipline *z, KcZipBlock *block)
{
	lock(z);
	queue_put(&z->empty, block);
	(void) pthread_cond_signal(&z->wake);
	unlock(z);
	attend(z);
}

/* ---- making and freeing ---- */

static KcStatus
check_options(const KcZiplineOptions *options, KcError *err)
{
	if (options->chunk_size == 0 || options->chunk_size >= KC_BUF_UNLIMITED / 2 ||
		options->block_size == 0 || options->nchunks < 2 || options->nblocks < 2 ||
		options->nchunks > 1024 || options->nblocks > 1024)
		return kc_error_set(err, KC_ERR_INVALID, doing,
							"the sizes of the compression queue make no sense");
	return KC_OK;
}

/* The thread inherits the mask, so no signal of the host ever runs on it. */
static bool
create_thread(KcZipline *z)
{
	pthread_attr_t attr;
	sigset_t	all;
	sigset_t	before;
	bool		ok;

	if (pthread_attr_init(&attr) != 0)
		return false;
	(void) pthread_attr_setstacksize(&attr, THREAD_STACK_SIZE);
	(void) sigfillset(&all);
	ok = pthread_sigmask(SIG_SETMASK, &all, &before) == 0;
	if (ok)
	{
		ok = pthread_create(&z->thread, &attr, thread_main, z) == 0;
		(void) pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	(void) pthread_attr_destroy(&attr);
	return ok;
}

/* Threaded if it can be had, else the owner's calls do the work. */
static void
start_thread(KcZipline *z)
{
	if (!kc_doorbell_open(&z->doorbell))
		return;
	/* Before the thread exists, which reads it. */
	z->threaded = true;
	if (!create_thread(z))
	{
		z->threaded = false;
		kc_doorbell_close(&z->doorbell);
	}
}

static void
init_queues(KcZipline *z)
{
	Queue	   *queues[] = {&z->free_chunks, &z->todo, &z->used, &z->empty, &z->ready};
	int			caps[] = {z->options.nchunks, z->options.nchunks, z->options.nchunks,
	z->options.nblocks, z->options.nblocks};
	void	  **slots = z->slots;

	for (int i = 0; i < 5; i++)
	{
		queues[i]->slots = slots;
		queues[i]->cap = caps[i];
		slots += caps[i];
	}
	for (int i = 0; i < z->options.nchunks; i++)
	{
		kc_buf_init(&z->chunks[i].buf, z->alloc, KC_BUF_UNLIMITED);
		queue_put(&z->free_chunks, &z->chunks[i]);
	}
}

KcStatus
kc_zipline_create(const KcAlloc *alloc, const KcZiplineOptions *options,
				  KcZipline **zipline, KcError *err)
{
	KcZipline  *z;
	size_t		nchunks;
	size_t		nblocks;
	KcStatus	status = check_options(options, err);

	*zipline = NULL;
	if (status != KC_OK)
		return status;
	nchunks = (size_t) options->nchunks;
	nblocks = (size_t) options->nblocks;
	z = kc_alloc0(alloc, sizeof(*z));
	if (z == NULL)
		return kc_error_nomem(err, doing);
	z->alloc = alloc;
	z->options = *options;
	atomic_init(&z->stop, false);
	z->chunks = kc_alloc0(alloc, nchunks * sizeof(*z->chunks));
	z->blocks = kc_alloc0(alloc, nblocks * sizeof(*z->blocks));
	z->slots = kc_alloc0(alloc, (3 * nchunks + 2 * nblocks) * sizeof(*z->slots));
	if (z->chunks == NULL || z->blocks == NULL || z->slots == NULL)
		status = kc_error_nomem(err, doing);
	if (status == KC_OK)
		status = kc_gzip_create(alloc, options->level, &z->gzip, err);
	if (status == KC_OK)
	{
		init_queues(z);
		z->have_mutex = pthread_mutex_init(&z->mutex, NULL) == 0;
		z->have_wake = pthread_cond_init(&z->wake, NULL) == 0;
		if (!z->have_mutex || !z->have_wake)
			status = kc_error_nomem(err, doing);
	}
	if (status != KC_OK)
	{
		kc_zipline_free(z);
		return status;
	}
	if (options->threaded)
		start_thread(z);
	*zipline = z;
	return KC_OK;
}

static void
stop_thread(KcZipline *z)
{
	lock(z);
	atomic_store(&z->stop, true);
	(void) pthread_cond_signal(&z->wake);
	unlock(z);
	(void) pthread_join(z->thread, NULL);
	kc_doorbell_close(&z->doorbell);
}

void
kc_zipline_free(KcZipline *z)
{
	if (z == NULL)
		return;
	if (z->threaded)
		stop_thread(z);
	if (z->have_wake)
		(void) pthread_cond_destroy(&z->wake);
	if (z->have_mutex)
		(void) pthread_mutex_destroy(&z->mutex);
	kc_gzip_free(z->gzip);
	for (int i = 0; z->chunks != NULL && i < z->options.nchunks; i++)
		kc_buf_free(&z->chunks[i].buf);
	for (int i = 0; i < z->blocks_made; i++)
		kc_free(z->alloc, z->blocks[i].data);
	kc_free(z->alloc, z->slots);
	kc_free(z->alloc, z->blocks);
	kc_free(z->alloc, z->chunks);
	kc_free(z->alloc, z);
}
