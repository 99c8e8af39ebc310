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

#include "../core/text.h"
#include "format_internal.h"

KpgMisfit
kpg_format_bool(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	bool		b = DatumGetBool(value);

	*len = b ? 4 : 5;
	memcpy(buf, b ? "true" : "false", *len);
	return KPG_FITS;
}

/* Returns the end of the digits. */
static char *
put_int(char *p, int64 value)
{
	if (value < 0)
		*p++ = '-';
	return p + pg_ulltoa_n(value < 0 ? -(uint64) value : (uint64) value, p);
}

KpgMisfit
kpg_format_int2(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	*len = put_int(buf, DatumGetInt16(value)) - buf;
	return KPG_FITS;
}

KpgMisfit
kpg_format_int4(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	*len = put_int(buf, DatumGetInt32(value)) - buf;
	return KPG_FITS;
}

KpgMisfit
kpg_format_int8(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	*len = put_int(buf, DatumGetInt64(value)) - buf;
	return KPG_FITS;
}

/* oid, xid, cid */
KpgMisfit
kpg_format_uint4(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	*len = pg_ultoa_n(DatumGetUInt32(value), buf);
	return KPG_FITS;
}

/* Kusto's long is signed. */
KpgMisfit
kpg_format_xid8(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	uint64		xid = DatumGetUInt64(value);

	if (xid > (uint64) PG_INT64_MAX)
		return KPG_MISFIT_RANGE;
	*len = pg_ulltoa_n(xid, buf);
	return KPG_FITS;
}

/* A float4's own shortest digits: those of its float8 would be more, and noise. */
KpgMisfit
kpg_format_float4(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	float4		x = DatumGetFloat4(value);

	if (isnan(x))
		return KPG_MISFIT_NAN;
	if (isinf(x))
		return KPG_MISFIT_INFINITY;
	*len = float_to_shortest_decimal_bufn(x, buf);
	return KPG_FITS;
}

KpgMisfit
kpg_format_float8(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	float8		x = DatumGetFloat8(value);

	if (isnan(x))
		return KPG_MISFIT_NAN;
	if (isinf(x))
		return KPG_MISFIT_INFINITY;
	*len = double_to_shortest_decimal_bufn(x, buf);
	return KPG_FITS;
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

KpgMisfit
kpg_format_money(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	Cash		units = DatumGetCash(value);
	uint64		magnitude = units < 0 ? -(uint64) units : (uint64) units;
	char		digits[24];
	int			ndigits = pg_ulltoa_n(magnitude, digits);
	int			nwhole = ndigits - f->scale;
	char	   *p = buf;

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
	*len = p - buf;
	return KPG_FITS;
}

StaticAssertDecl(sizeof(KcUuid) == UUID_LEN, "uuids differ in size");
StaticAssertDecl(KC_UUID_TEXT_LEN < KPG_FIXED_MAX, "no room for a uuid");

KpgMisfit
kpg_format_uuid(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	KcUuid		uuid;

	memcpy(uuid.bytes, DatumGetUUIDP(value)->data, UUID_LEN);
	kc_uuid_text(&uuid, buf);
	*len = KC_UUID_TEXT_LEN;
	return KPG_FITS;
}
