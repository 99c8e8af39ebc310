/*
 * mux_curl.h
 *	  The part of the mux that only the HTTP layer sees: libcurl transfers.
 *
 * No other header of the core names libcurl, and no file outside of mux*.c
 * and http*.c includes this one.
 */
#ifndef KC_MUX_CURL_H
#define KC_MUX_CURL_H

#include <curl/curl.h>
#include <signal.h>

#include "mux.h"

/*
 * One easy handle on the multi handle.  The struct belongs to the caller and
 * is zeroed before its first use.
 */
typedef struct KcTransfer
{
	CURL	   *easy;
	/* Called from kc_mux_drive(), after the transfer was taken off the mux. */
	void		(*complete) (struct KcTransfer *transfer, CURLcode code);
	void	   *arg;
	/* The mux's own. */
	KcMux	   *mux;			/* NULL when not on a mux */
	bool		fd_refused;		/* a socket of it, for the process has too many open */
	bool		finished;
	CURLcode	code;
	struct KcTransfer *prev;
	struct KcTransfer *next;
} KcTransfer;

/* Give the easy handle the mux's socket hooks and put it on. */
extern KcStatus kc_mux_add(KcMux *mux, KcTransfer *transfer, KcError *err);

/* Take it off, whatever its state; complete will not be called any more. */
extern void kc_mux_remove(KcTransfer *transfer);

/*
 * Around every use of libcurl that may start a thread or touch a socket:
 * libcurl's resolver thread inherits the signal mask, and a signal handler of
 * the host process must not run in it.
 */
extern void kc_mux_block_signals(sigset_t *saved);
extern void kc_mux_restore_signals(const sigset_t *saved);

#endif							/* KC_MUX_CURL_H */
