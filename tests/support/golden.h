/* Golden files in hexadecimal digits: what was released, byte for byte. Tests run in the root of the repository. */
#ifndef OMEN_TESTS_SUPPORT_GOLDEN_H
#define OMEN_TESTS_SUPPORT_GOLDEN_H

#include "common/bytes.h"

/* Bytes of the file; all but digits is left out. Fails the test when it is missing or longer than `cap`. */
size_t golden_read(const char *path, uint8_t *bytes, size_t cap);
/* 32 bytes a line, with `between` after each but a line's last. */
void golden_write(const char *path, struct bytes bytes, const char *between);

#endif
