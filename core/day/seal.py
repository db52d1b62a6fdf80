"""The last stage of a day: the seal of a settled window, and receipts that anybody can check against it.

A seal states the window's range of the journal, the Merkle root over its records and the one over its positions (merkle.py), and
the digest of the seal before it; it is signed with SM2. A receipt holds one record, or one participant's position, its path to
the root, and the seal: with the public key alone it proves that the one is in the other.

Both are JSON in one canonical form (`canonical`), and both are refused in any other, so that no byte can be altered unseen."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from yikatong.core import types
from yikatong.core.day import merkle
from yikatong.core.day.clear import chunks, date_of
from yikatong.core.day.positions import Line, LineKind, Position
from yikatong.core.day.windows import Range
from yikatong.core.errors import Damaged, NotFound, YikatongError
from yikatong.core.journal import JournalReader
from yikatong.core.sm2 import PrivateKey, PublicKey
from yikatong.ext import sm3

VERSION: Final = 1
NO_SEAL: Final = "0" * 64  # stands for the seal before the first
Progress = Callable[[int, int], None]

_HEX32: Final = r"[0-9a-f]{64}"
_SEAL_FIELDS: Final[dict[str, Any]] = {
    "first_sequence": int, "last_sequence": int, "participants": int, "positions_root": _HEX32, "previous_seal": _HEX32,
    "records": int, "records_root": _HEX32, "settlement_date": int, "signature": r"([0-9a-f]{2}){8,128}", "version": int,
}  # fmt: skip


class ReceiptWrong(YikatongError):
    """A receipt or seal proves nothing; the message says what is wrong with it."""


def canonical(document: Any) -> bytes:
    """The one form of a JSON document: keys in order, no blanks, UTF-8, one newline at the end."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _parse(raw: bytes, what: str) -> Any:
    try:
        document = json.loads(raw)
        same = canonical(document) == raw
    except (ValueError, RecursionError) as error:
        raise ReceiptWrong(f"the {what} is not JSON") from error
    if not same:
        raise ReceiptWrong(f"the {what} is not written in its canonical form: it was altered after it was made")
    return document


def _check_fields(document: Any, fields: dict[str, Any], what: str) -> None:
    if not isinstance(document, dict) or set(document) != set(fields):
        raise ReceiptWrong(f"the {what} has not the fields {', '.join(sorted(fields))}")
    for name, kind in fields.items():
        value = document[name]
        if isinstance(kind, str):
            if not isinstance(value, str) or not re.fullmatch(kind, value):
                raise ReceiptWrong(f"the {what}'s {name} is not of the form {kind}")
        elif type(value) is not kind:
            raise ReceiptWrong(f"the {what}'s {name} is no {kind.__name__}")


# ---- positions as leaves ----


def position_leaf(position: Position) -> bytes:
    """A participant's position as it is hashed: canonical JSON."""
    return canonical(
        {
            "lines": [[line.kind.value, line.count, line.amount_fen] for line in position.lines],
            "net_fen": position.net_fen,
            "participant": position.participant,
        }
    )


def parse_position(raw: bytes) -> Position:
    """A position from its leaf. Raises ReceiptWrong."""
    document = _parse(raw, "position")
    _check_fields(document, {"lines": list, "net_fen": int, "participant": str}, "position")
    try:
        lines = tuple(Line(LineKind(kind), int(count), int(amount_fen)) for kind, count, amount_fen in document["lines"])
    except (TypeError, ValueError) as error:
        raise ReceiptWrong("the position has lines of another form") from error
    position = Position(document["participant"], lines)
    if position.net_fen != document["net_fen"] or position_leaf(position) != raw:
        raise ReceiptWrong("the position's lines do not add up to its net amount")
    return position


def _position_hashes(positions: Sequence[Position]) -> Any:
    hashes = b"".join(merkle.leaf(position_leaf(position)) for position in positions)
    return np.frombuffer(hashes, np.uint8).reshape(-1, merkle.DIGEST_BYTES)


# ---- making a seal ----


