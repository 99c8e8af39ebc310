/*
 * test_mux.c
 *	  Timers, watches, transfers and descriptors behind one descriptor.
 */
#define _GNU_SOURCE				/* RTLD_NEXT, memmem */
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <semaphore.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include "core/http.h"
#include "fail_alloc.h"
#include "harness.h"
#include "http_server.h"

/* ---- a resolver that takes its time ---- */

static sem_t resolver_entered;
static sem_t resolver_may_leave;
static sem_t resolver_left;
static sigset_t resolver_mask;

typedef int (*Getaddrinfo) (const char *, const char *, const struct addrinfo *, struct addrinfo **);

/* libcurl's resolver thread comes here, since this is the main program's. */
__attribute__((visibility("default")))
int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
			struct addrinfo **res)
{
	Getaddrinfo real = (Getaddrinfo) dlsym(RTLD_NEXT, "getaddrinfo");

	if (node != NULL && strcmp(node, "slow.test") == 0)
	{
		pthread_sigmask(SIG_SETMASK, NULL, &resolver_mask);
		sem_post(&resolver_entered);
		sem_wait(&resolver_may_leave);
		sem_post(&resolver_left);
		return EAI_AGAIN;
	}
	return real(node, service, hints, res);
}

/* ---- how often a timer is set ---- */

static int	timers_set;

typedef int (*TimerfdSettime) (int, int, const struct itimerspec *, struct itimerspec *);

__attribute__((visibility("default")))
int
timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old)
{
	TimerfdSettime real = (TimerfdSettime) dlsym(RTLD_NEXT, "timerfd_settime");

	timers_set++;
	return real(fd, flags, new, old);
}

static void
ignore_timer(KcTimer *timer)
{
	(void) timer;
}

static void
test_rearming(void)
{
	Harness		h;
	KcTimer		far = {.fire = ignore_timer};
	KcTimer		farther = {.fire = ignore_timer};
	KcTimer		near = {.fire = ignore_timer};
	int64_t		now_ms;
	int			before;

	harness_start(&h, &kc_alloc_malloc, NULL);
	now_ms = kc_mux_clock(h.mux)->monotonic_ms(kc_mux_clock(h.mux)->arg);
	kc_mux_timer_set(h.mux, &far, now_ms + 100000);
	before = timers_set;
	kc_mux_timer_set(h.mux, &farther, now_ms + 200000);
	for (int i = 0; i < 10; i++)
		must(kc_mux_drive(h.mux, NULL) == KC_OK);
	is(timers_set, before, "what is due first is known to the kernel, and not told again");
	kc_mux_timer_set(h.mux, &near, now_ms + 50000);
	is(timers_set, before + 1, "something earlier is told");
	kc_mux_timer_cancel(h.mux, &near);
	must(kc_mux_drive(h.mux, NULL) == KC_OK);
	is(timers_set, before + 2, "and that it is not wanted any more");
	kc_mux_timer_cancel(h.mux, &far);
	kc_mux_timer_cancel(h.mux, &farther);
	harness_stop(&h);
}

/* ---- timers ---- */

static char order[16];
static Harness *timer_harness;
static KcTimer timers[4];

static void
on_timer(KcTimer *timer)
{
	strcat(order, timer->arg);
	if (strcmp(timer->arg, "b") == 0)
		kc_mux_timer_cancel(timer_harness->mux, &timers[2]);
}

static void
test_timers(void)
{
	Harness		h;
	int64_t		now_ms;
	struct pollfd fd;

	harness_start(&h, &kc_alloc_malloc, NULL);
	timer_harness = &h;
	memset(timers, 0, sizeof(timers));
	timers[0].arg = "a";
	timers[1].arg = "b";
	timers[2].arg = "c";
	timers[3].arg = "d";
	for (int i = 0; i < 4; i++)
		timers[i].fire = on_timer;
	fd = (struct pollfd) {kc_mux_fd(h.mux), POLLIN, 0};
	is(poll(&fd, 1, 0), 0, "a mux with nothing to do is not readable");

	now_ms = harness_now_ms(&h);
	kc_mux_timer_set(h.mux, &timers[3], now_ms + 3600000);
	kc_mux_timer_set(h.mux, &timers[2], now_ms + 20);
	kc_mux_timer_set(h.mux, &timers[1], now_ms + 10);
	kc_mux_timer_set(h.mux, &timers[0], now_ms + 10000);
	kc_mux_timer_set(h.mux, &timers[0], now_ms + 5);
	ok(poll(&fd, 1, 5000) == 1, "it becomes readable when a timer is due");
	while (timers[1].armed)
		harness_turn(&h, 100);
	is_str(order, "ab", "timers fire in order, a timer that was set again only once");
	ok(!timers[2].armed, "one timer may cancel another");
	ok(timers[3].armed, "the later one still waits");
	h.moved_ms = 3600000;
	harness_turn(&h, 0);
	is_str(order, "abd", "a clock that jumps is noticed at the next drive");
	kc_mux_timer_set(h.mux, &timers[0], harness_now_ms(&h) + 100000);
	harness_stop(&h);
	ok(!timers[0].armed, "a mux that ends disarms its timers");
}

