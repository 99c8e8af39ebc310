/*
 * tap.h
 *	  Tests in C that print TAP (testanything.org).
 *
 * Each program includes this once, makes its checks and ends with
 *
 *		return done_testing();
 *
 * A check is true when it passed.  ok(), is() and the others evaluate each
 * argument once; a failed one says where, what it got and what it wanted.
 */
#ifndef KC_TEST_TAP_H
#define KC_TEST_TAP_H

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base.h"

#define TAP_UNUSED __attribute__((unused))

static int	tap_run;
static int	tap_failed;

static void TAP_UNUSED
KC_PRINTF(1, 2)
diag(const char *fmt,...)
{
	va_list		args;

	fflush(stdout);
	fputs("# ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
}

/* Bytes as they may stand in a diagnosis. */
static void TAP_UNUSED
tap_show(const char *label, const char *data, size_t len)
{
	fprintf(stderr, "#   %s: ", label);
	if (data == NULL)
		fputs("NULL", stderr);
	for (size_t i = 0; data != NULL && i < len && i < 2000; i++)
	{
		unsigned char c = (unsigned char) data[i];

		if (c < 0x20 || c >= 0x7F || c == '\\')
			fprintf(stderr, "\\x%02x", c);
		else
			fputc(c, stderr);
	}
	fprintf(stderr, " (%zu bytes)\n", data == NULL ? 0 : len);
}

static bool TAP_UNUSED
KC_PRINTF(4, 5)
tap_ok(bool passed, const char *file, int line, const char *fmt,...)
{
	va_list		args;

	printf("%sok %d - ", passed ? "" : "not ", ++tap_run);
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
	if (!passed)
	{
		tap_failed++;
		diag("failed at %s:%d", file, line);
	}
	return passed;
}

static bool TAP_UNUSED
tap_is_int(int64_t got, int64_t want, const char *file, int line, const char *name)
{
	bool		passed = tap_ok(got == want, file, line, "%s", name);

	if (!passed)
		diag("  got %" PRId64 ", wanted %" PRId64, got, want);
	return passed;
}

static bool TAP_UNUSED
tap_is_bytes(const char *got, size_t got_len, const char *want, size_t want_len,
			 const char *file, int line, const char *name)
{
	bool		passed = got == NULL || want == NULL ? got == want :
		got_len == want_len && memcmp(got, want, want_len) == 0;

	tap_ok(passed, file, line, "%s", name);
	if (!passed)
	{
		tap_show("got   ", got, got_len);
		tap_show("wanted", want, want_len);
	}
	return passed;
}

static bool TAP_UNUSED
tap_is_str(const char *got, const char *want, const char *file, int line, const char *name)
{
	return tap_is_bytes(got, got ? strlen(got) : 0, want, want ? strlen(want) : 0,
						file, line, name);
}

static bool TAP_UNUSED
tap_is_slice(KcSlice got, const char *want, const char *file, int line, const char *name)
{
	/* an empty slice need not point anywhere */
	return tap_is_bytes(got.len == 0 ? "" : got.data, got.len, want, strlen(want),
						file, line, name);
}

#define ok(passed, ...) tap_ok((passed), __FILE__, __LINE__, __VA_ARGS__)
#define is(got, want, name) tap_is_int((int64_t) (got), (int64_t) (want), __FILE__, __LINE__, name)
#define is_str(got, want, name) tap_is_str((got), (want), __FILE__, __LINE__, name)
#define is_slice(got, want, name) tap_is_slice((got), (want), __FILE__, __LINE__, name)
#define is_bytes(got, got_len, want, want_len, name) \
	tap_is_bytes((got), (got_len), (want), (want_len), __FILE__, __LINE__, name)

/* For what must hold before a test can go on. */
#define must(condition) \
	do { \
		if (!(condition)) \
		{ \
			printf("Bail out! %s:%d: %s\n", __FILE__, __LINE__, #condition); \
			exit(1); \
		} \
	} while (0)

static int TAP_UNUSED
done_testing(void)
{
	printf("1..%d\n", tap_run);
	if (tap_failed > 0)
		diag("%d of %d failed", tap_failed, tap_run);
	return tap_failed == 0 && tap_run > 0 ? 0 : 1;
}

#endif							/* KC_TEST_TAP_H */
