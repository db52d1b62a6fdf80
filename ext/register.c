/* The engine's making, its indexes, and the cold writes: operators, cards, terminals, top-ups. */
#include "engine.h"

#include <sys/mman.h>

#include "sm4.h"

enum { INDEX_CAPACITY_MIN = 1 << 12 };

int yk_engine_init(yk_engine *engine, const yk_engine_config *config) {
    memset(engine, 0, sizeof *engine);
    engine->config = *config;
    engine->next_sequence = engine->ring_first = 1;
    engine->batch_first = UINT64_MAX;
    engine->ring = calloc(config->ring_records, sizeof *engine->ring);
    engine->denials = calloc(YK_DENIALS, sizeof *engine->denials);
    if (!engine->ring || !engine->denials || yk_table_init(&engine->cards, sizeof(yk_card), config->cards_max) != 0 ||
        yk_table_init(&engine->accounts, sizeof(yk_account), config->accounts_max) != 0 ||
        yk_table_init(&engine->terminals, sizeof(yk_terminal), config->terminals_max) != 0 ||
        yk_table_init(&engine->rides, sizeof(yk_rides), config->cards_max) != 0 ||
        yk_slots_init(&engine->card_index, INDEX_CAPACITY_MIN) != 0 ||
        yk_slots_init(&engine->terminal_index, INDEX_CAPACITY_MIN) != 0)
        return YK_NO_MEMORY;
    return yk_table_append(&engine->accounts) ? YK_OK : YK_NO_MEMORY; /* YK_ACCOUNT_FUNDING */
}

void yk_engine_free(yk_engine *engine) {
    yk_table_free(&engine->cards);
    yk_table_free(&engine->accounts);
    yk_table_free(&engine->terminals);
    yk_table_free(&engine->rides);
    free(engine->notes);
    free(engine->rides_before);
    free(engine->late);
    free(engine->card_index.entries);
    free(engine->terminal_index.entries);
    yk_seen_free(&engine->card_seen);
    yk_seen_free(&engine->terminal_seen);
    yk_seen_free(&engine->card_seen_frozen);
    yk_seen_free(&engine->terminal_seen_frozen);
    yk_keys_free(engine->keys, engine->key_count);
    free(engine->ring);
    free(engine->denials);
    free(engine->group);
    free(engine->payload);
    memset(engine, 0, sizeof *engine);
}

