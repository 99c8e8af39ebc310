/*
 * options.c
 *	  Options of servers and user mappings: one table of what there is, checks
 *	  of each value, and checks of what may stand together.
 *
 * CREATE and ALTER give the validator all options that the object will have,
 * so the checks of combinations see everything.  No message repeats a value.
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "utils/builtins.h"

#include "../core/text.h"
#include "alloc.h"
#include "compat.h"
#include "options.h"
#include "options_internal.h"
#include "report.h"
#include "settings.h"

typedef enum ValueKind
{
	VALUE_TEXT,
	VALUE_CLUSTER_URI,			/* a host that gets tokens and data */
	VALUE_LOGIN_URI,			/* a host that gets client secrets */
	VALUE_ANY_URI,				/* http is fine: a proxy, an identity endpoint */
	VALUE_PATH,
	VALUE_ID,					/* a tenant or an application: part of URLs */
	VALUE_TOKEN,				/* goes into a header */
	VALUE_METHOD,
	VALUE_CONNECTION_STRING
} ValueKind;

typedef struct OptionSpec
{
	const char *name;
	Oid			catalog;
	ValueKind	kind;
} OptionSpec;

static const OptionSpec specs[] = {
	{"cluster", ForeignServerRelationId, VALUE_CLUSTER_URI},
	{"query_uri", ForeignServerRelationId, VALUE_CLUSTER_URI},
	{"ingest_uri", ForeignServerRelationId, VALUE_CLUSTER_URI},
	{"database", ForeignServerRelationId, VALUE_TEXT},
	{"authority", ForeignServerRelationId, VALUE_LOGIN_URI},
	{"proxy", ForeignServerRelationId, VALUE_ANY_URI},
	{"ca_file", ForeignServerRelationId, VALUE_PATH},
	{"connection_string", ForeignServerRelationId, VALUE_CONNECTION_STRING},
	{"auth", UserMappingRelationId, VALUE_METHOD},
	{"tenant", UserMappingRelationId, VALUE_ID},
	{"client_id", UserMappingRelationId, VALUE_ID},
	{"client_secret", UserMappingRelationId, VALUE_TEXT},
	{"certificate_file", UserMappingRelationId, VALUE_PATH},
	{"private_key_file", UserMappingRelationId, VALUE_PATH},
	{"federated_token_file", UserMappingRelationId, VALUE_PATH},
	{"access_token", UserMappingRelationId, VALUE_TOKEN},
	{"identity_endpoint", UserMappingRelationId, VALUE_ANY_URI}
};

/* What each method needs and takes; lists end with NULL. */
typedef struct MethodSpec
{
	const char *name;
	bool		supported;
	KcAuthMethod method;
	const char *required[4];
	const char *optional[3];
} MethodSpec;

static const MethodSpec methods[] = {
	{"client_secret", true, KC_AUTH_CLIENT_SECRET, {"tenant", "client_id", "client_secret", NULL}, {NULL}},
	{"access_token", true, KC_AUTH_ACCESS_TOKEN, {"access_token", NULL}, {NULL}},
	{"managed_identity", true, KC_AUTH_MANAGED_IDENTITY, {NULL}, {"client_id", "identity_endpoint", NULL}},
	{"none", true, KC_AUTH_NONE, {NULL}, {NULL}},
	{"client_certificate", false, KC_AUTH_NONE, {NULL}, {NULL}},
	{"workload_identity", false, KC_AUTH_NONE, {NULL}, {NULL}}
};

#define METHOD_LIST "client_secret, access_token, managed_identity, none"

PG_FUNCTION_INFO_V1(kusto_fdw_validator);

/* ---- looking options up ---- */

static char *
option_value(List *options, const char *name)
{
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);

		if (strcmp(def->defname, name) == 0)
			return defGetString(def);
	}
	return NULL;
}

static const OptionSpec *
find_spec(const char *name, Oid catalog)
{
	for (size_t i = 0; i < lengthof(specs); i++)
	{
		if (specs[i].catalog == catalog && strcmp(specs[i].name, name) == 0)
			return &specs[i];
	}
	return NULL;
}

static const MethodSpec *
find_method(const char *name)
{
	for (size_t i = 0; i < lengthof(methods); i++)
	{
		if (strcmp(methods[i].name, name) == 0)
			return &methods[i];
	}
	return NULL;
}

