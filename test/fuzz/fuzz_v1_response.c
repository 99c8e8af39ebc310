/*
 * fuzz_v1_response.c
 *	  Answers of Kusto, v1 and v2: as a result, as an error body, and as the
 *	  list of ingestion resources.  The first byte chooses.
 */
#include "fuzz.h"

#include "core/kusto_resources.h"

/* Walk all of a result; every value lies within what the answer was. */
static void
walk(KcResult *result)
{
	int			ncolumns = kc_result_ncolumns(result);

	for (int i = 0; i < ncolumns; i++)
	{
		holds(kc_result_column_name(result, i).data != NULL);
		holds(kc_result_column_type(result, i).data != NULL);
	}
	for (int pass = 0; pass < 2; pass++)
	{
		while (kc_result_next(result))
		{
			for (int i = 0; i < ncolumns; i++)
			{
				KcJsonValue value = kc_result_value(result, i);

				holds(value.raw.len > 0 && value.raw.data != NULL);
				holds(value.type != KC_JSON_STRING || value.raw.data[0] == '"');
			}
		}
		kc_result_rewind(result);
	}
}

static void
read_resources(KcResult *result)
{
	KcResourceSet set;
	KcError		err;
	KcStatus	status;

	memset(&set, 0, sizeof(set));
	status = kc_resource_set_read(&kc_alloc_malloc, result, true, 0, &set, &err);
	holds(status == KC_OK || err.status == status);
	for (int kind = 0; kind < KC_RESOURCE_KINDS; kind++)
	{
		for (const KcResource *r = set.first[kind]; r != NULL; r = r->next)
		{
			KcUrl		url;

			/* What is taken can be used: a URL without query, and a query. */
			holds(kc_url_parse(kc_slice(r->url), &url, NULL) == KC_OK && url.query.len == 0);
			holds(r->sas[0] != '\0' && strchr(r->url, '?') == NULL);
		}
	}
	kc_result_rewind(result);
	status = kc_resource_set_read_token(&kc_alloc_malloc, result, &set, &err);
	holds((status == KC_OK) == (set.identity_token != NULL));
	kc_resource_set_free(&kc_alloc_malloc, &set);
}

/* Whatever a streaming request is answered, what may pass is known for such. */
static void
judge_stream(const KcHttpResponse *response, KcError *err)
{
	KcBuf		names;
	bool		permanent_told;

	kc_buf_init(&names, &kc_alloc_malloc, KC_HTTP_ERROR_BODY);
	kc_kusto_read_names(kc_buf_view(&response->body), &names, &permanent_told);
	kc_error_set(err, KC_ERR_REFUSED, "fuzzing", "refused");
	err->http_status = response->status;
	kc_kusto_explain_stream(response, err);
	if (kc_kusto_stream_judge(err, kc_buf_view(&names), permanent_told) == KC_STREAM_FAULT_PASSING)
		holds(!err->permanent && (err->status == KC_ERR_SERVICE || err->status == KC_ERR_THROTTLED));
	holds(err->status != KC_OK);
	kc_buf_free(&names);
}

static void
read_error_body(KcSlice text)
{
	KcHttpResponse response;
	KcError		err;

	memset(&response, 0, sizeof(response));
	response.status = 400;
	kc_buf_init(&response.body, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_slice(&response.body, text);
	kc_error_set(&err, KC_ERR_REFUSED, "fuzzing", "refused");
	kc_kusto_explain_ingest(&response, &err);
	kc_kusto_explain_query(&response, &err);
	holds(err.status != KC_OK);
	holds(kc_text_utf8_valid(kc_slice(err.detail), NULL) && kc_text_utf8_valid(kc_slice(err.code), NULL));
	judge_stream(&response, &err);
	kc_buf_free(&response.body);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	KcSlice		text;
	KcResult   *result;
	KcBuf		body;
	KcError		err;
	KcStatus	status;

	if (size == 0)
		return 0;
	text = kc_slice_n((const char *) data + 1, size - 1);
	read_error_body(text);
	kc_buf_init(&body, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	kc_buf_slice(&body, text);
	status = kc_result_create(&kc_alloc_malloc, &body, data[0] == '2', "fuzzing", &result, &err);
	holds(body.data == NULL);
	holds((status == KC_OK) == (result != NULL));
	if (status == KC_OK)
	{
		walk(result);
		read_resources(result);
	}
	else
		holds(err.status == status);
	kc_result_free(result);
	return 0;
}
