/*
 * ingest_export.h
 *	  What tests of exports share: rows that are written into one, and its blobs
 *	  as the service got them.
 *
 * A program has one server, one mux and one operation, from ingest_start() to
 * ingest_stop().
 */
#ifndef KC_TEST_INGEST_EXPORT_H
#define KC_TEST_INGEST_EXPORT_H

#include <zlib.h>

#include "core/ingest.h"
#include "kusto_service.h"

static Server server;
static Harness h;
static KcUuid operation_id;

static void TAP_UNUSED
ingest_start(void)
{
	must(kc_uuid_parse(kc_slice("0e0f0000-0000-4000-8000-000000000001"), &operation_id));
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
}

static void TAP_UNUSED
ingest_stop(void)
{
	harness_stop(&h);
	server_stop(&server);
}

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

static KcIngestOptions TAP_UNUSED
small_options(void)
{
	return (KcIngestOptions) {
		.operation_id = operation_id,.max_blob_size = 1 << 30,.chunk_size = 4096,.block_size = 8192,
			.window = 3,.threads = 1,.properties = {.database = kc_slice("my db/\xc3\xa9"),.table = kc_slice("T"),
			.report = KC_REPORT_ALL}
	};
}

static void TAP_UNUSED
begin(Export *export, KcClient *client, const KcAlloc *alloc, const KcIngestOptions *options)
{
	memset(export, 0, sizeof(*export));
	kc_error_clear(&export->error);
	export->status = kc_ingest_create(alloc, client, options, &export->ingest, &export->error);
}

/* Bytes that hardly compress, the same in every run. */
static void TAP_UNUSED
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
static void TAP_UNUSED
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

static void TAP_UNUSED
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

static void TAP_UNUSED
end(Export *export)
{
	kc_ingest_free(export->ingest);
	free(export->written);
}

static void TAP_UNUSED
run(Export *export, KcClient *client, const KcIngestOptions *options, uint64_t nrows)
{
	begin(export, client, &kc_alloc_malloc, options);
	write_rows(export, nrows, 4000);
	finish(export);
	ok(service_keeps_secrets(&export->error), "no secret is told");
}

/* ---- what arrived ---- */

static const char *TAP_UNUSED
path_of(const char *url)
{
	return url + strlen(server.origin);
}

/* The last request of that kind for the blob. */
static const ServerRequest *TAP_UNUSED
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

static void TAP_UNUSED
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
static void TAP_UNUSED
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

static void TAP_UNUSED
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

#endif							/* KC_TEST_INGEST_EXPORT_H */
