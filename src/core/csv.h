/*
 * csv.h
 *	  RFC 4180 rows in the dialect that Kusto reads.
 *
 * A string field is always quoted, so that an empty string is deliberate and
 * a row of one empty column is not an empty line; a null is nothing between
 * the commas, or "" when it is the only column.  Rows end in LF.
 * (learn.microsoft.com/azure/data-explorer/ingestion-supported-formats)
 */
#ifndef KC_CSV_H
#define KC_CSV_H

#include "buf.h"

typedef struct KcCsvWriter
{
	KcBuf	   *out;
	size_t		row_start;		/* out->len where the current row begins */
	int			nfields;		/* fields written in the current row */
	bool		only_null;		/* the row is one null so far */
} KcCsvWriter;

extern void kc_csv_begin(KcCsvWriter *w, KcBuf *out);
extern void kc_csv_row_begin(KcCsvWriter *w);
extern void kc_csv_row_end(KcCsvWriter *w);
extern void kc_csv_row_discard(KcCsvWriter *w); /* forget the current row */
extern void kc_csv_null(KcCsvWriter *w);
/* Text that cannot hold a quote, comma, CR or LF: numbers, dates, guids. */
extern void kc_csv_plain(KcCsvWriter *w, const char *data, size_t len);
/* Any text: quoted, quotes doubled. */
extern void kc_csv_quoted(KcCsvWriter *w, const char *data, size_t len);

/*
 * For whoever writes fields straight into a buffer: p has room for so many
 * times len bytes, and what is given is the place behind the last one.
 */
#define KC_CSV_TEXT_GROWTH	2
#define KC_CSV_JSON_GROWTH	6

/* Text as it stands between the quotes of a field. */
extern char *kc_csv_put_text(char *p, const char *data, size_t len);

/*
 * Text as it stands between the quotes of a JSON string, escaped as
 * PostgreSQL does it; in_field: which itself stands in a quoted field.
 */
extern char *kc_csv_put_json(char *p, const char *data, size_t len, bool in_field);

#endif							/* KC_CSV_H */
