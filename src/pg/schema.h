/*
 * schema.h
 *	  The Kusto table that fits a result: names and types of its columns.
 */
#ifndef KPG_SCHEMA_H
#define KPG_SCHEMA_H

#include "postgres.h"

#include "access/tupdesc.h"

#include "../core/buf.h"
#include "format.h"

/* Why Kusto cannot have a table or a column of this name, as a DETAIL; NULL: it can. */
extern const char *kpg_schema_name_problem(const char *name);

/* Raises when Kusto cannot have a table of this name. */
extern void kpg_schema_check_table_name(const char *name);

/* Append ['name'], converted to UTF-8. */
extern void kpg_schema_append_name(KcBuf *out, const char *name);

/*
 * ".create-merge table ['name'] (['column']:type, ...)"; raises for names that
 * Kusto cannot have, for two columns of one name, and for no columns.  In the
 * server's encoding: whoever sends it converts it to UTF-8.
 */
extern char *kpg_schema_create_merge(TupleDesc desc, const char *table_name, KpgOnTypeError policy);

#endif							/* KPG_SCHEMA_H */
