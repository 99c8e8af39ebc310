/*
 * compat.h
 *	  Every difference between PostgreSQL 13 and 18 that this extension meets.
 *
 * Wrappers have the newest version's signature.  Sorted by topic.
 */
#ifndef KPG_COMPAT_H
#define KPG_COMPAT_H

#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#if PG_VERSION_NUM < 140000
#include "catalog/indexing.h"
#include "utils/guc_tables.h"
#endif
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_proc.h"
#include "access/heaptoast.h"
#include "commands/sequence.h"
#include "commands/tablecmds.h"
#include "datatype/timestamp.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/shm_mq.h"
#if PG_VERSION_NUM >= 170000
#include "storage/procarray.h"
#else
#include "storage/sinvaladt.h"
#endif
#include "tcop/pquery.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/rangetypes.h"
#include "utils/rel.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"
#if PG_VERSION_NUM >= 140000
#include "utils/multirangetypes.h"
#endif
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif
#if PG_VERSION_NUM >= 140000
#include "utils/wait_event.h"
#endif

/* EnsurePortalSnapshotExists() came with 13.4, InitMaterializedSRF() with 15.1. */
#if PG_VERSION_NUM < 130004
#error "kusto_ingest needs PostgreSQL 13.4 or later"
#endif
#if PG_VERSION_NUM == 150000
#error "kusto_ingest needs PostgreSQL 15.1 or a later release of version 15"
#endif

/* ---- access control ---- */

#if PG_VERSION_NUM < 140000
#define ROLE_PG_READ_SERVER_FILES DEFAULT_ROLE_READ_SERVER_FILES
#endif

static inline AclResult
kpg_compat_server_aclcheck(Oid serverid, Oid roleid, AclMode mode)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(ForeignServerRelationId, serverid, roleid, mode);
#else
	return pg_foreign_server_aclcheck(serverid, roleid, mode);
#endif
}

/* Raises unless the current user may do to the plan's tables what it does. */
static inline void
kpg_compat_check_permissions(const PlannedStmt *plan)
{
#if PG_VERSION_NUM >= 160000
	(void) ExecCheckPermissions(plan->rtable, plan->permInfos, true);
#else
	(void) ExecCheckRTPerms(plan->rtable, true);
#endif
}

static inline bool
kpg_compat_owns_database(Oid database, Oid roleid)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(DatabaseRelationId, database, roleid);
#else
	return pg_database_ownercheck(database, roleid);
#endif
}

static inline bool
kpg_compat_owns_relation(Oid relation, Oid roleid)
{
#if PG_VERSION_NUM >= 160000
	return object_ownercheck(RelationRelationId, relation, roleid);
#else
	return pg_class_ownercheck(relation, roleid);
#endif
}

static inline AclResult
kpg_compat_function_aclcheck(Oid function, Oid roleid, AclMode mode)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(ProcedureRelationId, function, roleid, mode);
#else
	return pg_proc_aclcheck(function, roleid, mode);
#endif
}

static inline AclResult
kpg_compat_database_aclcheck(Oid database, Oid roleid, AclMode mode)
{
#if PG_VERSION_NUM >= 160000
	return object_aclcheck(DatabaseRelationId, database, roleid, mode);
#else
	return pg_database_aclcheck(database, roleid, mode);
#endif
}

/* ---- executor and parser ---- */

static inline void
kpg_compat_executor_run(QueryDesc *desc)
{
#if PG_VERSION_NUM >= 180000
	ExecutorRun(desc, ForwardScanDirection, 0);
#else
	ExecutorRun(desc, ForwardScanDirection, 0, true);
#endif
}

/*
 * Indexes in the range table of what a statement changes; of partitioned tables
 * too, which PostgreSQL 13 lists apart.
 */
static inline List *
kpg_compat_result_relations(const PlannedStmt *stmt)
{
#if PG_VERSION_NUM >= 140000
	return stmt->resultRelations;
#else
	if (stmt->rootResultRelations == NIL)
		return stmt->resultRelations;
	return list_concat_copy(stmt->rootResultRelations, stmt->resultRelations);
#endif
}

