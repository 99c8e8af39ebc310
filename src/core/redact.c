/*
 * redact.c
 *	  Finds secrets by the shape of what surrounds them and puts *** there.
 *
 * Text that becomes an error has often been quoted before it gets here: a URL
 * inside JSON inside a percent-encoded header.  So the scan reads "logical"
 * characters, that is with %XX, \uXXXX, \" and &amp; undone to any depth, and
 * in doubt takes too much.  What one rule covers does not hide anything from
 * the others: all rules run over the original text, then it is rewritten, and
 * that is repeated until nothing changes.
 *
 * Meant for text of the size of an error, not for bulk data.  Pure.
 */
#include "redact.h"

#include <string.h>

#include "ascii.h"

/* More places than this in one text: the rest of the text goes. */
#define MAX_RANGES	64

/* Blanks allowed around the separator of a member. */
#define MAX_BLANKS	16

/* Longest name of a query parameter. */
#define MAX_NAME	64

typedef struct Range
{
	size_t		start;
	size_t		end;
} Range;

typedef struct Scan
{
	const char *text;
	size_t		len;
	size_t		url_end;		/* the URL that we are in ends here */
	size_t		name_len;		/* logical characters of the current name */
	char		name[MAX_NAME]; /* the last of them, lower case */
	Range		ranges[MAX_RANGES];
	int			nranges;
} Scan;

/* What a name announces. */
typedef enum NameKind
{
	NAME_VALUE,					/* name=secret, "name": "secret" */
	NAME_QUERY,					/* the same, and the parameters behind it */
	NAME_LINE,					/* name: secret up to the end of the line */
	NAME_SCHEME,				/* name secret */
	NAME_BASE64_SCHEME			/* the same, if the secret looks like one */
} NameKind;

static const struct
{
	const char *suffix;
	NameKind	kind;
	bool		also_prose;		/* a common word before a colon, too */
}			names[] = {
	{"token", NAME_VALUE, true},
	{"secret", NAME_VALUE, true},
	{"key", NAME_VALUE, true},
	{"assertion", NAME_VALUE, true},
	{"password", NAME_VALUE, false},
	{"passwd", NAME_VALUE, false},
	{"pwd", NAME_VALUE, false},
	{"cookie", NAME_LINE, false},
	{"authorizationcontext", NAME_VALUE, false},
	{"authorization", NAME_LINE, false},
	{"sharedaccesssignature", NAME_QUERY, false},
	{"signature", NAME_VALUE, false},
	{"sig", NAME_QUERY, false},
	{"bearer", NAME_SCHEME, false},
	{"sharedkey", NAME_SCHEME, false},
	{"sharedkeylite", NAME_SCHEME, false},
	{"sharedaccesssignature", NAME_SCHEME, false},
	{"basic", NAME_BASE64_SCHEME, false},
};

/* ---- logical characters ---- */

/* Value of two hexadecimal digits at text[at], or -1. */
static int
hex_pair(const Scan *scan, size_t at)
{
	int			high;
	int			low;

	if (at > scan->len || scan->len - at < 2)
		return -1;
	high = kc_ascii_hex(scan->text[at]);
	low = kc_ascii_hex(scan->text[at + 1]);
	return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static bool
stands_at(const Scan *scan, size_t at, const char *what)
{
	size_t		len = strlen(what);

	return at <= scan->len && scan->len - at >= len &&
		memcmp(scan->text + at, what, len) == 0;
}

static size_t
backslashes_at(const Scan *scan, size_t at)
{
	size_t		start = at;

	while (at < scan->len && scan->text[at] == '\\')
		at++;
	return at - start;
}

static char
logical_percent(const Scan *scan, size_t at, size_t *n)
{
	size_t		digits = at + 1;
	int			byte;

	while (stands_at(scan, digits, "25") && hex_pair(scan, digits + 2) >= 0)
		digits += 2;
	byte = hex_pair(scan, digits);
	if (byte < 0)
		return '%';
	*n = digits + 2 - at;
	return (char) byte;
}

static char
logical_backslash(const Scan *scan, size_t at, size_t *n)
{
	size_t		behind = at + backslashes_at(scan, at);

	if (stands_at(scan, behind, "u00") && hex_pair(scan, behind + 3) >= 0)
	{
		*n = behind + 5 - at;
		return (char) hex_pair(scan, behind + 3);
	}
	if (behind < scan->len && strchr("\"'/", scan->text[behind]) != NULL &&
		scan->text[behind] != '\0')
	{
		*n = behind + 1 - at;
		return scan->text[behind];
	}
	return '\\';
}

static char
logical_ampersand(const Scan *scan, size_t at, size_t *n)
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

	while (stands_at(scan, behind, "amp;"))
		behind += 4;
	for (size_t i = 0; i < sizeof(entities) / sizeof(entities[0]); i++)
	{
		if (stands_at(scan, behind, entities[i].entity))
		{
			*n = behind + strlen(entities[i].entity) - at;
			return entities[i].c;
		}
	}
	*n = behind - at;
	return '&';
}

