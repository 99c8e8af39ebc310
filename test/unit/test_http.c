/*
 * test_http.c
 *	  The policy of a request, its outcome in words, and when it is repeated.
 */
#define _GNU_SOURCE
#include <time.h>
#include <zlib.h>

#include "core/http.h"
#include "core/text.h"
#include "harness.h"
#include "http_server.h"

static Server server;
static Harness h;
static KcHttpConfig config = {.user_agent = "kusto_ingest/1.0",.connect_timeout_ms = 5000};
static const KcRetryPolicy four_tries = {.max_attempts = 4,.base_ms = 100,.cap_ms = 1000};

/* Where a path of the server is; in a static buffer. */
static KcSlice
at(const char *path)
{
	static char url[512];

	snprintf(url, sizeof(url), "%s%s", server.origin, path);
	return kc_slice(url);
}

static KcHttp *
run(KcHttpRequest request)
{
	KcHttp	   *http;
	KcError		err;

	if (request.doing == NULL)
		request.doing = "testing";
	if (request.method == NULL)
		request.method = "GET";
	if (request.max_response == 0)
		request.max_response = 1 << 20;
	if (kc_http_start(h.mux, &kc_alloc_malloc, &config, &request, &http, &err) != KC_OK)
	{
		harness_show(&err);
		must(false);
	}
	(void) harness_until(&h, &http->done);
	return http;
}

/* Forget all idle connections: a dead one would be replaced without a word. */
static void
begin_afresh(void)
{
	harness_stop(&h);
	harness_start(&h, &kc_alloc_malloc, NULL);
	server_clear(&server);
}

/* ---- what is sent ---- */

static void
test_request(void)
{
	KcHttpHeader headers[] = {
		{"x-ms-app", kc_slice("a\r\nx-evil: 1\xc3\xa9")},
		{"Content-Type", kc_slice("application/json")},
	};
	const ServerRequest *seen;
	KcHttp	   *http;

	server_clear(&server);
	server_rule(&server, (ServerRule) {.status = 201,.body = "made",.headers =
				"Content-Type: text/plain\r\nx-ms-request-id: abc-1\r\nDate: Tue, 01 Sep 2026 10:11:12 GMT\r\n"});
	http = run((KcHttpRequest) {.method = "PUT",
			   .url = at("/c/../b%2Fx.csv.gz?sig=a%2Bb%3D%3d&se=2026-09-02T00%3A00%3A00Z&x=%7e~"),
			   .headers = headers,.nheaders = 2,.body = kc_slice("body")});
	is(http->error.status, KC_OK, "a 201 is a success");
	is(http->response.status, 201, "and tells its status");
	is_slice(kc_buf_view(&http->response.body), "made", "and its body");
	is_str(http->response.activity_id, "abc-1", "and its request id");
	is_str(http->response.content_type, "text/plain", "and its content type");
	is_str(http->response.peer, "127.0.0.1", "and who answered");
	ok(http->response.skew_us != 0, "and how its clock differs from ours");
	seen = server_nth(&server, "PUT", NULL, 0);
	must(seen != NULL);
	is_str(seen->target, "/c/../b%2Fx.csv.gz?sig=a%2Bb%3D%3d&se=2026-09-02T00%3A00%3A00Z&x=%7e~",
		   "path and query are sent byte for byte");
	is_bytes(seen->body, seen->body_len, "body", 4, "the body arrives");
	is_str(server_header(seen, "x-ms-app"), "a??x-evil: 1??", "a header cannot be broken out of");
	ok(server_header(seen, "x-evil") == NULL, "nor make another");
	ok(server_header(seen, "Expect") == NULL, "no 100-continue");
	is_str(server_header(seen, "User-Agent"), "kusto_ingest/1.0", "the user agent");
	ok(server_header(seen, "Authorization") == NULL, "no authorization of our own");
	ok(strstr(seen->head, "HTTP/1.1") != NULL, "HTTP/1.1");
	kc_http_free(http);

	http = run((KcHttpRequest) {.method = "PUT",.url = at("/empty"),.body = kc_slice("")});
	seen = server_nth(&server, "PUT", "/empty", 0);
	must(seen != NULL);
	is_str(server_header(seen, "Content-Length"), "0", "an empty body has a length");
	ok(server_header(seen, "Transfer-Encoding") == NULL, "and is not chunked");
	kc_http_free(http);
	http = run((KcHttpRequest) {.method = "POST",.url = at("/post"),.body = kc_slice("p=1")});
	seen = server_nth(&server, "POST", "/post", 0);
	must(seen != NULL);
	is_bytes(seen->body, seen->body_len, "p=1", 3, "POST sends its body");
	ok(server_header(seen, "Expect") == NULL, "without 100-continue");
	kc_http_free(http);
	http = run((KcHttpRequest) {.method = "DELETE",.url = at("/gone")});
	is(server_count(&server, "DELETE", "/gone"), 1, "DELETE");
	kc_http_free(http);
}

