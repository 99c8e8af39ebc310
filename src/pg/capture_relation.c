/*
 * capture_relation.c
 *	  What is known of a capture trigger: where its rows go, and how they are
 *	  written.
 *
 * It is found out when the trigger is fired for the first time, which also
 * registers a capture that nobody has registered by kusto_capture(), and kept
 * by the trigger's OID.  Callbacks only note that something has changed; the
 * next call of the trigger then finds out anew.  So does the one after an
 * error, which leaves formats in an undefined state, and after a rollback of
 * the transaction that has found out, since the capture's rows may be gone.
 *
 * A value's output function may fire the same trigger again.  What is in use is
 * left alone then, and the inner call has something of its own.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "capture_internal.h"
#include "compat.h"
#include "session.h"
#include "settings.h"
#include "version.h"
#include "worker.h"

/*
 * So many sources are kept from one transaction to the next, some kilobytes
 * each.  When there are more, a few have to go for a new one to come; which of
 * them is left to chance, so that those of somewhat more triggers, fired in
 * turn, are not always missed.
 */
#define SOURCES_MAX		1000
#define SOURCES_TO_DROP	20

static HTAB *sources;
static KpgCaptureSource *latest;	/* one of them: a trigger is often the one before, too; or NULL */
static bool any_unsure;			/* in a source that the transaction has found out */
static int	nused;				/* sources that are in use */
static uint64 transactions;		/* that have ended */
static MemoryContext shared_row_context;

/* ---- what makes a source invalid ---- */

static void
forget_relation(Datum arg, Oid relation)
{
	HASH_SEQ_STATUS scan;
	KpgCaptureSource *source;

	hash_seq_init(&scan, sources);
	while ((source = hash_seq_search(&scan)) != NULL)
	{
		if (relation == InvalidOid || source->relation == relation || source->root == relation)
			source->valid = false;
	}
}

/* Of a subtransaction and those inside of it, or of all. */
static void
forget_aborted(SubTransactionId from)
{
	HASH_SEQ_STATUS scan;
	KpgCaptureSource *source;

	if (!any_unsure && nused == 0)
		return;
	hash_seq_init(&scan, sources);
	while ((source = hash_seq_search(&scan)) != NULL)
	{
		if (source->unsure)
			source->valid = false;
		if (source->used_in == InvalidSubTransactionId || source->used_in < from)
			continue;
		source->used_in = InvalidSubTransactionId;
		source->valid = false;
		nused--;
	}
}

static void
end_doubt(void)
{
	HASH_SEQ_STATUS scan;
	KpgCaptureSource *source;

	if (!any_unsure)
		return;
	hash_seq_init(&scan, sources);
	while ((source = hash_seq_search(&scan)) != NULL)
		source->unsure = false;
	any_unsure = false;
}

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_ABORT:
		case XACT_EVENT_PREPARE:	/* what it has registered is not there yet */
			forget_aborted(InvalidSubTransactionId);
			end_doubt();
			transactions++;
			break;
		case XACT_EVENT_COMMIT:
			end_doubt();
			transactions++;
			break;
		default:
			break;
	}
}

static void
subxact_callback(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		forget_aborted(mine);
}

static void
initialize(void)
{
	HASHCTL		control;

	memset(&control, 0, sizeof(control));
	control.keysize = sizeof(Oid);
	control.entrysize = sizeof(KpgCaptureSource);
	control.hcxt = TopMemoryContext;
	sources = hash_create("kusto_ingest capture triggers", 32, &control,
						  HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	CacheRegisterRelcacheCallback(forget_relation, (Datum) 0);
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}

/*
 * Triggers that are gone are never fired again: free what others have left.  A
 * transaction keeps what it has used, however much that is.
 */
static void
sweep(void)
{
	HASH_SEQ_STATUS scan;
	KpgCaptureSource *source;
	int			to_drop = hash_get_num_entries(sources) > SOURCES_MAX ? SOURCES_TO_DROP : 0;

	latest = NULL;
	hash_seq_init(&scan, sources);
	while ((source = hash_seq_search(&scan)) != NULL)
	{
		if (source->used_in != InvalidSubTransactionId)
			continue;
		if (source->valid)
		{
			if (to_drop == 0 || source->used_at == transactions)
				continue;
			to_drop--;
		}
		if (source->context != NULL)
			MemoryContextDelete(source->context);
		(void) hash_search(sources, &source->trigger, HASH_REMOVE, NULL);
	}
}

/* ---- how a trigger may be made ---- */

static void
wrong_trigger(const Trigger *trigger, const char *problem, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
			 errmsg("trigger \"%s\" cannot capture row changes", trigger->tgname),
			 errdetail_internal("%s", problem),
			 errhint("%s", hint)));
}

