/* SM4 and its MAC in plain C, one block at a time: the path of any processor, and every one-block function. */
#include "sm4_paths.h"

#include <string.h>

/* GB/T 32907-2016 clause 6.2. The address of a lookup depends on the key, and so does which of the table's four cache lines
 * it touches: who shares the processor could learn from that. The SIMD paths have no table in memory; this one is the
 * fallback, and serves the few calls outside batches. */
static const uint8_t SBOX[256] = {
    0xd6, 0x90, 0xe9, 0xfe, 0xcc, 0xe1, 0x3d, 0xb7, 0x16, 0xb6, 0x14, 0xc2, 0x28, 0xfb, 0x2c, 0x05,
    0x2b, 0x67, 0x9a, 0x76, 0x2a, 0xbe, 0x04, 0xc3, 0xaa, 0x44, 0x13, 0x26, 0x49, 0x86, 0x06, 0x99,
    0x9c, 0x42, 0x50, 0xf4, 0x91, 0xef, 0x98, 0x7a, 0x33, 0x54, 0x0b, 0x43, 0xed, 0xcf, 0xac, 0x62,
    0xe4, 0xb3, 0x1c, 0xa9, 0xc9, 0x08, 0xe8, 0x95, 0x80, 0xdf, 0x94, 0xfa, 0x75, 0x8f, 0x3f, 0xa6,
    0x47, 0x07, 0xa7, 0xfc, 0xf3, 0x73, 0x17, 0xba, 0x83, 0x59, 0x3c, 0x19, 0xe6, 0x85, 0x4f, 0xa8,
    0x68, 0x6b, 0x81, 0xb2, 0x71, 0x64, 0xda, 0x8b, 0xf8, 0xeb, 0x0f, 0x4b, 0x70, 0x56, 0x9d, 0x35,
    0x1e, 0x24, 0x0e, 0x5e, 0x63, 0x58, 0xd1, 0xa2, 0x25, 0x22, 0x7c, 0x3b, 0x01, 0x21, 0x78, 0x87,
    0xd4, 0x00, 0x46, 0x57, 0x9f, 0xd3, 0x27, 0x52, 0x4c, 0x36, 0x02, 0xe7, 0xa0, 0xc4, 0xc8, 0x9e,
    0xea, 0xbf, 0x8a, 0xd2, 0x40, 0xc7, 0x38, 0xb5, 0xa3, 0xf7, 0xf2, 0xce, 0xf9, 0x61, 0x15, 0xa1,
    0xe0, 0xae, 0x5d, 0xa4, 0x9b, 0x34, 0x1a, 0x55, 0xad, 0x93, 0x32, 0x30, 0xf5, 0x8c, 0xb1, 0xe3,
    0x1d, 0xf6, 0xe2, 0x2e, 0x82, 0x66, 0xca, 0x60, 0xc0, 0x29, 0x23, 0xab, 0x0d, 0x53, 0x4e, 0x6f,
    0xd5, 0xdb, 0x37, 0x45, 0xde, 0xfd, 0x8e, 0x2f, 0x03, 0xff, 0x6a, 0x72, 0x6d, 0x6c, 0x5b, 0x51,
    0x8d, 0x1b, 0xaf, 0x92, 0xbb, 0xdd, 0xbc, 0x7f, 0x11, 0xd9, 0x5c, 0x41, 0x1f, 0x10, 0x5a, 0xd8,
    0x0a, 0xc1, 0x31, 0x88, 0xa5, 0xcd, 0x7b, 0xbd, 0x2d, 0x74, 0xd0, 0x12, 0xb8, 0xe5, 0xb4, 0xb0,
    0x89, 0x69, 0x97, 0x4a, 0x0c, 0x96, 0x77, 0x7e, 0x65, 0xb9, 0xf1, 0x09, 0xc5, 0x6e, 0xc6, 0x84,
    0x18, 0xf0, 0x7d, 0xec, 0x3a, 0xdc, 0x4d, 0x20, 0x79, 0xee, 0x5f, 0x3e, 0xd7, 0xcb, 0x39, 0x48,
};

/* Clause 7.3: the family key FK, and the fixed parameters CK, whose byte j of word i is (4i + j) * 7 modulo 256. */
static const uint32_t FK[4] = {0xa3b1bac6, 0x56aa3350, 0x677d9197, 0xb27022dc};

static uint32_t ck(uint32_t i) {
    return ((28 * i) & 0xff) << 24 | ((28 * i + 7) & 0xff) << 16 | ((28 * i + 14) & 0xff) << 8 | ((28 * i + 21) & 0xff);
}

static uint32_t rotate(uint32_t word, unsigned bits) { return word << bits | word >> (32 - bits); }

