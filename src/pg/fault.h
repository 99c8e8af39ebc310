/*
 * fault.h
 *	  Faults on demand, for tests: built with -DKUSTO_FAULTS only.
 *
 * kusto_ingest.fault = 'point:action[:count]' makes the next count (1) passes
 * of the point error, be killed, exit or sleep.  A point stands at every place
 * between an effect outside of PostgreSQL and its record inside.
 */
#ifndef KPG_FAULT_H
#define KPG_FAULT_H

#ifdef KUSTO_FAULTS
extern void kpg_fault_define(void);
extern void kpg_fault_point(const char *point);
#define KPG_FAULT(point) kpg_fault_point(point)
#else
#define KPG_FAULT(point) ((void) 0)
#endif

#endif							/* KPG_FAULT_H */
