/*
 * functions_replication.c
 *	  The trigger that keeps the extension's tables from being replicated.
 *
 * It fires in sessions with session_replication_role = replica only.  That is
 * what processes of logical replication have, but also whoever loads data and
 * wants no triggers: his exports are recorded as any others.  So are the
 * captures and shapes that a process of logical replication records itself, on
 * behalf of a trigger that fires for what it applies: for them
 * kpg_operations_enter() leaves that role.
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "fmgr.h"
#include "replication/logicalworker.h"

#include "compat.h"

PG_FUNCTION_INFO_V1(kusto_ignore_replicated);

Datum
kusto_ignore_replicated(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_BEFORE(trigdata->tg_event) ||
		!TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" must be called before a row is changed", "kusto.ignore_replicated")));
	if (IsLogicalWorker())
		return PointerGetDatum(NULL);
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigdata->tg_event) ? trigdata->tg_newtuple
						   : trigdata->tg_trigtuple);
}
