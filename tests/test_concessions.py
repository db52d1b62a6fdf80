"""Concessions that begin on a day: taps are priced by the day on which they were made, whenever they come and whatever was
restarted in between, as the plain twin prices them."""

import datetime
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from card_desk import CardDesk
from hypothesis import given, settings
from hypothesis import strategies as st
from people import new_id
from riders import COMPILED, FIRST_DAY, FUNDS_FEN, Rider, Twin, draw_taps, open_city

from yikatong.core import commands, limits
from yikatong.core.cards import assignment
from yikatong.core.cards.riding import ORDINARY, Riding, date_of, day_of, riding_of
from yikatong.core.errors import InvalidRequest
from yikatong.core.identity import persons
from yikatong.core.types import Result
from yikatong.ext.engine import settlement_date
from yikatong.v1 import card_service_pb2, issuance_service_pb2
from yikatong.v1 import person_service_pb2 as pb

CARD = "3104416000000017"
WHY = {"purpose": "counter", "legal_basis": "consent"}
STUDENT, SENIOR = 2, 3


class Entry(NamedTuple):
    since: int
    rider: int
    until: int = 0


class Timeline:
    """All that was ever set, as a list; and from which day on the core still knows of it."""

    def __init__(self) -> None:
        self.entries = [Entry(0, ORDINARY)]
        self.horizon = 0

    def on(self, day: int) -> int:
        entry = self.entry(day)
        return ORDINARY if entry.until and day > entry.until else entry.rider

    def entry(self, day: int) -> Entry:
        return [entry for entry in self.entries if entry.since <= day][-1]

    def set(self, new: Entry, today: int) -> None:
        kept = [entry for entry in self.entries if entry.since <= today and entry.since < new.since]
        self._cut(3 if len(kept) == len(self.entries) else 2, [*kept, new])

    def cancel(self, today: int) -> None:
        self._cut(2, [entry for entry in self.entries if entry.since <= today])

    def _cut(self, known: int, entries: list[Entry]) -> None:
        """Only the last so many are known; of those before the last two, only what they came to in the end."""
        self.entries = entries
        for at, entry in enumerate(entries[:-2]):
            if at < len(entries) - known or entry.until:
                self.horizon = max(self.horizon, entries[at + 1].since)
        if known == 2 and len(entries) > 1 and entries[-2].until:
            self.horizon = max(self.horizon, entries[-2].until + 1)


class Counter:
    """A person with a card, and a clerk who sets concessions."""

    def __init__(self, path: Path) -> None:
        self.desk = CardDesk(path, tariffs=COMPILED)  # type: ignore[arg-type]
        open_city(self.desk.core, [Rider(CARD, ORDINARY)])
        self.person_id = self.desk.new_person()
        request = issuance_service_pb2.AssignCardRequest(request_id=new_id(), card_number=CARD, person_id=self.person_id, **WHY)
        assert self.desk.ask(assignment.assign_card, request).result == Result.ACCEPTED

    @property
    def today(self) -> int:
        return day_of(settlement_date(self.desk.core.now_us))

    def set(self, rider: int, since: int = 0, until: int = 0) -> Any:
        concession = pb.Concession(rider=rider, valid_from=date_of(since), valid_until=date_of(until), proof_reference="P")
        request = pb.SetConcessionRequest(request_id=new_id(), person_id=self.person_id, concession=concession)
        return self.desk.ask(persons.set_concession, request)

    def cancel(self) -> Any:
        request = pb.CancelPendingConcessionRequest(request_id=new_id(), person_id=self.person_id)
        return self.desk.ask(persons.cancel_pending_concession, request)

    def person(self) -> pb.Person:
        request = pb.GetPersonRequest(person_id=self.person_id, view=pb.PERSON_VIEW_FULL, **WHY)
        shown: pb.Person = self.desk.ask(persons.get_person, request, self.desk.provider).person
        return shown

    def due(self, until: int) -> list[pb.Concession]:
        request = pb.ListConcessionsDueRequest(until=until, **WHY)
        return [each.concession for each in self.desk.ask(persons.list_concessions_due, request).due]

    def rider_shown(self) -> int:
        asked = card_service_pb2.GetCardRequest(card_number=CARD)
        return int(self.desk.core.command(commands.get_card, asked).card.rider)

    def goto(self, day: int) -> None:
        begun = int(FIRST_DAY.timestamp()) // 86_400 + 1
        self.desk.core.now_us = int((FIRST_DAY + datetime.timedelta(days=day - begun, hours=12)).timestamp()) * 1_000_000
        assert self.today == day


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    made = Counter(tmp_path / "data")
    yield made
    made.desk.close()


def test_it_is_pending_then_current_and_ends(counter: Counter) -> None:
    day = counter.today
    assert counter.set(STUDENT, until=day + 100).result == Result.ACCEPTED
    assert counter.set(SENIOR, day + 10, day + 200).result == Result.ACCEPTED
    for at, rider in ((day, STUDENT), (day + 9, STUDENT), (day + 10, SENIOR), (day + 300, SENIOR)):
        counter.goto(at)
        counter.desk.core.restart()
        person = counter.person()
        assert (person.concession.rider, counter.rider_shown()) == (rider, rider)
        assert person.HasField("pending_concession") == (at < day + 10)
        assert [each.rider for each in counter.due(date_of(day + 200))] == [SENIOR]  # the student's is renewed
        assert not counter.due(date_of(day + 199))
    assert counter.cancel().result == Result.WRONG_STATE


