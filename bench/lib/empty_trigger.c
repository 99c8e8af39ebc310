/*
 * empty_trigger.c
 *	  A trigger function that does nothing: what PostgreSQL itself spends on a
 *	  trigger that is fired.
 *
 * bench/capture compiles it; no part of the extension.
 */
#include "postgres.h"

#include "fmgr.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(bench_empty_trigger);

Datum
bench_empty_trigger(PG_FUNCTION_ARGS)
{
	return PointerGetDatum(NULL);
}
