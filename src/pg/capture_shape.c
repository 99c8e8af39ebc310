/*
 * capture_shape.c
 *	  Columns of a captured table to columns in Kusto.
 *
 * Chunks are CSV, whose fields go by position, and chunks of before and after an
 * ALTER TABLE wait side by side: so a column in Kusto never moves, goes, or
 * changes its type, and further ones are added at the end
 * (learn.microsoft.com/kusto/management/create-merge-table-command).  What
 * changes is which column of PostgreSQL fills a field, or that none does.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "mb/pg_wchar.h"

#include "alloc.h"
#include "capture.h"
#include "compat.h"
#include "format.h"
#include "schema.h"

/* The columns in front: names, and types in Kusto. */
static const struct FrontColumn
{
	const char *name;
	const char *type;
}			front_columns[] = {
	{KPG_CAPTURE_OP, "string"},
	{KPG_CAPTURE_TXID, "long"},
	{KPG_CAPTURE_SEQ, "long"},
	{KPG_CAPTURE_CHANGED_AT, "datetime"},
	{KPG_CAPTURE_OLD, "dynamic"}
};

static int
front_count(const KpgCapture *capture)
{
	return (int) lengthof(front_columns) - (capture->old_values ? 0 : 1);
}

/* A shape that is being made. */
typedef struct ShapeDraft
{
	TupleDesc	desc;
	const KpgCapture *capture;
	KpgOnTypeError policy;
	bool		anew;			/* the list of columns means those of today */
	KpgCaptureShape *shape;
	bool	   *retyped;		/* by attnum - 1: its field has become empty */
	bool		changed;
} ShapeDraft;

static const char *
type_of(const ShapeDraft *draft, const FormData_pg_attribute *att)
{
	return kpg_format_kusto_type(att->atttypid, att->atttypmod, draft->policy);
}

/* The column that fills a field; NULL: none does. */
static const FormData_pg_attribute *
source_of(const ShapeDraft *draft, const KpgCaptureColumn *column)
{
	const FormData_pg_attribute *att;

	if (column->attnum <= 0 || column->attnum > draft->desc->natts)
		return NULL;
	att = TupleDescAttr(draft->desc, column->attnum - 1);
	return att->attisdropped || kpg_compat_is_virtual(att) ? NULL : att;
}

static KpgCaptureColumn *
column_named(const ShapeDraft *draft, const char *name)
{
	for (int i = 0; i < draft->shape->ncolumns; i++)
	{
		if (strcmp(draft->shape->columns[i].name, name) == 0)
			return &draft->shape->columns[i];
	}
	return NULL;
}

static bool
is_filled(const ShapeDraft *draft, AttrNumber attnum)
{
	for (int i = 0; i < draft->shape->ncolumns; i++)
	{
		if (draft->shape->columns[i].attnum == attnum)
			return true;
	}
	return false;
}

static bool
is_listed(const KpgCapture *capture, const char *name)
{
	ListCell   *cell;

	foreach(cell, capture->columns)
	{
		if (strcmp((char *) lfirst(cell), name) == 0)
			return true;
	}
	return false;
}

/* ---- what has become of the columns that are there ---- */

static void
revise_columns(ShapeDraft *draft)
{
	for (int i = 0; i < draft->shape->ncolumns; i++)
	{
		KpgCaptureColumn *column = &draft->shape->columns[i];
		const FormData_pg_attribute *att = source_of(draft, column);
		bool		unlisted;

		if (att == NULL)
			continue;
		unlisted = draft->anew && draft->capture->columns != NIL &&
			!is_listed(draft->capture, NameStr(att->attname));
		if (!unlisted && strcmp(column->type, type_of(draft, att)) == 0)
			continue;
		draft->retyped[column->attnum - 1] = !unlisted;
		column->attnum = 0;
		draft->changed = true;
	}
}

/* ---- what is to be added ---- */

static void
check_name(const ShapeDraft *draft, const char *name)
{
	const char *problem = kpg_schema_name_problem(name);

	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("a Kusto column cannot be named \"%s\"", name),
				 errdetail_internal("%s", problem),
				 errhint("Rename the column of table \"%s\", or capture the others with columns => ....",
						 draft->capture->relation_name)));
	for (int i = 0; i < front_count(draft->capture); i++)
	{
		if (strcmp(front_columns[i].name, name) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("column \"%s\" of table \"%s\" has the name of a column that every row change has in Kusto",
							name, draft->capture->relation_name),
					 errhint("Rename the column, or capture the others with columns => ....")));
	}
}

/* The column's own name, else name_type, else with a number behind. */
static char *
free_name(const ShapeDraft *draft, const char *name, const char *type)
{
	char	   *candidate = pstrdup(name);

	for (int i = 1; column_named(draft, candidate) != NULL; i++)
		candidate = i == 1 ? psprintf("%s_%s", name, type) : psprintf("%s_%s_%d", name, type, i);
	return candidate;
}

/*
 * A field that nothing fills any more is filled again by a column of its name
 * and type: one that was dropped and is back, for instance.
 */
static KpgCaptureColumn *
reusable_column(const ShapeDraft *draft, const char *name, const char *type)
{
	KpgCaptureColumn *column = column_named(draft, name);

	if (column != NULL && strcmp(column->type, type) == 0 && source_of(draft, column) == NULL)
		return column;
	return NULL;
}

/*
 * A list names columns as they were when it was given: one that was renamed has
 * its field already, and whoever has got its name since is not meant.
 */
