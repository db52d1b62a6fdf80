"""The C of price.h that others need: who cimports it compiles ext/price.c into its own extension."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t


cdef extern from "price.h" nogil:
    enum: YK_ADJUSTMENTS_MAX, YK_CAP_SLOTS, YK_FARE_PRICED
    ctypedef struct yk_tariff:
        pass
    ctypedef struct yk_rides:
        pass
    ctypedef struct yk_ride:
        pass
    ctypedef struct yk_fare:
        int64_t charged_fen
        uint16_t marks
        uint8_t outcome
    ctypedef struct yk_ride_done:
        uint32_t local_s, line, stop
        uint16_t marks
        uint8_t kind
        int64_t charged_fen

    int yk_tariff_open(yk_tariff *tariff, const void *blob, size_t bytes)
    int yk_price(const yk_tariff *tariff, const yk_rides *rides, const yk_ride *ride, yk_fare *fare)
    void yk_rides_after(yk_rides *rides, const yk_ride_done *done)
    void yk_price_many(
        const yk_tariff *tariff, yk_rides *rides, const uint32_t *cards, const yk_ride *ride, yk_fare *fares, size_t n
    )
