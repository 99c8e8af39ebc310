/*
 * capture_internal.h
 *	  What the trigger function's files share; nobody else includes it.
 */
#ifndef KPG_CAPTURE_INTERNAL_H
#define KPG_CAPTURE_INTERNAL_H

#include "postgres.h"

#include "commands/trigger.h"
#include "executor/tuptable.h"
#include "lib/ilist.h"

#include "../core/csv.h"
#include "capture.h"
#include "format.h"

/* ---- order (capture_order.c) ---- */

/* Values of _seq that are still free: next up to but not end. */
typedef struct KpgSeqRun
{
	int64		next;
	int64		end;
} KpgSeqRun;

/*
 * One free _seq at least, for a change of relation that the current trigger
 * call reports; root is the partitioned table that it was captured with, or
 * relation itself.  Either *own, newly drawn, or one that the statement has.
 */
extern KpgSeqRun *kpg_capture_order_run(Oid relation, Oid root, KpgSeqRun *own);

/*
 * Does the current trigger call belong to an UPDATE that names relation and no
 * other table?  False if that is not known.
 */
extern bool kpg_capture_order_is_update(Oid relation);

/* ---- what is known of a trigger (capture_relation.c) ---- */

typedef struct KpgCaptureSource
{
	Oid			trigger;		/* hash key */
	MemoryContext context;		/* of all below; NULL: nothing is known */
	bool		valid;			/* nothing has changed since */
	bool		unsure;			/* from rows that may yet be rolled back */
	SubTransactionId used_in;	/* where a call is under way, or invalid */
	uint64		used_at;		/* transactions that had ended then */

	Oid			relation;
	Oid			root;			/* partitioned table captured with it, or itself */
	char	   *relation_name;
	int32		capture;
	int64		shape;
	int			nfields;		/* of the shape */
	bool		old_values;
	bool		needs_old;		/* updates cannot be recorded without the old rows */
	char	   *lc_monetary;	/* that the formats rely on; NULL: they do not */

	TupleDesc	desc;			/* of relation, a copy */
	int			nkey;			/* primary key's columns */
	AttrNumber *key;
	Bitmapset  *key_columns;	/* the same, as in TriggerData */
	bool		key_deferrable; /* two rows may have the same one for a while */
	int			nwatched;		/* updates of none of these do not count; 0: all do */
	AttrNumber *watched;
	KpgRowFormat *format;
	TupleTableSlot *old_slot;	/* for transition tables */
	TupleTableSlot *new_slot;
	MemoryContext row_context;
} KpgCaptureSource;

/*
 * What is known of the trigger that was fired; found out, and the capture
 * registered, when it is the first time.  Raises when the trigger is none that
 * captures.  To be released, unless an error ends the subtransaction.
 */
extern KpgCaptureSource *kpg_capture_relation_acquire(TriggerData *trigdata);
extern void kpg_capture_relation_release(KpgCaptureSource *source);

/* Is it a partition, or an inheritance parent or child?  (capture_install.c) */
extern bool kpg_capture_has_relatives(Relation relation);

/*
 * The tables that a command is to make partitions, parents or children, as
 * RangeVar, and NIL for most commands; when it has done so, their statement-level
 * triggers become row-level (capture_inherit.c).
 */
extern List *kpg_capture_relatives(const Node *command);
extern void kpg_capture_related(const List *relatives);

#define KPG_CAPTURE_FUNCTION	"kusto_capture_changes"

/* ---- a trigger's arguments (capture_arguments.c) ---- */

typedef struct KpgCaptureArguments
{
	char	   *database;
	char	   *table_name;
	char	   *server;			/* NULL: not given */
	bool		old_values;
	List	   *columns;		/* of char *; NIL: all */
	bool		create_table;
	const char *on_type_error;
	uint64		system_identifier;	/* of the origin; 0: not given */
	Oid			database_oid;
} KpgCaptureArguments;

/* Between arguments that are written as one. */
#define KPG_CAPTURE_SEPARATOR	';'

/* The arguments that a single one stands for; in the current memory context. */
extern char **kpg_capture_arguments_split(const char *joined, int *n);

/* In the current memory context; raises for what makes no sense. */
extern void kpg_capture_arguments_read(const Trigger *trigger, KpgCaptureArguments *arguments);

/* ---- rows of the transaction (capture_buffer.c) ---- */

typedef struct KpgCaptureChunk
{
	dlist_node	node;
	Oid			table;			/* kusto.capture */
	uint64		catalogs;		/* as of this change of them it is there */
	int32		capture;
	int64		shape;
	SubTransactionId subid;		/* whose rows these are */
	SubTransactionId written_by;	/* which has written them, and will commit */
	bool		open;			/* a trigger call is adding rows */
	int64		seq;			/* of the first row, as in KpgOutboxChunk */
	TimestampTz changed_at;
	int32		rows;
	KcBuf		csv;
	KcCsvWriter writer;			/* on csv */
} KpgCaptureChunk;

/* The chunk for further rows of the current subtransaction; to be closed. */
extern KpgCaptureChunk *kpg_capture_buffer_open(int32 capture, int64 shape);
extern void kpg_capture_buffer_close(KpgCaptureChunk *chunk);

/* The row that was just written to chunk->writer counts. */
extern void kpg_capture_buffer_added(KpgCaptureChunk *chunk, int64 seq, TimestampTz changed_at);

#endif							/* KPG_CAPTURE_INTERNAL_H */
