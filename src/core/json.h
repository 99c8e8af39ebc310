/*
 * json.h
 *	  JSON writer, and a parser driven by field tables (RFC 8259).
 *
 * The parser is a pull tokenizer over a complete document in memory: it
 * allocates nothing but what a field table copies out, and refuses documents
 * that are too deep, too large, hold a duplicate of a wanted field, invalid
 * UTF-8, or anything behind the value.
 */
#ifndef KC_JSON_H
#define KC_JSON_H

#include "buf.h"

#define KC_JSON_MAX_DEPTH 64

/* ---- writing ---- */

/* Quoted and escaped; invalid UTF-8 becomes U+FFFD. */
extern void kc_json_string(KcBuf *out, KcSlice text);

/*
 * Writer that puts commas where they belong.  Errors stick in the buffer.
 */
typedef struct KcJsonWriter
{
	KcBuf	   *out;
	int			depth;
	bool		need_comma[KC_JSON_MAX_DEPTH];
} KcJsonWriter;

extern void kc_json_begin(KcJsonWriter *w, KcBuf *out);
extern void kc_json_object_open(KcJsonWriter *w);
extern void kc_json_object_close(KcJsonWriter *w);
extern void kc_json_array_open(KcJsonWriter *w);
extern void kc_json_array_close(KcJsonWriter *w);
extern void kc_json_key(KcJsonWriter *w, const char *key);
extern void kc_json_key_slice(KcJsonWriter *w, KcSlice key);
extern void kc_json_value_string(KcJsonWriter *w, KcSlice text);
extern void kc_json_value_i64(KcJsonWriter *w, int64_t value);
extern void kc_json_value_bool(KcJsonWriter *w, bool value);
extern void kc_json_value_null(KcJsonWriter *w);
extern void kc_json_value_raw(KcJsonWriter *w, KcSlice json);	/* already JSON */

/* ---- reading ---- */

typedef enum KcJsonType
{
	KC_JSON_NULL,
	KC_JSON_BOOL,
	KC_JSON_NUMBER,
	KC_JSON_STRING,
	KC_JSON_ARRAY,
	KC_JSON_OBJECT
} KcJsonType;

/*
 * A value inside a document that kc_json_check() has accepted.  raw is its
 * text, quotes and brackets included; it lives as long as the document.
 */
typedef struct KcJsonValue
{
	KcJsonType	type;
	KcSlice		raw;
} KcJsonValue;

/*
 * Check the whole document once and give its top value.  max_depth is at most
 * KC_JSON_MAX_DEPTH.
 */
extern KcStatus kc_json_check(KcSlice doc, int max_depth, KcJsonValue *top,
							  const char *doing, KcError *err);

/* Walk the elements of an array or the members of an object. */
typedef struct KcJsonIter
{
	KcJsonValue container;
	size_t		pos;
} KcJsonIter;

extern void kc_json_iter(KcJsonIter *it, KcJsonValue container);
extern bool kc_json_next(KcJsonIter *it, KcJsonValue *value);	/* array */
/* key: raw string token, compare with kc_json_string_is(). */
extern bool kc_json_next_member(KcJsonIter *it, KcJsonValue *key, KcJsonValue *value);

extern bool kc_json_string_is(KcJsonValue string, const char *text);	/* escapes honoured */
extern bool kc_json_string_ieq(KcJsonValue string, const char *text);	/* ASCII case-insensitive */
/* Append the unescaped text; lone surrogates become U+FFFD. */
extern void kc_json_unescape(KcBuf *out, KcJsonValue string);
/* The member of an object with that name, case-sensitive first, else not. */
extern bool kc_json_member(KcJsonValue object, const char *name, KcJsonValue *value);
extern bool kc_json_i64(KcJsonValue number, int64_t *value);	/* integral, in range */
extern bool kc_json_bool(KcJsonValue value);

/*
 * Field table: what a document must or may have.  Ten lines for a document
 * type instead of a hundred.
 */
typedef enum KcJsonWant
{
	KC_WANT_STRING,				/* char **, allocated with alloc, NUL-terminated */
	KC_WANT_I64,				/* int64_t *; number, or string holding one */
	KC_WANT_BOOL,				/* bool * */
	KC_WANT_VALUE				/* KcJsonValue *, any type */
} KcJsonWant;

typedef struct KcJsonField
{
	const char *name;
	KcJsonWant	want;
	void	   *target;
	bool		required;		/* missing or null is an error */
	bool	   *found;			/* optional */
} KcJsonField;

/*
 * Read an object by table.  Names are compared without case.  Unknown members
 * are skipped; a wanted one that stands twice, or has the wrong type, is
 * KC_ERR_PROTOCOL.  null counts as absent.  On error every string already
 * copied is freed and its target set to NULL.
 */
extern KcStatus kc_json_read_object(KcJsonValue object, const KcJsonField *fields, int nfields,
									const KcAlloc *alloc, const char *doing, KcError *err);

#endif							/* KC_JSON_H */
