"""Every bound, with its reason. What operations may change is a setting (core/config.py) and has its default here."""

from typing import Final

# ---- requests ----
REQUEST_ITEMS_MAX: Final = 8_192  # taps, cards, terminals or top-ups in one request: one group commit's worth
REQUEST_BYTES_MAX: Final = 4 << 20  # 8,192 taps of 300 bytes are 2.4 MiB; a tap is 110 to 200
DENY_PAGE_SIZE_DEFAULT: Final = 1_000
DENY_PAGE_SIZE_MAX: Final = 10_000  # some milliseconds of the writer's thread; 400 KiB
PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1_000  # one journal look-up each: a page stays below some milliseconds
ACCOUNT_NAME_BYTES_MAX: Final = 200  # with its prefix; a document's key
DOCUMENT_KEY_BYTES_MAX: Final = 500  # LMDB takes 511, one of them is the kind
TOP_UP_FEN_MAX: Final = 100_000_000  # a million yuan: above every purse, far below what int64 could not add up
OPERATOR_ID_BYTES_MAX: Final = 64
CALLS_AT_ONCE_MAX: Final = 4_096  # calls in the service port at once, before RESOURCE_EXHAUSTED

# ---- the tap port: what one peer can make grow, and for how long it may take ----
TAP_CONNECTIONS_MAX: Final = 4_096  # some kilobytes each; a city has fewer terminals online at one core
TAP_STREAMS_MAX: Final = 256  # open at a time on one connection: a validator has one, an acquirer some dozen
TAP_CALLS_MAX: Final = 4_096  # waiting for the writer over all connections: some 40 ms at full speed, then RESOURCE_EXHAUSTED
TAP_BUFFERED_BYTES_MAX: Final = (
    256 << 20
)  # of large requests, complete or not, and of answers not taken yet, over all connections
TAP_CONNECTION_BYTES_MAX: Final = TAP_BUFFERED_BYTES_MAX // 8  # of these on one connection: eight full batches each way
TAP_HEADER_BYTES_MAX: Final = 16 << 10  # metadata of one request; gRPC's usual limit is 8 KiB
TAP_CONTROL_FRAMES_MAX: Final = 2_000  # PING, SETTINGS, WINDOW_UPDATE … without a request; a sixtieth is earned back each second
TAP_RESETS_MAX: Final = (
    500  # streams that the peer reset or provoked; a sixtieth is earned back a second, one with each answer taken
)
TAP_REQUEST_S_MAX: Final = 30.0  # from a request's first header to its last byte
TAP_RESPONSE_S_MAX: Final = 60.0  # until the peer has taken an answer
TAP_IDLE_S_MAX: Final = 300.0  # a connection without a call
TAP_PREFACE_S_MAX: Final = 10.0  # until a peer has spoken HTTP/2, after TLS
TAP_HANDSHAKE_S_MAX: Final = 10.0  # TLS

# ---- certificates ----
CERTIFICATES_CACHED: Final = 8_192  # read once each: twice the connections of the tap port, some kilobytes each
CRL_DAYS: Final = 30  # how long a development authority's revocation list is good
CERTIFICATE_DAYS: Final = 365  # and a certificate of it
AUTHORITY_DAYS: Final = 3_650
CERTIFICATE_DAYS_MAX: Final = 3_650
TLS_POLL_S: Final = 1.0  # how soon a changed file is noticed: four calls of stat

# ---- the writer ----
GROUP_TAPS_MAX: Final = 16_384  # taps in one group commit: two full requests; at 128 bytes it is 2 MiB on disk
GROUP_RECORDS_MAX: Final = GROUP_TAPS_MAX + REQUEST_ITEMS_MAX  # commands come first; taps only where they still fit
IN_FLIGHT_RECORDS_MAX: Final = 1 << 16  # decided and waiting: they go to disk together when the commit before them returns
QUEUE_BYTES_MAX: Final = 64 << 20  # requests that wait for the writer, before RESOURCE_EXHAUSTED
LATE_RECORDS_MAX: Final = GROUP_TAPS_MAX  # records in a group before cards with late taps wait for the next
RING_RECORDS: Final = 1 << 18  # newest records at hand for repeated taps

# ---- the engine ----
CARDS_MAX: Final = 16_000_000  # four times the city
TERMINALS_MAX: Final = 1_000_000
ACCOUNTS_BESIDE_MAX: Final = 16_000_000  # purses restricted in purpose, acquirers, banks: one more a card

