/*
 * operations_work.c
 *	  What the worker reads: which operations are open, and all that it needs
 *	  to know of one.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "operations.h"
#include "operations_internal.h"
#include "session.h"

/*
 * Appended to a look at other operations, as the last row: one query for both.
 * It stops at the first job, and has an index for that (operations_job.c).
 */
#define WITH_JOBS(selected) \
"SELECT w.id, w.created_at FROM ((" selected ") UNION ALL" \
" (SELECT NULL, NULL FROM kusto.operation o" \
" WHERE o.finished_at IS NULL AND o.staged_at IS NULL AND o.state IN ('pending', 'running')" \
" AND o.system_identifier = $1 AND o.database_oid = $2 LIMIT 1)) w" \
" ORDER BY w.created_at NULLS LAST, w.id"

/* What follows from the state is said for the index operation_unposted. */
static const char select_staged[] = WITH_JOBS(
"SELECT o.id, o.created_at FROM kusto.operation o"
" WHERE o.finished_at IS NULL AND o.posted_at IS NULL AND o.staged_at IS NOT NULL AND o.state = 'staged'"
" AND o.system_identifier = $1 AND o.database_oid = $2"
" AND NOT EXISTS (SELECT FROM unnest($3, $4) AS s (server, owner)"
" WHERE s.server = o.server AND s.owner = o.owner)"
" ORDER BY o.created_at LIMIT $5");

static const char select_unfinished[] = WITH_JOBS(
"SELECT o.id, o.created_at FROM kusto.operation o"
" WHERE o.finished_at IS NULL AND o.state IN ('staged', 'posting', 'posted')"
" AND o.system_identifier = $1 AND o.database_oid = $2"
" AND (o.created_at, o.id) > ($3, $4)"
" ORDER BY o.created_at, o.id LIMIT $5");

static const char count_foreign[] =
"SELECT count(*) FROM kusto.operation o"
" WHERE o.finished_at IS NULL"
" AND (o.system_identifier <> $1 OR o.database_oid <> $2)";

static const char lock_free[] =
"SELECT o.id FROM kusto.operation o WHERE o.id = ANY ($1) FOR NO KEY UPDATE SKIP LOCKED";

static const char select_open[] =
"SELECT FROM kusto.operation o WHERE o.id = $1 AND o.state IN ('staged', 'posting', 'posted')";

static const char select_operation[] =
"SELECT o.owner, o.server, o.database, o.table_name, o.table_command, o.state, o.blobs,"
" o.options ->> 'mapping',"
" ARRAY(SELECT t.tag FROM jsonb_array_elements_text(o.options -> 'tags')"
" WITH ORDINALITY AS t (tag, n) ORDER BY t.n),"
" ARRAY(SELECT t.tag FROM jsonb_array_elements_text(o.options -> 'ingest_if_not_exists')"
" WITH ORDINALITY AS t (tag, n) ORDER BY t.n),"
" (o.options ->> 'creation_time')::timestamptz,"
" coalesce((o.options ->> 'flush_immediately')::boolean, false), o.attempts"
" FROM kusto.operation o"
" WHERE o.id = $1 AND o.state IN ('staged', 'posting', 'posted')";

static const char select_blobs[] =
"SELECT b.ordinal, b.source_id, b.url, b.raw_bytes, b.state, b.post_attempts, b.status_table,"
" b.posted_at, b.exactly_once"
" FROM kusto.blob b"
" WHERE b.operation_id = $1 AND b.state IN ('staged', 'posting', 'posted')"
" ORDER BY b.ordinal";

/*
 * Somebody who drops the extension locks its tables one by one; by asking for
 * all we need at once, and never waiting, no deadlock can arise.  A table that
 * was dropped while its lock was free is noticed by looking twice.
 */
KpgTables
kpg_operations_lock(void)
{
	static const char *const names[] = {"operation", "blob", "worker"};
	Oid			nspid;

	if (!OidIsValid(get_extension_oid("kusto_ingest", true)))
		return KPG_TABLES_GONE;
	nspid = get_namespace_oid("kusto", true);
	for (size_t i = 0; i < lengthof(names); i++)
	{
		Oid			relid = OidIsValid(nspid) ? get_relname_relid(names[i], nspid) : InvalidOid;

		if (!OidIsValid(relid))
			return KPG_TABLES_GONE;
		if (!ConditionalLockRelationOid(relid, RowExclusiveLock))
			return KPG_TABLES_BUSY;
		if (!SearchSysCacheExists1(RELOID, ObjectIdGetDatum(relid)))
			return KPG_TABLES_BUSY;
	}
	return KPG_TABLES_READY;
}

static pg_uuid_t *
copy_uuid(MemoryContext context, uint64 row, int column)
{
	bool		isnull;
	pg_uuid_t  *copy = MemoryContextAlloc(context, sizeof(pg_uuid_t));

	*copy = *DatumGetUUIDP(kpg_operations_value(row, column, &isnull));
	return copy;
}

