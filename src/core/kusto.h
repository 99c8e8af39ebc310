/*
 * kusto.h
 *	  A client of one Kusto cluster as one identity: management commands and
 *	  queries, ingestion resources, ingestion messages and their outcome.
 *
 * A client lives long (a backend keeps it between statements): it caches the
 * token, the cloud metadata, the ingestion resources and the identity token
 * (an hour each, refreshed early, shared by every task of the client; asked
 * for once however many tasks wait), and how well each storage account did.
 *
 * Public sources: learn.microsoft.com/kusto/api/rest, /kusto/api/netfx/kusto-ingest-client-rest
 */
#ifndef KC_KUSTO_H
#define KC_KUSTO_H

#include "buf.h"
#include "cache.h"
#include "json.h"
#include "mux.h"
#include "task.h"
#include "text.h"

typedef enum KcAuthMethod
{
	KC_AUTH_NONE,
	KC_AUTH_CLIENT_SECRET,
	KC_AUTH_ACCESS_TOKEN,
	KC_AUTH_MANAGED_IDENTITY
} KcAuthMethod;

/*
 * Everything is copied.  NULL means absent.
 */
typedef struct KcClientConfig
{
	const char *engine_uri;		/* https://c.region.kusto.windows.net */
	const char *ingest_uri;		/* https://ingest-c.region... */
	const char *authority;		/* login endpoint, checked as a cluster is; NULL: as the
								 * cluster's metadata says */
	const char *proxy;			/* for all but the identity endpoint of the host */
	const char *ca_file;		/* PEM bundle; NULL: the system's */
	const char *const *trusted_hosts;	/* further host suffixes, NULL-terminated, or NULL */
	KcAuthMethod auth;
	const char *tenant;
	const char *client_id;
	const char *client_secret;
	const char *access_token;
	const char *identity_endpoint;	/* managed identity: overrides the environment's */
	const char *application;	/* x-ms-app, ApplicationForTracing: "kusto_ingest" */
	const char *version;		/* "1.0" */
	const char *user;			/* x-ms-user */
	int64_t		connect_timeout_ms;
	int64_t		request_timeout_ms; /* of one management request */
	int64_t		stall_timeout_ms;	/* a transfer that moves nothing for so long fails */
	int64_t		retry_total_ms; /* how long transient failures are retried */
	const KcCache *cache;		/* what clients of other processes share, outliving
								 * this one; NULL: none */
} KcClientConfig;

typedef struct KcClient KcClient;

/*
 * Given a cluster URI in either role, derive both: "ingest-" is put before or
 * taken from the start of the host name, unless it is loopback or an IP
 * address.  engine and ingest are appended to.
 */
extern KcStatus kc_kusto_derive_uris(KcSlice cluster, KcBuf *engine, KcBuf *ingest, KcError *err);

/* Is the host one that may be given a token?  suffixes may be NULL. */
extern bool kc_kusto_host_trusted(KcSlice host, const char *const *suffixes);

/*
 * Is the host one that may be given a client secret: a login endpoint of
 * Microsoft's clouds, or one that suffixes list?  Loopback is not among them:
 * it may only be asked for a cluster on this host.
 */
extern bool kc_kusto_login_trusted(KcSlice host, const char *const *suffixes);

/*
 * Checks URIs (https unless loopback, trusted host) before anything else
 * happens; makes no request.  The client must be freed before the mux.
 */
extern KcStatus kc_client_create(const KcAlloc *alloc, KcMux *mux, const KcClientConfig *config,
								 KcClient **client, KcError *err);
extern void kc_client_free(KcClient *client);	/* NULL is fine */
extern KcMux *kc_client_mux(const KcClient *client);

/* ---- commands and queries ---- */

typedef enum KcKustoEndpoint
{
	KC_ENDPOINT_ENGINE_MGMT,	/* POST engine/v1/rest/mgmt */
	KC_ENDPOINT_ENGINE_QUERY,	/* POST engine/v2/rest/query */
	KC_ENDPOINT_INGEST_MGMT		/* POST ingest/v1/rest/mgmt */
} KcKustoEndpoint;

typedef struct KcResult KcResult;

/*
 * Columns and rows of the primary result, whichever protocol version it came
 * in.  Values are slices of JSON text inside the result.
 */
extern int	kc_result_ncolumns(const KcResult *result);
extern KcSlice kc_result_column_name(const KcResult *result, int column);
extern KcSlice kc_result_column_type(const KcResult *result, int column);	/* "long", "datetime" */
extern bool kc_result_next(KcResult *result);	/* false after the last row */
extern KcJsonValue kc_result_value(const KcResult *result, int column);

typedef struct KcColumn
{
	const char *name;			/* UTF-8 */
	const char *type;			/* "long", "datetime" */
} KcColumn;

/*
 * Of the answer of a command that tells a table's schema: are these the
 * table's first columns, in that order?  False: column *at is not, and what is
 * in its place is appended to found, if anything.  An answer that does not tell
 * proves nothing: true.
 */
