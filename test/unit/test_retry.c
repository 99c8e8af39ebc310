/*
 * test_retry.c
 *	  Which failures are tried again, when, and Retry-After.
 */
#include "tap.h"

#include "core/retry.h"
#include "fake_clock.h"

static KcError
failure(KcStatus status, bool permanent, const char *code)
{
	KcError		err;

	kc_error_set(&err, status, "testing", "x");
	err.permanent = permanent;
	kc_error_text(err.code, sizeof(err.code), kc_slice(code));
	return err;
}

static void
test_transient(void)
{
	static const struct
	{
		KcStatus	status;
		bool		permanent;
		const char *code;
		bool		transient;
	}			cases[] = {
		{KC_OK, false, "", false},
		{KC_ERR_NETWORK, false, "", true},
		{KC_ERR_NETWORK, true, "", false},	/* a certificate that is not trusted */
		{KC_ERR_TIMEOUT, false, "", true},
		{KC_ERR_SERVICE, false, "General_InternalServerError", true},
		{KC_ERR_SERVICE, true, "General_InternalServerError", false},
		{KC_ERR_SERVICE, false, "BadRequest_TableNotExist", false},
		{KC_ERR_SERVICE, false, "Stream_WrongNumberOfFields", false},
		{KC_ERR_SERVICE, false, "SomethingNew", true},
		{KC_ERR_THROTTLED, false, "", true},
		{KC_ERR_THROTTLED, true, "", true},
		{KC_ERR_REFUSED, true, "Download_UnknownError", false},
		{KC_ERR_REFUSED, false, "Download_UnknownError", true},
		{KC_ERR_REFUSED, false, "SomethingNew", false},
		{KC_ERR_NOMEM, false, "", false},
		{KC_ERR_INVALID, false, "", false},
		{KC_ERR_LIMIT, false, "", false},
		{KC_ERR_AUTH, false, "", false},
		{KC_ERR_FORBIDDEN, false, "", false},
		{KC_ERR_NOT_FOUND, false, "", false},
		{KC_ERR_PROTOCOL, false, "", false},
		{KC_ERR_CANCELLED, false, "", false},
		{KC_ERR_INTERNAL, false, "", false},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		KcError		err = failure(cases[i].status, cases[i].permanent, cases[i].code);

		ok(kc_retry_transient(&err) == cases[i].transient, "status %d, %s, code \"%s\"",
		   (int) cases[i].status, cases[i].permanent ? "permanent" : "not permanent", cases[i].code);
	}
}

static void
test_backoff(void)
{
	static const int64_t bounds[] = {100, 200, 400, 800, 1000, 1000};
	KcRetryPolicy policy = {.max_attempts = 7, .base_ms = 100, .cap_ms = 1000};
	KcError		err = failure(KC_ERR_NETWORK, false, "");
	FakeClock	fc;
	KcRetry		retry;
	int64_t		wait;

	fake_clock_init(&fc);
	kc_retry_begin(&retry, &policy, &fc.clock);
	is(retry.attempt, 1, "the first try has begun");
	for (size_t i = 0; i < sizeof(bounds) / sizeof(bounds[0]); i++)
	{
		fc.random = (uint64_t) bounds[i];
		ok(kc_retry_again(&retry, &err, &wait), "again");
		is(wait, bounds[i], "the longest wait");
	}
	ok(!kc_retry_again(&retry, &err, &wait), "seven tries are enough");
	is(wait, 0, "and nothing to wait for");

	kc_retry_begin(&retry, &policy, &fc.clock);
	fc.random = 101;
	ok(kc_retry_again(&retry, &err, &wait) && wait == 0, "the shortest wait");
	err = failure(KC_ERR_REFUSED, true, "");
	ok(!kc_retry_again(&retry, &err, &wait), "a permanent failure");

	/* tries that reach nobody have a bound of their own */
	policy = (KcRetryPolicy) {.max_unreached = 2, .base_ms = 100, .cap_ms = 100};
	kc_retry_begin(&retry, &policy, &fc.clock);
	err = failure(KC_ERR_SERVICE, false, "");
	err.http_status = 503;
	ok(kc_retry_again(&retry, &err, &wait) && kc_retry_again(&retry, &err, &wait)
	   && kc_retry_again(&retry, &err, &wait), "whoever answers is asked again");
	err = failure(KC_ERR_NETWORK, false, "");
	ok(kc_retry_again(&retry, &err, &wait), "nobody, once");
	err.after_send = true;
	ok(kc_retry_again(&retry, &err, &wait), "an answer that was lost is not nobody");
	err.after_send = false;
	ok(!kc_retry_again(&retry, &err, &wait), "nobody, twice");

	/* once and never again */
	policy.max_attempts = 1;
	err = failure(KC_ERR_NETWORK, false, "");
	kc_retry_begin(&retry, &policy, &fc.clock);
	ok(!kc_retry_again(&retry, &err, &wait), "one try");
}

