"""The decoder in C against the protobuf runtime, and the form of a tap against a model in Python (harness.py).

What the decoder does otherwise than protobuf, on purpose:
* AuthorizeTapRequest with two of `tap` is refused; protobuf would merge them, and a merged tap is nobody's.
* A card number that is not UTF-8 is MALFORMED_CARD_NUMBER of that one tap, even where another one follows that counts
  instead; protobuf would refuse the whole request.
* Groups (which proto3 does not write) are read 32 deep, not 100."""

from datetime import datetime
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from harness import CHINA, START_S, U16, U24, U32, form_fault, local_time_of, make_tap
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from yikatong.core import limits
from yikatong.core.types import Result
from yikatong.ext.engine import Engine, is_card_number, local_seconds, settlement_date
from yikatong.v1 import access_pb2, result_pb2, tap_service_pb2

TRUNCATED, BAD_TAG, NO_TAP, TOO_MANY, TAP_TWICE = -1, -2, -3, -4, -5
TAPS_MAX = 8
NOW_S = START_S
FIELD_NUMBERS = {field.name: field.number for field in tap_service_pb2.Tap.DESCRIPTOR.fields}
VARINT, I64, BYTES, GROUP, END_GROUP, I32 = range(6)

core = Engine(cards_max=10, terminals_max=10, ring_records=16, batch_taps_max=16, stored_grace_s=0, hash_seed=0)
thorough = settings(deadline=None, max_examples=600, suppress_health_check=[HealthCheck.too_slow])


def decode(data: bytes, stored: bool = True) -> int | list[dict[str, Any]]:
    """Taps as C reads them, or a negative error."""
    (count,) = core.decode([data], [stored], NOW_S, limits.CLOCK_AHEAD_S, TAPS_MAX)
    taps: list[dict[str, Any]] = core.decoded()
    if count < 0:
        assert taps == []
        return int(count)
    assert count == len(taps)
    return taps


# ---- the oracle ----


def _lenient_submit_request() -> Any:
    """SubmitTapsRequest whose card numbers may be any bytes, and are all kept where there are several."""
    pool = descriptor_pool.DescriptorPool()
    for module in (descriptor_pb2, access_pb2, result_pb2, tap_service_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        for message in file.message_type:
            for field in message.field:
                if message.name == "Tap" and field.name == "card_number":
                    field.type, field.label = field.TYPE_BYTES, field.LABEL_REPEATED
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("yikatong.v1.SubmitTapsRequest"))


LenientSubmitTapsRequest = _lenient_submit_request()


def expected_tap(tap: Any) -> dict[str, Any]:
    """What the decoder should say of a tap that protobuf has read."""
    values = {field: getattr(tap, field) for field in FIELD_NUMBERS}
    numbers = list(tap.card_number)
    values["card_number"] = numbers[-1].decode("latin-1") if all(map(bytes.isascii, numbers)) and numbers else ""
    if fault := form_fault(SimpleNamespace(**values), NOW_S):
        return {"result": fault[0], "invalid_field": FIELD_NUMBERS[fault[1]]}
    date, time = divmod(tap.local_time, 1_000_000)
    for ours, of_proto in (("chip_before_fen", "chip_balance_before_fen"), ("chip_after_fen", "chip_balance_after_fen")):
        values[ours] = values.pop(of_proto)
    return values | {
        "result": 0,
        "invalid_field": 0,
        "local_date": date,
        "local_time": time,
        "keep_message": tap.HasField("transfer"),
        "transfer": None,  # C keeps the message instead
    }


