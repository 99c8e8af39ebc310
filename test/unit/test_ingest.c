/*
 * test_ingest.c
 *	  An export from rows to committed blobs.
 */
#define _GNU_SOURCE
#include "core/ingest_internal.h"
#include "ingest_export.h"

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

int
main(void)
{
	ingest_start();
	test_nothing();
	test_small();
	test_blocks();
	test_split();
	test_large_message();
	for (int threads = 0; threads < 2; threads++)
	{
		test_giant_row(threads, 20);
		test_giant_row(threads, 80000);
	}
	ingest_stop();
	return done_testing();
}
