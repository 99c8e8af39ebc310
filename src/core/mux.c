/*
 * mux.c
 *	  One pollable descriptor for libcurl's sockets, our timers and foreign
 *	  descriptors.
 *
 *		epoll fd (what the owner waits for)
 *		  |- timerfd: the earliest of libcurl's timeout and our own timers
 *		  |- the sockets that libcurl asks us to watch
 *		  `- watched descriptors
 *
 * Everything is level-triggered, so the epoll descriptor is readable exactly
 * while there is something to do.  libcurl's callbacks only note things down;
 * whatever may call back into our owner runs after libcurl has returned.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* SOCK_CLOEXEC */
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "mux_curl.h"

#define EVENTS_PER_ROUND	32
#define MAX_ROUNDS			16	/* per drive, so that a fast peer cannot keep us here */
#define OWN_FDS				4	/* epoll, timerfd, and libcurl's wake-up pair */
#define MAX_IDLE_CONNECTIONS 16L

/* epoll_event.data: what the descriptor is, and the descriptor itself */
#define EVENT_TIMER			(UINT64_C(1) << 32)
#define EVENT_SOCKET		(UINT64_C(2) << 32)
#define EVENT_WATCH			(UINT64_C(3) << 32)
#define EVENT_KIND(data)	((data) & ~UINT64_C(0xffffffff))
#define EVENT_FD(data)		((int) ((data) & UINT64_C(0xffffffff)))

struct KcMux
{
	const KcAlloc *alloc;
	const KcClock *clock;
	KcMuxHooks	hooks;
	pid_t		owner;
	int			epoll_fd;
	int			timer_fd;
	int			reserved_fds;	/* how many of OWN_FDS the host granted */
	CURLM	   *multi;
	int64_t		curl_due_ms;	/* real monotonic time; -1: none */
	KcTransfer *transfers;		/* all that are on the multi handle */
	KcTransfer *finished_head;	/* off it, complete not called yet, in order */
	KcTransfer *finished_tail;
	KcTimer    *timers;			/* armed ones, earliest first */
	KcWatch    *watches;
	bool		driving;
	KcError		broken;			/* the first failure inside a libcurl callback */
};

static const char doing_mux[] = "waiting for the network";

/* ---- signals, time, libcurl's initialisation ---- */

void
kc_mux_block_signals(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, saved);
}

void
kc_mux_restore_signals(const sigset_t *saved)
{
	pthread_sigmask(SIG_SETMASK, saved, NULL);
}

/* The time that libcurl lives in, whatever clock our timers follow. */
static int64_t
real_now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int64_t
timer_now_ms(const KcMux *mux)
{
	return mux->clock->monotonic_ms(mux->clock->arg);
}

/*
 * Once per process, and never undone: other users of libcurl in the process
 * may still need it.  A second TLS library beside the host's OpenSSL would be
 * an endless source of trouble, hence the check of the flavour.
 */
static KcStatus
initialize_curl(KcError *err)
{
	static bool initialized = false;
	const curl_version_info_data *version;
	CURLcode	code;

	if (initialized)
		return KC_OK;
	code = curl_global_init(CURL_GLOBAL_ALL);
	if (code != CURLE_OK)
		return kc_error_set(err, KC_ERR_INTERNAL, "initializing libcurl", "%s",
							curl_easy_strerror(code));
	version = curl_version_info(CURLVERSION_NOW);
	if (version->ssl_version == NULL || strstr(version->ssl_version, "OpenSSL/") == NULL)
		return kc_error_set(err, KC_ERR_INTERNAL, "initializing libcurl",
							"libcurl %s was built for TLS by \"%s\", the OpenSSL flavour is needed",
							version->version,
							version->ssl_version ? version->ssl_version : "nobody");
	if ((version->features & CURL_VERSION_ASYNCHDNS) == 0)
		return kc_error_set(err, KC_ERR_INTERNAL, "initializing libcurl",
							"libcurl %s was built without an asynchronous resolver, a cancel would have to wait for DNS",
							version->version);
	initialized = true;
	return KC_OK;
}

