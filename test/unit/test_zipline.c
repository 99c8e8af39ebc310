/*
 * test_zipline.c
 *	  Compression beside the query: with threads, with one, without any, and
 *	  with everything going wrong.
 */
#include "tap.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "core/zipline.h"
#include "fail_alloc.h"

/* An allocator that notices when another thread than the first comes to it. */
typedef struct OwnerAlloc
{
	KcAlloc		alloc;
	pthread_t	owner;
	bool		foreign;
	size_t		largest;
	int			requests;
} OwnerAlloc;

static void *
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

static void
owner_free(void *arg, void *ptr)
{
	OwnerAlloc *oa = arg;

	if (!pthread_equal(oa->owner, pthread_self()))
		oa->foreign = true;
	free(ptr);
}

static void
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

static void
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

static void
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

static void
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
static void
wait_for(KcZipline *z)
{
	struct pollfd fd = {.fd = kc_zipline_fd(z), .events = POLLIN};

	must(fd.fd >= 0);
	must(poll(&fd, 1, 20000) == 1);
	kc_zipline_ack(z);
}

/* A zipline with its threads running. */
static KcZipline *
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

static uint32_t
next_random(void)
{
	seed = seed * 1664525 + 1013904223;
	return seed >> 8;
}

static void
fill_raw(char *raw, size_t len)
{
	for (size_t i = 0; i < len; i++)
		raw[i] = (char) (next_random() % 4 == 0 ? next_random() : 'a' + i % 3);
}

static void
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

/*
 * The first stream is done before there are threads, and the next one begins
 * without them, too, when that is not so.
 */
