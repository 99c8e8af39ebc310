/*
 * test_kusto_resources.c
 *	  Ingestion resources: reading them, choosing among them, keeping them.
 */
#define _GNU_SOURCE
#include "core/kusto_resources.h"
#include "fail_alloc.h"
#include "kusto_service.h"

static Server server;
static Harness h;

/* ---- rank ---- */

static void
test_rank(void)
{
	KcRank		rank = {0};
	int64_t		now_ms = 1000000;

	ok(kc_rank_value(&rank, now_ms) == 1.0, "an account without results is good");
	kc_rank_report(&rank, now_ms, false);
	ok(kc_rank_value(&rank, now_ms) == 0.0, "one failure alone makes it bad");
	is(kc_rank_tier(kc_rank_value(&rank, now_ms)), 3, "of the last tier");
	kc_rank_report(&rank, now_ms, true);
	ok(kc_rank_value(&rank, now_ms) == 0.5, "half and half");
	kc_rank_report(&rank, now_ms + 10000, true);
	/* (6 * 1 + 5 * 0.5) / 11 */
	ok(kc_rank_value(&rank, now_ms + 10000) > 0.77 && kc_rank_value(&rank, now_ms + 10000) < 0.78,
	   "a newer bucket weighs more");
	is(kc_rank_tier(0.95), 0, "tier of 0.95");
	is(kc_rank_tier(0.75), 1, "tier of 0.75");
	is(kc_rank_tier(0.5), 2, "tier of 0.5");
	ok(kc_rank_value(&rank, now_ms + 60000) == 1.0, "what is older than a minute: only the later success counts");
	ok(kc_rank_value(&rank, now_ms + 120000) == 1.0, "all is forgiven");
	kc_rank_report(&rank, now_ms + 1000000, false);
	ok(kc_rank_value(&rank, now_ms + 1000000) == 0.0, "after a long pause old buckets are empty");
}

/* ---- reading ---- */

static KcStatus
read_set(const KcAlloc *alloc, const char *text, bool loopback, int64_t now_us, KcResourceSet *set,
		 KcError *err)
{
	KcResult   *result;
	KcBuf		body;
	KcStatus	status;

	memset(set, 0, sizeof(*set));
	kc_buf_init(&body, alloc, 1 << 20);
	kc_buf_str(&body, text);
	status = kc_buf_status(&body, err, "testing");
	if (status != KC_OK)
	{
		kc_buf_free(&body);
		return status;
	}
	status = kc_result_create(alloc, &body, false, "testing", &result, err);
	if (status != KC_OK)
		return status;
	status = kc_resource_set_read(alloc, result, loopback, now_us, set, err);
	kc_result_free(result);
	return status;
}

#define COLUMNS SERVICE_COLUMN("StorageRoot", "string") "," SERVICE_COLUMN("ResourceTypeName", "string")
#define SAS_2099 "sv=1&se=2099-01-01&sig=a%2Fb%2Bc%3D"
#define NOW_US INT64_C(1788257472000000)	/* 2026-09-01T10:11:12Z */

static int
count(const KcResourceSet *set, KcResourceKind kind)
{
	int			n = 0;

	for (const KcResource *r = set->first[kind]; r != NULL; r = r->next)
		n++;
	return n;
}

