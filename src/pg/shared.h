/*
 * shared.h
 *	  What all processes of the server have in common when the library is in
 *	  shared_preload_libraries: a cache of access tokens and ingestion resources.
 *
 * Without preloading there is none, each process fetches its own, and nothing
 * else is different.
 */
#ifndef KPG_SHARED_H
#define KPG_SHARED_H

#include "../core/cache.h"

/* From _PG_init() while the postmaster loads the library. */
extern void kpg_shared_init(void);

/* NULL: there is none. Lives as long as the process. */
extern const KcCache *kpg_shared_cache(void);

/*
 * Tell the log, at level DEBUG1, what this process has taken from the cache and
 * given to it since it told last.  The cache itself cannot: it is asked from
 * within the core, which nothing may jump out of.
 */
extern void kpg_shared_tell(void);

#endif							/* KPG_SHARED_H */
