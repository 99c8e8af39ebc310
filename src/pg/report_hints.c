/*
 * report_hints.c
 *	  What to do about an error: the words of HINTs.
 *
 * Roles and commands as in learn.microsoft.com/kusto/management/manage-database-security-roles,
 * ingestion error codes as in learn.microsoft.com/azure/data-explorer/error-codes.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "../core/buf.h"
#include "../core/text.h"
#include "alloc.h"
#include "report.h"

/* What the hints of raised errors speak of; "" when it is not known. */
static char target_database[256];
static char target_principal[512];

/* Never ends within a character. */
static void
copy_clipped(char *to, int size, const char *from)
{
	int			len = from == NULL ? 0 : pg_mbcliplen(from, (int) strlen(from), size - 1);

	if (len > 0)
		memcpy(to, from, len);
	to[len] = '\0';
}

void
kpg_report_target(const char *database, const char *principal)
{
	copy_clipped(target_database, sizeof(target_database), database);
	copy_clipped(target_principal, sizeof(target_principal), principal);
}

/*
 * The service's refusal names who was refused: "Principal 'aadapp=...' is not
 * authorized ...".  NULL when it does not.
 */
static char *
refused_principal(const KcError *err)
{
	const char *start = strstr(err->detail, "rincipal '");
	const char *end;

	if (start == NULL)
		return NULL;
	start += strlen("rincipal '");
	end = strchr(start, '\'');
	if (end == NULL || end == start)
		return NULL;
	return kpg_report_text(pnstrdup(start, (Size) (end - start)));
}

static char *
grant_command(const KcError *err, const char *role, const char *members, const char *database,
			  const char *principal)
{
	char	   *refused = refused_principal(err);
	KcBuf		command;

	if (refused != NULL)
		principal = refused;
	if (principal == NULL || principal[0] == '\0')
		principal = "aadapp=<application id>;<tenant id>";
	kc_buf_init(&command, kpg_alloc_create(CurrentMemoryContext), KC_BUF_UNLIMITED);
	kc_buf_str(&command, ".add database ");
	kc_text_kql_name(&command, kc_slice(database != NULL && database[0] != '\0' ? database : "<database>"));
	kc_buf_printf(&command, " %s (", members);
	kc_text_kql_string(&command, kc_slice(principal));
	kc_buf_str(&command, ")");
	if (command.failed != KC_OK)
		return NULL;
	return psprintf("The principal needs the role %s. "
					"An administrator of the database adds it to the %s with: %s",
					role, members, command.data);
}

static const char *
advice_text(KcAdvice advice)
{
	switch (advice)
	{
		case KC_ADVICE_ENGINE_ASKED_AS_INGEST:
			return "This host answers queries and takes no ingestion commands. "
				"Set the server's option ingest_uri to the data ingestion URI, "
				"which is usually the cluster's with \"ingest-\" before the host name.";
		case KC_ADVICE_INGEST_ASKED_AS_ENGINE:
			return "This host takes data and answers no queries. "
				"Set the server's option query_uri to the cluster's URI, without \"ingest-\".";
		case KC_ADVICE_NOT_KUSTO:
			return "Something other than Kusto answers there. "
				"Check the server's options cluster, query_uri, ingest_uri and proxy.";
		case KC_ADVICE_CHECK_SECRET:
			return "Check tenant, client_id and the secret or token of the user mapping.";
		case KC_ADVICE_CHECK_AUTHORITY:
			return "Check the server's option authority, and that the cluster is the one you mean.";
		case KC_ADVICE_CHECK_IDENTITY:
			return "Check that this machine has a managed identity, that client_id of the user mapping "
				"is one of its identities, and option identity_endpoint.";
		case KC_ADVICE_UNTRUSTED_HOST:
			return "A superuser can add the host's suffix to kusto_ingest.trusted_hosts.";
		case KC_ADVICE_THROTTLED:
			return "The cluster is busy. Try again later, or raise kusto_ingest.retry_timeout.";
		case KC_ADVICE_PRIVATE_ENDPOINT:
			return "The host must be resolvable and reachable from the database server. With private endpoints "
				"that includes the blob, queue and table hosts of the service's storage accounts.";
		case KC_ADVICE_TABLE_MISSING:
			return "Create the table in Kusto, or use create_table => true; "
				"kusto_create_table_command() shows the command.";
		case KC_ADVICE_DATABASE_MISSING:
			return "Check the name of the Kusto database, which is case-sensitive, and that the principal may see it.";
		case KC_ADVICE_MAPPING_MISSING:
			return "Create the ingestion mapping, of kind csv, on the Kusto table, or leave out mapping.";
		case KC_ADVICE_CLOCK:
			return "Check the clock of the database server.";
		case KC_ADVICE_CA_FILE:
			return "Set the server's option ca_file to a PEM file with the certificate authority, "
				"or add it to the operating system's.";
		case KC_ADVICE_PROXY:
			return "Check the server's option proxy.";
		case KC_ADVICE_MESSAGE_TOO_LARGE:
			return "An ingestion message holds 48 KiB. Use fewer or shorter tags and names.";
		case KC_ADVICE_STREAMING_OFF:
			return "Use mode \"managed\" or \"queued\", or enable streaming ingestion: for the cluster in Azure, "
				"for the table with .alter table <name> policy streamingingestion enable.";
		case KC_ADVICE_NONE:
		case KC_ADVICE_GRANT_INGESTOR:
		case KC_ADVICE_GRANT_DATABASE_USER:
		case KC_ADVICE_GRANT_DATABASE_ADMIN:
			break;
	}
	return NULL;
}

