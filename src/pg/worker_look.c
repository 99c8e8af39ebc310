/*
 * worker_look.c
 *	  Which operations are in the worker's memory.
 *
 * The tables are the truth; memory holds a bounded part of what is open there,
 * with what is under way.  Whatever does not fit, or is forgotten because of
 * an error, is found again by a later look.
 */
#include "postgres.h"

#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "worker_internal.h"

#define LOOK_LIMIT			256 /* operations a look */
#define OPERATIONS_MAX		4096
#define LANE_OPERATIONS_MAX 1024
/* So many unclaimed ones of a lane are enough in memory, others come first. */
#define LANE_WAITING_MAX	32

dlist_head	kpg_worker_operations = DLIST_STATIC_INIT(kpg_worker_operations);

static dlist_head lanes = DLIST_STATIC_INIT(lanes);
static HTAB *known;				/* ids of kpg_worker_operations */
static KpgSweep sweep;
static bool nothing_open;		/* says the last full look */

typedef struct KnownEntry
{
	pg_uuid_t	id;				/* must be first */
	WorkOperation *op;
} KnownEntry;

static void
make_known(void)
{
	HASHCTL		control;

	memset(&control, 0, sizeof(control));
	control.keysize = sizeof(pg_uuid_t);
	control.entrysize = sizeof(KnownEntry);
	known = hash_create("kusto_ingest operations", 256, &control, HASH_ELEM | HASH_BLOBS);
}

/* ---- lanes ---- */

static WorkLane *
lane_of(const char *server, Oid owner)
{
	dlist_iter	iter;
	WorkLane   *lane;

	dlist_foreach(iter, &lanes)
	{
		lane = dlist_container(WorkLane, node, iter.cur);
		if (lane->owner == owner && strcmp(lane->server, server) == 0)
			return lane;
	}
	lane = MemoryContextAllocZero(TopMemoryContext, sizeof(WorkLane));
	lane->server = MemoryContextStrdup(TopMemoryContext, server);
	lane->owner = owner;
	dlist_push_tail(&lanes, &lane->node);
	return lane;
}

static void
free_lane_if_empty(WorkLane *lane)
{
	if (lane->noperations > 0)
		return;
	Assert(lane->nwaiting == 0 && lane->nposting == 0 && lane->npolling == 0);
	dlist_delete(&lane->node);
	pfree(lane->server);
	pfree(lane);
}

/* Lanes with enough unclaimed operations in memory; in the current context. */
static int
lanes_to_skip(KpgSkip **skip)
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &lanes)
		n++;
	*skip = palloc(sizeof(KpgSkip) * (Size) Max(n, 1));
	n = 0;
	dlist_foreach(iter, &lanes)
	{
		WorkLane   *lane = dlist_container(WorkLane, node, iter.cur);

		if (lane->nwaiting >= LANE_WAITING_MAX || lane->noperations >= LANE_OPERATIONS_MAX)
			(*skip)[n++] = (KpgSkip) {lane->server, lane->owner};
	}
	return n;
}

/* ---- taking up ---- */

static bool
needs_command(const KpgOpenOperation *row)
{
	if (row->table_command == NULL || row->state == KPG_STATE_POSTED)
		return false;
	if (row->state == KPG_STATE_STAGED || row->total_blobs == 0)
		return true;

	/* An earlier worker ran it before it touched the first blob. */
	for (int i = 0; i < row->nblobs; i++)
	{
		if (row->blobs[i].state != KPG_STATE_STAGED)
			return false;
	}
	return row->nblobs == row->total_blobs;
}

static void
init_blob(WorkBlob *blob, KpgOpenBlob *row, int64 now_ms)
{
	blob->row = row;
	blob->since_ms = now_ms;
	blob->status_row = row->status_table != NULL;

	/*
	 * Its worker ended between the record of a post and the record of its
	 * result.  The status table knows more; see worker_poll.c.
	 */
	blob->in_doubt = row->state == KPG_STATE_POSTING;
	if (row->state == KPG_STATE_POSTED && row->posted_at != 0)
	{
		int64		age_ms = (GetCurrentTimestamp() - row->posted_at) / 1000;

		blob->since_ms -= Max(age_ms, 0);
	}
}

typedef struct Look
{
	bool		everything;
	KpgSweep	sweep;
	int			nfound;
	MemoryContext context;		/* of this look; parent of what it takes up */
	dlist_head	taken;
} Look;

