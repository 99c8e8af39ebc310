/*
 * format_numeric.c
 *	  numeric as decimal: plain digits, the same text as numeric_out's.
 *
 * The digits are read from the stored form, which pg_upgrade keeps as it is
 * (the comments at NumericData in src/backend/utils/adt/numeric.c describe it;
 * no header exports it).  That saves two copies per value: that of the
 * detoasting to a full header, and numeric_out's result.  A test compares the
 * texts with numeric_out's.
 *
 * Kusto's decimal has 128 bits (learn.microsoft.com/kusto/query/scalar-data-types/decimal);
 * what is documented of it allows to rely on the 34 digits and the exponents
 * of IEEE 754's decimal128, and no more.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/numeric.h"

#include "format_internal.h"

#define MAX_DIGITS		34
#define MAX_EXPONENT	6144	/* 9.99...e6144 is the largest */
#define MIN_EXPONENT	(-6176) /* 1e-6176 the smallest */

#define GROUP			4		/* decimal digits in a stored digit of base 10000 */

/* The header's two leading bits tell its form, the following ones the rest. */
#define FORM_MASK		0xC000
#define FORM_NEGATIVE	0x4000
#define FORM_SHORT		0x8000
#define FORM_SPECIAL	0xC000
#define SPECIAL_MASK	0xF000
#define SPECIAL_NAN		0xC000
#define LONG_SCALE_MASK 0x3FFF
#define SHORT_NEGATIVE	0x2000
#define SHORT_SCALE_MASK 0x1F80
#define SHORT_SCALE_SHIFT 7
#define SHORT_WEIGHT_SIGN 0x0040
#define SHORT_WEIGHT_MASK 0x003F

typedef struct Decimal
{
	bool		negative;
	int			weight;			/* of the first group, in groups */
	int			scale;			/* decimal digits to show behind the point */
	int			ngroups;
	const char *groups;			/* int16 each, not aligned */
} Decimal;

static int
group_at(const Decimal *d, int index)
{
	int16		group;

	if (index < 0 || index >= d->ngroups)
		return 0;
	memcpy(&group, d->groups + index * sizeof(int16), sizeof(int16));
	return group;
}

/* False for NaN and the infinities; *header tells which. */
static bool
decode(const struct varlena *stored, Decimal *d, uint16 *header)
{
	const char *p = VARDATA_ANY(stored);
	int			size = VARSIZE_ANY_EXHDR(stored);
	uint16		h;

	memcpy(&h, p, sizeof(h));
	*header = h;
	p += sizeof(h);
	size -= sizeof(h);
	if ((h & FORM_MASK) == FORM_SPECIAL)
		return false;

	if ((h & FORM_MASK) == FORM_SHORT)
	{
		d->negative = (h & SHORT_NEGATIVE) != 0;
		d->scale = (h & SHORT_SCALE_MASK) >> SHORT_SCALE_SHIFT;
		d->weight = (h & SHORT_WEIGHT_MASK) - ((h & SHORT_WEIGHT_SIGN) ? SHORT_WEIGHT_MASK + 1 : 0);
	}
	else
	{
		int16		weight;

		memcpy(&weight, p, sizeof(weight));
		p += sizeof(weight);
		size -= sizeof(weight);
		d->negative = (h & FORM_MASK) == FORM_NEGATIVE;
		d->scale = h & LONG_SCALE_MASK;
		d->weight = weight;
	}
	d->groups = p;
	d->ngroups = size / (int) sizeof(int16);
	return true;
}

/* Is it too long, too large or too small for a decimal? */
static KpgMisfit
check(const Decimal *d)
{
	int			first = group_at(d, 0);
	int			last = group_at(d, d->ngroups - 1);
	int			leading = first >= 1000 ? 0 : first >= 100 ? 1 : first >= 10 ? 2 : 3;
	int			trailing = last % 10 ? 0 : last % 100 ? 1 : last % 1000 ? 2 : 3;
	int			top;
	int			bottom;

	/* Stored groups neither begin nor end with a zero group. */
	if (d->ngroups == 0)
		return KPG_FITS;
	top = (d->weight + 1) * GROUP - 1 - leading;
	bottom = (d->weight + 1 - d->ngroups) * GROUP + trailing;

	if (top > MAX_EXPONENT || bottom < MIN_EXPONENT)
		return KPG_MISFIT_RANGE;
	if (top - bottom + 1 > MAX_DIGITS)
		return KPG_MISFIT_DIGITS;
	return KPG_FITS;
}

static char *
put_group(char *p, int group)
{
	p = kpg_format_put2(p, group / 100);
	return kpg_format_put2(p, group % 100);
}

/* p has room for text_size() bytes. */
static char *
put_decimal(char *p, const Decimal *d)
{
	char	   *end;
	int			index = d->weight + 1;	/* of the first group behind the point */

	if (d->negative)
		*p++ = '-';
	if (d->weight < 0)
		*p++ = '0';
	else
	{
		int			first = group_at(d, 0);

		p += pg_ultoa_n((uint32) first, p);
		for (int i = 1; i <= d->weight; i++)
			p = put_group(p, group_at(d, i));
	}
	if (d->scale <= 0)
		return p;

	*p++ = '.';
	end = p + d->scale;
	for (; p < end; index++)
		p = put_group(p, group_at(d, index));
	return end;					/* the last group may have digits to spare */
}

static size_t
text_size(const Decimal *d)
{
	return 3 + (size_t) (Max(d->weight, 0) + 1) * GROUP + (size_t) d->scale + GROUP;
}

KpgMisfit
kpg_format_numeric(KpgFormatter *f, Datum value, KpgText *text)
{
	struct varlena *stored = PG_DETOAST_DATUM_PACKED(value);
	bool		copied = (Pointer) stored != DatumGetPointer(value);
	uint16		header;
	Decimal		d;
	KpgMisfit	misfit;
	char	   *out;

	if (!decode(stored, &d, &header))
		misfit = (header & SPECIAL_MASK) == SPECIAL_NAN ? KPG_MISFIT_NAN : KPG_MISFIT_INFINITY;
	else
		misfit = check(&d);

	text->owned = NULL;
	if (misfit == KPG_FITS)
	{
		size_t		size = text_size(&d);

		if (size <= sizeof(f->scratch))
			out = f->scratch;
		else
			text->owned = out = palloc(size);
		text->data = out;
		text->len = put_decimal(out, &d) - out;
	}
	if (copied)
		pfree(stored);
	return misfit;
}