static inline List *
kpg_compat_analyze_and_rewrite(RawStmt *raw, const char *text)
{
#if PG_VERSION_NUM >= 150000
	return pg_analyze_and_rewrite_fixedparams(raw, text, NULL, 0, NULL);
#else
	return pg_analyze_and_rewrite(raw, text, NULL, 0, NULL);
#endif
}

/* ---- indexes ---- */

static inline void
kpg_compat_index_insert(Relation index, Datum *values, bool *isnull, ItemPointer tid, Relation heap)
{
#if PG_VERSION_NUM >= 140000
	(void) index_insert(index, values, isnull, tid, heap, UNIQUE_CHECK_NO, false, NULL);
#else
	(void) index_insert(index, values, isnull, tid, heap, UNIQUE_CHECK_NO, NULL);
#endif
}

/* ---- TOAST ---- */

/*
 * heap_insert() looks for something to be moved into the TOAST table, for which
 * it needs a snapshot.  Assertions since version 18 want one for every row.
 */
static inline bool
kpg_compat_insert_wants_snapshot(HeapTuple tuple)
{
#if PG_VERSION_NUM >= 180000 && defined(USE_ASSERT_CHECKING)
	return true;
#else
	return tuple->t_len > TOAST_TUPLE_THRESHOLD;
#endif
}

/* ---- sequences ---- */

/* Which one a WAL record is about. */
static inline void
kpg_compat_set_sequence(xl_seq_rec *record, Relation sequence)
{
#if PG_VERSION_NUM >= 160000
	record->locator = sequence->rd_locator;
#else
	record->node = sequence->rd_node;
#endif
}

/* ---- module and settings ---- */

/*
 * With -fvisibility=hidden an SQL-callable function needs PGDLLEXPORT, which
 * PG_FUNCTION_INFO_V1 adds by itself from PostgreSQL 16 on.
 */
#if PG_VERSION_NUM < 160000
#undef PG_FUNCTION_INFO_V1
#define PG_FUNCTION_INFO_V1(funcname) \
extern PGDLLEXPORT Datum funcname(PG_FUNCTION_ARGS); \
extern PGDLLEXPORT const Pg_finfo_record *CppConcat(pg_finfo_, funcname)(void); \
const Pg_finfo_record * \
CppConcat(pg_finfo_, funcname)(void) \
{ \
	static const Pg_finfo_record my_finfo = {1}; \
\
	return &my_finfo; \
} \
extern int	no_such_variable
#endif

static inline void
kpg_compat_reserve_prefix(const char *prefix)
{
#if PG_VERSION_NUM >= 150000
	MarkGUCPrefixReserved(prefix);
#else
	EmitWarningsOnPlaceholders(prefix);
#endif
}

/*
 * Set a parameter until AtEOXact_GUC().  From PostgreSQL 14 on the client is
 * told of DateStyle and the like only before the next query, when they are back
 * already; PostgreSQL 13 would tell it at once, for each row twice.
 */
#if PG_VERSION_NUM < 140000
static inline struct config_generic *
kpg_compat_reported_setting(const char *name)
{
	struct config_generic **all = get_guc_variables();
	int			n = GetNumConfigOptions();

	for (int i = 0; i < n; i++)
	{
		if ((all[i]->flags & GUC_REPORT) && pg_strcasecmp(all[i]->name, name) == 0)
			return all[i];
	}
	return NULL;
}
#endif

static inline void
kpg_compat_set_quietly(const char *name, const char *value)
{
#if PG_VERSION_NUM < 140000
	struct config_generic *reported = kpg_compat_reported_setting(name);

	if (reported != NULL)
		reported->flags &= ~GUC_REPORT;
	PG_TRY();
#endif
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
#if PG_VERSION_NUM < 140000
	PG_FINALLY();
	{
		if (reported != NULL)
			reported->flags |= GUC_REPORT;
	}
	PG_END_TRY();
#endif
}

