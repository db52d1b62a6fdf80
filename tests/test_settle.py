"""Settlement files: they say what was netted, are written whole, and what was altered is found."""

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from yikatong.core import files, money
from yikatong.core.day import settle
from yikatong.core.day.positions import Line, LineKind, Netted, Payee, Position
from yikatong.core.errors import DataError, InvalidRequest
from yikatong.core.files import FileError
from yikatong.core.journal import sm3

MADE_AT_US = 1_769_882_400_000_000  # 2026-02-01T02:00:00+08:00
SPACES = {"p": settle.PAIN_NAMESPACE}


def payee(participant: str, number: int = 1) -> Payee:
    return Payee(participant, f"河源账户{number}", f"{102598000000 + number}", f"{6222000000000000 + number}")


def day() -> tuple[Netted, dict[str, Payee]]:
    positions = (
        Position("city:5840", (Line(LineKind.INTER_CITY, 3, -4500),)),
        Position("fees", (Line(LineKind.FEES, 1000, 600),)),
        Position("float", (Line(LineKind.TAPS, 1000, -203_100),)),
        Position("operator:idle", ()),
        Position("operator:河源公交", (Line(LineKind.TAPS, 1000, 207_600), Line(LineKind.FEES, 1000, -600))),
    )
    payees = {name: payee(name, at) for at, name in enumerate(("float", "city:5840", "operator:河源公交"))}
    return Netted(20260131, 1001, 2003, positions), payees


def test_money_on_paper():
    for fen, plain, grouped in [
        (0, "0.00", "0.00"),
        (5, "0.05", "0.05"),
        (-5, "-0.05", "-0.05"),
        (-100, "-1.00", "-1.00"),
        (123_456_789, "1234567.89", "1,234,567.89"),
    ]:
        assert (money.yuan(fen), money.grouped_yuan(fen), money.parse_yuan(plain)) == (plain, grouped, fen)
    for wrong in ("", "1", "1.0", "01.00", "-0.00", "1,000.00", "+1.00", "1.00 ", "１.00", "1e2"):
        with pytest.raises(ValueError, match="yuan"):
            money.parse_yuan(wrong)


def test_folder_says_what_was_netted(tmp_path: Path):
    netted, payees = day()
    folder = settle.write_settlement(tmp_path, netted, payees, MADE_AT_US)
    names = sorted(path.name for path in folder.iterdir())
    assert folder == tmp_path / "20260131"
    assert len(names) == 2 * 5 + 1 + 2 + 1
    # Each participant can read its file, in both encodings, with the same content.
    told = {}
    for path in folder.glob("*.csv"):
        if not path.name.startswith("claims"):
            read = settle.read_settlement_csv(path.name, path.read_bytes())
            assert told.setdefault(read.position.participant, read) == read
    assert {name: read.position for name, read in told.items()} == {
        position.participant: position for position in netted.positions
    }
    assert {read.instruction_id != "" for name, read in told.items() if name in ("float", "fees", "operator:idle")} == {False}
    bus = told["operator:河源公交"]
    assert (bus.settlement_date, bus.first_sequence, bus.last_sequence, bus.made_at_us) == (20260131, 1001, 2003, MADE_AT_US)
    # What is paid and claimed are the positions of those who have an account.
    orders = settle.instructions(netted, payees)
    assert [(order.participant, order.amount_fen) for order in orders] == [("city:5840", -4500), ("operator:河源公交", 207_000)]
    assert orders[1].instruction_id == bus.instruction_id
    xml = etree.parse(folder / "payments.pain.001.xml")
    assert xml.xpath("//p:EndToEndId/text()", namespaces=SPACES) == [bus.instruction_id]
    assert xml.xpath("//p:InstdAmt[@Ccy='CNY']/text()", namespaces=SPACES) == ["2070.00"]
    assert xml.xpath("//p:CtrlSum/text()", namespaces=SPACES) == ["2070.00"] * 2
    assert xml.xpath("//p:CdtrAcct/p:Id/p:Othr/p:Id/text()", namespaces=SPACES) == [payees["operator:河源公交"].account_number]
    claims = (folder / "claims.gb18030.csv").read_bytes().decode("gb18030").splitlines()
    assert claims[-3] == f"CLAIM,{orders[0].instruction_id},city:5840,河源账户1,102598000001,6222000000000001,45.00"
    assert claims[-2] == "TOTAL,1,45.00"
    # The digests are those of another implementation where there is one.
    for line in (folder / "SM3SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        content = (folder / name).read_bytes()
        assert digest == (
            hashlib.new("sm3", content).hexdigest() if "sm3" in hashlib.algorithms_available else sm3(content).hex()
        )


def test_written_again_it_is_the_same_and_other_content_is_not_overwritten(tmp_path: Path):
    netted, payees = day()
    folder = settle.write_settlement(tmp_path, netted, payees, MADE_AT_US)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    settle.write_settlement(tmp_path, netted, payees, MADE_AT_US)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    with pytest.raises(DataError, match="other content"):
        settle.write_settlement(tmp_path, netted, payees, MADE_AT_US + 1_000_000)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: held for name, (held, _) in before.items()}


