/*
 * export.h
 *	  One export: a query's result into blobs that are staged for posting.
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
	const char *on_type_error;
	const char *exactly_once;	/* "auto", "on", "off" */
} KpgExportRequest;

/*
 * Run the query as the current user, upload its result, and record it in the
 * current transaction; a worker posts it after the commit.  Whatever can be
 * wrong with the request is raised before the first upload.
 */
extern void kpg_export_run(const KpgExportRequest *request, pg_uuid_t *id);

#endif							/* KPG_EXPORT_H */
