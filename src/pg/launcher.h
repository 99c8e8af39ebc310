/*
 * launcher.h
 *	  The cluster's launcher: starts the worker of every database that may have
 *	  something to do, when nobody calls.
 *
 * There is one only when the server preloads the library.  Without it workers
 * start on first use, and what is here for other processes does nothing.
 */
#ifndef KPG_LAUNCHER_H
#define KPG_LAUNCHER_H

#include "postgres.h"

#include "utils/guc.h"

/* In the postmaster, while it preloads the library: have a launcher. */
extern void kpg_launcher_init(void);

/* kusto_ingest.databases */
extern bool kpg_launcher_check_databases(char **newval, void **extra, GucSource source);

/*
 * The database should have a worker and has none, because one ended badly or no
 * slot was free: ask the launcher to see to it.  Takes a spinlock, raises
 * nothing, so that it serves while a process exits, too.
 */
extern void kpg_launcher_ask(Oid database);

/* In a worker that the launcher has started: it has work and stays. */
extern void kpg_launcher_settled(void);

/* Entry point of the process. */
extern PGDLLEXPORT void kpg_launcher_main(Datum main_arg);

#endif							/* KPG_LAUNCHER_H */
