/*
 * buf.h
 *	  A growable byte buffer.
 *
 * Appending never fails one call at a time: the first failure sticks, later
 * appends do nothing, and the caller checks once, with kc_buf_status().  The
 * data is kept NUL-terminated behind len whenever data is not NULL.
 */
#ifndef KC_BUF_H
#define KC_BUF_H

#include "base.h"

typedef struct KcBuf
{
	char	   *data;
	size_t		len;
	size_t		cap;			/* bytes allocated, the terminator included */
	size_t		max;			/* append beyond this many bytes is KC_ERR_LIMIT */
	KcStatus	failed;
	const KcAlloc *alloc;
} KcBuf;

#define KC_BUF_UNLIMITED (SIZE_MAX / 2)

extern void kc_buf_init(KcBuf *buf, const KcAlloc *alloc, size_t max);
extern void kc_buf_free(KcBuf *buf);
extern void kc_buf_free_secret(KcBuf *buf); /* overwrites first */
extern void kc_buf_reset(KcBuf *buf);	/* len 0, memory kept, failure forgotten */
extern void kc_buf_truncate(KcBuf *buf, size_t len);
extern bool kc_buf_reserve(KcBuf *buf, size_t extra);	/* room for extra more bytes */
extern void kc_buf_append(KcBuf *buf, const char *data, size_t len);
extern void kc_buf_slice(KcBuf *buf, KcSlice s);
extern void kc_buf_str(KcBuf *buf, const char *cstr);
extern void kc_buf_char(KcBuf *buf, char c);
extern void kc_buf_printf(KcBuf *buf, const char *fmt,...) KC_PRINTF(2, 3);
extern void kc_buf_i64(KcBuf *buf, int64_t value);
extern void kc_buf_u64(KcBuf *buf, uint64_t value);
extern KcSlice kc_buf_view(const KcBuf *buf);

/* KC_OK, or the first failure of an append, put into *err. */
extern KcStatus kc_buf_status(const KcBuf *buf, KcError *err, const char *doing);

#endif							/* KC_BUF_H */
