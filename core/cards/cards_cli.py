"""The command line of cards: `yikatong cards apply`."""

import csv
import sys
from pathlib import Path

import click
from rich.console import Console

from yikatong.core.types import Result
from yikatong.v1 import issuance_service_pb2 as pb

OUT = Console()
KINDS = {
    "ordinary": pb.APPLICATION_KIND_ORDINARY,
    "expedited": pb.APPLICATION_KIND_EXPEDITED,
    "instant": pb.APPLICATION_KIND_INSTANT,
}


@click.group()
def cards() -> None:
    """Cards of a server."""


@cards.command()
@click.option("--server", required=True, help="address of a running server, HOST:PORT, plaintext")
@click.option("--kind", type=click.Choice(list(KINDS)), default="ordinary", show_default=True, help="what is applied for")
@click.option("--failed", type=click.Path(path_type=Path), help="CSV file to write: the rows that were not accepted, and why")
@click.argument("file", type=click.Path(path_type=Path))
def apply(server: str, kind: str, failed: Path | None, file: Path) -> None:
    """Apply for cards for the people in a CSV file (UTF-8 or GB 18030; columns name, citizen_number, district, phone, address).

    The same file again goes on where it stopped. Exits with 1 where rows were not accepted."""
    from yikatong.clients.applications import apply_file, rows
    from yikatong.clients.connection import Connection
    from yikatong.core.cli import progress_bars

    with Connection(server) as connection:
        with progress_bars() as advance:
            batch = apply_file(connection, file, KINDS[kind], lambda done, total: advance("applying", done, total))
        OUT.print(
            f"batch {batch.batch_id.hex()}: {batch.rows_accepted:,} of {batch.rows_total:,} rows accepted",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        if batch.rows_accepted == batch.rows_done:
            return
        if failed is not None:
            with failed.open("w", encoding="utf-8", newline="") as out:
                writer = csv.writer(out)
                writer.writerow(("line", "result", "field", "reason"))
                for row in rows(connection, batch.batch_id, failed_only=True):
                    writer.writerow((row.line, Result(row.result).name, row.field, row.reason))
    sys.exit(1)
