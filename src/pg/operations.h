/*
 * operations.h
 *	  kusto.operation and kusto.blob: the only files with SQL on them, and the
 *	  only ones that move their state.
 *
 *	pending -> running -> staged -> posting -> posted -> succeeded
 *		|         |          |         |         |-----> partially_succeeded
 *		|         |          |         |         |-----> failed
 *		|         |          |         |         |-----> skipped
 *		|         |          |         |         `-----> unknown
 *		|         |          |         `-> failed
 *		`---------+----------+-> cancelled
 *	the job's process is gone: running -> pending, nothing of it has committed
 *	the job cannot begin, or its query fails: pending, running -> failed, or
 *	unknown when a run may have sent its result by then (modes but queued)
 *	its result is empty: running -> succeeded
 *	retry: failed | unknown | partially_succeeded -> staged (the same blobs)
 *
 * A synchronous call enters at staged, inside the user's transaction; a result
 * without rows, and without a table to create, enters at succeeded.  A job
 * enters at pending.
 *
 * All SQL here runs as the owner of the tables, in a security-restricted
 * operation with search_path = pg_catalog, pg_temp.  Every function may raise.
 */
#ifndef KPG_OPERATIONS_H
#define KPG_OPERATIONS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "nodes/pg_list.h"
#include "utils/array.h"
#include "utils/uuid.h"

#include "../core/ingest.h"

/* ---- staging, in the caller's transaction ---- */

/* Which blobs get an ingest-by tag of their own. */
typedef enum KpgExactlyOnce
{
	KPG_EXACTLY_ONCE_AUTO,		/* the large ones, which Kusto would hardly batch */
	KPG_EXACTLY_ONCE_ON,
	KPG_EXACTLY_ONCE_OFF
} KpgExactlyOnce;

extern const char *kpg_operations_exactly_once_name(KpgExactlyOnce value);
/* Raises when it is none. */
extern KpgExactlyOnce kpg_operations_exactly_once(const char *name);

/* What kusto_ingest was asked; strings NULL when not given. */
typedef struct KpgOperationRequest
{
	pg_uuid_t	id;
	Oid			owner;
	const char *server;
	const char *database;
	const char *table_name;
	const char *mode;			/* as kusto_ingest() was told */
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
	KpgExactlyOnce exactly_once;
	TimestampTz created_at;
} KpgOperationRequest;

/*
 * Record an export in the caller's transaction: one operation row in state
 * staged (or succeeded when there is nothing to do in Kusto) and its blob rows.
 * type_errors is JSON text or NULL.  True when there is something to do.
 */
extern bool kpg_operations_stage(const KpgOperationRequest *request, const KcIngest *ingest,
								 const char *type_errors);

/* ---- asking for the outcome ---- */

typedef struct KpgOutcome
{
	bool		found;			/* in a snapshot taken now */
	bool		own_uncommitted;	/* written by the current transaction */
	bool		visible_to_user;	/* the current user may see it */
	bool		steered_by_user;	/* and cancel or retry it */
	bool		foreign;		/* recorded by another cluster or database */
	bool		finished;
	char	   *state;
	char	   *error_code;
	char	   *error_message;
	char	   *details;
	char	   *hint;
} KpgOutcome;

/*
 * Reads with the latest snapshot, whatever the isolation level, and keeps
 * neither snapshot nor lock.  Strings are palloc'd.
 */
extern void kpg_operations_outcome(const pg_uuid_t *id, KpgOutcome *outcome);

/*
 * The same; raises when there is no such operation or the current user may not
 * see it, which are one: that an operation exists is not for everybody to know.
 */
extern void kpg_operations_find(const pg_uuid_t *id, KpgOutcome *outcome);

/* Raises that the operation is another cluster's or database's. */
extern void kpg_operations_refuse_foreign(const pg_uuid_t *id, const KpgOutcome *outcome);

/* ---- the state machine ---- */

/* Of operations and blobs; a blob is never pending or running. */
typedef enum KpgState
{
	KPG_STATE_PENDING,			/* next: running, failed, unknown, cancelled */
	KPG_STATE_RUNNING,			/* next: staged, pending, and all that are final but one */
	KPG_STATE_STAGED,			/* next: posting, cancelled; a blob: failed */
	KPG_STATE_POSTING,			/* next: posted, failed; a blob: posting, unknown */
	KPG_STATE_POSTED,			/* next: the five that follow */
	KPG_STATE_SUCCEEDED,		/* all that was sent is in Kusto, or was there already */
	KPG_STATE_PARTIALLY_SUCCEEDED,	/* retry: staged */
	KPG_STATE_FAILED,			/* retry: staged */
	KPG_STATE_SKIPPED,			/* Kusto found that it has the data */
	KPG_STATE_UNKNOWN,			/* retry: staged */
	KPG_STATE_CANCELLED
} KpgState;

#define KPG_STATE_COUNT (KPG_STATE_CANCELLED + 1)

extern const char *kpg_operations_state_name(KpgState state);
extern KpgState kpg_operations_state(const char *name);
extern bool kpg_operations_is_final(KpgState state);

