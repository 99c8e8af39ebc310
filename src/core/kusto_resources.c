/*
 * kusto_resources.c
 *	  The ingestion service's storage: containers, queues, status tables, and
 *	  the identity token that goes into messages.
 *
 * Both commands run at once; the new set takes the old one's place only when
 * both have succeeded, so that there is never half a set.  When one fails, the
 * old set serves on while its signatures last, even if something of it was
 * rejected: an account behind a firewall is no reason to drop the others.  A
 * set lives an hour less some jitter, so that many servers do not ask in step;
 * out of turn it is fetched once a minute at most, since the service throttles.
 *
 * Where there is a cache, a set is fetched once for all processes that share it,
 * and the rest of this holds for them together; which accounts serve well, each
 * finds out by itself.
 *
 * Accounts take turns, the ones that served well lately first; within an
 * account its resources take turns.
 *
 * Public source: learn.microsoft.com/kusto/api/netfx/kusto-ingest-client-rest
 */
#include <string.h>

#include "kusto_internal.h"
#include "kusto_resources.h"

#define LIFE_MS				(60 * 60 * 1000)
#define LIFE_JITTER_MS		(10 * 60 * 1000)
#define RETRY_AFTER_FAILURE_MS (60 * 1000)
#define REJECT_INTERVAL_MS	(60 * 1000)
#define MAX_ANSWER			(4 * 1024 * 1024)
/* While the old set serves and another process fetches the new one. */
#define RECHECK_MS			1000
/* Signatures without a known end are not left lying about for longer. */
#define MAX_SHARED_MS		(24 * 60 * 60 * 1000)

typedef struct Account
{
	char	   *name;
	KcRank		rank;
	uint64_t	last_pick;
	struct Account *next;
} Account;

struct KcResources
{
	KcClient   *client;
	KcCacheUser share;
	KcResourceSet set;
	uint64_t	generation;		/* 0: never had one */
	bool		rejected;		/* the next set is to be waited for */
	int64_t		next_reject_ms;	/* before that nobody's rejection counts */
	int64_t		refresh_ms;
	Account    *accounts;		/* of this and of earlier sets; index from the head */
	int			naccounts;
	uint64_t	picks;
	/* the fetch that is under way */
	KcRequestTask *list_task;
	KcRequestTask *token_task;
	KcError		failure;		/* of the one that answered last */
	KcResourceSet fetched;
	KcWaiterList waiters;
};

/* ---- accounts ---- */

static Account *
account_at(const KcResources *resources, int index)
{
	Account    *account = resources->accounts;

	while (index-- > 0)
		account = account->next;
	return account;
}

/* New ones go to the end, so that an index stays what it is. */
static int
account_index(KcResources *resources, KcSlice name)
{
	const KcAlloc *alloc = resources->client->alloc;
	Account   **link = &resources->accounts;
	int			index = 0;
	Account    *account;

	for (; *link != NULL; link = &(*link)->next, index++)
	{
		if (kc_slice_ieq(kc_slice((*link)->name), name))
			return index;
	}
	account = kc_alloc0(alloc, sizeof(Account));
	if (account == NULL)
		return -1;
	account->name = kc_strdup(alloc, name);
	if (account->name == NULL)
	{
		kc_free(alloc, account);
		return -1;
	}
	*link = account;
	resources->naccounts++;
	return index;
}

/* ---- taking a fetched set ---- */

/*
 * The turns of a new set begin anywhere, else every process would begin with
 * the same account.
 */
static KcStatus
bind_accounts(KcResources *resources, KcResourceSet *set, KcError *err)
{
	const KcClock *clock = kc_mux_clock(resources->client->mux);

	for (int kind = 0; kind < KC_RESOURCE_KINDS; kind++)
	{
		for (KcResource *r = set->first[kind]; r != NULL; r = r->next)
		{
			KcUrl		url;
			KcStatus	status = kc_url_parse(kc_slice(r->url), &url, err);

			if (status != KC_OK)
				return status;
			r->account = account_index(resources, kc_resource_account(&url));
			if (r->account < 0)
				return kc_error_nomem(err, "reading ingestion resources");
			r->last_pick = clock->random(clock->arg) % 1024;
		}
	}
	return KC_OK;
}

static void
take_set(KcResources *resources, int64_t refresh_ms)
{
	kc_resource_set_free(resources->client->alloc, &resources->set);
	resources->set = resources->fetched;
	memset(&resources->fetched, 0, sizeof(resources->fetched));
	resources->generation++;
	resources->picks += 1024;	/* beyond the random beginnings */
	resources->refresh_ms = refresh_ms;
	resources->rejected = false;
}

