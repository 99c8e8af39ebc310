/*
 * task.c
 *	  The common part of everything that is under way.
 */
#include "task.h"

void
kc_task_free(KcTask *task)
{
	if (task != NULL)
		task->destroy(task);
}

void
kc_task_finish(KcTask *task, const KcError *err)
{
	if (err != NULL)
		task->error = *err;
	else
		kc_error_clear(&task->error);
	task->done = true;
	if (task->on_done != NULL)
		task->on_done(task);
}
