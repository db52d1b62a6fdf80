/* The engine: cards, accounts and terminals in memory, and the batch of taps that runs over them.
 *
 * One thread writes. Nothing here reads a clock, draws a random number or does I/O; time comes with the batch. A batch goes
 *     decode.c → lookup.c → verify.c → decide.c → post.c → respond.c
 * and its records gather in `group`, which the caller takes and makes durable before any answer leaves. */
#ifndef YK_ENGINE_H
#define YK_ENGINE_H

#include "decode.h"
#include "index.h"
#include "price.h"
#include "table.h"
#include "types.h"

/* Slots. They are what a checkpoint saves, page by page: a change of layout is a new format of the state. */
typedef struct {
    union {
        yk_card_number number;
        struct { /* what its spare bytes say: which categories held before `rider_from` */
            uint8_t number_bytes[11];
            uint8_t riders_before : 7;   /* the one before; and, shifted by YK_FIRST_SHIFT, the one before that */
            uint8_t late : 1;            /* a tap of it came late, and it was not priced again since: its rides do not know of that tap */
            uint16_t rider_from;         /* the first day of `rider`, days since 1970-01-01; 0: it has always held */
            uint16_t rider_before_until; /* as `rider_until`, of the one before */
        };
    };
    uint8_t issuer_id[8];
    uint64_t last_sequence;  /* this card's newest journal record */
    uint32_t account;
    uint32_t expires;        /* YYYYMMDD; 0: no end */
    uint32_t atc_next;       /* no ATC from here on has been seen: 0 to 65,536 */
    uint32_t denied_since_s; /* seconds since 1970, UTC; 0: not on the deny list */
    uint8_t rider;
    uint8_t deny_reasons;
    uint16_t rider_until;    /* the category's last day, days since 1970-01-01; 0: no end */
    uint16_t pass_until;     /* likewise, the pass's */
    uint8_t pass_number;     /* 0: none */
    uint8_t before_days;     /* for how many days before `rider_from` the one before had held; 0: always */
    uint32_t twin;           /* 1 + slot of the card that shares account and state: a card and its e-card; 0: none */
    uint32_t chip_account;   /* of the money on its chip; 0: it was never loaded, `account` stands for it */
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
    uint8_t reserved_kind;
    uint16_t operator_number; /* as the tariff that is loaded numbers its operator; set anew at each start */
    uint8_t reserved[10];
} yk_terminal;

_Static_assert(sizeof(yk_card) == 64, "one cache line a card");
_Static_assert(offsetof(yk_card, rider_from) == offsetof(yk_card_number, reserved) + 1, "over the spare bytes of the number");

enum { YK_FIRST_SHIFT = 4, YK_BEFORE_MASK = 7 }; /* riders_before */
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

/* What explains a priced tap beside its record: the signed adjustments of its base fare. */
typedef struct {
    int64_t amount_fen[YK_ADJUSTMENTS_MAX];
    uint16_t rule[YK_ADJUSTMENTS_MAX];
    uint8_t count;
    uint8_t pass_number;     /* the card's pass that was good on that day; 0: none */
    uint8_t reserved[2];
} yk_fare_note;

_Static_assert(sizeof(yk_fare_note) == 64, "one cache line a tap");

/* A rule's id, "tariff/version/kind/name": the first tariff_bytes of it name the tariff. */
typedef struct {
    const char *id;
    uint16_t bytes;
    uint16_t tariff_bytes;
} yk_rule_id;

/* A tap that came late: from it on its card must be priced again. */
typedef struct {
    uint32_t card;
    uint32_t local_s;        /* by the wall clock */
    uint32_t atc;
} yk_late_tap;

/* A card's issuer or master key, as the taps' key version and index name it. Times are of the journal. */
typedef struct {
    uint8_t issuer_id[8];
    uint8_t version;
    uint8_t index;
    uint8_t elsewhere;       /* its round keys are not here: whoever holds the key is asked */
    uint8_t refused;         /* compromised or destroyed */
    int64_t from_us;         /* it is not known before this */
    int64_t refused_from_us; /* its grace is over; 0: no end */
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
    int64_t overdraft_fen;   /* a stored tap may leave a purse so far below zero before that is debt */
} yk_engine_config;

