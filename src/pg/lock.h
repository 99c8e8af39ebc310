/*
 * lock.h
 *	  Advisory locks on an operation, which no SQL function can take.
 *
 * In pg_locks: classid and objid are the operation's first 64 bits, as the view
 * kusto.workers computes them; objsubid, where SQL's own have 1 and 2, is the
 * kind.  Operations that share these bits share their locks.
 */
#ifndef KPG_LOCK_H
#define KPG_LOCK_H

#include "postgres.h"

#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "storage/lock.h"
#include "utils/uuid.h"

typedef enum KpgLockKind
{
	KPG_LOCK_JOB = 0x4b4a,		/* "KJ": its process lives (worker_job.c) */
	KPG_LOCK_WAITER = 0x4b57	/* "KW": somebody waits for its end (waiters.c) */
} KpgLockKind;

static inline void
kpg_lock_tag(LOCKTAG *tag, const pg_uuid_t *id, KpgLockKind kind)
{
	uint32		fields[2];

	memcpy(fields, id->data, sizeof(fields));
	SET_LOCKTAG_ADVISORY(*tag, MyDatabaseId, pg_ntoh32(fields[0]), pg_ntoh32(fields[1]), (uint16) kind);
}

#endif							/* KPG_LOCK_H */
