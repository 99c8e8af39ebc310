/*
 * test_auth.c
 *	  Cloud metadata, access tokens by each method, their cache.
 */
#define _GNU_SOURCE
#include "core/auth.h"
#include "fail_alloc.h"
#include "harness.h"
#include "http_server.h"

#define SECRET "s3cr~et+= &%/\"x"

static Server server;
static Harness h;
static const KcHttpConfig http_config = {.user_agent = "test",.connect_timeout_ms = 5000};

typedef struct Fixture
{
	KcCloud    *cloud;
	KcAuth	   *auth;
} Fixture;

static KcAuthConfig
secret_config(void)
{
	/* Back-off takes no time here, so it is tries and not time that bound it. */
	return (KcAuthConfig) {
		.method = KC_AUTH_CLIENT_SECRET,.tenant = "my tenant/x",.client_id = "app-1",
			.client_secret = SECRET,.http = &http_config,.request_timeout_ms = 5000
	};
}

static void
make(Fixture *f, const KcAuthConfig *config, const char *authority)
{
	KcCloudConfig cloud = {
		.uris = {server.origin, NULL},.authority = authority,.http = &http_config,
		.request_timeout_ms = 5000
	};
	KcError		err;

	must(kc_cloud_create(&kc_alloc_malloc, h.mux, &cloud, &f->cloud, &err) == KC_OK);
	must(kc_auth_create(&kc_alloc_malloc, h.mux, config, f->cloud, &f->auth, &err) == KC_OK);
}

static void
end(Fixture *f)
{
	kc_auth_free(f->auth);
	kc_cloud_free(f->cloud);
}

/* ---- waiting ---- */

typedef struct Wait
{
	KcWaiter	waiter;
	bool		done;
	KcError		error;
} Wait;

static void
on_ready(KcWaiter *waiter, const KcError *err)
{
	Wait	   *wait = waiter->arg;

	wait->done = true;
	if (err != NULL)
		wait->error = *err;
}

static void
begin_wait(Fixture *f, Wait *wait)
{
	memset(wait, 0, sizeof(*wait));
	wait->waiter.ready = on_ready;
	wait->waiter.arg = wait;
	kc_error_clear(&wait->error);
	if (kc_auth_wait(f->auth, &wait->waiter, &wait->error) != KC_OK)
		wait->done = true;
}

static KcStatus
get_token(Fixture *f, KcError *err)
{
	Wait		wait;

	begin_wait(f, &wait);
	(void) harness_until(&h, &wait.done);
	*err = wait.error;
	return err->status;
}

#define METADATA \
	"{\"AzureAD\":{\"LoginEndpoint\":\"$ORIGIN/\",\"LoginMfaRequired\":false," \
	"\"KustoClientAppId\":\"x\",\"KustoServiceResourceId\":\"https://kusto.example\"," \
	"\"Further\":[1]},\"dSTS\":{}}"

static void
serve_metadata(const char *body)
{
	server_rule(&server, (ServerRule) {.method = "GET",.target = "/v1/rest/auth/metadata",.body = body});
}

static void
serve_token(const char *body)
{
	server_rule(&server, (ServerRule) {.method = "POST",.target = "/oauth2/v2.0/token",.body = body});
}

/* ---- client secret ---- */

