/*
 * test_zipline.c
 *	  Compression beside the query, however many threads it has: what comes out
 *	  is what went in, within the memory and the time that it may take.
 */
#include "fail_alloc.h"
#include "zipline_streams.h"

static void
test_streams(KcGzipEngine engine, int threads)
{
	static const size_t lens[] = {0, 1, 100, 5000, 100000, 0, 700000, 65536, 3, 40000};
	const int	n = (int) (sizeof(lens) / sizeof(lens[0]));
	const KcZiplineOptions usual = {.engine = engine, .level = 1, .chunk_size = 5000, .nchunks = 3 + threads,
	.block_size = 4000, .nblocks = 3, .threads = threads};
	KcZiplineOptions options = usual;

	run_streams(&options, lens, n, "small blocks");
	options.block_size = 1;
	run_streams(&options, lens, 4, "blocks of one byte");
	options = usual;
	options.block_size = 1 << 20;
	options.chunk_size = 1 << 17;
	run_streams(&options, lens, n, "large blocks");
	/* what comes before a chunk is in several others */
	options.chunk_size = 3;
	run_streams(&options, lens, 4, "tiny chunks");
	options = usual;
	options.nchunks = options.nblocks = 2;
	options.level = engine == KC_GZIP_ISAL ? 3 : 9;
	run_streams(&options, lens, n, "two of each");
}

static void
test_lazy(void)
{
	KcZiplineOptions options = {.level = 1, .chunk_size = 1 << 20, .nchunks = 4,
	.block_size = 8 << 20, .nblocks = 4, .threads = 1};
	KcZipline  *z;
	OwnerAlloc	oa;
	int			before;

	owner_alloc_init(&oa);
	z = started(&oa.alloc, &options);
	ok(oa.largest < options.chunk_size, "at first there are neither chunks nor blocks");
	before = oa.requests;
	is(one_stream(z, "a,b\n", 4), 1, "a small result is one block");
	ok(oa.requests - before <= 3, "for which there are one chunk and one or two blocks");
	kc_zipline_free(z);
}

static void
test_giant_row(int threads)
{
	KcZiplineOptions options = {.level = 1, .chunk_size = 1000, .nchunks = 2,
	.block_size = 100000, .nblocks = 2, .threads = threads};
	KcZipline  *z;
	KcBuf	   *chunks[2];
	char	   *row = malloc(1000000);

	must(row != NULL);
	fill_raw(row, 1000000);
	z = started(&kc_alloc_malloc, &options);
	ok(one_stream(z, row, 1000000) > 1, "a row much larger than a chunk");
	/* The block may come before the chunk: wait for the chunk. */
	chunks[0] = kc_zipline_get_chunk(z);
	must(chunks[0] != NULL);
	while ((chunks[1] = kc_zipline_get_chunk(z)) == NULL)
		wait_for(z);
	ok(chunks[0]->cap < 2000 && chunks[1]->cap < 2000, "and chunks have their usual size again");
	ok(kc_zipline_get_chunk(z) == NULL, "there are no more than two");
	kc_buf_str(chunks[0], "unused");
	kc_zipline_unget(z, chunks[0]);
	kc_zipline_unget(z, chunks[1]);
	chunks[0] = kc_zipline_get_chunk(z);
	is(chunks[0]->len, 0, "a chunk comes empty");
	kc_zipline_put(z, chunks[0], false);
	is(one_stream(z, "x", 1), 1, "putting an empty chunk in the middle does nothing");
	kc_zipline_free(z);
	free(row);
}

static void
test_options(void)
{
	const KcZiplineOptions good = {.level = 1, .chunk_size = 10, .nchunks = 2,
	.block_size = 10, .nblocks = 2};
	KcZiplineOptions bad[11];
	KcZipline  *z;
	KcError		err;

	for (int i = 0; i < 11; i++)
		bad[i] = good;
	bad[0].level = 0;
	bad[1].chunk_size = 0;
	bad[2].chunk_size = SIZE_MAX;
	bad[3].block_size = 0;
	bad[4].nchunks = 1;
	bad[5].nblocks = 1;
	bad[6].nchunks = 1000000;
	bad[7].nblocks = 1000000;
	bad[8].threads = -1;
	bad[9].threads = KC_ZIPLINE_MAX_THREADS + 1;
	bad[10].level = 10;
	for (int i = 0; i < 11; i++)
	{
		is(kc_zipline_create(&kc_alloc_malloc, &bad[i], &z, &err), KC_ERR_INVALID, "no sense");
		ok(z == NULL, "gives none");
	}
}

/* A failed chunk ends the work, and everybody learns of it. */
static void
test_failed_chunk(void)
{
	KcZiplineOptions options = {.level = 1, .chunk_size = 1000, .nchunks = 2,
	.block_size = 1000, .nblocks = 2};

	for (int threads = 0; threads < 4; threads++)
	{
		KcZipline  *z;
		KcZipBlock *block;
		KcError		err;
		KcBuf	   *chunk;

		options.threads = threads;
		z = started(&kc_alloc_malloc, &options);
		chunk = kc_zipline_get_chunk(z);
		must(chunk != NULL);
		kc_buf_str(chunk, "x");
		chunk->failed = KC_ERR_LIMIT;
		kc_zipline_put(z, chunk, true);
		if (threads > 0)
			wait_for(z);
		is(kc_zipline_take(z, &block, &err), KC_ERR_LIMIT, "the chunk's failure");
		ok(block == NULL, "and no block");
		for (int i = 0; i < 5; i++)
		{
			chunk = kc_zipline_get_chunk(z);
			must(chunk != NULL);
			kc_buf_str(chunk, "x");
			kc_zipline_put(z, chunk, false);
		}
		is(kc_zipline_take(z, &block, &err), KC_ERR_LIMIT, "stays, and nothing gets stuck");
		kc_zipline_free(z);
	}
}

