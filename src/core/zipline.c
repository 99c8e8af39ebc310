/*
 * zipline.c
 *	  Compression beside the query: the owner's side.
 *
 * Memory is allocated and freed by the owner's thread alone, since its
 * allocator knows no threads: helpers work with what they find, and ring when
 * they need another block.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* eventfd(), pipe2() */
#endif

#include "zipline_internal.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

/* deflate() needs little; a sanitizer's frames need more. */
#define THREAD_STACK_SIZE	(256 * 1024)

/* What a call takes of the chunks in the owner's thread: the host wants its turn. */
#define OWNER_BYTES		(512 * 1024)

/* Besides those in work, some may be done and wait for an earlier one. */
#define SPARE_PIECES		2

static const char doing[] = "compressing rows";

/* Room in a chunk for what it usually holds and the row that overshoots. */
static size_t
chunk_room(const KcZipline *z)
{
	return z->options.chunk_size + z->options.chunk_size / 8;
}

/* ---- what every call does ---- */

static void
shrink_chunk(KcZipline *z, ZipChunk *chunk)
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
	ZipChunk   *chunk;

	for (;;)
	{
		kc_zipline_lock(z);
		chunk = kc_zipline_queue_take(&z->used);
		/* After a failure nobody else will take these. */
		if (chunk == NULL && z->failed != KC_OK)
			chunk = kc_zipline_queue_take(&z->todo);
		kc_zipline_unlock(z);
		if (chunk == NULL)
			return;
		shrink_chunk(z, chunk);
		kc_zipline_queue_put(&z->free_chunks, chunk);
	}
}

/* Make the next block if the compressor has none left. */
static void
provide_block(KcZipline *z)
{
	KcZipBlock *block;
	int			made;
	bool		wanted;

	kc_zipline_lock(z);
	made = z->blocks_made;
	wanted = made < z->options.nblocks && z->empty.count == 0 && z->failed == KC_OK;
	kc_zipline_unlock(z);
	if (!wanted)
		return;

	block = &z->blocks[made];
	block->data = kc_alloc(z->alloc, z->options.block_size);
	if (block->data == NULL)
	{
		/* With one block the work goes on, only slower. */
		if (made == 0)
			kc_zipline_fail(z, KC_ERR_NOMEM);
		return;
	}
	kc_zipline_lock(z);
	z->blocks_made++;
	kc_zipline_queue_put(&z->empty, block);
	(void) pthread_cond_signal(&z->wake);
	kc_zipline_unlock(z);
}

static void
attend(KcZipline *z)
{
	bool		more;

	if (z->nthreads == 0)
		z->taken = 0;
	do
	{
		collect_chunks(z);
		provide_block(z);
		more = z->nthreads == 0 && kc_zipline_work(z);
	} while (more && z->taken < OWNER_BYTES);
	if (more)
		collect_chunks(z);
	z->unfinished = more;
}

bool
kc_zipline_unfinished(const KcZipline *z)
{
	return z->unfinished;
}

int
kc_zipline_fd(KcZipline *z)
{
	return z->nthreads > 0 ? kc_doorbell_fd(&z->doorbell) : -1;
}

void
kc_zipline_ack(KcZipline *z)
{
	if (z->nthreads == 0)
		return;
	kc_zipline_lock(z);
	if (z->rung)
		kc_doorbell_answer(&z->doorbell);
	z->rung = false;
	kc_zipline_unlock(z);
}

/* ---- chunks and blocks ---- */

/* False: none is free, and the helpers will ring when one is. */
static bool
may_be_free(KcZipline *z)
{
	bool		used;

	if (z->free_chunks.count > 0)
		return true;
	kc_zipline_lock(z);
	used = z->used.count > 0;
	z->wants_chunk = !used;
	kc_zipline_unlock(z);
	return used;
}

/*
 * A cache may still have the one that came back last.  But with threads each is
 * used once before any is used again: what memory a long export takes, it takes
 * at its begin, and not when its compressor first falls behind.
 */
static ZipChunk *
take_free_chunk(KcZipline *z)
{
	const ZipChunk *first = kc_zipline_queue_first(&z->free_chunks);

	if (z->nthreads > 0 && first != NULL && first->buf.cap == 0)
		return kc_zipline_queue_take(&z->free_chunks);
	return kc_zipline_queue_take_last(&z->free_chunks);
}

KcBuf *
kc_zipline_get_chunk(KcZipline *z)
{
	ZipChunk   *chunk;

	do
		attend(z);
	while (z->free_chunks.count == 0 && may_be_free(z));
	chunk = take_free_chunk(z);
	if (chunk == NULL)
		return NULL;
	/* Failing to is the chunk's sticky failure, which its filler will see. */
	(void) kc_buf_reserve(&chunk->buf, chunk_room(z));
	return &chunk->buf;
}

