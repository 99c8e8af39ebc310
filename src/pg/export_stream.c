/*
 * export_stream.c
 *	  Streaming ingestion: a small result, in Kusto before the call returns.
 *
 * The result is collected first, so a query that fails has sent nothing.  What
 * is sent cannot be taken back: a transaction that rolls back loses its record
 * alone.  Mode "managed" ends as mode "queued" does when the result is too
 * large, or the service would rather have it so; the query is not run again.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "export_internal.h"
#include "report.h"
#include "wait.h"

/* ---- what is too large ---- */

static KpgSink *
refuse_size(void *arg)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("the result is too large for mode \"streaming\""),
			 errdetail("A streaming request takes %d bytes of uncompressed CSV. Nothing was sent.",
					   KC_STREAM_MAX_RAW),
			 errhint("Use mode \"managed\", which queues a result that is too large, or mode \"queued\".")));
	return NULL;				/* not reached */
}

static KpgSink *
queue_it(void *arg)
{
	KpgExport  *export = (KpgExport *) arg;

	kpg_export_start_ingest(export);
	return kpg_export_ingest_sink(export);
}

/* ---- sending ---- */

/* Of managed mode: the blobs, instead. */
static void
queue_instead(KpgExport *export, KpgSink *sink, const KcError *why, bool doubtful)
{
	export->not_streamed = kpg_report_text(why->what);
	export->doubtful = doubtful;
	ereport(DEBUG1,
			(errmsg_internal("kusto_ingest queues what it could not stream: %s",
							 kpg_report_text(kpg_report_message(why)))));
	kpg_progress_phase(export->progress, KPG_PHASE_UPLOAD);
	kpg_dest_overflow(sink);
	kpg_export_stage(export);
}

static const KcStreamTask *
request(KpgExport *export, KcSlice csv)
{
	KcStreamRequest stream;
	KcStreamTask *task;
	KcError		err;

	memset(&stream, 0, sizeof(stream));
	stream.database = kc_slice(kpg_session_utf8(export->database));
	stream.table = kc_slice(kpg_session_utf8(export->request->table_name));
	stream.mapping = kc_slice(kpg_session_utf8(export->request->mapping));
	stream.csv = csv;
	stream.managed = export->mode == KPG_MODE_MANAGED;
	kpg_wait_check(kc_client_mux(export->session->client));
	kpg_check(kc_kusto_stream_start(export->session->client, &stream, &task, &err), &err);
	kpg_export_own_task(export, &task->task);
	export->raw_bytes = csv.len;
	export->compressed_bytes = task->compressed_bytes;
	kpg_export_wait_task(export, &task->task);
	return task;
}

/* Of streaming mode: there is another way. */
static void
refuse_streaming(const KcError *why)
{
	kpg_report_hinted(why, "Use mode \"managed\", which queues what Kusto does not stream, or mode \"queued\".");
}

static void
send_rows(KpgExport *export, KpgSink *sink, KcSlice csv)
{
	const KcStreamTask *task = request(export, csv);

	if (task->verdict != KC_STREAM_INGESTED && !task->doubtful)
		kpg_export_not_ingested(export);
	switch (task->verdict)
	{
		case KC_STREAM_INGESTED:
			kpg_export_record_ingested(export, KPG_END_INGESTED);
			return;
		case KC_STREAM_QUEUE:
			if (export->mode == KPG_MODE_MANAGED)
			{
				queue_instead(export, sink, &task->task.error, task->doubtful);
				return;
			}
			break;
		case KC_STREAM_REFUSED:
		case KC_STREAM_FAILED:
			break;
	}
	if (task->doubtful)
		kpg_report_doubtful(&task->task.error);
	if (task->verdict == KC_STREAM_QUEUE)
		refuse_streaming(&task->task.error);
	kpg_report(ERROR, &task->task.error);
}

/*
 * Rows must not be streamed to nodes that do not know the columns which the
 * table has got just now.  False: *err says why they may not.
 */
static bool
refresh_nodes(const KpgExport *export, KcError *err)
{
	KcTask	   *task;

	if (!export->table_created)
		return true;
	kpg_wait_check(kc_client_mux(export->session->client));
	kpg_check(kc_kusto_stream_schema_start(export->session->client,
										   kc_slice(kpg_session_utf8(export->database)),
										   kc_slice(kpg_session_utf8(export->request->table_name)),
										   &task, err), err);
	kpg_export_own_task(export, task);
	(void) kpg_wait_done(&task->done, -1, KPG_WAIT_REQUEST);
	*err = task->error;
	return err->status == KC_OK;
}

void
kpg_export_streamed(KpgExport *export)
{
	bool		managed = export->mode == KPG_MODE_MANAGED;
	KpgSink    *sink = kpg_dest_collect(KC_STREAM_MAX_RAW, managed ? queue_it : refuse_size, export);
	KcSlice		csv;
	KcError		err;

	kpg_export_query(export, sink);
	if (!kpg_dest_collected(sink, &csv, &export->rows))
	{
		kpg_export_stage(export);
		return;
	}
	kpg_progress_phase(export->progress, KPG_PHASE_SENDING);
	if (!kpg_export_create_table(export, &err))
	{
		if (!managed)
			kpg_report(ERROR, &err);
		queue_instead(export, sink, &err, false);
	}
	else if (export->rows == 0)
		kpg_export_record(export, KPG_END_INGESTED);
	else if (refresh_nodes(export, &err))
		send_rows(export, sink, csv);
	else if (managed)
		queue_instead(export, sink, &err, false);
	else
		refuse_streaming(&err);
}