/* ---- watches ---- */

static int	watch_calls;

static void
on_ready(KcWatch *watch)
{
	uint64_t	count;

	must(read(watch->fd, &count, sizeof(count)) == sizeof(count));
	watch_calls++;
}

static void
test_watches(void)
{
	Harness		h;
	KcWatch		watch = {.ready = on_ready};
	KcError		err;
	uint64_t	one = 1;
	struct pollfd fd;

	harness_start(&h, &kc_alloc_malloc, NULL);
	fd = (struct pollfd) {kc_mux_fd(h.mux), POLLIN, 0};
	watch.fd = eventfd(0, EFD_NONBLOCK);
	is(kc_mux_watch(h.mux, &watch, &err), KC_OK, "watch a descriptor");
	must(write(watch.fd, &one, sizeof(one)) == sizeof(one));
	ok(poll(&fd, 1, 1000) == 1, "the mux is readable when the descriptor is");
	harness_turn(&h, 0);
	is(watch_calls, 1, "its callback ran");
	is(poll(&fd, 1, 0), 0, "and the mux is quiet again");
	kc_mux_unwatch(h.mux, &watch);
	kc_mux_unwatch(h.mux, &watch);
	must(write(watch.fd, &one, sizeof(one)) == sizeof(one));
	is(poll(&fd, 1, 0), 0, "an unwatched descriptor does not wake it");
	close(watch.fd);
	watch.fd = -1;
	is(kc_mux_watch(h.mux, &watch, &err), KC_ERR_INTERNAL, "a bad descriptor is an error");
	harness_stop(&h);
}

/* ---- transfers ---- */

static const KcHttpConfig http_config = {.user_agent = "test",.connect_timeout_ms = 5000};

static KcStatus
start_get(Harness *h, const char *url, int64_t timeout_ms, KcHttp **http, KcError *err)
{
	KcHttpRequest request = {
		.doing = "testing",.method = "GET",.url = kc_slice(url),.max_response = 1 << 20,
		.timeout_ms = timeout_ms
	};

	return kc_http_start(h->mux, &kc_alloc_malloc, &http_config, &request, http, err);
}

static KcHttp *pair[2];
static int	completions;

static void
on_done_free_both(KcHttp *http)
{
	completions++;
	kc_http_free(http == pair[0] ? pair[1] : pair[0]);
	kc_http_free(http);
}

/* Two answers may arrive in one drive; the first frees the second. */
static void
test_cancel(Server *server)
{
	Harness		h;
	KcHttp	   *http;
	KcError		err;
	char		url[128];

	harness_start(&h, &kc_alloc_malloc, NULL);
	server_clear(server);
	server_rule(server, (ServerRule) {.target = "/stall",.action = SERVER_STALL});
	server_rule(server, (ServerRule) {.body = "fine"});

	must(start_get(&h, "http://localhost:1", 0, &http, &err) == KC_OK);
	kc_http_free(http);
	ok(true, "a transfer may be freed before it began");

	for (int i = 0; i < 20; i++)
	{
		snprintf(url, sizeof(url), "%s/%s", server->origin, i % 2 ? "stall" : "quick");
		must(start_get(&h, url, 0, &http, &err) == KC_OK);
		for (int turn = 0; turn < i; turn++)
			harness_turn(&h, 1);
		kc_http_free(http);
	}
	ok(true, "a transfer may be freed at any moment");

	snprintf(url, sizeof(url), "%s/quick", server->origin);
	for (int i = 0; i < 2; i++)
	{
		must(start_get(&h, url, 0, &pair[i], &err) == KC_OK);
		pair[i]->on_done = on_done_free_both;
	}
	while (completions == 0)
		harness_turn(&h, 100);
	harness_turn(&h, 100);
	is(completions, 1, "a completion may free another transfer and itself");

	must(start_get(&h, url, 0, &http, &err) == KC_OK);
	(void) harness_until(&h, &http->done);
	is(http->error.status, KC_OK, "and the mux works on");
	is_slice(kc_buf_view(&http->response.body), "fine", "with whole answers");
	kc_http_free(http);
	harness_stop(&h);
}

