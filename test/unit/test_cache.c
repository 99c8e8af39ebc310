/*
 * test_cache.c
 *	  The cache that the processes of a server share, and clients that take
 *	  turns at fetching.  Each client here stands for a process.
 */
#define _GNU_SOURCE
#include "core/kusto_internal.h"
#include "core/kusto_resources.h"
#include "fail_alloc.h"
#include "kusto_service.h"

static Server server;
static Harness h;
static KcCacheTable *table;

/* ---- a set as bytes ---- */

static void
test_pack(void)
{
	static KcResource container = {.url = (char *) "https://a/c",.sas = (char *) "sig=1",.expires_us = 42};
	static KcResource queue = {.url = (char *) "https://a/q",.sas = (char *) "",.expires_us = INT64_MAX};
	KcResourceSet set = {.first = {&container, &queue},.identity_token = (char *) "token"};
	KcResourceSet copy;
	FailAlloc	fa;
	KcBuf		bytes;
	bool		whole = true;

	kc_buf_init(&bytes, &kc_alloc_malloc, 4096);
	kc_resource_set_pack(&set, &bytes);
	memset(&copy, 0, sizeof(copy));
	is(kc_resource_set_unpack(&kc_alloc_malloc, kc_buf_view(&bytes), &copy), KC_OK, "a set comes back");
	is_str(copy.first[KC_RESOURCE_CONTAINER]->url, "https://a/c", "URL");
	is_str(copy.first[KC_RESOURCE_CONTAINER]->sas, "sig=1", "SAS");
	ok(copy.first[KC_RESOURCE_CONTAINER]->expires_us == 42 && copy.first[KC_RESOURCE_QUEUE]->expires_us == INT64_MAX, "ends");
	ok(copy.first[KC_RESOURCE_STATUS_TABLE] == NULL, "no table");
	is_str(copy.identity_token, "token", "token");
	ok(kc_resource_set_end(&copy) == INT64_MAX, "the last end");
	kc_resource_set_free(&kc_alloc_malloc, &copy);
	ok(kc_resource_set_end(&copy) == 0, "of no resources: long ago, and nothing that overflows");
	for (size_t len = 0; len < bytes.len; len++)
	{
		memset(&copy, 0, sizeof(copy));
		whole = whole
			&& kc_resource_set_unpack(&kc_alloc_malloc, kc_slice_n(bytes.data, len), &copy) == KC_ERR_PROTOCOL;
		kc_resource_set_free(&kc_alloc_malloc, &copy);
	}
	ok(whole, "half a set is none");
	for (int i = 1; i <= 7; i++)
	{
		fail_alloc_init(&fa, i);
		memset(&copy, 0, sizeof(copy));
		whole = whole && kc_resource_set_unpack(&fa.alloc, kc_buf_view(&bytes), &copy) == KC_ERR_NOMEM;
		kc_resource_set_free(&fa.alloc, &copy);
	}
	ok(whole, "nor is one without memory");
	kc_buf_free(&bytes);
}

/* ---- clients ---- */

static KcCacheTurn
cache_ask(void *arg, const KcCacheKey *key, const KcCacheQuestion *question, KcCacheValue *value,
		  uint64_t *lease)
{
	(void) arg;
	return kc_cache_table_ask(table, key, question, value, lease);
}

static int	ntaken;

static void
cache_done(void *arg, size_t len)
{
	(void) arg;
	ntaken += len > 0;
}

static uint64_t
cache_put(void *arg, const KcCacheKey *key, KcCacheKind kind, const KcCacheValue *value,
		  uint64_t lease, int64_t now_ms)
{
	(void) arg;
	return kc_cache_table_put(table, key, kind, value, lease, now_ms);
}

static bool
cache_prolong(void *arg, const KcCacheKey *key, KcCacheKind kind, uint64_t lease, int64_t now_ms)
{
	(void) arg;
	return kc_cache_table_prolong(table, key, kind, lease, now_ms);
}

static void
cache_release(void *arg, const KcCacheKey *key, KcCacheKind kind, uint64_t lease, bool failed,
			  int64_t now_ms)
{
	(void) arg;
	kc_cache_table_release(table, key, kind, lease, failed, now_ms);
}

static const KcCache cache = {cache_ask, cache_done, cache_put, cache_prolong, cache_release, NULL};

static KcClient *
client_with(const char *secret)
{
	KcClientConfig config = service_config(&server);
	KcClient   *client;
	KcError		err;

	config.client_secret = secret;
	config.cache = &cache;
	must(kc_client_create(&kc_alloc_malloc, h.mux, &config, &client, &err) == KC_OK);
	return client;
}

