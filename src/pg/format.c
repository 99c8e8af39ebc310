/*
 * format.c
 *	  A row's fields: one write function a column, chosen when the format is
 *	  made.
 *
 * Everything of a format lives in the memory context it was made in.  Raises
 * for values that meet on_type_error's 'error', for rows over the service's
 * limit, when memory runs out, and whatever output functions raise.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "alloc.h"
#include "format_internal.h"

/* An allocation failed, or a size that never should was exceeded. */
void
kpg_format_buf_check(const KcBuf *buf)
{
	if (unlikely(buf->failed != KC_OK))
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory"),
				 errdetail("Failed while formatting a row for Kusto.")));
}

void
kpg_format_check_record(KpgRowFormat *format, const KcCsvWriter *w)
{
	if (unlikely(w->out->len - w->row_start > KPG_RECORD_LIMIT))
		kpg_format_record_too_big(format);
}

/* ---- making a format ---- */

static bool
becomes_string(const KpgFormatter *f, KpgOnTypeError policy)
{
	return policy == KPG_TYPE_ERROR_STRING && f->can_misfit;
}

static KpgRowFormat *
make_format(KpgOnTypeError policy, int max_columns)
{
	KpgRowFormat *format = palloc0(sizeof(KpgRowFormat));

	format->context = CurrentMemoryContext;
	format->policy = policy;
	format->alloc = kpg_alloc_create(CurrentMemoryContext);
	kc_buf_init(&format->json, format->alloc, KPG_DYNAMIC_LIMIT + KPG_LIMIT_SLACK);
	kc_buf_init(&format->base64, format->alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&format->jsonb, format->alloc, KC_BUF_UNLIMITED);
	kpg_format_transcode_init(format);
	format->columns = palloc0(Max(max_columns, 1) * sizeof(KpgColumn));
	format->fields = palloc0(Max(max_columns, 1) * sizeof(KpgField));
	/* With two quotes and a comma each; the first may have one in front. */
	format->row_room = 1 + (size_t) max_columns * (KPG_SHORT_MAX + 3);
	return format;
}

static void
add_column(KpgRowFormat *format, Form_pg_attribute att)
{
	KpgField   *field = &format->fields[format->ncolumns];
	KpgColumn  *column = &format->columns[format->ncolumns++];

	kpg_format_resolve(&column->formatter, format, att->atttypid);
	column->index = att->attnum - 1;
	column->name = pstrdup(NameStr(att->attname));
	column->as_string = becomes_string(&column->formatter, format->policy);
	column->kusto_type = column->as_string ? "string" : column->formatter.kusto_type;
	column->write = kpg_format_choose_write(column);
	field->write = column->write;
	field->column = column;
	field->index = column->index;
	format->natts = Max(format->natts, att->attnum);
}

KpgRowFormat *
kpg_format_create(TupleDesc desc, KpgOnTypeError policy)
{
	KpgRowFormat *format = make_format(policy, desc->natts);

	for (int i = 0; i < desc->natts; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped)
			add_column(format, TupleDescAttr(desc, i));
	}
	if (format->ncolumns == 0)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("the query returns no columns"),
				 errhint("A Kusto table has at least one column.")));
	return format;
}

KpgRowFormat *
kpg_format_create_for(TupleDesc desc, const AttrNumber *columns, int ncolumns, KpgOnTypeError policy)
{
	KpgRowFormat *format = make_format(policy, ncolumns);

	for (int i = 0; i < ncolumns; i++)
	{
		AttrNumber	attnum = columns[i];

		if (attnum > 0 && !TupleDescAttr(desc, attnum - 1)->attisdropped)
			add_column(format, TupleDescAttr(desc, attnum - 1));
		else
			format->ncolumns++;
	}
	return format;
}

void
kpg_format_of_table(KpgRowFormat *format, const char *name)
{
	format->table = MemoryContextStrdup(format->context, name);
}

const char *
kpg_format_kusto_type(Oid type, int32 typmod, KpgOnTypeError policy)
{
	KpgFormatter f;

	kpg_format_resolve(&f, NULL, type);
	return becomes_string(&f, policy) ? "string" : f.kusto_type;
}

/* ---- writing a row ---- */

static void
add_error_context(void *arg)
{
	const KpgRowFormat *format = arg;
	const char *column = kpg_format_column(format);

	if (column != NULL && format->table != NULL)
		errcontext("column \"%s\" in %s", column, kpg_format_row_name(format));
	else if (column != NULL)
		errcontext("column \"%s\" in row " UINT64_FORMAT " of the query's result", column, format->rownum);
}

void
kpg_format_fields(KpgRowFormat *format, TupleTableSlot *slot, KcCsvWriter *w)
{
	KcBuf	   *out = w->out;
	const Datum *values = slot->tts_values;
	const bool *nulls = slot->tts_isnull;
	size_t		start = out->len + (w->nfields > 0 ? 1 : 0);
	char	   *p;

	if (unlikely(format->ncolumns == 0))
		return;
	slot_getsomeattrs(slot, format->natts);
	if (unlikely(out->cap - out->len <= format->row_room))
	{
		(void) kc_buf_reserve(out, format->row_room);
		kpg_format_buf_check(out);
	}
	format->out = out;
	format->row_start_offset = w->row_start;
	kpg_format_set_limit(format);

	p = out->data + out->len;
	if (w->nfields > 0)
		*p++ = ',';
	for (const KpgField *field = format->fields, *end = field + format->ncolumns; field < end; field++)
	{
		if (field->write != NULL && !nulls[field->index])
		{
			char	   *next;

			format->column = field->column;
			next = field->write(&field->column->formatter, values[field->index], p);
			if (unlikely(next == NULL))
				next = kpg_format_write_otherwise(field->column, values[field->index], p);
			p = next;
		}
		*p++ = ',';
	}
	p--;						/* none behind the last */
	*p = '\0';
	/* What is long asks as it goes; this is for many numbers of some kB. */
	kpg_format_check_row(format, p);
	out->len = (size_t) (p - out->data);
	w->nfields += format->ncolumns;
	w->only_null = w->nfields == 1 && out->len == start;

	if (unlikely(format->pinned != 0))
		kpg_format_unpin(format);
	format->column = NULL;
}

const char *
kpg_format_column(const KpgRowFormat *format)
{
	return format->column != NULL && !format->reported ? format->column->name : NULL;
}

void
kpg_format_row(KpgRowFormat *format, TupleTableSlot *slot, uint64 rownum, KcCsvWriter *w)
{
	ErrorContextCallback context;

	format->rownum = rownum;
	format->slot = slot;
	context.callback = add_error_context;
	context.arg = format;
	context.previous = error_context_stack;
	error_context_stack = &context;

	kc_csv_row_begin(w);
	kpg_format_fields(format, slot, w);
	kc_csv_row_end(w);

	error_context_stack = context.previous;
}
