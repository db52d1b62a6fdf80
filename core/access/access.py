"""Who may call what, from the options in the protos (access.proto): one table, made once from the descriptors, and the checks.

A call is held against it in this order, on both ports:

    the method's grants name the caller's role                    else PERMISSION_DENIED, why = role
    OWN:       every owner field of the request names the caller  else PERMISSION_DENIED, why = own
    DISTRICT:  what the request names is in the caller's district else PERMISSION_DENIED, why = district

Where a request names nobody, a method that only reads (Get…, List…) may run, and its answer is held against the same rules: rows
of others are left out of lists, and anything else of others is refused, in the same words whether it is there or not. What
neither shows stands in OTHER_CHECKS, with the place where it is looked after. Taps are checked natively (ext/lookup.c,
yk_are_own).

Whoever calls without TLS (LOCAL) is the machine's own operator and is not checked."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from yikatong.core.access.callers import LOCAL, ROLE_NAMES, Caller
from yikatong.core.acquiring.merchants import ACQUIRER_PREFIX
from yikatong.core.errors import Forbidden, NotFound
from yikatong.core.identity.identifiers import is_within
from yikatong.core.memory import OPERATOR_PREFIX, Memory
from yikatong.core.messages import parse
from yikatong.v1 import access_pb2

OWN, DISTRICT, ALL = access_pb2.SCOPE_OWN, access_pb2.SCOPE_DISTRICT, access_pb2.SCOPE_ALL
TERMINAL, ACQUIRER, DEPARTMENT, BANK, OPERATOR = (
    access_pb2.ROLE_TERMINAL, access_pb2.ROLE_ACQUIRER, access_pb2.ROLE_DEPARTMENT, access_pb2.ROLE_BANK,
    access_pb2.ROLE_OPERATOR,
)  # fmt: skip
_ACCESS: Final[Any] = access_pb2.access
_OWNER: Final[Any] = access_pb2.owner
_PERSONAL: Final[Any] = access_pb2.personal
_SCOPE_NAMES: Final = {number: name.removeprefix("SCOPE_").lower() for name, number in access_pb2.Scope.items()}

OTHER_CHECKS: Final[Mapping[tuple[str, int], str]] = {
    ("TapService.AuthorizeTap", TERMINAL): "ext/lookup.c, yk_are_own",
    ("TapService.AuthorizeTap", ACQUIRER): "ext/lookup.c, yk_are_own: its terminals' operator",
    ("TapService.SubmitTaps", TERMINAL): "ext/lookup.c, yk_are_own",
    ("TapService.SubmitTaps", ACQUIRER): "ext/lookup.c, yk_are_own: its terminals' operator",
    ("ClearingService.GetOperatorTotals", ACQUIRER): "core/services/clearing.py: totals of its own only",
    ("ReconciliationService.IngestParticipantFile", ACQUIRER): "core/services/reconciliation.py: the file names the participant",
    ("ReconciliationService.IngestBankFile", BANK): "core/services/host.py, of_bank: the setting settlement_bank",
    ("ReconciliationService.ListInstructions", BANK): "core/services/host.py, of_bank: the setting settlement_bank",
    ("SettlementService.ListSettlementFiles", BANK): "services/host.py, of_bank; may_fetch: the names of files",
    ("SettlementService.GetSettlementFile", BANK): "services/host.py, of_bank; may_fetch: the name of the file",
    ("SettlementService.ListSettlementFiles", ACQUIRER): "core/services/settlement.py, may_fetch: the names of files",
    ("SettlementService.GetSettlementFile", ACQUIRER): "core/services/settlement.py, may_fetch: the name of the file",
    ("ExceptionService.RespondToDispute", ACQUIRER): "core/services/resolvers.py: the dispute's charge was paid to it",
    ("ExceptionService.WithdrawDispute", DEPARTMENT): "core/services/resolvers.py: the dispute's card is in its district",
    ("PurseService.FundPurse", DEPARTMENT): "core/services/resolvers.py: the purse's funder",
    ("PurseService.ClosePurse", DEPARTMENT): "core/services/resolvers.py: the purse's funder",
    ("CodeService.TapByCode", ACQUIRER): "core/services/resolvers.py: its terminals' operator",
    ("IssuanceService.*", DEPARTMENT): "core/cards, is_visible and find_batch: its commands ask who calls",
    ("PersonService.*", DEPARTMENT): "core/identity/persons.py, is_visible and check_data: its commands ask who calls",
}
"""Grants that no field of the messages can show to be kept, and where they are; `*` stands for all methods of a service."""

Path = tuple[FieldDescriptor, ...]
DistrictOfCard = Callable[[Memory, str], str | None]
"""The district (GB/T 2260) of a card's person; None where nobody knows."""
Resolver = Callable[[Memory, Any], "Resolved"]
"""What is behind the ids in a request."""


