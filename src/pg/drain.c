/*
 * drain.c
 *	  Sending captured row changes: driving the captures.
 *
 * Each capture is a small state machine in the worker's memory.  What is idle
 * begins a batch when something waits and its time has come; what is under way
 * advances when its task has.  A capture's trouble is its own: what it raises
 * ends here, and the shares of requests and memory leave room for others.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"

#include "drain_internal.h"
#include "settings.h"

/*
 * Each may hold a batch of KC_STREAM_MAX_RAW, or what an ingest needs, so this
 * bounds memory, too.  Those of one server and role have a share of it, so that
 * a service that stalls leaves some to others; once it fails, a single one
 * tries for all.
 */
#define SENDING_MAX			12
#define LANE_MAX			4
/* The list is read anew so often at most while commits keep coming. */
#define LIST_PAUSE_MS		200
#define LOOK_AGAIN_MS		500
#define ROTATE_PAUSE_MS		1000
#define ROTATIONS			3
#define BUSY_PAUSE_MS		500 /* somebody has the tables locked */
#define ERROR_PAUSE_MS		2000	/* a transaction failed */
/* Exports that are staged meanwhile wait for so long at most. */
#define LINGER_MAX_MS		50
/* With a flush_interval of 0 commits may come faster than looks are worth it. */
#define LINGER_MIN_MS		5
/* Whoever waits in kusto_flush has failures tried again so soon. */
#define FLUSH_RETRY_MS		1000

static bool holding_back;
static bool run_again;
static bool flushing;
static bool woken_late;			/* woken, and the list was not read */
static int64 list_ms;			/* the list was read last */
static int64 list_due_ms;		/* and is to be read whatever happens */
static int64 woken_ms;			/* woken last */
static int	rotations_left;		/* to be tried, now that something was sent */
static int64 rotate_ms;			/* when the last was tried */

bool
kpg_drain_is_flushing(void)
{
	return flushing;
}

void
kpg_drain_run_again(void)
{
	run_again = true;
}

void
kpg_drain_hold_back(bool hold)
{
	holding_back = hold;
}

bool
kpg_drain_has_captures(void)
{
	return !kpg_drain_is_listed() || !dlist_is_empty(&kpg_drain_list);
}

bool
kpg_drain_look(void)
{
	return kpg_drain_look_at(false, true);
}

/* ---- transactions ---- */

typedef struct Unit
{
	void		(*body) (void *arg);
	void	   *arg;
	bool		locked;
} Unit;

static void
unit_body(void *arg)
{
	Unit	   *unit = arg;

	unit->locked = kpg_outbox_lock() == KPG_TABLES_READY;
	if (!unit->locked)
		return;
	kpg_outbox_set_right();
	unit->body(unit->arg);
}

KpgUnitResult
kpg_drain_unit(const char *activity, void (*body) (void *arg), void *arg, ErrorData **error)
{
	Unit		unit = {.body = body, .arg = arg};
	KpgUnitResult result = kpg_worker_unit(activity, unit_body, &unit, error);

	return result == KPG_UNIT_DONE && !unit.locked ? KPG_UNIT_BUSY : result;
}

void
kpg_drain_pause(DrainCapture *capture, KpgUnitResult result)
{
	capture->due_ms = kpg_worker_now_ms() + (result == KPG_UNIT_BUSY ? BUSY_PAUSE_MS : ERROR_PAUSE_MS);
}

/* ---- shares ---- */

static bool
is_same_lane(const DrainCapture *a, const DrainCapture *b)
{
	return a->row->owner == b->row->owner && strcmp(a->row->server, b->row->server) == 0;
}

/* One whose service has just failed asks alone, for all of its lane. */
static bool
may_begin(const DrainCapture *capture)
{
	int			sending = 0;
	int			in_lane = 0;
	bool		failing = false;
	dlist_iter	iter;

	if (holding_back || (capture->large && kpg_drain_uploads() >= DRAIN_UPLOADS_MAX))
		return false;
	dlist_foreach(iter, &kpg_drain_list)
	{
		const DrainCapture *other = dlist_container(DrainCapture, node, iter.cur);
		bool		same = is_same_lane(capture, other);

		sending += other->batch != NULL;
		in_lane += same && other->batch != NULL;
		failing |= same && other->failures > 0;
	}
	return sending < SENDING_MAX && in_lane < (failing ? 1 : LANE_MAX);
}

