/*
 * worker_look.c
 *	  Which operations are in the worker's memory.
 *
 * The tables are the truth; memory holds a bounded part of what is open there,
 * with what is under way.  Whatever does not fit, or is forgotten because of
 * an error, is found again by a later look.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "worker_internal.h"

#define LOOK_LIMIT			256 /* operations a look */
#define OPERATIONS_MAX		4096
#define LANE_OPERATIONS_MAX 1024
/* So many unclaimed ones of a lane are enough in memory, others come first. */
#define LANE_WAITING_MAX	32
#define LANE_WAITING_FEW	(LANE_WAITING_MAX / 2)	/* look for more */
/* So many posted ones a look may change places with others. */
#define ROTATED_MAX			8
/* What could not be read is left alone for so long; so many are remembered. */
#define UNREADABLE_PAUSE_MS 60000
#define UNREADABLE_MAX		1024

dlist_head	kpg_worker_operations = DLIST_STATIC_INIT(kpg_worker_operations);

static dlist_head lanes = DLIST_STATIC_INIT(lanes);
static HTAB *known;				/* ids of kpg_worker_operations */
static HTAB *unreadable;			/* ids that could not be read; NULL: none */
static int64 unreadable_until_ms;
static KpgSweep sweep;
static bool nothing_open;		/* says the last full look */
static bool page_was_full;		/* of the last look at staged ones */

typedef struct KnownEntry
{
	pg_uuid_t	id;				/* must be first */
	WorkOperation *op;
} KnownEntry;

static HTAB *
make_ids(const char *name, Size entrysize)
{
	HASHCTL		control;

	memset(&control, 0, sizeof(control));
	control.keysize = sizeof(pg_uuid_t);
	control.entrysize = entrysize;
	return hash_create(name, 256, &control, HASH_ELEM | HASH_BLOBS);
}

/* ---- what cannot be read ---- */

static bool
is_unreadable(const pg_uuid_t *id)
{
	if (unreadable != NULL && kpg_worker_now_ms() >= unreadable_until_ms)
	{
		hash_destroy(unreadable);
		unreadable = NULL;
	}
	return unreadable != NULL && hash_search(unreadable, id, HASH_FIND, NULL) != NULL;
}

static void
set_aside(const pg_uuid_t *id, const ErrorData *error)
{
	if (unreadable == NULL)
	{
		unreadable = make_ids("kusto_ingest unreadable operations", sizeof(pg_uuid_t));
		unreadable_until_ms = kpg_worker_now_ms() + UNREADABLE_PAUSE_MS;
	}
	if (hash_get_num_entries(unreadable) < UNREADABLE_MAX)
		(void) hash_search(unreadable, id, HASH_ENTER, NULL);
	ereport(LOG,
			(errcode(error->sqlerrcode),
			 errmsg("kusto_ingest operation %s cannot be read, and waits",
					DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)))),
			 errdetail_internal("%s", error->message)));
}

/* ---- lanes ---- */

/* NULL: nothing of it is in memory. */
static WorkLane *
find_lane(const char *server, Oid owner)
{
	dlist_iter	iter;

	dlist_foreach(iter, &lanes)
	{
		WorkLane   *lane = dlist_container(WorkLane, node, iter.cur);

		if (lane->owner == owner && strcmp(lane->server, server) == 0)
			return lane;
	}
	return NULL;
}

static WorkLane *
lane_of(const char *server, Oid owner)
{
	WorkLane   *lane = find_lane(server, owner);

	if (lane != NULL)
		return lane;
	lane = MemoryContextAllocZero(TopMemoryContext, sizeof(WorkLane));
	lane->server = MemoryContextStrdup(TopMemoryContext, server);
	lane->owner = owner;
	dlist_push_tail(&lanes, &lane->node);
	return lane;
}

void
kpg_worker_unshare(WorkLane *lane)
{
	if (lane->session != NULL)
		kpg_session_release(lane->session);
	lane->session = NULL;
}

static void
free_lane_if_empty(WorkLane *lane)
{
	if (lane->noperations > 0)
		return;
	kpg_worker_unshare(lane);
	Assert(lane->nwaiting == 0 && lane->nposting == 0 && lane->npolling == 0);
	dlist_delete(&lane->node);
	pfree(lane->server);
	pfree(lane);
}

/* ---- room ---- */

/* When the first of its blobs is to be asked for again. */
static int64
next_poll(const WorkOperation *op)
{
	int64		due = KPG_WORK_NEVER;

	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (!kpg_operations_is_final(op->blobs[i].row->state))
			due = Min(due, op->blobs[i].due_ms);
	}
	return due;
}

