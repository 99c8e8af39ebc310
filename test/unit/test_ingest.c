/*
 * test_ingest.c
 *	  An export from rows to committed blobs, with a network that misbehaves.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <zlib.h>

#include "core/ingest_internal.h"
#include "fail_alloc.h"
#include "kusto_service.h"

static Server server;
static Harness h;
static KcUuid operation_id;

/* ---- writing rows ---- */

typedef struct Export
{
	KcIngest   *ingest;
	KcStatus	status;
	KcError		error;
	char	   *written;		/* all rows, to compare */
	size_t		len;
	size_t		cap;
} Export;

static KcIngestOptions
small_options(void)
{
	return (KcIngestOptions) {
		.operation_id = operation_id,.max_blob_size = 1 << 30,.chunk_size = 4096,.block_size = 8192,
			.window = 3,.threads = 1,.properties = {.database = kc_slice("my db/\xc3\xa9"),.table = kc_slice("T"),
			.report = KC_REPORT_ALL}
	};
}

static void
begin(Export *export, KcClient *client, const KcAlloc *alloc, const KcIngestOptions *options)
{
	memset(export, 0, sizeof(*export));
	kc_error_clear(&export->error);
	export->status = kc_ingest_create(alloc, client, options, &export->ingest, &export->error);
}

/* Bytes that hardly compress, the same in every run. */
static void
append_row(Export *export, KcBuf *chunk, uint64_t number)
{
	uint64_t	x = number + 1;
	char		row[128];
	int			n = 0;

	for (int i = 0; i < 6; i++)
	{
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		n += snprintf(row + n, sizeof(row) - (size_t) n, "%016" PRIx64 "%s", x * UINT64_C(0x9E3779B97F4A7C15),
					  i < 5 ? "," : "\n");
	}
	kc_buf_append(chunk, row, (size_t) n);
	if (export->len + (size_t) n > export->cap)
	{
		export->cap = export->cap * 2 + 65536;
		export->written = realloc(export->written, export->cap);
		must(export->written != NULL);
	}
	memcpy(export->written + export->len, row, (size_t) n);
	export->len += (size_t) n;
}

/* Whole rows into chunks of about that many bytes; stops at the first error. */
static void
write_rows(Export *export, uint64_t nrows, size_t chunk_bytes)
{
	uint64_t	row = 0;

	while (export->status == KC_OK && row < nrows)
	{
		KcBuf	   *chunk;
		uint64_t	rows = 0;

		export->status = kc_ingest_get_chunk(export->ingest, &chunk, &export->error);
		if (export->status != KC_OK)
			return;
		if (chunk == NULL)
		{
			harness_turn(&h, 100);
			continue;
		}
		while (row < nrows && chunk->len < chunk_bytes)
		{
			append_row(export, chunk, row++);
			rows++;
		}
		export->status = kc_ingest_put_chunk(export->ingest, chunk, rows, &export->error);
	}
}

static void
finish(Export *export)
{
	int64_t		end_ms = kc_clock_system.monotonic_ms(NULL) + 20000;

	if (export->status == KC_OK)
		export->status = kc_ingest_finish(export->ingest, &export->error);
	while (export->status == KC_OK
		   && !kc_ingest_done(export->ingest, &export->status, &export->error))
	{
		must(kc_clock_system.monotonic_ms(NULL) < end_ms);
		harness_turn(&h, 100);
	}
}

static void
end(Export *export)
{
	kc_ingest_free(export->ingest);
	free(export->written);
}

static void
run(Export *export, KcClient *client, const KcIngestOptions *options, uint64_t nrows)
{
	begin(export, client, &kc_alloc_malloc, options);
	write_rows(export, nrows, 4000);
	finish(export);
	ok(service_keeps_secrets(&export->error), "no secret is told");
}

/* ---- what arrived ---- */

static const char *
path_of(const char *url)
{
	return url + strlen(server.origin);
}

/* The last request of that kind for the blob. */
static const ServerRequest *
last_request(const char *blob_url, const char *part)
{
	char		target[512];
	const ServerRequest *found = NULL;
	const ServerRequest *next;

	snprintf(target, sizeof(target), "%s?%s", path_of(blob_url), part);
	for (int n = 0; (next = server_nth(&server, "PUT", target, n)) != NULL; n++)
	{
		if (next->status == 201)
			found = next;
	}
	return found;
}

