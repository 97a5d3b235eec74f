/* For fuzzing: the checksums that a writer of these bytes would have made, so that mutations get past them. */
#ifndef OMEN_TESTS_SUPPORT_FRAME_REPAIR_H
#define OMEN_TESTS_SUPPORT_FRAME_REPAIR_H

#include <stddef.h>
#include <stdint.h>

/* One frame at `frame`, as far as its sizes stay within `size`. Returns its bytes, 0 = no whole one. */
size_t frame_repair(uint8_t *frame, size_t size);

#endif
