/* A batch of taps: decide and post alternate, tap by tap. */
#include "engine.h"

int yk_run(yk_engine *engine, const yk_tap *taps, uint32_t n, const yk_record *priors, uint32_t prior_count, int64_t time_us,
           yk_outcome *outcomes) {
    /* Make room for everything first: after this, posting cannot fail in the middle of a batch. */
    uint64_t payload_bytes = 0, seed = engine->config.hash_seed;
    uint32_t settlement_date = yk_date_of_day(yk_local_day(time_us) > engine->settlement_day ? yk_local_day(time_us) : engine->settlement_day);
    for (uint32_t i = 0; i < n; i++) payload_bytes += taps[i].message_bytes + 5;
    int error = yk_reserve(engine, n, payload_bytes);
    if (error) return error;
    if (yk_seen_reserve(&engine->card_seen, n, seed) != 0 || yk_seen_reserve(&engine->terminal_seen, n, seed) != 0)
        return YK_NO_MEMORY;

    enum { AHEAD = 8 };
    for (uint32_t i = 0; i < n; i++) {
        if (i + AHEAD < n && taps[i + AHEAD].card != YK_NONE) {
            const yk_tap *next = &taps[i + AHEAD];
            const yk_card *card = yk_table_read(&engine->cards, next->card);
            __builtin_prefetch(yk_table_read(&engine->accounts, card->account), 1);
            yk_seen_prefetch(&engine->card_seen, yk_hash(yk_card_seen_key(next->card, next->atc), seed));
            if (next->terminal != YK_NONE)
                yk_seen_prefetch(&engine->terminal_seen,
                                 yk_hash(yk_terminal_seen_key(next->terminal, next->terminal_sequence), seed));
        }
        yk_decision decision;
        error = yk_decide(engine, &taps[i], priors, prior_count, &decision);
        if (error) return error;
        yk_post(engine, &taps[i], &decision, time_us, settlement_date, &outcomes[i]);
    }
    return YK_OK;
}
