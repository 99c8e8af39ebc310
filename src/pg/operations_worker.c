/*
 * operations_worker.c
 *	  What the worker tells of itself: the one row of kusto.worker, for the
 *	  view kusto.workers.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/timestamp.h"

#include "operations.h"
#include "operations_internal.h"

/* The last error outlives the worker that met it. */
static const char tell_begin[] =
"INSERT INTO kusto.worker AS w (pid, started_at) VALUES ($1, $2)"
" ON CONFLICT (only_row) DO UPDATE SET pid = EXCLUDED.pid, started_at = EXCLUDED.started_at";

static const char tell_error[] =
"INSERT INTO kusto.worker AS w (pid, started_at, last_error, last_error_at) VALUES ($1, $2, $3, $2)"
" ON CONFLICT (only_row) DO UPDATE SET last_error = EXCLUDED.last_error,"
" last_error_at = EXCLUDED.last_error_at";

void
kpg_operations_tell_worker(int pid, TimestampTz at, const char *error)
{
	KpgSqlScope scope;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_arg(INT4OID, Int32GetDatum(pid)),
			kpg_operations_arg(TIMESTAMPTZOID, TimestampTzGetDatum(at)),
			kpg_operations_text_arg(error)
		};

		(void) kpg_operations_execute(error == NULL ? tell_begin : tell_error, args,
									  error == NULL ? 2 : 3, SPI_OK_INSERT, 0);
	}
	kpg_operations_leave(&scope);
}
