/*
 * kusto_post.c
 *	  Posting one blob: a "Pending" row into a status table, then the message
 *	  into a queue.
 *
 *		resources -> blob? -> row -> message -> done
 *			 ^		   |	   |	   |
 *			 |		   |	   +-------+--- another table or queue, at most three
 *			 +---------+-------+-------+--- SAS refused: fetch resources once more
 *
 * The service deletes a blob that it has ingested, unless told not to, and
 * containers empty themselves after some days.  So where it is asked for, one
 * looks first whether the blob is there: a message for one that is not would
 * only fail, and perhaps hide that an earlier one succeeded.
 *
 * The row comes first: a message that names a row which is not there would
 * never be reported.  A message that may have been accepted is not sent again;
 * whoever asked for it finds out by the status row.
 */
#include <string.h>

#include "kusto_internal.h"

static const char doing_post[] = "posting a blob";

typedef struct Post
{
	KcPostTask	pub;			/* first member */
	KcClient   *client;
	KcIngestProperties *properties;
	KcUuid		source_id;
	uint64_t	raw_size;
	char	   *blob_url;
	char	   *wanted_table;	/* of an earlier try; may be NULL */
	KcTimer		begin;
	KcWaiter	waiter;
	KcHttp	   *http;
	KcBuf		entity;
	KcBuf		message;		/* secret */
	KcBuf		body;			/* secret; what http sends */
	char	   *identity_token; /* secret; the one in message */
	bool		check_blob;		/* still to be done */
	bool		renew_row;		/* what stands there may be an earlier outcome */
	uint64_t	generation;		/* of the resources in use */
	bool		refetched;
	char	   *tried_urls[KC_MAX_TRIES];	/* of what is being tried: tables or queues */
	int			ntried;
	bool		out_of_memory;
} Post;

static void step(Post *post);

/* ---- trying one resource after the other ---- */

static void
forget_tried(Post *post)
{
	while (post->ntried > 0)
		kc_free(post->client->alloc, post->tried_urls[--post->ntried]);
}

/*
 * The next resource of a kind, or NULL when all tries are used up.
 */
static KcResource *
next_resource(Post *post, KcResourceKind kind)
{
	KcTried		tried = {.n = post->ntried};
	KcResource *resource;
	char	   *url;

	if (post->ntried == KC_MAX_TRIES)
		return NULL;
	for (int i = 0; i < post->ntried; i++)
		tried.urls[i] = kc_slice(post->tried_urls[i]);
	resource = kc_resources_pick(post->client->resources, kind, &tried);
	if (resource == NULL)
		return NULL;
	url = kc_strdup(post->client->alloc, kc_slice(resource->url));
	if (url == NULL)
	{
		post->out_of_memory = true;
		return NULL;
	}
	post->tried_urls[post->ntried++] = url;
	return resource;
}

static const char *
current_url(const Post *post)
{
	return post->tried_urls[post->ntried - 1];
}

/* Be patient only where there is no other to turn to. */
static void
storage_for(Post *post, KcResourceKind kind, KcStorage *storage)
{
	KcClient   *client = post->client;
	bool		last = post->ntried == KC_MAX_TRIES
		|| (kind == KC_RESOURCE_STATUS_TABLE && post->renew_row)
		|| post->ntried >= kc_resources_count(client->resources, kind);

	kc_client_storage(client, last ? &client->storage_retry : &client->storage_short_retry, storage);
}

static void
finish(Post *post, KcError *err)
{
	/* The cache may hold another one by now. */
	if (err != NULL && post->identity_token != NULL)
		kc_error_scrub(err, kc_slice(post->identity_token));
	kc_task_finish(&post->pub.task, err);
}

/* No more resources to try; *last is why the last one failed, if one was tried. */
static void
give_up(Post *post, KcError *last, const char *kind)
{
	if (post->out_of_memory)
		kc_error_nomem(last, doing_post);
	else if (last->status == KC_OK)
		kc_error_set(last, KC_ERR_SERVICE, doing_post,
					 "the ingestion service has no %s that we may use", kind);
	finish(post, last);
}

