/*
 * kusto_endpoints.c
 *	  Cluster URIs: which host is the engine, which the ingestion service, and
 *	  which hosts may be given a token at all.
 *
 * Public sources: learn.microsoft.com/kusto/api/connection-strings/kusto,
 * learn.microsoft.com/azure/data-explorer/kusto/api/connection-strings/trusted-endpoints
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* memmem */
#endif
#include <string.h>

#include "kusto_internal.h"

#define INGEST_PREFIX "ingest-"

static const char doing_uri[] = "reading a cluster URI";

/* Suffixes of the hosts of Kusto in the public and the sovereign clouds. */
static const char *const trusted_suffixes[] = {
	".kusto.windows.net",
	".kustomfa.windows.net",
	".kustodev.windows.net",
	".kusto.fabric.microsoft.com",
	".kusto.data.microsoft.com",
	".kusto.azuresynapse.net",
	".kustodev.azuresynapse-dogfood.net",
	".dxp.aad.azure.com",
	".dxp-dev.aad.azure.com",
	".playfab.com",
	".playfabapi.com",
	".azureplayfab.com",
	".api.securityplatform.microsoft.com",
	".securitycenter.windows.com",
	".arg.core.windows.net",
	".kusto.usgovcloudapi.net",
	".kustomfa.usgovcloudapi.net",
	".kusto.chinacloudapi.cn",
	".kustomfa.chinacloudapi.cn",
	".kusto.azuresynapse.azure.cn",
	".kusto.core.eaglex.ic.gov",
	".kustomfa.core.eaglex.ic.gov",
	".kusto.core.microsoft.scloud",
	".kustomfa.core.microsoft.scloud",
	".kusto.sovcloud-api.fr",
	".kusto.sovcloud-api.de",
	".kusto.sovcloud-api.sg",
};

static const char *const trusted_names[] = {
	"ade.applicationinsights.io",
	"ade.loganalytics.io",
	"adx.monitor.azure.com",
	"adx.applicationinsights.azure.com",
	"adx.loganalytics.azure.com",
	"adx.applicationinsights.azure.us",
	"adx.loganalytics.azure.us",
	"adx.monitor.azure.us",
	"adx.applicationinsights.azure.cn",
	"adx.loganalytics.azure.cn",
	"adx.monitor.azure.cn",
	"kusto.aria.microsoft.com",
	"eu.kusto.aria.microsoft.com",
};

/*
 * A suffix matches whole labels only: "corp.example" trusts corp.example and
 * kusto.corp.example, not evilcorp.example.
 */
static bool
suffix_matches(KcSlice host, const char *suffix)
{
	KcSlice		s = kc_slice(suffix);

	if (s.len == 0)
		return false;
	if (s.data[0] != '.' && kc_slice_ieq(host, s))
		return true;
	if (!kc_slice_ends_i(host, s) || host.len <= s.len)
		return false;
	return s.data[0] == '.' || host.data[host.len - s.len - 1] == '.';
}

static bool
in_suffixes(KcSlice host, const char *const *suffixes)
{
	for (; suffixes != NULL && *suffixes != NULL; suffixes++)
	{
		if (suffix_matches(host, *suffixes))
			return true;
	}
	return false;
}

bool
kc_kusto_host_trusted(KcSlice host, const char *const *suffixes)
{
	if (kc_host_is_loopback(host))
		return true;
	for (size_t i = 0; i < sizeof(trusted_suffixes) / sizeof(trusted_suffixes[0]); i++)
	{
		if (suffix_matches(host, trusted_suffixes[i]))
			return true;
	}
	for (size_t i = 0; i < sizeof(trusted_names) / sizeof(trusted_names[0]); i++)
	{
		if (kc_slice_ieq(host, kc_slice(trusted_names[i])))
			return true;
	}
	return in_suffixes(host, suffixes);
}

