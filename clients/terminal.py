"""A terminal: counts its taps, sends them online one by one, or keeps them and uploads them in batches.

    python -m yikatong.clients.terminal --server HOST:PORT --ca ca.pem --certificate t.pem --key t.key sync --stored taps.spool

uploads what lies in a spool file, and brings the deny list up to date. The spool is a SubmitTapsRequest (tap_service.proto) to
which each tap is appended as it is made."""

import json
import os
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import click

from yikatong.clients.card import SimulatedCard
from yikatong.clients.command import connected, name_of, run, say
from yikatong.clients.connection import Connection, call
from yikatong.core.access.callers import Caller
from yikatong.core.errors import FileFault
from yikatong.core.types import Result
from yikatong.v1 import access_pb2, deny_list_service_pb2, tap_service_pb2

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


class Spool:
    """Taps in a file, until they were answered: they survive a power cut. One thread of one process uses it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def store(self, tap: tap_service_pb2.Tap) -> None:
        """Append one tap; it is on disk when this returns."""
        if self.path.exists() and (torn := self.path.stat().st_size - self._whole()):
            os.truncate(self.path, self.path.stat().st_size - torn)  # the power went while the last one was written
        with self.path.open("ab") as file:
            file.write(tap_service_pb2.SubmitTapsRequest(taps=[tap]).SerializeToString())
            file.flush()
            os.fsync(file.fileno())

    def taps(self) -> list[tap_service_pb2.Tap]:
        """All that wait, oldest first. Raises FileFault when the file holds something else."""
        if not self.path.exists():
            return []
        raw = self.path.read_bytes()
        try:
            return list(tap_service_pb2.SubmitTapsRequest.FromString(raw[: self._whole()]).taps)
        except Exception as error:
            raise FileFault(str(self.path), 0, "", "is no spool of taps") from error

    def upload(self, connection: Connection, *, deadline_s: float = 60.0) -> Iterator[tap_service_pb2.TapOutcome]:
        """Upload, batch by batch; what was answered leaves the file. Yields the answers, in order. Raises grpc.RpcError when
        there was none; nothing is lost then, and what had been taken is told to be a duplicate the next time."""
        while batch := self.taps()[:UPLOAD_TAPS_MAX]:
            request = tap_service_pb2.SubmitTapsRequest(taps=batch)
            outcomes = call(connection.taps.SubmitTaps, request, timeout_s=20, deadline_s=deadline_s).outcomes
            waiting = self.taps()[len(batch) :]  # with what was stored meanwhile
            partial = self.path.with_name(self.path.name + ".partial")
            partial.write_bytes(tap_service_pb2.SubmitTapsRequest(taps=waiting).SerializeToString())
            partial.replace(self.path)
            yield from outcomes

    def _whole(self) -> int:
        """How many bytes of the file are whole taps."""
        raw, at = self.path.read_bytes(), 0
        while at < len(raw) and raw[at] == 0x0A:  # field 1, a message
            length, shift, end = 0, 0, at + 1
            while end < len(raw):
                length |= (raw[end] & 0x7F) << shift
                shift += 7
                end += 1
                if raw[end - 1] < 0x80:
                    break
            else:
                return at
            if end + length > len(raw):
                return at
            at = end + length
        if at < len(raw) and raw[at] != 0x0A:
            raise FileFault(str(self.path), 0, "", f"is no spool of taps: byte {at} begins none")
        return at


@click.group()
def terminal() -> None:
    """A terminal's side of its nightly work."""


@terminal.command()
@click.option("--stored", type=click.Path(path_type=Path), help="spool file of taps to upload")
@click.option("--deny-list", type=click.Path(path_type=Path), help="file to keep the deny list in, as JSON")
@connected
def sync(connection: Connection, caller: Caller, stored: Path | None, deny_list: Path | None) -> None:
    """Upload stored taps, and bring the deny list up to date. Prints a line a tap, then one for the list."""
    number = bytes.fromhex(name_of(caller, access_pb2.ROLE_TERMINAL, "terminal"))
    if stored is not None:
        for outcome in Spool(stored).upload(connection):
            say({"result": Result(outcome.result).name, "duplicate": outcome.duplicate, "charged_fen": outcome.charged_fen,
                 "sequence": outcome.sequence})  # fmt: skip
    if deny_list is not None:
        own = Terminal(number, 0, "")
        if deny_list.exists():
            kept = json.loads(deny_list.read_text("utf-8"))
            own.deny_version, own.denied = kept["version"], set(kept["cards"])
        changes = own.fetch_deny_list(connection)
        partial = deny_list.with_name(deny_list.name + ".partial")
        partial.write_text(json.dumps({"version": own.deny_version, "cards": sorted(own.denied)}), "utf-8")
        partial.replace(deny_list)
        say({"deny_list_version": own.deny_version, "cards": len(own.denied), "changes": changes})


if __name__ == "__main__":
    run(terminal)
