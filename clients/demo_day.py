"""The demo's evening: a shop holds and captures, and then the day is closed, cleared, settled with a simulated bank and sealed,
ending in a statement and in a receipt that proves itself."""

import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table

from yikatong.clients.bank import return_file
from yikatong.clients.connection import Connection, call
from yikatong.clients.tables import yuan
from yikatong.core.day.reconcile import InstructionState
from yikatong.core.day.seal import ReceiptWrong, verify_receipt
from yikatong.core.sm2 import PublicKey, make_key_files
from yikatong.core.types import ClearingOutcome, WindowState
from yikatong.v1 import (
    authorization_service_pb2,
    clearing_service_pb2,
    merchant_service_pb2,
    reconciliation_service_pb2,
    result_pb2,
    settlement_service_pb2,
)

Tell = Callable[[bool, str, str], None]
ACQUIRER, SHOP, CATEGORY = "venues", "museum-shop", "5947"
ACCEPTED: Final = result_pb2.RESULT_ACCEPTED
STEP_S_MAX: Final = 60.0


def make_rules(folder: Path, operators: Sequence[str]) -> tuple[str, ...]:
    """Agreements with the operators and the acquirer, and a key to seal with; returns the server's flags."""
    parts = ['version = "demo"\ncity = 5980\n']
    for i, participant in enumerate([*(f"operator:{operator}" for operator in operators), f"acquirer:{ACQUIRER}"]):
        parts.append(
            f'[[agreement]]\nparticipant = "{participant}"\nfrom = 2020-01-01\nname = "{participant.partition(":")[2]}"\n'
            f'bank_code = "105598000001"\naccount_number = "{440000000000 + i}"\ncategory = "4131"\nappeal_days = 30\n'
            "deny_list_hours = 24\nfee = { rate_permille = 6, minimum_fen = 1 }\nconcessions = { city = 1 }\n"
        )
    for i, participant in enumerate(("float", "fees", "subsidy:city")):
        parts.append(
            f'[[account]]\nparticipant = "{participant}"\nfrom = 2020-01-01\nname = "{participant}"\n'
            f'bank_code = "105598000001"\naccount_number = "{550000000000 + i}"\n'
        )
    agreements = folder / "agreements.toml"
    agreements.write_text("\n".join(parts), "utf-8")
    make_key_files(folder / "seal.pem", folder / "seal-public.pem")
    return "--agreements", str(agreements), "--seal-key", str(folder / "seal.pem")


def shop(console: Console, connection: Connection, card_number: str, tell: Tell) -> None:
    """Two-phase payment: a hold, a part of it captured, a part of that given back."""
    merchant = merchant_service_pb2.Merchant(acquirer_id=ACQUIRER, merchant_id=SHOP, merchant_category=CATEGORY)
    call(connection.merchants.RegisterMerchants, merchant_service_pb2.RegisterMerchantsRequest(merchants=[merchant]))
    service = connection.authorizations
    held = call(
        service.Authorize,
        authorization_service_pb2.AuthorizeRequest(
            request_id=secrets.token_bytes(16), acquirer_id=ACQUIRER, merchant_id=SHOP, merchant_category=CATEGORY,
            card_number=card_number, amount_fen=5_000, timeout_s=600,
        ),
    )  # fmt: skip

    def of_hold(kind: Any, amount_fen: int, **fields: Any) -> Any:
        return kind(
            request_id=secrets.token_bytes(16), acquirer_id=ACQUIRER, authorization_id=held.authorization_id,
            amount_fen=amount_fen, **fields,
        )  # fmt: skip

    above = call(service.Capture, of_hold(authorization_service_pb2.CaptureRequest, 5_001))
    captured = call(service.Capture, of_hold(authorization_service_pb2.CaptureRequest, 3_200, final=True))
    refunded = call(service.Refund, of_hold(authorization_service_pb2.RefundRequest, 700))
    tell(
        [held.result, above.result, captured.result, refunded.result]
        == [ACCEPTED, result_pb2.RESULT_CAPTURE_ABOVE_HOLD, ACCEPTED, ACCEPTED],
        "the museum shop held 50.00 CNY, was refused 50.01, captured 32.00 and gave 7.00 back",
        f"the shop was answered {held.result}, {above.result}, {captured.result}, {refunded.result}",
    )


def _outcome_table(windows: Sequence[clearing_service_pb2.ClearingWindow]) -> Table:
    table = Table(title="What clears, and what does not", box=box.SIMPLE_HEAVY)
    table.add_column("outcome")
    table.add_column("taps", justify="right")
    table.add_column("CNY", justify="right")
    for window in windows:
        for total in window.outcomes:
            name = ClearingOutcome(total.outcome).name.lower().replace("_", " ")
            table.add_row(name, f"{total.count:,}", yuan(total.amount_fen))
    return table


def _statement_table(position: clearing_service_pb2.ParticipantPosition) -> Table:
    table = Table(title=f"Statement: {position.participant}", box=box.SIMPLE_HEAVY, show_footer=True)
    table.add_column("line", "net")
    table.add_column("records", justify="right")
    table.add_column("CNY", yuan(position.net_fen), justify="right")
    for line in position.lines:
        table.add_row(line.kind, f"{line.count:,}", yuan(line.amount_fen))
    return table


