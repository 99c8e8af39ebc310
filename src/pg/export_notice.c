/*
 * export_notice.c
 *	  What a session is told at the end of its export.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/builtins.h"

#include "export_internal.h"

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
tell_nothing_exported(const KpgExport *export)
{
	ereport(NOTICE,
			(errmsg("the query returned no rows to export"),
			 export->table_command == NULL ? 0
			 : export->table_created ? errdetail("The Kusto table has been created.")
			 : errdetail("The Kusto table is created when the transaction commits.")));
}

/* What happens when the transaction commits, and why not before, if it was to be. */
static char *
staged_detail(const KpgExport *export)
{
	int			nblobs = kc_ingest_nblobs(export->ingest);
	char	   *detail = psprintf(ngettext("%d blob is sent to Kusto when the transaction commits.",
										   "%d blobs are sent to Kusto when the transaction commits.",
										   (unsigned long) nblobs), nblobs);

	if (export->not_streamed != NULL)
		detail = psprintf(_("%s\nIt was not streamed: %s."), detail, export->not_streamed);
	if (export->doubtful)
		detail = psprintf(_("%s\nKusto may have ingested the data all the same, and has them twice then."), detail);
	return detail;
}

static const char *
ingested_detail(void)
{
	/* Of a transaction of its own nobody expects anything else. */
	if (IsTransactionBlock())
		return _("The data are in Kusto now, and stay there when the transaction is rolled back.");
	return _("The data are in Kusto now.");
}

static void
tell_skipped(const KpgExport *export)
{
	ereport(NOTICE,
			(errmsg_plural("Kusto skipped %llu row",
						   "Kusto skipped %llu rows",
						   (unsigned long) export->rows, (unsigned long long) export->rows),
			 errdetail("The table has data with a key that ingest_if_not_exists names.")));
}

void
kpg_export_notice(const KpgExport *export)
{
	if (export->rows == 0)
	{
		tell_nothing_exported(export);
		return;
	}
	tell_type_errors(export->format);
	if (export->end == KPG_END_SKIPPED)
	{
		tell_skipped(export);
		return;
	}
	ereport(NOTICE,
			(errmsg_plural("exported %llu row, %s (%s compressed)",
						   "exported %llu rows, %s (%s compressed)",
						   (unsigned long) export->rows, (unsigned long long) export->rows,
						   pretty_size(export->raw_bytes), pretty_size(export->compressed_bytes)),
			 errdetail_internal("%s", export->end == KPG_END_STAGED ? staged_detail(export)
								: ingested_detail())));
}
