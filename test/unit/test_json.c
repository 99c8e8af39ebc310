/*
 * test_json.c
 *	  The JSON writer and the reading of documents.
 */
#include "tap.h"

#include "core/json.h"
#include "fail_alloc.h"

static KcBuf out;

static KcJsonValue
parse(const char *text)
{
	KcJsonValue top;
	KcError		err;

	if (kc_json_check(kc_slice(text), 16, &top, "testing", &err) != KC_OK)
	{
		diag("%s: %s", text, err.what);
		must(!"a document of this test is wrong");
	}
	return top;
}

static void
test_string(void)
{
	kc_buf_reset(&out);
	kc_json_string(&out, kc_slice("a\"\\/\b\f\n\r\t\x01\x1F\x7F\xC3\xBC\xF0\x9F\x98\x80"));
	is_slice(kc_buf_view(&out),
			 "\"a\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7F\xC3\xBC\xF0\x9F\x98\x80\"",
			 "escaped");
	kc_buf_reset(&out);
	kc_json_string(&out, kc_slice_n("\0\xFF" "a\xED\xA0\x80\xC3", 7));
	is_slice(kc_buf_view(&out), "\"\\u0000\xEF\xBF\xBD" "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"
			 "\xEF\xBF\xBD\"", "NUL and wrong UTF-8");
	kc_buf_reset(&out);
	kc_json_string(&out, KC_SLICE_NULL);
	is_slice(kc_buf_view(&out), "\"\"", "nothing");
}

static void
test_writer(void)
{
	KcJsonWriter w;

	kc_buf_reset(&out);
	kc_json_begin(&w, &out);
	kc_json_object_open(&w);
	kc_json_key(&w, "s");
	kc_json_value_string(&w, kc_slice("x\"y"));
	kc_json_key_slice(&w, kc_slice("k\""));
	kc_json_value_i64(&w, -5);
	kc_json_key(&w, "a");
	kc_json_array_open(&w);
	kc_json_value_bool(&w, true);
	kc_json_value_bool(&w, false);
	kc_json_value_null(&w);
	kc_json_array_open(&w);
	kc_json_array_close(&w);
	kc_json_object_open(&w);
	kc_json_object_close(&w);
	kc_json_value_raw(&w, kc_slice("[1]"));
	kc_json_array_close(&w);
	kc_json_key(&w, "z");
	kc_json_value_null(&w);
	kc_json_object_close(&w);
	is_slice(kc_buf_view(&out),
			 "{\"s\":\"x\\\"y\",\"k\\\"\":-5,\"a\":[true,false,null,[],{},[1]],\"z\":null}",
			 "commas where they belong");
	is(kc_buf_status(&out, NULL, "testing"), KC_OK, "no failure");

	kc_buf_reset(&out);
	kc_json_begin(&w, &out);
	for (int i = 0; i < KC_JSON_MAX_DEPTH + 5; i++)
		kc_json_array_open(&w);
	is(kc_buf_status(&out, NULL, "testing"), KC_ERR_LIMIT, "too deep");
	kc_buf_reset(&out);
	kc_json_begin(&w, &out);
	kc_json_object_close(&w);
	kc_json_object_close(&w);
	is(kc_buf_status(&out, NULL, "testing"), KC_ERR_INTERNAL, "closed more than opened");
}

