/*
 * test_text.c
 *	  base64, hex, percent-encoding, UUIDs, Kusto's quoting, UTF-8.
 */
#include "tap.h"

#include "core/text.h"
#include "fail_alloc.h"

static KcBuf out;

static void
test_base64(void)
{
	/* RFC 4648 section 10 */
	static const char *const vectors[][2] = {
		{"", ""}, {"f", "Zg=="}, {"fo", "Zm8="}, {"foo", "Zm9v"},
		{"foob", "Zm9vYg=="}, {"fooba", "Zm9vYmE="}, {"foobar", "Zm9vYmFy"}
	};
	static const char *const wrong[] = {
		"Z", "Zg", "Zg=", "Zg===", "====", "=", "Z===", "Zg==Zg==", "Zm9v\n", "Zm9-", "Zm9_",
		" Zg=", "Zh==", "Zm9=", "Z=g=", "Zm9vY===", "Zm\x80v"
	};
	unsigned char all[256];
	KcBuf		back;

	kc_buf_init(&back, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++)
	{
		kc_buf_reset(&out);
		kc_text_base64(&out, vectors[i][0], strlen(vectors[i][0]));
		is_slice(kc_buf_view(&out), vectors[i][1], vectors[i][1]);
		kc_buf_reset(&back);
		ok(kc_text_base64_decode(&back, kc_slice(vectors[i][1])), "decodes");
		is_slice(kc_buf_view(&back), vectors[i][0], "to what it was");
	}
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
	{
		kc_buf_reset(&back);
		kc_buf_str(&back, "kept");
		ok(!kc_text_base64_decode(&back, kc_slice(wrong[i])), "wrong base64 %zu", i);
		is_slice(kc_buf_view(&back), "kept", "leaves nothing behind");
	}
	for (int i = 0; i < 256; i++)
		all[i] = (unsigned char) i;
	kc_buf_reset(&out);
	kc_buf_reset(&back);
	kc_text_base64(&out, all, sizeof(all));
	ok(kc_text_base64_decode(&back, kc_buf_view(&out)), "all bytes decode");
	is_bytes(back.data, back.len, (char *) all, sizeof(all), "to themselves");
	kc_buf_free(&back);

	kc_buf_reset(&out);
	kc_text_hex(&out, "\x00\x7F\xAB\xFF", 4);
	is_slice(kc_buf_view(&out), "007fabff", "hex");
}

