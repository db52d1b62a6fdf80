/* The engine: cards, accounts and terminals in memory, and the batch of taps that runs over them.
 *
 * One thread writes. Nothing here reads a clock, draws a random number or does I/O; time comes with the batch. A batch goes
 *     decode.c → lookup.c → verify.c → decide.c → post.c → respond.c
 * and its records gather in `group`, which the caller takes and makes durable before any answer leaves. */
#ifndef YK_ENGINE_H
#define YK_ENGINE_H

#include "decode.h"
#include "index.h"
#include "table.h"
#include "types.h"

/* Slots. They are what a checkpoint saves, page by page: a change of layout is a new format of the state. */
typedef struct {
    yk_card_number number;
    uint8_t issuer_id[8];
    uint64_t last_sequence;  /* this card's newest journal record */
    uint32_t account;
    uint32_t expires;        /* YYYYMMDD; 0: no end */
    uint32_t atc_next;       /* no ATC from here on has been seen: 0 to 65,536 */
    uint32_t denied_since_s; /* seconds since 1970, UTC; 0: not on the deny list */
    uint8_t rider;
    uint8_t deny_reasons;
    uint8_t reserved[14];
} yk_card;

typedef struct {
    int64_t balance_fen;
    int64_t held_fen;        /* of the balance, what authorisations hold */
} yk_account;

typedef struct {
    uint64_t sequence_next;  /* no terminal sequence from here on has been seen: 0 to 2^32 */
    uint32_t account;        /* its operator's payable account */
    uint8_t number[6];
    uint8_t kind;
    uint8_t reserved[13];
} yk_terminal;

_Static_assert(sizeof(yk_card) == 64, "one cache line a card");
_Static_assert(sizeof(yk_account) == 16, "four accounts a cache line");
_Static_assert(sizeof(yk_terminal) == 32, "two terminals a cache line");

enum { YK_ACCOUNT_FUNDING = 0 }; /* where top-ups come from; its balance is minus all money in the system */

/* One change of the deny list. */
typedef struct {
    uint64_t sequence;
    uint32_t card;
    uint32_t since_s; /* of the card, after the change; 0: it left the list */
    uint8_t reasons;
    uint8_t reserved[7];
} yk_denial;

enum { YK_DENIALS = 1 << 16 }; /* changes that are remembered; whoever is further behind gets the whole list */

/* A card's issuer or master key, as the taps' key version and index name it. */
typedef struct {
    uint8_t issuer_id[8];
    uint8_t version;
    uint8_t index;
    uint32_t round_keys[32];
} yk_key;

typedef struct {
    uint32_t cards_max;
    uint32_t accounts_max;
    uint32_t terminals_max;
    uint32_t ring_records;   /* a power of two: how many of the newest records stay at hand for repeated taps */
    uint32_t batch_taps_max;
    uint32_t stored_grace_s; /* a stored tap is honoured this long after its card went on the deny list */
    uint64_t hash_seed;
} yk_engine_config;

typedef struct {
    yk_engine_config config;
    yk_table cards, accounts, terminals;
    yk_slots card_index, terminal_index;
    yk_seen card_seen, terminal_seen;               /* since the last freeze */
    yk_seen card_seen_frozen, terminal_seen_frozen; /* between a freeze and the checkpoint's end */
    yk_record *ring;
    uint64_t ring_first;     /* the ring holds nothing from before this sequence */
    uint64_t next_sequence;
    yk_denial *denials;      /* ring of the newest changes of the deny list */
    uint64_t denial_count;   /* ever put into it */
    uint64_t denials_after;  /* all changes after this sequence are in it */
    uint64_t deny_version;   /* sequence of the list's last change */
    uint32_t denied_cards;   /* how many are on the list */
    uint32_t settlement_day; /* records get this settlement day or, when it is later, the day of their time */
    yk_key *keys;
    uint32_t key_count;

    yk_record *group;        /* records since the last take, and behind them their payloads */
    uint32_t group_count, group_capacity;
    uint8_t *payload;
    uint32_t payload_bytes, payload_capacity;
    int64_t moved_fen;       /* sum of all changes to balances since the last take: anything but 0 is a fault */
} yk_engine;

