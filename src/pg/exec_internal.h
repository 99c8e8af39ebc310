/*
 * exec_internal.h
 *	  What the exec*.c files share; nobody else includes it.
 */
#ifndef KPG_EXEC_INTERNAL_H
#define KPG_EXEC_INTERNAL_H

#include "postgres.h"

#include "nodes/plannodes.h"

#include "exec.h"

struct KpgQuery
{
	const char *text;
	const char *shown;			/* what the executor takes for the text */
	PlannedStmt *plan;
	TupleDesc	desc;
};

#endif							/* KPG_EXEC_INTERNAL_H */
