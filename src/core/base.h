/*
 * base.h
 *	  What every file of the core uses: status codes, the three-part error,
 *	  slices, checked arithmetic and the allocator.
 *
 * The core never blocks, logs, exits, or calls back into PostgreSQL.  Every
 * function that can fail returns a KcStatus and, when it is not KC_OK, has
 * filled the caller's KcError.
 */
#ifndef KC_BASE_H
#define KC_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define KC_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define KC_PRINTF(fmt, args)
#endif

typedef enum KcStatus
{
	KC_OK = 0,
	KC_ERR_NOMEM,				/* an allocation failed */
	KC_ERR_INVALID,				/* an argument or option makes no sense */
	KC_ERR_LIMIT,				/* one of our own limits is exceeded */
	KC_ERR_NETWORK,				/* no answer: resolve, connect, TLS, reset */
	KC_ERR_TIMEOUT,				/* no answer in time */
	KC_ERR_AUTH,				/* 401, or the token endpoint refuses */
	KC_ERR_FORBIDDEN,			/* 403 */
	KC_ERR_NOT_FOUND,			/* 404: host role, database, table, blob */
	KC_ERR_THROTTLED,			/* 429, capacity */
	KC_ERR_SERVICE,				/* 5xx, or a failure that the service calls transient */
	KC_ERR_REFUSED,				/* the service says no, and will say no again */
	KC_ERR_PROTOCOL,			/* an answer that we do not understand */
	KC_ERR_CANCELLED,			/* the caller freed or stopped it */
	KC_ERR_INTERNAL				/* a library failed in a way that it never should */
} KcStatus;

/*
 * Accidents for tests.  Whoever sets the hook decides what happens at a point;
 * when it returns true, the core fails there by itself.
 */
#ifdef KUSTO_FAULTS
extern bool (*kc_fault_hook) (const char *point);
#define KC_FAULT(point) (kc_fault_hook != NULL && kc_fault_hook(point))
#else
#define KC_FAULT(point) false
#endif

/*
 * Bytes that somebody else owns; not NUL-terminated.
 */
typedef struct KcSlice
{
	const char *data;
	size_t		len;
} KcSlice;

#define KC_SLICE_NULL ((KcSlice) {NULL, 0})
extern KcSlice kc_slice(const char *cstr);	/* NULL gives an empty slice */
extern KcSlice kc_slice_n(const char *data, size_t len);
extern bool kc_slice_eq(KcSlice a, KcSlice b);
extern bool kc_slice_ieq(KcSlice a, KcSlice b); /* ASCII case-insensitive */
extern bool kc_slice_starts(KcSlice s, KcSlice prefix);
extern bool kc_slice_ends_i(KcSlice s, KcSlice suffix); /* ASCII case-insensitive */

/*
 * An error has fixed storage, so that running out of memory can be reported
 * and an error can be copied by assignment.  All text in it is valid UTF-8,
 * bounded, free of control characters other than newline and tab in detail,
 * and redacted: whoever makes an error cannot put a secret into it.
 */
/*
 * What probably helps; whoever shows the error turns it into words.
 */
typedef enum KcAdvice
{
	KC_ADVICE_NONE = 0,
	KC_ADVICE_ENGINE_ASKED_AS_INGEST,	/* the ingestion URI names an engine, or
										 * an emulator without ingestion */
	KC_ADVICE_INGEST_ASKED_AS_ENGINE,	/* the query URI names an ingestion host */
	KC_ADVICE_NOT_KUSTO,		/* whoever answered is not Kusto */
	KC_ADVICE_GRANT_INGESTOR,	/* the principal needs Database/Table Ingestor */
	KC_ADVICE_GRANT_DATABASE_USER,
	KC_ADVICE_GRANT_DATABASE_ADMIN,
	KC_ADVICE_CHECK_SECRET,		/* client id, tenant, secret or token is wrong */
	KC_ADVICE_CHECK_AUTHORITY,	/* the login endpoint is not one we may use */
	KC_ADVICE_CHECK_IDENTITY,	/* no managed identity answers here */
	KC_ADVICE_UNTRUSTED_HOST,	/* a superuser must list the host */
	KC_ADVICE_THROTTLED,
	KC_ADVICE_PRIVATE_ENDPOINT, /* name resolution or firewall of a storage host */
	KC_ADVICE_TABLE_MISSING,
	KC_ADVICE_DATABASE_MISSING,
	KC_ADVICE_MAPPING_MISSING,
	KC_ADVICE_CLOCK,			/* our clock and the service's differ */
	KC_ADVICE_CA_FILE,			/* the server's certificate is not trusted */
	KC_ADVICE_PROXY,
	KC_ADVICE_MESSAGE_TOO_LARGE,	/* fewer tags, shorter names */
	KC_ADVICE_STREAMING_OFF		/* not enabled for the table, its database or the
								 * cluster */
} KcAdvice;