/* What Kusto has taken, or skipped, already. */
typedef struct KpgIngested
{
	KpgState	state;			/* succeeded or skipped */
	uint64		rows;
	uint64		raw_bytes;
	uint64		compressed_bytes;
	const KcIngest *ingest;		/* of its blobs; NULL: there were none */
} KpgIngested;

/* Record that in the caller's transaction: nothing is left to do. */
extern void kpg_operations_record(const KpgOperationRequest *request, const KpgIngested *ingested,
								  const char *type_errors);

/*
 * Why an operation is not well; NULL members: nothing to say.  All but hint are
 * UTF-8 when utf8 says so, and are converted when they are written: that takes
 * a transaction, and there is none when the service speaks.
 */
typedef struct KpgFailure
{
	bool		utf8;
	char	   *error_code;
	char	   *message;
	char	   *details;
	char	   *hint;
	char	   *activity_id;
	bool		perhaps_ingested;	/* of a job: Kusto may have the data of the run */
} KpgFailure;

/*
 * What has become known of a blob; a NULL member keeps what the row has.  utf8
 * as in KpgFailure.
 */
typedef struct KpgBlobNews
{
	bool		utf8;
	char	   *status_table;
	char	   *error_code;
	char	   *failure_status;
	char	   *details;
	char	   *activity_id;
	char	   *kusto_operation_id;
} KpgBlobNews;

/*
 * staged -> posting.  False when the row is gone or somebody else has moved
 * it: two actors never work on one operation.
 */
extern bool kpg_operations_claim(const pg_uuid_t *id);

/*
 * Move one blob; moving from posting to posting is another attempt.  news may
 * be NULL.  False when its row is gone or its state forbids the move.
 */
extern bool kpg_operations_move_blob(const pg_uuid_t *id, int ordinal, KpgState to,
									 const KpgBlobNews *news);

/* Remember news of a blob that does not move. */
extern void kpg_operations_tell_blob(const pg_uuid_t *id, int ordinal, const KpgBlobNews *news);

/*
 * Show what hinders an operation.  The first failure of a blob stays: nothing
 * is written when one has failed already.
 */
extern void kpg_operations_note(const pg_uuid_t *id, const KpgFailure *failure);

/*
 * Bring the operation to the state that follows from its blobs, and return the
 * state it is in; KPG_STATE_CANCELLED when the row is gone.  One that has no
 * blobs succeeds unless gave_up.
 */
extern KpgState kpg_operations_settle(const pg_uuid_t *id, bool gave_up);

/* ---- steering ---- */

/*
 * These raise as kpg_operations_find() does, and when the current user may not
 * steer the operation.  They wait for whoever is moving it.
 */

/*
 * pending, running, staged -> cancelled, with all its blobs.  False when it is
 * too late; *before is the state that it was in, and is in then.
 */
extern bool kpg_operations_cancel(const pg_uuid_t *id, KpgState *before);

typedef struct KpgRetried
{
	KpgState	before;			/* the state that it was in */
	uint64		blobs;			/* how many are staged again */
	int64		doubtful;		/* of them, those that are in Kusto perhaps and have
								 * no ingest-by tag */
} KpgRetried;

/*
 * failed, unknown, partially_succeeded -> staged, with those of its blobs that
 * are failed or unknown.  False when it is in another state; raises when there
 * is nothing in it that could be posted again.
 */
extern bool kpg_operations_retry(const pg_uuid_t *id, KpgRetried *retried);

/* A purge so far; zeroed: nothing yet. */
typedef struct KpgPurge
{
	bool		begun;
	TimestampTz finished_at;	/* from here on there may be more */
} KpgPurge;

/*
 * Delete some of the operations that finished before, and report how many.
 * *more: call again.  member: only those of owners whose privileges this role
 * has; InvalidOid: everybody's.  What others have locked stays.
 */
extern int64 kpg_operations_purge(KpgPurge *purge, TimestampTz before, Oid member, bool *more);

/* ---- jobs (operations_job.c) ---- */

/*
 * Record an export that a job is to make: one operation row in state pending,
 * with the session's settings that decide about the result.
 */
extern void kpg_operations_submit(const KpgOperationRequest *request, bool create_table);

typedef struct KpgJobRow
{
	pg_uuid_t	id;
	Oid			owner;
	KpgState	state;			/* pending or running */
	int			runs;
} KpgJobRow;

/* What a job's process needs. */
typedef struct KpgJob
{
	KpgOperationRequest request;
	bool		create_table;
	int			nsettings;
	char	  **setting_names;
	char	  **setting_values;
} KpgJob;

/*
 * pending -> running; *runs is how often, this run included.  False: nothing to
 * claim, or somebody else has the row locked.
 */
extern bool kpg_operations_claim_job(const pg_uuid_t *id, int *runs);

/* A job that is claimed, in the current context.  Raises when it cannot be run. */
extern void kpg_operations_load_job(const pg_uuid_t *id, KpgJob *job);

/*
 * running -> staged, or succeeded when there is nothing to do in Kusto; like
 * kpg_operations_stage().  Raises when it is not running any more.
 */
