/*
 * format_jsonb.c
 *	  jsonb as dynamic: the same text as jsonb_out's, written straight from the
 *	  stored form.
 *
 * utils/jsonb.h describes that form: entries with types and lengths, then keys
 * and values.  It is aligned within itself only, because the header of a short
 * value is not unpacked, so numbers of more than a byte are read by memcpy.
 *
 * Where the server's encoding is UTF-8, a column's value goes straight into
 * its field, quotes doubled; otherwise, and inside containers, into a buffer.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "miscadmin.h"
#include "utils/jsonb.h"

#include "format_decimal.h"
#include "format_internal.h"

/* How far a jsonb may shrink as text: a number is 12 bytes, and "0, " three. */
#define SHRINK			8

/*
 * Where the text goes.  Its functions get the place for the next byte and give
 * the place behind what they have written; NULL when it gets too long.
 */
typedef struct Walk
{
	KcBuf	   *out;
	char	   *limit;			/* what is behind is not for us */
	size_t		reserved;		/* so much of the buffer */
	size_t		start;			/* of the text, in the buffer */
	size_t		max;			/* of the text, before it is given up */
	bool		in_field;		/* quotes are doubled */
} Walk;

static char *
more_room(Walk *walk, char *p, size_t need)
{
	KcBuf	   *out = walk->out;

	out->len = (size_t) (p - out->data);
	if (out->len - walk->start > walk->max)
		return NULL;
	(void) kc_buf_reserve(out, need + walk->reserved);
	kpg_format_buf_check(out);
	walk->limit = out->data + (out->cap - 1 - walk->reserved);
	return out->data + out->len;
}

static inline char *
room(Walk *walk, char *p, size_t need)
{
	if (unlikely((ptrdiff_t) need > walk->limit - p))
		return more_room(walk, p, need);
	return p;
}

static inline uint32
load4(const char *p)
{
	uint32		value;

	memcpy(&value, p, sizeof(value));
	return value;
}

/* ---- scalars ---- */

static inline char *
put_quote(const Walk *walk, char *p)
{
	p[0] = '"';
	p[1] = '"';
	return p + (walk->in_field ? 2 : 1);
}

/* Two quotes, doubled, and what may stand around a value: ", " or ": ", ]. */
#define AROUND	8

static char *
put_string(Walk *walk, char *p, const char *data, size_t len)
{
	size_t		piece = Min(len, KPG_PIECE);

	p = room(walk, p, piece * KC_CSV_JSON_GROWTH + AROUND);
	if (unlikely(p == NULL))
		return NULL;
	p = put_quote(walk, p);
	for (;;)
	{
		p = kc_csv_put_json(p, data, piece, walk->in_field);
		data += piece;
		len -= piece;
		if (likely(len == 0))
			break;
		piece = Min(len, KPG_PIECE);
		p = room(walk, p, piece * KC_CSV_JSON_GROWTH + AROUND);
		if (p == NULL)
			return NULL;
	}
	return put_quote(walk, p);
}

static inline char *
put_number(Walk *walk, char *p, const char *stored)
{
	const char *data;
	uint32		size;
	KpgDecimal	d;

	if (VARATT_IS_1B(stored))
	{
		data = VARDATA_1B(stored);
		size = VARSIZE_1B(stored) - VARHDRSZ_SHORT;
	}
	else
	{
		uint32		header = load4(stored);

		data = stored + VARHDRSZ;
		size = VARSIZE_4B(&header) - VARHDRSZ;
	}
	if (unlikely(!kpg_format_decode_decimal(data, (int) size, &d)))
		elog(ERROR, "jsonb has a number that is not finite");
	p = room(walk, p, kpg_format_decimal_size(&d) + AROUND);
	return unlikely(p == NULL) ? NULL : kpg_format_put_decimal(p, &d);
}

static inline char *
put_word(Walk *walk, char *p, const char *word, size_t len)
{
	p = room(walk, p, len + AROUND);
	if (unlikely(p == NULL))
		return NULL;
	memcpy(p, word, len);
	return p + len;
}

/* ---- containers ---- */

static char *put_container(Walk *walk, char *p, const char *container);

/* offset: of the value from base, to which its alignment is relative. */
static inline char *
put_value(Walk *walk, char *p, JEntry entry, const char *base, uint32 offset, uint32 len)
{
	switch (entry & JENTRY_TYPEMASK)
	{
		case JENTRY_ISSTRING:
			return put_string(walk, p, base + offset, len);
		case JENTRY_ISNUMERIC:
			return put_number(walk, p, base + INTALIGN(offset));
		case JENTRY_ISBOOL_TRUE:
			return put_word(walk, p, "true", 4);
		case JENTRY_ISBOOL_FALSE:
			return put_word(walk, p, "false", 5);
		case JENTRY_ISNULL:
			return put_word(walk, p, "null", 4);
		default:
			return put_container(walk, p, base + INTALIGN(offset));
	}
}

/* Where a value ends that begins at offset: some entries have the length, some the end. */
static inline uint32
end_of(JEntry entry, uint32 offset)
{
	return JBE_HAS_OFF(entry) ? JBE_OFFLENFLD(entry) : offset + JBE_OFFLENFLD(entry);
}

/* Where the last of these values ends. */
static uint32
end_of_all(const char *entries, uint32 count)
{
	uint32		end = 0;

	while (count > 0)
	{
		JEntry		entry = load4(entries + --count * sizeof(JEntry));

		end += JBE_OFFLENFLD(entry);
		if (JBE_HAS_OFF(entry))
			break;
	}
	return end;
}

