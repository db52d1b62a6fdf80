#include "openssl_evp.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* OpenSSL's headers are not needed to build: these few prototypes have not changed since 1.1.1, the first with SM4. */
typedef struct evp_cipher_ctx_st EVP_CIPHER_CTX;
typedef struct evp_cipher_st EVP_CIPHER;
typedef struct engine_st ENGINE;

static EVP_CIPHER_CTX *(*ctx_new)(void);
static void (*ctx_free)(EVP_CIPHER_CTX *);
static int (*encrypt_init)(EVP_CIPHER_CTX *, const EVP_CIPHER *, ENGINE *, const unsigned char *key, const unsigned char *iv);
static int (*encrypt_update)(EVP_CIPHER_CTX *, unsigned char *out, int *out_bytes, const unsigned char *in, int in_bytes);
static int (*set_padding)(EVP_CIPHER_CTX *, int padding);
static const EVP_CIPHER *(*sm4_ecb)(void);
static const EVP_CIPHER *(*sm4_cbc)(void);
static void (*cleanse)(void *, size_t);
static const char *(*version)(int);

const char *openssl_mac_open(void) {
    static const char *const NAMES[] = {"libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.so"};
    static void *library;
    for (size_t i = 0; library == NULL && i < sizeof NAMES / sizeof NAMES[0]; i++) library = dlopen(NAMES[i], RTLD_NOW);
    if (library == NULL) return "libcrypto.so.3 (OpenSSL)";

    /* POSIX promises that a function pointer may be read out of dlsym's void pointer, which ISO C does not. */
    struct {
        const char *name;
        void *function;
    } wanted[] = {
        {"EVP_CIPHER_CTX_new", &ctx_new},
        {"EVP_CIPHER_CTX_free", &ctx_free},
        {"EVP_EncryptInit_ex", &encrypt_init},
        {"EVP_EncryptUpdate", &encrypt_update},
        {"EVP_CIPHER_CTX_set_padding", &set_padding},
        {"EVP_sm4_ecb", &sm4_ecb},
        {"EVP_sm4_cbc", &sm4_cbc},
        {"OPENSSL_cleanse", &cleanse},
        {"OpenSSL_version", &version},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        void *found = dlsym(library, wanted[i].name);
        if (found == NULL) return wanted[i].name;
        memcpy(wanted[i].function, &found, sizeof found);
    }
    return NULL;
}

const char *openssl_mac_version(void) { return version(0); }

/* Both contexts live as long as the parent: ciphers are looked up once, the parent's schedule is made once, and a card costs
 * one change of key and two calls. */
struct openssl_mac {
    EVP_CIPHER_CTX *parent; /* ECB under the parent key */
    EVP_CIPHER_CTX *card;   /* CBC, rekeyed for each card */
};

openssl_mac *openssl_mac_new(const uint8_t parent[16]) {
    static const uint8_t zero[16];
    openssl_mac *state = calloc(1, sizeof *state);
    if (state == NULL) return NULL;
    state->parent = ctx_new();
    state->card = ctx_new();
    if (state->parent != NULL && state->card != NULL && encrypt_init(state->parent, sm4_ecb(), NULL, parent, NULL) == 1 &&
        encrypt_init(state->card, sm4_cbc(), NULL, zero, zero) == 1) {
        set_padding(state->parent, 0);
        set_padding(state->card, 0);
        return state;
    }
    openssl_mac_free(state);
    return NULL;
}

void openssl_mac_free(openssl_mac *state) {
    if (state == NULL) return;
    ctx_free(state->parent);
    ctx_free(state->card);
    free(state);
}

int openssl_mac_tac(openssl_mac *state, const uint8_t serial[8], const uint8_t message[22], uint8_t mac[4]) {
    static const uint8_t zero[16];
    uint8_t factor[16], key[16], padded[32] = {0}, chained[32];
    int n;
    for (int i = 0; i < 8; i++) {
        factor[i] = serial[i];
        factor[i + 8] = (uint8_t)~serial[i];
    }
    memcpy(padded, message, 22);
    padded[22] = 0x80;

    int done = encrypt_update(state->parent, key, &n, factor, 16) == 1 &&
               encrypt_init(state->card, NULL, NULL, key, zero) == 1 &&
               encrypt_update(state->card, chained, &n, padded, 32) == 1 && n == 32;
    memcpy(mac, chained + 16, 4);
    cleanse(key, sizeof key);
    return done;
}
