/*
 * http_error.c
 *	  The outcome of a try in words: libcurl's codes and HTTP's statuses as a
 *	  KcError.
 */
#include <stdlib.h>
#include <string.h>

#include "http_internal.h"

typedef struct CurlMeaning
{
	CURLcode	code;
	KcStatus	status;
	bool		permanent;
	KcAdvice	advice;
	const char *what;
} CurlMeaning;

static const CurlMeaning curl_meanings[] = {
	{CURLE_COULDNT_RESOLVE_HOST, KC_ERR_NETWORK, false, KC_ADVICE_NONE, "could not resolve the host name"},
	{CURLE_COULDNT_RESOLVE_PROXY, KC_ERR_NETWORK, false, KC_ADVICE_PROXY, "could not resolve the proxy's host name"},
	{CURLE_COULDNT_CONNECT, KC_ERR_NETWORK, false, KC_ADVICE_NONE, "could not connect"},
#if LIBCURL_VERSION_NUM >= 0x074900
	{CURLE_PROXY, KC_ERR_NETWORK, false, KC_ADVICE_PROXY, "the proxy refused"},
#endif
	{CURLE_OPERATION_TIMEDOUT, KC_ERR_TIMEOUT, false, KC_ADVICE_NONE, "no answer in time"},
	{CURLE_SEND_ERROR, KC_ERR_NETWORK, false, KC_ADVICE_NONE, "the connection broke while sending"},
	{CURLE_SEND_FAIL_REWIND, KC_ERR_NETWORK, false, KC_ADVICE_NONE, "the connection broke while sending"},
	{CURLE_RECV_ERROR, KC_ERR_NETWORK, false, KC_ADVICE_NONE, "the connection broke"},
	{CURLE_GOT_NOTHING, KC_ERR_NETWORK, false, KC_ADVICE_NONE, "the connection was closed without an answer"},
	{CURLE_PARTIAL_FILE, KC_ERR_NETWORK, false, KC_ADVICE_NONE, "the answer was cut off"},
	{CURLE_SSL_CONNECT_ERROR, KC_ERR_NETWORK, false, KC_ADVICE_NONE, "the TLS handshake failed"},
	{CURLE_PEER_FAILED_VERIFICATION, KC_ERR_NETWORK, true, KC_ADVICE_CA_FILE, "the server's certificate is not trusted"},
	{CURLE_SSL_CACERT_BADFILE, KC_ERR_INVALID, true, KC_ADVICE_CA_FILE, "could not read the file of trusted certificates"},
	{CURLE_SSL_ISSUER_ERROR, KC_ERR_NETWORK, true, KC_ADVICE_CA_FILE, "the server's certificate is not trusted"},
	{CURLE_OUT_OF_MEMORY, KC_ERR_NOMEM, false, KC_ADVICE_NONE, "out of memory"},
	{CURLE_BAD_CONTENT_ENCODING, KC_ERR_PROTOCOL, true, KC_ADVICE_NONE, "the answer is compressed in a way that we did not ask for"},
	{CURLE_WEIRD_SERVER_REPLY, KC_ERR_PROTOCOL, true, KC_ADVICE_NOT_KUSTO, "the answer is not HTTP"},
	{CURLE_UNSUPPORTED_PROTOCOL, KC_ERR_PROTOCOL, true, KC_ADVICE_NOT_KUSTO, "the answer is not HTTP/1.1"},
	{CURLE_URL_MALFORMAT, KC_ERR_INVALID, true, KC_ADVICE_NONE, "libcurl does not accept the URL"},
	{CURLE_NO_CONNECTION_AVAILABLE, KC_ERR_NETWORK, false, KC_ADVICE_NONE, "could not connect"},
};

/*
 * The status with which a proxy answered CONNECT, if it was a refusal, else 0.
 */
static int
refusal_of_proxy(HttpCall *call)
{
	long		status = 0;

	curl_easy_getinfo(call->transfer.easy, CURLINFO_HTTP_CONNECTCODE, &status);
	return status >= 400 && status <= 599 ? (int) status : 0;
}

/*
 * May the request have reached the server whole?  Bytes in a socket's buffer
 * count as sent.
 */
static bool
sent_whole(HttpCall *call)
{
	long		request_size = 0;

	if (call->http.response.status != 0)
		return true;
	if (refusal_of_proxy(call) != 0)
		return false;
	curl_easy_getinfo(call->transfer.easy, CURLINFO_REQUEST_SIZE, &request_size);
	return request_size > 0 && call->body_sent == call->request.body.len;
}