/* The character that stands at text[at], and how many bytes write it. */
static char
logical(const Scan *scan, size_t at, size_t *n)
{
	*n = 1;
	switch (scan->text[at])
	{
		case '%':
			return logical_percent(scan, at, n);
		case '\\':
			return logical_backslash(scan, at, n);
		case '&':
			return logical_ampersand(scan, at, n);
		default:
			return scan->text[at];
	}
}

/* The same, '\0' at the end of the text. */
static char
peek(const Scan *scan, size_t at, size_t *n)
{
	*n = 0;
	return at < scan->len ? logical(scan, at, n) : '\0';
}

static bool
is_name_char(char c)
{
	return kc_ascii_is_alnum(c) || c == '_' || c == '-';
}

static bool
is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* ---- ranges ---- */

static void
mark(Scan *scan, size_t start, size_t end)
{
	if (end <= start)
		return;
	while (scan->nranges > 0 && start <= scan->ranges[scan->nranges - 1].end)
	{
		Range	   *last = &scan->ranges[--scan->nranges];

		if (last->start < start)
			start = last->start;
		if (last->end > end)
			end = last->end;
	}
	if (scan->nranges == MAX_RANGES)
		scan->ranges[MAX_RANGES - 1].end = scan->len;
	else
		scan->ranges[scan->nranges++] = (Range) {start, end};
}

/* First byte from at that is a blank, a control or one of stops, as written. */
static size_t
run_end(const Scan *scan, size_t at, const char *stops)
{
	while (at < scan->len && (unsigned char) scan->text[at] > ' ' &&
		   strchr(stops, scan->text[at]) == NULL)
		at++;
	return at;
}

#define URL_STOPS "\"<>"

/* ---- values ---- */

/*
 * Is the quote behind a run of backslashes the closing one, when the opening
 * one had level of them?  Each level of quoting doubles and adds one.
 */
static bool
run_closes(size_t run, size_t level)
{
	return run < level || (run - level) / (level + 1) % 2 == 0;
}

/* Is text[at] a quote that, at its level, writes the character c? */
static bool
quote_behind_backslashes(const Scan *scan, size_t at, char c)
{
	if (at >= scan->len)
		return false;
	return scan->text[at] == c || stands_at(scan, at, c == '"' ? "u0022" : "u0027");
}

/* End of a value whose opening quote, c, is at..at+n and begins with no % or &. */
static size_t
quoted_end(const Scan *scan, size_t at, size_t n, char c)
{
	size_t		level = backslashes_at(scan, at);

	at += n;
	while (at < scan->len)
	{
		size_t		run = backslashes_at(scan, at);

		if (!quote_behind_backslashes(scan, at + run, c) ||
			(scan->text[at + run] == 'u' && run == 0))
		{
			at += run + 1;
			continue;
		}
		if (run_closes(run, level))
		{
			/* SQL doubles its quote */
			if (c == '\'' && stands_at(scan, at + run, "''"))
			{
				at += run + 2;
				continue;
			}
			return at + (run < level ? run : run - level);
		}
		at += run + 1;
	}
	return scan->len;
}

/*
 * The same for a quote written %22 or &quot;.  Only a backslash that is written
 * at the same level, %5C to %22 and %255C to %2522, escapes it.
 */
