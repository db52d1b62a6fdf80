"""Codes that a phone shows for its e-card, and taps by them.

An online code is a random token, "YK" and 32 characters. Only a keyed digest of it is kept (provider.index under the DEVICE key
that its first bytes name), with the device that asked. An offline ride code (ride_code.py) names its device in its custom data.

A tap by code is made in two steps, each durable before the next. First the code is *reserved* for this very item, with a counter
(ATC) of the e-card: the same item gets the same reservation again, any other is CODE_USED. Then the tap that the e-card's chip
would have made, had it one, is built from item and reservation, with a MAC by the provider, and goes the way of all taps. A crash
in between leaves a reservation without a tap; when the terminal sends the item again, it becomes the very tap it would have been.
Both steps done, the tap is found to be a duplicate."""

import base64
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from yikatong.core import limits
from yikatong.core.access.callers import LOCAL, Caller
from yikatong.core.cards import card_links, e_cards, ride_code
from yikatong.core.cards.device_proof import message_of
from yikatong.core.cards.e_cards import ECard
from yikatong.core.cards.ride_code import Checker, CodeMalformed, IssuerPart, RideCode
from yikatong.core.change import Change
from yikatong.core.errors import ConfigError, InvalidRequest
from yikatong.core.keys.provider import KeyProvider, KeyReference, KeyUnknown, Purpose
from yikatong.core.memory import Memory
from yikatong.core.sm2 import PrivateKey, PublicKey
from yikatong.core.types import NONE, DocumentKind, Result, wire
from yikatong.ext import sm3
from yikatong.ext.engine import local_seconds
from yikatong.v1 import access_pb2, tap_service_pb2
from yikatong.v1 import code_service_pb2 as pb
from yikatong.v1 import e_card_documents_pb2 as documents

TOKEN_PREFIX: Final = b"YK"
TOKEN_RANDOM_BYTES: Final = 18  # 144 bits
DIGEST_BYTES: Final = 16
_TOKEN: Final = re.compile(rb"YK[A-Z2-7]{32}")
_LABEL: Final = b"yikatong code"
KEPT, DUE = b"c", b"t"  # documents of a kind: under a digest; and for the sweep, under when it is due, and the digest
PURCHASE: Final = 6
TEST_ISSUER: Final = b"\x59\x80\x00\x01"
TEST_EXPIRY: Final = 209_912


class RideCodeRules(NamedTuple):
    """With what ride codes are issued, and by what they are checked; without a certificate none are."""

    certificate: bytes = b""
    authority: PublicKey | None = None
    hours: int = limits.RIDE_CODE_HOURS
    limit_fen: int = limits.RIDE_CODE_LIMIT_FEN
    validity_s: int = limits.RIDE_CODE_VALIDITY_S

    @classmethod
    def read(cls, certificate: str, authority: str, hours: int, limit_fen: int, provider: KeyProvider) -> "RideCodeRules":
        """From the files that settings name. Raises ConfigError where they cannot be read or do not belong together."""
        if not certificate and not authority:
            return cls(hours=hours, limit_fen=limit_fen)
        if not (certificate and authority):
            raise ConfigError("ride_code_certificate", "it and ride_code_authority go together")
        key = PublicKey.read(Path(authority))
        try:
            raw = Path(certificate).read_bytes()
            read = ride_code.read_certificate(raw)
        except (OSError, CodeMalformed) as error:
            raise ConfigError("ride_code_certificate", f"{certificate}: {error}") from error
        if not key.verify_raw(raw[: ride_code.CERTIFICATE_SIGNED_BYTES], read.signature):
            raise ConfigError("ride_code_certificate", "was not signed by ride_code_authority")
        if PublicKey(provider.public_key(provider.newest(Purpose.CODE_ISSUER))).point() != read.key:
            raise ConfigError("ride_code_certificate", "is for another key than the newest of purpose CODE_ISSUER")
        return cls(raw, key, hours, limit_fen)

    def checker(self) -> Checker:
        """What checks codes of this issuer's authority."""
        if self.authority is None:
            return Checker({})
        return Checker({ride_code.read_certificate(self.certificate).ca_index: self.authority})