/* AtEOXact_GUC(); names[0 .. n - 1] are those that were perhaps set. */
static inline void
kpg_compat_unset_quietly(int guc_level, const char *const *names, int n)
{
#if PG_VERSION_NUM < 140000
	struct config_generic *reported[16];

	Assert(n <= (int) lengthof(reported));
	for (int i = 0; i < n; i++)
	{
		reported[i] = kpg_compat_reported_setting(names[i]);
		if (reported[i] != NULL)
			reported[i]->flags &= ~GUC_REPORT;
	}
	PG_TRY();
#else
	(void) names;
	(void) n;
#endif
	AtEOXact_GUC(true, guc_level);
#if PG_VERSION_NUM < 140000
	PG_FINALLY();
	{
		for (int i = 0; i < n; i++)
		{
			if (reported[i] != NULL)
				reported[i]->flags |= GUC_REPORT;
		}
	}
	PG_END_TRY();
#endif
}

/* ---- processes ---- */

/* The process of a virtual transaction; NULL when it is gone. */
static inline PGPROC *
kpg_compat_vxid_proc(VirtualTransactionId vxid)
{
#if PG_VERSION_NUM >= 170000
	return ProcNumberGetProc(vxid.procNumber);
#else
	return BackendIdGetProc(vxid.backendId);
#endif
}

/* Has it been started for a client, and so is no background worker? */
static inline bool
kpg_compat_is_regular_backend(const PGPROC *proc)
{
#if PG_VERSION_NUM >= 180000
	return proc->isRegularBackend;
#else
	return !proc->isBackgroundWorker;
#endif
}

/*
 * Flags that connect a background worker as a role without LOGIN; 0 before
 * PostgreSQL 17, which cannot.
 */
#if PG_VERSION_NUM >= 170000
#define KPG_COMPAT_BYPASS_LOGIN BGWORKER_BYPASS_ROLELOGINCHECK
#else
#define KPG_COMPAT_BYPASS_LOGIN 0
#endif

/* The process's current top-level transaction, by a number of its own. */
static inline LocalTransactionId
kpg_compat_local_xid(void)
{
#if PG_VERSION_NUM >= 170000
	return MyProc->vxid.lxid;
#else
	return MyProc->lxid;
#endif
}

/* ---- shared memory ---- */

/*
 * Have request called when the postmaster reckons how much shared memory it
 * needs: from PostgreSQL 15 on by a hook, before at once.  It calls *previous,
 * unless that is NULL.
 */
#if PG_VERSION_NUM >= 150000
typedef shmem_request_hook_type kpg_compat_shmem_request_hook;
#else
typedef void (*kpg_compat_shmem_request_hook) (void);
#endif

static inline void
kpg_compat_hook_shmem_request(kpg_compat_shmem_request_hook *previous,
							  kpg_compat_shmem_request_hook request)
{
#if PG_VERSION_NUM >= 150000
	*previous = shmem_request_hook;
	shmem_request_hook = request;
#else
	*previous = NULL;
	request();
#endif
}

/* ---- hooks ---- */

/* ProcessUtility_hook's parameters, and they as arguments. */
#if PG_VERSION_NUM >= 140000
#define KPG_COMPAT_UTILITY_PARAMETERS \
	PlannedStmt *pstmt, const char *queryString, bool readOnlyTree, \
	ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *queryEnv, \
	DestReceiver *dest, QueryCompletion *qc
#define KPG_COMPAT_UTILITY_ARGUMENTS \
	pstmt, queryString, readOnlyTree, context, params, queryEnv, dest, qc
#else
#define KPG_COMPAT_UTILITY_PARAMETERS \
	PlannedStmt *pstmt, const char *queryString, \
	ProcessUtilityContext context, ParamListInfo params, QueryEnvironment *queryEnv, \
	DestReceiver *dest, QueryCompletion *qc
#define KPG_COMPAT_UTILITY_ARGUMENTS \
	pstmt, queryString, context, params, queryEnv, dest, qc
#endif

/* ---- set-returning functions ---- */

/*
 * Make the call return a tuplestore: rsinfo->setResult and setDesc are set.
 * PostgreSQL 15 and later have InitMaterializedSRF() for this.
 */
