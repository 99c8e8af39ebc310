/*
 * kusto_request.c
 *	  A management command or a query: token, request, one more try with a new
 *	  token after a 401, result.
 *
 *		begin -> token? -> wait
 *					|-> POST -> 401, first time -> reject token -> begin
 *							|-> result
 */
#include <string.h>

#include "kusto_internal.h"

/* We give up so much later than the service, so that it can say why. */
#define TIMEOUT_MARGIN_MS	10000

typedef struct Endpoint
{
	const char *path;
	const char *doing;
	const char *verb;			/* of x-ms-client-request-id */
	bool		ingest;
	bool		v2;
	void		(*explain) (const KcHttpResponse *response, KcError *err);
} Endpoint;

static const Endpoint endpoints[] = {
	[KC_ENDPOINT_ENGINE_MGMT] = {"/v1/rest/mgmt", "running a management command", "execute_mgmt", false, false, kc_kusto_explain_mgmt},
	[KC_ENDPOINT_ENGINE_QUERY] = {"/v2/rest/query", "running a query", "execute_query", false, true, kc_kusto_explain_query},
	[KC_ENDPOINT_INGEST_MGMT] = {"/v1/rest/mgmt", "asking the ingestion service", "execute_dm", true, false, kc_kusto_explain_ingest},
};

typedef struct Request
{
	KcRequestTask pub;			/* first member */
	KcClient   *client;
	const Endpoint *endpoint;
	bool		readonly;
	size_t		max_response;
	KcBuf		body;			/* may hold signatures */
	KcTimer		begin;
	KcWaiter	waiter;
	KcHttp	   *http;
	KcBuf		token;			/* secret; what http was sent with */
	uint64_t	token_generation;
	bool		token_renewed;
} Request;

static void step(Request *request);

static void
finish(Request *request, const KcError *err)
{
	kc_task_finish(&request->pub.task, err);
}

/* ---- the request ---- */

static void
append_timespan(KcBuf *out, int64_t ms)
{
	int64_t		s = (ms + 999) / 1000;

	if (s > 3600)
		s = 3600;				/* the service's own limit */
	kc_buf_printf(out, "%02d:%02d:%02d", (int) (s / 3600), (int) (s / 60 % 60), (int) (s % 60));
}

static KcStatus
build_body(Request *request, KcSlice db, KcSlice csl, KcError *err)
{
	int64_t		timeout_ms = request->client->config.request_timeout_ms;
	KcJsonWriter w;
	KcBuf		timeout;

	kc_buf_init(&timeout, request->client->alloc, KC_BUF_UNLIMITED);
	kc_json_begin(&w, &request->body);
	kc_json_object_open(&w);
	kc_json_key(&w, "db");
	kc_json_value_string(&w, db.len > 0 ? db : kc_slice("NetDefaultDB"));
	kc_json_key(&w, "csl");
	kc_json_value_string(&w, csl);
	kc_json_key(&w, "properties");
	kc_json_object_open(&w);
	kc_json_key(&w, "Options");
	kc_json_object_open(&w);
	if (request->endpoint->v2)
	{
		kc_json_key(&w, "results_progressive_enabled");
		kc_json_value_bool(&w, false);
	}
	if (!request->endpoint->ingest && timeout_ms > 0)
	{
		append_timespan(&timeout, timeout_ms);
		kc_json_key(&w, "servertimeout");
		kc_json_value_string(&w, kc_buf_view(&timeout));
	}
	kc_json_object_close(&w);
	kc_json_object_close(&w);
	kc_json_object_close(&w);
	kc_buf_free(&timeout);
	return kc_buf_status(&request->body, err, request->endpoint->doing);
}

static KcStatus
start_http(Request *request, KcSlice url, const KcKustoHeaders *headers, KcError *err)
{
	KcClient   *client = request->client;
	const Endpoint *endpoint = request->endpoint;
	KcHttpRequest http;

	memset(&http, 0, sizeof(http));
	http.doing = endpoint->doing;
	http.method = "POST";
	http.url = url;
	http.headers = headers->list;
	http.nheaders = headers->n;
	http.body = kc_buf_view(&request->body);
	http.max_response = request->max_response;
	http.flags = KC_HTTP_COMPRESSED;
	/* A command that is not known to be harmless is not given twice. */
	if (!endpoint->ingest && !endpoint->v2 && !request->readonly)
		http.flags |= KC_HTTP_ONCE;
	if (client->config.request_timeout_ms > 0)
		http.timeout_ms = client->config.request_timeout_ms
			+ (endpoint->ingest ? 0 : TIMEOUT_MARGIN_MS);
	http.retry = &client->request_retry;
	http.explain = endpoint->explain;
	return kc_http_start(client->mux, client->alloc, &client->http, &http, &request->http, err);
}

