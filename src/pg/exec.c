/*
 * exec.c
 *	  Run exactly one query of the user's into a DestReceiver, as COPY (query)
 *	  does.
 *
 * Parse analysis locks what the query reads, and the locks stay until the end
 * of the transaction, so a plan is still good when it is run.  Raises whatever
 * the query raises; the error's context shows the query.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/executor.h"
#include "parser/parse_relation.h"
#include "tcop/cmdtag.h"
#include "tcop/utility.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "exec_internal.h"

#define QUERY_HINT "Use SELECT, VALUES, TABLE or WITH, or INSERT, UPDATE, DELETE or MERGE with RETURNING."

/* A position in the query is none in the statement that called us. */
static void
query_error_context(void *arg)
{
	const char *text = arg;
	int			position = geterrposition();

	if (position > 0)
	{
		errposition(0);
		internalerrposition(position);
		internalerrquery(text);
	}
	else
		errcontext("SQL statement \"%s\"", text);
}

static RawStmt *
parse_single(const char *text)
{
	List	   *statements = pg_parse_query(text);

	if (statements == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("query is empty"),
				 errhint(QUERY_HINT)));
	if (list_length(statements) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("query consists of %d statements", list_length(statements)),
				 errhint("Only one query can be exported at a time.")));
	return linitial_node(RawStmt, statements);
}

/* Rules may have turned the query into none or into several. */
static Query *
single_rewritten(List *rewritten)
{
	ListCell   *lc;

	if (list_length(rewritten) == 1)
		return linitial_node(Query, rewritten);
	if (rewritten == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("DO INSTEAD NOTHING rules are not supported for an exported query")));
	foreach(lc, rewritten)
	{
		Query	   *query = lfirst_node(Query, lc);

		if (query->querySource == QSRC_QUAL_INSTEAD_RULE)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("conditional DO INSTEAD rules are not supported for an exported query")));
		if (query->querySource == QSRC_NON_INSTEAD_RULE)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("DO ALSO rules are not supported for an exported query")));
	}
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("multi-statement DO INSTEAD rules are not supported for an exported query")));
	pg_unreachable();
}

static void
check_kind(Query *query)
{
	if (query->utilityStmt != NULL && IsA(query->utilityStmt, CreateTableAsStmt) &&
		castNode(CreateTableAsStmt, query->utilityStmt)->is_select_into)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("SELECT INTO cannot be exported"),
				 errhint("Leave out INTO.")));
	if (query->utilityStmt != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s cannot be exported", CreateCommandName(query->utilityStmt)),
				 errhint(QUERY_HINT)));
	if (query->commandType != CMD_SELECT && query->returningList == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s without RETURNING has no rows to export", CreateCommandName((Node *) query)),
				 errhint("Add a RETURNING clause.")));
}

KpgQuery *
kpg_exec_prepare(const char *text)
{
	ErrorContextCallback callback;
	KpgQuery   *result = palloc(sizeof(KpgQuery));
	Query	   *query;

	callback.callback = query_error_context;
	callback.arg = unconstify(char *, text);
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	query = single_rewritten(kpg_compat_analyze_and_rewrite(parse_single(text), text));
	check_kind(query);
	result->text = text;
	result->shown = text;
	result->plan = pg_plan_query(query, text, CURSOR_OPT_PARALLEL_OK, NULL);
	result->desc = BlessTupleDesc(ExecCleanTypeFromTL(result->plan->planTree->targetlist));

	error_context_stack = callback.previous;
	return result;
}

TupleDesc
kpg_exec_check(const char *text)
{
	ErrorContextCallback callback;
	TupleDesc	desc;
	Query	   *query;

	callback.callback = query_error_context;
	callback.arg = unconstify(char *, text);
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	query = single_rewritten(kpg_compat_analyze_and_rewrite(parse_single(text), text));
	check_kind(query);
	if (isQueryUsingTempRelation(query))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a query in the background cannot use temporary tables"),
				 errdetail("It runs in another session, which does not have them."),
				 errhint("Use kusto_ingest().")));
	desc = ExecCleanTypeFromTL(query->commandType == CMD_SELECT ? query->targetList : query->returningList);

	error_context_stack = callback.previous;
	return desc;
}

TupleDesc
kpg_exec_tupdesc(KpgQuery *query)
{
	return query->desc;
}

void
kpg_exec_hide(KpgQuery *query, const char *shown)
{
	query->shown = shown;
	/* Where the statement is in its text: nobody must look there. */
	query->plan->stmt_location = -1;
	query->plan->stmt_len = 0;
}

uint64
kpg_exec_run(KpgQuery *query, DestReceiver *dest)
{
	ErrorContextCallback callback;
	QueryDesc  *desc;
	uint64		processed;

	callback.callback = query_error_context;
	callback.arg = unconstify(char *, query->text);
	callback.previous = error_context_stack;
	error_context_stack = &callback;

	/* See what this transaction has done so far, this statement included. */
	CommandCounterIncrement();
	PushCopiedSnapshot(GetActiveSnapshot());
	UpdateActiveSnapshotCommandId();

	desc = CreateQueryDesc(query->plan, query->shown, GetActiveSnapshot(), InvalidSnapshot,
						   dest, NULL, NULL, 0);
	ExecutorStart(desc, 0);
	kpg_compat_executor_run(desc);
	processed = desc->estate->es_processed;
	ExecutorFinish(desc);
	ExecutorEnd(desc);
	FreeQueryDesc(desc);
	PopActiveSnapshot();

	/* Let whoever comes next see what the query did. */
	CommandCounterIncrement();

	error_context_stack = callback.previous;
	return processed;
}
