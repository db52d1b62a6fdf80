/* The vocabulary that the C files share: result codes, a decoded tap, a journal record, the answer to a tap.
 *
 * core/types.py gives the same names to Python; tests compare the two, and both with the protos. */
#ifndef YK_TYPES_H
#define YK_TYPES_H

#include <stddef.h>
#include <stdint.h>

/* Result codes: the numbers of proto/yikatong/v1/result.proto. */
enum {
    YK_UNDECIDED = 0,
    YK_ACCEPTED = 1,
    YK_DEBT_BOOKED = 2,
    YK_TEST = 3,
    YK_GREY = 4,
    YK_TORN = 5,
    YK_MALFORMED_CARD_NUMBER = 10,
    YK_MALFORMED_ISSUER_ID = 11,
    YK_MALFORMED_PROFILE = 12,
    YK_MALFORMED_KEY = 13,
    YK_MALFORMED_TRANSACTION_TYPE = 14,
    YK_MALFORMED_AMOUNT = 15,
    YK_MALFORMED_ATC = 16,
    YK_MALFORMED_TERMINAL = 17,
    YK_MALFORMED_TIME = 18,
    YK_MALFORMED_CLOCK_AHEAD = 19,
    YK_MALFORMED_MAC = 20,
    YK_MALFORMED_KIND = 21,
    YK_MALFORMED_PLACE = 22,
    YK_MALFORMED_RIDER = 23,
    YK_MALFORMED_OPERATOR = 24,
    YK_MALFORMED_REQUEST_ID = 25,
    YK_MALFORMED_PASS = 26,
    YK_CONFLICT = 30,
    YK_UNKNOWN_CARD = 40,
    YK_UNKNOWN_TERMINAL = 41,
    YK_UNKNOWN_KEY = 42,
    YK_ALGORITHM_UNSUPPORTED = 43,
    YK_ISSUER_MISMATCH = 44,
    YK_MAC_MISMATCH = 50,
    YK_CARD_EXPIRED = 60,
    YK_CARD_DENIED = 61,
    YK_INSUFFICIENT_FUNDS = 70,
    YK_MERCHANT_UNKNOWN = 80,
    YK_PURSE_UNKNOWN = 81,
    YK_PURSE_EXPIRED = 82,
    YK_PURSE_CATEGORY = 83,
    YK_PURSE_HELD = 84,
    YK_AUTHORIZATION_UNKNOWN = 85,
    YK_AUTHORIZATION_NOT_HELD = 86,
    YK_AUTHORIZATION_EXPIRED = 87,
    YK_CAPTURE_ABOVE_HOLD = 88,
    YK_REFUND_ABOVE_CAPTURE = 89,
    YK_REVERSED = 90,
    YK_NOT_REVERSIBLE = 91,
    YK_LIMIT_TRANSACTION = 92,
    YK_LIMIT_CARD_DAY = 93,
    YK_LIMIT_CARD_MONTH = 94,
    YK_LIMIT_PURSE_DAY = 95,
    YK_LIMIT_PURSE_MONTH = 96,
    YK_LIMIT_CATEGORY_DAY = 97,
    YK_LIMIT_CATEGORY_MONTH = 98,
    YK_LIMIT_OVERDRAFT = 99,
    YK_WINDOW_NOT_FOUND = 100,
    YK_WINDOW_OPEN = 101,
    YK_WINDOW_CLOSED = 102,
    YK_WINDOW_CLEARED = 103,
    YK_WINDOW_SETTLED = 104,
    YK_WINDOW_ABORTED = 105,
    YK_WINDOW_SEALED = 106,
    YK_WINDOW_BEFORE = 107,
    YK_NET_DEBIT_CAP = 108,
    YK_NO_AGREEMENT = 109,
    YK_SAME_ACTOR = 110,
    YK_WRONG_STATE = 111,
    YK_DEADLINE_PASSED = 112,
    YK_DEADLINE_RUNNING = 113,
    YK_ABOVE_CHARGE = 114,
    YK_ALREADY_DISPUTED = 115,
    YK_TOO_MANY_DIFFERENCES = 116,
    YK_PERSON_UNKNOWN = 120,
    YK_PERSON_EXISTS = 121,
    YK_PERSON_IN_USE = 122,
    YK_CARD_HELD = 123,
    YK_CARD_PRESENT = 124,
    YK_APPLICATION_UNKNOWN = 125,
    YK_APPLICATION_OPEN = 126,
    YK_ROW_INVALID = 127,
    YK_CARD_CANCELLED = 128,
    YK_CARD_NOT_OWN = 129,
    YK_FREEZE_NOT_OWN = 130,
    YK_KEY_RETIRED = 140,
    YK_LOAD_UNKNOWN = 141,
    YK_LOAD_COUNTER_PAST = 142,
    YK_LOAD_UNRESOLVED = 143,
    YK_LOAD_RETURNED = 144,
    YK_CHIP_FULL = 145,
    YK_CHIP_BALANCE = 146,
    YK_E_CARD_UNKNOWN = 150,
    YK_E_CARD_EXISTS = 151,
    YK_E_CARD_CANCELLED = 152,
    YK_ACTIVATION_WRONG = 153,
    YK_ACTIVATION_EXPIRED = 154,
    YK_DEVICES_MAX = 155,
    YK_DEVICE_UNKNOWN = 156,
    YK_DEVICE_REVOKED = 157,
    YK_DEVICE_PROOF_WRONG = 158,
    YK_CLOCK_OFF = 159,
    YK_CODE_MALFORMED = 160,
    YK_CODE_EXPIRED = 161,
    YK_CODE_USED = 162,
    YK_CODE_CERTIFICATE_WRONG = 163,
    YK_CODE_ISSUER_SIGNATURE_WRONG = 164,
    YK_LOGIN_UNKNOWN = 165,
    YK_LOGIN_EXPIRED = 166,
    YK_LOGIN_DENIED = 167,
    YK_LOGIN_ANSWERED = 168,
    YK_LOGIN_OTHER_DEVICE = 169,
    YK_LOGIN_OTHER_PORTAL = 170,
    YK_TICKET_USED = 171,
    YK_FIELD_NOT_ALLOWED = 172,
    YK_CONSENT_MISSING = 173,
    YK_IDENTITY_NOT_VERIFIED = 174,
    YK_CHALLENGE_UNKNOWN = 175,
    YK_CODE_KIND_UNKNOWN = 176,
    YK_FOREIGN_UNAVAILABLE = 177,
    YK_FOREIGN_REFUSED = 178,
    YK_APPROVAL_PENDING = 180,
    YK_APPROVAL_EXPIRED = 181,
    YK_APPROVAL_REJECTED = 182,
    YK_APPROVAL_ALTERED = 183,
    YK_LOCKED_OUT = 184,
    YK_CODE_USER_SIGNATURE_WRONG = 190,
    YK_CODE_AUTHORIZATION_EXPIRED = 191,
    YK_CODE_LIMIT = 192,
    YK_CODE_UNKNOWN = 193,
    YK_RESULT_END = 194 /* one more than the largest code */
};

