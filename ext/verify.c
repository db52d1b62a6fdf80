/* The third stage: does the card's own MAC stand under the tap? Many taps at a time, one in each lane (sm4.h). */
#include "engine.h"
#include "sm4.h"

enum { BLOCK = 256 };

static void put_be(uint8_t *out, uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i++) out[i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
}

/* A number of decimal digits as packed BCD. */
static void put_bcd(uint8_t *out, uint32_t value, unsigned bytes) {
    for (unsigned i = bytes; i-- > 0; value /= 100) out[i] = (uint8_t)(value / 10 % 10 << 4 | value % 10);
}

/* The bytes that the MAC covers (profile.md): 22 of them in profile 1, all 32 in profile 2. */
void yk_build_job(const yk_tap *tap, const yk_key *key, yk_mac_job *job) {
    job->parent = key && !key->elsewhere ? key->round_keys : NULL;
    put_be(job->serial, tap->number.low, 8);
    uint8_t *message = job->message;
    put_be(message, tap->amount_fen, 4);
    message[4] = tap->transaction_type;
    memcpy(message + 5, tap->terminal_number, 6);
    put_be(message + 11, tap->terminal_sequence, 4);
    put_bcd(message + 15, tap->local_date, 4);
    put_bcd(message + 19, tap->local_time, 3);
    put_be(message + 22, tap->atc, 2);
    message[24] = tap->kind;
    put_be(message + 25, tap->line, 4);
    put_be(message + 29, tap->stop, 3);
    put_be(job->atc, tap->atc, 2);
    job->profile = tap->profile;
    job->reserved = 0;
    memcpy(job->mac, tap->mac, sizeof job->mac);
}

const yk_key *yk_engine_find_key(const yk_engine *engine, const uint8_t issuer_id[8], uint8_t version, uint8_t index) {
    /* A city has a handful of issuers with a few key versions each: a walk is quicker than a hash. */
    for (uint32_t i = 0; i < engine->key_count; i++) {
        const yk_key *key = &engine->keys[i];
        if (key->version == version && key->index == index && memcmp(key->issuer_id, issuer_id, 8) == 0) return key;
    }
    return NULL;
}

static uint8_t standing(const yk_key *key, int64_t time_us) {
    if (!key) return YK_KEY_UNKNOWN;
    if (key->refused || (key->refused_from_us && time_us >= key->refused_from_us)) return YK_KEY_REFUSED;
    return time_us < key->from_us ? YK_KEY_UNKNOWN : YK_KEY_GOOD;
}

uint32_t yk_verify(const yk_engine *engine, yk_tap *taps, uint32_t n, int64_t time_us) {
    yk_mac_job jobs[BLOCK];
    uint8_t proved[BLOCK];
    uint32_t which[BLOCK], asked = 0;
    for (uint32_t at = 0; at < n;) {
        uint32_t count = 0;
        for (; at < n && count < BLOCK; at++) {
            yk_tap *tap = &taps[at];
            if (tap->result != YK_UNDECIDED || tap->algorithm_id != YK_ALGORITHM_SM4) continue;
            const yk_key *key = yk_engine_find_key(engine, tap->issuer_id, tap->key_version, tap->key_index);
            tap->key_known = standing(key, time_us);
            if (tap->key_known != YK_KEY_GOOD || tap->card == YK_NONE) continue; /* no key of ours, or a card that is refused anyway */
            tap->asked = key->elsewhere;
            asked += tap->asked;
            if (tap->asked) continue;
            yk_build_job(tap, key, &jobs[count]);
            which[count++] = at;
        }
        yk_mac_verify_batch(jobs, count, proved);
        for (uint32_t i = 0; i < count; i++) taps[which[i]].proved = proved[i];
    }
    yk_wipe(jobs, sizeof jobs);
    return asked;
}
