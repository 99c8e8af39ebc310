/*
 * init.c
 *	  The library's magic block and its configuration parameters.
 *
 * Runs in the postmaster when the library is preloaded: it allocates nothing
 * but the parameters and leaves libcurl alone, which is initialised in the
 * process that needs it.
 */
#include "postgres.h"

#include <ctype.h>
#include <limits.h>

#include "../core/zipline.h"
#include "capture.h"
#include "compat.h"
#include "fault.h"
#include "launcher.h"
#include "settings.h"
#include "shared.h"
#include "version.h"

#ifdef PG_MODULE_MAGIC_EXT
PG_MODULE_MAGIC_EXT(.name = "kusto_ingest", .version = KPG_VERSION);
#else
PG_MODULE_MAGIC;
#endif

char	   *kpg_default_server;
char	   *kpg_trusted_hosts;
char	   *kpg_databases;
int			kpg_max_blob_size_kb = 512 * 1024;
int			kpg_compression_level = 1;
int			kpg_compression_threads = 1;
static char *compression_library;
int			kpg_connect_timeout_ms = 10 * 1000;
int			kpg_request_timeout_ms = 4 * 60 * 1000;
int			kpg_stall_timeout_ms = 60 * 1000;
int			kpg_retry_timeout_ms = 2 * 60 * 1000;
int			kpg_naptime_ms = 10 * 1000;
int			kpg_worker_idle_timeout_ms = 60 * 1000;
int			kpg_post_timeout_s = 24 * 60 * 60;
int			kpg_repost_after_s = 10 * 60;
int			kpg_max_jobs = 4;
int			kpg_job_timeout_ms = 0;
int			kpg_status_timeout_s = 48 * 60 * 60;
int			kpg_retention_s = 7 * 24 * 60 * 60;
int			kpg_flush_interval_ms = 1000;
int			kpg_outbox_limit_kb = 8 * 1024 * 1024;
int			kpg_outbox_limit_action = KPG_OUTBOX_LIMIT_WARN;

PGDLLEXPORT void _PG_init(void);

/*
 * Host suffixes, separated by commas.  A suffix without a dot would trust a
 * whole top-level domain.
 */
static bool
check_trusted_hosts(char **newval, void **extra, GucSource source)
{
	const char *p = *newval;

	while (*p != '\0')
	{
		size_t		len = strcspn(p, ",");
		const char *word = p + strspn(p, " \t");
		const char *end = p + len;

		while (end > word && (end[-1] == ' ' || end[-1] == '\t'))
			end--;
		if (end == word)
		{
			GUC_check_errdetail("The list has an empty element.");
			return false;
		}
		for (const char *c = word; c < end; c++)
		{
			if (!isalnum((unsigned char) *c) && *c != '.' && *c != '-')
			{
				GUC_check_errdetail("A host suffix consists of letters, digits, hyphens and dots.");
				return false;
			}
		}
		if (memchr(word + 1, '.', (size_t) (end - word) - 1) == NULL)
		{
			GUC_check_errdetail("A host suffix needs two labels at least, such as \".example.com\".");
			return false;
		}
		p += len;
		if (*p == ',' && *++p == '\0')
		{
			GUC_check_errdetail("The list has an empty element.");
			return false;
		}
	}
	return true;
}