static void
test_late_start(int threads)
{
	static const size_t lens[] = {9000, 9000, 9000};
	KcZiplineOptions options = {.level = 1, .chunk_size = 3000, .nchunks = 8, .block_size = 100, .nblocks = 2,
	.threads = threads};
	Consumer	c = {.block_size = options.block_size, .lens = lens};
	KcZipline  *z;
	KcBuf	   *chunk;
	KcError		err;
	char		raw[27000];

	fill_raw(raw, sizeof(raw));
	c.raw = raw;
	kc_buf_init(&c.packed, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	must(kc_zipline_create(&kc_alloc_malloc, &options, &z, &err) == KC_OK);
	for (int i = 0; i < 9; i++)
	{
		chunk = kc_zipline_get_chunk(z);
		must(chunk != NULL);
		kc_buf_append(chunk, raw + i * 3000, 3000);
		kc_zipline_put(z, chunk, i % 3 == 2);
		kc_zipline_start(z);
		if (i == 4)
			is(kc_zipline_fd(z), -1, "no threads in the middle of a stream");
		if (i >= 4)
			take_all(z, &c);
	}
	kc_zipline_start(z);
	while (c.streams < 3)
	{
		wait_for(z);
		take_all(z, &c);
	}
	ok(c.wrong == 0, "threads that begin in the middle");
	ok(kc_zipline_fd(z) >= 0, "they do, between streams");
	kc_zipline_free(z);
	kc_buf_free(&c.packed);
}

/* Put raw as one stream and take the blocks; gives how many there were. */
static int
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

static int64_t
now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void
test_free_in_the_middle(int threads)
{
	const size_t len = 96 << 20;
	KcZiplineOptions options = {.level = 9, .chunk_size = 1 << 20, .nchunks = 2,
	.block_size = 32 << 20, .nblocks = 4, .threads = threads};
	KcZipline  *z;
	KcBuf	   *chunk;
	int64_t		start;
	int64_t		took;

	/* Many seconds of work: text that level 9 has to look at for long. */
	z = started(&kc_alloc_malloc, &options);
	chunk = kc_zipline_get_chunk(z);
	must(chunk != NULL && kc_buf_reserve(chunk, len));
	fill_raw(chunk->data, 1 << 20);
	for (size_t at = 1 << 20; at < len; at += 1 << 20)
		memcpy(chunk->data + at, chunk->data, 1 << 20);
	chunk->len = len;
	kc_zipline_put(z, chunk, true);
	start = now_ms();
	kc_zipline_free(z);
	took = now_ms() - start;
	ok(took < 3000, "freeing does not wait for the chunk (%d ms)", (int) took);

	/* idle, waiting for a block, never used */
	options.block_size = 10;
	options.nblocks = 2;
	z = started(&kc_alloc_malloc, &options);
	chunk = kc_zipline_get_chunk(z);
	must(chunk != NULL);
	kc_buf_append(chunk, "some text that needs more than two blocks", 40);
	kc_zipline_put(z, chunk, true);
	wait_for(z);
	kc_zipline_free(z);
	z = started(&kc_alloc_malloc, &options);
	kc_zipline_free(z);
	kc_zipline_free(NULL);
	ok(true, "freed while waiting, and unused");
}

static void
test_wake_ups(void)
{
	KcZiplineOptions options = {.level = 1, .chunk_size = 1000, .nchunks = 2,
	.block_size = 1000, .nblocks = 2, .threads = 1};
	struct pollfd fd = {.events = POLLIN};
	KcZipline  *z;
	KcZipBlock *block;
	KcBuf	   *chunks[2];
	KcError		err;

	z = started(&kc_alloc_malloc, &options);
	fd.fd = kc_zipline_fd(z);
	is(poll(&fd, 1, 0), 0, "nothing to say at first");
	kc_zipline_ack(z);
	chunks[0] = kc_zipline_get_chunk(z);
	must(chunks[0] != NULL);
	kc_buf_str(chunks[0], "x");
	kc_zipline_put(z, chunks[0], true);
	is(poll(&fd, 1, 20000), 1, "it rings when there is something to fetch");
	is(poll(&fd, 1, 0), 1, "until that is acknowledged");

	/* The chunk's return is the last that the thread does. */
	chunks[0] = kc_zipline_get_chunk(z);
	must(chunks[0] != NULL);
	while ((chunks[1] = kc_zipline_get_chunk(z)) == NULL)
		wait_for(z);
	kc_zipline_ack(z);
	is(poll(&fd, 1, 0), 0, "then it is quiet");
	must(kc_zipline_take(z, &block, &err) == KC_OK);
	ok(block != NULL && block->begins_stream && block->ends_stream, "the block is there");
	kc_zipline_give_back(z, block);
	kc_zipline_free(z);

	options.threads = 0;
	z = started(&kc_alloc_malloc, &options);
	is(kc_zipline_fd(z), -1, "without a thread there is no bell");
	kc_zipline_ack(z);
	is(one_stream(z, "x", 1), 1, "and nothing to wait for");
	kc_zipline_free(z);
}

/* The signals that all threads besides ours have blocked, from /proc. */
static uint64_t
blocked_in_helpers(void)
{
	DIR		   *tasks = opendir("/proc/self/task");
	struct dirent *entry;
	uint64_t	mask = UINT64_MAX;

	must(tasks != NULL);
	while ((entry = readdir(tasks)) != NULL)
	{
		char		path[300];
		char		line[200];
		FILE	   *status;

		if (entry->d_name[0] == '.' || atoi(entry->d_name) == getpid())
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%s/status", entry->d_name);
		status = fopen(path, "r");
		while (status != NULL && fgets(line, sizeof(line), status) != NULL)
		{
			if (strncmp(line, "SigBlk:", 7) == 0)
				mask &= strtoull(line + 7, NULL, 16);
		}
		if (status != NULL)
			fclose(status);
	}
	closedir(tasks);
	return mask;
}

static void
test_signals(void)
{
	static const int signals[] = {
		SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM, SIGCHLD, SIGPIPE, SIGURG
	};
	KcZiplineOptions options = {.level = 1, .chunk_size = 1000, .nchunks = 2,
	.block_size = 1000, .nblocks = 2, .threads = 3};
	sigset_t	mine;
	KcZipline  *z;

	if (access("/proc/self/task", R_OK) != 0)
	{
		ok(true, "the signal mask of a thread # SKIP no /proc");
		return;
	}
	z = started(&kc_alloc_malloc, &options);
	(void) one_stream(z, "x", 1);
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		ok((blocked_in_helpers() >> (signals[i] - 1) & 1) != 0, "helpers block signal %d",
		   signals[i]);
	must(pthread_sigmask(SIG_SETMASK, NULL, &mine) == 0);
	ok(!sigismember(&mine, SIGINT) && !sigismember(&mine, SIGALRM), "and we do not");
	kc_zipline_free(z);
}

static void
test_no_thread(void)
{
	KcZiplineOptions options = {.level = 1, .chunk_size = 1000, .nchunks = 2,
	.block_size = 1000, .nblocks = 2, .threads = 1};
	struct rlimit before;
	struct rlimit none;
	KcZipline  *z;
	KcError		err;

	must(getrlimit(RLIMIT_NOFILE, &before) == 0);
	none = before;
	none.rlim_cur = 0;
	must(setrlimit(RLIMIT_NOFILE, &none) == 0);
	must(kc_zipline_create(&kc_alloc_malloc, &options, &z, &err) == KC_OK);
	kc_zipline_start(z);
	must(setrlimit(RLIMIT_NOFILE, &before) == 0);
	is(kc_zipline_fd(z), -1, "without a descriptor for the bell there is no thread");
	is(one_stream(z, "x", 1), 1, "and it works without");
	kc_zipline_free(z);
}

static int	threads_to_be_had = -1; /* -1: as many as one likes */

extern int	__real_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run) (void *), void *arg);
extern int	__wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run) (void *), void *arg);

