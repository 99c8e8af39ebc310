/*
 * capture_install.c
 *	  kusto_capture() and kusto_uncapture(): who may capture what, and putting
 *	  triggers, the capture and its shape together.
 *
 * All of it is done in the caller's transaction, under a lock on the table that
 * keeps writers out, and undone with it.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "capture_internal.h"
#include "capture_triggers.h"
#include "compat.h"
#include "format.h"
#include "report.h"
#include "schema.h"
#include "session.h"
#include "worker.h"

/* ---- the relation ---- */

static void
check_owner(Oid relid)
{
	char		relkind = get_rel_relkind(relid);

	if (relkind == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (!kpg_compat_owns_relation(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(relkind), get_rel_name(relid));
}

/*
 * Who does not own it cannot keep others waiting with a lock.  It may have
 * another owner when the lock is there, or be gone.
 */
static Relation
open_owned(Oid relid, LOCKMODE lockmode)
{
	Relation	relation;

	check_owner(relid);
	relation = try_relation_open(relid, lockmode);
	if (relation == NULL)
		check_owner(relid);
	else if (!kpg_compat_owns_relation(relid, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(relation->rd_rel->relkind),
					   RelationGetRelationName(relation));
	return relation;
}

static void
refuse_relation(Relation relation, const char *reason)
{
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("row changes of \"%s\" cannot be captured", RelationGetRelationName(relation)),
			 errdetail_internal("%s", reason)));
}

void
kpg_capture_check_relation(Relation relation)
{
	switch (relation->rd_rel->relkind)
	{
		case RELKIND_RELATION:
		case RELKIND_PARTITIONED_TABLE:
		case RELKIND_FOREIGN_TABLE:
			break;
		case RELKIND_VIEW:
			refuse_relation(relation, "It is a view: capture the tables behind it.");
			break;
		case RELKIND_MATVIEW:
			refuse_relation(relation, "It is a materialized view, for which there are no triggers.");
			break;
		default:
			refuse_relation(relation, "It is not a table.");
	}
	if (relation->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		refuse_relation(relation, "It is a temporary table.");
	if (IsSystemRelation(relation) || IsCatalogNamespace(RelationGetNamespace(relation)))
		refuse_relation(relation, "It is a system catalog.");
	if (RelationGetNamespace(relation) == get_namespace_oid("kusto", true))
		refuse_relation(relation, "It belongs to the extension kusto_ingest.");
}

static void
add_key_columns(Form_pg_index index, Bitmapset **key)
{
	for (int i = 0; i < index->indnkeyatts; i++)
		*key = bms_add_member(*key, index->indkey.values[i] - FirstLowInvalidHeapAttributeNumber);
}

/* The relation cache has no attributes of a primary key that is deferrable. */
Bitmapset *
kpg_capture_primary_key(Relation relation, bool *deferrable)
{
	List	   *indexes = RelationGetIndexList(relation);
	Bitmapset  *key = NULL;
	ListCell   *cell;

	if (deferrable != NULL)
		*deferrable = false;
	foreach(cell, indexes)
	{
		HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(lfirst_oid(cell)));
		Form_pg_index index;

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for index %u", lfirst_oid(cell));
		index = (Form_pg_index) GETSTRUCT(tuple);
		if (index->indisprimary)
		{
			add_key_columns(index, &key);
			if (deferrable != NULL)
				*deferrable = !index->indimmediate;
		}
		ReleaseSysCache(tuple);
	}
	list_free(indexes);
	return key;
}

/* relhassubclass stays when the last child has gone. */
static bool
has_children(Relation relation)
{
	return relation->rd_rel->relhassubclass &&
		find_inheritance_children(RelationGetRelid(relation), NoLock) != NIL;
}

bool
kpg_capture_has_relatives(Relation relation)
{
	return relation->rd_rel->relispartition ||
		(relation->rd_rel->relkind == RELKIND_RELATION &&
		 (has_superclass(RelationGetRelid(relation)) || has_children(relation)));
}

/*
 * Transition tables hold what a statement that names the table has changed,
 * children included; what reaches a partition or a child by way of its parent,
 * and what logical replication applies, fires row triggers only.
 */
static bool
needs_row_triggers(Relation relation, bool replicated)
{
	return replicated || relation->rd_rel->relkind != RELKIND_RELATION || kpg_capture_has_relatives(relation);
}

/* ---- arguments ---- */

static void
null_argument(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
			 errmsg("%s must not be null", name)));
}

