"""Certificates: who they name, on both ports of a running server, and what happens when they are revoked or renewed meanwhile."""

import datetime
import secrets
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from city import new_card, new_terminal
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from yikatong.clients.card import SimulatedCard
from yikatong.clients.connection import Connection
from yikatong.clients.embedded import EmbeddedServer, ServerFailed
from yikatong.clients.terminal import Terminal
from yikatong.core.access import callers
from yikatong.core.access.callers import Caller
from yikatong.core.access.certificates import (
    Authority,
    CertificateError,
    Revocations,
    Subject,
    check,
    identity_of,
    key_pem,
    new_key,
    read_certificates,
    read_revocations,
    write_pair,
)
from yikatong.core.access.certs_cli import certs
from yikatong.core.access.tls import FILES, Tls
from yikatong.core.config import Settings
from yikatong.core.errors import ConfigError, InvalidRequest, Unauthenticated
from yikatong.core.keys.key_sets import KeySet
from yikatong.core.types import Result
from yikatong.v1 import (
    access_pb2,
    account_service_pb2,
    authorization_service_pb2,
    tap_service_pb2,
    terminal_service_pb2,
)

AUTHORIZE = "/yikatong.v1.TapService/AuthorizeTap"
SUBMIT = "/yikatong.v1.TapService/SubmitTaps"
BALANCE = "/yikatong.v1.AccountService/GetBalance"
SERVER = Subject(dns=("localhost",), ips=("127.0.0.1",))


class Files(NamedTuple):
    ca: Path
    certificate: Path | None = None
    key: Path | None = None


class Odd:
    """A subject that no certificate should have."""

    def __init__(self, *uris: str) -> None:
        self.uri, self.name = "yikatong:odd", "odd"
        self._names = [x509.UniformResourceIdentifier(uri) for uri in uris] or [x509.DNSName("nobody")]

    def alternative_names(self) -> list[x509.GeneralName]:
        return list(self._names)


def files(authority: Authority, stem: Path, subject: Any, days: float = 1) -> Files:
    write_pair(authority, stem, subject, days)
    return Files(authority.folder / "ca.pem", stem.with_name(f"{stem.name}.pem"), stem.with_name(f"{stem.name}.key"))


def caller_files(authority: Authority, uri: str, days: float = 1) -> Files:
    return files(authority, authority.folder / uri.replace(":", "-"), Subject(uri=uri), days)


def connect(address: str | None, shown: Files) -> Connection:
    return Connection(address or "", ca=shown.ca, certificate=shown.certificate, key=shown.key)


def raw(connection: Connection, path: str, request: bytes) -> tuple[Any, ...]:
    """All of an answer: code, message, status details, response bytes."""
    try:
        response = connection.channel.unary_unary(path)(request, timeout=10)
    except grpc.RpcError as error:
        details = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
        return error.code().name, error.details(), details, b""
    return "OK", "", [], response


def error_info(answer: tuple[Any, ...]) -> error_details_pb2.ErrorInfo:
    from google.rpc import status_pb2

    info = error_details_pb2.ErrorInfo()
    status = status_pb2.Status.FromString(answer[2][0])
    assert any(detail.Unpack(info) for detail in status.details if detail.Is(info.DESCRIPTOR))
    return info


def tls_arguments(folder: Path) -> list[str]:
    return [
        "--tls-certificate", str(folder / "server.pem"), "--tls-key", str(folder / "server.key"),
        "--tls-client-ca", str(folder / "ca.pem"), "--tls-client-crl", str(folder / "crl.pem"),
    ]  # fmt: skip


class City:
    """A server, its authority, and who calls."""

    def __init__(self, folder: Path, key_file: Path, *arguments: str) -> None:
        self.folder = folder
        self.authority = Authority.make(folder, "city", 2)
        write_pair(self.authority, folder / "server", SERVER, 1)
        self.operator = caller_files(self.authority, "yikatong:operator:anna")
        self.server = EmbeddedServer(folder / "data", key_file, *tls_arguments(folder), *arguments, insecure=False)

    def both(self, shown: Files, stack: ExitStack) -> tuple[Connection, Connection]:
        """Connections to the service port and the tap port."""
        return tuple(stack.enter_context(connect(at, shown)) for at in (self.server.address, self.server.tap_address))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Iterator[City]:
    made = City(tmp_path_factory.mktemp("city"), key_file)
    with made.server:
        yield made


