/*
 * kusto_internal.h
 *	  What the files kusto_*.c and ingest*.c share of a client.
 */
#ifndef KC_KUSTO_INTERNAL_H
#define KC_KUSTO_INTERNAL_H

#include "auth.h"
#include "azure.h"
#include "kusto.h"
#include "kusto_rank.h"
#include "waiter.h"

typedef struct KcResources KcResources;

/* Tables known to refuse streaming for now; kusto_stream_memory.c. */
typedef struct KcStreamRefusal KcStreamRefusal;

struct KcClient
{
	const KcAlloc *alloc;
	KcMux	   *mux;
	KcClientConfig config;		/* strings are ours */
	char	   *engine_uri;		/* origin only */
	char	   *ingest_uri;
	bool		loopback;		/* the cluster is on this host */
	KcHttpConfig http;
	KcCacheKey	cache_key;
	char	   *user_agent;
	char	   *client_version; /* "Kusto.kusto_ingest.Client:{1.0}" */
	KcCloud    *cloud;
	KcAuth	   *auth;
	KcResources *resources;
	KcRetryPolicy request_retry;
	KcRetryPolicy storage_retry;
	KcRetryPolicy storage_short_retry;	/* where there is another place to turn to */
	KcStreamRefusal *stream_refusals;
};

extern int64_t kc_client_now_ms(const KcClient *client);
extern int64_t kc_client_unix_us(const KcClient *client);

/* ---- kusto_endpoints.c ---- */

/* Parse a cluster URI and check that it may be talked to; *origin is appended to. */
extern KcStatus kc_kusto_check_uri(const char *uri, const char *const *trusted, KcBuf *origin,
								   bool *loopback, KcError *err);

/* ---- kusto_headers.c ---- */

#define KC_KUSTO_MAX_HEADERS 12

typedef struct KcKustoHeaders
{
	KcHttpHeader list[KC_KUSTO_MAX_HEADERS];
	int			n;
	KcBuf		bearer;			/* secret */
	KcBuf		id;
} KcKustoHeaders;

/*
 * The headers of one try; token may be empty.  To be freed whatever comes out;
 * kc_http_start() copies them.
 */
extern KcStatus kc_kusto_headers_build(const KcClient *client, const char *doing, const char *verb,
									   const char *content_type, KcSlice token,
									   KcKustoHeaders *headers, KcError *err);
extern void kc_kusto_headers_add(KcKustoHeaders *headers, const char *name, KcSlice value);
extern void kc_kusto_headers_free(KcKustoHeaders *headers);

/* ---- kusto_error.c ---- */

/* Put the errors that a Kusto body holds into *err; false: it holds none. */
extern bool kc_kusto_read_error(KcJsonValue top, const KcAlloc *alloc, KcError *err);
/*
 * All codes and types that the errors of a body have, one a line, and whether
 * any of them says if it is permanent.
 */
extern void kc_kusto_read_names(KcSlice body, KcBuf *names, bool *permanent_told);
extern void kc_kusto_explain_query(const KcHttpResponse *response, KcError *err);
extern void kc_kusto_explain_mgmt(const KcHttpResponse *response, KcError *err);
extern void kc_kusto_explain_engine_uri(const char *engine_uri, const char *ingest_uri, KcError *err);
extern void kc_kusto_explain_ingest(const KcHttpResponse *response, KcError *err);
extern void kc_kusto_explain_stream(const KcHttpResponse *response, KcError *err);
/* Was a command not even begun, for want of capacity? */
extern bool kc_kusto_was_throttled(const KcError *err);
/* What an error code or text of the service suggests. */
extern KcAdvice kc_kusto_advice(KcSlice code, KcSlice text);

/* ---- kusto_stream_judge.c ---- */

typedef enum KcStreamFault
{
	KC_STREAM_FAULT_PASSING,	/* time may heal it */
	KC_STREAM_FAULT_TOO_LARGE,	/* for one request */
	KC_STREAM_FAULT_UNSUPPORTED,	/* by the table, the database or the cluster */
	KC_STREAM_FAULT_DATA,		/* the data themselves are wrong */
	KC_STREAM_FAULT_OTHER		/* identity, rights, no such table */
} KcStreamFault;

/*
 * What a failed streaming request failed of.  names and permanent_told are of
 * kc_kusto_read_names().  A fault that may pass is made one that
 * kc_retry_transient() takes for such.
 */
extern KcStreamFault kc_kusto_stream_judge(KcError *err, KcSlice names, bool permanent_told);

/* ---- kusto_stream_memory.c ---- */

/* Why that table refuses streaming for now; NULL: nothing is known against it. */
extern const KcError *kc_kusto_stream_refusal(KcClient *client, KcSlice database, KcSlice table);
/* To remember is a saving, not a promise: without memory it is left out. */
extern void kc_kusto_stream_remember(KcClient *client, KcSlice database, KcSlice table,
									 const KcError *why, int64_t for_ms);
