"""Seals and receipts: the tree against its recursive definition, SM2 against gmssl, and that no altered byte goes unseen."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from day_city import DATE, SEAL_KEY, City
from gmssl import sm2 as gmssl_sm2
from hypothesis import given, settings
from hypothesis import strategies as st

from yikatong.core import sm2
from yikatong.core.day import merkle
from yikatong.core.day.positions import Line, LineKind, Position
from yikatong.core.day.seal import (
    NO_SEAL,
    ReceiptWrong,
    canonical,
    parse_position,
    position_leaf,
    records_tree,
    seal_digest,
    verify_receipt,
    verify_seal,
)  # fmt: skip
from yikatong.core.day.windows import find_window
from yikatong.core.errors import ConfigError, InvalidRequest, NotFound
from yikatong.core.journal import sm3
from yikatong.core.types import Result
from yikatong.v1 import settlement_service_pb2

PUBLIC = SEAL_KEY.public_key()

# ---- the tree ----


def reference_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, as it is written there."""
    if not leaves:
        return sm3(b"")
    if len(leaves) == 1:
        return sm3(b"\0" + leaves[0])
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sm3(b"\1" + reference_root(leaves[:split]) + reference_root(leaves[split:]))


def rows_of(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 128), np.uint8)


@pytest.mark.parametrize("count", [*range(20), 31, 32, 33, 100])
@pytest.mark.parametrize("subtree", [1, 4, 8, 1 << 16])
def test_root_and_paths_are_those_of_the_definition(count: int, subtree: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merkle, "SUBTREE_LEAVES", subtree)
    rows = rows_of(count)
    hashes = merkle.leaves(rows)
    tree = merkle.Tree()
    for start in range(0, count, 3):
        tree.add(hashes[start : start + 3])
    subtrees = tree.subtree_roots()
    root = reference_root([row.tobytes() for row in rows])
    assert merkle.root(subtrees) == merkle.root(hashes) == root
    for index in range(count):
        at, place = divmod(index, subtree)
        path = merkle.path(hashes[at * subtree : (at + 1) * subtree], place) + merkle.path(subtrees, at)
        assert merkle.root_of_path(hashes[index].tobytes(), index, count, path) == root
        assert merkle.root_of_path(hashes[index].tobytes(), index, count, [*path, root]) is None
        assert not path or merkle.root_of_path(hashes[index].tobytes(), index, count, path[:-1]) != root
        for other in {index - 1, index + 1, count, -1} - {index}:
            assert merkle.root_of_path(hashes[index].tobytes(), other, count, path) != root


def test_a_large_tree_on_two_cores() -> None:
    rows = rows_of(9_001)
    assert merkle.root(merkle.leaves(rows)) == reference_root([row.tobytes() for row in rows])


# ---- SM2 ----


def _gmssl(key: sm2.PrivateKey) -> gmssl_sm2.CryptSM2:
    """The same key at gmssl: the last 64 bytes of a public key's DER are its point, the private number follows a mark."""
    public = base64.b64decode(b"".join(key.public_pem().splitlines()[1:-1]))[-64:].hex()
    der = base64.b64decode(b"".join(key.private_pem().splitlines()[1:-1]))
    at = der.index(b"\x02\x01\x01\x04\x20") + 5
    made = gmssl_sm2.CryptSM2(private_key=der[at : at + 32].hex(), public_key=public, asn1=True)
    made.public_key = public  # it takes a leading 04 for the point's form, also where the number begins so
    return made


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_signatures_of_each_are_right_for_the_other(message: bytes) -> None:
    theirs = _gmssl(SEAL_KEY)
    assert theirs.verify_with_sm3(SEAL_KEY.sign(message).hex(), message)
    signature = bytes.fromhex(theirs.sign_with_sm3(message))
    assert PUBLIC.verify(message, signature)
    assert not PUBLIC.verify(message + b"x", signature)
    assert not sm2.PrivateKey.make().public_key().verify(message, signature)


@pytest.mark.parametrize("signature", [b"", b"\0", b"\x30\x06\x02\x01\x01\x02\x01\x01", b"\xff" * 70])
def test_what_is_no_signature(signature: bytes) -> None:
    assert not PUBLIC.verify(b"message", signature)


def test_key_files(tmp_path: Path) -> None:
    private, public = tmp_path / "seal.pem", tmp_path / "public.pem"
    sm2.make_key_files(private, public)
    assert private.stat().st_mode & 0o777 == 0o600
    assert sm2.PublicKey.read(public).verify(b"m", sm2.PrivateKey.read(private).sign(b"m"))
    with pytest.raises(ConfigError, match="exists"):
        sm2.make_key_files(private, tmp_path / "other.pem")
    private.chmod(0o640)
    with pytest.raises(ConfigError, match="only its owner"):
        sm2.PrivateKey.read(private)
    with pytest.raises(ConfigError, match="is no PEM file"):
        sm2.PublicKey(b"nonsense")
    with pytest.raises(ConfigError, match="No such file"):
        sm2.PublicKey.read(tmp_path / "none.pem")


