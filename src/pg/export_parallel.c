/*
 * export_parallel.c
 *	  Tables that several processes read at once, under one snapshot.
 *
 *	leader						workers
 *	  parallel mode, segment
 *	  launch ------------------> session, ingest of their own
 *	  scan -> blobs				 scan -> blobs
 *	  done: collect <----------- their blobs, one message each
 *	  wait for their ends
 *	  adopt their blobs
 *
 * Nobody has a share of its own: whoever has time takes the next piece of a
 * table, so a process that the network holds up slows down no other, and fewer
 * workers than planned, or none, only take longer.  Each process begins with
 * another table, and helps with those of others when its own are read.
 *
 * Nothing is recorded in parallel mode, and by the leader alone afterwards.  A
 * worker's error is raised in the leader, and the end of the leader's
 * (sub)transaction, for whatever reason, ends the workers: PostgreSQL does both.
 * What they have uploaded by then is posted by nobody.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/table.h"
#include "access/xact.h"
#include "executor/instrument.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/shm_mq.h"
#include "storage/shm_toc.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "export_internal.h"
#include "fault.h"
#include "report.h"
#include "wait.h"

/* What is in the segment. */
enum
{
	KEY_SHARED = 1,				/* SharedState */
	KEY_EXPORT,					/* kpg_export_pack() */
	KEY_TABLES,					/* SharedTable, each with its scan behind */
	KEY_COLUMNS,				/* AttrNumber, all of one table after the other's */
	KEY_SCANS,
	KEY_COUNTS,					/* uint64, all of one worker after the other's */
	KEY_PROGRESS,				/* KpgProgressSlot, one a worker */
	KEY_QUEUES,					/* shm_mq, one a worker, for its blobs */
	KEY_BUFFER_USAGE,
	KEY_WAL_USAGE,
	KEY_QUERY_TEXT
};

#define QUEUE_SIZE		((Size) 16384)

/* How often the leader looks how far the others are when it has nothing else to do. */
#define REFRESH_INTERVAL_MS	250

typedef struct SharedState
{
	Oid			serverid;
	int			ntables;
	int			ncolumns;
	int			nprocesses;
	pg_atomic_uint32 ordinals;	/* of the last blob that was begun */
} SharedState;

typedef struct SharedTable
{
	Oid			relid;
	Size		scan;			/* where in KEY_SCANS */
	pg_atomic_uint32 taken;		/* every piece of it has been given to a process */
} SharedTable;

/* Of the segment, what both sides use. */
typedef struct Shared
{
	SharedState *state;
	SharedTable *tables;
	AttrNumber *columns;
	char	   *scans;
	uint64	   *counts;
	KpgProgressSlot *progress;
	char	   *queues;
	BufferUsage *buffer_usage;
	WalUsage   *wal_usage;
} Shared;

static Shared
look_up(shm_toc *toc)
{
	return (Shared) {
		.state = shm_toc_lookup(toc, KEY_SHARED, false),
		.tables = shm_toc_lookup(toc, KEY_TABLES, false),
		.columns = shm_toc_lookup(toc, KEY_COLUMNS, false),
		.scans = shm_toc_lookup(toc, KEY_SCANS, false),
		.counts = shm_toc_lookup(toc, KEY_COUNTS, false),
		.progress = shm_toc_lookup(toc, KEY_PROGRESS, false),
		.queues = shm_toc_lookup(toc, KEY_QUEUES, false),
		.buffer_usage = shm_toc_lookup(toc, KEY_BUFFER_USAGE, false),
		.wal_usage = shm_toc_lookup(toc, KEY_WAL_USAGE, false)
	};
}

/* ---- reading, in every process ---- */

static void
read_table(const Shared *shared, SharedTable *table, KpgTableReader *reader)
{
	Relation	relation = table_open(table->relid, AccessShareLock);
	ParallelTableScanDesc scan = (ParallelTableScanDesc) (shared->scans + table->scan);

	kpg_export_scan(reader, relation, table_beginscan_parallel(relation, scan),
					shared->columns + (table - shared->tables) * shared->state->ncolumns);
	/* We have been told that nothing is left to be given out. */
	pg_atomic_write_u32(&table->taken, 1);
	table_close(relation, NoLock);
}

/* process: 0 is the leader. */
static void
read_tables(const Shared *shared, int process, KpgTableReader *reader)
{
	int			n = shared->state->ntables;
	int			first = (int) ((int64) n * process / shared->state->nprocesses);

	for (int i = 0; i < n; i++)
	{
		SharedTable *table = &shared->tables[(first + i) % n];

		if (pg_atomic_read_u32(&table->taken) == 0)
			read_table(shared, table, reader);
	}
}

