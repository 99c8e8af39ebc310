/*
 * mux_curl.c
 *	  libcurl's side of the mux: its callbacks, and transfers on and off the
 *	  multi handle.
 *
 * Callbacks only note things down.  A finished transfer is first taken off
 * the multi handle; whoever waits for it is told after libcurl has returned.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* SOCK_CLOEXEC */
#endif
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "mux_internal.h"

#define IDLE_CONNECTIONS	32L

/* ---- signals, initialisation ---- */

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

/*
 * Once per process, and never undone: other users of libcurl in the process
 * may still need it.  A second TLS library beside the host's OpenSSL would be
 * an endless source of trouble, hence the check of the flavour.
 */
KcStatus
kc_mux_curl_initialize(KcError *err)
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
		kc_error_set(&mux->broken, KC_ERR_INTERNAL, kc_mux_doing,
					 "could not watch a socket: %s", strerror(errno));
	return -1;
}

static int
on_curl_timer(CURLM *multi, long timeout_ms, void *arg)
{
	KcMux	   *mux = arg;

	(void) multi;
	mux->curl_due_ms = timeout_ms < 0 ? -1 : kc_mux_real_ms() + timeout_ms;
	if (!mux->driving)
		kc_mux_rearm(mux);
	return 0;
}

static curl_socket_t
on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	KcTransfer *transfer = arg;
	KcMux	   *mux = transfer->mux;
	int			fd;

	(void) purpose;
	if (mux->hooks.acquire_fd != NULL && !mux->hooks.acquire_fd(mux->hooks.arg))
	{
		transfer->fd_refused = true;
		return CURL_SOCKET_BAD;
	}
	fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
	if (fd < 0)
	{
		transfer->fd_refused = errno == EMFILE || errno == ENFILE;
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
		|| curl_easy_setopt(transfer->easy, CURLOPT_OPENSOCKETDATA, transfer) != CURLE_OK
		|| curl_easy_setopt(transfer->easy, CURLOPT_CLOSESOCKETFUNCTION, on_close_socket) != CURLE_OK
		|| curl_easy_setopt(transfer->easy, CURLOPT_CLOSESOCKETDATA, mux) != CURLE_OK
		|| curl_easy_setopt(transfer->easy, CURLOPT_PRIVATE, transfer) != CURLE_OK)
		return kc_error_set(err, KC_ERR_INTERNAL, kc_mux_doing, "could not set an option of libcurl");

	/* Before libcurl knows it: its callbacks look here. */
	transfer->mux = mux;
	transfer->fd_refused = false;
	kc_mux_block_signals(&saved);
	code = curl_multi_add_handle(mux->multi, transfer->easy);
	kc_mux_restore_signals(&saved);
	if (code != CURLM_OK)
		transfer->mux = NULL;
	if (code == CURLM_OUT_OF_MEMORY)
		return kc_error_nomem(err, kc_mux_doing);
	if (code != CURLM_OK)
		return kc_error_set(err, KC_ERR_INTERNAL, kc_mux_doing, "could not start a transfer: %s",
							curl_multi_strerror(code));
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
		kc_mux_rearm(mux);
}

/*
 * Take what libcurl has finished off the multi handle.  A message is gone with
 * its handle: nothing of it is looked at after the removal.
 */
void
kc_mux_curl_collect(KcMux *mux)
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

bool
kc_mux_curl_complete(KcMux *mux)
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

/* ---- for the loop ---- */

void
kc_mux_curl_action(KcMux *mux, curl_socket_t fd, int mask)
{
	sigset_t	saved;
	int			running;
	CURLMcode	code;

	kc_mux_block_signals(&saved);
	code = curl_multi_socket_action(mux->multi, fd, mask, &running);
	kc_mux_restore_signals(&saved);
	if (code != CURLM_OK && mux->broken.status == KC_OK)
		kc_error_set(&mux->broken, KC_ERR_INTERNAL, kc_mux_doing, "libcurl gave up: %s",
					 curl_multi_strerror(code));
}

bool
kc_mux_curl_timeout(KcMux *mux)
{
	if (mux->curl_due_ms < 0 || mux->curl_due_ms > kc_mux_real_ms())
		return false;
	mux->curl_due_ms = -1;
	kc_mux_curl_action(mux, CURL_SOCKET_TIMEOUT, 0);
	return true;
}

/* ---- making and ending ---- */

KcStatus
kc_mux_curl_open(KcMux *mux, KcError *err)
{
	mux->multi = curl_multi_init();
	if (mux->multi == NULL)
		return kc_error_nomem(err, kc_mux_doing);
	if (curl_multi_setopt(mux->multi, CURLMOPT_SOCKETFUNCTION, on_curl_socket) != CURLM_OK
		|| curl_multi_setopt(mux->multi, CURLMOPT_SOCKETDATA, mux) != CURLM_OK
		|| curl_multi_setopt(mux->multi, CURLMOPT_TIMERFUNCTION, on_curl_timer) != CURLM_OK
		|| curl_multi_setopt(mux->multi, CURLMOPT_TIMERDATA, mux) != CURLM_OK
		|| curl_multi_setopt(mux->multi, CURLMOPT_PIPELINING, CURLPIPE_NOTHING) != CURLM_OK
		|| curl_multi_setopt(mux->multi, CURLMOPT_MAXCONNECTS, IDLE_CONNECTIONS) != CURLM_OK)
		return kc_error_set(err, KC_ERR_INTERNAL, kc_mux_doing, "could not set an option of libcurl");
#if LIBCURL_VERSION_NUM >= 0x081400
	/* From 8.20 on the resolver threads are the multi handle's. */
	(void) curl_multi_setopt(mux->multi, CURLMOPT_QUICK_EXIT, 1L);
#endif
	return KC_OK;
}

void
kc_mux_curl_keep(KcMux *mux, int connections)
{
	if (curl_multi_setopt(mux->multi, CURLMOPT_MAXCONNECTS, (long) connections) != CURLM_OK
		&& mux->broken.status == KC_OK)
		kc_error_set(&mux->broken, KC_ERR_INTERNAL, kc_mux_doing, "could not set an option of libcurl");
}

void
kc_mux_curl_close(KcMux *mux)
{
	sigset_t	saved;

	if (mux->multi == NULL)
		return;
	kc_mux_block_signals(&saved);
	(void) curl_multi_cleanup(mux->multi);
	kc_mux_restore_signals(&saved);
	mux->multi = NULL;
}