static size_t
encoded_quoted_end(const Scan *scan, size_t at, size_t n)
{
	KcSlice		quote = {scan->text + at, n};
	bool		percent = *quote.data == '%';
	bool		escaped = false;

	for (at += n; at < scan->len; at += n)
	{
		KcSlice		here = {scan->text + at, scan->len - at};
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
	return scan->len;
}

/* Behind the bracket that closes the one at at, or the end of the text. */
static size_t
bracket_end(const Scan *scan, size_t at)
{
	size_t		depth = 0;
	size_t		n;

	for (; at < scan->len; at += n)
	{
		char		c = logical(scan, at, &n);

		if (c == '{' || c == '[')
			depth++;
		else if ((c == '}' || c == ']') && --depth == 0)
			return at + n;
	}
	return scan->len;
}

static void
mark_value(Scan *scan, size_t at, NameKind kind)
{
	const char *stops = "\"'<>&;";
	size_t		n;
	char		c = peek(scan, at, &n);

	if (c == '"' || c == '\'')
	{
		bool		encoded = scan->text[at] == '%' || scan->text[at] == '&';

		mark(scan, at + n, encoded ? encoded_quoted_end(scan, at, n) :
			 quoted_end(scan, at, n, c));
		return;
	}
	if (kind == NAME_LINE)
	{
		const char *newline = memchr(scan->text + at, '\n', scan->len - at);

		mark(scan, at, newline == NULL ? scan->len : (size_t) (newline - scan->text));
		return;
	}
	if (kind == NAME_QUERY)
		stops = URL_STOPS;
	if (c == '{' || c == '[')
		mark(scan, at, run_end(scan, bracket_end(scan, at), stops));
	else
		mark(scan, at, run_end(scan, at, stops));
}

/* Behind blanks, be they written " ", "%20" or, inside JSON, "\\n". */
static size_t
skip_blanks(const Scan *scan, size_t at)
{
	for (int i = 0; i < MAX_BLANKS; i++)
	{
		size_t		n;
		char		c = peek(scan, at, &n);
		size_t		behind = at + backslashes_at(scan, at);

		if (c == '\\' && behind < scan->len && strchr("nrt", scan->text[behind]) != NULL)
			n = behind + 1 - at;
		else if (!is_blank(c))
			break;
		at += n;
	}
	return at;
}

/* "the token: expected a string": a word, not a token. */
static bool
is_prose(const Scan *scan, size_t at)
{
	size_t		end = at;

	while (end < scan->len && kc_ascii_is_alpha(scan->text[end]))
		end++;
	if (end == at || end - at > 14)
		return false;
	return end == scan->len || strchr(" .,;)", scan->text[end]) != NULL;
}

/* A name of a secret member has ended at end: mark its value. */
static void
member_ended(Scan *scan, size_t end, int which)
{
	size_t		n;
	size_t		at = end;
	char		c = peek(scan, at, &n);
	bool		quoted;
	bool		bare = scan->name_len == strlen(names[which].suffix);

	/* %5C%22: a quote that was escaped and then encoded */
	while (c == '\\')
	{
		at += n;
		c = peek(scan, at, &n);
	}
	quoted = c == '"' || c == '\'';

	/* <AccountKey>secret</AccountKey> */
	if (c == '>' && scan->name_len > 0)
	{
		mark(scan, at + n, run_end(scan, at + n, "<&"));
		return;
	}
	if (quoted)
		at += n;
	at = skip_blanks(scan, at);
	c = peek(scan, at, &n);
	if (c != ':' && c != '=')
		return;
	at += n;
	if (c == '=' && peek(scan, at, &n) == '>')
		at += n;
	if (!quoted && bare && c == ':' && names[which].also_prose &&
		at < scan->len && scan->text[at] == ' ' && is_prose(scan, at + 1))
		return;
	mark_value(scan, skip_blanks(scan, at), names[which].kind);
}

/* Words that follow "bearer" and "basic" in a sentence. */
static bool
is_scheme_prose(KcSlice word)
{
	static const char *const words[] = {
		"token", "tokens", "auth", "authentication", "authorization", "scheme",
		"challenge"
	};

	while (word.len > 0 && strchr(".,:;)", word.data[word.len - 1]) != NULL)
		word.len--;
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
	{
		if (kc_slice_ieq(word, kc_slice(words[i])))
			return true;
	}
	return false;
}

static bool
looks_like_base64(KcSlice word)
{
	bool		mixed = false;

	for (size_t i = 0; i < word.len; i++)
	{
		if (!kc_ascii_is_alpha(word.data[i]) || kc_ascii_lower(word.data[i]) != word.data[i])
			mixed = true;
	}
	return word.len >= 8 && mixed;
}

/* The name of an authorization scheme has ended at end: mark what follows. */
static void
scheme_ended(Scan *scan, size_t end, NameKind kind)
{
	size_t		at = end;
	size_t		n;
	size_t		value_end;
	KcSlice		word;
	char		c;

	while (is_blank(c = peek(scan, at, &n)) || c == '+')
		at += n;
	if (at == end)
		return;
	if (c == '"' || c == '\'')
	{
		mark_value(scan, at, NAME_VALUE);
		return;
	}
	value_end = run_end(scan, at, "\"'<>");
	word = (KcSlice) {scan->text + at, value_end - at};
	if (is_scheme_prose(word))
		return;
	if (kind == NAME_BASE64_SCHEME && !looks_like_base64(word))
		return;
	mark(scan, at, value_end);
}

/*
 * Does the name that ends at end have this suffix, decoded or as written?  As
 * written counts too, because a stray % before it may have eaten two letters.
 */
static bool
name_has_suffix(const Scan *scan, size_t end, KcSlice suffix)
{
	KcSlice		decoded = {scan->name, scan->name_len};
	KcSlice		written = {scan->text, end};

	return kc_slice_ends_i(decoded, suffix) || kc_slice_ends_i(written, suffix);
}

static void
name_ended(Scan *scan, size_t end)
{
	for (int i = 0; i < (int) (sizeof(names) / sizeof(names[0])); i++)
	{
		if (!name_has_suffix(scan, end, kc_slice(names[i].suffix)))
			continue;
		if (names[i].kind == NAME_SCHEME || names[i].kind == NAME_BASE64_SCHEME)
			scheme_ended(scan, end, names[i].kind);
		else
			member_ended(scan, end, i);
	}
	scan->name_len = 0;
}

/* ---- URLs ---- */

/* "://" ends at at; encoded tells that it is part of a larger encoded text. */
static void
url_begins(Scan *scan, size_t at, bool encoded)
{
	size_t		end = run_end(scan, at, encoded ? URL_STOPS : URL_STOPS "/?#");
	size_t		user_end = at;
	size_t		colon = end;
	size_t		n;

	scan->url_end = run_end(scan, at, URL_STOPS);
	for (size_t i = at; i < end; i += n)
	{
		char		c = logical(scan, i, &n);

		if (c == '@')
			user_end = i;
		else if (c == ':' && colon == end)
			colon = i + n;
	}

	/* Where the text was cut, "user:pass" may have lost its "@". */
	if (user_end == at && end == scan->len && colon < end && scan->text[at] != '[')
	{
		while (colon < end && kc_ascii_is_digit(scan->text[colon]))
			colon++;
		if (colon < end)
			user_end = end;
	}
	mark(scan, at, user_end);
}

/* '?' ends at at: a query if we are in a URL, or if it looks like one. */
static void
query_begins(Scan *scan, size_t at, bool in_url)
{
	size_t		end = run_end(scan, at, URL_STOPS);
	size_t		n;
	int			name_len = 0;

	for (size_t i = at; !in_url && i < end; i += n)
	{
		char		c = logical(scan, i, &n);

		if (c == '=' && name_len > 0)
			in_url = true;
		if (c == '=' || c == '?' || c == '/' || ++name_len > MAX_NAME)
			break;
	}
	if (in_url)
		mark(scan, at, end);
}

/* ---- the whole ---- */

static bool
is_jwt_char(char c)
{
	return is_name_char(c) || c == '.' || c == '+' || c == '/' || c == '=';
}

/*
 * The base64 of {" begins a JWT.  A cut one has no dots, so they are not asked
 * for; the shortest header is longer than ten characters.
 */
static void
mark_jwt(Scan *scan, size_t at)
{
	size_t		end = at;
	size_t		n;

	if (!stands_at(scan, at, "eyJ"))
		return;
	while (end < scan->len && is_jwt_char(logical(scan, end, &n)))
		end += n;
	if (end - at >= 10)
		mark(scan, at, end);
}

static void
remember_name_char(Scan *scan, char c)
{
	if (scan->name_len == MAX_NAME)
	{
		scan->name_len = MAX_NAME / 2;
		memmove(scan->name, scan->name + MAX_NAME / 2, MAX_NAME / 2);
	}
	scan->name[scan->name_len++] = kc_ascii_lower(c);
}

static void
find_secrets(Scan *scan)
{
	size_t		n;
	size_t		n2;
	size_t		n3;

	for (size_t at = 0; at < scan->len; at += n)
	{
		char		c = logical(scan, at, &n);

		for (size_t i = at; i < at + n; i++)
			mark_jwt(scan, i);
		if (is_name_char(c))
		{
			remember_name_char(scan, c);
			continue;
		}
		name_ended(scan, at);
		if (c == ':' && peek(scan, at + n, &n2) == '/' &&
			peek(scan, at + n + n2, &n3) == '/')
			url_begins(scan, at + n + n2 + n3, n + n2 + n3 > 3);
		else if (c == '?')
			query_begins(scan, at + n, at < scan->url_end);
	}
}

/* Put stars where the ranges are; false when they already stood there. */
static bool
rewrite(char *text, size_t *len, const Scan *scan)
{
	size_t		r = 0;
	size_t		w = 0;
	bool		changed = false;

	for (int i = 0; i < scan->nranges; i++)
	{
		Range		range = scan->ranges[i];
		size_t		stars = range.end - range.start;

		if (stars > 3)
			stars = 3;
		if (range.end - range.start != stars ||
			memcmp(text + range.start, "***", stars) != 0)
			changed = true;
		memmove(text + w, text + r, range.start - r);
		w += range.start - r;
		memcpy(text + w, "***", stars);
		w += stars;
		r = range.end;
	}
	memmove(text + w, text + r, *len - r);
	*len = w + *len - r;
	return changed;
}

void
kc_redact(char *text, size_t *len)
{
	Scan		scan;

	/* Each round leaves fewer bytes that are not stars, so this ends. */
	do
	{
		memset(&scan, 0, sizeof(scan));
		scan.text = text;
		scan.len = *len;
		if (*len > 0)
			find_secrets(&scan);
	} while (rewrite(text, len, &scan));
}
