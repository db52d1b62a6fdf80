"""Merchants: registered by their acquirers, each with a payable in the ledger, "acquirer:<acquirer id>:<merchant id>".

Commands, as core/commands.py describes them."""

import re
from typing import Final

from yikatong.core.change import Change
from yikatong.core.commands import check_items
from yikatong.core.errors import InvalidRequest, NotFound
from yikatong.core.memory import Memory
from yikatong.core.rules.purse_rules import is_category
from yikatong.core.types import DocumentKind, Result, wire
from yikatong.v1 import merchant_service_pb2

ACQUIRER_PREFIX: Final = "acquirer:"
PARTY_ID_WANTED: Final = "1 to 32 letters, digits, dots, hyphens and underscores are wanted"
CATEGORY_WANTED: Final = "a merchant category code of 4 digits is wanted"
_PARTY_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,32}")
PARTICIPANT_BYTES_MAX: Final = 64

Merchant = merchant_service_pb2.Merchant


def is_party_id(text: str) -> bool:
    """Whether this can be the id of an acquirer, merchant or funder: it is part of account names."""
    return _PARTY_ID.fullmatch(text) is not None


def account_name(acquirer_id: str, merchant_id: str) -> str:
    """Name of a merchant's payable."""
    return f"{ACQUIRER_PREFIX}{acquirer_id}:{merchant_id}"


def _key(acquirer_id: str, merchant_id: str) -> bytes:
    return f"{acquirer_id}:{merchant_id}".encode()


def find_merchant(memory: Memory, acquirer_id: str, merchant_id: str) -> Merchant | None:
    """What was registered."""
    value = memory.documents.get(DocumentKind.MERCHANT, _key(acquirer_id, merchant_id))
    return None if value is None else Merchant.FromString(value)


def participant_of(merchant: Merchant) -> str:
    """Who is settled with for a merchant."""
    return merchant.participant or f"{ACQUIRER_PREFIX}{merchant.acquirer_id}"


def _malformed(merchant: Merchant) -> tuple[Result, str] | None:
    if not is_party_id(merchant.acquirer_id):
        return Result.MALFORMED_OPERATOR, "acquirer_id"
    if not is_party_id(merchant.merchant_id):
        return Result.MALFORMED_OPERATOR, "merchant_id"
    if not is_category(merchant.merchant_category):
        return Result.MALFORMED_KIND, "merchant_category"
    if len(merchant.participant.encode()) > PARTICIPANT_BYTES_MAX or not (merchant.participant or "-").isprintable():
        return Result.MALFORMED_OPERATOR, "participant"
    return None


def register_merchants(
    memory: Memory, request: merchant_service_pb2.RegisterMerchantsRequest, time_us: int
) -> merchant_service_pb2.RegisterMerchantsResponse:
    """MerchantService.RegisterMerchants: all new ones with one change."""
    check_items("merchants", request.merchants)
    response = merchant_service_pb2.RegisterMerchantsResponse()
    change = Change(memory, time_us)
    added: dict[bytes, Merchant] = {}
    for merchant in request.merchants:
        registration = response.registrations.add()
        if malformed := _malformed(merchant):
            registration.result, registration.invalid_field = wire(malformed[0]), malformed[1]
            continue
        key = _key(merchant.acquirer_id, merchant.merchant_id)
        kept = Merchant(
            acquirer_id=merchant.acquirer_id,
            merchant_id=merchant.merchant_id,
            merchant_category=merchant.merchant_category,
            participant=merchant.participant,
        )
        known = added.get(key) or find_merchant(memory, merchant.acquirer_id, merchant.merchant_id)
        if known is not None:
            registration.result = wire(Result.ACCEPTED if known == kept else Result.CONFLICT)
            registration.duplicate = known == kept
            continue
        added[key] = kept
        change.open_account(account_name(merchant.acquirer_id, merchant.merchant_id))
        change.put(DocumentKind.MERCHANT, key, kept.SerializeToString(deterministic=True))
        registration.result = wire(Result.ACCEPTED)
        registration.sequence = change.sequence
    if added:
        change.commit("merchants-registered")
    return response


def get_merchant(
    memory: Memory, request: merchant_service_pb2.GetMerchantRequest, _: int
) -> merchant_service_pb2.GetMerchantResponse:
    """MerchantService.GetMerchant."""
    for field in ("acquirer_id", "merchant_id"):
        if not is_party_id(getattr(request, field)):
            raise InvalidRequest(field, PARTY_ID_WANTED)
    merchant = find_merchant(memory, request.acquirer_id, request.merchant_id)
    if merchant is None:
        raise NotFound("merchant", f"{request.merchant_id} of acquirer {request.acquirer_id}")
    name = account_name(merchant.acquirer_id, merchant.merchant_id)
    account = memory.account(name)
    assert account is not None
    return merchant_service_pb2.GetMerchantResponse(
        merchant=merchant, account_name=name, payable_fen=memory.engine.balance_fen(account)
    )
