/*
 * format_internal.h
 *	  What the format_*.c files share; nobody else includes it.
 *
 * A KpgFormatter turns the values of one type into UTF-8 text.  It is resolved
 * once per column, and lazily, once more per element type, inside containers:
 * an array, a record or a range tells only at run time what it holds.
 *
 * A formatter does not decide what happens to a value that its Kusto type
 * cannot hold: it answers with a KpgMisfit, and whoever writes the field or the
 * JSON value applies the policy (format_misfit.c).
 */
#ifndef KPG_FORMAT_INTERNAL_H
#define KPG_FORMAT_INTERNAL_H

#include "postgres.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "utils/typcache.h"

#include "compat.h"
#include "format.h"

/*
 * Limits of the service, in octets of UTF-8.  Longer strings are truncated and
 * longer dynamic values become null, silently; longer records fail the blob.
 * (learn.microsoft.com/kusto/query/scalar-data-types/string and .../dynamic,
 * learn.microsoft.com/kusto/management/encoding-policy: MaxValueSize,
 * learn.microsoft.com/azure/data-explorer/ingestion-supported-formats)
 */
#define KPG_STRING_LIMIT	((size_t) 1024 * 1024)
#define KPG_DYNAMIC_LIMIT	((size_t) 1024 * 1024)
#define KPG_RECORD_LIMIT	((size_t) 64 * 1024 * 1024)

/* Why a Kusto type cannot hold a value; format_misfit.c has their texts. */
typedef enum KpgMisfit
{
	KPG_FITS,
	KPG_MISFIT_NAN,
	KPG_MISFIT_INFINITY,
	KPG_MISFIT_BEFORE_YEAR_1,
	KPG_MISFIT_AFTER_YEAR_9999,
	KPG_MISFIT_MONTHS,
	KPG_MISFIT_RANGE,
	KPG_MISFIT_DIGITS,
	KPG_MISFIT_STRING_SIZE,
	KPG_MISFIT_DYNAMIC_SIZE,
	KPG_MISFIT_ENCODING,
	KPG_MISFIT_COUNT,
	KPG_LONG = KPG_MISFIT_COUNT	/* it fits, but its text is over KPG_SHORT_MAX */
} KpgMisfit;

/* How a formatter's text stands in a CSV field, and in JSON. */
typedef enum KpgShape
{
	KPG_SHAPE_NUMBER,			/* bare; bare: numbers and booleans */
	KPG_SHAPE_WORD,				/* bare; in quotes, nothing in it to escape */
	KPG_SHAPE_TEXT,				/* quoted; in quotes, escaped */
	KPG_SHAPE_JSON				/* quoted; as it is */
} KpgShape;

/*
 * UTF-8 text of a value.  owned is what to pfree afterwards, or NULL; data may
 * also point into the value itself or into the formatter's scratch memory, and
 * is then good until the next value.
 */
typedef struct KpgText
{
	const char *data;
	size_t		len;
	void	   *owned;
} KpgText;

typedef struct KpgFormatter KpgFormatter;

/*
 * Writes a value at p, for which there is room for KPG_SHORT_MAX bytes, and
 * gives the place behind; NULL when it has not, and f->misfit says why.  It
 * allocates nothing and does not raise.
 */
typedef char *(*KpgPutFn) (KpgFormatter *f, Datum value, char *p);

#define KPG_SHORT_MAX	64

/* Gives the text of any length.  A misfit leaves it undefined. */
typedef KpgMisfit (*KpgTextFn) (KpgFormatter *f, Datum value, KpgText *text);

/* Containers append their JSON; misfits of elements are dealt with inside. */
typedef void (*KpgNestFn) (KpgFormatter *f, Datum value, KcBuf *out);

/*
 * Writes a column's whole field, quotes included, at p in the buffer of the
 * row, and makes room for it; see kpg_format_room().  As KpgPutFn otherwise.
 */
typedef char *(*KpgFieldFn) (KpgFormatter *f, Datum value, char *p);

/* Settings that an output function may look at; see format_output.c. */
typedef enum KpgPins
{
	KPG_PIN_NONE = 0,
	KPG_PIN_FLOAT = 1 << 0,		/* extra_float_digits */
	KPG_PIN_NAMES = 1 << 1,		/* search_path, quote_all_identifiers */
	KPG_PIN_REST = 1 << 2,		/* all others that we know of */
	KPG_PIN_ALL = KPG_PIN_FLOAT | KPG_PIN_NAMES | KPG_PIN_REST
} KpgPins;

/* What a container has found out about what it holds; see format_nested.c. */
typedef struct KpgElement KpgElement;
typedef struct KpgRecord KpgRecord;

struct KpgFormatter
{
	KpgRowFormat *format;		/* NULL: resolved only to ask about the type */
	MemoryContext context;		/* lives as long as this formatter */
	Oid			type;			/* never a domain */
	KpgShape	shape;
	const char *kusto_type;
	bool		can_misfit;		/* has values of the type's own that kusto_type
								 * cannot hold */

