/*
 * auth_token.c
 *	  The request for an access token by each method, and its answer.
 */
#include <stdlib.h>
#include <string.h>

#include "auth.h"

#define MAX_TOKEN_ANSWER	(256 * 1024)
#define IMDS_ENDPOINT		"http://169.254.169.254"
#define IMDS_PATH			"/metadata/identity/oauth2/token"
#define IMDS_VERSION		"2018-02-01"
#define APP_SERVICE_VERSION "2019-08-01"
#define IMDS_TIMEOUT_MS		15000
#define MAX_TRIES			4
#define DEFAULT_LIFETIME_S	600
#define MAX_LIFETIME_S		(48 * 3600)
#define REFRESH_EARLY_S		300
#define MAX_UNIX_S			INT64_C(100000000000)	/* in the year 5138 */

static const char doing_token[] = "getting an access token";

/* ---- refusals ---- */

/*
 * RFC 6749 section 5.2; Entra adds error_codes and puts its AADSTS number in
 * front of the description.
 */
static void
explain_refusal(const KcHttpResponse *response, KcError *err)
{
	KcJsonValue top;
	KcJsonValue member;
	KcError		ignored;
	KcBuf		text;
	bool		transient = response->status == 429 || response->status >= 500;

	if (!transient)
		err->status = KC_ERR_AUTH;
	kc_error_text(err->what, sizeof(err->what), kc_slice("the token endpoint refuses"));
	if (kc_json_check(kc_buf_view(&response->body), 16, &top, doing_token, &ignored) != KC_OK
		|| top.type != KC_JSON_OBJECT)
	{
		kc_error_text(err->detail, sizeof(err->detail), kc_buf_view(&response->body));
		return;
	}
	kc_buf_init(&text, response->body.alloc, MAX_TOKEN_ANSWER);
	if (kc_json_member(top, "error", &member) && member.type == KC_JSON_STRING)
	{
		kc_json_unescape(&text, member);
		kc_error_text(err->code, sizeof(err->code), kc_buf_view(&text));
		if (kc_json_string_is(member, "temporarily_unavailable")
			|| kc_json_string_is(member, "server_error"))
		{
			err->status = KC_ERR_SERVICE;
			err->permanent = false;
		}
	}
	kc_buf_reset(&text);
	if (kc_json_member(top, "error_description", &member) && member.type == KC_JSON_STRING)
	{
		kc_json_unescape(&text, member);
		kc_error_text(err->detail, sizeof(err->detail), kc_buf_view(&text));
	}
	kc_buf_free(&text);
}

static void
explain_login_refusal(const KcHttpResponse *response, KcError *err)
{
	explain_refusal(response, err);
	if (err->status == KC_ERR_AUTH)
		err->advice = KC_ADVICE_CHECK_SECRET;
}

static void
explain_identity_refusal(const KcHttpResponse *response, KcError *err)
{
	explain_refusal(response, err);
	err->advice = KC_ADVICE_CHECK_IDENTITY;
}

/*
 * The instance metadata service answers 404 while it starts, and 410 while it
 * is updated, for up to 70 seconds.
 */
static bool
identity_heals(int status)
{
	return status == 404 || status == 408 || status == 410;
}

/* ---- requests ---- */

static void
form_field(KcBuf *body, const char *name, KcSlice value)
{
	if (body->len > 0)
		kc_buf_char(body, '&');
	kc_buf_str(body, name);
	kc_buf_char(body, '=');
	kc_text_percent_encode(body, value);
}

static void
build_client_secret(const KcAuthConfig *config, const KcCloudInfo *cloud, KcTokenRequest *request)
{
	kc_buf_str(&request->url, cloud->login_endpoint);
	kc_buf_char(&request->url, '/');
	kc_text_percent_encode(&request->url, kc_slice(config->tenant));
	kc_buf_str(&request->url, "/oauth2/v2.0/token");

	form_field(&request->body, "grant_type", kc_slice("client_credentials"));
	form_field(&request->body, "client_id", kc_slice(config->client_id));
	form_field(&request->body, "client_secret", kc_slice(config->client_secret));
	form_field(&request->body, "scope", kc_slice(cloud->resource));
	kc_text_percent_encode(&request->body, kc_slice("/.default"));

	request->headers[0] = (KcHttpHeader) {"Content-Type", kc_slice("application/x-www-form-urlencoded")};
	request->headers[1] = (KcHttpHeader) {"Accept", kc_slice("application/json")};
	request->http.nheaders = 2;
	request->http.method = "POST";
	request->http.explain = explain_login_refusal;
	request->http.timeout_ms = kc_auth_try_timeout_ms(config->request_timeout_ms);
	kc_buf_str(&request->secret, config->client_secret);
	request->policy.max_attempts = config->retry_total_ms > 0 ? 0 : MAX_TRIES;
	request->policy.max_unreached = MAX_TRIES;
	request->policy.base_ms = 1000;
	request->policy.cap_ms = 8000;
}

