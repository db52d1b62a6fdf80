/* What is not a tap: an event, and the records of what it moves behind it. All of it, or nothing. */
#include "engine.h"

static int is_card(const yk_engine *engine, uint32_t card) { return card == YK_NONE || card < engine->cards.count; }

/* Whether all steps can be written, so that none fails half-way. `opened` counts the accounts that they open. */
static int check_steps(const yk_engine *engine, const yk_step *steps, uint32_t n) {
    uint32_t accounts = engine->accounts.count;
    int64_t moved_fen = 0;
    for (uint32_t i = 0; i < n; i++) {
        const yk_step *step = &steps[i];
        if (!is_card(engine, step->card)) return YK_CORRUPT;
        if (step->kind == YK_RECORD_ACCOUNT) {
            if (accounts++ >= engine->config.accounts_max) return YK_FULL;
        } else if (step->kind == YK_RECORD_POSTING) {
            if (step->debit >= accounts || step->credit >= accounts || step->debit == step->credit || step->amount_fen < 0)
                return YK_CORRUPT;
            if (__builtin_add_overflow(moved_fen, step->amount_fen, &moved_fen)) return YK_FULL;
            if (step->why == YK_POSTING_CORRECTION && (step->byte_count < sizeof(yk_correction) || step->card == YK_NONE)) return YK_CORRUPT;
        } else if (step->kind == YK_RECORD_HOLD) {
            if (step->debit >= accounts) return YK_CORRUPT;
            if (__builtin_add_overflow(moved_fen, step->amount_fen < 0 ? -step->amount_fen : step->amount_fen, &moved_fen))
                return YK_FULL;
        } else if (step->card == YK_NONE ||
                   !(step->kind == YK_RECORD_DENY_LIST ||
                     (step->kind == YK_RECORD_ENTITLEMENT && step->byte_count == sizeof(yk_entitlement)) ||
                     (step->kind == YK_RECORD_RIDES && step->byte_count == sizeof(yk_rides)))) {
            return YK_CORRUPT;
        }
    }
    /* No balance can move by more than all amounts together. */
    for (uint32_t i = 0; i < n; i++) {
        uint32_t touched[2] = {steps[i].debit, steps[i].credit};
        for (int side = 0; side < 2 && (steps[i].kind == YK_RECORD_POSTING || steps[i].kind == YK_RECORD_HOLD); side++) {
            if (touched[side] >= engine->accounts.count) continue;
            const yk_account *account = yk_table_read(&engine->accounts, touched[side]);
            int64_t bound;
            if (__builtin_add_overflow(account->balance_fen, moved_fen, &bound) ||
                __builtin_sub_overflow(account->balance_fen, moved_fen, &bound) ||
                __builtin_add_overflow(account->held_fen, moved_fen, &bound))
                return YK_FULL;
        }
    }
    return YK_OK;
}

/* Holds may not be released beyond what is held, in the order of the steps. Changes are small: no index is wanted. */
static int check_holds(const yk_engine *engine, const yk_step *steps, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (steps[i].kind != YK_RECORD_HOLD || steps[i].amount_fen >= 0) continue;
        const yk_account *account = steps[i].debit < engine->accounts.count ? yk_table_read(&engine->accounts, steps[i].debit) : NULL;
        int64_t held_fen = account ? account->held_fen : 0;
        for (uint32_t j = 0; j <= i; j++)
            if (steps[j].kind == YK_RECORD_HOLD && steps[j].debit == steps[i].debit) held_fen += steps[j].amount_fen;
        if (held_fen < 0) return YK_CORRUPT;
    }
    return YK_OK;
}

/* A card's records form a chain; each says whether the card is on the deny list after it. */
static yk_card *chain(yk_engine *engine, uint32_t slot, yk_record *record) {
    record->card = slot;
    if (slot == YK_NONE) return NULL;
    yk_card *card = yk_table_write(&engine->cards, slot);
    record->card_previous = card->last_sequence;
    card->last_sequence = record->sequence;
    return card;
}

/* What a card remembers of its rides is no entry of its list. */
static void write_rides(yk_engine *engine, const yk_step *step, yk_record *record) {
    record->card = step->card;
    memcpy(yk_table_write(&engine->rides, step->card), step->bytes, sizeof(yk_rides));
    ((yk_card *)yk_table_write(&engine->cards, step->card))->late = 0;
    yk_add_payload(engine, record, step->bytes, step->byte_count);
    yk_end_record(engine, record);
}

