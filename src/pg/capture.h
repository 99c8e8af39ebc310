/*
 * capture.h
 *	  Row changes from triggers into the outbox, and making those triggers.
 *
 *	capture.c			the trigger function
 *	capture_relation.c	what is known of a trigger: capture, shape, formats
 *	capture_buffer.c	rows of a transaction until they fill a chunk
 *	capture_order.c		numbers for statements inside of others' triggers
 *	capture_shape.c		columns of a table to columns in Kusto
 *	capture_install.c	kusto_capture, kusto_uncapture
 *	capture_inherit.c	captured tables that become partitions, parents, children
 *	capture_triggers.c	their triggers
 *	capture_snapshot.c	the rows that are there already
 *	capture_letter.c	what Kusto has refused, once more
 *	capture_views.c		the commands for views in Kusto
 */
#ifndef KPG_CAPTURE_H
#define KPG_CAPTURE_H

#include "postgres.h"

#include "access/tupdesc.h"
#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"
#include "utils/array.h"
#include "utils/relcache.h"
#include "utils/uuid.h"

#include "outbox.h"

/* Columns in Kusto before the table's own. */
#define KPG_CAPTURE_OP			"_op"			/* string: insert, update, delete, truncate, snapshot */
#define KPG_CAPTURE_TXID		"_txid"			/* long; null for a snapshot */
#define KPG_CAPTURE_SEQ			"_seq"			/* long */
#define KPG_CAPTURE_CHANGED_AT	"_changed_at"	/* datetime */
#define KPG_CAPTURE_OLD			"_old"			/* dynamic; with old_values only */

/* Executor hook; called once when the library is loaded (capture_order.c). */
extern void kpg_capture_order_init(void);

/*
 * The number for changes that the current trigger call reports (capture_order.c):
 * smaller than those of statements that its own statement's triggers have run.
 */
extern int64 kpg_capture_order_number(void);

/* Has the current transaction captured row changes (capture_buffer.c)? */
extern bool kpg_capture_has_changes(void);

/* ---- columns (capture_shape.c) ---- */

/*
 * What the table's columns are in Kusto, given the newest shape (NULL: none).
 * Returns the same pointer when nothing is to be added.  Entries of the old
 * shape stay where they are: a dropped column's field is empty from now on, a
 * renamed column keeps its name in Kusto, one whose Kusto type has changed is
 * added anew as name_type.  Raises for names that Kusto cannot have.
 * Virtual generated columns are left out.
 */
extern KpgCaptureShape *kpg_capture_shape(TupleDesc desc, const KpgCapture *capture,
										  KpgCaptureShape *newest);

/*
 * The same when the capture's list of columns is new: it names those that the
 * table has now, and the fields of all others are empty from now on.
 */
extern KpgCaptureShape *kpg_capture_shape_anew(TupleDesc desc, const KpgCapture *capture,
											   KpgCaptureShape *newest);

/* The columns in front, whose attnum is 0, and those of the shape. */
extern KpgCaptureShape *kpg_capture_whole_shape(const KpgCapture *capture, const KpgCaptureShape *shape);

/* ".create-merge table" with all of them. */
extern char *kpg_capture_create_merge(const KpgCapture *capture, const KpgCaptureShape *shape);

/*
 * The columns of the primary key, as attnum - FirstLowInvalidHeapAttributeNumber;
 * NULL: none.  deferrable may be NULL.
 */
extern Bitmapset *kpg_capture_primary_key(Relation relation, bool *deferrable);

/* ---- installing (capture_install.c, capture_snapshot.c) ---- */

/* Raises unless it is a table whose row changes can be captured. */
extern void kpg_capture_check_relation(Relation relation);

typedef struct KpgCaptureRequest
{
	Oid			relation;
	const char *database;
	const char *table_name;
	const char *server;			/* NULL: the default */
	ArrayType  *events;
	ArrayType  *columns;		/* NULL: all */
	bool		old_values;
	bool		snapshot;
	bool		create_table;
	const char *on_type_error;
	bool		replicated;		/* also what logical replication applies */
	Oid			function;		/* kusto_capture_changes() */
} KpgCaptureRequest;

/* True when *operation exports the existing rows. */
extern bool kpg_capture_install(const KpgCaptureRequest *request, pg_uuid_t *operation);
/* NULL: all of the relation's; function is kusto_capture_changes(). */
extern void kpg_capture_uninstall(Oid relation, const char *database, const char *table_name,
								  Oid function);

/* ---- dead letters (capture_letter.c) ---- */

/*
 * False: there is none that the current user may know of.  Raise when it may not
 * be steered.
 */

/* Upload it, and replace it by a staged operation of the same id. */
extern bool kpg_capture_retry_letter(const pg_uuid_t *id);
/* Its row changes are given up. */
extern bool kpg_capture_discard_letter(const pg_uuid_t *id);

/* ---- commands for Kusto (capture_views.c) ---- */

typedef struct KpgCaptureCommand
{
	char	   *name;			/* of what it makes */
	const char *purpose;
	char	   *command;
} KpgCaptureCommand;

/* Of KpgCaptureCommand, for all captures of a relation; raises when there is none. */
extern List *kpg_capture_commands(Oid relation);

/*
 * Record the export of the existing rows, to be run by a job after the commit;
 * until it has staged its rows, changes wait in the outbox.
 */
extern void kpg_capture_snapshot_submit(KpgCapture *capture, const KpgCaptureShape *shape,
										pg_uuid_t *operation);
/* If the last such export has failed, nothing waits for it any more. */
extern void kpg_capture_snapshot_give_up(KpgCapture *capture);

/*
 * In the process of such a job, whose transaction is REPEATABLE READ: the command
 * that makes the table, or NULL; and, when its rows are staged, the mark.  Raise
 * when the operation is no capture's.
 */
extern char *kpg_capture_snapshot_command(const pg_uuid_t *operation);
extern void kpg_capture_snapshot_done(const pg_uuid_t *operation);

#endif							/* KPG_CAPTURE_H */
