/*
 * outbox_capture.c
 *	  kusto.capture and kusto.capture_shape: which tables are captured, and what
 *	  the fields of their chunks are.
 *
 * They are read as of now, whatever the isolation level: a transaction must not
 * register what another has registered since its snapshot was taken.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "outbox.h"
#include "outbox_internal.h"

/* ---- captures ---- */

/* Dropping the table ends it as well. */
#define IS_ENDED \
"c.ended_at IS NOT NULL OR NOT EXISTS (SELECT FROM pg_class r WHERE r.oid = c.relation)"

#define CAPTURE_COLUMNS \
"c.id, c.relation, c.relation_name, c.owner, c.server, c.database, c.table_name, c.columns," \
" c.old_values, c.create_table, c.on_type_error, c.snapshot_operation, c.snapshot_seq," \
" " IS_ENDED ", c.system_identifier, c.database_oid"

static const char select_capture[] =
"SELECT " CAPTURE_COLUMNS " FROM kusto.capture c"
" WHERE c.relation = $1 AND c.ended_at IS NULL AND ($2 IS NULL OR c.server = $2::name)"
" AND c.database = $3 AND c.table_name = $4 ORDER BY c.id LIMIT 1";

static const char select_captures_of[] =
"SELECT " CAPTURE_COLUMNS " FROM kusto.capture c"
" WHERE c.relation = $1 AND c.ended_at IS NULL ORDER BY c.id";

static const char select_captures[] =
"SELECT " CAPTURE_COLUMNS " FROM kusto.capture c"
" WHERE c.system_identifier = $1 AND c.database_oid = $2 AND c.forgotten_at IS NULL ORDER BY c.id";

/* Whichever relation's, and recorded wherever: they write to the same Kusto table. */
#define OF_SAME_TARGET "c.server = $1::name AND c.database = $2 AND c.table_name = $3"

static const char select_others[] =
"SELECT c.old_values, c.ended_at IS NULL FROM kusto.capture c WHERE " OF_SAME_TARGET " AND c.id <> $4"
" ORDER BY c.ended_at IS NULL DESC, c.id DESC LIMIT 1";

static const char insert_capture[] =
"INSERT INTO kusto.capture (relation, relation_name, owner, server, database, table_name, columns,"
" old_values, create_table, on_type_error, snapshot_operation, snapshot_seq, created_at,"
" system_identifier, database_oid)"
" VALUES ($1, $2, $3, $4::name, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING id";

static const char update_capture[] =
"UPDATE kusto.capture SET owner = $2, columns = $3, create_table = $4, on_type_error = $5,"
" snapshot_operation = $6, snapshot_seq = $7, system_identifier = $8, database_oid = $9"
" WHERE id = $1 AND ended_at IS NULL";

static const char update_ended[] =
"UPDATE kusto.capture SET ended_at = clock_timestamp() WHERE id = $1 AND ended_at IS NULL";

static const char update_forgotten[] =
"UPDATE kusto.capture c SET ended_at = coalesce(c.ended_at, clock_timestamp()),"
" forgotten_at = clock_timestamp() WHERE c.id = $1 AND (" IS_ENDED ")";

/* Of those that know of the same columns the newest is left. */
#define KNOWN_COLUMNS(capture) \
"(SELECT coalesce(max(jsonb_array_length(s.columns)), 0) FROM kusto.capture_shape s WHERE s.capture = " capture ".id)"

static const char delete_forgotten[] =
"WITH gone AS (DELETE FROM kusto.capture c USING kusto.capture other"
" WHERE c.forgotten_at IS NOT NULL AND other.id <> c.id AND other.server = c.server"
" AND other.database = c.database AND other.table_name = c.table_name"
" AND (c.id = $1 OR other.id = $1)"
" AND (" KNOWN_COLUMNS("other") ", other.id) > (" KNOWN_COLUMNS("c") ", c.id) RETURNING c.id)"
" DELETE FROM kusto.capture_shape s USING gone WHERE s.capture = gone.id";

