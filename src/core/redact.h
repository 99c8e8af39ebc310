/*
 * redact.h
 *	  Takes secrets out of text that is about to become an error.
 *
 * Recognised by shape, case-insensitively: the value of sig= / %73ig= and the
 * rest of any URL query, user information in a URL, "Bearer ..." and other
 * Authorization values, JSON or form members whose name ends in token,
 * secret, password, key, assertion, authorizationContext, AccountKey or
 * SharedAccessSignature, and anything shaped like a JWT.
 */
#ifndef KC_REDACT_H
#define KC_REDACT_H

#include "base.h"

/*
 * Rewrite text of *len bytes in place; it never grows.  A replaced secret
 * leaves at most "***".
 */
extern void kc_redact(char *text, size_t *len);

#endif							/* KC_REDACT_H */
