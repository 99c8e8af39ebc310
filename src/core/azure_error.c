/*
 * azure_error.c
 *	  What Azure Storage says when it refuses: XML from blobs and queues, OData
 *	  JSON from tables, the x-ms-error-code header from all.
 *
 * Public source: learn.microsoft.com/rest/api/storageservices/status-and-error-codes2
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* memmem */
#endif
#include <string.h>

#include "azure.h"
#include "json.h"

#define MAX_TEXT (32 * 1024)
/* More than this apart, a SAS that is valid there may not be here. */
#define CLOCK_TOLERANCE_US (INT64_C(5) * 60 * 1000000)

/* ---- XML ---- */

static const struct
{
	const char *entity;
	char		character;
}			entities[] = {
	{"&lt;", '<'}, {"&gt;", '>'}, {"&amp;", '&'}, {"&quot;", '"'}, {"&apos;", '\''},
};

/*
 * One character, or one reference to one.  Numeric references do not occur in
 * what the service says; they stay as they are.
 */
static size_t
append_unescaped(KcBuf *text, KcSlice rest)
{
	for (size_t i = 0; i < sizeof(entities) / sizeof(entities[0]); i++)
	{
		if (kc_slice_starts(rest, kc_slice(entities[i].entity)))
		{
			kc_buf_char(text, entities[i].character);
			return strlen(entities[i].entity);
		}
	}
	kc_buf_char(text, rest.data[0]);
	return 1;
}

static const char *
find(KcSlice haystack, KcSlice needle)
{
	if (needle.len == 0 || haystack.len < needle.len)
		return NULL;
	return memmem(haystack.data, haystack.len, needle.data, needle.len);
}

bool
kc_azure_xml_text(KcSlice xml, const char *element, KcBuf *text)
{
	char		tag[64];
	size_t		len = strlen(element);
	const char *start;
	const char *end = xml.data + xml.len;

	if (len + 3 > sizeof(tag))
		return false;
	tag[0] = '<';
	memcpy(tag + 1, element, len);
	tag[len + 1] = '>';
	start = find(xml, kc_slice_n(tag, len + 2));
	if (start == NULL)
		return false;
	start += len + 2;
	while (start < end && *start != '<')
		start += append_unescaped(text, kc_slice_n(start, (size_t) (end - start)));
	return true;
}

static bool
explain_xml(const KcHttpResponse *response, KcError *err)
{
	KcSlice		xml = kc_buf_view(&response->body);
	bool		found = false;
	KcBuf		text;

	kc_buf_init(&text, response->body.alloc, MAX_TEXT);
	if (kc_azure_xml_text(xml, "Code", &text))
	{
		found = true;
		kc_error_text(err->code, sizeof(err->code), kc_buf_view(&text));
	}
	kc_buf_reset(&text);
	if (kc_azure_xml_text(xml, "Message", &text))
	{
		found = true;
		kc_buf_char(&text, ' ');
		if (!kc_azure_xml_text(xml, "AuthenticationErrorDetail", &text))
			kc_buf_truncate(&text, text.len > 0 ? text.len - 1 : 0);
		kc_error_text(err->detail, sizeof(err->detail), kc_buf_view(&text));
	}
	kc_buf_free(&text);
	return found;
}

/* ---- OData ---- */

static bool
explain_odata(const KcHttpResponse *response, KcError *err)
{
	KcJsonValue top;
	KcJsonValue error;
	KcJsonValue member;
	KcError		ignored;
	KcBuf		text;

	if (kc_json_check(kc_buf_view(&response->body), 16, &top, err->doing, &ignored) != KC_OK
		|| top.type != KC_JSON_OBJECT
		|| !(kc_json_member(top, "odata.error", &error) || kc_json_member(top, "error", &error))
		|| error.type != KC_JSON_OBJECT)
		return false;
	kc_buf_init(&text, response->body.alloc, MAX_TEXT);
	if (kc_json_member(error, "code", &member) && member.type == KC_JSON_STRING)
	{
		kc_json_unescape(&text, member);
		kc_error_text(err->code, sizeof(err->code), kc_buf_view(&text));
	}
	kc_buf_reset(&text);
	if (kc_json_member(error, "message", &member))
	{
		if (member.type == KC_JSON_OBJECT && !kc_json_member(member, "value", &member))
			member.type = KC_JSON_NULL;
		if (member.type == KC_JSON_STRING)
			kc_json_unescape(&text, member);
		kc_error_text(err->detail, sizeof(err->detail), kc_buf_view(&text));
	}
	kc_buf_free(&text);
	return true;
}

/* ---- what it means ---- */

static bool
code_is(const KcError *err, const char *code)
{
	return kc_slice_ieq(kc_slice(err->code), kc_slice(code));
}

static void
advise(const KcHttpResponse *response, KcError *err)
{
	bool		clocks_differ = response->skew_us > CLOCK_TOLERANCE_US
		|| response->skew_us < -CLOCK_TOLERANCE_US;

	if (response->status == 403 && code_is(err, "AuthenticationFailed") && clocks_differ)
		err->advice = KC_ADVICE_CLOCK;
	else if (response->status == 403
			 && (code_is(err, "AuthorizationFailure") || code_is(err, "PublicAccessNotPermitted")))
		err->advice = KC_ADVICE_PRIVATE_ENDPOINT;	/* a firewall rule, not a signature */
	else if (response->status == 409 && code_is(err, "ContainerBeingDeleted"))
		err->status = KC_ERR_NOT_FOUND;
}

void
kc_azure_explain(const KcHttpResponse *response, KcError *err)
{
	KcSlice		body = kc_buf_view(&response->body);

	kc_error_text(err->what, sizeof(err->what), kc_slice("the storage service refuses"));
	if (!explain_odata(response, err) && !explain_xml(response, err))
		kc_error_text(err->detail, sizeof(err->detail), body);
	if (response->status >= 500)
		kc_error_text(err->what, sizeof(err->what), kc_slice("the storage service failed"));
	advise(response, err);
}

void
kc_azure_advise_network(KcError *err)
{
	if (err->status == KC_ERR_NETWORK && err->advice == KC_ADVICE_NONE)
		err->advice = KC_ADVICE_PRIVATE_ENDPOINT;
}

bool
kc_azure_wants_fresh_sas(const KcError *err)
{
	return err->http_status == 403
		|| (err->http_status == 404 && !code_is(err, "ResourceNotFound"))
		|| (err->http_status == 409 && code_is(err, "ContainerBeingDeleted"));
}