static void
inflate_into(KcBuf *raw, const char *data, size_t len)
{
	z_stream	z = {.next_in = (Bytef *) data,.avail_in = (uInt) len};
	char		out[65536];
	int			result = Z_OK;

	must(inflateInit2(&z, 15 + 16) == Z_OK);
	while (result == Z_OK)
	{
		z.next_out = (Bytef *) out;
		z.avail_out = sizeof(out);
		result = inflate(&z, Z_NO_FLUSH);
		kc_buf_append(raw, out, sizeof(out) - z.avail_out);
	}
	inflateEnd(&z);
	if (result != Z_STREAM_END || z.avail_in != 0)
		kc_buf_str(raw, "BROKEN GZIP");
}

/* Put the committed content of a blob together, as the service would. */
static void
read_blob(const KcIngestBlob *blob, KcBuf *raw)
{
	const ServerRequest *whole = last_request(blob->url, "sv=");
	const ServerRequest *list = last_request(blob->url, "comp=blocklist");
	KcBuf		packed;

	kc_buf_init(&packed, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	if (whole != NULL)
		kc_buf_append(&packed, whole->body, whole->body_len);
	else if (list != NULL)
	{
		for (const char *at = list->body; (at = strstr(at, "<Latest>")) != NULL;)
		{
			const ServerRequest *block;
			char		part[64];

			at += strlen("<Latest>");
			/* ids are digits in base64: only their padding needs encoding */
			snprintf(part, sizeof(part), "comp=block&blockid=%.11s%%3D&", at);
			block = last_request(blob->url, part);
			if (block == NULL)
				kc_buf_str(&packed, "MISSING BLOCK");
			else
				kc_buf_append(&packed, block->body, block->body_len);
		}
	}
	is(packed.len, blob->compressed_bytes, "its compressed size");
	inflate_into(raw, packed.data, packed.len);
	kc_buf_free(&packed);
}

static void
check_blobs(Export *export, uint64_t nrows)
{
	uint64_t	rows;
	uint64_t	raw_bytes;
	uint64_t	compressed_bytes;
	uint64_t	blob_rows = 0;
	KcBuf		all;

	if (export->status != KC_OK)
		harness_show(&export->error);
	is(export->status, KC_OK, "the export succeeds");
	if (export->status != KC_OK)
		return;
	kc_buf_init(&all, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	for (int i = 0; i < kc_ingest_nblobs(export->ingest); i++)
	{
		const KcIngestBlob *blob = kc_ingest_blob(export->ingest, i);
		size_t		before = all.len;

		is(blob->ordinal, i + 1, "blobs are in order");
		read_blob(blob, &all);
		is(all.len - before, blob->raw_bytes, "its raw size is exact");
		ok(all.len > 0 && all.data[all.len - 1] == '\n', "it ends with a row");
		blob_rows += blob->rows;
	}
	ok(all.len == export->len && memcmp(all.data, export->written, all.len) == 0,
	   "the blobs hold all rows, in order, once");
	kc_buf_free(&all);
	kc_ingest_totals(export->ingest, &rows, &raw_bytes, &compressed_bytes);
	is(rows, nrows, "rows in all");
	is(blob_rows, nrows, "rows of the blobs");
	is(raw_bytes, export->len, "bytes in all");
}

/* ---- the tests ---- */

static void
test_nothing(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	Export		export;
	KcBuf	   *chunk;

	service_rules(&server);
	run(&export, client, &options, 0);
	is(export.status, KC_OK, "no rows are a success");
	is(kc_ingest_nblobs(export.ingest), 0, "without a blob");
	is(server_count(&server, "PUT", NULL), 0, "or an upload");
	is(kc_ingest_get_chunk(export.ingest, &chunk, &export.error), KC_ERR_INVALID, "after the end no more rows");
	end(&export);

	begin(&export, client, &kc_alloc_malloc, &options);
	must(kc_ingest_get_chunk(export.ingest, &chunk, &export.error) == KC_OK && chunk != NULL);
	is(kc_ingest_put_chunk(export.ingest, chunk, 0, &export.error), KC_OK, "an empty chunk");
	must(kc_ingest_get_chunk(export.ingest, &chunk, &export.error) == KC_OK && chunk != NULL);
	kc_buf_str(chunk, "abandoned");
	finish(&export);
	is(kc_ingest_nblobs(export.ingest), 0, "or an abandoned one makes no blob");
	end(&export);
	kc_client_free(client);
}

static void
test_small(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	const KcIngestBlob *blob;
	const char *name;
	KcUuid		expected;
	KcError		err;
	Export		export;

	service_rules(&server);
	run(&export, client, &options, 5);
	check_blobs(&export, 5);
	is(kc_ingest_nblobs(export.ingest), 1, "few rows are one blob");
	is(server_count(&server, "PUT", NULL), 1, "in one request");
	blob = kc_ingest_blob(export.ingest, 0);
	name = strrchr(blob->url, '/') + 1;
	is_str(name, "my_db___.T.0e0f0000-0000-4000-8000-000000000001.000001.csv.gz", "its name");
	ok(strchr(blob->url, '?') == NULL, "its URL is without SAS");
	must(kc_ingest_source_id(&operation_id, 1, &expected, &err) == KC_OK);
	ok(memcmp(&expected, &blob->source_id, sizeof(expected)) == 0, "its source id follows from operation and ordinal");
	must(kc_ingest_source_id(&operation_id, 2, &expected, &err) == KC_OK);
	ok(memcmp(&expected, &blob->source_id, sizeof(expected)) != 0, "and is another for each blob");
	is(kc_ingest_source_id(&operation_id, 0, &expected, &err), KC_ERR_INVALID, "there is no blob 0");
	end(&export);
	kc_client_free(client);
}

static void
test_blocks(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	Export		export;

	service_rules(&server);
	run(&export, client, &options, 3000);
	check_blobs(&export, 3000);
	is(kc_ingest_nblobs(export.ingest), 1, "many rows are one blob");
	ok(server_count(&server, "PUT", "comp=block&") > 10, "in many blocks");
	is(server_count(&server, "PUT", "comp=blocklist&"), 1, "committed by one list");
	ok(server.max_open_requests <= 3, "never more in flight than the window allows");
	end(&export);
	kc_client_free(client);
}

static void
test_split(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	const char *containers[3];
	Export		export;
	bool		within = true;

	service_rules(&server);
	options.max_blob_size = 50000;
	run(&export, client, &options, 3000);
	check_blobs(&export, 3000);
	ok(kc_ingest_nblobs(export.ingest) >= 6, "a blob has a size that it does not exceed");
	for (int i = 0; i < kc_ingest_nblobs(export.ingest); i++)
		within = within && kc_ingest_blob(export.ingest, i)->raw_bytes <= options.max_blob_size;
	ok(within, "not one does");
	is(kc_ingest_ncommitted(export.ingest), kc_ingest_nblobs(export.ingest), "all are committed in the end");
	for (int i = 0; i < 3; i++)
		containers[i] = strstr(kc_ingest_blob(export.ingest, i)->url, "/acct");
	ok(containers[0][5] != containers[1][5] && containers[1][5] != containers[2][5], "accounts take turns");
	end(&export);

	/* a giant row that fits nowhere has a blob of its own */
	{
		KcBuf	   *chunk;
		int			giant = 0;

		service_rules(&server);
		begin(&export, client, &kc_alloc_malloc, &options);
		write_rows(&export, 100, 4000);
		while (export.status == KC_OK && giant == 0)
		{
			must(kc_ingest_get_chunk(export.ingest, &chunk, &export.error) == KC_OK);
			if (chunk == NULL)
			{
				harness_turn(&h, 100);
				continue;
			}
			while (chunk->len < 60000)
				append_row(&export, chunk, (uint64_t) (1000000 + giant++));
			must(kc_ingest_put_chunk(export.ingest, chunk, 1, &export.error) == KC_OK);
		}
		write_rows(&export, 100, 4000);
		finish(&export);
		check_blobs(&export, 201);
		is(kc_ingest_nblobs(export.ingest), 3, "before it, itself, behind it");
		is(kc_ingest_blob(export.ingest, 1)->rows, 1, "alone");
		end(&export);
	}
	kc_client_free(client);
}

typedef struct FaultRow
{
	const char *name;
	ServerRule	rule;
	KcStatus	status;
} FaultRow;

static const FaultRow faults[] = {
	{"a block that fails twice", {.target = "comp=block&",.times = 2,.status = 503}, KC_OK},
	{"every third block fails", {.target = "comp=block&",.skip = 3,.times = 1,.status = 500}, KC_OK},
	{"a reset in mid-body", {.target = "comp=block&",.skip = 2,.times = 2,.action = SERVER_RESET_EARLY}, KC_OK},
	{"a reset after the body", {.target = "comp=block&",.skip = 2,.times = 2,.action = SERVER_RESET}, KC_OK},
	{"a lost answer to the list", {.target = "comp=blocklist",.times = 1,.action = SERVER_CLOSE}, KC_OK},
	{"a busy list", {.target = "comp=blocklist",.times = 3,.status = 503}, KC_OK},
	{"a stalled block", {.target = "comp=block&",.skip = 1,.times = 1,.action = SERVER_STALL}, KC_OK},
	{"a SAS refused at the first block", {.target = "comp=block&",.times = 1,.status = 403}, KC_OK},
	{"a SAS refused in the middle", {.target = "comp=block&",.skip = 5,.times = 1,.status = 403}, KC_OK},
	{"a SAS refused at the list", {.target = "comp=blocklist",.times = 1,.status = 403}, KC_OK},
	{"an account that fails", {.target = "/acct1/",.method = "PUT",.status = 500}, KC_OK},
	{"the other account that fails", {.target = "/acct2/",.method = "PUT",.status = 500}, KC_OK},
	{"a container that is gone", {.target = "/acct2/",.method = "PUT",.status = 404}, KC_OK},
	{"an account that refuses", {.target = "/acct1/",.method = "PUT",.status = 400}, KC_OK},
	{"all refuse", {.method = "PUT",.status = 400}, KC_ERR_REFUSED},
	{"all forbid", {.method = "PUT",.status = 403}, KC_ERR_FORBIDDEN},
	{"a refusal in the middle", {.target = "comp=block&",.skip = 5,.status = 400}, KC_ERR_REFUSED},
	{"a refused list", {.target = "comp=blocklist",.status = 400}, KC_ERR_REFUSED},
};

static void
test_faults(void)
{
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
	{
		KcClientConfig config = service_config(&server);
		KcIngestOptions options = small_options();
		KcClient   *client;
		Export		export;
		KcError		err;

		diag("%s", faults[i].name);
		config.stall_timeout_ms = 1000;
		config.retry_total_ms = 60000;
		must(kc_client_create(&kc_alloc_malloc, h.mux, &config, &client, &err) == KC_OK);
		service_rules(&server);
		server_rule_first(&server, faults[i].rule);
		run(&export, client, &options, 1500);
		is(export.status, faults[i].status, faults[i].name);
		if (faults[i].status == KC_OK)
			check_blobs(&export, 1500);
		else
		{
			KcBuf	   *chunk;

			ok(export.error.http_status != 0 && export.error.host[0] != '\0', "the error says who and what");
			ok(server_count(&server, "PUT", "comp=blocklist") <= 1, "nothing else is committed");
			is(kc_ingest_get_chunk(export.ingest, &chunk, &err), faults[i].status, "and it stays failed");
			is(kc_ingest_finish(export.ingest, &err), faults[i].status, "with that error");
		}
		end(&export);
		kc_client_free(client);
	}
}

/* The ids of blocks are eight digits in base64. */
#define BLOCK_0 "comp=block&blockid=MDAwMDAwMDA"
#define BLOCK_1 "comp=block&blockid=MDAwMDAwMDE"

/* From the sixth block on the first SAS has expired; all in flight have it. */
static void
test_expired_sas(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	Export		export;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.skip = 1,
					  .body_part = ".get ingestion resources",.body = SERVICE_RESOURCES_WITH(SERVICE_SAS_2)});
	server_rule_first(&server, (ServerRule) {.method = "PUT",.target = "&sv=2020",.skip = 5,.status = 403});
	run(&export, client, &options, 1500);
	check_blobs(&export, 1500);
	is(server_count(&server, NULL, "/v1/rest/mgmt"), 4, "the resources were fetched twice");
	ok(server_count(&server, "PUT", "&sv=2021") > 5, "and the new SAS was used");
	end(&export);
	kc_client_free(client);
}