/* The linker puts this in the place of pthread_create(). */
int
__wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*run) (void *), void *arg)
{
	if (threads_to_be_had == 0)
		return EAGAIN;
	if (threads_to_be_had > 0)
		threads_to_be_had--;
	return __real_pthread_create(thread, attr, run, arg);
}

static int
count_threads(void)
{
	DIR		   *tasks = opendir("/proc/self/task");
	int			n = 0;

	must(tasks != NULL);
	while (readdir(tasks) != NULL)
		n++;
	closedir(tasks);
	return n - 2;				/* . and .. */
}

static void
test_few_threads(void)
{
	static const size_t lens[] = {100000, 0, 5000};
	KcZiplineOptions options = {.level = 1, .chunk_size = 5000, .nchunks = 8,
	.block_size = 4000, .nblocks = 3, .threads = 4};
	int			before = access("/proc/self/task", R_OK) == 0 ? count_threads() : 0;

	for (int n = 0; n < 5; n++)
	{
		KcZipline  *z;
		KcError		err;

		threads_to_be_had = n;
		must(kc_zipline_create(&kc_alloc_malloc, &options, &z, &err) == KC_OK);
		kc_zipline_start(z);
		ok((kc_zipline_fd(z) >= 0) == (n > 0), "%d threads can be had", n);
		if (before > 0)
			is(count_threads() - before, n, "and are");
		is(one_stream(z, "x", 1), 1, "it works");
		kc_zipline_free(z);
	}
	threads_to_be_had = 2;
	run_streams(&options, lens, 3, "two of four threads");
	threads_to_be_had = 1;
	run_streams(&options, lens, 3, "one of four threads");
	threads_to_be_had = -1;
}

/* A fork has no threads: freeing what it inherited neither waits nor crashes. */
static void
test_fork(int threads)
{
	KcZiplineOptions options = {.level = 1, .chunk_size = 1000, .nchunks = 4,
	.block_size = 10, .nblocks = 2, .threads = threads};
	KcZipline  *z = started(&kc_alloc_malloc, &options);
	KcBuf	   *chunk = kc_zipline_get_chunk(z);
	int			status;
	pid_t		child;

	must(chunk != NULL);
	kc_buf_append(chunk, "it waits for room in the middle of this", 39);
	kc_zipline_put(z, chunk, true);
	fflush(stdout);
	child = fork();
	must(child >= 0);
	if (child == 0)
	{
		alarm(20);
		kc_zipline_free(z);
		_exit(0);
	}
	must(waitpid(child, &status, 0) == child);
	is(status, 0, "a fork frees it");
	kc_zipline_free(z);
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
	for (int threads = 1; threads <= 3; threads += 2)
	{
		test_late_start(threads);
		test_giant_row(threads);
		test_free_in_the_middle(threads);
		test_fork(threads);
	}
	test_wake_ups();
	test_signals();
	test_no_thread();
	test_few_threads();
	test_options();
	test_failed_chunk();
	test_bounded_call();
	test_stop();
	test_memory(0);
	test_memory(1);
	test_memory(3);
	return done_testing();
}