static bool
in_list(const char *const *list, const char *name)
{
	for (; *list != NULL; list++)
	{
		if (strcmp(*list, name) == 0)
			return true;
	}
	return false;
}

/* ---- one option ---- */

static void
unknown_option(const char *name, Oid catalog)
{
	bool		on_server = catalog == ForeignServerRelationId;
	bool		on_mapping = catalog == UserMappingRelationId;
	const char *names[lengthof(specs)];
	int			nnames = 0;
	const char *closest;
	const char *hint;

	for (size_t i = 0; i < lengthof(specs); i++)
	{
		if (specs[i].catalog == catalog)
			names[nnames++] = specs[i].name;
	}
	closest = kpg_report_closest(name, names, nnames);

	if (on_server && find_spec(name, UserMappingRelationId) != NULL)
		hint = "This option belongs to a user mapping.";
	else if (on_mapping && find_spec(name, ForeignServerRelationId) != NULL)
		hint = "This option belongs to a server.";
	else if (!on_server && !on_mapping)
		hint = "Only servers and user mappings have options.";
	else if (closest != NULL)
		hint = psprintf("Perhaps you meant the option \"%s\".", closest);
	else
	{
		StringInfoData list;

		initStringInfo(&list);
		for (int i = 0; i < nnames; i++)
			appendStringInfo(&list, "%s%s", i > 0 ? ", " : "", names[i]);
		hint = psprintf("Valid options here are: %s.", list.data);
	}
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
			 errmsg("invalid option \"%s\"", name),
			 errhint("%s", hint)));
}

static void
refuse_value(const char *option, const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_STRING_FORMAT),
			 errmsg("invalid value for option \"%s\": %s", option, why)));
}

static void
parse_uri(const char *option, const char *value, KcUrl *url)
{
	KcError		err;

	if (kc_url_parse(kc_slice(value), url, &err) != KC_OK)
		refuse_value(option, kpg_report_text(err.what));
	if (url->query.len > 0)
		refuse_value(option, "the URI has a query");
}

static void
check_secure(const char *option, const KcUrl *url)
{
	if (!kc_url_is_https(url) && !kc_host_is_loopback(url->host))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_STRING_FORMAT),
				 errmsg("invalid value for option \"%s\": the URI must begin with https://", option),
				 errdetail("Only the local machine may be asked without encryption.")));
}

/* Without path none is allowed. */
static void
check_path(const char *option, const KcUrl *url, char **path)
{
	KcSlice		rest = url->path;

	while (rest.len > 0 && rest.data[0] == '/')
		rest = kc_slice_n(rest.data + 1, rest.len - 1);
	while (rest.len > 0 && rest.data[rest.len - 1] == '/')
		rest.len--;
	if (path != NULL)
		*path = pnstrdup(rest.len > 0 ? rest.data : "", rest.len);
	else if (rest.len > 0)
		refuse_value(option, "the URI has a path");
}

void
kpg_options_check_cluster_uri(const char *option, const char *value, char **path)
{
	KcUrl		url;

	parse_uri(option, value, &url);
	check_secure(option, &url);
	check_path(option, &url, path);
	if (!kc_kusto_host_trusted(url.host, kpg_options_trusted_hosts()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("host \"%s\" of option \"%s\" is not a known Kusto host",
						pnstrdup(url.host.data, url.host.len), option),
				 errdetail("Tokens and data are only sent to hosts of Kusto and to the local machine."),
				 errhint("A superuser can add the host's suffix to kusto_ingest.trusted_hosts.")));
}

/*
 * The rest, whether a host of this machine may be asked, depends on the other
 * options: check_authority().
 */
void
kpg_options_check_login_uri(const char *option, const char *value, char **path)
{
	KcUrl		url;

	parse_uri(option, value, &url);
	check_secure(option, &url);
	check_path(option, &url, path);
	if (!kc_host_is_loopback(url.host) &&
		!kc_kusto_login_trusted(url.host, kpg_options_trusted_hosts()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("host \"%s\" of option \"%s\" is not a known login endpoint",
						pnstrdup(url.host.data, url.host.len), option),
				 errdetail("Client secrets are only sent to Microsoft's login endpoints."),
				 errhint("A superuser can add the host to kusto_ingest.trusted_hosts.")));
}

