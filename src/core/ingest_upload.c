/*
 * ingest_upload.c
 *	  The network's side of an export: blocks out of the compressor into blobs.
 *
 * A blob is placed into a container when its first block comes.  It may move
 * to another one, at most three in all, as long as no block of it has been
 * acknowledged: until then all its bytes are still here.  A refused SAS makes
 * the resources be fetched once more for that blob; its uploads are parked
 * meanwhile.
 */
#include <string.h>

#include "ingest_internal.h"

#define MAX_NAME_PART 40

static const char doing_upload[] = "uploading a blob";

static void start_slot(UploadSlot *slot);
static void start_commit(UploadBlob *blob, KcIngest *ingest);

/* ---- stopping ---- */

void
kc_ingest_stop_uploads(KcIngest *ingest)
{
	/* Blocks that are given back would only be filled again. */
	if (ingest->zipline != NULL)
		kc_zipline_stop(ingest->zipline);
	for (int i = 0; ingest->slots != NULL && i < ingest->nslots; i++)
	{
		UploadSlot *slot = &ingest->slots[i];

		kc_http_free(slot->http);
		slot->http = NULL;
		if (slot->block != NULL)
			kc_zipline_give_back(ingest->zipline, slot->block);
		slot->block = NULL;
	}
	for (UploadBlob *blob = ingest->blobs; blob != NULL; blob = blob->next)
	{
		kc_http_free(blob->commit);
		blob->commit = NULL;
	}
}

static void
fail_with(KcIngest *ingest, KcError *err)
{
	kc_azure_advise_network(err);
	kc_ingest_fail(ingest, err);
}

/* ---- resources ---- */

static size_t
escaped_length(const KcAlloc *alloc, KcSlice text)
{
	KcBuf		escaped;
	size_t		len;

	kc_buf_init(&escaped, alloc, KC_BUF_UNLIMITED);
	kc_json_string(&escaped, text);
	len = escaped.len;
	kc_buf_free_secret(&escaped);
	return len;
}

/*
 * With token and signatures known, would the message fit?  Better asked before
 * the first byte is uploaded than after the last.
 */
static KcStatus
check_message(KcIngest *ingest, KcError *err)
{
	KcResources *resources = ingest->client->resources;
	size_t		length = ingest->message_base;

	if (ingest->message_checked)
		return KC_OK;
	ingest->message_checked = true;
	length += escaped_length(ingest->alloc, kc_resources_identity_token(resources));
	length += kc_resources_longest_sas(resources, KC_RESOURCE_CONTAINER);
	length += 512;				/* the blob's and the table's URL */
	if (kc_message_reports_by_table(ingest->properties))
		length += kc_resources_longest_sas(resources, KC_RESOURCE_STATUS_TABLE);
	return kc_message_check_size(length, err);
}

void
kc_ingest_want_resources(KcIngest *ingest)
{
	KcError		err;

	if (ingest->waiter.waiting || kc_resources_ready(ingest->client->resources))
		return;
	if (kc_resources_wait(ingest->client->resources, &ingest->waiter, &err) != KC_OK)
		kc_ingest_fail(ingest, &err);
}

/* ---- placing a blob ---- */

static void
append_name_part(KcBuf *out, KcSlice text)
{
	for (size_t i = 0; i < text.len && i < MAX_NAME_PART; i++)
	{
		char		c = text.data[i];
		bool		plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')
			|| (c >= '0' && c <= '9') || c == '-';

		kc_buf_char(out, plain ? c : '_');
	}
}

/*
 * The name tells a person whose blob it is.  Its end tells the service that
 * it is compressed (learn.microsoft.com/azure/data-explorer/ingestion-supported-formats).
 */
static char *
blob_url(const KcIngest *ingest, const UploadBlob *blob)
{
	char		operation[KC_UUID_TEXT_LEN + 1];
	KcBuf		url;

	kc_uuid_text(&ingest->operation_id, operation);
	kc_buf_init(&url, ingest->alloc, KC_BUF_UNLIMITED);
	kc_buf_str(&url, blob->container);
	kc_buf_char(&url, '/');
	append_name_part(&url, ingest->properties->database);
	kc_buf_char(&url, '.');
	append_name_part(&url, ingest->properties->table);
	kc_buf_printf(&url, ".%s.%06d.csv.gz", operation, blob->pub.ordinal);
	if (url.failed != KC_OK)
		kc_buf_free(&url);
	return url.data;
}