/* The elements of a text[] as C strings. */
static int
array_strings(ArrayType *array, const char *name, char ***strings)
{
	Datum	   *values;
	bool	   *nulls;
	int			n;

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("%s must have one dimension", name)));
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &n);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", name)));
	*strings = palloc(sizeof(char *) * (Size) n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain nulls", name)));
		(*strings)[i] = TextDatumGetCString(values[i]);
	}
	return n;
}

static int
event_of(const char *word)
{
	static const char *const words[] = {"insert", "update", "delete", "truncate"};
	static const int events[] = {KPG_CAPTURE_INSERT, KPG_CAPTURE_UPDATE, KPG_CAPTURE_DELETE, KPG_CAPTURE_TRUNCATE};
	const char *closest;

	for (int i = 0; i < (int) lengthof(words); i++)
	{
		if (strcmp(word, words[i]) == 0)
			return events[i];
	}
	closest = kpg_report_closest(word, words, lengthof(words));
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown event \"%s\"", word),
			 closest != NULL ? errhint("Perhaps you meant \"%s\".", closest)
			 : errhint("Events are \"insert\", \"update\", \"delete\" and \"truncate\".")));
	return 0;					/* not reached */
}

static int
events_of(ArrayType *array)
{
	char	  **words;
	int			n;
	int			events = 0;

	if (array == NULL)
		null_argument("events");
	n = array_strings(array, "events", &words);
	for (int i = 0; i < n; i++)
	{
		int			event = event_of(words[i]);

		if (events & event)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("event \"%s\" is given more than once", words[i])));
		events |= event;
	}
	return events;
}

static AttrNumber
captured_column(Relation relation, const char *name)
{
	AttrNumber	attnum = get_attnum(RelationGetRelid(relation), name);

	if (attnum == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist", name,
						RelationGetRelationName(relation))));
	if (attnum < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("column \"%s\" is a system column and cannot be captured", name)));
	if (kpg_compat_is_virtual(TupleDescAttr(RelationGetDescr(relation), attnum - 1)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
				 errmsg("column \"%s\" is a virtual generated column and cannot be captured", name),
				 errdetail("Its value is stored nowhere.")));
	return attnum;
}

/* Without the whole key, changes would be of nobody knows which row. */
static void
check_key_is_captured(Relation relation, Bitmapset *columns)
{
	Bitmapset  *missing = bms_difference(kpg_capture_primary_key(relation, NULL), columns);
	int			member = bms_next_member(missing, -1);

	if (member >= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("columns must include \"%s\"",
						get_attname(RelationGetRelid(relation),
									(AttrNumber) (member + FirstLowInvalidHeapAttributeNumber), false)),
				 errdetail("It is a column of the primary key, by which row changes are told apart.")));
}

static List *
columns_of(Relation relation, ArrayType *array)
{
	Bitmapset  *attnums = NULL;
	List	   *columns = NIL;
	char	  **names;
	int			n;

	if (array == NULL)
		return NIL;
	n = array_strings(array, "columns", &names);
	for (int i = 0; i < n; i++)
	{
		int			member = captured_column(relation, names[i]) - FirstLowInvalidHeapAttributeNumber;

		if (bms_is_member(member, attnums))
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("column \"%s\" is given more than once", names[i])));
		attnums = bms_add_member(attnums, member);
		columns = lappend(columns, names[i]);
	}
	check_key_is_captured(relation, attnums);
	return columns;
}

