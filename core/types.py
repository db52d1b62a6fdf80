"""The vocabulary: result codes, kinds of journal record, the record's layout.

The same nouns stand in ext/types.h and in the protos; tests hold the three against each other."""

from enum import IntEnum, IntFlag
from typing import Any, Final

import numpy as np


class Result(IntEnum):
    """What became of one item (proto/yikatong/v1/result.proto)."""

    ACCEPTED = 1
    DEBT_BOOKED = 2
    TEST = 3
    GREY = 4
    TORN = 5
    MALFORMED_CARD_NUMBER = 10
    MALFORMED_ISSUER_ID = 11
    MALFORMED_PROFILE = 12
    MALFORMED_KEY = 13
    MALFORMED_TRANSACTION_TYPE = 14
    MALFORMED_AMOUNT = 15
    MALFORMED_ATC = 16
    MALFORMED_TERMINAL = 17
    MALFORMED_TIME = 18
    MALFORMED_CLOCK_AHEAD = 19
    MALFORMED_MAC = 20
    MALFORMED_KIND = 21
    MALFORMED_PLACE = 22
    MALFORMED_RIDER = 23
    MALFORMED_OPERATOR = 24
    MALFORMED_REQUEST_ID = 25
    MALFORMED_PASS = 26
    CONFLICT = 30
    UNKNOWN_CARD = 40
    UNKNOWN_TERMINAL = 41
    UNKNOWN_KEY = 42
    ALGORITHM_UNSUPPORTED = 43
    ISSUER_MISMATCH = 44
    MAC_MISMATCH = 50
    CARD_EXPIRED = 60
    CARD_DENIED = 61
    INSUFFICIENT_FUNDS = 70
    MERCHANT_UNKNOWN = 80
    PURSE_UNKNOWN = 81
    PURSE_EXPIRED = 82
    PURSE_CATEGORY = 83
    PURSE_HELD = 84
    AUTHORIZATION_UNKNOWN = 85
    AUTHORIZATION_NOT_HELD = 86
    AUTHORIZATION_EXPIRED = 87
    CAPTURE_ABOVE_HOLD = 88
    REFUND_ABOVE_CAPTURE = 89
    REVERSED = 90
    NOT_REVERSIBLE = 91
    LIMIT_TRANSACTION = 92
    LIMIT_CARD_DAY = 93
    LIMIT_CARD_MONTH = 94
    LIMIT_PURSE_DAY = 95
    LIMIT_PURSE_MONTH = 96
    LIMIT_CATEGORY_DAY = 97
    LIMIT_CATEGORY_MONTH = 98
    LIMIT_OVERDRAFT = 99
    WINDOW_NOT_FOUND = 100
    WINDOW_OPEN = 101
    WINDOW_CLOSED = 102
    WINDOW_CLEARED = 103
    WINDOW_SETTLED = 104
    WINDOW_ABORTED = 105
    WINDOW_SEALED = 106
    WINDOW_BEFORE = 107
    NET_DEBIT_CAP = 108
    NO_AGREEMENT = 109
    SAME_ACTOR = 110
    WRONG_STATE = 111
    DEADLINE_PASSED = 112
    DEADLINE_RUNNING = 113
    ABOVE_CHARGE = 114
    ALREADY_DISPUTED = 115
    TOO_MANY_DIFFERENCES = 116
    PERSON_UNKNOWN = 120
    PERSON_EXISTS = 121
    PERSON_IN_USE = 122
    CARD_HELD = 123
    CARD_PRESENT = 124
    APPLICATION_UNKNOWN = 125
    APPLICATION_OPEN = 126
    ROW_INVALID = 127
    CARD_CANCELLED = 128
    CARD_NOT_OWN = 129
    FREEZE_NOT_OWN = 130
    KEY_RETIRED = 140
    LOAD_UNKNOWN = 141
    LOAD_COUNTER_PAST = 142
    LOAD_UNRESOLVED = 143
    LOAD_RETURNED = 144
    CHIP_FULL = 145
    CHIP_BALANCE = 146
    E_CARD_UNKNOWN = 150
    E_CARD_EXISTS = 151
    E_CARD_CANCELLED = 152
    ACTIVATION_WRONG = 153
    ACTIVATION_EXPIRED = 154
    DEVICES_MAX = 155
    DEVICE_UNKNOWN = 156
    DEVICE_REVOKED = 157
    DEVICE_PROOF_WRONG = 158
    CLOCK_OFF = 159
    CODE_MALFORMED = 160
    CODE_EXPIRED = 161
    CODE_USED = 162
    CODE_CERTIFICATE_WRONG = 163
    CODE_ISSUER_SIGNATURE_WRONG = 164
    LOGIN_UNKNOWN = 165
    LOGIN_EXPIRED = 166
    LOGIN_DENIED = 167
    LOGIN_ANSWERED = 168
    LOGIN_OTHER_DEVICE = 169
    LOGIN_OTHER_PORTAL = 170
    TICKET_USED = 171
    FIELD_NOT_ALLOWED = 172
    CONSENT_MISSING = 173
    IDENTITY_NOT_VERIFIED = 174
    CHALLENGE_UNKNOWN = 175
    CODE_KIND_UNKNOWN = 176
    FOREIGN_UNAVAILABLE = 177
    FOREIGN_REFUSED = 178
    APPROVAL_PENDING = 180
    APPROVAL_EXPIRED = 181
    APPROVAL_REJECTED = 182
    APPROVAL_ALTERED = 183
    LOCKED_OUT = 184
    CODE_USER_SIGNATURE_WRONG = 190
    CODE_AUTHORIZATION_EXPIRED = 191
    CODE_LIMIT = 192
    CODE_UNKNOWN = 193


