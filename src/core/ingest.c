/*
 * ingest.c
 *	  The rows' side of an export: chunks into the compressor, blobs opened and
 *	  ended between them.
 */
#include <string.h>

#include "ingest_internal.h"

#define DEFAULT_CHUNK_SIZE	(256 * 1024)
#define DEFAULT_BLOCK_SIZE	(4 * 1024 * 1024)
#define DEFAULT_WINDOW		4
#define DEFAULT_LEVEL		1
#define MIN_BLOCK_SIZE		1024
#define MAX_BLOCK_SIZE		(64 * 1024 * 1024)
#define MAX_WINDOW			64
/* A chunk of more times its usual size is one giant row, and long in work. */
#define GIANT_CHUNK			2
/*
 * One is lent and one held; the others wait, besides those that are compressed.  On a busy machine either side
 * is kept from its processor for some milliseconds, in which the other one works on: with half as many an export
 * that shares two processors with the storage service took a twentieth longer.
 */
#define SPARE_CHUNKS		32
/* What all compressed blocks of an export may take together. */
#define BLOCK_MEMORY		(26 * 1024 * 1024)

static const char doing_ingest[] = "exporting rows";

KcStatus
kc_ingest_source_id(const KcUuid *operation_id, int ordinal, KcUuid *source_id, KcError *err)
{
	char		name[16];
	size_t		at = sizeof(name);

	if (ordinal < 1)
		return kc_error_set(err, KC_ERR_INVALID, doing_ingest, "blobs are numbered from 1");
	for (; ordinal > 0; ordinal /= 10)
		name[--at] = (char) ('0' + ordinal % 10);
	return kc_uuid_v5(operation_id, kc_slice_n(name + at, sizeof(name) - at), source_id, err);
}

/* ---- failing ---- */

void
kc_ingest_fail(KcIngest *ingest, const KcError *err)
{
	if (ingest->failure.status != KC_OK)
		return;
	ingest->failure = *err;
	kc_error_scrub(&ingest->failure, kc_resources_identity_token(ingest->client->resources));
	kc_ingest_stop_uploads(ingest);
}

static KcStatus
failed(const KcIngest *ingest, KcError *err)
{
	if (ingest->failure.status != KC_OK && err != NULL)
		*err = ingest->failure;
	return ingest->failure.status;
}

/* ---- blobs ---- */

/* NULL with *err filled when it fails. */
static UploadBlob *
open_blob(KcIngest *ingest, KcError *err)
{
	UploadBlob *blob = kc_alloc0(ingest->alloc, sizeof(UploadBlob));

	if (blob == NULL)
	{
		kc_error_nomem(err, doing_ingest);
		return NULL;
	}
	blob->pub.ordinal = ingest->next_ordinal != NULL ? ingest->next_ordinal(ingest->ordinal_arg)
		: ingest->nblobs + 1;
	kc_buf_init(&blob->commit_body, ingest->alloc, KC_BUF_UNLIMITED);
	if (kc_ingest_source_id(&ingest->operation_id, blob->pub.ordinal, &blob->pub.source_id,
							err) != KC_OK)
	{
		kc_free(ingest->alloc, blob);
		return NULL;
	}
	if (ingest->last_blob != NULL)
		ingest->last_blob->next = blob;
	else
		ingest->blobs = blob;
	ingest->last_blob = blob;
	ingest->nblobs++;
	ingest->open = blob;
	return blob;
}

/*
 * A giant row or the second chunk of a blob shows that there is enough to do
 * for threads; a small result is compressed faster than a thread is started.
 */
static KcStatus
start_threads(KcIngest *ingest, KcError *err)
{
	if (ingest->watch.fd >= 0)
		return KC_OK;
	kc_zipline_start(ingest->zipline);
	ingest->watch.fd = kc_zipline_fd(ingest->zipline);
	if (ingest->watch.fd < 0)
		return KC_OK;
	return kc_mux_watch(kc_client_mux(ingest->client), &ingest->watch, err);
}

/*
 * A chunk is held until it is known whether it ends its blob: a blob of one
 * chunk can then be compressed as a whole.
 */
static KcStatus
put_held(KcIngest *ingest, bool end, KcError *err)
{
	KcStatus	status = KC_OK;

	if (ingest->held != NULL && (!end || ingest->held->len > GIANT_CHUNK * ingest->chunk_size))
		status = start_threads(ingest, err);
	if (ingest->held != NULL && status == KC_OK)
	{
		kc_zipline_put(ingest->zipline, ingest->held, end);
		ingest->held = NULL;
	}
	if (end)
		ingest->open = NULL;
	return status;
}

