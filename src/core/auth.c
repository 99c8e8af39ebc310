/*
 * auth.c
 *	  The cached access token of a client: when it is fetched, who waits.
 *
 *		wait -> whose turn? -> cloud metadata known? -> token request -> token -> wake
 *				 |	 ^
 *				 +---+--- another process is fetching it, or has
 */
#include <string.h>

#include "auth.h"

#define RETRY_AFTER_FAILURE_MS 30000
/* Of the single try that renews a token while the old one lasts. */
#define RENEWAL_TIMEOUT_MS	10000
/* While the old token serves and another process fetches the new one. */
#define RECHECK_MS			1000
/* How long it is passed on that the service asks for no token. */
#define NO_AUTH_LIFE_S		3600

static const char doing_token[] = "getting an access token";

struct KcAuth
{
	const KcAlloc *alloc;
	KcMux	   *mux;
	KcAuthConfig config;
	KcCloud    *cloud;
	KcCacheUser share;
	KcWaiter	cloud_waiter;
	KcTokenRequest request;		/* of http */
	KcHttp	   *http;
	KcWaiterList waiters;
	char	   *token;			/* secret; "" when the service asks for none */
	uint64_t	generation;		/* 0: never had one */
	bool		rejected;
	int64_t		expires_ms;		/* monotonic */
	int64_t		refresh_ms;
};

static int64_t
now_ms(const KcAuth *auth)
{
	const KcClock *clock = kc_mux_clock(auth->mux);

	return clock->monotonic_ms(clock->arg);
}

static bool
token_lasts(const KcAuth *auth)
{
	return auth->token != NULL && !auth->rejected && now_ms(auth) < auth->expires_ms;
}

/*
 * Wake everybody with the outcome.  While the old token lasts, a failure to
 * get a new one is nobody's problem; ask again in half a minute.
 */
static void
finish(KcAuth *auth, const KcError *err)
{
	kc_cache_give_up(&auth->share, err != NULL);
	if (err != NULL && token_lasts(auth))
	{
		auth->refresh_ms = now_ms(auth) + RETRY_AFTER_FAILURE_MS;
		err = NULL;
	}
	kc_waiter_wake(&auth->waiters, err);
}

static void
set_token(KcAuth *auth, char *token, int64_t expires_ms, int64_t refresh_ms)
{
	/* Who needs none needs none as long as he lives, lest he fail for asking again. */
	bool		none = token[0] == '\0';

	kc_free_secret(auth->alloc, auth->token);
	auth->token = token;
	auth->generation++;
	auth->rejected = false;
	auth->expires_ms = none ? INT64_MAX : expires_ms;
	auth->refresh_ms = none ? INT64_MAX : refresh_ms;
}

/* One that the service gave this moment. */
static void
take_fetched(KcAuth *auth, char *token, int64_t lifetime_s, int64_t refresh_s)
{
	KcCacheValue value = {
		.expires_ms = now_ms(auth) + lifetime_s * 1000,
		.refresh_ms = now_ms(auth) + refresh_s * 1000,
		.len = strlen(token),
		.data = token
	};

	set_token(auth, token, value.expires_ms, value.refresh_ms);
	kc_cache_share(&auth->share, &value);
}

static void
on_token(KcHttp *http)
{
	KcAuth	   *auth = http->arg;
	const KcClock *clock = kc_mux_clock(auth->mux);
	KcTokenAnswer answer;
	KcError		err = http->error;
	KcStatus	status = err.status;

	if (status == KC_OK)
	{
		status = kc_token_answer_parse(auth->alloc, kc_buf_view(&http->response.body),
									   clock->unix_us(clock->arg), &answer, &err);
		if (status == KC_OK)
			take_fetched(auth, answer.token, answer.lifetime_s, answer.refresh_s);
	}
	else if (auth->config.method == KC_AUTH_MANAGED_IDENTITY && err.http_status == 0)
		err.advice = KC_ADVICE_CHECK_IDENTITY;
	kc_error_scrub(&err, kc_buf_view(&auth->request.secret));
	kc_http_free(http);
	auth->http = NULL;
	kc_token_request_free(&auth->request);
	finish(auth, status == KC_OK ? NULL : &err);
}

static KcStatus
request_token(KcAuth *auth, const KcCloudInfo *cloud, KcError *err)
{
	KcStatus	status;

	status = kc_token_request_build(auth->alloc, &auth->config, cloud, &auth->request, err);
	if (status != KC_OK)
		return status;
	if (token_lasts(auth))
	{
		auth->request.policy.max_attempts = 1;
		if (auth->request.http.timeout_ms > RENEWAL_TIMEOUT_MS)
			auth->request.http.timeout_ms = RENEWAL_TIMEOUT_MS;
	}
	status = kc_http_start(auth->mux, auth->alloc, auth->config.http, &auth->request.http,
						   &auth->http, err);
	if (status != KC_OK)
	{
		kc_token_request_free(&auth->request);
		return status;
	}
	auth->http->on_done = on_token;
	auth->http->arg = auth;
	return KC_OK;
}

