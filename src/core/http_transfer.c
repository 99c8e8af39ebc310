/*
 * http_transfer.c
 *	  One try of a request as a libcurl transfer: its options and callbacks.
 *
 * Callbacks run inside libcurl: they copy bytes and set flags, no more.
 */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "http_internal.h"

#define UPLOAD_BUFFER		(512L * 1024)
#define LARGE_BODY			(64 * 1024)
/* Below this speed, bytes a second, a transfer counts as stalled. */
#define STALLED_SPEED		64L
/* A request that must not be repeated should not meet a connection that a
 * load balancer is about to forget. */
#define ONCE_MAX_IDLE_S		20L

/* ---- callbacks ---- */

static size_t
on_read(char *buffer, size_t size, size_t count, void *arg)
{
	HttpCall   *call = arg;
	KcSlice		body = call->request.body;
	size_t		n = body.len - call->body_sent;

	if (n > size * count)
		n = size * count;
	if (n > 0)
		memcpy(buffer, body.data + call->body_sent, n);
	call->body_sent += n;
	return n;
}

/*
 * libcurl rewinds the body when a reused connection turned out to be dead.
 * What must not be repeated may only be sent again if it was not sent whole.
 */
static int
on_seek(void *arg, curl_off_t offset, int origin)
{
	HttpCall   *call = arg;
	KcSlice		body = call->request.body;

	if (origin != SEEK_SET || offset < 0 || (uint64_t) offset > body.len)
		return CURL_SEEKFUNC_FAIL;
	if (call->body_sent == body.len)
	{
		if ((call->request.flags & KC_HTTP_ONCE) != 0)
			return CURL_SEEKFUNC_FAIL;
		call->http.maybe_done = true;
	}
	call->body_sent = (size_t) offset;
	return CURL_SEEKFUNC_OK;
}

static size_t
on_write(char *data, size_t size, size_t count, void *arg)
{
	HttpCall   *call = arg;
	KcBuf	   *body = &call->http.response.body;
	size_t		n = size * count;

	if (call->http.response.status >= 400)
	{
		/* Enough of an error is enough: keep its start, drop the connection. */
		size_t		room = KC_HTTP_ERROR_BODY > body->len ? KC_HTTP_ERROR_BODY - body->len : 0;

		if (n > room)
		{
			call->error_body_cut = true;
			kc_buf_append(body, data, room);
			return 0;
		}
	}
	kc_buf_append(body, data, n);
	if (body->failed == KC_ERR_LIMIT)
		call->answer_too_large = true;
	return body->failed == KC_OK ? n : 0;
}

/* Keep a header's value if it is of that name. */
static bool
header_is(KcSlice line, const char *name, KcSlice *value)
{
	size_t		len = strlen(name);

	if (line.len <= len || line.data[len] != ':' || strncasecmp(line.data, name, len) != 0)
		return false;
	value->data = line.data + len + 1;
	value->len = line.len - len - 1;
	while (value->len > 0 && (*value->data == ' ' || *value->data == '\t'))
	{
		value->data++;
		value->len--;
	}
	while (value->len > 0 && strchr(" \t\r\n", value->data[value->len - 1]) != NULL)
		value->len--;
	return true;
}

static void
begin_answer(HttpCall *call, KcSlice line)
{
	KcHttpResponse *response = &call->http.response;
	const char *blank = memchr(line.data, ' ', line.len);

	response->status = 0;
	response->content_type[0] = response->activity_id[0] = response->error_code[0] = '\0';
	response->retry_after_ms = -1;
	response->skew_us = 0;
	if (blank == NULL)
		return;
	for (const char *c = blank + 1; c < line.data + line.len && *c >= '0' && *c <= '9'; c++)
	{
		if (response->status > 99)
			break;
		response->status = response->status * 10 + (*c - '0');
	}
}

