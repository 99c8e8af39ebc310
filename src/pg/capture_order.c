/*
 * capture_order.c
 *	  Numbers in the order in which rows were changed, also when triggers change
 *	  rows.
 *
 * Changes are replayed by _seq, so of two changes to one row the later needs
 * the higher one.  Between transactions that follows from when a number is
 * drawn: in an AFTER trigger, when the rows are locked, and before the commit
 * that lets another transaction have them.  Within a transaction, statements
 * that run one after another draw one after another.  What is left are
 * statements that run inside others:
 *
 * - While the outer statement still executes (a BEFORE trigger, a function in
 *	 an expression), the inner one reports its rows, and draws, first.  As a rule
 *	 it has also changed first: the row that a BEFORE trigger is fired for is
 *	 changed after it.
 *
 * - In the outer statement's AFTER triggers all of its rows are changed, but
 *	 those of its triggers that come later have not reported yet; and a
 *	 statement-level trigger comes last.  An AFTER trigger for each row that
 *	 updates the same row again is common.  So before an inner statement draws,
 *	 every statement around it that is in its AFTER triggers reserves a number,
 *	 if it has none, the outermost first, and all of its changes that are
 *	 reported from then on take that.
 *
 * Which statements are in their AFTER triggers is told by a hook around
 * ExecutorFinish(), which is where they are fired, and by one around COPY FROM,
 * which fires them after it has taken back the context that it gives errors.
 *
 * A number that is reserved serves the tables that the statement itself names,
 * their partitions and the tables that they are partitions of.  Other tables,
 * changed in the same level of AFTER triggers by referential actions, may have
 * been changed at any time in it: they draw when they report.
 *
 * A session's first trigger may be what loads the library.  No hook has seen the
 * statements around it, but they are as many as there are triggers around it;
 * each is taken for one that is in its AFTER triggers, and has a run.  Of the
 * outermost it is known which tables it names; the others' runs serve all.
 *
 * It is not in order when a BEFORE trigger changes a row that the same statement
 * has changed already; when a referential action changes rows of the table that
 * the statement itself changes, or a user's trigger those that the action
 * changes as well, in the same statement; when triggers of TRUNCATE change the
 * tables that it empties; and when BEFORE triggers run in a WITH query that was
 * not read to its end.
 *
 * The stack is made of what lies on the C stack, and every frame is taken off
 * again by whoever has put it there, also when an error passes.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "commands/copy.h"
#include "executor/executor.h"
#include "nodes/parsenodes.h"
#include "parser/parsetree.h"
#include "replication/logicalworker.h"
#include "tcop/utility.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/portal.h"

#include "capture_internal.h"
#include "compat.h"

#define RUN_LENGTH		(INT64CONST(1) << KPG_OUTBOX_SEQ_BITS)

/* Numbers at most that one statement reserves, and how many COPY does. */
#define SPARE_MAX		16
#define COPY_NUMBERS	8

/* A statement that fires its AFTER triggers, or COPY FROM from its beginning. */
typedef struct Frame
{
	struct Frame *outer;
	const QueryDesc *query;		/* NULL: COPY FROM */
	Oid			copied;			/* the table that COPY names */
	const ErrorContextCallback *errors; /* at the beginning of COPY */
	Oid			known;			/* table that it is known to change, so far */
	Oid			unknown;		/* one that it is known not to change */
	bool		reserved;
	KpgSeqRun	run;			/* what its own changes are given */
	int			nspare;
	int64		spare[SPARE_MAX];	/* further numbers, the last is next */
} Frame;

static Frame *innermost;

/* Statements around the trigger that loaded the library, the outermost first. */
#define UNSEEN_MAX		8
static int	nunseen;
static KpgSeqRun unseen[UNSEEN_MAX];
static TransactionId unseen_in; /* transaction */

/* Tables that the outermost names; 0: not known. */
#define NAMED_MAX		8
static int	nnamed;
static Oid	named[NAMED_MAX];

static ExecutorFinish_hook_type previous_finish;
static ProcessUtility_hook_type previous_utility;

/* ---- which tables a statement changes ---- */

static bool
names(const Frame *frame, Oid relation)
{
	ListCell   *cell;

	if (frame->query == NULL)
		return frame->copied == relation;
	foreach(cell, kpg_compat_result_relations(frame->query->plannedstmt))
	{
		if (rt_fetch(lfirst_int(cell), frame->query->plannedstmt->rtable)->relid == relation)
			return true;
	}
	return false;
}

/* It may have been addressed by a table between it and the one that was captured. */
static bool
names_ancestor(const Frame *frame, Oid relation)
{
	ListCell   *cell;

	foreach(cell, get_partition_ancestors(relation))
	{
		if (names(frame, lfirst_oid(cell)))
			return true;
	}
	return false;
}

