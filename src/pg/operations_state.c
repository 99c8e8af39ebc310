/*
 * operations_state.c
 *	  The state machine of operations and blobs.
 *
 * Every change of a state is made by move(), which checks it against the legal
 * moves twice: by assertion, and in the statement's own WHERE, so that of two
 * actors one finds no row.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "operations.h"
#include "operations_internal.h"
#include "report.h"
#include "waiters.h"

static const char *const state_names[KPG_STATE_COUNT] = {
	[KPG_STATE_PENDING] = "pending",
	[KPG_STATE_RUNNING] = "running",
	[KPG_STATE_STAGED] = "staged",
	[KPG_STATE_POSTING] = "posting",
	[KPG_STATE_POSTED] = "posted",
	[KPG_STATE_SUCCEEDED] = "succeeded",
	[KPG_STATE_PARTIALLY_SUCCEEDED] = "partially_succeeded",
	[KPG_STATE_FAILED] = "failed",
	[KPG_STATE_SKIPPED] = "skipped",
	[KPG_STATE_UNKNOWN] = "unknown",
	[KPG_STATE_CANCELLED] = "cancelled"
};

#define FROM(state) (1u << KPG_STATE_##state)

/* For each state, the states that may come right before it. */
static const uint32 operation_moves[KPG_STATE_COUNT] = {
	[KPG_STATE_PENDING] = FROM(RUNNING),
	[KPG_STATE_RUNNING] = FROM(PENDING),
	[KPG_STATE_STAGED] = FROM(RUNNING) | FROM(FAILED) | FROM(UNKNOWN) | FROM(PARTIALLY_SUCCEEDED),
	[KPG_STATE_POSTING] = FROM(STAGED),
	[KPG_STATE_POSTED] = FROM(POSTING),
	[KPG_STATE_SUCCEEDED] = FROM(RUNNING) | FROM(POSTED),
	[KPG_STATE_PARTIALLY_SUCCEEDED] = FROM(POSTED),
	[KPG_STATE_FAILED] = FROM(PENDING) | FROM(RUNNING) | FROM(POSTING) | FROM(POSTED),
	[KPG_STATE_SKIPPED] = FROM(RUNNING) | FROM(POSTED),
	[KPG_STATE_UNKNOWN] = FROM(PENDING) | FROM(RUNNING) | FROM(POSTED),
	[KPG_STATE_CANCELLED] = FROM(PENDING) | FROM(RUNNING) | FROM(STAGED)
};

/*
 * A blob whose post is in doubt is unknown without ever having been posted, and
 * one that was unknown and is given up before its retry is so again.
 */
static const uint32 blob_moves[KPG_STATE_COUNT] = {
	[KPG_STATE_STAGED] = FROM(FAILED) | FROM(UNKNOWN),
	[KPG_STATE_POSTING] = FROM(STAGED) | FROM(POSTING),
	[KPG_STATE_POSTED] = FROM(POSTING),
	[KPG_STATE_SUCCEEDED] = FROM(POSTED),
	[KPG_STATE_PARTIALLY_SUCCEEDED] = FROM(POSTED),
	[KPG_STATE_FAILED] = FROM(STAGED) | FROM(POSTING) | FROM(POSTED),
	[KPG_STATE_SKIPPED] = FROM(POSTED),
	[KPG_STATE_UNKNOWN] = FROM(STAGED) | FROM(POSTING) | FROM(POSTED),
	[KPG_STATE_CANCELLED] = FROM(STAGED)
};

static const char update_operation[] =
"UPDATE kusto.operation SET state = $1,"
" attempts = attempts + CASE WHEN $1 = 'posting' THEN 1 ELSE 0 END,"
" runs = runs + CASE WHEN $1 = 'running' THEN 1 ELSE 0 END,"
" started_at = CASE WHEN $1 = 'running' THEN clock_timestamp() ELSE started_at END,"
" staged_at = CASE WHEN $1 = 'staged' THEN clock_timestamp() ELSE staged_at END,"
" posted_at = CASE $1 WHEN 'posted' THEN clock_timestamp() WHEN 'staged' THEN NULL ELSE posted_at END,"
" finished_at = CASE WHEN $2 THEN clock_timestamp() END,"
" error_code = CASE WHEN $3 THEN error_code END,"
" error_message = CASE WHEN $3 THEN error_message END,"
" details = CASE WHEN $3 THEN details END,"
" hint = CASE WHEN $3 THEN hint END,"
" activity_id = CASE WHEN $3 THEN activity_id END"
" WHERE id = $4 AND state = ANY ($5)";

