/*
 * launcher_internal.h
 *	  What the parts of the launcher share.
 *
 *	launcher.c			 the process: which workers it starts, and when
 *	launcher_databases.c which databases there are, and kusto_ingest.databases
 *	launcher_shared.c	 the words that processes leave for it
 *	launcher_utility.c	 commands that want a database without connections
 */
#ifndef KPG_LAUNCHER_INTERNAL_H
#define KPG_LAUNCHER_INTERNAL_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "launcher.h"

#define KPG_LAUNCHER_TYPE "kusto_ingest launcher"

/* launcher_databases.c */

/* OIDs of the databases that kusto_ingest.databases allows and that can be connected to. */
extern List *kpg_launcher_databases(const char *setting);

/* launcher_shared.c */

/* In the postmaster: there will be shared memory for the launcher. */
extern void kpg_launcher_share(void);

/* I am the launcher, until the process exits. */
extern void kpg_launcher_present(void);

/* The next worker to settle is this database's. */
extern void kpg_launcher_expect(Oid database);
extern bool kpg_launcher_has_settled(void);

#define KPG_LAUNCHER_ASKED_MAX	64

/*
 * Take what was asked for: at most KPG_LAUNCHER_ASKED_MAX databases.  -1: more
 * than fit, so it might be any.
 */
extern int	kpg_launcher_take(Oid *databases);

/* launcher_utility.c */
extern void kpg_launcher_hook(void);

#endif							/* KPG_LAUNCHER_INTERNAL_H */
