/*
 * utf8.h
 *	  One question about UTF-8 that several files of the core ask.
 *
 * Private to the core; pure, raises nothing.
 */
#ifndef KC_UTF8_H
#define KC_UTF8_H

#include <stddef.h>
#include <stdint.h>

/*
 * Length of the well-formed sequence at p (RFC 3629: no overlong forms, no
 * surrogates, nothing above U+10FFFF), or 0 when there is none in len bytes.
 */
static inline size_t
kc_utf8_sequence(const char *p, size_t len)
{
	const unsigned char *s = (const unsigned char *) p;

	if (len == 0)
		return 0;
	if (s[0] < 0x80)
		return 1;
	if (s[0] < 0xC2 || len < 2 || (s[1] & 0xC0) != 0x80)
		return 0;
	if (s[0] < 0xE0)
		return 2;
	if (s[0] < 0xF0)
	{
		if (len < 3 || (s[2] & 0xC0) != 0x80)
			return 0;
		if (s[0] == 0xE0 && s[1] < 0xA0)
			return 0;
		if (s[0] == 0xED && s[1] >= 0xA0)
			return 0;
		return 3;
	}
	if (s[0] > 0xF4 || len < 4 || (s[2] & 0xC0) != 0x80 || (s[3] & 0xC0) != 0x80)
		return 0;
	if (s[0] == 0xF0 && s[1] < 0x90)
		return 0;
	if (s[0] == 0xF4 && s[1] >= 0x90)
		return 0;
	return 4;
}

/* Write a code point (a scalar value) as UTF-8; gives the length, 1 to 4. */
static inline size_t
kc_utf8_encode(uint32_t cp, char out[4])
{
	if (cp < 0x80)
	{
		out[0] = (char) cp;
		return 1;
	}
	if (cp < 0x800)
	{
		out[0] = (char) (0xC0 | (cp >> 6));
		out[1] = (char) (0x80 | (cp & 0x3F));
		return 2;
	}
	if (cp < 0x10000)
	{
		out[0] = (char) (0xE0 | (cp >> 12));
		out[1] = (char) (0x80 | ((cp >> 6) & 0x3F));
		out[2] = (char) (0x80 | (cp & 0x3F));
		return 3;
	}
	out[0] = (char) (0xF0 | (cp >> 18));
	out[1] = (char) (0x80 | ((cp >> 12) & 0x3F));
	out[2] = (char) (0x80 | ((cp >> 6) & 0x3F));
	out[3] = (char) (0x80 | (cp & 0x3F));
	return 4;
}

#define KC_UTF8_REPLACEMENT "\xEF\xBF\xBD"	/* U+FFFD */

#endif							/* KC_UTF8_H */
