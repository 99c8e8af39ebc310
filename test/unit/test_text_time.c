/*
 * test_text_time.c
 *	  RFC 3339 times.
 */
#include "tap.h"

#include "core/text.h"

#define US INT64_C(1000000)

static KcBuf out;

static void
test_format(void)
{
	static const struct
	{
		int64_t		us;
		const char *text;
	}			cases[] = {
		{0, "1970-01-01T00:00:00.000000Z"},
		{-1, "1969-12-31T23:59:59.999999Z"},
		{INT64_C(1788257472345678), "2026-09-01T10:11:12.345678Z"},
		{INT64_C(951782400) * US, "2000-02-29T00:00:00.000000Z"},
		{INT64_C(4107542400) * US, "2100-03-01T00:00:00.000000Z"},
		{INT64_C(-62135596800) * US, "0001-01-01T00:00:00.000000Z"},
		{INT64_C(-62167219200) * US, "0000-01-01T00:00:00.000000Z"},
		{INT64_C(253402300799) * US + 999999, "9999-12-31T23:59:59.999999Z"},
		{INT64_C(253402300800) * US, "10000-01-01T00:00:00.000000Z"},
		{INT64_C(-62167219201) * US, "-0001-12-31T23:59:59.000000Z"},
		{INT64_MAX, "294247-01-10T04:00:54.775807Z"},
		{INT64_MIN, "-290308-12-21T19:59:05.224192Z"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		int64_t		back = 1;

		kc_buf_reset(&out);
		kc_text_rfc3339(&out, cases[i].us);
		is_slice(kc_buf_view(&out), cases[i].text, cases[i].text);
		if (strlen(cases[i].text) != 27)
			continue;
		ok(kc_text_rfc3339_parse(kc_slice(cases[i].text), &back), "parses");
		is(back, cases[i].us, "to what it was");
	}
}

/* Every day of four centuries goes there and back, one after the other. */
static void
test_every_day(void)
{
	int64_t		wrong = 0;

	for (int64_t day = -146097; day < 146097; day++)
	{
		int64_t		us = day * 86400 * US + 12345678;
		int64_t		back;

		kc_buf_reset(&out);
		kc_text_rfc3339(&out, us);
		if (!kc_text_rfc3339_parse(kc_buf_view(&out), &back) || back != us)
			wrong++;
	}
	is(wrong, 0, "each day from 1570 to 2369 survives the round trip");
}

static void
test_parse(void)
{
	static const struct
	{
		const char *text;
		int64_t		us;
	}			cases[] = {
		/* RFC 3339 section 5.8 */
		{"1985-04-12T23:20:50.52Z", INT64_C(482196050520000)},
		{"1996-12-19T16:39:57-08:00", INT64_C(851042397) * US},
		{"1990-12-31T23:59:60Z", INT64_C(662688000) * US},
		{"1990-12-31T15:59:60-08:00", INT64_C(662688000) * US},
		{"1937-01-01T12:00:27.87+00:20", INT64_C(-1041337172130000)},
		{"2026-09-01t10:11:12z", INT64_C(1788257472) * US},
		{"2026-09-01 10:11:12", INT64_C(1788257472) * US},
		{"2026-09-01T15:56:12+05:45", INT64_C(1788257472) * US},
		{"2026-09-01T10:11:12.1234567Z", INT64_C(1788257472) * US + 123456},
		{"2026-09-01T10:11:12.000000000999Z", INT64_C(1788257472) * US},
		{"2026-09-01T10:11Z", INT64_C(1788257460) * US},
		{"2026-09-01", INT64_C(1788220800) * US},
	};
	static const char *const wrong[] = {
		"", "2026", "2026-09", "2026-9-1", "2026-13-01", "2026-00-01", "2026-02-29", "2026-04-31",
		"2026-09-00", "2100-02-29", "2026-09-01T", "2026-09-01T10", "2026-09-01T24:00:00Z",
		"2026-09-01T10:60:00Z", "2026-09-01T10:11:61Z", "2026-09-01T10:11:12.Z",
		"2026-09-01T10:11:12,5Z", "2026-09-01T10:11:12+0200", "2026-09-01T10:11:12+24:00",
		"2026-09-01T10:11:12+02:60", "2026-09-01T10:11:12 Z", "2026-09-01T10:11:12ZZ",
		"2026-09-01T10:11.5Z", " 2026-09-01", "+2026-09-01", "2026-09-01x", "10000-01-01T00:00:00Z",
		"2026/09/01", "2026-09-01T10:11:", "2026-09-01T10.11"
	};
	int64_t		us;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		us = 1;
		ok(kc_text_rfc3339_parse(kc_slice(cases[i].text), &us), "parses: %s", cases[i].text);
		is(us, cases[i].us, "right");
	}
	us = 77;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		ok(!kc_text_rfc3339_parse(kc_slice(wrong[i]), &us), "refused: %s", wrong[i]);
	ok(!kc_text_rfc3339_parse(kc_slice_n("2026-09-01\0", 11), &us), "refused: NUL");
	is(us, 77, "a failure leaves the target alone");
	ok(kc_text_rfc3339_parse(kc_slice("2000-02-29T00:00:00Z"), &us), "2000 was a leap year");
}

int
main(void)
{
	kc_buf_init(&out, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	test_format();
	test_every_day();
	test_parse();
	kc_buf_free(&out);
	return done_testing();
}
