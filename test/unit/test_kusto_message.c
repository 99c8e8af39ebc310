/*
 * test_kusto_message.c
 *	  The ingestion message, byte for byte.
 */
#include "core/kusto_internal.h"
#include "fail_alloc.h"
#include "tap.h"

static KcMessage
sample(const KcIngestProperties *properties)
{
	KcMessage	message = {
		.properties = properties,
		.blob_url = kc_slice("https://a.blob.core.windows.net/c/b.csv.gz"),
		.blob_sas = kc_slice("sv=1&sig=x%3D"),
		.raw_size = UINT64_C(5368709120),
		.identity_token = kc_slice("id.tok.en"),
		.status_table = kc_slice("https://a.table.core.windows.net/t"),
		.status_sas = kc_slice("tn=t&sig=y"),
		.application = "kusto_ingest",
		.client_version = "Kusto.kusto_ingest.Client:{1.0}",
		.created_us = INT64_C(1788257472345678)
	};

	must(kc_uuid_parse(kc_slice("2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11"), &message.source_id));
	return message;
}

static void
test_whole(void)
{
	const KcSlice tags[] = {kc_slice("drop-by:x"), kc_slice("a \"quoted\" one")};
	const KcSlice keys[] = {kc_slice("k-1")};
	KcIngestProperties properties = {
		.database = kc_slice("my db"),.table = kc_slice("T\\1"),.mapping = kc_slice("m1"),
		.tags = tags,.ntags = 2,.if_not_exists = keys,.nif_not_exists = 1,
		.has_creation_time = true,.creation_time_us = INT64_C(1788220800000000),
		.flush_immediately = true,.report = KC_REPORT_ALL
	};
	KcMessage	message = sample(&properties);
	KcBuf		out;

	kc_buf_init(&out, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_message_build(&out, &message);
	is_slice(kc_buf_view(&out),
			 "{\"Id\":\"2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11\","
			 "\"BlobPath\":\"https://a.blob.core.windows.net/c/b.csv.gz?sv=1&sig=x%3D\","
			 "\"RawDataSize\":5368709120,\"DatabaseName\":\"my db\",\"TableName\":\"T\\\\1\","
			 "\"RetainBlobOnSuccess\":false,\"FlushImmediately\":true,\"IgnoreSizeLimit\":false,"
			 "\"ReportLevel\":2,\"ReportMethod\":1,"
			 "\"SourceMessageCreationTime\":\"2026-09-01T10:11:12.345678Z\","
			 "\"ApplicationForTracing\":\"kusto_ingest\","
			 "\"ClientVersionForTracing\":\"Kusto.kusto_ingest.Client:{1.0}\","
			 "\"IngestionStatusInTable\":{\"TableConnectionString\":\"https://a.table.core.windows.net/t?tn=t&sig=y\","
			 "\"PartitionKey\":\"2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11\","
			 "\"RowKey\":\"2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11\"},"
			 "\"AdditionalProperties\":{\"authorizationContext\":\"id.tok.en\",\"format\":\"csv\","
			 "\"tags\":\"[\\\"drop-by:x\\\",\\\"a \\\\\\\"quoted\\\\\\\" one\\\"]\","
			 "\"ingestIfNotExists\":\"[\\\"k-1\\\"]\","
			 "\"ingestionMappingReference\":\"m1\",\"ingestionMappingType\":\"Csv\","
			 "\"validationPolicy\":\"{\\\"ValidationOptions\\\":1,\\\"ValidationImplications\\\":0}\","
			 "\"creationTime\":\"2026-09-01T00:00:00.000000Z\"}}", "a message with everything");
	kc_buf_free(&out);
}

static void
test_least(void)
{
	KcIngestProperties properties = {
		.database = kc_slice("d"),.table = kc_slice("t"),.report = KC_REPORT_NONE
	};
	KcMessage	message = sample(&properties);
	KcBuf		out;

	message.status_table = KC_SLICE_NULL;
	message.raw_size = 0;
	kc_buf_init(&out, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_message_build(&out, &message);
	is_slice(kc_buf_view(&out),
			 "{\"Id\":\"2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11\","
			 "\"BlobPath\":\"https://a.blob.core.windows.net/c/b.csv.gz?sv=1&sig=x%3D\","
			 "\"RawDataSize\":0,\"DatabaseName\":\"d\",\"TableName\":\"t\","
			 "\"RetainBlobOnSuccess\":false,\"FlushImmediately\":false,\"IgnoreSizeLimit\":false,"
			 "\"ReportLevel\":1,\"ReportMethod\":0,"
			 "\"SourceMessageCreationTime\":\"2026-09-01T10:11:12.345678Z\","
			 "\"ApplicationForTracing\":\"kusto_ingest\","
			 "\"ClientVersionForTracing\":\"Kusto.kusto_ingest.Client:{1.0}\","
			 "\"AdditionalProperties\":{\"authorizationContext\":\"id.tok.en\",\"format\":\"csv\","
			 "\"validationPolicy\":\"{\\\"ValidationOptions\\\":1,\\\"ValidationImplications\\\":0}\"}}",
			 "a message with nothing that may be left out");
	kc_buf_free(&out);
	ok(!kc_message_reports_by_table(&properties), "nothing is to be reported");
	properties.report = KC_REPORT_FAILURES;
	ok(kc_message_reports_by_table(&properties), "failures are");
}

static void
test_exactly_once(void)
{
	const KcSlice tags[] = {kc_slice("drop-by:x")};
	const KcSlice keys[] = {kc_slice("k-1")};
	KcIngestProperties properties = {
		.database = kc_slice("d"),.table = kc_slice("t"),.report = KC_REPORT_NONE,.exactly_once = true
	};
	KcMessage	message = sample(&properties);
	KcBuf		out;
	size_t		length;

	kc_buf_init(&out, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_message_build(&out, &message);
	ok(strstr(out.data, "\"RetainBlobOnSuccess\":true") != NULL, "exactly once: the blob is retained");
	ok(strstr(out.data, "\"tags\":\"[\\\"ingest-by:2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11\\\"]\"") != NULL,
	   "exactly once: a tag with the source id");
	ok(strstr(out.data, "\"ingestIfNotExists\":\"[\\\"2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11\\\"]\"") != NULL,
	   "exactly once: not if it exists, without the prefix");
	length = out.len;

	properties.tags = tags;
	properties.ntags = 1;
	properties.if_not_exists = keys;
	properties.nif_not_exists = 1;
	kc_buf_reset(&out);
	kc_message_build(&out, &message);
	ok(strstr(out.data, "\"[\\\"drop-by:x\\\",\\\"ingest-by:2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11\\\"]\"") != NULL,
	   "exactly once: besides the caller's tag");
	ok(strstr(out.data, "\"[\\\"k-1\\\",\\\"2f6c0a35-5f0e-4a0f-9a4e-2a6d0b6f7c11\\\"]\"") != NULL,
	   "exactly once: besides the caller's key");
	properties.exactly_once = false;
	properties.ntags = properties.nif_not_exists = 0;
	kc_buf_reset(&out);
	kc_message_build(&out, &message);
	ok(strstr(out.data, "ingest-by") == NULL && strstr(out.data, "ingestIfNotExists") == NULL
	   && strstr(out.data, "\"RetainBlobOnSuccess\":false") != NULL, "not exactly once: nothing of it");
	ok(length > out.len + 2 * KC_UUID_TEXT_LEN, "the size of a message counts tag and key");
	kc_buf_free(&out);
}

static void
test_size(void)
{
	KcError		err;

	is(kc_message_check_size(48 * 1024, &err), KC_OK, "48 KiB is allowed");
	is(kc_message_check_size(48 * 1024 + 1, &err), KC_ERR_LIMIT, "one more is not");
	is(err.advice, KC_ADVICE_MESSAGE_TOO_LARGE, "with advice");
	ok(err.permanent, "for good");
}

static void
test_copy(void)
{
	const KcSlice tags[] = {kc_slice("one"), kc_slice("")};
	const KcSlice keys[] = {kc_slice("key")};
	KcIngestProperties source = {
		.database = kc_slice("d"),.table = kc_slice("t"),.tags = tags,.ntags = 2,.if_not_exists = keys,
		.nif_not_exists = 1,.report = KC_REPORT_ALL
	};
	KcIngestProperties *copy = kc_properties_copy(&kc_alloc_malloc, &source);
	FailAlloc	fa;

	must(copy != NULL);
	is_slice(copy->database, "d", "database");
	is_slice(copy->table, "t", "table");
	is_slice(copy->mapping, "", "mapping");
	is_slice(copy->tags[0], "one", "tag");
	is_slice(copy->tags[1], "", "empty tag");
	is_slice(copy->if_not_exists[0], "key", "key");
	ok(copy->tags != tags && copy->database.data != source.database.data, "nothing is shared");
	kc_free(&kc_alloc_malloc, copy);
	fail_alloc_init(&fa, 1);
	ok(kc_properties_copy(&fa.alloc, &source) == NULL, "out of memory");
}

int
main(void)
{
	test_whole();
	test_least();
	test_exactly_once();
	test_size();
	test_copy();
	return done_testing();
}
