/*
 * drain_look.c
 *	  Which captures there are in this database, and which of them have
 *	  something to send.
 *
 * A look is one transaction.  What it finds is built beside what is in memory,
 * and becomes that after the commit.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "drain_internal.h"
#include "operations_internal.h"
#include "settings.h"

dlist_head	kpg_drain_list = DLIST_STATIC_INIT(kpg_drain_list);

static bool listed;				/* the list has been read once */
static bool told_foreign;		/* the log has those that are never sent */

bool
kpg_drain_is_listed(void)
{
	return listed;
}

bool
kpg_drain_awaits_snapshot(const DrainCapture *capture)
{
	return capture->row->has_snapshot && capture->mark.snapshot == NULL;
}

/* One capture in a look; in the look's context. */
typedef struct Seen
{
	DrainCapture *known;		/* NULL: new */
	KpgCapture *row;			/* NULL: the list was not read */
	bool		read_mark;
	KpgMark		mark;
	bool		asked;
	bool		waiting;
	bool		shape_accepted; /* the one that it waits with */
	KpgFailure *failure;		/* of the export that it waits for */
} Seen;

typedef struct Look
{
	bool		woken;
	bool		list;
	MemoryContext context;
	Seen	   *seen;
	int			nseen;
	int64		size;			/* of the outbox */
	bool		dropped;		/* a capture that is over and all sent */
} Look;

static DrainCapture *
find(int32 id)
{
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_drain_list)
	{
		DrainCapture *capture = dlist_container(DrainCapture, node, iter.cur);

		if (capture->id == id)
			return capture;
	}
	return NULL;
}

/* ---- in the transaction ---- */

static void
count_foreign(void)
{
	KpgSqlScope scope;
	const KpgSqlArg args[] = {kpg_operations_cluster_arg(), kpg_operations_database_arg()};
	bool		isnull;
	int64		n;

	kpg_operations_enter(&scope);
	(void) kpg_operations_execute("SELECT count(*) FROM kusto.capture"
								  " WHERE ended_at IS NULL AND (system_identifier <> $1 OR database_oid <> $2)",
								  args, lengthof(args), SPI_OK_SELECT, 0);
	n = DatumGetInt64(kpg_operations_value(0, 1, &isnull));
	kpg_operations_leave(&scope);
	if (n == 0)
		return;
	ereport(LOG,
			(errmsg_plural("%lld kusto_ingest capture was recorded by another cluster or database",
						   "%lld kusto_ingest captures were recorded by another cluster or database",
						   (unsigned long) n, (long long) n),
			 errdetail("Their row changes are kept in the outbox and not sent."),
			 errhint("If this database has taken the other's place, call kusto_capture() for them again.")));
}

static void
see(Look *look, DrainCapture *known, KpgCapture *row)
{
	Seen	   *seen = &look->seen[look->nseen++];

	memset(seen, 0, sizeof(*seen));
	seen->known = known;
	seen->row = row;
}

/* Those of the list, or those that are known. */
static void
see_all(Look *look)
{
	List	   *rows;
	ListCell   *cell;
	dlist_iter	iter;
	int			n = 0;

	if (look->list)
	{
		rows = kpg_outbox_captures();
		look->seen = palloc(sizeof(Seen) * (Size) Max(list_length(rows), 1));
		foreach(cell, rows)
		{
			KpgCapture *row = lfirst(cell);

			see(look, find(row->id), row);
		}
		return;
	}
	dlist_foreach(iter, &kpg_drain_list)
		n++;
	look->seen = palloc(sizeof(Seen) * (Size) Max(n, 1));
	dlist_foreach(iter, &kpg_drain_list)
		see(look, dlist_container(DrainCapture, node, iter.cur), NULL);
}

