/*
 * ingest.h
 *	  One export: rows in, committed blobs out.
 *
 *		chunks of CSV -> compressor threads -> blocks -> Put Block, several in
 *		flight -> Put Block List
 *
 * A result that fits in one block is one Put Blob.  A blob ends between two
 * chunks, hence between two rows, before it would exceed max_blob_size raw
 * bytes.  Nothing becomes visible in Kusto: the blobs are posted later, or
 * never.  Uncommitted blocks and unposted blobs are cleaned by the service.
 *
 * Calls never wait.  Whoever gets "not now" waits for the client's mux, drives
 * it, and asks again.  The first failure sticks and comes back from each call.
 */
#ifndef KC_INGEST_H
#define KC_INGEST_H

#include "kusto.h"

typedef struct KcIngest KcIngest;

typedef struct KcIngestOptions
{
	KcUuid		operation_id;	/* blob names and source ids derive from it */
	uint64_t	max_blob_size;	/* raw bytes */
	size_t		chunk_size;		/* raw bytes; 0: default (256 kB) */
	size_t		block_size;		/* compressed bytes; 0: default (4 MiB) */
	int			window;			/* blocks in flight; 0: default (4) */
	int			level;			/* gzip level; 0: default (1) */
	int			threads;		/* that compress; 0: whoever calls does. At most 16 */
	KcIngestProperties properties;	/* the message's size is checked before the
									 * first upload */
	int			(*next_ordinal) (void *arg);	/* of the blob that is opened; NULL: they
												 * are counted from 1 */
	void	   *ordinal_arg;
} KcIngestOptions;

typedef struct KcIngestBlob
{
	int			ordinal;		/* from 1 */
	KcUuid		source_id;		/* uuid v5 of operation id and ordinal */
	char	   *url;			/* without SAS */
	uint64_t	rows;
	uint64_t	raw_bytes;
	uint64_t	compressed_bytes;
} KcIngestBlob;

/* The source id of a blob: the same on every attempt. */
extern KcStatus kc_ingest_source_id(const KcUuid *operation_id, int ordinal, KcUuid *source_id,
									KcError *err);

/*
 * Starts fetching token and resources at once, so that it overlaps the
 * query's start.  The ingest must be freed before the client.
 */
extern KcStatus kc_ingest_create(const KcAlloc *alloc, KcClient *client, const KcIngestOptions *options,
								 KcIngest **ingest, KcError *err);

/* Cancels what is under way, joins the thread. NULL is fine. */
extern void kc_ingest_free(KcIngest *ingest);

/* An empty chunk to write rows into; NULL in *chunk: not now. */
extern KcStatus kc_ingest_get_chunk(KcIngest *ingest, KcBuf **chunk, KcError *err);

/* Hand over a chunk of whole rows.  Its memory is no longer the caller's. */
extern KcStatus kc_ingest_put_chunk(KcIngest *ingest, KcBuf *chunk, uint64_t rows, KcError *err);

/*
 * No more rows.  Afterwards drive the mux until kc_ingest_done().  A chunk
 * that was got and not put is abandoned.
 */
extern KcStatus kc_ingest_finish(KcIngest *ingest, KcError *err);

/* True when every blob is committed, or when it failed (status and *err say). */
extern bool kc_ingest_done(KcIngest *ingest, KcStatus *status, KcError *err);

/*
 * After success: take in a blob that another ingest of the same operation has
 * committed, in another process perhaps, as if it were one of ours.  Everything
 * of it is copied.
 */
extern KcStatus kc_ingest_adopt(KcIngest *ingest, const KcIngestBlob *blob, KcError *err);

/* Totals so far, and after success the blobs in order. */
extern void kc_ingest_totals(const KcIngest *ingest, uint64_t *rows, uint64_t *raw_bytes,
							 uint64_t *compressed_bytes);
extern int	kc_ingest_nblobs(const KcIngest *ingest);
extern int	kc_ingest_ncommitted(const KcIngest *ingest);
extern const KcIngestBlob *kc_ingest_blob(const KcIngest *ingest, int index);

#endif							/* KC_INGEST_H */