def hold_against_protobuf(data: bytes, stored: bool) -> None:
    """The decoder must read what protobuf reads and refuse what it refuses."""
    got = decode(data, stored)
    try:
        # Both requests hold their taps in field 1. Read as repeated, two of `tap` are seen instead of merged.
        taps = LenientSubmitTapsRequest.FromString(data).taps
    except DecodeError:
        assert isinstance(got, int), "protobuf cannot read it"
        assert got in (TRUNCATED, BAD_TAG, TOO_MANY, TAP_TWICE)
        return
    if not taps:
        assert got == NO_TAP
    elif not stored and len(taps) > 1:
        assert got == TAP_TWICE
    elif len(taps) > TAPS_MAX:
        assert got == TOO_MANY
    else:
        assert not isinstance(got, int), f"protobuf can read it, C says {got}"
        for ours, tap in zip(got, taps, strict=True):
            want = expected_tap(tap) | {"stored": stored}
            want.pop("transfer", None)
            assert {name: ours[name] for name in want} == want
            if not ours["result"]:
                # The journal may keep the message whole, and GetTap must be able to read it.
                del tap.card_number[:-1]
                assert tap_service_pb2.Tap.FromString(ours["message"]).SerializeToString() == tap.SerializeToString()


# ---- writing protobuf, well and badly ----


