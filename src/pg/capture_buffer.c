/*
 * capture_buffer.c
 *	  Captured rows of the transaction until they fill a chunk.
 *
 * A chunk holds rows of one capture, of one shape, and of one subtransaction,
 * the only one that may write it: what a subtransaction writes goes when it is
 * rolled back, and what it has not written is forgotten then.  When it commits,
 * its rows become those of its parent.  If the parent has a chunk already and
 * both do not fit into one, then the parent's is written just before that, by
 * the subtransaction, which cannot fail any more without the callback for its
 * abort being called: the copy in memory goes only once it has committed.  So
 * there is at most one chunk of a capture for each subtransaction that is under
 * way, and a loop of a million subtransactions still fills its chunks.
 *
 * A row that an error leaves half written is one of the subtransaction that
 * ends with that error, and goes with its chunk.
 *
 * A value's output function may change captured rows itself.  They go into
 * another chunk than the one that is being written to, and that is written as
 * soon as it is closed.
 *
 * Chunks are kept in memory of the session's, since most transactions need one.
 */
#include "postgres.h"

#include "access/xact.h"
#include "lib/ilist.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

#include "alloc.h"
#include "capture_internal.h"
#include "compat.h"
#include "worker.h"

/* Room for a chunk and the row that makes it too long, as a rule. */
#define CSV_RESERVE		(KPG_OUTBOX_CHUNK_SIZE + 2048)
/* A chunk of a session that has had a very long row gives its memory back. */
#define CSV_KEEP		(64 * 1024)
/* More than a record may have. */
#define CSV_MAX			((size_t) 256 * 1024 * 1024)
#define FREE_CHUNKS_MAX 8

static MemoryContext buffer_context;
static const KcAlloc *buffer_alloc;

static dlist_head chunks = DLIST_STATIC_INIT(chunks);
static dlist_head free_chunks = DLIST_STATIC_INIT(free_chunks);
static int	nfree_chunks;

/* The transaction's chunks are being written, or have been: keep none any more. */
static bool ending;

static void xact_callback(XactEvent event, void *arg);
static void subxact_callback(SubXactEvent event, SubTransactionId mine,
							 SubTransactionId parent, void *arg);

/* ---- chunks ---- */

static void
initialize(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "kusto_ingest captured rows",
												  ALLOCSET_DEFAULT_SIZES);

	buffer_alloc = kpg_alloc_create(context);
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
	buffer_context = context;
}

static void
reserve(KcBuf *csv, size_t extra)
{
	if (!kc_buf_reserve(csv, extra))
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed while recording row changes.")));
}

static KpgCaptureChunk *
new_chunk(void)
{
	KpgCaptureChunk *chunk;

	if (!dlist_is_empty(&free_chunks))
	{
		nfree_chunks--;
		return dlist_container(KpgCaptureChunk, node, dlist_pop_head_node(&free_chunks));
	}
	if (buffer_context == NULL)
		initialize();
	chunk = MemoryContextAllocZero(buffer_context, sizeof(KpgCaptureChunk));
	kc_buf_init(&chunk->csv, buffer_alloc, CSV_MAX);
	return chunk;
}

/* Raises nothing: called when a transaction ends. */
static void
release_chunk(KpgCaptureChunk *chunk)
{
	dlist_delete(&chunk->node);
	if (chunk->csv.cap > CSV_KEEP || chunk->csv.failed != KC_OK)
		kc_buf_free(&chunk->csv);
	if (nfree_chunks >= FREE_CHUNKS_MAX)
	{
		kc_buf_free(&chunk->csv);
		pfree(chunk);
		return;
	}
	dlist_push_head(&free_chunks, &chunk->node);
	nfree_chunks++;
}

static void
release_all(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &chunks)
		release_chunk(dlist_container(KpgCaptureChunk, node, iter.cur));
}

/* One that nobody has open. */
static KpgCaptureChunk *
find_chunk(Oid table, int32 capture, int64 shape, SubTransactionId subid)
{
	dlist_iter	iter;

	dlist_foreach(iter, &chunks)
	{
		KpgCaptureChunk *chunk = dlist_container(KpgCaptureChunk, node, iter.cur);

		if (chunk->table == table && chunk->capture == capture && chunk->subid == subid && chunk->shape == shape && !chunk->open)
			return chunk;
	}
	return NULL;
}

