"""A terminal: counts its taps, sends them online one by one, or keeps them and uploads them in batches."""

from datetime import datetime, timedelta, timezone
from typing import Final

from yikatong.clients.card import SimulatedCard
from yikatong.clients.connection import Connection, call
from yikatong.v1 import deny_list_service_pb2, tap_service_pb2

LOCAL_ZONE: Final = timezone(timedelta(hours=8))
UPLOAD_TAPS_MAX: Final = 8_192


def local_time_now() -> int:
    """YYYYMMDDhhmmss (UTC+8) as one number."""
    return int(datetime.now(LOCAL_ZONE).strftime("%Y%m%d%H%M%S"))


class Terminal:
    """One terminal. Calls that failed in transport may be made again: the server knows a repeated tap."""

    def __init__(self, terminal_number: bytes, kind: int, operator_id: str) -> None:
        self.terminal_number = terminal_number
        self.kind = kind
        self.operator_id = operator_id
        self.sequence = 0
        self.stored: list[tap_service_pb2.Tap] = []
        self.denied: set[str] = set()
        self.deny_version = 0

    def present(self, card: SimulatedCard, amount_fen: int, **fields: object) -> tap_service_pb2.Tap:
        """A card is held to the terminal now: the next tap of both."""
        self.sequence += 1
        return card.tap(self.terminal_number, self.sequence, local_time_now(), amount_fen, **fields)

    def store(self, tap: tap_service_pb2.Tap) -> None:
        """Keep a tap for the next upload."""
        self.stored.append(tap)

    def fetch_deny_list(self, connection: Connection, *, page_size: int = 0) -> int:
        """Bring the deny list up to date: in full the first time, then what changed. Returns how many entries came. A terminal
        refuses the cards in `denied`; one that takes them although it could have fetched the list bears the loss."""
        token, version, full = "", 0, False
        entries: list[deny_list_service_pb2.GetDenyListResponse.Entry] = []
        while True:
            request = deny_list_service_pb2.GetDenyListRequest(version=self.deny_version, page_size=page_size, page_token=token)
            page = call(connection.deny_list.GetDenyList, request, timeout_s=10)
            entries.extend(page.entries)
            full = page.kind == deny_list_service_pb2.GetDenyListResponse.KIND_FULL
            version = version or page.version
            token = page.next_page_token
            if not token:
                break
        if full:
            self.denied = set()
        for entry in entries:
            if entry.reasons:
                self.denied.add(entry.card_number)
            else:
                self.denied.discard(entry.card_number)
        self.deny_version = version
        return len(entries)

    def authorize(self, connection: Connection, tap: tap_service_pb2.Tap, *, attempts: int = 1) -> tap_service_pb2.TapOutcome:
        """Send one tap online. Raises grpc.RpcError when there was no answer."""
        request = tap_service_pb2.AuthorizeTapRequest(tap=tap)
        outcome: tap_service_pb2.TapOutcome = call(connection.taps.AuthorizeTap, request, timeout_s=10, attempts=attempts).outcome
        return outcome

    def upload(
        self, connection: Connection, *, attempts: int = 1
    ) -> list[tuple[tap_service_pb2.Tap, tap_service_pb2.TapOutcome]]:
        """Upload what is kept, and forget what was answered. Raises grpc.RpcError when there was no answer; all is kept then."""
        answered: list[tuple[tap_service_pb2.Tap, tap_service_pb2.TapOutcome]] = []
        while self.stored:
            batch = self.stored[:UPLOAD_TAPS_MAX]
            request = tap_service_pb2.SubmitTapsRequest(taps=batch)
            outcomes = call(connection.taps.SubmitTaps, request, timeout_s=10, attempts=attempts).outcomes
            answered.extend(zip(batch, outcomes, strict=True))
            del self.stored[: len(batch)]
        return answered
