/*
 * launcher_databases.c
 *	  Which databases the launcher looks after.
 *
 * The launcher is connected to no database, so there is neither a syscache nor
 * an index: pg_database is read as autovacuum's launcher reads it.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/varlena.h"

#include "launcher_internal.h"

/* Left by a DROP DATABASE that did not come to its end; minor releases of 2023 on. */
#define INVALID_DATABASE_CONNLIMIT	(-2)

bool
kpg_launcher_check_databases(char **newval, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*newval);
	List	   *names;
	bool		valid = SplitIdentifierString(copy, ',', &names);

	if (!valid)
		GUC_check_errdetail("List syntax is invalid.");
	else
		list_free(names);
	pfree(copy);
	return valid;
}

static bool
is_allowed(const char *database, List *names)
{
	ListCell   *cell;

	foreach(cell, names)
	{
		const char *name = (const char *) lfirst(cell);

		if (strcmp(name, "*") == 0 || strcmp(name, database) == 0)
			return true;
	}
	return false;
}

List *
kpg_launcher_databases(const char *setting)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *copy = pstrdup(setting);
	List	   *names;
	List	   *databases = NIL;
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;

	/* The check hook has let it pass. */
	if (!SplitIdentifierString(copy, ',', &names))
		elog(ERROR, "invalid list in parameter \"kusto_ingest.databases\"");

	StartTransactionCommand();
	/* For the xmin that keeps what is read from being pruned. */
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old = MemoryContextSwitchTo(context);

		if (form->datallowconn && form->datconnlimit != INVALID_DATABASE_CONNLIMIT &&
			is_allowed(NameStr(form->datname), names))
			databases = lappend_oid(databases, form->oid);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return databases;
}
