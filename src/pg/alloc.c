/*
 * alloc.c
 *	  The core's allocator over a memory context.
 *
 * Each piece has its size in front: before PostgreSQL 16 no reallocation of
 * palloc's returns NULL instead of throwing, so a piece is moved by hand.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "alloc.h"

#define PREFIX_SIZE MAXALIGN(sizeof(Size))
#define PIECE_MAX	(MaxAllocHugeSize - PREFIX_SIZE)

static void *
context_realloc(void *arg, void *ptr, size_t size)
{
	char	   *piece;

	if (size > PIECE_MAX)
		return NULL;
	piece = MemoryContextAllocExtended((MemoryContext) arg, size + PREFIX_SIZE,
									   MCXT_ALLOC_NO_OOM | MCXT_ALLOC_HUGE);
	if (piece == NULL)
		return NULL;
	*(Size *) piece = size;
	if (ptr != NULL)
	{
		char	   *old = (char *) ptr - PREFIX_SIZE;

		memcpy(piece + PREFIX_SIZE, ptr, Min(*(Size *) old, size));
		pfree(old);
	}
	return piece + PREFIX_SIZE;
}

static void
context_free(void *arg, void *ptr)
{
	pfree((char *) ptr - PREFIX_SIZE);
}

const KcAlloc *
kpg_alloc_create(MemoryContext context)
{
	KcAlloc    *alloc = MemoryContextAlloc(context, sizeof(KcAlloc));

	alloc->realloc_fn = context_realloc;
	alloc->free_fn = context_free;
	alloc->arg = context;
	return alloc;
}