int
kpg_drain_uploads(void)
{
	int			n = 0;
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_drain_list)
		n += dlist_container(DrainCapture, node, iter.cur)->state == DRAIN_UPLOADING;
	return n;
}

/* ---- driving one ---- */

/* When an idle one is to begin a batch. */
static int64
begin_due(const DrainCapture *capture)
{
	int64		due = capture->waiting_ms;

	if (capture->waiting_ms == 0)
		return KPG_WORK_NEVER;
	if (!capture->hurry && !flushing && !capture->over)
		due += kpg_flush_interval_ms;
	if (capture->failures > 0 && flushing)
		return Max(due, Min(capture->due_ms, capture->failed_ms + FLUSH_RETRY_MS));
	return Max(due, capture->due_ms);
}

/* More may have come while the batch was sent. */
static void
go_on(DrainCapture *capture, int64 now)
{
	rotations_left = ROTATIONS;
	dlist_delete(&capture->node);
	dlist_push_tail(&kpg_drain_list, &capture->node);
	run_again = true;
	if (capture->mark.current != NULL)
		capture->hurry = true;
	if (capture->hurry || flushing || kpg_flush_interval_ms == 0)
		capture->waiting_ms = now;
	else
		capture->ask = true;
}

/* An idle one without room waits until a batch ends. */
static int64
next_due(const DrainCapture *capture, int64 now)
{
	int64		due;

	if (capture->state == DRAIN_ENDING)
		return capture->due_ms;
	if (capture->state != DRAIN_IDLE)
		return KPG_WORK_NEVER;
	due = begin_due(capture);
	return due > now || may_begin(capture) ? due : KPG_WORK_NEVER;
}

static int64
drive(DrainCapture *capture)
{
	int64		now = kpg_worker_now_ms();

	if (capture->state == DRAIN_IDLE)
	{
		if (begin_due(capture) <= now && may_begin(capture))
			kpg_drain_begin(capture);
	}
	else if (capture->state != DRAIN_ENDING)
		kpg_drain_advance(capture);
	if (capture->state == DRAIN_ENDING && capture->due_ms <= now)
	{
		kpg_drain_end(capture);
		if (capture->state == DRAIN_IDLE)
			go_on(capture, now);
	}
	return next_due(capture, now);
}

/* What escapes, such as running out of memory, is this capture's matter alone. */
static int64
guarded_drive(DrainCapture *capture)
{
	MemoryContext context = CurrentMemoryContext;
	volatile int64 due = 0;

	PG_TRY();
	{
		due = drive(capture);
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		MemoryContextSwitchTo(context);
		EmitErrorReport();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		/* What is sent already is not sent again for that. */
		if (capture->state != DRAIN_ENDING)
			kpg_drain_drop_batch(capture);
		capture->due_ms = due = kpg_worker_now_ms() + ERROR_PAUSE_MS;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	return due;
}

/* ---- the ring ---- */

typedef struct Rotation
{
	int			n;
	int32	   *captures;
	const char **lasts;
	bool		truncated;
} Rotation;

static void
rotate_body(void *arg)
{
	Rotation   *rotation = arg;

	rotation->truncated = kpg_outbox_rotate(rotation->captures, rotation->lasts, rotation->n);
}

static void
rotate(void)
{
	Rotation	rotation = {0};
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_drain_list)
		rotation.n++;
	rotation.captures = palloc(sizeof(int32) * (Size) Max(rotation.n, 1));
	rotation.lasts = palloc(sizeof(char *) * (Size) Max(rotation.n, 1));
	rotation.n = 0;
	dlist_foreach(iter, &kpg_drain_list)
	{
		const DrainCapture *capture = dlist_container(DrainCapture, node, iter.cur);

		rotation.captures[rotation.n] = capture->id;
		rotation.lasts[rotation.n++] = capture->mark.snapshot;
	}
	(void) kpg_drain_unit("truncating the outbox of row changes", rotate_body, &rotation, NULL);
}

