#include "sm2_openssl.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* OpenSSL's headers are not needed to build: these prototypes hold for all of OpenSSL 3. */
typedef struct bignum_st BIGNUM;
typedef struct bignum_ctx BN_CTX;
typedef struct bio_st BIO;
typedef struct bio_method_st BIO_METHOD;
typedef struct ec_group_st EC_GROUP;
typedef struct ec_point_st EC_POINT;
typedef struct evp_md_ctx_st EVP_MD_CTX;
typedef struct evp_md_st EVP_MD;
typedef struct evp_pkey_ctx_st EVP_PKEY_CTX;
typedef struct evp_pkey_st EVP_PKEY;

enum { NID_SM2 = 1172, COMPRESSED = 2, UNCOMPRESSED = 4, HASH = 32 };

#define FUNCTIONS(X)                                                                                                            \
    X(BIGNUM *, BN_new, (void))                                                                                                 \
    X(void, BN_free, (BIGNUM *))                                                                                                \
    X(BIGNUM *, BN_bin2bn, (const unsigned char *, int, BIGNUM *))                                                              \
    X(int, BN_cmp, (const BIGNUM *, const BIGNUM *))                                                                            \
    X(int, BN_is_zero, (const BIGNUM *))                                                                                        \
    X(int, BN_mod_add, (BIGNUM *, const BIGNUM *, const BIGNUM *, const BIGNUM *, BN_CTX *))                                    \
    X(BN_CTX *, BN_CTX_new, (void))                                                                                             \
    X(void, BN_CTX_free, (BN_CTX *))                                                                                            \
    X(EC_GROUP *, EC_GROUP_new_by_curve_name, (int))                                                                            \
    X(const BIGNUM *, EC_GROUP_get0_order, (const EC_GROUP *))                                                                  \
    X(EC_POINT *, EC_POINT_new, (const EC_GROUP *))                                                                             \
    X(void, EC_POINT_free, (EC_POINT *))                                                                                        \
    X(int, EC_POINT_oct2point, (const EC_GROUP *, EC_POINT *, const unsigned char *, size_t, BN_CTX *))                         \
    X(size_t, EC_POINT_point2oct, (const EC_GROUP *, const EC_POINT *, int, unsigned char *, size_t, BN_CTX *))                 \
    X(int, EC_POINT_is_at_infinity, (const EC_GROUP *, const EC_POINT *))                                                       \
    X(int, EC_POINT_mul, (const EC_GROUP *, EC_POINT *, const BIGNUM *, const EC_POINT *, const BIGNUM *, BN_CTX *))            \
    X(int, EC_POINT_get_affine_coordinates, (const EC_GROUP *, const EC_POINT *, BIGNUM *, BIGNUM *, BN_CTX *))                 \
    X(const EVP_MD *, EVP_sm3, (void))                                                                                          \
    X(EVP_MD_CTX *, EVP_MD_CTX_new, (void))                                                                                     \
    X(void, EVP_MD_CTX_free, (EVP_MD_CTX *))                                                                                    \
    X(int, EVP_DigestInit_ex, (EVP_MD_CTX *, const EVP_MD *, void *))                                                           \
    X(int, EVP_DigestUpdate, (EVP_MD_CTX *, const void *, size_t))                                                              \
    X(int, EVP_DigestFinal_ex, (EVP_MD_CTX *, unsigned char *, unsigned int *))                                                 \
    X(int, EVP_DigestSignInit, (EVP_MD_CTX *, EVP_PKEY_CTX **, const EVP_MD *, void *, EVP_PKEY *))                             \
    X(int, EVP_DigestSign, (EVP_MD_CTX *, unsigned char *, size_t *, const unsigned char *, size_t))                            \
    X(int, EVP_DigestVerifyInit, (EVP_MD_CTX *, EVP_PKEY_CTX **, const EVP_MD *, void *, EVP_PKEY *))                           \
    X(int, EVP_DigestVerify, (EVP_MD_CTX *, const unsigned char *, size_t, const unsigned char *, size_t))                      \
    X(int, EVP_PKEY_CTX_set1_id, (EVP_PKEY_CTX *, const void *, int))                                                           \
    X(EVP_PKEY_CTX *, EVP_PKEY_CTX_new_from_name, (void *, const char *, const char *))                                         \
    X(void, EVP_PKEY_CTX_free, (EVP_PKEY_CTX *))                                                                                \
    X(int, EVP_PKEY_keygen_init, (EVP_PKEY_CTX *))                                                                              \
    X(int, EVP_PKEY_keygen, (EVP_PKEY_CTX *, EVP_PKEY **))                                                                      \
    X(int, EVP_PKEY_is_a, (const EVP_PKEY *, const char *))                                                                     \
    X(int, EVP_PKEY_get_octet_string_param, (const EVP_PKEY *, const char *, unsigned char *, size_t, size_t *))                \
    X(void, EVP_PKEY_free, (EVP_PKEY *))                                                                                        \
    X(BIO *, BIO_new, (const BIO_METHOD *))                                                                                     \
    X(const BIO_METHOD *, BIO_s_secmem, (void))                                                                                 \
    X(BIO *, BIO_new_mem_buf, (const void *, int))                                                                              \
    X(int, BIO_read, (BIO *, void *, int))                                                                                      \
    X(int, BIO_free, (BIO *))                                                                                                   \
    X(EVP_PKEY *, PEM_read_bio_PrivateKey, (BIO *, EVP_PKEY **, void *, void *))                                                \
    X(EVP_PKEY *, PEM_read_bio_PUBKEY, (BIO *, EVP_PKEY **, void *, void *))                                                    \
    X(int, PEM_write_bio_PrivateKey, (BIO *, const EVP_PKEY *, const void *, const unsigned char *, int, void *, void *))       \
    X(void, ERR_clear_error, (void))                                                                                            \
    X(void, OPENSSL_cleanse, (void *, size_t))                                                                                  \
    X(const char *, OpenSSL_version, (int))

