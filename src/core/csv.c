/*
 * csv.c
 *	  RFC 4180 rows for Kusto.
 *
 * Every byte of an export passes here, so a field costs one check of the room
 * in the buffer, not one for each byte, and text is copied eight bytes at a
 * time until one of them is a quote.  Failures stick in the buffer.
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

#define ONES	UINT64_C(0x0101010101010101)
#define HIGHS	UINT64_C(0x8080808080808080)

/* Is one of the eight bytes a quote? */
static inline bool
has_quote(uint64_t word)
{
	word ^= ONES * '"';
	return ((word - ONES) & ~word & HIGHS) != 0;
}

/*
 * Put the extra quote at *p when rest bytes are still to follow and *spare
 * tells for how many more there is room.  False: out of room, *p is void.
 */
static bool
put_quote(KcBuf *out, char **p, size_t *spare, size_t rest)
{
	if (*spare == 0)
	{
		out->len = (size_t) (*p - out->data);
		*p = room_for(out, rest + 1);
		if (*p == NULL)
		{
			out->data[out->len] = '\0';
			return false;
		}
		*spare = out->cap - out->len - rest - 1;
	}
	(*spare)--;
	*(*p)++ = '"';
	return true;
}

/*
 * The last bytes, fewer than eight, as the end of a word of which the rest has
 * been copied already.  False when there is a quote in that word.
 */
static inline bool
copy_rest(char **p, const char *end, size_t rest)
{
	uint64_t	word;

	memcpy(&word, end - sizeof(word), sizeof(word));
	if (has_quote(word))
		return false;
	memcpy(*p + rest - sizeof(word), &word, sizeof(word));
	*p += rest;
	return true;
}

/*
 * Copy len bytes to the end of the buffer and double the quotes among them.
 * The caller has made room for len + tail bytes; each quote needs one more,
 * and in the end there is still room for tail.  Gives the place behind the
 * copy, up to which the buffer is not marked as written yet, or NULL.
 */
static char *
copy_doubling(KcBuf *out, const char *data, size_t len, size_t tail)
{
	const char *start = data;
	const char *end = data + len;
	char	   *p = out->data + out->len;
	size_t		spare = out->cap - out->len - len - tail - 1;

	while (data < end)
	{
		const char *stop;
		uint64_t	word;

		while ((size_t) (end - data) >= sizeof(word))
		{
			memcpy(&word, data, sizeof(word));
			if (has_quote(word))
				break;
			memcpy(p, &word, sizeof(word));
			p += sizeof(word);
			data += sizeof(word);
		}
		if ((size_t) (end - data) < sizeof(word) && (size_t) (end - start) >= sizeof(word) &&
			copy_rest(&p, end, (size_t) (end - data)))
			break;

		/* A word with a quote in it, or the rest. */
		stop = (size_t) (end - data) > sizeof(word) ? data + sizeof(word) : end;
		while (data < stop)
		{
			if (*data == '"' &&
				!put_quote(out, &p, &spare, (size_t) (end - data) + tail))
				return NULL;
			*p++ = *data++;
		}
	}
	return p;
}

void
kc_csv_quoted(KcCsvWriter *w, const char *data, size_t len)
{
	size_t		size;
	char	   *p;

	if (!kc_add_size(len, 2 + comma_len(w), &size))
		size = len;				/* more than any buffer takes */
	p = room_for(w->out, size);
	if (p == NULL)
		return;
	p = begin_field(w, p);
	*p++ = '"';
	if (len > 0)
	{
		w->out->len = (size_t) (p - w->out->data);
		p = copy_doubling(w->out, data, len, 1);
		if (p == NULL)
			return;
	}
	*p++ = '"';
	written_up_to(w->out, p);
}

void
kc_csv_quote_open(KcCsvWriter *w)
{
	char	   *p = room_for(w->out, 1 + comma_len(w));

	if (p == NULL)
		return;
	p = begin_field(w, p);
	*p++ = '"';
	written_up_to(w->out, p);
}

void
kc_csv_piece(KcCsvWriter *w, const char *data, size_t len)
{
	char	   *p;

	if (len == 0 || room_for(w->out, len) == NULL)
		return;
	p = copy_doubling(w->out, data, len, 0);
	if (p != NULL)
		written_up_to(w->out, p);
}

void
kc_csv_quote_close(KcCsvWriter *w)
{
	char	   *p = room_for(w->out, 1);

	if (p == NULL)
		return;
	*p++ = '"';
	written_up_to(w->out, p);
}
