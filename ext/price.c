#include "price.h"

#include <string.h>

enum { DAY_S = 86400, WEEKDAY = 0, WEEKEND = 1 };

/* ---- the blob ---- */

static int fits(uint64_t first, uint64_t count, uint32_t all) { return first + count <= all; }

int yk_tariff_open(yk_tariff *tariff, const void *blob, size_t bytes) {
    const uint32_t *words = blob;
    size_t at = 2;
    enum { TABLES = 0
#define YK_FIELD(name, type) + 1
        YK_TARIFF_TABLES(YK_FIELD)
#undef YK_FIELD
    };
    memset(tariff, 0, sizeof *tariff);
    if ((uintptr_t)blob % 4 || bytes < 4 * (2 + 3 * TABLES) || words[0] != YK_TARIFF_MAGIC || words[1] != bytes) return -1;
    /* For each table: offset in bytes, rows, bytes a row. */
#define YK_FIELD(name, type)                                                                                     \
    if (words[at + 2] != sizeof(type) || words[at] % 4 || words[at] + (uint64_t)words[at + 1] * sizeof(type) > bytes) return -1; \
    tariff->name = (const type *)((const uint8_t *)blob + words[at]);                                            \
    tariff->name##_count = words[at + 1];                                                                        \
    at += 3;
    YK_TARIFF_TABLES(YK_FIELD)
#undef YK_FIELD
    for (uint32_t i = 0; i < tariff->versions_count; i++) {
        const yk_tariff_version *v = &tariff->versions[i];
        if (!fits(v->networks_first, YK_NETWORKS_MAX, tariff->networks_count) ||
            !fits(v->concessions_first, YK_RIDERS_MAX * YK_NETWORKS_MAX, tariff->concessions_count) ||
            !fits(v->days_first, v->days_count, tariff->days_count) || !fits(v->legs_first, v->legs_count, tariff->legs_count) ||
            !fits(v->areas_first, v->areas_count, tariff->areas_count) ||
            !fits(v->transfers_first, v->transfers_count, tariff->transfers_count) ||
            !fits(v->caps_first, v->caps_count, tariff->caps_count) ||
            !fits(v->passes_first, v->passes_count, tariff->passes_count) || v->rounding_fen == 0)
            return -1;
    }
    for (uint32_t i = 0; i < tariff->legs_count; i++) {
        const yk_leg_rule *leg = &tariff->legs[i];
        if (leg->network >= YK_NETWORKS_MAX || !fits(leg->lines_first, leg->lines_count, tariff->spans_count) ||
            !fits(leg->operators_first, leg->operators_count, tariff->operators_count) ||
            !fits(leg->bands_first, leg->bands_count, tariff->bands_count) || leg->bands_count == 0)
            return -1;
    }
    for (uint32_t i = 0; i < tariff->bands_count; i++)
        if (tariff->bands[i].product >= tariff->products_count) return -1;
    uint32_t areas = 0;
    for (uint32_t i = 0; i < tariff->products_count; i++) {
        const yk_product *product = &tariff->products[i];
        if (!fits(product->rates_first, product->rates_count, tariff->rates_count) ||
            !fits(product->tiers_first, product->tiers_count, tariff->tiers_count) ||
            !fits(product->positions_first, product->positions_count, tariff->positions_count) || product->areas > 0xffff ||
            !fits(product->cells_first, (uint64_t)product->areas * product->areas, tariff->cells_count) ||
            (product->kind == YK_PRODUCT_DISTANCE && product->tiers_count == 0))
            return -1;
        areas = product->areas > areas ? product->areas : areas;
    }
    for (uint32_t i = 0; i < tariff->caps_count; i++)
        if (tariff->caps[i].slot >= YK_CAP_SLOTS) return -1;
    return 0;
}

/* ---- days ---- */

static uint32_t week_of(uint32_t day) { return (day + 3) / 7; } /* 1970 began on a Thursday; weeks begin on Monday */

