/*
 * json_write.c
 *	  The JSON writer (RFC 8259).  What it writes is always valid UTF-8 and
 *	  ASCII-clean as far as control characters go.  Errors stick in the buffer.
 */
#include "json.h"

#include <string.h>

#include "utf8.h"

/* Escape of a byte that may not stand in a JSON string as it is, or NULL. */
static const char *
short_escape(unsigned char c)
{
	switch (c)
	{
		case '"':
			return "\\\"";
		case '\\':
			return "\\\\";
		case '\b':
			return "\\b";
		case '\f':
			return "\\f";
		case '\n':
			return "\\n";
		case '\r':
			return "\\r";
		case '\t':
			return "\\t";
		default:
			return NULL;
	}
}

/* Length of the well-formed run that needs no escape. */
static size_t
plain_run(const char *p, size_t len)
{
	size_t		at = 0;

	while (at < len)
	{
		unsigned char c = (unsigned char) p[at];
		size_t		n = 1;

		if (c < 0x20 || c == '"' || c == '\\')
			break;
		if (c >= 0x80)
			n = kc_utf8_sequence(p + at, len - at);
		if (n == 0)
			break;
		at += n;
	}
	return at;
}

void
kc_json_string(KcBuf *out, KcSlice text)
{
	size_t		at = 0;

	kc_buf_char(out, '"');
	while (at < text.len)
	{
		size_t		run = plain_run(text.data + at, text.len - at);
		unsigned char c;
		const char *escape;

		kc_buf_append(out, text.data + at, run);
		at += run;
		if (at == text.len)
			break;
		c = (unsigned char) text.data[at++];
		escape = short_escape(c);
		if (escape != NULL)
			kc_buf_str(out, escape);
		else if (c < 0x20)
			kc_buf_printf(out, "\\u%04x", (unsigned) c);
		else
			kc_buf_str(out, KC_UTF8_REPLACEMENT);
	}
	kc_buf_char(out, '"');
}

/* ---- the writer ---- */

void
kc_json_begin(KcJsonWriter *w, KcBuf *out)
{
	memset(w, 0, sizeof(*w));
	w->out = out;
}

/* A value begins: put the comma that the previous one asked for. */
static void
before_value(KcJsonWriter *w)
{
	if (w->need_comma[w->depth])
		kc_buf_char(w->out, ',');
	w->need_comma[w->depth] = true;
}

static void
fail(KcJsonWriter *w, KcStatus status)
{
	if (w->out->failed == KC_OK)
		w->out->failed = status;
}

static void
open_container(KcJsonWriter *w, char bracket)
{
	before_value(w);
	if (w->depth + 1 >= KC_JSON_MAX_DEPTH)
	{
		fail(w, KC_ERR_LIMIT);
		return;
	}
	kc_buf_char(w->out, bracket);
	w->need_comma[++w->depth] = false;
}

static void
close_container(KcJsonWriter *w, char bracket)
{
	if (w->depth == 0)
	{
		fail(w, KC_ERR_INTERNAL);
		return;
	}
	w->depth--;
	kc_buf_char(w->out, bracket);
}

void
kc_json_object_open(KcJsonWriter *w)
{
	open_container(w, '{');
}

void
kc_json_object_close(KcJsonWriter *w)
{
	close_container(w, '}');
}

void
kc_json_array_open(KcJsonWriter *w)
{
	open_container(w, '[');
}

void
kc_json_array_close(KcJsonWriter *w)
{
	close_container(w, ']');
}

void
kc_json_key_slice(KcJsonWriter *w, KcSlice key)
{
	before_value(w);
	kc_json_string(w->out, key);
	kc_buf_char(w->out, ':');
	w->need_comma[w->depth] = false;	/* not before the key's own value */
}

void
kc_json_key(KcJsonWriter *w, const char *key)
{
	kc_json_key_slice(w, kc_slice(key));
}

void
kc_json_value_string(KcJsonWriter *w, KcSlice text)
{
	before_value(w);
	kc_json_string(w->out, text);
}

void
kc_json_value_i64(KcJsonWriter *w, int64_t value)
{
	before_value(w);
	kc_buf_i64(w->out, value);
}

void
kc_json_value_bool(KcJsonWriter *w, bool value)
{
	before_value(w);
	kc_buf_str(w->out, value ? "true" : "false");
}

void
kc_json_value_null(KcJsonWriter *w)
{
	before_value(w);
	kc_buf_str(w->out, "null");
}

void
kc_json_value_raw(KcJsonWriter *w, KcSlice json)
{
	before_value(w);
	kc_buf_slice(w->out, json);
}
