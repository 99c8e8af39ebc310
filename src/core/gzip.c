/*
 * gzip.c
 *	  gzip by zlib.
 *
 * zlib asks for memory in deflateInit2() only; deflate() and deflateReset()
 * work with what they have, which is what makes the promise in gzip.h hold.
 * The header has neither a time nor a name, so equal input gives equal output.
 */
#include "gzip.h"

#include <limits.h>
#include <string.h>

#include <zlib.h>

#define GZIP_WRAPPER	16		/* added to windowBits: gzip, not zlib format */
#define MEM_LEVEL		8		/* zlib's default */

struct KcGzip
{
	const KcAlloc *alloc;
	z_stream	z;
	bool		ended;			/* zlib has given the whole stream */
	bool		spilled;		/* spill holds a byte that had no room */
	char		spill;
};

static voidpf
gzip_alloc(voidpf opaque, uInt items, uInt size)
{
	size_t		bytes;

	if (!kc_mul_size(items, size, &bytes))
		return NULL;
	return kc_alloc((const KcAlloc *) opaque, bytes);
}

static void
gzip_free_memory(voidpf opaque, voidpf ptr)
{
	kc_free((const KcAlloc *) opaque, ptr);
}

KcStatus
kc_gzip_create(const KcAlloc *alloc, int level, KcGzip **gzip, KcError *err)
{
	static const char doing[] = "starting the compressor";
	KcGzip	   *self;
	int			rc;

	*gzip = NULL;
	if (level < Z_BEST_SPEED || level > Z_BEST_COMPRESSION)
		return kc_error_set(err, KC_ERR_INVALID, doing,
							"the compression level %d is not between %d and %d",
							level, Z_BEST_SPEED, Z_BEST_COMPRESSION);
	self = kc_alloc0(alloc, sizeof(*self));
	if (self == NULL)
		return kc_error_nomem(err, doing);
	self->alloc = alloc;
	self->z.zalloc = gzip_alloc;
	self->z.zfree = gzip_free_memory;
	self->z.opaque = (voidpf) (uintptr_t) alloc;
	rc = deflateInit2(&self->z, level, Z_DEFLATED, MAX_WBITS + GZIP_WRAPPER,
					  MEM_LEVEL, Z_DEFAULT_STRATEGY);
	if (rc != Z_OK)
	{
		kc_free(alloc, self);
		if (rc == Z_MEM_ERROR)
			return kc_error_nomem(err, doing);
		return kc_error_set(err, KC_ERR_INTERNAL, doing, "zlib returned %d", rc);
	}
	*gzip = self;
	return KC_OK;
}

void
kc_gzip_free(KcGzip *gzip)
{
	if (gzip == NULL)
		return;
	(void) deflateEnd(&gzip->z);
	kc_free(gzip->alloc, gzip);
}

void
kc_gzip_reset(KcGzip *gzip)
{
	(void) deflateReset(&gzip->z);	/* fails only for a broken state */
	gzip->ended = false;
	gzip->spilled = false;
}

static uInt
clamp_to_uint(size_t len)
{
	return len > UINT_MAX ? UINT_MAX : (uInt) len;
}

/* One call of zlib: takes from *in, puts at *out, moves all four. */
static KcStatus
run_once(KcGzip *gzip, const char **in, size_t *in_len,
		 char **out, size_t *out_len, bool finish, KcError *err)
{
	z_stream   *z = &gzip->z;
	uInt		in_now = clamp_to_uint(*in_len);
	uInt		out_now = clamp_to_uint(*out_len);
	bool		last = finish && in_now == *in_len;
	int			rc;

	z->next_in = (z_const Bytef *) (uintptr_t) *in;
	z->avail_in = in_now;
	z->next_out = (Bytef *) *out;
	z->avail_out = out_now;
	rc = deflate(z, last ? Z_FINISH : Z_NO_FLUSH);
	if (in_now > 0)
		*in += in_now - z->avail_in;
	*in_len -= in_now - z->avail_in;
	*out += out_now - z->avail_out;
	*out_len -= out_now - z->avail_out;
	gzip->ended = rc == Z_STREAM_END;
	/* Z_BUF_ERROR says that nothing could be done just now */
	if (rc != Z_OK && rc != Z_STREAM_END && rc != Z_BUF_ERROR)
		return kc_error_set(err, KC_ERR_INTERNAL, "compressing", "zlib returned %d", rc);
	return KC_OK;
}

KcStatus
kc_gzip_run(KcGzip *gzip, const char **in, size_t *in_len,
			char **out, size_t *out_len, bool finish, bool *done, KcError *err)
{
	KcStatus	status = KC_OK;

	if (gzip->spilled && *out_len > 0)
	{
		*(*out)++ = gzip->spill;
		(*out_len)--;
		gzip->spilled = false;
	}
	while (status == KC_OK && !gzip->ended && *out_len > 0 && (*in_len > 0 || finish))
		status = run_once(gzip, in, in_len, out, out_len, finish, err);

	/*
	 * The output is full, and zlib may only then notice that it has nothing
	 * more: ask with one byte of room, so that done comes with the last byte
	 * and nobody opens another block for nothing.
	 */
	if (status == KC_OK && finish && !gzip->ended && !gzip->spilled &&
		*in_len == 0 && *out_len == 0)
	{
		char	   *spill = &gzip->spill;
		size_t		room = 1;

		status = run_once(gzip, in, in_len, &spill, &room, true, err);
		gzip->spilled = room == 0;
	}
	if (done != NULL)
		*done = gzip->ended && !gzip->spilled;
	return status;
}