static KcStatus
accept_no_auth(KcAuth *auth, KcError *err)
{
	char	   *empty = kc_strdup(auth->alloc, kc_slice(""));

	if (empty == NULL)
		return kc_error_nomem(err, doing_token);
	take_fetched(auth, empty, NO_AUTH_LIFE_S, NO_AUTH_LIFE_S);
	return KC_OK;
}

static void
on_cloud(KcWaiter *waiter, const KcError *err)
{
	KcAuth	   *auth = waiter->arg;
	const KcCloudInfo *cloud = kc_cloud_info(auth->cloud);
	KcError		own;

	if (err != NULL || cloud == NULL)
	{
		finish(auth, err);
		return;
	}
	if (cloud->no_auth)
	{
		if (accept_no_auth(auth, &own) == KC_OK)
			finish(auth, NULL);
		else
			finish(auth, &own);
		return;
	}
	if (request_token(auth, cloud, &own) != KC_OK)
		finish(auth, &own);
}

bool
kc_auth_token(const KcAuth *auth, KcToken *token)
{
	if (!token_lasts(auth) || (now_ms(auth) >= auth->refresh_ms && auth->http == NULL))
		return false;
	token->text = kc_slice(auth->token);
	token->generation = auth->generation;
	return true;
}

static KcStatus
fetch(KcAuth *auth, KcError *err)
{
	const KcCloudInfo *cloud = kc_cloud_info(auth->cloud);
	KcStatus	status;

	if (cloud == NULL || cloud->no_auth)
		status = kc_cloud_wait(auth->cloud, &auth->cloud_waiter, err);
	else
		status = request_token(auth, cloud, err);
	if (status != KC_OK)
		kc_cache_give_up(&auth->share, true);
	return status;
}

/* Take the token that others have got, wait for it, or fetch it. */
static KcStatus
begin(KcAuth *auth, KcError *err)
{
	KcCacheValue value;
	char	   *token;

	switch (kc_cache_turn(&auth->share, auth->rejected, token_lasts(auth), &value))
	{
		case KC_CACHE_FOUND:
			token = kc_strdup(auth->alloc, kc_slice_n(value.data, value.len));
			kc_cache_taken(&auth->share, &value, token != NULL);
			if (token == NULL)
			{
				kc_cache_leave(&auth->share);
				return kc_error_nomem(err, doing_token);
			}
			set_token(auth, token, value.expires_ms, value.refresh_ms);
			return KC_OK;
		case KC_CACHE_OTHERS:
			if (token_lasts(auth))
				auth->refresh_ms = now_ms(auth) + RECHECK_MS;
			return KC_OK;
		case KC_CACHE_MINE:
		case KC_CACHE_ALONE:
			break;
	}
	return fetch(auth, err);
}

/* It is time to ask the cache again, or what it gave can be told. */
static void
on_turn(KcTimer *timer)
{
	KcAuth	   *auth = timer->arg;
	KcError		err;

	if (token_lasts(auth) && now_ms(auth) < auth->refresh_ms)
		finish(auth, NULL);
	else if (begin(auth, &err) != KC_OK)
		finish(auth, &err);
}

KcStatus
kc_auth_wait(KcAuth *auth, KcWaiter *waiter, KcError *err)
{
	KcStatus	status = KC_OK;

	if (auth->http == NULL && !auth->cloud_waiter.waiting && !kc_cache_is_waiting(&auth->share))
		status = begin(auth, err);
	if (status == KC_OK)
		kc_waiter_add(&auth->waiters, waiter);
	return status;
}

/*
 * A request that nobody waits for any more ends here: whoever comes next must
 * not inherit one that hangs, which may be why the last one went away.
 */
void
kc_auth_cancel(KcAuth *auth, KcWaiter *waiter)
{
	if (!kc_waiter_cancel(&auth->waiters, waiter))
		return;
	kc_cache_leave(&auth->share);
	kc_cloud_cancel(auth->cloud, &auth->cloud_waiter);
	if (auth->http == NULL)
		return;
	kc_http_free(auth->http);
	auth->http = NULL;
	kc_token_request_free(&auth->request);
}

bool
kc_auth_reject(KcAuth *auth, uint64_t generation)
{
	if (auth->config.method == KC_AUTH_NONE || auth->config.method == KC_AUTH_ACCESS_TOKEN
		|| (auth->token != NULL && auth->token[0] == '\0'))
		return false;
	if (auth->generation == generation)
		auth->rejected = true;
	return true;
}

int64_t
kc_auth_token_life_ms(const KcAuth *auth)
{
	if (auth->token == NULL || auth->expires_ms == INT64_MAX)
		return -1;
	return auth->expires_ms - now_ms(auth);
}

/* ---- what a token tells of its owner ---- */

/*
 * The payload of a JSON Web Token (RFC 7519 section 3), which is base64url
 * without padding (RFC 7515 section 2).  Only for showing: nothing is verified
 * and nothing is decided by it.
 */