@pytest.fixture(scope="module")
def street(city: City, key_set: KeySet) -> tuple[SimulatedCard, Terminal, Terminal]:
    """A card, a terminal of the bus company, and one of the tram company."""
    with connect(city.server.address, city.operator) as connection:
        return new_card(connection, key_set, 100_000), new_terminal(connection, "bus"), new_terminal(connection, "tram")


def terminal_uri(terminal: Terminal) -> str:
    return f"yikatong:terminal:{terminal.terminal_number.hex()}"


# ---- who may bring which taps: the same on both ports ----


def test_taps_of_ones_own_only(city: City, street: tuple[SimulatedCard, Terminal, Terminal]) -> None:
    card, bus, tram = street
    authorize, submit = tap_service_pb2.AuthorizeTapRequest, tap_service_pb2.SubmitTapsRequest
    unknown = Terminal(secrets.token_bytes(6), 1, "bus")
    ours, theirs, nobodys = (terminal.present(card, 10) for terminal in (bus, tram, unknown))
    with connect(city.server.address, city.operator) as connection:
        connection.taps.SubmitTaps(submit(taps=[ours, theirs]))  # from now on they are repeats, answered alike on both ports
    malformed = tap_service_pb2.Tap(card_number="x")
    single = {
        "ours": authorize(tap=ours), "theirs": authorize(tap=theirs), "unknown terminal": authorize(tap=nobodys),
        "malformed": authorize(tap=malformed),
    }  # fmt: skip
    stored = {
        "ours": submit(taps=[ours] * 3), "theirs": submit(taps=[theirs]), "mixed": submit(taps=[ours] * 99 + [theirs]),
        "with a malformed one": submit(taps=[ours, malformed]), "none": submit(),
    }  # fmt: skip
    may = {
        terminal_uri(bus): {"ours", "malformed", "with a malformed one"},
        terminal_uri(tram): {"theirs", "malformed"},
        "yikatong:acquirer:bus": {"ours", "malformed", "with a malformed one"},
        "yikatong:acquirer:tram": {"theirs", "malformed"},
        "yikatong:acquirer:nobody": {"malformed"},
        "yikatong:operator:ben": {"ours", "theirs", "mixed", "malformed", "with a malformed one"},
    }
    for uri, allowed in may.items():
        with ExitStack() as stack:
            ports = city.both(caller_files(city.authority, uri), stack)
            for path, requests in ((AUTHORIZE, single), (SUBMIT, stored)):
                for name, request in requests.items():
                    if name == "unknown terminal" and uri == "yikatong:operator:ben":
                        continue  # journalled anew each time
                    answers = [raw(port, path, request.SerializeToString()) for port in ports]
                    assert answers[0] == answers[1], (uri, path, name)
                    wanted = "OK" if name in allowed else "INVALID_ARGUMENT" if name == "none" else "PERMISSION_DENIED"
                    assert answers[0][0] == wanted, (uri, path, name, answers[0])
                    if wanted == "PERMISSION_DENIED":
                        info = error_info(answers[0])
                        assert (info.reason, info.metadata["why"]) == ("FORBIDDEN", "own")


def test_a_refused_batch_leaves_no_trace(city: City, street: tuple[SimulatedCard, Terminal, Terminal]) -> None:
    card, bus, tram = street
    taps = [bus.present(card, 7), tram.present(card, 7)]
    balance = account_service_pb2.GetBalanceRequest(card_number=card.card_number)
    with ExitStack() as stack:
        operator = stack.enter_context(connect(city.server.address, city.operator))
        before = operator.accounts.GetBalance(balance)
        for port in city.both(caller_files(city.authority, terminal_uri(bus)), stack):
            assert raw(port, SUBMIT, tap_service_pb2.SubmitTapsRequest(taps=taps).SerializeToString())[0] == "PERMISSION_DENIED"
        assert operator.accounts.GetBalance(balance) == before
        outcomes = operator.taps.SubmitTaps(tap_service_pb2.SubmitTapsRequest(taps=taps)).outcomes
        assert [(outcome.result, outcome.duplicate) for outcome in outcomes] == [(Result.ACCEPTED, False)] * 2


