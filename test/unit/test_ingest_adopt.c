/*
 * test_ingest_adopt.c
 *	  Several ingests of one operation: numbers that they share, and one that
 *	  takes the others' blobs in.
 */
#define _GNU_SOURCE
#include "core/ingest.h"
#include "fail_alloc.h"
#include "kusto_service.h"

static Server server;
static Harness h;
static KcUuid operation_id;

static int
next_of(void *arg)
{
	return ++*(int *) arg;
}

static KcIngest *
create(KcClient *client, const KcAlloc *alloc, int *counter)
{
	KcIngestOptions options = {
		.operation_id = operation_id,.max_blob_size = 4096,.chunk_size = 1024,.block_size = 8192,
		.properties = {.database = kc_slice("db"),.table = kc_slice("T")},
		.next_ordinal = counter != NULL ? next_of : NULL,.ordinal_arg = counter
	};
	KcIngest   *ingest;
	KcError		err;

	must(kc_ingest_create(alloc, client, &options, &ingest, &err) == KC_OK);
	return ingest;
}

/* One row of so many bytes, in a chunk of its own. */
static void
put(KcIngest *ingest, size_t bytes)
{
	KcBuf	   *chunk = NULL;
	KcError		err;

	while (chunk == NULL)
	{
		must(kc_ingest_get_chunk(ingest, &chunk, &err) == KC_OK);
		if (chunk == NULL)
			harness_turn(&h, 100);
	}
	for (size_t i = 1; i < bytes; i++)
		kc_buf_char(chunk, (char) ('a' + i % 26));
	kc_buf_char(chunk, '\n');
	must(kc_ingest_put_chunk(ingest, chunk, 1, &err) == KC_OK);
}

static void
finish(KcIngest *ingest)
{
	int64_t		end_ms = kc_clock_system.monotonic_ms(NULL) + 20000;
	KcStatus	status;
	KcError		err;

	must(kc_ingest_finish(ingest, &err) == KC_OK);
	while (!kc_ingest_done(ingest, &status, &err))
	{
		must(kc_clock_system.monotonic_ms(NULL) < end_ms);
		harness_turn(&h, 100);
	}
	must(status == KC_OK);
}

static void
is_blob(const KcIngest *ingest, int index, int ordinal, uint64_t raw_bytes)
{
	const KcIngestBlob *blob = kc_ingest_blob(ingest, index);
	char		name[32];
	KcUuid		source_id;

	snprintf(name, sizeof(name), ".%06d.csv.gz", ordinal);
	must(kc_ingest_source_id(&operation_id, ordinal, &source_id, NULL) == KC_OK);
	ok(blob != NULL && blob->ordinal == ordinal && blob->raw_bytes == raw_bytes && blob->rows == 1,
	   name);
	ok(blob != NULL && strstr(blob->url, name) != NULL, "its name has its number");
	ok(blob != NULL && memcmp(&blob->source_id, &source_id, sizeof(source_id)) == 0,
	   "its source id follows from it");
}

/* Two that write in turn; whoever begins a blob gets the next number. */
static void
test_shared_numbers(KcClient *client)
{
	int			counter = 0;
	KcIngest   *leader = create(client, &kc_alloc_malloc, &counter);
	KcIngest   *helper = create(client, &kc_alloc_malloc, &counter);
	uint64_t	rows;
	uint64_t	raw_bytes;
	uint64_t	compressed_bytes;
	uint64_t	sum = 0;
	KcError		err;

	put(helper, 4001);
	put(leader, 4002);
	put(helper, 4003);
	put(helper, 4004);
	put(leader, 4005);
	is(kc_ingest_adopt(leader, &(KcIngestBlob) {.ordinal = 9,.url = (char *) "x"}, &err), KC_ERR_INVALID,
		   "nothing is adopted before the end");
	finish(leader);
	finish(helper);
	is(kc_ingest_nblobs(leader), 2, "one has its own blobs");
	is(kc_ingest_nblobs(helper), 3, "and the other, too");
	for (int i = 2; i >= 0; i--)
		is(kc_ingest_adopt(leader, kc_ingest_blob(helper, i), &err), KC_OK, "a blob is adopted");
	is(kc_ingest_adopt(leader, kc_ingest_blob(helper, 1), &err), KC_ERR_INVALID, "but not twice");
	kc_ingest_free(helper);

	is(kc_ingest_nblobs(leader), 5, "they are all there");
	is(kc_ingest_ncommitted(leader), 5, "and committed");
	for (int i = 0; i < 5; i++)
	{
		is_blob(leader, i, i + 1, (uint64_t) (4001 + i));
		sum += kc_ingest_blob(leader, i)->compressed_bytes;
	}
	kc_ingest_totals(leader, &rows, &raw_bytes, &compressed_bytes);
	ok(rows == 5 && raw_bytes == 4001 + 4002 + 4003 + 4004 + 4005, "totals are of all");
	ok(compressed_bytes == sum && sum > 0, "the compressed ones, too");
	kc_ingest_free(leader);
}

static void
test_nothing_of_its_own(KcClient *client)
{
	KcIngest   *ingest = create(client, &kc_alloc_malloc, NULL);
	KcIngestBlob blob = {.ordinal = 3,.url = (char *) "http://host/c/b",.rows = 1,.raw_bytes = 10,.compressed_bytes = 5};
	KcStatus	status;
	KcError		err;

	finish(ingest);
	is(kc_ingest_adopt(ingest, &(KcIngestBlob) {.ordinal = 0,.url = blob.url}, &err), KC_ERR_INVALID,
		   "a blob without a number is not adopted");
	is(kc_ingest_adopt(ingest, &(KcIngestBlob) {.ordinal = 1}, &err), KC_ERR_INVALID,
		   "nor one without a URL");
	is(kc_ingest_adopt(ingest, &blob, &err), KC_OK, "one that has nothing adopts");
	is_str(kc_ingest_blob(ingest, 0)->url, blob.url, "and has it");
	ok(kc_ingest_blob(ingest, 0)->url != blob.url, "as a copy");
	ok(kc_ingest_done(ingest, &status, &err) && status == KC_OK, "and is still done");
	kc_ingest_free(ingest);
}

static void
test_out_of_memory(KcClient *client)
{
	KcIngestBlob blob = {.ordinal = 1,.url = (char *) "http://host/c/b",.rows = 1};

	for (int n = 0; n < 2; n++)
	{
		FailAlloc	fail;
		KcIngest   *ingest;
		KcError		err;

		fail_alloc_init(&fail, 0);
		ingest = create(client, &fail.alloc, NULL);
		finish(ingest);
		fail.fail_at = fail.requests + n + 1;
		is(kc_ingest_adopt(ingest, &blob, &err), KC_ERR_NOMEM, "memory runs out");
		is(kc_ingest_nblobs(ingest), 0, "nothing is adopted then");
		is(kc_ingest_adopt(ingest, &blob, &err), KC_OK, "it is when there is memory again");
		kc_ingest_free(ingest);
		is(fail.live, 0, "and all of it is freed");
	}
}

int
main(void)
{
	KcClient   *client;

	must(kc_uuid_parse(kc_slice("0e0f0000-0000-4000-8000-000000000001"), &operation_id));
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	service_rules(&server);
	client = service_client(&h, &server);
	test_shared_numbers(client);
	test_nothing_of_its_own(client);
	test_out_of_memory(client);
	kc_client_free(client);
	harness_stop(&h);
	server_stop(&server);
	return done_testing();
}