def wire(code: int) -> Any:
    """A code as protobuf messages take it: the numbers are the same (tests hold them together), the static types are not."""
    return int(code)


CHARGED: Final = (Result.ACCEPTED, Result.DEBT_BOOKED)
"""The results under which money moved."""


class RecordKind(IntEnum):
    """Kinds of journal record."""

    TAP = 1
    TOP_UP = 2
    CARD = 3
    TERMINAL = 4
    OPERATOR = 5
    ACCOUNT = 6
    POSTING = 7
    HOLD = 8
    EVENT = 9
    DENY_LIST = 10
    ENTITLEMENT = 11
    RIDES = 12


class ClearingOutcome(IntEnum):
    """What clearing makes of one tap (proto/yikatong/v1/clearing_service.proto), in the order in which it is checked."""

    CLEARED = 1
    DEBT = 2
    TEST = 3
    DECLINED = 4
    REFUSED = 5
    FORMAT = 10
    DUPLICATE = 20
    FRAUD = 21
    SEQUENCE_REUSED = 22
    TERMINAL_UNKNOWN = 30
    ISSUER_MISMATCH = 40
    CARD_UNKNOWN = 50
    CARD_EXPIRED = 51
    MAC_WRONG = 60
    TORN = 61
    GREY = 62
    GREY_PROVED = 63
    GREY_DISPROVED = 64
    DENIED_LIABLE = 70
    AMOUNT_OVER_LIMIT = 80
    BALANCE_GAP = 90
    ATC_GAP = 91
    LATE = 100


class WindowState(IntEnum):
    """Where the window of a settlement date stands (proto/yikatong/v1/clearing_service.proto)."""

    OPEN = 1
    CLOSED = 2
    CLEARED = 3
    SETTLED = 4
    ABORTED = 5


class Flag(IntFlag):
    """Flags of a journal record."""

    STORED = 1
    TEST = 2
    FRAUD = 4
    DENIED = 8
    COUNTED = 16
    GREY = 32
    LINKED = 64
    PRICED = 128


class FareFlag(IntFlag):
    """What the price of a tap was found from, beside what its record says anyway (`fare_flags`). Three bits from RIDER_SHIFT on
    are the rider category that was good on that day."""

    STATED = 1
    PROVISIONAL = 2


FARE_RIDER_SHIFT: Final = 2


class Deny(IntFlag):
    """Why a card is on the deny list."""

    DEBT = 1
    LOSS = 2
    FROZEN = 4
    CANCELLED = 8
    NOT_ENABLED = 16


DENY_REASONS: Final = int(Deny.DEBT | Deny.LOSS | Deny.FROZEN | Deny.CANCELLED | Deny.NOT_ENABLED)


