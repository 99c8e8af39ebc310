/*
 * worker_job.c
 *	  The process of a job as others see it: its lock, its start, where it is.
 *
 * A job's process holds an advisory lock on its operation from before it
 * claims it until the process ends, whatever ends it.  An operation in state
 * running whose lock is free has lost its process.  Inside the transaction of
 * the export the process holds the lock for the transaction, too: a query may
 * call pg_advisory_unlock_all().
 *
 * Runs in any process that is connected to the operation's database.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/syscache.h"

#include "compat.h"
#include "lock.h"
#include "wait.h"
#include "worker.h"
#include "worker_internal.h"

/* A process between two transactions is in the next one soon. */
#define FIND_TIMEOUT_MS 1000
#define FIND_PAUSE_MS	2
/* Who probes the lock has it for a moment; another process of the same job, for long. */
#define LOCK_TIMEOUT_MS 1000
#define LOCK_PAUSE_MS	10

bool
kpg_worker_job_lock(const pg_uuid_t *id)
{
	int64		deadline = kpg_worker_now_ms() + LOCK_TIMEOUT_MS;
	LOCKTAG		tag;

	kpg_lock_tag(&tag, id, KPG_LOCK_JOB);
	while (LockAcquire(&tag, ExclusiveLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
	{
		if (kpg_worker_now_ms() >= deadline)
			return false;
		(void) kpg_wait_once(LOCK_PAUSE_MS, KPG_WAIT_WORKER);
	}
	return true;
}

void
kpg_worker_job_keep_lock(const pg_uuid_t *id)
{
	LOCKTAG		tag;

	kpg_lock_tag(&tag, id, KPG_LOCK_JOB);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
}

bool
kpg_worker_job_is_alive(const pg_uuid_t *id)
{
	LOCKTAG		tag;

	kpg_lock_tag(&tag, id, KPG_LOCK_JOB);
	if (LockAcquire(&tag, ShareLock, true, true) == LOCKACQUIRE_NOT_AVAIL)
		return true;
	(void) LockRelease(&tag, ShareLock, true);
	return false;
}

/* Only a process that is in a transaction is found. */
static PGPROC *
find_in_transaction(const pg_uuid_t *id)
{
	LOCKTAG		tag;
	VirtualTransactionId *holders;
	PGPROC	   *found = NULL;
	int			n;

	kpg_lock_tag(&tag, id, KPG_LOCK_JOB);
	holders = GetLockConflicts(&tag, ShareLock, &n);
	for (int i = 0; i < n && found == NULL; i++)
	{
		PGPROC	   *proc = kpg_compat_vxid_proc(holders[i]);
		const char *type = proc == NULL ? NULL : GetBackgroundWorkerTypeByPid(proc->pid);

		if (type != NULL && strcmp(type, KPG_JOB_TYPE) == 0)
			found = proc;
	}
	pfree(holders);
	return found;
}

PGPROC *
kpg_worker_job_proc(const pg_uuid_t *id)
{
	int64		deadline = kpg_worker_now_ms() + FIND_TIMEOUT_MS;
	PGPROC	   *proc;

	while ((proc = find_in_transaction(id)) == NULL)
	{
		if (!kpg_worker_job_is_alive(id) || kpg_worker_now_ms() >= deadline)
			return NULL;
		(void) kpg_wait_once(FIND_PAUSE_MS, KPG_WAIT_WORKER);
	}
	return proc;
}

KpgFailure *
kpg_worker_job_failure(int sqlstate, char *message, char *details, char *hint)
{
	KpgFailure *failure = palloc0(sizeof(KpgFailure));

	failure->error_code = pstrdup(unpack_sql_state(sqlstate));
	failure->message = message;
	failure->details = details;
	failure->hint = hint;
	return failure;
}

#define CONNECTED_AS "The query runs in a background process that is connected as the role that asked for it."

KpgFailure *
kpg_worker_job_refusal(Oid role)
{
	HeapTuple	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	bool		may_login;

	if (!HeapTupleIsValid(tuple))
		return kpg_worker_job_failure(ERRCODE_UNDEFINED_OBJECT, psprintf("role with OID %u does not exist", role),
							"The role that asked for the export was dropped before its query could run.", NULL);
	may_login = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin || KPG_COMPAT_BYPASS_LOGIN != 0;
	ReleaseSysCache(tuple);
	if (!may_login)
		return kpg_worker_job_failure(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
							psprintf("role \"%s\" is not permitted to log in", GetUserNameFromId(role, false)),
							CONNECTED_AS,
							"Use ALTER ROLE ... LOGIN, or kusto_ingest(), which runs the query itself.");
	if (kpg_compat_database_aclcheck(MyDatabaseId, role, ACL_CONNECT) != ACLCHECK_OK)
		return kpg_worker_job_failure(ERRCODE_INSUFFICIENT_PRIVILEGE,
							psprintf("role \"%s\" may not connect to database \"%s\"",
									 GetUserNameFromId(role, false), get_database_name(MyDatabaseId)),
							CONNECTED_AS,
							"Use GRANT CONNECT ON DATABASE, or kusto_ingest(), which runs the query itself.");
	return NULL;
}

void
kpg_worker_job_check(Oid role)
{
	KpgFailure *refusal = kpg_worker_job_refusal(role);
	const char *code;

	if (refusal == NULL)
		return;
	code = refusal->error_code;
	ereport(ERROR,
			(errcode(MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4])),
			 errmsg_internal("%s", refusal->message),
			 refusal->details != NULL ? errdetail_internal("%s", refusal->details) : 0,
			 refusal->hint != NULL ? errhint("%s", refusal->hint) : 0));
}

BackgroundWorkerHandle *
kpg_worker_job_register(const KpgWorkerJobStart *start, pid_t notify_pid)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;

	StaticAssertStmt(sizeof(KpgWorkerJobStart) <= BGW_EXTRALEN, "a job's start fits");

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_name, BGW_MAXLEN, "kusto_ingest job in database %u", MyDatabaseId);
	snprintf(worker.bgw_type, BGW_MAXLEN, KPG_JOB_TYPE);
	snprintf(worker.bgw_library_name, BGW_MAXLEN, "kusto_ingest");
	snprintf(worker.bgw_function_name, BGW_MAXLEN, "kpg_job_main");
	memcpy(worker.bgw_extra, start, sizeof(*start));
	worker.bgw_notify_pid = notify_pid;
	return RegisterDynamicBackgroundWorker(&worker, &handle) ? handle : NULL;
}
