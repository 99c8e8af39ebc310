/*
 * worker_log.c
 *	  What the server log says of an operation: its id, and what Kusto's
 *	  operators look for, the activity id of the request that failed.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/uuid.h"

#include "report.h"
#include "worker_internal.h"

static char *
id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

static const char *
server_text(const KpgFailure *failure, const char *text)
{
	return failure->utf8 ? kpg_report_text(text) : text;
}

/* NULL when there is nothing to say. */
static char *
describe(const KpgFailure *failure)
{
	StringInfoData text;

	if (failure == NULL || failure->message == NULL)
		return NULL;
	initStringInfo(&text);
	appendStringInfoString(&text, server_text(failure, failure->message));
	if (failure->error_code != NULL)
		appendStringInfo(&text, ": %s", server_text(failure, failure->error_code));
	if (failure->details != NULL)
		appendStringInfo(&text, "\n%s", server_text(failure, failure->details));
	/* The details of a request's failure have it already. */
	if (failure->activity_id != NULL &&
		(failure->details == NULL || strstr(failure->details, failure->activity_id) == NULL))
		appendStringInfo(&text, "\nKusto's activity id is %s.", server_text(failure, failure->activity_id));
	return text.data;
}

static void
log_state(int level, const WorkOperation *op, const char *state, const KpgFailure *failure)
{
	char	   *detail = describe(failure);

	ereport(level,
			(errmsg("kusto_ingest operation %s to table \"%s\" of server \"%s\": %s",
					id_text(&op->row->id), op->row->table_name, op->row->server, state),
			 detail != NULL ? errdetail_internal("%s", detail) : 0,
	/* It would name the operation once more. */
			 errhidecontext(true)));
}

void
kpg_worker_log_end(const WorkOperation *op, KpgState state, const KpgFailure *failure)
{
	bool		well = state == KPG_STATE_SUCCEEDED || state == KPG_STATE_SKIPPED;

	log_state(well ? DEBUG1 : LOG, op, kpg_operations_state_name(state), failure);
}

/* The row shows each failure, the log the first of several alike. */
void
kpg_worker_log_delay(WorkOperation *op, const KpgFailure *failure)
{
	const char *code = failure->error_code != NULL ? failure->error_code : "";

	if (op->told_delay && strcmp(op->delay_code, code) == 0)
		return;
	log_state(LOG, op, "delayed", failure);
	op->told_delay = true;
	strlcpy(op->delay_code, code, sizeof(op->delay_code));
}

void
kpg_worker_log_context(void *arg)
{
	const pg_uuid_t *id = arg;

	errcontext("kusto_ingest operation %s", id_text(id));
}