static void
test_distribution(void)
{
	KcRetryPolicy policy = {.max_attempts = 0, .base_ms = 9, .cap_ms = 9};
	KcError		err = failure(KC_ERR_NETWORK, false, "");
	int			seen[10] = {0};
	KcRetry		retry;
	int64_t		wait;
	bool		in_range = true;
	bool		uniform = true;

	kc_retry_begin(&retry, &policy, &kc_clock_system);
	for (int i = 0; i < 10000; i++)
	{
		must(kc_retry_again(&retry, &err, &wait));
		in_range = in_range && wait >= 0 && wait <= 9;
		seen[wait >= 0 && wait <= 9 ? wait : 0]++;
	}
	/* 1000 each, with a deviation of 30 */
	for (int i = 0; i < 10; i++)
		uniform = uniform && seen[i] > 700 && seen[i] < 1300;
	ok(in_range, "every wait is in range");
	ok(uniform, "and all are as likely");
	is(retry.attempt, 10001, "without a bound on the tries");
}

static void
test_edges_of_policy(void)
{
	KcError		err = failure(KC_ERR_NETWORK, false, "");
	KcRetryPolicy policy = {.base_ms = INT64_MAX / 3 * 2, .cap_ms = INT64_MAX};
	FakeClock	fc;
	KcRetry		retry;
	int64_t		wait;

	fake_clock_init(&fc);
	fc.random = UINT64_MAX;
	kc_retry_begin(&retry, &policy, &fc.clock);
	for (int i = 0; i < 100; i++)
		must(kc_retry_again(&retry, &err, &wait) && wait >= 0);
	ok(true, "doubling does not overflow");
	policy = (KcRetryPolicy) {0};
	kc_retry_begin(&retry, &policy, &fc.clock);
	ok(kc_retry_again(&retry, &err, &wait) && kc_retry_again(&retry, &err, &wait) && wait == 0,
	   "no wait at all");
}

static void
test_deadline(void)
{
	KcRetryPolicy policy = {.base_ms = 1000, .cap_ms = 1000, .max_total_ms = 5000};
	KcError		err = failure(KC_ERR_THROTTLED, false, "");
	FakeClock	fc;
	KcRetry		retry;
	int64_t		wait;

	fake_clock_init(&fc);
	kc_retry_begin(&retry, &policy, &fc.clock);
	fc.random = 1000;
	fake_clock_advance(&fc, 3000);
	ok(kc_retry_again(&retry, &err, &wait) && wait == 1000, "in time");
	err.retry_after_ms = 1500;
	ok(kc_retry_again(&retry, &err, &wait) && wait == 1500, "Retry-After is a floor");
	err.retry_after_ms = 3600000;
	ok(!kc_retry_again(&retry, &err, &wait), "beyond the deadline it is no use waiting");
	err.retry_after_ms = -1;
	fake_clock_advance(&fc, 1999);
	ok(kc_retry_again(&retry, &err, &wait) && wait == 1, "the last try");
	fake_clock_advance(&fc, 1);
	ok(!kc_retry_again(&retry, &err, &wait), "too late");

	policy.max_total_ms = 0;
	err.retry_after_ms = 3600000;
	kc_retry_begin(&retry, &policy, &fc.clock);
	fake_clock_advance(&fc, INT64_C(86400000));
	ok(kc_retry_again(&retry, &err, &wait) && wait == 3600000, "no deadline");
	err.retry_after_ms = 500;
	fc.random = 900;
	ok(kc_retry_again(&retry, &err, &wait) && wait == 900, "a jitter above Retry-After");
}