KILLER = """
import os, pathlib, signal, sys
from tests_day import day, MADE_AT_US
from yikatong.core.day import settle
steps = int(sys.argv[2])
def counted(real):
    def call(*arguments, **named):
        global steps
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **named)
    return call
os.fsync = counted(os.fsync)
pathlib.Path.write_bytes = counted(pathlib.Path.write_bytes)
pathlib.Path.rename = counted(pathlib.Path.rename)
settle.write_settlement(pathlib.Path(sys.argv[1]), *day(), MADE_AT_US)
"""


@pytest.mark.parametrize("steps", [0, 1, 7, 14, 15, 28, 29, 30, 99])
def test_a_kill_leaves_all_or_nothing(tmp_path: Path, steps: int):
    """Killed at each kind of step (writing, syncing, renaming), the folder is whole or not there; then it can be written."""
    (tmp_path / "tests_day.py").write_text(Path(__file__).read_text())
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", KILLER, str(tmp_path), str(steps)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == (0 if steps == 99 else -signal.SIGKILL), done.stderr.decode()
    wanted = settle.settlement_files(*day(), MADE_AT_US)
    folder = tmp_path / "20260131"
    assert folder.exists() == (steps >= 30)
    if folder.exists():
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    settle.write_settlement(tmp_path, *day(), MADE_AT_US)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda netted, payees: (replace(netted, positions=netted.positions[1:]), payees), "positions"),
        (lambda netted, payees: (replace(netted, positions=(*netted.positions, netted.positions[3])), payees), "positions"),
        (lambda netted, payees: (netted, {k: v for k, v in payees.items() if k != "float"}), "payees[float]"),
        (lambda netted, payees: (netted, {k: v for k, v in payees.items() if k != "city:5840"}), "payees[city:5840]"),
        (
            lambda netted, payees: (netted, payees | {"city:5840": replace(payees["city:5840"], bank_code="1")}),
            "payees[city:5840].bank_code",
        ),
        (
            lambda netted, payees: (netted, payees | {"city:5840": replace(payees["city:5840"], account_number="12-3")}),
            "payees[city:5840].account_number",
        ),
        (
            lambda netted, payees: (netted, payees | {"city:5840": replace(payees["city:5840"], name="a\nb")}),
            "payees[city:5840].name",
        ),
    ],
)
def test_what_cannot_be_settled_is_refused(tmp_path: Path, change, field):
    with pytest.raises(InvalidRequest) as caught:
        settle.write_settlement(tmp_path, *change(*day()), MADE_AT_US)
    assert caught.value.field == field
    assert list(tmp_path.iterdir()) == []


def example(encoding: str = "UTF-8") -> bytes:
    netted, payees = day()
    order = settle.instructions(netted, payees)[1]
    told = settle.SettlementFile(20260131, 1001, 2003, MADE_AT_US, order.instruction_id, netted.positions[4])
    return settle.settlement_csv(told, encoding)


def signed_again(raw: bytes, old: bytes, new: bytes) -> bytes:
    """The file with something replaced, and a digest that agrees with it."""
    assert raw.count(old) >= 1
    return files.with_digest(raw[: raw.index(b"DIGEST")].replace(old, new, 1))


