/*
 * text.h
 *	  Text forms: URLs, percent-encoding, base64, hex, UUIDs, RFC 3339 times.
 */
#ifndef KC_TEXT_H
#define KC_TEXT_H

#include "buf.h"

/*
 * The parts of an absolute http or https URL, as slices of the original text.
 * Nothing is decoded: a SAS query must stay byte for byte what it was.
 */
typedef struct KcUrl
{
	KcSlice		scheme;
	KcSlice		host;			/* without brackets for IPv6 */
	bool		host_is_ipv6;
	int			port;			/* explicit, or the scheme's default */
	bool		port_explicit;
	KcSlice		origin;			/* scheme://host[:port] as written */
	KcSlice		path;			/* from '/', may be empty; no query */
	KcSlice		query;			/* without '?', may be empty */
} KcUrl;

/* Refuses userinfo, fragments, control characters, blanks, non-ASCII. */
extern KcStatus kc_url_parse(KcSlice text, KcUrl *url, KcError *err);
extern bool kc_url_is_https(const KcUrl *url);
extern bool kc_host_is_loopback(KcSlice host);	/* localhost, 127/8, ::1 */
extern bool kc_host_is_ip(KcSlice host);

/* Value of a query parameter, still percent-encoded. */
extern bool kc_url_query_get(const KcUrl *url, const char *name, KcSlice *value);

/* RFC 3986 unreserved characters stay, all else becomes %XX. */
extern void kc_text_percent_encode(KcBuf *out, KcSlice text);
/* False, and *out as it was, when text is not of this form. */
extern bool kc_text_percent_decode(KcBuf *out, KcSlice text);

extern void kc_text_base64(KcBuf *out, const void *data, size_t len);	/* RFC 4648 section 4, padded */
/* As strict as section 3 asks; false, and *out as it was, for any other text. */
extern bool kc_text_base64_decode(KcBuf *out, KcSlice text);
extern void kc_text_hex(KcBuf *out, const void *data, size_t len);	/* lower case */

typedef struct KcUuid
{
	uint8_t		bytes[16];
} KcUuid;

#define KC_UUID_TEXT_LEN 36
extern void kc_uuid_text(const KcUuid *uuid, char out[KC_UUID_TEXT_LEN + 1]);
extern bool kc_uuid_parse(KcSlice text, KcUuid *uuid);
extern KcStatus kc_uuid_random(KcUuid *uuid, KcError *err); /* RFC 9562 version 4 */
/* RFC 9562 version 5: SHA-1 of name space and name. */
extern KcStatus kc_uuid_v5(const KcUuid *space, KcSlice name, KcUuid *uuid, KcError *err);

/* RFC 3339 in UTC: "2026-09-01T10:11:12.345678Z" from microseconds since 1970. */
extern void kc_text_rfc3339(KcBuf *out, int64_t unix_us);
/*
 * The fraction, the seconds, or the whole time may be missing, as in the expiry
 * of a SAS; offset Z or +hh:mm or none (UTC).
 */
extern bool kc_text_rfc3339_parse(KcSlice text, int64_t *unix_us);

/* Kusto names and string literals, quoted so that nothing in them can be code. */
extern void kc_text_kql_name(KcBuf *out, KcSlice name); /* ['...'] */
extern void kc_text_kql_string(KcBuf *out, KcSlice text);	/* "..." */

/* Is it valid UTF-8 without NUL?  *good gets the length of the valid prefix. */
extern bool kc_text_utf8_valid(KcSlice text, size_t *good);

#endif							/* KC_TEXT_H */
