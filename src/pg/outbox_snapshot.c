/*
 * outbox_snapshot.c
 *	  Which transactions one snapshot sees and an older one does not.
 *
 * Those that were in progress in the older one and have ended since, each by
 * itself, and all from the older one's xmax on but for those that are in progress
 * in the newer one.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "outbox_scan.h"

/* A pg_snapshot: "xmin:xmax:xip,xip"; top-level transactions, ascending. */
typedef struct SnapshotParts
{
	uint64		xmax;
	uint64	   *xip;
	int			nxip;
} SnapshotParts;

char *
kpg_outbox_snapshot_text(void)
{
	/* It has no arguments, and takes the active snapshot. */
	Datum		snapshot = DirectFunctionCall1(pg_current_snapshot, (Datum) 0);

	return DatumGetCString(DirectFunctionCall1(pg_snapshot_out, snapshot));
}

static void
parse_snapshot(const char *text, SnapshotParts *parts)
{
	Datum		snapshot = DirectFunctionCall1(pg_snapshot_in, CStringGetDatum(text));
	char	   *at = DatumGetCString(DirectFunctionCall1(pg_snapshot_out, snapshot));
	size_t		n = 0;

	/* What is no snapshot has raised: two colons are there, and numbers. */
	at = strchr(at, ':') + 1;
	parts->xmax = strtoull(at, &at, 10);
	at++;
	for (const char *c = at; *c != '\0'; c++)
		n += *c == ',';
	parts->xip = palloc(sizeof(uint64) * (n + 1));
	parts->nxip = 0;
	while (*at != '\0')
	{
		parts->xip[parts->nxip++] = strtoull(at, &at, 10);
		if (*at == ',')
			at++;
	}
}

static bool
is_in_progress(const SnapshotParts *parts, uint64 txid)
{
	int			low = 0;
	int			high = parts->nxip;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (parts->xip[middle] < txid)
			low = middle + 1;
		else
			high = middle;
	}
	return low < parts->nxip && parts->xip[low] == txid;
}

static void
add_range(KpgTxidRange *ranges, int *n, uint64 from, uint64 to)
{
	if (from > to)
		return;
	if (*n > 0 && ranges[*n - 1].to + 1 == from)
		ranges[*n - 1].to = to;
	else
		ranges[(*n)++] = (KpgTxidRange) {.from = from, .to = to};
}

KpgTxidRange *
kpg_outbox_ranges(const char *last, const char *current, int *nranges)
{
	SnapshotParts old = {0};
	SnapshotParts new;
	KpgTxidRange *ranges;
	uint64		from;

	if (last != NULL)
		parse_snapshot(last, &old);
	parse_snapshot(current, &new);
	ranges = palloc(sizeof(KpgTxidRange) * (Size) (old.nxip + new.nxip + 1));
	*nranges = 0;
	for (int i = 0; i < old.nxip; i++)
	{
		if (old.xip[i] < new.xmax && !is_in_progress(&new, old.xip[i]))
			add_range(ranges, nranges, old.xip[i], old.xip[i]);
	}
	from = old.xmax;
	for (int i = 0; i < new.nxip; i++)
	{
		if (new.xip[i] < from)
			continue;
		add_range(ranges, nranges, from, new.xip[i] - 1);
		from = new.xip[i] + 1;
	}
	if (new.xmax > 0)
		add_range(ranges, nranges, from, new.xmax - 1);
	return ranges;
}

bool
kpg_outbox_in_ranges(const KpgTxidRange *ranges, int nranges, uint64 txid)
{
	int			low = 0;
	int			high = nranges;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (ranges[middle].to < txid)
			low = middle + 1;
		else
			high = middle;
	}
	return low < nranges && ranges[low].from <= txid;
}
