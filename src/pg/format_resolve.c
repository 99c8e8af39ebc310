/*
 * format_resolve.c
 *	  Which formatter a type gets.
 *
 * Types of PostgreSQL itself stand in a table.  Of all others the structure
 * decides (array, composite, range), then a cast to json, as in to_json(),
 * then a storage that is text, and at last the output function.
 */
#include "postgres.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "parser/parse_coerce.h"
#include "utils/lsyscache.h"

#include "format_internal.h"

typedef struct TypeEntry
{
	Oid			type;
	KpgShape	shape;
	const char *kusto_type;
	bool		can_misfit;
	KpgPutFn	put;
	KpgTextFn	text;
	KpgFieldFn	field;
	int			pins;
} TypeEntry;

#define NUMBER(type, kusto_type, can_misfit, put) \
	{type, KPG_SHAPE_NUMBER, kusto_type, can_misfit, put, NULL, NULL, 0}
#define WORD(type, kusto_type, can_misfit, put) \
	{type, KPG_SHAPE_WORD, kusto_type, can_misfit, put, NULL, NULL, 0}
#define TEXT(type, text, field) \
	{type, KPG_SHAPE_TEXT, "string", false, NULL, text, field, 0}
#define JSON(type, text, field) \
	{type, KPG_SHAPE_JSON, "dynamic", false, NULL, text, field, 0}
/* Written by the output function, which looks at these settings only. */
#define OUTPUT(type, pins) \
	{type, KPG_SHAPE_TEXT, "string", false, NULL, kpg_format_output, NULL, pins}

static const TypeEntry type_entries[] = {
	NUMBER(BOOLOID, "bool", false, kpg_format_bool),
	NUMBER(INT2OID, "int", false, kpg_format_int2),
	NUMBER(INT4OID, "int", false, kpg_format_int4),
	NUMBER(INT8OID, "long", false, kpg_format_int8),
	NUMBER(OIDOID, "long", false, kpg_format_uint4),
	NUMBER(XIDOID, "long", false, kpg_format_uint4),
	NUMBER(CIDOID, "long", false, kpg_format_uint4),
	NUMBER(XID8OID, "long", true, kpg_format_xid8),
	NUMBER(FLOAT4OID, "real", true, kpg_format_float4),
	NUMBER(FLOAT8OID, "real", true, kpg_format_float8),
	{NUMERICOID, KPG_SHAPE_NUMBER, "decimal", true, kpg_format_numeric, kpg_format_numeric_text, NULL, 0},
	NUMBER(CASHOID, "decimal", false, kpg_format_money),

	WORD(DATEOID, "datetime", true, kpg_format_date),
	WORD(TIMESTAMPOID, "datetime", true, kpg_format_timestamp),
	WORD(TIMESTAMPTZOID, "datetime", true, kpg_format_timestamp),
	WORD(TIMEOID, "timespan", false, kpg_format_time),
	WORD(INTERVALOID, "timespan", true, kpg_format_interval),
	WORD(TIMETZOID, "string", false, kpg_format_timetz),
	WORD(UUIDOID, "guid", false, kpg_format_uuid),

	TEXT(TEXTOID, kpg_format_varlena, kpg_format_varlena_field),
	TEXT(VARCHAROID, kpg_format_varlena, kpg_format_varlena_field),
	TEXT(BPCHAROID, kpg_format_varlena, kpg_format_varlena_field),
	TEXT(NAMEOID, kpg_format_name, NULL),
	TEXT(BYTEAOID, kpg_format_bytea, kpg_format_bytea_field),
	JSON(JSONOID, kpg_format_varlena, kpg_format_varlena_field),
	JSON(JSONBOID, kpg_format_jsonb, kpg_format_jsonb_field),

	/* xml_out drops the encoding that an XML declaration names. */
	OUTPUT(XMLOID, KPG_PIN_NONE),
	OUTPUT(CHAROID, KPG_PIN_NONE),
	OUTPUT(INETOID, KPG_PIN_NONE),
	OUTPUT(CIDROID, KPG_PIN_NONE),
	OUTPUT(MACADDROID, KPG_PIN_NONE),
	OUTPUT(MACADDR8OID, KPG_PIN_NONE),
	OUTPUT(BITOID, KPG_PIN_NONE),
	OUTPUT(VARBITOID, KPG_PIN_NONE),
	OUTPUT(TSVECTOROID, KPG_PIN_NONE),
	OUTPUT(TSQUERYOID, KPG_PIN_NONE),
	OUTPUT(JSONPATHOID, KPG_PIN_NONE),
	OUTPUT(PG_LSNOID, KPG_PIN_NONE),
	OUTPUT(TIDOID, KPG_PIN_NONE),
	OUTPUT(UNKNOWNOID, KPG_PIN_NONE),
	OUTPUT(CSTRINGOID, KPG_PIN_NONE),
	OUTPUT(VOIDOID, KPG_PIN_NONE),
	OUTPUT(POINTOID, KPG_PIN_FLOAT),
	OUTPUT(LINEOID, KPG_PIN_FLOAT),
	OUTPUT(LSEGOID, KPG_PIN_FLOAT),
	OUTPUT(BOXOID, KPG_PIN_FLOAT),
	OUTPUT(PATHOID, KPG_PIN_FLOAT),
	OUTPUT(POLYGONOID, KPG_PIN_FLOAT),
	OUTPUT(CIRCLEOID, KPG_PIN_FLOAT),
	OUTPUT(REGCLASSOID, KPG_PIN_NAMES),
	OUTPUT(REGTYPEOID, KPG_PIN_NAMES)
};

