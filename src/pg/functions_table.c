/*
 * functions_table.c
 *	  The SQL-callable function that exports a whole table.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/uuid.h"

#include "compat.h"
#include "export.h"
#include "functions_internal.h"
#include "version.h"

PG_FUNCTION_INFO_V1(kusto_ingest_table);

/* But for those of all exports. */
enum
{
	ARG_RELATION = 0,
	ARG_PROPERTIES = KPG_ARG_SERVER + 1,
	ARG_PARALLEL = ARG_PROPERTIES + KPG_PROPERTY_ARGUMENTS
};

/* 0 when it is for PostgreSQL to decide. */
static int
processes_argument(FunctionCallInfo fcinfo)
{
	int32		processes;

	if (PG_ARGISNULL(ARG_PARALLEL))
		return 0;
	processes = PG_GETARG_INT32(ARG_PARALLEL);
	if (processes < 1 || processes > KPG_EXPORT_PROCESSES_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("parallel must be between 1 and %d", KPG_EXPORT_PROCESSES_MAX),
				 errdetail("It is the number of processes that read the table, the session's own included.")));
	return processes;
}

Datum
kusto_ingest_table(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	KpgExportRequest request;
	int			processes;

	kpg_version_check();
	if (PG_ARGISNULL(ARG_RELATION))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("relation must not be null")));
	kpg_functions_export(fcinfo, ARG_PROPERTIES, &request);
	processes = processes_argument(fcinfo);
	kpg_export_table(&request, PG_GETARG_OID(ARG_RELATION), processes, id);
	PG_RETURN_UUID_P(id);
}
