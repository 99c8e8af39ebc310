/*
 * outcome_wait.c
 *	  Wait until an operation has ended.
 *
 * Sleeps on the latch until somebody ends the operation (waiters.h).  Looks
 * also every few seconds: an end that nobody announces is seen then, and a
 * worker that is gone without a successor is started anew.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "executor/spi.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "operations.h"
#include "outcome_wait.h"
#include "wait.h"
#include "waiters.h"
#include "worker.h"

#define CHECK_MS			5000
/* On a standby nobody announces anything. */
#define STANDBY_CHECK_MS	500

/* One look; result in the caller's context. */
static char *
look(const pg_uuid_t *id, bool *finished)
{
	KpgOutcome	outcome;

	kpg_operations_find(id, &outcome);
	if (outcome.own_uncommitted && !outcome.finished)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("operation %s belongs to the current transaction",
						DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)))),
				 errdetail("Its data is sent to Kusto after the commit."),
				 errhint("COMMIT first, or use CALL kusto_ingest_and_wait().")));
	if (outcome.foreign && !outcome.finished)
		kpg_operations_refuse_foreign(id, &outcome);
	*finished = outcome.finished;
	return outcome.state;
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
	/* Else it would hold back VACUUM while we sleep. */
	InvalidateCatalogSnapshot();
	return state;
}

/* The statement's own snapshot and locks go with the transaction. */
static void
begin_anew(MemoryContext context)
{
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect_ext failed");
	SPI_commit();
	/* Needed before PostgreSQL 15. */
	SPI_start_transaction();
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	MemoryContextSwitchTo(context);
}

/* With a snapshot for each look only, whatever the default isolation level. */
static void
begin_to_look(MemoryContext context)
{
	begin_anew(context);
	XactIsoLevel = XACT_READ_COMMITTED;
}

typedef struct Wait
{
	const pg_uuid_t *id;
	MemoryContext context;		/* of the result */
	int64		deadline_ms;	/* PG_INT64_MAX: never */
	int64		check_ms;		/* next look that nobody asked for */
} Wait;

static int64
now_ms(void)
{
	return kc_clock_system.monotonic_ms(kc_clock_system.arg);
}

/*
 * Look, then wait until there may be something new.  NULL: look again.  The
 * look comes after the announcement, lest an end be missed in between, and
 * nothing that resets the latch comes between look and sleep.
 */
static char *
look_and_wait(Wait *wait)
{
	bool		finished;
	char	   *state = look_in(wait->context, wait->id, &finished);
	int64		now = now_ms();
	int			happened;

	if (finished || now >= wait->deadline_ms)
		return state;
	pfree(state);

	if (now >= wait->check_ms)
	{
		wait->check_ms = now + (RecoveryInProgress() ? STANDBY_CHECK_MS : CHECK_MS);
		(void) kpg_worker_ensure();
		return NULL;
	}
	do
	{
		happened = kpg_wait_once(Min(wait->check_ms, wait->deadline_ms) - now, KPG_WAIT_OUTCOME);
		now = now_ms();
	} while (!(happened & WL_LATCH_SET) && now < wait->check_ms && now < wait->deadline_ms);
	return NULL;
}

char *
kpg_outcome_wait(const pg_uuid_t *id, int64 timeout_ms, bool commit_between)
{
	int64		now = now_ms();
	Wait		wait = {
		.id = id,
		.context = CurrentMemoryContext,
		.deadline_ms = timeout_ms < 0 ? PG_INT64_MAX : now + timeout_ms,
		.check_ms = now
	};
	char	   *state;

	/* An error ends the transaction, and with it the announcement. */
	do
	{
		if (commit_between)
			begin_to_look(wait.context);
		kpg_waiters_announce(id);
		state = look_and_wait(&wait);
		kpg_waiters_withdraw(id);
	} while (state == NULL);
	/* What the caller does next is not ours. */
	if (commit_between)
		begin_anew(wait.context);
	return state;
}
