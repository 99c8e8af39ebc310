/*
 * test_cancel.c
 *	  Whatever is under way may be freed at any moment, by anyone, whatever the
 *	  network does meanwhile.  The sanitizers are the judges.
 *
 * Each round has a client of its own, some faults, and tasks and exports that
 * begin and end at random.  The seed is fixed; another may be given as the
 * first argument.
 */
#define _GNU_SOURCE
#include "core/ingest.h"
#include "kusto_service.h"

#define NTASKS		8
#define NEXPORTS	3
#define TEST_MS		6000
/* Of the test's server, which remembers all of them. */
#define MAX_CONNECTIONS	400
#define MAX_REQUESTS	900

static Server server;
static Harness h;
static KcClient *client;
static KcTask *tasks[NTASKS];
static KcIngest *exports[NEXPORTS];
static KcUuid source_id;
static unsigned seed;
static int	begun;

static unsigned
below(unsigned n)
{
	seed = seed * 1103515245u + 12345u;
	return (seed >> 16) % n;
}

static bool
one_in(unsigned n)
{
	return below(n) == 0;
}

/* ---- tasks ---- */

static void
end_task(unsigned i)
{
	KcTask	   *task = tasks[i];

	tasks[i] = NULL;
	kc_task_free(task);
}

static void
end_export(unsigned i)
{
	kc_ingest_free(exports[i]);
	exports[i] = NULL;
}

static KcTask *
begin_request(void)
{
	KcRequestTask *task;
	KcError		err;

	must(kc_kusto_request_start(client, (KcKustoEndpoint) below(3), KC_SLICE_NULL, kc_slice("print"),
								one_in(2), 65536, &task, &err) == KC_OK);
	return &task->task;
}

static KcTask *
begin_post(const char *table)
{
	KcPostRequest request = {
		.properties = {.database = kc_slice("d"),.table = kc_slice("T"),.report = KC_REPORT_ALL},
		.source_id = source_id,.raw_size = 1
	};
	KcPostTask *task;
	KcError		err;
	char		url[128];

	snprintf(url, sizeof(url), "%s/acct1/%s/b.csv.gz", server.origin, one_in(5) ? "gone" : "c1");
	request.blob_url = kc_slice(url);
	if (one_in(3))
	{
		request.status_table = kc_slice(table);
		request.status_row_exists = one_in(2);
	}
	must(kc_kusto_post_start(client, &request, &task, &err) == KC_OK);
	return &task->task;
}

static KcTask *
begin_status(const char *table)
{
	KcStatusTask *task;
	KcError		err;

	must(kc_kusto_status_start(client, one_in(2) ? kc_slice(table) : KC_SLICE_NULL, &source_id,
							   &task, &err) == KC_OK);
	return &task->task;
}

static KcTask *
begin_probe(void)
{
	KcProbeTask *task;
	KcError		err;

	must(kc_kusto_probe_start(client, (KcProbe) below(KC_PROBE_COUNT), KC_SLICE_NULL, &task, &err) == KC_OK);
	return &task->task;
}

static KcTask *
begin_stream(void)
{
	KcStreamRequest request = {
		.database = kc_slice("d"),.table = kc_slice(one_in(2) ? "T" : "U"),.csv = kc_slice("1,2\n"),
		.managed = !one_in(4)
	};
	KcStreamTask *task;
	KcError		err;

	must(kc_kusto_stream_start(client, &request, &task, &err) == KC_OK);
	return &task->task;
}

static KcTask *
begin_direct(void)
{
	KcIngestProperties properties = {.database = kc_slice("d"),.table = kc_slice("T")};
	KcDirectTask *task;
	KcSlice		blob;
	KcError		err;
	char		url[128];

	snprintf(url, sizeof(url), "%s/acct1/%s/b.csv.gz", server.origin, one_in(5) ? "gone" : "c1");
	blob = kc_slice(url);
	must(kc_kusto_direct_start(client, &properties, &blob, 1, &task, &err) == KC_OK);
	return &task->task;
}

static void on_done(KcTask *task);

static void
begin_task(unsigned i)
{
	char		table[128];

	if (tasks[i] != NULL)
		return;
	snprintf(table, sizeof(table), "%s/acct1/%s", server.origin, one_in(3) ? "old" : "status1");
	switch (below(6))
	{
		case 0:
			tasks[i] = begin_request();
			break;
		case 1:
			tasks[i] = begin_post(table);
			break;
		case 2:
			tasks[i] = begin_status(table);
			break;
		case 3:
			tasks[i] = begin_stream();
			break;
		case 4:
			tasks[i] = begin_direct();
			break;
		default:
			tasks[i] = begin_probe();
			break;
	}
	tasks[i]->on_done = on_done;
	begun++;
}

/* A callback may free its own task and any other. */
static void
on_done(KcTask *task)
{
	unsigned	i = 0;

	while (tasks[i] != task)
		must(++i < NTASKS);
	if (one_in(2))
	{
		end_task(i);
		if (one_in(3))
			begin_task(i);
	}
	if (one_in(3))
		end_task(below(NTASKS));
	if (one_in(4))
		end_export(below(NEXPORTS));
}

/* ---- exports ---- */