/* ---- timers ---- */

/*
 * Arm the timerfd for whatever is due first.
 */
static void
rearm(KcMux *mux)
{
	struct itimerspec spec;
	int64_t		wait_ms = -1;

	memset(&spec, 0, sizeof(spec));
	if (mux->timers != NULL)
	{
		wait_ms = mux->timers->at_ms - timer_now_ms(mux);
		if (wait_ms < 0)
			wait_ms = 0;
	}
	if (mux->curl_due_ms >= 0)
	{
		int64_t		curl_wait_ms = mux->curl_due_ms - real_now_ms();

		if (curl_wait_ms < 0)
			curl_wait_ms = 0;
		if (wait_ms < 0 || curl_wait_ms < wait_ms)
			wait_ms = curl_wait_ms;
	}
	if (mux->finished_head != NULL || mux->broken.status != KC_OK)
		wait_ms = 0;

	if (wait_ms == 0)
		spec.it_value.tv_nsec = 1;	/* zero would disarm it */
	else if (wait_ms > 0)
	{
		spec.it_value.tv_sec = (time_t) (wait_ms / 1000);
		spec.it_value.tv_nsec = (long) (wait_ms % 1000) * 1000000;
	}
	if (timerfd_settime(mux->timer_fd, 0, &spec, NULL) < 0 && mux->broken.status == KC_OK)
		kc_error_set(&mux->broken, KC_ERR_INTERNAL, doing_mux,
					 "could not set a timer: %s", strerror(errno));
}

void
kc_mux_timer_set(KcMux *mux, KcTimer *timer, int64_t at_ms)
{
	KcTimer   **link;

	kc_mux_timer_cancel(mux, timer);
	timer->at_ms = at_ms;
	timer->armed = true;
	for (link = &mux->timers; *link != NULL && (*link)->at_ms <= at_ms; link = &(*link)->next)
		;
	timer->next = *link;
	*link = timer;
	if (!mux->driving)
		rearm(mux);
}

void
kc_mux_timer_cancel(KcMux *mux, KcTimer *timer)
{
	KcTimer   **link;

	if (!timer->armed)
		return;
	for (link = &mux->timers; *link != NULL; link = &(*link)->next)
	{
		if (*link != timer)
			continue;
		*link = timer->next;
		break;
	}
	timer->armed = false;
	timer->next = NULL;
}

/*
 * Fire the timers that are due.  Bounded, so that one that sets itself again
 * for now cannot keep us here.
 */
static bool
run_timers(KcMux *mux)
{
	int64_t		now_ms = timer_now_ms(mux);
	bool		any = false;

	for (int limit = EVENTS_PER_ROUND; limit > 0; limit--)
	{
		KcTimer    *timer = mux->timers;

		if (timer == NULL || timer->at_ms > now_ms)
			break;
		mux->timers = timer->next;
		timer->armed = false;
		timer->next = NULL;
		timer->fire(timer);
		any = true;
	}
	return any;
}

/* ---- watched descriptors ---- */

KcStatus
kc_mux_watch(KcMux *mux, KcWatch *watch, KcError *err)
{
	struct epoll_event event;

	memset(&event, 0, sizeof(event));
	event.events = EPOLLIN;
	event.data.u64 = EVENT_WATCH | (uint32_t) watch->fd;
	if (epoll_ctl(mux->epoll_fd, EPOLL_CTL_ADD, watch->fd, &event) < 0)
		return kc_error_set(err, KC_ERR_INTERNAL, doing_mux,
							"could not watch a descriptor: %s", strerror(errno));
	watch->active = true;
	watch->next = mux->watches;
	mux->watches = watch;
	return KC_OK;
}

