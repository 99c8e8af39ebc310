/*
 * functions_internal.h
 *	  What the functions_*.c files share; nobody else includes it.
 */
#ifndef KPG_FUNCTIONS_INTERNAL_H
#define KPG_FUNCTIONS_INTERNAL_H

#include "postgres.h"

#include "fmgr.h"

#include "export.h"

/* NULL when null. */
extern char *kpg_functions_text(FunctionCallInfo fcinfo, int n);

/* Raises when null; name is for the message. */
extern bool kpg_functions_bool(FunctionCallInfo fcinfo, int n, const char *name);

/*
 * An interval in milliseconds, -1 when null: for ever.  A month counts 30 days,
 * as for PostgreSQL.  Raises when it is negative.
 */
extern int64 kpg_functions_timeout(FunctionCallInfo fcinfo, int n);

/* Behind what is exported, every function that exports has where to ... */
enum
{
	KPG_ARG_DATABASE = 1,
	KPG_ARG_TABLE_NAME,
	KPG_ARG_SERVER
};

/* ... and these, in a row: mapping to exactly_once. */
#define KPG_PROPERTY_ARGUMENTS	8

/* All of those; zeroes the rest of the request.  properties: number of the first of them. */
extern void kpg_functions_export(FunctionCallInfo fcinfo, int properties, KpgExportRequest *request);

#endif							/* KPG_FUNCTIONS_INTERNAL_H */
