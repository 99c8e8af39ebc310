/*
 * session.h
 *	  Which cluster, as whom: server + user mapping + GUCs -> a client of the
 *	  core, kept between statements.
 *
 * A client is cached per (server, user mapping) in the process.  A change of
 * the server or the mapping makes the next acquire build a new one; the old
 * one dies when its last holder releases it.
 */
#ifndef KPG_SESSION_H
#define KPG_SESSION_H

#include "postgres.h"

#include "../core/kusto.h"

typedef struct KpgSession
{
	Oid			serverid;
	Oid			userid;			/* as whom: whose mapping */
	const char *server_name;
	const char *database;		/* the server's default database, or NULL */
	const char *principal;		/* "aadapp=<client id>;<tenant>", NULL: not known */
	KcClient   *client;
} KpgSession;

/*
 * Find the server that an argument means: by name, or NULL for
 * kusto_ingest.default_server, else the only server of the wrapper that
 * userid may use; errors list the candidates.  Checks USAGE for userid.
 * Within a security-definer function NULL raises.
 */
extern Oid	kpg_session_server(const char *name, Oid userid);

/*
 * The Kusto database that an argument means: the argument, else the session's
 * default; raises when there is neither.  Hints of errors name it from now on.
 */
extern const char *kpg_session_database(const KpgSession *session, const char *argument);

/*
 * The client of a server for a user; must be released.  Raises when options
 * are wrong, the mapping is missing or not allowed, or the host is not trusted.
 */
extern KpgSession *kpg_session_acquire(Oid serverid, Oid userid);
extern void kpg_session_release(KpgSession *session);

/* Hold it once more; NULL when by now another one is to be acquired. */
extern KpgSession *kpg_session_share(KpgSession *session);

/* Acquire, and release when the memory context is reset or deleted. */
extern KpgSession *kpg_session_acquire_in(MemoryContext context, Oid serverid, Oid userid);

/*
 * As before, but a client of its own, which nobody else gets, and which asks
 * the service for all that other clients may already have been told.
 */
extern KpgSession *kpg_session_acquire_fresh_in(MemoryContext context, Oid serverid, Oid userid);

/* A string of the server's as the core wants it: UTF-8; NULL stays NULL. */
extern char *kpg_session_utf8(const char *text);

#endif							/* KPG_SESSION_H */
