/*
 * test_cache_table.c
 *	  The table of the shared cache: who fetches, who waits, who makes room.
 */
#define _GNU_SOURCE
#include "core/cache.h"
#include "tap.h"

static KcCacheTable *table;

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
	uint64_t	last = 0;
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
	is(ask(&key, (KcCacheQuestion) {.now_ms = 11200,.since_ms = 6250}, &value, &other), KC_CACHE_MINE,
	   "who waited for it asks for himself");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 12199,.since_ms = 6250}, &value, &lease), KC_CACHE_OTHERS,
	   "but not all at once");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 12200,.since_ms = 6250}, &value, &lease), KC_CACHE_MINE,
	   "one a second does");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 13200}, &value, &other), KC_CACHE_OTHERS, "who comes now does not");

	/* the lease runs out */
	is(ask(&key, (KcCacheQuestion) {.now_ms = 12200 + KC_CACHE_LEASE_MS - 1}, &value, &other), KC_CACHE_OTHERS,
	   "a lease holds");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 12200 + KC_CACHE_LEASE_MS,.since_ms = 12201}, &value, &other), KC_CACHE_MINE,
	   "for so long");
	ok(!kc_cache_table_prolong(table, &key, KC_CACHE_TOKEN, lease, 28000), "who has lost it cannot prolong it");
	ok(kc_cache_table_prolong(table, &key, KC_CACHE_TOKEN, other, 28000), "who has it can");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 12300 + KC_CACHE_PATIENCE_MS - 1,.since_ms = 12300}, &value, &last),
	   KC_CACHE_OTHERS, "the others go on waiting");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 12300 + KC_CACHE_PATIENCE_MS,.since_ms = 12300}, &value, &last),
	   KC_CACHE_MINE, "but not for ever");


	/* expiry */
	(void) put(&key, KC_CACHE_TOKEN, "secret-two", 60000, 1000, last);
	ok(holds("secret-two"), "a token is in memory");
	ok(!holds("secret-one"), "the one before is not");
	(void) ask(&(KcCacheKey) {.bytes = {1}}, (KcCacheQuestion) {.now_ms = 61000}, &value, &other);
	ok(!holds("secret-two"), "nor is one that has expired, whoever comes by");
	(void) put(&key, KC_CACHE_TOKEN, "secret-three", 62000, 1000, 0);
	(void) put(&(KcCacheKey) {.bytes = {1}}, KC_CACHE_TOKEN, "another", 63000, 1000, 0);
	ok(!holds("secret-three"), "to ask or to give");
}

static void
test_table_late(void)
{
	KcCacheKey	key = key_of(1);
	KcCacheValue value;
	uint64_t	first = 0;
	uint64_t	second = 0;
	uint64_t	third = 0;
	uint64_t	ignored;
	uint64_t	version;

	kc_cache_table_init(table);
	(void) ask(&key, (KcCacheQuestion) {.now_ms = 1000}, &value, &first);
	(void) ask(&key, (KcCacheQuestion) {.now_ms = 1000 + KC_CACHE_LEASE_MS}, &value, &second);
	(void) ask(&key, (KcCacheQuestion) {.now_ms = 1000 + 2 * KC_CACHE_LEASE_MS}, &value, &third);
	must(first != 0 && second > first && third > second);
	version = put(&key, KC_CACHE_TOKEN, "secret-one", 32000, 1000, first);
	ok(version != 0, "a late answer is good all the same");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 32001}, &value, &ignored), KC_CACHE_FOUND, "for all");
	is(put(&key, KC_CACHE_TOKEN, "secret-late", 32002, 1000, second), 0, "but not when a newer one is there");
	is(ask(&key, (KcCacheQuestion) {.now_ms = 32003,.known = version,.rejected = true}, &value, &ignored), KC_CACHE_OTHERS,
	   "nor when that has been rejected");
	is(put(&key, KC_CACHE_TOKEN, "secret-late", 32004, 1000, second), 0, "since");
	ok(!holds("secret-late"), "it is not kept");
	ok(put(&key, KC_CACHE_TOKEN, "secret-two", 32005, 1000, third) != 0, "that of the latest fetch is");
}

/*
 * So many wait for one value, and each fetch fails after fetch_ms.  How many
 * have fetched by then?
 */
#define HERD 200

static int
herd_turns(int64_t fetch_ms, int64_t for_ms)
{
	KcCacheKey	key = key_of(1);
	int64_t		asks_ms[HERD];
	int64_t		ends_ms[HERD];
	uint64_t	leases[HERD] = {0};
	int			turns = 0;

	kc_cache_table_init(table);
	for (int i = 0; i < HERD; i++)
		asks_ms[i] = 1000 + i % 10;
	for (int64_t now_ms = 1000; now_ms < 1000 + for_ms; now_ms++)
	{
		for (int i = 0; i < HERD; i++)
		{
			KcCacheQuestion question = {.now_ms = now_ms,.since_ms = 1000 + i % 10};
			KcCacheValue value;

			if (leases[i] != 0 && now_ms == ends_ms[i])
				kc_cache_table_release(table, &key, KC_CACHE_TOKEN, leases[i], true, now_ms);
			else if (leases[i] != 0 && now_ms % 5000 == 0)
				(void) kc_cache_table_prolong(table, &key, KC_CACHE_TOKEN, leases[i], now_ms);
			if (leases[i] != 0 || now_ms < asks_ms[i])
				continue;
			asks_ms[i] = now_ms + 250 + i;
			if (kc_cache_table_ask(table, &key, &question, &value, &leases[i]) == KC_CACHE_OTHERS)
				continue;
			must(leases[i] != 0);
			ends_ms[i] = now_ms + fetch_ms;
			turns++;
		}
	}
	return turns;
}

static void
test_table_herd(void)
{
	int			turns = herd_turns(100, 30000);

	ok(turns >= 15 && turns <= 32, "while fetches fail, one a second: %d in 30 s", turns);
	is(herd_turns(100000, KC_CACHE_PATIENCE_MS), 1, "while one takes long, no other, as long as it is prolonged");
	turns = herd_turns(100000, KC_CACHE_PATIENCE_MS + 30000) - 1;
	ok(turns >= 15 && turns <= 32, "but not for ever: then one a second: %d in 30 s", turns);
	is(herd_turns(100, 180000), HERD, "each has his turn in the end");
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

/* Whoever can create a server can try to log in by many names. */
static void
test_table_names(void)
{
	KcCacheKey	key;
	KcCacheValue value;
	uint64_t	lease;
	int			found = 0;

	kc_cache_table_init(table);
	for (int i = 0; i < 32; i++)
	{
		key = key_of(i);
		(void) put(&key, KC_CACHE_TOKEN, "secret", 1000 + i, 100000, 0);
	}
	for (int i = 100; i < 200; i++)
	{
		key = key_of(i);
		is(ask(&key, (KcCacheQuestion) {.now_ms = 2000 + i}, &value, &lease), KC_CACHE_MINE, "a login by another name");
	}
	for (int i = 0; i < 32; i++)
	{
		key = key_of(i);
		found += ask(&key, (KcCacheQuestion) {.now_ms = 3000}, &value, &lease) == KC_CACHE_FOUND;
	}
	is(found, 31, "a hundred failed logins cost the others one value");
}

int
main(void)
{
	table = malloc(kc_cache_table_size());
	must(table != NULL);
	test_key();
	test_table_turns();
	test_table_late();
	test_table_herd();
	test_table_rejection();
	test_table_limits();
	test_table_names();
	free(table);
	return done_testing();
}
