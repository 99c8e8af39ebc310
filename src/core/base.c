/*
 * base.c
 *	  Slices, the three-part error, and the allocator.
 *
 * Every text of an error passes kc_error_text() or kc_error_set(), which
 * clean it first and redact it second: a control character inside a secret's
 * name must not hide it from the redaction.  Nothing here raises.
 */
#include "base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ascii.h"
#include "redact.h"
#include "utf8.h"

/* Texts are read this far before they are cleaned, redacted and cut. */
#define WORK_SIZE	4096

/* A shorter secret would be found in every second word. */
#define SCRUB_MIN	3

/* As often a secret may have been percent-encoded. */
#define SCRUB_MAX_DEPTH 4

#ifdef KUSTO_FAULTS
bool		(*kc_fault_hook) (const char *point);
#endif

/* ---- slices ---- */

KcSlice
kc_slice(const char *cstr)
{
	return (KcSlice) {cstr, cstr == NULL ? 0 : strlen(cstr)};
}

KcSlice
kc_slice_n(const char *data, size_t len)
{
	return (KcSlice) {data, len};
}

bool
kc_slice_eq(KcSlice a, KcSlice b)
{
	return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

bool
kc_slice_ieq(KcSlice a, KcSlice b)
{
	if (a.len != b.len)
		return false;
	for (size_t i = 0; i < a.len; i++)
	{
		if (kc_ascii_lower(a.data[i]) != kc_ascii_lower(b.data[i]))
			return false;
	}
	return true;
}

bool
kc_slice_starts(KcSlice s, KcSlice prefix)
{
	return s.len >= prefix.len &&
		kc_slice_eq((KcSlice) {s.data, prefix.len}, prefix);
}

bool
kc_slice_ends_i(KcSlice s, KcSlice suffix)
{
	if (s.len < suffix.len)
		return false;
	if (suffix.len == 0)
		return true;
	return kc_slice_ieq((KcSlice) {s.data + (s.len - suffix.len), suffix.len}, suffix);
}

/* ---- errors ---- */

void
kc_error_clear(KcError *err)
{
	if (err == NULL)
		return;
	memset(err, 0, sizeof(*err));
	err->retry_after_ms = -1;
}

static bool
implies_permanent(KcStatus status)
{
	switch (status)
	{
		case KC_ERR_INVALID:
		case KC_ERR_LIMIT:
		case KC_ERR_AUTH:
		case KC_ERR_FORBIDDEN:
		case KC_ERR_NOT_FOUND:
		case KC_ERR_REFUSED:
		case KC_ERR_PROTOCOL:
			return true;
		case KC_OK:
		case KC_ERR_NOMEM:
		case KC_ERR_NETWORK:
		case KC_ERR_TIMEOUT:
		case KC_ERR_THROTTLED:
		case KC_ERR_SERVICE:
		case KC_ERR_CANCELLED:
		case KC_ERR_INTERNAL:
			break;
	}
	return false;
}

/* C0 and C1 controls and DEL, in well-formed UTF-8. */
static bool
is_control(const char *p, size_t len)
{
	unsigned char c = (unsigned char) p[0];

	if (len == 1)
		return c < 0x20 || c == 0x7F;
	return len == 2 && c == 0xC2 && (unsigned char) p[1] < 0xA0;
}

/*
 * Copy text to out: well-formed UTF-8 stays, a wrong byte becomes '?', and of
 * the control characters only newline and tab leave a trace: themselves, or a
 * blank when the text must be one line.  Gives the length, at most out_size.
 */
static size_t
clean_text(char *out, size_t out_size, KcSlice text, bool one_line)
{
	size_t		w = 0;
	size_t		r = 0;

	while (r < text.len)
	{
		const char *p = text.data + r;
		size_t		n = kc_utf8_sequence(p, text.len - r);

		if (n == 0)
		{
			if (w == out_size)
				break;
			out[w++] = '?';
			r++;
			continue;
		}
		r += n;
		if (is_control(p, n))
		{
			if (*p != '\n' && *p != '\t')
				continue;
			if (w == out_size)
				break;
			out[w++] = one_line ? ' ' : *p;
			continue;
		}
		if (n > out_size - w)
			break;
		memcpy(out + w, p, n);
		w += n;
	}
	return w;
}

/* The longest prefix of at most max bytes that ends between characters. */
static size_t
cut_at_character(const char *text, size_t len, size_t max)
{
	if (len <= max)
		return len;
	len = max;
	while (len > 0 && ((unsigned char) text[len] & 0xC0) == 0x80)
		len--;
	return len;
}

void
kc_error_text(char *field, size_t field_size, KcSlice text)
{
	char		work[WORK_SIZE];
	size_t		len;

	if (field_size == 0)
		return;
	/* Only the service's own message, the detail, may have lines. */
	len = clean_text(work, sizeof(work), text, field_size < KC_ERROR_DETAIL_MAX);
	kc_redact(work, &len);
	len = cut_at_character(work, len, field_size - 1);
	memcpy(field, work, len);
	field[len] = '\0';
}

KcStatus
kc_error_set(KcError *err, KcStatus status, const char *doing, const char *fmt,...)
{
	char		text[WORK_SIZE];
	va_list		args;
	int			len;

	if (err == NULL)
		return status;

	/* Formatted before the clearing: an argument may be a text of *err. */
	va_start(args, fmt);
	len = vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (len < 0)
		len = snprintf(text, sizeof(text), "the message could not be formatted");
	if ((size_t) len >= sizeof(text))
		len = (int) sizeof(text) - 1;

	kc_error_clear(err);
	err->status = status;
	err->doing = doing;
	err->permanent = implies_permanent(status);
	kc_error_text(err->what, sizeof(err->what), kc_slice_n(text, (size_t) len));
	return status;
}

KcStatus
kc_error_nomem(KcError *err, const char *doing)
{
	return kc_error_set(err, KC_ERR_NOMEM, doing, "out of memory");
}

/* ---- scrubbing a known secret ---- */

/*
 * How many bytes at p stand for the byte want in one of the forms that a URL,
 * a form, JSON or XML gives it, or 0.  Percent-encoding again and again gives
 * %XX, %25XX, %2525XX: depth of them.
 */
static size_t
match_byte(const char *p, size_t len, unsigned char want, int depth)
{
	static const struct
	{
		char		byte;
		const char *form;
	}			named[] = {
		{'&', "&amp;"}, {'<', "&lt;"}, {'>', "&gt;"},
		{'"', "&quot;"}, {'\'', "&apos;"}, {'\'', "&#39;"},
		{'"', "\\\""}, {'\\', "\\\\"}, {'/', "\\/"}, {' ', "+"},
	};
	char		prefix[] = "%252525";
	KcSlice		coded[] = {{prefix, 2 * (size_t) depth - 1}, {"\\u00", 4}};
	KcSlice		text = {p, len};

	for (size_t i = 0; i < sizeof(named) / sizeof(named[0]); i++)
	{
		KcSlice		form = kc_slice(named[i].form);

		if ((unsigned char) named[i].byte == want && kc_slice_starts(text, form))
			return form.len;
	}
	for (size_t i = 0; i < 2; i++)
	{
		size_t		at = coded[i].len;
		int			high;

		if (!kc_slice_starts(text, coded[i]) || len - at < 2)
			continue;
		high = kc_ascii_hex(p[at]);
		if (high >= 0 && high * 16 + kc_ascii_hex(p[at + 1]) == (int) want)
			return at + 2;
	}
	return 0;
}

/*
 * Length of an occurrence of secret at the start of text, as it is (depth 0)
 * or encoded, or 0.  An occurrence that the end of the text cuts off counts.
 */
static size_t
match_secret(KcSlice text, KcSlice secret, int depth)
{
	size_t		at = 0;

	for (size_t i = 0; i < secret.len; i++)
	{
		unsigned char want = (unsigned char) secret.data[i];
		size_t		n = 0;
		unsigned char have;

		if (at == text.len)
			return i >= SCRUB_MIN ? at : 0;
		if (depth > 0)
			n = match_byte(text.data + at, text.len - at, want, depth);
		have = (unsigned char) text.data[at];
		if (n == 0 && (have == want || (want >= 0x80 && have == '?')))
			n = 1;
		if (n == 0 && (want < 0x20 || want == 0x7F))
			continue;			/* clean_text() dropped it */
		if (n == 0)
			return 0;
		at += n;
	}
	return at >= SCRUB_MIN ? at : 0;
}

static void
scrub_text(char *text, KcSlice secret)
{
	size_t		len = strlen(text);
	size_t		w = 0;
	size_t		r = 0;

	while (r < len)
	{
		KcSlice		rest = kc_slice_n(text + r, len - r);
		size_t		n = 0;

		for (int depth = 0; n == 0 && depth <= SCRUB_MAX_DEPTH; depth++)
			n = match_secret(rest, secret, depth);
		if (n > 0)
		{
			memcpy(text + w, "***", 3);
			w += 3;
			r += n;
		}
		else
			text[w++] = text[r++];
	}
	text[w] = '\0';
}

void
kc_error_scrub(KcError *err, KcSlice secret)
{
	if (err == NULL || secret.len < SCRUB_MIN)
		return;
	scrub_text(err->what, secret);
	scrub_text(err->lib, secret);
	scrub_text(err->code, secret);
	scrub_text(err->detail, secret);
	scrub_text(err->activity_id, secret);
	scrub_text(err->host, secret);
}

/* ---- allocator ---- */

static void *
malloc_realloc(void *arg, void *ptr, size_t size)
{
	(void) arg;
	return realloc(ptr, size);
}

static void
malloc_free(void *arg, void *ptr)
{
	(void) arg;
	free(ptr);
}

const KcAlloc kc_alloc_malloc = {malloc_realloc, malloc_free, NULL};

void *
kc_alloc(const KcAlloc *alloc, size_t size)
{
	return kc_realloc(alloc, NULL, size);
}

void *
kc_alloc0(const KcAlloc *alloc, size_t size)
{
	void	   *ptr = kc_alloc(alloc, size);

	if (ptr != NULL)
		memset(ptr, 0, size);
	return ptr;
}

void *
kc_realloc(const KcAlloc *alloc, void *ptr, size_t size)
{
	return alloc->realloc_fn(alloc->arg, ptr, size == 0 ? 1 : size);
}

void
kc_free(const KcAlloc *alloc, void *ptr)
{
	if (ptr != NULL)
		alloc->free_fn(alloc->arg, ptr);
}

char *
kc_strdup(const KcAlloc *alloc, KcSlice s)
{
	size_t		size;
	char	   *copy;

	if (!kc_add_size(s.len, 1, &size))
		return NULL;
	copy = kc_alloc(alloc, size);
	if (copy == NULL)
		return NULL;
	if (s.len > 0)
		memcpy(copy, s.data, s.len);
	copy[s.len] = '\0';
	return copy;
}

void
kc_wipe(void *ptr, size_t len)
{
	memset(ptr, 0, len);
	/* the compiler must not see that the bytes are dead */
	__asm__ __volatile__("" : : "r"(ptr) : "memory");
}

void
kc_free_secret(const KcAlloc *alloc, char *cstr)
{
	if (cstr == NULL)
		return;
	kc_wipe(cstr, strlen(cstr));
	kc_free(alloc, cstr);
}
