"""SM2 signatures (GB/T 32918.2) with SM3, by OpenSSL 3's libcrypto, which must be installed when this is imported; no headers are
needed to build. Keys are parsed once and kept; what takes long runs without the GIL; private keys are only touched by OpenSSL."""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t


cdef extern from "sm2_openssl.h" nogil:
    enum: YK_SM2_POINT_BYTES, YK_SM2_COMPRESSED_BYTES, YK_SM2_SIGNATURE_BYTES, YK_SM2_PEM_BYTES
    ctypedef struct yk_sm2_public:
        pass
    ctypedef struct yk_sm2_private:
        pass
    const char *yk_sm2_open()
    const char *yk_sm2_version()
    yk_sm2_public *yk_sm2_public_of_point(const uint8_t *point, size_t n)
    int yk_sm2_point_of_pem(const char *pem, size_t n, uint8_t *point)
    void yk_sm2_public_free(yk_sm2_public *key)
    void yk_sm2_public_point(const yk_sm2_public *key, int compressed, uint8_t *out)
    int yk_sm2_verify(const yk_sm2_public *key, const uint8_t *id, size_t id_bytes, const uint8_t *message, size_t message_bytes,
                      const uint8_t *signature)
    yk_sm2_private *yk_sm2_private_make()
    yk_sm2_private *yk_sm2_private_of_pem(const char *pem, size_t n, int *error)
    void yk_sm2_private_free(yk_sm2_private *key)
    int yk_sm2_private_point(const yk_sm2_private *key, uint8_t *point)
    int yk_sm2_private_pem(const yk_sm2_private *key, char *out, size_t room)
    int yk_sm2_sign(const yk_sm2_private *key, const uint8_t *id, size_t id_bytes, const uint8_t *message, size_t message_bytes,
                    uint8_t *signature)
    void yk_sm2_cleanse(void *bytes, size_t n)
    int yk_sm2_evp_verify(const char *public_pem, size_t n, const uint8_t *id, size_t id_bytes, const uint8_t *message,
                          size_t message_bytes, const uint8_t *der, size_t der_bytes, int times)
    size_t yk_sm2_to_der(const uint8_t *signature, uint8_t *out)
    int yk_sm2_of_der(const uint8_t *der, size_t n, uint8_t *signature)


USER_ID = b"1234567812345678"  # GM/T 0009's default
POINT_BYTES = YK_SM2_POINT_BYTES
COMPRESSED_BYTES = YK_SM2_COMPRESSED_BYTES
SIGNATURE_BYTES = YK_SM2_SIGNATURE_BYTES
USER_ID_BYTES_MAX = 8_190  # its length in bits is kept in two bytes, and OpenSSL leaves the last one out

cdef const char *missing = yk_sm2_open()
if missing != NULL:
    raise ImportError(f"SM2 needs OpenSSL 3, and {missing.decode()} is not there")


class AnotherAlgorithm(ValueError):
    """A PEM text holds a key, but not one of SM2."""


cdef const uint8_t *_bytes(bytes data):
    return <const uint8_t *>PyBytes_AS_STRING(data)


cdef int _check_id(bytes user_id) except -1:
    if len(user_id) > USER_ID_BYTES_MAX:
        raise ValueError(f"user_id: at most {USER_ID_BYTES_MAX} bytes are taken")
    return 0


def version():
    """OpenSSL's own name and version."""
    return yk_sm2_version().decode()


def to_der(bytes signature not None):
    """DER of a signature r ‖ s (64 bytes)."""
    cdef uint8_t out[72]
    if len(signature) != SIGNATURE_BYTES:
        raise ValueError(f"signature: {SIGNATURE_BYTES} bytes are wanted")
    cdef size_t n = yk_sm2_to_der(_bytes(signature), out)
    return (<const char *>out)[:n]


def of_der(bytes der not None):
    """r ‖ s of a signature in DER. Raises ValueError for what is not, or could have been written otherwise."""
    cdef uint8_t out[64]
    if not yk_sm2_of_der(_bytes(der), len(der), out):
        raise ValueError("it is no signature in DER")
    return (<const char *>out)[:SIGNATURE_BYTES]