#define DECLARE(result, name, arguments) static result(*name) arguments;
FUNCTIONS(DECLARE)

/* Deprecated, and not in every build: a table of the generator's multiples, which makes verifying a fifth faster. */
static int (*precompute_mult)(EC_GROUP *, BN_CTX *);

static EC_GROUP *group;

struct yk_sm2_public {
    EC_POINT *point;
    uint8_t encoded[YK_SM2_POINT_BYTES];
};

struct yk_sm2_private {
    EVP_PKEY *key;
};

const char *yk_sm2_open(void) {
    static const char *const NAMES[] = {"libcrypto.so.3", "libcrypto.3.dylib", "libcrypto.so"};
    static void *library;
    if (group) return NULL;
    for (size_t i = 0; library == NULL && i < sizeof NAMES / sizeof NAMES[0]; i++) library = dlopen(NAMES[i], RTLD_NOW);
    if (library == NULL) return "libcrypto.so.3 (OpenSSL 3)";

    /* POSIX promises that a function pointer may be read out of dlsym's void pointer, which ISO C does not. */
    struct {
        const char *name;
        void *function;
    } wanted[] = {
#define WANT(result, name, arguments) {#name, &name},
        FUNCTIONS(WANT)};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        void *found = dlsym(library, wanted[i].name);
        if (found == NULL) return wanted[i].name;
        memcpy(wanted[i].function, &found, sizeof found);
    }
    EC_GROUP *made = EC_GROUP_new_by_curve_name(NID_SM2);
    if (made == NULL) return "SM2 in libcrypto";
    void *found = dlsym(library, "EC_GROUP_precompute_mult");
    memcpy(&precompute_mult, &found, sizeof found);
    if (precompute_mult && precompute_mult(made, NULL) != 1) ERR_clear_error();
    group = made;
    return NULL;
}

const char *yk_sm2_version(void) { return OpenSSL_version(0); }

void yk_sm2_cleanse(void *bytes, size_t n) { OPENSSL_cleanse(bytes, n); }

/* ---- public keys ---- */

yk_sm2_public *yk_sm2_public_of_point(const uint8_t *point, size_t n) {
    int form = n == YK_SM2_COMPRESSED_BYTES ? point[0] == 2 || point[0] == 3 : n == YK_SM2_POINT_BYTES && point[0] == 4;
    yk_sm2_public *key = form ? malloc(sizeof *key) : NULL;
    if (!key) return NULL;
    key->point = EC_POINT_new(group);
    if (key->point && EC_POINT_oct2point(group, key->point, point, n, NULL) == 1 && /* which checks that it is on the curve */
        EC_POINT_point2oct(group, key->point, UNCOMPRESSED, key->encoded, sizeof key->encoded, NULL) == sizeof key->encoded)
        return key;
    ERR_clear_error();
    yk_sm2_public_free(key);
    return NULL;
}

