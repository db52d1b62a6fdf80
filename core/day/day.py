"""The flow of a day, to be read first:

    journal → clear → net → settle → reconcile → seal

    close      windows.py     no more records come into the window of a settlement date
    clear      clear.py       what of its taps clears and what does not (continuity.py: what only neighbours show)
    net        net.py         who is owed what, and the postings that bring the ledger there
    settle     settle.py      files for the banks
    reconcile  reconcile.py   what the banks say became of them
    seal       seal.py        roots over records and positions, signed; receipts

`Day` takes a window through it. What reads the journal runs beside the writer; what changes anything is one command, which posts
everything of a step together with the window's new state (day_changes.py). So a step that was cut off did nothing, and a step
that was done is not done again. What clearing must keep from one window to the next (each card's newest tap, pending grey
records) and the queue of exceptions lie in files that are written before the command and made anew from the journal where they
are lost."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from google.protobuf.message import Message

from yikatong.core import limits
from yikatong.core.acquiring.merchants import ACQUIRER_PREFIX, find_merchant, participant_of
from yikatong.core.cards import loads
from yikatong.core.change import answered
from yikatong.core.day.clear import EXCEPTION, NO_OPERATOR, SettledGrey, Tally, Terms, Window, clear_window, date_of, denied_since
from yikatong.core.day.continuity import CARD, ROW, CardStates
from yikatong.core.day.day_changes import (
    abort_window,
    check_date,
    close_window,
    exception_of,
    netted_of,
    post_clearing,
    post_seal,
    post_settlement,
    resume_window,
    seal_refused,
    take_up_exception,
)
from yikatong.core.day.net import net
from yikatong.core.day.payments import instructions_of, payment_of
from yikatong.core.day.positions import FEES, Netted, Payee, line_of
from yikatong.core.day.seal import Sealed, position_receipt, record_receipt, records_tree, seal
from yikatong.core.day.settle import instructions, write_settlement
from yikatong.core.day.statement import figures_of, settlement_report, statement
from yikatong.core.day.windows import (
    FIRST_DATE,
    IN_THE_WAY,
    Range,
    WindowEvent,
    after,
    date_of_day,
    day_of,
    find_window,
    settlement_days,
    window_document,
    window_key,
    windows_from,
)
from yikatong.core.errors import ConfigError, Damaged, InvalidRequest, NotFound
from yikatong.core.failpoints import failpoint
from yikatong.core.journal import JournalReader
from yikatong.core.memory import OPERATOR_PREFIX, Memory
from yikatong.core.paging import page_size, page_token, parse_page_token
from yikatong.core.rules.agreements import Agreement, Agreements, CapAction, Fee
from yikatong.core.sm2 import PrivateKey
from yikatong.core.types import DocumentKind, Result, WindowState, wire
from yikatong.v1 import clearing_service_pb2, exception_service_pb2, settlement_service_pb2

Progress = Callable[[int, int], None]
Answer = TypeVar("Answer")
Response = TypeVar("Response", bound=Message)


class Ask(Protocol):
    """Runs a command on the writer's thread and returns its answer when that is durable."""

    def __call__(self, command: Callable[[Memory, int], Answer], /) -> Answer: ...


FOLDER: Final = "clearing"  # in the data directory
SETTLED_FOLDER: Final = "settlement"  # likewise: a folder a settlement date
CLEARED_STATES: Final = (WindowState.CLEARED, WindowState.SETTLED, WindowState.ABORTED)


# ---- clearing ----


@dataclass(frozen=True)
class _Plan:
    """What clearing takes from memory, copied for another thread."""

    previous_state: WindowState
    operator_of_account: dict[int, str]
    account_of_terminal: list[int]
    named: dict[int, str]
    acquirers: dict[int, str]  # participant by account
    cards: int
    settled: list[int]