def test_what_it_looks_like():
    assert example().decode().splitlines()[:-1] == [
        "HEADER,encoding,UTF-8",
        "HEADER,format,yikatong-settlement-1",
        "HEADER,participant,operator:河源公交",
        "HEADER,settlement_date,20260131",
        "HEADER,first_sequence,1001",
        "HEADER,last_sequence,2003",
        "HEADER,currency,CNY",
        "HEADER,made_at,2026-02-01T02:00:00+08:00",
        f"HEADER,instruction_id,20260131-{sm3('operator:河源公交'.encode())[:8].hex()}-0",
        "COLUMNS,kind,description,count,amount_fen,amount",
        "LINE,taps,刷卡消费,1000,207600,2076.00",
        "LINE,fees,手续费,1000,-600,-6.00",
        "TOTAL,2,2000,207000,2070.00",
    ]


@pytest.mark.parametrize(
    ("old", "new", "line", "field"),
    [
        # operation on the file                                        line and field that are told
        (b"HEADER,encoding,UTF-8", b"HEADER,encoding,UTF-16", 1, "encoding"),
        (b"HEADER,encoding,UTF-8", b"\xef\xbb\xbfHEADER,encoding,UTF-8", 1, "encoding"),
        (b"HEADER,format,yikatong-settlement-1", b"HEADER,format,yikatong-settlement-9", 2, "format"),
        (b"HEADER,participant,", b"HEADER,party,", 3, "participant"),
        (b"HEADER,settlement_date,20260131", b"HEADER,settlement_date,20260231", 4, "settlement_date"),
        (b"HEADER,settlement_date,20260131", b"HEADER,settlement_date,20260130", 9, "instruction_id"),
        (b"HEADER,first_sequence,1001\n", b"", 5, "first_sequence"),
        (b"HEADER,currency,CNY", b"HEADER,currency,USD", 7, "currency"),
        (b"T02:00:00+08:00", b"T02:00:00Z", 8, "made_at"),
        (b"amount_fen,amount\n", b"amount,amount_fen\n", 10, "COLUMNS"),
        (b"LINE,taps", b"LINE,tips", 11, "kind"),
        (b"LINE,fees", b"LINE,taps", 12, "kind"),
        ("手续费".encode(), "手续".encode(), 12, "description"),
        (b",1000,207600,", b",-1000,207600,", 11, "count"),
        (b",207600,2076.00", b",207600,2076.01", 11, "amount"),
        (b",207600,2076.00", b",207600,2076.00,x", 11, ""),
        (b",207600,2076.00", b',207600,"2076.00', 11, ""),
        (b"LINE,taps", b"\nLINE,taps", 11, ""),
        (b"TOTAL,2,2000,", b"TOTAL,3,2000,", 13, "count"),
        (b"TOTAL,2,2000,", b"TOTAL,2,2001,", 13, "records"),
        (b",207000,2070.00", b",207001,2070.00", 13, "amount_fen"),
        (b",207000,2070.00", b",207000,2070.01", 13, "amount"),
        (b"TOTAL,2,2000,207000,2070.00\n", b"", 12, "TOTAL"),
        ("河源".encode(), b"\xff\xfe", 3, ""),
        ("河源".encode(), "河\u2028源".encode(), 3, "participant"),
        (b"\nHEADER,participant", b"\rHEADER,participant", 2, ""),
    ],
)
def test_what_is_wrong_is_told_with_line_and_field(old, new, line, field):
    with pytest.raises(FileError) as caught:
        settle.read_settlement_csv("bus.csv", signed_again(example(), old, new))
    assert (caught.value.file, caught.value.line, caught.value.field) == ("bus.csv", line, field)