bool
kc_kusto_login_trusted(KcSlice host, const char *const *suffixes)
{
	return kc_cloud_login_host_known(host) || in_suffixes(host, suffixes);
}

static KcStatus
refuse_uri(KcError *err, const char *why, KcSlice host, KcAdvice advice)
{
	kc_error_set(err, KC_ERR_INVALID, doing_uri, "%s: \"%.*s\"", why,
				 (int) (host.len > 200 ? 200 : host.len), host.data);
	if (err != NULL)
	{
		err->permanent = true;
		err->advice = advice;
	}
	return KC_ERR_INVALID;
}

KcStatus
kc_kusto_check_uri(const char *uri, const char *const *trusted, KcBuf *origin, bool *loopback,
				   KcError *err)
{
	KcUrl		url;
	KcStatus	status;

	status = kc_url_parse(kc_slice(uri), &url, err);
	if (status != KC_OK)
		return status;
	*loopback = kc_host_is_loopback(url.host);
	if (!kc_url_is_https(&url) && !*loopback)
		return refuse_uri(err, "\"http\" is refused for a host other than this one, use \"https\"",
						  url.host, KC_ADVICE_NONE);
	if (!kc_kusto_host_trusted(url.host, trusted))
		return refuse_uri(err, "host is not a known Kusto host", url.host, KC_ADVICE_UNTRUSTED_HOST);
	kc_buf_slice(origin, url.origin);
	return kc_buf_status(origin, err, doing_uri);
}

/* Engine and ingestion service behind one name: a local or a test service. */
static bool
has_one_host(const KcUrl *url)
{
	return kc_host_is_loopback(url->host) || kc_host_is_ip(url->host)
		|| kc_slice_ieq(url->host, kc_slice("onebox.dev.kusto.windows.net"));
}

static bool
starts_with_ingest(KcSlice host)
{
	return host.len > strlen(INGEST_PREFIX)
		&& kc_slice_ieq(kc_slice_n(host.data, strlen(INGEST_PREFIX)), kc_slice(INGEST_PREFIX));
}

/* scheme://host[:port], the host changed to what is given. */
static void
append_origin(KcBuf *out, const KcUrl *url, const char *prefix, KcSlice host)
{
	kc_buf_slice(out, url->scheme);
	kc_buf_str(out, "://");
	kc_buf_str(out, prefix);
	kc_buf_slice(out, host);
	if (url->port_explicit)
		kc_buf_printf(out, ":%d", url->port);
}

KcStatus
kc_kusto_derive_uris(KcSlice cluster, KcBuf *engine, KcBuf *ingest, KcError *err)
{
	KcBuf		text;
	KcUrl		url;
	KcStatus	status;

	kc_buf_init(&text, engine->alloc, KC_BUF_UNLIMITED);
	if (cluster.len == 0 || memmem(cluster.data, cluster.len, "://", 3) == NULL)
		kc_buf_str(&text, "https://");
	kc_buf_slice(&text, cluster);
	status = kc_buf_status(&text, err, doing_uri);
	if (status == KC_OK)
		status = kc_url_parse(kc_buf_view(&text), &url, err);
	if (status == KC_OK)
	{
		if (has_one_host(&url))
		{
			kc_buf_slice(engine, url.origin);
			kc_buf_slice(ingest, url.origin);
		}
		else if (starts_with_ingest(url.host))
		{
			KcSlice		bare = kc_slice_n(url.host.data + strlen(INGEST_PREFIX),
										  url.host.len - strlen(INGEST_PREFIX));

			append_origin(engine, &url, "", bare);
			kc_buf_slice(ingest, url.origin);
		}
		else
		{
			kc_buf_slice(engine, url.origin);
			append_origin(ingest, &url, INGEST_PREFIX, url.host);
		}
		status = kc_buf_status(engine, err, doing_uri);
		if (status == KC_OK)
			status = kc_buf_status(ingest, err, doing_uri);
	}
	kc_buf_free(&text);
	return status;
}
