"""Who somebody is who is there: a card on a reader, a code on a phone, or a number and a name; and whose a code is.

A card on a reader answers a challenge of 8 random bytes. Its MAC (*chosen*) is GB/T 15852.1 algorithm 1, padding method 2,
leftmost 8 bytes, over 24 bytes: "IDENTITY" in ASCII ‖ challenge 8 ‖ card serial 8, under SM4(DTK, challenge ‖ ¬challenge): the
card's TAC key, diversified once more by the challenge. No tap is made under that key: a TAC is made under DTK itself, and the
session key of profile 2 comes from session data with zeros where this has the complement of zeros.

Whoever gets no for an answer learns nothing else: an unknown number, another name, a wrong MAC, a card that is denied all answer
the same, with one event in the journal each. Wrong tries are counted (core/access/lockout.py, core/access/proofs.py)."""

import hmac
import secrets
from typing import Any, Final, NamedTuple

from yikatong.core import limits
from yikatong.core.access import audit, lockout
from yikatong.core.access.callers import Caller
from yikatong.core.cards import card_state
from yikatong.core.change import Change
from yikatong.core.commands import CARD_NUMBER_WANTED
from yikatong.core.errors import InvalidRequest
from yikatong.core.identity.identity_expiry import put_expiry
from yikatong.core.identity.login import SECOND_US, Rules, check_request_id, newest_key, request_digest
from yikatong.core.identity.people import Proved, show
from yikatong.core.identity.visibility import check_fields, check_purpose, shown
from yikatong.core.keys.provider import KeyReference, KeyUnknown, Purpose
from yikatong.core.memory import Memory
from yikatong.core.types import NONE, DocumentKind, Result, wire
from yikatong.ext.engine import is_card_number
from yikatong.v1 import identity_documents_pb2
from yikatong.v1 import identity_service_pb2 as protos

E_CARD: Final = "e-card"
CHALLENGE_BYTES: Final = 8
MAC_BYTES: Final = 8
ANSWER_KEPT_S: Final = 300
_IDENTITY: Final = b"IDENTITY"
_ANSWER, _CHALLENGE = b"a", b"c"

Answer = identity_documents_pb2.IdentityAnswer


class Found(NamedTuple):
    """Whom a proof or a code led to: who and by which card (NONE: by none), or why to nobody."""

    result: Result
    source: str = ""
    person_id: bytes = b""
    card_slot: int = NONE
    proved: Proved | None = None


class Shown(NamedTuple):
    """The outcome for the caller: `person` is empty unless `result` is ACCEPTED."""

    result: Result
    duplicate: bool
    sequence: int
    source: str
    person: protos.ShownPerson


# ---- the card on a reader ----


def card_message(challenge: bytes, card_number: str) -> bytes:
    """What a card's MAC is over, 24 bytes."""
    return _IDENTITY + challenge + card_serial(card_number)


def card_serial(card_number: str) -> bytes:
    """The last 16 digits of a card number as packed BCD: 8 bytes (profile.md, "Keys")."""
    return bytes.fromhex(card_number[-16:].zfill(16))


def start_card_check(
    rules: Rules, memory: Memory, request: protos.StartCardCheckRequest, time_us: int, caller: Caller
) -> protos.StartCardCheckResponse:
    """IdentityService.StartCardCheck."""
    challenge = secrets.token_bytes(CHALLENGE_BYTES)
    expires_us = time_us + limits.CHALLENGE_S * SECOND_US
    change = Change(memory, time_us)
    change.put(DocumentKind.IDENTITY_ANSWER, _CHALLENGE + challenge, expires_us.to_bytes(8, "big") + str(caller).encode())
    put_expiry(change, expires_us, DocumentKind.IDENTITY_ANSWER, _CHALLENGE + challenge)
    change.commit("card-check-started")
    return protos.StartCardCheckResponse(challenge=challenge, expires_time_us=expires_us)