static void
check_trigger(const TriggerData *trigdata)
{
	const Trigger *trigger = trigdata->tg_trigger;
	TriggerEvent event = trigdata->tg_event;

	if (!TRIGGER_FIRED_AFTER(event))
		wrong_trigger(trigger, "Function \"" KPG_CAPTURE_FUNCTION "\" must be fired AFTER the event.",
					  "Create the trigger as AFTER.");
	/* At commit the numbers would no longer tell in which order rows were changed. */
	if (trigger->tgdeferrable)
		wrong_trigger(trigger, "It is deferrable.", "Create the trigger as NOT DEFERRABLE.");
	if (TRIGGER_FIRED_FOR_ROW(event) || TRIGGER_FIRED_BY_TRUNCATE(event))
		return;
	if (TRIGGER_FIRED_BY_DELETE(event) ? trigdata->tg_oldtable == NULL : trigdata->tg_newtable == NULL)
		wrong_trigger(trigger, "It is FOR EACH STATEMENT, and has no transition table of the changed rows.",
					  TRIGGER_FIRED_BY_INSERT(event) ? "Add REFERENCING NEW TABLE AS kusto_new, or create it as FOR EACH ROW." :
					  TRIGGER_FIRED_BY_DELETE(event) ? "Add REFERENCING OLD TABLE AS kusto_old, or create it as FOR EACH ROW." :
					  "Add REFERENCING OLD TABLE AS kusto_old NEW TABLE AS kusto_new, or create it as FOR EACH ROW.");
}

static void
check_old_table(const TriggerData *trigdata, const KpgCaptureSource *source)
{
	TriggerEvent event = trigdata->tg_event;

	if (source->needs_old && TRIGGER_FIRED_FOR_STATEMENT(event) && TRIGGER_FIRED_BY_UPDATE(event) &&
		trigdata->tg_oldtable == NULL)
		wrong_trigger(trigdata->tg_trigger,
					  "The table has a primary key, or the capture has old_values or columns: "
					  "old rows are needed, too.",
					  "Add REFERENCING OLD TABLE AS kusto_old NEW TABLE AS kusto_new, or create it as FOR EACH ROW.");
}

/* The session that made it so has not loaded the library. */
static void
warn_of_inheritance(const TriggerData *trigdata)
{
	Relation	relation = trigdata->tg_relation;

	if (TRIGGER_FIRED_FOR_ROW(trigdata->tg_event) || TRIGGER_FIRED_BY_TRUNCATE(trigdata->tg_event) ||
		!kpg_capture_has_relatives(relation))
		return;
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("trigger \"%s\" does not capture row changes of table \"%s\" rightly",
					trigdata->tg_trigger->tgname, RelationGetRelationName(relation)),
			 errdetail("It is FOR EACH STATEMENT, and the table has become a partition, or an inheritance parent or child."),
			 errhint("Call kusto_capture() for the table again.")));
}

/* ---- the table that was captured ---- */

/* The trigger that a partition's was cloned from; its table.  False: it is none. */
static bool
find_parent_trigger(Oid *trigger, Oid *relation)
{
	Relation	catalog = table_open(TriggerRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			parent = InvalidOid;

	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(*trigger));
	scan = systable_beginscan(catalog, TriggerOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		Form_pg_trigger form = (Form_pg_trigger) GETSTRUCT(tuple);

		*relation = form->tgrelid;
		parent = form->tgparentid;
	}
	systable_endscan(scan);
	table_close(catalog, AccessShareLock);
	if (!OidIsValid(parent))
		return false;
	*trigger = parent;
	return true;
}

