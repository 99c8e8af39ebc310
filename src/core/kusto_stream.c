/*
 * kusto_stream.c
 *	  Streaming ingestion: rows are in the table when the request is answered.
 *
 *		begin -> known to refuse? -> queue it
 *			|-> token? -> wait
 *					|-> POST -> 401, first time -> reject token -> token?
 *							|-> a failure that may pass -> wait -> token?
 *							|-> verdict
 *
 * Each try is a request of its own, with a new token and id; how often there
 * is one is decided here, by what the failure means (kusto_stream_judge.c).
 *
 * Public source: learn.microsoft.com/kusto/api/rest/streaming-ingest
 */
#include <string.h>

#include "gzip.h"
#include "kusto_internal.h"

static const char doing_stream[] = "streaming into a table";

#define PATH				"/v1/rest/ingest/"
#define MAX_ANSWER			(1024 * 1024)
#define COMPRESSION_LEVEL	1

/* Of whoever has another way to go. */
#define MANAGED_TRIES		3
#define MANAGED_BASE_MS		1000
#define MANAGED_CAP_MS		8000
/* The last try has at least so long, whatever the earlier ones took. */
#define MIN_TRY_MS			2000

typedef struct Stream
{
	KcStreamTask pub;			/* first member */
	KcClient   *client;
	char	   *database;
	char	   *table;
	bool		managed;
	bool		too_large;		/* there is no body */
	KcBuf		url;
	KcBuf		body;			/* gzip */
	bool		begun;
	KcTimer		timer;			/* the beginning, then the waits between tries */
	KcWaiter	waiter;
	KcHttp	   *http;
	KcBuf		token;			/* secret; what http was sent with */
	uint64_t	token_generation;
	bool		token_renewed;
	KcRetryPolicy policy;
	KcRetry		retry;
	int64_t		late_seen_ms;	/* of the mux, already taken off the retry's time */
	bool		maybe_done;		/* a failed try may have had its effect */
} Stream;

static void step(Stream *stream);

static void
finish(Stream *stream, KcStreamVerdict verdict, const KcError *err)
{
	stream->pub.verdict = verdict;
	stream->pub.doubtful = verdict != KC_STREAM_INGESTED && stream->maybe_done;
	kc_task_finish(&stream->pub.task, err);
}

/* ---- the request ---- */

/*
 * What is left of the time for all tries together, when there is another way;
 * else each try has its own.
 */
static int64_t
try_timeout_ms(const Stream *stream)
{
	int64_t		timeout_ms = stream->client->config.request_timeout_ms;
	int64_t		left_ms;

	if (!stream->managed || timeout_ms <= 0)
		return timeout_ms;
	left_ms = timeout_ms - (kc_client_now_ms(stream->client) - stream->retry.started_ms);
	if (left_ms < MIN_TRY_MS)
		left_ms = timeout_ms < MIN_TRY_MS ? timeout_ms : MIN_TRY_MS;
	return left_ms;
}

static KcStatus
send(Stream *stream, const KcToken *token, KcError *err)
{
	KcClient   *client = stream->client;
	KcKustoHeaders headers;
	KcHttpRequest request;
	KcStatus	status;

	kc_buf_reset(&stream->token);
	kc_buf_slice(&stream->token, token->text);
	status = kc_kusto_headers_build(client, doing_stream, "execute_stream",
									"application/octet-stream", token->text, &headers, err);
	if (status == KC_OK)
		status = kc_buf_status(&stream->token, err, doing_stream);
	if (status == KC_OK)
	{
		kc_kusto_headers_add(&headers, "Content-Encoding", kc_slice("gzip"));
		memset(&request, 0, sizeof(request));
		request.doing = doing_stream;
		request.method = "POST";
		request.url = kc_buf_view(&stream->url);
		request.headers = headers.list;
		request.nheaders = headers.n;
		request.body = kc_buf_view(&stream->body);
		request.max_response = MAX_ANSWER;
		request.flags = KC_HTTP_COMPRESSED;
		request.timeout_ms = try_timeout_ms(stream);
		request.explain = kc_kusto_explain_stream;
		status = kc_http_start(client->mux, client->alloc, &client->http, &request,
							   &stream->http, err);
	}
	kc_kusto_headers_free(&headers);
	return status;
}

/* ---- the answer ---- */

/* Time in which nobody drove the mux is no time of ours. */
static void
forgive_lateness(Stream *stream)
{
	int64_t		late_ms = kc_mux_late_ms(stream->client->mux);

	stream->retry.started_ms += late_ms - stream->late_seen_ms;
	stream->late_seen_ms = late_ms;
}

static bool
try_again(Stream *stream, const KcError *err)
{
	KcClient   *client = stream->client;
	int64_t		wait_ms;

	forgive_lateness(stream);
	/* Rather go the other way than wait for long. */
	if (stream->managed && err->retry_after_ms > KC_STREAM_THROTTLE_MS)
		return false;
	if (!kc_retry_again(&stream->retry, err, &wait_ms))
		return false;
	kc_mux_timer_set(client->mux, &stream->timer, kc_client_now_ms(client) + wait_ms);
	return true;
}

