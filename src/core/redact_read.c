/*
 * redact_read.c
 *	  Reading text that may have been quoted, encoded and escaped, any number
 *	  of times: its characters, and where a run, a string or a bracket ends.
 *
 * Only raw characters end things that were not opened by a quote, so a run is
 * rather too long than too short.  Pure.
 */
#include "redact_read.h"

#include <string.h>

#include "ascii.h"

/* Blanks allowed around the separator of a member. */
#define MAX_BLANKS	16

/* ---- characters ---- */

/* Value of two hexadecimal digits at text[at], or -1. */
static int
hex_pair(KcSlice text, size_t at)
{
	int			high;
	int			low;

	if (at > text.len || text.len - at < 2)
		return -1;
	high = kc_ascii_hex(text.data[at]);
	low = kc_ascii_hex(text.data[at + 1]);
	return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static bool
stands_at(KcSlice text, size_t at, const char *what)
{
	size_t		len = strlen(what);

	return at <= text.len && text.len - at >= len &&
		memcmp(text.data + at, what, len) == 0;
}

static size_t
backslashes_at(KcSlice text, size_t at)
{
	size_t		start = at;

	while (at < text.len && text.data[at] == '\\')
		at++;
	return at - start;
}

static char
logical_percent(KcSlice text, size_t at, size_t *n)
{
	size_t		digits = at + 1;
	int			byte;

	while (stands_at(text, digits, "25") && hex_pair(text, digits + 2) >= 0)
		digits += 2;
	byte = hex_pair(text, digits);
	if (byte < 0)
		return '%';
	*n = digits + 2 - at;
	return (char) byte;
}

static char
logical_backslash(KcSlice text, size_t at, size_t *n)
{
	size_t		behind = at + backslashes_at(text, at);

	if (stands_at(text, behind, "u00") && hex_pair(text, behind + 3) >= 0)
	{
		*n = behind + 5 - at;
		return (char) hex_pair(text, behind + 3);
	}
	if (behind < text.len && strchr("\"'/", text.data[behind]) != NULL &&
		text.data[behind] != '\0')
	{
		*n = behind + 1 - at;
		return text.data[behind];
	}
	return '\\';
}

static char
logical_ampersand(KcSlice text, size_t at, size_t *n)
{
	static const struct
	{
		const char *entity;
		char		c;
	}			entities[] = {
		{"quot;", '"'}, {"apos;", '\''}, {"lt;", '<'}, {"gt;", '>'},
		{"#34;", '"'}, {"#39;", '\''}, {"#x22;", '"'}, {"#x27;", '\''},
		{"#x3D;", '='}, {"#x3d;", '='}, {"#61;", '='}, {"#43;", '+'},
	};
	size_t		behind = at + 1;

	while (stands_at(text, behind, "amp;"))
		behind += 4;
	for (size_t i = 0; i < sizeof(entities) / sizeof(entities[0]); i++)
	{
		if (stands_at(text, behind, entities[i].entity))
		{
			*n = behind + strlen(entities[i].entity) - at;
			return entities[i].c;
		}
	}
	*n = behind - at;
	return '&';
}

char
kc_redact_char(KcSlice text, size_t at, size_t *n)
{
	*n = 1;
	switch (text.data[at])
	{
		case '%':
			return logical_percent(text, at, n);
		case '\\':
			return logical_backslash(text, at, n);
		case '&':
			return logical_ampersand(text, at, n);
		default:
			return text.data[at];
	}
}

char
kc_redact_peek(KcSlice text, size_t at, size_t *n)
{
	*n = 0;
	return at < text.len ? kc_redact_char(text, at, n) : '\0';
}

/* ---- where things end ---- */

size_t
kc_redact_run_end(KcSlice text, size_t at, const char *stops)
{
	while (at < text.len && (unsigned char) text.data[at] > ' ' &&
		   strchr(stops, text.data[at]) == NULL)
		at++;
	return at;
}

/*
 * Is the quote behind a run of backslashes the closing one, when the opening
 * one had level of them?  Each level of quoting doubles and adds one.
 */
static bool
run_closes(size_t run, size_t level)
{
	return run < level || (run - level) / (level + 1) % 2 == 0;
}

/* The quote c behind its backslashes, itself or as \uXXXX has it. */
static const char *
quote_form(KcSlice text, size_t at, char c)
{
	bool		unicode = stands_at(text, at, "u00");

	if (c == '"')
		return unicode ? "u0022" : "\"";
	return unicode ? "u0027" : "'";
}

/*
 * End of a value whose opening quote, c, is at..at+n and begins with no % or &.
 * Whoever wrote the one wrote the other alike: \\u0022 ends nothing that " began.
 */
static size_t
quoted_end(KcSlice text, size_t at, size_t n, char c)
{
	size_t		level = backslashes_at(text, at);
	const char *quote = quote_form(text, at + level, c);

	at += n;
	while (at < text.len)
	{
		size_t		run = backslashes_at(text, at);

		if (!stands_at(text, at + run, quote) || (quote[0] == 'u' && run == 0))
		{
			at += run + 1;
			continue;
		}
		if (run_closes(run, level))
		{
			/* SQL doubles its quote */
			if (c == '\'' && stands_at(text, at + run, "''"))
			{
				at += run + 2;
				continue;
			}
			return at + (run < level ? run : run - level);
		}
		at += run + 1;
	}
	return text.len;
}

/*
 * The same for a quote written %22 or &quot;.  Only a backslash that is written
 * at the same level, %5C to %22 and %255C to %2522, escapes it.
 */
static size_t
encoded_quoted_end(KcSlice text, size_t at, size_t n)
{
	KcSlice		quote = {text.data + at, n};
	bool		percent = *quote.data == '%';
	bool		escaped = false;

	for (at += n; at < text.len; at += n)
	{
		KcSlice		here = {text.data + at, text.len - at};
		KcSlice		unit = {here.data, quote.len};

		/* The whole was written without these, so it has ended. */
		if ((unsigned char) *here.data < ' ' || *here.data == '"')
			return at;
		n = 1;
		if (here.len >= quote.len && kc_slice_ieq(unit, quote))
		{
			if (!escaped)
				return at;
			n = quote.len;
			escaped = false;
		}
		else if (percent && here.len >= quote.len &&
				 memcmp(unit.data, quote.data, quote.len - 2) == 0 &&
				 kc_slice_ends_i(unit, kc_slice("5C")))
		{
			n = quote.len;
			escaped = !escaped;
		}
		else
			escaped = !percent && *here.data == '\\' && !escaped;
	}
	return text.len;
}

size_t
kc_redact_quoted_end(KcSlice text, size_t at)
{
	size_t		n;
	char		c = kc_redact_char(text, at, &n);

	if (text.data[at] == '%' || text.data[at] == '&')
		return encoded_quoted_end(text, at, n);
	return quoted_end(text, at, n, c);
}

size_t
kc_redact_bracket_end(KcSlice text, size_t at)
{
	size_t		depth = 0;
	size_t		n;

	for (; at < text.len; at += n)
	{
		char		c = kc_redact_char(text, at, &n);

		if (c == '{' || c == '[')
			depth++;
		else if ((c == '}' || c == ']') && --depth == 0)
			return at + n;
	}
	return text.len;
}

bool
kc_redact_is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

size_t
kc_redact_skip_blanks(KcSlice text, size_t at)
{
	for (int i = 0; i < MAX_BLANKS; i++)
	{
		size_t		n;
		char		c = kc_redact_peek(text, at, &n);
		size_t		behind = at + backslashes_at(text, at);

		if (c == '\\' && behind < text.len && strchr("nrt", text.data[behind]) != NULL)
			n = behind + 1 - at;
		else if (!kc_redact_is_blank(c))
			break;
		at += n;
	}
	return at;
}

