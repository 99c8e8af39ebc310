/*
 * worker_work.c
 *	  Driving the operations in memory.
 *
 * A run has steps, each for all operations: what the end of each task means is
 * decided; that is written, in one short transaction; then it is applied to
 * memory, and what is due begins, after a claim that is written as well.  Memory
 * changes only after the commit, so a transaction that fails is just tried
 * again, and one operation's trouble is never another's.
 *
 * No transaction is open while a task is under way, except for a moment that
 * has nothing to do with it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/uuid.h"

#include "fault.h"
#include "report.h"
#include "worker_internal.h"

#define TASKS_MAX			64

static int	ntasks;
static int	nexpected;			/* that this run has claimed, and will begin */
static bool run_again;			/* room was made for what could not begin */
static bool holding_back;

int64
kpg_worker_now_ms(void)
{
	return kc_clock_system.monotonic_ms(kc_clock_system.arg);
}

bool
kpg_worker_may_begin(void)
{
	return ntasks + nexpected < TASKS_MAX && !holding_back;
}

void
kpg_worker_expect_tasks(int n)
{
	nexpected += n;
}

void
kpg_worker_task_begins(void)
{
	ntasks++;
}

void
kpg_worker_task_ends(KcTask *task)
{
	if (task == NULL)
		return;
	kc_task_free(task);
	ntasks--;
	run_again = true;
}

void
kpg_worker_hold_back(bool hold)
{
	holding_back = hold;
}

bool
kpg_worker_is_posting(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_worker_operations)
	{
		const WorkOperation *op = dlist_container(WorkOperation, node, iter.cur);

		for (int i = 0; i < op->row->nblobs; i++)
		{
			const WorkBlob *blob = &op->blobs[i];

			if (blob->change.pending || (blob->task != NULL && !blob->polling))
				return true;
		}
	}
	return false;
}

bool
kpg_worker_has_tasks(const WorkOperation *op)
{
	if (op->command != NULL)
		return true;
	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (op->blobs[i].task != NULL)
			return true;
	}
	return false;
}

/* ---- as whom ---- */

static void
acquire_body(void *arg)
{
	WorkOperation *op = arg;
	Oid			owner = op->row->owner;

	/* What waits for its server or role may have been cancelled meanwhile; it is over, commit or not. */
	op->over = !kpg_operations_is_open(&op->row->id);
	if (op->over)
		return;

	/* The code is that of a login by a role that does not exist; it is final. */
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(owner)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
				 errmsg("the role that asked for the export, with OID %u, does not exist any more", owner)));
	/* Released by whoever forgets the operation, also if this rolls back. */
	op->session = kpg_session_acquire(kpg_session_server(op->row->server, owner), owner);
}

/*
 * One a lane and run is enough: what has become of server, mapping and role is
 * asked anew in the next.
 */
static void
share_session(WorkOperation *op)
{
	if (op->lane->session == NULL)
		op->lane->session = kpg_session_share(op->session);
}

static void
forget_shared_sessions(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_worker_operations)
		kpg_worker_unshare(dlist_container(WorkOperation, node, iter.cur)->lane);
}

static bool
acquire_session(WorkOperation *op)
{
	ErrorData  *error = NULL;
	KpgUnitResult result;
	KpgFailure *failure;

	if (op->lane->session != NULL)
		op->session = kpg_session_share(op->lane->session);
	if (op->session != NULL)
		return true;
	result = kpg_worker_unit("preparing an export", acquire_body, op, &error);
	if (result == KPG_UNIT_DONE)
	{
		memset(&op->session_retry, 0, sizeof(op->session_retry));
		if (op->session != NULL)
			share_session(op);
		return !op->over;
	}
	if (result == KPG_UNIT_BUSY)
	{
		kpg_worker_pause(op, result);
		return false;
	}
	failure = kpg_worker_failure_from(op, error);
	if (kpg_worker_retry_from(&op->session_retry, error, &op->due_ms))
		kpg_worker_note(op, failure);
	else
		kpg_worker_give_up(op, failure);
	FreeErrorData(error);
	MemoryContextReset(op->scratch);
	return false;
}

/* ---- driving ---- */

static void
decide(WorkOperation *op)
{
	for (int i = 0; i < op->row->nblobs; i++)
	{
		WorkBlob   *blob = &op->blobs[i];

		if (blob->task == NULL || !blob->task->done || blob->change.pending)
			continue;
		memset(&blob->change, 0, sizeof(blob->change));
		if (blob->polling)
			kpg_worker_poll_decide(op, blob);
		else
			kpg_worker_post_decide(op, blob);
		/* Only now: what raised has decided nothing. */
		blob->change.pending = true;
	}
}

static int64
next_due(const WorkOperation *op)
{
	int64		due = kpg_worker_command_due(op);

	if (kpg_worker_must_write(op))
		due = 0;
	else if (op->command_done)
	{
		int64		poll_due = kpg_worker_poll_due(op);

		due = kpg_worker_post_due(op);
		due = Min(due, poll_due);
	}
	return due == KPG_WORK_NEVER ? due : Max(due, op->due_ms);
}