/*
 * Two blocks under way to a container that the blob could still leave.  One is
 * stored while the other meets a busy server for longer than a blob that can
 * move would wait: from then on there is nowhere to move to, only to wait.
 */
static void
test_bound_while_busy(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	Export		export;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = BLOCK_0,.status = 201,.action = SERVER_DRIP,.body = "slow"});
	server_rule_first(&server, (ServerRule) {.target = BLOCK_1,.times = 3,.status = 503,.action = SERVER_DRIP,.body = "busy"});
	run(&export, client, &options, 1500);
	check_blobs(&export, 1500);
	is(server_count(&server, "PUT", BLOCK_0), 1, "the block that was stored is not sent again");
	is(server_count(&server, "PUT", BLOCK_1), 4, "the other is, until it is stored");
	end(&export);
	kc_client_free(client);
}

static void
test_long_retry_after(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	int64_t		start_ms = harness_now_ms(&h);
	Export		export;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.method = "PUT",.times = 1,.status = 503,.headers = "Retry-After: 3600\r\n"});
	run(&export, client, &options, 5);
	check_blobs(&export, 5);
	ok(harness_now_ms(&h) - start_ms < 5000, "an account that asks for an hour is passed over at once");
	end(&export);
	kc_client_free(client);
}

#define ONLY_CONTAINER(path) \
	SERVICE_TABLE(SERVICE_COLUMN("ResourceTypeName", "string") "," SERVICE_COLUMN("StorageRoot", "string"), \
				  SERVICE_RESOURCE("TempStorage", path, SERVICE_SAS) "," \
				  SERVICE_RESOURCE("SecuredReadyForAggregationQueue", "/acct1/q1", SERVICE_SAS))

