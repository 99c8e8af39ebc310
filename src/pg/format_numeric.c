/*
 * format_numeric.c
 *	  numeric as decimal: plain digits, the same text as numeric_out's.
 *
 * The digits go straight from the stored form (format_decimal.h) to where they
 * are wanted, which saves the copy of detoasting to a full header and that of
 * numeric_out's result.
 *
 * Kusto's decimal has 128 bits (learn.microsoft.com/kusto/query/scalar-data-types/decimal);
 * what is documented of it allows to rely on the 34 digits and the exponents
 * of IEEE 754's decimal128, and no more.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/numeric.h"

#include "format_decimal.h"
#include "format_internal.h"

#define MAX_DIGITS		34
#define MAX_EXPONENT	6144	/* 9.99...e6144 is the largest */
#define MIN_EXPONENT	(-6176) /* 1e-6176 the smallest */

/* Is it too long, too large or too small for a decimal? */
static KpgMisfit
check(const KpgDecimal *d)
{
	int			first = (int) kpg_format_group_at(d, 0);
	int			last = (int) kpg_format_group_at(d, d->ngroups - 1);
	int			leading = first >= 1000 ? 0 : first >= 100 ? 1 : first >= 10 ? 2 : 3;
	int			trailing = last % 10 ? 0 : last % 100 ? 1 : last % 1000 ? 2 : 3;
	int			top;
	int			bottom;

	/* Stored groups neither begin nor end with a zero group. */
	if (d->ngroups == 0)
		return KPG_FITS;
	top = (d->weight + 1) * KPG_DECIMAL_GROUP - 1 - leading;
	bottom = (d->weight + 1 - d->ngroups) * KPG_DECIMAL_GROUP + trailing;

	if (top > MAX_EXPONENT || bottom < MIN_EXPONENT)
		return KPG_MISFIT_RANGE;
	if (top - bottom + 1 > MAX_DIGITS)
		return KPG_MISFIT_DIGITS;
	return KPG_FITS;
}

/* So short that nothing can be wrong with it. */
static inline bool
is_small(const KpgDecimal *d)
{
	return (d->ngroups + 1) * KPG_DECIMAL_GROUP <= MAX_DIGITS && abs(d->weight) < MAX_EXPONENT / KPG_DECIMAL_GROUP / 2;
}

static pg_attribute_always_inline KpgMisfit
decode(Datum value, struct varlena **stored, KpgDecimal *d)
{
	*stored = kpg_format_packed(value);
	if (unlikely(!kpg_format_decode_decimal(VARDATA_ANY(*stored), VARSIZE_ANY_EXHDR(*stored), d)))
		return (d->header & KPG_DECIMAL_SPECIAL_MASK) == KPG_DECIMAL_SPECIAL_NAN ? KPG_MISFIT_NAN : KPG_MISFIT_INFINITY;
	return likely(is_small(d)) ? KPG_FITS : check(d);
}

static inline void
release(struct varlena *stored, Datum value)
{
	if (unlikely((Pointer) stored != DatumGetPointer(value)))
		pfree(stored);
}

char *
kpg_format_numeric(KpgFormatter *f, Datum value, char *p)
{
	struct varlena *stored;
	KpgDecimal	d;
	KpgMisfit	misfit = decode(value, &stored, &d);

	if (likely(misfit == KPG_FITS))
	{
		if (kpg_format_decimal_size(&d) > KPG_SHORT_MAX)
			misfit = KPG_LONG;
		else
			p = kpg_format_put_decimal(p, &d);
	}
	release(stored, value);
	return likely(misfit == KPG_FITS) ? p : kpg_format_no(f, misfit);
}

/* Of a value that fits. */
KpgMisfit
kpg_format_numeric_text(KpgFormatter *f, Datum value, KpgText *text)
{
	struct varlena *stored;
	KpgDecimal	d;
	KpgMisfit	misfit = decode(value, &stored, &d);
	char	   *out;

	if (misfit == KPG_FITS)
	{
		text->data = text->owned = out = palloc(kpg_format_decimal_size(&d));
		text->len = (size_t) (kpg_format_put_decimal(out, &d) - out);
	}
	release(stored, value);
	return misfit;
}
