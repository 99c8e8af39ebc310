/*
 * capture.c
 *	  The trigger function: changed rows as CSV for the outbox.
 *
 * A statement-level trigger reads its transition tables, one for each row what
 * it is given.  An UPDATE that changes the primary key is recorded as the
 * deletion of the old row and an update, so that a key always stands for one
 * row.
 *
 * This is a part of every statement that changes captured rows.  It runs as
 * whoever runs the statement: output functions of users' types do nothing here
 * that they would not do in a query.  What is raised makes the statement fail.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "capture_internal.h"
#include "compat.h"

PG_FUNCTION_INFO_V1(kusto_capture_changes);

/* What one call of the trigger reports. */
typedef struct Report
{
	KpgCaptureSource *source;
	KpgCaptureChunk *chunk;
	KpgSeqRun	own;
	KpgSeqRun  *run;			/* NULL: no number drawn yet */
	TimestampTz now;
	int			middle_len;
	char		middle[24];		/* ",<_txid>," */
	int			tail_len;
	char		tail[KPG_DATETIME_MAX + 1]; /* ",<_changed_at>" */
} Report;

/* ---- one row ---- */

static void
begin_report(Report *report, KpgCaptureSource *source)
{
	char	   *p = report->middle;

	report->source = source;
	report->run = NULL;
	report->now = GetCurrentTimestamp();
	*p++ = ',';
	p += pg_ulltoa_n(U64FromFullTransactionId(GetTopFullTransactionId()), p);
	*p++ = ',';
	report->middle_len = (int) (p - report->middle);
	report->tail[0] = ',';
	report->tail_len = 1 + kpg_format_datetime(report->now, report->tail + 1);
	report->chunk = kpg_capture_buffer_open(source->capture, source->shape);
}

static void
end_report(Report *report)
{
	kpg_capture_buffer_close(report->chunk);
}

static int64
next_seq(Report *report)
{
	if (report->run == NULL || report->run->next == report->run->end)
		report->run = kpg_capture_order_run(report->source->relation, report->source->root, &report->own);
	return report->run->next++;
}

/* The columns in front, as one field that is written already. */
static void
put_front(Report *report, const char *op, int64 seq)
{
	char		front[128];
	size_t		op_len = strlen(op);
	char	   *p = front;

	*p++ = '"';
	memcpy(p, op, op_len);
	p += op_len;
	*p++ = '"';
	memcpy(p, report->middle, report->middle_len);
	p += report->middle_len;
	p += pg_ulltoa_n((uint64) seq, p);
	memcpy(p, report->tail, report->tail_len);
	p += report->tail_len;
	kc_csv_plain(&report->chunk->writer, front, p - front);
}

/* slot NULL: there is no row; old NULL: there was none, or it is not known. */
static void
put_row(Report *report, const char *op, TupleTableSlot *old, TupleTableSlot *slot)
{
	KpgCaptureSource *source = report->source;
	KcCsvWriter *w = &report->chunk->writer;
	MemoryContext caller = MemoryContextSwitchTo(source->row_context);
	int64		seq = next_seq(report);

	kc_csv_row_begin(w);
	put_front(report, op, seq);
	if (source->old_values)
	{
		if (old != NULL)
			kpg_format_object(source->format, old, w);
		else
			kc_csv_null(w);
	}
	if (slot != NULL)
		kpg_format_fields(source->format, slot, w);
	else
	{
		for (int i = 0; i < source->nfields; i++)
			kc_csv_null(w);
	}
	kc_csv_row_end(w);
	MemoryContextSwitchTo(caller);
	MemoryContextReset(source->row_context);
	kpg_capture_buffer_added(report->chunk, seq, report->now);
}

/* Does one of these columns differ?  As stored: 1.0 and 1.00 do. */
static bool
differ(const KpgCaptureSource *source, const AttrNumber *columns, int n,
	   TupleTableSlot *old, TupleTableSlot *new)
{
	for (int i = 0; i < n; i++)
	{
		Form_pg_attribute att = TupleDescAttr(source->desc, columns[i] - 1);
		bool		old_null;
		bool		new_null;
		Datum		old_value = slot_getattr(old, columns[i], &old_null);
		Datum		new_value = slot_getattr(new, columns[i], &new_null);

		if (old_null != new_null)
			return true;
		if (!old_null && !datum_image_eq(old_value, new_value, att->attbyval, att->attlen))
			return true;
	}
	return false;
}