static bool
changes(Frame *frame, Oid relation, Oid root)
{
	if (frame->known == relation)
		return true;
	if (frame->unknown == relation)
		return false;
	if (names(frame, relation) || (root != relation && names_ancestor(frame, relation)))
	{
		frame->known = relation;
		return true;
	}
	frame->unknown = relation;
	return false;
}

/* ---- drawing ---- */

/*
 * COPY FROM takes its context off before it fires AFTER triggers.  inner is the
 * next COPY inside of this one, which has a context of its own, or NULL.
 */
static bool
is_in_after_triggers(const Frame *frame, const Frame *inner)
{
	const ErrorContextCallback *context = inner != NULL ? inner->errors : error_context_stack;

	if (frame->query != NULL)
		return true;
	for (; context != NULL && context != frame->errors; context = context->previous)
	{
		if (context->callback == CopyFromErrorCallback)
			return false;
	}
	return true;
}

/* An UPDATE of the primary key takes two places a row. */
static int
numbers_needed(const Frame *frame)
{
	uint64		n;

	if (frame->query == NULL)
		return COPY_NUMBERS;
	n = 1 + frame->query->estate->es_processed / (RUN_LENGTH / 2);
	/* Nobody counts what those have changed. */
	if (frame->query->plannedstmt->hasModifyingCTE)
		n += 2;
	return (int) Min(n, SPARE_MAX);
}

static void
set_run(KpgSeqRun *run, int64 number)
{
	run->next = number << KPG_OUTBOX_SEQ_BITS;
	run->end = run->next + RUN_LENGTH;
}

static int
trigger_depth(void)
{
	return DatumGetInt32(DirectFunctionCall1(pg_trigger_depth, (Datum) 0));
}

/* Those whose triggers have returned are gone. */
static void
forget_unseen(int depth)
{
	if (nunseen > 0 && unseen_in != GetTopTransactionIdIfAny())
		nunseen = 0;
	nunseen = Min(nunseen, depth);
}

static void
reserve_unseen(void)
{
	for (int i = 0; i < nunseen; i++)
	{
		if (unseen[i].next == unseen[i].end)
			set_run(&unseen[i], kpg_outbox_number());
	}
}

static bool
is_named(Oid relation)
{
	for (int i = 0; i < nnamed; i++)
	{
		if (named[i] == relation)
			return true;
	}
	return false;
}

static bool
outermost_changes(Oid relation, Oid root)
{
	ListCell   *cell;

	if (nnamed == 0 || is_named(relation))
		return true;
	if (root == relation)
		return false;
	foreach(cell, get_partition_ancestors(relation))
	{
		if (is_named(lfirst_oid(cell)))
			return true;
	}
	return false;
}

/* What the statement that no hook has seen, and fires this trigger, has; or NULL. */
static KpgSeqRun *
unseen_run(Oid relation, Oid root)
{
	int			depth;

	if (nunseen == 0)
		return NULL;
	depth = trigger_depth();
	forget_unseen(depth);
	reserve_unseen();
	if (nunseen == 0 || nunseen != depth || (depth == 1 && !outermost_changes(relation, root)))
		return NULL;
	return &unseen[nunseen - 1];
}

static void
reserve(Frame *frame, const Frame *inner_copy)
{
	int			n;

	if (frame == NULL)
	{
		reserve_unseen();
		return;
	}
	reserve(frame->outer, frame->query == NULL ? frame : inner_copy);
	if (frame->reserved || !is_in_after_triggers(frame, inner_copy))
		return;

	n = numbers_needed(frame);
	if (frame->run.next == frame->run.end)
	{
		set_run(&frame->run, kpg_outbox_number());
		n--;
	}
	/* The lowest is to be the last in the array. */
	frame->nspare = n;
	for (int i = n - 1; i >= 0; i--)
		frame->spare[i] = kpg_outbox_number();
	frame->reserved = true;
}

int64
kpg_capture_order_number(void)
{
	reserve(innermost, NULL);
	return kpg_outbox_number();
}

KpgSeqRun *
kpg_capture_order_run(Oid relation, Oid root, KpgSeqRun *own)
{
	Frame	   *frame = innermost;
	KpgSeqRun  *run;

	if (frame == NULL && (run = unseen_run(relation, root)) != NULL)
		return run;
	if (frame == NULL || !changes(frame, relation, root))
	{
		set_run(own, kpg_capture_order_number());
		return own;
	}
	if (frame->run.next < frame->run.end)
		return &frame->run;
	if (frame->nspare > 0)
		set_run(&frame->run, frame->spare[--frame->nspare]);
	else
	{
		reserve(frame->outer, frame->query == NULL ? frame : NULL);
		set_run(&frame->run, kpg_outbox_number());
	}
	return &frame->run;
}