static Oid
find_root(const TriggerData *trigdata)
{
	Oid			trigger = trigdata->tg_trigger->tgoid;
	Oid			relation = RelationGetRelid(trigdata->tg_relation);

	if (!trigdata->tg_relation->rd_rel->relispartition)
		return relation;
	while (find_parent_trigger(&trigger, &relation))
		;
	return relation;
}

/* A partition may have its columns in another order than the table that was captured. */
static AttrNumber
own_column(const KpgCaptureSource *source, TupleDesc root, AttrNumber attnum)
{
	Form_pg_attribute att;

	if (attnum <= 0 || attnum > root->natts)
		return InvalidAttrNumber;
	att = TupleDescAttr(root, attnum - 1);
	if (att->attisdropped || kpg_compat_is_virtual(att))
		return InvalidAttrNumber;
	if (source->relation == source->root)
		return attnum;
	return get_attnum(source->relation, NameStr(att->attname));
}

/* ---- the capture ---- */

/*
 * Whoever makes the first change sets the parameter, and is not to choose where
 * the owner's data goes.
 */
static void
check_default_server(Relation root)
{
	if (kpg_default_server == NULL || kpg_default_server[0] == '\0' ||
		has_privs_of_role(GetUserId(), root->rd_rel->relowner))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("the trigger of table \"%s\" does not say to which server row changes go",
					RelationGetRelationName(root)),
			 errdetail("\"kusto_ingest.default_server\" counts only when the table's owner makes the first change."),
			 errhint("Name the server in the trigger's third argument, or use kusto_capture().")));
}

static void
register_capture(Relation root, const KpgCaptureArguments *arguments, KpgCapture *capture)
{
	kpg_capture_check_relation(root);
	memset(capture, 0, sizeof(*capture));
	capture->relation = RelationGetRelid(root);
	capture->relation_name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(root)),
														RelationGetRelationName(root));
	capture->owner = root->rd_rel->relowner;
	if (arguments->server == NULL)
		check_default_server(root);
	capture->server =
		GetForeignServer(kpg_session_server(arguments->server, capture->owner))->servername;
	capture->database = arguments->database;
	capture->table_name = arguments->table_name;
	capture->columns = arguments->columns;
	capture->old_values = arguments->old_values;
	capture->create_table = arguments->create_table;
	capture->on_type_error = pstrdup(arguments->on_type_error);
	capture->system_identifier = arguments->system_identifier;
	capture->database_oid = arguments->database_oid;
	(void) kpg_outbox_add_capture(capture);
	kpg_worker_staged();
}

static bool
same_columns(List *a, List *b)
{
	ListCell   *in_a;
	ListCell   *in_b;

	if (list_length(a) != list_length(b))
		return false;
	forboth(in_a, a, in_b, b)
	{
		if (strcmp(lfirst(in_a), lfirst(in_b)) != 0)
			return false;
	}
	return true;
}

/* All triggers of a capture write the same columns. */
static void
check_arguments(const Trigger *trigger, const KpgCaptureArguments *arguments, const KpgCapture *capture)
{
	const char *option = NULL;

	if (arguments->old_values != capture->old_values)
		option = "old_values";
	else if (strcmp(arguments->on_type_error, capture->on_type_error) != 0)
		option = "on_type_error";
	else if (!same_columns(arguments->columns, capture->columns))
		option = "columns";
	if (option == NULL)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("option \"%s\" of trigger \"%s\" differs from that of the capture", option, trigger->tgname),
			 errdetail("Row changes of table %s are already captured to Kusto table \"%s\".",
					   capture->relation_name, capture->table_name),
			 errhint("Give all triggers of the capture the same options, and use kusto_uncapture() "
					 "to begin with other ones.")));
}

static KpgCapture *
find_capture(const TriggerData *trigdata, Relation root)
{
	KpgCaptureArguments arguments;
	KpgCapture *capture;

	kpg_capture_arguments_read(trigdata->tg_trigger, &arguments);
	capture = kpg_outbox_find_capture(RelationGetRelid(root), arguments.server, arguments.database,
									  arguments.table_name);
	if (capture == NULL)
	{
		capture = palloc(sizeof(KpgCapture));
		register_capture(root, &arguments, capture);
	}
	check_arguments(trigdata->tg_trigger, &arguments, capture);
	return capture;
}