static void
note_date(KcHttpResponse *response, KcSlice value, const KcClock *clock)
{
	char		text[64];
	time_t		date;

	if (value.len >= sizeof(text))
		return;
	memcpy(text, value.data, value.len);
	text[value.len] = '\0';
	date = curl_getdate(text, NULL);
	if (date > 0)
		response->skew_us = (int64_t) date * 1000000 - clock->unix_us(clock->arg);
}

static size_t
on_header(char *data, size_t size, size_t count, void *arg)
{
	HttpCall   *call = arg;
	KcHttpResponse *response = &call->http.response;
	KcSlice		line = kc_slice_n(data, size * count);
	const KcClock *clock = kc_mux_clock(call->mux);
	KcSlice		value;

	if (kc_slice_starts(line, kc_slice("HTTP/")))
		begin_answer(call, line);
	else if (header_is(line, "content-type", &value))
		kc_error_text(response->content_type, sizeof(response->content_type), value);
	else if (header_is(line, "x-ms-activity-id", &value))
		kc_error_text(response->activity_id, sizeof(response->activity_id), value);
	else if (header_is(line, "x-ms-request-id", &value) && response->activity_id[0] == '\0')
		kc_error_text(response->activity_id, sizeof(response->activity_id), value);
	else if (header_is(line, "x-ms-error-code", &value))
		kc_error_text(response->error_code, sizeof(response->error_code), value);
	else if (header_is(line, "retry-after", &value))
		response->retry_after_ms = kc_retry_after_ms(value, clock);
	else if (header_is(line, "date", &value))
		note_date(response, value, clock);
	return size * count;
}

/* ---- request headers ---- */

static KcStatus
add_header(HttpCall *call, KcBuf *line, KcError *err)
{
	struct curl_slist *longer;

	if (kc_buf_status(line, err, call->request.doing) != KC_OK)
		return line->failed;
	longer = curl_slist_append(call->headers, line->data);
	if (longer == NULL)
		return kc_error_nomem(err, call->request.doing);
	call->headers = longer;
	return KC_OK;
}

/*
 * RFC 9110 section 5.5 allows more bytes in a field value than front ends do:
 * keep to visible ASCII and blanks.
 */
static void
append_clean(KcBuf *line, KcSlice value)
{
	for (size_t i = 0; i < value.len; i++)
	{
		char		c = value.data[i];

		kc_buf_char(line, c >= 0x20 && c < 0x7f ? c : '?');
	}
}

KcStatus
kc_http_copy_headers(HttpCall *call, const KcHttpHeader *headers, int nheaders, KcError *err)
{
	KcBuf		line;
	KcStatus	status = KC_OK;

	kc_buf_init(&line, call->alloc, KC_BUF_UNLIMITED);
	for (int i = 0; i < nheaders && status == KC_OK; i++)
	{
		kc_buf_reset(&line);
		kc_buf_str(&line, headers[i].name);
		kc_buf_str(&line, ": ");
		append_clean(&line, headers[i].value);
		status = add_header(call, &line, err);
	}
	/* Waiting for "100 Continue" costs a second for each upload. */
	if (status == KC_OK)
	{
		kc_buf_reset(&line);
		kc_buf_str(&line, "Expect:");
		status = add_header(call, &line, err);
	}
	kc_buf_free_secret(&line);
	return status;
}

/* ---- options ---- */

/* The first failure sticks in *code; later calls do nothing. */
#define SET(easy, code, option, value) \
	do { \
		if ((code) == CURLE_OK) \
			(code) = curl_easy_setopt((easy), (option), (value)); \
	} while (0)

