/* SM4 MACs, eight taps in a 256-bit vector: AVX2, with the S-box by AESENCLAST on two 128-bit halves (AES-NI) or on the
 * whole vector (VAES, which does not need AVX-512). */
#include "sm4_paths.h"

#if YK_SM4_X86
#include <immintrin.h>
#include <string.h>

#include "sm4_field.h"

#define AVX2 __attribute__((target("avx2")))
#define AVX2_INLINE static inline __attribute__((always_inline)) AVX2

typedef __m256i vector;

AVX2_INLINE vector broadcast(uint32_t word) { return _mm256_set1_epi32((int)word); }
AVX2_INLINE vector xor2(vector a, vector b) { return _mm256_xor_si256(a, b); }
AVX2_INLINE vector xor3(vector a, vector b, vector c) { return xor2(a, xor2(b, c)); }
AVX2_INLINE vector and2(vector a, vector b) { return _mm256_and_si256(a, b); }
AVX2_INLINE vector or2(vector a, vector b) { return _mm256_or_si256(a, b); }
AVX2_INLINE vector not1(vector a) { return xor2(a, broadcast(0xffffffff)); }
AVX2_INLINE vector shift_right_16(vector a) { return _mm256_srli_epi32(a, 16); }
AVX2_INLINE vector load(const uint32_t *words) { return _mm256_loadu_si256((const __m256i *)words); }
AVX2_INLINE void store(uint32_t *words, vector v) { _mm256_storeu_si256((__m256i *)words, v); }

/* A table of 16 bytes, or an order of 16 bytes, for both halves of a vector. */
AVX2_INLINE vector both_halves(const uint8_t bytes[16]) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)bytes));
}
AVX2_INLINE vector look_up(const uint8_t table[16], vector nibbles) {
    return _mm256_shuffle_epi8(both_halves(table), nibbles);
}
AVX2_INLINE vector reorder(vector v, const uint8_t order[16]) { return _mm256_shuffle_epi8(v, both_halves(order)); }

AVX2_INLINE vector low_nibbles(vector v) { return and2(v, _mm256_set1_epi8(0x0f)); }
AVX2_INLINE vector high_nibbles(vector v) { return and2(_mm256_srli_epi16(v, 4), _mm256_set1_epi8(0x0f)); }

AVX2_INLINE vector map(const uint8_t low[16], const uint8_t high[16], vector v) {
    return xor2(look_up(low, low_nibbles(v)), look_up(high, high_nibbles(v)));
}
AVX2_INLINE vector hat(vector w) { return map(HAT_LOW, HAT_HIGH, w); }
AVX2_INLINE vector unhat(vector w) { return map(UNHAT_LOW, UNHAT_HIGH, w); }

/* AESENCLAST shifts the rows of its state: byte r of word c comes from word c + r of the four in a half. UNSHIFT_k undoes
 * that and rotates each word left by 8k bits in the same step. SHIFTED_ROTATE_3 rotates by 24 bits and stays shifted. */
static const uint8_t UNSHIFT_0[16] = {0, 13, 10, 7, 4, 1, 14, 11, 8, 5, 2, 15, 12, 9, 6, 3};
static const uint8_t UNSHIFT_1[16] = {7, 0, 13, 10, 11, 4, 1, 14, 15, 8, 5, 2, 3, 12, 9, 6};
static const uint8_t UNSHIFT_2[16] = {10, 7, 0, 13, 14, 11, 4, 1, 2, 15, 8, 5, 6, 3, 12, 9};
static const uint8_t UNSHIFT_3[16] = {13, 10, 7, 0, 1, 14, 11, 4, 5, 2, 15, 8, 9, 6, 3, 12};
static const uint8_t SHIFTED_ROTATE_3[16] = {13, 14, 15, 12, 1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8};
static const uint8_t BIG_ENDIAN_WORDS[16] = {3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12};

