/*
 * json_check.c
 *	  Is a document JSON (RFC 8259), and not too deep?  Asked once a document;
 *	  the functions of json_read.c rely on the answer.
 *
 * Works without recursion and without memory: a stack of bits remembers
 * whether the containers around us are objects.
 */
#include "json.h"

#include <string.h>

#include "ascii.h"
#include "json_token.h"
#include "utf8.h"

typedef struct Checker
{
	const char *data;
	size_t		len;
	size_t		at;
	int			depth;
	int			max_depth;
	uint64_t	objects;		/* bit n: the container at depth n is an object */
	const char *wrong;			/* what is wrong at at, or NULL */
} Checker;

static bool
wrong(Checker *c, const char *what)
{
	if (c->wrong == NULL)
		c->wrong = what;
	return false;
}

static void
skip_blanks(Checker *c)
{
	while (c->at < c->len && kc_json_is_blank(c->data[c->at]))
		c->at++;
}

/* The next character, or '\0' at the end; a NUL in the text is wrong anyway. */
static char
peek(const Checker *c)
{
	return c->at < c->len ? c->data[c->at] : '\0';
}

static bool
take(Checker *c, char expected)
{
	if (peek(c) != expected)
		return false;
	c->at++;
	return true;
}

static bool
check_escape(Checker *c)
{
	c->at++;
	if (take(c, 'u'))
	{
		for (int i = 0; i < 4; i++, c->at++)
		{
			if (kc_ascii_hex(peek(c)) < 0)
				return wrong(c, "a \\u escape without four hexadecimal digits");
		}
		return true;
	}
	if (peek(c) == '\0' || strchr("\"\\/bfnrt", peek(c)) == NULL)
		return wrong(c, "an unknown escape");
	c->at++;
	return true;
}

/* Is this byte a character of a string, and nothing else? */
static inline bool
is_plain(char ch)
{
	return ch >= 0x20 && ch < 0x7F && ch != '"' && ch != '\\';
}

static bool
check_string(Checker *c)
{
	if (!take(c, '"'))
		return wrong(c, "no string where one must be");
	while (c->at < c->len)
	{
		unsigned char ch;
		size_t		n;

		while (c->at < c->len && is_plain(c->data[c->at]))
			c->at++;
		if (c->at == c->len)
			break;
		ch = (unsigned char) c->data[c->at];
		if (ch == '"')
		{
			c->at++;
			return true;
		}
		if (ch == '\\')
		{
			if (!check_escape(c))
				return false;
			continue;
		}
		if (ch < 0x20)
			return wrong(c, "a control character in a string");
		n = kc_utf8_sequence(c->data + c->at, c->len - c->at);
		if (n == 0)
			return wrong(c, "invalid UTF-8");
		c->at += n;
	}
	return wrong(c, "a string without an end");
}

static bool
check_digits(Checker *c)
{
	if (!kc_ascii_is_digit(peek(c)))
		return wrong(c, "no digit where one must be");
	while (kc_ascii_is_digit(peek(c)))
		c->at++;
	return true;
}

static bool
check_number(Checker *c)
{
	(void) take(c, '-');
	if (!take(c, '0') && !check_digits(c))
		return false;
	if (take(c, '.') && !check_digits(c))
		return false;
	if (take(c, 'e') || take(c, 'E'))
	{
		if (!take(c, '+'))
			(void) take(c, '-');
		return check_digits(c);
	}
	return true;
}

static bool
check_word(Checker *c, const char *word)
{
	size_t		len = strlen(word);

	if (c->len - c->at < len || memcmp(c->data + c->at, word, len) != 0)
		return wrong(c, "an unknown word");
	c->at += len;
	return true;
}

static bool
in_object(const Checker *c)
{
	return (c->objects >> (c->depth - 1) & 1) != 0;
}

/* "key": and the blanks around it */
static bool
check_key(Checker *c)
{
	skip_blanks(c);
	if (!check_string(c))
		return false;
	skip_blanks(c);
	return take(c, ':') || wrong(c, "no colon behind a name");
}

/* Enter a container; *empty when it is closed at once. */
static bool
check_open(Checker *c, bool *empty)
{
	bool		object = peek(c) == '{';

	if (c->depth >= c->max_depth)
		return wrong(c, "too many levels");
	c->at++;
	if (object)
		c->objects |= UINT64_C(1) << c->depth;
	else
		c->objects &= ~(UINT64_C(1) << c->depth);
	c->depth++;

	skip_blanks(c);
	*empty = peek(c) == (object ? '}' : ']');
	if (*empty || !object)
		return true;
	return check_key(c);
}

/*
 * A value has ended: leave the containers that end here, up to the comma that
 * announces another value, or the end of the outermost.
 */
static bool
check_close(Checker *c)
{
	while (c->depth > 0)
	{
		skip_blanks(c);
		if (take(c, ','))
			return !in_object(c) || check_key(c);
		if (!take(c, in_object(c) ? '}' : ']'))
			return wrong(c, c->at == c->len ? "an unexpected end" :
						 "neither a comma nor a closing bracket");
		c->depth--;
	}
	return true;
}

static bool
check_scalar(Checker *c)
{
	switch (peek(c))
	{
		case '"':
			return check_string(c);
		case 't':
			return check_word(c, "true");
		case 'f':
			return check_word(c, "false");
		case 'n':
			return check_word(c, "null");
		default:
			if (c->at == c->len)
				return wrong(c, "an unexpected end");
			if (peek(c) != '-' && !kc_ascii_is_digit(peek(c)))
				return wrong(c, "no value where one must be");
			return check_number(c);
	}
}

static bool
check_value(Checker *c)
{
	do
	{
		bool		empty = false;

		skip_blanks(c);
		if (peek(c) == '{' || peek(c) == '[')
		{
			if (!check_open(c, &empty))
				return false;
			if (!empty)
				continue;
		}
		else if (!check_scalar(c))
			return false;
		if (!check_close(c))
			return false;
	} while (c->depth > 0);
	return true;
}

KcStatus
kc_json_check(KcSlice doc, int max_depth, KcJsonValue *top, const char *doing, KcError *err)
{
	Checker		c = {.data = doc.data, .len = doc.len};
	size_t		start;

	c.max_depth = max_depth < KC_JSON_MAX_DEPTH ? max_depth : KC_JSON_MAX_DEPTH;

	/* RFC 8259 section 8.1 lets a reader ignore a byte order mark. */
	if (doc.len >= 3 && memcmp(doc.data, "\xEF\xBB\xBF", 3) == 0)
		c.at = 3;
	skip_blanks(&c);
	start = c.at;
	if (check_value(&c))
	{
		*top = (KcJsonValue) {kc_json_type_of(doc.data[start]), {doc.data + start, c.at - start}};
		skip_blanks(&c);
		if (c.at < c.len)
			(void) wrong(&c, "more behind the value");
	}
	if (c.wrong == NULL)
		return KC_OK;
	*top = (KcJsonValue) {KC_JSON_NULL, KC_SLICE_NULL};
	return kc_error_set(err, KC_ERR_PROTOCOL, doing,
						"the answer is not valid JSON: %s at byte %zu", c.wrong, c.at);
}