static CURLcode
set_policy(HttpCall *call, CURL *easy)
{
	CURLcode	code = CURLE_OK;
	bool		https = kc_url_is_https(&call->url_parts);

	SET(easy, code, CURLOPT_NOSIGNAL, 1L);
#if LIBCURL_VERSION_NUM >= 0x075700
	SET(easy, code, CURLOPT_QUICK_EXIT, 1L);
	if (code == CURLE_UNKNOWN_OPTION)	/* an older library than its header */
		code = CURLE_OK;
#endif
#if LIBCURL_VERSION_NUM >= 0x075500
	SET(easy, code, CURLOPT_PROTOCOLS_STR, https ? "https" : "http");
#else
	SET(easy, code, CURLOPT_PROTOCOLS, (long) (https ? CURLPROTO_HTTPS : CURLPROTO_HTTP));
#endif
	SET(easy, code, CURLOPT_FOLLOWLOCATION, 0L);
	SET(easy, code, CURLOPT_NETRC, (long) CURL_NETRC_IGNORED);
	SET(easy, code, CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
	SET(easy, code, CURLOPT_PATH_AS_IS, 1L);
	SET(easy, code, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	SET(easy, code, CURLOPT_HTTP09_ALLOWED, 0L);
	SET(easy, code, CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	SET(easy, code, CURLOPT_SSL_VERIFYPEER, 1L);
	SET(easy, code, CURLOPT_SSL_VERIFYHOST, 2L);
	/* Azure's load balancers drop flows that are idle for four minutes. */
	SET(easy, code, CURLOPT_TCP_KEEPALIVE, 1L);
	SET(easy, code, CURLOPT_TCP_KEEPIDLE, 30L);
	SET(easy, code, CURLOPT_TCP_KEEPINTVL, 30L);
	SET(easy, code, CURLOPT_USERAGENT, call->config->user_agent);
	return code;
}

static CURLcode
set_route(HttpCall *call, CURL *easy)
{
	const KcHttpConfig *config = call->config;
	CURLcode	code = CURLE_OK;
	bool		direct;

	direct = config->proxy == NULL
		|| (call->request.flags & KC_HTTP_HOST_IDENTITY) != 0
		|| kc_host_is_loopback(call->url_parts.host);
	/* An empty string, not NULL: NULL would let the environment decide. */
	SET(easy, code, CURLOPT_PROXY, direct ? "" : config->proxy);
	SET(easy, code, CURLOPT_NOPROXY, "");
	SET(easy, code, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	if (config->ca_file != NULL)
	{
		SET(easy, code, CURLOPT_CAINFO, config->ca_file);
		SET(easy, code, CURLOPT_PROXY_CAINFO, config->ca_file);
	}
	if (call->fresh_connection)
		SET(easy, code, CURLOPT_FRESH_CONNECT, 1L);
	if ((call->request.flags & KC_HTTP_ONCE) != 0)
		SET(easy, code, CURLOPT_MAXAGE_CONN, ONCE_MAX_IDLE_S);
	return code;
}

static CURLcode
set_limits(HttpCall *call, CURL *easy)
{
	const KcHttpRequest *request = &call->request;
	CURLcode	code = CURLE_OK;

	SET(easy, code, CURLOPT_CONNECTTIMEOUT_MS, (long) call->config->connect_timeout_ms);
	if (request->timeout_ms > 0)
		SET(easy, code, CURLOPT_TIMEOUT_MS, (long) request->timeout_ms);
	if (request->stall_timeout_ms > 0)
	{
		SET(easy, code, CURLOPT_LOW_SPEED_LIMIT, STALLED_SPEED);
		SET(easy, code, CURLOPT_LOW_SPEED_TIME, (long) ((request->stall_timeout_ms + 999) / 1000));
	}
	return code;
}

static CURLcode
set_request(HttpCall *call, CURL *easy)
{
	const KcHttpRequest *request = &call->request;
	CURLcode	code = CURLE_OK;

	SET(easy, code, CURLOPT_URL, call->url);
	SET(easy, code, CURLOPT_HTTPHEADER, call->headers);
	if ((request->flags & KC_HTTP_COMPRESSED) != 0)
		SET(easy, code, CURLOPT_ACCEPT_ENCODING, "gzip");
	if ((request->flags & KC_HTTP_CONNECT_ONLY) != 0)
		SET(easy, code, CURLOPT_CONNECT_ONLY, 1L);
	if (strcmp(request->method, "PUT") == 0)
	{
		SET(easy, code, CURLOPT_UPLOAD, 1L);
		SET(easy, code, CURLOPT_INFILESIZE_LARGE, (curl_off_t) request->body.len);
	}
	else if (strcmp(request->method, "POST") == 0)
	{
		SET(easy, code, CURLOPT_POST, 1L);
		SET(easy, code, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) request->body.len);
	}
	else if (strcmp(request->method, "HEAD") == 0)
		SET(easy, code, CURLOPT_NOBODY, 1L);	/* or it waits for the body that is announced */
	else if (strcmp(request->method, "GET") != 0)
		SET(easy, code, CURLOPT_CUSTOMREQUEST, request->method);
	if (request->body.len > LARGE_BODY)
		SET(easy, code, CURLOPT_UPLOAD_BUFFERSIZE, UPLOAD_BUFFER);
	return code;
}

static CURLcode
set_callbacks(HttpCall *call, CURL *easy)
{
	CURLcode	code = CURLE_OK;

	SET(easy, code, CURLOPT_READFUNCTION, on_read);
	SET(easy, code, CURLOPT_READDATA, call);
	SET(easy, code, CURLOPT_SEEKFUNCTION, on_seek);
	SET(easy, code, CURLOPT_SEEKDATA, call);
	SET(easy, code, CURLOPT_WRITEFUNCTION, on_write);
	SET(easy, code, CURLOPT_WRITEDATA, call);
	SET(easy, code, CURLOPT_HEADERFUNCTION, on_header);
	SET(easy, code, CURLOPT_HEADERDATA, call);
	SET(easy, code, CURLOPT_ERRORBUFFER, call->curl_text);
	return code;
}

static KcStatus
option_failed(HttpCall *call, CURLcode code, KcError *err)
{
	if (code == CURLE_OUT_OF_MEMORY)
		return kc_error_nomem(err, call->request.doing);
	return kc_error_set(err, KC_ERR_INTERNAL, call->request.doing,
						"libcurl refused an option: %s", curl_easy_strerror(code));
}

KcStatus
kc_http_transfer_start(HttpCall *call, KcError *err)
{
	CURL	   *easy;
	CURLcode	code;
	KcStatus	status;

	kc_buf_reset(&call->http.response.body);
	begin_answer(call, kc_slice(""));
	call->http.response.peer[0] = '\0';
	call->body_sent = 0;
	call->answer_too_large = call->error_body_cut = false;
	call->curl_text[0] = '\0';

	easy = curl_easy_init();
	if (easy == NULL)
		return kc_error_nomem(err, call->request.doing);
	call->transfer.easy = easy;
	code = set_policy(call, easy);
	if (code == CURLE_OK)
		code = set_route(call, easy);
	if (code == CURLE_OK)
		code = set_limits(call, easy);
	if (code == CURLE_OK)
		code = set_request(call, easy);
	if (code == CURLE_OK)
		code = set_callbacks(call, easy);
	if (code != CURLE_OK)
		status = option_failed(call, code, err);
	else
		status = kc_mux_add(call->mux, &call->transfer, err);
	if (status != KC_OK)
		kc_http_transfer_end(call);
	return status;
}

void
kc_http_transfer_end(HttpCall *call)
{
	sigset_t	saved;

	if (call->transfer.easy == NULL)
		return;
	kc_mux_remove(&call->transfer);
	kc_mux_block_signals(&saved);
	curl_easy_cleanup(call->transfer.easy);
	kc_mux_restore_signals(&saved);
	call->transfer.easy = NULL;
}

/*
 * Did the try meet a connection that was already dead?
 */
bool
kc_http_died_on_reuse(HttpCall *call, CURLcode code)
{
	long		new_connections = 1;

	if (call->http.response.status != 0
		|| (code != CURLE_SEND_ERROR && code != CURLE_RECV_ERROR
			&& code != CURLE_GOT_NOTHING && code != CURLE_SEND_FAIL_REWIND))
		return false;
	curl_easy_getinfo(call->transfer.easy, CURLINFO_NUM_CONNECTS, &new_connections);
	return new_connections == 0;
}
