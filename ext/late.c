/* Cards with late taps, priced again from the records at hand. core/late.py reads the journal instead, where they do not reach.
 *
 * Beside each ride that did not come late stands what its card remembered when it was priced. Among a card's newest rides one is
 * looked for that may be begun with: it and all rides that were written after it have their places (local time, then the card's
 * counter) after the newest ride of which that memory knew. Then every ride written before it has its place before all of these:
 * the memory knew of it, for it knew of all rides written before, but where a late one was still waiting to be priced (and then
 * it is marked as nothing to begin with), and none that it knew of comes later than its newest. So in the right order the rides
 * written before come first, all of them, and what they leave behind is that memory; then come those from it on, sorted. Their
 * charges are what their newest corrections say, which were written later still and are met on the way. Checks leave nothing
 * behind and cost nothing, whatever comes before them. */
#include "engine.h"

enum { TAPS_MAX = 64, RECORDS_MAX = 256 }; /* of the card, that are looked at; a late tap is seldom more than a few too late */

/* A priced tap as it stands after its corrections. */
typedef struct {
    const yk_record *record;
    const yk_record *newest; /* its newest correction; without one the tap's own record */
    int64_t charged_fen;
    uint32_t local_s;
    uint8_t pass_number;
} late_tap;

typedef struct {
    late_tap taps[TAPS_MAX];
    const yk_record *corrections[TAPS_MAX]; /* newest first */
    uint32_t tap_count, correction_count;
    const yk_rides *before;                 /* the first of them */
} late_card;

static int is_before(const late_tap *a, const late_tap *b) {
    return a->local_s < b->local_s || (a->local_s == b->local_s && a->record->atc < b->record->atc);
}

static late_tap *add_tap(late_card *of, const yk_engine *engine, const yk_record *record, uint32_t purse) {
    late_tap *tap = &of->taps[of->tap_count++];
    *tap = (late_tap){
        .record = record, .newest = record, .charged_fen = record->amount_fen,
        .local_s = (uint32_t)(yk_local_seconds(record->local_date, record->local_time) + YK_UTC8_S),
        .pass_number = engine->notes[record->sequence & (engine->config.ring_records - 1)].pass_number,
    };
    for (uint32_t i = of->correction_count; i-- > 0;) {
        const yk_record *correction = of->corrections[i];
        if (correction->atc != record->atc) continue;
        tap->newest = correction;
        tap->charged_fen += correction->debit_account == purse ? correction->amount_fen : -correction->amount_fen;
    }
    return tap;
}

/* The card's taps from one on that may be begun with, newest first; 0 where none is at hand. */
static int gather(const yk_engine *engine, uint32_t slot, late_card *of) {
    const yk_card *card = yk_table_read(&engine->cards, slot);
    const late_tap *least = NULL;
    uint64_t sequence = card->last_sequence;
    of->tap_count = of->correction_count = 0;
    for (uint32_t i = 0; i < RECORDS_MAX && sequence >= engine->notes_first && yk_in_ring(engine, sequence, 0); i++) {
        uint64_t at = sequence & (engine->config.ring_records - 1);
        const yk_record *record = &engine->ring[at];
        sequence = record->card_previous;
        if (!(record->flags & YK_FLAG_PRICED)) continue;
        if (record->kind == YK_RECORD_POSTING) {
            if (of->correction_count == TAPS_MAX) return 0;
            of->corrections[of->correction_count++] = record;
            continue;
        }
        if (of->tap_count == TAPS_MAX) return 0;
        const late_tap *tap = add_tap(of, engine, record, card->account);
        if (!yk_is_ride(record->tap_kind)) continue;
        if (!least || is_before(tap, least)) least = tap;
        if (record->fare_flags & YK_FARE_PROVISIONAL) continue;
        of->before = &engine->rides_before[at];
        if (!yk_is_late(of->before, least->local_s, least->record->atc)) return 1;
    }
    return 0;
}

static void sort(late_tap *taps, uint32_t n) {
    for (uint32_t i = 1; i < n; i++) {
        late_tap moved = taps[i];
        uint32_t at = i;
        for (; at > 0 && is_before(&moved, &taps[at - 1]); at--) taps[at] = taps[at - 1];
        taps[at] = moved;
    }
}

/* The ride as it was priced at first: with the rider category and pass of then. */
static yk_ride ride_of(const yk_engine *engine, const late_tap *tap) {
    const yk_record *record = tap->record;
    return (yk_ride){
        .local_s = tap->local_s,
        .line = record->line,
        .stop = record->stop,
        .nominal_fen = record->amount_due_fen ? record->amount_due_fen : record->tap_amount_fen,
        .operator_number = ((const yk_terminal *)yk_table_read(&engine->terminals, record->terminal))->operator_number,
        .industry = record->industry,
        .kind = record->tap_kind,
        .rider = (uint8_t)((record->fare_flags & YK_FARE_RIDER) >> YK_FARE_RIDER_SHIFT),
        .pass = engine->pass_numbers[tap->pass_number],
        .stated = record->fare_flags & YK_FARE_STATED,
    };
}