void
kc_mux_unwatch(KcMux *mux, KcWatch *watch)
{
	KcWatch   **link;

	if (!watch->active)
		return;
	for (link = &mux->watches; *link != NULL; link = &(*link)->next)
	{
		if (*link != watch)
			continue;
		*link = watch->next;
		break;
	}
	watch->active = false;
	watch->next = NULL;
	(void) epoll_ctl(mux->epoll_fd, EPOLL_CTL_DEL, watch->fd, NULL);
}

static void
run_watch(KcMux *mux, int fd)
{
	for (KcWatch *watch = mux->watches; watch != NULL; watch = watch->next)
	{
		if (watch->fd != fd)
			continue;
		watch->ready(watch);
		return;
	}
}

/* ---- libcurl's callbacks ---- */

/*
 * libcurl asks us to watch a socket.  A descriptor number may come back for
 * another connection before or after libcurl has told us to forget the old
 * one, so change it if the kernel knows it, else add it.
 */
static int
on_curl_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *unused)
{
	KcMux	   *mux = arg;
	struct epoll_event event;

	(void) easy;
	(void) unused;
	memset(&event, 0, sizeof(event));
	event.data.u64 = EVENT_SOCKET | (uint32_t) fd;
	if (what == CURL_POLL_REMOVE)
	{
		/* Closing the socket may have removed it already. */
		(void) epoll_ctl(mux->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
		return 0;
	}
	if (what & CURL_POLL_IN)
		event.events |= EPOLLIN;
	if (what & CURL_POLL_OUT)
		event.events |= EPOLLOUT;
	if (epoll_ctl(mux->epoll_fd, EPOLL_CTL_MOD, fd, &event) == 0)
		return 0;
	if (errno == ENOENT && epoll_ctl(mux->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0)
		return 0;
	if (mux->broken.status == KC_OK)
		kc_error_set(&mux->broken, KC_ERR_INTERNAL, doing_mux,
					 "could not watch a socket: %s", strerror(errno));
	return -1;
}

static int
on_curl_timer(CURLM *multi, long timeout_ms, void *arg)
{
	KcMux	   *mux = arg;

	(void) multi;
	mux->curl_due_ms = timeout_ms < 0 ? -1 : real_now_ms() + timeout_ms;
	if (!mux->driving)
		rearm(mux);
	return 0;
}

static curl_socket_t
on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	KcMux	   *mux = arg;
	int			fd;

	(void) purpose;
	if (mux->hooks.acquire_fd != NULL && !mux->hooks.acquire_fd(mux->hooks.arg))
		return CURL_SOCKET_BAD;
	fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
	if (fd < 0)
	{
		if (mux->hooks.release_fd != NULL)
			mux->hooks.release_fd(mux->hooks.arg);
		return CURL_SOCKET_BAD;
	}
	return fd;
}

static int
on_close_socket(void *arg, curl_socket_t fd)
{
	KcMux	   *mux = arg;
	int			result;

	(void) epoll_ctl(mux->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
	result = close(fd);
	if (mux->hooks.release_fd != NULL)
		mux->hooks.release_fd(mux->hooks.arg);
	return result;
}

/* ---- transfers ---- */

static void
unlink_active(KcMux *mux, KcTransfer *transfer)
{
	if (transfer->prev != NULL)
		transfer->prev->next = transfer->next;
	else
		mux->transfers = transfer->next;
	if (transfer->next != NULL)
		transfer->next->prev = transfer->prev;
	transfer->prev = transfer->next = NULL;
}

static void
unlink_finished(KcMux *mux, KcTransfer *transfer)
{
	if (transfer->prev != NULL)
		transfer->prev->next = transfer->next;
	else
		mux->finished_head = transfer->next;
	if (transfer->next != NULL)
		transfer->next->prev = transfer->prev;
	else
		mux->finished_tail = transfer->prev;
	transfer->prev = transfer->next = NULL;
}

KcStatus
kc_mux_add(KcMux *mux, KcTransfer *transfer, KcError *err)
{
	sigset_t	saved;
	CURLMcode	code;

	if (curl_easy_setopt(transfer->easy, CURLOPT_OPENSOCKETFUNCTION, on_open_socket) != CURLE_OK
		|| curl_easy_setopt(transfer->easy, CURLOPT_OPENSOCKETDATA, mux) != CURLE_OK
		|| curl_easy_setopt(transfer->easy, CURLOPT_CLOSESOCKETFUNCTION, on_close_socket) != CURLE_OK
		|| curl_easy_setopt(transfer->easy, CURLOPT_CLOSESOCKETDATA, mux) != CURLE_OK
		|| curl_easy_setopt(transfer->easy, CURLOPT_PRIVATE, transfer) != CURLE_OK)
		return kc_error_set(err, KC_ERR_INTERNAL, doing_mux, "could not set an option of libcurl");

	kc_mux_block_signals(&saved);
	code = curl_multi_add_handle(mux->multi, transfer->easy);
	kc_mux_restore_signals(&saved);
	if (code == CURLM_OUT_OF_MEMORY)
		return kc_error_nomem(err, doing_mux);
	if (code != CURLM_OK)
		return kc_error_set(err, KC_ERR_INTERNAL, doing_mux, "could not start a transfer: %s",
							curl_multi_strerror(code));
	transfer->mux = mux;
	transfer->finished = false;
	transfer->prev = NULL;
	transfer->next = mux->transfers;
	if (transfer->next != NULL)
		transfer->next->prev = transfer;
	mux->transfers = transfer;
	return KC_OK;
}

static void
remove_from_multi(KcMux *mux, KcTransfer *transfer)
{
	sigset_t	saved;

	kc_mux_block_signals(&saved);
	(void) curl_multi_remove_handle(mux->multi, transfer->easy);
	kc_mux_restore_signals(&saved);
}

void
kc_mux_remove(KcTransfer *transfer)
{
	KcMux	   *mux = transfer->mux;

	if (mux == NULL)
		return;
	if (transfer->finished)
		unlink_finished(mux, transfer);
	else
	{
		unlink_active(mux, transfer);
		remove_from_multi(mux, transfer);
	}
	transfer->mux = NULL;
	if (!mux->driving)
		rearm(mux);
}

/*
 * Take what libcurl has finished off the multi handle.  Reading all messages
 * first keeps them valid: removing a handle drops its messages.
 */
static void
collect_finished(KcMux *mux)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(mux->multi, &left)) != NULL)
	{
		KcTransfer *transfer = NULL;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **) &transfer);
		transfer->code = message->data.result;
		transfer->finished = true;
		unlink_active(mux, transfer);
		transfer->prev = mux->finished_tail;
		if (mux->finished_tail != NULL)
			mux->finished_tail->next = transfer;
		else
			mux->finished_head = transfer;
		mux->finished_tail = transfer;
		remove_from_multi(mux, transfer);
	}
}

