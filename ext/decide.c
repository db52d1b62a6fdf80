/* The fourth stage: what is to become of a tap. Reads only; the checks stand in their order of precedence. */
#include "engine.h"

#include "sm4.h"

/* The record with this sequence: among the newest, or among those that were fetched from the journal beforehand. */
static int find_prior(const yk_engine *engine, uint64_t sequence, const yk_priors *priors, yk_decision *decision) {
    int of_batch = sequence >= engine->batch_first && yk_in_ring(engine, sequence, 0);
    if (of_batch || yk_is_at_hand(engine, sequence, 0)) {
        uint64_t at = sequence & (engine->config.ring_records - 1);
        decision->prior = of_batch ? &engine->group[engine->group_count - (engine->next_sequence - sequence)] : &engine->ring[at];
        decision->prior_note = engine->notes ? &engine->notes[at] : NULL;
        return YK_OK;
    }
    uint32_t low = 0, high = priors->count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (priors->records[middle].sequence < sequence) low = middle + 1;
        else high = middle;
    }
    if (low == priors->count || priors->records[low].sequence != sequence) return YK_PRIOR_MISSING;
    decision->prior = &priors->records[low];
    decision->prior_note = &priors->notes[low];
    return YK_OK;
}

/* Seen before: looked up again in what is in memory, since an earlier tap of this very batch may be the one. */
static uint64_t card_prior(const yk_engine *engine, const yk_tap *tap, const yk_card *card) {
    if (tap->atc >= card->atc_next) return 0;
    uint64_t sequence = yk_seen_anywhere(&engine->card_seen, &engine->card_seen_frozen,
                                         yk_card_seen_key(tap->card, tap->atc), engine->config.hash_seed);
    return sequence ? sequence : tap->card_prior;
}

static uint64_t terminal_prior(const yk_engine *engine, const yk_tap *tap, const yk_terminal *terminal) {
    if (tap->terminal_sequence >= terminal->sequence_next) return 0;
    uint64_t sequence = yk_seen_anywhere(&engine->terminal_seen, &engine->terminal_seen_frozen,
                                         yk_terminal_seen_key(tap->terminal, tap->terminal_sequence), engine->config.hash_seed);
    return sequence ? sequence : tap->terminal_prior;
}

/* On the deny list a card pays no more; but a stored tap made before, or within the grace in which a terminal could not have
 * fetched the list, is a ride that was given in good faith. */
static int is_denied(const yk_engine *engine, const yk_tap *tap, const yk_card *card) {
    if (!card->denied_since_s) return 0;
    return !(tap->stored && tap->local_s <= (uint64_t)card->denied_since_s + engine->config.stored_grace_s);
}

/* A chip that was pulled away answers with all ones; a terminal that did not hear the answer says so. Whether the chip was debited
 * shows in the card's next record: until then nothing is charged. */
static uint8_t unproved(const yk_tap *tap) {
    static const uint8_t torn[4] = {0xff, 0xff, 0xff, 0xff};
    if (tap->profile != YK_PROFILE_PURSE) return YK_MAC_MISMATCH;
    if (memcmp(tap->mac, torn, sizeof torn) == 0) return YK_TORN;
    return tap->grey ? YK_GREY : YK_MAC_MISMATCH;
}

/* What the tariff makes of a tap; where it says nothing, the charge stays what the terminal stated. The rider is what the card is
 * registered as for the day of the tap, whatever the tap says and whenever it comes. A tap that comes late is priced by itself, and its card again after the batch. */
static void price(const yk_engine *engine, const yk_tap *tap, const yk_card *card, const yk_terminal *terminal,
                  yk_decision *decision) {
    static const yk_rides none;
    uint32_t local_s = (uint32_t)(tap->local_s + YK_UTC8_S), day = local_s / 86400;
    int is_before = day < card->rider_from, is_first = is_before && card->before_days && day + card->before_days < card->rider_from;
    uint8_t rider = !is_before ? card->rider : is_first ? card->riders_before >> YK_FIRST_SHIFT : card->riders_before & YK_BEFORE_MASK;
    uint16_t rider_until = is_first ? 0 : is_before ? card->rider_before_until : card->rider_until;
    int is_rider = rider && !(rider_until && day > rider_until);
    int has_pass = card->pass_number && !(card->pass_until && day > card->pass_until);
    decision->ride = (yk_ride){
        .local_s = local_s,
        .line = tap->line,
        .stop = tap->stop,
        .nominal_fen = tap->amount_due_fen ? tap->amount_due_fen : tap->amount_fen,
        .operator_number = terminal->operator_number,
        .industry = tap->industry,
        .kind = tap->kind,
        .rider = is_rider ? rider : YK_RIDER_ORDINARY,
        .pass = has_pass ? engine->pass_numbers[card->pass_number] : 0,
        .stated = tap->keep_message,
    };
    const yk_rides *rides = yk_rides_of(engine, tap->card);
    decision->late = yk_is_ride(tap->kind) && yk_is_late(rides, local_s, tap->atc);
    int outcome = yk_price(&engine->tariff, decision->late ? &none : rides, &decision->ride, &decision->fare);
    /* Whether a stop is known may hang on the ride before it, by way of a time band; whether a rule fits does not. */
    decision->priced = outcome == YK_FARE_PRICED || outcome == YK_FARE_UNKNOWN_STOP;
    decision->late &= decision->priced;
    if (outcome == YK_FARE_PRICED) decision->charge_fen = decision->fare.charged_fen;
    else decision->fare_fault = (uint8_t)outcome;
}

