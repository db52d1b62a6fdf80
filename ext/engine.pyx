# cython: boundscheck=False, wraparound=False
"""The engine (engine.h) as Python sees it: batches of requests in, records and responses out. The GIL is released in every
stage. One thread calls everything, but for `frozen_*`, which one other thread may call between `freeze` and `release`."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

import numpy as np

cimport numpy as np

from yikatong.ext.key_holder cimport KeyHolder
from yikatong.ext.sm4 cimport yk_mac_job, yk_sm4_expand, yk_wipe
from yikatong.ext.fares cimport YK_ADJUSTMENTS_MAX, yk_rides, yk_tariff, yk_tariff_open

import yikatong.ext.sm4  # noqa: F401  refuses an SM4 path that this machine cannot run, before the first batch would

np.import_array()

cdef extern from "types.h":
    ctypedef struct yk_card_number:
        uint64_t low
        uint16_t high
        uint8_t digits
    ctypedef struct yk_tap:
        yk_card_number number
        uint8_t issuer_id[8]
        uint32_t amount_fen, amount_due_fen, chip_before_fen, chip_after_fen
        uint32_t terminal_sequence
        uint32_t local_date, local_time
        uint32_t line, stop
        uint16_t atc, city
        uint8_t terminal_number[6]
        uint8_t mac[4]
        uint8_t profile, algorithm_id, key_version, key_index, transaction_type
        uint8_t kind, direction, industry, rider, test, grey
        uint8_t keep_message, result, invalid_field, stored, proved, key_known, asked
        uint8_t search_card, search_terminal
        uint32_t card, terminal
        uint64_t local_s
        uint64_t card_prior, terminal_prior
        const uint8_t *message
        uint32_t message_bytes
    ctypedef struct yk_record:
        uint64_t sequence
        int64_t time_us
        uint64_t card_previous
        uint32_t payload_place
        uint8_t kind, flags
    ctypedef struct yk_outcome:
        pass
    ctypedef struct yk_correction:
        pass
    uint32_t yk_local_day(int64_t time_us) nogil
    uint32_t yk_date_of_day(uint32_t day) nogil
    enum: YK_NONE, YK_RECORD_TAP, YK_FLAG_PRICED

cdef extern from "decode.h":
    ctypedef struct yk_decode_rules:
        uint64_t now_local_s
        uint32_t clock_ahead_s_max
        uint32_t taps_max
    enum: YK_DEADLINE_OVER, YK_NOT_OWN, YK_KEY_AWAY
    int yk_decode_request(const uint8_t *bytes, size_t n, int stored, const yk_decode_rules *rules, yk_tap *taps) nogil
    int yk_card_number_parse(const uint8_t *text, size_t n, yk_card_number *number) nogil
    size_t yk_card_number_print(const yk_card_number *number, char *text) nogil
    int64_t yk_local_seconds(uint32_t date, uint32_t time) nogil

cdef extern from "table.h":
    enum: YK_PAGE_BYTES
    ctypedef struct yk_table:
        uint32_t slot_bytes
        uint32_t count
        uint32_t pages_max
        uint32_t frozen_count
        uint8_t **pages
    int64_t yk_table_freeze(yk_table *table) nogil
    uint32_t yk_table_frozen_page(yk_table *table, uint32_t i, uint8_t *out) nogil
    void yk_table_thaw(yk_table *table) nogil
    void *yk_table_write(yk_table *table, uint32_t slot) nogil
    int yk_table_restore_page(yk_table *table, uint32_t page, const uint8_t *bytes) nogil
    const void *yk_table_read(const yk_table *table, uint32_t slot) nogil

cdef extern from "index.h":
    ctypedef struct yk_slots:
        uint64_t mask
    ctypedef struct yk_seen_entry:
        uint64_t key_1
        uint64_t sequence
    ctypedef struct yk_seen:
        yk_seen_entry *entries
        uint64_t mask
        uint64_t used
    int yk_seen_reserve(yk_seen *seen, uint64_t more, uint64_t seed) nogil
    void yk_seen_put(yk_seen *seen, uint64_t key, uint64_t hash, uint64_t sequence) nogil
    void yk_seen_free(yk_seen *seen) nogil
    uint64_t yk_hash(uint64_t key, uint64_t seed) nogil

cdef extern from "engine.h":
    enum: YK_OK, YK_NOT_AT_HAND, YK_NO_MEMORY, YK_FULL, YK_PRIOR_MISSING, YK_CORRUPT
    ctypedef struct yk_card:
        yk_card_number number
        uint8_t issuer_id[8]
        uint64_t last_sequence
        uint32_t account
        uint32_t expires
        uint32_t atc_next
        uint32_t denied_since_s
        uint8_t rider
        uint8_t deny_reasons
        uint16_t rider_until, pass_until
        uint8_t pass_number, riders_before, before_days
        uint16_t rider_from, rider_before_until
        uint32_t twin
        uint32_t chip_account
    ctypedef struct yk_account:
        int64_t balance_fen
        int64_t held_fen
    ctypedef struct yk_terminal:
        uint64_t sequence_next
        uint32_t account
        uint8_t number[6]
        uint8_t kind
        uint16_t operator_number
    ctypedef struct yk_fare_note:
        int64_t amount_fen[YK_ADJUSTMENTS_MAX]
        uint16_t rule[YK_ADJUSTMENTS_MAX]
        uint8_t count, pass_number
    ctypedef struct yk_rule_id:
        const char *id
        uint16_t bytes, tariff_bytes
    ctypedef struct yk_late_tap:
        uint32_t card, local_s, atc
    ctypedef struct yk_priors:
        const yk_record *records
        const yk_fare_note *notes
        uint32_t count
    ctypedef struct yk_entitlement:
        uint16_t rider_until, pass_until
        uint16_t rider_from, rider_before_until
        uint8_t rider, pass_number, riders_before, before_days
    ctypedef struct yk_denial:
        uint64_t sequence
        uint32_t card
        uint32_t since_s
        uint8_t reasons
    enum: YK_DENIALS
    void yk_recount_denied(yk_engine *engine) nogil
    ctypedef struct yk_key:
        uint8_t issuer_id[8]
        uint8_t version, index, elsewhere, refused
        int64_t from_us, refused_from_us
        uint32_t round_keys[32]
    ctypedef struct yk_engine_config:
        uint32_t cards_max
        uint32_t accounts_max
        uint32_t terminals_max
        uint32_t ring_records
        uint32_t batch_taps_max
        uint32_t stored_grace_s
        uint64_t hash_seed
        int64_t overdraft_fen
    ctypedef struct yk_engine:
        yk_engine_config config
        yk_table cards, accounts, terminals, rides
        yk_slots card_index, terminal_index
        yk_seen card_seen, terminal_seen, card_seen_frozen, terminal_seen_frozen
        yk_record *ring
        uint64_t ring_first
        uint64_t next_sequence
        yk_denial *denials
        uint64_t denial_count, denials_after, deny_version
        uint32_t denied_cards
        uint32_t settlement_day
        yk_key *keys
        uint32_t key_count
        int has_tariff
        yk_tariff tariff
        const uint16_t *rule_numbers
        const uint8_t *pass_numbers
        const yk_rule_id *rule_ids
        uint32_t rule_id_count
        yk_fare_note *notes
        uint64_t notes_first
        yk_rides *rides_before
        yk_late_tap *late
        uint32_t late_count
        yk_record *group
        uint32_t group_count, group_capacity
        uint8_t *payload
        uint32_t payload_bytes, payload_capacity
        int64_t moved_fen
    int yk_engine_init(yk_engine *engine, const yk_engine_config *config) nogil
    void yk_engine_free(yk_engine *engine) nogil
    int yk_engine_add_key(yk_engine *engine, const uint8_t *issuer_id, uint8_t version, uint8_t index, const uint8_t *key) nogil
    void yk_lookup(const yk_engine *engine, yk_tap *taps, uint32_t n) nogil
    yk_key *yk_keys_new(uint32_t n) nogil
    void yk_engine_set_keys(yk_engine *engine, yk_key *keys, uint32_t n) nogil
    uint32_t yk_verify(const yk_engine *engine, yk_tap *taps, uint32_t n, int64_t time_us) nogil
    void yk_build_job(const yk_tap *tap, const yk_key *key, yk_mac_job *job) nogil
    int yk_run(yk_engine *engine, const yk_tap *taps, uint32_t n, const yk_priors *priors, int64_t time_us,
               yk_outcome *outcomes, yk_fare_note *notes) nogil
    size_t yk_respond(const yk_engine *engine, const yk_outcome *outcomes, const yk_fare_note *notes, uint32_t n,
                      uint8_t *out) nogil
    size_t yk_response_room(const yk_engine *engine, const yk_outcome *outcomes, const yk_fare_note *notes, uint32_t n) nogil
    void yk_outcome_of_record(const yk_record *record, yk_outcome *outcome) nogil
    uint32_t yk_find_card(const yk_engine *engine, const yk_card_number *number) nogil
    uint32_t yk_find_terminal(const yk_engine *engine, const uint8_t *number) nogil
    int yk_add_operator(yk_engine *engine, int64_t time_us, const uint8_t *payload, uint32_t payload_bytes,
                        uint32_t *account) nogil
    int yk_add_card(yk_engine *engine, const yk_card_number *number, const uint8_t *issuer_id,
                    const yk_entitlement *entitlement, uint32_t twin, uint32_t expires, int64_t time_us, const uint8_t *payload,
                    uint32_t payload_bytes, uint32_t *slot) nogil
    int yk_add_terminal(yk_engine *engine, const uint8_t *number, uint8_t kind, uint32_t account, int64_t time_us,
                        const uint8_t *payload, uint32_t payload_bytes, uint32_t *slot) nogil
    int yk_top_up(yk_engine *engine, uint32_t card, int64_t amount_fen, int64_t time_us, const uint8_t *payload,
                  uint32_t payload_bytes) nogil
    ctypedef struct yk_step:
        uint8_t kind, why
        uint32_t debit, credit, card
        int64_t amount_fen
        const uint8_t *bytes
        uint32_t byte_count
    int yk_commit(yk_engine *engine, int64_t time_us, const uint8_t *payload, uint32_t payload_bytes, const uint8_t *digest,
                  const yk_step *steps, uint32_t n) nogil
    ctypedef struct yk_corrections:
        int64_t taken_fen, given_fen
        uint32_t taken, given
    int yk_price_late(yk_engine *engine, const yk_late_tap *tap, int64_t time_us, const uint8_t *event, uint32_t event_bytes,
                      const uint8_t *digest, yk_corrections *corrections) nogil
    int yk_replay(yk_engine *engine, const yk_record *records, uint32_t n, const uint8_t *payloads, size_t payload_bytes,
                  uint32_t *at) nogil
    int yk_reindex(yk_engine *engine) nogil
    int yk_audit(int64_t *balances, uint32_t accounts, const yk_record *records, uint32_t n, uint32_t *at) nogil
    int64_t yk_imbalance(const yk_engine *engine) nogil
    int yk_is_at_hand(const yk_engine *engine, uint64_t sequence, uint64_t margin) nogil
    const yk_rides *yk_rides_of(const yk_engine *engine, uint32_t card) nogil
    uint64_t yk_terminal_key(const uint8_t *number) nogil
    enum: YK_BOUND_TERMINAL, YK_BOUND_OPERATOR, YK_BOUND_SHIFT
    int yk_are_own(const yk_engine *engine, const yk_tap *taps, uint32_t n, uint64_t bound, const uint32_t *accounts,
                   uint32_t account_count) nogil
    uint64_t yk_card_seen_key(uint32_t card, uint16_t atc) nogil
    uint64_t yk_terminal_seen_key(uint32_t terminal, uint32_t sequence) nogil

cdef enum:
    RECORD_BYTES = 128

cdef enum:
    NOGIL_TAPS = 64  # a smaller batch is done before another thread would give the GIL back

DEADLINE_OVER = YK_DEADLINE_OVER
NOT_OWN = YK_NOT_OWN
KEY_AWAY = YK_KEY_AWAY
NONE = <uint32_t>YK_NONE
PAGE_BYTES = YK_PAGE_BYTES
TABLES = ("cards", "accounts", "terminals", "rides")

OUTCOME = np.dtype({
    "names": ["charged_fen", "balance_after_fen", "sequence", "conflicting_sequence", "settlement_date", "result",
              "duplicate", "invalid_field", "terminal_kind", "key_version", "fraud", "fare_rule", "base_fen", "provisional",
              "fare_fault"],
    "formats": ["<i8", "<i8", "<u8", "<u8", "<u4", "u1", "u1", "u1", "u1", "u1", "u1", "<u2", "<u4", "u1", "u1"],
    "offsets": [0, 8, 16, 24, 32, 36, 37, 38, 39, 40, 41, 42, 44, 48, 49],
    "itemsize": sizeof(yk_outcome),
})


DENIAL = np.dtype({
    "names": ["sequence", "card", "since_s", "reasons"],
    "formats": ["<u8", "<u4", "<u4", "u1"],
    "offsets": [0, 8, 12, 16],
    "itemsize": sizeof(yk_denial),
})


NOTE = np.dtype({
    "names": ["amount_fen", "rule", "count", "pass_number"],
    "formats": [("<i8", (YK_ADJUSTMENTS_MAX,)), ("<u2", (YK_ADJUSTMENTS_MAX,)), "u1", "u1"],
    "offsets": [0, 8 * YK_ADJUSTMENTS_MAX, 10 * YK_ADJUSTMENTS_MAX, 10 * YK_ADJUSTMENTS_MAX + 1],
    "itemsize": sizeof(yk_fare_note),
})
CORRECTION = np.dtype([
    ("terminal", "<u4"), ("terminal_sequence", "<u4"), ("local_date", "<u4"), ("local_time", "<u4"), ("line", "<u4"),
    ("stop", "<u4"), ("base_fen", "<u4"), ("atc", "<u2"), ("fare_marks", "<u2"), ("fare_rule", "<u2"), ("tap_kind", "u1"),
    ("fare_flags", "u1"),
])
ENTITLEMENT = np.dtype([
    ("rider_until", "<u2"), ("pass_until", "<u2"), ("rider_from", "<u2"), ("rider_before_until", "<u2"), ("rider", "u1"),
    ("pass_number", "u1"), ("riders_before", "u1"), ("before_days", "u1"),
])
SIZES = {"NOTE": sizeof(yk_fare_note), "CORRECTION": sizeof(yk_correction), "ENTITLEMENT": sizeof(yk_entitlement)}


class EngineFault(Exception):
    """Memory no longer agrees with itself or with the journal: it must be thrown away and rebuilt."""


class EngineFull(Exception):
    """No room: the configured number of cards, accounts or terminals is reached, or the machine is out of memory."""


cdef int _check(int error) except -1:
    if error == YK_OK:
        return 0
    if error == YK_FULL:
        raise EngineFull("the configured number of cards, accounts or terminals is reached")
    if error == YK_NO_MEMORY:
        raise EngineFull("out of memory")
    if error == YK_PRIOR_MISSING:
        raise EngineFault("an earlier record that the index names is not in the journal")
    raise EngineFault("a record does not follow from the ones before it")


cdef int _card_number(str text, yk_card_number *number) except -1:
    cdef bytes raw = text.encode("utf-8", "surrogatepass")
    if yk_card_number_parse(<const uint8_t *>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), number) != 0:
        raise ValueError("card_number: 1 to 20 digits are wanted")
    return 0


def is_card_number(str text):
    """Whether `text` is a card number: 1 to 20 ASCII digits."""
    cdef yk_card_number number
    cdef bytes raw = text.encode("utf-8", "surrogatepass")
    return yk_card_number_parse(<const uint8_t *>PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw), &number) == 0


def settlement_date(int64_t time_us):
    """The UTC+8 day of a journal time (microseconds since 1970, UTC) as YYYYMMDD."""
    return yk_date_of_day(yk_local_day(time_us))


def local_seconds(date, time):
    """Seconds since 1970 (UTC) of a local date YYYYMMDD and time hhmmss (UTC+8); -1 where there is no such time in 2000 to 2099."""
    if not 0 <= date <= 0xFFFFFFFF or not 0 <= time <= 0xFFFFFFFF:
        return -1
    return yk_local_seconds(date, time)


def outcomes_of_records(const uint8_t[::1] records not None):
    """The answers that the taps of these journal records got: array of OUTCOME."""
    cdef Py_ssize_t n = records.shape[0] // RECORD_BYTES, i
    answers = np.zeros(n, OUTCOME)
    cdef uint8_t[::1] out = answers.view(np.uint8)
    cdef yk_record record  # a copy: records in the mapped file are not aligned
    for i in range(n):
        memcpy(&record, &records[i * RECORD_BYTES], RECORD_BYTES)
        yk_outcome_of_record(&record, <yk_outcome *>&out[i * sizeof(yk_outcome)])
    return answers


def audit(int64_t[::1] balances not None, const uint8_t[::1] records not None):
    """Apply records' postings to `balances` (fen, by account, changed in place) and hold each against the balances that the
    record states. Returns the index of the first record that does not agree, or -1."""
    cdef uint32_t n = <uint32_t>(records.shape[0] // RECORD_BYTES), at = 0
    cdef int error = YK_OK
    if n:
        with nogil:
            error = yk_audit(&balances[0], <uint32_t>balances.shape[0], <const yk_record *>&records[0], n, &at)
    return -1 if error == YK_OK else at


cdef class Calls:
    def __cinit__(self, uint32_t n, bint stored):
        self.n = n
        self.stored = stored
        self.messages = <const uint8_t **>malloc(n * sizeof(uint8_t *))
        self.lengths = <uint32_t *>malloc(n * sizeof(uint32_t))
        self.deadlines_us = <uint64_t *>malloc(n * sizeof(uint64_t))
        self.handles = <void **>malloc(n * sizeof(void *))
        self.bounds = <uint64_t *>calloc(n, sizeof(uint64_t))
        self.counts = <int32_t *>malloc(n * sizeof(int32_t))
        self.response_ends = <uint64_t *>malloc(n * sizeof(uint64_t))
        if not (self.messages and self.lengths and self.deadlines_us and self.handles and self.bounds and self.counts
                and self.response_ends):
            raise MemoryError

    def __dealloc__(self):
        free(self.messages)
        free(self.lengths)
        free(self.deadlines_us)
        free(self.handles)
        free(self.bounds)
        free(self.counts)
        free(self.response_ends)
        free(self.responses)

    def fill(self, bytes response not None):
        """Give every request the same response: for an empty handler, to measure a transport by."""
        cdef uint32_t i
        cdef size_t n = PyBytes_GET_SIZE(response)
        free(self.responses)
        self.responses = <uint8_t *>malloc(self.n * n + 1)
        if not self.responses:
            raise MemoryError
        for i in range(self.n):
            memcpy(self.responses + i * n, PyBytes_AS_STRING(response), n)
            self.response_ends[i] = (i + 1) * n
            self.counts[i] = 1

    @property
    def taps_max(self):
        """More taps than this cannot be in it, whatever the limit of one request."""
        return None if self.stored else self.n


def bound_to_terminal(bytes terminal_number not None):
    """The `bound` of a caller who may bring one terminal's taps (6 bytes)."""
    if len(terminal_number) != 6:
        raise ValueError("a terminal number has 6 bytes")
    return <uint64_t>YK_BOUND_TERMINAL << YK_BOUND_SHIFT | yk_terminal_key(<const uint8_t *>PyBytes_AS_STRING(terminal_number))


