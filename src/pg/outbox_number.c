/*
 * outbox_number.c
 *	  The next number of kusto.change_number.
 *
 * With the library in shared_preload_libraries a number costs one atomic
 * addition: a database has a slot in shared memory with numbers that are taken
 * from the sequence already, KPG_OUTBOX_RUN at a time, and whoever draws the last
 * takes further ones.  All processes draw from the same slot, so numbers come in
 * the order in which they are drawn; none keeps any in stock.  The sequence's
 * page says that all of them are used, and so does the WAL before the first is:
 * after a crash, on a promoted standby, in a copy of the database, and when the
 * server has been restarted, numbers go on behind them.
 *
 * A slot is known by the database and the sequence's file.  When that is another
 * one, because the extension was created anew for instance, or when the sequence
 * is not where the slot has left it, because of setval(), then the slot begins
 * anew with what the sequence has.  That is looked at when a process draws for the
 * first time, after changes of the catalogs, and now and then.
 *
 * Without shared memory every number is drawn from the sequence's page.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "outbox.h"
#include "outbox_internal.h"

#define SHMEM_NAME "kusto_ingest numbers"
#define LOCK_NAME "kusto_ingest_number"

/* Databases that draw at the same time; more take each other's slots, which wastes numbers. */
#define SLOTS			64

/*
 * In the words of a slot a number has its generation in front, which is another
 * one each time the slot begins anew: whoever has not heard of that notices.
 */
#define NUMBER_BITS		44
#define NUMBER_MASK		((UINT64CONST(1) << NUMBER_BITS) - 1)

StaticAssertDecl((uint64) KPG_OUTBOX_NUMBER_MAX <= NUMBER_MASK / 2, "numbers run into their generation");

typedef union NumberSlot
{
	struct
	{
		pg_atomic_uint64 next;	/* the one that is drawn next; perhaps beyond end */
		pg_atomic_uint64 end;	/* behind the last that is taken from the sequence */
		/* whose they are, guarded by the lock */
		Oid			database;	/* InvalidOid: unused */
		Oid			sequence;
		Oid			file;
	};
	char		pad[PG_CACHE_LINE_SIZE];	/* one is in use by all, all the time */
} NumberSlot;

typedef struct NumberTable
{
	NumberSlot	slots[SLOTS];
	int			victim;			/* the slot to be given away when there are too few */
} NumberTable;

static NumberTable *table;		/* NULL: the library was not preloaded */
static LWLock *lock;			/* taken after the lock of a sequence's page */
static kpg_compat_shmem_request_hook previous_request;
static shmem_startup_hook_type previous_startup;

/* What this process draws from. */
static struct
{
	NumberSlot *slot;			/* NULL: not known */
	uint64		generation;		/* in front of a number of zero */
	uint64		catalogs;		/* as of this change of them */
	TimestampTz at;				/* start of the transaction that has looked */
}			known;

/* How long setval() may remain unnoticed. */
#define LOOK_INTERVAL_MS	1000

/* ---- drawing ---- */

static bool
must_look(void)
{
	TimestampTz now = GetCurrentTransactionStartTimestamp();

	return known.slot == NULL || known.catalogs != kpg_outbox_catalog_changes() ||
		now < known.at || now - known.at > LOOK_INTERVAL_MS * INT64CONST(1000);
}

/* False: nothing is left, or the slot has begun anew; a number may be lost. */
static bool
draw(int64 *number)
{
	uint64		drawn = pg_atomic_fetch_add_u64(&known.slot->next, 1);
	uint64		end = pg_atomic_read_u64(&known.slot->end);

	*number = (int64) (drawn & NUMBER_MASK);
	return (drawn & ~NUMBER_MASK) == known.generation && (end & ~NUMBER_MASK) == known.generation && drawn < end;
}

/* ---- slots; the lock is held ---- */

static bool
is_slot_of(const NumberSlot *slot, const KpgSequence *sequence)
{
	return slot->database == MyDatabaseId && slot->sequence == RelationGetRelid(sequence->relation) &&
		slot->file == sequence->relation->rd_rel->relfilenode;
}

