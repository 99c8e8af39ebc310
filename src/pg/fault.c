/*
 * fault.c
 *	  Faults on demand, for tests: built with -DKUSTO_FAULTS only.
 *
 * A point that must not raise does not take the action error, and the
 * parameter refuses it; so does it any name that is not in the list, lest a
 * misspelt one make a test pass.
 */
#include "postgres.h"

#include "fault.h"

#ifdef KUSTO_FAULTS

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file_perm.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "utils/guc.h"

#include "../core/base.h"
#include "wait.h"

#define MARKER_DIR	"kusto_ingest_faults"

typedef enum Action
{
	FAULT_ERROR,
	FAULT_KILL,
	FAULT_EXIT,
	FAULT_SLEEP
} Action;

static const char *const action_names[] = {
	[FAULT_ERROR] = "error",
	[FAULT_KILL] = "kill",
	[FAULT_EXIT] = "exit",
	[FAULT_SLEEP] = "sleep"
};

#define BIT(action)		(1u << FAULT_##action)
#define CRASH			(BIT(KILL) | BIT(SLEEP))
#define USUAL			(CRASH | BIT(ERROR))
/* Where the quiet end of the one process, with all others alive, is another matter. */
#define ANY				(USUAL | BIT(EXIT))

typedef struct Point
{
	const char *name;
	unsigned	actions;
} Point;

static const Point points[] = {
	/* A session, or a job, exports. */
	{"blobs-uploaded", USUAL},			/* all blobs are in storage, no row tells of them */
	{"scan-launched", USUAL},			/* parallel workers are registered to read a table as well */
	{"scan-uploaded", ANY},				/* in a parallel worker: its blobs are in storage, its leader has not heard */
	{"scan-collected", USUAL},			/* the leader knows of all blobs, the workers have ended */
	{"rows-staged", ANY},				/* the rows are written */
	{"ingested-at-once", ANY},			/* streaming or direct: it is in Kusto, no row tells of it */
	{"before-commit", USUAL},			/* is about to make sure that a worker runs */
	{"worker-ensured", USUAL},			/* a worker runs, the commit is to come */
	{"committed", CRASH},				/* the commit is flushed, the worker not yet woken */

	/* The worker begins. */
	{"worker-start", ANY},				/* connected, it has no lock yet */
	{"worker-at-work", ANY},			/* it has its locks and has not looked yet */

	/* It posts. */
	{"claim-written", USUAL},			/* the attempt is written, not committed */
	{"claimed", ANY},					/* the attempt is on record, the network untouched */
	{"command-done", USUAL},			/* the table is created, only memory will know */
	{"status-row-written", USUAL},		/* in the core: the "Pending" row is in the table, no message yet */
	{"message-sent", ANY},				/* in the core: the message is in the queue; error: its answer is lost */
	{"post-known", USUAL},				/* the post has succeeded, no row tells of it */
	{"post-written", USUAL},			/* that is written, not committed */
	{"post-recorded", USUAL},			/* it is on record, memory does not know */

	/* It asks. */
	{"outcome-known", USUAL},			/* Kusto's last word is here, no row tells of it */
	{"outcome-written", USUAL},			/* that is written, not committed */
	{"outcome-recorded", USUAL},		/* it is on record, memory does not know */
	{"giving-up", USUAL},				/* the end without Kusto's word is written, not committed */

	/* The launcher. */
	{"launcher-start", USUAL},			/* it can be asked, and has started no worker yet */
	{"worker-registered", USUAL},		/* the postmaster will start a worker, memory does not know */

	/* A job's process. */
	{"job-registered", ANY},				/* in the worker: the postmaster will start it */
	{"job-start", ANY},					/* connected, it has no lock yet */
	{"job-claimed", ANY},				/* "running" is on record, the query has not begun */
	{"snapshot-marked", USUAL},			/* a table's rows are staged and the mark is written, not committed */
	{"job-failed", USUAL},				/* the query is rolled back, no row tells of it */
	{"job-committed", ANY},				/* all is staged, the process is about to end */
	{"job-given-back", USUAL},			/* the worker has written what follows from a lost process, not committed */

	/* The worker sends row changes. */
	{"drain-read", USUAL},				/* a batch is read, in memory alone */
	{"drain-table-created", USUAL},		/* its table is created, only memory will know */
	{"drain-streamed", ANY},			/* Kusto has the batch, no mark tells of it */
	{"drain-uploaded", ANY},			/* its blobs are in storage, no row tells of them */
	{"drain-marked", USUAL},			/* mark and operation are written, not committed */
	{"drain-recorded", ANY},			/* they are on record, memory does not know */

	/* The worker leaves. */
	{"worker-ending", ANY},				/* for want of work: its locks are gone, the guard is not */
	{"worker-leaving", USUAL},			/* another session wants the database: it has drained */
	{"successor-due", USUAL},			/* its locks are gone, no successor is registered */
	{"terminated", CRASH},				/* the same, on its way out by pg_terminate_backend() */

	/* Users steer. */
	{"cancel-written", USUAL},			/* the cancellation is written, not committed */
	{"cancel-committed", CRASH},		/* it is on record, the job's process not yet told */
	{"waiters-due", BIT(ERROR)},			/* in a commit: those who wait for an end are to be woken */
	{"retry-written", USUAL},			/* the blobs are staged again, not committed */
	{"purge-written", USUAL},			/* a batch is deleted, not committed */

	/* The outbox. */
	{"letter-staged", USUAL},			/* an operation has replaced a dead letter, not committed */
	{"ring-truncated", USUAL},			/* a table is truncated, its marks are in another, not committed */
};

static char *fault;

/* What kusto_ingest.fault says. */
typedef struct Setting
{
	const Point *point;
	Action		action;
	int			count;
} Setting;

