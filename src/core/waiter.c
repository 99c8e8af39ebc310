/*
 * waiter.c
 *	  Many wait for one thing that is being fetched.
 */
#include "waiter.h"

void
kc_waiter_add(KcWaiterList *list, KcWaiter *waiter)
{
	KcWaiter  **link = &list->head;

	while (*link != NULL)
		link = &(*link)->next;
	waiter->next = NULL;
	waiter->waiting = true;
	waiter->since = list->round;
	*link = waiter;
}

bool
kc_waiter_cancel(KcWaiterList *list, KcWaiter *waiter)
{
	KcWaiter  **link = &list->head;

	if (!waiter->waiting)
		return false;
	while (*link != NULL && *link != waiter)
		link = &(*link)->next;
	if (*link == NULL)
		return false;			/* it waits in another list */
	*link = waiter->next;
	waiter->waiting = false;
	waiter->next = NULL;
	return list->head == NULL;
}

void
kc_waiter_wake(KcWaiterList *list, const KcError *err)
{
	uint64_t	round = ++list->round;

	while (list->head != NULL && list->head->since < round)
	{
		KcWaiter   *waiter = list->head;

		list->head = waiter->next;
		waiter->waiting = false;
		waiter->next = NULL;
		waiter->ready(waiter, err);
	}
}