enum { YK_OK = 0, YK_NO_MEMORY = -10, YK_FULL = -11, YK_PRIOR_MISSING = -12, YK_CORRUPT = -13 };

int yk_engine_init(yk_engine *engine, const yk_engine_config *config);
void yk_engine_free(yk_engine *engine);
int yk_engine_add_key(yk_engine *engine, const uint8_t issuer_id[8], uint8_t version, uint8_t index, const uint8_t key[16]);
const yk_key *yk_engine_find_key(const yk_engine *engine, const uint8_t issuer_id[8], uint8_t version, uint8_t index);

/* ---- the stages of a batch ---- */

/* lookup.c: which card, which terminal, and where each tap may have been seen before. */
void yk_lookup(const yk_engine *engine, yk_tap *taps, uint32_t n);

/* verify.c: key_known and proved for each tap that is well-formed. */
void yk_verify(const yk_engine *engine, yk_tap *taps, uint32_t n);

/* What is to become of one tap. */
typedef struct {
    const yk_record *prior; /* the earlier record: of the same tap when `duplicate`, of another on YK_CONFLICT */
    uint8_t result;
    uint8_t duplicate;
    uint8_t fraud;
    uint8_t counts;         /* it was proved: it uses up its card counter and terminal sequence */
    uint32_t charge_fen;
} yk_decision;

/* decide.c: reads only. `priors` are records older than the ring, sorted by sequence. YK_OK, or YK_PRIOR_MISSING. */
int yk_decide(const yk_engine *engine, const yk_tap *tap, const yk_record *priors, uint32_t prior_count, yk_decision *decision);

/* post.c: writes only, and cannot fail: yk_run has made room. */
void yk_post(yk_engine *engine, const yk_tap *tap, const yk_decision *decision, int64_t time_us, uint32_t settlement_date,
             yk_outcome *outcome);

/* batch.c: decide and post each tap in turn, since each stands on the balances that the one before it left. */
int yk_run(yk_engine *engine, const yk_tap *taps, uint32_t n, const yk_record *priors, uint32_t prior_count, int64_t time_us,
           yk_outcome *outcomes);

/* respond.c: the response message of one request; AuthorizeTapResponse and SubmitTapsResponse both hold outcomes in field 1,
 * once or repeated. Returns how many bytes were written; `out` has room for YK_OUTCOME_BYTES_MAX a tap. */
enum { YK_OUTCOME_BYTES_MAX = 112 };
size_t yk_respond(const yk_outcome *outcomes, uint32_t n, uint8_t *out);

/* The answer that a record's tap got (GetTap, duplicates). */
void yk_outcome_of_record(const yk_record *record, yk_outcome *outcome);

/* ---- cold writes: one record each, into the group ---- */

uint32_t yk_find_card(const yk_engine *engine, const yk_card_number *number);
uint32_t yk_find_terminal(const yk_engine *engine, const uint8_t number[6]);
int yk_add_operator(yk_engine *engine, int64_t time_us, const uint8_t *payload, uint32_t payload_bytes, uint32_t *account);
int yk_add_card(yk_engine *engine, const yk_card_number *number, const uint8_t issuer_id[8], uint8_t rider, uint32_t expires,
                int64_t time_us, const uint8_t *payload, uint32_t payload_bytes, uint32_t *slot);
int yk_add_terminal(yk_engine *engine, const uint8_t number[6], uint8_t kind, uint32_t account, int64_t time_us,
                    const uint8_t *payload, uint32_t payload_bytes, uint32_t *slot);
int yk_top_up(yk_engine *engine, uint32_t card, int64_t amount_fen, int64_t time_us, const uint8_t *payload,
              uint32_t payload_bytes);

