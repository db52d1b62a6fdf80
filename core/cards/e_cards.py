"""E-cards: the electronic twin of a card, and the devices that carry it.

An e-card is a second card slot in the engine, with a number of its own, whose twin is its card: both pay from one account, and
are denied, indebted and entitled by the same records, so no state has one live and the other dead. Beside the slot stands a
document (ECardDocument) under the card's slot.

A device is bound by an activation secret that turns into the device's key. Neither is kept: both are MACs that the key provider
makes again from what is kept, under its DEVICE key:

    first-level code    mac(e-card serial; "yikatong e-card" ‖ card slot ‖ issue ‖ request id)
    activation secret   two of mac(e-card serial; "yikatong secret" ‖ n ‖ activation id), n = 1, 2
    device key          mac(e-card serial, device id in two halves; "yikatong device key" … ‖ activation id)

What a device asks for it proves by its key (device_proof.py): the proof holds its clock's time, which may be off a little, and a
counter, which only grows. Commands are as core/commands.py describes them; those that need keys or rules take them first."""

import hmac
from typing import Final, NamedTuple

from yikatong.core import limits
from yikatong.core.cards import device_proof
from yikatong.core.cards.card_links import card_of
from yikatong.core.cards.card_state import refusal
from yikatong.core.change import Change, answered
from yikatong.core.commands import CARD_NUMBER_WANTED
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.keys.provider import KeyProvider, KeyReference, KeyRetired, KeyUnknown, Purpose
from yikatong.core.memory import Memory
from yikatong.core.types import NONE, DocumentKind, Result, wire
from yikatong.ext.engine import is_card_number
from yikatong.v1 import card_service_pb2
from yikatong.v1 import e_card_documents_pb2 as documents
from yikatong.v1 import e_card_service_pb2 as pb

CODE_BYTES: Final = 16
PUBLIC_KEY_BYTES: Final = 33
NUMBER_PREFIX: Final = "9156"  # ISO/IEC 7812: 9 and the country, for the country's own use; no bank's or transit's chip has it
ACTIVE, REVOKED = pb.DEVICE_STATE_ACTIVE, pb.DEVICE_STATE_REVOKED
ISSUED, CANCELLED = pb.E_CARD_STATE_ISSUED, pb.E_CARD_STATE_CANCELLED


class ECard(NamedTuple):
    """An e-card, live or cancelled. Slots are the engine's."""

    card_slot: int
    slot: int
    number: str
    document: documents.ECardDocument

    @property
    def cancelled(self) -> bool:
        return self.document.cancelled_time_us != 0


class Device(NamedTuple):
    """A device whose proof was right. `counter` is the proof's: put it with `use_proof` where something is changed."""

    device_id: bytes
    e_card: ECard
    document: documents.DeviceDocument
    counter: int


# ---- documents ----


def _slot_key(slot: int) -> bytes:
    return slot.to_bytes(4, "big")


def _put(change: Change, e_card: ECard) -> None:
    change.put(DocumentKind.E_CARD, _slot_key(e_card.card_slot), e_card.document.SerializeToString(deterministic=True))


def _put_device(change: Change, device_id: bytes, document: documents.DeviceDocument) -> None:
    change.put(DocumentKind.DEVICE, device_id, document.SerializeToString(deterministic=True))


def put(change: Change, e_card: ECard) -> None:
    """Put an e-card's document in place of the one before, with a change."""
    _put(change, e_card)


def e_card_of(memory: Memory, card_slot: int) -> ECard | None:
    """The e-card of a card (or of an e-card: itself), cancelled ones too; None where there never was one."""
    card_slot = card_of(memory, card_slot)
    value = memory.documents.get(DocumentKind.E_CARD, _slot_key(card_slot))
    if value is None:
        return None
    document = documents.ECardDocument.FromString(value)
    return ECard(card_slot, document.e_card_slot, str(memory.engine.card(document.e_card_slot)["card_number"]), document)


def find_code(memory: Memory, code: bytes) -> ECard | None:
    """The e-card with a first-level code that is its newest one."""
    value = memory.documents.get(DocumentKind.E_CARD_INDEX, code) if len(code) == CODE_BYTES else None
    e_card = None if value is None else e_card_of(memory, int.from_bytes(value, "big"))
    return e_card if e_card is not None and e_card.document.code == code else None


def find_device(memory: Memory, device_id: bytes) -> documents.DeviceDocument | None:
    """A device, revoked ones too."""
    if len(device_id) != device_proof.DEVICE_ID_BYTES:
        return None
    value = memory.documents.get(DocumentKind.DEVICE, device_id)
    return None if value is None else documents.DeviceDocument.FromString(value)