static void
test_read(void)
{
	static const char text[] = SERVICE_TABLE(COLUMNS,
											 "[\"https://acct1.z11.blob.storage.azure.net/c1?" SAS_2099 "\",\"TempStorage\"],"
											 "[\"https://acct2.blob.core.usgovcloudapi.net/c2?sv=1&se=2026-09-01T10%3A15%3A00Z&sig=x\",\"TEMPSTORAGE\"],"
											 "[\"https://acct1.queue.core.windows.net/q1?sv=1&se=2026-09-02T00%3A05Z&sig=x\",\"SecuredReadyForAggregationQueue\"],"
											 "[\"http://acct1.blob.core.windows.net/plain?" SAS_2099 "\",\"TempStorage\"],"
											 "[\"http://127.0.0.1:10000/local/c9?" SAS_2099 "\",\"TempStorage\"],"
											 "[\"https://acct1.blob.core.windows.net/nosas\",\"TempStorage\"],"
											 "[\"not a url\",\"TempStorage\"],"
											 "[null,\"TempStorage\"],[\"https://x/y?z=1\",null],"
											 "[\"https://onelake/x?y=1\",\"OneLakeFolder\"],"
											 "[\"https://acct1.table.core.windows.net/t1?tn=t1&sig=x\",\"IngestionsStatusTable\"]");
	KcResourceSet set;
	const KcResource *r;
	KcError		err;

	is(read_set(&kc_alloc_malloc, text, false, NOW_US, &set, &err), KC_OK, "columns in another order");
	is(count(&set, KC_RESOURCE_CONTAINER), 2, "containers, case ignored, the unusable skipped");
	is(count(&set, KC_RESOURCE_QUEUE), 1, "queues");
	is(count(&set, KC_RESOURCE_STATUS_TABLE), 1, "status tables");
	r = set.first[KC_RESOURCE_CONTAINER];
	is_str(r->url, "https://acct1.z11.blob.storage.azure.net/c1", "the URL");
	is_str(r->sas, SAS_2099, "the SAS byte for byte");
	ok(kc_resource_lasts(r, NOW_US), "it lasts");
	ok(!kc_resource_lasts(r->next, NOW_US), "one that ends in four minutes does not");
	ok(!kc_resource_lasts(r->next, NOW_US - INT64_C(55) * 60 * 1000000), "nor one that ends within the hour");
	ok(kc_resource_lasts(r->next, NOW_US - INT64_C(57) * 60 * 1000000), "an hour is enough for a message to be read");
	is(set.first[KC_RESOURCE_QUEUE]->expires_us, INT64_C(1788307500000000), "an end to the minute");
	ok(kc_resource_lasts(set.first[KC_RESOURCE_STATUS_TABLE], NOW_US), "no end is no end");
	ok(!kc_resource_set_usable(&set, NOW_US), "without a token the set is of no use");
	kc_resource_set_free(&kc_alloc_malloc, &set);

	is(read_set(&kc_alloc_malloc, text, true, NOW_US, &set, &err), KC_OK, "for a cluster on this host");
	is(count(&set, KC_RESOURCE_CONTAINER), 3, "so may be its storage");
	kc_resource_set_free(&kc_alloc_malloc, &set);
	is(read_set(&kc_alloc_malloc, text, false, NOW_US + INT64_C(4000000000000000), &set, &err), KC_ERR_SERVICE,
	   "a set that has ended already");
	is(err.advice, KC_ADVICE_CLOCK, "is a matter of clocks");
	kc_resource_set_free(&kc_alloc_malloc, &set);
	is(read_set(&kc_alloc_malloc, SERVICE_TABLE(COLUMNS, ""), false, NOW_US, &set, &err), KC_ERR_PROTOCOL,
	   "no resources at all");
	kc_resource_set_free(&kc_alloc_malloc, &set);
	is(read_set(&kc_alloc_malloc, SERVICE_TABLE(SERVICE_COLUMN("a", "string"), "[\"x\"]"), false, NOW_US, &set, &err),
	   KC_ERR_PROTOCOL, "other columns");
	kc_resource_set_free(&kc_alloc_malloc, &set);
}

static void
test_read_out_of_memory(void)
{
	FailAlloc	fa;
	int			failures = 0;
	bool		good = true;

	for (int n = 1; n < 1000; n++)
	{
		KcResourceSet set;
		KcError		err;
		KcStatus	status;

		fail_alloc_init(&fa, n);
		status = read_set(&fa.alloc, SERVICE_TABLE(COLUMNS,
												   "[\"https://a.b/c1?" SAS_2099 "\",\"TempStorage\"],"
												   "[\"https://a.b/q1?" SAS_2099 "\",\"SecuredReadyForAggregationQueue\"]"),
						  false, NOW_US, &set, &err);
		kc_resource_set_free(&fa.alloc, &set);
		if (fa.live != 0 || (status != KC_ERR_NOMEM && status != KC_OK))
			good = false;
		failures += status == KC_ERR_NOMEM;
		if (!fa.has_failed)
			break;
	}
	ok(good && failures > 10, "each of %d failed allocations is told, and nothing leaks", failures);
}