static void
test_large_body(void)
{
	size_t		len = 5 * 1024 * 1024 + 17;
	char	   *data = malloc(len);
	const ServerRequest *seen;
	KcHttp	   *http;

	must(data != NULL);
	for (size_t i = 0; i < len; i++)
		data[i] = (char) (i * 7 + i / 256);
	begin_afresh();
	server_rule(&server, (ServerRule) {.times = 1,.action = SERVER_RESET});
	server_rule(&server, (ServerRule) {.times = 1,.status = 503});
	server_rule(&server, (ServerRule) {.status = 201});
	http = run((KcHttpRequest) {.method = "PUT",.url = at("/big"),.body = kc_slice_n(data, len),
			   .retry = &four_tries});
	is(http->error.status, KC_OK, "a large body arrives in the end");
	is(http->tries, 3, "after two failures");
	for (int i = 0; i < 3; i++)
	{
		seen = server_nth(&server, "PUT", "/big", i);
		must(seen != NULL);
		ok(seen->body_len == len && memcmp(seen->body, data, len) == 0,
		   "try %d sent the body from its start", i + 1);
	}
	kc_http_free(http);

	begin_afresh();
	server_rule(&server, (ServerRule) {.times = 1,.action = SERVER_RESET_EARLY});
	server_rule(&server, (ServerRule) {.status = 201});
	http = run((KcHttpRequest) {.method = "PUT",.url = at("/big"),.body = kc_slice_n(data, len),
			   .retry = &four_tries,.flags = KC_HTTP_ONCE});
	is(http->error.status, KC_OK, "a request that broke before it was sent whole is repeated, even if only once");
	is(http->tries, 2, "by a second try");
	kc_http_free(http);

	begin_afresh();
	server_rule(&server, (ServerRule) {.action = SERVER_REPLY_EARLY,.status = 403,.body = "no",
				.headers = "Connection: close\r\n"});
	http = run((KcHttpRequest) {.method = "PUT",.url = at("/big"),.body = kc_slice_n(data, len),
			   .retry = &four_tries});
	is(http->error.status, KC_ERR_FORBIDDEN, "an answer that comes before the body was sent is heard");
	is_slice(kc_buf_view(&http->response.body), "no", "to its end");
	kc_http_free(http);
	free(data);
}

/* ---- what is refused ---- */

static void
test_policy(void)
{
	static const char *const refused[] = {
		"http://example.org/", "http://10.0.0.1/", "http://169.254.169.254/metadata",
		"ftp://127.0.0.1/", "file:///etc/passwd", "https://user:secret@example.org/", "127.0.0.1",
	};
	KcHttp	   *http;
	KcError		err;

	server_clear(&server);
	server_rule(&server, (ServerRule) {.target = "/redirect",.status = 302,
				.headers = "Location: /elsewhere\r\n"});
	server_rule(&server, (ServerRule) {.body = "fine"});
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
	{
		KcHttpRequest request = {.doing = "testing",.method = "GET",.url = kc_slice(refused[i])};

		is(kc_http_start(h.mux, &kc_alloc_malloc, &config, &request, &http, &err), KC_ERR_INVALID,
		   refused[i]);
		ok(http == NULL && strstr(err.what, "secret") == NULL, "no request, no secret in the error");
	}

	http = run((KcHttpRequest) {.url = at("/redirect"),.retry = &four_tries});
	is(http->error.status, KC_ERR_PROTOCOL, "a redirect is an error");
	ok(http->error.permanent, "that trying again does not heal");
	is(server_count(&server, NULL, "/elsewhere"), 0, "and is not followed");
	kc_http_free(http);

	setenv("http_proxy", "http://127.0.0.1:1", 1);
	setenv("HTTPS_PROXY", "http://127.0.0.1:1", 1);
	setenv("ALL_PROXY", "http://127.0.0.1:1", 1);
	http = run((KcHttpRequest) {.url = at("/proxy")});
	is(http->error.status, KC_OK, "a proxy in the environment is ignored");
	kc_http_free(http);
	config.proxy = "http://127.0.0.1:1";
	http = run((KcHttpRequest) {.url = at("/proxy")});
	is(http->error.status, KC_OK, "a configured proxy is not used for this host");
	kc_http_free(http);
	http = run((KcHttpRequest) {.url = kc_slice("https://cluster.test/")});
	is(http->error.status, KC_ERR_NETWORK, "but for all others");
	ok(strstr(http->error.lib, "127.0.0.1") != NULL, "which libcurl's own words show");
	kc_http_free(http);
	config.proxy = NULL;
	unsetenv("http_proxy");
	unsetenv("HTTPS_PROXY");
	unsetenv("ALL_PROXY");
}

