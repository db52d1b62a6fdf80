/* The fifth stage: writes only. Balances, counters, and the record that the journal will hold. */
#include "engine.h"

#include "sm4.h"

int yk_reserve(yk_engine *engine, uint32_t records, uint64_t payload_bytes) {
    uint64_t need = (uint64_t)engine->group_count + records;
    if (need > engine->group_capacity) {
        uint64_t capacity = need * 2;
        yk_record *group = realloc(engine->group, capacity * sizeof *group);
        if (!group) return YK_NO_MEMORY;
        engine->group = group;
        engine->group_capacity = (uint32_t)capacity;
    }
    uint64_t bytes = engine->payload_bytes + payload_bytes;
    if (bytes > UINT32_MAX / 2) return YK_FULL;
    if (bytes > engine->payload_capacity) {
        uint8_t *payload = realloc(engine->payload, bytes * 2);
        if (!payload) return YK_NO_MEMORY;
        engine->payload = payload;
        engine->payload_capacity = (uint32_t)(bytes * 2);
    }
    return YK_OK;
}

yk_record *yk_begin_record(yk_engine *engine, uint8_t kind, uint8_t result, int64_t time_us) {
    yk_record *record = &engine->group[engine->group_count++];
    memset(record, 0, sizeof *record);
    record->sequence = engine->next_sequence++;
    record->time_us = time_us;
    record->kind = kind;
    record->result = result;
    uint32_t day = yk_local_day(time_us);
    record->settlement_day = (uint16_t)(day > engine->settlement_day ? day : engine->settlement_day);
    record->card = record->terminal = record->debit_account = record->credit_account = YK_NONE;
    return record;
}

void yk_add_payload(yk_engine *engine, yk_record *record, const uint8_t *bytes, uint32_t n) {
    record->payload_place = engine->payload_bytes + 1;
    uint8_t *out = engine->payload + engine->payload_bytes;
    out = yk_put_varint(out, n);
    memcpy(out, bytes, n);
    engine->payload_bytes = (uint32_t)(out + n - engine->payload);
}

void yk_end_record(yk_engine *engine, const yk_record *record) {
    engine->ring[record->sequence & (engine->config.ring_records - 1)] = *record;
}

void yk_end_batch(yk_engine *engine) {
    uint64_t ring_records = engine->config.ring_records, written = engine->next_sequence - engine->batch_first;
    if (written > ring_records) written = ring_records;
    for (uint64_t first = engine->next_sequence - written; first < engine->next_sequence;) {
        uint64_t at = first & (ring_records - 1), n = engine->next_sequence - first;
        if (n > ring_records - at) n = ring_records - at;
        memcpy(&engine->ring[at], &engine->group[engine->group_count - (engine->next_sequence - first)], n * sizeof *engine->ring);
        first += n;
    }
    engine->batch_first = UINT64_MAX;
}

void yk_move(yk_engine *engine, uint32_t debit, uint32_t credit, int64_t amount_fen, yk_record *record) {
    yk_account *from = yk_table_write(&engine->accounts, debit);
    int64_t before = from->balance_fen;
    from->balance_fen -= amount_fen;
    record->debit_after_fen = from->balance_fen;
    engine->moved_fen += from->balance_fen - before;

    yk_account *to = yk_table_write(&engine->accounts, credit);
    before = to->balance_fen;
    to->balance_fen += amount_fen;
    record->credit_after_fen = to->balance_fen;
    engine->moved_fen += to->balance_fen - before;

    record->amount_fen = amount_fen;
    record->debit_account = debit;
    record->credit_account = credit;
}

static void copy_tap(const yk_tap *tap, yk_record *record) {
    record->card = tap->card;
    record->terminal = tap->terminal;
    record->terminal_sequence = tap->terminal_sequence;
    record->tap_amount_fen = tap->amount_fen;
    record->amount_due_fen = tap->amount_due_fen;
    record->local_date = tap->local_date;
    record->local_time = tap->local_time;
    record->line = tap->line;
    record->stop = tap->stop;
    memcpy(record->mac, tap->mac, sizeof record->mac);
    record->chip_before_fen = tap->chip_before_fen;
    record->chip_after_fen = tap->chip_after_fen;
    record->atc = tap->atc;
    record->profile = tap->profile;
    record->transaction_type = tap->transaction_type;
    record->tap_kind = tap->kind;
    record->algorithm_id = tap->algorithm_id;
    record->key_version = tap->key_version;
    record->key_index = tap->key_index;
    record->rider = tap->rider;
    record->city = tap->city;
    record->industry = tap->industry;
    record->direction = tap->direction;
    record->fare_flags = 0;
    record->flags = (uint8_t)((tap->stored ? YK_FLAG_STORED : 0) | (tap->test ? YK_FLAG_TEST : 0) | (tap->grey ? YK_FLAG_GREY : 0));
}