/* Begin the command, or gather the posts that are to begin. */
static void
begin(WorkOperation *op, int64 now_ms)
{
	if (op->session == NULL && !acquire_session(op))
		return;
	if (!op->command_done)
		kpg_worker_command_start(op);
	else if (kpg_worker_post_due(op) <= now_ms)
		kpg_worker_post_gather(op, now_ms);
}

/* ---- the steps of a run ---- */

static bool
has_news(const WorkOperation *op)
{
	if (op->command != NULL && op->command->task.done)
		return true;
	for (int i = 0; i < op->row->nblobs; i++)
	{
		const WorkBlob *blob = &op->blobs[i];

		if (blob->task != NULL && blob->task->done && !blob->change.pending)
			return true;
	}
	return false;
}

static void
take_news(WorkOperation *op, int64 now_ms)
{
	if (op->command != NULL && op->command->task.done)
		kpg_worker_command_finish(op);
	if (!op->over)
		decide(op);
}

static void
go_on(WorkOperation *op, int64 now_ms)
{
	if (kpg_worker_must_write(op))
		kpg_worker_write(op);
	if (!op->over && next_due(op) <= now_ms && !kpg_worker_must_write(op))
		begin(op, now_ms);
}

/* What was gathered is claimed, unless it could not be together with others. */
static void
start_posts(WorkOperation *op, int64 now_ms)
{
	WorkStep	step = kpg_worker_post_claim(op);

	if (!op->claimed && kpg_worker_unit("claiming an export", step.body, step.arg, NULL) != KPG_UNIT_DONE)
	{
		kpg_worker_post_drop(op);
		op->due_ms = now_ms + 1000;
		return;
	}
	op->claimed = false;
	kpg_worker_post_start(op);
}

static bool
polls_are_due(const WorkOperation *op, int64 now_ms)
{
	return !op->over && op->command_done && op->session != NULL && op->due_ms <= now_ms &&
		!kpg_worker_must_write(op) && kpg_worker_poll_due(op) <= now_ms;
}

static void
start_polls(WorkOperation *op, int64 now_ms)
{
	kpg_worker_poll_start(op, now_ms);
}

/* What escapes, such as running out of memory, is this operation's matter alone. */
static void
guarded(WorkOperation *op, void (*step) (WorkOperation *op, int64 now_ms), int64 now_ms)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorContextCallback callback;
	pg_uuid_t	id = op->row->id;

	callback.callback = kpg_worker_log_context;
	callback.arg = &id;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	PG_TRY();
	{
		step(op, now_ms);
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		kpg_worker_post_drop(op);
		op->written = NULL;
		op->claimed = false;
		op->due_ms = kpg_worker_now_ms() + KPG_ERROR_PAUSE_MS;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	error_context_stack = callback.previous;
}

static void
claim_together(void)
{
	WorkStep	steps[KPG_GROUP_MAX];
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_worker_operations)
	{
		WorkOperation *op = dlist_container(WorkOperation, node, iter.cur);

		if (op->attempt != NULL && n < KPG_GROUP_MAX)
			steps[n++] = kpg_worker_post_claim(op);
	}
	kpg_worker_group("claiming exports", steps, n);
	for (int i = 0; i < n; i++)
		steps[i].op->claimed = steps[i].done;
}

/* The next due of all, without those that are over. */
static int64
end_run(void)
{
	int64		due = KPG_WORK_NEVER;
	dlist_mutable_iter iter;

	forget_shared_sessions();
	dlist_foreach_modify(iter, &kpg_worker_operations)
	{
		WorkOperation *op = dlist_container(WorkOperation, node, iter.cur);

		if (op->over)
		{
			kpg_worker_forget(op);
			continue;
		}
		op->next_ms = next_due(op);
		due = Min(due, op->next_ms);
	}
	return run_again ? 0 : due;
}

int64
kpg_worker_run(void)
{
	int64		now_ms = kpg_worker_now_ms();
	dlist_iter	iter;

	run_again = false;
	dlist_foreach(iter, &kpg_worker_operations)
	{
		WorkOperation *op = dlist_container(WorkOperation, node, iter.cur);
		bool		news = has_news(op);

		/* Only an error between the steps of the last run leaves any. */
		kpg_worker_post_drop(op);
		op->claimed = false;
		op->active = news || op->next_ms <= now_ms;
		if (news)
			guarded(op, take_news, now_ms);
	}
	kpg_worker_write_group(now_ms);
	dlist_foreach(iter, &kpg_worker_operations)
	{
		WorkOperation *op = dlist_container(WorkOperation, node, iter.cur);

		if (op->active && !op->over && (op->written != NULL || next_due(op) <= now_ms))
			guarded(op, go_on, now_ms);
	}
	claim_together();
	/* What has to be claimed alone may have to wait for somebody's lock. */
	dlist_foreach(iter, &kpg_worker_operations)
	{
		WorkOperation *op = dlist_container(WorkOperation, node, iter.cur);

		if (op->claimed)
			guarded(op, start_posts, now_ms);
	}
	dlist_foreach(iter, &kpg_worker_operations)
	{
		WorkOperation *op = dlist_container(WorkOperation, node, iter.cur);

		if (op->attempt != NULL)
			guarded(op, start_posts, now_ms);
		if (op->active && polls_are_due(op, now_ms))
			guarded(op, start_polls, now_ms);
	}
	return end_run();
}