static void
wait_for_resources(Post *post)
{
	KcError		err;

	if (kc_resources_wait(post->client->resources, &post->waiter, &err) != KC_OK)
		finish(post, &err);
}

/* After a refusal of the SAS, once: everything from the start with new ones. */
static bool
refetch(Post *post, const KcError *err)
{
	if (post->refetched || !kc_azure_wants_fresh_sas(err)
		|| !kc_resources_reject(post->client->resources, post->generation))
		return false;
	post->refetched = true;
	forget_tried(post);
	return true;
}

/* ---- the blob ---- */

static void
blob_is_gone(Post *post, KcError *err)
{
	post->pub.blob_gone = true;
	err->status = KC_ERR_REFUSED;
	err->permanent = true;
	err->after_send = false;
	kc_error_text(err->what, sizeof(err->what), kc_slice("the blob does not exist any more"));
	finish(post, err);
}

/*
 * A proxy or a wrong path answers 404, too.  A HEAD has no body: the code is in
 * the header.
 */
static bool
says_gone(const KcError *err)
{
	KcSlice		code = kc_slice(err->code);

	return (err->http_status == 404
			&& (kc_slice_ieq(code, kc_slice("BlobNotFound"))
				|| kc_slice_ieq(code, kc_slice("ContainerNotFound"))))
		|| ((err->http_status == 404 || err->http_status == 409)
			&& kc_slice_ieq(code, kc_slice("ContainerBeingDeleted")));
}

/* Looking has no effect; what is not explained may pass. */
static void
could_not_look(Post *post, KcError *err)
{
	err->after_send = false;
	if (err->http_status == 404)
	{
		err->status = KC_ERR_SERVICE;
		err->permanent = false;
	}
	finish(post, err);
}

/*
 * A SAS without the right to read, or a rule against it, is no reason not to
 * post: the service reads with its own rights.
 */
static void
on_blob(KcHttp *http)
{
	Post	   *post = http->arg;
	KcError		err = http->error;
	bool		unreadable = err.http_status == 403
		&& kc_slice_ieq(kc_slice(err.code), kc_slice("AuthorizationPermissionMismatch"));

	kc_http_free(http);
	post->http = NULL;
	kc_resources_report(post->client->resources, kc_slice(post->blob_url),
						err.status == KC_OK || says_gone(&err));
	kc_azure_advise_network(&err);
	if (says_gone(&err))
		blob_is_gone(post, &err);
	else if (!unreadable && refetch(post, &err))
		step(post);
	else if (err.status == KC_OK || err.http_status == 403)
	{
		post->check_blob = false;
		step(post);
	}
	else
		could_not_look(post, &err);
}

/* learn.microsoft.com/rest/api/storageservices/get-blob-properties */
static void
look_for_blob(Post *post, const KcResource *container)
{
	KcClient   *client = post->client;
	KcStorage	storage;
	KcError		err;

	kc_client_storage(client, &client->storage_retry, &storage);
	if (kc_azure_head_blob(&storage, kc_slice(post->blob_url), kc_slice(container->sas),
						   &post->http, &err) != KC_OK)
	{
		finish(post, &err);
		return;
	}
	post->http->on_done = on_blob;
	post->http->arg = post;
}

/* ---- the message ---- */

static KcStatus
build_message(Post *post, const KcResource *container, KcError *err)
{
	KcClient   *client = post->client;
	KcResource *table = NULL;
	KcMessage	message;
	KcStatus	status;

	kc_free_secret(client->alloc, post->identity_token);
	post->identity_token = kc_strdup(client->alloc, kc_resources_identity_token(client->resources));
	if (post->identity_token == NULL)
		return kc_error_nomem(err, doing_post);
	if (post->pub.status_table != NULL)
		table = kc_resources_find(client->resources, KC_RESOURCE_STATUS_TABLE,
								  kc_slice(post->pub.status_table));
	memset(&message, 0, sizeof(message));
	message.properties = post->properties;
	message.source_id = post->source_id;
	message.blob_url = kc_slice(post->blob_url);
	message.blob_sas = kc_slice(container->sas);
	message.raw_size = post->raw_size;
	message.identity_token = kc_slice(post->identity_token);
	if (table != NULL)
	{
		message.status_table = kc_slice(table->url);
		message.status_sas = kc_slice(table->sas);
	}
	message.application = client->config.application ? client->config.application : "kusto_ingest";
	message.client_version = client->client_version;
	message.created_us = kc_client_unix_us(client);
	kc_buf_reset(&post->message);
	kc_message_build(&post->message, &message);
	status = kc_buf_status(&post->message, err, doing_post);
	if (status == KC_OK)
		status = kc_message_check_size(post->message.len, err);
	return status;
}