static KcStatus
put_into(KcIngest *ingest, UploadBlob *blob, const KcResource *container, KcError *err)
{
	kc_free(ingest->alloc, blob->container);
	kc_free_secret(ingest->alloc, blob->sas);
	kc_free(ingest->alloc, blob->pub.url);
	blob->pub.url = NULL;
	blob->container = kc_strdup(ingest->alloc, kc_slice(container->url));
	blob->sas = kc_strdup(ingest->alloc, kc_slice(container->sas));
	if (blob->container != NULL)
		blob->pub.url = blob_url(ingest, blob);
	blob->generation = kc_resources_generation(ingest->client->resources);
	if (blob->container == NULL || blob->sas == NULL || blob->pub.url == NULL)
		return kc_error_nomem(err, doing_upload);
	return KC_OK;
}

/*
 * Into the next container; KC_ERR_NOT_FOUND when none is left to try.
 */
static KcStatus
place(KcIngest *ingest, UploadBlob *blob, KcError *err)
{
	KcTried		tried = {.n = blob->ntried};
	KcResource *container = NULL;

	for (int i = 0; i < blob->ntried; i++)
		tried.urls[i] = kc_slice(blob->tried[i]);
	if (blob->ntried < KC_MAX_TRIES)
		container = kc_resources_pick(ingest->client->resources, KC_RESOURCE_CONTAINER, &tried);
	if (container == NULL)
		return kc_error_set(err, KC_ERR_NOT_FOUND, doing_upload,
							"the ingestion service has no other container");
	blob->tried[blob->ntried] = kc_strdup(ingest->alloc, kc_slice(container->url));
	if (blob->tried[blob->ntried] == NULL)
		return kc_error_nomem(err, doing_upload);
	blob->ntried++;
	return put_into(ingest, blob, container, err);
}

static bool
movable(const KcIngest *ingest, const UploadBlob *blob)
{
	return blob->nstored == 0 && blob->ntried < KC_MAX_TRIES
		&& blob->ntried < kc_resources_count(ingest->client->resources, KC_RESOURCE_CONTAINER);
}

/* Take back what is under way of a blob. */
static void
park_all(KcIngest *ingest, UploadBlob *blob)
{
	for (int i = 0; i < ingest->nslots; i++)
	{
		UploadSlot *slot = &ingest->slots[i];

		if (slot->block == NULL || slot->blob != blob)
			continue;
		kc_http_free(slot->http);
		slot->http = NULL;
	}
}

/* Start what is parked of a blob that has a place now. */
static void
resume(KcIngest *ingest, UploadBlob *blob)
{
	for (int i = 0; i < ingest->nslots && ingest->failure.status == KC_OK; i++)
	{
		UploadSlot *slot = &ingest->slots[i];

		if (slot->block != NULL && slot->blob == blob && slot->http == NULL)
			start_slot(slot);
	}
	if (blob->commit_parked && ingest->failure.status == KC_OK)
	{
		blob->commit_parked = false;
		start_commit(blob, ingest);
	}
}

/*
 * Give a blob a place, or a new signature for the one it has; wait for
 * resources where there are none.
 */
static void
settle(KcIngest *ingest, UploadBlob *blob)
{
	KcResources *resources = ingest->client->resources;
	KcResource *container;
	KcError		err;
	KcStatus	status;

	if (!kc_resources_ready(resources))
	{
		blob->waiting = true;
		kc_ingest_want_resources(ingest);
		return;
	}
	blob->waiting = false;
	status = check_message(ingest, &err);
	if (status == KC_OK && blob->container == NULL)
		status = place(ingest, blob, &err);
	else if (status == KC_OK)
	{
		container = kc_resources_find(resources, KC_RESOURCE_CONTAINER, kc_slice(blob->container));
		if (container != NULL)
			status = put_into(ingest, blob, container, &err);
		else if (blob->nstored == 0)
		{
			/* What is under way to the old container would count as stored. */
			park_all(ingest, blob);
			status = place(ingest, blob, &err);
		}
		else
			status = kc_error_set(&err, KC_ERR_NOT_FOUND, doing_upload,
								  "the container of a half-written blob is no longer one of the ingestion service's");
	}
	if (status != KC_OK)
		kc_ingest_fail(ingest, &err);
	else
		resume(ingest, blob);
}