/* ---- a worker ---- */

static void
send_blobs(KcIngest *ingest, shm_mq_handle *queue)
{
	for (int i = 0; i < kc_ingest_nblobs(ingest); i++)
	{
		Size		size;
		char	   *blob = kpg_export_pack_blob(kc_ingest_blob(ingest, i), &size);

		if (kpg_compat_mq_send(queue, size, blob) != SHM_MQ_SUCCESS)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("could not send blobs to the leader of a parallel export")));
		pfree(blob);
	}
}

static void
work(const Shared *shared, KpgExport *export)
{
	int			ncounts = kpg_format_ncounts(shared->state->ncolumns);
	KpgTableReader reader = {.policy = export->policy,.ncolumns = shared->state->ncolumns};

	export->session = kpg_session_acquire_in(export->context, shared->state->serverid, GetUserId());
	export->database = kpg_session_database(export->session, export->database);
	export->ordinals = &shared->state->ordinals;
	kpg_export_start_ingest(export);
	export->progress = kpg_progress_help(&shared->progress[ParallelWorkerNumber]);
	reader.counts = shared->counts + (Size) ParallelWorkerNumber * (Size) ncounts;
	reader.dest = kpg_dest_create(NULL, kpg_export_ingest_sink(export), export->progress);
	read_tables(shared, ParallelWorkerNumber + 1, &reader);
	kpg_export_finish(export, reader.dest);
	KPG_FAULT("scan-uploaded");
}

extern PGDLLEXPORT void kpg_export_parallel_main(dsm_segment *seg, shm_toc *toc);