cdef class Public:
    """A public key, from a point of 33 (compressed) or 65 bytes. Raises ValueError for what is no point of the curve."""

    cdef yk_sm2_public *key

    def __cinit__(self, bytes point not None):
        cdef const uint8_t *data = _bytes(point)
        cdef size_t n = len(point)
        with nogil:
            self.key = yk_sm2_public_of_point(data, n)
        if self.key == NULL:
            raise ValueError("it is no point of the SM2 curve")

    def __dealloc__(self):
        yk_sm2_public_free(self.key)

    @staticmethod
    def of_pem(bytes pem not None):
        """From a PEM text. Raises ValueError where it is none, and AnotherAlgorithm."""
        cdef uint8_t point[65]
        cdef int error = yk_sm2_point_of_pem(PyBytes_AS_STRING(pem), len(pem), point)
        if error == -2:
            raise AnotherAlgorithm("it is a key of another algorithm than SM2")
        if error:
            raise ValueError("it is no PEM text of a public key")
        return Public((<const char *>point)[:POINT_BYTES])

    def point(self, *, bint compressed=True):
        """The point, 33 or 65 bytes."""
        cdef uint8_t out[65]
        yk_sm2_public_point(self.key, compressed, out)
        return (<const char *>out)[:COMPRESSED_BYTES if compressed else POINT_BYTES]

    def verify(self, bytes message not None, bytes signature not None, bytes user_id not None=USER_ID):
        """Whether a signature r ‖ s of a message is right."""
        cdef const uint8_t *data = _bytes(message), *said = _bytes(signature), *name = _bytes(user_id)
        cdef size_t data_bytes = len(message), name_bytes = len(user_id)
        cdef int right
        _check_id(user_id)
        if len(signature) != SIGNATURE_BYTES:
            return False
        with nogil:
            right = yk_sm2_verify(self.key, name, name_bytes, data, data_bytes, said)
        return bool(right)


cdef class Private:
    """A private key: `Private.make()` or `Private.of_pem(pem)`."""

    cdef yk_sm2_private *key

    def __dealloc__(self):
        yk_sm2_private_free(self.key)

    @staticmethod
    def make():
        """A new random key."""
        cdef Private made = Private.__new__(Private)
        made.key = yk_sm2_private_make()
        if made.key == NULL:
            raise RuntimeError("OpenSSL makes no SM2 key")
        return made

    @staticmethod
    def of_pem(bytes pem not None):
        """From a PEM text. Raises ValueError where it is none, and AnotherAlgorithm."""
        cdef int error = 0
        cdef Private made = Private.__new__(Private)
        made.key = yk_sm2_private_of_pem(PyBytes_AS_STRING(pem), len(pem), &error)
        if error == -2:
            raise AnotherAlgorithm("it is a key of another algorithm than SM2")
        if made.key == NULL:
            raise ValueError("it is no PEM text of a private key")
        return made

    def public(self):
        """The public half."""
        cdef uint8_t point[65]
        if not yk_sm2_private_point(self.key, point):
            raise RuntimeError("OpenSSL does not tell the public key")
        return Public((<const char *>point)[:POINT_BYTES])

    def pem(self):
        """PKCS#8 in PEM, not encrypted."""
        cdef char out[YK_SM2_PEM_BYTES]
        cdef int n = yk_sm2_private_pem(self.key, out, sizeof(out))
        if not n:
            raise RuntimeError("OpenSSL does not write the key")
        text = out[:n]
        yk_sm2_cleanse(out, sizeof(out))
        return text

    def sign(self, bytes message not None, bytes user_id not None=USER_ID):
        """The signature of a message, r ‖ s, 64 bytes; another one each time."""
        cdef const uint8_t *data = _bytes(message), *name = _bytes(user_id)
        cdef size_t data_bytes = len(message), name_bytes = len(user_id)
        cdef uint8_t signature[64]
        cdef int done
        _check_id(user_id)
        with nogil:
            done = yk_sm2_sign(self.key, name, name_bytes, data, data_bytes, signature)
        if not done:
            raise RuntimeError("OpenSSL does not sign")
        return (<const char *>signature)[:SIGNATURE_BYTES]


def evp_verify(bytes public_pem not None, bytes message not None, bytes der not None, int times):
    """For benches: OpenSSL's own verify, EVP in C, the key parsed once; how many of `times` were right."""
    cdef const char *pem = PyBytes_AS_STRING(public_pem)
    cdef const uint8_t *data = _bytes(message), *said = _bytes(der), *name = _bytes(USER_ID)
    cdef size_t pem_bytes = len(public_pem), data_bytes = len(message), said_bytes = len(der), name_bytes = len(USER_ID)
    cdef int right
    with nogil:
        right = yk_sm2_evp_verify(pem, pem_bytes, name, name_bytes, data, data_bytes, said, said_bytes, times)
    return right