def test_many_callers_in_one_batch(city: City, street: tuple[SimulatedCard, Terminal, Terminal]) -> None:
    """Calls of all connections are decided together; each stays bound to its own."""
    card, bus, tram = street
    with ExitStack() as stack:
        of_bus = stack.enter_context(connect(city.server.tap_address, caller_files(city.authority, terminal_uri(bus))))
        of_tram = stack.enter_context(connect(city.server.tap_address, caller_files(city.authority, "yikatong:acquirer:tram")))
        calls = []
        for _ in range(200):
            for terminal in (bus, tram):
                request = tap_service_pb2.AuthorizeTapRequest(tap=terminal.present(card, 1))
                for port in (of_bus, of_tram):
                    calls.append((port is of_bus, terminal is bus, port.taps.AuthorizeTap.future(request, timeout=20)))
        for from_bus, of_bus_terminal, call in calls:
            if from_bus == of_bus_terminal:
                assert call.result().outcome.result == Result.ACCEPTED
            else:
                assert call.exception().code() == grpc.StatusCode.PERMISSION_DENIED


def test_an_operator_that_is_registered_later(city: City, key_set: KeySet) -> None:
    """An acquirer may have connected before its first terminal was there."""
    with ExitStack() as stack:
        operator = stack.enter_context(connect(city.server.address, city.operator))
        ports = city.both(caller_files(city.authority, "yikatong:acquirer:late"), stack)
        card = new_card(operator, key_set)
        terminal = Terminal(secrets.token_bytes(6), 1, "late")
        tap = tap_service_pb2.AuthorizeTapRequest(tap=terminal.present(card, 1)).SerializeToString()
        assert [raw(port, AUTHORIZE, tap)[0] for port in ports] == ["PERMISSION_DENIED"] * 2
        message = terminal_service_pb2.Terminal(terminal_number=terminal.terminal_number, operator_id="late", kind=1)
        operator.terminals.RegisterTerminals(terminal_service_pb2.RegisterTerminalsRequest(terminals=[message]))
        assert [raw(port, AUTHORIZE, tap)[0] for port in ports] == ["OK"] * 2


def test_roles(city: City, street: tuple[SimulatedCard, Terminal, Terminal]) -> None:
    card, bus, _ = street
    balance = account_service_pb2.GetBalanceRequest(card_number=card.card_number).SerializeToString()
    tap = tap_service_pb2.AuthorizeTapRequest(tap=bus.present(card, 1)).SerializeToString()
    wanted = {
        terminal_uri(bus): {BALANCE: "role", AUTHORIZE: ""},
        "yikatong:acquirer:bus": {BALANCE: "role", AUTHORIZE: ""},
        "yikatong:bank:icbc": {BALANCE: "role", AUTHORIZE: "role"},
        "yikatong:department:hrss": {BALANCE: "", AUTHORIZE: "role"},
        "yikatong:department:hrss:441602": {BALANCE: "district", AUTHORIZE: "role"},
        "yikatong:operator:ben": {BALANCE: "", AUTHORIZE: ""},
    }
    with connect(city.server.address, city.operator) as operator:
        raw(operator, AUTHORIZE, tap)
    for uri, refusals in wanted.items():
        with ExitStack() as stack:
            ports = city.both(caller_files(city.authority, uri), stack)
            for path, request in ((BALANCE, balance), (AUTHORIZE, tap)):
                answers = [raw(port, path, request) for port in ports]
                assert answers[0] == answers[1], (uri, path)
                if not refusals[path]:
                    assert answers[0][0] == "OK"
                    continue
                info = error_info(answers[0])
                assert (answers[0][0], info.metadata["why"]) == ("PERMISSION_DENIED", refusals[path])
                assert "operator all" in info.metadata["wanted"] or refusals[path] == "district"
            for port in ports:  # health is anybody's
                status = health_pb2_grpc.HealthStub(port.channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
                assert status.status == health_pb2.HealthCheckResponse.SERVING


def test_an_acquirer_asks_for_its_own_payments(city: City) -> None:
    listing = authorization_service_pb2.ListAuthorizationsRequest
    with connect(city.server.address, caller_files(city.authority, "yikatong:acquirer:shop")) as shop:
        assert not shop.authorizations.ListAuthorizations(listing(acquirer_id="shop")).authorizations
        for other in (listing(acquirer_id="other"), listing(card_number="1"), listing()):
            with pytest.raises(grpc.RpcError) as caught:
                shop.authorizations.ListAuthorizations(other)
            assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


# ---- who is nobody ----


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        (Odd(), "no identities"),
        (Odd("https://example.org/"), "no identities"),
        (Odd("yikatong:operator:anna", "yikatong:bank:icbc"), "2 identities"),
        (Odd("yikatong:king:anna"), "not well-formed"),
        (Odd("yikatong:operator:anna bob"), "not well-formed"),
        (Odd("yikatong:terminal:11223344556"), "not well-formed"),
    ],
)
def test_no_identity(city: City, street: tuple[SimulatedCard, Terminal, Terminal], subject: Odd, reason: str) -> None:
    card, bus, _ = street
    tap = tap_service_pb2.AuthorizeTapRequest(tap=bus.present(card, 1)).SerializeToString()
    balance = account_service_pb2.GetBalanceRequest(card_number=card.card_number).SerializeToString()
    with ExitStack() as stack:
        ports = city.both(files(city.authority, city.folder / secrets.token_hex(8), subject), stack)
        for path, request in ((AUTHORIZE, tap), (SUBMIT, b""), (BALANCE, balance)):
            answers = [raw(port, path, request) for port in ports]
            assert answers[0] == answers[1]
            assert answers[0][0] == "UNAUTHENTICATED"
            assert reason in answers[0][1]
            assert error_info(answers[0]).reason == "UNAUTHENTICATED"


