/*
 * export_table.c
 *	  The export of a whole table: what it may be, who reads it, and reading it.
 *
 * A table is exported as the query SELECT * FROM it would be, which is planned
 * as any other.  When the plan says that the result is nothing but the rows of
 * tables - of the table, of its partitions, of those that inherit from it - then
 * they are read without an executor, by several processes at once if that is
 * possible (export_parallel.c).  Everything else runs the query: views, foreign
 * tables, row security, virtual generated columns, other access methods.
 *
 * Raises as the query would, and for relations that have no rows to export.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "optimizer/paths.h"
#include "postmaster/bgworker_internals.h"
#include "storage/bufmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "export_internal.h"

/* ---- what may be exported ---- */

static bool
has_rows(char relkind)
{
	return relkind == RELKIND_RELATION || relkind == RELKIND_PARTITIONED_TABLE ||
		relkind == RELKIND_MATVIEW || relkind == RELKIND_VIEW || relkind == RELKIND_FOREIGN_TABLE;
}

/* Locks the relation until the end of the transaction, as the query will. */
static const char *
query_of(Oid relid)
{
	Relation	relation = try_relation_open(relid, AccessShareLock);
	char	   *name;

	if (relation == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (!has_rows(relation->rd_rel->relkind))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" has no rows to export", RelationGetRelationName(relation)),
				 errdetail("It is not a table, partitioned table, foreign table, view, or materialized view.")));
	name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(relation)),
									  RelationGetRelationName(relation));
	relation_close(relation, NoLock);
	return psprintf("SELECT * FROM %s", name);
}

void
kpg_export_table(KpgExportRequest *request, Oid relation, int processes, pg_uuid_t *id)
{
	PreventCommandDuringRecovery("kusto_ingest_table()");
	PreventCommandIfReadOnly("kusto_ingest_table()");
	PreventCommandIfParallelMode("kusto_ingest_table()");

	request->mode = "queued";
	request->query = query_of(relation);
	request->whole_table = relation;
	request->processes = processes;
	kpg_export_run(request, id);
}

/* ---- who reads it ---- */

/* As many as a parallel sequential scan would get for so many pages. */
static int
workers_for(double pages)
{
	int			workers = 1;
	double		threshold = Max(min_parallel_table_scan_size, 1);

	if (pages < min_parallel_table_scan_size)
		return 0;
	for (; pages >= threshold * 3 && workers < MAX_PARALLEL_WORKER_LIMIT; threshold *= 3)
		workers++;
	return workers;
}

/*
 * What PostgreSQL would choose, as for CREATE INDEX: by size, unless the storage
 * parameter parallel_workers says it.  Tables that are read one beside the other
 * count together.
 */
static int
workers_by_size(const List *tables)
{
	double		pages = 0;
	int			told = 0;
	ListCell   *cell;

	foreach(cell, tables)
	{
		Relation	relation = table_open(((KpgPlainTable *) lfirst(cell))->relid, NoLock);
		int			parameter = RelationGetParallelWorkers(relation, -1);

		if (parameter >= 0)
			told = Max(told, parameter);
		else
			pages += RelationGetNumberOfBlocks(relation);
		table_close(relation, NoLock);
	}
	return Min(Max(told, workers_for(pages)), max_parallel_maintenance_workers);
}

/* Only its own session sees all of a temporary table. */
static bool
any_temporary(const List *tables)
{
	ListCell   *cell;

	foreach(cell, tables)
	{
		if (get_rel_persistence(((KpgPlainTable *) lfirst(cell))->relid) == RELPERSISTENCE_TEMP)
			return true;
	}
	return false;
}

static bool
all_columns_safe(TupleDesc desc)
{
	for (int i = 0; i < desc->natts; i++)
	{
		if (!kpg_format_parallel_safe(TupleDescAttr(desc, i)->atttypid))
			return false;
	}
	return true;
}

/* Kusto would skip every blob but the first, and each process makes one. */
static bool
must_be_one_blob(const KpgExportRequest *request)
{
	ArrayType  *keys = request->ingest_if_not_exists;

	return keys != NULL && ArrayGetNItems(ARR_NDIM(keys), ARR_DIMS(keys)) > 0;
}

static int
choose_workers(const KpgExport *export)
{
	int			asked = export->request->processes;
	int			workers = asked > 0 ? asked - 1 : workers_by_size(export->tables);

	workers = Min(workers, max_parallel_workers);
	if (workers > 0 &&
		(must_be_one_blob(export->request) || any_temporary(export->tables) ||
		 !all_columns_safe(kpg_exec_tupdesc(export->query))))
		return 0;
	return workers;
}

void
kpg_export_plan_tables(KpgExport *export)
{
	export->tables = kpg_exec_plain_tables(export->query, export->request->whole_table);
	if (export->tables != NIL)
		export->workers = choose_workers(export);
	if (export->workers > 0)
	{
		/* Until the processes share one. */
		export->ordinals = palloc(sizeof(pg_atomic_uint32));
		pg_atomic_init_u32(export->ordinals, 0);
	}
	ereport(DEBUG1,
			(export->tables == NIL ? errmsg_internal("kusto_ingest runs a query to export a table")
			 : errmsg_internal("kusto_ingest reads %d tables with up to %d parallel workers",
							   list_length(export->tables), export->workers)));
}

/* ---- reading ---- */

void
kpg_export_scan(KpgTableReader *reader, Relation relation, TableScanDesc scan, const AttrNumber *columns)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest table",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	TupleTableSlot *slot = table_slot_create(relation, NULL);
	KpgRowFormat *format = kpg_format_create_for(RelationGetDescr(relation), columns, reader->ncolumns,
												 reader->policy);

	kpg_format_of_table(format, RelationGetRelationName(relation));
	kpg_dest_format(reader->dest, format);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
		(void) reader->dest->receiveSlot(slot, reader->dest);
	kpg_dest_format(reader->dest, NULL);
	kpg_format_give_counts(format, reader->counts);
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

static void
scan_alone(const KpgExport *export, KpgTableReader *reader)
{
	ListCell   *cell;

	foreach(cell, export->tables)
	{
		const KpgPlainTable *table = lfirst(cell);
		Relation	relation = table_open(table->relid, AccessShareLock);

		kpg_export_scan(reader, relation, table_beginscan(relation, GetActiveSnapshot(), 0, NULL),
						table->columns);
		table_close(relation, NoLock);
	}
}

void
kpg_export_tables(KpgExport *export, DestReceiver *dest)
{
	int			ncolumns = kpg_exec_tupdesc(export->query)->natts;
	KpgTableReader reader = {.dest = dest,.policy = export->policy,.ncolumns = ncolumns};

	reader.counts = palloc0(sizeof(uint64) * (Size) kpg_format_ncounts(ncolumns));

	/* See what this transaction has done so far, this statement included. */
	CommandCounterIncrement();
	PushCopiedSnapshot(GetActiveSnapshot());
	UpdateActiveSnapshotCommandId();

	if (export->workers > 0)
	{
		kpg_export_parallel(export, &reader);
		PopActiveSnapshot();
	}
	else
	{
		scan_alone(export, &reader);
		PopActiveSnapshot();
		kpg_export_finish(export, dest);
	}
	kpg_format_take_counts(export->format, reader.counts);
}
