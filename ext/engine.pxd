from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t


cdef class Calls:
    """A batch of tap requests that a native transport has gathered, and what came of each. The requests' bytes are the
    transport's and stay until it has answered."""

    cdef readonly uint32_t n
    cdef readonly bint stored          # SubmitTapsRequest, else AuthorizeTapRequest
    cdef const uint8_t **messages
    cdef uint32_t *lengths
    cdef uint64_t *deadlines_us        # monotonic microseconds; 0: none
    cdef void **handles                # the transport's own
    cdef uint64_t *bounds              # whose taps each caller may bring (engine.h, yk_are_own)
    cdef int32_t *counts               # taps of each request, or a negative decode error
    cdef uint8_t *responses
    cdef uint64_t *response_ends
    cdef readonly uint64_t bytes