/* Pages of their own: what is locked is locked by the page, and unlocked so too. */
yk_key *yk_keys_new(uint32_t n) {
    void *pages = mmap(NULL, n * sizeof(yk_key), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return NULL;
    (void)mlock(pages, n * sizeof(yk_key)); /* where it is not allowed, who holds the keys has said so already */
#ifdef MADV_DONTDUMP
    (void)madvise(pages, n * sizeof(yk_key), MADV_DONTDUMP);
#endif
    return pages;
}

void yk_keys_free(yk_key *keys, uint32_t n) {
    if (!keys) return;
    yk_wipe(keys, n * sizeof *keys);
    munmap(keys, n * sizeof *keys);
}

void yk_engine_set_keys(yk_engine *engine, yk_key *keys, uint32_t n) {
    yk_keys_free(engine->keys, engine->key_count);
    engine->keys = keys;
    engine->key_count = n;
}

int yk_engine_add_key(yk_engine *engine, const uint8_t issuer_id[8], uint8_t version, uint8_t index, const uint8_t key[16]) {
    uint32_t n = engine->key_count;
    yk_key *keys = yk_keys_new(n + 1);
    if (!keys) return YK_NO_MEMORY;
    if (n) memcpy(keys, engine->keys, n * sizeof *keys);
    yk_key *added = &keys[n];
    memcpy(added->issuer_id, issuer_id, sizeof added->issuer_id);
    added->version = version;
    added->index = index;
    yk_sm4_expand(key, added->round_keys);
    yk_engine_set_keys(engine, keys, n + 1);
    return YK_OK;
}

/* ---- indexes ---------------------------------------------------------------------------------------------------- */

static uint64_t card_hash_at(const yk_engine *engine, uint32_t slot) {
    const yk_card *card = yk_table_read(&engine->cards, slot);
    return yk_card_hash(engine, &card->number);
}

static uint64_t terminal_hash_at(const yk_engine *engine, uint32_t slot) {
    const yk_terminal *terminal = yk_table_read(&engine->terminals, slot);
    return yk_hash(yk_terminal_key(terminal->number), engine->config.hash_seed);
}

/* Room for `slots` at no more than half full. */
static int grow_index(const yk_engine *engine, yk_slots *index, uint64_t slots, uint32_t present,
                      uint64_t (*hash_at)(const yk_engine *, uint32_t)) {
    uint64_t capacity = index->mask + 1;
    if (slots * 2 <= capacity) return YK_OK;
    while (capacity < slots * 2) capacity *= 2;
    yk_slots grown;
    if (yk_slots_init(&grown, capacity) != 0) return YK_NO_MEMORY;
    enum { AHEAD = 16 };
    for (uint32_t slot = 0; slot < present; slot++) {
        if (slot + AHEAD < present) yk_slots_prefetch(&grown, hash_at(engine, slot + AHEAD));
        yk_slots_place(&grown, hash_at(engine, slot), slot);
    }
    free(index->entries);
    *index = grown;
    return YK_OK;
}

int yk_reindex(yk_engine *engine) {
    memset(engine->card_index.entries, 0, (engine->card_index.mask + 1) * sizeof *engine->card_index.entries);
    memset(engine->terminal_index.entries, 0, (engine->terminal_index.mask + 1) * sizeof *engine->terminal_index.entries);
    engine->card_index.used = engine->terminal_index.used = 0;
    uint32_t cards = engine->cards.count, terminals = engine->terminals.count;
    /* Small ones are placed one by one; grow_index places all when it makes the index anew. */
    if ((uint64_t)cards * 2 <= engine->card_index.mask + 1)
        for (uint32_t slot = 0; slot < cards; slot++) yk_slots_place(&engine->card_index, card_hash_at(engine, slot), slot);
    if ((uint64_t)terminals * 2 <= engine->terminal_index.mask + 1)
        for (uint32_t slot = 0; slot < terminals; slot++)
            yk_slots_place(&engine->terminal_index, terminal_hash_at(engine, slot), slot);
    int error = grow_index(engine, &engine->card_index, cards, cards, card_hash_at);
    return error ? error : grow_index(engine, &engine->terminal_index, terminals, terminals, terminal_hash_at);
}

/* ---- cold writes ------------------------------------------------------------------------------------------------ */

/* A zero account; the caller has checked that there is room. */
static int add_account(yk_engine *engine, uint32_t *account) {
    *account = engine->accounts.count;
    return yk_table_append(&engine->accounts) ? YK_OK : YK_FULL;
}

static int has_room(const yk_table *table, uint32_t slots_max) { return table->count < slots_max; }

int yk_add_operator(yk_engine *engine, int64_t time_us, const uint8_t *payload, uint32_t payload_bytes, uint32_t *account) {
    int error = yk_reserve(engine, 1, (uint64_t)payload_bytes + 5);
    if (error) return error;
    if (!has_room(&engine->accounts, engine->config.accounts_max)) return YK_FULL;
    if ((error = add_account(engine, account)) != 0) return error;
    yk_record *record = yk_begin_record(engine, YK_RECORD_OPERATOR, YK_ACCEPTED, time_us);
    record->credit_account = *account;
    yk_add_payload(engine, record, payload, payload_bytes);
    yk_end_record(engine, record);
    return YK_OK;
}

static void entitle_one(yk_card *card, const yk_entitlement *entitlement) {
    card->rider = entitlement->rider;
    card->pass_number = entitlement->pass_number;
    card->rider_until = entitlement->rider_until;
    card->pass_until = entitlement->pass_until;
    card->riders_before = entitlement->riders_before & 0x7f;
    card->before_days = entitlement->before_days;
    card->rider_from = entitlement->rider_from;
    card->rider_before_until = entitlement->rider_before_until;
}

void yk_entitle(yk_engine *engine, yk_card *card, const yk_entitlement *entitlement, yk_record *record) {
    entitle_one(card, entitlement);
    if (card->twin) entitle_one(yk_table_write(&engine->cards, card->twin - 1), entitlement);
    record->rider = entitlement->rider;
    record->pass_number = entitlement->pass_number;
    record->rider_until = entitlement->rider_until;
    record->pass_until = entitlement->pass_until;
    record->riders_before = entitlement->riders_before;
    record->before_days = entitlement->before_days;
    record->rider_from = entitlement->rider_from;
    record->rider_before_until = entitlement->rider_before_until;
}

int yk_add_card(yk_engine *engine, const yk_card_number *number, const uint8_t issuer_id[8], const yk_entitlement *entitlement,
                uint32_t twin, uint32_t expires, int64_t time_us, const uint8_t *payload, uint32_t payload_bytes, uint32_t *slot) {
    int error = yk_reserve(engine, 1, (uint64_t)payload_bytes + 5), is_new = twin == YK_NONE;
    uint32_t account;
    if (error) return error;
    if (!is_new && (twin >= engine->cards.count || ((const yk_card *)yk_table_read(&engine->cards, twin))->twin)) return YK_CORRUPT;
    if (!has_room(&engine->cards, engine->config.cards_max) || (is_new && !has_room(&engine->accounts, engine->config.accounts_max)))
        return YK_FULL;
    error = grow_index(engine, &engine->card_index, (uint64_t)engine->cards.count + 1, engine->cards.count, card_hash_at);
    if (error) return error;
    if (is_new && (error = add_account(engine, &account)) != 0) return error;
    *slot = engine->cards.count;
    yk_card *card = yk_table_append(&engine->cards);
    if (!card) {
        engine->accounts.count -= (uint32_t)is_new; /* or the next account would have another number here than in the journal */
        return YK_FULL;
    }
    card->number = *number;
    memcpy(card->issuer_id, issuer_id, sizeof card->issuer_id);
    yk_card *other = is_new ? NULL : yk_table_write(&engine->cards, twin);
    if (other) account = other->account;
    card->account = account;
    card->expires = expires;
    yk_slots_place(&engine->card_index, yk_card_hash(engine, number), *slot);
    yk_record *record = yk_begin_record(engine, YK_RECORD_CARD, YK_ACCEPTED, time_us);
    record->card = *slot;
    record->debit_account = account;
    yk_entitle(engine, card, entitlement, record);
    card->last_sequence = record->sequence;
    if (other) {
        yk_deny(engine, card, other->deny_reasons, record);
        card->denied_since_s = other->denied_since_s;
        card->twin = record->twin = twin + 1;
        other->twin = *slot + 1;
        entitle_one(other, entitlement);
    }
    yk_add_payload(engine, record, payload, payload_bytes);
    yk_end_record(engine, record);
    return YK_OK;
}

int yk_add_terminal(yk_engine *engine, const uint8_t number[6], uint8_t kind, uint32_t account, int64_t time_us,
                    const uint8_t *payload, uint32_t payload_bytes, uint32_t *slot) {
    int error = yk_reserve(engine, 1, (uint64_t)payload_bytes + 5);
    if (error) return error;
    if (!has_room(&engine->terminals, engine->config.terminals_max)) return YK_FULL;
    error = grow_index(engine, &engine->terminal_index, (uint64_t)engine->terminals.count + 1, engine->terminals.count,
                       terminal_hash_at);
    if (error) return error;
    *slot = engine->terminals.count;
    yk_terminal *terminal = yk_table_append(&engine->terminals);
    if (!terminal) return YK_FULL;
    memcpy(terminal->number, number, sizeof terminal->number);
    terminal->kind = kind;
    terminal->account = account;
    yk_slots_place(&engine->terminal_index, terminal_hash_at(engine, *slot), *slot);
    yk_record *record = yk_begin_record(engine, YK_RECORD_TERMINAL, YK_ACCEPTED, time_us);
    record->terminal = *slot;
    record->credit_account = account;
    yk_add_payload(engine, record, payload, payload_bytes);
    yk_end_record(engine, record);
    return YK_OK;
}

int yk_top_up(yk_engine *engine, uint32_t slot, int64_t amount_fen, int64_t time_us, const uint8_t *payload,
              uint32_t payload_bytes) {
    int error = yk_reserve(engine, 1, (uint64_t)payload_bytes + 5);
    if (error) return error;
    const yk_card *funded = yk_table_read(&engine->cards, slot);
    const yk_account *funding = yk_table_read(&engine->accounts, YK_ACCOUNT_FUNDING);
    const yk_account *purse = yk_table_read(&engine->accounts, funded->account);
    int64_t sum;
    if (__builtin_sub_overflow(funding->balance_fen, amount_fen, &sum) || __builtin_add_overflow(purse->balance_fen, amount_fen, &sum))
        return YK_FULL;
    yk_card *card = yk_table_write(&engine->cards, slot);
    yk_record *record = yk_begin_record(engine, YK_RECORD_TOP_UP, YK_ACCEPTED, time_us);
    record->card = slot;
    record->card_previous = card->last_sequence;
    card->last_sequence = record->sequence;
    yk_move(engine, YK_ACCOUNT_FUNDING, card->account, amount_fen, record);
    int paid = record->credit_after_fen >= 0; /* the debt is */
    yk_deny(engine, card, card->deny_reasons & (paid ? ~YK_DENY_DEBT : 0xff), record);
    yk_add_payload(engine, record, payload, payload_bytes);
    yk_end_record(engine, record);
    return YK_OK;
}
