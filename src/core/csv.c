/*
 * csv.c
 *	  RFC 4180 rows for Kusto.
 *
 * Every byte of an export passes here, so a field costs one check of the room
 * in the buffer, not one for each byte, and text is copied sixteen or eight
 * bytes at a time, unless one of them has to be doubled or escaped.  Failures
 * stick in the buffer.
 */
#include "csv.h"

#include <string.h>

void
kc_csv_begin(KcCsvWriter *w, KcBuf *out)
{
	*w = (KcCsvWriter) {.out = out, .row_start = out->len};
}

void
kc_csv_row_begin(KcCsvWriter *w)
{
	w->row_start = w->out->len;
	w->nfields = 0;
	w->only_null = false;
}

void
kc_csv_row_discard(KcCsvWriter *w)
{
	kc_buf_truncate(w->out, w->row_start);
	kc_csv_row_begin(w);
}

/* Room for extra bytes at the end of the buffer, or NULL. */
static inline char *
room_for(KcBuf *out, size_t extra)
{
	if (extra >= out->cap - out->len || out->failed != KC_OK)
	{
		if (!kc_buf_reserve(out, extra))
			return NULL;
	}
	return out->data + out->len;
}

static inline void
written_up_to(KcBuf *out, char *end)
{
	*end = '\0';
	out->len = (size_t) (end - out->data);
}

void
kc_csv_row_end(KcCsvWriter *w)
{
	char	   *p = room_for(w->out, w->only_null ? 3 : 1);

	if (p == NULL)
		return;
	/* An empty line would be skipped, and the row with it. */
	if (w->only_null)
	{
		*p++ = '"';
		*p++ = '"';
	}
	*p++ = '\n';
	written_up_to(w->out, p);
}

static inline size_t
comma_len(const KcCsvWriter *w)
{
	return w->nfields > 0 ? 1 : 0;
}

/* A field begins: its comma, if it is not the first, goes to p. */
static inline char *
begin_field(KcCsvWriter *w, char *p)
{
	if (w->nfields++ > 0)
		*p++ = ',';
	w->only_null = false;
	return p;
}

void
kc_csv_null(KcCsvWriter *w)
{
	char	   *p = room_for(w->out, comma_len(w));

	if (p == NULL)
		return;
	written_up_to(w->out, begin_field(w, p));
	w->only_null = w->nfields == 1;
}

void
kc_csv_plain(KcCsvWriter *w, const char *data, size_t len)
{
	char	   *p;
	size_t		size;

	if (!kc_add_size(len, comma_len(w), &size))
		size = len;				/* more than any buffer takes */
	p = room_for(w->out, size);
	if (p == NULL)
		return;
	p = begin_field(w, p);
	if (len > 0)
		memcpy(p, data, len);
	written_up_to(w->out, p + len);
}

/* ---- eight and sixteen bytes at a time ---- */

#define ONES	UINT64_C(0x0101010101010101)
#define HIGHS	UINT64_C(0x8080808080808080)

/* What has to be written otherwise than it is. */
typedef enum Special
{
	QUOTES,						/* in a field: quotes */
	ESCAPES						/* in JSON: these, backslashes, below a blank */
} Special;

/* Not zero when one of the eight bytes is below n, which is at most 128. */
static inline uint64_t
below(uint64_t word, uint64_t n)
{
	return (word - ONES * n) & ~word & HIGHS;
}

static inline bool
has_special(uint64_t word, Special special)
{
	uint64_t	found = below(word ^ ONES * '"', 1);

	if (special == ESCAPES)
		found |= below(word ^ ONES * '\\', 1) | below(word, ' ');
	return found != 0;
}

/* Compilers make of this what the machine has for sixteen bytes at once. */
typedef uint8_t Block __attribute__((vector_size(16)));

#define BLOCK_OF(c) \
	((Block) {c, c, c, c, c, c, c, c, c, c, c, c, c, c, c, c})

static inline bool
block_has_special(Block block, Special special)
{
	Block		found = (Block) (block == BLOCK_OF('"'));
	uint64_t	halves[2];

	if (special == ESCAPES)
		found |= (Block) (block == BLOCK_OF('\\')) | (Block) (block < BLOCK_OF(' '));
	memcpy(halves, &found, sizeof(halves));
	return (halves[0] | halves[1]) != 0;
}

static inline uint64_t
load8(const char *data)
{
	uint64_t	word;

	memcpy(&word, data, sizeof(word));
	return word;
}

static inline void
store8(char *p, uint64_t word)
{
	memcpy(p, &word, sizeof(word));
}

