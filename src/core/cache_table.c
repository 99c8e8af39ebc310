/*
 * cache_table.c
 *	  The slots of the shared cache: a fixed number of identities, the one that
 *	  was not used for longest makes room for a new one.
 *
 * No function here allocates, waits or fails; the caller holds the lock that
 * guards the table.  Whatever is dropped is overwritten.
 */
#include <string.h>

#include "cache.h"

#define SLOTS				32
#define MAX_TOKEN			(16 * 1024)

/* As in kusto_resources.c: the service throttles whoever asks out of turn. */
#define REJECT_INTERVAL_MS	60000
/* While the old value serves, a failed renewal is not repeated at once. */
#define RETRY_AFTER_FAILURE_MS 30000

/* How often one of those that wait in vain gets his turn; and after so long, more often. */
#define TURN_MS				1000
#define LONG_WAIT_MS		120000
#define LONG_WAIT_TURN_MS	100

typedef struct Entry
{
	uint64_t	version;		/* 0: no value */
	uint64_t	newest;			/* version of the last value, dropped or not */
	int64_t		expires_ms;
	int64_t		refresh_ms;
	size_t		len;
	bool		too_large;		/* what the service gives does not fit */
	uint64_t	lease;			/* 0: nobody is fetching */
	int64_t		lease_ends_ms;
	int64_t		failed_ms;		/* the last fetch, if it failed; 0: it did not */
	int64_t		next_reject_ms; /* before that no rejection counts */
	int64_t		turn_ms;		/* the last turn of one that waited in vain; 0: none yet */
} Entry;

typedef struct Slot
{
	bool		used;
	KcCacheKey	key;
	int64_t		used_ms;
	Entry		entries[KC_CACHE_KINDS];
	char		token[MAX_TOKEN];
	char		resources[KC_CACHE_MAX_VALUE];
} Slot;

struct KcCacheTable
{
	uint64_t	last_number;	/* of versions and leases */
	Slot		slots[SLOTS];
};

static char *
room(Slot *slot, KcCacheKind kind, size_t *size)
{
	if (kind == KC_CACHE_TOKEN)
	{
		*size = sizeof(slot->token);
		return slot->token;
	}
	*size = sizeof(slot->resources);
	return slot->resources;
}

/* The value is secret, and gone from now on; a lease goes on. */
static void
drop_value(Slot *slot, KcCacheKind kind)
{
	Entry	   *entry = &slot->entries[kind];
	size_t		size;

	kc_wipe(room(slot, kind, &size), entry->len);
	entry->len = 0;
	entry->version = 0;
}

static void
clear_slot(Slot *slot)
{
	for (int kind = 0; kind < KC_CACHE_KINDS; kind++)
	{
		drop_value(slot, (KcCacheKind) kind);
		memset(&slot->entries[kind], 0, sizeof(Entry));
	}
	kc_wipe(&slot->key, sizeof(slot->key));
	slot->used = false;
}

/* Nothing that has expired is kept, whoever comes by. */
static void
drop_expired(KcCacheTable *table, int64_t now_ms)
{
	for (int i = 0; i < SLOTS; i++)
	{
		Slot	   *slot = &table->slots[i];

		for (int kind = 0; slot->used && kind < KC_CACHE_KINDS; kind++)
		{
			if (slot->entries[kind].version != 0 && slot->entries[kind].expires_ms <= now_ms)
				drop_value(slot, (KcCacheKind) kind);
		}
	}
}

static Slot *
find_slot(KcCacheTable *table, const KcCacheKey *key)
{
	for (int i = 0; i < SLOTS; i++)
	{
		if (table->slots[i].used && memcmp(&table->slots[i].key, key, sizeof(*key)) == 0)
			return &table->slots[i];
	}
	return NULL;
}

static bool
has_value(const Slot *slot)
{
	for (int kind = 0; kind < KC_CACHE_KINDS; kind++)
	{
		if (slot->entries[kind].version != 0)
			return true;
	}
	return false;
}

/*
 * Whoever tries to log in takes a slot, whether he can or not: these make room
 * first, lest many wrong logins cost the others their values.
 */
static bool
makes_room_before(const Slot *a, const Slot *b)
{
	if (has_value(a) != has_value(b))
		return has_value(b);
	return a->used_ms < b->used_ms;
}

static Slot *
slot_for(KcCacheTable *table, const KcCacheKey *key, int64_t now_ms)
{
	Slot	   *slot = find_slot(table, key);

	for (int i = 0; slot == NULL && i < SLOTS; i++)
	{
		if (!table->slots[i].used)
			slot = &table->slots[i];
	}
	if (slot == NULL)
	{
		slot = &table->slots[0];
		for (int i = 1; i < SLOTS; i++)
		{
			if (makes_room_before(&table->slots[i], slot))
				slot = &table->slots[i];
		}
		clear_slot(slot);
	}
	slot->used = true;
	slot->key = *key;
	slot->used_ms = now_ms;
	return slot;
}

size_t
kc_cache_table_size(void)
{
	return sizeof(KcCacheTable);
}

KcCacheTable *
kc_cache_table_init(void *memory)
{
	memset(memory, 0, sizeof(KcCacheTable));
	return memory;
}

