/*
 * functions.c
 *	  SQL-callable functions about exports: check the arguments, delegate.
 *
 * None is strict: an argument that is null by mistake gets an error instead
 * of a null result that nobody notices.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/pquery.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "../core/text.h"
#include "compat.h"
#include "exec.h"
#include "export.h"
#include "functions_internal.h"
#include "operations.h"
#include "outcome_wait.h"
#include "report.h"
#include "schema.h"
#include "version.h"

PG_FUNCTION_INFO_V1(kusto_ingest);
PG_FUNCTION_INFO_V1(kusto_ingest_async);
PG_FUNCTION_INFO_V1(kusto_ingest_and_wait);
PG_FUNCTION_INFO_V1(kusto_wait);
PG_FUNCTION_INFO_V1(kusto_create_table_command);

/* Arguments of kusto_ingest(), but for those of all exports; kusto_ingest_and_wait() has one more. */
enum
{
	ARG_QUERY = 0,
	ARG_MODE = KPG_ARG_SERVER + 1,
	ARG_PROPERTIES,
	ARG_TIMEOUT = ARG_PROPERTIES + KPG_PROPERTY_ARGUMENTS
};

static void
export_arguments(FunctionCallInfo fcinfo, KpgExportRequest *request)
{
	kpg_functions_export(fcinfo, ARG_PROPERTIES, request);
	request->query = kpg_functions_text(fcinfo, ARG_QUERY);
	request->mode = kpg_functions_text(fcinfo, ARG_MODE);
}

Datum
kusto_ingest(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	KpgExportRequest request;

	kpg_version_check();
	export_arguments(fcinfo, &request);
	kpg_export_run(&request, id);
	PG_RETURN_UUID_P(id);
}

Datum
kusto_ingest_async(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = palloc(sizeof(pg_uuid_t));
	KpgExportRequest request;

	kpg_version_check();
	export_arguments(fcinfo, &request);
	kpg_export_submit(&request, id);
	PG_RETURN_UUID_P(id);
}

/* ---- CALL ---- */

static void
require_non_atomic(FunctionCallInfo fcinfo)
{
	if (fcinfo->context != NULL && IsA(fcinfo->context, CallContext) &&
		!castNode(CallContext, fcinfo->context)->atomic)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_TRANSACTION_TERMINATION),
			 errmsg("kusto_ingest_and_wait() cannot run inside a transaction block"),
			 errdetail("It commits, because nothing is sent to Kusto before."),
			 errhint("Use kusto_ingest(), and kusto_wait() after the commit.")));
}

static void
commit(void)
{
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect_ext failed");
	SPI_commit();
	/* Since PostgreSQL 15 SPI_commit() has begun a transaction; earlier this does. */
	SPI_start_transaction();
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

static int
outcome_sqlstate(const char *state)
{
	if (strcmp(state, "partially_succeeded") == 0)
		return KPG_ERRCODE_INGESTION_PARTIAL;
	if (strcmp(state, "unknown") == 0)
		return KPG_ERRCODE_INGESTION_UNKNOWN;
	if (strcmp(state, "cancelled") == 0)
		return KPG_ERRCODE_INGESTION_CANCELLED;
	return KPG_ERRCODE_INGESTION_FAILED;
}

/*
 * Whoever runs a job may keep nothing but the primary message, so Kusto's
 * code is in it.
 */
static void
raise_not_ingested(const pg_uuid_t *id, const char *id_text, const char *state)
{
	KpgOutcome	outcome;
	StringInfoData message;
	StringInfoData detail;

	EnsurePortalSnapshotExists();
	kpg_operations_outcome(id, &outcome);

	initStringInfo(&message);
	if (outcome.error_message != NULL)
		appendStringInfoString(&message, outcome.error_message);
	else
		appendStringInfo(&message, "export to Kusto ended in state \"%s\"", state);
	if (outcome.error_code != NULL)
		appendStringInfo(&message, ": %s", outcome.error_code);
	initStringInfo(&detail);
	if (outcome.details != NULL)
		appendStringInfo(&detail, "%s\n", outcome.details);
	appendStringInfo(&detail, "Operation %s is in state \"%s\".", id_text, state);
	ereport(ERROR,
			(errcode(outcome_sqlstate(state)),
			 errmsg_internal("%s", message.data),
			 errdetail_internal("%s", detail.data),
			 outcome.hint != NULL ? errhint("%s", outcome.hint)
			 : errhint("The views kusto.operations and kusto.blobs tell more.")));
}

static void
report_outcome(const pg_uuid_t *id, const char *state)
{
	char	   *id_text = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));

	if (strcmp(state, "succeeded") == 0)
		return;
	if (strcmp(state, "skipped") == 0)
	{
		ereport(NOTICE,
				(errmsg("Kusto has data with the same ingest_if_not_exists key and skipped operation %s",
						id_text)));
		return;
	}
	if (!kpg_operations_is_final(kpg_operations_state(state)))
		ereport(ERROR,
				(errcode(KPG_ERRCODE_WAIT_TIMEOUT),
				 errmsg("timed out waiting for operation %s", id_text),
				 errdetail("It is in state \"%s\" and goes on.", state),
				 errhint("Wait longer with kusto_wait(), or look at the view kusto.operations.")));
	raise_not_ingested(id, id_text, state);
}

Datum
kusto_ingest_and_wait(PG_FUNCTION_ARGS)
{
	KpgExportRequest request;
	int64		timeout_ms;
	pg_uuid_t	id;

	kpg_version_check();
	timeout_ms = kpg_functions_timeout(fcinfo, ARG_TIMEOUT);
	require_non_atomic(fcinfo);
	/* A procedure that was called after a COMMIT has no snapshot yet. */
	EnsurePortalSnapshotExists();

	export_arguments(fcinfo, &request);
	kpg_export_run(&request, &id);
	commit();
	report_outcome(&id, kpg_outcome_wait(&id, timeout_ms, true));
	PG_RETURN_VOID();
}

/* ---- others ---- */

Datum
kusto_wait(PG_FUNCTION_ARGS)
{
	char	   *state;

	kpg_version_check();
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("operation must not be null")));
	state = kpg_outcome_wait(PG_GETARG_UUID_P(0), kpg_functions_timeout(fcinfo, 1), false);
	PG_RETURN_TEXT_P(cstring_to_text(state));
}

Datum
kusto_create_table_command(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"query", "table_name", "on_type_error"};
	KpgQuery   *query;
	char	   *command;

	kpg_version_check();
	for (int i = 0; i < (int) lengthof(names); i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not be null", names[i])));
	}
	query = kpg_exec_prepare(kpg_functions_text(fcinfo, 0));
	command = kpg_schema_create_merge(kpg_exec_tupdesc(query), kpg_functions_text(fcinfo, 1),
									  kpg_format_policy(kpg_functions_text(fcinfo, 2)));
	PG_RETURN_TEXT_P(cstring_to_text(command));
}
