/*
 * kusto_resource_set.c
 *	  Reading the answers of ".get ingestion resources" and ".get kusto identity
 *	  token".
 *
 * Columns are found by name and types compared without case; what we do not
 * know is skipped, since the service adds kinds of resources now and then.
 */
#include <string.h>

#include "kusto_resources.h"

#define MAX_RESOURCES 1000

static const char doing_resources[] = "reading ingestion resources";

static const struct
{
	const char *name;
	KcResourceKind kind;
}			kinds[] = {
	{"TempStorage", KC_RESOURCE_CONTAINER},
	{"SecuredReadyForAggregationQueue", KC_RESOURCE_QUEUE},
	{"IngestionsStatusTable", KC_RESOURCE_STATUS_TABLE},
};

KcSlice
kc_resource_account(const KcUrl *url)
{
	KcSlice		part = url->host;
	char		end = '.';
	size_t		n = 0;

	if (kc_host_is_loopback(url->host) || kc_host_is_ip(url->host))
	{
		part = url->path;
		end = '/';
		if (part.len > 0)
			part = kc_slice_n(part.data + 1, part.len - 1);
	}
	while (n < part.len && part.data[n] != end)
		n++;
	return kc_slice_n(part.data, n);
}

/*
 * When a SAS ends: a time to the second, to the minute, or a day
 * (learn.microsoft.com/rest/api/storageservices/create-service-sas).
 */
static int64_t
sas_end(const KcAlloc *alloc, const KcUrl *url)
{
	KcSlice		value;
	KcBuf		text;
	int64_t		end_us = INT64_MAX;

	if (!kc_url_query_get(url, "se", &value))
		return INT64_MAX;
	kc_buf_init(&text, alloc, 256);
	if (kc_text_percent_decode(&text, value))
	{
		if (text.len == strlen("2026-09-01"))
			kc_buf_str(&text, "T00:00:00Z");
		else if (text.len == strlen("2026-09-01T10:11Z"))
		{
			kc_buf_truncate(&text, text.len - 1);
			kc_buf_str(&text, ":00Z");
		}
		if (!kc_text_rfc3339_parse(kc_buf_view(&text), &end_us))
			end_us = INT64_MAX;
	}
	kc_buf_free(&text);
	return end_us;
}

bool
kc_resource_lasts(const KcResource *resource, int64_t now_us)
{
	return resource->expires_us == INT64_MAX
		|| resource->expires_us - now_us >= KC_RESOURCE_MIN_LIFE_US;
}

static void
free_resource(const KcAlloc *alloc, KcResource *resource)
{
	kc_free(alloc, resource->url);
	kc_free_secret(alloc, resource->sas);
	kc_free(alloc, resource);
}

/*
 * One resource; *out NULL when its address is none that we may use.
 */
static KcStatus
make_resource(const KcAlloc *alloc, KcSlice text, bool allow_loopback, KcResource **out, KcError *err)
{
	KcUrl		url;
	KcError		ignored;
	KcResource *resource;
	const char *mark = memchr(text.data, '?', text.len);
	bool		loopback;

	*out = NULL;
	if (kc_url_parse(text, &url, &ignored) != KC_OK || mark == NULL || url.query.len == 0
		|| url.path.len < 2)
		return KC_OK;
	loopback = kc_host_is_loopback(url.host);
	if ((loopback && !allow_loopback) || (!kc_url_is_https(&url) && !loopback))
		return KC_OK;
	resource = kc_alloc0(alloc, sizeof(KcResource));
	if (resource == NULL)
		return kc_error_nomem(err, doing_resources);
	resource->url = kc_strdup(alloc, kc_slice_n(text.data, (size_t) (mark - text.data)));
	resource->sas = kc_strdup(alloc, url.query);
	if (resource->url == NULL || resource->sas == NULL)
	{
		free_resource(alloc, resource);
		return kc_error_nomem(err, doing_resources);
	}
	while (resource->url[strlen(resource->url) - 1] == '/')
		resource->url[strlen(resource->url) - 1] = '\0';
	resource->expires_us = sas_end(alloc, &url);
	*out = resource;
	return KC_OK;
}

static void
append(KcResourceSet *set, KcResourceKind kind, KcResource *resource)
{
	KcResource **link = &set->first[kind];

	while (*link != NULL)
		link = &(*link)->next;
	*link = resource;
}

