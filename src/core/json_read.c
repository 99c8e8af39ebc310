/*
 * json_read.c
 *	  Reading a document that kc_json_check() has accepted: iterators, scalars,
 *	  field tables.
 *
 * Nothing is checked a second time, but every access stays inside the slice:
 * a value made by hand may give nonsense, never a read beyond it.
 */
#include "json.h"

#include <string.h>

#include "ascii.h"
#include "json_token.h"
#include "utf8.h"

/* Fields of one table: as many as the bit mask of those seen. */
#define MAX_FIELDS 64

/* ---- walking ---- */

/*
 * Position behind the string that begins at at.  A quote ends it unless an odd
 * number of backslashes stands before it.
 */
static size_t
skip_string(KcSlice s, size_t at)
{
	size_t		start = at + 1;

	for (at = start; at < s.len; at++)
	{
		const char *quote = memchr(s.data + at, '"', s.len - at);
		size_t		escapes = 0;

		if (quote == NULL)
			break;
		at = (size_t) (quote - s.data);
		while (at - escapes > start && s.data[at - escapes - 1] == '\\')
			escapes++;
		if (escapes % 2 == 0)
			return at + 1;
	}
	return s.len;
}

/* What skip_value() has to look at inside a container. */
static const bool structural[256] = {
	['"'] = true, ['{'] = true, ['}'] = true, ['['] = true, [']'] = true
};

/* Position behind the value that begins at at. */
static size_t
skip_value(KcSlice s, size_t at)
{
	size_t		depth = 0;

	while (at < s.len)
	{
		char		c;

		while (depth > 0 && at < s.len && !structural[(unsigned char) s.data[at]])
			at++;
		if (at == s.len)
			break;
		c = s.data[at];
		if (c == '"')
		{
			at = skip_string(s, at);
			if (depth == 0)
				return at;
			continue;
		}
		if (c == '{' || c == '[')
			depth++;
		else if (c == '}' || c == ']')
		{
			/* depth 0: the container's own bracket ends a scalar */
			if (depth == 0)
				return at;
			if (--depth == 0)
				return at + 1;
		}
		else if (depth == 0 && (c == ',' || c == ':' || kc_json_is_blank(c)))
			return at;
		at++;
	}
	return s.len;
}

void
kc_json_iter(KcJsonIter *it, KcJsonValue container)
{
	it->container = container;
	it->pos = 1;				/* behind the opening bracket */
}

/* The next token behind blanks and any character of skip. */
static bool
next_value(KcJsonIter *it, char skip, KcJsonValue *value)
{
	KcSlice		raw = it->container.raw;
	size_t		start = it->pos;
	size_t		end;

	while (start < raw.len && (kc_json_is_blank(raw.data[start]) || raw.data[start] == skip))
		start++;
	end = start < raw.len ? skip_value(raw, start) : start;
	if (end <= start)
		return false;
	it->pos = end;
	*value = (KcJsonValue) {kc_json_type_of(raw.data[start]), {raw.data + start, end - start}};
	return true;
}

bool
kc_json_next(KcJsonIter *it, KcJsonValue *value)
{
	return it->container.type == KC_JSON_ARRAY && next_value(it, ',', value);
}

bool
kc_json_next_member(KcJsonIter *it, KcJsonValue *key, KcJsonValue *value)
{
	return it->container.type == KC_JSON_OBJECT &&
		next_value(it, ',', key) && next_value(it, ':', value);
}

/* ---- strings ---- */

/* The inside of a string token, read character by character. */
typedef struct Unescape
{
	const char *p;
	const char *end;
} Unescape;

static Unescape
unescape_begin(KcJsonValue string)
{
	KcSlice		raw = string.raw;

	if (string.type != KC_JSON_STRING || raw.len < 2)
		return (Unescape) {raw.data, raw.data};
	return (Unescape) {raw.data + 1, raw.data + raw.len - 1};
}

/* The four digits behind \u at u->p, or -1. */
static int
take_u16(Unescape *u)
{
	int			value = 0;

	if (u->end - u->p < 6 || u->p[0] != '\\' || u->p[1] != 'u')
		return -1;
	for (int i = 2; i < 6; i++)
	{
		int			digit = kc_ascii_hex(u->p[i]);

		if (digit < 0)
			return -1;
		value = value * 16 + digit;
	}
	u->p += 6;
	return value;
}

static size_t
unescape_u(Unescape *u, char out[4])
{
	int			high = take_u16(u);
	int			low;
	Unescape	before_low = *u;

	if (high < 0)
	{
		u->p = u->end;
		return 0;
	}
	if (high < 0xD800 || high > 0xDFFF)
		return kc_utf8_encode((uint32_t) high, out);
	if (high < 0xDC00)
	{
		low = take_u16(u);
		if (low >= 0xDC00 && low <= 0xDFFF)
			return kc_utf8_encode(0x10000 + ((uint32_t) (high - 0xD800) << 10) +
								  (uint32_t) (low - 0xDC00), out);
		*u = before_low;
	}
	return kc_utf8_encode(0xFFFD, out);
}