/* Months since the year 0, of days since 1970 (the usual arithmetic of eras of 400 years that begin in March). */
static uint32_t month_of(uint32_t day) {
    uint32_t days = day + 719468, era = days / 146097, of_era = days - era * 146097;
    uint32_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    uint32_t of_year = of_era - (365 * year + year / 4 - year / 100), march_month = (5 * of_year + 2) / 153;
    return (year + era * 400) * 12 + march_month + 2;
}

static uint32_t period_of(uint32_t slot, uint32_t day) { return slot < 3 ? day : slot < 5 ? week_of(day) : month_of(day); }

/* Most often both are one day. */
static int in_one_period(uint32_t slot, uint32_t day, uint32_t other) {
    return day == other || period_of(slot, day) == period_of(slot, other);
}

static uint32_t day_kind(const yk_tariff *tariff, const yk_tariff_version *version, uint32_t day) {
    const yk_special_day *days = tariff->days + version->days_first;
    uint32_t low = 0, high = version->days_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (days[middle].day < day) low = middle + 1; else high = middle;
    }
    if (low < version->days_count && days[low].day == day) return days[low].kind;
    return (day + 3) % 7 >= 5 ? WEEKEND : WEEKDAY;
}

/* ---- which rule ---- */

static int in_spans(const yk_span *spans, uint32_t n, uint32_t number) {
    uint32_t low = 0, high = n;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (spans[middle].last < number) low = middle + 1; else high = middle;
    }
    return low < n && spans[low].first <= number;
}

static int is_operator(const yk_operator *operators, uint32_t n, uint32_t number) {
    for (uint32_t i = 0; i < n; i++)
        if (operators[i].number == number) return 1;
    return 0;
}

static const yk_tariff_version *version_of(const yk_tariff *tariff, uint32_t day) {
    for (uint32_t i = tariff->versions_count; i-- > 0;) {
        const yk_tariff_version *version = &tariff->versions[i];
        if (version->first_day <= day) return day <= version->last_day ? version : NULL;
    }
    return NULL;
}

static const yk_leg_rule *leg_of(const yk_tariff *tariff, const yk_tariff_version *version, const yk_ride *ride) {
    if (ride->industry >= 32) return NULL;
    for (uint32_t i = 0; i < version->legs_count; i++) {
        const yk_leg_rule *leg = &tariff->legs[version->legs_first + i];
        if (leg->industries >> ride->industry & 1 &&
            (!leg->lines_count || in_spans(tariff->spans + leg->lines_first, leg->lines_count, ride->line)) &&
            (!leg->operators_count ||
             is_operator(tariff->operators + leg->operators_first, leg->operators_count, ride->operator_number)))
            return leg;
    }
    return NULL;
}

static const yk_product *product_of(const yk_tariff *tariff, const yk_tariff_version *version, const yk_leg_rule *leg,
                                    uint32_t start_s) {
    const yk_band *bands = tariff->bands + leg->bands_first;
    uint32_t low = 0, high = leg->bands_count;
    if (high > 1) {
        uint32_t key = day_kind(tariff, version, start_s / DAY_S) * DAY_S + start_s % DAY_S;
        while (high - low > 1) { /* the last band that has begun */
            uint32_t middle = (low + high) / 2;
            if (bands[middle].start_s <= key) low = middle; else high = middle;
        }
    }
    return &tariff->products[bands[low].product];
}

/* ---- amounts ---- */

static int64_t round_fen(const yk_tariff_version *version, int64_t thousandths) {
    int64_t unit = 1000 * (int64_t)version->rounding_fen;
    return (thousandths + (version->rounding_down ? 0 : unit / 2)) / unit * version->rounding_fen;
}

/* A part of an amount; rounding never makes it more than the whole. */
static int64_t part_fen(const yk_tariff_version *version, int64_t amount_fen, uint32_t permille) {
    int64_t part = round_fen(version, amount_fen * permille);
    return part < amount_fen ? part : amount_fen;
}

