/*
 * kusto_client.c
 *	  A client's configuration and the caches that hang off it.
 */
#include <stdlib.h>
#include <string.h>

#include "kusto_internal.h"

static const char doing_client[] = "preparing a Kusto client";

/* A Retry-After must not outweigh turning elsewhere. */
#define SHORT_RETRY_MS 10000

/* The config's strings that are ours, in one place for copying and freeing. */
static const size_t string_members[] = {
	offsetof(KcClientConfig, authority),
	offsetof(KcClientConfig, proxy),
	offsetof(KcClientConfig, ca_file),
	offsetof(KcClientConfig, tenant),
	offsetof(KcClientConfig, client_id),
	offsetof(KcClientConfig, client_secret),
	offsetof(KcClientConfig, access_token),
	offsetof(KcClientConfig, identity_endpoint),
	offsetof(KcClientConfig, application),
	offsetof(KcClientConfig, version),
	offsetof(KcClientConfig, user),
};

#define NSTRINGS (sizeof(string_members) / sizeof(string_members[0]))

static char **
member_of(KcClientConfig *config, size_t i)
{
	return (char **) ((char *) config + string_members[i]);
}

static KcStatus
copy_config(KcClient *client, const KcClientConfig *config, KcError *err)
{
	KcClientConfig source = *config;

	client->config = *config;
	client->config.engine_uri = client->config.ingest_uri = NULL;
	client->config.trusted_hosts = NULL;
	for (size_t i = 0; i < NSTRINGS; i++)
		*member_of(&client->config, i) = NULL;
	for (size_t i = 0; i < NSTRINGS; i++)
	{
		const char *value = *member_of(&source, i);

		if (value == NULL)
			continue;
		*member_of(&client->config, i) = kc_strdup(client->alloc, kc_slice(value));
		if (*member_of(&client->config, i) == NULL)
			return kc_error_nomem(err, doing_client);
	}
	return KC_OK;
}

static KcStatus
check_uris(KcClient *client, const KcClientConfig *config, KcError *err)
{
	KcBuf		engine;
	KcBuf		ingest;
	bool		loopback[2] = {false, false};
	KcStatus	status;

	kc_buf_init(&engine, client->alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&ingest, client->alloc, KC_BUF_UNLIMITED);
	status = kc_kusto_check_uri(config->engine_uri, config->trusted_hosts, &engine, &loopback[0], err);
	if (status == KC_OK)
		status = kc_kusto_check_uri(config->ingest_uri, config->trusted_hosts, &ingest,
									&loopback[1], err);
	if (status != KC_OK)
	{
		kc_buf_free(&engine);
		kc_buf_free(&ingest);
		return status;
	}
	client->engine_uri = engine.data;
	client->ingest_uri = ingest.data;
	client->loopback = loopback[0] && loopback[1];
	return KC_OK;
}

/*
 * The authority is sent client secrets, and whoever configures the cluster
 * need not be whose secrets they are.
 */
static KcStatus
check_authority(const KcClient *client, const char *const *trusted, KcError *err)
{
	KcUrl		url;
	KcStatus	status;

	if (client->config.authority == NULL)
		return KC_OK;
	status = kc_url_parse(kc_slice(client->config.authority), &url, err);
	if (status != KC_OK)
		return status;
	if (client->loopback && kc_host_is_loopback(url.host))
		return KC_OK;
	if (!kc_url_is_https(&url))
		kc_error_set(err, KC_ERR_INVALID, doing_client, "the authority must be an \"https\" URL");
	else if (kc_kusto_login_trusted(url.host, trusted))
		return KC_OK;
	else
		kc_error_set(err, KC_ERR_INVALID, doing_client,
					 "the authority is not a known login endpoint: \"%.*s\"",
					 (int) (url.host.len > 200 ? 200 : url.host.len), url.host.data);
	if (err != NULL)
	{
		err->permanent = true;
		err->advice = kc_url_is_https(&url) ? KC_ADVICE_UNTRUSTED_HOST : KC_ADVICE_CHECK_AUTHORITY;
	}
	return KC_ERR_INVALID;
}

static KcStatus
make_texts(KcClient *client, KcError *err)
{
	const char *version = client->config.version ? client->config.version : "0";
	KcBuf		agent;
	KcBuf		traced;
	KcStatus	status;

	kc_buf_init(&agent, client->alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&traced, client->alloc, KC_BUF_UNLIMITED);
	kc_buf_printf(&agent, "kusto_ingest/%s", version);
	kc_buf_printf(&traced, "Kusto.kusto_ingest.Client:{%s}", version);
	status = kc_buf_status(&agent, err, doing_client);
	if (status == KC_OK)
		status = kc_buf_status(&traced, err, doing_client);
	if (status != KC_OK)
	{
		kc_buf_free(&agent);
		kc_buf_free(&traced);
		return status;
	}
	client->user_agent = agent.data;
	client->client_version = traced.data;
	return KC_OK;
}

/*
 * All that decides what the service answers, and to whom; the rest, such as
 * time limits, only decides how it is asked.
 */
