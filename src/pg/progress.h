/*
 * progress.h
 *	  What an export that is under way has done so far, for others to see.
 */
#ifndef KPG_PROGRESS_H
#define KPG_PROGRESS_H

#include "postgres.h"

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

typedef struct KpgProgress KpgProgress;

/*
 * Appear in kusto.progress, in place of whatever command this process has
 * reported on; kpg_progress_end() puts that back.  An abort of the transaction
 * ends all of it.  Lives in the current memory context.
 */
extern KpgProgress *kpg_progress_begin(const pg_uuid_t *operation);
extern void kpg_progress_end(KpgProgress *progress);

/* Cheap, but not for each row. */
extern void kpg_progress_phase(KpgProgress *progress, KpgPhase phase);
extern void kpg_progress_counts(KpgProgress *progress, const KpgProgressCounts *counts);

#endif							/* KPG_PROGRESS_H */
