/*
 * zipline_streams.h
 *	  What tests of a zipline share: an allocator that only its owner may use, a
 *	  consumer that unpacks each stream as it comes, and streams of many sizes.
 */
#ifndef KC_TEST_ZIPLINE_STREAMS_H
#define KC_TEST_ZIPLINE_STREAMS_H

#include <poll.h>
#include <pthread.h>
#include <zlib.h>

#include "core/zipline.h"
#include "tap.h"

/* An allocator that notices when another thread than the first comes to it. */
typedef struct OwnerAlloc
{
	KcAlloc		alloc;
	pthread_t	owner;
	bool		foreign;
	size_t		largest;
	int			requests;
} OwnerAlloc;

static void *TAP_UNUSED
owner_realloc(void *arg, void *ptr, size_t size)
{
	OwnerAlloc *oa = arg;

	if (!pthread_equal(oa->owner, pthread_self()))
		oa->foreign = true;
	if (size > oa->largest)
		oa->largest = size;
	oa->requests++;
	return realloc(ptr, size);
}

static void TAP_UNUSED
owner_free(void *arg, void *ptr)
{
	OwnerAlloc *oa = arg;

	if (!pthread_equal(oa->owner, pthread_self()))
		oa->foreign = true;
	free(ptr);
}

static void TAP_UNUSED
owner_alloc_init(OwnerAlloc *oa)
{
	*oa = (OwnerAlloc) {
		.alloc = {owner_realloc, owner_free, oa},
		.owner = pthread_self()
	};
}

/* What the consumer has got of one stream, checked as it comes. */
typedef struct Consumer
{
	KcBuf		packed;
	bool		open;			/* within a stream */
	int			streams;
	int			wrong;
	size_t		block_size;
	const char *raw;			/* what the streams must give, one after the other */
	const size_t *lens;
} Consumer;

static void TAP_UNUSED
check_stream(Consumer *c)
{
	size_t		len = c->lens[c->streams++];
	char	   *unpacked = malloc(len + 1);
	z_stream	z = {0};

	must(unpacked != NULL);
	must(inflateInit2(&z, MAX_WBITS + 16) == Z_OK);
	z.next_in = (Bytef *) c->packed.data;
	z.avail_in = (uInt) c->packed.len;
	z.next_out = (Bytef *) unpacked;
	z.avail_out = (uInt) len + 1;
	if (inflate(&z, Z_FINISH) != Z_STREAM_END || z.avail_in != 0 || z.total_out != len ||
		memcmp(unpacked, c->raw, len) != 0)
		c->wrong++;
	inflateEnd(&z);
	free(unpacked);
	c->raw += len;
	kc_buf_reset(&c->packed);
}

static void TAP_UNUSED
consume(Consumer *c, const KcZipBlock *block)
{
	if (block->begins_stream == c->open || block->len == 0 ||
		(block->len != c->block_size && !block->ends_stream))
		c->wrong++;
	kc_buf_append(&c->packed, block->data, block->len);
	c->open = !block->ends_stream;
	if (block->ends_stream)
		check_stream(c);
}

static void TAP_UNUSED
take_all(KcZipline *z, Consumer *c)
{
	KcZipBlock *block;
	KcError		err;

	for (;;)
	{
		must(kc_zipline_take(z, &block, &err) == KC_OK);
		if (block == NULL)
			return;
		consume(c, block);
		kc_zipline_give_back(z, block);
	}
}

/* Nothing to do but wait; without a thread there is nothing to wait for. */
static void TAP_UNUSED
wait_for(KcZipline *z)
{
	struct pollfd fd = {.fd = kc_zipline_fd(z), .events = POLLIN};

	must(fd.fd >= 0);
	must(poll(&fd, 1, 20000) == 1);
	kc_zipline_ack(z);
}

/* A zipline with its threads running. */
static KcZipline *TAP_UNUSED
started(const KcAlloc *alloc, const KcZiplineOptions *options)
{
	KcZipline  *z;
	KcError		err;

	must(kc_zipline_create(alloc, options, &z, &err) == KC_OK);
	kc_zipline_start(z);
	must((kc_zipline_fd(z) >= 0) == (options->threads > 0));
	return z;
}

static uint32_t seed = 1;

static uint32_t TAP_UNUSED
next_random(void)
{
	seed = seed * 1664525 + 1013904223;
	return seed >> 8;
}

static void TAP_UNUSED
fill_raw(char *raw, size_t len)
{
	for (size_t i = 0; i < len; i++)
		raw[i] = (char) (next_random() % 4 == 0 ? next_random() : 'a' + i % 3);
}

static void TAP_UNUSED
run_streams(const KcZiplineOptions *options, const size_t *lens, int nstreams, const char *name)
{
	KcZipline  *z;
	OwnerAlloc	oa;
	Consumer	c = {.block_size = options->block_size, .lens = lens};
	size_t		total = 0;
	char	   *raw;
	const char *next;

	for (int i = 0; i < nstreams; i++)
		total += lens[i];
	raw = malloc(total + 1);
	must(raw != NULL);
	fill_raw(raw, total);
	c.raw = next = raw;
	kc_buf_init(&c.packed, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	owner_alloc_init(&oa);
	z = started(&oa.alloc, options);

	for (int i = 0; i < nstreams; i++)
	{
		size_t		left = lens[i];
		bool		end = false;

		while (!end)
		{
			size_t		len = next_random() % (2 * options->chunk_size);
			KcBuf	   *chunk = kc_zipline_get_chunk(z);

			take_all(z, &c);
			if (chunk == NULL)
			{
				if (options->threads > 0)
					wait_for(z);
				continue;
			}
			if (len > left)
				len = left;
			kc_buf_append(chunk, next, len);
			next += len;
			left -= len;
			/* sometimes the end comes in an empty chunk of its own */
			end = left == 0 && next_random() % 2 == 0;
			kc_zipline_put(z, chunk, end);
		}
	}
	take_all(z, &c);
	while (c.streams < nstreams)
	{
		wait_for(z);
		take_all(z, &c);
	}
	ok(c.wrong == 0 && !c.open && !oa.foreign, "%s, engine %d, %d threads: %d streams of %zu bytes in all", name,
	   options->engine, options->threads, nstreams, total);
	kc_zipline_free(z);
	kc_buf_free(&c.packed);
	free(raw);
}

/* Put raw as one stream and take the blocks; gives how many there were. */
static int TAP_UNUSED
one_stream(KcZipline *z, const char *raw, size_t len)
{
	KcBuf	   *chunk = kc_zipline_get_chunk(z);
	KcZipBlock *block = NULL;
	KcError		err;
	int			n = 0;
	bool		end = false;

	must(chunk != NULL);
	kc_buf_append(chunk, raw, len);
	kc_zipline_put(z, chunk, true);
	while (!end)
	{
		must(kc_zipline_take(z, &block, &err) == KC_OK);
		if (block == NULL)
		{
			wait_for(z);
			continue;
		}
		n++;
		end = block->ends_stream;
		kc_zipline_give_back(z, block);
	}
	return n;
}

#endif							/* KC_TEST_ZIPLINE_STREAMS_H */
