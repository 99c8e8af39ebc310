/*
 * auth_metadata.c
 *	  GET {cluster}/v1/rest/auth/metadata: which login endpoint, and a token
 *	  for whom.
 *
 * The answer decides where a client secret is sent, so the cluster's host was
 * checked before it is asked, and the login endpoint it names is checked
 * before it is believed.
 */
#include <string.h>

#include "auth.h"

#define MAX_METADATA (64 * 1024)
#define MAX_TRY_MS 30000
#define MAX_TRIES 4

/* Of the public cloud; what a cluster without metadata is taken to use. */
#define DEFAULT_LOGIN	"https://login.microsoftonline.com"
#define DEFAULT_RESOURCE "https://kusto.kusto.windows.net"

static const char doing_metadata[] = "asking the cluster for its login endpoint";

struct KcCloud
{
	const KcAlloc *alloc;
	KcMux	   *mux;
	KcCloudConfig config;
	char	   *uris[2];
	char	   *authority;
	bool		loopback;		/* the cluster is on this host, whichever URI is asked */
	int			asking;			/* index into uris */
	KcHttp	   *http;
	KcWaiterList waiters;
	bool		known;
	KcCloudInfo info;
	KcRetryPolicy policy;
};

/*
 * learn.microsoft.com/entra/identity-platform/authentication-national-cloud,
 * and the login endpoints that Kusto's public client libraries list.
 */
static const char *const login_hosts[] = {
	"login.microsoftonline.com",
	"login.microsoft.com",
	"login.windows.net",
	"sts.windows.net",
	"login.microsoftonline.us",
	"login-us.microsoftonline.com",
	"login.partner.microsoftonline.cn",
	"login.chinacloudapi.cn",
	"login.microsoftonline.eaglex.ic.gov",
	"login.microsoftonline.scloud",
	"login.sovcloud-identity.fr",
	"login.sovcloud-identity.de",
	"login.sovcloud-identity.sg",
};

bool
kc_cloud_login_host_known(KcSlice host)
{
	for (size_t i = 0; i < sizeof(login_hosts) / sizeof(login_hosts[0]); i++)
	{
		if (kc_slice_ieq(host, kc_slice(login_hosts[i])))
			return true;
	}
	return false;
}

int64_t
kc_auth_try_timeout_ms(int64_t request_timeout_ms)
{
	return request_timeout_ms > 0 && request_timeout_ms < MAX_TRY_MS ? request_timeout_ms : MAX_TRY_MS;
}

static char *
copy_without_slash(const KcAlloc *alloc, const char *uri)
{
	size_t		len = strlen(uri);

	while (len > 0 && uri[len - 1] == '/')
		len--;
	return kc_strdup(alloc, kc_slice_n(uri, len));
}

static KcStatus
check_login_endpoint(const KcCloud *cloud, const char *endpoint, KcError *err)
{
	KcUrl		url;

	if (kc_url_parse(kc_slice(endpoint), &url, err) == KC_OK
		&& ((kc_url_is_https(&url) && kc_cloud_login_host_known(url.host))
			|| (cloud->loopback && kc_host_is_loopback(url.host))))
		return KC_OK;
	kc_error_set(err, KC_ERR_REFUSED, doing_metadata,
				 "the cluster names the login endpoint \"%s\", which is not one of Microsoft's",
				 endpoint);
	err->permanent = true;
	err->advice = KC_ADVICE_CHECK_AUTHORITY;
	return KC_ERR_REFUSED;
}

/*
 * A tenant that enforces multi-factor authentication wants the token for
 * another name of the same resource.
 */
static char *
resource_for_mfa(const KcAlloc *alloc, const char *resource)
{
	const char *at = strstr(resource, ".kusto.");
	KcBuf		buf;

	if (at == NULL)
		return kc_strdup(alloc, kc_slice(resource));
	kc_buf_init(&buf, alloc, KC_BUF_UNLIMITED);
	kc_buf_append(&buf, resource, (size_t) (at - resource));
	kc_buf_str(&buf, ".kustomfa.");
	kc_buf_str(&buf, at + strlen(".kusto."));
	if (buf.failed != KC_OK)
	{
		kc_buf_free(&buf);
		return NULL;
	}
	return buf.data;
}

static KcStatus
use_defaults(KcCloud *cloud, KcError *err)
{
	cloud->info.login_endpoint = copy_without_slash(cloud->alloc,
													cloud->authority ? cloud->authority : DEFAULT_LOGIN);
	cloud->info.resource = kc_strdup(cloud->alloc, kc_slice(DEFAULT_RESOURCE));
	if (cloud->info.login_endpoint == NULL || cloud->info.resource == NULL)
		return kc_error_nomem(err, doing_metadata);
	return KC_OK;
}

