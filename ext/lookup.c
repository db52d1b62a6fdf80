/* The second stage: which card and which terminal, and where the tap may have been seen before.
 *
 * Every tap touches memory in three dependent steps (index, slot, account) that are seldom in the cache with a million cards.
 * Walking a block of taps through one step at a time lets their misses overlap. */
#include "engine.h"

enum { BLOCK = 32 };

static uint32_t find_card(const yk_engine *engine, const yk_card_number *number, uint64_t hash) {
    const yk_slots *index = &engine->card_index;
    for (uint64_t at = hash & index->mask; index->entries[at].slot_1; at = (at + 1) & index->mask) {
        if (index->entries[at].tag != (uint32_t)(hash >> 32)) continue;
        uint32_t slot = index->entries[at].slot_1 - 1;
        const yk_card *card = yk_table_read(&engine->cards, slot);
        if (card->number.low == number->low && card->number.high == number->high && card->number.digits == number->digits)
            return slot;
    }
    return YK_NONE;
}

uint32_t yk_find_card(const yk_engine *engine, const yk_card_number *number) {
    return find_card(engine, number, yk_card_hash(engine, number));
}

uint32_t yk_find_terminal(const yk_engine *engine, const uint8_t number[6]) {
    const yk_slots *index = &engine->terminal_index;
    uint64_t hash = yk_hash(yk_terminal_key(number), engine->config.hash_seed);
    for (uint64_t at = hash & index->mask; index->entries[at].slot_1; at = (at + 1) & index->mask) {
        if (index->entries[at].tag != (uint32_t)(hash >> 32)) continue;
        uint32_t slot = index->entries[at].slot_1 - 1;
        const yk_terminal *terminal = yk_table_read(&engine->terminals, slot);
        if (memcmp(terminal->number, number, 6) == 0) return slot;
    }
    return YK_NONE;
}

int yk_are_own(const yk_engine *engine, const yk_tap *taps, uint32_t n, uint64_t bound, const uint32_t *accounts,
               uint32_t account_count) {
    uint64_t kind = bound >> YK_BOUND_SHIFT, own = bound & ((1ull << YK_BOUND_SHIFT) - 1);
    if (kind == 0) return 1;
    uint32_t account = kind == YK_BOUND_OPERATOR && own < account_count ? accounts[own] : YK_NONE;
    for (uint32_t i = 0; i < n; i++) {
        if (taps[i].result != YK_UNDECIDED) continue;
        if (kind == YK_BOUND_TERMINAL) {
            if (yk_terminal_key(taps[i].terminal_number) != own) return 0;
            continue;
        }
        uint32_t slot = yk_find_terminal(engine, taps[i].terminal_number);
        if (account == YK_NONE || slot == YK_NONE) return 0;
        const yk_terminal *terminal = yk_table_read(&engine->terminals, slot);
        if (terminal->account != account) return 0;
    }
    return 1;
}

/* A counter at or above the highest one seen is new for certain. Below it, the tap was seen since the last checkpoint, or
 * before it (then the segments on disk must be asked), or it comes late and is new. */
static void lookup_seen(const yk_engine *engine, yk_tap *tap) {
    uint64_t seed = engine->config.hash_seed;
    if (tap->card != YK_NONE) {
        const yk_card *card = yk_table_read(&engine->cards, tap->card);
        if (tap->atc < card->atc_next) {
            tap->card_prior = yk_seen_anywhere(&engine->card_seen, &engine->card_seen_frozen,
                                               yk_card_seen_key(tap->card, tap->atc), seed);
            tap->search_card = tap->card_prior == 0;
        }
    }
    if (tap->terminal != YK_NONE) {
        const yk_terminal *terminal = yk_table_read(&engine->terminals, tap->terminal);
        if (tap->terminal_sequence < terminal->sequence_next) {
            tap->terminal_prior = yk_seen_anywhere(&engine->terminal_seen, &engine->terminal_seen_frozen,
                                                   yk_terminal_seen_key(tap->terminal, tap->terminal_sequence), seed);
            tap->search_terminal = tap->terminal_prior == 0;
        }
    }
}

void yk_lookup(const yk_engine *engine, yk_tap *taps, uint32_t n) {
    uint64_t hashes[BLOCK];
    for (uint32_t start = 0; start < n; start += BLOCK) {
        uint32_t count = n - start < BLOCK ? n - start : BLOCK;
        yk_tap *block = taps + start;
        for (uint32_t i = 0; i < count; i++) {
            hashes[i] = yk_card_hash(engine, &block[i].number);
            yk_slots_prefetch(&engine->card_index, hashes[i]);
        }
        for (uint32_t i = 0; i < count; i++) {
            const yk_slots_entry *entry = &engine->card_index.entries[hashes[i] & engine->card_index.mask];
            if (entry->slot_1) __builtin_prefetch(yk_table_read(&engine->cards, entry->slot_1 - 1));
        }
        for (uint32_t i = 0; i < count; i++) {
            if (block[i].result != YK_UNDECIDED) continue; /* malformed: nothing to look for */
            block[i].card = find_card(engine, &block[i].number, hashes[i]);
            block[i].terminal = yk_find_terminal(engine, block[i].terminal_number);
        }
        for (uint32_t i = 0; i < count; i++)
            if (block[i].result == YK_UNDECIDED) lookup_seen(engine, &block[i]);
    }
}