static KpgCapture *
read_capture(MemoryContext context, uint64 row)
{
	KpgCapture *capture = MemoryContextAllocZero(context, sizeof(KpgCapture));
	bool		isnull;
	Datum		operation;

	capture->id = DatumGetInt32(kpg_operations_value(row, 1, &isnull));
	capture->relation = DatumGetObjectId(kpg_operations_value(row, 2, &isnull));
	capture->relation_name = kpg_operations_string(context, row, 3);
	capture->owner = DatumGetObjectId(kpg_operations_value(row, 4, &isnull));
	capture->server = kpg_operations_string(context, row, 5);
	capture->database = kpg_operations_string(context, row, 6);
	capture->table_name = kpg_operations_string(context, row, 7);
	capture->columns = kpg_outbox_list_value(context, row, 8);
	capture->old_values = DatumGetBool(kpg_operations_value(row, 9, &isnull));
	capture->create_table = DatumGetBool(kpg_operations_value(row, 10, &isnull));
	capture->on_type_error = kpg_operations_string(context, row, 11);
	operation = kpg_operations_value(row, 12, &isnull);
	capture->has_snapshot = !isnull;
	if (capture->has_snapshot)
		capture->snapshot_operation = *DatumGetUUIDP(operation);
	capture->snapshot_seq = DatumGetInt64(kpg_operations_value(row, 13, &isnull));
	capture->ended = DatumGetBool(kpg_operations_value(row, 14, &isnull));
	capture->system_identifier = (uint64) DatumGetInt64(kpg_operations_value(row, 15, &isnull));
	capture->database_oid = DatumGetObjectId(kpg_operations_value(row, 16, &isnull));
	capture->foreign = capture->system_identifier != GetSystemIdentifier() ||
		capture->database_oid != MyDatabaseId;
	return capture;
}

static List *
select_list(const char *sql, const KpgSqlArg *args, int nargs, MemoryContext context)
{
	uint64		n = kpg_outbox_select(sql, args, nargs);
	MemoryContext old = MemoryContextSwitchTo(context);
	List	   *captures = NIL;

	for (uint64 i = 0; i < n; i++)
		captures = lappend(captures, read_capture(context, i));
	MemoryContextSwitchTo(old);
	return captures;
}

KpgCapture *
kpg_outbox_find_capture(Oid relation, const char *server, const char *database, const char *table_name)
{
	MemoryContext context = CurrentMemoryContext;
	KpgSqlScope scope;
	List	   *found;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_arg(OIDOID, ObjectIdGetDatum(relation)),
			kpg_operations_text_arg(server),
			kpg_operations_text_arg(database),
			kpg_operations_text_arg(table_name)
		};

		found = select_list(select_capture, args, lengthof(args), context);
	}
	kpg_operations_leave(&scope);
	return found == NIL ? NULL : linitial(found);
}

List *
kpg_outbox_captures_of(Oid relation)
{
	MemoryContext context = CurrentMemoryContext;
	KpgSqlScope scope;
	KpgSqlArg	arg;
	List	   *captures;

	kpg_operations_enter(&scope);
	arg = kpg_operations_arg(OIDOID, ObjectIdGetDatum(relation));
	captures = select_list(select_captures_of, &arg, 1, context);
	kpg_operations_leave(&scope);
	return captures;
}

/* Then there is no need to ask, which the worker of every database does. */
static bool
has_never_held_any(void)
{
	Relation	relation = table_open(kpg_outbox_capture_table(), AccessShareLock);
	bool		empty = RelationGetNumberOfBlocks(relation) == 0;

	table_close(relation, AccessShareLock);
	return empty;
}

List *
kpg_outbox_captures(void)
{
	MemoryContext context = CurrentMemoryContext;
	KpgSqlScope scope;
	List	   *captures;

	if (has_never_held_any())
		return NIL;
	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {kpg_operations_cluster_arg(), kpg_operations_database_arg()};

		/* Asked again and again: what has been forgotten is not to be read each time. */
		(void) set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
		captures = select_list(select_captures, args, lengthof(args), context);
	}
	kpg_operations_leave(&scope);
	return captures;
}

