/*
 * report.c
 *	  The one place where an error of the core becomes an ereport.
 *
 * The core has taken the secrets out of its texts already.  report_hints.c
 * has the words for what to do.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/varlena.h"

#include "compat.h"
#include "report.h"

/* As PostgreSQL's own "Perhaps you meant": not more than half may differ. */
#define CLOSEST_MAX_DISTANCE	4
#define CLOSEST_MAX_LENGTH		63

/* Append what comes before the first character that cannot be converted. */
static const char *
append_converted(StringInfo text, const char *utf8, Oid conversion)
{
	size_t		len = strlen(utf8);
	size_t		done;

	if (OidIsValid(conversion))
	{
		enlargeStringInfo(text, (int) len * MAX_CONVERSION_GROWTH + 1);
		done = kpg_compat_convert_some(conversion, PG_UTF8, GetDatabaseEncoding(), utf8, (int) len,
									   text->data + text->len, text->maxlen - text->len);
		text->len += (int) strlen(text->data + text->len);
		return utf8 + done;
	}
	for (done = 0; done < len && !IS_HIGHBIT_SET(utf8[done]); done++)
		;
	appendBinaryStringInfo(text, utf8, (int) done);
	return utf8 + done;
}

char *
kpg_report_text(const char *utf8)
{
	int			encoding = GetDatabaseEncoding();
	Oid			conversion = InvalidOid;
	StringInfoData text;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
		return pstrdup(utf8);
	/* It is looked up in the catalogs. */
	if (IsTransactionState())
		conversion = FindDefaultConversionProc(PG_UTF8, encoding);
	initStringInfo(&text);
	for (;;)
	{
		utf8 = append_converted(&text, utf8, conversion);
		if (*utf8 == '\0')
			return text.data;
		appendStringInfoChar(&text, '?');
		do
			utf8++;
		while (((unsigned char) *utf8 & 0xC0) == 0x80);
	}
}

char *
kpg_report_message(const KcError *err)
{
	const char *what = err->what[0] != '\0' ? err->what : "no reason is known";

	if (err->doing == NULL || err->doing[0] == '\0')
		return pstrdup(what);
	return psprintf("%s failed: %s", err->doing, what);
}

static void
end_sentence(StringInfo text)
{
	while (text->len > 0 && strchr(" \n\t", text->data[text->len - 1]) != NULL)
		text->data[--text->len] = '\0';
	if (text->len > 0 && strchr(".!?:", text->data[text->len - 1]) == NULL)
		appendStringInfoChar(text, '.');
}

static void
append_source(StringInfo text, const KcError *err)
{
	const char *separator = "";

	if (err->http_status == 0 && err->host[0] == '\0' && err->activity_id[0] == '\0')
		return;
	if (text->len > 0)
		appendStringInfoChar(text, '\n');
	if (err->host[0] != '\0')
	{
		appendStringInfo(text, "Host \"%s\"", err->host);
		separator = ", ";
	}
	if (err->http_status != 0)
	{
		appendStringInfo(text, "%sHTTP status %d", separator, err->http_status);
		separator = ", ";
	}
	if (err->activity_id[0] != '\0')
		appendStringInfo(text, "%sactivity id %s", separator, err->activity_id);
	appendStringInfoChar(text, '.');
}

char *
kpg_report_detail(const KcError *err)
{
	StringInfoData text;

	initStringInfo(&text);
	if (err->code[0] != '\0' && err->detail[0] != '\0')
		appendStringInfo(&text, "%s: %s", err->code, err->detail);
	else
		appendStringInfoString(&text, err->code[0] != '\0' ? err->code : err->detail);
	end_sentence(&text);
	if (err->lib[0] != '\0')
	{
		if (text.len > 0)
			appendStringInfoChar(&text, '\n');
		appendStringInfoString(&text, err->lib);
		end_sentence(&text);
	}
	append_source(&text, err);
	return text.len > 0 ? text.data : NULL;
}

static int
not_found_sqlstate(KcAdvice advice)
{
	switch (advice)
	{
		case KC_ADVICE_TABLE_MISSING:
			return ERRCODE_UNDEFINED_TABLE;
		case KC_ADVICE_DATABASE_MISSING:
			return ERRCODE_UNDEFINED_DATABASE;
		case KC_ADVICE_MAPPING_MISSING:
			return ERRCODE_UNDEFINED_OBJECT;
		default:
			return ERRCODE_FDW_ERROR;
	}
}