static bool
complete_finished(KcMux *mux)
{
	bool		any = false;

	while (mux->finished_head != NULL)
	{
		KcTransfer *transfer = mux->finished_head;

		unlink_finished(mux, transfer);
		transfer->finished = false;
		transfer->mux = NULL;
		transfer->complete(transfer, transfer->code);
		any = true;
	}
	return any;
}

/* ---- the loop ---- */

static void
curl_action(KcMux *mux, curl_socket_t fd, int mask)
{
	sigset_t	saved;
	int			running;
	CURLMcode	code;

	kc_mux_block_signals(&saved);
	code = curl_multi_socket_action(mux->multi, fd, mask, &running);
	kc_mux_restore_signals(&saved);
	if (code != CURLM_OK && mux->broken.status == KC_OK)
		kc_error_set(&mux->broken, KC_ERR_INTERNAL, doing_mux, "libcurl gave up: %s",
					 curl_multi_strerror(code));
}

static void
drain_timer(KcMux *mux)
{
	uint64_t	expirations;

	/* EAGAIN only says that somebody armed it anew meanwhile. */
	while (read(mux->timer_fd, &expirations, sizeof(expirations)) < 0 && errno == EINTR)
		;
}

static bool
run_events(KcMux *mux)
{
	struct epoll_event events[EVENTS_PER_ROUND];
	int			nevents;
	bool		any = false;

	nevents = epoll_wait(mux->epoll_fd, events, EVENTS_PER_ROUND, 0);
	if (nevents < 0)
	{
		if (errno != EINTR && mux->broken.status == KC_OK)
			kc_error_set(&mux->broken, KC_ERR_INTERNAL, doing_mux,
						 "could not poll: %s", strerror(errno));
		return false;
	}
	for (int i = 0; i < nevents; i++)
	{
		uint32_t	bits = events[i].events;
		int			mask = 0;

		if (EVENT_KIND(events[i].data.u64) == EVENT_TIMER)
			drain_timer(mux);
		if (EVENT_KIND(events[i].data.u64) != EVENT_SOCKET)
			continue;
		if (bits & EPOLLIN)
			mask |= CURL_CSELECT_IN;
		if (bits & EPOLLOUT)
			mask |= CURL_CSELECT_OUT;
		if (bits & (EPOLLERR | EPOLLHUP))
			mask |= CURL_CSELECT_ERR;
		curl_action(mux, EVENT_FD(events[i].data.u64), mask);
		any = true;
	}
	/* By descriptor, not by pointer: an earlier one may have ended a later. */
	for (int i = 0; i < nevents; i++)
	{
		if (EVENT_KIND(events[i].data.u64) != EVENT_WATCH)
			continue;
		run_watch(mux, EVENT_FD(events[i].data.u64));
		any = true;
	}
	return any;
}