static bool
is_sending_anything(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_drain_list)
	{
		if (dlist_container(DrainCapture, node, iter.cur)->state != DRAIN_IDLE)
			return true;
	}
	return false;
}

/*
 * Once a second while there is traffic.  After it a few times more: what
 * somebody reads cannot be truncated, but next time perhaps.
 */
static int64
rotate_if_due(int64 now)
{
	int64		pause = rotations_left < ROTATIONS ? kpg_naptime_ms : ROTATE_PAUSE_MS;

	if (rotations_left == 0 || holding_back)
		return KPG_WORK_NEVER;
	if (now < rotate_ms + pause)
		return rotate_ms + pause;
	rotate_ms = now;
	if (!is_sending_anything())
		rotations_left--;
	rotate();
	return rotations_left > 0 ? now + ROTATE_PAUSE_MS : KPG_WORK_NEVER;
}

/* ---- driving all ---- */

/* Read the list when it is time, and ask what has something to send. */
static void
look_if_due(bool woken, int64 now)
{
	bool		list = now >= list_due_ms ||
		((woken || woken_late) && now >= list_ms + LIST_PAUSE_MS);
	bool		asked = false;
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_drain_list)
		asked |= dlist_container(DrainCapture, node, iter.cur)->ask;
	if (!woken && !list && !asked)
		return;
	if (!kpg_drain_look_at(woken || list, list))
	{
		list_due_ms = now + LOOK_AGAIN_MS;
		return;
	}
	woken_late = !list && (woken || woken_late);
	if (list)
	{
		list_ms = now;
		list_due_ms = now + kpg_naptime_ms;
	}
}

int64
kpg_drain_run(bool woken)
{
	int64		now = kpg_worker_now_ms();
	int64		due = KPG_WORK_NEVER;
	int64		rotate_due;
	dlist_mutable_iter iter;

	if (woken)
		woken_ms = now;
	if (woken || flushing)
		flushing = kpg_drain_flush_wanted();
	if (!holding_back)
		look_if_due(woken, now);
	run_again = false;
	dlist_foreach_modify(iter, &kpg_drain_list)
	{
		int64		capture_due = guarded_drive(dlist_container(DrainCapture, node, iter.cur));

		due = Min(due, capture_due);
	}
	rotate_due = rotate_if_due(now);
	if (run_again)
		return 0;
	due = Min(due, rotate_due);
	if (holding_back)
		return due;
	if (woken_late)
		due = Min(due, list_ms + LIST_PAUSE_MS);
	return Min(due, list_due_ms);
}

/*
 * Whatever commits now is seen by the next look anyway: only the first of many
 * commits needs to wake us.
 */
int64
kpg_drain_linger_ms(void)
{
	int64		slice = Max(LINGER_MIN_MS, Min(LINGER_MAX_MS, kpg_flush_interval_ms));
	int64		left = woken_ms + slice - kpg_worker_now_ms();
	bool		active = false;
	dlist_iter	iter;

	if (left <= 0 || flushing || holding_back)
		return 0;
	dlist_foreach(iter, &kpg_drain_list)
	{
		const DrainCapture *capture = dlist_container(DrainCapture, node, iter.cur);

		active |= capture->state != DRAIN_IDLE || capture->waiting_ms != 0;
	}
	return active ? left : 0;
}

bool
kpg_drain_is_sending(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_drain_list)
	{
		DrainState	state = dlist_container(DrainCapture, node, iter.cur)->state;

		if (state == DRAIN_STREAMING || state == DRAIN_ENDING)
			return true;
	}
	return false;
}

void
kpg_drain_forget_all(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_drain_list)
	{
		DrainCapture *capture = dlist_container(DrainCapture, node, iter.cur);

		/* A request that has been answered needs no network any more. */
		if (capture->state != DRAIN_ENDING)
			kpg_drain_drop_batch(capture);
	}
}
