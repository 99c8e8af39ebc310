/*
 * azure.c
 *	  The requests of azure.h.
 */
#include <string.h>

#include "azure.h"
#include "text.h"

/* Versions of the storage protocol that the oldest supported service knows. */
#define BLOB_VERSION	"2020-10-02"
#define TABLE_VERSION	"2019-02-02"
#define MAX_ANSWER		(256 * 1024)
#define BLOCK_ID_DIGITS 8

/*
 * Identifiers of a blob's blocks must be of equal length before and after
 * base64 (learn.microsoft.com/rest/api/storageservices/put-block).
 */
static void
append_block_id(KcBuf *out, int index)
{
	char		id[BLOCK_ID_DIGITS + 1];

	for (int i = BLOCK_ID_DIGITS - 1; i >= 0; i--)
	{
		id[i] = (char) ('0' + index % 10);
		index /= 10;
	}
	kc_text_base64(out, id, BLOCK_ID_DIGITS);
}

static KcStatus
send(const KcStorage *storage, KcHttpRequest *request, KcBuf *url, KcHttp **http, KcError *err)
{
	KcStatus	status = kc_buf_status(url, err, request->doing);

	if (status == KC_OK)
	{
		request->url = kc_buf_view(url);
		request->max_response = MAX_ANSWER;
		request->retry = storage->retry;
		request->explain = kc_azure_explain;
		status = kc_http_start(storage->mux, storage->alloc, storage->http, request, http, err);
	}
	kc_buf_free_secret(url);
	return status;
}

static void
begin(const KcStorage *storage, KcHttpRequest *request, KcBuf *url, const char *doing,
	  const char *method)
{
	memset(request, 0, sizeof(*request));
	request->doing = doing;
	request->method = method;
	request->timeout_ms = storage->request_timeout_ms;
	kc_buf_init(url, storage->alloc, KC_BUF_UNLIMITED);
}

static void
append_sas(KcBuf *url, char separator, KcSlice sas)
{
	kc_buf_char(url, separator);
	kc_buf_slice(url, sas);
}

KcStatus
kc_azure_put_blob(const KcStorage *storage, KcSlice blob_url, KcSlice sas, KcSlice body,
				  KcHttp **http, KcError *err)
{
	KcHttpHeader headers[] = {
		{"x-ms-version", kc_slice(BLOB_VERSION)},
		{"x-ms-blob-type", kc_slice("BlockBlob")},
		{"Content-Type", kc_slice("application/octet-stream")},
	};
	KcHttpRequest request;
	KcBuf		url;

	begin(storage, &request, &url, "uploading a blob", "PUT");
	request.headers = headers;
	request.nheaders = 3;
	request.body = body;
	request.timeout_ms = 0;
	request.stall_timeout_ms = storage->stall_timeout_ms;
	kc_buf_slice(&url, blob_url);
	append_sas(&url, '?', sas);
	return send(storage, &request, &url, http, err);
}

KcStatus
kc_azure_put_block(const KcStorage *storage, KcSlice blob_url, KcSlice sas, int index, KcSlice body,
				   KcHttp **http, KcError *err)
{
	KcHttpHeader headers[] = {
		{"x-ms-version", kc_slice(BLOB_VERSION)},
		{"Content-Type", kc_slice("application/octet-stream")},
	};
	KcHttpRequest request;
	KcBuf		url;
	KcBuf		id;
	KcStatus	status;

	begin(storage, &request, &url, "uploading a block of a blob", "PUT");
	request.headers = headers;
	request.nheaders = 2;
	request.body = body;
	request.timeout_ms = 0;
	request.stall_timeout_ms = storage->stall_timeout_ms;
	kc_buf_init(&id, storage->alloc, KC_BUF_UNLIMITED);
	append_block_id(&id, index);
	kc_buf_slice(&url, blob_url);
	kc_buf_str(&url, "?comp=block&blockid=");
	kc_text_percent_encode(&url, kc_buf_view(&id));
	append_sas(&url, '&', sas);
	status = kc_buf_status(&id, err, request.doing);
	kc_buf_free(&id);
	if (status != KC_OK)
	{
		kc_buf_free_secret(&url);
		return status;
	}
	return send(storage, &request, &url, http, err);
}

KcStatus
kc_azure_put_block_list(const KcStorage *storage, KcSlice blob_url, KcSlice sas, int nblocks,
						KcBuf *body, KcHttp **http, KcError *err)
{
	KcHttpHeader headers[] = {
		{"x-ms-version", kc_slice(BLOB_VERSION)},
		{"Content-Type", kc_slice("application/xml")},
	};
	KcHttpRequest request;
	KcBuf		url;
	KcStatus	status;

	begin(storage, &request, &url, "committing the blocks of a blob", "PUT");
	kc_buf_init(body, storage->alloc, KC_BUF_UNLIMITED);
	kc_buf_str(body, "<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>");
	for (int i = 0; i < nblocks; i++)
	{
		kc_buf_str(body, "<Latest>");
		append_block_id(body, i);
		kc_buf_str(body, "</Latest>");
	}
	kc_buf_str(body, "</BlockList>");
	status = kc_buf_status(body, err, request.doing);
	if (status != KC_OK)
		return status;
	request.headers = headers;
	request.nheaders = 2;
	request.body = kc_buf_view(body);
	request.stall_timeout_ms = storage->stall_timeout_ms;
	kc_buf_slice(&url, blob_url);
	kc_buf_str(&url, "?comp=blocklist");
	append_sas(&url, '&', sas);
	return send(storage, &request, &url, http, err);
}