/* The database's, whichever sequence it had; or an unused one, or another database's. */
static NumberSlot *
find_slot(void)
{
	NumberSlot *unused = NULL;

	for (int i = 0; i < SLOTS; i++)
	{
		NumberSlot *slot = &table->slots[i];

		if (slot->database == MyDatabaseId)
			return slot;
		if (!OidIsValid(slot->database) && unused == NULL)
			unused = slot;
	}
	if (unused != NULL)
		return unused;
	table->victim = (table->victim + 1) % SLOTS;
	return &table->slots[table->victim];
}

static void
begin_anew(NumberSlot *slot, KpgSequence *sequence, int64 from)
{
	uint64		generation = (pg_atomic_read_u64(&slot->end) & ~NUMBER_MASK) + NUMBER_MASK + 1;

	kpg_outbox_sequence_take(sequence, from + KPG_OUTBOX_RUN - 1);
	slot->database = MyDatabaseId;
	slot->sequence = RelationGetRelid(sequence->relation);
	slot->file = sequence->relation->rd_rel->relfilenode;
	pg_atomic_write_u64(&slot->end, generation | (uint64) (from + KPG_OUTBOX_RUN));
	pg_atomic_write_u64(&slot->next, generation | (uint64) from);
}

static void
take_further(NumberSlot *slot, KpgSequence *sequence)
{
	uint64		next = pg_atomic_read_u64(&slot->next);

	kpg_outbox_sequence_take(sequence, (int64) (next & NUMBER_MASK) + KPG_OUTBOX_RUN - 1);
	/* Now that it is logged, but not before that, may they be drawn. */
	pg_atomic_write_u64(&slot->end, next + KPG_OUTBOX_RUN);
}

static void
look_at(NumberSlot *slot, KpgSequence *sequence)
{
	int64		from = kpg_outbox_sequence_next(sequence);
	int64		end = (int64) (pg_atomic_read_u64(&slot->end) & NUMBER_MASK);

	if (!is_slot_of(slot, sequence))
		begin_anew(slot, sequence, from);
	else if (from != end)
		begin_anew(slot, sequence, Max(from, end));
	else if (pg_atomic_read_u64(&slot->next) >= pg_atomic_read_u64(&slot->end))
		take_further(slot, sequence);
	known.slot = slot;
	known.generation = pg_atomic_read_u64(&slot->end) & ~NUMBER_MASK;
}

static void
look(void)
{
	KpgSequence sequence;

	known.slot = NULL;
	known.catalogs = kpg_outbox_catalog_changes();
	known.at = GetCurrentTransactionStartTimestamp();
	kpg_outbox_sequence_open(&sequence);
	LWLockAcquire(lock, LW_EXCLUSIVE);
	look_at(find_slot(), &sequence);
	LWLockRelease(lock);
	kpg_outbox_sequence_close(&sequence);
}

/* ---- the call ---- */

static int64
draw_from_page(void)
{
	KpgSequence sequence;
	int64		number;

	kpg_outbox_sequence_open(&sequence);
	number = kpg_outbox_sequence_draw(&sequence);
	kpg_outbox_sequence_close(&sequence);
	return number;
}

int64
kpg_outbox_number(void)
{
	int64		number;

	PreventCommandIfReadOnly("kusto_capture_changes()");
	PreventCommandIfParallelMode("kusto_capture_changes()");
	if (table == NULL)
		return draw_from_page();
	if (must_look())
		look();
	while (!draw(&number))
		look();
	return number;
}

/* ---- memory ---- */

static void
request_memory(void)
{
	if (previous_request != NULL)
		previous_request();
	RequestAddinShmemSpace(MAXALIGN(sizeof(NumberTable)));
	RequestNamedLWLockTranche(LOCK_NAME, 1);
}

static void
attach(void)
{
	bool		found;

	if (previous_startup != NULL)
		previous_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	table = ShmemInitStruct(SHMEM_NAME, sizeof(NumberTable), &found);
	lock = &GetNamedLWLockTranche(LOCK_NAME)->lock;
	if (!found)
	{
		memset(table, 0, sizeof(NumberTable));
		for (int i = 0; i < SLOTS; i++)
		{
			pg_atomic_init_u64(&table->slots[i].next, 0);
			pg_atomic_init_u64(&table->slots[i].end, 0);
		}
	}
	LWLockRelease(AddinShmemInitLock);
}

void
kpg_outbox_share(void)
{
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	kpg_compat_hook_shmem_request(&previous_request, request_memory);
	previous_startup = shmem_startup_hook;
	shmem_startup_hook = attach;
}
