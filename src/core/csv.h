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
 * A quoted field written piece by piece: open, append with kc_csv_piece, or
 * append bytes that hold no quote straight to w->out, close.
 */
extern void kc_csv_quote_open(KcCsvWriter *w);
extern void kc_csv_piece(KcCsvWriter *w, const char *data, size_t len);
extern void kc_csv_quote_close(KcCsvWriter *w);

#endif							/* KC_CSV_H */
