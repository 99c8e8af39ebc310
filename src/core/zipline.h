/*
 * zipline.h
 *	  Compression beside the query: helper threads that turn raw chunks into
 *	  compressed blocks.
 *
 *		producer --chunk--> [queue] --threads--> [queue] --block--> consumer
 *
 * Producer and consumer are the same thread, the one that owns the object.
 * Helper threads run with all signals blocked, allocate nothing, and touch
 * only the chunks and blocks that they were handed.  All queues are bounded;
 * nothing here ever makes the owner wait: "full" and "nothing yet" are answers, and
 * kc_zipline_fd() becomes readable when asking again may help.
 *
 * Without threads, and until kc_zipline_start(), the same calls compress in
 * the caller's thread, each for a few milliseconds; see kc_zipline_unfinished().
 * A stream is one gzip member in any case.
 */
#ifndef KC_ZIPLINE_H
#define KC_ZIPLINE_H

#include "buf.h"
#include "gzip.h"

typedef struct KcZipline KcZipline;

#define KC_ZIPLINE_MAX_THREADS	16

/* A compressed block: belongs to the zipline, lent until given back. */
typedef struct KcZipBlock
{
	char	   *data;
	size_t		len;
	bool		ends_stream;	/* last block of this gzip stream */
	bool		begins_stream;	/* first block of this gzip stream */
	void	   *private_link;
} KcZipBlock;

typedef struct KcZiplineOptions
{
	KcGzipEngine engine;		/* 0: the best one */
	int			level;			/* gzip level, 1 by default */
	size_t		chunk_size;		/* raw bytes that a chunk usually holds */
	int			nchunks;		/* raw chunks in existence, at least 2 */
	size_t		block_size;		/* compressed bytes of a full block */
	int			nblocks;		/* blocks in existence, at least 2 */
	int			threads;		/* that kc_zipline_start() starts; 0: none */
} KcZiplineOptions;

extern KcStatus kc_zipline_create(const KcAlloc *alloc, const KcZiplineOptions *options,
								  KcZipline **zipline, KcError *err);

/*
 * Start the threads, unless they are there, or a stream is under way.  As many
 * as can be had: it is no error when there are fewer, or none.
 */
extern void kc_zipline_start(KcZipline *zipline);

/*
 * Stops and joins the threads, at the latest after a few milliseconds of work.
 * In a process forked from the owner's there are none, and it only frees.
 */
extern void kc_zipline_free(KcZipline *zipline);	/* NULL is fine */

/*
 * Readable when, since the last kc_zipline_ack(), a block became ready, or
 * chunks became free that kc_zipline_get_chunk() had not got and work runs
 * short.  -1 as long as there are no threads.
 */
extern int	kc_zipline_fd(KcZipline *zipline);
extern void kc_zipline_ack(KcZipline *zipline);

/*
 * An empty chunk to fill, or NULL when all are in work.  The caller writes
 * into it as a KcBuf (it may outgrow chunk_size for one giant row; it is
 * shrunk when it comes back) and hands it over with kc_zipline_put(), or back
 * unused with kc_zipline_unget().
 */
extern KcBuf *kc_zipline_get_chunk(KcZipline *zipline);
extern void kc_zipline_unget(KcZipline *zipline, KcBuf *chunk);

/* end_stream: this chunk (may be empty) is the last of the current gzip stream. */
extern void kc_zipline_put(KcZipline *zipline, KcBuf *chunk, bool end_stream);

/*
 * The next full or last block in order, or NULL when none is ready.  An error
 * of the compressor comes back here, as status and *err.
 */
extern KcStatus kc_zipline_take(KcZipline *zipline, KcZipBlock **block, KcError *err);
extern void kc_zipline_give_back(KcZipline *zipline, KcZipBlock *block);

/* Without threads a call does no more than a bounded amount of work.  Is there more for the next one? */
extern bool kc_zipline_unfinished(const KcZipline *zipline);

/* Nobody wants the blocks any more: no work is begun from now on. */
extern void kc_zipline_stop(KcZipline *zipline);

#endif							/* KC_ZIPLINE_H */
