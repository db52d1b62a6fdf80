/* SM3 of one message, plainly written, and the choice of the path that works on many. */
#include <stdatomic.h>
#include <string.h>

#include "sm3_tables.h"

const uint32_t YK_SM3_IV[8] = {0x7380166f, 0x4914b2b9, 0x172442d7, 0xda8a0600, 0xa96f30bc, 0x163138aa, 0xe38dee4d, 0xb0fb0e4e};

#define ROTATED(t, j) ((uint32_t)(t) << (j) % 32 | (uint32_t)(t) >> (32 - (j) % 32) % 32)
#define T0(j) ROTATED(0x79cc4519u, j)
#define T16(j) ROTATED(0x7a879d8au, j)
#define EIGHT(T, j) T(j), T((j) + 1), T((j) + 2), T((j) + 3), T((j) + 4), T((j) + 5), T((j) + 6), T((j) + 7)
const uint32_t YK_SM3_T[64] = {EIGHT(T0, 0),   EIGHT(T0, 8),   EIGHT(T16, 16), EIGHT(T16, 24),
                               EIGHT(T16, 32), EIGHT(T16, 40), EIGHT(T16, 48), EIGHT(T16, 56)};

/* ---- one message: as the standard writes it ----------------------------------------------------------------------- */

static uint32_t rotate(uint32_t x, int bits) { return x << bits | x >> (32 - bits); }

static void compress(uint32_t state[8], const uint8_t block[64]) {
    uint32_t w[68];
    for (int j = 0; j < 16; j++) {
        memcpy(&w[j], block + 4 * j, 4);
        w[j] = yk_sm3_big_endian(w[j]);
    }
    for (int j = 16; j < 68; j++) {
        uint32_t x = w[j - 16] ^ w[j - 9] ^ rotate(w[j - 3], 15);
        w[j] = x ^ rotate(x, 15) ^ rotate(x, 23) ^ rotate(w[j - 13], 7) ^ w[j - 6];
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h = state[7];
    for (int j = 0; j < 64; j++) {
        uint32_t ss1 = rotate(rotate(a, 12) + e + YK_SM3_T[j], 7), ss2 = ss1 ^ rotate(a, 12);
        uint32_t ff = j < 16 ? a ^ b ^ c : (a & b) | (a & c) | (b & c);
        uint32_t gg = j < 16 ? e ^ f ^ g : (e & f) | (~e & g);
        uint32_t tt1 = ff + d + ss2 + (w[j] ^ w[j + 4]), tt2 = gg + h + ss1 + w[j];
        d = c;
        c = rotate(b, 9);
        b = a;
        a = tt1;
        h = g;
        g = rotate(f, 19);
        f = e;
        e = tt2 ^ rotate(tt2, 9) ^ rotate(tt2, 17);
    }
    const uint32_t after[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++) state[i] ^= after[i];
}

/* The digest of prefix (where there is one) ‖ message. */
static void digest_of(const uint8_t *prefix, const uint8_t *message, size_t message_bytes, uint8_t *digest) {
    uint32_t state[8];
    uint8_t block[64];
    size_t filled = 0;
    memcpy(state, YK_SM3_IV, sizeof state);
    if (prefix) block[filled++] = *prefix;
    uint64_t bits = ((uint64_t)message_bytes + filled) * 8;
    while (message_bytes) {
        size_t part = 64 - filled < message_bytes ? 64 - filled : message_bytes;
        memcpy(block + filled, message, part);
        message += part;
        message_bytes -= part;
        if ((filled += part) == 64) {
            compress(state, block);
            filled = 0;
        }
    }
    block[filled++] = 0x80;
    if (filled > 56) {
        memset(block + filled, 0, 64 - filled);
        compress(state, block);
        filled = 0;
    }
    memset(block + filled, 0, 56 - filled);
    for (int i = 0; i < 8; i++) block[63 - i] = (uint8_t)(bits >> 8 * i);
    compress(state, block);
    for (int i = 0; i < 8; i++) {
        uint32_t word = yk_sm3_big_endian(state[i]);
        memcpy(digest + 4 * i, &word, 4);
    }
}

void yk_sm3(const uint8_t *message, size_t message_bytes, uint8_t digest[YK_SM3_BYTES]) {
    digest_of(NULL, message, message_bytes, digest);
}

void yk_sm3_rows_scalar(uint8_t prefix, const uint8_t *rows, size_t row_bytes, size_t n, uint8_t *digests) {
    for (size_t i = 0; i < n; i++) digest_of(&prefix, rows + i * row_bytes, row_bytes, digests + i * YK_SM3_BYTES);
}

/* ---- many: the paths, fastest first --------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    int (*is_runnable)(void);
    void (*rows)(uint8_t prefix, const uint8_t *rows, size_t row_bytes, size_t n, uint8_t *digests);
} path;

static int always(void) { return 1; }

#if defined(__x86_64__)
/* The compiler's runtime asks the operating system too whether it saves these registers. */
static int has_avx2(void) { return __builtin_cpu_supports("avx2"); }
static int has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

static const path PATHS[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, yk_sm3_rows_avx512},
    {"avx2", has_avx2, yk_sm3_rows_avx2},
#endif
    {"lanes4", always, yk_sm3_rows_lanes4},
    {"scalar", always, yk_sm3_rows_scalar},
};
enum { PATH_COUNT = sizeof PATHS / sizeof PATHS[0] };

static _Atomic(const path *) chosen;

static const path *choose(void) {
    const path *now = atomic_load_explicit(&chosen, memory_order_acquire);
    for (size_t i = 0; now == NULL; i++)
        if (PATHS[i].is_runnable()) now = &PATHS[i];
    atomic_store_explicit(&chosen, now, memory_order_release);
    return now;
}

const char *yk_sm3_path(void) { return choose()->name; }

const char *yk_sm3_path_runnable(size_t i) {
    for (size_t k = 0; k < PATH_COUNT; k++)
        if (PATHS[k].is_runnable() && i-- == 0) return PATHS[k].name;
    return NULL;
}

int yk_sm3_path_force(const char *name) {
    for (size_t i = 0; i < PATH_COUNT; i++)
        if (strcmp(PATHS[i].name, name) == 0 && PATHS[i].is_runnable()) {
            atomic_store_explicit(&chosen, &PATHS[i], memory_order_release);
            return 0;
        }
    return -1;
}

void yk_sm3_rows(uint8_t prefix, const uint8_t *rows, size_t row_bytes, size_t n, uint8_t *digests) {
    choose()->rows(prefix, rows, row_bytes, n, digests);
}
