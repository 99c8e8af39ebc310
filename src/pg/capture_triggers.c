/*
 * capture_triggers.c
 *	  The triggers of captures on a relation: finding, dropping, making them.
 *
 * A trigger's arguments say all that it needs, so that it also works where
 * pg_dump has taken it, in a database that knows nothing of captures.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/comment.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "capture_internal.h"
#include "capture_triggers.h"
#include "compat.h"

static char *
qualified_name(Oid relation)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relation)),
									  get_rel_name(relation));
}

static void
connect_spi(void)
{
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

static void
finish_spi(void)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/* ---- finding ---- */

static const char select_triggers[] =
"SELECT t.tgname, t.tgnargs, t.tgargs FROM pg_catalog.pg_trigger t"
" WHERE t.tgrelid OPERATOR(pg_catalog.=) $1 AND t.tgfoid OPERATOR(pg_catalog.=) $2"
" AND NOT t.tgisinternal AND t.tgparentid OPERATOR(pg_catalog.=) 0::pg_catalog.oid"
" ORDER BY t.tgname";

/* pg_trigger.tgargs: each argument with a zero byte behind. */
static void
split_arguments(KpgCaptureTrigger *trigger, bytea *arguments)
{
	const char *at = VARDATA_ANY(arguments);

	if (trigger->nargs == 1)
	{
		trigger->args = kpg_capture_arguments_split(at, &trigger->nargs);
		return;
	}
	trigger->args = palloc(sizeof(char *) * (Size) Max(trigger->nargs, 1));
	for (int i = 0; i < trigger->nargs; i++)
	{
		trigger->args[i] = pstrdup(at);
		at += strlen(at) + 1;
	}
}

static KpgCaptureTrigger *
read_trigger(uint64 row)
{
	HeapTuple	tuple = SPI_tuptable->vals[row];
	TupleDesc	desc = SPI_tuptable->tupdesc;
	KpgCaptureTrigger *trigger = palloc0(sizeof(KpgCaptureTrigger));
	bool		isnull;

	trigger->name = pstrdup(NameStr(*DatumGetName(SPI_getbinval(tuple, desc, 1, &isnull))));
	trigger->nargs = DatumGetInt16(SPI_getbinval(tuple, desc, 2, &isnull));
	split_arguments(trigger, DatumGetByteaPP(SPI_getbinval(tuple, desc, 3, &isnull)));
	return trigger;
}

