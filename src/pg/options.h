/*
 * options.h
 *	  Options of servers and user mappings: what there is, what is allowed, and
 *	  what a set of them means.
 */
#ifndef KPG_OPTIONS_H
#define KPG_OPTIONS_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "../core/kusto.h"

/*
 * Strings are palloc'd or the options' own; NULL when absent.
 */
typedef struct KpgServerOptions
{
	char	   *engine_uri;		/* both always set, derived when not given */
	char	   *ingest_uri;
	char	   *database;
	char	   *authority;
	char	   *proxy;
	char	   *ca_file;
} KpgServerOptions;

typedef struct KpgMappingOptions
{
	KcAuthMethod auth;
	char	   *tenant;
	char	   *client_id;
	char	   *client_secret;
	char	   *access_token;
	char	   *identity_endpoint;
} KpgMappingOptions;

/*
 * Read lists of DefElem, as the catalogs give them.  Raise when they make no
 * sense: a server may have been made under another version of the extension.
 */
extern void kpg_options_server(List *options, KpgServerOptions *result);
extern void kpg_options_mapping(List *options, KpgMappingOptions *result);

/* kusto_ingest.trusted_hosts as a NULL-terminated array; palloc'd. */
extern const char *const *kpg_options_trusted_hosts(void);

#endif							/* KPG_OPTIONS_H */
