/*
 * fuzz_json.c
 *	  The JSON parser against a reference of a different making, its iterators
 *	  against themselves, and the writer against the parser.
 *
 * First byte: which allocation fails.  The rest is the document.
 */
#include "fuzz.h"

#include "core/json.h"
#include "core/text.h"

#define DEPTH 20

/* ---- the reference: recursive, by the grammar of RFC 8259 ---- */

typedef struct Ref
{
	const unsigned char *p;
	const unsigned char *end;
} Ref;

static bool ref_value(Ref *r, int depth);

static void
ref_blanks(Ref *r)
{
	while (r->p < r->end && *r->p != 0 && strchr(" \t\n\r", *r->p) != NULL)
		r->p++;
}

static bool
ref_take(Ref *r, const char *literal)
{
	size_t		len = strlen(literal);

	if ((size_t) (r->end - r->p) < len || memcmp(r->p, literal, len) != 0)
		return false;
	r->p += len;
	return true;
}

static bool
ref_hex4(Ref *r)
{
	for (int i = 0; i < 4; i++, r->p++)
	{
		if (r->p == r->end || *r->p == 0 || strchr("0123456789abcdefABCDEF", *r->p) == NULL)
			return false;
	}
	return true;
}

static bool
ref_string(Ref *r)
{
	const unsigned char *start;

	if (!ref_take(r, "\""))
		return false;
	start = r->p;
	while (r->p < r->end && *r->p != '"')
	{
		if (*r->p < 0x20)
			return false;
		if (*r->p++ != '\\')
			continue;
		if (r->p == r->end || *r->p == 0 || strchr("\"\\/bfnrtu", *r->p) == NULL)
			return false;
		if (*r->p++ == 'u' && !ref_hex4(r))
			return false;
	}
	return kc_text_utf8_valid(kc_slice_n((const char *) start, (size_t) (r->p - start)), NULL) &&
		ref_take(r, "\"");
}

static bool
ref_digits(Ref *r)
{
	const unsigned char *start = r->p;

	while (r->p < r->end && *r->p >= '0' && *r->p <= '9')
		r->p++;
	return r->p > start;
}

static bool
ref_number(Ref *r)
{
	(void) ref_take(r, "-");
	if (!ref_take(r, "0") && !ref_digits(r))
		return false;
	if (ref_take(r, ".") && !ref_digits(r))
		return false;
	if (!ref_take(r, "e") && !ref_take(r, "E"))
		return true;
	if (!ref_take(r, "+"))
		(void) ref_take(r, "-");
	return ref_digits(r);
}

static bool
ref_list(Ref *r, const char *close, bool object, int depth)
{
	ref_blanks(r);
	if (ref_take(r, close))
		return true;
	do
	{
		ref_blanks(r);
		if (object)
		{
			if (!ref_string(r))
				return false;
			ref_blanks(r);
			if (!ref_take(r, ":"))
				return false;
		}
		if (!ref_value(r, depth))
			return false;
		ref_blanks(r);
	} while (ref_take(r, ","));
	return ref_take(r, close);
}

static bool
ref_value(Ref *r, int depth)
{
	ref_blanks(r);
	if (r->p == r->end)
		return false;
	if (*r->p == '{' || *r->p == '[')
	{
		bool		object = *r->p++ == '{';

		return depth > 0 && ref_list(r, object ? "}" : "]", object, depth - 1);
	}
	if (*r->p == '"')
		return ref_string(r);
	return ref_take(r, "true") || ref_take(r, "false") || ref_take(r, "null") || ref_number(r);
}

static bool
ref_document(KcSlice doc)
{
	Ref			r = {(const unsigned char *) doc.data, (const unsigned char *) doc.data + doc.len};

	(void) ref_take(&r, "\xEF\xBB\xBF");
	if (!ref_value(&r, DEPTH))
		return false;
	ref_blanks(&r);
	return r.p == r.end;
}

/* ---- properties ---- */

