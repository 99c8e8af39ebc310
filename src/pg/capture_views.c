/*
 * capture_views.c
 *	  The commands that make, in Kusto, what row changes are good for: their
 *	  table, the rows that are there now, and their history.
 *
 * The materialized view keeps the last change of each row, and the last TRUNCATE
 * apart from them: the key of a truncation is empty, and so may be the key of a
 * row, whose type is string.
 * (learn.microsoft.com/kusto/management/materialized-views/materialized-view-create)
 *
 * Rows that were there when a capture began share one _seq, and come just once;
 * of the others, what streaming has sent twice has the same _seq.
 */
#include "postgres.h"

#include "access/relation.h"
#include "mb/pg_wchar.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "../core/buf.h"
#include "../core/text.h"
#include "alloc.h"
#include "capture.h"
#include "schema.h"

typedef struct ViewNames
{
	const char *table;
	char	   *latest;
	char	   *current;
	char	   *history;
	char	   *truncated;		/* column of latest that tells truncations from rows */
	List	   *keys;			/* of char *: columns of latest that stand for others */
} ViewNames;

static char *
finished(KcBuf *out)
{
	if (out->failed != KC_OK)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	return pg_any_to_server(out->data, (int) out->len, PG_UTF8);
}

static void
begin(KcBuf *out)
{
	kc_buf_init(out, kpg_alloc_create(CurrentMemoryContext), KC_BUF_UNLIMITED);
}

static void
append_string(KcBuf *out, const char *text)
{
	kc_text_kql_string(out, kc_slice(pg_server_to_any(text, (int) strlen(text), PG_UTF8)));
}

static bool
is_column(const KpgCaptureShape *shape, const char *name)
{
	for (int i = 0; i < shape->ncolumns; i++)
	{
		if (strcmp(shape->columns[i].name, name) == 0)
			return true;
	}
	return false;
}

/* A name that the table does not have. */
static char *
own_name(const KpgCaptureShape *shape, const char *name)
{
	char	   *candidate = pstrdup(name);

	while (is_column(shape, candidate))
		candidate = psprintf("%s_", candidate);
	return candidate;
}

/*
 * ", ['a'], ['b']": what the key's columns are called in Kusto.  False: not all
 * are captured.  Kusto does not group by a dynamic value, but by its text.
 */
static bool
append_key(KcBuf *out, ViewNames *names, const KpgCaptureShape *shape, Bitmapset *key)
{
	int			found = 0;

	for (int i = 0; i < shape->ncolumns; i++)
	{
		const KpgCaptureColumn *column = &shape->columns[i];

		if (column->attnum <= 0 ||
			!bms_is_member(column->attnum - FirstLowInvalidHeapAttributeNumber, key))
			continue;
		found++;
		kc_buf_str(out, ", ");
		if (strcmp(column->type, "dynamic") == 0)
		{
			char	   *name = own_name(shape, psprintf("_key_%s", column->name));

			names->keys = lappend(names->keys, name);
			kpg_schema_append_name(out, name);
			kc_buf_str(out, " = tostring(");
			kpg_schema_append_name(out, column->name);
			kc_buf_char(out, ')');
		}
		else
			kpg_schema_append_name(out, column->name);
	}
	return found > 0 && found == bms_num_members(key);
}

static char *
latest_command(ViewNames *names, const KpgCaptureShape *shape, Bitmapset *key)
{
	KcBuf		out;

	begin(&out);
	kc_buf_str(&out, ".create async ifnotexists materialized-view with (backfill=true, autoUpdateSchema=true) ");
	kpg_schema_append_name(&out, names->latest);
	kc_buf_str(&out, " on table ");
	kpg_schema_append_name(&out, names->table);
	kc_buf_str(&out, " { ");
	kpg_schema_append_name(&out, names->table);
	kc_buf_printf(&out, " | extend %s = " KPG_CAPTURE_OP " == \"truncate\""
				  " | summarize arg_max(" KPG_CAPTURE_SEQ ", *) by %s", names->truncated, names->truncated);
	if (!append_key(&out, names, shape, key))
		return NULL;
	kc_buf_str(&out, " }");
	return finished(&out);
}