/* A request that says all by its method. */
static KcStatus
send_bare(const KcStorage *storage, const char *doing, const char *method, KcSlice blob_url,
		  KcSlice sas, KcHttp **http, KcError *err)
{
	KcHttpHeader headers[] = {{"x-ms-version", kc_slice(BLOB_VERSION)}};
	KcHttpRequest request;
	KcBuf		url;

	begin(storage, &request, &url, doing, method);
	request.headers = headers;
	request.nheaders = 1;
	kc_buf_slice(&url, blob_url);
	append_sas(&url, '?', sas);
	return send(storage, &request, &url, http, err);
}

KcStatus
kc_azure_delete_blob(const KcStorage *storage, KcSlice blob_url, KcSlice sas, KcHttp **http,
					 KcError *err)
{
	return send_bare(storage, "deleting a blob", "DELETE", blob_url, sas, http, err);
}

/* learn.microsoft.com/rest/api/storageservices/get-blob-properties */
KcStatus
kc_azure_head_blob(const KcStorage *storage, KcSlice blob_url, KcSlice sas, KcHttp **http,
				   KcError *err)
{
	return send_bare(storage, "looking for a blob", "HEAD", blob_url, sas, http, err);
}

/*
 * The text goes as base64, which is what the reader of the queue expects
 * (learn.microsoft.com/kusto/api/netfx/kusto-ingest-client-rest), and which
 * spares us the characters that XML cannot hold.
 */
KcStatus
kc_azure_put_message(const KcStorage *storage, KcSlice queue_url, KcSlice sas, KcSlice text,
					 KcBuf *body, KcHttp **http, KcError *err)
{
	KcHttpHeader headers[] = {
		{"x-ms-version", kc_slice(BLOB_VERSION)},
		{"Content-Type", kc_slice("application/xml")},
	};
	KcHttpRequest request;
	KcBuf		url;
	KcStatus	status;

	begin(storage, &request, &url, "posting an ingestion message", "POST");
	kc_buf_init(body, storage->alloc, KC_BUF_UNLIMITED);
	kc_buf_str(body, "<QueueMessage><MessageText>");
	kc_text_base64(body, text.data, text.len);
	kc_buf_str(body, "</MessageText></QueueMessage>");
	status = kc_buf_status(body, err, request.doing);
	if (status != KC_OK)
		return status;
	request.headers = headers;
	request.nheaders = 2;
	request.body = kc_buf_view(body);
	request.flags = KC_HTTP_ONCE;
	kc_buf_slice(&url, queue_url);
	kc_buf_str(&url, "/messages");
	append_sas(&url, '?', sas);
	return send(storage, &request, &url, http, err);
}

KcStatus
kc_azure_insert_entity(const KcStorage *storage, KcSlice table_url, KcSlice sas, KcSlice entity,
					   KcHttp **http, KcError *err)
{
	KcHttpHeader headers[] = {
		{"x-ms-version", kc_slice(TABLE_VERSION)},
		{"Content-Type", kc_slice("application/json")},
		{"Accept", kc_slice("application/json;odata=nometadata")},
		{"Prefer", kc_slice("return-no-content")},
	};
	KcHttpRequest request;
	KcBuf		url;

	begin(storage, &request, &url, "writing a row into the ingestion status table", "POST");
	request.headers = headers;
	request.nheaders = 4;
	request.body = entity;
	kc_buf_slice(&url, table_url);
	append_sas(&url, '?', sas);
	return send(storage, &request, &url, http, err);
}

/* OData's string literal: quotes doubled, then percent-encoded for the path. */
static void
append_key(KcBuf *url, const char *name, KcSlice key)
{
	kc_buf_str(url, name);
	kc_buf_str(url, "='");
	for (size_t i = 0; i < key.len; i++)
	{
		if (key.data[i] == '\'')
			kc_buf_str(url, "%27");
		kc_text_percent_encode(url, kc_slice_n(key.data + i, 1));
	}
	kc_buf_char(url, '\'');
}

static void
append_entity(KcBuf *url, KcSlice table_url, KcSlice partition_key, KcSlice row_key, KcSlice sas)
{
	kc_buf_slice(url, table_url);
	kc_buf_char(url, '(');
	append_key(url, "PartitionKey", partition_key);
	kc_buf_char(url, ',');
	append_key(url, "RowKey", row_key);
	kc_buf_char(url, ')');
	append_sas(url, '?', sas);
}

/* learn.microsoft.com/rest/api/storageservices/insert-or-replace-entity */
KcStatus
kc_azure_put_entity(const KcStorage *storage, KcSlice table_url, KcSlice sas, KcSlice partition_key,
					KcSlice row_key, KcSlice entity, KcHttp **http, KcError *err)
{
	KcHttpHeader headers[] = {
		{"x-ms-version", kc_slice(TABLE_VERSION)},
		{"Content-Type", kc_slice("application/json")},
		{"Accept", kc_slice("application/json;odata=nometadata")},
	};
	KcHttpRequest request;
	KcBuf		url;

	begin(storage, &request, &url, "renewing a row of the ingestion status table", "PUT");
	request.headers = headers;
	request.nheaders = 3;
	request.body = entity;
	append_entity(&url, table_url, partition_key, row_key, sas);
	return send(storage, &request, &url, http, err);
}

KcStatus
kc_azure_get_entity(const KcStorage *storage, KcSlice table_url, KcSlice sas, KcSlice partition_key,
					KcSlice row_key, KcHttp **http, KcError *err)
{
	KcHttpHeader headers[] = {
		{"x-ms-version", kc_slice(TABLE_VERSION)},
		{"Accept", kc_slice("application/json;odata=nometadata")},
	};
	KcHttpRequest request;
	KcBuf		url;

	begin(storage, &request, &url, "reading the ingestion status table", "GET");
	request.headers = headers;
	request.nheaders = 2;
	append_entity(&url, table_url, partition_key, row_key, sas);
	return send(storage, &request, &url, http, err);
}