static KcStatus
read_row(const KcAlloc *alloc, KcJsonValue type, KcJsonValue root, bool allow_loopback,
		 KcResourceSet *set, KcError *err)
{
	KcResource *resource = NULL;
	KcBuf		text;
	KcStatus	status;

	if (type.type != KC_JSON_STRING || root.type != KC_JSON_STRING)
		return KC_OK;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
	{
		if (!kc_json_string_ieq(type, kinds[i].name))
			continue;
		kc_buf_init(&text, alloc, 64 * 1024);
		kc_json_unescape(&text, root);
		status = kc_buf_status(&text, err, doing_resources);
		if (status == KC_OK && text.len > 0)
			status = make_resource(alloc, kc_buf_view(&text), allow_loopback, &resource, err);
		kc_buf_free_secret(&text);
		if (resource != NULL)
			append(set, kinds[i].kind, resource);
		return status;
	}
	return KC_OK;
}

static bool
any_lasts(const KcResource *first, int64_t now_us)
{
	for (; first != NULL; first = first->next)
	{
		if (kc_resource_lasts(first, now_us))
			return true;
	}
	return false;
}

bool
kc_resource_set_usable(const KcResourceSet *set, int64_t now_us)
{
	return set->identity_token != NULL
		&& any_lasts(set->first[KC_RESOURCE_CONTAINER], now_us)
		&& any_lasts(set->first[KC_RESOURCE_QUEUE], now_us);
}

/*
 * A set that came this moment and is over already was made by another clock
 * than ours.
 */
static KcStatus
check_complete(const KcResourceSet *set, int64_t now_us, KcError *err)
{
	static const char *const names[] = {"temporary storage", "queue"};

	for (int kind = KC_RESOURCE_CONTAINER; kind <= KC_RESOURCE_QUEUE; kind++)
	{
		if (set->first[kind] == NULL)
		{
			kc_error_set(err, KC_ERR_PROTOCOL, doing_resources,
						 "the ingestion service names no %s that we may use", names[kind]);
			err->advice = KC_ADVICE_ENGINE_ASKED_AS_INGEST;
			return KC_ERR_PROTOCOL;
		}
		if (!any_lasts(set->first[kind], now_us))
		{
			kc_error_set(err, KC_ERR_SERVICE, doing_resources,
						 "every %s that the ingestion service names expires within an hour",
						 names[kind]);
			err->advice = KC_ADVICE_CLOCK;
			return KC_ERR_SERVICE;
		}
	}
	return KC_OK;
}

KcStatus
kc_resource_set_read(const KcAlloc *alloc, KcResult *result, bool allow_loopback, int64_t now_us,
					 KcResourceSet *set, KcError *err)
{
	int			type = kc_result_find_column(result, "ResourceTypeName");
	int			root = kc_result_find_column(result, "StorageRoot");
	int			n = 0;

	if (type < 0 || root < 0)
	{
		kc_error_set(err, KC_ERR_PROTOCOL, doing_resources,
					 "the answer lacks the columns ResourceTypeName and StorageRoot");
		err->advice = KC_ADVICE_NOT_KUSTO;
		return KC_ERR_PROTOCOL;
	}
	while (kc_result_next(result) && n++ < MAX_RESOURCES)
	{
		KcStatus	status;

		status = read_row(alloc, kc_result_value(result, type), kc_result_value(result, root),
						  allow_loopback, set, err);
		if (status != KC_OK)
			return status;
	}
	return check_complete(set, now_us, err);
}

KcStatus
kc_resource_set_read_token(const KcAlloc *alloc, KcResult *result, KcResourceSet *set, KcError *err)
{
	int			column = kc_result_find_column(result, "AuthorizationContext");
	KcBuf		text;
	KcStatus	status;

	kc_buf_init(&text, alloc, 64 * 1024);
	if (column >= 0 && kc_result_next(result)
		&& kc_result_value(result, column).type == KC_JSON_STRING)
		kc_json_unescape(&text, kc_result_value(result, column));
	status = kc_buf_status(&text, err, doing_resources);
	if (status == KC_OK && text.len == 0)
	{
		kc_error_set(err, KC_ERR_PROTOCOL, doing_resources,
					 "the ingestion service gave no identity token");
		err->advice = KC_ADVICE_NOT_KUSTO;
		status = KC_ERR_PROTOCOL;
	}
	if (status == KC_OK)
	{
		set->identity_token = kc_strdup(alloc, kc_buf_view(&text));
		if (set->identity_token == NULL)
			status = kc_error_nomem(err, doing_resources);
	}
	kc_buf_free_secret(&text);
	return status;
}

void
kc_resource_set_free(const KcAlloc *alloc, KcResourceSet *set)
{
	for (int kind = 0; kind < KC_RESOURCE_KINDS; kind++)
	{
		while (set->first[kind] != NULL)
		{
			KcResource *resource = set->first[kind];

			set->first[kind] = resource->next;
			free_resource(alloc, resource);
		}
	}
	kc_free_secret(alloc, set->identity_token);
	set->identity_token = NULL;
}