void
kc_zipline_unget(KcZipline *z, KcBuf *buf)
{
	ZipChunk   *chunk = (ZipChunk *) buf;

	shrink_chunk(z, chunk);
	kc_zipline_queue_put(&z->free_chunks, chunk);
}

/*
 * Give the chunk what the stream had before it, and keep its end for the next
 * one.  Without memory for it the stream is only longer.
 */
static void
give_before(KcZipline *z, ZipChunk *chunk)
{
	char	   *before = chunk->before;
	const KcBuf *buf = &chunk->buf;
	size_t		old;

	chunk->before = z->before;
	chunk->before_len = z->before_len;
	z->before = before;
	z->before_len = 0;
	if (chunk->end_stream)
		return;
	if (z->before == NULL)
		z->before = kc_alloc(z->alloc, KC_GZIP_WINDOW);
	if (z->before == NULL)
		return;
	old = buf->len < KC_GZIP_WINDOW ? KC_GZIP_WINDOW - buf->len : 0;
	if (old > chunk->before_len)
		old = chunk->before_len;
	if (old > 0)
		memcpy(z->before, chunk->before + chunk->before_len - old, old);
	z->before_len = old + (buf->len < KC_GZIP_WINDOW ? buf->len : KC_GZIP_WINDOW);
	memcpy(z->before + old, buf->data + buf->len - (z->before_len - old), z->before_len - old);
}

void
kc_zipline_put(KcZipline *z, KcBuf *buf, bool end_stream)
{
	ZipChunk   *chunk = (ZipChunk *) buf;
	bool		nothing = buf->len == 0 && !end_stream;

	if (buf->failed != KC_OK)
		kc_zipline_fail(z, buf->failed);
	if (nothing || buf->failed != KC_OK)
	{
		kc_zipline_unget(z, buf);
		return;
	}
	chunk->done = 0;
	chunk->begins_stream = !z->stream_open;
	chunk->end_stream = end_stream;
	z->stream_open = !end_stream;
	if (z->npieces > 0)
		give_before(z, chunk);
	kc_zipline_lock(z);
	kc_zipline_queue_put(&z->todo, chunk);
	(void) pthread_cond_signal(&z->wake);
	kc_zipline_unlock(z);
	attend(z);
}

KcStatus
kc_zipline_take(KcZipline *z, KcZipBlock **block, KcError *err)
{
	KcStatus	failed;

	*block = NULL;
	attend(z);
	kc_zipline_lock(z);
	failed = z->failed;
	if (failed == KC_OK)
		*block = kc_zipline_queue_take(&z->ready);
	kc_zipline_unlock(z);
	if (failed == KC_OK)
		return KC_OK;
	if (failed == KC_ERR_NOMEM)
		return kc_error_nomem(err, doing);
	return kc_error_set(err, failed, doing, "the compressor failed");
}

void
kc_zipline_give_back(KcZipline *z, KcZipBlock *block)
{
	kc_zipline_lock(z);
	kc_zipline_queue_put(&z->empty, block);
	(void) pthread_cond_signal(&z->wake);
	kc_zipline_unlock(z);
	attend(z);
}

void
kc_zipline_stop(KcZipline *z)
{
	kc_zipline_fail(z, KC_ERR_CANCELLED);
}

/* ---- threads ---- */

/* Frees what make_pieces() made. */
static void
free_pieces(KcZipline *z)
{
	for (int i = 0; i < z->npieces; i++)
	{
		kc_gzip_free(z->pieces[i].gzip);
		kc_free(z->alloc, z->pieces[i].out);
	}
	kc_free(z->alloc, z->pieces);
	z->pieces = NULL;
	z->npieces = 0;
}

/* Without memory for all of them there are none, and one thread does the work. */
static void
make_pieces(KcZipline *z, int nthreads)
{
	int			wanted = nthreads + SPARE_PIECES;
	KcGzipEngine engine = kc_gzip_step_engine(z->options.engine, z->options.level);

	z->piece_size = kc_gzip_bound(chunk_room(z)) + KC_GZIP_TRAILER_SIZE;
	z->pieces = kc_alloc0(z->alloc, (size_t) wanted * sizeof(*z->pieces));
	while (z->pieces != NULL && z->npieces < wanted)
	{
		ZipPiece   *piece = &z->pieces[z->npieces++];

		piece->out = kc_alloc(z->alloc, z->piece_size);
		if (piece->out == NULL
			|| kc_gzip_create(z->alloc, engine, z->options.level, &piece->gzip, NULL) != KC_OK)
		{
			free_pieces(z);
			return;
		}
	}
}