/* The next character (or byte of one) as 1 to 4 bytes; 0 at the end. */
static size_t
unescape_next(Unescape *u, char out[4])
{
	if (u->p >= u->end)
		return 0;
	if (*u->p != '\\' || u->end - u->p < 2)
	{
		out[0] = *u->p++;
		return 1;
	}
	if (u->p[1] == 'u')
		return unescape_u(u, out);
	switch (u->p[1])
	{
		case 'b':
			out[0] = '\b';
			break;
		case 'f':
			out[0] = '\f';
			break;
		case 'n':
			out[0] = '\n';
			break;
		case 'r':
			out[0] = '\r';
			break;
		case 't':
			out[0] = '\t';
			break;
		default:
			out[0] = u->p[1];
			break;
	}
	u->p += 2;
	return 1;
}

static bool
string_equals(KcJsonValue string, const char *text, bool ignore_case)
{
	Unescape	u = unescape_begin(string);
	size_t		at = 0;
	size_t		len = strlen(text);
	size_t		n;
	char		piece[4];

	if (string.type != KC_JSON_STRING)
		return false;
	while ((n = unescape_next(&u, piece)) > 0)
	{
		KcSlice		have = {piece, n};
		KcSlice		want = {text + at, n};

		if (len - at < n)
			return false;
		if (ignore_case ? !kc_slice_ieq(have, want) : !kc_slice_eq(have, want))
			return false;
		at += n;
	}
	return at == len;
}

bool
kc_json_string_is(KcJsonValue string, const char *text)
{
	return string_equals(string, text, false);
}

bool
kc_json_string_ieq(KcJsonValue string, const char *text)
{
	return string_equals(string, text, true);
}

void
kc_json_unescape(KcBuf *out, KcJsonValue string)
{
	Unescape	u = unescape_begin(string);
	size_t		n;
	char		piece[4];

	while (u.p < u.end)
	{
		const char *escape = memchr(u.p, '\\', (size_t) (u.end - u.p));
		const char *run_end = escape == NULL ? u.end : escape;

		kc_buf_append(out, u.p, (size_t) (run_end - u.p));
		u.p = run_end;
		n = unescape_next(&u, piece);
		kc_buf_append(out, piece, n);
	}
}

/* ---- scalars and members ---- */

bool
kc_json_member(KcJsonValue object, const char *name, KcJsonValue *value)
{
	KcJsonIter	it;
	KcJsonValue key;
	KcJsonValue member;
	bool		found = false;

	kc_json_iter(&it, object);
	while (kc_json_next_member(&it, &key, &member))
	{
		if (kc_json_string_is(key, name))
		{
			*value = member;
			return true;
		}
		if (!found && kc_json_string_ieq(key, name))
		{
			*value = member;
			found = true;
		}
	}
	return found;
}

/* An optional minus and digits, in range. */
static bool
parse_i64(KcSlice text, int64_t *value)
{
	bool		negative = text.len > 0 && text.data[0] == '-';
	size_t		at = negative ? 1 : 0;
	int64_t		result = 0;

	if (at == text.len)
		return false;
	for (; at < text.len; at++)
	{
		int			digit = text.data[at] - '0';

		/* downwards, where there is one number more */
		if (!kc_ascii_is_digit(text.data[at]) ||
			__builtin_mul_overflow(result, (int64_t) 10, &result) ||
			__builtin_sub_overflow(result, (int64_t) digit, &result))
			return false;
	}
	if (!negative && result == INT64_MIN)
		return false;
	*value = negative ? result : -result;
	return true;
}

bool
kc_json_i64(KcJsonValue number, int64_t *value)
{
	return number.type == KC_JSON_NUMBER && parse_i64(number.raw, value);
}

bool
kc_json_bool(KcJsonValue value)
{
	return value.type == KC_JSON_BOOL && kc_slice_eq(value.raw, kc_slice("true"));
}

/* ---- field tables ---- */

typedef struct Reader
{
	const KcJsonField *fields;
	int			nfields;
	const KcAlloc *alloc;
	uint64_t	seen;			/* the name stood there */
	uint64_t	filled;			/* and its value was not null */
	const char *doing;
	KcError    *err;
} Reader;

static KcStatus
wrong_type(const Reader *r, const KcJsonField *field, const char *expected)
{
	return kc_error_set(r->err, KC_ERR_PROTOCOL, r->doing,
						"the answer's member \"%s\" is not %s", field->name, expected);
}