/* What an UPDATE has done to a row, as far as it matters here. */
typedef enum Change
{
	CHANGE_NONE,				/* of the columns that are captured */
	CHANGE_PLAIN,
	CHANGE_OF_KEY
} Change;

static Change
change_of(const KpgCaptureSource *source, TupleTableSlot *old, TupleTableSlot *new)
{
	MemoryContext caller;
	Change		change = CHANGE_PLAIN;

	if (!source->needs_old)
		return CHANGE_PLAIN;
	caller = MemoryContextSwitchTo(source->row_context);
	if (source->nwatched > 0 && !differ(source, source->watched, source->nwatched, old, new))
		change = CHANGE_NONE;
	else if (differ(source, source->key, source->nkey, old, new))
		change = CHANGE_OF_KEY;
	MemoryContextSwitchTo(caller);
	MemoryContextReset(source->row_context);
	return change;
}

/* ---- transition tables ---- */

/*
 * One that is read from its beginning.  By its first read pointer: queries that
 * read it, of other triggers, have pointers of their own.
 */
typedef struct Rows
{
	Tuplestorestate *store;
	int64		left;
	TupleTableSlot *slot;
} Rows;

#define READ_POINTER 0

static Rows
read_rows(Tuplestorestate *store, TupleTableSlot *slot)
{
	tuplestore_select_read_pointer(store, READ_POINTER);
	tuplestore_rescan(store);
	return (Rows) {.store = store,.left = tuplestore_tuple_count(store),.slot = slot};
}

static bool
next_row(Rows *rows)
{
	if (rows->left == 0)
		return false;
	rows->left--;
	/* A value's output function may have run queries. */
	tuplestore_select_read_pointer(rows->store, READ_POINTER);
	return tuplestore_gettupleslot(rows->store, true, false, rows->slot);
}

static void
report_rows(Report *report, const char *op, Tuplestorestate *store, TupleTableSlot *slot, bool is_old)
{
	Rows		rows = read_rows(store, slot);

	while (next_row(&rows))
		put_row(report, op, is_old ? slot : NULL, slot);
}

/*
 * In the order in which rows were changed, some of them more than once by actions
 * of foreign keys.  A key that a row gets is free then, unless it is deferrable:
 * then rows that lose their keys are deleted under them first, and only a second
 * pass gives them their new ones.  Is that needed?
 */
static bool
report_changes_in_step(Report *report, const TriggerData *trigdata, bool second)
{
	const KpgCaptureSource *source = report->source;
	Rows		old = read_rows(trigdata->tg_oldtable, source->old_slot);
	Rows		new = read_rows(trigdata->tg_newtable, source->new_slot);
	bool		put_off = false;

	while (next_row(&old) && next_row(&new))
	{
		Change		change = change_of(source, old.slot, new.slot);
		bool		late = change == CHANGE_OF_KEY && source->key_deferrable;

		if (change == CHANGE_OF_KEY && !second)
			put_row(report, "delete", old.slot, old.slot);
		if (change != CHANGE_NONE && late == second)
			put_row(report, "update", old.slot, new.slot);
		put_off = put_off || late;
	}
	return put_off;
}

/*
 * Nobody can have changed a key, so old rows need not be looked at.  A trigger for
 * each row may change columns that SET leaves out, or is a foreign key's, whose
 * actions, as other parts of a statement do, put their rows into the same
 * transition tables.
 */
static bool
keeps_keys(const KpgCaptureSource *source, const TriggerData *trigdata)
{
	const TriggerDesc *triggers = trigdata->tg_relation->trigdesc;

	return source->nwatched == 0 && !source->old_values &&
		triggers != NULL && !triggers->trig_update_before_row && !triggers->trig_update_after_row &&
		kpg_capture_order_is_update(source->relation) &&
		!bms_overlap(trigdata->tg_updatedcols, source->key_columns);
}

/*
 * Old and new rows are in step, unless a row that was to move to another
 * partition was kept out of it by a BEFORE trigger: then nobody knows which.
 */
