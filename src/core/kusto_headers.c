/*
 * kusto_headers.c
 *	  What every request to an engine or an ingestion service says of itself.
 *
 * Public source: learn.microsoft.com/kusto/api/rest/request-headers
 */
#include <string.h>

#include "kusto_internal.h"

#define KUSTO_API_VERSION	"2024-12-12"

void
kc_kusto_headers_add(KcKustoHeaders *headers, const char *name, KcSlice value)
{
	headers->list[headers->n++] = (KcHttpHeader) {name, value};
}

static void
add_all(const KcClient *client, const char *content_type, KcKustoHeaders *headers)
{
	const char *application = client->config.application;
	const char *user = client->config.user;

	if (headers->bearer.len > 0)
		kc_kusto_headers_add(headers, "Authorization", kc_buf_view(&headers->bearer));
	/* Without it errors may come as HTML. */
	kc_kusto_headers_add(headers, "Accept", kc_slice("application/json"));
	kc_kusto_headers_add(headers, "Content-Type", kc_slice(content_type));
	kc_kusto_headers_add(headers, "x-ms-version", kc_slice(KUSTO_API_VERSION));
	kc_kusto_headers_add(headers, "x-ms-client-request-id", kc_buf_view(&headers->id));
	kc_kusto_headers_add(headers, "x-ms-client-version", kc_slice(client->client_version));
	kc_kusto_headers_add(headers, "x-ms-app",
						 kc_slice(application != NULL ? application : "kusto_ingest"));
	if (user != NULL && user[0] != '\0')
		kc_kusto_headers_add(headers, "x-ms-user", kc_slice(user));
}

KcStatus
kc_kusto_headers_build(const KcClient *client, const char *doing, const char *verb,
					   const char *content_type, KcSlice token, KcKustoHeaders *headers,
					   KcError *err)
{
	KcUuid		uuid;
	char		uuid_text[KC_UUID_TEXT_LEN + 1];
	KcStatus	status;

	memset(headers, 0, sizeof(*headers));
	kc_buf_init(&headers->bearer, client->alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&headers->id, client->alloc, KC_BUF_UNLIMITED);
	status = kc_uuid_random(&uuid, err);
	if (status != KC_OK)
		return status;
	kc_uuid_text(&uuid, uuid_text);
	kc_buf_printf(&headers->id, "KPGX.%s;%s", verb, uuid_text);
	if (token.len > 0)
	{
		kc_buf_str(&headers->bearer, "Bearer ");
		kc_buf_slice(&headers->bearer, token);
	}
	status = kc_buf_status(&headers->id, err, doing);
	if (status == KC_OK)
		status = kc_buf_status(&headers->bearer, err, doing);
	if (status == KC_OK)
		add_all(client, content_type, headers);
	return status;
}

void
kc_kusto_headers_free(KcKustoHeaders *headers)
{
	kc_buf_free_secret(&headers->bearer);
	kc_buf_free(&headers->id);
}