/* Built anew for each try: the token may be another. */
static KcStatus
send(Request *request, const KcToken *token, KcError *err)
{
	const KcClient *client = request->client;
	const Endpoint *endpoint = request->endpoint;
	KcKustoHeaders headers;
	KcBuf		url;
	KcStatus	status;

	kc_buf_init(&url, client->alloc, KC_BUF_UNLIMITED);
	kc_buf_str(&url, endpoint->ingest ? client->ingest_uri : client->engine_uri);
	kc_buf_str(&url, endpoint->path);
	kc_buf_reset(&request->token);
	kc_buf_slice(&request->token, token->text);
	status = kc_kusto_headers_build(client, endpoint->doing, endpoint->verb,
									"application/json; charset=utf-8", token->text, &headers, err);
	if (status == KC_OK)
		status = kc_buf_status(&request->token, err, endpoint->doing);
	if (status == KC_OK)
		status = kc_buf_status(&url, err, endpoint->doing);
	if (status == KC_OK)
	{
		if (request->readonly)
			kc_kusto_headers_add(&headers, "x-ms-readonly", kc_slice("true"));
		status = start_http(request, kc_buf_view(&url), &headers, err);
	}
	kc_buf_free(&url);
	kc_kusto_headers_free(&headers);
	return status;
}

/* ---- the answer ---- */

static void
on_answer(KcHttp *http)
{
	Request    *request = http->arg;
	KcClient   *client = request->client;
	KcError		err = http->error;

	if (err.http_status == 401 && !request->token_renewed
		&& kc_auth_reject(client->auth, request->token_generation))
	{
		request->token_renewed = true;
		kc_http_free(http);
		request->http = NULL;
		step(request);
		return;
	}
	if (err.status == KC_OK)
	{
		KcHttpResponse *response = &http->response;

		if (kc_result_create(client->alloc, &response->body, request->endpoint->v2,
							 request->endpoint->doing, &request->pub.result, &err) != KC_OK)
		{
			KcUrl		url;
			KcError		ignored;

			err.after_send = true;
			if (response->activity_id[0] != '\0')
				kc_error_text(err.activity_id, sizeof(err.activity_id),
							  kc_slice(response->activity_id));
			if (kc_url_parse(kc_slice(request->endpoint->ingest ? client->ingest_uri
									  : client->engine_uri), &url, &ignored) == KC_OK)
				kc_error_text(err.host, sizeof(err.host), url.host);
		}
	}
	if (!request->endpoint->ingest)
		kc_kusto_explain_engine_uri(client->engine_uri, client->ingest_uri, &err);
	if (err.status != KC_OK)
		kc_error_scrub(&err, kc_buf_view(&request->token));
	kc_http_free(http);
	request->http = NULL;
	finish(request, err.status == KC_OK ? NULL : &err);
}

static void
on_token(KcWaiter *waiter, const KcError *err)
{
	Request    *request = waiter->arg;

	if (err != NULL)
		finish(request, err);
	else
		step(request);
}

static void
step(Request *request)
{
	KcClient   *client = request->client;
	KcToken		token;
	KcError		err;
	KcStatus	status;

	if (!kc_auth_token(client->auth, &token))
		status = kc_auth_wait(client->auth, &request->waiter, &err);
	else
	{
		request->token_generation = token.generation;
		status = send(request, &token, &err);
		if (status == KC_OK)
		{
			request->http->on_done = on_answer;
			request->http->arg = request;
		}
	}
	if (status != KC_OK)
		finish(request, &err);
}

static void
on_begin(KcTimer *timer)
{
	step(timer->arg);
}

static void
destroy(KcTask *task)
{
	Request    *request = (Request *) task;
	KcClient   *client = request->client;

	kc_mux_timer_cancel(client->mux, &request->begin);
	kc_auth_cancel(client->auth, &request->waiter);
	kc_http_free(request->http);
	kc_result_free(request->pub.result);
	kc_buf_free_secret(&request->body);
	kc_buf_free_secret(&request->token);
	kc_free(client->alloc, request);
}

KcStatus
kc_kusto_request_start(KcClient *client, KcKustoEndpoint endpoint, KcSlice db, KcSlice csl,
					   bool readonly, size_t max_response, KcRequestTask **task, KcError *err)
{
	Request    *request;
	KcStatus	status;

	*task = NULL;
	request = kc_alloc0(client->alloc, sizeof(Request));
	if (request == NULL)
		return kc_error_nomem(err, endpoints[endpoint].doing);
	request->client = client;
	request->endpoint = &endpoints[endpoint];
	request->readonly = readonly;
	request->max_response = max_response;
	request->pub.task.destroy = destroy;
	request->begin.fire = on_begin;
	request->begin.arg = request;
	request->waiter.ready = on_token;
	request->waiter.arg = request;
	kc_error_clear(&request->pub.task.error);
	kc_buf_init(&request->body, client->alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&request->token, client->alloc, KC_BUF_UNLIMITED);
	status = build_body(request, db, csl, err);
	if (status != KC_OK)
	{
		destroy(&request->pub.task);
		return status;
	}
	kc_mux_timer_set(client->mux, &request->begin, kc_client_now_ms(client));
	*task = &request->pub;
	return KC_OK;
}
