/*
 * version.c
 *	  Is this library new enough for the extension's SQL?
 *
 * pg_extension has no syscache that would tell of changes, so it is read once
 * in each transaction: one probe of an index.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

#include "compat.h"
#include "version.h"

static bool is_preloaded;

bool
kpg_version_is_preloaded(void)
{
	return is_preloaded;
}

void
kpg_version_set_preloaded(bool preloaded)
{
	is_preloaded = preloaded;
}

/* Skips a number and its leading zeros; its digits are then from *p to the result. */
static const char *
number_end(const char **p)
{
	const char *end;

	while (**p == '0')
		(*p)++;
	for (end = *p; *end >= '0' && *end <= '9'; end++)
		;
	return end;
}

/* Without arithmetic a number may be of any length. */
static int
compare_numbers(const char **a, const char **b)
{
	const char *a_end = number_end(a);
	const char *b_end = number_end(b);
	ptrdiff_t	a_len = a_end - *a;
	ptrdiff_t	b_len = b_end - *b;
	int			order = a_len != b_len ? (a_len > b_len) - (a_len < b_len) : memcmp(*a, *b, (size_t) a_len);

	*a = a_end;
	*b = b_end;
	return order;
}

int
kpg_version_compare(const char *a, const char *b)
{
	for (;;)
	{
		int			order = compare_numbers(&a, &b);

		if (order != 0)
			return order;
		/* What is no number compares as it is: 1.0, 1.0-rc, 1.0.1 rise. */
		if (*a != *b || *a == '\0')
			return (unsigned char) *a - (unsigned char) *b;
		a++;
		b++;
	}
}

/* extversion of the installed extension, in the current context; NULL: none. */
static char *
installed_version(void)
{
	Relation	relation = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ,
				CStringGetDatum("kusto_ingest"));
	scan = systable_beginscan(relation, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, Anum_pg_extension_extversion,
										 RelationGetDescr(relation), &isnull);

		if (!isnull)
			version = TextDatumGetCString(value);
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return version;
}

bool
kpg_version_is_served(char **installed)
{
	static LocalTransactionId served_in = InvalidLocalTransactionId;
	LocalTransactionId current = kpg_compat_local_xid();

	if (current != InvalidLocalTransactionId && served_in == current)
		return true;
	*installed = installed_version();
	if (*installed != NULL && kpg_version_compare(*installed, KPG_VERSION) > 0)
		return false;
	if (*installed != NULL)
		pfree(*installed);
	*installed = NULL;
	served_in = current;
	return true;
}

const char *
kpg_version_hint(void)
{
	return is_preloaded ?
		"Restart the server, so that it loads the new library." :
		"Connect again, so that the new library is loaded.";
}

void
kpg_version_check(void)
{
	char	   *installed;

	if (kpg_version_is_served(&installed))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the loaded library of kusto_ingest is older than the installed extension"),
			 errdetail("The library is of version %s, the extension of version %s.", KPG_VERSION, installed),
			 errhint("%s", kpg_version_hint())));
}
