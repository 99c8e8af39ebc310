/*
 * operations.h
 *	  kusto.operation and kusto.blob: the only file with SQL on them, and the
 *	  only one that moves their state.
 *
 *	pending -> running -> staged -> posting -> posted -> succeeded
 *		|         |          |         |         |-----> partially_succeeded
 *		|         |          |         |         |-----> failed
 *		|         |          |         |         |-----> skipped
 *		|         |          |         |         `-----> unknown
 *		|         `-> failed |         `-> failed
 *		`--------------------+-> cancelled
 *	retry: failed | unknown -> staged (the same blobs)
 *
 * A synchronous call enters at staged, inside the user's transaction; a result
 * without rows enters at succeeded.
 *
 * All SQL here runs as the extension's owner, in a security-restricted
 * operation with search_path = pg_catalog, pg_temp.
 */
#ifndef KPG_OPERATIONS_H
#define KPG_OPERATIONS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/uuid.h"

#include "../core/ingest.h"

/* What kusto_ingest was asked; strings NULL when not given. */
typedef struct KpgOperationRequest
{
	pg_uuid_t	id;
	Oid			owner;
	const char *server;
	const char *database;
	const char *table_name;
	const char *mode;			/* "queued" */
	const char *source;			/* "query" */
	const char *query;
	const char *mapping;
	ArrayType  *tags;			/* text[] or NULL */
	ArrayType  *ingest_if_not_exists;
	bool		has_creation_time;
	TimestampTz creation_time;
	bool		flush_immediately;
	const char *table_command;	/* .create-merge to run before posting, or NULL */
	const char *on_type_error;
	TimestampTz created_at;
} KpgOperationRequest;

/*
 * Record an export in the caller's transaction: one operation row in state
 * staged (or succeeded when there are no blobs) and its blob rows.
 * type_errors is JSON text or NULL.
 */
extern void kpg_operations_stage(const KpgOperationRequest *request, const KcIngest *ingest,
								 const char *type_errors);

/* ---- asking for the outcome ---- */

typedef struct KpgOutcome
{
	bool		found;			/* in a snapshot taken now */
	bool		own_uncommitted;	/* inserted by the current transaction */
	bool		visible_to_user;	/* the current user may see it */
	bool		finished;
	char	   *state;
	char	   *error_code;
	char	   *error_message;
	char	   *details;
	char	   *hint;
} KpgOutcome;

/* Reads with the latest snapshot, whatever the isolation level. */
extern void kpg_operations_outcome(const pg_uuid_t *id, KpgOutcome *outcome);

#endif							/* KPG_OPERATIONS_H */