static void
test_retry_after(void)
{
	/* the clock stands at Tue, 01 Sep 2026 10:11:12 GMT */
	static const struct
	{
		const char *value;
		int64_t		ms;
	}			cases[] = {
		{"0", 0}, {"120", 120000}, {" 7\t", 7000},
		{"99999999999999999999", INT64_C(1000000000000)},
		{"Tue, 01 Sep 2026 10:11:42 GMT", 30000},
		{"Tue, 01 Sep 2026 10:11:12 GMT", 0},
		{"Sun, 06 Nov 1994 08:49:37 GMT", 0},
		{"Wed, 02 Sep 2026 10:11:12 GMT", 86400000},
		{"Tuesday, 01-Sep-26 10:12:12 GMT", 60000},
		{"Sunday, 06-Nov-94 08:49:37 GMT", 0},
		{"Wednesday, 01-Sep-76 10:11:12 GMT", INT64_C(1577923200000)},
		{"Tue Sep  1 10:11:13 2026", 1000},
		{"Tue Sep 01 10:11:13 2026", 1000},
		{"Sun Nov  6 08:49:37 1994", 0},
		{"", -1}, {" ", -1}, {"-1", -1}, {"1.5", -1}, {"soon", -1}, {"0x10", -1}, {"12 34", -1},
		{"Tue, 01 Sep 2026 10:11:42 CET", -1},
		{"Tue, 31 Feb 2026 10:11:42 GMT", -1},
		{"Tue, 01 Foo 2026 10:11:42 GMT", -1},
		{"Tue, 01 Sep 2026 25:11:42 GMT", -1},
		{"Tue, 1 Sep 2026 10:11:42 GMT", -1},
		{"Tue, 0x Sep 2026 10:11:42 GMT", -1},
		{"Tue, 01 Se1 2026 10:11:42 GMT", -1},
		{"Tue Sep  x 10:11:13 2026", -1},
		{"Tue Sep  0 10:11:13 2026", -1},
		{", 01 Sep 2026 10:11:42 GMT", -1},
		{"Onethousand, 01 Sep 2026 10:11:42 GMT", -1},
	};
	FakeClock	fc;

	fake_clock_init(&fc);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		is(kc_retry_after_ms(kc_slice(cases[i].value), &fc.clock), cases[i].ms, cases[i].value);
	fc.unix_us += 500;
	is(kc_retry_after_ms(kc_slice("Tue, 01 Sep 2026 10:11:13 GMT"), &fc.clock), 1000,
	   "rounded up, never down");
	is(kc_retry_after_ms(KC_SLICE_NULL, &fc.clock), -1, "no header");
}

static void
test_system_clock(void)
{
	const KcClock *clock = &kc_clock_system;
	int64_t		first = clock->monotonic_ms(clock->arg);

	ok(clock->monotonic_ms(clock->arg) >= first, "monotonic");
	ok(clock->unix_us(clock->arg) > INT64_C(1700000000000000), "after 2023");
	ok(clock->random(clock->arg) != clock->random(clock->arg), "random");
}

int
main(void)
{
	test_transient();
	test_backoff();
	test_distribution();
	test_edges_of_policy();
	test_deadline();
	test_retry_after();
	test_system_clock();
	return done_testing();
}