static KcProbeTask *
begin(KcClient *client, KcProbe what)
{
	KcProbeTask *task;
	KcError		err;

	must(kc_kusto_probe_start(client, what, kc_slice("db"), &task, &err) == KC_OK);
	return task;
}

/* Whoever asks for resources needs a token; who finds them does not. */
static KcProbeTask *
begin_probe(KcClient *client)
{
	return begin(client, KC_PROBE_RESOURCES);
}

static KcStatus
end_probe(KcProbeTask *task)
{
	KcStatus	status;

	(void) harness_until(&h, &task->task.done);
	status = task->task.error.status;
	ok(service_keeps_secrets(&task->task.error), "no secret is told");
	kc_task_free(&task->task);
	return status;
}

static KcStatus
probe(KcClient *client)
{
	return end_probe(begin_probe(client));
}

static int
token_requests(void)
{
	return server_count(&server, "POST", "/oauth2/v2.0/token");
}

static int
commands(void)
{
	return server_count(&server, "POST", "/v1/rest/mgmt");
}

static void
fresh(void)
{
	service_rules(&server);
	kc_cache_table_init(table);
}

static void
test_clients_share(void)
{
	KcClient   *clients[10];
	KcProbeTask *tasks[10];
	KcClient   *stranger;
	int			good = 0;

	fresh();
	for (int i = 0; i < 10; i++)
		clients[i] = client_with("client-secret-1");
	for (int i = 0; i < 10; i++)
		tasks[i] = begin_probe(clients[i]);
	for (int i = 0; i < 10; i++)
		good += end_probe(tasks[i]) == KC_OK;
	is(good, 10, "ten clients at once");
	is(token_requests(), 1, "ask for one token");
	is(ntaken, 9, "each of the others says when it has read what it was given");
	is(commands(), 2, "and once for resources and identity token");
	is(server_count(&server, "GET", "/auth/metadata"), 1, "and for the metadata");

	stranger = client_with("client-secret-2");
	is(probe(stranger), KC_OK, "a client with another secret");
	is(token_requests(), 2, "has to log in itself");
	is(commands(), 4, "and to ask itself");
	kc_client_free(stranger);
	for (int i = 0; i < 10; i++)
		kc_client_free(clients[i]);
	clients[0] = client_with("client-secret-1");
	is(probe(clients[0]), KC_OK, "a client that comes when the others have gone");
	is(token_requests(), 2, "needs no token");
	kc_client_free(clients[0]);
}

static void
test_clients_rejected(void)
{
	static const char second[] = "{\"expires_in\":3600,\"access_token\":\"bearer-secret-1-new\"}";
	KcClient   *clients[3];
	KcRequestTask *task;
	KcError		err;

	fresh();
	for (int i = 0; i < 3; i++)
	{
		clients[i] = client_with("client-secret-1");
		is(end_probe(begin(clients[i], KC_PROBE_TOKEN)), KC_OK, "a client");
	}
	server_rule_first(&server, (ServerRule) {.method = "POST",.target = "/v2/rest/query",.status = 401});
	server_rule_first(&server, (ServerRule) {.method = "POST",.target = "/oauth2/v2.0/token",.body = second});
	for (int i = 0; i < 3; i++)
	{
		must(kc_kusto_request_start(clients[i], KC_ENDPOINT_ENGINE_QUERY, kc_slice("db"), kc_slice("print 1"),
									true, 1 << 20, &task, &err) == KC_OK);
		(void) harness_until(&h, &task->task.done);
		is(task->task.error.status, KC_ERR_AUTH, "a token that is refused, whoever fetched it");
		kc_task_free(&task->task);
	}
	is(token_requests(), 2, "is fetched anew once");
	for (int i = 0; i < 3; i++)
		kc_client_free(clients[i]);

	/* refused once: the others take the new one */
	fresh();
	for (int i = 0; i < 3; i++)
	{
		clients[i] = client_with("client-secret-1");
		is(end_probe(begin(clients[i], KC_PROBE_TOKEN)), KC_OK, "a client");
	}
	server_rule_first(&server, (ServerRule) {.method = "POST",.target = "/oauth2/v2.0/token",.body = second});
	for (int i = 0; i < 3; i++)
	{
		KcToken		token;

		must(kc_auth_token(clients[i]->auth, &token));
		ok(kc_auth_reject(clients[i]->auth, token.generation), "a client finds its token refused");
		must(kc_kusto_request_start(clients[i], KC_ENDPOINT_ENGINE_QUERY, kc_slice("db"), kc_slice("print 1"),
									true, 1 << 20, &task, &err) == KC_OK);
		(void) harness_until(&h, &task->task.done);
		kc_task_free(&task->task);
		must(kc_auth_token(clients[i]->auth, &token));
		is_slice(token.text, "bearer-secret-1-new", "and gets the new one");
	}
	is(token_requests(), 2, "which was fetched once for all");
	for (int i = 0; i < 3; i++)
		kc_client_free(clients[i]);
}

