/*
 * worker_failure.c
 *	  What a failure means to the worker: the texts for an operation's row, and
 *	  whether it is worth another try.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "report.h"
#include "settings.h"
#include "worker_internal.h"

#define RETRY_BASE_MS	1000
#define RETRY_CAP_MS	60000

/*
 * To whoever waits for an answer a refused login is final.  Here it may be a
 * secret that has expired, and what has committed waits for the new one, as it
 * does for a user mapping that is missing.
 */
static KcError
as_passing(const KcError *err)
{
	KcError		passing = *err;

	if (err->status == KC_ERR_AUTH)
	{
		passing.status = KC_ERR_SERVICE;
		passing.permanent = false;
	}
	return passing;
}

void
kpg_worker_retry_begin(KcRetry *retry)
{
	static KcRetryPolicy policy = {.base_ms = RETRY_BASE_MS,.cap_ms = RETRY_CAP_MS};

	/* Zero would mean "no bound" to the core. */
	policy.max_attempts = kpg_post_timeout_s == 0 ? 1 : 0;
	policy.max_total_ms = (int64_t) kpg_post_timeout_s * 1000;
	if (retry->attempt == 0)
		kc_retry_begin(retry, &policy, &kc_clock_system);
}

bool
kpg_worker_retry_is_over(const KcRetry *retry)
{
	return retry->attempt > 0 &&
		kpg_worker_now_ms() - retry->started_ms >= (int64) kpg_post_timeout_s * 1000;
}

bool
kpg_worker_retry(KcRetry *retry, const KcError *err, int64 *due_ms)
{
	KcError		passing = as_passing(err);
	int64_t		wait_ms;

	kpg_worker_retry_begin(retry);
	if (!kc_retry_again(retry, &passing, &wait_ms))
		return false;
	*due_ms = kpg_worker_now_ms() + wait_ms;
	return true;
}

/*
 * Resources, operator intervention, locks, I/O and bugs may be over the next
 * time.  So may a missing server, user mapping or privilege: secrets are
 * changed by DROP and CREATE, servers renamed, and what has committed waits.
 */
static bool
is_passing(int sqlerrcode)
{
	if (sqlerrcode == ERRCODE_UNDEFINED_OBJECT || sqlerrcode == ERRCODE_INSUFFICIENT_PRIVILEGE)
		return true;
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_TO_CATEGORY(ERRCODE_TRANSACTION_ROLLBACK):
		case ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES):
		case ERRCODE_TO_CATEGORY(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE):
		case ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION):
		case ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR):
		case ERRCODE_TO_CATEGORY(ERRCODE_INTERNAL_ERROR):
			return true;
		default:
			return false;
	}
}

bool
kpg_worker_retry_from(KcRetry *retry, const ErrorData *error, int64 *due_ms)
{
	KcError		err;

	if (!is_passing(error->sqlerrcode))
		return false;
	(void) kc_error_set(&err, KC_ERR_SERVICE, "preparing", "an error of PostgreSQL");
	return kpg_worker_retry(retry, &err, due_ms);
}

static char *
copy(const char *text)
{
	return text == NULL || text[0] == '\0' ? NULL : pstrdup(text);
}

/* The code has a column of its own. */
static char *
without_code(char *detail, const char *code)
{
	size_t		len = strlen(code);

	if (detail == NULL || len == 0 || strncmp(detail, code, len) != 0)
		return detail;
	if (strncmp(detail + len, ": ", 2) == 0)
		return detail + len + 2;
	return detail;
}

KpgFailure *
kpg_worker_failure_of(const KcError *err, const char *database, const char *principal)
{
	KpgFailure *failure = palloc0(sizeof(KpgFailure));

	failure->utf8 = true;
	failure->error_code = err->code[0] != '\0' ? pstrdup(err->code)
		: pstrdup(unpack_sql_state(kpg_report_sqlstate(err)));
	failure->message = kpg_report_message(err);
	failure->details = without_code(kpg_report_detail(err), failure->error_code);
	failure->hint = kpg_report_hint_for(err, database, principal);
	failure->activity_id = err->activity_id[0] != '\0' ? pstrdup(err->activity_id) : NULL;
	return failure;
}

KpgFailure *
kpg_worker_failure_of_error(const ErrorData *error)
{
	KpgFailure *failure = palloc0(sizeof(KpgFailure));

	failure->error_code = pstrdup(unpack_sql_state(error->sqlerrcode));
	failure->message = copy(error->message);
	failure->details = copy(error->detail);
	failure->hint = copy(error->hint);
	return failure;
}

KpgFailure *
kpg_worker_failure(WorkOperation *op, const KcError *err)
{
	MemoryContext old = MemoryContextSwitchTo(op->scratch);
	const char *principal = op->session != NULL ? op->session->principal : NULL;
	KpgFailure *failure = kpg_worker_failure_of(err, op->row->database, principal);

	MemoryContextSwitchTo(old);
	return failure;
}

KpgFailure *
kpg_worker_failure_from(WorkOperation *op, const ErrorData *error)
{
	MemoryContext old = MemoryContextSwitchTo(op->scratch);
	KpgFailure *failure = kpg_worker_failure_of_error(error);

	MemoryContextSwitchTo(old);
	return failure;
}