def make_test_issuer(folder: Path, provider: KeyProvider) -> tuple[Path, Path]:
    """Files for ride_code_certificate and ride_code_authority, by an authority whose key is thrown away at once: for demos and
    tests. A city's issuer has its certificate from the authority that gates everywhere trust."""
    authority = PrivateKey.make()
    issuer = PublicKey(provider.public_key(provider.newest(Purpose.CODE_ISSUER)))
    certificate = ride_code.make_certificate(issuer.point(), TEST_ISSUER, TEST_EXPIRY, authority.sign_raw)
    files = folder / "ride-code-certificate", folder / "ride-code-authority.pem"
    for file, content in zip(files, (certificate, authority.public_pem()), strict=True):
        file.write_bytes(content)
    return files


# ---- what is kept ----


def _stamp(time_us: int) -> bytes:
    return time_us.to_bytes(8, "big")


def _keep(change: Change, kind: DocumentKind, digest: bytes, value: bytes, until_us: int) -> None:
    change.put(kind, KEPT + digest, value)
    change.put(kind, DUE + _stamp(until_us) + digest, b"\0")


def _sweep(memory: Memory, change: Change, added: int = 1) -> None:
    """Forget with a change what is due: more than the `added` codes that come with it."""
    for kind in (DocumentKind.CODE, DocumentKind.CODE_USE):
        due = memory.documents.scan(kind, DUE, DUE + _stamp(change.time_us))
        for key in [key for (key, _), _ in zip(due, range(limits.CODES_SWEPT + added), strict=False)]:
            change.delete(kind, key)
            change.delete(kind, KEPT + key[-DIGEST_BYTES:])


def _use_of(memory: Memory, digest: bytes) -> documents.CodeUseDocument | None:
    value = memory.documents.get(DocumentKind.CODE_USE, KEPT + digest)
    return None if value is None else documents.CodeUseDocument.FromString(value)


# ---- online codes ----


def _digest(provider: KeyProvider, raw: bytes) -> bytes | None:
    """What a token (20 bytes) is kept by; None where it names no key of ours."""
    try:
        return provider.index(KeyReference(Purpose.DEVICE, raw[0], raw[1]), _LABEL + raw)[:DIGEST_BYTES]
    except KeyUnknown:
        return None


def _raw_token(code: bytes) -> bytes | None:
    """The 20 bytes of an online code; None where it is none."""
    return base64.b32decode(code[len(TOKEN_PREFIX) :]) if _TOKEN.fullmatch(code) else None


def get_code(
    provider: KeyProvider, random: bytes, memory: Memory, request: pb.GetCodeRequest, time_us: int
) -> pb.GetCodeResponse:
    """CodeService.GetCode; `random` has TOKEN_RANDOM_BYTES, drawn for this call."""
    message = message_of("CodeService/GetCode", request.device_id)
    device = e_cards.check_device(memory, provider, request.device_id, message, request.proof, time_us)
    if isinstance(device, Result):
        return pb.GetCodeResponse(result=wire(device))
    key = provider.newest(Purpose.DEVICE)
    raw = bytes([key.key_version, key.key_index]) + random
    digest = _digest(provider, raw)
    assert digest is not None
    change = Change(memory, time_us)
    _sweep(memory, change)
    e_cards.use_proof(change, device)
    expires_us = time_us + limits.CODE_S * 1_000_000
    kept = documents.CodeDocument(device_id=request.device_id, card_slot=device.e_card.card_slot, expires_time_us=expires_us)
    until_us = expires_us + limits.CODE_KEPT_S * 1_000_000
    _keep(change, DocumentKind.CODE, digest, kept.SerializeToString(deterministic=True), until_us)
    sequence = change.commit("code-given")
    code = (TOKEN_PREFIX + base64.b32encode(raw)).decode()
    return pb.GetCodeResponse(result=wire(Result.ACCEPTED), sequence=sequence, code=code, expires_time_us=expires_us)


class Resolved(NamedTuple):
    """Whose an online code is. `person_id` is None as long as nobody is known behind the card."""

    card_slot: int
    person_id: bytes | None
    device_id: bytes
    digest: bytes