class Rule(NamedTuple):
    """What the options say of one method."""

    method: MethodDescriptor
    grants: Mapping[int, int]  # scope by role
    anybody: bool
    two_operators: bool
    request_owners: Mapping[int, tuple[Path, ...]]  # by role
    response_owners: Mapping[int, tuple[Path, ...]]
    request_districts: tuple[Path, ...]  # fields `card_number` and `district`
    response_districts: tuple[Path, ...]

    @property
    def name(self) -> str:
        """Service and method: "TapService.GetTap"."""
        return f"{self.method.containing_service.name}.{self.method.name}"

    @property
    def wanted(self) -> str:
        """The grants in words: "terminal own, operator all"."""
        return ", ".join(f"{ROLE_NAMES[role]} {_SCOPE_NAMES[scope]}" for role, scope in sorted(self.grants.items()))

    def is_checked_elsewhere(self, role: int) -> bool:
        """Whether OTHER_CHECKS names the method, or its service, for a role."""
        return (self.name, role) in OTHER_CHECKS or (f"{self.method.containing_service.name}.*", role) in OTHER_CHECKS

    @property
    def only_reads(self) -> bool:
        return self.method.name.startswith(("Get", "List"))


def rule_of(method: MethodDescriptor) -> Rule:
    """What a method's options say."""
    options = method.GetOptions().Extensions[_ACCESS]
    request, response = method.input_type, method.output_type
    return Rule(
        method,
        {grant.role: grant.scope for grant in options.grants},
        options.anybody,
        options.two_operators,
        _owners(request),
        _owners(response),
        tuple(path for path in _paths(request) if _is_of_district(path[-1])),
        tuple(path for path in _paths(response) if _is_of_district(path[-1])),
    )


def owner_of(field: FieldDescriptor) -> int:
    """The role whose name a field holds; 0: none."""
    return int(field.GetOptions().Extensions[_OWNER])


def personal_level(field: FieldDescriptor) -> int:
    """How personal a field is (PersonalLevel); 0: not at all."""
    return int(field.GetOptions().Extensions[_PERSONAL])


def _is_of_district(field: FieldDescriptor) -> bool:
    return field.name in ("card_number", "district") and field.type == FieldDescriptor.TYPE_STRING


def _owners(kind: Descriptor) -> dict[int, tuple[Path, ...]]:
    found: dict[int, tuple[Path, ...]] = {}
    for path in _paths(kind):
        if role := owner_of(path[-1]):
            found[role] = (*found.get(role, ()), path)
    return found


def _paths(kind: Descriptor, within: tuple[Descriptor, ...] = ()) -> Iterator[Path]:
    """Paths to all fields that hold no messages."""
    for field in kind.fields:
        inner = field.message_type
        if inner is None:
            yield (field,)
        elif inner not in within and inner is not kind:
            for path in _paths(inner, (*within, kind)):
                yield (field, *path)


