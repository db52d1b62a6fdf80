"""The tariff of the benches that price: that of Shenzhen, and caps of every period that no card of a bench reaches."""

from pathlib import Path
from typing import Final

from yikatong.clients.pricing import DEFAULT_TARIFF
from yikatong.core.rules.compile import Compiled
from yikatong.core.tariffs import read_tariffs

CHARGED_FEN: Final = 160  # of 200 on a bus
OVERDRAFT_FEN: Final = 800


def write_tariff(folder: Path) -> Path:
    """The file."""
    caps = "".join(
        f'\n[[fare_caps]]\nid = "{period}"\nperiod = "{period}"\namount_fen = {amount_fen}\n'
        for period, amount_fen in (("day", 1_000_000), ("week", 5_000_000), ("month", 10_000_000))
    )
    path = folder / "bench-tariff.toml"
    path.write_text(DEFAULT_TARIFF.read_text("utf-8") + caps, "utf-8")
    return path


def tariff_arguments(folder: Path) -> tuple[str, ...]:
    """Of `yikatong serve`."""
    return "--tariffs", str(write_tariff(folder)), "--overdraft-fen", str(OVERDRAFT_FEN)


def compile_tariff(folder: Path) -> Compiled:
    return read_tariffs(write_tariff(folder))
