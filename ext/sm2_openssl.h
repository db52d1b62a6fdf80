/* SM2 signatures (GB/T 32918.2) with SM3, by OpenSSL 3's libcrypto, which is loaded when it is first needed. Whatever touches a
 * private key is done by OpenSSL's EVP; verifying works on public points, which are decoded once. */
#ifndef YK_SM2_OPENSSL_H
#define YK_SM2_OPENSSL_H

#include <stddef.h>
#include <stdint.h>

enum { YK_SM2_POINT_BYTES = 65, YK_SM2_COMPRESSED_BYTES = 33, YK_SM2_SIGNATURE_BYTES = 64, YK_SM2_PEM_BYTES = 1024 };

typedef struct yk_sm2_public yk_sm2_public;
typedef struct yk_sm2_private yk_sm2_private;

/* NULL, or what is missing. To be called before all others. */
const char *yk_sm2_open(void);
const char *yk_sm2_version(void);

/* NULL where the bytes are no point of the curve, in either form. */
yk_sm2_public *yk_sm2_public_of_point(const uint8_t *point, size_t n);
/* Returns 0, -1 where it is no PEM of such a key, -2 where the key is of another algorithm; `point` gets its public half. */
int yk_sm2_point_of_pem(const char *pem, size_t n, uint8_t point[YK_SM2_POINT_BYTES]);
void yk_sm2_public_free(yk_sm2_public *key);
void yk_sm2_public_point(const yk_sm2_public *key, int compressed, uint8_t *out);
/* Whether r ‖ s is the signature of a message under a user id of at most 8190 bytes. */
int yk_sm2_verify(const yk_sm2_public *key, const uint8_t *id, size_t id_bytes, const uint8_t *message, size_t message_bytes,
                  const uint8_t signature[YK_SM2_SIGNATURE_BYTES]);

yk_sm2_private *yk_sm2_private_make(void);
yk_sm2_private *yk_sm2_private_of_pem(const char *pem, size_t n, int *error); /* errors as above */
void yk_sm2_private_free(yk_sm2_private *key);
int yk_sm2_private_point(const yk_sm2_private *key, uint8_t point[YK_SM2_POINT_BYTES]);
int yk_sm2_private_pem(const yk_sm2_private *key, char *out, size_t room); /* how many bytes; 0: it failed */
int yk_sm2_sign(const yk_sm2_private *key, const uint8_t *id, size_t id_bytes, const uint8_t *message, size_t message_bytes,
                uint8_t signature[YK_SM2_SIGNATURE_BYTES]);
void yk_sm2_cleanse(void *bytes, size_t n);

/* For benches: OpenSSL's own verify of a DER signature by EVP, its key parsed before; `times` times over. How many were right. */
int yk_sm2_evp_verify(const char *public_pem, size_t n, const uint8_t *id, size_t id_bytes, const uint8_t *message,
                      size_t message_bytes, const uint8_t *der, size_t der_bytes, int times);

/* r ‖ s to DER and back; DER of any other form than the one that is written is refused. */
size_t yk_sm2_to_der(const uint8_t signature[YK_SM2_SIGNATURE_BYTES], uint8_t out[72]);
int yk_sm2_of_der(const uint8_t *der, size_t n, uint8_t signature[YK_SM2_SIGNATURE_BYTES]);

#endif
