/*
 * http.h
 *	  One HTTP request with its policy and its retries.
 *
 * The policy is not negotiable: https, or http to this host; certificates are
 * verified; redirects are not followed, so that neither a token nor a SAS can
 * wander to another host; nothing is taken from the environment; answers are
 * bounded in size and time.
 *
 * A KcHttp belongs to whoever started it.  It may be freed at any moment, from
 * within its own on_done as well.  The body of the request is not copied and
 * must live until then.
 */
#ifndef KC_HTTP_H
#define KC_HTTP_H

#include "buf.h"
#include "mux.h"
#include "retry.h"

/* The same for every request of a client; outlives them. */
typedef struct KcHttpConfig
{
	const char *proxy;			/* NULL: none, whatever the environment says */
	const char *ca_file;		/* NULL: libcurl's default */
	const char *user_agent;
	int64_t		connect_timeout_ms;
} KcHttpConfig;

typedef struct KcHttpHeader
{
	const char *name;
	KcSlice		value;			/* bytes that a header may not hold become '?' */
} KcHttpHeader;

/* Repeating is wrong once the request may have had its effect. */
#define KC_HTTP_ONCE			0x01
/* Of this host or its hypervisor: never by a proxy; http to 169.254.0.0/16 is fine. */
#define KC_HTTP_HOST_IDENTITY	0x02
/* Only resolve, connect and shake hands. */
#define KC_HTTP_CONNECT_ONLY	0x04
/* Offer gzip for the answer; max_response bounds what comes out of it. */
#define KC_HTTP_COMPRESSED		0x08

typedef struct KcHttpResponse
{
	int			status;			/* 0: none came */
	KcBuf		body;			/* of an error at most KC_HTTP_ERROR_BODY bytes */
	char		content_type[64];
	char		activity_id[KC_ERROR_ID_MAX];	/* x-ms-activity-id or x-ms-request-id */
	char		error_code[KC_ERROR_CODE_MAX];	/* x-ms-error-code */
	int64_t		retry_after_ms; /* -1: none */
	int64_t		skew_us;		/* the server's clock minus ours; 0: not told */
	char		peer[64];		/* numeric address */
} KcHttpResponse;

#define KC_HTTP_ERROR_BODY (64 * 1024)

typedef struct KcHttpRequest
{
	const char *doing;			/* static */
	const char *method;			/* static: GET, HEAD, PUT, POST, DELETE */
	KcSlice		url;			/* copied; sent byte for byte */
	const KcHttpHeader *headers;	/* copied */
	int			nheaders;
	KcSlice		body;			/* not copied */
	size_t		max_response;
	unsigned	flags;
	int64_t		timeout_ms;		/* of one try; 0: none */
	int64_t		stall_timeout_ms;	/* nothing moves for so long; 0: none */
	const KcRetryPolicy *retry; /* static or outliving; NULL: one try */
	/* Reads the body of a refusal into *err; may be NULL. */
	void		(*explain) (const KcHttpResponse *response, KcError *err);
	/* A status beyond the usual ones that time may heal; may be NULL. */
	bool		(*heals) (int status);
} KcHttpRequest;

typedef struct KcHttp
{
	bool		done;
	KcError		error;			/* KC_OK: a 2xx answer came whole */
	KcHttpResponse response;	/* of the last try */
	int			tries;
	bool		maybe_done;		/* a failed try, perhaps an earlier one, may have had
								 * its effect */
	void		(*on_done) (struct KcHttp *http);	/* set before the first drive */
	void	   *arg;
} KcHttp;

extern KcStatus kc_http_start(KcMux *mux, const KcAlloc *alloc, const KcHttpConfig *config,
							  const KcHttpRequest *request, KcHttp **http, KcError *err);
extern void kc_http_free(KcHttp *http); /* NULL is fine */

#endif							/* KC_HTTP_H */