/* It has ended without the mark that it commits with. */
static void
check_export(Seen *seen, KpgCapture *row)
{
	KpgOutcome	outcome;
	KpgFailure *failure;

	kpg_operations_outcome(&row->snapshot_operation, &outcome);
	/* In any other state it has written its mark, perhaps since we looked. */
	if (outcome.found && strcmp(outcome.state, "failed") != 0 && strcmp(outcome.state, "cancelled") != 0)
		return;
	/* Where nobody can ask for another one, nothing waits for it any more. */
	if (row->ended || !SearchSysCacheExists1(RELOID, ObjectIdGetDatum(row->relation)))
	{
		row->has_snapshot = false;
		return;
	}
	failure = palloc0(sizeof(KpgFailure));
	failure->error_code = pstrdup(unpack_sql_state(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE));
	failure->message = !outcome.found ? pstrdup("the export of the existing rows is gone")
		: psprintf("the export of the existing rows is %s", outcome.state);
	failure->details = outcome.found && outcome.error_message != NULL ? outcome.error_message
		: psprintf("It was operation %s.",
				   DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&row->snapshot_operation))));
	failure->hint = pstrdup("Call kusto_capture() again: with snapshot => true to export them, with false to go on without them.");
	seen->failure = failure;
}

/* Others write marks only before the first batch. */
static void
read_mark(Seen *seen)
{
	KpgCapture *row = seen->row != NULL ? seen->row : seen->known->row;

	seen->read_mark = seen->known == NULL || kpg_drain_awaits_snapshot(seen->known);
	if (!seen->read_mark)
		return;
	kpg_outbox_read_mark(row->id, &seen->mark);
	if (row->has_snapshot && seen->mark.snapshot == NULL && seen->row != NULL)
		check_export(seen, row);
}

/* Perhaps somebody has said so since. */
static void
check_shape(Seen *seen)
{
	const DrainCapture *known = seen->known;
	KpgCaptureShape *shape;

	if (known == NULL || !known->has_refused_shape || seen->row == NULL)
		return;
	shape = kpg_outbox_shape_of(known->id, known->refused_shape);
	seen->shape_accepted = shape != NULL && shape->accepted;
}

static bool
is_to_ask(const Look *look, const Seen *seen)
{
	const DrainCapture *known = seen->known;
	const KpgCapture *row = seen->row != NULL ? seen->row : known->row;

	if (row->has_snapshot && (seen->read_mark ? &seen->mark : &known->mark)->snapshot == NULL)
		return false;
	if (known == NULL)
		return true;
	return known->state == DRAIN_IDLE && known->waiting_ms == 0 && (look->woken || known->ask);
}

static void
ask_all(Look *look)
{
	int32	   *ids = palloc(sizeof(int32) * (Size) Max(look->nseen, 1));
	const char **lasts = palloc(sizeof(char *) * (Size) Max(look->nseen, 1));
	bool	   *waiting = palloc0(sizeof(bool) * (Size) Max(look->nseen, 1));
	int			n = 0;

	for (int i = 0; i < look->nseen; i++)
	{
		Seen	   *seen = &look->seen[i];

		seen->asked = is_to_ask(look, seen);
		if (!seen->asked)
			continue;
		ids[n] = seen->row != NULL ? seen->row->id : seen->known->id;
		lasts[n++] = (seen->read_mark ? &seen->mark : &seen->known->mark)->snapshot;
	}
	if (n > 0)
		kpg_outbox_waiting(ids, lasts, n, waiting);
	n = 0;
	for (int i = 0; i < look->nseen; i++)
	{
		if (look->seen[i].asked)
			look->seen[i].waiting = waiting[n++];
	}
}

/*
 * Over, and nothing is left.  That it was over is known from an earlier look:
 * what was written before that is visible in this one's snapshot.
 */
static void
drop_captures(Look *look)
{
	for (int i = 0; i < look->nseen; i++)
	{
		const Seen *seen = &look->seen[i];

		if (seen->known == NULL || !seen->known->over || !seen->asked || seen->waiting)
			continue;
		kpg_outbox_drop_capture(seen->known->id);
		look->dropped = true;
	}
}

static void
look_body(void *arg)
{
	Look	   *look = arg;
	MemoryContext old = MemoryContextSwitchTo(look->context);

	see_all(look);
	if (!told_foreign && look->list)
		count_foreign();
	for (int i = 0; i < look->nseen; i++)
	{
		read_mark(&look->seen[i]);
		check_shape(&look->seen[i]);
	}
	ask_all(look);
	drop_captures(look);
	if (kpg_flush_interval_ms > 0)
		look->size = kpg_outbox_size();
	MemoryContextSwitchTo(old);
}

/* ---- after it ---- */

