/*
 * kusto_error.c
 *	  Kusto's error bodies, and what they suggest.
 *
 *		{"error": {"code", "message", "@type", "@message", "@permanent",
 *				   "@context": {"activityId"}, "innererror"}}
 *		{"OneApiErrors": [{"error": {...}}, ...]}
 *		{"Exceptions": ["..."]}
 *
 * Public sources: learn.microsoft.com/kusto/api/rest/response,
 * learn.microsoft.com/azure/data-explorer/error-codes
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* strcasestr */
#endif
#include <string.h>
#include <strings.h>

#include "kusto_internal.h"

#define MAX_TEXT (32 * 1024)
#define MAX_INNER 8

/* ---- reading a body ---- */

static void
copy_text(KcJsonValue object, const char *name, const KcAlloc *alloc, char *field, size_t size)
{
	KcJsonValue value;
	KcBuf		text;

	if (!kc_json_member(object, name, &value) || value.type != KC_JSON_STRING)
		return;
	kc_buf_init(&text, alloc, MAX_TEXT);
	kc_json_unescape(&text, value);
	if (text.len > 0)
		kc_error_text(field, size, kc_buf_view(&text));
	kc_buf_free(&text);
}

/*
 * The outer error says what kind of request failed, the innermost one with a
 * message why.
 */
static void
read_error_object(KcJsonValue error, const KcAlloc *alloc, KcError *err)
{
	KcJsonValue value;

	for (int depth = 0; depth < MAX_INNER; depth++)
	{
		copy_text(error, "code", alloc, err->code, sizeof(err->code));
		copy_text(error, "message", alloc, err->detail, sizeof(err->detail));
		copy_text(error, "@message", alloc, err->detail, sizeof(err->detail));
		if (kc_json_member(error, "@permanent", &value) && value.type == KC_JSON_BOOL)
			err->permanent = kc_json_bool(value);
		if (err->activity_id[0] == '\0' && kc_json_member(error, "@context", &value)
			&& value.type == KC_JSON_OBJECT)
			copy_text(value, "activityId", alloc, err->activity_id, sizeof(err->activity_id));
		if (!kc_json_member(error, "innererror", &value) || value.type != KC_JSON_OBJECT)
			return;
		error = value;
	}
}

static bool
read_first_of(KcJsonValue list, const KcAlloc *alloc, KcError *err)
{
	KcJsonIter	it;
	KcJsonValue value;
	KcJsonValue error;
	KcBuf		text;

	kc_json_iter(&it, list);
	if (!kc_json_next(&it, &value))
		return false;
	if (value.type == KC_JSON_OBJECT)
	{
		if (kc_json_member(value, "error", &error) && error.type == KC_JSON_OBJECT)
			value = error;
		read_error_object(value, alloc, err);
		return true;
	}
	if (value.type != KC_JSON_STRING)
		return false;
	kc_buf_init(&text, alloc, MAX_TEXT);
	kc_json_unescape(&text, value);
	kc_error_text(err->detail, sizeof(err->detail), kc_buf_view(&text));
	kc_buf_free(&text);
	return true;
}

bool
kc_kusto_read_error(KcJsonValue top, const KcAlloc *alloc, KcError *err)
{
	static const char *const lists[] = {"OneApiErrors", "Exceptions"};
	KcJsonValue value;

	if (top.type != KC_JSON_OBJECT)
		return false;
	if (kc_json_member(top, "error", &value) && value.type == KC_JSON_OBJECT)
	{
		read_error_object(value, alloc, err);
		return true;
	}
	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
	{
		if (kc_json_member(top, lists[i], &value) && value.type == KC_JSON_ARRAY
			&& read_first_of(value, alloc, err))
			return true;
	}
	/* Front ends sometimes say no more than this. */
	if (kc_json_member(top, "message", &value) && value.type == KC_JSON_STRING
		&& !kc_json_member(top, "Tables", &value))
	{
		read_error_object(top, alloc, err);
		return true;
	}
	return false;
}

/* ---- all the names in a body ---- */