static int64_t rated_fen(const yk_tariff *tariff, const yk_tariff_version *version, const yk_product *product, int64_t base_fen) {
    int64_t thousandths = 0;
    for (uint32_t i = 0; i < product->rates_count; i++) {
        const yk_rate *rate = &tariff->rates[product->rates_first + i];
        if (base_fen <= rate->min_fen) break;
        int64_t end_fen = base_fen < rate->max_fen ? base_fen : rate->max_fen;
        thousandths += (end_fen - rate->min_fen) * rate->permille;
    }
    return round_fen(version, thousandths);
}

/* The area of a stop in a network, or -1. */
static int64_t area_of(const yk_tariff *tariff, const yk_tariff_version *version, uint32_t network, uint32_t stop) {
    const yk_area *areas = tariff->areas + version->areas_first;
    uint32_t low = 0, high = version->areas_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (areas[middle].network < network || (areas[middle].network == network && areas[middle].last < stop)) low = middle + 1;
        else high = middle;
    }
    if (low == version->areas_count || areas[low].network != network || areas[low].first > stop) return -1;
    return areas[low].area;
}

/* Metres along the line, or -1. */
static int64_t position_of(const yk_tariff *tariff, const yk_product *product, uint32_t stop) {
    const yk_position *positions = tariff->positions + product->positions_first;
    uint32_t low = 0, high = product->positions_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (positions[middle].stop < stop) low = middle + 1; else high = middle;
    }
    if (low == product->positions_count || positions[low].stop != stop) return -1;
    return positions[low].at_m;
}

/* Between two stops: -1 where the exit's is not known, -2 where the entry's is not. */
static int64_t between_fen(const yk_tariff *tariff, const yk_tariff_version *version, const yk_product *product,
                           uint32_t entry_stop, uint32_t exit_stop) {
    int zones = product->kind == YK_PRODUCT_ZONES;
    int64_t to = zones ? area_of(tariff, version, product->network, exit_stop) : position_of(tariff, product, exit_stop);
    if (to < 0 || (zones && to >= product->areas)) return -1;
    int64_t from = zones ? area_of(tariff, version, product->network, entry_stop) : position_of(tariff, product, entry_stop);
    if (from < 0 || (zones && from >= product->areas)) return -2;
    if (zones) return tariff->cells[product->cells_first + from * product->areas + to].amount_fen;
    int64_t metres = to > from ? to - from : from - to;
    uint32_t i = product->tiers_count - 1;
    while (i > 0 && tariff->tiers[product->tiers_first + i].min_m > metres) i--;
    return tariff->tiers[product->tiers_first + i].amount_fen;
}

/* ---- concessions, passes, transfers ---- */

static const yk_concession *concession_of(const yk_tariff *tariff, const yk_tariff_version *version, const yk_rides *rides,
                                          const yk_ride *ride, uint32_t network) {
    uint32_t day = ride->local_s / DAY_S, rider = ride->rider;
    if (rider == 0 || rider >= YK_RIDERS_MAX || (ride->rider_until && day > ride->rider_until)) rider = YK_RIDER_ORDINARY;
    const yk_concession *concession = &tariff->concessions[version->concessions_first + rider * YK_NETWORKS_MAX + network];
    if (!concession->rule) return NULL;
    if (!concession->month_rides_max) return concession;
    uint32_t used = month_of(day) == month_of(rides->day) ? rides->month_rides : 0;
    return used >= concession->month_rides_max ? NULL : concession;
}

static const yk_pass *pass_of(const yk_tariff *tariff, const yk_tariff_version *version, const yk_ride *ride, uint32_t network) {
    if (!ride->pass || (ride->pass_until && ride->local_s / DAY_S > ride->pass_until)) return NULL;
    for (uint32_t i = 0; i < version->passes_count; i++) {
        const yk_pass *pass = &tariff->passes[version->passes_first + i];
        if (pass->number == ride->pass && pass->networks >> network & 1) return pass;
    }
    return NULL;
}

