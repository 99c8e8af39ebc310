/*
 * format_scalar.c
 *	  Booleans, integers, floats, money and uuids.
 *
 * No formatter here allocates, raises, or looks at a setting; what money
 * needs of lc_monetary is asked once, when the column is resolved.
 */
#include "postgres.h"

#include <math.h>

#include "common/shortest_dec.h"
#include "utils/builtins.h"
#include "utils/cash.h"
#include "utils/fmgrprotos.h"
#include "utils/uuid.h"

#include "format_digits.h"
#include "format_internal.h"

const char	kpg_format_pairs[] =
"00010203040506070809"
"10111213141516171819"
"20212223242526272829"
"30313233343536373839"
"40414243444546474849"
"50515253545556575859"
"60616263646566676869"
"70717273747576777879"
"80818283848586878889"
"90919293949596979899";

char *
kpg_format_bool(KpgFormatter *f, Datum value, char *p)
{
	bool		b = DatumGetBool(value);

	memcpy(p, b ? "true " : "false", 5);
	return p + (b ? 4 : 5);
}

char *
kpg_format_int2(KpgFormatter *f, Datum value, char *p)
{
	int32		i = DatumGetInt16(value);

	*p = '-';
	p += i < 0;
	return kpg_format_put_upto8(p, (uint32) abs(i));
}

char *
kpg_format_int4(KpgFormatter *f, Datum value, char *p)
{
	int32		i = DatumGetInt32(value);

	*p = '-';
	p += i < 0;
	return kpg_format_put_uint32(p, i < 0 ? -(uint32) i : (uint32) i);
}

char *
kpg_format_int8(KpgFormatter *f, Datum value, char *p)
{
	int64		i = DatumGetInt64(value);

	*p = '-';
	p += i < 0;
	return kpg_format_put_uint64(p, i < 0 ? -(uint64) i : (uint64) i);
}

/* oid, xid, cid */
char *
kpg_format_uint4(KpgFormatter *f, Datum value, char *p)
{
	return kpg_format_put_uint32(p, DatumGetUInt32(value));
}

/* Kusto's long is signed. */
char *
kpg_format_xid8(KpgFormatter *f, Datum value, char *p)
{
	uint64		xid = DatumGetUInt64(value);

	if (xid > (uint64) PG_INT64_MAX)
		return kpg_format_no(f, KPG_MISFIT_RANGE);
	return kpg_format_put_uint64(p, xid);
}

/*
 * Most floats in tables were typed, or measured, with a few decimals.  A decimal
 * of no more digits than every float keeps (DBL_DIG, FLT_DIG) that reads back as
 * this one is the only such one, hence the shortest; and whether it does a
 * division tells, which IEEE 754 rounds correctly, in a tenth of the time of the
 * search for digits.
 */
#define FRACTION	10000
#define FLOAT8_SHORT_MAX	1e11	/* times FRACTION: DBL_DIG digits */
#define FLOAT4_SHORT_MAX	1e2

/* The nearest whole number of them; x is not negative. */
static inline int64
count_fractions(double x)
{
	return (int64) (x * FRACTION + 0.5);
}

/* n of them, without trailing zeros. */
static char *
put_fractions(char *p, bool is_negative, int64 n)
{
	uint32		fraction = (uint32) (n % FRACTION);

	*p = '-';
	p += is_negative;
	p = kpg_format_put_uint64(p, (uint64) (n / FRACTION));
	if (fraction == 0)
		return p;
	*p++ = '.';
	p = kpg_format_put4(p, fraction);
	while (p[-1] == '0')
		p--;
	return p;
}

/* A float4's own shortest digits: those of its float8 would be more, and noise. */
char *
kpg_format_float4(KpgFormatter *f, Datum value, char *p)
{
	float4		x = DatumGetFloat4(value);

	if (fabsf(x) < FLOAT4_SHORT_MAX)
	{
		int64		n = count_fractions(fabsf(x));

		if ((float4) ((double) n / FRACTION) == fabsf(x))
			return put_fractions(p, signbit(x), n);
	}
	if (unlikely(!isfinite(x)))
		return kpg_format_no(f, isnan(x) ? KPG_MISFIT_NAN : KPG_MISFIT_INFINITY);
	return p + float_to_shortest_decimal_bufn(x, p);
}

char *
kpg_format_float8(KpgFormatter *f, Datum value, char *p)
{
	float8		x = DatumGetFloat8(value);

	if (fabs(x) < FLOAT8_SHORT_MAX)
	{
		int64		n = count_fractions(fabs(x));

		if ((double) n / FRACTION == fabs(x))
			return put_fractions(p, signbit(x), n);
	}
	if (unlikely(!isfinite(x)))
		return kpg_format_no(f, isnan(x) ? KPG_MISFIT_NAN : KPG_MISFIT_INFINITY);
	return p + double_to_shortest_decimal_bufn(x, p);
}

/*
 * money is an integer of the currency's smallest unit; how many of them make
 * one is not stored, but is a matter of lc_monetary.  money::numeric reads it
 * so, and so do we; signs, points and separators of the locale play no part.
 */
int
kpg_format_money_scale(void)
{
	Datum		smallest_unit = DirectFunctionCall1(cash_numeric, CashGetDatum(1));

	return DatumGetInt32(DirectFunctionCall1(numeric_scale, smallest_unit));
}

char *
kpg_format_money(KpgFormatter *f, Datum value, char *p)
{
	Cash		units = DatumGetCash(value);
	char		digits[24];
	int			ndigits = kpg_format_put_uint64(digits, units < 0 ? -(uint64) units : (uint64) units) - digits;
	int			nwhole = ndigits - f->scale;

	if (units < 0)
		*p++ = '-';
	if (nwhole > 0)
	{
		memcpy(p, digits, nwhole);
		p += nwhole;
	}
	else
		*p++ = '0';
	if (f->scale > 0)
	{
		int			nzeros = Max(-nwhole, 0);
		int			first = Max(nwhole, 0);

		*p++ = '.';
		memset(p, '0', nzeros);
		p += nzeros;
		memcpy(p, digits + first, ndigits - first);
		p += ndigits - first;
	}
	return p;
}

/* "00" to "ff" */
#define HEX_ROW(c) \
	c "0" c "1" c "2" c "3" c "4" c "5" c "6" c "7" c "8" c "9" c "a" c "b" c "c" c "d" c "e" c "f"
static const char hex_pairs[512 + 1] =
HEX_ROW("0") HEX_ROW("1") HEX_ROW("2") HEX_ROW("3") HEX_ROW("4") HEX_ROW("5") HEX_ROW("6") HEX_ROW("7")
HEX_ROW("8") HEX_ROW("9") HEX_ROW("a") HEX_ROW("b") HEX_ROW("c") HEX_ROW("d") HEX_ROW("e") HEX_ROW("f");

static inline char *
put_hex(char *p, const unsigned char *bytes, int n)
{
	for (int i = 0; i < n; i++, p += 2)
		memcpy(p, &hex_pairs[bytes[i] * 2], 2);
	return p;
}

char *
kpg_format_uuid(KpgFormatter *f, Datum value, char *p)
{
	const unsigned char *bytes = DatumGetUUIDP(value)->data;

	p = put_hex(p, bytes, 4);
	*p++ = '-';
	p = put_hex(p, bytes + 4, 2);
	*p++ = '-';
	p = put_hex(p, bytes + 6, 2);
	*p++ = '-';
	p = put_hex(p, bytes + 8, 2);
	*p++ = '-';
	return put_hex(p, bytes + 10, 6);
}
