/*
 * kusto_stream_judge.c
 *	  What a streaming request failed of, and so what to do about it.
 *
 * The service says by "@permanent" whether trying again may help, but three of
 * the permanent failures are only those of streaming, and queued ingestion
 * takes the same data: too much of it, streaming switched off, an update
 * policy that does not go with it.  Data are called wrong only on evidence,
 * since whoever hears of it gives them up.
 *
 * Public sources: learn.microsoft.com/azure/data-explorer/ingest-data-streaming,
 * learn.microsoft.com/azure/data-explorer/error-codes,
 * learn.microsoft.com/kusto/api/get-started/app-managed-streaming-ingest
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* strcasestr */
#endif
#include <string.h>

#include "kusto_internal.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Parts of codes and types. */
static const char *const throttled_names[] = {"Throttl"};
static const char *const too_large_names[] = {
	"PayloadTooLarge", "EntityTooLarge", "RequestTooLarge", "InputStreamTooLarge", "FileTooLarge",
};
static const char *const off_names[] = {
	"StreamingIngestionPolicy", "StreamingIngestionFunctionalityDisabled",
	"StreamingIngestionDisabled", "StreamingIngestionNotEnabled",
};
static const char *const update_policy_names[] = {"UpdatePolicy_"};
static const char *const data_names[] = {
	"Stream_WrongNumberOfFields", "Stream_ClosingQuoteMissing", "Stream_NoDataToIngest",
	"Stream_DynamicPropertyBagTooLarge", "UnexpectedCharacterInInputStream",
	"NoRecordsOrWrongFormat", "BadRequest_EmptyBlob",
	/* of any 400 about the stream that is none of the above */
	"StreamingIngestionRequestException",
};

/*
 * Parts of messages, for services that say it in no other way.  They name the
 * table, so a phrase must be one that no table is called.
 */
static const char *const too_large_phrases[] = {
	"is too large", "maximum allowed size",
};
static const char *const off_phrases[] = {
	"streaming ingestion is disabled", "streaming ingestion is not enabled",
	"streaming ingestion policy", "streaming ingest is disabled", "not enabled for streaming",
};

static bool
holds(const char *text, const char *const *parts, size_t nparts)
{
	for (size_t i = 0; i < nparts; i++)
	{
		if (strcasestr(text, parts[i]) != NULL)
			return true;
	}
	return false;
}

static bool
names_hold(KcSlice names, const char *const *parts, size_t nparts)
{
	/* from a buffer, which ends its text */
	return names.len > 0 && holds(names.data, parts, nparts);
}

static bool
is_too_large(const KcError *err, KcSlice names)
{
	if (err->http_status == 413 || names_hold(names, too_large_names, COUNT(too_large_names)))
		return true;
	/* A field may be too large, too; that has a code of its own. */
	return err->http_status == 400 && err->permanent
		&& !names_hold(names, data_names, COUNT(data_names) - 1)
		&& holds(err->detail, too_large_phrases, COUNT(too_large_phrases));
}

static bool
is_off(const KcError *err, KcSlice names)
{
	return names_hold(names, off_names, COUNT(off_names))
		|| holds(err->detail, off_phrases, COUNT(off_phrases));
}

/*
 * Streaming ingestion runs update policies within the request, which puts
 * conditions on them that queued ingestion does not have.
 */
static bool
is_of_update_policy(const KcError *err, KcSlice names)
{
	return err->permanent
		&& (strcasestr(err->detail, "update policy") != NULL
			|| names_hold(names, update_policy_names, COUNT(update_policy_names)));
}

static bool
is_missing(const KcError *err)
{
	return err->advice == KC_ADVICE_TABLE_MISSING || err->advice == KC_ADVICE_DATABASE_MISSING
		|| err->advice == KC_ADVICE_MAPPING_MISSING;
}

/* Where the body does not say it, the status and the code must. */
static bool
may_pass(const KcError *err, bool permanent_told)
{
	KcError		as_if = *err;

	if (err->status == KC_ERR_SERVICE || err->status == KC_ERR_NETWORK
		|| err->status == KC_ERR_TIMEOUT)
		return !err->permanent;
	if (permanent_told || err->status != KC_ERR_REFUSED)
		return false;
	as_if.permanent = false;
	return kc_retry_transient(&as_if);
}

/* In place of "refuses the request", which says less. */
static void
say(KcError *err, const char *what)
{
	kc_error_text(err->what, sizeof(err->what), kc_slice(what));
}

static KcStreamFault
passing(KcError *err, KcStatus status)
{
	err->status = status;
	err->permanent = false;
	return KC_STREAM_FAULT_PASSING;
}

static KcStreamFault
unsupported(KcError *err)
{
	err->status = KC_ERR_REFUSED;
	return KC_STREAM_FAULT_UNSUPPORTED;
}

KcStreamFault
kc_kusto_stream_judge(KcError *err, KcSlice names, bool permanent_told)
{
	if (err->http_status == 0)
		return may_pass(err, true) ? KC_STREAM_FAULT_PASSING : KC_STREAM_FAULT_OTHER;
	if (err->http_status == 401 || err->http_status == 403)
		return KC_STREAM_FAULT_OTHER;
	if (err->status == KC_ERR_THROTTLED
		|| names_hold(names, throttled_names, COUNT(throttled_names)))
	{
		say(err, "the cluster is too busy");
		err->advice = KC_ADVICE_THROTTLED;
		return passing(err, KC_ERR_THROTTLED);
	}
	if (is_too_large(err, names))
	{
		say(err, "the data are too large for streaming ingestion");
		err->status = KC_ERR_LIMIT;
		return KC_STREAM_FAULT_TOO_LARGE;
	}
	if (is_off(err, names))
	{
		say(err, "streaming ingestion is not enabled for the table");
		err->advice = KC_ADVICE_STREAMING_OFF;
		return unsupported(err);
	}
	if (is_of_update_policy(err, names))
	{
		say(err, "the table's update policy does not allow streaming ingestion");
		err->advice = KC_ADVICE_NONE;
		return unsupported(err);
	}
	if (may_pass(err, permanent_told))
		return passing(err, err->status == KC_ERR_REFUSED ? KC_ERR_SERVICE : err->status);
	if (is_missing(err))
		return KC_STREAM_FAULT_OTHER;
	if (err->status == KC_ERR_NOT_FOUND)
	{
		say(err, "there is no streaming ingestion at that URL");
		return KC_STREAM_FAULT_UNSUPPORTED;
	}
	if (err->status == KC_ERR_REFUSED && names_hold(names, data_names, COUNT(data_names)))
	{
		say(err, "Kusto cannot take the data");
		err->advice = KC_ADVICE_NONE;	/* of a word in the text */
		return KC_STREAM_FAULT_DATA;
	}
	return KC_STREAM_FAULT_OTHER;
}