static KpgCaptureShape *
find_shape(TupleDesc root, const KpgCapture *capture)
{
	KpgCaptureShape *newest = kpg_outbox_shape(capture->id);
	KpgCaptureShape *shape = kpg_capture_shape(root, capture, newest);

	if (shape == newest)
		return newest;
	shape = kpg_capture_shape(root, capture, kpg_outbox_shape_to_extend(capture));
	kpg_outbox_add_shape(capture->id, shape);
	return shape;
}

/* ---- a source ---- */

/* In the source's context. */
static void
set_key(KpgCaptureSource *source, Relation root)
{
	Bitmapset  *key = kpg_capture_primary_key(root, &source->key_deferrable);
	int			member = -1;

	source->nkey = 0;
	source->key = palloc0(sizeof(AttrNumber) * Max(bms_num_members(key), 1));
	source->key_columns = NULL;
	while ((member = bms_next_member(key, member)) >= 0)
	{
		AttrNumber	attnum = own_column(source, RelationGetDescr(root),
										(AttrNumber) (member + FirstLowInvalidHeapAttributeNumber));

		source->key[source->nkey++] = attnum;
		source->key_columns = bms_add_member(source->key_columns, attnum - FirstLowInvalidHeapAttributeNumber);
	}
}

/* In the source's context. */
static void
set_watched(KpgCaptureSource *source, const AttrNumber *columns, int ncolumns)
{
	source->nwatched = 0;
	source->watched = palloc0(sizeof(AttrNumber) * Max(ncolumns, 1));
	for (int i = 0; i < ncolumns; i++)
	{
		if (columns[i] > 0)
			source->watched[source->nwatched++] = columns[i];
	}
}

static void
check_key_is_captured(const KpgCaptureSource *source)
{
	for (int i = 0; i < source->nkey; i++)
	{
		bool		found = false;

		for (int j = 0; j < source->nwatched && !found; j++)
			found = source->watched[j] == source->key[i];
		if (!found)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("columns must include \"%s\"",
							NameStr(TupleDescAttr(source->desc, source->key[i] - 1)->attname)),
					 errdetail("It is a column of the primary key, by which row changes are told apart.")));
	}
}

static const char *
current_lc_monetary(void)
{
	return GetConfigOption("lc_monetary", false, false);
}

/* Of money it depends on the setting how many decimals it has. */
static void
set_lc_monetary(KpgCaptureSource *source)
{
	source->lc_monetary = NULL;
	for (int i = 0; i < source->desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(source->desc, i);
		Oid			type = att->attisdropped ? InvalidOid : getBaseType(att->atttypid);

		/* The formats of containers' elements are made later, but with the same risk. */
		if (type == CASHOID || get_element_type(type) == CASHOID)
			source->lc_monetary = pstrdup(current_lc_monetary());
	}
}

/* In the source's context. */
static void
set_formats(KpgCaptureSource *source, Relation root, const KpgCapture *capture, const KpgCaptureShape *shape)
{
	AttrNumber *columns = palloc(sizeof(AttrNumber) * Max(shape->ncolumns, 1));

	for (int i = 0; i < shape->ncolumns; i++)
		columns[i] = own_column(source, RelationGetDescr(root), shape->columns[i].attnum);
	source->nfields = shape->ncolumns;
	source->format = kpg_format_create_for(source->desc, columns, shape->ncolumns,
										   kpg_format_policy(capture->on_type_error));
	set_key(source, root);
	source->nwatched = 0;
	if (capture->columns != NIL)
	{
		set_watched(source, columns, shape->ncolumns);
		check_key_is_captured(source);
	}
	source->needs_old = source->nkey > 0 || source->nwatched > 0 || source->old_values;
	set_lc_monetary(source);
	source->old_slot = MakeSingleTupleTableSlot(source->desc, &TTSOpsMinimalTuple);
	source->new_slot = MakeSingleTupleTableSlot(source->desc, &TTSOpsMinimalTuple);
}

/*
 * Whatever the catalogs have changed while we look, or that our own changes
 * invalidate, the lock on the relation has kept its definition; so the call
 * that asks can use the source, but perhaps no other.
 */