static void
check_characters(const OptionSpec *spec, const char *value)
{
	for (const char *c = value; *c != '\0'; c++)
	{
		bool		fine = spec->kind == VALUE_TOKEN ? *c > ' ' && *c < 0x7f
			: (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') ||
			*c == '.' || *c == '-';

		if (!fine)
			refuse_value(spec->name, spec->kind == VALUE_TOKEN
						 ? "it has a character that no token can have"
						 : "only letters, digits, dots and hyphens are allowed");
	}
}

static void
check_method(const char *value)
{
	const MethodSpec *method = find_method(value);

	if (method == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_STRING_FORMAT),
				 errmsg("invalid value for option \"auth\""),
				 errhint("Valid values are: " METHOD_LIST ".")));
	if (!method->supported)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("authentication method \"%s\" is not supported in this version", method->name),
				 errhint("Valid values are: " METHOD_LIST ".")));
}

static void
check_value(const OptionSpec *spec, const char *value)
{
	KpgConnectionString parsed;
	KcUrl		url;

	if (value[0] == '\0')
		refuse_value(spec->name, "it is empty");
	switch (spec->kind)
	{
		case VALUE_TEXT:
			break;
		case VALUE_CLUSTER_URI:
			kpg_options_check_cluster_uri(spec->name, value, NULL);
			break;
		case VALUE_LOGIN_URI:
			kpg_options_check_login_uri(spec->name, value, NULL);
			break;
		case VALUE_ANY_URI:
			parse_uri(spec->name, value, &url);
			break;
		case VALUE_PATH:
			if (!is_absolute_path(value))
				refuse_value(spec->name, "the path is not absolute");
			break;
		case VALUE_ID:
		case VALUE_TOKEN:
			check_characters(spec, value);
			break;
		case VALUE_METHOD:
			check_method(value);
			break;
		case VALUE_CONNECTION_STRING:
			kpg_options_parse_string(value, &parsed);
			break;
	}
}

/* ---- what may stand together ---- */

static void
check_server_set(List *options)
{
	static const char *const in_string[] = {"cluster", "database", "authority"};
	bool		has_string = option_value(options, "connection_string") != NULL;

	for (size_t i = 0; has_string && i < lengthof(in_string); i++)
	{
		if (option_value(options, in_string[i]) != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("options \"connection_string\" and \"%s\" exclude each other", in_string[i])));
	}
	if (!has_string && option_value(options, "cluster") == NULL &&
		option_value(options, "query_uri") == NULL && option_value(options, "ingest_uri") == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("option \"cluster\" is required"),
				 errhint("Use OPTIONS (cluster 'https://<cluster>.<region>.kusto.windows.net').")));
}

/* Reading files and being this machine are not for everybody to hand out. */
static void
check_server_privileges(List *options)
{
	if (option_value(options, "ca_file") != NULL &&
		!superuser() && !has_privs_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to set option \"ca_file\""),
				 errhint("Only superusers and members of pg_read_server_files may define or alter a server with this option.")));
}

static void
check_method_options(const MethodSpec *method, List *options)
{
	ListCell   *lc;

	for (const char *const *name = method->required; *name != NULL; name++)
	{
		if (option_value(options, *name) == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
					 errmsg("option \"%s\" is required for authentication method \"%s\"",
							*name, method->name)));
	}
	foreach(lc, options)
	{
		const char *name = lfirst_node(DefElem, lc)->defname;

		if (strcmp(name, "auth") != 0 &&
			!in_list(method->required, name) && !in_list(method->optional, name))
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("option \"%s\" is not used by authentication method \"%s\"",
							name, method->name)));
	}
}

static const MethodSpec *
mapping_method(List *options)
{
	const char *name = option_value(options, "auth");

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_OPTION_NAME_NOT_FOUND),
				 errmsg("option \"auth\" is required"),
				 errhint("Valid values are: " METHOD_LIST ".")));
	check_method(name);
	return find_method(name);
}

static void
check_mapping_set(List *options)
{
	const MethodSpec *method = mapping_method(options);

	check_method_options(method, options);
	if (method->method == KC_AUTH_MANAGED_IDENTITY && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to use authentication method \"%s\"", method->name),
				 errdetail("The identity is the database server's own."),
				 errhint("Only superusers may define or alter a user mapping with this method.")));
}