static void
test_valid(void)
{
	static const char *const valid[] = {
		"null", "true", "false", "0", "-0", "10", "1.5", "-1.5e+10", "1E-2", "0e0", "\"\"", "[]", "{}",
		" [ ] ", "{ }", "\t\r\n[1 , 2]\n", "[[],{}]", "{\"a\":1}", "{\"a\" : {\"b\":[null]} , \"\":2}",
		"\"\\u00e9\\\\\\\"\\/\\b\\f\\n\\r\\t\"", "\"\\ud83d\\ude00\"", "\"\\ud800\"", "\"\x7F\xC3\xBC\"",
		"\xEF\xBB\xBF{}", "[1,[2,[3,[4]]],5]"
	};
	static const struct
	{
		const char *text;
		const char *why;
	}			wrong[] = {
		{"", "an unexpected end at byte 0"}, {"  ", "an unexpected end"},
		{"[", "an unexpected end"}, {"[1", "an unexpected end"}, {"[1,", "an unexpected end"},
		{"{", "no string"}, {"{\"a\"", "no colon"}, {"{\"a\":", "an unexpected end"},
		{"{\"a\":1", "an unexpected end"}, {"{\"a\":1,", "no string"}, {"{\"a\":1,}", "no string"},
		{"[1,]", "no value"}, {"[,1]", "no value"}, {"[1 2]", "neither a comma"},
		{"[1}", "neither a comma"}, {"{\"a\":1]", "neither a comma"}, {"{1:2}", "no string"},
		{"]", "no value"}, {"nul", "an unknown word"}, {"tRue", "an unknown word"}, {"falsy", "word"},
		{"nullx", "more behind the value"}, {"1 2", "more behind"}, {"{}{}", "more behind"},
		{"01", "more behind"}, {"-", "no digit"}, {"+1", "no value"}, {".5", "no value"},
		{"1.", "no digit"}, {"1e", "no digit"}, {"1e+", "no digit"}, {"-x", "no digit"},
		{"NaN", "no value"}, {"'a'", "no value"}, {"\"a", "without an end"},
		{"\"\\", "an unknown escape"}, {"\"\\x\"", "an unknown escape"}, {"\"\\u12g4\"", "hexadecimal"},
		{"\"\\u12", "hexadecimal"}, {"\"a\nb\"", "a control character"}, {"\"\xFF\"", "invalid UTF-8"},
		{"\"\xC3\"", "invalid UTF-8"}, {"\"\xED\xA0\x80\"", "invalid UTF-8"}, {"[1]//x", "more behind"},
		{"\xEF\xBB\xBF", "an unexpected end at byte 3"},
	};
	KcJsonValue top;
	KcError		err;

	for (size_t i = 0; i < sizeof(valid) / sizeof(valid[0]); i++)
		is(kc_json_check(kc_slice(valid[i]), 16, &top, "testing", &err), KC_OK, valid[i]);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
	{
		is(kc_json_check(kc_slice(wrong[i].text), 16, &top, "testing", &err), KC_ERR_PROTOCOL,
		   "not JSON");
		ok(strstr(err.what, wrong[i].why) != NULL, "%s", err.what);
	}
	is(kc_json_check(kc_slice_n("[\0]", 3), 16, &top, "testing", &err), KC_ERR_PROTOCOL, "NUL");
	is(kc_json_check(kc_slice_n("\"\0\"", 3), 16, &top, "testing", NULL), KC_ERR_PROTOCOL,
	   "NUL in a string");
	is(kc_json_check(KC_SLICE_NULL, 16, &top, "testing", &err), KC_ERR_PROTOCOL, "no document");
	ok(top.type == KC_JSON_NULL && top.raw.len == 0, "gives no value");
}

static void
test_depth(void)
{
	char		deep[2 * 100000];
	KcJsonValue top;
	KcError		err;

	memset(deep, '[', 64);
	memset(deep + 64, ']', 64);
	is(kc_json_check(kc_slice_n(deep, 128), 1000, &top, "testing", &err), KC_OK, "64 levels");
	is(kc_json_check(kc_slice_n(deep, 128), 63, &top, "testing", &err), KC_ERR_PROTOCOL,
	   "one more than allowed");
	ok(strstr(err.what, "too many levels") != NULL, "says so");
	memset(deep, '[', sizeof(deep));
	is(kc_json_check(kc_slice_n(deep, sizeof(deep)), 64, &top, "testing", &err), KC_ERR_PROTOCOL,
	   "far too many");
	for (size_t i = 0; i + 5 < sizeof(deep); i += 5)
		memcpy(deep + i, "{\"\":[", 5);
	is(kc_json_check(kc_slice_n(deep, sizeof(deep)), 64, &top, "testing", &err), KC_ERR_PROTOCOL,
	   "objects and arrays in turn");
	is(kc_json_check(kc_slice("[]"), 0, &top, "testing", &err), KC_ERR_PROTOCOL, "no level at all");
	is(kc_json_check(kc_slice("[]"), -1, &top, "testing", &err), KC_ERR_PROTOCOL, "less than none");
	is(kc_json_check(kc_slice("1"), 0, &top, "testing", &err), KC_OK, "a scalar needs none");
}