def _take_challenge(memory: Memory, change: Change, challenge: bytes, caller: Caller) -> bool:
    """Whether this was given to the caller and is still good; whatever comes of it, it is used with the change."""
    value = memory.documents.get(DocumentKind.IDENTITY_ANSWER, _CHALLENGE + challenge)
    if value is None or value[8:] != str(caller).encode():
        return False
    expires_us = int.from_bytes(value[:8], "big")
    change.delete(DocumentKind.IDENTITY_ANSWER, _CHALLENGE + challenge)
    change.delete(DocumentKind.IDENTITY_EXPIRY, value[:8] + bytes([DocumentKind.IDENTITY_ANSWER]) + _CHALLENGE + challenge)
    return change.time_us < expires_us


def _by_card(rules: Rules, memory: Memory, change: Change, card: protos.PresentCard, caller: Caller) -> Found:
    fresh = _take_challenge(memory, change, card.challenge, caller)
    slot = memory.engine.find_card(card.card_number)
    issuer = memory.engine.card(slot)["issuer_id"] if slot != NONE else bytes(8)
    key = KeyReference(Purpose.TAC, card.key_version, card.key_index, issuer)
    serial = card_serial(card.card_number)
    factors = (issuer, serial, card.challenge) if rules.levels.get(key, 2) == 2 else (serial, card.challenge)
    try:
        mac = rules.provider.mac(key, factors, b"", card_message(card.challenge, card.card_number))[:MAC_BYTES]
    except KeyUnknown:
        return Found(Result.UNKNOWN_KEY)
    if not hmac.compare_digest(mac, card.mac) or slot == NONE:
        return Found(Result.MAC_MISMATCH)
    if not fresh:
        return Found(Result.CHALLENGE_UNKNOWN)
    person_id = rules.people.person_of_card(memory, slot)
    return Found(Result.ACCEPTED, "card", person_id, slot) if person_id else Found(Result.PERSON_UNKNOWN)


# ---- other proofs ----


def _by_number_and_name(rules: Rules, memory: Memory, asked: protos.NumberAndName, time_us: int) -> Found:
    person_id = rules.people.find(memory, asked.citizen_number)
    person = rules.people.show(memory, person_id) if person_id else None
    # Somebody unknown is compared with as well, as nobody's name.
    right = hmac.compare_digest((person.name if person else "\0").encode(), asked.name.encode())
    if person_id is None or person is None or not right:
        return Found(Result.PERSON_UNKNOWN, person_id=person_id or b"")
    return Found(Result.ACCEPTED, "number", person_id, rules.people.card_of_person(memory, person_id, time_us))


def by_code(rules: Rules, memory: Memory, code: str, request_id: bytes, time_us: int) -> Found | None:
    """Whom a code of ours leads to; None where it is none of ours."""
    proved = rules.people.resolve(memory, code, request_id, time_us)
    if proved is None:
        return None
    if isinstance(proved, Result):
        return Found(proved)
    if not proved.person_id:
        return Found(Result.PERSON_UNKNOWN, E_CARD, proved=proved)
    return Found(Result.ACCEPTED, E_CARD, proved.person_id, proved.card_slot, proved)


def by_citizen_number(rules: Rules, memory: Memory, source: str, citizen_number: str, time_us: int) -> Found:
    """Whom a foreign code led to whose service names a citizen number."""
    person_id = rules.people.find(memory, citizen_number)
    if person_id is None:
        return Found(Result.PERSON_UNKNOWN, source)
    return Found(Result.ACCEPTED, source, person_id, rules.people.card_of_person(memory, person_id, time_us))


# ---- what is answered, and remembered ----