static void
test_percent(void)
{
	KcBuf		back;

	kc_buf_init(&back, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_reset(&out);
	kc_text_percent_encode(&out, kc_slice("azAZ09-._~ /?&=+%\xC3\xBC"));
	is_slice(kc_buf_view(&out), "azAZ09-._~%20%2F%3F%26%3D%2B%25%C3%BC", "percent-encoded");
	ok(kc_text_percent_decode(&back, kc_buf_view(&out)), "decodes");
	is_slice(kc_buf_view(&back), "azAZ09-._~ /?&=+%\xC3\xBC", "to what it was");
	kc_buf_reset(&back);
	ok(kc_text_percent_decode(&back, kc_slice("a+b%2b%2B")), "lower case, too");
	is_slice(kc_buf_view(&back), "a+b++", "a plus sign is a plus sign");
	ok(!kc_text_percent_decode(&back, kc_slice("x%")), "cut behind the percent sign");
	ok(!kc_text_percent_decode(&back, kc_slice("x%2")), "cut behind a digit");
	ok(!kc_text_percent_decode(&back, kc_slice("x%2G")), "no digit");
	ok(!kc_text_percent_decode(&back, kc_slice("x%G2")), "no digit either");
	is_slice(kc_buf_view(&back), "a+b++", "a failure leaves nothing behind");
	kc_buf_free(&back);
}

static void
test_uuid(void)
{
	static const char *const wrong[] = {
		"", "6ba7b810-9dad-11d1-80b4-00c04fd430c", "6ba7b810-9dad-11d1-80b4-00c04fd430c88",
		"6ba7b810x9dad-11d1-80b4-00c04fd430c8", "6ba7b810-9dad-11d1-80b4-00c04fd430cg",
		"6ba7b8109dad-11d1-80b4-00c04fd430c8-", "{6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	};
	KcUuid		dns;
	KcUuid		uuid;
	KcUuid		other;
	KcError		err;
	char		text[KC_UUID_TEXT_LEN + 1];

	/* The DNS name space and the example of RFC 9562 appendix A.4. */
	ok(kc_uuid_parse(kc_slice("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), &dns), "parses");
	kc_uuid_text(&dns, text);
	is_str(text, "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "back to text");
	is(kc_uuid_v5(&dns, kc_slice("www.example.com"), &uuid, &err), KC_OK, "version 5");
	kc_uuid_text(&uuid, text);
	is_str(text, "2ed6657d-e927-568b-95e1-2665a8aea6a2", "of RFC 9562");
	is(kc_uuid_v5(&dns, KC_SLICE_NULL, &uuid, &err), KC_OK, "version 5 of no name");
	kc_uuid_text(&uuid, text);
	is_str(text, "4ebd0208-8328-5d69-8c44-ec50939c0967", "as Python's uuid5 gives it");

	ok(kc_uuid_parse(kc_slice("6BA7B810-9DAD-11D1-80B4-00C04FD430C8"), &other), "upper case");
	ok(memcmp(&dns, &other, sizeof(dns)) == 0, "is the same");
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		ok(!kc_uuid_parse(kc_slice(wrong[i]), &other), "wrong uuid %zu", i);
	ok(memcmp(&dns, &other, sizeof(dns)) == 0, "a failure leaves the target alone");

	is(kc_uuid_random(&uuid, &err), KC_OK, "version 4");
	is(kc_uuid_random(&other, &err), KC_OK, "another");
	ok(memcmp(&uuid, &other, sizeof(uuid)) != 0, "differs");
	is(uuid.bytes[6] >> 4, 4, "has the version");
	is(uuid.bytes[8] >> 6, 2, "has the variant");
}

static void
test_kql(void)
{
	kc_buf_reset(&out);
	kc_text_kql_name(&out, kc_slice("my 'table'] \\ \"x\""));
	is_slice(kc_buf_view(&out), "['my \\'table\\'] \\\\ \"x\"']", "a name");
	kc_buf_reset(&out);
	kc_text_kql_string(&out, kc_slice("a\"b'c\\d\n\r\t\x01\x7F\xC3\xBC"));
	is_slice(kc_buf_view(&out), "\"a\\\"b'c\\\\d\\n\\r\\t\\u0001\\u007f\xC3\xBC\"", "a string");
	kc_buf_reset(&out);
	kc_text_kql_string(&out, kc_slice("\xFF\xE2\x82"));
	is_slice(kc_buf_view(&out), "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"", "wrong UTF-8");
	kc_buf_reset(&out);
	kc_text_kql_name(&out, KC_SLICE_NULL);
	is_slice(kc_buf_view(&out), "['']", "no name");
}

static void
test_utf8(void)
{
	static const struct
	{
		const char *text;
		size_t		good;
		bool		valid;
	}			cases[] = {
		{"", 0, true},
		{"abc", 3, true},
		{"\xC2\x80\xDF\xBF", 4, true},
		{"\xE0\xA0\x80\xEF\xBF\xBF", 6, true},
		{"\xED\x9F\xBF\xEE\x80\x80", 6, true},
		{"\xF0\x90\x80\x80\xF4\x8F\xBF\xBF", 8, true},
		{"a\x80", 1, false},
		{"a\xC0\x80", 1, false},	/* overlong */
		{"a\xC1\xBF", 1, false},
		{"a\xE0\x9F\xBF", 1, false},
		{"a\xF0\x8F\xBF\xBF", 1, false},
		{"a\xED\xA0\x80", 1, false},	/* a surrogate */
		{"a\xED\xBF\xBF", 1, false},
		{"a\xF4\x90\x80\x80", 1, false},	/* beyond U+10FFFF */
		{"a\xF5\x80\x80\x80", 1, false},
		{"a\xFE", 1, false},
		{"a\xC3", 1, false},	/* cut */
		{"a\xE2\x82", 1, false},
		{"a\xF0\x9F\x98", 1, false},
		{"a\xC3(", 1, false},
		{"a\xE2(\xA1", 1, false},
		{"a\xE2\x82(", 1, false},
		{"a\xF0(\x8C\xBC", 1, false},
		{"a\xF0\x90(\xBC", 1, false},
		{"a\xF0\x90\x8C(", 1, false},
	};
	size_t		good;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		is(kc_text_utf8_valid(kc_slice(cases[i].text), &good), cases[i].valid, "validity");
		is(good, cases[i].good, "length of the valid prefix");
	}
	ok(!kc_text_utf8_valid(kc_slice_n("a\0b", 3), &good) && good == 1, "NUL is not valid");
	ok(kc_text_utf8_valid(kc_slice("x"), NULL), "the length need not be asked for");
}

static void
test_nomem(void)
{
	FailAlloc	fa;
	KcBuf		buf;

	fail_alloc_init(&fa, 1);
	kc_buf_init(&buf, &fa.alloc, KC_BUF_UNLIMITED);
	kc_text_base64(&buf, "abc", 3);
	kc_text_hex(&buf, "abc", 3);
	kc_text_percent_encode(&buf, kc_slice("a b"));
	ok(kc_text_percent_decode(&buf, kc_slice("a%20b")), "valid, whatever became of it");
	ok(kc_text_base64_decode(&buf, kc_slice("Zm9v")), "the same for base64");
	kc_text_kql_name(&buf, kc_slice("a\x01"));
	kc_text_rfc3339(&buf, 0);
	is(buf.failed, KC_ERR_NOMEM, "running out of memory sticks");
	is(buf.len, 0, "and nothing was written");
	kc_buf_free(&buf);
}

int
main(void)
{
	kc_buf_init(&out, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	test_base64();
	test_percent();
	test_uuid();
	test_kql();
	test_utf8();
	test_nomem();
	kc_buf_free(&out);
	return done_testing();
}
