/*
 * test_cache.c
 *	  The cache that the processes of a server share: its table, and clients
 *	  that take turns at fetching.  Each client here stands for a process.
 */
#define _GNU_SOURCE
#include "core/kusto_internal.h"
#include "core/kusto_resources.h"
#include "fail_alloc.h"
#include "kusto_service.h"

static Server server;
static Harness h;
static KcCacheTable *table;

/* ---- the table ---- */

static KcCacheKey
key_of(int n)
{
	char		text[16];
	const char *const texts[] = {text};
	KcCacheKey	key;
	KcError		err;

	snprintf(text, sizeof(text), "identity %d", n);
	must(kc_cache_key(texts, 1, &key, &err) == KC_OK);
	return key;
}

static KcCacheTurn
ask(const KcCacheKey *key, KcCacheQuestion question, KcCacheValue *value, uint64_t *lease)
{
	if (question.since_ms == 0)
		question.since_ms = question.now_ms;
	return kc_cache_table_ask(table, key, &question, value, lease);
}

static uint64_t
put(const KcCacheKey *key, KcCacheKind kind, const char *text, int64_t now_ms, int64_t life_ms,
	uint64_t lease)
{
	KcCacheValue value = {
		.expires_ms = now_ms + life_ms,.refresh_ms = now_ms + life_ms / 2,.len = strlen(text),.data = text
	};

	return kc_cache_table_put(table, key, kind, &value, lease, now_ms);
}

static bool
holds(const char *text)
{
	return memmem(table, kc_cache_table_size(), text, strlen(text)) != NULL;
}

static void
test_key(void)
{
	static const char *const variants[][3] = {
		{"a", "b", "c"}, {"ab", "", "c"}, {"a", "bc", ""}, {"a", NULL, "bc"}, {"a", "", "bc"}, {"a", "b", "d"},
	};
	KcCacheKey	keys[6];
	KcError		err;
	bool		differ = true;

	for (int i = 0; i < 6; i++)
		must(kc_cache_key(variants[i], 3, &keys[i], &err) == KC_OK);
	for (int i = 0; i < 6; i++)
	{
		for (int j = 0; j < i; j++)
			differ = differ && memcmp(&keys[i], &keys[j], sizeof(KcCacheKey)) != 0;
	}
	ok(differ, "keys of different texts differ");
	must(kc_cache_key(variants[0], 3, &keys[1], &err) == KC_OK);
	ok(memcmp(&keys[0], &keys[1], sizeof(KcCacheKey)) == 0, "keys of the same texts do not");
	must(kc_cache_key((const char *const[]) {"abc"}, 1, &keys[0], &err) == KC_OK);
	ok(memmem(&keys[0], sizeof(KcCacheKey), "abc", 3) == NULL, "a key tells nothing");
}

static void
test_table_turns(void)
{
	KcCacheKey	key = key_of(1);
	KcCacheValue value;
	uint64_t	lease = 0;
	uint64_t	other = 0;
	uint64_t	version;

	kc_cache_table_init(table);
	is(ask(&key, (KcCacheQuestion) {.now_ms = 1000}, &value, &lease), KC_CACHE_MINE, "the first one fetches");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 1000}, &value, &other), KC_CACHE_OTHERS, "the second one waits");
	is(ask(&key, (KcCacheQuestion) {.kind = KC_CACHE_RESOURCES,.now_ms = 1000}, &value, &other), KC_CACHE_MINE,
	   "for that kind only");
	version = put(&key, KC_CACHE_TOKEN, "secret-one", 1100, 10000, lease);
	ok(version != 0, "what was fetched is shared");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 1200,.since_ms = 1000}, &value, &other), KC_CACHE_FOUND, "who waited gets it");
	is_slice(kc_slice_n(value.data, value.len), "secret-one", "whole");
	ok(value.version == version && value.expires_ms == 11100 && value.refresh_ms == 6100, "with its times");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 6200,.known = version,.serving = true}, &value, &lease), KC_CACHE_MINE,
	   "who has it and asks fetches a new one");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 6200,.known = version,.serving = true}, &value, &other), KC_CACHE_OTHERS,
	   "one of them");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 6200}, &value, &other), KC_CACHE_FOUND, "who has none gets the old one");

	/* failing */
	kc_cache_table_release(table, &key, KC_CACHE_TOKEN, lease + 77, true, 6300);
	is(ask(&key, (KcCacheQuestion) {.now_ms = 6300,.known = version}, &value, &other), KC_CACHE_OTHERS,
	   "somebody else's lease cannot be released");
	kc_cache_table_release(table, &key, KC_CACHE_TOKEN, lease, true, 6300);
	is(ask(&key, (KcCacheQuestion) {.now_ms = 7000,.known = version,.serving = true}, &value, &other), KC_CACHE_OTHERS,
	   "a renewal that failed is not repeated at once");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 11200,.since_ms = 6250}, &value, &other), KC_CACHE_ALONE,
	   "who waited for it asks for himself");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 11200}, &value, &lease), KC_CACHE_MINE, "who comes now does not");

	/* the lease runs out */
	is(ask(&key, (KcCacheQuestion) {.now_ms = 11200 + KC_CACHE_LEASE_MS - 1}, &value, &other), KC_CACHE_OTHERS,
	   "a lease holds");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 11200 + KC_CACHE_LEASE_MS,.since_ms = 11201}, &value, &other), KC_CACHE_MINE,
	   "for so long");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 11300 + KC_CACHE_PATIENCE_MS - 2000,.since_ms = 11300}, &value, &other),
	   KC_CACHE_OTHERS, "the others go on waiting");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 11300 + KC_CACHE_PATIENCE_MS,.since_ms = 11300}, &value, &other),
	   KC_CACHE_ALONE, "but not for ever");
	ok(put(&key, KC_CACHE_TOKEN, "secret-two", 60000, 1000, lease) != 0, "a late answer is good all the same");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 60001}, &value, &other), KC_CACHE_FOUND, "for all");

	/* expiry */
	ok(holds("secret-two"), "a token is in memory");
	ok(!holds("secret-one"), "the one before is not");
	(void) ask(&(KcCacheKey) {.bytes = {1}}, (KcCacheQuestion) {.now_ms = 61000}, &value, &other);
	ok(!holds("secret-two"), "nor is one that has expired, whoever comes by");
}

