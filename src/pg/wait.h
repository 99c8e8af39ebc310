/*
 * wait.h
 *	  Every wait of the extension.
 *
 * Waits for the process's latch, a mux's descriptor and a timeout at once;
 * interrupts are served between, never while libcurl is on the stack.
 */
#ifndef KPG_WAIT_H
#define KPG_WAIT_H

#include "postgres.h"

#include "../core/mux.h"

typedef enum KpgWaitEvent
{
	KPG_WAIT_REQUEST,			/* KustoRequest: a command, query, probe, or
								 * ingestion at once */
	KPG_WAIT_UPLOAD,			/* KustoUpload: blocks under way */
	KPG_WAIT_PARALLEL,			/* KustoParallel: workers that have not read all yet */
	KPG_WAIT_OUTCOME,			/* KustoOutcome: kusto_wait */
	KPG_WAIT_WORKER,			/* KustoWorkerMain: the worker is idle */
	KPG_WAIT_LAUNCHER			/* KustoLauncherMain: the launcher is idle */
} KpgWaitEvent;

/*
 * The process's mux: made at first use, lives as long as the process, counts
 * its sockets with AcquireExternalFD().  Raises when it cannot be made.
 */
extern KcMux *kpg_wait_mux(void);

/*
 * How many connections it keeps open when nothing uses them, as far as the
 * process may have so many files; by default enough for one export.
 */
extern void kpg_wait_keep(KcMux *mux, int connections);

/*
 * A client on a mux keeps it alive, between hold and drop, even when it broke
 * and kpg_wait_mux() gives another one.  Neither raises.
 */
extern void kpg_wait_hold(KcMux *mux);
extern void kpg_wait_drop(KcMux *mux);

/* Raises when a mux that a client holds has broken: nobody drives it any more. */
extern void kpg_wait_check(const KcMux *mux);

/*
 * Drive the mux until *done, serving interrupts (which may raise).  False
 * when timeout_ms (-1: for ever) ran out first.
 */
extern bool kpg_wait_done(const bool *done, int64 timeout_ms, KpgWaitEvent event);

/* Drive the mux without waiting; serves interrupts. */
extern void kpg_wait_pump(void);

/*
 * Wait once: until the latch is set, the mux has something to do (it is then
 * driven), or the timeout.  Serves interrupts.  Returns WL_* bits.
 */
extern int	kpg_wait_once(int64 timeout_ms, KpgWaitEvent event);

/*
 * The same without the latch, which is left as it is: whoever has set it does
 * not wake us, nor does whoever sets it meanwhile have to signal us.  A signal
 * is served when the time is over, so that must be short.
 */
extern int	kpg_wait_deaf(int64 timeout_ms, KpgWaitEvent event);

#ifdef KUSTO_FAULTS
/* Drives nothing; ends by an interrupt, or not even so. */
extern void kpg_wait_forever(bool interruptible);
/* The whole time, whatever happens. */
extern void kpg_wait_blindly(int64 ms);
#endif

#endif							/* KPG_WAIT_H */
