/*
 * floor_triggers.c
 *	  Trigger functions that do next to nothing: what any recorder of row changes
 *	  pays, however good it is.
 *
 *	bench_empty_trigger	returns at once: what PostgreSQL itself spends on a trigger
 *	bench_row_trigger	puts the same row into a table without an index, as long as
 *						an outbox's: what it spends on a row that commits as well
 *
 * bench/capture compiles it; no part of the extension.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "fmgr.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/rel.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(bench_empty_trigger);
PG_FUNCTION_INFO_V1(bench_row_trigger);

Datum
bench_empty_trigger(PG_FUNCTION_ARGS)
{
	return PointerGetDatum(NULL);
}

/* About what kusto_capture writes for a row of the benchmark's. */
#define ROW_BYTES 215

static Oid
rows_table(void)
{
	static Oid	table = InvalidOid;

	if (!OidIsValid(table))
		table = RangeVarGetRelid(makeRangeVar(NULL, "bench_rows", -1), NoLock, false);
	return table;
}

Datum
bench_row_trigger(PG_FUNCTION_ARGS)
{
	Relation	relation = table_open(rows_table(), RowExclusiveLock);
	char		data[ROW_BYTES];
	bool		isnull = false;
	Datum		value;
	HeapTuple	tuple;

	memset(data, 'x', sizeof(data));
	value = PointerGetDatum(cstring_to_text_with_len(data, sizeof(data)));
	tuple = heap_form_tuple(RelationGetDescr(relation), &value, &isnull);
	heap_insert(relation, tuple, GetCurrentCommandId(true), 0, NULL);
	table_close(relation, NoLock);
	return PointerGetDatum(NULL);
}
