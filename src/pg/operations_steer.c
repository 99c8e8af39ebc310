/*
 * operations_steer.c
 *	  Cancelling, retrying and purging: what users, and retention, do to
 *	  operations.
 *
 * Each locks the operation first and its blobs afterwards.  The worker locks
 * blobs first, but only while the operation is posting or posted, and those
 * states are not touched here; so no deadlock arises.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "fault.h"
#include "operations.h"
#include "operations_internal.h"
#include "report.h"

/* Operations a purge deletes by one statement. */
#define PURGE_BATCH 1000

static const char lock_with_command[] =
"SELECT o.state, o.staged_at IS NOT NULL AND o.table_command IS NOT NULL, o.blobs,"
" o.mode <> 'queued' AND (o.state = 'running' OR (o.state = 'pending' AND o.posted_at IS NOT NULL))"
" FROM kusto.operation o WHERE o.id = $1 FOR NO KEY UPDATE";

static const char count_earlier[] =
"SELECT count(*) FILTER (WHERE b.state IN ('succeeded', 'partially_succeeded', 'skipped')),"
" count(*) FILTER (WHERE b.state = 'staged' AND b.post_attempts > 0)"
" FROM kusto.blob b WHERE b.operation_id = $1";

static const char count_doubtful[] =
"SELECT count(*) FROM kusto.blob b"
" WHERE b.operation_id = $1 AND b.state = 'unknown' AND NOT b.exactly_once";

/*
 * The bounds are in the order of the index; what is locked is being retried,
 * or purged by somebody else.  Of row changes that have not landed nothing else
 * tells: only who is asked for by name forgets them.
 */
static const char purge_some[] =
"WITH old AS MATERIALIZED (SELECT o.id, o.finished_at FROM kusto.operation o"
" WHERE o.finished_at >= $1 AND o.finished_at < $2"
" AND CASE WHEN $3 IS NULL"
" THEN o.source <> 'capture' OR o.state NOT IN ('failed', 'partially_succeeded', 'unknown')"
" ELSE pg_has_role($3, o.owner, 'USAGE') END"
" ORDER BY o.finished_at LIMIT $4 FOR UPDATE SKIP LOCKED),"
" gone AS (DELETE FROM kusto.operation o USING old WHERE o.id = old.id RETURNING 1)"
" SELECT (SELECT count(*) FROM gone), count(*), max(old.finished_at) FROM old";

static char *
id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

/* ---- which one ---- */

static void
raise_missing(const pg_uuid_t *id)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("operation %s does not exist", id_text(id)),
			 errhint("The view kusto.operations lists the operations that you may see.")));
}

void
kpg_operations_find(const pg_uuid_t *id, KpgOutcome *outcome)
{
	kpg_operations_outcome(id, outcome);
	if (!outcome->found || !outcome->visible_to_user)
		raise_missing(id);
}

void
kpg_operations_refuse_foreign(const pg_uuid_t *id, const KpgOutcome *outcome)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("operation %s was recorded by another cluster or database", id_text(id)),
			 errdetail("This one is a copy, or was upgraded, and does not go on with it: its state stays \"%s\".",
					   outcome->state),
			 errhint("If this database has taken the other's place, adopt its operations as docs/operations.md tells.")));
}

static void
require_steerable(const pg_uuid_t *id)
{
	KpgOutcome	outcome;

	kpg_operations_find(id, &outcome);
	if (!outcome.steered_by_user)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for operation %s", id_text(id)),
				 errdetail("Only the role that asked for it, and roles with its privileges, may do that.")));
	if (outcome.foreign)
		kpg_operations_refuse_foreign(id, &outcome);
}

typedef struct LockedOperation
{
	KpgState	state;
	bool		has_command;	/* and was staged with it */
	bool		has_blobs;
	bool		perhaps_ingested;	/* by a job, whose mode does not wait for the commit */
} LockedOperation;

/* Inside a scope. */
static void
lock_for_steering(const pg_uuid_t *id, LockedOperation *operation)
{
	KpgSqlArg	arg = kpg_operations_uuid_arg(id);
	bool		isnull;

	/* It was there a moment ago, but perhaps not in this transaction's snapshot. */
	if (kpg_operations_execute(lock_with_command, &arg, 1, SPI_OK_SELECT, 0) == 0)
	{
		if (IsolationUsesXactSnapshot())
			ereport(ERROR,
					(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
					 errmsg("could not serialize access due to concurrent update")));
		raise_missing(id);
	}
	operation->state = kpg_operations_state(kpg_operations_string(CurrentMemoryContext, 0, 1));
	operation->has_command = DatumGetBool(kpg_operations_value(0, 2, &isnull));
	operation->has_blobs = DatumGetInt32(kpg_operations_value(0, 3, &isnull)) > 0;
	operation->perhaps_ingested = DatumGetBool(kpg_operations_value(0, 4, &isnull));
}

static int64
count_at(int column)
{
	bool		isnull;

	return DatumGetInt64(kpg_operations_value(0, column, &isnull));
}

/* ---- cancelling ---- */