void yk_sm2_public_free(yk_sm2_public *key) {
    if (!key) return;
    EC_POINT_free(key->point);
    free(key);
}

void yk_sm2_public_point(const yk_sm2_public *key, int compressed, uint8_t *out) {
    memcpy(out, key->encoded, compressed ? YK_SM2_COMPRESSED_BYTES : YK_SM2_POINT_BYTES);
    if (compressed) out[0] = (uint8_t)(2 + (key->encoded[YK_SM2_POINT_BYTES - 1] & 1));
}

static int point_of(const EVP_PKEY *key, uint8_t point[YK_SM2_POINT_BYTES]) {
    uint8_t encoded[YK_SM2_POINT_BYTES];
    size_t n = 0;
    if (EVP_PKEY_get_octet_string_param(key, "encoded-pub-key", encoded, sizeof encoded, &n) != 1 &&
        EVP_PKEY_get_octet_string_param(key, "pub", encoded, sizeof encoded, &n) != 1)
        return 0;
    yk_sm2_public *decoded = yk_sm2_public_of_point(encoded, n);
    if (!decoded) return 0;
    yk_sm2_public_point(decoded, 0, point);
    yk_sm2_public_free(decoded);
    return 1;
}

static EVP_PKEY *read_pem(const char *pem, size_t n, EVP_PKEY *(*reader)(BIO *, EVP_PKEY **, void *, void *), int *error) {
    BIO *bio = BIO_new_mem_buf(pem, (int)n);
    EVP_PKEY *key = bio ? reader(bio, NULL, NULL, (void *)"") : NULL; /* a passphrase is never asked for at a terminal */
    if (bio) BIO_free(bio);
    ERR_clear_error();
    *error = key ? 0 : -1;
    if (key && EVP_PKEY_is_a(key, "SM2") != 1) {
        EVP_PKEY_free(key);
        key = NULL;
        *error = -2;
    }
    return key;
}

int yk_sm2_point_of_pem(const char *pem, size_t n, uint8_t point[YK_SM2_POINT_BYTES]) {
    int error;
    EVP_PKEY *key = read_pem(pem, n, PEM_read_bio_PUBKEY, &error);
    if (!key) return error;
    error = point_of(key, point) ? 0 : -1;
    EVP_PKEY_free(key);
    ERR_clear_error();
    return error;
}

/* ---- verifying ---- */

/* a ‖ b ‖ xG ‖ yG of the curve (GB/T 32918.5). */
static const uint8_t CURVE[128] = {
    0xff, 0xff, 0xff, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfc,
    0x28, 0xe9, 0xfa, 0x9e, 0x9d, 0x9f, 0x5e, 0x34, 0x4d, 0x5a, 0x9e, 0x4b, 0xcf, 0x65, 0x09, 0xa7,
    0xf3, 0x97, 0x89, 0xf5, 0x15, 0xab, 0x8f, 0x92, 0xdd, 0xbc, 0xbd, 0x41, 0x4d, 0x94, 0x0e, 0x93,
    0x32, 0xc4, 0xae, 0x2c, 0x1f, 0x19, 0x81, 0x19, 0x5f, 0x99, 0x04, 0x46, 0x6a, 0x39, 0xc9, 0x94,
    0x8f, 0xe3, 0x0b, 0xbf, 0xf2, 0x66, 0x0b, 0xe1, 0x71, 0x5a, 0x45, 0x89, 0x33, 0x4c, 0x74, 0xc7,
    0xbc, 0x37, 0x36, 0xa2, 0xf4, 0xf6, 0x77, 0x9c, 0x59, 0xbd, 0xce, 0xe3, 0x6b, 0x69, 0x21, 0x53,
    0xd0, 0xa9, 0x87, 0x7c, 0xc6, 0x2a, 0x47, 0x40, 0x02, 0xdf, 0x32, 0xe5, 0x21, 0x39, 0xf0, 0xa0,
};