@pytest.mark.parametrize(
    ("raw", "line", "field"),
    [
        (b"", 1, "encoding"),
        (example()[:200], example()[:200].count(b"\n") + 1, "DIGEST"),
        (example()[: example().index(b"DIGEST")], 13, "DIGEST"),
        (files.with_digest(b"HEADER,encoding,UTF-8\n"), 2, ""),
        # UTF-8 that says it is GB 18030, and the other way about: where it decodes at all, what it says is not what it must.
        (signed_again(example(), b"encoding,UTF-8", b"encoding,GB18030"), 12, ""),
        (signed_again(example("GB18030"), b"encoding,GB18030", b"encoding,UTF-8"), 3, ""),
    ],
)
def test_cut_or_in_the_wrong_encoding(raw, line, field):
    with pytest.raises(FileError) as caught:
        settle.read_settlement_csv("bus.csv", raw)
    assert (caught.value.line, caught.value.field) == (line, field)


def test_windows_line_ends_are_read():
    body = example()[: example().index(b"DIGEST")].replace(b"\n", b"\r\n")
    raw = files.with_digest(body).replace(b"\n", b"\r\n").replace(b"\r\r", b"\r")
    assert settle.read_settlement_csv("bus.csv", raw) == settle.read_settlement_csv("bus.csv", example())


@given(st.data())
def test_any_byte_altered_is_found(data):
    raw = bytearray(example(data.draw(st.sampled_from(["UTF-8", "GB18030"]))))
    at = data.draw(st.integers(0, len(raw) - 2))  # the last byte is the end of the last line, which says nothing
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FileError):
        settle.read_settlement_csv("bus.csv", bytes(raw))


NAMES = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1, max_size=60)
LINES = st.lists(
    st.builds(Line, st.sampled_from(LineKind), st.integers(0, 10**9), st.integers(-(10**15), 10**15)),
    max_size=6,
    unique_by=lambda line: line.kind,
)


@given(NAMES, LINES, st.sampled_from(["UTF-8", "GB18030"]))
def test_any_file_reads_back(name, lines, encoding):
    told = settle.SettlementFile(20260131, 1, 9, MADE_AT_US, "", Position(f"operator:{name}", tuple(lines)))
    assert settle.read_settlement_csv("f", settle.settlement_csv(told, encoding)) == told


@given(NAMES.map(str.strip).filter(bool), st.integers(1, 10**15), st.integers(0, 9))
def test_any_payment_follows_the_schema(name, amount_fen, attempt):
    order = settle.Instruction(settle.instruction_id(20260131, name, attempt), 20260131, name, amount_fen, attempt)
    payees = {"float": payee("float"), name: replace(payee(name), name=name)}
    xml = settle.bank_files(20260131, attempt, MADE_AT_US, [order], payees)["payments.pain.001.xml"]
    read = etree.fromstring(xml)
    assert read.xpath("//p:Cdtr/p:Nm/text()", namespaces=SPACES) == [name]
    assert read.xpath("//p:InstdAmt/text()", namespaces=SPACES) == [money.yuan(amount_fen)]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"<NbOfTxs>1<", b"<NbOfTxs>2<", "NbOfTxs"),
        (b"<CtrlSum>2070.00<", b"<CtrlSum>2070.01<", "CtrlSum"),
        (b">2070.00</InstdAmt>", b">2070.0</InstdAmt>", "InstdAmt"),
        (b">2070.00</InstdAmt>", b">0.00</InstdAmt>", "InstdAmt"),
        (b'Ccy="CNY"', b'Ccy="USD"', "Ccy"),
        (b"<PmtMtd>TRF", b"<PmtMtd>CHK", "PmtMtd"),
        (b"<MmbId>102598000000", b"<MmbId>10259800000", "MmbId"),
        (b"+08:00</CreDtTm>", b"Z</CreDtTm>", "CreDtTm"),
        (b"pain.001.001.09", b"pain.001.001.03", "Document"),
        (b"<PmtInfId>", b"<PmtInfId/><PmtInfId>", "PmtInfId"),
        (b"</Document>", b"", "not XML"),
    ],
)
def test_a_payment_message_that_is_wrong_is_refused(old, new, said):
    netted, payees = day()
    raw = settle.settlement_files(netted, payees, MADE_AT_US)["payments.pain.001.xml"]
    settle.check_payments_xml("payments", raw)
    assert old in raw
    with pytest.raises(FileError, match=said):
        settle.check_payments_xml("payments", raw.replace(old, new, 1))
