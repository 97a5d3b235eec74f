/* CRC-32C (Castagnoli, RFC 3720), the checksum of every file and log record. SSE4.2 with three interleaved
 * streams when the CPU has it, a slicing table otherwise; chosen once, both give the same value.
 * crc32c(crc32c(0, a), b) == crc32c(0, ab). */
#ifndef OMEN_COMMON_CRC32C_H
#define OMEN_COMMON_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c(uint32_t crc, const void *data, size_t len);
uint32_t crc32c_portable(uint32_t crc, const void *data, size_t len); /* the definition, for tests */

#endif