/* ---- the calls ---- */

/* One chunk is lent at a time. */
KcStatus
kc_ingest_get_chunk(KcIngest *ingest, KcBuf **chunk, KcError *err)
{
	*chunk = NULL;
	kc_ingest_pump(ingest);
	if (ingest->failure.status != KC_OK)
		return failed(ingest, err);
	if (ingest->finishing)
		return kc_error_set(err, KC_ERR_INVALID, doing_ingest, "rows after the end");
	if (ingest->lent == NULL)
		ingest->lent = kc_zipline_get_chunk(ingest->zipline);
	*chunk = ingest->lent;
	return KC_OK;
}

static KcStatus
put(KcIngest *ingest, KcBuf *chunk, uint64_t rows, KcError *err)
{
	UploadBlob *blob = ingest->open;
	KcStatus	status;

	/* One giant row may not fit any more: it begins a blob of its own. */
	status = put_held(ingest, blob != NULL && blob->pub.raw_bytes + chunk->len > ingest->max_blob_size,
					  err);
	if (status != KC_OK)
		return status;
	blob = ingest->open;
	if (blob == NULL)
		blob = open_blob(ingest, err);
	if (blob == NULL)
		return err->status;
	blob->pub.rows += rows;
	blob->pub.raw_bytes += chunk->len;
	ingest->rows += rows;
	ingest->raw_bytes += chunk->len;
	ingest->held = chunk;
	if (blob->pub.raw_bytes + ingest->chunk_size > ingest->max_blob_size)
		return put_held(ingest, true, err);
	return KC_OK;
}

KcStatus
kc_ingest_put_chunk(KcIngest *ingest, KcBuf *chunk, uint64_t rows, KcError *err)
{
	KcStatus	status = ingest->failure.status;
	KcError		own;

	if (chunk != ingest->lent)
		return kc_error_set(err, KC_ERR_INVALID, doing_ingest, "a chunk that was not lent");
	ingest->lent = NULL;
	if (status != KC_OK || chunk->len == 0)
	{
		kc_zipline_unget(ingest->zipline, chunk);
		return failed(ingest, err);
	}
	status = kc_buf_status(chunk, &own, doing_ingest);
	if (status != KC_OK)
		kc_zipline_unget(ingest->zipline, chunk);
	else
	{
		status = put(ingest, chunk, rows, &own);
		if (status != KC_OK && ingest->held != chunk)
			kc_zipline_unget(ingest->zipline, chunk);
	}
	if (status != KC_OK)
		kc_ingest_fail(ingest, &own);
	else
		kc_ingest_pump(ingest);
	return failed(ingest, err);
}

KcStatus
kc_ingest_finish(KcIngest *ingest, KcError *err)
{
	if (ingest->finishing)
		return failed(ingest, err);
	ingest->finishing = true;
	if (ingest->lent != NULL)
		kc_zipline_unget(ingest->zipline, ingest->lent);
	ingest->lent = NULL;
	if (ingest->failure.status == KC_OK)
	{
		(void) put_held(ingest, true, err);
		kc_ingest_pump(ingest);
	}
	return failed(ingest, err);
}

bool
kc_ingest_done(KcIngest *ingest, KcStatus *status, KcError *err)
{
	*status = failed(ingest, err);
	if (*status != KC_OK)
		return true;
	if (!ingest->finishing)
		return false;
	for (const UploadBlob *blob = ingest->blobs; blob != NULL; blob = blob->next)
	{
		if (!blob->committed)
			return false;
	}
	return true;
}

/* Where a blob of this ordinal has its place. */
static UploadBlob **
place_of(KcIngest *ingest, int ordinal)
{
	UploadBlob **place = &ingest->blobs;

	while (*place != NULL && (*place)->pub.ordinal < ordinal)
		place = &(*place)->next;
	return place;
}

