/*
 * ingest_internal.h
 *	  What ingest.c (the rows' side) and ingest_upload.c (the network's side)
 *	  share.
 *
 * The rows' side opens blobs in order and feeds the compressor; blocks come
 * out in the same order, so the network's side meets the blobs one after the
 * other.
 */
#ifndef KC_INGEST_INTERNAL_H
#define KC_INGEST_INTERNAL_H

#include "ingest.h"
#include "kusto_internal.h"
#include "zipline.h"

typedef struct UploadBlob
{
	KcIngestBlob pub;			/* first member */
	char	   *container;		/* URL without SAS; NULL: not placed yet */
	char	   *sas;			/* secret, of the container */
	uint64_t	generation;		/* of the resources that gave it */
	bool		waiting;		/* for resources: slots stay parked */
	bool		refetched;		/* resources, after the SAS was refused */
	char	   *tried[KC_MAX_TRIES];
	int			ntried;
	int			nblocks;		/* taken from the compressor */
	int			nstored;		/* acknowledged, their memory given back */
	bool		complete;		/* its last block was taken */
	bool		committed;
	bool		commit_parked;
	uint64_t	commit_generation;
	KcHttp	   *commit;			/* Put Block List */
	KcBuf		commit_body;
	struct UploadBlob *next;
} UploadBlob;

/*
 * One upload in flight.  block NULL: free.  block but no http: parked until
 * the blob has a place.
 */
typedef struct UploadSlot
{
	struct KcIngest *ingest;
	UploadBlob *blob;
	KcZipBlock *block;
	int			index;			/* of the block in the blob */
	KcHttp	   *http;
	uint64_t	generation;		/* of the SAS that http was sent with */
	bool		patient;		/* http is tried again for as long as may be */
} UploadSlot;

struct KcIngest
{
	const KcAlloc *alloc;
	KcClient   *client;
	KcUuid		operation_id;
	int			(*next_ordinal) (void *arg);
	void	   *ordinal_arg;
	uint64_t	max_blob_size;
	size_t		chunk_size;
	KcIngestProperties *properties;
	size_t		message_base;	/* bytes of a message without token and SAS */
	bool		message_checked;

	KcZipline  *zipline;
	KcWatch		watch;
	KcWaiter	waiter;
	KcTimer		begin;
	KcTimer		go_on;			/* with compressing in our own thread */

	/* the rows' side */
	KcBuf	   *lent;			/* chunk that the caller fills */
	KcBuf	   *held;			/* the last one, which may end its blob */
	UploadBlob *open;			/* takes rows; NULL: none */
	bool		finishing;
	uint64_t	rows;
	uint64_t	raw_bytes;

	/* the network's side */
	UploadBlob *blobs;
	UploadBlob *last_blob;
	UploadBlob *current;		/* whose blocks come out of the compressor */
	int			nblobs;
	int			nslots;
	UploadSlot *slots;
	bool		pumping;

	KcError		failure;		/* the first one sticks */
};

/* ingest.c */
extern void kc_ingest_fail(KcIngest *ingest, const KcError *err);

/* ingest_upload.c */
extern void kc_ingest_pump(KcIngest *ingest);
extern void kc_ingest_stop_uploads(KcIngest *ingest);
extern void kc_ingest_on_resources(KcWaiter *waiter, const KcError *err);
extern void kc_ingest_want_resources(KcIngest *ingest);

#endif							/* KC_INGEST_INTERNAL_H */