def varint(value: int, size: int = 0) -> bytes:
    """A varint, padded to `size` bytes where that is more than it needs."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80 or len(out) + 1 < size:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def tag(field: int, wire: int, size: int = 0) -> bytes:
    return varint(field << 3 | wire, size)


def delimited(field: int, data: bytes, size: int = 0) -> bytes:
    return tag(field, BYTES) + varint(len(data), size) + data


def request_of(*taps: bytes) -> bytes:
    return b"".join(delimited(1, tap) for tap in taps)


@st.composite
def skipped_fields(draw: st.DrawFn, fields: st.SearchStrategy[int]) -> bytes:
    """A field of any wire type, to be skipped; groups hold such fields in turn."""
    field = draw(fields)
    wire = draw(st.sampled_from((VARINT, I64, BYTES, GROUP, I32)))
    head = tag(field, wire, draw(st.sampled_from((0, 0, 0, 5))))
    if wire == VARINT:
        return head + varint(draw(st.integers(0, (1 << 64) - 1)), draw(st.sampled_from((0, 10))))
    if wire == BYTES:
        data = draw(st.binary(max_size=12))
        return head + varint(len(data), draw(st.sampled_from((0, 0, 5)))) + data
    if wire == GROUP:
        inside = draw(st.lists(st.deferred(lambda: skipped_fields(fields)), max_size=2))
        return head + b"".join(inside) + tag(field, END_GROUP)
    return head + draw(st.binary(min_size=8 if wire == I64 else 4, max_size=8 if wire == I64 else 4))


unknown_fields = skipped_fields(st.integers(26, (1 << 29) - 1) | st.integers(26, 40))

# Each field's values: what is good, and beside it what is bad or on the edge.
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "card_number":              ([b"3104416000000017", b"0", b"00000000000000000000"],
                                 [b"", b"0" * 21, b"12 4", b"\xff1", "１２".encode(), b"1\x00", b":", b"/"]),
    "issuer_id":                ([bytes(8), b"\x59\x80\0\0\1\0\0\0"], [b"", bytes(7), bytes(9)]),
    "profile":                  ([1, 2], [0, 3, -1, 1 << 32, (1 << 32) + 1]),
    "algorithm_id":             ([4, 0, 255], [256, U32, (1 << 32) + 4]),
    "key_version":              ([1, 0, 255], [256, U32, 1 << 35]),
    "key_index":                ([1, 0, 255], [256, U32, 1 << 63]),
    "transaction_type":         ([6, 9], [0, 1, 2, 7, 262, (1 << 32) + 6]),
    "amount_fen":               ([0, 1, 200, U32], [-1, U32 + 1, 1 << 62, -(1 << 63)]),
    "amount_due_fen":           ([0, 200, U32], [-1, U32 + 1]),
    "chip_balance_before_fen":  ([0, 200, U32], [-1, U32 + 1]),
    "chip_balance_after_fen":   ([0, 200, U32], [-1, U32 + 1]),
    "atc":                      ([0, 1, U16], [U16 + 1, U32, 1 << 32]),
    "terminal_number":          ([bytes(6), b"\x11\x22\x33\x44\x55\x66"], [b"", bytes(5), bytes(7)]),
    "terminal_sequence":        ([0, 1, U32], [U32 + 1]),
    "local_time":               ([20250101083015, 20000101000000, 20240229235959, local_time_of(NOW_S + 300)],
                                 [0, 20250229120000, 20250431000000, 20251301000000, 20250001000000, 20250100000000,
                                  20250101240000, 20250101006000, 20250101000060, 19991231235959, 21000101000000,
                                  99991231235959, 1 << 63, local_time_of(NOW_S + 301), 20990101000000]),
    "mac":                      ([bytes(4), b"\xff" * 4], [b"", bytes(3), bytes(5)]),
    "kind":                     ([1, 2, 3, 4], [0, 5, -1, (1 << 32) + 1]),
    "line":                     ([0, U32], [1 << 32]),
    "stop":                     ([0, 7, U24], [U24 + 1, U32]),
    "direction":                ([0, 1, 2], [3, -1]),
    "city":                     ([0, 5980, 9999], [10_000, U32]),
    "industry":                 ([0, 1, 9], [10, U32]),
    "rider":                    ([0, 1, 7], [8, -1]),
    "transfer":                 ([b"", b"\x08\x01", b"\x10\x05\x18\x07\x20\x01"], [b"\x08", b"\x00", b"\x0b", b"\x1a\x05"]),
    "test":                     ([0, 1], [2, 1 << 63, (1 << 64) - 1]),
}  # fmt: skip


@st.composite
def fields_of(draw: st.DrawFn, name: str, bad: bool) -> bytes:
    """One field of Tap, with a good value or one that is bad or on the edge."""
    number = FIELD_NUMBERS[name]
    value = draw(st.sampled_from(VALUES[name][bad]))
    if isinstance(value, bytes):
        return delimited(number, value, draw(st.sampled_from((0, 0, 0, 4))))
    return tag(number, VARINT, draw(st.sampled_from((0, 0, 0, 3)))) + varint(value, draw(st.sampled_from((0, 0, 10))))


@st.composite
def tap_messages(draw: st.DrawFn) -> bytes:
    """A Tap message: all fields in any order, some bad, some missing or repeated, others in between."""
    bad = set(draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=3)))
    missing = set(draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=1)))
    pieces = [draw(fields_of(name, name in bad)) for name in VALUES if name not in missing]
    pieces += [draw(fields_of(name, False)) for name in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=2))]
    pieces += draw(st.lists(unknown_fields, max_size=3))
    # A known field with another wire type is skipped. END_GROUP is left to the tests of broken messages.
    number = draw(st.integers(1, 25))
    pieces += [piece for piece in draw(st.lists(skipped_fields(st.just(number)), max_size=1)) if _is_alien(piece)]
    return b"".join(draw(st.permutations(pieces)))


def _is_alien(piece: bytes) -> bool:
    """The piece stands under a known number, but not with the wire type that the field has."""
    return (piece[0] & 7) not in (VARINT, BYTES)


requests = st.lists(st.one_of(tap_messages().map(lambda tap: delimited(1, tap)), unknown_fields), min_size=1, max_size=4)


@thorough
@given(requests.map(b"".join), st.booleans())
def test_reads_what_protobuf_reads(data: bytes, stored: bool) -> None:
    hold_against_protobuf(data, stored)


@thorough
@given(tap_messages(), st.data())
def test_refuses_what_protobuf_refuses(tap: bytes, data: st.DataObject) -> None:
    """Valid messages in which some bytes were changed, left out or put in: most still begin well."""
    damaged = bytearray(request_of(tap))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                damaged[at] = data.draw(st.integers(0, 255))
            case 1 if len(damaged) > 1:
                del damaged[at]
            case _:
                damaged.insert(at, data.draw(st.integers(0, 255)))
    hold_against_protobuf(bytes(damaged), True)


@thorough
@given(st.binary(max_size=64), st.booleans())
@example(b"", False)
@example(b"\x0a\x00", False)
@example(b"\x0a\x00\x0a\x00", False)
def test_random_bytes(data: bytes, stored: bool) -> None:
    hold_against_protobuf(data, stored)
    hold_against_protobuf(delimited(1, data), stored)


def _full_tap() -> bytes:
    """Every field, with the largest good value."""
    fields: list[bytes] = []
    for name, (good, _) in VALUES.items():
        value = good[-1]
        head = FIELD_NUMBERS[name]
        fields.append(delimited(head, value) if isinstance(value, bytes) else tag(head, VARINT) + varint(value))
    return b"".join(fields)


@pytest.mark.parametrize("stored", [True, False])
def test_truncated_at_every_byte(stored: bool) -> None:
    data = request_of(_full_tap())
    for end in range(len(data) + 1):
        hold_against_protobuf(data[:end], stored)
        if end:
            inside = _full_tap()[: end - 1]
            hold_against_protobuf(request_of(inside), stored)  # the request is whole, the tap in it is not


@pytest.mark.parametrize("seed", range(4))
def test_random_damage(seed: int) -> None:
    """Many more damaged messages than hypothesis has time for."""
    chance = np.random.default_rng(seed)
    whole = np.frombuffer(request_of(_full_tap(), make_tap().SerializeToString()), np.uint8)
    for _ in range(3_000):
        damaged = whole.copy()
        damaged[chance.integers(0, len(whole), chance.integers(1, 4))] = chance.integers(0, 256)
        hold_against_protobuf(damaged.tobytes()[: chance.integers(1, len(whole) + 1)], True)


ONE = make_tap().SerializeToString()

BROKEN: tuple[tuple[str, bytes, bool, int], ...] = (
    # what                                       request                                        stored  answer
    ("nothing",                                  b"",                                           True,   NO_TAP),
    ("nothing",                                  b"",                                           False,  NO_TAP),
    ("only an unknown field",                    b"\x10\x01",                                   False,  NO_TAP),
    ("field 1 as a number",                      b"\x08\x01",                                   False,  NO_TAP),
    ("two of tap",                               request_of(ONE, ONE),                          False,  TAP_TWICE),
    ("as many taps as fit",                      request_of(*[ONE] * TAPS_MAX),                 True,   TAPS_MAX),
    ("one tap more",                             request_of(*[ONE] * (TAPS_MAX + 1)),           True,   TOO_MANY),
    ("a length beyond the end",                  b"\x0a\x05abc",                                True,   TRUNCATED),
    ("a length of 2^35-1",                       b"\x0a" + varint((1 << 35) - 1),               True,   TRUNCATED),
    ("a length of 2^64-1",                       b"\x0a" + varint(-1),                          True,   BAD_TAG),
    ("a varint that breaks off",                 b"\x80" * 4,                                   True,   TRUNCATED),
    ("a varint without end",                     request_of(b"\x60" + b"\x80" * 10 + b"\x01"),  True,   BAD_TAG),
    ("a tag of 6 bytes",                         request_of(tag(30, VARINT, 6) + b"\x01"),      True,   BAD_TAG),
    ("a length of 6 bytes",                      request_of(delimited(30, b"ab", 6)),           True,   BAD_TAG),
    ("a length of 6 bytes in the request",       delimited(1, b"", 6),                          True,   BAD_TAG),
    ("field number 0",                           request_of(b"\x00\x01"),                       True,   BAD_TAG),
    ("wire type 6",                              request_of(b"\xfe\x01"),                       True,   BAD_TAG),
    ("wire type 7",                              request_of(b"\xff\x01"),                       True,   BAD_TAG),
    ("a group that was not begun",               request_of(tag(30, END_GROUP)),                True,   BAD_TAG),
    ("a group that ends as another",             request_of(tag(30, GROUP) + tag(31, END_GROUP)), True, BAD_TAG),
    ("a group that does not end",                request_of(tag(30, GROUP)),                    True,   TRUNCATED),
    ("a tag beyond 32 bits",                     request_of(varint(1 << 32) + b"\x01"),         True,   BAD_TAG),
    ("groups 33 deep",                           request_of(tag(30, GROUP) * 33 + tag(30, END_GROUP) * 33), True, BAD_TAG),
    ("a transfer that breaks off",               request_of(delimited(24, b"\x08")),            True,   TRUNCATED),
    ("a transfer that is none",                  request_of(delimited(24, b"\x00")),            True,   BAD_TAG),
    ("a good tap before a broken one",           request_of(ONE, b"\x00"),                      True,   BAD_TAG),
)  # fmt: skip


@pytest.mark.parametrize(("what", "data", "stored", "answer"), BROKEN, ids=[row[0] for row in BROKEN])
def test_broken_requests(what: str, data: bytes, stored: bool, answer: int) -> None:
    got = decode(data, stored)
    assert (got if isinstance(got, int) else len(got)) == answer


def test_groups_32_deep_are_read() -> None:
    got = decode(request_of(ONE + tag(30, GROUP) * 32 + tag(30, END_GROUP) * 32))
    assert not isinstance(got, int)
    assert got[0]["result"] == 0


@pytest.mark.parametrize("earlier", [b"\xff", "１２".encode(), b"\xc3\x28", b"1" * 30 + b"\x80"])
def test_text_that_another_one_follows(earlier: bytes) -> None:
    """The journal keeps taps of unknown cards whole: one that protobuf cannot read must not get that far."""
    got = decode(request_of(delimited(1, earlier) + ONE))
    assert not isinstance(got, int)
    assert (got[0]["result"], got[0]["invalid_field"]) == (Result.MALFORMED_CARD_NUMBER, 1)
    hold_against_protobuf(request_of(delimited(1, earlier) + ONE), True)


def test_last_of_a_repeated_field_counts() -> None:
    got = decode(request_of(ONE + tag(FIELD_NUMBERS["atc"], VARINT) + b"\x07" + delimited(1, b"42")))
    assert not isinstance(got, int)
    assert (got[0]["atc"], got[0]["card_number"]) == (7, "42")


# ---- form: every code with its field, on both sides of its edge ----

GOOD = "good"
FORMS: tuple[tuple[str, Any, Any], ...] = (
    # field                     value                  result
    ("card_number",             "0",                   GOOD),
    ("card_number",             "0" * 20,              GOOD),
    ("card_number",             "",                    Result.MALFORMED_CARD_NUMBER),
    ("card_number",             "0" * 21,              Result.MALFORMED_CARD_NUMBER),
    ("card_number",             "123x",                Result.MALFORMED_CARD_NUMBER),
    ("card_number",             "٣",                   Result.MALFORMED_CARD_NUMBER),
    ("issuer_id",               bytes(7),              Result.MALFORMED_ISSUER_ID),
    ("issuer_id",               bytes(9),              Result.MALFORMED_ISSUER_ID),
    ("profile",                 2,                     GOOD),
    ("profile",                 0,                     Result.MALFORMED_PROFILE),
    ("profile",                 3,                     Result.MALFORMED_PROFILE),
    ("algorithm_id",            255,                   GOOD),
    ("algorithm_id",            256,                   Result.MALFORMED_KEY),
    ("key_version",             256,                   Result.MALFORMED_KEY),
    ("key_index",               256,                   Result.MALFORMED_KEY),
    ("transaction_type",        9,                     GOOD),
    ("transaction_type",        2,                     Result.MALFORMED_TRANSACTION_TYPE),
    ("transaction_type",        262,                   Result.MALFORMED_TRANSACTION_TYPE),
    ("amount_fen",              U32,                   GOOD),
    ("amount_fen",              U32 + 1,               Result.MALFORMED_AMOUNT),
    ("amount_fen",              -1,                    Result.MALFORMED_AMOUNT),
    ("amount_due_fen",          -1,                    Result.MALFORMED_AMOUNT),
    ("chip_balance_before_fen", U32 + 1,               Result.MALFORMED_AMOUNT),
    ("chip_balance_after_fen",  -(1 << 63),            Result.MALFORMED_AMOUNT),
    ("atc",                     U16,                   GOOD),
    ("atc",                     U16 + 1,               Result.MALFORMED_ATC),
    ("terminal_number",         bytes(5),              Result.MALFORMED_TERMINAL),
    ("terminal_number",         bytes(7),              Result.MALFORMED_TERMINAL),
    ("terminal_sequence",       U32,                   GOOD),
    ("local_time",              20000101000000,        GOOD),
    ("local_time",              20240229235959,        GOOD),
    ("local_time",              19991231235959,        Result.MALFORMED_TIME),
    ("local_time",              20230229000000,        Result.MALFORMED_TIME),
    ("local_time",              20250101240000,        Result.MALFORMED_TIME),
    ("local_time",              21000101000000,        Result.MALFORMED_TIME),
    ("local_time",              (1 << 64) - 1,         Result.MALFORMED_TIME),
    ("local_time",              20250101083515,        GOOD),  # 300 s ahead of the core's clock
    ("local_time",              20250101083516,        Result.MALFORMED_CLOCK_AHEAD),
    ("local_time",              20991231235959,        Result.MALFORMED_CLOCK_AHEAD),
    ("mac",                     bytes(3),              Result.MALFORMED_MAC),
    ("mac",                     bytes(5),              Result.MALFORMED_MAC),
    ("kind",                    4,                     GOOD),
    ("kind",                    0,                     Result.MALFORMED_KIND),
    ("kind",                    5,                     Result.MALFORMED_KIND),
    ("kind",                    -1,                    Result.MALFORMED_KIND),
    ("line",                    U32,                   GOOD),
    ("stop",                    U24,                   GOOD),
    ("stop",                    U24 + 1,               Result.MALFORMED_PLACE),
    ("direction",               2,                     GOOD),
    ("direction",               3,                     Result.MALFORMED_PLACE),
    ("city",                    9999,                  GOOD),
    ("city",                    10_000,                Result.MALFORMED_PLACE),
    ("industry",                9,                     GOOD),
    ("industry",                10,                    Result.MALFORMED_PLACE),
    ("rider",                   7,                     GOOD),
    ("rider",                   8,                     Result.MALFORMED_RIDER),
    ("rider",                   -1,                    Result.MALFORMED_RIDER),
)  # fmt: skip


def _form_of(**fields: Any) -> tuple[int, int]:
    tap = make_tap(**({"mac": bytes(4)} | fields))
    got = decode(request_of(tap.SerializeToString()))
    assert not isinstance(got, int)
    return got[0]["result"], got[0]["invalid_field"]


@pytest.mark.parametrize(("field", "value", "result"), FORMS, ids=[f"{row[0]}={row[1]!r:.24}" for row in FORMS])
def test_form(field: str, value: Any, result: Any) -> None:
    assert _form_of(**{field: value}) == ((0, 0) if result is GOOD else (result, FIELD_NUMBERS[field]))


def test_first_fault_is_told() -> None:
    """Of any two faults the one that stands first in the table is told, whatever the other is."""
    faults = [row for row in FORMS if row[2] is not GOOD]
    for (first, value, result), (second, other_value, _) in combinations(faults, 2):
        if first != second:
            assert _form_of(**{first: value, second: other_value}) == (result, FIELD_NUMBERS[first]), (first, second)


def test_malformed_table_reaches_every_code() -> None:
    of_taps = {result for result in Result if result.name.startswith("MALFORMED_")}
    of_taps -= {Result.MALFORMED_OPERATOR, Result.MALFORMED_REQUEST_ID, Result.MALFORMED_PASS}  # of registrations and top-ups
    assert {row[2] for row in FORMS if row[2] is not GOOD} == of_taps


# ---- several requests in one batch ----


def test_batch_without_room() -> None:
    """A request that does not fit waits, with all behind it; one that could never fit is refused at once."""
    few = Engine(cards_max=1, terminals_max=1, ring_records=16, batch_taps_max=8, stored_grace_s=0, hash_seed=0)
    three, nine = request_of(*[ONE] * 3), request_of(*[ONE] * 9)
    table = (
        # requests                        counts
        ([three, three],                  [3, 3]),
        ([three, three, three, three],    [3, 3, None, None]),
        ([three, b"", three, three],      [3, NO_TAP, 3, None]),
        ([nine, three],                   [TOO_MANY, 3]),
        ([three, nine, three],            [3, None, None]),
    )  # fmt: skip
    for requests_, counts in table:
        assert few.decode(requests_, [True] * len(requests_), NOW_S, 0, 8) == counts
        taps = few.decoded()
        assert len(taps) == sum(count for count in counts if count and count > 0)
        few.lookup()
        few.verify()
        few.run(NOW_S * 1_000_000)
        responses = few.respond()
        assert [response is not None for response in responses] == [bool(count and count > 0) for count in counts]
        few.take_group()


# ---- responses ----

outcomes = st.fixed_dictionaries(
    {
        "result": st.sampled_from(sorted(Result)),
        "duplicate": st.integers(0, 1),
        "charged_fen": st.integers(0, U32) | st.integers(-(1 << 63), (1 << 63) - 1),
        "balance_after_fen": st.integers(-1_000, 1_000) | st.integers(-(1 << 63), (1 << 63) - 1),
        "sequence": st.integers(0, 300) | st.integers(0, (1 << 64) - 1),
        "settlement_date": st.sampled_from((0, 20250101, 20991231, U32)),
        "invalid_field": st.integers(0, 25),
        "conflicting_sequence": st.just(0) | st.integers(0, (1 << 64) - 1),
    }
)
OUTCOME_FIELDS = [field.name for field in tap_service_pb2.TapOutcome.DESCRIPTOR.fields if field.name != "fare"]
FIELD_NAMES = {number: name for name, number in FIELD_NUMBERS.items()} | {0: ""}


@thorough
@given(st.lists(outcomes, min_size=1, max_size=TAPS_MAX), st.booleans())
@example([dict.fromkeys(OUTCOME_FIELDS, 0)], False)
def test_response_is_what_protobuf_writes(values: list[dict[str, int]], stored: bool) -> None:
    if not stored:
        values = values[:1]
    core.decode([request_of(*[ONE] * len(values))], [stored], NOW_S, 0, TAPS_MAX)
    table = core.run(0)
    core.take_group()
    for at, value in enumerate(values):
        for name, number in value.items():
            table[name][at] = number
    (response,) = core.respond()

    messages = [
        tap_service_pb2.TapOutcome(
            **(value | {"invalid_field": FIELD_NAMES[value["invalid_field"]], "duplicate": bool(value["duplicate"])})
        )
        for value in values
    ]
    if stored:
        want: Any = tap_service_pb2.SubmitTapsResponse(outcomes=messages)
    else:
        want = tap_service_pb2.AuthorizeTapResponse(outcome=messages[0])
    assert response == want.SerializeToString(deterministic=True)


# ---- single values ----


@given(st.text(max_size=22) | st.text("0123456789", max_size=22))
@example("\ud800")
def test_card_numbers(text: str) -> None:
    assert is_card_number(text) == (1 <= len(text) <= 20 and all(digit in "0123456789" for digit in text))


def test_every_day_of_the_century() -> None:
    """All dates that can be written from 1999 to 2100, those that do not exist included."""
    days = np.arange("2000-01-01", "2100-01-01", dtype="datetime64[D]")
    midnights = {int(str(day).replace("-", "")): int(day.astype("datetime64[s]").astype(int)) - 8 * 3600 for day in days}
    for year in range(1999, 2101):
        for month in range(14):
            for day in range(33):
                date = year * 10_000 + month * 100 + day
                assert local_seconds(date, 0) == midnights.get(date, -1), date


@given(st.integers(0, 250_000))
@example(235_959)
@example(236_000)
@example(240_000)
def test_times_of_day(time: int) -> None:
    hour, minute, second = time // 10_000, time // 100 % 100, time % 100
    exists = hour < 24 and minute < 60 and second < 60
    since_midnight = local_seconds(20250101, time) - local_seconds(20250101, 0)
    assert since_midnight == (hour * 3600 + minute * 60 + second if exists else -1 - local_seconds(20250101, 0))


@given(st.integers(0, 32_503_680_000 * 1_000_000))
@example(START_S * 1_000_000)
@example(1_735_747_199_999_999)  # the last microsecond of 2025-01-01 in China
@example(1_735_747_200_000_000)
def test_settlement_date(time_us: int) -> None:
    assert settlement_date(time_us) == int(datetime.fromtimestamp(time_us // 1_000_000, CHINA).strftime("%Y%m%d"))