/* e = SM3(Z ‖ M), Z = SM3(ENTL ‖ ID ‖ a ‖ b ‖ xG ‖ yG ‖ xA ‖ yA) (GB/T 32918.2, 5.5 and 7.1). */
static int digest(const uint8_t *point, const uint8_t *id, size_t id_bytes, const uint8_t *message, size_t message_bytes,
                  uint8_t out[HASH]) {
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    uint8_t entl[2] = {(uint8_t)(id_bytes * 8 >> 8), (uint8_t)(id_bytes * 8)};
    int done = context && EVP_DigestInit_ex(context, EVP_sm3(), NULL) == 1 && EVP_DigestUpdate(context, entl, 2) == 1 &&
               EVP_DigestUpdate(context, id, id_bytes) == 1 && EVP_DigestUpdate(context, CURVE, sizeof CURVE) == 1 &&
               EVP_DigestUpdate(context, point + 1, 64) == 1 && EVP_DigestFinal_ex(context, out, NULL) == 1 &&
               EVP_DigestInit_ex(context, EVP_sm3(), NULL) == 1 && EVP_DigestUpdate(context, out, HASH) == 1 &&
               EVP_DigestUpdate(context, message, message_bytes) == 1 && EVP_DigestFinal_ex(context, out, NULL) == 1;
    EVP_MD_CTX_free(context);
    return done;
}

/* 1 ≤ number < n, the curve's order. */
static int in_range(const BIGNUM *number) { return !BN_is_zero(number) && BN_cmp(number, EC_GROUP_get0_order(group)) < 0; }

/* GB/T 32918.2, 7.1: t = r + s; (x, y) = [s] G + [t] P; right when e + x = r (mod n). */
int yk_sm2_verify(const yk_sm2_public *key, const uint8_t *id, size_t id_bytes, const uint8_t *message, size_t message_bytes,
                  const uint8_t signature[YK_SM2_SIGNATURE_BYTES]) {
    uint8_t hash[HASH];
    if (!digest(key->encoded, id, id_bytes, message, message_bytes, hash)) return 0;
    const BIGNUM *n = EC_GROUP_get0_order(group);
    BN_CTX *context = BN_CTX_new();
    BIGNUM *r = BN_bin2bn(signature, 32, NULL), *s = BN_bin2bn(signature + 32, 32, NULL), *e = BN_bin2bn(hash, HASH, NULL);
    BIGNUM *t = BN_new(), *x = BN_new();
    EC_POINT *sum = EC_POINT_new(group);
    int right = context && r && s && e && t && x && sum && in_range(r) && in_range(s) && BN_mod_add(t, r, s, n, context) == 1 &&
                !BN_is_zero(t) && EC_POINT_mul(group, sum, s, key->point, t, context) == 1 &&
                !EC_POINT_is_at_infinity(group, sum) &&
                EC_POINT_get_affine_coordinates(group, sum, x, NULL, context) == 1 && BN_mod_add(x, x, e, n, context) == 1 &&
                BN_cmp(x, r) == 0;
    EC_POINT_free(sum);
    BN_free(x);
    BN_free(t);
    BN_free(e);
    BN_free(s);
    BN_free(r);
    BN_CTX_free(context);
    if (!right) ERR_clear_error();
    return right;
}

int yk_sm2_evp_verify(const char *public_pem, size_t n, const uint8_t *id, size_t id_bytes, const uint8_t *message,
                      size_t message_bytes, const uint8_t *der, size_t der_bytes, int times) {
    int error, right = 0;
    EVP_PKEY *key = read_pem(public_pem, n, PEM_read_bio_PUBKEY, &error);
    if (!key) return -1;
    for (int i = 0; i < times; i++) {
        EVP_MD_CTX *context = EVP_MD_CTX_new();
        EVP_PKEY_CTX *inner = NULL;
        right += context && EVP_DigestVerifyInit(context, &inner, EVP_sm3(), NULL, key) == 1 &&
                 EVP_PKEY_CTX_set1_id(inner, id, (int)id_bytes) == 1 &&
                 EVP_DigestVerify(context, der, der_bytes, message, message_bytes) == 1;
        EVP_MD_CTX_free(context);
    }
    EVP_PKEY_free(key);
    ERR_clear_error();
    return right;
}

/* ---- private keys ---- */

