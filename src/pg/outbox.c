/*
 * outbox.c
 *	  The tables of row changes: which relations they are, and how the other
 *	  parts ask them.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"
#include "outbox.h"
#include "outbox_internal.h"

/* ---- relations ---- */

typedef struct OutboxRelations
{
	Oid			tables[KPG_OUTBOX_TABLES];
	Oid			indexes[KPG_OUTBOX_TABLES];
	Oid			sequence;
	Oid			capture;
} OutboxRelations;

static OutboxRelations relations;

/* Changes of the catalogs so far, from 1, and how many there were when we looked. */
static uint64 catalog_changes = 1;
static uint64 relations_as_of;

static void
count_change(Datum arg, int cacheid, uint32 hashvalue)
{
	catalog_changes++;
}

static Oid
find_relation(Oid nspid, const char *name)
{
	Oid			relid = get_relname_relid(name, nspid);

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"kusto.%s\" does not exist", name),
				 errhint("Create the extension kusto_ingest anew.")));
	return relid;
}

static void
find_relations(OutboxRelations *found)
{
	Oid			nspid = get_namespace_oid("kusto", false);

	for (int i = 0; i < KPG_OUTBOX_TABLES; i++)
	{
		char		name[NAMEDATALEN];

		snprintf(name, sizeof(name), "outbox_%d", i);
		found->tables[i] = find_relation(nspid, name);
		snprintf(name, sizeof(name), "outbox_%d_batch", i);
		found->indexes[i] = find_relation(nspid, name);
	}
	found->sequence = find_relation(nspid, "change_number");
	found->capture = find_relation(nspid, "capture");
}

/*
 * Whoever drops or creates the extension invalidates entries of these caches.  A
 * change while we look makes the next call look again.
 */
static const OutboxRelations *
known_relations(void)
{
	static bool registered;
	uint64		as_of;

	if (relations_as_of == catalog_changes)
		return &relations;
	if (!registered)
	{
		CacheRegisterSyscacheCallback(NAMESPACEOID, count_change, (Datum) 0);
		CacheRegisterSyscacheCallback(RELOID, count_change, (Datum) 0);
		registered = true;
	}
	relations_as_of = 0;
	as_of = catalog_changes;
	find_relations(&relations);
	relations_as_of = as_of;
	return &relations;
}

Oid
kpg_outbox_table(int ring)
{
	Assert(ring >= 0 && ring < KPG_OUTBOX_TABLES);
	return known_relations()->tables[ring];
}

Oid
kpg_outbox_index(int ring)
{
	Assert(ring >= 0 && ring < KPG_OUTBOX_TABLES);
	return known_relations()->indexes[ring];
}

Oid
kpg_outbox_sequence(void)
{
	return known_relations()->sequence;
}

Oid
kpg_outbox_capture_table(void)
{
	return known_relations()->capture;
}

uint64
kpg_outbox_catalog_changes(void)
{
	return catalog_changes;
}

int
kpg_outbox_ring_of(int64 seq)
{
	return (int) (((seq >> KPG_OUTBOX_SEQ_BITS) / KPG_OUTBOX_RUN) % KPG_OUTBOX_TABLES);
}

/* ---- asking ---- */

#define SQL_ARGS_MAX 16

static uint64
run_as_of_now(const char *sql, const KpgSqlArg *args, int nargs, int expected)
{
	Oid			types[SQL_ARGS_MAX];
	Datum		values[SQL_ARGS_MAX];
	char		nulls[SQL_ARGS_MAX] = {0};
	Snapshot	now = RegisterSnapshot(GetLatestSnapshot());
	SPIPlanPtr	plan;
	int			rc;

	Assert(nargs <= SQL_ARGS_MAX);
	for (int i = 0; i < nargs; i++)
	{
		types[i] = args[i].type;
		values[i] = args[i].value;
		nulls[i] = args[i].isnull ? 'n' : ' ';
	}
	plan = SPI_prepare(sql, nargs, types);
	if (plan == NULL)
		elog(ERROR, "SPI gave %s for: %s", SPI_result_code_string(SPI_result), sql);
	rc = SPI_execute_snapshot(plan, values, nulls, now, InvalidSnapshot, expected == SPI_OK_SELECT, true, 0);
	UnregisterSnapshot(now);
	if (rc != expected)
		elog(ERROR, "SPI gave %s instead of %s for: %s", SPI_result_code_string(rc),
			 SPI_result_code_string(expected), sql);
	return SPI_processed;
}

uint64
kpg_outbox_select(const char *sql, const KpgSqlArg *args, int nargs)
{
	return run_as_of_now(sql, args, nargs, SPI_OK_SELECT);
}

uint64
kpg_outbox_execute(const char *sql, const KpgSqlArg *args, int nargs, int expected)
{
	return run_as_of_now(sql, args, nargs, expected);
}

KpgSqlArg
kpg_outbox_nullable_arg(Oid type, Datum value, bool isnull)
{
	return (KpgSqlArg) {.type = type, .value = value, .isnull = isnull};
}

KpgSqlArg
kpg_outbox_list_arg(List *strings)
{
	Datum	   *values;
	int			n = 0;
	ListCell   *cell;

	if (strings == NIL)
		return kpg_outbox_nullable_arg(TEXTARRAYOID, (Datum) 0, true);
	values = palloc(sizeof(Datum) * (Size) list_length(strings));
	foreach(cell, strings)
		values[n++] = CStringGetTextDatum((char *) lfirst(cell));
	return kpg_operations_arg(TEXTARRAYOID,
							  PointerGetDatum(construct_array(values, n, TEXTOID, -1, false, TYPALIGN_INT)));
}

List *
kpg_outbox_list_value(MemoryContext context, uint64 row, int column)
{
	bool		isnull;
	Datum		array = kpg_operations_value(row, column, &isnull);
	MemoryContext old;
	Datum	   *values;
	List	   *strings = NIL;
	int			n;

	if (isnull)
		return NIL;
	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT, &values, NULL, &n);
	old = MemoryContextSwitchTo(context);
	for (int i = 0; i < n; i++)
		strings = lappend(strings, TextDatumGetCString(values[i]));
	MemoryContextSwitchTo(old);
	return strings;
}
