/*
 * worker_command.c
 *	  The command that creates an operation's table, before the first post.
 *
 * A worker that ends in between runs it again: .create-merge table changes
 * nothing the second time
 * (learn.microsoft.com/kusto/management/create-merge-table-command).
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "fault.h"
#include "worker_internal.h"

#define RESPONSE_MAX	(1024 * 1024)

int64
kpg_worker_command_due(const WorkOperation *op)
{
	if (op->command_done || op->command != NULL || !kpg_worker_post_room(op, op->command_held))
		return KPG_WORK_NEVER;
	return op->due_ms;
}

typedef struct Claim
{
	const pg_uuid_t *id;
	bool		claimed;
} Claim;

static void
claim_body(void *arg)
{
	Claim	   *claim = arg;

	claim->claimed = kpg_operations_claim(claim->id);
}

static bool
claim_operation(WorkOperation *op)
{
	Claim		claim = {.id = &op->row->id};

	if (op->row->state != KPG_STATE_STAGED)
		return true;
	if (kpg_worker_unit("claiming an export", claim_body, &claim, NULL) != KPG_UNIT_DONE)
	{
		op->due_ms = kpg_worker_now_ms() + 1000;
		return false;
	}
	op->over = !claim.claimed;
	if (op->over)
		return false;
	op->row->state = KPG_STATE_POSTING;
	op->lane->nwaiting--;
	return true;
}

static void
command_failed(WorkOperation *op, KcError *err)
{
	KpgFailure *failure;

	/* To add a table takes this role; the principal is admin of what it has created. */
	if (err->status == KC_ERR_FORBIDDEN)
		err->advice = KC_ADVICE_GRANT_DATABASE_USER;
	failure = kpg_worker_failure(op, err);
	kpg_session_release(op->session);
	op->session = NULL;
	if (kpg_worker_retry(&op->command_retry, err, &op->due_ms))
		kpg_worker_note(op, failure);
	else
		kpg_worker_give_up(op, failure);
	MemoryContextReset(op->scratch);
}

void
kpg_worker_command_start(WorkOperation *op)
{
	KcError		err;
	MemoryContext old;
	KcStatus	status;

	if (!claim_operation(op))
		return;
	old = MemoryContextSwitchTo(op->scratch);
	status = kc_kusto_request_start(op->session->client, KC_ENDPOINT_ENGINE_MGMT,
									kc_slice(op->row->database_utf8),
									kc_slice(op->row->table_command),
									false, RESPONSE_MAX, &op->command, &err);
	MemoryContextSwitchTo(old);
	MemoryContextReset(op->scratch);
	if (status != KC_OK)
	{
		op->command = NULL;
		command_failed(op, &err);
		return;
	}
	kpg_worker_task_begins();
	kpg_worker_post_hold(op, &op->command_held);
}

void
kpg_worker_command_finish(WorkOperation *op)
{
	KcError		err = op->command->task.error;

	kpg_worker_task_ends(&op->command->task);
	op->command = NULL;
	if (err.status != KC_OK)
	{
		command_failed(op, &err);
		return;
	}
	KPG_FAULT("command-done");
	kpg_worker_post_release(op, &op->command_held);
	op->command_done = true;
}
