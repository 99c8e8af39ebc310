/*
 * export.h
 *	  One export: a query's result into blobs that are staged for posting, or
 *	  into Kusto at once.
 */
#ifndef KPG_EXPORT_H
#define KPG_EXPORT_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/array.h"
#include "utils/uuid.h"

/* What is to be exported, as the SQL function was told; NULL: not given. */
typedef struct KpgExportRequest
{
	const char *query;
	const char *database;
	const char *table_name;
	const char *server;
	const char *mode;
	const char *mapping;
	ArrayType  *tags;			/* text[] */
	ArrayType  *ingest_if_not_exists;	/* text[] */
	bool		has_creation_time;
	TimestampTz creation_time;
	bool		flush_immediately;
	bool		create_table;
	const char *table_command;	/* another than follows from the query; of jobs */
	const char *on_type_error;
	const char *exactly_once;	/* "auto", "on", "off" */
	Oid			whole_table;	/* query is all rows of this relation; 0: any query */
	int			processes;		/* that read it at most; 0: as PostgreSQL sees fit */
} KpgExportRequest;

/*
 * Run the query as the current user, upload its result, and record it in the
 * current transaction; a worker posts it after the commit.  In the modes other
 * than "queued" Kusto ingests it, if all goes well, before this returns, and no
 * rollback undoes that.  Whatever can be wrong with the request is raised
 * before the query is run.
 */
extern void kpg_export_run(const KpgExportRequest *request, pg_uuid_t *id);

/* PostgreSQL's own limit of parallel workers, and the session. */
#define KPG_EXPORT_PROCESSES_MAX	1025

/*
 * The same for all rows of a relation, in mode "queued"; request has everything
 * but query, mode and the last two.  processes: as there.
 */
extern void kpg_export_table(KpgExportRequest *request, Oid relation, int processes, pg_uuid_t *id);

/*
 * Record in the current transaction that a job is to make the export, as the
 * current user, after the commit.  Raises for what can be found wrong without
 * running, or evaluating, anything of the query.
 */
extern void kpg_export_submit(const KpgExportRequest *request, pg_uuid_t *id);

/*
 * In a job's process: like kpg_export_run(), for the running operation id.
 * *perhaps_ingested: Kusto may have data of this run, whatever is raised or
 * rolled back; it is set at once, and so is true also in an exit callback.
 */
extern void kpg_export_run_job(const KpgExportRequest *request, const pg_uuid_t *id,
							   volatile bool *perhaps_ingested);

#endif							/* KPG_EXPORT_H */
