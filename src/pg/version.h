/*
 * version.h
 *	  Is this library new enough for the extension's SQL?
 *
 * A package upgrade replaces the library's file, while processes go on with the
 * library that they have; ALTER EXTENSION UPDATE then brings SQL that is newer.
 */
#ifndef KPG_VERSION_H
#define KPG_VERSION_H

#include "postgres.h"

/* Of the newest SQL that this library knows; it serves all older ones, too. */
#define KPG_VERSION "1.0"

/*
 * Raise when the installed extension is newer than the library.  The first
 * thing that an SQL-callable function does: arguments may have changed.  In a
 * transaction; looks once in each.
 */
extern void kpg_version_check(void);

/*
 * The same as an answer; false also tells which version is installed, in the
 * current context.  True when there is no extension.
 */
extern bool kpg_version_is_served(char **installed);

/* What to do about a library that is too old; for HINT. */
extern const char *kpg_version_hint(void);

/* Was the library preloaded by the server?  _PG_init() knows. */
extern bool kpg_version_is_preloaded(void);
extern void kpg_version_set_preloaded(bool preloaded);

/* Versions as dotted numbers, 1.10 after 1.9: below, at or above 0. */
extern int	kpg_version_compare(const char *a, const char *b);

#endif							/* KPG_VERSION_H */
