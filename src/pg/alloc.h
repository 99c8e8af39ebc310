/*
 * alloc.h
 *	  The core's allocator over a memory context.
 */
#ifndef KPG_ALLOC_H
#define KPG_ALLOC_H

#include "postgres.h"

#include "../core/base.h"

/*
 * An allocator that takes from context and never throws; it lives in context
 * itself.  Only for the backend's own thread.  An object of the core that is
 * not freed before its context is reset needs a reset callback on that very
 * context, because a context's children go first.
 */
extern const KcAlloc *kpg_alloc_create(MemoryContext context);

#endif							/* KPG_ALLOC_H */
