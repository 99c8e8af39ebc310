/*
 * session.c
 *	  Which cluster, as whom: a cache of the core's clients.
 *
 * An entry belongs to a server, a user mapping and a user.  It is replaced
 * when the catalogs, a setting, or the process's mux have changed; whoever
 * still holds the old one keeps it.  Nothing is put into the cache before it
 * is complete, so an error leaves the cache as it was.
 */
#include "postgres.h"

#include "foreign/foreign.h"
#include "lib/ilist.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/syscache.h"

#include "alloc.h"
#include "compat.h"
#include "options.h"
#include "report.h"
#include "session.h"
#include "settings.h"
#include "shared.h"
#include "wait.h"

/* Idle clients that a process keeps; each may hold connections open. */
#define MAX_IDLE_SESSIONS 8

/* Settings that a client has taken over when it was made. */
typedef struct ClientSettings
{
	int			connect_timeout_ms;
	int			request_timeout_ms;
	int			stall_timeout_ms;
	int			retry_timeout_ms;
} ClientSettings;

typedef struct SessionEntry
{
	KpgSession	session;		/* first */
	dlist_node	node;			/* in sessions, most recently used first */
	MemoryContext context;		/* holds everything of the entry */
	Oid			mapping;
	uint32		server_hash;	/* of the catalog caches, for invalidation */
	uint32		mapping_hash;
	bool		valid;
	int			holders;
	ClientSettings settings;
	char	   *trusted_hosts;
} SessionEntry;

static dlist_head sessions = DLIST_STATIC_INIT(sessions);
static MemoryContext sessions_context;

/* Counts invalidations, so that one between reading and caching is noticed. */
static uint64 invalidations;

/* ---- invalidation ---- */

static void
invalidate(Datum arg, int cacheid, uint32 hashvalue)
{
	dlist_iter	iter;

	invalidations++;
	dlist_foreach(iter, &sessions)
	{
		SessionEntry *entry = dlist_container(SessionEntry, node, iter.cur);
		uint32		hash = cacheid == FOREIGNSERVEROID ? entry->server_hash : entry->mapping_hash;

		if (hashvalue == 0 || hashvalue == hash)
			entry->valid = false;
	}
}

static void
initialize(void)
{
	if (sessions_context != NULL)
		return;
	/* It may raise, and callbacks cannot be taken back. */
	sessions_context = AllocSetContextCreate(TopMemoryContext, "kusto_ingest clients",
											 ALLOCSET_SMALL_SIZES);
	CacheRegisterSyscacheCallback(FOREIGNSERVEROID, invalidate, (Datum) 0);
	CacheRegisterSyscacheCallback(USERMAPPINGOID, invalidate, (Datum) 0);
}

static ClientSettings
current_settings(void)
{
	ClientSettings settings;

	settings.connect_timeout_ms = kpg_connect_timeout_ms;
	settings.request_timeout_ms = kpg_request_timeout_ms;
	settings.stall_timeout_ms = kpg_stall_timeout_ms;
	settings.retry_timeout_ms = kpg_retry_timeout_ms;
	return settings;
}

static bool
is_current(const SessionEntry *entry)
{
	ClientSettings settings = current_settings();

	return entry->valid &&
		kc_client_mux(entry->session.client) == kpg_wait_mux() &&
		memcmp(&entry->settings, &settings, sizeof(settings)) == 0 &&
		strcmp(entry->trusted_hosts, kpg_trusted_hosts) == 0;
}

static void
forget(SessionEntry *entry)
{
	KcMux	   *mux = kc_client_mux(entry->session.client);

	Assert(entry->holders == 0);
	dlist_delete(&entry->node);
	kc_client_free(entry->session.client);
	kpg_wait_drop(mux);
	MemoryContextDelete(entry->context);
}

/* Free what nobody holds and nobody will get, and idle clients beyond the limit. */
static void
sweep(void)
{
	dlist_mutable_iter iter;
	int			idle = 0;

	dlist_foreach_modify(iter, &sessions)
	{
		SessionEntry *entry = dlist_container(SessionEntry, node, iter.cur);

		if (entry->holders > 0)
			continue;
		if (!is_current(entry) || ++idle > MAX_IDLE_SESSIONS)
			forget(entry);
	}
}

/* ---- making a client ---- */

char *
kpg_session_utf8(const char *text)
{
	if (text == NULL)
		return NULL;
	return pg_server_to_any(text, (int) strlen(text), PG_UTF8);
}