def answered(rules: Rules, memory: Memory, request: Any, time_us: int, caller: Caller) -> Shown | None:
    """What this request id got before; the person is looked up anew, so what was erased meanwhile is not shown."""
    check_request_id(request.request_id)
    value = memory.documents.get(DocumentKind.IDENTITY_ANSWER, _ANSWER + request.request_id)
    if value is None:
        return None
    answer = Answer.FromString(value)
    key = newest_key(rules.provider)._replace(key_version=answer.key_version)
    if not hmac.compare_digest(answer.request_digest, _digest(rules, key, request, caller)):
        return Shown(Result.CONFLICT, False, 0, "", protos.ShownPerson())
    person = protos.ShownPerson()
    if answer.result == Result.ACCEPTED:
        person = show(rules.people, memory, answer.person_id, answer.card_slot, tuple(answer.fields), time_us)
    return Shown(Result(answer.result), True, answer.sequence, answer.source, person)


def _digest(rules: Rules, key: KeyReference, request: Any, caller: Caller) -> bytes:
    return request_digest(rules.provider, key, request) + str(caller).encode()


def conclude(rules: Rules, memory: Memory, change: Change, request: Any, found: Found, caller: Caller, action: str) -> Shown:
    """Note whom somebody was led to and what is shown of them, remember the answer, and give it. A card that may not be used
    leads to nobody."""
    result = found.result
    if result is Result.ACCEPTED and found.card_slot != NONE:
        result = card_state.refusal(memory, found.card_slot, change.time_us) or result
    fields = shown(request.fields, rules.visibility.allowed(caller, request.purpose)) if result is Result.ACCEPTED else ()
    if found.proved is not None:
        found.proved.use(change)
    if found.person_id:
        audit.note(
            change, caller, action if result is Result.ACCEPTED else f"{action} refused", found.person_id,
            purpose=request.purpose, legal_basis=request.legal_basis, fields=fields,
        )  # fmt: skip
    key = newest_key(rules.provider)
    answer = Answer(
        request_digest=_digest(rules, key, request, caller),
        key_version=key.key_version,
        result=result,
        source=found.source,
        person_id=found.person_id,
        card_slot=found.card_slot,
        fields=fields,
        sequence=change.sequence,
        due_time_us=change.time_us + ANSWER_KEPT_S * SECOND_US,
    )
    place = _ANSWER + request.request_id
    change.put(DocumentKind.IDENTITY_ANSWER, place, answer.SerializeToString(deterministic=True))
    put_expiry(change, answer.due_time_us, DocumentKind.IDENTITY_ANSWER, place)
    person = show(rules.people, memory, found.person_id, found.card_slot, fields, change.time_us)
    return Shown(result, False, change.commit("identity-answered"), found.source, person)


# ---- rpcs ----


def check_resolve(request: protos.ResolveCodeRequest) -> None:
    """Raises InvalidRequest."""
    check_request_id(request.request_id)
    _check_code("code", request.code)
    check_fields(request.fields)
    check_purpose(request.purpose, request.legal_basis)


def _check_code(field: str, code: str) -> None:
    if not 1 <= len(code) <= limits.CODE_CHARACTERS_MAX or not code.isprintable():
        raise InvalidRequest(field, f"1 to {limits.CODE_CHARACTERS_MAX} printable characters are wanted")


def resolve_own(
    rules: Rules, memory: Memory, request: protos.ResolveCodeRequest, time_us: int, caller: Caller
) -> protos.ResolveCodeResponse | None:
    """IdentityService.ResolveCode for what was answered before and for codes of ours; None for another issuer's code."""
    before = answered(rules, memory, request, time_us, caller)
    if before is not None:
        return _resolved(before)
    found = by_code(rules, memory, request.code, request.request_id, time_us)
    return None if found is None else resolved(rules, memory, request, found, time_us, caller)


def resolved(
    rules: Rules, memory: Memory, request: protos.ResolveCodeRequest, found: Found, time_us: int, caller: Caller
) -> protos.ResolveCodeResponse:
    """The same once it is known whom the code leads to."""
    before = answered(rules, memory, request, time_us, caller)
    if before is not None:  # it came twice at a time
        return _resolved(before)
    change = Change(memory, time_us)
    return _resolved(conclude(rules, memory, change, request, found, caller, "IdentityService.ResolveCode"))