static KcStatus
not_metadata(KcError *err, const char *why)
{
	kc_error_set(err, KC_ERR_PROTOCOL, doing_metadata, "%s", why);
	err->permanent = true;
	err->advice = KC_ADVICE_NOT_KUSTO;
	return KC_ERR_PROTOCOL;
}

static KcStatus
read_azuread(KcCloud *cloud, KcJsonValue azuread, KcError *err)
{
	char	   *login = NULL;
	char	   *resource = NULL;
	bool		mfa = false;
	KcStatus	status;
	const KcJsonField fields[] = {
		{.name = "LoginEndpoint",.want = KC_WANT_STRING,.target = &login,.required = true},
		{.name = "KustoServiceResourceId",.want = KC_WANT_STRING,.target = &resource,.required = true},
		{.name = "LoginMfaRequired",.want = KC_WANT_BOOL,.target = &mfa},
	};

	status = kc_json_read_object(azuread, fields, 3, cloud->alloc, doing_metadata, err);
	if (status != KC_OK)
		return status;
	if (cloud->authority == NULL)
		status = check_login_endpoint(cloud, login, err);
	if (status == KC_OK)
	{
		cloud->info.login_endpoint = copy_without_slash(cloud->alloc,
														cloud->authority ? cloud->authority : login);
		cloud->info.resource = mfa ? resource_for_mfa(cloud->alloc, resource)
			: kc_strdup(cloud->alloc, kc_slice(resource));
		if (cloud->info.login_endpoint == NULL || cloud->info.resource == NULL)
			status = kc_error_nomem(err, doing_metadata);
	}
	kc_free(cloud->alloc, login);
	kc_free(cloud->alloc, resource);
	return status;
}

static KcStatus
read_metadata(KcCloud *cloud, KcSlice body, KcError *err)
{
	KcJsonValue top;
	KcJsonValue azuread;

	if (kc_json_check(body, 16, &top, doing_metadata, err) != KC_OK || top.type != KC_JSON_OBJECT)
		return not_metadata(err, "the answer is not cloud metadata");
	if (!kc_json_member(top, "AzureAD", &azuread))
		return not_metadata(err, "the cloud metadata has no member \"AzureAD\"");
	if (azuread.type == KC_JSON_NULL)
	{
		cloud->info.no_auth = true;	/* the Kusto emulator says so */
		return KC_OK;
	}
	if (azuread.type != KC_JSON_OBJECT)
		return not_metadata(err, "the cloud metadata's member \"AzureAD\" is not an object");
	return read_azuread(cloud, azuread, err);
}

static void
forget(KcCloud *cloud)
{
	cloud->known = false;
	kc_free(cloud->alloc, cloud->info.login_endpoint);
	kc_free(cloud->alloc, cloud->info.resource);
	memset(&cloud->info, 0, sizeof(cloud->info));
}

static KcStatus ask(KcCloud *cloud, KcError *err);

static void
on_metadata(KcHttp *http)
{
	KcCloud    *cloud = http->arg;
	KcError		err = http->error;
	KcStatus	status = err.status;

	forget(cloud);
	if (status == KC_OK)
		status = read_metadata(cloud, kc_buf_view(&http->response.body), &err);
	else if (http->response.status == 404)
		status = use_defaults(cloud, &err);
	else if ((status == KC_ERR_NETWORK || status == KC_ERR_TIMEOUT)
			 && cloud->asking == 0 && cloud->uris[1] != NULL)
	{
		kc_http_free(http);
		cloud->http = NULL;
		cloud->asking = 1;
		if (ask(cloud, &err) != KC_OK)
			kc_waiter_wake(&cloud->waiters, &err);
		return;
	}
	if (status != KC_OK && err.host[0] == '\0')
	{
		KcUrl		url;
		KcError		ignored;

		if (kc_url_parse(kc_slice(cloud->uris[cloud->asking]), &url, &ignored) == KC_OK)
			kc_error_text(err.host, sizeof(err.host), url.host);
	}
	kc_http_free(http);
	cloud->http = NULL;
	if (status == KC_OK)
	{
		cloud->known = true;
		kc_waiter_wake(&cloud->waiters, NULL);
		return;
	}
	forget(cloud);
	kc_waiter_wake(&cloud->waiters, &err);
}