# ---- tariffs (core/rules/tariff.py); the first four are what a card's memory of rides has room for, 64 bytes (ext/price.h) ----
TARIFF_NETWORKS_MAX: Final = 31  # over all versions: five bits of a ride's marks, of which 0 is none
TARIFF_PASSES_MAX: Final = 255  # a byte of the card, of which 0 is none
RIDES_A_MONTH_MAX: Final = 10_000  # concessions counted in 16 bits; nobody rides more often
TRANSFER_CHAIN_MAX: Final = 255  # a byte
TARIFF_VERSION_MAX: Final = 1_000_000
TARIFF_RULES_MAX: Final = 1_000  # of each kind in a file: leg rules are looked through in order, some nanoseconds each
TARIFF_RULE_NUMBERS_MAX: Final = 65_535  # rules of all versions that ever were: the journal names them in 16 bits
RIDES_KEPT_S: Final = 35 * 86_400  # how long a card's last ride and open entry are remembered: longer than sums of a month
TARIFF_AREAS_MAX: Final = 500  # a matrix of 250,000 cells is a megabyte
FARE_FEN_MAX: Final = 10_000_000  # a hundred thousand yuan: far above every fare, and sums of them stay far below int64
RATE_PERMILLE_MAX: Final = 10_000  # a rate may be a surcharge, up to ten times the base
DISTANCE_M_MAX: Final = 10_000_000  # no line is longer
INDUSTRY_MAX: Final = 31  # the codes in use end at 9; a rule keeps them as bits of a word
JOURNEY_MINUTES_MAX: Final = 2_880  # from entry to exit; an intercity coach may run overnight
JOURNEY_MINUTES_DEFAULT: Final = 240  # what metros allow
TRANSFER_MINUTES_MAX: Final = 1_440
# ---- files of participants and banks ----
FILE_ROWS_MAX: Final = REQUEST_ITEMS_MAX  # in a settlement or bank file: what one change can book, all or nothing
PARTICIPANT_CHARACTERS_MAX: Final = 80  # a role and an operator's id
DIFFERENCES_MAX: Final = REQUEST_ITEMS_MAX  # with one file: nobody works through more, it is the wrong file then
RECONCILE_DAYS_BESIDE: Final = 1  # windows on either side in which a tap is looked for before it is called missing
PAYMENT_DUE_DAYS: Final = 3  # after which an instruction that the bank says nothing of becomes an exception
OVERDUE_DAYS_MAX: Final = 31  # how far back overdue instructions are looked for: a bank file comes every day

