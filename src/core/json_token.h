/*
 * json_token.h
 *	  What the checking and the reading half of the JSON parser share.
 *
 * Private to json_check.c and json_read.c; pure.
 */
#ifndef KC_JSON_TOKEN_H
#define KC_JSON_TOKEN_H

#include "json.h"

static inline bool
kc_json_is_blank(char c)
{
	return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* The first character of a valid value tells its type. */
static inline KcJsonType
kc_json_type_of(char first)
{
	switch (first)
	{
		case '{':
			return KC_JSON_OBJECT;
		case '[':
			return KC_JSON_ARRAY;
		case '"':
			return KC_JSON_STRING;
		case 't':
		case 'f':
			return KC_JSON_BOOL;
		case 'n':
			return KC_JSON_NULL;
		default:
			return KC_JSON_NUMBER;
	}
}

#endif							/* KC_JSON_TOKEN_H */
