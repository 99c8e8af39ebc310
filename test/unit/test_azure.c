/*
 * test_azure.c
 *	  Requests to storage as they go over the wire, and its errors.
 */
#define _GNU_SOURCE
#include "core/azure.h"
#include "core/text.h"
#include "harness.h"
#include "http_server.h"

#define SAS "sv=1&sig=a%2Bb%3D"

static Server server;
static Harness h;
static const KcHttpConfig config = {.user_agent = "test",.connect_timeout_ms = 5000};
static KcStorage storage;

static KcSlice
at(const char *path)
{
	static char url[512];

	snprintf(url, sizeof(url), "%s%s", server.origin, path);
	return kc_slice(url);
}

/* http is only to be looked at once the call in the first argument is made. */
static void
wait_for(KcStatus status, KcHttp **http)
{
	must(status == KC_OK);
	(void) harness_until(&h, &(*http)->done);
}

static void
test_blobs(void)
{
	const ServerRequest *seen;
	KcHttp	   *http;
	KcBuf		body;
	KcError		err;

	server_clear(&server);
	server_rule(&server, (ServerRule) {.status = 201});
	wait_for(kc_azure_put_blob(&storage, at("/c/b.csv.gz"), kc_slice(SAS), kc_slice("data"), &http, &err), &http);
	is(http->error.status, KC_OK, "Put Blob");
	seen = server_nth(&server, "PUT", NULL, 0);
	is_str(seen->target, "/c/b.csv.gz?" SAS, "its target");
	is_str(server_header(seen, "x-ms-blob-type"), "BlockBlob", "its type");
	ok(server_header(seen, "x-ms-version") != NULL, "its version");
	ok(server_header(seen, "Content-Encoding") == NULL, "no encoding: the name tells");
	ok(server_header(seen, "Authorization") == NULL, "no authorization beside the SAS");
	is_str(seen->body, "data", "its content");
	kc_http_free(http);

	for (int i = 0; i < 3; i++)
	{
		static const int indexes[] = {0, 7, 49999};

		wait_for(kc_azure_put_block(&storage, at("/c/b"), kc_slice(SAS), indexes[i], kc_slice("x"), &http, &err), &http);
		kc_http_free(http);
	}
	is_str(server_nth(&server, "PUT", "comp=block&", 0)->target,
		   "/c/b?comp=block&blockid=MDAwMDAwMDA%3D&" SAS, "Put Block");
	is_str(server_nth(&server, "PUT", "comp=block&", 2)->target,
		   "/c/b?comp=block&blockid=MDAwNDk5OTk%3D&" SAS, "its ids have one length");
	wait_for(kc_azure_put_block_list(&storage, at("/c/b"), kc_slice(SAS), 2, &body, &http, &err), &http);
	seen = server_nth(&server, "PUT", "comp=blocklist", 0);
	is_str(seen->target, "/c/b?comp=blocklist&" SAS, "Put Block List");
	is_str(seen->body, "<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList><Latest>MDAwMDAwMDA=</Latest>"
		   "<Latest>MDAwMDAwMDE=</Latest></BlockList>", "its list");
	kc_http_free(http);
	kc_buf_free(&body);
	wait_for(kc_azure_delete_blob(&storage, at("/c/b"), kc_slice(SAS), &http, &err), &http);
	is_str(server_nth(&server, "DELETE", NULL, 0)->target, "/c/b?" SAS, "Delete Blob");
	kc_http_free(http);
}

static void
test_queue_and_table(void)
{
	const ServerRequest *seen;
	KcHttp	   *http;
	KcBuf		body;
	KcError		err;

	server_clear(&server);
	server_rule(&server, (ServerRule) {.status = 201});
	wait_for(kc_azure_put_message(&storage, at("/q"), kc_slice(SAS), kc_slice("{\"a\":1}"), &body, &http, &err), &http);
	seen = server_nth(&server, "POST", "/q", 0);
	is_str(seen->target, "/q/messages?" SAS, "Put Message");
	is_str(seen->body, "<QueueMessage><MessageText>eyJhIjoxfQ==</MessageText></QueueMessage>", "in base64");
	kc_http_free(http);
	kc_buf_free(&body);

	wait_for(kc_azure_insert_entity(&storage, at("/t"), kc_slice(SAS), kc_slice("{}"), &http, &err), &http);
	seen = server_nth(&server, "POST", "/t", 0);
	is_str(seen->target, "/t?" SAS, "Insert Entity");
	is_str(server_header(seen, "Content-Type"), "application/json", "in JSON");
	is_str(server_header(seen, "Accept"), "application/json;odata=nometadata", "without metadata");
	kc_http_free(http);
	wait_for(kc_azure_get_entity(&storage, at("/t"), kc_slice(SAS), kc_slice("it's"), kc_slice("r/1"), &http, &err), &http);
	is_str(server_nth(&server, "GET", "/t", 0)->target,
		   "/t(PartitionKey='it%27%27s',RowKey='r%2F1')?" SAS, "Get Entity, quotes doubled");
	kc_http_free(http);
}

