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
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "mux_internal.h"

#define EVENTS_PER_ROUND	32
#define MAX_ROUNDS			16	/* per drive, so that a fast peer cannot keep us here */
#define OWN_FDS				4	/* epoll, timerfd, and libcurl's wake-up pair */
#define LATE_MS				200 /* a waiting process is not that slow to wake up */

const char	kc_mux_doing[] = "waiting for the network";

/* ---- time ---- */

/* The time that libcurl lives in, whatever clock our timers follow. */
int64_t
kc_mux_real_ms(void)
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

/* ---- timers ---- */

/* When whatever is due first is due, in real time; -1: never. */
static int64_t
first_due_ms(const KcMux *mux, int64_t now_ms)
{
	int64_t		due_ms = mux->curl_due_ms;

	if (mux->finished_head != NULL || mux->broken.status != KC_OK)
		return now_ms;
	if (mux->timers != NULL)
	{
		int64_t		timer_due_ms = now_ms + mux->timers->at_ms - timer_now_ms(mux);

		if (due_ms < 0 || timer_due_ms < due_ms)
			due_ms = timer_due_ms;
	}
	return due_ms < 0 ? -1 : due_ms > now_ms ? due_ms : now_ms;
}

/*
 * Arm the timerfd for whatever is due first, unless it is armed for that.
 */
void
kc_mux_rearm(KcMux *mux)
{
	struct itimerspec spec;
	int64_t		now_ms = kc_mux_real_ms();
	bool		expired = mux->armed_ms >= 0 && mux->armed_ms <= now_ms;

	mux->due_ms = first_due_ms(mux, now_ms);
	if (mux->due_ms == mux->armed_ms || (expired && mux->due_ms == now_ms))
		return;
	memset(&spec, 0, sizeof(spec));
	if (mux->due_ms == now_ms)
		spec.it_value.tv_nsec = 1;	/* zero would disarm it */
	else if (mux->due_ms > now_ms)
	{
		int64_t		wait_ms = mux->due_ms - now_ms;

		spec.it_value.tv_sec = (time_t) (wait_ms / 1000);
		spec.it_value.tv_nsec = (long) (wait_ms % 1000) * 1000000;
	}
	mux->armed_ms = mux->due_ms;
	if (timerfd_settime(mux->timer_fd, 0, &spec, NULL) < 0 && mux->broken.status == KC_OK)
		kc_error_set(&mux->broken, KC_ERR_INTERNAL, kc_mux_doing,
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
		kc_mux_rearm(mux);
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
		return kc_error_set(err, KC_ERR_INTERNAL, kc_mux_doing,
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

/* ---- the loop ---- */

static void
drain_timer(KcMux *mux)
{
	uint64_t	expirations;

	/* EAGAIN only says that somebody armed it anew meanwhile. */
	while (read(mux->timer_fd, &expirations, sizeof(expirations)) < 0 && errno == EINTR)
		;
	mux->armed_ms = -1;
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
			kc_error_set(&mux->broken, KC_ERR_INTERNAL, kc_mux_doing,
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
		kc_mux_curl_action(mux, EVENT_FD(events[i].data.u64), mask);
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

static void
note_lateness(KcMux *mux)
{
	int64_t		late_ms = mux->due_ms < 0 ? 0 : kc_mux_real_ms() - mux->due_ms;

	mux->late = late_ms > LATE_MS;
	if (mux->late)
		mux->late_ms += late_ms;
}

bool
kc_mux_is_late(const KcMux *mux)
{
	return mux->late;
}

int64_t
kc_mux_late_ms(const KcMux *mux)
{
	return mux->late_ms;
}

KcStatus
kc_mux_drive(KcMux *mux, KcError *err)
{
	if (mux->driving || mux->owner != getpid())
		return kc_error_set(err, KC_ERR_INTERNAL, kc_mux_doing,
							mux->driving ? "driven from its own callback" : "driven from another process");
	mux->driving = true;
	note_lateness(mux);
	for (int round = 0; round < MAX_ROUNDS && mux->broken.status == KC_OK; round++)
	{
		bool		any;

		any = run_events(mux);
		any |= kc_mux_curl_timeout(mux);
		kc_mux_curl_collect(mux);
		any |= kc_mux_curl_complete(mux);
		any |= run_timers(mux);
		if (!any)
			break;
	}
	mux->driving = false;
	mux->late = false;
	kc_mux_rearm(mux);
	if (mux->broken.status != KC_OK)
	{
		if (err != NULL)
			*err = mux->broken;
		return mux->broken.status;
	}
	return KC_OK;
}

void
kc_mux_keep(KcMux *mux, int connections)
{
	kc_mux_curl_keep(mux, connections);
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
open_descriptors(KcMux *mux, KcError *err)
{
	struct epoll_event event;

	while (mux->reserved_fds < OWN_FDS)
	{
		if (mux->hooks.acquire_fd != NULL && !mux->hooks.acquire_fd(mux->hooks.arg))
			return kc_error_set(err, KC_ERR_LIMIT, kc_mux_doing, "too many open files in this process");
		mux->reserved_fds++;
	}
	mux->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (mux->epoll_fd < 0)
		return kc_error_set(err, KC_ERR_INTERNAL, kc_mux_doing,
							"could not create an epoll descriptor: %s", strerror(errno));
	mux->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (mux->timer_fd < 0)
		return kc_error_set(err, KC_ERR_INTERNAL, kc_mux_doing,
							"could not create a timer descriptor: %s", strerror(errno));
	memset(&event, 0, sizeof(event));
	event.events = EPOLLIN;
	event.data.u64 = EVENT_TIMER | (uint32_t) mux->timer_fd;
	if (epoll_ctl(mux->epoll_fd, EPOLL_CTL_ADD, mux->timer_fd, &event) < 0)
		return kc_error_set(err, KC_ERR_INTERNAL, kc_mux_doing,
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
	status = kc_mux_curl_initialize(err);
	if (status != KC_OK)
		return status;
	mux = kc_alloc0(alloc, sizeof(KcMux));
	if (mux == NULL)
		return kc_error_nomem(err, kc_mux_doing);
	mux->alloc = alloc;
	mux->clock = clock != NULL ? clock : &kc_clock_system;
	if (hooks != NULL)
		mux->hooks = *hooks;
	mux->owner = getpid();
	mux->epoll_fd = mux->timer_fd = -1;
	mux->curl_due_ms = mux->due_ms = mux->armed_ms = -1;
	kc_error_clear(&mux->broken);

	status = open_descriptors(mux, err);
	if (status == KC_OK)
		status = kc_mux_curl_open(mux, err);
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
	kc_mux_curl_close(mux);
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
