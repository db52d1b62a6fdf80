"""Nothing that tells who somebody is, and nothing that opens something, is written anywhere: planted through every method of a
whole server, and searched for in everything that it wrote."""

import asyncio
import io
import logging
import re
import secrets
import sys
import threading
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet
import pytest
from canaries import CARD, CARD_2, Canaries, citizen_number, forms, name
from city import new_terminal, top_up
from day_city import AGREEMENTS
from google.protobuf.message_factory import GetMessageClass

from yikatong.clients.card import SimulatedCard
from yikatong.clients.connection import Connection
from yikatong.core import commands, logs, queries
from yikatong.core.access.oversight import method_of
from yikatong.core.access.personal import level_of
from yikatong.core.check import check
from yikatong.core.config import Settings
from yikatong.core.export import SCHEMA, backup, export
from yikatong.core.keys import key_sets
from yikatong.core.memory import EngineSettings
from yikatong.core.metrics import methods_of_protos
from yikatong.core.server import Server
from yikatong.core.store import DataDirectory
from yikatong.ext import sm4
from yikatong.v1 import access_pb2, card_service_pb2, clearing_service_pb2, settlement_service_pb2

IN_THE_CLEAR = {
    # fields whose values may stand in the journal as they are, and why
    "yikatong.v1.Tap.mac": "the proof of a tap that was: it opens nothing, and whoever doubts the tap needs it",
    "yikatong.v1.FreezeCardRequest.reason": "why an authority froze a card: read by whoever is asked to lift it",
    "purse_kind": "an identifier of the rules, not a value of a person's",
    "exception_service": "what operators and cardholders wrote on a case of money; read again by those who decide it",
}


def is_allowed_in_stores(where: str) -> bool:
    of_case = where.rpartition(".")[2] in ("note", "text", "description")
    return where in IN_THE_CLEAR or "purse_kind" in where or of_case


