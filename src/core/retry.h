/*
 * retry.h
 *	  When to try again: a clock that tests can replace, deadlines,
 *	  exponential back-off with full jitter, Retry-After.
 */
#ifndef KC_RETRY_H
#define KC_RETRY_H

#include "base.h"

typedef struct KcClock
{
	int64_t		(*monotonic_ms) (void *arg);
	int64_t		(*unix_us) (void *arg);	/* wall clock, microseconds since 1970 */
	uint64_t	(*random) (void *arg);	/* 64 uniform bits */
	void	   *arg;
} KcClock;

extern const KcClock kc_clock_system;

typedef struct KcRetryPolicy
{
	int			max_attempts;	/* 1 means never again; 0 means until the deadline */
	int			max_unreached;	/* give up after so many tries that reached nobody,
								 * perhaps because a name is misspelt; 0: no such bound */
	int64_t		base_ms;		/* upper bound of the first wait */
	int64_t		cap_ms;			/* upper bound of every wait */
	int64_t		max_total_ms;	/* give up when the next try would start later
								 * than this after the first; 0: no such bound */
} KcRetryPolicy;

typedef struct KcRetry
{
	const KcRetryPolicy *policy;
	const KcClock *clock;
	int			attempt;		/* tries begun */
	int			unreached;		/* of them, how many reached nobody */
	int64_t		started_ms;
} KcRetry;

/* The first try begins. */
extern void kc_retry_begin(KcRetry *retry, const KcRetryPolicy *policy, const KcClock *clock);

/* Is this a failure that time may heal?  By status, permanent flag and code. */
extern bool kc_retry_transient(const KcError *err);

/*
 * After a failed try: false when it must not be tried again, else *wait_ms
 * says how long to wait, and the next try has begun.  Waits at least
 * err->retry_after_ms, and gives up when that is beyond max_total_ms.
 */
extern bool kc_retry_again(KcRetry *retry, const KcError *err, int64_t *wait_ms);

/* RFC 9110 section 10.2.3: seconds or an HTTP date; -1 when it is neither. */
extern int64_t kc_retry_after_ms(KcSlice value, const KcClock *clock);

#endif							/* KC_RETRY_H */
