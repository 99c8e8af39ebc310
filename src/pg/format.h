/*
 * format.h
 *	  PostgreSQL values as the text that Kusto reads, by one formatter a
 *	  column, chosen once.
 *
 * The text does not depend on DateStyle, IntervalStyle, TimeZone,
 * extra_float_digits, bytea_output, search_path, lc_monetary (but for how many
 * decimals money has) or either encoding; it is UTF-8.
 */
#ifndef KPG_FORMAT_H
#define KPG_FORMAT_H

#include "postgres.h"

#include "access/tupdesc.h"
#include "datatype/timestamp.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"

#include "../core/csv.h"

/* What to do with a value that its Kusto type cannot hold. */
typedef enum KpgOnTypeError
{
	KPG_TYPE_ERROR_RAISE,		/* 'error' */
	KPG_TYPE_ERROR_NULL,		/* 'null': an empty field */
	KPG_TYPE_ERROR_STRING		/* 'string': columns whose type can hold such
								 * values are sent as Kusto strings */
} KpgOnTypeError;

/* Raises for an unknown word. */
extern KpgOnTypeError kpg_format_policy(const char *word);

typedef struct KpgRowFormat KpgRowFormat;

/*
 * Resolve every column; raises when there is none.  Everything lives in the
 * current memory context.
 */
extern KpgRowFormat *kpg_format_create(TupleDesc desc, KpgOnTypeError policy);

/*
 * Append one row to w (begin, fields, end).  rownum, from 1, goes into
 * errors.  Scratch memory is taken from the current context: the caller
 * resets it after each row.  When it raises, the row is left half written.
 */
extern void kpg_format_row(KpgRowFormat *format, TupleTableSlot *slot, uint64 rownum, KcCsvWriter *w);

/*
 * As kpg_format_create(), for the columns with these numbers, in this order; 0
 * or the number of a dropped column: an empty field.
 */
extern KpgRowFormat *kpg_format_create_for(TupleDesc desc, const AttrNumber *columns, int ncolumns,
										   KpgOnTypeError policy);

/*
 * Its rows come from a table and not from a query: errors tell of each by its
 * ctid.  name is copied.
 */
extern void kpg_format_of_table(KpgRowFormat *format, const char *name);

/*
 * The fields alone, for a row that has others before them.  The caller has
 * begun the row and will end it.
 */
extern void kpg_format_fields(KpgRowFormat *format, TupleTableSlot *slot, KcCsvWriter *w);

/* The same values as one field that is a JSON object, of the columns that exist. */
extern void kpg_format_object(KpgRowFormat *format, TupleTableSlot *slot, KcCsvWriter *w);

/* The column whose value is being written, for the context of errors; else NULL. */
extern const char *kpg_format_column(const KpgRowFormat *format);

/* Room for the text of a datetime. */
#define KPG_DATETIME_MAX	32

/* The text of a finite time; its length.  Not terminated. */
extern int	kpg_format_datetime(TimestampTz time, char *buf);

/* Kusto's type for a column under a policy: "long", "datetime", ... */
extern const char *kpg_format_kusto_type(Oid type, int32 typmod, KpgOnTypeError policy);

/*
 * Values that met the policy so far, as the text of a JSON object
 * {"column": {"infinity": 2}, ...}; NULL when there were none.
 */
extern char *kpg_format_type_errors(const KpgRowFormat *format);

/*
 * The counts behind it, so that those of several formats with the same columns
 * can be added up.  kpg_format_ncounts(): how many there are.
 */
extern int	kpg_format_ncounts(int ncolumns);
extern void kpg_format_give_counts(const KpgRowFormat *format, uint64 *counts);
extern void kpg_format_take_counts(KpgRowFormat *format, const uint64 *counts);

/*
 * May values of a type be written in a parallel worker?  Not with an output
 * function, or a cast to json, that is not PARALLEL SAFE.
 */
extern bool kpg_format_parallel_safe(Oid type);

#endif							/* KPG_FORMAT_H */