static bool
run_curl_timeout(KcMux *mux)
{
	if (mux->curl_due_ms < 0 || mux->curl_due_ms > real_now_ms())
		return false;
	mux->curl_due_ms = -1;
	curl_action(mux, CURL_SOCKET_TIMEOUT, 0);
	return true;
}

KcStatus
kc_mux_drive(KcMux *mux, KcError *err)
{
	if (mux->driving || mux->owner != getpid())
		return kc_error_set(err, KC_ERR_INTERNAL, doing_mux,
							mux->driving ? "driven from its own callback" : "driven from another process");
	mux->driving = true;
	for (int round = 0; round < MAX_ROUNDS && mux->broken.status == KC_OK; round++)
	{
		bool		any;

		any = run_events(mux);
		any |= run_curl_timeout(mux);
		collect_finished(mux);
		any |= complete_finished(mux);
		any |= run_timers(mux);
		if (!any)
			break;
	}
	mux->driving = false;
	rearm(mux);
	if (mux->broken.status != KC_OK)
	{
		if (err != NULL)
			*err = mux->broken;
		return mux->broken.status;
	}
	return KC_OK;
}

int
kc_mux_fd(const KcMux *mux)
{
	return mux->epoll_fd;
}

const KcClock *
kc_mux_clock(const KcMux *mux)
{
	return mux->clock;
}

/* ---- making and ending ---- */

static KcStatus
open_multi(KcMux *mux, KcError *err)
{
	mux->multi = curl_multi_init();
	if (mux->multi == NULL)
		return kc_error_nomem(err, doing_mux);
	if (curl_multi_setopt(mux->multi, CURLMOPT_SOCKETFUNCTION, on_curl_socket) != CURLM_OK
		|| curl_multi_setopt(mux->multi, CURLMOPT_SOCKETDATA, mux) != CURLM_OK
		|| curl_multi_setopt(mux->multi, CURLMOPT_TIMERFUNCTION, on_curl_timer) != CURLM_OK
		|| curl_multi_setopt(mux->multi, CURLMOPT_TIMERDATA, mux) != CURLM_OK
		|| curl_multi_setopt(mux->multi, CURLMOPT_PIPELINING, CURLPIPE_NOTHING) != CURLM_OK
		|| curl_multi_setopt(mux->multi, CURLMOPT_MAXCONNECTS, MAX_IDLE_CONNECTIONS) != CURLM_OK)
		return kc_error_set(err, KC_ERR_INTERNAL, doing_mux, "could not set an option of libcurl");
#if LIBCURL_VERSION_NUM >= 0x081400
	/* From 8.20 on the resolver threads are the multi handle's. */
	(void) curl_multi_setopt(mux->multi, CURLMOPT_QUICK_EXIT, 1L);
#endif
	return KC_OK;
}

