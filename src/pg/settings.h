/*
 * settings.h
 *	  The configuration parameters, prefix kusto_ingest.  Defined in init.c.
 *
 * Units are in the names, because GUC hides them.
 */
#ifndef KPG_SETTINGS_H
#define KPG_SETTINGS_H

#include "postgres.h"

/* which cluster */
extern char *kpg_default_server;	/* "": none */
extern char *kpg_trusted_hosts; /* comma-separated host suffixes, "": none */

/* blobs */
extern int	kpg_max_blob_size_kb;	/* raw bytes of a blob, in kB */
extern int	kpg_compression_level;	/* gzip's, 1 to 9 */
extern int	kpg_compression_threads;	/* of one export; 0: in the process itself */

/* the network */
extern int	kpg_connect_timeout_ms;
extern int	kpg_request_timeout_ms;
extern int	kpg_stall_timeout_ms;
extern int	kpg_retry_timeout_ms;

/* the launcher */
extern char *kpg_databases;		/* "*" or a list of identifiers */

/* the worker */
extern int	kpg_naptime_ms;
extern int	kpg_worker_idle_timeout_ms;
extern int	kpg_post_timeout_s;	/* a blob that cannot be posted fails */
extern int	kpg_repost_after_s;	/* patience with a post that may have arrived */
extern int	kpg_max_jobs;		/* processes of jobs at once; 0: none */
extern int	kpg_job_timeout_ms; /* of the query of a job; 0: no limit */
extern int	kpg_status_timeout_s;	/* a posted blob without an outcome is given up */
extern int	kpg_retention_s;	/* records of what finished so long ago go; -1: never */

/* row changes */
typedef enum KpgOutboxLimitAction
{
	KPG_OUTBOX_LIMIT_WARN,
	KPG_OUTBOX_LIMIT_ERROR
} KpgOutboxLimitAction;

extern int	kpg_flush_interval_ms;	/* changes wait so long for others; 0: not at all */
extern int	kpg_outbox_limit_kb;	/* -1: none */
extern int	kpg_outbox_limit_action;

#endif							/* KPG_SETTINGS_H */
