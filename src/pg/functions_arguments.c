/*
 * functions_arguments.c
 *	  Arguments of SQL-callable functions, none of which is strict.
 */
#include "postgres.h"

#include <math.h>

#include "fmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "functions_internal.h"

char *
kpg_functions_text(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

bool
kpg_functions_bool(FunctionCallInfo fcinfo, int n, const char *name)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
	return PG_GETARG_BOOL(n);
}

int64
kpg_functions_timeout(FunctionCallInfo fcinfo, int n)
{
	Interval   *interval;
	double		ms;

	if (PG_ARGISNULL(n))
		return -1;
	interval = PG_GETARG_INTERVAL_P(n);
	ms = ((double) interval->month * DAYS_PER_MONTH + interval->day) * SECS_PER_DAY * 1000.0 +
		(double) interval->time / 1000.0;
	if (ms < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative")));

	/* Beyond a century, PostgreSQL 17's infinity included, is for ever. */
	return ms > 100.0 * DAYS_PER_YEAR * SECS_PER_DAY * 1000.0 ? -1 : (int64) ceil(ms);
}

enum
{
	PROPERTY_MAPPING,
	PROPERTY_TAGS,
	PROPERTY_INGEST_IF_NOT_EXISTS,
	PROPERTY_CREATION_TIME,
	PROPERTY_FLUSH_IMMEDIATELY,
	PROPERTY_CREATE_TABLE,
	PROPERTY_ON_TYPE_ERROR,
	PROPERTY_EXACTLY_ONCE
};

StaticAssertDecl(PROPERTY_EXACTLY_ONCE + 1 == KPG_PROPERTY_ARGUMENTS, "an argument of exports is not counted");

static ArrayType *
array_argument(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : PG_GETARG_ARRAYTYPE_P(n);
}

void
kpg_functions_export(FunctionCallInfo fcinfo, int properties, KpgExportRequest *request)
{
	memset(request, 0, sizeof(*request));
	request->database = kpg_functions_text(fcinfo, KPG_ARG_DATABASE);
	request->table_name = kpg_functions_text(fcinfo, KPG_ARG_TABLE_NAME);
	request->server = PG_ARGISNULL(KPG_ARG_SERVER) ? NULL : NameStr(*PG_GETARG_NAME(KPG_ARG_SERVER));
	request->mapping = kpg_functions_text(fcinfo, properties + PROPERTY_MAPPING);
	request->tags = array_argument(fcinfo, properties + PROPERTY_TAGS);
	request->ingest_if_not_exists = array_argument(fcinfo, properties + PROPERTY_INGEST_IF_NOT_EXISTS);
	request->has_creation_time = !PG_ARGISNULL(properties + PROPERTY_CREATION_TIME);
	if (request->has_creation_time)
		request->creation_time = PG_GETARG_TIMESTAMPTZ(properties + PROPERTY_CREATION_TIME);
	request->flush_immediately =
		kpg_functions_bool(fcinfo, properties + PROPERTY_FLUSH_IMMEDIATELY, "flush_immediately");
	request->create_table = kpg_functions_bool(fcinfo, properties + PROPERTY_CREATE_TABLE, "create_table");
	request->on_type_error = kpg_functions_text(fcinfo, properties + PROPERTY_ON_TYPE_ERROR);
	request->exactly_once = kpg_functions_text(fcinfo, properties + PROPERTY_EXACTLY_ONCE);
}