/*
 * A blob that is staged again starts anew, but for its status table: one blob
 * has one row there.  When what became of it is unknown, posted_at tells that it
 * has perhaps been posted.
 */
static const char update_blob[] =
"UPDATE kusto.blob SET state = $1,"
" post_attempts = post_attempts + CASE WHEN $1 = 'posting' THEN 1 ELSE 0 END,"
" posted_at = CASE WHEN $1 = 'posted' OR ($1 = 'staged' AND state = 'unknown' AND posted_at IS NULL)"
" THEN clock_timestamp() WHEN $1 <> 'staged' OR state = 'unknown' THEN posted_at END,"
" finished_at = CASE WHEN $2 THEN clock_timestamp() END,"
" status_table = coalesce($3, status_table),"
" error_code = CASE WHEN $1 <> 'staged' THEN coalesce($6, error_code) END,"
" failure_status = CASE WHEN $1 <> 'staged' THEN coalesce($7, failure_status) END,"
" details = CASE WHEN $1 <> 'staged' THEN coalesce($8, details) END,"
" activity_id = CASE WHEN $1 <> 'staged' THEN coalesce($9, activity_id) END,"
" kusto_operation_id = CASE WHEN $1 <> 'staged' THEN coalesce($10, kusto_operation_id) END"
" WHERE operation_id = $4 AND state = ANY ($5) AND ($11 IS NULL OR ordinal = $11)";

static const char tell_blob[] =
"UPDATE kusto.blob SET status_table = coalesce($3, status_table),"
" error_code = coalesce($4, error_code), failure_status = coalesce($5, failure_status),"
" details = coalesce($6, details), activity_id = coalesce($7, activity_id)"
" WHERE operation_id = $1 AND ordinal = $2 AND finished_at IS NULL";

/* The columns tell of what hinders; the first blob that failed has the word. */
static const char note_failure[] =
"UPDATE kusto.operation SET error_code = $2, error_message = $3, details = $4, hint = $5,"
" activity_id = $6"
" WHERE id = $1 AND finished_at IS NULL AND NOT EXISTS (SELECT FROM kusto.blob b"
" WHERE b.operation_id = $1 AND b.state IN ('failed', 'partially_succeeded', 'unknown'))";

static const char count_blobs[] =
"SELECT b.state, count(*)::integer FROM kusto.blob b WHERE b.operation_id = $1 GROUP BY 1";

static const char lock_operation[] =
"SELECT o.state FROM kusto.operation o WHERE o.id = $1 FOR NO KEY UPDATE";

const char *
kpg_operations_state_name(KpgState state)
{
	Assert(state >= 0 && state < KPG_STATE_COUNT);
	return state_names[state];
}

KpgState
kpg_operations_state(const char *name)
{
	for (int i = 0; i < KPG_STATE_COUNT; i++)
	{
		if (strcmp(name, state_names[i]) == 0)
			return (KpgState) i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("unknown state \"%s\" in schema kusto", name)));
	return KPG_STATE_UNKNOWN;	/* not reached */
}

bool
kpg_operations_is_final(KpgState state)
{
	return state >= KPG_STATE_SUCCEEDED;
}

/* The names of the states in a set of FROM() bits, as text[]. */
static KpgSqlArg
states_arg(uint32 states)
{
	Datum		names[KPG_STATE_COUNT];
	int			n = 0;

	for (int i = 0; i < KPG_STATE_COUNT; i++)
	{
		if (states & (1u << i))
			names[n++] = CStringGetTextDatum(state_names[i]);
	}
	return kpg_operations_arg(TEXTARRAYOID,
							  PointerGetDatum(construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT)));
}

