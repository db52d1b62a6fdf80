"""A phone: carries one e-card, shows its codes, online and, for some hours after it was online, offline.

The example runs by `python -m yikatong.clients.phone --help`.

What it must keep secret (the device's key and the SM2 key that signs ride codes) is in one file that only its owner may read; a
real phone has a secure element for that. Its counter is written before each proof leaves, so that none is made twice."""

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import segno

from yikatong.clients.connection import Connection, call
from yikatong.core.cards.device_proof import DEVICE_ID_BYTES, activation_proof, make_proof, message_of, unwrap
from yikatong.core.cards.ride_code import make_code
from yikatong.core.errors import YikatongError
from yikatong.core.sm2 import PrivateKey
from yikatong.core.types import Result
from yikatong.v1 import code_service_pb2, e_card_service_pb2

REQUEST_ID_BYTES: Final = 16


class Refused(YikatongError):
    """The core says no; `result` is its code."""

    def __init__(self, result: int) -> None:
        super().__init__(Result(result).name)
        self.result = Result(result)


class NotReady(YikatongError):
    """The phone has no e-card, or no ride code that is good now: it must go online first."""


class OnlineCode(NamedTuple):
    """An online code and until when it is good, seconds since 1970."""

    text: str
    expires_s: float


class Phone:
    """State in a file, made with the first activation. One process has it. Raises Refused where the core says no, NotReady, and
    grpc.RpcError where there was no answer."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._state: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self._key = PrivateKey(self._state["ride_key"].encode(), str(path)) if "ride_key" in self._state else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._save()

    def __repr__(self) -> str:
        """Without the keys."""
        return f"Phone({self._path}, {self.device_id.hex() or 'not activated'})"

    @property
    def device_id(self) -> bytes:
        return bytes.fromhex(self._state.get("device_id", ""))

    def _save(self) -> None:
        """In one go: what is there is the old state or the new one."""
        if not self._state:
            return
        new = self._path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(self._state, file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._path)

    # ---- activation ----

    def activate(self, connection: Connection, code: bytes, secret: bytes, name: str = "") -> None:
        """Bind this phone to the e-card with a first-level code, by its activation secret (32 bytes)."""
        key = PrivateKey.make()
        device_id = secrets.token_bytes(DEVICE_ID_BYTES)
        point = key.public_key().point()
        request = e_card_service_pb2.ActivateDeviceRequest(
            request_id=secrets.token_bytes(REQUEST_ID_BYTES), code=code, device_id=device_id, public_key=point, name=name,
            proof=activation_proof(secret, code, device_id, point),
        )  # fmt: skip
        answer = call(connection.e_cards.ActivateDevice, request, timeout_s=10)
        if answer.result != Result.ACCEPTED:
            raise Refused(answer.result)
        self._key = key
        self._state = {
            "device_id": device_id.hex(), "device_key": unwrap(secret, device_id, answer.wrapped_device_key).hex(), "counter": 0,
            "ride_key": key.private_pem().decode(), "issuer_part": "", "expires_s": 0,
        }  # fmt: skip
        self._save()

    def prove(self, method: str, *fields: bytes) -> bytes:
        """A proof that this phone asks a method for this; each is good once."""
        if not self._state:
            raise NotReady("the phone is not activated")
        self._state["counter"] += 1
        self._save()
        message = message_of(method, *fields)
        key = bytes.fromhex(self._state["device_key"])
        return make_proof(key, self.device_id, message, int(self._clock() * 1e6), self._state["counter"])

    # ---- codes ----

    def online_code(self, connection: Connection) -> OnlineCode:
        """A new online code. A call without an answer is made again with a new proof, by whoever wants the code still."""
        request = code_service_pb2.GetCodeRequest(device_id=self.device_id)
        request.proof = self.prove("CodeService/GetCode", self.device_id)
        answer = connection.codes.GetCode(request, timeout=10)
        if answer.result != Result.ACCEPTED:
            raise Refused(answer.result)
        return OnlineCode(answer.code, answer.expires_time_us / 1e6)

    def fetch_ride_code(self, connection: Connection) -> float:
        """Fetch what ride codes are made under; returns until when they are, seconds since 1970."""
        request = code_service_pb2.GetRideCodeRequest(device_id=self.device_id)
        request.proof = self.prove("CodeService/GetRideCode", self.device_id)
        answer = connection.codes.GetRideCode(request, timeout=10)
        if answer.result != Result.ACCEPTED:
            raise Refused(answer.result)
        self._state["issuer_part"], self._state["expires_s"] = answer.issuer_part.hex(), answer.expires_s
        self._save()
        return float(answer.expires_s)

    def ride_code(self) -> bytes:
        """A ride code of this moment, made without network."""
        now_s = int(self._clock())
        if self._key is None or not self._state["issuer_part"] or now_s > self._state["expires_s"]:
            raise NotReady("a ride code must be fetched first")
        return make_code(bytes.fromhex(self._state["issuer_part"]), self._key, now_s)


def qr_code(code: str | bytes) -> segno.QRCode:
    """A code as a QR symbol, with error correction M (15 %): `save` writes it as PNG or SVG, `terminal` shows it. Text goes in
    alphanumeric mode, a ride code's bytes as they are."""
    if isinstance(code, str):
        return segno.make_qr(code, error="m")
    return segno.make_qr(code, error="m", mode="byte")