static void
remember(Stream *stream, const KcError *err, int64_t for_ms)
{
	kc_kusto_stream_remember(stream->client, kc_slice(stream->database), kc_slice(stream->table),
							 err, for_ms);
}

static void
conclude(Stream *stream, KcStreamFault fault, const KcError *err)
{
	KcStreamVerdict verdict = KC_STREAM_FAILED;

	switch (fault)
	{
		case KC_STREAM_FAULT_PASSING:
			if (try_again(stream, err))
				return;
			if (err->status == KC_ERR_THROTTLED)
				remember(stream, err, KC_STREAM_THROTTLE_MS);
			if (stream->managed)
				verdict = KC_STREAM_QUEUE;
			break;
		case KC_STREAM_FAULT_UNSUPPORTED:
			remember(stream, err, KC_STREAM_REFUSAL_MS);
			verdict = KC_STREAM_QUEUE;
			break;
		case KC_STREAM_FAULT_TOO_LARGE:
			verdict = KC_STREAM_QUEUE;
			break;
		case KC_STREAM_FAULT_DATA:
			verdict = KC_STREAM_REFUSED;
			break;
		case KC_STREAM_FAULT_OTHER:
			break;
	}
	finish(stream, verdict, err);
}

/*
 * A 2xx may hold an error all the same.  The number of rows in it is not what
 * was ingested, so it proves nothing.
 */
static void
read_answer(Stream *stream, KcHttp *http, KcError *err)
{
	KcResult   *result;

	if (kc_result_create(stream->client->alloc, &http->response.body, false, doing_stream,
						 &result, err) != KC_OK)
	{
		stream->maybe_done = true;
		kc_error_text(err->activity_id, sizeof(err->activity_id),
					  kc_slice(http->response.activity_id));
	}
	kc_result_free(result);
}

static void
on_answer(KcHttp *http)
{
	Stream	   *stream = http->arg;
	KcClient   *client = stream->client;
	KcError		err = http->error;
	KcBuf		names;
	bool		permanent_told;
	KcStreamFault fault;

	stream->pub.attempts += http->tries;
	stream->maybe_done = stream->maybe_done || http->maybe_done;
	if (err.http_status == 401 && !stream->token_renewed
		&& kc_auth_reject(client->auth, stream->token_generation))
	{
		stream->token_renewed = true;
		kc_http_free(http);
		stream->http = NULL;
		step(stream);
		return;
	}
	kc_buf_init(&names, client->alloc, KC_HTTP_ERROR_BODY);
	kc_kusto_read_names(kc_buf_view(&http->response.body), &names, &permanent_told);
	if (err.status == KC_OK)
		read_answer(stream, http, &err);
	kc_http_free(http);
	stream->http = NULL;
	if (err.status == KC_OK)
	{
		kc_buf_free(&names);
		kc_kusto_stream_forget(client, kc_slice(stream->database), kc_slice(stream->table));
		finish(stream, KC_STREAM_INGESTED, NULL);
		return;
	}
	kc_error_scrub(&err, kc_buf_view(&stream->token));
	fault = kc_kusto_stream_judge(&err, kc_buf_view(&names), permanent_told);
	kc_buf_free(&names);
	conclude(stream, fault, &err);
}

/* ---- the flow ---- */

static void
on_token(KcWaiter *waiter, const KcError *err)
{
	Stream	   *stream = waiter->arg;

	if (err != NULL)
		finish(stream, KC_STREAM_FAILED, err);
	else
		step(stream);
}

static void
step(Stream *stream)
{
	KcClient   *client = stream->client;
	KcToken		token;
	KcError		err;
	KcStatus	status;

	if (!kc_auth_token(client->auth, &token))
		status = kc_auth_wait(client->auth, &stream->waiter, &err);
	else
	{
		stream->token_generation = token.generation;
		status = send(stream, &token, &err);
		if (status == KC_OK)
		{
			stream->http->on_done = on_answer;
			stream->http->arg = stream;
		}
	}
	if (status != KC_OK)
		finish(stream, KC_STREAM_FAILED, &err);
}

/* True: there is no need to ask. */
static bool
answered_already(Stream *stream)
{
	const KcError *why;
	KcError		err;

	if (stream->too_large)
	{
		kc_error_set(&err, KC_ERR_LIMIT, doing_stream,
					 "the data are larger than %d bytes, the limit of streaming ingestion",
					 KC_STREAM_MAX_RAW);
		err.permanent = true;
		finish(stream, KC_STREAM_QUEUE, &err);
		return true;
	}
	if (!stream->managed)
		return false;
	why = kc_kusto_stream_refusal(stream->client, kc_slice(stream->database),
								  kc_slice(stream->table));
	if (why == NULL)
		return false;
	err = *why;
	err.after_send = false;
	finish(stream, KC_STREAM_QUEUE, &err);
	return true;
}

