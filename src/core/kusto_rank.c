/*
 * kusto_rank.c
 *	  The sliding window of kusto_rank.h.
 */
#include "kusto_rank.h"

static int
slot_of(int64_t bucket)
{
	return (int) (bucket % KC_RANK_BUCKETS);
}

void
kc_rank_report(KcRank *rank, int64_t now_ms, bool success)
{
	int64_t		bucket = now_ms / KC_RANK_BUCKET_MS;

	if (bucket > rank->newest)
	{
		/* Whatever the skipped slots held is older than the window. */
		int64_t		first = rank->newest + 1;

		if (bucket - first >= KC_RANK_BUCKETS)
			first = bucket - KC_RANK_BUCKETS + 1;
		for (int64_t b = first; b <= bucket; b++)
			rank->total[slot_of(b)] = rank->good[slot_of(b)] = 0;
		rank->newest = bucket;
	}
	rank->total[slot_of(rank->newest)]++;
	if (success)
		rank->good[slot_of(rank->newest)]++;
}

double
kc_rank_value(const KcRank *rank, int64_t now_ms)
{
	int64_t		bucket = now_ms / KC_RANK_BUCKET_MS;
	double		sum = 0;
	double		weights = 0;

	for (int age = 0; age < KC_RANK_BUCKETS; age++)
	{
		int64_t		b = bucket - age;
		int			weight = KC_RANK_BUCKETS - age;
		uint32_t	total;

		if (b < 0 || b > rank->newest || b <= rank->newest - KC_RANK_BUCKETS)
			continue;
		total = rank->total[slot_of(b)];
		if (total == 0)
			continue;
		sum += (double) rank->good[slot_of(b)] / total * weight;
		weights += weight;
	}
	return weights == 0 ? 1.0 : sum / weights;
}

int
kc_rank_tier(double value)
{
	if (value >= 0.9)
		return 0;
	if (value >= 0.7)
		return 1;
	if (value >= 0.3)
		return 2;
	return 3;
}