/* Kinds of journal record. */
enum {
    YK_RECORD_TAP = 1,
    YK_RECORD_TOP_UP = 2,
    YK_RECORD_CARD = 3,
    YK_RECORD_TERMINAL = 4,
    YK_RECORD_OPERATOR = 5,
    YK_RECORD_ACCOUNT = 6,   /* a named account was opened; with a card: that of the money on its chip */
    YK_RECORD_POSTING = 7,   /* money moved; `transaction_type` says why (PostingKind in core/types.py) */
    YK_RECORD_HOLD = 8,      /* `amount_fen` more (or, negative, less) of the debit account is held; `credit_after_fen`: held after */
    YK_RECORD_EVENT = 9,     /* what was asked, and what it changed beside the ledger: a message */
    YK_RECORD_DENY_LIST = 10, /* a card came onto the deny list or left it; `deny_reasons`: why it is there now */
    YK_RECORD_ENTITLEMENT = 11, /* a card's rider category and pass from now on */
    YK_RECORD_RIDES = 12     /* a card's memory of its rides from now on: yk_rides as the payload; not in the card's list */
};

/* Flags of a journal record. */
enum {
    YK_FLAG_STORED = 1,       /* the tap came as a stored one */
    YK_FLAG_TEST = 2,         /* the tap carries the test mark */
    YK_FLAG_FRAUD = 4,        /* a card counter seen before, with another MAC or at another terminal */
    YK_FLAG_DENIED = 8,       /* after this record the card is on the deny list */
    YK_FLAG_COUNTED = 16,     /* the tap used up its card counter and terminal sequence */
    YK_FLAG_GREY = 32,        /* the terminal did not see the card's answer */
    YK_FLAG_LINKED = 64,      /* stands or falls with the record after it */
    YK_FLAG_PRICED = 128,     /* the tariff was asked: base_fen and fare_… say what it made of the tap, not the chip's balances */
};