class Running:
    """A whole server in this process, its log on two handlers at DEBUG."""

    def __init__(self, settings: Settings) -> None:
        self.text, self.json = io.StringIO(), io.StringIO()
        self.handlers = []
        for stream, as_json in ((self.text, False), (self.json, True)):
            handler = logging.StreamHandler(stream)
            handler.setFormatter(logs.formatter(json=as_json))
            self.handlers.append(handler)
            logging.getLogger().addHandler(handler)
        self.level, self.interval = logging.getLogger().level, sys.getswitchinterval()
        logging.getLogger().setLevel(logging.DEBUG)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server: Server = self.run(Server.start(settings))

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def metrics(self) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.server.metrics_port}/metrics") as answer:
            return bytes(answer.read())

    def logged(self) -> bytes:
        return (self.text.getvalue() + self.json.getvalue()).encode()

    def wait_until_rebuilt(self) -> None:
        """What GetTerminal was made to raise ends a group; the writer starts anew from the disk."""
        for _ in range(500):
            if self.text.getvalue().count("a group could not be decided") == self.text.getvalue().count("serving again"):
                return
            threading.Event().wait(0.02)
        raise AssertionError("it does not serve again")

    def stop(self) -> None:
        self.run(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        for handler in self.handlers:
            logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(self.level)
        sys.setswitchinterval(self.interval)


class Written:
    """Everything that was written somewhere, by where."""

    def __init__(self) -> None:
        self.canaries = Canaries()
        self.keys: dict[str, bytes] = {}
        self.texts: dict[str, bytes] = {}  # logs, metrics, errors, exports, what commands print
        self.stores: dict[str, bytes] = {}  # files of the data directory, and of its backup
        self.methods: set[str] = set()


def raising(what: str) -> Any:
    def fail(*_: Any) -> Any:
        raise ValueError(f"cannot do with {what}")

    return fail


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    tmp = tmp_path_factory.mktemp("canaries")
    found, patch = Written(), pytest.MonkeyPatch()
    key_file = tmp / "keys.toml"
    key_sets.make_test_keys(key_file)
    (tmp / "agreements.toml").write_text(AGREEMENTS)
    masters, provider = key_sets.load(key_file), key_sets.load_provider(key_file)
    for entry in tomllib.loads(key_file.read_text())["key"]:
        if re.fullmatch(r"[0-9a-f]{32}", entry["value"]):
            found.keys[f"master {entry['purpose']}"] = bytes.fromhex(entry["value"])
    found.keys["master tac"] = masters[0].master
    found.keys["issuer key"] = masters[0].parent()
    found.keys["card key"] = sm4.diversify(masters[0].parent(), bytes.fromhex(CARD))
    in_traceback = f"{citizen_number()} {name()} {secrets.token_hex(16)}"
    for part in in_traceback.split():
        found.canaries.plant(part, "an exception's words")
    patch.setattr(commands, "get_terminal", raising(in_traceback))
    patch.setattr(queries, "get_tap", raising(in_traceback))
    settings = Settings(
        data=str(tmp / "data"), keys=str(key_file), agreements=str(tmp / "agreements.toml"), insecure=True,
        service_port=0, tap_port=0, metrics_port=0, drain_s=0.1, cards_max=1_000, terminals_max=1_000,
        rate_general_per_s=0, rate_personal_per_s=0, rate_proof_per_s=0,
    )  # fmt: skip
    running = Running(settings)
    try:
        errors: list[bytes] = []
        with Connection(f"127.0.0.1:{running.server.service_port}") as connection:
            _live(connection, masters[0])
            _call_all(connection, found, errors)
            _call_all(connection, found, errors)  # what answers the first time may refuse the second
            running.wait_until_rebuilt()
            _settle(connection)
        found.texts["errors"] = b"\n".join(errors)
        found.texts["metrics"] = running.metrics()
        server = running.server
        held = (server, vars(server), server.core, vars(server.core), server.settings, server.core.journal, provider, masters)
        found.texts["reprs"] = "\n".join(repr(each) for each in held).encode()
    finally:
        running.stop()
        patch.undo()
    found.texts["log"] = running.logged()
    report = check(tmp / "data", EngineSettings())
    found.texts["check"] = repr(report).encode()
    for form in ("csv", "parquet"):
        export(tmp / "data", tmp / f"journal.{form}", form, EngineSettings())
        found.texts[form] = (tmp / f"journal.{form}").read_bytes()
    found.texts["parquet, read"] = repr(pyarrow.parquet.read_table(tmp / "journal.parquet").to_pydict()).encode()
    backup(tmp / "data", tmp / "backup")
    for path in sorted([*(tmp / "data").rglob("*"), *(tmp / "backup").rglob("*")]):
        if path.is_file():
            store = found.stores if path.suffix == ".mdb" else found.texts
            store[str(path.relative_to(tmp))] = path.read_bytes()
    return found


def _live(connection: Connection, key_set: key_sets.KeySet) -> None:
    """Cards with money and a tap of each, so that methods find something."""
    cards = [card_service_pb2.Card(card_number=number, issuer_id=key_set.issuer_id, rider=3) for number in (CARD, CARD_2)]
    connection.cards.RegisterCards(card_service_pb2.RegisterCardsRequest(cards=cards))
    terminal = new_terminal(connection, "bus")
    for number in (CARD, CARD_2):
        top_up(connection, number, 10_000)
        card = SimulatedCard(number, key_set, 10_000)
        terminal.authorize(connection, terminal.present(card, 200))


def _call_all(connection: Connection, found: Written, errors: list[bytes]) -> None:
    for _, service, method in methods_of_protos():
        descriptor = method_of(f"{service}/{method}")
        if descriptor.client_streaming or descriptor.server_streaming:
            continue
        call = connection.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(descriptor.output_type).FromString,
        )
        for request in found.canaries.requests(descriptor.input_type):
            for _ in range(50):
                try:
                    call(request, timeout=20)
                except grpc.RpcError as error:
                    assert isinstance(error, grpc.Call)
                    if error.code() is grpc.StatusCode.UNAVAILABLE and method != "GetTerminal":
                        threading.Event().wait(0.05)  # the writer rebuilds after what GetTerminal was made to raise
                        continue
                    details = [
                        bytes(value) if isinstance(value, bytes) else value.encode() for _, value in error.trailing_metadata()
                    ]
                    errors += [str(error.details()).encode(), repr(error).encode(), *details]
                break
        found.methods.add(f"{service}/{method}")


