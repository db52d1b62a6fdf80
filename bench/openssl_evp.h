/* The baseline of bench mac: profile-1 taps proved one at a time through OpenSSL's EVP, as its careful user would do it. */
#ifndef YK_OPENSSL_MAC_H
#define YK_OPENSSL_MAC_H

#include <stddef.h>
#include <stdint.h>

/* Load libcrypto at run time. Returns NULL, or what is missing. */
const char *openssl_mac_open(void);

/* OpenSSL's own name and version; call openssl_mac_open first. */
const char *openssl_mac_version(void);

typedef struct openssl_mac openssl_mac;

/* A context that derives card keys under one parent key of 16 bytes and makes MACs under them; NULL if OpenSSL refuses. */
openssl_mac *openssl_mac_new(const uint8_t parent[16]);
void openssl_mac_free(openssl_mac *state);

/* The TAC over 22 bytes under SM4(parent, serial || ~serial). Returns 1, or 0 if OpenSSL refuses. */
int openssl_mac_tac(openssl_mac *state, const uint8_t serial[8], const uint8_t message[22], uint8_t mac[4]);

#endif