/* What is on its way to the old container is not part of the blob in the new one. */
static void
test_container_replaced(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	Export		export;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.body_part = ".get ingestion resources",
					  .body = ONLY_CONTAINER("/acct2/c3")});
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.body_part = ".get ingestion resources",
					  .times = 1,.body = ONLY_CONTAINER("/acct1/c1")});
	server_rule_first(&server, (ServerRule) {.target = "/acct1/c1/",.status = 201,.action = SERVER_DRIP,.body = "slow slow slow"});
	server_rule_first(&server, (ServerRule) {.target = BLOCK_1,.times = 1,.status = 403});
	run(&export, client, &options, 1500);
	check_blobs(&export, 1500);
	ok(export.status != KC_OK || strstr(kc_ingest_blob(export.ingest, 0)->url, "/acct2/c3/") != NULL,
	   "a blob goes to the container that took the place of its own");
	end(&export);
	kc_client_free(client);
}

static void
test_single_blob_moves(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	Export		export;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/acct1/",.method = "PUT",.status = 403,.body =
					  "<Error><Code>AuthorizationFailure</Code></Error>"});
	for (int i = 0; i < 4; i++)
	{
		run(&export, client, &options, 5);
		check_blobs(&export, 5);
		ok(strstr(kc_ingest_blob(export.ingest, 0)->url, "/acct2/") != NULL, "a blob goes where it may");
		end(&export);
	}
	kc_client_free(client);
}

