/*
 * export_notice.c
 *	  What a session is told at the end of its export.
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "export.h"

static const char *
pretty_size(uint64 bytes)
{
	return TextDatumGetCString(DirectFunctionCall1(pg_size_pretty, Int64GetDatum((int64) bytes)));
}

/* As COPY does for the rows that ON_ERROR leaves out. */
static void
tell_type_errors(const KpgRowFormat *format)
{
	char	   *type_errors = kpg_format_type_errors(format);

	if (type_errors == NULL)
		return;
	ereport(NOTICE,
			(errmsg("some values cannot be held by their Kusto types and were replaced as on_type_error says"),
			 errdetail("By column and kind: %s.", type_errors)));
}

static void
tell_nothing_exported(bool create_table)
{
	ereport(NOTICE,
			(errmsg("the query returned no rows to export"),
			 create_table ? errdetail("The Kusto table is created when the transaction commits.") : 0));
}

void
kpg_export_notice(const KcIngest *ingest, const KpgRowFormat *format, bool create_table)
{
	int			nblobs = kc_ingest_nblobs(ingest);
	uint64_t	rows;
	uint64_t	raw_bytes;
	uint64_t	compressed_bytes;

	kc_ingest_totals(ingest, &rows, &raw_bytes, &compressed_bytes);
	if (rows == 0)
	{
		tell_nothing_exported(create_table);
		return;
	}
	tell_type_errors(format);
	ereport(NOTICE,
			(errmsg_plural("exported %llu row, %s (%s compressed)",
						   "exported %llu rows, %s (%s compressed)",
						   (unsigned long) rows, (unsigned long long) rows,
						   pretty_size(raw_bytes), pretty_size(compressed_bytes)),
			 errdetail_plural("%d blob is sent to Kusto when the transaction commits.",
							  "%d blobs are sent to Kusto when the transaction commits.",
							  (unsigned long) nblobs, nblobs)));
}