def test_a_key_of_another_algorithm_is_refused() -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(ConfigError, match="another algorithm than SM2"):
        sm2.PrivateKey(pem)


# ---- positions ----


def test_a_position_is_its_leaf_and_nothing_else() -> None:
    position = Position("operator:公交", (Line(LineKind.TAPS, 2, 300), Line(LineKind.FEES, 1, -7)))
    raw = position_leaf(position)
    assert parse_position(raw) == position
    wrong = json.loads(raw) | {"net_fen": 294}
    with pytest.raises(ReceiptWrong, match="do not add up"):
        parse_position(canonical(wrong))


# ---- seals and receipts of a city ----


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    with City(tmp_path_factory.mktemp("sealed") / "data") as city:
        taps = [city.tap(card % 4, ("bus", "metro")[card % 2], 150 + card) for card in range(9)]
        city.sealed()
        city.to_date(1)
        city.tap()
        city.sealed(DATE + 1)
        yield city, taps


def receipt_of(city: City, **key) -> bytes:
    return city.day.get_receipt(settlement_service_pb2.GetReceiptRequest(**key)).receipt


def seal_of(city: City, date: int = DATE) -> bytes:
    return city.day.get_seal(settlement_service_pb2.GetSealRequest(settlement_date=date)).seal


def test_the_seal_is_over_the_windows_records_and_positions(sealed) -> None:
    city, _ = sealed
    fields = verify_seal(seal_of(city), PUBLIC)
    with city.journal.read() as reader:
        window = find_window(reader, DATE)
        assert window is not None
        records = [reader.records([sequence]) for sequence in range(window.first_sequence, window.last_sequence + 1)]
    assert fields["records_root"] == reference_root(records).hex()
    leaves = [position_leaf(position) for position in city.day.netted(DATE).positions]
    assert fields["positions_root"] == reference_root(leaves).hex()
    assert (fields["previous_seal"], fields["records"]) == (NO_SEAL, len(records))


def test_seals_are_chained_and_journalled(sealed) -> None:
    city, _ = sealed
    assert verify_seal(seal_of(city, DATE + 1), PUBLIC)["previous_seal"] == seal_digest(seal_of(city)).hex()
    assert city.windows()[0].seal_digest == seal_digest(seal_of(city))


def test_windows_are_sealed_in_order(tmp_path: Path) -> None:
    from yikatong.core.day.windows import WindowEvent

    with City(tmp_path / "data") as city:
        for days in range(2):
            city.to_date(days)
            city.tap()
            city.cleared(DATE + days)
            city.step(WindowEvent.SETTLE, DATE + days)
        assert city.seal_window(DATE + 1).result == Result.WINDOW_BEFORE
        assert [city.seal_window(DATE + days).result for days in range(2)] == [Result.ACCEPTED] * 2


def test_every_record_of_the_window_has_a_receipt(sealed) -> None:
    city, taps = sealed
    window = city.windows()[0]
    for sequence in range(window.first_sequence, window.last_sequence + 1):
        proved = verify_receipt(receipt_of(city, sequence=sequence), PUBLIC)
        assert int(proved.record["sequence"][0]) == sequence
        assert f"record {sequence} is in the window of 2025-01-01" in proved.words()
    proved = verify_receipt(receipt_of(city, sequence=taps[3].sequence), PUBLIC)
    assert proved.words() == (
        f"record {taps[3].sequence} is in the window of 2025-01-01, sealed over {window.last_sequence} records and 4 participants"
        ": a tap record, made on 2025-01-01 at 08:30:15 (UTC+8) with card counter 1 and terminal sequence 2, accepted, "
        "1.53 CNY charged."
    )


def test_every_participant_has_a_receipt(sealed) -> None:
    city, _ = sealed
    for position in city.day.netted(DATE).positions:
        key = {"participant": position.participant, "settlement_date": DATE}
        proved = verify_receipt(receipt_of(city, participant_total=key), PUBLIC)
        assert proved.position == position
        assert position.participant in proved.words()


def test_what_has_no_receipt(sealed) -> None:
    city, _ = sealed
    city.close_window(DATE + 1)
    for key, error in (
        ({"sequence": 10**9}, NotFound),
        ({"sequence": city.engine.next_sequence - 1}, NotFound),  # its window is not sealed, or it is not durable
        ({"participant_total": {"participant": "operator:ferry", "settlement_date": DATE}}, NotFound),
        ({"participant_total": {"participant": "operator:bus", "settlement_date": DATE + 5}}, NotFound),
        ({}, InvalidRequest),
    ):
        with pytest.raises(error):
            receipt_of(city, **key)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