static void
on_timer(KcTimer *timer)
{
	Stream	   *stream = timer->arg;
	KcMux	   *mux = stream->client->mux;

	if (!stream->begun)
	{
		stream->begun = true;
		if (answered_already(stream))
			return;
		kc_retry_begin(&stream->retry, &stream->policy, kc_mux_clock(mux));
		stream->late_seen_ms = kc_mux_late_ms(mux);
	}
	step(stream);
}

/* ---- making and ending ---- */

static void
destroy(KcTask *task)
{
	Stream	   *stream = (Stream *) task;
	KcClient   *client = stream->client;

	kc_mux_timer_cancel(client->mux, &stream->timer);
	kc_auth_cancel(client->auth, &stream->waiter);
	kc_http_free(stream->http);
	kc_buf_free(&stream->url);
	kc_buf_free(&stream->body);
	kc_buf_free_secret(&stream->token);
	kc_free(client->alloc, stream->database);
	kc_free(client->alloc, stream->table);
	kc_free(client->alloc, stream);
}

static KcStatus
compress(KcBuf *out, KcSlice csv, KcError *err)
{
	KcGzip	   *gzip;
	bool		done = false;
	KcStatus	status;

	status = kc_gzip_create(out->alloc, KC_GZIP_BEST, COMPRESSION_LEVEL, &gzip, err);
	while (status == KC_OK && !done)
	{
		size_t		given = kc_gzip_bound(csv.len);
		size_t		room = given;
		char	   *to;

		if (!kc_buf_reserve(out, given))
		{
			status = kc_buf_status(out, err, doing_stream);
			break;
		}
		to = out->data + out->len;
		status = kc_gzip_run(gzip, &csv.data, &csv.len, &to, &room, true, &done, err);
		out->len += given - room;
		out->data[out->len] = '\0';
	}
	kc_gzip_free(gzip);
	return status;
}

static KcStatus
build_url(Stream *stream, const KcStreamRequest *request, KcError *err)
{
	KcBuf	   *url = &stream->url;

	kc_buf_str(url, stream->client->engine_uri);
	kc_buf_str(url, PATH);
	kc_text_percent_encode(url, request->database);
	kc_buf_char(url, '/');
	kc_text_percent_encode(url, request->table);
	kc_buf_str(url, "?streamFormat=Csv");
	if (request->mapping.len > 0)
	{
		kc_buf_str(url, "&mappingName=");
		kc_text_percent_encode(url, request->mapping);
	}
	return kc_buf_status(url, err, doing_stream);
}

static void
set_policy(Stream *stream)
{
	const KcClient *client = stream->client;
	int64_t		timeout_ms = client->config.request_timeout_ms;

	stream->policy = client->request_retry;
	if (!stream->managed)
		return;
	stream->policy = (KcRetryPolicy)
	{
		.max_attempts = MANAGED_TRIES, .base_ms = MANAGED_BASE_MS, .cap_ms = MANAGED_CAP_MS,
		.max_total_ms = timeout_ms > 0 ? timeout_ms : 0
	};
}

static KcStatus
take_request(Stream *stream, const KcStreamRequest *request, KcError *err)
{
	const KcAlloc *alloc = stream->client->alloc;
	KcStatus	status;

	if (request->csv.len == 0)
		return kc_error_set(err, KC_ERR_INVALID, doing_stream, "there are no data");
	stream->managed = request->managed;
	stream->too_large = request->csv.len > KC_STREAM_MAX_RAW;
	stream->database = kc_strdup(alloc, request->database);
	stream->table = kc_strdup(alloc, request->table);
	if (stream->database == NULL || stream->table == NULL)
		return kc_error_nomem(err, doing_stream);
	set_policy(stream);
	status = build_url(stream, request, err);
	if (status == KC_OK && !stream->too_large)
		status = compress(&stream->body, request->csv, err);
	stream->pub.compressed_bytes = stream->body.len;
	return status;
}

KcStatus
kc_kusto_stream_start(KcClient *client, const KcStreamRequest *request, KcStreamTask **task,
					  KcError *err)
{
	Stream	   *stream;
	KcStatus	status;

	*task = NULL;
	stream = kc_alloc0(client->alloc, sizeof(Stream));
	if (stream == NULL)
		return kc_error_nomem(err, doing_stream);
	stream->client = client;
	stream->pub.task.destroy = destroy;
	stream->pub.verdict = KC_STREAM_FAILED;
	stream->timer.fire = on_timer;
	stream->timer.arg = stream;
	stream->waiter.ready = on_token;
	stream->waiter.arg = stream;
	kc_error_clear(&stream->pub.task.error);
	kc_buf_init(&stream->url, client->alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&stream->body, client->alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&stream->token, client->alloc, KC_BUF_UNLIMITED);
	status = take_request(stream, request, err);
	if (status != KC_OK)
	{
		destroy(&stream->pub.task);
		return status;
	}
	kc_mux_timer_set(client->mux, &stream->timer, kc_client_now_ms(client));
	*task = &stream->pub;
	return KC_OK;
}
