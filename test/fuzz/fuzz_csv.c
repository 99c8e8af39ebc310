/*
 * fuzz_csv.c
 *	  Arbitrary fields through the CSV writer and a strict reader, which must
 *	  get the same.
 *
 * The input is a program: an opcode, then a length and bytes where it has any.
 */
#include "fuzz.h"

#include "core/csv.h"
#include "core/json.h"

#define MAX_CELLS 4096

typedef struct Cell
{
	bool		null;
	bool		quoted;
	KcSlice		text;
} Cell;

/* Strictly RFC 4180 with LF: quotes only around a field or doubled in one. */
typedef struct Reader
{
	KcSlice		text;
	size_t		at;
	KcBuf		field;
	bool		quoted;
	bool		row_ends;
} Reader;

static char
reader_peek(const Reader *r)
{
	holds(r->at < r->text.len);
	return r->text.data[r->at];
}

static void
read_field(Reader *r)
{
	kc_buf_reset(&r->field);
	r->quoted = reader_peek(r) == '"';
	if (r->quoted)
	{
		r->at++;
		for (;;)
		{
			char		c = reader_peek(r);

			r->at++;
			if (c == '"')
			{
				if (r->at == r->text.len || r->text.data[r->at] != '"')
					break;
				r->at++;
			}
			kc_buf_char(&r->field, c);
		}
	}
	else
	{
		while (reader_peek(r) != ',' && reader_peek(r) != '\n')
		{
			holds(reader_peek(r) != '"' && reader_peek(r) != '\r');
			kc_buf_char(&r->field, r->text.data[r->at++]);
		}
	}
	holds(reader_peek(r) == ',' || reader_peek(r) == '\n');
	r->row_ends = reader_peek(r) == '\n';
	r->at++;
}

static void
compare_row(Reader *r, const Cell *cells, int ncells)
{
	size_t		start = r->at;

	for (int i = 0; i < ncells; i++)
	{
		read_field(r);
		holds(kc_slice_eq(kc_buf_view(&r->field), cells[i].text));
		holds(r->row_ends == (i == ncells - 1));
		/* a null alone is the one that is quoted */
		holds(r->quoted == (cells[i].quoted || (cells[i].null && ncells == 1)));
	}
	/* an empty line would be skipped; only a plain empty text may make one */
	holds(r->at - start > 1 || (ncells == 1 && !cells[0].null && !cells[0].quoted));
}

/* Without the bytes that a plain field must not hold. */
static KcSlice
plain_part(KcSlice text)
{
	size_t		len = 0;

	while (len < text.len && strchr("\",\r\n", text.data[len]) == NULL && text.data[len] != '\0')
		len++;
	return kc_slice_n(text.data, len);
}

/* In pieces of step bytes, as whoever writes straight into the buffer does. */
static void
write_pieces(KcCsvWriter *csv, KcSlice text, size_t step)
{
	KcBuf		field;

	kc_buf_init(&field, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	for (size_t at = 0; at < text.len; at += step)
	{
		size_t		len = text.len - at < step ? text.len - at : step;

		holds(kc_buf_reserve(&field, len * KC_CSV_TEXT_GROWTH));
		field.len = (size_t) (kc_csv_put_text(field.data + field.len, text.data + at, len) - field.data);
	}
	kc_csv_plain(csv, "\"", 1);
	kc_buf_append(csv->out, field.data, field.len);
	kc_buf_char(csv->out, '"');
	kc_buf_free(&field);
}

/* What JSON makes of it can be read back, in a field as outside. */
static void
check_json(KcSlice text)
{
	KcBuf		plain;
	KcBuf		doubled;
	KcBuf		field;
	KcBuf		back;

	kc_buf_init(&plain, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_init(&doubled, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_init(&field, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_init(&back, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_char(&plain, '"');
	holds(kc_buf_reserve(&plain, text.len * KC_CSV_JSON_GROWTH + 2));
	plain.len = (size_t) (kc_csv_put_json(plain.data + plain.len, text.data, text.len, false) - plain.data);
	kc_buf_char(&plain, '"');
	kc_json_unescape(&back, (KcJsonValue) {KC_JSON_STRING, kc_buf_view(&plain)});
	holds(kc_slice_eq(kc_buf_view(&back), text));

	holds(kc_buf_reserve(&field, text.len * KC_CSV_JSON_GROWTH + 1));
	field.len = (size_t) (kc_csv_put_json(field.data, text.data, text.len, true) - field.data);
	holds(kc_buf_reserve(&doubled, plain.len * KC_CSV_TEXT_GROWTH));
	doubled.len = (size_t) (kc_csv_put_text(doubled.data, plain.data + 1, plain.len - 2) - doubled.data);
	holds(kc_slice_eq(kc_buf_view(&field), kc_buf_view(&doubled)));
	kc_buf_free(&plain);
	kc_buf_free(&doubled);
	kc_buf_free(&field);
	kc_buf_free(&back);
}

static Cell
write_field(KcCsvWriter *csv, FuzzInput *in, int op)
{
	size_t		len = fuzz_byte(in);
	Cell		cell = {0};

	if (op == 0)
	{
		kc_csv_null(csv);
		cell.null = true;
		return cell;
	}
	if (len > 200)
		len = (len - 200) * 100;
	cell.text = fuzz_slice(in, len);
	cell.quoted = op != 1;
	check_json(cell.text);
	if (op == 1)
	{
		cell.text = plain_part(cell.text);
		kc_csv_plain(csv, cell.text.data, cell.text.len);
	}
	else if (op == 2)
		kc_csv_quoted(csv, cell.text.data, cell.text.len);
	else
		write_pieces(csv, cell.text, (size_t) op);
	return cell;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static Cell cells[MAX_CELLS];
	FuzzInput	in = {data, size};
	Reader		reader;
	KcBuf		out;
	KcCsvWriter csv;
	int			ncells = 0;
	size_t		row_start;

	kc_buf_init(&out, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_init(&reader.field, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_csv_begin(&csv, &out);
	kc_csv_row_begin(&csv);
	row_start = 0;
	while (in.left > 0 && ncells < MAX_CELLS)
	{
		int			op = fuzz_byte(&in) % 16;

		if (op == 15)
		{
			kc_csv_row_discard(&csv);
			holds(out.len == row_start);
			ncells = 0;
		}
		else if (op == 14 && ncells > 0)
		{
			kc_csv_row_end(&csv);
			reader.text = kc_buf_view(&out);
			reader.at = row_start;
			compare_row(&reader, cells, ncells);
			holds(reader.at == out.len && out.data[out.len] == '\0');
			row_start = out.len;
			ncells = 0;
			kc_csv_row_begin(&csv);
		}
		else if (op < 14)
			cells[ncells++] = write_field(&csv, &in, op);
	}
	holds(out.failed == KC_OK);
	kc_buf_free(&out);
	kc_buf_free(&reader.field);
	return 0;
}