static void
test_client_secret(void)
{
	KcAuthConfig config = secret_config();
	const ServerRequest *seen;
	Fixture		f;
	KcToken		token;
	KcError		err;
	Wait		waits[3];

	server_clear(&server);
	serve_metadata(METADATA);
	serve_token("{\"token_type\":\"Bearer\",\"expires_in\":3599,\"access_token\":\"token-1\"}");
	make(&f, &config, NULL);
	ok(!kc_auth_token(f.auth, &token), "no token at first");
	for (int i = 0; i < 3; i++)
		begin_wait(&f, &waits[i]);
	kc_auth_cancel(f.auth, &waits[1].waiter);
	(void) harness_until(&h, &waits[2].done);
	ok(waits[0].done && waits[0].error.status == KC_OK, "all who wait are told");
	ok(!waits[1].done, "except who no longer waits");
	ok(kc_auth_token(f.auth, &token), "there is a token");
	is_slice(token.text, "token-1", "the right one");
	is(server_count(&server, "POST", NULL), 1, "three waited for one request");
	is(server_count(&server, "GET", "metadata"), 1, "and one for metadata");

	seen = server_nth(&server, "POST", NULL, 0);
	is_str(seen->target, "/my%20tenant%2Fx/oauth2/v2.0/token", "the tenant's endpoint");
	is_str(server_header(seen, "Content-Type"), "application/x-www-form-urlencoded", "a form");
	is_str(seen->body,
		   "grant_type=client_credentials&client_id=app-1&client_secret=s3cr~et%2B%3D%20%26%25%2F%22x"
		   "&scope=https%3A%2F%2Fkusto.example%2F.default", "with every value encoded");
	seen = server_nth(&server, "GET", "metadata", 0);
	ok(server_header(seen, "Authorization") == NULL, "metadata is asked without authorization");

	/* early refresh */
	h.moved_ms += (3599 - 301) * 1000;
	ok(kc_auth_token(f.auth, &token), "it is good until five minutes before its end");
	h.moved_ms += 2000;
	ok(!kc_auth_token(f.auth, &token), "then another is wanted");
	is(get_token(&f, &err), KC_OK, "and fetched");
	is(server_count(&server, "POST", NULL), 2, "by a second request");
	is(server_count(&server, "GET", "metadata"), 1, "metadata is known by now");

	/* the old one serves while the endpoint is down */
	h.moved_ms += (3599 - 200) * 1000;
	server_rule_first(&server, (ServerRule) {.method = "POST",.status = 500});
	is(get_token(&f, &err), KC_OK, "while the old one lasts, a failure hurts nobody");
	is(server_count(&server, "POST", NULL), 3, "and is not insisted on");
	ok(kc_auth_token(f.auth, &token), "the old one is used");
	h.moved_ms += 190 * 1000;
	is(get_token(&f, &err), KC_OK, "also shortly before its end");
	h.moved_ms += 11 * 1000;
	ok(!kc_auth_token(f.auth, &token), "but not a moment longer");
	is(get_token(&f, &err), KC_ERR_SERVICE, "after its end it does");
	ok(!kc_auth_token(f.auth, &token), "and there is none");
	end(&f);
}

/* One renews the token, the others use the old one as long as it lasts. */
static void
test_due(void)
{
	KcAuthConfig config = secret_config();
	Fixture		f;
	KcToken		token;
	KcError		err;
	Wait		wait;

	server_clear(&server);
	serve_metadata(METADATA);
	serve_token("{\"expires_in\":3600,\"access_token\":\"token-1\"}");
	make(&f, &config, NULL);
	must(get_token(&f, &err) == KC_OK);
	h.moved_ms += 3400 * 1000;
	server_rule_first(&server, (ServerRule) {.method = "POST",.action = SERVER_STALL});
	ok(!kc_auth_token(f.auth, &token), "a token is due");
	begin_wait(&f, &wait);
	ok(kc_auth_token(f.auth, &token), "for the first who wants one");
	is_slice(token.text, "token-1", "the others use the old one");
	ok(kc_auth_reject(f.auth, token.generation) && !kc_auth_token(f.auth, &token), "unless it was rejected");
	end(&f);

	/* nor does the first wait for long */
	config.request_timeout_ms = 500;
	server_clear(&server);
	serve_metadata(METADATA);
	server_rule(&server, (ServerRule) {.method = "POST",.skip = 1,.action = SERVER_STALL});
	serve_token("{\"expires_in\":3600,\"access_token\":\"token-1\"}");
	make(&f, &config, NULL);
	must(get_token(&f, &err) == KC_OK);
	h.moved_ms += 3400 * 1000;
	is(get_token(&f, &err), KC_OK, "an endpoint that is silent");
	is(server_count(&server, "POST", NULL), 2, "is asked once while the old token lasts");
	end(&f);
}

