/*
 * dest.h
 *	  DestReceiver: slots -> CSV chunks -> the core's ingest.
 */
#ifndef KPG_DEST_H
#define KPG_DEST_H

#include "postgres.h"

#include "tcop/dest.h"

#include "../core/ingest.h"
#include "../core/mux.h"
#include "format.h"
#include "progress.h"

/*
 * All four belong to the caller and must outlive the receiver; mux is the one
 * that ingest is on.
 * Waits for the network (interruptibly) when all chunks are in work.
 */
extern DestReceiver *kpg_dest_create(KpgRowFormat *format, KcIngest *ingest, const KcMux *mux,
									 KpgProgress *progress);

/* After the last row: hand over the rest, wait until every blob is committed. */
extern void kpg_dest_finish(DestReceiver *dest);

#endif							/* KPG_DEST_H */
