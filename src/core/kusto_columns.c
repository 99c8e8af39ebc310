/*
 * kusto_columns.c
 *	  What columns a table has, as the answer of a command on the table tells:
 *	  its column Schema holds JSON.
 *
 * Public source: learn.microsoft.com/kusto/management/create-merge-table-command
 */
#include "kusto_internal.h"

static const char doing_columns[] = "reading the columns of a table";

#define MAX_DEPTH 8

/* The ordered columns; false when the answer does not say. */
static bool
find_columns(KcResult *result, KcBuf *text, KcJsonValue *columns)
{
	int			schema = kc_result_find_column(result, "Schema");
	KcJsonValue value;
	KcError		ignored;

	kc_result_rewind(result);
	if (schema < 0 || !kc_result_next(result))
		return false;
	value = kc_result_value(result, schema);
	if (value.type != KC_JSON_STRING)
		return false;
	kc_json_unescape(text, value);
	return kc_buf_status(text, &ignored, doing_columns) == KC_OK
		&& kc_json_check(kc_buf_view(text), MAX_DEPTH, &value, doing_columns, &ignored) == KC_OK
		&& value.type == KC_JSON_OBJECT
		&& kc_json_member(value, "OrderedColumns", columns)
		&& columns->type == KC_JSON_ARRAY;
}

static bool
is_string(KcJsonValue object, const char *name, KcJsonValue *value)
{
	return kc_json_member(object, name, value) && value->type == KC_JSON_STRING;
}

static bool
is_column(KcJsonValue there, const KcColumn *column)
{
	KcJsonValue value;

	if (there.type != KC_JSON_OBJECT || !is_string(there, "Name", &value)
		|| !kc_json_string_is(value, column->name))
		return false;
	return !is_string(there, "CslType", &value) || kc_json_string_ieq(value, column->type);
}

static void
describe(KcJsonValue there, KcBuf *out)
{
	KcJsonValue value;

	if (there.type != KC_JSON_OBJECT || !is_string(there, "Name", &value))
		return;
	kc_json_unescape(out, value);
	if (!is_string(there, "CslType", &value))
		return;
	kc_buf_char(out, ':');
	kc_json_unescape(out, value);
}

bool
kc_result_begins_with_columns(KcResult *result, const KcColumn *columns, int ncolumns, int *at,
							  KcBuf *found)
{
	bool		begins = true;
	KcJsonValue list;
	KcJsonIter	it;
	KcBuf		text;

	kc_buf_init(&text, found->alloc, KC_BUF_UNLIMITED);
	*at = 0;
	if (find_columns(result, &text, &list))
	{
		kc_json_iter(&it, list);
		for (; begins && *at < ncolumns; (*at)++)
		{
			KcJsonValue there = {.type = KC_JSON_NULL};

			begins = kc_json_next(&it, &there) && is_column(there, &columns[*at]);
			if (!begins)
			{
				describe(there, found);
				break;
			}
		}
	}
	kc_buf_free(&text);
	return begins;
}
