/*
 * task.h
 *	  Something that is under way on a mux and will be done some day.
 *
 * Every start function of the core gives one.  The owner drives the mux until
 * task->done, reads error.status and the result, and frees the task; freeing
 * one that is not done cancels it.
 */
#ifndef KC_TASK_H
#define KC_TASK_H

#include "base.h"

typedef struct KcTask
{
	bool		done;
	KcError		error;			/* error.status is KC_OK when it succeeded */
	void		(*on_done) (struct KcTask *task);	/* optional, set by the owner;
													 * called once, from
													 * kc_mux_drive() */
	void	   *arg;			/* the owner's */
	void		(*destroy) (struct KcTask *task);	/* of the kind of task */
} KcTask;

extern void kc_task_free(KcTask *task); /* NULL is fine */

/*
 * For the core's own tasks.  A task is never done before its start function
 * has returned.  kc_task_finish() must be the last thing done with a task:
 * on_done may free it.  err NULL means success.
 */
extern void kc_task_finish(KcTask *task, const KcError *err);

#endif							/* KC_TASK_H */