def test_certificates_that_tls_refuses(city: City, tmp_path: Path) -> None:
    stranger = Authority.make(tmp_path / "stranger", "city", 1)  # even by the same name
    ca = city.folder / "ca.pem"
    refused = {
        "no certificate": Files(ca),
        "another authority": caller_files(stranger, "yikatong:operator:anna")._replace(ca=ca),
        "expired": caller_files(city.authority, "yikatong:operator:old", days=-1),
        "a server's": Files(ca, city.folder / "server.pem", city.folder / "server.key"),
    }
    request = account_service_pb2.GetBalanceRequest(card_number="1").SerializeToString()
    for name, shown in refused.items():
        with ExitStack() as stack:
            for port in city.both(shown, stack):
                assert raw(port, BALANCE, request)[0] == "UNAVAILABLE", name


# ---- while the server runs ----


def until(check_: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not check_():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_revoked_on_an_open_connection(city: City, street: tuple[SimulatedCard, Terminal, Terminal]) -> None:
    card, bus, _ = street
    tap = tap_service_pb2.AuthorizeTapRequest(tap=bus.present(card, 1)).SerializeToString()
    shown = caller_files(city.authority, "yikatong:acquirer:bus")
    assert shown.certificate is not None
    with ExitStack() as stack:
        ports = city.both(shown, stack)
        other = city.both(caller_files(city.authority, terminal_uri(bus)), stack)
        assert [raw(port, AUTHORIZE, tap)[0] for port in (*ports, *other)] == ["OK"] * 4
        city.authority.revoke([read_certificates(shown.certificate)[0].serial_number])
        for port in ports:
            until(lambda port=port: raw(port, AUTHORIZE, tap)[0] == "UNAUTHENTICATED")  # type: ignore[misc]
        answers = [raw(port, AUTHORIZE, tap) for port in ports]
        assert answers[0] == answers[1]
        assert "revoked" in answers[0][1]
        assert [raw(port, AUTHORIZE, tap)[0] for port in other] == ["OK"] * 2  # nobody else is touched
        fresh = city.both(shown, stack)  # and a new connection helps nobody
        assert [raw(port, AUTHORIZE, tap)[0] for port in fresh] == ["UNAUTHENTICATED"] * 2


def test_a_certificate_that_ends_on_an_open_connection(city: City, street: tuple[SimulatedCard, Terminal, Terminal]) -> None:
    card, bus, _ = street
    tap = tap_service_pb2.AuthorizeTapRequest(tap=bus.present(card, 1)).SerializeToString()
    with ExitStack() as stack:
        ports = city.both(caller_files(city.authority, terminal_uri(bus), days=4 / 86_400), stack)
        assert [raw(port, AUTHORIZE, tap)[0] for port in ports] == ["OK"] * 2
        for port in ports:
            until(lambda port=port: raw(port, AUTHORIZE, tap)[0] == "UNAUTHENTICATED")  # type: ignore[misc]
        answers = [raw(port, AUTHORIZE, tap) for port in ports]
        assert answers[0] == answers[1]
        assert "has expired" in answers[0][1]


def served_serial(address: str | None, shown: Files) -> int:
    """Serial number of the certificate that a port shows now."""
    host, port = (address or "").split(":")
    context = ssl.create_default_context(cafile=str(shown.ca))
    context.load_cert_chain(str(shown.certificate), shown.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=10) as wire,
        context.wrap_socket(wire, server_hostname=host) as secure,
    ):
        shown_der = secure.getpeercert(True)
    assert shown_der is not None
    return x509.load_der_x509_certificate(shown_der).serial_number