static void
test_account(void)
{
	static const struct
	{
		const char *url;
		const char *account;
	}			rows[] = {
		{"https://acct.blob.core.windows.net/c", "acct"},
		{"https://acct.z11.blob.storage.azure.net/c", "acct"},
		{"http://127.0.0.1:10000/devacct/c", "devacct"},
		{"http://localhost:10000/t", "t"},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
	{
		KcUrl		url;
		KcError		err;

		must(kc_url_parse(kc_slice(rows[i].url), &url, &err) == KC_OK);
		is_slice(kc_resource_account(&url), rows[i].account, rows[i].url);
	}
}

/* ---- the cache ---- */

typedef struct Wait
{
	KcWaiter	waiter;
	bool		done;
	KcError		error;
} Wait;

static void
on_ready(KcWaiter *waiter, const KcError *err)
{
	Wait	   *wait = waiter->arg;

	wait->done = true;
	if (err != NULL)
		wait->error = *err;
}

static KcStatus
fetch(KcClient *client, KcError *err)
{
	Wait		wait = {.waiter = {.ready = on_ready,.arg = &wait}};

	kc_error_clear(&wait.error);
	must(kc_resources_wait(client->resources, &wait.waiter, err) == KC_OK);
	(void) harness_until(&h, &wait.done);
	*err = wait.error;
	return err->status;
}

static void
test_cache(void)
{
	KcClient   *client = service_client(&h, &server);
	KcResources *resources = client->resources;
	Wait		waits[3];
	KcError		err;

	service_rules(&server);
	ok(!kc_resources_ready(resources), "nothing is known at first");
	for (int i = 0; i < 3; i++)
	{
		memset(&waits[i], 0, sizeof(waits[i]));
		waits[i].waiter.ready = on_ready;
		waits[i].waiter.arg = &waits[i];
		must(kc_resources_wait(resources, &waits[i].waiter, &err) == KC_OK);
	}
	(void) harness_until(&h, &waits[2].done);
	is(server_count(&server, "POST", "/v1/rest/mgmt"), 2, "three wait for one fetch of two commands");
	ok(kc_resources_ready(resources), "now they are known");
	is(kc_resources_count(resources, KC_RESOURCE_CONTAINER), 3, "containers");
	is_slice(kc_resources_identity_token(resources), "identity-secret-1", "identity token");
	is(kc_resources_generation(resources), 1, "the first generation");
	is(kc_resources_longest_sas(resources, KC_RESOURCE_QUEUE), strlen(SERVICE_SAS), "the longest SAS");

	h.moved_ms += 61 * 60 * 1000;
	ok(!kc_resources_ready(resources), "after an hour they are due");
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.body_part = "identity token",.status = 400});
	is(fetch(client, &err), KC_OK, "a failed refresh hurts nobody while they last");
	is(kc_resources_generation(resources), 1, "the old ones serve");
	ok(kc_resources_ready(resources), "for a minute");
	h.moved_ms += 61 * 1000;
	ok(!kc_resources_ready(resources), "then they are asked for again");
	server_clear(&server);
	service_rules(&server);
	is(fetch(client, &err), KC_OK, "later it works");
	is(kc_resources_generation(resources), 2, "the second generation");
	ok(kc_resources_reject(resources, 1), "who rejects the first can have it");
	ok(kc_resources_ready(resources), "at once");

	{
		KcResource *found = kc_resources_nth(resources, KC_RESOURCE_CONTAINER, 0);
		char		url[256];

		snprintf(url, sizeof(url), "%s/blob.csv.gz", found->url);
		ok(kc_resources_find(resources, KC_RESOURCE_CONTAINER, kc_slice(url)) == found, "a blob's container is found");
		snprintf(url, sizeof(url), "%sx/blob.csv.gz", found->url);
		ok(kc_resources_find(resources, KC_RESOURCE_CONTAINER, kc_slice(url)) == NULL, "but not by half its name");
	}
	kc_client_free(client);
}

static void
test_reject(void)
{
	KcClient   *client = service_client(&h, &server);
	KcResources *resources = client->resources;
	Wait		wait = {.waiter = {.ready = on_ready,.arg = &wait}};
	KcError		err;

	service_rules(&server);
	must(fetch(client, &err) == KC_OK);
	ok(kc_resources_reject(resources, 1), "a new set may be rejected");
	ok(!kc_resources_ready(resources), "and is not used, as long as another may come");
	must(kc_resources_wait(resources, &wait.waiter, &err) == KC_OK);
	ok(!kc_resources_ready(resources), "also while it is being fetched");
	ok(kc_resources_reject(resources, 1), "others may reject it, too");
	(void) harness_until(&h, &wait.done);
	ok(kc_resources_ready(resources) && kc_resources_generation(resources) == 2, "it came");
	ok(!kc_resources_reject(resources, 2), "but not every moment another");
	ok(kc_resources_ready(resources), "so this one has to do");
	h.moved_ms += 61 * 1000;
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.status = 403});
	ok(kc_resources_reject(resources, 2), "after a minute it may be");
	is(fetch(client, &err), KC_OK, "when there is no newer one");
	ok(kc_resources_ready(resources) && kc_resources_generation(resources) == 2, "the rejected one serves on");
	kc_client_free(client);
}

/* While one fetches a newer set, the others go on with what they have. */
static void
test_due(void)
{
	KcClient   *client = service_client(&h, &server);
	KcResources *resources = client->resources;
	Wait		wait = {.waiter = {.ready = on_ready,.arg = &wait}};
	KcError		err;

	service_rules(&server);
	must(fetch(client, &err) == KC_OK);
	h.moved_ms += 61 * 60 * 1000;
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.times = 2,.action = SERVER_STALL});
	ok(!kc_resources_ready(resources), "a set is due");
	must(kc_resources_wait(resources, &wait.waiter, &err) == KC_OK);
	ok(kc_resources_ready(resources), "for the first who wants it");
	kc_resources_cancel(resources, &wait.waiter);
	ok(!kc_resources_ready(resources), "and for the next, if that one gave up");
	kc_client_free(client);
}

