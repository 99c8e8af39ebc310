/*
 * functions_internal.h
 *	  What the functions_*.c files share; nobody else includes it.
 */
#ifndef KPG_FUNCTIONS_INTERNAL_H
#define KPG_FUNCTIONS_INTERNAL_H

#include "postgres.h"

#include "fmgr.h"

/* NULL when null. */
extern char *kpg_functions_text(FunctionCallInfo fcinfo, int n);

/* Raises when null; name is for the message. */
extern bool kpg_functions_bool(FunctionCallInfo fcinfo, int n, const char *name);

/*
 * An interval in milliseconds, -1 when null: for ever.  A month counts 30 days,
 * as for PostgreSQL.  Raises when it is negative.
 */
extern int64 kpg_functions_timeout(FunctionCallInfo fcinfo, int n);

#endif							/* KPG_FUNCTIONS_INTERNAL_H */