static void
test_limits(void)
{
	static char large[200000];
	KcHttp	   *http;

	memset(large, 'x', sizeof(large) - 1);
	server_clear(&server);
	server_rule(&server, (ServerRule) {.target = "/endless-error",.action = SERVER_ENDLESS,.status = 500});
	server_rule(&server, (ServerRule) {.target = "/endless",.action = SERVER_ENDLESS});
	server_rule(&server, (ServerRule) {.target = "/drip",.action = SERVER_DRIP,.body = large});
	server_rule(&server, (ServerRule) {.target = "/large",.body = large});
	server_rule(&server, (ServerRule) {.target = "/error",.status = 400,.body = large});

	http = run((KcHttpRequest) {.url = at("/large"),.max_response = 1000,.retry = &four_tries});
	is(http->error.status, KC_ERR_LIMIT, "an answer above the limit is an error");
	is(http->tries, 1, "that is not tried again");
	ok(http->response.body.len <= 1000, "no more than the limit was kept");
	kc_http_free(http);
	http = run((KcHttpRequest) {.url = at("/endless"),.max_response = 100000});
	is(http->error.status, KC_ERR_LIMIT, "so is one without end");
	kc_http_free(http);
	http = run((KcHttpRequest) {.url = at("/error")});
	is(http->error.status, KC_ERR_REFUSED, "a long error is still that error");
	is(http->error.http_status, 400, "with its status");
	is(http->response.body.len, KC_HTTP_ERROR_BODY, "and the start of its body");
	kc_http_free(http);
	http = run((KcHttpRequest) {.url = at("/endless-error")});
	is(http->error.status, KC_ERR_SERVICE, "an error without end as well");
	kc_http_free(http);
	http = run((KcHttpRequest) {.url = at("/drip"),.timeout_ms = 300});
	is(http->error.status, KC_ERR_TIMEOUT, "an answer that drips is cut off by the timeout");
	kc_http_free(http);
	http = run((KcHttpRequest) {.url = at("/drip"),.stall_timeout_ms = 1000});
	is(http->error.status, KC_ERR_TIMEOUT, "or by the limit of speed");
	kc_http_free(http);
}