/* The user mapping of a user or of PUBLIC; unlike GetUserMapping(), with a hint. */
static UserMapping *
find_mapping(ForeignServer *server, Oid userid)
{
	if (!SearchSysCacheExists2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(userid),
							   ObjectIdGetDatum(server->serverid)) &&
		!SearchSysCacheExists2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
							   ObjectIdGetDatum(server->serverid)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("user mapping not found for user \"%s\", server \"%s\"",
						GetUserNameFromId(userid, false), server->servername),
				 errhint("Use CREATE USER MAPPING FOR %s SERVER %s OPTIONS (auth ...) to say who logs in to Kusto.",
						 quote_identifier(GetUserNameFromId(userid, false)),
						 quote_identifier(server->servername))));
	return GetUserMapping(userid, server->serverid);
}

/*
 * The identity of this machine is only lent to a server that a superuser
 * vouches for: whoever owns the server says where tokens are sent.
 */
static void
check_lent_identity(ForeignServer *server, const KpgMappingOptions *mapping)
{
	if (mapping->auth != KC_AUTH_MANAGED_IDENTITY || superuser_arg(server->owner))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("server \"%s\" may not use authentication method \"managed_identity\"",
					server->servername),
			 errdetail("The identity is the database server's own, and the server's owner is not a superuser."),
			 errhint("A superuser can use ALTER SERVER %s OWNER TO.", quote_identifier(server->servername))));
}

static void
fill_config(KcClientConfig *config, const KpgServerOptions *server,
			const KpgMappingOptions *mapping, Oid userid, bool shared)
{
	memset(config, 0, sizeof(*config));
	config->engine_uri = kpg_session_utf8(server->engine_uri);
	config->ingest_uri = kpg_session_utf8(server->ingest_uri);
	config->authority = kpg_session_utf8(server->authority);
	config->proxy = kpg_session_utf8(server->proxy);
	config->ca_file = server->ca_file;	/* a file name is bytes */
	config->trusted_hosts = kpg_options_trusted_hosts();
	config->auth = mapping->auth;
	config->tenant = kpg_session_utf8(mapping->tenant);
	config->client_id = kpg_session_utf8(mapping->client_id);
	config->client_secret = kpg_session_utf8(mapping->client_secret);
	config->access_token = kpg_session_utf8(mapping->access_token);
	config->identity_endpoint = kpg_session_utf8(mapping->identity_endpoint);
	config->application = "kusto_ingest";
	config->version = "1.0";
	config->user = kpg_session_utf8(GetUserNameFromId(userid, false));
	config->connect_timeout_ms = kpg_connect_timeout_ms;
	config->request_timeout_ms = kpg_request_timeout_ms;
	config->stall_timeout_ms = kpg_stall_timeout_ms;
	/* To the core zero is "without a limit"; to us it is "never again". */
	config->retry_total_ms = Max(kpg_retry_timeout_ms, 1);
	config->cache = shared ? kpg_shared_cache() : NULL;
}

static char *
principal_of(const KpgMappingOptions *mapping)
{
	if (mapping->auth != KC_AUTH_CLIENT_SECRET)
		return NULL;
	return psprintf("aadapp=%s;%s", mapping->client_id, mapping->tenant);
}

/* seen: how many invalidations there were before server and mapping were read. */
static SessionEntry *
make_entry(ForeignServer *server, UserMapping *mapping, Oid userid, bool shared, uint64 seen)
{
	KpgServerOptions server_options;
	KpgMappingOptions mapping_options;
	KcClientConfig config;
	KcMux	   *mux = kpg_wait_mux();
	MemoryContext context;
	MemoryContext old;
	SessionEntry *entry;
	KcStatus	status;
	KcError		err;

	kpg_options_server(server->options, &server_options);
	kpg_options_mapping(mapping->options, &mapping_options);
	check_lent_identity(server, &mapping_options);
	fill_config(&config, &server_options, &mapping_options, userid, shared);

	context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest client", ALLOCSET_DEFAULT_SIZES);
	MemoryContextCopyAndSetIdentifier(context, server->servername);
	old = MemoryContextSwitchTo(context);
	entry = palloc0(sizeof(SessionEntry));
	entry->context = context;
	entry->mapping = mapping->umid;
	entry->server_hash = GetSysCacheHashValue1(FOREIGNSERVEROID, ObjectIdGetDatum(server->serverid));
	entry->mapping_hash = GetSysCacheHashValue1(USERMAPPINGOID, ObjectIdGetDatum(mapping->umid));
	entry->settings = current_settings();
	entry->trusted_hosts = pstrdup(kpg_trusted_hosts);
	entry->session.serverid = server->serverid;
	entry->session.userid = userid;
	entry->session.server_name = pstrdup(server->servername);
	entry->session.database = server_options.database != NULL ? pstrdup(server_options.database) : NULL;
	entry->session.principal = principal_of(&mapping_options);
	status = kc_client_create(kpg_alloc_create(context), mux, &config, &entry->session.client, &err);
	MemoryContextSwitchTo(old);
	kpg_check(status, &err);

	/* From here on nothing raises. */
	kpg_wait_hold(mux);
	MemoryContextSetParent(context, sessions_context);
	entry->valid = seen == invalidations;
	dlist_push_head(&sessions, &entry->node);
	return entry;
}

