"""SM4 keys outside Python's objects: each in a page of its own that is locked into memory, left out of core dumps, empty in a
child after fork, and wiped when its holder goes. What leaves a holder are MACs, check values and ciphertexts.

What this does not cover: round keys and derived keys stand on the C stack and in registers while they are in use (the stack
copies are wiped); whoever may read this process's memory, or be its debugger, sees the page; hibernation writes it to disk."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from yikatong.ext.sm4 cimport (
    yk_sm4_cbc_mac,
    yk_sm4_diversify,
    yk_sm4_encrypt,
    yk_sm4_expand,
    yk_wipe,
)

import os

cdef extern from "sm4_gcm.h" nogil:
    void yk_sm4_gcm_seal(const uint32_t *round_keys, const uint8_t *nonce, const uint8_t *associated, size_t associated_bytes,
                         const uint8_t *data, size_t n, uint8_t *out, uint8_t *tag)
    int yk_sm4_gcm_open(const uint32_t *round_keys, const uint8_t *nonce, const uint8_t *associated, size_t associated_bytes,
                        const uint8_t *data, size_t n, uint8_t *out, const uint8_t *tag)
    int yk_sm3_hmac(const uint8_t *key, size_t key_bytes, const uint8_t *message, size_t n, uint8_t *mac)

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int file, long offset)
    int munmap(void *address, size_t length)
    int mlock(const void *address, size_t length)
    int madvise(void *address, size_t length, int advice)
    enum: PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void *MAP_FAILED

cdef extern from *:
    """
    #include <sys/mman.h>
    #ifdef MADV_DONTDUMP
    #define YK_DONTDUMP MADV_DONTDUMP
    #else
    #define YK_DONTDUMP (-1)
    #endif
    #ifdef MADV_WIPEONFORK
    #define YK_WIPEONFORK MADV_WIPEONFORK
    #else
    #define YK_WIPEONFORK (-1)
    #endif
    """
    int YK_DONTDUMP, YK_WIPEONFORK

cdef enum:
    KEY_BYTES = 16
    ROUNDS_AT = 64
    ROUND_BYTES = 128
    PAGE_BYTES = 4096
    NONCE_BYTES = 12
    TAG_BYTES = 16


cdef class KeyHolder:
    """A key of 16 bytes. Made by one of the class methods; `locked` says whether its page is kept out of swap."""

    def __cinit__(self):
        cdef void *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if page == MAP_FAILED:
            raise MemoryError
        self.page = <uint8_t *>page
        self.locked = mlock(page, PAGE_BYTES) == 0
        madvise(page, PAGE_BYTES, YK_DONTDUMP)
        madvise(page, PAGE_BYTES, YK_WIPEONFORK)

    def __dealloc__(self):
        self.wipe()

    def __repr__(self):
        """Without the key."""
        return "KeyHolder(wiped)" if self.page == NULL else "KeyHolder(…)"

    def __reduce__(self):
        raise TypeError("a held key is not written anywhere")

    cdef const uint32_t *round_keys(self) except NULL:
        if self.page == NULL:
            raise ValueError("the key was wiped")
        return <const uint32_t *>(self.page + ROUNDS_AT)

    cdef const uint8_t *key(self) except NULL:
        if self.page == NULL:
            raise ValueError("the key was wiped")
        return self.page

    cdef _expand(self):
        yk_sm4_expand(self.page, <uint32_t *>(self.page + ROUNDS_AT))

    def wipe(self):
        """Forget the key. All methods but this one raise ValueError from now on."""
        if self.page != NULL:
            yk_wipe(self.page, ROUNDS_AT + ROUND_BYTES)
            munmap(self.page, PAGE_BYTES)
            self.page = NULL

    # ---- where keys come from ----

    @classmethod
    def take(cls, uint8_t[::1] material not None):
        """The key of a writable buffer of 16 bytes, which is wiped. Raises ValueError for another length."""
        cdef KeyHolder made = cls()
        if material.shape[0] != KEY_BYTES:
            raise ValueError(f"a key of {material.shape[0]} bytes: {KEY_BYTES} are wanted")
        memcpy(made.page, &material[0], KEY_BYTES)
        yk_wipe(&material[0], KEY_BYTES)
        made._expand()
        return made

    @classmethod
    def random(cls):
        """A new key from the system's random numbers."""
        return cls.take(bytearray(os.urandom(KEY_BYTES)))

    @classmethod
    def fill(cls, write):
        """A key that `write` (a function) writes into a buffer of 16 bytes: the page itself."""
        cdef KeyHolder made = cls()
        write(<uint8_t[:KEY_BYTES]>made.page)
        made._expand()
        return made

    def xor(self, KeyHolder other not None):
        """The key that this one and another are components of."""
        cdef KeyHolder made = KeyHolder()
        cdef const uint8_t *left = self.key()
        cdef const uint8_t *right = other.key()
        for i in range(KEY_BYTES):
            made.page[i] = left[i] ^ right[i]
        made._expand()
        return made

    def diversify(self, bytes factor not None):
        """The key one level below, SM4(K, F || ~F) with a factor of 8 bytes."""
        cdef KeyHolder made = KeyHolder()
        if len(factor) != 8:
            raise ValueError(f"a factor of {len(factor)} bytes: 8 are wanted")
        yk_sm4_diversify(self.round_keys(), <const uint8_t *>PyBytes_AS_STRING(factor), made.page)
        made._expand()
        return made

    def copy_into(self, uint8_t[::1] out not None):
        """The key into a writable buffer of 16 bytes, for the few who seal it together with something else and wipe the buffer."""
        if out.shape[0] != KEY_BYTES:
            raise ValueError(f"a buffer of {out.shape[0]} bytes: {KEY_BYTES} are wanted")
        memcpy(&out[0], self.key(), KEY_BYTES)

    # ---- what is done with them ----

    def same(self, KeyHolder other not None):
        """Whether both hold one key; in constant time."""
        cdef const uint8_t *left = self.key()
        cdef const uint8_t *right = other.key()
        cdef uint8_t differs = 0
        for i in range(KEY_BYTES):
            differs |= left[i] ^ right[i]
        return differs == 0

    def check_value(self):
        """KCV: leftmost 3 bytes of SM4(K, 0)."""
        cdef uint8_t[16] block = [0] * 16
        yk_sm4_encrypt(self.round_keys(), block, block)
        return (<uint8_t *>block)[:3]

    def mac(self, factors, bytes session not None, bytes message not None):
        """As KeyProvider.mac: 16 bytes."""
        cdef uint32_t[32] round_keys
        cdef uint8_t[16] derived
        cdef bytes factor
        cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(message)
        cdef size_t n = len(message)
        if session and len(session) != 16:
            raise ValueError(f"session data of {len(session)} bytes: 16 are wanted")
        for factor in factors:
            if len(factor) != 8:
                raise ValueError(f"a factor of {len(factor)} bytes: 8 are wanted")
        memcpy(round_keys, self.round_keys(), sizeof(round_keys))
        for factor in factors:
            yk_sm4_diversify(round_keys, <const uint8_t *>PyBytes_AS_STRING(factor), derived)
            yk_sm4_expand(derived, round_keys)
        if session:
            yk_sm4_encrypt(round_keys, <const uint8_t *>PyBytes_AS_STRING(session), derived)
            yk_sm4_expand(derived, round_keys)
        yk_sm4_cbc_mac(round_keys, start, n, derived)
        yk_wipe(round_keys, sizeof(round_keys))
        return (<uint8_t *>derived)[:16]

    def seal(self, const uint8_t[::1] plaintext not None, bytes associated not None):
        """SM4-GCM (RFC 8998) under a fresh random nonce: nonce 12 || ciphertext || tag 16."""
        cdef Py_ssize_t n = plaintext.shape[0]
        return self._seal(&plaintext[0] if n else NULL, n, associated)

    def seal_key(self, KeyHolder other not None, bytes associated not None):
        """The same of another holder's key."""
        return self._seal(other.key(), KEY_BYTES, associated)

    cdef bytes _seal(self, const uint8_t *plaintext, Py_ssize_t n, bytes associated):
        cdef bytes nonce = os.urandom(NONCE_BYTES)
        cdef bytes sealed = PyBytes_FromStringAndSize(NULL, NONCE_BYTES + n + TAG_BYTES)
        cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(sealed)
        memcpy(out, PyBytes_AS_STRING(nonce), NONCE_BYTES)
        yk_sm4_gcm_seal(self.round_keys(), out, <const uint8_t *>PyBytes_AS_STRING(associated), len(associated), plaintext, n,
                        out + NONCE_BYTES, out + NONCE_BYTES + n)
        return sealed

    def open(self, bytes sealed not None, bytes associated not None):
        """What was sealed, as a bytearray that can be wiped; None where it was altered or belongs to something else."""
        cdef Py_ssize_t n = len(sealed) - NONCE_BYTES - TAG_BYTES
        if n < 0:
            return None
        plain = bytearray(n)
        cdef uint8_t[::1] view
        cdef uint8_t *out = NULL
        if n:
            view = plain
            out = &view[0]
        return plain if self._open(sealed, associated, out, n) else None

    def open_key(self, bytes sealed not None, bytes associated not None):
        """The holder of a key that was sealed; None where it was altered or belongs to something else."""
        cdef KeyHolder made
        if len(sealed) != NONCE_BYTES + KEY_BYTES + TAG_BYTES:
            return None
        made = KeyHolder()
        if not self._open(sealed, associated, made.page, KEY_BYTES):
            return None
        made._expand()
        return made

    cdef bint _open(self, bytes sealed, bytes associated, uint8_t *out, Py_ssize_t n) except -1:
        cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(sealed)
        return yk_sm4_gcm_open(self.round_keys(), start, <const uint8_t *>PyBytes_AS_STRING(associated), len(associated),
                               start + NONCE_BYTES, n, out, start + NONCE_BYTES + n) == 0

    def hmac(self, bytes data not None):
        """HMAC-SM3 (GB/T 15852.2), 32 bytes."""
        cdef uint8_t[32] mac
        if yk_sm3_hmac(self.key(), KEY_BYTES, <const uint8_t *>PyBytes_AS_STRING(data), len(data), mac) != 0:
            raise MemoryError
        return (<uint8_t *>mac)[:32]
