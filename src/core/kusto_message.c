/*
 * kusto_message.c
 *	  The ingestion message: what the ingestion service is told of a blob.
 *
 * Numbers, truth values and arrays inside AdditionalProperties are strings;
 * tags are a string that holds a JSON array.
 *
 * Public sources: learn.microsoft.com/kusto/api/netfx/kusto-ingest-client-rest,
 * learn.microsoft.com/kusto/ingestion-properties, and for ingest-by tags
 * learn.microsoft.com/kusto/management/extent-tags
 */
#include <string.h>

#include "kusto_internal.h"

#define REPORT_BY_QUEUE 0
#define REPORT_BY_TABLE 1

static void
string_member(KcJsonWriter *w, const char *key, KcSlice value)
{
	kc_json_key(w, key);
	kc_json_value_string(w, value);
}

static void
number_member(KcJsonWriter *w, const char *key, int64_t value)
{
	kc_json_key(w, key);
	kc_json_value_i64(w, value);
}

static void
bool_member(KcJsonWriter *w, const char *key, bool value)
{
	kc_json_key(w, key);
	kc_json_value_bool(w, value);
}

static void
time_member(KcJsonWriter *w, const char *key, int64_t unix_us)
{
	KcBuf		text;

	kc_buf_init(&text, w->out->alloc, KC_BUF_UNLIMITED);
	kc_text_rfc3339(&text, unix_us);
	if (text.failed != KC_OK)
		w->out->failed = text.failed;
	string_member(w, key, kc_buf_view(&text));
	kc_buf_free(&text);
}

static void
url_member(KcJsonWriter *w, const char *key, KcSlice url, KcSlice sas)
{
	KcBuf		text;

	kc_buf_init(&text, w->out->alloc, KC_BUF_UNLIMITED);
	kc_buf_slice(&text, url);
	kc_buf_char(&text, '?');
	kc_buf_slice(&text, sas);
	if (text.failed != KC_OK)
		w->out->failed = text.failed;
	string_member(w, key, kc_buf_view(&text));
	kc_buf_free_secret(&text);
}

void
kc_message_list(KcBuf *out, const KcSlice *items, int nitems, const char *own)
{
	KcJsonWriter list;

	kc_json_begin(&list, out);
	kc_json_array_open(&list);
	for (int i = 0; i < nitems; i++)
		kc_json_value_string(&list, items[i]);
	if (own != NULL)
		kc_json_value_string(&list, kc_slice(own));
	kc_json_array_close(&list);
}

/* A string that holds a JSON array of strings; own may be NULL. */
static void
list_member(KcJsonWriter *w, const char *key, const KcSlice *items, int nitems, const char *own)
{
	KcBuf		text;

	if (nitems == 0 && own == NULL)
		return;
	kc_buf_init(&text, w->out->alloc, KC_BUF_UNLIMITED);
	kc_message_list(&text, items, nitems, own);
	if (text.failed != KC_OK)
		w->out->failed = text.failed;
	string_member(w, key, kc_buf_view(&text));
	kc_buf_free(&text);
}

bool
kc_message_reports_by_table(const KcIngestProperties *properties)
{
	return properties->report != KC_REPORT_NONE;
}

static void
status_member(KcJsonWriter *w, const KcMessage *message)
{
	char		source_id[KC_UUID_TEXT_LEN + 1];

	if (message->status_table.len == 0)
		return;
	kc_uuid_text(&message->source_id, source_id);
	kc_json_key(w, "IngestionStatusInTable");
	kc_json_object_open(w);
	url_member(w, "TableConnectionString", message->status_table, message->status_sas);
	string_member(w, "PartitionKey", kc_slice(source_id));
	string_member(w, "RowKey", kc_slice(source_id));
	kc_json_object_close(w);
}