static void
test_iterate(void)
{
	KcJsonIter	it;
	KcJsonValue key;
	KcJsonValue value;

	kc_json_iter(&it, parse(" [ 1 ,\"a,]\\\"\",[2,[3]], {\"x\":[]} ,true,null ] "));
	must(kc_json_next(&it, &value));
	is(value.type, KC_JSON_NUMBER, "a number");
	is_slice(value.raw, "1", "as written");
	must(kc_json_next(&it, &value));
	is(value.type, KC_JSON_STRING, "a string");
	is_slice(value.raw, "\"a,]\\\"\"", "with its quotes");
	must(kc_json_next(&it, &value));
	is(value.type, KC_JSON_ARRAY, "an array");
	is_slice(value.raw, "[2,[3]]", "whole");
	must(kc_json_next(&it, &value));
	is(value.type, KC_JSON_OBJECT, "an object");
	is_slice(value.raw, "{\"x\":[]}", "whole");
	must(kc_json_next(&it, &value));
	ok(kc_json_bool(value), "true");
	must(kc_json_next(&it, &value));
	is(value.type, KC_JSON_NULL, "null");
	ok(!kc_json_bool(value), "is not true");
	ok(!kc_json_next(&it, &value), "and the end");
	ok(!kc_json_next(&it, &value), "which stays");

	kc_json_iter(&it, parse("{\"a\\u0062\" : 1, \"c\":{\"d\":2}}"));
	ok(!kc_json_next(&it, &value), "an object has no elements");
	must(kc_json_next_member(&it, &key, &value));
	ok(kc_json_string_is(key, "ab"), "a name with an escape");
	is_slice(value.raw, "1", "its value");
	must(kc_json_next_member(&it, &key, &value));
	ok(kc_json_string_is(key, "c"), "the next name");
	is_slice(value.raw, "{\"d\":2}", "its value");
	ok(!kc_json_next_member(&it, &key, &value), "and the end");

	kc_json_iter(&it, parse("[]"));
	ok(!kc_json_next(&it, &value), "an empty array");
	ok(!kc_json_next_member(&it, &key, &value), "has no members");
	kc_json_iter(&it, parse("{}"));
	ok(!kc_json_next_member(&it, &key, &value), "an empty object");
	kc_json_iter(&it, parse("12"));
	ok(!kc_json_next(&it, &value), "a number has no elements");
}

/* Nonsense made by hand must not be read beyond its end. */
/* Where a string ends is a matter of how many backslashes stand before the quote. */
static void
test_ends_of_strings(void)
{
	static const char *const strings[] = {
		"\"\"", "\"\\\\\"", "\"\\\"\"", "\"\\\\\\\"\"", "\"\\\\\\\\\"", "\"a\\\"b\\\"\\\\\"",
		"\"\\\"\\\"\\\"\"", "\"}]{[,:\"",
	};
	char		text[256];

	for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++)
	{
		KcJsonIter	it;
		KcJsonValue value;

		snprintf(text, sizeof(text), "[[{\"k\":%s}],%s,1]", strings[i], strings[i]);
		kc_json_iter(&it, parse(text));
		ok(kc_json_next(&it, &value) && value.type == KC_JSON_ARRAY, "a container with %s", strings[i]);
		must(kc_json_next(&it, &value));
		is_slice(value.raw, strings[i], "the string itself");
		ok(kc_json_next(&it, &value) && kc_slice_eq(value.raw, kc_slice("1")), "and what follows it");
	}
}

static void
test_broken(void)
{
	static const char *const texts[] = {
		"", "[", "[\"", "[\"\\", "[[", "{\"a", "{\"a\"", "{\"a\":", "{:", "[}", "{\"a\":\"\\u12", "[1,"
	};

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
	{
		/* exactly as large as it is, so that the sanitizer sees one byte more */
		char	   *copy = malloc(strlen(texts[i]) + (texts[i][0] == '\0'));
		KcJsonIter	it;
		KcJsonValue key;
		KcJsonValue value = {KC_JSON_OBJECT, {copy, strlen(texts[i])}};
		int			n = 0;

		must(copy != NULL);
		memcpy(copy, texts[i], strlen(texts[i]));
		kc_json_iter(&it, value);
		while (n < 100 && kc_json_next_member(&it, &key, &value))
			n++;
		it.container.type = KC_JSON_ARRAY;
		it.pos = 1;
		while (n < 100 && kc_json_next(&it, &value))
			n++;
		ok(n < 100, "a broken container ends");
		value = (KcJsonValue) {KC_JSON_STRING, {copy, strlen(texts[i])}};
		kc_buf_reset(&out);
		kc_json_unescape(&out, value);
		ok(out.len <= strlen(texts[i]), "a broken string ends");
		free(copy);
	}
	kc_buf_reset(&out);
	kc_json_unescape(&out, (KcJsonValue) {KC_JSON_STRING, kc_slice("\"\\uZZZZx\"")});
	is(out.len, 0, "a broken escape ends the string");
}