static inline void
kpg_compat_materialize(FunctionCallInfo fcinfo)
{
#if PG_VERSION_NUM >= 150000
	/* A scalar result has no descriptor but the one that the caller expects. */
	bool		scalar = get_call_result_type(fcinfo, NULL, NULL) == TYPEFUNC_SCALAR;

	InitMaterializedSRF(fcinfo, scalar ? MAT_SRF_USE_EXPECTED_DESC : 0);
#else
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext old;
	TupleDesc	desc;
	TypeFuncClass class;

	if (rsinfo == NULL || !IsA(rsinfo, ReturnSetInfo))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("set-valued function called in context that cannot accept a set")));
	if (!(rsinfo->allowedModes & SFRM_Materialize))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("materialize mode required, but it is not allowed in this context")));

	old = MemoryContextSwitchTo(rsinfo->econtext->ecxt_per_query_memory);
	class = get_call_result_type(fcinfo, NULL, &desc);
	if (class == TYPEFUNC_SCALAR)
		desc = CreateTupleDescCopy(rsinfo->expectedDesc);
	else if (class != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	rsinfo->returnMode = SFRM_Materialize;
	rsinfo->setResult =
		tuplestore_begin_heap((rsinfo->allowedModes & SFRM_Materialize_Random) != 0, false, work_mem);
	rsinfo->setDesc = desc;
	MemoryContextSwitchTo(old);
#endif
}

/* ---- tables ---- */

/* From PostgreSQL 16 on a foreign table may have a trigger for TRUNCATE. */
#define KPG_COMPAT_FOREIGN_TRUNCATE_TRIGGERS (PG_VERSION_NUM >= 160000)

/* Resource owners allocate their arrays when they are first needed; later they have some in them. */
#define KPG_COMPAT_OWNERS_ALLOCATE (PG_VERSION_NUM < 170000)

/* Is it a generated column whose value is nowhere stored, nor in a trigger's row? */
static inline bool
kpg_compat_is_virtual(const FormData_pg_attribute *att)
{
#if PG_VERSION_NUM >= 180000
	return att->attgenerated == ATTRIBUTE_GENERATED_VIRTUAL;
#else
	(void) att;
	return false;
#endif
}

/*
 * TRUNCATE ONLY of a table that is open, exclusively locked and not in use, which
 * logical decoding does not see.
 */
static inline void
kpg_compat_truncate_quietly(Relation relation)
{
	List	   *relations = list_make1(relation);
	List	   *relids = list_make1_oid(RelationGetRelid(relation));

#if PG_VERSION_NUM >= 160000
	ExecuteTruncateGuts(relations, relids, NIL, DROP_RESTRICT, false, false);
#else
	ExecuteTruncateGuts(relations, relids, NIL, DROP_RESTRICT, false);
#endif
}

/* ---- types ---- */

#if PG_VERSION_NUM < 140000
#define PG_LSNOID LSNOID
#endif

/*
 * Convert text between encodings with the given function into dest, which has
 * room for the worst case.  Returns how many bytes of src were converted, up to
 * the first character that has no form in dest_encoding; dest is terminated.
 * PostgreSQL 13 raises an error for such a character instead.
 */
static inline size_t
kpg_compat_convert(Oid function, int src_encoding, int dest_encoding,
				   const char *src, int src_len, char *dest, int dest_size)
{
#if PG_VERSION_NUM >= 140000
	return (size_t) pg_do_encoding_conversion_buf(function, src_encoding, dest_encoding,
												  (unsigned char *) unconstify(char *, src), src_len,
												  (unsigned char *) dest, dest_size, true);
#else
	OidFunctionCall5(function, Int32GetDatum(src_encoding), Int32GetDatum(dest_encoding),
					 CStringGetDatum(src), CStringGetDatum(dest), Int32GetDatum(src_len));
	return (size_t) src_len;
#endif
}

/*
 * The same, but never raises: PostgreSQL 13 stops at the first character that
 * is not ASCII.
 */
static inline size_t
kpg_compat_convert_some(Oid function, int src_encoding, int dest_encoding,
						const char *src, int src_len, char *dest, int dest_size)
{
#if PG_VERSION_NUM >= 140000
	return kpg_compat_convert(function, src_encoding, dest_encoding, src, src_len, dest, dest_size);
#else
	int			len = 0;

	for (; len < src_len && len < dest_size - 1 && !IS_HIGHBIT_SET(src[len]); len++)
		dest[len] = src[len];
	dest[len] = '\0';
	return (size_t) len;
#endif
}

static inline bool
kpg_compat_interval_not_finite(const Interval *interval)
{
#if PG_VERSION_NUM >= 170000
	return INTERVAL_NOT_FINITE(interval);
#else
	(void) interval;
	return false;
#endif
}