def test_the_servers_certificate_is_renewed(city: City, street: tuple[SimulatedCard, Terminal, Terminal]) -> None:
    card, bus, _ = street
    tap = tap_service_pb2.AuthorizeTapRequest(tap=bus.present(card, 1)).SerializeToString()
    addresses = (city.server.address, city.server.tap_address)
    before = read_certificates(city.folder / "server.pem")[0].serial_number
    assert [served_serial(address, city.operator) for address in addresses] == [before] * 2
    with ExitStack() as stack:
        ports = city.both(city.operator, stack)
        assert [raw(port, AUTHORIZE, tap)[0] for port in ports] == ["OK"] * 2
        after = write_pair(city.authority, city.folder / "server", SERVER, 1).serial_number
        for address in addresses:
            until(lambda address=address: served_serial(address, city.operator) == after)  # type: ignore[misc]
        assert [raw(port, AUTHORIZE, tap)[0] for port in ports] == ["OK"] * 2  # open connections stay
    # What does not go together is not taken, and told.
    (city.folder / "server.key").write_bytes(key_pem(new_key()))
    until(lambda: "TLS files were not taken: tls_key" in city.server.log_path.read_text())
    assert [served_serial(address, city.operator) for address in addresses] == [after] * 2
    write_pair(city.authority, city.folder / "server", SERVER, 1)


def test_reload_by_signal(city: City) -> None:
    taken = city.server.log_path.read_text().count("TLS files were read anew")
    city.server.process.send_signal(signal.SIGHUP)
    until(lambda: city.server.log_path.read_text().count("TLS files were read anew") > taken)


def test_another_authority_is_taken(tmp_path: Path, key_file: Path) -> None:
    """Callers of a second authority get in once it is in the file, and out when it is not; each has its revocation list."""
    made = City(tmp_path / "city", key_file)
    second = Authority.make(tmp_path / "second", "second", 1)
    guest = caller_files(second, "yikatong:operator:guest")._replace(ca=made.folder / "ca.pem")
    ca, crl = made.folder / "ca.pem", made.folder / "crl.pem"
    alone = ca.read_bytes(), crl.read_bytes()
    request = account_service_pb2.GetBalanceRequest(card_number="404").SerializeToString()

    def answers(shown: Files) -> list[str]:
        with ExitStack() as stack:
            return [raw(port, BALANCE, request)[0] for port in made.both(shown, stack)]

    with made.server:
        assert answers(guest) == ["UNAVAILABLE"] * 2
        ca.write_bytes(alone[0] + (tmp_path / "second/ca.pem").read_bytes())
        until(lambda: answers(guest) == ["UNAUTHENTICATED"] * 2)  # known, but nobody can say whether it is revoked
        crl.write_bytes(alone[1] + (tmp_path / "second/crl.pem").read_bytes())
        until(lambda: answers(guest) == ["NOT_FOUND"] * 2)
        assert answers(made.operator) == ["NOT_FOUND"] * 2
        crl.write_bytes(alone[1])
        ca.write_bytes(alone[0])
        until(lambda: answers(guest) == ["UNAVAILABLE"] * 2)
        assert answers(made.operator) == ["NOT_FOUND"] * 2


