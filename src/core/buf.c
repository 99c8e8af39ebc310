/*
 * buf.c
 *	  A growable byte buffer whose first failure sticks.
 *
 * The buffer owns data; slices given to it are copied.  Nothing here raises.
 */
#include "buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Smallest allocation; below this, growing is all overhead. */
#define MIN_CAP 64

void
kc_buf_init(KcBuf *buf, const KcAlloc *alloc, size_t max)
{
	*buf = (KcBuf) {
		.alloc = alloc,
		.max = max < KC_BUF_UNLIMITED ? max : KC_BUF_UNLIMITED
	};
}

void
kc_buf_free(KcBuf *buf)
{
	if (buf->data != NULL)
		kc_free(buf->alloc, buf->data);
	buf->data = NULL;
	buf->len = 0;
	buf->cap = 0;
	buf->failed = KC_OK;
}

void
kc_buf_free_secret(KcBuf *buf)
{
	if (buf->data != NULL)
		kc_wipe(buf->data, buf->cap);
	kc_buf_free(buf);
}

void
kc_buf_reset(KcBuf *buf)
{
	buf->failed = KC_OK;
	kc_buf_truncate(buf, 0);
}

void
kc_buf_truncate(KcBuf *buf, size_t len)
{
	if (len > buf->len || buf->data == NULL)
		return;
	buf->len = len;
	buf->data[len] = '\0';
}

bool
kc_buf_reserve(KcBuf *buf, size_t extra)
{
	size_t		needed;
	size_t		cap;
	char	   *data;

	if (buf->failed != KC_OK)
		return false;
	if (extra < buf->cap - buf->len)	/* the terminator needs one more */
		return true;
	if (extra > buf->max - buf->len)
	{
		buf->failed = KC_ERR_LIMIT;
		return false;
	}

	/*
	 * Doubling keeps appends linear, and a first reservation gets what it asks
	 * for.  None of this overflows, since max is at most SIZE_MAX / 2.
	 */
	needed = buf->len + extra + 1;
	cap = buf->cap <= buf->max / 2 ? buf->cap * 2 : buf->max + 1;
	if (cap < MIN_CAP)
		cap = MIN_CAP;
	if (cap < needed)
		cap = needed;
	if (cap > buf->max + 1)
		cap = buf->max + 1;

	data = kc_realloc(buf->alloc, buf->data, cap);
	if (data == NULL)
	{
		buf->failed = KC_ERR_NOMEM;
		return false;
	}
	buf->data = data;
	buf->cap = cap;
	buf->data[buf->len] = '\0';
	return true;
}

void
kc_buf_append(KcBuf *buf, const char *data, size_t len)
{
	if (!kc_buf_reserve(buf, len))
		return;
	if (len > 0)
		memcpy(buf->data + buf->len, data, len);
	buf->len += len;
	buf->data[buf->len] = '\0';
}

void
kc_buf_slice(KcBuf *buf, KcSlice s)
{
	kc_buf_append(buf, s.data, s.len);
}

void
kc_buf_str(KcBuf *buf, const char *cstr)
{
	kc_buf_slice(buf, kc_slice(cstr));
}

void
kc_buf_char(KcBuf *buf, char c)
{
	kc_buf_append(buf, &c, 1);
}

void
kc_buf_printf(KcBuf *buf, const char *fmt,...)
{
	size_t		room;
	va_list		args;
	int			needed;

	if (!kc_buf_reserve(buf, 0))
		return;
	room = buf->cap - buf->len;
	va_start(args, fmt);
	needed = vsnprintf(buf->data + buf->len, room, fmt, args);
	va_end(args);
	if (needed < 0)
	{
		buf->failed = KC_ERR_INTERNAL;
		buf->data[buf->len] = '\0';
		return;
	}
	if ((size_t) needed >= room)
	{
		buf->data[buf->len] = '\0';
		if (!kc_buf_reserve(buf, (size_t) needed))
			return;
		va_start(args, fmt);
		(void) vsnprintf(buf->data + buf->len, buf->cap - buf->len, fmt, args);
		va_end(args);
	}
	buf->len += (size_t) needed;
}

void
kc_buf_u64(KcBuf *buf, uint64_t value)
{
	char		digits[20];
	size_t		at = sizeof(digits);

	do
	{
		digits[--at] = (char) ('0' + value % 10);
		value /= 10;
	} while (value != 0);
	kc_buf_append(buf, digits + at, sizeof(digits) - at);
}

void
kc_buf_i64(KcBuf *buf, int64_t value)
{
	if (value >= 0)
	{
		kc_buf_u64(buf, (uint64_t) value);
		return;
	}
	kc_buf_char(buf, '-');
	kc_buf_u64(buf, (uint64_t) 0 - (uint64_t) value);
}

KcSlice
kc_buf_view(const KcBuf *buf)
{
	return (KcSlice) {buf->data, buf->len};
}

KcStatus
kc_buf_status(const KcBuf *buf, KcError *err, const char *doing)
{
	switch (buf->failed)
	{
		case KC_OK:
			return KC_OK;
		case KC_ERR_NOMEM:
			return kc_error_nomem(err, doing);
		case KC_ERR_LIMIT:
			return kc_error_set(err, KC_ERR_LIMIT, doing,
								"more than %zu bytes", buf->max);
		default:
			return kc_error_set(err, buf->failed, doing, "the text could not be built");
	}
}