static void put_message(Post *post, KcError *last);

static void
on_message(KcHttp *http)
{
	Post	   *post = http->arg;
	KcError		err = http->error;

	kc_http_free(http);
	post->http = NULL;
	kc_resources_report(post->client->resources, kc_slice(current_url(post)), err.status == KC_OK);
	if (err.status == KC_OK && KC_FAULT("message-sent"))
	{
		kc_error_set(&err, KC_ERR_NETWORK, doing_post, "the answer was lost");
		err.after_send = true;
	}
	if (err.status == KC_OK)
	{
		post->pub.message_sent = true;
		finish(post, NULL);
		return;
	}
	kc_azure_advise_network(&err);
	if (err.after_send)
	{
		post->pub.message_sent = true;
		finish(post, &err);
	}
	else if (refetch(post, &err))
		step(post);
	else
		put_message(post, &err);
}

/* Try the next queue; *last is why the one before failed, or nothing yet. */
static void
put_message(Post *post, KcError *last)
{
	KcResource *queue = next_resource(post, KC_RESOURCE_QUEUE);
	KcStorage	storage;
	KcError		err;

	if (queue == NULL)
	{
		give_up(post, last, "queue");
		return;
	}
	storage_for(post, KC_RESOURCE_QUEUE, &storage);
	kc_buf_free_secret(&post->body);
	if (kc_azure_put_message(&storage, kc_slice(queue->url), kc_slice(queue->sas),
							 kc_buf_view(&post->message), &post->body, &post->http, &err) != KC_OK)
	{
		finish(post, &err);
		return;
	}
	post->http->on_done = on_message;
	post->http->arg = post;
}

/* ---- the row ---- */

static KcStatus
build_entity(Post *post, KcError *err)
{
	char		source_id[KC_UUID_TEXT_LEN + 1];
	KcBuf		now;
	KcJsonWriter w;

	kc_uuid_text(&post->source_id, source_id);
	kc_buf_init(&now, post->client->alloc, KC_BUF_UNLIMITED);
	kc_text_rfc3339(&now, kc_client_unix_us(post->client));
	kc_buf_reset(&post->entity);
	kc_json_begin(&w, &post->entity);
	kc_json_object_open(&w);
	kc_json_key(&w, "PartitionKey");
	kc_json_value_string(&w, kc_slice(source_id));
	kc_json_key(&w, "RowKey");
	kc_json_value_string(&w, kc_slice(source_id));
	kc_json_key(&w, "Status");
	kc_json_value_string(&w, kc_slice("Pending"));
	kc_json_key(&w, "IngestionSourceId");
	kc_json_value_string(&w, kc_slice(source_id));
	kc_json_key(&w, "IngestionSourcePath");
	kc_json_value_string(&w, kc_slice(post->blob_url));
	kc_json_key(&w, "Database");
	kc_json_value_string(&w, post->properties->database);
	kc_json_key(&w, "Table");
	kc_json_value_string(&w, post->properties->table);
	kc_json_key(&w, "UpdatedOn");
	kc_json_value_string(&w, kc_buf_view(&now));
	kc_json_object_close(&w);
	kc_buf_free(&now);
	return kc_buf_status(&post->entity, err, doing_post);
}

static void insert_row(Post *post, KcError *last);

