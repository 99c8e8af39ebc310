/*
 * gzip_zlib.c
 *	  Deflate by zlib, which is always there.
 *
 * zlib asks for memory in deflateInit2() only; deflate(), deflateReset() and
 * deflateSetDictionary() work with what they have.
 */
#include <limits.h>

#include <zlib.h>

#include "gzip_internal.h"

#define MEM_LEVEL		8		/* zlib's default */

typedef struct Zlib
{
	const KcAlloc *alloc;
	z_stream	z;
} Zlib;

static voidpf
zlib_alloc(voidpf opaque, uInt items, uInt size)
{
	size_t		bytes;

	if (!kc_mul_size(items, size, &bytes))
		return NULL;
	return kc_alloc((const KcAlloc *) opaque, bytes);
}

static void
zlib_free_memory(voidpf opaque, voidpf ptr)
{
	kc_free((const KcAlloc *) opaque, ptr);
}

static KcStatus
zlib_create(const KcAlloc *alloc, int level, void **state, KcError *err)
{
	static const char doing[] = "starting the compressor";
	Zlib	   *self = kc_alloc0(alloc, sizeof(*self));
	int			rc;

	*state = NULL;
	if (self == NULL)
		return kc_error_nomem(err, doing);
	self->alloc = alloc;
	self->z.zalloc = zlib_alloc;
	self->z.zfree = zlib_free_memory;
	self->z.opaque = (voidpf) (uintptr_t) alloc;
	/* Negative: no header, no trailer. */
	rc = deflateInit2(&self->z, level, Z_DEFLATED, -MAX_WBITS, MEM_LEVEL, Z_DEFAULT_STRATEGY);
	if (rc != Z_OK)
	{
		kc_free(alloc, self);
		if (rc == Z_MEM_ERROR)
			return kc_error_nomem(err, doing);
		return kc_error_set(err, KC_ERR_INTERNAL, doing, "zlib returned %d", rc);
	}
	*state = self;
	return KC_OK;
}

static void
zlib_free(void *state)
{
	Zlib	   *self = state;

	if (self == NULL)
		return;
	(void) deflateEnd(&self->z);
	kc_free(self->alloc, self);
}

static KcStatus
zlib_begin(void *state, KcSlice before, KcError *err)
{
	Zlib	   *self = state;
	int			rc = deflateReset(&self->z);

	if (rc == Z_OK && before.len > 0)
		rc = deflateSetDictionary(&self->z, (const Bytef *) before.data, (uInt) before.len);
	if (rc != Z_OK)
		return kc_error_set(err, KC_ERR_INTERNAL, "compressing", "zlib returned %d", rc);
	return KC_OK;
}

static KcStatus
zlib_run(void *state, KcGzipIo *io, KcGzipEnd end, bool *done, KcError *err)
{
	static const int flushes[] = {Z_NO_FLUSH, Z_SYNC_FLUSH, Z_FINISH};
	z_stream   *z = &((Zlib *) state)->z;
	int			rc;

	/* Older headers have no const here; no input may be NULL. */
	z->next_in = (z_const Bytef *) (uintptr_t) io->in;
	z->avail_in = (uInt) io->in_len;
	z->next_out = (Bytef *) io->out;
	z->avail_out = (uInt) io->out_len;
	rc = deflate(z, flushes[end]);
	if (io->in_len > 0)
		io->in += io->in_len - z->avail_in;
	io->in_len = z->avail_in;
	io->out += io->out_len - z->avail_out;
	io->out_len = z->avail_out;
	/*
	 * A flush is complete when it has left room (Z_BUF_ERROR: there was nothing
	 * to do); one that has filled it adds five bytes for nothing next time.
	 */
	*done = end == KC_GZIP_FINISH ? rc == Z_STREAM_END : io->in_len == 0 && io->out_len > 0;
	if (rc != Z_OK && rc != Z_STREAM_END && rc != Z_BUF_ERROR)
		return kc_error_set(err, KC_ERR_INTERNAL, "compressing", "zlib returned %d", rc);
	return KC_OK;
}

static uint32_t
zlib_crc(uint32_t crc, const char *data, size_t len)
{
	while (len > 0)
	{
		uInt		now = len > UINT_MAX ? UINT_MAX : (uInt) len;

		crc = (uint32_t) crc32(crc, (const Bytef *) data, now);
		data += now;
		len -= now;
	}
	return crc;
}

const KcGzipStepper *
kc_gzip_zlib(void)
{
	static const KcGzipStepper zlib = {
		Z_BEST_COMPRESSION, zlib_create, zlib_free, zlib_begin, zlib_run, zlib_crc
	};

	return &zlib;
}