static KcStatus
make_cache_key(KcClient *client, KcError *err)
{
	const KcClientConfig *config = &client->config;
	bool		identity = config->auth == KC_AUTH_MANAGED_IDENTITY;
	char		auth[2] = {(char) ('0' + config->auth), '\0'};
	const char *const texts[] = {
		config->version,
		client->engine_uri, client->ingest_uri, config->authority, config->proxy, config->ca_file,
		auth, config->tenant, config->client_id, config->client_secret, config->access_token,
		config->identity_endpoint,
		identity ? getenv("IDENTITY_ENDPOINT") : NULL, identity ? getenv("IDENTITY_HEADER") : NULL
	};

	return kc_cache_key(texts, sizeof(texts) / sizeof(texts[0]), &client->cache_key, err);
}

static KcStatus
make_caches(KcClient *client, KcError *err)
{
	const KcClientConfig *config = &client->config;
	KcCloudConfig cloud;
	KcAuthConfig auth;
	KcStatus	status;

	status = make_cache_key(client, err);
	if (status != KC_OK)
		return status;
	memset(&cloud, 0, sizeof(cloud));
	cloud.uris[0] = client->engine_uri;
	if (strcmp(client->engine_uri, client->ingest_uri) != 0)
		cloud.uris[1] = client->ingest_uri;
	cloud.authority = config->authority;
	cloud.http = &client->http;
	cloud.request_timeout_ms = config->request_timeout_ms;
	cloud.retry_total_ms = config->retry_total_ms;
	status = kc_cloud_create(client->alloc, client->mux, &cloud, &client->cloud, err);
	if (status != KC_OK)
		return status;

	memset(&auth, 0, sizeof(auth));
	auth.method = config->auth;
	auth.tenant = config->tenant;
	auth.client_id = config->client_id;
	auth.client_secret = config->client_secret;
	auth.access_token = config->access_token;
	auth.identity_endpoint = config->identity_endpoint;
	auth.http = &client->http;
	auth.cache = config->cache;
	auth.cache_key = &client->cache_key;
	auth.request_timeout_ms = config->request_timeout_ms;
	auth.retry_total_ms = config->retry_total_ms;
	status = kc_auth_create(client->alloc, client->mux, &auth, client->cloud, &client->auth, err);
	if (status != KC_OK)
		return status;
	return kc_resources_create(client, &client->resources, err);
}

/* Time bounds them; tries only where there is no bound in time. */
static void
set_retries(KcClient *client, int64_t total_ms)
{
	int			max_attempts = total_ms > 0 ? 0 : 5;

	client->request_retry = (KcRetryPolicy)
	{
		.max_attempts = max_attempts, .base_ms = 1000, .cap_ms = 16000, .max_total_ms = total_ms
	};
	client->storage_retry = (KcRetryPolicy)
	{
		.max_attempts = max_attempts, .base_ms = 500, .cap_ms = 16000, .max_total_ms = total_ms
	};
	client->storage_short_retry = (KcRetryPolicy)
	{
		.max_attempts = 3, .base_ms = 500, .cap_ms = 4000,
		.max_total_ms = total_ms > 0 && total_ms < SHORT_RETRY_MS ? total_ms : SHORT_RETRY_MS
	};
}

KcStatus
kc_client_create(const KcAlloc *alloc, KcMux *mux, const KcClientConfig *config, KcClient **result,
				 KcError *err)
{
	KcClient   *client;
	KcStatus	status;

	*result = NULL;
	client = kc_alloc0(alloc, sizeof(KcClient));
	if (client == NULL)
		return kc_error_nomem(err, doing_client);
	client->alloc = alloc;
	client->mux = mux;
	status = copy_config(client, config, err);
	if (status == KC_OK)
		status = check_uris(client, config, err);
	if (status == KC_OK)
		status = check_authority(client, config->trusted_hosts, err);
	if (status == KC_OK)
		status = make_texts(client, err);
	if (status == KC_OK)
	{
		client->http.proxy = client->config.proxy;
		client->http.ca_file = client->config.ca_file;
		client->http.user_agent = client->user_agent;
		client->http.connect_timeout_ms = config->connect_timeout_ms;
		set_retries(client, config->retry_total_ms);
		status = make_caches(client, err);
	}
	if (status != KC_OK)
	{
		kc_client_free(client);
		return status;
	}
	*result = client;
	return KC_OK;
}

void
kc_client_free(KcClient *client)
{
	if (client == NULL)
		return;
	kc_kusto_stream_forget_all(client);
	kc_resources_free(client->resources);
	kc_auth_free(client->auth);
	kc_cloud_free(client->cloud);
	kc_free(client->alloc, client->engine_uri);
	kc_free(client->alloc, client->ingest_uri);
	kc_free(client->alloc, client->user_agent);
	kc_free(client->alloc, client->client_version);
	for (size_t i = 0; i < NSTRINGS; i++)
		kc_free_secret(client->alloc, *member_of(&client->config, i));
	kc_free(client->alloc, client);
}

KcMux *
kc_client_mux(const KcClient *client)
{
	return client->mux;
}

int64_t
kc_client_now_ms(const KcClient *client)
{
	const KcClock *clock = kc_mux_clock(client->mux);

	return clock->monotonic_ms(clock->arg);
}

int64_t
kc_client_unix_us(const KcClient *client)
{
	const KcClock *clock = kc_mux_clock(client->mux);

	return clock->unix_us(clock->arg);
}

void
kc_client_storage(const KcClient *client, const KcRetryPolicy *retry, KcStorage *storage)
{
	storage->mux = client->mux;
	storage->alloc = client->alloc;
	storage->http = &client->http;
	storage->request_timeout_ms = client->config.request_timeout_ms;
	storage->stall_timeout_ms = client->config.stall_timeout_ms;
	storage->retry = retry;
}
