/*
 * gzip.h
 *	  A gzip compressor (RFC 1952) behind one interface, whichever library does
 *	  the work.
 *
 * Two ways to make a stream, which is always one gzip member:
 *
 * - kc_gzip_run() makes all of it, header and trailer included.
 * - Several compressors each make a piece of it, side by side.  A piece is raw
 *	 deflate data that ends on a byte boundary; the caller joins header, pieces
 *	 and trailer in order, and the pieces' checksums with kc_gzip_join_crc().
 *
 * Only kc_gzip_create() allocates, so the other calls may run on a thread that
 * must not.
 */
#ifndef KC_GZIP_H
#define KC_GZIP_H

#include "base.h"

typedef struct KcGzip KcGzip;

typedef enum KcGzipEngine
{
	KC_GZIP_BEST = 0,			/* the fastest one here that knows the level */
	KC_GZIP_ISAL,				/* levels 1 to 3 */
	KC_GZIP_LIBDEFLATE,			/* streams that come in one call; else zlib */
	KC_GZIP_ZLIB
} KcGzipEngine;

#define KC_GZIP_MIN_LEVEL	1
#define KC_GZIP_MAX_LEVEL	9

/* What this build uses: "ISA-L", "libdeflate and zlib" or "zlib". */
extern const char *kc_gzip_library(void);

/* Was this build made with it? */
extern bool kc_gzip_has_engine(KcGzipEngine engine);

/* The engine that compresses in steps: pieces, and streams that come in several calls. */
extern KcGzipEngine kc_gzip_step_engine(KcGzipEngine engine, int level);

/* KC_ERR_INVALID: no such level, or the engine is not in this build. */
extern KcStatus kc_gzip_create(const KcAlloc *alloc, KcGzipEngine engine, int level,
							   KcGzip **gzip, KcError *err);
extern void kc_gzip_free(KcGzip *gzip); /* NULL is fine */

/* ---- a whole stream ---- */

extern void kc_gzip_reset(KcGzip *gzip);	/* begin the next stream */

/*
 * Compress: takes what it can from *in / *in_len and puts it at *out /
 * *out_len, moving all four.  With finish, *done tells that the stream is
 * complete, together with its last byte; call again with more room until it
 * is.  A stream that comes in one call, with room for kc_gzip_bound() bytes,
 * may be compressed faster than in steps.
 */
extern KcStatus kc_gzip_run(KcGzip *gzip, const char **in, size_t *in_len,
							char **out, size_t *out_len, bool finish, bool *done, KcError *err);

/* No stream of len raw bytes that comes in one call is longer. */
extern size_t kc_gzip_bound(size_t len);

/* ---- pieces of a stream ---- */

/* What a piece may refer back to, at most. */
#define KC_GZIP_WINDOW		(32 * 1024)

#define KC_GZIP_HEADER_SIZE 10
#define KC_GZIP_TRAILER_SIZE 8

/* before: the raw bytes before this piece, at most KC_GZIP_WINDOW; it is copied. */
extern KcStatus kc_gzip_begin_piece(KcGzip *gzip, KcSlice before, KcError *err);

/* With less room nothing is done: zlib would begin to end the piece again and again. */
#define KC_GZIP_PIECE_ROOM	16

/* As kc_gzip_run().  last: this is the stream's last piece. */
extern KcStatus kc_gzip_run_piece(KcGzip *gzip, const char **in, size_t *in_len, char **out,
								  size_t *out_len, bool finish, bool last, bool *done, KcError *err);

/* Of the raw bytes that the piece has taken. */
extern uint32_t kc_gzip_piece_crc(const KcGzip *gzip);

/* The checksum of two texts, one after the other; of nothing it is 0. */
extern uint32_t kc_gzip_join_crc(uint32_t crc, uint32_t next_crc, uint64_t next_len);

extern void kc_gzip_header(char header[KC_GZIP_HEADER_SIZE]);
extern void kc_gzip_trailer(char trailer[KC_GZIP_TRAILER_SIZE], uint32_t crc, uint64_t raw_len);

#endif							/* KC_GZIP_H */