/* A purse that a correction leaves further below zero than is allowed is in debt, as after a stored tap. */
static uint8_t correct(yk_engine *engine, const yk_step *step, const yk_card *card, yk_record *record, uint8_t reasons) {
    yk_correction correction;
    memcpy(&correction, step->bytes, sizeof correction);
    record->flags |= YK_FLAG_PRICED;
    record->terminal = correction.terminal;
    record->terminal_sequence = correction.terminal_sequence;
    record->local_date = correction.local_date;
    record->local_time = correction.local_time;
    record->line = correction.line;
    record->stop = correction.stop;
    record->atc = correction.atc;
    record->tap_kind = correction.tap_kind;
    record->base_fen = correction.base_fen;
    record->fare_marks = correction.fare_marks;
    record->fare_rule = correction.fare_rule;
    record->fare_flags = correction.fare_flags;
    if (step->byte_count > sizeof correction)
        yk_add_payload(engine, record, step->bytes + sizeof correction, step->byte_count - (uint32_t)sizeof correction);
    if (step->debit != card->account || step->amount_fen == 0) return reasons;
    const yk_account *purse = yk_table_read(&engine->accounts, card->account);
    return purse->balance_fen - purse->held_fen < -engine->config.overdraft_fen ? reasons | YK_DENY_DEBT : reasons;
}

static void write_step(yk_engine *engine, const yk_step *step, int64_t time_us, int is_last) {
    yk_record *record = yk_begin_record(engine, step->kind, YK_ACCEPTED, time_us);
    if (!is_last) record->flags |= YK_FLAG_LINKED;
    if (step->kind == YK_RECORD_RIDES) {
        write_rides(engine, step, record);
        return;
    }
    yk_card *card = chain(engine, step->card, record);
    uint8_t reasons = card ? card->deny_reasons : 0;
    if (step->kind == YK_RECORD_ACCOUNT) {
        record->credit_account = engine->accounts.count;
        if (card) card->chip_account = record->credit_account;
        yk_table_append(&engine->accounts);
        yk_add_payload(engine, record, step->bytes, step->byte_count);
    } else if (step->kind == YK_RECORD_POSTING) {
        record->transaction_type = step->why;
        yk_move(engine, step->debit, step->credit, step->amount_fen, record);
        if (card && step->credit == card->account && record->credit_after_fen >= 0) reasons &= ~YK_DENY_DEBT;
        if (step->why == YK_POSTING_CORRECTION) reasons = correct(engine, step, card, record, reasons);
    } else if (step->kind == YK_RECORD_HOLD) {
        yk_account *account = yk_table_write(&engine->accounts, step->debit);
        account->held_fen += step->amount_fen;
        record->debit_account = step->debit;
        record->amount_fen = step->amount_fen;
        record->debit_after_fen = account->balance_fen;
        record->credit_after_fen = account->held_fen;
    } else if (step->kind == YK_RECORD_ENTITLEMENT) {
        yk_entitlement entitlement;
        memcpy(&entitlement, step->bytes, sizeof entitlement);
        yk_entitle(engine, card, &entitlement, record);
    } else {
        reasons = step->why;
    }
    if (card) yk_deny(engine, card, reasons, record);
    yk_end_record(engine, record);
}

int yk_commit(yk_engine *engine, int64_t time_us, const uint8_t *payload, uint32_t payload_bytes, const uint8_t digest[32],
              const yk_step *steps, uint32_t n) {
    uint64_t bytes = (uint64_t)payload_bytes + 5;
    uint32_t opened = 0;
    for (uint32_t i = 0; i < n; i++) {
        bytes += (uint64_t)steps[i].byte_count + 5;
        opened += steps[i].kind == YK_RECORD_ACCOUNT;
    }
    int error = check_steps(engine, steps, n);
    if (!error) error = check_holds(engine, steps, n);
    if (!error) error = yk_reserve(engine, n + 1, bytes);
    if (!error && yk_table_reserve(&engine->accounts, opened) != 0) error = YK_NO_MEMORY;
    for (uint32_t i = 0; !error && i < n; i++)
        if (steps[i].kind == YK_RECORD_RIDES && yk_rides_reserve(engine, steps[i].card) != 0) error = YK_NO_MEMORY;
    if (error) return error;

    yk_record *event = yk_begin_record(engine, YK_RECORD_EVENT, YK_ACCEPTED, time_us);
    if (n) event->flags |= YK_FLAG_LINKED;
    yk_add_payload(engine, event, payload, payload_bytes);
    memcpy(event->event_digest, digest, sizeof event->event_digest);
    yk_end_record(engine, event);
    for (uint32_t i = 0; i < n; i++) write_step(engine, &steps[i], time_us, i + 1 == n);
    return YK_OK;
}
