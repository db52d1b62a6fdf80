/* Fares: what a tap costs under a compiled tariff, given what the card remembers of its rides. Pure functions, integers only,
 * nothing is allocated; a tariff may be read by any number of threads.
 *
 * core/rules/tariff.py says what a tariff means, core/rules/compile.py makes the blob, core/rules/fares.py is the plain twin.
 *
 * A card's rides are priced one after another: yk_price looks at `yk_rides`, and yk_rides_after advances it by what happened. The
 * second knows no tariff: all it needs stands in the tap's journal record, so a restart brings a card's memory back from the
 * journal alone. The property that pricing late taps again rests on: a fare depends on the tariff, the ride and the card's
 * memory before it, and on nothing else; so from one known yk_rides, the taps that followed it, sorted (by local time, then by the
 * card's counter), give the same fares and the same yk_rides at the end, whatever the order was in which they arrived.
 * Taps that are not sorted stay safe: one that is earlier than what the memory holds already adds to the sums of the periods
 * that are still remembered, and changes neither the open entry nor the last ride.
 * What lies further back than YK_RIDES_KEPT_S is forgotten, so that a memory can be made again from the taps since then. */
#ifndef YK_PRICE_H
#define YK_PRICE_H

#include <stddef.h>
#include <stdint.h>

enum { YK_NETWORKS_MAX = 31, YK_RIDERS_MAX = 8, YK_CAP_SLOTS = 7, YK_ADJUSTMENTS_MAX = 6 };
enum { YK_RIDES_KEPT_S = 35 * 86400 }; /* an open entry, the last ride: longer than a calendar month, whose sums it outlives */

/* Kinds of tap (TapKind) and the rider category that has no concession of its own (Rider). */
enum { YK_RIDE_ENTRY = 1, YK_RIDE_EXIT = 2, YK_RIDE_SINGLE = 3, YK_RIDE_CHECK = 4, YK_RIDER_ORDINARY = 1 };

enum {
    YK_FARE_PRICED = 1,
    YK_FARE_NO_TARIFF = 2,    /* no version is in force on that day */
    YK_FARE_NO_RULE = 3,      /* no leg rule fits */
    YK_FARE_UNKNOWN_STOP = 4, /* the zone matrix or the distances do not have this tap's stop */
};

/* What a ride leaves behind for yk_rides_after and cannot be read from its record otherwise: two bytes of the record. */
enum {
    YK_MARK_CAPS = 0x7f,            /* the slots of spent_fen that the charge counts in */
    YK_MARK_CONCESSION = 0x80,      /* a concession that is limited to a number of rides a month was used */
    YK_MARK_NETWORK_SHIFT = 8,      /* five bits: 1 + the network's number; 0: not priced, or only a check */
    YK_MARK_NETWORK = 0x1f00,
    YK_MARK_TRANSFER = 0x2000,      /* a transfer rule applied */
    YK_MARK_ENTRY_MATCHED = 0x4000, /* this exit belongs to the entry that was open */
};

/* A card's memory of its rides. All zero: a card that never rode. Local times are seconds since 1970 by the wall clock. */
typedef struct {
    uint32_t entry_s;
    uint32_t entry_line;
    uint32_t entry_place;   /* stop, and above its 24 bits 1 + the network's number; 0: no entry is open */
    uint32_t last_start_s;  /* the last ride: its entry, or where that is not known its only tap */
    uint32_t last_end_s;
    uint32_t last_line;
    uint32_t spent_fen[YK_CAP_SLOTS]; /* under caps: 0 to 2 by day, 3 and 4 by week, 5 and 6 by month: of the periods that hold `day` */
    uint16_t day;           /* of the newest charge, days since 1970 */
    uint16_t month_rides;   /* with a limited concession, in the month that holds `day` */
    uint8_t last_network;   /* 1 + its number; 0: no ride yet */
    uint8_t chain;          /* transfers in a row that the last ride ended */
    uint16_t newest_atc;    /* the newest tap that was priced against this memory: its card counter and, */
    uint32_t newest_s;      /* its local time; kept by whoever books the taps, to tell that one comes late */
} yk_rides;

_Static_assert(sizeof(yk_rides) == 64, "one cache line a card");

/* One tap to be priced. Days are since 1970; 0 is no end. */
typedef struct {
    uint32_t local_s;
    uint32_t line;
    uint32_t stop;
    uint32_t nominal_fen; /* as the terminal states it */
    uint32_t rider_until; /* the last day of the card's rider category */
    uint32_t pass_until;
    uint16_t operator_number; /* as the tariff numbers those that it names; 0: any other */
    uint8_t industry;
    uint8_t kind;
    uint8_t rider;
    uint8_t pass;         /* the card's pass as the tariff numbers them; 0: none */
    uint8_t stated;       /* the terminal states a transfer */
    uint8_t reserved;
} yk_ride;

typedef struct {
    int64_t amount_fen; /* signed, never 0 */
    uint32_t rule;
    uint32_t reserved;
} yk_adjustment;