static KcStatus
ask(KcCloud *cloud, KcError *err)
{
	KcHttpHeader headers[] = {{"Accept", kc_slice("application/json")}};
	KcHttpRequest request;
	KcBuf		url;
	KcStatus	status;

	kc_buf_init(&url, cloud->alloc, KC_BUF_UNLIMITED);
	kc_buf_str(&url, cloud->uris[cloud->asking]);
	kc_buf_str(&url, "/v1/rest/auth/metadata");
	memset(&request, 0, sizeof(request));
	request.doing = doing_metadata;
	request.method = "GET";
	request.url = kc_buf_view(&url);
	request.headers = headers;
	request.nheaders = 1;
	request.max_response = MAX_METADATA;
	request.timeout_ms = kc_auth_try_timeout_ms(cloud->config.request_timeout_ms);
	/* With another host to ask, do not insist on this one. */
	if (cloud->asking == 0 && cloud->uris[1] != NULL)
		cloud->policy.max_attempts = 2;
	else
		cloud->policy.max_attempts = cloud->config.retry_total_ms > 0 ? 0 : MAX_TRIES;
	cloud->policy.max_unreached = MAX_TRIES;
	request.retry = &cloud->policy;
	status = kc_buf_status(&url, err, doing_metadata);
	if (status == KC_OK)
		status = kc_http_start(cloud->mux, cloud->alloc, cloud->config.http, &request,
							   &cloud->http, err);
	kc_buf_free(&url);
	if (status == KC_OK)
	{
		cloud->http->on_done = on_metadata;
		cloud->http->arg = cloud;
	}
	return status;
}

KcStatus
kc_cloud_wait(KcCloud *cloud, KcWaiter *waiter, KcError *err)
{
	if (cloud->http == NULL)
	{
		KcStatus	status;

		cloud->asking = 0;
		status = ask(cloud, err);
		if (status != KC_OK)
			return status;
	}
	kc_waiter_add(&cloud->waiters, waiter);
	return KC_OK;
}

void
kc_cloud_cancel(KcCloud *cloud, KcWaiter *waiter)
{
	/* As kc_auth_cancel(): nobody inherits a request that hangs. */
	if (!kc_waiter_cancel(&cloud->waiters, waiter) || cloud->http == NULL)
		return;
	kc_http_free(cloud->http);
	cloud->http = NULL;
}

const KcCloudInfo *
kc_cloud_info(const KcCloud *cloud)
{
	return cloud->known ? &cloud->info : NULL;
}

KcStatus
kc_cloud_create(const KcAlloc *alloc, KcMux *mux, const KcCloudConfig *config, KcCloud **result,
				KcError *err)
{
	KcCloud    *cloud;
	bool		loopback = true;

	*result = NULL;
	for (int i = 0; i < 2 && config->uris[i] != NULL; i++)
	{
		KcUrl		url;
		KcStatus	status = kc_url_parse(kc_slice(config->uris[i]), &url, err);

		if (status != KC_OK)
			return status;
		loopback = loopback && kc_host_is_loopback(url.host);
	}
	cloud = kc_alloc0(alloc, sizeof(KcCloud));
	if (cloud == NULL)
		return kc_error_nomem(err, doing_metadata);
	cloud->alloc = alloc;
	cloud->mux = mux;
	cloud->config = *config;
	cloud->loopback = loopback;
	cloud->policy = (KcRetryPolicy)
	{
		.base_ms = 500, .cap_ms = 8000, .max_total_ms = config->retry_total_ms
	};
	cloud->uris[0] = copy_without_slash(alloc, config->uris[0]);
	if (config->uris[1] != NULL)
		cloud->uris[1] = copy_without_slash(alloc, config->uris[1]);
	if (config->authority != NULL)
		cloud->authority = copy_without_slash(alloc, config->authority);
	if (cloud->uris[0] == NULL || (config->uris[1] != NULL && cloud->uris[1] == NULL)
		|| (config->authority != NULL && cloud->authority == NULL))
	{
		kc_cloud_free(cloud);
		return kc_error_nomem(err, doing_metadata);
	}
	*result = cloud;
	return KC_OK;
}

void
kc_cloud_free(KcCloud *cloud)
{
	if (cloud == NULL)
		return;
	kc_http_free(cloud->http);
	kc_free(cloud->alloc, cloud->uris[0]);
	kc_free(cloud->alloc, cloud->uris[1]);
	kc_free(cloud->alloc, cloud->authority);
	kc_free(cloud->alloc, cloud->info.login_endpoint);
	kc_free(cloud->alloc, cloud->info.resource);
	kc_free(cloud->alloc, cloud);
}
