/*
 * test_csv.c
 *	  The CSV writer.
 */
#include "tap.h"

#include "core/csv.h"
#include "fail_alloc.h"

static KcBuf out;
static KcCsvWriter csv;

static void
begin(void)
{
	kc_buf_reset(&out);
	kc_csv_begin(&csv, &out);
	kc_csv_row_begin(&csv);
}

static void
quoted(const char *text)
{
	kc_csv_quoted(&csv, text, strlen(text));
}

static void
test_rows(void)
{
	begin();
	kc_csv_plain(&csv, "1", 1);
	quoted("a\"b,c\r\nd");
	kc_csv_null(&csv);
	quoted("");
	kc_csv_row_end(&csv);
	is_slice(kc_buf_view(&out), "1,\"a\"\"b,c\r\nd\",,\"\"\n", "a row of each");
	kc_csv_row_begin(&csv);
	kc_csv_null(&csv);
	kc_csv_null(&csv);
	kc_csv_row_end(&csv);
	is_slice(kc_buf_view(&out), "1,\"a\"\"b,c\r\nd\",,\"\"\n,\n", "a row of two nulls");

	begin();
	kc_csv_null(&csv);
	kc_csv_row_end(&csv);
	is_slice(kc_buf_view(&out), "\"\"\n", "a null that is the only column is no empty line");
	begin();
	kc_csv_null(&csv);
	kc_csv_plain(&csv, "1", 1);
	kc_csv_row_end(&csv);
	is_slice(kc_buf_view(&out), ",1\n", "a null that is the first of two");
	begin();
	quoted("");
	kc_csv_row_end(&csv);
	is_slice(kc_buf_view(&out), "\"\"\n", "an empty string alone");
	begin();
	kc_csv_quoted(&csv, NULL, 0);
	kc_csv_plain(&csv, NULL, 0);
	kc_csv_row_end(&csv);
	is_slice(kc_buf_view(&out), "\"\",\n", "NULL with length 0");
	is_bytes(out.data + out.len, 1, "", 1, "the buffer stays terminated");
}

/* What a plain loop makes of a JSON string. */
static size_t
escape(char *p, const char *data, size_t len, bool in_field)
{
	size_t		n = 0;

	for (size_t i = 0; i < len; i++)
	{
		unsigned char c = (unsigned char) data[i];
		static const char special[] = "\b\f\n\r\t\"\\";
		const char *at = c == '\0' ? NULL : strchr(special, c);

		if (at != NULL)
			n += (size_t) sprintf(p + n, "\\%s%c", c == '"' && in_field ? "\"" : "", "bfnrt\"\\"[at - special]);
		else if (c < 0x20)
			n += (size_t) sprintf(p + n, "\\u%04x", c);
		else
			p[n++] = (char) c;
	}
	return n;
}

/*
 * Texts of every length with each byte at every place, copied into pieces of memory that are
 * just as large as the result: nothing may be read or written beyond.
 */
static void
test_put(void)
{
	int			wrong = 0;

	for (size_t len = 1; len < 36; len++)
	{
		for (size_t at = 0; at < len * 256; at++)
		{
			char	   *text = malloc(len);
			char		want[6 * 36];
			size_t		want_len;
			char	   *got;

			memset(text, 'x', len);
			text[at / 256] = (char) at;
			text[len - 1 - at / 512] = (char) at;
			for (int in_field = 0; in_field < 2; in_field++)
			{
				want_len = escape(want, text, len, in_field);
				got = malloc(want_len);
				if (kc_csv_put_json(got, text, len, in_field) != got + want_len || memcmp(got, want, want_len) != 0)
					wrong++;
				free(got);
			}
			want_len = 0;
			for (size_t i = 0; i < len; i++)
			{
				if (text[i] == '"')
					want[want_len++] = '"';
				want[want_len++] = text[i];
			}
			got = malloc(want_len);
			if (kc_csv_put_text(got, text, len) != got + want_len || memcmp(got, want, want_len) != 0)
				wrong++;
			free(got);
			free(text);
		}
	}
	is(wrong, 0, "every byte at every place");
}

static void
test_discard(void)
{
	begin();
	quoted("kept");
	kc_csv_row_end(&csv);
	kc_csv_row_begin(&csv);
	kc_csv_null(&csv);
	kc_csv_row_discard(&csv);
	quoted("next");
	kc_csv_row_end(&csv);
	is_slice(kc_buf_view(&out), "\"kept\"\n\"next\"\n", "a discarded row leaves nothing");
	kc_csv_row_begin(&csv);
	kc_csv_plain(&csv, "1", 1);
	kc_csv_plain(&csv, "2", 1);
	kc_csv_row_discard(&csv);
	is_slice(kc_buf_view(&out), "\"kept\"\n\"next\"\n", "nor does one at the end");
}

