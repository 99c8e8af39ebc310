/*
 * capture_snapshot.c
 *	  The rows that are in a table already when it begins to be captured.
 *
 *	kusto_capture()		triggers, and a number, under a lock that keeps writers
 *						out: all changes to come have greater numbers
 *	the job				a REPEATABLE READ transaction: the rows as changes with
 *						that number, and the mark that says that all which its
 *						snapshot sees is sent, commit at once
 *	the worker			sends what that snapshot does not see
 *
 * So every change is in the export or is sent, none is both, and nobody waits for
 * the export.  A capture of which something has been sent before goes on beside
 * a further export: its changes since are in both, with greater numbers than the
 * exported rows have.
 */
#include "postgres.h"

#include "access/relation.h"
#include "catalog/pg_class.h"
#include "lib/stringinfo.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "../core/text.h"
#include "capture.h"
#include "compat.h"
#include "fault.h"
#include "operations.h"
#include "report.h"
#include "worker.h"

static char *
id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

/* ---- the query ---- */

static void
append_column(StringInfo query, TupleDesc desc, AttrNumber attnum)
{
	const FormData_pg_attribute *att = attnum > 0 ? TupleDescAttr(desc, attnum - 1) : NULL;

	/* An empty field has no type in CSV. */
	if (att == NULL || att->attisdropped)
		appendStringInfoString(query, ", NULL::pg_catalog.text");
	else
		appendStringInfo(query, ", %s", quote_identifier(NameStr(att->attname)));
}

/*
 * The fields of a chunk of this shape.  Of a table that others inherit from, its
 * own rows alone, as the triggers have it; a partitioned table has none.
 */
static char *
snapshot_query(const KpgCapture *capture, const KpgCaptureShape *shape)
{
	/* Whoever installs the triggers holds a lock. */
	Relation	relation = relation_open(capture->relation, NoLock);
	StringInfoData query;

	initStringInfo(&query);
	appendStringInfo(&query, "SELECT 'snapshot'::pg_catalog.text AS \"%s\", NULL::pg_catalog.int8 AS \"%s\","
					 " " INT64_FORMAT "::pg_catalog.int8 AS \"%s\", pg_catalog.now() AS \"%s\"",
					 KPG_CAPTURE_OP, KPG_CAPTURE_TXID, capture->snapshot_seq, KPG_CAPTURE_SEQ,
					 KPG_CAPTURE_CHANGED_AT);
	if (capture->old_values)
		appendStringInfo(&query, ", NULL::pg_catalog.jsonb AS \"%s\"", KPG_CAPTURE_OLD);
	for (int i = 0; i < shape->ncolumns; i++)
		append_column(&query, RelationGetDescr(relation), shape->columns[i].attnum);
	appendStringInfo(&query, " FROM %s%s",
					 relation->rd_rel->relkind == RELKIND_PARTITIONED_TABLE ? "" : "ONLY ",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
												RelationGetRelationName(relation)));
	relation_close(relation, NoLock);
	return query.data;
}

/* ---- in the session that captures ---- */

/* Is the last export that was asked for still to come? */
static bool
is_under_way(const KpgCapture *capture)
{
	KpgOutcome	outcome;
	KpgState	state;

	if (!capture->has_snapshot)
		return false;
	kpg_operations_outcome(&capture->snapshot_operation, &outcome);
	/* What another cluster has recorded is run by nobody here. */
	if (!outcome.found || outcome.foreign)
		return false;
	state = kpg_operations_state(outcome.state);
	return state == KPG_STATE_PENDING || state == KPG_STATE_RUNNING;
}

static bool
has_sent(const KpgCapture *capture)
{
	KpgMark		mark;

	kpg_outbox_read_mark(capture->id, &mark);
	return mark.snapshot != NULL;
}

/* What waits would be taken for exported, and be missing in Kusto's history. */
static void
check_nothing_waits(const KpgCapture *capture)
{
	const char *last = NULL;
	bool		waiting;

	kpg_outbox_waiting(&capture->id, &last, 1, &waiting);
	if (waiting)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("row changes of table \"%s\" wait to be sent before its rows can be exported",
						get_rel_name(capture->relation)),
				 errhint("Call kusto_flush(), and then kusto_capture() again.")));
}

static void
record_job(const KpgCapture *capture, const char *query)
{
	KpgOperationRequest request;

	kpg_worker_job_check(capture->owner);
	memset(&request, 0, sizeof(request));
	request.id = capture->snapshot_operation;
	request.owner = capture->owner;
	request.server = capture->server;
	request.database = capture->database;
	request.table_name = capture->table_name;
	request.mode = "queued";
	request.source = "capture";
	request.query = query;
	request.on_type_error = capture->on_type_error;
	request.exactly_once = KPG_EXACTLY_ONCE_AUTO;
	request.created_at = GetCurrentTimestamp();
	/* The table's columns are the capture's matter, see kpg_capture_snapshot_command(). */
	kpg_operations_submit(&request, false);
}

void
kpg_capture_snapshot_submit(KpgCapture *capture, const KpgCaptureShape *shape, pg_uuid_t *operation)
{
	KcUuid		id;
	KcError		err;

	if (is_under_way(capture))
	{
		*operation = capture->snapshot_operation;
		ereport(NOTICE,
				(errmsg("the rows of table \"%s\" are being exported already", get_rel_name(capture->relation)),
				 errdetail("That is operation %s.", id_text(operation))));
		return;
	}
	if (!capture->has_snapshot && !has_sent(capture))
		check_nothing_waits(capture);

	kpg_check(kc_uuid_random(&id, &err), &err);
	memcpy(operation->data, id.bytes, sizeof(operation->data));
	capture->has_snapshot = true;
	capture->snapshot_operation = *operation;
	capture->snapshot_seq = kpg_outbox_number() << KPG_OUTBOX_SEQ_BITS;
	record_job(capture, snapshot_query(capture, shape));
	kpg_outbox_change_capture(capture);
	kpg_worker_staged();
}

void
kpg_capture_snapshot_give_up(KpgCapture *capture)
{
	if (!capture->has_snapshot || is_under_way(capture) || has_sent(capture))
		return;
	capture->has_snapshot = false;
	kpg_outbox_change_capture(capture);
	kpg_worker_staged();
	ereport(NOTICE,
			(errmsg("the rows that table \"%s\" had have not been exported", get_rel_name(capture->relation)),
			 errdetail("Operation %s has failed or was cancelled; only changes are sent.",
					   id_text(&capture->snapshot_operation)),
			 errhint("Call kusto_capture() with snapshot => true to export them.")));
}

/* ---- in the job ---- */

static KpgCapture *
capture_of(const pg_uuid_t *operation)
{
	ListCell   *cell;

	foreach(cell, kpg_outbox_captures())
	{
		KpgCapture *capture = lfirst(cell);

		if (capture->has_snapshot &&
			memcmp(&capture->snapshot_operation, operation, sizeof(*operation)) == 0)
			return capture;
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the capture that operation %s belongs to is gone", id_text(operation)),
			 errhint("Call kusto_capture() again.")));
	return NULL;				/* not reached */
}

char *
kpg_capture_snapshot_command(const pg_uuid_t *operation)
{
	KpgCapture *capture = capture_of(operation);

	return capture->create_table
		? kpg_capture_create_merge(capture, kpg_outbox_shape(capture->id)) : NULL;
}

void
kpg_capture_snapshot_done(const pg_uuid_t *operation)
{
	kpg_outbox_skip_visible(capture_of(operation)->id);
	KPG_FAULT("snapshot-marked");
	/* Changes may wait for this. */
	kpg_worker_staged();
}
