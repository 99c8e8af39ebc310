/*
 * exec_tables.c
 *	  Whether a query is nothing but the rows of tables.
 *
 * Its plan tells: whatever stands between a table and the query's result -
 * generated columns, another access method's or an extension's own way of
 * reading - is in the plan as a node, a condition or an expression that is not
 * known here.  So nothing has to be guessed from the catalogs, and what is new
 * to us makes a query that is run as it is.  One condition is not in the plan:
 * that which a partial index implies.
 *
 * Whether somebody may see all rows is not left to the plan's form alone: views
 * and tables with row security always make a query.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "miscadmin.h"
#include "parser/parsetree.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"

#include "compat.h"
#include "exec_internal.h"

typedef struct PlainWalk
{
	const PlannedStmt *plan;
	int			ncolumns;
	List	   *tables;
} PlainWalk;

/* The attribute that a result column is, and nothing else; 0: it is more. */
static AttrNumber
plain_attribute(const Scan *scan, const TargetEntry *entry)
{
	const Var  *var = (const Var *) entry->expr;

	if (!IsA(var, Var))
		return InvalidAttrNumber;
	if (IsA(scan, IndexOnlyScan) && var->varno == INDEX_VAR)
	{
		List	   *columns = ((const IndexOnlyScan *) scan)->indextlist;

		if (var->varattno < 1 || var->varattno > list_length(columns))
			return InvalidAttrNumber;
		var = (const Var *) list_nth_node(TargetEntry, columns, var->varattno - 1)->expr;
		if (!IsA(var, Var))
			return InvalidAttrNumber;
	}
	return (Index) var->varno == scan->scanrelid && var->varattno > 0 ? var->varattno : InvalidAttrNumber;
}

/*
 * Other access methods may have more to a scan than their tables' rows.  Of a
 * materialized view without data the executor says what is to be done.
 */
static bool
is_readable(Oid relid)
{
	Relation	relation = table_open(relid, NoLock);
	bool		readable = relation->rd_rel->relam == HEAP_TABLE_AM_OID && RelationIsScannable(relation);

	table_close(relation, NoLock);
	return readable;
}

static bool
add_table(PlainWalk *walk, const Scan *scan)
{
	const RangeTblEntry *rte = rt_fetch(scan->scanrelid, walk->plan->rtable);
	KpgPlainTable *table;
	ListCell   *cell;
	int			n = 0;

	if (rte->rtekind != RTE_RELATION || !is_readable(rte->relid))
		return false;
	table = palloc(sizeof(KpgPlainTable));
	table->relid = rte->relid;
	table->columns = palloc(sizeof(AttrNumber) * (Size) Max(walk->ncolumns, 1));
	foreach(cell, scan->plan.targetlist)
	{
		const TargetEntry *entry = lfirst_node(TargetEntry, cell);
		AttrNumber	attnum = plain_attribute(scan, entry);

		if (entry->resjunk || attnum == InvalidAttrNumber || n == walk->ncolumns)
			return false;
		table->columns[n++] = attnum;
	}
	walk->tables = lappend(walk->tables, table);
	return n == walk->ncolumns;
}

/* Then the index is the condition, which the plan has no more. */
static bool
is_partial(Oid index)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	bool		partial;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for index %u", index);
	partial = !heap_attisnull(tuple, Anum_pg_index_indpred, NULL);
	ReleaseSysCache(tuple);
	return partial;
}

/* A node that can compute expressions gives what the one below gives. */
static bool
passes_through(const Plan *plan)
{
	ListCell   *cell;

	if (outerPlan(plan) == NULL || list_length(plan->targetlist) != list_length(outerPlan(plan)->targetlist))
		return false;
	foreach(cell, plan->targetlist)
	{
		const TargetEntry *entry = lfirst_node(TargetEntry, cell);
		const Var  *var = (const Var *) entry->expr;

		if (entry->resjunk || !IsA(var, Var) || var->varno != OUTER_VAR || var->varattno != entry->resno)
			return false;
	}
	return true;
}

static bool
is_plain(PlainWalk *walk, Plan *plan)
{
	ListCell   *cell;

	check_stack_depth();
	if (plan == NULL || plan->qual != NIL || plan->initPlan != NIL)
		return false;
	switch (nodeTag(plan))
	{
		case T_SeqScan:
			return add_table(walk, (Scan *) plan);
		case T_IndexOnlyScan:
			return ((IndexOnlyScan *) plan)->indexqual == NIL &&
				((IndexOnlyScan *) plan)->indexorderby == NIL &&
				!is_partial(((IndexOnlyScan *) plan)->indexid) &&
				add_table(walk, (Scan *) plan);
		case T_Gather:
			return passes_through(plan) && is_plain(walk, outerPlan(plan));
		case T_Append:
			foreach(cell, ((Append *) plan)->appendplans)
			{
				if (!is_plain(walk, (Plan *) lfirst(cell)))
					return false;
			}
			return true;
		default:
			return false;
	}
}

static bool
hides_rows(Oid relation)
{
	char		relkind = get_rel_relkind(relation);

	return (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE && relkind != RELKIND_MATVIEW) ||
		check_enable_rls(relation, InvalidOid, true) == RLS_ENABLED;
}

List *
kpg_exec_plain_tables(KpgQuery *query, Oid relation)
{
	PlainWalk	walk = {.plan = query->plan,.ncolumns = query->desc->natts};

	if (hides_rows(relation) || query->plan->commandType != CMD_SELECT || query->plan->hasModifyingCTE ||
		query->plan->rowMarks != NIL || query->plan->subplans != NIL ||
		!is_plain(&walk, query->plan->planTree))
		return NIL;
	kpg_compat_check_permissions(query->plan);
	return walk.tables;
}