static void
on_row(KcHttp *http)
{
	Post	   *post = http->arg;
	KcClient   *client = post->client;
	KcError		err = http->error;
	/* An earlier try of ours wrote it, whatever its answer was. */
	bool		written = err.status == KC_OK
		|| (err.http_status == 409
			&& kc_slice_ieq(kc_slice(err.code), kc_slice("EntityAlreadyExists")));

	kc_http_free(http);
	post->http = NULL;
	kc_resources_report(client->resources, kc_slice(current_url(post)), written);
	if (written)
	{
		kc_free(client->alloc, post->pub.status_table);
		post->pub.status_table = kc_strdup(client->alloc, kc_slice(current_url(post)));
		if (post->pub.status_table == NULL)
		{
			kc_error_nomem(&err, doing_post);
			finish(post, &err);
			return;
		}
		post->pub.status_row_written = true;
		forget_tried(post);
		if (KC_FAULT("status-row-written"))
		{
			kc_error_set(&err, KC_ERR_NETWORK, doing_post, "the connection was lost");
			finish(post, &err);
			return;
		}
		step(post);
		return;
	}
	kc_azure_advise_network(&err);
	if (refetch(post, &err))
		step(post);
	else
		insert_row(post, &err);
}

/*
 * The table of an earlier try first, so that one blob has one row.  An outcome
 * there that is to be replaced must not stay, to be read after a crash as if it
 * were this try's: then it is that table or none.
 */
static KcResource *
next_table(Post *post)
{
	KcResource *table = NULL;

	if (post->wanted_table != NULL)
		table = kc_resources_find(post->client->resources, KC_RESOURCE_STATUS_TABLE,
								  kc_slice(post->wanted_table));
	if (table != NULL && post->ntried > 0 && post->renew_row)
		return NULL;
	if (table == NULL || post->ntried > 0)
		return next_resource(post, KC_RESOURCE_STATUS_TABLE);
	post->tried_urls[0] = kc_strdup(post->client->alloc, kc_slice(table->url));
	if (post->tried_urls[0] == NULL)
	{
		post->out_of_memory = true;
		return NULL;
	}
	post->ntried = 1;
	return table;
}

static KcStatus
write_row(Post *post, const KcStorage *storage, const KcResource *table, KcError *err)
{
	char		source_id[KC_UUID_TEXT_LEN + 1];

	if (!post->renew_row)
		return kc_azure_insert_entity(storage, kc_slice(table->url), kc_slice(table->sas),
									  kc_buf_view(&post->entity), &post->http, err);
	kc_uuid_text(&post->source_id, source_id);
	return kc_azure_put_entity(storage, kc_slice(table->url), kc_slice(table->sas),
							   kc_slice(source_id), kc_slice(source_id),
							   kc_buf_view(&post->entity), &post->http, err);
}

static void
insert_row(Post *post, KcError *last)
{
	KcResource *table = next_table(post);
	KcStorage	storage;
	KcError		err;

	if (table == NULL)
	{
		give_up(post, last, "status table");
		return;
	}
	storage_for(post, KC_RESOURCE_STATUS_TABLE, &storage);
	if (build_entity(post, &err) != KC_OK || write_row(post, &storage, table, &err) != KC_OK)
	{
		finish(post, &err);
		return;
	}
	post->http->on_done = on_row;
	post->http->arg = post;
}

/* ---- the flow ---- */

/*
 * The earlier row can only be reported in if its table is still one of the
 * service's; else it is as if it had never been.
 */
static void
adopt_earlier_row(Post *post)
{
	const KcAlloc *alloc = post->client->alloc;

	if (post->pub.status_table != NULL
		&& kc_resources_find(post->client->resources, KC_RESOURCE_STATUS_TABLE,
							 kc_slice(post->pub.status_table)) == NULL)
	{
		kc_free(alloc, post->pub.status_table);
		post->pub.status_table = NULL;
		post->pub.status_row_written = false;
	}
}

static void
container_is_gone(Post *post, KcError *err)
{
	KcUrl		url;
	KcError		ignored;

	kc_error_set(err, KC_ERR_NOT_FOUND, doing_post,
				 "the blob's container is no longer one of the ingestion service's");
	if (kc_url_parse(kc_slice(post->blob_url), &url, &ignored) == KC_OK)
		kc_error_text(err->host, sizeof(err->host), url.host);
}

