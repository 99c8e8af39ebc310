/*
 * worker_group.c
 *	  What is to be written of several operations, in one transaction.
 *
 * Each commit of the worker is flushed, so with one for each operation the
 * disk would decide how many there can be in a minute.  Only rows that can be
 * locked at once are in a group: it waits for nobody, and no deadlock with a
 * session that steers several operations can arise.
 */
#include "postgres.h"

#include "utils/elog.h"

#include "worker_internal.h"

typedef struct Group
{
	WorkStep   *steps;
	int			n;
	const pg_uuid_t **ids;		/* parallel to steps */
	bool	   *locked;			/* the same */
} Group;

static void
group_body(void *arg)
{
	Group	   *group = arg;

	kpg_operations_lock_free(group->ids, group->n, group->locked);
	for (int i = 0; i < group->n; i++)
	{
		if (group->locked[i])
			group->steps[i].body(group->steps[i].arg);
	}
}

void
kpg_worker_group(const char *activity, WorkStep *steps, int n)
{
	Group		group = {.steps = steps, .n = n};
	ErrorData  *error = NULL;
	KpgUnitResult result;

	if (n < 2)
		return;
	group.ids = palloc(sizeof(pg_uuid_t *) * (Size) n);
	group.locked = palloc(sizeof(bool) * (Size) n);
	for (int i = 0; i < n; i++)
		group.ids[i] = &steps[i].op->row->id;
	result = kpg_worker_unit(activity, group_body, &group, &error);
	/* Whose fault it was is found out, and logged, when each is done alone. */
	if (error != NULL)
		FreeErrorData(error);
	for (int i = 0; i < n; i++)
		steps[i].done = result == KPG_UNIT_DONE && group.locked[i];
}