static yk_sm2_private *private_of(EVP_PKEY *key) {
    yk_sm2_private *made = key ? malloc(sizeof *made) : NULL;
    if (made) made->key = key;
    else if (key) EVP_PKEY_free(key);
    return made;
}

yk_sm2_private *yk_sm2_private_make(void) {
    EVP_PKEY *key = NULL;
    EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_name(NULL, "SM2", NULL);
    if (context && EVP_PKEY_keygen_init(context) == 1) (void)EVP_PKEY_keygen(context, &key);
    EVP_PKEY_CTX_free(context);
    ERR_clear_error();
    return private_of(key);
}

yk_sm2_private *yk_sm2_private_of_pem(const char *pem, size_t n, int *error) {
    return private_of(read_pem(pem, n, PEM_read_bio_PrivateKey, error));
}

void yk_sm2_private_free(yk_sm2_private *key) {
    if (!key) return;
    EVP_PKEY_free(key->key); /* which wipes it */
    free(key);
}

int yk_sm2_private_point(const yk_sm2_private *key, uint8_t point[YK_SM2_POINT_BYTES]) { return point_of(key->key, point); }

int yk_sm2_private_pem(const yk_sm2_private *key, char *out, size_t room) {
    BIO *bio = BIO_new(BIO_s_secmem());
    int n = bio && PEM_write_bio_PrivateKey(bio, key->key, NULL, NULL, 0, NULL, NULL) == 1 ? BIO_read(bio, out, (int)room) : 0;
    if (bio) BIO_free(bio);
    ERR_clear_error();
    return n > 0 ? n : 0;
}

int yk_sm2_sign(const yk_sm2_private *key, const uint8_t *id, size_t id_bytes, const uint8_t *message, size_t message_bytes,
                uint8_t signature[YK_SM2_SIGNATURE_BYTES]) {
    uint8_t der[128];
    size_t n = sizeof der;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    EVP_PKEY_CTX *inner = NULL;
    int done = context && EVP_DigestSignInit(context, &inner, EVP_sm3(), NULL, key->key) == 1 &&
               EVP_PKEY_CTX_set1_id(inner, id, (int)id_bytes) == 1 && EVP_DigestSign(context, der, &n, message, message_bytes) == 1 &&
               yk_sm2_of_der(der, n, signature);
    EVP_MD_CTX_free(context);
    ERR_clear_error();
    return done;
}

/* ---- DER: SEQUENCE { r INTEGER, s INTEGER } ---- */

static size_t put_integer(const uint8_t number[32], uint8_t *out) {
    size_t skip = 0;
    while (skip < 31 && number[skip] == 0) skip++;
    size_t sign = number[skip] >> 7, n = 32 - skip;
    out[0] = 2;
    out[1] = (uint8_t)(n + sign);
    out[2] = 0;
    memcpy(out + 2 + sign, number + skip, n);
    return 2 + sign + n;
}

size_t yk_sm2_to_der(const uint8_t signature[YK_SM2_SIGNATURE_BYTES], uint8_t out[72]) {
    size_t n = put_integer(signature, out + 2);
    n += put_integer(signature + 32, out + 2 + n);
    out[0] = 0x30;
    out[1] = (uint8_t)n;
    return n + 2;
}

/* The INTEGER at `*at`, not negative, in its shortest form, of at most 32 bytes. */
static int get_integer(const uint8_t *der, size_t n, size_t *at, uint8_t number[32]) {
    if (n - *at < 3 || der[*at] != 2) return 0;
    size_t length = der[*at + 1];
    const uint8_t *bytes = der + *at + 2;
    if (length == 0 || length > 33 || n - *at - 2 < length || bytes[0] & 0x80) return 0;
    if (length > 1 && bytes[0] == 0 && !(bytes[1] & 0x80)) return 0;
    *at += 2 + length;
    if (bytes[0] == 0) bytes++, length--;
    if (length > 32) return 0;
    memset(number, 0, 32 - length);
    memcpy(number + 32 - length, bytes, length);
    return 1;
}

int yk_sm2_of_der(const uint8_t *der, size_t n, uint8_t signature[YK_SM2_SIGNATURE_BYTES]) {
    size_t at = 2;
    return n >= 8 && n <= 72 && der[0] == 0x30 && der[1] == n - 2 && get_integer(der, n, &at, signature) &&
           get_integer(der, n, &at, signature + 32) && at == n;
}
