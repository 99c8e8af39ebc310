/*
 * fuzz_redact.c
 *	  Plants a secret in arbitrary surroundings, in every form that redact.h
 *	  names, and looks for what is left of it.
 *
 * Input: form, encoding, two lengths, the secret's bytes, what stands before,
 * and the rest behind it.
 */
#include "fuzz.h"

#include "core/json.h"
#include "core/redact.h"
#include "core/text.h"

/* So much of a secret must not be readable. */
#define PIECE 6

#define MAX_TEXT 3000

/* What may stand in the secret before the form encodes it. */
typedef enum Alphabet
{
	ANY_BYTE,					/* any but blanks and controls */
	BASE64,
	BASE64URL
} Alphabet;

typedef enum Encoding
{
	AS_IT_IS,
	PERCENT,
	JSON
} Encoding;

static const struct
{
	const char *before;
	const char *behind;
	Alphabet	alphabet;
	Encoding	encoding;
}			forms[] = {
	{"?sv=2022-11-02&sig=", "&se=x", ANY_BYTE, PERCENT},
	{"?sv=", "&sr=b", ANY_BYTE, PERCENT},
	{"sig=", "", ANY_BYTE, PERCENT},
	{"%73ig=", "", ANY_BYTE, PERCENT},
	{"https://acct.blob.core.windows.net/c/b?", "", ANY_BYTE, PERCENT},
	{"https://user:", "@host/path", ANY_BYTE, PERCENT},
	{"http://", "@host", ANY_BYTE, PERCENT},
	{"Bearer ", "", BASE64, AS_IT_IS},
	{"Authorization: Bearer ", "", BASE64, AS_IT_IS},
	{"Authorization: SharedKey account:", "", BASE64, AS_IT_IS},
	{"Authorization: Digest a=\"x\", response=\"", "\"", BASE64, AS_IT_IS},
	{"Basic ", "", BASE64, AS_IT_IS},
	{"SharedKey account:", "", BASE64, AS_IT_IS},
	{"\"access_token\":\"", "\"", ANY_BYTE, JSON},
	{"\"client_secret\" : \"", "\",", ANY_BYTE, JSON},
	{"{\"password\":\"", "\"}", ANY_BYTE, JSON},
	{"\"AccountKey\":\"", "\"", ANY_BYTE, JSON},
	{"\"client_assertion\":\"", "\"", ANY_BYTE, JSON},
	{"\"authorizationContext\":\"", "\"", ANY_BYTE, JSON},
	{"\"SharedAccessSignature\":\"", "\"", ANY_BYTE, JSON},
	{"client_secret=", "&scope=x", ANY_BYTE, PERCENT},
	{"refresh_token=", "", ANY_BYTE, PERCENT},
	{"client_assertion=", "&x", ANY_BYTE, PERCENT},
	{"AccountKey=", ";EndpointSuffix=x", BASE64, AS_IT_IS},
	{"SharedAccessSignature=sv=1&sig=", "", ANY_BYTE, PERCENT},
	{"eyJ", "", BASE64URL, AS_IT_IS},
	{"eyJhbGciOiJub25lIn0.", ".c2ln", BASE64URL, AS_IT_IS},
};

#define NFORMS (sizeof(forms) / sizeof(forms[0]))

static void
append_byte(KcBuf *out, uint8_t byte, Alphabet alphabet)
{
	static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

	if (alphabet == ANY_BYTE)
		kc_buf_char(out, byte > ' ' && byte < 0x7F && byte != '*' ? (char) byte : 'x');
	else if (alphabet == BASE64)
		kc_buf_char(out, base64[byte % 64]);
	else
		kc_buf_char(out, byte % 64 >= 62 ? "-_"[byte % 2] : base64[byte % 64]);
}

