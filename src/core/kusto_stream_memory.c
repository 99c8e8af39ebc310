/*
 * kusto_stream_memory.c
 *	  Which tables refuse streaming ingestion, remembered for a while, so that
 *	  not every request has to be refused anew.
 *
 * A short list, most recent first; a client seldom streams into many tables
 * that refuse.  Nothing here can fail.
 */
#include <string.h>

#include "kusto_internal.h"

#define MAX_REFUSALS 64

struct KcStreamRefusal
{
	KcStreamRefusal *next;
	int64_t		until_ms;
	KcError		why;
	KcSlice		database;
	KcSlice		table;
	char		bytes[];		/* of the names */
};

static KcStreamRefusal **
find(KcClient *client, KcSlice database, KcSlice table)
{
	KcStreamRefusal **link = &client->stream_refusals;

	while (*link != NULL
		   && !(kc_slice_eq((*link)->database, database) && kc_slice_eq((*link)->table, table)))
		link = &(*link)->next;
	return link;
}

static void
drop(KcClient *client, KcStreamRefusal **link)
{
	KcStreamRefusal *refusal = *link;

	if (refusal == NULL)
		return;
	*link = refusal->next;
	kc_free(client->alloc, refusal);
}

/* The time of some is up; and the oldest go when there are too many. */
static void
tidy(KcClient *client)
{
	KcStreamRefusal **link = &client->stream_refusals;
	int64_t		now_ms = kc_client_now_ms(client);
	int			n = 0;

	while (*link != NULL)
	{
		if ((*link)->until_ms <= now_ms || n >= MAX_REFUSALS)
			drop(client, link);
		else
		{
			n++;
			link = &(*link)->next;
		}
	}
}

const KcError *
kc_kusto_stream_refusal(KcClient *client, KcSlice database, KcSlice table)
{
	KcStreamRefusal *refusal;

	tidy(client);
	refusal = *find(client, database, table);
	return refusal != NULL ? &refusal->why : NULL;
}

static KcSlice
put(char *at, KcSlice text)
{
	if (text.len > 0)
		memcpy(at, text.data, text.len);
	return kc_slice_n(at, text.len);
}

void
kc_kusto_stream_remember(KcClient *client, KcSlice database, KcSlice table, const KcError *why,
						 int64_t for_ms)
{
	KcStreamRefusal *refusal;

	kc_kusto_stream_forget(client, database, table);
	refusal = kc_alloc(client->alloc, sizeof(KcStreamRefusal) + database.len + table.len);
	if (refusal == NULL)
		return;
	refusal->until_ms = kc_client_now_ms(client) + for_ms;
	refusal->why = *why;
	refusal->database = put(refusal->bytes, database);
	refusal->table = put(refusal->bytes + database.len, table);
	refusal->next = client->stream_refusals;
	client->stream_refusals = refusal;
	tidy(client);
}

void
kc_kusto_stream_forget(KcClient *client, KcSlice database, KcSlice table)
{
	drop(client, find(client, database, table));
}

void
kc_kusto_stream_forget_all(KcClient *client)
{
	while (client->stream_refusals != NULL)
		drop(client, &client->stream_refusals);
}