/* Of a result with WITH_JOBS(); *n is then without its last row. */
static List *
read_ids(MemoryContext context, uint64 *n, bool *jobs)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	List	   *ids = NIL;

	*jobs = false;
	if (*n > 0)
		(void) kpg_operations_value(*n - 1, 1, jobs);
	if (*jobs)
		--*n;
	for (uint64 i = 0; i < *n; i++)
		ids = lappend(ids, copy_uuid(context, i, 1));
	MemoryContextSwitchTo(old);
	return ids;
}

List *
kpg_operations_staged(const KpgSkip *skip, int nskip, int limit, bool *jobs)
{
	MemoryContext context = CurrentMemoryContext;
	KpgSqlScope scope;
	uint64		n;
	List	   *ids;

	kpg_operations_enter(&scope);
	{
		Datum	   *servers = palloc(sizeof(Datum) * (Size) Max(nskip, 1));
		Datum	   *owners = palloc(sizeof(Datum) * (Size) Max(nskip, 1));

		for (int i = 0; i < nskip; i++)
		{
			servers[i] = CStringGetTextDatum(skip[i].server);
			owners[i] = ObjectIdGetDatum(skip[i].owner);
		}

		const KpgSqlArg args[] = {
			kpg_operations_cluster_arg(),
			kpg_operations_database_arg(),
			kpg_operations_arg(TEXTARRAYOID,
							   PointerGetDatum(construct_array(servers, nskip, TEXTOID, -1, false, TYPALIGN_INT))),
			kpg_operations_arg(OIDARRAYOID,
							   PointerGetDatum(construct_array(owners, nskip, OIDOID, sizeof(Oid), true, TYPALIGN_INT))),
			kpg_operations_arg(INT4OID, Int32GetDatum(limit))
		};

		n = kpg_operations_execute(select_staged, args, lengthof(args), SPI_OK_SELECT, 0);
		ids = read_ids(context, &n, jobs);
	}
	kpg_operations_leave(&scope);
	return ids;
}

List *
kpg_operations_unfinished(KpgSweep *sweep, int limit, bool *jobs)
{
	static const pg_uuid_t first_uuid = {{0}};
	MemoryContext context = CurrentMemoryContext;
	TimestampTz from = sweep->begun ? sweep->created_at : DT_NOBEGIN;
	KpgSqlScope scope;
	uint64		n;
	List	   *ids;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_cluster_arg(),
			kpg_operations_database_arg(),
			kpg_operations_arg(TIMESTAMPTZOID, TimestampTzGetDatum(from)),
			kpg_operations_uuid_arg(sweep->begun ? &sweep->id : &first_uuid),
			kpg_operations_arg(INT4OID, Int32GetDatum(limit))
		};

		n = kpg_operations_execute(select_unfinished, args, lengthof(args), SPI_OK_SELECT, 0);
		ids = read_ids(context, &n, jobs);
		sweep->begun = n == (uint64) limit;
		if (sweep->begun)
		{
			bool		isnull;

			sweep->created_at = DatumGetTimestampTz(kpg_operations_value(n - 1, 2, &isnull));
			sweep->id = *(pg_uuid_t *) llast(ids);
		}
	}
	kpg_operations_leave(&scope);
	return ids;
}

int64
kpg_operations_count_foreign(void)
{
	KpgSqlScope scope;
	bool		isnull;
	int64		n;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {kpg_operations_cluster_arg(), kpg_operations_database_arg()};

		(void) kpg_operations_execute(count_foreign, args, lengthof(args), SPI_OK_SELECT, 0);
		n = DatumGetInt64(kpg_operations_value(0, 1, &isnull));
	}
	kpg_operations_leave(&scope);
	return n;
}

void
kpg_operations_lock_free(const pg_uuid_t *const *ids, int n, bool *locked)
{
	KpgSqlScope scope;

	memset(locked, 0, sizeof(bool) * (Size) n);
	kpg_operations_enter(&scope);
	{
		Datum	   *values = palloc(sizeof(Datum) * (Size) Max(n, 1));
		KpgSqlArg	arg;
		uint64		found;

		for (int i = 0; i < n; i++)
			values[i] = UUIDPGetDatum(ids[i]);
		arg = kpg_operations_arg(UUIDARRAYOID,
								 PointerGetDatum(construct_array(values, n, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR)));
		found = kpg_operations_execute(lock_free, &arg, 1, SPI_OK_SELECT, 0);
		for (uint64 row = 0; row < found; row++)
		{
			bool		isnull;
			pg_uuid_t  *id = DatumGetUUIDP(kpg_operations_value(row, 1, &isnull));

			for (int i = 0; i < n; i++)
				locked[i] = locked[i] || memcmp(id, ids[i], sizeof(pg_uuid_t)) == 0;
		}
	}
	kpg_operations_leave(&scope);
}

