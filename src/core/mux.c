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
#define _GNU_SOURCE				/* SOCK_CLOEXEC */
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
 * Fire the timers that are due now.  One that sets itself again for now runs
 * in the next round, so that rounds stay finite.
 */
static bool
run_timers(KcMux *mux)
{
	int64_t		now_ms = timer_now_ms(mux);
	KcTimer    *due = NULL;
	KcTimer   **tail = &due;
	bool		any = false;

	/*
	 * Move them to the end of the due list one by one; a timer cancelled by
	 * an earlier one must not fire, so they stay findable in mux->timers
	 * until their turn.
	 */
	(void) tail;
	(void) due;
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
