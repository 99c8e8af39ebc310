/*
 * format_datetime.c
 *	  Dates and times as Kusto's datetime and timespan.
 *
 * datetime spans the years 1 to 9999, timespan is a signed 64-bit number of
 * 100 ns ticks, written [-]d.hh:mm:ss[.ffffff]
 * (learn.microsoft.com/kusto/query/scalar-data-types/datetime, .../timespan).
 * timestamp without time zone is taken to be UTC, as Kusto's datetime is.
 *
 * No function here allocates, raises, or looks at a setting.
 */
#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

#include "format_digits.h"
#include "format_internal.h"

/* 0001-01-01 and 10000-01-01, in days since 2000-01-01 */
#define FIRST_DAY	(-730119)
#define END_DAY		2921940

#define TICKS_PER_USEC	10

/* The same days, counted from the 1st of March of the year 0. */
#define MARCH_OF_YEAR_0	(FIRST_DAY - 306)

#define DAYS_PER_400_YEARS	146097

/*
 * A year that begins in March has its leap day at the end, and months whose
 * lengths follow a line.  (C. Neri, L. Schneider, "Euclidean affine functions and
 * their application to calendar algorithms", 2022, from where the constants are.)
 */
static char *
put_date(char *p, DateADT day)
{
	uint32		n = 4 * (uint32) (day - MARCH_OF_YEAR_0) + 3;
	uint32		century = n / DAYS_PER_400_YEARS;
	uint32		day_of_century = n % DAYS_PER_400_YEARS / 4;
	uint64		product = UINT64CONST(2939745) * (4 * day_of_century + 3);
	uint32		year = (uint32) (product >> 32);	/* of the century */
	uint32		day_of_year = (uint32) product / 2939745 / 4;
	uint32		line = 2141 * day_of_year + 197913;
	uint32		month = line >> 16;
	uint32		mday = (line & 0xFFFF) / 2141 + 1;

	if (day_of_year >= 306)		/* January or February */
	{
		month -= 12;
		year++;
		if (year == 100)
		{
			year = 0;
			century++;
		}
	}
	p = kpg_format_put2(p, century);
	p = kpg_format_put2(p, year);
	*p++ = '-';
	p = kpg_format_put2(p, month);
	*p++ = '-';
	return kpg_format_put2(p, mday);
}

/* hh:mm:ss, and a fraction when there is one; hours at most two digits. */
static char *
put_time(char *p, uint64 usecs)
{
	uint32		seconds = (uint32) (usecs / USECS_PER_SEC);
	uint32		fraction = (uint32) (usecs % USECS_PER_SEC);

	p = kpg_format_put2(p, seconds / SECS_PER_HOUR);
	*p++ = ':';
	p = kpg_format_put2(p, seconds / SECS_PER_MINUTE % MINS_PER_HOUR);
	*p++ = ':';
	p = kpg_format_put2(p, seconds % SECS_PER_MINUTE);
	if (fraction != 0)
	{
		*p++ = '.';
		p = kpg_format_put2(p, fraction / 10000);
		p = kpg_format_put4(p, fraction % 10000);
	}
	return p;
}

static char *
put_timespan(char *p, bool negative, uint64 usecs)
{
	uint64		ndays = usecs / (uint64) USECS_PER_DAY;

	if (negative)
		*p++ = '-';
	if (ndays != 0)
	{
		p = kpg_format_put_uint64(p, ndays);
		*p++ = '.';
	}
	return put_time(p, usecs % (uint64) USECS_PER_DAY);
}

/* A finite one within Kusto's years. */
static inline char *
put_timestamp(char *p, Timestamp timestamp)
{
	uint64		usecs = (uint64) (timestamp - FIRST_DAY * USECS_PER_DAY);

	p = put_date(p, (DateADT) (usecs / (uint64) USECS_PER_DAY) + FIRST_DAY);
	*p++ = 'T';
	p = put_time(p, usecs % (uint64) USECS_PER_DAY);
	*p++ = 'Z';
	return p;
}

char *
kpg_format_date(KpgFormatter *f, Datum value, char *p)
{
	DateADT		day = DatumGetDateADT(value);

	if (unlikely(day < FIRST_DAY || day >= END_DAY))
		return kpg_format_no(f, DATE_NOT_FINITE(day) ? KPG_MISFIT_INFINITY :
							 day < FIRST_DAY ? KPG_MISFIT_BEFORE_YEAR_1 : KPG_MISFIT_AFTER_YEAR_9999);
	return put_date(p, day);
}

/* timestamp and timestamptz: both count microseconds, of UTC or as if. */
char *
kpg_format_timestamp(KpgFormatter *f, Datum value, char *p)
{
	Timestamp	timestamp = DatumGetTimestamp(value);

	if (unlikely(timestamp < FIRST_DAY * USECS_PER_DAY || timestamp >= END_DAY * USECS_PER_DAY))
		return kpg_format_no(f, TIMESTAMP_NOT_FINITE(timestamp) ? KPG_MISFIT_INFINITY :
							 timestamp < 0 ? KPG_MISFIT_BEFORE_YEAR_1 : KPG_MISFIT_AFTER_YEAR_9999);
	return put_timestamp(p, timestamp);
}

int
kpg_format_datetime(TimestampTz time, char *buf)
{
	int			len = (int) (put_timestamp(buf, time) - buf);

	Assert(len <= KPG_DATETIME_MAX);
	return len;
}

/* 24:00:00, which PostgreSQL allows, is a day. */
char *
kpg_format_time(KpgFormatter *f, Datum value, char *p)
{
	return put_timespan(p, false, (uint64) DatumGetTimeADT(value));
}

/*
 * Kusto has no type for it.  A timespan would lose the offset, so it is a
 * string, in PostgreSQL's ISO form.
 */
char *
kpg_format_timetz(KpgFormatter *f, Datum value, char *p)
{
	TimeTzADT  *timetz = DatumGetTimeTzADTP(value);
	int			offset = abs(timetz->zone);

	p = put_time(p, (uint64) timetz->time);
	*p++ = timetz->zone <= 0 ? '+' : '-';	/* zone counts to the west */
	p = kpg_format_put2(p, offset / SECS_PER_HOUR);
	if (offset % SECS_PER_HOUR != 0)
	{
		*p++ = ':';
		p = kpg_format_put2(p, offset / SECS_PER_MINUTE % MINS_PER_HOUR);
	}
	if (offset % SECS_PER_MINUTE != 0)
	{
		*p++ = ':';
		p = kpg_format_put2(p, offset % SECS_PER_MINUTE);
	}
	return p;
}

/* A day is 24 hours here; how long a month is, nobody can say. */
char *
kpg_format_interval(KpgFormatter *f, Datum value, char *p)
{
	Interval   *interval = DatumGetIntervalP(value);
	int64		usecs;
	int64		ticks;

	if (kpg_compat_interval_not_finite(interval))
		return kpg_format_no(f, KPG_MISFIT_INFINITY);
	if (interval->month != 0)
		return kpg_format_no(f, KPG_MISFIT_MONTHS);
	if (__builtin_mul_overflow((int64) interval->day, USECS_PER_DAY, &usecs) ||
		__builtin_add_overflow(usecs, interval->time, &usecs) ||
		__builtin_mul_overflow(usecs, (int64) TICKS_PER_USEC, &ticks))
		return kpg_format_no(f, KPG_MISFIT_RANGE);

	return put_timespan(p, usecs < 0, usecs < 0 ? -(uint64) usecs : (uint64) usecs);
}