/* A thread inherits the mask, so no signal of the host ever runs on it. */
static int
create_threads(KcZipline *z, int wanted)
{
	pthread_attr_t attr;
	sigset_t	all;
	sigset_t	before;
	int			n = 0;

	if (pthread_attr_init(&attr) != 0)
		return 0;
	(void) pthread_attr_setstacksize(&attr, THREAD_STACK_SIZE);
	(void) sigfillset(&all);
	if (pthread_sigmask(SIG_SETMASK, &all, &before) == 0)
	{
		while (n < wanted && pthread_create(&z->threads[n], &attr, kc_zipline_thread_main, z) == 0)
			n++;
		(void) pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	(void) pthread_attr_destroy(&attr);
	return n;
}

static bool
is_idle(KcZipline *z)
{
	bool		idle;

	kc_zipline_lock(z);
	idle = z->todo.count == 0 && z->chunk == NULL && z->failed == KC_OK;
	kc_zipline_unlock(z);
	return idle && !z->stream_open;
}

void
kc_zipline_start(KcZipline *z)
{
	int			n;

	if (z->tried_threads || z->options.threads == 0 || !is_idle(z))
		return;
	z->tried_threads = true;
	if (!kc_doorbell_open(&z->doorbell))
		return;
	if (z->options.threads > 1)
		make_pieces(z, z->options.threads);
	/* What threads see when they get the mutex is settled. */
	kc_zipline_lock(z);
	n = create_threads(z, z->npieces > 0 ? z->options.threads : 1);
	if (n < 2)
		free_pieces(z);
	z->nthreads = n;
	z->pid = getpid();
	kc_zipline_unlock(z);
	if (n == 0)
		kc_doorbell_close(&z->doorbell);
}

static void
stop_threads(KcZipline *z)
{
	kc_zipline_lock(z);
	atomic_store(&z->stop, true);
	(void) pthread_cond_broadcast(&z->wake);
	kc_zipline_unlock(z);
	for (int i = 0; i < z->nthreads; i++)
		(void) pthread_join(z->threads[i], NULL);
}

/* ---- making and freeing ---- */

static KcStatus
check_options(const KcZiplineOptions *options, KcError *err)
{
	if (options->chunk_size == 0 || options->chunk_size >= KC_BUF_UNLIMITED / 2 ||
		options->block_size == 0 || options->nchunks < 2 || options->nblocks < 2 ||
		options->nchunks > 1024 || options->nblocks > 1024 ||
		options->threads < 0 || options->threads > KC_ZIPLINE_MAX_THREADS)
		return kc_error_set(err, KC_ERR_INVALID, doing,
							"the sizes of the compression queue make no sense");
	return KC_OK;
}

static void
init_queues(KcZipline *z)
{
	ZipQueue   *queues[] = {&z->free_chunks, &z->todo, &z->used, &z->empty, &z->ready};
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
		kc_zipline_queue_put(&z->free_chunks, &z->chunks[i]);
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
		status = kc_gzip_create(alloc, options->engine, options->level, &z->gzip, err);
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
	*zipline = z;
	return KC_OK;
}

/* What a fork has left of threads, and of what they held, nobody may touch. */
static void
end_threads(KcZipline *z)
{
	bool		forked = z->nthreads > 0 && z->pid != getpid();

	if (z->nthreads > 0 && !forked)
		stop_threads(z);
	if (z->nthreads > 0)
		kc_doorbell_close(&z->doorbell);
	if (z->have_wake && !forked)
		(void) pthread_cond_destroy(&z->wake);
	if (z->have_mutex && !forked)
		(void) pthread_mutex_destroy(&z->mutex);
}

void
kc_zipline_free(KcZipline *z)
{
	if (z == NULL)
		return;
	end_threads(z);
	free_pieces(z);
	kc_gzip_free(z->gzip);
	for (int i = 0; z->chunks != NULL && i < z->options.nchunks; i++)
	{
		kc_buf_free(&z->chunks[i].buf);
		kc_free(z->alloc, z->chunks[i].before);
	}
	for (int i = 0; i < z->blocks_made; i++)
		kc_free(z->alloc, z->blocks[i].data);
	kc_free(z->alloc, z->before);
	kc_free(z->alloc, z->slots);
	kc_free(z->alloc, z->blocks);
	kc_free(z->alloc, z->chunks);
	kc_free(z->alloc, z);
}