/* ---- one operation ---- */

bool
kpg_operations_is_open(const pg_uuid_t *id)
{
	KpgSqlScope scope;
	KpgSqlArg	arg;
	bool		open;

	kpg_operations_enter(&scope);
	arg = kpg_operations_uuid_arg(id);
	open = kpg_operations_execute(select_open, &arg, 1, SPI_OK_SELECT, 0) == 1;
	kpg_operations_leave(&scope);
	return open;
}

/* Done here because it takes a transaction, which is over when the text is sent. */
static char *
utf8(MemoryContext context, const char *text)
{
	return text != NULL ? MemoryContextStrdup(context, kpg_session_utf8(text)) : NULL;
}

static char **
read_strings(MemoryContext context, int column, int *n)
{
	bool		isnull;
	ArrayType  *array = DatumGetArrayTypeP(kpg_operations_value(0, column, &isnull));
	Datum	   *values;
	char	  **strings;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, NULL, n);
	if (*n == 0)
		return NULL;
	strings = MemoryContextAlloc(context, sizeof(char *) * (Size) *n);
	for (int i = 0; i < *n; i++)
		strings[i] = utf8(context, TextDatumGetCString(values[i]));
	return strings;
}

static KpgOpenOperation *
read_operation(MemoryContext context, const pg_uuid_t *id)
{
	KpgOpenOperation *operation = MemoryContextAllocZero(context, sizeof(KpgOpenOperation));
	bool		isnull;

	operation->id = *id;
	operation->owner = DatumGetObjectId(kpg_operations_value(0, 1, &isnull));
	operation->server = kpg_operations_string(context, 0, 2);
	operation->database = kpg_operations_string(context, 0, 3);
	operation->table_name = kpg_operations_string(context, 0, 4);
	operation->database_utf8 = utf8(context, operation->database);
	operation->table_utf8 = utf8(context, operation->table_name);
	operation->table_command = utf8(context, kpg_operations_string(CurrentMemoryContext, 0, 5));
	operation->state = kpg_operations_state(kpg_operations_string(context, 0, 6));
	operation->total_blobs = DatumGetInt32(kpg_operations_value(0, 7, &isnull));
	operation->mapping = utf8(context, kpg_operations_string(CurrentMemoryContext, 0, 8));
	operation->tags = read_strings(context, 9, &operation->ntags);
	operation->if_not_exists = read_strings(context, 10, &operation->nif_not_exists);
	operation->creation_time = DatumGetTimestampTz(kpg_operations_value(0, 11, &isnull));
	operation->has_creation_time = !isnull;
	operation->flush_immediately = DatumGetBool(kpg_operations_value(0, 12, &isnull));
	operation->attempts = DatumGetInt32(kpg_operations_value(0, 13, &isnull));
	return operation;
}

static void
read_blob(MemoryContext context, uint64 row, KpgOpenBlob *blob)
{
	bool		isnull;

	blob->ordinal = DatumGetInt32(kpg_operations_value(row, 1, &isnull));
	memcpy(blob->source_id.bytes, DatumGetUUIDP(kpg_operations_value(row, 2, &isnull))->data,
		   sizeof(blob->source_id.bytes));
	blob->url = kpg_operations_string(context, row, 3);
	blob->raw_bytes = (uint64) DatumGetInt64(kpg_operations_value(row, 4, &isnull));
	blob->state = kpg_operations_state(kpg_operations_string(CurrentMemoryContext, row, 5));
	blob->post_attempts = DatumGetInt32(kpg_operations_value(row, 6, &isnull));
	blob->status_table = kpg_operations_string(context, row, 7);
	blob->posted_at = DatumGetTimestampTz(kpg_operations_value(row, 8, &isnull));
	if (isnull)
		blob->posted_at = 0;
	blob->exactly_once = DatumGetBool(kpg_operations_value(row, 9, &isnull));
}

KpgOpenOperation *
kpg_operations_load(const pg_uuid_t *id)
{
	MemoryContext context = CurrentMemoryContext;
	KpgOpenOperation *operation = NULL;
	KpgSqlScope scope;
	KpgSqlArg	arg;

	kpg_operations_enter(&scope);
	arg = kpg_operations_uuid_arg(id);
	if (kpg_operations_execute(select_operation, &arg, 1, SPI_OK_SELECT, 0) == 1)
	{
		uint64		n;

		operation = read_operation(context, id);
		n = kpg_operations_execute(select_blobs, &arg, 1, SPI_OK_SELECT, 0);
		operation->blobs = MemoryContextAllocZero(context, sizeof(KpgOpenBlob) * (Size) Max(n, 1));
		operation->nblobs = (int) n;
		for (uint64 i = 0; i < n; i++)
			read_blob(context, i, &operation->blobs[i]);
	}
	kpg_operations_leave(&scope);
	return operation;
}
