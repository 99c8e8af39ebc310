/*
 * fuzz_url.c
 *	  URLs: whatever we accept is cut into pieces that make the whole again,
 *	  and libcurl reads the same host and port in it.  And percent-encoding,
 *	  there and back.
 */
#include "fuzz.h"

#include <curl/curl.h>

#include "core/text.h"

static void
check_pieces(KcSlice text, const KcUrl *url)
{
	KcBuf		whole;
	KcUrl		origin;
	KcSlice		value;

	holds(fuzz_lies_within(url->scheme, text) && fuzz_lies_within(url->host, url->origin));
	holds(fuzz_lies_within(url->origin, text) && url->origin.data == text.data);
	holds(fuzz_lies_within(url->path, text) && fuzz_lies_within(url->query, text));
	holds(url->path.len == 0 || url->path.data[0] == '/');
	holds(url->port >= 1 && url->port <= 65535 && url->host.len > 0);

	kc_buf_init(&whole, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_slice(&whole, url->origin);
	kc_buf_slice(&whole, url->path);
	if (whole.len < text.len)
		kc_buf_char(&whole, '?');
	kc_buf_slice(&whole, url->query);
	holds(kc_slice_eq(kc_buf_view(&whole), text));
	kc_buf_free(&whole);

	holds(kc_url_parse(url->origin, &origin, NULL) == KC_OK);
	holds(kc_slice_eq(origin.host, url->host) && origin.port == url->port);
	holds(!url->host_is_ipv6 || kc_host_is_ip(url->host));
	if (kc_url_query_get(url, "sig", &value) || kc_url_query_get(url, "", &value))
		holds(fuzz_lies_within(value, url->query) &&
			  (value.len == 0 || memchr(value.data, '&', value.len) == NULL));
}

/*
 * We decide by our reading of the host whether it may get a token; libcurl
 * connects by its own.
 */
static void
compare_with_curl(KcSlice text, const KcUrl *url)
{
	char	   *copy = kc_strdup(&kc_alloc_malloc, text);
	CURLU	   *curl = curl_url();
	char	   *host = NULL;
	char	   *port = NULL;

	holds(copy != NULL && curl != NULL);
	if (curl_url_set(curl, CURLUPART_URL, copy, 0) == CURLUE_OK)
	{
		KcSlice		got;

		holds(curl_url_get(curl, CURLUPART_HOST, &host, 0) == CURLUE_OK);
		holds(curl_url_get(curl, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) == CURLUE_OK);
		got = kc_slice(host);
		if (got.len >= 2 && got.data[0] == '[')
			got = kc_slice_n(got.data + 1, got.len - 2);
		/* curl writes 127.1 and :: in their usual form; that is not our text */
		if (!url->host_is_ipv6 && !kc_host_is_ip(got))
			holds(kc_slice_ieq(got, url->host));
		if (kc_host_is_loopback(got))
			holds(kc_host_is_loopback(url->host) || !kc_host_is_ip(url->host));
		holds(atoi(port) == url->port);
	}
	curl_free(host);
	curl_free(port);
	curl_url_cleanup(curl);
	kc_free(&kc_alloc_malloc, copy);
}

static void
check_percent(KcSlice text)
{
	KcBuf		encoded;
	KcBuf		decoded;

	kc_buf_init(&encoded, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_init(&decoded, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_text_percent_encode(&encoded, text);
	for (size_t i = 0; i < encoded.len; i++)
		holds(strchr("-._~%", encoded.data[i]) != NULL ||
			  (encoded.data[i] >= '0' && encoded.data[i] <= '9') ||
			  ((encoded.data[i] | 0x20) >= 'a' && (encoded.data[i] | 0x20) <= 'z'));
	holds(kc_text_percent_decode(&decoded, kc_buf_view(&encoded)));
	holds(kc_slice_eq(kc_buf_view(&decoded), text));

	/* Decoding of anything: fails and leaves nothing, or loses nothing. */
	kc_buf_reset(&decoded);
	if (kc_text_percent_decode(&decoded, text))
	{
		KcBuf		again;

		kc_buf_init(&again, &kc_alloc_malloc, KC_BUF_UNLIMITED);
		kc_buf_reset(&encoded);
		kc_text_percent_encode(&encoded, kc_buf_view(&decoded));
		holds(kc_text_percent_decode(&again, kc_buf_view(&encoded)));
		holds(kc_slice_eq(kc_buf_view(&again), kc_buf_view(&decoded)));
		kc_buf_free(&again);
	}
	else
		holds(decoded.len == 0);
	kc_buf_free(&encoded);
	kc_buf_free(&decoded);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	KcSlice		text = kc_slice_n((const char *) data, size);
	KcUrl		url;
	KcError		err;

	if (kc_url_parse(text, &url, &err) == KC_OK)
	{
		check_pieces(text, &url);
		compare_with_curl(text, &url);
	}
	else
		holds(err.status == KC_ERR_INVALID && err.what[0] != '\0');
	(void) kc_host_is_ip(text);
	holds(!kc_host_is_loopback(text) || kc_host_is_ip(text) ||
		  kc_slice_ieq(text, kc_slice("localhost")));
	check_percent(text);
	return 0;
}