/*
 * An identity endpoint is on this host or its hypervisor, whoever configured
 * it: the header that we send there is a secret of the host.
 */
static KcStatus
check_identity_endpoint(const char *endpoint, KcUrl *url, KcError *err)
{
	KcStatus	status = kc_url_parse(kc_slice(endpoint), url, err);

	if (status != KC_OK)
		return status;
	if (kc_host_is_loopback(url->host)
		|| (kc_host_is_ip(url->host) && kc_slice_starts(url->host, kc_slice("169.254."))))
		return KC_OK;
	kc_error_set(err, KC_ERR_INVALID, doing_token,
				 "the identity endpoint must be a loopback or link-local address");
	err->permanent = true;
	return KC_ERR_INVALID;
}

/*
 * Where the identity is asked for, and the header that proves to be of this
 * host: the environment's header goes to the environment's endpoint only.
 */
static void
choose_identity(const KcAuthConfig *config, const char **endpoint, const char **header)
{
	const char *environment = getenv("IDENTITY_ENDPOINT");

	*endpoint = config->identity_endpoint;
	*header = config->identity_header;
	if (environment != NULL && *header == NULL
		&& (*endpoint == NULL || strcmp(*endpoint, environment) == 0))
		*header = getenv("IDENTITY_HEADER");
	if (*endpoint == NULL && *header != NULL)
		*endpoint = environment;
	if (*endpoint == NULL)
	{
		*endpoint = IMDS_ENDPOINT;
		*header = NULL;
	}
}

static KcStatus
build_managed_identity(const KcAuthConfig *config, const KcCloudInfo *cloud, KcTokenRequest *request,
					   KcError *err)
{
	const char *endpoint;
	const char *header;
	KcUrl		url;
	KcStatus	status;
	bool		app_service;

	choose_identity(config, &endpoint, &header);
	app_service = header != NULL;
	status = check_identity_endpoint(endpoint, &url, err);
	if (status != KC_OK)
		return status;

	kc_buf_slice(&request->url, url.origin);
	if (url.path.len > 1)
		kc_buf_slice(&request->url, url.path);
	else if (!app_service)
		kc_buf_str(&request->url, IMDS_PATH);
	kc_buf_str(&request->url, "?api-version=");
	kc_buf_str(&request->url, app_service ? APP_SERVICE_VERSION : IMDS_VERSION);
	kc_buf_str(&request->url, "&resource=");
	kc_text_percent_encode(&request->url, kc_slice(cloud->resource));
	if (config->client_id != NULL)
	{
		kc_buf_str(&request->url, "&client_id=");
		kc_text_percent_encode(&request->url, kc_slice(config->client_id));
	}
	if (app_service)
	{
		kc_buf_str(&request->secret, header);
		request->headers[0] = (KcHttpHeader) {"X-IDENTITY-HEADER", kc_slice(header)};
	}
	else
		request->headers[0] = (KcHttpHeader) {"Metadata", kc_slice("true")};
	request->http.nheaders = 1;
	request->http.method = "GET";
	request->http.flags = KC_HTTP_HOST_IDENTITY;
	request->http.explain = explain_identity_refusal;
	request->http.heals = identity_heals;
	request->http.timeout_ms = IMDS_TIMEOUT_MS;
	if (config->request_timeout_ms > 0 && config->request_timeout_ms < IMDS_TIMEOUT_MS)
		request->http.timeout_ms = config->request_timeout_ms;
	request->policy.max_attempts = 5;
	request->policy.base_ms = 1000;
	request->policy.cap_ms = 16000;
	return KC_OK;
}

