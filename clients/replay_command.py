"""What `yikatong replay` does before and around the replay itself: read the file, find a server, keep counters."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from yikatong.clients.connection import Connection
from yikatong.clients.counters import Counters
from yikatong.clients.embedded import EmbeddedServer
from yikatong.clients.pricing import read_tariff
from yikatong.clients.replay import Advance, ReplayReport, replay
from yikatong.clients.taps_csv import BrokenLine, read_records
from yikatong.core.errors import DataError
from yikatong.core.keys import key_sets

BROKEN_SHOWN = 20

TlsFiles = tuple[Path | None, Path | None, Path | None]  # authority, certificate, key


def _report_broken(file: Path, broken: list[BrokenLine], verdict: str) -> None:
    for line in broken[:BROKEN_SHOWN]:
        click.echo(f"{file}:{line.line}: {line.reason}: {verdict}", err=True)
    if len(broken) > BROKEN_SHOWN:
        click.echo(f"{file}: and {len(broken) - BROKEN_SHOWN} more broken lines", err=True)


@contextlib.contextmanager
def _address(data: Path, server: str | None, key_file: Path) -> Iterator[str]:
    if server is not None:
        yield server
        return
    with EmbeddedServer(data, key_file) as own:
        yield own.address


def run_replay(
    file: Path, data: Path, server: str | None, key_file: Path | None, tls: TlsFiles, counter_file: Path | None, strict: bool,
    advance: Advance, price: bool = False, tariff_file: Path | None = None,
) -> tuple[ReplayReport, list[BrokenLine]]:  # fmt: skip
    """Replay a file against the server at an address, or against one of its own on `data`; with `price`, at a tariff's fares.

    Raises DataError when the file is none, or with `strict` when a line of it is broken, and RuleError when the tariff is wrong;
    then nothing was done."""
    tariff = read_tariff(tariff_file) if price else None
    records, broken = read_records(file)
    _report_broken(file, broken, "refused" if strict else "skipped")
    if broken and strict:
        raise DataError(f"{file}: {len(broken)} broken lines; nothing was done")
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if key_file is None:
        key_file = data / "keys.toml"
        key_sets.make_test_keys(key_file)
    key_set = key_sets.load(key_file)[0]
    if counter_file is None and server is None:
        counter_file = data / "counters.sqlite"
    ca, certificate, key = tls
    with (
        _address(data, server, key_file) as address,
        Connection(address, ca=ca, certificate=certificate, key=key) as connection,
        Counters(counter_file) as counters,
    ):
        return replay(connection, records, key_set, counters, advance, tariff), broken
