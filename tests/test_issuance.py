"""Issue of cards: every step against every event, the time limits, who may, batches that are done row by row exactly once."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from card_desk import DAY_S, CardDesk
from harness import failing, limited, make_tap
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from people import citizen_number, new_id, person

from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer
from yikatong.core.access.callers import Caller
from yikatong.core.cards import batches, issuance
from yikatong.core.cards.card_life import State
from yikatong.core.cards.issuance import INSTANT_TRANSITIONS, TRANSITIONS, Event, Step
from yikatong.core.errors import CommitFailed, InvalidRequest, NotFound
from yikatong.core.identity import persons
from yikatong.core.types import Deny, DocumentKind, Result
from yikatong.v1 import access_pb2, card_life_service_pb2, person_service_pb2
from yikatong.v1 import issuance_service_pb2 as pb

HRSS = Caller(access_pb2.ROLE_DEPARTMENT, "hrss", "441602")
ELSEWHERE = Caller(access_pb2.ROLE_DEPARTMENT, "hrss", "441621")
BANK = Caller(access_pb2.ROLE_BANK, "boc")
BOUND, ACTIVATED = pb.BANK_ACCOUNT_STATE_BOUND, pb.BANK_ACCOUNT_STATE_ACTIVATED


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[CardDesk]:
    made = CardDesk(tmp_path / "data")
    yield made
    made.close()


# ---- every step, every event ----

WAY = (Event.CHECK, *issuance.PRODUCTION.values(), Event.PRODUCE, Event.DELIVER, Event.PICK_UP)


class One:
    """An application, and each event as a call."""

    def __init__(self, desk: CardDesk, kind: int, number: str) -> None:
        self.desk, self.number = desk, number
        self.person_id = desk.new_person()
        self.id = bytes(desk.apply(self.person_id, kind).application_id)

    def do(self, event: Event) -> int:
        desk = self.desk
        for step, of in issuance.PRODUCTION.items():
            if of is event:
                return desk.advance(step, self.id)[0]
        match event:
            case Event.CHECK | Event.REJECT:
                return int(desk.check(self.id, "no" if event is Event.REJECT else "").result)
            case Event.PRODUCE:
                return int(desk.produced((self.id, self.number)).results[0])
            case Event.DELIVER:
                return int(desk.deliver(self.id, tracking_number="EMS1").result)
            case Event.PICK_UP:
                return int(desk.pick_up(self.id).result)
            case _:
                return int(desk.withdraw(self.id).result)

    def bring(self, step: Step, table: dict[tuple[Step, Event], Step]) -> None:
        if step is Step.REJECTED:
            self.do(Event.REJECT)
        elif step is Step.WITHDRAWN:
            self.do(Event.WITHDRAW)
        else:
            at = Step.APPLIED
            for event in WAY:
                if at is not step and (at, event) in table:
                    assert self.do(event) == Result.ACCEPTED
                    at = table[at, event]
            assert at is step


# What leads where, said once more in another way.
LEADS = """
APPLIED: CHECK CHECKED, REJECT REJECTED, WITHDRAW WITHDRAWN
CHECKED: BATCH BATCHED, WITHDRAW WITHDRAWN
BATCHED: TO_BANK AT_BANK, WITHDRAW WITHDRAWN
AT_BANK: FROM_BANK BANK_DONE
BANK_DONE: TO_FACTORY AT_FACTORY
AT_FACTORY: FROM_FACTORY FACTORY_DONE
FACTORY_DONE: TO_INITIALISATION AT_INITIALISATION
AT_INITIALISATION: PRODUCE PRODUCED
PRODUCED: DELIVER DELIVERED, WITHDRAW WITHDRAWN
DELIVERED: DELIVER DELIVERED, PICK_UP ENABLED, WITHDRAW WITHDRAWN
ENABLED:
REJECTED:
WITHDRAWN:
"""


def test_the_table_is_what_it_should_be() -> None:
    wanted: dict[tuple[Step, Event], Step] = {}
    for row in LEADS.strip().splitlines():
        step, _, ways = row.partition(":")
        for way in filter(None, (way.strip() for way in ways.split(","))):
            event, after = way.split()
            wanted[Step[step], Event[event]] = Step[after]
    assert wanted == TRANSITIONS
    counter = {(Step.CHECKED, Event.PRODUCE): Step.PRODUCED, (Step.PRODUCED, Event.PICK_UP): Step.ENABLED}
    assert wanted | counter == INSTANT_TRANSITIONS
    assert len(LEADS.strip().splitlines()) == len(Step)


PAIRS = [(kind, step) for kind in (issuance.ORDINARY, issuance.INSTANT) for step in Step]


@pytest.mark.parametrize(("kind", "step"), PAIRS, ids=[f"{kind}-{step.name}" for kind, step in PAIRS])
def test_every_event_at_every_step(desk: CardDesk, kind: int, step: Step) -> None:
    table = INSTANT_TRANSITIONS if kind == issuance.INSTANT else TRANSITIONS
    for at, event in enumerate(Event):
        one = One(desk, kind, str(1_000 + at))
        one.bring(step, table)
        before = desk.application(one.id)
        assert Step(before.step) is step
        outcome = table.get((step, event))
        assert one.do(event) == (Result.WRONG_STATE if outcome is None else Result.ACCEPTED)
        now = desk.application(one.id)
        assert now == before if outcome is None else Step(now.step) is outcome
        made = desk.slot(one.number) != 0xFFFFFFFF
        assert made == bool(now.card_number)
        if made:
            wanted = {Step.ENABLED: State.ENABLED, Step.WITHDRAWN: State.CANCELLED}.get(Step(now.step), State.NOT_ENABLED)
            assert desk.state(one.number) == wanted
            assert persons.person_of_card(desk.memory, desk.slot(one.number)) == one.person_id
        open_now = issuance.open_application(desk.memory, one.person_id)
        assert open_now == (None if Step(now.step) in issuance.OVER else one.id)


# ---- a card's way ----


def test_a_card_is_refused_until_it_is_picked_up(desk: CardDesk) -> None:
    desk.core.register_terminal(make_tap().terminal_number)
    person_id = desk.new_person()
    concession = person_service_pb2.Concession(rider=2, proof_reference="school 7")
    asked = person_service_pb2.SetConcessionRequest(request_id=new_id(), person_id=person_id, concession=concession)
    desk.ask(persons.set_concession, asked)
    application_id = desk.issue(person_id, "100", issuance.ORDINARY, pick_up=False)
    for restart in (lambda: None, desk.core.restart, desk.core.checkpoint, desk.core.restart):
        restart()
        assert desk.reasons("100") == Deny.NOT_ENABLED
        assert desk.state("100") == State.NOT_ENABLED
    assert desk.core.top_up("100", 1_000).result == Result.ACCEPTED  # benefits may come first
    assert desk.core.authorize(make_tap(card_number="100", atc=1, terminal_sequence=1)).result == Result.CARD_DENIED
    assert desk.core.engine.card(desk.slot("100"))["rider"] == 1
    assert desk.pick_up(application_id, by=desk.new_person()).result == Result.CARD_NOT_OWN
    # The bank is late, which holds nothing up.
    assert desk.pick_up(application_id).card_number == "100"
    assert desk.core.authorize(make_tap(card_number="100", atc=2, terminal_sequence=2)).result == Result.ACCEPTED
    assert desk.core.engine.card(desk.slot("100"))["rider"] == 2
    assert desk.bank(application_id, ACTIVATED).result == Result.WRONG_STATE
    assert desk.bank(application_id, BOUND, caller=BANK).result == Result.ACCEPTED
    assert desk.bank(application_id, ACTIVATED, "ccb").result == Result.WRONG_STATE
    assert desk.bank(application_id, ACTIVATED).result == Result.ACCEPTED
    assert desk.application(application_id).bank_account == ACTIVATED
    with pytest.raises(InvalidRequest, match="bank_id"):
        desk.bank(application_id, BOUND, "ccb", caller=BANK)


def test_who_gets_a_card(desk: CardDesk) -> None:
    person_id = desk.new_person()
    assert desk.apply(bytes(16)).result == Result.PERSON_UNKNOWN
    first = desk.apply(person_id)
    assert desk.apply(person_id, issuance.EXPEDITED).result == Result.APPLICATION_OPEN
    desk.withdraw(first.application_id)
    desk.issue(person_id, "100")
    assert desk.apply(person_id).result == Result.CARD_PRESENT
    desk.freeze("100")
    assert desk.apply(person_id, issuance.REPLACEMENT, old_card_number="100").result == Result.WRONG_STATE
    desk.unfreeze("100", desk.status("100").freezes[0].freeze_id)
    assert desk.apply(person_id, issuance.REPLACEMENT, old_card_number="100").result == Result.ACCEPTED
    other = desk.new_person()
    desk.issue(other, "200")
    desk.cancel("200")
    assert desk.apply(other).result == Result.ACCEPTED
    for fields, field in (
        ({"kind": 0}, "kind"), ({"kind": 99}, "kind"), ({"kind": issuance.NEWBORN}, "guardian_person_id"),
        ({"guardian_person_id": other}, "guardian_person_id"), ({"old_card_number": "100"}, "old_card_number"),
        ({"kind": issuance.RENEWAL}, "old_card_number"), ({"kind": issuance.RENEWAL, "old_card_number": "x"}, "old_card_number"),
        ({"kind": issuance.NEWBORN, "guardian_person_id": person_id}, "guardian_person_id"),
    ):  # fmt: skip
        with pytest.raises(InvalidRequest) as caught:
            desk.apply(person_id, **fields)
        assert caught.value.field == field


def test_a_newborn_and_a_guardian(desk: CardDesk) -> None:
    guardian = desk.new_person()
    today = issuance.settlement_date(desk.core.now_us)
    old = desk.new_person(citizen_number=citizen_number(5, birth=str(today - 10_000)))
    with pytest.raises(InvalidRequest, match="older than a year"):
        desk.apply(old, issuance.NEWBORN, guardian_person_id=guardian)
    child = desk.new_person(citizen_number=citizen_number(5, birth=str(today)))
    assert desk.apply(child, issuance.NEWBORN, guardian_person_id=bytes(16)).result == Result.PERSON_UNKNOWN
    application_id = desk.issue(child, "100", issuance.NEWBORN, pick_up=False, guardian_person_id=guardian)
    assert desk.pick_up(application_id, by=child).result == Result.CARD_NOT_OWN
    assert desk.pick_up(application_id, by=guardian).result == Result.ACCEPTED


def test_who_sees_which_application(desk: CardDesk) -> None:
    person_id = desk.new_person()
    assert desk.apply(person_id, caller=ELSEWHERE).result == Result.PERSON_UNKNOWN
    application_id = desk.apply(person_id, caller=HRSS).application_id
    assert desk.check(application_id, caller=ELSEWHERE).result == Result.APPLICATION_UNKNOWN
    assert desk.advance(Step.BATCHED, application_id, caller=ELSEWHERE) == [Result.APPLICATION_UNKNOWN]
    assert list(desk.produced((application_id, "100"), caller=ELSEWHERE).results) == [Result.APPLICATION_UNKNOWN]
    with pytest.raises(NotFound):
        desk.ask(issuance.get_application, pb.GetApplicationRequest(application_id=application_id), caller=ELSEWHERE)


def test_an_expired_or_cancelled_card_is_not_handed_out(desk: CardDesk) -> None:
    person_id = desk.new_person()
    application_id = desk.issue(person_id, "100", issuance.ORDINARY, pick_up=False)
    desk.cancel("100")
    assert desk.pick_up(application_id).result == Result.WRONG_STATE
    assert desk.withdraw(application_id).result == Result.ACCEPTED
    assert desk.apply(person_id).result == Result.ACCEPTED


def test_production_tells_numbers(desk: CardDesk) -> None:
    ids = []
    for _ in range(3):
        ids.append(bytes(desk.apply(desk.new_person(), issuance.INSTANT).application_id))
        desk.check(ids[-1])
    desk.register("900")
    cards = desk.core.engine.counts["cards"]
    results = desk.produced((ids[0], "100"), (ids[1], "100"), (ids[2], "900"), (bytes(12), "101")).results
    assert list(results) == [Result.ACCEPTED, Result.CONFLICT, Result.CONFLICT, Result.APPLICATION_UNKNOWN]
    assert desk.core.engine.counts["cards"] == cards + 1
    for field, value in (("card_number", "x"), ("issuer_id", b"x"), ("expires", 20261301), ("social_card_number", "A00000001"),
                         ("card_identifier", "0")):  # fmt: skip
        with pytest.raises(InvalidRequest) as caught:
            desk.produced((ids[1], "102"), **{field: value})
        assert caught.value.field == f"cards[0].{field}"
    with pytest.raises(InvalidRequest, match="twice"):
        desk.produced((ids[1], "102"), (ids[1], "103"))
    assert desk.core.engine.counts["cards"] == cards + 1


# ---- time limits ----


def test_what_is_overdue(desk: CardDesk) -> None:
    ordinary, expedited, done = (desk.new_person() for _ in range(3))
    first = desk.apply(ordinary)
    second = desk.apply(expedited, issuance.EXPEDITED)
    desk.issue(done, "100", issuance.ORDINARY)
    assert not desk.overdue().applications
    rules, today = desk.rules, issuance.settlement_date(desk.core.now_us)
    assert first.due == rules.due("ordinary", "applied", today, today)
    while issuance.settlement_date(desk.core.now_us) <= first.due:
        assert first.application_id not in [each.application_id for each in desk.overdue().applications]
        desk.core.pass_time(DAY_S)
    desk.core.restart()
    assert [each.application_id for each in desk.overdue().applications] == [second.application_id, first.application_id]
    assert desk.run(issuance.count_overdue)[Step.APPLIED] == 2
    page = desk.overdue(page_size=1)
    assert desk.overdue(page_size=1, page_token=page.next_page_token).applications[0].application_id == first.application_id
    assert not desk.overdue(ELSEWHERE).applications
    assert not desk.overdue(step=pb.APPLICATION_STEP_CHECKED).applications
    desk.check(second.application_id)
    assert desk.run(issuance.count_overdue)[Step.CHECKED] == 0  # until the day is over
    desk.core.pass_time(DAY_S)
    assert desk.run(issuance.count_overdue)[Step.CHECKED] == 1
    desk.withdraw(second.application_id)
    desk.withdraw(first.application_id)
    assert not desk.overdue().applications
    left = [key for key, _ in desk.memory.documents.scan(DocumentKind.APPLICATION, b"d", b"e")]
    assert left == []


# ---- batches ----

COLUMNS = ["name", "citizen_number", "district", "phone", "address"]


def line_of(serial: int, **fields: str) -> str:
    data = person(serial, **fields)
    return ",".join(getattr(data, column) for column in COLUMNS)


def test_each_row_by_line_and_field(desk: CardDesk) -> None:
    known = desk.new_person()  # serial 1
    carded = desk.new_person()  # 2
    desk.issue(carded, "100")
    applied = desk.new_person()  # 3
    desk.apply(applied)
    lines = [
        line_of(10), line_of(11, name=""), line_of(12, citizen_number="110105194912310021"), line_of(13, phone="x"),
        line_of(14, district="1"), line_of(10), line_of(1), line_of(2), line_of(3), "王", 'a,"b',
        '"王,五",' + line_of(15).partition(",")[2], line_of(16, district="441621"),
    ]  # fmt: skip
    batch_id = desk.open_batch(COLUMNS, len(lines), caller=HRSS)
    content = "\r\n".join(lines).encode() + b"\r\n"
    batch = desk.upload(batch_id, 2, content, caller=HRSS)
    told = {row.line: (Result(row.result), row.field) for row in desk.rows(batch_id, caller=HRSS, page_size=3)}
    bad = Result.ROW_INVALID
    assert told == {
        2: (Result.ACCEPTED, ""), 3: (bad, "name"), 4: (bad, "citizen_number"), 5: (bad, "phone"), 6: (bad, "district"),
        7: (Result.APPLICATION_OPEN, "citizen_number"), 8: (Result.ACCEPTED, ""), 9: (Result.CARD_PRESENT, "citizen_number"),
        10: (Result.APPLICATION_OPEN, "citizen_number"), 11: (bad, ""), 12: (bad, ""), 13: (Result.ACCEPTED, ""),
        14: (bad, "district"),
    }  # fmt: skip
    assert (batch.rows_done, batch.rows_accepted, batch.rows_total) == (13, 3, 13)
    failed = desk.rows(batch_id, failed_only=True)
    assert [row.line for row in failed] == [3, 4, 5, 6, 7, 9, 10, 11, 12, 14]
    assert "line 2" in failed[4].reason
    row = next(row for row in desk.rows(batch_id) if row.line == 8)
    assert desk.application(row.application_id).person_id == known
    assert desk.application(row.application_id).batch_id == batch_id
    with pytest.raises(NotFound):
        desk.rows(batch_id, caller=ELSEWHERE)
    for text in ("王小明1", "东城路", citizen_number(10)):
        assert not any(text in row.reason for row in desk.rows(batch_id))


def test_gb18030_and_what_is_neither(desk: CardDesk) -> None:
    names = ["王小明", "㐂㐄", "𠮷田"]  # two and four bytes each
    lines = [line_of(20 + at, name=name) for at, name in enumerate(names)]
    batch_id = desk.open_batch(COLUMNS, 4, pb.BATCH_ENCODING_GB18030)
    desk.upload(batch_id, 2, "\n".join(lines).encode("gb18030") + b"\n\xff\xff,1,2,3,4\n")
    rows = desk.rows(batch_id)
    assert [row.result for row in rows] == [1, 1, 1, Result.ROW_INVALID]
    assert "GB18030" in rows[3].reason
    shown = [persons.show(desk.memory, desk.provider, desk.application(row.application_id).person_id) for row in rows[:3]]
    assert [each.name for each in shown if each is not None] == names


def test_a_batch_is_checked_before_it_begins(desk: CardDesk) -> None:
    good = {"kind": issuance.ORDINARY, "encoding": 1, "columns": COLUMNS, "rows_total": 3}
    for field, value, named in (
        ("kind", issuance.NEWBORN, "kind"), ("encoding", 0, "encoding"), ("columns", ["name", "district"], "columns"),
        ("columns", [*COLUMNS, "x"], "columns[5]"), ("columns", [*COLUMNS, "name"], "columns[5]"),
        ("rows_total", 0, "rows_total"), ("rows_total", 100_001, "rows_total"),
    ):  # fmt: skip
        with pytest.raises(InvalidRequest) as caught:
            desk.ask(batches.open_batch, pb.OpenBatchRequest(request_id=new_id(), **(good | {field: value})))
        assert caught.value.field == named
    batch_id = desk.open_batch(COLUMNS, 3)
    content = line_of(30).encode()
    for first_line, sent, named in ((1, content, "first_line"), (5, content, "first_line"), (3, content, "first_line"),
                                    (4, content + b"\n" + content, "first_line"), (2, b"", "content")):  # fmt: skip
        with pytest.raises(InvalidRequest) as caught:
            desk.upload(batch_id, first_line, sent)
        assert caught.value.field == named
    assert desk.rows(batch_id) == []
    with pytest.raises(NotFound):
        desk.upload(bytes(16), 2, content)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), at_once=st.integers(1, 9))
def test_killed_and_taken_up_again_no_row_is_done_twice(
    tmp_path_factory: pytest.TempPathFactory, seed: int, at_once: int
) -> None:
    """Parts of any size come, come again, overlap, fail for a full disk, and the core dies in between."""
    chance = random.Random(seed)
    desk = CardDesk(tmp_path_factory.mktemp("batch"))
    serials = [chance.randrange(1, 25) for _ in range(40)]
    lines = [line_of(serial) for serial in serials]
    try:
        with limited(BATCH_ROWS_AT_ONCE=at_once):
            batch_id = desk.open_batch(COLUMNS, len(lines))
            done = 0
            while done < len(lines):
                first = chance.randint(max(0, done - 6), done)
                last = min(len(lines), first + chance.randint(1, 12))
                content = "\n".join(lines[first:last]).encode()
                fate = chance.random()
                if fate < 0.2 and last > done:
                    with failing("journal-before-commit"), pytest.raises(CommitFailed):
                        desk.upload(batch_id, first + 2, content)
                    desk.core.rebuild()
                elif fate < 0.4:
                    crashes = itertools.count()

                    def run(command: Any, crashes: Any = crashes, after: int = chance.randint(0, 3)) -> Any:
                        if next(crashes) > after:
                            raise KeyboardInterrupt
                        return desk.core.ask(lambda memory, _, time_us: command(memory, time_us), None)

                    request = pb.UploadBatchRowsRequest(batch_id=batch_id, first_line=first + 2, content=content)
                    try:
                        batches.upload(desk.rules, desk.provider, request, batches_caller(), run)
                    except KeyboardInterrupt:
                        chance.choice((desk.core.restart, desk.core.checkpoint))()
                else:
                    desk.upload(batch_id, first + 2, content)
                done = batches.find_batch(desk.memory, batch_id, batches_caller()).rows_done
        rows = desk.rows(batch_id)
        assert [row.line for row in rows] == list(range(2, len(lines) + 2))
        first_of = {serial: serials.index(serial) for serial in serials}
        assert [row.result == Result.ACCEPTED for row in rows] == [
            first_of[serial] == at for at, serial in enumerate(serials)
        ]  # fmt: skip
        people = list(desk.memory.documents.scan(DocumentKind.PERSON))
        assert len(people) == len(first_of) == len(list(desk.memory.documents.scan(DocumentKind.PERSON_INDEX)))
        assert len(list(desk.memory.documents.scan(DocumentKind.APPLICATION, b"a", b"b"))) == len(first_of)
        batch = batches.find_batch(desk.memory, batch_id, batches_caller())
        assert (batch.rows_done, batch.rows_accepted) == (len(lines), len(first_of))
        for person_id, _ in people:
            assert persons.show(desk.memory, desk.provider, person_id) is not None
    finally:
        desk.close()


def batches_caller() -> Caller:
    return Caller(access_pb2.ROLE_OPERATOR, "local")


# ---- over gRPC ----


def test_from_application_to_loss_over_grpc(server: EmbeddedServer, connection: Connection) -> None:
    del server
    people, issue, life = connection.persons, connection.issuance, connection.card_life
    person_id = people.RegisterPerson(person_service_pb2.RegisterPersonRequest(request_id=new_id(), data=person(800))).person_id
    applied = issue.ApplyForCard(pb.ApplyForCardRequest(request_id=new_id(), person_id=person_id, kind=issuance.INSTANT))
    assert applied.result == Result.ACCEPTED
    issue.CheckApplication(pb.CheckApplicationRequest(request_id=new_id(), application_id=applied.application_id))
    made = pb.ReportProducedRequest.Produced(
        application_id=applied.application_id, card_number="4416000000000800", issuer_id=bytes.fromhex("5980000100000000"),
        social_card_number="A12345674", card_identifier="441600D1560000051122334455667788",
    )  # fmt: skip
    assert list(issue.ReportProduced(pb.ReportProducedRequest(request_id=new_id(), cards=[made])).results) == [Result.ACCEPTED]
    ask = card_life_service_pb2.GetCardStatusRequest(card_number=made.card_number)
    assert life.GetCardStatus(ask).state == State.NOT_ENABLED
    picked = pb.PickUpCardRequest(request_id=new_id(), application_id=applied.application_id, picked_up_by_person_id=person_id)
    assert issue.PickUpCard(picked).card_number == made.card_number
    assert life.GetCardStatus(ask).usable == Result.ACCEPTED
    lost = life.ReportLoss(card_life_service_pb2.ReportLossRequest(request_id=new_id(), card_number=made.card_number))
    assert (lost.state, life.GetCardStatus(ask).usable) == (State.TEMPORARILY_LOST, Result.CARD_DENIED)
    batch_id = issue.OpenBatch(
        pb.OpenBatchRequest(request_id=new_id(), kind=issuance.ORDINARY, encoding=1, columns=COLUMNS, rows_total=200)
    ).batch_id
    lines = "\n".join(line_of(serial) for serial in range(100, 300)).encode()
    batch = issue.UploadBatchRows(pb.UploadBatchRowsRequest(batch_id=batch_id, first_line=2, content=lines)).batch
    assert (batch.rows_done, batch.rows_accepted) == (200, 200)
    assert issue.GetBatch(pb.GetBatchRequest(batch_id=batch_id)).batch == batch
    assert len(issue.ListBatchRows(pb.ListBatchRowsRequest(batch_id=batch_id, page_size=1_000)).rows) == 200
