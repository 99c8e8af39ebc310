/*
 * format_text.c
 *	  Text and what is written as text; from the server's encoding to UTF-8.
 *
 * A value that is stored as text already is pointed to, not copied.  Values
 * far beyond the service's limit are recognised by their stored size, so that
 * nobody pays for detoasting a gigabyte just to reject it.
 */
#include "postgres.h"

#include "access/detoast.h"
#include "catalog/namespace.h"
#include "mb/pg_wchar.h"

#include "../core/text.h"
#include "format_internal.h"

/* How far an encoding may shrink on its way to UTF-8: four bytes to three. */
#define SHRINK			2

void
kpg_format_transcode_init(KpgRowFormat *format)
{
	int			encoding = GetDatabaseEncoding();

	if (encoding == PG_UTF8)
		format->transcode = KPG_TRANSCODE_NONE;
	else if (encoding == PG_SQL_ASCII)
		format->transcode = KPG_TRANSCODE_CHECK;
	else
	{
		format->transcode = KPG_TRANSCODE_CONVERT;
		format->conversion = FindDefaultConversionProc(encoding, PG_UTF8);
		if (!OidIsValid(format->conversion))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_FUNCTION),
					 errmsg("default conversion function for encoding \"%s\" to \"%s\" does not exist",
							pg_encoding_to_char(encoding), pg_encoding_to_char(PG_UTF8))));
	}
}

static bool
is_ascii(const char *data, size_t len)
{
	const char *end = data + len;

	for (; (size_t) (end - data) >= sizeof(uint64); data += sizeof(uint64))
	{
		uint64		chunk;

		memcpy(&chunk, data, sizeof(chunk));
		if (chunk & UINT64CONST(0x8080808080808080))
			return false;
	}
	for (; data < end; data++)
		if (IS_HIGHBIT_SET(*data))
			return false;
	return true;
}

bool
kpg_format_is_utf8(const char *data, size_t len)
{
	return is_ascii(data, len) || kc_text_utf8_valid(kc_slice_n(data, len), NULL);
}

/*
 * The longest prefix that has a UTF-8 form: its length is returned, its UTF-8
 * appended to out.
 */
static size_t
append_convertible(const KpgRowFormat *format, StringInfo out, const char *data, size_t len)
{
	int			encoding = GetDatabaseEncoding();
	size_t		good;

	if (format->transcode == KPG_TRANSCODE_CHECK)
	{
		kc_text_utf8_valid(kc_slice_n(data, len), &good);
		appendBinaryStringInfo(out, data, (int) good);
		return good;
	}
	enlargeStringInfo(out, (int) len * MAX_CONVERSION_GROWTH + 1);
	good = kpg_compat_convert(format->conversion, encoding, PG_UTF8, data, (int) len,
							  out->data + out->len, out->maxlen - out->len);
	out->len += strlen(out->data + out->len);
	return good;
}

/*
 * Text under the 'string' policy: a byte that is not text in the server's
 * encoding, or not in Unicode, becomes \xHH, inside JSON \\xHH.
 */
static void
escape_inconvertible(const KpgRowFormat *format, KpgText *text, KpgShape shape)
{
	StringInfoData out;
	const char *p = text->data;
	const char *end = p + text->len;

	initStringInfo(&out);
	while (p < end)
	{
		int			nbytes;

		p += append_convertible(format, &out, p, end - p);
		if (p == end)
			break;
		nbytes = format->transcode == KPG_TRANSCODE_CHECK ? 1 :
			Min(pg_encoding_mblen(GetDatabaseEncoding(), p), end - p);
		for (; nbytes > 0; nbytes--, p++)
			appendStringInfo(&out, shape == KPG_SHAPE_JSON ? "\\\\x%02x" : "\\x%02x", (unsigned char) *p);
	}
	kpg_format_text_free(text);
	text->data = text->owned = out.data;
	text->len = out.len;
}

static KpgMisfit
convert(const KpgRowFormat *format, KpgText *text)
{
	StringInfoData out;

	/* Every server encoding has ASCII where ASCII has it. */
	if (is_ascii(text->data, text->len))
		return KPG_FITS;
	if (format->transcode == KPG_TRANSCODE_CHECK)
		return kc_text_utf8_valid(kc_slice_n(text->data, text->len), NULL) ? KPG_FITS : KPG_MISFIT_ENCODING;

	initStringInfo(&out);
	if (append_convertible(format, &out, text->data, text->len) < text->len)
	{
		pfree(out.data);
		return KPG_MISFIT_ENCODING;
	}
	kpg_format_text_free(text);
	text->data = text->owned = out.data;
	text->len = out.len;
	return KPG_FITS;
}

static size_t
size_limit(KpgShape shape)
{
	return shape == KPG_SHAPE_JSON ? KPG_DYNAMIC_LIMIT : KPG_STRING_LIMIT;
}

static KpgMisfit
size_misfit(KpgShape shape)
{
	return shape == KPG_SHAPE_JSON ? KPG_MISFIT_DYNAMIC_SIZE : KPG_MISFIT_STRING_SIZE;
}

/*
 * Replace text in the server's encoding by its UTF-8, and check its size.  On
 * a misfit text has been freed.
 */