static void
find_out(KpgCaptureSource *source, const TriggerData *trigdata)
{
	MemoryContext old;
	Relation	root;
	KpgCapture *capture;
	KpgCaptureShape *shape;

	check_trigger(trigdata);
	kpg_version_check();

	source->relation = RelationGetRelid(trigdata->tg_relation);
	source->root = find_root(trigdata);
	source->unsure = true;
	source->valid = true;
	any_unsure = true;

	root = table_open(source->root, source->root == source->relation ? NoLock : AccessShareLock);
	capture = find_capture(trigdata, root);
	shape = find_shape(RelationGetDescr(root), capture);
	source->capture = capture->id;
	source->shape = shape->shape;
	source->old_values = capture->old_values;

	old = MemoryContextSwitchTo(source->context);
	source->relation_name = pstrdup(RelationGetRelationName(trigdata->tg_relation));
	source->desc = CreateTupleDescCopy(RelationGetDescr(trigdata->tg_relation));
	set_formats(source, root, capture, shape);
	MemoryContextSwitchTo(old);
	table_close(root, NoLock);

	check_old_table(trigdata, source);
	warn_of_inheritance(trigdata);
}

static MemoryContext
make_context(MemoryContext parent)
{
	return AllocSetContextCreate(parent, "kusto_ingest capture trigger", ALLOCSET_SMALL_SIZES);
}

/*
 * For what a row needs.  All sources share one: of partitions a session may know
 * thousands.  A call inside of another one has its own.
 */
static void
set_row_context(KpgCaptureSource *source, bool inside)
{
	if (shared_row_context == NULL)
		shared_row_context = AllocSetContextCreate(TopMemoryContext, "kusto_ingest captured row",
												   ALLOCSET_DEFAULT_SIZES);
	source->row_context = inside
		? AllocSetContextCreate(source->context, "kusto_ingest captured row", ALLOCSET_DEFAULT_SIZES)
		: shared_row_context;
}

/* For a call inside of another one of the same trigger. */
static KpgCaptureSource *
make_temporary(const TriggerData *trigdata)
{
	MemoryContext context = make_context(CurrentMemoryContext);
	KpgCaptureSource *source = MemoryContextAllocZero(context, sizeof(KpgCaptureSource));

	source->trigger = InvalidOid;
	source->context = context;
	find_out(source, trigdata);
	set_row_context(source, true);
	return source;
}

static bool
is_usable(const KpgCaptureSource *source)
{
	return source->valid &&
		(source->lc_monetary == NULL || strcmp(source->lc_monetary, current_lc_monetary()) == 0);
}

static KpgCaptureSource *
find_source(Oid trigger)
{
	bool		found;

	if (latest != NULL && latest->trigger == trigger)
		return latest;
	if (sources == NULL)
		initialize();
	latest = hash_search(sources, &trigger, HASH_ENTER, &found);
	if (!found)
		memset((char *) latest + sizeof(Oid), 0, sizeof(KpgCaptureSource) - sizeof(Oid));
	return latest;
}

KpgCaptureSource *
kpg_capture_relation_acquire(TriggerData *trigdata)
{
	KpgCaptureSource *source = find_source(trigdata->tg_trigger->tgoid);

	if (source->used_in != InvalidSubTransactionId)
		return make_temporary(trigdata);

	source->used_at = transactions;
	/* From here on an error invalidates it. */
	source->used_in = GetCurrentSubTransactionId();
	nused++;
	if (likely(is_usable(source)))
	{
		set_row_context(source, nused > 1);
		return source;
	}

	if (source->context != NULL)
		MemoryContextDelete(source->context);
	source->context = NULL;
	source->format = NULL;
	sweep();
	source->context = make_context(TopMemoryContext);
	find_out(source, trigdata);
	set_row_context(source, nused > 1);
	return source;
}

void
kpg_capture_relation_release(KpgCaptureSource *source)
{
	if (!OidIsValid(source->trigger))
	{
		MemoryContextDelete(source->context);
		return;
	}
	if (source->row_context != shared_row_context)
		MemoryContextDelete(source->row_context);
	source->used_in = InvalidSubTransactionId;
	nused--;
}