KcStatus
kc_ingest_adopt(KcIngest *ingest, const KcIngestBlob *other, KcError *err)
{
	UploadBlob **place = place_of(ingest, other->ordinal);
	UploadBlob *blob;
	KcStatus	status;

	if (!kc_ingest_done(ingest, &status, err))
		return kc_error_set(err, KC_ERR_INVALID, doing_ingest, "a blob is adopted before the end");
	if (status != KC_OK)
		return status;
	if (other->ordinal < 1 || other->url == NULL
		|| (*place != NULL && (*place)->pub.ordinal == other->ordinal))
		return kc_error_set(err, KC_ERR_INVALID, doing_ingest, "an adopted blob has no ordinal or no URL of its own");
	blob = kc_alloc0(ingest->alloc, sizeof(UploadBlob));
	if (blob == NULL)
		return kc_error_nomem(err, doing_ingest);
	kc_buf_init(&blob->commit_body, ingest->alloc, KC_BUF_UNLIMITED);
	blob->pub = *other;
	blob->pub.url = kc_strdup(ingest->alloc, kc_slice(other->url));
	if (blob->pub.url == NULL)
	{
		kc_free(ingest->alloc, blob);
		return kc_error_nomem(err, doing_ingest);
	}
	blob->complete = true;
	blob->committed = true;
	blob->next = *place;
	*place = blob;
	if (blob->next == NULL)
		ingest->last_blob = blob;
	ingest->nblobs++;
	ingest->rows += other->rows;
	ingest->raw_bytes += other->raw_bytes;
	return KC_OK;
}

void
kc_ingest_totals(const KcIngest *ingest, uint64_t *rows, uint64_t *raw_bytes,
				 uint64_t *compressed_bytes)
{
	*rows = ingest->rows;
	*raw_bytes = ingest->raw_bytes;
	*compressed_bytes = 0;
	for (const UploadBlob *blob = ingest->blobs; blob != NULL; blob = blob->next)
		*compressed_bytes += blob->pub.compressed_bytes;
}

int
kc_ingest_nblobs(const KcIngest *ingest)
{
	return ingest->nblobs;
}

int
kc_ingest_ncommitted(const KcIngest *ingest)
{
	int			n = 0;

	for (const UploadBlob *blob = ingest->blobs; blob != NULL; blob = blob->next)
		n += blob->committed;
	return n;
}

const KcIngestBlob *
kc_ingest_blob(const KcIngest *ingest, int index)
{
	const UploadBlob *blob = ingest->blobs;

	while (blob != NULL && index-- > 0)
		blob = blob->next;
	return blob != NULL ? &blob->pub : NULL;
}

/* ---- making and ending ---- */

static void
on_watch(KcWatch *watch)
{
	KcIngest   *ingest = watch->arg;

	kc_zipline_ack(ingest->zipline);
	kc_ingest_pump(ingest);
}

static void
on_go_on(KcTimer *timer)
{
	kc_ingest_pump(timer->arg);
}

/*
 * Everything of the message that is known already; the names and tags that
 * could make it too large are.
 */
static KcStatus
measure_message(KcIngest *ingest, KcError *err)
{
	KcClient   *client = ingest->client;
	KcMessage	message;
	KcBuf		text;
	KcStatus	status;

	memset(&message, 0, sizeof(message));
	message.properties = ingest->properties;
	message.source_id = ingest->operation_id;
	message.raw_size = UINT32_MAX;
	message.application = client->config.application ? client->config.application : "kusto_ingest";
	message.client_version = client->client_version;
	message.created_us = kc_client_unix_us(client);
	if (kc_message_reports_by_table(ingest->properties))
		message.status_table = kc_slice("?");
	kc_buf_init(&text, ingest->alloc, KC_BUF_UNLIMITED);
	kc_message_build(&text, &message);
	status = kc_buf_status(&text, err, doing_ingest);
	ingest->message_base = text.len;
	kc_buf_free(&text);
	if (status == KC_OK)
		status = kc_message_check_size(ingest->message_base, err);
	return status;
}

static KcStatus
check_options(const KcIngestOptions *options, KcError *err)
{
	if (options->max_blob_size == 0
		|| (options->block_size != 0
			&& (options->block_size < MIN_BLOCK_SIZE || options->block_size > MAX_BLOCK_SIZE))
		|| options->window < 0 || options->window > MAX_WINDOW
		|| options->level < 0 || options->level > KC_GZIP_MAX_LEVEL
		|| options->threads < 0 || options->threads > KC_ZIPLINE_MAX_THREADS)
		return kc_error_set(err, KC_ERR_INVALID, doing_ingest, "an option is out of range");
	if (options->properties.database.len == 0 || options->properties.table.len == 0)
		return kc_error_set(err, KC_ERR_INVALID, doing_ingest, "no database or table is named");
	return KC_OK;
}