static int transfers_by_time(const yk_transfer_rule *rule, const yk_rides *rides, const yk_ride *ride, uint32_t network,
                             uint32_t start_s) {
    if (!rule->by_time || !rides->last_network || rides->last_network > YK_NETWORKS_MAX) return 0;
    if (!(rule->from_networks >> (rides->last_network - 1) & 1)) return 0;
    if (rule->other_line && rides->last_network == network + 1 && rides->last_line == ride->line) return 0;
    int64_t waited_s = (int64_t)(rule->to_start ? start_s : ride->local_s) - (rule->from_start ? rides->last_start_s : rides->last_end_s);
    return waited_s >= rule->min_s && waited_s <= rule->max_s;
}

static const yk_transfer_rule *transfer_of(const yk_tariff *tariff, const yk_tariff_version *version, const yk_rides *rides,
                                           const yk_ride *ride, uint32_t network, uint32_t start_s) {
    for (uint32_t i = 0; i < version->transfers_count; i++) {
        const yk_transfer_rule *rule = &tariff->transfers[version->transfers_first + i];
        if (!(rule->to_networks >> network & 1) || rides->chain >= rule->chain_max) continue;
        if ((rule->by_statement && ride->stated) || transfers_by_time(rule, rides, ride, network, start_s)) return rule;
    }
    return NULL;
}

/* ---- one tap ---- */

static int not_priced(yk_fare *fare, uint8_t outcome) {
    memset(fare, 0, sizeof *fare);
    return fare->outcome = outcome;
}

static void adjust(yk_fare *fare, uint32_t rule, int64_t amount_fen) {
    if (amount_fen == 0) return;
    fare->adjustments[fare->adjustment_count++] = (yk_adjustment){.amount_fen = amount_fen, .rule = rule};
    fare->charged_fen += amount_fen;
}

/* What the last entry costs, since no exit of it came. Whoever rides at a rate is charged at that rate. */
static void charge_missing_exit(const yk_tariff *tariff, const yk_tariff_version *version, const yk_rides *rides,
                                const yk_ride *ride, yk_fare *fare) {
    uint32_t network = (rides->entry_place >> 24) - 1;
    if (network >= YK_NETWORKS_MAX) return;
    const yk_network *rules = &tariff->networks[version->networks_first + network];
    const yk_pass *pass = pass_of(tariff, version, ride, network);
    const yk_concession *concession = concession_of(tariff, version, rides, ride, network);
    uint32_t permille = pass ? pass->permille : concession ? concession->rate_permille : 1000;
    adjust(fare, rules->missing_exit_rule, part_fen(version, rules->missing_exit_fen, permille));
}

/* The base fare of a ride that ends here. 0, or the outcome where there is none. */
static int set_base(const yk_tariff *tariff, const yk_tariff_version *version, const yk_rides *rides, const yk_ride *ride,
                    const yk_leg_rule *leg, const yk_product *product, int matched, yk_fare *fare) {
    fare->base_rule = (uint16_t)leg->rule;
    if (product->kind == YK_PRODUCT_FLAT) {
        fare->base_fen = product->amount_fen;
    } else if (product->kind == YK_PRODUCT_NOMINAL) {
        fare->base_fen = ride->nominal_fen;
    } else {
        int64_t between = between_fen(tariff, version, product, rides->entry_place & 0xffffff, ride->stop);
        if (between == -1) return YK_FARE_UNKNOWN_STOP;
        if (matched && between >= 0) {
            fare->base_fen = between;
        } else {
            const yk_network *network = &tariff->networks[version->networks_first + leg->network];
            fare->base_fen = network->missing_entry_fen;
            fare->base_rule = (uint16_t)network->missing_entry_rule;
        }
    }
    fare->charged_fen = fare->base_fen;
    return 0;
}

