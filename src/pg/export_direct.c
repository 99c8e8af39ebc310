/*
 * export_direct.c
 *	  Direct ingestion: blobs that Kusto takes at once, all or none of them.
 *
 * Nothing is batched, and the engine does the work while the call waits: for
 * large results now and then, not for many small ones
 * (learn.microsoft.com/kusto/management/data-ingestion/ingest-from-storage).
 * As with streaming, a rollback takes nothing back.
 */
#include "postgres.h"

#include "export_internal.h"
#include "report.h"
#include "wait.h"

static const KcDirectTask *
request(KpgExport *export)
{
	KcIngestProperties properties = kpg_export_properties(export);
	int			nblobs = kc_ingest_nblobs(export->ingest);
	KcSlice    *urls = palloc(sizeof(KcSlice) * (Size) nblobs);
	KcDirectTask *task;
	KcError		err;

	for (int i = 0; i < nblobs; i++)
		urls[i] = kc_slice(kc_ingest_blob(export->ingest, i)->url);
	kpg_wait_check(kc_client_mux(export->session->client));
	kpg_check(kc_kusto_direct_start(export->session->client, &properties, urls, nblobs, &task, &err), &err);
	kpg_export_own_task(export, &task->task);
	kpg_export_wait_task(export, &task->task);
	return task;
}

static void
ingest_blobs(KpgExport *export)
{
	const KcDirectTask *task = request(export);

	if (task->task.error.status == KC_OK)
	{
		if (task->skipped)
			kpg_export_not_ingested(export);
		kpg_export_record_ingested(export, task->skipped ? KPG_END_SKIPPED : KPG_END_INGESTED);
		return;
	}
	if (task->doubtful)
		kpg_report_doubtful(&task->task.error);
	kpg_export_not_ingested(export);
	kpg_report(ERROR, &task->task.error);
}

void
kpg_export_direct(KpgExport *export)
{
	KcError		err;

	kpg_export_query(export, kpg_export_ingest_sink(export));
	kpg_progress_phase(export->progress, KPG_PHASE_SENDING);
	if (!kpg_export_create_table(export, &err))
		kpg_report(ERROR, &err);
	if (kc_ingest_nblobs(export->ingest) == 0)
		kpg_export_record(export, KPG_END_INGESTED);
	else
		ingest_blobs(export);
}
