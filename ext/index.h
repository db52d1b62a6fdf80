/* Two hash tables with open addressing, for one writer.
 *
 * yk_slots finds a slot by a key that stands in the slot itself; it keeps 32 bits of the hash beside the slot number, so
 * that a miss seldom touches a slot. yk_seen maps a 64-bit key to a journal sequence number. */
#ifndef YK_INDEX_H
#define YK_INDEX_H

#include "large.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A finaliser that mixes every bit of the key into every bit of the hash. Keys are numbers given by the issuer or counters,
 * not chosen by whoever taps; `seed` is drawn at start, so that nobody can prepare collisions. */
static inline uint64_t yk_hash(uint64_t key, uint64_t seed) {
    uint64_t x = key ^ seed;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}

typedef struct {
    uint32_t tag;
    uint32_t slot_1; /* slot + 1; 0: empty */
} yk_slots_entry;

typedef struct {
    yk_slots_entry *entries;
    uint64_t mask;
    uint64_t used;
} yk_slots;

static inline int yk_slots_init(yk_slots *index, uint64_t capacity) {
    index->mask = capacity - 1;
    index->used = 0;
    index->entries = calloc(capacity, sizeof *index->entries);
    yk_wish_large_pages(index->entries, capacity * sizeof *index->entries);
    return index->entries ? 0 : -1;
}

static inline void yk_slots_place(yk_slots *index, uint64_t hash, uint32_t slot) {
    uint64_t at = hash & index->mask;
    while (index->entries[at].slot_1) at = (at + 1) & index->mask;
    index->entries[at].tag = (uint32_t)(hash >> 32);
    index->entries[at].slot_1 = slot + 1;
    index->used++;
}

static inline void yk_slots_prefetch(const yk_slots *index, uint64_t hash) {
    __builtin_prefetch(&index->entries[hash & index->mask]);
}

typedef struct {
    uint64_t key_1; /* key + 1; 0: empty. No key is all ones. */
    uint64_t sequence;
} yk_seen_entry;

typedef struct {
    yk_seen_entry *entries;
    uint64_t mask;
    uint64_t used;
} yk_seen;

enum { YK_SEEN_CAPACITY_MIN = 1 << 12 };

static inline int yk_seen_init(yk_seen *seen, uint64_t capacity) {
    seen->mask = capacity - 1;
    seen->used = 0;
    seen->entries = calloc(capacity, sizeof *seen->entries);
    yk_wish_large_pages(seen->entries, capacity * sizeof *seen->entries);
    return seen->entries ? 0 : -1;
}

static inline void yk_seen_free(yk_seen *seen) {
    free(seen->entries);
    memset(seen, 0, sizeof *seen);
}

static inline void yk_seen_prefetch(const yk_seen *seen, uint64_t hash) {
    if (seen->entries) __builtin_prefetch(&seen->entries[hash & seen->mask]);
}

static inline uint64_t yk_seen_find(const yk_seen *seen, uint64_t key, uint64_t hash) {
    if (!seen->entries) return 0;
    for (uint64_t at = hash & seen->mask; seen->entries[at].key_1; at = (at + 1) & seen->mask)
        if (seen->entries[at].key_1 == key + 1) return seen->entries[at].sequence;
    return 0;
}

/* There must be room: see yk_seen_reserve. */
static inline void yk_seen_put(yk_seen *seen, uint64_t key, uint64_t hash, uint64_t sequence) {
    uint64_t at = hash & seen->mask;
    while (seen->entries[at].key_1 && seen->entries[at].key_1 != key + 1) at = (at + 1) & seen->mask;
    if (!seen->entries[at].key_1) seen->used++;
    seen->entries[at].key_1 = key + 1;
    seen->entries[at].sequence = sequence;
}

/* Make room for `more` keys at no more than two thirds full; 0, or -1 when memory ran out (nothing is lost then). */
static inline int yk_seen_reserve(yk_seen *seen, uint64_t more, uint64_t seed) {
    uint64_t need = (seen->used + more) * 3 / 2 + 1, capacity = seen->entries ? seen->mask + 1 : YK_SEEN_CAPACITY_MIN;
    if (seen->entries && need <= capacity) return 0;
    while (capacity < need) capacity *= 2;
    yk_seen grown;
    if (yk_seen_init(&grown, capacity) != 0) return -1;
    if (seen->entries)
        for (uint64_t at = 0; at <= seen->mask; at++)
            if (seen->entries[at].key_1) {
                uint64_t key = seen->entries[at].key_1 - 1;
                yk_seen_put(&grown, key, yk_hash(key, seed), seen->entries[at].sequence);
            }
    free(seen->entries);
    *seen = grown;
    return 0;
}

#endif
