# cython: boundscheck=False, wraparound=False
"""The fare evaluator (price.h) as Python sees it: arrays of rides in, arrays of fares out, without the GIL."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t

import numpy as np

cimport numpy as np

np.import_array()

cdef extern from *:
    """
    #define YK_TABLE_ROW(name, type) {#name, sizeof(type)},
    typedef struct { const char *name; uint32_t bytes; } yk_table_row;
    static const yk_table_row yk_table_rows[] = { YK_TARIFF_TABLES(YK_TABLE_ROW) };
    """
    ctypedef struct yk_table_row:
        const char *name
        uint32_t bytes
    const yk_table_row *yk_table_rows
    size_t yk_table_count "(sizeof yk_table_rows / sizeof *yk_table_rows)"
    enum: YK_TARIFF_MAGIC

RIDE = np.dtype([
    ("local_s", "<u4"), ("line", "<u4"), ("stop", "<u4"), ("nominal_fen", "<u4"), ("rider_until", "<u4"), ("pass_until", "<u4"),
    ("operator_number", "<u2"), ("industry", "u1"), ("kind", "u1"), ("rider", "u1"), ("pass", "u1"), ("stated", "u1"),
    ("reserved", "u1"),
])
RIDES = np.dtype([
    ("entry_s", "<u4"), ("entry_line", "<u4"), ("entry_place", "<u4"), ("last_start_s", "<u4"), ("last_end_s", "<u4"),
    ("last_line", "<u4"), ("spent_fen", "<u4", (YK_CAP_SLOTS,)), ("day", "<u2"), ("month_rides", "<u2"), ("last_network", "u1"),
    ("chain", "u1"), ("newest_atc", "<u2"), ("newest_s", "<u4"),
])
FARE = np.dtype([
    ("base_fen", "<i8"), ("charged_fen", "<i8"),
    ("adjustments", [("amount_fen", "<i8"), ("rule", "<u4"), ("reserved", "<u4")], (YK_ADJUSTMENTS_MAX,)),
    ("base_rule", "<u2"), ("marks", "<u2"), ("outcome", "u1"), ("adjustment_count", "u1"), ("reserved", "u1", (2,)),
], align=True)
RIDE_DONE = np.dtype([
    ("local_s", "<u4"), ("line", "<u4"), ("stop", "<u4"), ("marks", "<u2"), ("kind", "u1"), ("reserved", "u1"),
    ("charged_fen", "<i8"),
])
SIZES = {"RIDE": sizeof(yk_ride), "RIDES": sizeof(yk_rides), "FARE": sizeof(yk_fare), "RIDE_DONE": sizeof(yk_ride_done)}
MAGIC = YK_TARIFF_MAGIC
TABLES = [(yk_table_rows[i].name.decode(), yk_table_rows[i].bytes) for i in range(yk_table_count)]


def _array(array, dtype, name, writable=False):
    """As C reads it, without a copy where it is written to."""
    made = array if writable else np.ascontiguousarray(array, dtype)
    if made.dtype != dtype or made.ndim != 1 or not made.flags.c_contiguous or (writable and not made.flags.writeable):
        raise TypeError(f"{name}: a contiguous array of the right type is wanted")
    return made


cdef class Evaluator:
    """A compiled tariff, ready to price. Any number of threads may use it."""

    cdef bytes blob
    cdef yk_tariff tariff

    def __init__(self, bytes blob not None):
        self.blob = blob
        if yk_tariff_open(&self.tariff, PyBytes_AS_STRING(blob), PyBytes_GET_SIZE(blob)):
            raise ValueError("these bytes are no compiled tariff of this build")

    def price(self, rides, cards, ride):
        """Price taps in turn. `ride` is an array of RIDE, `cards` says for each whose it is: an index into `rides`, an array of
        RIDES, each a card's memory, which is advanced in place. Returns an array of FARE."""
        rides = _array(rides, RIDES, "rides", True)
        cards = _array(cards, np.dtype("<u4"), "cards")
        ride = _array(ride, RIDE, "ride")
        cdef size_t n = len(ride)
        if len(cards) != n or (n and int(cards.max()) >= len(rides)):
            raise ValueError("cards: an index into rides is wanted for each ride")
        fares = np.zeros(n, FARE)
        cdef np.ndarray rides_array = rides, cards_array = cards, ride_array = ride, fares_array = fares
        cdef yk_rides *rides_p = <yk_rides *>np.PyArray_DATA(rides_array)
        cdef const uint32_t *cards_p = <const uint32_t *>np.PyArray_DATA(cards_array)
        cdef const yk_ride *ride_p = <const yk_ride *>np.PyArray_DATA(ride_array)
        cdef yk_fare *fares_p = <yk_fare *>np.PyArray_DATA(fares_array)
        with nogil:
            yk_price_many(&self.tariff, rides_p, cards_p, ride_p, fares_p, n)
        return fares


def rides_after(rides, done):
    """Advance one card's memory (an array of RIDES of length 1, in place) by taps that were booked: an array of RIDE_DONE."""
    rides = _array(rides, RIDES, "rides", True)
    done = _array(done, RIDE_DONE, "done")
    if len(rides) != 1:
        raise ValueError("rides: one card's memory is wanted")
    cdef np.ndarray rides_array = rides, done_array = done
    cdef yk_rides *rides_p = <yk_rides *>np.PyArray_DATA(rides_array)
    cdef const yk_ride_done *done_p = <const yk_ride_done *>np.PyArray_DATA(done_array)
    cdef size_t n = len(done), i
    for i in range(n):
        yk_rides_after(rides_p, &done_p[i])
