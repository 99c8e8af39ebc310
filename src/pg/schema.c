/*
 * schema.c
 *	  The .create-merge command for a result's columns.
 *
 * Names keep their case.  Kusto allows letters, digits, '_',
 * ' ', '.' and '-' in them, 1 to 1024 characters, and reserves those that begin
 * or end with two underscores
 * (learn.microsoft.com/kusto/query/schema-entities/entity-names).
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "../core/text.h"
#include "alloc.h"
#include "schema.h"

#define MAX_NAME_CHARACTERS 1024

/* A character outside ASCII may be a letter; Kusto knows, and will say. */
static bool
is_name_byte(char c)
{
	return IS_HIGHBIT_SET(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
		(c >= '0' && c <= '9') || (c != '\0' && strchr("_ .-", c) != NULL);
}

const char *
kpg_schema_name_problem(const char *name)
{
	size_t		len = strlen(name);

	if (len == 0)
		return "The name is empty.";
	if (pg_mbstrlen(name) > MAX_NAME_CHARACTERS)
		return psprintf("The name has more than %d characters.", MAX_NAME_CHARACTERS);
	for (size_t i = 0; i < len; i++)
	{
		if (!is_name_byte(name[i]))
			return "Kusto allows letters, digits, underscores, spaces, dots and dashes in a name.";
	}
	if (len >= 2 && (strncmp(name, "__", 2) == 0 || strcmp(name + len - 2, "__") == 0))
		return "Kusto reserves names that begin or end with two underscores.";
	return NULL;
}

/* The quoting is the core's, hence in UTF-8. */
void
kpg_schema_append_name(KcBuf *out, const char *name)
{
	char	   *utf8 = pg_server_to_any(name, strlen(name), PG_UTF8);

	kc_text_kql_name(out, kc_slice(utf8));
}

void
kpg_schema_check_table_name(const char *name)
{
	const char *problem = kpg_schema_name_problem(name);

	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("a Kusto table cannot be named \"%s\"", name),
				 errdetail_internal("%s", problem)));
}

static void
check_column_name(TupleDesc desc, int index)
{
	const char *name = NameStr(TupleDescAttr(desc, index)->attname);
	const char *problem = kpg_schema_name_problem(name);

	if (problem != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("a Kusto column cannot be named \"%s\"", name),
				 errdetail_internal("%s", problem),
				 errhint("Give the column another name with AS.")));

	for (int i = 0; i < index; i++)
	{
		Form_pg_attribute other = TupleDescAttr(desc, i);

		if (!other->attisdropped && strcmp(NameStr(other->attname), name) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_DUPLICATE_COLUMN),
					 errmsg("column name \"%s\" appears more than once in the result", name),
					 errhint("Give each column a name of its own with AS.")));
	}
}

static int
append_columns(KcBuf *out, TupleDesc desc, KpgOnTypeError policy)
{
	int			ncolumns = 0;

	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->attisdropped)
			continue;
		check_column_name(desc, i);
		if (ncolumns++ > 0)
			kc_buf_str(out, ", ");
		kpg_schema_append_name(out, NameStr(att->attname));
		kc_buf_char(out, ':');
		kc_buf_str(out, kpg_format_kusto_type(att->atttypid, att->atttypmod, policy));
	}
	return ncolumns;
}

char *
kpg_schema_create_merge(TupleDesc desc, const char *table_name, KpgOnTypeError policy)
{
	KcBuf		out;

	kpg_schema_check_table_name(table_name);
	kc_buf_init(&out, kpg_alloc_create(CurrentMemoryContext), KC_BUF_UNLIMITED);
	kc_buf_str(&out, ".create-merge table ");
	kpg_schema_append_name(&out, table_name);
	kc_buf_str(&out, " (");
	if (append_columns(&out, desc, policy) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("the query returns no columns"),
				 errhint("A Kusto table has at least one column.")));
	kc_buf_char(&out, ')');
	if (out.failed != KC_OK)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	return pg_any_to_server(out.data, out.len, PG_UTF8);
}
