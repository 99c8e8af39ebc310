/*
 * report.h
 *	  The one place where an error of the core becomes an ereport.
 */
#ifndef KPG_REPORT_H
#define KPG_REPORT_H

#include "postgres.h"

#include "../core/base.h"

/*
 * The data was accepted here and did not land in Kusto, or we do not know.
 * Class KU is of this extension: SQL leaves classes I to Z to implementations.
 */
#define KPG_ERRCODE_INGESTION_FAILED	MAKE_SQLSTATE('K', 'U', '0', '0', '1')
#define KPG_ERRCODE_INGESTION_PARTIAL	MAKE_SQLSTATE('K', 'U', '0', '0', '2')
#define KPG_ERRCODE_INGESTION_UNKNOWN	MAKE_SQLSTATE('K', 'U', '0', '0', '3')
#define KPG_ERRCODE_INGESTION_CANCELLED MAKE_SQLSTATE('K', 'U', '0', '0', '4')
#define KPG_ERRCODE_WAIT_TIMEOUT		MAKE_SQLSTATE('K', 'U', '0', '0', '5')

/*
 * Raise (elevel ERROR does not return) or log a core error: primary message
 * "<doing> failed: <what>", DETAIL with the service's code and text, HINT
 * with what to do, SQLSTATE by status.
 */
extern void kpg_report(int elevel, const KcError *err);

/* Raise it, with this hint unless it has a better one. */
extern void kpg_report_hinted(const KcError *err, const char *hint);

/* What to do about it. */
#define KPG_DOUBT_HINT "Look whether the data are in the Kusto table before you export them again."

/*
 * Raise, as KPG_ERRCODE_INGESTION_UNKNOWN, the failure of a request that may
 * have brought its data into Kusto all the same.
 */
extern void kpg_report_doubtful(const KcError *err);

/* Raises when status is not KC_OK. */
extern void kpg_check(KcStatus status, const KcError *err);

/*
 * The database and the principal ("aadapp=<client id>;<tenant>") that hints of
 * kpg_report() and kpg_report_hint() speak of from now on; NULL: not known.
 * Copied.
 */
extern void kpg_report_target(const char *database, const char *principal);

/*
 * The same texts one by one; palloc'd in the current context, NULL when there
 * is nothing to say.  Message and detail are UTF-8, see kpg_report_text().
 */
extern char *kpg_report_message(const KcError *err);
extern char *kpg_report_detail(const KcError *err);
extern char *kpg_report_hint(const KcError *err);
extern char *kpg_report_hint_for(const KcError *err, const char *database, const char *principal);
extern int	kpg_report_sqlstate(const KcError *err);

/*
 * Text of the core or the service, which is UTF-8, in the server's encoding.
 * Never raises for a character that the server's encoding lacks: it becomes
 * '?'; so does each that is not ASCII when no transaction is open.  For
 * messages, not for data.
 */
extern char *kpg_report_text(const char *utf8);

/* HINT for an error code of the ingestion service (a failed blob), or NULL. */
extern const char *kpg_report_ingestion_hint(const char *error_code);

/* HINT "Perhaps you meant ..." candidate for a misspelt word, or NULL. */
extern const char *kpg_report_closest(const char *word, const char *const *candidates, int ncandidates);

#endif							/* KPG_REPORT_H */
