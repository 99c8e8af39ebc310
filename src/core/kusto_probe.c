/*
 * kusto_probe.c
 *	  Testing a connection one step at a time, each with what it found.
 */
#include <string.h>

#include "kusto_internal.h"

#define PROBE_QUERY		"print ok = 1"
#define PROBE_CONTENT	"kusto_ingest tests whether it can write here\n"
#define MAX_ANSWER		(1024 * 1024)

typedef struct Probe
{
	KcProbeTask pub;			/* first member */
	KcClient   *client;
	KcProbe		what;
	char	   *db;
	KcTimer		begin;
	KcWaiter	waiter;
	KcHttp	   *http;
	KcRequestTask *query;
	KcBuf		detail;
	int			host;			/* of KC_PROBE_RESOLVE: 0 engine, 1 ingestion service */
	char	   *blob_url;
	char	   *sas;			/* secret */
} Probe;

static const struct
{
	const char *name;
	const char *doing;
}			probes[KC_PROBE_COUNT] = {
	[KC_PROBE_RESOLVE] = {"resolve", "connecting"},
	[KC_PROBE_METADATA] = {"metadata", "asking the cluster for its login endpoint"},
	[KC_PROBE_TOKEN] = {"token", "getting an access token"},
	[KC_PROBE_QUERY] = {"query", "running a query"},
	[KC_PROBE_RESOURCES] = {"resources", "asking for ingestion resources"},
	[KC_PROBE_IDENTITY_TOKEN] = {"identity token", "asking for an identity token"},
	[KC_PROBE_STORAGE] = {"storage", "writing a blob"},
};

const char *
kc_probe_name(KcProbe probe)
{
	return probes[probe].name;
}

static void
finish(Probe *probe, const KcError *err)
{
	kc_error_text(probe->pub.detail, sizeof(probe->pub.detail), kc_buf_view(&probe->detail));
	kc_auth_principal(probe->client->auth, probe->pub.principal, sizeof(probe->pub.principal));
	kc_task_finish(&probe->pub.task, err);
}

/* ---- resolve ---- */

static void connect_host(Probe *probe);

static void
on_connected(KcHttp *http)
{
	Probe	   *probe = http->arg;
	KcClient   *client = probe->client;
	const char *uri = probe->host == 0 ? client->engine_uri : client->ingest_uri;
	KcError		err = http->error;
	bool		last = probe->host == 1 || strcmp(client->engine_uri, client->ingest_uri) == 0;

	if (err.status == KC_OK)
		kc_buf_printf(&probe->detail, "%s%s answers at %s", probe->detail.len > 0 ? ", " : "",
					  uri, http->response.peer);
	kc_http_free(http);
	probe->http = NULL;
	if (err.status != KC_OK || last)
	{
		finish(probe, err.status == KC_OK ? NULL : &err);
		return;
	}
	probe->host = 1;
	connect_host(probe);
}

static void
connect_host(Probe *probe)
{
	KcClient   *client = probe->client;
	KcHttpRequest request;
	KcError		err;

	memset(&request, 0, sizeof(request));
	request.doing = probes[probe->what].doing;
	request.method = "GET";
	request.url = kc_slice(probe->host == 0 ? client->engine_uri : client->ingest_uri);
	request.flags = KC_HTTP_CONNECT_ONLY;
	request.timeout_ms = client->config.request_timeout_ms;
	if (kc_http_start(client->mux, client->alloc, &client->http, &request, &probe->http, &err) != KC_OK)
	{
		finish(probe, &err);
		return;
	}
	probe->http->on_done = on_connected;
	probe->http->arg = probe;
}

/* ---- metadata, token, resources: what the caches hold ---- */

static void
describe_metadata(Probe *probe)
{
	const KcCloudInfo *info = kc_cloud_info(probe->client->cloud);

	if (info == NULL)
		return;
	if (info->no_auth)
		kc_buf_str(&probe->detail, "the service asks for no token");
	else
		kc_buf_printf(&probe->detail, "login endpoint %s, resource %s", info->login_endpoint,
					  info->resource);
}

