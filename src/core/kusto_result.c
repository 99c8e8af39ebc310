/*
 * kusto_result.c
 *	  The primary result of a v1 or v2 answer, read in place.
 *
 * The answer's text is kept whole and values are slices of it.  A 200 only
 * means that the answer began: errors inside it, also between the rows, are
 * looked for before the first row is given out.
 *
 * Public sources: learn.microsoft.com/kusto/api/rest/response and .../response-v2
 */
#include <string.h>

#include "kusto_internal.h"

#define MAX_COLUMNS 10000

typedef struct ResultColumn
{
	char	   *name;
	char	   *type;
} ResultColumn;

struct KcResult
{
	const KcAlloc *alloc;
	const char *doing;
	KcBuf		body;
	KcJsonValue columns_json;
	KcJsonValue rows_json;
	ResultColumn *columns;
	int			ncolumns;
	KcJsonIter	rows;
	KcJsonValue *values;		/* of the current row */
};

static KcStatus
malformed(const KcResult *result, const char *why, KcError *err)
{
	kc_error_set(err, KC_ERR_PROTOCOL, result->doing, "the answer is not understood: %s", why);
	err->advice = KC_ADVICE_NOT_KUSTO;
	return KC_ERR_PROTOCOL;
}

static KcStatus
failed_inside(const KcResult *result, KcJsonValue holder, KcError *err)
{
	KcError		read;

	kc_error_set(&read, KC_ERR_REFUSED, result->doing, "Kusto reports an error inside the answer");
	if (!kc_kusto_read_error(holder, result->alloc, &read))
		kc_error_text(read.detail, sizeof(read.detail), holder.raw);
	if (!read.permanent)
		read.status = KC_ERR_SERVICE;
	read.http_status = 200;
	read.after_send = true;
	read.advice = kc_kusto_advice(kc_slice(read.code), kc_slice(read.detail));
	*err = read;
	return read.status;
}

/* ---- finding the primary result ---- */

static KcStatus
take_table(KcResult *result, KcJsonValue table, KcError *err)
{
	if (table.type != KC_JSON_OBJECT
		|| !kc_json_member(table, "Columns", &result->columns_json)
		|| result->columns_json.type != KC_JSON_ARRAY
		|| !kc_json_member(table, "Rows", &result->rows_json)
		|| result->rows_json.type != KC_JSON_ARRAY)
		return malformed(result, "a table without columns or rows", err);
	return KC_OK;
}

static KcStatus
find_v1(KcResult *result, KcJsonValue top, KcError *err)
{
	KcJsonValue value;
	KcJsonValue table;
	KcJsonIter	it;

	if (top.type != KC_JSON_OBJECT)
		return malformed(result, "not an object", err);
	if ((kc_json_member(top, "OneApiErrors", &value) || kc_json_member(top, "Exceptions", &value)
		 || kc_json_member(top, "error", &value))
		&& value.type != KC_JSON_NULL && value.raw.len > 2)
		return failed_inside(result, top, err);
	if (!kc_json_member(top, "Tables", &value) || value.type != KC_JSON_ARRAY)
		return malformed(result, "no tables", err);
	kc_json_iter(&it, value);
	if (!kc_json_next(&it, &table))
		return malformed(result, "no table", err);
	return take_table(result, table, err);
}

static bool
string_member_is(KcJsonValue object, const char *name, const char *text)
{
	KcJsonValue value;

	return kc_json_member(object, name, &value) && value.type == KC_JSON_STRING
		&& kc_json_string_is(value, text);
}

static KcStatus
find_v2(KcResult *result, KcJsonValue top, KcError *err)
{
	KcJsonIter	it;
	KcJsonValue frame;
	KcJsonValue has_errors;
	bool		found = false;
	bool		complete = false;
	KcStatus	status = KC_OK;

	if (top.type != KC_JSON_ARRAY)
	{
		if (top.type == KC_JSON_OBJECT && kc_json_member(top, "Tables", &frame))
			return find_v1(result, top, err);
		return malformed(result, "not an array of frames", err);
	}
	kc_json_iter(&it, top);
	while (status == KC_OK && kc_json_next(&it, &frame))
	{
		if (frame.type != KC_JSON_OBJECT)
			return malformed(result, "a frame is not an object", err);
		if (string_member_is(frame, "FrameType", "DataTable")
			&& string_member_is(frame, "TableKind", "PrimaryResult") && !found)
		{
			found = true;
			status = take_table(result, frame, err);
		}
		else if (string_member_is(frame, "FrameType", "DataSetCompletion"))
		{
			complete = true;
			if (kc_json_member(frame, "HasErrors", &has_errors) && has_errors.type == KC_JSON_BOOL
				&& kc_json_bool(has_errors))
				status = failed_inside(result, frame, err);
		}
	}
	if (status != KC_OK)
		return status;
	if (!complete)
		return malformed(result, "it ends before it is complete", err);
	if (!found)
		return malformed(result, "no primary result", err);
	return KC_OK;
}

/* ---- columns and rows ---- */

