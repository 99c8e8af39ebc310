/*
 * operations_plan.c
 *	  Running the constant statements on our tables.
 *
 * Each is prepared once in a process and its plan kept: to parse and plan such
 * a statement costs several times what it costs to run it.  PostgreSQL replans
 * when the tables have changed; operations.c sees to it that a plan made for
 * empty tables is right for full ones.
 *
 * A statement is known by the address of its text.
 */
#include "postgres.h"

#include "utils/hsearch.h"

#include "operations_internal.h"

#define SQL_ARGS_MAX 26

typedef struct KeptPlan
{
	const char *sql;			/* must be first */
	SPIPlanPtr	plan;
#ifdef USE_ASSERT_CHECKING
	int			ntypes;
	Oid			types[SQL_ARGS_MAX];
#endif
} KeptPlan;

static HTAB *plans;

static void
initialize(void)
{
	HASHCTL		control;

	memset(&control, 0, sizeof(control));
	control.keysize = sizeof(const char *);
	control.entrysize = sizeof(KeptPlan);
	plans = hash_create("kusto_ingest statements", 64, &control, HASH_ELEM | HASH_BLOBS);
}

static SPIPlanPtr
plan_of(const char *sql, Oid *types, int ntypes)
{
	KeptPlan   *kept;
	SPIPlanPtr	plan;

	if (plans == NULL)
		initialize();
	kept = hash_search(plans, &sql, HASH_FIND, NULL);
	if (kept != NULL)
	{
		Assert(kept->ntypes == ntypes && memcmp(kept->types, types, sizeof(Oid) * (Size) ntypes) == 0);
		return kept->plan;
	}

	plan = SPI_prepare(sql, ntypes, types);
	if (plan == NULL)
		elog(ERROR, "SPI gave %s for: %s", SPI_result_code_string(SPI_result), sql);
	/* Before it is kept, lest running out of memory leave it to nobody. */
	kept = hash_search(plans, &sql, HASH_ENTER, NULL);
	kept->plan = plan;
#ifdef USE_ASSERT_CHECKING
	kept->ntypes = ntypes;
	memcpy(kept->types, types, sizeof(Oid) * (Size) ntypes);
#endif
	(void) SPI_keepplan(plan);
	return plan;
}

uint64
kpg_operations_execute(const char *sql, const KpgSqlArg *args, int nargs, int expected, long limit)
{
	Oid			types[SQL_ARGS_MAX];
	Datum		values[SQL_ARGS_MAX];
	char		nulls[SQL_ARGS_MAX] = {0};
	int			rc;

	Assert(nargs <= SQL_ARGS_MAX);
	for (int i = 0; i < nargs; i++)
	{
		types[i] = args[i].type;
		values[i] = args[i].value;
		nulls[i] = args[i].isnull ? 'n' : ' ';
	}
	rc = SPI_execute_plan(plan_of(sql, types, nargs), values, nulls, false, limit);
	if (rc != expected)
		elog(ERROR, "SPI gave %s instead of %s for: %s", SPI_result_code_string(rc),
			 SPI_result_code_string(expected), sql);
	return SPI_processed;
}