static void
test_table_rejection(void)
{
	KcCacheKey	key = key_of(1);
	KcCacheValue value;
	uint64_t	lease = 0;
	uint64_t	first;
	uint64_t	second;

	kc_cache_table_init(table);
	first = put(&key, KC_CACHE_TOKEN, "secret-one", 1000, 100000, 0);
	is(ask(&key, (KcCacheQuestion) {.now_ms = 2000,.known = first,.rejected = true}, &value, &lease), KC_CACHE_MINE,
	   "who reports a rejection fetches");
	ok(!holds("secret-one"), "what was rejected is gone");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 2000,.known = first,.rejected = true}, &value, &lease), KC_CACHE_OTHERS,
	   "the next one waits");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 2000}, &value, &lease), KC_CACHE_OTHERS, "and who knows nothing is not given it");
	second = put(&key, KC_CACHE_TOKEN, "secret-two", 2100, 100000, lease);
	is(ask(&key, (KcCacheQuestion) {.now_ms = 2200,.known = first,.rejected = true}, &value, &lease), KC_CACHE_FOUND,
	   "a late rejection of the old one");
	ok(value.version == second, "gets the new one");

	/* resources: once a minute */
	first = put(&key, KC_CACHE_RESOURCES, "set-one", 1000, 1000000, 0);
	is(ask(&key, (KcCacheQuestion) {.kind = KC_CACHE_RESOURCES,.now_ms = 2000,.known = first,.rejected = true}, &value, &lease),
	   KC_CACHE_MINE, "rejected resources are fetched");
	second = put(&key, KC_CACHE_RESOURCES, "set-two", 2100, 1000000, lease);
	is(ask(&key, (KcCacheQuestion) {.kind = KC_CACHE_RESOURCES,.now_ms = 3000,.known = second,.rejected = true}, &value, &lease),
	   KC_CACHE_FOUND, "if these are rejected at once");
	ok(value.version == second, "they have to do");
	is(ask(&key, (KcCacheQuestion) {.kind = KC_CACHE_RESOURCES,.now_ms = 62000,.known = second,.rejected = true}, &value, &lease),
	   KC_CACHE_MINE, "for a minute");
}

