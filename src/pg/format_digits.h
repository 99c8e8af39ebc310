/*
 * format_digits.h
 *	  Decimal digits, two at a time.
 *
 * Each function writes at p, which has room, and gives the place behind.
 */
#ifndef KPG_FORMAT_DIGITS_H
#define KPG_FORMAT_DIGITS_H

#include "postgres.h"

/* "00" to "99" */
extern const char kpg_format_pairs[];

static inline char *
kpg_format_put2(char *p, uint32 value)
{
	memcpy(p, &kpg_format_pairs[value * 2], 2);
	return p + 2;
}

static inline char *
kpg_format_put4(char *p, uint32 value)
{
	p = kpg_format_put2(p, value / 100);
	return kpg_format_put2(p, value % 100);
}

static inline char *
kpg_format_put8(char *p, uint32 value)
{
	p = kpg_format_put4(p, value / 10000);
	return kpg_format_put4(p, value % 10000);
}

/* One to four digits, no leading zero. */
static inline char *
kpg_format_put_upto4(char *p, uint32 value)
{
	if (value < 10)
	{
		*p = (char) ('0' + value);
		return p + 1;
	}
	if (value < 100)
		return kpg_format_put2(p, value);
	if (value < 1000)
	{
		*p = (char) ('0' + value / 100);
		return kpg_format_put2(p + 1, value % 100);
	}
	return kpg_format_put4(p, value);
}

static inline char *
kpg_format_put_upto8(char *p, uint32 value)
{
	if (value < 10000)
		return kpg_format_put_upto4(p, value);
	p = kpg_format_put_upto4(p, value / 10000);
	return kpg_format_put4(p, value % 10000);
}

static inline char *
kpg_format_put_uint32(char *p, uint32 value)
{
	if (value < 100000000)
		return kpg_format_put_upto8(p, value);
	p = kpg_format_put_upto4(p, value / 100000000);
	return kpg_format_put8(p, value % 100000000);
}

static inline char *
kpg_format_put_uint64(char *p, uint64 value)
{
	const uint64 group = 100000000;

	if (value < group)
		return kpg_format_put_upto8(p, (uint32) value);
	if (value < group * group)
		p = kpg_format_put_upto8(p, (uint32) (value / group));
	else
	{
		p = kpg_format_put_upto4(p, (uint32) (value / (group * group)));
		p = kpg_format_put8(p, (uint32) (value / group % group));
	}
	return kpg_format_put8(p, (uint32) (value % group));
}

#endif							/* KPG_FORMAT_DIGITS_H */