static KpgSqlArg
said_arg(const char *text, bool utf8)
{
	return kpg_operations_text_arg(text != NULL && utf8 ? kpg_report_text(text) : text);
}

#define THE_OPERATION	0
#define ALL_BLOBS		(-1)

/*
 * The one place that writes a state.  Inside a scope.  Returns how many have
 * moved.  ordinal: of a blob, or THE_OPERATION, or ALL_BLOBS that may move so;
 * keep_error is for operations, news for blobs.
 */
static uint64
move(const pg_uuid_t *id, int ordinal, KpgState to, bool keep_error, const KpgBlobNews *news)
{
	static const KpgBlobNews no_news = {0};
	bool		is_operation = ordinal == THE_OPERATION;
	uint32		from = is_operation ? operation_moves[to] : blob_moves[to];
	KpgSqlArg	ordinal_arg = kpg_operations_arg(INT4OID, Int32GetDatum(ordinal));
	uint64		moved;

	Assert(from != 0);
	if (news == NULL)
		news = &no_news;
	ordinal_arg.isnull = ordinal == ALL_BLOBS;

	const KpgSqlArg args[] = {
		kpg_operations_text_arg(state_names[to]),
		kpg_operations_arg(BOOLOID, BoolGetDatum(kpg_operations_is_final(to))),
		is_operation ? kpg_operations_arg(BOOLOID, BoolGetDatum(keep_error))
		: kpg_operations_text_arg(news->status_table),
		kpg_operations_uuid_arg(id),
		states_arg(from),
		said_arg(news->error_code, news->utf8),
		said_arg(news->failure_status, news->utf8),
		said_arg(news->details, news->utf8),
		said_arg(news->activity_id, news->utf8),
		said_arg(news->kusto_operation_id, news->utf8),
		ordinal_arg
	};

	if (!is_operation)
		return kpg_operations_execute(update_blob, args, lengthof(args), SPI_OK_UPDATE, 0);
	moved = kpg_operations_execute(update_operation, args, 5, SPI_OK_UPDATE, 0);
	if (moved > 0 && kpg_operations_is_final(to))
		kpg_waiters_ended(id);
	return moved;
}

bool
kpg_operations_move(const pg_uuid_t *id, KpgState to, bool keep_error)
{
	return move(id, THE_OPERATION, to, keep_error, NULL) > 0;
}

uint64
kpg_operations_move_blobs(const pg_uuid_t *id, KpgState to)
{
	return move(id, ALL_BLOBS, to, false, NULL);
}

bool
kpg_operations_claim(const pg_uuid_t *id)
{
	KpgSqlScope scope;
	bool		moved;

	kpg_operations_enter(&scope);
	moved = move(id, THE_OPERATION, KPG_STATE_POSTING, false, NULL) > 0;
	kpg_operations_leave(&scope);
	return moved;
}

bool
kpg_operations_move_blob(const pg_uuid_t *id, int ordinal, KpgState to, const KpgBlobNews *news)
{
	KpgSqlScope scope;
	bool		moved;

	Assert(ordinal > 0);
	kpg_operations_enter(&scope);
	moved = move(id, ordinal, to, false, news) > 0;
	kpg_operations_leave(&scope);
	return moved;
}

void
kpg_operations_tell_blob(const pg_uuid_t *id, int ordinal, const KpgBlobNews *news)
{
	KpgSqlScope scope;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_uuid_arg(id),
			kpg_operations_arg(INT4OID, Int32GetDatum(ordinal)),
			kpg_operations_text_arg(news->status_table),
			said_arg(news->error_code, news->utf8),
			said_arg(news->failure_status, news->utf8),
			said_arg(news->details, news->utf8),
			said_arg(news->activity_id, news->utf8)
		};

		(void) kpg_operations_execute(tell_blob, args, lengthof(args), SPI_OK_UPDATE, 0);
	}
	kpg_operations_leave(&scope);
}

