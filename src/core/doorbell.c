/*
 * doorbell.c
 *	  A descriptor that one thread makes readable for another.
 *
 * Both ends are non-blocking and closed on exec.  A full pipe or counter is as
 * readable as it can be, so a failed write loses nothing.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* eventfd() */
#endif

#include "doorbell.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <unistd.h>

#if defined(__linux__) && !defined(KC_DOORBELL_PIPE)
#include <sys/eventfd.h>

bool
kc_doorbell_open(KcDoorbell *bell)
{
	bell->read_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	bell->write_fd = bell->read_fd;
	return bell->read_fd >= 0;
}

#else

static bool
prepare(int fd)
{
	int			flags = fcntl(fd, F_GETFL);

	return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 &&
		fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
}

bool
kc_doorbell_open(KcDoorbell *bell)
{
	int			fds[2];

	if (pipe(fds) != 0)
		return false;
	bell->read_fd = fds[0];
	bell->write_fd = fds[1];
	if (prepare(fds[0]) && prepare(fds[1]))
		return true;
	kc_doorbell_close(bell);
	return false;
}

#endif

void
kc_doorbell_close(KcDoorbell *bell)
{
	if (bell->write_fd != bell->read_fd)
		(void) close(bell->write_fd);
	(void) close(bell->read_fd);
}

int
kc_doorbell_fd(const KcDoorbell *bell)
{
	return bell->read_fd;
}

void
kc_doorbell_ring(const KcDoorbell *bell)
{
	uint64_t	one = 1;
	ssize_t		n;

	do
	{
		n = write(bell->write_fd, &one, sizeof(one));
	} while (n < 0 && errno == EINTR);
}

void
kc_doorbell_answer(const KcDoorbell *bell)
{
	uint64_t	count;
	ssize_t		n;

	do
	{
		n = read(bell->read_fd, &count, sizeof(count));
	} while (n > 0 && bell->write_fd != bell->read_fd);
}