/* Quotes at every place of texts of every length, against a plain loop. */
static void
test_every_place(void)
{
	char		text[41];
	char		want[2 * sizeof(text) + 4];
	int			wrong = 0;

	for (size_t len = 0; len < sizeof(text); len++)
	{
		for (size_t mask = 0; mask < len * 3 + 1; mask++)
		{
			size_t		w = 0;

			for (size_t i = 0; i < len; i++)
			{
				/* one quote; every third; all from a place on; 0xA2 is '"' + 0x80 */
				bool		quote = mask < len ? i == mask :
					mask < 2 * len ? i % 3 == mask % 3 : i >= mask - 2 * len;

				text[i] = quote ? '"' : i % 5 == 0 ? '\xA2' : i % 7 == 0 ? '!' : 'x';
			}
			want[w++] = '"';
			for (size_t i = 0; i < len; i++)
			{
				if (text[i] == '"')
					want[w++] = '"';
				want[w++] = text[i];
			}
			want[w++] = '"';

			/* a fresh buffer each time, so that it grows at every place, too */
			kc_buf_free(&out);
			begin();
			kc_csv_quoted(&csv, text, len);
			if (out.failed != KC_OK || out.len != w || memcmp(out.data, want, w) != 0)
				wrong++;
		}
	}
	is(wrong, 0, "every place of a quote in every length");
}

static void
test_limit(void)
{
	KcBuf		small;
	char		text[100];
	int			wrong = 0;

	memset(text, 'x', sizeof(text));
	text[50] = text[51] = '"';
	for (size_t max = 0; max < 110; max++)
	{
		bool		fits = max >= 1 + 1 + 102 + 2 + 1;

		kc_buf_init(&small, &kc_alloc_malloc, max);
		kc_csv_begin(&csv, &small);
		kc_csv_row_begin(&csv);
		kc_csv_plain(&csv, "1", 1);
		kc_csv_quoted(&csv, text, sizeof(text));
		kc_csv_row_end(&csv);
		if (small.len > max || (small.failed == KC_OK) != fits ||
			(!fits && small.failed != KC_ERR_LIMIT))
			wrong++;
		kc_csv_row_discard(&csv);
		if (small.len != 0)
			wrong++;
		kc_csv_null(&csv);
		kc_csv_quoted(&csv, text, sizeof(text));
		kc_csv_row_end(&csv);
		if (!fits && small.failed != KC_ERR_LIMIT)
			wrong++;
		kc_buf_free(&small);
	}
	is(wrong, 0, "the limit holds to the byte, and sticks");

	begin();
	kc_csv_quoted(&csv, "x", SIZE_MAX);
	is(out.failed, KC_ERR_LIMIT, "longer than memory, quoted");
	begin();
	kc_csv_plain(&csv, "x", 1);
	kc_csv_plain(&csv, "x", SIZE_MAX);
	is(out.failed, KC_ERR_LIMIT, "longer than memory, plain");
	kc_csv_null(&csv);
	kc_csv_row_end(&csv);
	is_slice(kc_buf_view(&out), "x", "nothing more is written");
}

static void
test_nomem(void)
{
	char		text[1000];
	FailAlloc	fa;
	KcBuf		buf;

	memset(text, '"', sizeof(text));
	for (int n = 1;; n++)
	{
		fail_alloc_init(&fa, n);
		kc_buf_init(&buf, &fa.alloc, KC_BUF_UNLIMITED);
		kc_csv_begin(&csv, &buf);
		kc_csv_row_begin(&csv);
		kc_csv_quoted(&csv, text, sizeof(text));
		kc_csv_quoted(&csv, text, sizeof(text));
		kc_csv_row_end(&csv);
		is(buf.failed, fa.has_failed ? KC_ERR_NOMEM : KC_OK, "memory");
		kc_buf_free(&buf);
		is(fa.live, 0, "no leak");
		if (!fa.has_failed)
			break;
	}
}

int
main(void)
{
	kc_buf_init(&out, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	test_rows();
	test_put();
	test_discard();
	test_every_place();
	test_limit();
	test_nomem();
	kc_buf_free(&out);
	return done_testing();
}
