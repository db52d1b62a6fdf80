from libc.stdint cimport uint8_t, uint32_t


cdef class KeyHolder:
    """A key of 16 bytes in a page of its own."""

    cdef uint8_t *page          # the key, and behind it its round keys; NULL: wiped
    cdef readonly bint locked   # whether the page is kept out of swap

    cdef const uint32_t *round_keys(self) except NULL
    cdef const uint8_t *key(self) except NULL
    cdef _expand(self)
    cdef bytes _seal(self, const uint8_t *plaintext, Py_ssize_t n, bytes associated)
    cdef bint _open(self, bytes sealed, bytes associated, uint8_t *out, Py_ssize_t n) except -1
