/*
 * options_string.c
 *	  Kusto's own connection strings, as far as they describe a server
 *	  (learn.microsoft.com/kusto/api/connection-strings/kusto).
 *
 *		Data Source=https://c.region.kusto.windows.net;Initial Catalog=db
 *
 * Options of a server can be read by everybody, so whatever is about an
 * identity is refused here and told where it belongs.  No message repeats a
 * value, nor an unknown keyword: a secret with a semicolon in it, not quoted,
 * would come out as one.
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "options_internal.h"
#include "report.h"

typedef enum KeywordUse
{
	USE_CLUSTER,
	USE_DATABASE,
	USE_AUTHORITY,				/* a login endpoint, or else a tenant */
	USE_IGNORE,					/* says what we do anyway, or nothing to us */
	USE_CLIENT_ID,				/* belongs to a user mapping */
	USE_CLIENT_SECRET,
	USE_ACCESS_TOKEN,
	USE_REFUSE					/* a way to log in that we do not have */
} KeywordUse;

/* Keywords and their synonyms as they are compared: lower case, no blanks. */
static const struct
{
	const char *keyword;
	KeywordUse	use;
}			keywords[] = {
	{"datasource", USE_CLUSTER}, {"server", USE_CLUSTER}, {"addr", USE_CLUSTER},
	{"address", USE_CLUSTER}, {"networkaddress", USE_CLUSTER}, {"datasourceuri", USE_CLUSTER},
	{"serveruri", USE_CLUSTER}, {"clusteruri", USE_CLUSTER},
	{"initialcatalog", USE_DATABASE}, {"database", USE_DATABASE},
	{"authorityid", USE_AUTHORITY}, {"tenantid", USE_AUTHORITY}, {"tid", USE_AUTHORITY},
	{"tenant", USE_AUTHORITY}, {"authority", USE_AUTHORITY}, {"domainhint", USE_AUTHORITY},
	{"aadfederatedsecurity", USE_IGNORE}, {"federatedsecurity", USE_IGNORE}, {"aadfed", USE_IGNORE},
	{"fed", USE_IGNORE}, {"federated", USE_IGNORE}, {"applicationnamefortracing", USE_IGNORE},
	{"traceappname", USE_IGNORE}, {"usernamefortracing", USE_IGNORE}, {"traceusername", USE_IGNORE},
	{"enforcemfa", USE_IGNORE}, {"accept", USE_IGNORE}, {"queryconsistency", USE_IGNORE},
	{"streaming", USE_IGNORE}, {"uncompressed", USE_IGNORE}, {"azureregion", USE_IGNORE},
	{"region", USE_IGNORE}, {"namespace", USE_IGNORE}, {"ns", USE_IGNORE},
	{"applicationclientid", USE_CLIENT_ID}, {"appclientid", USE_CLIENT_ID},
	{"applicationkey", USE_CLIENT_SECRET}, {"appkey", USE_CLIENT_SECRET},
	{"applicationtoken", USE_ACCESS_TOKEN}, {"apptoken", USE_ACCESS_TOKEN},
	{"usertoken", USE_ACCESS_TOKEN}, {"usrtoken", USE_ACCESS_TOKEN},
	{"userid", USE_REFUSE}, {"user", USE_REFUSE}, {"uid", USE_REFUSE}, {"loginhint", USE_REFUSE},
	{"aaduserid", USE_REFUSE}, {"password", USE_REFUSE}, {"pwd", USE_REFUSE},
	{"applicationcertificatethumbprint", USE_REFUSE}, {"appcert", USE_REFUSE},
	{"applicationcertificateblob", USE_REFUSE}, {"applicationcertificatesendx5c", USE_REFUSE},
	{"applicationcertificatex5c", USE_REFUSE}, {"sendx5c", USE_REFUSE},
	{"applicationcertificatesendpubliccertificate", USE_REFUSE}, {"sendcertificatechain", USE_REFUSE},
	{"applicationcertificateissuerdistinguishedname", USE_REFUSE},
	{"applicationcertificatesubjectdistinguishedname", USE_REFUSE},
	{"applicationcertificateissuer", USE_REFUSE}, {"applicationcertificatesubject", USE_REFUSE},
	{"dstsfederatedsecurity", USE_REFUSE}, {"dstsfed", USE_REFUSE}, {"dststokentype", USE_REFUSE}
};

static KeywordUse
keyword_use(const char *keyword, int element)
{
	const char *names[lengthof(keywords)];
	const char *closest;

	for (size_t i = 0; i < lengthof(keywords); i++)
	{
		names[i] = keywords[i].keyword;
		if (strcmp(keyword, keywords[i].keyword) == 0)
			return keywords[i].use;
	}
	closest = kpg_report_closest(keyword, names, lengthof(keywords));
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_STRING_FORMAT),
			 errmsg("element %d of option \"connection_string\" has an unknown keyword", element),
			 closest != NULL ? errhint("Perhaps you meant the keyword \"%s\".", closest) : 0));
	pg_unreachable();
}

