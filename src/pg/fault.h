/*
 * fault.h
 *	  Faults on demand, for tests: built with -DKUSTO_FAULTS only.
 *
 * kusto_ingest.fault = 'point:action[:count]' makes the next count (1) passes
 * of the point, in whatever process, an accident; fault.c lists the points.
 * One stands at every place between an effect outside of PostgreSQL and its
 * record inside, and around every commit that the rest relies on.
 *
 *	error	raises with SQLSTATE XX0FT; a point of the core takes its failure path
 *	kill	SIGKILL to the process, after which the postmaster restarts all others
 *	exit	proc_exit(1); a parallel worker takes its time for it
 *	sleep	for ever, so that a test can stop the server right there
 *
 * Each pass that strikes leaves a file kusto_ingest_faults/point.n in the data
 * directory, n from 1, and strikes only while it is the first to make that
 * file: count holds over all processes and across a crash.  Whoever sets the
 * parameter removes the directory first, and looks into it afterwards to see
 * that the point was passed.
 */
#ifndef KPG_FAULT_H
#define KPG_FAULT_H

#ifdef KUSTO_FAULTS
#include "storage/dsm.h"

#define KPG_ERRCODE_FAULT	MAKE_SQLSTATE('X', 'X', '0', 'F', 'T')

extern void kpg_fault_define(void);
extern void kpg_fault_point(const char *point);
#define KPG_FAULT(point) kpg_fault_point(point)

/*
 * In a parallel worker: when its action is to exit, let a while pass between the
 * signal to its leader and letting go of this segment, and what is in it.
 */
extern void kpg_fault_leave_slowly(dsm_segment *segment);
#define KPG_FAULT_LEAVE_SLOWLY(segment) kpg_fault_leave_slowly(segment)
#else
#define KPG_FAULT_LEAVE_SLOWLY(segment) ((void) 0)
#define kpg_fault_define() ((void) 0)
#define KPG_FAULT(point) ((void) 0)
#endif

#endif							/* KPG_FAULT_H */