def resolve(memory: Memory, provider: KeyProvider, code: bytes, time_us: int) -> Resolved | Result:
    """Whose an online code is, when it is good now: given out, not over, not used, its device good and its card may be used; or
    why not, in this order: CODE_MALFORMED, CODE_UNKNOWN, CODE_USED, CODE_EXPIRED, then what e_cards.usable says. Changes nothing:
    what is done on the strength of it puts `use` with its change, which makes it single."""
    raw = _raw_token(code)
    if raw is None:
        return Result.CODE_MALFORMED
    digest = _digest(provider, raw)
    value = None if digest is None else memory.documents.get(DocumentKind.CODE, KEPT + digest)
    if digest is None or value is None:
        return Result.CODE_UNKNOWN
    kept = documents.CodeDocument.FromString(value)
    if _use_of(memory, digest) is not None:
        return Result.CODE_USED
    if time_us >= kept.expires_time_us:
        return Result.CODE_EXPIRED
    e_card = e_cards.usable(memory, kept.device_id, time_us)
    if isinstance(e_card, Result):
        return e_card
    return Resolved(kept.card_slot, None, kept.device_id, digest)


def use(change: Change, resolved: Resolved, by: bytes) -> None:
    """Put with a change that an online code was used. `by` says for what: 16 bytes, a request id."""
    used = documents.CodeUseDocument(item_digest=by, time_us=change.time_us, device_id=resolved.device_id)
    _keep_use(change, resolved.digest, used)


def _keep_use(change: Change, digest: bytes, used: documents.CodeUseDocument) -> None:
    until_us = change.time_us + limits.CODE_USES_KEPT_S * 1_000_000
    _keep(change, DocumentKind.CODE_USE, digest, used.SerializeToString(deterministic=True), until_us)


# ---- ride codes ----


class RideCodeGrant(NamedTuple):
    """What a device may have signed by the issuer."""

    e_card: ECard
    device_id: bytes
    user_key: bytes
    sequence: int
    time_s: int


