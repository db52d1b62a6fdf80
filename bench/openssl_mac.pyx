"""The baseline of bench mac: OpenSSL's EVP in C, one tap at a time. Importing raises ImportError without libcrypto or SM4 in
it."""

import numpy as np

from yikatong.ext.sm4_jobs import check_jobs

from libc.stdint cimport uint8_t


cdef extern from "openssl_evp.h" nogil:
    ctypedef struct openssl_mac
    const char *openssl_mac_open()
    const char *openssl_mac_version()
    openssl_mac *openssl_mac_new(const uint8_t *parent)
    void openssl_mac_free(openssl_mac *state)
    int openssl_mac_tac(openssl_mac *state, const uint8_t *serial, const uint8_t *message, uint8_t *mac)


cdef struct job:  # MAC_JOB
    long long parent_index
    uint8_t serial[8]
    uint8_t message[32]
    uint8_t atc[2]
    uint8_t profile
    uint8_t reserved
    uint8_t mac[4]


cdef const char *missing = openssl_mac_open()
if missing != NULL:
    raise ImportError(f"no SM4 of OpenSSL to compare with: {missing.decode()} is missing")


def version() -> str:
    """OpenSSL's own name and version."""
    return openssl_mac_version().decode()


cdef int run(openssl_mac *state, const job *jobs, size_t n, uint8_t *macs, uint8_t *proved) noexcept nogil:
    cdef size_t i
    cdef int k
    cdef uint8_t difference
    cdef int done = 1
    for i in range(n):
        done &= openssl_mac_tac(state, jobs[i].serial, jobs[i].message, &macs[4 * i])
        difference = 0
        for k in range(4):
            difference |= macs[4 * i + k] ^ jobs[i].mac[k]
        proved[i] = difference == 0
    return done


def verify_jobs(parents, jobs):
    """MACs and verdicts of an array of MAC_JOB under parents[0], all of profile 1: (n, 4) uint8 and (n,) bool."""
    check_jobs(parents, jobs)
    if len(parents) != 1 or not (jobs["profile"] == 1).all():
        raise ValueError("jobs: the baseline does one parent and profile 1 only")
    macs = np.empty((len(jobs), 4), np.uint8)
    proved = np.empty(len(jobs), np.bool_)
    if len(jobs) == 0:
        return macs, proved
    cdef size_t n = len(jobs)
    cdef bytes parent = parents.tobytes()
    cdef const uint8_t[::1] job_bytes = jobs.view(np.uint8)
    cdef uint8_t[::1] mac_bytes = macs.reshape(-1)
    cdef uint8_t[::1] proved_bytes = proved.view(np.uint8)
    cdef openssl_mac *state = openssl_mac_new(<const uint8_t *>parent)
    if state == NULL:
        raise RuntimeError("OpenSSL refuses SM4")
    cdef int done
    with nogil:
        done = run(state, <const job *>&job_bytes[0], n, &mac_bytes[0], &proved_bytes[0])
    openssl_mac_free(state)
    if not done:
        raise RuntimeError("OpenSSL failed on the way")
    return macs, proved
