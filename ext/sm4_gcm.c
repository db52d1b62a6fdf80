#include "sm4_gcm.h"

#include <stdlib.h>
#include <string.h>

#include "sm3.h"
#include "sm4.h"

/* ---- GHASH: bit by bit with masks, so that neither time nor memory accesses tell anything of H or the data ---- */

typedef struct {
    uint64_t high, low; /* the leftmost bit is the coefficient of x^0 */
} element;

static uint64_t get64(const uint8_t *in) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value = value << 8 | in[i];
    return value;
}

static void put64(uint8_t *out, uint64_t value) {
    for (int i = 0; i < 8; i++) out[i] = (uint8_t)(value >> 8 * (7 - i));
}

static element multiply(element x, element h) {
    element product = {0, 0};
    for (int i = 0; i < 128; i++) {
        uint64_t bit = (i < 64 ? x.high >> (63 - i) : x.low >> (127 - i)) & 1, take = 0 - bit;
        product.high ^= h.high & take;
        product.low ^= h.low & take;
        uint64_t carry = 0 - (h.low & 1);
        h.low = h.low >> 1 | h.high << 63;
        h.high = h.high >> 1 ^ (0xe100000000000000u & carry);
    }
    return product;
}

static element absorb(element sum, element h, const uint8_t *data, size_t bytes) {
    while (bytes) {
        uint8_t block[16] = {0};
        size_t part = bytes < 16 ? bytes : 16;
        memcpy(block, data, part);
        sum.high ^= get64(block);
        sum.low ^= get64(block + 8);
        sum = multiply(sum, h);
        data += part;
        bytes -= part;
    }
    return sum;
}

static void tag_of(const uint32_t *round_keys, const uint8_t *nonce, const uint8_t *associated, size_t associated_bytes,
                   const uint8_t *sealed, size_t bytes, uint8_t tag[16]) {
    uint8_t block[16] = {0}, lengths[16];
    yk_sm4_encrypt(round_keys, block, block);
    element h = {get64(block), get64(block + 8)}, sum = {0, 0};
    sum = absorb(sum, h, associated, associated_bytes);
    sum = absorb(sum, h, sealed, bytes);
    put64(lengths, (uint64_t)associated_bytes * 8);
    put64(lengths + 8, (uint64_t)bytes * 8);
    sum = absorb(sum, h, lengths, sizeof lengths);
    memcpy(block, nonce, 12);
    memcpy(block + 12, "\0\0\0\1", 4);
    yk_sm4_encrypt(round_keys, block, block);
    put64(tag, get64(block) ^ sum.high);
    put64(tag + 8, get64(block + 8) ^ sum.low);
    yk_wipe(block, sizeof block);
    yk_wipe(&h, sizeof h);
}

static void count_over(const uint32_t *round_keys, const uint8_t *nonce, const uint8_t *in, size_t bytes, uint8_t *out) {
    uint8_t counter[16], stream[16];
    memcpy(counter, nonce, 12);
    for (uint32_t n = 2; bytes; n++) {
        size_t part = bytes < 16 ? bytes : 16;
        for (int i = 0; i < 4; i++) counter[12 + i] = (uint8_t)(n >> 8 * (3 - i));
        yk_sm4_encrypt(round_keys, counter, stream);
        for (size_t i = 0; i < part; i++) out[i] = in[i] ^ stream[i];
        in += part;
        out += part;
        bytes -= part;
    }
    yk_wipe(stream, sizeof stream);
}

void yk_sm4_gcm_seal(const uint32_t round_keys[32], const uint8_t nonce[YK_GCM_NONCE_BYTES], const uint8_t *associated,
                     size_t associated_bytes, const uint8_t *in, size_t bytes, uint8_t *out, uint8_t tag[YK_GCM_TAG_BYTES]) {
    count_over(round_keys, nonce, in, bytes, out);
    tag_of(round_keys, nonce, associated, associated_bytes, out, bytes, tag);
}

int yk_sm4_gcm_open(const uint32_t round_keys[32], const uint8_t nonce[YK_GCM_NONCE_BYTES], const uint8_t *associated,
                    size_t associated_bytes, const uint8_t *in, size_t bytes, uint8_t *out, const uint8_t tag[YK_GCM_TAG_BYTES]) {
    uint8_t right[YK_GCM_TAG_BYTES], differs = 0;
    tag_of(round_keys, nonce, associated, associated_bytes, in, bytes, right);
    for (int i = 0; i < YK_GCM_TAG_BYTES; i++) differs |= right[i] ^ tag[i];
    yk_wipe(right, sizeof right);
    if (differs) return -1;
    count_over(round_keys, nonce, in, bytes, out);
    return 0;
}

/* ---- HMAC ---- */

int yk_sm3_hmac(const uint8_t *key, size_t key_bytes, const uint8_t *message, size_t bytes, uint8_t mac[YK_HMAC_BYTES]) {
    uint8_t outer[64 + YK_SM3_BYTES] = {0};
    uint8_t *inner = calloc(1, 64 + bytes);
    if (!inner) return -1;
    memcpy(inner, key, key_bytes);
    memcpy(outer, key, key_bytes);
    for (int i = 0; i < 64; i++) {
        inner[i] ^= 0x36;
        outer[i] ^= 0x5c;
    }
    if (bytes) memcpy(inner + 64, message, bytes);
    yk_sm3(inner, 64 + bytes, outer + 64);
    yk_sm3(outer, sizeof outer, mac);
    yk_wipe(inner, 64 + bytes);
    yk_wipe(outer, sizeof outer);
    free(inner);
    return 0;
}
