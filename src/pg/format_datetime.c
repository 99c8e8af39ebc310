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

#include "format_internal.h"

/* 0001-01-01 and 10000-01-01, in days since 2000-01-01 */
#define FIRST_DAY	(-730119)
#define END_DAY		2921940

#define TICKS_PER_USEC	10

static char *
put_date(char *p, DateADT day)
{
	int			year;
	int			month;
	int			mday;

	j2date(day + POSTGRES_EPOCH_JDATE, &year, &month, &mday);
	p = kpg_format_put2(p, year / 100);
	p = kpg_format_put2(p, year % 100);
	*p++ = '-';
	p = kpg_format_put2(p, month);
	*p++ = '-';
	return kpg_format_put2(p, mday);
}

/* hh:mm:ss, and a fraction when there is one; hours at most two digits. */
static char *
put_time(char *p, int64 usecs)
{
	int			seconds = (int) (usecs / USECS_PER_SEC);
	int			fraction = (int) (usecs % USECS_PER_SEC);

	p = kpg_format_put2(p, seconds / SECS_PER_HOUR);
	*p++ = ':';
	p = kpg_format_put2(p, seconds / SECS_PER_MINUTE % MINS_PER_HOUR);
	*p++ = ':';
	p = kpg_format_put2(p, seconds % SECS_PER_MINUTE);
	if (fraction != 0)
	{
		*p++ = '.';
		p = kpg_format_put2(p, fraction / 10000);
		p = kpg_format_put2(p, fraction / 100 % 100);
		p = kpg_format_put2(p, fraction % 100);
	}
	return p;
}

static char *
put_timespan(char *p, bool negative, uint64 usecs)
{
	uint64		ndays = usecs / USECS_PER_DAY;

	if (negative)
		*p++ = '-';
	if (ndays != 0)
	{
		p += pg_ulltoa_n(ndays, p);
		*p++ = '.';
	}
	return put_time(p, (int64) (usecs % USECS_PER_DAY));
}

KpgMisfit
kpg_format_date(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	DateADT		day = DatumGetDateADT(value);

	if (DATE_NOT_FINITE(day))
		return KPG_MISFIT_INFINITY;
	if (day < FIRST_DAY)
		return KPG_MISFIT_BEFORE_YEAR_1;
	if (day >= END_DAY)
		return KPG_MISFIT_AFTER_YEAR_9999;

	*len = put_date(buf, day) - buf;
	return KPG_FITS;
}

/* timestamp and timestamptz: both count microseconds, of UTC or as if. */
KpgMisfit
kpg_format_timestamp(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	Timestamp	timestamp = DatumGetTimestamp(value);
	int64		day;
	int64		usecs;
	char	   *p;

	if (TIMESTAMP_NOT_FINITE(timestamp))
		return KPG_MISFIT_INFINITY;
	if (timestamp < FIRST_DAY * USECS_PER_DAY)
		return KPG_MISFIT_BEFORE_YEAR_1;
	if (timestamp >= END_DAY * USECS_PER_DAY)
		return KPG_MISFIT_AFTER_YEAR_9999;

	day = timestamp / USECS_PER_DAY;
	usecs = timestamp % USECS_PER_DAY;
	if (usecs < 0)
	{
		day--;
		usecs += USECS_PER_DAY;
	}
	p = put_date(buf, (DateADT) day);
	*p++ = 'T';
	p = put_time(p, usecs);
	*p++ = 'Z';
	*len = p - buf;
	return KPG_FITS;
}

int
kpg_format_datetime(TimestampTz time, char *buf)
{
	int			len = 0;
	KpgMisfit	misfit PG_USED_FOR_ASSERTS_ONLY =
		kpg_format_timestamp(NULL, TimestampTzGetDatum(time), buf, &len);

	Assert(misfit == KPG_FITS && len <= KPG_DATETIME_MAX);
	return len;
}

/* 24:00:00, which PostgreSQL allows, is a day. */
KpgMisfit
kpg_format_time(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	*len = put_timespan(buf, false, (uint64) DatumGetTimeADT(value)) - buf;
	return KPG_FITS;
}

/*
 * Kusto has no type for it.  A timespan would lose the offset, so it is a
 * string, in PostgreSQL's ISO form.
 */
KpgMisfit
kpg_format_timetz(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	TimeTzADT  *timetz = DatumGetTimeTzADTP(value);
	int			offset = abs(timetz->zone);
	char	   *p = put_time(buf, timetz->time);

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
	*len = p - buf;
	return KPG_FITS;
}

/* A day is 24 hours here; how long a month is, nobody can say. */
KpgMisfit
kpg_format_interval(const KpgFormatter *f, Datum value, char *buf, int *len)
{
	Interval   *interval = DatumGetIntervalP(value);
	int64		usecs;
	int64		ticks;

	if (kpg_compat_interval_not_finite(interval))
		return KPG_MISFIT_INFINITY;
	if (interval->month != 0)
		return KPG_MISFIT_MONTHS;
	if (__builtin_mul_overflow((int64) interval->day, USECS_PER_DAY, &usecs) ||
		__builtin_add_overflow(usecs, interval->time, &usecs) ||
		__builtin_mul_overflow(usecs, (int64) TICKS_PER_USEC, &ticks))
		return KPG_MISFIT_RANGE;

	*len = put_timespan(buf, usecs < 0, usecs < 0 ? -(uint64) usecs : (uint64) usecs) - buf;
	return KPG_FITS;
}