/* What has just been taken is for the others, too. */
static void
share_set(KcResources *resources)
{
	KcClient   *client = resources->client;
	int64_t		life_ms = MAX_SHARED_MS;
	int64_t		end_us = kc_resource_set_end(&resources->set);
	KcCacheValue value;
	KcBuf		bytes;

	if (end_us != INT64_MAX && (end_us - kc_client_unix_us(client)) / 1000 < life_ms)
		life_ms = (end_us - kc_client_unix_us(client)) / 1000;
	kc_buf_init(&bytes, client->alloc, KC_BUF_UNLIMITED);
	kc_resource_set_pack(&resources->set, &bytes);
	memset(&value, 0, sizeof(value));
	value.expires_ms = kc_client_now_ms(client) + life_ms;
	value.refresh_ms = resources->refresh_ms;
	value.len = bytes.len;
	value.data = bytes.data;
	if (bytes.failed == KC_OK)
		kc_cache_share(&resources->share, &value);
	else
		kc_cache_give_up(&resources->share, true);
	kc_buf_free_secret(&bytes);
}

static bool
set_usable(const KcResources *resources)
{
	return resources->generation > 0
		&& kc_resource_set_usable(&resources->set, kc_client_unix_us(resources->client));
}

static void
abandon_fetch(KcResources *resources)
{
	if (resources->list_task != NULL)
		kc_task_free(&resources->list_task->task);
	if (resources->token_task != NULL)
		kc_task_free(&resources->token_task->task);
	resources->list_task = resources->token_task = NULL;
	kc_resource_set_free(resources->client->alloc, &resources->fetched);
}

/* Both have answered, or one has failed. */
static void
conclude(KcResources *resources)
{
	const KcClock *clock = kc_mux_clock(resources->client->mux);
	KcError		failure;

	resources->rejected = false;
	if (resources->failure.status == KC_OK
		&& bind_accounts(resources, &resources->fetched, &resources->failure) == KC_OK)
	{
		take_set(resources, kc_client_now_ms(resources->client) + LIFE_MS
				 - (int64_t) (clock->random(clock->arg) % LIFE_JITTER_MS));
		share_set(resources);
		kc_waiter_wake(&resources->waiters, NULL);
		return;
	}
	abandon_fetch(resources);	/* half a set is none: do not wait for the other half */
	kc_cache_give_up(&resources->share, true);
	failure = resources->failure;
	if (set_usable(resources))
	{
		resources->refresh_ms = kc_client_now_ms(resources->client) + RETRY_AFTER_FAILURE_MS;
		kc_waiter_wake(&resources->waiters, NULL);
		return;
	}
	kc_waiter_wake(&resources->waiters, &failure);
}

static void
on_list(KcTask *task)
{
	KcResources *resources = task->arg;
	KcClient   *client = resources->client;
	KcError		err = task->error;

	if (err.status == KC_OK)
		(void) kc_resource_set_read(client->alloc, resources->list_task->result, client->loopback,
									kc_client_unix_us(client), &resources->fetched, &err);
	resources->list_task = NULL;
	kc_task_free(task);
	resources->failure = err;
	if (err.status != KC_OK || resources->token_task == NULL)
		conclude(resources);
}

static void
on_identity_token(KcTask *task)
{
	KcResources *resources = task->arg;
	KcError		err = task->error;

	if (err.status == KC_OK)
		(void) kc_resource_set_read_token(resources->client->alloc, resources->token_task->result,
										  &resources->fetched, &err);
	resources->token_task = NULL;
	kc_task_free(task);
	resources->failure = err;
	if (err.status != KC_OK || resources->list_task == NULL)
		conclude(resources);
}

/* ---- fetching ---- */

static KcStatus
fetch(KcResources *resources, KcError *err)
{
	KcClient   *client = resources->client;
	KcStatus	status;

	status = kc_kusto_request_start(client, KC_ENDPOINT_INGEST_MGMT, KC_SLICE_NULL,
									kc_slice(".get ingestion resources"), false, MAX_ANSWER,
									&resources->list_task, err);
	if (status != KC_OK)
		return status;
	status = kc_kusto_request_start(client, KC_ENDPOINT_INGEST_MGMT, KC_SLICE_NULL,
									kc_slice(".get kusto identity token"), false, MAX_ANSWER,
									&resources->token_task, err);
	if (status != KC_OK)
	{
		kc_task_free(&resources->list_task->task);
		resources->list_task = NULL;
		return status;
	}
	resources->list_task->task.on_done = on_list;
	resources->list_task->task.arg = resources;
	resources->token_task->task.on_done = on_identity_token;
	resources->token_task->task.arg = resources;
	return KC_OK;
}