# ---- exceptions, adjustments, disputes ----
ACTOR_CHARACTERS_MAX: Final = 64
NOTE_CHARACTERS_MAX: Final = 1_000  # a paragraph; documents are kept elsewhere, only their digests here
NOTES_MAX: Final = 100  # on one exception or dispute: they are written anew with each change
EVIDENCE_MAX: Final = 16  # in one request
EVIDENCE_ALL_MAX: Final = 64  # of one dispute, for the reason of NOTES_MAX
ADJUSTMENT_LEGS_MAX: Final = 64  # what two people can still check by eye
ADJUSTMENT_FEN_MAX: Final = TOP_UP_FEN_MAX
DISPUTE_OPEN_DAYS: Final = 90  # after the charge
DISPUTE_RESPOND_DAYS: Final = 7  # for the operator, from the opening on
DISPUTE_DECIDE_DAYS: Final = 30  # for the city, from the opening on
SCAN_DOCUMENTS_MAX: Final = 4_000  # looked at for one page, some ms of the writer's time; a page may then be short
# ---- authorisations and purses ----
AUTHORIZATION_FEN_MAX: Final = 100_000_000  # a million yuan, as for top-ups
AUTHORIZE_ITEMS_MAX: Final = 64  # of a batch at once: some ten milliseconds, between which taps have their turn
HOLD_S_DEFAULT: Final = 7 * 86_400
HOLD_S_MAX: Final = 31 * 86_400  # hotels and rentals hold longest: a month
OPERATIONS_MAX: Final = 100  # of one authorisation: its document is written anew with each, so the cost grows with their square
EXPIRIES_MAX: Final = 256  # let go before one command: some milliseconds, and once a second is more than a city makes
PURSES_OF_CARD_MAX: Final = 16  # restricted ones that are not closed: each payment looks at all
LEGS_MAX: Final = PURSES_OF_CARD_MAX + 1 + 4  # of one payment: all purses, the general one, some bank accounts
PURSE_ORDER_MAX: Final = 1_000_000
PURSE_VALIDITY_DAYS_MAX: Final = 3_660
LIMITS_MAX: Final = 256  # in a rule file: each payment looks at all
LIMIT_FEN_MAX: Final = 1 << 52
# ---- persons and cards ----
PERSON_NAME_CHARACTERS_MAX: Final = 64  # names of some peoples have several words
PERSON_ADDRESS_CHARACTERS_MAX: Final = 200
PROOF_CHARACTERS_MAX: Final = 64
CONCESSION_AHEAD_DAYS_MAX: Final = 366  # renewals are for the next year; a later day is a slip of the pen
# ---- e-cards, devices and codes ----
E_CARD_DEVICES_MAX: Final = 3  # default of the setting: a telephone, its successor, a watch
DEVICES_KEPT_MAX: Final = 50  # of one e-card, revoked ones too: its document is written anew with each
DEVICE_NAME_CHARACTERS_MAX: Final = 64
ACTIVATION_S: Final = 600  # from the counter or the portal to the phone
ACTIVATION_TRIES_MAX: Final = 5  # of 2^128: they end who tries, not who mistypes
DEVICE_CLOCK_S: Final = 120  # a phone's clock may be this much off: it is set by its network
FREEZES_MAX: Final = 32  # in force on one card: its document is written anew with each
TEMPORARY_LOSS_DAYS: Final = 7  # unless the rules say otherwise
TEMPORARY_LOSS_DAYS_MAX: Final = 366
ISSUANCE_DAYS_MAX: Final = 250  # working days: a year
ISSUANCE_ITEMS_MAX: Final = 1_000  # applications or cards in one request: some 100 ms of the writer's time
BATCH_ROWS_MAX: Final = 100_000
BATCH_BYTES_MAX: Final = 1 << 20  # of rows in one request, some 8,000: far below what a message may have
BATCH_ROWS_AT_ONCE: Final = 64  # in one change: some 20 ms, between which taps have their turn
BATCH_LINE_BYTES_MAX: Final = 4_096
CHIP_WAIT_S: Final = (
    10 * 86_400
)  # a replaced card's chip money waits so long for offline rides made before: cities say 7 to 15 days
HEIRS_LOOKED_AT: Final = 64  # replaced cards looked at in one go for money that came to them late
OVERDUE_COUNTED_MAX: Final = 4_000  # overdue applications that the metric counts: as SCAN_DOCUMENTS_MAX
CODE_BYTES_MAX: Final = 664  # of any code: a ride code with all of its custom data is 587; a QR code of that size is hard to read
CODE_ITEMS_MAX: Final = 1_024  # taps by code in one request: at three signatures each some two seconds of one core
CODES_AT_ONCE: Final = 256  # of these on the writer's thread, some milliseconds, between which taps have their turn
CODE_S: Final = 60  # an online code is good so long
CODE_KEPT_S: Final = 3_600  # an online code that is over is told from one that never was so long
CODE_USES_KEPT_S: Final = 35 * 86_400  # after which a ride code is too old to be uploaded: longer than any terminal stores taps
CODES_SWEPT: Final = 64  # so many more are forgotten with one command than come with it: what is due never grows
CODE_CLOCK_S: Final = 300  # a terminal that taps online may be off so much, as taps may be ahead
RIDE_CODE_PARTS_MAX: Final = 20_000  # issuer parts that were checked: some 10 MiB; a gate sees a few thousand phones a day
RIDE_CODE_VALIDITY_S: Final = 30  # default of the setting; the profile's
RIDE_CODE_HOURS: Final = (
    24  # default of the setting: how long a phone rides without network, and a lost one at gates without lists
)
RIDE_CODE_LIMIT_FEN: Final = 5_000  # default of the setting: above every city fare

