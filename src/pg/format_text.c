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
#include "utils/jsonb.h"

#include "../core/text.h"
#include "format_internal.h"

/* How far an encoding may shrink on its way to UTF-8: four bytes to three. */
#define SHRINK			2

/* How far a jsonb may shrink as text: a number is 12 bytes, and "0, " three. */
#define JSONB_SHRINK	8

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

	if (VARATT_IS_EXTENDED(stored) && !VARATT_IS_SHORT(stored) &&
		toast_raw_datum_size(value) - VARHDRSZ > size_limit(f->shape) * SHRINK)
		return size_misfit(f->shape);

	plain = pg_detoast_datum_packed(stored);
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

/* Kusto has no type for bytes: base64 grows them least. */
KpgMisfit
kpg_format_bytea(KpgFormatter *f, Datum value, KpgText *text)
{
	KcBuf	   *base64 = &f->format->base64;
	struct varlena *plain;

	/* Four characters for every three bytes. */
	if ((toast_raw_datum_size(value) - VARHDRSZ) / 3 * 4 > KPG_STRING_LIMIT)
		return KPG_MISFIT_STRING_SIZE;

	plain = PG_DETOAST_DATUM_PACKED(value);
	kc_buf_reset(base64);
	kc_text_base64(base64, VARDATA_ANY(plain), VARSIZE_ANY_EXHDR(plain));
	kpg_format_buf_check(base64);
	if ((Pointer) plain != DatumGetPointer(value))
		pfree(plain);

	text->data = base64->data;
	text->len = base64->len;
	text->owned = NULL;
	return text->len > KPG_STRING_LIMIT ? KPG_MISFIT_STRING_SIZE : KPG_FITS;
}

KpgMisfit
kpg_format_jsonb(KpgFormatter *f, Datum value, KpgText *text)
{
	StringInfo	out = &f->format->jsonb;
	Jsonb	   *jsonb;

	if (toast_raw_datum_size(value) > KPG_DYNAMIC_LIMIT * JSONB_SHRINK)
		return KPG_MISFIT_DYNAMIC_SIZE;
	if ((size_t) out->maxlen > 2 * KPG_DYNAMIC_LIMIT)
	{
		MemoryContext old = MemoryContextSwitchTo(f->format->context);

		pfree(out->data);
		initStringInfo(out);
		MemoryContextSwitchTo(old);
	}

	jsonb = DatumGetJsonbP(value);
	resetStringInfo(out);
	JsonbToCString(out, &jsonb->root, VARSIZE(jsonb));
	if ((Pointer) jsonb != DatumGetPointer(value))
		pfree(jsonb);

	text->data = out->data;
	text->len = out->len;
	text->owned = NULL;
	return kpg_format_utf8(f->format, text, KPG_SHAPE_JSON);
}