static bool
is_fetching(const KcResources *resources)
{
	return resources->list_task != NULL || resources->token_task != NULL;
}

bool
kc_resources_ready(const KcResources *resources)
{
	return set_usable(resources) && !resources->rejected
		&& (kc_client_now_ms(resources->client) < resources->refresh_ms || is_fetching(resources));
}

/* A set that another process has fetched; anything but KC_ERR_NOMEM says that it is none. */
static KcStatus
take_shared(KcResources *resources, const KcCacheValue *value, KcError *err)
{
	const KcAlloc *alloc = resources->client->alloc;
	KcStatus	status;

	status = kc_resource_set_unpack(alloc, kc_slice_n(value->data, value->len), &resources->fetched);
	if (status == KC_ERR_NOMEM)
		(void) kc_error_nomem(err, "reading ingestion resources");
	if (status == KC_OK)
		status = bind_accounts(resources, &resources->fetched, err);
	kc_cache_taken(&resources->share, value, status == KC_OK);
	if (status == KC_OK)
		take_set(resources, value->refresh_ms);
	else
	{
		kc_cache_leave(&resources->share);
		kc_resource_set_free(alloc, &resources->fetched);
	}
	return status;
}

/* Take the set that others have got, wait for it, or fetch it. */
static KcStatus
begin(KcResources *resources, KcError *err)
{
	bool		usable = set_usable(resources);
	KcCacheValue value;
	KcStatus	status;

	switch (kc_cache_turn(&resources->share, resources->rejected, usable && !resources->rejected,
						  &value))
	{
		case KC_CACHE_FOUND:
			status = take_shared(resources, &value, err);
			if (status == KC_OK || status == KC_ERR_NOMEM)
				return status;
			break;
		case KC_CACHE_OTHERS:
			if (usable && !resources->rejected)
				resources->refresh_ms = kc_client_now_ms(resources->client) + RECHECK_MS;
			return KC_OK;
		case KC_CACHE_MINE:
		case KC_CACHE_ALONE:
			break;
	}
	status = fetch(resources, err);
	if (status != KC_OK)
		kc_cache_give_up(&resources->share, true);
	return status;
}

/* It is time to ask the cache again, or what it gave can be told. */
static void
on_turn(KcTimer *timer)
{
	KcResources *resources = timer->arg;
	KcError		err;

	if (kc_resources_ready(resources))
		kc_waiter_wake(&resources->waiters, NULL);
	else if (begin(resources, &err) != KC_OK)
		kc_waiter_wake(&resources->waiters, &err);
}

KcStatus
kc_resources_wait(KcResources *resources, KcWaiter *waiter, KcError *err)
{
	if (!is_fetching(resources) && !kc_cache_is_waiting(&resources->share))
	{
		KcStatus	status = begin(resources, err);

		if (status != KC_OK)
			return status;
	}
	kc_waiter_add(&resources->waiters, waiter);
	return KC_OK;
}

void
kc_resources_cancel(KcResources *resources, KcWaiter *waiter)
{
	/* As kc_auth_cancel(): nobody inherits a request that hangs. */
	if (!kc_waiter_cancel(&resources->waiters, waiter))
		return;
	kc_cache_leave(&resources->share);
	abandon_fetch(resources);
}

bool
kc_resources_reject(KcResources *resources, uint64_t generation)
{
	int64_t		now_ms = kc_client_now_ms(resources->client);

	if (resources->generation != generation)
		return true;
	if (now_ms < resources->refresh_ms && now_ms < resources->next_reject_ms)
		return false;
	resources->next_reject_ms = now_ms + REJECT_INTERVAL_MS;
	if (resources->refresh_ms > now_ms)
		resources->refresh_ms = now_ms;
	resources->rejected = true;
	return true;
}

uint64_t
kc_resources_generation(const KcResources *resources)
{
	return resources->generation;
}

/* ---- choosing ---- */

static bool
was_tried(const KcTried *tried, const KcResource *resource)
{
	for (int i = 0; tried != NULL && i < tried->n; i++)
	{
		if (kc_slice_eq(tried->urls[i], kc_slice(resource->url)))
			return true;
	}
	return false;
}

/* Has the attempt met this account already, under another of its resources? */
static bool
account_was_tried(const KcResources *resources, KcResourceKind kind, const KcTried *tried, int account)
{
	for (const KcResource *r = resources->set.first[kind]; r != NULL; r = r->next)
	{
		if (r->account == account && was_tried(tried, r))
			return true;
	}
	return false;
}

/*
 * Smaller is better: accounts that the attempt has not met, then accounts by
 * tier, then turns of the account, then turns of the resource.
 */
