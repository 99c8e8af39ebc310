/*
 * format_array.c
 *	  Arrays as the JSON of a dynamic: nested JSON arrays; their lower bounds are
 *	  lost.
 *
 * Where the server's encoding is UTF-8, a column's array goes straight into its
 * field, quotes doubled; otherwise, and inside containers, into a buffer.
 * Elements that are containers themselves, and those that their Kusto type
 * cannot hold, take the way by a buffer in both.
 */
#include "postgres.h"

#include "access/tupmacs.h"
#include "miscadmin.h"
#include "utils/array.h"

#include "format_internal.h"

/* What stands around an element: two quotes, doubled, and a comma or a bracket. */
#define AROUND	8

/* Between the outer quotes, whatever is in it: it is given up then. */
#define FIELD_LIMIT	(KPG_DYNAMIC_LIMIT * KC_CSV_TEXT_GROWTH)

typedef struct ArrayWalk
{
	KpgElement *element;
	int			ndims;			/* 0: there is nothing in it */
	const int  *dims;
	const char *data;			/* of the next element that is not null */
	const bits8 *nulls;			/* or NULL */
	int			index;			/* of the next element */
	size_t		start;			/* of the JSON, in the buffer of the row */
} ArrayWalk;

static void
begin_walk(ArrayWalk *walk, KpgFormatter *f, ArrayType *array)
{
	memset(walk, 0, sizeof(*walk));
	walk->ndims = ARR_NDIM(array);
	if (walk->ndims == 0)
		return;
	walk->element = kpg_format_element_of(f, ARR_ELEMTYPE(array));
	walk->dims = ARR_DIMS(array);
	walk->data = ARR_DATA_PTR(array);
	walk->nulls = ARR_NULLBITMAP(array);
}

/* False: it is null. */
static inline bool
next_element(ArrayWalk *walk, Datum *value)
{
	const KpgElement *element = walk->element;
	int			index = walk->index++;

	if (walk->nulls != NULL && !(walk->nulls[index / 8] & (1 << (index % 8))))
		return false;
	*value = fetch_att(walk->data, element->typbyval, element->typlen);
	walk->data = att_addlength_pointer(walk->data, element->typlen, walk->data);
	walk->data = (const char *) att_align_nominal(walk->data, element->typalign);
	return true;
}

/* ---- into a buffer ---- */

static void
append_dimension(ArrayWalk *walk, int dim, KcBuf *out)
{
	Datum		value = 0;

	kc_buf_char(out, '[');
	for (int i = 0; i < walk->dims[dim] && out->failed == KC_OK; i++)
	{
		if (i > 0)
			kc_buf_char(out, ',');
		if (dim + 1 < walk->ndims)
			append_dimension(walk, dim + 1, out);
		else
		{
			bool		isnull = !next_element(walk, &value);

			kpg_format_json_value(&walk->element->formatter, value, isnull, out);
		}
	}
	kc_buf_char(out, ']');
}

void
kpg_format_array(KpgFormatter *f, Datum value, KcBuf *out)
{
	ArrayType  *array = DatumGetArrayTypeP(value);
	ArrayWalk	walk;

	check_stack_depth();
	begin_walk(&walk, f, array);
	if (walk.ndims == 0)
		kc_buf_str(out, "[]");
	else
		append_dimension(&walk, 0, out);
	if ((Pointer) array != DatumGetPointer(value))
		pfree(array);
}

/* ---- into the field ---- */

/* JSON that is there already; NULL: too long. */
static char *
put_json(KpgRowFormat *format, char *p, const char *data, size_t len)
{
	if (len > KPG_DYNAMIC_LIMIT)
		return NULL;
	p = kpg_format_room(format, p, len * KC_CSV_TEXT_GROWTH + AROUND);
	return kc_csv_put_text(p, data, len);
}

static char *
put_by_buffer(KpgFormatter *f, Datum value, char *p)
{
	KpgRowFormat *format = f->format;
	KcBuf	   *json = &format->json;

	kc_buf_reset(json);
	kpg_format_json_value(f, value, false, json);
	if (kpg_format_json_too_big(json))
		return NULL;
	return put_json(format, p, json->data, json->len);
}

