/*
 * mux.h
 *	  All sockets of a process's HTTP transfers, its timers and its helper
 *	  threads' wake-ups, behind ONE pollable file descriptor.
 *
 * The owner waits for kc_mux_fd() to become readable by whatever means its
 * process has (WaitLatchOrSocket in PostgreSQL), then calls kc_mux_drive(),
 * which never blocks.  Completion callbacks run inside kc_mux_drive(), but
 * never while a libcurl frame is on the stack, so they may start and cancel
 * transfers; they must not throw.  All signals are blocked while libcurl
 * runs, because its resolver thread inherits the mask.
 *
 * A mux belongs to the process that made it; it is useless after fork().
 */
#ifndef KC_MUX_H
#define KC_MUX_H

#include "base.h"
#include "retry.h"

typedef struct KcMux KcMux;

/*
 * File descriptor accounting of the host process; either may be NULL.  They
 * are called with libcurl on the stack and must not throw.
 */
typedef struct KcMuxHooks
{
	bool		(*acquire_fd) (void *arg);	/* false: no socket may be opened now */
	void		(*release_fd) (void *arg);
	void	   *arg;
} KcMuxHooks;

/* First call in a process initialises libcurl; not to be called in a postmaster. */
extern KcStatus kc_mux_create(const KcAlloc *alloc, const KcClock *clock,
							  const KcMuxHooks *hooks, KcMux **mux, KcError *err);

/* Aborts what still runs; its callbacks are not called. NULL is fine. */
extern void kc_mux_free(KcMux *mux);

/*
 * So many connections stay open when nothing uses them; the default suffices
 * for one export.  With fewer than there are requests under way to different
 * hosts, each of these connects anew.
 */
extern void kc_mux_keep(KcMux *mux, int connections);

extern int	kc_mux_fd(const KcMux *mux);
extern const KcClock *kc_mux_clock(const KcMux *mux);

/*
 * Do all that can be done now.  An error means that the mux itself is
 * broken, not that a transfer failed: free it.
 */
extern KcStatus kc_mux_drive(KcMux *mux, KcError *err);

/*
 * A process that is busy elsewhere drives the mux late: a timer was due long
 * ago.  What times out or breaks then is not to be blamed on the network.
 */
extern bool kc_mux_is_late(const KcMux *mux);	/* the current drive */
extern int64_t kc_mux_late_ms(const KcMux *mux);	/* of all drives so far */

/* A timer; the struct belongs to the caller, zeroed before its first use. */
typedef struct KcTimer
{
	int64_t		at_ms;			/* monotonic */
	void		(*fire) (struct KcTimer *timer);
	void	   *arg;
	bool		armed;
	struct KcTimer *next;
} KcTimer;

extern void kc_mux_timer_set(KcMux *mux, KcTimer *timer, int64_t at_ms);
extern void kc_mux_timer_cancel(KcMux *mux, KcTimer *timer);	/* fine when not armed */

/* A foreign descriptor to watch for reading (a helper thread's eventfd). */
typedef struct KcWatch
{
	int			fd;
	void		(*ready) (struct KcWatch *watch);
	void	   *arg;
	bool		active;
	struct KcWatch *next;
} KcWatch;

extern KcStatus kc_mux_watch(KcMux *mux, KcWatch *watch, KcError *err);
extern void kc_mux_unwatch(KcMux *mux, KcWatch *watch); /* fine when not active */

#endif							/* KC_MUX_H */
