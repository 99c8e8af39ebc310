/*
 * gzip.c
 *	  gzip around what a compression library gives: the choice of the library,
 *	  header, trailer and checksum.
 *
 * A stream is one gzip member whatever the library and the number of threads:
 * some readers stop after the first.  The header has neither a time nor a name, so equal
 * input in equal steps gives equal output.
 *
 * ISA-L is the fastest by far, at levels that are about zlib's 1.  libdeflate
 * is next, but each call of it ends the deflate data, at a bit that it does not
 * tell: nothing can be joined on.  So it serves streams that come in one call,
 * which requests and small results are, and zlib takes the others.
 */
#include "gzip.h"

#include <string.h>

#include <zlib.h>

#include "gzip_internal.h"

/* zlib and ISA-L count in 32 bits, some of it in int. */
#define RUN_MAX ((size_t) 1 << 30)

#define HEADER_FASTEST 4		/* XFL, RFC 1952 section 2.3.1 */
#define HEADER_UNIX 3

static const char doing[] = "starting the compressor";

struct KcGzip
{
	const KcAlloc *alloc;
	const KcGzipStepper *stepper;
	void	   *steps;
	const KcGzipWhole *whole;	/* NULL: the stepper does everything */
	void	   *once;

	uint32_t	crc;			/* of what was taken */
	uint64_t	taken;

	/* Of a whole stream. */
	bool		begun;
	bool		deflated;		/* the deflate data is complete */
	char		frame[KC_GZIP_HEADER_SIZE]; /* header or trailer that waits for room */
	size_t		frame_at;
	size_t		frame_len;
};

/* ---- the choice ---- */

const char *
kc_gzip_library(void)
{
	if (kc_gzip_isal() != NULL)
		return "ISA-L";
	return kc_gzip_libdeflate() != NULL ? "libdeflate and zlib" : "zlib";
}

bool
kc_gzip_has_engine(KcGzipEngine engine)
{
	switch (engine)
	{
		case KC_GZIP_ISAL:
			return kc_gzip_isal() != NULL;
		case KC_GZIP_LIBDEFLATE:
			return kc_gzip_libdeflate() != NULL;
		case KC_GZIP_BEST:
		case KC_GZIP_ZLIB:
			return true;
	}
	return false;
}

KcGzipEngine
kc_gzip_step_engine(KcGzipEngine engine, int level)
{
	const KcGzipStepper *isal = kc_gzip_isal();

	if (engine == KC_GZIP_BEST && isal != NULL && level <= isal->max_level)
		return KC_GZIP_ISAL;
	return engine == KC_GZIP_ISAL ? KC_GZIP_ISAL : KC_GZIP_ZLIB;
}

static void
choose(KcGzip *gzip, KcGzipEngine engine, int level)
{
	bool		isal = kc_gzip_step_engine(engine, level) == KC_GZIP_ISAL;

	gzip->stepper = isal ? kc_gzip_isal() : kc_gzip_zlib();
	if (!isal && engine != KC_GZIP_ZLIB)
		gzip->whole = kc_gzip_libdeflate();
}

KcStatus
kc_gzip_create(const KcAlloc *alloc, KcGzipEngine engine, int level, KcGzip **gzip, KcError *err)
{
	KcGzip	   *self;
	KcStatus	status;

	*gzip = NULL;
	if (!kc_gzip_has_engine(engine))
		return kc_error_set(err, KC_ERR_INVALID, doing, "that compressor is not in this build");
	if (level < KC_GZIP_MIN_LEVEL || level > KC_GZIP_MAX_LEVEL
		|| (engine == KC_GZIP_ISAL && level > kc_gzip_isal()->max_level))
		return kc_error_set(err, KC_ERR_INVALID, doing,
							"the compression level %d is not between %d and %d", level, KC_GZIP_MIN_LEVEL,
							engine == KC_GZIP_ISAL ? kc_gzip_isal()->max_level : KC_GZIP_MAX_LEVEL);
	self = kc_alloc0(alloc, sizeof(*self));
	if (self == NULL)
		return kc_error_nomem(err, doing);
	self->alloc = alloc;
	choose(self, engine, level);
	status = self->stepper->create(alloc, level, &self->steps, err);
	if (status == KC_OK && self->whole != NULL)
		status = self->whole->create(alloc, level, &self->once, err);
	if (status != KC_OK)
	{
		kc_gzip_free(self);
		return status;
	}
	kc_gzip_reset(self);
	*gzip = self;
	return KC_OK;
}

