/*
 * http_internal.h
 *	  What http.c (retries), http_transfer.c (libcurl) and http_error.c (words)
 *	  share.
 */
#ifndef KC_HTTP_INTERNAL_H
#define KC_HTTP_INTERNAL_H

#include "http.h"
#include "mux_curl.h"
#include "text.h"

typedef struct HttpCall
{
	KcHttp		http;			/* first member */
	const KcAlloc *alloc;
	KcMux	   *mux;
	const KcHttpConfig *config;
	KcHttpRequest request;		/* url and headers are not to be used any more */
	char	   *url;			/* secret */
	KcUrl		url_parts;		/* of url */
	struct curl_slist *headers; /* secret */
	KcTransfer	transfer;
	KcTimer		timer;
	KcRetry		retry;
	KcRetryPolicy policy;
	int			forgiven;		/* tries that our own slowness cost */
	int64_t		late_seen_ms;	/* of the mux, already taken off the retry's time */
	/* State of the current try. */
	size_t		body_sent;		/* bytes of the body that libcurl has taken */
	bool		answer_too_large;
	bool		error_body_cut;
	bool		fresh_connection;	/* do not reuse one */
	bool		reconnected;	/* a dead reused connection was replaced once */
	char		curl_text[CURL_ERROR_SIZE];
} HttpCall;

/* http_transfer.c */
extern KcStatus kc_http_transfer_start(HttpCall *call, KcError *err);
extern void kc_http_transfer_end(HttpCall *call);
extern bool kc_http_died_on_reuse(HttpCall *call, CURLcode code);
extern KcStatus kc_http_copy_headers(HttpCall *call, const KcHttpHeader *headers, int nheaders,
									 KcError *err);

/* http_error.c */
extern void kc_http_judge(HttpCall *call, CURLcode code, KcError *err);

#endif							/* KC_HTTP_INTERNAL_H */