static void
refuse_identity(const char *keyword, const char *option)
{
	ereport(ERROR,
			(errcode(ERRCODE_FDW_INVALID_STRING_FORMAT),
			 errmsg("keyword \"%s\" is not allowed in option \"connection_string\" of a server", keyword),
			 errdetail("The options of a server can be read by every role."),
			 errhint("Use option \"%s\" of CREATE USER MAPPING.", option)));
}

static void
set_once(char **target, char *value, const char *keyword)
{
	if (*target != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_STRING_FORMAT),
				 errmsg("option \"connection_string\" says \"%s\" twice", keyword)));
	*target = value;
}

/* A URI without the slashes at its end, and without the path that path is of it. */
static void
cut_path(char *uri, const char *path)
{
	for (size_t len = strlen(uri); len > 0 && uri[len - 1] == '/'; len--)
		uri[len - 1] = '\0';
	if (path[0] != '\0')
		uri[strlen(uri) - strlen(path) - 1] = '\0';
}

/* The database may stand behind the host: https://host/database. */
static void
set_cluster(KpgConnectionString *result, char *value, const char *keyword)
{
	char	   *path;

	kpg_options_check_cluster_uri("connection_string", value, &path);
	cut_path(value, path);
	if (path[0] != '\0')
	{
		if (strchr(path, '/') != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_STRING_FORMAT),
					 errmsg("the URI in option \"connection_string\" has more than a database behind the host")));
		set_once(&result->database, path, "initialcatalog");
	}
	set_once(&result->cluster, value, keyword);
}

/* The tenant may stand behind the host; the user mapping says it, too. */
static void
set_authority(KpgConnectionString *result, char *value, const char *keyword)
{
	char	   *path;

	if (strstr(value, "://") == NULL)
		refuse_identity(keyword, "tenant");
	kpg_options_check_login_uri("connection_string", value, &path);
	cut_path(value, path);
	set_once(&result->authority, value, keyword);
}

static void
apply(KpgConnectionString *result, const char *keyword, char *value, int element)
{
	KeywordUse	use = keyword_use(keyword, element);

	if (value[0] == '\0' && use != USE_IGNORE)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_STRING_FORMAT),
				 errmsg("keyword \"%s\" in option \"connection_string\" has no value", keyword)));
	switch (use)
	{
		case USE_CLUSTER:
			set_cluster(result, value, keyword);
			break;
		case USE_DATABASE:
			set_once(&result->database, value, keyword);
			break;
		case USE_AUTHORITY:
			set_authority(result, value, keyword);
			break;
		case USE_IGNORE:
			break;
		case USE_CLIENT_ID:
			refuse_identity(keyword, "client_id");
			break;
		case USE_CLIENT_SECRET:
			refuse_identity(keyword, "client_secret");
			break;
		case USE_ACCESS_TOKEN:
			refuse_identity(keyword, "access_token");
			break;
		case USE_REFUSE:
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("keyword \"%s\" in option \"connection_string\" is not supported", keyword),
					 errhint("Use the options of CREATE USER MAPPING to say who logs in.")));
			break;
	}
}

/*
 * The end of an element: a semicolon that is not between double quotes, or
 * the end of the text.
 */
static const char *
element_end(const char *p)
{
	bool		quoted = false;

	for (; *p != '\0'; p++)
	{
		if (*p == '"')
			quoted = !quoted;
		else if (*p == ';' && !quoted)
			break;
	}
	if (quoted)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_STRING_FORMAT),
				 errmsg("option \"connection_string\" has a quote that is not closed")));
	return p;
}

static char *
trimmed(const char *start, const char *end)
{
	while (start < end && *start == ' ')
		start++;
	while (end > start && end[-1] == ' ')
		end--;
	if (end - start >= 2 && *start == '"' && end[-1] == '"')
	{
		start++;
		end--;
	}
	return pnstrdup(start, (Size) (end - start));
}

static char *
normalized_keyword(const char *start, const char *end)
{
	StringInfoData keyword;

	initStringInfo(&keyword);
	for (; start < end; start++)
	{
		if (*start != ' ')
			appendStringInfoChar(&keyword, (char) pg_ascii_tolower((unsigned char) *start));
	}
	return keyword.data;
}

void
kpg_options_parse_string(const char *text, KpgConnectionString *result)
{
	int			element = 0;

	memset(result, 0, sizeof(*result));
	for (const char *p = text; *p != '\0';)
	{
		const char *end = element_end(p);
		const char *equals = memchr(p, '=', (size_t) (end - p));
		char	   *whole = trimmed(p, end);

		element++;
		if (equals != NULL)
			apply(result, normalized_keyword(p, equals), trimmed(equals + 1, end), element);
		else if (element == 1)
			set_cluster(result, whole, "datasource");
		else if (whole[0] != '\0')
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_STRING_FORMAT),
					 errmsg("element %d of option \"connection_string\" is not of the form keyword=value", element)));
		p = *end == ';' ? end + 1 : end;
	}
	if (result->cluster == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_STRING_FORMAT),
				 errmsg("option \"connection_string\" names no cluster"),
				 errhint("It begins with Data Source=https://...")));
}
