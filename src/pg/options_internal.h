/*
 * options_internal.h
 *	  Between options.c and options_string.c.
 */
#ifndef KPG_OPTIONS_INTERNAL_H
#define KPG_OPTIONS_INTERNAL_H

#include "postgres.h"

/* What a connection string says that a server has options for; NULL: nothing. */
typedef struct KpgConnectionString
{
	char	   *cluster;
	char	   *database;
	char	   *authority;
} KpgConnectionString;

/* Raises for whatever does not belong on a server; never repeats a value. */
extern void kpg_options_parse_string(const char *text, KpgConnectionString *result);

/*
 * Raise unless value is an https URI, or one of the loopback, without query,
 * of a host that may be given tokens or client secrets.  Then *path gets its
 * path, without slashes around it; path NULL: there may be none.  The error
 * names option and host and never repeats the value.
 */
extern void kpg_options_check_cluster_uri(const char *option, const char *value, char **path);
extern void kpg_options_check_login_uri(const char *option, const char *value, char **path);

#endif							/* KPG_OPTIONS_INTERNAL_H */