/* What an earlier attempt has posted stays in Kusto; the row says so.  Inside a scope. */
static bool
note_earlier(const pg_uuid_t *id)
{
	KpgSqlArg	arg = kpg_operations_uuid_arg(id);
	KpgFailure	failure = {.message = "cancelled before it was posted again"};
	int64		landed;
	int64		doubtful;

	(void) kpg_operations_execute(count_earlier, &arg, 1, SPI_OK_SELECT, 0);
	landed = count_at(1);
	doubtful = count_at(2);
	if (landed == 0 && doubtful == 0)
		return false;
	failure.details = psprintf("An earlier attempt has brought %lld of its blobs to Kusto; it has tried %lld more.",
							   (long long) landed, (long long) doubtful);
	(void) kpg_operations_move_blobs(id, KPG_STATE_CANCELLED);
	kpg_operations_note(id, &failure);
	return true;
}

/* The same of a job.  Inside a scope. */
static bool
note_run(const pg_uuid_t *id)
{
	KpgFailure	failure = {
		.message = "cancelled after its query had begun to run",
		.details = "In its mode a job sends the result before it commits: Kusto may have it.",
		.hint = KPG_DOUBT_HINT
	};

	kpg_operations_note(id, &failure);
	return true;
}

bool
kpg_operations_cancel(const pg_uuid_t *id, KpgState *before)
{
	LockedOperation operation;
	KpgSqlScope scope;
	bool		noted;
	bool		cancelled = false;

	require_steerable(id);
	kpg_operations_enter(&scope);
	lock_for_steering(id, &operation);
	*before = operation.state;
	if (operation.state == KPG_STATE_PENDING || operation.state == KPG_STATE_RUNNING ||
		operation.state == KPG_STATE_STAGED)
	{
		noted = operation.perhaps_ingested ? note_run(id) : note_earlier(id);
		(void) kpg_operations_move_blobs(id, KPG_STATE_CANCELLED);
		cancelled = kpg_operations_move(id, KPG_STATE_CANCELLED, noted);
	}
	kpg_operations_leave(&scope);
	return cancelled;
}

/* ---- retrying ---- */

static void
raise_nothing_to_retry(const pg_uuid_t *id, const LockedOperation *operation)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("operation %s has nothing to post again", id_text(id)),
			 operation->has_blobs
			 ? errdetail("Each of its blobs is in Kusto, at least in part.")
			 : errdetail("None of its result was staged, and a retry never runs a query."),
			 operation->has_blobs
			 ? errhint("Export what is missing.")
			 : errhint("Run the export again.")));
}

bool
kpg_operations_retry(const pg_uuid_t *id, KpgRetried *retried)
{
	KpgSqlArg	arg = kpg_operations_uuid_arg(id);
	LockedOperation operation;
	KpgSqlScope scope;
	bool		staged = false;

	require_steerable(id);
	kpg_operations_enter(&scope);
	lock_for_steering(id, &operation);
	retried->before = operation.state;
	retried->blobs = 0;
	retried->doubtful = 0;
	if (operation.state == KPG_STATE_FAILED || operation.state == KPG_STATE_UNKNOWN ||
		operation.state == KPG_STATE_PARTIALLY_SUCCEEDED)
	{
		(void) kpg_operations_execute(count_doubtful, &arg, 1, SPI_OK_SELECT, 0);
		retried->doubtful = count_at(1);
		retried->blobs = kpg_operations_move_blobs(id, KPG_STATE_STAGED);
		if (retried->blobs == 0 && (operation.has_blobs || !operation.has_command))
			raise_nothing_to_retry(id, &operation);
		staged = kpg_operations_move(id, KPG_STATE_STAGED, false);
	}
	kpg_operations_leave(&scope);
	return staged;
}

/* ---- purging ---- */

int64
kpg_operations_purge(KpgPurge *purge, TimestampTz before, Oid member, bool *more)
{
	TimestampTz from = purge->begun ? purge->finished_at : DT_NOBEGIN;
	KpgSqlScope scope;
	int64		deleted;

	kpg_operations_enter(&scope);
	{
		KpgSqlArg	args[] = {
			kpg_operations_arg(TIMESTAMPTZOID, TimestampTzGetDatum(from)),
			kpg_operations_arg(TIMESTAMPTZOID, TimestampTzGetDatum(before)),
			kpg_operations_arg(OIDOID, ObjectIdGetDatum(member)),
			kpg_operations_arg(INT4OID, Int32GetDatum(PURGE_BATCH))
		};
		bool		isnull;

		args[2].isnull = !OidIsValid(member);
		(void) kpg_operations_execute(purge_some, args, lengthof(args), SPI_OK_SELECT, 0);
		deleted = count_at(1);
		*more = count_at(2) == PURGE_BATCH && deleted > 0;
		if (*more)
		{
			purge->begun = true;
			purge->finished_at = DatumGetTimestampTz(kpg_operations_value(0, 3, &isnull));
		}
	}
	kpg_operations_leave(&scope);
	KPG_FAULT("purge-written");
	return deleted;
}