/* Whose the rows are: as the capture says, else ours. */
static KpgSqlArg
cluster_arg(const KpgCapture *capture)
{
	if (capture->system_identifier == 0)
		return kpg_operations_cluster_arg();
	return kpg_operations_arg(INT8OID, Int64GetDatum((int64) capture->system_identifier));
}

static KpgSqlArg
database_arg(const KpgCapture *capture)
{
	if (capture->system_identifier == 0)
		return kpg_operations_database_arg();
	return kpg_operations_arg(OIDOID, ObjectIdGetDatum(capture->database_oid));
}

static int32
insert_one(const KpgCapture *capture)
{
	const KpgSqlArg args[] = {
		kpg_operations_arg(OIDOID, ObjectIdGetDatum(capture->relation)),
		kpg_operations_text_arg(capture->relation_name),
		kpg_operations_arg(OIDOID, ObjectIdGetDatum(capture->owner)),
		kpg_operations_text_arg(capture->server),
		kpg_operations_text_arg(capture->database),
		kpg_operations_text_arg(capture->table_name),
		kpg_outbox_list_arg(capture->columns),
		kpg_operations_arg(BOOLOID, BoolGetDatum(capture->old_values)),
		kpg_operations_arg(BOOLOID, BoolGetDatum(capture->create_table)),
		kpg_operations_text_arg(capture->on_type_error),
		kpg_outbox_nullable_arg(UUIDOID, UUIDPGetDatum(&capture->snapshot_operation), !capture->has_snapshot),
		kpg_outbox_nullable_arg(INT8OID, Int64GetDatum(capture->snapshot_seq), !capture->has_snapshot),
		kpg_operations_arg(TIMESTAMPTZOID, TimestampTzGetDatum(GetCurrentTimestamp())),
		cluster_arg(capture),
		database_arg(capture)
	};
	bool		isnull;

	(void) kpg_operations_execute(insert_capture, args, lengthof(args), SPI_OK_INSERT_RETURNING, 0);
	return DatumGetInt32(kpg_operations_value(0, 1, &isnull));
}

/* ---- several captures to one Kusto table ---- */

typedef struct Others
{
	bool		any;			/* ended ones included */
	bool		any_active;
	bool		old_values;		/* of all of them */
} Others;

static Others
find_others(const KpgCapture *capture)
{
	Others		others = {0};
	KpgSqlScope scope;
	bool		isnull;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_text_arg(capture->server),
			kpg_operations_text_arg(capture->database),
			kpg_operations_text_arg(capture->table_name),
			kpg_operations_arg(INT4OID, Int32GetDatum(capture->id))
		};

		others.any = kpg_outbox_select(select_others, args, lengthof(args)) > 0;
		if (others.any)
		{
			others.old_values = DatumGetBool(kpg_operations_value(0, 1, &isnull));
			others.any_active = DatumGetBool(kpg_operations_value(0, 2, &isnull));
		}
	}
	kpg_operations_leave(&scope);
	return others;
}

static uint32
target_hash(const KpgCapture *capture)
{
	StringInfoData target;

	/* With the zeros between them. */
	initStringInfo(&target);
	appendBinaryStringInfo(&target, capture->server, (int) strlen(capture->server) + 1);
	appendBinaryStringInfo(&target, capture->database, (int) strlen(capture->database) + 1);
	appendStringInfoString(&target, capture->table_name);
	return DatumGetUInt32(hash_any((unsigned char *) target.data, target.len));
}

/* A relation's captures are locked with 0 as the last number. */
#define LOCK_TARGET(capture, mode) \
	LockDatabaseObject(kpg_outbox_capture_table(), target_hash(capture), 1, mode)
#define UNLOCK_TARGET(capture, mode) \
	UnlockDatabaseObject(kpg_outbox_capture_table(), target_hash(capture), 1, mode)

