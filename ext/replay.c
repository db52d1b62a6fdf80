/* What the journal's records say, applied again: after a restart, and to audit the books. */
#include "engine.h"

static int64_t *balance_of(yk_engine *engine, uint32_t account) {
    return &((yk_account *)yk_table_write(&engine->accounts, account))->balance_fen;
}

/* Records lie in the mapped file, where LMDB aligns nothing: they are read by way of a copy. */
static yk_record record_at(const yk_record *records, uint32_t i) {
    yk_record record;
    memcpy(&record, (const uint8_t *)records + (size_t)i * sizeof record, sizeof record);
    return record;
}

static int is_registration(const yk_record *record) {
    return record->kind < YK_RECORD_TAP || record->kind > YK_RECORD_RIDES || record->kind == YK_RECORD_CARD ||
           record->kind == YK_RECORD_TERMINAL || record->kind == YK_RECORD_OPERATOR;
}

static int moves(const yk_record *record) {
    if (record->kind != YK_RECORD_TAP && record->kind != YK_RECORD_TOP_UP && record->kind != YK_RECORD_POSTING) return 0;
    return record->credit_account != YK_NONE || record->debit_account != YK_NONE;
}

/* The payload of `want` bytes at a record's place; NULL where there is none of that length. */
static const uint8_t *payload_of(const yk_record *record, const uint8_t *payloads, size_t n, size_t want) {
    size_t at = record->payload_place, length = 0;
    if (!at) return NULL;
    at--;
    for (unsigned shift = 0; at < n && shift < 35; shift += 7) {
        uint8_t byte = payloads[at++];
        length |= (size_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return length == want && n - at >= want ? payloads + at : NULL;
    }
    return NULL;
}

/* What a card remembers of its rides, as it stands in the record. */
static int replay_rides(yk_engine *engine, const yk_record *record, const uint8_t *payloads, size_t payload_bytes) {
    const uint8_t *bytes = payload_of(record, payloads, payload_bytes, sizeof(yk_rides));
    if (!bytes || record->card >= engine->cards.count) return YK_CORRUPT;
    if (yk_rides_reserve(engine, record->card) != 0) return YK_NO_MEMORY;
    memcpy(yk_table_write(&engine->rides, record->card), bytes, sizeof(yk_rides));
    ((yk_card *)yk_table_write(&engine->cards, record->card))->late = 0;
    return YK_OK;
}

/* What a tap that was charged adds to it; what came late adds nothing until its card was priced again. */
static int replay_fare(yk_engine *engine, const yk_record *record, yk_card *card) {
    if (record->fare_flags & YK_FARE_PROVISIONAL) card->late = 1;
    if (!yk_is_ride(record->tap_kind) || record->fare_flags & YK_FARE_PROVISIONAL) return YK_OK;
    if (yk_rides_reserve(engine, record->card) != 0) return YK_NO_MEMORY;
    int64_t local_s = yk_local_seconds(record->local_date, record->local_time);
    if (local_s < 0) return YK_CORRUPT;
    yk_rides_booked(engine, record, (uint32_t)(local_s + YK_UTC8_S));
    return YK_OK;
}

/* The effects of one record, checked as far as memory safety and the arithmetic of its own posting go. */
static int replay_record(yk_engine *engine, yk_record *record, const uint8_t *payloads, size_t payload_bytes) {
    uint64_t seed = engine->config.hash_seed;
    if (record->sequence != engine->next_sequence) return YK_CORRUPT;
    int is_tap = record->kind == YK_RECORD_TAP;
    if (is_registration(record)) return YK_CORRUPT;
    if (record->kind == YK_RECORD_ACCOUNT) {
        if (record->credit_account != engine->accounts.count || !yk_table_append(&engine->accounts)) return YK_CORRUPT;
    } else if (record->kind == YK_RECORD_HOLD) {
        if (record->debit_account >= engine->accounts.count) return YK_CORRUPT;
        yk_account *account = yk_table_write(&engine->accounts, record->debit_account);
        account->held_fen += record->amount_fen;
        if (account->held_fen != record->credit_after_fen) return YK_CORRUPT;
    } else if (moves(record)) {
        if (record->debit_account >= engine->accounts.count || record->credit_account >= engine->accounts.count) return YK_CORRUPT;
        int64_t *debit = balance_of(engine, record->debit_account);
        *debit -= record->amount_fen;
        if (*debit != record->debit_after_fen) return YK_CORRUPT;
        int64_t *credit = balance_of(engine, record->credit_account);
        *credit += record->amount_fen;
        if (*credit != record->credit_after_fen) return YK_CORRUPT;
    }
    if (record->kind == YK_RECORD_RIDES) {
        int error = replay_rides(engine, record, payloads, payload_bytes);
        if (error) return error;
    } else if (record->card != YK_NONE) {
        if (record->card >= engine->cards.count) return YK_CORRUPT;
        yk_card *card = yk_table_write(&engine->cards, record->card);
        card->last_sequence = record->sequence;
        yk_deny(engine, card, record->deny_reasons ? record->deny_reasons : record->flags & YK_FLAG_DENIED ? YK_DENY_DEBT : 0, record);
        if (record->kind == YK_RECORD_ACCOUNT) card->chip_account = record->credit_account;
        if (record->kind == YK_RECORD_ENTITLEMENT) {
            yk_entitlement entitlement = {
                .rider_until = (uint16_t)record->rider_until, .pass_until = (uint16_t)record->pass_until, .rider = record->rider,
                .pass_number = record->pass_number, .riders_before = record->riders_before, .before_days = record->before_days, .rider_from = (uint16_t)record->rider_from,
                .rider_before_until = (uint16_t)record->rider_before_until,
            };
            yk_entitle(engine, card, &entitlement, record);
        }
        if (is_tap && record->flags & YK_FLAG_PRICED) {
            int error = replay_fare(engine, record, card);
            if (error) return error;
        }
        if (is_tap && record->flags & YK_FLAG_COUNTED) {
            if (record->terminal >= engine->terminals.count) return YK_CORRUPT;
            uint64_t card_key = yk_card_seen_key(record->card, record->atc);
            uint64_t terminal_key = yk_terminal_seen_key(record->terminal, record->terminal_sequence);
            yk_seen_put(&engine->card_seen, card_key, yk_hash(card_key, seed), record->sequence);
            yk_seen_put(&engine->terminal_seen, terminal_key, yk_hash(terminal_key, seed), record->sequence);
            if (record->atc >= card->atc_next) card->atc_next = record->atc + 1u;
            yk_terminal *terminal = yk_table_write(&engine->terminals, record->terminal);
            if (record->terminal_sequence >= terminal->sequence_next)
                terminal->sequence_next = record->terminal_sequence + 1ull;
        }
    }
    yk_end_record(engine, record);
    engine->next_sequence++;
    return YK_OK;
}

int yk_replay(yk_engine *engine, const yk_record *records, uint32_t n, const uint8_t *payloads, size_t payload_bytes, uint32_t *at) {
    uint64_t seed = engine->config.hash_seed;
    if (yk_seen_reserve(&engine->card_seen, n, seed) != 0 || yk_seen_reserve(&engine->terminal_seen, n, seed) != 0)
        return YK_NO_MEMORY;
    for (*at = 0; *at < n; ++*at) {
        yk_record record = record_at(records, *at);
        int error = replay_record(engine, &record, payloads, payload_bytes);
        if (error) return error;
    }
    engine->notes_first = engine->next_sequence;
    return YK_OK;
}

int yk_audit(int64_t *balances, uint32_t accounts, const yk_record *records, uint32_t n, uint32_t *at) {
    for (*at = 0; *at < n; ++*at) {
        yk_record record = record_at(records, *at);
        if (!moves(&record)) continue;
        if (record.debit_account >= accounts || record.credit_account >= accounts) return YK_CORRUPT;
        balances[record.debit_account] -= record.amount_fen;
        if (balances[record.debit_account] != record.debit_after_fen) return YK_CORRUPT;
        balances[record.credit_account] += record.amount_fen;
        if (balances[record.credit_account] != record.credit_after_fen) return YK_CORRUPT;
    }
    return YK_OK;
}

int64_t yk_imbalance(const yk_engine *engine) {
    int64_t sum = 0;
    for (uint32_t account = 0; account < engine->accounts.count; account++)
        sum += ((const yk_account *)yk_table_read(&engine->accounts, account))->balance_fen;
    return sum;
}
