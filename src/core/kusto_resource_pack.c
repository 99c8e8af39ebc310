/*
 * kusto_resource_pack.c
 *	  A set of ingestion resources as bytes, for the cache that processes share.
 *
 * Only processes of one server with one version of this library read what
 * another has written, so numbers are as the machine has them:
 *
 *		{ kind, end of the SAS, URL, SAS } ... { KC_RESOURCE_KINDS, 0, token, "" }
 *
 * with the length before each text.
 */
#include <string.h>

#include "kusto_resources.h"

typedef struct Head
{
	int64_t		expires_us;
	int32_t		kind;			/* KC_RESOURCE_KINDS: the identity token, and the end */
	uint32_t	lengths[2];
} Head;

static void
pack(KcBuf *out, int kind, int64_t expires_us, const char *first, const char *second)
{
	Head		head;

	memset(&head, 0, sizeof(head));
	head.kind = kind;
	head.expires_us = expires_us;
	head.lengths[0] = (uint32_t) strlen(first);
	head.lengths[1] = (uint32_t) strlen(second);
	kc_buf_append(out, (const char *) &head, sizeof(head));
	kc_buf_str(out, first);
	kc_buf_str(out, second);
}

void
kc_resource_set_pack(const KcResourceSet *set, KcBuf *out)
{
	for (int kind = 0; kind < KC_RESOURCE_KINDS; kind++)
	{
		for (const KcResource *r = set->first[kind]; r != NULL; r = r->next)
			pack(out, kind, r->expires_us, r->url, r->sas);
	}
	pack(out, KC_RESOURCE_KINDS, 0, set->identity_token, "");
}

/* The next record; *texts[0] and [1] are slices of it. False: there is none. */
static bool
next_record(KcSlice *rest, Head *head, KcSlice texts[2])
{
	if (rest->len < sizeof(*head))
		return false;
	memcpy(head, rest->data, sizeof(*head));
	*rest = kc_slice_n(rest->data + sizeof(*head), rest->len - sizeof(*head));
	for (int i = 0; i < 2; i++)
	{
		size_t		len = head->lengths[i];

		if (rest->len < len)
			return false;
		texts[i] = kc_slice_n(rest->data, len);
		*rest = kc_slice_n(rest->data + len, rest->len - len);
	}
	return head->kind >= 0 && head->kind <= KC_RESOURCE_KINDS;
}

static KcResource *
make_resource(const KcAlloc *alloc, const Head *head, const KcSlice texts[2])
{
	KcResource *resource = kc_alloc0(alloc, sizeof(KcResource));

	if (resource == NULL)
		return NULL;
	resource->url = kc_strdup(alloc, texts[0]);
	resource->sas = kc_strdup(alloc, texts[1]);
	resource->expires_us = head->expires_us;
	if (resource->url != NULL && resource->sas != NULL)
		return resource;
	kc_free(alloc, resource->url);
	kc_free_secret(alloc, resource->sas);
	kc_free(alloc, resource);
	return NULL;
}

KcStatus
kc_resource_set_unpack(const KcAlloc *alloc, KcSlice bytes, KcResourceSet *set)
{
	KcResource **links[KC_RESOURCE_KINDS];
	KcSlice		texts[2];
	Head		head;

	for (int kind = 0; kind < KC_RESOURCE_KINDS; kind++)
	{
		links[kind] = &set->first[kind];
		while (*links[kind] != NULL)
			links[kind] = &(*links[kind])->next;
	}
	while (next_record(&bytes, &head, texts))
	{
		KcResource *resource;

		if (head.kind == KC_RESOURCE_KINDS)
		{
			set->identity_token = kc_strdup(alloc, texts[0]);
			return set->identity_token != NULL ? KC_OK : KC_ERR_NOMEM;
		}
		resource = make_resource(alloc, &head, texts);
		if (resource == NULL)
			return KC_ERR_NOMEM;
		*links[head.kind] = resource;
		links[head.kind] = &resource->next;
	}
	return KC_ERR_PROTOCOL;
}

int64_t
kc_resource_set_end(const KcResourceSet *set)
{
	int64_t		end_us = 0;

	for (int kind = 0; kind < KC_RESOURCE_KINDS; kind++)
	{
		for (const KcResource *r = set->first[kind]; r != NULL; r = r->next)
		{
			if (r->expires_us > end_us)
				end_us = r->expires_us;
		}
	}
	return end_us;
}