static bool
is_loopback(const char *uri)
{
	KcUrl		url;
	KcError		err;

	return kc_url_parse(kc_slice(uri), &url, &err) == KC_OK && kc_host_is_loopback(url.host);
}

/* Secrets for a cluster elsewhere are not given to whoever listens on this machine. */
static void
check_authority(List *options)
{
	KpgServerOptions server;

	kpg_options_server(options, &server);
	if (server.authority != NULL && is_loopback(server.authority) &&
		!(is_loopback(server.engine_uri) && is_loopback(server.ingest_uri)))
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_STRING_FORMAT),
				 errmsg("invalid value for option \"authority\": it names this machine, and the cluster is another")));
}

Datum
kusto_fdw_validator(PG_FUNCTION_ARGS)
{
	List	   *options = untransformRelOptions(PG_GETARG_DATUM(0));
	Oid			catalog = PG_GETARG_OID(1);
	ListCell   *lc;

	foreach(lc, options)
	{
		DefElem    *def = lfirst_node(DefElem, lc);
		const OptionSpec *spec = find_spec(def->defname, catalog);

		if (spec == NULL)
			unknown_option(def->defname, catalog);
		else
			check_value(spec, defGetString(def));
	}
	if (catalog == ForeignServerRelationId)
	{
		check_server_set(options);
		check_authority(options);
		check_server_privileges(options);
	}
	else if (catalog == UserMappingRelationId)
		check_mapping_set(options);
	PG_RETURN_VOID();
}

/* ---- at use ---- */

static char *
derived_uri(const char *base, bool ingest)
{
	const KcAlloc *alloc = kpg_alloc_create(CurrentMemoryContext);
	KcBuf		engine_uri;
	KcBuf		ingest_uri;
	KcError		err;

	kc_buf_init(&engine_uri, alloc, KC_BUF_UNLIMITED);
	kc_buf_init(&ingest_uri, alloc, KC_BUF_UNLIMITED);
	kpg_check(kc_kusto_derive_uris(kc_slice(base), &engine_uri, &ingest_uri, &err), &err);
	return pstrdup(ingest ? ingest_uri.data : engine_uri.data);
}

void
kpg_options_server(List *options, KpgServerOptions *result)
{
	char	   *string = option_value(options, "connection_string");
	char	   *query_uri = option_value(options, "query_uri");
	char	   *ingest_uri = option_value(options, "ingest_uri");
	KpgConnectionString given = {
		option_value(options, "cluster"),
		option_value(options, "database"),
		option_value(options, "authority")
	};
	const char *base;

	check_server_set(options);
	if (string != NULL)
		kpg_options_parse_string(string, &given);

	/* Either URI gives the other one, unless it is given too. */
	base = given.cluster != NULL ? given.cluster : query_uri != NULL ? query_uri : ingest_uri;
	result->engine_uri = query_uri != NULL ? query_uri : derived_uri(base, false);
	result->ingest_uri = ingest_uri != NULL ? ingest_uri : derived_uri(base, true);
	result->database = given.database;
	result->authority = given.authority;
	result->proxy = option_value(options, "proxy");
	result->ca_file = option_value(options, "ca_file");
}

void
kpg_options_mapping(List *options, KpgMappingOptions *result)
{
	const MethodSpec *method = mapping_method(options);

	check_method_options(method, options);
	result->auth = method->method;
	result->tenant = option_value(options, "tenant");
	result->client_id = option_value(options, "client_id");
	result->client_secret = option_value(options, "client_secret");
	result->access_token = option_value(options, "access_token");
	result->identity_endpoint = option_value(options, "identity_endpoint");
}

const char *const *
kpg_options_trusted_hosts(void)
{
	char	   *list = pstrdup(kpg_trusted_hosts != NULL ? kpg_trusted_hosts : "");
	const char **hosts = palloc((strlen(list) / 2 + 2) * sizeof(char *));
	int			nhosts = 0;
	char	   *rest = NULL;

	for (char *host = strtok_r(list, ", \t", &rest); host != NULL; host = strtok_r(NULL, ", \t", &rest))
		hosts[nhosts++] = host;
	hosts[nhosts] = NULL;
	return hosts;
}