def _plan(memory: Memory, window: Range, previous: Range | None, appeal_days_max: int) -> _Plan:
    previous_state = WindowState(window_document(memory, previous.date).window.state) if previous else WindowState.CLEARED
    named = {account: name for prefix in ("city:", "subsidy:") for name, account in memory.named_accounts(prefix)}
    acquirers = {account: _settled_with(memory, name) for name, account in memory.named_accounts(ACQUIRER_PREFIX)}
    if (fees := memory.account(FEES)) is not None:
        named[fees] = FEES
    from_date = date_of_day(max(day_of(window.date) - appeal_days_max, 0))
    settled = memory.documents.scan(DocumentKind.GREY, window_key(from_date), window_key(window.date))
    keys = [int.from_bytes(key[4:], "big") for key, _ in settled]
    return _Plan(
        previous_state, dict(memory.account_operators), list(memory.terminal_accounts), named, acquirers,
        int(memory.engine.counts["cards"]), keys,
    )  # fmt: skip


def _settled_with(memory: Memory, account_name: str) -> str:
    """The participant that an account "acquirer:…" or "acquirer:…:merchant" belongs to."""
    acquirer_id, _, merchant_id = account_name.removeprefix(ACQUIRER_PREFIX).partition(":")
    merchant = find_merchant(memory, acquirer_id, merchant_id) if merchant_id else None
    return account_name if merchant is None else participant_of(merchant)


def _stand_in(participant: str) -> Agreement:
    """For a participant without an agreement: whether it matters is known when the window was read."""
    day = date_of(20000101)
    return Agreement(participant, day, day, None, "", 0, 0, limits.TAP_FEN_MAX, Fee(), 0, 1, None, CapAction.WARN, 0)


def _terms(plan: _Plan, agreements: Agreements, date: int) -> tuple[Terms, list[str]]:
    """The participants and what was agreed with them; and those with whom nothing was."""
    accounts = {account: OPERATOR_PREFIX + name for account, name in plan.operator_of_account.items()} | plan.acquirers
    participants, day = list(dict.fromkeys(accounts.values())), date_of(date)
    found = {participant: agreements.find(participant, day) for participant in participants}
    places = {participant: place for place, participant in enumerate(participants)}
    place_of_account = {account: places[participant] for account, participant in accounts.items()}
    within_s = {}
    for transfer in agreements.transfers(day):
        a, b = (places.get(operator, -1) for operator in transfer.operators)
        if a >= 0 and b >= 0:
            within_s[a, b] = within_s[b, a] = transfer.within_minutes * 60
    if len(participants) > NO_OPERATOR:
        raise ConfigError("participants", f"clearing knows {NO_OPERATOR} operators and acquirers at most")
    terms = Terms(
        participants,
        [agreement or _stand_in(participant) for participant, agreement in found.items()],
        place_of_account,
        np.array([place_of_account[account] for account in plan.account_of_terminal], np.uint16),
        agreements.city,
        within_s,
    )
    return terms, [participant for participant, agreement in found.items() if agreement is None]


def _without_agreement(tally: Tally, terms: Terms, missing: list[str]) -> list[str]:
    """Those of the participants without an agreement whose money the window moves."""
    posted = {account for kind, *pair in tally.postings if line_of(kind) is not None for account in pair}
    moved = set(tally.proved["operator"].tolist()) | {terms.place_of_account.get(account) for account in posted}
    return sorted(
        participant
        for place, participant in enumerate(terms.participants)
        if participant in missing and (tally.taps[place] or place in moved)
    )


# ---- files beside the journal ----


