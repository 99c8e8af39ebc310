/*
 * operations_internal.h
 *	  How the parts of operations run their SQL.
 */
#ifndef KPG_OPERATIONS_INTERNAL_H
#define KPG_OPERATIONS_INTERNAL_H

#include "postgres.h"

#include "executor/spi.h"

#include "operations.h"

/* What to go back to. */
typedef struct KpgSqlScope
{
	Oid			userid;
	int			sec_context;
	int			guc_level;
} KpgSqlScope;

/*
 * Become the owner of the tables, with a locked search_path and SPI connected.
 * Strings of the caller's survive; results of SPI die at leave.  After an
 * error the end of the (sub)transaction undoes all of it.
 */
extern void kpg_operations_enter(KpgSqlScope *scope);
extern void kpg_operations_leave(const KpgSqlScope *scope);

typedef struct KpgSqlArg
{
	Oid			type;
	Datum		value;
	bool		isnull;
} KpgSqlArg;

extern KpgSqlArg kpg_operations_text_arg(const char *value);	/* NULL is null */
extern KpgSqlArg kpg_operations_uuid_arg(const pg_uuid_t *value);
extern KpgSqlArg kpg_operations_arg(Oid type, Datum value);

/* Where we are: columns system_identifier and database_oid. */
extern KpgSqlArg kpg_operations_cluster_arg(void);
extern KpgSqlArg kpg_operations_database_arg(void);

/*
 * Run one constant statement inside a scope and return the number of rows;
 * expected is an SPI_OK_ code.  A limit of 0 means all rows.  The text and the
 * types of its arguments never change: its plan is kept (operations_plan.c).
 */
extern uint64 kpg_operations_execute(const char *sql, const KpgSqlArg *args, int nargs, int expected,
									 long limit);

/* Value of the current SPI result, by position from 1. */
extern Datum kpg_operations_value(uint64 row, int column, bool *isnull);
/* The same as a C string in context; NULL for null. */
extern char *kpg_operations_string(MemoryContext context, uint64 row, int column);

/*
 * What a new row says of its request, whether the query has run or is to run:
 * parameters 1 to KPG_REQUEST_ARGS of the INSERT.
 */
#define KPG_REQUEST_ARGS	18
#define KPG_REQUEST_COLUMNS \
	"id, owner, server, database, table_name, mode, source, query, created_at, system_identifier, database_oid"
#define KPG_REQUEST_VALUES \
	"$1, $2, $3::name, $4, $5, $6, $7, $8, $16, $17, $18"
/* Members for jsonb_build_object(), of column options. */
#define KPG_REQUEST_OPTIONS \
	"'mapping', $9, 'tags', $10, 'ingest_if_not_exists', $11, 'creation_time', $12," \
	" 'flush_immediately', $13, 'on_type_error', $14, 'exactly_once', $15"

extern void kpg_operations_request_args(const KpgOperationRequest *request, KpgSqlArg *args);

/*
 * Move an operation, inside a scope; error_code and the like are kept or
 * forgotten.  False when the row is gone or its state forbids the move.
 */
extern bool kpg_operations_move(const pg_uuid_t *id, KpgState to, bool keep_error);

/* Move those of its blobs that may move so, inside a scope; how many have. */
extern uint64 kpg_operations_move_blobs(const pg_uuid_t *id, KpgState to);

/* Insert the blob rows of an export, inside a scope. */
extern void kpg_operations_insert_blobs(const KpgOperationRequest *request, const KcIngest *ingest,
										KpgState state, TimestampTz now);

/* How many blobs there are; ingest may be NULL. */
extern int	kpg_operations_nblobs(const KcIngest *ingest);

/* What is to be recorded of an ingest whose blobs are complete. */
extern KpgIngested kpg_operations_staged_ingest(const KpgOperationRequest *request, const KcIngest *ingest);

#endif							/* KPG_OPERATIONS_INTERNAL_H */