/* request_timeout is for queries; nobody waits minutes for a token. */
static void
test_try_timeout(void)
{
	KcAuthConfig config = secret_config();
	KcCloudInfo cloud = {.login_endpoint = "https://login.example",.resource = "https://kusto.example"};
	KcTokenRequest request;
	KcError		err;

	is(kc_auth_try_timeout_ms(240000), 30000, "30 seconds at the most");
	is(kc_auth_try_timeout_ms(0), 30000, "also where requests have no limit");
	is(kc_auth_try_timeout_ms(1000), 1000, "or less");
	config.request_timeout_ms = 240000;
	must(kc_token_request_build(&kc_alloc_malloc, &config, &cloud, &request, &err) == KC_OK);
	is(request.http.timeout_ms, 30000, "of a token request");
	kc_token_request_free(&request);
}

static void
test_reject(void)
{
	KcAuthConfig config = secret_config();
	Fixture		f;
	KcToken		token;
	KcError		err;

	server_clear(&server);
	serve_metadata(METADATA);
	serve_token("{\"expires_in\":\"3600\",\"access_token\":\"token-1\"}");
	make(&f, &config, NULL);
	is(get_token(&f, &err), KC_OK, "expires_in may be a string");
	must(kc_auth_token(f.auth, &token));
	ok(kc_auth_reject(f.auth, token.generation), "a rejected token can be replaced");
	ok(!kc_auth_token(f.auth, &token), "and is not used again");
	is(get_token(&f, &err), KC_OK, "another is fetched");
	ok(kc_auth_reject(f.auth, token.generation), "rejecting the old one again");
	ok(kc_auth_token(f.auth, &token), "leaves the new one alone");
	end(&f);

	config = (KcAuthConfig) {.method = KC_AUTH_ACCESS_TOKEN,.access_token = "given",.http = &http_config};
	make(&f, &config, NULL);
	ok(kc_auth_token(f.auth, &token), "a given token is there at once");
	is_slice(token.text, "given", "as it was given");
	ok(!kc_auth_reject(f.auth, token.generation), "and has no replacement");
	end(&f);
	config = (KcAuthConfig) {.method = KC_AUTH_NONE,.http = &http_config};
	make(&f, &config, NULL);
	ok(kc_auth_token(f.auth, &token) && token.text.len == 0, "none is an empty one");
	end(&f);
}

static void
test_refusals(void)
{
	KcAuthConfig config = secret_config();
	Fixture		f;
	KcError		err;
	char		text[256];

	server_clear(&server);
	serve_metadata(METADATA);
	server_rule(&server, (ServerRule) {.method = "POST",.status = 401,.body =
				"{\"error\":\"invalid_client\",\"error_description\":\"AADSTS7000215: Invalid client secret "
				"provided: s3cr~et+= &%/\\\"x Trace ID: t\\r\\n\",\"error_codes\":[7000215]}"});
	make(&f, &config, NULL);
	is(get_token(&f, &err), KC_ERR_AUTH, "a wrong secret");
	is_str(err.code, "invalid_client", "with the code");
	ok(strstr(err.detail, "AADSTS7000215") != NULL, "and Entra's words");
	ok(strstr(err.detail, "s3cr") == NULL, "but not the secret, were it told back");
	is(err.advice, KC_ADVICE_CHECK_SECRET, "with advice");
	ok(err.permanent, "trying again does not help");
	is(server_count(&server, "POST", NULL), 1, "and was not tried");
	end(&f);

	server_clear(&server);
	serve_metadata(METADATA);
	server_rule(&server, (ServerRule) {.method = "POST",.times = 2,.status = 503,.body = "<html>busy</html>"});
	serve_token("{\"expires_in\":60,\"access_token\":\"t\"}");
	make(&f, &config, NULL);
	is(get_token(&f, &err), KC_OK, "a busy endpoint is asked again");
	is(server_count(&server, "POST", NULL), 3, "twice");
	ok(kc_auth_token_life_ms(f.auth) > 50000, "the token's life is known");
	end(&f);

	static const char *const broken[] = {
		"", "{}", "[]", "{\"access_token\":17}", "{\"access_token\":\"\"}", "not json",
	};

	for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++)
	{
		server_clear(&server);
		serve_metadata(METADATA);
		serve_token(broken[i]);
		make(&f, &config, NULL);
		snprintf(text, sizeof(text), "not a token: %s", broken[i]);
		is(get_token(&f, &err), KC_ERR_PROTOCOL, text);
		end(&f);
	}
}