# ---- what the provider makes ----


def card_serial(number: str) -> bytes:
    """The last 16 digits of a card number, left-padded with zeros, as packed BCD: 8 bytes (profile.md, "Keys")."""
    return bytes.fromhex(number[-16:].zfill(16))


def _label(text: str, rest: bytes) -> bytes:
    """A message of 64 bytes: kinds of message are told apart by their first 24."""
    return (text.encode().ljust(24, b"\0") + rest).ljust(64, b"\0")


def _reference(activation: documents.ActivationDocument) -> KeyReference:
    return KeyReference(Purpose.DEVICE, activation.key_version, activation.key_index)


def _secret(provider: KeyProvider, number: str, activation: documents.ActivationDocument) -> bytes:
    factors = [card_serial(number)]
    return b"".join(
        provider.mac(_reference(activation), factors, b"", _label("yikatong secret", bytes([n]) + activation.activation_id))
        for n in (1, 2)
    )


def _device_key(provider: KeyProvider, number: str, device_id: bytes, activation: documents.ActivationDocument) -> bytes:
    factors = [card_serial(number), device_id[:8], device_id[8:]]
    return provider.mac(_reference(activation), factors, b"", _label("yikatong device key", activation.activation_id))


# ---- devices prove themselves ----


def check_device(
    memory: Memory, provider: KeyProvider, device_id: bytes, message: bytes, proof: bytes, time_us: int
) -> Device | Result:
    """Who made a proof (32 bytes, device_proof.make_proof) of a message (device_proof.message_of), when the device is good, its
    proof right and new, its clock not off by more than DEVICE_CLOCK_S, and its card may be used; or why not, in this order:
    DEVICE_UNKNOWN, KEY_RETIRED or UNKNOWN_KEY (it must be bound anew), DEVICE_PROOF_WRONG, DEVICE_REVOKED, E_CARD_CANCELLED,
    CLOCK_OFF, DEVICE_PROOF_WRONG (a proof that was used), and what card_state.refusal says. Changes nothing: what is done on the
    strength of it puts `use_proof` with its change."""
    document = find_device(memory, device_id)
    e_card = None if document is None else e_card_of(memory, document.card_slot)
    if document is None or e_card is None:
        return Result.DEVICE_UNKNOWN
    read = device_proof.read_proof(proof)
    try:
        key = _device_key(provider, e_card.number, device_id, document.activation)
    except KeyUnknown as error:
        return Result.KEY_RETIRED if isinstance(error, KeyRetired) else Result.UNKNOWN_KEY
    if read is None or not device_proof.is_right(key, device_id, message, read):
        return Result.DEVICE_PROOF_WRONG
    if document.revoked_time_us:
        return Result.DEVICE_REVOKED
    if e_card.cancelled:
        return Result.E_CARD_CANCELLED
    if abs(read.time_us - time_us) > limits.DEVICE_CLOCK_S * 1_000_000:
        return Result.CLOCK_OFF
    if read.counter <= document.counter:
        return Result.DEVICE_PROOF_WRONG
    return refusal(memory, e_card.card_slot, time_us) or Device(device_id, e_card, document, read.counter)


def use_proof(change: Change, device: Device) -> None:
    """Put with a change that a device's proof is used: neither it nor an older one is taken again."""
    device.document.counter = device.counter
    _put_device(change, device.device_id, device.document)


def usable(memory: Memory, device_id: bytes, time_us: int) -> ECard | Result:
    """The e-card of a device that is good now; or why it is not."""
    document = find_device(memory, device_id)
    e_card = None if document is None else e_card_of(memory, document.card_slot)
    if document is None or e_card is None:
        return Result.DEVICE_UNKNOWN
    if document.revoked_time_us:
        return Result.DEVICE_REVOKED
    if e_card.cancelled:
        return Result.E_CARD_CANCELLED
    return refusal(memory, e_card.card_slot, time_us) or e_card


# ---- rpcs: e-cards ----


def _check_request(request_id: bytes, card_number: str) -> None:
    if len(request_id) != 16:
        raise InvalidRequest("request_id", "16 bytes are wanted")
    if not is_card_number(card_number):
        raise InvalidRequest("card_number", CARD_NUMBER_WANTED)