static void
define_targets(void)
{
	DefineCustomStringVariable("kusto_ingest.default_server",
							   "Server that a call without the argument server means.",
							   NULL, &kpg_default_server, "",
							   PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("kusto_ingest.trusted_hosts",
							   "Further host name suffixes that may be given tokens and data.",
							   "Comma-separated; Kusto's own host names and the loopback are always trusted.",
							   &kpg_trusted_hosts, "",
	/* The same for all: what a session trusts, the worker has to trust, too. */
							   PGC_SIGHUP, 0, check_trusted_hosts, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.max_blob_size",
							"Uncompressed size at which an export begins another blob.",
							NULL, &kpg_max_blob_size_kb, 512 * 1024, 1024, 4 * 1024 * 1024,
							PGC_USERSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.compression_level",
							"Level of gzip compression of blobs.",
							NULL, &kpg_compression_level, 1, 1, 9,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.compression_threads",
							"Threads that compress the blobs of one export.",
							"0 compresses in the process that runs the query.",
							&kpg_compression_threads, 1, 0, KC_ZIPLINE_MAX_THREADS,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("kusto_ingest.compression_library",
							   "Library that compresses.",
							   NULL, &compression_library, kc_gzip_library(),
							   PGC_INTERNAL, GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE, NULL, NULL, NULL);
}

static void
define_network(void)
{
	DefineCustomIntVariable("kusto_ingest.connect_timeout",
							"Time to connect to a host, TLS included.",
							NULL, &kpg_connect_timeout_ms, 10 * 1000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.request_timeout",
							"Time to wait for the answer to a query or command.",
							NULL, &kpg_request_timeout_ms, 4 * 60 * 1000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.stall_timeout",
							"Time after which a transfer that moves nothing is given up.",
							NULL, &kpg_stall_timeout_ms, 60 * 1000, 1, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.retry_timeout",
							"Time for which a request that fails for a passing reason is repeated.",
							"Zero means that nothing is repeated.",
							&kpg_retry_timeout_ms, 2 * 60 * 1000, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
}

static void
define_worker(void)
{
	DefineCustomStringVariable("kusto_ingest.databases",
							   "Databases whose worker the launcher starts.",
							   "Comma-separated names, or * for all; the library has to be preloaded.",
							   &kpg_databases, "*",
							   PGC_SIGHUP, GUC_LIST_INPUT, kpg_launcher_check_databases, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.naptime",
							"Time between two looks for work that nobody announced.",
							NULL, &kpg_naptime_ms, 10 * 1000, 100, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.worker_idle_timeout",
							"Time without work after which a database's worker ends.",
							NULL, &kpg_worker_idle_timeout_ms, 60 * 1000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.post_timeout",
							"Time for which the worker repeats a post that fails for a passing reason "
							"before the operation fails.",
							NULL, &kpg_post_timeout_s, 24 * 60 * 60, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.repost_after",
							"Time to wait for a sign of a blob whose post may have been received, "
							"before it is posted again.",
							NULL, &kpg_repost_after_s, 10 * 60, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.status_timeout",
							"Time after which a blob without an outcome becomes \"unknown\".",
							NULL, &kpg_status_timeout_s, 48 * 60 * 60, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.retention",
							"Time for which the worker keeps the records of finished operations.",
							"-1 means that it never deletes them.",
							&kpg_retention_s, 7 * 24 * 60 * 60, -1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
}

static void
define_jobs(void)
{
	DefineCustomIntVariable("kusto_ingest.max_jobs",
							"Number of background processes of a database that run queries of "
							"kusto_ingest_async() at once.",
							"Zero means that no further ones are started.",
							&kpg_max_jobs, 4, 0, 1024,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.job_timeout",
							"Time after which the query of kusto_ingest_async() is cancelled.",
							"The value at the call counts. Zero means no limit.",
							&kpg_job_timeout_ms, 0, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
}

static const struct config_enum_entry outbox_limit_actions[] = {
	{"warn", KPG_OUTBOX_LIMIT_WARN, false},
	{"error", KPG_OUTBOX_LIMIT_ERROR, false},
	{NULL, 0, false}
};

static void
define_capture(void)
{
	DefineCustomIntVariable("kusto_ingest.flush_interval",
							"Time for which captured row changes wait for others to be sent with them.",
							"Zero means that they are sent at once.",
							&kpg_flush_interval_ms, 1000, 0, 60 * 60 * 1000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("kusto_ingest.outbox_limit",
							"Size of the outbox of captured row changes above which outbox_limit_action is taken.",
							"-1 means no limit.",
							&kpg_outbox_limit_kb, 8 * 1024 * 1024, -1, INT_MAX,
							PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomEnumVariable("kusto_ingest.outbox_limit_action",
							 "What becomes of a row change when the outbox is above its limit.",
							 "With \"warn\" it is recorded and the server log says so; with \"error\" it fails.",
							 &kpg_outbox_limit_action, KPG_OUTBOX_LIMIT_WARN, outbox_limit_actions,
							 PGC_SUSET, 0, NULL, NULL, NULL);
}

void
_PG_init(void)
{
	define_targets();
	define_network();
	define_worker();
	define_jobs();
	define_capture();
	kpg_fault_define();
	kpg_compat_reserve_prefix("kusto_ingest");

	kpg_version_set_preloaded(process_shared_preload_libraries_in_progress);
	/* pg_upgrade's server has nobody to serve. */
	if (process_shared_preload_libraries_in_progress && !IsBinaryUpgrade)
		kpg_launcher_init();
	kpg_shared_init();
	kpg_outbox_share();
	kpg_capture_order_init();
}