/* ---- metadata ---- */

static void
test_metadata(void)
{
	static const char *const untrusted[] = {
		"{\"AzureAD\":{\"LoginEndpoint\":\"https://login.evil.example\",\"KustoServiceResourceId\":\"r\"}}",
		"{\"AzureAD\":{\"LoginEndpoint\":\"http://login.microsoftonline.com\",\"KustoServiceResourceId\":\"r\"}}",
		"{\"AzureAD\":{\"LoginEndpoint\":\"https://login.microsoftonline.com.evil.example\",\"KustoServiceResourceId\":\"r\"}}",
		"{\"AzureAD\":{\"LoginEndpoint\":\"https://login.microsoftonline.com@evil.example\",\"KustoServiceResourceId\":\"r\"}}",
		"{\"AzureAD\":{\"LoginEndpoint\":\"\",\"KustoServiceResourceId\":\"r\"}}",
	};
	static const char *const broken[] = {"", "{}", "[]", "<html>", "{\"AzureAD\":7}", "{\"AzureAD\":{}}"};
	KcAuthConfig config = secret_config();
	Fixture		f;
	KcToken		token;
	KcError		err;

	for (size_t i = 0; i < sizeof(untrusted) / sizeof(untrusted[0]); i++)
	{
		server_clear(&server);
		serve_metadata(untrusted[i]);
		make(&f, &config, NULL);
		is(get_token(&f, &err), KC_ERR_REFUSED, "a login endpoint that is not Microsoft's is refused");
		is(err.advice, KC_ADVICE_CHECK_AUTHORITY, "with advice");
		is(server_count(&server, "POST", NULL), 0, "and nothing was sent");
		end(&f);
	}
	for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++)
	{
		server_clear(&server);
		serve_metadata(broken[i]);
		make(&f, &config, NULL);
		is(get_token(&f, &err), KC_ERR_PROTOCOL, "an answer that is no metadata");
		is_str(err.host, "127.0.0.1", "names the host");
		end(&f);
	}

	server_clear(&server);
	serve_metadata("{\"AzureAD\":null}");
	make(&f, &config, NULL);
	is(get_token(&f, &err), KC_OK, "a service without authentication");
	ok(kc_auth_token(f.auth, &token) && token.text.len == 0, "needs no token");
	is(server_count(&server, "POST", NULL), 0, "and is sent no secret");
	end(&f);

	server_clear(&server);
	serve_token("{\"expires_in\":60,\"access_token\":\"t\"}");
	make(&f, &config, server.origin);
	is(get_token(&f, &err), KC_OK, "a cluster without metadata has the public cloud's");
	ok(strstr(server_nth(&server, "POST", NULL, 0)->body,
			  "scope=https%3A%2F%2Fkusto.kusto.windows.net%2F.default") != NULL, "resource");
	end(&f);

	server_clear(&server);
	serve_metadata("{\"azuread\":{\"loginendpoint\":\"https://login.evil.example\",\"LoginMfaRequired\":true,"
				   "\"KustoServiceResourceId\":\"https://kusto.kusto.windows.net\"}}");
	serve_token("{\"expires_in\":60,\"access_token\":\"t\"}");
	make(&f, &config, server.origin);
	is(get_token(&f, &err), KC_OK, "a configured authority stands above metadata");
	ok(strstr(server_nth(&server, "POST", NULL, 0)->body,
			  "scope=https%3A%2F%2Fkusto.kustomfa.windows.net") != NULL, "multi-factor resource");
	end(&f);

	server_clear(&server);
	server_rule(&server, (ServerRule) {.target = "metadata",.status = 302,.headers = "Location: /x\r\n"});
	make(&f, &config, NULL);
	is(get_token(&f, &err), KC_ERR_PROTOCOL, "metadata behind a redirect is refused");
	end(&f);

	server_clear(&server);
	server_rule(&server, (ServerRule) {.target = "metadata",.times = 1,.status = 429});
	serve_metadata("{\"AzureAD\":null}");
	make(&f, &config, NULL);
	is(get_token(&f, &err), KC_OK, "a busy cluster is asked for metadata again");
	end(&f);

	ok(kc_cloud_login_host_known(kc_slice("LOGIN.microsoftonline.us")), "sovereign login host");
	ok(!kc_cloud_login_host_known(kc_slice("microsoftonline.com")), "no suffix match");
}

