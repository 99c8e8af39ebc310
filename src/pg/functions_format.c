/*
 * functions_format.c
 *	  Functions with which tests and benchmarks reach the formatters: built with
 *	  -DKUSTO_FAULTS only, in no SQL script, declared by whoever uses them.
 */
#include "postgres.h"

#ifdef KUSTO_FAULTS

#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "alloc.h"
#include "compat.h"
#include "dest.h"
#include "exec.h"

PG_FUNCTION_INFO_V1(kusto_test_field);
PG_FUNCTION_INFO_V1(kusto_test_csv);
PG_FUNCTION_INFO_V1(kusto_test_discard);
PG_FUNCTION_INFO_V1(kusto_test_bits);
PG_FUNCTION_INFO_V1(kusto_test_float4);
PG_FUNCTION_INFO_V1(kusto_test_float8);
PG_FUNCTION_INFO_V1(kusto_test_text);

/* ---- one value ---- */

typedef struct FieldState
{
	KpgRowFormat *format;
	TupleTableSlot *slot;
	const KcAlloc *alloc;
	MemoryContext row_context;
} FieldState;

static FieldState *
make_field_state(FunctionCallInfo fcinfo)
{
	MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);
	FieldState *state = palloc0(sizeof(FieldState));
	TupleDesc	desc = CreateTemplateTupleDesc(1);

	TupleDescInitEntry(desc, 1, "x", get_fn_expr_argtype(fcinfo->flinfo, 0), -1, 0);
	state->format = kpg_format_create(desc, kpg_format_policy(text_to_cstring(PG_GETARG_TEXT_PP(1))));
	state->slot = MakeSingleTupleTableSlot(desc, &TTSOpsVirtual);
	state->alloc = kpg_alloc_create(CurrentMemoryContext);
	state->row_context = AllocSetContextCreate(CurrentMemoryContext, "kusto_test_field row", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(old);
	return state;
}

/*
 * kusto_test_field(value anyelement, on_type_error text) returns text: the row
 * of this one value, without its end.  The buffer is new each time, and so it
 * has to grow wherever it can.
 */
Datum
kusto_test_field(PG_FUNCTION_ARGS)
{
	FieldState *state = fcinfo->flinfo->fn_extra;
	MemoryContext old;
	KcBuf		out;
	KcCsvWriter writer;
	text	   *result;

	if (state == NULL)
		fcinfo->flinfo->fn_extra = state = make_field_state(fcinfo);
	ExecClearTuple(state->slot);
	state->slot->tts_isnull[0] = PG_ARGISNULL(0);
	state->slot->tts_values[0] = PG_ARGISNULL(0) ? (Datum) 0 : PG_GETARG_DATUM(0);
	ExecStoreVirtualTuple(state->slot);

	kc_buf_init(&out, state->alloc, KC_BUF_UNLIMITED);
	kc_csv_begin(&writer, &out);
	old = MemoryContextSwitchTo(state->row_context);
	kpg_format_row(state->format, state->slot, 1, &writer);
	MemoryContextSwitchTo(old);
	MemoryContextReset(state->row_context);
	result = cstring_to_text_with_len(out.data, (int) out.len - 1);
	kc_buf_free(&out);
	PG_RETURN_TEXT_P(result);
}

/* ---- a query's rows ---- */

/* A sink that forgets its chunks, or appends them to one text. */
typedef struct TestSink
{
	KpgSink		pub;			/* first */
	KcBuf		chunk;
	bool		keeps;
	StringInfoData kept;
	uint64		bytes;
} TestSink;

static KcBuf *
sink_get(KpgSink *self)
{
	KcBuf	   *chunk = &((TestSink *) self)->chunk;

	kc_buf_reset(chunk);
	return chunk;
}

static void
sink_put(KpgSink *self, KcBuf *chunk, uint64 rows)
{
	TestSink   *sink = (TestSink *) self;

	sink->bytes += chunk->len;
	if (sink->keeps)
		appendBinaryStringInfo(&sink->kept, chunk->data, (int) chunk->len);
}

static bool
sink_finish(KpgSink *self)
{
	return true;
}

static void
sink_wait(KpgSink *self)
{
	elog(ERROR, "this sink makes nobody wait");
}

static void
sink_counts(const KpgSink *self, KpgProgressCounts *counts)
{
	memset(counts, 0, sizeof(*counts));
}