void
kc_gzip_free(KcGzip *gzip)
{
	if (gzip == NULL)
		return;
	gzip->stepper->free(gzip->steps);
	if (gzip->whole != NULL)
		gzip->whole->free(gzip->once);
	kc_free(gzip->alloc, gzip);
}

/* ---- header and trailer ---- */

void
kc_gzip_header(char header[KC_GZIP_HEADER_SIZE])
{
	static const unsigned char bytes[KC_GZIP_HEADER_SIZE] = {
		0x1F, 0x8B, 8 /* deflate */ , 0, 0, 0, 0, 0, HEADER_FASTEST, HEADER_UNIX
	};

	memcpy(header, bytes, sizeof(bytes));
}

static void
put_le32(char *out, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		out[i] = (char) (value >> (8 * i));
}

/* The length is modulo 2^32, as RFC 1952 says. */
void
kc_gzip_trailer(char trailer[KC_GZIP_TRAILER_SIZE], uint32_t crc, uint64_t raw_len)
{
	put_le32(trailer, crc);
	put_le32(trailer + 4, (uint32_t) raw_len);
}

uint32_t
kc_gzip_join_crc(uint32_t crc, uint32_t next_crc, uint64_t next_len)
{
	return (uint32_t) crc32_combine(crc, next_crc, (z_off_t) next_len);
}

size_t
kc_gzip_bound(size_t len)
{
	/* Nine bits a byte, where a library does not fall back to stored blocks. */
	return len + len / 8 + 512;
}

/* ---- the work ---- */

static KcStatus
deflate_some(KcGzip *gzip, KcGzipIo *io, KcGzipEnd end, bool *done, KcError *err)
{
	KcGzipIo	now = *io;
	KcStatus	status;

	*done = false;
	if (now.in_len > RUN_MAX)
	{
		now.in_len = RUN_MAX;
		end = KC_GZIP_MORE;
	}
	if (now.out_len > RUN_MAX)
		now.out_len = RUN_MAX;
	status = gzip->stepper->run(gzip->steps, &now, end, done, err);
	if (now.in != io->in)
	{
		gzip->crc = gzip->stepper->crc(gzip->crc, io->in, (size_t) (now.in - io->in));
		gzip->taken += (uint64_t) (now.in - io->in);
	}
	io->in_len -= (size_t) (now.in - io->in);
	io->out_len -= (size_t) (now.out - io->out);
	io->in = now.in;
	io->out = now.out;
	if (end == KC_GZIP_MORE)
		*done = false;
	return status;
}

static KcStatus
deflate_while_possible(KcGzip *gzip, KcGzipIo *io, KcGzipEnd end, bool *done, KcError *err)
{
	KcStatus	status = KC_OK;

	*done = false;
	while (status == KC_OK && !*done && io->out_len > 0 && (io->in_len > 0 || end != KC_GZIP_MORE))
	{
		size_t		before = io->in_len + io->out_len;

		status = deflate_some(gzip, io, end, done, err);
		/* Rather an error than to go round for ever. */
		if (status == KC_OK && !*done && io->in_len + io->out_len == before)
			status = kc_error_set(err, KC_ERR_INTERNAL, "compressing", "the compressor makes no headway");
	}
	return status;
}

static void
put_frame(KcGzip *gzip, KcGzipIo *io)
{
	size_t		len = gzip->frame_len - gzip->frame_at;

	if (len > io->out_len)
		len = io->out_len;
	if (len == 0)
		return;
	memcpy(io->out, gzip->frame + gzip->frame_at, len);
	gzip->frame_at += len;
	io->out += len;
	io->out_len -= len;
}

