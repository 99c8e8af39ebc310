/*
 * progress.c
 *	  What an export that is under way has done so far, for others to see.
 *
 * PostgreSQL has progress counters in each process's entry of the activity
 * array, live, with its own rules of who may read them, and gone with the
 * transaction.  They belong to a closed list of commands: an export is a COPY
 * TO for pg_stat_progress_copy, whose parameters have their meanings here, and
 * what else we tell is in parameters that COPY leaves alone.  The view
 * kusto.progress knows our rows by MAGIC.
 *
 * A process reports on one command at a time.  One that runs inside the query
 * takes the counters over and leaves them empty, as does a subtransaction that
 * aborts: we take them back at the next report.  PostgreSQL 13 does not know
 * COPY's progress, and there all of this does nothing.  Nothing here raises.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "compat.h"
#include "progress.h"

/* Parameter N + 1 of pg_stat_get_progress_info(), for the view in the SQL script. */
enum
{
	PARAM_BYTES = 0,			/* raw; PROGRESS_COPY_BYTES_PROCESSED */
	PARAM_TUPLES = 2,			/* PROGRESS_COPY_TUPLES_PROCESSED */
	PARAM_COMMAND = 4,			/* PROGRESS_COPY_COMMAND */
	PARAM_TYPE = 5,				/* PROGRESS_COPY_TYPE */
	/* ours */
	PARAM_PHASE = 13,
	PARAM_COMPRESSED_BYTES = 14,
	PARAM_BLOBS = 15,
	PARAM_STARTED = 16,
	PARAM_ID_HIGH = 17,
	PARAM_ID_LOW = 18,
	PARAM_MAGIC = 19
};

#define COMMAND_COPY_TO 2		/* PROGRESS_COPY_COMMAND_TO */
#define TYPE_CALLBACK	4		/* PROGRESS_COPY_TYPE_CALLBACK */
#define MAGIC			INT64CONST(0x6b7573746f313030)	/* "kusto100" */

struct KpgProgress
{
	int64		params[PGSTAT_NUM_PROGRESS_PARAM];
	KpgCompatProgress before;	/* what the process has reported on */
};

static int64
half_of(const pg_uuid_t *id, int offset)
{
	uint64		half = 0;

	for (int i = 0; i < UUID_LEN / 2; i++)
		half = half << 8 | id->data[offset + i];
	return (int64) half;
}

static bool
is_ours(const KpgProgress *progress)
{
	const int64 *params = kpg_compat_progress_copy_params();

	return params != NULL &&
		params[PARAM_MAGIC] == MAGIC &&
		params[PARAM_ID_HIGH] == progress->params[PARAM_ID_HIGH] &&
		params[PARAM_ID_LOW] == progress->params[PARAM_ID_LOW];
}

static void
report(const KpgProgress *progress)
{
	if (!is_ours(progress))
		kpg_compat_progress_start_copy();
	kpg_compat_progress_set(progress->params);
}

KpgProgress *
kpg_progress_begin(const pg_uuid_t *operation)
{
	KpgProgress *progress = palloc0(sizeof(KpgProgress));
	int64	   *params = progress->params;

	params[PARAM_COMMAND] = COMMAND_COPY_TO;
	params[PARAM_TYPE] = TYPE_CALLBACK;
	params[PARAM_PHASE] = KPG_PHASE_QUERY;
	params[PARAM_STARTED] = GetCurrentTimestamp();
	params[PARAM_ID_HIGH] = half_of(operation, 0);
	params[PARAM_ID_LOW] = half_of(operation, UUID_LEN / 2);
	params[PARAM_MAGIC] = MAGIC;
	kpg_compat_progress_save(&progress->before);
	report(progress);
	return progress;
}

void
kpg_progress_end(KpgProgress *progress)
{
	kpg_compat_progress_restore(&progress->before);
	pfree(progress);
}

void
kpg_progress_phase(KpgProgress *progress, KpgPhase phase)
{
	progress->params[PARAM_PHASE] = phase;
	report(progress);
}

void
kpg_progress_counts(KpgProgress *progress, const KpgProgressCounts *counts)
{
	progress->params[PARAM_BYTES] = (int64) counts->raw_bytes;
	progress->params[PARAM_TUPLES] = (int64) counts->rows;
	progress->params[PARAM_COMPRESSED_BYTES] = (int64) counts->compressed_bytes;
	progress->params[PARAM_BLOBS] = counts->blobs;
	report(progress);
}