/*
 * A rejected value is dropped, so that nobody else gets it; but not when it
 * was fetched for that reason a moment ago: then the value is not the trouble.
 */
static bool
reject(Slot *slot, const KcCacheQuestion *question)
{
	Entry	   *entry = &slot->entries[question->kind];

	if (question->kind == KC_CACHE_RESOURCES)
	{
		if (question->now_ms < entry->next_reject_ms)
			return false;
		entry->next_reject_ms = question->now_ms + REJECT_INTERVAL_MS;
	}
	drop_value(slot, question->kind);
	return true;
}

static KcCacheTurn
take_value(Slot *slot, KcCacheKind kind, KcCacheValue *value)
{
	const Entry *entry = &slot->entries[kind];
	size_t		size;

	value->version = entry->version;
	value->expires_ms = entry->expires_ms;
	value->refresh_ms = entry->refresh_ms;
	value->len = entry->len;
	value->data = room(slot, kind, &size);
	return KC_CACHE_FOUND;
}

/* A fetch has failed since he began to wait, or takes too long. */
static bool
waits_in_vain(const Entry *entry, const KcCacheQuestion *question)
{
	return !question->serving && question->since_ms < question->now_ms
		&& (entry->failed_ms >= question->since_ms
			|| question->now_ms - question->since_ms >= KC_CACHE_PATIENCE_MS);
}

/*
 * Those that wait in vain take turns, however many they are: what fails or
 * takes long is a service that throttles, most likely.
 */
static bool
may_fetch(Entry *entry, const KcCacheQuestion *question)
{
	int64_t		now_ms = question->now_ms;
	int64_t		pause_ms = now_ms - question->since_ms < LONG_WAIT_MS ? TURN_MS : LONG_WAIT_TURN_MS;

	if (!waits_in_vain(entry, question))
		return entry->lease == 0 || now_ms >= entry->lease_ends_ms;
	if (entry->turn_ms != 0 && now_ms - entry->turn_ms < pause_ms)
		return false;
	entry->turn_ms = now_ms;
	return true;
}

KcCacheTurn
kc_cache_table_ask(KcCacheTable *table, const KcCacheKey *key, const KcCacheQuestion *question,
				   KcCacheValue *value, uint64_t *lease)
{
	int64_t		now_ms = question->now_ms;
	Slot	   *slot;
	Entry	   *entry;

	drop_expired(table, now_ms);
	slot = slot_for(table, key, now_ms);
	entry = &slot->entries[question->kind];
	if (entry->version != 0
		&& (entry->version != question->known
			|| (question->rejected && !reject(slot, question))))
		return take_value(slot, question->kind, value);
	if (entry->too_large)
		return KC_CACHE_ALONE;
	if (question->serving && entry->failed_ms != 0
		&& now_ms - entry->failed_ms < RETRY_AFTER_FAILURE_MS)
		return KC_CACHE_OTHERS;
	if (!may_fetch(entry, question))
		return KC_CACHE_OTHERS;
	entry->lease = *lease = ++table->last_number;
	entry->lease_ends_ms = now_ms + KC_CACHE_LEASE_MS;
	return KC_CACHE_MINE;
}

bool
kc_cache_table_prolong(KcCacheTable *table, const KcCacheKey *key, KcCacheKind kind, uint64_t lease,
					   int64_t now_ms)
{
	Slot	   *slot = find_slot(table, key);

	if (slot == NULL || slot->entries[kind].lease != lease)
		return false;
	slot->entries[kind].lease_ends_ms = now_ms + KC_CACHE_LEASE_MS;
	return true;
}

uint64_t
kc_cache_table_put(KcCacheTable *table, const KcCacheKey *key, KcCacheKind kind,
				   const KcCacheValue *value, uint64_t lease, int64_t now_ms)
{
	Slot	   *slot;
	Entry	   *entry;
	size_t		size;
	char	   *data;

	drop_expired(table, now_ms);
	slot = slot_for(table, key, now_ms);
	entry = &slot->entries[kind];
	data = room(slot, kind, &size);
	/* Somebody's later fetch has ended earlier: its value is the newer one. */
	if (lease != 0 && entry->lease != lease && entry->newest > lease)
		return 0;
	if (entry->lease == lease)
		entry->lease = 0;
	entry->failed_ms = 0;
	drop_value(slot, kind);
	entry->too_large = value->len > size;
	if (entry->too_large)
	{
		/* Whoever waits for it waits in vain. */
		entry->failed_ms = now_ms;
		return 0;
	}
	if (value->len > 0)
		memcpy(data, value->data, value->len);
	entry->len = value->len;
	entry->expires_ms = value->expires_ms;
	entry->refresh_ms = value->refresh_ms;
	entry->version = entry->newest = ++table->last_number;
	return entry->version;
}

void
kc_cache_table_release(KcCacheTable *table, const KcCacheKey *key, KcCacheKind kind, uint64_t lease,
					   bool failed, int64_t now_ms)
{
	Slot	   *slot = find_slot(table, key);

	if (slot == NULL || slot->entries[kind].lease != lease)
		return;
	slot->entries[kind].lease = 0;
	if (failed)
		slot->entries[kind].failed_ms = now_ms;
}