static void
append_names(KcJsonValue error, KcBuf *names, bool *permanent_told)
{
	static const char *const members[] = {"code", "@type"};
	KcJsonValue value;

	if (kc_json_member(error, "error", &value) && value.type == KC_JSON_OBJECT)
		error = value;
	for (int depth = 0; depth < MAX_INNER; depth++)
	{
		for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++)
		{
			if (!kc_json_member(error, members[i], &value) || value.type != KC_JSON_STRING)
				continue;
			kc_json_unescape(names, value);
			kc_buf_char(names, '\n');
		}
		if (kc_json_member(error, "@permanent", &value) && value.type == KC_JSON_BOOL)
			*permanent_told = true;
		if (!kc_json_member(error, "innererror", &value) || value.type != KC_JSON_OBJECT)
			return;
		error = value;
	}
}

void
kc_kusto_read_names(KcSlice body, KcBuf *names, bool *permanent_told)
{
	KcJsonValue top;
	KcJsonValue list;
	KcJsonValue value;
	KcJsonIter	it;
	KcError		ignored;

	*permanent_told = false;
	if (kc_json_check(body, KC_JSON_MAX_DEPTH, &top, "", &ignored) != KC_OK
		|| top.type != KC_JSON_OBJECT)
		return;
	append_names(top, names, permanent_told);
	if (!kc_json_member(top, "OneApiErrors", &list) || list.type != KC_JSON_ARRAY)
		return;
	kc_json_iter(&it, list);
	while (kc_json_next(&it, &value))
	{
		if (value.type == KC_JSON_OBJECT)
			append_names(value, names, permanent_told);
	}
}

/* ---- what it suggests ---- */

static const struct
{
	const char *needle;			/* in the code or the text, without case */
	KcAdvice	advice;
}			hints[] = {
	{"MappingReferenceWasNotFound", KC_ADVICE_MAPPING_MISSING},
	{"InvalidMappingReference", KC_ADVICE_MAPPING_MISSING},
	{"DatabaseNotExist", KC_ADVICE_DATABASE_MISSING},
	{"EmptyDatabaseName", KC_ADVICE_DATABASE_MISSING},
	{"TableNotExist", KC_ADVICE_TABLE_MISSING},
	{"InvalidOrEmptyTableName", KC_ADVICE_TABLE_MISSING},
	{"DatabaseAccessDenied", KC_ADVICE_GRANT_INGESTOR},
	{"TableAccessDenied", KC_ADVICE_GRANT_INGESTOR},
	{"Failed to resolve table", KC_ADVICE_TABLE_MISSING},
	{"InvalidKustoIdentityToken", KC_ADVICE_CLOCK},
	{"Throttl", KC_ADVICE_THROTTLED},
	{"DataCapacityLimitReached", KC_ADVICE_THROTTLED},
};

KcAdvice
kc_kusto_advice(KcSlice code, KcSlice text)
{
	char		both[1024];
	size_t		n = 0;

	for (size_t i = 0; i < code.len && n < KC_ERROR_CODE_MAX; i++)
		both[n++] = code.data[i];
	both[n++] = ' ';
	for (size_t i = 0; i < text.len && n < sizeof(both) - 1; i++)
		both[n++] = text.data[i];
	both[n] = '\0';
	for (size_t i = 0; i < sizeof(hints) / sizeof(hints[0]); i++)
	{
		if (strcasestr(both, hints[i].needle) != NULL)
			return hints[i].advice;
	}
	/* "Table 'x' could not be found", and the like for other entities. */
	if (strcasestr(both, "not found") != NULL || strcasestr(both, "EntityNotFound") != NULL
		|| strcasestr(both, "could not be found") != NULL
		|| strcasestr(both, "wasn't found") != NULL)
	{
		if (strcasestr(both, "mapping") != NULL)
			return KC_ADVICE_MAPPING_MISSING;
		if (strcasestr(both, "table") != NULL)
			return KC_ADVICE_TABLE_MISSING;
		if (strcasestr(both, "database") != NULL)
			return KC_ADVICE_DATABASE_MISSING;
	}
	return KC_ADVICE_NONE;
}

