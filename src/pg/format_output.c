/*
 * format_output.c
 *	  Types that only their own functions can write.
 *
 * Output functions look at settings of the session.  Those that we know not
 * to are called as they are; around all others the settings have fixed values,
 * for the rest of the row and no longer: the query goes on between two rows,
 * and must see the user's.  When an error is raised meanwhile, the end of the
 * (sub)transaction takes the settings back.
 */
#include "postgres.h"

#include "utils/guc.h"
#include "utils/lsyscache.h"

#include "format_internal.h"

typedef struct Pin
{
	KpgPins		group;
	const char *name;
	const char *value;
} Pin;

static const Pin pins[] = {
	{KPG_PIN_FLOAT, "extra_float_digits", "1"},
	{KPG_PIN_NAMES, "search_path", "pg_catalog"},
	{KPG_PIN_NAMES, "quote_all_identifiers", "off"},
	{KPG_PIN_REST, "DateStyle", "ISO, MDY"},
	{KPG_PIN_REST, "IntervalStyle", "postgres"},
	{KPG_PIN_REST, "TimeZone", "UTC"},
	{KPG_PIN_REST, "bytea_output", "hex"},
	{KPG_PIN_REST, "lc_monetary", "C"},
	{KPG_PIN_REST, "lc_numeric", "C"},
	{KPG_PIN_REST, "lc_time", "C"}
};

static void
pin(KpgRowFormat *format, int wanted)
{
	int			missing = wanted & ~format->pinned;

	if (missing == 0)
		return;
	if (format->pinned == 0)
		format->guc_level = NewGUCNestLevel();
	format->pinned |= missing;

	for (size_t i = 0; i < lengthof(pins); i++)
	{
		if ((pins[i].group & missing) == 0 ||
			strcmp(GetConfigOption(pins[i].name, false, false), pins[i].value) == 0)
			continue;
		kpg_compat_set_quietly(pins[i].name, pins[i].value);
	}
}

/* At the end of each row. */
void
kpg_format_unpin(KpgRowFormat *format)
{
	const char *names[lengthof(pins)];

	if (format->pinned == 0)
		return;
	for (size_t i = 0; i < lengthof(pins); i++)
		names[i] = pins[i].name;
	kpg_compat_unset_quietly(format->guc_level, names, (int) lengthof(names));
	format->pinned = 0;
}

static char *
call_output(KpgFormatter *f, Datum value, int wanted_pins)
{
	if (!OidIsValid(f->call.fn_oid))
	{
		Oid			function;
		bool		varlena;

		getTypeOutputInfo(f->type, &function, &varlena);
		fmgr_info_cxt(function, &f->call, f->context);
	}
	pin(f->format, wanted_pins);
	return OutputFunctionCall(&f->call, value);
}

KpgMisfit
kpg_format_output(KpgFormatter *f, Datum value, KpgText *text)
{
	char	   *output = call_output(f, value, f->pins);

	text->data = text->owned = output;
	text->len = strlen(output);
	return kpg_format_utf8(f->format, text, f->shape);
}

/* A type with a cast to json, such as hstore. */
KpgMisfit
kpg_format_json_cast(KpgFormatter *f, Datum value, KpgText *text)
{
	struct varlena *json;

	pin(f->format, f->pins);
	json = PG_DETOAST_DATUM_PACKED(FunctionCall1(&f->call, value));
	text->data = VARDATA_ANY(json);
	text->len = VARSIZE_ANY_EXHDR(json);
	/* The function may have returned its argument. */
	text->owned = (Pointer) json != DatumGetPointer(value) ? json : NULL;
	return kpg_format_utf8(f->format, text, KPG_SHAPE_JSON);
}

/*
 * PostgreSQL's own text of a value that its Kusto type cannot hold: ISO dates,
 * UTC.  It is short, and ASCII.
 */
void
kpg_format_iso_text(KpgFormatter *f, Datum value, KpgText *text)
{
	text->data = text->owned = call_output(f, value, KPG_PIN_ALL);
	text->len = strlen(text->data);
}