extern bool kpg_operations_stage_job(const KpgOperationRequest *request, const KcIngest *ingest,
									 const char *type_errors);

/* running -> succeeded or skipped; like kpg_operations_record(), and raises as above. */
extern void kpg_operations_record_job(const KpgOperationRequest *request, const KpgIngested *ingested,
									  const char *type_errors);

/*
 * pending or running -> pending, to be tried in so many seconds; the failure
 * is shown meanwhile.  False when it is not in that state any more; unless
 * wait, also when somebody else is about to move it.
 */
extern bool kpg_operations_postpone_job(const pg_uuid_t *id, KpgState from, bool wait,
										double seconds, const KpgFailure *failure);

/*
 * running -> pending, as if it had not been claimed.  False when it is not
 * running any more, or somebody else is about to move it.
 */
extern bool kpg_operations_return_job(const pg_uuid_t *id);

/*
 * pending or running -> failed; or unknown, in a mode that sends before the
 * commit, when this run or one before has perhaps done so.  Returns which;
 * from, when it is false as above.
 */
extern KpgState kpg_operations_fail_job(const pg_uuid_t *id, KpgState from, bool wait,
										const KpgFailure *failure);

/* ---- what the worker tells of itself ---- */

/* In kusto.worker.  error NULL: the worker with this pid begins. */
extern void kpg_operations_tell_worker(int pid, TimestampTz at, const char *error);

/* ---- what the worker reads ---- */

typedef enum KpgTables
{
	KPG_TABLES_READY,			/* locked until the end of the transaction */
	KPG_TABLES_BUSY,			/* somebody alters or drops them: try again */
	KPG_TABLES_GONE				/* there is no such extension here */
} KpgTables;

/* Never waits for a lock. */
extern KpgTables kpg_operations_lock(void);

typedef struct KpgOpenBlob
{
	int			ordinal;
	KcUuid		source_id;
	char	   *url;
	uint64		raw_bytes;
	KpgState	state;			/* staged, posting or posted */
	bool		exactly_once;	/* has an ingest-by tag of its own */
	int			post_attempts;
	char	   *status_table;	/* NULL: not known */
	TimestampTz posted_at;		/* 0: never; unless posted, by an earlier attempt
								 * whose outcome is unknown */
} KpgOpenBlob;

typedef struct KpgOpenOperation
{
	pg_uuid_t	id;
	Oid			owner;
	char	   *server;
	char	   *database;		/* these two for messages */
	char	   *table_name;
	char	   *database_utf8;	/* from here to if_not_exists: for the service */
	char	   *table_utf8;
	char	   *table_command;	/* NULL: none */
	char	   *mapping;		/* NULL: none */
	char	  **tags;
	int			ntags;
	char	  **if_not_exists;
	int			nif_not_exists;
	bool		has_creation_time;
	TimestampTz creation_time;
	bool		flush_immediately;
	KpgState	state;			/* staged, posting or posted */
	int			attempts;		/* times it was claimed: one, and one a retry */
	int			total_blobs;
	KpgOpenBlob *blobs;			/* those that are not finished, by ordinal */
	int			nblobs;
} KpgOpenOperation;

/* Operations from here on; zeroed: from the first. */
typedef struct KpgSweep
{
	bool		begun;
	TimestampTz created_at;
	pg_uuid_t	id;
} KpgSweep;

/* Server and role whose operations are not asked for. */
typedef struct KpgSkip
{
	const char *server;
	Oid			owner;
} KpgSkip;

/*
 * Ids (pg_uuid_t *) of staged operations of this database, oldest first.
 * Operations that another cluster or database recorded are in nobody's list:
 * the original has posted them or will (docs/operations.md).
 * *jobs: there are pending or running ones, see kpg_operations_jobs().
 */
extern List *kpg_operations_staged(const KpgSkip *skip, int nskip, int limit, bool *jobs);

/*
 * The next page of unfinished operations (staged, posting, posted); the sweep
 * begins anew after the last.
 */
extern List *kpg_operations_unfinished(KpgSweep *sweep, int limit, bool *jobs);

/*
 * All that are running, and the oldest of those that are pending and may be
 * tried now, at most limit.  *next_ms: when the next of the others may be
 * tried, -1: none.  In the current context.
 */
extern KpgJobRow *kpg_operations_jobs(int limit, int *n, int64 *next_ms);

/* Puts those first that are pending, in any order; how many they are. */
extern int	kpg_operations_pending(pg_uuid_t *ids, int n);

/* Unfinished ones that another cluster or database recorded. */
extern int64 kpg_operations_count_foreign(void);

/*
 * Lock those that nobody else has locked, without waiting, until the end of
 * the transaction; which they are.
 */
extern void kpg_operations_lock_free(const pg_uuid_t *const *ids, int n, bool *locked);

/* Is it still there, and has the worker to do with it? */
extern bool kpg_operations_is_open(const pg_uuid_t *id);

/* NULL when it is gone or finished.  In the current context. */
extern KpgOpenOperation *kpg_operations_load(const pg_uuid_t *id);

#endif							/* KPG_OPERATIONS_H */
