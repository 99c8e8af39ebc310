/*
 * broken_epoll.c
 *	  LD_PRELOAD: an epoll_wait() that fails once in the process whose number
 *	  ends the name of a file; KUSTO_TEST_BREAK_EPOLL is its beginning.
 *	  PostgreSQL's own calls wait for one event.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

int
epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout)
{
	static int	(*next) (int, struct epoll_event *, int, int);
	const char *prefix = getenv("KUSTO_TEST_BREAK_EPOLL");

	if (maxevents > 4 && timeout == 0 && prefix != NULL)
	{
		int			saved = errno;
		char		file[1024];

		snprintf(file, sizeof(file), "%s.%d", prefix, (int) getpid());
		if (unlink(file) == 0)
		{
			errno = EBADF;
			return -1;
		}
		errno = saved;
	}
	if (next == NULL)
		next = (int (*) (int, struct epoll_event *, int, int)) dlsym(RTLD_NEXT, "epoll_wait");
	return next(epfd, events, maxevents, timeout);
}
