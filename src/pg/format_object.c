/*
 * format_object.c
 *	  A whole row as one field that is a JSON object.
 *
 * Raises as format.c does.
 */
#include "postgres.h"

#include "../core/json.h"
#include "format_internal.h"

/* For its errors and counts the object is a column, named as in Kusto. */
static void
prepare(KpgRowFormat *format)
{
	MemoryContext old = MemoryContextSwitchTo(format->context);
	KcSlice    *keys = palloc0(Max(format->ncolumns, 1) * sizeof(KcSlice));
	KpgColumn  *object = palloc0(sizeof(KpgColumn));

	for (int i = 0; i < format->ncolumns; i++)
	{
		if (format->columns[i].write == NULL)
			continue;
		format->column = &format->columns[i];
		keys[i] = kpg_format_json_key(format, format->columns[i].name);
	}
	object->name = pstrdup("_old");
	object->kusto_type = "dynamic";
	format->keys = keys;
	format->object = object;
	MemoryContextSwitchTo(old);
}

static void
append_members(KpgRowFormat *format, TupleTableSlot *slot, KcBuf *json)
{
	bool		first = true;

	for (int i = 0; i < format->ncolumns && json->failed == KC_OK; i++)
	{
		KpgColumn  *column = &format->columns[i];

		if (column->write == NULL)
			continue;
		if (!first)
			kc_buf_char(json, ',');
		first = false;
		format->column = column;
		kc_buf_slice(json, format->keys[i]);
		kpg_format_json_value(&column->formatter, slot->tts_values[column->index],
							  slot->tts_isnull[column->index], json);
	}
}

void
kpg_format_object(KpgRowFormat *format, TupleTableSlot *slot, KcCsvWriter *w)
{
	KcBuf	   *json = &format->json;

	if (format->object == NULL)
		prepare(format);
	slot_getsomeattrs(slot, format->natts);
	kc_buf_reset(json);
	kc_buf_char(json, '{');
	append_members(format, slot, json);
	kc_buf_char(json, '}');

	format->column = format->object;
	if (unlikely(kpg_format_json_too_big(json)))
	{
		kpg_format_misfit(format, KPG_MISFIT_DYNAMIC_SIZE);
		kc_csv_null(w);
	}
	else
	{
		kc_csv_quoted(w, json->data, json->len);
		kpg_format_check_record(format, w);
	}
	if (unlikely(format->pinned != 0))
		kpg_format_unpin(format);
	format->column = NULL;
}