/* Is all that memory knows of it in the tables, too? */
static bool
can_be_dropped(const WorkOperation *op)
{
	if (op->row->state != KPG_STATE_POSTED || op->over || kpg_worker_has_tasks(op))
		return false;
	for (int i = 0; i < op->row->nblobs; i++)
	{
		if (op->blobs[i].change.pending)
			return false;
	}
	return true;
}

/*
 * What is posted and only asked about makes room for what is to be posted: of
 * a lane, or with lane NULL of all, what will not be asked about for longest.
 */
static WorkOperation *
find_victim(const WorkLane *lane)
{
	WorkOperation *victim = NULL;
	int64		victim_due = PG_INT64_MIN;
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_worker_operations)
	{
		WorkOperation *op = dlist_container(WorkOperation, node, iter.cur);
		int64		due;

		if ((lane != NULL && op->lane != lane) || !can_be_dropped(op))
			continue;
		due = next_poll(op);
		if (victim == NULL || due >= victim_due)
		{
			victim = op;
			victim_due = due;
		}
	}
	return victim;
}

static bool
has_room(const WorkLane *lane)
{
	return lane->noperations < LANE_OPERATIONS_MAX || find_victim(lane) != NULL;
}

/*
 * A few posted ones a look take the place of others, so that each is asked
 * about some day, however many there are; more would only ask more often.
 */
static bool
make_room(const WorkOperation *op, int *rotated)
{
	WorkLane   *lane = find_lane(op->row->server, op->row->owner);
	bool		lane_is_full = lane != NULL && lane->noperations >= LANE_OPERATIONS_MAX;
	bool		posted = op->row->state == KPG_STATE_POSTED;
	WorkOperation *victim;

	if (!lane_is_full && hash_get_num_entries(known) < OPERATIONS_MAX)
		return true;
	if (posted && *rotated >= ROTATED_MAX)
		return false;
	victim = find_victim(lane_is_full ? lane : NULL);
	if (victim == NULL || (posted && next_poll(victim) <= kpg_worker_now_ms()))
		return false;
	if (posted)
		++*rotated;
	kpg_worker_forget(victim);
	return true;
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

		lane->skipped = lane->nwaiting >= LANE_WAITING_MAX || !has_room(lane);
		if (lane->skipped)
			(*skip)[n++] = (KpgSkip) {lane->server, lane->owner};
	}
	return n;
}

bool
kpg_worker_more_staged(void)
{
	dlist_iter	iter;

	if (page_was_full)
		return true;
	dlist_foreach(iter, &lanes)
	{
		const WorkLane *lane = dlist_container(WorkLane, node, iter.cur);

		if (lane->skipped && lane->nwaiting < LANE_WAITING_FEW && has_room(lane))
			return true;
	}
	return false;
}

/* The next full look finds what there is. */
static void
forget_more_staged(void)
{
	dlist_iter	iter;

	page_was_full = false;
	dlist_foreach(iter, &lanes)
		dlist_container(WorkLane, node, iter.cur)->skipped = false;
}

/* ---- taking up ---- */

bool
kpg_worker_was_unknown(const KpgOpenBlob *row)
{
	return row->state != KPG_STATE_POSTED && row->posted_at != 0;
}

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

/*
 * Has an earlier attempt of the operation posted it, to some end?  Of what is
 * posting both posts may be of this attempt; to take that for a retry only
 * makes its row be written once more.
 */
static bool
is_retried(const KpgOpenOperation *operation, const KpgOpenBlob *row)
{
	if (row->state == KPG_STATE_STAGED)
		return row->post_attempts > 0;
	return row->state == KPG_STATE_POSTING && operation->attempts > 1 && row->post_attempts > 1;
}

static void
init_blob(WorkBlob *blob, const KpgOpenOperation *operation, KpgOpenBlob *row, int64 now_ms)
{
	blob->row = row;
	blob->since_ms = now_ms;

	/*
	 * Its worker ended between the record of a post and the record of its
	 * result.  The status table knows more; see worker_poll.c.
	 */
	blob->in_doubt = row->state == KPG_STATE_POSTING;
	blob->doubted = blob->in_doubt || kpg_worker_was_unknown(row);
	/* The row that its earlier post wrote has the outcome of that one. */
	blob->retried = is_retried(operation, row);
	blob->status_row = row->status_table != NULL && !blob->retried;
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
	int			nadopted;
	int			nrotated;
	bool		jobs;			/* there are some */
} Look;

