/*
 * http.c
 *	  A request from start to its final outcome: which URLs may be asked, and
 *	  when a failed try is repeated.
 */
#include <string.h>

#include "http_internal.h"

/* Tries that failed for our own slowness; beyond that it may be something else. */
#define MAX_FORGIVEN 10

static const KcRetryPolicy one_try = {.max_attempts = 1};

static void on_transfer_complete(KcTransfer *transfer, CURLcode code);

/*
 * https, or http where the request cannot leave this machine.
 * 169.254.0.0/16 is link-local (RFC 3927 section 2.1): the instance metadata
 * service of a virtual machine, or an identity sidecar.
 */
static KcStatus
check_url(HttpCall *call, KcError *err)
{
	const KcHttpRequest *request = &call->request;
	KcUrl	   *url = &call->url_parts;
	KcStatus	status;

	status = kc_url_parse(kc_slice(call->url), url, err);
	if (status != KC_OK)
	{
		if (err != NULL)
			err->doing = request->doing;
		return status;
	}
	if (kc_url_is_https(url) || kc_host_is_loopback(url->host))
		return KC_OK;
	if ((request->flags & KC_HTTP_HOST_IDENTITY) != 0
		&& kc_slice_starts(url->host, kc_slice("169.254.")) && kc_host_is_ip(url->host))
		return KC_OK;
	kc_error_set(err, KC_ERR_INVALID, request->doing, "\"http\" is refused for host \"%.*s\", use \"https\"",
				 (int) (url->host.len > 200 ? 200 : url->host.len), url->host.data);
	if (err != NULL)
		err->permanent = true;
	return KC_ERR_INVALID;
}

static void
finish(HttpCall *call, const KcError *err)
{
	call->http.error = *err;
	call->http.done = true;
	if (call->http.on_done != NULL)
		call->http.on_done(&call->http);
}

/*
 * Begin a try; a failure to begin is the outcome.
 */
static void
begin_try(HttpCall *call)
{
	KcError		err;

	call->http.tries++;
	if (kc_http_transfer_start(call, &err) == KC_OK)
		return;
	kc_http_transfer_end(call);
	err.doing = call->request.doing;
	finish(call, &err);
}

static void
on_timer(KcTimer *timer)
{
	begin_try(timer->arg);
}

/*
 * May the failed try be repeated, as far as its effect goes?
 */
static bool
repeatable(const HttpCall *call, const KcError *err)
{
	return (call->request.flags & KC_HTTP_ONCE) == 0 || !err->after_send;
}

/*
 * Time in which nobody drove the mux is no time of ours.
 */
static void
forgive_lateness(HttpCall *call)
{
	int64_t		late_ms = kc_mux_late_ms(call->mux);

	call->retry.started_ms += late_ms - call->late_seen_ms;
	call->late_seen_ms = late_ms;
}

static void
on_transfer_complete(KcTransfer *transfer, CURLcode code)
{
	HttpCall   *call = transfer->arg;
	KcMux	   *mux = call->mux;
	KcError		err;
	bool		died_on_reuse;
	int64_t		wait_ms;

	died_on_reuse = kc_http_died_on_reuse(call, code);
	kc_http_judge(call, code, &err);
	kc_http_transfer_end(call);
	if (err.after_send)
		call->http.maybe_done = true;
	if (err.status == KC_OK || !repeatable(call, &err))
	{
		finish(call, &err);
		return;
	}

	/*
	 * While our process was busy elsewhere the transfer ran into a timeout or
	 * the peer lost patience: begin again, it was not given its chance.
	 */
	if (kc_mux_is_late(mux) && err.http_status == 0 && kc_retry_transient(&err)
		&& (err.status == KC_ERR_TIMEOUT || err.after_send) && call->forgiven < MAX_FORGIVEN)
	{
		call->forgiven++;
		begin_try(call);
		return;
	}

	/*
	 * A load balancer forgets idle connections; finding that out is not a
	 * failure of the service (RFC 9112 section 9.3.1).
	 */
	if (died_on_reuse && !call->reconnected)
	{
		call->reconnected = true;
		call->fresh_connection = true;
		begin_try(call);
		return;
	}
	if (call->request.heals != NULL && call->request.heals(err.http_status))
	{
		err.status = KC_ERR_SERVICE;
		err.permanent = false;
	}
	forgive_lateness(call);
	if (!kc_retry_transient(&err) || !kc_retry_again(&call->retry, &err, &wait_ms))
	{
		finish(call, &err);
		return;
	}
	kc_mux_timer_set(mux, &call->timer,
					 kc_mux_clock(mux)->monotonic_ms(kc_mux_clock(mux)->arg) + wait_ms);
}

KcStatus
kc_http_start(KcMux *mux, const KcAlloc *alloc, const KcHttpConfig *config,
			  const KcHttpRequest *request, KcHttp **http, KcError *err)
{
	HttpCall   *call;
	KcStatus	status;

	*http = NULL;
	call = kc_alloc0(alloc, sizeof(HttpCall));
	if (call == NULL)
		return kc_error_nomem(err, request->doing);
	call->alloc = alloc;
	call->mux = mux;
	call->config = config;
	call->request = *request;
	call->policy = request->retry != NULL ? *request->retry : one_try;
	call->transfer.arg = call;
	call->transfer.complete = on_transfer_complete;
	call->timer.arg = call;
	call->timer.fire = on_timer;
	kc_buf_init(&call->http.response.body, alloc, request->max_response);
	kc_error_clear(&call->http.error);

	call->url = kc_strdup(alloc, request->url);
	if (call->url == NULL)
		status = kc_error_nomem(err, request->doing);
	else
		status = check_url(call, err);
	if (status == KC_OK)
		status = kc_http_copy_headers(call, request->headers, request->nheaders, err);
	if (status == KC_OK)
	{
		kc_retry_begin(&call->retry, &call->policy, kc_mux_clock(mux));
		call->late_seen_ms = kc_mux_late_ms(mux);
		call->http.tries = 1;
		status = kc_http_transfer_start(call, err);
	}
	if (status != KC_OK)
	{
		kc_http_free(&call->http);
		return status;
	}
	*http = &call->http;
	return KC_OK;
}

void
kc_http_free(KcHttp *http)
{
	HttpCall   *call = (HttpCall *) http;

	if (call == NULL)
		return;
	kc_http_transfer_end(call);
	kc_mux_timer_cancel(call->mux, &call->timer);
	for (struct curl_slist *header = call->headers; header != NULL; header = header->next)
		kc_wipe(header->data, strlen(header->data));
	curl_slist_free_all(call->headers);
	kc_free_secret(call->alloc, call->url);
	kc_buf_free_secret(&http->response.body);
	kc_free(call->alloc, call);
}
