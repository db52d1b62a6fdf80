/* The last stage: answers to bytes. The same bytes as the protobuf runtime writes: fields in order, defaults left out. */
#include "engine.h"

static uint8_t *put_field(uint8_t *out, unsigned field, uint64_t value) {
    if (!value) return out;
    *out++ = (uint8_t)(field << 3);
    return yk_put_varint(out, value);
}

/* Names of the fields of Tap, by number; tests hold them against the proto. */
static const char *const tap_fields[] = {
    "", "card_number", "issuer_id", "profile", "algorithm_id", "key_version", "key_index", "transaction_type", "amount_fen",
    "amount_due_fen", "chip_balance_before_fen", "chip_balance_after_fen", "atc", "terminal_number", "terminal_sequence",
    "local_time", "mac", "kind", "line", "stop", "direction", "city", "industry", "rider", "transfer", "test", "grey",
};

static uint8_t *put_text(uint8_t *out, unsigned field, const char *text, size_t length) {
    if (!length) return out;
    *out++ = (uint8_t)(field << 3 | 2);
    out = yk_put_varint(out, length);
    memcpy(out, text, length);
    return out + length;
}

static const yk_rule_id *rule_id(const yk_engine *engine, uint16_t rule) {
    static const yk_rule_id none;
    return rule < engine->rule_id_count ? &engine->rule_ids[rule] : &none;
}

/* Fare of tap_service.proto. */
static uint8_t *put_fare(const yk_engine *engine, uint8_t *out, const yk_outcome *outcome, const yk_fare_note *note) {
    const yk_rule_id *base = rule_id(engine, outcome->fare_rule);
    *out++ = 9 << 3 | 2;
    uint8_t *start = ++out;
    out = put_field(out, 1, outcome->base_fen);
    out = put_text(out, 2, base->id, base->bytes);
    for (unsigned i = 0; i < note->count; i++) {
        const yk_rule_id *rule = rule_id(engine, note->rule[i]);
        *out++ = 3 << 3 | 2;
        uint8_t *of_adjustment = ++out;
        out = put_text(out, 1, rule->id, rule->bytes);
        out = put_field(out, 2, (uint64_t)note->amount_fen[i]);
        out = yk_close_length(of_adjustment, out);
    }
    out = put_text(out, 4, base->id, base->tariff_bytes);
    out = put_field(out, 5, outcome->provisional);
    return yk_close_length(start, out);
}

/* Without the fare: eight fields, none longer than its tag and the varint or name in it. */
enum { OUTCOME_BYTES_MAX = 112, FARE_BYTES = 32, ADJUSTMENT_BYTES = 16 };

size_t yk_response_room(const yk_engine *engine, const yk_outcome *outcomes, const yk_fare_note *notes, uint32_t n) {
    size_t room = (size_t)n * OUTCOME_BYTES_MAX;
    for (uint32_t i = 0; i < n; i++) {
        if (!outcomes[i].fare_rule) continue;
        room += FARE_BYTES + 2 * (size_t)rule_id(engine, outcomes[i].fare_rule)->bytes;
        for (unsigned j = 0; j < notes[i].count; j++) room += ADJUSTMENT_BYTES + (size_t)rule_id(engine, notes[i].rule[j])->bytes;
    }
    return room;
}

static uint8_t *put_outcome(const yk_engine *engine, uint8_t *out, const yk_outcome *outcome, const yk_fare_note *note) {
    out = put_field(out, 1, outcome->result);
    out = put_field(out, 2, outcome->duplicate);
    out = put_field(out, 3, (uint64_t)outcome->charged_fen);
    out = put_field(out, 4, (uint64_t)outcome->balance_after_fen);
    out = put_field(out, 5, outcome->sequence);
    out = put_field(out, 6, outcome->settlement_date);
    if (outcome->invalid_field) {
        const char *name = tap_fields[outcome->invalid_field];
        size_t length = strlen(name);
        *out++ = 7 << 3 | 2;
        *out++ = (uint8_t)length;
        memcpy(out, name, length);
        out += length;
    }
    out = put_field(out, 8, outcome->conflicting_sequence);
    return outcome->fare_rule ? put_fare(engine, out, outcome, note) : out;
}

size_t yk_respond(const yk_engine *engine, const yk_outcome *outcomes, const yk_fare_note *notes, uint32_t n, uint8_t *out) {
    uint8_t *start = out;
    for (uint32_t i = 0; i < n; i++) {
        *out++ = 1 << 3 | 2;
        uint8_t *of_outcome = ++out;
        out = yk_close_length(of_outcome, put_outcome(engine, out, &outcomes[i], &notes[i]));
    }
    return (size_t)(out - start);
}

uint32_t yk_date_of_day(uint32_t day_1970) {
    /* Days since 0000-03-01, so that the leap day ends a year; four-century eras, as in the Gregorian calendar. */
    int64_t days = (int64_t)day_1970 + 719468;
    int64_t era = days / 146097;
    uint32_t day_of_era = (uint32_t)(days - era * 146097);
    uint32_t year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
    uint32_t day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    uint32_t month_from_march = (5 * day_of_year + 2) / 153;
    uint32_t day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    uint32_t month = month_from_march < 10 ? month_from_march + 3 : month_from_march - 9;
    uint32_t year = year_of_era + (uint32_t)era * 400 + (month <= 2);
    return year * 10000 + month * 100 + day;
}

void yk_outcome_of_record(const yk_record *record, yk_outcome *outcome) {
    memset(outcome, 0, sizeof *outcome);
    outcome->result = record->result;
    outcome->charged_fen = record->amount_fen;
    outcome->balance_after_fen = record->debit_after_fen;
    outcome->sequence = record->sequence;
    outcome->settlement_date = yk_date_of_day(yk_settlement_day(record));
    outcome->key_version = record->key_version;
    yk_fare_of_record(record, outcome);
    if (record->result == YK_CONFLICT) outcome->conflicting_sequence = record->conflicting_sequence;
}
