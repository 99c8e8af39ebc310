/*
 * functions_table.c
 *	  The SQL-callable function that exports a whole table.
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/array.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "export.h"
#include "functions_internal.h"
#include "version.h"

PG_FUNCTION_INFO_V1(kusto_ingest_table);

enum
{
	ARG_RELATION,
	ARG_DATABASE,
	ARG_TABLE_NAME,
	ARG_SERVER,
	ARG_MAPPING,
	ARG_TAGS,
	ARG_INGEST_IF_NOT_EXISTS,
	ARG_CREATION_TIME,
	ARG_FLUSH_IMMEDIATELY,
	ARG_CREATE_TABLE,
	ARG_ON_TYPE_ERROR,
	ARG_EXACTLY_ONCE,
	ARG_PARALLEL
};

static void
export_arguments(FunctionCallInfo fcinfo, KpgExportRequest *request)
{
	memset(request, 0, sizeof(*request));
	request->database = kpg_functions_text(fcinfo, ARG_DATABASE);
	request->table_name = kpg_functions_text(fcinfo, ARG_TABLE_NAME);
	request->server = PG_ARGISNULL(ARG_SERVER) ? NULL : NameStr(*PG_GETARG_NAME(ARG_SERVER));
	request->mapping = kpg_functions_text(fcinfo, ARG_MAPPING);
	if (!PG_ARGISNULL(ARG_TAGS))
		request->tags = PG_GETARG_ARRAYTYPE_P(ARG_TAGS);
	if (!PG_ARGISNULL(ARG_INGEST_IF_NOT_EXISTS))
		request->ingest_if_not_exists = PG_GETARG_ARRAYTYPE_P(ARG_INGEST_IF_NOT_EXISTS);
	request->has_creation_time = !PG_ARGISNULL(ARG_CREATION_TIME);
	if (request->has_creation_time)
		request->creation_time = PG_GETARG_TIMESTAMPTZ(ARG_CREATION_TIME);
	request->flush_immediately = kpg_functions_bool(fcinfo, ARG_FLUSH_IMMEDIATELY, "flush_immediately");
	request->create_table = kpg_functions_bool(fcinfo, ARG_CREATE_TABLE, "create_table");
	request->on_type_error = kpg_functions_text(fcinfo, ARG_ON_TYPE_ERROR);
	request->exactly_once = kpg_functions_text(fcinfo, ARG_EXACTLY_ONCE);
}

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
	export_arguments(fcinfo, &request);
	processes = processes_argument(fcinfo);
	kpg_export_table(&request, PG_GETARG_OID(ARG_RELATION), processes, id);
	PG_RETURN_UUID_P(id);
}
