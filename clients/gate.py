"""A gate that reads codes: ride codes it checks itself, without network, and keeps their taps for the next upload; online codes
it sends on at once."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Final

from yikatong.clients.connection import Connection, call
from yikatong.core.cards.ride_code import Checker, RideCode
from yikatong.core.sm2 import PublicKey
from yikatong.core.types import Result
from yikatong.v1 import code_service_pb2, tap_service_pb2

UPLOAD_TAPS_MAX: Final = 1_024
_CHINA: Final = timezone(timedelta(hours=8))


class Gate:
    """One gate. `authorities` are the keys that it trusts, by CA index; `denied` are the numbers (of e-cards too) on the deny
    list that it has (Terminal.denied). What it remembers of used codes is bounded by their validity: an older one is refused for
    its age. Taps are kept in `stored` until they were answered."""

    def __init__(
        self,
        terminal_number: bytes,
        authorities: Mapping[int, PublicKey],
        *,
        denied: set[str] | None = None,
        sequence: int = 0,
        clock: Callable[[], float] = time.time,
        **place: int,
    ) -> None:
        """`place`: line, stop, direction, city, industry, kind: fields of CodeTap that stand in each tap."""
        self._checker = Checker(authorities)
        self._clock = clock
        self._place = {"kind": int(tap_service_pb2.TAP_KIND_SINGLE)} | place
        self._used: dict[bytes, int] = {}  # digest → when it is too old anyway
        self.terminal_number = terminal_number
        self.sequence = sequence
        self.denied = set() if denied is None else denied
        self.stored: list[code_service_pb2.CodeTap] = []

    def admit(self, code: bytes, amount_fen: int = 0) -> Result:
        """Whether a ride code opens the gate: ACCEPTED, and its tap is kept for upload; or why not."""
        now_s = int(self._clock())
        checked = self._checker.check(code, now_s, amount_fen, lambda read: read.digest in self._used)
        if isinstance(checked, Result):
            return checked
        if checked.part.card_number in self.denied:
            return Result.CARD_DENIED
        self._remember(checked, now_s)
        self.stored.append(self._tap(code, amount_fen, now_s))
        return Result.ACCEPTED

    def _remember(self, code: RideCode, now_s: int) -> None:
        for digest in [digest for digest, until_s in self._used.items() if until_s < now_s]:
            del self._used[digest]
        self._used[code.digest] = code.generated_s + code.part.validity_s

    def _tap(self, code: bytes, amount_fen: int, now_s: int) -> code_service_pb2.CodeTap:
        self.sequence += 1
        return code_service_pb2.CodeTap(
            code=code, terminal_number=self.terminal_number, terminal_sequence=self.sequence, amount_fen=amount_fen,
            local_time=int(datetime.fromtimestamp(now_s, _CHINA).strftime("%Y%m%d%H%M%S")), amount_due_fen=amount_fen,
            **self._place,  # type: ignore[arg-type]
        )  # fmt: skip

    def authorize(self, connection: Connection, code: bytes, amount_fen: int = 0) -> tap_service_pb2.TapOutcome:
        """Tap with a code of either kind at once. Raises grpc.RpcError when there was no answer, not even after some attempts."""
        tap = self._tap(code, amount_fen, int(self._clock()))
        request = code_service_pb2.TapByCodeRequest(taps=[tap])
        outcome: tap_service_pb2.TapOutcome = call(connection.codes.TapByCode, request, timeout_s=10, attempts=3).outcomes[0]
        return outcome

    def upload(self, connection: Connection) -> list[tuple[code_service_pb2.CodeTap, tap_service_pb2.TapOutcome]]:
        """Upload what is kept, and forget what was answered. Raises grpc.RpcError when there was no answer; all is kept then."""
        answered: list[tuple[code_service_pb2.CodeTap, tap_service_pb2.TapOutcome]] = []
        while self.stored:
            batch = self.stored[:UPLOAD_TAPS_MAX]
            request = code_service_pb2.TapByCodeRequest(taps=batch, stored=True)
            outcomes = call(connection.codes.TapByCode, request, timeout_s=30).outcomes
            answered.extend(zip(batch, outcomes, strict=True))
            del self.stored[: len(batch)]
        return answered
