/*
 * gzip.h
 *	  A streaming gzip compressor (RFC 1952) behind one interface, so that
 *	  another engine can take zlib's place.
 */
#ifndef KC_GZIP_H
#define KC_GZIP_H

#include "base.h"

typedef struct KcGzip KcGzip;

extern KcStatus kc_gzip_create(const KcAlloc *alloc, int level, KcGzip **gzip, KcError *err);
extern void kc_gzip_free(KcGzip *gzip); /* NULL is fine */
extern void kc_gzip_reset(KcGzip *gzip);	/* begin the next stream */

/*
 * Compress: takes what it can from *in / *in_len and puts it at *out /
 * *out_len, moving all four.  With finish, *done tells that the stream is
 * complete, together with its last byte; call again with more room until it is.  Allocates nothing, so it
 * may run on a thread that must not allocate.
 */
extern KcStatus kc_gzip_run(KcGzip *gzip, const char **in, size_t *in_len,
							char **out, size_t *out_len, bool finish, bool *done, KcError *err);

#endif							/* KC_GZIP_H */
