/* What a held key does beside taps: SM4-GCM (RFC 8998; NIST SP 800-38D with SM4) and HMAC-SM3 (GB/T 15852.2), a message at a
 * time, for stored secrets: short messages, so plain C in constant time rather than lanes and tables. */
#ifndef YK_SM4_GCM_H
#define YK_SM4_GCM_H

#include <stddef.h>
#include <stdint.h>

enum { YK_GCM_NONCE_BYTES = 12, YK_GCM_TAG_BYTES = 16, YK_HMAC_BYTES = 32 };

/* Encrypt `bytes` of `in` to `out` (they may be the same) and write the tag. */
void yk_sm4_gcm_seal(const uint32_t round_keys[32], const uint8_t nonce[YK_GCM_NONCE_BYTES], const uint8_t *associated,
                     size_t associated_bytes, const uint8_t *in, size_t bytes, uint8_t *out, uint8_t tag[YK_GCM_TAG_BYTES]);

/* The way back: 0, or -1 for a wrong tag, and then nothing was written to `out`. Tags are compared in constant time. */
int yk_sm4_gcm_open(const uint32_t round_keys[32], const uint8_t nonce[YK_GCM_NONCE_BYTES], const uint8_t *associated,
                    size_t associated_bytes, const uint8_t *in, size_t bytes, uint8_t *out, const uint8_t tag[YK_GCM_TAG_BYTES]);

/* HMAC-SM3 under a key of at most 64 bytes. 0, or -1 where there is no memory. */
int yk_sm3_hmac(const uint8_t *key, size_t key_bytes, const uint8_t *message, size_t bytes, uint8_t mac[YK_HMAC_BYTES]);

#endif