KpgMisfit
kpg_format_utf8(KpgRowFormat *format, KpgText *text, KpgShape shape)
{
	KpgMisfit	misfit = KPG_FITS;
	bool		convertible = format->transcode != KPG_TRANSCODE_NONE;

	/* Bounds what the conversion allocates. */
	if (text->len > size_limit(shape) * (convertible ? SHRINK : 1))
		misfit = size_misfit(shape);
	else if (convertible)
	{
		misfit = convert(format, text);
		if (misfit == KPG_MISFIT_ENCODING && format->policy == KPG_TYPE_ERROR_STRING)
		{
			kpg_format_misfit(format, misfit);
			escape_inconvertible(format, text, shape);
			misfit = KPG_FITS;
		}
		if (misfit == KPG_FITS && text->len > size_limit(shape))
			misfit = size_misfit(shape);
	}
	if (misfit != KPG_FITS)
		kpg_format_text_free(text);
	return misfit;
}

/* text, varchar, char(n) with its blanks, json, and types stored like them. */
KpgMisfit
kpg_format_varlena(KpgFormatter *f, Datum value, KpgText *text)
{
	struct varlena *stored = (struct varlena *) DatumGetPointer(value);
	struct varlena *plain;

	if ((VARATT_IS_EXTERNAL(stored) || VARATT_IS_COMPRESSED(stored)) &&
		toast_raw_datum_size(value) - VARHDRSZ > size_limit(f->shape) * SHRINK)
		return size_misfit(f->shape);

	plain = kpg_format_packed(value);
	text->data = VARDATA_ANY(plain);
	text->len = VARSIZE_ANY_EXHDR(plain);
	text->owned = plain != stored ? plain : NULL;
	return kpg_format_utf8(f->format, text, f->shape);
}

KpgMisfit
kpg_format_name(KpgFormatter *f, Datum value, KpgText *text)
{
	text->data = NameStr(*DatumGetName(value));
	text->len = strlen(text->data);
	text->owned = NULL;
	return kpg_format_utf8(f->format, text, f->shape);
}

/* As it is, when that is all: plain, short, and the server's UTF-8. */
char *
kpg_format_varlena_field(KpgFormatter *f, Datum value, char *p)
{
	const struct varlena *stored = (const struct varlena *) DatumGetPointer(value);
	size_t		len;

	if (unlikely(VARATT_IS_COMPRESSED(stored) || VARATT_IS_EXTERNAL(stored)))
		return kpg_format_write_text(f, value, p);
	len = VARSIZE_ANY_EXHDR(stored);
	if (unlikely(len > KPG_PIECE))
		return kpg_format_write_text(f, value, p);

	p = kpg_format_room(f->format, p, 2 + len * KC_CSV_TEXT_GROWTH);
	*p++ = '"';
	p = kc_csv_put_text(p, VARDATA_ANY(stored), len);
	*p++ = '"';
	kpg_format_check_row(f->format, p);
	return p;
}

/* ---- bytea ---- */

/* Kusto has no type for bytes: base64 grows them least. */
static size_t
base64_size(size_t len)
{
	return (len + 2) / 3 * 4;
}

static char *
put_base64(char *p, const char *data, size_t len)
{
	static const char alphabet[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const unsigned char *in = (const unsigned char *) data;

	for (; len >= 3; len -= 3, in += 3)
	{
		uint32		bits = (uint32) in[0] << 16 | (uint32) in[1] << 8 | in[2];

		*p++ = alphabet[bits >> 18];
		*p++ = alphabet[bits >> 12 & 63];
		*p++ = alphabet[bits >> 6 & 63];
		*p++ = alphabet[bits & 63];
	}
	if (len > 0)
	{
		uint32		bits = (uint32) in[0] << 16 | (len > 1 ? (uint32) in[1] << 8 : 0);

		*p++ = alphabet[bits >> 18];
		*p++ = alphabet[bits >> 12 & 63];
		*p++ = len > 1 ? alphabet[bits >> 6 & 63] : '=';
		*p++ = '=';
	}
	return p;
}

static bool
bytea_too_big(Datum value)
{
	return base64_size(toast_raw_datum_size(value) - VARHDRSZ) > KPG_STRING_LIMIT;
}

/* It is ASCII without quotes, in whatever encoding the server has. */
char *
kpg_format_bytea_field(KpgFormatter *f, Datum value, char *p)
{
	const size_t piece = KPG_PIECE / 3 * 3;
	struct varlena *plain;
	const char *data;
	size_t		len;

	if (bytea_too_big(value))
		return kpg_format_no(f, KPG_MISFIT_STRING_SIZE);
	plain = kpg_format_packed(value);
	data = VARDATA_ANY(plain);
	len = VARSIZE_ANY_EXHDR(plain);

	p = kpg_format_room(f->format, p, 2 + base64_size(Min(len, piece)));
	*p++ = '"';
	for (; len > piece; data += piece, len -= piece)
	{
		p = put_base64(p, data, piece);
		p = kpg_format_room(f->format, p, 1 + base64_size(Min(len - piece, piece)));
	}
	p = put_base64(p, data, len);
	*p++ = '"';
	if ((Pointer) plain != DatumGetPointer(value))
		pfree(plain);
	kpg_format_check_row(f->format, p);
	return p;
}

KpgMisfit
kpg_format_bytea(KpgFormatter *f, Datum value, KpgText *text)
{
	KcBuf	   *base64 = &f->format->base64;
	struct varlena *plain;
	size_t		len;

	if (bytea_too_big(value))
		return KPG_MISFIT_STRING_SIZE;
	plain = kpg_format_packed(value);
	len = VARSIZE_ANY_EXHDR(plain);
	kc_buf_reset(base64);
	(void) kc_buf_reserve(base64, base64_size(len));
	kpg_format_buf_check(base64);
	text->data = base64->data;
	text->len = (size_t) (put_base64(base64->data, VARDATA_ANY(plain), len) - base64->data);
	text->owned = NULL;
	if ((Pointer) plain != DatumGetPointer(value))
		pfree(plain);
	return KPG_FITS;
}
