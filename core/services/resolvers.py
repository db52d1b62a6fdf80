"""What is behind the ids in requests: whose they are (core/access/access.py asks)."""

from typing import Any, Final

from yikatong.core import commands
from yikatong.core.access.access import Resolved
from yikatong.core.acquiring import purses
from yikatong.core.day import disputes
from yikatong.core.memory import Memory
from yikatong.ext.engine import NONE


def _behind_dispute(memory: Memory, message: Any) -> Resolved:
    return Resolved(*disputes.parties_of(memory, message.dispute_id))


def _behind_purse(memory: Memory, message: Any) -> Resolved:
    return Resolved((purses.funder_of(memory, message.card_number, message.purse_id),))


def _behind_terminals(memory: Memory, message: Any) -> Resolved:
    """The operator of all terminals in a request, where it is one and the same."""
    operators = set()
    for number in {tap.terminal_number for tap in message.taps}:
        slot = int(memory.engine.find_terminal(number)) if len(number) == 6 else NONE
        operators.add("" if slot == NONE else commands.card_and_terminal(memory, NONE, slot)[2])
    return Resolved(tuple(operators) if len(operators) == 1 else ())


RESOLVERS: Final = {
    "CodeService.TapByCode": _behind_terminals,
    "ExceptionService.RespondToDispute": _behind_dispute,
    "ExceptionService.WithdrawDispute": _behind_dispute,
    "PurseService.FundPurse": _behind_purse,
    "PurseService.ClosePurse": _behind_purse,
}
"""By method."""