static void
describe_token(Probe *probe)
{
	int64_t		life_ms = kc_auth_token_life_ms(probe->client->auth);
	char		principal[256];
	KcToken		token;

	kc_auth_principal(probe->client->auth, principal, sizeof(principal));
	if (kc_auth_token(probe->client->auth, &token) && token.text.len == 0)
		kc_buf_str(&probe->detail, "no token is needed");
	else
	{
		kc_buf_str(&probe->detail, principal[0] != '\0' ? principal : "the token does not tell its owner");
		if (life_ms >= 0)
			kc_buf_printf(&probe->detail, ", valid for %d minutes", (int) (life_ms / 60000));
	}
}

static void
describe_resources(Probe *probe)
{
	const KcResources *resources = probe->client->resources;

	if (probe->what == KC_PROBE_IDENTITY_TOKEN)
		kc_buf_str(&probe->detail, "an identity token was given");
	else
		kc_buf_printf(&probe->detail, "%d containers, %d queues, %d status tables",
					  kc_resources_count(resources, KC_RESOURCE_CONTAINER),
					  kc_resources_count(resources, KC_RESOURCE_QUEUE),
					  kc_resources_count(resources, KC_RESOURCE_STATUS_TABLE));
}

/* ---- query ---- */

static void
on_query(KcTask *task)
{
	Probe	   *probe = task->arg;
	KcError		err = task->error;

	probe->query = NULL;
	kc_task_free(task);
	if (err.status == KC_OK)
		kc_buf_printf(&probe->detail, "database \"%s\" answers", probe->db);
	finish(probe, err.status == KC_OK ? NULL : &err);
}

static KcStatus
start_query(Probe *probe, KcError *err)
{
	KcStatus	status;

	status = kc_kusto_request_start(probe->client, KC_ENDPOINT_ENGINE_QUERY, kc_slice(probe->db),
									kc_slice(PROBE_QUERY), true, MAX_ANSWER, &probe->query, err);
	if (status == KC_OK)
	{
		probe->query->task.on_done = on_query;
		probe->query->task.arg = probe;
	}
	return status;
}

/* ---- storage ---- */

static void
on_blob_deleted(KcHttp *http)
{
	Probe	   *probe = http->arg;
	KcError		err = http->error;

	kc_http_free(http);
	probe->http = NULL;
	/* Not being allowed to delete hinders nothing: the service cleans up. */
	kc_buf_str(&probe->detail, err.status == KC_OK ? "a blob was written and deleted"
			   : "a blob was written, but could not be deleted");
	finish(probe, NULL);
}

static void
on_blob_written(KcHttp *http)
{
	Probe	   *probe = http->arg;
	KcError		err = http->error;
	KcStorage	storage;

	kc_http_free(http);
	probe->http = NULL;
	kc_azure_advise_network(&err);
	if (err.status == KC_OK)
	{
		kc_client_storage(probe->client, &probe->client->storage_short_retry, &storage);
		(void) kc_azure_delete_blob(&storage, kc_slice(probe->blob_url), kc_slice(probe->sas),
									&probe->http, &err);
	}
	if (probe->http == NULL)
	{
		finish(probe, &err);
		return;
	}
	probe->http->on_done = on_blob_deleted;
	probe->http->arg = probe;
}

static KcStatus
write_blob(Probe *probe, KcError *err)
{
	KcClient   *client = probe->client;
	KcResource *container = kc_resources_pick(client->resources, KC_RESOURCE_CONTAINER, NULL);
	char		name[KC_UUID_TEXT_LEN + 1];
	KcUuid		uuid;
	KcBuf		url;
	KcStorage	storage;
	KcStatus	status;

	if (container == NULL)
		return kc_error_set(err, KC_ERR_SERVICE, probes[probe->what].doing,
							"the ingestion service has no container that we may use");
	status = kc_uuid_random(&uuid, err);
	if (status != KC_OK)
		return status;
	kc_uuid_text(&uuid, name);
	kc_buf_init(&url, client->alloc, KC_BUF_UNLIMITED);
	kc_buf_printf(&url, "%s/kusto_ingest.test.%s.txt", container->url, name);
	status = kc_buf_status(&url, err, probes[probe->what].doing);
	if (status != KC_OK)
	{
		kc_buf_free(&url);
		return status;
	}
	probe->blob_url = url.data;
	probe->sas = kc_strdup(client->alloc, kc_slice(container->sas));
	if (probe->sas == NULL)
		return kc_error_nomem(err, probes[probe->what].doing);
	kc_client_storage(client, &client->storage_short_retry, &storage);
	status = kc_azure_put_blob(&storage, kc_slice(probe->blob_url), kc_slice(probe->sas),
							   kc_slice(PROBE_CONTENT), &probe->http, err);
	if (status == KC_OK)
	{
		probe->http->on_done = on_blob_written;
		probe->http->arg = probe;
	}
	return status;
}