/* All of it in context; NULL when it is gone or finished. */
static WorkOperation *
read_operation(MemoryContext context, const pg_uuid_t *id)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	KpgOpenOperation *row = kpg_operations_load(id);
	WorkOperation *op;
	int64		now_ms = kpg_worker_now_ms();

	if (row == NULL)
	{
		MemoryContextSwitchTo(old);
		return NULL;
	}
	op = palloc0(sizeof(WorkOperation));
	op->context = context;
	op->scratch = AllocSetContextCreate(context, "kusto_ingest change", ALLOCSET_SMALL_SIZES);
	op->row = row;
	op->blobs = palloc0(sizeof(WorkBlob) * (Size) Max(row->nblobs, 1));
	for (int i = 0; i < row->nblobs; i++)
		init_blob(&op->blobs[i], row, &row->blobs[i], now_ms);
	op->command_done = !needs_command(row);
	op->poll_window = 1;
	MemoryContextSwitchTo(old);
	return op;
}

/*
 * In the look's transaction; in a subtransaction, so that one operation that
 * cannot be read does not hide the others.
 */
static void
take_up(Look *look, const pg_uuid_t *id)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	MemoryContext context = AllocSetContextCreate(look->context, "kusto_ingest operation",
												  ALLOCSET_SMALL_SIZES);
	WorkOperation *volatile op = NULL;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		op = read_operation(context, id);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(old);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		op = NULL;
		/* That was about us, and not about the operation. */
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);
		set_aside(id, error);
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	if (op == NULL)
		MemoryContextDelete(context);
	else
		dlist_push_tail(&look->taken, &op->node);
}

static void
look_body(void *arg)
{
	Look	   *look = arg;
	List	   *ids;
	ListCell   *cell;

	if (look->everything)
		ids = kpg_operations_unfinished(&look->sweep, LOOK_LIMIT, &look->jobs);
	else
	{
		KpgSkip    *skip;
		int			nskip = lanes_to_skip(&skip);

		ids = kpg_operations_staged(skip, nskip, LOOK_LIMIT, &look->jobs);
	}
	look->nfound = list_length(ids);
	foreach(cell, ids)
	{
		const pg_uuid_t *id = lfirst(cell);

		if (hash_search(known, id, HASH_FIND, NULL) == NULL && !is_unreadable(id))
			take_up(look, id);
	}
}

/* After the look's transaction. */
static void
adopt(Look *look, WorkOperation *op)
{
	WorkLane   *lane;
	KnownEntry *entry;

	if (!make_room(op, &look->nrotated))
		return;
	look->nadopted++;
	lane = lane_of(op->row->server, op->row->owner);
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
		known = make_ids("kusto_ingest operations", sizeof(KnownEntry));
	dlist_init(&look.taken);
	look.context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest look",
										 ALLOCSET_DEFAULT_SIZES);
	done = kpg_worker_unit("looking for exports", look_body, &look, NULL) == KPG_UNIT_DONE;
	if (done)
	{
		kpg_worker_jobs_told(look.jobs);
		while (!dlist_is_empty(&look.taken))
			adopt(&look, dlist_container(WorkOperation, node, dlist_pop_head_node(&look.taken)));
		if (everything)
		{
			sweep = look.sweep;
			nothing_open = from_first && look.nfound == 0 && !look.jobs;
		}
		else
		{
			nothing_open = nothing_open && look.nfound == 0 && !look.jobs;
			page_was_full = look.nfound == LOOK_LIMIT && look.nadopted > 0;
		}
	}
	else
	{
		nothing_open = false;
		forget_more_staged();
	}
	/* With everything that was not adopted. */
	MemoryContextDelete(look.context);
	return done;
}

static void
tell_foreign_body(void *arg)
{
	int64		n = kpg_operations_count_foreign();

	if (n == 0)
		return;
	ereport(LOG,
			(errmsg_plural("%lld unfinished kusto_ingest operation was recorded by another cluster or database",
						   "%lld unfinished kusto_ingest operations were recorded by another cluster or database",
						   (unsigned long) n, (long long) n),
			 errdetail("Nothing is sent or asked for them."),
			 errhint("If this database has taken the other's place, adopt them as docs/operations.md tells.")));
}

bool
kpg_worker_tell_foreign(void)
{
	return kpg_worker_unit("looking for exports", tell_foreign_body, NULL, NULL) == KPG_UNIT_DONE;
}

bool
kpg_worker_is_idle(void)
{
	return nothing_open && dlist_is_empty(&kpg_worker_operations) && !kpg_worker_has_jobs();
}

void
kpg_worker_forget(WorkOperation *op)
{
	WorkLane   *lane = op->lane;

	kpg_worker_post_drop(op);
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