/* What the price of a tap was found from, beside what its record says anyway: `fare_flags`. */
enum {
    YK_FARE_STATED = 1,       /* the terminal stated a transfer */
    YK_FARE_PROVISIONAL = 2,  /* it came late: priced as if nothing had gone before it, until its card was priced again */
    YK_FARE_RIDER_SHIFT = 2,  /* three bits: the rider category, good on that day */
    YK_FARE_RIDER = 0x1c,
};

/* Why a card is on the deny list: a set. */
enum {
    YK_DENY_DEBT = 1,         /* a stored tap that the balance did not cover; a payment that covers it lifts this */
    YK_DENY_LOSS = 2,         /* reported lost */
    YK_DENY_FROZEN = 4,
    YK_DENY_CANCELLED = 8,
    YK_DENY_NOT_ENABLED = 16, /* not picked up yet */
};

#define YK_NONE UINT32_MAX /* "no such slot": card, terminal or account */

enum { YK_ALGORITHM_SM4 = 4, YK_TYPE_PURCHASE = 6, YK_TYPE_COMPOUND = 9 };

/* What a tap's key is good for. */
enum { YK_KEY_UNKNOWN = 0, YK_KEY_GOOD = 1, YK_KEY_REFUSED = 2 };

/* A card number of 1 to 20 digits, as packed BCD: leading zeros count, so the number of digits is part of it. */
typedef struct {
    uint64_t low;   /* the last 16 digits: the card serial */
    uint16_t high;  /* the 4 digits before them */
    uint8_t digits;
    uint8_t reserved[5];
} yk_card_number;

/* A tap as it was decoded, and what the stages learn about it on the way. */
typedef struct {
    yk_card_number number;
    uint8_t issuer_id[8];
    uint32_t amount_fen;
    uint32_t amount_due_fen;
    uint32_t chip_before_fen;
    uint32_t chip_after_fen;
    uint32_t terminal_sequence;
    uint32_t local_date; /* YYYYMMDD */
    uint32_t local_time; /* hhmmss */
    uint32_t line;
    uint32_t stop;
    uint16_t atc;
    uint16_t city;
    uint8_t terminal_number[6];
    uint8_t mac[4];
    uint8_t profile;
    uint8_t algorithm_id;
    uint8_t key_version;
    uint8_t key_index;
    uint8_t transaction_type;
    uint8_t kind;
    uint8_t direction;
    uint8_t industry;
    uint8_t rider;
    uint8_t test;
    uint8_t grey;
    uint8_t keep_message; /* it says more than a record holds: its message goes into the journal whole */

    uint8_t result;        /* decode: YK_MALFORMED_…, else YK_UNDECIDED */
    uint8_t invalid_field; /* decode: field number in Tap */
    uint8_t stored;
    uint8_t proved;        /* verify: 1 when the MAC is right */
    uint8_t key_known;     /* verify: YK_KEY_… */
    uint8_t asked;         /* verify: its key is not here; who holds it must say whether the MAC is right */
    uint8_t search_card;   /* lookup: the card counter may have been seen before the last checkpoint: search the segments */
    uint8_t search_terminal;

    uint32_t card;         /* lookup: slot or YK_NONE */
    uint32_t terminal;
    uint64_t local_s;      /* local date and time as seconds since 1970, UTC */
    uint64_t card_prior;     /* lookup: sequence of the record with this card and ATC; 0: none */
    uint64_t terminal_prior; /* lookup: sequence of the record with this terminal and sequence; 0: none */
    const uint8_t *message;  /* as it came; the request's bytes outlive the batch */
    uint32_t message_bytes;
} yk_tap;