/*
 * Nobody else adds columns until the transaction ends.  A capture that is alone
 * does not keep its own sessions waiting for each other: they find the same.
 */
static void
lock_columns(const KpgCapture *capture)
{
	if (!find_others(capture).any_active)
	{
		LOCK_TARGET(capture, ShareLock);
		if (!find_others(capture).any_active)
			return;
		UNLOCK_TARGET(capture, ShareLock);
	}
	LOCK_TARGET(capture, ExclusiveLock);
}

/*
 * Fields go by position, so whoever writes to a Kusto table after others begins
 * with their columns, which nothing fills until one has their name and type.
 */
static void
inherit_shape(const KpgCapture *capture)
{
	Others		others = find_others(capture);
	KpgCaptureShape *shape = kpg_outbox_shape_to_extend(capture);

	if (shape == NULL)
		return;
	if (others.old_values != capture->old_values)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 others.old_values
				 ? errmsg("row changes were sent to Kusto table \"%s\" with old_values before", capture->table_name)
				 : errmsg("row changes were sent to Kusto table \"%s\" without old_values before", capture->table_name),
				 errdetail("Its columns are in another order."),
				 errhint("Capture to another Kusto table.")));
	kpg_outbox_add_shape(capture->id, shape);
}

/*
 * Whoever registers a relation's captures locks them until the transaction ends.
 * The unique index alone would do the same under READ COMMITTED, but would fail
 * other transactions with a serialization error or a duplicate key.
 */
bool
kpg_outbox_add_capture(KpgCapture *capture)
{
	KpgCapture *there;
	KpgSqlScope scope;

	LockDatabaseObject(kpg_outbox_capture_table(), capture->relation, 0, ExclusiveLock);
	there = kpg_outbox_find_capture(capture->relation, capture->server, capture->database,
									capture->table_name);
	if (there != NULL)
	{
		*capture = *there;
		return false;
	}

	LOCK_TARGET(capture, ExclusiveLock);
	kpg_operations_enter(&scope);
	capture->id = insert_one(capture);
	kpg_operations_leave(&scope);
	inherit_shape(capture);
	capture->foreign = capture->system_identifier != 0 &&
		(capture->system_identifier != GetSystemIdentifier() || capture->database_oid != MyDatabaseId);
	return true;
}

void
kpg_outbox_change_capture(const KpgCapture *capture)
{
	KpgSqlScope scope;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_arg(INT4OID, Int32GetDatum(capture->id)),
			kpg_operations_arg(OIDOID, ObjectIdGetDatum(capture->owner)),
			kpg_outbox_list_arg(capture->columns),
			kpg_operations_arg(BOOLOID, BoolGetDatum(capture->create_table)),
			kpg_operations_text_arg(capture->on_type_error),
			kpg_outbox_nullable_arg(UUIDOID, UUIDPGetDatum(&capture->snapshot_operation),
									!capture->has_snapshot),
			kpg_outbox_nullable_arg(INT8OID, Int64GetDatum(capture->snapshot_seq), !capture->has_snapshot),
			cluster_arg(capture),
			database_arg(capture)
		};

		(void) kpg_outbox_execute(update_capture, args, lengthof(args), SPI_OK_UPDATE);
	}
	kpg_operations_leave(&scope);
}

static void
execute_for(const char *sql, int32 capture, int expected)
{
	KpgSqlScope scope;
	KpgSqlArg	arg;

	kpg_operations_enter(&scope);
	arg = kpg_operations_arg(INT4OID, Int32GetDatum(capture));
	(void) kpg_outbox_execute(sql, &arg, 1, expected);
	kpg_operations_leave(&scope);
}

void
kpg_outbox_end_capture(int32 capture)
{
	execute_for(update_ended, capture, SPI_OK_UPDATE);
}

void
kpg_outbox_drop_capture(int32 capture)
{
	execute_for(update_forgotten, capture, SPI_OK_UPDATE);
	execute_for(delete_forgotten, capture, SPI_OK_DELETE);
}