static void
additional_member(KcJsonWriter *w, const KcMessage *message)
{
	const KcIngestProperties *properties = message->properties;
	bool		once = properties->exactly_once;
	char		tag[sizeof(KC_INGEST_BY) + KC_UUID_TEXT_LEN] = KC_INGEST_BY;
	char	   *source_id = tag + strlen(KC_INGEST_BY);

	kc_uuid_text(&message->source_id, source_id);
	kc_json_key(w, "AdditionalProperties");
	kc_json_object_open(w);
	string_member(w, "authorizationContext", message->identity_token);
	string_member(w, "format", kc_slice("csv"));
	list_member(w, "tags", properties->tags, properties->ntags, once ? tag : NULL);
	list_member(w, "ingestIfNotExists", properties->if_not_exists, properties->nif_not_exists,
				once ? source_id : NULL);
	if (properties->mapping.len > 0)
	{
		string_member(w, "ingestionMappingReference", properties->mapping);
		string_member(w, "ingestionMappingType", kc_slice("Csv"));
	}
	string_member(w, "validationPolicy", kc_slice(KC_VALIDATION_POLICY));
	if (properties->has_creation_time)
		time_member(w, "creationTime", properties->creation_time_us);
	kc_json_object_close(w);
}

void
kc_message_build(KcBuf *out, const KcMessage *message)
{
	const KcIngestProperties *properties = message->properties;
	char		source_id[KC_UUID_TEXT_LEN + 1];
	KcJsonWriter w;

	kc_uuid_text(&message->source_id, source_id);
	kc_json_begin(&w, out);
	kc_json_object_open(&w);
	string_member(&w, "Id", kc_slice(source_id));
	url_member(&w, "BlobPath", message->blob_url, message->blob_sas);
	number_member(&w, "RawDataSize", (int64_t) message->raw_size);
	string_member(&w, "DatabaseName", properties->database);
	string_member(&w, "TableName", properties->table);
	bool_member(&w, "RetainBlobOnSuccess", properties->exactly_once);
	bool_member(&w, "FlushImmediately", properties->flush_immediately);
	bool_member(&w, "IgnoreSizeLimit", false);
	number_member(&w, "ReportLevel", (int64_t) properties->report);
	number_member(&w, "ReportMethod",
				  message->status_table.len > 0 ? REPORT_BY_TABLE : REPORT_BY_QUEUE);
	time_member(&w, "SourceMessageCreationTime", message->created_us);
	string_member(&w, "ApplicationForTracing", kc_slice(message->application));
	string_member(&w, "ClientVersionForTracing", kc_slice(message->client_version));
	status_member(&w, message);
	additional_member(&w, message);
	kc_json_object_close(&w);
}

static KcSlice
copy_into(char **at, KcSlice source)
{
	KcSlice		copy = kc_slice_n(*at, source.len);

	if (source.len > 0)
		memcpy(*at, source.data, source.len);
	*at += source.len;
	return copy;
}

/* The structure, the two arrays, then all bytes. */
KcIngestProperties *
kc_properties_copy(const KcAlloc *alloc, const KcIngestProperties *source)
{
	size_t		nslices = (size_t) source->ntags + (size_t) source->nif_not_exists;
	size_t		size = sizeof(KcIngestProperties) + nslices * sizeof(KcSlice);
	KcIngestProperties *copy;
	KcSlice    *slices;
	char	   *at;

	size += source->database.len + source->table.len + source->mapping.len;
	for (int i = 0; i < source->ntags; i++)
		size += source->tags[i].len;
	for (int i = 0; i < source->nif_not_exists; i++)
		size += source->if_not_exists[i].len;
	copy = kc_alloc(alloc, size);
	if (copy == NULL)
		return NULL;
	*copy = *source;
	slices = (KcSlice *) (copy + 1);
	at = (char *) (slices + nslices);
	copy->tags = slices;
	copy->if_not_exists = slices + source->ntags;
	copy->database = copy_into(&at, source->database);
	copy->table = copy_into(&at, source->table);
	copy->mapping = copy_into(&at, source->mapping);
	for (int i = 0; i < source->ntags; i++)
		slices[i] = copy_into(&at, source->tags[i]);
	for (int i = 0; i < source->nif_not_exists; i++)
		slices[source->ntags + i] = copy_into(&at, source->if_not_exists[i]);
	return copy;
}

KcStatus
kc_message_check_size(size_t length, KcError *err)
{
	if (length <= KC_MESSAGE_MAX_JSON)
		return KC_OK;
	kc_error_set(err, KC_ERR_LIMIT, "preparing an ingestion message",
				 "the ingestion message would be %zu bytes long, the limit is %d",
				 length, KC_MESSAGE_MAX_JSON);
	if (err != NULL)
		err->advice = KC_ADVICE_MESSAGE_TOO_LARGE;
	return KC_ERR_LIMIT;
}