def _values(message: Message, path: Path) -> Iterator[Any]:
    """What a message holds along a path; nothing where a message on it is not there."""
    field, rest = path[0], path[1:]
    value = getattr(message, field.name)
    if field.is_repeated:
        for item in value:
            if rest:
                yield from _values(item, rest)
            else:
                yield item
    elif not rest:
        yield value
    elif message.HasField(field.name):
        yield from _values(value, rest)


# ---- names ----


def participants_of(name: str) -> tuple[str, str]:
    """Under which names an acquirer takes part in clearing: for its terminals' taps, and for its merchants."""
    return OPERATOR_PREFIX + name, ACQUIRER_PREFIX + name


def names(caller: Caller, field: FieldDescriptor, value: str | bytes) -> bool:
    """Whether the value of an owner field is the caller's name."""
    if isinstance(value, bytes):
        return value.hex() == caller.name
    if field.name in ("participant", "party"):
        return value in participants_of(caller.name)
    return value == caller.name


def check_participant(caller: Caller, participant: str) -> None:
    """Raises Forbidden when an acquirer asks for another participant of clearing."""
    if caller.role == ACQUIRER and participant not in participants_of(caller.name):
        raise Forbidden("own", "this participant is not the caller's", "acquirer own")


def check_bank(caller: Caller, settlement_bank: str) -> None:
    """Raises Forbidden for banks other than the one that keeps the settlement account."""
    if caller.role == BANK and caller.name != settlement_bank:
        raise Forbidden("own", "the settlement account is not kept at the caller", "bank own")


def check_district(caller: Caller, district: str | None) -> None:
    """Raises Forbidden when a caller that is kept to its district asks for what is neither in it nor in a part of it, or in none
    that is known."""
    if caller.district and not (district and is_within(district, caller.district)):
        raise Forbidden("district", f"not in the caller's district, {caller.district}, or not there")


# ---- one call ----