	/* At least one of the first three. */
	KpgPutFn	put;			/* short text */
	KpgTextFn	text;			/* any text, or with put what is too long for it */
	KpgNestFn	nest;
	KpgFieldFn	field;			/* straight from the value, where the server's
								 * encoding is UTF-8; or NULL */
	KpgMisfit	misfit;			/* why put or field gave NULL */

	int			pins;			/* for call */
	FmgrInfo	call;			/* cast to json; else output function, looked up
								 * when first needed */
	int			scale;			/* money: digits behind the point */

	KpgElement *element;		/* arrays, ranges, multiranges */
	KpgRecord  *record;			/* composites */
	TypeCacheEntry *typcache;	/* ranges, multiranges */
};

struct KpgElement
{
	MemoryContext context;
	Oid			type;
	int16		typlen;
	bool		typbyval;
	char		typalign;
	KpgFormatter formatter;
};

typedef struct KpgColumn KpgColumn;

struct KpgColumn
{
	KpgFormatter formatter;		/* first */
	KpgFieldFn	write;			/* NULL: the field is always empty */
	int			index;			/* in the slot, from 0 */
	char	   *name;			/* server encoding */
	const char *kusto_type;		/* under the policy */
	bool		as_string;		/* the 'string' policy made it a string */
	uint64		misfits[KPG_MISFIT_COUNT];
};

/* What a row needs of a column, close together. */
typedef struct KpgField
{
	KpgFieldFn	write;
	KpgColumn  *column;
	int			index;
} KpgField;

/* Server encoding to UTF-8. */
typedef enum KpgTranscode
{
	KPG_TRANSCODE_NONE,			/* the server's is UTF-8 */
	KPG_TRANSCODE_CHECK,		/* SQL_ASCII: anything, hence checked */
	KPG_TRANSCODE_CONVERT
} KpgTranscode;

struct KpgRowFormat
{
	MemoryContext context;
	KpgOnTypeError policy;
	KpgTranscode transcode;
	Oid			conversion;		/* pg_conversion's function, for CONVERT */

	int			ncolumns;
	KpgColumn  *columns;
	KpgField   *fields;			/* of the same columns */
	int			natts;			/* attributes of a slot that are read */
	KpgColumn  *object;			/* stands for all of them as one JSON object; NULL
								 * until needed */
	KcSlice    *keys;			/* in that object, by column */

	/* the buffer under work; see kpg_format_room() */
	KcBuf	   *out;
	char	   *limit;
	const char *row_start;
	size_t		row_start_offset;	/* in out */
	size_t		row_room;

	/* the row under work */
	uint64		rownum;			/* 0: it is no query's */
	char	   *table;			/* that the row is of; NULL: it is a query's */
	const TupleTableSlot *slot;
	KpgColumn  *column;
	bool		reported;		/* an error that names column and row is on its way */
	int			pinned;			/* settings pinned for the rest of the row */
	int			guc_level;		/* nest level to close after it, when pinned */

	const KcAlloc *alloc;
	KcBuf		json;			/* the dynamic value under work */
	KcBuf		base64;			/* the bytea under work, inside a container */
	KcBuf		jsonb;			/* the jsonb under work, server encoding, where it
								 * cannot go straight into its field */
};

/* format_resolve.c */
extern void kpg_format_resolve(KpgFormatter *f, KpgRowFormat *format, Oid type);