static void
run(TestSink *sink, const char *query_text, bool keeps)
{
	static const pg_uuid_t nobody;
	KpgQuery   *query = kpg_exec_prepare(query_text);
	KpgProgress *progress = kpg_progress_begin(&nobody);
	DestReceiver *dest;

	*sink = (TestSink) {
		.pub = {sink_get, sink_put, sink_finish, sink_wait, sink_counts},
		.keeps = keeps
	};
	if (keeps)
		initStringInfo(&sink->kept);
	kc_buf_init(&sink->chunk, kpg_alloc_create(CurrentMemoryContext), KC_BUF_UNLIMITED);
	/* As large as the core's own. */
	(void) kc_buf_reserve(&sink->chunk, KPG_DEST_CHUNK_SIZE + KPG_DEST_CHUNK_SIZE / 8);
	dest = kpg_dest_create(kpg_format_create(kpg_exec_tupdesc(query), KPG_TYPE_ERROR_NULL), &sink->pub, progress);
	(void) kpg_exec_run(query, dest);
	kpg_dest_finish(dest);
	kpg_progress_end(progress);
}

/* kusto_test_csv(query text) returns text: all rows of the query. */
Datum
kusto_test_csv(PG_FUNCTION_ARGS)
{
	TestSink	sink;

	run(&sink, text_to_cstring(PG_GETARG_TEXT_PP(0)), true);
	PG_RETURN_TEXT_P(cstring_to_text_with_len(sink.kept.data, sink.kept.len));
}

/* kusto_test_discard(query text) returns bigint: bytes of CSV, which nobody gets. */
Datum
kusto_test_discard(PG_FUNCTION_ARGS)
{
	TestSink	sink;

	run(&sink, text_to_cstring(PG_GETARG_TEXT_PP(0)), false);
	PG_RETURN_INT64((int64) sink.bytes);
}

/* ---- values that look random, and are the same in each run ---- */

/* splitmix64 */
static uint64
next_bits(uint64 *state)
{
	uint64		z = *state += UINT64CONST(0x9E3779B97F4A7C15);

	z = (z ^ (z >> 30)) * UINT64CONST(0xBF58476D1CE4E5B9);
	z = (z ^ (z >> 27)) * UINT64CONST(0x94D049BB133111EB);
	return z ^ (z >> 31);
}

/* kusto_test_bits(seed bigint) returns bigint */
Datum
kusto_test_bits(PG_FUNCTION_ARGS)
{
	uint64		state = (uint64) PG_GETARG_INT64(0);

	PG_RETURN_INT64((int64) next_bits(&state));
}

/* kusto_test_float4(bits integer) returns real: the one that has these bits */
Datum
kusto_test_float4(PG_FUNCTION_ARGS)
{
	int32		bits = PG_GETARG_INT32(0);
	float4		x;

	memcpy(&x, &bits, sizeof(x));
	PG_RETURN_FLOAT4(x);
}

/* kusto_test_float8(bits bigint) returns double precision */
Datum
kusto_test_float8(PG_FUNCTION_ARGS)
{
	int64		bits = PG_GETARG_INT64(0);
	float8		x;

	memcpy(&x, &bits, sizeof(x));
	PG_RETURN_FLOAT8(x);
}

/*
 * kusto_test_text(seed bigint, max integer) returns text: up to max octets, some with many
 * characters that CSV or JSON writes otherwise, some with none.
 */
Datum
kusto_test_text(PG_FUNCTION_ARGS)
{
	static const char *const special[] = {"\"", "\"\"", "\\", "\n", "\r", "\t", "\b", "\f", "\x01", "\x1f", "\x7f", ",",
	"\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", " ", "!", "#"};
	uint64		state = (uint64) PG_GETARG_INT64(0);
	int			max = PG_GETARG_INT32(1);
	int			length = (int) (next_bits(&state) % ((uint64) max + 1));
	uint64		rarity = next_bits(&state) % 64;
	StringInfoData out;

	initStringInfo(&out);
	while (out.len < length)
	{
		uint64		bits = next_bits(&state);

		if (bits % 64 > rarity)
			appendStringInfoString(&out, special[bits / 64 % lengthof(special)]);
		else
			appendStringInfoChar(&out, (char) ('a' + bits / 64 % 26));
	}
	out.len = pg_mbcliplen(out.data, out.len, max);
	PG_RETURN_TEXT_P(cstring_to_text_with_len(out.data, out.len));
}

#endif							/* KUSTO_FAULTS */