/* Where PostgreSQL begins a worker, within the leader's transaction. */
void
kpg_export_parallel_main(dsm_segment *seg, shm_toc *toc)
{
	Shared		shared = look_up(toc);
	KpgExportRequest request;
	KpgExport	export;
	shm_mq	   *queue;
	shm_mq_handle *handle;
	MemoryContext old;

	debug_query_string = shm_toc_lookup(toc, KEY_QUERY_TEXT, false);
	pgstat_report_activity(STATE_RUNNING, debug_query_string);

	queue = (shm_mq *) (shared.queues + (Size) ParallelWorkerNumber * QUEUE_SIZE);
	shm_mq_set_sender(queue, MyProc);
	handle = shm_mq_attach(queue, seg, NULL);
	KPG_FAULT_LEAVE_SLOWLY(seg);

	kpg_export_unpack(&export, &request, shm_toc_lookup(toc, KEY_EXPORT, false));
	/* Freed, and with it what is under way, also when the transaction is aborted. */
	export.context = AllocSetContextCreate(TopTransactionContext, "kusto_ingest export",
										   ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(export.context);
	InstrStartParallelQuery();
	work(&shared, &export);
	InstrEndParallelQuery(&shared.buffer_usage[ParallelWorkerNumber],
						  &shared.wal_usage[ParallelWorkerNumber]);
	send_blobs(export.ingest, handle);
	shm_mq_detach(handle);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(export.context);
}

/* ---- the leader: the segment ---- */

static void
estimate(shm_toc_estimator *estimator, Size size)
{
	shm_toc_estimate_chunk(estimator, size);
	shm_toc_estimate_keys(estimator, 1);
}

static void *
allocate(shm_toc *toc, uint64 key, Size size)
{
	void	   *chunk = shm_toc_allocate(toc, size);

	memset(chunk, 0, size);
	shm_toc_insert(toc, key, chunk);
	return chunk;
}

/* Of a part of the segment; at least a byte. */
static Size
array_size(Size element, int n, int m)
{
	return Max(mul_size(element, mul_size((Size) n, (Size) m)), 1);
}

static Size
scan_size(const KpgPlainTable *table)
{
	Relation	relation = table_open(table->relid, NoLock);
	Size		size = table_parallelscan_estimate(relation, GetActiveSnapshot());

	table_close(relation, NoLock);
	return BUFFERALIGN(size);
}

static Size
scans_size(const List *tables)
{
	Size		size = 0;
	ListCell   *cell;

	foreach(cell, tables)
		size = add_size(size, scan_size(lfirst(cell)));
	return size;
}

static void
fill_tables(const KpgExport *export, Shared *shared)
{
	SharedTable *shared_table = shared->tables;
	AttrNumber *columns = shared->columns;
	int			ncolumns = shared->state->ncolumns;
	Size		at = 0;
	ListCell   *cell;

	foreach(cell, export->tables)
	{
		const KpgPlainTable *table = lfirst(cell);
		Relation	relation = table_open(table->relid, NoLock);

		shared_table->relid = table->relid;
		shared_table->scan = at;
		pg_atomic_init_u32(&shared_table->taken, 0);
		table_parallelscan_initialize(relation, (ParallelTableScanDesc) (shared->scans + at),
									  GetActiveSnapshot());
		at += scan_size(table);
		memcpy(columns, table->columns, sizeof(AttrNumber) * (Size) ncolumns);
		columns += ncolumns;
		shared_table++;
		table_close(relation, NoLock);
	}
}

static void
create_queues(const Shared *shared, int n)
{
	for (int i = 0; i < n; i++)
	{
		shm_mq	   *queue = shm_mq_create(shared->queues + (Size) i * QUEUE_SIZE, QUEUE_SIZE);

		shm_mq_set_receiver(queue, MyProc);
	}
}

static ParallelContext *
create_segment(const KpgExport *export, int ncolumns, Shared *shared)
{
	int			n = export->workers;
	int			ntables = list_length(export->tables);
	const char *query = debug_query_string != NULL ? debug_query_string : "";
	ParallelContext *context = CreateParallelContext("kusto_ingest", "kpg_export_parallel_main", n);
	Size		packed_size;
	char	   *packed = kpg_export_pack(export, &packed_size);
	const struct
	{
		uint64		key;
		Size		size;
	}			parts[] = {
		{KEY_SHARED, sizeof(SharedState)},
		{KEY_EXPORT, packed_size},
		{KEY_TABLES, array_size(sizeof(SharedTable), ntables, 1)},
		{KEY_COLUMNS, array_size(sizeof(AttrNumber), ntables, ncolumns)},
		{KEY_SCANS, scans_size(export->tables)},
		{KEY_COUNTS, array_size(sizeof(uint64), kpg_format_ncounts(ncolumns), n)},
		{KEY_PROGRESS, array_size(sizeof(KpgProgressSlot), n, 1)},
		{KEY_QUEUES, array_size(QUEUE_SIZE, n, 1)},
		{KEY_BUFFER_USAGE, array_size(sizeof(BufferUsage), n, 1)},
		{KEY_WAL_USAGE, array_size(sizeof(WalUsage), n, 1)},
		{KEY_QUERY_TEXT, strlen(query) + 1}
	};

	for (int i = 0; i < (int) lengthof(parts); i++)
		estimate(&context->estimator, parts[i].size);
	InitializeParallelDSM(context);
	for (int i = 0; i < (int) lengthof(parts); i++)
		(void) allocate(context->toc, parts[i].key, parts[i].size);

	*shared = look_up(context->toc);
	shared->state->serverid = export->session->serverid;
	shared->state->ntables = ntables;
	shared->state->ncolumns = ncolumns;
	shared->state->nprocesses = n + 1;
	pg_atomic_init_u32(&shared->state->ordinals, 0);
	memcpy(shm_toc_lookup(context->toc, KEY_EXPORT, false), packed, packed_size);
	strcpy(shm_toc_lookup(context->toc, KEY_QUERY_TEXT, false), query);
	for (int i = 0; i < n; i++)
		kpg_progress_slot_init(&shared->progress[i]);
	fill_tables(export, shared);
	create_queues(shared, n);
	return context;
}

/* ---- the leader: what the workers have made ---- */

/* A queue's next blob; false: not now.  At its end the handle becomes NULL. */
static bool
receive_blob(shm_mq_handle **handle, List **blobs)
{
	KcIngestBlob *blob;
	char	   *copy;
	Size		size;
	void	   *data;

	if (*handle == NULL)
		return false;
	switch (shm_mq_receive(*handle, &size, &data, true))
	{
		case SHM_MQ_WOULD_BLOCK:
			return false;
		case SHM_MQ_DETACHED:
			*handle = NULL;
			return true;
		case SHM_MQ_SUCCESS:
			break;
	}
	copy = palloc(size);
	memcpy(copy, data, size);
	blob = palloc(sizeof(KcIngestBlob));
	kpg_export_unpack_blob(blob, copy, size);
	*blobs = lappend(*blobs, blob);
	return true;
}

/*
 * Until every worker has sent all or is gone: whether it is gone for a good
 * reason, PostgreSQL finds out.
 */
static List *
collect_blobs(const KpgExport *export, shm_mq_handle **handles, int n)
{
	List	   *blobs = NIL;

	for (;;)
	{
		bool		received = false;
		bool		open = false;

		for (int i = 0; i < n; i++)
		{
			received |= receive_blob(&handles[i], &blobs);
			open |= handles[i] != NULL;
		}
		if (!open)
			return blobs;
		if (received)
			continue;
		kpg_progress_refresh(export->progress);
		(void) kpg_wait_once(REFRESH_INTERVAL_MS, KPG_WAIT_PARALLEL);
	}
}

/*
 * A worker that leaves without a word, since something in it called proc_exit(),
 * says first that its queue is worth a look and lets go of it afterwards.  Whoever
 * looks in between would wait in WaitForParallelWorkersToFinish() for ever.  Of
 * its end the postmaster tells as well: then we look once more.
 */
static void
wait_for_workers(const KpgExport *export, ParallelContext *context)
{
	for (;;)
	{
		bool		open = false;
		bool		gone = false;

		for (int i = 0; i < context->nworkers_launched; i++)
		{
			const ParallelWorkerInfo *worker = &context->worker[i];
			pid_t		pid;

			if (worker->error_mqh == NULL)
				continue;
			open = true;
			gone |= GetBackgroundWorkerPid(worker->bgwhandle, &pid) == BGWH_STOPPED;
		}
		if (!open)
			break;
		if (gone)
		{
			ParallelMessagePending = true;
			InterruptPending = true;
			CHECK_FOR_INTERRUPTS();
			continue;
		}
		kpg_progress_refresh(export->progress);
		(void) kpg_wait_once(REFRESH_INTERVAL_MS, KPG_WAIT_PARALLEL);
	}
	WaitForParallelWorkersToFinish(context);
}

static void
adopt_blobs(const KpgExport *export, const List *blobs)
{
	ListCell   *cell;

	foreach(cell, blobs)
	{
		KcError		err;

		kpg_check(kc_ingest_adopt(export->ingest, lfirst(cell), &err), &err);
	}
}

/* What they have counted, before the segment is gone. */
static void
take_counts(KpgExport *export, const Shared *shared, int n, uint64 *counts)
{
	int			ncounts = kpg_format_ncounts(shared->state->ncolumns);
	KpgProgressSlot *last = palloc(sizeof(KpgProgressSlot) * (Size) Max(n, 1));

	for (int i = 0; i < n; i++)
	{
		InstrAccumParallelQuery(&shared->buffer_usage[i], &shared->wal_usage[i]);
		for (int c = 0; c < ncounts; c++)
			counts[c] += shared->counts[(Size) i * (Size) ncounts + (Size) c];
	}
	memcpy(last, shared->progress, sizeof(KpgProgressSlot) * (Size) n);
	kpg_progress_lead(export->progress, last, n);
	kpg_progress_refresh(export->progress);
	/* No blob of ours is begun from here on. */
	export->ordinals = NULL;
}

/* ---- the leader ---- */

static shm_mq_handle **
launch(const KpgExport *export, ParallelContext *context, const Shared *shared)
{
	shm_mq_handle **handles;

	LaunchParallelWorkers(context);
	handles = palloc(sizeof(shm_mq_handle *) * (Size) Max(context->nworkers_launched, 1));
	for (int i = 0; i < context->nworkers_launched; i++)
		handles[i] = shm_mq_attach((shm_mq *) (shared->queues + (Size) i * QUEUE_SIZE), context->seg,
								   context->worker[i].bgwhandle);
	kpg_progress_lead(export->progress, shared->progress, context->nworkers_launched);
	ereport(DEBUG1,
			(errmsg_internal("kusto_ingest has launched %d of %d parallel workers",
							 context->nworkers_launched, context->nworkers)));
	return handles;
}

void
kpg_export_parallel(KpgExport *export, KpgTableReader *reader)
{
	ParallelContext *context;
	shm_mq_handle **handles;
	Shared		shared;
	List	   *blobs;

	EnterParallelMode();
	context = create_segment(export, reader->ncolumns, &shared);
	export->ordinals = &shared.state->ordinals;
	handles = launch(export, context, &shared);
	KPG_FAULT("scan-launched");
	read_tables(&shared, 0, reader);
	kpg_export_finish(export, reader->dest);
	blobs = collect_blobs(export, handles, context->nworkers_launched);
	wait_for_workers(export, context);
	take_counts(export, &shared, context->nworkers_launched, reader->counts);
	DestroyParallelContext(context);
	ExitParallelMode();
	adopt_blobs(export, blobs);
	KPG_FAULT("scan-collected");
}