/* ---- the flow ---- */

/* What the probe is about is in its cache now. */
static void
cache_is_filled(Probe *probe)
{
	KcError		err;

	switch (probe->what)
	{
		case KC_PROBE_METADATA:
			describe_metadata(probe);
			break;
		case KC_PROBE_TOKEN:
			describe_token(probe);
			break;
		case KC_PROBE_STORAGE:
			if (write_blob(probe, &err) != KC_OK)
				finish(probe, &err);
			return;
		default:
			describe_resources(probe);
			break;
	}
	finish(probe, NULL);
}

static void
on_cache(KcWaiter *waiter, const KcError *err)
{
	Probe	   *probe = waiter->arg;

	if (err != NULL)
		finish(probe, err);
	else
		cache_is_filled(probe);
}

static KcStatus
want_cache(Probe *probe, KcError *err)
{
	KcClient   *client = probe->client;
	KcToken		token;

	switch (probe->what)
	{
		case KC_PROBE_METADATA:
			if (kc_cloud_info(client->cloud) == NULL)
				return kc_cloud_wait(client->cloud, &probe->waiter, err);
			break;
		case KC_PROBE_TOKEN:
			if (!kc_auth_token(client->auth, &token))
				return kc_auth_wait(client->auth, &probe->waiter, err);
			break;
		default:
			if (!kc_resources_ready(client->resources))
				return kc_resources_wait(client->resources, &probe->waiter, err);
			break;
	}
	cache_is_filled(probe);
	return KC_OK;
}

static void
on_begin(KcTimer *timer)
{
	Probe	   *probe = timer->arg;
	KcStatus	status = KC_OK;
	KcError		err;

	if (probe->what == KC_PROBE_RESOLVE)
		connect_host(probe);
	else if (probe->what == KC_PROBE_QUERY)
		status = start_query(probe, &err);
	else
		status = want_cache(probe, &err);
	if (status != KC_OK)
		finish(probe, &err);
}

static void
destroy(KcTask *task)
{
	Probe	   *probe = (Probe *) task;
	KcClient   *client = probe->client;

	kc_mux_timer_cancel(client->mux, &probe->begin);
	kc_cloud_cancel(client->cloud, &probe->waiter);
	kc_auth_cancel(client->auth, &probe->waiter);
	kc_resources_cancel(client->resources, &probe->waiter);
	kc_http_free(probe->http);
	if (probe->query != NULL)
		kc_task_free(&probe->query->task);
	kc_buf_free(&probe->detail);
	kc_free(client->alloc, probe->db);
	kc_free(client->alloc, probe->blob_url);
	kc_free_secret(client->alloc, probe->sas);
	kc_free(client->alloc, probe);
}

KcStatus
kc_kusto_probe_start(KcClient *client, KcProbe what, KcSlice db, KcProbeTask **task, KcError *err)
{
	Probe	   *probe;

	*task = NULL;
	probe = kc_alloc0(client->alloc, sizeof(Probe));
	if (probe == NULL)
		return kc_error_nomem(err, probes[what].doing);
	probe->client = client;
	probe->what = what;
	probe->pub.task.destroy = destroy;
	probe->begin.fire = on_begin;
	probe->begin.arg = probe;
	probe->waiter.ready = on_cache;
	probe->waiter.arg = probe;
	kc_error_clear(&probe->pub.task.error);
	kc_buf_init(&probe->detail, client->alloc, 4096);
	probe->db = kc_strdup(client->alloc, db.len > 0 ? db : kc_slice("NetDefaultDB"));
	if (probe->db == NULL)
	{
		destroy(&probe->pub.task);
		return kc_error_nomem(err, probes[what].doing);
	}
	kc_mux_timer_set(client->mux, &probe->begin, kc_client_now_ms(client));
	*task = &probe->pub;
	return KC_OK;
}