# ---- logins, assertions, identity checks ----
ASSERTION_S: Final = 300  # an assertion cannot be called back, so it is short
ASSERTION_BYTES_MAX: Final = 8_192  # of a token: what servers take as a header
LOGIN_QR_S: Final = 180  # from the QR code on the screen to the answer on the phone
LOGIN_KEPT_S: Final = 300  # after its time is over, so that it is told from one that never was
LOGIN_TICKET_S: Final = 60  # from the answer until the portal has fetched and redeemed the ticket
LOGIN_SESSION_S: Final = 1_800  # how long after it a portal may read the allowed fields again, or hand the login on
CONSENT_S_MAX: Final = 366 * 86_400  # of a standing consent: then the person is asked again
CHALLENGE_S: Final = 60  # from a challenge to the answer of the card or chip that lies on the reader
IDENTITY_EXPIRIES_MAX: Final = 256  # swept before one command, as holds are (EXPIRIES_MAX)
LOGIN_TEXT_CHARACTERS_MAX: Final = 512  # of state, nonce and redirect URI: what browsers and portals use
CODE_CHARACTERS_MAX: Final = 1_024  # of a code that is to be resolved: a QR code that a phone's screen still shows well
PORTALS_MAX: Final = 1_000  # in a file
FOREIGN_CALLS_MAX: Final = 32  # at once to one foreign code service
FOREIGN_S_DEFAULT: Final = 2.0  # for one answer of a foreign code service
FOREIGN_FAILURES_MAX: Final = 5  # in a row, before a foreign service is left alone
FOREIGN_PAUSE_S: Final = 10.0  # for so long; then one call tries
FOREIGN_BYTES_MAX: Final = 16_384  # of such an answer

# ---- clearing ----
CLEAR_CHUNK_RECORDS: Final = 1 << 16  # looked at in one go: 8 MiB, which the caches of two cores hold
CLEAR_GREY_MAX: Final = 8_192  # debits of grey records posted with one window, all in one group; the rest with the next
CLEAR_PART_ROWS: Final = 1 << 20  # taps sorted by card at a time: some 150 MB while two parts are sorted

# ---- agreements ----
FEE_FEN_MAX: Final = 100_000_000  # a million yuan: above every fee of a day, far below what int64 could not add up
DEBIT_CAP_FEN_MAX: Final = 10**13  # a hundred thousand million yuan: no city owes that in a day
SHARE_MAX: Final = 1_000_000  # shares are small whole numbers, or millionths
TAP_FEN_MAX: Final = (1 << 32) - 1  # what a tap can carry at all
APPEAL_DAYS_MAX: Final = 366
DENY_LIST_HOURS_MAX: Final = 30 * 24

# ---- who may do what, and how often ----
PURPOSE_CHARACTERS_MAX: Final = 200  # a purpose or a legal basis: a line of a form
WRONG_PROOFS_MAX: Final = 5  # of a card, person or device before it is locked out: people mistype, guesses at codes go far beyond
WRONG_PROOFS_OF_CALLER_MAX: Final = 1_000  # of a caller in an hour, over all subjects: the e-card's app speaks for a city
WRONG_PROOFS_OF_CALLER_S: Final = 3_600
WRONG_PROOFS_KEPT_S: Final = 86_400  # without another one, after which they are forgotten
LOCKOUT_S: Final = 60  # the first one; each further one is twice as long
LOCKOUT_S_MAX: Final = 86_400
LOCKOUT_SUBJECT_BYTES_MAX: Final = 120  # the longest identity has 91
LOCKOUTS_KNOWN_MAX: Final = 65_536  # subjects whose state is at hand, some 300 bytes each; others cost a look at a document
CARD_DIGITS_MAX: Final = 20
ID_BYTES_MAX: Final = 32  # of persons and devices
APPROVAL_S: Final = 86_400  # a proposal waits this long for a second operator: their next shift
EXPORT_PERMIT_S: Final = 86_400  # within which a permitted export is done
RATE_CALLERS_MAX: Final = (
    65_536  # callers whose rates are remembered, some 200 bytes each; who is forgotten begins with a full bucket
)
RATE_PER_S_MAX: Final = 1_000_000
OIDC_PEER_PER_S: Final = 200.0  # of one address: a library's hall behind one, each waiting page asking every two seconds
RATE_BURST_S: Final = 2.0  # a bucket holds so much of its rate: what comes together after a quiet moment is no flood
RATE_GENERAL_PER_S: Final = (
    5_000.0  # of one caller: above what the service port does a core, so only several cores' floods meet it
)
RATE_PERSONAL_PER_S: Final = 200.0  # methods that show who somebody is: a hall of clerks, not a harvest of the register
RATE_PROOF_PER_S: Final = 1_000.0  # methods that take a secret: the e-card's app asks for a whole city's phones
# ---- keys ----
KEY_STORE_BYTES_MAX: Final = 8 << 20  # with KEYS_MAX keys it is some 3 MiB
KEYS_MAX: Final = 4_096  # of all issuers and generations; each takes a page of locked memory
KEY_OPERATORS_MAX: Final = 8  # people of whom any two can hold a ceremony: a key is wrapped for each pair
PASSPHRASE_BYTES_MIN: Final = 12
PASSPHRASE_BYTES_MAX: Final = 1_024
SCRYPT_N: Final = 1 << 15  # with r = 8: 32 MiB and some 80 ms a guess
SCRYPT_N_MIN: Final = 1 << 14
SCRYPT_N_MAX: Final = 1 << 18  # 256 MiB: more would let a file stop the machine
SCRYPT_P_MAX: Final = 4
CEREMONIES_MAX: Final = 100_000  # lines of a log: a change a day for centuries
KEY_GRACE_S_MAX: Final = 366 * 86_400  # how long what was made with a retired key is still taken
SDF_SESSIONS_MAX: Final = 64  # of a key device: vendors' cards have some dozen
SDF_WAIT_S: Final = 5.0  # for a session of the device, while all are in use
CHIP_FEN_MAX: Final = 100_000  # on a chip: a thousand yuan, as city cards allow
LOAD_ATTEMPTS_MAX: Final = 32  # of one load: its document is written anew with each
KEY_STORE_LOOK_S: Final = 2.0  # between two looks whether the store was changed