def _message(memory: Memory, e_card: ECard, time_us: int) -> pb.ECard:
    document = e_card.document
    return pb.ECard(
        card_number=memory.engine.card(e_card.card_slot)["card_number"],
        e_card_number=e_card.number,
        code=document.code,
        state=wire(CANCELLED if e_card.cancelled else ISSUED),
        issued_time_us=document.issued_time_us,
        cancelled_time_us=document.cancelled_time_us,
        refusal=wire(refusal(memory, e_card.card_slot, time_us) or 0),
    )


def _luhn(digits: str) -> str:
    """ISO/IEC 7812-1 annex B: the check digit."""
    doubled = [int(digit) * (2 - at % 2) for at, digit in enumerate(reversed(digits))]
    return str(-sum(each // 10 + each % 10 for each in doubled) % 10)


def _new_number(memory: Memory) -> str:
    """The number of the next e-card: its slot, which is nobody else's, in 19 digits with a check digit."""
    at = int(memory.engine.counts["cards"])
    while True:
        digits = f"{NUMBER_PREFIX}{at:014d}"
        number = digits + _luhn(digits)
        if memory.engine.find_card(number) == NONE:
            return number
        at += 10**10  # somebody registered a card of that number


def _add_slot(memory: Memory, card_slot: int, number: str, time_us: int) -> int:
    """The e-card's slot in the engine: its card's twin."""
    card = memory.engine.card(card_slot)
    kept = card_service_pb2.Card(card_number=number, issuer_id=card["issuer_id"], rider=card["rider"], expires=card["expires"])
    slot: int = memory.engine.add_card(
        kept.card_number, kept.issuer_id, kept.rider, kept.expires, time_us, kept.SerializeToString(deterministic=True),
        card["rider_until"], card["pass_number"], card["pass_until"], card_slot,
        card["rider_from"], card["rider_before_until"], card["riders_before"], card["before_days"],
    )  # fmt: skip
    return slot


def issue_e_card(provider: KeyProvider, memory: Memory, request: pb.IssueECardRequest, time_us: int) -> pb.IssueECardResponse:
    """ECardService.IssueECard."""
    _check_request(request.request_id, request.card_number)
    if (again := answered(memory, request, pb.IssueECardResponse)) is not None:
        return again
    response = pb.IssueECardResponse()
    card_slot = memory.engine.find_card(request.card_number)
    existing = None
    refused: Result | None = Result.UNKNOWN_CARD
    if card_slot != NONE:
        if card_of(memory, card_slot) != card_slot:
            raise InvalidRequest("card_number", "is that of an e-card")
        existing = e_card_of(memory, card_slot)
        refused = refusal(memory, card_slot, time_us)
        if refused is None and existing is not None and not existing.cancelled:
            refused = Result.E_CARD_EXISTS
    if refused is not None:
        response.result = wire(refused)
        return Change(memory, time_us).answer(request, response, "e-card-refused")
    slot = int(memory.engine.card(card_slot)["twin"])
    number = _new_number(memory) if slot == NONE else str(memory.engine.card(slot)["card_number"])
    document = existing.document if existing is not None else documents.ECardDocument()
    document.issue += 1
    said = _slot_key(card_slot) + document.issue.to_bytes(4, "big") + request.request_id
    code = provider.mac(provider.newest(Purpose.DEVICE), [card_serial(number)], b"", _label("yikatong e-card", said))
    if memory.documents.get(DocumentKind.E_CARD_INDEX, code) is not None:
        raise InvalidRequest("request_id", "another one is wanted")  # one in 2^128
    if slot == NONE:
        slot = _add_slot(memory, card_slot, number, time_us)
    document.e_card_slot = slot
    document.code, document.issued_time_us, document.cancelled_time_us = code, time_us, 0
    document.ClearField("activation")
    e_card = ECard(card_slot, slot, number, document)
    change = Change(memory, time_us)
    _put(change, e_card)
    for key in (code, _slot_key(slot)):
        change.put(DocumentKind.E_CARD_INDEX, key, _slot_key(card_slot))
    response.result = wire(Result.ACCEPTED)
    response.e_card.CopyFrom(_message(memory, e_card, time_us))
    return change.answer(request, response, "e-card-issued")


def get_e_card(memory: Memory, request: pb.GetECardRequest, time_us: int) -> pb.GetECardResponse:
    """ECardService.GetECard."""
    return pb.GetECardResponse(e_card=_message(memory, _e_card(memory, request.card_number), time_us))


def _e_card(memory: Memory, card_number: str) -> ECard:
    """Raises InvalidRequest and NotFound."""
    if not is_card_number(card_number):
        raise InvalidRequest("card_number", CARD_NUMBER_WANTED)
    slot = memory.engine.find_card(card_number)
    e_card = None if slot == NONE else e_card_of(memory, slot)
    if e_card is None:
        raise NotFound("e-card", f"of card {card_number}")
    return e_card


def _live(memory: Memory, card_number: str) -> ECard | Result:
    """The e-card of a card that may be used; or why there is none."""
    slot = memory.engine.find_card(card_number)
    if slot == NONE:
        return Result.UNKNOWN_CARD
    e_card = e_card_of(memory, slot)
    if e_card is None:
        return Result.E_CARD_UNKNOWN
    return Result.E_CARD_CANCELLED if e_card.cancelled else e_card


def cancel_e_card(memory: Memory, request: pb.CancelECardRequest, time_us: int) -> pb.CancelECardResponse:
    """ECardService.CancelECard."""
    _check_request(request.request_id, request.card_number)
    if (again := answered(memory, request, pb.CancelECardResponse)) is not None:
        return again
    change = Change(memory, time_us)
    e_card = _live(memory, request.card_number)
    if isinstance(e_card, Result):
        return change.answer(request, pb.CancelECardResponse(result=wire(e_card)), "e-card-refused")
    cancel(memory, change, e_card)
    return change.answer(request, pb.CancelECardResponse(result=wire(Result.ACCEPTED)), "e-card-cancelled")


def cancel(memory: Memory, change: Change, e_card: ECard) -> None:
    """End an e-card and all its devices with a change, as when its card is cancelled for good."""
    for device_id in e_card.document.device_ids:
        device = find_device(memory, device_id)
        if device is not None and not device.revoked_time_us:
            device.revoked_time_us = change.time_us
            _put_device(change, device_id, device)
    e_card.document.cancelled_time_us = change.time_us
    e_card.document.ClearField("activation")
    _put(change, e_card)


# ---- rpcs: devices ----


def start_activation(
    provider: KeyProvider, memory: Memory, request: pb.StartActivationRequest, time_us: int
) -> pb.StartActivationResponse:
    """ECardService.StartActivation."""
    _check_request(request.request_id, request.card_number)
    response = answered(memory, request, pb.StartActivationResponse)
    if response is None:
        change = Change(memory, time_us)
        response = pb.StartActivationResponse()
        found = _live(memory, request.card_number)
        refused = found if isinstance(found, Result) else refusal(memory, found.card_slot, time_us)
        if refused is not None or isinstance(found, Result):
            response.result = wire(refused or Result.E_CARD_UNKNOWN)
            return change.answer(request, response, "activation-refused")
        key = provider.newest(Purpose.DEVICE)
        expires_us = time_us + limits.ACTIVATION_S * 1_000_000
        activation = documents.ActivationDocument(
            activation_id=request.request_id, expires_time_us=expires_us, key_version=key.key_version, key_index=key.key_index
        )
        found.document.activation.CopyFrom(activation)
        _put(change, found)
        response.result, response.code, response.expires_time_us = wire(Result.ACCEPTED), found.document.code, expires_us
        response = change.answer(request, response, "activation-started")
    # The secret is no part of the answer that is kept: it is made anew as long as the activation is open.
    e_card = find_code(memory, response.code)
    if e_card is not None and e_card.document.activation.activation_id == request.request_id:
        response.activation_secret = _secret(provider, e_card.number, e_card.document.activation)
    return response


def activate_device(
    provider: KeyProvider, devices_max: int, memory: Memory, request: pb.ActivateDeviceRequest, time_us: int
) -> pb.ActivateDeviceResponse:
    """ECardService.ActivateDevice."""
    for field, size in (("code", CODE_BYTES), ("device_id", device_proof.DEVICE_ID_BYTES), ("proof", device_proof.MAC_BYTES)):
        if len(getattr(request, field)) != size:
            raise InvalidRequest(field, f"{size} bytes are wanted")
    if len(request.public_key) != PUBLIC_KEY_BYTES or request.public_key[0] not in (2, 3):
        raise InvalidRequest("public_key", f"a compressed point of {PUBLIC_KEY_BYTES} bytes is wanted")
    if len(request.name) > limits.DEVICE_NAME_CHARACTERS_MAX or (request.name and not request.name.isprintable()):
        raise InvalidRequest("name", f"up to {limits.DEVICE_NAME_CHARACTERS_MAX} printable characters are wanted")
    response = answered(memory, request, pb.ActivateDeviceResponse)
    if response is None:
        response = _activate(provider, devices_max, memory, request, time_us)
    if response.result == wire(Result.ACCEPTED):
        # The key is no part of the answer that is kept: it is wrapped anew as long as the device is good.
        device = find_device(memory, request.device_id)
        e_card = None if device is None else e_card_of(memory, device.card_slot)
        if device is not None and e_card is not None and not device.revoked_time_us and device.public_key == request.public_key:
            secret = _secret(provider, e_card.number, device.activation)
            key = _device_key(provider, e_card.number, request.device_id, device.activation)
            response.wrapped_device_key = device_proof.wrap(secret, request.device_id, key)
    return response


def _activate(
    provider: KeyProvider, devices_max: int, memory: Memory, request: pb.ActivateDeviceRequest, time_us: int
) -> pb.ActivateDeviceResponse:
    change = Change(memory, time_us)

    def refuse(result: Result) -> pb.ActivateDeviceResponse:
        return change.answer(request, pb.ActivateDeviceResponse(result=wire(result)), "activation-refused")

    e_card = find_code(memory, request.code)
    if e_card is None:
        return refuse(Result.E_CARD_UNKNOWN)
    if e_card.cancelled:
        return refuse(Result.E_CARD_CANCELLED)
    document = e_card.document
    if not document.HasField("activation") or time_us >= document.activation.expires_time_us:
        return refuse(Result.ACTIVATION_EXPIRED)
    activation = documents.ActivationDocument()
    activation.CopyFrom(document.activation)
    secret = _secret(provider, e_card.number, activation)
    proof = device_proof.activation_proof(secret, request.code, request.device_id, request.public_key)
    if not hmac.compare_digest(proof, request.proof):
        document.activation.tries += 1
        if document.activation.tries >= limits.ACTIVATION_TRIES_MAX:
            document.ClearField("activation")
        _put(change, e_card)
        return refuse(Result.ACTIVATION_WRONG)
    if (refused := refusal(memory, e_card.card_slot, time_us)) is not None:
        return refuse(refused)
    known = find_device(memory, request.device_id)
    if known is not None and (known.card_slot != e_card.card_slot or not known.revoked_time_us):
        return refuse(Result.CONFLICT)  # bound already, here or elsewhere
    devices = {device_id: find_device(memory, device_id) for device_id in document.device_ids}
    if sum(device is not None and not device.revoked_time_us for device in devices.values()) >= devices_max:
        return refuse(Result.DEVICES_MAX)
    document.ClearField("activation")
    kept = [device_id for device_id in document.device_ids if device_id != request.device_id]
    while len(kept) >= limits.DEVICES_KEPT_MAX:
        oldest = next(each for each in kept if (device := devices[each]) is None or device.revoked_time_us)
        change.delete(DocumentKind.DEVICE, oldest)
        kept.remove(oldest)
    document.device_ids[:] = [*kept, request.device_id]
    _put(change, e_card)
    activation.tries = 0
    device = documents.DeviceDocument(
        card_slot=e_card.card_slot, activation=activation, public_key=request.public_key, name=request.name,
        activated_time_us=time_us,
    )  # fmt: skip
    _put_device(change, request.device_id, device)
    return change.answer(request, pb.ActivateDeviceResponse(result=wire(Result.ACCEPTED)), "device-activated")


def revoke_device(memory: Memory, request: pb.RevokeDeviceRequest, time_us: int) -> pb.RevokeDeviceResponse:
    """ECardService.RevokeDevice."""
    _check_request(request.request_id, request.card_number)
    if (again := answered(memory, request, pb.RevokeDeviceResponse)) is not None:
        return again
    change = Change(memory, time_us)
    e_card = _e_card(memory, request.card_number)
    device = find_device(memory, request.device_id)
    if device is None or device.card_slot != e_card.card_slot:
        result = Result.DEVICE_UNKNOWN
    elif device.revoked_time_us:
        result = Result.DEVICE_REVOKED
    else:
        result = Result.ACCEPTED
        device.revoked_time_us = time_us
        _put_device(change, request.device_id, device)
    return change.answer(request, pb.RevokeDeviceResponse(result=wire(result)), "device-revoked")


def list_devices(memory: Memory, request: pb.ListDevicesRequest, _: int) -> pb.ListDevicesResponse:
    """ECardService.ListDevices."""
    response = pb.ListDevicesResponse()
    for device_id in _e_card(memory, request.card_number).document.device_ids:
        device = find_device(memory, device_id)
        if device is not None:
            response.devices.add(
                device_id=device_id,
                state=wire(REVOKED if device.revoked_time_us else ACTIVE),
                name=device.name,
                activated_time_us=device.activated_time_us,
                revoked_time_us=device.revoked_time_us,
            )
    return response
