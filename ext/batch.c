/* A batch of taps: decide and post alternate, tap by tap. */
#include "engine.h"

#include "sm4.h"

/* Beside a kept message: numbers and amounts of the adjustments, the pass, and the tags and lengths around them. */
enum { PRICED_BYTES_MAX = YK_ADJUSTMENTS_BYTES_MAX + 3 + 6 };

/* Room for all that pricing may write; taps that came late are noted one by one. */
static int reserve_fares(yk_engine *engine, const yk_tap *taps, uint32_t n) {
    uint64_t late = (uint64_t)engine->late_count + n;
    if (late > engine->late_capacity) {
        yk_late_tap *grown = realloc(engine->late, late * 2 * sizeof *grown);
        if (!grown) return YK_NO_MEMORY;
        engine->late = grown;
        engine->late_capacity = (uint32_t)(late * 2);
    }
    for (uint32_t i = 0; i < n; i++)
        if (taps[i].profile == YK_PROFILE_ACCOUNT && taps[i].card != YK_NONE && yk_rides_reserve(engine, taps[i].card) != 0)
            return YK_NO_MEMORY;
    return YK_OK;
}

int yk_run(yk_engine *engine, const yk_tap *taps, uint32_t n, const yk_priors *priors, int64_t time_us, yk_outcome *outcomes,
           yk_fare_note *notes) {
    /* Make room for everything first: after this, posting cannot fail in the middle of a batch. */
    uint64_t payload_bytes = 0, seed = engine->config.hash_seed;
    uint32_t settlement_date = yk_date_of_day(yk_local_day(time_us) > engine->settlement_day ? yk_local_day(time_us) : engine->settlement_day);
    for (uint32_t i = 0; i < n; i++) payload_bytes += taps[i].message_bytes + 5 + PRICED_BYTES_MAX;
    int error = yk_reserve(engine, n, payload_bytes);
    if (!error && engine->has_tariff) error = reserve_fares(engine, taps, n);
    if (error) return error;
    if (yk_seen_reserve(&engine->card_seen, n, seed) != 0 || yk_seen_reserve(&engine->terminal_seen, n, seed) != 0)
        return YK_NO_MEMORY;

    enum { AHEAD = 8, FAR_AHEAD = 16 };
    engine->batch_first = engine->next_sequence;
    for (uint32_t i = 0; i < n; i++) {
        if (i + FAR_AHEAD < n && taps[i + FAR_AHEAD].card != YK_NONE) {
            const yk_tap *next = &taps[i + FAR_AHEAD];
            __builtin_prefetch(yk_table_read(&engine->cards, next->card), 1);
            if (engine->has_tariff && next->profile == YK_PROFILE_ACCOUNT)
                __builtin_prefetch(yk_table_read(&engine->rides, next->card), 1);
        }
        if (i + AHEAD < n && taps[i + AHEAD].card != YK_NONE) {
            const yk_tap *next = &taps[i + AHEAD];
            const yk_card *card = yk_table_read(&engine->cards, next->card);
            __builtin_prefetch(yk_table_read(&engine->accounts, card->account), 1);
            yk_seen_prefetch(&engine->card_seen, yk_hash(yk_card_seen_key(next->card, next->atc), seed));
            if (next->terminal != YK_NONE)
                yk_seen_prefetch(&engine->terminal_seen,
                                 yk_hash(yk_terminal_seen_key(next->terminal, next->terminal_sequence), seed));
        }
        if (engine->has_tariff) {
            uint64_t at = (engine->next_sequence + AHEAD) & (engine->config.ring_records - 1);
            __builtin_prefetch(&engine->notes[at], 1);
            __builtin_prefetch(&engine->rides_before[at], 1);
        }
        yk_decision decision;
        error = yk_decide(engine, &taps[i], priors, &decision);
        if (error) break;
        yk_post(engine, &taps[i], &decision, time_us, settlement_date, &outcomes[i], &notes[i]);
    }
    yk_end_batch(engine);
    return error;
}