static void
step(Post *post)
{
	KcResources *resources = post->client->resources;
	KcResource *container;
	KcError		none;
	KcError		err;

	if (!kc_resources_ready(resources))
	{
		wait_for_resources(post);
		return;
	}
	post->generation = kc_resources_generation(resources);
	kc_error_clear(&none);
	container = kc_resources_find(resources, KC_RESOURCE_CONTAINER, kc_slice(post->blob_url));
	if (container == NULL && !post->refetched
		&& kc_resources_reject(resources, post->generation))
	{
		post->refetched = true;
		wait_for_resources(post);
		return;
	}
	if (container == NULL)
	{
		container_is_gone(post, &err);
		finish(post, &err);
		return;
	}
	if (post->check_blob)
	{
		look_for_blob(post, container);
		return;
	}
	adopt_earlier_row(post);
	if (kc_message_reports_by_table(post->properties) && !post->pub.status_row_written
		&& kc_resources_count(resources, KC_RESOURCE_STATUS_TABLE) > 0)
		insert_row(post, &none);
	else if (build_message(post, container, &err) != KC_OK)
		finish(post, &err);
	else
		put_message(post, &none);
}

static void
on_resources(KcWaiter *waiter, const KcError *err)
{
	Post	   *post = waiter->arg;
	KcError		copy;

	if (err == NULL)
	{
		step(post);
		return;
	}
	copy = *err;
	finish(post, &copy);
}

static void
on_begin(KcTimer *timer)
{
	step(timer->arg);
}

/* ---- making and ending ---- */

static void
destroy(KcTask *task)
{
	Post	   *post = (Post *) task;
	KcClient   *client = post->client;

	kc_mux_timer_cancel(client->mux, &post->begin);
	kc_resources_cancel(client->resources, &post->waiter);
	kc_http_free(post->http);
	forget_tried(post);
	kc_buf_free(&post->entity);
	kc_buf_free_secret(&post->message);
	kc_buf_free_secret(&post->body);
	kc_free_secret(client->alloc, post->identity_token);
	kc_free(client->alloc, post->properties);
	kc_free(client->alloc, post->blob_url);
	kc_free(client->alloc, post->wanted_table);
	kc_free(client->alloc, post->pub.status_table);
	kc_free(client->alloc, post);
}

static bool
copy_request(Post *post, const KcPostRequest *request)
{
	const KcAlloc *alloc = post->client->alloc;

	post->source_id = request->source_id;
	post->raw_size = request->raw_size;
	post->check_blob = request->check_blob;
	post->renew_row = request->renew_row && !request->status_row_exists;
	post->properties = kc_properties_copy(alloc, &request->properties);
	post->blob_url = kc_strdup(alloc, request->blob_url);
	if (post->properties == NULL || post->blob_url == NULL)
		return false;
	if (request->status_table.len == 0)
		return true;
	post->wanted_table = kc_strdup(alloc, request->status_table);
	if (post->wanted_table == NULL)
		return false;
	if (!request->status_row_exists)
		return true;
	post->pub.status_row_written = true;
	post->pub.status_table = kc_strdup(alloc, request->status_table);
	return post->pub.status_table != NULL;
}

KcStatus
kc_kusto_post_start(KcClient *client, const KcPostRequest *request, KcPostTask **task, KcError *err)
{
	Post	   *post;

	*task = NULL;
	post = kc_alloc0(client->alloc, sizeof(Post));
	if (post == NULL)
		return kc_error_nomem(err, doing_post);
	post->client = client;
	post->pub.task.destroy = destroy;
	post->begin.fire = on_begin;
	post->begin.arg = post;
	post->waiter.ready = on_resources;
	post->waiter.arg = post;
	kc_error_clear(&post->pub.task.error);
	kc_buf_init(&post->entity, client->alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&post->message, client->alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&post->body, client->alloc, KC_BUF_UNLIMITED);
	if (!copy_request(post, request))
	{
		destroy(&post->pub.task);
		return kc_error_nomem(err, doing_post);
	}
	kc_mux_timer_set(client->mux, &post->begin, kc_client_now_ms(client));
	*task = &post->pub;
	return KC_OK;
}