/* The engine may be out of reach where the ingestion service is not. */
static void
test_second_host(void)
{
	KcCloudConfig config = {
		.uris = {"http://127.0.0.1:1", server.origin},.http = &http_config,
		.request_timeout_ms = 2000,.retry_total_ms = 2000
	};
	KcCloud    *cloud;
	KcError		err;
	Wait		wait = {.waiter = {.ready = on_ready,.arg = &wait}};

	server_clear(&server);
	serve_metadata(METADATA);
	must(kc_cloud_create(&kc_alloc_malloc, h.mux, &config, &cloud, &err) == KC_OK);
	must(kc_cloud_wait(cloud, &wait.waiter, &err) == KC_OK);
	(void) harness_until(&h, &wait.done);
	ok(kc_cloud_info(cloud) != NULL, "metadata comes from the second host when the first is silent");
	if (kc_cloud_info(cloud) != NULL)
		is_str(kc_cloud_info(cloud)->login_endpoint, server.origin, "without the slash at its end");
	kc_cloud_free(cloud);
}

/* A cluster of which but one host is this one does not lead to this one's ports. */
static void
test_half_loopback(void)
{
	KcCloudConfig config = {
		.uris = {server.origin, "https://ingest-c.kusto.windows.net"},.http = &http_config,
		.request_timeout_ms = 2000,.retry_total_ms = 2000
	};
	KcCloud    *cloud;
	KcError		err;
	Wait		wait = {.waiter = {.ready = on_ready,.arg = &wait}};

	server_clear(&server);
	serve_metadata(METADATA);
	kc_error_clear(&wait.error);
	must(kc_cloud_create(&kc_alloc_malloc, h.mux, &config, &cloud, &err) == KC_OK);
	must(kc_cloud_wait(cloud, &wait.waiter, &err) == KC_OK);
	(void) harness_until(&h, &wait.done);
	is(wait.error.status, KC_ERR_REFUSED, "a login endpoint on this host, for a cluster that is elsewhere, too");
	kc_cloud_free(cloud);
}

/* ---- managed identity ---- */