# ---- files ----
JOURNAL_MAP_BYTES: Final = 1 << 42  # address space, not disk: 4 TiB, some thirty thousand million records
STATE_MAP_BYTES: Final = 1 << 40
JOURNAL_READERS_MAX: Final = 126

# ---- defaults of settings ----
CLOCK_AHEAD_S: Final = 300  # a terminal's clock may be this much ahead
CLOCK_AHEAD_S_MAX: Final = 86_400  # of that setting; the walk to what a late tap follows relies on it
OVERDRAFT_FEN_MAX: Final = 1_000_000  # of that setting: ten thousand yuan, above every deposit
STORED_GRACE_S: Final = 86_400  # a terminal must fetch the deny list once a day
CHECKPOINT_S: Final = 60.0
CHECKPOINT_RECORDS: Final = 1_000_000  # bounds what a restart replays, and the counters held in memory (64 bytes a tap)
CHECKPOINT_REST_TIMES: Final = 2.0  # of its own time: under full load checkpoints would otherwise take half of the machine
CHECKPOINT_DELAY_TIMES: Final = 4  # of CHECKPOINT_RECORDS: however long the rest, then one is due
SEGMENTS_MERGE: Final = 4  # segments of like size before they are merged into one
SEGMENT_KEYS_MAX: Final = 64_000_000  # larger ones are left alone: 1 GiB each
DRAIN_S: Final = 10.0
CONNECTION_AGE_S: Final = 3_600.0  # then peers are asked to connect anew, so that balancing and certificates stay fresh

assert TAP_CALLS_MAX <= GROUP_TAPS_MAX
# Commands stop when so many records are pending; each of these, an event and its records, must still fit.
assert REQUEST_ITEMS_MAX + AUTHORIZE_ITEMS_MAX * (LEGS_MAX + 2) <= GROUP_RECORDS_MAX
assert REQUEST_ITEMS_MAX + EXPIRIES_MAX * LEGS_MAX <= GROUP_RECORDS_MAX

assert GROUP_TAPS_MAX >= REQUEST_ITEMS_MAX
assert LOCKOUT_SUBJECT_BYTES_MAX < DOCUMENT_KEY_BYTES_MAX
assert GROUP_RECORDS_MAX >= 2 * FILE_ROWS_MAX + 2  # an account and a posting for each row, the event, the bank's account
assert LOGIN_TICKET_S <= ASSERTION_S <= LOGIN_SESSION_S
assert SCAN_DOCUMENTS_MAX >= PAGE_SIZE_MAX
assert DISPUTE_RESPOND_DAYS < DISPUTE_DECIDE_DAYS
# A record that the ring no longer holds must be on disk when it is looked for.
# It may be among those being committed, those waiting (either may pass its bound by one group), or those being decided.
assert RING_RECORDS >= 2 * (IN_FLIGHT_RECORDS_MAX + GROUP_RECORDS_MAX) + 2 * GROUP_RECORDS_MAX
assert RING_RECORDS & (RING_RECORDS - 1) == 0
