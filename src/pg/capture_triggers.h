/*
 * capture_triggers.h
 *	  The triggers of captures on a relation: finding, dropping, making them.
 *
 * What is made or dropped, is as the current user, with the privileges that
 * CREATE TRIGGER and DROP TRIGGER ask for.  Every function may raise.
 */
#ifndef KPG_CAPTURE_TRIGGERS_H
#define KPG_CAPTURE_TRIGGERS_H

#include "postgres.h"

#include "nodes/pg_list.h"

#include "outbox.h"

/* Events, as bits. */
#define KPG_CAPTURE_INSERT		(1 << 0)
#define KPG_CAPTURE_UPDATE		(1 << 1)
#define KPG_CAPTURE_DELETE		(1 << 2)
#define KPG_CAPTURE_TRUNCATE	(1 << 3)

typedef struct KpgCaptureTrigger
{
	char	   *name;
	int			nargs;
	char	  **args;
} KpgCaptureTrigger;

/*
 * The triggers of a relation that call function, of KpgCaptureTrigger, without
 * those that a partition has from its parent.
 */
extern List *kpg_capture_triggers_of(Oid relation, Oid function);

/* Does its target match?  NULL: any; a trigger without a server matches each. */
extern bool kpg_capture_trigger_is_for(const KpgCaptureTrigger *trigger, const char *database,
									   const char *table_name, const char *server);

extern void kpg_capture_drop_trigger(Oid relation, const KpgCaptureTrigger *trigger);

typedef struct KpgCaptureTriggerPlan
{
	Oid			relation;
	Oid			function;
	int			events;
	bool		by_row;
	bool		always;			/* also where session_replication_role is replica */
} KpgCaptureTriggerPlan;

extern void kpg_capture_create_triggers(const KpgCapture *capture, const KpgCaptureTriggerPlan *plan);

/*
 * Make those that are statement-level, and know of rows, row-level, and tell the
 * user so.  The rest of each trigger stays as it is.  An index has none.  Takes an AccessExclusiveLock
 * when there are any.
 */
extern void kpg_capture_triggers_by_row(Oid relation);

#endif							/* KPG_CAPTURE_TRIGGERS_H */