/* The environment's header is a secret between this host and its own endpoint. */
static void
test_identity_secret(void)
{
	KcAuthConfig config = {
		.method = KC_AUTH_MANAGED_IDENTITY,.http = &http_config,.request_timeout_ms = 5000,
		.retry_total_ms = 10000
	};
	char		endpoint[128];
	Fixture		f;
	KcError		err;

	snprintf(endpoint, sizeof(endpoint), "%s/own", server.origin);
	setenv("IDENTITY_ENDPOINT", endpoint, 1);
	setenv("IDENTITY_HEADER", "host-secret", 1);
	server_clear(&server);
	serve_metadata(METADATA);
	server_rule(&server, (ServerRule) {.target = "/own",.status = 400,.body =
				"{\"error\":\"x\",\"error_description\":\"no such header: host-secret\"}"});
	server_rule(&server, (ServerRule) {.target = "/other",.body = "{\"expires_in\":60,\"access_token\":\"t\"}"});
	make(&f, &config, NULL);
	is(get_token(&f, &err), KC_ERR_AUTH, "the environment's endpoint refuses");
	is_str(server_header(server_nth(&server, "GET", "/own", 0), "X-IDENTITY-HEADER"), "host-secret", "its header");
	ok(strstr(err.detail, "no such header") && !strstr(err.detail, "host-secret"), "and the error does not tell it");
	end(&f);

	snprintf(endpoint, sizeof(endpoint), "%s/other", server.origin);
	config.identity_endpoint = endpoint;
	make(&f, &config, NULL);
	is(get_token(&f, &err), KC_OK, "another endpoint than the environment's");
	ok(server_header(server_nth(&server, "GET", "/other", 0), "X-IDENTITY-HEADER") == NULL, "is not sent that header");
	end(&f);
	unsetenv("IDENTITY_ENDPOINT");
	unsetenv("IDENTITY_HEADER");
}

static void
test_managed_identity(void)
{
	KcAuthConfig config = {
		.method = KC_AUTH_MANAGED_IDENTITY,.identity_endpoint = server.origin,
		.client_id = "id-1",.http = &http_config,.request_timeout_ms = 5000,.retry_total_ms = 10000
	};
	const ServerRequest *seen;
	char		body[256];
	Fixture		f;
	KcToken		token;
	KcError		err;

	unsetenv("IDENTITY_ENDPOINT");
	unsetenv("IDENTITY_HEADER");
	server_clear(&server);
	serve_metadata(METADATA);
	server_rule(&server, (ServerRule) {.target = "/metadata/identity",.times = 1,.status = 404});
	server_rule(&server, (ServerRule) {.target = "/metadata/identity",.times = 1,.status = 410});
	server_rule(&server, (ServerRule) {.target = "/metadata/identity",.times = 1,.status = 429});
	server_rule(&server, (ServerRule) {.target = "/metadata/identity",.body =
				"{\"access_token\":\"mi-1\",\"expires_in\":\"86399\",\"expires_on\":\"1788345600\"}"});
	make(&f, &config, NULL);
	is(get_token(&f, &err), KC_OK, "a token from the instance metadata service");
	must(kc_auth_token(f.auth, &token));
	is_slice(token.text, "mi-1", "the right one");
	is(server_count(&server, "GET", "/metadata/identity"), 4, "which was not ready at first");
	seen = server_nth(&server, "GET", "/metadata/identity", 3);
	is_str(seen->target, "/metadata/identity/oauth2/token?api-version=2018-02-01"
		   "&resource=https%3A%2F%2Fkusto.example&client_id=id-1", "its address");
	is_str(server_header(seen, "Metadata"), "true", "its header");
	end(&f);

	config.identity_header = "header-secret";
	config.client_id = NULL;
	snprintf(body, sizeof(body), "{\"access_token\":\"as-1\",\"expires_on\":\"%lld\"}",
			 (long long) (harness_unix_us(&h) / 1000000 + 7200));
	server_clear(&server);
	serve_metadata(METADATA);
	server_rule(&server, (ServerRule) {.target = "/msi/token",.body = body});
	{
		char		endpoint[128];

		snprintf(endpoint, sizeof(endpoint), "%s/msi/token", server.origin);
		config.identity_endpoint = endpoint;
		make(&f, &config, NULL);
		is(get_token(&f, &err), KC_OK, "a token from the App Service endpoint");
		seen = server_nth(&server, "GET", "/msi", 0);
		is_str(seen->target, "/msi/token?api-version=2019-08-01&resource=https%3A%2F%2Fkusto.example",
			   "its address");
		is_str(server_header(seen, "X-IDENTITY-HEADER"), "header-secret", "its header");
		ok(kc_auth_token_life_ms(f.auth) > 7100 * 1000, "expires_on is seconds since 1970");
		end(&f);
	}

	test_identity_secret();

	config.identity_endpoint = "https://identity.evil.example/token";
	make(&f, &config, NULL);
	server_clear(&server);
	serve_metadata(METADATA);
	is(get_token(&f, &err), KC_ERR_INVALID, "the host's secret does not leave the host");
	end(&f);

	config.identity_endpoint = "http://127.0.0.1:1";
	config.identity_header = NULL;
	config.retry_total_ms = 1000;
	make(&f, &config, NULL);
	is(get_token(&f, &err), KC_ERR_NETWORK, "where there is no identity endpoint");
	is(err.advice, KC_ADVICE_CHECK_IDENTITY, "the advice says so");
	end(&f);
}

