/*
 * outbox_dead.c
 *	  Row changes that Kusto has refused: kusto.dead_letter.
 *
 * The worker keeps them, in the transaction of the mark that goes past them.
 * Whoever has the privileges of their owner has them sent again or gives them
 * up; nothing else takes them away.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "../core/text.h"
#include "outbox.h"
#include "outbox_internal.h"
#include "report.h"

static const char insert_letter[] =
"INSERT INTO kusto.dead_letter (id, capture, relation_name, owner, server, database, table_name,"
" first_seq, rows, data, created_at, error_code, error_message, details, hint, activity_id,"
" system_identifier, database_oid)"
" VALUES ($1, $2, $3, $4, $5::name, $6, $7, $8, $9, $10, clock_timestamp(), $11, $12, $13, $14, $15,"
" $16, $17)";

static const char select_owner[] =
"SELECT d.owner, d.system_identifier = $2 AND d.database_oid = $3"
" FROM kusto.dead_letter d WHERE d.id = $1";

static const char lock_letter[] =
"SELECT d.owner, d.server, d.database, d.table_name, d.rows, d.data"
" FROM kusto.dead_letter d WHERE d.id = $1 FOR UPDATE";

static const char delete_letter[] = "DELETE FROM kusto.dead_letter WHERE id = $1";

/* ---- keeping ---- */

static bytea *
bytea_of(KcSlice data)
{
	bytea	   *value;

	if (data.len > MaxAllocSize - VARHDRSZ)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("row changes of %zu bytes are too large for kusto.dead_letter", data.len)));
	value = palloc(data.len + VARHDRSZ);
	SET_VARSIZE(value, data.len + VARHDRSZ);
	memcpy(VARDATA(value), data.data, data.len);
	return value;
}

static KpgSqlArg
said_arg(const char *text, bool utf8)
{
	return kpg_operations_text_arg(text != NULL && utf8 ? kpg_report_text(text) : text);
}

void
kpg_outbox_bury(const KpgCapture *capture, const KpgSlice *slice, KcSlice data,
				const KpgFailure *failure, pg_uuid_t *id)
{
	KpgSqlScope scope;
	KcUuid		uuid;
	KcError		err;

	kpg_check(kc_uuid_random(&uuid, &err), &err);
	memcpy(id->data, uuid.bytes, sizeof(id->data));
	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_uuid_arg(id),
			kpg_operations_arg(INT4OID, Int32GetDatum(capture->id)),
			kpg_operations_text_arg(capture->relation_name),
			kpg_operations_arg(OIDOID, ObjectIdGetDatum(capture->owner)),
			kpg_operations_text_arg(capture->server),
			kpg_operations_text_arg(capture->database),
			kpg_operations_text_arg(capture->table_name),
			kpg_operations_arg(INT8OID, Int64GetDatum(slice->first_seq)),
			kpg_operations_arg(INT8OID, Int64GetDatum(slice->rows)),
			kpg_operations_arg(BYTEAOID, PointerGetDatum(bytea_of(data))),
			said_arg(failure->error_code, failure->utf8),
			said_arg(failure->message != NULL ? failure->message : "Kusto has refused the row changes", failure->utf8),
			said_arg(failure->details, failure->utf8),
			kpg_operations_text_arg(failure->hint),
			said_arg(failure->activity_id, failure->utf8),
			kpg_operations_cluster_arg(),
			kpg_operations_database_arg()
		};

		(void) kpg_operations_execute(insert_letter, args, lengthof(args), SPI_OK_INSERT, 0);
	}
	kpg_operations_leave(&scope);
}

/* ---- steering ---- */

static char *
id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

/* Inside a scope; in context. */
static void
read_letter(MemoryContext context, const pg_uuid_t *id, KpgDeadLetter *letter)
{
	MemoryContext old;
	bytea	   *data;
	bool		isnull;

	letter->id = *id;
	letter->owner = DatumGetObjectId(kpg_operations_value(0, 1, &isnull));
	letter->server = kpg_operations_string(context, 0, 2);
	letter->database = kpg_operations_string(context, 0, 3);
	letter->table_name = kpg_operations_string(context, 0, 4);
	letter->rows = DatumGetInt64(kpg_operations_value(0, 5, &isnull));
	old = MemoryContextSwitchTo(context);
	data = DatumGetByteaPCopy(kpg_operations_value(0, 6, &isnull));
	MemoryContextSwitchTo(old);
	letter->data = (KcSlice) {.data = VARDATA(data),.len = VARSIZE(data) - VARHDRSZ};
}

/* That one exists is not for everybody to know: false. */
static bool
may_steer(const pg_uuid_t *id, Oid owner, bool foreign)
{
	if (!has_privs_of_role(GetUserId(), owner))
	{
		if (has_privs_of_role(GetUserId(), get_role_oid("pg_read_all_stats", false)))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied for dead letter %s", id_text(id)),
					 errdetail("Only the owner of the captured table, and roles with its privileges, may do that.")));
		return false;
	}
	if (foreign)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("dead letter %s was recorded by another cluster or database", id_text(id)),
				 errdetail("This one is a copy, or was upgraded, and leaves it alone."),
				 errhint("If this database has taken the other's place, adopt it as docs/operations.md tells.")));
	return true;
}

/* In a snapshot of now, and without a lock, which only those may have who may steer it. */
static bool
find_steerable(const pg_uuid_t *id)
{
	KpgSqlScope scope;
	Oid			owner = InvalidOid;
	bool		ours = false;
	bool		found;
	bool		isnull;

	kpg_operations_enter(&scope);
	{
		const KpgSqlArg args[] = {
			kpg_operations_uuid_arg(id),
			kpg_operations_cluster_arg(),
			kpg_operations_database_arg()
		};

		found = kpg_outbox_select(select_owner, args, lengthof(args)) == 1;
	}
	if (found)
	{
		owner = DatumGetObjectId(kpg_operations_value(0, 1, &isnull));
		ours = DatumGetBool(kpg_operations_value(0, 2, &isnull));
	}
	kpg_operations_leave(&scope);
	return found && may_steer(id, owner, !ours);
}

bool
kpg_outbox_find_dead(const pg_uuid_t *id, KpgDeadLetter *letter)
{
	MemoryContext context = CurrentMemoryContext;
	KpgSqlScope scope;
	KpgSqlArg	arg;
	bool		found;

	if (!find_steerable(id))
		return false;
	kpg_operations_enter(&scope);
	arg = kpg_operations_uuid_arg(id);
	/* Somebody else may have been faster. */
	found = kpg_operations_execute(lock_letter, &arg, 1, SPI_OK_SELECT, 0) == 1;
	if (found)
		read_letter(context, id, letter);
	kpg_operations_leave(&scope);
	return found;
}

void
kpg_outbox_forget_dead(const pg_uuid_t *id)
{
	KpgSqlScope scope;
	KpgSqlArg	arg = kpg_operations_uuid_arg(id);

	kpg_operations_enter(&scope);
	if (kpg_operations_execute(delete_letter, &arg, 1, SPI_OK_DELETE, 0) != 1)
		elog(ERROR, "dead letter %s is gone", id_text(id));
	kpg_operations_leave(&scope);
}