static void
keep_row(DrainCapture *capture, const KpgCapture *row)
{
	MemoryContext context = AllocSetContextCreate(capture->context, "kusto_ingest capture row",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	KpgCapture *copy = palloc(sizeof(KpgCapture));

	*copy = *row;
	copy->relation_name = pstrdup(row->relation_name);
	copy->server = pstrdup(row->server);
	copy->database = pstrdup(row->database);
	copy->table_name = pstrdup(row->table_name);
	copy->on_type_error = pstrdup(row->on_type_error);
	/* What is captured is the triggers' matter. */
	copy->columns = NIL;
	MemoryContextSwitchTo(old);
	if (capture->row_context != NULL)
		MemoryContextDelete(capture->row_context);
	capture->row_context = context;
	capture->row = copy;
}

static DrainCapture *
adopt(const KpgCapture *row)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "kusto_ingest capture",
												  ALLOCSET_SMALL_SIZES);
	DrainCapture *capture = MemoryContextAllocZero(context, sizeof(DrainCapture));

	capture->context = context;
	capture->id = row->id;
	capture->sent_size = -1;
	dlist_push_tail(&kpg_drain_list, &capture->node);
	return capture;
}

void
kpg_drain_forget(DrainCapture *capture)
{
	kpg_drain_drop_batch(capture);
	dlist_delete(&capture->node);
	MemoryContextDelete(capture->context);
}

/* What was asked for is different now: it may well succeed at once. */
static bool
is_changed(const KpgCapture *a, const KpgCapture *b)
{
	return a->owner != b->owner || a->create_table != b->create_table ||
		strcmp(a->server, b->server) != 0;
}

static void
apply(Look *look, Seen *seen, int64 now)
{
	DrainCapture *capture = seen->known;

	if (capture == NULL)
		capture = adopt(seen->row);
	capture->listed = true;
	if (seen->row != NULL)
	{
		if (capture->row != NULL && is_changed(capture->row, seen->row))
			capture->due_ms = 0;
		keep_row(capture, seen->row);
		capture->over = seen->row->ended;
	}
	if (seen->shape_accepted)
		capture->due_ms = 0;
	if (seen->read_mark)
		kpg_drain_keep_mark(capture, &seen->mark);
	if (seen->asked)
	{
		capture->ask = false;
		capture->hurry = capture->mark.current != NULL;
		capture->waiting_ms = seen->waiting || capture->hurry ? now : 0;
	}
	if (capture->sent_size < 0 || look->size < capture->sent_size)
		capture->sent_size = look->size;
	/* Enough for a request of its own, as far as the size of all tells. */
	if (capture->waiting_ms != 0 && look->size - capture->sent_size >= KC_STREAM_MAX_RAW)
		capture->hurry = true;
	if (seen->failure != NULL)
		kpg_drain_tell(capture, seen->failure);
}

static void
forget_unlisted(void)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &kpg_drain_list)
	{
		DrainCapture *capture = dlist_container(DrainCapture, node, iter.cur);

		if (!capture->listed)
			kpg_drain_forget(capture);
	}
}

/* Is there a capture that a look without the list could tell something of? */
static bool
is_worth_it(bool woken)
{
	dlist_iter	iter;

	dlist_foreach(iter, &kpg_drain_list)
	{
		const DrainCapture *capture = dlist_container(DrainCapture, node, iter.cur);

		if (capture->ask)
			return true;
		if (woken && capture->state == DRAIN_IDLE &&
			(capture->waiting_ms == 0 || (!capture->hurry && capture->failures == 0)))
			return true;
	}
	return false;
}

bool
kpg_drain_look_at(bool woken, bool list)
{
	Look		look = {.woken = woken,.list = list || !listed};
	int64		now = kpg_worker_now_ms();
	dlist_iter	iter;

	if (!look.list && !is_worth_it(woken))
		return true;
	look.context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest look at captures",
										 ALLOCSET_DEFAULT_SIZES);
	if (kpg_drain_unit("looking for row changes", look_body, &look, NULL) != KPG_UNIT_DONE)
	{
		MemoryContextDelete(look.context);
		return false;
	}
	told_foreign |= look.list;
	dlist_foreach(iter, &kpg_drain_list)
		dlist_container(DrainCapture, node, iter.cur)->listed = !look.list;
	for (int i = 0; i < look.nseen; i++)
		apply(&look, &look.seen[i], now);
	forget_unlisted();
	listed = true;
	MemoryContextDelete(look.context);
	/* The next list is without it. */
	if (look.dropped)
		return kpg_drain_look_at(false, true);
	return true;
}