@pytest.mark.parametrize("what", ["tap", "participant"])
def test_every_altered_byte_is_found(sealed, what: str, flip: int) -> None:
    city, taps = sealed
    key = {"participant": "operator:bus", "settlement_date": DATE}
    raw = receipt_of(city, sequence=taps[4].sequence) if what == "tap" else receipt_of(city, participant_total=key)
    verify_receipt(raw, PUBLIC)
    for at in range(len(raw)):
        altered = bytearray(raw)
        altered[at] ^= flip
        with pytest.raises(ReceiptWrong):
            verify_receipt(bytes(altered), PUBLIC)
    for cut in (raw[:-1], raw + b" ", b" " + raw, raw * 2, b""):
        with pytest.raises(ReceiptWrong):
            verify_receipt(cut, PUBLIC)


@given(st.data())
def test_a_digit_for_a_digit_is_found(sealed, data) -> None:
    """Alterations that keep the form: one hexadecimal digit or figure in place of another."""
    city, taps = sealed
    raw = receipt_of(city, sequence=taps[4].sequence)
    places = [at for at, byte in enumerate(raw) if chr(byte) in "0123456789abcdef"]
    at = data.draw(st.sampled_from(places))
    other = data.draw(st.sampled_from("0123456789abcdef").filter(lambda digit: ord(digit) != raw[at]))
    with pytest.raises(ReceiptWrong):
        verify_receipt(raw[:at] + other.encode() + raw[at + 1 :], PUBLIC)


def test_every_altered_byte_of_the_journal_is_found(sealed) -> None:
    """The root over the records, made again from the journal, is another one when any byte of any record is."""
    city, _ = sealed
    sealed_root = verify_seal(seal_of(city), PUBLIC)["records_root"]
    with city.journal.read() as reader:
        window = find_window(reader, DATE)
        assert window is not None
        assert merkle.root(records_tree(reader, window)).hex() == sealed_root
        raw = reader.records(list(range(window.first_sequence, window.last_sequence + 1)))
    rows = np.frombuffer(raw, np.uint8).reshape(-1, 128)
    for at in range(0, rows.size, 13):  # every column of every place in a record, in one record or another
        altered = rows.copy()
        altered.reshape(-1)[at] ^= 0x10
        assert merkle.root(merkle.leaves(altered)).hex() != sealed_root


def test_another_key_proves_nothing(sealed) -> None:
    city, taps = sealed
    with pytest.raises(ReceiptWrong, match="signature is wrong"):
        verify_receipt(receipt_of(city, sequence=taps[0].sequence), sm2.PrivateKey.make().public_key())


def test_a_receipt_under_another_windows_seal(sealed) -> None:
    city, taps = sealed
    document = json.loads(receipt_of(city, sequence=taps[0].sequence))
    document["seal"] = json.loads(seal_of(city, DATE + 1))
    with pytest.raises(ReceiptWrong, match="does not lead to the root"):
        verify_receipt(canonical(document), PUBLIC)


CLI = [sys.executable, "-m", "yikatong.core.cli"]


def test_the_command_line_proves_it_without_a_data_directory(sealed, tmp_path: Path) -> None:
    city, taps = sealed
    (tmp_path / "public.pem").write_bytes(SEAL_KEY.public_pem())
    raw = receipt_of(city, sequence=taps[0].sequence)
    for name, content in (("right.json", raw), ("wrong.json", raw.replace(b'"records":', b'"records": '))):
        (tmp_path / name).write_bytes(content)
    command = [*CLI, "verify-receipt", "--public-key", "public.pem"]
    right, wrong, missing = (
        subprocess.run([*command, name], cwd=tmp_path, capture_output=True, text=True, check=False)
        for name in ("right.json", "wrong.json", "none.json")
    )
    assert (right.returncode, right.stdout.startswith("proved: record")) == (0, True)
    assert (wrong.returncode, "canonical form" in wrong.stderr) == (1, True)
    assert (missing.returncode, "No such file" in missing.stderr) == (1, True)


def test_receipts_by_the_command_line(tmp_path: Path) -> None:
    with City(tmp_path / "data") as city:
        outcome = city.tap()
        city.sealed()
    (tmp_path / "public.pem").write_bytes(SEAL_KEY.public_pem())
    for what in (["--sequence", str(outcome.sequence)], ["--participant", "operator:bus", "--date", str(DATE)]):
        subprocess.run([*CLI, "receipt", "--data", tmp_path / "data", *what, "--out", tmp_path / "r.json"], check=True)
        done = subprocess.run(
            [*CLI, "verify-receipt", tmp_path / "r.json", "--public-key", tmp_path / "public.pem"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "2.00 CNY" in done.stdout or "1.98 CNY" in done.stdout
    done = subprocess.run([*CLI, "day", "list", "--data", tmp_path / "data"], capture_output=True, text=True, check=True)
    assert "settled, sealed" in done.stdout