/* ---- shapes ---- */

#define SELECT_SHAPE(which) \
"SELECT s.shape, s.accepted, e.col ->> 'name', e.col ->> 'type', (e.col ->> 'attnum')::int2" \
" FROM (SELECT t.shape, t.columns, t.accepted FROM kusto.capture_shape t WHERE t.capture = $1" which \
" ORDER BY t.accepted DESC, t.id DESC LIMIT 1) s" \
" LEFT JOIN LATERAL jsonb_array_elements(s.columns) WITH ORDINALITY AS e (col, n) ON true" \
" ORDER BY e.n"

static const char select_newest[] =
SELECT_SHAPE(" AND t.id = (SELECT max(m.id) FROM kusto.capture_shape m WHERE m.capture = $1)");

/* Each capture's is a beginning of the longest. */
static const char select_longest[] =
"SELECT s.shape, s.accepted, e.col ->> 'name', e.col ->> 'type', (e.col ->> 'attnum')::int2"
" FROM (SELECT t.shape, t.columns, t.accepted FROM kusto.capture c"
" JOIN kusto.capture_shape t ON t.capture = c.id WHERE " OF_SAME_TARGET
" ORDER BY jsonb_array_length(t.columns) DESC, t.id DESC LIMIT 1) s"
" LEFT JOIN LATERAL jsonb_array_elements(s.columns) WITH ORDINALITY AS e (col, n) ON true"
" ORDER BY e.n";

/* Twins may differ in whether somebody has accepted them. */
static const char select_shape[] = SELECT_SHAPE(" AND t.shape = $2");

/*
 * Columns are only ever added, at the end: no more of them than a table has that
 * was accepted are the same ones.
 */
static const char select_acceptance[] =
"SELECT EXISTS (SELECT FROM kusto.capture_shape s WHERE s.capture = $1 AND s.shape = $2"
" AND s.id = (SELECT max(m.id) FROM kusto.capture_shape m WHERE m.capture = $1)),"
" EXISTS (SELECT FROM kusto.capture c WHERE c.id = $1 AND c.create_table)"
" OR NOT EXISTS (SELECT FROM kusto.capture_shape s WHERE s.capture = $1)"
" OR EXISTS (SELECT FROM kusto.capture_shape s WHERE s.capture = $1 AND s.accepted"
" AND jsonb_array_length(s.columns) >= $3)";

static const char insert_shape[] =
"INSERT INTO kusto.capture_shape (capture, shape, columns, created_at, accepted)"
" VALUES ($1, $2, $3::jsonb, clock_timestamp(), $4)";

static const char update_accepted[] =
"UPDATE kusto.capture_shape SET accepted = true WHERE capture = $1 AND NOT accepted";

static KpgCaptureShape *
read_shape(MemoryContext context, uint64 n)
{
	KpgCaptureShape *shape = MemoryContextAllocZero(context, sizeof(KpgCaptureShape));
	bool		isnull;

	shape->shape = DatumGetInt64(kpg_operations_value(0, 1, &isnull));
	shape->accepted = DatumGetBool(kpg_operations_value(0, 2, &isnull));
	shape->columns = MemoryContextAllocZero(context, sizeof(KpgCaptureColumn) * (Size) n);
	for (uint64 i = 0; i < n; i++)
	{
		KpgCaptureColumn *column = &shape->columns[shape->ncolumns];

		/* A table without columns has a row all the same, of the outer join. */
		column->attnum = DatumGetInt16(kpg_operations_value(i, 5, &isnull));
		if (isnull)
			continue;
		column->name = kpg_operations_string(context, i, 3);
		column->type = kpg_operations_string(context, i, 4);
		shape->ncolumns++;
	}
	return shape;
}

