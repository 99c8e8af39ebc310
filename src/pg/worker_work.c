/*
 * worker_work.c
 *	  Driving the operations in memory.
 *
 * An operation is driven in three steps, over and over: what the end of each
 * task means is decided; that is written, for all of its blobs in one short
 * transaction; then it is applied to memory, and what is due begins.  Memory
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
#define BUSY_PAUSE_MS		500 /* somebody has the tables locked */
#define ERROR_PAUSE_MS		2000	/* a transaction failed */

static int	ntasks;
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
	return ntasks < TASKS_MAX && !holding_back;
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

static void
pause_operation(WorkOperation *op, KpgUnitResult result)
{
	op->due_ms = kpg_worker_now_ms() + (result == KPG_UNIT_BUSY ? BUSY_PAUSE_MS : ERROR_PAUSE_MS);
}

/* ---- writing ---- */

typedef struct Write
{
	WorkOperation *op;
	const KpgFailure *failure;	/* of giving up, or to be noted */
	KpgState	settled;
	bool		lost;			/* somebody else has changed or deleted it */
} Write;

static bool
changes_rows(const WorkBlob *blob)
{
	const WorkChange *change = &blob->change;
	const KpgBlobNews *news = &change->news;

	return change->pending &&
		(change->to != blob->row->state || change->failure != NULL ||
		 news->status_table != NULL || news->error_code != NULL || news->details != NULL);
}

/* Inside a transaction, for kusto.workers. */
static void
note(const pg_uuid_t *id, const KpgFailure *failure)
{
	const char *message = failure->message;

	kpg_operations_note(id, failure);
	if (message == NULL)
		return;
	if (failure->utf8)
		message = kpg_report_text(message);
	kpg_worker_trouble(psprintf("operation %s: %s",
								DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id))),
								message));
}

/* False when the row is not what we think. */
static bool
write_blob(const KpgOpenOperation *row, const WorkBlob *blob)
{
	const WorkChange *change = &blob->change;
	int			ordinal = blob->row->ordinal;

	if (change->failure != NULL)
		note(&row->id, change->failure);
	if (change->to == blob->row->state)
	{
		kpg_operations_tell_blob(&row->id, ordinal, &change->news);
		return true;
	}
	if (change->by_post && blob->row->state == KPG_STATE_POSTING && change->to != KPG_STATE_POSTED &&
		!kpg_operations_move_blob(&row->id, ordinal, KPG_STATE_POSTED, NULL))
		return false;
	return kpg_operations_move_blob(&row->id, ordinal, change->to, &change->news);
}

static void
write_body(void *arg)
{
	Write	   *write = arg;
	WorkOperation *op = write->op;

	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (changes_rows(&op->blobs[i]) && !write_blob(op->row, &op->blobs[i]))
			write->lost = true;
	}
	write->settled = kpg_operations_settle(&op->row->id, false);
	KPG_FAULT(kpg_operations_is_final(write->settled) ? "outcome-written" : "post-written");
}

static void
apply(WorkOperation *op, WorkBlob *blob)
{
	const WorkChange *change = &blob->change;
	KpgOpenBlob *row = blob->row;

	if (blob->task != NULL && blob->polling)
		op->lane->npolling--;
	kpg_worker_task_ends(blob->task);
	blob->task = NULL;
	if (change->news.status_table != NULL)
		row->status_table = MemoryContextStrdup(op->context, change->news.status_table);
	if (change->to != row->state || (change->in_doubt && !blob->in_doubt))
		blob->since_ms = kpg_worker_now_ms();
	row->state = change->to;
	blob->doubted = change->in_doubt || (blob->doubted && !change->row_missing);
	blob->in_doubt = change->in_doubt;
	blob->status_row = change->status_row;
	blob->due_ms = change->due_ms;
	if (row->state != KPG_STATE_POSTING || blob->in_doubt)
		kpg_worker_post_release(op, &blob->held);
	memset(&blob->change, 0, sizeof(blob->change));
}

static const KpgFailure *
first_failure(const WorkOperation *op)
{
	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (op->blobs[i].change.pending && op->blobs[i].change.failure != NULL)
			return op->blobs[i].change.failure;
	}
	return NULL;
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

static void
drop_stale_session(WorkOperation *op)
{
	if (!op->session_stale || kpg_worker_has_tasks(op))
		return;
	kpg_session_release(op->session);
	op->session = NULL;
	op->session_stale = false;
}

/* Also when nothing is left that could bring about a change. */
static bool
needs_transaction(const WorkOperation *op)
{
	bool		open = false;

	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (changes_rows(&op->blobs[i]))
			return true;
		if (!kpg_operations_is_final(op->blobs[i].row->state))
			open = true;
	}
	return !open;
}

/* Write what was decided, then apply it. */
static void
write_changes(WorkOperation *op)
{
	Write		write = {.op = op, .settled = op->row->state};
	const KpgFailure *failure;

	if (needs_transaction(op))
	{
		KpgUnitResult result =
			kpg_worker_unit("recording results of exports", write_body, &write, NULL);

		if (result != KPG_UNIT_DONE)
		{
			pause_operation(op, result);
			return;
		}
		KPG_FAULT(kpg_operations_is_final(write.settled) ? "outcome-recorded" : "post-recorded");
	}
	failure = first_failure(op);
	if (kpg_operations_is_final(write.settled) && !write.lost)
		kpg_worker_log_end(op, write.settled, failure);
	else if (failure != NULL)
		kpg_worker_log_delay(op, failure);
	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (op->blobs[i].change.pending)
			apply(op, &op->blobs[i]);
	}
	drop_stale_session(op);
	MemoryContextReset(op->scratch);
	op->row->state = write.settled;
	if (write.lost || kpg_operations_is_final(write.settled))
		op->over = true;
}