typedef struct ErrorRow
{
	int			status;
	const char *headers;
	const char *body;
	const char *code;
	const char *detail;
	KcAdvice	advice;
	bool		wants_sas;
} ErrorRow;

static const ErrorRow errors[] = {
	{403, NULL, "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>AuthenticationFailed</Code><Message>"
		"Not &quot;signed&quot; &lt;well&gt; &amp; so.</Message><AuthenticationErrorDetail>Expired."
		"</AuthenticationErrorDetail></Error>", "AuthenticationFailed", "Not \"signed\" <well> & so. Expired.",
	KC_ADVICE_NONE, true},
	{403, "Date: Tue, 01 Sep 2020 10:11:12 GMT\r\n", "<Error><Code>AuthenticationFailed</Code></Error>",
	"AuthenticationFailed", "", KC_ADVICE_CLOCK, true},
	{403, NULL, "<Error><Code>AuthorizationFailure</Code><Message>m</Message></Error>", "AuthorizationFailure",
	"m", KC_ADVICE_PRIVATE_ENDPOINT, true},
	{404, "x-ms-error-code: ContainerNotFound\r\n", "", "ContainerNotFound", "", KC_ADVICE_NONE, true},
	{409, NULL, "<Error><Code>ContainerBeingDeleted</Code></Error>", "ContainerBeingDeleted", "", KC_ADVICE_NONE, true},
	{404, NULL, "{\"odata.error\":{\"code\":\"ResourceNotFound\",\"message\":{\"lang\":\"en-US\",\"value\":\"gone\\nRequestId:1\"}}}",
	"ResourceNotFound", "gone\nRequestId:1", KC_ADVICE_NONE, false},
	{409, NULL, "{\"odata.error\":{\"code\":\"EntityAlreadyExists\",\"message\":{}}}", "EntityAlreadyExists", "",
	KC_ADVICE_NONE, false},
	{400, NULL, "plain words", "", "plain words", KC_ADVICE_NONE, false},
	{400, NULL, "", "", "", KC_ADVICE_NONE, false},
	{503, NULL, "<Error><Code>ServerBusy</Code><Message>unclosed", "ServerBusy", "unclosed", KC_ADVICE_NONE, false},
	{403, NULL, "<Error><Code>AuthenticationFailed</Code><Message>https://a/b?sv=1&amp;sig=SECRET%3D</Message></Error>",
	"AuthenticationFailed", "https://a/b?***", KC_ADVICE_NONE, true},
};

static void
test_errors(void)
{
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
	{
		const ErrorRow *row = &errors[i];
		KcHttp	   *http;
		KcError		err;

		server_clear(&server);
		server_rule(&server, (ServerRule) {.status = row->status,.headers = row->headers,.body = row->body});
		wait_for(kc_azure_put_blob(&storage, at("/c/b"), kc_slice(SAS), kc_slice("d"), &http, &err), &http);
		is(http->error.http_status, row->status, row->body);
		is_str(http->error.code, row->code, "code");
		if (strstr(row->body, "SECRET") != NULL)
			ok(strstr(http->error.detail, "SECRET") == NULL, "the signature is not told");
		else
			is_str(http->error.detail, row->detail, "detail");
		is(http->error.advice, row->advice, "advice");
		is(kc_azure_wants_fresh_sas(&http->error), row->wants_sas, "does it want another SAS?");
		kc_http_free(http);
	}
}

static void
test_xml(void)
{
	KcBuf		text;

	kc_buf_init(&text, &kc_alloc_malloc, 100);
	ok(!kc_azure_xml_text(kc_slice(""), "Code", &text), "nothing in nothing");
	ok(!kc_azure_xml_text(kc_slice("<Codec>x</Codec>"), "Code", &text), "another element");
	ok(kc_azure_xml_text(kc_slice("<a><Code>&am;&#65;&lt</Code>"), "Code", &text), "odd references");
	is_slice(kc_buf_view(&text), "&am;&#65;&lt", "stay as they are");
	kc_buf_free(&text);
}

int
main(void)
{
	server_start(&server);
	harness_start(&h, &kc_alloc_malloc, NULL);
	storage = (KcStorage) {.mux = h.mux,.alloc = &kc_alloc_malloc,.http = &config,
		.request_timeout_ms = 5000,.stall_timeout_ms = 5000};
	test_blobs();
	test_queue_and_table();
	test_errors();
	test_xml();
	harness_stop(&h);
	server_stop(&server);
	return done_testing();
}