static void
test_free_mux_first(Server *server)
{
	Harness		h;
	KcHttp	   *http;
	KcError		err;
	char		url[128];

	harness_start(&h, &kc_alloc_malloc, NULL);
	server_clear(server);
	server_rule(server, (ServerRule) {.action = SERVER_STALL});
	snprintf(url, sizeof(url), "%s/", server->origin);
	must(start_get(&h, url, 0, &http, &err) == KC_OK);
	while (server_count(server, "GET", "/") == 0)
		harness_turn(&h, 10);
	harness_stop(&h);
	ok(!http->done, "a mux that ends calls nobody back");
	ok(true, "and leaves the transfer to be freed");
	kc_http_free(http);
}

static void
test_timeouts(void)
{
	Harness		h;
	KcHttp	   *http;
	KcError		err;
	char		url[128];
	int			listen_fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in address = {.sin_family = AF_INET,.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t	len = sizeof(address);
	int64_t		start_ms;

	/* A listener that never accepts: connects, then silence. */
	must(bind(listen_fd, (struct sockaddr *) &address, len) == 0 && listen(listen_fd, 8) == 0);
	must(getsockname(listen_fd, (struct sockaddr *) &address, &len) == 0);

	harness_start(&h, &kc_alloc_malloc, NULL);
	snprintf(url, sizeof(url), "http://127.0.0.1:%d/", ntohs(address.sin_port));
	start_ms = harness_now_ms(&h);
	must(start_get(&h, url, 200, &http, &err) == KC_OK);
	(void) harness_until(&h, &http->done);
	is(http->error.status, KC_ERR_TIMEOUT, "a black hole ends in a timeout");
	ok(harness_now_ms(&h) - start_ms < 3000, "in time");
	ok(http->error.after_send, "the request may have arrived");
	is_str(http->error.host, "127.0.0.1", "the host is named");
	kc_http_free(http);

	start_ms = harness_now_ms(&h);
	must(start_get(&h, url, 0, &http, &err) == KC_OK);
	for (int i = 0; i < 5; i++)
		harness_turn(&h, 10);
	kc_http_free(http);
	ok(harness_now_ms(&h) - start_ms < 1000, "cancelling in a black hole does not wait");
	harness_stop(&h);
	close(listen_fd);
}

static void
test_slow_resolver(void)
{
	Harness		h;
	KcHttp	   *http;
	KcError		err;
	int64_t		start_ms;

	sem_init(&resolver_entered, 0, 0);
	sem_init(&resolver_may_leave, 0, 0);
	sem_init(&resolver_left, 0, 0);
	harness_start(&h, &kc_alloc_malloc, NULL);
	must(start_get(&h, "https://slow.test/", 0, &http, &err) == KC_OK);
	while (sem_trywait(&resolver_entered) != 0)
		harness_turn(&h, 10);
	ok(sigismember(&resolver_mask, SIGINT) && sigismember(&resolver_mask, SIGALRM)
	   && sigismember(&resolver_mask, SIGTERM) && sigismember(&resolver_mask, SIGUSR1),
	   "signals are blocked in libcurl's resolver thread");
	start_ms = harness_now_ms(&h);
	kc_http_free(http);
	ok(harness_now_ms(&h) - start_ms < 1000, "freeing a transfer does not wait for DNS");
	start_ms = harness_now_ms(&h);
	harness_stop(&h);
	ok(harness_now_ms(&h) - start_ms < 1000, "nor does freeing the mux");
	sem_post(&resolver_may_leave);
	sem_wait(&resolver_left);
}

/* ---- descriptors of the host process ---- */

typedef struct Descriptors
{
	int			taken;
	int			limit;
} Descriptors;

static bool
acquire_fd(void *arg)
{
	Descriptors *d = arg;

	if (d->taken >= d->limit)
		return false;
	d->taken++;
	return true;
}

static void
release_fd(void *arg)
{
	((Descriptors *) arg)->taken--;
}

static void
test_descriptors(Server *server)
{
	Descriptors d = {.limit = 2};
	KcMuxHooks	hooks = {acquire_fd, release_fd, &d};
	Harness		h;
	KcHttp	   *http;
	KcError		err;
	KcMux	   *mux;
	char		url[128];
	int			base;

	is(kc_mux_create(&kc_alloc_malloc, NULL, &hooks, &mux, &err), KC_ERR_LIMIT,
	   "a mux that may not open its descriptors is refused");
	is(d.taken, 0, "and gives back those it got");

	server_clear(server);
	server_rule(server, (ServerRule) {.body = "fine"});
	snprintf(url, sizeof(url), "%s/", server->origin);
	d.limit = 100;
	harness_start(&h, &kc_alloc_malloc, &hooks);
	base = d.taken;
	must(start_get(&h, url, 0, &http, &err) == KC_OK);
	(void) harness_until(&h, &http->done);
	is(http->error.status, KC_OK, "a request succeeds");
	is(d.taken, base + 1, "its connection is accounted for");
	kc_http_free(http);
	d.limit = base;
	must(start_get(&h, "http://127.0.0.1:1/", 0, &http, &err) == KC_OK);
	(void) harness_until(&h, &http->done);
	is(http->error.status, KC_ERR_NETWORK, "a socket that is refused fails the request");
	is_str(http->error.what, "too many open files in this process", "and the error says why");
	kc_http_free(http);
	harness_stop(&h);
	is(d.taken, 0, "all descriptors are given back");
}

/* ---- connections that are kept ---- */

/* So many requests at once, each of which needs a connection of its own. */
static void
get_at_once(Harness *h, Server *server, int n)
{
	KcHttp	   *http[16];
	KcError		err;
	char		url[128];

	must(n <= 16);
	snprintf(url, sizeof(url), "%s/", server->origin);
	for (int i = 0; i < n; i++)
		must(start_get(h, url, 0, &http[i], &err) == KC_OK);
	for (int i = 0; i < n; i++)
	{
		(void) harness_until(h, &http[i]->done);
		must(http[i]->error.status == KC_OK);
		kc_http_free(http[i]);
	}
}

static void
test_kept_connections(Server *server)
{
	Descriptors d = {.limit = 100};
	KcMuxHooks	hooks = {acquire_fd, release_fd, &d};
	Harness		h;
	int			base;
	int			connections;

	server_clear(server);
	/* So slowly that all are under way together. */
	server_rule(server, (ServerRule) {.body = "fine",.action = SERVER_DRIP});
	harness_start(&h, &kc_alloc_malloc, &hooks);
	base = d.taken;
	kc_mux_keep(h.mux, 3);
	get_at_once(&h, server, 12);
	is(d.taken, base + 3, "of twelve connections those stay open that are to be kept");
	kc_mux_keep(h.mux, 12);
	get_at_once(&h, server, 12);
	is(d.taken, base + 12, "or all of them");
	connections = server->nconnections;
	for (int i = 0; i < 5; i++)
		get_at_once(&h, server, 12);
	is(server->nconnections, connections, "and these serve all that comes");
	harness_stop(&h);
	is(d.taken, 0, "in the end all are closed");
}

/* ---- memory ---- */

static void
test_out_of_memory(void)
{
	FailAlloc	fa;
	KcMux	   *mux;
	KcError		err;

	fail_alloc_init(&fa, 1);
	is(kc_mux_create(&fa.alloc, NULL, NULL, &mux, &err), KC_ERR_NOMEM, "no memory, no mux");
	ok(mux == NULL, "and none is given");
	is(fa.live, 0, "nothing leaks");
}

int
main(void)
{
	Server		server;

	server_start(&server);
	test_rearming();
	test_timers();
	test_watches();
	test_cancel(&server);
	test_free_mux_first(&server);
	test_timeouts();
	test_slow_resolver();
	test_descriptors(&server);
	test_kept_connections(&server);
	test_out_of_memory();
	server_stop(&server);
	return done_testing();
}