def _pay(connection: Connection, date: int, returned: Sequence[str] = ()) -> tuple[int, int]:
    """The bank says what became of the instructions on their way: how many were paid, and how many returned."""
    listed = call(
        connection.reconciliation.ListInstructions,
        reconciliation_service_pb2.ListInstructionsRequest(settlement_date=date, page_size=1_000),
    ).instructions
    open_ = [order for order in listed if order.state == InstructionState.ISSUED]
    if not open_:
        return 0, 0
    content = return_file(f"{date}-{len(listed)}", open_, time.time_ns() // 1000, returned=returned)
    request = reconciliation_service_pb2.IngestBankFileRequest(
        request_id=secrets.token_bytes(16), name="bank.csv", content=content
    )
    told = call(connection.reconciliation.IngestBankFile, request)
    for order in listed:
        if order.participant in returned:
            again = reconciliation_service_pb2.ReissueInstructionRequest(
                request_id=secrets.token_bytes(16), instruction_id=order.instruction_id
            )
            call(connection.reconciliation.ReissueInstruction, again)
    return told.paid, told.returned


def settle_day(
    console: Console, connection: Connection, folder: Path, operator: str, sequence: int, tell: Tell
) -> dict[str, bytes]:
    """Take every date so far through the day; `operator` gets a statement, the tap at `sequence` a receipt. Returns what a clerk
    would keep, by file name."""
    listed = call(connection.clearing.ListWindows, clearing_service_pb2.ListWindowsRequest()).windows
    dates = [window.settlement_date for window in listed]
    cleared: list[clearing_service_pb2.ClearingWindow] = []
    states: list[int] = []
    for date in dates:
        close = clearing_service_pb2.CloseWindowRequest(request_id=secrets.token_bytes(16), settlement_date=date)
        call(connection.clearing.CloseWindow, close, timeout_s=STEP_S_MAX)
        clear = clearing_service_pb2.ClearWindowRequest(request_id=secrets.token_bytes(16), settlement_date=date)
        cleared.append(call(connection.clearing.ClearWindow, clear, timeout_s=STEP_S_MAX).window)
        settle = settlement_service_pb2.SettleWindowRequest(request_id=secrets.token_bytes(16), settlement_date=date)
        settling = call(connection.settlement.SettleWindow, settle, timeout_s=STEP_S_MAX)
        if settling.instructions:
            first = _pay(connection, date, [f"operator:{operator}"])
            second = _pay(connection, date)
            tell(
                second == (first[1], 0) and first[0] + second[0] == settling.instructions,
                f"{date}: {settling.instructions} instructions to the bank; {first[1]} came back and went again; all are paid",
                f"{date}: the bank's files were booked as {first}, {second}",
            )
        seal = settlement_service_pb2.SealWindowRequest(request_id=secrets.token_bytes(16), settlement_date=date)
        states.append(call(connection.settlement.SealWindow, seal, timeout_s=STEP_S_MAX).window.state)
    console.print(_outcome_table(cleared))
    tell(set(states) == {WindowState.SETTLED}, f"settled and sealed: {', '.join(map(str, dates))}", f"states: {states}")

    date = dates[-1]
    positions = call(connection.clearing.ListPositions, clearing_service_pb2.ListPositionsRequest(settlement_date=date)).positions
    net_fen = sum(position.net_fen for position in positions)
    tell(net_fen == 0, f"{len(positions)} positions sum to zero", f"positions sum to {net_fen} fen")
    for position in positions:
        if position.participant == f"operator:{operator}":
            console.print(_statement_table(position))

    kept = {"seal-public.pem": (folder / "seal-public.pem").read_bytes()}
    for name, participant in (("report.html", ""), ("statement.html", f"operator:{operator}")):
        wanted = settlement_service_pb2.GetReportRequest(settlement_date=date, participant=participant)
        kept[name] = call(connection.settlement.GetReport, wanted, timeout_s=STEP_S_MAX).html
    receipt = call(connection.settlement.GetReceipt, settlement_service_pb2.GetReceiptRequest(sequence=sequence)).receipt
    kept["receipt.json"] = receipt
    _show_receipt(console, receipt, PublicKey.read(folder / "seal-public.pem"), tell)
    return kept


def _show_receipt(console: Console, receipt: bytes, key: PublicKey, tell: Tell) -> None:
    """The receipt alone, and the public key: nothing else is asked."""
    try:
        words = verify_receipt(receipt, key).words()
    except ReceiptWrong as wrong:
        tell(False, "", f"the receipt is wrong: {wrong}")
        return
    console.print(f"receipt: {words}", highlight=False)
    found = 0
    places = range(0, len(receipt), max(len(receipt) // 64, 1))
    for at in places:
        try:
            verify_receipt(receipt[:at] + bytes([receipt[at] ^ 1]) + receipt[at + 1 :], key)
        except ReceiptWrong:
            found += 1
    tell(
        found == len(places),
        f"the receipt proves itself without the server; of {len(places)} altered copies all were found",
        f"{len(places) - found} altered copies of the receipt were believed",
    )
