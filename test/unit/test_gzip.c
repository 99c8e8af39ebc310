/*
 * test_gzip.c
 *	  The compressor with each library of this build, against zlib's own
 *	  decompressor: whole streams, and pieces of streams.
 */
#include "tap.h"

#include <zlib.h>

#include "core/gzip.h"
#include "fail_alloc.h"

#define RAW_MAX 700000

static char raw[RAW_MAX];
static char packed[RAW_MAX * 3];
static char unpacked[RAW_MAX + 1];

static const char *const engine_names[] = {"the best", "ISA-L", "libdeflate", "zlib"};

typedef enum Content
{
	RANDOM,						/* does not compress */
	LETTERS,
	CSV,
	ZEROS,						/* one long match */
	NCONTENTS
} Content;

static uint32_t seed = 12345;

static uint32_t
next_random(void)
{
	seed = seed * 1664525 + 1013904223;
	return seed >> 8;
}

static void
fill(Content content)
{
	size_t		len = 0;

	memset(raw, 0, sizeof(raw));
	while (content == CSV && len < sizeof(raw) - 100)
		len += (size_t) snprintf(raw + len, 100, "%zu,%u.%02u,2026-%02u-%02u,\"item %u\",%s\n", len, next_random() % 90000,
								 next_random() % 100, next_random() % 12 + 1, next_random() % 28 + 1,
								 next_random() % 1000, next_random() % 2 ? "true" : "false");
	for (size_t i = 0; i < sizeof(raw) && content < CSV; i++)
		raw[i] = (char) (content == RANDOM ? next_random() : 'a' + next_random() % 8);
}

static KcGzip *
make(KcGzipEngine engine, int level)
{
	KcGzip	   *gzip;
	KcError		err;

	must(kc_gzip_create(&kc_alloc_malloc, engine, level, &gzip, &err) == KC_OK);
	return gzip;
}