/* The n-th allocation fails: an error or slower work, no leak, no hang. */
static void
test_memory(int threads)
{
	KcZiplineOptions options = {.level = 1, .chunk_size = 300, .nchunks = 2,
	.block_size = 100, .nblocks = 3, .threads = threads};
	int			failures = 0;

	for (int n = 1;; n++)
	{
		FailAlloc	fa;
		KcZipline  *z = NULL;
		KcZipBlock *block;
		KcError		err;
		KcStatus	status;
		KcBuf	   *chunk;
		bool		end = false;

		fail_alloc_init(&fa, n);
		status = kc_zipline_create(&fa.alloc, &options, &z, &err);
		if (status == KC_OK)
			kc_zipline_start(z);
		for (int i = 0; status == KC_OK && i < 3; i++)
		{
			while ((chunk = kc_zipline_get_chunk(z)) == NULL && status == KC_OK)
			{
				status = kc_zipline_take(z, &block, &err);
				if (block != NULL)
					kc_zipline_give_back(z, block);
				else if (status == KC_OK)
					wait_for(z);
			}
			if (chunk != NULL)
			{
				/* outgrows the chunk, so that this allocates, too */
				for (int k = 0; k < 1000; k++)
					kc_buf_u64(chunk, next_random());
				kc_zipline_put(z, chunk, i == 2);
			}
		}
		while (status == KC_OK && !end)
		{
			status = kc_zipline_take(z, &block, &err);
			if (block != NULL)
			{
				end = block->ends_stream;
				kc_zipline_give_back(z, block);
			}
			else if (status == KC_OK && threads > 0)
				wait_for(z);
		}
		if (status != KC_OK)
		{
			failures++;
			is(status, KC_ERR_NOMEM, "out of memory");
			is(err.status, KC_ERR_NOMEM, "as the error says");
		}
		kc_zipline_free(z);
		is(fa.live, 0, "nothing leaks");
		if (!fa.has_failed)
			break;
	}
	ok(failures >= 8, "%d allocations could not be done without", failures);
}

/* The owner's thread is lent for a bounded time only. */
static void
test_bounded_call(void)
{
	const size_t len = 8 << 20;
	KcZiplineOptions options = {.level = 1, .chunk_size = 1 << 18, .nchunks = 2,
	.block_size = 16 << 20, .nblocks = 2};
	Consumer	c = {.block_size = options.block_size, .lens = &len};
	KcZipline  *z = started(&kc_alloc_malloc, &options);
	KcBuf	   *chunk = kc_zipline_get_chunk(z);
	char	   *raw = malloc(len);
	int			calls = 0;

	must(chunk != NULL && raw != NULL);
	fill_raw(raw, len);
	c.raw = raw;
	kc_buf_init(&c.packed, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_append(chunk, raw, len);
	kc_zipline_put(z, chunk, true);
	ok(kc_zipline_unfinished(z), "a giant row is not compressed in one call");
	while (kc_zipline_unfinished(z))
	{
		take_all(z, &c);
		calls++;
	}
	take_all(z, &c);
	ok(calls >= 10 && c.streams == 1 && c.wrong == 0, "but in many (%d)", calls);
	kc_zipline_free(z);
	kc_buf_free(&c.packed);
	free(raw);
}

/* Once stopped, blocks that come back are not filled any more. */
static void
test_stop(void)
{
	KcZiplineOptions options = {.level = 1, .chunk_size = 100000, .nchunks = 2,
	.block_size = 1000, .nblocks = 2};
	KcZipline  *z = started(&kc_alloc_malloc, &options);
	KcBuf	   *chunk = kc_zipline_get_chunk(z);
	KcZipBlock *blocks[2];
	KcZipBlock *none;
	KcError		err;
	bool		untouched = true;

	must(chunk != NULL && kc_buf_reserve(chunk, 100000));
	fill_raw(chunk->data, 100000);
	chunk->len = 100000;
	kc_zipline_put(z, chunk, true);
	for (int i = 0; i < 2; i++)
	{
		must(kc_zipline_take(z, &blocks[i], &err) == KC_OK && blocks[i] != NULL);
		memset(blocks[i]->data, 'u', blocks[i]->len);
	}
	kc_zipline_stop(z);
	for (int i = 0; i < 2; i++)
	{
		kc_zipline_give_back(z, blocks[i]);
		for (size_t at = 0; at < options.block_size; at++)
			untouched = untouched && blocks[i]->data[at] == 'u';
	}
	ok(untouched, "nothing is compressed after the end");
	is(kc_zipline_take(z, &none, &err), KC_ERR_CANCELLED, "as whoever asks is told");
	kc_zipline_free(z);
}

int
main(void)
{
	for (KcGzipEngine engine = KC_GZIP_BEST; engine <= KC_GZIP_ZLIB; engine++)
	{
		for (int threads = 0; threads <= 4; threads += threads < 2 ? 1 : 2)
		{
			if (kc_gzip_has_engine(engine))
				test_streams(engine, threads);
		}
	}
	test_lazy();
	test_giant_row(1);
	test_giant_row(3);
	test_options();
	test_failed_chunk();
	test_bounded_call();
	test_stop();
	test_memory(0);
	test_memory(1);
	test_memory(3);
	return done_testing();
}
