/*
 * doorbell.h
 *	  A descriptor that one thread makes readable for another: an eventfd, or
 *	  a pipe where there is none.
 *
 * kc_doorbell_ring() may be called from a thread that must neither allocate
 * nor block.  Nothing here raises.
 */
#ifndef KC_DOORBELL_H
#define KC_DOORBELL_H

#include <stdbool.h>

typedef struct KcDoorbell
{
	int			read_fd;
	int			write_fd;		/* the same one for an eventfd */
} KcDoorbell;

extern bool kc_doorbell_open(KcDoorbell *bell);
extern void kc_doorbell_close(KcDoorbell *bell);
extern int	kc_doorbell_fd(const KcDoorbell *bell);
extern void kc_doorbell_ring(const KcDoorbell *bell);
extern void kc_doorbell_answer(const KcDoorbell *bell); /* not readable any more */

#endif							/* KC_DOORBELL_H */
