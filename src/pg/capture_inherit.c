/*
 * capture_inherit.c
 *	  Captured tables that become partitions, inheritance children or parents.
 *
 * kusto_capture() makes statement-level triggers for a table on its own.  Such
 * a trigger is not fired for what a statement that names the parent does to the
 * table, and on a parent its transition tables hold rows of the children as
 * well.  Row triggers do neither, so the command that gives a table a relative
 * also turns its triggers into such; as its user, who owns both tables.  What
 * is raised makes the command fail.
 *
 * Only sessions that have loaded the library see commands here; the trigger
 * warns, and kusto.captures shows it, where one has not.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "nodes/parsenodes.h"

#include "capture_internal.h"
#include "capture_triggers.h"

/* A partitioned table's triggers are as its owner wants them. */
static List *
relatives_of_alter(const AlterTableStmt *alter)
{
	List	   *relatives = NIL;
	ListCell   *cell;

	foreach(cell, alter->cmds)
	{
		const AlterTableCmd *command = lfirst_node(AlterTableCmd, cell);

		if (command->subtype == AT_AttachPartition)
			relatives = lappend(relatives, copyObject(castNode(PartitionCmd, command->def)->name));
		else if (command->subtype == AT_AddInherit)
		{
			relatives = lappend(relatives, copyObject(alter->relation));
			relatives = lappend(relatives, copyObject(castNode(RangeVar, command->def)));
		}
	}
	return relatives;
}

static List *
parents_of(const CreateStmt *create)
{
	return create->partbound == NULL ? copyObject(create->inhRelations) : NIL;
}

List *
kpg_capture_relatives(const Node *command)
{
	switch (nodeTag(command))
	{
		case T_AlterTableStmt:
			return relatives_of_alter((const AlterTableStmt *) command);
		case T_CreateStmt:
			return parents_of((const CreateStmt *) command);
		case T_CreateForeignTableStmt:
			return parents_of(&((const CreateForeignTableStmt *) command)->base);
		default:
			return NIL;
	}
}

void
kpg_capture_related(const List *relatives)
{
	ListCell   *cell;

	/* What the command has done is to be seen. */
	CommandCounterIncrement();
	foreach(cell, relatives)
	{
		/* The command has locked it; IF EXISTS may have found none, and it may be an index. */
		Oid			relid = RangeVarGetRelid(lfirst_node(RangeVar, cell), NoLock, true);

		if (OidIsValid(relid))
			kpg_capture_triggers_by_row(relid);
	}
}