static const Point *
find_point(const char *name, size_t len)
{
	for (size_t i = 0; i < lengthof(points); i++)
	{
		if (strlen(points[i].name) == len && memcmp(points[i].name, name, len) == 0)
			return &points[i];
	}
	return NULL;
}

static bool
find_action(const char *name, size_t len, Action *action)
{
	for (size_t i = 0; i < lengthof(action_names); i++)
	{
		if (strlen(action_names[i]) == len && memcmp(action_names[i], name, len) == 0)
		{
			*action = (Action) i;
			return true;
		}
	}
	return false;
}

/* For the test that goes through all of them: "name:action,action name:..." */
static char *
list_points(void)
{
	StringInfoData list;

	initStringInfo(&list);
	for (size_t i = 0; i < lengthof(points); i++)
	{
		char		separator = ':';

		appendStringInfo(&list, "%s%s", i == 0 ? "" : " ", points[i].name);
		for (size_t a = 0; a < lengthof(action_names); a++)
		{
			if ((points[i].actions & (1u << a)) == 0)
				continue;
			appendStringInfo(&list, "%c%s", separator, action_names[a]);
			separator = ',';
		}
	}
	return list.data;
}

/* False with an error detail when it cannot be meant. */
static bool
parse(const char *text, Setting *setting)
{
	size_t		name_len = strcspn(text, ":");
	const char *action = text + name_len + (text[name_len] != '\0');
	size_t		action_len = strcspn(action, ":");
	const char *count = action + action_len;

	setting->point = find_point(text, name_len);
	if (setting->point == NULL)
	{
		GUC_check_errdetail("The points are: %s", list_points());
		return false;
	}
	if (!find_action(action, action_len, &setting->action) ||
		(setting->point->actions & (1u << setting->action)) == 0)
	{
		GUC_check_errdetail("The point \"%s\" does not have this action.", setting->point->name);
		return false;
	}
	setting->count = *count == '\0' ? 1 : atoi(count + 1);
	if (setting->count < 1)
	{
		GUC_check_errdetail("The count must be a positive number.");
		return false;
	}
	return true;
}

static bool
check_fault(char **newval, void **extra, GucSource source)
{
	Setting		setting;

	return **newval == '\0' || parse(*newval, &setting);
}

/* Tells a test which process knows it by now. */
static void
assign_fault(const char *newval, void *extra)
{
	if (IsUnderPostmaster)
		ereport(LOG, (errmsg_internal("kusto_ingest fault is \"%s\"", newval)));
}

/* False when others have made all count files. */
static bool
leave_marker(const Setting *setting)
{
	if (mkdir(MARKER_DIR, (mode_t) pg_dir_create_mode) != 0 && errno != EEXIST)
		elog(PANIC, "could not create directory \"%s\": %m", MARKER_DIR);
	for (int n = 1; n <= setting->count; n++)
	{
		char		path[MAXPGPATH];
		int			fd;

		snprintf(path, sizeof(path), "%s/%s.%d", MARKER_DIR, setting->point->name, n);
		fd = BasicOpenFile(path, O_CREAT | O_EXCL | O_WRONLY);
		if (fd >= 0)
		{
			close(fd);
			return true;
		}
		if (errno != EEXIST)
			elog(PANIC, "could not create file \"%s\": %m", path);
	}
	return false;
}

/* Is it this point's turn?  Then the accident is on record and in the log. */
static bool
strikes(const char *point, Setting *setting)
{
	size_t		len = strlen(point);

	if (find_point(point, len) == NULL)
		elog(PANIC, "fault.c does not list the point \"%s\"", point);
	if (fault == NULL || strncmp(fault, point, len) != 0 || fault[len] != ':' ||
		!parse(fault, setting) || !leave_marker(setting))
		return false;

	/* A cancel would get out of places that must not raise. */
	HOLD_INTERRUPTS();
	ereport(LOG, (errmsg_internal("kusto_ingest fault: %s", fault)));
	RESUME_INTERRUPTS();
	return true;
}

/* Nothing that one could wait for says that the leader has looked. */
#define SLOW_LEAVE_MS	200

static bool leaving;

static void
leave_slowly(dsm_segment *segment, Datum arg)
{
	if (leaving)
		kpg_wait_blindly(SLOW_LEAVE_MS);
}

void
kpg_fault_leave_slowly(dsm_segment *segment)
{
	on_dsm_detach(segment, leave_slowly, (Datum) 0);
}

static void
act(const Setting *setting, bool interruptible)
{
	switch (setting->action)
	{
		case FAULT_ERROR:
			break;
		case FAULT_KILL:
			kill(getpid(), SIGKILL);
			break;
		case FAULT_EXIT:
			leaving = true;
			proc_exit(1);
			break;
		case FAULT_SLEEP:
			kpg_wait_forever(interruptible);
			break;
	}
}

void
kpg_fault_point(const char *point)
{
	Setting		setting;

	if (!strikes(point, &setting))
		return;
	act(&setting, (setting.point->actions & BIT(ERROR)) != 0);
	ereport(ERROR,
			(errcode(KPG_ERRCODE_FAULT),
			 errmsg("fault at point \"%s\"", point)));
}

/* With the core on the stack nothing may raise: true makes it fail by itself. */
static bool
core_fault(const char *point)
{
	Setting		setting;

	if (!strikes(point, &setting))
		return false;
	act(&setting, false);
	return true;
}

void
kpg_fault_define(void)
{
	DefineCustomStringVariable("kusto_ingest.fault",
							   "Accident that happens at a point of the code, as point:action[:count].",
							   NULL, &fault, "",
							   PGC_SUSET, 0, check_fault, assign_fault, NULL);
	kc_fault_hook = core_fault;
}

#endif							/* KUSTO_FAULTS */
