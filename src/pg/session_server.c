/*
 * session_server.c
 *	  Which server a call means.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/pg_foreign_server.h"
#include "foreign/foreign.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "compat.h"
#include "report.h"
#include "session.h"
#include "settings.h"

#define WRAPPER_NAME "kusto"

static bool
may_use(Oid serverid, Oid userid)
{
	return kpg_compat_server_aclcheck(serverid, userid, ACL_USAGE) == ACLCHECK_OK;
}

/* Names of our wrapper's servers that userid may use, sorted; *oids goes with them. */
static List *
usable_servers(Oid userid, List **oids)
{
	ForeignDataWrapper *wrapper = GetForeignDataWrapperByName(WRAPPER_NAME, true);
	Relation	rel;
	SysScanDesc scan;
	HeapTuple	tuple;
	List	   *names = NIL;

	*oids = NIL;
	if (wrapper == NULL)
		return NIL;

	/* The index on the name gives them in order. */
	rel = table_open(ForeignServerRelationId, AccessShareLock);
	scan = systable_beginscan(rel, ForeignServerNameIndexId, true, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_foreign_server form = (Form_pg_foreign_server) GETSTRUCT(tuple);

		if (form->srvfdw != wrapper->fdwid || !may_use(form->oid, userid))
			continue;
		names = lappend(names, pstrdup(NameStr(form->srvname)));
		*oids = lappend_oid(*oids, form->oid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return names;
}

static char *
joined(List *names)
{
	StringInfoData text;
	ListCell   *lc;

	initStringInfo(&text);
	foreach(lc, names)
		appendStringInfo(&text, "%s\"%s\"", text.len > 0 ? ", " : "", (char *) lfirst(lc));
	return text.data;
}

static void
server_missing(const char *name, bool from_setting, Oid userid)
{
	List	   *oids;
	List	   *names = usable_servers(userid, &oids);

	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 from_setting
			 ? errmsg("server \"%s\" of kusto_ingest.default_server does not exist", name)
			 : errmsg("server \"%s\" does not exist", name),
			 names != NIL
			 ? errdetail("Servers that you may use: %s.", joined(names))
			 : 0,
			 errhint("Use CREATE SERVER %s FOREIGN DATA WRAPPER kusto OPTIONS (cluster ...).",
					 quote_identifier(name))));
}

static Oid
server_by_name(const char *name, bool from_setting, Oid userid)
{
	ForeignServer *server = GetForeignServerByName(name, true);

	if (server == NULL)
		server_missing(name, from_setting, userid);
	if (strcmp(GetForeignDataWrapper(server->fdwid)->fdwname, WRAPPER_NAME) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("server \"%s\" does not belong to foreign-data wrapper \"%s\"", name, WRAPPER_NAME)));
	if (!may_use(server->serverid, userid))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FOREIGN_SERVER, name);
	return server->serverid;
}

static Oid
only_server(Oid userid)
{
	List	   *oids;
	List	   *names = usable_servers(userid, &oids);

	if (names == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("there is no server of foreign-data wrapper \"%s\" that you may use", WRAPPER_NAME),
				 errhint("Use CREATE SERVER adx FOREIGN DATA WRAPPER kusto OPTIONS (cluster ...), "
						 "or ask for GRANT USAGE ON FOREIGN SERVER.")));
	if (list_length(names) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_AMBIGUOUS_PARAMETER),
				 errmsg("there are several servers of foreign-data wrapper \"%s\"", WRAPPER_NAME),
				 errdetail("Servers that you may use: %s.", joined(names)),
				 errhint("Pass server => ..., or set kusto_ingest.default_server.")));
	return linitial_oid(oids);
}

Oid
kpg_session_server(const char *name, Oid userid)
{
	if (name != NULL)
		return server_by_name(name, false, userid);

	/*
	 * Whoever calls the function sets the parameter, and can create servers:
	 * neither may choose where its owner's data goes.
	 */
	if (InLocalUserIdChange())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("a call without a server is not allowed within a security-definer function"),
				 errdetail("The default would be a choice of the function's caller."),
				 errhint("Pass server => ...")));
	if (kpg_default_server != NULL && kpg_default_server[0] != '\0')
		return server_by_name(kpg_default_server, true, userid);
	return only_server(userid);
}
