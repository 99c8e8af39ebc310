/*
 * text_time.c
 *	  RFC 3339 times in the proleptic Gregorian calendar, as microseconds
 *	  since 1970 in UTC.  Independent of locale and time zone.  Pure.
 */
#include "text.h"

#include <string.h>

#include "ascii.h"

#define US_PER_SECOND	INT64_C(1000000)
#define SECONDS_PER_DAY INT64_C(86400)

/*
 * Days since 1970-01-01 of a civil date and back.  Years begin in March here,
 * so that the leap day is the last, and 400 of them have 146097 days.
 */
static int64_t
days_from_civil(int64_t year, int month, int day)
{
	int64_t		era;
	int64_t		year_of_era;
	int64_t		day_of_year;

	if (month <= 2)
		year--;
	era = (year >= 0 ? year : year - 399) / 400;
	year_of_era = year - era * 400;
	day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
	return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 +
		day_of_year - 719468;
}

static void
civil_from_days(int64_t days, int64_t *year, int *month, int *day)
{
	int64_t		era;
	int64_t		day_of_era;
	int64_t		year_of_era;
	int64_t		day_of_year;
	int64_t		march_month;

	days += 719468;
	era = (days >= 0 ? days : days - 146096) / 146097;
	day_of_era = days - era * 146097;
	year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 -
				   day_of_era / 146096) / 365;
	day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	march_month = (5 * day_of_year + 2) / 153;
	*day = (int) (day_of_year - (153 * march_month + 2) / 5 + 1);
	*month = (int) (march_month < 10 ? march_month + 3 : march_month - 9);
	*year = year_of_era + era * 400 + (*month <= 2 ? 1 : 0);
}

static int
days_in_month(int64_t year, int month)
{
	static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};

	if (month == 2 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0))
		return 29;
	return days[month - 1];
}

/* Exactly width digits, filled with zeros from the left. */
static void
append_digits(KcBuf *out, int64_t value, int width)
{
	char		digits[20];

	for (int i = width; i-- > 0;)
	{
		digits[i] = (char) ('0' + value % 10);
		value /= 10;
	}
	kc_buf_append(out, digits, (size_t) width);
}

/*
 * A year outside 0 to 9999 has a sign or a fifth digit, which RFC 3339 has
 * no form for; who must not send it looks at the value first.
 */
void
kc_text_rfc3339(KcBuf *out, int64_t unix_us)
{
	int64_t		seconds = unix_us / US_PER_SECOND;
	int64_t		fraction = unix_us % US_PER_SECOND;
	int64_t		days;
	int64_t		year;
	int			month;
	int			day;

	if (fraction < 0)
	{
		fraction += US_PER_SECOND;
		seconds--;
	}
	days = seconds / SECONDS_PER_DAY;
	seconds %= SECONDS_PER_DAY;
	if (seconds < 0)
	{
		seconds += SECONDS_PER_DAY;
		days--;
	}
	civil_from_days(days, &year, &month, &day);

	if (year < 0)
	{
		kc_buf_char(out, '-');
		year = -year;
	}
	append_digits(out, year, year > 99999 ? 6 : year > 9999 ? 5 : 4);
	kc_buf_char(out, '-');
	append_digits(out, month, 2);
	kc_buf_char(out, '-');
	append_digits(out, day, 2);
	kc_buf_char(out, 'T');
	append_digits(out, seconds / 3600, 2);
	kc_buf_char(out, ':');
	append_digits(out, seconds / 60 % 60, 2);
	kc_buf_char(out, ':');
	append_digits(out, seconds % 60, 2);
	kc_buf_char(out, '.');
	append_digits(out, fraction, 6);
	kc_buf_char(out, 'Z');
}

/* ---- parsing ---- */

/* Take exactly width digits from the front of *rest. */
static bool
take_number(KcSlice *rest, int width, int min, int max, int *value)
{
	*value = 0;
	if (rest->len < (size_t) width)
		return false;
	for (int i = 0; i < width; i++)
	{
		if (!kc_ascii_is_digit(rest->data[i]))
			return false;
		*value = *value * 10 + (rest->data[i] - '0');
	}
	rest->data += width;
	rest->len -= (size_t) width;
	return *value >= min && *value <= max;
}

static bool
take_char(KcSlice *rest, const char *any_of)
{
	if (rest->len == 0 || rest->data[0] == '\0' || strchr(any_of, rest->data[0]) == NULL)
		return false;
	rest->data++;
	rest->len--;
	return true;
}

/* Digits behind the point; what is finer than a microsecond is cut off. */
static bool
take_fraction(KcSlice *rest, int64_t *us)
{
	int64_t		unit = US_PER_SECOND / 10;
	size_t		start = rest->len;

	while (rest->len > 0 && kc_ascii_is_digit(rest->data[0]))
	{
		*us += (rest->data[0] - '0') * unit;
		unit /= 10;
		rest->data++;
		rest->len--;
	}
	return rest->len < start;
}

static bool
take_seconds(KcSlice *rest, int *second, int64_t *us)
{
	/* 60 is a leap second, which becomes the next minute's first */
	if (!take_number(rest, 2, 0, 60, second))
		return false;
	return !take_char(rest, ".") || take_fraction(rest, us);
}

static bool
take_offset(KcSlice *rest, int64_t *seconds)
{
	bool		west = rest->len > 0 && rest->data[0] == '-';
	int			hours;
	int			minutes;

	*seconds = 0;
	if (rest->len == 0 || take_char(rest, "Zz"))
		return true;
	if (!take_char(rest, "+-") ||
		!take_number(rest, 2, 0, 23, &hours) ||
		!take_char(rest, ":") ||
		!take_number(rest, 2, 0, 59, &minutes))
		return false;
	*seconds = hours * 3600 + minutes * 60;
	if (west)
		*seconds = -*seconds;
	return true;
}

/*
 * Beyond RFC 3339, the date alone and the time without seconds are taken,
 * since the expiry of a SAS may have these forms
 * (learn.microsoft.com/rest/api/storageservices/create-service-sas).
 */
bool
kc_text_rfc3339_parse(KcSlice text, int64_t *unix_us)
{
	KcSlice		rest = text;
	int			year;
	int			month;
	int			day;
	int			hour = 0;
	int			minute = 0;
	int			second = 0;
	int64_t		us = 0;
	int64_t		offset = 0;

	if (!take_number(&rest, 4, 0, 9999, &year) || !take_char(&rest, "-") ||
		!take_number(&rest, 2, 1, 12, &month) || !take_char(&rest, "-") ||
		!take_number(&rest, 2, 1, days_in_month(year, month), &day))
		return false;
	if (rest.len > 0)
	{
		if (!take_char(&rest, "Tt ") ||
			!take_number(&rest, 2, 0, 23, &hour) || !take_char(&rest, ":") ||
			!take_number(&rest, 2, 0, 59, &minute))
			return false;
		if (take_char(&rest, ":") && !take_seconds(&rest, &second, &us))
			return false;
		if (!take_offset(&rest, &offset) || rest.len > 0)
			return false;
	}
	*unix_us = (days_from_civil(year, month, day) * SECONDS_PER_DAY +
				hour * 3600 + minute * 60 + second - offset) * US_PER_SECOND + us;
	return true;
}
