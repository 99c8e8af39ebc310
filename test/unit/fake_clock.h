/*
 * fake_clock.h
 *	  A KcClock that stands still until the test moves it, and whose random
 *	  numbers the test chooses.
 */
#ifndef KC_TEST_FAKE_CLOCK_H
#define KC_TEST_FAKE_CLOCK_H

#include "core/retry.h"

typedef struct FakeClock
{
	KcClock		clock;
	int64_t		now_ms;			/* monotonic */
	int64_t		unix_us;
	uint64_t	random;			/* what the next call gives */
	uint64_t	random_step;	/* added after each call */
} FakeClock;

static inline int64_t
fake_monotonic_ms(void *arg)
{
	return ((FakeClock *) arg)->now_ms;
}

static inline int64_t
fake_unix_us(void *arg)
{
	return ((FakeClock *) arg)->unix_us;
}

static inline uint64_t
fake_random(void *arg)
{
	FakeClock  *fc = arg;
	uint64_t	value = fc->random;

	fc->random += fc->random_step;
	return value;
}

static inline void
fake_clock_init(FakeClock *fc)
{
	*fc = (FakeClock) {
		.clock = {fake_monotonic_ms, fake_unix_us, fake_random, fc},
		.now_ms = 1000,
		.unix_us = INT64_C(1788257472000000)	/* 2026-09-01T10:11:12Z */
	};
}

static inline void
fake_clock_advance(FakeClock *fc, int64_t ms)
{
	fc->now_ms += ms;
	fc->unix_us += ms * 1000;
}

#endif							/* KC_TEST_FAKE_CLOCK_H */
