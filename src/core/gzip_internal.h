/*
 * gzip_internal.h
 *	  What a compression library has to offer to gzip.c.
 *
 * All of it is raw deflate data (RFC 1951): header, trailer and checksums are
 * gzip.c's.  A library that this build lacks is NULL.
 */
#ifndef KC_GZIP_INTERNAL_H
#define KC_GZIP_INTERNAL_H

#include "gzip.h"

/* Input and output of one call, moved on by it. */
typedef struct KcGzipIo
{
	const char *in;
	size_t		in_len;
	char	   *out;
	size_t		out_len;
} KcGzipIo;

typedef enum KcGzipEnd
{
	KC_GZIP_MORE,				/* there is more to come */
	KC_GZIP_FLUSH,				/* end on a byte boundary; what follows joins on */
	KC_GZIP_FINISH				/* end the deflate data */
} KcGzipEnd;

/* A library that compresses in steps. */
typedef struct KcGzipStepper
{
	int			max_level;
	KcStatus	(*create) (const KcAlloc *alloc, int level, void **state, KcError *err);
	void		(*free) (void *state);	/* NULL is fine */

	/* Forget everything but what came right before, and may be referred to. */
	KcStatus	(*begin) (void *state, KcSlice before, KcError *err);

	/*
	 * Take and give what is possible.  *done: all input is taken, and all output
	 * up to that end given; it may be told only with the next call.
	 */
	KcStatus	(*run) (void *state, KcGzipIo *io, KcGzipEnd end, bool *done, KcError *err);

	uint32_t	(*crc) (uint32_t crc, const char *data, size_t len);
} KcGzipStepper;

/* A library that compresses what is there as a whole. */
typedef struct KcGzipWhole
{
	KcStatus	(*create) (const KcAlloc *alloc, int level, void **state, KcError *err);
	void		(*free) (void *state);	/* NULL is fine */

	/* The deflate data's length; 0 when there is not room enough. */
	size_t		(*run) (void *state, KcSlice in, char *out, size_t room);
	uint32_t	(*crc) (uint32_t crc, const char *data, size_t len);
} KcGzipWhole;

extern const KcGzipStepper *kc_gzip_isal(void);
extern const KcGzipStepper *kc_gzip_zlib(void);
extern const KcGzipWhole *kc_gzip_libdeflate(void);

#endif							/* KC_GZIP_INTERNAL_H */