/*
 * Copy the bytes before the first special one, or some of them: at least until
 * fewer than eight are left, or it is among the next eight.  Gives how many.
 */
static inline __attribute__((always_inline)) size_t
copy_run(char *p, const char *data, size_t len, Special special)
{
	size_t		at = 0;

	for (; len - at >= sizeof(Block); at += sizeof(Block))
	{
		Block		block;

		memcpy(&block, data + at, sizeof(block));
		if (block_has_special(block, special))
			return at;
		memcpy(p + at, &block, sizeof(block));
	}
	if (len - at >= 8)
	{
		uint64_t	word = load8(data + at);

		if (has_special(word, special))
			return at;
		store8(p + at, word);
		at += 8;
	}
	return at;
}

/*
 * The same for fewer than eight bytes, all or none of them.  before: so many
 * bytes in front of both places are the same.
 */
static inline __attribute__((always_inline)) bool
copy_rest(char *p, const char *data, size_t len, size_t before, Special special)
{
	uint64_t	word;
	uint32_t	first;
	uint32_t	last;

	if (before + len >= 8)
	{
		word = load8(data + len - 8);
		if (has_special(word, special))
			return false;
		store8(p + len - 8, word);
		return true;
	}
	if (len < 4)
		return false;
	memcpy(&first, data, sizeof(first));
	memcpy(&last, data + len - sizeof(last), sizeof(last));
	if (has_special((uint64_t) last << 32 | first, special))
		return false;
	memcpy(p, &first, sizeof(first));
	memcpy(p + len - sizeof(last), &last, sizeof(last));
	return true;
}

/* ---- text between quotes ---- */

char *
kc_csv_put_text(char *p, const char *data, size_t len)
{
	const char *end = data + len;

	for (;;)
	{
		size_t		run = copy_run(p, data, (size_t) (end - data), QUOTES);
		const char *stop;

		p += run;
		data += run;
		if ((size_t) (end - data) < 8 &&
			copy_rest(p, data, (size_t) (end - data), run, QUOTES))
			return p + (end - data);

		/* Eight bytes with a quote among them, or the last ones. */
		stop = end - data > 8 ? data + 8 : end;
		while (data < stop)
		{
			if (*data == '"')
				*p++ = '"';
			*p++ = *data++;
		}
		if (data == end)
			return p;
	}
}

/* What follows the backslash; 0: the byte is written as a \u escape. */
static const char json_escapes[256] = {
	['"'] = '"',
	['\\'] = '\\',
	['\b'] = 'b',
	['\f'] = 'f',
	['\n'] = 'n',
	['\r'] = 'r',
	['\t'] = 't'
};

static char *
put_json_byte(char *p, unsigned char c, bool in_field)
{
	static const char hex[] = "0123456789abcdef";

	if (c >= 0x20 && c != '"' && c != '\\')
	{
		*p++ = (char) c;
		return p;
	}
	*p++ = '\\';
	if (json_escapes[c] != 0)
	{
		if (c == '"' && in_field)
			*p++ = '"';
		*p++ = json_escapes[c];
		return p;
	}
	*p++ = 'u';
	*p++ = '0';
	*p++ = '0';
	*p++ = hex[c >> 4];
	*p++ = hex[c & 15];
	return p;
}

char *
kc_csv_put_json(char *p, const char *data, size_t len, bool in_field)
{
	const char *end = data + len;

	for (;;)
	{
		size_t		run = copy_run(p, data, (size_t) (end - data), ESCAPES);
		const char *stop;

		p += run;
		data += run;
		if ((size_t) (end - data) < 8 &&
			copy_rest(p, data, (size_t) (end - data), run, ESCAPES))
			return p + (end - data);

		stop = end - data > 8 ? data + 8 : end;
		while (data < stop)
			p = put_json_byte(p, (unsigned char) *data++, in_field);
		if (data == end)
			return p;
	}
}

static size_t
count_quotes(const char *data, size_t len)
{
	size_t		n = 0;

	for (size_t i = 0; i < len; i++)
		n += data[i] == '"';
	return n;
}

void
kc_csv_quoted(KcCsvWriter *w, const char *data, size_t len)
{
	size_t		size;
	char	   *p;

	/* More than any buffer takes, and more than can be looked at. */
	if (len >= KC_BUF_UNLIMITED)
		size = len;
	else
		size = len + count_quotes(data, len) + 2 + comma_len(w);
	p = room_for(w->out, size);
	if (p == NULL)
		return;
	p = begin_field(w, p);
	*p++ = '"';
	if (len > 0)
		p = kc_csv_put_text(p, data, len);
	*p++ = '"';
	written_up_to(w->out, p);
}
