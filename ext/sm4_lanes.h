/* A batch of taps with one tap in each SIMD lane: the part that all widths share. Included once for each path, by a file
 * that has defined
 *
 *     PATH_FUNCTION(name)      the name of a function of this path
 *     TARGET                   the attribute that lets a function use the path's instructions
 *     LANES, GROUPS            taps in a vector; vectors that are worked on in turns, so that one hides another's latency
 *     vector                   LANES words of 32 bits, word w of tap l in lane l
 *     SUBSTITUTE(t)            what comes before cipher_linear and key_linear
 *
 * and these functions, all inline:
 *
 *     broadcast, xor2, xor3, and2, or2, not1, shift_right_16
 *     hat(w), unhat(w)         IN of each byte without its constant, and back (sm4_field.h)
 *     cipher_linear(x, s)      x + (IN L OUT)(s)
 *     key_linear(k, s)         k + (IN L' OUT)(s)
 *     load_words(at, words)    16 bytes at each of LANES addresses to four vectors of big-endian words
 *     load_native(at, words)   the same for words in the machine's own order
 *     equal_lanes(a, b)        bit l set where lane l is equal
 *     load(words), store(words, v)   LANES words in the machine's own order, without a transposition
 *     forget_registers()       zero every vector register
 */

#define INLINE static inline __attribute__((always_inline)) TARGET
#if defined(__clang__)
#define EACH_GROUP _Pragma("unroll") for (int g = 0; g < GROUPS; g++)
#define EACH_STEP _Pragma("unroll") for (int s = 0; s < 4; s++)
#else
#define EACH_GROUP _Pragma("GCC unroll 8") for (int g = 0; g < GROUPS; g++)
#define EACH_STEP _Pragma("GCC unroll 4") for (int s = 0; s < 4; s++)
#endif

#define WIDTH (LANES * GROUPS)
#define block PATH_FUNCTION(block)
#define keys PATH_FUNCTION(keys)
#define tap_words PATH_FUNCTION(tap_words)

/* Four words, each of WIDTH taps: a block of the cipher or the running state of a key schedule. */
typedef struct {
    vector word[4][GROUPS];
} block;

/* Round keys, as hat words. `shared` is for one key in all lanes. */
typedef struct {
    vector each[YK_SM4_ROUNDS][GROUPS];
    uint32_t shared[YK_SM4_ROUNDS] __attribute__((aligned(64)));
    const uint32_t *shared_from; /* whose hat words `shared` holds */
} keys;

/* The 48 bytes of a job from its serial on, as 12 big-endian words. */
typedef struct {
    vector serial[2][GROUPS];
    vector message[8][GROUPS];
    vector atc_profile[GROUPS];
    vector mac[GROUPS];
} tap_words;

/* ---- rounds ------------------------------------------------------------------------------------------------------ */

INLINE vector PATH_FUNCTION(cipher_round)(vector x, vector t) { return cipher_linear(x, SUBSTITUTE(t)); }
INLINE vector PATH_FUNCTION(key_round)(vector k, vector t) { return key_linear(k, SUBSTITUTE(t)); }

/* Encrypt x with a schedule that is there already. The words come out last first: see the callers. */
INLINE void PATH_FUNCTION(encrypt)(block *x, const keys *schedule, int shared) {
    for (int i = 0; i < YK_SM4_ROUNDS; i += 4) {
        EACH_STEP {
            vector same = broadcast(schedule->shared[i + s]);
            EACH_GROUP {
                vector round_key = shared ? same : schedule->each[i + s][g];
                vector t = xor2(xor3(x->word[(s + 1) & 3][g], x->word[(s + 2) & 3][g], x->word[(s + 3) & 3][g]), round_key);
                x->word[s][g] = PATH_FUNCTION(cipher_round)(x->word[s][g], t);
            }
        }
    }
}

/* The same while the schedule is being made from the key k: a round of the schedule and a round of the cipher depend on each
 * other little, so they fill each other's waiting. With `keep` the round keys stay for further blocks. */
