"""What every service stands on, and the kinds of methods that there are.

A service is a file of this folder, named as its proto is: SERVICE is its descriptor, `methods(host)` its table. A method gets its
request parsed and returns its response; which messages those are is the descriptor's, so no table names them."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from yikatong.core import limits
from yikatong.core.access import access
from yikatong.core.access.access import Access, Resolver, rule_of
from yikatong.core.access.callers import Caller, current
from yikatong.core.access.oversight import Oversight
from yikatong.core.access.rate_limits import Rates
from yikatong.core.acquiring import authorizations
from yikatong.core.cards.codes import RideCodeRules
from yikatong.core.day.day import Day, DayRules
from yikatong.core.errors import ConfigError
from yikatong.core.identity import persons
from yikatong.core.identity.identity_service import Identity, IdentityOptions
from yikatong.core.keys.provider import KeyProvider
from yikatong.core.memory import Memory
from yikatong.core.messages import parse
from yikatong.core.metrics import Metrics
from yikatong.core.rules.card_rules import CardRules
from yikatong.core.rules.card_rules import default as default_card_rules
from yikatong.core.rules.purse_rules import PurseRules
from yikatong.core.rules.purse_rules import read as read_purse_rules
from yikatong.core.types import NONE
from yikatong.core.writer import Core, Work
from yikatong.ext.engine import is_card_number

Method = Callable[[bytes, float | None], Awaitable[bytes]]
"""As the ports call it: a request, the moment on the monotonic clock until which there is time, the response."""
Answer = Callable[[Any, float | None], Awaitable[Message]]
"""The same over messages."""
Command = Callable[..., Message]


class Raw(NamedTuple):
    """A method whose messages go to the engine unread."""

    method: Method


Methods = Mapping[str, Answer | Raw]
"""By rpc."""


class HostOptions(NamedTuple):
    """What an operator decides about the services. Without `purse_rules` and `card_rules` there are those that come with the
    package; without `day_rules` nothing can be cleared or sealed."""

    purse_rules: PurseRules | None = None
    day_rules: DayRules | None = None
    card_rules: CardRules | None = None
    settlement_bank: str = ""
    e_card_devices_max: int = limits.E_CARD_DEVICES_MAX
    ride_code_rules: RideCodeRules = RideCodeRules()
    identity: IdentityOptions | None = None
    rates: Rates | None = None


class Host:
    """Over one core. Without `provider` there are no loads, persons, codes and assertions."""

    def __init__(
        self,
        core: Core,
        metrics: Metrics,
        provider: KeyProvider | None,
        options: HostOptions,
        services: list[ServiceDescriptor],
        resolvers: Mapping[str, Resolver],
    ) -> None:
        self.core = core
        self.metrics = metrics
        self.provider = provider
        self.settlement_bank = options.settlement_bank
        self.e_card_devices_max = options.e_card_devices_max
        self.ride_code_rules = options.ride_code_rules
        self.purse_rules = options.purse_rules or read_purse_rules()
        self.card_rules = options.card_rules or default_card_rules()
        self._loop = asyncio.get_running_loop()
        self.day = Day(lambda: core.journal.read(), self.ask_blocking, options.day_rules or DayRules())
        self.identity = None if provider is None else Identity(provider, options.identity or IdentityOptions(), self.submit)
        rules_of_access = [rule_of(method) for service in services for method in service.methods]
        self.access = Access(rules_of_access, lambda command: self.ask(command, None), _district_of_card, resolvers)
        self.oversight = Oversight(
            lambda command, deadline: self.submit(Work(command=command, deadline=deadline)),
            lambda: core.journal.next_sequence, metrics, provider, persons.person_of_card, options.rates,
            self._guard,
        )  # fmt: skip

    def _guard(self, name: str, caller: Caller, request: bytes, run: Callable[[], Awaitable[bytes]]) -> Awaitable[bytes]:
        """Run a call of "yikatong.v1.CardService/GetCard" if its caller may make it."""
        service, _, method = name.partition("/")
        return self.access.run(service, method, caller, request, run)

    # ---- the writer's thread ----

    async def submit(self, work: Work) -> Any:
        """Hand work to the writer; returns once its group is durable."""
        work.tag = asyncio.get_running_loop().create_future()
        self.core.submit(work)
        return await work.tag

    async def ask(self, command: Callable[[Memory], Any], deadline: float | None) -> Any:
        """Run a function of memory on the writer's thread."""
        return await self.submit(Work(command=lambda memory, _: command(memory), deadline=deadline))

    def ask_blocking(self, command: Callable[[Memory, int], Any]) -> Any:
        """Run a command from another thread than the loop's."""
        return asyncio.run_coroutine_threadsafe(self.submit(Work(command=command)), self._loop).result()

    # ---- kinds of methods ----

    def command(self, command: Command) -> Answer:
        """command(memory, request, time_us) on the writer's thread."""

        @functools.wraps(command)
        async def answer(request: Message, deadline: float | None) -> Message:
            work = Work(command=lambda memory, time_us: command(memory, request, time_us), deadline=deadline)
            response: Message = await self.submit(work)
            return response

        return answer

    def command_by(self, command: Command) -> Answer:
        """command(memory, request, time_us, caller): one that asks who calls."""

        @functools.wraps(command)
        async def answer(request: Message, deadline: float | None) -> Message:
            caller = current()
            work = Work(command=lambda memory, time_us: command(memory, request, time_us, caller), deadline=deadline)
            response: Message = await self.submit(work)
            return response

        return answer

    def keyed(self, command: Command) -> Answer:
        """command(provider, memory, request, time_us, caller): one that works with keys and asks who calls."""

        @functools.wraps(command)
        def run(memory: Memory, request: Message, time_us: int, caller: Caller) -> Message:
            return command(self.keys(), memory, request, time_us, caller)

        return self.command_by(run)

    def keys(self) -> KeyProvider:
        """Raises ConfigError where there are none."""
        if self.provider is None:
            raise ConfigError("keys", "there are none")
        return self.provider

    def swept(self, command: Command) -> Answer:
        """A command before which holds are let go whose time is over."""
        return self.command(functools.wraps(command)(authorizations.swept(command)))

    def of_day(self, step: Callable[[Day, Any], Message]) -> Answer:
        """A step of the day: it reads the journal and asks the writer, on a thread of its own."""

        @functools.wraps(step)
        async def answer(request: Message, deadline: float | None) -> Message:
            return await asyncio.to_thread(step, self.day, request)

        return answer

    def then_destroyed(self, answer: Answer) -> Answer:
        """A method after which no key of a person is left that it dropped."""

        @functools.wraps(answer)
        async def then(request: Message, deadline: float | None) -> Message:
            response = await answer(request, deadline)
            await asyncio.to_thread(persons.destroy_dropped_keys, self.ask_blocking)
            return response

        return then

    def of_bank(self, answer: Answer) -> Answer:
        """A method that of all banks only the settlement account's may call."""

        @functools.wraps(answer)
        async def checked(request: Message, deadline: float | None) -> Message:
            access.check_bank(current(), self.settlement_bank)
            return await answer(request, deadline)

        return checked


def on_wire(service: ServiceDescriptor, methods: Methods) -> dict[str, Method]:
    """A service's table as the ports call it. Raises KeyError for a name that the service does not have."""
    wired: dict[str, Method] = {}
    for name, entry in methods.items():
        request_type = service.methods_by_name[name].input_type
        wired[name] = entry.method if isinstance(entry, Raw) else functools.partial(_answer, request_type, entry)
    return wired


async def _answer(request_type: Any, answer: Answer, request: bytes, deadline: float | None) -> bytes:
    response = await answer(parse(request_type, request), deadline)
    return response.SerializeToString()


def _district_of_card(memory: Memory, card_number: str) -> str | None:
    slot = int(memory.engine.find_card(card_number)) if is_card_number(card_number) else NONE
    person = None if slot == NONE else persons.person_of_card(memory, slot)
    document = None if person is None else persons.load(memory, person)
    return None if document is None else document.district
