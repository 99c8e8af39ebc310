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
 * Kusto cannot have, and for two columns of one name.
 */
extern char *kpg_schema_create_merge(TupleDesc desc, const char *table_name, KpgOnTypeError policy);

#endif							/* KPG_SCHEMA_H */
