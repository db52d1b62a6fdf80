"""The command line of who watches: `yikatong audit`, and `yikatong approvals list|show|approve|reject|export|permits`.

A command on a data directory runs as the machine's own operator, who is one person: what needs two goes through a server, where
certificates tell them apart."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import click
from google.protobuf.json_format import MessageToJson
from google.protobuf.message_factory import GetMessageClass
from rich import box
from rich.console import Console
from rich.table import Table

from yikatong.core.access.export_permits import FORMATS
from yikatong.core.errors import InvalidRequest, YikatongError
from yikatong.core.types import Result, wire
from yikatong.v1 import approval_service_pb2, audit_service_pb2, export_service_pb2

OUT = Console()
CHINA: Final = timezone(timedelta(hours=8))
CONNECT: Final = (
    click.option("--ca", type=click.Path(path_type=Path), help="PEM file of the authority of that server; else plaintext"),
    click.option("--certificate", type=click.Path(path_type=Path), help="PEM file of one's own certificate (mTLS)"),
    click.option("--key", type=click.Path(path_type=Path), help="PEM file of its key"),
)  # fmt: skip


class Refused(YikatongError):
    """The server answered with a result that is no yes."""


def _connect_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(CONNECT):
        command = option(command)
    return command


@contextmanager
def _stub(server: str, service: str, ca: Path | None, certificate: Path | None, key: Path | None) -> Iterator[Any]:
    from yikatong.clients.connection import Connection
    from yikatong.v1 import approval_service_pb2_grpc, audit_service_pb2_grpc, export_service_pb2_grpc

    stubs: dict[str, Any] = {
        "audit": audit_service_pb2_grpc.AuditServiceStub,
        "approvals": approval_service_pb2_grpc.ApprovalServiceStub,
        "exports": export_service_pb2_grpc.ExportServiceStub,
    }
    with Connection(server, ca=ca, certificate=certificate, key=key) as connection:
        yield stubs[service](connection.channel)


def _local(time_us: int) -> str:
    """UTC+8, as on paper."""
    return datetime.fromtimestamp(time_us / 1e6, CHINA).strftime("%Y-%m-%d %H:%M:%S")


# ---- audit ----


@click.command()
@click.option("--card", help="entries about the person whom the card of this number belongs to")
@click.option("--person", help="entries about a person, by its id: 32 hexadecimal digits")
@click.option("--caller", help="what a caller looked at, by its identity: yikatong:department:hrss")
@click.option("--purpose", required=True, help="what for; looking at the trail stands in it too")
@click.option("--legal-basis", default="", help="by which law")
@click.option("--limit", type=click.IntRange(1, 1_000), default=50, show_default=True, help="newest entries, so many")
@click.option("--data", type=click.Path(path_type=Path), help="data directory, while no server runs on it")
@click.option("--server", help="address of a running server, HOST:PORT")
@_connect_options
def audit(
    card: str | None, person: str | None, caller: str | None, purpose: str, legal_basis: str, limit: int,
    data: Path | None, server: str | None, ca: Path | None, certificate: Path | None, key: Path | None,
) -> None:  # fmt: skip
    """Show who saw or did what to somebody's data, or what one caller looked at."""
    if sum(each is not None for each in (card, person, caller)) != 1:
        raise click.UsageError("one of --card, --person and --caller is wanted")
    if (data is None) == (server is None):
        raise click.UsageError("either --data or --server is wanted")
    common: dict[str, Any] = {"purpose": purpose, "legal_basis": legal_basis, "page_size": limit}
    request: Any
    if caller is not None:
        request = audit_service_pb2.ListCallerAccessesRequest(caller=caller, **common)
    elif card is not None:
        request = audit_service_pb2.ListAccessesRequest(card_number=card, **common)
    else:
        request = audit_service_pb2.ListAccessesRequest(person_id=_hex("--person", person or ""), **common)
    if data is not None:
        response = _ask_locally(data, request)
    else:
        with _stub(server or "", "audit", ca, certificate, key) as stub:
            response = (stub.ListAccesses if caller is None else stub.ListCallerAccesses)(request)
    table = Table(box=box.SIMPLE)
    table.add_column("record", justify="right", overflow="fold")
    for column in ("when", "caller", "action", "purpose", "shown"):
        table.add_column(column, overflow="fold")
    for entry in response.accesses:
        shown = ", ".join(entry.fields) + (f" of {entry.listed_caller}" if entry.listed_caller else "")
        table.add_row(f"{entry.sequence:,}", _local(entry.time_us), entry.caller, entry.action, entry.purpose, shown)
    OUT.print(table)
    if response.next_page_token:
        OUT.print("There are older ones: ask for more with --limit.", highlight=False)


def _ask_locally(data: Path, request: Any) -> Any:
    from yikatong.core.access.audit import list_accesses, list_caller_accesses
    from yikatong.core.access.callers import LOCAL
    from yikatong.core.identity.persons import person_of_card
    from yikatong.core.local import LocalCore

    if not data.is_dir():
        raise click.UsageError(f"--data: there is no folder {data}")
    with LocalCore(data) as local:
        if isinstance(request, audit_service_pb2.ListAccessesRequest):
            return local.ask(lambda memory, time_us: list_accesses(person_of_card, memory, request, time_us, LOCAL))
        return local.ask(lambda memory, time_us: list_caller_accesses(memory, request, time_us, LOCAL))


