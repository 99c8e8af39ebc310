/*
 * export_queue.c
 *	  Queued ingestion: blobs that a worker posts after the commit.
 */
#include "postgres.h"

#include "alloc.h"
#include "export_internal.h"
#include "fault.h"
#include "report.h"
#include "settings.h"
#include "worker.h"

static void
free_ingest(void *arg)
{
	kc_ingest_free((KcIngest *) arg);
}

/* Asked when a blob is begun: from kc_ingest_put_chunk(), in this thread. */
static int
next_ordinal(void *arg)
{
	return (int) pg_atomic_add_fetch_u32(((const KpgExport *) arg)->ordinals, 1);
}

void
kpg_export_start_ingest(KpgExport *export)
{
	MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));
	KcIngestOptions options;
	KcError		err;

	memset(&options, 0, sizeof(options));
	StaticAssertStmt(sizeof(export->id.data) == sizeof(options.operation_id.bytes), "both are UUIDs");
	memcpy(options.operation_id.bytes, export->id.data, sizeof(export->id.data));
	options.max_blob_size = (uint64_t) kpg_max_blob_size_kb * 1024;
	options.level = kpg_compression_level;
	options.threads = kpg_compression_threads;
	options.properties = kpg_export_properties(export);
	if (export->ordinals != NULL)
	{
		options.next_ordinal = next_ordinal;
		options.ordinal_arg = export;
	}
	kpg_check(kc_ingest_create(kpg_alloc_create(export->context), export->session->client, &options,
							   &export->ingest, &err), &err);
	callback->func = free_ingest;
	callback->arg = export->ingest;
	MemoryContextRegisterResetCallback(export->context, callback);
}

KpgSink *
kpg_export_ingest_sink(const KpgExport *export)
{
	return kpg_dest_ingest(export->ingest, kc_client_mux(export->session->client));
}

/*
 * Kusto looks for the tag before each blob: once the first blob is in, it
 * would skip the others.
 */
static void
check_skippable(const KpgExport *export)
{
	ArrayType  *keys = export->request->ingest_if_not_exists;

	if (keys == NULL || ArrayGetNItems(ARR_NDIM(keys), ARR_DIMS(keys)) == 0 ||
		kc_ingest_nblobs(export->ingest) <= 1)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("a result of %d blobs cannot be exported with ingest_if_not_exists",
					kc_ingest_nblobs(export->ingest)),
			 errdetail("After the first blob Kusto would skip the others."),
			 errhint("Raise kusto_ingest.max_blob_size, or export the result in parts with a key for each.")));
}

void
kpg_export_queued(KpgExport *export)
{
	kpg_export_query(export, kpg_export_ingest_sink(export));
	check_skippable(export);
	kpg_export_stage(export);
}