int yk_decide(const yk_engine *engine, const yk_tap *tap, const yk_priors *priors, yk_decision *decision) {
    memset(decision, 0, offsetof(yk_decision, ride));

    /* 1. Malformed. */
    if (tap->result != YK_UNDECIDED) {
        decision->result = tap->result;
        return YK_OK;
    }

    const yk_card *card = tap->card == YK_NONE ? NULL : yk_table_read(&engine->cards, tap->card);
    const yk_terminal *terminal = tap->terminal == YK_NONE ? NULL : yk_table_read(&engine->terminals, tap->terminal);

    /* 2. Seen before. The same tap has the same card, counter, terminal, sequence and MAC. */
    uint64_t of_card = card ? card_prior(engine, tap, card) : 0;
    uint64_t of_terminal = terminal ? terminal_prior(engine, tap, terminal) : 0;
    if (of_card || of_terminal) {
        int missing = find_prior(engine, of_card ? of_card : of_terminal, priors, decision);
        if (missing) return missing;
        if (of_card == of_terminal && memcmp(decision->prior->mac, tap->mac, sizeof tap->mac) == 0) {
            decision->duplicate = 1;
            decision->result = decision->prior->result;
            return YK_OK;
        }
        /* One card counter under two MACs is a cloned card or a forgery; one terminal sequence twice is a terminal's fault. */
        decision->fraud = of_card != 0;
        decision->result = YK_CONFLICT;
        return YK_OK;
    }

    /* 3. Unknown. */
    if (!card) decision->result = YK_UNKNOWN_CARD;
    else if (!terminal) decision->result = YK_UNKNOWN_TERMINAL;
    else if (tap->algorithm_id != YK_ALGORITHM_SM4) decision->result = YK_ALGORITHM_UNSUPPORTED;
    else if (memcmp(card->issuer_id, tap->issuer_id, sizeof tap->issuer_id) != 0) decision->result = YK_ISSUER_MISMATCH;
    else if (tap->key_known == YK_KEY_UNKNOWN) decision->result = YK_UNKNOWN_KEY;
    else if (tap->key_known == YK_KEY_REFUSED) decision->result = YK_KEY_RETIRED;
    /* 4. The MAC. */
    else if (!tap->proved) decision->result = unproved(tap);
    if (decision->result) return YK_OK;

    decision->counts = 1; /* the card itself has spoken: from here on its counter is used up */

    /* 5. Card state and deny list. */
    if (card->expires && tap->local_date > card->expires) decision->result = YK_CARD_EXPIRED;
    else if (is_denied(engine, tap, card)) decision->result = YK_CARD_DENIED;
    else if (tap->test) decision->result = YK_TEST;
    if (decision->result) return YK_OK;

    /* 6. Price: what the chip deducted; what the tariff says where the chip has no purse. */
    decision->charge_fen = tap->amount_fen;
    if (engine->has_tariff && tap->profile == YK_PROFILE_ACCOUNT) price(engine, tap, card, terminal, decision);

    /* 7. Money. A stored tap is a ride that already happened: what the card lacks beyond its overdraft becomes debt. */
    const yk_account *purse = yk_table_read(&engine->accounts, yk_paying_account(card, tap->profile == YK_PROFILE_PURSE));
    int64_t available_fen = purse->balance_fen - purse->held_fen + (tap->stored ? engine->config.overdraft_fen : 0);
    if (decision->charge_fen == 0 || available_fen >= decision->charge_fen) decision->result = YK_ACCEPTED;
    else if (tap->stored) decision->result = YK_DEBT_BOOKED;
    else decision->result = YK_INSUFFICIENT_FUNDS;
    return YK_OK;
}
