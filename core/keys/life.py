"""The life of a key: pre-active, active, retiring, retired, compromised, destroyed.

The times in a key's entry say when it begins, when nothing new is made with it any more, and when nothing is checked with it any
more; so the passing of time needs no ceremony. What people decide is a step of the table."""

from enum import Enum, IntEnum
from typing import Final, NamedTuple

from yikatong.core.errors import YikatongError


class KeyState(IntEnum):
    """What a key is good for now."""

    PRE_ACTIVE = 1  # for nothing yet
    ACTIVE = 2
    RETIRING = 3  # to check and open what was made with it, during the grace
    RETIRED = 4
    COMPROMISED = 5
    DESTROYED = 6  # its entry stays, its value is gone


class KeyStep(Enum):
    """What people do to a key."""

    ACTIVATE = "activate"
    RETIRE = "retire"
    COMPROMISE = "compromise"
    DESTROY = "destroy"


TRANSITIONS: Final = {
    (KeyState.PRE_ACTIVE, KeyStep.ACTIVATE): KeyState.ACTIVE,
    (KeyState.PRE_ACTIVE, KeyStep.COMPROMISE): KeyState.COMPROMISED,
    (KeyState.PRE_ACTIVE, KeyStep.DESTROY): KeyState.DESTROYED,
    (KeyState.ACTIVE, KeyStep.RETIRE): KeyState.RETIRING,
    (KeyState.ACTIVE, KeyStep.COMPROMISE): KeyState.COMPROMISED,
    (KeyState.RETIRING, KeyStep.RETIRE): KeyState.RETIRING,  # with another grace, none for instance
    (KeyState.RETIRING, KeyStep.COMPROMISE): KeyState.COMPROMISED,
    (KeyState.RETIRED, KeyStep.COMPROMISE): KeyState.COMPROMISED,
    (KeyState.RETIRED, KeyStep.DESTROY): KeyState.DESTROYED,
    (KeyState.COMPROMISED, KeyStep.DESTROY): KeyState.DESTROYED,
}
"""What leads where; all else is refused. A retirement without grace is over at once: RETIRED."""

CHECKS: Final = (KeyState.ACTIVE, KeyState.RETIRING)
"""The states in which what was made with a key can be checked."""


class WrongKeyState(YikatongError):
    """What is asked cannot happen to a key in the state that it is in."""


class Life(NamedTuple):
    """Times are seconds since 1970, UTC, of journal time; an end of 0 is none."""

    from_s: int = 0
    until_s: int = 0  # from here on nothing new is made with it
    grace_until_s: int = 0  # and from here on nothing is checked with it; not before `until_s`
    fate: KeyState | None = None  # COMPROMISED or DESTROYED, whatever the times say

    def state(self, time_s: float) -> KeyState:
        if self.fate is not None:
            return self.fate
        if time_s < self.from_s:
            return KeyState.PRE_ACTIVE
        if not self.until_s or time_s < self.until_s:
            return KeyState.ACTIVE
        return KeyState.RETIRING if time_s < self.grace_until_s else KeyState.RETIRED

    def after(self, step: KeyStep, time_s: int, grace_s: int = 0) -> "Life":
        """The life after a step that is taken now. Raises WrongKeyState."""
        state = self.state(time_s)
        if (state, step) not in TRANSITIONS:
            raise WrongKeyState(f"a key that is {state.name.lower().replace('_', '-')} cannot be {_PARTICIPLE[step]}")
        if step is KeyStep.ACTIVATE:
            return self._replace(from_s=time_s)
        if step is KeyStep.RETIRE:
            until_s = min(self.until_s or time_s, time_s)
            return self._replace(until_s=until_s, grace_until_s=time_s + grace_s)
        return self._replace(fate=KeyState.COMPROMISED if step is KeyStep.COMPROMISE else KeyState.DESTROYED)


_PARTICIPLE: Final = {
    KeyStep.ACTIVATE: "activated",
    KeyStep.RETIRE: "retired",
    KeyStep.COMPROMISE: "marked as compromised",
    KeyStep.DESTROY: "destroyed",
}