static KcStatus
read_column(KcResult *result, KcJsonValue column, ResultColumn *out, KcError *err)
{
	char	   *column_type = NULL;
	char	   *data_type = NULL;
	KcStatus	status;
	const KcJsonField fields[] = {
		{.name = "ColumnName",.want = KC_WANT_STRING,.target = &out->name,.required = true},
		{.name = "ColumnType",.want = KC_WANT_STRING,.target = &column_type},
		{.name = "DataType",.want = KC_WANT_STRING,.target = &data_type},
	};

	status = kc_json_read_object(column, fields, 3, result->alloc, result->doing, err);
	if (status != KC_OK)
		return status;
	out->type = column_type != NULL ? column_type : data_type;
	if (column_type != NULL)
		kc_free(result->alloc, data_type);
	if (out->type == NULL)
		out->type = kc_strdup(result->alloc, kc_slice(""));
	return out->type != NULL ? KC_OK : kc_error_nomem(err, result->doing);
}

static KcStatus
read_columns(KcResult *result, KcError *err)
{
	KcJsonIter	it;
	KcJsonValue column;
	int			n = 0;

	kc_json_iter(&it, result->columns_json);
	while (kc_json_next(&it, &column))
		n++;
	if (n == 0)
		return KC_OK;
	if (n > MAX_COLUMNS)
		return malformed(result, "too many columns", err);
	result->columns = kc_alloc0(result->alloc, (size_t) n * sizeof(ResultColumn));
	result->values = kc_alloc0(result->alloc, (size_t) n * sizeof(KcJsonValue));
	if (result->columns == NULL || result->values == NULL)
		return kc_error_nomem(err, result->doing);
	kc_json_iter(&it, result->columns_json);
	while (result->ncolumns < n && kc_json_next(&it, &column))
	{
		KcStatus	status;

		status = read_column(result, column, &result->columns[result->ncolumns++], err);
		if (status != KC_OK)
			return status;
	}
	return KC_OK;
}

/*
 * Every row is an array of as many values as there are columns.  An object in
 * place of a row is how a failure in mid-result is told.
 */
static KcStatus
check_rows(KcResult *result, KcError *err)
{
	KcJsonIter	rows;
	KcJsonIter	it;
	KcJsonValue row;
	KcJsonValue value;

	kc_json_iter(&rows, result->rows_json);
	while (kc_json_next(&rows, &row))
	{
		int			n = 0;

		if (row.type == KC_JSON_OBJECT)
			return failed_inside(result, row, err);
		if (row.type != KC_JSON_ARRAY)
			return malformed(result, "a row is not an array", err);
		kc_json_iter(&it, row);
		while (kc_json_next(&it, &value))
			n++;
		if (n != result->ncolumns)
			return malformed(result, "a row has not as many values as there are columns", err);
	}
	return KC_OK;
}

KcStatus
kc_result_create(const KcAlloc *alloc, KcBuf *body, bool v2, const char *doing, KcResult **out,
				 KcError *err)
{
	KcResult   *result;
	KcJsonValue top;
	KcStatus	status;

	*out = NULL;
	result = kc_alloc0(alloc, sizeof(KcResult));
	if (result == NULL)
	{
		kc_buf_free_secret(body);
		return kc_error_nomem(err, doing);
	}
	result->alloc = alloc;
	result->doing = doing;
	result->body = *body;
	kc_buf_init(body, alloc, 0);

	status = kc_json_check(kc_buf_view(&result->body), KC_JSON_MAX_DEPTH, &top, doing, err);
	if (status != KC_OK && status != KC_ERR_NOMEM)
		err->advice = KC_ADVICE_NOT_KUSTO;
	if (status == KC_OK)
		status = v2 ? find_v2(result, top, err) : find_v1(result, top, err);
	if (status == KC_OK)
		status = read_columns(result, err);
	if (status == KC_OK)
		status = check_rows(result, err);
	if (status != KC_OK)
	{
		kc_result_free(result);
		return status;
	}
	kc_result_rewind(result);
	*out = result;
	return KC_OK;
}

void
kc_result_free(KcResult *result)
{
	if (result == NULL)
		return;
	for (int i = 0; i < result->ncolumns; i++)
	{
		kc_free(result->alloc, result->columns[i].name);
		kc_free(result->alloc, result->columns[i].type);
	}
	kc_free(result->alloc, result->values);
	kc_free(result->alloc, result->columns);
	kc_buf_free_secret(&result->body);
	kc_free(result->alloc, result);
}

void
kc_result_rewind(KcResult *result)
{
	kc_json_iter(&result->rows, result->rows_json);
}

int
kc_result_ncolumns(const KcResult *result)
{
	return result->ncolumns;
}

KcSlice
kc_result_column_name(const KcResult *result, int column)
{
	return kc_slice(result->columns[column].name);
}

KcSlice
kc_result_column_type(const KcResult *result, int column)
{
	return kc_slice(result->columns[column].type);
}

int
kc_result_find_column(const KcResult *result, const char *name)
{
	for (int i = 0; i < result->ncolumns; i++)
	{
		if (kc_slice_ieq(kc_slice(result->columns[i].name), kc_slice(name)))
			return i;
	}
	return -1;
}

bool
kc_result_next(KcResult *result)
{
	KcJsonValue row;
	KcJsonIter	it;

	if (!kc_json_next(&result->rows, &row))
		return false;
	kc_json_iter(&it, row);
	for (int i = 0; i < result->ncolumns; i++)
	{
		if (!kc_json_next(&it, &result->values[i]))
			return false;
	}
	return true;
}

KcJsonValue
kc_result_value(const KcResult *result, int column)
{
	return result->values[column];
}