/* ISA-L knows three levels. */
static bool
knows(KcGzipEngine engine, int level)
{
	return kc_gzip_has_engine(engine) && (engine != KC_GZIP_ISAL || level <= 3);
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

/* One member, which ends where the data end. */
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
test_round_trip(KcGzipEngine engine, int level)
{
	static const size_t lens[] = {0, 1, 10, 2000, 40000, 300000};
	static const size_t steps[] = {1, 7, 4096, 300000};
	KcGzip	   *gzip = make(engine, level);
	int			wrong = 0;

	for (Content content = 0; content < NCONTENTS; content++)
	{
		fill(content);
		for (size_t l = 0; l < sizeof(lens) / sizeof(lens[0]); l++)
		{
			for (size_t s = 0; s < 16; s++)
			{
				size_t		out_step = steps[s / 4];
				size_t		len;

				/* each step costs, and a page of them shows what there is to see */
				if (lens[l] > 2000 && (steps[s % 4] < 4096 || out_step < 7))
					continue;
				len = pack(gzip, lens[l], steps[s % 4], out_step);
				if (!unpacks_to(len, lens[l]))
				{
					diag("content %d, %zu bytes in steps of %zu, out %zu", content, lens[l], steps[s % 4], out_step);
					wrong++;
				}
				kc_gzip_reset(gzip);
			}
		}
	}
	is(wrong, 0, engine_names[engine]);
	kc_gzip_free(gzip);
}

/* A compressor that was left in the middle begins anew all the same. */
static void
test_reset(KcGzipEngine engine)
{
	KcGzip	   *gzip = make(engine, 1);
	KcError		err;
	size_t		whole;

	fill(CSV);
	for (size_t left_at = 1; left_at < 200000; left_at = left_at * 3 + 1)
	{
		const char *in = raw;
		char	   *out = packed;
		size_t		in_len = left_at;
		size_t		out_len = 30000;
		bool		done;

		must(kc_gzip_run(gzip, &in, &in_len, &out, &out_len, false, &done, &err) == KC_OK);
		kc_gzip_reset(gzip);
		whole = pack(gzip, 100000, 9999, 8888);
		ok(!done && unpacks_to(whole, 100000), "%s: left after %zu bytes", engine_names[engine], left_at);
		kc_gzip_reset(gzip);
	}
	kc_gzip_free(gzip);
}

static void
test_header(KcGzipEngine engine)
{
	KcGzip	   *gzip = make(engine, 1);
	size_t		len;
	size_t		len2;
	char		first[1000];

	fill(LETTERS);
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
test_edges(KcGzipEngine engine)
{
	KcGzip	   *gzip = make(engine, 3);
	KcError		err;
	const char *in = raw;
	char	   *out = packed;
	size_t		in_len = 100;
	size_t		out_len = 0;
	bool		done = true;
	size_t		len;

	is(kc_gzip_run(gzip, &in, &in_len, &out, &out_len, true, &done, &err), KC_OK, "no room");
	ok(in_len == 100 && !done, "takes nothing");
	in_len = 0;
	out_len = sizeof(packed);
	is(kc_gzip_run(gzip, &in, &in_len, &out, &out_len, false, &done, &err), KC_OK, "no input");
	ok(out_len == sizeof(packed) && !done, "gives nothing");
	in = NULL;
	is(kc_gzip_run(gzip, &in, &in_len, &out, &out_len, true, NULL, &err), KC_OK, "finished");
	len = (size_t) (out - packed);
	ok(len >= 20 && len <= 30 && unpacks_to(len, 0), "an empty stream");
	in = raw;
	in_len = 5;
	is(kc_gzip_run(gzip, &in, &in_len, &out, &out_len, true, &done, &err), KC_OK, "after the end");
	ok(done && in_len == 5 && out == packed + len, "nothing happens");
	kc_gzip_free(gzip);
}

/* Room for kc_gzip_bound() bytes is enough for one call, whatever the content. */
static void
test_bound(KcGzipEngine engine, int level)
{
	static const size_t lens[] = {0, 1, 100, 65537, RAW_MAX};
	KcGzip	   *gzip = make(engine, level);
	int			wrong = 0;

	for (Content content = 0; content < NCONTENTS; content++)
	{
		fill(content);
		for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++)
		{
			const char *in = raw;
			char	   *out = packed;
			size_t		in_len = lens[i];
			size_t		room = kc_gzip_bound(in_len);
			bool		done;
			KcError		err;

			must(room <= sizeof(packed));
			must(kc_gzip_run(gzip, &in, &in_len, &out, &room, true, &done, &err) == KC_OK);
			if (!done || in_len != 0 || !unpacks_to((size_t) (out - packed), lens[i]))
				wrong++;
			kc_gzip_reset(gzip);
		}
	}
	is(wrong, 0, "at once");
	kc_gzip_free(gzip);
}

static void
test_choice(void)
{
	KcGzip	   *gzip;
	KcError		err;

	kc_gzip_free(NULL);
	for (KcGzipEngine engine = KC_GZIP_BEST; engine <= KC_GZIP_ZLIB; engine++)
	{
		if (!kc_gzip_has_engine(engine))
		{
			is(kc_gzip_create(&kc_alloc_malloc, engine, 1, &gzip, &err), KC_ERR_INVALID, "not in this build");
			ok(gzip == NULL && strstr(err.what, "build") != NULL, "says so");
			continue;
		}
		for (int level = 0; level <= 10; level += 10)
		{
			is(kc_gzip_create(&kc_alloc_malloc, engine, level, &gzip, &err), KC_ERR_INVALID, "no such level");
			ok(gzip == NULL, "gives none");
			ok(strstr(err.what, level == 0 ? "level 0" : "level 10") != NULL, "says so");
		}
	}
	ok(kc_gzip_has_engine(KC_GZIP_ZLIB), "zlib is always there");
	if (kc_gzip_has_engine(KC_GZIP_ISAL))
	{
		is(kc_gzip_create(&kc_alloc_malloc, KC_GZIP_ISAL, 4, &gzip, &err), KC_ERR_INVALID, "ISA-L's levels end");
		is_str(kc_gzip_library(), "ISA-L", "the best one");
	}
	else
		is_str(kc_gzip_library(), kc_gzip_has_engine(KC_GZIP_LIBDEFLATE) ? "libdeflate and zlib" : "zlib",
			   "the best one");
	is(kc_gzip_step_engine(KC_GZIP_BEST, 1), kc_gzip_has_engine(KC_GZIP_ISAL) ? KC_GZIP_ISAL : KC_GZIP_ZLIB,
	   "for steps");
	is(kc_gzip_step_engine(KC_GZIP_BEST, 4), KC_GZIP_ZLIB, "that ISA-L does not know the level of");
}

/* Is libdeflate used where it can be?  Its result differs from zlib's. */
static void
test_whole(void)
{
	KcGzip	   *gzip = make(KC_GZIP_LIBDEFLATE, 1);
	size_t		whole;
	size_t		steps;

	fill(CSV);
	whole = pack(gzip, 200000, 200000, kc_gzip_bound(200000));
	kc_gzip_reset(gzip);
	steps = pack(gzip, 200000, 100000, kc_gzip_bound(200000));
	ok(whole < steps, "at once it is libdeflate's (%zu bytes), in steps zlib's (%zu)", whole, steps);
	kc_gzip_free(gzip);
}

/* ---- pieces ---- */

/* Add one piece to *len packed bytes, compressed into room of out_step bytes at a time. */
static void
add_piece(KcGzip *gzip, size_t from, size_t piece_len, bool last, size_t in_step, size_t out_step, size_t *len)
{
	size_t		before = from < KC_GZIP_WINDOW ? from : KC_GZIP_WINDOW;
	const char *in = raw + from;
	char	   *out = packed + *len;
	size_t		fed = 0;
	bool		done = false;
	KcError		err;

	must(kc_gzip_begin_piece(gzip, kc_slice_n(raw + from - before, before), &err) == KC_OK);
	while (!done)
	{
		size_t		in_len = piece_len - fed < in_step ? piece_len - fed : in_step;
		size_t		had = in_len;
		size_t		room = out_step;
		bool		finish = fed + in_len == piece_len;

		must(kc_gzip_run_piece(gzip, &in, &in_len, &out, &room, finish, last, &done, &err) == KC_OK);
		fed += had - in_len;
		must(out < packed + sizeof(packed) - out_step);
	}
	*len = (size_t) (out - packed);
}

/* Pieces by two compressors in turn; gives the packed length. */
static size_t
join(KcGzip *const gzips[2], size_t total, size_t piece_len, size_t in_step, size_t out_step)
{
	size_t		len = KC_GZIP_HEADER_SIZE;
	uint32_t	crc = 0;
	size_t		at = 0;

	kc_gzip_header(packed);
	for (int i = 0;; i++)
	{
		KcGzip	   *gzip = gzips[i % 2];
		/* sometimes the last one is empty */
		bool		last = at == total || (total - at <= piece_len && total % 2 == 0);
		size_t		now = total - at < piece_len ? total - at : piece_len;

		add_piece(gzip, at, now, last, in_step, out_step, &len);
		crc = kc_gzip_join_crc(crc, kc_gzip_piece_crc(gzip), now);
		at += now;
		if (last)
			break;
	}
	kc_gzip_trailer(packed + len, crc, total);
	return len + KC_GZIP_TRAILER_SIZE;
}

static void
test_pieces(KcGzipEngine engine, int level)
{
	static const size_t totals[] = {0, 1, 2, 1000, 65536, 100001, 600000};
	static const size_t piece_lens[] = {1, 100, 5000, 32768, 100000, 700000};
	KcGzip	   *gzips[2] = {make(engine, level), make(engine, level)};
	int			wrong = 0;

	for (int i = 0; i < NCONTENTS * 7 * 6; i++)
	{
		size_t		total = totals[i / 6 % 7];
		size_t		piece_len = piece_lens[i % 6];
		size_t		len;

		if (i % 42 == 0)
			fill((Content) (i / 42));
		if (total / piece_len > 200)
			continue;
		/* little room shows every place at which to go on */
		len = join(gzips, total, piece_len, i % 2 ? 777 : RAW_MAX,
				   total < 2000 ? KC_GZIP_PIECE_ROOM : i % 3 ? 300 : RAW_MAX);
		if (!unpacks_to(len, total))
		{
			diag("content %d, %zu bytes in pieces of %zu", i / 42, total, piece_len);
			wrong++;
		}
	}
	is(wrong, 0, "pieces");
	kc_gzip_free(gzips[0]);
	kc_gzip_free(gzips[1]);
}

/* What pieces cost: not even a percent, thanks to what they are told came before. */
static void
test_ratio(KcGzipEngine engine)
{
	KcGzip	   *gzips[2] = {make(engine, 1), make(engine, 1)};
	KcGzip	   *zlib = make(KC_GZIP_ZLIB, 1);
	size_t		yardstick;
	size_t		stream;
	size_t		pieces;

	fill(CSV);
	yardstick = pack(zlib, RAW_MAX, 256 * 1024, RAW_MAX);
	stream = pack(gzips[0], RAW_MAX, 256 * 1024, RAW_MAX);
	pieces = join(gzips, RAW_MAX, 256 * 1024, RAW_MAX, RAW_MAX);
	must(unpacks_to(pieces, RAW_MAX));
	ok(stream <= yardstick + yardstick * 3 / 100, "%s: %zu bytes, zlib's level 1 has %zu", engine_names[engine],
	   stream, yardstick);
	ok(pieces <= yardstick + yardstick * 3 / 100 && pieces <= stream + stream / 100, "in pieces %zu", pieces);
	kc_gzip_free(gzips[0]);
	kc_gzip_free(gzips[1]);
	kc_gzip_free(zlib);
}

static void
test_memory(KcGzipEngine engine)
{
	FailAlloc	fa;
	KcGzip	   *gzip;
	KcError		err;
	int			requests;
	size_t		len = 0;

	for (int n = 1;; n++)
	{
		fail_alloc_init(&fa, n);
		if (kc_gzip_create(&fa.alloc, engine, 1, &gzip, &err) == KC_OK)
			break;
		is(err.status, KC_ERR_NOMEM, "out of memory");
		ok(gzip == NULL && fa.live == 0, "no leak");
	}
	requests = fa.requests;
	ok(requests > 1, "it was asked for");
	fill(RANDOM);
	for (int i = 0; i < 3; i++)
	{
		(void) pack(gzip, 300000, 5000, 3000);
		kc_gzip_reset(gzip);
		(void) pack(gzip, 300000, 300000, kc_gzip_bound(300000));
		kc_gzip_reset(gzip);
		add_piece(gzip, 100000, 100000, false, 100000, 5000, &len);
		kc_gzip_reset(gzip);
		len = 0;
	}
	is(fa.requests, requests, "work asks for no memory");
	kc_gzip_free(gzip);
	is(fa.live, 0, "all is freed");
}

int
main(void)
{
	test_choice();
	for (KcGzipEngine engine = KC_GZIP_BEST; engine <= KC_GZIP_ZLIB; engine++)
	{
		if (!kc_gzip_has_engine(engine))
			continue;
		for (int level = 1; level <= 9; level++)
		{
			if (!knows(engine, level) || (level > 3 && level % 3 != 0))
				continue;
			test_round_trip(engine, level);
			test_pieces(engine, level);
			test_bound(engine, level);
		}
		test_reset(engine);
		test_header(engine);
		test_edges(engine);
		test_ratio(engine);
		test_memory(engine);
	}
	if (kc_gzip_has_engine(KC_GZIP_LIBDEFLATE))
		test_whole();
	return done_testing();
}
