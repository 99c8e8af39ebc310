/*
 * kusto_resources.h
 *	  A set of ingestion resources as one answer of the service gave it.
 */
#ifndef KC_KUSTO_RESOURCES_H
#define KC_KUSTO_RESOURCES_H

#include "kusto_internal.h"

typedef struct KcResourceSet
{
	KcResource *first[KC_RESOURCE_KINDS];	/* in the order of the answer */
	char	   *identity_token; /* secret */
} KcResourceSet;

/*
 * A SAS that ends sooner is not used: the one in the message must outlast the
 * upload, the service's batching, which may be set to half an hour, and its
 * own retries.  The service gives them for half a day and more.
 */
#define KC_RESOURCE_MIN_LIFE_US (INT64_C(60) * 60 * 1000000)

/* Adds to *set; what is in it already stays. */
extern KcStatus kc_resource_set_read(const KcAlloc *alloc, KcResult *result, bool allow_loopback,
									 int64_t now_us, KcResourceSet *set, KcError *err);
extern KcStatus kc_resource_set_read_token(const KcAlloc *alloc, KcResult *result,
										   KcResourceSet *set, KcError *err);
/*
 * As bytes, for other processes of this host; secret.  Reading adds to *set;
 * KC_ERR_PROTOCOL says that the bytes are none of such, KC_ERR_NOMEM what it says.
 */
extern void kc_resource_set_pack(const KcResourceSet *set, KcBuf *out);
extern KcStatus kc_resource_set_unpack(const KcAlloc *alloc, KcSlice bytes, KcResourceSet *set);
/* When the last of its signatures ends, in Unix time; 0: there is none. */
extern int64_t kc_resource_set_end(const KcResourceSet *set);

extern void kc_resource_set_free(const KcAlloc *alloc, KcResourceSet *set);

/* Is there a container and a queue that last, and a token? */
extern bool kc_resource_set_usable(const KcResourceSet *set, int64_t now_us);
extern bool kc_resource_lasts(const KcResource *resource, int64_t now_us);

/* First label of the host, or first segment of the path of a local service. */
extern KcSlice kc_resource_account(const KcUrl *url);

#endif							/* KC_KUSTO_RESOURCES_H */
