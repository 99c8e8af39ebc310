/*
 * fuzz_text.c
 *	  The small text forms: what parses survives being written and read again;
 *	  and an error made of anything is clean.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* memmem() */
#endif

#include "fuzz.h"

#include "core/retry.h"
#include "core/text.h"

static void
check_time(KcSlice text, KcBuf *buf)
{
	int64_t		us;
	int64_t		back;

	if (!kc_text_rfc3339_parse(text, &us))
		return;
	kc_buf_reset(buf);
	kc_text_rfc3339(buf, us);
	/* an offset can move the first and the last day out of the four digits */
	if (buf->len == 27)
		holds(kc_text_rfc3339_parse(kc_buf_view(buf), &back) && back == us);
}

static void
check_uuid(KcSlice text)
{
	KcUuid		uuid;
	char		written[KC_UUID_TEXT_LEN + 1];

	if (!kc_uuid_parse(text, &uuid))
		return;
	kc_uuid_text(&uuid, written);
	holds(kc_slice_ieq(kc_slice(written), text));
}

static void
check_base64(KcSlice text, KcBuf *buf)
{
	KcBuf		back;

	kc_buf_init(&back, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_reset(buf);
	kc_text_base64(buf, text.data, text.len);
	holds(kc_text_base64_decode(&back, kc_buf_view(buf)));
	holds(kc_slice_eq(kc_buf_view(&back), text));

	/* There is one way to write each text. */
	kc_buf_reset(&back);
	if (kc_text_base64_decode(&back, text))
	{
		kc_buf_reset(buf);
		kc_text_base64(buf, back.data, back.len);
		holds(kc_slice_eq(kc_buf_view(buf), text));
	}
	kc_buf_free(&back);
}

/* Undo the escapes; the end must be the closing quote, and not before. */
static void
check_kql(KcSlice text, KcBuf *buf)
{
	size_t		at = 1;

	kc_buf_reset(buf);
	kc_text_kql_string(buf, text);
	holds(buf->data[0] == '"' && buf->data[buf->len - 1] == '"');
	while (at < buf->len - 1)
	{
		holds(buf->data[at] != '"' && (unsigned char) buf->data[at] >= 0x20);
		at += buf->data[at] == '\\' ? 2 : 1;
	}
	holds(at == buf->len - 1);
	holds(kc_text_utf8_valid(kc_buf_view(buf), NULL));
}

static void
check_error(KcSlice text)
{
	KcError		err;
	char		field[40];

	kc_error_set(&err, KC_ERR_INTERNAL, "fuzzing", "%.*s", (int) text.len, text.data);
	kc_error_text(err.detail, sizeof(err.detail), text);
	kc_error_text(field, sizeof(field), text);
	holds(kc_text_utf8_valid(kc_slice(err.what), NULL));
	holds(kc_text_utf8_valid(kc_slice(err.detail), NULL));
	holds(kc_text_utf8_valid(kc_slice(field), NULL));
	for (const char *p = err.what; *p != '\0'; p++)
		holds((unsigned char) *p >= 0x20 && *p != 0x7F);
	for (const char *p = err.detail; *p != '\0'; p++)
		holds((unsigned char) *p >= 0x20 || *p == '\n' || *p == '\t');

	/* Any part of it can be a secret. */
	if (text.len >= 12)
	{
		KcSlice		secret = kc_slice_n(text.data + text.len / 3, text.len / 3);

		kc_error_scrub(&err, secret);
		holds(kc_text_utf8_valid(secret, NULL) == false ||
			  memchr(secret.data, '*', secret.len) != NULL ||
			  strlen(err.detail) >= sizeof(err.detail) - 1 ||
			  memmem(err.detail, strlen(err.detail), secret.data, secret.len) == NULL);
	}
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	KcSlice		text = kc_slice_n((const char *) data, size);
	KcBuf		buf;

	kc_buf_init(&buf, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	check_time(text, &buf);
	check_uuid(text);
	check_base64(text, &buf);
	check_kql(text, &buf);
	check_error(text);
	holds(kc_retry_after_ms(text, &kc_clock_system) >= -1);
	kc_buf_free(&buf);
	return 0;
}