/* The whole stream at once; false: it cannot be done so. */
static bool
run_whole(KcGzip *gzip, KcGzipIo *io)
{
	size_t		len;

	if (gzip->whole == NULL || gzip->begun || io->out_len < KC_GZIP_HEADER_SIZE + KC_GZIP_TRAILER_SIZE)
		return false;
	len = gzip->whole->run(gzip->once, kc_slice_n(io->in, io->in_len), io->out + KC_GZIP_HEADER_SIZE,
						   io->out_len - KC_GZIP_HEADER_SIZE - KC_GZIP_TRAILER_SIZE);
	if (len == 0)
		return false;
	kc_gzip_header(io->out);
	io->out += KC_GZIP_HEADER_SIZE + len;
	gzip->crc = gzip->whole->crc(0, io->in, io->in_len);
	kc_gzip_trailer(io->out, gzip->crc, io->in_len);
	io->out += KC_GZIP_TRAILER_SIZE;
	io->out_len -= KC_GZIP_HEADER_SIZE + len + KC_GZIP_TRAILER_SIZE;
	io->in += io->in_len;
	io->in_len = 0;
	gzip->begun = true;
	gzip->deflated = true;
	gzip->frame_at = gzip->frame_len;
	return true;
}

static KcStatus
run_steps(KcGzip *gzip, KcGzipIo *io, bool finish, KcError *err)
{
	KcStatus	status;
	bool		done;

	if (!gzip->deflated && (io->out_len == 0 || (io->in_len == 0 && !finish)))
		return KC_OK;
	gzip->begun = true;
	put_frame(gzip, io);
	if (gzip->deflated)
		return KC_OK;
	status = deflate_while_possible(gzip, io, finish ? KC_GZIP_FINISH : KC_GZIP_MORE, &done, err);
	if (status != KC_OK || !done)
		return status;
	gzip->deflated = true;
	kc_gzip_trailer(gzip->frame, gzip->crc, gzip->taken);
	gzip->frame_at = 0;
	gzip->frame_len = KC_GZIP_TRAILER_SIZE;
	put_frame(gzip, io);
	return KC_OK;
}

void
kc_gzip_reset(KcGzip *gzip)
{
	gzip->begun = false;
	gzip->deflated = false;
	gzip->crc = 0;
	gzip->taken = 0;
	kc_gzip_header(gzip->frame);
	gzip->frame_at = 0;
	gzip->frame_len = KC_GZIP_HEADER_SIZE;
	(void) gzip->stepper->begin(gzip->steps, KC_SLICE_NULL, NULL);	/* fails only with a
																	 * dictionary */
}

KcStatus
kc_gzip_run(KcGzip *gzip, const char **in, size_t *in_len,
			char **out, size_t *out_len, bool finish, bool *done, KcError *err)
{
	KcGzipIo	io = {*in, *in_len, *out, *out_len};
	KcStatus	status = KC_OK;

	if (!finish || !run_whole(gzip, &io))
		status = run_steps(gzip, &io, finish, err);
	*in = io.in;
	*in_len = io.in_len;
	*out = io.out;
	*out_len = io.out_len;
	if (done != NULL)
		*done = gzip->deflated && gzip->frame_at == gzip->frame_len;
	return status;
}

/* ---- pieces ---- */

KcStatus
kc_gzip_begin_piece(KcGzip *gzip, KcSlice before, KcError *err)
{
	gzip->crc = 0;
	gzip->taken = 0;
	return gzip->stepper->begin(gzip->steps, before, err);
}

KcStatus
kc_gzip_run_piece(KcGzip *gzip, const char **in, size_t *in_len, char **out, size_t *out_len,
				  bool finish, bool last, bool *done, KcError *err)
{
	KcGzipIo	io = {*in, *in_len, *out, *out_len};
	KcGzipEnd	end = !finish ? KC_GZIP_MORE : last ? KC_GZIP_FINISH : KC_GZIP_FLUSH;
	KcStatus	status = KC_OK;

	*done = false;
	if (*out_len >= KC_GZIP_PIECE_ROOM)
		status = deflate_while_possible(gzip, &io, end, done, err);
	*in = io.in;
	*in_len = io.in_len;
	*out = io.out;
	*out_len = io.out_len;
	return status;
}

uint32_t
kc_gzip_piece_crc(const KcGzip *gzip)
{
	return gzip->crc;
}
