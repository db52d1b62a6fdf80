/* SM4 (GB/T 32907), one block and many taps at a time.
 *
 * The one-block functions are the generic C path. The work that matters is yk_mac_batch: it derives each tap's card key,
 * its session key where the profile has one, and its MAC, with one tap in every SIMD lane and a key of its own in each.
 * Which path runs is decided once (sm4_path.c); every path gives the same bytes. */
#ifndef YK_SM4_H
#define YK_SM4_H

#include <stddef.h>
#include <stdint.h>

enum { YK_SM4_ROUNDS = 32, YK_SM4_BLOCK_BYTES = 16, YK_MAC_BYTES = 4 };
enum { YK_PROFILE_PURSE = 1, YK_PROFILE_ACCOUNT = 2 };

/* One tap to prove. Numbers inside `serial`, `message` and `atc` are as profile.md gives them, big-endian bytes. */
typedef struct yk_mac_job {
    const uint32_t *parent; /* 32 round keys of the key above the card's (the issuer's, or the master with one level);
                             * NULL: there is no such key, the answer is "not proved" and its MAC reads as zeros */
    uint8_t serial[8];      /* card serial, packed BCD: the diversification factor F of SM4(K, F || ~F) */
    uint8_t message[32];    /* profile 1: the TAC's 22 bytes; profile 2: all 32 */
    uint8_t atc[2];         /* profile 2: the session key's factor */
    uint8_t profile;        /* YK_PROFILE_PURSE or YK_PROFILE_ACCOUNT; anything else is "not proved" */
    uint8_t reserved;
    uint8_t mac[YK_MAC_BYTES]; /* the MAC that came with the tap; yk_mac_batch writes it, yk_mac_verify_batch compares it */
} yk_mac_job;               /* 56 bytes */

void yk_sm4_expand(const uint8_t key[16], uint32_t round_keys[32]);
void yk_sm4_encrypt(const uint32_t round_keys[32], const uint8_t in[16], uint8_t out[16]);
void yk_sm4_decrypt(const uint32_t round_keys[32], const uint8_t in[16], uint8_t out[16]);

/* MAC of GB/T 15852.1 algorithm 1, padding method 2, zero IV; the full block (callers take the leftmost 4 bytes). */
void yk_sm4_cbc_mac(const uint32_t round_keys[32], const uint8_t *message, size_t message_bytes, uint8_t mac[16]);

/* SM4(K, F || ~F): one level of diversification. */
void yk_sm4_diversify(const uint32_t round_keys[32], const uint8_t factor[8], uint8_t derived[16]);

/* Compute jobs[i].mac for n jobs (the simulated card's side). */
void yk_mac_batch(yk_mac_job *jobs, size_t n);

/* proved[i] = 1 where jobs[i].mac is right, else 0: compared in constant time, jobs[i].mac is left as it came.
 * No key that was derived on the way outlives the call. */
void yk_mac_verify_batch(const yk_mac_job *jobs, size_t n, uint8_t *proved);

/* The path in use: "generic", "avx2-aesni", "avx2-vaes", "avx512-gfni". The fastest that can run, unless YIKATONG_SM4_PATH or
 * yk_sm4_path_force says another. NULL where the environment names one that this processor (or this build) cannot run: a
 * module asks at import and fails then, because the batch calls abort rather than fall back. */
const char *yk_sm4_path(void);

/* Returns 0, or -1 when that path cannot run here or there is none of that name. */
int yk_sm4_path_force(const char *name);

/* The name of the i-th path that can run here, fastest first; NULL past the last. */
const char *yk_sm4_path_runnable(size_t i);

/* Overwrite memory in a way that the compiler may not leave out. */
void yk_wipe(void *memory, size_t bytes);

#endif