extern bool kc_result_begins_with_columns(KcResult *result, const KcColumn *columns, int ncolumns,
										  int *at, KcBuf *found);

typedef struct KcRequestTask
{
	KcTask		task;
	KcResult   *result;			/* belongs to the task */
} KcRequestTask;

/* db may be empty: NetDefaultDB. readonly sends x-ms-readonly. */
extern KcStatus kc_kusto_request_start(KcClient *client, KcKustoEndpoint endpoint, KcSlice db,
									   KcSlice csl, bool readonly, size_t max_response,
									   KcRequestTask **task, KcError *err);

/* ---- ingestion ---- */

typedef enum KcReport
{
	KC_REPORT_FAILURES = 0,
	KC_REPORT_NONE = 1,
	KC_REPORT_ALL = 2
} KcReport;

/*
 * What is said of a blob to the service.  All slices are the caller's and
 * are copied where they are needed after the call.
 */
typedef struct KcIngestProperties
{
	KcSlice		database;
	KcSlice		table;
	KcSlice		mapping;		/* ingestionMappingReference, or empty */
	const KcSlice *tags;
	int			ntags;
	const KcSlice *if_not_exists;
	int			nif_not_exists;
	bool		has_creation_time;
	int64_t		creation_time_us;	/* microseconds since 1970 */
	bool		flush_immediately;

	/*
	 * Tag the data with ingest-by:<source id>, and ingest only when the table
	 * has no such tag yet: Kusto skips a second message for the same blob.  The
	 * blob is not deleted when it was ingested, or the second message would
	 * fail instead.  Costs a batch of its own for each blob.
	 */
	bool		exactly_once;
	KcReport	report;
} KcIngestProperties;

typedef struct KcPostRequest
{
	KcIngestProperties properties;
	KcUuid		source_id;
	KcSlice		blob_url;		/* without SAS; its container must be one of the
								 * service's current ones */
	uint64_t	raw_size;		/* uncompressed bytes, exact */
	KcSlice		status_table;	/* of an earlier try of the same blob, without
								 * SAS; empty: choose one */
	bool		status_row_exists;	/* an earlier try wrote it, and it has no outcome yet */
	bool		check_blob;		/* an earlier try may have been received, or was long
								 * ago: see first whether the blob is still there */
	bool		renew_row;		/* the row that is there has the outcome of an earlier
								 * try: write it anew, or that would be taken for
								 * this one's.  Otherwise it is never written over,
								 * since it may tell of a success */
} KcPostRequest;

typedef struct KcPostTask
{
	KcTask		task;
	char	   *status_table;	/* URL without SAS, for kc_kusto_status_start();
								 * NULL when the service has none */
	bool		status_row_written;
	bool		message_sent;	/* accepted by the queue, or (error.after_send)
								 * perhaps */
	bool		blob_gone;		/* nothing was sent: the blob does not exist any more */
} KcPostTask;

/*
 * Write the "Pending" row into a status table, then put the message into a
 * queue.  Ambiguous failures of the queue post are not repeated:
 * error.after_send tells.
 */
extern KcStatus kc_kusto_post_start(KcClient *client, const KcPostRequest *request,
									KcPostTask **task, KcError *err);

/* Length of the JSON that would be posted, with today's tokens; must stay <= 48 KiB. */
#define KC_MESSAGE_MAX_JSON (48 * 1024)

typedef enum KcIngestOutcome
{
	KC_OUTCOME_PENDING,
	KC_OUTCOME_SUCCEEDED,
	KC_OUTCOME_PARTIALLY_SUCCEEDED,
	KC_OUTCOME_FAILED,
	KC_OUTCOME_SKIPPED,
	KC_OUTCOME_QUEUED,			/* the service will not report on it */
	KC_OUTCOME_MISSING			/* no such row */
} KcIngestOutcome;

typedef struct KcStatusTask
{
	KcTask		task;
	KcIngestOutcome outcome;
	const char *status_table;	/* where the row stands; NULL: nowhere */
	bool		transient;		/* FailureStatus says that a retry may help */
	bool		tag_exists;		/* skipped because the table has an ingest-by tag, as
								 * far as is told */
	KcAdvice	advice;			/* what probably helps against error_code */
	char		error_code[KC_ERROR_CODE_MAX];
	char		failure_status[32];
	char		details[KC_ERROR_DETAIL_MAX];
	char		operation_id[KC_UUID_TEXT_LEN + 1];
	char		activity_id[KC_UUID_TEXT_LEN + 1];
} KcStatusTask;

/*
 * status_table may be empty, when nobody remembers which one was chosen: each
 * of the service's current tables is asked.  KC_OUTCOME_MISSING means that
 * none has the row, KC_OUTCOME_QUEUED that there is no table to ask.
 */
extern KcStatus kc_kusto_status_start(KcClient *client, KcSlice status_table, const KcUuid *source_id,
									  KcStatusTask **task, KcError *err);

