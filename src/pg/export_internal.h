/*
 * export_internal.h
 *	  What the files export*.c share of one export.
 *
 *	export.c			the ways in, and what all modes have in common
 *	export_request.c	what may be asked for
 *	export_queue.c		blobs that a worker posts after the commit
 *	export_stream.c		streaming, and managed, which is queued instead if it must be
 *	export_direct.c		blobs that Kusto takes at once
 *	export_notice.c		what the client is told
 *	export_table.c		tables that are read without a query
 *	export_parallel.c	by several processes
 *	export_share.c		what these tell each other
 */
#ifndef KPG_EXPORT_INTERNAL_H
#define KPG_EXPORT_INTERNAL_H

#include "postgres.h"

#include "access/tableam.h"
#include "port/atomics.h"
#include "utils/relcache.h"

#include "dest.h"
#include "exec.h"
#include "export.h"
#include "operations.h"
#include "progress.h"
#include "session.h"

typedef enum KpgExportMode
{
	KPG_MODE_QUEUED,
	KPG_MODE_STREAMING,
	KPG_MODE_MANAGED,
	KPG_MODE_DIRECT
} KpgExportMode;

/* What has become of the result. */
typedef enum KpgExportEnd
{
	KPG_END_STAGED,				/* a worker has to do with it after the commit */
	KPG_END_INGESTED,			/* it is in Kusto */
	KPG_END_SKIPPED				/* Kusto has data with one of the keys */
} KpgExportEnd;

typedef struct KpgExport
{
	const KpgExportRequest *request;
	MemoryContext context;		/* of all there is of the export */
	TimestampTz started;
	pg_uuid_t	id;
	bool		job;			/* its row is there already */
	KpgExportMode mode;
	KpgQuery   *query;
	KpgOnTypeError policy;
	KpgExactlyOnce exactly_once;
	char	   *table_command;	/* NULL unless create_table */
	bool		table_created;	/* it has been run */
	KpgSession *session;
	const char *database;
	KpgRowFormat *format;
	KcIngest   *ingest;			/* NULL: nothing goes by blobs so far */
	List	   *tables;			/* KpgPlainTable to be read; NIL: the query is run */
	int			workers;		/* parallel workers that may help with them */
	pg_atomic_uint32 *ordinals; /* of blobs, when several processes make them: the last
								 * one; NULL: the ingest counts */
	KpgProgress *progress;
	KpgExportEnd end;
	uint64		rows;			/* these three when it has come to its end */
	uint64		raw_bytes;
	uint64		compressed_bytes;
	char	   *not_streamed;	/* managed: why it was queued; NULL: too large, or it was not */
	bool		doubtful;		/* and it may have been streamed all the same */
	volatile bool *perhaps_ingested;	/* see kpg_export_run_job(); NULL: nobody asks */
} KpgExport;

/* ---- export_request.c ---- */

/* Raises for whatever can be seen to be wrong without looking anything up. */
extern void kpg_export_check(const KpgExportRequest *request);
extern KpgExportMode kpg_export_mode(const char *name);
extern KcIngestProperties kpg_export_properties(const KpgExport *export);

/* ---- export.c ---- */

/* Run the query, and wait until the sink has all of its result. */
extern void kpg_export_query(KpgExport *export, KpgSink *sink);

/* The latter alone. */
extern void kpg_export_finish(KpgExport *export, DestReceiver *dest);

/* Record in the transaction what has become of it; sets the totals. */
extern void kpg_export_stage(KpgExport *export);
extern void kpg_export_record(KpgExport *export, KpgExportEnd end);

/* The same after Kusto has taken it: whatever is raised meanwhile says so. */
extern void kpg_export_record_ingested(KpgExport *export, KpgExportEnd end);

/*
 * Run the table command now, when there is one.  False: the service has not
 * answered well, and *err says why; with transient errors only, others raise.
 */
extern bool kpg_export_create_table(KpgExport *export, KcError *err);

/* Free a task of the core's however the export ends. */
extern void kpg_export_own_task(const KpgExport *export, KcTask *task);

/*
 * Wait for it.  Whatever is raised meanwhile says that the outcome of what is
 * under way is not known.  From here on Kusto may have the data, unless it is
 * said that it has none.
 */
extern void kpg_export_wait_task(const KpgExport *export, const KcTask *task);
extern void kpg_export_not_ingested(const KpgExport *export);

/* ---- the modes ---- */

/* The ingest begins to ask for token and resources at once. */
extern void kpg_export_start_ingest(KpgExport *export);
extern KpgSink *kpg_export_ingest_sink(const KpgExport *export);
extern void kpg_export_queued(KpgExport *export);
extern void kpg_export_streamed(KpgExport *export);
extern void kpg_export_direct(KpgExport *export);

/* ---- export_table.c ---- */

/* How a process reads tables. */
typedef struct KpgTableReader
{
	DestReceiver *dest;
	KpgOnTypeError policy;
	int			ncolumns;
	uint64	   *counts;			/* of kpg_format_give_counts(), added to */
} KpgTableReader;

/* After the query is planned: sets tables and workers. */
extern void kpg_export_plan_tables(KpgExport *export);

/* Read the tables, and wait until the sink has all rows. */
extern void kpg_export_tables(KpgExport *export, DestReceiver *dest);

/* All rows that the scan gives; ends it.  columns: attributes of the relation. */
extern void kpg_export_scan(KpgTableReader *reader, Relation relation, TableScanDesc scan,
							const AttrNumber *columns);

/* ---- export_parallel.c ---- */

/*
 * The same as kpg_export_tables(), with workers, under the active snapshot.  The
 * export's ingest has the blobs of all processes afterwards.
 */
extern void kpg_export_parallel(KpgExport *export, KpgTableReader *reader);

/* ---- export_share.c ---- */

/* Of an export, what a worker needs to make blobs of it. */
extern char *kpg_export_pack(const KpgExport *export, Size *size);

/*
 * Its context, session and ingest are the process's own.  All else points into
 * packed, which is aligned for anything.
 */
extern void kpg_export_unpack(KpgExport *export, KpgExportRequest *request, const char *packed);

/* A blob as a message; and the other way round, pointing into it. */
extern char *kpg_export_pack_blob(const KcIngestBlob *blob, Size *size);
extern void kpg_export_unpack_blob(KcIngestBlob *blob, const char *packed, Size size);

/* Tell the client what has become of it. */
extern void kpg_export_notice(const KpgExport *export);

#endif							/* KPG_EXPORT_INTERNAL_H */