void
kc_ingest_on_resources(KcWaiter *waiter, const KcError *err)
{
	KcIngest   *ingest = waiter->arg;

	if (err != NULL)
	{
		kc_ingest_fail(ingest, err);
		return;
	}
	for (UploadBlob *blob = ingest->blobs; blob != NULL; blob = blob->next)
	{
		if (blob->waiting && ingest->failure.status == KC_OK)
			settle(ingest, blob);
	}
	kc_ingest_pump(ingest);
}

/* ---- when an upload fails ---- */

/*
 * The failed slot is parked.  Get a fresh SAS, or move the blob, or give up.
 * generation: of the SAS that was refused.
 */
static void
recover(KcIngest *ingest, UploadBlob *blob, uint64_t generation, KcError *err)
{
	KcError		no_place;
	KcStatus	status;

	if (blob->waiting)
		return;					/* another slot of it failed before */
	if (kc_azure_wants_fresh_sas(err) && blob->generation != generation)
	{
		resume(ingest, blob);	/* there is another by now */
		return;
	}
	if (kc_azure_wants_fresh_sas(err)
		&& blob->generation != kc_resources_generation(ingest->client->resources))
	{
		settle(ingest, blob);	/* somebody else has fetched them meanwhile */
		return;
	}
	if (kc_azure_wants_fresh_sas(err) && !blob->refetched
		&& kc_resources_reject(ingest->client->resources, blob->generation))
	{
		blob->refetched = true;
		settle(ingest, blob);
		return;
	}
	if (!movable(ingest, blob) || err->status == KC_ERR_NOMEM || err->status == KC_ERR_INTERNAL)
	{
		fail_with(ingest, err);
		return;
	}
	park_all(ingest, blob);
	status = place(ingest, blob, &no_place);
	if (status == KC_OK)
		resume(ingest, blob);
	else
		fail_with(ingest, status == KC_ERR_NOT_FOUND ? err : &no_place);
}

/* ---- uploads ---- */

static void
finish_blob_if_stored(KcIngest *ingest, UploadBlob *blob)
{
	if (!blob->complete || blob->nstored < blob->nblocks)
		return;
	if (blob->nblocks == 1)
		blob->committed = true;
	else
		start_commit(blob, ingest);
}

static void
on_uploaded(KcHttp *http)
{
	UploadSlot *slot = http->arg;
	KcIngest   *ingest = slot->ingest;
	UploadBlob *blob = slot->blob;
	KcError		err = http->error;

	kc_http_free(http);
	slot->http = NULL;
	kc_resources_report(ingest->client->resources, kc_slice(blob->container), err.status == KC_OK);
	if (err.status != KC_OK && kc_retry_transient(&err) && !slot->patient && !blob->waiting
		&& !movable(ingest, blob))
	{
		/* Meanwhile another block was stored, which binds the blob to its place. */
		start_slot(slot);
		return;
	}
	if (err.status != KC_OK)
	{
		recover(ingest, blob, slot->generation, &err);
		return;
	}
	kc_zipline_give_back(ingest->zipline, slot->block);
	slot->block = NULL;
	slot->blob = NULL;
	blob->nstored++;
	blob->refetched = false;	/* that SAS was good */
	finish_blob_if_stored(ingest, blob);
	kc_ingest_pump(ingest);
}

/* Be patient only where there is no other place to turn to. */
static void
storage_for(const KcIngest *ingest, const UploadBlob *blob, KcStorage *storage)
{
	kc_client_storage(ingest->client, movable(ingest, blob) ? &ingest->client->storage_short_retry
					  : &ingest->client->storage_retry, storage);
}