/* From here on neither the card's counter nor the terminal's sequence can be used again. */
static void use_up(yk_engine *engine, const yk_tap *tap, yk_card *card, uint64_t sequence) {
    uint64_t seed = engine->config.hash_seed;
    uint64_t card_key = yk_card_seen_key(tap->card, tap->atc);
    uint64_t terminal_key = yk_terminal_seen_key(tap->terminal, tap->terminal_sequence);
    yk_seen_put(&engine->card_seen, card_key, yk_hash(card_key, seed), sequence);
    yk_seen_put(&engine->terminal_seen, terminal_key, yk_hash(terminal_key, seed), sequence);
    if (tap->atc >= card->atc_next) card->atc_next = tap->atc + 1u;
    yk_terminal *terminal = yk_table_write(&engine->terminals, tap->terminal);
    if (tap->terminal_sequence >= terminal->sequence_next) terminal->sequence_next = tap->terminal_sequence + 1ull;
}

static void answer_again(const yk_tap *tap, const yk_decision *decision, yk_outcome *outcome, yk_fare_note *note) {
    yk_outcome_of_record(decision->prior, outcome);
    outcome->duplicate = 1;
    outcome->key_version = tap->key_version;
    if (!outcome->fare_rule) return;
    if (decision->prior->payload_place && decision->prior_note) *note = *decision->prior_note;
    else memset(note, 0, sizeof *note);
}

/* ---- fares ---- */

void yk_rides_booked(yk_engine *engine, const yk_record *record, uint32_t local_s) {
    yk_rides *rides = yk_table_write(&engine->rides, record->card);
    yk_ride_done done = {
        .local_s = local_s, .line = record->line, .stop = record->stop, .marks = record->fare_marks, .kind = record->tap_kind,
        .charged_fen = record->amount_fen,
    };
    yk_rides_after(rides, &done);
    rides->newest_s = local_s;
    rides->newest_atc = record->atc;
}

/* A packed field shorter than 128 bytes. */
static uint8_t *put_packed(uint8_t *out, unsigned field, const uint64_t *values, unsigned n) {
    if (!n) return out;
    *out++ = (uint8_t)(field << 3 | 2);
    uint8_t *start = ++out;
    for (unsigned i = 0; i < n; i++) out = yk_put_varint(out, values[i]);
    start[-1] = (uint8_t)(out - start);
    return out;
}

uint8_t *yk_put_adjustments(uint8_t *out, const yk_fare_note *note) {
    uint64_t rules[YK_ADJUSTMENTS_MAX], amounts[YK_ADJUSTMENTS_MAX];
    for (unsigned i = 0; i < note->count; i++) {
        rules[i] = note->rule[i];
        amounts[i] = (uint64_t)note->amount_fen[i] << 1 ^ (uint64_t)(note->amount_fen[i] >> 63);
    }
    out = put_packed(out, 1, rules, note->count);
    return put_packed(out, 2, amounts, note->count);
}

void yk_explain(const yk_engine *engine, const yk_fare *fare, yk_fare_note *note) {
    memset(note, 0, sizeof *note);
    note->count = fare->adjustment_count;
    for (unsigned i = 0; i < fare->adjustment_count; i++) {
        note->rule[i] = engine->rule_numbers[fare->adjustments[i].rule];
        note->amount_fen[i] = fare->adjustments[i].amount_fen;
    }
}

/* PricedTap of journal.proto: what explains the fare, and the tap as it came where a record cannot hold it. Written in place: to copy
 * what was just stored byte by byte would wait for all stores before it, some of which miss the cache. */
static void add_priced_payload(yk_engine *engine, const yk_fare_note *note, const yk_tap *tap, yk_record *record) {
    if (!note->count && !note->pass_number && !tap->keep_message) return;
    record->payload_place = engine->payload_bytes + 1;
    uint8_t *start = engine->payload + engine->payload_bytes + 1, *out = start; /* one byte for the length, if that is enough */
    out = yk_put_adjustments(out, note);
    if (note->pass_number) {
        *out++ = 3 << 3;
        out = yk_put_varint(out, note->pass_number);
    }
    if (tap->keep_message) {
        *out++ = 4 << 3 | 2;
        out = yk_put_varint(out, tap->message_bytes);
        memcpy(out, tap->message, tap->message_bytes);
        out += tap->message_bytes;
    }
    out = yk_close_length(start, out);
    engine->payload_bytes = (uint32_t)(out - engine->payload);
}

