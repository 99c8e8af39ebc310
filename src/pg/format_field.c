/*
 * format_field.c
 *	  A column's field in the row: from the formatter's text to what stands
 *	  between the commas.
 *
 * Raises for values that meet on_type_error's 'error', for rows over the
 * service's limit, and when memory runs out.
 */
#include "postgres.h"

#include "format_internal.h"

/* ---- room ---- */

char *
kpg_format_more_room(KpgRowFormat *format, char *p, size_t need)
{
	KcBuf	   *out = format->out;

	out->len = (size_t) (p - out->data);
	(void) kc_buf_reserve(out, need + format->row_room);
	kpg_format_buf_check(out);
	kpg_format_set_limit(format);
	return out->data + out->len;
}

/* ---- text ---- */

static char *
put_quoted(KpgRowFormat *format, char *p, const char *data, size_t len)
{
	p = kpg_format_room(format, p, 1);
	*p++ = '"';
	while (len > 0)
	{
		size_t		piece = Min(len, KPG_PIECE);

		p = kpg_format_room(format, p, piece * KC_CSV_TEXT_GROWTH);
		p = kc_csv_put_text(p, data, piece);
		data += piece;
		len -= piece;
	}
	p = kpg_format_room(format, p, 1);
	*p++ = '"';
	kpg_format_check_row(format, p);
	return p;
}

static char *
put_bare(KpgRowFormat *format, char *p, const char *data, size_t len)
{
	p = kpg_format_room(format, p, len);
	memcpy(p, data, len);
	return p + len;
}

char *
kpg_format_write_text(KpgFormatter *f, Datum value, char *p)
{
	KpgText		text;
	KpgMisfit	misfit = f->text(f, value, &text);

	if (unlikely(misfit != KPG_FITS))
		return kpg_format_no(f, misfit);
	p = put_quoted(f->format, p, text.data, text.len);
	kpg_format_text_free(&text);
	return p;
}

/* ---- what is short ---- */

/* Strings are quoted, whatever is in them. */
static char *
write_short_quoted(KpgFormatter *f, Datum value, char *p)
{
	*p = '"';
	p = f->put(f, value, p + 1);
	if (unlikely(p == NULL))
		return NULL;
	*p++ = '"';
	return p;
}

/* Too long for that. */
static char *
write_long(KpgColumn *column, Datum value, char *p)
{
	KpgFormatter *f = &column->formatter;
	KpgText		text;
	KpgMisfit	misfit PG_USED_FOR_ASSERTS_ONLY = f->text(f, value, &text);

	Assert(misfit == KPG_FITS);
	p = column->as_string ? put_quoted(f->format, p, text.data, text.len) :
		put_bare(f->format, p, text.data, text.len);
	kpg_format_text_free(&text);
	return p;
}

/* ---- containers ---- */

static size_t
count_quotes(const char *p, const char *end)
{
	size_t		n = 0;

	for (; p < end; p++)
		n += *p == '"';
	return n;
}

/* Is JSON, as it stands between the outer quotes of its field, too long for a dynamic? */
bool
kpg_format_field_too_long(const char *start, const char *end)
{
	size_t		len = (size_t) (end - start);

	return len > KPG_DYNAMIC_LIMIT && len - count_quotes(start, end) / 2 > KPG_DYNAMIC_LIMIT;
}

static char *
write_nest(KpgFormatter *f, Datum value, char *p)
{
	KpgRowFormat *format = f->format;
	KcBuf	   *json = &format->json;

	kc_buf_reset(json);
	f->nest(f, value, json);
	if (unlikely(kpg_format_json_too_big(json)))
		return kpg_format_no(f, KPG_MISFIT_DYNAMIC_SIZE);
	return put_quoted(format, p, json->data, json->len);
}

/* ---- what has no field of its own ---- */

char *
kpg_format_write_misfit(KpgColumn *column, Datum value, char *p, KpgMisfit misfit)
{
	KpgText		text;

	kpg_format_misfit(column->formatter.format, misfit);
	if (!column->as_string)
		return p;
	kpg_format_iso_text(&column->formatter, value, &text);
	p = put_quoted(column->formatter.format, p, text.data, text.len);
	kpg_format_text_free(&text);
	return p;
}

/* The column's function has given NULL, and left p as it was. */
char *
kpg_format_write_otherwise(KpgColumn *column, Datum value, char *p)
{
	KpgMisfit	misfit = column->formatter.misfit;

	return misfit == KPG_LONG ? write_long(column, value, p) :
		kpg_format_write_misfit(column, value, p, misfit);
}

KpgFieldFn
kpg_format_choose_write(const KpgColumn *column)
{
	const KpgFormatter *f = &column->formatter;

	if (f->put != NULL)
		return strcmp(column->kusto_type, "string") == 0 ? write_short_quoted : f->put;
	if (f->field != NULL && f->format->transcode == KPG_TRANSCODE_NONE)
		return f->field;
	return f->nest != NULL ? write_nest : kpg_format_write_text;
}
