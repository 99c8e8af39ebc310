/*
 * auth.h
 *	  Whom we are to Kusto: cloud metadata and access tokens, cached.
 *
 * Both are fetched at most once at a time, however many wait.  A token is
 * fetched anew some minutes before it expires.  Whoever finds it due waits, at
 * most for one short try; the others, and everybody if that fails, use the old
 * one while it lasts.  Where there is a cache, all of this holds for the
 * processes that share it.
 *
 * Public sources: learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow,
 * .../managed-identities-azure-resources/how-to-use-vm-token,
 * learn.microsoft.com/azure/app-service/overview-managed-identity
 */
#ifndef KC_AUTH_H
#define KC_AUTH_H

#include "cache.h"
#include "http.h"
#include "kusto.h"
#include "waiter.h"

/* ---- what a cluster says about its cloud ---- */

typedef struct KcCloud KcCloud;

typedef struct KcCloudInfo
{
	bool		no_auth;		/* the service asks for no token */
	char	   *login_endpoint; /* checked; without '/' at its end */
	char	   *resource;		/* whom the token is for */
} KcCloudInfo;

typedef struct KcCloudConfig
{
	const char *uris[2];		/* asked in turn; the second may be NULL */
	const char *authority;		/* overrides the login endpoint; may be NULL */
	const KcHttpConfig *http;
	int64_t		request_timeout_ms;
	int64_t		retry_total_ms;
} KcCloudConfig;

extern KcStatus kc_cloud_create(const KcAlloc *alloc, KcMux *mux, const KcCloudConfig *config,
								KcCloud **cloud, KcError *err);
extern void kc_cloud_free(KcCloud *cloud);
extern const KcCloudInfo *kc_cloud_info(const KcCloud *cloud);	/* NULL: not known yet */
/* Start asking unless somebody has, and wait. */
extern KcStatus kc_cloud_wait(KcCloud *cloud, KcWaiter *waiter, KcError *err);
extern void kc_cloud_cancel(KcCloud *cloud, KcWaiter *waiter);
/* Is it a login endpoint of Microsoft's public or sovereign clouds? */
extern bool kc_cloud_login_host_known(KcSlice host);

/*
 * How long one try of a small request to an endpoint that hands out metadata
 * or tokens may take; request_timeout_ms is made for long queries.
 */
extern int64_t kc_auth_try_timeout_ms(int64_t request_timeout_ms);

/* ---- tokens ---- */

typedef struct KcAuth KcAuth;

typedef struct KcAuthConfig
{
	KcAuthMethod method;
	const char *tenant;
	const char *client_id;
	const char *client_secret;
	const char *access_token;
	const char *identity_endpoint;	/* NULL: the environment's, else the VM's */
	const char *identity_header;	/* NULL: the environment's, with its endpoint */
	const KcHttpConfig *http;
	const KcCache *cache;		/* NULL: tokens are not shared */
	const KcCacheKey *cache_key;
	int64_t		request_timeout_ms;
	int64_t		retry_total_ms;
} KcAuthConfig;

/* The config's strings must outlive it. */
extern KcStatus kc_auth_create(const KcAlloc *alloc, KcMux *mux, const KcAuthConfig *config,
							   KcCloud *cloud, KcAuth **auth, KcError *err);
extern void kc_auth_free(KcAuth *auth);

typedef struct KcToken
{
	KcSlice		text;			/* empty: send none; valid until the next drive */
	uint64_t	generation;
} KcToken;

/*
 * False: none that is good, or one that is due for renewal, which nobody has
 * begun; wait.
 */
extern bool kc_auth_token(const KcAuth *auth, KcToken *token);
extern KcStatus kc_auth_wait(KcAuth *auth, KcWaiter *waiter, KcError *err);
extern void kc_auth_cancel(KcAuth *auth, KcWaiter *waiter);

/* The service answered 401 to that one.  False: there is no other to be had. */
extern bool kc_auth_reject(KcAuth *auth, uint64_t generation);

/* "aadapp=<client id>;<tenant>" as the token itself says; empty: it does not. */
extern void kc_auth_principal(const KcAuth *auth, char *text, size_t size);
/* Milliseconds until the current token expires; -1: unknown. */
extern int64_t kc_auth_token_life_ms(const KcAuth *auth);

/* ---- between auth.c and auth_token.c ---- */

typedef struct KcTokenAnswer
{
	char	   *token;			/* secret */
	int64_t		lifetime_s;
	int64_t		refresh_s;		/* fetch anew after so long */
} KcTokenAnswer;

typedef struct KcTokenRequest
{
	KcBuf		url;
	KcBuf		body;			/* secret */
	KcBuf		secret;			/* what no error may tell, in body or headers */
	KcHttpHeader headers[2];
	KcHttpRequest http;
	KcRetryPolicy policy;
} KcTokenRequest;

extern KcStatus kc_token_request_build(const KcAlloc *alloc, const KcAuthConfig *config,
									   const KcCloudInfo *cloud, KcTokenRequest *request, KcError *err);
extern void kc_token_request_free(KcTokenRequest *request);
extern KcStatus kc_token_answer_parse(const KcAlloc *alloc, KcSlice body, int64_t now_us,
									  KcTokenAnswer *answer, KcError *err);

#endif							/* KC_AUTH_H */