static void
test_first_failure(void)
{
	static const char *const commands[] = {".get ingestion resources", ".get kusto identity token"};

	for (int i = 0; i < 2; i++)
	{
		KcClient   *client = service_client(&h, &server);
		int64_t		start_ms = harness_now_ms(&h);
		KcError		err;

		service_rules(&server);
		server_rule_first(&server, (ServerRule) {.body_part = commands[i],.status = 403});
		server_rule_first(&server, (ServerRule) {.body_part = commands[1 - i],.action = SERVER_STALL});
		is(fetch(client, &err), KC_ERR_FORBIDDEN, commands[i]);
		ok(harness_now_ms(&h) - start_ms < 3000, "that it is refused is told without waiting for the other");
		ok(service_keeps_secrets(&err), "and no secret is told");
		service_rules(&server);
		is(fetch(client, &err), KC_OK, "later it works");
		kc_client_free(client);
	}
}

static void
test_headers(void)
{
	KcClient   *client = service_client(&h, &server);
	KcError		err;

	service_rules(&server);
	must(fetch(client, &err) == KC_OK);
	is(server_count(&server, "POST", "/v1/rest/mgmt"), 2, "both commands were sent");
	for (int n = 0; n < 2; n++)
		ok(strcasestr(server_nth(&server, "POST", "/v1/rest/mgmt", n)->head, "x-ms-readonly") == NULL,
		   "as client libraries send them, without x-ms-readonly");
	kc_client_free(client);
}

static void
test_pick(void)
{
	KcClient   *client = service_client(&h, &server);
	KcResources *resources = client->resources;
	KcTried		tried = {0};
	KcResource *picks[6];
	KcError		err;
	int			first_account = 0;

	service_rules(&server);
	must(fetch(client, &err) == KC_OK);
	for (int i = 0; i < 6; i++)
	{
		picks[i] = kc_resources_pick(resources, KC_RESOURCE_CONTAINER, NULL);
		first_account += picks[i]->account == picks[0]->account;
	}
	is(first_account, 3, "accounts take turns");
	ok(picks[0]->account != picks[1]->account, "one after the other");
	ok(picks[0] != picks[2] || picks[1] != picks[3], "and so do the containers of an account");

	for (int i = 0; i < 3; i++)
	{
		KcResource *r = kc_resources_pick(resources, KC_RESOURCE_CONTAINER, &tried);

		must(r != NULL);
		if (i == 1)
			ok(!kc_slice_eq(tried.urls[0], kc_slice(r->url)), "another one");
		picks[i] = r;
		tried.urls[tried.n++] = kc_slice(r->url);
	}
	ok(picks[0]->account != picks[1]->account, "a second try goes to another account");
	ok(kc_resources_pick(resources, KC_RESOURCE_CONTAINER, &tried) == NULL, "when all were tried there is none");

	for (int i = 0; i < 10; i++)
		kc_resources_report(resources, kc_slice(kc_resources_nth(resources, KC_RESOURCE_CONTAINER, 0)->url), false);
	for (int i = 0; i < 4; i++)
		picks[i] = kc_resources_pick(resources, KC_RESOURCE_CONTAINER, NULL);
	ok(strstr(picks[0]->url, "/acct2/") && strstr(picks[1]->url, "/acct2/") && strstr(picks[3]->url, "/acct2/"),
	   "an account that fails is avoided");
	ok(strstr(kc_resources_pick(resources, KC_RESOURCE_QUEUE, NULL)->url, "/acct2/") != NULL,
	   "whatever of it is asked for");
	h.moved_ms += 70 * 1000;
	picks[0] = kc_resources_pick(resources, KC_RESOURCE_CONTAINER, NULL);
	picks[1] = kc_resources_pick(resources, KC_RESOURCE_CONTAINER, NULL);
	ok(picks[0]->account != picks[1]->account, "and forgiven after a minute");
	kc_client_free(client);
}

static void
test_free_while_fetching(void)
{
	KcClient   *client = service_client(&h, &server);
	Wait		wait = {.waiter = {.ready = on_ready,.arg = &wait}};
	KcError		err;

	service_rules(&server);
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.action = SERVER_STALL});
	must(kc_resources_wait(client->resources, &wait.waiter, &err) == KC_OK);
	while (server_count(&server, NULL, "/v1/rest/mgmt") < 2)
		harness_turn(&h, 20);
	kc_client_free(client);
	ok(!wait.done, "a client may be freed while it fetches");
}

int
main(void)
{
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_headers();
	test_rank();
	test_read();
	test_read_out_of_memory();
	test_account();
	test_cache();
	test_reject();
	test_due();
	test_first_failure();
	test_pick();
	test_free_while_fetching();
	harness_stop(&h);
	server_stop(&server);
	return done_testing();
}
