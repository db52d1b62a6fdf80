"""The C of sm4.h. Whoever cimports these links the SM4 sources of setup.py into its own extension, checks yk_sm4_path when
it is imported, and does not need yikatong.ext.sm4 at run time."""

from libc.stdint cimport uint8_t, uint32_t


cdef extern from "sm4.h" nogil:
    ctypedef struct yk_mac_job:
        const uint32_t *parent
        uint8_t serial[8]
        uint8_t message[32]
        uint8_t atc[2]
        uint8_t profile
        uint8_t reserved
        uint8_t mac[4]

    void yk_sm4_expand(const uint8_t *key, uint32_t *round_keys)
    void yk_sm4_encrypt(const uint32_t *round_keys, const uint8_t *block, uint8_t *out)
    void yk_sm4_decrypt(const uint32_t *round_keys, const uint8_t *block, uint8_t *out)
    void yk_sm4_cbc_mac(const uint32_t *round_keys, const uint8_t *message, size_t message_bytes, uint8_t *mac)
    void yk_sm4_diversify(const uint32_t *round_keys, const uint8_t *factor, uint8_t *derived)

    void yk_mac_batch(yk_mac_job *jobs, size_t n)
    void yk_mac_verify_batch(const yk_mac_job *jobs, size_t n, uint8_t *proved)

    const char *yk_sm4_path()
    int yk_sm4_path_force(const char *name)
    const char *yk_sm4_path_runnable(size_t i)
    void yk_wipe(void *memory, size_t n)
