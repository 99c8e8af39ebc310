/*
 * zipline_internal.h
 *	  What zipline.c (the owner's side) and zipline_work.c (the work) share.
 *
 * One mutex guards the queues and the states of pieces, and is held only to
 * move pointers.  A chunk, block or piece belongs to whoever has taken it.
 */
#ifndef KC_ZIPLINE_INTERNAL_H
#define KC_ZIPLINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "doorbell.h"
#include "zipline.h"

/* Pointers in order of arrival; never fuller than what exists of their kind. */
typedef struct ZipQueue
{
	void	  **slots;
	int			cap;
	int			head;
	int			count;
} ZipQueue;

typedef struct ZipChunk
{
	KcBuf		buf;			/* first, so that the caller's KcBuf is the chunk */
	size_t		done;			/* bytes that the compressor has taken */
	bool		begins_stream;
	bool		end_stream;
	char	   *before;			/* for pieces: the stream's bytes before it */
	size_t		before_len;
} ZipChunk;

typedef enum ZipPieceState
{
	ZIP_PIECE_TAKEN,			/* a thread works on it */
	ZIP_PIECE_FULL,				/* its output waits for its turn */
	ZIP_PIECE_EMPTIED			/* its chunk can be gone on with */
} ZipPieceState;

/*
 * One chunk on its way through one compressor.  Pieces are begun in the order
 * of their chunks, and emptied into blocks in that order.
 */
typedef struct ZipPiece
{
	ZipPieceState state;
	KcGzip	   *gzip;
	ZipChunk   *chunk;			/* NULL: all of it is taken and flushed */
	bool		end_stream;		/* the chunk's */
	bool		begun;			/* its compressor has been given its chunk */
	bool		closed;			/* counted, and the stream's trailer added */
	uint32_t	crc;			/* of the chunk */
	uint64_t	raw_len;
	char	   *out;
	size_t		out_len;
	size_t		out_done;		/* moved to blocks */
} ZipPiece;

struct KcZipline
{
	const KcAlloc *alloc;
	KcZiplineOptions options;
	ZipChunk   *chunks;
	KcZipBlock *blocks;
	void	  **slots;			/* of all queues */

	/* Of the owner alone. */
	ZipQueue	free_chunks;
	bool		stream_open;	/* what was put last did not end its stream */
	char	   *before;			/* for pieces: the end of what was put last */
	size_t		before_len;
	bool		unfinished;		/* the owner's last call stopped before its work did */
	bool		tried_threads;
	int			nthreads;		/* 0: the owner does the work */
	pthread_t	threads[KC_ZIPLINE_MAX_THREADS];
	pid_t		pid;			/* whose threads they are */
	KcDoorbell	doorbell;

	/* Of whoever does the work alone: one thread, or the owner ... */
	KcGzip	   *gzip;
	ZipChunk   *chunk;
	bool		stream_done;	/* the compressor has written the trailer */
	size_t		taken;			/* bytes, since the owner began to count */
	/* ... or whoever has taken the first piece. */
	uint32_t	crc;			/* of the stream's pieces so far */
	uint64_t	raw_len;
	KcZipBlock *block;			/* being filled */
	bool		begun;			/* the stream has had a block */

	/* Several threads make pieces; 0: one does it all. */
	int			npieces;
	ZipPiece   *pieces;			/* a ring */
	size_t		piece_size;

	/* Guarded by the mutex. */
	pthread_mutex_t mutex;
	pthread_cond_t wake;		/* work, a block, or stop */
	int			first_piece;	/* in the ring: whose turn it is */
	int			busy_pieces;
	int			blocks_made;
	ZipQueue	todo;			/* chunks for the compressor */
	ZipQueue	used;			/* chunks that it is through with */
	ZipQueue	empty;			/* blocks for the compressor */
	ZipQueue	ready;			/* blocks for the consumer */
	KcStatus	failed;			/* first failure; ends all work */
	bool		wants_chunk;	/* the owner was told that there is none */
	bool		rung;
	bool		have_mutex;
	bool		have_wake;

	atomic_bool stop;
};

static inline void
kc_zipline_lock(KcZipline *z)
{
	(void) pthread_mutex_lock(&z->mutex);
}

static inline void
kc_zipline_unlock(KcZipline *z)
{
	(void) pthread_mutex_unlock(&z->mutex);
}

/* zipline_work.c */
extern void kc_zipline_queue_put(ZipQueue *queue, void *item);
/* The one that came first, which may stay, and the one that came last; NULL: empty. */
extern void *kc_zipline_queue_first(const ZipQueue *queue);
extern void *kc_zipline_queue_take(ZipQueue *queue);
extern void *kc_zipline_queue_take_last(ZipQueue *queue);
extern void kc_zipline_fail(KcZipline *z, KcStatus status);

/* Do one bounded step of what there is to do; false: nothing can be done. */
extern bool kc_zipline_work(KcZipline *z);
extern void *kc_zipline_thread_main(void *zipline);

#endif							/* KC_ZIPLINE_INTERNAL_H */