/* ---- ingestion at once ---- */

/*
 * The service's limit for one request of streaming ingestion, of uncompressed
 * data (learn.microsoft.com/azure/data-explorer/ingest-data-streaming).
 */
#define KC_STREAM_MAX_RAW (4 * 1024 * 1024)

typedef enum KcStreamVerdict
{
	KC_STREAM_INGESTED,			/* error.status is KC_OK: the data is in the table */
	KC_STREAM_QUEUE,			/* not this way: queue it.  error says why */
	KC_STREAM_REFUSED,			/* the data themselves are wrong: no way will do */
	KC_STREAM_FAILED			/* neither way will do now: identity, rights, no such
								 * table, cancelled */
} KcStreamVerdict;

typedef struct KcStreamRequest
{
	KcSlice		database;
	KcSlice		table;
	KcSlice		mapping;		/* of CSV, or empty */
	KcSlice		csv;			/* copied (compressed) by the start function */
	bool		managed;		/* whoever asks can queue: after three tries, or when
								 * the table is known to refuse, the verdict is
								 * KC_STREAM_QUEUE.  Otherwise tries last as long as
								 * the client's retry_total_ms */
} KcStreamRequest;

typedef struct KcStreamTask
{
	KcTask		task;
	KcStreamVerdict verdict;
	int			attempts;		/* requests sent; 0: the table was known to refuse */
	uint64_t	compressed_bytes;	/* of the body of a request; set by the start function */
	bool		doubtful;		/* not ingested as far as is known, but an attempt may
								 * have had its effect */
} KcStreamTask;

/*
 * Stream CSV into a table; its effect is immediate.  At least once: an attempt
 * whose answer is lost is repeated.  That a table refuses streaming (no policy,
 * disabled, too large an update policy) is remembered by the client for
 * KC_STREAM_REFUSAL_MS, throttling for KC_STREAM_THROTTLE_MS: managed requests
 * are answered KC_STREAM_QUEUE meanwhile without asking.
 * (learn.microsoft.com/kusto/api/rest/streaming-ingest)
 */
#define KC_STREAM_REFUSAL_MS	(15 * 60 * 1000)
#define KC_STREAM_THROTTLE_MS	(10 * 1000)
extern KcStatus kc_kusto_stream_start(KcClient *client, const KcStreamRequest *request,
									  KcStreamTask **task, KcError *err);

/*
 * The table may have got columns just now: make all nodes that take streaming
 * ingestion forget those that they know; until then they lose the values of new
 * columns without a word.  When that fails, streaming must wait until they
 * forget of themselves: managed requests of this client are queued for
 * KC_STREAM_SCHEMA_MS.  The documentation says "minutes".
 * (learn.microsoft.com/kusto/management/data-ingestion/streaming-ingestion-schema-changes)
 */
#define KC_STREAM_SCHEMA_MS		(5 * 60 * 1000)
extern KcStatus kc_kusto_stream_schema_start(KcClient *client, KcSlice database, KcSlice table,
											 KcTask **task, KcError *err);

/*
 * ".ingest into table" of committed blobs, all of them or none, and wait for
 * it; throttling is retried.  Of the properties all but report and exactly_once
 * are used.  The URLs are without SAS; their containers must be among the
 * service's current ones.  The command is a secret: it holds signatures.
 * (learn.microsoft.com/kusto/management/data-ingestion/ingest-from-storage)
 */
typedef struct KcDirectTask
{
	KcTask		task;
	bool		skipped;		/* succeeded without an extent: the table has data with
								 * one of if_not_exists */
	bool		doubtful;		/* failed, but it may have had its effect */
} KcDirectTask;

extern KcStatus kc_kusto_direct_start(KcClient *client, const KcIngestProperties *properties,
									  const KcSlice *blob_urls, int nblobs,
									  KcDirectTask **task, KcError *err);

/* ---- testing a connection, one step at a time ---- */

typedef enum KcProbe
{
	KC_PROBE_RESOLVE,			/* resolve and connect engine and ingest hosts, TLS */
	KC_PROBE_METADATA,
	KC_PROBE_TOKEN,
	KC_PROBE_QUERY,				/* the engine answers a trivial query in the database */
	KC_PROBE_RESOURCES,
	KC_PROBE_IDENTITY_TOKEN,
	KC_PROBE_STORAGE			/* a blob can be written to and deleted from a container */
} KcProbe;

#define KC_PROBE_COUNT (KC_PROBE_STORAGE + 1)

typedef struct KcProbeTask
{
	KcTask		task;
	char		detail[512];	/* what was found: addresses, principal, counts */
	char		principal[256]; /* "aadapp=<client id>;<tenant>" when the token tells */
} KcProbeTask;

extern const char *kc_probe_name(KcProbe probe);
extern KcStatus kc_kusto_probe_start(KcClient *client, KcProbe probe, KcSlice db,
									 KcProbeTask **task, KcError *err);

#endif							/* KC_KUSTO_H */