static bool
is_wanted(const ShapeDraft *draft, const FormData_pg_attribute *att)
{
	const char *name = NameStr(att->attname);
	const KpgCaptureColumn *column;

	if (draft->capture->columns == NIL || draft->retyped[att->attnum - 1])
		return true;
	if (!is_listed(draft->capture, name))
		return false;
	column = column_named(draft, name);
	return draft->anew || column == NULL || source_of(draft, column) == NULL;
}

static void
add_column(ShapeDraft *draft, const FormData_pg_attribute *att)
{
	const char *name = NameStr(att->attname);
	const char *type = type_of(draft, att);
	KpgCaptureColumn *column = reusable_column(draft, name, type);

	check_name(draft, name);
	draft->changed = true;
	if (column == NULL)
	{
		char	   *kusto_name = free_name(draft, name, type);

		column = &draft->shape->columns[draft->shape->ncolumns++];
		column->name = kusto_name;
		column->type = pstrdup(type);
	}
	column->attnum = att->attnum;
}

static void
add_columns(ShapeDraft *draft)
{
	for (int i = 0; i < draft->desc->natts; i++)
	{
		const FormData_pg_attribute *att = TupleDescAttr(draft->desc, i);

		if (!att->attisdropped && !kpg_compat_is_virtual(att) && !is_filled(draft, att->attnum) &&
			is_wanted(draft, att))
			add_column(draft, att);
	}
}

/* Later on one that is missing was dropped or renamed. */
static void
check_list(const ShapeDraft *draft)
{
	ListCell   *cell;

	foreach(cell, draft->capture->columns)
	{
		const char *name = lfirst(cell);
		bool		found = false;

		for (int i = 0; i < draft->desc->natts && !found; i++)
		{
			const FormData_pg_attribute *att = TupleDescAttr(draft->desc, i);

			found = !att->attisdropped && strcmp(NameStr(att->attname), name) == 0;
		}
		if (!found)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of relation \"%s\" does not exist", name,
							draft->capture->relation_name),
					 errhint("kusto_capture() can be called again with other columns.")));
	}
}

static KpgCaptureShape *
copy_shape(const KpgCaptureShape *old, int further)
{
	KpgCaptureShape *shape = palloc0(sizeof(KpgCaptureShape));
	int			n = old == NULL ? 0 : old->ncolumns;

	shape->columns = palloc0(sizeof(KpgCaptureColumn) * (Size) Max(n + further, 1));
	for (int i = 0; i < n; i++)
	{
		shape->columns[i].name = pstrdup(old->columns[i].name);
		shape->columns[i].type = pstrdup(old->columns[i].type);
		shape->columns[i].attnum = old->columns[i].attnum;
	}
	shape->ncolumns = n;
	return shape;
}

static KpgCaptureShape *
make_shape(TupleDesc desc, const KpgCapture *capture, KpgCaptureShape *newest, bool anew)
{
	ShapeDraft	draft = {
		.desc = desc,
		.capture = capture,
		.policy = kpg_format_policy(capture->on_type_error),
		.anew = anew,
		.shape = copy_shape(newest, desc->natts),
		.retyped = palloc0(sizeof(bool) * (Size) Max(desc->natts, 1)),
		.changed = newest == NULL
	};

	if (anew || newest == NULL)
		check_list(&draft);
	revise_columns(&draft);
	add_columns(&draft);
	return draft.changed ? draft.shape : newest;
}

KpgCaptureShape *
kpg_capture_shape(TupleDesc desc, const KpgCapture *capture, KpgCaptureShape *newest)
{
	return make_shape(desc, capture, newest, false);
}

KpgCaptureShape *
kpg_capture_shape_anew(TupleDesc desc, const KpgCapture *capture, KpgCaptureShape *newest)
{
	return make_shape(desc, capture, newest, true);
}

/* ---- the table in Kusto ---- */

static void
append_column(KcBuf *out, const char *name, const char *type, bool first)
{
	kc_buf_str(out, first ? "" : ", ");
	kpg_schema_append_name(out, name);
	kc_buf_char(out, ':');
	kc_buf_str(out, type);
}

KpgCaptureShape *
kpg_capture_whole_shape(const KpgCapture *capture, const KpgCaptureShape *shape)
{
	KpgCaptureShape *whole = palloc0(sizeof(KpgCaptureShape));
	int			front = front_count(capture);

	whole->ncolumns = front + shape->ncolumns;
	whole->columns = palloc0(sizeof(KpgCaptureColumn) * (Size) whole->ncolumns);
	for (int i = 0; i < front; i++)
	{
		whole->columns[i].name = pstrdup(front_columns[i].name);
		whole->columns[i].type = pstrdup(front_columns[i].type);
	}
	for (int i = 0; i < shape->ncolumns; i++)
		whole->columns[front + i] = shape->columns[i];
	return whole;
}

char *
kpg_capture_create_merge(const KpgCapture *capture, const KpgCaptureShape *shape)
{
	const KpgCaptureShape *whole = kpg_capture_whole_shape(capture, shape);
	KcBuf		out;

	kpg_schema_check_table_name(capture->table_name);
	kc_buf_init(&out, kpg_alloc_create(CurrentMemoryContext), KC_BUF_UNLIMITED);
	kc_buf_str(&out, ".create-merge table ");
	kpg_schema_append_name(&out, capture->table_name);
	kc_buf_str(&out, " (");
	for (int i = 0; i < whole->ncolumns; i++)
		append_column(&out, whole->columns[i].name, whole->columns[i].type, i == 0);
	kc_buf_char(&out, ')');
	if (out.failed != KC_OK)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	return pg_any_to_server(out.data, (int) out.len, PG_UTF8);
}
