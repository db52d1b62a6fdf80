/* A key device in software, for tests: the calls of GM/T 0018 that core/keys/sdf.py makes, with real SM4 (ext/sm4_generic.c) and
 * real SM2 (libcrypto), and faults that a test can order. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "sm4.h"

enum {
    SDR_OK = 0, COMMFAIL = 0x01000003, OPENSESSION = 0x01000006, PARDENY = 0x01000007, KEYNOTEXIST = 0x01000008,
    ALGNOTSUPPORT = 0x01000009, SKOPERR = 0x0100000c, SYMOPERR = 0x0100000f, KEYERR = 0x01000015,
    ECB = 0x401, CBC = 0x402, MAC = 0x410, KEKS = 4, PAIRS = 4,
};

typedef struct { unsigned char issuer[40], name[16], serial[16]; unsigned version, standard, asym[2], sym, hash, buffer; } DEVICEINFO;
typedef struct { unsigned bits; unsigned char x[64], y[64]; } ECCrefPublicKey;
typedef struct { unsigned char r[64], s[64]; } ECCSignature;
typedef struct { int epoch; } device;
typedef struct { int epoch; unsigned rights; } session;
typedef struct { session *of; uint32_t round_keys[32]; } key;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint8_t keks[KEKS][16];
static void *pairs[PAIRS];
static int session_epoch = 1, device_epoch = 1, live_keys, live_sessions, opened;
static char failing[64];
static int failing_code, failing_times;

void yk_wipe(void *memory, size_t bytes) { memset(memory, 0, bytes); } /* of sm4_path.c, which is not needed here */

/* ---- what tests order ---- */

void test_set_kek(unsigned index, const uint8_t value[16]) { memcpy(keks[index], value, 16); }
void test_fail(const char *call, int code, int times) {
    strncpy(failing, call, sizeof failing - 1);
    failing_code = code;
    failing_times = times;
}
void test_lose_sessions(void) { session_epoch++; }
void test_lose_device(void) { session_epoch++, device_epoch++; }
int test_live_keys(void) { return live_keys; }
int test_live_sessions(void) { return live_sessions; }
int test_opened(void) { return opened; }

/* ---- libcrypto, without its headers ---- */

static void *(*new_from_name)(void *, const char *, const char *);
static void *(*context_new)(void *, void *);
static int (*keygen_init)(void *), (*keygen)(void *, void **), (*sign_init)(void *);
static int (*sign)(void *, unsigned char *, size_t *, const unsigned char *, size_t);
static int (*write_public)(void *, unsigned char **);
static void *(*read_private)(void *, const unsigned char **, long);
static void (*context_free)(void *);

static int open_libcrypto(void) {
    void *library = dlopen("libcrypto.so.3", RTLD_NOW);
    struct { const char *name; void *function; } wanted[] = {
        {"EVP_PKEY_CTX_new_from_name", &new_from_name}, {"EVP_PKEY_CTX_new", &context_new}, {"EVP_PKEY_keygen_init", &keygen_init},
        {"EVP_PKEY_keygen", &keygen}, {"EVP_PKEY_sign_init", &sign_init}, {"EVP_PKEY_sign", &sign},
        {"i2d_PUBKEY", &write_public}, {"d2i_AutoPrivateKey", &read_private}, {"EVP_PKEY_CTX_free", &context_free},
    };
    for (size_t i = 0; library && i < sizeof wanted / sizeof *wanted; i++) {
        void *found = dlsym(library, wanted[i].name);
        if (!found) return -1;
        memcpy(wanted[i].function, &found, sizeof found);
    }
    return library ? 0 : -1;
}

static void *pair(unsigned index) {
    pthread_mutex_lock(&lock);
    const char *given = getenv("SDF_DEVICE_PAIR"); /* DER in hexadecimal: one pair for all indexes, the same in each process */
    if (index < PAIRS && index && !pairs[index] && (keygen || open_libcrypto() == 0) && given) {
        static unsigned char der[512];
        unsigned n = 0;
        for (unsigned byte; n < sizeof der && sscanf(given + 2 * n, "%2x", &byte) == 1; n++) der[n] = (unsigned char)byte;
        const unsigned char *start = der;
        pairs[index] = read_private(NULL, &start, n);
    } else if (index < PAIRS && index && !pairs[index] && keygen) {
        void *context = new_from_name(NULL, "SM2", NULL);
        keygen_init(context);
        keygen(context, &pairs[index]);
        context_free(context);
    }
    pthread_mutex_unlock(&lock);
    return index < PAIRS ? pairs[index] : NULL;
}

