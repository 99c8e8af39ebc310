/*
 * format_misfit.c
 *	  Values that their Kusto type cannot hold: the policy, the errors, the
 *	  counts.
 *
 * The service would make nulls of most of them, and say nothing.
 */
#include "postgres.h"

#include "utils/json.h"

#include "format_internal.h"

typedef struct MisfitText
{
	const char *kind;			/* in an operation's type_errors */
	int			sqlstate;
	const char *detail;
	const char *inner_detail;	/* of a value inside the column's */
	bool		never_string;	/* a Kusto string cannot hold it either */
} MisfitText;

static const MisfitText misfit_texts[KPG_MISFIT_COUNT] = {
	[KPG_MISFIT_NAN] = {
		"NaN", ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
		"The value is NaN.",
		"A value inside it is NaN.", false
	},
	[KPG_MISFIT_INFINITY] = {
		"infinity", ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
		"The value is infinity or -infinity.",
		"A value inside it is infinity or -infinity.", false
	},
	[KPG_MISFIT_BEFORE_YEAR_1] = {
		"before year 1", ERRCODE_DATETIME_VALUE_OUT_OF_RANGE,
		"The value lies before year 1.",
		"A value inside it lies before year 1.", false
	},
	[KPG_MISFIT_AFTER_YEAR_9999] = {
		"after year 9999", ERRCODE_DATETIME_VALUE_OUT_OF_RANGE,
		"The value lies after year 9999.",
		"A value inside it lies after year 9999.", false
	},
	[KPG_MISFIT_MONTHS] = {
		"month interval", ERRCODE_INTERVAL_FIELD_OVERFLOW,
		"The value is a month interval: months and years are not a fixed number of days.",
		"A value inside it is a month interval: months and years are not a fixed number of days.", false
	},
	[KPG_MISFIT_RANGE] = {
		"out of range", ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
		"The value is out of range.",
		"A value inside it is out of range.", false
	},
	[KPG_MISFIT_DIGITS] = {
		"more than 34 digits", ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
		"The value has more than 34 digits, zeros at either end not counted.",
		"A value inside it has more than 34 digits, zeros at either end not counted.", false
	},
	[KPG_MISFIT_STRING_SIZE] = {
		"string over 1 MB", ERRCODE_PROGRAM_LIMIT_EXCEEDED,
		"It is a string over 1 MB (1,048,576 octets) of UTF-8.",
		NULL, true
	},
	[KPG_MISFIT_DYNAMIC_SIZE] = {
		"dynamic over 1 MiB", ERRCODE_PROGRAM_LIMIT_EXCEEDED,
		"It is a dynamic over 1 MiB (1,048,576 octets) of JSON in UTF-8.",
		NULL, true
	},
	[KPG_MISFIT_ENCODING] = {
		"invalid UTF-8", ERRCODE_CHARACTER_NOT_IN_REPERTOIRE,
		"The value has bytes that are invalid UTF-8, or characters that Unicode does not have.",
		"A value inside it has bytes that are invalid UTF-8, or characters that Unicode does not have.", false
	},
};

KpgOnTypeError
kpg_format_policy(const char *word)
{
	if (strcmp(word, "error") == 0)
		return KPG_TYPE_ERROR_RAISE;
	if (strcmp(word, "null") == 0)
		return KPG_TYPE_ERROR_NULL;
	if (strcmp(word, "string") == 0)
		return KPG_TYPE_ERROR_STRING;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument \"%s\": \"%s\"", "on_type_error", word),
			 errhint("Valid values are \"error\", \"null\" and \"string\".")));
}

/* "row 7", or "row (3,7) of table "t"". */
const char *
kpg_format_row_name(const KpgRowFormat *format)
{
	const ItemPointerData *tid = &format->slot->tts_tid;

	if (format->table == NULL)
		return psprintf("row " UINT64_FORMAT, format->rownum);
	return psprintf("row (%u,%u) of table \"%s\"", ItemPointerGetBlockNumberNoCheck(tid),
					ItemPointerGetOffsetNumberNoCheck(tid), format->table);
}

static const char *
misfit_hint(const KpgRowFormat *format, const MisfitText *text)
{
	if (format->rownum == 0)
		return text->never_string ?
			"Capture the table with on_type_error => 'null' to send an empty field instead." :
			"Capture the table with on_type_error => 'null' to send an empty field instead, "
			"or 'string' to send it as text.";
	if (format->table != NULL)
		return text->never_string ?
			"Export a query with kusto_ingest() that shortens the value, "
			"or pass on_type_error => 'null' to send an empty field instead." :
			"Export a query with kusto_ingest() that converts or filters the value, "
			"or pass on_type_error => 'null' to send an empty field instead, "
			"or 'string' to send it as text.";
	return text->never_string ?
		"Shorten the value in the query, "
		"or pass on_type_error => 'null' to send an empty field instead." :
		"Convert or filter the value in the query, "
		"or pass on_type_error => 'null' to send an empty field instead, "
		"or 'string' to send it as text.";
}