typedef struct {
    yk_engine_config config;
    yk_table cards, accounts, terminals;
    yk_table rides;          /* yk_rides of each card; a page is made when a card of it is first priced */
    yk_slots card_index, terminal_index;
    yk_seen card_seen, terminal_seen;               /* since the last freeze */
    yk_seen card_seen_frozen, terminal_seen_frozen; /* between a freeze and the checkpoint's end */
    yk_record *ring;
    uint64_t ring_first;     /* the ring holds nothing from before this sequence */
    uint64_t batch_first;    /* while a batch runs: its records, from this sequence on, are in the group only */
    uint64_t next_sequence;
    yk_denial *denials;      /* ring of the newest changes of the deny list */
    uint64_t denial_count;   /* ever put into it */
    uint64_t denials_after;  /* all changes after this sequence are in it */
    uint64_t deny_version;   /* sequence of the list's last change */
    uint32_t denied_cards;   /* how many are on the list */
    uint32_t settlement_day; /* records get this settlement day or, when it is later, the day of their time */
    yk_key *keys;
    uint32_t key_count;

    /* Rules and passes have numbers of the journal, which stay when tariffs change; the compiled tariff has its own. */
    int has_tariff;
    yk_tariff tariff;
    const uint16_t *rule_numbers;   /* of the tariff's rule → of the journal */
    const uint8_t *pass_numbers;    /* of the journal's pass → of the tariff; 256 of them */
    const yk_rule_id *rule_ids;     /* by number of the journal */
    uint32_t rule_id_count;
    yk_fare_note *notes;     /* beside the ring, of priced taps; only with a tariff */
    uint64_t notes_first;    /* no notes are kept from before this sequence: what is older is on disk with its payload */
    yk_rides *rides_before;  /* beside the notes, of rides that did not come late: what the card remembered when it was priced */
    yk_late_tap *late;       /* since they were last taken */
    uint32_t late_count, late_capacity;

    yk_record *group;        /* records since the last take, and behind them their payloads */
    uint32_t group_count, group_capacity;
    uint8_t *payload;
    uint32_t payload_bytes, payload_capacity;
    int64_t moved_fen;       /* sum of all changes to balances since the last take: anything but 0 is a fault */
} yk_engine;

enum { YK_OK = 0, YK_NOT_AT_HAND = 1, YK_NO_MEMORY = -10, YK_FULL = -11, YK_PRIOR_MISSING = -12, YK_CORRUPT = -13 };

int yk_engine_init(yk_engine *engine, const yk_engine_config *config);
void yk_engine_free(yk_engine *engine);
/* Memory for keys, zeros: locked, and left out of core dumps where the system lets it. NULL: there is none. */
yk_key *yk_keys_new(uint32_t n);
void yk_keys_free(yk_key *keys, uint32_t n);
/* Use these keys, made by yk_keys_new, instead of those before. */
void yk_engine_set_keys(yk_engine *engine, yk_key *keys, uint32_t n);
int yk_engine_add_key(yk_engine *engine, const uint8_t issuer_id[8], uint8_t version, uint8_t index, const uint8_t key[16]);
const yk_key *yk_engine_find_key(const yk_engine *engine, const uint8_t issuer_id[8], uint8_t version, uint8_t index);

/* ---- the stages of a batch ---- */

/* lookup.c: which card, which terminal, and where each tap may have been seen before. */
void yk_lookup(const yk_engine *engine, yk_tap *taps, uint32_t n);

/* Whose taps a caller may bring: 0 for everybody's, else one of these kinds in the upper 16 bits. A terminal's number (as
 * yk_terminal_key) or the place of an operator's account in a table stands below. */
enum { YK_BOUND_TERMINAL = 1, YK_BOUND_OPERATOR = 2, YK_BOUND_SHIFT = 48 };