def grant_ride_code(
    provider: KeyProvider, memory: Memory, request: pb.GetRideCodeRequest, time_us: int
) -> RideCodeGrant | Result:
    """The first half of CodeService.GetRideCode: whether the device may have one. The signature is made beside the writer."""
    message = message_of("CodeService/GetRideCode", request.device_id)
    device = e_cards.check_device(memory, provider, request.device_id, message, request.proof, time_us)
    if isinstance(device, Result):
        return device
    change = Change(memory, time_us)
    e_cards.use_proof(change, device)
    sequence = change.commit("ride-code-given")
    return RideCodeGrant(device.e_card, request.device_id, device.document.public_key, sequence, time_us // 1_000_000)


def issue_ride_code(provider: KeyProvider, rules: RideCodeRules, grant: RideCodeGrant) -> pb.GetRideCodeResponse:
    """The second half: the issuer part. Raises ConfigError where no ride codes are issued here."""
    if not rules.certificate:
        raise ConfigError("ride_code_certificate", "is not set: no ride codes are issued")
    issuer = ride_code.read_certificate(rules.certificate).issuer
    expires_s = grant.time_s + rules.hours * 3_600
    part = IssuerPart(
        account=grant.e_card.number[-16:].zfill(16), card_number=grant.e_card.number, issuer=issuer, platform=issuer,
        account_type=1, limit_fen=rules.limit_fen, user_key=grant.user_key, expires_s=expires_s, validity_s=rules.validity_s,
        custom=grant.device_id,
    )  # fmt: skip
    key = provider.newest(Purpose.CODE_ISSUER)
    issued = ride_code.make_issuer_part(part, lambda message: provider.sign(key, message), rules.certificate)
    return pb.GetRideCodeResponse(
        result=wire(Result.ACCEPTED), sequence=grant.sequence, issuer_part=issued, expires_s=expires_s, limit_fen=rules.limit_fen
    )


# ---- taps by code ----


class Checked(NamedTuple):
    """An item whose code was looked at beside the writer: the 20 bytes of a token, a ride code that is right, or why not."""

    item: pb.CodeTap
    code: bytes | RideCode | Result
    invalid_field: str = ""


class Reserved(NamedTuple):
    """A tap without its MAC, and by which key the MAC is made."""

    tap: tap_service_pb2.Tap
    key: KeyReference


_U24, _U32 = (1 << 24) - 1, (1 << 32) - 1


def _fault(item: pb.CodeTap) -> tuple[Result, str] | None:
    """What of an item's form no tap could have (domain.md: malformed comes first): its result and field."""
    for wrong, result, field in (
        (not 0 <= item.amount_fen <= _U32, Result.MALFORMED_AMOUNT, "amount_fen"),
        (not 0 <= item.amount_due_fen <= _U32, Result.MALFORMED_AMOUNT, "amount_due_fen"),
        (item.transaction_type not in (0, PURCHASE, 9), Result.MALFORMED_TRANSACTION_TYPE, "transaction_type"),
        (len(item.terminal_number) != 6, Result.MALFORMED_TERMINAL, "terminal_number"),
        (_local_s(item) < 0, Result.MALFORMED_TIME, "local_time"),
        (item.kind not in (1, 2, 3, 4), Result.MALFORMED_KIND, "kind"),
        (item.stop > _U24, Result.MALFORMED_PLACE, "stop"),
        (item.direction not in (0, 1, 2), Result.MALFORMED_PLACE, "direction"),
        (item.city > 9_999, Result.MALFORMED_PLACE, "city"),
        (item.industry > 9, Result.MALFORMED_PLACE, "industry"),
    ):
        if wrong:
            return result, field
    return None


def _local_s(item: pb.CodeTap) -> int:
    """Its local time in seconds since 1970, UTC; negative where there is no such time."""
    date, time = divmod(item.local_time, 1_000_000)
    return int(local_seconds(date, time)) if date <= _U32 else -1


class CodeChecker:
    """The part of a tap by code that reads no memory, for any thread: forms and signatures."""

    def __init__(self, rules: RideCodeRules) -> None:
        self._checker = rules.checker()
        self._lock = threading.Lock()

    def check(self, items: Sequence[pb.CodeTap]) -> list[Checked]:
        return [self._check(item) for item in items]

    def _check(self, item: pb.CodeTap) -> Checked:
        if (fault := _fault(item)) is not None:
            return Checked(item, *fault)
        if (raw := _raw_token(item.code)) is not None:
            return Checked(item, raw)
        with self._lock:
            return Checked(item, self._checker.check(item.code, _local_s(item)))


def reserve(
    provider: KeyProvider, memory: Memory, items: Sequence[Checked], stored: bool, time_us: int, caller: Caller = LOCAL
) -> list[Reserved | tap_service_pb2.TapOutcome]:
    """The first step, on the writer's thread: for each item its tap without the MAC, or what it is refused with. Terminals that
    are not the caller's are unknown to it."""
    change = Change(memory, time_us)
    _sweep(memory, change, len(items))
    reserving = _Reserving(provider, memory, stored, time_us, caller)
    answers: list[Reserved | tap_service_pb2.TapOutcome] = []
    for checked in items:
        made = reserving.reserve(checked)
        if isinstance(made, Result):
            answers.append(tap_service_pb2.TapOutcome(result=wire(made), invalid_field=checked.invalid_field))
        else:
            answers.append(made)
    if reserving.uses:
        for digest, used in reserving.uses.items():
            _keep_use(change, digest, used)
        for e_card in reserving.e_cards.values():
            e_cards.put(change, e_card)
        change.commit("codes-reserved")
    return answers


class _Reserving:
    """What one request reserves, before any of it is put."""

    def __init__(self, provider: KeyProvider, memory: Memory, stored: bool, time_us: int, caller: Caller) -> None:
        self._caller = caller
        self._provider = provider
        self._memory = memory
        self._stored = stored
        self._time_us = time_us
        self.uses: dict[bytes, documents.CodeUseDocument] = {}
        self.e_cards: dict[int, ECard] = {}  # by card slot

    def reserve(self, checked: Checked) -> Reserved | Result:
        item, code = checked.item, checked.code
        if isinstance(code, Result):
            return code
        if not self._is_own(item.terminal_number):
            return Result.UNKNOWN_TERMINAL
        digest = _digest(self._provider, code) if isinstance(code, bytes) else code.digest[:DIGEST_BYTES]
        if digest is None:
            return Result.CODE_UNKNOWN
        item_digest = sm3.digest(item.SerializeToString(deterministic=True))[:DIGEST_BYTES]
        used = self.uses.get(digest) or _use_of(self._memory, digest)
        if used is not None:
            return self._tap(item, used) if used.atc and used.item_digest == item_digest else Result.CODE_USED
        if isinstance(code, RideCode) and max(item.amount_fen, item.amount_due_fen) > code.part.limit_fen:
            return Result.CODE_LIMIT
        holder = self._holder(item, code)
        return holder if isinstance(holder, Result) else self._take(item, item_digest, digest, *holder)

    def _is_own(self, terminal_number: bytes) -> bool:
        """Whether a terminal is registered, and the caller itself or one of its own."""
        slot = self._memory.engine.find_terminal(terminal_number)
        if slot == NONE:
            return False
        if self._caller.role == access_pb2.ROLE_TERMINAL:
            return terminal_number.hex() == self._caller.name
        if self._caller.role == access_pb2.ROLE_ACQUIRER:
            operator_id = self._memory.account_operators[self._memory.engine.terminal(slot)["account"]]
            return bool(operator_id == self._caller.name)
        return True

    def _holder(self, item: pb.CodeTap, code: bytes | RideCode) -> tuple[ECard, bytes] | Result:
        """Whose a new code is: the e-card and the device; the card's own state is asked by the tap that follows."""
        local_us = _local_s(item) * 1_000_000
        if not self._stored and abs(local_us - self._time_us) > limits.CODE_CLOCK_S * 1_000_000:
            return Result.CLOCK_OFF
        if local_us > self._time_us + limits.CLOCK_AHEAD_S * 1_000_000:
            return Result.CLOCK_OFF
        if local_us < self._time_us - (limits.CODE_USES_KEPT_S - limits.CLOCK_AHEAD_S) * 1_000_000:
            return Result.CODE_EXPIRED  # so old that its use might have been forgotten
        if isinstance(code, bytes):
            digest = _digest(self._provider, code)
            value = None if digest is None else self._memory.documents.get(DocumentKind.CODE, KEPT + digest)
            if value is None:
                return Result.CODE_UNKNOWN
            kept = documents.CodeDocument.FromString(value)
            if self._time_us >= kept.expires_time_us:
                return Result.CODE_EXPIRED
            device_id, made_us, card_slot = kept.device_id, self._time_us, kept.card_slot
        else:
            slot = self._memory.engine.find_card(code.part.card_number)
            if slot == NONE:
                return Result.E_CARD_UNKNOWN
            device_id, made_us = code.part.custom, code.generated_s * 1_000_000
            card_slot = card_links.card_of(self._memory, slot)
        device = e_cards.find_device(self._memory, device_id)
        e_card = self.e_cards.get(card_slot) or e_cards.e_card_of(self._memory, card_slot)
        if e_card is None:
            return Result.E_CARD_UNKNOWN
        if device is None or device.card_slot != card_slot:
            return Result.DEVICE_UNKNOWN
        if isinstance(code, RideCode) and device.public_key != code.part.user_key:
            return Result.DEVICE_PROOF_WRONG  # the device was bound anew since, with another key
        # A code that was made before its device was revoked, and given a ride, is honoured when it is uploaded.
        ends = (
            (device.revoked_time_us, Result.DEVICE_REVOKED),
            (e_card.document.cancelled_time_us, Result.E_CARD_CANCELLED),
        )
        for ended_us, result in ends:
            if ended_us and (not self._stored or made_us >= ended_us):
                return result
        return e_card, device_id

    def _take(self, item: pb.CodeTap, item_digest: bytes, digest: bytes, e_card: ECard, device_id: bytes) -> Reserved | Result:
        slot = self._memory.engine.card(e_card.slot)
        try:
            key = self._provider.newest(Purpose.TAC, slot["issuer_id"])
        except KeyUnknown:
            return Result.UNKNOWN_KEY
        atc = max(e_card.document.atc_next, int(slot["atc_next"]), 1)
        if atc > 0xFFFF:
            return Result.CARD_EXPIRED  # it has counted as far as a card can
        e_card.document.atc_next = atc + 1
        self.e_cards[e_card.card_slot] = e_card
        self.uses[digest] = used = documents.CodeUseDocument(
            item_digest=item_digest, atc=atc, key_version=key.key_version, key_index=key.key_index, e_card_slot=e_card.slot,
            time_us=self._time_us, device_id=device_id,
        )  # fmt: skip
        return self._tap(item, used)

    def _tap(self, item: pb.CodeTap, used: documents.CodeUseDocument) -> Reserved:
        card = self._memory.engine.card(used.e_card_slot)
        tap = tap_service_pb2.Tap(
            card_number=card["card_number"], issuer_id=card["issuer_id"], profile=tap_service_pb2.PROFILE_ACCOUNT, algorithm_id=4,
            key_version=used.key_version, key_index=used.key_index, transaction_type=item.transaction_type or PURCHASE,
            amount_fen=item.amount_fen, amount_due_fen=item.amount_due_fen, atc=used.atc, terminal_number=item.terminal_number,
            terminal_sequence=item.terminal_sequence, local_time=item.local_time, kind=item.kind, line=item.line, stop=item.stop,
            direction=item.direction, city=item.city, industry=item.industry,
        )  # fmt: skip
        return Reserved(tap, KeyReference(Purpose.TAC, used.key_version, used.key_index, card["issuer_id"]))


def _bcd(value: int, size: int) -> bytes:
    return bytes.fromhex(f"{value:0{2 * size}d}")


def _mac_message(tap: tap_service_pb2.Tap) -> bytes:
    """The 32 bytes that profile 2's MAC covers (profile.md)."""
    date, time = divmod(tap.local_time, 1_000_000)
    return b"".join(
        (
            tap.amount_fen.to_bytes(4, "big"), bytes([tap.transaction_type]), tap.terminal_number,
            tap.terminal_sequence.to_bytes(4, "big"), _bcd(date, 4), _bcd(time, 3), tap.atc.to_bytes(2, "big"), bytes([tap.kind]),
            tap.line.to_bytes(4, "big"), tap.stop.to_bytes(3, "big"),
        )
    )  # fmt: skip


"""By issuer, key version and key index: over how many levels a card's key is derived (profile.md, "Keys")."""


def prove(provider: KeyProvider, reserved: Sequence[Reserved]) -> None:
    """Set the MACs of taps, as the e-card's chip would have made them; any thread. A tap whose key is gone gets zeros: the engine
    says that it does not know the key before it looks at a MAC."""
    by_key: dict[KeyReference, list[tap_service_pb2.Tap]] = {}
    for each in reserved:
        by_key.setdefault(each.key, []).append(each.tap)
    for key, taps in by_key.items():
        items = []
        for tap in taps:
            atc = tap.atc.to_bytes(2, "big")
            session = bytes(6) + atc + bytes(6) + bytes(byte ^ 0xFF for byte in atc)
            items.append((e_cards.card_serial(tap.card_number), session, _mac_message(tap)))
        try:
            issuer = [key.issuer_id] if provider.levels(key) == 2 else []
            macs = provider.mac_many(key, [([*issuer, serial], session, message) for serial, session, message in items])
        except KeyUnknown:
            macs = [bytes(4)] * len(taps)
        for tap, mac in zip(taps, macs, strict=True):
            tap.mac = mac[:4]


def check_items(items: Sequence[pb.CodeTap]) -> None:
    """Raises InvalidRequest."""
    if not 1 <= len(items) <= limits.CODE_ITEMS_MAX:
        raise InvalidRequest("taps", f"1 to {limits.CODE_ITEMS_MAX} are wanted")
