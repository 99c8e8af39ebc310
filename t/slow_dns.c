/*
 * slow_dns.c
 *	  Preloaded into a server by t/040_cancel.pl: names below .slow.test take
 *	  five seconds to resolve, and then do not exist.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

typedef int (*resolver) (const char *, const char *, const struct addrinfo *, struct addrinfo **);

int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
			struct addrinfo **res)
{
	static const char suffix[] = ".slow.test";
	const size_t suffix_len = sizeof(suffix) - 1;
	size_t		len = node != NULL ? strlen(node) : 0;
	resolver	next;

	if (len > suffix_len && strcmp(node + len - suffix_len, suffix) == 0)
	{
		sleep(5);
		return EAI_NONAME;
	}
	*(void **) &next = dlsym(RTLD_NEXT, "getaddrinfo");
	return next(node, service, hints, res);
}