def _settle(connection: Connection) -> None:
    """Files of a day: what participants and banks get."""
    date = connection.clearing.ListWindows(clearing_service_pb2.ListWindowsRequest()).windows[0].settlement_date
    for call, kind in (
        (connection.clearing.CloseWindow, clearing_service_pb2.CloseWindowRequest),
        (connection.clearing.ClearWindow, clearing_service_pb2.ClearWindowRequest),
        (connection.settlement.SettleWindow, settlement_service_pb2.SettleWindowRequest),
    ):
        response = call(kind(request_id=secrets.token_bytes(16), settlement_date=date))
        assert response.result == 1, response


# ---- the search itself works ----


def test_canaries_are_planted_in_every_personal_field_of_every_request(written: Written) -> None:
    """Of text and bytes; a number cannot be told from another."""
    wanted: set[str] = set()

    def collect(descriptor: Any, seen: frozenset[str] = frozenset()) -> None:
        if descriptor.full_name in seen:
            return
        for field in descriptor.fields:
            if field.message_type is not None:
                collect(field.message_type, seen | {descriptor.full_name})
            elif level_of(field) >= access_pb2.PERSONAL_LEVEL_IDENTITY and field.cpp_type == field.CPPTYPE_STRING:
                wanted.add(field.full_name)

    for _, service, method in methods_of_protos():
        collect(method_of(f"{service}/{method}").input_type)
    planted = set(written.canaries.planted.values())
    assert wanted - planted <= {"yikatong.v1.Tap.mac"}  # four bytes stand somewhere by chance
    assert len(written.methods) == len(list(methods_of_protos()))


@pytest.mark.parametrize("value", ["44162119900307002X", "李鹏鲲鹤", "secret-1"])
def test_whatever_form_a_value_is_written_in_is_found(value: str) -> None:
    canaries = Canaries()
    canaries.plant(value, "x")
    escaped = "".join(f"\\{byte:03o}" if byte > 126 else chr(byte) for byte in value.encode())
    for text in (value, repr(value), repr(value.encode()), value.encode().hex(), f"{{'a': {value!a}}}", escaped):
        assert canaries.found_in(b"..." + text.encode() + b"...") == {"x"}, text
    assert canaries.found_in(b"nothing") == set()


def test_the_server_did_something(written: Written) -> None:
    """It wrote what is searched: a traceback of each internal error, files of a day, columns of an export."""
    log = written.texts["log"].decode()
    assert "GetTap failed" in log
    assert "a group could not be decided" in log
    assert log.count(logs.LEFT_OUT) >= 4
    assert any("settlement" in where for where in written.texts)
    assert len([where for where in written.stores if where.startswith("backup")]) == 2
    assert b"yikatong_taps_total" in written.texts["metrics"]
    assert len(written.texts["errors"]) > 1_000


# ---- the search ----


def test_no_canary_is_in_logs_metrics_errors_or_files(written: Written) -> None:
    leaks = {(where, field) for where, data in written.texts.items() for field in written.canaries.found_in(data)}
    assert leaks == set()


def test_no_canary_is_in_the_journal_or_the_state_unsealed(written: Written) -> None:
    leaks = {
        (where, field)
        for where, data in written.stores.items()
        for field in written.canaries.found_in(data)
        if not is_allowed_in_stores(field)
    }
    assert leaks == set()


def test_no_key_is_written_anywhere(written: Written) -> None:
    for what, key in written.keys.items():
        for where, data in {**written.texts, **written.stores}.items():
            assert not any(form in data for form in forms(key)), (what, where)


def test_exports_have_no_column_about_somebody() -> None:
    """Exports hold card numbers, which tell cards apart; nothing that tells people."""
    personal = {"name", "citizen", "phone", "address", "birth", "person"}
    assert not [column for column in SCHEMA.names if any(word in column for word in personal)]


def test_no_memory_of_the_process_is_written_beside_what_is(tmp_path: Path) -> None:
    """LMDB could leave what the heap held before in the unused part of a page: keys, names, anything."""
    marker = secrets.token_bytes(16)
    with DataDirectory(tmp_path / "data") as directory:
        for at in range(50):
            held = [marker * 250 for _ in range(200)]  # of about the size of a page
            del held
            with directory.state.write() as writer:
                writer.put("meta", at.to_bytes(2, "big"), b"x" * 100)
    assert marker not in (tmp_path / "data/state.mdb").read_bytes()
