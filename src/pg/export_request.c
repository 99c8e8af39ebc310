/*
 * export_request.c
 *	  What may be asked of an export.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "export_internal.h"
#include "report.h"

/* ---- the mode ---- */

static const char *const mode_names[] = {
	[KPG_MODE_QUEUED] = "queued",
	[KPG_MODE_STREAMING] = "streaming",
	[KPG_MODE_MANAGED] = "managed",
	[KPG_MODE_DIRECT] = "direct"
};

KpgExportMode
kpg_export_mode(const char *name)
{
	const char *closest;

	for (int i = 0; i < (int) lengthof(mode_names); i++)
	{
		if (strcmp(name, mode_names[i]) == 0)
			return (KpgExportMode) i;
	}
	closest = kpg_report_closest(name, mode_names, lengthof(mode_names));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unrecognized mode \"%s\"", name),
			 closest != NULL ? errhint("Perhaps you meant the mode \"%s\".", closest)
			 : errhint("The modes are \"queued\", \"streaming\", \"managed\" and \"direct\".")));
	return KPG_MODE_QUEUED;		/* not reached */
}

static bool
is_empty(ArrayType *array)
{
	return array == NULL || ArrayGetNItems(ARR_NDIM(array), ARR_DIMS(array)) == 0;
}

static void
refuse_if(bool given, const char *argument, KpgExportMode mode, const char *why)
{
	if (given)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("mode \"%s\" does not support %s", mode_names[mode], argument),
				 errdetail_internal("%s", why),
				 errhint("Use mode \"%s\".", mode_names[KPG_MODE_QUEUED])));
}

/*
 * The service ignores tags of streaming ingestion without a word, and has none
 * of the others (learn.microsoft.com/azure/data-explorer/ingest-data-streaming).
 */
static void
check_mode(const KpgExportRequest *request)
{
	KpgExportMode mode = kpg_export_mode(request->mode);
	const char *why = _("Kusto's streaming ingestion has no such property.");

	if (mode == KPG_MODE_STREAMING || mode == KPG_MODE_MANAGED)
	{
		refuse_if(!is_empty(request->tags), "tags", mode, why);
		refuse_if(!is_empty(request->ingest_if_not_exists), "ingest_if_not_exists", mode, why);
		refuse_if(request->has_creation_time, "creation_time", mode, why);
		refuse_if(request->flush_immediately, "flush_immediately", mode, why);
	}
	if (mode != KPG_MODE_QUEUED)
		refuse_if(strcmp(request->exactly_once, "on") == 0, "exactly_once", mode,
				  _("When an answer of Kusto is lost, nobody knows whether the data were ingested."));
}

/* ---- the other arguments ---- */

static void
check_given(const char *value, const char *argument)
{
	if (value == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", argument)));
}

static void
check_not_empty(const char *value, const char *argument)
{
	if (value != NULL && value[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", argument)));
}

void
kpg_export_check(const KpgExportRequest *request)
{
	check_given(request->query, "query");
	check_given(request->table_name, "table_name");
	check_given(request->mode, "mode");
	check_given(request->on_type_error, "on_type_error");
	check_given(request->exactly_once, "exactly_once");
	check_not_empty(request->table_name, "table_name");
	check_not_empty(request->mapping, "mapping");
	check_mode(request);
	if (request->has_creation_time && TIMESTAMP_NOT_FINITE(request->creation_time))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("creation_time must be finite")));
}

/* The elements of a text[] in UTF-8; NULL array: none. */
static const KcSlice *
text_array(ArrayType *array, const char *argument, int *count)
{
	Datum	   *elements;
	bool	   *nulls;
	KcSlice    *slices;

	*count = 0;
	if (array == NULL)
		return NULL;
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("%s must be one-dimensional", argument)));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, count);
	slices = palloc(sizeof(KcSlice) * (Size) Max(*count, 1));
	for (int i = 0; i < *count; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain null", argument)));
		slices[i] = kc_slice(kpg_session_utf8(TextDatumGetCString(elements[i])));
		if (slices[i].len == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s must not contain an empty string", argument)));
	}
	return slices;
}

KcIngestProperties
kpg_export_properties(const KpgExport *export)
{
	const KpgExportRequest *request = export->request;
	KcIngestProperties properties;

	memset(&properties, 0, sizeof(properties));
	properties.database = kc_slice(kpg_session_utf8(export->database));
	properties.table = kc_slice(kpg_session_utf8(request->table_name));
	properties.mapping = kc_slice(kpg_session_utf8(request->mapping));
	properties.tags = text_array(request->tags, "tags", &properties.ntags);
	properties.if_not_exists = text_array(request->ingest_if_not_exists, "ingest_if_not_exists",
										  &properties.nif_not_exists);
	properties.has_creation_time = request->has_creation_time;
	if (request->has_creation_time)
		properties.creation_time_us = request->creation_time +
			((int64) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE)) * USECS_PER_DAY;
	properties.flush_immediately = request->flush_immediately;
	/* Perhaps: how large the blobs will be is not known yet, and the message must fit. */
	properties.exactly_once = export->exactly_once != KPG_EXACTLY_ONCE_OFF;
	properties.report = KC_REPORT_ALL;
	return properties;
}