static void
test_table_limits(void)
{
	KcCacheKey	key = key_of(0);
	KcCacheValue value;
	uint64_t	lease = 0;
	char	   *large = malloc(KC_CACHE_MAX_VALUE + 2);

	kc_cache_table_init(table);
	memset(large, 'x', KC_CACHE_MAX_VALUE + 1);
	large[KC_CACHE_MAX_VALUE + 1] = '\0';
	is(ask(&key, (KcCacheQuestion) {.kind = KC_CACHE_RESOURCES,.now_ms = 1000}, &value, &lease), KC_CACHE_MINE, "a large set");
	ok(put(&key, KC_CACHE_RESOURCES, large, 1100, 100000, lease) == 0, "is not shared");
	is(ask(&key, (KcCacheQuestion) {.kind = KC_CACHE_RESOURCES,.now_ms = 1200}, &value, &lease), KC_CACHE_ALONE,
	   "each fetches it without waiting");
	large[KC_CACHE_MAX_VALUE] = '\0';
	ok(put(&key, KC_CACHE_RESOURCES, large, 1300, 100000, 0) != 0, "one that just fits");
	is(ask(&key, (KcCacheQuestion) {.kind = KC_CACHE_RESOURCES,.now_ms = 1400}, &value, &lease), KC_CACHE_FOUND, "is shared again");
	ok(value.len == KC_CACHE_MAX_VALUE && memcmp(value.data, large, value.len) == 0, "whole");
	free(large);

	/* more identities than slots */
	for (int i = 1; i <= 40; i++)
	{
		char		text[32];

		key = key_of(i);
		snprintf(text, sizeof(text), "secret of %d.", i);
		(void) put(&key, KC_CACHE_TOKEN, text, 2000 + i, 100000, 0);
		key = key_of(1);
		(void) ask(&key, (KcCacheQuestion) {.now_ms = 2000 + i}, &value, &lease);
	}
	key = key_of(1);
	is(ask(&key, (KcCacheQuestion) {.now_ms = 3000}, &value, &lease), KC_CACHE_FOUND, "what is used stays");
	key = key_of(40);
	is(ask(&key, (KcCacheQuestion) {.now_ms = 3000}, &value, &lease), KC_CACHE_FOUND, "and what is new");
	is_slice(kc_slice_n(value.data, value.len), "secret of 40.", "of the right identity");
	ok(!holds("secret of 2."), "what was not used for longest is overwritten");
	key = key_of(2);
	is(ask(&key, (KcCacheQuestion) {.now_ms = 3000}, &value, &lease), KC_CACHE_MINE, "and has to be fetched");
}

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
	ok(kc_resource_set_unpack(&kc_alloc_malloc, kc_buf_view(&bytes), &copy), "a set comes back");
	is_str(copy.first[KC_RESOURCE_CONTAINER]->url, "https://a/c", "URL");
	is_str(copy.first[KC_RESOURCE_CONTAINER]->sas, "sig=1", "SAS");
	ok(copy.first[KC_RESOURCE_CONTAINER]->expires_us == 42 && copy.first[KC_RESOURCE_QUEUE]->expires_us == INT64_MAX, "ends");
	ok(copy.first[KC_RESOURCE_STATUS_TABLE] == NULL, "no table");
	is_str(copy.identity_token, "token", "token");
	ok(kc_resource_set_end(&copy) == INT64_MAX, "the last end");
	kc_resource_set_free(&kc_alloc_malloc, &copy);
	for (size_t len = 0; len < bytes.len; len++)
	{
		memset(&copy, 0, sizeof(copy));
		whole = whole && !kc_resource_set_unpack(&kc_alloc_malloc, kc_slice_n(bytes.data, len), &copy);
		kc_resource_set_free(&kc_alloc_malloc, &copy);
	}
	ok(whole, "half a set is none");
	for (int i = 1; i <= 7; i++)
	{
		fail_alloc_init(&fa, i);
		memset(&copy, 0, sizeof(copy));
		whole = whole && !kc_resource_set_unpack(&fa.alloc, kc_buf_view(&bytes), &copy);
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

static void
cache_release(void *arg, const KcCacheKey *key, KcCacheKind kind, uint64_t lease, bool failed,
			  int64_t now_ms)
{
	(void) arg;
	kc_cache_table_release(table, key, kind, lease, failed, now_ms);
}

static const KcCache cache = {cache_ask, cache_done, cache_put, cache_release, NULL};

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

	/* it stops driving without a word */
	fresh();
	server_rule_first(&server, (ServerRule) {.target = "/oauth2/v2.0/token",.action = SERVER_STALL,.times = 1});
	first = client_with("client-secret-1");
	second = client_with("client-secret-1");
	hanging = begin_probe(first);
	while (token_requests() == 0)
		harness_turn(&h, 10);
	task = begin_probe(second);
	harness_turn(&h, 10);
	h.moved_ms += KC_CACHE_LEASE_MS;
	is(end_probe(task), KC_OK, "when a lease runs out, another fetches");
	kc_task_free(&hanging->task);
	kc_client_free(first);
	kc_client_free(second);

	/* it fails: nobody waits for a chain of failures */
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
	test_key();
	test_table_turns();
	test_table_rejection();
	test_table_limits();
	test_pack();
	test_clients_share();
	test_clients_rejected();
	test_clients_die();
	test_clients_renew();
	harness_stop(&h);
	server_stop(&server);
	free(table);
	return done_testing();
}