static KcStatus
open_descriptors(KcMux *mux, KcError *err)
{
	struct epoll_event event;

	while (mux->reserved_fds < OWN_FDS)
	{
		if (mux->hooks.acquire_fd != NULL && !mux->hooks.acquire_fd(mux->hooks.arg))
			return kc_error_set(err, KC_ERR_LIMIT, doing_mux, "too many open files in this process");
		mux->reserved_fds++;
	}
	mux->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (mux->epoll_fd < 0)
		return kc_error_set(err, KC_ERR_INTERNAL, doing_mux,
							"could not create an epoll descriptor: %s", strerror(errno));
	mux->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (mux->timer_fd < 0)
		return kc_error_set(err, KC_ERR_INTERNAL, doing_mux,
							"could not create a timer descriptor: %s", strerror(errno));
	memset(&event, 0, sizeof(event));
	event.events = EPOLLIN;
	event.data.u64 = EVENT_TIMER | (uint32_t) mux->timer_fd;
	if (epoll_ctl(mux->epoll_fd, EPOLL_CTL_ADD, mux->timer_fd, &event) < 0)
		return kc_error_set(err, KC_ERR_INTERNAL, doing_mux,
							"could not watch a timer descriptor: %s", strerror(errno));
	return KC_OK;
}

KcStatus
kc_mux_create(const KcAlloc *alloc, const KcClock *clock, const KcMuxHooks *hooks, KcMux **result,
			  KcError *err)
{
	KcMux	   *mux;
	KcStatus	status;

	*result = NULL;
	status = initialize_curl(err);
	if (status != KC_OK)
		return status;
	mux = kc_alloc0(alloc, sizeof(KcMux));
	if (mux == NULL)
		return kc_error_nomem(err, doing_mux);
	mux->alloc = alloc;
	mux->clock = clock != NULL ? clock : &kc_clock_system;
	if (hooks != NULL)
		mux->hooks = *hooks;
	mux->owner = getpid();
	mux->epoll_fd = mux->timer_fd = -1;
	mux->curl_due_ms = -1;
	kc_error_clear(&mux->broken);

	status = open_descriptors(mux, err);
	if (status == KC_OK)
		status = open_multi(mux, err);
	if (status != KC_OK)
	{
		kc_mux_free(mux);
		return status;
	}
	*result = mux;
	return KC_OK;
}

void
kc_mux_free(KcMux *mux)
{
	sigset_t	saved;

	if (mux == NULL)
		return;
	while (mux->transfers != NULL)
		kc_mux_remove(mux->transfers);
	while (mux->finished_head != NULL)
		kc_mux_remove(mux->finished_head);
	while (mux->timers != NULL)
		kc_mux_timer_cancel(mux, mux->timers);
	while (mux->watches != NULL)
		kc_mux_unwatch(mux, mux->watches);
	kc_mux_block_signals(&saved);
	if (mux->multi != NULL)
		(void) curl_multi_cleanup(mux->multi);
	kc_mux_restore_signals(&saved);
	if (mux->timer_fd >= 0)
		close(mux->timer_fd);
	if (mux->epoll_fd >= 0)
		close(mux->epoll_fd);
	for (; mux->reserved_fds > 0; mux->reserved_fds--)
	{
		if (mux->hooks.release_fd != NULL)
			mux->hooks.release_fd(mux->hooks.arg);
	}
	kc_free(mux->alloc, mux);
}