def main(arguments: list[str] | None = None) -> int:
    """The example: activate a phone, and show its codes in the terminal or in a file."""
    parser = argparse.ArgumentParser(prog="python -m yikatong.clients.phone", description=main.__doc__)
    parser.add_argument("--server", default="127.0.0.1:7400", help="address of the service port")
    parser.add_argument("--ca", type=Path, help="PEM file of the authority; without it plaintext")
    parser.add_argument("--certificate", type=Path, help="PEM file, for mTLS")
    parser.add_argument("--key", type=Path, help="PEM file of the certificate's key")
    parser.add_argument("--state", type=Path, default=Path("phone.json"), help="where the phone keeps what it must")
    parser.add_argument("--out", type=Path, help="write the QR code here (.png or .svg) instead of showing it")
    commands = parser.add_subparsers(dest="command", required=True)
    activate = commands.add_parser("activate", help="bind the phone to an e-card")
    activate.add_argument("code", help="the e-card's first-level code, 32 hexadecimal digits")
    activate.add_argument("--secret-file", type=Path, help="file with the activation secret in hexadecimal; else standard input")
    activate.add_argument("--name", default="")
    commands.add_parser("code", help="show an online code")
    commands.add_parser("fetch", help="fetch what ride codes are made under")
    commands.add_parser("ride", help="show a ride code, without network")
    chosen = parser.parse_args(arguments)
    phone = Phone(chosen.state)
    try:
        if chosen.command == "ride":
            _show(phone.ride_code(), chosen.out)
            return 0
        with Connection(chosen.server, ca=chosen.ca, certificate=chosen.certificate, key=chosen.key) as connection:
            if chosen.command == "activate":
                text = chosen.secret_file.read_text() if chosen.secret_file else sys.stdin.readline()
                phone.activate(connection, bytes.fromhex(chosen.code), bytes.fromhex(text.strip()), chosen.name)
                print(f"activated: device {phone.device_id.hex()}")
            elif chosen.command == "code":
                _show(phone.online_code(connection).text, chosen.out)
            else:
                until = time.strftime("%Y-%m-%d %H:%M", time.localtime(phone.fetch_ride_code(connection)))
                print(f"ride codes can be made until {until}")
    except YikatongError as error:
        print(f"the phone cannot: {error}", file=sys.stderr)
        return 1
    return 0


def _show(code: str | bytes, out: Path | None) -> None:
    symbol = qr_code(code)
    if out is None:
        symbol.terminal(compact=True)
    else:
        symbol.save(str(out), scale=8)


if __name__ == "__main__":
    sys.exit(main())