static void
test_answer(void)
{
	static const struct
	{
		const char *text;
		int64_t		lifetime_s;
		int64_t		refresh_s;
	}			rows[] = {
		{"{\"access_token\":\"t\",\"expires_in\":3600}", 3600, 3300},
		{"{\"access_token\":\"t\",\"expires_in\":86400,\"refresh_in\":43200}", 86400, 43200},
		{"{\"access_token\":\"t\",\"expires_in\":60}", 60, 30},
		{"{\"access_token\":\"t\",\"expires_in\":1}", 1, 1},
		{"{\"access_token\":\"t\",\"expires_on\":\"1788264672\"}", 7200, 6900},
		{"{\"access_token\":\"t\",\"expires_on\":1788264672}", 7200, 6900},
		{"{\"access_token\":\"t\",\"expires_on\":\"2026-09-01T12:11:12Z\"}", 7200, 6900},
		{"{\"access_token\":\"t\",\"expires_on\":\"2026-09-01T14:11:12+02:00\"}", 7200, 6900},
		{"{\"access_token\":\"t\",\"expires_on\":\"soon\"}", 600, 300},
		{"{\"access_token\":\"t\",\"expires_on\":-9223372036854775807}", 600, 300},
		{"{\"access_token\":\"t\",\"expires_on\":9223372036854775807}", 600, 300},
		{"{\"access_token\":\"t\",\"expires_on\":\"9223372036854775807\"}", 600, 300},
		{"{\"access_token\":\"t\"}", 600, 300},
		{"{\"access_token\":\"t\",\"expires_in\":99999999999}", 172800, 172500},
	};
	KcTokenAnswer answer;
	KcError		err;
	FailAlloc	fa;

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
	{
		must(kc_token_answer_parse(&kc_alloc_malloc, kc_slice(rows[i].text),
								   INT64_C(1788257472000000), &answer, &err) == KC_OK);
		is(answer.lifetime_s, rows[i].lifetime_s, rows[i].text);
		is(answer.refresh_s, rows[i].refresh_s, "when it is fetched anew");
		kc_free_secret(&kc_alloc_malloc, answer.token);
	}
	for (int n = 1;; n++)
	{
		KcStatus	status;

		fail_alloc_init(&fa, n);
		status = kc_token_answer_parse(&fa.alloc, kc_slice(rows[0].text), 0, &answer, &err);
		if (status == KC_OK)
			kc_free_secret(&fa.alloc, answer.token);
		if (!fa.has_failed)
			break;
		ok(status == KC_ERR_NOMEM && fa.live == 0, "out of memory at request %d", n);
	}
}