def _hex(option: str, text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise InvalidRequest(option, "hexadecimal digits are wanted") from None


# ---- approvals ----


def _table(name: str, *columns: str) -> Table:
    """What is named by its first column, which is always told whole."""
    table = Table(box=box.SIMPLE)
    table.add_column(name, no_wrap=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


server_option = click.option("--server", required=True, help="address of a running server, HOST:PORT")


@click.group()
def approvals() -> None:
    """What waits for a second operator: list, look at, approve or reject it."""


@approvals.command(name="list")
@server_option
@_connect_options
def list_command(server: str, ca: Path | None, certificate: Path | None, key: Path | None) -> None:
    """What waits, newest first."""
    table = _table("id", "method", "proposed by", "at", "until")
    with _stub(server, "approvals", ca, certificate, key) as stub:
        request = approval_service_pb2.ListApprovalsRequest(state=approval_service_pb2.APPROVAL_STATE_PROPOSED)
        for each in stub.ListApprovals(request).approvals:
            method = each.method.removeprefix("yikatong.v1.")
            table.add_row(each.approval_id, method, each.proposed_by, _local(each.proposed_us), _local(each.expires_us))
    OUT.print(table)


@approvals.command()
@server_option
@click.argument("approval_id")
@click.option("--purpose", default="to decide on it", show_default=True, help="what for; it goes into the audit trail")
@_connect_options
def show(
    server: str, approval_id: str, purpose: str, ca: Path | None, certificate: Path | None, key: Path | None
) -> None:  # fmt: skip
    """What is to be done, and the digest to approve it by."""
    from yikatong.core.access.oversight import method_of
    from yikatong.core.service import SERVICES

    assert SERVICES  # importing them is what makes their messages known
    with _stub(server, "approvals", ca, certificate, key) as stub:
        response = stub.GetApproval(approval_service_pb2.GetApprovalRequest(approval_id=approval_id, purpose=purpose))
    approval = response.approval
    OUT.print(f"{approval.method}, proposed by {approval.proposed_by}", highlight=False, soft_wrap=True, markup=False)
    message = GetMessageClass(method_of(approval.method).input_type).FromString(response.request)
    OUT.print(MessageToJson(message, ensure_ascii=False), highlight=False, soft_wrap=True, markup=False)
    OUT.print(f"digest {approval.request_digest.hex()}", highlight=False, soft_wrap=True)


@approvals.command()
@server_option
@click.argument("approval_id")
@click.option("--digest", required=True, help="of what was looked at, as `show` prints it")
@_connect_options
def approve(
    server: str, approval_id: str, digest: str, ca: Path | None, certificate: Path | None, key: Path | None
) -> None:  # fmt: skip
    """Approve what somebody else proposed: it is done at once."""
    request = approval_service_pb2.ApproveRequestRequest(
        request_id=secrets.token_bytes(16), approval_id=approval_id, request_digest=_hex("--digest", digest)
    )
    with _stub(server, "approvals", ca, certificate, key) as stub:
        response = _answered(stub.ApproveRequest(request))
    OUT.print(f"{approval_id}: done, {Result(response.executed_result).name}", highlight=False, soft_wrap=True)


@approvals.command()
@server_option
@click.argument("approval_id")
@_connect_options
def reject(server: str, approval_id: str, ca: Path | None, certificate: Path | None, key: Path | None) -> None:
    """Turn a proposal down, or take one's own back."""
    request = approval_service_pb2.RejectRequestRequest(request_id=secrets.token_bytes(16), approval_id=approval_id)
    with _stub(server, "approvals", ca, certificate, key) as stub:
        _answered(stub.RejectRequest(request))
    OUT.print(f"{approval_id}: rejected", highlight=False, soft_wrap=True)


@approvals.command(name="export")
@server_option
@click.option("--format", "form", type=click.Choice(list(FORMATS)), required=True)
@click.option("--purpose", required=True, help="what the export is for")
@_connect_options
def propose_export(
    server: str, form: str, purpose: str, ca: Path | None, certificate: Path | None, key: Path | None
) -> None:  # fmt: skip
    """Propose an export of the journal: another operator's approval makes a permit of it."""
    request = export_service_pb2.PermitExportRequest(
        request_id=secrets.token_bytes(16), format=wire(FORMATS[form]), purpose=purpose
    )
    with _stub(server, "exports", ca, certificate, key) as stub:
        response = stub.PermitExport(request)
    if response.result != Result.APPROVAL_PENDING:
        raise Refused(Result(response.result).name)
    OUT.print(f"{response.approval_id}: waits for a second operator", highlight=False, soft_wrap=True)


@approvals.command()
@server_option
@_connect_options
def permits(server: str, ca: Path | None, certificate: Path | None, key: Path | None) -> None:
    """Exports that were permitted, newest first; which were done stands in exports.log of the data directory."""
    table = _table("permit", "format", "for", "permitted", "until")
    names = {number: name for name, number in FORMATS.items()}
    with _stub(server, "exports", ca, certificate, key) as stub:
        for each in stub.ListExportPermits(export_service_pb2.ListExportPermitsRequest()).permits:
            permitted, until = _local(each.permitted_us), _local(each.expires_us)
            table.add_row(each.permit_id, names[each.format], each.purpose, permitted, until)
    OUT.print(table)


def _answered(response: Any) -> Any:
    if response.result != Result.ACCEPTED:
        raise Refused(Result(response.result).name)
    return response


def add_oversight_commands(group: click.Group) -> None:
    """Put these commands into the command line."""
    group.add_command(audit)
    group.add_command(approvals)