/* In the look's transaction. */
static void
take_up(Look *look, const pg_uuid_t *id)
{
	MemoryContext context = AllocSetContextCreate(look->context, "kusto_ingest operation",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	KpgOpenOperation *row = kpg_operations_load(id);
	WorkOperation *op;
	int64		now_ms = kpg_worker_now_ms();

	if (row == NULL)
	{
		MemoryContextSwitchTo(old);
		MemoryContextDelete(context);
		return;
	}
	op = palloc0(sizeof(WorkOperation));
	op->context = context;
	op->scratch = AllocSetContextCreate(context, "kusto_ingest change", ALLOCSET_SMALL_SIZES);
	op->row = row;
	op->blobs = palloc0(sizeof(WorkBlob) * (Size) Max(row->nblobs, 1));
	for (int i = 0; i < row->nblobs; i++)
		init_blob(&op->blobs[i], &row->blobs[i], now_ms);
	op->command_done = !needs_command(row);
	op->poll_window = 1;
	dlist_push_tail(&look->taken, &op->node);
	MemoryContextSwitchTo(old);
}

static void
look_body(void *arg)
{
	Look	   *look = arg;
	List	   *ids;
	ListCell   *cell;

	if (look->everything)
		ids = kpg_operations_unfinished(&look->sweep, LOOK_LIMIT);
	else
	{
		KpgSkip    *skip;
		int			nskip = lanes_to_skip(&skip);

		ids = kpg_operations_staged(skip, nskip, LOOK_LIMIT);
	}
	look->nfound = list_length(ids);
	foreach(cell, ids)
	{
		const pg_uuid_t *id = lfirst(cell);

		if (hash_search(known, id, HASH_FIND, NULL) == NULL)
			take_up(look, id);
	}
}

/* After the look's transaction. */
static void
adopt(WorkOperation *op)
{
	WorkLane   *lane = lane_of(op->row->server, op->row->owner);
	KnownEntry *entry;

	if (hash_get_num_entries(known) >= OPERATIONS_MAX || lane->noperations >= LANE_OPERATIONS_MAX)
	{
		free_lane_if_empty(lane);
		return;
	}
	op->lane = lane;
	entry = hash_search(known, &op->row->id, HASH_ENTER, NULL);
	entry->op = op;
	lane->noperations++;
	if (op->row->state == KPG_STATE_STAGED)
		lane->nwaiting++;
	MemoryContextSetParent(op->context, TopMemoryContext);
	dlist_push_tail(&kpg_worker_operations, &op->node);
}

bool
kpg_worker_look(bool everything)
{
	Look		look = {.everything = everything, .sweep = sweep};
	bool		from_first = !sweep.begun;
	bool		done;

	if (known == NULL)
		make_known();
	dlist_init(&look.taken);
	look.context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest look",
										 ALLOCSET_DEFAULT_SIZES);
	done = kpg_worker_unit("looking for exports", look_body, &look, NULL) == KPG_UNIT_DONE;
	if (done)
	{
		while (!dlist_is_empty(&look.taken))
			adopt(dlist_container(WorkOperation, node, dlist_pop_head_node(&look.taken)));
		if (everything)
		{
			sweep = look.sweep;
			nothing_open = from_first && look.nfound == 0;
		}
		else if (look.nfound > 0)
			nothing_open = false;
	}
	else
		nothing_open = false;
	/* With everything that was not adopted. */
	MemoryContextDelete(look.context);
	return done;
}

bool
kpg_worker_is_idle(void)
{
	return nothing_open && dlist_is_empty(&kpg_worker_operations);
}

void
kpg_worker_forget(WorkOperation *op)
{
	WorkLane   *lane = op->lane;

	for (int i = 0; i < op->row->nblobs; i++)
	{
		WorkBlob   *blob = &op->blobs[i];

		if (blob->task != NULL && blob->polling)
			lane->npolling--;
		kpg_worker_task_ends(blob->task);
		kpg_worker_post_release(op, &blob->held);
	}
	kpg_worker_task_ends(op->command == NULL ? NULL : &op->command->task);
	kpg_worker_post_release(op, &op->command_held);
	if (op->session != NULL)
		kpg_session_release(op->session);
	if (op->row->state == KPG_STATE_STAGED)
		lane->nwaiting--;
	lane->noperations--;
	free_lane_if_empty(lane);
	hash_search(known, &op->row->id, HASH_REMOVE, NULL);
	dlist_delete(&op->node);
	MemoryContextDelete(op->context);
}

void
kpg_worker_forget_all(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &kpg_worker_operations)
		kpg_worker_forget(dlist_container(WorkOperation, node, iter.cur));
	nothing_open = false;
}
