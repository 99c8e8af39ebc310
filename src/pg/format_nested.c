/*
 * format_nested.c
 *	  Values inside containers; composites, ranges and multiranges as the JSON
 *	  of a dynamic.
 *
 * A composite becomes an object; a range {"lower":…,"upper":…,"bounds":"[)"},
 * with null for a missing bound, or {"empty":true}; a multirange an array of
 * ranges.  Arrays are in format_array.c.
 *
 * What a container holds is looked up when the first value comes, and again
 * when a value holds something else, as anonymous records may.  What has been
 * found out lives in a memory context of its own, below that of the container
 * which it belongs to, so that this does not leak.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "miscadmin.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rangetypes.h"
#include "utils/typcache.h"

#include "../core/json.h"
#include "alloc.h"
#include "format_internal.h"

typedef struct KpgMember
{
	KcSlice		key;			/* see kpg_format_json_key(); data NULL: dropped */
	KpgFormatter formatter;
} KpgMember;

struct KpgRecord
{
	MemoryContext context;
	uint64		identifier;		/* see assign_record_type_identifier() */
	TupleDesc	desc;
	KpgMember   *fields;
	Datum	   *values;
	bool	   *nulls;
};

/* ---- any value inside a container ---- */

/*
 * A database in UTF8 can hold other bytes, from times when they were not
 * checked or from a careless function.  They would spoil the whole of the JSON.
 */
static void
put_string(KcBuf *out, const char *data, size_t len)
{
	if (!kpg_format_is_utf8(data, len))
	{
		kc_json_string(out, kc_slice_n(data, len));
		return;
	}
	kc_buf_char(out, '"');
	while (len > 0)
	{
		size_t		piece = Min(len, KPG_PIECE);

		if (!kc_buf_reserve(out, piece * KC_CSV_JSON_GROWTH))
			return;
		out->len = (size_t) (kc_csv_put_json(out->data + out->len, data, piece, false) - out->data);
		out->data[out->len] = '\0';
		data += piece;
		len -= piece;
	}
	kc_buf_char(out, '"');
}

static void
put_misfit(KpgFormatter *f, Datum value, KpgMisfit misfit, KcBuf *out)
{
	KpgText		text;

	if (misfit == KPG_MISFIT_STRING_SIZE || misfit == KPG_MISFIT_DYNAMIC_SIZE)
	{
		/* Then the whole is too big as well. */
		out->failed = KC_ERR_LIMIT;
		return;
	}
	kpg_format_misfit(f->format, misfit);
	if (f->format->policy != KPG_TYPE_ERROR_STRING)
	{
		kc_buf_str(out, "null");
		return;
	}
	kpg_format_iso_text(f, value, &text);
	put_string(out, text.data, text.len);
	kpg_format_text_free(&text);
}

static void put_text(KpgFormatter *f, Datum value, KcBuf *out);

static void
put_short(KpgFormatter *f, Datum value, KcBuf *out)
{
	bool		quoted = f->shape != KPG_SHAPE_NUMBER;
	char	   *p;

	if (unlikely(!kc_buf_reserve(out, KPG_SHORT_MAX + 2)))
		return;
	p = out->data + out->len;
	*p = '"';
	p = f->put(f, value, p + quoted);
	if (unlikely(p == NULL))
	{
		out->data[out->len] = '\0';
		if (f->misfit == KPG_LONG)
			put_text(f, value, out);
		else
			put_misfit(f, value, f->misfit, out);
		return;
	}
	*p = '"';
	p += quoted;
	*p = '\0';
	out->len = (size_t) (p - out->data);
}

static void
put_text(KpgFormatter *f, Datum value, KcBuf *out)
{
	KpgText		text;
	KpgMisfit	misfit = f->text(f, value, &text);

	if (unlikely(misfit != KPG_FITS))
	{
		put_misfit(f, value, misfit, out);
		return;
	}
	if (f->shape == KPG_SHAPE_TEXT)
		put_string(out, text.data, text.len);
	else
		kc_buf_append(out, text.data, text.len);
	kpg_format_text_free(&text);
}

void
kpg_format_json_value(KpgFormatter *f, Datum value, bool isnull, KcBuf *out)
{
	if (isnull)
		kc_buf_str(out, "null");
	else if (f->put != NULL)
		put_short(f, value, out);
	else if (f->text != NULL)
		put_text(f, value, out);
	else
		f->nest(f, value, out);
}

/* ---- what a container holds ---- */

