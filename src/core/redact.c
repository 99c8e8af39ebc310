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
#include "redact_read.h"

/* More places than this in one text: the rest of the text goes. */
#define MAX_RANGES	64

/* Longest name of a query parameter. */
#define MAX_NAME	64

typedef struct Range
{
	size_t		start;
	size_t		end;
} Range;

typedef struct Scan
{
	KcSlice		text;
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

/* ---- characters ---- */

static bool
is_name_char(char c)
{
	return kc_ascii_is_alnum(c) || c == '_' || c == '-';
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
		scan->ranges[MAX_RANGES - 1].end = scan->text.len;
	else
		scan->ranges[scan->nranges++] = (Range) {start, end};
}

#define URL_STOPS "\"<>"

/* ---- values ---- */

static void
mark_value(Scan *scan, size_t at, NameKind kind)
{
	const char *stops = "\"'<>&;";
	size_t		n;
	char		c = kc_redact_peek(scan->text, at, &n);

	if (c == '"' || c == '\'')
	{
		mark(scan, at + n, kc_redact_quoted_end(scan->text, at));
		return;
	}
	if (kind == NAME_LINE)
	{
		const char *newline = memchr(scan->text.data + at, '\n', scan->text.len - at);

		mark(scan, at, newline == NULL ? scan->text.len : (size_t) (newline - scan->text.data));
		return;
	}
	if (kind == NAME_QUERY)
		stops = URL_STOPS;
	if (c == '{' || c == '[')
		mark(scan, at, kc_redact_run_end(scan->text, kc_redact_bracket_end(scan->text, at), stops));
	else
		mark(scan, at, kc_redact_run_end(scan->text, at, stops));
}

/* "the token: expected a string": a word, not a token. */
static bool
is_prose(const Scan *scan, size_t at)
{
	size_t		end = at;

	while (end < scan->text.len && kc_ascii_is_alpha(scan->text.data[end]))
		end++;
	if (end == at || end - at > 14)
		return false;
	return end == scan->text.len || strchr(" .,;)", scan->text.data[end]) != NULL;
}

/* A name of a secret member has ended at end: mark its value. */
static void
member_ended(Scan *scan, size_t end, int which)
{
	size_t		n;
	size_t		at = end;
	char		c = kc_redact_peek(scan->text, at, &n);
	bool		quoted;
	bool		bare = scan->name_len == strlen(names[which].suffix);

	/* %5C%22: a quote that was escaped and then encoded */
	while (c == '\\')
	{
		at += n;
		c = kc_redact_peek(scan->text, at, &n);
	}
	quoted = c == '"' || c == '\'';

	/* <AccountKey>secret</AccountKey> */
	if (c == '>' && scan->name_len > 0)
	{
		mark(scan, at + n, kc_redact_run_end(scan->text, at + n, "<&"));
		return;
	}
	if (quoted)
		at += n;
	at = kc_redact_skip_blanks(scan->text, at);
	c = kc_redact_peek(scan->text, at, &n);
	if (c != ':' && c != '=')
		return;
	at += n;
	if (c == '=' && kc_redact_peek(scan->text, at, &n) == '>')
		at += n;
	if (!quoted && bare && c == ':' && names[which].also_prose &&
		at < scan->text.len && scan->text.data[at] == ' ' && is_prose(scan, at + 1))
		return;
	mark_value(scan, kc_redact_skip_blanks(scan->text, at), names[which].kind);
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

	while (kc_redact_is_blank(c = kc_redact_peek(scan->text, at, &n)) || c == '+')
		at += n;
	if (at == end)
		return;
	if (c == '"' || c == '\'')
	{
		mark_value(scan, at, NAME_VALUE);
		return;
	}
	value_end = kc_redact_run_end(scan->text, at, "\"'<>");
	word = (KcSlice) {scan->text.data + at, value_end - at};
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
	KcSlice		written = {scan->text.data, end};

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
	size_t		end = kc_redact_run_end(scan->text, at, encoded ? URL_STOPS : URL_STOPS "/?#");
	size_t		user_end = at;
	size_t		colon = end;
	size_t		n;

	scan->url_end = kc_redact_run_end(scan->text, at, URL_STOPS);
	for (size_t i = at; i < end; i += n)
	{
		char		c = kc_redact_char(scan->text, i, &n);

		if (c == '@')
			user_end = i;
		else if (c == ':' && colon == end)
			colon = i + n;
	}

	/* Where the text was cut, "user:pass" may have lost its "@". */
	if (user_end == at && end == scan->text.len && colon < end && scan->text.data[at] != '[')
	{
		while (colon < end && kc_ascii_is_digit(scan->text.data[colon]))
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
	size_t		end = kc_redact_run_end(scan->text, at, URL_STOPS);
	size_t		n;
	int			name_len = 0;

	for (size_t i = at; !in_url && i < end; i += n)
	{
		char		c = kc_redact_char(scan->text, i, &n);

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

	if (!kc_slice_starts(kc_slice_n(scan->text.data + at, scan->text.len - at), kc_slice("eyJ")))
		return;
	while (end < scan->text.len && is_jwt_char(kc_redact_char(scan->text, end, &n)))
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

	for (size_t at = 0; at < scan->text.len; at += n)
	{
		char		c = kc_redact_char(scan->text, at, &n);

		for (size_t i = at; i < at + n; i++)
			mark_jwt(scan, i);
		if (is_name_char(c))
		{
			remember_name_char(scan, c);
			continue;
		}
		name_ended(scan, at);
		if (c == ':' && kc_redact_peek(scan->text, at + n, &n2) == '/' &&
			kc_redact_peek(scan->text, at + n + n2, &n3) == '/')
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
		scan.text = kc_slice_n(text, *len);
		if (*len > 0)
			find_secrets(&scan);
	} while (rewrite(text, len, &scan));
}
