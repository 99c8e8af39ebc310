/*
 * functions_capture.c
 *	  SQL-callable functions about captured row changes: check the arguments,
 *	  delegate.
 *
 * None is strict: an argument that is null by mistake gets an error instead
 * of a null result that nobody notices.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "capture.h"
#include "compat.h"
#include "drain.h"
#include "functions_internal.h"
#include "version.h"

PG_FUNCTION_INFO_V1(kusto_capture);
PG_FUNCTION_INFO_V1(kusto_uncapture);
PG_FUNCTION_INFO_V1(kusto_flush);
PG_FUNCTION_INFO_V1(kusto_capture_views);

/* Arguments of kusto_capture(). */
enum
{
	ARG_RELATION,
	ARG_DATABASE,
	ARG_TABLE_NAME,
	ARG_SERVER,
	ARG_EVENTS,
	ARG_COLUMNS,
	ARG_OLD_VALUES,
	ARG_SNAPSHOT,
	ARG_CREATE_TABLE,
	ARG_ON_TYPE_ERROR,
	ARG_REPLICATED
};

static void
require_argument(FunctionCallInfo fcinfo, int n, const char *name)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", name)));
}

static void
require_writable(const char *function)
{
	/* Before the next one, which would be true and tell less. */
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
}

/* kusto_capture_changes(), which is in the schema of the function called. */
static Oid
trigger_function(FunctionCallInfo fcinfo)
{
	char	   *schema = get_namespace_name(get_func_namespace(fcinfo->flinfo->fn_oid));
	List	   *name = list_make2(makeString(schema), makeString(pstrdup("kusto_capture_changes")));

	return LookupFuncName(name, 0, NULL, false);
}

Datum
kusto_capture(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *operation = palloc(sizeof(pg_uuid_t));
	KpgCaptureRequest request = {0};

	kpg_version_check();
	require_argument(fcinfo, ARG_RELATION, "relation");
	require_writable("kusto_capture()");
	request.relation = PG_GETARG_OID(ARG_RELATION);
	request.database = kpg_functions_text(fcinfo, ARG_DATABASE);
	request.table_name = kpg_functions_text(fcinfo, ARG_TABLE_NAME);
	request.server = PG_ARGISNULL(ARG_SERVER) ? NULL : NameStr(*PG_GETARG_NAME(ARG_SERVER));
	if (!PG_ARGISNULL(ARG_EVENTS))
		request.events = PG_GETARG_ARRAYTYPE_P(ARG_EVENTS);
	if (!PG_ARGISNULL(ARG_COLUMNS))
		request.columns = PG_GETARG_ARRAYTYPE_P(ARG_COLUMNS);
	request.old_values = kpg_functions_bool(fcinfo, ARG_OLD_VALUES, "old_values");
	request.snapshot = kpg_functions_bool(fcinfo, ARG_SNAPSHOT, "snapshot");
	request.create_table = kpg_functions_bool(fcinfo, ARG_CREATE_TABLE, "create_table");
	request.on_type_error = kpg_functions_text(fcinfo, ARG_ON_TYPE_ERROR);
	request.replicated = kpg_functions_bool(fcinfo, ARG_REPLICATED, "replicated");
	request.function = trigger_function(fcinfo);

	if (!kpg_capture_install(&request, operation))
		PG_RETURN_NULL();
	PG_RETURN_UUID_P(operation);
}

Datum
kusto_uncapture(PG_FUNCTION_ARGS)
{
	kpg_version_check();
	require_argument(fcinfo, 0, "relation");
	require_writable("kusto_uncapture()");
	kpg_capture_uninstall(PG_GETARG_OID(0), kpg_functions_text(fcinfo, 1), kpg_functions_text(fcinfo, 2),
						  trigger_function(fcinfo));
	PG_RETURN_VOID();
}

Datum
kusto_flush(PG_FUNCTION_ARGS)
{
	kpg_version_check();
	require_writable("kusto_flush()");
	if (kpg_capture_has_changes())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the current transaction has captured row changes"),
				 errdetail("They are sent to Kusto after the commit."),
				 errhint("COMMIT first.")));
	PG_RETURN_BOOL(kpg_drain_flush(kpg_functions_timeout(fcinfo, 0)));
}

Datum
kusto_capture_views(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			relid;
	List	   *commands;
	ListCell   *cell;

	kpg_version_check();
	require_argument(fcinfo, 0, "relation");
	relid = PG_GETARG_OID(0);
	if (get_rel_relkind(relid) == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (!kpg_compat_owns_relation(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(get_rel_relkind(relid)), get_rel_name(relid));

	commands = kpg_capture_commands(relid);
	kpg_compat_materialize(fcinfo);
	foreach(cell, commands)
	{
		const KpgCaptureCommand *command = lfirst(cell);
		Datum		values[] = {
			CStringGetTextDatum(command->name),
			CStringGetTextDatum(command->purpose),
			CStringGetTextDatum(command->command)
		};
		bool		nulls[lengthof(values)] = {0};

		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