/* lookup.c: whether no tap of n is somebody else's than the caller's. A malformed tap is nobody's: it leaves no trace. The taps of
 * a terminal that is not known are not an operator's own. */
int yk_are_own(const yk_engine *engine, const yk_tap *taps, uint32_t n, uint64_t bound, const uint32_t *accounts,
               uint32_t account_count);

/* verify.c: key_known and proved for each tap that is well-formed, or asked where its key is elsewhere; how many are asked. */
uint32_t yk_verify(const yk_engine *engine, yk_tap *taps, uint32_t n, int64_t time_us);

/* verify.c: what proves a tap; `parent` is NULL where the key's round keys are elsewhere. */
struct yk_mac_job;
void yk_build_job(const yk_tap *tap, const yk_key *key, struct yk_mac_job *job);

/* What is to become of one tap. */
typedef struct {
    const yk_record *prior; /* the earlier record: of the same tap when `duplicate`, of another on YK_CONFLICT */
    const yk_fare_note *prior_note;
    int64_t charge_fen;
    uint8_t result;
    uint8_t duplicate;
    uint8_t fraud;
    uint8_t counts;         /* it was proved: it uses up its card counter and terminal sequence */
    uint8_t priced;         /* the tariff was asked, and `fare` and `ride` say what it made of which ride */
    uint8_t late;           /* and the card's memory holds later taps already */
    uint8_t fare_fault;
    yk_ride ride;
    yk_fare fare;
} yk_decision;

/* Earlier records that the ring or the notes do not hold any more, sorted by sequence, and the notes of those that were priced. */
typedef struct {
    const yk_record *records;
    const yk_fare_note *notes;
    uint32_t count;
} yk_priors;

/* decide.c: reads only. YK_OK, or YK_PRIOR_MISSING. */
int yk_decide(const yk_engine *engine, const yk_tap *tap, const yk_priors *priors, yk_decision *decision);

/* post.c: writes only, and cannot fail: yk_run has made room. */
void yk_post(yk_engine *engine, const yk_tap *tap, const yk_decision *decision, int64_t time_us, uint32_t settlement_date,
             yk_outcome *outcome, yk_fare_note *note);

/* batch.c: decide and post each tap in turn, since each stands on the balances that the one before it left. `notes`, one a tap,
 * are written where the outcome's fare_rule is not 0. */
int yk_run(yk_engine *engine, const yk_tap *taps, uint32_t n, const yk_priors *priors, int64_t time_us, yk_outcome *outcomes,
           yk_fare_note *notes);

/* respond.c: the response message of one request; AuthorizeTapResponse and SubmitTapsResponse both hold outcomes in field 1,
 * once or repeated. Returns how many bytes were written; `out` has room for yk_response_room. */
size_t yk_respond(const yk_engine *engine, const yk_outcome *outcomes, const yk_fare_note *notes, uint32_t n, uint8_t *out);
size_t yk_response_room(const yk_engine *engine, const yk_outcome *outcomes, const yk_fare_note *notes, uint32_t n);

/* The answer that a record's tap got (GetTap, duplicates). */
void yk_outcome_of_record(const yk_record *record, yk_outcome *outcome);

static inline void yk_fare_of_record(const yk_record *record, yk_outcome *outcome) {
    if (!(record->flags & YK_FLAG_PRICED)) return;
    outcome->fare_rule = record->fare_rule;
    outcome->base_fen = record->base_fen;
    outcome->provisional = (record->fare_flags & YK_FARE_PROVISIONAL) != 0;
}

/* ---- cold writes: one record each, into the group ---- */

uint32_t yk_find_card(const yk_engine *engine, const yk_card_number *number);
uint32_t yk_find_terminal(const yk_engine *engine, const uint8_t number[6]);
int yk_add_operator(yk_engine *engine, int64_t time_us, const uint8_t *payload, uint32_t payload_bytes, uint32_t *account);

