/*
 * functions_arguments.c
 *	  Arguments of SQL-callable functions, none of which is strict.
 */
#include "postgres.h"

#include <math.h>

#include "fmgr.h"
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