typedef struct Preference
{
	bool		account_tried;
	int			tier;
	uint64_t	account_pick;
	uint64_t	pick;
} Preference;

static bool
preferred(const Preference *a, const Preference *b)
{
	if (a->account_tried != b->account_tried)
		return b->account_tried;
	if (a->tier != b->tier)
		return a->tier < b->tier;
	if (a->account_pick != b->account_pick)
		return a->account_pick < b->account_pick;
	return a->pick < b->pick;
}

KcResource *
kc_resources_pick(KcResources *resources, KcResourceKind kind, const KcTried *tried)
{
	int64_t		now_ms = kc_client_now_ms(resources->client);
	int64_t		now_us = kc_client_unix_us(resources->client);
	KcResource *best = NULL;
	Preference	best_preference = {0};

	for (KcResource *r = resources->set.first[kind]; r != NULL; r = r->next)
	{
		Account    *account = account_at(resources, r->account);
		Preference	preference;

		if (was_tried(tried, r) || !kc_resource_lasts(r, now_us))
			continue;
		preference.account_tried = account_was_tried(resources, kind, tried, r->account);
		preference.tier = kc_rank_tier(kc_rank_value(&account->rank, now_ms));
		preference.account_pick = account->last_pick;
		preference.pick = r->last_pick;
		if (best == NULL || preferred(&preference, &best_preference))
		{
			best = r;
			best_preference = preference;
		}
	}
	if (best != NULL)
	{
		best->last_pick = ++resources->picks;
		account_at(resources, best->account)->last_pick = resources->picks;
	}
	return best;
}

KcResource *
kc_resources_find(KcResources *resources, KcResourceKind kind, KcSlice url)
{
	for (KcResource *r = resources->set.first[kind]; r != NULL; r = r->next)
	{
		KcSlice		own = kc_slice(r->url);

		if (kc_slice_starts(url, own) && (url.len == own.len || url.data[own.len] == '/'))
			return r;
	}
	return NULL;
}

KcResource *
kc_resources_nth(KcResources *resources, KcResourceKind kind, int n)
{
	KcResource *resource = resources->set.first[kind];

	while (resource != NULL && n-- > 0)
		resource = resource->next;
	return resource;
}

void
kc_resources_report(KcResources *resources, KcSlice url, bool success)
{
	KcUrl		parsed;
	KcError		ignored;
	KcSlice		name;

	if (kc_url_parse(url, &parsed, &ignored) != KC_OK)
		return;
	name = kc_resource_account(&parsed);
	for (Account *account = resources->accounts; account != NULL; account = account->next)
	{
		if (kc_slice_ieq(kc_slice(account->name), name))
			kc_rank_report(&account->rank, kc_client_now_ms(resources->client), success);
	}
}

int
kc_resources_count(const KcResources *resources, KcResourceKind kind)
{
	int			n = 0;

	for (const KcResource *r = resources->set.first[kind]; r != NULL; r = r->next)
		n++;
	return n;
}

int
kc_resources_naccounts(const KcResources *resources)
{
	return resources->naccounts;
}

size_t
kc_resources_longest_sas(const KcResources *resources, KcResourceKind kind)
{
	size_t		longest = 0;

	for (const KcResource *r = resources->set.first[kind]; r != NULL; r = r->next)
	{
		if (strlen(r->sas) > longest)
			longest = strlen(r->sas);
	}
	return longest;
}

KcSlice
kc_resources_identity_token(const KcResources *resources)
{
	return kc_slice(resources->set.identity_token);
}

/* ---- making and ending ---- */

KcStatus
kc_resources_create(KcClient *client, KcResources **result, KcError *err)
{
	KcResources *resources = kc_alloc0(client->alloc, sizeof(KcResources));

	*result = resources;
	if (resources == NULL)
		return kc_error_nomem(err, "preparing a Kusto client");
	resources->client = client;
	resources->share.timer.fire = on_turn;
	resources->share.timer.arg = resources;
	kc_cache_join(&resources->share, client->config.cache, &client->cache_key, KC_CACHE_RESOURCES,
				  client->mux);
	return KC_OK;
}

void
kc_resources_free(KcResources *resources)
{
	const KcAlloc *alloc;

	if (resources == NULL)
		return;
	alloc = resources->client->alloc;
	kc_cache_leave(&resources->share);
	abandon_fetch(resources);
	kc_resource_set_free(alloc, &resources->set);
	while (resources->accounts != NULL)
	{
		Account    *account = resources->accounts;

		resources->accounts = account->next;
		kc_free(alloc, account->name);
		kc_free(alloc, account);
	}
	kc_free(alloc, resources);
}
