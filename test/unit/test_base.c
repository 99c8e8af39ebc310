/*
 * test_base.c
 *	  Slices, errors, scrubbing, the allocator, the buffer.
 */
#include "tap.h"

#include "core/buf.h"
#include "core/text.h"
#include "fail_alloc.h"

static void
test_slices(void)
{
	is(kc_slice(NULL).len, 0, "a NULL string is an empty slice");
	is_slice(kc_slice("abc"), "abc", "a slice of a string");
	is_slice(kc_slice_n("abcdef", 3), "abc", "a slice of bytes");
	ok(kc_slice_eq(KC_SLICE_NULL, kc_slice("")), "empty slices are equal");
	ok(kc_slice_eq(kc_slice("a"), kc_slice("a")), "equal");
	ok(!kc_slice_eq(kc_slice("a"), kc_slice("b")), "not equal");
	ok(!kc_slice_eq(kc_slice("a"), kc_slice("ab")), "not equal in length");
	ok(kc_slice_ieq(kc_slice("aZ@["), kc_slice("Az@[")), "equal without case");
	ok(!kc_slice_ieq(kc_slice("@"), kc_slice("`")), "@ is no capital `");
	ok(!kc_slice_ieq(kc_slice("a"), kc_slice("aa")), "not equal without case");
	ok(kc_slice_starts(kc_slice("abc"), kc_slice("ab")), "starts");
	ok(kc_slice_starts(kc_slice("abc"), KC_SLICE_NULL), "starts with nothing");
	ok(!kc_slice_starts(kc_slice("a"), kc_slice("ab")), "too short to start");
	ok(kc_slice_ends_i(kc_slice("x.NET"), kc_slice(".net")), "ends");
	ok(kc_slice_ends_i(kc_slice("x"), KC_SLICE_NULL), "ends with nothing");
	ok(kc_slice_ends_i(KC_SLICE_NULL, KC_SLICE_NULL), "nothing ends with nothing");
	ok(!kc_slice_ends_i(kc_slice("net"), kc_slice(".net")), "too short to end");
}

static void
test_error_fields(void)
{
	KcError		err;
	static const KcStatus permanent[] = {
		KC_ERR_INVALID, KC_ERR_LIMIT, KC_ERR_AUTH, KC_ERR_FORBIDDEN,
		KC_ERR_NOT_FOUND, KC_ERR_REFUSED, KC_ERR_PROTOCOL
	};
	static const KcStatus passing[] = {
		KC_ERR_NOMEM, KC_ERR_NETWORK, KC_ERR_TIMEOUT, KC_ERR_THROTTLED,
		KC_ERR_SERVICE, KC_ERR_CANCELLED, KC_ERR_INTERNAL
	};

	memset(&err, 0x55, sizeof(err));
	is(kc_error_set(&err, KC_ERR_NETWORK, "testing", "a %s of %d", "matter", 3),
	   KC_ERR_NETWORK, "kc_error_set gives the status");
	is(err.status, KC_ERR_NETWORK, "and stores it");
	is_str(err.doing, "testing", "what we did");
	is_str(err.what, "a matter of 3", "what went wrong");
	is_str(err.detail, "", "the service's part is cleared");
	is(err.http_status, 0, "so is the HTTP status");
	is(err.retry_after_ms, -1, "no Retry-After is -1");
	ok(!err.after_send, "nothing was sent");

	is(kc_error_set(NULL, KC_ERR_LIMIT, "testing", "x"), KC_ERR_LIMIT,
	   "without an error there is still a status");
	is(kc_error_nomem(&err, "testing"), KC_ERR_NOMEM, "kc_error_nomem");
	is_str(err.what, "out of memory", "says so");

	kc_error_set(&err, KC_ERR_INTERNAL, "a", "first");
	kc_error_set(&err, KC_ERR_INTERNAL, "b", "after %s", err.what);
	is_str(err.what, "after first", "an error may quote itself");

	kc_error_clear(&err);
	is(err.status, KC_OK, "cleared");
	is(err.retry_after_ms, -1, "cleared, without Retry-After");
	kc_error_clear(NULL);

	for (size_t i = 0; i < sizeof(permanent) / sizeof(permanent[0]); i++)
	{
		kc_error_set(&err, permanent[i], "testing", "x");
		ok(err.permanent, "status %d implies permanent", (int) permanent[i]);
	}
	for (size_t i = 0; i < sizeof(passing) / sizeof(passing[0]); i++)
	{
		kc_error_set(&err, passing[i], "testing", "x");
		ok(!err.permanent, "status %d does not", (int) passing[i]);
	}
}