/* q + Zq + Z^2 R with q = Z^3 P + R. */
AVX2_INLINE vector cipher_linear(vector x, vector s) {
    vector low = low_nibbles(s), high = high_nibbles(s);
    vector p = xor2(look_up(CIPHER_P_LOW, low), look_up(CIPHER_P_HIGH, high));
    vector r = xor2(look_up(CIPHER_R_LOW, low), look_up(CIPHER_R_HIGH, high));
    vector q = xor2(reorder(p, SHIFTED_ROTATE_3), r);
    x = xor2(x, reorder(r, UNSHIFT_2));
    return xor2(x, xor2(reorder(q, UNSHIFT_0), reorder(q, UNSHIFT_1)));
}

AVX2_INLINE vector key_linear(vector k, vector s) {
    vector low = low_nibbles(s), high = high_nibbles(s);
    vector b0 = xor2(look_up(KEY_0_LOW, low), look_up(KEY_0_HIGH, high));
    vector b1 = look_up(KEY_1_LOW, low);
    vector b2 = xor2(look_up(KEY_2_LOW, low), look_up(KEY_2_HIGH, high));
    vector b3 = xor2(look_up(KEY_3_LOW, low), look_up(KEY_3_HIGH, high));
    k = xor2(k, xor2(reorder(b0, UNSHIFT_0), reorder(b1, UNSHIFT_1)));
    return xor2(k, xor2(reorder(b2, UNSHIFT_2), reorder(b3, UNSHIFT_3)));
}

/* Rows i and i + 4 share a vector, so that transposing four words in each half brings the lanes into order. */
AVX2_INLINE void load_native(const uint8_t *const at[8], vector words[4]) {
    vector row[4];
    for (int i = 0; i < 4; i++) {
        __m128i low = _mm_loadu_si128((const __m128i *)at[i]), high = _mm_loadu_si128((const __m128i *)at[i + 4]);
        row[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    }
    vector a = _mm256_unpacklo_epi32(row[0], row[1]), b = _mm256_unpacklo_epi32(row[2], row[3]);
    vector c = _mm256_unpackhi_epi32(row[0], row[1]), d = _mm256_unpackhi_epi32(row[2], row[3]);
    words[0] = _mm256_unpacklo_epi64(a, b);
    words[1] = _mm256_unpackhi_epi64(a, b);
    words[2] = _mm256_unpacklo_epi64(c, d);
    words[3] = _mm256_unpackhi_epi64(c, d);
}

AVX2_INLINE void load_words(const uint8_t *const at[8], vector words[4]) {
    load_native(at, words);
    for (int i = 0; i < 4; i++) words[i] = reorder(words[i], BIG_ENDIAN_WORDS);
}

AVX2_INLINE uint32_t equal_lanes(vector a, vector b) {
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)));
}

AVX2_INLINE void forget_registers(void) { _mm256_zeroall(); }

/* Four groups of eight: with fewer the processor waits for results (two take 25 % longer), a fifth gains 3 % and leaves more
 * lanes empty at the end of a batch. */
#define LANES 8

/* ---- AES-NI: two halves ------------------------------------------------------------------------------------------- */

#define TARGET __attribute__((target("avx2,aes")))
#define PATH_FUNCTION(name) name##_avx2_aesni
#define GROUPS 4
#define SUBSTITUTE substitute_halves

static inline __attribute__((always_inline)) TARGET vector substitute_halves(vector t) {
    __m128i zero = _mm_setzero_si128();
    __m128i low = _mm_aesenclast_si128(_mm256_castsi256_si128(t), zero);
    __m128i high = _mm_aesenclast_si128(_mm256_extracti128_si256(t, 1), zero);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

#include "sm4_lanes.h"
#undef TARGET
#undef PATH_FUNCTION
#undef GROUPS
#undef SUBSTITUTE

/* ---- VAES: the whole vector ----------------------------------------------------------------------------------------- */

#define TARGET __attribute__((target("avx2,aes,vaes")))
#define PATH_FUNCTION(name) name##_avx2_vaes
#define GROUPS 4
#define SUBSTITUTE substitute_vector

static inline __attribute__((always_inline)) TARGET vector substitute_vector(vector t) {
    return _mm256_aesenclast_epi128(t, _mm256_setzero_si256());
}

#include "sm4_lanes.h"

#else
typedef int yk_sm4_avx2_is_for_x86; /* ISO C wants something in every file */
#endif