KpgElement *
kpg_format_element_of(KpgFormatter *f, Oid type)
{
	KpgElement *element = f->element;
	MemoryContext context;
	MemoryContext old;

	if (element != NULL && element->type == type)
		return element;
	f->element = NULL;
	if (element != NULL)
		MemoryContextDelete(element->context);

	context = AllocSetContextCreate(f->context, "kusto_ingest element format",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	element = palloc0(sizeof(KpgElement));
	element->context = context;
	element->type = type;
	get_typlenbyvalalign(type, &element->typlen, &element->typbyval, &element->typalign);
	kpg_format_resolve(&element->formatter, f->format, type);
	MemoryContextSwitchTo(old);
	f->element = element;
	return element;
}

/* ---- composites ---- */

/* "name": as in JSON, in the current memory context. */
KcSlice
kpg_format_json_key(KpgRowFormat *format, const char *name)
{
	KpgText		text = {name, strlen(name), NULL};
	KcBuf		key;

	if (kpg_format_utf8(format, &text, KPG_SHAPE_TEXT) != KPG_FITS)
		ereport(ERROR,
				(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
				 errmsg("a field's name in column \"%s\" has no UTF-8 form", format->column->name),
				 errhint("Name the fields otherwise, for example by a subquery that uses AS.")));
	kc_buf_init(&key, kpg_alloc_create(CurrentMemoryContext), KC_BUF_UNLIMITED);
	kc_json_string(&key, kc_slice_n(text.data, text.len));
	kc_buf_char(&key, ':');
	kpg_format_buf_check(&key);
	kpg_format_text_free(&text);
	return kc_buf_view(&key);
}

static KpgRecord *
record_of(KpgFormatter *f, Oid type, int32 typmod)
{
	KpgRecord  *record = f->record;
	uint64		identifier = assign_record_type_identifier(type, typmod);
	MemoryContext context;
	MemoryContext old;
	int			natts;

	if (record != NULL && record->identifier == identifier)
		return record;
	f->record = NULL;
	if (record != NULL)
		MemoryContextDelete(record->context);

	context = AllocSetContextCreate(f->context, "kusto_ingest record format",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	record = palloc0(sizeof(KpgRecord));
	record->context = context;
	record->identifier = identifier;
	record->desc = lookup_rowtype_tupdesc_copy(type, typmod);
	natts = record->desc->natts;
	record->fields = palloc0(natts * sizeof(KpgMember));
	record->values = palloc(natts * sizeof(Datum));
	record->nulls = palloc(natts * sizeof(bool));
	for (int i = 0; i < natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(record->desc, i);

		if (att->attisdropped)
			continue;
		record->fields[i].key = kpg_format_json_key(f->format, NameStr(att->attname));
		kpg_format_resolve(&record->fields[i].formatter, f->format, att->atttypid);
	}
	MemoryContextSwitchTo(old);
	f->record = record;
	return record;
}

void
kpg_format_record(KpgFormatter *f, Datum value, KcBuf *out)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(value);
	KpgRecord  *record = record_of(f, HeapTupleHeaderGetTypeId(header),
								   HeapTupleHeaderGetTypMod(header));
	bool		first = true;
	HeapTupleData tuple;

	check_stack_depth();
	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	heap_deform_tuple(&tuple, record->desc, record->values, record->nulls);

	kc_buf_char(out, '{');
	for (int i = 0; i < record->desc->natts && out->failed == KC_OK; i++)
	{
		KpgMember   *field = &record->fields[i];

		if (field->key.data == NULL)
			continue;
		if (!first)
			kc_buf_char(out, ',');
		first = false;
		kc_buf_slice(out, field->key);
		kpg_format_json_value(&field->formatter, record->values[i], record->nulls[i], out);
	}
	kc_buf_char(out, '}');

	if ((Pointer) header != DatumGetPointer(value))
		pfree(header);
}

/* ---- ranges ---- */

static void
put_range(KpgFormatter *bound_formatter, TypeCacheEntry *typcache, RangeType *range, KcBuf *out)
{
	RangeBound	lower;
	RangeBound	upper;
	bool		empty;

	range_deserialize(typcache, range, &lower, &upper, &empty);
	if (empty)
	{
		kc_buf_str(out, "{\"empty\":true}");
		return;
	}
	kc_buf_str(out, "{\"lower\":");
	kpg_format_json_value(bound_formatter, lower.val, lower.infinite, out);
	kc_buf_str(out, ",\"upper\":");
	kpg_format_json_value(bound_formatter, upper.val, upper.infinite, out);
	kc_buf_str(out, ",\"bounds\":\"");
	kc_buf_char(out, lower.inclusive ? '[' : '(');
	kc_buf_char(out, upper.inclusive ? ']' : ')');
	kc_buf_str(out, "\"}");
}

void
kpg_format_range(KpgFormatter *f, Datum value, KcBuf *out)
{
	RangeType  *range = DatumGetRangeTypeP(value);
	KpgElement *element;

	check_stack_depth();
	if (f->typcache == NULL)
		f->typcache = lookup_type_cache(f->type, TYPECACHE_RANGE_INFO);
	element = kpg_format_element_of(f, f->typcache->rngelemtype->type_id);
	put_range(&element->formatter, f->typcache, range, out);
	if ((Pointer) range != DatumGetPointer(value))
		pfree(range);
}

void
kpg_format_multirange(KpgFormatter *f, Datum value, KcBuf *out)
{
	KpgElement *element;
	RangeType **ranges;
	int			nranges;

	check_stack_depth();
	if (f->typcache == NULL)
		f->typcache = kpg_compat_multirange_range(f->type);
	element = kpg_format_element_of(f, f->typcache->rngelemtype->type_id);
	nranges = kpg_compat_multirange_ranges(f->typcache, value, &ranges);

	kc_buf_char(out, '[');
	for (int i = 0; i < nranges && out->failed == KC_OK; i++)
	{
		if (i > 0)
			kc_buf_char(out, ',');
		put_range(&element->formatter, f->typcache, ranges[i], out);
	}
	kc_buf_char(out, ']');
	if (nranges > 0)
		pfree(ranges);
}