/* A journal record: 128 bytes, little-endian, what happened and its effects. Replay copies effects and runs no rules. */
typedef struct {
    uint64_t sequence;
    int64_t time_us;          /* journal time, microseconds since 1970, UTC */
    uint64_t card_previous;   /* sequence of this card's record before; 0: none */
    int64_t amount_fen;       /* moved from the debit to the credit account */
    int64_t debit_after_fen;  /* balances after */
    union {
        int64_t credit_after_fen;
        uint64_t conflicting_sequence; /* YK_CONFLICT moves nothing: the earlier record instead */
    };
    uint32_t debit_account;   /* YK_NONE: nothing moved */
    uint32_t credit_account;
    uint32_t card;            /* slots; YK_NONE: unknown */
    uint32_t terminal;
    union {
        uint32_t terminal_sequence;
        uint32_t twin;        /* CARD: 1 + slot of the card that it shares account and state with; 0: none */
    };
    union {
        struct {
            uint32_t tap_amount_fen;
            uint32_t amount_due_fen;
            union {
                uint32_t local_date;
                uint32_t rider_from;   /* CARD, ENTITLEMENT: the category's first day, days since 1970-01-01; 0: always */
            };
            union {
                uint32_t local_time;
                uint32_t rider_before_until; /* CARD, ENTITLEMENT: the last day of the category before it; 0: no end */
            };
            union {
                uint32_t line;
                uint32_t rider_until;  /* CARD, ENTITLEMENT: the category's last day, days since 1970-01-01; 0: no end */
            };
            union {
                uint32_t stop;
                uint32_t pass_until;   /* likewise, the pass's */
            };
            uint8_t mac[4];
            union {
                uint32_t chip_before_fen;
                uint32_t base_fen;     /* YK_FLAG_PRICED: the base fare */
            };
        };
        uint8_t event_digest[32]; /* EVENT: SM3 of its message, so that who vouches for the records vouches for it too */
    };
    union {
        uint32_t chip_after_fen;
        struct {
            uint16_t fare_marks; /* YK_MARK_… */
            uint16_t fare_rule;  /* the base fare's rule; 0: the tariff did not know the stop, what the terminal stated is charged */
        };
    };
    uint32_t payload_place;   /* 1 + offset, behind the records, of its length-prefixed message; 0: none */
    uint16_t atc;
    uint8_t kind;
    uint8_t result;
    uint8_t profile;
    uint8_t transaction_type;
    uint8_t tap_kind;
    uint8_t flags;
    uint8_t algorithm_id;
    uint8_t key_version;
    union {
        uint8_t key_index;
        uint8_t pass_number;   /* CARD, ENTITLEMENT; 0: none */
    };
    uint8_t rider;
    uint16_t city;
    union {
        uint8_t industry;
        uint8_t riders_before; /* CARD, ENTITLEMENT: the categories until `rider_from` (yk_card) */
    };
    union {
        uint8_t direction;
        uint8_t before_days;   /* CARD, ENTITLEMENT: for how many days the one before had held; 0: always */
    };
    uint16_t settlement_day;  /* days from 1970-01-01 to its settlement date; 0 in format 1: the UTC+8 day of time_us */
    uint8_t deny_reasons;     /* of the card, after this record; in format 1 the flag YK_FLAG_DENIED stands for YK_DENY_DEBT */
    uint8_t fare_flags;       /* YK_FLAG_PRICED: YK_FARE_… */
} yk_record;

_Static_assert(sizeof(yk_record) == 128, "a journal record is 128 bytes");

/* The answer to one tap. */
typedef struct {
    int64_t charged_fen;
    int64_t balance_after_fen;
    uint64_t sequence;
    uint64_t conflicting_sequence;
    uint32_t settlement_date;
    uint8_t result;
    uint8_t duplicate;
    uint8_t invalid_field;
    uint8_t terminal_kind; /* for the metrics; 0 where the terminal is unknown */
    uint8_t key_version;   /* for the metrics */
    uint8_t fraud;
    uint16_t fare_rule;    /* 0: not priced */
    uint32_t base_fen;
    uint8_t provisional;
    uint8_t fare_fault;    /* for the metrics: YK_FARE_NO_TARIFF and so on, why the tariff did not price it */
    uint8_t reserved[6];
} yk_outcome;

enum { YK_UTC8_S = 8 * 3600 };
/* The day of a journal time in UTC+8: days since 1970-01-01. */
static inline uint32_t yk_local_day(int64_t time_us) { return (uint32_t)((time_us / 1000000 + YK_UTC8_S) / 86400); }
/* Days since 1970-01-01 as a date, YYYYMMDD. */
uint32_t yk_date_of_day(uint32_t day);
/* The settlement day of a record. */
static inline uint32_t yk_settlement_day(const yk_record *record) {
    return record->settlement_day ? record->settlement_day : yk_local_day(record->time_us);
}

#endif