KpgSession *
kpg_session_acquire(Oid serverid, Oid userid)
{
	ForeignServer *server;
	UserMapping *mapping;
	SessionEntry *found = NULL;
	uint64		seen;
	dlist_iter	iter;

	initialize();
	kpg_shared_tell();
	seen = invalidations;
	server = GetForeignServer(serverid);
	mapping = find_mapping(server, userid);
	sweep();
	dlist_foreach(iter, &sessions)
	{
		SessionEntry *entry = dlist_container(SessionEntry, node, iter.cur);

		if (entry->session.serverid == serverid && entry->session.userid == userid &&
			entry->mapping == mapping->umid && is_current(entry))
		{
			found = entry;
			break;
		}
	}
	if (found == NULL)
		found = make_entry(server, mapping, userid, true, seen);
	else
	{
		KpgMappingOptions options;

		/* The owner may have lost superuser since. */
		kpg_options_mapping(mapping->options, &options);
		check_lent_identity(server, &options);
		dlist_move_head(&sessions, &found->node);
	}
	found->holders++;
	kpg_report_target(found->session.database, found->session.principal);
	return &found->session;
}

KpgSession *
kpg_session_share(KpgSession *session)
{
	SessionEntry *entry = (SessionEntry *) session;

	Assert(entry->holders > 0);
	if (!is_current(entry))
		return NULL;
	entry->holders++;
	return session;
}

void
kpg_session_release(KpgSession *session)
{
	SessionEntry *entry = (SessionEntry *) session;

	Assert(entry->holders > 0);
	entry->holders--;

	/*
	 * Not swept here: this may run while a transaction aborts, and whether an
	 * entry is current may need a new mux.  The next acquire does it.
	 */
}

static void
release_callback(void *arg)
{
	kpg_session_release((KpgSession *) arg);
}

KpgSession *
kpg_session_acquire_in(MemoryContext context, Oid serverid, Oid userid)
{
	MemoryContextCallback *callback = MemoryContextAllocZero(context, sizeof(MemoryContextCallback));
	KpgSession *session = kpg_session_acquire(serverid, userid);

	callback->func = release_callback;
	callback->arg = session;
	MemoryContextRegisterResetCallback(context, callback);
	return session;
}

KpgSession *
kpg_session_acquire_fresh_in(MemoryContext context, Oid serverid, Oid userid)
{
	MemoryContextCallback *callback = MemoryContextAllocZero(context, sizeof(MemoryContextCallback));
	ForeignServer *server;
	SessionEntry *entry;

	initialize();
	sweep();
	server = GetForeignServer(serverid);
	entry = make_entry(server, find_mapping(server, userid), userid, false, invalidations);

	/* Nobody finds it, and the next sweep frees it. */
	entry->valid = false;
	entry->holders = 1;
	callback->func = release_callback;
	callback->arg = &entry->session;
	MemoryContextRegisterResetCallback(context, callback);
	kpg_report_target(entry->session.database, entry->session.principal);
	return &entry->session;
}

const char *
kpg_session_database(const KpgSession *session, const char *argument)
{
	const char *database = argument != NULL ? argument : session->database;

	if (database == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("no Kusto database is given, and server \"%s\" has no default", session->server_name),
				 errhint("Pass database, or use ALTER SERVER %s OPTIONS (ADD database ...).",
						 quote_identifier(session->server_name))));
	if (database[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the name of the Kusto database must not be empty")));
	kpg_report_target(database, session->principal);
	return database;
}
