/*
 * launcher_utility.c
 *	  Commands that want a database without connections.
 *
 * They lock the database, wait five seconds for others to leave, and give up.
 * Its worker looks for such a lock now and then; here it is told at once.  For
 * that the lock is taken a moment before the command would take it.
 *
 * Then the command waits here until the worker has left.  DROP DATABASE WITH
 * (FORCE) would otherwise try to terminate it, which only superusers may.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"

#include "compat.h"
#include "launcher_internal.h"
#include "wait.h"
#include "worker.h"

/* With posts and jobs under way a worker needs little more than a second. */
#define LEAVE_TIMEOUT_MS	3000
#define LEAVE_PAUSE_MAX_MS	50

static ProcessUtility_hook_type previous_hook;

/* The database that CREATE DATABASE copies; NULL: the default, where no worker stays. */
static const char *
template_of(const CreatedbStmt *stmt)
{
	ListCell   *cell;

	foreach(cell, stmt->options)
	{
		const DefElem *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, "template") == 0 && option->arg != NULL && IsA(option->arg, String))
			return strVal(option->arg);
	}
	return NULL;
}

static bool
sets_tablespace(const AlterDatabaseStmt *stmt)
{
	ListCell   *cell;

	foreach(cell, stmt->options)
	{
		if (strcmp(lfirst_node(DefElem, cell)->defname, "tablespace") == 0)
			return true;
	}
	return false;
}

/* The database that a command wants for itself, and the lock that it will take. */
static const char *
wanted_database(Node *stmt, LOCKMODE *mode)
{
	*mode = AccessExclusiveLock;
	switch (nodeTag(stmt))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) stmt)->dbname;
		case T_RenameStmt:
			if (((RenameStmt *) stmt)->renameType != OBJECT_DATABASE)
				return NULL;
			return ((RenameStmt *) stmt)->subname;
		case T_AlterDatabaseStmt:
			if (!sets_tablespace((AlterDatabaseStmt *) stmt))
				return NULL;
			return ((AlterDatabaseStmt *) stmt)->dbname;
		case T_CreatedbStmt:
			*mode = ShareLock;
			return template_of((CreatedbStmt *) stmt);
		default:
			return NULL;
	}
}

static void
wait_until_left(Oid database)
{
	int64		deadline = kpg_worker_now_ms() + LEAVE_TIMEOUT_MS;
	int64		pause_ms = 1;

	while (kpg_worker_is_in(database) && kpg_worker_now_ms() < deadline)
	{
		(void) kpg_wait_once(pause_ms, KPG_WAIT_WORKER);
		pause_ms = Min(pause_ms * 2, LEAVE_PAUSE_MAX_MS);
	}
}

/*
 * A command that is refused for its role, or for where it is run, disturbs
 * nobody.  After one that is refused for another reason the worker comes back
 * if there is work.
 */
static void
clear_database(const char *name, LOCKMODE mode)
{
	Oid			database;

	if (RecoveryInProgress() || XactReadOnly)
		return;
	database = get_database_oid(name, true);
	if (!OidIsValid(database) || database == MyDatabaseId ||
		!kpg_compat_owns_database(database, GetUserId()))
		return;
	LockSharedObject(DatabaseRelationId, database, 0, mode);
	kpg_worker_wake(database);
	wait_until_left(database);
}

static void
process_utility(KPG_COMPAT_UTILITY_PARAMETERS)
{
	LOCKMODE	mode;
	const char *database = wanted_database(pstmt->utilityStmt, &mode);

	/* All of these refuse to run in a transaction block, RENAME excepted. */
	if (database != NULL && context == PROCESS_UTILITY_TOPLEVEL && !IsTransactionBlock())
		clear_database(database, mode);
	if (previous_hook != NULL)
		previous_hook(KPG_COMPAT_UTILITY_ARGUMENTS);
	else
		standard_ProcessUtility(KPG_COMPAT_UTILITY_ARGUMENTS);
}

void
kpg_launcher_hook(void)
{
	previous_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