def records_tree(reader: JournalReader, window: Range, progress: Progress = lambda done, total: None) -> Any:
    """The roots of the subtrees over a window's records, (m, 32) uint8. The journal is read once, a chunk at a time."""
    tree = merkle.Tree()
    total = window.last_sequence - window.first_sequence + 1
    for records in chunks(reader, window.first_sequence, window.last_sequence):
        tree.add(merkle.leaves(records.view(np.uint8).reshape(len(records), -1)))
        progress(tree.count, total)
    return tree.subtree_roots()


@dataclass(frozen=True)
class Sealed:
    """A seal as it is kept, and the roots of the subtrees that it was made of."""

    seal: bytes
    subtrees: bytes


def seal(window: Range, subtrees: Any, positions: Sequence[Position], previous_seal: bytes | None, key: PrivateKey) -> Sealed:
    """Seal a window. `previous_seal` is the one before it, whole; None for the first."""
    document = {
        "version": VERSION,
        "settlement_date": window.date,
        "first_sequence": window.first_sequence,
        "last_sequence": window.last_sequence,
        "records": window.last_sequence - window.first_sequence + 1,
        "records_root": merkle.root(subtrees).hex(),
        "participants": len(positions),
        "positions_root": merkle.root(_position_hashes(positions)).hex(),
        "previous_seal": NO_SEAL if previous_seal is None else seal_digest(previous_seal).hex(),
    }
    signed = canonical(document | {"signature": key.sign(canonical(document)).hex()})
    return Sealed(signed, subtrees.tobytes())


def seal_digest(raw: bytes) -> bytes:
    """What the next seal says of this one: SM3 of its bytes."""
    return sm3.digest(raw)


def verify_seal(raw: bytes, key: PublicKey) -> dict[str, Any]:
    """The fields of a seal whose signature is right. Raises ReceiptWrong."""
    return _verify_seal(_parse(raw, "seal"), key)


def _verify_seal(document: Any, key: PublicKey) -> dict[str, Any]:
    _check_fields(document, _SEAL_FIELDS, "seal")
    if document["version"] != VERSION:
        raise ReceiptWrong(f"the seal is of version {document['version']}; this program knows {VERSION}")
    said = {name: value for name, value in document.items() if name != "signature"}
    if not key.verify(canonical(said), bytes.fromhex(document["signature"])):
        raise ReceiptWrong("the seal's signature is wrong: it was altered, or made with another key")
    if document["records"] != document["last_sequence"] - document["first_sequence"] + 1:
        raise ReceiptWrong("the seal contradicts itself on how many records there are")
    return said


def verify_seals(reader: JournalReader, seals: Sequence[bytes], key: PublicKey | None) -> None:
    """Hold the journal against the seals of all its windows, in order of date. Without a key, their signatures are not looked at.
    Raises Damaged."""
    previous = NO_SEAL
    for raw in seals:
        document = json.loads(raw)
        place = f"the seal of {document['settlement_date']}"
        try:
            if key is not None:
                verify_seal(raw, key)
        except ReceiptWrong as error:
            raise Damaged(f"{place}: {error}") from error
        if document["previous_seal"] != previous:
            raise Damaged(f"{place}: it does not follow on the one before")
        window = Range(document["settlement_date"], document["first_sequence"], document["last_sequence"])
        if merkle.root(records_tree(reader, window)).hex() != document["records_root"]:
            raise Damaged(
                f"{place}: the journal's records {window.first_sequence} to {window.last_sequence} are not those sealed"
            )
        previous = seal_digest(raw).hex()


# ---- receipts ----


def record_receipt(reader: JournalReader, sequence: int, raw_seal: bytes, subtrees: bytes) -> bytes:
    """A receipt for the record at a sequence of the sealed window."""
    document = json.loads(raw_seal)
    first, last = document["first_sequence"], document["last_sequence"]
    if not first <= sequence <= last:
        raise NotFound("record", f"{sequence} in the window of {document['settlement_date']}")
    roots = np.frombuffer(subtrees, np.uint8).reshape(-1, merkle.DIGEST_BYTES)
    index = sequence - first
    subtree, place = divmod(index, merkle.SUBTREE_LEAVES)
    start = first + subtree * merkle.SUBTREE_LEAVES
    own = [
        merkle.leaves(records.view(np.uint8).reshape(len(records), -1))
        for records in chunks(reader, start, min(start + merkle.SUBTREE_LEAVES - 1, last))
    ]
    path = merkle.path(np.concatenate(own), place) + merkle.path(roots, subtree)
    record = reader.records([sequence])
    return canonical({"path": merkle.as_hex(path), "record": record.hex(), "seal": document})


