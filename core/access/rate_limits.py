"""How often one caller may ask: a token bucket for each caller and class of method.

The class follows from the protos, so a new method has one without being listed. Taps have no bucket, on either port: the ride has
happened, refusing its upload loses money and frees nobody, and what a flood of them can hold up is bounded where it would (queue,
connections: TAP_… in core/limits.py). A wrong MAC among them opens nothing and uses up no counter. A tap is what a terminal may
bring in a field `tap` or `taps`, and what shows nobody anything; a load of the chip purse is none, since money moves by it."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor

from yikatong.core import limits
from yikatong.core.access.callers import Caller
from yikatong.core.access.personal import may_show
from yikatong.core.errors import RateLimited
from yikatong.v1 import access_pb2

SECRET: Final = frozenset({access_pb2.PERSONAL_LEVEL_SECRET})


class MethodClass(Enum):
    """What an abuse of a method would be."""

    TAP = "tap"  # never limited
    PROOF = "proof"  # guessing: the request carries a secret
    PERSONAL = "personal"  # harvesting: the answer shows who somebody is
    GENERAL = "general"


def class_of(method: MethodDescriptor) -> MethodClass:
    """The class of a method, from what its messages may hold."""
    shows = may_show(method.output_type)
    if may_show(method.input_type, SECRET):
        options: Any = method.GetOptions()
        by_terminals = any(grant.role == access_pb2.ROLE_TERMINAL for grant in options.Extensions[access_pb2.access].grants)
        holds_taps = not {"tap", "taps"}.isdisjoint(method.input_type.fields_by_name)
        return MethodClass.TAP if by_terminals and holds_taps and not shows else MethodClass.PROOF
    return MethodClass.PERSONAL if shows else MethodClass.GENERAL


@dataclass(frozen=True)
class Rates:
    """Calls a second of one caller, by class; 0: as many as it likes."""

    general_per_s: float = limits.RATE_GENERAL_PER_S
    personal_per_s: float = limits.RATE_PERSONAL_PER_S
    proof_per_s: float = limits.RATE_PROOF_PER_S

    def of(self, of_class: MethodClass) -> float:
        return 0.0 if of_class is MethodClass.TAP else float(getattr(self, f"{of_class.value}_per_s"))


class RateLimits:
    """The buckets, filled by `clock` (seconds, never back). At most `callers_max` are kept, the least recently used goes first.
    For one thread."""

    def __init__(self, rates: Rates, clock: Callable[[], float], callers_max: int = limits.RATE_CALLERS_MAX) -> None:
        self._rates = rates
        self._clock = clock
        self._callers_max = callers_max
        self._buckets: OrderedDict[tuple[Caller, MethodClass], tuple[float, float]] = OrderedDict()  # tokens, and when

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, caller: Caller, of_class: MethodClass) -> None:
        """Count a call. Raises RateLimited, saying when the next one would be let through."""
        rate = self._rates.of(of_class)
        if not rate:
            return
        now, room = self._clock(), max(rate * limits.RATE_BURST_S, 1.0)
        tokens, then = self._buckets.pop((caller, of_class), (room, now))
        tokens = min(tokens + (now - then) * rate, room)
        allowed = tokens >= 1.0
        self._buckets[caller, of_class] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._buckets) > self._callers_max:
            self._buckets.popitem(last=False)
        if not allowed:
            raise RateLimited(f"more than {rate:g} {of_class.value} calls a second of one caller", (1.0 - tokens) / rate)