KpgCaptureChunk *
kpg_capture_buffer_open(int32 capture, int64 shape)
{
	SubTransactionId subid = GetCurrentSubTransactionId();
	Oid			table = kpg_outbox_capture_table();
	KpgCaptureChunk *chunk = find_chunk(table, capture, shape, subid);

	if (chunk == NULL)
	{
		chunk = new_chunk();
		chunk->table = table;
		chunk->catalogs = kpg_outbox_catalog_changes();
		chunk->capture = capture;
		chunk->shape = shape;
		chunk->subid = subid;
		chunk->open = false;
		chunk->rows = 0;
		chunk->written_by = InvalidSubTransactionId;
		dlist_push_head(&chunks, &chunk->node);
		kc_buf_reset(&chunk->csv);
		reserve(&chunk->csv, CSV_RESERVE);
		kpg_worker_captured();
	}
	kc_csv_begin(&chunk->writer, &chunk->csv);
	chunk->open = true;
	return chunk;
}

/* ---- writing ---- */

static void
write_rows(const KpgCaptureChunk *chunk, int32 rows, size_t len)
{
	KpgOutboxChunk written = {
		.capture = chunk->capture,
		.shape = chunk->shape,
		.seq = chunk->seq,
		.changed_at = chunk->changed_at,
		.rows = rows,
		.data = chunk->csv.data,
		.len = len
	};

	/* The extension was dropped after the change: nobody is there to send it. */
	if (unlikely(chunk->catalogs != kpg_outbox_catalog_changes() &&
				 !SearchSysCacheExists1(RELOID, ObjectIdGetDatum(chunk->table))))
		return;
	kpg_outbox_write(&written);
}

/* All that the chunk has; it is empty afterwards. */
static void
write_chunk(KpgCaptureChunk *chunk)
{
	if (chunk->rows == 0)
		return;
	write_rows(chunk, chunk->rows, chunk->csv.len);
	chunk->rows = 0;
	kc_buf_reset(&chunk->csv);
}

/* The rows before the last one, which moves to the front. */
static void
write_all_but_last(KpgCaptureChunk *chunk)
{
	size_t		start = chunk->writer.row_start;
	size_t		len = chunk->csv.len - start;

	write_rows(chunk, chunk->rows, start);
	memmove(chunk->csv.data, chunk->csv.data + start, len);
	kc_buf_truncate(&chunk->csv, len);
	chunk->writer.row_start = 0;
	chunk->rows = 0;
}

void
kpg_capture_buffer_added(KpgCaptureChunk *chunk, int64 seq, TimestampTz changed_at)
{
	if (unlikely(chunk->csv.failed != KC_OK))
		reserve(&chunk->csv, 0);
	if (unlikely(chunk->csv.len > KPG_OUTBOX_CHUNK_SIZE && chunk->rows > 0))
		write_all_but_last(chunk);
	if (chunk->rows == 0)
	{
		chunk->seq = seq;
		chunk->changed_at = changed_at;
	}
	chunk->rows++;
	if (unlikely(chunk->csv.len > KPG_OUTBOX_CHUNK_SIZE))
		write_chunk(chunk);
}

void
kpg_capture_buffer_close(KpgCaptureChunk *chunk)
{
	/* Nobody can have opened another one meanwhile that is still there. */
	if (ending || find_chunk(chunk->table, chunk->capture, chunk->shape, chunk->subid) != NULL)
	{
		write_chunk(chunk);
		release_chunk(chunk);
		return;
	}
	chunk->open = false;
}

bool
kpg_capture_has_changes(void)
{
	return !dlist_is_empty(&chunks);
}

/* ---- resources of the last write ---- */

/*
 * A transaction's resource owner has no arrays yet when the transaction ends, and
 * to allocate them costs a tenth of what a small row does.  So we keep an owner of
 * the session's: a child of the transaction's while it is in use, so that it goes
 * with that after an error.  Afterwards it has locks only, which the end of the
 * transaction takes from it.
 */
#if KPG_COMPAT_OWNERS_ALLOCATE
static ResourceOwner kept;		/* NULL: there is none, or it is in use */

static ResourceOwner
lend_resource_owner(void)
{
	ResourceOwner caller = CurrentResourceOwner;
	ResourceOwner lent = kept != NULL ? kept : ResourceOwnerCreate(NULL, "kusto_ingest captured rows");

	ResourceOwnerNewParent(lent, caller);
	kept = NULL;
	CurrentResourceOwner = lent;
	return caller;
}