/* base_fen plus all adjustments is charged_fen, which is never negative. */
typedef struct {
    int64_t base_fen;
    int64_t charged_fen;
    yk_adjustment adjustments[YK_ADJUSTMENTS_MAX];
    uint16_t base_rule;
    uint16_t marks;
    uint8_t outcome;
    uint8_t adjustment_count;
    uint8_t reserved[2];
} yk_fare;

/* What happened, as the tap's journal record tells it. */
typedef struct {
    uint32_t local_s;
    uint32_t line;
    uint32_t stop;
    uint16_t marks;
    uint8_t kind;
    uint8_t reserved;
    int64_t charged_fen;
} yk_ride_done;

/* ---- the compiled tariff: tables of uint32_t, one after the other, found through the header ---- */

typedef struct {
    uint32_t first_day, last_day;
    uint32_t rounding_fen, rounding_down;
    uint32_t networks_first;    /* YK_NETWORKS_MAX of them */
    uint32_t concessions_first; /* YK_RIDERS_MAX × YK_NETWORKS_MAX */
    uint32_t days_first, days_count;
    uint32_t legs_first, legs_count;
    uint32_t areas_first, areas_count;
    uint32_t transfers_first, transfers_count;
    uint32_t caps_first, caps_count;
    uint32_t passes_first, passes_count;
} yk_tariff_version;

typedef struct { uint32_t missing_entry_fen, missing_entry_rule, missing_exit_fen, missing_exit_rule, journey_s_max; } yk_network;
typedef struct { uint32_t rule, rate_permille, of_discounted, month_rides_max, transfers; } yk_concession; /* rule 0: none */
typedef struct { uint32_t day, kind; } yk_special_day;                       /* sorted by day */
typedef struct {
    uint32_t rule, network, industries;
    uint32_t lines_first, lines_count;         /* count 0: any line */
    uint32_t operators_first, operators_count; /* likewise */
    uint32_t bands_first, bands_count;         /* at least one */
} yk_leg_rule;
typedef struct { uint32_t first, last; } yk_span;                            /* sorted */
typedef struct { uint32_t number; } yk_operator;
typedef struct { uint32_t start_s, product; } yk_band;                       /* kind of day × 86,400 + second; sorted, from 0 on */
typedef struct {
    uint32_t kind, amount_fen;
    uint32_t rates_rule, rates_first, rates_count;
    uint32_t tiers_first, tiers_count, positions_first, positions_count;
    uint32_t network, areas, cells_first;      /* areas × areas cells, by entry and then exit */
} yk_product;
typedef struct { uint32_t min_fen, max_fen, permille; } yk_rate;
typedef struct { uint32_t min_m, amount_fen; } yk_tier;
typedef struct { uint32_t stop, at_m; } yk_position;                         /* sorted by stop */
typedef struct { uint32_t network, first, last, area; } yk_area;             /* sorted by network and stop */
typedef struct { uint32_t amount_fen; } yk_cell;
typedef struct {
    uint32_t rule, from_networks, to_networks, min_s, max_s, from_start, to_start;
    uint32_t amount_off_fen, permille, chain_max, other_line, by_time, by_statement;
} yk_transfer_rule;
typedef struct { uint32_t rule, slot, networks, amount_fen; } yk_cap;
typedef struct { uint32_t rule, number, networks, permille; } yk_pass;

enum { YK_PRODUCT_FLAT = 0, YK_PRODUCT_NOMINAL = 1, YK_PRODUCT_DISTANCE = 2, YK_PRODUCT_ZONES = 3 };

/* The tables in the blob's order. */
#define YK_TARIFF_TABLES(X) \
    X(versions, yk_tariff_version) X(networks, yk_network) X(concessions, yk_concession) X(days, yk_special_day) \
    X(legs, yk_leg_rule) X(spans, yk_span) X(operators, yk_operator) X(bands, yk_band) X(products, yk_product) \
    X(rates, yk_rate) X(tiers, yk_tier) X(positions, yk_position) X(areas, yk_area) X(cells, yk_cell) \
    X(transfers, yk_transfer_rule) X(caps, yk_cap) X(passes, yk_pass)

enum { YK_TARIFF_MAGIC = 0x31544b59 }; /* "YKT1" */

/* A view of a blob, which must outlive it. */
typedef struct {
#define YK_FIELD(name, type) const type *name; uint32_t name##_count;
    YK_TARIFF_TABLES(YK_FIELD)
#undef YK_FIELD
} yk_tariff;

/* 0, or -1 where the bytes (aligned to 4) are no tariff of this build's making; every index in it has been checked then. */
int yk_tariff_open(yk_tariff *tariff, const void *blob, size_t bytes);

/* Price one tap. Returns the outcome, which is in the fare as well; what is not YK_FARE_PRICED is charged 0 and marks nothing. */
int yk_price(const yk_tariff *tariff, const yk_rides *rides, const yk_ride *ride, yk_fare *fare);

/* Advance a card's memory by a tap that was booked. */
void yk_rides_after(yk_rides *rides, const yk_ride_done *done);

/* Price n taps in turn, each against its card's memory, and advance that. */
void yk_price_many(const yk_tariff *tariff, yk_rides *rides, const uint32_t *cards, const yk_ride *ride, yk_fare *fares, size_t n);

#endif
