/*
 * format_decimal.h
 *	  The digits of a numeric, read from the stored form.
 *
 * pg_upgrade keeps that form as it is, and the comments at NumericData in
 * src/backend/utils/adt/numeric.c describe it; no header exports it.  A test
 * compares the texts with numeric_out's.
 */
#ifndef KPG_FORMAT_DECIMAL_H
#define KPG_FORMAT_DECIMAL_H

#include "postgres.h"

#include "format_digits.h"

/* decimal digits in a stored digit of base 10000 */
#define KPG_DECIMAL_GROUP	4

/* The header's two leading bits tell its form, the following ones the rest. */
#define KPG_DECIMAL_FORM_MASK		0xC000
#define KPG_DECIMAL_FORM_NEGATIVE	0x4000
#define KPG_DECIMAL_FORM_SHORT		0x8000
#define KPG_DECIMAL_FORM_SPECIAL	0xC000
#define KPG_DECIMAL_SPECIAL_MASK	0xF000
#define KPG_DECIMAL_SPECIAL_NAN		0xC000
#define KPG_DECIMAL_LONG_SCALE_MASK 0x3FFF
#define KPG_DECIMAL_SHORT_NEGATIVE	0x2000
#define KPG_DECIMAL_SHORT_SCALE_MASK 0x1F80
#define KPG_DECIMAL_SHORT_SCALE_SHIFT 7
#define KPG_DECIMAL_SHORT_WEIGHT_SIGN 0x0040
#define KPG_DECIMAL_SHORT_WEIGHT_MASK 0x003F

typedef struct KpgDecimal
{
	bool		negative;
	int			weight;			/* of the first group, in groups */
	int			scale;			/* decimal digits to show behind the point */
	int			ngroups;
	const char *groups;			/* uint16 each, not aligned */
	uint16		header;
} KpgDecimal;

static inline uint32
kpg_format_group_at(const KpgDecimal *d, int index)
{
	uint16		group;

	if ((uint32) index >= (uint32) d->ngroups)
		return 0;
	memcpy(&group, d->groups + index * sizeof(group), sizeof(group));
	return group;
}

/* data: behind the varlena header.  False for NaN and the infinities. */
static inline bool
kpg_format_decode_decimal(const char *data, int size, KpgDecimal *d)
{
	uint16		h;

	memcpy(&h, data, sizeof(h));
	data += sizeof(h);
	size -= sizeof(h);
	d->header = h;
	if ((h & KPG_DECIMAL_FORM_MASK) == KPG_DECIMAL_FORM_SHORT)
	{
		d->negative = (h & KPG_DECIMAL_SHORT_NEGATIVE) != 0;
		d->scale = (h & KPG_DECIMAL_SHORT_SCALE_MASK) >> KPG_DECIMAL_SHORT_SCALE_SHIFT;
		d->weight = (h & KPG_DECIMAL_SHORT_WEIGHT_MASK) - ((h & KPG_DECIMAL_SHORT_WEIGHT_SIGN) ? KPG_DECIMAL_SHORT_WEIGHT_MASK + 1 : 0);
	}
	else if ((h & KPG_DECIMAL_FORM_MASK) == KPG_DECIMAL_FORM_SPECIAL)
		return false;
	else
	{
		int16		weight;

		memcpy(&weight, data, sizeof(weight));
		data += sizeof(weight);
		size -= sizeof(weight);
		d->negative = (h & KPG_DECIMAL_FORM_MASK) == KPG_DECIMAL_FORM_NEGATIVE;
		d->scale = h & KPG_DECIMAL_LONG_SCALE_MASK;
		d->weight = weight;
	}
	d->groups = data;
	d->ngroups = size / (int) sizeof(uint16);
	return true;
}

static inline size_t
kpg_format_decimal_size(const KpgDecimal *d)
{
	return 3 + (size_t) (Max(d->weight, 0) + 1) * KPG_DECIMAL_GROUP + (size_t) d->scale + KPG_DECIMAL_GROUP;
}

/* The same text as numeric_out's; p has room for kpg_format_decimal_size(). */
static inline char *
kpg_format_put_decimal(char *p, const KpgDecimal *d)
{
	char	   *end;
	int			index = d->weight + 1;	/* of the first group behind the point */

	*p = '-';
	p += d->negative;
	if (d->weight < 0)
		*p++ = '0';
	else
	{
		p = kpg_format_put_upto4(p, kpg_format_group_at(d, 0));
		for (int i = 1; i <= d->weight; i++)
			p = kpg_format_put4(p, kpg_format_group_at(d, i));
	}
	if (d->scale <= 0)
		return p;

	*p++ = '.';
	end = p + d->scale;
	for (; p < end; index++)
		p = kpg_format_put4(p, kpg_format_group_at(d, index));
	return end;					/* the last group may have digits to spare */
}

#endif							/* KPG_FORMAT_DECIMAL_H */
