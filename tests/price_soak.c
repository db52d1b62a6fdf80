/* Prices random rides against random memories, under sanitizers: argv[1] is a compiled tariff, argv[2] how many rides.
 * Exits with 1 where an explanation does not add up, a charge is negative or a cap's memory goes back within its period. */
#include <stdio.h>
#include <stdlib.h>

#include "../ext/price.c"

static uint64_t state = 88172645463325252u;

static uint64_t next(void) { /* xorshift */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void scramble(void *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) ((uint8_t *)bytes)[i] = (uint8_t)next();
}

int main(int argc, char **argv) {
    FILE *file = argc == 3 ? fopen(argv[1], "rb") : NULL;
    if (!file) return 2;
    fseek(file, 0, SEEK_END);
    size_t bytes = (size_t)ftell(file);
    rewind(file);
    void *blob = malloc(bytes); /* exactly as large, so that the sanitizer sees a read past it */
    if (fread(blob, 1, bytes, file) != bytes) return 2;
    fclose(file);
    yk_tariff tariff;
    if (yk_tariff_open(&tariff, blob, bytes)) return 3;
    for (long i = 0, n = atol(argv[2]); i < n; i++) {
        yk_rides rides;
        yk_ride ride;
        yk_fare fare;
        scramble(&rides, sizeof rides);
        scramble(&ride, sizeof ride);
        if (i % 4) { /* mostly what the tariff knows of */
            ride.local_s = 1767200000u + (uint32_t)(next() % 31000000u);
            ride.industry = (uint8_t)(1u << next() % 4);
            ride.kind = (uint8_t)(1 + next() % 4);
            ride.stop = (uint32_t)(next() % 12);
            ride.rider = (uint8_t)(next() % 9);
            rides.entry_s = ride.local_s - (uint32_t)(next() % 20000);
            rides.entry_place = (uint32_t)(next() % 12 | (next() % 8) << 24);
            rides.last_network = (uint8_t)(next() % 5);
            rides.last_end_s = ride.local_s - (uint32_t)(next() % 8000);
            rides.day = (uint16_t)(ride.local_s / DAY_S - next() % 3);
        }
        yk_price(&tariff, &rides, &ride, &fare);
        int64_t sum_fen = fare.base_fen;
        if (fare.adjustment_count > YK_ADJUSTMENTS_MAX) return 1;
        for (int a = 0; a < fare.adjustment_count; a++) sum_fen += fare.adjustments[a].amount_fen;
        if (sum_fen != fare.charged_fen || fare.charged_fen < 0) return 1;
        yk_rides after = rides;
        yk_ride_done done = {ride.local_s, ride.line, ride.stop, (uint16_t)(i % 8 ? fare.marks : next()), ride.kind, 0, fare.charged_fen};
        yk_rides_after(&after, &done);
        for (uint32_t slot = 0; slot < YK_CAP_SLOTS; slot++)
            if (period_of(slot, after.day) == period_of(slot, rides.day) && after.spent_fen[slot] < rides.spent_fen[slot]) return 1;
    }
    free(blob);
    return 0;
}
