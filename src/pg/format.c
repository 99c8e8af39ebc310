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

/* ---- writing one field ---- */

static void
write_misfit(KpgColumn *column, Datum value, KpgMisfit misfit, KcCsvWriter *w)
{
	KpgText		text;

	kpg_format_misfit(column->formatter.format, misfit);
	if (!column->as_string)
	{
		kc_csv_null(w);
		return;
	}
	kpg_format_iso_text(&column->formatter, value, &text);
	kc_csv_quoted(w, text.data, text.len);
	kpg_format_text_free(&text);
}

static void
write_fixed_bare(KpgColumn *column, Datum value, KcCsvWriter *w)
{
	char		buf[KPG_FIXED_MAX];
	int			len;
	KpgMisfit	misfit = column->formatter.fixed(&column->formatter, value, buf, &len);

	if (likely(misfit == KPG_FITS))
		kc_csv_plain(w, buf, len);
	else
		write_misfit(column, value, misfit, w);
}

/* Strings are quoted, whatever is in them. */
static void
write_fixed_quoted(KpgColumn *column, Datum value, KcCsvWriter *w)
{
	char		buf[KPG_FIXED_MAX];
	int			len;
	KpgMisfit	misfit = column->formatter.fixed(&column->formatter, value, buf, &len);

	if (likely(misfit == KPG_FITS))
		kc_csv_quoted(w, buf, len);
	else
		write_misfit(column, value, misfit, w);
}

static void
write_text_bare(KpgColumn *column, Datum value, KcCsvWriter *w)
{
	KpgText		text;
	KpgMisfit	misfit = column->formatter.text(&column->formatter, value, &text);

	if (unlikely(misfit != KPG_FITS))
	{
		write_misfit(column, value, misfit, w);
		return;
	}
	kc_csv_plain(w, text.data, text.len);
	kpg_format_text_free(&text);
}

void
kpg_format_check_record(KpgRowFormat *format, const KcCsvWriter *w)
{
	if (unlikely(w->out->len - w->row_start > KPG_RECORD_LIMIT))
		kpg_format_record_too_big(format);
}

static void
write_text_quoted(KpgColumn *column, Datum value, KcCsvWriter *w)
{
	KpgText		text;
	KpgMisfit	misfit = column->formatter.text(&column->formatter, value, &text);

	if (unlikely(misfit != KPG_FITS))
	{
		write_misfit(column, value, misfit, w);
		return;
	}
	kc_csv_quoted(w, text.data, text.len);
	kpg_format_text_free(&text);
	kpg_format_check_record(column->formatter.format, w);
}

static void
write_nest(KpgColumn *column, Datum value, KcCsvWriter *w)
{
	KpgFormatter *f = &column->formatter;
	KcBuf	   *json = &f->format->json;

	kc_buf_reset(json);
	f->nest(f, value, json);
	if (unlikely(json->failed == KC_ERR_LIMIT))
	{
		write_misfit(column, value, KPG_MISFIT_DYNAMIC_SIZE, w);
		return;
	}
	kpg_format_buf_check(json);
	kc_csv_quoted(w, json->data, json->len);
	kpg_format_check_record(f->format, w);
}

/* ---- making a format ---- */

static bool
becomes_string(const KpgFormatter *f, KpgOnTypeError policy)
{
	return policy == KPG_TYPE_ERROR_STRING && f->can_misfit;
}

static KpgWriteFn
choose_write(const KpgColumn *column)
{
	const KpgFormatter *f = &column->formatter;
	bool		quoted = strcmp(column->kusto_type, "string") == 0;

	if (f->nest != NULL)
		return write_nest;
	if (f->fixed != NULL)
		return quoted ? write_fixed_quoted : write_fixed_bare;
	return quoted || f->shape == KPG_SHAPE_JSON ? write_text_quoted : write_text_bare;
}

static KpgRowFormat *
make_format(KpgOnTypeError policy, int max_columns)
{
	KpgRowFormat *format = palloc0(sizeof(KpgRowFormat));

	format->context = CurrentMemoryContext;
	format->policy = policy;
	format->alloc = kpg_alloc_create(CurrentMemoryContext);
	kc_buf_init(&format->json, format->alloc, KPG_DYNAMIC_LIMIT);
	kc_buf_init(&format->base64, format->alloc, KC_BUF_UNLIMITED);
	initStringInfo(&format->jsonb);
	kpg_format_transcode_init(format);
	format->columns = palloc0(Max(max_columns, 1) * sizeof(KpgColumn));
	return format;
}

static void
add_column(KpgRowFormat *format, Form_pg_attribute att)
{
	KpgColumn  *column = &format->columns[format->ncolumns++];

	kpg_format_resolve(&column->formatter, format, att->atttypid);
	column->index = att->attnum - 1;
	column->name = pstrdup(NameStr(att->attname));
	column->as_string = becomes_string(&column->formatter, format->policy);
	column->kusto_type = column->as_string ? "string" : column->formatter.kusto_type;
	column->write = choose_write(column);
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

	if (column != NULL)
		errcontext("column \"%s\" in row " UINT64_FORMAT " of the query's result", column, format->rownum);
}

void
kpg_format_fields(KpgRowFormat *format, TupleTableSlot *slot, KcCsvWriter *w)
{
	slot_getsomeattrs(slot, format->natts);
	for (int i = 0; i < format->ncolumns; i++)
	{
		KpgColumn  *column = &format->columns[i];

		if (column->write == NULL || slot->tts_isnull[column->index])
		{
			kc_csv_null(w);
			continue;
		}
		format->column = column;
		column->write(column, slot->tts_values[column->index], w);
	}
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
	context.callback = add_error_context;
	context.arg = format;
	context.previous = error_context_stack;
	error_context_stack = &context;

	kc_csv_row_begin(w);
	kpg_format_fields(format, slot, w);
	kc_csv_row_end(w);

	error_context_stack = context.previous;
}