static KcStatus
read_string(const Reader *r, const KcJsonField *field, KcJsonValue value)
{
	KcBuf		text;
	KcStatus	status;

	if (value.type != KC_JSON_STRING)
		return wrong_type(r, field, "a string");
	kc_buf_init(&text, r->alloc, KC_BUF_UNLIMITED);
	/* Unescaping never grows; reserving even 0 gives the terminator. */
	(void) kc_buf_reserve(&text, value.raw.len);
	kc_json_unescape(&text, value);
	status = kc_buf_status(&text, r->err, r->doing);
	if (status == KC_OK && memchr(text.data, '\0', text.len) != NULL)
		status = wrong_type(r, field, "a string without NUL");
	if (status != KC_OK)
	{
		kc_buf_free_secret(&text);
		return status;
	}
	*(char **) field->target = text.data;
	return KC_OK;
}

/* Services write 64-bit numbers as strings, since JavaScript has none. */
static KcStatus
read_i64(const Reader *r, const KcJsonField *field, KcJsonValue value)
{
	KcSlice		digits = value.raw;

	if (value.type == KC_JSON_STRING && digits.len >= 2)
		digits = kc_slice_n(digits.data + 1, digits.len - 2);
	if ((value.type != KC_JSON_STRING && value.type != KC_JSON_NUMBER) ||
		!parse_i64(digits, (int64_t *) field->target))
		return wrong_type(r, field, "an integer");
	return KC_OK;
}

static KcStatus
read_field(const Reader *r, const KcJsonField *field, KcJsonValue value)
{
	switch (field->want)
	{
		case KC_WANT_STRING:
			return read_string(r, field, value);
		case KC_WANT_I64:
			return read_i64(r, field, value);
		case KC_WANT_BOOL:
			if (value.type != KC_JSON_BOOL)
				return wrong_type(r, field, "true or false");
			*(bool *) field->target = kc_json_bool(value);
			return KC_OK;
		case KC_WANT_VALUE:
			*(KcJsonValue *) field->target = value;
			return KC_OK;
	}
	return kc_error_set(r->err, KC_ERR_INTERNAL, r->doing, "a field table is wrong");
}

static KcStatus
read_member(Reader *r, KcJsonValue key, KcJsonValue value)
{
	KcStatus	status;

	for (int i = 0; i < r->nfields; i++)
	{
		const KcJsonField *field = &r->fields[i];
		uint64_t	bit = UINT64_C(1) << i;

		if (!kc_json_string_ieq(key, field->name))
			continue;
		if ((r->seen & bit) != 0)
			return kc_error_set(r->err, KC_ERR_PROTOCOL, r->doing,
								"the answer has two members \"%s\"", field->name);
		r->seen |= bit;
		if (value.type == KC_JSON_NULL)
			continue;
		status = read_field(r, field, value);
		if (status != KC_OK)
			return status;
		r->filled |= bit;
		if (field->found != NULL)
			*field->found = true;
	}
	return KC_OK;
}

static KcStatus
check_required(const Reader *r)
{
	for (int i = 0; i < r->nfields; i++)
	{
		if (r->fields[i].required && (r->filled & UINT64_C(1) << i) == 0)
			return kc_error_set(r->err, KC_ERR_PROTOCOL, r->doing,
								"the answer has no member \"%s\"", r->fields[i].name);
	}
	return KC_OK;
}

static void
forget_strings(const Reader *r)
{
	for (int i = 0; i < r->nfields; i++)
	{
		if (r->fields[i].want == KC_WANT_STRING && (r->filled & UINT64_C(1) << i) != 0)
		{
			kc_free_secret(r->alloc, *(char **) r->fields[i].target);
			*(char **) r->fields[i].target = NULL;
		}
	}
}

KcStatus
kc_json_read_object(KcJsonValue object, const KcJsonField *fields, int nfields,
					const KcAlloc *alloc, const char *doing, KcError *err)
{
	Reader		r = {.fields = fields, .nfields = nfields, .alloc = alloc,
	.doing = doing, .err = err};
	KcStatus	status = KC_OK;
	KcJsonIter	it;
	KcJsonValue key;
	KcJsonValue value;

	if (nfields > MAX_FIELDS)
		return kc_error_set(err, KC_ERR_INTERNAL, doing, "a field table is too large");
	if (object.type != KC_JSON_OBJECT)
		return kc_error_set(err, KC_ERR_PROTOCOL, doing, "the answer is not a JSON object");
	for (int i = 0; i < nfields; i++)
	{
		if (fields[i].found != NULL)
			*fields[i].found = false;
	}

	kc_json_iter(&it, object);
	while (status == KC_OK && kc_json_next_member(&it, &key, &value))
		status = read_member(&r, key, value);
	if (status == KC_OK)
		status = check_required(&r);
	if (status != KC_OK)
		forget_strings(&r);
	return status;
}
