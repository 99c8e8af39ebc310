/*
 * text.c
 *	  base64, hex, UUIDs, Kusto's quoting, UTF-8.  (URLs are in text_url.c,
 *	  times in text_time.c.)  Nothing here raises; failed appends stick in the
 *	  caller's buffer.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* getentropy() */
#endif

#include "text.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>
#ifdef __APPLE__
#include <sys/random.h>
#endif

#include <openssl/evp.h>

#include "ascii.h"
#include "utf8.h"

/* ---- base64 and hex (RFC 4648) ---- */

void
kc_text_base64(KcBuf *out, const void *data, size_t len)
{
	static const char alphabet[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const unsigned char *in = data;

	for (size_t i = 0; i < len; i += 3)
	{
		size_t		have = len - i < 3 ? len - i : 3;
		uint32_t	bits = (uint32_t) in[i] << 16;
		char		four[4];

		if (have > 1)
			bits |= (uint32_t) in[i + 1] << 8;
		if (have > 2)
			bits |= in[i + 2];
		four[0] = alphabet[bits >> 18];
		four[1] = alphabet[(bits >> 12) & 63];
		four[2] = have > 1 ? alphabet[(bits >> 6) & 63] : '=';
		four[3] = have > 2 ? alphabet[bits & 63] : '=';
		kc_buf_append(out, four, sizeof(four));
	}
}

static int
base64_value(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (kc_ascii_is_digit(c))
		return c - '0' + 52;
	return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* One group of four, of which the last pad are '='. */
static bool
decode_group(KcBuf *out, const char *four, size_t pad)
{
	uint32_t	bits = 0;
	char		three[3];

	for (size_t i = 0; i < 4; i++)
	{
		int			value = i < 4 - pad ? base64_value(four[i]) : 0;

		if (value < 0)
			return false;
		bits = bits << 6 | (uint32_t) value;
	}
	/* Section 3.5: pad bits that are not zero are another text's. */
	if ((bits & ((UINT32_C(1) << (8 * pad)) - 1)) != 0)
		return false;
	three[0] = (char) (bits >> 16);
	three[1] = (char) (bits >> 8);
	three[2] = (char) bits;
	kc_buf_append(out, three, 3 - pad);
	return true;
}

bool
kc_text_base64_decode(KcBuf *out, KcSlice text)
{
	size_t		start = out->len;
	size_t		pad = 0;

	if (text.len % 4 != 0)
		return false;
	while (pad < 2 && pad < text.len && text.data[text.len - 1 - pad] == '=')
		pad++;
	for (size_t i = 0; i < text.len; i += 4)
	{
		if (!decode_group(out, text.data + i, i + 4 == text.len ? pad : 0))
		{
			kc_buf_truncate(out, start);
			return false;
		}
	}
	return true;
}

static const char hex_digits[] = "0123456789abcdef";

void
kc_text_hex(KcBuf *out, const void *data, size_t len)
{
	const unsigned char *in = data;

	for (size_t i = 0; i < len; i++)
	{
		char		two[2] = {hex_digits[in[i] >> 4], hex_digits[in[i] & 15]};

		kc_buf_append(out, two, sizeof(two));
	}
}

/* ---- UUIDs (RFC 9562) ---- */

static bool
uuid_has_dash(int i)
{
	return i == 8 || i == 13 || i == 18 || i == 23;
}

static inline char *
put_hex(char *p, const uint8_t *bytes, int n)
{
	for (int i = 0; i < n; i++)
	{
		*p++ = hex_digits[bytes[i] >> 4];
		*p++ = hex_digits[bytes[i] & 15];
	}
	return p;
}

/* By its five groups, without a branch for each character: exported rows are full of these. */
void
kc_uuid_text(const KcUuid *uuid, char out[KC_UUID_TEXT_LEN + 1])
{
	char	   *p = put_hex(out, uuid->bytes, 4);

	*p++ = '-';
	p = put_hex(p, uuid->bytes + 4, 2);
	*p++ = '-';
	p = put_hex(p, uuid->bytes + 6, 2);
	*p++ = '-';
	p = put_hex(p, uuid->bytes + 8, 2);
	*p++ = '-';
	p = put_hex(p, uuid->bytes + 10, 6);
	*p = '\0';
}

bool
kc_uuid_parse(KcSlice text, KcUuid *uuid)
{
	KcUuid		result = {{0}};
	int			nibble = 0;

	if (text.len != KC_UUID_TEXT_LEN)
		return false;
	for (int i = 0; i < KC_UUID_TEXT_LEN; i++)
	{
		int			digit;

		if (uuid_has_dash(i))
		{
			if (text.data[i] != '-')
				return false;
			continue;
		}
		digit = kc_ascii_hex(text.data[i]);
		if (digit < 0)
			return false;
		result.bytes[nibble / 2] = (uint8_t) (result.bytes[nibble / 2] << 4 | digit);
		nibble++;
	}
	*uuid = result;
	return true;
}

/* Version into the high nibble of byte 6, variant 10 into the top of byte 8. */
static void
uuid_stamp(KcUuid *uuid, unsigned version)
{
	uuid->bytes[6] = (uint8_t) ((uuid->bytes[6] & 0x0F) | version << 4);
	uuid->bytes[8] = (uint8_t) ((uuid->bytes[8] & 0x3F) | 0x80);
}

KcStatus
kc_uuid_random(KcUuid *uuid, KcError *err)
{
	/* From the kernel: OpenSSL's generator has a state that fork() shares. */
	if (getentropy(uuid->bytes, sizeof(uuid->bytes)) != 0)
		return kc_error_set(err, KC_ERR_INTERNAL, "making a random UUID",
							"the kernel gives no random bytes: error %d", errno);
	uuid_stamp(uuid, 4);
	return KC_OK;
}

KcStatus
kc_uuid_v5(const KcUuid *space, KcSlice name, KcUuid *uuid, KcError *err)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	unsigned char digest[EVP_MAX_MD_SIZE];
	bool		ok;

	if (ctx == NULL)
		return kc_error_nomem(err, "making a name-based UUID");
	ok = EVP_DigestInit_ex(ctx, EVP_sha1(), NULL) == 1 &&
		EVP_DigestUpdate(ctx, space->bytes, sizeof(space->bytes)) == 1 &&
		(name.len == 0 || EVP_DigestUpdate(ctx, name.data, name.len) == 1) &&
		EVP_DigestFinal_ex(ctx, digest, NULL) == 1;
	EVP_MD_CTX_free(ctx);
	if (!ok)
		return kc_error_set(err, KC_ERR_INTERNAL, "making a name-based UUID",
							"OpenSSL does not compute SHA-1");
	memcpy(uuid->bytes, digest, sizeof(uuid->bytes));
	uuid_stamp(uuid, 5);
	return KC_OK;
}

/* ---- Kusto's quoting ---- */

/*
 * Escapes as in learn.microsoft.com/kusto/query/scalar-data-types/string: the
 * backslash escapes itself and the quote; a control character has no place in
 * a literal that is not verbatim.
 */
static void
append_kql_literal(KcBuf *out, KcSlice text, char quote)
{
	size_t		n;

	kc_buf_char(out, quote);
	for (size_t i = 0; i < text.len; i += n)
	{
		unsigned char c = (unsigned char) text.data[i];

		n = kc_utf8_sequence(text.data + i, text.len - i);
		if (n == 0)
		{
			kc_buf_str(out, KC_UTF8_REPLACEMENT);
			n = 1;
		}
		else if (c == '\\' || c == (unsigned char) quote)
		{
			kc_buf_char(out, '\\');
			kc_buf_char(out, (char) c);
		}
		else if (c == '\n')
			kc_buf_str(out, "\\n");
		else if (c == '\r')
			kc_buf_str(out, "\\r");
		else if (c == '\t')
			kc_buf_str(out, "\\t");
		else if (c < 0x20 || c == 0x7F)
			kc_buf_printf(out, "\\u%04x", (unsigned) c);
		else
			kc_buf_append(out, text.data + i, n);
	}
	kc_buf_char(out, quote);
}

void
kc_text_kql_name(KcBuf *out, KcSlice name)
{
	kc_buf_char(out, '[');
	append_kql_literal(out, name, '\'');
	kc_buf_char(out, ']');
}

void
kc_text_kql_string(KcBuf *out, KcSlice text)
{
	append_kql_literal(out, text, '"');
}

/* ---- UTF-8 ---- */

bool
kc_text_utf8_valid(KcSlice text, size_t *good)
{
	size_t		at = 0;

	while (at < text.len && text.data[at] != '\0')
	{
		size_t		n = kc_utf8_sequence(text.data + at, text.len - at);

		if (n == 0)
			break;
		at += n;
	}
	if (good != NULL)
		*good = at;
	return at == text.len;
}