def position_receipt(positions: Sequence[Position], participant: str, raw_seal: bytes) -> bytes:
    """A receipt for one participant's total. Raises NotFound."""
    index = next((at for at, position in enumerate(positions) if position.participant == participant), None)
    if index is None:
        raise NotFound("participant", participant)
    path = merkle.path(_position_hashes(positions), index)
    return canonical(
        {
            "index": index,
            "path": merkle.as_hex(path),
            "position": position_leaf(positions[index]).decode(),
            "seal": json.loads(raw_seal),
        }
    )


@dataclass(frozen=True)
class Proved:
    """What a receipt proves: the seal it stands under, and the record (an array of one types.RECORD) or the position in it."""

    seal: dict[str, Any]
    record: Any = None
    position: Position | None = None

    def words(self) -> str:
        """In words, for whoever holds the receipt."""
        sealed = self.seal
        under = (
            f"the window of {date_of(sealed['settlement_date'])}, sealed over {sealed['records']:,} records and "
            f"{sealed['participants']} participants"
        )
        if self.position is not None:
            owed = self.position.net_fen
            lines = "; ".join(f"{line.kind.value} {_yuan(line.amount_fen)} ({line.count:,})" for line in self.position.lines)
            verb = "is owed" if owed >= 0 else "owes"
            return f"{self.position.participant} {verb} {_yuan(abs(owed))} in {under}. It is made up of: {lines}."
        record = self.record[0]
        kind = types.RecordKind(int(record["kind"])).name.lower().replace("_", " ")
        text = f"record {int(record['sequence'])} is in {under}: a {kind} record"
        if record["kind"] == types.RecordKind.TAP:
            result = types.Result(int(record["result"])).name.lower().replace("_", " ")
            local = int(record["local_time"])
            when = f"on {date_of(int(record['local_date']))} at {local // 10000:02d}:{local // 100 % 100:02d}:{local % 100:02d}"
            text += (
                f", made {when} (UTC+8) with card counter {int(record['atc'])} and terminal sequence "
                f"{int(record['terminal_sequence'])}, {result}, {_yuan(int(record['amount_fen']))} charged"
            )
        elif record["debit_account"] != types.NONE:
            text += f" of {_yuan(int(record['amount_fen']))}"
        return text + "."


def _yuan(amount_fen: int) -> str:
    return f"{'-' if amount_fen < 0 else ''}{abs(amount_fen) // 100:,}.{abs(amount_fen) % 100:02d} CNY"


def _path_of(texts: Iterable[Any]) -> list[bytes]:
    hashes = []
    for text in texts:
        if not isinstance(text, str) or not re.fullmatch(_HEX32, text):
            raise ReceiptWrong("the receipt's path is not made of SM3 digests")
        hashes.append(bytes.fromhex(text))
    return hashes


def verify_receipt(raw: bytes, key: PublicKey) -> Proved:
    """What a receipt proves. Raises ReceiptWrong, saying why, where it proves nothing."""
    document = _parse(raw, "receipt")
    if not isinstance(document, dict):
        raise ReceiptWrong("the receipt is no JSON object")
    if "record" in document:
        _check_fields(document, {"path": list, "record": r"[0-9a-f]{256}", "seal": dict}, "receipt")
        sealed = _verify_seal(document["seal"], key)
        data = bytes.fromhex(document["record"])
        record = np.frombuffer(data, types.RECORD)
        index, count, root = int(record["sequence"][0]) - sealed["first_sequence"], sealed["records"], sealed["records_root"]
        proved = Proved(sealed, record=record)
    else:
        _check_fields(document, {"index": int, "path": list, "position": str, "seal": dict}, "receipt")
        sealed = _verify_seal(document["seal"], key)
        data = document["position"].encode()
        index, count, root = document["index"], sealed["participants"], sealed["positions_root"]
        proved = Proved(sealed, position=parse_position(data))
    reached = merkle.root_of_path(merkle.leaf(data), index, count, _path_of(document["path"]))
    if reached is None or reached.hex() != root:
        raise ReceiptWrong("the receipt's path does not lead to the root that was sealed: what it shows is not in the window")
    return proved