void
kpg_operations_note(const pg_uuid_t *id, const KpgFailure *failure)
{
	KpgSqlScope scope;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_uuid_arg(id),
			said_arg(failure->error_code, failure->utf8),
			said_arg(failure->message, failure->utf8),
			said_arg(failure->details, failure->utf8),
			kpg_operations_text_arg(failure->hint),
			said_arg(failure->activity_id, failure->utf8)
		};

		(void) kpg_operations_execute(note_failure, args, lengthof(args), SPI_OK_UPDATE, 0);
	}
	kpg_operations_leave(&scope);
}

/* ---- what follows from the blobs ---- */

typedef struct BlobCounts
{
	int			by_state[KPG_STATE_COUNT];
	int			total;
} BlobCounts;

static void
read_counts(const pg_uuid_t *id, BlobCounts *counts)
{
	KpgSqlArg	arg = kpg_operations_uuid_arg(id);
	uint64		n = kpg_operations_execute(count_blobs, &arg, 1, SPI_OK_SELECT, 0);

	memset(counts, 0, sizeof(*counts));
	for (uint64 i = 0; i < n; i++)
	{
		KpgState	state = kpg_operations_state(kpg_operations_string(CurrentMemoryContext, i, 1));
		bool		isnull;
		int			count = DatumGetInt32(kpg_operations_value(i, 2, &isnull));

		counts->by_state[state] = count;
		counts->total += count;
	}
}

/*
 * What an operation has come to, all of whose blobs are finished.  Success and
 * failure together are known to be partial, whatever else is unknown; without
 * that, one unknown blob makes the whole unknown.
 */
static KpgState
verdict(const BlobCounts *counts)
{
	int			succeeded = counts->by_state[KPG_STATE_SUCCEEDED];
	int			skipped = counts->by_state[KPG_STATE_SKIPPED];
	int			partial = counts->by_state[KPG_STATE_PARTIALLY_SUCCEEDED];
	int			failed = counts->by_state[KPG_STATE_FAILED] + counts->by_state[KPG_STATE_CANCELLED];

	if (partial > 0 || (failed > 0 && succeeded + skipped > 0))
		return KPG_STATE_PARTIALLY_SUCCEEDED;
	if (counts->by_state[KPG_STATE_UNKNOWN] > 0)
		return KPG_STATE_UNKNOWN;
	if (failed > 0)
		return KPG_STATE_FAILED;
	if (skipped > 0 && succeeded == 0)
		return KPG_STATE_SKIPPED;
	return KPG_STATE_SUCCEEDED;
}

static KpgState
settle(const pg_uuid_t *id, KpgState state, bool gave_up)
{
	BlobCounts	counts;
	KpgState	end;
	bool		keep_error;
	int			unposted;

	read_counts(id, &counts);
	unposted = counts.by_state[KPG_STATE_STAGED] + counts.by_state[KPG_STATE_POSTING];
	if (unposted > 0)
		return state;

	end = counts.total == 0 && gave_up ? KPG_STATE_FAILED : verdict(&counts);
	keep_error = end != KPG_STATE_SUCCEEDED && end != KPG_STATE_SKIPPED;
	if (state == KPG_STATE_POSTING &&
		(end != KPG_STATE_FAILED || counts.by_state[KPG_STATE_POSTED] > 0) &&
		move(id, THE_OPERATION, KPG_STATE_POSTED, keep_error, NULL) > 0)
		state = KPG_STATE_POSTED;
	if (counts.by_state[KPG_STATE_POSTED] > 0)
		return state;
	return move(id, THE_OPERATION, end, keep_error, NULL) > 0 ? end : state;
}

KpgState
kpg_operations_settle(const pg_uuid_t *id, bool gave_up)
{
	KpgSqlScope scope;
	KpgSqlArg	arg;
	KpgState	state = KPG_STATE_CANCELLED;

	kpg_operations_enter(&scope);
	arg = kpg_operations_uuid_arg(id);
	if (kpg_operations_execute(lock_operation, &arg, 1, SPI_OK_SELECT, 0) == 1)
	{
		state = kpg_operations_state(kpg_operations_string(CurrentMemoryContext, 0, 1));
		if (state == KPG_STATE_POSTING || state == KPG_STATE_POSTED)
			state = settle(id, state, gave_up);
	}
	kpg_operations_leave(&scope);
	return state;
}
