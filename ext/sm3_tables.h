/* Between the files of SM3, for no one else: its constants and its paths. */
#ifndef YK_SM3_TABLES_H
#define YK_SM3_TABLES_H

#include "sm3.h"

/* The initial value (GB/T 32905-2016 clause 4.1). */
extern const uint32_t YK_SM3_IV[8];

/* T_j rotated left by j (clause 4.2), for the 64 rounds. */
extern const uint32_t YK_SM3_T[64];

static inline uint32_t yk_sm3_big_endian(uint32_t word) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return __builtin_bswap32(word);
#else
    return word;
#endif
}

void yk_sm3_rows_scalar(uint8_t prefix, const uint8_t *rows, size_t row_bytes, size_t n, uint8_t *digests);
void yk_sm3_rows_lanes4(uint8_t prefix, const uint8_t *rows, size_t row_bytes, size_t n, uint8_t *digests);
#if defined(__x86_64__)
void yk_sm3_rows_avx2(uint8_t prefix, const uint8_t *rows, size_t row_bytes, size_t n, uint8_t *digests);
void yk_sm3_rows_avx512(uint8_t prefix, const uint8_t *rows, size_t row_bytes, size_t n, uint8_t *digests);
#endif

#endif