/* CREATE TRIGGER would say so, too, but not what to do. */
static void
check_function(Oid function)
{
	if (kpg_compat_function_aclcheck(function, GetUserId(), ACL_EXECUTE) != ACLCHECK_OK)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for function %s", get_func_name(function)),
				 errhint("Who captures tables needs EXECUTE on kusto_capture_changes(), too.")));
}

/* ---- the capture ---- */

/* A superuser that lacks no privilege himself would wonder about the error. */
static void
add_owner_context(void *arg)
{
	errcontext("sending row changes as \"%s\", the owner of the table", (const char *) arg);
}

/* Changes will be sent as the table's owner, whoever calls. */
static void
find_target(const KpgCaptureRequest *request, KpgCapture *capture)
{
	MemoryContext scratch = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest capture",
												  ALLOCSET_SMALL_SIZES);
	ErrorContextCallback context = {
		.previous = error_context_stack,
		.callback = add_owner_context,
		.arg = GetUserNameFromId(capture->owner, false)
	};
	KpgSession *session;

	if (capture->owner != GetUserId())
		error_context_stack = &context;
	session = kpg_session_acquire_in(scratch, kpg_session_server(request->server, capture->owner),
									 capture->owner);
	capture->server = pstrdup(session->server_name);
	capture->database = pstrdup(kpg_session_database(session, request->database));
	MemoryContextDelete(scratch);
	error_context_stack = context.previous;
}

static KpgCapture *
requested_capture(const KpgCaptureRequest *request, Relation relation)
{
	KpgCapture *capture = palloc0(sizeof(KpgCapture));

	if (request->table_name == NULL)
		null_argument("table_name");
	if (request->on_type_error == NULL)
		null_argument("on_type_error");
	kpg_schema_check_table_name(request->table_name);
	(void) kpg_format_policy(request->on_type_error);

	capture->relation = RelationGetRelid(relation);
	capture->relation_name =
		quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
								   RelationGetRelationName(relation));
	capture->owner = relation->rd_rel->relowner;
	find_target(request, capture);
	capture->table_name = pstrdup(request->table_name);
	capture->columns = columns_of(relation, request->columns);
	capture->old_values = request->old_values;
	capture->create_table = request->create_table;
	capture->on_type_error = pstrdup(request->on_type_error);
	return capture;
}

static void
refuse_overlap(const KpgCapture *capture, Oid other, bool is_ancestor)
{
	if (kpg_outbox_find_capture(other, capture->server, capture->database, capture->table_name) == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_DUPLICATE_OBJECT),
			 is_ancestor
			 ? errmsg("table \"%s\", of which \"%s\" is a partition, is captured to the same Kusto table",
					  get_rel_name(other), get_rel_name(capture->relation))
			 : errmsg("partition \"%s\" of table \"%s\" is captured to the same Kusto table",
					  get_rel_name(other), get_rel_name(capture->relation)),
			 errdetail("Its row changes would be sent twice."),
			 errhint("Use kusto_uncapture() for one of them first, or capture to another Kusto table.")));
}

/* A parent's row triggers fire for its partitions, as the partition's own do. */
static void
check_overlap(Relation relation, const KpgCapture *capture)
{
	ListCell   *cell;

	if (relation->rd_rel->relispartition)
	{
		foreach(cell, get_partition_ancestors(capture->relation))
			refuse_overlap(capture, lfirst_oid(cell), true);
	}
	if (relation->rd_rel->relkind == RELKIND_PARTITIONED_TABLE)
	{
		foreach(cell, find_all_inheritors(capture->relation, ShareRowExclusiveLock, NULL))
		{
			if (lfirst_oid(cell) != capture->relation)
				refuse_overlap(capture, lfirst_oid(cell), false);
		}
	}
}

