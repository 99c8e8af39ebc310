/*
 * cache.c
 *	  The client's side of the shared cache: the key, whose turn it is, and
 *	  when to ask again.
 */
#include <openssl/evp.h>
#include <string.h>

#include "cache.h"

/* Between two questions: a fetch mostly takes a few of the first. */
#define FIRST_PAUSE_MS	10
#define MAX_PAUSE_MS	500
/* A lease is prolonged when a third of it is over. */
#define HEARTBEAT_MS	(KC_CACHE_LEASE_MS / 3)

static bool
digest_text(EVP_MD_CTX *ctx, const char *text)
{
	/* A length of its own keeps NULL from "", and "ab", "c" from "a", "bc". */
	uint64_t	len = text != NULL ? strlen(text) : UINT64_MAX;

	return EVP_DigestUpdate(ctx, &len, sizeof(len)) == 1
		&& (text == NULL || len == 0 || EVP_DigestUpdate(ctx, text, (size_t) len) == 1);
}

KcStatus
kc_cache_key(const char *const *texts, size_t ntexts, KcCacheKey *key, KcError *err)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	bool		ok = ctx != NULL && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1;

	for (size_t i = 0; ok && i < ntexts; i++)
		ok = digest_text(ctx, texts[i]);
	ok = ok && EVP_DigestFinal_ex(ctx, key->bytes, NULL) == 1;
	EVP_MD_CTX_free(ctx);
	if (ok)
		return KC_OK;
	return kc_error_set(err, KC_ERR_INTERNAL, "preparing a Kusto client",
						"OpenSSL does not compute SHA-256");
}

static int64_t
now_ms(const KcCacheUser *user)
{
	const KcClock *clock = kc_mux_clock(user->mux);

	return clock->monotonic_ms(clock->arg);
}

static void
on_heartbeat(KcTimer *timer)
{
	KcCacheUser *user = timer->arg;
	int64_t		now = now_ms(user);

	if (user->cache->prolong(user->cache->arg, user->key, user->kind, user->lease, now))
		kc_mux_timer_set(user->mux, timer, now + HEARTBEAT_MS);
}

void
kc_cache_join(KcCacheUser *user, const KcCache *cache, const KcCacheKey *key, KcCacheKind kind,
			  KcMux *mux)
{
	user->cache = cache;
	user->key = key;
	user->kind = kind;
	user->mux = mux;
	user->heartbeat.fire = on_heartbeat;
	user->heartbeat.arg = user;
	user->since_ms = -1;
}

static void
stop_waiting(KcCacheUser *user)
{
	kc_mux_timer_cancel(user->mux, &user->timer);
	user->since_ms = -1;
	user->pause_ms = 0;
}

/* Half of it by chance, lest all that wait ask in step. */
static void
ask_again_later(KcCacheUser *user, int64_t now)
{
	const KcClock *clock = kc_mux_clock(user->mux);
	int64_t		pause;

	if (user->since_ms < 0)
		user->since_ms = now;
	user->pause_ms = user->pause_ms == 0 ? FIRST_PAUSE_MS : user->pause_ms * 2;
	if (user->pause_ms > MAX_PAUSE_MS)
		user->pause_ms = MAX_PAUSE_MS;
	pause = user->pause_ms / 2;
	pause += (int64_t) (clock->random(clock->arg) % (uint64_t) (user->pause_ms - pause + 1));
	kc_mux_timer_set(user->mux, &user->timer, now + pause);
}

KcCacheTurn
kc_cache_turn(KcCacheUser *user, bool rejected, bool serving, KcCacheValue *value)
{
	int64_t		now = now_ms(user);
	KcCacheQuestion question = {
		.kind = user->kind,
		.known = user->version,
		.rejected = rejected,
		.serving = serving,
		.now_ms = now,
		.since_ms = user->since_ms >= 0 ? user->since_ms : now
	};
	KcCacheTurn turn;

	if (user->cache == NULL)
		return KC_CACHE_ALONE;
	turn = user->cache->ask(user->cache->arg, user->key, &question, value, &user->lease);
	switch (turn)
	{
		case KC_CACHE_FOUND:
			stop_waiting(user);
			kc_mux_timer_set(user->mux, &user->timer, now);
			break;
		case KC_CACHE_OTHERS:
			if (serving)
				kc_mux_timer_set(user->mux, &user->timer, now);
			else
				ask_again_later(user, now);
			break;
		case KC_CACHE_MINE:
			stop_waiting(user);
			kc_mux_timer_set(user->mux, &user->heartbeat, now + HEARTBEAT_MS);
			break;
		case KC_CACHE_ALONE:
			stop_waiting(user);
			break;
	}
	return turn;
}

void
kc_cache_taken(KcCacheUser *user, const KcCacheValue *value, bool good)
{
	user->cache->done(user->cache->arg, value->len);
	if (good)
		user->version = value->version;
}

bool
kc_cache_is_waiting(const KcCacheUser *user)
{
	return user->timer.armed;
}

void
kc_cache_share(KcCacheUser *user, const KcCacheValue *value)
{
	if (user->cache == NULL)
		return;
	user->version = user->cache->put(user->cache->arg, user->key, user->kind, value, user->lease,
									 now_ms(user));
	kc_mux_timer_cancel(user->mux, &user->heartbeat);
	user->lease = 0;
}

void
kc_cache_give_up(KcCacheUser *user, bool failed)
{
	if (user->lease == 0)
		return;
	user->cache->release(user->cache->arg, user->key, user->kind, user->lease, failed, now_ms(user));
	kc_mux_timer_cancel(user->mux, &user->heartbeat);
	user->lease = 0;
}

void
kc_cache_leave(KcCacheUser *user)
{
	if (user->cache == NULL)
		return;
	stop_waiting(user);
	kc_cache_give_up(user, false);
}