class PostingKind(IntEnum):
    """Why a posting moved money (`transaction_type` of its record)."""

    NONE = 0
    CAPTURE = 10
    REFUND = 11
    CAPTURE_REVERSAL = 12
    REFUND_REVERSAL = 13
    PURSE_FUNDING = 14
    PURSE_RETURN = 15
    CORRECTION = 20  # the fare of a tap, found anew since one before it came late
    SETTLEMENT = 30  # what a position came to was paid
    FEE = 31
    SUBSIDY = 32  # the city's part of concessions
    SPLIT = 33  # transfers between two operators
    INTER_CITY = 34  # taps of another city's cards
    LIABILITY = 35  # taps that an operator must bear
    HELD = 36  # taps kept back until somebody has looked at them
    GREY = 37  # a debit that the card's next record proved
    ADJUSTMENT = 40
    DISPUTE = 41
    PAYMENT = 42
    PAYMENT_RETURN = 43
    REPLACEMENT = 50  # from a card to the one that replaced it
    LOAD = 55  # from a card's account onto its chip
    LOAD_RETURN = 56  # back: the chip's next contact showed that the load did not reach it
    CHIP_OPENING = 57  # what was on the chip before its money had an account of its own


class DocumentKind(IntEnum):
    """Kinds of document (core/documents.py)."""

    ACCOUNT = 1  # name of a named account → its number, 4 bytes
    ANSWER = 2  # request id → Answer
    AUTHORIZATION = 10  # 10 to 14: core/acquiring/authorizations.py
    AUTHORIZATION_REQUEST = 11
    AUTHORIZATION_REVERSAL = 12
    AUTHORIZATION_LIST = 13
    AUTHORIZATION_EXPIRY = 14
    MERCHANT = 15  # acquirer id:merchant id → Merchant
    PURSE = 16  # card slot, 4 bytes; purse id → Purse
    LIMIT_USE = 17  # card slot, 4 bytes; limit id → period, 4 bytes; fen, 8 bytes
    RULE = 20  # number of a fare rule in the journal, 2 bytes → its id
    PASS = 21  # id of a pass → its number, 1 byte
    WINDOW = 30  # settlement date, 4 bytes → WindowDocument
    GREY = 31  # settlement date, card slot (4 bytes each) and ATC (2) → sequence of the record that was settled, 8 bytes
    SEAL = 32  # settlement date, 4 bytes → the seal, as JSON
    SEAL_TREE = 33  # settlement date, 4 bytes → roots of the subtrees that receipts are made from, 32 bytes each
    TAKEN_UP = 34  # settlement date (4 bytes) and sequence (8) of a row of the queue → id of its exception
    INSTRUCTION = 40  # instruction id → Instruction
    BANK_STATEMENT = 41  # statement id → BankStatement
    EXCEPTION = 42  # sequence of the event it came up in, 8 bytes, and its place there, 4 bytes → Exception
    ADJUSTMENT = 43  # sequence of the event that proposed it, 8 bytes → Adjustment
    DISPUTE = 44  # sequence of the event that opened it, 8 bytes → Dispute
    DISPUTED_CHARGE = 45  # sequence of the charge, 8 bytes → key of the dispute
    PARTICIPANT_FILES = 46  # settlement date in 8 digits, and the participant → ParticipantFiles
    PERSON = 50  # person id, 16 bytes → PersonDocument
    PERSON_INDEX = 51  # key version (1 byte) and keyed index of a citizen number (32) → person id
    PERSON_KEY_DROPPED = 52  # slot of a data key that is to be destroyed, 8 bytes → nothing
    CONCESSION = 53  # "p", person id → Concession; "d", its last day (4 bytes), person id → nothing
    CARD_OF_PERSON = 54  # "p", person id, card slot (4 bytes) → nothing; "c", card slot → person id
    CARD_LIFE = 55  # card slot, 4 bytes → CardLife
    CARD_LIFE_DUE = 56  # time in µs at which a temporary loss lifts itself (8 bytes), card slot (4) → nothing
    CARD_LINK = 57  # core/cards/card_links.py: card and e-card, replaced card and its heir
    APPLICATION = 58  # core/cards/issuance.py: applications, and the lists that they stand in
    APPLICATION_BATCH = 59  # core/cards/batches.py: batches and their rows
    CHIP = 60  # card slot, 4 bytes → Chip: core/cards/loads.py
    LOAD = 61  # card slot, 4 bytes; online counter, 2 bytes → Load
    E_CARD = 65  # card slot, 4 bytes → ECardDocument
    E_CARD_INDEX = 66  # slot of an e-card (4 bytes), or its first-level code (16) → card slot, 4 bytes
    DEVICE = 67  # device id → DeviceDocument
    CODE = 68  # core/cards/codes.py: online codes that were given out, and when each is forgotten
    CODE_USE = 69  # likewise, what codes were used for
    LOGIN = 70  # login id → LoginDocument; 70 to 74: core/identity/login.py, core/identity/identity.py
    LOGIN_KEY = 71  # keyed digest of a QR code, ticket or session, 32 bytes → login id
    IDENTITY_EXPIRY = 72  # time_us, 8 bytes; kind, 1 byte; key of what is to be swept then → nothing
    CONSENT = 73  # person id (16 bytes); two portals → ConsentDocument, or a zero byte and one → its name there, 32 bytes
    IDENTITY_ANSWER = 74  # core/identity/identity.py: answers by request id, whose a challenge is
    ACCESS = 75  # person id (16 bytes), place of the event (8; core/access/audit.py) → Access
    ACCESS_BY_CALLER = 76  # identity, 0 byte, place of the event (8), person id (16) → nothing
    LOCKOUT = 77  # name of a subject → Lockout
    APPROVAL = 78  # sequence of the event that proposed it, 8 bytes → Approval
    APPROVAL_REQUEST = 79  # the proposer's request id, 16 bytes → key of the approval
    EXPORT_PERMIT = 80  # core/access/export_permits.py: permits, and whether they are wanted