static void
raise_misfit(KpgRowFormat *format, const MisfitText *text)
{
	const char *detail = text->detail;

	if (format->column->formatter.nest != NULL && text->inner_detail != NULL)
		detail = text->inner_detail;

	format->reported = true;
	ereport(ERROR,
			(errcode(text->sqlstate),
			 format->rownum > 0
			 ? errmsg("value of column \"%s\" in %s cannot be held by Kusto type %s",
					  format->column->name, kpg_format_row_name(format), format->column->kusto_type)
			 : errmsg("value of column \"%s\" cannot be held by Kusto type %s",
					  format->column->name, format->column->kusto_type),
			 errdetail_internal("%s", detail),
			 errhint("%s", misfit_hint(format, text))));
}

/*
 * The column under work has such a value: count it, or raise.  The caller
 * then writes null, or text under the 'string' policy.
 */
void
kpg_format_misfit(KpgRowFormat *format, KpgMisfit misfit)
{
	const MisfitText *text = &misfit_texts[misfit];

	if (format->policy == KPG_TYPE_ERROR_RAISE ||
		(format->policy == KPG_TYPE_ERROR_STRING && text->never_string))
		raise_misfit(format, text);
	format->column->misfits[misfit]++;
}

/* A row cannot be left out in silence, so no policy helps here. */
void
kpg_format_record_too_big(KpgRowFormat *format)
{
	format->reported = true;
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 format->rownum > 0
			 ? errmsg("%s is too large for Kusto", kpg_format_row_name(format))
			 : errmsg("row change is too large for Kusto"),
			 errdetail("Up to and with column \"%s\" it takes more than 64 MB of CSV.", format->column->name),
			 format->table != NULL
			 ? errhint("Export a query with kusto_ingest() that leaves columns out, or shortens their values.")
			 : format->rownum > 0
			 ? errhint("Leave columns out, or shorten their values in the query.")
			 : errhint("Leave columns out, by capturing the table with columns => ....")));
}

/* Of all columns that have the name of this one. */
static void
append_column_misfits(const KpgRowFormat *format, int first, StringInfo out)
{
	const char *name = format->columns[first].name;
	uint64		sums[KPG_MISFIT_COUNT] = {0};
	bool		any = false;

	for (int i = first; i < format->ncolumns; i++)
	{
		if (strcmp(format->columns[i].name, name) != 0)
			continue;
		for (int m = 0; m < KPG_MISFIT_COUNT; m++)
			sums[m] += format->columns[i].misfits[m];
	}
	for (int m = 0; m < KPG_MISFIT_COUNT; m++)
	{
		if (sums[m] == 0)
			continue;
		if (any)
			appendStringInfoString(out, ", ");
		else
		{
			appendStringInfoString(out, out->len == 0 ? "{" : ", ");
			escape_json(out, name);
			appendStringInfoString(out, ": {");
		}
		any = true;
		escape_json(out, misfit_texts[m].kind);
		appendStringInfo(out, ": " UINT64_FORMAT, sums[m]);
	}
	if (any)
		appendStringInfoChar(out, '}');
}

char *
kpg_format_type_errors(const KpgRowFormat *format)
{
	StringInfoData out;

	initStringInfo(&out);
	for (int i = 0; i < format->ncolumns; i++)
	{
		bool		seen = false;

		for (int j = 0; j < i && !seen; j++)
			seen = strcmp(format->columns[j].name, format->columns[i].name) == 0;
		if (!seen)
			append_column_misfits(format, i, &out);
	}
	if (out.len == 0)
	{
		pfree(out.data);
		return NULL;
	}
	appendStringInfoChar(&out, '}');
	return out.data;
}

/* ---- counts ---- */

int
kpg_format_ncounts(int ncolumns)
{
	return ncolumns * KPG_MISFIT_COUNT;
}

void
kpg_format_give_counts(const KpgRowFormat *format, uint64 *counts)
{
	for (int i = 0; i < format->ncolumns; i++)
	{
		for (int m = 0; m < KPG_MISFIT_COUNT; m++)
			counts[i * KPG_MISFIT_COUNT + m] += format->columns[i].misfits[m];
	}
}

void
kpg_format_take_counts(KpgRowFormat *format, const uint64 *counts)
{
	for (int i = 0; i < format->ncolumns; i++)
	{
		for (int m = 0; m < KPG_MISFIT_COUNT; m++)
			format->columns[i].misfits[m] += counts[i * KPG_MISFIT_COUNT + m];
	}
}