static void
test_gzip(void)
{
	static char plain[100000];
	static char packed[2000];
	z_stream	z = {0};
	KcHttp	   *http;

	memset(plain, 'y', sizeof(plain));
	must(deflateInit2(&z, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
	z.next_in = (Bytef *) plain;
	z.avail_in = sizeof(plain);
	z.next_out = (Bytef *) packed;
	z.avail_out = sizeof(packed);
	must(deflate(&z, Z_FINISH) == Z_STREAM_END);
	server_clear(&server);
	server_rule(&server, (ServerRule) {.headers = "Content-Encoding: gzip\r\n",.body = packed,
				.body_len = z.total_out});
	deflateEnd(&z);
	http = run((KcHttpRequest) {.url = at("/z"),.flags = KC_HTTP_COMPRESSED});
	is_bytes(http->response.body.data, http->response.body.len, plain, sizeof(plain),
			 "a compressed answer is unpacked");
	is_str(server_header(server_nth(&server, NULL, "/z", 0), "Accept-Encoding"), "gzip", "if it was offered");
	kc_http_free(http);
	http = run((KcHttpRequest) {.url = at("/z"),.flags = KC_HTTP_COMPRESSED,.max_response = 5000});
	is(http->error.status, KC_ERR_LIMIT, "the limit holds for what comes out");
	kc_http_free(http);
	http = run((KcHttpRequest) {.url = at("/plain")});
	ok(server_header(server_nth(&server, NULL, "/plain", 0), "Accept-Encoding") == NULL,
	   "and not offered otherwise");
	kc_http_free(http);
}

/* ---- what is tried again ---- */

/* ---- proxies ---- */

static void
test_proxy_refuses(void)
{
	static const struct
	{
		int			status;
		bool		permanent;
	}			rows[] = {{403, true}, {407, true}, {502, false}};

	config.proxy = server.origin;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
	{
		KcHttp	   *http;
		char		what[64];

		server_clear(&server);
		server_rule(&server, (ServerRule) {.method = "CONNECT",.status = rows[i].status});
		http = run((KcHttpRequest) {.method = "POST",.url = kc_slice("https://cluster.example/x"),
				   .body = kc_slice("b"),.retry = &four_tries,.flags = KC_HTTP_ONCE});
		snprintf(what, sizeof(what), "the proxy refuses (HTTP status %d)", rows[i].status);
		is(http->error.status, KC_ERR_NETWORK, "a proxy that refuses");
		is_str(http->error.what, what, "is told");
		is(http->error.advice, KC_ADVICE_PROXY, "with advice");
		is(http->error.http_status, 0, "and not taken for the host's answer");
		ok(!http->error.after_send, "nothing was sent to the host");
		is(server_count(&server, "CONNECT", NULL), rows[i].permanent ? 1 : 4, "tries");
		kc_http_free(http);
	}
	config.proxy = NULL;
}

typedef struct MatrixRow
{
	int			http_status;
	KcStatus	status;
	bool		repeated;
	bool		repeated_once;	/* the same with KC_HTTP_ONCE */
} MatrixRow;

static const MatrixRow matrix[] = {
	{400, KC_ERR_REFUSED, false, false},
	{401, KC_ERR_AUTH, false, false},
	{403, KC_ERR_FORBIDDEN, false, false},
	{404, KC_ERR_NOT_FOUND, false, false},
	{408, KC_ERR_TIMEOUT, true, false},
	{409, KC_ERR_REFUSED, false, false},
	{412, KC_ERR_REFUSED, false, false},
	{413, KC_ERR_LIMIT, false, false},
	{429, KC_ERR_THROTTLED, true, true},
	{500, KC_ERR_SERVICE, true, false},
	{501, KC_ERR_REFUSED, false, false},
	{502, KC_ERR_SERVICE, true, false},
	{503, KC_ERR_SERVICE, true, true},
	{504, KC_ERR_SERVICE, true, false},
	{505, KC_ERR_REFUSED, false, false},
	{520, KC_ERR_SERVICE, true, false},
};

static void
test_matrix(void)
{
	for (size_t i = 0; i < sizeof(matrix) / sizeof(matrix[0]); i++)
	{
		const MatrixRow *row = &matrix[i];
		char		name[64];

		for (int once = 0; once < 2; once++)
		{
			bool		repeated = once ? row->repeated_once : row->repeated;
			KcHttp	   *http;

			server_clear(&server);
			server_rule(&server, (ServerRule) {.status = row->http_status});
			http = run((KcHttpRequest) {.method = "POST",.url = at("/x"),.body = kc_slice("b"),
					   .retry = &four_tries,.flags = once ? KC_HTTP_ONCE : 0});
			snprintf(name, sizeof(name), "%d%s", row->http_status, once ? ", once" : "");
			is(http->error.status, row->status, name);
			is(server_count(&server, NULL, "/x"), repeated ? 4 : 1, "its number of tries");
			kc_http_free(http);
		}
	}
}

static void
test_broken_connections(void)
{
	static const struct
	{
		ServerAction action;
		KcStatus	status;
		const char *name;
	}			rows[] = {
		{SERVER_RESET, KC_ERR_NETWORK, "reset"},
		{SERVER_CLOSE, KC_ERR_NETWORK, "closed without an answer"},
		{SERVER_TRUNCATE, KC_ERR_NETWORK, "truncated"},
		{SERVER_STALL, KC_ERR_TIMEOUT, "stalled"},
	};
	KcHttp	   *http;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
	{
		begin_afresh();
		server_rule(&server, (ServerRule) {.action = rows[i].action,.body = "0123456789"});
		http = run((KcHttpRequest) {.method = "POST",.url = at("/x"),.body = kc_slice("b"),
				   .retry = &four_tries,.timeout_ms = 300});
		is(http->error.status, rows[i].status, rows[i].name);
		is(server_count(&server, NULL, "/x"), 4, "is tried again");
		ok(http->error.after_send, "and may have had its effect");
		kc_http_free(http);

		begin_afresh();
		server_rule(&server, (ServerRule) {.action = rows[i].action,.body = "0123456789"});
		http = run((KcHttpRequest) {.method = "POST",.url = at("/x"),.body = kc_slice("b"),
				   .retry = &four_tries,.timeout_ms = 300,.flags = KC_HTTP_ONCE});
		is(server_count(&server, NULL, "/x"), 1, "but not what may happen only once");
		ok(http->error.after_send, "which is told");
		kc_http_free(http);
	}

	http = run((KcHttpRequest) {.url = kc_slice("http://127.0.0.1:1/"),.retry = &four_tries,
			   .flags = KC_HTTP_ONCE});
	is(http->error.status, KC_ERR_NETWORK, "nobody listens");
	is(http->tries, 4, "that is tried again in any case");
	ok(!http->error.after_send, "for it had no effect");
	ok(http->error.lib[0] != '\0', "libcurl says why");
	kc_http_free(http);
}

/* A connection that was kept and has died is not a failure of the service. */
static void
test_dead_connection(void)
{
	KcHttp	   *http;

	for (int once = 0; once < 2; once++)
	{
		begin_afresh();
		server_rule(&server, (ServerRule) {.target = "/first",.action = SERVER_LAST_ON_CONNECTION});
		server_rule(&server, (ServerRule) {.body = "fine"});
		http = run((KcHttpRequest) {.url = at("/first")});
		kc_http_free(http);
		http = run((KcHttpRequest) {.method = "POST",.url = at("/second"),.body = kc_slice("b"),
				   .flags = once ? KC_HTTP_ONCE : 0});
		if (!once)
		{
			is(http->error.status, KC_OK, "a dead idle connection is replaced");
			is(server_count(&server, NULL, "/second"), 2, "by one more request");
		}
		else
		{
			is(http->error.status, KC_ERR_NETWORK, "but not for what may happen only once");
			ok(http->error.after_send, "since it was sent whole");
			is(server_count(&server, NULL, "/second"), 1, "and only once");
		}
		kc_http_free(http);
	}
}

static void
test_retry_after(void)
{
	KcHttp	   *http;
	KcHttpRequest request = {.doing = "testing",.method = "GET",.max_response = 100,.retry = &four_tries};
	KcError		err;

	server_clear(&server);
	server_rule(&server, (ServerRule) {.times = 1,.status = 503,.headers = "Retry-After: 3600\r\n"});
	server_rule(&server, (ServerRule) {.body = "fine"});
	request.url = at("/later");
	must(kc_http_start(h.mux, &kc_alloc_malloc, &config, &request, &http, &err) == KC_OK);
	while (server_count(&server, NULL, "/later") == 0)
		harness_turn(&h, 20);
	for (int i = 0; i < 5; i++)
		harness_turn(&h, 20);
	ok(!http->done && server_count(&server, NULL, "/later") == 1, "Retry-After is waited for");
	h.moved_ms += 3600 * 1000 + 1000;
	(void) harness_until(&h, &http->done);
	is(http->error.status, KC_OK, "and then it is tried again");
	kc_http_free(http);

	server_clear(&server);
	server_rule(&server, (ServerRule) {.status = 503,.headers = "Retry-After: 3600\r\n"});
	must(kc_http_start(h.mux, &kc_alloc_malloc, &config, &request, &http, &err) == KC_OK);
	while (server_count(&server, NULL, "/later") == 0)
		harness_turn(&h, 20);
	kc_http_free(http);
	harness_turn(&h, 0);
	ok(true, "a request may be freed while it waits");
}

/*
 * A backend that sorts for minutes does not drive the mux meanwhile.
 */
static void
test_late_drive(void)
{
	static const KcRetryPolicy short_policy = {.max_attempts = 2,.base_ms = 1,.cap_ms = 1,.max_total_ms = 100};
	KcHttpRequest request = {
		.doing = "testing",.method = "GET",.max_response = 100,.timeout_ms = 300,.retry = &short_policy
	};
	KcHttp	   *http;
	KcError		err;

	begin_afresh();
	server_rule(&server, (ServerRule) {.times = 1,.status = 503});
	server_rule(&server, (ServerRule) {.body = "fine"});
	request.url = at("/late");
	must(kc_http_start(h.mux, &kc_alloc_malloc, &config, &request, &http, &err) == KC_OK);
	while (server_count(&server, NULL, "/late") == 0)
		harness_turn(&h, 20);
	(void) poll(NULL, 0, 1000); /* busy elsewhere */
	(void) harness_until(&h, &http->done);
	is(http->error.status, KC_OK, "a request survives that nobody drives the mux");
	is_slice(kc_buf_view(&http->response.body), "fine", "with its answer");
	kc_http_free(http);

	server_clear(&server);
	server_rule(&server, (ServerRule) {.action = SERVER_STALL});
	must(kc_http_start(h.mux, &kc_alloc_malloc, &config, &request, &http, &err) == KC_OK);
	(void) poll(NULL, 0, 1000);
	(void) harness_until(&h, &http->done);
	is(http->error.status, KC_ERR_TIMEOUT, "but not that nobody answers");
	kc_http_free(http);
}

static void
explain_test(const KcHttpResponse *response, KcError *err)
{
	kc_error_text(err->detail, sizeof(err->detail), kc_buf_view(&response->body));
}

static void
test_words(void)
{
	KcHttp	   *http;

	server_clear(&server);
	server_rule(&server, (ServerRule) {.status = 403,.body = "no: https://a.b/c?sv=1&sig=SECRET%3D",
				.headers = "x-ms-error-code: AuthenticationFailed\r\nx-ms-request-id: r-1\r\n"});
	http = run((KcHttpRequest) {.url = at("/x?sig=TOPSECRET"),.explain = explain_test,
			   .doing = "uploading a blob"});
	is_str(http->error.doing, "uploading a blob", "what we did");
	is_str(http->error.code, "AuthenticationFailed", "the code");
	is_str(http->error.activity_id, "r-1", "the id");
	is_str(http->error.host, "127.0.0.1", "the host");
	ok(strstr(http->error.detail, "no: https://a.b/c") != NULL, "the text");
	ok(strstr(http->error.detail, "SECRET") == NULL && strstr(http->error.what, "SECRET") == NULL
	   && strstr(http->error.lib, "SECRET") == NULL, "but no secret");
	kc_http_free(http);
	http = run((KcHttpRequest) {.url = kc_slice("https://no-such-host.invalid/?sig=TOPSECRET")});
	is(http->error.status, KC_ERR_NETWORK, "an unknown host");
	is_str(http->error.host, "no-such-host.invalid", "is named");
	ok(strstr(http->error.lib, "SECRET") == NULL, "without the query");
	kc_http_free(http);
}

/* TLS to a server that does not speak it. */
static void
test_tls(void)
{
	char		url[64];
	KcHttp	   *http;

	server_clear(&server);
	snprintf(url, sizeof(url), "https://127.0.0.1:%d/", server.port);
	http = run((KcHttpRequest) {.url = kc_slice(url),.timeout_ms = 1000});
	ok(http->error.status == KC_ERR_NETWORK || http->error.status == KC_ERR_TIMEOUT,
	   "https is never taken down to http");
	kc_http_free(http);
	config.ca_file = "/nonexistent/ca.pem";
	http = run((KcHttpRequest) {.url = kc_slice(url),.timeout_ms = 1000});
	is(http->error.status, KC_ERR_INVALID, "a missing file of certificates is an error");
	is(http->error.advice, KC_ADVICE_CA_FILE, "that says which setting is meant");
	kc_http_free(http);
	config.ca_file = NULL;
}

int
main(void)
{
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_request();
	test_large_body();
	test_policy();
	test_limits();
	test_gzip();
	test_proxy_refuses();
	test_matrix();
	test_broken_connections();
	test_dead_connection();
	test_retry_after();
	test_late_drive();
	test_words();
	test_tls();
	harness_stop(&h);
	server_stop(&server);
	return done_testing();
}
