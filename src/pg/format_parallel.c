/*
 * format_parallel.c
 *	  Whether parallel workers may write the values of a type.
 *
 * What calls no function but our own and PostgreSQL's own is safe; of all else
 * the functions say it themselves.
 */
#include "postgres.h"

#include "access/tupdesc.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"

#include "format_internal.h"

static bool
is_safe(Oid function)
{
	return func_parallel(function) == PROPARALLEL_SAFE;
}

static bool
output_is_safe(Oid type)
{
	Oid			function;
	bool		varlena;

	getTypeOutputInfo(type, &function, &varlena);
	return is_safe(function);
}

static bool
record_is_safe(Oid type)
{
	TupleDesc	desc = lookup_rowtype_tupdesc_domain(type, -1, true);
	bool		safe = true;

	if (desc == NULL)
		return false;			/* known only when there is a value */
	for (int i = 0; i < desc->natts && safe; i++)
	{
		if (!TupleDescAttr(desc, i)->attisdropped)
			safe = kpg_format_parallel_safe(TupleDescAttr(desc, i)->atttypid);
	}
	ReleaseTupleDesc(desc);
	return safe;
}

/* Of a container: what it is made of. */
static bool
parts_are_safe(Oid type)
{
	char		typtype = get_typtype(type);
	Oid			element = get_element_type(type);

	if (OidIsValid(element))
		return kpg_format_parallel_safe(element);
	if (typtype == TYPTYPE_COMPOSITE)
		return record_is_safe(type);
	if (typtype == TYPTYPE_RANGE)
		return kpg_format_parallel_safe(get_range_subtype(type));
	if (kpg_compat_is_multirange(typtype))
		return kpg_format_parallel_safe(get_range_subtype(kpg_compat_multirange_range(type)->type_id));
	return false;				/* anyarray, record */
}

bool
kpg_format_parallel_safe(Oid type)
{
	KpgFormatter f;

	check_stack_depth();
	kpg_format_resolve(&f, NULL, type);
	if (f.nest != NULL)
		return parts_are_safe(f.type);
	if (f.text == kpg_format_json_cast && !is_safe(f.call.fn_oid))
		return false;
	/* It writes what on_type_error => 'string' lets through, if nothing else. */
	return output_is_safe(f.type);
}