static void
test_no_resources(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	Export		export;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.status = 403,.body =
					  "{\"error\":{\"code\":\"Forbidden\",\"@message\":\"Principal 'aadapp=a' is not authorized\"}}"});
	run(&export, client, &options, 100000);
	is(export.status, KC_ERR_FORBIDDEN, "no resources, no export");
	is(export.error.advice, KC_ADVICE_GRANT_INGESTOR, "with advice");
	is(server_count(&server, "PUT", NULL), 0, "and no upload");
	end(&export);
	kc_client_free(client);
}

static void
test_large_message(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	char	   *tag = malloc(60000);
	KcSlice		tags[1];
	Export		export;

	must(tag != NULL);
	memset(tag, 'x', 60000);
	service_rules(&server);
	options.properties.tags = tags;
	options.properties.ntags = 1;
	tags[0] = kc_slice_n(tag, 60000);
	begin(&export, client, &kc_alloc_malloc, &options);
	is(export.status, KC_ERR_LIMIT, "tags that make no message are refused at once");
	is(export.error.advice, KC_ADVICE_MESSAGE_TOO_LARGE, "with advice");
	tags[0] = kc_slice_n(tag, 48 * 1024 - 900);
	run(&export, client, &options, 100);
	is(export.status, KC_ERR_LIMIT, "those that leave no room for the token");
	is(server_count(&server, "PUT", NULL), 0, "before the first upload");
	end(&export);
	tags[0] = kc_slice_n(tag, 40000);
	run(&export, client, &options, 5);
	is(export.status, KC_OK, "those that do are fine");
	end(&export);
	options.properties.table = KC_SLICE_NULL;
	begin(&export, client, &kc_alloc_malloc, &options);
	is(export.status, KC_ERR_INVALID, "a table has a name");
	free(tag);
	kc_client_free(client);
}

