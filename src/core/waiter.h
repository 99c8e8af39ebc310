/*
 * waiter.h
 *	  Many wait for one thing that is being fetched (single flight).
 */
#ifndef KC_WAITER_H
#define KC_WAITER_H

#include "base.h"

/* Belongs to whoever waits; zeroed before its first use. */
typedef struct KcWaiter
{
	void		(*ready) (struct KcWaiter *waiter, const KcError *err);	/* err NULL: success */
	void	   *arg;
	bool		waiting;
	uint64_t	since;			/* round of the list in which it came */
	struct KcWaiter *next;
} KcWaiter;

typedef struct KcWaiterList
{
	KcWaiter   *head;
	uint64_t	round;
} KcWaiterList;

extern void kc_waiter_add(KcWaiterList *list, KcWaiter *waiter);

/* Fine when it waits elsewhere or not at all.  True: it was, and now nobody is. */
extern bool kc_waiter_cancel(KcWaiterList *list, KcWaiter *waiter);

/*
 * Tell all that wait now.  Who comes during this waits for the next time, and
 * anyone may be cancelled during it.
 */
extern void kc_waiter_wake(KcWaiterList *list, const KcError *err);

#endif							/* KC_WAITER_H */