class _Files:
    """What clearing keeps of each window: arrays in `folder`, each whole or not there. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _path(self, date: int, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{date}.{name}.npy"

    def put(self, date: int, name: str, array: Any) -> None:
        path = self._path(date, name)
        if path is None:
            return
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def get(self, date: int, name: str, dtype: Any) -> Any:
        """The array, or None where it is not there or not what was written."""
        path = self._path(date, name)
        if path is None:
            return None
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return array if array.dtype == dtype and array.ndim == 1 else None

    def drop(self, date: int, *names: str) -> None:
        for name in names:
            path = self._path(date, name)
            if path is not None:
                path.unlink(missing_ok=True)


@dataclass
class _Left:
    """What a window leaves to the next."""

    states: CardStates
    pending: Any


# ---- the flow ----


@dataclass(frozen=True)
class DayRules:
    """By what a day is cleared and sealed; `folder` keeps what clearing carries on (None: it is made anew each time)."""

    folder: Path | None = None
    agreements: Agreements | None = None
    seal_key: PrivateKey | None = None

    @classmethod
    def read(cls, data: Path, agreements: str, seal_key: str) -> "DayRules":
        """From the files that settings name; "" for none. Raises RuleError or ConfigError."""
        return cls(
            data / FOLDER,
            Agreements.read(Path(agreements)) if agreements else None,
            PrivateKey.read(Path(seal_key)) if seal_key else None,
        )


class Day:
    """Takes windows through the day. `read` opens a picture of the journal, `ask` runs commands. Methods may be called from any
    thread but the writer's, and block."""

    def __init__(self, read: Callable[[], JournalReader], ask: Ask, rules: DayRules) -> None:
        self._read = read
        self.ask = ask
        self._files = _Files(rules.folder)
        self._settled = None if rules.folder is None else rules.folder.parent / SETTLED_FOLDER
        self._agreements = rules.agreements
        self._seal_key = rules.seal_key
        self._one_at_a_time = threading.Lock()

    # ---- 1. close ----

    def close(self, request: clearing_service_pb2.CloseWindowRequest) -> clearing_service_pb2.CloseWindowResponse:
        """ClearingService.CloseWindow."""
        date = check_date(request.settlement_date)
        with self._read() as reader:
            has_records = find_window(reader, date) is not None
        return self.ask(lambda memory, time_us: close_window(memory, request, time_us, has_records=has_records))

    def _before(self, request: Any, response: type[Response]) -> tuple[Response | None, clearing_service_pb2.WindowDocument]:
        """The answer that a request got before, if it did, and its window as it stands."""
        date = request.settlement_date
        return self.ask(lambda memory, _: (answered(memory, request, response), window_document(memory, date)))

    # ---- 2. clear, 3. net ----

    def clear(
        self, request: clearing_service_pb2.ClearWindowRequest, progress: Progress = lambda done, total: None
    ) -> clearing_service_pb2.ClearWindowResponse:
        """ClearingService.ClearWindow. Raises ConfigError where the core was started without agreements."""
        response = clearing_service_pb2.ClearWindowResponse
        check_date(request.settlement_date)
        agreements = self._agreements
        if agreements is None:
            raise ConfigError("agreements", "is not set: without agreements nothing can be cleared")
        with self._one_at_a_time:
            # 1. May it be cleared? A picture of the journal that is taken after the window was closed holds all of it.
            answer, document = self._before(request, response)
            if answer is not None:
                return answer
            with self._read() as reader:
                return self._clear(reader, request, document, agreements, progress)

    def _clear(
        self,
        reader: JournalReader,
        request: clearing_service_pb2.ClearWindowRequest,
        document: clearing_service_pb2.WindowDocument,
        agreements: Agreements,
        progress: Progress,
    ) -> clearing_service_pb2.ClearWindowResponse:
        response, date = clearing_service_pb2.ClearWindowResponse, request.settlement_date
        window = find_window(reader, date)
        if window is None:
            return response(result=wire(Result.WINDOW_NOT_FOUND), reason="no record has that date")
        previous = _window_before(reader, window)
        plan = self._plan(window, previous, agreements)
        if (refusal := _refusal(document, plan)) is not None:
            return refusal
        failpoint("clear-planned")
        # 2. Read them, and net what came out.
        left = self._left_by(reader, previous, agreements)
        terms, missing = _terms(plan, agreements, date)
        tally = self._tally(reader, window, plan, terms, left, progress)
        if without := _without_agreement(tally, terms, missing):
            reason = f"there is no agreement on {date_of(date)} with {', '.join(without)}"
            return response(result=wire(Result.NO_AGREEMENT), reason=reason)
        netted = net(tally, terms, agreements, plan.named)
        if blocked := [passed for passed in netted.caps_passed if passed.blocks]:
            reason = "; ".join(
                f"{passed.participant} would owe {-passed.net_fen} fen, its cap is {passed.cap_fen}" for passed in blocked
            )
            return response(result=wire(Result.NET_DEBIT_CAP), reason=reason)
        failpoint("clear-tallied")
        # 3. Keep what the next window needs, and the queue; then post.
        self._keep(date, tally, terms, left.states)
        failpoint("clear-kept")
        answer = self.ask(
            lambda memory, time_us: post_clearing(memory, request, window, tally, netted, agreements.version, time_us)
        )
        failpoint("clear-posted")
        if previous is not None:
            before = _window_before(reader, previous)
            if before is not None:
                self._files.drop(before.date, "cards", "pending")  # the last but one is not gone back to
        return answer

    def _plan(self, window: Range, previous: Range | None, agreements: Agreements) -> _Plan:
        return self.ask(lambda memory, _: _plan(memory, window, previous, limits.APPEAL_DAYS_MAX))

    def _tally(
        self,
        reader: JournalReader,
        window: Range,
        plan: _Plan,
        terms: Terms,
        left: _Left,
        progress: Progress = lambda done, total: None,
    ) -> Tally:
        return clear_window(
            reader,
            Window(window.date, window.first_sequence, window.last_sequence),
            terms,
            plan.cards,
            left.states,
            left.pending,
            lambda records: denied_since(reader, records),
            SettledGrey(np.array(plan.settled, np.uint64), plan.cards),
            self._files.folder,
            progress,
            lambda cards, more_fen: np.array(
                self.ask(lambda memory, _: loads.explain(memory, cards.tolist(), more_fen.tolist()))
            ),
        )

    def _keep(self, date: int, tally: Tally, terms: Terms, states: CardStates) -> None:
        self._files.put(date, "cards", states.array)
        self._files.put(date, "pending", tally.pending)
        self._files.put(date, "exceptions", tally.exceptions)

    def _left_by(self, reader: JournalReader, previous: Range | None, agreements: Agreements) -> _Left:
        """What the window before left; from its files, else made anew by clearing the windows before it once more."""
        if previous is None:
            return _Left(CardStates(), np.empty(0, ROW))
        cards, pending = self._files.get(previous.date, "cards", CARD), self._files.get(previous.date, "pending", ROW)
        if cards is not None and pending is not None:
            return _Left(CardStates(cards), pending)
        return self._again(reader, previous, agreements)[1]

    def _again(self, reader: JournalReader, window: Range, agreements: Agreements) -> tuple[Tally, _Left]:
        """A cleared window's tally and what it left, made once more; nothing is posted."""
        earlier: list[Range] = [window]
        left = _Left(CardStates(), np.empty(0, ROW))
        while (before := _window_before(reader, earlier[-1])) is not None:
            cards, pending = self._files.get(before.date, "cards", CARD), self._files.get(before.date, "pending", ROW)
            if cards is not None and pending is not None:
                left = _Left(CardStates(cards), pending)
                break
            earlier.append(before)
        for each in reversed(earlier):
            plan = self._plan(each, None, agreements)
            terms, _ = _terms(plan, agreements, each.date)
            tally = self._tally(reader, each, plan, terms, left)
            left = _Left(left.states, tally.pending)
            self._keep(each.date, tally, terms, left.states)
        return tally, left

    # ---- 4. settle ----

    def settle(self, request: settlement_service_pb2.SettleWindowRequest) -> settlement_service_pb2.SettleWindowResponse:
        """SettlementService.SettleWindow. Raises InvalidRequest where a participant with money to settle has no account in the
        agreements."""
        response = settlement_service_pb2.SettleWindowResponse
        date = check_date(request.settlement_date)
        with self._one_at_a_time:
            answer, document = self._before(request, response)
            if answer is not None:
                return answer
            if (state := WindowState(document.window.state)) is not WindowState.CLEARED:
                return response(result=wire(IN_THE_WAY[state]), window=document.window)
            netted, payees = netted_of(document), self.payees(date)
            orders = instructions(netted, payees)
            # 1. The files, whole or not at all; the same bytes again after a kill.
            if self._settled is not None:
                write_settlement(self._settled, netted, payees, self._time_of(netted.last_sequence))
            failpoint("settle-written")
            # 2. The instructions, and the window's state where there are none.
            answer = self.ask(lambda memory, time_us: post_settlement(memory, request, orders, payees, time_us))
            failpoint("settle-issued")
            return answer

    def _time_of(self, sequence: int) -> int:
        with self._read() as reader:
            found = reader.record(sequence)
        if found is None:
            raise Damaged(f"journal record {sequence} is missing")
        return int(found[1][0]["time_us"])

    def abort(self, request: settlement_service_pb2.AbortWindowRequest) -> settlement_service_pb2.AbortWindowResponse:
        """SettlementService.AbortWindow."""
        check_date(request.settlement_date)
        return self.ask(lambda memory, time_us: abort_window(memory, request, time_us))

    def resume(self, request: settlement_service_pb2.ResumeWindowRequest) -> settlement_service_pb2.ResumeWindowResponse:
        """SettlementService.ResumeWindow."""
        check_date(request.settlement_date)
        return self.ask(lambda memory, time_us: resume_window(memory, request, time_us))

    def list_files(
        self, request: settlement_service_pb2.ListSettlementFilesRequest
    ) -> settlement_service_pb2.ListSettlementFilesResponse:
        """SettlementService.ListSettlementFiles."""
        response = settlement_service_pb2.ListSettlementFilesResponse()
        for path in sorted(self._files_of(request.settlement_date).iterdir()):
            response.files.add(name=path.name, size_bytes=path.stat().st_size)
        return response

    def get_file(
        self, request: settlement_service_pb2.GetSettlementFileRequest
    ) -> settlement_service_pb2.GetSettlementFileResponse:
        """SettlementService.GetSettlementFile."""
        folder = self._files_of(request.settlement_date)
        if request.name not in {path.name for path in folder.iterdir()}:  # never a path of the caller's making
            raise NotFound("settlement file", request.name)
        return settlement_service_pb2.GetSettlementFileResponse(content=(folder / request.name).read_bytes())

    def _files_of(self, date: int) -> Path:
        folder = None if self._settled is None else self._settled / str(check_date(date))
        if folder is None or not folder.is_dir():
            raise NotFound("settlement", f"of {date}")
        return folder

    def get_report(self, request: settlement_service_pb2.GetReportRequest) -> settlement_service_pb2.GetReportResponse:
        """SettlementService.GetReport."""
        netted = netted_of(self._cleared(check_date(request.settlement_date)))
        made = self.ask(lambda memory, _: instructions_of(memory, netted.settlement_date))
        payments = [payment_of(instruction) for instruction in made]
        with self._read() as reader:
            figures = figures_of(reader, netted.first_sequence, netted.last_sequence)
        made_at_us = self._time_of(netted.last_sequence)
        if not request.participant:
            page = settlement_report(netted, made_at_us, figures, payments)
        else:
            position = next((each for each in netted.positions if each.participant == request.participant), None)
            if position is None:
                raise NotFound("participant", f"{request.participant} in the window of {request.settlement_date}")
            own = [payment for payment in payments if payment.instruction.participant == request.participant]
            payee = self.payees(netted.settlement_date).get(request.participant)
            page = statement(netted, position, made_at_us, None, own, payee)
        return settlement_service_pb2.GetReportResponse(html=page.encode())

    # ---- 6. seal ----

    def seal(
        self, request: settlement_service_pb2.SealWindowRequest, progress: Progress = lambda done, total: None
    ) -> settlement_service_pb2.SealWindowResponse:
        """SettlementService.SealWindow. Raises ConfigError where the core was started without a key to sign with."""
        response = settlement_service_pb2.SealWindowResponse
        check_date(request.settlement_date)
        key = self._seal_key
        if key is None:
            raise ConfigError("seal_key", "is not set: without a key nothing can be sealed")
        with self._one_at_a_time:
            answer, document = self._before(request, response)
            if answer is not None:
                return answer
            if (refused := seal_refused(document)) is not None:
                return response(result=wire(refused), window=document.window)
            with self._read() as reader:
                return self._seal(reader, request, document, key, progress)

    def _seal(
        self,
        reader: JournalReader,
        request: settlement_service_pb2.SealWindowRequest,
        document: clearing_service_pb2.WindowDocument,
        key: PrivateKey,
        progress: Progress,
    ) -> settlement_service_pb2.SealWindowResponse:
        response = settlement_service_pb2.SealWindowResponse
        window = find_window(reader, request.settlement_date)
        if window is None:
            return response(result=wire(Result.WINDOW_NOT_FOUND))
        previous = _window_before(reader, window)
        previous_seal = None
        if previous is not None:
            before = window_key(previous.date)
            previous_seal = self.ask(lambda memory, _: memory.documents.get(DocumentKind.SEAL, before))
            if previous_seal is None:
                return response(result=wire(Result.WINDOW_BEFORE))
        subtrees = records_tree(reader, window, progress)
        sealed = seal(window, subtrees, netted_of(document).positions, previous_seal, key)
        failpoint("seal-made")
        answer = self.ask(lambda memory, time_us: post_seal(memory, request, sealed, time_us))
        failpoint("seal-kept")
        return answer

    def get_seal(self, request: settlement_service_pb2.GetSealRequest) -> settlement_service_pb2.GetSealResponse:
        """SettlementService.GetSeal."""
        sealed, _ = self._sealed(check_date(request.settlement_date))
        return settlement_service_pb2.GetSealResponse(seal=sealed.seal)

    def get_receipt(self, request: settlement_service_pb2.GetReceiptRequest) -> settlement_service_pb2.GetReceiptResponse:
        """SettlementService.GetReceipt."""
        match request.WhichOneof("key"):
            case "sequence":
                with self._read() as reader:
                    found = reader.record(request.sequence)
                    if found is None:
                        raise NotFound("record", str(request.sequence))
                    date = date_of_day(int(settlement_days(found[1])[0]))
                    sealed, _ = self._sealed(date)
                    receipt = record_receipt(reader, request.sequence, sealed.seal, sealed.subtrees)
            case "participant_total":
                wanted = request.participant_total
                sealed, document = self._sealed(check_date(wanted.settlement_date))
                receipt = position_receipt(netted_of(document).positions, wanted.participant, sealed.seal)
            case _:
                raise InvalidRequest("key", "sequence or participant_total is wanted")
        return settlement_service_pb2.GetReceiptResponse(receipt=receipt)

    def _sealed(self, date: int) -> tuple[Sealed, clearing_service_pb2.WindowDocument]:
        def ask(memory: Memory, _: int) -> tuple[bytes | None, bytes | None, clearing_service_pb2.WindowDocument]:
            kept = [memory.documents.get(kind, window_key(date)) for kind in (DocumentKind.SEAL, DocumentKind.SEAL_TREE)]
            return kept[0], kept[1], window_document(memory, date)

        raw, subtrees, document = self.ask(ask)
        if raw is None or subtrees is None:
            raise NotFound("seal", f"of {date}")
        return Sealed(raw, subtrees), document

    # ---- looking ----

    def get_window(self, request: clearing_service_pb2.GetWindowRequest) -> clearing_service_pb2.GetWindowResponse:
        """ClearingService.GetWindow."""
        date = check_date(request.settlement_date)
        with self._read() as reader:
            window = find_window(reader, date)
        if window is None:
            raise NotFound("window", str(date))
        return clearing_service_pb2.GetWindowResponse(window=self._described([window])[0])

    def list_windows(self, request: clearing_service_pb2.ListWindowsRequest) -> clearing_service_pb2.ListWindowsResponse:
        """ClearingService.ListWindows."""
        size = page_size(request.page_size)
        start = int.from_bytes(parse_page_token(request.page_token, b"windows", 4), "big") if request.page_token else FIRST_DATE
        found: list[Range] = []
        with self._read() as reader:
            for window in windows_from(reader, start):
                found.append(window)
                if len(found) > size:
                    break
        token = page_token(window_key(found[size].date), b"windows") if len(found) > size else ""
        return clearing_service_pb2.ListWindowsResponse(windows=self._described(found[:size]), next_page_token=token)

    def _described(self, windows: list[Range]) -> list[clearing_service_pb2.ClearingWindow]:
        def ask(memory: Memory, _: int) -> list[clearing_service_pb2.ClearingWindow]:
            return [window_document(memory, window.date).window for window in windows]

        described: list[clearing_service_pb2.ClearingWindow] = self.ask(ask)
        for each, window in zip(described, windows, strict=True):
            each.first_sequence, each.last_sequence = window.first_sequence, window.last_sequence
        return described

    def list_positions(self, request: clearing_service_pb2.ListPositionsRequest) -> clearing_service_pb2.ListPositionsResponse:
        """ClearingService.ListPositions."""
        document = self._cleared(check_date(request.settlement_date))
        return clearing_service_pb2.ListPositionsResponse(positions=document.positions)

    def netted(self, date: int) -> Netted:
        """The positions of a cleared window, for settlement. Raises NotFound."""
        return netted_of(self._cleared(date))

    def payees(self, date: int) -> dict[str, Payee]:
        """Where participants' money goes to on a settlement date."""
        return self._agreements.payees(date_of(date)) if self._agreements is not None else {}

    def _cleared(self, date: int) -> clearing_service_pb2.WindowDocument:
        document: clearing_service_pb2.WindowDocument = self.ask(lambda memory, _: window_document(memory, date))
        if WindowState(document.window.state) not in CLEARED_STATES:
            raise NotFound("cleared window", str(date))
        return document

    def exceptions(self, date: int) -> Any:
        """The queue of a cleared window, an array of clear.EXCEPTION in order of sequence. Raises NotFound."""
        self._cleared(date)
        rows = self._files.get(date, "exceptions", EXCEPTION)
        if rows is not None:
            return rows
        if self._agreements is None:
            raise NotFound("queue of the window", str(date))
        with self._one_at_a_time, self._read() as reader:
            window = find_window(reader, date)
            if window is None:
                raise Damaged(f"the window of {date} was cleared, and has no records")
            return self._again(reader, window, self._agreements)[0].exceptions

    def list_exceptions(
        self, request: clearing_service_pb2.ListClearingExceptionsRequest
    ) -> clearing_service_pb2.ListClearingExceptionsResponse:
        """ClearingService.ListClearingExceptions."""
        size = page_size(request.page_size)
        date = check_date(request.settlement_date)
        of = f"exceptions {date} {int(request.outcome)}".encode()
        start = int.from_bytes(parse_page_token(request.page_token, of, 8), "big") if request.page_token else 0
        rows = self.exceptions(date)
        if request.outcome:
            rows = rows[rows["outcome"] == int(request.outcome)]
        page = rows[np.searchsorted(rows["sequence"], start) :][: size + 1]
        token = page_token(int(page["sequence"][size]).to_bytes(8, "big"), of) if len(page) > size else ""
        page = page[:size]
        found = self.ask(lambda memory, _: [exception_of(memory, date, row) for row in page])
        return clearing_service_pb2.ListClearingExceptionsResponse(exceptions=found, next_page_token=token)

    def take_up(self, request: exception_service_pb2.TakeUpExceptionRequest) -> exception_service_pb2.TakeUpExceptionResponse:
        """ExceptionService.TakeUpException."""
        rows = self.exceptions(check_date(request.settlement_date))
        rows = rows[rows["sequence"] == request.journal_sequence]
        if not len(rows):
            raise NotFound("exception", f"of record {request.journal_sequence} in the window of {request.settlement_date}")
        return self.ask(lambda memory, time_us: take_up_exception(memory, request, rows[0], time_us))


def _window_before(reader: JournalReader, window: Range) -> Range | None:
    """The window whose records end where this one's begin."""
    found = reader.record(window.first_sequence - 1) if window.first_sequence > 1 else None
    return find_window(reader, date_of_day(int(settlement_days(found[1])[0]))) if found is not None else None


def _refusal(document: clearing_service_pb2.WindowDocument, plan: _Plan) -> clearing_service_pb2.ClearWindowResponse | None:
    before = WindowState(document.window.state)
    state = after(before, WindowEvent.CLEAR)
    if isinstance(state, Result):
        reason = f"the window is {before.name}"
        return clearing_service_pb2.ClearWindowResponse(result=wire(state), window=document.window, reason=reason)
    if plan.previous_state not in CLEARED_STATES:
        reason = f"the window before it is {plan.previous_state.name}"
        return clearing_service_pb2.ClearWindowResponse(result=wire(Result.WINDOW_BEFORE), reason=reason)
    return None


"""What a row of the queue says in words; the other outcomes are not queued."""