/* A file whose being there makes every call fail: for a server in another process. */
static int is_away(void) {
    const char *path = getenv("SDF_DEVICE_AWAY");
    return path && access(path, F_OK) == 0;
}

static int enter(const char *call, void *handle) {
    if (is_away()) return COMMFAIL;
    if (failing_times > 0 && strcmp(call, failing) == 0) {
        failing_times--;
        return failing_code;
    }
    return handle && ((session *)handle)->epoch != session_epoch ? COMMFAIL : SDR_OK;
}
#define ENTER(handle) do { int code = enter(__func__, handle); if (code) return code; } while (0)

/* ---- GM/T 0018 ---- */

int SDF_OpenDevice(void **out) {
    ENTER(NULL);
    device *made = calloc(1, sizeof *made);
    made->epoch = device_epoch;
    opened++;
    *out = made;
    return SDR_OK;
}
int SDF_CloseDevice(void *handle) { free(handle); return SDR_OK; }
int SDF_OpenSession(void *handle, void **out) {
    ENTER(NULL);
    if (((device *)handle)->epoch != device_epoch) return OPENSESSION;
    session *made = calloc(1, sizeof *made);
    made->epoch = session_epoch;
    __atomic_add_fetch(&live_sessions, 1, __ATOMIC_RELAXED);
    *out = made;
    return SDR_OK;
}
int SDF_CloseSession(void *handle) {
    __atomic_sub_fetch(&live_sessions, 1, __ATOMIC_RELAXED);
    free(handle);
    return SDR_OK;
}
int SDF_GetDeviceInfo(void *handle, DEVICEINFO *out) {
    ENTER(handle);
    memset(out, 0, sizeof *out);
    strcpy((char *)out->issuer, "yikatong tests");
    strcpy((char *)out->name, "software");
    strcpy((char *)out->serial, "0001");
    return SDR_OK;
}
int SDF_GenerateRandom(void *handle, unsigned n, unsigned char *out) {
    ENTER(handle);
    return getrandom(out, n, 0) == (ssize_t)n ? SDR_OK : COMMFAIL;
}
int SDF_GetPrivateKeyAccessRight(void *handle, unsigned index, unsigned char *pin, unsigned n) {
    ENTER(handle);
    if (n != 8 || memcmp(pin, "87654321", 8) != 0) return PARDENY;
    ((session *)handle)->rights |= 1u << index;
    return SDR_OK;
}
int SDF_ReleasePrivateKeyAccessRight(void *handle, unsigned index) {
    ((session *)handle)->rights &= ~(1u << index);
    return SDR_OK;
}
int SDF_ExportSignPublicKey_ECC(void *handle, unsigned index, ECCrefPublicKey *out) {
    ENTER(handle);
    void *keys = pair(index);
    unsigned char *der = NULL;
    if (!keys) return KEYNOTEXIST;
    int n = write_public(keys, &der);
    memset(out, 0, sizeof *out);
    out->bits = 256;
    memcpy(out->x + 32, der + n - 64, 32);
    memcpy(out->y + 32, der + n - 32, 32);
    return SDR_OK;
}
static const unsigned char *number(const unsigned char *der, unsigned char out[64]) {
    unsigned n = der[1];
    const unsigned char *start = der + 2, *end = start + n;
    for (; n > 32; n--) start++;
    memset(out, 0, 64);
    memcpy(out + 64 - n, start, n);
    return end;
}
int SDF_InternalSign_ECC(void *handle, unsigned index, unsigned char *data, unsigned n, ECCSignature *out) {
    ENTER(handle);
    unsigned char der[128];
    size_t bytes = sizeof der;
    void *keys = pair(index);
    if (!keys) return KEYNOTEXIST;
    if (!(((session *)handle)->rights & 1u << index)) return PARDENY;
    void *context = context_new(keys, NULL);
    int done = n == 32 && sign_init(context) == 1 && sign(context, der, &bytes, data, n) == 1;
    context_free(context);
    if (!done) return SKOPERR;
    number(number(der + 2, out->r), out->s);
    return SDR_OK;
}