int
kpg_report_sqlstate(const KcError *err)
{
	if (err->advice == KC_ADVICE_UNTRUSTED_HOST)
		return ERRCODE_INSUFFICIENT_PRIVILEGE;

	switch (err->status)
	{
		case KC_OK:
			return ERRCODE_SUCCESSFUL_COMPLETION;
		case KC_ERR_NOMEM:
			return ERRCODE_OUT_OF_MEMORY;
		case KC_ERR_INVALID:
			return ERRCODE_INVALID_PARAMETER_VALUE;
		case KC_ERR_LIMIT:
			return ERRCODE_PROGRAM_LIMIT_EXCEEDED;
		case KC_ERR_NETWORK:
			return err->after_send ? ERRCODE_CONNECTION_FAILURE
				: ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION;
		case KC_ERR_TIMEOUT:
			return ERRCODE_CONNECTION_FAILURE;
		case KC_ERR_AUTH:
			return ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
		case KC_ERR_FORBIDDEN:
			return ERRCODE_INSUFFICIENT_PRIVILEGE;
		case KC_ERR_NOT_FOUND:
		case KC_ERR_REFUSED:
			return not_found_sqlstate(err->advice);
		case KC_ERR_THROTTLED:
			return ERRCODE_INSUFFICIENT_RESOURCES;
		case KC_ERR_SERVICE:
			return ERRCODE_SYSTEM_ERROR;
		case KC_ERR_PROTOCOL:
			return ERRCODE_PROTOCOL_VIOLATION;
		case KC_ERR_CANCELLED:
			return ERRCODE_QUERY_CANCELED;
		case KC_ERR_INTERNAL:
			return ERRCODE_INTERNAL_ERROR;
	}
	return ERRCODE_INTERNAL_ERROR;
}

void
kpg_report(int elevel, const KcError *err)
{
	char	   *message = kpg_report_text(kpg_report_message(err));
	char	   *detail = kpg_report_detail(err);
	char	   *hint = kpg_report_hint(err);

	ereport(elevel,
			(errcode(kpg_report_sqlstate(err)),
			 errmsg_internal("%s", message),
			 detail != NULL ? errdetail_internal("%s", kpg_report_text(detail)) : 0,
			 hint != NULL ? errhint("%s", hint) : 0));
}

void
kpg_report_hinted(const KcError *err, const char *hint)
{
	char	   *message = kpg_report_text(kpg_report_message(err));
	char	   *detail = kpg_report_detail(err);
	char	   *better = kpg_report_hint(err);

	ereport(ERROR,
			(errcode(kpg_report_sqlstate(err)),
			 errmsg_internal("%s", message),
			 detail != NULL ? errdetail_internal("%s", kpg_report_text(detail)) : 0,
			 errhint("%s", better != NULL ? better : hint)));
}

void
kpg_report_doubtful(const KcError *err)
{
	char	   *message = kpg_report_text(kpg_report_message(err));
	char	   *detail = kpg_report_detail(err);

	ereport(ERROR,
			(errcode(KPG_ERRCODE_INGESTION_UNKNOWN),
			 errmsg_internal("%s", message),
			 errdetail("%s%sKusto may have ingested the data all the same.",
					   detail != NULL ? kpg_report_text(detail) : "", detail != NULL ? "\n" : ""),
			 errhint(KPG_DOUBT_HINT)));
}

void
kpg_check(KcStatus status, const KcError *err)
{
	if (status != KC_OK)
		kpg_report(ERROR, err);
}

const char *
kpg_report_closest(const char *word, const char *const *candidates, int ncandidates)
{
	int			length = (int) Min(strlen(word), CLOSEST_MAX_LENGTH + 1);
	int			best_distance = Min(CLOSEST_MAX_DISTANCE, length / 2);
	const char *best = NULL;

	if (length > CLOSEST_MAX_LENGTH)
		return NULL;
	for (int i = 0; i < ncandidates; i++)
	{
		int			distance =
			varstr_levenshtein_less_equal(word, length, candidates[i], (int) strlen(candidates[i]),
										  1, 1, 1, best_distance, true);

		if (distance > best_distance || (best != NULL && distance == best_distance))
			continue;
		best = candidates[i];
		best_distance = distance;
	}
	return best;
}