static void
test_strings(void)
{
	KcJsonValue value = parse("\"a\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00fc\\u20ac\\ud83d\\ude00\xC3\xBC\"");
	static const char plain[] = "a\"\\/\b\f\n\r\t\xC3\xBC\xE2\x82\xAC\xF0\x9F\x98\x80\xC3\xBC";

	kc_buf_reset(&out);
	kc_json_unescape(&out, value);
	is_slice(kc_buf_view(&out), plain, "unescaped");
	ok(kc_json_string_is(value, plain), "compared");
	kc_buf_reset(&out);
	kc_json_unescape(&out, parse("\"\\ud800x\\udc00\\ud800\\ud800\\udc00\\ud83d\\u0041\\ud83d\""));
	is_slice(kc_buf_view(&out), "\xEF\xBF\xBDx\xEF\xBF\xBD\xEF\xBF\xBD\xF0\x90\x80\x80\xEF\xBF\xBD" "A"
			 "\xEF\xBF\xBD", "lone surrogates");
	kc_buf_reset(&out);
	kc_json_unescape(&out, parse("\"a\\u0000b\""));
	is_bytes(out.data, out.len, "a\0b", 3, "NUL");
	ok(!kc_json_string_is(parse("\"a\\u0000b\""), "a"), "which ends no comparison");
	ok(!kc_json_string_is(parse("\"ab\""), "a"), "longer");
	ok(!kc_json_string_is(parse("\"a\""), "ab"), "shorter");
	ok(!kc_json_string_is(parse("\"A\""), "a"), "other case");
	ok(kc_json_string_ieq(parse("\"\\u0041b\""), "aB"), "without case");
	ok(!kc_json_string_ieq(parse("\"ab\""), "ac"), "without case, but another");
	ok(!kc_json_string_is(parse("12"), "12"), "a number is no string");
	kc_buf_reset(&out);
	kc_json_unescape(&out, parse("12"));
	is(out.len, 0, "and has no text");
}

static void
test_scalars(void)
{
	static const struct
	{
		const char *text;
		int64_t		value;
		bool		valid;
	}			cases[] = {
		{"0", 0, true}, {"-0", 0, true}, {"42", 42, true}, {"-7", -7, true},
		{"9223372036854775807", INT64_MAX, true}, {"-9223372036854775808", INT64_MIN, true},
		{"9223372036854775808", 0, false}, {"-9223372036854775809", 0, false},
		{"99999999999999999999", 0, false}, {"1.0", 0, false}, {"1e3", 0, false},
		{"\"1\"", 0, false}, {"true", 0, false},
	};
	KcJsonValue value;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		int64_t		got = 0;

		is(kc_json_i64(parse(cases[i].text), &got), cases[i].valid, cases[i].text);
		is(got, cases[i].value, "its value");
	}
	ok(kc_json_bool(parse("true")), "true");
	ok(!kc_json_bool(parse("false")), "false");
	ok(!kc_json_bool(parse("\"true\"")), "a string is not true");

	ok(kc_json_member(parse("{\"A\":1,\"a\":2}"), "a", &value), "a member");
	is_slice(value.raw, "2", "of just that name");
	ok(kc_json_member(parse("{\"A\":1,\"AA\":3,\"A\":2}"), "a", &value), "a member");
	is_slice(value.raw, "1", "whose name differs in case, the first of them");
	ok(!kc_json_member(parse("{\"A\":1}"), "b", &value), "no member");
	ok(!kc_json_member(parse("[\"a\",1]"), "a", &value), "an array has none");
}