static int add_key(session *of, const uint8_t value[16], void **out) {
    key *made = calloc(1, sizeof *made);
    made->of = of;
    yk_sm4_expand(value, made->round_keys);
    __atomic_add_fetch(&live_keys, 1, __ATOMIC_RELAXED);
    *out = made;
    return SDR_OK;
}
static void wrap(unsigned kek, const uint8_t in[16], uint8_t out[16], int back) {
    uint32_t round_keys[32];
    yk_sm4_expand(keks[kek], round_keys);
    if (back) yk_sm4_decrypt(round_keys, in, out);
    else yk_sm4_encrypt(round_keys, in, out);
}
int SDF_GenerateKeyWithKEK(void *handle, unsigned bits, unsigned algorithm, unsigned kek, unsigned char *out, unsigned *n, void **made) {
    ENTER(handle);
    uint8_t value[16];
    if (bits != 128 || algorithm != ECB) return ALGNOTSUPPORT;
    if (kek >= KEKS) return KEYNOTEXIST;
    if (getrandom(value, 16, 0) != 16) return COMMFAIL;
    wrap(kek, value, out, 0);
    *n = 16;
    return add_key(handle, value, made);
}
int SDF_ImportKeyWithKEK(void *handle, unsigned algorithm, unsigned kek, unsigned char *wrapped, unsigned n, void **made) {
    ENTER(handle);
    uint8_t value[16];
    if (algorithm != ECB) return ALGNOTSUPPORT;
    if (kek >= KEKS) return KEYNOTEXIST;
    if (n != 16) return KEYERR;
    wrap(kek, wrapped, value, 1);
    return add_key(handle, value, made);
}
int SDF_ImportKey(void *handle, unsigned char *value, unsigned n, void **made) {
    ENTER(handle);
    return n == 16 ? add_key(handle, value, made) : KEYERR;
}
int SDF_DestroyKey(void *handle, void *which) {
    ENTER(handle);
    __atomic_sub_fetch(&live_keys, 1, __ATOMIC_RELAXED);
    free(which);
    return SDR_OK;
}

static int transform(session *of, key *with, unsigned algorithm, uint8_t *iv, const uint8_t *in, unsigned n, uint8_t *out, int back) {
    if (with->of != of) return KEYNOTEXIST;
    if (algorithm != ECB && algorithm != CBC) return ALGNOTSUPPORT;
    if (n % 16 || (algorithm == CBC && !iv)) return SYMOPERR;
    for (unsigned at = 0; at < n; at += 16) {
        uint8_t block[16], came[16];
        memcpy(came, in + at, 16);
        memcpy(block, came, 16);
        for (int i = 0; algorithm == CBC && !back && i < 16; i++) block[i] ^= iv[i];
        if (back) yk_sm4_decrypt(with->round_keys, block, out + at);
        else yk_sm4_encrypt(with->round_keys, block, out + at);
        for (int i = 0; algorithm == CBC && back && i < 16; i++) out[at + i] ^= iv[i];
        if (algorithm == CBC) memcpy(iv, back ? came : out + at, 16);
    }
    return SDR_OK;
}
int SDF_Encrypt(void *handle, void *with, unsigned algorithm, unsigned char *iv, unsigned char *in, unsigned n, unsigned char *out,
                unsigned *made) {
    ENTER(handle);
    *made = n;
    return transform(handle, with, algorithm, iv, in, n, out, 0);
}
int SDF_Decrypt(void *handle, void *with, unsigned algorithm, unsigned char *iv, unsigned char *in, unsigned n, unsigned char *out,
                unsigned *made) {
    ENTER(handle);
    *made = n;
    return transform(handle, with, algorithm, iv, in, n, out, 1);
}
int SDF_CalculateMAC(void *handle, void *with, unsigned algorithm, unsigned char *iv, unsigned char *in, unsigned n, unsigned char *out,
                     unsigned *made) {
    ENTER(handle);
    key *k = with;
    uint8_t state[16];
    if (algorithm != MAC) return ALGNOTSUPPORT;
    if (k->of != handle) return KEYNOTEXIST;
    if (n % 16 || n == 0) return SYMOPERR; /* it does not pad */
    memcpy(state, iv, 16);
    for (unsigned at = 0; at < n; at += 16) {
        for (int i = 0; i < 16; i++) state[i] ^= in[at + i];
        yk_sm4_encrypt(k->round_keys, state, state);
    }
    memcpy(out, state, 16);
    *made = 16;
    return SDR_OK;
}
