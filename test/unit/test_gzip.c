/*
 * test_gzip.c
 *	  The compressor, against zlib's own decompressor.
 */
#include "tap.h"

#include <zlib.h>

#include "core/gzip.h"
#include "fail_alloc.h"

static char raw[300000];
static char packed[400000];
static char unpacked[sizeof(raw) + 1];

static void
fill(bool random)
{
	uint32_t	x = 12345;

	for (size_t i = 0; i < sizeof(raw); i++)
	{
		x = x * 1664525 + 1013904223;
		raw[i] = (char) (random ? x >> 24 : 'a' + (x >> 29));
	}
}

/* Feed len bytes in pieces of in_step into room given in pieces of out_step. */
static size_t
pack(KcGzip *gzip, size_t len, size_t in_step, size_t out_step)
{
	const char *in = raw;
	char	   *out = packed;
	size_t		fed = 0;
	bool		done = false;

	while (!done)
	{
		size_t		in_len = len - fed < in_step ? len - fed : in_step;
		size_t		had = in_len;
		size_t		out_len = out_step;
		bool		finish = fed + in_len == len;
		KcError		err;

		must(kc_gzip_run(gzip, &in, &in_len, &out, &out_len, finish, &done, &err) == KC_OK);
		fed += had - in_len;
		must(in == raw + fed);
		/* the end is told with the last byte, not with none */
		must(out_len < out_step || !done);
		must(out <= packed + sizeof(packed) - out_step);
	}
	return (size_t) (out - packed);
}

static bool
unpacks_to(size_t packed_len, size_t len)
{
	z_stream	z = {0};
	bool		right;

	must(inflateInit2(&z, MAX_WBITS + 16) == Z_OK);
	z.next_in = (Bytef *) packed;
	z.avail_in = (uInt) packed_len;
	z.next_out = (Bytef *) unpacked;
	z.avail_out = sizeof(unpacked);
	right = inflate(&z, Z_FINISH) == Z_STREAM_END && z.avail_in == 0 &&
		z.total_out == len && memcmp(unpacked, raw, len) == 0;
	inflateEnd(&z);
	return right;
}

static void
test_round_trip(void)
{
	static const size_t lens[] = {0, 1, 10, 65536, sizeof(raw)};
	static const size_t steps[] = {1, 7, 4096, sizeof(raw)};
	KcGzip	   *gzip;
	KcError		err;

	for (int level = 1; level <= 9; level += 4)
	{
		must(kc_gzip_create(&kc_alloc_malloc, level, &gzip, &err) == KC_OK);
		for (size_t l = 0; l < sizeof(lens) / sizeof(lens[0]); l++)
		{
			for (size_t s = 0; s < sizeof(steps) / sizeof(steps[0]); s++)
			{
				size_t		len;

				fill(s % 2 == 0);
				len = pack(gzip, lens[l], steps[s], steps[3 - s] < 60000 ? steps[3 - s] : 60000);
				ok(unpacks_to(len, lens[l]), "level %d, %zu bytes in steps of %zu", level, lens[l],
				   steps[s]);
				kc_gzip_reset(gzip);
			}
		}
		kc_gzip_free(gzip);
	}
}

static void
test_header(void)
{
	KcGzip	   *gzip;
	KcError		err;
	size_t		len;
	size_t		len2;
	char		first[1000];

	fill(false);
	must(kc_gzip_create(&kc_alloc_malloc, 1, &gzip, &err) == KC_OK);
	len = pack(gzip, 500, 500, 1000);
	must(len < sizeof(first));
	memcpy(first, packed, len);
	is_bytes(first, 8, "\x1f\x8b\x08\0\0\0\0\0", 8, "neither name nor time in the header");
	kc_gzip_reset(gzip);
	len2 = pack(gzip, 500, 500, 1000);
	is_bytes(packed, len2, first, len, "equal input, equal output");
	kc_gzip_free(gzip);
}

static void
test_edges(void)
{
	KcGzip	   *gzip;
	KcError		err;
	const char *in = raw;
	char	   *out = packed;
	size_t		in_len = 100;
	size_t		out_len = 0;
	bool		done = true;

	must(kc_gzip_create(&kc_alloc_malloc, 6, &gzip, &err) == KC_OK);
	is(kc_gzip_run(gzip, &in, &in_len, &out, &out_len, true, &done, &err), KC_OK, "no room");
	ok(in_len == 100 && !done, "takes nothing");
	in_len = 0;
	out_len = sizeof(packed);
	is(kc_gzip_run(gzip, &in, &in_len, &out, &out_len, false, &done, &err), KC_OK, "no input");
	ok(out_len == sizeof(packed) && !done, "gives nothing");
	in = NULL;
	is(kc_gzip_run(gzip, &in, &in_len, &out, &out_len, true, NULL, &err), KC_OK, "finished");
	ok(out - packed == 20, "an empty stream");
	in = raw;
	in_len = 5;
	is(kc_gzip_run(gzip, &in, &in_len, &out, &out_len, true, &done, &err), KC_OK, "after the end");
	ok(done && in_len == 5 && out - packed == 20, "nothing happens");
	kc_gzip_free(gzip);
	kc_gzip_free(NULL);

	is(kc_gzip_create(&kc_alloc_malloc, 0, &gzip, &err), KC_ERR_INVALID, "level 0");
	ok(gzip == NULL, "gives none");
	is(kc_gzip_create(&kc_alloc_malloc, 10, &gzip, &err), KC_ERR_INVALID, "level 10");
	ok(strstr(err.what, "level 10") != NULL, "says so");
}

static void
test_memory(void)
{
	FailAlloc	fa;
	KcGzip	   *gzip;
	KcError		err;
	int			requests;

	for (int n = 1;; n++)
	{
		fail_alloc_init(&fa, n);
		if (kc_gzip_create(&fa.alloc, 1, &gzip, &err) == KC_OK)
			break;
		is(err.status, KC_ERR_NOMEM, "out of memory");
		ok(gzip == NULL && fa.live == 0, "no leak");
	}
	requests = fa.requests;
	fill(true);
	for (int i = 0; i < 3; i++)
	{
		(void) pack(gzip, sizeof(raw), 5000, 3000);
		kc_gzip_reset(gzip);
	}
	is(fa.requests, requests, "work asks for no memory");
	kc_gzip_free(gzip);
	is(fa.live, 0, "all is freed");
}

int
main(void)
{
	test_round_trip();
	test_header();
	test_edges();
	test_memory();
	return done_testing();
}