/* format_scalar.c, format_datetime.c */
extern char *kpg_format_bool(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_int2(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_int4(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_int8(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_uint4(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_xid8(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_float4(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_float8(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_money(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_uuid(KpgFormatter *f, Datum value, char *p);
extern int	kpg_format_money_scale(void);

extern char *kpg_format_date(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_timestamp(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_time(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_timetz(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_interval(KpgFormatter *f, Datum value, char *p);

/* format_numeric.c */
extern char *kpg_format_numeric(KpgFormatter *f, Datum value, char *p);
extern KpgMisfit kpg_format_numeric_text(KpgFormatter *f, Datum value, KpgText *text);

/* format_text.c */
extern void kpg_format_transcode_init(KpgRowFormat *format);
extern bool kpg_format_is_utf8(const char *data, size_t len);
extern KpgMisfit kpg_format_utf8(KpgRowFormat *format, KpgText *text, KpgShape shape);
extern KpgMisfit kpg_format_varlena(KpgFormatter *f, Datum value, KpgText *text);
extern KpgMisfit kpg_format_name(KpgFormatter *f, Datum value, KpgText *text);
extern KpgMisfit kpg_format_bytea(KpgFormatter *f, Datum value, KpgText *text);
extern char *kpg_format_varlena_field(KpgFormatter *f, Datum value, char *p);
extern char *kpg_format_bytea_field(KpgFormatter *f, Datum value, char *p);

/* format_jsonb.c */
extern KpgMisfit kpg_format_jsonb(KpgFormatter *f, Datum value, KpgText *text);
extern char *kpg_format_jsonb_field(KpgFormatter *f, Datum value, char *p);

/* format_output.c */
extern KpgMisfit kpg_format_output(KpgFormatter *f, Datum value, KpgText *text);
extern KpgMisfit kpg_format_json_cast(KpgFormatter *f, Datum value, KpgText *text);
extern void kpg_format_iso_text(KpgFormatter *f, Datum value, KpgText *text);
extern void kpg_format_unpin(KpgRowFormat *format);

/* format_array.c */
extern void kpg_format_array(KpgFormatter *f, Datum value, KcBuf *out);
extern char *kpg_format_array_field(KpgFormatter *f, Datum value, char *p);

/* format_nested.c */
extern KpgElement *kpg_format_element_of(KpgFormatter *f, Oid type);
extern void kpg_format_record(KpgFormatter *f, Datum value, KcBuf *out);
extern void kpg_format_range(KpgFormatter *f, Datum value, KcBuf *out);
extern void kpg_format_multirange(KpgFormatter *f, Datum value, KcBuf *out);
extern KcSlice kpg_format_json_key(KpgRowFormat *format, const char *name);
extern void kpg_format_json_value(KpgFormatter *f, Datum value, bool isnull, KcBuf *out);

/* format_misfit.c */
extern void kpg_format_misfit(KpgRowFormat *format, KpgMisfit misfit);
extern void kpg_format_record_too_big(KpgRowFormat *format);

extern const char *kpg_format_row_name(const KpgRowFormat *format);

/* format.c */
extern void kpg_format_buf_check(const KcBuf *buf);
extern void kpg_format_check_record(KpgRowFormat *format, const KcCsvWriter *w);

/* format_field.c */
extern KpgFieldFn kpg_format_choose_write(const KpgColumn *column);
extern char *kpg_format_write_otherwise(KpgColumn *column, Datum value, char *p);
extern char *kpg_format_write_misfit(KpgColumn *column, Datum value, char *p, KpgMisfit misfit);
extern char *kpg_format_write_text(KpgFormatter *f, Datum value, char *p);
extern bool kpg_format_field_too_long(const char *start, const char *end);
extern char *kpg_format_more_room(KpgRowFormat *format, char *p, size_t need);

/*
 * Fields go straight into the buffer of the row, and p is where the next byte
 * goes; the buffer itself learns of them when the row's fields are all there.
 * limit leaves row_room behind it, which is enough for a row of short fields, so
 * that these need not ask.  All others do, and the buffer may move then.
 */
static inline void
kpg_format_set_limit(KpgRowFormat *format)
{
	KcBuf	   *out = format->out;

	format->limit = out->data + (out->cap - 1 - format->row_room);
	format->row_start = out->data + format->row_start_offset;
}

static inline char *
kpg_format_room(KpgRowFormat *format, char *p, size_t need)
{
	if (unlikely((ptrdiff_t) need > format->limit - p))
		return kpg_format_more_room(format, p, need);
	return p;
}

/* After each field that may be long, and each row: up to here it is not too long. */
static inline void
kpg_format_check_row(KpgRowFormat *format, const char *p)
{
	if (unlikely((size_t) (p - format->row_start) > KPG_RECORD_LIMIT))
		kpg_format_record_too_big(format);
}

/* Text is written in pieces of this size, for which room is made. */
#define KPG_PIECE	((size_t) 4096)

/* Beyond a limit, so that room can be made generously up to it. */
#define KPG_LIMIT_SLACK	(KPG_PIECE * KC_CSV_JSON_GROWTH + KPG_SHORT_MAX)

/* Is the JSON in this buffer too much for a dynamic?  Raises without memory. */
static inline bool
kpg_format_json_too_big(const KcBuf *json)
{
	if (json->failed == KC_ERR_LIMIT || json->len > KPG_DYNAMIC_LIMIT)
		return true;
	kpg_format_buf_check(json);
	return false;
}

/* The stored value, decompressed and fetched if it must be; may be unaligned. */
static inline struct varlena *
kpg_format_packed(Datum value)
{
	struct varlena *stored = (struct varlena *) DatumGetPointer(value);

	if (unlikely(VARATT_IS_COMPRESSED(stored) || VARATT_IS_EXTERNAL(stored)))
		return pg_detoast_datum_packed(stored);
	return stored;
}

static inline void
kpg_format_text_free(KpgText *text)
{
	if (text->owned != NULL)
		pfree(text->owned);
}

/* What a KpgPutFn returns for a value that it does not write. */
static inline char *
kpg_format_no(KpgFormatter *f, KpgMisfit misfit)
{
	f->misfit = misfit;
	return NULL;
}

#endif							/* KPG_FORMAT_INTERNAL_H */