bool
kpg_capture_order_is_update(Oid relation)
{
	const PlannedStmt *plan;

	if (innermost == NULL || innermost->query == NULL)
		return false;
	plan = innermost->query->plannedstmt;
	return plan->commandType == CMD_UPDATE && !plan->hasModifyingCTE && names(innermost, relation);
}

/* ---- hooks ---- */

static void
push(Frame *frame)
{
	if (innermost == NULL && nunseen > 0)
		forget_unseen(trigger_depth());
	frame->outer = innermost;
	frame->known = InvalidOid;
	frame->unknown = InvalidOid;
	frame->reserved = false;
	frame->run.next = frame->run.end = 0;
	frame->nspare = 0;
	innermost = frame;
}

static void
call_finish(QueryDesc *query)
{
	if (previous_finish != NULL)
		previous_finish(query);
	else
		standard_ExecutorFinish(query);
}

/* Referential actions leave their triggers to the statement that they belong to. */
static void
finish(QueryDesc *query)
{
	Frame		frame;

	if (kpg_compat_result_relations(query->plannedstmt) == NIL ||
		(query->estate->es_top_eflags & EXEC_FLAG_SKIP_TRIGGERS) != 0)
	{
		call_finish(query);
		return;
	}

	frame.query = query;
	frame.copied = InvalidOid;
	frame.errors = NULL;
	push(&frame);
	PG_TRY();
	{
		call_finish(query);
	}
	PG_FINALLY();
	{
		innermost = frame.outer;
	}
	PG_END_TRY();
}

static void
call_utility(KPG_COMPAT_UTILITY_PARAMETERS)
{
	if (previous_utility != NULL)
		previous_utility(KPG_COMPAT_UTILITY_ARGUMENTS);
	else
		standard_ProcessUtility(KPG_COMPAT_UTILITY_ARGUMENTS);
}

static void
process_utility(KPG_COMPAT_UTILITY_PARAMETERS)
{
	const CopyStmt *copy = (const CopyStmt *) pstmt->utilityStmt;
	List	   *relatives;
	Frame		frame;

	if (!IsA(copy, CopyStmt) || !copy->is_from || copy->relation == NULL)
	{
		/* Before: a command that ends the transaction may free its own tree. */
		relatives = kpg_capture_relatives(pstmt->utilityStmt);
		call_utility(KPG_COMPAT_UTILITY_ARGUMENTS);
		if (relatives != NIL)
			kpg_capture_related(relatives);
		return;
	}

	frame.query = NULL;
	/* Now, as COPY will: a trigger may have another search_path and another role. */
	frame.copied = RangeVarGetRelid(copy->relation, NoLock, true);
	frame.errors = error_context_stack;
	push(&frame);
	PG_TRY();
	{
		call_utility(KPG_COMPAT_UTILITY_ARGUMENTS);
	}
	PG_FINALLY();
	{
		innermost = frame.outer;
	}
	PG_END_TRY();
}

/* Not of a statement inside of a procedure, a block, or a function. */
static void
note_named(void)
{
	PlannedStmt *plan;
	ListCell   *cell;

	nnamed = 0;
	if (ActivePortal == NULL || list_length(ActivePortal->stmts) != 1)
		return;
	plan = linitial_node(PlannedStmt, ActivePortal->stmts);
	if (list_length(kpg_compat_result_relations(plan)) > NAMED_MAX)
		return;
	foreach(cell, kpg_compat_result_relations(plan))
		named[nnamed++] = rt_fetch(lfirst_int(cell), plan->rtable)->relid;
}

static bool
is_in_copy(void)
{
	for (const ErrorContextCallback *context = error_context_stack; context != NULL; context = context->previous)
	{
		if (context->callback == CopyFromErrorCallback)
			return true;
	}
	return false;
}

/*
 * An apply worker fires triggers without statements, and never forgets any.  COPY
 * that is not in its AFTER triggers yet changes rows after this.
 */
static void
note_unseen(void)
{
	unseen_in = GetTopTransactionIdIfAny();
	if (!TransactionIdIsValid(unseen_in) || IsLogicalWorker() || is_in_copy())
		return;
	nunseen = Min(trigger_depth() + 1, UNSEEN_MAX);
	note_named();
}

void
kpg_capture_order_init(void)
{
	note_unseen();
	previous_finish = ExecutorFinish_hook;
	ExecutorFinish_hook = finish;
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}
