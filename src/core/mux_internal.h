/*
 * mux_internal.h
 *	  What mux.c (the loop) and mux_curl.c (libcurl's side) share.
 */
#ifndef KC_MUX_INTERNAL_H
#define KC_MUX_INTERNAL_H

#include <sys/types.h>

#include "mux_curl.h"

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
	int64_t		due_ms;			/* real time at which something is due; -1: nothing */
	int64_t		armed_ms;		/* for which the timerfd is armed, or has expired; -1:
								 * not */
	bool		late;			/* the current drive began long after that */
	int64_t		late_ms;		/* by how much all drives began late */
	KcError		broken;			/* the first failure inside a libcurl callback */
};

extern const char kc_mux_doing[];

/* mux.c */
extern void kc_mux_rearm(KcMux *mux);
extern int64_t kc_mux_real_ms(void);

/* mux_curl.c */
extern KcStatus kc_mux_curl_initialize(KcError *err);
extern KcStatus kc_mux_curl_open(KcMux *mux, KcError *err);
extern void kc_mux_curl_close(KcMux *mux);
extern void kc_mux_curl_keep(KcMux *mux, int connections);
extern void kc_mux_curl_action(KcMux *mux, curl_socket_t fd, int mask);
extern bool kc_mux_curl_timeout(KcMux *mux);
extern void kc_mux_curl_collect(KcMux *mux);
extern bool kc_mux_curl_complete(KcMux *mux);

#endif							/* KC_MUX_INTERNAL_H */