extern void kc_kusto_stream_forget(KcClient *client, KcSlice database, KcSlice table);
extern void kc_kusto_stream_forget_all(KcClient *client);

/* ---- kusto_result.c ---- */

/* Takes the body over, whatever the outcome. */
extern KcStatus kc_result_create(const KcAlloc *alloc, KcBuf *body, bool v2, const char *doing,
								 KcResult **result, KcError *err);
extern void kc_result_free(KcResult *result);	/* NULL is fine */
extern int	kc_result_find_column(const KcResult *result, const char *name); /* -1: none */
/* Start again before the first row. */
extern void kc_result_rewind(KcResult *result);

/* ---- kusto_resources.c ---- */

typedef enum KcResourceKind
{
	KC_RESOURCE_CONTAINER,
	KC_RESOURCE_QUEUE,
	KC_RESOURCE_STATUS_TABLE
} KcResourceKind;

#define KC_RESOURCE_KINDS (KC_RESOURCE_STATUS_TABLE + 1)

typedef struct KcResource
{
	char	   *url;			/* without SAS */
	char	   *sas;			/* secret; without '?' */
	int			account;		/* index */
	int64_t		expires_us;		/* by our clock; INT64_MAX: not told */
	uint64_t	last_pick;		/* for taking turns */
	struct KcResource *next;
} KcResource;

/* Which resources an attempt has been through; slices are the caller's. */
#define KC_MAX_TRIES 3

typedef struct KcTried
{
	int			n;
	KcSlice		urls[KC_MAX_TRIES];
} KcTried;

extern KcStatus kc_resources_create(KcClient *client, KcResources **resources, KcError *err);
extern void kc_resources_free(KcResources *resources);

/*
 * Are they known and good, without waiting?  A set that is due for renewal
 * serves on while somebody else's fetch is under way.
 */
extern bool kc_resources_ready(const KcResources *resources);
extern KcStatus kc_resources_wait(KcResources *resources, KcWaiter *waiter, KcError *err);
extern void kc_resources_cancel(KcResources *resources, KcWaiter *waiter);
/*
 * That generation is out of date: storage refuses a SAS of it, or what should
 * be in it is not.  True: there is a newer one, or it can be waited for.
 * False: it was fetched out of turn only a moment ago, so make do with it.
 */
extern bool kc_resources_reject(KcResources *resources, uint64_t generation);
extern uint64_t kc_resources_generation(const KcResources *resources);

/* The next one to use, other than the tried ones; NULL: there is none.  Valid
 * until the next drive. */
extern KcResource *kc_resources_pick(KcResources *resources, KcResourceKind kind,
									 const KcTried *tried);
/* The one with exactly this URL, or that the URL lies in. */
extern KcResource *kc_resources_find(KcResources *resources, KcResourceKind kind, KcSlice url);
extern KcResource *kc_resources_nth(KcResources *resources, KcResourceKind kind, int n);
extern int	kc_resources_count(const KcResources *resources, KcResourceKind kind);
extern int	kc_resources_naccounts(const KcResources *resources);
extern KcSlice kc_resources_identity_token(const KcResources *resources);
/* How it went; by URL, since resources come and go. */
extern void kc_resources_report(KcResources *resources, KcSlice url, bool success);
/* Length of the longest SAS of that kind. */
extern size_t kc_resources_longest_sas(const KcResources *resources, KcResourceKind kind);

/* ---- kusto_message.c ---- */

/* Every record must have the same number of fields, or the blob fails. */
#define KC_VALIDATION_POLICY "{\"ValidationOptions\":1,\"ValidationImplications\":0}"

/* Of a tag; ingestIfNotExists has the same values without it. */
#define KC_INGEST_BY "ingest-by:"

typedef struct KcMessage
{
	const KcIngestProperties *properties;
	KcUuid		source_id;
	KcSlice		blob_url;
	KcSlice		blob_sas;
	uint64_t	raw_size;
	KcSlice		identity_token;
	KcSlice		status_table;	/* empty: no report by table */
	KcSlice		status_sas;
	const char *application;
	const char *client_version;
	int64_t		created_us;
} KcMessage;

extern void kc_message_build(KcBuf *out, const KcMessage *message);
extern KcStatus kc_message_check_size(size_t length, KcError *err);
extern bool kc_message_reports_by_table(const KcIngestProperties *properties);
/* A JSON array of strings; own is one more of them, or NULL. */
extern void kc_message_list(KcBuf *out, const KcSlice *items, int nitems, const char *own);
/* All in one piece of memory, for kc_free(); NULL: out of memory. */
extern KcIngestProperties *kc_properties_copy(const KcAlloc *alloc, const KcIngestProperties *source);

/* ---- storage requests of a client ---- */

extern void kc_client_storage(const KcClient *client, const KcRetryPolicy *retry, KcStorage *storage);

#endif							/* KC_KUSTO_INTERNAL_H */