static void
judge_transport(HttpCall *call, CURLcode code, KcError *err)
{
	const char *doing = call->request.doing;
	const CurlMeaning *meaning = NULL;
	const char *text = call->curl_text;
	int			proxy_status = refusal_of_proxy(call);

	for (size_t i = 0; i < sizeof(curl_meanings) / sizeof(curl_meanings[0]); i++)
	{
		if (curl_meanings[i].code == code)
			meaning = &curl_meanings[i];
	}
	if (call->answer_too_large)
	{
		kc_error_set(err, KC_ERR_LIMIT, doing, "the answer is larger than %zu bytes",
					 call->request.max_response);
		err->permanent = true;
		return;
	}
	if (call->http.response.body.failed == KC_ERR_NOMEM)
	{
		kc_error_nomem(err, doing);
		return;
	}
	if (code == CURLE_COULDNT_CONNECT && call->transfer.fd_refused)
		kc_error_set(err, KC_ERR_NETWORK, doing, "too many open files in this process");
	else if (proxy_status != 0)
	{
		kc_error_set(err, KC_ERR_NETWORK, doing, "the proxy refuses (HTTP status %d)", proxy_status);
		/* 5xx: it could not reach the host; 429: it is busy */
		err->permanent = proxy_status < 500 && proxy_status != 408 && proxy_status != 429;
		err->advice = KC_ADVICE_PROXY;
	}
	else if (meaning == NULL)
		kc_error_set(err, KC_ERR_INTERNAL, doing, "libcurl failed with code %d", (int) code);
	else
	{
		kc_error_set(err, meaning->status, doing, "%s", meaning->what);
		err->permanent = meaning->permanent;
		err->advice = meaning->advice;
	}
	if (text[0] == '\0')
		text = curl_easy_strerror(code);
	kc_error_text(err->lib, sizeof(err->lib), kc_slice(text));
}

static KcStatus
status_of(int http_status, bool *permanent)
{
	*permanent = true;
	switch (http_status)
	{
		case 401:
			return KC_ERR_AUTH;
		case 403:
			return KC_ERR_FORBIDDEN;
		case 404:
		case 410:
			return KC_ERR_NOT_FOUND;
		case 413:
			return KC_ERR_LIMIT;
		case 408:
			*permanent = false;
			return KC_ERR_TIMEOUT;
		case 429:
			*permanent = false;
			return KC_ERR_THROTTLED;
		case 501:
		case 505:
			return KC_ERR_REFUSED;
		default:
			break;
	}
	if (http_status >= 500 && http_status <= 599)
	{
		*permanent = false;
		return KC_ERR_SERVICE;
	}
	if (http_status >= 400 && http_status <= 499)
		return KC_ERR_REFUSED;
	return KC_ERR_PROTOCOL;
}

/*
 * A status refuses the request in the sense that it had no effect, except
 * where it may say no more than that somebody lost track of it: of the server
 * errors only "not implemented", "unavailable" and "HTTP version not
 * supported" are said before the request is acted upon (RFC 9110 section 15.6).
 */
static bool
effect_unknown(int http_status)
{
	if (http_status == 501 || http_status == 503 || http_status == 505)
		return false;
	return http_status == 408 || (http_status >= 500 && http_status <= 599);
}

static void
judge_answer(HttpCall *call, KcError *err)
{
	const KcHttpResponse *response = &call->http.response;
	const char *doing = call->request.doing;
	bool		permanent;
	KcStatus	status = status_of(response->status, &permanent);

	if (response->status >= 300 && response->status <= 399)
	{
		kc_error_set(err, status, doing, "the server redirects (HTTP status %d), which is not followed",
					 response->status);
		err->advice = KC_ADVICE_NOT_KUSTO;
	}
	else
		kc_error_set(err, status, doing, "the server answered with HTTP status %d", response->status);
	err->permanent = permanent;
	if (response->status == 407)
		err->advice = KC_ADVICE_PROXY;
	if (response->status == 429)
		err->advice = KC_ADVICE_THROTTLED;
	err->http_status = response->status;
	err->retry_after_ms = response->retry_after_ms;
	kc_error_text(err->activity_id, sizeof(err->activity_id), kc_slice(response->activity_id));
	kc_error_text(err->code, sizeof(err->code), kc_slice(response->error_code));
	if (call->request.explain != NULL)
		call->request.explain(response, err);
	err->after_send = effect_unknown(response->status);
}

void
kc_http_judge(HttpCall *call, CURLcode code, KcError *err)
{
	KcHttpResponse *response = &call->http.response;
	char	   *peer = NULL;

	kc_error_clear(err);
	curl_easy_getinfo(call->transfer.easy, CURLINFO_PRIMARY_IP, &peer);
	if (peer != NULL)
		kc_error_text(response->peer, sizeof(response->peer), kc_slice(peer));

	if (code == CURLE_WRITE_ERROR && call->error_body_cut)
		code = CURLE_OK;
	if (code != CURLE_OK)
	{
		judge_transport(call, code, err);
		err->after_send = sent_whole(call);
	}
	else if ((call->request.flags & KC_HTTP_CONNECT_ONLY) == 0
			 && (response->status < 200 || response->status > 299))
		judge_answer(call, err);
	else
		return;
	kc_error_text(err->host, sizeof(err->host), call->url_parts.host);
}
