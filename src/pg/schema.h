/*
 * schema.h
 *	  The Kusto table that fits a result: names and types of its columns.
 */
#ifndef KPG_SCHEMA_H
#define KPG_SCHEMA_H

#include "postgres.h"

#include "access/tupdesc.h"

#include "format.h"

/*
 * ".create-merge table ['name'] (['column']:type, ...)"; raises for names that
 * Kusto cannot have, for two columns of one name, and for no columns.  In the
 * server's encoding: whoever sends it converts it to UTF-8.
 */
extern char *kpg_schema_create_merge(TupleDesc desc, const char *table_name, KpgOnTypeError policy);

#endif							/* KPG_SCHEMA_H */