KcStatus
kc_token_request_build(const KcAlloc *alloc, const KcAuthConfig *config, const KcCloudInfo *cloud,
					   KcTokenRequest *request, KcError *err)
{
	KcStatus	status = KC_OK;

	memset(request, 0, sizeof(*request));
	kc_buf_init(&request->url, alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&request->body, alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&request->secret, alloc, KC_BUF_UNLIMITED);
	if (config->method == KC_AUTH_CLIENT_SECRET)
		build_client_secret(config, cloud, request);
	else
		status = build_managed_identity(config, cloud, request, err);
	if (status == KC_OK)
		status = kc_buf_status(&request->url, err, doing_token);
	if (status == KC_OK)
		status = kc_buf_status(&request->body, err, doing_token);
	if (status == KC_OK)
		status = kc_buf_status(&request->secret, err, doing_token);
	if (status != KC_OK)
	{
		kc_token_request_free(request);
		return status;
	}
	request->policy.max_total_ms = config->retry_total_ms;
	request->http.doing = doing_token;
	request->http.url = kc_buf_view(&request->url);
	request->http.headers = request->headers;
	request->http.body = kc_buf_view(&request->body);
	request->http.max_response = MAX_TOKEN_ANSWER;
	request->http.retry = &request->policy;
	return KC_OK;
}

void
kc_token_request_free(KcTokenRequest *request)
{
	kc_buf_free(&request->url);
	kc_buf_free_secret(&request->body);
	kc_buf_free_secret(&request->secret);
}

/* ---- answers ---- */

/*
 * When a token expires, as seconds since 1970 in a number or a string, or, by
 * some hosts, as a time.  -1: not understood, or no time that a token has.
 */
static int64_t
read_expires_on(KcJsonValue value)
{
	int64_t		seconds;
	KcSlice		text = value.raw;
	int64_t		unix_us;

	if (value.type == KC_JSON_NUMBER)
		return kc_json_i64(value, &seconds) && seconds >= 0 && seconds <= MAX_UNIX_S ? seconds : -1;
	if (value.type != KC_JSON_STRING || text.len < 3)
		return -1;
	text = kc_slice_n(text.data + 1, text.len - 2);
	seconds = 0;
	for (size_t i = 0; i < text.len; i++)
	{
		if (text.data[i] < '0' || text.data[i] > '9' || seconds > MAX_UNIX_S / 10)
		{
			seconds = -1;
			break;
		}
		seconds = seconds * 10 + (text.data[i] - '0');
	}
	if (seconds > 0)
		return seconds;
	if (kc_text_rfc3339_parse(text, &unix_us))
		return unix_us / 1000000;
	return -1;
}

/*
 * RFC 6749 section 5.1.  expires_in is a number, or a string where the host's
 * own endpoint answers.
 */
KcStatus
kc_token_answer_parse(const KcAlloc *alloc, KcSlice body, int64_t now_us, KcTokenAnswer *answer,
					  KcError *err)
{
	KcJsonValue top;
	KcJsonValue expires_on = {.type = KC_JSON_NULL};
	int64_t		expires_in = 0;
	int64_t		refresh_in = 0;
	KcStatus	status;
	const KcJsonField fields[] = {
		{.name = "access_token",.want = KC_WANT_STRING,.target = &answer->token,.required = true},
		{.name = "expires_in",.want = KC_WANT_I64,.target = &expires_in},
		{.name = "refresh_in",.want = KC_WANT_I64,.target = &refresh_in},
		{.name = "expires_on",.want = KC_WANT_VALUE,.target = &expires_on},
	};

	memset(answer, 0, sizeof(*answer));
	status = kc_json_check(body, 16, &top, doing_token, err);
	if (status == KC_OK)
		status = kc_json_read_object(top, fields, 4, alloc, doing_token, err);
	if (status != KC_OK)
	{
		err->permanent = true;
		return status;
	}
	if (answer->token[0] == '\0')
	{
		kc_free(alloc, answer->token);
		answer->token = NULL;
		kc_error_set(err, KC_ERR_PROTOCOL, doing_token, "the access token is empty");
		err->permanent = true;
		return KC_ERR_PROTOCOL;
	}
	answer->lifetime_s = expires_in;
	if (expires_in <= 0 && expires_on.type != KC_JSON_NULL)
		answer->lifetime_s = read_expires_on(expires_on) - now_us / 1000000;
	if (answer->lifetime_s <= 0)
		answer->lifetime_s = DEFAULT_LIFETIME_S;
	if (answer->lifetime_s > MAX_LIFETIME_S)
		answer->lifetime_s = MAX_LIFETIME_S;

	/* Five minutes early, but a short life is not spent on refreshing. */
	answer->refresh_s = answer->lifetime_s - REFRESH_EARLY_S;
	if (answer->refresh_s < answer->lifetime_s / 2)
		answer->refresh_s = answer->lifetime_s / 2;
	if (answer->refresh_s < 1)
		answer->refresh_s = 1;
	if (refresh_in > 0 && refresh_in < answer->refresh_s)
		answer->refresh_s = refresh_in;
	return KC_OK;
}
