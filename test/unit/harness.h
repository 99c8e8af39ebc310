/*
 * harness.h
 *	  A mux, a clock and the loop around them, for tests of the network side.
 *
 * The clock runs with the real one, but can be moved on, and its random
 * numbers are zero: back-off takes no time unless a server demands it.
 */
#ifndef KC_TEST_HARNESS_H
#define KC_TEST_HARNESS_H

#include <poll.h>

#include "core/mux.h"
#include "core/task.h"
#include "tap.h"

typedef struct Harness
{
	KcClock		clock;
	int64_t		moved_ms;
	uint64_t	random;
	KcMux	   *mux;
} Harness;

static int64_t
harness_monotonic_ms(void *arg)
{
	return kc_clock_system.monotonic_ms(NULL) + ((Harness *) arg)->moved_ms;
}

static int64_t
harness_unix_us(void *arg)
{
	return kc_clock_system.unix_us(NULL) + ((Harness *) arg)->moved_ms * 1000;
}

static uint64_t
harness_random(void *arg)
{
	return ((Harness *) arg)->random;
}

static void TAP_UNUSED
harness_start(Harness *h, const KcAlloc *alloc, const KcMuxHooks *hooks)
{
	KcError		err;

	memset(h, 0, sizeof(*h));
	h->clock = (KcClock) {harness_monotonic_ms, harness_unix_us, harness_random, h};
	must(kc_mux_create(alloc, &h->clock, hooks, &h->mux, &err) == KC_OK);
}

static void TAP_UNUSED
harness_stop(Harness *h)
{
	kc_mux_free(h->mux);
}

/* Wait at most so long for something to do, and do it. */
static void TAP_UNUSED
harness_turn(Harness *h, int timeout_ms)
{
	struct pollfd fd = {kc_mux_fd(h->mux), POLLIN, 0};
	KcError		err;

	(void) poll(&fd, 1, timeout_ms);
	if (kc_mux_drive(h->mux, &err) != KC_OK)
	{
		diag("the mux is broken: %s: %s", err.doing, err.what);
		must(false);
	}
}

/* Drive until the flag is set; false when that takes longer than 20 s. */
static bool TAP_UNUSED
harness_until(Harness *h, const bool *flag)
{
	int64_t		end_ms = kc_clock_system.monotonic_ms(NULL) + 20000;

	while (!*flag && kc_clock_system.monotonic_ms(NULL) < end_ms)
		harness_turn(h, 100);
	if (!*flag)
		diag("gave up waiting");
	return *flag;
}

static void TAP_UNUSED
harness_show(const KcError *err)
{
	diag("  status %d, %s: %s (%s), HTTP %d, code \"%s\", detail \"%s\", host \"%s\"", err->status,
		 err->doing ? err->doing : "?", err->what, err->lib, err->http_status, err->code,
		 err->detail, err->host);
}

static int64_t TAP_UNUSED
harness_now_ms(Harness *h)
{
	return h->clock.monotonic_ms(h->clock.arg);
}

#endif							/* KC_TEST_HARNESS_H */
