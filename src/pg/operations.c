/*
 * operations.c
 *	  Recording an export in the caller's transaction, and reading what became
 *	  of it.
 *
 * Rows are all there is: nothing here is remembered in memory, so savepoints,
 * aborts and two-phase commit are right without any code for them.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "replication/logicalworker.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "operations.h"
#include "operations_internal.h"

/* ---- running SQL ---- */

static Oid
operation_table(void)
{
	Oid			nspid = get_namespace_oid("kusto", false);
	Oid			relid = get_relname_relid("operation", nspid);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"kusto.operation\" does not exist"),
				 errhint("Create the extension kusto_ingest anew.")));
	return relid;
}

static Oid
table_owner(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relid));
	Oid			owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relid);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

void
kpg_operations_enter(KpgSqlScope *scope)
{
	Oid			owner = table_owner(operation_table());

	GetUserIdAndSecContext(&scope->userid, &scope->sec_context);
	SetUserIdAndSecContext(owner, scope->sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	scope->guc_level = NewGUCNestLevel();
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	/* What a process of logical replication writes of its own accord is not replicated. */
	if (IsLogicalWorker())
		(void) set_config_option("session_replication_role", "origin", PGC_SUSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	/*
	 * Plans are kept, also those that were made while the tables were small.  What
	 * has no index is dear then, but for the tables' size not worth compiling.
	 */
	(void) set_config_option("enable_seqscan", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("jit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
kpg_operations_leave(const KpgSqlScope *scope)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	AtEOXact_GUC(false, scope->guc_level);
	SetUserIdAndSecContext(scope->userid, scope->sec_context);
}

KpgSqlArg
kpg_operations_arg(Oid type, Datum value)
{
	return (KpgSqlArg) {.type = type, .value = value};
}

KpgSqlArg
kpg_operations_text_arg(const char *value)
{
	if (value == NULL)
		return (KpgSqlArg) {.type = TEXTOID, .isnull = true};
	return kpg_operations_arg(TEXTOID, CStringGetTextDatum(value));
}

KpgSqlArg
kpg_operations_uuid_arg(const pg_uuid_t *value)
{
	return kpg_operations_arg(UUIDOID, UUIDPGetDatum(value));
}

KpgSqlArg
kpg_operations_cluster_arg(void)
{
	return kpg_operations_arg(INT8OID, Int64GetDatum((int64) GetSystemIdentifier()));
}

KpgSqlArg
kpg_operations_database_arg(void)
{
	return kpg_operations_arg(OIDOID, ObjectIdGetDatum(MyDatabaseId));
}

/* A trigger may have taken the row that a statement is to return. */
static HeapTuple
result_row(uint64 row)
{
	if (SPI_tuptable == NULL || row >= SPI_processed)
		elog(ERROR, "statement on the tables of kusto_ingest returned " UINT64_FORMAT " rows", SPI_processed);
	return SPI_tuptable->vals[row];
}

Datum
kpg_operations_value(uint64 row, int column, bool *isnull)
{
	HeapTuple	tuple = result_row(row);

	return SPI_getbinval(tuple, SPI_tuptable->tupdesc, column, isnull);
}

char *
kpg_operations_string(MemoryContext context, uint64 row, int column)
{
	HeapTuple	tuple = result_row(row);
	char	   *value = SPI_getvalue(tuple, SPI_tuptable->tupdesc, column);

	return value == NULL ? NULL : MemoryContextStrdup(context, value);
}

/* ---- exactly_once ---- */

/*
 * A blob with an ingest-by tag is ingested alone.  From this size on it nearly
 * is anyway: a batch is sealed at 1 GB of raw data
 * (learn.microsoft.com/kusto/management/batching-policy).
 */
#define EXACTLY_ONCE_MIN_BYTES	(INT64CONST(100) * 1000 * 1000)

static const char *const exactly_once_names[] = {
	[KPG_EXACTLY_ONCE_AUTO] = "auto",
	[KPG_EXACTLY_ONCE_ON] = "on",
	[KPG_EXACTLY_ONCE_OFF] = "off"
};

const char *
kpg_operations_exactly_once_name(KpgExactlyOnce value)
{
	return exactly_once_names[value];
}

KpgExactlyOnce
kpg_operations_exactly_once(const char *name)
{
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", "exactly_once")));
	for (int i = 0; i < (int) lengthof(exactly_once_names); i++)
	{
		if (strcmp(name, exactly_once_names[i]) == 0)
			return (KpgExactlyOnce) i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for argument \"%s\": \"%s\"", "exactly_once", name),
			 errhint("Valid values are \"auto\", \"on\" and \"off\".")));
	return KPG_EXACTLY_ONCE_AUTO;	/* not reached */
}

static bool
is_exactly_once(KpgExactlyOnce policy, const KcIngestBlob *blob)
{
	if (policy == KPG_EXACTLY_ONCE_AUTO)
		return blob->raw_bytes >= EXACTLY_ONCE_MIN_BYTES;
	return policy == KPG_EXACTLY_ONCE_ON;
}

/* ---- staging ---- */

static const char insert_operation[] =
"INSERT INTO kusto.operation (" KPG_REQUEST_COLUMNS ","
" options, table_command, state, rows, raw_bytes, compressed_bytes, blobs, type_errors,"
" staged_at, posted_at, finished_at)"
" VALUES (" KPG_REQUEST_VALUES ","
" jsonb_strip_nulls(jsonb_build_object(" KPG_REQUEST_OPTIONS ")),"
" $19, $20, $21, $22, $23, $24, $25::jsonb, $26,"
" CASE WHEN $20 <> 'staged' AND $21 > 0 THEN $26 END,"
" CASE WHEN $20 <> 'staged' THEN $26 END)";

static const char insert_blobs[] =
"INSERT INTO kusto.blob (operation_id, ordinal, source_id, url, rows, raw_bytes,"
" compressed_bytes, exactly_once, state, staged_at, posted_at, finished_at)"
" SELECT $1, b.ordinal, b.source_id, b.url, b.rows, b.raw_bytes, b.compressed_bytes,"
" b.exactly_once, $10, $8, CASE WHEN $10 <> 'staged' THEN $8 END, CASE WHEN $10 <> 'staged' THEN $8 END"
" FROM unnest($2, $3, $4, $5, $6, $7, $9)"
" AS b (ordinal, source_id, url, rows, raw_bytes, compressed_bytes, exactly_once)";

static KpgSqlArg
text_array_arg(ArrayType *value)
{
	KpgSqlArg	arg = kpg_operations_arg(TEXTARRAYOID, PointerGetDatum(value));

	arg.isnull = value == NULL;
	return arg;
}

void
kpg_operations_request_args(const KpgOperationRequest *request, KpgSqlArg *args)
{
	KpgSqlArg	creation_time = kpg_operations_arg(TIMESTAMPTZOID, TimestampTzGetDatum(request->creation_time));

	creation_time.isnull = !request->has_creation_time;

	const KpgSqlArg filled[] = {
		kpg_operations_uuid_arg(&request->id),
		kpg_operations_arg(OIDOID, ObjectIdGetDatum(request->owner)),
		kpg_operations_text_arg(request->server),
		kpg_operations_text_arg(request->database),
		kpg_operations_text_arg(request->table_name),
		kpg_operations_text_arg(request->mode),
		kpg_operations_text_arg(request->source),
		kpg_operations_text_arg(request->query),
		kpg_operations_text_arg(request->mapping),
		text_array_arg(request->tags),
		text_array_arg(request->ingest_if_not_exists),
		creation_time,
		kpg_operations_arg(BOOLOID, BoolGetDatum(request->flush_immediately)),
		kpg_operations_text_arg(request->on_type_error),
		kpg_operations_text_arg(kpg_operations_exactly_once_name(request->exactly_once)),
		kpg_operations_arg(TIMESTAMPTZOID, TimestampTzGetDatum(request->created_at)),
		kpg_operations_cluster_arg(),
		kpg_operations_database_arg()
	};

	StaticAssertStmt(lengthof(filled) == KPG_REQUEST_ARGS, "all arguments of a request are there");
	memcpy(args, filled, sizeof(filled));
}

int
kpg_operations_nblobs(const KcIngest *ingest)
{
	return ingest == NULL ? 0 : kc_ingest_nblobs(ingest);
}

static void
insert_result(const KpgOperationRequest *request, const KpgIngested *ingested, const char *type_errors,
			  TimestampTz now)
{
	const KpgSqlArg result[] = {
		kpg_operations_text_arg(request->table_command),
		kpg_operations_text_arg(kpg_operations_state_name(ingested->state)),
		kpg_operations_arg(INT8OID, Int64GetDatum((int64) ingested->rows)),
		kpg_operations_arg(INT8OID, Int64GetDatum((int64) ingested->raw_bytes)),
		kpg_operations_arg(INT8OID, Int64GetDatum((int64) ingested->compressed_bytes)),
		kpg_operations_arg(INT4OID, Int32GetDatum(kpg_operations_nblobs(ingested->ingest))),
		kpg_operations_text_arg(type_errors),
		kpg_operations_arg(TIMESTAMPTZOID, TimestampTzGetDatum(now))
	};
	KpgSqlArg	args[KPG_REQUEST_ARGS + lengthof(result)];

	kpg_operations_request_args(request, args);
	memcpy(args + KPG_REQUEST_ARGS, result, sizeof(result));
	(void) kpg_operations_execute(insert_operation, args, lengthof(args), SPI_OK_INSERT, 0);
}

static KpgSqlArg
array_arg(Oid array_type, Oid element_type, Datum *values, int n)
{
	int16		len;
	bool		byval;
	char		align;

	get_typlenbyvalalign(element_type, &len, &byval, &align);
	return kpg_operations_arg(array_type,
							  PointerGetDatum(construct_array(values, n, element_type, len, byval, align)));
}

void
kpg_operations_insert_blobs(const KpgOperationRequest *request, const KcIngest *ingest, KpgState state,
							TimestampTz now)
{
	int			n = kc_ingest_nblobs(ingest);
	Datum	   *ordinals = palloc(sizeof(Datum) * (Size) n);
	Datum	   *source_ids = palloc(sizeof(Datum) * (Size) n);
	Datum	   *urls = palloc(sizeof(Datum) * (Size) n);
	Datum	   *rows = palloc(sizeof(Datum) * (Size) n);
	Datum	   *raw_bytes = palloc(sizeof(Datum) * (Size) n);
	Datum	   *compressed_bytes = palloc(sizeof(Datum) * (Size) n);
	Datum	   *exactly_once = palloc(sizeof(Datum) * (Size) n);

	for (int i = 0; i < n; i++)
	{
		const KcIngestBlob *blob = kc_ingest_blob(ingest, i);

		ordinals[i] = Int32GetDatum(blob->ordinal);
		source_ids[i] = PointerGetDatum(blob->source_id.bytes);
		urls[i] = CStringGetTextDatum(blob->url);
		rows[i] = Int64GetDatum((int64) blob->rows);
		raw_bytes[i] = Int64GetDatum((int64) blob->raw_bytes);
		compressed_bytes[i] = Int64GetDatum((int64) blob->compressed_bytes);
		exactly_once[i] = BoolGetDatum(is_exactly_once(request->exactly_once, blob));
	}

	const KpgSqlArg args[] = {
		kpg_operations_uuid_arg(&request->id),
		array_arg(INT4ARRAYOID, INT4OID, ordinals, n),
		array_arg(UUIDARRAYOID, UUIDOID, source_ids, n),
		array_arg(TEXTARRAYOID, TEXTOID, urls, n),
		array_arg(INT8ARRAYOID, INT8OID, rows, n),
		array_arg(INT8ARRAYOID, INT8OID, raw_bytes, n),
		array_arg(INT8ARRAYOID, INT8OID, compressed_bytes, n),
		kpg_operations_arg(TIMESTAMPTZOID, TimestampTzGetDatum(now)),
		array_arg(BOOLARRAYOID, BOOLOID, exactly_once, n),
		kpg_operations_text_arg(kpg_operations_state_name(state))
	};

	(void) kpg_operations_execute(insert_blobs, args, lengthof(args), SPI_OK_INSERT, 0);
}

void
kpg_operations_record(const KpgOperationRequest *request, const KpgIngested *ingested,
					  const char *type_errors)
{
	TimestampTz now = GetCurrentTimestamp();
	KpgSqlScope scope;

	StaticAssertStmt(sizeof(KcUuid) == sizeof(pg_uuid_t), "a uuid is a uuid");

	kpg_operations_enter(&scope);
	insert_result(request, ingested, type_errors, now);
	if (kpg_operations_nblobs(ingested->ingest) > 0)
		kpg_operations_insert_blobs(request, ingested->ingest, ingested->state, now);
	kpg_operations_leave(&scope);
}

KpgIngested
kpg_operations_staged_ingest(const KpgOperationRequest *request, const KcIngest *ingest)
{
	bool		to_do = kc_ingest_nblobs(ingest) > 0 || request->table_command != NULL;
	KpgIngested staged = {.state = to_do ? KPG_STATE_STAGED : KPG_STATE_SUCCEEDED,.ingest = ingest};
	uint64_t	rows;
	uint64_t	raw_bytes;
	uint64_t	compressed_bytes;

	kc_ingest_totals(ingest, &rows, &raw_bytes, &compressed_bytes);
	staged.rows = rows;
	staged.raw_bytes = raw_bytes;
	staged.compressed_bytes = compressed_bytes;
	return staged;
}

bool
kpg_operations_stage(const KpgOperationRequest *request, const KcIngest *ingest, const char *type_errors)
{
	KpgIngested staged = kpg_operations_staged_ingest(request, ingest);

	kpg_operations_record(request, &staged, type_errors);
	return staged.state == KPG_STATE_STAGED;
}

/* ---- the outcome ---- */

static char *
column_string(HeapTuple tuple, TupleDesc desc, const char *name)
{
	int			attnum = SPI_fnumber(desc, name);

	if (attnum <= 0)
		elog(ERROR, "table \"kusto.operation\" has no column \"%s\"", name);
	return SPI_getvalue(tuple, desc, attnum);
}

static bool
may_see(Oid owner)
{
	return has_privs_of_role(GetUserId(), owner) ||
		has_privs_of_role(GetUserId(), get_role_oid("pg_read_all_stats", false));
}

static void
read_outcome(HeapTuple tuple, TupleDesc desc, KpgOutcome *outcome)
{
	TransactionId xmin = HeapTupleHeaderGetXmin(tuple->t_data);
	bool		isnull;
	Datum		owner = heap_getattr(tuple, SPI_fnumber(desc, "owner"), desc, &isnull);
	Datum		cluster = heap_getattr(tuple, SPI_fnumber(desc, "system_identifier"), desc, &isnull);
	Datum		database = heap_getattr(tuple, SPI_fnumber(desc, "database_oid"), desc, &isnull);

	outcome->found = true;

	/* We have inserted it, or steered it. */
	outcome->own_uncommitted = TransactionIdIsCurrentTransactionId(xmin);
	outcome->visible_to_user = may_see(DatumGetObjectId(owner));
	outcome->steered_by_user = has_privs_of_role(GetUserId(), DatumGetObjectId(owner));
	outcome->foreign = (uint64) DatumGetInt64(cluster) != GetSystemIdentifier() ||
		DatumGetObjectId(database) != MyDatabaseId;
	outcome->state = column_string(tuple, desc, "state");
	outcome->finished = kpg_operations_is_final(kpg_operations_state(outcome->state));
	outcome->error_code = column_string(tuple, desc, "error_code");
	outcome->error_message = column_string(tuple, desc, "error_message");
	outcome->details = column_string(tuple, desc, "details");
	outcome->hint = column_string(tuple, desc, "hint");
}

/* What the catalog cache knows may have been dropped since; opening brings it up to date. */
static Relation
open_operation_table(void)
{
	Relation	relation;

	do
		relation = try_relation_open(operation_table(), AccessShareLock);
	while (relation == NULL);
	return relation;
}

/*
 * A scan and not SPI: it is asked for many times a second, and a waiting
 * transaction must not keep a lock that would stop DROP EXTENSION.
 */
void
kpg_operations_outcome(const pg_uuid_t *id, KpgOutcome *outcome)
{
	Relation	relation = open_operation_table();
	Oid			index = get_relname_relid("operation_pkey", RelationGetNamespace(relation));
	AttrNumber	attnum = (AttrNumber) SPI_fnumber(RelationGetDescr(relation), "id");
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	memset(outcome, 0, sizeof(*outcome));
	ScanKeyInit(&key, attnum, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(id));
	scan = systable_beginscan(relation, index, OidIsValid(index), snapshot, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		read_outcome(tuple, RelationGetDescr(relation), outcome);
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(relation, AccessShareLock);
}