class Access:
    """The checks of all methods of the given services. `ask` runs a function of memory on the writer's thread, for what a message
    alone does not tell: the district of a card, and what `resolvers` (by method) find out: a name of the owner, or a card number.
    """

    def __init__(
        self,
        rules: Iterable[Rule],
        ask: Callable[[Callable[[Memory], Any]], Awaitable[Any]],
        district_of_card: DistrictOfCard = lambda memory, card_number: None,
        resolvers: Mapping[str, Resolver] | None = None,
    ) -> None:
        self.rules = {(rule.method.containing_service.full_name, rule.method.name): rule for rule in rules}
        self._ask = ask
        self._district_of_card = district_of_card
        self._resolvers = resolvers or {}

    def scope_of(self, service: str, method: str, caller: Caller) -> int:
        """How far a caller sees with a method. Raises Forbidden when it may not call it."""
        rule = self.rules[service, method]
        if caller is LOCAL or rule.anybody:
            return ALL
        scope = rule.grants.get(caller.role)
        if scope is None:
            role = ROLE_NAMES[caller.role]
            raise Forbidden("role", f"{method} is not for callers of the role {role}, but for: {rule.wanted}", rule.wanted)
        return scope

    def is_free(self, service: str, method: str, caller: Caller) -> bool:
        """Whether a caller may make any call of a method, as far as `run` looks at it. Raises Forbidden for one that may make
        none."""
        scope = self.scope_of(service, method, caller)
        return scope == ALL or (scope == DISTRICT and not caller.district)

    async def run(
        self, service: str, method: str, caller: Caller, request: bytes, serve: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """Serve a call, if the caller may make it; what it may not see of the answer is taken out. Raises Forbidden."""
        if self.is_free(service, method, caller):
            return await serve()
        rule = self.rules[service, method]
        scope = rule.grants[caller.role]
        elsewhere = rule.is_checked_elsewhere(caller.role)
        is_own = scope != OWN or elsewhere
        is_near = not caller.district or (scope == DISTRICT and elsewhere and rule.name not in self._resolvers)
        if not (is_own and is_near) or rule.name in self._resolvers:
            message = parse(rule.method.input_type, request)
            resolved = await self._resolve(rule, message, caller)
            is_own = is_own or self._is_own(rule, message, caller)
            is_near = is_near or await self._is_near(rule.request_districts, message, caller, resolved)
        if is_own and is_near:
            return await serve()
        if not rule.only_reads:
            raise self._refusal(rule, caller, is_own)
        try:
            answer: Message = parse(rule.method.output_type, await serve())
        except NotFound:
            raise self._refusal(rule, caller, is_own) from None  # as if it were somebody else's
        if not is_own:
            self._keep_own(rule, answer, caller)
        if not is_near and not await self._is_near(rule.response_districts, answer, caller, None):
            raise self._refusal(rule, caller, is_own=True)
        return answer.SerializeToString()

    def _is_own(self, rule: Rule, message: Message, caller: Caller) -> bool:
        """Whether a request names its owner, and everywhere the caller. Raises Forbidden when it names another."""
        named = False
        for path in rule.request_owners.get(caller.role, ()):
            for value in _values(message, path):
                if not names(caller, path[-1], value):
                    raise self._refusal(rule, caller, is_own=False)
                named = True
        return named

    def _keep_own(self, rule: Rule, answer: Message, caller: Caller) -> None:
        """Take rows of others out of an answer. Raises Forbidden when it is another's as a whole, or does not say whose it is."""
        paths = rule.response_owners.get(caller.role, ())
        if not paths:
            raise self._refusal(rule, caller, is_own=False)
        for path in paths:
            head = path[0]
            if head.is_repeated:
                rows = getattr(answer, head.name)
                own = [row for row in rows if all(names(caller, path[-1], value) for value in _values(row, path[1:]))]
                if len(own) < len(rows):
                    kept = [type(row).FromString(row.SerializeToString()) for row in own]
                    del rows[:]
                    rows.extend(kept)
            else:
                values = list(_values(answer, path))
                if not values or not all(names(caller, path[-1], value) for value in values):
                    raise self._refusal(rule, caller, is_own=False)

    async def _is_near(self, paths: tuple[Path, ...], message: Message, caller: Caller, resolved: "Resolved | None") -> bool:
        """Whether a message names cards or districts, and all are in the caller's district. Raises Forbidden when one is not."""
        districts = {value for path in paths if path[-1].name == "district" for value in _values(message, path)}
        cards = {value for path in paths if path[-1].name == "card_number" for value in _values(message, path) if value}
        if resolved is not None and resolved.card_number:
            cards.add(resolved.card_number)
        if cards:
            find = self._district_of_card
            districts |= set(await self._ask(lambda memory: [find(memory, card) for card in sorted(cards)]))
        for district in districts:
            check_district(caller, district)
        return bool(districts)

    async def _resolve(self, rule: Rule, message: Message, caller: Caller) -> "Resolved | None":
        """What a method's resolver finds. Raises Forbidden when it belongs to another owner than the caller."""
        resolver = self._resolvers.get(rule.name)
        if resolver is None:
            return None
        try:
            found: Resolved = await self._ask(lambda memory: resolver(memory, message))
        except NotFound:
            found = Resolved()
        if rule.grants[caller.role] == OWN and rule.is_checked_elsewhere(caller.role) and caller.name not in found.owners:
            raise self._refusal(rule, caller, is_own=False)
        return found

    @staticmethod
    def _refusal(rule: Rule, caller: Caller, is_own: bool) -> Forbidden:
        if is_own:
            return Forbidden("district", f"not in the caller's district, {caller.district}, or not there", rule.wanted)
        return Forbidden("own", "not the caller's own, or not there", rule.wanted)


class Resolved(NamedTuple):
    """What is behind an id in a request: names of its owners, and a card."""

    owners: tuple[str, ...] = ()
    card_number: str = ""