#define KC_ERROR_WHAT_MAX	512
#define KC_ERROR_LIB_MAX	256
#define KC_ERROR_CODE_MAX	128
#define KC_ERROR_DETAIL_MAX 2048
#define KC_ERROR_ID_MAX		128

typedef struct KcError
{
	KcStatus	status;
	const char *doing;			/* static: what we did, "posting an ingestion message" */
	char		what[KC_ERROR_WHAT_MAX];	/* what went wrong */
	char		lib[KC_ERROR_LIB_MAX];	/* the library's own text, may be empty */
	/* What the service said; empty or zero when no answer came. */
	int			http_status;
	char		code[KC_ERROR_CODE_MAX];	/* Kusto's or Storage's error code */
	char		detail[KC_ERROR_DETAIL_MAX];	/* its message */
	char		activity_id[KC_ERROR_ID_MAX];	/* x-ms-activity-id or x-ms-request-id */
	char		host[256];		/* host that was asked, without path or query */
	bool		permanent;		/* the service said, or the status implies, that
								 * the same request will fail again */
	bool		after_send;		/* the request was sent whole, so it may have had
								 * its effect */
	int64_t		retry_after_ms; /* from Retry-After; -1 when absent */
	KcAdvice	advice;			/* KC_ADVICE_NONE: nothing known */
} KcError;

extern void kc_error_clear(KcError *err);

/*
 * Fill *err (everything but the service's part, which is cleared) and return
 * status.  The formatted text is redacted.  err may be NULL.
 */
extern KcStatus kc_error_set(KcError *err, KcStatus status, const char *doing,
							 const char *fmt,...) KC_PRINTF(4, 5);
extern KcStatus kc_error_nomem(KcError *err, const char *doing);

/*
 * Set one redacted, UTF-8-cleaned, truncated text field of an error.  A wrong
 * byte becomes '?', control characters are dropped, newline and tab become a
 * blank unless the field is as large as detail.
 */
extern void kc_error_text(char *field, size_t field_size, KcSlice text);

/*
 * Make sure that a value which is known to be secret does not stand in *err,
 * whatever form it has.  For secrets no pattern can recognise.
 */
extern void kc_error_scrub(KcError *err, KcSlice secret);

/*
 * Allocator.  realloc(NULL) allocates, a zero size is never asked for, NULL
 * means out of memory.  The callbacks never throw.  An object remembers the
 * KcAlloc it was made with; the KcAlloc outlives it.
 */
typedef struct KcAlloc
{
	void	   *(*realloc_fn) (void *arg, void *ptr, size_t size);
	void		(*free_fn) (void *arg, void *ptr);
	void	   *arg;
} KcAlloc;

extern const KcAlloc kc_alloc_malloc;	/* the C library's */

extern void *kc_alloc(const KcAlloc *alloc, size_t size);	/* not zeroed */
extern void *kc_alloc0(const KcAlloc *alloc, size_t size);	/* zeroed */
extern void *kc_realloc(const KcAlloc *alloc, void *ptr, size_t size);
extern void kc_free(const KcAlloc *alloc, void *ptr);	/* NULL is fine */
extern char *kc_strdup(const KcAlloc *alloc, KcSlice s);	/* NUL-terminated */
/* Overwrite, so that the compiler cannot leave it out. */
extern void kc_wipe(void *ptr, size_t len);
/* As kc_free, but overwrites the bytes first; for secrets. NULL is fine. */
extern void kc_free_secret(const KcAlloc *alloc, char *cstr);

/* Checked arithmetic: false when the result does not fit. */
static inline bool
kc_add_size(size_t a, size_t b, size_t *sum)
{
	return !__builtin_add_overflow(a, b, sum);
}

static inline bool
kc_mul_size(size_t a, size_t b, size_t *product)
{
	return !__builtin_mul_overflow(a, b, product);
}

#endif							/* KC_BASE_H */