static void
start_slot(UploadSlot *slot)
{
	KcIngest   *ingest = slot->ingest;
	UploadBlob *blob = slot->blob;
	KcSlice		url = kc_slice(blob->pub.url);
	KcSlice		sas = kc_slice(blob->sas);
	KcSlice		data = kc_slice_n(slot->block->data, slot->block->len);
	KcStorage	storage;
	KcStatus	status;
	KcError		err;

	storage_for(ingest, blob, &storage);
	slot->patient = !movable(ingest, blob);
	if (slot->block->begins_stream && slot->block->ends_stream)
		status = kc_azure_put_blob(&storage, url, sas, data, &slot->http, &err);
	else
		status = kc_azure_put_block(&storage, url, sas, slot->index, data, &slot->http, &err);
	if (status != KC_OK)
	{
		kc_ingest_fail(ingest, &err);
		return;
	}
	slot->generation = blob->generation;
	slot->http->on_done = on_uploaded;
	slot->http->arg = slot;
}

static void
on_committed(KcHttp *http)
{
	KcIngest   *ingest = http->arg;
	UploadBlob *blob = ingest->blobs;
	KcError		err = http->error;

	while (blob->commit != http)
		blob = blob->next;
	kc_http_free(http);
	blob->commit = NULL;
	kc_buf_free(&blob->commit_body);
	kc_resources_report(ingest->client->resources, kc_slice(blob->container), err.status == KC_OK);
	if (err.status == KC_OK)
	{
		blob->committed = true;
		kc_ingest_pump(ingest);
		return;
	}
	blob->commit_parked = true;
	recover(ingest, blob, blob->commit_generation, &err);
}

static void
start_commit(UploadBlob *blob, KcIngest *ingest)
{
	KcStorage	storage;
	KcError		err;

	kc_client_storage(ingest->client, &ingest->client->storage_retry, &storage);
	if (kc_azure_put_block_list(&storage, kc_slice(blob->pub.url), kc_slice(blob->sas),
								blob->nblocks, &blob->commit_body, &blob->commit, &err) != KC_OK)
	{
		kc_buf_free(&blob->commit_body);
		kc_ingest_fail(ingest, &err);
		return;
	}
	blob->commit_generation = blob->generation;
	blob->commit->on_done = on_committed;
	blob->commit->arg = ingest;
}

/* ---- taking blocks ---- */

static UploadSlot *
free_slot(KcIngest *ingest)
{
	for (int i = 0; i < ingest->nslots; i++)
	{
		if (ingest->slots[i].block == NULL)
			return &ingest->slots[i];
	}
	return NULL;
}

static void
accept_block(KcIngest *ingest, UploadSlot *slot, KcZipBlock *block)
{
	UploadBlob *blob;

	if (block->begins_stream)
		ingest->current = ingest->current == NULL ? ingest->blobs : ingest->current->next;
	blob = ingest->current;
	slot->block = block;
	slot->blob = blob;
	slot->index = blob->nblocks++;
	blob->pub.compressed_bytes += block->len;
	if (block->ends_stream)
		blob->complete = true;
	if (blob->waiting)
		return;					/* parked with the others */
	if (blob->container == NULL)
		settle(ingest, blob);
	else
		start_slot(slot);
}

/*
 * Come back for what is left to compress in this thread, once everybody else
 * has had a turn: a timer that is due now would fire again at once.  Without a
 * free slot the end of an upload comes back.
 */
static void
go_on_later(KcIngest *ingest)
{
	if (ingest->failure.status == KC_OK && free_slot(ingest) != NULL
		&& kc_zipline_unfinished(ingest->zipline))
		kc_mux_timer_set(ingest->client->mux, &ingest->go_on, kc_client_now_ms(ingest->client) + 1);
}

/*
 * Move whatever can be moved.  Not entered twice: starting an upload can fail
 * and come back here.
 */
void
kc_ingest_pump(KcIngest *ingest)
{
	UploadSlot *slot;

	if (ingest->pumping)
		return;
	ingest->pumping = true;
	while (ingest->failure.status == KC_OK && (slot = free_slot(ingest)) != NULL)
	{
		KcZipBlock *block = NULL;
		KcError		err;

		if (kc_zipline_take(ingest->zipline, &block, &err) != KC_OK)
			kc_ingest_fail(ingest, &err);
		if (block == NULL)
			break;
		accept_block(ingest, slot, block);
	}
	ingest->pumping = false;
	go_on_later(ingest);
}