static const TypeEntry enum_entry = OUTPUT(InvalidOid, KPG_PIN_NONE);
static const TypeEntry text_entry = TEXT(InvalidOid, kpg_format_varlena, kpg_format_varlena_field);
static const TypeEntry json_cast_entry =
{InvalidOid, KPG_SHAPE_JSON, "dynamic", false, NULL, kpg_format_json_cast, NULL, KPG_PIN_ALL};
static const TypeEntry other_entry = OUTPUT(InvalidOid, KPG_PIN_ALL);

static const TypeEntry *
find_entry(Oid type)
{
	for (size_t i = 0; i < lengthof(type_entries); i++)
	{
		if (type_entries[i].type == type)
			return &type_entries[i];
	}
	return NULL;
}

/* NULL: not a container. */
static KpgNestFn
find_nest(Oid type, char typtype)
{
	if (type == RECORDOID || typtype == TYPTYPE_COMPOSITE)
		return kpg_format_record;
	if (typtype == TYPTYPE_RANGE)
		return kpg_format_range;
	if (kpg_compat_is_multirange(typtype))
		return kpg_format_multirange;
	/* anyarray is the type of some columns of pg_stats. */
	if (type == ANYARRAYOID || OidIsValid(get_element_type(type)))
		return kpg_format_array;
	return NULL;
}

/*
 * The function of a cast from type to json.  Only types that are not built in
 * are asked, as in to_json(): hstore has one, and PostGIS's geometry, to GeoJSON.
 */
static Oid
find_json_cast(Oid type)
{
	Oid			function;

	if (type < FirstNormalObjectId ||
		find_coercion_pathway(JSONOID, type, COERCION_EXPLICIT, &function) != COERCION_PATH_FUNC ||
		get_func_nargs(function) != 1)
		return InvalidOid;
	return function;
}

static void
use_entry(KpgFormatter *f, const TypeEntry *entry)
{
	f->shape = entry->shape;
	f->kusto_type = entry->kusto_type;
	f->can_misfit = entry->can_misfit;
	f->put = entry->put;
	f->text = entry->text;
	f->field = entry->field;
	f->pins = entry->pins;
}

/*
 * Fill *f for values of type.  What it needs beyond *f lives as long as the
 * current memory context, which must outlive *f.
 */
void
kpg_format_resolve(KpgFormatter *f, KpgRowFormat *format, Oid type)
{
	const TypeEntry *entry;
	Oid			cast;
	char		typtype;

	memset(f, 0, sizeof(*f));
	f->format = format;
	f->context = CurrentMemoryContext;
	f->type = getBaseType(type);

	entry = find_entry(f->type);
	if (entry != NULL)
	{
		use_entry(f, entry);
		if (f->type == CASHOID)
			f->scale = kpg_format_money_scale();
		return;
	}

	typtype = get_typtype(f->type);
	f->nest = find_nest(f->type, typtype);
	if (f->nest != NULL)
	{
		f->shape = KPG_SHAPE_JSON;
		f->kusto_type = "dynamic";
		f->field = f->nest == kpg_format_array ? kpg_format_array_field : NULL;
	}
	else if (typtype == TYPTYPE_ENUM)
		use_entry(f, &enum_entry);
	else if (OidIsValid(cast = find_json_cast(f->type)))
	{
		use_entry(f, &json_cast_entry);
		fmgr_info_cxt(cast, &f->call, f->context);
	}
	else if (f->type >= FirstNormalObjectId && IsBinaryCoercible(f->type, TEXTOID))
		use_entry(f, &text_entry);
	else
		use_entry(f, &other_entry);
}
