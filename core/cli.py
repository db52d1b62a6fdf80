"""The command line: `yikatong serve`, and the tools around it."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import grpc
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from yikatong.bench.load_cli import load_command
from yikatong.core import logs
from yikatong.core.access.certs_cli import certs
from yikatong.core.access.oversight_cli import add_oversight_commands
from yikatong.core.cards.cards_cli import cards
from yikatong.core.config import Settings, flag, read_settings
from yikatong.core.day.day_cli import add_day_commands
from yikatong.core.errors import YikatongError
from yikatong.core.keys.cli import add_keys_commands
from yikatong.core.memory import EngineSettings

OUT = Console()
ERR = Console(stderr=True)


def main() -> None:
    """Entry point. What is wrong is told in one line on standard error; the exit status is 1 then, 2 for wrong usage."""
    try:
        cli.main(prog_name="yikatong", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except grpc.RpcError as error:
        code, details = (error.code().name, error.details()) if isinstance(error, grpc.Call) else ("", str(error))
        ERR.print(
            f"yikatong: the server answers {code}: {details}", style="bold red", highlight=False, markup=False, soft_wrap=True
        )
        sys.exit(1)
    except YikatongError as error:
        ERR.print(f"yikatong: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)


@contextlib.contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on standard error: call with what is being done, how much is done, of how much."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=ERR) as bars:

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """A flag for each setting."""
    for setting in reversed(fields(Settings)):
        kind = type(setting.default)
        declaration = f"{flag(setting.name)}/--no-{flag(setting.name)[2:]}" if kind is bool else flag(setting.name)
        command = click.option(declaration, setting.name, type=kind, default=None, help=setting.metadata["help"])(command)
    return command


data_option = click.option(
    "--data", type=click.Path(path_type=Path), required=True, envvar="YIKATONG_DATA", help="data directory"
)


@click.group()
@click.version_option(package_name="yikatong")
def cli() -> None:
    """Yikatong: the transaction core of a city card."""


@cli.command()
@click.option("--config", type=click.Path(path_type=Path), help="TOML configuration file", envvar="YIKATONG_CONFIG")
@click.option("--ready", type=click.Path(path_type=Path), help="write the bound ports to this file, as JSON, once serving")
@settings_options
def serve(config: Path | None, ready: Path | None, **flags: Any) -> None:
    """Serve until SIGTERM."""
    from yikatong.core.server import Server

    settings = read_settings(config, **flags)
    logs.configure(json=settings.json_logs)

    async def run() -> None:
        with contextlib.ExitStack() as stack:
            advance = None if settings.json_logs or not sys.stderr.isatty() else stack.enter_context(progress_bars())
            server = await Server.start(
                settings, lambda done, total: advance("replaying the journal", done, total) if advance else None
            )
        server.announce()
        if ready is not None:
            partial = ready.with_name(ready.name + ".partial")
            partial.write_text(json.dumps(server.ports()))
            partial.replace(ready)
        await server.run_until_signal()

    uvloop.run(run())


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="data directory of the replay's own server; else a temporary one")
@click.option("--server", help="replay against the server at this address instead, HOST:PORT")
@click.option("--keys", type=click.Path(path_type=Path), help="key file of that server; its first key set signs the taps")
@click.option(
    "--ca", type=click.Path(path_type=Path), help="PEM file of the authority of that server's certificate; else plaintext"
)
@click.option("--certificate", type=click.Path(path_type=Path), help="PEM file of the client's certificate (mTLS)")
@click.option("--key", type=click.Path(path_type=Path), help="PEM file of its key")
@click.option(
    "--counters",
    type=click.Path(path_type=Path),
    help="file in which the simulated chips and terminals keep their counters; in the data directory where there is one",
)
@click.option("--strict", is_flag=True, help="refuse a file with a broken line, before anything is done")
@click.option(
    "--price", is_flag=True, help="charge what the tariff makes of the nominal fares, and compare with what the file says"
)
@click.option("--tariff", type=click.Path(path_type=Path), help="tariff file for --price; that of Shenzhen unless given")
@click.option(
    "--json", "json_out", type=click.Path(path_type=Path), help="write the result to this file as JSON; - for standard output"
)
def replay(
    file: Path, data: Path | None, server: str | None, keys: Path | None, ca: Path | None, certificate: Path | None,
    key: Path | None, counters: Path | None, strict: bool, price: bool, tariff: Path | None, json_out: Path | None,
) -> None:  # fmt: skip
    """Replay published tap records (CSV) through a server and clear them."""
    from yikatong.clients.replay_command import run_replay

    if server is not None and data is not None:
        raise click.UsageError("--data is for the replay's own server; with --server there is none")
    if server is not None and keys is None:
        raise click.UsageError("--server needs --keys: the simulated cards sign with that server's master key")
    if tariff is not None and not price:
        raise click.UsageError("--tariff is for --price")
    with progress_bars() as advance, tempfile.TemporaryDirectory(prefix="yikatong-") as temporary:
        report, broken = run_replay(
            file, data or Path(temporary), server, keys, (ca, certificate, key), counters, strict, advance, price, tariff
        )
    text = json.dumps(report.as_json() | {"skipped": len(broken)}, ensure_ascii=False, indent=2)
    if json_out is not None and str(json_out) == "-":
        print(text)
    else:
        from yikatong.clients.tables import replay_table

        OUT.print(replay_table(report))
        if json_out is not None:
            json_out.write_text(text + "\n", "utf-8")
    if not report.agrees or report.imbalance_fen:
        sys.exit(1)


@cli.command()
@data_option
@click.option("--seal-public-key", type=click.Path(path_type=Path), help="PEM file of the key that windows are sealed with")
def check(data: Path, seal_public_key: Path | None) -> None:
    """Verify hash chain, balances, books and seals of a data directory. Exit status 1, and the first fault named, otherwise."""
    from yikatong.core.check import check as run_check
    from yikatong.core.sm2 import PublicKey

    key = None if seal_public_key is None else PublicKey.read(seal_public_key)
    with progress_bars() as advance:
        report = run_check(data, EngineSettings(), lambda done, total: advance("auditing the journal", done, total), key)
    OUT.print(
        f"{data}: sound. {report.records:,} records in {report.groups:,} groups; {report.cards:,} cards, "
        f"{report.terminals:,} terminals, {report.operators:,} operators; {report.accounts:,} accounts sum to 0; "
        f"turnover {report.turnover_fen / 100:,.2f} CNY; {report.seals:,} windows sealed.\nhead {report.head}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@cli.command()
@data_option
@click.option("--format", "form", type=click.Choice(["parquet", "csv"]), required=True)
@click.option("--out", type=click.Path(path_type=Path), help="file to write; journal.FORMAT unless given")
@click.option("--permit", default="", help="id of a permit by two operators, as `yikatong approvals permits` lists them")
def export(data: Path, form: str, out: Path | None, permit: str) -> None:
    """Write the journal out, one row a record. A data directory that was served to callers with certificates wants a permit."""
    from yikatong.core.export import export as run_export

    target = out or Path(f"journal.{form}")
    with progress_bars() as advance:
        records = run_export(
            data, target, form, EngineSettings(), lambda done, total: advance("exporting", done, total), permit
        )  # fmt: skip
    OUT.print(f"{target}: {records:,} records", highlight=False, soft_wrap=True)


@cli.command()
@data_option
@click.option("--to", type=click.Path(path_type=Path), required=True, help="folder to make")
def backup(data: Path, to: Path) -> None:
    """Copy a data directory, also while a server runs on it; `serve` starts from the copy."""
    from yikatong.core.export import backup as run_backup

    with ERR.status("copying"):
        run_backup(data, to)
    OUT.print(f"{to}: done", highlight=False, soft_wrap=True)


@cli.command()
@click.option("--seconds", type=click.FloatRange(1, 600), default=8.0, show_default=True, help="how long each half taps")
@click.option("--seed", type=int, default=None, help="draws the same riders again")
@click.option("--keep", type=click.Path(path_type=Path), help="folder to keep the day's report, statement and receipt in")
def demo(seconds: float, seed: int | None, keep: Path | None) -> None:
    """A city in small: taps over real gRPC, a server killed in the middle, and a day that is settled to the fen."""
    from yikatong.clients.demo import run_demo

    sys.exit(run_demo(OUT, seconds, seed, keep))


@cli.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="print a JSON list instead of a table")
@click.option("--tiny", is_flag=True, help="sizes that only show that the benches run")
def bench(names: tuple[str, ...], as_json: bool, tiny: bool) -> None:
    """Measure: mac, fares, engine, journal, unary, bulk, latency, restart, day; all of them unless named."""
    from yikatong.bench.run import run_benches

    run_benches(OUT, ERR, names, as_json=as_json, tiny=tiny)


cli.add_command(load_command)
cli.add_command(certs)
cli.add_command(cards)
add_day_commands(cli)
add_keys_commands(cli)
add_oversight_commands(cli)

if __name__ == "__main__":
    main()
