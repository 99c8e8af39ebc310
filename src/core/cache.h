/*
 * cache.h
 *	  What the clients of one identity share, whatever process they are in:
 *	  access tokens, and ingestion resources with their identity token.
 *
 * The service throttles clients that ask anew each time.  So one asks and the
 * others take its answer: before a client asks the service, it asks the cache
 * whose turn it is (kc_cache_turn), and is told to take a value, to fetch one,
 * or to wait for the process that is fetching.  To fetch is a lease: it ends
 * when the fetch does, when its process releases it, or LEASE_MS after its
 * process has last prolonged it.  When a fetch has failed, or takes longer than
 * PATIENCE_MS, those that wait for it fetch too, but one a second: however many
 * they are, the service is not asked by all of them at once.
 *
 * Three layers, of which the host process supplies the middle one:
 *
 *	KcCacheUser		one kind of value of one client: waits on the mux
 *	KcCache			the calls, made safe against other processes (a lock)
 *	KcCacheTable	slots in memory that all processes see; knows no lock
 *
 * A key is a digest of all that decides what the service answers, credentials
 * included, so who cannot log in cannot find what others got by logging in.
 */
#ifndef KC_CACHE_H
#define KC_CACHE_H

#include "buf.h"
#include "mux.h"

typedef enum KcCacheKind
{
	KC_CACHE_TOKEN,				/* an access token */
	KC_CACHE_RESOURCES			/* ingestion resources, identity token */
} KcCacheKind;

#define KC_CACHE_KINDS (KC_CACHE_RESOURCES + 1)

#define KC_CACHE_KEY_LEN 32

typedef struct KcCacheKey
{
	unsigned char bytes[KC_CACHE_KEY_LEN];
} KcCacheKey;

/*
 * SHA-256 of the texts, each with its length; NULL differs from "".
 */
extern KcStatus kc_cache_key(const char *const *texts, size_t ntexts, KcCacheKey *key, KcError *err);

typedef enum KcCacheTurn
{
	KC_CACHE_FOUND,				/* a value, another than the one known */
	KC_CACHE_MINE,				/* fetch it, then put it or release the lease */
	KC_CACHE_OTHERS,			/* somebody is fetching it: ask again later */
	KC_CACHE_ALONE				/* fetch it for yourself, it cannot be shared */
} KcCacheTurn;

/* Times are of the system's monotonic clock, the same in all processes. */
typedef struct KcCacheQuestion
{
	KcCacheKind kind;
	uint64_t	known;			/* version in use; 0: none that came from here */
	bool		rejected;		/* and the service no longer accepts it */
	bool		serving;		/* and it serves on: there is no hurry */
	int64_t		now_ms;
	int64_t		since_ms;		/* when the waiting began; now_ms: it has not */
} KcCacheQuestion;

typedef struct KcCacheValue
{
	uint64_t	version;
	int64_t		expires_ms;		/* not to be used from then on */
	int64_t		refresh_ms;		/* to be fetched anew from then on */
	size_t		len;
	const char *data;			/* secret */
} KcCacheValue;

typedef struct KcCache
{
	/*
	 * FOUND fills *value, whose data the implementation owns and keeps until
	 * it is told that they were read (done); MINE fills *lease.
	 */
	KcCacheTurn (*ask) (void *arg, const KcCacheKey *key, const KcCacheQuestion *question,
						KcCacheValue *value, uint64_t *lease);
	void		(*done) (void *arg, size_t len);
	/* The version that it got; 0: it is not shared. lease may be 0. */
	uint64_t	(*put) (void *arg, const KcCacheKey *key, KcCacheKind kind,
						const KcCacheValue *value, uint64_t lease, int64_t now_ms);
	/* The fetch goes on.  False: the lease has passed to somebody else. */
	bool		(*prolong) (void *arg, const KcCacheKey *key, KcCacheKind kind, uint64_t lease,
							int64_t now_ms);
	/* failed: whoever waited for it may ask for himself. */
	void		(*release) (void *arg, const KcCacheKey *key, KcCacheKind kind, uint64_t lease,
							bool failed, int64_t now_ms);
	void	   *arg;
} KcCache;

/* ---- the client's side ---- */

typedef struct KcCacheUser
{
	const KcCache *cache;		/* NULL: none, and every turn is ALONE */
	const KcCacheKey *key;
	KcCacheKind kind;
	KcMux	   *mux;
	KcTimer		timer;			/* the owner sets fire and arg: ask again */
	KcTimer		heartbeat;		/* prolongs the lease */
	uint64_t	version;		/* of the value in use; 0: not from here */
	uint64_t	lease;			/* 0: none */
	int64_t		since_ms;		/* waiting since; -1: not waiting */
	int64_t		pause_ms;		/* before the next question */
} KcCacheUser;

/* cache and key outlive it. */
extern void kc_cache_join(KcCacheUser *user, const KcCache *cache, const KcCacheKey *key,
						  KcCacheKind kind, KcMux *mux);

/*
 * Whose turn is it?  On FOUND the timer fires in a moment, since nobody's
 * waiter may be told within his own call; on OTHERS when it is time to ask
 * again.  serving: the owner has a value that lasts.
 */
extern KcCacheTurn kc_cache_turn(KcCacheUser *user, bool rejected, bool serving, KcCacheValue *value);

/* After FOUND: the value was read, and is in use now if it was any good. */
extern void kc_cache_taken(KcCacheUser *user, const KcCacheValue *value, bool good);

/* Is the timer armed? */
extern bool kc_cache_is_waiting(const KcCacheUser *user);

/* Fetched: others may have it. value->version is set here. */
extern void kc_cache_share(KcCacheUser *user, const KcCacheValue *value);

/* Not fetched: because that failed, or because nobody wants it any more. */
extern void kc_cache_give_up(KcCacheUser *user, bool failed);

/* Stop waiting, release the lease; it may begin again. */
extern void kc_cache_leave(KcCacheUser *user);

/* ---- slots in shared memory ---- */

typedef struct KcCacheTable KcCacheTable;

extern size_t kc_cache_table_size(void);
extern KcCacheTable *kc_cache_table_init(void *memory); /* of that size */

/* As in KcCache; *value points into the table. */
extern KcCacheTurn kc_cache_table_ask(KcCacheTable *table, const KcCacheKey *key,
									  const KcCacheQuestion *question, KcCacheValue *value,
									  uint64_t *lease);
extern uint64_t kc_cache_table_put(KcCacheTable *table, const KcCacheKey *key, KcCacheKind kind,
								   const KcCacheValue *value, uint64_t lease, int64_t now_ms);
extern bool kc_cache_table_prolong(KcCacheTable *table, const KcCacheKey *key, KcCacheKind kind,
								   uint64_t lease, int64_t now_ms);
extern void kc_cache_table_release(KcCacheTable *table, const KcCacheKey *key, KcCacheKind kind,
								   uint64_t lease, bool failed, int64_t now_ms);

/* Longest value of any kind that is shared. */
#define KC_CACHE_MAX_VALUE (64 * 1024)

#define KC_CACHE_LEASE_MS		15000
#define KC_CACHE_PATIENCE_MS	30000

#endif							/* KC_CACHE_H */