/* ---- giving up ---- */

static void
give_up_body(void *arg)
{
	Write	   *write = arg;
	const KpgOpenOperation *row = write->op->row;
	KpgBlobNews news = {
		.utf8 = write->failure->utf8,
		.error_code = write->failure->error_code,
		.details = write->failure->message
	};

	if (row->state == KPG_STATE_STAGED && !kpg_operations_claim(&row->id))
	{
		write->lost = true;
		return;
	}
	note(&row->id, write->failure);
	for (int i = 0; i < row->nblobs; i++)
	{
		const WorkBlob *blob = &write->op->blobs[i];
		bool		sent = blob->row->state == KPG_STATE_POSTED || blob->in_doubt || blob->doubted;

		if (kpg_operations_is_final(blob->row->state))
			continue;
		(void) kpg_operations_move_blob(&row->id, blob->row->ordinal,
										sent ? KPG_STATE_UNKNOWN : KPG_STATE_FAILED, &news);
	}
	write->settled = kpg_operations_settle(&row->id, true);
	KPG_FAULT("giving-up");
}

void
kpg_worker_give_up(WorkOperation *op, const KpgFailure *failure)
{
	Write		write = {.op = op, .failure = failure, .settled = op->row->state};
	KpgUnitResult result;

	Assert(!kpg_worker_has_tasks(op));
	result = kpg_worker_unit("recording a failed export", give_up_body, &write, NULL);
	if (result != KPG_UNIT_DONE)
	{
		pause_operation(op, result);
		return;
	}
	if (!write.lost)
		kpg_worker_log_end(op, write.settled, failure);
	op->over = true;
}

static void
note_body(void *arg)
{
	Write	   *write = arg;

	note(&write->op->row->id, write->failure);
}

void
kpg_worker_note(WorkOperation *op, const KpgFailure *failure)
{
	Write		write = {.op = op, .failure = failure};

	(void) kpg_worker_unit("recording a delayed export", note_body, &write, NULL);
	kpg_worker_log_delay(op, failure);
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

static bool
acquire_session(WorkOperation *op)
{
	ErrorData  *error = NULL;
	KpgUnitResult result = kpg_worker_unit("preparing an export", acquire_body, op, &error);
	KpgFailure *failure;

	if (result == KPG_UNIT_DONE)
	{
		memset(&op->session_retry, 0, sizeof(op->session_retry));
		return !op->over;
	}
	if (result == KPG_UNIT_BUSY)
	{
		pause_operation(op, result);
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

/* Also when nothing is left that could bring about a change. */
static bool
must_write(const WorkOperation *op)
{
	bool		open = !op->command_done;

	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (op->blobs[i].change.pending)
			return true;
		if (!kpg_operations_is_final(op->blobs[i].row->state))
			open = true;
	}
	return !open;
}

static int64
next_due(const WorkOperation *op)
{
	int64		due = kpg_worker_command_due(op);

	if (must_write(op))
		due = 0;
	else if (op->command_done)
	{
		int64		poll_due = kpg_worker_poll_due(op);

		due = kpg_worker_post_due(op);
		due = Min(due, poll_due);
	}
	return due == KPG_WORK_NEVER ? due : Max(due, op->due_ms);
}

static void
begin(WorkOperation *op, int64 now_ms)
{
	if (op->session == NULL && !acquire_session(op))
		return;
	if (!op->command_done)
	{
		kpg_worker_command_start(op);
		return;
	}
	if (kpg_worker_post_due(op) <= now_ms)
		kpg_worker_post_start(op, now_ms);
	if (!op->over && op->due_ms <= now_ms && kpg_worker_poll_due(op) <= now_ms)
		kpg_worker_poll_start(op, now_ms);
}

static int64
drive(WorkOperation *op)
{
	int64		now_ms = kpg_worker_now_ms();

	if (op->command != NULL && op->command->task.done)
		kpg_worker_command_finish(op);
	if (!op->over)
		decide(op);
	if (!op->over && op->due_ms <= now_ms && must_write(op))
		write_changes(op);
	if (!op->over && next_due(op) <= now_ms && !must_write(op))
		begin(op, now_ms);
	if (op->over)
	{
		kpg_worker_forget(op);
		return KPG_WORK_NEVER;
	}
	return next_due(op);
}

/* What escapes, such as running out of memory, is this operation's matter alone. */
static int64
guarded_drive(WorkOperation *op)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorContextCallback callback;
	pg_uuid_t	id = op->row->id;	/* op may be forgotten */
	volatile int64 due = 0;

	callback.callback = kpg_worker_log_context;
	callback.arg = &id;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	PG_TRY();
	{
		due = drive(op);
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		op->due_ms = due = kpg_worker_now_ms() + ERROR_PAUSE_MS;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	error_context_stack = callback.previous;
	return due;
}

int64
kpg_worker_run(void)
{
	int64		due = KPG_WORK_NEVER;
	dlist_mutable_iter iter;

	run_again = false;
	dlist_foreach_modify(iter, &kpg_worker_operations)
	{
		int64		op_due = guarded_drive(dlist_container(WorkOperation, node, iter.cur));

		due = Min(due, op_due);
	}
	return run_again ? 0 : due;
}