/* Pass, concession or the product's rates, and then a transfer: what the rider is charged of the base. */
static void reduce(const yk_tariff *tariff, const yk_tariff_version *version, const yk_rides *rides, const yk_ride *ride,
                   const yk_product *product, uint32_t network, uint32_t start_s, yk_fare *fare) {
    const yk_pass *pass = pass_of(tariff, version, ride, network);
    const yk_concession *concession = pass ? NULL : concession_of(tariff, version, rides, ride, network);
    if (!pass && product->rates_count && (!concession || concession->of_discounted))
        adjust(fare, product->rates_rule, rated_fen(tariff, version, product, fare->base_fen) - fare->charged_fen);
    if (pass) {
        adjust(fare, pass->rule, part_fen(version, fare->charged_fen, pass->permille) - fare->charged_fen);
    } else if (concession) {
        adjust(fare, concession->rule, part_fen(version, fare->charged_fen, concession->rate_permille) - fare->charged_fen);
        if (concession->month_rides_max) fare->marks |= YK_MARK_CONCESSION;
    }
    if (concession && !concession->transfers) return;
    const yk_transfer_rule *rule = transfer_of(tariff, version, rides, ride, network, start_s);
    if (!rule) return;
    fare->marks |= YK_MARK_TRANSFER;
    int64_t left_fen = part_fen(version, fare->charged_fen, rule->permille) - rule->amount_off_fen;
    adjust(fare, rule->rule, (left_fen > 0 ? left_fen : 0) - fare->charged_fen);
}

static void apply_caps(const yk_tariff *tariff, const yk_tariff_version *version, const yk_rides *rides, const yk_ride *ride,
                       uint32_t network, yk_fare *fare) {
    uint32_t day = ride->local_s / DAY_S;
    int64_t least_fen = fare->charged_fen;
    uint32_t rule = 0;
    for (uint32_t i = 0; i < version->caps_count; i++) {
        const yk_cap *cap = &tariff->caps[version->caps_first + i];
        if (!(cap->networks >> network & 1)) continue;
        fare->marks |= (uint16_t)(1u << cap->slot);
        int64_t spent_fen = in_one_period(cap->slot, day, rides->day) ? rides->spent_fen[cap->slot] : 0;
        int64_t left_fen = spent_fen < cap->amount_fen ? cap->amount_fen - spent_fen : 0;
        if (left_fen < least_fen) {
            least_fen = left_fen;
            rule = cap->rule;
        }
    }
    adjust(fare, rule, least_fen - fare->charged_fen);
}

static int is_old(const yk_rides *rides, uint32_t local_s) {
    return (rides->entry_place && local_s > (uint64_t)rides->entry_s + YK_RIDES_KEPT_S) ||
           (rides->last_network && local_s > (uint64_t)rides->last_end_s + YK_RIDES_KEPT_S);
}

static void forget(yk_rides *rides, uint32_t local_s) {
    if (rides->entry_place && local_s > (uint64_t)rides->entry_s + YK_RIDES_KEPT_S)
        rides->entry_s = rides->entry_line = rides->entry_place = 0;
    if (rides->last_network && local_s > (uint64_t)rides->last_end_s + YK_RIDES_KEPT_S) {
        rides->last_start_s = rides->last_end_s = rides->last_line = 0;
        rides->last_network = rides->chain = 0;
    }
}

int yk_price(const yk_tariff *tariff, const yk_rides *rides, const yk_ride *ride, yk_fare *fare) {
    memset(fare, 0, sizeof *fare);
    yk_rides young;
    if (is_old(rides, ride->local_s)) {
        young = *rides;
        forget(&young, ride->local_s);
        rides = &young;
    }
    const yk_tariff_version *version = version_of(tariff, ride->local_s / DAY_S);
    if (!version) return not_priced(fare, YK_FARE_NO_TARIFF);
    const yk_leg_rule *leg = leg_of(tariff, version, ride);
    if (!leg) return not_priced(fare, YK_FARE_NO_RULE);
    fare->outcome = YK_FARE_PRICED;
    fare->base_rule = (uint16_t)leg->rule;
    if (ride->kind != YK_RIDE_ENTRY && ride->kind != YK_RIDE_EXIT && ride->kind != YK_RIDE_SINGLE) return YK_FARE_PRICED;

    uint32_t network = leg->network;
    fare->marks = (uint16_t)((network + 1) << YK_MARK_NETWORK_SHIFT);
    int open = rides->entry_place != 0 && rides->entry_s <= ride->local_s;
    int matched = open && ride->kind == YK_RIDE_EXIT && rides->entry_place >> 24 == network + 1 &&
                  ride->local_s - rides->entry_s <= tariff->networks[version->networks_first + network].journey_s_max;
    uint32_t start_s = matched ? rides->entry_s : ride->local_s;
    if (matched) fare->marks |= YK_MARK_ENTRY_MATCHED;
    if (ride->kind != YK_RIDE_ENTRY) {
        const yk_product *product = product_of(tariff, version, leg, start_s);
        int none = set_base(tariff, version, rides, ride, leg, product, matched, fare);
        if (none) return not_priced(fare, (uint8_t)none);
        reduce(tariff, version, rides, ride, product, network, start_s, fare);
    }
    if (open && !matched && ride->kind != YK_RIDE_SINGLE) charge_missing_exit(tariff, version, rides, ride, fare);
    apply_caps(tariff, version, rides, ride, network, fare);
    return YK_FARE_PRICED;
}

