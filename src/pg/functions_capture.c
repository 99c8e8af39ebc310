/*
 * functions_capture.c
 *	  SQL-callable functions about captured row changes: check the arguments,
 *	  delegate.
 */
#include "postgres.h"

#include "fmgr.h"

#include "capture.h"
#include "compat.h"

PG_FUNCTION_INFO_V1(kusto_capture);
PG_FUNCTION_INFO_V1(kusto_uncapture);
PG_FUNCTION_INFO_V1(kusto_flush);
PG_FUNCTION_INFO_V1(kusto_capture_views);
PG_FUNCTION_INFO_V1(kusto_capture_changes);

Datum
kusto_capture(PG_FUNCTION_ARGS)
{
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("kusto_capture is not built yet")));
}

Datum
kusto_uncapture(PG_FUNCTION_ARGS)
{
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("kusto_uncapture is not built yet")));
}

Datum
kusto_flush(PG_FUNCTION_ARGS)
{
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("kusto_flush is not built yet")));
}

Datum
kusto_capture_views(PG_FUNCTION_ARGS)
{
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("kusto_capture_views is not built yet")));
}

/* Moves to capture.c. */
Datum
kusto_capture_changes(PG_FUNCTION_ARGS)
{
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("kusto_capture_changes is not built yet")));
}