static void
test_table(void)
{
	char	   *name = NULL;
	char	   *other = NULL;
	int64_t		count = -1;
	int64_t		text_count = -1;
	bool		flag = false;
	bool		found_flag = false;
	bool		found_other = true;
	KcJsonValue any = {KC_JSON_NULL, KC_SLICE_NULL};
	const KcJsonField fields[] = {
		{"name", KC_WANT_STRING, &name, true, NULL},
		{"count", KC_WANT_I64, &count, true, NULL},
		{"textCount", KC_WANT_I64, &text_count, false, NULL},
		{"flag", KC_WANT_BOOL, &flag, false, &found_flag},
		{"any", KC_WANT_VALUE, &any, false, NULL},
		{"other", KC_WANT_STRING, &other, false, &found_other},
	};
	const int	nfields = (int) (sizeof(fields) / sizeof(fields[0]));
	static const struct
	{
		const char *text;
		const char *why;
	}			wrong[] = {
		{"[]", "not a JSON object"},
		{"{\"count\":1}", "no member \"name\""},
		{"{\"name\":\"x\"}", "no member \"count\""},
		{"{\"name\":null,\"count\":1}", "no member \"name\""},
		{"{\"name\":1,\"count\":1}", "\"name\" is not a string"},
		{"{\"name\":\"x\",\"count\":true}", "\"count\" is not an integer"},
		{"{\"name\":\"x\",\"count\":1.5}", "\"count\" is not an integer"},
		{"{\"name\":\"x\",\"count\":\"12a\"}", "\"count\" is not an integer"},
		{"{\"name\":\"x\",\"count\":\"\"}", "\"count\" is not an integer"},
		{"{\"name\":\"x\",\"count\":\"-\"}", "\"count\" is not an integer"},
		{"{\"name\":\"x\",\"count\":1,\"flag\":\"true\"}", "\"flag\" is not true or false"},
		{"{\"name\":\"x\",\"count\":1,\"NAME\":\"y\"}", "two members \"name\""},
		{"{\"name\":\"x\",\"count\":1,\"count\":null}", "two members \"count\""},
		{"{\"other\":\"y\",\"name\":\"a\\u0000b\",\"count\":1}", "\"name\" is not a string without NUL"},
	};
	FailAlloc	fa;
	KcError		err;

	fail_alloc_init(&fa, 0);
	is(kc_json_read_object(parse("{\"unknown\":{\"name\":1}, \"NAME\":\"\\u00fc\", \"Count\":-3,"
								 "\"textcount\":\"12\",\"flag\":true,\"any\":[1],\"other\":null,"
								 "\"unknown\":2}"),
						   fields, nfields, &fa.alloc, "testing", &err), KC_OK, "an object");
	is_str(name, "\xC3\xBC", "a string");
	is(count, -3, "an integer");
	is(text_count, 12, "an integer written as a string");
	ok(flag && found_flag, "a flag, which was found");
	is_slice(any.raw, "[1]", "any value");
	ok(other == NULL && !found_other, "null counts as absent");
	kc_free(&fa.alloc, name);
	is(fa.live, 0, "nothing but the string was allocated");

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
	{
		name = other = NULL;
		is(kc_json_read_object(parse(wrong[i].text), fields, nfields, &fa.alloc, "testing", &err),
		   KC_ERR_PROTOCOL, "refused");
		ok(strstr(err.what, wrong[i].why) != NULL, "%s", err.what);
		ok(name == NULL && other == NULL && fa.live == 0, "no string is left");
	}

	for (int n = 1;; n++)
	{
		name = other = NULL;
		fail_alloc_init(&fa, n);
		if (kc_json_read_object(parse("{\"name\":\"x\",\"other\":\"y\",\"count\":1}"),
								fields, nfields, &fa.alloc, "testing", &err) == KC_OK)
		{
			ok(!fa.has_failed && fa.live == 2, "with all the memory it works");
			kc_free(&fa.alloc, name);
			kc_free(&fa.alloc, other);
			break;
		}
		is(err.status, KC_ERR_NOMEM, "out of memory");
		ok(name == NULL && other == NULL && fa.live == 0, "no string is left");
	}
	is(kc_json_read_object(parse("{}"), fields, 65, &fa.alloc, "testing", &err), KC_ERR_INTERNAL,
	   "a table that is too large");
	name = NULL;
	is(kc_json_read_object(parse("{\"name\":1}"),
						   (KcJsonField[]) {{"name", (KcJsonWant) 99, &name, false, NULL}}, 1,
						   &fa.alloc, "testing", &err), KC_ERR_INTERNAL, "a table that is wrong");
}

int
main(void)
{
	kc_buf_init(&out, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	test_string();
	test_writer();
	test_valid();
	test_depth();
	test_iterate();
	test_ends_of_strings();
	test_broken();
	test_strings();
	test_scalars();
	test_table();
	kc_buf_free(&out);
	return done_testing();
}