static void
report_updates(Report *report, const TriggerData *trigdata)
{
	const KpgCaptureSource *source = report->source;
	Tuplestorestate *old_store = trigdata->tg_oldtable;
	Tuplestorestate *new_store = trigdata->tg_newtable;

	if (!source->needs_old || keeps_keys(source, trigdata))
	{
		report_rows(report, "update", new_store, source->new_slot, false);
		return;
	}
	if (tuplestore_tuple_count(old_store) != tuplestore_tuple_count(new_store))
	{
		report_rows(report, "delete", old_store, source->old_slot, true);
		report_rows(report, "update", new_store, source->new_slot, false);
		return;
	}
	if (report_changes_in_step(report, trigdata, false))
		(void) report_changes_in_step(report, trigdata, true);
}

static void
report_statement(Report *report, const TriggerData *trigdata)
{
	const KpgCaptureSource *source = report->source;
	TriggerEvent event = trigdata->tg_event;

	if (TRIGGER_FIRED_BY_INSERT(event))
		report_rows(report, "insert", trigdata->tg_newtable, source->new_slot, false);
	else if (TRIGGER_FIRED_BY_DELETE(event))
		report_rows(report, "delete", trigdata->tg_oldtable, source->old_slot, true);
	else if (TRIGGER_FIRED_BY_UPDATE(event))
		report_updates(report, trigdata);
	else
		put_row(report, "truncate", NULL, NULL);
	ExecClearTuple(source->old_slot);
	ExecClearTuple(source->new_slot);
}

static void
report_row(Report *report, const TriggerData *trigdata)
{
	TriggerEvent event = trigdata->tg_event;
	TupleTableSlot *row = trigdata->tg_trigslot;
	TupleTableSlot *new = trigdata->tg_newslot;
	Change		change;

	if (TRIGGER_FIRED_BY_INSERT(event))
	{
		put_row(report, "insert", NULL, row);
		return;
	}
	if (TRIGGER_FIRED_BY_DELETE(event))
	{
		put_row(report, "delete", row, row);
		return;
	}
	change = change_of(report->source, row, new);
	if (change == CHANGE_OF_KEY)
		put_row(report, "delete", row, row);
	if (change != CHANGE_NONE)
		put_row(report, "update", row, new);
}

/* ---- the function ---- */

/* A statement that has changed nothing; its trigger is fired all the same. */
static bool
is_empty(const TriggerData *trigdata)
{
	if (TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) ||
		(trigdata->tg_oldtable == NULL && trigdata->tg_newtable == NULL))
		return false;
	return (trigdata->tg_oldtable == NULL || tuplestore_tuple_count(trigdata->tg_oldtable) == 0) &&
		(trigdata->tg_newtable == NULL || tuplestore_tuple_count(trigdata->tg_newtable) == 0);
}

static void
add_error_context(void *arg)
{
	const KpgCaptureSource *source = arg;
	const char *column = source->format == NULL ? NULL : kpg_format_column(source->format);

	if (column != NULL)
		errcontext("row change of table \"%s\", column \"%s\"", source->relation_name, column);
	else
		errcontext("row change of table \"%s\"", source->relation_name);
}

static void
report_changes(KpgCaptureSource *source, const TriggerData *trigdata)
{
	ErrorContextCallback context = {
		.previous = error_context_stack,
		.callback = add_error_context,
		.arg = source
	};
	Report		report;

	error_context_stack = &context;
	begin_report(&report, source);
	if (TRIGGER_FIRED_FOR_ROW(trigdata->tg_event))
		report_row(&report, trigdata);
	else
		report_statement(&report, trigdata);
	end_report(&report);
	error_context_stack = context.previous;
}

Datum
kusto_capture_changes(PG_FUNCTION_ARGS)
{
	TriggerData *trigdata = (TriggerData *) fcinfo->context;
	KpgCaptureSource *source;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function \"%s\" was not called by trigger manager", "kusto_capture_changes")));
	if (is_empty(trigdata))
		return PointerGetDatum(NULL);

	source = kpg_capture_relation_acquire(trigdata);
	report_changes(source, trigdata);
	kpg_capture_relation_release(source);
	return PointerGetDatum(NULL);
}