List *
kpg_capture_triggers_of(Oid relation, Oid function)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			types[] = {OIDOID, OIDOID};
	Datum		values[] = {ObjectIdGetDatum(relation), ObjectIdGetDatum(function)};
	MemoryContext old;
	List	   *triggers = NIL;

	connect_spi();
	/* DDL does not ask for the isolation level, either. */
	PushActiveSnapshot(GetLatestSnapshot());
	if (SPI_execute_with_args(select_triggers, lengthof(types), types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_with_args failed for: %s", select_triggers);
	PopActiveSnapshot();
	old = MemoryContextSwitchTo(context);
	for (uint64 i = 0; i < SPI_processed; i++)
		triggers = lappend(triggers, read_trigger(i));
	MemoryContextSwitchTo(old);
	finish_spi();
	return triggers;
}

bool
kpg_capture_trigger_is_for(const KpgCaptureTrigger *trigger, const char *database,
						   const char *table_name, const char *server)
{
	if (trigger->nargs < 2)
		return false;
	if (database != NULL && strcmp(trigger->args[0], database) != 0)
		return false;
	if (table_name != NULL && strcmp(trigger->args[1], table_name) != 0)
		return false;
	return server == NULL || trigger->nargs < 3 || trigger->args[2][0] == '\0' ||
		strcmp(trigger->args[2], server) == 0;
}

/* ---- dropping and making ---- */

static void
run_command(const char *command)
{
	connect_spi();
	if (SPI_execute(command, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "SPI_execute failed for: %s", command);
	finish_spi();
}

void
kpg_capture_drop_trigger(Oid relation, const KpgCaptureTrigger *trigger)
{
	run_command(psprintf("DROP TRIGGER %s ON %s", quote_identifier(trigger->name),
						 qualified_name(relation)));
}

typedef struct EventTrigger
{
	int			event;
	const char *name;
	const char *sql;
	const char *transition_tables;
} EventTrigger;

static const EventTrigger event_triggers[] = {
	{KPG_CAPTURE_INSERT, "insert", "INSERT", "NEW TABLE AS kusto_new"},
	{KPG_CAPTURE_UPDATE, "update", "UPDATE", "OLD TABLE AS kusto_old NEW TABLE AS kusto_new"},
	{KPG_CAPTURE_DELETE, "delete", "DELETE", "OLD TABLE AS kusto_old"},
	{KPG_CAPTURE_TRUNCATE, "truncate", "TRUNCATE", NULL}
};

static char *
columns_option(const KpgCapture *capture)
{
	StringInfoData columns;
	ListCell   *cell;

	initStringInfo(&columns);
	foreach(cell, capture->columns)
		appendStringInfo(&columns, "%s%s", columns.len == 0 ? "columns=" : ",",
						 quote_identifier((char *) lfirst(cell)));
	return columns.data;
}

/* What is the default is not written, so that \d of the table stays short. */
static List *
argument_list(const KpgCapture *capture)
{
	List	   *list = list_make3(capture->database, capture->table_name, capture->server);

	if (capture->old_values)
		list = lappend(list, "old_values=true");
	if (capture->columns != NIL)
		list = lappend(list, columns_option(capture));
	if (capture->create_table)
		list = lappend(list, "create_table=true");
	if (strcmp(capture->on_type_error, "error") != 0)
		list = lappend(list, psprintf("on_type_error=%s", capture->on_type_error));
	return lappend(list, psprintf("origin=" UINT64_FORMAT "/%u", GetSystemIdentifier(), MyDatabaseId));
}

static bool
can_be_joined(List *arguments)
{
	ListCell   *cell;

	foreach(cell, arguments)
	{
		if (strchr(lfirst(cell), KPG_CAPTURE_SEPARATOR) != NULL)
			return false;
	}
	return true;
}

/*
 * As one, if possible: each statement on the table copies the arguments of all
 * of its triggers, one by one.
 */
static char *
trigger_arguments(const KpgCapture *capture)
{
	List	   *arguments = argument_list(capture);
	bool		join = can_be_joined(arguments);
	StringInfoData text;
	ListCell   *cell;

	initStringInfo(&text);
	foreach(cell, arguments)
	{
		if (join && text.len > 0)
			appendStringInfoChar(&text, KPG_CAPTURE_SEPARATOR);
		else if (text.len > 0)
			appendStringInfoString(&text, ", ");
		appendStringInfoString(&text, join ? (char *) lfirst(cell) : quote_literal_cstr(lfirst(cell)));
	}
	return join ? quote_literal_cstr(text.data) : text.data;
}

static void
create_trigger(const KpgCapture *capture, const KpgCaptureTriggerPlan *plan, const EventTrigger *event,
			   const char *arguments)
{
	const char *trigger = quote_identifier(psprintf("Kusto_capture_%d_%s", capture->id, event->name));
	const char *relation = qualified_name(plan->relation);
	bool		by_row = plan->by_row && event->event != KPG_CAPTURE_TRUNCATE;
	bool		with_tables = !by_row && event->transition_tables != NULL;

	run_command(psprintf("CREATE TRIGGER %s AFTER %s ON %s%s%s FOR EACH %s EXECUTE FUNCTION %s(%s)",
						 trigger, event->sql, relation,
						 with_tables ? " REFERENCING " : "", with_tables ? event->transition_tables : "",
						 by_row ? "ROW" : "STATEMENT",
						 quote_qualified_identifier(get_namespace_name(get_func_namespace(plan->function)),
													get_func_name(plan->function)),
						 arguments));
	if (plan->always)
		run_command(psprintf("ALTER %sTABLE %s ENABLE ALWAYS TRIGGER %s",
							 get_rel_relkind(plan->relation) == RELKIND_FOREIGN_TABLE ? "FOREIGN " : "",
							 relation, trigger));
	run_command(psprintf("COMMENT ON TRIGGER %s ON %s IS %s", trigger, relation,
						 quote_literal_cstr(psprintf("sends row changes to table \"%s\" of Kusto database \"%s\" (kusto_ingest)",
													 capture->table_name, capture->database))));
}

void
kpg_capture_create_triggers(const KpgCapture *capture, const KpgCaptureTriggerPlan *plan)
{
	const char *arguments = trigger_arguments(capture);

	for (int i = 0; i < (int) lengthof(event_triggers); i++)
	{
		if (plan->events & event_triggers[i].event)
			create_trigger(capture, plan, &event_triggers[i], arguments);
	}
}

/* ---- from statement-level to row-level ---- */

static bool
is_captures_own(Oid function)
{
	char	   *name = get_func_name(function);
	Oid			extension;

	if (name == NULL || strcmp(name, KPG_CAPTURE_FUNCTION) != 0)
		return false;
	extension = getExtensionOfObject(ProcedureRelationId, function);
	return OidIsValid(extension) && extension == get_extension_oid("kusto_ingest", true);
}

static bool
is_by_statement(const Trigger *trigger)
{
	return !trigger->tgisinternal && !TRIGGER_FOR_ROW(trigger->tgtype) &&
		!TRIGGER_FOR_TRUNCATE(trigger->tgtype) && is_captures_own(trigger->tgfoid);
}

static List *
triggers_by_statement(TriggerDesc *triggers)
{
	List	   *found = NIL;

	for (int i = 0; triggers != NULL && i < triggers->numtriggers; i++)
	{
		if (is_by_statement(&triggers->triggers[i]))
			found = lappend(found, &triggers->triggers[i]);
	}
	return found;
}

/* One with a transition table has no other. */
static const char *
event_of(const Trigger *trigger)
{
	if (TRIGGER_FOR_INSERT(trigger->tgtype))
		return "INSERT";
	return TRIGGER_FOR_DELETE(trigger->tgtype) ? "DELETE" : "UPDATE";
}

/* NULL: as CREATE TRIGGER leaves it. */
static const char *
enabling(const Trigger *trigger)
{
	switch (trigger->tgenabled)
	{
		case TRIGGER_FIRES_ALWAYS:
			return "ENABLE ALWAYS";
		case TRIGGER_FIRES_ON_REPLICA:
			return "ENABLE REPLICA";
		case TRIGGER_DISABLED:
			return "DISABLE";
		default:
			return NULL;
	}
}

static void
replace_trigger(Oid relation, const Trigger *trigger)
{
	const char *name = quote_identifier(trigger->tgname);
	const char *table = qualified_name(relation);
	char	   *comment = GetComment(trigger->tgoid, TriggerRelationId, 0);
	StringInfoData arguments;

	/* What it asks, a row trigger may not be able to. */
	if (trigger->tgqual != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("trigger \"%s\" of table \"%s\" cannot be made row-level", trigger->tgname,
						get_rel_name(relation)),
				 errdetail("It has a WHEN condition."),
				 errhint("Drop the trigger, and create it as FOR EACH ROW.")));

	initStringInfo(&arguments);
	for (int i = 0; i < trigger->tgnargs; i++)
		appendStringInfo(&arguments, "%s%s", i == 0 ? "" : ", ", quote_literal_cstr(trigger->tgargs[i]));
	run_command(psprintf("DROP TRIGGER %s ON %s", name, table));
	run_command(psprintf("CREATE TRIGGER %s AFTER %s ON %s FOR EACH ROW EXECUTE FUNCTION %s(%s)",
						 name, event_of(trigger), table,
						 quote_qualified_identifier(get_namespace_name(get_func_namespace(trigger->tgfoid)),
													get_func_name(trigger->tgfoid)),
						 arguments.data));
	if (enabling(trigger) != NULL)
		run_command(psprintf("ALTER TABLE %s %s TRIGGER %s", table, enabling(trigger), name));
	if (comment != NULL)
		run_command(psprintf("COMMENT ON TRIGGER %s ON %s IS %s", name, table, quote_literal_cstr(comment)));
}

static void
add_replacing_context(void *arg)
{
	errcontext("making the triggers that capture row changes of table \"%s\" row-level",
			   (const char *) arg);
}

void
kpg_capture_triggers_by_row(Oid relid)
{
	Relation	relation = relation_open(relid, AccessShareLock);
	List	   *triggers = triggers_by_statement(CopyTriggerDesc(relation->trigdesc));
	ErrorContextCallback context = {
		.previous = error_context_stack,
		.callback = add_replacing_context,
		.arg = pstrdup(RelationGetRelationName(relation))
	};
	ListCell   *cell;

	relation_close(relation, NoLock);
	if (triggers == NIL)
		return;
	error_context_stack = &context;
	foreach(cell, triggers)
		replace_trigger(relid, lfirst(cell));
	error_context_stack = context.previous;
	ereport(NOTICE,
			(errmsg("row changes of table \"%s\" are captured row by row from now on", get_rel_name(relid)),
			 errdetail("Statement-level triggers do not see which of the rows changed through a parent are its own.")));
}
