/*
 * zipline.h
 *	  Compression beside the query: a helper thread that turns raw chunks into
 *	  compressed blocks.
 *
 *		producer --chunk--> [queue] --thread--> [queue] --block--> consumer
 *
 * Producer and consumer are the same thread, the one that owns the object.
 * The helper thread runs with all signals blocked, allocates nothing, and
 * touches only the chunk and the block that it was handed.  Both queues are
 * bounded; nothing here ever waits: "full" and "nothing yet" are answers, and
 * kc_zipline_fd() becomes readable when asking again may help.
 *
 * Where no thread can be had (pthread_create fails), the same calls compress
 * in the caller's thread.
 */
#ifndef KC_ZIPLINE_H
#define KC_ZIPLINE_H

#include "buf.h"

typedef struct KcZipline KcZipline;

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
	int			level;			/* zlib level, 1 by default */
	size_t		chunk_size;		/* raw bytes that a chunk usually holds */
	int			nchunks;		/* raw chunks in existence, at least 2 */
	size_t		block_size;		/* compressed bytes of a full block */
	int			nblocks;		/* blocks in existence, at least 2 */
	bool		threaded;
} KcZiplineOptions;

extern KcStatus kc_zipline_create(const KcAlloc *alloc, const KcZiplineOptions *options,
								  KcZipline **zipline, KcError *err);

/* Stops and joins the thread, at the latest after one chunk (milliseconds). */
extern void kc_zipline_free(KcZipline *zipline);	/* NULL is fine */

/*
 * Readable when a chunk became free or a block ready since the last
 * kc_zipline_ack().  -1 when not threaded.
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

#endif							/* KC_ZIPLINE_H */
