/*
 * redact_read.h
 *	  Reading text that may have been quoted, encoded and escaped, any number
 *	  of times.
 *
 * Private to redact.c and redact_read.c; pure.  at is a position in text.
 */
#ifndef KC_REDACT_READ_H
#define KC_REDACT_READ_H

#include "base.h"

/*
 * The character that stands at at, with %XX, \uXXXX, \" and &amp; undone to
 * any depth, and how many bytes write it.
 */
extern char kc_redact_char(KcSlice text, size_t at, size_t *n);
/* The same; '\0' and no bytes at the end of the text. */
extern char kc_redact_peek(KcSlice text, size_t at, size_t *n);
extern bool kc_redact_is_blank(char c);

/* Behind blanks, be they written " ", "%20" or, inside JSON, "\n". */
extern size_t kc_redact_skip_blanks(KcSlice text, size_t at);

/* The next blank, control or one of stops, as written; or the end. */
extern size_t kc_redact_run_end(KcSlice text, size_t at, const char *stops);

/* The quote that closes the one at at; or the end. */
extern size_t kc_redact_quoted_end(KcSlice text, size_t at);

/* Behind the bracket that closes the one at at; or the end. */
extern size_t kc_redact_bracket_end(KcSlice text, size_t at);

#endif							/* KC_REDACT_READ_H */