/* ---- change.c: an event and what it moves ---- */

/* One record behind an event. */
typedef struct {
    uint8_t kind;            /* YK_RECORD_ACCOUNT, POSTING, HOLD or DENY_LIST */
    uint8_t why;             /* POSTING: PostingKind; DENY_LIST: the card's reasons from now on */
    uint32_t debit, credit;  /* POSTING; HOLD: `debit` */
    uint32_t card;           /* whose record it is; YK_NONE: nobody's */
    int64_t amount_fen;
    const uint8_t *name;     /* ACCOUNT */
    uint32_t name_bytes;
} yk_step;

/* Write an event and its steps as records of one group, or nothing: YK_OK, YK_NO_MEMORY, YK_FULL (no room for an account, or a
 * balance would overflow), or YK_CORRUPT (an account or card that is not there, a negative posting, a release of more than is
 * held). */
int yk_commit(yk_engine *engine, int64_t time_us, const uint8_t *payload, uint32_t payload_bytes, const yk_step *steps, uint32_t n);

/* ---- restart ---- */

/* Apply records of all kinds but registrations (card, terminal, operator), in sequence, from the journal. YK_OK, or YK_CORRUPT with the index in *at. */
int yk_replay(yk_engine *engine, const yk_record *records, uint32_t n, uint32_t *at);
/* After pages were restored: rebuild the indexes. */
int yk_reindex(yk_engine *engine);

/* Apply records' postings to bare balances and hold each against the balances that the record itself states. */
int yk_audit(int64_t *balances, uint32_t accounts, const yk_record *records, uint32_t n, uint32_t *at);

/* Sum over all accounts. */
int64_t yk_imbalance(const yk_engine *engine);

/* post.c, for the cold writes and replay */
int yk_reserve(yk_engine *engine, uint32_t records, uint64_t payload_bytes);
yk_record *yk_begin_record(yk_engine *engine, uint8_t kind, uint8_t result, int64_t time_us);
void yk_add_payload(yk_engine *engine, yk_record *record, const uint8_t *bytes, uint32_t n);
void yk_end_record(yk_engine *engine, const yk_record *record);
/* deny.c: set why a card is on the deny list, in its slot and in its record, and remember the change. */
void yk_deny(yk_engine *engine, yk_card *card, uint8_t reasons, yk_record *record);
/* After pages were restored: count the cards on the list. */
void yk_recount_denied(yk_engine *engine);
void yk_move(yk_engine *engine, uint32_t debit, uint32_t credit, int64_t amount_fen, yk_record *record);

static inline uint64_t yk_card_hash(const yk_engine *engine, const yk_card_number *number) {
    uint64_t rest = (uint64_t)number->high << 8 | number->digits;
    return yk_hash(number->low + rest * 0x9e3779b97f4a7c15u, engine->config.hash_seed);
}

static inline uint64_t yk_terminal_key(const uint8_t number[6]) {
    uint64_t key = 0;
    memcpy(&key, number, 6);
    return key;
}

static inline uint64_t yk_card_seen_key(uint32_t card, uint16_t atc) { return (uint64_t)card << 16 | atc; }
static inline uint64_t yk_terminal_seen_key(uint32_t terminal, uint32_t sequence) { return (uint64_t)terminal << 32 | sequence; }

static inline uint64_t yk_seen_anywhere(const yk_seen *young, const yk_seen *frozen, uint64_t key, uint64_t seed) {
    uint64_t hash = yk_hash(key, seed);
    uint64_t sequence = yk_seen_find(young, key, hash);
    return sequence ? sequence : yk_seen_find(frozen, key, hash);
}

/* The newest records stay in the ring; `margin` is how many more may be written before the record is looked at. */
static inline int yk_in_ring(const yk_engine *engine, uint64_t sequence, uint64_t margin) {
    return sequence >= engine->ring_first && sequence + engine->config.ring_records > engine->next_sequence + margin;
}

#endif