def bound_to_operator(uint32_t place):
    """The `bound` of a caller who may bring the taps of an operator's terminals, by its account's place in `accounts`."""
    return <uint64_t>YK_BOUND_OPERATOR << YK_BOUND_SHIFT | place


cdef class Engine:
    """Cards, accounts and terminals in memory, and the stages of a tap batch over them.

    A batch is driven by calling decode, lookup, verify, run and respond in this order (core/tap.py)."""

    cdef yk_engine engine
    cdef yk_tap *taps
    cdef yk_outcome *outcomes
    cdef yk_fare_note *notes   # beside the outcomes
    cdef uint32_t tap_count, tap_capacity
    cdef uint8_t *scratch
    cdef size_t scratch_bytes
    cdef list requests         # kept alive: taps point into them
    cdef list request_counts   # taps of each request, or a negative decode error
    cdef bint photographed     # between `freeze` and `release` or `thaw`
    cdef tuple tariff          # kept alive: the engine points into it
    cdef list rule_texts       # likewise
    cdef yk_rule_id *rule_ids

    def __cinit__(self, *, uint32_t cards_max, uint32_t terminals_max, uint32_t ring_records, uint32_t batch_taps_max,
                  uint32_t stored_grace_s, uint64_t hash_seed, uint64_t taps_expected=0, uint32_t accounts_max=0,
                  int64_t overdraft_fen=0):
        if ring_records & (ring_records - 1):
            raise ValueError("ring_records: a power of two is wanted")
        cdef yk_engine_config config
        config.cards_max = cards_max
        config.terminals_max = terminals_max
        config.accounts_max = accounts_max or cards_max + terminals_max + 1
        config.ring_records = ring_records
        config.batch_taps_max = batch_taps_max
        config.stored_grace_s = stored_grace_s
        config.hash_seed = hash_seed
        config.overdraft_fen = overdraft_fen
        _check(yk_engine_init(&self.engine, &config))
        if taps_expected:
            self._expect(taps_expected)
        self.tap_capacity = batch_taps_max
        self.taps = <yk_tap *>malloc(batch_taps_max * sizeof(yk_tap))
        self.outcomes = <yk_outcome *>malloc(batch_taps_max * sizeof(yk_outcome))
        self.notes = <yk_fare_note *>malloc(batch_taps_max * sizeof(yk_fare_note))
        if not self.taps or not self.outcomes or not self.notes:
            raise MemoryError
        self.requests = []
        self.request_counts = []

    def __dealloc__(self):
        yk_engine_free(&self.engine)
        free(self.taps)
        free(self.outcomes)
        free(self.notes)
        free(self.scratch)
        free(self.rule_ids)

    def add_key(self, const uint8_t[::1] issuer_id not None, uint8_t version, uint8_t index, const uint8_t[::1] key not None):
        """Set the key above the cards' of one issuer (8 bytes) for a key version and index: the issuer's or, with one level, the master."""
        if issuer_id.shape[0] != 8 or key.shape[0] != 16:
            raise ValueError("issuer_id has 8 bytes, key has 16")
        _check(yk_engine_add_key(&self.engine, &issuer_id[0], version, index, &key[0]))

    def set_keys(self, list keys not None):
        """Use these keys above the cards' instead of those before: (issuer_id, version, index, KeyHolder or None where the key is
        elsewhere, known from, refused from (0: no end), refused) each; times are microseconds of journal time."""
        cdef uint32_t n = len(keys), i
        cdef yk_key *made = yk_keys_new(n) if n else NULL
        cdef bytes issuer_id
        cdef KeyHolder holder
        if n and made == NULL:
            raise MemoryError
        for i in range(n):
            issuer_id, version, index, holder, from_us, refused_from_us, refused = keys[i]
            memcpy(made[i].issuer_id, PyBytes_AS_STRING(issuer_id), 8)
            made[i].version, made[i].index = version, index
            made[i].from_us, made[i].refused_from_us, made[i].refused = from_us, refused_from_us, 1 if refused else 0
            made[i].elsewhere = holder is None
            if holder is not None:
                yk_sm4_expand(holder.key(), made[i].round_keys)
        yk_engine_set_keys(&self.engine, made, n)

    # ---- fares ----

    def set_tariff(self, bytes blob not None, rule_numbers, bytes pass_numbers not None):
        """Price by a compiled tariff from now on. `rule_numbers`: the journal's number of each of its rules (array of uint16);
        `pass_numbers`: its number of each of the journal's passes (256 bytes, 0: it does not know it)."""
        numbers = np.ascontiguousarray(rule_numbers, np.uint16)
        cdef const uint16_t[::1] numbers_view = numbers
        if yk_tariff_open(&self.engine.tariff, PyBytes_AS_STRING(blob), PyBytes_GET_SIZE(blob)):
            raise ValueError("these bytes are no compiled tariff of this build")
        if len(pass_numbers) != 256 or not len(numbers):
            raise ValueError("256 numbers of passes are wanted, and one of a rule at least")
        if not self.engine.notes:
            self.engine.notes = <yk_fare_note *>malloc(self.engine.config.ring_records * sizeof(yk_fare_note))
            self.engine.rides_before = <yk_rides *>malloc(self.engine.config.ring_records * sizeof(yk_rides))
            if not self.engine.notes or not self.engine.rides_before:
                raise MemoryError
            self.engine.notes_first = self.engine.next_sequence
        self.tariff = (blob, numbers, pass_numbers)
        self.engine.rule_numbers = &numbers_view[0]
        self.engine.pass_numbers = <const uint8_t *>PyBytes_AS_STRING(pass_numbers)
        self.engine.has_tariff = 1

    def set_rule_ids(self, list ids not None):
        """The ids of rules, "tariff/version/kind/name", by number of the journal; 0 is none."""
        cdef list texts = [each.encode("ascii") for each in ids]
        cdef uint32_t i
        cdef yk_rule_id *made = <yk_rule_id *>malloc((len(texts) + 1) * sizeof(yk_rule_id))
        if not made:
            raise MemoryError
        for i in range(len(texts)):
            made[i].id = PyBytes_AS_STRING(texts[i])
            made[i].bytes = len(texts[i])
            made[i].tariff_bytes = len(b"/".join((<bytes>texts[i]).split(b"/")[:2]))
        free(self.rule_ids)
        self.rule_ids, self.rule_texts = made, texts
        self.engine.rule_ids, self.engine.rule_id_count = made, len(texts)

    def set_operator_numbers(self, dict numbers not None, uint32_t start=0):
        """The tariff's number of each operator, by the operator's account, for terminals from slot `start` on; 0 for those that
        are not there."""
        cdef uint32_t slot
        cdef yk_terminal *terminal
        for slot in range(start, self.engine.terminals.count):
            terminal = <yk_terminal *>yk_table_read(&self.engine.terminals, slot)
            number = numbers.get(terminal.account, 0)
            if terminal.operator_number != number:
                (<yk_terminal *>yk_table_write(&self.engine.terminals, slot)).operator_number = number

    def rides(self, uint32_t card):
        """What a card remembers of its rides: bytes of yk_rides (ext.fares.RIDES)."""
        if card >= self.engine.cards.count:
            raise IndexError(f"there is no card in slot {card}")
        return (<const char *>yk_rides_of(&self.engine, card))[:sizeof(yk_rides)]

    def priced_records(self, uint32_t card, int64_t until_us):
        """A card's records of priced taps and of corrections from a journal time on, newest first, as far as they are at hand: records,
        a NOTE for each, and the sequence of the card's record to go on from in the journal (0: that was all)."""
        if card >= self.engine.cards.count:
            raise IndexError(f"there is no card in slot {card}")
        cdef uint64_t sequence = (<const yk_card *>yk_table_read(&self.engine.cards, card)).last_sequence, at
        cdef const yk_record *record
        cdef bytearray records = bytearray(), notes = bytearray()
        cdef yk_fare_note none
        memset(&none, 0, sizeof(yk_fare_note))
        while sequence and yk_is_at_hand(&self.engine, sequence, 0):
            at = sequence & (self.engine.config.ring_records - 1)
            record = &self.engine.ring[at]
            if record.time_us < until_us:
                sequence = 0
                break
            if record.flags & YK_FLAG_PRICED:
                records += (<const char *>record)[:RECORD_BYTES]
                if record.kind == YK_RECORD_TAP and record.payload_place:
                    notes += (<const char *>&self.engine.notes[at])[:sizeof(yk_fare_note)]
                else:
                    notes += (<const char *>&none)[:sizeof(yk_fare_note)]
            sequence = record.card_previous
        return bytes(records), bytes(notes), sequence

    def take_late(self):
        """Taps that came late since the last call: (card, local time in seconds by the wall clock, ATC) each."""
        if not self.engine.late_count:
            return []
        cdef uint32_t i
        late = [(self.engine.late[i].card, self.engine.late[i].local_s, self.engine.late[i].atc)
                for i in range(self.engine.late_count)]
        self.engine.late_count = 0
        return late

    def price_late(self, uint32_t card, uint32_t local_s, uint32_t atc, int64_t time_us, bytes event not None,
                   bytes digest not None):
        """Price a card again from a late tap on (as `take_late` names it), by the records at hand, and write an event (its message and SM3)
        and what differs. How often money was taken, how much, how often it was given back, how much (fen); None, and nothing was
        written, where the journal must be read for it. Raises EngineFull."""
        if card >= self.engine.cards.count or not self.engine.has_tariff:
            raise IndexError(f"there is no card in slot {card}, or no tariff")
        cdef yk_late_tap tap
        cdef yk_corrections done
        tap.card, tap.local_s, tap.atc = card, local_s, atc
        if len(digest) != 32:
            raise ValueError(f"digest: 32 bytes are wanted, not {len(digest)}")
        cdef int error = yk_price_late(&self.engine, &tap, time_us, <const uint8_t *>PyBytes_AS_STRING(event), len(event),
                                       <const uint8_t *>PyBytes_AS_STRING(digest), &done)
        if error == YK_NOT_AT_HAND:
            return None
        _check(error)
        return done.taken, done.taken_fen, done.given, done.given_fen

    # ---- the deny list ----

    @property
    def denied_cards(self):
        """How many cards are on the deny list."""
        return self.engine.denied_cards

    @property
    def deny_version(self):
        """Sequence of the deny list's last change; 0: it never changed."""
        return self.engine.deny_version

    @property
    def denials_after(self):
        """All changes of the deny list after this sequence are remembered."""
        return self.engine.denials_after

    def denials(self):
        """The newest changes of the deny list, oldest first: array of DENIAL."""
        cdef uint64_t kept = min(self.engine.denial_count, <uint64_t>YK_DENIALS), i
        changes = np.zeros(kept, DENIAL)
        cdef uint8_t[::1] out = changes.view(np.uint8)
        for i in range(kept):
            memcpy(&out[i * sizeof(yk_denial)],
                   &self.engine.denials[(self.engine.denial_count - kept + i) % YK_DENIALS], sizeof(yk_denial))
        return changes

    def restore_denials(self, const uint8_t[::1] changes not None, uint64_t after, uint64_t version):
        """What a checkpoint kept of `denials`, `denials_after` and `deny_version`."""
        cdef Py_ssize_t n = changes.shape[0] // sizeof(yk_denial)
        if changes.shape[0] % sizeof(yk_denial) or n > YK_DENIALS:
            raise EngineFault(f"the deny list's changes have {changes.shape[0]} bytes")
        if n:
            memcpy(self.engine.denials, &changes[0], changes.shape[0])
        self.engine.denial_count = n
        self.engine.denials_after, self.engine.deny_version = after, version

    def denied(self, uint32_t start, uint32_t most):
        """Up to `most` cards on the deny list, from a slot on: their slots, and the slot to go on from (0: that was all)."""
        cdef uint32_t slot, count = self.engine.cards.count, n = 0
        slots = np.empty(most, np.uint32)
        cdef uint32_t[::1] out = slots
        with nogil:
            for slot in range(start, count):
                if (<const yk_card *>yk_table_read(&self.engine.cards, slot)).deny_reasons:
                    if n == most:
                        break
                    out[n] = slot
                    n += 1
            else:
                slot = 0
        return slots[:n].tolist(), slot

    # ---- the stages of a batch ----

    def decode(self, list requests, list stored, uint64_t now_s, uint32_t clock_ahead_s_max, uint32_t request_taps_max,
               list bounds=None, const uint32_t[::1] accounts=None):
        """Read requests (bytes each; `stored` tells SubmitTapsRequest from AuthorizeTapRequest). Returns for each request how many
        taps it holds, or a negative decode error (decode.h), or None where the batch had no room left for it and all after it.
        `bounds` say whose taps each caller may bring (0: everybody's), `accounts` are the operators' that they name."""
        cdef yk_decode_rules rules
        cdef bytes request
        cdef int count, is_stored
        cdef Py_ssize_t i
        cdef const uint8_t *data
        cdef size_t n
        cdef uint32_t room
        rules.now_local_s = now_s
        rules.clock_ahead_s_max = clock_ahead_s_max
        self.requests = requests
        self.request_counts = counts = []
        self.tap_count = 0
        for i in range(len(requests)):
            request = <bytes?>requests[i]
            is_stored = 1 if stored[i] else 0
            room = self.tap_capacity - self.tap_count
            rules.taps_max = min(room, request_taps_max)
            data = <const uint8_t *>PyBytes_AS_STRING(request)
            n = PyBytes_GET_SIZE(request)
            if n < 4096:
                count = yk_decode_request(data, n, is_stored, &rules, self.taps + self.tap_count)
            else:
                with nogil:
                    count = yk_decode_request(data, n, is_stored, &rules, self.taps + self.tap_count)
            if count == -4 and room < request_taps_max:
                counts.extend([None] * (len(requests) - i))
                break
            if count > 0 and bounds is not None and not yk_are_own(
                &self.engine, self.taps + self.tap_count, count, <uint64_t?>bounds[i],
                &accounts[0] if accounts is not None and accounts.shape[0] else NULL, accounts.shape[0] if accounts is not None else 0,
            ):
                count = YK_NOT_OWN
            counts.append(count)
            if count > 0:
                self.tap_count += count
        return counts

    def decoded(self):
        """The batch's taps as the decoder read them: a dict each, for tests and for looking at what a terminal sent."""
        cdef uint32_t i
        cdef yk_tap *tap
        cdef char text[20]
        taps = []
        for i in range(self.tap_count):
            tap = &self.taps[i]
            taps.append({
                "card_number": text[:yk_card_number_print(&tap.number, text)].decode("ascii"),
                "issuer_id": (<const char *>tap.issuer_id)[:8], "terminal_number": (<const char *>tap.terminal_number)[:6],
                "mac": (<const char *>tap.mac)[:4], "message": (<const char *>tap.message)[:tap.message_bytes],
                "amount_fen": tap.amount_fen, "amount_due_fen": tap.amount_due_fen, "chip_before_fen": tap.chip_before_fen,
                "chip_after_fen": tap.chip_after_fen, "terminal_sequence": tap.terminal_sequence, "local_date": tap.local_date,
                "local_time": tap.local_time, "local_s": tap.local_s, "line": tap.line, "stop": tap.stop, "atc": tap.atc,
                "city": tap.city, "profile": tap.profile, "algorithm_id": tap.algorithm_id, "key_version": tap.key_version,
                "key_index": tap.key_index, "transaction_type": tap.transaction_type, "kind": tap.kind,
                "direction": tap.direction, "industry": tap.industry, "rider": tap.rider, "test": tap.test, "grey": tap.grey,
                "keep_message": tap.keep_message, "stored": tap.stored, "result": tap.result,
                "invalid_field": tap.invalid_field,
            })
        return taps

    def decode_calls(self, list batch, uint64_t now_s, uint32_t clock_ahead_s_max, uint32_t request_taps_max, uint64_t now_us,
                     const uint32_t[::1] accounts=None):
        """Read the requests of Calls that a native transport gathered; there must be room for all of their taps. A request whose
        deadline (monotonic, as `now_us`) has passed is not read: its error is DEADLINE_OVER. A request with a tap of somebody else
        than its caller is refused whole: its error is NOT_OWN. `accounts` are the operators' that callers are bound to."""
        cdef yk_decode_rules rules
        cdef Calls calls
        cdef uint32_t i, at = 0, room
        cdef int count
        rules.now_local_s = now_s
        rules.clock_ahead_s_max = clock_ahead_s_max
        cdef const uint32_t *owners = NULL
        cdef uint32_t owner_count = 0
        if accounts is not None and accounts.shape[0]:
            owners, owner_count = &accounts[0], accounts.shape[0]
        self.requests = batch
        self.request_counts = []
        self.tap_count = 0
        for calls in batch:
            with nogil:
                for i in range(calls.n):
                    if calls.deadlines_us[i] and calls.deadlines_us[i] < now_us:
                        calls.counts[i] = YK_DEADLINE_OVER
                        continue
                    room = self.tap_capacity - at
                    rules.taps_max = room if room < request_taps_max else request_taps_max
                    count = yk_decode_request(calls.messages[i], calls.lengths[i], calls.stored, &rules, self.taps + at)
                    if count > 0 and calls.bounds[i] and not yk_are_own(&self.engine, self.taps + at, count, calls.bounds[i],
                                                                        owners, owner_count):
                        count = YK_NOT_OWN
                    calls.counts[i] = count
                    if count > 0:
                        at += count
        self.tap_count = at

    def respond_calls(self):
        """Write the responses into the Calls of the batch."""
        cdef Calls calls
        cdef uint32_t i, at = 0, taps
        cdef uint64_t end
        for calls in self.requests:
            taps = 0
            for i in range(calls.n):
                if calls.counts[i] > 0:
                    taps += calls.counts[i]
            free(calls.responses)
            calls.responses = <uint8_t *>malloc(
                yk_response_room(&self.engine, self.outcomes + at, self.notes + at, taps) + 1)
            if not calls.responses:
                raise MemoryError
            with nogil:
                end = 0
                for i in range(calls.n):
                    if calls.counts[i] > 0:
                        end += yk_respond(&self.engine, self.outcomes + at, self.notes + at, calls.counts[i],
                                          calls.responses + end)
                        at += calls.counts[i]
                    calls.response_ends[i] = end
        self.requests = []

    def lookup(self):
        if self.tap_count < NOGIL_TAPS:
            yk_lookup(&self.engine, self.taps, self.tap_count)
        else:
            with nogil:
                yk_lookup(&self.engine, self.taps, self.tap_count)

    def searches(self):
        """Counters that went back and are not among those seen since the last checkpoint: (tap indices, card keys, tap indices,
        terminal keys), to be searched for in the segments; None where there are none, as is usual."""
        cdef uint32_t i
        cards, terminals = [], []
        for i in range(self.tap_count):
            if self.taps[i].search_card:
                cards.append((i, yk_card_seen_key(self.taps[i].card, self.taps[i].atc)))
            if self.taps[i].search_terminal:
                terminals.append((i, yk_terminal_seen_key(self.taps[i].terminal, self.taps[i].terminal_sequence)))
        if not cards and not terminals:
            return None
        return cards, terminals

    def found(self, list cards, list terminals):
        """What `searches` asked for: pairs of tap index and sequence (0: never seen)."""
        for i, sequence in cards:
            self.taps[<uint32_t>i].card_prior = sequence
        for i, sequence in terminals:
            self.taps[<uint32_t>i].terminal_prior = sequence

    def priors_wanted(self):
        """Sequences of earlier records that `run` will look at and that are no longer at hand: sorted, without repeats."""
        cdef uint32_t i
        wanted = set()
        for i in range(self.tap_count):
            if self.taps[i].card_prior and not yk_is_at_hand(&self.engine, self.taps[i].card_prior, self.tap_count):
                wanted.add(self.taps[i].card_prior)
            if self.taps[i].terminal_prior and not yk_is_at_hand(&self.engine, self.taps[i].terminal_prior, self.tap_count):
                wanted.add(self.taps[i].terminal_prior)
        return sorted(wanted)

    def verify(self, int64_t time_us=0):
        """Check the MACs whose keys are here. Returns how many taps are left for `asked`."""
        cdef uint32_t asked
        if self.tap_count < NOGIL_TAPS:
            asked = yk_verify(&self.engine, self.taps, self.tap_count, time_us)
        else:
            with nogil:
                asked = yk_verify(&self.engine, self.taps, self.tap_count, time_us)
        return asked

    def asked(self):
        """Taps whose keys are elsewhere, by (issuer_id, version, index): (tap index, card serial, session data, message, MAC) each,
        as KeyProvider.mac takes them."""
        cdef uint32_t i
        cdef yk_tap *tap
        cdef yk_mac_job job
        cdef bytes session
        by_key = {}
        for i in range(self.tap_count):
            tap = &self.taps[i]
            if not tap.asked:
                continue
            yk_build_job(tap, NULL, &job)
            atc = (<const char *>job.atc)[:2]
            session = b"" if job.profile == 1 else bytes(6) + atc + bytes(6) + bytes((atc[0] ^ 0xFF, atc[1] ^ 0xFF))
            key = (<const char *>tap.issuer_id)[:8], tap.key_version, tap.key_index
            by_key.setdefault(key, []).append((
                i, (<const char *>job.serial)[:8], session, (<const char *>job.message)[:22 if job.profile == 1 else 32],
                (<const char *>job.mac)[:4],
            ))
        return by_key

    def prove(self, list taps not None):
        """The MACs of these taps (their indices, from `asked`) are right."""
        cdef uint32_t i
        for i in taps:
            if i >= self.tap_count or not self.taps[i].asked:
                raise IndexError(f"tap {i} is not among those that were asked about")
            self.taps[i].proved = 1

    def refuse(self, list taps not None, int error):
        """Take the requests that these taps (their indices) came with out of the batch; `error` is what became of them."""
        cdef Calls calls
        cdef uint32_t i, kept = 0, at = 0
        refused = bytearray(self.tap_count)
        for i in taps:
            refused[i] = 1
        if self.request_counts:
            for i in range(len(self.request_counts)):
                if (self.request_counts[i] or 0) > 0:
                    self.request_counts[i] = self._keep(refused, self.request_counts[i], error, &at, &kept)
        else:
            for calls in self.requests:
                for i in range(calls.n):
                    if calls.counts[i] > 0:
                        calls.counts[i] = self._keep(refused, calls.counts[i], error, &at, &kept)
        self.tap_count = kept

    cdef int _keep(self, bytearray refused, uint32_t count, int error, uint32_t *at, uint32_t *kept) except *:
        """One request of `refuse`: its taps move to the front, unless one is refused."""
        cdef uint32_t start = at[0]
        at[0] += count
        if 1 in refused[start:at[0]]:
            return error
        memmove(self.taps + kept[0], self.taps + start, count * sizeof(yk_tap))
        kept[0] += count
        return count

    def run(self, int64_t time_us, bytes priors=b"", bytes notes=b""):
        """Decide and post every tap. `priors`: the records that `priors_wanted` names, in that order, and `notes` a NOTE for each.
        Returns the outcomes as an array of OUTCOME that is good until the next `decode`."""
        cdef int error
        cdef yk_priors earlier
        earlier.records = <const yk_record *>PyBytes_AS_STRING(priors)
        earlier.notes = <const yk_fare_note *>PyBytes_AS_STRING(notes)
        earlier.count = <uint32_t>(PyBytes_GET_SIZE(priors) // RECORD_BYTES)
        if PyBytes_GET_SIZE(notes) != <Py_ssize_t>(earlier.count * sizeof(yk_fare_note)):
            raise ValueError("notes: one is wanted for each of the priors")
        if self.tap_count < NOGIL_TAPS:
            error = yk_run(&self.engine, self.taps, self.tap_count, &earlier, time_us, self.outcomes, self.notes)
        else:
            with nogil:
                error = yk_run(&self.engine, self.taps, self.tap_count, &earlier, time_us, self.outcomes, self.notes)
        _check(error)
        if self.tap_count == 0:
            return np.empty(0, OUTCOME)
        return np.asarray(<uint8_t[:self.tap_count * sizeof(yk_outcome)]><uint8_t *>self.outcomes).view(OUTCOME)

    def respond(self):
        """One response for each request of the batch, in order (bytes; None where the request could not be decoded)."""
        cdef uint32_t at = 0, count
        cdef size_t n
        responses = []
        for counted in self.request_counts:
            if counted is None or counted <= 0:
                responses.append(None)
                continue
            count = counted
            self._reserve_scratch(yk_response_room(&self.engine, self.outcomes + at, self.notes + at, count))
            if count < NOGIL_TAPS:
                n = yk_respond(&self.engine, self.outcomes + at, self.notes + at, count, self.scratch)
            else:
                with nogil:
                    n = yk_respond(&self.engine, self.outcomes + at, self.notes + at, count, self.scratch)
            responses.append(PyBytes_FromStringAndSize(<const char *>self.scratch, n))
            at += count
        self.requests = []
        return responses

    cdef int _reserve_scratch(self, size_t room) except -1:
        if room > self.scratch_bytes:
            free(self.scratch)
            self.scratch_bytes = 0
            self.scratch = <uint8_t *>malloc(room * 2)
            if not self.scratch:
                raise MemoryError
            self.scratch_bytes = room * 2
        return 0

    def take_group(self):
        """The records since the last take: (first sequence, count, records, payloads), and forget them. Raises EngineFault when
        the changes to balances do not add up to zero."""
        if self.engine.moved_fen != 0:
            raise EngineFault(f"a batch moved {self.engine.moved_fen} fen out of nowhere")
        records = PyBytes_FromStringAndSize(<const char *>self.engine.group, <Py_ssize_t>self.engine.group_count * RECORD_BYTES)
        payloads = PyBytes_FromStringAndSize(<const char *>self.engine.payload, self.engine.payload_bytes)
        count = self.engine.group_count
        self.engine.group_count = 0
        self.engine.payload_bytes = 0
        return self.engine.next_sequence - count, count, records, payloads

    # ---- cold writes and reads ----

    def find_card(self, str card_number):
        """Slot of a card, or NONE. ValueError when it is no card number."""
        cdef yk_card_number number
        _card_number(card_number, &number)
        return yk_find_card(&self.engine, &number)

    def find_terminal(self, bytes terminal_number):
        """Slot of a terminal (6 bytes), or NONE."""
        if len(terminal_number) != 6:
            raise ValueError("terminal_number: 6 bytes are wanted")
        return yk_find_terminal(&self.engine, <const uint8_t *>PyBytes_AS_STRING(terminal_number))

    def card(self, uint32_t slot):
        """One card as a dict of its slot's fields."""
        if slot >= self.engine.cards.count:
            raise IndexError(f"there is no card in slot {slot}")
        cdef const yk_card *card = <const yk_card *>yk_table_read(&self.engine.cards, slot)
        cdef char text[20]
        cdef size_t n = yk_card_number_print(&card.number, text)
        return {
            "card_number": text[:n].decode("ascii"),
            "issuer_id": (<const char *>card.issuer_id)[:8],
            "account": card.account,
            "expires": card.expires,
            "rider": card.rider,
            "rider_until": card.rider_until,
            "rider_from": card.rider_from,
            "riders_before": card.riders_before,
            "before_days": card.before_days,
            "rider_before_until": card.rider_before_until,
            "pass_number": card.pass_number,
            "pass_until": card.pass_until,
            "atc_next": card.atc_next,
            "denied_since_s": card.denied_since_s,
            "deny_reasons": card.deny_reasons,
            "chip_account": card.chip_account,
            "last_sequence": card.last_sequence,
            "twin": card.twin - 1 if card.twin else NONE,
        }

    def terminal(self, uint32_t slot):
        """One terminal as a dict of its slot's fields."""
        if slot >= self.engine.terminals.count:
            raise IndexError(f"there is no terminal in slot {slot}")
        cdef const yk_terminal *terminal = <const yk_terminal *>yk_table_read(&self.engine.terminals, slot)
        return {
            "terminal_number": (<const char *>terminal.number)[:6],
            "account": terminal.account,
            "kind": terminal.kind,
            "operator_number": terminal.operator_number,
            "sequence_next": terminal.sequence_next,
        }

    def balance_fen(self, uint32_t account):
        if account >= self.engine.accounts.count:
            raise IndexError(f"there is no account {account}")
        return (<const yk_account *>yk_table_read(&self.engine.accounts, account)).balance_fen

    def held_fen(self, uint32_t account):
        """What authorisations hold of an account's balance."""
        if account >= self.engine.accounts.count:
            raise IndexError(f"there is no account {account}")
        return (<const yk_account *>yk_table_read(&self.engine.accounts, account)).held_fen

    def holds_fen(self):
        """What is held, by account: array of int64."""
        cdef uint32_t account
        held = np.empty(self.engine.accounts.count, np.int64)
        cdef int64_t[::1] out = held
        with nogil:
            for account in range(self.engine.accounts.count):
                out[account] = (<const yk_account *>yk_table_read(&self.engine.accounts, account)).held_fen
        return held

    def balances_fen(self):
        """All balances, by account: array of int64."""
        cdef uint32_t account
        balances = np.empty(self.engine.accounts.count, np.int64)
        cdef int64_t[::1] out = balances
        with nogil:
            for account in range(self.engine.accounts.count):
                out[account] = (<const yk_account *>yk_table_read(&self.engine.accounts, account)).balance_fen
        return balances

    def imbalance_fen(self):
        """Sum over all accounts; anything but 0 is a fault."""
        cdef int64_t total
        with nogil:
            total = yk_imbalance(&self.engine)
        return total

    def seen_in_memory(self, uint64_t card_key, uint64_t terminal_key):
        """Sequences under a card key and a terminal key among those seen since the last checkpoint; 0: not there."""
        return (
            _seen(&self.engine.card_seen, &self.engine.card_seen_frozen, card_key, self.engine.config.hash_seed),
            _seen(&self.engine.terminal_seen, &self.engine.terminal_seen_frozen, terminal_key, self.engine.config.hash_seed),
        )

    def add_operator(self, int64_t time_us, bytes payload):
        """Open an operator's payable account; returns its number."""
        cdef uint32_t account = 0
        _check(yk_add_operator(&self.engine, time_us, <const uint8_t *>PyBytes_AS_STRING(payload), len(payload), &account))
        return account

    def add_card(self, str card_number, bytes issuer_id, uint8_t rider, uint32_t expires, int64_t time_us, bytes payload,
                 uint16_t rider_until=0, uint8_t pass_number=0, uint16_t pass_until=0, uint32_t twin=NONE,
                 uint16_t rider_from=0, uint16_t rider_before_until=0, uint8_t riders_before=0, uint8_t before_days=0):
        """Register a card that is not there yet; returns its slot. `…_until` and `…_from` are days since 1970-01-01, 0: no
        end, no beginning; `rider` holds from `rider_from` on, the others before that (yk_card in engine.h). With the slot of a
        `twin` both pay from one account, and are denied and entitled alike from now on: a card and its e-card.
        Raises ValueError for a twin that is not there or has one already."""
        cdef yk_card_number number
        cdef yk_entitlement entitlement
        cdef uint32_t slot = 0
        entitlement.rider, entitlement.rider_until = rider, rider_until
        entitlement.pass_number, entitlement.pass_until = pass_number, pass_until
        entitlement.rider_from, entitlement.rider_before_until = rider_from, rider_before_until
        entitlement.riders_before, entitlement.before_days = riders_before, before_days
        _card_number(card_number, &number)
        if len(issuer_id) != 8:
            raise ValueError("issuer_id: 8 bytes are wanted")
        if twin != NONE and (twin >= self.engine.cards.count
                             or (<const yk_card *>yk_table_read(&self.engine.cards, twin)).twin):
            raise ValueError(f"there is no card in slot {twin}, or it has a twin already")
        _check(yk_add_card(&self.engine, &number, <const uint8_t *>PyBytes_AS_STRING(issuer_id), &entitlement, twin, expires, time_us,
                           <const uint8_t *>PyBytes_AS_STRING(payload), len(payload), &slot))
        return slot

    def add_terminal(self, bytes terminal_number, uint8_t kind, uint32_t account, int64_t time_us, bytes payload):
        """Register a terminal that is not there yet; returns its slot."""
        cdef uint32_t slot = 0
        if len(terminal_number) != 6:
            raise ValueError("terminal_number: 6 bytes are wanted")
        _check(yk_add_terminal(&self.engine, <const uint8_t *>PyBytes_AS_STRING(terminal_number), kind, account, time_us,
                               <const uint8_t *>PyBytes_AS_STRING(payload), len(payload), &slot))
        return slot

    def top_up(self, uint32_t card, int64_t amount_fen, int64_t time_us, bytes payload):
        """Move money from the funding account to a card's purse; returns (sequence, balance after)."""
        if card >= self.engine.cards.count:
            raise IndexError(f"there is no card in slot {card}")
        _check(yk_top_up(&self.engine, card, amount_fen, time_us, <const uint8_t *>PyBytes_AS_STRING(payload), len(payload)))
        account = (<const yk_card *>yk_table_read(&self.engine.cards, card)).account
        return self.engine.next_sequence - 1, self.balance_fen(account)

    def commit(self, int64_t time_us, bytes payload not None, bytes digest not None, list steps not None):
        """Write an event (its message, and SM3 of that: 32 bytes) and its steps, or nothing. A step is (kind, why, debit, credit, card, amount_fen, bytes), as
        yk_step in engine.h has it. EngineFull when there is no room; ValueError for a step that makes no sense."""
        cdef uint32_t n = len(steps), i
        cdef yk_step *written = <yk_step *>malloc((n + 1) * sizeof(yk_step))
        cdef bytes more
        cdef int error
        if not written:
            raise MemoryError
        try:
            if len(digest) != 32:
                raise ValueError(f"digest: 32 bytes are wanted, not {len(digest)}")
            for i in range(n):
                kind, why, debit, credit, card, amount_fen, more = steps[i]
                written[i].kind, written[i].why = kind, why
                written[i].debit, written[i].credit, written[i].card = debit, credit, card
                written[i].amount_fen = amount_fen
                written[i].bytes = <const uint8_t *>PyBytes_AS_STRING(more)
                written[i].byte_count = len(more)
            error = yk_commit(&self.engine, time_us, <const uint8_t *>PyBytes_AS_STRING(payload), len(payload),
                              <const uint8_t *>PyBytes_AS_STRING(digest), written, n)
        finally:
            free(written)
        if error == YK_CORRUPT:
            raise ValueError("a change names an account or card that is not there, or releases more than is held")
        _check(error)

    @property
    def settlement_day(self):
        """Days since 1970-01-01: the least settlement day of records from now on."""
        return self.engine.settlement_day

    @settlement_day.setter
    def settlement_day(self, uint32_t day):
        if not self.engine.settlement_day <= day <= 0xFFFF:
            raise ValueError(f"settlement_day: {self.engine.settlement_day} to 65535 is wanted, not {day}")
        self.engine.settlement_day = day

    @property
    def pending_records(self):
        """Records since the last `take_group`."""
        return self.engine.group_count

    @property
    def room(self):
        """How many more cards, accounts and terminals there is room for."""
        config = self.engine.config
        return {"cards": config.cards_max - self.engine.cards.count, "accounts": config.accounts_max - self.engine.accounts.count,
                "terminals": config.terminals_max - self.engine.terminals.count}

    @property
    def next_sequence(self):
        return self.engine.next_sequence

    @property
    def counts(self):
        """How many cards, accounts and terminals there are."""
        return {"cards": self.engine.cards.count, "accounts": self.engine.accounts.count,
                "terminals": self.engine.terminals.count}

    def memory_bytes(self):
        """What the engine holds by kind: tables, indexes, counters seen since the last checkpoint, fixed buffers."""
        tables = 0
        cdef uint32_t page
        cdef yk_table *table
        for name in TABLES:
            table = self._table(name)
            for page in range(table.pages_max):
                if table.pages[page]:
                    tables += YK_PAGE_BYTES
            tables += table.pages_max * 18
        seen = 0
        for used in (self.engine.card_seen.mask, self.engine.terminal_seen.mask,
                     self.engine.card_seen_frozen.mask, self.engine.terminal_seen_frozen.mask):
            seen += (used + 1) * sizeof(yk_seen_entry) if used else 0
        return {
            "tables": tables,
            "indexes": (self.engine.card_index.mask + self.engine.terminal_index.mask + 2) * 8,
            "seen": seen,
            "buffers": (self.engine.config.ring_records + self.engine.group_capacity) * RECORD_BYTES
            + self.engine.payload_capacity + self.scratch_bytes
            + (self.engine.config.ring_records * (sizeof(yk_fare_note) + sizeof(yk_rides)) if self.engine.notes else 0)
            + self.tap_capacity * (sizeof(yk_tap) + sizeof(yk_outcome) + sizeof(yk_fare_note)),
        }

    # ---- checkpoint ----

    cdef yk_table *_table(self, str name) except NULL:
        if name == "cards":
            return &self.engine.cards
        if name == "accounts":
            return &self.engine.accounts
        if name == "terminals":
            return &self.engine.terminals
        if name == "rides":
            return &self.engine.rides
        raise KeyError(name)

    cdef _expect(self, uint64_t taps):
        """Room for as many counters as are likely to come: growing a table of a million moves them all while everybody waits, and
        memory that is set aside and not touched costs nothing."""
        seed = self.engine.config.hash_seed
        if yk_seen_reserve(&self.engine.card_seen, taps, seed) or yk_seen_reserve(&self.engine.terminal_seen, taps, seed):
            raise MemoryError

    def freeze(self):
        """Begin a photograph of all tables and of the counters seen; returns what it stands for. To be ended by `release` or `thaw`."""
        cdef yk_seen empty
        if self.photographed:
            raise RuntimeError("a photograph is already being taken")
        pages = {}
        for name in TABLES:
            count = yk_table_freeze(self._table(name))
            if count < 0:
                raise MemoryError
            pages[name] = count
        memset(&empty, 0, sizeof(yk_seen))
        self.engine.card_seen_frozen = self.engine.card_seen
        self.engine.terminal_seen_frozen = self.engine.terminal_seen
        self.engine.card_seen = empty
        self.engine.terminal_seen = empty
        self._expect(self.engine.card_seen_frozen.used)
        self.photographed = True
        return {"sequence": self.engine.next_sequence - 1, "pages": pages, "counts": self.counts}

    def frozen_page(self, str table, uint32_t i):
        """Any one thread: the i-th page of the photograph of a table, once each: (page number, bytes)."""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, YK_PAGE_BYTES)
        cdef yk_table *frozen = self._table(table)
        cdef uint8_t *target = <uint8_t *>PyBytes_AS_STRING(out)
        cdef uint32_t page
        if i >= frozen.frozen_count:
            raise IndexError(i)
        with nogil:
            page = yk_table_frozen_page(frozen, i, target)
        return page, out

    def frozen_seen(self):
        """Any one thread: the counters seen, of the photograph: (card keys, sequences, terminal keys, sequences), each sorted by key."""
        return (*_dump(&self.engine.card_seen_frozen), *_dump(&self.engine.terminal_seen_frozen))

    def release(self):
        """The photograph is safe on disk."""
        self.photographed = False
        yk_seen_free(&self.engine.card_seen_frozen)
        yk_seen_free(&self.engine.terminal_seen_frozen)

    def thaw(self):
        """The photograph came to nothing: all of it counts as changed again."""
        for name in TABLES:
            yk_table_thaw(self._table(name))
        seed = self.engine.config.hash_seed
        _check(_merge(&self.engine.card_seen, &self.engine.card_seen_frozen, seed))
        _check(_merge(&self.engine.terminal_seen, &self.engine.terminal_seen_frozen, seed))
        self.release()

    # ---- restart ----

    def restore_page(self, str table, uint32_t page, const uint8_t[::1] data not None):
        if data.shape[0] != YK_PAGE_BYTES:
            raise EngineFault(f"page {page} of {table} has {data.shape[0]} bytes instead of {YK_PAGE_BYTES}")
        if yk_table_restore_page(self._table(table), page, &data[0]) != 0:
            raise EngineFull(f"page {page} of {table} is beyond the configured number of slots")

    def restored(self, dict counts, uint64_t sequence):
        """All pages are in place: set the counts and the sequence that they stand for, and rebuild the indexes."""
        cdef yk_table *table
        cdef uint32_t page, pages, per_page
        for name, count in counts.items():
            table = self._table(name)
            per_page = YK_PAGE_BYTES // table.slot_bytes
            pages = (count + per_page - 1) // per_page
            if pages > table.pages_max:
                raise EngineFull(f"{count} {name} are more than configured")
            for page in range(pages):
                if not table.pages[page]:
                    raise EngineFault(f"page {page} of {name} is missing")
            table.count = count
        self.engine.rides.count = self.engine.cards.count  # of these there are only the pages of cards that rode
        self.engine.next_sequence = self.engine.ring_first = sequence + 1
        yk_recount_denied(&self.engine)
        _check(yk_reindex(&self.engine))

    def replay(self, const uint8_t[::1] records not None, const uint8_t[::1] payloads=b""):
        """Apply records of all kinds but registrations from the journal; `payloads` are those of their journal value. EngineFault
        names the first that does not follow."""
        cdef uint32_t n = <uint32_t>(records.shape[0] // RECORD_BYTES), at = 0
        cdef size_t payload_bytes = payloads.shape[0]
        cdef const uint8_t *payload = &payloads[0] if payload_bytes else NULL
        cdef int error
        cdef yk_record record
        if n == 0:
            return
        with nogil:
            error = yk_replay(&self.engine, <const yk_record *>&records[0], n, payload, payload_bytes, &at)
        if error == YK_CORRUPT:
            memcpy(&record, &records[at * RECORD_BYTES], RECORD_BYTES)
            raise EngineFault(f"record {record.sequence} does not follow from the ones before it")
        _check(error)


cdef uint64_t _seen(const yk_seen *young, const yk_seen *frozen, uint64_t key, uint64_t seed):
    return yk_seen_anywhere(young, frozen, key, seed)


cdef extern from "engine.h":
    uint64_t yk_seen_anywhere(const yk_seen *young, const yk_seen *frozen, uint64_t key, uint64_t seed) nogil


cdef tuple _dump(const yk_seen *seen):
    keys = np.empty(seen.used, np.uint64)
    sequences = np.empty(seen.used, np.uint64)
    cdef uint64_t[::1] key_out = keys, sequence_out = sequences
    cdef uint64_t at, n = 0
    if seen.used:
        with nogil:
            for at in range(seen.mask + 1):
                if seen.entries[at].key_1:
                    key_out[n] = seen.entries[at].key_1 - 1
                    sequence_out[n] = seen.entries[at].sequence
                    n += 1
    order = np.argsort(keys)
    return keys[order], sequences[order]


cdef int _merge(yk_seen *into, const yk_seen *other, uint64_t seed) noexcept:
    cdef uint64_t at, key
    if not other.entries:
        return YK_OK
    if yk_seen_reserve(into, other.used, seed) != 0:
        return YK_NO_MEMORY
    for at in range(other.mask + 1):
        if other.entries[at].key_1:
            key = other.entries[at].key_1 - 1
            yk_seen_put(into, key, yk_hash(key, seed), other.entries[at].sequence)
    return YK_OK