def test_a_revocation_list_that_runs_out(tmp_path: Path, key_file: Path) -> None:
    made = City(tmp_path, key_file)
    request = account_service_pb2.GetBalanceRequest(card_number="404").SerializeToString()
    with made.server, ExitStack() as stack:
        ports = made.both(made.operator, stack)

        def answers() -> list[str]:
            return [raw(port, BALANCE, request)[0] for port in ports]

        assert answers() == ["NOT_FOUND"] * 2
        good = (tmp_path / "crl.pem").read_bytes()
        made.authority.revoke([], days=-60 / 86_400)  # out of date already: not taken
        until(lambda: "TLS files were not taken: tls_client_crl" in made.server.log_path.read_text())
        assert answers() == ["NOT_FOUND"] * 2
        made.authority.revoke([], days=3 / 86_400)
        until(lambda: answers() == ["UNAUTHENTICATED"] * 2)
        until(lambda: "every caller is refused until there is a newer one" in made.server.log_path.read_text())
        one, other = (raw(port, BALANCE, request) for port in ports)
        assert one == other
        assert "out of date" in one[1]
        (tmp_path / "crl.pem").write_bytes(good)
        until(lambda: answers() == ["NOT_FOUND"] * 2)
    made.authority.revoke([], days=-60 / 86_400)
    with pytest.raises(ServerFailed, match=r"tls_client_crl: .* was good until .* only"):
        EmbeddedServer(tmp_path / "data", key_file, *tls_arguments(tmp_path), insecure=False)


# ---- without a server ----


def test_settings() -> None:
    tls = {"tls_certificate": "a", "tls_key": "b"}
    Settings(**tls).check_tls()  # loopback
    Settings(host="10.0.0.5", tls_client_ca="c", **tls).check_tls()
    with pytest.raises(ConfigError, match="tls_client_ca: is not set: callers must show certificates"):
        Settings(host="10.0.0.5", **tls).check_tls()
    with pytest.raises(ConfigError, match="tls_client_ca: is not set, but tls_client_crl is"):
        Settings(tls_client_crl="c", **tls).check_tls()


def test_revocations(tmp_path: Path) -> None:
    one, two = (Authority.make(tmp_path / name, name, 1) for name in ("one", "two"))
    revoked, good = (identity_of(one.issue(Subject(uri=f"yikatong:bank:b{i}"), 1, new_key().public_key())) for i in range(2))
    foreign = identity_of(two.issue(Subject(uri="yikatong:bank:b"), 1, new_key().public_key()))
    one.revoke([revoked.serial])
    lists = read_revocations(tmp_path / "one/crl.pem")
    found = Revocations(lists, [two.certificate, one.certificate])
    now = time.time()
    assert len(found) == 1
    assert check(good, found, now) == Caller(access_pb2.ROLE_BANK, "b1")
    for identity, when, reason in (
        (revoked, now, "is revoked"), (foreign, now, "no revocation list of the certificate's authority"),
        (good, now + 40 * 86_400, "out of date"), (good, now + 2 * 86_400, "has expired"), (good, now - 86_400, "not good yet"),
    ):  # fmt: skip
        with pytest.raises(Unauthenticated, match=reason):
            check(identity, found, when)
    with pytest.raises(CertificateError, match="is not signed by one of the authorities"):
        Revocations(lists, [two.certificate])
    forged = Authority.make(tmp_path / "forged", "one", 1)
    with pytest.raises(CertificateError, match="is not signed"):
        Revocations(lists, [forged.certificate])


