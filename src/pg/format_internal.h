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
	KPG_MISFIT_COUNT
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

/* Room that a KpgFixedFn may need. */
#define KPG_FIXED_MAX	64

/* One of these three is set.  A misfit leaves the result undefined. */
typedef KpgMisfit (*KpgFixedFn) (const KpgFormatter *f, Datum value, char *buf, int *len);
typedef KpgMisfit (*KpgTextFn) (KpgFormatter *f, Datum value, KpgText *text);

/* Containers append their JSON; misfits of elements are dealt with inside. */
typedef void (*KpgNestFn) (KpgFormatter *f, Datum value, KcBuf *out);

/* Settings that an output function may look at; see format_output.c. */
typedef enum KpgPins
{
	KPG_PIN_NONE = 0,
	KPG_PIN_FLOAT = 1 << 0,		/* extra_float_digits */
	KPG_PIN_NAMES = 1 << 1,		/* search_path, quote_all_identifiers */
	KPG_PIN_REST = 1 << 2,		/* all others that we know of */
	KPG_PIN_ALL = KPG_PIN_FLOAT | KPG_PIN_NAMES | KPG_PIN_REST
} KpgPins;

/* What a container has found out about what it holds; format_nested.c. */
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
	KpgFixedFn	fixed;
	KpgTextFn	text;
	KpgNestFn	nest;

	int			pins;			/* for call */
	FmgrInfo	call;			/* cast to json; else output function, looked up
								 * when first needed */
	int			scale;			/* money: digits behind the point */
	char		scratch[96];	/* a numeric's text, when it fits */

	KpgElement *element;		/* arrays, ranges, multiranges */
	KpgRecord  *record;			/* composites */
	TypeCacheEntry *typcache;	/* ranges, multiranges */
};

typedef struct KpgColumn KpgColumn;

typedef void (*KpgWriteFn) (KpgColumn *column, Datum value, KcCsvWriter *w);

struct KpgColumn
{
	KpgFormatter formatter;
	KpgWriteFn	write;			/* NULL: the field is always empty */
	int			index;			/* in the slot, from 0 */
	char	   *name;			/* server encoding */
	const char *kusto_type;		/* under the policy */
	bool		as_string;		/* the 'string' policy made it a string */
	uint64		misfits[KPG_MISFIT_COUNT];
};

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
	int			natts;			/* attributes of a slot that are read */
	KpgColumn  *object;			/* stands for all of them as one JSON object; NULL
								 * until needed */
	KcSlice    *keys;			/* in that object, by column */

	/* the row under work */
	uint64		rownum;			/* 0: it is no query's */
	KpgColumn  *column;
	bool		reported;		/* an error that names column and row is on its way */
	int			pinned;			/* settings pinned for the rest of the row */
	int			guc_level;		/* nest level to close after it, when pinned */

	const KcAlloc *alloc;
	KcBuf		json;			/* the dynamic value under work */
	KcBuf		base64;			/* the bytea under work */
	StringInfoData jsonb;		/* the jsonb under work, server encoding */
};

/* format_resolve.c */
extern void kpg_format_resolve(KpgFormatter *f, KpgRowFormat *format, Oid type);

/* format_scalar.c, format_datetime.c */
extern KpgMisfit kpg_format_bool(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_int2(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_int4(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_int8(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_uint4(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_xid8(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_float4(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_float8(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_money(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_uuid(const KpgFormatter *f, Datum value, char *buf, int *len);
extern int	kpg_format_money_scale(void);

extern KpgMisfit kpg_format_date(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_timestamp(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_time(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_timetz(const KpgFormatter *f, Datum value, char *buf, int *len);
extern KpgMisfit kpg_format_interval(const KpgFormatter *f, Datum value, char *buf, int *len);

/* format_numeric.c */
extern KpgMisfit kpg_format_numeric(KpgFormatter *f, Datum value, KpgText *text);

/* format_text.c */
extern void kpg_format_transcode_init(KpgRowFormat *format);
extern KpgMisfit kpg_format_utf8(KpgRowFormat *format, KpgText *text, KpgShape shape);
extern KpgMisfit kpg_format_varlena(KpgFormatter *f, Datum value, KpgText *text);
extern KpgMisfit kpg_format_name(KpgFormatter *f, Datum value, KpgText *text);
extern KpgMisfit kpg_format_bytea(KpgFormatter *f, Datum value, KpgText *text);
extern KpgMisfit kpg_format_jsonb(KpgFormatter *f, Datum value, KpgText *text);

/* format_output.c */
extern KpgMisfit kpg_format_output(KpgFormatter *f, Datum value, KpgText *text);
extern KpgMisfit kpg_format_json_cast(KpgFormatter *f, Datum value, KpgText *text);
extern void kpg_format_iso_text(KpgFormatter *f, Datum value, KpgText *text);
extern void kpg_format_unpin(KpgRowFormat *format);

/* format_nested.c */
extern void kpg_format_array(KpgFormatter *f, Datum value, KcBuf *out);
extern void kpg_format_record(KpgFormatter *f, Datum value, KcBuf *out);
extern void kpg_format_range(KpgFormatter *f, Datum value, KcBuf *out);
extern void kpg_format_multirange(KpgFormatter *f, Datum value, KcBuf *out);
extern KcSlice kpg_format_json_key(KpgRowFormat *format, const char *name);
extern void kpg_format_json_value(KpgFormatter *f, Datum value, bool isnull, KcBuf *out);

/* format_misfit.c */
extern void kpg_format_misfit(KpgRowFormat *format, KpgMisfit misfit);
extern void kpg_format_record_too_big(KpgRowFormat *format);

/* format.c */
extern void kpg_format_buf_check(const KcBuf *buf);
extern void kpg_format_check_record(KpgRowFormat *format, const KcCsvWriter *w);

static inline void
kpg_format_text_free(KpgText *text)
{
	if (text->owned != NULL)
		pfree(text->owned);
}

/* Two decimal digits, with the leading zero. */
static inline char *
kpg_format_put2(char *p, int value)
{
	p[0] = (char) ('0' + value / 10);
	p[1] = (char) ('0' + value % 10);
	return p + 2;
}

#endif							/* KPG_FORMAT_INTERNAL_H */
