/*
 * retry.c
 *	  When to try again.  Never waits itself: it only says how long.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* getentropy() */
#endif

#include "retry.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef __APPLE__
#include <sys/random.h>
#endif

#include "ascii.h"
#include "text.h"

/* No service means more than that; keeps the arithmetic far from overflow. */
#define RETRY_AFTER_MAX_S	INT64_C(1000000000)

/* ---- the system's clock ---- */

static int64_t
system_monotonic_ms(void *arg)
{
	struct timespec now;

	(void) arg;
	(void) clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int64_t
system_unix_us(void *arg)
{
	struct timespec now;

	(void) arg;
	(void) clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static uint64_t
system_random(void *arg)
{
	uint64_t	bits;
	struct timespec now;

	(void) arg;
	if (getentropy(&bits, sizeof(bits)) == 0)
		return bits;

	/* Jitter only has to differ between clients; SplitMix64 of the clock. */
	(void) clock_gettime(CLOCK_REALTIME, &now);
	bits = (uint64_t) now.tv_sec * UINT64_C(1000000000) + (uint64_t) now.tv_nsec;
	bits ^= (uint64_t) getpid() << 40;
	bits = (bits ^ (bits >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
	bits = (bits ^ (bits >> 27)) * UINT64_C(0x94D049BB133111EB);
	return bits ^ (bits >> 31);
}

const KcClock kc_clock_system = {
	system_monotonic_ms, system_unix_us, system_random, NULL
};

/* ---- what time may heal ---- */

/*
 * Kusto's ingestion error codes that are transient, and codes of Azure Storage
 * that are (learn.microsoft.com/azure/data-explorer/error-codes,
 * .../rest/api/storageservices/common-rest-api-error-codes).
 */
static const char *const transient_codes[] = {
	"Download_UnknownError",
	"Download_TransientNameResolutionFailure",
	"General_InternalServerError",
	"General_TransientSchemaMismatch",
	"General_ThrottledIngestion",
	"Timeout",
	"OutOfMemory",
	"UpdatePolicy_FailedDescendantTransaction",
	"UpdatePolicy_IngestionError",
	"UpdatePolicy_UnknownError",
	"InternalError",
	"OperationTimedOut",
	"ServerBusy",
};

static bool
is_transient_code(KcSlice code)
{
	for (size_t i = 0; i < sizeof(transient_codes) / sizeof(transient_codes[0]); i++)
	{
		if (kc_slice_ieq(code, kc_slice(transient_codes[i])))
			return true;
	}
	return false;
}

/* Whole families of codes blame the request. */
static bool
is_permanent_code(KcSlice code)
{
	return kc_slice_starts(code, kc_slice("BadRequest_")) ||
		kc_slice_starts(code, kc_slice("Stream_"));
}

bool
kc_retry_transient(const KcError *err)
{
	KcSlice		code = kc_slice(err->code);

	switch (err->status)
	{
		case KC_ERR_THROTTLED:
			return true;		/* whatever the body says */
		case KC_ERR_NETWORK:
		case KC_ERR_TIMEOUT:
		case KC_ERR_SERVICE:
			return !err->permanent && !is_permanent_code(code);
		case KC_ERR_REFUSED:
			/* permanent is implied; who clears it has read otherwise */
			return !err->permanent && is_transient_code(code);
		case KC_OK:
		case KC_ERR_NOMEM:
		case KC_ERR_INVALID:
		case KC_ERR_LIMIT:
		case KC_ERR_AUTH:
		case KC_ERR_FORBIDDEN:
		case KC_ERR_NOT_FOUND:
		case KC_ERR_PROTOCOL:
		case KC_ERR_CANCELLED:
		case KC_ERR_INTERNAL:
			break;
	}
	return false;
}

/* ---- waits ---- */

void
kc_retry_begin(KcRetry *retry, const KcRetryPolicy *policy, const KcClock *clock)
{
	*retry = (KcRetry) {
		.policy = policy,
		.clock = clock,
		.attempt = 1,
		.started_ms = clock->monotonic_ms(clock->arg)
	};
}

/* min(cap, base * 2^(attempt - 1)) */
static int64_t
wait_bound(const KcRetryPolicy *policy, int attempt)
{
	int64_t		bound = policy->base_ms;

	for (int i = 1; i < attempt && bound < policy->cap_ms; i++)
	{
		if (__builtin_mul_overflow(bound, (int64_t) 2, &bound) || bound == 0)
			break;
	}
	return bound < policy->cap_ms ? bound : policy->cap_ms;
}

bool
kc_retry_again(KcRetry *retry, const KcError *err, int64_t *wait_ms)
{
	const KcRetryPolicy *policy = retry->policy;
	const KcClock *clock = retry->clock;
	int64_t		bound;
	int64_t		wait = 0;

	*wait_ms = 0;
	if (!kc_retry_transient(err))
		return false;
	if (policy->max_attempts > 0 && retry->attempt >= policy->max_attempts)
		return false;
	if (err->http_status == 0 && !err->after_send)
		retry->unreached++;
	if (policy->max_unreached > 0 && retry->unreached >= policy->max_unreached)
		return false;

	/*
	 * Full jitter: clients that failed together must not come back together
	 * (aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter).
	 */
	bound = wait_bound(policy, retry->attempt);
	if (bound > 0)
		wait = (int64_t) (clock->random(clock->arg) % ((uint64_t) bound + 1));
	if (wait < err->retry_after_ms)
		wait = err->retry_after_ms;

	if (policy->max_total_ms > 0)
	{
		int64_t		elapsed = clock->monotonic_ms(clock->arg) - retry->started_ms;
		int64_t		remaining = policy->max_total_ms - elapsed;

		/* Earlier than the service asked for is in vain, and so is the wait. */
		if (remaining <= 0 || err->retry_after_ms > remaining)
			return false;
		/* One try at the very end is better than time left unused. */
		if (wait > remaining)
			wait = remaining;
	}
	retry->attempt++;
	*wait_ms = wait;
	return true;
}

/* ---- Retry-After ---- */

static KcSlice
trim(KcSlice s)
{
	while (s.len > 0 && (s.data[0] == ' ' || s.data[0] == '\t'))
		s = kc_slice_n(s.data + 1, s.len - 1);
	while (s.len > 0 && (s.data[s.len - 1] == ' ' || s.data[s.len - 1] == '\t'))
		s.len--;
	return s;
}

/* delay-seconds, or -1 */
static int64_t
parse_delay(KcSlice value)
{
	int64_t		seconds = 0;

	for (size_t i = 0; i < value.len; i++)
	{
		if (!kc_ascii_is_digit(value.data[i]))
			return -1;
		seconds = seconds * 10 + (value.data[i] - '0');
		if (seconds > RETRY_AFTER_MAX_S)
			seconds = RETRY_AFTER_MAX_S;
	}
	return value.len > 0 ? seconds : -1;
}

/*
 * The three forms of an HTTP date (RFC 9110 section 5.6.7), as patterns: Y, D,
 * H, M, S are a digit of that part, B a letter of the month, d a digit or a
 * blank, all else is itself.  The name of the day is skipped unread.
 */
static const char *const date_patterns[] = {
	", DD BBB YYYY HH:MM:SS GMT",
	", DD-BBB-YY HH:MM:SS GMT",
	" BBB dD HH:MM:SS YYYY",
};

typedef struct DateParts
{
	int			year;
	int			day;
	int			hour;
	int			minute;
	int			second;
	char		month[3];
} DateParts;

static bool
match_date_char(char pattern, char c, DateParts *date, int *month_len)
{
	int		   *part;

	switch (pattern)
	{
		case 'Y':
			part = &date->year;
			break;
		case 'd':
			if (c == ' ')
				return true;
			/* fall through */
		case 'D':
			part = &date->day;
			break;
		case 'H':
			part = &date->hour;
			break;
		case 'M':
			part = &date->minute;
			break;
		case 'S':
			part = &date->second;
			break;
		case 'B':
			date->month[(*month_len)++] = c;
			return kc_ascii_is_alpha(c);
		default:
			return c == pattern;
	}
	if (!kc_ascii_is_digit(c))
		return false;
	*part = *part * 10 + (c - '0');
	return true;
}

static bool
match_date(KcSlice text, const char *pattern, DateParts *date)
{
	int			month_len = 0;
	bool		in_gmt = false;

	memset(date, 0, sizeof(*date));
	if (text.len != strlen(pattern))
		return false;
	for (size_t i = 0; i < text.len; i++)
	{
		/* the M of GMT is no minute */
		in_gmt = in_gmt || pattern[i] == 'G';
		if (in_gmt ? text.data[i] != pattern[i] :
			!match_date_char(pattern[i], text.data[i], date, &month_len))
			return false;
	}
	return true;
}

/* The time that a date names, through the one calendar of text_time.c. */
static bool
date_to_unix_us(const DateParts *date, const KcClock *clock, int year_digits, int64_t *unix_us)
{
	static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
	char		text[80];
	int			month = 0;
	int			year = date->year;

	while (month < 12 && memcmp(months + month * 3, date->month, 3) != 0)
		month++;
	if (year_digits == 2)
	{
		/* more than 50 years ahead means the century before */
		int64_t		this_year = 1970 + clock->unix_us(clock->arg) / INT64_C(31556952000000);

		year += (int) (this_year / 100 * 100);
		if (year > this_year + 50)
			year -= 100;
	}
	(void) snprintf(text, sizeof(text), "%04d-%02d-%02dT%02d:%02d:%02dZ", year, month + 1,
					date->day, date->hour, date->minute, date->second);
	return kc_text_rfc3339_parse(kc_slice(text), unix_us);
}

static bool
parse_http_date(KcSlice value, const KcClock *clock, int64_t *unix_us)
{
	size_t		name_len = 0;

	while (name_len < value.len && kc_ascii_is_alpha(value.data[name_len]))
		name_len++;
	if (name_len < 3 || name_len > 9)
		return false;
	value = kc_slice_n(value.data + name_len, value.len - name_len);
	for (size_t i = 0; i < sizeof(date_patterns) / sizeof(date_patterns[0]); i++)
	{
		DateParts	date;

		if (match_date(value, date_patterns[i], &date))
			return date_to_unix_us(&date, clock, strstr(date_patterns[i], "YYYY") ? 4 : 2,
								   unix_us);
	}
	return false;
}

int64_t
kc_retry_after_ms(KcSlice value, const KcClock *clock)
{
	int64_t		seconds;
	int64_t		unix_us;
	int64_t		wait_us;

	value = trim(value);
	seconds = parse_delay(value);
	if (seconds >= 0)
		return seconds * 1000;
	if (!parse_http_date(value, clock, &unix_us))
		return -1;
	wait_us = unix_us - clock->unix_us(clock->arg);
	return wait_us <= 0 ? 0 : (wait_us + 999) / 1000;
}