static void ride(yk_rides *rides, const late_tap *tap, uint16_t marks, int64_t charged_fen) {
    yk_ride_done done = {
        .local_s = tap->local_s, .line = tap->record->line, .stop = tap->record->stop, .marks = marks,
        .kind = tap->record->tap_kind, .charged_fen = charged_fen,
    };
    yk_rides_after(rides, &done);
    if (!yk_is_ride(tap->record->tap_kind)) return;
    rides->newest_s = tap->local_s;
    rides->newest_atc = tap->record->atc;
}

enum { FACTS_BYTES_MAX = sizeof(yk_correction) + YK_ADJUSTMENTS_BYTES_MAX };

static uint32_t put_facts(const yk_engine *engine, const late_tap *tap, const yk_fare *fare, uint8_t *out) {
    const yk_record *record = tap->record;
    yk_correction correction = {
        .terminal = record->terminal, .terminal_sequence = record->terminal_sequence, .local_date = record->local_date,
        .local_time = record->local_time, .line = record->line, .stop = record->stop, .base_fen = (uint32_t)fare->base_fen,
        .atc = record->atc, .fare_marks = fare->marks, .fare_rule = engine->rule_numbers[fare->base_rule],
        .tap_kind = record->tap_kind, .fare_flags = record->fare_flags & (uint8_t)~YK_FARE_PROVISIONAL,
    };
    yk_fare_note note;
    yk_explain(engine, fare, &note);
    memcpy(out, &correction, sizeof correction);
    return (uint32_t)(yk_put_adjustments(out + sizeof correction, &note) - out);
}

/* The step that makes good what a tap was charged. */
static yk_step correct(const yk_engine *engine, uint32_t card, uint32_t purse, const late_tap *tap, int64_t charged_fen,
                       yk_corrections *corrections) {
    uint32_t operator_account = ((const yk_terminal *)yk_table_read(&engine->terminals, tap->record->terminal))->account;
    int64_t more_fen = charged_fen - tap->charged_fen;
    yk_step step = {.kind = YK_RECORD_POSTING, .why = YK_POSTING_CORRECTION, .card = card};
    if (more_fen >= 0) {
        step.debit = purse, step.credit = operator_account, step.amount_fen = more_fen;
        corrections->taken += more_fen > 0;
        corrections->taken_fen += more_fen;
    } else {
        step.debit = operator_account, step.credit = purse, step.amount_fen = -more_fen;
        corrections->given++;
        corrections->given_fen -= more_fen;
    }
    return step;
}

int yk_price_late(yk_engine *engine, const yk_late_tap *from, int64_t time_us, const uint8_t *event, uint32_t event_bytes,
                  const uint8_t digest[32], yk_corrections *corrections) {
    /* 1. The card's taps, in their right order, and what it remembered before the first of them. */
    late_card of;
    if (!gather(engine, from->card, &of)) return YK_NOT_AT_HAND;
    sort(of.taps, of.tap_count);
    yk_rides rides = *of.before;

    /* 2. Those before the late one stand as they are; it and all after it are priced anew. */
    uint32_t purse = ((const yk_card *)yk_table_read(&engine->cards, from->card))->account, n = 0;
    yk_step steps[TAPS_MAX + 1];
    uint8_t facts[TAPS_MAX][FACTS_BYTES_MAX];
    memset(corrections, 0, sizeof *corrections);
    for (uint32_t i = 0; i < of.tap_count; i++) {
        const late_tap *tap = &of.taps[i];
        const yk_record *now = tap->newest;
        if (tap->local_s < from->local_s || (tap->local_s == from->local_s && tap->record->atc < from->atc)) {
            ride(&rides, tap, now->fare_marks, tap->charged_fen);
            continue;
        }
        yk_ride again = ride_of(engine, tap);
        yk_fare fare;
        int outcome = yk_price(&engine->tariff, &rides, &again, &fare);
        ride(&rides, tap, fare.marks, fare.charged_fen);
        if (outcome != YK_FARE_PRICED && outcome != YK_FARE_UNKNOWN_STOP) continue; /* the tariff that priced it is not there any more */
        int64_t charged_fen = outcome == YK_FARE_PRICED ? fare.charged_fen : tap->record->tap_amount_fen;
        if (charged_fen == tap->charged_fen && (uint32_t)fare.base_fen == now->base_fen && fare.marks == now->fare_marks &&
            engine->rule_numbers[fare.base_rule] == now->fare_rule)
            continue;
        steps[n] = correct(engine, from->card, purse, tap, charged_fen, corrections);
        steps[n].bytes = facts[n];
        steps[n].byte_count = put_facts(engine, tap, &fare, facts[n]);
        n++;
    }
    steps[n++] = (yk_step){
        .kind = YK_RECORD_RIDES, .debit = YK_NONE, .credit = YK_NONE, .card = from->card, .bytes = (const uint8_t *)&rides,
        .byte_count = sizeof rides,
    };

    /* 3. What differs is posted, all of it together. */
    return yk_commit(engine, time_us, event, event_bytes, digest, steps, n);
}
