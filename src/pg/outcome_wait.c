/*
 * outcome_wait.c
 *	  Wait until an operation has ended.
 *
 * Looks again at growing intervals: the worker cannot know who waits, and a
 * look is one index lookup.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "operations.h"
#include "outcome_wait.h"
#include "wait.h"
#include "worker.h"

#define FIRST_PAUSE_MS	5
#define LAST_PAUSE_MS	250
#define WORKER_CHECK_MS 5000	/* is there somebody to wait for? */

static char *
id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

/* One look; result in the caller's context. */
static char *
look(const pg_uuid_t *id, bool *finished)
{
	KpgOutcome	outcome;

	kpg_operations_outcome(id, &outcome);

	/* That an operation exists is not for everybody to know. */
	if (!outcome.found || !outcome.visible_to_user)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("operation %s does not exist", id_text(id)),
				 errhint("The view kusto.operations lists the operations that you may see.")));
	if (outcome.own_uncommitted && !outcome.finished)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("operation %s belongs to the current transaction", id_text(id)),
				 errdetail("Its data is sent to Kusto after the commit."),
				 errhint("COMMIT first, or use CALL kusto_ingest_and_wait().")));
	if (outcome.foreign && !outcome.finished)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("operation %s was recorded by another cluster or database", id_text(id)),
				 errdetail("This one is a copy, or was upgraded, and does not go on with it: its state stays \"%s\".",
						   outcome.state),
				 errhint("If this database has taken the other's place, adopt its operations as docs/operations.md tells.")));
	*finished = outcome.finished;
	return outcome.state;
}

/*
 * The statement's own snapshot and the locks of the look go with the
 * transaction; the next one has none until the next look.
 */
static void
end_transaction(void)
{
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect_ext failed");
	SPI_commit();
	/* Needed before PostgreSQL 15. */
	SPI_start_transaction();
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

static char *
look_in(MemoryContext result_context, const pg_uuid_t *id, bool *finished)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest look",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(scratch);
	char	   *state = look(id, finished);

	state = MemoryContextStrdup(result_context, state);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	return state;
}

char *
kpg_outcome_wait(const pg_uuid_t *id, int64 timeout_ms, bool commit_between)
{
	MemoryContext context = CurrentMemoryContext;
	const KcClock *clock = &kc_clock_system;
	int64		started = clock->monotonic_ms(clock->arg);
	int64		worker_check = started;
	int64		pause_ms = FIRST_PAUSE_MS;

	for (;;)
	{
		bool		finished;
		char	   *state = look_in(context, id, &finished);
		int64		now = clock->monotonic_ms(clock->arg);
		int64		left_ms = timeout_ms < 0 ? PG_INT64_MAX : timeout_ms - (now - started);

		if (finished || left_ms <= 0)
			return state;
		pfree(state);

		if (now >= worker_check)
		{
			(void) kpg_worker_ensure();
			worker_check = now + WORKER_CHECK_MS;
		}
		if (commit_between)
		{
			end_transaction();
			MemoryContextSwitchTo(context);
		}
		(void) kpg_wait_once(Min(pause_ms, left_ms), KPG_WAIT_OUTCOME);
		pause_ms = Min(pause_ms + pause_ms / 2, LAST_PAUSE_MS);
	}
}