/* What a card may ride at: the pass, `rider` from `rider_from` on, and others before it, as in yk_card. */
typedef struct {
    uint16_t rider_until, pass_until;
    uint16_t rider_from, rider_before_until;
    uint8_t rider, pass_number, riders_before, before_days;
} yk_entitlement;

/* `twin`: YK_NONE, or the slot of a card that has no twin yet. Both then pay from one account, and are on the deny list and
 * entitled alike for good: what happens to one happens to the other with the same record (a card and its e-card). */
int yk_add_card(yk_engine *engine, const yk_card_number *number, const uint8_t issuer_id[8], const yk_entitlement *entitlement,
                uint32_t twin, uint32_t expires, int64_t time_us, const uint8_t *payload, uint32_t payload_bytes, uint32_t *slot);
int yk_add_terminal(yk_engine *engine, const uint8_t number[6], uint8_t kind, uint32_t account, int64_t time_us,
                    const uint8_t *payload, uint32_t payload_bytes, uint32_t *slot);
int yk_top_up(yk_engine *engine, uint32_t card, int64_t amount_fen, int64_t time_us, const uint8_t *payload,
              uint32_t payload_bytes);

/* ---- change.c: an event and what it moves ---- */

/* One record behind an event. */
typedef struct {
    uint8_t kind;            /* YK_RECORD_ACCOUNT, POSTING, HOLD, DENY_LIST, ENTITLEMENT or RIDES */
    uint8_t why;             /* POSTING: PostingKind; DENY_LIST: the card's reasons from now on */
    uint32_t debit, credit;  /* POSTING; HOLD: `debit` */
    uint32_t card;           /* whose record it is; YK_NONE: nobody's */
    int64_t amount_fen;
    const uint8_t *bytes;    /* ACCOUNT: its name; ENTITLEMENT: yk_entitlement; RIDES: yk_rides; YK_POSTING_CORRECTION: yk_correction */
    uint32_t byte_count;
} yk_step;

/* A fare found anew: it moves the difference, and says of the tap what its own record would say now. Behind it in the step's bytes
 * comes the explanation, as a priced tap's payload. */
typedef struct {
    uint32_t terminal, terminal_sequence, local_date, local_time, line, stop, base_fen;
    uint16_t atc, fare_marks, fare_rule;
    uint8_t tap_kind, fare_flags;
} yk_correction;

enum { YK_POSTING_CORRECTION = 20 }; /* PostingKind.CORRECTION */

/* Write an event and its steps as records of one group, or nothing: YK_OK, YK_NO_MEMORY, YK_FULL (no room for an account, or a
 * balance would overflow), or YK_CORRUPT (an account or card that is not there, a negative posting, a release of more than is
 * held). */
int yk_commit(yk_engine *engine, int64_t time_us, const uint8_t *payload, uint32_t payload_bytes, const uint8_t digest[32],
              const yk_step *steps, uint32_t n);

/* ---- late.c: cards with late taps ---- */

/* What was corrected: how often money was taken or given back, and how much. */
typedef struct {
    int64_t taken_fen, given_fen;
    uint32_t taken, given;
} yk_corrections;

/* Price a card again from a tap on that came late, by the records at hand alone, and write what differs as one event (its message
 * comes from the caller) and its corrections, the card's new memory of rides the last of them. YK_OK, YK_NOT_AT_HAND, or what
 * yk_commit says; only after YK_OK was anything written. */
int yk_price_late(yk_engine *engine, const yk_late_tap *from, int64_t time_us, const uint8_t *event, uint32_t event_bytes,
                  const uint8_t digest[32], yk_corrections *corrections);

/* ---- restart ---- */

/* Apply records of all kinds but registrations (card, terminal, operator), in sequence, from the journal; `payloads` are those behind
 * them in their journal value. YK_OK, YK_NO_MEMORY, or YK_CORRUPT with the index in *at. */