static char *
put_string(KpgRowFormat *format, char *p, const char *data, size_t len)
{
	size_t		piece = Min(len, KPG_PIECE);

	p = kpg_format_room(format, p, piece * KC_CSV_JSON_GROWTH + AROUND);
	*p++ = '"';
	*p++ = '"';
	for (;;)
	{
		p = kc_csv_put_json(p, data, piece, true);
		data += piece;
		len -= piece;
		if (likely(len == 0))
			break;
		piece = Min(len, KPG_PIECE);
		p = kpg_format_room(format, p, piece * KC_CSV_JSON_GROWTH + AROUND);
	}
	*p++ = '"';
	*p++ = '"';
	return p;
}

static char *
put_text(KpgFormatter *f, Datum value, char *p)
{
	KpgText		text;

	if (unlikely(f->text(f, value, &text) != KPG_FITS))
		return put_by_buffer(f, value, p);
	if (f->shape != KPG_SHAPE_TEXT)
		p = put_json(f->format, p, text.data, text.len);
	else if (likely(kpg_format_is_utf8(text.data, text.len)))
		p = put_string(f->format, p, text.data, text.len);
	else
		p = put_by_buffer(f, value, p);
	kpg_format_text_free(&text);
	return p;
}

/* NULL: too long. */
static char *
put_element(KpgFormatter *f, Datum value, char *p)
{
	int			quotes = f->shape == KPG_SHAPE_NUMBER ? 0 : 2;
	char	   *end;

	if (f->put == NULL)
		return f->text != NULL ? put_text(f, value, p) : put_by_buffer(f, value, p);

	p = kpg_format_room(f->format, p, KPG_SHORT_MAX + AROUND);
	p[0] = '"';
	p[1] = '"';
	end = f->put(f, value, p + quotes);
	if (unlikely(end == NULL))
		return f->misfit == KPG_LONG ? put_text(f, value, p) : put_by_buffer(f, value, p);
	end[0] = '"';
	end[1] = '"';
	return end + quotes;
}

/* Each element leaves room for a comma or a bracket behind it.  NULL: too long. */
static char *
put_dimension(KpgRowFormat *format, ArrayWalk *walk, int dim, char *p)
{
	Datum		value;

	p = kpg_format_room(format, p, AROUND);
	*p++ = '[';
	for (int i = 0; i < walk->dims[dim]; i++)
	{
		if (i > 0)
			*p++ = ',';
		if (dim + 1 < walk->ndims)
			p = put_dimension(format, walk, dim + 1, p);
		else if (next_element(walk, &value))
			p = put_element(&walk->element->formatter, value, p);
		else
		{
			p = kpg_format_room(format, p, 4 + AROUND);
			memcpy(p, "null", 4);
			p += 4;
		}
		if (unlikely(p == NULL || (size_t) (p - format->out->data) - walk->start > FIELD_LIMIT))
			return NULL;
	}
	p = kpg_format_room(format, p, AROUND);
	*p++ = ']';
	return p;
}

char *
kpg_format_array_field(KpgFormatter *f, Datum value, char *p)
{
	KpgRowFormat *format = f->format;
	ArrayType  *array = DatumGetArrayTypeP(value);
	ArrayWalk	walk;

	begin_walk(&walk, f, array);
	p = kpg_format_room(format, p, AROUND);
	*p++ = '"';
	walk.start = (size_t) (p - format->out->data);
	if (walk.ndims == 0)
	{
		*p++ = '[';
		*p++ = ']';
	}
	else
		p = put_dimension(format, &walk, 0, p);
	if ((Pointer) array != DatumGetPointer(value))
		pfree(array);
	if (p == NULL || kpg_format_field_too_long(format->out->data + walk.start, p))
		return kpg_format_write_misfit((KpgColumn *) f, value, format->out->data + walk.start - 1,
									   KPG_MISFIT_DYNAMIC_SIZE);
	*p++ = '"';
	kpg_format_check_row(format, p);
	return p;
}
