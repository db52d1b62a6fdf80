/* SM4 MACs, sixteen taps in a 512-bit vector: AVX-512 with GFNI, whose GF2P8AFFINEINVQB inverts in AES's field and multiplies
 * by any matrix of bits, which is all of a round except rotations. */
#include "sm4_paths.h"

#if YK_SM4_X86
#include <immintrin.h>
#include <string.h>

#include "sm4_field.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,gfni")))
#define AVX512_INLINE static inline __attribute__((always_inline)) TARGET

typedef __m512i vector;

enum { XOR3 = 0x96 }; /* VPTERNLOGD's table for a + b + c */

AVX512_INLINE vector broadcast(uint32_t word) { return _mm512_set1_epi32((int)word); }
AVX512_INLINE vector xor2(vector a, vector b) { return _mm512_xor_si512(a, b); }
AVX512_INLINE vector xor3(vector a, vector b, vector c) { return _mm512_ternarylogic_epi32(a, b, c, XOR3); }
AVX512_INLINE vector and2(vector a, vector b) { return _mm512_and_si512(a, b); }
AVX512_INLINE vector or2(vector a, vector b) { return _mm512_or_si512(a, b); }
AVX512_INLINE vector not1(vector a) { return xor2(a, broadcast(0xffffffff)); }
AVX512_INLINE vector shift_right_16(vector a) { return _mm512_srli_epi32(a, 16); }
AVX512_INLINE vector load(const uint32_t *words) { return _mm512_loadu_si512(words); }
AVX512_INLINE void store(uint32_t *words, vector v) { _mm512_storeu_si512(words, v); }

#define MATRIX(m) _mm512_set1_epi64((long long)(m))
AVX512_INLINE vector hat(vector w) { return _mm512_gf2p8affine_epi64_epi8(w, MATRIX(HAT_MATRIX), 0); }
AVX512_INLINE vector unhat(vector w) { return _mm512_gf2p8affine_epi64_epi8(w, MATRIX(UNHAT_MATRIX), 0); }

/* q + Zq + Z^2 R with q = Z^3 P + R. */
AVX512_INLINE vector cipher_linear(vector x, vector t) {
    vector p = _mm512_gf2p8affineinv_epi64_epi8(t, MATRIX(CIPHER_P_MATRIX), 0);
    vector r = _mm512_gf2p8affineinv_epi64_epi8(t, MATRIX(CIPHER_R_MATRIX), CIPHER_R_CONSTANT);
    vector q = xor2(_mm512_rol_epi32(p, 24), r);
    return xor2(xor3(x, _mm512_rol_epi32(r, 16), q), _mm512_rol_epi32(q, 8));
}

AVX512_INLINE vector key_linear(vector k, vector t) {
    vector b0 = _mm512_gf2p8affineinv_epi64_epi8(t, MATRIX(KEY_0_MATRIX), KEY_0_CONSTANT);
    vector b1 = _mm512_gf2p8affineinv_epi64_epi8(t, MATRIX(KEY_1_MATRIX), 0);
    vector b2 = _mm512_gf2p8affineinv_epi64_epi8(t, MATRIX(KEY_2_MATRIX), 0);
    vector b3 = _mm512_gf2p8affineinv_epi64_epi8(t, MATRIX(KEY_3_MATRIX), 0);
    return xor3(xor3(k, b0, _mm512_rol_epi32(b1, 8)), _mm512_rol_epi32(b2, 16), _mm512_rol_epi32(b3, 24));
}

AVX512_INLINE vector load_row(const uint8_t *const at[16], int i) {
    vector row = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)at[i]));
    row = _mm512_inserti32x4(row, _mm_loadu_si128((const __m128i *)at[i + 4]), 1);
    row = _mm512_inserti32x4(row, _mm_loadu_si128((const __m128i *)at[i + 8]), 2);
    return _mm512_inserti32x4(row, _mm_loadu_si128((const __m128i *)at[i + 12]), 3);
}

/* Rows i, i + 4, i + 8 and i + 12 share a vector, so that transposing four words in each quarter brings the lanes into
 * order. */
AVX512_INLINE void load_native(const uint8_t *const at[16], vector words[4]) {
    vector row0 = load_row(at, 0), row1 = load_row(at, 1), row2 = load_row(at, 2), row3 = load_row(at, 3);
    vector a = _mm512_unpacklo_epi32(row0, row1), b = _mm512_unpacklo_epi32(row2, row3);
    vector c = _mm512_unpackhi_epi32(row0, row1), d = _mm512_unpackhi_epi32(row2, row3);
    words[0] = _mm512_unpacklo_epi64(a, b);
    words[1] = _mm512_unpackhi_epi64(a, b);
    words[2] = _mm512_unpacklo_epi64(c, d);
    words[3] = _mm512_unpackhi_epi64(c, d);
}

static const uint8_t BIG_ENDIAN_WORDS[16] = {3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12};

AVX512_INLINE void load_words(const uint8_t *const at[16], vector words[4]) {
    vector order = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)BIG_ENDIAN_WORDS));
    load_native(at, words);
    for (int i = 0; i < 4; i++) words[i] = _mm512_shuffle_epi8(words[i], order);
}

AVX512_INLINE uint32_t equal_lanes(vector a, vector b) { return _mm512_cmpeq_epi32_mask(a, b); }

/* VZEROALL does not reach registers 16 to 31. */
AVX512_INLINE void forget_registers(void) {
    __asm__ __volatile__("vpxord %%zmm16, %%zmm16, %%zmm16\n\tvpxord %%zmm17, %%zmm17, %%zmm17\n\t"
                         "vpxord %%zmm18, %%zmm18, %%zmm18\n\tvpxord %%zmm19, %%zmm19, %%zmm19\n\t"
                         "vpxord %%zmm20, %%zmm20, %%zmm20\n\tvpxord %%zmm21, %%zmm21, %%zmm21\n\t"
                         "vpxord %%zmm22, %%zmm22, %%zmm22\n\tvpxord %%zmm23, %%zmm23, %%zmm23\n\t"
                         "vpxord %%zmm24, %%zmm24, %%zmm24\n\tvpxord %%zmm25, %%zmm25, %%zmm25\n\t"
                         "vpxord %%zmm26, %%zmm26, %%zmm26\n\tvpxord %%zmm27, %%zmm27, %%zmm27\n\t"
                         "vpxord %%zmm28, %%zmm28, %%zmm28\n\tvpxord %%zmm29, %%zmm29, %%zmm29\n\t"
                         "vpxord %%zmm30, %%zmm30, %%zmm30\n\tvpxord %%zmm31, %%zmm31, %%zmm31\n\t"
                         :
                         :
                         : "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26",
                           "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
    _mm256_zeroall();
}

/* Three groups: two take 8 % longer, and four spill. */
#define PATH_FUNCTION(name) name##_avx512_gfni
#define LANES 16
#define GROUPS 3
#define SUBSTITUTE(t) (t)

#include "sm4_lanes.h"

#else
typedef int yk_sm4_avx512_is_for_x86; /* ISO C wants something in every file */
#endif