static void
append_view(KcBuf *out, const ViewNames *names)
{
	kc_buf_str(out, "materialized_view(");
	append_string(out, names->latest);
	kc_buf_char(out, ')');
}

/* A truncation hides the rows whose last change was before it. */
static char *
current_command(const ViewNames *names)
{
	ListCell   *cell;
	KcBuf		out;

	begin(&out);
	/* The view may not be complete yet. */
	kc_buf_str(&out, ".create-or-alter function with (skipvalidation=true) ");
	kpg_schema_append_name(&out, names->current);
	kc_buf_str(&out, "() { let _end = coalesce(toscalar(");
	append_view(&out, names);
	kc_buf_printf(&out, " | where %s | summarize max(" KPG_CAPTURE_SEQ ")), long(-1)); ", names->truncated);
	append_view(&out, names);
	kc_buf_printf(&out, " | where not(%s) and " KPG_CAPTURE_OP " != \"delete\" and "
				  KPG_CAPTURE_SEQ " > _end | project-away %s", names->truncated, names->truncated);
	foreach(cell, names->keys)
	{
		kc_buf_str(&out, ", ");
		kpg_schema_append_name(&out, (char *) lfirst(cell));
	}
	kc_buf_str(&out, " }");
	return finished(&out);
}

static char *
history_command(const ViewNames *names)
{
	KcBuf		out;

	begin(&out);
	kc_buf_str(&out, ".create-or-alter function ");
	kpg_schema_append_name(&out, names->history);
	kc_buf_str(&out, "() { ");
	kpg_schema_append_name(&out, names->table);
	kc_buf_str(&out, " | where " KPG_CAPTURE_OP " != \"snapshot\" | summarize arg_max("
			   KPG_CAPTURE_CHANGED_AT ", *) by " KPG_CAPTURE_SEQ " | union (");
	kpg_schema_append_name(&out, names->table);
	kc_buf_str(&out, " | where " KPG_CAPTURE_OP " == \"snapshot\") | order by " KPG_CAPTURE_SEQ " asc }");
	return finished(&out);
}

static List *
add_command(List *commands, const char *name, const char *purpose, char *command)
{
	KpgCaptureCommand *entry = palloc(sizeof(KpgCaptureCommand));

	entry->name = pstrdup(name);
	entry->purpose = purpose;
	entry->command = command;
	return lappend(commands, entry);
}

static List *
add_capture(List *commands, Relation relation, const KpgCapture *capture)
{
	KpgCaptureShape *newest = kpg_outbox_shape(capture->id);
	KpgCaptureShape *shape = kpg_capture_shape(RelationGetDescr(relation), capture, newest);
	ViewNames	names = {
		.table = capture->table_name,
		.latest = psprintf("%s_latest", capture->table_name),
		.current = psprintf("%s_current", capture->table_name),
		.history = psprintf("%s_history", capture->table_name),
		.truncated = own_name(shape, "_truncated")
	};
	char	   *latest = latest_command(&names, shape, kpg_capture_primary_key(relation, NULL));

	commands = add_command(commands, names.table, "the table that row changes are sent to",
						   kpg_capture_create_merge(capture, shape));
	if (latest != NULL)
	{
		commands = add_command(commands, names.latest,
							   "materialized view: the last change of each row",
							   latest);
		commands = add_command(commands, names.current, "function: the rows that the table has now",
							   current_command(&names));
	}
	return add_command(commands, names.history, "function: all changes in order, each of them once",
					   history_command(&names));
}

List *
kpg_capture_commands(Oid relid)
{
	List	   *captures = kpg_outbox_captures_of(relid);
	List	   *commands = NIL;
	Relation	relation;
	ListCell   *cell;

	if (captures == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("table \"%s\" is not captured", get_rel_name(relid)),
				 errhint("Use kusto_capture() first.")));
	relation = relation_open(relid, AccessShareLock);
	foreach(cell, captures)
		commands = add_capture(commands, relation, lfirst(cell));
	relation_close(relation, AccessShareLock);
	return commands;
}