/*
 * It is there already: take over what has been asked for.  One that another
 * cluster or database has recorded becomes ours.
 */
static void
adopt_capture(KpgCapture *there, const KpgCapture *capture)
{
	if (there->old_values != capture->old_values)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("old_values of a capture cannot be changed"),
				 errdetail("The Kusto table \"%s\" has its columns in another order.", capture->table_name),
				 errhint("Capture to another Kusto table, and use kusto_uncapture() for this one.")));
	there->owner = capture->owner;
	there->columns = capture->columns;
	there->create_table = capture->create_table;
	there->on_type_error = capture->on_type_error;
	there->system_identifier = 0;
	there->foreign = false;
	kpg_outbox_change_capture(there);
}

/* True when the capture is new. */
static bool
record_capture(KpgCapture *capture)
{
	KpgCapture	requested = *capture;
	KpgCapture *there = kpg_outbox_find_capture(capture->relation, capture->server, capture->database,
												capture->table_name);

	if (there != NULL)
		*capture = *there;
	else if (kpg_outbox_add_capture(capture))
		return true;
	adopt_capture(capture, &requested);
	return false;
}

static KpgCaptureShape *
record_shape(Relation relation, const KpgCapture *capture)
{
	KpgCaptureShape *newest = kpg_outbox_shape(capture->id);
	KpgCaptureShape *shape = kpg_capture_shape_anew(RelationGetDescr(relation), capture, newest);

	if (shape != newest)
	{
		shape = kpg_capture_shape_anew(RelationGetDescr(relation), capture, kpg_outbox_shape_to_extend(capture));
		kpg_outbox_add_shape(capture->id, shape);
	}
	kpg_outbox_accept_shapes(capture->id);
	return shape;
}

/* ---- what the caller should know ---- */

static int
possible_events(Relation relation, int events)
{
	if (relation->rd_rel->relkind == RELKIND_FOREIGN_TABLE && (events & KPG_CAPTURE_TRUNCATE) &&
		!KPG_COMPAT_FOREIGN_TRUNCATE_TRIGGERS)
	{
		ereport(NOTICE,
				(errmsg("TRUNCATE of foreign table \"%s\" is not captured", RelationGetRelationName(relation)),
				 errdetail("This version of PostgreSQL has no such triggers for foreign tables.")));
		events &= ~KPG_CAPTURE_TRUNCATE;
	}
	if (events == 0)
		refuse_relation(relation, "None of the events can be captured.");
	return events;
}

static void
tell(Relation relation, const KpgCapture *capture, const KpgCaptureShape *shape, int events, bool is_new)
{
	const char *name = RelationGetRelationName(relation);
	char		relkind = relation->rd_rel->relkind;

	if (relkind == RELKIND_FOREIGN_TABLE)
		ereport(NOTICE,
				(errmsg("only changes that are made through foreign table \"%s\" are captured", name)));
	else if (relkind == RELKIND_PARTITIONED_TABLE && (events & KPG_CAPTURE_TRUNCATE))
		ereport(NOTICE,
				(errmsg("TRUNCATE of a single partition of table \"%s\" is not captured", name)));
	else if (relkind == RELKIND_RELATION && has_children(relation))
		ereport(NOTICE,
				(errmsg("rows of tables that inherit from \"%s\" are not captured", name),
				 errhint("Capture each of them, too.")));
	if (relation->rd_rel->relpersistence == RELPERSISTENCE_UNLOGGED)
		ereport(NOTICE,
				(errmsg("a crash of the server empties unlogged table \"%s\", and Kusto is not told", name)));
	if (kpg_capture_primary_key(relation, NULL) == NULL)
		ereport(NOTICE,
				(errmsg("table \"%s\" has no primary key", name),
				 errdetail("Kusto gets the history of its rows, but cannot tell which of them are current.")));
	if (is_new && !capture->create_table)
		ereport(NOTICE,
				(errmsg("Kusto table \"%s\" must have the columns of row changes, in their order",
						capture->table_name),
				 errhint("In Kusto, run: %s", kpg_capture_create_merge(capture, shape))));
}