static void
test_clients_die(void)
{
	KcClient   *first;
	KcClient   *second;
	KcProbeTask *hanging;
	KcProbeTask *task;
	int64_t		start_ms;

	/* it is cancelled, or ends, while the token endpoint stalls */
	fresh();
	server_rule_first(&server, (ServerRule) {.target = "/oauth2/v2.0/token",.action = SERVER_STALL,.times = 1});
	first = client_with("client-secret-1");
	second = client_with("client-secret-1");
	hanging = begin_probe(first);
	while (token_requests() == 0)
		harness_turn(&h, 10);
	task = begin_probe(second);
	for (int i = 0; i < 20; i++)
		harness_turn(&h, 10);
	is(token_requests(), 1, "while one fetches, another waits");
	ok(!task->task.done, "without a result");
	start_ms = harness_now_ms(&h);
	kc_task_free(&hanging->task);
	is(end_probe(task), KC_OK, "when the first is gone, the other fetches");
	ok(harness_now_ms(&h) - start_ms < 2000, "at once");
	kc_client_free(first);
	kc_client_free(second);

	/* it fails: whoever waited asks for himself */
	fresh();
	server_rule_first(&server, (ServerRule) {.target = "/oauth2/v2.0/token",.status = 400,
					  .body = "{\"error\":\"invalid_client\",\"error_description\":\"AADSTS7000215\"}"});
	first = client_with("client-secret-1");
	second = client_with("client-secret-1");
	hanging = begin_probe(first);
	task = begin_probe(second);
	is(end_probe(hanging), KC_ERR_AUTH, "a secret that is wrong");
	is(end_probe(task), KC_ERR_AUTH, "is wrong for each, with the reason");
	kc_client_free(first);
	kc_client_free(second);
}

static void
test_clients_slow(void)
{
	KcCacheQuestion question = {.kind = KC_CACHE_TOKEN};
	KcClient   *first;
	KcClient   *second;
	KcProbeTask *hanging;
	KcProbeTask *task;
	KcCacheValue value;
	uint64_t	lease;

	/* it takes long */
	fresh();
	server_rule_first(&server, (ServerRule) {.target = "/oauth2/v2.0/token",.action = SERVER_STALL,.times = 1});
	first = client_with("client-secret-1");
	second = client_with("client-secret-1");
	hanging = begin_probe(first);
	while (token_requests() == 0)
		harness_turn(&h, 10);
	task = begin_probe(second);
	for (int i = 0; i < 4; i++)
	{
		h.moved_ms += KC_CACHE_LEASE_MS / 3;
		harness_turn(&h, 10);
		harness_turn(&h, 10);
	}
	is(token_requests(), 1, "while a fetch goes on, its lease does");
	ok(!task->task.done, "and the other waits");
	h.moved_ms += KC_CACHE_PATIENCE_MS;
	is(end_probe(task), KC_OK, "as long as he has patience");
	kc_task_free(&hanging->task);
	kc_client_free(first);
	kc_client_free(second);

	/* its process stops without a word */
	fresh();
	second = client_with("client-secret-1");
	question.now_ms = question.since_ms = harness_now_ms(&h);
	is(kc_cache_table_ask(table, &second->cache_key, &question, &value, &lease), KC_CACHE_MINE,
	   "a process fetches and is not heard of again");
	task = begin_probe(second);
	harness_turn(&h, 10);
	is(token_requests(), 0, "another waits for it");
	h.moved_ms += KC_CACHE_LEASE_MS;
	is(end_probe(task), KC_OK, "when the lease runs out, it fetches");
	kc_client_free(second);
}