static inline bool
kpg_compat_is_multirange(char typtype)
{
#if PG_VERSION_NUM >= 140000
	return typtype == TYPTYPE_MULTIRANGE;
#else
	(void) typtype;
	return false;
#endif
}

/* The range type of a multirange type. */
static inline TypeCacheEntry *
kpg_compat_multirange_range(Oid type)
{
#if PG_VERSION_NUM >= 140000
	return lookup_type_cache(type, TYPECACHE_MULTIRANGE_INFO)->rngtype;
#else
	(void) type;
	return NULL;
#endif
}

/* The ranges of a multirange value; how many there are is returned. */
static inline int32
kpg_compat_multirange_ranges(TypeCacheEntry *range_type, Datum value, RangeType ***ranges)
{
#if PG_VERSION_NUM >= 140000
	int32		nranges;

	multirange_deserialize(range_type, DatumGetMultirangeTypeP(value), &nranges, ranges);
	return nranges;
#else
	(void) range_type;
	(void) value;
	*ranges = NULL;
	return 0;
#endif
}

/* ---- progress ---- */

/* What this process reports of a command that it runs. */
typedef struct KpgCompatProgress
{
	ProgressCommandType command;
	Oid			target;
	int64		params[PGSTAT_NUM_PROGRESS_PARAM];
} KpgCompatProgress;

/* NULL unless the command is COPY, which reports nothing before PostgreSQL 14. */
static inline const int64 *
kpg_compat_progress_copy_params(void)
{
#if PG_VERSION_NUM >= 140000
	if (MyBEEntry != NULL && MyBEEntry->st_progress_command == PROGRESS_COMMAND_COPY)
		return MyBEEntry->st_progress_param;
#endif
	return NULL;
}

static inline void
kpg_compat_progress_start_copy(void)
{
#if PG_VERSION_NUM >= 140000
	pgstat_progress_start_command(PROGRESS_COMMAND_COPY, InvalidOid);
#endif
}

/* All parameters of the command under way. */
static inline void
kpg_compat_progress_set(const int64 *params)
{
#if PG_VERSION_NUM >= 140000
	int			index[PGSTAT_NUM_PROGRESS_PARAM];

	for (int i = 0; i < PGSTAT_NUM_PROGRESS_PARAM; i++)
		index[i] = i;
	pgstat_progress_update_multi_param(PGSTAT_NUM_PROGRESS_PARAM, index, params);
#else
	(void) params;
#endif
}

static inline void
kpg_compat_progress_save(KpgCompatProgress *saved)
{
	saved->command = PROGRESS_COMMAND_INVALID;
#if PG_VERSION_NUM >= 140000
	if (MyBEEntry == NULL)
		return;
	saved->command = MyBEEntry->st_progress_command;
	saved->target = MyBEEntry->st_progress_command_target;
	memcpy(saved->params, MyBEEntry->st_progress_param, sizeof(saved->params));
#endif
}

static inline void
kpg_compat_progress_restore(const KpgCompatProgress *saved)
{
#if PG_VERSION_NUM >= 140000
	if (saved->command == PROGRESS_COMMAND_INVALID)
		pgstat_progress_end_command();
	else
	{
		pgstat_progress_start_command(saved->command, saved->target);
		kpg_compat_progress_set(saved->params);
	}
#else
	(void) saved;
#endif
}

/* ---- queues between processes ---- */

/* What is sent is seen by the receiver at once. */
static inline shm_mq_result
kpg_compat_mq_send(shm_mq_handle *queue, Size size, const void *data)
{
#if PG_VERSION_NUM >= 150000
	return shm_mq_send(queue, size, data, false, true);
#else
	return shm_mq_send(queue, size, data, false);
#endif
}

/* ---- waiting ---- */

/* A wait event of ours; before PostgreSQL 17 all extensions share one. */
static inline uint32
kpg_compat_wait_event(const char *name)
{
#if PG_VERSION_NUM >= 170000
	return WaitEventExtensionNew(name);
#else
	(void) name;
	return PG_WAIT_EXTENSION;
#endif
}

#endif							/* KPG_COMPAT_H */