static KpgCaptureShape *
select_one_shape(const char *sql, int32 capture, const int64 *hash)
{
	MemoryContext context = CurrentMemoryContext;
	KpgCaptureShape *shape = NULL;
	KpgSqlScope scope;
	uint64		n;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_arg(INT4OID, Int32GetDatum(capture)),
			kpg_operations_arg(INT8OID, Int64GetDatum(hash == NULL ? 0 : *hash))
		};

		n = kpg_outbox_select(sql, args, hash == NULL ? 1 : 2);
		if (n > 0)
			shape = read_shape(context, n);
	}
	kpg_operations_leave(&scope);
	return shape;
}

KpgCaptureShape *
kpg_outbox_shape(int32 capture)
{
	return select_one_shape(select_newest, capture, NULL);
}

/* NULL: none of them has one. */
static KpgCaptureShape *
longest_shape(const KpgCapture *capture)
{
	MemoryContext context = CurrentMemoryContext;
	KpgCaptureShape *shape = NULL;
	KpgSqlScope scope;
	uint64		n;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_text_arg(capture->server),
			kpg_operations_text_arg(capture->database),
			kpg_operations_text_arg(capture->table_name)
		};

		n = kpg_outbox_select(select_longest, args, lengthof(args));
		if (n > 0)
			shape = read_shape(context, n);
	}
	kpg_operations_leave(&scope);
	return shape;
}

KpgCaptureShape *
kpg_outbox_shape_to_extend(const KpgCapture *capture)
{
	KpgCaptureShape *newest;
	KpgCaptureShape *longest;

	lock_columns(capture);
	newest = kpg_outbox_shape(capture->id);
	longest = longest_shape(capture);
	if (longest == NULL || (newest != NULL && newest->ncolumns == longest->ncolumns))
		return newest;
	for (int i = 0; i < longest->ncolumns; i++)
		longest->columns[i].attnum = newest != NULL && i < newest->ncolumns ? newest->columns[i].attnum : 0;
	return longest;
}

KpgCaptureShape *
kpg_outbox_shape_of(int32 capture, int64 shape)
{
	return select_one_shape(select_shape, capture, &shape);
}

static char *
shape_json(const KpgCaptureShape *shape)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '[');
	for (int i = 0; i < shape->ncolumns; i++)
	{
		const KpgCaptureColumn *column = &shape->columns[i];

		appendStringInfoString(&json, i > 0 ? ",{\"name\":" : "{\"name\":");
		escape_json(&json, column->name);
		appendStringInfoString(&json, ",\"type\":");
		escape_json(&json, column->type);
		appendStringInfo(&json, ",\"attnum\":%d}", column->attnum);
	}
	appendStringInfoChar(&json, ']');
	return json.data;
}

void
kpg_outbox_add_shape(int32 capture, KpgCaptureShape *shape)
{
	char	   *json = shape_json(shape);
	KpgSqlScope scope;
	bool		isnull;
	bool		known;

	shape->shape = DatumGetInt64(hash_any_extended((unsigned char *) json, (int) strlen(json), 0));

	kpg_operations_enter(&scope);
	{
		KpgSqlArg	args[] = {
			kpg_operations_arg(INT4OID, Int32GetDatum(capture)),
			kpg_operations_arg(INT8OID, Int64GetDatum(shape->shape)),
			kpg_operations_arg(INT4OID, Int32GetDatum(shape->ncolumns)),
			kpg_operations_arg(BOOLOID, BoolGetDatum(false))
		};

		(void) kpg_outbox_select(select_acceptance, args, 3);
		known = DatumGetBool(kpg_operations_value(0, 1, &isnull));
		shape->accepted = DatumGetBool(kpg_operations_value(0, 2, &isnull));
		args[2] = kpg_operations_text_arg(json);
		args[3] = kpg_operations_arg(BOOLOID, BoolGetDatum(shape->accepted));
		if (!known && kpg_operations_execute(insert_shape, args, lengthof(args), SPI_OK_INSERT, 0) != 1)
			elog(ERROR, "columns of capture %d were not recorded", capture);
	}
	kpg_operations_leave(&scope);
}

void
kpg_outbox_accept_shapes(int32 capture)
{
	execute_for(update_accepted, capture, SPI_OK_UPDATE);
}
