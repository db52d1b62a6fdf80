"""The tariff that a core charges by, and how the journal tells of it.

The journal names fare rules and passes by numbers of its own, which are given once, when a tariff first brings the rule or pass,
and stay: what a tap was charged for can be told for good, whatever tariffs come later. Documents hold the names."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from yikatong.core import limits, types
from yikatong.core.errors import ConfigError, Damaged
from yikatong.core.journal import Entry, Group, JournalReader
from yikatong.core.rules.compile import Compiled, compile_tariffs
from yikatong.core.rules.tariff import TariffSet
from yikatong.core.types import DocumentKind
from yikatong.ext.engine import NOTE
from yikatong.v1 import journal_pb2, tap_service_pb2

if TYPE_CHECKING:
    from yikatong.core.memory import Memory

log = logging.getLogger(__name__)

EVENT: Final = "tariff-adopted"


def read_tariffs(path: Path) -> Compiled:
    """The versions of a tariff, from one file or all *.toml of a folder, compiled. Raises RuleError with file, line and field, or
    ConfigError where there is no file."""
    files = sorted(path.glob("*.toml")) if path.is_dir() else [path]
    if not files:
        raise ConfigError("tariffs", f"{path}: there is no *.toml in it")
    return compile_tariffs(TariffSet.read(files))


class Tariffs:
    """A memory's tariff, if it has one, and the names that its journal knows. For the writer's thread; `rules` for any: the list
    is replaced and never changed."""

    def __init__(self, compiled: Compiled | None) -> None:
        self.compiled = compiled
        self.rules: Sequence[str] = [""]  # ids of rules by number of the journal; 0 is none
        self.passes: dict[str, int] = {}  # numbers of passes by id; 0 is none
        self.pass_ids: dict[int, str] = {}
        self.rule_numbers: npt.NDArray[np.uint16] = np.zeros(1, np.uint16)  # of the tariff's rules → of the journal
        self._operator_numbers: dict[int, int] = {}  # by account

    def look_up(self, memory: "Memory") -> None:
        """Read the names from the documents."""
        self.rules = ["", *(value.decode() for _, value in memory.documents.scan(DocumentKind.RULE))]
        self.passes = {key.decode(): value[0] for key, value in memory.documents.scan(DocumentKind.PASS)}
        self.pass_ids = {number: name for name, number in self.passes.items()}
        memory.engine.set_rule_ids(list(self.rules))

    def adopt(self, memory: "Memory", time_us: int) -> None:
        """Charge by the tariff from now on. Rules and passes that the journal does not know yet get their numbers, durably.
        Raises ConfigError when there are no numbers left, or CommitFailed."""
        if self.compiled is None:
            if memory.late:
                log.warning("%d cards have late taps that are not priced again: there is no tariff", len(memory.late))
                memory.late.clear()
            return
        event = journal_pb2.Event(name=EVENT)
        known = set(self.rules)
        new_rules = [rule for rule in self.compiled.rules if rule not in known]
        new_passes = [name for name in self.compiled.tariffs.pass_number if name not in self.passes]
        if len(self.rules) + len(new_rules) > limits.TARIFF_RULE_NUMBERS_MAX + 1:
            raise ConfigError(
                "tariffs", f"more than {limits.TARIFF_RULE_NUMBERS_MAX} rules, with those that were in force before"
            )
        if len(self.passes) + len(new_passes) > limits.TARIFF_PASSES_MAX:
            raise ConfigError("tariffs", f"more than {limits.TARIFF_PASSES_MAX} passes, with those that were sold before")
        for number, rule in enumerate(new_rules, len(self.rules)):
            event.documents.add(kind=DocumentKind.RULE, key=number.to_bytes(2, "big"), value=rule.encode())
        for number, name in enumerate(new_passes, len(self.passes) + 1):
            event.documents.add(kind=DocumentKind.PASS, key=name.encode(), value=bytes([number]))
        if event.documents:
            memory.commit_event(time_us, event, [])
            memory.journal.append(Group(*memory.engine.take_group(), time_us))
            self.look_up(memory)
        number_of = {rule: number for number, rule in enumerate(self.rules)}
        pass_numbers = bytearray(256)
        for name, number in self.compiled.tariffs.pass_number.items():
            pass_numbers[self.passes[name]] = number
        self.rule_numbers = np.array([number_of[rule] for rule in self.compiled.rules], np.uint16)
        memory.engine.set_tariff(self.compiled.blob, self.rule_numbers, bytes(pass_numbers))
        self._operator_numbers = {
            account: self.compiled.operator_number(operator_id) for operator_id, account in memory.operator_accounts.items()
        }
        memory.engine.set_operator_numbers(self._operator_numbers)

    def number_terminal(self, memory: "Memory", slot: int, account: int) -> None:
        """Tell the engine how the tariff numbers the operator of a new terminal."""
        if self.compiled is None:
            return
        if account not in self._operator_numbers:
            self._operator_numbers[account] = self.compiled.operator_number(memory.account_operators[account])
        memory.engine.set_operator_numbers(self._operator_numbers, slot)


# ---- what the journal keeps of a fare ----


def priced_tap(entry: Entry, record: Any) -> journal_pb2.PricedTap:
    """What a priced tap's payload says; empty where it has none."""
    place = int(record["payload_place"])
    return journal_pb2.PricedTap.FromString(entry.payload(place)) if place else journal_pb2.PricedTap()


def fare_of(record: Any, kept: journal_pb2.PricedTap, rules: Sequence[str]) -> tap_service_pb2.Fare:
    """The fare of a priced record as callers see it."""

    def rule_id(number: int) -> str:
        return rules[number] if number < len(rules) else ""

    base_rule = rule_id(int(record["fare_rule"]))
    fare = tap_service_pb2.Fare(
        base_fen=int(record["base_fen"]),
        base_rule=base_rule,
        tariff="/".join(base_rule.split("/")[:2]),
        provisional=bool(record["fare_flags"] & types.FareFlag.PROVISIONAL),
    )
    for rule, amount_fen in zip(kept.rules, kept.amounts_fen, strict=True):
        fare.adjustments.add(rule_id=rule_id(rule), amount_fen=amount_fen)
    return fare


def note_of(kept: journal_pb2.PricedTap) -> npt.NDArray[np.void]:
    """The same as the engine keeps it: an array of one NOTE."""
    note = np.zeros(1, NOTE)
    count = len(kept.rules)
    note["count"], note["pass_number"] = count, kept.pass_number
    note["rule"][0, :count], note["amount_fen"][0, :count] = kept.rules, kept.amounts_fen
    return note


def read_notes(reader: JournalReader, records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """A NOTE for each of some records of the journal; zeros for those that were not priced."""
    notes = np.zeros(len(records), NOTE)
    for i in np.flatnonzero((records["flags"] & types.Flag.PRICED != 0) & (records["payload_place"] != 0)).tolist():
        entry = reader.entry(int(records[i]["sequence"]))
        if entry is None:
            raise Damaged(f"journal: record {records[i]['sequence']} is missing")
        notes[i : i + 1] = note_of(priced_tap(entry, records[i]))
    return notes