static KcStatus
make_zipline(KcIngest *ingest, const KcIngestOptions *options, KcError *err)
{
	KcZiplineOptions zip;
	size_t		window = (size_t) (options->window != 0 ? options->window : DEFAULT_WINDOW);
	KcStatus	status;

	memset(&zip, 0, sizeof(zip));
	zip.level = options->level != 0 ? options->level : DEFAULT_LEVEL;
	zip.chunk_size = ingest->chunk_size;
	zip.threads = options->threads;
	zip.nchunks = options->threads + SPARE_CHUNKS;
	zip.block_size = options->block_size != 0 ? options->block_size : DEFAULT_BLOCK_SIZE;
	/* One block is being filled while the window is in flight. */
	if ((window + 1) * zip.block_size > BLOCK_MEMORY)
		window = BLOCK_MEMORY / zip.block_size > 2 ? BLOCK_MEMORY / zip.block_size - 1 : 1;
	zip.nblocks = (int) window + 1;
	status = kc_zipline_create(ingest->alloc, &zip, &ingest->zipline, err);
	if (status != KC_OK)
		return status;

	ingest->nslots = (int) window;
	ingest->slots = kc_alloc0(ingest->alloc, window * sizeof(UploadSlot));
	if (ingest->slots == NULL)
		return kc_error_nomem(err, doing_ingest);
	for (int i = 0; i < ingest->nslots; i++)
		ingest->slots[i].ingest = ingest;
	return KC_OK;
}

static void
on_begin(KcTimer *timer)
{
	const KcIngest *ingest = timer->arg;

	/* A result that turned out to be empty needs none. */
	if (!ingest->finishing || ingest->blobs != NULL)
		kc_ingest_want_resources(timer->arg);
}

KcStatus
kc_ingest_create(const KcAlloc *alloc, KcClient *client, const KcIngestOptions *options,
				 KcIngest **result, KcError *err)
{
	KcIngest   *ingest;
	KcStatus	status;

	*result = NULL;
	status = check_options(options, err);
	if (status != KC_OK)
		return status;
	ingest = kc_alloc0(alloc, sizeof(KcIngest));
	if (ingest == NULL)
		return kc_error_nomem(err, doing_ingest);
	ingest->alloc = alloc;
	ingest->client = client;
	ingest->operation_id = options->operation_id;
	ingest->next_ordinal = options->next_ordinal;
	ingest->ordinal_arg = options->ordinal_arg;
	ingest->max_blob_size = options->max_blob_size;
	ingest->chunk_size = options->chunk_size != 0 ? options->chunk_size : DEFAULT_CHUNK_SIZE;
	ingest->waiter.ready = kc_ingest_on_resources;
	ingest->waiter.arg = ingest;
	ingest->watch.fd = -1;
	ingest->watch.ready = on_watch;
	ingest->watch.arg = ingest;
	ingest->begin.fire = on_begin;
	ingest->begin.arg = ingest;
	ingest->go_on.fire = on_go_on;
	ingest->go_on.arg = ingest;
	kc_error_clear(&ingest->failure);
	ingest->properties = kc_properties_copy(alloc, &options->properties);
	if (ingest->properties == NULL)
		status = kc_error_nomem(err, doing_ingest);
	if (status == KC_OK)
		status = measure_message(ingest, err);
	if (status == KC_OK)
		status = make_zipline(ingest, options, err);
	if (status != KC_OK)
	{
		kc_ingest_free(ingest);
		return status;
	}
	kc_mux_timer_set(client->mux, &ingest->begin, kc_client_now_ms(client));
	*result = ingest;
	return KC_OK;
}

static void
free_blob(const KcAlloc *alloc, UploadBlob *blob)
{
	kc_free(alloc, blob->pub.url);
	kc_free(alloc, blob->container);
	kc_free_secret(alloc, blob->sas);
	while (blob->ntried > 0)
		kc_free(alloc, blob->tried[--blob->ntried]);
	kc_buf_free(&blob->commit_body);
	kc_free(alloc, blob);
}

void
kc_ingest_free(KcIngest *ingest)
{
	if (ingest == NULL)
		return;
	kc_mux_timer_cancel(ingest->client->mux, &ingest->begin);
	kc_mux_timer_cancel(ingest->client->mux, &ingest->go_on);
	kc_resources_cancel(ingest->client->resources, &ingest->waiter);
	kc_mux_unwatch(ingest->client->mux, &ingest->watch);
	kc_ingest_stop_uploads(ingest);
	kc_zipline_free(ingest->zipline);
	while (ingest->blobs != NULL)
	{
		UploadBlob *blob = ingest->blobs;

		ingest->blobs = blob->next;
		free_blob(ingest->alloc, blob);
	}
	kc_free(ingest->alloc, ingest->slots);
	kc_free(ingest->alloc, ingest->properties);
	kc_free(ingest->alloc, ingest);
}
