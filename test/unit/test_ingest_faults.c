/*
 * test_ingest_faults.c
 *	  An export with a network and a service that misbehave, and its end before
 *	  it is done.
 */
#define _GNU_SOURCE
#include "core/ingest_internal.h"
#include "ingest_export.h"

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

int
main(void)
{
	ingest_start();
	test_faults();
	test_expired_sas();
	test_bound_while_busy();
	test_long_retry_after();
	test_container_replaced();
	test_single_blob_moves();
	test_no_resources();
	test_cancel();
	test_failure_stops_work();
	ingest_stop();
	return done_testing();
}
