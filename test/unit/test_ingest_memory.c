/*
 * test_ingest_memory.c
 *	  The memory of an export: how much it takes at the most, and what becomes
 *	  of it when there is none.
 */
#define _GNU_SOURCE
#include <malloc.h>

#include "fail_alloc.h"
#include "ingest_export.h"

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
		ok(pa.peak < 40 * 1024 * 1024, "%zu MiB at the most for %s blocks", pa.peak >> 20,
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
	ingest_start();
	test_memory_bound();
	test_out_of_memory();
	ingest_stop();
	return done_testing();
}