/* The fare into the record and its note, and the ride into the card's memory or, where it came late, among those to do again. */
static void book_fare(yk_engine *engine, const yk_tap *tap, yk_card *card, const yk_decision *decision, yk_record *record,
                      yk_fare_note *note) {
    const yk_fare *fare = &decision->fare;
    const yk_ride *ride = &decision->ride;
    record->flags |= YK_FLAG_PRICED;
    record->base_fen = (uint32_t)fare->base_fen;
    record->fare_marks = fare->marks;
    record->fare_rule = engine->rule_numbers[fare->base_rule];
    record->fare_flags = (uint8_t)((ride->stated ? YK_FARE_STATED : 0) | (decision->late ? YK_FARE_PROVISIONAL : 0) |
                                   ride->rider << YK_FARE_RIDER_SHIFT);
    /* Written twice rather than copied: to load in other pieces what was just stored would wait for all stores before it. */
    uint64_t at = record->sequence & (engine->config.ring_records - 1);
    yk_explain(engine, fare, note);
    yk_explain(engine, fare, &engine->notes[at]);
    note->pass_number = engine->notes[at].pass_number = ride->pass ? card->pass_number : 0;
    add_priced_payload(engine, note, tap, record);
    if (decision->late) {
        engine->late[engine->late_count++] = (yk_late_tap){tap->card, ride->local_s, tap->atc};
        card->late = 1;
    } else if (yk_is_ride(tap->kind)) {
        engine->rides_before[at] = *yk_rides_of(engine, tap->card);
        if (card->late) engine->rides_before[at].newest_s = UINT32_MAX; /* it lacks a tap: late.c must not begin with it */
        yk_rides_booked(engine, record, ride->local_s);
    }
}

void yk_post(yk_engine *engine, const yk_tap *tap, const yk_decision *decision, int64_t time_us, uint32_t settlement_date,
             yk_outcome *outcome, yk_fare_note *note) {
    memset(outcome, 0, sizeof *outcome);
    const yk_terminal *terminal = tap->terminal == YK_NONE ? NULL : yk_table_read(&engine->terminals, tap->terminal);
    if (decision->duplicate) {
        answer_again(tap, decision, outcome, note);
        outcome->terminal_kind = terminal->kind;
        return;
    }
    outcome->result = decision->result;
    outcome->key_version = tap->key_version;
    outcome->terminal_kind = terminal ? terminal->kind : 0;
    if (tap->result != YK_UNDECIDED) {
        outcome->invalid_field = tap->invalid_field;
        return;
    }

    yk_record *record = yk_begin_record(engine, YK_RECORD_TAP, decision->result, time_us);
    copy_tap(tap, record);
    if (decision->fraud) record->flags |= YK_FLAG_FRAUD;
    if (decision->counts) record->flags |= YK_FLAG_COUNTED;
    int other_issuer = 0; /* than the card's own, whatever the result is */
    if (tap->card != YK_NONE) {
        yk_card *card = yk_table_write(&engine->cards, tap->card);
        other_issuer = memcmp(card->issuer_id, tap->issuer_id, sizeof tap->issuer_id) != 0;
        uint32_t paying = yk_paying_account(card, tap->profile == YK_PROFILE_PURSE);
        record->card_previous = card->last_sequence;
        card->last_sequence = record->sequence;
        if (decision->counts) use_up(engine, tap, card, record->sequence);
        if (decision->result == YK_ACCEPTED || decision->result == YK_DEBT_BOOKED) {
            yk_move(engine, paying, terminal->account, decision->charge_fen, record);
            if (decision->priced) book_fare(engine, tap, card, decision, record, note);
            outcome->fare_fault = decision->fare_fault;
        } else if (decision->counts) {
            /* Nothing moved, but a card that has proved itself is told its balance. */
            const yk_account *purse = yk_table_read(&engine->accounts, paying);
            record->debit_after_fen = purse->balance_fen;
        }
        yk_deny(engine, card, card->deny_reasons | (decision->result == YK_DEBT_BOOKED ? YK_DENY_DEBT : 0), record);
    }
    /* What a record cannot hold stays whole: a card or terminal that has no slot, another issuer, and transfer data. */
    if (!(record->flags & YK_FLAG_PRICED) &&
        (tap->card == YK_NONE || tap->terminal == YK_NONE || other_issuer || tap->keep_message))
        yk_add_payload(engine, record, tap->message, tap->message_bytes);
    if (decision->prior) record->conflicting_sequence = decision->prior->sequence;

    outcome->charged_fen = record->amount_fen;
    outcome->balance_after_fen = record->debit_after_fen;
    outcome->sequence = record->sequence;
    outcome->settlement_date = settlement_date;
    outcome->fraud = decision->fraud;
    yk_fare_of_record(record, outcome);
    if (decision->prior) outcome->conflicting_sequence = decision->prior->sequence;
}