KEPT_FOR_GOOD: Final = (DocumentKind.ACCESS, DocumentKind.ACCESS_BY_CALLER)
"""What no change may alter or delete."""


NONE: Final = 0xFFFFFFFF
"""No such slot: card, terminal or account."""

PURSE_PREFIX: Final = "purse:"
"""Named accounts of cards' restricted purses are "purse:<card number>:<purse>"."""

CHIP_PREFIX: Final = "chip:"
"""The named account of the money on a card's chip is "chip:<card number>"; it is opened with the chip's first load."""

ACCOUNT_FUNDING: Final = 0
"""The account that top-ups come from."""

RECORD: Final = np.dtype(
    {
        "names": [
            "sequence", "time_us", "card_previous", "amount_fen", "debit_after_fen", "credit_after_fen",
            "conflicting_sequence", "debit_account", "credit_account", "card", "terminal", "terminal_sequence",
            "tap_amount_fen", "amount_due_fen", "local_date", "local_time", "line", "stop", "mac", "chip_before_fen",
            "chip_after_fen", "payload_place", "atc", "kind", "result", "profile", "transaction_type", "tap_kind", "flags",
            "algorithm_id", "key_version", "key_index", "rider", "city", "industry", "direction",
            "settlement_day", "deny_reasons", "fare_flags",
            "rider_until", "pass_until", "base_fen", "fare_marks", "fare_rule", "pass_number",
            "event_digest", "rider_from", "rider_before_until", "riders_before", "before_days",
        ],
        "formats": [
            "<u8", "<i8", "<u8", "<i8", "<i8", "<i8",
            "<u8", "<u4", "<u4", "<u4", "<u4", "<u4",
            "<u4", "<u4", "<u4", "<u4", "<u4", "<u4", "(4,)u1", "<u4",
            "<u4", "<u4", "<u2", "u1", "u1", "u1", "u1", "u1", "u1",
            "u1", "u1", "u1", "u1", "<u2", "u1", "u1",
            "<u2", "u1", "u1",
            "<u4", "<u4", "<u4", "<u2", "<u2", "u1",
            "(32,)u1", "<u4", "<u4", "u1", "u1",
        ],
        "offsets": [
            0, 8, 16, 24, 32, 40,
            40, 48, 52, 56, 60, 64,
            68, 72, 76, 80, 84, 88, 92, 96,
            100, 104, 108, 110, 111, 112, 113, 114, 115,
            116, 117, 118, 119, 120, 122, 123,
            124, 126, 127,
            84, 88, 96, 100, 102, 118,
            68, 76, 80, 122, 123,
        ],
        "itemsize": 128,
    }
)  # fmt: skip
"""One journal record (yk_record in ext/types.h): 128 bytes. `conflicting_sequence` lies over `credit_after_fen`: a
conflict moves nothing. With the flag PRICED `base_fen`, `fare_marks` and `fare_rule` lie over the chip's balances. In records of
cards and entitlements `rider_until` lies over `line`, `pass_until` over `stop`, `rider_from` over `local_date`,
`rider_before_until` over `local_time` (days since 1970-01-01), `riders_before` over `industry`, `before_days` over `direction`
and `pass_number` over `key_index`; in those of cards `terminal_sequence` is 1 + the slot of the card's twin, 0 where it has none.
In records of events `event_digest`, SM3 of the message, lies over what only taps have."""