static bool
decode_payload(KcSlice token, KcBuf *payload)
{
	const char *first = memchr(token.data, '.', token.len);
	const char *last;
	KcBuf		base64;
	bool		ok;

	if (first == NULL)
		return false;
	first++;
	last = memchr(first, '.', token.len - (size_t) (first - token.data));
	if (last == NULL)
		return false;
	kc_buf_init(&base64, payload->alloc, payload->max);
	for (const char *c = first; c < last; c++)
		kc_buf_char(&base64, *c == '-' ? '+' : *c == '_' ? '/' : *c);
	while (base64.failed == KC_OK && base64.len % 4 != 0)
		kc_buf_char(&base64, '=');
	ok = base64.failed == KC_OK && kc_text_base64_decode(payload, kc_buf_view(&base64));
	kc_buf_free_secret(&base64);
	return ok;
}

void
kc_auth_principal(const KcAuth *auth, char *text, size_t size)
{
	char	   *appid = NULL;
	char	   *azp = NULL;
	char	   *upn = NULL;
	char	   *tid = NULL;
	const char *app;
	KcBuf		payload;
	KcBuf		out;
	KcJsonValue top;
	KcError		ignored;
	const KcJsonField fields[] = {
		{.name = "appid",.want = KC_WANT_STRING,.target = &appid},
		{.name = "azp",.want = KC_WANT_STRING,.target = &azp},
		{.name = "upn",.want = KC_WANT_STRING,.target = &upn},
		{.name = "tid",.want = KC_WANT_STRING,.target = &tid},
	};

	text[0] = '\0';
	if (auth->token == NULL)
		return;
	kc_buf_init(&payload, auth->alloc, 64 * 1024);
	kc_buf_init(&out, auth->alloc, 4096);
	if (decode_payload(kc_slice(auth->token), &payload)
		&& kc_json_check(kc_buf_view(&payload), 32, &top, doing_token, &ignored) == KC_OK
		&& kc_json_read_object(top, fields, 4, auth->alloc, doing_token, &ignored) == KC_OK
		&& tid != NULL)
	{
		app = appid != NULL ? appid : azp;
		if (upn != NULL)
			kc_buf_printf(&out, "aaduser=%s;%s", upn, tid);
		else if (app != NULL)
			kc_buf_printf(&out, "aadapp=%s;%s", app, tid);
		kc_error_text(text, size, kc_buf_view(&out));
	}
	kc_free(auth->alloc, appid);
	kc_free(auth->alloc, azp);
	kc_free(auth->alloc, upn);
	kc_free(auth->alloc, tid);
	kc_buf_free_secret(&payload);
	kc_buf_free(&out);
}

/* ---- making and ending ---- */

static KcStatus
check_config(const KcAuthConfig *config, KcError *err)
{
	const char *missing = NULL;

	if (config->method == KC_AUTH_CLIENT_SECRET)
	{
		if (config->tenant == NULL || config->tenant[0] == '\0')
			missing = "tenant";
		else if (config->client_id == NULL || config->client_id[0] == '\0')
			missing = "client_id";
		else if (config->client_secret == NULL || config->client_secret[0] == '\0')
			missing = "client_secret";
	}
	else if (config->method == KC_AUTH_ACCESS_TOKEN
			 && (config->access_token == NULL || config->access_token[0] == '\0'))
		missing = "access_token";
	if (missing == NULL)
		return KC_OK;
	return kc_error_set(err, KC_ERR_INVALID, doing_token, "\"%s\" is missing", missing);
}

KcStatus
kc_auth_create(const KcAlloc *alloc, KcMux *mux, const KcAuthConfig *config, KcCloud *cloud,
			   KcAuth **result, KcError *err)
{
	KcAuth	   *auth;
	KcStatus	status;
	char	   *fixed = NULL;

	*result = NULL;
	status = check_config(config, err);
	if (status != KC_OK)
		return status;
	auth = kc_alloc0(alloc, sizeof(KcAuth));
	if (auth == NULL)
		return kc_error_nomem(err, doing_token);
	auth->alloc = alloc;
	auth->mux = mux;
	auth->config = *config;
	auth->cloud = cloud;
	auth->cloud_waiter.ready = on_cloud;
	auth->cloud_waiter.arg = auth;
	auth->share.timer.fire = on_turn;
	auth->share.timer.arg = auth;
	kc_cache_join(&auth->share, config->cache, config->cache_key, KC_CACHE_TOKEN, mux);
	if (config->method == KC_AUTH_NONE || config->method == KC_AUTH_ACCESS_TOKEN)
	{
		fixed = kc_strdup(alloc, kc_slice(config->method == KC_AUTH_NONE ? "" : config->access_token));
		if (fixed == NULL)
		{
			kc_free(alloc, auth);
			return kc_error_nomem(err, doing_token);
		}
		set_token(auth, fixed, INT64_MAX, INT64_MAX);
	}
	*result = auth;
	return KC_OK;
}

void
kc_auth_free(KcAuth *auth)
{
	if (auth == NULL)
		return;
	kc_cache_leave(&auth->share);
	if (auth->http != NULL)
	{
		kc_http_free(auth->http);
		kc_token_request_free(&auth->request);
	}
	kc_cloud_cancel(auth->cloud, &auth->cloud_waiter);
	kc_free_secret(auth->alloc, auth->token);
	kc_free(auth->alloc, auth);
}