def _resolved(shown: Shown) -> protos.ResolveCodeResponse:
    return protos.ResolveCodeResponse(
        result=wire(shown.result),
        duplicate=shown.duplicate,
        sequence=shown.sequence,
        source=shown.source,
        person=shown.person,
    )


def check_verify(request: protos.VerifyIdentityRequest) -> None:
    """Raises InvalidRequest naming the field."""
    check_request_id(request.request_id)
    check_fields(request.fields)
    check_purpose(request.purpose, request.legal_basis)
    match request.WhichOneof("proof"):
        case "card":
            if not is_card_number(request.card.card_number):
                raise InvalidRequest("card.card_number", CARD_NUMBER_WANTED)
            for name, size in (("challenge", CHALLENGE_BYTES), ("mac", MAC_BYTES)):
                if len(getattr(request.card, name)) != size:
                    raise InvalidRequest(f"card.{name}", f"{size} bytes are wanted")
            for name in ("key_version", "key_index"):
                if getattr(request.card, name) > 255:
                    raise InvalidRequest(f"card.{name}", "0 to 255 is wanted")
        case "code":
            _check_code("code", request.code)
        case "number_and_name":
            for name in ("citizen_number", "name"):
                text = getattr(request.number_and_name, name)
                if not 1 <= len(text) <= limits.PURPOSE_CHARACTERS_MAX or not text.isprintable():
                    raise InvalidRequest(f"number_and_name.{name}", "is empty or too long")
        case _:
            raise InvalidRequest("proof", "card, code or number_and_name is wanted")


def verify_own(
    rules: Rules, memory: Memory, request: protos.VerifyIdentityRequest, time_us: int, caller: Caller
) -> protos.VerifyIdentityResponse | None:
    """IdentityService.VerifyIdentity; None for another issuer's code."""
    before = answered(rules, memory, request, time_us, caller)
    if before is not None:
        return _verified(before)
    change = Change(memory, time_us)
    found: Found | None
    match request.WhichOneof("proof"):
        case "card":
            found = _by_card(rules, memory, change, request.card, caller)
        case "number_and_name":
            found = _by_number_and_name(rules, memory, request.number_and_name, time_us)
        case _:
            found = by_code(rules, memory, request.code, request.request_id, time_us)
    return None if found is None else _verify(rules, memory, change, request, found, caller)


def verified(
    rules: Rules, memory: Memory, request: protos.VerifyIdentityRequest, found: Found, time_us: int, caller: Caller
) -> protos.VerifyIdentityResponse:
    """The same once it is known whom a foreign code leads to."""
    before = answered(rules, memory, request, time_us, caller)
    if before is not None:
        return _verified(before)
    return _verify(rules, memory, Change(memory, time_us), request, found, caller)


def _verify(
    rules: Rules, memory: Memory, change: Change, request: protos.VerifyIdentityRequest, found: Found, caller: Caller
) -> protos.VerifyIdentityResponse:
    good = found.result is Result.ACCEPTED and (
        found.card_slot == NONE or card_state.refusal(memory, found.card_slot, change.time_us) is None
    )
    # Who is locked out must not learn whether a guess was right.
    if found.person_id:
        person = lockout.of_person(found.person_id)
        if lockout.check(memory, person, change.time_us) is not None:
            good = False
        elif good:
            lockout.right(change, memory, person)
        else:
            lockout.wrong(change, memory, person, change.time_us)
    if not good:
        found = found._replace(result=Result.IDENTITY_NOT_VERIFIED, source="", card_slot=NONE)
    return _verified(conclude(rules, memory, change, request, found, caller, "IdentityService.VerifyIdentity"))


def _verified(shown: Shown) -> protos.VerifyIdentityResponse:
    return protos.VerifyIdentityResponse(
        result=wire(shown.result),
        duplicate=shown.duplicate,
        sequence=shown.sequence,
        verified=shown.result is Result.ACCEPTED,
        person=shown.person,
    )
