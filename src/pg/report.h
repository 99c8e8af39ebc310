/*
 * report.h
 *	  The one place where an error of the core becomes an ereport.
 */
#ifndef KPG_REPORT_H
#define KPG_REPORT_H

#include "postgres.h"

#include "../core/base.h"

/*
 * Raise (elevel ERROR does not return) or log a core error: primary message
 * "could not <doing>: <what>", DETAIL with the service's code and text, HINT
 * with what to do, SQLSTATE by status.
 */
extern void kpg_report(int elevel, const KcError *err);

/* Raises when status is not KC_OK. */
extern void kpg_check(KcStatus status, const KcError *err);

/*
 * The same texts for a row of an operation table; palloc'd in the current
 * context, NULL when there is nothing to say.
 */
extern char *kpg_report_message(const KcError *err);
extern char *kpg_report_detail(const KcError *err);
extern char *kpg_report_hint(const KcError *err);
extern int	kpg_report_sqlstate(const KcError *err);

/* HINT for an error code of the ingestion service (a failed blob), or NULL. */
extern const char *kpg_report_ingestion_hint(const char *error_code);

/* HINT "Perhaps you meant ..." candidate for a misspelt word, or NULL. */
extern const char *kpg_report_closest(const char *word, const char *const *candidates, int ncandidates);

#endif							/* KPG_REPORT_H */
