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
	KpgProgressCounts counts;	/* of this process */
	KpgProgressSlot *slots;		/* of those that help */
	int			nslots;
	KpgProgressSlot *own;		/* where this process helps; NULL: it does not */
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

KpgProgress *
kpg_progress_help(KpgProgressSlot *slot)
{
	KpgProgress *progress = palloc0(sizeof(KpgProgress));

	progress->own = slot;
	return progress;
}

void
kpg_progress_slot_init(KpgProgressSlot *slot)
{
	pg_atomic_init_u64(&slot->rows, 0);
	pg_atomic_init_u64(&slot->raw_bytes, 0);
	pg_atomic_init_u64(&slot->compressed_bytes, 0);
	pg_atomic_init_u32(&slot->blobs, 0);
}

void
kpg_progress_lead(KpgProgress *progress, KpgProgressSlot *slots, int n)
{
	progress->slots = slots;
	progress->nslots = n;
}

void
kpg_progress_phase(KpgProgress *progress, KpgPhase phase)
{
	if (progress->own != NULL)
		return;
	progress->params[PARAM_PHASE] = phase;
	report(progress);
}

static void
tell_slot(KpgProgressSlot *slot, const KpgProgressCounts *counts)
{
	pg_atomic_write_u64(&slot->rows, counts->rows);
	pg_atomic_write_u64(&slot->raw_bytes, counts->raw_bytes);
	pg_atomic_write_u64(&slot->compressed_bytes, counts->compressed_bytes);
	pg_atomic_write_u32(&slot->blobs, (uint32) counts->blobs);
}

void
kpg_progress_refresh(KpgProgress *progress)
{
	KpgProgressCounts sum = progress->counts;

	for (int i = 0; i < progress->nslots; i++)
	{
		sum.rows += pg_atomic_read_u64(&progress->slots[i].rows);
		sum.raw_bytes += pg_atomic_read_u64(&progress->slots[i].raw_bytes);
		sum.compressed_bytes += pg_atomic_read_u64(&progress->slots[i].compressed_bytes);
		sum.blobs += (int) pg_atomic_read_u32(&progress->slots[i].blobs);
	}
	progress->params[PARAM_BYTES] = (int64) sum.raw_bytes;
	progress->params[PARAM_TUPLES] = (int64) sum.rows;
	progress->params[PARAM_COMPRESSED_BYTES] = (int64) sum.compressed_bytes;
	progress->params[PARAM_BLOBS] = sum.blobs;
	report(progress);
}

void
kpg_progress_counts(KpgProgress *progress, const KpgProgressCounts *counts)
{
	if (progress->own != NULL)
	{
		tell_slot(progress->own, counts);
		return;
	}
	progress->counts = *counts;
	kpg_progress_refresh(progress);
}