static void
test_principal(void)
{
	/* {"appid":"app-1","tid":"tenant-1"} */
	KcAuthConfig config = {
		.method = KC_AUTH_ACCESS_TOKEN,.http = &http_config,
		.access_token = "e30.eyJhcHBpZCI6ImFwcC0xIiwidGlkIjoidGVuYW50LTEifQ.c2ln"
	};
	Fixture		f;
	char		text[256];

	make(&f, &config, NULL);
	kc_auth_principal(f.auth, text, sizeof(text));
	is_str(text, "aadapp=app-1;tenant-1", "a token tells its principal");
	end(&f);
	config.access_token = "opaque";
	make(&f, &config, NULL);
	kc_auth_principal(f.auth, text, sizeof(text));
	is_str(text, "", "or does not");
	end(&f);
	config.access_token = "a.!!!.c";
	make(&f, &config, NULL);
	kc_auth_principal(f.auth, text, sizeof(text));
	is_str(text, "", "or is not one");
	end(&f);
}

static void
test_missing_options(void)
{
	KcCloudConfig cloud_config = {.uris = {server.origin, NULL},.http = &http_config};
	KcCloud    *cloud;
	KcAuth	   *auth;
	KcError		err;
	KcAuthConfig config = secret_config();

	must(kc_cloud_create(&kc_alloc_malloc, h.mux, &cloud_config, &cloud, &err) == KC_OK);
	config.client_secret = NULL;
	is(kc_auth_create(&kc_alloc_malloc, h.mux, &config, cloud, &auth, &err), KC_ERR_INVALID,
	   "no secret, no client");
	ok(strstr(err.what, "client_secret") != NULL, "the missing option is named");
	config = secret_config();
	config.tenant = "";
	is(kc_auth_create(&kc_alloc_malloc, h.mux, &config, cloud, &auth, &err), KC_ERR_INVALID,
	   "no tenant, no client");
	kc_cloud_free(cloud);
}

static void
test_free_while_waiting(void)
{
	KcAuthConfig config = secret_config();
	Fixture		f;
	Wait		wait;

	server_clear(&server);
	serve_metadata(METADATA);
	server_rule(&server, (ServerRule) {.method = "POST",.action = SERVER_STALL});
	for (int i = 0; i < 2; i++)
	{
		make(&f, &config, NULL);
		begin_wait(&f, &wait);
		while (i == 1 && server_count(&server, "POST", NULL) == 0)
			harness_turn(&h, 20);
		end(&f);
		ok(!wait.done, "freed while it waits for %s", i ? "a token" : "metadata");
	}
}

/* What nobody waits for any more is not left lying for the next to join. */
static void
test_abandoned_fetch(void)
{
	KcAuthConfig config = secret_config();
	Fixture		f;
	Wait		wait;
	KcError		err;

	server_clear(&server);
	server_rule(&server, (ServerRule) {.target = "metadata",.times = 1,.action = SERVER_STALL});
	serve_metadata(METADATA);
	server_rule(&server, (ServerRule) {.method = "POST",.times = 1,.action = SERVER_STALL});
	serve_token("{\"expires_in\":60,\"access_token\":\"t\"}");
	make(&f, &config, NULL);
	begin_wait(&f, &wait);
	while (server_count(&server, "GET", "metadata") == 0)
		harness_turn(&h, 20);
	kc_auth_cancel(f.auth, &wait.waiter);
	begin_wait(&f, &wait);
	while (server_count(&server, "POST", NULL) == 0)
		harness_turn(&h, 20);
	kc_auth_cancel(f.auth, &wait.waiter);
	is(get_token(&f, &err), KC_OK, "a fetch that was given up is begun anew by the next who wants it");
	is(server_count(&server, "GET", "metadata"), 2, "metadata");
	is(server_count(&server, "POST", NULL), 2, "and token");
	end(&f);
}

int
main(void)
{
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	test_client_secret();
	test_due();
	test_try_timeout();
	test_reject();
	test_refusals();
	test_metadata();
	test_second_host();
	test_half_loopback();
	test_managed_identity();
	test_answer();
	test_principal();
	test_missing_options();
	test_free_while_waiting();
	test_abandoned_fetch();
	harness_stop(&h);
	server_stop(&server);
	return done_testing();
}
