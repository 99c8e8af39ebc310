/*
 * exec.h
 *	  Run exactly one query of the user's into a DestReceiver.
 */
#ifndef KPG_EXEC_H
#define KPG_EXEC_H

#include "postgres.h"

#include "access/attnum.h"
#include "access/tupdesc.h"
#include "nodes/pg_list.h"
#include "tcop/dest.h"

typedef struct KpgQuery KpgQuery;

/*
 * Parse, analyze, rewrite and plan, as the current user, in the current
 * search_path.  Accepts SELECT, VALUES, TABLE, WITH, and INSERT, UPDATE,
 * DELETE, MERGE with RETURNING; a trailing semicolon is fine.  Anything else
 * raises its own error.  Lives in the current memory context.
 */
extern KpgQuery *kpg_exec_prepare(const char *text);

/*
 * The same checks without planning, so that nothing of the query is evaluated,
 * and the result columns.  A query that uses temporary tables is refused: it
 * is another session that will run it.
 */
extern TupleDesc kpg_exec_check(const char *text);

/* Result columns; without junk attributes.  Blessed. */
extern TupleDesc kpg_exec_tupdesc(KpgQuery *query);

/*
 * Show something else for the query's text from now on.  Parallel workers have
 * it in pg_stat_activity, and in the server log when they fail.
 */
extern void kpg_exec_hide(KpgQuery *query, const char *shown);

/*
 * Execute once, all rows into dest, under a copy of the active snapshot (a
 * fresh command id, so that the transaction's own changes are seen), parallel
 * plans allowed.  Returns the number of rows.
 */
extern uint64 kpg_exec_run(KpgQuery *query, DestReceiver *dest);

/* ---- exec_tables.c ---- */

/* A table that is read from its beginning to its end, by its attributes. */
typedef struct KpgPlainTable
{
	Oid			relid;
	AttrNumber *columns;		/* one a result column */
} KpgPlainTable;

/*
 * The tables, KpgPlainTable, whose rows are the query's result: all of them,
 * each as it is stored, in any order.  The query is SELECT * FROM relation.  NIL:
 * it is more than that.  What executing the query would lock is locked; the
 * privileges that it takes are checked, as the executor would do.
 */
extern List *kpg_exec_plain_tables(KpgQuery *query, Oid relation);

#endif							/* KPG_EXEC_H */