static char *
put_array(Walk *walk, char *p, const char *entries, uint32 count)
{
	const char *base = entries + count * sizeof(JEntry);
	uint32		offset = 0;

	for (uint32 i = 0; i < count; i++)
	{
		JEntry		entry = load4(entries + i * sizeof(JEntry));
		uint32		end = end_of(entry, offset);

		if (i > 0)
		{
			*p++ = ',';
			*p++ = ' ';
		}
		p = put_value(walk, p, entry, base, offset, end - offset);
		if (unlikely(p == NULL))
			return NULL;
		offset = end;
	}
	return p;
}

/* First all keys, then all values. */
static char *
put_object(Walk *walk, char *p, const char *entries, uint32 count)
{
	const char *base = entries + 2 * count * sizeof(JEntry);
	uint32		key_offset = 0;
	uint32		offset = end_of_all(entries, count);

	for (uint32 i = 0; i < count; i++)
	{
		uint32		key_end = end_of(load4(entries + i * sizeof(JEntry)), key_offset);
		JEntry		entry = load4(entries + (count + i) * sizeof(JEntry));
		uint32		end = end_of(entry, offset);

		if (i > 0)
		{
			*p++ = ',';
			*p++ = ' ';
		}
		p = put_string(walk, p, base + key_offset, key_end - key_offset);
		if (unlikely(p == NULL))
			return NULL;
		*p++ = ':';
		*p++ = ' ';
		p = put_value(walk, p, entry, base, offset, end - offset);
		if (unlikely(p == NULL))
			return NULL;
		key_offset = key_end;
		offset = end;
	}
	return p;
}

/*
 * Each value leaves room for a separator or a closing bracket behind it, so
 * that only values ask for room.
 */
static char *
put_container(Walk *walk, char *p, const char *container)
{
	uint32		header = load4(container);
	const char *entries = container + sizeof(header);
	uint32		count = header & JB_CMASK;
	bool		object = (header & JB_FOBJECT) != 0;

	check_stack_depth();
	if (header & JB_FSCALAR)
		return put_array(walk, p, entries, count);
	p = put_word(walk, p, object ? "{" : "[", 1);
	if (unlikely(p == NULL))
		return NULL;
	p = object ? put_object(walk, p, entries, count) : put_array(walk, p, entries, count);
	if (unlikely(p == NULL))
		return NULL;
	p = room(walk, p, AROUND);
	if (unlikely(p == NULL))
		return NULL;
	*p++ = object ? '}' : ']';
	return p;
}

/* ---- columns, and values inside containers ---- */

static inline bool
surely_too_big(Datum value)
{
	const struct varlena *stored = (const struct varlena *) DatumGetPointer(value);

	return (VARATT_IS_EXTERNAL(stored) || VARATT_IS_COMPRESSED(stored)) &&
		toast_raw_datum_size(value) > KPG_DYNAMIC_LIMIT * SHRINK;
}

char *
kpg_format_jsonb_field(KpgFormatter *f, Datum value, char *p)
{
	KpgRowFormat *format = f->format;
	KcBuf	   *out = format->out;
	struct varlena *plain;
	Walk		walk;

	if (surely_too_big(value))
		return kpg_format_no(f, KPG_MISFIT_DYNAMIC_SIZE);
	plain = kpg_format_packed(value);

	p = kpg_format_room(format, p, 2);
	*p++ = '"';
	walk.out = out;
	walk.limit = format->limit;
	walk.reserved = format->row_room;
	walk.start = (size_t) (p - out->data);
	walk.max = KPG_DYNAMIC_LIMIT * KC_CSV_TEXT_GROWTH;
	walk.in_field = true;
	p = put_container(&walk, p, VARDATA_ANY(plain));
	if ((Pointer) plain != DatumGetPointer(value))
		pfree(plain);
	kpg_format_set_limit(format);
	if (p == NULL || kpg_format_field_too_long(out->data + walk.start, p))
		return kpg_format_write_misfit((KpgColumn *) f, value, out->data + walk.start - 1,
									   KPG_MISFIT_DYNAMIC_SIZE);
	*p++ = '"';
	kpg_format_check_row(format, p);
	return p;
}

/* Memory is bounded: what is far too long is given up. */
KpgMisfit
kpg_format_jsonb(KpgFormatter *f, Datum value, KpgText *text)
{
	KcBuf	   *out = &f->format->jsonb;
	struct varlena *plain;
	Walk		walk;
	char	   *end;

	if (surely_too_big(value))
		return KPG_MISFIT_DYNAMIC_SIZE;
	plain = kpg_format_packed(value);

	if (out->cap > KPG_DYNAMIC_LIMIT * KC_CSV_TEXT_GROWTH)
		kc_buf_free(out);		/* the last one was given up */
	kc_buf_reset(out);
	(void) kc_buf_reserve(out, AROUND);
	kpg_format_buf_check(out);
	walk.out = out;
	walk.limit = out->data + (out->cap - 1);
	walk.reserved = 0;
	walk.start = 0;
	walk.max = KPG_DYNAMIC_LIMIT * KC_CSV_TEXT_GROWTH;
	walk.in_field = false;
	end = put_container(&walk, out->data, VARDATA_ANY(plain));
	if ((Pointer) plain != DatumGetPointer(value))
		pfree(plain);
	if (end == NULL)
		return KPG_MISFIT_DYNAMIC_SIZE;

	text->data = out->data;
	text->len = (size_t) (end - out->data);
	text->owned = NULL;
	return kpg_format_utf8(f->format, text, KPG_SHAPE_JSON);
}
