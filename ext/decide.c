/* The fourth stage: what is to become of a tap. Reads only; the checks stand in their order of precedence. */
#include "engine.h"

#include "sm4.h"

/* The record with this sequence: among the newest, or among those that were fetched from the journal beforehand. */
static const yk_record *find_prior(const yk_engine *engine, uint64_t sequence, const yk_record *priors, uint32_t n) {
    if (yk_in_ring(engine, sequence, 0)) return &engine->ring[sequence & (engine->config.ring_records - 1)];
    uint32_t low = 0, high = n;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (priors[middle].sequence < sequence) low = middle + 1;
        else high = middle;
    }
    return low < n && priors[low].sequence == sequence ? &priors[low] : NULL;
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

int yk_decide(const yk_engine *engine, const yk_tap *tap, const yk_record *priors, uint32_t prior_count, yk_decision *decision) {
    memset(decision, 0, sizeof *decision);

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
        decision->prior = find_prior(engine, of_card ? of_card : of_terminal, priors, prior_count);
        if (!decision->prior) return YK_PRIOR_MISSING;
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
    else if (!tap->key_known) decision->result = YK_UNKNOWN_KEY;
    /* 4. The MAC. */
    else if (!tap->proved) decision->result = unproved(tap);
    if (decision->result) return YK_OK;

    decision->counts = 1; /* the card itself has spoken: from here on its counter is used up */

    /* 5. Card state and deny list. */
    if (card->expires && tap->local_date > card->expires) decision->result = YK_CARD_EXPIRED;
    else if (is_denied(engine, tap, card)) decision->result = YK_CARD_DENIED;
    else if (tap->test) decision->result = YK_TEST;
    if (decision->result) return YK_OK;

    /* 6. Price: what the chip deducted. */
    decision->charge_fen = tap->amount_fen;

    /* 7. Money. A stored tap is a ride that already happened: what the card lacks becomes debt. */
    const yk_account *purse = yk_table_read(&engine->accounts, card->account);
    if (decision->charge_fen == 0 || purse->balance_fen - purse->held_fen >= (int64_t)decision->charge_fen) decision->result = YK_ACCEPTED;
    else if (tap->stored) decision->result = YK_DEBT_BOOKED;
    else decision->result = YK_INSUFFICIENT_FUNDS;
    return YK_OK;
}
