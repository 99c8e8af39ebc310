/*
 * test_zipline_threads.c
 *	  The threads of a zipline: when they begin, what they leave alone, how they
 *	  are woken and ended, and a machine that has too few.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "zipline_streams.h"

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

/* However quick the thread is, and the chunk back. */
static void
test_memory_at_the_begin(void)
{
	KcZiplineOptions options = {.level = 1, .chunk_size = 1000, .nchunks = 5,
	.block_size = 1000, .nblocks = 2, .threads = 1};
	KcZipline  *z = started(&kc_alloc_malloc, &options);
	KcBuf	   *seen[5];
	int			nseen = 0;
	KcBuf	   *last = NULL;

	for (int i = 0; i < options.nchunks; i++)
	{
		bool		known = false;

		last = kc_zipline_get_chunk(z);
		must(last != NULL);
		for (int k = 0; k < nseen; k++)
			known |= seen[k] == last;
		if (!known)
			seen[nseen++] = last;
		kc_zipline_unget(z, last);
	}
	is(nseen, options.nchunks, "each chunk is used before any is used again");
	ok(kc_zipline_get_chunk(z) == last, "then the one that came back last");
	kc_zipline_unget(z, last);
	kc_zipline_free(z);
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

int
main(void)
{
	for (int threads = 1; threads <= 3; threads += 2)
	{
		test_late_start(threads);
		test_free_in_the_middle(threads);
		test_fork(threads);
	}
	test_memory_at_the_begin();
	test_wake_ups();
	test_signals();
	test_no_thread();
	test_few_threads();
	return done_testing();
}