static const char *
status_text(KcStatus status)
{
	switch (status)
	{
		case KC_ERR_AUTH:
			return advice_text(KC_ADVICE_CHECK_SECRET);
		case KC_ERR_THROTTLED:
			return advice_text(KC_ADVICE_THROTTLED);
		case KC_ERR_NETWORK:
			return "Check that the database server can reach the host, and the server's option proxy.";
		case KC_ERR_TIMEOUT:
			return "Try again, or raise kusto_ingest.connect_timeout, kusto_ingest.request_timeout "
				"or kusto_ingest.stall_timeout.";
		case KC_ERR_SERVICE:
			return "The failure is on the service's side and usually passes. Try again.";
		default:
			return NULL;
	}
}

char *
kpg_report_hint_for(const KcError *err, const char *database, const char *principal)
{
	const char *text;

	switch (err->advice)
	{
		case KC_ADVICE_GRANT_INGESTOR:
			return grant_command(err, "Database Ingestor", "ingestors", database, principal);
		case KC_ADVICE_GRANT_DATABASE_USER:
			return grant_command(err, "Database User", "users", database, principal);
		case KC_ADVICE_GRANT_DATABASE_ADMIN:
			return grant_command(err, "Database Admin", "admins", database, principal);
		default:
			break;
	}
	text = advice_text(err->advice);
	if (text == NULL)
		text = status_text(err->status);
	return text != NULL ? pstrdup(text) : NULL;
}

char *
kpg_report_hint(const KcError *err)
{
	return kpg_report_hint_for(err, target_database, target_principal);
}

static const struct
{
	const char *code;
	const char *hint;
}			ingestion_hints[] = {
	{"Stream_WrongNumberOfFields",
		"The table has another number of columns than the query. Compare them, use create_table => true, or a mapping."},
	{"Stream_InputStreamTooLarge",
	"A value or record is larger than Kusto takes."},
	{"Stream_DynamicPropertyBagTooLarge",
	"A dynamic value has more distinct property names than Kusto takes."},
	{"BadRequest_InvalidMapping",
	"Check the ingestion mapping: kind csv, ordinals within the query's columns."},
	{"BadRequest_InvalidMappingReference",
	"Check the name of the ingestion mapping, which is case-sensitive, and that it is of kind csv."},
	{"BadRequest_MappingReferenceWasNotFound",
	"Create the ingestion mapping, of kind csv, on the Kusto table, or leave out mapping."},
	{"BadRequest_InconsistentMapping",
	"The ingestion mapping does not fit the table's columns."},
	{"BadRequest_TableNotExist",
		"Create the table in Kusto, or use create_table => true; "
	"kusto_create_table_command() shows the command. A new table may need some minutes to be known."},
	{"BadRequest_EntityNotFound",
	"Check the names of the Kusto database and table, which are case-sensitive."},
	{"BadRequest_DatabaseNotExist",
	"Check the name of the Kusto database, which is case-sensitive."},
	{"BadRequest_EntityNameIsNotValid",
	"Check the names of the Kusto database and table."},
	{"BadRequest_TableAccessDenied",
	"The principal needs the role Database Ingestor or Table Ingestor in Kusto."},
	{"BadRequest_DatabaseAccessDenied",
	"The principal needs the role Database Ingestor or Table Ingestor in Kusto."},
	{"Forbidden",
	"The principal needs the role Database Ingestor or Table Ingestor in Kusto."},
	{"BadRequest_InvalidKustoIdentityToken",
	"The identity token had expired before the service read the message. Run the export again."},
	{"BadRequest_CreationTimeEarlierThanSoftDeletePeriod",
	"creation_time lies before the soft-delete period of the table's retention policy."},
	{"BadRequest_ZeroRetentionPolicyWithNoUpdatePolicy",
	"The table keeps nothing: its retention policy is zero and no update policy reads it."},
	{"BadRequest_DataCapacityLimitReached",
	"The cluster has reached its data capacity."},
	{"BadRequest_FileTooLarge",
	"Lower kusto_ingest.max_blob_size."},
	{"BadRequest_NoRecordsOrWrongFormat",
	"Kusto found no record that fits the table. Compare the columns and their types."},
	{"Download_SourceNotFound",
		"The blob was gone before the service read it: the service cleans its temporary containers. "
	"Run the export again."},
	{"Download_Forbidden",
	"The access to the blob had expired before the service read it. Run the export again."},
	{"Schema_PermanentUpdateFailure",
	"The table's schema could not be changed to fit the data."},
	{"UpdatePolicy_QuerySchemaDoesNotMatchTableSchema",
	"The query of an update policy on this table does not fit its target table."},
	{"UpdatePolicy_Cyclic_Update_Not_Allowed",
	"Update policies on this table form a cycle."},
	{"UpdatePolicy_BadRequest",
	"An update policy on this table fails; .show ingestion failures tells more."},
	{"General_ThrottledIngestion",
	"The cluster's ingestion capacity is used up. kusto_retry() posts the same data again, later."},
	{"General_RetryAttemptsExceeded",
	"The service gave up after several tries. kusto_retry() posts the same data again."},
	{"General_InternalServerError",
	"The failure is on the service's side. kusto_retry() posts the same data again."},
	{"BlobAlreadyReceived_BlobAlreadyFoundInBatch",
	"Kusto got the same blob twice at once and used it once."},
	{"OutOfMemory",
	"The cluster was short of memory. Run the export again, or lower kusto_ingest.max_blob_size."},
	{"Timeout",
	"The cluster was too slow. Run the export again, or lower kusto_ingest.max_blob_size."}
};

const char *
kpg_report_ingestion_hint(const char *error_code)
{
	if (error_code == NULL)
		return NULL;
	for (size_t i = 0; i < lengthof(ingestion_hints); i++)
	{
		if (pg_strcasecmp(error_code, ingestion_hints[i].code) == 0)
			return ingestion_hints[i].hint;
	}
	return NULL;
}
