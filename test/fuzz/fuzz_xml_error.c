/*
 * fuzz_xml_error.c
 *	  Error bodies of Azure Storage, XML or OData JSON, and of the token
 *	  endpoint.
 */
#include "fuzz.h"

#include "core/auth.h"
#include "core/azure.h"
#include "core/text.h"

static void
check_error(const KcError *err)
{
	holds(err->status != KC_OK);
	holds(kc_text_utf8_valid(kc_slice(err->code), NULL));
	holds(kc_text_utf8_valid(kc_slice(err->detail), NULL));
	holds(strlen(err->detail) < sizeof(err->detail) && strlen(err->code) < sizeof(err->code));
	(void) kc_azure_wants_fresh_sas(err);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const int statuses[] = {400, 403, 404, 409, 500, 503};
	KcHttpResponse response;
	KcTokenAnswer answer;
	KcSlice		text = kc_slice_n((const char *) data, size);
	KcError		err;
	KcBuf		out;

	for (size_t i = 0; i < sizeof(statuses) / sizeof(statuses[0]); i++)
	{
		memset(&response, 0, sizeof(response));
		response.status = statuses[i];
		kc_buf_init(&response.body, &kc_alloc_malloc, KC_BUF_UNLIMITED);
		kc_buf_slice(&response.body, text);
		kc_error_set(&err, KC_ERR_REFUSED, "fuzzing", "refused");
		err.http_status = statuses[i];
		kc_azure_explain(&response, &err);
		check_error(&err);
		kc_buf_free(&response.body);
	}

	/* Unescaping never makes text longer. */
	kc_buf_init(&out, &kc_alloc_malloc, KC_BUF_UNLIMITED);
	if (kc_azure_xml_text(text, "Message", &out))
		holds(out.len <= size);
	else
		holds(out.len == 0);
	kc_buf_free(&out);

	if (kc_token_answer_parse(&kc_alloc_malloc, text, INT64_C(1788257472000000), &answer, &err) == KC_OK)
	{
		holds(answer.token != NULL && answer.token[0] != '\0');
		holds(answer.lifetime_s > 0 && answer.refresh_s > 0 && answer.refresh_s <= answer.lifetime_s);
		kc_free_secret(&kc_alloc_malloc, answer.token);
	}
	else
		holds(answer.token == NULL);
	return 0;
}