int yk_replay(yk_engine *engine, const yk_record *records, uint32_t n, const uint8_t *payloads, size_t payload_bytes, uint32_t *at);
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
/* A batch's records into the ring, all at once: one by one, each copy would wait for the stores that the record was made by. */
void yk_end_batch(yk_engine *engine);
/* deny.c: set why a card is on the deny list, in its slot and in its record, and remember the change. */
void yk_deny(yk_engine *engine, yk_card *card, uint8_t reasons, yk_record *record);
/* After pages were restored: count the cards on the list. */
void yk_recount_denied(yk_engine *engine);
void yk_move(yk_engine *engine, uint32_t debit, uint32_t credit, int64_t amount_fen, yk_record *record);
/* Memory for a card's rides, so that they can be written. 0, or -1. */
static inline int yk_rides_reserve(yk_engine *engine, uint32_t card) { return yk_table_make(&engine->rides, card); }
/* Fields 1 and 2 of PricedTap in journal.proto, the adjustments of a fare: at most YK_ADJUSTMENTS_BYTES_MAX. */
enum { YK_ADJUSTMENTS_BYTES_MAX = 2 * (2 + 10 * YK_ADJUSTMENTS_MAX) };
uint8_t *yk_put_adjustments(uint8_t *out, const yk_fare_note *note);
/* What explains a fare, in the journal's numbers of rules. */
void yk_explain(const yk_engine *engine, const yk_fare *fare, yk_fare_note *note);
/* Advance a card's memory by a tap of this record, which was charged and did not come late. */
void yk_rides_booked(yk_engine *engine, const yk_record *record, uint32_t local_s);
void yk_entitle(yk_engine *engine, yk_card *card, const yk_entitlement *entitlement, yk_record *record);

static inline const yk_rides *yk_rides_of(const yk_engine *engine, uint32_t card) {
    static const yk_rides never;
    return yk_table_has(&engine->rides, card) ? yk_table_read(&engine->rides, card) : &never;
}

/* Whether a tap comes before what a card's memory holds. Taps are in order of local time, then of the card's counter. */
static inline int yk_is_late(const yk_rides *rides, uint32_t local_s, uint16_t atc) {
    return local_s < rides->newest_s || (local_s == rides->newest_s && atc < rides->newest_atc);
}

/* What a tap is paid from: profile 1 deducts from the chip. */
static inline uint32_t yk_paying_account(const yk_card *card, int is_chip) {
    return is_chip && card->chip_account ? card->chip_account : card->account;
}

static inline int yk_is_ride(uint8_t tap_kind) {
    return tap_kind == YK_RIDE_ENTRY || tap_kind == YK_RIDE_EXIT || tap_kind == YK_RIDE_SINGLE;
}

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

/* ---- writing protobuf ---- */

static inline uint8_t *yk_put_varint(uint8_t *out, uint64_t value) {
    for (; value >= 0x80; value >>= 7) *out++ = (uint8_t)(value | 0x80);
    *out++ = (uint8_t)value;
    return out;
}

/* The length of what was written from `start` on goes before it, where one byte was left for it; what is longer moves up. */
static inline uint8_t *yk_close_length(uint8_t *start, uint8_t *out) {
    size_t length = (size_t)(out - start), more = 0;
    for (size_t rest = length; rest >= 0x80; rest >>= 7) more++;
    if (more) memmove(start + more, start, length);
    yk_put_varint(start - 1, length);
    return out + more;
}

/* The newest records stay in the ring; `margin` is how many more may be written before the record is looked at. */
static inline int yk_in_ring(const yk_engine *engine, uint64_t sequence, uint64_t margin) {
    return sequence >= engine->ring_first && sequence + engine->config.ring_records > engine->next_sequence + margin;
}

/* And so does what explains a priced one, unless it was there before the start. */
static inline int yk_is_at_hand(const yk_engine *engine, uint64_t sequence, uint64_t margin) {
    if (!yk_in_ring(engine, sequence, margin)) return 0;
    const yk_record *record = &engine->ring[sequence & (engine->config.ring_records - 1)];
    return !(record->flags & YK_FLAG_PRICED) || sequence >= engine->notes_first || !record->payload_place;
}

#endif