static void
test_cancel(void)
{
	static const char *const stalls[] = {"/v1/rest/auth", "/oauth2", "/v1/rest/mgmt", "comp=block&", "comp=blocklist"};
	KcIngestOptions options = small_options();

	for (size_t i = 0; i < sizeof(stalls) / sizeof(stalls[0]); i++)
	{
		KcClient   *client = service_client(&h, &server);
		Export		export;
		int64_t		start_ms;

		service_rules(&server);
		server_rule_first(&server, (ServerRule) {.target = stalls[i],.action = SERVER_STALL});
		begin(&export, client, &kc_alloc_malloc, &options);
		while (server_count(&server, NULL, stalls[i]) == 0)
		{
			KcBuf	   *chunk;

			must(i == 4 || kc_ingest_get_chunk(export.ingest, &chunk, &export.error) == KC_OK);
			if (i == 4)
			{
				write_rows(&export, 500, 4000);
				must(kc_ingest_finish(export.ingest, &export.error) == KC_OK);
				while (server_count(&server, NULL, stalls[i]) == 0)
					harness_turn(&h, 50);
				break;
			}
			if (chunk == NULL)
			{
				harness_turn(&h, 50);
				continue;
			}
			for (int row = 0; row < 30; row++)
				append_row(&export, chunk, (uint64_t) row);
			must(kc_ingest_put_chunk(export.ingest, chunk, 30, &export.error) == KC_OK);
			harness_turn(&h, 0);
		}
		start_ms = harness_now_ms(&h);
		end(&export);
		kc_client_free(client);
		ok(harness_now_ms(&h) - start_ms < 1000, "cancelled at once while %s is silent", stalls[i]);
	}
}

/* A blob of one chunk, which is or is not long in work. */
static void
test_giant_row(int threads, uint64_t nrows)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	bool		giant = nrows > 1000;
	Export		export;
	uint64_t	rows;
	uint64_t	raw_bytes;
	uint64_t	compressed_bytes;

	service_rules(&server);
	options.threads = threads;
	options.block_size = 1 << 20;
	begin(&export, client, &kc_alloc_malloc, &options);
	must(export.status == KC_OK);
	write_rows(&export, nrows, SIZE_MAX);
	must(export.status == KC_OK && kc_ingest_finish(export.ingest, &export.error) == KC_OK);
	ok((export.ingest->watch.fd >= 0) == (giant && threads > 0), "%d threads are started for what is long in work",
	   threads);
	if (threads == 0)
	{
		kc_ingest_totals(export.ingest, &rows, &raw_bytes, &compressed_bytes);
		ok((compressed_bytes == 0) == giant, "the call returns before that is compressed");
	}
	finish(&export);
	check_blobs(&export, nrows);
	is(kc_ingest_nblobs(export.ingest), 1, "one blob");
	end(&export);
	kc_client_free(client);
}

/* What waits for the compressor when the export fails is not compressed. */
static void
test_failure_stops_work(void)
{
	KcClient   *client = service_client(&h, &server);
	KcIngestOptions options = small_options();
	KcZipBlock *block;
	KcError		err;
	Export		export;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "comp=block&",.status = 400});
	options.threads = 0;
	begin(&export, client, &kc_alloc_malloc, &options);
	write_rows(&export, 20000, 4000);
	finish(&export);
	ok(export.status != KC_OK, "the export fails");
	is(kc_zipline_take(export.ingest->zipline, &block, &err), KC_ERR_CANCELLED, "and its compressor has stopped");
	end(&export);
	kc_client_free(client);
}

