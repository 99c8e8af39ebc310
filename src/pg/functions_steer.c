/*
 * functions_steer.c
 *	  SQL-callable functions that steer operations: cancel, retry, purge.
 */
#include "postgres.h"

#include "fmgr.h"

#include "compat.h"

PG_FUNCTION_INFO_V1(kusto_cancel);
PG_FUNCTION_INFO_V1(kusto_retry);
PG_FUNCTION_INFO_V1(kusto_purge);

Datum
kusto_cancel(PG_FUNCTION_ARGS)
{
	elog(ERROR, "under construction");
}

Datum
kusto_retry(PG_FUNCTION_ARGS)
{
	elog(ERROR, "under construction");
}

Datum
kusto_purge(PG_FUNCTION_ARGS)
{
	elog(ERROR, "under construction");
}
