/*
 * fuzz.h
 *	  What the harnesses share: the entry point's prototype, an assertion that
 *	  stays in every build, and a reader that cuts the input into pieces.
 */
#ifndef KC_TEST_FUZZ_H
#define KC_TEST_FUZZ_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base.h"

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A property that must hold for every input. */
#define holds(condition) \
	do { \
		if (!(condition)) \
		{ \
			fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
			abort(); \
		} \
	} while (0)

typedef struct FuzzInput
{
	const uint8_t *data;
	size_t		left;
} FuzzInput;

/* The next byte, 0 when there is none. */
static inline uint8_t
fuzz_byte(FuzzInput *in)
{
	if (in->left == 0)
		return 0;
	in->left--;
	return *in->data++;
}

/* Up to len bytes of the input, where they lie. */
static inline KcSlice
fuzz_slice(FuzzInput *in, size_t len)
{
	KcSlice		slice;

	if (len > in->left)
		len = in->left;
	slice = kc_slice_n((const char *) in->data, len);
	in->data += len;
	in->left -= len;
	return slice;
}

static inline bool
fuzz_lies_within(KcSlice part, KcSlice whole)
{
	if (part.len == 0)
		return true;
	return (uintptr_t) part.data >= (uintptr_t) whole.data &&
		(uintptr_t) (part.data + part.len) <= (uintptr_t) (whole.data + whole.len);
}

#endif							/* KC_TEST_FUZZ_H */