static void
check_string(KcJsonValue value, KcBuf *text)
{
	KcBuf		again;
	KcBuf		back;
	KcJsonValue reread;

	kc_buf_reset(text);
	kc_json_unescape(text, value);
	holds(text->failed == KC_OK);
	holds(text->len + 2 <= value.raw.len);
	kc_buf_init(&again, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_init(&back, &kc_alloc_malloc, KC_BUF_UNLIMITED);

	/* What we write means what we read. */
	kc_json_string(&again, kc_buf_view(text));
	holds(kc_json_check(kc_buf_view(&again), 1, &reread, "fuzzing", NULL) == KC_OK);
	kc_json_unescape(&back, reread);
	holds(kc_slice_eq(kc_buf_view(&back), kc_buf_view(text)));

	if (text->len == 0 || memchr(text->data, '\0', text->len) == NULL)
	{
		const char *cstr = text->len == 0 ? "" : text->data;

		holds(kc_text_utf8_valid(kc_buf_view(text), NULL));
		holds(kc_json_string_is(value, cstr));
		holds(kc_json_string_ieq(value, cstr));
		kc_buf_char(text, 'x');
		holds(!kc_json_string_is(value, text->data));
		kc_buf_truncate(text, text->len - 1);
	}
	kc_buf_free(&again);
	kc_buf_free(&back);
}

/* Visit everything below value and write it again. */
static void
walk(KcJsonValue value, KcJsonWriter *w, KcBuf *text)
{
	KcJsonIter	it;
	KcJsonValue key;
	KcJsonValue child;
	KcJsonValue checked;
	const char *behind = value.raw.data;
	int64_t		number;

	/* A value is a document. */
	holds(kc_json_check(value.raw, DEPTH, &checked, "fuzzing", NULL) == KC_OK);
	holds(checked.type == value.type && kc_slice_eq(checked.raw, value.raw));

	kc_json_iter(&it, value);
	switch (value.type)
	{
		case KC_JSON_OBJECT:
			kc_json_object_open(w);
			while (kc_json_next_member(&it, &key, &child))
			{
				holds(fuzz_lies_within(key.raw, value.raw) && fuzz_lies_within(child.raw, value.raw));
				holds(key.raw.data > behind && child.raw.data >= key.raw.data + key.raw.len + 1);
				holds(key.type == KC_JSON_STRING);
				behind = child.raw.data + child.raw.len - 1;
				check_string(key, text);
				kc_json_key_slice(w, kc_buf_view(text));
				walk(child, w, text);
			}
			kc_json_object_close(w);
			break;
		case KC_JSON_ARRAY:
			kc_json_array_open(w);
			while (kc_json_next(&it, &child))
			{
				holds(fuzz_lies_within(child.raw, value.raw) && child.raw.data > behind);
				behind = child.raw.data + child.raw.len - 1;
				walk(child, w, text);
			}
			kc_json_array_close(w);
			break;
		case KC_JSON_STRING:
			check_string(value, text);
			kc_json_value_string(w, kc_buf_view(text));
			break;
		case KC_JSON_NUMBER:
			if (kc_json_i64(value, &number) && !kc_slice_eq(value.raw, kc_slice("-0")))
			{
				size_t		before = w->out->len;

				kc_json_value_i64(w, number);
				holds(kc_slice_ends_i(kc_buf_view(w->out), value.raw));
				holds(w->out->len - before <= value.raw.len + 1);
			}
			else
				kc_json_value_raw(w, value.raw);
			break;
		case KC_JSON_BOOL:
			kc_json_value_bool(w, kc_json_bool(value));
			break;
		case KC_JSON_NULL:
			kc_json_value_null(w);
			break;
	}
}

/* Writing what was read, reading it and writing it once more changes nothing. */
static void
check_normal_form(KcJsonValue top)
{
	KcBuf		once;
	KcBuf		twice;
	KcBuf		text;
	KcJsonWriter w;
	KcJsonValue reread;

	kc_buf_init(&once, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_init(&twice, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_init(&text, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_json_begin(&w, &once);
	walk(top, &w, &text);
	holds(once.failed == KC_OK);
	holds(kc_json_check(kc_buf_view(&once), DEPTH, &reread, "fuzzing", NULL) == KC_OK);
	kc_json_begin(&w, &twice);
	walk(reread, &w, &text);
	holds(kc_slice_eq(kc_buf_view(&once), kc_buf_view(&twice)));
	kc_buf_free(&once);
	kc_buf_free(&twice);
	kc_buf_free(&text);
}

typedef struct Countdown
{
	int			until_failure;
	int			live;
} Countdown;

static void *
countdown_realloc(void *arg, void *ptr, size_t size)
{
	Countdown  *c = arg;

	if (c->until_failure-- == 0)
		return NULL;
	if (ptr == NULL)
		c->live++;
	return realloc(ptr, size);
}

static void
countdown_free(void *arg, void *ptr)
{
	((Countdown *) arg)->live--;
	free(ptr);
}

static void
check_table(KcJsonValue top, int fail_at)
{
	Countdown	c = {fail_at, 0};
	KcAlloc		alloc = {countdown_realloc, countdown_free, &c};
	char	   *a = NULL;
	char	   *b = NULL;
	int64_t		n = 0;
	bool		flag = false;
	bool		found[5];
	KcJsonValue any = {KC_JSON_NULL, KC_SLICE_NULL};
	const KcJsonField fields[] = {
		{"a", KC_WANT_STRING, &a, false, &found[0]},
		{"b", KC_WANT_STRING, &b, false, &found[1]},
		{"n", KC_WANT_I64, &n, false, &found[2]},
		{"flag", KC_WANT_BOOL, &flag, false, &found[3]},
		{"any", KC_WANT_VALUE, &any, false, &found[4]},
	};
	KcError		err;
	KcJsonValue member;

	if (kc_json_read_object(top, fields, 5, &alloc, "fuzzing", &err) != KC_OK)
	{
		holds(a == NULL && b == NULL && c.live == 0);
		holds(err.what[0] != '\0');
		return;
	}
	holds(top.type == KC_JSON_OBJECT);
	holds((a != NULL) == found[0] && (b != NULL) == found[1]);
	holds(c.live == (a != NULL) + (b != NULL));
	if (a != NULL)
		holds(kc_json_member(top, "a", &member) && kc_json_string_is(member, a));
	if (found[2] && kc_json_member(top, "n", &member) && member.type == KC_JSON_NUMBER)
	{
		int64_t		direct;

		holds(kc_json_i64(member, &direct) && direct == n);
	}
	if (found[4])
		holds(fuzz_lies_within(any.raw, top.raw));
	kc_free(&alloc, a);
	kc_free(&alloc, b);
}

/* Unchecked text may give nonsense, but no crash and no endless loop. */
static void
check_unchecked(KcSlice doc)
{
	KcJsonIter	it;
	KcJsonValue key;
	KcJsonValue value;
	size_t		n = 0;
	KcBuf		text;

	kc_json_iter(&it, (KcJsonValue) {KC_JSON_OBJECT, doc});
	while (kc_json_next_member(&it, &key, &value))
		holds(++n <= doc.len);
	kc_json_iter(&it, (KcJsonValue) {KC_JSON_ARRAY, doc});
	while (kc_json_next(&it, &value))
		holds(++n <= 2 * doc.len);
	kc_buf_init(&text, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_json_unescape(&text, (KcJsonValue) {KC_JSON_STRING, doc});
	holds(text.len <= doc.len);
	kc_buf_free(&text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	FuzzInput	in = {data, size};
	int			fail_at = fuzz_byte(&in) % 4;
	KcSlice		doc = fuzz_slice(&in, in.left);
	KcJsonValue top;
	KcError		err;
	KcStatus	status = kc_json_check(doc, DEPTH, &top, "fuzzing", &err);

	holds((status == KC_OK) == ref_document(doc));
	if (status == KC_OK)
	{
		holds(fuzz_lies_within(top.raw, doc));
		check_normal_form(top);
		check_table(top, fail_at);
	}
	else
		holds(top.raw.len == 0 && err.what[0] != '\0');
	check_unchecked(doc);
	return 0;
}
