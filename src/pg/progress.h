/*
 * progress.h
 *	  What an export that is under way has done so far, for others to see.
 */
#ifndef KPG_PROGRESS_H
#define KPG_PROGRESS_H

#include "postgres.h"

#include "port/atomics.h"
#include "utils/uuid.h"

/* The view kusto.progress names them. */
typedef enum KpgPhase
{
	KPG_PHASE_QUERY = 1,		/* also while uploads hold it up */
	KPG_PHASE_UPLOAD,			/* of what is left */
	KPG_PHASE_STAGING,			/* recording it */
	KPG_PHASE_SENDING			/* Kusto is asked to take it at once */
} KpgPhase;

typedef struct KpgProgressCounts
{
	uint64		rows;
	uint64		raw_bytes;
	uint64		compressed_bytes;
	int			blobs;			/* committed in the service's storage */
} KpgProgressCounts;

/* The counts of one of several processes, in shared memory. */
typedef struct KpgProgressSlot
{
	pg_atomic_uint64 rows;
	pg_atomic_uint64 raw_bytes;
	pg_atomic_uint64 compressed_bytes;
	pg_atomic_uint32 blobs;
} KpgProgressSlot;

typedef struct KpgProgress KpgProgress;

/*
 * Appear in kusto.progress, in place of whatever command this process has
 * reported on; kpg_progress_end() puts that back.  An abort of the transaction
 * ends all of it.  Lives in the current memory context.
 */
extern KpgProgress *kpg_progress_begin(const pg_uuid_t *operation);
extern void kpg_progress_end(KpgProgress *progress);

/*
 * Of a process that helps: its counts go into the slot, and whoever leads
 * reports them with its own.
 */
extern KpgProgress *kpg_progress_help(KpgProgressSlot *slot);
extern void kpg_progress_slot_init(KpgProgressSlot *slot);

/* Who leads: count what these n processes report from now on; 0: no more. */
extern void kpg_progress_lead(KpgProgress *progress, KpgProgressSlot *slots, int n);

/* Report anew, because others have gone on. */
extern void kpg_progress_refresh(KpgProgress *progress);

/* Cheap, but not for each row. */
extern void kpg_progress_phase(KpgProgress *progress, KpgPhase phase);
extern void kpg_progress_counts(KpgProgress *progress, const KpgProgressCounts *counts);

#endif							/* KPG_PROGRESS_H */