static const char *
cleaned(const char *data, size_t len)
{
	static char field[KC_ERROR_WHAT_MAX];

	kc_error_text(field, sizeof(field), kc_slice_n(data, len));
	return field;
}

#define CLEANED(text) cleaned(text, sizeof(text) - 1)

static void
test_error_text(void)
{
	char		small[8];
	char		detail[KC_ERROR_DETAIL_MAX];
	char		one[1] = {'x'};
	char		big[6000];
	KcError		err;

	is_str(CLEANED("plain"), "plain", "plain text stays");
	is_str(CLEANED("gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x98\x80"),
		   "gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x98\x80", "UTF-8 stays");
	is_str(CLEANED("a\x01\x7F" "b\0c\r"), "abc", "controls and NUL go");
	is_str(CLEANED("a\xC2\x85" "b\xC2\x9F" "c\xC2\xA0"), "abc\xC2\xA0", "C1 controls go");
	is_str(CLEANED("a\nb\tc"), "a b c", "a one-line field has no lines");
	is_str(CLEANED("\xFF\xC0\x80\xE2\x82"), "?????", "wrong bytes become question marks");
	is_str(CLEANED("\xED\xA0\x80"), "???", "a surrogate is wrong");
	is_str(CLEANED("si\x01g=abcdef"), "sig=***", "a control cannot hide a name");
	is_str(cleaned(NULL, 0), "", "no text at all");

	kc_error_text(detail, sizeof(detail), kc_slice("a\nb\tc\r\n"));
	is_str(detail, "a\nb\tc\n", "the detail has lines");

	kc_error_text(small, sizeof(small), kc_slice("123456\xE2\x82\xAC"));
	is_str(small, "123456", "cut between characters");
	kc_error_text(small, sizeof(small), kc_slice("1234\xE2\x82\xAC" "5678"));
	is_str(small, "1234\xE2\x82\xAC", "a character that just fits stays");
	kc_error_text(one, sizeof(one), kc_slice("text"));
	is_str(one, "", "a field of one byte holds the terminator");
	kc_error_text(NULL, 0, kc_slice("text"));

	memset(big, 'a', sizeof(big));
	memcpy(big + 4090, "\xF0\x9F\x98\x80\xF0\x9F\x98\x80", 8);
	kc_error_text(detail, sizeof(detail), kc_slice_n(big, sizeof(big)));
	is(strlen(detail), sizeof(detail) - 1, "a long text fills the field");
	memset(big, '\xFF', sizeof(big));
	kc_error_text(detail, sizeof(detail), kc_slice_n(big, sizeof(big)));
	is(strspn(detail, "?"), sizeof(detail) - 1, "so does a long wrong one");
	memset(big, '\n', sizeof(big));
	kc_error_text(detail, sizeof(detail), kc_slice_n(big, sizeof(big)));
	is(strspn(detail, "\n"), sizeof(detail) - 1, "so do many lines");

	memset(big, 'a', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	kc_error_set(&err, KC_ERR_INTERNAL, "testing", "%s", big);
	is(strlen(err.what), KC_ERROR_WHAT_MAX - 1, "a long message is cut");
	memset(big, 'a', 505);
	strcpy(big + 505, " https://h/p?sv=1&sig=Secret1234567890");
	kc_error_set(&err, KC_ERR_INTERNAL, "testing", "%s", big);
	ok(strstr(err.what, "Secret") == NULL && strlen(err.what) == KC_ERROR_WHAT_MAX - 1,
	   "redacted before it is cut");
}

static void
test_scrub(void)
{
	KcError		err;
	KcSlice		secret = kc_slice("p&ss/w\"ord%+");

	kc_error_clear(&err);
	strcpy(err.what, "got p&ss/w\"ord%+, twice p&ss/w\"ord%+");
	strcpy(err.lib, "p%26ss%2Fw%22ord%25%2b");
	strcpy(err.code, "p&amp;ss\\/w\\\"ord%+");
	strcpy(err.detail, "p\\u0026ss/w&quot;ord%+ and p%2526ss%252Fw%2522ord%2525%252B");
	strcpy(err.activity_id, "id p&ss/w");
	strcpy(err.host, "host");
	kc_error_scrub(&err, secret);
	is_str(err.what, "got ***, twice ***", "as it is");
	is_str(err.lib, "***", "percent-encoded");
	is_str(err.code, "***", "in XML and JSON");
	is_str(err.detail, "*** and ***", "in JSON's unicode escapes, and encoded twice");
	is_str(err.activity_id, "id ***", "cut off");
	is_str(err.host, "host", "what has no secret stays");

	strcpy(err.what, "say &amp;x");
	kc_error_scrub(&err, kc_slice("&amp;x"));
	is_str(err.what, "say ***", "a secret that looks encoded");
	strcpy(err.what, "a+b&lt;&gt;&#39;&apos;\\\\");
	kc_error_scrub(&err, kc_slice("a b<>''\\"));
	is_str(err.what, "***", "blank, angle brackets, apostrophes, backslash");
	strcpy(err.what, "ab\xC3\xBC" "cd ab??cd abef");
	kc_error_scrub(&err, kc_slice("ab\xC3\xBC\x01" "cd"));
	is_str(err.what, "*** *** abef", "not ASCII, cleaned, with a control");
	strcpy(err.what, "100% of %2 and %zz");
	kc_error_scrub(&err, kc_slice("zzz"));
	is_str(err.what, "100% of %2 and %zz", "percent signs of prose");
	strcpy(err.what, "a short one");
	kc_error_scrub(&err, kc_slice("sh"));
	is_str(err.what, "a short one", "two bytes are no secret");
	kc_error_scrub(&err, KC_SLICE_NULL);
	kc_error_scrub(NULL, secret);
	is_str(err.what, "a short one", "no secret, no error: nothing happens");
}

static void
test_alloc(void)
{
	FailAlloc	fa;
	char	   *p;
	static const char zeros[100];
	size_t		sum;

	p = kc_alloc0(&kc_alloc_malloc, 100);
	must(p != NULL);
	is_bytes(p, 100, zeros, 100, "kc_alloc0 gives zeros");
	p = kc_realloc(&kc_alloc_malloc, p, 200);
	must(p != NULL);
	kc_free(&kc_alloc_malloc, p);
	kc_free(&kc_alloc_malloc, NULL);
	p = kc_alloc(&kc_alloc_malloc, 0);
	ok(p != NULL, "zero bytes are never asked for");
	kc_free(&kc_alloc_malloc, p);

	p = kc_strdup(&kc_alloc_malloc, kc_slice_n("abcdef", 3));
	is_str(p, "abc", "kc_strdup");
	kc_free_secret(&kc_alloc_malloc, p);
	kc_free_secret(&kc_alloc_malloc, NULL);
	p = kc_strdup(&kc_alloc_malloc, KC_SLICE_NULL);
	is_str(p, "", "kc_strdup of nothing");
	kc_free(&kc_alloc_malloc, p);
	ok(kc_strdup(&kc_alloc_malloc, kc_slice_n("x", SIZE_MAX)) == NULL, "too long to copy");

	fail_alloc_init(&fa, 1);
	ok(kc_alloc0(&fa.alloc, 10) == NULL, "kc_alloc0 can fail");
	fail_alloc_init(&fa, 1);
	ok(kc_strdup(&fa.alloc, kc_slice("x")) == NULL, "kc_strdup can fail");

	ok(kc_add_size(1, 2, &sum) && sum == 3, "sizes add");
	ok(!kc_add_size(SIZE_MAX, 1, &sum), "a sum that does not fit");
	ok(kc_mul_size(3, 2, &sum) && sum == 6, "sizes multiply");
	ok(!kc_mul_size(SIZE_MAX, 2, &sum), "a product that does not fit");
}

static void
test_buf(void)
{
	KcBuf		buf;
	KcError		err;
	char		big[300];

	kc_buf_init(&buf, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	is(kc_buf_view(&buf).len, 0, "empty at first");
	kc_buf_truncate(&buf, 0);
	kc_buf_reset(&buf);
	ok(buf.data == NULL, "and without memory");
	kc_buf_str(&buf, "abc");
	kc_buf_char(&buf, '-');
	kc_buf_slice(&buf, kc_slice("slice"));
	kc_buf_append(&buf, NULL, 0);
	kc_buf_str(&buf, NULL);
	is_str(buf.data, "abc-slice", "appends, and a terminator");
	kc_buf_truncate(&buf, 3);
	is_str(buf.data, "abc", "truncated");
	kc_buf_truncate(&buf, 30);
	is(buf.len, 3, "truncating cannot grow");
	kc_buf_reset(&buf);
	kc_buf_i64(&buf, INT64_MIN);
	kc_buf_char(&buf, ' ');
	kc_buf_i64(&buf, INT64_MAX);
	kc_buf_char(&buf, ' ');
	kc_buf_u64(&buf, UINT64_MAX);
	kc_buf_char(&buf, ' ');
	kc_buf_i64(&buf, 0);
	kc_buf_char(&buf, ' ');
	kc_buf_i64(&buf, -1);
	is_str(buf.data, "-9223372036854775808 9223372036854775807 18446744073709551615 0 -1",
		   "numbers");
	memset(big, 'x', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	kc_buf_reset(&buf);
	kc_buf_printf(&buf, "%d:%s", 7, big);
	is(buf.len, 301, "printf beyond the room that was there");
	is(strlen(buf.data), 301, "with a terminator");
	is(kc_buf_status(&buf, &err, "testing"), KC_OK, "nothing failed");
	kc_buf_free_secret(&buf);
	kc_buf_free_secret(&buf);
	ok(buf.data == NULL && buf.len == 0, "freed twice");
}

static void
test_buf_limit(void)
{
	KcBuf		buf;
	KcError		err;

	kc_buf_init(&buf, &kc_alloc_malloc, 5);
	kc_buf_str(&buf, "12345");
	is(kc_buf_status(&buf, &err, "testing"), KC_OK, "exactly the limit is fine");
	kc_buf_char(&buf, '6');
	is(kc_buf_status(&buf, &err, "testing"), KC_ERR_LIMIT, "one more is not");
	is_str(err.what, "more than 5 bytes", "and says so");
	kc_buf_truncate(&buf, 1);
	kc_buf_str(&buf, "x");
	is_str(buf.data, "1", "the failure sticks");
	kc_buf_printf(&buf, "x");
	is_str(buf.data, "1", "for printf, too");
	kc_buf_reset(&buf);
	kc_buf_printf(&buf, "%s", "123456");
	is(kc_buf_status(&buf, NULL, "testing"), KC_ERR_LIMIT, "printf beyond the limit");
	is_str(buf.data, "", "leaves nothing");
	kc_buf_reset(&buf);
	kc_buf_str(&buf, "1234");
	is_str(buf.data, "1234", "reset forgets the failure");
	buf.failed = KC_ERR_INTERNAL;
	is(kc_buf_status(&buf, &err, "testing"), KC_ERR_INTERNAL, "another failure");
	kc_buf_free(&buf);

	kc_buf_init(&buf, &kc_alloc_malloc, SIZE_MAX);
	ok(!kc_buf_reserve(&buf, SIZE_MAX), "no buffer is that large");
	is(buf.failed, KC_ERR_LIMIT, "because of the limit");
	kc_buf_free(&buf);

	kc_buf_init(&buf, &kc_alloc_malloc, 100);
	for (int i = 0; i < 100; i++)
		kc_buf_char(&buf, 'x');
	is(buf.len, 100, "grown up to the limit");
	is(buf.cap, 101, "and not beyond");
	kc_buf_free(&buf);
}

static void
test_buf_nomem(void)
{
	FailAlloc	fa;
	KcBuf		buf;
	KcError		err;

	fail_alloc_init(&fa, 2);
	kc_buf_init(&buf, &fa.alloc, KC_BUF_UNLIMITED);
	kc_buf_str(&buf, "kept");
	ok(kc_buf_reserve(&buf, 10), "room that is there");
	ok(!kc_buf_reserve(&buf, 1000), "room that cannot be had");
	is_str(buf.data, "kept", "what was there stays");
	is(kc_buf_status(&buf, &err, "testing"), KC_ERR_NOMEM, "out of memory");
	kc_buf_free(&buf);
	is(fa.live, 0, "nothing leaks");
	fail_alloc_init(&fa, 1);
	kc_buf_init(&buf, &fa.alloc, KC_BUF_UNLIMITED);
	kc_buf_printf(&buf, "x");
	is(kc_buf_status(&buf, &err, "testing"), KC_ERR_NOMEM, "printf out of memory");
	kc_buf_free(&buf);
}

int
main(void)
{
	test_slices();
	test_error_fields();
	test_error_text();
	test_scrub();
	test_alloc();
	test_buf();
	test_buf_limit();
	test_buf_nomem();
	return done_testing();
}
