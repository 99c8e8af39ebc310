/*
 * worker_trouble.c
 *	  What went wrong in the worker last: remembered where it happens, and
 *	  written to kusto.worker between other work.
 *
 * Rarely: the same text not again before a while has passed, and another not
 * more often than the log would bear.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "worker_internal.h"

#define PERIOD_MS		1000
#define SAME_PERIOD_MS	(5 * 60 * 1000)
#define FAILED_PAUSE_MS (60 * 1000)

typedef struct Trouble
{
	char		text[1024];		/* "": none */
	TimestampTz at;
} Trouble;

static Trouble last;			/* what happened */
static Trouble written;			/* what the table has of it, since we began */
static bool begun;				/* the table says so */
static bool writing;			/* its own failure is not worth telling */
static int64 next_ms;			/* nothing is written before */

void
kpg_worker_trouble(const char *text)
{
	int			len;

	if (writing)
		return;
	len = pg_mbcliplen(text, (int) strlen(text), (int) sizeof(last.text) - 1);
	memcpy(last.text, text, (size_t) len);
	last.text[len] = '\0';
	last.at = GetCurrentTimestamp();
}

static bool
is_news(void)
{
	if (last.text[0] == '\0' || last.at == written.at)
		return false;
	return strcmp(last.text, written.text) != 0 ||
		last.at - written.at >= SAME_PERIOD_MS * INT64CONST(1000);
}

static void
write_body(void *arg)
{
	if (!begun)
		kpg_operations_tell_worker(MyProcPid, MyStartTimestamp, NULL);
	if (is_news())
		kpg_operations_tell_worker(MyProcPid, last.at, last.text);
}

void
kpg_worker_trouble_write(int64 now_ms)
{
	KpgUnitResult result;

	if (now_ms < next_ms || (begun && !is_news()))
		return;
	writing = true;
	result = kpg_worker_unit("recording the state of the worker", write_body, NULL, NULL);
	next_ms = now_ms + (result == KPG_UNIT_FAILED ? FAILED_PAUSE_MS : PERIOD_MS);
	if (result == KPG_UNIT_DONE)
	{
		begun = true;
		written = last;
	}
	writing = false;
}
