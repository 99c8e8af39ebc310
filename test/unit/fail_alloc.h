/*
 * fail_alloc.h
 *	  An allocator that counts, and fails the n-th request.
 *
 *		FailAlloc fa;
 *
 *		for (int n = 1;; n++)
 *		{
 *			fail_alloc_init(&fa, n);
 *			... use &fa.alloc; the code under test must cope ...
 *			is(fa.live, 0, "nothing leaks");
 *			if (!fa.has_failed)
 *				break;			it was never asked for the n-th time
 *		}
 */
#ifndef KC_TEST_FAIL_ALLOC_H
#define KC_TEST_FAIL_ALLOC_H

#include <stdbool.h>
#include <stdlib.h>

#include "core/base.h"

typedef struct FailAlloc
{
	KcAlloc		alloc;
	int			fail_at;		/* 1 is the first request; 0: never fail */
	bool		fail_on;		/* and all that come after it */
	int			requests;
	int			live;			/* allocations that are not freed */
	bool		has_failed;
} FailAlloc;

static inline void *
fail_alloc_realloc(void *arg, void *ptr, size_t size)
{
	FailAlloc  *fa = arg;
	void	   *result;

	fa->requests++;
	if (fa->fail_at > 0 &&
		(fa->requests == fa->fail_at || (fa->fail_on && fa->requests > fa->fail_at)))
	{
		fa->has_failed = true;
		return NULL;
	}
	result = realloc(ptr, size);
	if (result != NULL && ptr == NULL)
		fa->live++;
	return result;
}

static inline void
fail_alloc_free(void *arg, void *ptr)
{
	((FailAlloc *) arg)->live--;
	free(ptr);
}

static inline void
fail_alloc_init(FailAlloc *fa, int fail_at)
{
	*fa = (FailAlloc) {{fail_alloc_realloc, fail_alloc_free, fa}, .fail_at = fail_at};
}

#endif							/* KC_TEST_FAIL_ALLOC_H */