static bool
is_syntax_error(const KcError *err)
{
	return strcasestr(err->code, "SyntaxError") != NULL
		|| strcasestr(err->detail, "syntax error") != NULL;
}

static void
explain(const KcHttpResponse *response, KcError *err)
{
	KcSlice		body = kc_buf_view(&response->body);
	KcJsonValue top;
	KcError		ignored;
	bool		permanent = err->permanent;

	if (response->status >= 400)
		kc_error_text(err->what, sizeof(err->what), kc_slice("Kusto refuses the request"));
	if (kc_json_check(body, KC_JSON_MAX_DEPTH, &top, err->doing, &ignored) != KC_OK
		|| !kc_kusto_read_error(top, response->body.alloc, err))
		kc_error_text(err->detail, sizeof(err->detail), body);

	/* Only the body of a 400 or 5xx knows whether trying again may help. */
	if (response->status == 401 || response->status == 403 || response->status == 404
		|| response->status == 429)
		err->permanent = permanent;
	else if (!err->permanent && err->status == KC_ERR_REFUSED)
		err->status = KC_ERR_SERVICE;
	if (response->status >= 500)
		kc_error_text(err->what, sizeof(err->what), kc_slice("Kusto failed"));
	if (response->status == 401)
		err->advice = KC_ADVICE_CHECK_SECRET;
	if (err->advice == KC_ADVICE_NONE)
		err->advice = kc_kusto_advice(kc_slice(err->code), kc_slice(err->detail));
}

/* The ingestion service has no query endpoint, and no management of tables. */
static void
explain_engine(const KcHttpResponse *response, KcError *err, KcAdvice grant)
{
	explain(response, err);
	if (response->status == 403)
		err->advice = grant;
	if (response->status == 404 && err->code[0] == '\0')
		err->advice = KC_ADVICE_INGEST_ASKED_AS_ENGINE;
}

void
kc_kusto_explain_query(const KcHttpResponse *response, KcError *err)
{
	explain_engine(response, err, KC_ADVICE_GRANT_DATABASE_USER);
}

void
kc_kusto_explain_mgmt(const KcHttpResponse *response, KcError *err)
{
	explain_engine(response, err, KC_ADVICE_GRANT_DATABASE_ADMIN);
}

/*
 * An ingestion host takes every query for a broken one.  So does an engine
 * with a broken query, but that says where in the text it is broken.
 */
void
kc_kusto_explain_engine_uri(const char *engine_uri, const char *ingest_uri, KcError *err)
{
	static const char prefix[] = "ingest-";
	const char *host = strstr(engine_uri, "://");

	if (err->http_status != 400 || !is_syntax_error(err) || strcasestr(err->detail, "position") != NULL)
		return;
	if (strcmp(engine_uri, ingest_uri) == 0
		|| (host != NULL && strncasecmp(host + 3, prefix, sizeof(prefix) - 1) == 0))
		err->advice = KC_ADVICE_INGEST_ASKED_AS_ENGINE;
}

void
kc_kusto_explain_ingest(const KcHttpResponse *response, KcError *err)
{
	explain(response, err);
	if (response->status == 403)
		err->advice = KC_ADVICE_GRANT_INGESTOR;
	/* An engine takes the ingestion service's commands for broken queries. */
	if ((response->status == 400 && is_syntax_error(err)) || response->status == 404)
		err->advice = KC_ADVICE_ENGINE_ASKED_AS_INGEST;
}

/* learn.microsoft.com/kusto/api/rest/streaming-ingest */
void
kc_kusto_explain_stream(const KcHttpResponse *response, KcError *err)
{
	explain_engine(response, err, KC_ADVICE_GRANT_INGESTOR);
}

/*
 * learn.microsoft.com/kusto/management/capacity-policy: a command that finds no
 * free slot ends before it does anything.
 */
bool
kc_kusto_was_throttled(const KcError *err)
{
	return err->status == KC_ERR_THROTTLED
		|| strcasestr(err->code, "Throttl") != NULL
		|| strcasestr(err->detail, "due to throttling") != NULL
		|| strcasestr(err->detail, "CapacityPolicy/") != NULL;
}
