/*
 * azure.h
 *	  Requests to Azure Storage with a SAS: blobs, queue messages, table rows.
 *
 * A SAS is a query string that carries its own signature: it is sent byte for
 * byte as it came, and without an Authorization header.
 *
 * Public source: learn.microsoft.com/rest/api/storageservices
 */
#ifndef KC_AZURE_H
#define KC_AZURE_H

#include "http.h"

/* How to ask; filled anew for each request. */
typedef struct KcStorage
{
	KcMux	   *mux;
	const KcAlloc *alloc;
	const KcHttpConfig *http;
	int64_t		request_timeout_ms; /* of small requests */
	int64_t		stall_timeout_ms;
	const KcRetryPolicy *retry;
} KcStorage;

/* sas: query without '?'.  Bodies live until the KcHttp is freed. */
extern KcStatus kc_azure_put_blob(const KcStorage *storage, KcSlice blob_url, KcSlice sas,
								  KcSlice body, KcHttp **http, KcError *err);
extern KcStatus kc_azure_put_block(const KcStorage *storage, KcSlice blob_url, KcSlice sas,
								   int index, KcSlice body, KcHttp **http, KcError *err);
/* Commit blocks 0 .. nblocks - 1; *body is made here and freed by the caller after *http. */
extern KcStatus kc_azure_put_block_list(const KcStorage *storage, KcSlice blob_url, KcSlice sas,
										int nblocks, KcBuf *body, KcHttp **http, KcError *err);
extern KcStatus kc_azure_delete_blob(const KcStorage *storage, KcSlice blob_url, KcSlice sas,
									 KcHttp **http, KcError *err);
/* Get Blob Properties: is it there? */
extern KcStatus kc_azure_head_blob(const KcStorage *storage, KcSlice blob_url, KcSlice sas,
								   KcHttp **http, KcError *err);

/* Never repeated when it may have been accepted. *body as above. */
extern KcStatus kc_azure_put_message(const KcStorage *storage, KcSlice queue_url, KcSlice sas,
									 KcSlice text, KcBuf *body, KcHttp **http, KcError *err);

/* entity is JSON and lives until *http is freed. */
extern KcStatus kc_azure_insert_entity(const KcStorage *storage, KcSlice table_url, KcSlice sas,
									   KcSlice entity, KcHttp **http, KcError *err);
/* Insert it, or replace the one with these keys. */
extern KcStatus kc_azure_put_entity(const KcStorage *storage, KcSlice table_url, KcSlice sas,
									KcSlice partition_key, KcSlice row_key, KcSlice entity,
									KcHttp **http, KcError *err);
extern KcStatus kc_azure_get_entity(const KcStorage *storage, KcSlice table_url, KcSlice sas,
									KcSlice partition_key, KcSlice row_key, KcHttp **http,
									KcError *err);

/* Put a storage error body, XML or OData JSON, into *err. */
extern void kc_azure_explain(const KcHttpResponse *response, KcError *err);

/* The text of the first element of that name, unescaped; false: there is none. */
extern bool kc_azure_xml_text(KcSlice xml, const char *element, KcBuf *text);

/*
 * A storage host that cannot be reached while the cluster can: often a private
 * endpoint or a firewall that knows the one and not the other.
 */
extern void kc_azure_advise_network(KcError *err);

/* Does the error say that the SAS, or what it is for, is no longer good? */
extern bool kc_azure_wants_fresh_sas(const KcError *err);

#endif							/* KC_AZURE_H */