/* Whatever is in the cache, and whatever becomes of it on the way: nobody is worse off than without. */
static void
test_clients_misread(void)
{
	static const KcProbe probes[] = {KC_PROBE_TOKEN, KC_PROBE_RESOURCES};
	KcClientConfig config = service_config(&server);
	KcClient   *client;
	KcClient   *other;
	KcCacheValue rubbish = {.len = 7,.data = "rubbish"};
	FailAlloc	fa;
	KcError		err;

	/* memory runs out while a value is taken */
	fresh();
	config.cache = &cache;
	other = client_with("client-secret-1");
	is(probe(other), KC_OK, "a client");
	for (int i = 0; i < 2; i++)
	{
		for (int n = 1;; n++)
		{
			KcProbeTask *task;

			fail_alloc_init(&fa, 0);
			must(kc_client_create(&fa.alloc, h.mux, &config, &client, &err) == KC_OK);
			fa.requests = 0;
			fa.fail_at = n;
			if (kc_kusto_probe_start(client, probes[i], kc_slice("db"), &task, &err) == KC_OK)
				(void) end_probe(task);
			fa.fail_at = 0;
			is(end_probe(begin(client, probes[i])), KC_OK, "after memory was short once, all is well");
			kc_client_free(client);
			if (!fa.has_failed)
				break;
		}
	}
	is(token_requests(), 1, "and what others have got is taken");
	is(commands(), 2, "be it a token or resources");
	kc_client_free(other);

	/* bytes that are no set */
	fresh();
	client = client_with("client-secret-1");
	other = client_with("client-secret-1");
	rubbish.expires_ms = rubbish.refresh_ms = harness_now_ms(&h) + 1000000;
	must(kc_cache_table_put(table, &client->cache_key, KC_CACHE_RESOURCES, &rubbish, 0, harness_now_ms(&h)) != 0);
	is(probe(client), KC_OK, "a set that cannot be read");
	is(commands(), 2, "is fetched");
	is(probe(other), KC_OK, "and then the others can read it");
	is(commands(), 2, "without fetching it");
	kc_client_free(client);
	kc_client_free(other);
}

static void
test_clients_without_token(void)
{
	KcClient   *clients[3];
	KcClientConfig config = service_config(&server);
	KcError		err;

	fresh();
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/auth/metadata",.body = "{\"AzureAD\":null}"});
	clients[0] = client_with("client-secret-1");
	clients[1] = client_with("client-secret-1");
	must(kc_client_create(&kc_alloc_malloc, h.mux, &config, &clients[2], &err) == KC_OK);
	for (int i = 0; i < 3; i++)
		is(end_probe(begin(clients[i], KC_PROBE_TOKEN)), KC_OK, "a service that asks for no token");
	is(server_count(&server, "GET", "/auth/metadata"), 2, "says so to one of those who share, and to who does not");
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/auth/metadata",.status = 400});
	h.moved_ms += 2 * 60 * 60 * 1000;
	for (int i = 0; i < 3; i++)
	{
		is(end_probe(begin(clients[i], KC_PROBE_TOKEN)), KC_OK, "who knows it does not depend on being told again");
		kc_client_free(clients[i]);
	}
	clients[0] = client_with("client-secret-1");
	ok(end_probe(begin(clients[0], KC_PROBE_TOKEN)) != KC_OK, "but it is not passed on for ever");
	kc_client_free(clients[0]);
}

static void
test_clients_renew(void)
{
	KcClient   *clients[4];
	KcProbeTask *tasks[4];
	int			before;

	fresh();
	for (int i = 0; i < 4; i++)
	{
		clients[i] = client_with("client-secret-1");
		is(probe(clients[i]), KC_OK, "a client");
	}
	before = commands();
	h.moved_ms += 61 * 60 * 1000;
	for (int i = 0; i < 4; i++)
		tasks[i] = begin_probe(clients[i]);
	for (int i = 0; i < 4; i++)
		is(end_probe(tasks[i]), KC_OK, "an hour later");
	is(token_requests(), 2, "one new token for all");
	is(commands() - before, 2, "one new set for all");

	/* the old set serves while the service is down, and it is not asked by each */
	server_rule_first(&server, (ServerRule) {.target = "/v1/rest/mgmt",.status = 400});
	before = commands();
	h.moved_ms += 56 * 60 * 1000;
	h.moved_ms += 5 * 60 * 1000;
	for (int i = 0; i < 4; i++)
		is(probe(clients[i]), KC_OK, "the service refuses to renew resources, the old ones serve");
	ok(commands() - before <= 2, "one of the four has tried");
	for (int i = 0; i < 4; i++)
		kc_client_free(clients[i]);
}

int
main(void)
{
	table = malloc(kc_cache_table_size());
	must(table != NULL);
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_pack();
	test_clients_share();
	test_clients_rejected();
	test_clients_die();
	test_clients_slow();
	test_clients_misread();
	test_clients_without_token();
	test_clients_renew();
	harness_stop(&h);
	server_stop(&server);
	free(table);
	return done_testing();
}