/* ---- the functions ---- */

bool
kpg_capture_install(const KpgCaptureRequest *request, pg_uuid_t *operation)
{
	KpgCaptureTriggerPlan plan = {
		.relation = request->relation,
		.function = request->function,
		.always = request->replicated
	};
	KpgCapture *capture;
	KpgCaptureShape *shape;
	Relation	relation;
	ListCell   *cell;
	bool		is_new;

	/* Dropping a trigger takes the stronger lock; better at once than later. */
	check_owner(request->relation);
	relation = open_owned(request->relation,
						  kpg_capture_triggers_of(request->relation, request->function) == NIL
						  ? ShareRowExclusiveLock : AccessExclusiveLock);
	kpg_capture_check_relation(relation);
	check_function(request->function);
	plan.events = possible_events(relation, events_of(request->events));
	plan.by_row = needs_row_triggers(relation, request->replicated);
	capture = requested_capture(request, relation);
	check_overlap(relation, capture);
	is_new = record_capture(capture);
	shape = record_shape(relation, capture);
	tell(relation, capture, shape, plan.events, is_new);
	/* DROP TRIGGER wants nobody to have it open; the lock stays. */
	relation_close(relation, NoLock);

	foreach(cell, kpg_capture_triggers_of(request->relation, request->function))
	{
		const KpgCaptureTrigger *trigger = lfirst(cell);

		if (kpg_capture_trigger_is_for(trigger, capture->database, capture->table_name, capture->server))
			kpg_capture_drop_trigger(request->relation, trigger);
	}
	kpg_capture_create_triggers(capture, &plan);
	if (request->snapshot)
		kpg_capture_snapshot_submit(capture, shape, operation);
	else if (!is_new)
		kpg_capture_snapshot_give_up(capture);
	kpg_worker_staged();
	return request->snapshot;
}

static void
raise_not_captured(Oid relid)
{
	ListCell   *cell;

	if (get_rel_relispartition(relid))
	{
		foreach(cell, get_partition_ancestors(relid))
		{
			if (kpg_outbox_captures_of(lfirst_oid(cell)) != NIL)
				ereport(ERROR,
						(errcode(ERRCODE_UNDEFINED_OBJECT),
						 errmsg("table \"%s\" is not captured by itself", get_rel_name(relid)),
						 errdetail("It is captured as a partition of \"%s\".", get_rel_name(lfirst_oid(cell)))));
		}
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("table \"%s\" is not captured", get_rel_name(relid)),
			 errhint("The view kusto.captures shows what is captured.")));
}

void
kpg_capture_uninstall(Oid relid, const char *database, const char *table_name, Oid function)
{
	Relation	relation = open_owned(relid, AccessExclusiveLock);
	bool		found = false;
	ListCell   *cell;

	relation_close(relation, NoLock);
	foreach(cell, kpg_capture_triggers_of(relid, function))
	{
		const KpgCaptureTrigger *trigger = lfirst(cell);

		if (!kpg_capture_trigger_is_for(trigger, database, table_name, NULL))
			continue;
		kpg_capture_drop_trigger(relid, trigger);
		found = true;
	}
	foreach(cell, kpg_outbox_captures_of(relid))
	{
		const KpgCapture *capture = lfirst(cell);

		if ((database != NULL && strcmp(database, capture->database) != 0) ||
			(table_name != NULL && strcmp(table_name, capture->table_name) != 0))
			continue;
		kpg_outbox_end_capture(capture->id);
		/* Nobody would send what it has recorded. */
		if (capture->foreign)
			kpg_outbox_drop_capture(capture->id);
		found = true;
	}
	if (!found)
		raise_not_captured(relid);
	kpg_worker_staged();
}