@pytest.mark.parametrize("content", [b"", b"x", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pem"
    path.write_bytes(content)
    with pytest.raises(CertificateError, match=r"file\.pem"):
        read_revocations(path)
    with pytest.raises(CertificateError, match=r"file\.pem"):
        read_certificates(path)


def test_what_is_issued(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path, "city", 30)
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600
    made = write_pair(authority, tmp_path / "t", Subject(uri="yikatong:terminal:0123456789ab"), 365)
    assert (tmp_path / "t.key").stat().st_mode & 0o777 == 0o600
    assert made.not_valid_after_utc <= authority.certificate.not_valid_after_utc
    assert identity_of(made).caller == Caller(access_pb2.ROLE_TERMINAL, "0123456789ab")
    assert callers.parse_identity(str(identity_of(made).caller)) == identity_of(made).caller
    made.verify_directly_issued_by(authority.certificate)
    for wrong in (Subject(), Subject(uri="yikatong:terminal:1"), Subject(ips=("nowhere",)), Subject(uri="https://x")):
        with pytest.raises(InvalidRequest):
            authority.issue(wrong, 1, new_key().public_key())
    with pytest.raises(CertificateError, match="there is an authority already"):
        Authority.make(tmp_path, "city", 30)


def invoke(*arguments: str | Path, ok: bool = True) -> str:
    result = CliRunner().invoke(certs, [str(argument) for argument in arguments])
    assert (result.exit_code == 0) == ok, (result.output, result.exception)
    return result.output if result.exception is None or isinstance(result.exception, SystemExit) else str(result.exception)


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("yikatong.core.access.certs_cli.OUT.print", lambda *a, **k: None)
    invoke("init")
    invoke("issue", "terminal:112233445566")
    invoke("issue", "server", "--dns", "localhost", "--ip", "127.0.0.1", "--out", "door")
    assert "is there already" in invoke("issue", "terminal:112233445566", ok=False)
    assert "for a server" in invoke("issue", "bank:icbc", "--dns", "x", ok=False)
    assert "begins with one of" in invoke("issue", "king:anna", ok=False)
    assert "a server's --dns or --ip" in invoke("issue", "server", ok=False)
    old = read_certificates(Path("terminal-112233445566.pem"))[0]
    invoke("renew", "terminal-112233445566.pem", "--revoke-old")
    new = read_certificates(Path("terminal-112233445566.pem"))[0]
    key = serialization.load_pem_private_key(Path("terminal-112233445566.key").read_bytes(), None)
    assert key.public_key() == new.public_key()
    assert new.public_key() != old.public_key()
    assert identity_of(new).caller == identity_of(old).caller
    authority = Authority(Path("certs"))
    assert set(authority.revoked()) == {old.serial_number}
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    asked = x509.UniformResourceIdentifier("yikatong:operator:root")  # what it asks for does not count
    own_key = new_key()
    signed = request.add_extension(x509.SubjectAlternativeName([asked]), False).sign(own_key, x509_hash())
    Path("bus.csr").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    invoke("sign", "bus.csr", "acquirer:bus", "--out", "bus.pem")
    bus = read_certificates(Path("bus.pem"))[0]
    assert identity_of(bus).caller == Caller(access_pb2.ROLE_ACQUIRER, "bus")
    assert bus.public_key() == own_key.public_key()
    invoke("revoke", "acquirer:bus", "door.pem", f"{new.serial_number:x}")
    door = read_certificates(Path("door.pem"))[0]
    assert set(authority.revoked()) == {old.serial_number, bus.serial_number, door.serial_number, new.serial_number}
    assert "has issued no certificate" in invoke("revoke", "bank:nobody", ok=False)
    invoke("revoke", "--crl-days", "300")
    (found,) = read_revocations(Path("certs/crl.pem"))
    assert found.next_update_utc is not None
    assert found.next_update_utc - datetime.datetime.now(datetime.UTC) > datetime.timedelta(days=299)
    assert len(found) == 4
    invoke("list")
    invoke("show", "door.pem")


def x509_hash() -> Any:
    from cryptography.hazmat.primitives import hashes

    return hashes.SHA256()


def test_what_ends_soon_is_told_once_a_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority.make(tmp_path, "city", 30)
    write_pair(authority, tmp_path / "server", SERVER, 20)
    authority.revoke([], days=10)
    arguments = dict(zip(FILES, tls_arguments(tmp_path)[1::2], strict=True))
    now = [time.time()]
    tls = Tls(Settings(**arguments), lambda: now[0])
    told = []
    for _ in range(21):
        caplog.clear()
        for _ in range(3):
            tls.poll()
        told.append([name for name in ("server.pem", "crl.pem") for record in caplog.records if name in record.getMessage()])
        now[0] += 86_400.5
    assert told[:9] == [[]] * 9
    assert told[9] == ["crl.pem"]
    assert told[10] == ["crl.pem", "crl.pem"]  # a warning, and that it is over
    assert told[14][:1] == ["server.pem"]
    now[0] = time.time() + 12 * 86_400
    with pytest.raises(Unauthenticated, match="out of date"):
        tls.identify(identity_of(authority.issue(Subject(uri="yikatong:bank:b"), 20, new_key().public_key())))