/* ---- memory ---- */

typedef struct PeakAlloc
{
	KcAlloc		alloc;
	size_t		live;
	size_t		peak;
} PeakAlloc;

static void *
peak_realloc(void *arg, void *ptr, size_t size)
{
	PeakAlloc  *pa = arg;
	void	   *result;

	pa->live -= ptr != NULL ? malloc_usable_size(ptr) : 0;
	result = realloc(ptr, size);
	must(result != NULL);
	pa->live += malloc_usable_size(result);
	if (pa->live > pa->peak)
		pa->peak = pa->live;
	return result;
}

static void
peak_free(void *arg, void *ptr)
{
	((PeakAlloc *) arg)->live -= malloc_usable_size(ptr);
	free(ptr);
}

/* Nothing is taken by the network for a while, then all of it at once. */
static void
test_memory_bound(void)
{
	PeakAlloc	pa = {.alloc = {peak_realloc, peak_free, &pa}};
	KcClientConfig config = service_config(&server);
	KcIngestOptions options = {
		.operation_id = operation_id,.max_blob_size = 1 << 30,
		.properties = {.database = kc_slice("d"),.table = kc_slice("t"),.report = KC_REPORT_ALL}
	};
	KcClient   *client;
	Export		export;
	KcError		err;

	must(kc_client_create(&pa.alloc, h.mux, &config, &client, &err) == KC_OK);
	for (int large = 0; large < 2; large++)
	{
		service_rules(&server);
		options.block_size = large ? 8 * 1024 * 1024 : 0;
		begin(&export, client, &pa.alloc, &options);
		must(export.status == KC_OK);
		write_rows(&export, 600000, 250000);
		finish(&export);
		check_blobs(&export, 600000);
		end(&export);
		ok(pa.peak < 32 * 1024 * 1024, "%zu MiB at the most for %s blocks", pa.peak >> 20,
		   large ? "large" : "normal");
	}
	kc_client_free(client);
	is(pa.live, 0, "and all of it is given back");
}

/* Every allocation from the client to the last blob fails once. */
static void
test_out_of_memory(void)
{
	KcClientConfig config = service_config(&server);
	KcIngestOptions options = small_options();
	FailAlloc	fa;
	int			failures = 0;
	bool		good = true;

	options.max_blob_size = 20000;
	for (int n = 1; n < 5000; n += n < 400 ? 1 : 7)
	{
		KcClient   *client = NULL;
		Export		export = {.status = KC_OK};

		service_rules(&server);
		fail_alloc_init(&fa, n);
		export.status = kc_client_create(&fa.alloc, h.mux, &config, &client, &export.error);
		if (export.status == KC_OK)
			begin(&export, client, &fa.alloc, &options);
		if (export.status == KC_OK)
		{
			write_rows(&export, 300, 4000);
			finish(&export);
		}
		end(&export);
		kc_client_free(client);
		if (export.status != KC_OK && export.status != KC_ERR_NOMEM)
		{
			diag("at request %d:", n);
			harness_show(&export.error);
			good = false;
		}
		failures += export.status == KC_ERR_NOMEM;
		good = good && fa.live == 0;
		if (!fa.has_failed)
			break;
	}
	ok(good, "a failed allocation is told as such, and nothing leaks");
	ok(failures > 100, "%d of them", failures);
}

int
main(void)
{
	must(kc_uuid_parse(kc_slice("0e0f0000-0000-4000-8000-000000000001"), &operation_id));
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_nothing();
	test_small();
	test_blocks();
	test_split();
	test_faults();
	test_expired_sas();
	test_bound_while_busy();
	test_long_retry_after();
	test_container_replaced();
	test_single_blob_moves();
	test_no_resources();
	test_large_message();
	test_cancel();
	for (int threads = 0; threads < 2; threads++)
	{
		test_giant_row(threads, 20);
		test_giant_row(threads, 80000);
	}
	test_failure_stops_work();
	test_memory_bound();
	test_out_of_memory();
	harness_stop(&h);
	server_stop(&server);
	return done_testing();
}