static void
take_back_resource_owner(ResourceOwner caller)
{
	kept = CurrentResourceOwner;
	ResourceOwnerNewParent(kept, NULL);
	CurrentResourceOwner = caller;
}
#else
#define lend_resource_owner()				CurrentResourceOwner
#define take_back_resource_owner(caller)	((void) (caller))
#endif

static void
write_all(void)
{
	ResourceOwner caller;
	dlist_mutable_iter iter;

	ending = true;
	if (dlist_is_empty(&chunks))
		return;
	caller = lend_resource_owner();
	dlist_foreach_modify(iter, &chunks)
	{
		KpgCaptureChunk *chunk = dlist_container(KpgCaptureChunk, node, iter.cur);

		write_chunk(chunk);
		release_chunk(chunk);
	}
	take_back_resource_owner(caller);
}

/* ---- the end of a transaction ---- */

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			/* Later on there may still be changes, by others' callbacks. */
			write_all();
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:
			release_all();
			ending = false;
			break;
		default:
			break;
	}
}

/* ---- the end of a subtransaction ---- */

static bool
fits(const KpgCaptureChunk *chunk, const KpgCaptureChunk *further)
{
	return chunk->csv.len + further->csv.len <= KPG_OUTBOX_CHUNK_SIZE;
}

/* Its end is near: write what will not fit into a chunk with the parent's rows. */
static void
before_subcommit(SubTransactionId mine, SubTransactionId parent)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &chunks)
	{
		KpgCaptureChunk *chunk = dlist_container(KpgCaptureChunk, node, iter.cur);
		KpgCaptureChunk *before;

		if (chunk->subid != mine)
			continue;
		before = find_chunk(chunk->table, chunk->capture, chunk->shape, parent);
		if (before == NULL)
			continue;
		if (fits(before, chunk))
		{
			reserve(&before->csv, chunk->csv.len);
			continue;
		}
		if (before->rows > 0)
			write_rows(before, before->rows, before->csv.len);
		before->written_by = mine;
	}
}

/* The parent's rows are written: what it has are those of the subtransaction. */
static void
replace_rows(KpgCaptureChunk *before, KpgCaptureChunk *chunk)
{
	KcBuf		csv = before->csv;

	before->csv = chunk->csv;
	before->seq = chunk->seq;
	before->changed_at = chunk->changed_at;
	before->rows = chunk->rows;
	before->written_by = InvalidSubTransactionId;
	chunk->csv = csv;
}

static void
append_rows(KpgCaptureChunk *before, const KpgCaptureChunk *chunk)
{
	if (before->rows == 0)
	{
		before->seq = chunk->seq;
		before->changed_at = chunk->changed_at;
	}
	kc_buf_append(&before->csv, chunk->csv.data, chunk->csv.len);
	before->rows += chunk->rows;
}

/* May not fail. */
static void
after_subcommit(SubTransactionId mine, SubTransactionId parent)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &chunks)
	{
		KpgCaptureChunk *chunk = dlist_container(KpgCaptureChunk, node, iter.cur);
		KpgCaptureChunk *before;

		if (chunk->subid != mine)
			continue;
		before = find_chunk(chunk->table, chunk->capture, chunk->shape, parent);
		if (before == NULL)
		{
			chunk->subid = parent;
			continue;
		}
		if (before->written_by == mine)
			replace_rows(before, chunk);
		else
			append_rows(before, chunk);
		release_chunk(chunk);
	}
}

static void
forget_rows(SubTransactionId mine)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &chunks)
	{
		KpgCaptureChunk *chunk = dlist_container(KpgCaptureChunk, node, iter.cur);

		if (chunk->subid >= mine)
			release_chunk(chunk);
		else
			chunk->written_by = InvalidSubTransactionId;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	if (dlist_is_empty(&chunks))
		return;
	switch (event)
	{
		case SUBXACT_EVENT_PRE_COMMIT_SUB:
			before_subcommit(mine, parent);
			break;
		case SUBXACT_EVENT_COMMIT_SUB:
			after_subcommit(mine, parent);
			break;
		case SUBXACT_EVENT_ABORT_SUB:
			forget_rows(mine);
			break;
		default:
			break;
	}
}
