/*
 * ascii.h
 *	  Character classes that do not depend on the locale.
 *
 * Private to the core; pure, raises nothing.
 */
#ifndef KC_ASCII_H
#define KC_ASCII_H

#include <stdbool.h>

static inline char
kc_ascii_lower(char c)
{
	return (c >= 'A' && c <= 'Z') ? (char) (c + ('a' - 'A')) : c;
}

static inline bool
kc_ascii_is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static inline bool
kc_ascii_is_alpha(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static inline bool
kc_ascii_is_alnum(char c)
{
	return kc_ascii_is_alpha(c) || kc_ascii_is_digit(c);
}

/* Value of a hexadecimal digit, or -1. */
static inline int
kc_ascii_hex(char c)
{
	if (kc_ascii_is_digit(c))
		return c - '0';
	c = kc_ascii_lower(c);
	return (c >= 'a' && c <= 'f') ? c - 'a' + 10 : -1;
}

#endif							/* KC_ASCII_H */
