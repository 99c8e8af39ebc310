/*
 * kusto_rank.h
 *	  How well a storage account has served us in the last minute.
 *
 * Six buckets of ten seconds, newer ones weigh more, empty ones do not count.
 * An account without recent results is as good as new, so that a bad one is
 * tried again after a minute.
 */
#ifndef KC_KUSTO_RANK_H
#define KC_KUSTO_RANK_H

#include "base.h"

#define KC_RANK_BUCKETS		6
#define KC_RANK_BUCKET_MS	10000

typedef struct KcRank			/* zeroed: as good as new */
{
	int64_t		newest;			/* number of the newest bucket */
	uint32_t	total[KC_RANK_BUCKETS];
	uint32_t	good[KC_RANK_BUCKETS];
} KcRank;

extern void kc_rank_report(KcRank *rank, int64_t now_ms, bool success);
extern double kc_rank_value(const KcRank *rank, int64_t now_ms);	/* 0 .. 1 */
extern int	kc_rank_tier(double value); /* 0 is best */

#endif							/* KC_KUSTO_RANK_H */