static void
begin_export(unsigned i)
{
	KcIngestOptions options = {
		.operation_id = source_id,.max_blob_size = 40000,.chunk_size = 4096,.block_size = 2048,
		.window = 3,
		.properties = {.database = kc_slice("d"),.table = kc_slice("T"),.report = KC_REPORT_ALL}
	};
	KcError		err;

	must(kc_ingest_create(&kc_alloc_malloc, client, &options, &exports[i], &err) == KC_OK);
	begun++;
}

static void
work_on_export(unsigned i)
{
	KcStatus	status;
	KcError		err;

	if (exports[i] == NULL)
	{
		begin_export(i);
		return;
	}
	for (unsigned n = below(6); n > 0; n--)
	{
		KcBuf	   *chunk;

		if (kc_ingest_get_chunk(exports[i], &chunk, &err) != KC_OK || chunk == NULL)
			break;
		for (int byte = 0; byte < 3000; byte++)
			kc_buf_char(chunk, (char) ('!' + below(90)));
		(void) kc_ingest_put_chunk(exports[i], chunk, 1, &err);
	}
	if (one_in(8))
		(void) kc_ingest_finish(exports[i], &err);
	if (kc_ingest_done(exports[i], &status, &err) || one_in(12))
		end_export(i);
}

/* ---- rounds ---- */

static void
make_faults(void)
{
	const ServerRule faults[] = {
		{.target = "/v1/rest/mgmt",.status = 401,.times = 1 + (int) below(3),.skip = (int) below(3)},
		{.target = "/v1/rest/mgmt",.action = SERVER_STALL,.times = 1,.skip = (int) below(4)},
		{.target = "/v1/rest/mgmt",.status = 403,.times = 1,.skip = (int) below(4)},
		{.target = "/oauth2",.status = 500,.times = 1 + (int) below(4)},
		{.target = "/oauth2",.action = SERVER_STALL,.times = 1},
		{.target = "/metadata",.action = SERVER_STALL,.times = 1},
		{.method = "PUT",.status = 403,.times = 1 + (int) below(3),.skip = (int) below(5)},
		{.method = "PUT",.status = 503,.times = 1 + (int) below(6),.skip = (int) below(5)},
		{.method = "PUT",.action = SERVER_LAST_ON_CONNECTION,.status = 201,.times = 2},
		{.target = "/messages",.action = SERVER_RESET,.times = 1},
		{.target = "/status",.status = 404,.times = 2},
		{.target = "/acct1",.status = 404,.skip = (int) below(4)},
		{.target = "/v1/rest/ingest",.status = 503,.times = 1 + (int) below(6)},
		{.target = "/v1/rest/ingest",.status = 429,.headers = "Retry-After: 0\r\n",.skip = (int) below(3)},
		{.target = "/v1/rest/ingest",.action = SERVER_RESET,.times = 1 + (int) below(3),.skip = (int) below(3)},
		{.target = "/v1/rest/ingest",.action = SERVER_STALL,.times = 1},
	};

	service_rules(&server);
	if (!one_in(3))
		server_rule(&server, (ServerRule) {.target = "/v1/rest/ingest",
					.body = SERVICE_TABLE(SERVICE_COLUMN("ConsumedRecordsCount", "long"), "[0]")});
	for (unsigned n = below(4); n > 0; n--)
		server_rule_first(&server, faults[below(sizeof(faults) / sizeof(faults[0]))]);
}

static void
play_round(void)
{
	KcClientConfig config = service_config(&server);
	KcError		err;

	make_faults();
	config.retry_total_ms = 300;
	config.stall_timeout_ms = 1000;
	must(kc_client_create(&kc_alloc_malloc, h.mux, &config, &client, &err) == KC_OK);
	for (unsigned i = 0; i < NTASKS; i++)
	{
		if (one_in(2))
			begin_task(i);
	}
	for (unsigned turns = below(60); turns > 0 && server.nrequests < MAX_REQUESTS; turns--)
	{
		harness_turn(&h, (int) below(3));
		if (one_in(3))
			begin_task(below(NTASKS));
		if (one_in(5))
			end_task(below(NTASKS));
		work_on_export(below(NEXPORTS));
		if (one_in(20))
			h.moved_ms += 3600000;
	}
	for (unsigned i = 0; i < NTASKS; i++)
		end_task(i);
	for (unsigned i = 0; i < NEXPORTS; i++)
		end_export(i);
	kc_client_free(client);
}

int
main(int argc, char **argv)
{
	unsigned	first_seed = argc > 1 ? (unsigned) strtoul(argv[1], NULL, 10) : 1;
	int64_t		end_ms = kc_clock_system.monotonic_ms(NULL) + TEST_MS;
	int			rounds = 0;

	must(kc_uuid_parse(kc_slice("0e0f0000-0000-4000-8000-000000000001"), &source_id));
	while (kc_clock_system.monotonic_ms(NULL) < end_ms)
	{
		server_start(&server);
		harness_start(&h, &kc_alloc_malloc, NULL);
		while (kc_clock_system.monotonic_ms(NULL) < end_ms && server.nconnections < MAX_CONNECTIONS)
		{
			seed = (first_seed + (unsigned) rounds++) * 7919;
			play_round();
		}
		harness_stop(&h);
		server_stop(&server);
	}
	ok(rounds >= 20 && begun >= 200, "%d tasks in %d rounds from seed %u, freed at any moment", begun, rounds, first_seed);
	return done_testing();
}