static uint32_t load_word(const uint8_t *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

static void store_word(uint8_t *bytes, uint32_t word) {
    bytes[0] = (uint8_t)(word >> 24);
    bytes[1] = (uint8_t)(word >> 16);
    bytes[2] = (uint8_t)(word >> 8);
    bytes[3] = (uint8_t)word;
}

static uint32_t substitute(uint32_t word) {
    return (uint32_t)SBOX[word >> 24] << 24 | (uint32_t)SBOX[word >> 16 & 0xff] << 16 | (uint32_t)SBOX[word >> 8 & 0xff] << 8 |
           SBOX[word & 0xff];
}

static uint32_t cipher_round(uint32_t word) {
    uint32_t s = substitute(word);
    return s ^ rotate(s, 2) ^ rotate(s, 10) ^ rotate(s, 18) ^ rotate(s, 24);
}

static uint32_t key_round(uint32_t word) {
    uint32_t s = substitute(word);
    return s ^ rotate(s, 13) ^ rotate(s, 23);
}

/* One block, round keys first to last, or with step -1 last to first, which is how SM4 decrypts. */
static void crypt(const uint32_t *round_key, int step, const uint8_t in[16], uint8_t out[16]) {
    uint32_t a = load_word(in), b = load_word(in + 4), c = load_word(in + 8), d = load_word(in + 12);
    for (int i = 0; i < YK_SM4_ROUNDS; i += 4) {
        a ^= cipher_round(b ^ c ^ d ^ *round_key), round_key += step;
        b ^= cipher_round(c ^ d ^ a ^ *round_key), round_key += step;
        c ^= cipher_round(d ^ a ^ b ^ *round_key), round_key += step;
        d ^= cipher_round(a ^ b ^ c ^ *round_key), round_key += step;
    }
    store_word(out, d);
    store_word(out + 4, c);
    store_word(out + 8, b);
    store_word(out + 12, a);
}

void yk_sm4_expand(const uint8_t key[16], uint32_t round_keys[32]) {
    uint32_t a = load_word(key) ^ FK[0], b = load_word(key + 4) ^ FK[1];
    uint32_t c = load_word(key + 8) ^ FK[2], d = load_word(key + 12) ^ FK[3];
    for (uint32_t i = 0; i < YK_SM4_ROUNDS; i += 4) {
        round_keys[i] = a ^= key_round(b ^ c ^ d ^ ck(i));
        round_keys[i + 1] = b ^= key_round(c ^ d ^ a ^ ck(i + 1));
        round_keys[i + 2] = c ^= key_round(d ^ a ^ b ^ ck(i + 2));
        round_keys[i + 3] = d ^= key_round(a ^ b ^ c ^ ck(i + 3));
    }
}

void yk_sm4_encrypt(const uint32_t round_keys[32], const uint8_t in[16], uint8_t out[16]) { crypt(round_keys, 1, in, out); }

void yk_sm4_decrypt(const uint32_t round_keys[32], const uint8_t in[16], uint8_t out[16]) {
    crypt(round_keys + YK_SM4_ROUNDS - 1, -1, in, out);
}

void yk_sm4_cbc_mac(const uint32_t round_keys[32], const uint8_t *message, size_t message_bytes, uint8_t mac[16]) {
    uint8_t chain[16] = {0};
    while (message_bytes >= 16) {
        for (size_t i = 0; i < 16; i++) chain[i] ^= message[i];
        crypt(round_keys, 1, chain, chain);
        message += 16;
        message_bytes -= 16;
    }
    for (size_t i = 0; i < message_bytes; i++) chain[i] ^= message[i];
    chain[message_bytes] ^= 0x80; /* padding method 2 is always there: an empty rest becomes a block of its own */
    crypt(round_keys, 1, chain, mac);
}

void yk_sm4_diversify(const uint32_t round_keys[32], const uint8_t factor[8], uint8_t derived[16]) {
    uint8_t block[16];
    for (size_t i = 0; i < 8; i++) {
        block[i] = factor[i];
        block[i + 8] = (uint8_t)~factor[i];
    }
    crypt(round_keys, 1, block, derived);
}

/* ---- a batch, tap by tap ---------------------------------------------------------------------------------------- */

/* The MAC that belongs to the job's tap. Returns 0 where the job is "not proved" whatever its MAC, which then reads zeros. */
static int job_mac(const yk_mac_job *job, uint8_t mac[YK_MAC_BYTES]) {
    memset(mac, 0, YK_MAC_BYTES);
    if (!yk_mac_job_is_provable(job)) return 0;

    uint8_t key[16], chain[16];
    uint32_t round_keys[YK_SM4_ROUNDS];
    size_t message_bytes = YK_MAC_MESSAGE_BYTES_PURSE;
    yk_sm4_diversify(job->parent, job->serial, key);
    yk_sm4_expand(key, round_keys);
    if (job->profile == YK_PROFILE_ACCOUNT) {
        /* 00 x 6 || ATC || 00 x 6 || ~ATC: unlike a diversification, only the ATC is complemented. */
        uint8_t block[16] = {0};
        block[6] = job->atc[0];
        block[7] = job->atc[1];
        block[14] = (uint8_t)~job->atc[0];
        block[15] = (uint8_t)~job->atc[1];
        yk_sm4_encrypt(round_keys, block, key);
        yk_sm4_expand(key, round_keys);
        message_bytes = YK_MAC_MESSAGE_BYTES_ACCOUNT;
    }
    yk_sm4_cbc_mac(round_keys, job->message, message_bytes, chain);
    memcpy(mac, chain, YK_MAC_BYTES);

    yk_wipe(key, sizeof key);
    yk_wipe(round_keys, sizeof round_keys);
    yk_wipe(chain, sizeof chain);
    return 1;
}

void yk_mac_batch_generic(yk_mac_job *jobs, size_t n) {
    for (size_t i = 0; i < n; i++) job_mac(&jobs[i], jobs[i].mac);
}

void yk_mac_verify_batch_generic(const yk_mac_job *jobs, size_t n, uint8_t *proved) {
    for (size_t i = 0; i < n; i++) {
        uint8_t mac[YK_MAC_BYTES];
        uint32_t provable = (uint32_t)job_mac(&jobs[i], mac);
        /* The difference of all four bytes is gathered before any question is asked of it. */
        uint32_t difference = load_word(mac) ^ load_word(jobs[i].mac);
        uint32_t equal = 1 ^ ((difference | (0 - difference)) >> 31);
        proved[i] = (uint8_t)(equal & provable);
        yk_wipe(mac, sizeof mac); /* the right MAC of a wrong tap is a secret as well */
    }
}