/* ---- a card's memory ---- */

static uint32_t plus(uint32_t sum, int64_t amount_fen) {
    int64_t more = amount_fen > 0 ? (int64_t)sum + (amount_fen < UINT32_MAX ? amount_fen : UINT32_MAX) : sum;
    return more < UINT32_MAX ? (uint32_t)more : UINT32_MAX;
}

/* Sums are kept of the periods that hold the newest day; a tap of an earlier period adds to nothing. */
static void count(yk_rides *rides, const yk_ride_done *done) {
    uint32_t day = done->local_s / DAY_S;
    if (day > rides->day) {
        for (uint32_t slot = 0; slot < YK_CAP_SLOTS; slot++)
            if (!in_one_period(slot, day, rides->day)) rides->spent_fen[slot] = 0;
        if (month_of(day) != month_of(rides->day)) rides->month_rides = 0;
        rides->day = (uint16_t)day;
    }
    for (uint32_t slot = 0; slot < YK_CAP_SLOTS; slot++)
        if (done->marks >> slot & 1 && in_one_period(slot, day, rides->day))
            rides->spent_fen[slot] = plus(rides->spent_fen[slot], done->charged_fen);
    if (done->marks & YK_MARK_CONCESSION && month_of(day) == month_of(rides->day) && rides->month_rides < UINT16_MAX)
        rides->month_rides++;
}

void yk_rides_after(yk_rides *rides, const yk_ride_done *done) {
    uint8_t network = (uint8_t)((done->marks & YK_MARK_NETWORK) >> YK_MARK_NETWORK_SHIFT);
    if (!network) return;
    count(rides, done);
    uint32_t newest_s = rides->entry_place && rides->entry_s > rides->last_end_s ? rides->entry_s : rides->last_end_s;
    if (done->local_s < newest_s) return;
    forget(rides, done->local_s);
    if (done->kind == YK_RIDE_ENTRY) {
        rides->entry_s = done->local_s;
        rides->entry_line = done->line;
        rides->entry_place = (uint32_t)network << 24 | (done->stop & 0xffffff);
        return;
    }
    rides->last_start_s = done->marks & YK_MARK_ENTRY_MATCHED ? rides->entry_s : done->local_s;
    rides->last_end_s = done->local_s;
    rides->last_line = done->line;
    rides->last_network = network;
    rides->chain = done->marks & YK_MARK_TRANSFER ? (uint8_t)(rides->chain < UINT8_MAX ? rides->chain + 1 : UINT8_MAX) : 0;
    if (done->kind == YK_RIDE_EXIT) rides->entry_s = rides->entry_line = rides->entry_place = 0;
}

void yk_price_many(const yk_tariff *tariff, yk_rides *rides, const uint32_t *cards, const yk_ride *ride, yk_fare *fares, size_t n) {
    for (size_t i = 0; i < n; i++) {
        yk_price(tariff, &rides[cards[i]], &ride[i], &fares[i]);
        yk_ride_done done = {
            .local_s = ride[i].local_s, .line = ride[i].line, .stop = ride[i].stop, .marks = fares[i].marks, .kind = ride[i].kind,
            .charged_fen = fares[i].charged_fen,
        };
        yk_rides_after(&rides[cards[i]], &done);
    }
}
