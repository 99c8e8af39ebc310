/*
 * capture_letter.c
 *	  Row changes that Kusto has refused, once more: a staged operation in place
 *	  of the dead letter, in the caller's transaction.
 *
 * The upload happens in the caller's session, as the owner of the captured table,
 * whose privileges the caller has.  The operation has the dead letter's id, by
 * which the caller knows it.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "../core/ingest.h"
#include "alloc.h"
#include "capture.h"
#include "dest.h"
#include "fault.h"
#include "operations.h"
#include "report.h"
#include "session.h"
#include "settings.h"
#include "worker.h"

static void
free_ingest(void *arg)
{
	kc_ingest_free((KcIngest *) arg);
}

static KcIngest *
start_ingest(const KpgDeadLetter *letter, const KpgSession *session)
{
	MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));
	KcIngestOptions options;
	KcIngest   *ingest;
	KcError		err;

	memset(&options, 0, sizeof(options));
	memcpy(options.operation_id.bytes, letter->id.data, sizeof(letter->id.data));
	options.max_blob_size = (uint64_t) kpg_max_blob_size_kb * 1024;
	options.level = kpg_compression_level;
	options.threads = kpg_compression_threads;
	options.properties.database = kc_slice(kpg_session_utf8(letter->database));
	options.properties.table = kc_slice(kpg_session_utf8(letter->table_name));
	/* Perhaps: the message must fit. */
	options.properties.exactly_once = true;
	options.properties.report = KC_REPORT_ALL;
	kpg_check(kc_ingest_create(kpg_alloc_create(CurrentMemoryContext), session->client, &options,
							   &ingest, &err), &err);
	callback->func = free_ingest;
	callback->arg = ingest;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
	return ingest;
}

static void
upload(const KpgDeadLetter *letter, KcIngest *ingest, const KcMux *mux)
{
	KpgSink    *sink = kpg_dest_ingest(ingest, mux);
	KcBuf	   *chunk;

	while ((chunk = sink->get(sink)) == NULL)
		sink->wait(sink);
	kc_buf_slice(chunk, letter->data);
	sink->put(sink, chunk, (uint64) letter->rows);
	while (!sink->finish(sink))
		sink->wait(sink);
}

static void
stage(const KpgDeadLetter *letter, const KcIngest *ingest)
{
	KpgOperationRequest request;

	memset(&request, 0, sizeof(request));
	request.id = letter->id;
	request.owner = letter->owner;
	request.server = letter->server;
	request.database = letter->database;
	request.table_name = letter->table_name;
	request.mode = "queued";
	request.source = "capture";
	request.exactly_once = KPG_EXACTLY_ONCE_AUTO;
	request.created_at = GetCurrentTimestamp();
	if (kpg_operations_stage(&request, ingest, NULL))
		kpg_worker_staged();
}

bool
kpg_capture_retry_letter(const pg_uuid_t *id)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "kusto_ingest dead letter",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	KpgDeadLetter letter;
	bool		found = kpg_outbox_find_dead(id, &letter);

	if (found)
	{
		Oid			serverid = kpg_session_server(letter.server, letter.owner);
		KpgSession *session = kpg_session_acquire_in(context, serverid, letter.owner);
		KcIngest   *ingest = start_ingest(&letter, session);

		upload(&letter, ingest, kc_client_mux(session->client));
		stage(&letter, ingest);
		kpg_outbox_forget_dead(id);
		KPG_FAULT("letter-staged");
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return found;
}

bool
kpg_capture_discard_letter(const pg_uuid_t *id)
{
	KpgDeadLetter letter;

	if (!kpg_outbox_find_dead(id, &letter))
		return false;
	kpg_outbox_forget_dead(id);
	return true;
}
