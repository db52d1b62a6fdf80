/* SM3 in lanes, written once for all widths with the compiler's vector extension. The file that includes this defines
 *
 *   LANES      messages at a time
 *   TARGET     attribute of every function here: the instruction set
 *   ROWS_NAME  name of the function that is made
 *
 * A lane is one 32-bit word of one message; word j of all messages together is a vector. */
#include <string.h>

#include "sm3.h"
#include "sm3_tables.h"

typedef uint32_t vector __attribute__((vector_size(4 * LANES)));

#define LANE_INLINE static inline __attribute__((always_inline)) TARGET

LANE_INLINE vector rotate(vector x, int bits) { return x << bits | x >> (32 - bits); }

/* One round; its last line renames the state's words instead of moving them. */
#define ROUND(A, B, C, D, E, F, G, H, FF, GG, j)                                     \
    do {                                                                             \
        vector a12 = rotate(A, 12);                                                  \
        vector ss1 = rotate(a12 + E + YK_SM3_T[j], 7);                               \
        vector next = w[((j) + 4) & 15];                                             \
        D += FF(A, B, C) + (ss1 ^ a12) + (w[(j) & 15] ^ next);                       \
        H += GG(E, F, G) + ss1 + w[(j) & 15];                                        \
        B = rotate(B, 9);                                                            \
        F = rotate(F, 19);                                                           \
        H ^= rotate(H, 9) ^ rotate(H, 17);                                           \
    } while (0)

#define PARITY(x, y, z) ((x) ^ (y) ^ (z))
#define MAJORITY(x, y, z) (((x) & (y)) | ((z) & ((x) | (y))))
#define CHOICE(x, y, z) ((z) ^ ((x) & ((y) ^ (z))))

/* Word j + 4 of the expanded message takes the place of word j - 12, which no round needs any more. */
#define EXPAND(j)                                                                                       \
    do {                                                                                                \
        vector x = w[((j) + 4) & 15] ^ w[((j) + 11) & 15] ^ rotate(w[((j) + 1) & 15], 15);              \
        x ^= rotate(x, 15) ^ rotate(x, 23);                                                             \
        w[((j) + 4) & 15] = x ^ rotate(w[((j) + 7) & 15], 7) ^ w[((j) + 14) & 15];                      \
    } while (0)

/* Four rounds bring the words' names back to their places. */
#define FOUR(FF, GG, j)                                 \
    ROUND(a, b, c, d, e, f, g, h, FF, GG, (j));         \
    ROUND(d, a, b, c, h, e, f, g, FF, GG, (j) + 1);     \
    ROUND(c, d, a, b, g, h, e, f, FF, GG, (j) + 2);     \
    ROUND(b, c, d, a, f, g, h, e, FF, GG, (j) + 3)

#define FOUR_EXPANDED(FF, GG, j)                                    \
    EXPAND(j); ROUND(a, b, c, d, e, f, g, h, FF, GG, (j));          \
    EXPAND((j) + 1); ROUND(d, a, b, c, h, e, f, g, FF, GG, (j) + 1); \
    EXPAND((j) + 2); ROUND(c, d, a, b, g, h, e, f, FF, GG, (j) + 2); \
    EXPAND((j) + 3); ROUND(b, c, d, a, f, g, h, e, FF, GG, (j) + 3)

LANE_INLINE void compress(vector state[8], vector w[16]) {
    vector a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
    FOUR(PARITY, PARITY, 0);
    FOUR(PARITY, PARITY, 4);
    FOUR(PARITY, PARITY, 8);
    FOUR_EXPANDED(PARITY, PARITY, 12);
    for (int j = 16; j < 64; j += 16) {
        FOUR_EXPANDED(MAJORITY, CHOICE, j);
        FOUR_EXPANDED(MAJORITY, CHOICE, j + 4);
        FOUR_EXPANDED(MAJORITY, CHOICE, j + 8);
        FOUR_EXPANDED(MAJORITY, CHOICE, j + 12);
    }
    state[0] ^= a;
    state[1] ^= b;
    state[2] ^= c;
    state[3] ^= d;
    state[4] ^= e;
    state[5] ^= f;
    state[6] ^= g;
    state[7] ^= h;
}

TARGET void ROWS_NAME(uint8_t prefix, const uint8_t *rows, size_t row_bytes, size_t n, uint8_t *digests) {
    size_t message_bytes = row_bytes + 1, blocks = (message_bytes + 9 + 63) / 64;
    /* Each lane's padded message: the prefix and the padding stand there for all rows, only the row itself changes. */
    uint8_t padded[LANES][(1 + YK_SM3_ROW_BYTES_MAX + 9 + 63) / 64 * 64];
    for (int lane = 0; lane < LANES; lane++) {
        memset(padded[lane], 0, blocks * 64);
        padded[lane][0] = prefix;
        padded[lane][message_bytes] = 0x80;
        for (int i = 0; i < 8; i++) padded[lane][blocks * 64 - 1 - i] = (uint8_t)((uint64_t)message_bytes * 8 >> 8 * i);
    }
    for (size_t start = 0; start < n; start += LANES) {
        size_t count = n - start < LANES ? n - start : LANES; /* the last time some lanes repeat what they did before */
        for (size_t lane = 0; lane < count; lane++) memcpy(padded[lane] + 1, rows + (start + lane) * row_bytes, row_bytes);
        vector state[8], w[16];
        for (int i = 0; i < 8; i++) state[i] = (vector){0} + YK_SM3_IV[i];
        for (size_t block = 0; block < blocks; block++) {
            uint32_t words[16][LANES] __attribute__((aligned(64)));
            for (int lane = 0; lane < LANES; lane++)
                for (int j = 0; j < 16; j++) {
                    uint32_t word;
                    memcpy(&word, padded[lane] + block * 64 + 4 * j, 4);
                    words[j][lane] = yk_sm3_big_endian(word);
                }
            memcpy(w, words, sizeof w);
            compress(state, w);
        }
        for (size_t lane = 0; lane < count; lane++)
            for (int i = 0; i < 8; i++) {
                uint32_t word = yk_sm3_big_endian(state[i][lane]);
                memcpy(digests + (start + lane) * YK_SM3_BYTES + 4 * i, &word, 4);
            }
    }
}