def test_replaced_and_cancelled_before_it_begins(counter: Counter) -> None:
    day = counter.today
    counter.set(STUDENT, until=day + 100)
    counter.set(SENIOR, day + 10)
    counter.set(5, day + 20, day + 30)
    assert (counter.person().pending_concession.rider, counter.person().concession.rider) == (5, STUDENT)
    assert riding_of(counter.desk.core.engine.card(counter.desk.slot(CARD))).on(day + 15)[0] == STUDENT
    assert [each.valid_until for each in counter.due(20991231)] == [date_of(day + 30)]
    assert counter.cancel().result == Result.ACCEPTED
    assert not counter.person().HasField("pending_concession")
    riding = riding_of(counter.desk.core.engine.card(counter.desk.slot(CARD)))
    assert (riding.rider, riding.until) == (STUDENT, day + 100)
    assert [each.valid_until for each in counter.due(20991231)] == [date_of(day + 100)]
    counter.set(SENIOR, day + 10)
    counter.set(5)  # from today on, whatever was to come
    assert not counter.person().HasField("pending_concession")
    counter.set(ORDINARY, day + 3)
    assert (counter.person().pending_concession.rider, counter.person().concession.rider) == (ORDINARY, 5)
    counter.goto(day + 3)
    assert not counter.person().HasField("concession")
    assert counter.rider_shown() == ORDINARY


def test_days_that_cannot_be(counter: Counter) -> None:
    day = counter.today
    assert counter.set(STUDENT, day + limits.CONCESSION_AHEAD_DAYS_MAX).result == Result.ACCEPTED
    for since, until, field in ((day + limits.CONCESSION_AHEAD_DAYS_MAX + 1, 0, "from"), (day + 5, day + 4, "until")):
        with pytest.raises(InvalidRequest) as caught:
            counter.set(STUDENT, since, until)
        assert caught.value.field == f"concession.valid_{field}"
    assert counter.person().pending_concession.valid_until == 0  # as the first left it


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_each_tap_by_its_own_day(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    chance = random.Random(seed)
    counter = Counter(tmp_path_factory.mktemp("concessions") / "data")
    core, timeline, first = counter.desk.core, Timeline(), counter.today
    timeline.entries.append(Entry(first, ORDINARY))  # the card was given to the person
    waiting = draw_taps(chance, [Rider(CARD, ORDINARY)], 60, 40)
    done: list[tuple[Any, int]] = []
    try:
        for day in range(first, first + 41):
            counter.goto(day)
            for _ in range(chance.randrange(3)):
                since = chance.choice([0, 0, day - 2, day, day + 1, day + 3, day + 8])
                until = chance.choice([0, 0, max(since, day) + chance.randrange(6)])
                match chance.choice(["set", "set", "set", "cancel", "restart", "checkpoint", "rebuild"]):
                    case "set":
                        rider = chance.choice([ORDINARY, STUDENT, SENIOR, 5])
                        if rider == ORDINARY:
                            until = 0
                        assert counter.set(rider, since, until).result == Result.ACCEPTED
                        timeline.set(Entry(since or day, rider, until), day)
                    case "cancel":
                        pending = timeline.entries[-1].since > day
                        assert (counter.cancel().result == Result.ACCEPTED) == pending
                        if pending:
                            timeline.cancel(day)
                    case again:
                        getattr(core, again)()
            # What is shown is what holds today.
            person, now, last = counter.person(), timeline.entry(day), timeline.entries[-1]
            assert person.concession.rider == (now.rider if now.rider != ORDINARY else 0)
            assert person.concession.valid_until == date_of(now.until)
            assert counter.rider_shown() == now.rider
            assert person.HasField("pending_concession") == (last.since > day)
            if last.since > day:
                assert (person.pending_concession.rider, person.pending_concession.valid_from) == (
                    last.rider,
                    date_of(last.since),
                )
            # Some taps of today and of the days before come in now, in any order; the others later.
            made = [tap for tap in waiting if day_of(tap.local_time // 10**6) < day]
            chance.shuffle(made)
            for tap in made[: chance.randrange(1 + len(made)) if day < first + 40 else len(made)]:
                waiting.remove(tap)
                tap_day = day_of(tap.local_time // 10**6)
                if tap_day >= timeline.horizon:
                    (outcome,) = core.submit(tap)
                    assert outcome.result in (Result.ACCEPTED, Result.DEBT_BOOKED)
                    done.append((tap, timeline.on(tap_day)))
        # All of it comes to what the twin makes of it in the right order.
        twin, spent_fen = Twin(Rider(CARD, ORDINARY)), 0
        for tap, rider in sorted(done, key=lambda each: (each[0].local_time, each[0].atc)):
            twin.rider = Rider(CARD, rider)
            spent_fen += twin.take(tap)[0]
        assert core.balance(CARD).balance_fen == FUNDS_FEN - spent_fen
    finally:
        counter.desk.close()


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 7), st.integers(0, 6)), max_size=8), st.integers(0, 5))
def test_riding_alone(sets: list[tuple[int, int, int]], step: int) -> None:
    """The arithmetic of days without an engine, at every day that is still known."""
    riding, timeline, today = Riding(), Timeline(), 100
    for ahead, rider, length in sets:
        since = today + ahead
        until = since + length if length else 0
        riding = riding.then(since, rider, until, today)
        timeline.set(Entry(since, rider, until), today)
        for day in range(timeline.horizon, today + 40):
            known, last = riding.on(day)
            assert (ORDINARY if last and day > last else known or ORDINARY) == timeline.on(day)
        today += step