/* The secret as its form writes it.  The digit tells it from prose. */
static void
make_secret(KcBuf *out, KcSlice bytes, Alphabet alphabet, Encoding encoding)
{
	KcBuf		plain;

	kc_buf_init(&plain, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_str(&plain, "7");
	for (size_t i = 0; i < bytes.len; i++)
		append_byte(&plain, (uint8_t) bytes.data[i], alphabet);
	kc_buf_str(&plain, "Q7vW2kZ");
	if (encoding == PERCENT)
		kc_text_percent_encode(out, kc_buf_view(&plain));
	else if (encoding == JSON)
	{
		kc_json_string(out, kc_buf_view(&plain));
		/* without its quotes, which belong to the form */
		memmove(out->data, out->data + 1, out->len - 2);
		kc_buf_truncate(out, out->len - 2);
	}
	else
		kc_buf_slice(out, kc_buf_view(&plain));
	kc_buf_free(&plain);
}

/* Quote a text once more, as a log or an error document does. */
static void
encode_whole(KcBuf *out, KcSlice text, int how)
{
	KcBuf		quoted;

	kc_buf_init(&quoted, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	if (how == 1)
		kc_text_percent_encode(out, text);
	else if (how == 2)
	{
		kc_json_string(&quoted, text);
		kc_buf_append(out, quoted.data + 1, quoted.len - 2);
	}
	else
		kc_buf_slice(out, text);
	kc_buf_free(&quoted);
}

static bool
contains(KcSlice text, const char *piece)
{
	for (size_t i = 0; i + PIECE <= text.len; i++)
	{
		if (memcmp(text.data + i, piece, PIECE) == 0)
			return true;
	}
	return false;
}

static void
check_redacted(KcBuf *text, KcSlice secret, KcSlice surroundings)
{
	size_t		len = text->len;
	size_t		again;
	KcBuf		copy;

	kc_redact(text->data, &len);
	holds(len <= text->len);
	kc_buf_truncate(text, len);

	for (size_t i = 0; i + PIECE <= secret.len; i++)
	{
		if (!contains(kc_buf_view(text), secret.data + i))
			continue;
		/* It may have stood beside the secret, too. */
		if (contains(surroundings, secret.data + i))
			continue;
		fprintf(stderr, "left of %.*s: %.*s\n", (int) secret.len, secret.data,
				(int) text->len, text->data);
		holds(!"a piece of the secret is left");
	}

	kc_buf_init(&copy, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_slice(&copy, kc_buf_view(text));
	again = copy.len;
	if (copy.len > 0)
		kc_redact(copy.data, &again);
	holds(again == text->len && kc_slice_eq(kc_slice_n(copy.data, again), kc_buf_view(text)));
	kc_buf_free(&copy);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	FuzzInput	in = {data, size};
	size_t		form = fuzz_byte(&in) % NFORMS;
	int			how = fuzz_byte(&in) % 3;
	size_t		secret_len = fuzz_byte(&in) % 64;
	size_t		before_len = fuzz_byte(&in);
	KcSlice		secret_bytes = fuzz_slice(&in, secret_len);
	KcSlice		before = fuzz_slice(&in, before_len);
	KcSlice		behind = fuzz_slice(&in, in.left < MAX_TEXT ? in.left : MAX_TEXT);
	KcBuf		secret;
	KcBuf		planted;
	KcBuf		text;
	KcBuf		written;
	KcBuf		surroundings;

	kc_buf_init(&secret, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_init(&planted, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_init(&text, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_init(&written, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_init(&surroundings, &kc_alloc_malloc, KC_BUF_UNLIMITED);

	make_secret(&secret, secret_bytes, forms[form].alphabet, forms[form].encoding);
	kc_buf_str(&planted, forms[form].before);
	kc_buf_slice(&planted, kc_buf_view(&secret));
	kc_buf_str(&planted, forms[form].behind);

	kc_buf_slice(&text, before);
	encode_whole(&text, kc_buf_view(&planted), how);
	kc_buf_slice(&text, behind);
	encode_whole(&written, kc_buf_view(&secret), how);

	kc_buf_slice(&surroundings, before);
	encode_whole(&surroundings, kc_slice(forms[form].before), how);
	kc_buf_char(&surroundings, '\0');
	encode_whole(&surroundings, kc_slice(forms[form].behind), how);
	kc_buf_slice(&surroundings, behind);

	check_redacted(&text, kc_buf_view(&written), kc_buf_view(&surroundings));
	kc_buf_free(&secret);
	kc_buf_free(&planted);
	kc_buf_free(&text);
	kc_buf_free(&written);
	kc_buf_free(&surroundings);
	return 0;
}