INLINE void PATH_FUNCTION(expand_and_encrypt)(block *k, block *x, keys *schedule, int keep) {
    for (int i = 0; i < YK_SM4_ROUNDS; i += 4) {
        EACH_STEP {
            vector ck = broadcast(CK_HAT[i + s]);
            EACH_GROUP {
                vector t = xor2(xor3(k->word[(s + 1) & 3][g], k->word[(s + 2) & 3][g], k->word[(s + 3) & 3][g]), ck);
                vector round_key = PATH_FUNCTION(key_round)(k->word[s][g], t);
                k->word[s][g] = round_key;
                if (keep) schedule->each[i + s][g] = round_key;
                t = xor2(xor3(x->word[(s + 1) & 3][g], x->word[(s + 2) & 3][g], x->word[(s + 3) & 3][g]), round_key);
                x->word[s][g] = PATH_FUNCTION(cipher_round)(x->word[s][g], t);
            }
        }
    }
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

/* A hat word of the block. */
INLINE vector PATH_FUNCTION(enter)(vector word) { return xor2(hat(word), broadcast(IN_CONSTANT)); }

/* Turn a block that was just encrypted, words last first, into the running state of its own schedule as a key. */
INLINE void PATH_FUNCTION(become_key)(block *x, block *k) {
    EACH_STEP EACH_GROUP k->word[s][g] = xor2(x->word[3 - s][g], broadcast(FK_HAT[s]));
}

/* The step of CBC: the block that was just encrypted, words last first, plus four words of message. */
INLINE void PATH_FUNCTION(chain)(block *x, vector (*message)[GROUPS]) {
    block next;
    EACH_STEP EACH_GROUP next.word[s][g] = xor2(x->word[3 - s][g], hat(message[s][g]));
    *x = next;
}

/* ---- loading ----------------------------------------------------------------------------------------------------- */

INLINE void PATH_FUNCTION(load_taps)(const yk_mac_job *jobs, const size_t index[WIDTH], tap_words *taps) {
    EACH_GROUP {
        const uint8_t *at[LANES];
        vector w[4];
        for (int l = 0; l < LANES; l++) at[l] = jobs[index[g * LANES + l]].serial;
        load_words(at, w);
        taps->serial[0][g] = w[0], taps->serial[1][g] = w[1], taps->message[0][g] = w[2], taps->message[1][g] = w[3];
        for (int l = 0; l < LANES; l++) at[l] += 16;
        load_words(at, w);
        taps->message[2][g] = w[0], taps->message[3][g] = w[1], taps->message[4][g] = w[2], taps->message[5][g] = w[3];
        for (int l = 0; l < LANES; l++) at[l] += 16;
        load_words(at, w);
        taps->message[6][g] = w[0], taps->message[7][g] = w[1], taps->atc_profile[g] = w[2], taps->mac[g] = w[3];
    }
}

/* The parents' round keys as hat words. Returns whether one parent is shared by all lanes, as with one issuer it always is. */
INLINE int PATH_FUNCTION(load_parents)(const yk_mac_job *jobs, const size_t index[WIDTH], keys *schedule) {
    const uint32_t *first = jobs[index[0]].parent;
    int shared = 1;
    for (int i = 1; i < WIDTH; i++) shared &= jobs[index[i]].parent == first;
    if (shared) {
        if (schedule->shared_from != first) {
            for (int i = 0; i < YK_SM4_ROUNDS; i += LANES) store(schedule->shared + i, hat(load(first + i)));
            schedule->shared_from = first;
        }
        return 1;
    }
    for (int i = 0; i < YK_SM4_ROUNDS; i += 4) {
        EACH_GROUP {
            const uint8_t *at[LANES];
            vector w[4];
            for (int l = 0; l < LANES; l++) at[l] = (const uint8_t *)(jobs[index[g * LANES + l]].parent + i);
            load_native(at, w);
            EACH_STEP schedule->each[i + s][g] = hat(w[s]);
        }
    }
    return 0;
}

/* ---- one pass: WIDTH taps of one profile ----------------------------------------------------------------------------- */

/* Leaves in `mac` the first word of each tap's MAC, as a plain number. `index` says which jobs; `taps` come back for the
 * comparison. In order: the card's key, with profile 2 the session key, the MAC block by block. Nothing branches on what is
 * secret, and no address depends on it. */
INLINE void PATH_FUNCTION(pass)(const yk_mac_job *jobs, const size_t index[WIDTH], int profile, keys *schedule, tap_words *taps,
                                vector mac[GROUPS]) {
    const vector zero = broadcast(0);
    block x, k;
    PATH_FUNCTION(load_taps)(jobs, index, taps);

    /* The card's key: SM4(parent, F || ~F). */
    EACH_GROUP {
        x.word[0][g] = PATH_FUNCTION(enter)(taps->serial[0][g]);
        x.word[1][g] = PATH_FUNCTION(enter)(taps->serial[1][g]);
        x.word[2][g] = PATH_FUNCTION(enter)(not1(taps->serial[0][g]));
        x.word[3][g] = PATH_FUNCTION(enter)(not1(taps->serial[1][g]));
    }
    if (PATH_FUNCTION(load_parents)(jobs, index, schedule))
        PATH_FUNCTION(encrypt)(&x, schedule, 1);
    else
        PATH_FUNCTION(encrypt)(&x, schedule, 0);
    PATH_FUNCTION(become_key)(&x, &k);

    /* Profile 2, the session key: SM4(card's key, 00 x 6 || ATC || 00 x 6 || ~ATC). */
    if (profile == YK_PROFILE_ACCOUNT) {
        EACH_GROUP {
            vector atc = shift_right_16(taps->atc_profile[g]);
            x.word[0][g] = x.word[2][g] = PATH_FUNCTION(enter)(zero);
            x.word[1][g] = PATH_FUNCTION(enter)(atc);
            x.word[3][g] = PATH_FUNCTION(enter)(xor2(atc, broadcast(0xffff)));
        }
        PATH_FUNCTION(expand_and_encrypt)(&k, &x, schedule, 0);
        PATH_FUNCTION(become_key)(&x, &k);
    }

    /* The MAC's first block, in the shadow of the schedule of the key that makes it. */
    EACH_STEP EACH_GROUP x.word[s][g] = PATH_FUNCTION(enter)(taps->message[s][g]);
    PATH_FUNCTION(expand_and_encrypt)(&k, &x, schedule, 1);

    /* The rest, padded by 80 00 ...: 22 bytes end within the second block, 32 bytes make a third one that is padding only. */
    if (profile == YK_PROFILE_PURSE) {
        EACH_GROUP {
            taps->message[5][g] = or2(and2(taps->message[5][g], broadcast(0xffff0000)), broadcast(0x8000));
            taps->message[6][g] = taps->message[7][g] = zero;
        }
        PATH_FUNCTION(chain)(&x, taps->message + 4);
        PATH_FUNCTION(encrypt)(&x, schedule, 0);
    } else {
        PATH_FUNCTION(chain)(&x, taps->message + 4);
        PATH_FUNCTION(encrypt)(&x, schedule, 0);
        EACH_GROUP {
            taps->message[0][g] = broadcast(0x80000000);
            taps->message[1][g] = taps->message[2][g] = taps->message[3][g] = zero;
        }
        PATH_FUNCTION(chain)(&x, taps->message);
        PATH_FUNCTION(encrypt)(&x, schedule, 0);
    }
    EACH_GROUP mac[g] = unhat(xor2(x.word[3][g], broadcast(IN_CONSTANT)));
}

/* ---- the batch ---------------------------------------------------------------------------------------------------- */

/* One pass and its answers: into proved[] where that is wanted, else into the jobs. Lanes past `count` repeat the first tap. */
static TARGET __attribute__((noinline)) void PATH_FUNCTION(answer)(const yk_mac_job *jobs, yk_mac_job *written, uint8_t *proved,
                                                                 size_t index[WIDTH], size_t count, int profile,
                                                                 keys *schedule) {
    tap_words taps;
    vector mac[GROUPS];
    for (size_t i = count; i < WIDTH; i++) index[i] = index[0];
    if (profile == YK_PROFILE_PURSE)
        PATH_FUNCTION(pass)(jobs, index, YK_PROFILE_PURSE, schedule, &taps, mac);
    else
        PATH_FUNCTION(pass)(jobs, index, YK_PROFILE_ACCOUNT, schedule, &taps, mac);

    EACH_GROUP {
        if (proved != NULL) {
            uint32_t equal = equal_lanes(mac[g], taps.mac[g]);
            for (int l = 0; l < LANES; l++) proved[index[g * LANES + l]] = (uint8_t)(equal >> l & 1);
        } else {
            uint32_t words[LANES] __attribute__((aligned(64)));
            store(words, mac[g]);
            for (int l = 0; l < LANES; l++) {
                uint32_t big_endian = __builtin_bswap32(words[l]);
                memcpy(written[index[g * LANES + l]].mac, &big_endian, YK_MAC_BYTES);
            }
        }
    }
}

/* Taps wait in a list for each profile until a pass is full; what is left over in the end makes one short pass each. */
static TARGET void PATH_FUNCTION(run)(const yk_mac_job *jobs, yk_mac_job *written, uint8_t *proved, size_t n) {
    keys schedule;
    size_t waiting[2][WIDTH];
    size_t count[2] = {0, 0};
    schedule.shared_from = NULL;
    for (size_t i = 0; i < n; i++) {
        if (!yk_mac_job_is_provable(&jobs[i])) {
            if (proved != NULL)
                proved[i] = 0;
            else
                memset(written[i].mac, 0, YK_MAC_BYTES);
            continue;
        }
        size_t list = jobs[i].profile - YK_PROFILE_PURSE;
        waiting[list][count[list]++] = i;
        if (count[list] == WIDTH) {
            PATH_FUNCTION(answer)(jobs, written, proved, waiting[list], WIDTH, jobs[i].profile, &schedule);
            count[list] = 0;
        }
    }
    for (size_t list = 0; list < 2; list++)
        if (count[list] != 0)
            PATH_FUNCTION(answer)(jobs, written, proved, waiting[list], count[list], (int)list + YK_PROFILE_PURSE, &schedule);
    yk_wipe(&schedule, sizeof schedule);
    forget_registers();
}

void PATH_FUNCTION(yk_mac_batch)(yk_mac_job *jobs, size_t n) { PATH_FUNCTION(run)(jobs, jobs, NULL, n); }

void PATH_FUNCTION(yk_mac_verify_batch)(const yk_mac_job *jobs, size_t n, uint8_t *proved) {
    PATH_FUNCTION(run)(jobs, NULL, proved, n);
}

#undef INLINE
#undef EACH_GROUP
#undef EACH_STEP
#undef WIDTH
#undef block
#undef keys
#undef tap_words
