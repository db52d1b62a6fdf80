"""What stands around every method of the service port, in this order: how often its caller may ask, whether a second operator is
wanted, and that nothing about somebody is shown before it stands in the audit trail.

All three follow from the options in the protos, in this one place, so that no service can forget them."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from yikatong.core.access import approvals, audit
from yikatong.core.access.callers import Caller, current, serving
from yikatong.core.access.personal import may_show, shown_by_subject
from yikatong.core.access.proofs import Proofs, keys_of, results_in
from yikatong.core.access.rate_limits import MethodClass, RateLimits, Rates, class_of
from yikatong.core.errors import LockedOut
from yikatong.core.keys.provider import KeyProvider
from yikatong.core.memory import Memory
from yikatong.core.messages import parse
from yikatong.core.metrics import Metrics
from yikatong.core.types import Result, wire
from yikatong.v1 import approval_service_pb2

Method = Callable[[bytes, float | None], Awaitable[bytes]]
Ask = Callable[[Callable[[Memory, int], Any], float | None], Awaitable[Any]]

Guard = Callable[[str, Caller, bytes, Callable[[], Awaitable[bytes]]], Awaitable[bytes]]


def method_of(name: str) -> MethodDescriptor:
    """The descriptor of "yikatong.v1.CardService/GetCard". Raises KeyError."""
    service, _, method = name.partition("/")
    found: MethodDescriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
    return found


async def _let_in(name: str, caller: Caller, request: bytes, run: Callable[[], Awaitable[bytes]]) -> bytes:
    return await run()


class _Rule:
    """What is known of a method beforehand."""

    __slots__ = ("class_", "descriptor", "has_purpose", "noted", "two_operators", "writes")

    def __init__(self, descriptor: MethodDescriptor) -> None:
        self.descriptor = descriptor
        self.class_ = class_of(descriptor)
        self.noted = may_show(descriptor.output_type)
        self.has_purpose = "purpose" in descriptor.input_type.fields_by_name
        self.writes = "request_id" in descriptor.input_type.fields_by_name
        self.two_operators = approvals.wants_two(descriptor)


class Oversight:
    """Over the methods of one service port. `ask` runs a command on the writer's thread; `next_sequence` says which journal
    record is the first that is not durable yet."""

    def __init__(
        self,
        ask: Ask,
        next_sequence: Callable[[], int],
        metrics: Metrics,
        provider: KeyProvider | None,
        person_of_card: audit.PersonOfCard,
        rates: Rates | None = None,
        guard: Guard | None = None,
    ) -> None:
        """`guard` is who may call at all: it runs the call in its last argument, or raises."""
        self._ask = ask
        self._next_sequence = next_sequence
        self._metrics = metrics
        self._provider = provider
        self._person_of_card = person_of_card
        self._guard = guard or _let_in
        self._rates = RateLimits(rates or Rates(), time.monotonic)
        self._proofs = Proofs(ask, lambda: time.time_ns() // 1_000)
        self._rules: dict[str, _Rule] = {}
        self._methods: dict[str, Method] = {}

    def watch(self, methods: dict[str, dict[str, Method]]) -> None:
        """The methods, by service and name."""
        self._methods = {f"{service}/{name}": method for service, of in methods.items() for name, method in of.items()}
        self._rules = {name: _Rule(method_of(name)) for name in self._methods}

    async def serve(self, name: str, request: bytes, deadline: float | None) -> bytes:
        """One call of a method, for `callers.current()`."""
        rule, caller = self._rules[name], current()
        try:
            self._rates.take(caller, rule.class_)
        except Exception:
            self._metrics.on_rate_limited(rule.class_.value)
            raise

        async def run() -> bytes:
            held = await self._held(rule, request, caller, deadline) if rule.two_operators else None
            return await self._methods[name](request, deadline) if held is None else held

        return await self._noted(rule, name, request, caller, run)

    async def _held(self, rule: _Rule, request: bytes, caller: Caller, deadline: float | None) -> bytes | None:
        """What a call that wants a second operator is answered; None once it has one."""
        proposal = approvals.propose(self._provider, rule.descriptor, request, caller)
        held = await self._ask(lambda memory, time_us: approvals.hold(memory, proposal, time_us), deadline)
        return None if held.result is None else approvals.pending_answer(rule.descriptor, held)

    async def _noted(self, rule: _Rule, name: str, request: bytes, caller: Caller, run: Callable[[], Awaitable[bytes]]) -> bytes:
        """Run a method where its caller may, and note what its answer shows before it is let out."""
        since = self._next_sequence()
        if rule.noted and rule.has_purpose and rule.writes:
            self._check_purpose(parse(rule.descriptor.input_type, request))
        if rule.class_ is MethodClass.PROOF:
            answer = await self._proved(rule, name, request, caller, run)
        else:
            answer = await self._guard(name, caller, request, run)
        if not rule.noted:
            return answer
        asked = parse(rule.descriptor.input_type, request)
        shown = shown_by_subject(parse(rule.descriptor.output_type, answer), asked)
        if not shown:
            return answer
        if rule.has_purpose:
            self._check_purpose(asked)
        purpose, basis = getattr(asked, "purpose", ""), getattr(asked, "legal_basis", "")
        action = name.removeprefix("yikatong.v1.").replace("/", ".")

        def note(memory: Memory, time_us: int) -> None:
            ids = audit.ids_of(memory, shown, self._person_of_card)
            audit.note_shown(memory, time_us, caller, action, purpose, basis, ids, since)

        await self._ask(note, None)  # also when the caller's deadline is over: what was decided is noted
        return answer

    @staticmethod
    def _check_purpose(asked: Any) -> None:
        audit.check_purpose(asked.purpose, getattr(asked, "legal_basis", ""))

    async def _proved(self, rule: _Rule, name: str, request: bytes, caller: Caller, run: Callable[[], Awaitable[bytes]]) -> bytes:
        """Run a method that takes a secret, unless whom it is about is locked out, and count what the secret came to."""
        keys = keys_of(parse(rule.descriptor.input_type, request), caller)
        async with self._proofs.one_at_a_time(keys):
            try:
                await self._proofs.check(keys)
            except LockedOut:
                self._metrics.on_proof(Result.LOCKED_OUT)
                if "result" not in rule.descriptor.output_type.fields_by_name:
                    raise
                refusal: Any = GetMessageClass(rule.descriptor.output_type)(result=wire(Result.LOCKED_OUT))
                return bytes(refusal.SerializeToString())
            answer = await self._guard(name, caller, request, run)
            response = parse(rule.descriptor.output_type, answer)
            results = list(results_in(response))
            if not getattr(response, "duplicate", False):  # a request that comes again is no other guess
                await self._proofs.count(keys, results)
        for result in results:
            self._metrics.on_proof(result)
        return answer

    # ---- ApprovalService, as far as it is not a command alone ----

    async def get_approval(
        self, request: approval_service_pb2.GetApprovalRequest, deadline: float | None
    ) -> approval_service_pb2.GetApprovalResponse:
        """ApprovalService.GetApproval."""
        response: approval_service_pb2.GetApprovalResponse = await self._ask(
            lambda memory, time_us: approvals.get_approval(memory, request, time_us, self._provider, method_of), deadline
        )
        return response

    async def approve(
        self, request: approval_service_pb2.ApproveRequestRequest, deadline: float | None
    ) -> approval_service_pb2.ApproveRequestResponse:
        """ApprovalService.ApproveRequest."""
        caller = current()
        done: tuple[approval_service_pb2.ApproveRequestResponse, approvals.ToExecute | None] = await self._ask(
            lambda memory, time_us: approvals.approve(memory, request, time_us, caller, self._provider), deadline
        )
        response, to_execute = done
        if to_execute is not None:
            name, approved, proposer = to_execute.method, to_execute.request, to_execute.proposer
            rule = self._rules[name]
            with serving(proposer):
                answer = await self._noted(rule, name, approved, proposer, lambda: self._methods[name](approved, deadline))
            self._proofs.forget_all()  # it may have been a lock-out that was lifted
            result = getattr(parse(rule.descriptor.output_type, answer), "result", Result.ACCEPTED)
            response.executed_result = wire(result)
        return response
